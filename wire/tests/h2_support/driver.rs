//! A small tokio driver, an echoing server and a client, for tests against other implementations.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    future::Future,
    io,
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use weft_wire::h2::{Connection, Reason};

use super::*;

/// Fails when something takes so long that it hangs; far above what a loaded machine needs.
pub async fn deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(300), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} hangs"),
    }
}

/// Octet `at` of every body.
pub fn octet(at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8)) as u8
}

pub fn body(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(octet).collect()
}

pub struct Driver<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    pub conn: Connection,
    buffer: Vec<u8>,
    /// The peer has closed its end: what is left to write is of no use, what is left to read may be.
    broken: bool,
}

impl<S: AsyncRead + AsyncWrite> Driver<S> {
    pub fn new(io: S, conn: Connection) -> Self {
        let (reader, writer) = tokio::io::split(io);
        Self { reader, writer, conn, buffer: vec![0; 20_000], broken: false }
    }

    /// The next events; None at the end of the connection, which is an error when it comes from the protocol.
    pub async fn turn(&mut self) -> io::Result<Option<Vec<Owned>>> {
        loop {
            let events = feed(&mut self.conn, &[]).map_err(io::Error::other)?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
            if self.conn.is_closed() {
                self.flush().await;
                return Ok(None);
            }
            let Self { reader, writer, conn, buffer, broken } = self;
            tokio::select! {
                written = async { writer.write(conn.output()).await }, if conn.wants_write() && !*broken => {
                    match written {
                        Ok(n) => drop(conn.output().drain(..n)),
                        Err(_) => *broken = true,
                    }
                    conn.pump();
                }
                read = reader.read(buffer) => match read {
                    Ok(0) | Err(_) => return Ok(None),
                    Ok(n) => {
                        let result = feed(conn, &buffer[..n]);
                        if result.is_err() {
                            self.flush().await;
                        }
                        return result.map(Some).map_err(io::Error::other);
                    }
                },
            }
        }
    }

    pub async fn flush(&mut self) {
        while self.conn.wants_write() && !self.broken {
            let out = std::mem::take(self.conn.output());
            self.broken = self.writer.write_all(&out).await.is_err();
            self.conn.pump();
        }
    }
}

/// What is left to send on a stream, and what it waits for.
#[derive(Default)]
struct Answer {
    /// Octets of the pattern, from `at` to `to`.
    at: usize,
    to: usize,
    trailers: bool,
}

/// Answers by path:
/// - `/bytes/N`: N octets of the pattern; `/trailers/N`: the same, then the trailer `x-octets`;
/// - `/echo`: the body and the trailers, as they come;
/// - `/early`: 103, then 200; `/head`: 204; `/reset`: RST_STREAM with CANCEL; `/sink`: reads and answers with the length.
#[derive(Default)]
pub struct Site {
    answers: HashMap<u32, Answer>,
    echoes: HashMap<u32, VecDeque<(u32, u32)>>,
    sinks: HashMap<u32, usize>,
    pub served: usize,
    pub resets: Vec<(u32, u32)>,
    /// Streams that were given up while they were answered.
    gone: HashSet<u32>,
}

