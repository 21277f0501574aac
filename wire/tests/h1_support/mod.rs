//! What the HTTP/1 tests share: running a decoder over an input cut anywhere, and hyper as the oracle.
#![allow(dead_code, reason = "every test file uses a part")]

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_wire::h1::{ErrorKind, Event, Framing, RequestDecoder, ResponseDecoder};
use weft_wire::{Headers, Limits, Request, Response};

/// One message as a decoder saw it. Pieces of data are joined: where they are cut depends on the input's cutting.
#[derive(Debug, Clone, PartialEq)]
pub struct Message<H> {
    pub informational: Vec<H>,
    pub head: H,
    pub framing: Framing,
    pub keep_alive: bool,
    pub body: Vec<u8>,
    pub trailers: Option<Headers>,
    pub complete: bool,
}

/// What became of a whole stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<H> {
    pub messages: Vec<Message<H>>,
    pub error: Option<ErrorKind>,
    /// Octets that were left when the connection became a tunnel or was to be closed after a message.
    pub left: usize,
}

fn feed<H>(
    input: &[u8],
    cuts: &[usize],
    mut decode: impl FnMut(&[u8], &mut Vec<u8>, &mut Outcome<H>) -> Result<(usize, Step), ErrorKind>,
) -> Outcome<H> {
    let mut outcome = Outcome { messages: Vec::new(), error: None, left: 0 };
    let mut bounds: Vec<usize> = cuts.iter().map(|c| c % (input.len() + 1)).collect();
    bounds.push(input.len());
    bounds.sort_unstable();
    let mut held: Vec<u8> = Vec::new();
    let mut from = 0;
    let mut data = Vec::new();
    for to in bounds {
        held.extend_from_slice(&input[from..to]);
        from = to;
        loop {
            match decode(&held, &mut data, &mut outcome) {
                Ok((used, step)) => {
                    held.drain(..used);
                    match step {
                        Step::More => {}
                        Step::Starved => break,
                        Step::Stop => {
                            outcome.left = held.len() + input.len() - from;
                            return outcome;
                        }
                    }
                }
                Err(kind) => {
                    outcome.error = Some(kind);
                    return outcome;
                }
            }
        }
    }
    outcome
}

enum Step {
    More,
    Starved,
    Stop,
}

/// Decodes requests until the input ends, one is refused, or the connection would be closed or become a tunnel.
pub fn requests(input: &[u8], cuts: &[usize], limits: &Limits) -> Outcome<Request> {
    let mut decoder = RequestDecoder::new(limits);
    let mut outcome = feed(input, cuts, |held, _, outcome: &mut Outcome<Request>| {
        let (used, event) = decoder.decode(held).map_err(|e| e.kind())?;
        let last = outcome.messages.last_mut();
        Ok((
            used,
            match (event, last) {
                (None, _) => Step::Starved,
                (Some(Event::Head(head)), _) => {
                    outcome.messages.push(Message {
                        informational: Vec::new(),
                        head,
                        framing: decoder.framing(),
                        keep_alive: decoder.keep_alive(),
                        body: Vec::new(),
                        trailers: None,
                        complete: false,
                    });
                    Step::More
                }
                (Some(Event::Data(data)), Some(message)) => {
                    assert!(!data.is_empty(), "data is never empty");
                    message.body.extend_from_slice(data);
                    Step::More
                }
                (Some(Event::Trailers(trailers)), Some(message)) => {
                    message.trailers = Some(trailers);
                    Step::More
                }
                (Some(Event::End), Some(message)) => {
                    message.complete = true;
                    if decoder.upgrade() || message.head.method == b"CONNECT" || !decoder.keep_alive() {
                        Step::Stop
                    } else {
                        Step::More
                    }
                }
                (Some(Event::Informational(_)), _) => panic!("informational request"),
                (Some(_), None) => panic!("event before a head"),
            },
        ))
    });
    if outcome.error.is_none() && outcome.left == 0 {
        outcome.error = decoder.eof().err().map(|e| e.kind());
    }
    outcome
}

