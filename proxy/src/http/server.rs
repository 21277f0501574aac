//! The task of a client's HTTP connection.
//!
//! **Half-close.** An HTTP/1 client that ends its side behind a whole request still gets its response: `nc -N` does that, and
//! programs that shut their sending side down. So the end of its octets is no cancellation; a reset is, and so is the end of
//! its octets in the middle of a request. A client that has closed altogether looks the same at first: it is found out by
//! the reset that answers what is sent to it.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use weft_wire::{
    Version,
    h1::{Event as Event1, Framing},
    h2::{Event as Event2, Reason},
};

use super::{
    Conn, Exchange, Failure, Kind,
    conn::{Closing, Codec, Server1},
};
use crate::{
    io::{Input, Io},
    tcp,
};

/// Reads in one turn of a connection, before others get theirs.
const READS_PER_TURN: u32 = 4;
/// Octets of an unwanted body that are read to keep a client's connection usable.
const DISCARD: usize = 256 * 1024;
/// How long the rest of what a client sends is read after the last response, so that its system does not throw the
/// response away because of a reset.
const LINGER: Duration = Duration::from_secs(2);

/// How a connection ended.
enum End {
    /// For good.
    Closed,
    /// After the last response; the client may still be sending.
    Linger,
    /// Not yet: the client sends nothing more, and awaits responses.
    HalfClosed,
    /// It goes on as a tunnel to that connection, which has sent these octets already.
    Tunnel(Rc<Io>, Vec<u8>),
}

/// Serves a client's connection to its end.
pub async fn serve(conn: Rc<Conn>) {
    let key = conn.worker.register(&conn);
    conn.arm_keep_alive();
    let mut end = poll_fn(|cx| poll(&conn, cx)).await;
    if matches!(end, End::HalfClosed) {
        end = Box::pin(serve_half_closed(&conn)).await;
    }
    conn.worker.unregister(key);
    for exchange in conn.take_streams() {
        exchange.client_gone("canceled");
    }
    match end {
        End::Closed | End::HalfClosed => {}
        End::Linger => linger(&conn.io).await,
        End::Tunnel(back, early) => {
            let rest = std::mem::take(&mut *conn.rest.borrow_mut());
            let io = conn.io.clone();
            drop(conn);
            io.unread(&rest);
            back.unread(&early);
            tcp::relay(&io, &back).await;
        }
    }
}

/// Serves what the client has asked for before it ended its side, unless it turns out to be gone.
async fn serve_half_closed(conn: &Rc<Conn>) -> End {
    conn.half_closed.set(true);
    tokio::select! {
        biased;
        end = poll_fn(|cx| poll(conn, cx)) => end,
        error = conn.io.reset_by_peer() => {
            tracing::debug!(client = %conn.io.peer(), %error, "client's connection broke");
            conn.io.failed(&error);
            End::Closed
        }
    }
}

/// What the client still sends is thrown away, however much it is: closing with octets unread resets the connection, and a
/// client in the middle of an upload may then fail to send before it has looked at the response.
async fn linger(io: &Io) {
    let _ = tokio::time::timeout(LINGER, async {
        poll_fn(|cx| io.poll_shutdown(cx)).await?;
        while poll_fn(|cx| io.poll_read(cx, &mut Input::take())).await? > 0 {
            // Others get their turn.
            tokio::task::yield_now().await;
        }
        io::Result::Ok(())
    })
    .await;
}

