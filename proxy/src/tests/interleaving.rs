//! Streams of one connection, with their pieces, trailers, resets and windows in any order: every stream gets its own
//! octets, all of them or a beginning of them, and no other stream's.

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

/// How a message ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Plain,
    Trailers,
    Reset,
}

/// One message.
#[derive(Debug, Clone)]
struct Message {
    pieces: Vec<usize>,
    end: End,
}

/// One stream, and how often each side lets others go first.
#[derive(Debug, Clone)]
struct Script {
    request: Message,
    response: Message,
    /// The response does not wait for the request's end.
    early: bool,
    seed: u64,
}

fn message() -> impl Strategy<Value = Message> {
    let size = prop_oneof![Just(0), 1usize..100, 1usize..40_000, Just(16_384), Just(70_000)];
    let end = prop_oneof![3 => Just(End::Plain), 3 => Just(End::Trailers), 1 => Just(End::Reset)];
    (prop::collection::vec(size, 0..12), end).prop_map(|(pieces, end)| Message { pieces, end })
}

fn scripts() -> impl Strategy<Value = Vec<Script>> {
    let script = (message(), message(), any::<bool>(), any::<u64>())
        .prop_map(|(request, response, early, seed)| Script { request, response, early, seed });
    prop::collection::vec(script, 1..16)
}

/// The octet at that place of that message.
fn octet(stream: usize, response: bool, at: usize) -> u8 {
    (stream * 59 + usize::from(response) * 101 + at * 7 + (at >> 9)) as u8
}

async fn others_first(random: &mut fastrand::Rng) {
    for _ in 0..random.usize(..4) {
        tokio::task::yield_now().await;
    }
}

fn trailers(octets: usize) -> http::HeaderMap {
    [("x-octets".parse().unwrap(), octets.into())].into_iter().collect()
}

/// Sends a message's body. The other side may reset the stream meanwhile, and then nothing matters.
async fn send(mut to: h2::SendStream<Bytes>, stream: usize, response: bool, message: &Message, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed ^ 1);
    let mut at = 0;
    for &size in &message.pieces {
        others_first(&mut random).await;
        let piece: Vec<u8> = (at..at + size).map(|at| octet(stream, response, at)).collect();
        at += size;
        if to.send_data(piece.into(), false).is_err() {
            return;
        }
    }
    others_first(&mut random).await;
    let _ = match message.end {
        End::Plain => to.send_data(Bytes::new(), true),
        End::Trailers => to.send_trailers(trailers(at)),
        End::Reset => {
            to.send_reset(h2::Reason::CANCEL);
            Ok(())
        }
    };
}

/// Takes a message's body and gives its window back piece by piece, in another order: false when it was reset.
async fn receive(mut from: h2::RecvStream, stream: usize, response: bool, message: &Message, seed: u64) -> bool {
    let mut random = fastrand::Rng::with_seed(seed ^ 2);
    let (mut at, mut owed) = (0, 0);
    while let Some(piece) = soon(from.data()).await {
        let Ok(piece) = piece else { return false };
        for octet_got in &piece {
            assert_eq!(*octet_got, octet(stream, response, at), "stream {stream} at {at}");
            at += 1;
        }
        owed += piece.len();
        others_first(&mut random).await;
        // Some of it later, but never so much that the sender would wait for ever.
        if owed > 10_000 || random.bool() {
            let _ = from.flow_control().release_capacity(std::mem::take(&mut owed));
        }
    }
    let Ok(end) = soon(from.trailers()).await else { return false };
    assert_eq!(at, message.pieces.iter().sum::<usize>(), "stream {stream} ends early");
    assert_ne!(message.end, End::Reset, "stream {stream} ended properly");
    let expected = (message.end == End::Trailers).then(|| trailers(at));
    assert_eq!(end, expected, "stream {stream}");
    true
}

/// The scripts of the case that runs, for the application.
type Scripts = Arc<Mutex<Vec<Script>>>;

async fn server(scripts: Scripts) -> SocketAddr {
    raw_app(move |stream| {
        let scripts = scripts.clone();
        async move {
            let Ok(mut conn) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = conn.accept().await {
                let stream: usize = request.uri().path()[1..].parse().unwrap();
                let script = scripts.lock().unwrap()[stream].clone();
                tokio::spawn(async move {
                    let Script { request: expected, response, early, seed } = script;
                    let body = request.into_body();
                    let mut random = fastrand::Rng::with_seed(seed ^ 3);
                    others_first(&mut random).await;
                    let answer = |respond: &mut h2::server::SendResponse<Bytes>| {
                        respond.send_response(http::Response::new(()), false)
                    };
                    if early {
                        let Ok(to) = answer(&mut respond) else { return };
                        let take = receive(body, stream, false, &expected, seed);
                        tokio::join!(send(to, stream, true, &response, seed), take);
                    } else if receive(body, stream, false, &expected, seed).await
                        && let Ok(to) = answer(&mut respond)
                    {
                        send(to, stream, true, &response, seed).await;
                    }
                });
            }
        }
    })
    .await
}

async fn run(entry: SocketAddr, scripts: &[Script]) {
    let (client, conn) = h2::client::handshake(connect(entry).await).await.unwrap();
    let driver = tokio::spawn(conn);
    let calls: Vec<_> = scripts
        .iter()
        .cloned()
        .enumerate()
        .map(|(stream, script)| {
            let client = client.clone();
            tokio::spawn(async move {
                let Script { request, response, seed, .. } = script;
                let mut client = soon(client.ready()).await.unwrap();
                let head = http::Request::post(format!("http://web.test/{stream}")).body(()).unwrap();
                let (answer, to) = client.send_request(head, false).unwrap();
                let take = async {
                    match soon(answer).await {
                        Ok(answer) => {
                            assert_eq!(answer.status(), 200);
                            receive(answer.into_body(), stream, true, &response, seed).await
                        }
                        Err(error) => {
                            assert!(error.is_reset(), "stream {stream}: {error}");
                            false
                        }
                    }
                };
                let ((), whole) = tokio::join!(send(to, stream, false, &request, seed), take);
                // Whoever sees a reset, somebody asked for one.
                let resets = request.end == End::Reset || response.end == End::Reset;
                assert!(whole || resets, "stream {stream} was reset by nobody");
            })
        })
        .collect();
    for call in calls {
        soon(call).await.unwrap();
    }
    // The connection is none the worse for it.
    assert!(!driver.is_finished());
    driver.abort();
}

#[test]
fn streams_in_any_order_keep_their_octets() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let scripts = Scripts::default();
    let (entries, _proxies) = runtime.block_on(async {
        let app = server(scripts.clone()).await;
        let (one, entry) = single(app).await;
        let pair = pair(app).await;
        ([entry, pair.entry], (one, pair.client, pair.server))
    });
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&self::scripts(), |case| {
            *scripts.lock().unwrap() = case.clone();
            for entry in entries {
                runtime.block_on(run(entry, &case));
            }
            Ok(())
        })
        .unwrap();
}