/// Decodes the responses to requests of those methods, until all are answered or one is refused.
pub fn responses(input: &[u8], cuts: &[usize], methods: &[&[u8]], limits: &Limits) -> Outcome<Response> {
    let mut decoder = ResponseDecoder::new(limits);
    let mut methods = methods.iter();
    if let Some(method) = methods.next() {
        decoder.expect(method);
    }
    let mut informational = Vec::new();
    let mut outcome = feed(input, cuts, |held, _, outcome: &mut Outcome<Response>| {
        let (used, event) = decoder.decode(held).map_err(|e| e.kind())?;
        let last = outcome.messages.last_mut();
        Ok((
            used,
            match (event, last) {
                (None, _) if decoder.is_tunnel() => Step::Stop,
                (None, _) => Step::Starved,
                (Some(Event::Informational(head)), _) => {
                    informational.push(head);
                    Step::More
                }
                (Some(Event::Head(head)), _) => {
                    outcome.messages.push(Message {
                        informational: std::mem::take(&mut informational),
                        head,
                        framing: decoder.framing(),
                        keep_alive: decoder.keep_alive(),
                        body: Vec::new(),
                        trailers: None,
                        complete: decoder.is_tunnel(),
                    });
                    Step::More
                }
                (Some(Event::Data(data)), Some(message)) => {
                    assert!(!data.is_empty(), "data is never empty");
                    message.body.extend_from_slice(data);
                    Step::More
                }
                (Some(Event::Trailers(trailers)), Some(message)) => {
                    message.trailers = Some(trailers);
                    Step::More
                }
                (Some(Event::End), Some(message)) => {
                    message.complete = true;
                    assert!(decoder.is_idle());
                    match methods.next() {
                        Some(method) if decoder.keep_alive() => {
                            decoder.expect(method);
                            Step::More
                        }
                        _ => Step::Stop,
                    }
                }
                (Some(_), None) => panic!("event before a head"),
            },
        ))
    });
    if outcome.error.is_none() && outcome.left == 0 {
        match decoder.eof() {
            Ok(None) => {}
            Ok(Some(event)) => {
                assert_eq!(event, Event::End);
                outcome.messages.last_mut().expect("a body that ends has a head").complete = true;
            }
            Err(error) => outcome.error = Some(error.kind()),
        }
    }
    outcome
}

/// A message as hyper saw it.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub line: String,
    /// None when the body was refused or cut off.
    pub body: Option<Vec<u8>>,
    pub trailers: Vec<(String, Vec<u8>)>,
}

/// The deadline of everything that waits: only ever reached by a bug.
const DEADLINE: Duration = Duration::from_secs(60);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

async fn collect(body: Incoming) -> (Option<Vec<u8>>, Vec<(String, Vec<u8>)>) {
    match body.collect().await {
        Ok(collected) => {
            let trailers = collected
                .trailers()
                .map(|t| t.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect::<Vec<_>>());
            (Some(collected.to_bytes().to_vec()), trailers.unwrap_or_default())
        }
        Err(_) => (None, Vec::new()),
    }
}

/// The requests that hyper's server finds in `input`.
pub fn hyper_requests(input: &[u8]) -> Vec<Seen> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = seen.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let log = log.clone();
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let (body, trailers) = collect(request.into_body()).await;
            log.borrow_mut().push(Seen { line, body, trailers });
            Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    runtime().block_on(async {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let server = hyper::server::conn::http1::Builder::new()
            .max_headers(Limits::default().header_count)
            .half_close(true)
            .serve_connection(TokioIo::new(far), service);
        let client = async {
            // The server may have closed already; what it saw is what counts.
            let _ = near.write_all(input).await;
            let _ = near.shutdown().await;
            let _ = near.read_to_end(&mut Vec::new()).await;
        };
        let both = async { tokio::join!(server, client) };
        let _ = tokio::time::timeout(DEADLINE, both).await.expect("hyper's server ends");
    });
    seen.take()
}

