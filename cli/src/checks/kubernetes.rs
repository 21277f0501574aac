//! Checks that are only about Kubernetes: before and after `weft install`.

use super::{
    Cluster, Options, api_checks, cni, data_plane, decode, identity, name, namespace, same_version, sanity, text,
    versions,
};
use crate::chart::{self, RESOURCES, Release};
use crate::check::{Runner, Severity};
use crate::install::CONFIG;
use crate::kubernetes::{Kubernetes, Problem, path_of, plural};
use crate::pods::{ended, meshed};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::Value;
use std::future::Future;
use time::OffsetDateTime;
use weft_core::{inject, names, trust};

/// The oldest version of Kubernetes that the control plane works with.
const MINIMUM: (u32, u32) = (1, 20);
/// How far the clocks of nodes and of this machine may differ, in seconds: a node says that it lives every ten.
const MAX_SKEW: i64 = 70;
/// The webhooks and the components that a control plane has.
const WEBHOOKS: [(&str, &str, &str); 2] = [
    ("proxy-injector", "MutatingWebhookConfiguration", "weft-injector-webhook-config"),
    ("policy-validator", "ValidatingWebhookConfiguration", "weft-validator-webhook-config"),
];
const COMPONENTS: [&str; 4] = ["weft-destination", "weft-identity", "weft-injector", "weft-metrics"];
/// Secret with the certificate of the webhooks.
const WEBHOOK_SECRET: &str = "weft-injector-k8s-tls";
const ADMISSION: &str = "admissionregistration.k8s.io/v1";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const EXTENSIONS: &str = "apiextensions.k8s.io/v1";

/// What the checks ask the API server.
pub trait ApiServer {
    /// Major, minor, and as it writes it.
    fn version(&self) -> impl Future<Output = Result<(u32, u32, String), Problem>>;
    /// The object of a path.
    fn find(&self, path: &str) -> impl Future<Output = Result<Option<Value>, Problem>>;
    /// Objects of a path.
    fn list(&self, path: &str) -> impl Future<Output = Result<Vec<Value>, Problem>>;
    /// Whether something may be done.
    fn may(&self, verb: &str, group: &str, resource: &str) -> impl Future<Output = Result<bool, Problem>>;
}

impl ApiServer for Kubernetes {
    async fn version(&self) -> Result<(u32, u32, String), Problem> {
        Kubernetes::version(self).await
    }

    async fn find(&self, path: &str) -> Result<Option<Value>, Problem> {
        Kubernetes::find(self, path).await
    }

    async fn list(&self, path: &str) -> Result<Vec<Value>, Problem> {
        Kubernetes::list(self, path, None).await
    }

    async fn may(&self, verb: &str, group: &str, resource: &str) -> Result<bool, Problem> {
        Kubernetes::may(self, verb, group, resource, None).await
    }
}

fn said(problem: Problem) -> String {
    problem.message
}

/// The first checks: whether there is a cluster, and one that is new enough.
pub async fn connect<A: ApiServer + Clone>(runner: &mut Runner, found: Result<A, String>) -> Option<A> {
    runner.category("kubernetes-api");
    let hint = "`kubectl config view`";
    let server = runner.check("can initialize the client", Severity::FATAL, hint, async || found.clone()).await?;
    let hint = "`kubectl version`";
    let version = runner
        .check("can query the Kubernetes API", Severity::FATAL, hint, async || server.version().await.map_err(said))
        .await?;
    runner.category("kubernetes-version");
    runner
        .check("is running the minimum Kubernetes API version", Severity::FATAL, hint, async || new_enough(&version))
        .await?;
    Some(server)
}

/// Whether a version of Kubernetes (major, minor, and as it writes it) is one that the control plane works with.
///
/// # Errors
/// That it is not.
pub fn new_enough((major, minor, shown): &(u32, u32, String)) -> Result<(), String> {
    match (*major, *minor) >= MINIMUM {
        true => Ok(()),
        false => Err(format!("Kubernetes {shown} is older than {}.{}", MINIMUM.0, MINIMUM.1)),
    }
}