fn poll(conn: &Rc<Conn>, cx: &mut Context<'_>) -> Poll<End> {
    conn.set_waker(cx);
    for _ in 0..READS_PER_TURN {
        let written = match conn.io.poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                conn.write_out();
                if conn.io.is_broken() {
                    // The reason comes with the next look.
                    continue;
                }
                conn.io.backlog() == 0
            }
            Poll::Ready(Err(error)) => return gone(conn, &error),
            Poll::Pending => false,
        };
        if let Some(end) = ending(conn, written) {
            return Poll::Ready(end);
        }
        // A client that does not read its responses is not asked for more requests.
        if !written && conn.is_backlogged() {
            return wait(conn, cx);
        }
        if !conn.is_h2() {
            take_rest(conn);
            if conn.paused.get() || is_tunnel(conn) || !conn.rest.borrow().is_empty() && is_busy(conn) {
                return wait(conn, cx);
            }
            if conn.half_closed.get() {
                if !is_busy(conn) && !conn.is_over() {
                    // What there may be of another request will never be whole.
                    conn.close();
                }
                return wait(conn, cx);
            }
        }
        let mut input = Input::take();
        match conn.io.poll_read(cx, &mut input) {
            Poll::Pending => return wait(conn, cx),
            Poll::Ready(Ok(0)) if is_busy(conn) => return Poll::Ready(End::HalfClosed),
            Poll::Ready(Ok(0)) => return end_of_input(conn),
            Poll::Ready(Ok(_)) => {
                conn.active.set(true);
                conn.heard();
                if conn.is_h2() {
                    conn.tick();
                    h2_input(conn, input.octets());
                } else {
                    h1_input(conn, input.octets());
                }
            }
            Poll::Ready(Err(error)) => return gone(conn, &error),
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// What this turn produced is written by the flusher, which wakes this task again if there is more to do.
fn wait(conn: &Rc<Conn>, cx: &mut Context<'_>) -> Poll<End> {
    match ending(conn, conn.io.backlog() == 0) {
        Some(end) => Poll::Ready(end),
        None => {
            if conn.io.backlog() > 0 && conn.io.poll_flush(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        }
    }
}

fn ending(conn: &Rc<Conn>, written: bool) -> Option<End> {
    if conn.closing.get() == Closing::Abort {
        conn.io.abort_on_close();
        return Some(End::Closed);
    }
    let written = written && !conn.has_output();
    if written && let Some((back, early)) = conn.tunnel.borrow_mut().take() {
        return Some(End::Tunnel(back, early));
    }
    if conn.closing.get() == Closing::WhenIdle && conn.is_idle() {
        conn.closing.set(Closing::Flush);
    }
    (written && conn.closing.get() == Closing::Flush).then_some(End::Linger)
}

fn gone(conn: &Rc<Conn>, error: &io::Error) -> Poll<End> {
    tracing::debug!(client = %conn.io.peer(), %error, "client's connection broke");
    conn.io.failed(error);
    Poll::Ready(End::Closed)
}

fn end_of_input(conn: &Rc<Conn>) -> Poll<End> {
    if let Codec::Server1(s) = &mut *conn.codec.borrow_mut()
        && let Err(error) = s.decoder.eof()
    {
        tracing::debug!(client = %conn.io.peer(), %error, "client's connection ended");
    }
    // Output that is still there, such as the last response, goes out.
    conn.write_out();
    Poll::Ready(End::Closed)
}

/// HTTP/1: a request is under way, so that the next one has to wait.
fn is_busy(conn: &Conn) -> bool {
    match &*conn.codec.borrow() {
        Codec::Server1(s) => s.tunnel || !s.receiving && conn.load() > 0,
        _ => false,
    }
}

/// HTTP/1: what follows is for the tunnel's other end.
fn is_tunnel(conn: &Conn) -> bool {
    matches!(&*conn.codec.borrow(), Codec::Server1(s) if s.tunnel)
}

/// HTTP/1: goes on with what was read but not decoded.
fn take_rest(conn: &Rc<Conn>) {
    if conn.paused.get() || is_busy(conn) || conn.rest.borrow().is_empty() {
        return;
    }
    let rest = std::mem::take(&mut *conn.rest.borrow_mut());
    decode(conn, &rest);
}

fn h1_input(conn: &Rc<Conn>, octets: &[u8]) {
    let rest = std::mem::take(&mut *conn.rest.borrow_mut());
    if rest.is_empty() {
        return decode(conn, octets);
    }
    let mut all = rest;
    all.extend_from_slice(octets);
    decode(conn, &all);
}

/// Decodes as far as possible and keeps the rest.
fn decode(conn: &Rc<Conn>, octets: &[u8]) {
    let mut at = 0;
    let mut ahead = None;
    while conn.closing.get() != Closing::Abort {
        if ahead.is_none() && (conn.paused.get() || is_busy(conn) || conn.closing.get() == Closing::Flush) {
            break;
        }
        let event = match ahead.take() {
            Some(event) => event,
            None => match step(conn, octets, &mut at) {
                Some(event) => event,
                None => break,
            },
        };
        let exchange = || conn.stream(1);
        match event {
            Event1::Head(head) => {
                let end = match &*conn.codec.borrow() {
                    Codec::Server1(s) => matches!(s.decoder.framing(), Framing::None | Framing::Length(0)),
                    _ => return,
                };
                if conn.said_close() {
                    return;
                }
                if end {
                    // The end comes right after the head.
                    let _ = step(conn, octets, &mut at);
                }
                Exchange::start(conn, 1, head, end);
            }
            // Requests have none.
            Event1::Informational(_) => {}
            Event1::Data(data) => {
                ahead = step(conn, octets, &mut at);
                let end = matches!(ahead, Some(Event1::End));
                if end {
                    ahead = None;
                    received(conn);
                }
                let Some(exchange) = exchange() else { continue };
                if exchange.request_data(data, 0, end) {
                    conn.pause();
                }
                if !end && exchange.discards() && discarded(conn, data.len()) {
                    conn.close();
                }
            }
            Event1::Trailers(trailers) => {
                let _ = step(conn, octets, &mut at);
                received(conn);
                if let Some(exchange) = exchange() {
                    exchange.request_end(Some(trailers));
                }
            }
            Event1::End => {
                received(conn);
                if let Some(exchange) = exchange() {
                    exchange.request_end(None);
                }
            }
        }
    }
    if let Some(rest) = octets.get(at..).filter(|r| !r.is_empty()) {
        conn.rest.borrow_mut().extend_from_slice(rest);
    }
}

/// The next event; none when more input is needed, or when the input was refused.
fn step<'i>(conn: &Rc<Conn>, octets: &'i [u8], at: &mut usize) -> Option<Event1<'i, weft_wire::Request>> {
    let input = octets.get(*at..).unwrap_or_default();
    let result = match &mut *conn.codec.borrow_mut() {
        Codec::Server1(s) => s.decoder.decode(input),
        _ => return None,
    };
    match result {
        Ok((used, event)) => {
            *at += used;
            event
        }
        Err(error) => {
            *at = octets.len();
            refuse(conn, error);
            None
        }
    }
}