impl Site {
    pub fn handle(&mut self, conn: &mut Connection, event: Owned) {
        match event {
            Owned::Request(id, head, end) => self.request(conn, id, &head, end),
            Owned::Data(id, data, flow, end) => {
                if let Some(waiting) = self.echoes.get_mut(&id) {
                    conn.send_data(id, &data, end);
                    // The window is given back as the echo moves on, so that a slow reader slows the writer.
                    waiting.push_back((flow, conn.queued(id) as u32));
                    if !conn.is_full(id) {
                        waiting.drain(..).for_each(|(flow, _)| conn.release(id, flow));
                    }
                    if end {
                        for (flow, _) in self.echoes.remove(&id).into_iter().flatten() {
                            conn.release(id, flow);
                        }
                    }
                } else {
                    conn.release(id, flow);
                    if let Some(got) = self.sinks.get_mut(&id) {
                        assert!(data == body(*got, data.len()), "stream {id} is out of order");
                        *got += data.len();
                        if end {
                            self.sunk(conn, id);
                        }
                    }
                }
            }
            Owned::Trailers(id, headers) => {
                if self.echoes.remove(&id).is_some() {
                    conn.send_trailers(id, &headers);
                } else if self.sinks.contains_key(&id) {
                    self.sunk(conn, id);
                }
            }
            Owned::Writable(id) => {
                if let Some(waiting) = self.echoes.get_mut(&id) {
                    waiting.drain(..).for_each(|(flow, _)| conn.release(id, flow));
                }
                self.proceed(conn, id);
            }
            Owned::Reset(id, code) => {
                self.resets.push((id, code));
                self.gone.insert(id);
                self.answers.remove(&id);
                self.echoes.remove(&id);
                self.sinks.remove(&id);
            }
            _ => {}
        }
    }

    fn request(&mut self, conn: &mut Connection, id: u32, head: &Request, end: bool) {
        self.served += 1;
        let path = String::from_utf8(head.path.clone()).unwrap();
        let number = |prefix| path.strip_prefix(prefix).and_then(|n: &str| n.parse::<usize>().ok());
        if let Some(to) = number("/bytes/").or(number("/trailers/")) {
            let length = to.to_string();
            let fields = if path.starts_with("/bytes") { vec![("content-length", &length[..])] } else { vec![] };
            conn.send_response(id, &response(200, &fields), false);
            self.answers.insert(id, Answer { at: 0, to, trailers: path.starts_with("/trailers") });
            return self.proceed(conn, id);
        }
        match &path[..] {
            "/echo" => {
                conn.send_response(id, &response(200, &[]), end);
                if !end {
                    self.echoes.insert(id, VecDeque::new());
                }
            }
            "/sink" => {
                self.sinks.insert(id, 0);
                if end {
                    self.sunk(conn, id);
                }
            }
            "/early" => {
                conn.send_informational(id, &response(103, &[("link", "</style.css>")]));
                conn.send_response(id, &response(200, &[("x-after", "103")]), true);
            }
            "/reset" => conn.reset(id, Reason::CANCEL),
            "/head" => conn.send_response(id, &response(204, &[]), true),
            _ => conn.send_response(id, &response(404, &[]), true),
        }
    }

    fn sunk(&mut self, conn: &mut Connection, id: u32) {
        let got = self.sinks.remove(&id).unwrap_or(0).to_string();
        conn.send_response(id, &response(200, &[("x-got", &got)]), false);
        conn.send_data(id, got.as_bytes(), true);
    }

    /// Sends of an answer what its queue takes.
    fn proceed(&mut self, conn: &mut Connection, id: u32) {
        let Some(answer) = self.answers.get_mut(&id) else { return };
        while !conn.is_full(id) {
            let n = (answer.to - answer.at).min(10_000);
            let data = body(answer.at, n);
            answer.at += n;
            let last = answer.at == answer.to;
            conn.send_data(id, &data, last && !answer.trailers);
            if last {
                if answer.trailers {
                    conn.send_trailers(id, &list(&[("x-octets", &answer.to.to_string())]));
                }
                self.answers.remove(&id);
                return;
            }
        }
    }
}

/// Serves a connection until it ends.
pub async fn serve<S: AsyncRead + AsyncWrite>(io: S, limits: &Limits) -> io::Result<Site> {
    let mut driver = Driver::new(io, Connection::server(limits));
    let mut site = Site::default();
    while let Some(events) = driver.turn().await? {
        for event in events {
            site.handle(&mut driver.conn, event);
        }
    }
    Ok(site)
}