/// Whether the control plane can be installed: `weft check --pre`.
pub async fn before_install(runner: &mut Runner, server: &impl ApiServer, options: &Options) {
    let control = options.control.as_str();
    runner.category("pre-kubernetes-setup");
    runner
        .check("control plane namespace does not already exist", Severity::ERROR, "`weft uninstall`", async || {
            let found = server.find(&path_of("v1", "namespaces", None, Some(control))).await.map_err(said)?;
            match found {
                None => Ok(()),
                Some(_) => Err(format!("the namespace {control} exists already")),
            }
        })
        .await;
    for (kind, group) in [
        ("Namespaces", ""),
        ("ClusterRoles", "rbac.authorization.k8s.io"),
        ("ClusterRoleBindings", "rbac.authorization.k8s.io"),
        ("CustomResourceDefinitions", "apiextensions.k8s.io"),
        ("MutatingWebhookConfigurations", "admissionregistration.k8s.io"),
        ("ValidatingWebhookConfigurations", "admissionregistration.k8s.io"),
        ("ServiceAccounts", ""),
        ("Roles", "rbac.authorization.k8s.io"),
        ("RoleBindings", "rbac.authorization.k8s.io"),
        ("Services", ""),
        ("Deployments", "apps"),
        ("ConfigMaps", ""),
        ("Secrets", ""),
    ] {
        let resource = kind.to_ascii_lowercase();
        let hint = format!("`kubectl auth can-i create {resource}`");
        runner
            .check(&format!("can create {kind}"), Severity::ERROR, &hint, async || {
                match server.may("create", group, &resource).await.map_err(said)? {
                    true => Ok(()),
                    false => Err(format!("you may not create {resource}")),
                }
            })
            .await;
    }
    runner.check("no clock skew detected", Severity::ERROR, "", async || clock_skew(server).await).await;
    if !options.linkerd_cni {
        runner.category("pre-kubernetes-capability");
        for capability in ["NET_ADMIN", "NET_RAW"] {
            let hint = "`kubectl get podsecuritypolicies`";
            runner
                .check(&format!("has {capability} capability"), Severity::WARNING, hint, async || {
                    has_capability(server, capability).await
                })
                .await;
        }
    }
    runner.category("pre-weft-global-resources");
    for (version, kind) in [
        (RBAC, "ClusterRole"),
        (RBAC, "ClusterRoleBinding"),
        (EXTENSIONS, "CustomResourceDefinition"),
        (ADMISSION, "MutatingWebhookConfiguration"),
        (ADMISSION, "ValidatingWebhookConfiguration"),
    ] {
        let hint = "`weft uninstall`";
        runner
            .check(&format!("no {kind}s exist"), Severity::ERROR, hint, async || {
                let found = mine(server, version, kind, control).await?;
                match found.first() {
                    None => Ok(()),
                    Some(object) => Err(format!("{} is there already", name(object))),
                }
            })
            .await;
    }
    if options.linkerd_cni {
        cni::plugin(runner, server).await;
    }
}

/// The definitions of the mesh's resources: `weft check --crds`.
pub async fn definitions(runner: &mut Runner, server: &impl ApiServer) {
    runner.category("weft-crd");
    let hint = "`weft install --crds`";
    runner
        .check("control plane CustomResourceDefinitions exist", Severity::FATAL, hint, async || {
            for wanted in wanted_definitions()? {
                let path = path_of(EXTENSIONS, "customresourcedefinitions", None, Some(name(&wanted)));
                let found = server.find(&path).await.map_err(said)?;
                let found = found.ok_or_else(|| format!("{} is missing", name(&wanted)))?;
                let versions = |object: &Value| -> Vec<String> {
                    let list = object.pointer("/spec/versions").and_then(Value::as_array);
                    list.into_iter().flatten().map(|version| text(version, "/name").to_owned()).collect()
                };
                let there = versions(&found);
                if let Some(missing) = versions(&wanted).iter().find(|version| !there.contains(version)) {
                    return Err(format!("{} has no version {missing}", name(&wanted)));
                }
            }
            Ok(())
        })
        .await;
}

fn wanted_definitions() -> Result<Vec<Value>, String> {
    let release = Release { namespace: names::CONTROL_NAMESPACE, api_versions: &[] };
    let values = Value::Object(serde_json::Map::new());
    RESOURCES.render(&values, &release).map_err(|e| e.message)
}

