//! The task of a connection to a server.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll},
};

use weft_wire::{
    Response,
    h1::{Event as Event1, Framing},
    h2::{Event as Event2, Reason},
};

use super::{
    Conn, Lost, Want,
    conn::{Closing, Codec},
};
use crate::io::Input;

/// Reads in one turn of a connection, before others get theirs.
const READS_PER_TURN: u32 = 4;

/// Drives a connection to a server to its end.
pub async fn run(conn: Rc<Conn>) {
    let message = poll_fn(|cx| poll(&conn, cx)).await;
    if let Some(upstream) = conn.upstream() {
        upstream.connection_gone(&conn);
    }
    let reset = conn.closing.get() == Closing::Abort;
    if reset {
        conn.io.abort_on_close();
    }
    let silent = conn.silent.get();
    for exchange in conn.take_streams() {
        let message = message.clone().unwrap_or_else(|| "connection closed".into());
        exchange.server_gone(&Lost { reset: None, unprocessed: false, silent, message });
    }
    // A connection that has become a tunnel is somebody else's by now.
    if !reset && Rc::strong_count(&conn.io) == 1 {
        poll_fn(|cx| {
            // The server is told that this is the proper end. It may be gone already.
            let _ = conn.io.poll_shutdown(cx);
            Poll::Ready(())
        })
        .await;
    }
}