/// A request to make, and what came of it.
#[derive(Default, Debug)]
pub struct Exchange {
    pub method: &'static str,
    pub path: String,
    /// Octets of the pattern to send as the body.
    pub send: usize,
    /// Trailers end the request.
    pub send_trailers: bool,
    /// Reset when so many octets have come.
    pub reset_at: Option<usize>,
    pub sent: usize,
    pub finished: bool,
    pub informational: Vec<u16>,
    pub status: u16,
    pub got: usize,
    /// The body came to be the pattern.
    pub intact: bool,
    pub trailers: Option<Headers>,
    pub reset: Option<u32>,
    pub done: bool,
}

pub fn get(path: impl Into<String>) -> Exchange {
    Exchange { method: "GET", path: path.into(), intact: true, ..Exchange::default() }
}

pub fn post(path: impl Into<String>, send: usize) -> Exchange {
    Exchange { method: "POST", send, ..get(path) }
}

impl Exchange {
    fn proceed(&mut self, conn: &mut Connection, id: u32) {
        while !self.finished && !conn.is_full(id) {
            let n = (self.send - self.sent).min(10_000);
            let data = body(self.sent, n);
            self.sent += n;
            self.finished = self.sent == self.send;
            conn.send_data(id, &data, self.finished && !self.send_trailers);
            if self.finished && self.send_trailers {
                conn.send_trailers(id, &list(&[("x-sum", "9")]));
            }
        }
    }
}

/// Makes all the requests, as many at once as the server allows.
pub async fn exchange<S: AsyncRead + AsyncWrite>(
    io: S,
    limits: &Limits,
    mut todo: Vec<Exchange>,
) -> io::Result<Vec<Exchange>> {
    let mut driver = Driver::new(io, Connection::client(limits));
    let mut open: HashMap<u32, usize> = HashMap::new();
    let mut next: VecDeque<usize> = (0..todo.len()).collect();
    loop {
        while driver.conn.can_open()
            && let Some(i) = next.pop_front()
        {
            let e = &mut todo[i];
            let end = e.send == 0 && !e.send_trailers;
            e.finished = end;
            let mut head = request(e.method, &e.path, &[]);
            head.authority = b"localhost".to_vec();
            let id = driver.conn.send_request(&head, end).map_err(io::Error::other)?;
            open.insert(id, i);
            e.proceed(&mut driver.conn, id);
        }
        if todo.iter().all(|e| e.done) {
            break;
        }
        let Some(events) = driver.turn().await? else {
            return Err(io::Error::other(format!("the connection ended early: {todo:?}")));
        };
        for event in events {
            let id = match &event {
                Owned::Informational(id, _)
                | Owned::Response(id, ..)
                | Owned::Data(id, ..)
                | Owned::Trailers(id, _)
                | Owned::Reset(id, _)
                | Owned::Writable(id) => *id,
                _ => continue,
            };
            let Some(e) = open.get(&id).map(|i| &mut todo[*i]) else { continue };
            match event {
                Owned::Informational(_, head) => e.informational.push(head.status),
                Owned::Response(_, head, end) => {
                    e.status = head.status;
                    e.done |= end;
                }
                Owned::Data(_, data, flow, end) => {
                    e.intact &= data == body(e.got, data.len());
                    e.got += data.len();
                    e.done |= end;
                    driver.conn.release(id, flow);
                    if e.reset_at.is_some_and(|at| e.got >= at) {
                        driver.conn.reset(id, Reason::CANCEL);
                        e.done = true;
                        e.finished = true;
                    }
                }
                Owned::Trailers(_, headers) => {
                    e.trailers = Some(headers);
                    e.done = true;
                }
                // Sent before the server had said how many it takes; safe to repeat.
                Owned::Reset(_, 7) => {
                    e.sent = 0;
                    next.extend(open.remove(&id));
                }
                Owned::Reset(_, code) => {
                    e.reset = Some(code);
                    e.done = true;
                    e.finished = true;
                }
                Owned::Writable(_) => e.proceed(&mut driver.conn, id),
                _ => {}
            }
        }
    }
    driver.conn.go_away(Reason::NO_ERROR);
    driver.flush().await;
    Ok(todo)
}
