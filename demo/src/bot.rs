//! The vote bot: lists the emoji and votes, again and again. It has a sweet tooth.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::serve::Shutdown;

/// Share of the votes that go to the doughnut, before chance adds its hundredth of the others.
const DOUGHNUT_SHARE: f32 = 0.15;
/// A request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// More than the list of emoji ever is, in octets.
const BODY_LIMIT: usize = 1 << 20;

/// What the bot does.
#[derive(Debug, Clone)]
pub struct Bot {
    /// Host and port of the web front.
    pub web: String,
    /// Sent as `Host` instead of [`Bot::web`].
    pub host_override: Option<String>,
    /// Rounds (a list and a vote) per second, at least 1.
    pub rate: u32,
    /// Ends by itself after this long.
    pub ttl: Option<Duration>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    shortcode: String,
}

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

impl Bot {
    /// Votes until told to end, or until its time is over. A web front that is away is tried again each round.
    pub async fn run(self, mut shutdown: Shutdown) {
        tokio::select! {
            () = self.rounds() => tracing::info!("time to live is over"),
            () = shutdown.ended() => {}
        }
    }

    async fn rounds(&self) {
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http();
        let mut rounds = interval(Duration::from_secs(1) / self.rate.max(1));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = async {
            match self.ttl {
                Some(ttl) => tokio::time::sleep(ttl).await,
                None => std::future::pending().await,
            }
        };
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                // The end first: after a slow round the next one is due too, and chance would choose between them.
                biased;
                () = &mut end => return,
                _ = rounds.tick() => {}
            }
            // The round is finished even when the end falls into it, so that no request is torn.
            if let Err(error) = self.round(&client).await {
                tracing::warn!("{} does not answer as it should, trying again: {error:#}", self.web);
            }
        }
    }

    async fn round(&self, client: &HttpClient) -> anyhow::Result<()> {
        let (status, body) = self.get(client, "/api/list".to_owned()).await?;
        anyhow::ensure!(status == StatusCode::OK, "/api/list: {status}");
        let list: Vec<Listed> = serde_json::from_slice(&body)?;
        let choice = if fastrand::f32() < DOUGHNUT_SHARE { Some(":doughnut:") } else { None };
        let choice = choice.or_else(|| fastrand::choice(&list).map(|listed| listed.shortcode.as_str()));
        let Some(choice) = choice else { anyhow::bail!("/api/list is empty") };
        let query: String = form_urlencoded::Serializer::new(String::new()).append_pair("choice", choice).finish();
        let (status, _) = self.get(client, format!("/api/vote?{query}")).await?;
        if status.is_success() {
            tracing::info!("voted for {choice}");
        } else {
            tracing::info!("the vote for {choice} failed: {status}");
        }
        Ok(())
    }

    async fn get(&self, client: &HttpClient, path: String) -> anyhow::Result<(StatusCode, Bytes)> {
        let uri: Uri = format!("http://{}{path}", self.web).parse()?;
        let host = self.host_override.as_deref().unwrap_or(&self.web);
        let request = Request::get(uri).header(header::HOST, host).body(Empty::new())?;
        let exchange = async {
            let response = client.request(request).await.map_err(causes)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{path}: {error}"))?.to_bytes();
            Ok((status, body))
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .map_err(|_| anyhow::anyhow!("{path}: no answer in {TIMEOUT:?}"))?
    }
}

/// hyper says what failed in the first error and why in those below it.
fn causes(error: hyper_util::client::legacy::Error) -> anyhow::Error {
    anyhow::Error::new(error)
}
