//! The webhooks of a Kubernetes cluster: `POST /` adds the proxy to pods, `POST /validate` checks mesh resources.
//!
//! Injection is the pure function of `weft_core::inject`; around it is what namespace and pod say, and an answer that
//! explains itself. What cannot be decided here (values missing, a namespace nobody knows) is answered 500, and the
//! cluster's own setting says whether the pod waits or goes without a proxy.

pub mod certificate;
pub mod config;
pub mod events;
pub mod keeper;
pub mod namespaces;
pub mod patch;
pub mod review;

use crate::drain::Drain;
use crate::http::{Answer, json, read_body_up_to, serve_over, text};
use crate::kubernetes::{Api, Resource};
use crate::telemetry::Telemetry;
use config::Configuration;
use events::{Events, Note};
use http::{Method, StatusCode};
use hyper::body::Incoming;
use keeper::Shown;
use namespaces::Namespaces;
use review::{Request, Verdict};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use weft_core::inject::{InjectConfig, Outcome, Reason, inject};
use weft_core::mesh;
use weft_core::names::{ANNOTATION_INJECT, LABEL_COMPONENT, workload_label};

/// Most octets of a review. An object has at most about three million, an update has two.
const MAX_REVIEW: usize = 8 << 20;
/// How long the owner of a pod is asked for.
const ASK: Duration = Duration::from_secs(1);
/// How often the server's version is looked at: clusters are upgraded while this runs.
const LOOK: Duration = Duration::from_secs(60);
/// The first minor version of Kubernetes whose sidecars are on by default.
const NATIVE_SIDECARS: u64 = 29;
const JOBS: Resource = Resource { api_version: "batch/v1", plural: "jobs" };

/// Whether the cluster has sidecars of its own. Cloning is cheap and refers to the same.
#[derive(Debug, Clone, Default)]
pub struct Native(Arc<AtomicBool>);

impl Native {
    /// Looks at the API server's version, now and from time to time. While it is not known, pods get what every cluster
    /// understands.
    pub fn watch(api: Api) -> Native {
        let native = Native::default();
        let kept = native.clone();
        tokio::spawn(async move {
            loop {
                let pause = match api.get("/version").await {
                    Ok(version) => {
                        let has = has_native_sidecars(&version);
                        if kept.0.swap(has, Ordering::Relaxed) != has {
                            tracing::info!(native_sidecars = has, "the cluster's version");
                        }
                        LOOK
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the cluster's version is not known");
                        LOOK / 30
                    }
                };
                tokio::time::sleep(pause).await;
            }
        });
        native
    }
}

/// From what a server says at `/version`; providers add a plus sign or more to the number.
fn has_native_sidecars(version: &Value) -> bool {
    let number = |key: &str| {
        let text = version.get(key).and_then(Value::as_str).unwrap_or_default();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text.get(..digits).and_then(|digits| digits.parse::<u64>().ok())
    };
    match (number("major"), number("minor")) {
        (Some(1), Some(minor)) => minor >= NATIVE_SIDECARS,
        (Some(major), _) => major > 1,
        _ => false,
    }
}

/// The webhooks.
#[derive(Debug, Clone)]
pub struct Webhooks {
    /// What is injected.
    pub configuration: Configuration,
    /// What namespaces say.
    pub namespaces: Namespaces,
    /// Whether the cluster has sidecars of its own.
    pub native: Native,
    /// Where people are told.
    pub events: Events,
    /// The API server.
    pub api: Api,
    /// Where figures go.
    pub telemetry: Telemetry,
}