/// Whether the installed control plane works, and the data plane: `weft check`.
pub async fn run(runner: &mut Runner, server: &impl ApiServer, cluster: &impl Cluster, options: &Options) {
    let control = options.control.as_str();
    if !options.proxy_only {
        objects(runner, server, options).await;
        definitions(runner, server).await;
    }
    if cni::enabled(server, control).await {
        cni::plugin(runner, server).await;
    }
    existence(runner, server, options).await;
    if runner.stopped() {
        return;
    }
    if !options.proxy_only {
        let hint = "`weft upgrade --identity-issuer-certificate-file`";
        identity(runner, cluster, control, hint, OffsetDateTime::now_utc()).await;
        webhooks(runner, server, control).await;
    } else {
        trusted(runner, server, cluster, options).await;
    }
    let answer = api_checks(runner, cluster, options).await;
    if !options.proxy_only {
        versions(runner, answer.as_ref()).await;
        control_proxies(runner, server, options).await;
        high_availability(runner, server, control).await;
    }
    data_plane(runner, cluster, options).await;
}

async fn mine(server: &impl ApiServer, version: &str, kind: &str, control: &str) -> Result<Vec<Value>, String> {
    let objects = server.list(&path_of(version, &plural(kind), None, None)).await.map_err(said)?;
    let belongs = |object: &Value| {
        let labels = object.pointer("/metadata/labels");
        labels.and_then(|l| l.get(names::LABEL_CONTROL_PLANE_NS)).and_then(Value::as_str) == Some(control)
    };
    Ok(objects.into_iter().filter(belongs).collect())
}

async fn objects(runner: &mut Runner, server: &impl ApiServer, options: &Options) {
    let control = options.control.as_str();
    runner.category("weft-config");
    let hint = "`weft install`";
    runner
        .check("control plane Namespace exists", Severity::FATAL, hint, async || {
            match server.find(&path_of("v1", "namespaces", None, Some(control))).await.map_err(said)? {
                Some(_) => Ok(()),
                None => Err(format!("there is no namespace {control}")),
            }
        })
        .await;
    let wanted = expected(control);
    for (version, kind, scope) in [
        (RBAC, "ClusterRole", None),
        (RBAC, "ClusterRoleBinding", None),
        ("v1", "ServiceAccount", Some(control)),
        (ADMISSION, "MutatingWebhookConfiguration", None),
        (ADMISSION, "ValidatingWebhookConfiguration", None),
    ] {
        runner
            .check(&format!("control plane {kind}s exist"), Severity::FATAL, hint, async || {
                for object in wanted.clone()?.iter().filter(|o| text(o, "/kind") == kind) {
                    let path = path_of(version, &plural(kind), scope, Some(name(object)));
                    if server.find(&path).await.map_err(said)?.is_none() {
                        return Err(format!("{} is missing", name(object)));
                    }
                }
                Ok(())
            })
            .await;
    }
}

/// The objects that a control plane has whatever its settings are.
fn expected(control: &str) -> Result<Vec<Value>, String> {
    let mut values = chart::CONTROL_PLANE.defaults().map_err(|e| e.message)?;
    // Neither anchors nor issuer are of interest here, so none are needed.
    values["identity"]["externalCA"] = true.into();
    values["identity"]["issuer"]["scheme"] = "kubernetes.io/tls".into();
    let release = Release { namespace: control, api_versions: &[] };
    chart::CONTROL_PLANE.render(&values, &release).map_err(|e| e.message)
}

