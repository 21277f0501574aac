//! Pods that were made while the plugin was not installed yet, as after a restart of the node: their validators have ended
//! with exit code 95, and would for ever, since a pod keeps its network. They are deleted, and whoever made them makes
//! them anew.
//!
//! A pod for which that would be no better is only told about, once: one that nobody would make anew, one of another mesh,
//! and one that was made since, whose network leaves its validator nothing to find out with.

use crate::plugin;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use tokio::time::{Instant, sleep, timeout};
use weft_controller::kubernetes::{Api, Error, Resource};
use weft_core::names;
use weft_proxy::validate::NOT_REDIRECTED;

const PODS: Resource = Resource { api_version: "v1", plural: "pods" };
const EVENTS: Resource = Resource { api_version: "v1", plural: "events" };
/// The reason of events, as Linkerd has it.
pub const REASON: &str = "LinkerdCNINotConfigured";
/// A watch lasts this long; then everything is read again.
const WATCH: Duration = Duration::from_secs(120);
/// A pod that was made this long after the plugin was installed may still have been made without it: the runtime reads
/// its configuration when it likes to, and the API server has a clock of its own.
const GRACE: Duration = Duration::from_secs(10);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);

/// What to repair.
pub struct Repair {
    /// The API server.
    pub api: Api,
    /// The node whose pods are repaired.
    pub node: String,
    /// Between two pods that are deleted.
    pub pause: Duration,
    /// Since when the plugin is installed; while it is not, the next pod would be no better.
    pub configured: Box<dyn Fn() -> Option<OffsetDateTime> + Send + Sync>,
}

impl std::fmt::Debug for Repair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repair").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Repairs for ever.
pub async fn run(repair: Repair) {
    let mut work = Work { repair, deleted: None, told: HashSet::new() };
    let mut failing = false;
    loop {
        match work.round().await {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "pods of this node are not repaired");
                }
                failing = true;
                sleep(RETRY).await;
            }
        }
    }
}

struct Work {
    repair: Repair,
    /// When the last one was.
    deleted: Option<Instant>,
    /// Pods that were told about, by uid.
    told: HashSet<String>,
}

impl Work {
    /// Looks at all pods of the node, then at those that change.
    async fn round(&mut self) -> Result<(), Error> {
        let node = format!("spec.nodeName={}", self.repair.node);
        let query = [("fieldSelector", node.as_str()), ("labelSelector", names::LABEL_CONTROL_PLANE_NS)];
        let list = self.repair.api.list(&PODS.all(), &query, false).await?;
        let pods = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        self.told.retain(|uid| pods.iter().any(|pod| text(pod, "/metadata/uid") == uid));
        for pod in &pods {
            self.consider(pod).await?;
        }
        let version = text(&list, "/metadata/resourceVersion").to_owned();
        let seconds = WATCH.as_secs().to_string();
        let more = [("watch", "true"), ("resourceVersion", version.as_str()), ("timeoutSeconds", seconds.as_str())];
        let mut lines = self.repair.api.watch(&PODS.all(), &[&query[..], &more].concat(), false).await?;
        while let Some(line) = timeout(WATCH + RETRY, lines.next()).await.unwrap_or(Ok(None))? {
            let event: Value =
                serde_json::from_slice(&line).map_err(|error| Error::Malformed(format!("not JSON: {error}")))?;
            match text(&event, "/type") {
                "ADDED" | "MODIFIED" => self.consider(event.get("object").unwrap_or(&Value::Null)).await?,
                // It has forgotten what was before.
                "ERROR" => break,
                _ => {}
            }
        }
        // A server that ends watches at once is not asked all the time.
        sleep(self.repair.pause).await;
        Ok(())
    }