/// A pod's fate, for the counter.
struct Fate(&'static str, Verdict);

impl Webhooks {
    /// Serves over TLS until the drain.
    pub async fn serve(self, listener: TcpListener, shown: Shown, drain: Drain) -> anyhow::Result<()> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let secure = move |stream| acceptor.accept(stream);
        let this = Arc::new(self);
        serve_over(listener, drain, secure, move |request| {
            let this = this.clone();
            async move { this.answer(request).await }
        })
        .await;
        Ok(())
    }

    async fn answer(&self, request: http::Request<Incoming>) -> Answer {
        let validate = match request.uri().path() {
            "/" => false,
            "/validate" => true,
            _ => return text(StatusCode::NOT_FOUND, "this is not here; there are / and /validate\n"),
        };
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n");
        }
        let body = match read_body_up_to(request.into_body(), MAX_REVIEW).await {
            Ok(body) => body,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        let started = Instant::now();
        let request = match Request::read(&body) {
            Ok(request) => request,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("no AdmissionReview: {error}\n")),
        };
        let webhook = if validate { "validate" } else { "inject" };
        let result = if validate { Ok(check(&request)) } else { self.admit(&request).await };
        let name = result.as_ref().map_or("error", |fate| fate.0);
        let labels = [("webhook", webhook), ("result", name)];
        self.telemetry.counter("weft_injector_admissions_total", "Objects that were asked about", &labels).inc();
        let micros = i64::try_from(started.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.telemetry
            .counter(
                "weft_injector_admission_microseconds_total",
                "Time that answers took, from the whole question to the answer",
                &[("webhook", webhook)],
            )
            .add(micros);
        match result {
            Ok(Fate(_, verdict)) => json(StatusCode::OK, &request.answer(&verdict)),
            Err(error) => {
                tracing::warn!(webhook, namespace = request.namespace, "cannot answer: {error}");
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
            }
        }
    }

    /// What becomes of a pod.
    async fn admit(&self, request: &Request) -> Result<Fate, String> {
        if request.kind != "Pod" || request.operation != "CREATE" {
            return Ok(Fate("other", Verdict::unchanged()));
        }
        let pod = &request.object;
        if pod.get("kind").and_then(Value::as_str) != Some("Pod") {
            return Err("the request is about a Pod, and its object is none".to_owned());
        }
        let namespace = self.namespaces.get(&request.namespace).await?;
        // The control plane's own pods were injected when it was installed: an injector cannot wait for itself.
        let component = pod.pointer("/metadata/labels").and_then(|labels| labels.get(LABEL_COMPONENT));
        if namespace.control_plane || component.is_some() {
            return Ok(Fate("control_plane", Verdict::unchanged()));
        }
        let says = |annotations: Option<&str>| matches!(annotations, Some("enabled" | "ingress"));
        let own = pod.pointer("/metadata/annotations").and_then(|a| a.get(ANNOTATION_INJECT)).and_then(Value::as_str);
        let asked = says(own.or(namespace.annotations.get(ANNOTATION_INJECT).map(String::as_str)));
        let Some(base) = self.configuration.current() else {
            // Nobody is kept from running a pod that wants no proxy.
            if !asked {
                return Ok(Fate("skipped", Verdict::unchanged()));
            }
            return Err(self.configuration.problem().unwrap_or_else(|| "there are no values yet".to_owned()));
        };
        let mut object = pod.clone();
        if asked {
            self.name_cron_job(&mut object, &request.namespace).await;
        }
        let config = InjectConfig {
            default_namespace: request.namespace.clone(),
            namespaces: [(request.namespace.clone(), namespace.annotations.clone())].into(),
            native_sidecars: self.native.0.load(Ordering::Relaxed),
            ..InjectConfig::clone(&base)
        };
        let mut injected = match inject(&object, &config) {
            Ok(injected) => injected,
            Err(error) => {
                let message = format!("weft cannot inject this pod: {}: {}", error.field, error.message);
                tracing::info!(namespace = request.namespace, message, "a pod is refused");
                return Ok(Fate("refused", Verdict::Refuse { message }));
            }
        };
        let report = injected.reports.pop();
        let udp = report.as_ref().is_some_and(|report| report.udp);
        let outcome = report.map(|report| report.outcome);
        let mut warnings = Vec::new();
        let fate = match outcome {
            Some(Outcome::Changed) => {
                if udp {
                    warnings.push("UDP ports of this pod bypass its proxy".to_owned());
                }
                self.tell(request, "Injected", "the proxy was added".to_owned());
                let operations = patch::difference(pod, &injected.value);
                return Ok(Fate("injected", Verdict::Admit { operations, warnings }));
            }
            Some(Outcome::Skipped(reason @ (Reason::HostNetwork | Reason::Sidecar))) if asked => {
                let message = format!("no proxy was added: {reason}");
                // A pod that says so itself was made by hand with its proxy, or is asked about twice.
                if reason == Reason::HostNetwork {
                    warnings.push(message.clone());
                }
                self.tell(request, "InjectionSkipped", message);
                "skipped"
            }
            _ => "skipped",
        };
        Ok(Fate(fate, Verdict::Admit { operations: Vec::new(), warnings }))
    }

    /// A Job does not say in its pods that a CronJob made it; metrics are about the CronJob.
    async fn name_cron_job(&self, pod: &mut Value, namespace: &str) {
        let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        let job = owners.into_iter().flatten().find(|owner| owner.get("kind").and_then(Value::as_str) == Some("Job"));
        let Some(job) = job.and_then(|job| job.get("name")?.as_str()).map(str::to_owned) else { return };
        let path = format!("{}/{job}", JOBS.within(namespace));
        // When nobody answers the pod is the Job's: no reason to keep it waiting.
        let Ok(Ok(job)) = tokio::time::timeout(ASK, self.api.metadata(&path)).await else { return };
        let owners = job.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        let cron = owners.into_iter().flatten().find(|o| o.get("kind").and_then(Value::as_str) == Some("CronJob"));
        let Some(cron) = cron.and_then(|cron| cron.get("name")) else { return };
        let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        let labels = metadata.entry("labels").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(workload_label("cronjob"), cron.clone());
        }
    }

    /// Tells people, about what made the pod, or about the pod itself when it has a name of its own.
    fn tell(&self, request: &Request, reason: &'static str, message: String) {
        if request.dry_run {
            return;
        }
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let metadata = request.object.get("metadata").unwrap_or(&Value::Null);
        let owner = metadata.get("ownerReferences").and_then(|owners| owners.get(0));
        let (api_version, kind, name, uid) = match owner {
            Some(owner) => (text(owner, "apiVersion"), text(owner, "kind"), text(owner, "name"), text(owner, "uid")),
            None => ("v1".to_owned(), "Pod".to_owned(), text(metadata, "name"), text(metadata, "uid")),
        };
        if !name.is_empty() {
            let namespace = request.namespace.clone();
            self.events.tell(Note { namespace, api_version, kind, name, uid, reason, message });
        }
    }
}

/// What becomes of a mesh resource.
fn check(request: &Request) -> Fate {
    if !matches!(request.operation.as_str(), "CREATE" | "UPDATE") {
        return Fate("other", Verdict::unchanged());
    }
    match mesh::read(&request.object) {
        Ok(_) => Fate("good", Verdict::unchanged()),
        Err(error) => Fate("refused", Verdict::Refuse { message: format!("{}: {}", error.field, error.message) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_with_native_sidecars() {
        let has = |major: &str, minor: &str| has_native_sidecars(&json!({ "major": major, "minor": minor }));
        assert!(has("1", "29") && has("1", "30+") && has("1", "36-gke.1") && has("2", "0"));
        assert!(!has("1", "28") && !has("1", "20+") && !has("", "") && !has("1", "x"));
        assert!(!has_native_sidecars(&Value::Null));
    }
}