async fn existence(runner: &mut Runner, server: &impl ApiServer, options: &Options) {
    let control = options.control.as_str();
    runner.category("weft-existence");
    runner
        .check(&format!("'{CONFIG}' config map exists"), Severity::FATAL, "`weft install`", async || {
            let path = path_of("v1", "configmaps", Some(control), Some(CONFIG));
            match server.find(&path).await.map_err(said)? {
                Some(_) => Ok(()),
                None => Err(format!("there is no ConfigMap {CONFIG} in {control}")),
            }
        })
        .await;
    let hint = format!("`kubectl describe replicasets -n {control}`");
    runner
        .check("control plane replica sets are ready", Severity::FATAL_RETRY, &hint, async || {
            for deployment in COMPONENTS {
                let path = path_of("apps/v1", "deployments", Some(control), Some(deployment));
                let found = server.find(&path).await.map_err(said)?;
                let found = found.ok_or_else(|| format!("there is no Deployment {deployment}"))?;
                let count = |path: &str| found.pointer(path).and_then(Value::as_u64).unwrap_or_default();
                // Until the controller has seen the newest version, the numbers are those of the one before.
                let seen = count("/status/observedGeneration") >= count("/metadata/generation");
                let (wanted, updated) = (count("/spec/replicas"), count("/status/updatedReplicas"));
                if !seen || updated < wanted {
                    let failed = condition(&found, "ReplicaFailure").map(|c| format!(": {}", text(c, "/message")));
                    let why = failed.unwrap_or_default();
                    return Err(format!("{deployment} has {updated} of {wanted} pods{why}"));
                }
            }
            Ok(())
        })
        .await;
    let hint = format!("`kubectl describe pods -n {control}`");
    runner
        .check("no unschedulable pods", Severity::FATAL_RETRY, &hint, async || {
            let pods = server.list(&path_of("v1", "pods", Some(control), None)).await.map_err(said)?;
            let unschedulable = pods.iter().find_map(|pod| {
                let condition = condition(pod, "PodScheduled")?;
                (text(condition, "/reason") == "Unschedulable").then(|| (pod, text(condition, "/message")))
            });
            match unschedulable {
                None => Ok(()),
                Some((pod, why)) => Err(format!("{}: {why}", name(pod))),
            }
        })
        .await;
    let hint = format!("`kubectl get pods -n {control}` and `kubectl logs -n {control} POD -c CONTAINER`");
    runner
        .check("control plane pods are ready", Severity::FATAL_RETRY, &hint, async || {
            let pods = server.list(&path_of("v1", "pods", Some(control), None)).await.map_err(said)?;
            for component in COMPONENTS {
                let label = component.trim_start_matches("weft-");
                let mut mine = pods.iter().filter(|pod| is_of(pod, label) && !ended(pod)).peekable();
                if mine.peek().is_none() {
                    return Err(format!("{component} has no pod"));
                }
                if let Some(pod) = mine.find(|pod| !super::ready(pod)) {
                    return Err(format!("{} is not ready: {}", name(pod), super::why_not_ready(pod)));
                }
            }
            Ok(())
        })
        .await;
    if !options.proxy_only {
        cluster_networks(runner, server, control).await;
    }
}

/// Whatever is not in `clusterNetworks` is unknown to proxies, so that traffic to it is in the clear.
async fn cluster_networks(runner: &mut Runner, server: &impl ApiServer, control: &str) {
    let hint = "`weft upgrade --set clusterNetworks=`";
    let networks = runner
        .check("cluster networks can be verified", Severity::WARNING, hint, async || {
            let path = path_of("v1", "configmaps", Some(control), Some(CONFIG));
            let found = server.find(&path).await.map_err(said)?;
            sanity::networks(found.as_ref().map(|map| text(map, "/data/values")).unwrap_or_default())
        })
        .await;
    let Some(networks) = networks else { return };
    for (what, kind, lists, single) in [
        ("node podCIDRs", "nodes", ["/spec/podCIDRs"], "/spec/podCIDR"),
        ("pods", "pods", ["/status/podIPs"], "/status/podIP"),
        ("services", "services", ["/spec/clusterIPs"], "/spec/clusterIP"),
    ] {
        runner
            .check(&format!("cluster networks contains all {what}"), Severity::ERROR, hint, async || {
                let objects = server.list(&path_of("v1", kind, None, None)).await.map_err(said)?;
                let on_host = |object: &Value| object.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
                for object in objects.iter().filter(|object| !on_host(object) && !ended(object)) {
                    let addresses = sanity::addresses(object, &lists, single);
                    if let Some(address) = sanity::outside(&networks, addresses.into_iter()) {
                        let whose = name(object);
                        return Err(format!("{address} of {whose} is in none of the networks of the cluster"));
                    }
                }
                Ok(())
            })
            .await;
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|condition| text(condition, "/type") == kind)
}

fn is_of(pod: &Value, component: &str) -> bool {
    let labels = pod.pointer("/metadata/labels");
    labels.and_then(|l| l.get(names::LABEL_COMPONENT)).and_then(Value::as_str) == Some(component)
}

