//! A Kubernetes cluster as the command line sees it: objects as JSON, and connections to pods through the API server.
//! Nothing of the mesh is exposed for it, and no other rights are used than those of whoever runs the command.

use crate::Failure;
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::DuplexStream;
use weft_core::kinds::Kind;

/// How long the API server may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Objects in one answer of a list.
const PAGE: usize = 500;

/// Which cluster is meant, and as whom.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// File with clusters and credentials.
    pub kubeconfig: Option<PathBuf>,
    /// Context in that file.
    pub context: Option<String>,
    /// User to act as.
    pub as_user: Option<String>,
    /// Groups to act as.
    pub as_groups: Vec<String>,
}

impl Access {
    /// Whether a Kubernetes cluster is asked for by a flag.
    pub fn is_explicit(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some() || self.as_user.is_some() || !self.as_groups.is_empty()
    }

    async fn config(&self) -> Result<Config, String> {
        let options = KubeConfigOptions { context: self.context.clone(), cluster: None, user: None };
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let read = Kubeconfig::read_from(file).map_err(|e| innermost(&e));
                let kubeconfig = read.map_err(|e| format!("{}: {e}", file.display()))?;
                let chosen = Config::from_custom_kubeconfig(kubeconfig, &options).await;
                chosen.map_err(|e| format!("{}: {}", file.display(), innermost(&e)))?
            }
            None => match Config::from_kubeconfig(&options).await {
                Ok(config) => config,
                // In a pod there is no such file, but an account.
                Err(error) => match Config::incluster() {
                    Ok(config) if self.context.is_none() => config,
                    _ => return Err(format!("kubeconfig: {}", innermost(&error))),
                },
            },
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.default_retry = false;
        if let Some(user) = &self.as_user {
            config.auth_info.impersonate = Some(user.clone());
        }
        if !self.as_groups.is_empty() {
            config.auth_info.impersonate_groups = Some(self.as_groups.clone());
        }
        Ok(config)
    }
}

/// A Kubernetes cluster.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    url: String,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why the API server did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status, when the API server answered.
    pub status: Option<u16>,
    /// One sentence.
    pub message: String,
}

impl Problem {
    /// Whether there is no such thing.
    pub fn is_absent(&self) -> bool {
        self.status == Some(404)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        Failure::new(problem.message)
    }
}

