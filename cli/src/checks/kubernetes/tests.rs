use super::*;
use crate::args::CheckOutput;
use crate::check::anchor;
use crate::checks::tests::{Fake, healthy, pod};
use base64::Engine;
use serde_json::json;
use std::collections::BTreeSet;

/// An API server that has these objects.
#[derive(Clone)]
struct Objects {
    version: (u32, u32),
    objects: Vec<Value>,
    forbidden: Vec<&'static str>,
}

fn path(object: &Value, scoped: bool) -> String {
    let scope = Some(namespace(object)).filter(|namespace| scoped && !namespace.is_empty());
    path_of(text(object, "/apiVersion"), &plural(text(object, "/kind")), scope, None)
}

impl ApiServer for Objects {
    async fn version(&self) -> Result<(u32, u32, String), Problem> {
        Ok((self.version.0, self.version.1, format!("v{}.{}.0", self.version.0, self.version.1)))
    }

    async fn find(&self, wanted: &str) -> Result<Option<Value>, Problem> {
        let found = self.objects.iter().find(|o| format!("{}/{}", path(o, true), name(o)) == wanted);
        Ok(found.cloned())
    }

    async fn list(&self, wanted: &str) -> Result<Vec<Value>, Problem> {
        let in_it = |o: &&Value| path(o, true) == wanted || path(o, false) == wanted;
        Ok(self.objects.iter().filter(in_it).cloned().collect())
    }

    async fn may(&self, _: &str, _: &str, resource: &str) -> Result<bool, Problem> {
        Ok(!self.forbidden.contains(&resource))
    }
}

fn options(proxy_only: bool) -> Options {
    let control = "weft".to_owned();
    Options { control, namespace: None, proxy_only, linkerd_cni: false, kubernetes: true }
}

fn runner(output: CheckOutput) -> Runner {
    Runner::collecting(output)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A cluster on which nothing is installed.
fn empty() -> Objects {
    let now = OffsetDateTime::now_utc();
    let time = now.format(&time::format_description::well_known::Rfc3339).unwrap();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "node1", "namespace": "kube-node-lease" }, "spec": { "renewTime": time },
    });
    Objects { version: (1, 36), objects: vec![lease], forbidden: Vec::new() }
}

/// A cluster on which everything is well.
fn installed() -> (Objects, Fake) {
    let cluster = healthy(OffsetDateTime::now_utc());
    let mut server = empty();
    let mut objects = wanted_definitions().unwrap();
    objects.extend(expected("weft").unwrap());
    let authority = trust::generate(OffsetDateTime::now_utc()).unwrap();
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    for object in &mut objects {
        match text(object, "/kind").to_owned().as_str() {
            "Deployment" => {
                object["spec"]["replicas"] = 2.into();
                object["spec"]["template"]["spec"]["affinity"] = json!({ "podAntiAffinity": {} });
                object["status"] = json!({ "updatedReplicas": 2, "readyReplicas": 2 });
            }
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
                object["webhooks"][0]["clientConfig"]["caBundle"] = encode(&authority.anchor_pem).into();
                object["webhooks"][0]["failurePolicy"] = "Fail".into();
            }
            _ => {}
        }
    }
    objects.push(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "weft" } }));
    objects.push(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": WEBHOOK_SECRET, "namespace": "weft" },
        "data": { "tls.crt": encode(&authority.issuer_pem) },
    }));
    let anchors = cluster.objects["configmaps"][0].clone();
    let mut map = json!({ "apiVersion": "v1", "kind": "ConfigMap" });
    map["metadata"] = anchors["metadata"].clone();
    map["data"] = anchors["data"].clone();
    objects.push(map);
    for component in COMPONENTS {
        let mut pod = pod("weft", component, true);
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["labels"][names::LABEL_COMPONENT] = component.trim_start_matches("weft-").into();
        objects.push(pod);
    }
    server.objects.extend(objects);
    (server, cluster)
}

fn check(server: &Objects, cluster: &Fake, proxy_only: bool, output: CheckOutput) -> (bool, Runner) {
    let mut runner = runner(output);
    block_on(async {
        let server = connect(&mut runner, Ok(server.clone())).await.unwrap();
        run(&mut runner, &server, cluster, &options(proxy_only)).await;
    });
    let success = runner.finish();
    (success, runner)
}

