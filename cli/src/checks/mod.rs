//! What `weft check` checks, in order. What is only about Kubernetes is in [`kubernetes`].

mod cni;
pub mod kubernetes;
mod sanity;

use crate::check::{Runner, Severity};
use crate::cluster::Mesh;
use crate::pods::{ended, meshed, name, namespace, text};
use crate::{VERSION, api};
use serde_json::Value;
use std::cell::Cell;
use std::future::Future;
use time::OffsetDateTime;
use weft_core::api::CheckResponse;
use weft_core::{control_plane, inject, names, trust};

/// Certificates with less life than this are warned of, in days.
const WARN_DAYS: i64 = 60;

/// What the checks look at. Errors are sentences.
pub trait Cluster {
    /// Whether a cluster runs.
    fn connect(&self) -> impl Future<Output = Result<(), String>>;
    /// Objects of a kind (lower-case plural), of one namespace or all.
    fn objects(&self, kind: &str, namespace: Option<&str>) -> impl Future<Output = Result<Vec<Value>, String>>;
    /// What the metrics component says of itself.
    fn api(&self, control: &str) -> impl Future<Output = Result<CheckResponse, String>>;
}

/// The cluster that is meant. Without one at hand it is looked for again each time: it may be starting.
pub struct Running {
    /// Which mesh.
    pub mesh: Mesh,
    /// Its cluster, when it is known to be there.
    pub cluster: Option<crate::cluster::Cluster>,
}

impl Running {
    async fn cluster(&self) -> Result<crate::cluster::Cluster, String> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.clone()),
            None => self.mesh.cluster().await,
        }
    }
}

impl Cluster for Running {
    async fn connect(&self) -> Result<(), String> {
        self.cluster().await.map(drop)
    }

    async fn objects(&self, kind: &str, namespace: Option<&str>) -> Result<Vec<Value>, String> {
        self.cluster().await?.objects(kind, namespace).await.map_err(|e| e.message)
    }

    async fn api(&self, control: &str) -> Result<CheckResponse, String> {
        let api = api::Api::of(self.cluster().await?, control);
        // Only the first line: the second tells to run this very command.
        api.check().await.map_err(|f| f.message.lines().next().unwrap_or_default().to_owned())
    }
}

/// What the arguments ask for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespace of the control plane.
    pub control: String,
    /// Namespace whose proxies are checked, or all.
    pub namespace: Option<String>,
    /// Leave out what is only about the control plane.
    pub proxy_only: bool,
    /// Pods are redirected by a CNI plugin, so that they need no rights for it.
    pub linkerd_cni: bool,
    /// The cluster is one of Kubernetes, whose tools are named in hints.
    pub kubernetes: bool,
}

impl Options {
    /// How to list pods; `-A` is all namespaces.
    fn list_pods(&self) -> String {
        let scope = self.namespace.as_ref().map_or_else(|| "-A".to_owned(), |n| format!("-n {n}"));
        if self.kubernetes { format!("`kubectl get pods {scope}`") } else { format!("`weft ps {scope}`") }
    }

    fn logs(&self, what: &str) -> String {
        if self.kubernetes { format!("`kubectl logs {what}`") } else { format!("`weft logs {what}`") }
    }
}

/// Runs all checks.
pub async fn run(runner: &mut Runner, cluster: &impl Cluster, options: &Options) {
    let control = options.control.as_str();
    existence(runner, cluster, control).await;
    if runner.stopped() {
        return;
    }
    if !options.proxy_only {
        let hint = "`weft down` and `weft up`, which makes new certificates";
        identity(runner, cluster, control, hint, OffsetDateTime::now_utc()).await;
    }
    let server = api_checks(runner, cluster, options).await;
    if !options.proxy_only {
        versions(runner, server.as_ref()).await;
    }
    data_plane(runner, cluster, options).await;
}

async fn existence(runner: &mut Runner, cluster: &impl Cluster, control: &str) {
    runner.category("weft-existence");
    runner.check("a cluster is running", Severity::FATAL, "`weft up --help`", async || cluster.connect().await).await;
    let hint = "`weft down` and `weft up`";
    runner
        .check("control plane namespace exists", Severity::FATAL, hint, async || {
            let namespaces = cluster.objects("namespaces", None).await?;
            match namespaces.iter().any(|n| name(n) == control) {
                true => Ok(()),
                false => Err(format!("there is no namespace {control}")),
            }
        })
        .await;
    let hint = format!("`weft ps -n {control}` and `weft logs -n {control} POD`");
    runner
        .check("control plane pods are ready", Severity::FATAL_RETRY, &hint, async || {
            let pods = cluster.objects("pods", Some(control)).await?;
            for deployment in control_plane::deployments() {
                let mut mine = pods.iter().filter(|p| workload(p) == deployment && !ended(p)).peekable();
                if mine.peek().is_none() {
                    return Err(format!("{deployment} has no pod"));
                }
                if let Some(pod) = mine.find(|p| !ready(p)) {
                    return Err(format!("{} is not ready: {}", name(pod), why_not_ready(pod)));
                }
            }
            Ok(())
        })
        .await;
}

