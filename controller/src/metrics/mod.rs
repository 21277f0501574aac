//! The metrics component: scrapes the proxies of all meshed pods and answers `stat`, `edges` and `check` in the JSON of
//! [`weft_core::api`].

pub mod edges;
pub mod parse;
pub mod quantile;
pub mod resources;
pub mod scrape;
pub mod stat;
pub mod store;

use crate::cli::MetricsOptions;
use crate::destination::endpoint::Mesh;
use crate::drain::Drain;
use crate::http::{Answer, json, read_body};
use crate::index::Index;
use crate::telemetry::Telemetry;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use resources::Resources;
use scrape::{Round, Scraper};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::Store;
use tokio::net::TcpListener;
use tokio::time::Instant;
use weft_core::api::{ApiError, CheckResponse};

/// The component. Cloning is cheap and refers to the same.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    index: Index,
    mesh: Mesh,
    store: Mutex<Store>,
    round: Mutex<Round>,
    scraper: Scraper,
    started: Instant,
}

impl Metrics {
    /// A component with an empty store.
    pub fn new(index: Index, options: &MetricsOptions, telemetry: &Telemetry) -> Metrics {
        let mesh = Mesh {
            controller_namespace: options.mesh.controller_namespace.clone(),
            trust_domain: options.mesh.trust_domain.clone(),
            cluster_domain: weft_core::names::CLUSTER_DOMAIN.to_owned(),
        };
        let shared = Shared {
            index,
            mesh,
            store: Mutex::default(),
            round: Mutex::default(),
            scraper: Scraper::new(options, telemetry),
            started: Instant::now(),
        };
        let metrics = Metrics(Arc::new(shared));
        let shown = metrics.clone();
        telemetry.collect(move |telemetry| {
            let (pods, sums) = shown.store().size();
            for (name, help, value) in [
                ("weft_metrics_store_pods", "Pods in the store", pods),
                ("weft_metrics_store_sums", "Sums of traffic in the store", sums),
            ] {
                telemetry.gauge(name, help, &[]).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        });
        metrics
    }

    /// Scrapes round by round.
    pub async fn scrape_forever(self) {
        self.0.index.synced().await;
        let mut ticks = tokio::time::interval(self.0.scraper.interval());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let targets = self.0.index.pods();
            let jobs: Vec<_> = targets.iter().filter(|pod| pod.only_proxy_left).cloned().collect();
            let take = {
                let metrics = self.clone();
                move |pod: &Arc<crate::index::pod::Pod>, text: &str| {
                    let now = metrics.now();
                    metrics.store().ingest(pod, now, text);
                }
            };
            let round = self.0.scraper.round(targets, take).await;
            *self.0.round.lock().unwrap_or_else(PoisonError::into_inner) = round;
            let now = self.now();
            self.store().prune(now);
            // Behind the scrape, so that what a Job did at its end is counted.
            self.0.scraper.end_proxies_of_jobs(jobs, &self.0.mesh.controller_namespace).await;
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds on the store's clock.
    fn now(&self) -> f64 {
        self.0.started.elapsed().as_secs_f64()
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        let result = match (request.method(), path.as_str()) {
            (&Method::GET, "/api/check") => Ok(json(StatusCode::OK, &self.check())),
            (&Method::POST, "/api/stat") => {
                self.asked(request, |asked| {
                    let store = self.store();
                    stat::stat(&store, &Resources::new(&self.0.index, &store), &asked, self.now())
                })
                .await
            }
            (&Method::POST, "/api/edges") => {
                self.asked(request, |asked| {
                    let store = self.store();
                    edges::edges(&store, &Resources::new(&self.0.index, &store), &self.0.mesh, &asked)
                })
                .await
            }
            (_, "/api/check" | "/api/stat" | "/api/edges") => {
                Err((StatusCode::METHOD_NOT_ALLOWED, "check is asked by GET, stat and edges by POST".to_owned()))
            }
            _ => Err((StatusCode::NOT_FOUND, format!("{path} is not here"))),
        };
        result.unwrap_or_else(|(status, error)| json(status, &ApiError { error }))
    }

    async fn asked<A, B>(
        &self,
        request: Request<Incoming>,
        answer: impl FnOnce(A) -> Result<B, String>,
    ) -> Result<Answer, (StatusCode, String)>
    where
        A: serde::de::DeserializeOwned,
        B: serde::Serialize,
    {
        let refuse = |error: String| (StatusCode::BAD_REQUEST, error);
        let body = read_body(request.into_body()).await.map_err(refuse)?;
        let mut reader = serde_json::Deserializer::from_slice(&body);
        let asked = serde_path_to_error::deserialize(&mut reader)
            .map_err(|error| refuse(format!("the request is not understood at {}: {}", error.path(), error.inner())))?;
        answer(asked).map(|answer| json(StatusCode::OK, &answer)).map_err(refuse)
    }

    fn check(&self) -> CheckResponse {
        let round = self.0.round.lock().unwrap_or_else(PoisonError::into_inner);
        CheckResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            proxies_scraped: round.scraped,
            proxies_failed: round.failed.clone(),
        }
    }
}

/// Serves the API until the drain.
pub async fn serve(listener: TcpListener, drain: Drain, metrics: Metrics) {
    crate::http::serve(listener, drain, move |request| {
        let metrics = metrics.clone();
        async move { metrics.answer(request).await }
    })
    .await;
}