#[test]
fn a_healthy_cluster() {
    let (server, mut cluster) = installed();
    let (success, runner) = check(&server, &cluster, false, CheckOutput::Short);
    assert_eq!(runner.text(), "Status check results are √\n");
    assert!(success);
    // Pods of the data plane know the trust anchors by their hash.
    let anchors = cluster.objects["configmaps"][0]["data"][names::TRUST_ROOTS_KEY].as_str().unwrap().to_owned();
    for pod in cluster.objects.get_mut("pods").unwrap() {
        pod["metadata"]["annotations"][inject::ANNOTATION_TRUST_ROOT] = inject::trust_root_sha256(&anchors).into();
    }
    let (success, runner) = check(&server, &cluster, true, CheckOutput::Short);
    assert_eq!(runner.text(), "Status check results are √\n");
    assert!(success);
}

#[test]
fn before_an_installation() {
    let before = |server: &Objects| {
        let mut runner = runner(CheckOutput::Short);
        block_on(before_install(&mut runner, server, &options(false)));
        (runner.finish(), runner.text().to_owned())
    };
    let (success, text) = before(&empty());
    assert!(success && text == "Status check results are √\n", "{text}");
    let mut server = empty();
    server.forbidden = vec!["clusterroles"];
    server.objects.push(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "weft" } }));
    server.objects.push(json!({
        "apiVersion": RBAC, "kind": "ClusterRole",
        "metadata": { "name": "left", "labels": { names::LABEL_CONTROL_PLANE_NS: "weft" } },
    }));
    server.objects.push(json!({
        "apiVersion": "policy/v1beta1", "kind": "PodSecurityPolicie", "metadata": { "name": "p" },
        "spec": { "allowedCapabilities": ["NET_RAW"] },
    }));
    server.objects[0]["spec"]["renewTime"] = "2020-01-01T00:00:00.000000Z".into();
    let (success, text) = before(&server);
    assert!(!success);
    for expected in [
        "the namespace weft exists already",
        "you may not create clusterroles",
        "the clock of node1 and that of this machine differ by",
        "left is there already",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

/// As [`installed`], with a plugin that redirects.
fn installed_with_cni() -> (Objects, Fake) {
    let (mut server, cluster) = installed();
    server.objects.extend(cni::tests::installed());
    let config = server.objects.iter_mut().find(|o| text(o, "/kind") == "ConfigMap" && name(o) == CONFIG).unwrap();
    config["data"]["values"] = "cniEnabled: true\n".into();
    (server, cluster)
}

#[test]
fn the_cni_plugin_is_checked_where_it_redirects() {
    let (server, cluster) = installed_with_cni();
    let (ok, runner) = check(&server, &cluster, false, CheckOutput::Table);
    assert!(ok && runner.text().contains("√ cni plugin pod is running on all nodes"), "{}", runner.text());
    let (without, cluster) = installed();
    assert!(!check(&without, &cluster, false, CheckOutput::Table).1.text().contains("cni plugin"));
    for kind in ["ClusterRole", "ClusterRoleBinding", "ServiceAccount", "DaemonSet"] {
        let mut server = server.clone();
        server.objects.retain(|o| text(o, "/kind") != kind || name(o) != "weft-cni");
        let (ok, runner) = check(&server, &cluster, false, CheckOutput::Short);
        assert!(!ok && runner.text().contains(&format!("there is no {kind} weft-cni")), "{}", runner.text());
    }
    let mut waiting = server;
    for object in waiting.objects.iter_mut().filter(|o| text(o, "/kind") == "DaemonSet") {
        object["status"]["numberReady"] = 1.into();
    }
    let mut pod = pod("weft-cni", "weft-cni", false);
    (pod["apiVersion"], pod["kind"]) = ("v1".into(), "Pod".into());
    waiting.objects.push(pod);
    let (ok, runner) = check(&waiting, &cluster, false, CheckOutput::Short);
    assert!(!ok && runner.text().contains("ready on 1 of 2 nodes: weft-cni-"), "{}", runner.text());
}

#[test]
fn each_fault_is_named() {
    type Change = fn(&mut Objects);
    fn without(server: &mut Objects, kind: &str, gone: &str) {
        server.objects.retain(|o| text(o, "/kind") != kind || name(o) != gone);
    }
    fn object<'a>(server: &'a mut Objects, kind: &str, wanted: &str) -> &'a mut Value {
        server.objects.iter_mut().find(|o| text(o, "/kind") == kind && name(o) == wanted).unwrap()
    }
    let cases: [(Change, bool, &str); 14] = [
        (|s| without(s, "Namespace", "weft"), false, "there is no namespace weft"),
        (|s| without(s, "ClusterRole", "weft-weft-injector"), false, "weft-weft-injector is missing"),
        (
            |s| without(s, "CustomResourceDefinition", "servers.policy.linkerd.io"),
            false,
            "servers.policy.linkerd.io is",
        ),
        (
            |s| object(s, "CustomResourceDefinition", "servers.policy.linkerd.io")["spec"]["versions"] = json!([]),
            false,
            "servers.policy.linkerd.io has no version v1beta1",
        ),
        (|s| without(s, "ConfigMap", CONFIG), false, "there is no ConfigMap weft-config"),
        (
            |s| object(s, "Deployment", "weft-identity")["status"] = json!({ "updatedReplicas": 1 }),
            false,
            "weft-identity has 1 of 2 pods",
        ),
        (
            |s| {
                object(s, "Pod", "weft-metrics-abc-12345")["status"]["conditions"] =
                    json!([{ "type": "PodScheduled", "reason": "Unschedulable", "message": "no node" }]);
            },
            false,
            "weft-metrics-abc-12345: no node",
        ),
        (
            |s| object(s, "Pod", "weft-injector-abc-12345")["status"]["conditions"] = json!([]),
            false,
            "weft-injector-abc-12345 is not ready",
        ),
        (|s| without(s, "Secret", WEBHOOK_SECRET), false, "has no certificate yet"),
        (
            |s| {
                let webhook = object(s, "ValidatingWebhookConfiguration", "weft-validator-webhook-config");
                webhook["webhooks"][0]["clientConfig"]["caBundle"] = "".into();
            },
            false,
            "weft-validator-webhook-config has no authority of certificates yet",
        ),
        (
            |s| {
                let webhook = object(s, "MutatingWebhookConfiguration", "weft-injector-webhook-config");
                webhook["webhooks"][0]["failurePolicy"] = "Ignore".into();
            },
            true,
            "the failurePolicy of weft-injector-webhook-config is Ignore",
        ),
        (
            |s| object(s, "ConfigMap", CONFIG)["data"]["values"] = "clusterNetworks: 10.0.0.0/8,x".into(),
            true,
            "clusterNetworks: x is not a network",
        ),
        (
            |s| {
                s.objects.push(json!({
                    "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node2" },
                    "spec": { "podCIDR": "203.0.113.0/24", "podCIDRs": ["203.0.113.0/24", "2001:db8::/64"] },
                }));
            },
            false,
            "203.0.113.0/24 of node2 is in none of the networks of the cluster",
        ),
        (
            |s| {
                let pod = |name: &str, ip: &str, host: bool| {
                    json!({
                        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "other" },
                        "spec": { "hostNetwork": host }, "status": { "podIP": ip, "podIPs": [{ "ip": ip }] },
                    })
                };
                s.objects.push(pod("on-host", "203.0.113.6", true));
                s.objects.push(pod("inside", "10.1.2.3", false));
                s.objects.push(pod("outside", "203.0.113.7", false));
            },
            false,
            "203.0.113.7 of outside is in none of the networks of the cluster",
        ),
    ];
    for (change, success, expected) in cases {
        let (mut server, cluster) = installed();
        change(&mut server);
        let (ok, runner) = check(&server, &cluster, false, CheckOutput::Short);
        assert!(runner.text().contains(expected), "{expected}: {}", runner.text());
        assert_eq!(ok, success, "{expected}");
    }
    let (server, cluster) = installed();
    let (ok, runner) = check(&server, &cluster, true, CheckOutput::Short);
    assert!(ok && runner.text().contains("has other trust anchors"), "{}", runner.text());
    let mut old = runner_of_version((1, 19));
    assert!(!old.finish() && old.text().contains("v1.19.0 is older than 1.20"));
}