async fn identity(runner: &mut Runner, cluster: &impl Cluster, control: &str, hint: &str, now: OffsetDateTime) {
    runner.category("weft-identity");
    let found = runner
        .check("certificate config is valid", Severity::FATAL, hint, async || {
            let maps = cluster.objects("configmaps", Some(control)).await?;
            let secrets = cluster.objects("secrets", Some(control)).await?;
            let anchors = maps
                .iter()
                .find(|m| name(m) == names::TRUST_ROOTS_CONFIG_MAP)
                .and_then(|m| m.get("data")?.get(names::TRUST_ROOTS_KEY)?.as_str())
                .ok_or_else(|| format!("ConfigMap {} has no trust anchors", names::TRUST_ROOTS_CONFIG_MAP))?;
            let secret = secrets.iter().find(|s| name(s) == names::ISSUER_SECRET);
            let issuer = ["tls.crt", "crt.pem"]
                .iter()
                .find_map(|key| secret?.get("data")?.get(*key)?.as_str())
                .and_then(decode)
                .ok_or_else(|| format!("Secret {} has no issuer certificate", names::ISSUER_SECRET))?;
            let anchor_info = trust::inspect(anchors).map_err(|e| format!("trust anchors: {e}"))?;
            let issuer_info = trust::inspect(&issuer).map_err(|e| format!("issuer: {e}"))?;
            Ok((anchors.to_owned(), issuer, anchor_info, issuer_info))
        })
        .await;
    let Some((anchors, issuer, anchor_info, issuer_info)) = found else { return };
    for (what, whose, certificates) in
        [("trust anchors are", "their", &anchor_info), ("issuer cert is", "its", &issuer_info)]
    {
        let description = format!("{what} within {whose} validity period");
        runner
            .check(&description, Severity::FATAL, hint, async || {
                for certificate in certificates {
                    if now < certificate.not_before || now > certificate.not_after {
                        return Err(format!(
                            "{} is valid from {} to {}",
                            certificate.name,
                            certificate.not_before.date(),
                            certificate.not_after.date()
                        ));
                    }
                }
                Ok(())
            })
            .await;
        let description = format!("{what} valid for at least {WARN_DAYS} days");
        runner
            .check(&description, Severity::WARNING, hint, async || {
                let soon = certificates.iter().find(|c| (c.not_after - now).whole_days() < WARN_DAYS);
                match soon {
                    None => Ok(()),
                    Some(c) => {
                        let days = (c.not_after - now).whole_days();
                        Err(format!("{} expires in {days} days, on {}", c.name, c.not_after.date()))
                    }
                }
            })
            .await;
    }
    runner
        .check("issuer cert is issued by the trust anchor", Severity::ERROR, hint, async || {
            match trust::issued_by(&issuer, &anchors) {
                Ok(true) => Ok(()),
                Ok(false) => Err("no trust anchor signed the issuer".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
}

async fn api_checks(runner: &mut Runner, cluster: &impl Cluster, options: &Options) -> Option<CheckResponse> {
    runner.category("weft-api");
    let control = options.control.as_str();
    let hint = options.logs(&format!("-n {control} deploy/{}", names::METRICS_SERVICE));
    runner
        .check("can query the control plane API", Severity::FATAL_RETRY, &hint, async || cluster.api(control).await)
        .await
}

async fn versions(runner: &mut Runner, server: Option<&CheckResponse>) {
    runner.category("control-plane-version");
    runner
        .check("control plane and cli versions match", Severity::WARNING, "`weft version`", async || {
            same_version("control plane", server.map_or("unavailable", |s| &s.version))
        })
        .await;
}

async fn data_plane(runner: &mut Runner, cluster: &impl Cluster, options: &Options) {
    let control = options.control.as_str();
    runner.category("weft-data-plane");
    if let Some(namespace) = &options.namespace {
        runner
            .check("data plane namespace exists", Severity::FATAL, &options.list_pods(), async || {
                let namespaces = cluster.objects("namespaces", None).await?;
                match namespaces.iter().any(|n| name(n) == namespace) {
                    true => Ok(()),
                    false => Err(format!("there is no namespace {namespace}")),
                }
            })
            .await;
    }
    let scope = options.namespace.as_deref();
    let list = options.list_pods();
    let hint = format!("{list} and {}", options.logs(&format!("POD -c {}", names::PROXY_CONTAINER)));
    let count = Cell::new(0);
    runner
        .check("data plane proxies are ready", Severity::FATAL_RETRY, &hint, async || {
            let pods = cluster.objects("pods", scope).await?;
            let with_proxy: Vec<&Value> = pods.iter().filter(|p| meshed(p) && !ended(p)).collect();
            count.set(with_proxy.len());
            match with_proxy.iter().find(|p| !proxy_ready(p)) {
                None => Ok(()),
                Some(pod) => {
                    Err(format!("the proxy of {}/{} is not ready: {}", namespace(pod), name(pod), why_not_ready(pod)))
                }
            }
        })
        .await;
    runner
        .check("data plane proxies are scraped", Severity::RETRY, &hint, async || {
            let answer = cluster.api(control).await?;
            let in_scope = |failure: &&String| scope.is_none_or(|n| failure.starts_with(&format!("{n}/")));
            if let Some(failure) = answer.proxies_failed.iter().find(in_scope) {
                return Err(failure.clone());
            }
            match count.get() > 0 && answer.proxies_scraped == 0 {
                true => Err("no proxy has been scraped yet".to_owned()),
                false => Ok(()),
            }
        })
        .await;
    let hint = format!("{list}: pods are injected when they are made, so delete those that lack a proxy");
    runner
        .check("pods that ask for a proxy have one", Severity::WARNING, &hint, async || {
            let namespaces = cluster.objects("namespaces", None).await?;
            let pods = cluster.objects("pods", scope).await?;
            let asks = |object: &Value| {
                let annotation = object.pointer("/metadata/annotations")?.get(names::ANNOTATION_INJECT)?.as_str()?;
                Some(matches!(annotation, "enabled" | "ingress"))
            };
            let lacking = pods.iter().find(|pod| {
                let of_namespace = || namespaces.iter().find(|n| name(n) == namespace(pod)).and_then(asks);
                let host = pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true);
                !ended(pod) && !host && !meshed(pod) && asks(pod).or_else(of_namespace) == Some(true)
            });
            match lacking {
                None => Ok(()),
                Some(pod) => Err(format!("{}/{} has no proxy", namespace(pod), name(pod))),
            }
        })
        .await;
    runner
        .check("data plane and cli versions match", Severity::WARNING, "`weft version`", async || {
            let pods = cluster.objects("pods", scope).await?;
            for pod in pods.iter().filter(|p| meshed(p) && !ended(p)) {
                let annotations = pod.pointer("/metadata/annotations");
                let version = annotations.and_then(|a| a.get(inject::ANNOTATION_PROXY_VERSION)).and_then(Value::as_str);
                same_version(&format!("proxy of {}/{}", namespace(pod), name(pod)), version.unwrap_or("unknown"))?;
            }
            Ok(())
        })
        .await;
    sanity::labels(runner, cluster, options).await;
    sanity::opaque_ports(runner, cluster, options).await;
}

fn same_version(what: &str, version: &str) -> Result<(), String> {
    match version == VERSION {
        true => Ok(()),
        false => Err(format!("{what} running {version} but cli running {VERSION}")),
    }
}

fn decode(base64: &str) -> Option<String> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64.trim()).ok()?;
    String::from_utf8(bytes).ok()
}

/// The Deployment of a pod; empty when it has none.
fn workload(pod: &Value) -> String {
    let metadata = pod.get("metadata").cloned().and_then(|m| serde_json::from_value(m).ok());
    let workload = metadata.map(|m| weft_core::owner::workload(&m));
    workload.filter(|w| w.kind == "deployment").map(|w| w.name).unwrap_or_default()
}

fn ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| text(c, "/type") == "Ready" && text(c, "/status") == "True")
}