/// The API server must trust the certificate that the webhooks show.
async fn webhooks(runner: &mut Runner, server: &impl ApiServer, control: &str) {
    runner.category("weft-webhooks-and-apisvc-tls");
    let hint = format!("`kubectl logs -n {control} deploy/weft-injector -c injector`");
    for (webhook, kind, configuration) in WEBHOOKS {
        runner
            .check(&format!("{webhook} webhook has valid cert"), Severity::FATAL_RETRY, &hint, async || {
                let path = path_of(ADMISSION, &plural(kind), None, Some(configuration));
                let found = server.find(&path).await.map_err(said)?;
                let found = found.ok_or_else(|| format!("there is no {kind} {configuration}"))?;
                let bundle = found.pointer("/webhooks/0/clientConfig/caBundle").and_then(Value::as_str);
                let bundle = bundle.and_then(decode).filter(|bundle| !bundle.trim().is_empty());
                let bundle = bundle.ok_or_else(|| format!("{configuration} has no authority of certificates yet"))?;
                let path = path_of("v1", "secrets", Some(control), Some(WEBHOOK_SECRET));
                let secret = server.find(&path).await.map_err(said)?;
                let certificate = secret.as_ref().and_then(|s| s.get("data")?.get("tls.crt")?.as_str());
                let certificate = certificate.and_then(decode);
                let certificate =
                    certificate.ok_or_else(|| format!("Secret {WEBHOOK_SECRET} has no certificate yet"))?;
                trust::check_validity(&certificate, OffsetDateTime::now_utc()).map_err(|e| e.to_string())?;
                match trust::issued_by(&certificate, &bundle) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(format!("{configuration} trusts another authority than that of its certificate")),
                    Err(error) => Err(error.to_string()),
                }
            })
            .await;
    }
}

/// Proxies have the trust anchors in their environment, as they were when the pod was made.
async fn trusted(runner: &mut Runner, server: &impl ApiServer, cluster: &impl Cluster, options: &Options) {
    runner.category("weft-identity-data-plane");
    let hint = "`kubectl rollout restart`";
    runner
        .check("data plane proxies certificate match CA", Severity::WARNING, hint, async || {
            let control = options.control.as_str();
            let path = path_of("v1", "configmaps", Some(control), Some(names::TRUST_ROOTS_CONFIG_MAP));
            let map = server.find(&path).await.map_err(said)?;
            let anchors = map.as_ref().and_then(|m| m.get("data")?.get(names::TRUST_ROOTS_KEY)?.as_str());
            let anchors = anchors.ok_or("there are no trust anchors")?;
            let wanted = inject::trust_root_sha256(anchors);
            let pods = cluster.objects("pods", options.namespace.as_deref()).await?;
            let differs = pods.iter().filter(|pod| meshed(pod) && !ended(pod)).find(|pod| {
                let annotations = pod.pointer("/metadata/annotations");
                annotations.and_then(|a| a.get(inject::ANNOTATION_TRUST_ROOT)).and_then(Value::as_str) != Some(&wanted)
            });
            match differs {
                None => Ok(()),
                Some(pod) => Err(format!("{}/{} has other trust anchors: restart it", namespace(pod), name(pod))),
            }
        })
        .await;
}

async fn control_proxies(runner: &mut Runner, server: &impl ApiServer, options: &Options) {
    let control = options.control.as_str();
    runner.category("weft-control-plane-proxy");
    let hint = format!("`kubectl logs -n {control} POD -c {}`", names::PROXY_CONTAINER);
    let pods = async || server.list(&path_of("v1", "pods", Some(control), None)).await.map_err(said);
    let of_components = |pod: &&Value| {
        !ended(pod) && COMPONENTS.iter().any(|component| is_of(pod, component.trim_start_matches("weft-")))
    };
    runner
        .check("control plane proxies are healthy", Severity::RETRY, &hint, async || {
            let pods = pods().await?;
            match pods.iter().filter(of_components).find(|pod| !meshed(pod) || !super::proxy_ready(pod)) {
                None => Ok(()),
                Some(pod) if !meshed(pod) => Err(format!("{} has no proxy", name(pod))),
                Some(pod) => Err(format!("the proxy of {} is not ready", name(pod))),
            }
        })
        .await;
    runner
        .check("control plane proxies and cli versions match", Severity::WARNING, "`weft version`", async || {
            for pod in pods().await?.iter().filter(of_components) {
                let annotations = pod.pointer("/metadata/annotations");
                let version = annotations.and_then(|a| a.get(inject::ANNOTATION_PROXY_VERSION)).and_then(Value::as_str);
                same_version(&format!("proxy of {}", name(pod)), version.unwrap_or("unknown"))?;
            }
            Ok(())
        })
        .await;
}