fn runner_of_version(version: (u32, u32)) -> Runner {
    let mut runner = runner(CheckOutput::Short);
    let connected = block_on(connect(&mut runner, Ok(Objects { version, ..empty() })));
    assert!(connected.is_none());
    runner
}

/// Whatever fails, its hint leads somewhere.
#[test]
fn every_check_has_a_section() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/checks.md");
    let page = std::fs::read_to_string(page).unwrap();
    let sections: BTreeSet<String> = page.lines().filter_map(|line| line.strip_prefix("### ")).map(anchor).collect();
    let (server, cluster) = installed_with_cni();
    let mut ran = BTreeSet::new();
    for proxy_only in [false, true] {
        ran.extend(check(&server, &cluster, proxy_only, CheckOutput::Table).1.descriptions().map(anchor));
    }
    let mut runner = runner(CheckOutput::Table);
    let options = Options { namespace: Some("emojivoto".into()), ..options(false) };
    block_on(async {
        before_install(&mut runner, &empty(), &options).await;
        crate::checks::run(&mut runner, &cluster, &options).await;
    });
    ran.extend(runner.descriptions().map(anchor));
    let missing: Vec<_> = ran.difference(&sections).collect();
    assert!(missing.is_empty(), "docs/checks.md has no section about {missing:?}");
    let unknown: Vec<_> = sections.difference(&ran).collect();
    assert!(unknown.is_empty(), "docs/checks.md is about checks that there are not: {unknown:?}");
}