/// The response that hyper's client finds at the front of `input`, an answer to `method`.
pub fn hyper_response(input: &[u8], method: &str) -> Option<Seen> {
    runtime().block_on(async {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let handshake = hyper::client::conn::http1::Builder::new()
            .max_headers(Limits::default().header_count)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(far));
        let (mut sender, connection) = handshake.await.expect("handshake");
        let request = hyper::Request::builder()
            .method(method)
            .uri("/")
            .header("host", "web")
            .body(Empty::new())
            .expect("request");
        let client = async {
            let response = sender.send_request(request).await.ok()?;
            let line = response.status().as_u16().to_string();
            let (body, trailers) = collect(response.into_body()).await;
            drop(sender);
            Some(Seen { line, body, trailers })
        };
        let server = async {
            // hyper refuses what comes before it sent a request.
            let mut first = [0];
            let _ = near.read(&mut first).await;
            let _ = near.write_all(input).await;
            let _ = near.shutdown().await;
            let _ = near.read_to_end(&mut Vec::new()).await;
        };
        let all = async { tokio::join!(client, connection, server) };
        tokio::time::timeout(DEADLINE, all).await.expect("hyper's client ends").0
    })
}

/// The request line that hyper would give for a head of ours.
pub fn line(head: &Request) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let target = match (&head.method[..], head.absolute_form) {
        (b"CONNECT", _) => text(&head.authority),
        (_, true) if head.path == b"*" => format!("{}://{}/", text(&head.scheme), text(&head.authority)),
        (_, true) => format!("{}://{}{}", text(&head.scheme), text(&head.authority), text(&head.path)),
        _ => text(&head.path),
    };
    format!("{} {target}", text(&head.method))
}

/// A trailer list in hyper's order: its map groups by name.
pub fn grouped(trailers: &Option<Headers>) -> Vec<(String, Vec<u8>)> {
    let mut list: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in trailers.iter().flat_map(Headers::iter) {
        let name = String::from_utf8_lossy(name).into_owned();
        let at = list.iter().rposition(|(n, _)| *n == name).map_or(list.len(), |at| at + 1);
        list.insert(at, (name, value.to_vec()));
    }
    list
}

/// Asserts that hyper sees every complete message that we see, with the same lines, bodies and trailers.
pub fn hyper_agrees_on_requests(input: &[u8], ours: &Outcome<Request>) {
    let complete: Vec<_> = ours.messages.iter().take_while(|m| m.complete).collect();
    if complete.is_empty() {
        return;
    }
    let theirs = hyper_requests(input);
    for (at, message) in complete.iter().enumerate() {
        let context =
            || format!("message {at} of {:?}\nours {ours:?}\nhyper {theirs:?}", String::from_utf8_lossy(input));
        let seen = theirs.get(at).unwrap_or_else(|| panic!("hyper did not see {}", context()));
        assert_eq!(seen.line, line(&message.head), "{}", context());
        assert_eq!(seen.body.as_deref(), Some(&message.body[..]), "{}", context());
        assert_eq!(sorted(seen.trailers.clone()), sorted(grouped(&message.trailers)), "{}", context());
    }
}

/// Asserts that hyper sees the response that we see, with the same status, body and trailers.
pub fn hyper_agrees_on_response(input: &[u8], method: &str, ours: &Outcome<Response>) {
    let Some(message) = ours.messages.first().filter(|m| m.complete && m.head.status != 101) else { return };
    let theirs = hyper_response(input, method);
    let context = || format!("{method} {:?}\nours {ours:?}\nhyper {theirs:?}", String::from_utf8_lossy(input));
    let seen = theirs.as_ref().unwrap_or_else(|| panic!("hyper did not see {}", context()));
    assert_eq!(seen.line, message.head.status.to_string(), "{}", context());
    if method == "CONNECT" && message.framing == Framing::None {
        return;
    }
    assert_eq!(seen.body.as_deref(), Some(&message.body[..]), "{}", context());
    assert_eq!(sorted(seen.trailers.clone()), sorted(grouped(&message.trailers)), "{}", context());
}

fn sorted(mut list: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    // Fields that mean the connection are dropped by us and kept by hyper.
    list.retain(|(name, _)| !matches!(&name[..], "connection" | "keep-alive" | "proxy-connection" | "te" | "upgrade"));
    list.sort();
    list
}
