//! Traffic that runs while a test breaks things: how many requests went well, and what went wrong with the others.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Version, body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{DEADLINE, Pod, eventually};

/// Between two requests of a client: there is always traffic, but the machine has other things to do as well.
const PAUSE: Duration = Duration::from_millis(3);

/// How clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speak {
    /// HTTP/1.1, a connection for each request.
    Http1Once,
    /// HTTP/1.1, many requests a connection.
    Http1,
    /// HTTP/2, many requests a connection.
    Http2,
}

#[derive(Default)]
struct Counts {
    /// Answers with 200, by client and body.
    answers: BTreeMap<(usize, String), usize>,
    failures: Vec<String>,
}

/// Requests that are sent one after another by some clients until told to stop.
pub struct Load {
    counts: Arc<Mutex<Counts>>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// Starts a client of each kind in a pod. Everyone behaves as good clients do: what a server said it did not look at, and
    /// what was sent on a connection that the server had closed while it was idle, is sent again.
    pub fn start(pod: &Pod, addr: SocketAddr, kinds: &[Speak]) -> Self {
        let (counts, stop) = (Arc::<Mutex<Counts>>::default(), Arc::<AtomicBool>::default());
        let threads = kinds
            .iter()
            .enumerate()
            .map(|(number, kind)| {
                let (kind, ns, counts, stop) = (*kind, pod.ns.clone(), counts.clone(), stop.clone());
                std::thread::spawn(move || {
                    ns.enter(move || {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                        runtime.block_on(client((number, kind), addr, &counts, &stop));
                    });
                })
            })
            .collect();
        Self { counts, stop, threads }
    }

    /// Requests of every kind, from one client each.
    pub fn of_all_kinds(pod: &Pod, addr: SocketAddr) -> Self {
        Self::start(pod, addr, &[Speak::Http1Once, Speak::Http1, Speak::Http2])
    }

    /// Good answers so far, from that server or (`""`) from any.
    pub fn answers(&self, from: &str) -> usize {
        let counts = self.counts.lock().unwrap();
        counts.answers.iter().filter(|((_, name), _)| from.is_empty() || *name == from).map(|(_, n)| n).sum()
    }

    fn answers_to(&self, client: usize, from: &str) -> usize {
        self.counts.lock().unwrap().answers.get(&(client, from.to_owned())).copied().unwrap_or_default()
    }

    /// What failed so far.
    pub fn failures(&self) -> Vec<String> {
        self.counts.lock().unwrap().failures.clone()
    }

    /// Waits for some more good answers from that server, or (`""`) from any. Fails the test when a request fails.
    #[track_caller]
    pub fn more(&self, from: &str, n: usize) {
        let before = self.answers(from);
        eventually(&format!("{n} answers from {from:?}"), || {
            assert_eq!(self.failures(), [""; 0]);
            (self.answers(from) >= before + n).then_some(())
        });
    }

    /// Waits until every client has got some more good answers from that server: none of them hangs.
    #[track_caller]
    pub fn each(&self, from: &str, n: usize) {
        let before: Vec<_> = (0..self.threads.len()).map(|client| self.answers_to(client, from)).collect();
        eventually(&format!("{n} answers from {from:?} to each client"), || {
            assert_eq!(self.failures(), [""; 0]);
            before.iter().enumerate().all(|(client, b)| self.answers_to(client, from) >= b + n).then_some(())
        });
    }

    /// Waits until that many answers come from that server in a row.
    #[track_caller]
    pub fn only(&self, from: &str, n: usize) {
        eventually(&format!("{n} answers from {from:?} only"), || {
            let (others, own) = (self.answers("") - self.answers(from), self.answers(from));
            self.more(from, n);
            // Between the two looks others may have answered, but then it is looked again.
            (self.answers("") - self.answers(from) == others && self.answers(from) >= own + n).then_some(())
        });
    }