impl Kubernetes {
    /// The cluster that is meant. It is not asked anything yet.
    ///
    /// # Errors
    /// One sentence, when it is not known where it is or who asks.
    pub async fn new(access: &Access) -> Result<Kubernetes, String> {
        let config = access.config().await?;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|e| innermost(&e))?;
        Ok(Kubernetes { client, url })
    }

    /// Where the API server is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The version of the API server: major, minor, and as it writes it.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn version(&self) -> Result<(u32, u32, String), Problem> {
        let answer = self.request("GET", "/version", None).await?;
        let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default();
        // Some providers write "20+".
        let number = |key: &str| text(key).trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        match (number("major"), number("minor")) {
            (Some(major), Some(minor)) => Ok((major, minor, text("gitVersion").to_owned())),
            _ => Err(Problem { status: None, message: format!("{} does not tell its version", self.url) }),
        }
    }

    /// What a path of the API answers.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn get(&self, path: &str) -> Result<Value, Problem> {
        self.request("GET", path, None).await
    }

    /// As [`Kubernetes::get`]; nothing when there is no such object, or kind of object.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn find(&self, path: &str) -> Result<Option<Value>, Problem> {
        match self.get(path).await {
            Ok(object) => Ok(Some(object)),
            Err(problem) if problem.is_absent() => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// Sends an object to a path, and answers what came back.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value, Problem> {
        self.request("POST", path, Some(object)).await
    }

    /// All objects of a path, over as many answers as it takes, each with its `apiVersion` and `kind`.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn list(&self, path: &str, labels: Option<&str>) -> Result<Vec<Value>, Problem> {
        let mut objects = Vec::new();
        let mut next = String::new();
        loop {
            let mut query = form(&[("limit", &PAGE.to_string())]);
            for (key, value) in [("labelSelector", labels.unwrap_or_default()), ("continue", &next)] {
                if !value.is_empty() {
                    query = format!("{query}&{}", form(&[(key, value)]));
                }
            }
            let mut answer = self.request("GET", &format!("{path}?{query}"), None).await?;
            let version = answer.get("apiVersion").cloned().unwrap_or_default();
            let list_kind = answer.get("kind").and_then(Value::as_str).unwrap_or_default();
            let kind = list_kind.strip_suffix("List").unwrap_or(list_kind).to_owned();
            let items = answer.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take);
            objects.extend(items.unwrap_or_default().into_iter().map(|mut item| {
                if let Some(item) = item.as_object_mut() {
                    item.insert("apiVersion".into(), version.clone());
                    item.insert("kind".into(), kind.clone().into());
                }
                item
            }));
            next = answer.pointer("/metadata/continue").and_then(Value::as_str).unwrap_or_default().to_owned();
            if next.is_empty() {
                return Ok(objects);
            }
        }
    }

    /// Objects of a kind that weft reads, of one namespace or all, by namespace and name.
    ///
    /// # Errors
    /// When there is no such kind, or see [`Problem`].
    pub async fn objects(&self, kind: &str, namespace: Option<&str>) -> Result<Vec<Value>, Problem> {
        let unknown = || Problem { status: None, message: format!("there is no kind {kind:?}") };
        let known = Kind::from_any_name(kind).ok_or_else(unknown)?;
        let namespace = namespace.filter(|_| known.namespaced());
        let mut objects = self.list(&path_of(known.api_version(), known.resource(), namespace, None), None).await?;
        objects.sort_by_cached_key(|o| {
            let text = |path: &str| o.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
            (text("/metadata/namespace"), text("/metadata/name"))
        });
        Ok(objects)
    }

    /// Whether whoever runs the command may do this.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn may(&self, verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> Result<bool, Problem> {
        let attributes = json!({ "verb": verb, "group": group, "resource": resource, "namespace": namespace });
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": attributes },
        });
        let answer = self.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await?;
        Ok(answer.pointer("/status/allowed").and_then(Value::as_bool) == Some(true))
    }

    /// The groups and versions that the API server has, such as `policy/v1`.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn api_versions(&self) -> Result<Vec<String>, Problem> {
        let answer = self.get("/apis").await?;
        let groups = answer.get("groups").and_then(Value::as_array).cloned().unwrap_or_default();
        let versions = groups.iter().filter_map(|group| group.get("versions")?.as_array()).flatten();
        let mut out: Vec<String> =
            versions.filter_map(|version| Some(version.get("groupVersion")?.as_str()?.to_owned())).collect();
        out.push("v1".into());
        Ok(out)
    }

    /// A connection to a port of a pod, through the API server. `target` is `NAME` or `pod/NAME`, `svc/NAME` for a ready
    /// pod behind a service (the port is then the service's), `deploy/NAME` for a ready pod of a Deployment.
    ///
    /// # Errors
    /// One sentence, when there is no such pod, or nobody answers there.
    pub async fn dial(&self, namespace: &str, target: &str, port: u16) -> Result<DuplexStream, String> {
        let (pod, port) = self.pod_of(namespace, target, port).await?;
        let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(self.client.clone(), namespace);
        let forwarded = tokio::time::timeout(TIMEOUT, pods.portforward(&pod, &[port])).await;
        let mut forwarder = match forwarded {
            Ok(Ok(forwarder)) => forwarder,
            Ok(Err(error)) => return Err(problem(&self.url, &error).message),
            Err(_) => return Err(self.silent().message),
        };
        forwarder.take_stream(port).ok_or_else(|| format!("port {port} of {pod} was not forwarded"))
    }

    async fn pod_of(&self, namespace: &str, target: &str, port: u16) -> Result<(String, u16), String> {
        let (kind, name) = target.split_once('/').unwrap_or(("pod", target));
        let plural = match kind {
            "svc" => "services",
            "deploy" => "deployments",
            _ => return Ok((name.to_owned(), port)),
        };
        let version = if plural == "services" { "v1" } else { "apps/v1" };
        let found = self.find(&path_of(version, plural, Some(namespace), Some(name))).await.map_err(|p| p.message)?;
        let object = found.ok_or_else(|| format!("there is no {kind}/{name} in {namespace}"))?;
        let selector = object.pointer("/spec/selector/matchLabels").or(object.pointer("/spec/selector"));
        let selector: Vec<String> = selector
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
            .collect();
        if selector.is_empty() {
            return Err(format!("{kind}/{name} in {namespace} selects no pods"));
        }
        let pods = self.list(&path_of("v1", "pods", Some(namespace), None), Some(&selector.join(","))).await;
        let pods = pods.map_err(|p| p.message)?;
        let pod = pods
            .iter()
            .find(|pod| ready(pod))
            .ok_or_else(|| format!("no pod of {kind}/{name} in {namespace} is ready"))?;
        let port = if kind == "svc" { target_port(&object, pod, port)? } else { port };
        Ok((crate::pods::name(pod).to_owned(), port))
    }

    async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Problem> {
        let bytes = body.map(serde_json::to_vec).transpose().unwrap_or_default().unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(bytes)
            .map_err(|e| Problem { status: None, message: format!("{path}: {e}") })?;
        match tokio::time::timeout(TIMEOUT, self.client.request::<Value>(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(problem(&self.url, &error)),
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> Problem {
        let message = format!("the API server at {} does not answer within {} s", self.url, TIMEOUT.as_secs());
        Problem { status: None, message }
    }
}

/// The path of objects of a kind, or of one of them.
pub fn path_of(api_version: &str, plural: &str, namespace: Option<&str>, name: Option<&str>) -> String {
    let group = if api_version.contains('/') { format!("/apis/{api_version}") } else { format!("/api/{api_version}") };
    let namespace = namespace.map(|n| format!("/namespaces/{n}")).unwrap_or_default();
    let name = name.map(|n| format!("/{n}")).unwrap_or_default();
    format!("{group}{namespace}/{plural}{name}")
}

/// The plural that stands in paths for a kind. Every kind that weft installs makes it by this rule.
pub fn plural(kind: &str) -> String {
    let lower = kind.to_ascii_lowercase();
    match lower.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if lower.ends_with('s') => lower,
        None => format!("{lower}s"),
    }
}

fn form(pairs: &[(&str, &str)]) -> String {
    let encode = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect()
    };
    pairs.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect::<Vec<_>>().join("&")
}

