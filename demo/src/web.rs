//! The web front: a page, and a JSON API over the two gRPC services.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use tokio::net::TcpListener;
use tonic::{Status, transport::Channel};

use crate::{
    emoji, grpc,
    messages::{
        EMOJI_SERVICE, FindByShortcodeRequest, FindByShortcodeResponse, ListAllEmojiRequest, ListAllEmojiResponse,
        ResultsRequest, ResultsResponse, VOTING_SERVICE, VoteRequest, VoteResponse,
    },
    serve::{self, Shutdown, text},
};

const PAGE: &str = include_str!("page/index.html");
const SCRIPT: &str = include_str!("page/page.js");
const STYLE: &str = include_str!("page/page.css");
const ICON: &[u8] = include_bytes!("page/favicon.ico");
/// Where the message of the day goes in the page.
const MESSAGE_MARK: &str = "<!-- message of the day -->";
const JSON: &str = "application/json; charset=UTF-8";

/// The web front and what it talks to.
#[derive(Debug, Clone)]
pub struct Web {
    emoji: Channel,
    voting: Channel,
    page: Bytes,
}

/// An emoji as the API shows it.
#[derive(Debug, Serialize)]
struct Listed {
    shortcode: String,
    unicode: String,
    /// In decimal, as Emojivoto writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    votes: Option<String>,
}

#[derive(Debug, Serialize)]
struct Failure {
    error: String,
}

/// A request that cannot be answered.
enum Refused {
    /// The client's mistake.
    Bad(String),
    /// A service behind us failed.
    Service(Status),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::Service(status)
    }
}

impl Web {
    /// A front for the services at `emoji` and `voting` (each host and port). The message of the day is plain text.
    ///
    /// # Errors
    ///
    /// When a host and port cannot be understood.
    pub fn new(emoji: &str, voting: &str, message_of_the_day: &str) -> anyhow::Result<Self> {
        let page = PAGE.replace(MESSAGE_MARK, &escape(message_of_the_day));
        Ok(Self { emoji: grpc::channel(emoji)?, voting: grpc::channel(voting)?, page: page.into() })
    }

    /// Serves until the end, then finishes the requests in flight.
    pub async fn run(self, listener: TcpListener, shutdown: Shutdown) {
        let this = Arc::new(self);
        serve::http(listener, shutdown, move |request| {
            let this = this.clone();
            async move { this.answer(&request).await }
        })
        .await;
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = json(StatusCode::METHOD_NOT_ALLOWED, &Failure { error: "only GET and HEAD".into() });
            answer.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let result = match request.uri().path() {
            "/" | "/leaderboard" => return text(StatusCode::OK, "text/html; charset=utf-8", self.page.clone()),
            "/js" => return text(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT),
            "/css" => return text(StatusCode::OK, "text/css; charset=utf-8", STYLE),
            "/img/favicon.ico" | "/favicon.ico" => return text(StatusCode::OK, "image/x-icon", ICON),
            "/api/list" => self.list().await.map(|list| json(StatusCode::OK, &list)),
            "/api/vote" => self.vote(request.uri().query().unwrap_or_default()).await.map(|()| {
                let mut answer = Response::new(Full::default());
                answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(JSON));
                answer
            }),
            "/api/leaderboard" => self.leaderboard().await.map(|list| json(StatusCode::OK, &list)),
            _ => return json(StatusCode::NOT_FOUND, &Failure { error: "there is no such page".into() }),
        };
        result.unwrap_or_else(|refused| {
            let (status, error) = match refused {
                Refused::Bad(error) => (StatusCode::BAD_REQUEST, error),
                Refused::Service(status) => (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("rpc error: code = {:?} desc = {}", status.code(), status.message()),
                ),
            };
            tracing::warn!("{} {}: {error}", request.method(), request.uri());
            json(status, &Failure { error })
        })
    }

    async fn list(&self) -> Result<Vec<Listed>, Refused> {
        let all: ListAllEmojiResponse =
            grpc::call(&self.emoji, EMOJI_SERVICE, "ListAll", ListAllEmojiRequest {}).await?;
        Ok(all
            .list
            .into_iter()
            .map(|emoji| Listed { shortcode: emoji.shortcode, unicode: emoji.unicode, votes: None })
            .collect())
    }

    async fn find(&self, shortcode: String) -> Result<FindByShortcodeResponse, Status> {
        grpc::call(&self.emoji, EMOJI_SERVICE, "FindByShortcode", FindByShortcodeRequest { shortcode }).await
    }

    async fn vote(&self, query: &str) -> Result<(), Refused> {
        let choice = form_urlencoded::parse(query.as_bytes())
            .find_map(|(key, value)| (key == "choice").then(|| value.into_owned()))
            .filter(|choice| !choice.is_empty())
            .ok_or_else(|| Refused::Bad("the query must name a `choice`".into()))?;
        if self.find(choice.clone()).await?.emoji.is_none() {
            return Err(Refused::Bad(format!("there is no emoji `{choice}`")));
        }
        // An emoji of a newer emoji service that this front has no rpc for counts as voted: an old bug of Emojivoto,
        // kept because its training material shows it.
        if let Some(emoji) = emoji::find(&choice) {
            let VoteResponse {} = grpc::call(&self.voting, VOTING_SERVICE, &emoji.rpc(), VoteRequest {}).await?;
        }
        Ok(())
    }

    /// One call for the results, then one for each emoji that has votes: the demo's well-known inefficiency.
    async fn leaderboard(&self) -> Result<Vec<Listed>, Refused> {
        let results: ResultsResponse = grpc::call(&self.voting, VOTING_SERVICE, "Results", ResultsRequest {}).await?;
        let mut list = Vec::with_capacity(results.results.len());
        for result in results.results {
            let unicode = self.find(result.shortcode.clone()).await?.emoji.map(|emoji| emoji.unicode);
            list.push(Listed {
                shortcode: result.shortcode,
                unicode: unicode.unwrap_or_default(),
                votes: Some(result.votes.to_string()),
            });
        }
        Ok(list)
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            text(status, JSON, body)
        }
        Err(error) => {
            tracing::error!(%error, "cannot write JSON");
            text(StatusCode::INTERNAL_SERVER_ERROR, JSON, "{\"error\":\"cannot write JSON\"}\n")
        }
    }
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, letter| {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
        out
    })
}