    async fn consider(&mut self, pod: &Value) -> Result<(), Error> {
        let ending = pod.pointer("/metadata/deletionTimestamp").is_some();
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let uid = text(pod, "/metadata/uid");
        if ending || !unredirected(pod) || self.told.contains(uid) {
            return Ok(());
        }
        let Some(since) = (self.repair.configured)() else { return Ok(()) };
        if let Some(message) = hopeless(pod, since) {
            self.told.insert(uid.to_owned());
            self.tell(pod, message).await;
            return Ok(());
        }
        if let Some(last) = self.deleted {
            sleep(self.repair.pause.saturating_sub(last.elapsed())).await;
        }
        self.tell(pod, "The CNI plugin has not redirected the traffic of this pod; it is deleted to be made anew.")
            .await;
        match self.repair.api.delete(&format!("{}/{name}", PODS.within(namespace)), uid).await {
            Ok(_) => {
                tracing::info!(namespace, pod = name, "deleted: its traffic was not redirected");
                self.deleted = Some(Instant::now());
                Ok(())
            }
            // It has gone, or there is another one of its name.
            Err(Error::Status { code: 404 | 409, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Events are a courtesy: without them everything is done as well.
    async fn tell(&self, pod: &Value, message: &str) {
        let path = EVENTS.within(text(pod, "/metadata/namespace"));
        if let Err(error) = self.repair.api.create(&path, &event(pod, message, OffsetDateTime::now_utc())).await {
            tracing::debug!(%error, "an event is not written");
        }
    }
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Why it is not deleted: what would be made in its place would be no better, or nothing would.
fn hopeless(pod: &Value, since: OffsetDateTime) -> Option<&'static str> {
    if plugin::arguments(pod).is_none() {
        return Some(
            "The traffic of this pod is not redirected; weft's CNI plugin does that only for pods that weft meshed.",
        );
    }
    // One that does not say when it was made was not made before.
    let made = OffsetDateTime::parse(text(pod, "/metadata/creationTimestamp"), &Rfc3339);
    if !made.is_ok_and(|made| made <= since + GRACE) {
        return Some(
            "The traffic of this pod is not redirected, although the CNI plugin was installed when it was made; \
             the log of linkerd-network-validator says why.",
        );
    }
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let owned = owners.into_iter().flatten().any(|owner| owner.get("controller") == Some(&Value::Bool(true)));
    (!owned).then_some("The CNI plugin has not redirected the traffic of this pod; delete it and make it anew.")
}

/// Whether its validator has found out, now or when it ran last, that the pod's traffic is not redirected.
fn unredirected(pod: &Value) -> bool {
    let statuses = pod.pointer("/status/initContainerStatuses").and_then(Value::as_array);
    let mut validators = statuses.into_iter().flatten().filter(|s| text(s, "/name") == names::VALIDATOR_CONTAINER);
    validators.any(|status| {
        let code = |path: &str| status.pointer(path).and_then(Value::as_u64);
        // Where it has run well since, the one before does not count.
        let last = code("/state/terminated/exitCode").or(code("/lastState/terminated/exitCode"));
        last == Some(NOT_REDIRECTED.into())
    })
}

fn event(pod: &Value, message: &str, now: OffsetDateTime) -> Value {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    // Only a year beyond 9999 could not be written.
    let time = now.format(&format).unwrap_or_default();
    let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "namespace": namespace, "name": format!("{name}.{:x}", now.unix_timestamp_nanos()) },
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": namespace,
            "name": name,
            "uid": text(pod, "/metadata/uid"),
        },
        "type": "Warning",
        "reason": REASON,
        "message": message,
        "source": { "component": crate::NAME },
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_the_validator_counts() {
        let pod = |name: &str, state: Value, last: Value| json!({ "status": { "initContainerStatuses": [{ "name": name, "state": state, "lastState": last }] } });
        let ended = |code: u64| json!({ "terminated": { "exitCode": code } });
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        let validator = names::VALIDATOR_CONTAINER;
        assert!(unredirected(&pod(validator, ended(95), json!({}))));
        assert!(unredirected(&pod(validator, waiting.clone(), ended(95))));
        assert!(!unredirected(&pod(validator, ended(0), ended(95))));
        assert!(!unredirected(&pod(validator, waiting, ended(1))));
        assert!(!unredirected(&pod("migrate", ended(95), json!({}))));
        assert!(!unredirected(&json!({})));
    }
}
