//! What a connection speaks: its first octets, looked at while the server gets its chance to speak first.
//!
//! A protocol whose server speaks first (SMTP, MySQL) looks like a client that says nothing. So when a client has been
//! silent for [`SILENCE`], the server is connected to; whoever speaks first decides. No port list is needed for that, and
//! nobody waits for the detection timeout. Where a server has spoken first, it is connected to at once the next time
//! ([`Speakers`]); if the client speaks first after all, that decides as ever.
//!
//! A server of HTTP/2 sends its settings to whoever connects. That decides nothing: the client, which is slow, has yet to
//! say whether it speaks TLS.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::{Future, pending, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};
use weft_wire::{
    detect::{ClientHello, Detected, client_hello, detect, is_http2_server},
    transport_header::TransportHeader,
};

use crate::{
    balancer::{Balancer, TcpUpstream, Unreachable},
    io::{Input, Io},
};

/// How long a client is silent before its server is asked.
const SILENCE: Duration = Duration::from_millis(100);
/// Before a server that has ended without a word is asked again, each time; then its end is passed on.
const ASKED_AGAIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(300), Duration::from_millis(900)];
/// Octets in which HTTP must show.
const HTTP_LIMIT: usize = 1024;

/// How long it is remembered that a server speaks first.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Destinations that are remembered; beyond, it starts anew.
const KNOWN_SPEAKERS: usize = 1024;

/// The server that may speak first.
pub struct Racer<'a> {
    /// Where to connect.
    pub to: &'a Rc<Balancer>,
    /// How long it may take to reach it.
    pub limit: Duration,
    /// It has spoken first before.
    pub spoke: bool,
}

/// The server that may speak first, if one may.
pub type Race<'a> = Option<Racer<'a>>;

/// Destinations whose servers speak first.
#[derive(Default)]
pub struct Speakers(RefCell<HashMap<SocketAddr, Instant>>);

impl Speakers {
    /// True when the server has spoken first, and not too long ago.
    pub fn spoke(&self, addr: SocketAddr, now: Instant) -> bool {
        let known = self.0.borrow();
        known.get(&addr).is_some_and(|at| now.saturating_duration_since(*at) < REMEMBERED)
    }

    /// Remembers an outcome of detection, as metrics name it.
    pub fn note(&self, addr: SocketAddr, result: &'static str, now: Instant) {
        let mut known = self.0.borrow_mut();
        match result {
            "server_first" => {}
            // Nothing was seen that would speak against it.
            "closed" | "error" => return,
            _ => {
                known.remove(&addr);
                return;
            }
        }
        if known.len() >= KNOWN_SPEAKERS {
            known.retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
        }
        if known.len() >= KNOWN_SPEAKERS {
            known.clear();
        }
        known.insert(addr, now);
    }
}

/// What was seen.
pub enum Seen<T> {
    /// The client's octets decided. The server is there if it was connected to meanwhile.
    Client(T, Option<TcpUpstream>),
    /// The server spoke first (or closed).
    Server(TcpUpstream),
    /// Nobody said anything in time.
    Silence(Option<TcpUpstream>),
    /// The client went away.
    Ended,
}

/// HTTP or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// The application's own TLS.
    Tls,
    /// Anything else.
    Opaque,
}

impl Protocol {
    /// As metrics name it; names are Linkerd's, but for `tls`, which it counts as `not_http`.
    pub fn result(self) -> &'static str {
        match self {
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
            Self::Tls => "tls",
            Self::Opaque => "not_http",
        }
    }
}

/// TLS or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// A ClientHello with this server name.
    Tls(Option<String>),
    /// Anything else.
    Plain,
}

/// Looks for HTTP.
///
/// # Errors
/// The client's connection broke.
pub async fn protocol(io: &Io, limit: Option<Duration>, race: Race<'_>) -> io::Result<Seen<Protocol>> {
    let decide = |octets: &[u8]| match detect(octets) {
        Detected::H1 => Some(Protocol::Http1),
        Detected::H2 => Some(Protocol::Http2),
        Detected::Tls => Some(Protocol::Tls),
        Detected::Unknown => Some(Protocol::Opaque),
        Detected::NeedMore => (octets.len() >= HTTP_LIMIT).then_some(Protocol::Opaque),
    };
    Box::pin(look(io, limit, race, decide, Protocol::Opaque)).await
}

/// Looks for TLS.
///
/// # Errors
/// The client's connection broke.
pub async fn hello(io: &Io, limit: Option<Duration>, race: Race<'_>) -> io::Result<Seen<Hello>> {
    let decide = |octets: &[u8]| match client_hello(octets) {
        ClientHello::NeedMore => None,
        ClientHello::NotTls => Some(Hello::Plain),
        ClientHello::Hello { sni, .. } => Some(Hello::Tls(sni)),
    };
    Box::pin(look(io, limit, race, decide, Hello::Plain)).await
}