/// Only where it was asked for, which is seen by the rule that keeps pods of identity apart.
async fn high_availability(runner: &mut Runner, server: &impl ApiServer, control: &str) {
    let identity = server.find(&path_of("apps/v1", "deployments", Some(control), Some("weft-identity"))).await;
    let apart = |found: &Value| found.pointer("/spec/template/spec/affinity/podAntiAffinity").is_some();
    if !identity.is_ok_and(|found| found.as_ref().is_some_and(apart)) {
        return;
    }
    let ready_pods = async |deployment: &str| {
        let path = path_of("apps/v1", "deployments", Some(control), Some(deployment));
        let found = server.find(&path).await.map_err(said)?;
        let count = found.as_ref().and_then(|d| d.pointer("/status/readyReplicas")).and_then(Value::as_u64);
        Ok::<_, String>(count.unwrap_or_default())
    };
    runner.category("weft-ha-checks");
    let hint = format!("`kubectl get deployments -n {control}`");
    runner
        .check("multiple replicas of control plane pods", Severity::WARNING, &hint, async || {
            for deployment in ["weft-destination", "weft-identity", "weft-injector"] {
                let ready = ready_pods(deployment).await?;
                if ready < 2 {
                    return Err(format!("{deployment} has {ready} ready pods"));
                }
            }
            Ok(())
        })
        .await;
    runner
        .check("pods cannot get past the injector", Severity::WARNING, "`weft upgrade --ha`", async || {
            let (_, kind, configuration) = WEBHOOKS[0];
            let found =
                server.find(&path_of(ADMISSION, &plural(kind), None, Some(configuration))).await.map_err(said)?;
            let policy = found.as_ref().map(|f| text(f, "/webhooks/0/failurePolicy")).unwrap_or_default();
            match policy {
                "Fail" => Ok(()),
                policy => Err(format!("the failurePolicy of {configuration} is {policy}")),
            }
        })
        .await;
}

async fn clock_skew(server: &impl ApiServer) -> Result<(), String> {
    let leases = server.list(&path_of("coordination.k8s.io/v1", "leases", Some("kube-node-lease"), None)).await;
    let leases = leases.map_err(said)?;
    let renewed = leases.iter().filter_map(|lease| {
        let time: MicroTime = serde_json::from_value(lease.pointer("/spec/renewTime")?.clone()).ok()?;
        Some((name(lease), time.0.as_second()))
    });
    // A node that is gone says nothing about clocks.
    let Some((node, latest)) = renewed.max_by_key(|(_, time)| *time) else { return Ok(()) };
    let difference = OffsetDateTime::now_utc().unix_timestamp() - latest;
    match difference.abs() <= MAX_SKEW {
        true => Ok(()),
        false => Err(format!("the clock of {node} and that of this machine differ by {difference} s")),
    }
}

/// Pod security policies, which are gone since 1.25, may forbid it.
async fn has_capability(server: &impl ApiServer, capability: &str) -> Result<(), String> {
    let policies = match server.list(&path_of("policy/v1beta1", "podsecuritypolicies", None, None)).await {
        Ok(policies) => policies,
        Err(problem) if problem.is_absent() => return Ok(()),
        Err(problem) => return Err(problem.message),
    };
    let allows = |policy: &Value| {
        let list = policy.pointer("/spec/allowedCapabilities").and_then(Value::as_array);
        list.into_iter().flatten().any(|c| c == "*" || c == capability)
    };
    match policies.is_empty() || policies.iter().any(allows) {
        true => Ok(()),
        false => Err(format!("no PodSecurityPolicy allows {capability}, which the init containers of proxies need")),
    }
}

#[cfg(test)]
mod tests;