    /// Stops: good answers and failures.
    pub fn stop(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        (self.answers(""), self.failures())
    }

    /// Stops; the test fails if a request failed.
    #[track_caller]
    pub fn stop_without_failure(self) {
        let (answers, failures) = self.stop();
        assert_eq!(failures, [""; 0], "besides {answers} good answers");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

enum Client {
    One(conn::http1::SendRequest<Empty<Bytes>>),
    Two(conn::http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    async fn connect(kind: Speak, addr: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(addr).await.map_err(|e| format!("connect: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let io = TokioIo::new(stream);
        // A connection's own end shows in the requests on it.
        Ok(if kind == Speak::Http2 {
            let made = conn::http2::handshake(TokioExecutor::new(), io).await.map_err(|e| format!("handshake: {e}"))?;
            tokio::spawn(made.1);
            Self::Two(made.0)
        } else {
            let made = conn::http1::handshake(io).await.map_err(|e| format!("handshake: {e}"))?;
            tokio::spawn(made.1);
            Self::One(made.0)
        })
    }

    /// True when it takes a request.
    async fn ready(&mut self) -> bool {
        match self {
            Self::One(client) => client.ready().await.is_ok(),
            Self::Two(client) => client.ready().await.is_ok(),
        }
    }

    async fn send(&mut self, addr: SocketAddr) -> hyper::Result<hyper::Response<Incoming>> {
        let request = |uri: String| Request::get(uri).header("host", "web.test").body(Empty::new()).unwrap();
        match self {
            Self::One(client) => client.send_request(request("/".into())).await,
            Self::Two(client) => {
                let mut request = request(format!("http://{addr}/"));
                *request.version_mut() = Version::HTTP_2;
                request.headers_mut().remove("host");
                client.send_request(request).await
            }
        }
    }
}

async fn client((number, kind): (usize, Speak), addr: SocketAddr, counts: &Mutex<Counts>, stop: &AtomicBool) {
    let mut client = None;
    while !stop.load(Ordering::SeqCst) {
        match tokio::time::timeout(DEADLINE, one(kind, addr, &mut client)).await {
            Ok(Ok(name)) => *counts.lock().unwrap().answers.entry((number, name)).or_default() += 1,
            Ok(Err(error)) => {
                client = None;
                counts.lock().unwrap().failures.push(format!("{kind:?}: {error}"));
            }
            Err(_) => {
                client = None;
                counts.lock().unwrap().failures.push(format!("{kind:?}: no answer in {DEADLINE:?}"));
            }
        }
        if kind == Speak::Http1Once {
            client = None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One request, with its repetitions where nobody has looked at it.
async fn one(kind: Speak, addr: SocketAddr, kept: &mut Option<Client>) -> Result<String, String> {
    loop {
        let (mut client, reused) = match kept.take() {
            Some(client) => (client, true),
            None => (Client::connect(kind, addr).await?, false),
        };
        if !client.ready().await {
            if reused {
                continue;
            }
            return Err("a new connection takes no request".into());
        }
        let response = match client.send(addr).await {
            Ok(response) => response,
            // Never sent, or sent when the server had closed an idle connection.
            Err(error) if error.is_canceled() || reused && (error.is_incomplete_message() || is_reset(&error)) => {
                continue;
            }
            Err(error) => return Err(format!("{error:?}")),
        };
        let (status, error) = (response.status(), response.headers().get("l5d-proxy-error").cloned());
        let body = response.into_body().collect().await.map_err(|e| format!("body: {e:?}"))?.to_bytes();
        if status != 200 {
            return Err(format!("{status}: {error:?}"));
        }
        *kept = Some(client);
        return String::from_utf8(body.to_vec()).map_err(|e| e.to_string());
    }
}

/// HTTP/1: the connection was reset before anything came. HTTP/2 says by GOAWAY what it has looked at.
fn is_reset(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    source.is_some_and(|e| matches!(e.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe))
}
