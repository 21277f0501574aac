//! The four workloads together, in this process, on ports that the system chose.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
    time::timeout,
};
use tonic::Code;
use weft_demo::{
    bot::Bot,
    emoji, grpc,
    messages::{
        EMOJI_SERVICE, FindByShortcodeRequest, FindByShortcodeResponse, VOTING_SERVICE, VoteRequest, VoteResponse,
    },
    serve::{Shutdown, ShutdownHandle},
    services::{self, Sockets, Voting},
    web::Web,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// The application, running.
struct App {
    web: SocketAddr,
    voting: SocketAddr,
    emoji: SocketAddr,
    metrics: SocketAddr,
    shutdown: ShutdownHandle,
    token: Shutdown,
    servers: Vec<JoinHandle<()>>,
}

async fn socket() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

impl App {
    async fn start(behaviour: Voting, message_of_the_day: &str) -> Self {
        let (shutdown, token) = Shutdown::manual();
        let ((emoji_grpc, emoji), (emoji_metrics, _)) = (socket().await, socket().await);
        let ((voting_grpc, voting), (voting_metrics, metrics)) = (socket().await, socket().await);
        let (web_socket, web) = socket().await;
        let front = Web::new(&emoji.to_string(), &voting.to_string(), message_of_the_day).unwrap();
        let (a, b, c) = (token.clone(), token.clone(), token.clone());
        let servers = vec![
            tokio::spawn(async move {
                services::run_emoji(Sockets { grpc: emoji_grpc, prometheus: emoji_metrics }, a).await.unwrap();
            }),
            tokio::spawn(async move {
                let sockets = Sockets { grpc: voting_grpc, prometheus: voting_metrics };
                services::run_voting(sockets, behaviour, b).await.unwrap();
            }),
            tokio::spawn(async move { front.run(web_socket, c).await }),
        ];
        Self { web, voting, emoji, metrics, shutdown, token, servers }
    }

    async fn classic() -> Self {
        Self::start(Voting::default(), "").await
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        request(self.web, Method::GET, path).await
    }

    async fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn stop(self) {
        self.shutdown.end();
        for server in self.servers {
            timeout(DEADLINE, server).await.expect("a server does not end").unwrap();
        }
    }
}

async fn request(address: SocketAddr, method: Method, path: &str) -> (StatusCode, String) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let uri = format!("http://{address}{path}");
    let request = Request::builder().method(method).uri(uri).body(Empty::<Bytes>::new()).unwrap();
    let response = timeout(DEADLINE, client.request(request)).await.expect("no answer").unwrap();
    let status = response.status();
    let body = timeout(DEADLINE, response.into_body().collect()).await.expect("no end").unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn the_list_has_a_hundred_emoji() {
    let app = App::classic().await;
    let list = app.json("/api/list").await;
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 100);
    assert!(list.contains(&serde_json::json!({"shortcode": ":doughnut:", "unicode": "\u{1F369}"})));
    app.stop().await;
}

#[tokio::test]
async fn votes_are_counted_and_shown_most_first() {
    let app = App::classic().await;
    for shortcode in [":pizza:", ":taco:", "%3Ataco%3A"] {
        let (status, body) = app.get(&format!("/api/vote?choice={shortcode}")).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, ""), "{shortcode}");
    }
    assert_eq!(
        app.json("/api/leaderboard").await,
        serde_json::json!([
            {"shortcode": ":taco:", "unicode": "\u{1F32E}", "votes": "2"},
            {"shortcode": ":pizza:", "unicode": "\u{1F355}", "votes": "1"},
        ])
    );
    let (status, metrics) = request(app.metrics, Method::GET, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        "emojivoto_votes_total{emoji=\":taco:\"} 2\n",
        "emojivoto_votes_total{emoji=\":pizza:\"} 1\n",
        "grpc_server_handled_total{grpc_service=\"emojivoto.v1.VotingService\",grpc_method=\"VoteTaco\",grpc_code=\"Ok\"} 2\n",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_vote_for_the_doughnut_fails() {
    let app = App::classic().await;
    let (status, body) = app.get("/api/vote?choice=:doughnut:").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let body: BTreeMap<String, String> = serde_json::from_str(&body).unwrap();
    assert_eq!(body.get("error").map(String::as_str), Some("rpc error: code = Unknown desc = ERROR"));
    assert_eq!(app.json("/api/leaderboard").await, serde_json::json!([]));
    app.stop().await;
}

#[tokio::test]
async fn without_failures_the_doughnut_counts_too() {
    let app = App::start(Voting { failure_rate: 0.0, ..Voting::default() }, "").await;
    assert_eq!(app.get("/api/vote?choice=:doughnut:").await.0, StatusCode::OK);
    assert_eq!(app.json("/api/leaderboard").await[0]["votes"], "1");
    app.stop().await;
}

#[tokio::test]
async fn wrong_requests_are_refused_with_a_reason() {
    let app = App::classic().await;
    for (path, status) in [
        ("/api/vote", StatusCode::BAD_REQUEST),
        ("/api/vote?choice=", StatusCode::BAD_REQUEST),
        ("/api/vote?choice=:no_such:", StatusCode::BAD_REQUEST),
        ("/no/such/page", StatusCode::NOT_FOUND),
    ] {
        let (answered, body) = app.get(path).await;
        assert_eq!(answered, status, "{path}");
        let body: BTreeMap<String, String> = serde_json::from_str(&body).unwrap();
        assert!(body.get("error").is_some_and(|error| !error.is_empty()), "{path}");
    }
    assert_eq!(request(app.web, Method::POST, "/api/vote?choice=:taco:").await.0, StatusCode::METHOD_NOT_ALLOWED);
    app.stop().await;
}

#[tokio::test]
async fn the_page_comes_with_what_it_needs_and_from_nowhere_else() {
    let app = App::start(Voting::default(), "Vote <early> & often").await;
    for path in ["/", "/leaderboard"] {
        let (status, page) = app.get(path).await;
        assert_eq!(status, StatusCode::OK);
        assert!(page.contains("Vote &lt;early&gt; &amp; often"));
        assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("//"), "{page}");
    }
    for path in ["/js", "/css"] {
        assert_eq!(app.get(path).await.0, StatusCode::OK, "{path}");
    }
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let icon = client.get(format!("http://{}/img/favicon.ico", app.web).parse().unwrap()).await.unwrap();
    assert_eq!((icon.status(), &icon.headers()["content-type"]), (StatusCode::OK, &"image/x-icon".parse().unwrap()));
    app.stop().await;
}