fn ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let text = |c: &Value, key: &str| c.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    !crate::pods::ended(pod)
        && conditions.into_iter().flatten().any(|c| text(c, "type") == "Ready" && text(c, "status") == "True")
}

/// The port of a pod that a port of a service leads to.
fn target_port(service: &Value, pod: &Value, port: u16) -> Result<u16, String> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let mine = ports.into_iter().flatten().find(|p| p.get("port").and_then(Value::as_u64) == Some(port.into()));
    let mine = mine.ok_or_else(|| format!("svc/{} has no port {port}", crate::pods::name(service)))?;
    match mine.get("targetPort") {
        None => Ok(port),
        Some(Value::String(name)) => {
            let ports = crate::pods::containers(pod).filter_map(|c| c.get("ports")?.as_array()).flatten();
            let mut named = ports.filter(|p| p.get("name").and_then(Value::as_str) == Some(name));
            let number = named.next().and_then(|p| p.get("containerPort")?.as_u64());
            let number = number.and_then(|n| u16::try_from(n).ok());
            number.ok_or_else(|| format!("{} has no port named {name}", crate::pods::name(pod)))
        }
        Some(number) => {
            let number = number.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
            number.ok_or_else(|| format!("svc/{} has no port {port}", crate::pods::name(service)))
        }
    }
}

/// One sentence for whatever a client may meet.
fn problem(url: &str, error: &kube::Error) -> Problem {
    match error {
        kube::Error::Api(status) => {
            let message = match status.code {
                401 => format!("the API server at {url} does not know who you are: {}", status.message),
                403 => format!("not allowed: {}", status.message),
                _ if status.message.is_empty() => format!("the API server at {url} answers status {}", status.code),
                _ => status.message.clone(),
            };
            Problem { status: Some(status.code), message }
        }
        kube::Error::SerdeError(error) => {
            Problem { status: None, message: format!("{url} answers what is no Kubernetes API: {error}") }
        }
        error => {
            Problem { status: None, message: format!("cannot reach the API server at {url}: {}", innermost(error)) }
        }
    }
}

/// The error that caused all others, which says what is wrong.
fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(path_of("v1", "pods", Some("a"), Some("b")), "/api/v1/namespaces/a/pods/b");
        assert_eq!(path_of("apps/v1", "deployments", None, None), "/apis/apps/v1/deployments");
        assert_eq!(plural("NetworkPolicy"), "networkpolicies");
        assert_eq!(plural("ClusterRole"), "clusterroles");
        assert_eq!(form(&[("labelSelector", "a/b=c,d")]), "labelSelector=a%2Fb%3Dc%2Cd");
    }

    #[test]
    fn ports_of_services() {
        let service = json!({ "metadata": { "name": "s" }, "spec": { "ports": [
            { "port": 443, "targetPort": "https" }, { "port": 80, "targetPort": 8080 }, { "port": 81 },
        ] } });
        let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [
            { "name": "c", "ports": [{ "name": "https", "containerPort": 8443 }] },
        ] } });
        assert_eq!(target_port(&service, &pod, 443), Ok(8443));
        assert_eq!(target_port(&service, &pod, 80), Ok(8080));
        assert_eq!(target_port(&service, &pod, 81), Ok(81));
        assert_eq!(target_port(&service, &json!({}), 443), Err(" has no port named https".into()));
        assert_eq!(target_port(&service, &pod, 1), Err("svc/s has no port 1".into()));
    }
}