/// Why the connection ended, if that was not its proper end.
fn poll(conn: &Rc<Conn>, cx: &mut Context<'_>) -> Poll<Option<String>> {
    conn.set_waker(cx);
    for _ in 0..READS_PER_TURN {
        // A write that fails is no end yet: the server may have answered before it closed.
        let written = match conn.io.poll_flush(cx) {
            Poll::Ready(_) => {
                conn.write_out();
                conn.io.backlog() == 0
            }
            Poll::Pending => false,
        };
        if conn.io.is_broken() {
            conn.paused.set(false);
        }
        if let Some(upstream) = conn.upstream()
            && conn.is_h2()
            && upstream.has_waiting()
        {
            upstream.serve_waiting();
        }
        if ending(conn, written) {
            return Poll::Ready(None);
        }
        if conn.closing.get() == Closing::Flush {
            // Nothing is read any more; after a switch of protocols it would be the tunnel's.
            return wait(conn, cx);
        }
        if !conn.is_h2() {
            if conn.paused.get() {
                return wait(conn, cx);
            }
            if !conn.rest.borrow().is_empty() {
                let rest = std::mem::take(&mut *conn.rest.borrow_mut());
                if let Err(message) = decode(conn, &rest) {
                    return Poll::Ready(Some(message));
                }
                if conn.paused.get() {
                    return wait(conn, cx);
                }
            }
        }
        let mut input = Input::take();
        match conn.io.poll_read(cx, &mut input) {
            Poll::Pending => return wait(conn, cx),
            Poll::Ready(Ok(0)) => return Poll::Ready(end_of_input(conn)),
            Poll::Ready(Ok(_)) => {
                conn.heard();
                if conn.is_h2() {
                    conn.tick();
                    h2_input(conn, input.octets());
                } else if let Err(message) = h1_input(conn, input.octets()) {
                    return Poll::Ready(Some(message));
                }
            }
            Poll::Ready(Err(error)) => {
                conn.io.failed(&error);
                conn.silent.set(is_silence(&error));
                return Poll::Ready(Some(format!("read: {error}")));
            }
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// True when the system has given up to send something to a server from which nothing comes back.
fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
}

fn wait(conn: &Rc<Conn>, cx: &mut Context<'_>) -> Poll<Option<String>> {
    if ending(conn, conn.io.backlog() == 0) {
        return Poll::Ready(None);
    }
    if conn.io.backlog() > 0 && conn.io.poll_flush(cx).is_ready() {
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

fn ending(conn: &Rc<Conn>, written: bool) -> bool {
    match conn.closing.get() {
        Closing::Abort => true,
        Closing::Flush => written && !conn.has_output(),
        Closing::WhenIdle if conn.is_idle() => {
            conn.go_away();
            conn.closing.set(Closing::Flush);
            written && !conn.has_output()
        }
        Closing::WhenIdle | Closing::AfterNext | Closing::No => false,
    }
}

fn end_of_input(conn: &Rc<Conn>) -> Option<String> {
    let event = match &mut *conn.codec.borrow_mut() {
        Codec::Client1(c) => c.decoder.eof(),
        _ => return Some("connection closed by the server".into()),
    };
    match event {
        Ok(Some(_)) => {
            conn.closing.set(Closing::Flush);
            response_received(conn);
            if let Some(exchange) = conn.stream(1) {
                exchange.response_end(None);
            }
            None
        }
        Ok(None) => Some("connection closed by the server before it answered".into()),
        Err(error) => Some(format!("response: {error}")),
    }
}

fn h1_input(conn: &Rc<Conn>, octets: &[u8]) -> Result<(), String> {
    let rest = std::mem::take(&mut *conn.rest.borrow_mut());
    if rest.is_empty() {
        return decode(conn, octets);
    }
    let mut all = rest;
    all.extend_from_slice(octets);
    decode(conn, &all)
}

/// Decodes as far as possible and keeps the rest. An error ends the connection.
fn decode(conn: &Rc<Conn>, octets: &[u8]) -> Result<(), String> {
    let mut at = 0;
    let mut ahead = None;
    loop {
        if ahead.is_none() && (conn.paused.get() || conn.closing.get() == Closing::Abort) {
            break;
        }
        let event = match ahead.take() {
            Some(event) => event,
            None => match step(conn, octets, &mut at)? {
                Some(event) => event,
                None => break,
            },
        };
        let exchange = conn.stream(1);
        match event {
            Event1::Informational(head) => {
                if let Some(exchange) = exchange {
                    exchange.response_informational(&head);
                }
            }
            Event1::Head(head) => {
                let (tunnel, end) = match &*conn.codec.borrow() {
                    Codec::Client1(c) => {
                        (c.decoder.is_tunnel(), matches!(c.decoder.framing(), Framing::None | Framing::Length(0)))
                    }
                    _ => return Ok(()),
                };
                if tunnel && exchange.as_ref().is_some_and(|e| e.want(false) != Want::Tunnel) {
                    // The client's connection would be the server's from here on.
                    return Err("response: the server switches protocols although nobody asked it to".into());
                }
                if tunnel {
                    let rest = octets.get(at..).unwrap_or_default().to_vec();
                    switch(conn, head, rest);
                    return Ok(());
                }
                if end {
                    let _ = step(conn, octets, &mut at)?;
                    response_received(conn);
                }
                if let Some(exchange) = exchange {
                    exchange.response_head(head, end);
                }
            }
            Event1::Data(data) => {
                ahead = step(conn, octets, &mut at)?;
                let end = matches!(ahead, Some(Event1::End));
                if end {
                    ahead = None;
                    response_received(conn);
                }
                if let Some(exchange) = exchange
                    && exchange.response_data(data, 0, end)
                {
                    conn.pause();
                }
            }
            Event1::Trailers(trailers) => {
                let _ = step(conn, octets, &mut at)?;
                response_received(conn);
                if let Some(exchange) = exchange {
                    exchange.response_end(Some(&trailers));
                }
            }
            Event1::End => {
                response_received(conn);
                if let Some(exchange) = exchange {
                    exchange.response_end(None);
                }
            }
        }
    }
    if let Some(rest) = octets.get(at..).filter(|r| !r.is_empty()) {
        conn.rest.borrow_mut().extend_from_slice(rest);
        if conn.load() == 0 {
            // Octets that belong to no request.
            conn.close();
        }
    }
    Ok(())
}

fn step<'i>(conn: &Conn, octets: &'i [u8], at: &mut usize) -> Result<Option<Event1<'i, Response>>, String> {
    let input = octets.get(*at..).unwrap_or_default();
    match &mut *conn.codec.borrow_mut() {
        Codec::Client1(c) => match c.decoder.decode(input) {
            Ok((used, event)) => {
                *at += used;
                Ok(event)
            }
            Err(error) => Err(format!("response: {error}")),
        },
        _ => Ok(None),
    }
}

fn response_received(conn: &Conn) {
    if let Codec::Client1(c) = &mut *conn.codec.borrow_mut() {
        c.receiving = false;
    }
}

/// The server has agreed to switch protocols: the client's task goes on with this connection.
fn switch(conn: &Rc<Conn>, head: Response, rest: Vec<u8>) {
    conn.closing.set(Closing::Flush);
    if let Some(exchange) = conn.remove(1) {
        exchange.tunnel(head, conn.io.clone(), rest);
    }
}

/// Handles input of an HTTP/2 server; none, to handle what writing has brought about.
pub(super) fn h2_input(conn: &Rc<Conn>, mut octets: &[u8]) {
    while !conn.is_over() {
        let result = match &mut *conn.codec.borrow_mut() {
            Codec::H2(h2) => h2.next(&mut octets),
            _ => return,
        };
        match result {
            Ok(Some(event)) => h2_event(conn, event),
            Ok(None) => break,
            Err(error) => {
                if let Some(upstream) = conn.upstream() {
                    upstream.connection_gone(conn);
                }
                for exchange in conn.take_streams() {
                    // The server did not reset the stream: it cannot be understood.
                    let message = format!("response: HTTP/2: {error}");
                    let lost = Lost { reset: None, unprocessed: false, silent: false, message };
                    exchange.server_gone(&lost);
                }
                return conn.close();
            }
        }
    }
    conn.touch_if_output();
}

fn h2_event(conn: &Rc<Conn>, event: Event2<'_>) {
    match event {
        Event2::Informational { id, head } => {
            if let Some(exchange) = conn.stream(id) {
                exchange.response_informational(&head);
            }
        }
        Event2::Response { id, head, end } => {
            if let Some(exchange) = conn.stream(id) {
                exchange.response_head(head, end);
            }
        }
        Event2::Data { id, data, flow, end } => match conn.stream(id) {
            Some(exchange) => {
                exchange.response_data(data, flow, end);
            }
            None => conn.release(id, flow),
        },
        Event2::Trailers { id, headers } => {
            if let Some(exchange) = conn.stream(id) {
                exchange.response_end(Some(&headers));
            }
        }
        Event2::Reset { id, reason } => {
            if let Some(exchange) = conn.remove(id) {
                exchange.server_gone(&Lost {
                    reset: Some(reason),
                    unprocessed: reason == Reason::REFUSED_STREAM,
                    silent: false,
                    message: format!("stream reset by the server: {reason}"),
                });
            }
        }
        Event2::Writable { id } => {
            if let Some(exchange) = conn.stream(id) {
                exchange.resume_request();
            }
        }
        Event2::GoAway { reason, .. } => {
            tracing::debug!(server = %conn.io.peer(), %reason, "server goes away");
            if let Some(upstream) = conn.upstream() {
                upstream.connection_gone(conn);
            }
            conn.drain();
        }
        Event2::Settings => {
            conn.settled.set(true);
            if let Some(upstream) = conn.upstream() {
                upstream.serve_waiting();
            }
        }
        Event2::Pong | Event2::Request { .. } => {}
    }
}