fn received(conn: &Conn) {
    if let Codec::Server1(s) = &mut *conn.codec.borrow_mut() {
        s.receiving = false;
    }
}

fn discarded(conn: &Conn, octets: usize) -> bool {
    match &mut *conn.codec.borrow_mut() {
        Codec::Server1(s) => {
            let Server1 { discarded, .. } = &mut **s;
            *discarded += octets;
            *discarded > DISCARD
        }
        _ => false,
    }
}

/// A request that cannot be read: it is answered, if no response has begun, and the connection closes.
fn refuse(conn: &Rc<Conn>, error: weft_wire::h1::Error) {
    let mut failure = Failure::new(Kind::BadRequest, format!("client's request: {error}"));
    failure.status = error.status();
    match conn.stream(1) {
        Some(exchange) => {
            conn.close_after_response();
            exchange.fail(&failure);
            exchange.client_gone("bad request");
            conn.close();
        }
        None => answer_and_close(conn, &failure),
    }
}

/// HTTP/1: answers a request whose head never came to an end, and closes the connection.
pub(super) fn answer_and_close(conn: &Rc<Conn>, failure: &Failure) {
    let Some(router) = conn.router().cloned() else { return };
    failure.log(router.direction(), conn.io.peer());
    conn.worker.ctx.metrics.http_error(router.direction(), failure.kind.label()).incr();
    conn.close_after_response();
    let response = failure.response(false, router.emits_reasons(), Version::H11);
    conn.send_response(1, &response, true);
    conn.close();
}

/// Handles input of an HTTP/2 client; none, to handle what writing has brought about.
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
                tracing::debug!(client = %conn.io.peer(), %error, "client's HTTP/2 connection is refused");
                for exchange in conn.take_streams() {
                    exchange.client_gone("protocol error");
                }
                return conn.close();
            }
        }
    }
    // Acknowledgements and windows were put into the output.
    conn.touch_if_output();
}

fn h2_event(conn: &Rc<Conn>, event: Event2<'_>) {
    match event {
        Event2::Request { id, head, end } => Exchange::start(conn, id, head, end),
        Event2::Data { id, data, flow, end } => match conn.stream(id) {
            Some(exchange) => {
                exchange.request_data(data, flow, end);
            }
            None => conn.release(id, flow),
        },
        Event2::Trailers { id, headers } => {
            if let Some(exchange) = conn.stream(id) {
                exchange.request_end(Some(headers));
            }
        }
        Event2::Reset { id, reason } => {
            if let Some(exchange) = conn.stream(id) {
                exchange.client_gone(if reason == Reason::CANCEL { "canceled" } else { reason.name() });
            }
        }
        Event2::Writable { id } => {
            if let Some(exchange) = conn.stream(id) {
                exchange.resume_response();
            }
        }
        Event2::GoAway { .. } => conn.drain(),
        Event2::Pong => conn.ping_sent.set(false),
        Event2::Settings | Event2::Informational { .. } | Event2::Response { .. } => {}
    }
}