#[tokio::test]
async fn every_emoji_has_its_rpc() {
    let app = App::classic().await;
    let voting = grpc::channel(&app.voting.to_string()).unwrap();
    for emoji in emoji::all() {
        let voted: Result<VoteResponse, _> = grpc::call(&voting, VOTING_SERVICE, &emoji.rpc(), VoteRequest {}).await;
        let expected = if emoji.name == "doughnut" { Code::Unknown } else { Code::Ok };
        assert_eq!(voted.err().map_or(Code::Ok, |status| status.code()), expected, "{}", emoji.name);
    }
    assert_eq!(app.json("/api/leaderboard").await.as_array().unwrap().len(), 99);
    let unknown: Result<VoteResponse, _> = grpc::call(&voting, VOTING_SERVICE, "VoteNobody", VoteRequest {}).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_short_code_is_answered_without_an_emoji() {
    let app = App::classic().await;
    let channel = grpc::channel(&app.emoji.to_string()).unwrap();
    let asked = FindByShortcodeRequest { shortcode: ":no_such:".into() };
    let found: FindByShortcodeResponse = grpc::call(&channel, EMOJI_SERVICE, "FindByShortcode", asked).await.unwrap();
    assert_eq!(found.emoji, None);
    app.stop().await;
}

#[test]
fn the_proto_file_names_exactly_the_rpcs_that_are_served() {
    let proto = include_str!("../proto/emojivoto.proto");
    let written: Vec<&str> = proto
        .lines()
        .filter_map(|line| line.trim().strip_prefix("rpc Vote"))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let served: Vec<String> = emoji::all().map(|emoji| emoji.rpc()["Vote".len()..].to_owned()).collect();
    assert_eq!(written, served);
}

#[tokio::test]
async fn a_service_that_is_away_is_an_error_not_a_hang() {
    // Bound but not listening: connections are refused, and nobody else gets the port meanwhile.
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = held.local_addr().unwrap();
    let (listener, address) = socket().await;
    let (shutdown, token) = Shutdown::manual();
    let web = Web::new(&nobody.to_string(), &nobody.to_string(), "").unwrap();
    let server = tokio::spawn(web.run(listener, token));
    let (status, body) = request(address, Method::GET, "/api/list").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(body.contains("rpc error: code = Unavailable"), "{body}");
    shutdown.end();
    timeout(DEADLINE, server).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_in_flight_is_finished_at_the_end() {
    let app = App::start(Voting { delay: Duration::from_millis(500), ..Voting::default() }, "").await;
    let web = app.web;
    let in_flight = tokio::spawn(async move { request(web, Method::GET, "/api/vote?choice=:taco:").await.0 });
    let begun = "grpc_server_started_total{grpc_service=\"emojivoto.v1.VotingService\",grpc_method=\"VoteTaco\"} 1\n";
    timeout(DEADLINE, async {
        while !request(app.metrics, Method::GET, "/metrics").await.1.contains(begun) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the vote never arrived");
    app.stop().await;
    assert_eq!(in_flight.await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn the_bot_waits_for_the_web_front_and_then_votes() {
    let app = App::classic().await;
    // A front that is away: whoever connects is dropped.
    let (listener, address) = socket().await;
    let bot = Bot { web: address.to_string(), host_override: None, rate: 1000, ttl: None };
    let (bot_shutdown, token) = Shutdown::manual();
    let bot = tokio::spawn(bot.run(token));
    for _ in 0..3 {
        let (connection, _) = timeout(DEADLINE, listener.accept()).await.expect("the bot gave up").unwrap();
        drop(connection);
    }
    // The front comes back on the same address.
    let front = Web::new(&app.emoji.to_string(), &app.voting.to_string(), "").unwrap();
    let front = tokio::spawn(front.run(listener, app.token.clone()));
    timeout(DEADLINE, async {
        while app.json("/api/leaderboard").await.as_array().unwrap().len() < 5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the bot does not vote");
    bot_shutdown.end();
    timeout(DEADLINE, bot).await.expect("the bot does not end").unwrap();
    app.stop().await;
    timeout(DEADLINE, front).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_bot_ends_when_its_time_is_over() {
    let (_listener, address) = socket().await;
    let ttl = Some(Duration::from_millis(1));
    let bot = Bot { web: address.to_string(), host_override: None, rate: 1, ttl };
    let (_shutdown, token) = Shutdown::manual();
    timeout(DEADLINE, bot.run(token)).await.expect("the bot does not end");
}