/// `cut` is what a client speaks that ends its side before it has said enough.
async fn look<T>(
    io: &Io,
    limit: Option<Duration>,
    race: Race<'_>,
    decide: impl Fn(&[u8]) -> Option<T>,
    cut: T,
) -> io::Result<Seen<T>> {
    let mut seen = Vec::new();
    let mut server: Option<TcpUpstream> = None;
    let mut dialling: Option<Dialling<'_>> = None;
    let mut heard = false;
    let mut race = race;
    // A server that ends without a word has not spoken: it is asked again, since it may be on its way out.
    let racer = race.as_ref().map(|racer| (racer.to, racer.limit));
    let mut pauses = ASKED_AGAIN.iter();
    let give_up = async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => pending().await,
        }
    };
    let silence = sleep(if race.as_ref().is_some_and(|r| r.spoke) { Duration::ZERO } else { SILENCE });
    tokio::pin!(give_up, silence);
    let outcome = loop {
        tokio::select! {
            biased;
            read = read_some(io, &mut seen) => {
                match read? {
                    0 if seen.is_empty() => break Seen::Ended,
                    // It may wait for an answer all the same.
                    0 => break Seen::Client(cut, server),
                    _ => {}
                }
                // A client that speaks needs no race.
                race = None;
                if let Some(decision) = decide(&seen) {
                    break Seen::Client(decision, server);
                }
            }
            () = &mut silence, if race.is_some() => {
                if let Some(Racer { to, limit, .. }) = race.take() {
                    dialling = Some(Box::pin(to.connect(limit)));
                }
            }
            dialled = join(&mut dialling), if dialling.is_some() => {
                dialling = None;
                server = dialled.ok();
            }
            said = speaks(&server), if server.is_some() && !heard => {
                heard = true;
                match server.take() {
                    Some(http2) if said == Said::Settings => server = Some(http2),
                    Some(ended) if said == Said::Nothing && seen.is_empty() => match racer.zip(pauses.next()) {
                        Some(((to, limit), pause)) => {
                            heard = false;
                            dialling = Some(Box::pin(async move {
                                sleep(*pause).await;
                                to.connect(limit).await
                            }));
                        }
                        None => break Seen::Silence(Some(ended)),
                    },
                    Some(server) if seen.is_empty() => break Seen::Server(server),
                    // The client has begun to speak: what the server says comes after that.
                    _ => {}
                }
            }
            () = &mut give_up => break Seen::Silence(server),
        }
    };
    io.unread(&seen);
    Ok(outcome)
}

type Dialling<'a> = Pin<Box<dyn Future<Output = Result<TcpUpstream, Unreachable>> + 'a>>;

async fn join(future: &mut Option<Dialling<'_>>) -> Result<TcpUpstream, Unreachable> {
    match future {
        Some(future) => future.as_mut().await,
        None => pending().await,
    }
}

async fn read_some(io: &Io, seen: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut input = Input::take();
        io.poll_read(cx, &mut input).map_ok(|n| {
            seen.extend_from_slice(input.octets());
            n
        })
    })
    .await
}

/// What a server has said first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// What HTTP/2 servers say to everybody.
    Settings,
    /// Something else.
    Other,
    /// Nothing: the connection has ended.
    Nothing,
}

/// Waits until the server has said something, or has ended.
async fn speaks(server: &Option<TcpUpstream>) -> Said {
    let Some(io) = server.as_ref().and_then(TcpUpstream::io) else { return pending().await };
    let mut said = Vec::new();
    // An error or an end shows again when the relay reads.
    let _ = read_some(io, &mut said).await;
    let settings = is_http2_server(&said);
    io.unread(&said);
    match (settings, said.is_empty()) {
        (true, _) => Said::Settings,
        (false, true) => Said::Nothing,
        (false, false) => Said::Other,
    }
}

/// Reads the transport header at the front of a connection.
///
/// # Errors
/// There is none in time, or it is malformed.
pub async fn transport_header(io: &Io, limit: Duration) -> io::Result<TransportHeader> {
    let read = async {
        let mut seen = Vec::new();
        loop {
            match TransportHeader::decode(&seen) {
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                Ok(Some((used, header))) => {
                    io.unread(seen.get(used..).unwrap_or_default());
                    return Ok(header);
                }
                Ok(None) => {}
            }
            if read_some(io, &mut seen).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    timeout(limit, read).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_spoke_first_is_remembered_for_a_while() {
        let (speakers, now) = (Speakers::default(), Instant::now());
        let addr = |port| SocketAddr::from(([10, 0, 0, 1], port));
        speakers.note(addr(25), "server_first", now);
        assert!(speakers.spoke(addr(25), now + Duration::from_secs(1)));
        assert!(!speakers.spoke(addr(80), now));
        assert!(!speakers.spoke(addr(25), now + REMEMBERED), "not for ever");
        speakers.note(addr(25), "closed", now);
        assert!(speakers.spoke(addr(25), now));
        speakers.note(addr(25), "http/1", now);
        assert!(!speakers.spoke(addr(25), now), "the client was faster this time");
        for port in 0..5000 {
            speakers.note(addr(port), "server_first", now);
        }
        assert!(speakers.0.borrow().len() <= KNOWN_SPEAKERS);
    }
}