fn proxy_ready(pod: &Value) -> bool {
    statuses(pod).any(|c| text(c, "/name") == names::PROXY_CONTAINER && c.get("ready") == Some(&Value::Bool(true)))
}

fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["/status/initContainerStatuses", "/status/containerStatuses"];
    lists.into_iter().filter_map(|list| pod.pointer(list)?.as_array()).flatten()
}

/// The container that holds a pod up, and its reason.
fn why_not_ready(pod: &Value) -> String {
    let holding = statuses(pod).find_map(|c| {
        let waiting = c.pointer("/state/waiting").or(c.pointer("/state/terminated"))?;
        let finished = text(waiting, "/reason") == "Completed";
        let (reason, message) = (text(waiting, "/reason"), text(waiting, "/message"));
        let detail = if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
        (!finished).then(|| format!("container {}: {detail}", text(c, "/name")))
    });
    let unready = || {
        let mut unready = statuses(pod).filter(|c| c.get("ready") == Some(&Value::Bool(false)));
        unready
            .find(|c| c.pointer("/state/running").is_some())
            .map(|c| format!("container {} is not ready", text(c, "/name")))
    };
    holding.or_else(unready).unwrap_or_else(|| match text(pod, "/status/phase") {
        "" => "it has not started".into(),
        phase => format!("phase {phase}"),
    })
}

#[cfg(test)]
mod tests;
