//! The walk that users of a mesh know: from an empty Kubernetes cluster to a meshed application and back, with the
//! commands as people type them.

mod cni;
mod faults;
mod generated;

use std::{
    collections::BTreeMap,
    process::{Command, ExitCode},
};

use anyhow::{Context, ensure};
use base64::Engine;
use libtest_mimic::{Arguments, Trial};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use weft_e2e::{Kubernetes, binaries, manifest, run, wait_for};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let walk = || Kubernetes::up().and_then(|cluster| walk(&cluster)).map_err(|error| format!("{error:#}").into());
    let helm = || helm_gives_the_same_objects().map_err(|error| format!("{error:#}").into());
    let cni = || Kubernetes::up().and_then(|cluster| cni::walk(&cluster)).map_err(|error| format!("{error:#}").into());
    let generated = || generated::run().map_err(|error| format!("{error:#}").into());
    let trials = vec![
        Trial::test("helm_gives_the_same_objects", helm),
        Trial::test("from_an_empty_cluster_and_back", walk),
        Trial::test("without_net_admin", cni),
        Trial::test("every_change_of_a_generated_cluster_arrives", generated),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// `weft install` and `helm template` make the same of the chart, whatever is set.
fn helm_gives_the_same_objects() -> anyhow::Result<()> {
    let helm = run(&mut Command::new(manifest("e2e/kubernetes/helm.sh")))?.success()?;
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name).display().to_string();
    let install = |arguments: &[String]| -> anyhow::Result<Vec<Value>> {
        let mut command = Command::new(binaries().join("weft"));
        let text = run(command.args(["install", "--ignore-cluster", "-o", "json"]).args(arguments))?.success()?;
        serde_json::Deserializer::from_str(&text).into_iter().map(|object| Ok(object?)).collect()
    };
    let template = |chart: &str, arguments: &[String]| -> anyhow::Result<Vec<Value>> {
        let mut command = Command::new(helm.trim());
        command
            .args(["template", chart, "-n", "weft", "--api-versions", "policy/v1"])
            .arg(manifest("charts").join(chart));
        let text = run(command.args(arguments))?.success()?;
        let documents = serde_yaml_ng::Deserializer::from_str(&text).map(Value::deserialize);
        documents.filter(|document| !document.as_ref().is_ok_and(Value::is_null)).map(|object| Ok(object?)).collect()
    };

    // New certificates, to be used by both.
    let first = install(&[])?;
    let found = |kind: &str, name: &str, key: &str| -> anyhow::Result<String> {
        let object = first.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name).context("no object")?;
        Ok(object["data"][key].as_str().context("no data")?.to_owned())
    };
    let decoded = |key: &str| -> anyhow::Result<Vec<u8>> {
        Ok(base64::engine::general_purpose::STANDARD.decode(found("Secret", "weft-identity-issuer", key)?)?)
    };
    std::fs::write(file("anchors"), found("ConfigMap", "weft-identity-trust-roots", "ca-bundle.crt")?)?;
    std::fs::write(file("certificate"), decoded("crt.pem")?)?;
    std::fs::write(file("key"), decoded("key.pem")?)?;
    std::fs::write(
        file("values.yaml"),
        "podAnnotations: {a: 'true', b: \"1\"}\ntolerations: [{operator: Exists}]\nproxy: {gid: 7, logFormat: json}\n\
         nodeSelector: {kubernetes.io/os: null, zone: z}\nimagePullSecrets: [{name: s}]\npriorityClassName: p\n\
         commonLabels: {team: mesh}\nproxyInit: {skipSubnets: 10.0.0.0/8}\n",
    )?;
    let certificates = [
        format!("--set-file=identityTrustAnchorsPEM={}", file("anchors")),
        format!("--set-file=identity.issuer.tls.crtPEM={}", file("certificate")),
        format!("--set-file=identity.issuer.tls.keyPEM={}", file("key")),
    ];
    let set = "--set=controllerReplicas=2,proxy.image.version=7,clusterNetworks=10.0.0.0/8\\,fd00::/8,tolerations=null"
        .to_owned();
    let own = vec![format!("--values={}", file("values.yaml")), set];
    let redirected = vec!["--set=cniEnabled=true,proxy.uid=65534,proxy.waitBeforeExitSeconds=5".to_owned()];
    let external = vec![
        "--set=identity.issuer.scheme=kubernetes.io/tls".to_owned(),
        "--set-string=controllerImageVersion=1.10".to_owned(),
    ];
    let available = manifest("charts/weft/values-ha.yaml").display().to_string();
    let cases = [
        (vec![], vec![]),
        (vec!["--ha".to_owned()], vec![format!("--values={available}")]),
        (own.clone(), own),
        (redirected.clone(), redirected),
        (external.clone(), external),
    ];
    for (ours, theirs) in cases {
        let ours = install(&[&certificates[..], &ours].concat())?;
        let theirs =
            template("weft", &[&certificates[..], &["--set=installNamespace=true".to_owned()], &theirs].concat())?;
        same(ours, theirs)?;
    }
    same(install(&["--crds".to_owned()])?, template("weft-crds", &[])?)?;
    let set =
        "--set=destCNINetDir=/var/net.d,privileged=true,repairController.enabled=false,tolerations=null".to_owned();
    for arguments in [vec![], vec![set]] {
        let mut command = Command::new(binaries().join("weft"));
        command.args(["install-cni", "--cni-namespace=weft", "-o", "json"]).args(&arguments);
        let ours = run(&mut command)?.success()?;
        let ours = serde_json::Deserializer::from_str(&ours).into_iter().collect::<Result<Vec<Value>, _>>()?;
        same(ours, template("weft-cni", &[&["--set=installNamespace=true".to_owned()], &arguments[..]].concat())?)?;
    }
    Ok(())
}

fn same(mut ours: Vec<Value>, theirs: Vec<Value>) -> anyhow::Result<()> {
    // What `weft upgrade` remembers; Helm remembers in its own way.
    ours.retain(|object| object["metadata"]["name"] != "weft-config-overrides");
    ensure!(ours.len() > 4, "only {} objects", ours.len());
    let id = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    let sorted = |list: Vec<Value>| list.into_iter().map(|object| (id(&object), object)).collect::<BTreeMap<_, _>>();
    let (mut ours, mut theirs) = (sorted(ours), sorted(theirs));
    ensure!(ours.keys().eq(theirs.keys()), "{:?}\n{:?}", ours.keys(), theirs.keys());
    for (id, object) in &mut ours {
        let theirs = theirs.get_mut(id).context("no object")?;
        // The values of the injector are YAML in YAML, which may be written in several ways.
        if id.contains("weft-config") {
            for object in [&mut *object, &mut *theirs] {
                object["data"]["values"] =
                    serde_yaml_ng::from_str(object["data"]["values"].as_str().context("no values")?)?;
            }
        }
        ensure!(object == theirs, "{id}:\n{object:#}\n{theirs:#}");
    }
    Ok(())
}

fn walk(cluster: &Kubernetes) -> anyhow::Result<()> {
    println!("before");
    before(cluster)?;
    println!("install");
    install(cluster)?;
    println!("applications");
    applications(cluster)?;
    println!("commands");
    commands(cluster)?;
    println!("half an installation");
    half(cluster)?;
    println!("expired certificates");
    expired(cluster)?;
    println!("upgrade");
    upgrade(cluster)?;
    if cluster.is_own() {
        println!("faults");
        faults::all(cluster)?;
    } else {
        println!("no faults: the processes of this cluster are not ours to kill");
    }
    println!("uninstall");
    uninstall(cluster)
}

/// What is said where nothing is installed.
fn before(cluster: &Kubernetes) -> anyhow::Result<()> {
    cluster.weft(&["check", "--pre"])?.success()?;
    let refused = cluster.weft(&["install"])?;
    ensure!(refused.status.code() == Some(1) && refused.stderr.contains("weft install --crds"), "{refused}");
    let check = cluster.weft(&["check", "--wait", "0s"])?;
    ensure!(check.status.code() == Some(2), "{check}");
    ensure!(check.stdout.contains("there is no namespace weft"), "{check}");
    ensure!(check.stdout.contains("docs/checks.md#control-plane-namespace-exists"), "{check}");
    let upgrade = cluster.weft(&["upgrade"])?;
    ensure!(upgrade.status.code() == Some(1) && upgrade.stderr.contains("is not installed"), "{upgrade}");
    let uninstall = cluster.weft(&["uninstall"])?;
    ensure!(uninstall.status.code() == Some(1) && uninstall.stderr.contains("no weft to uninstall"), "{uninstall}");
    let stat = cluster.weft(&["stat", "deploy"])?;
    ensure!(stat.status.code() == Some(1) && stat.stderr.contains("no svc/weft-metrics in weft"), "{stat}");
    // Somebody who may nothing.
    let nobody = cluster.weft(&["--as", "nobody", "check", "--pre"])?;
    ensure!(nobody.status.code() == Some(2) && nobody.stdout.contains("× can create Namespaces"), "{nobody}");
    let nobody = cluster.weft(&["--as", "nobody", "stat", "deploy"])?;
    ensure!(nobody.status.code() == Some(1) && nobody.stderr.contains("not allowed: "), "{nobody}");
    Ok(())
}

fn install(cluster: &Kubernetes) -> anyhow::Result<()> {
    cluster.apply(&cluster.weft(&["install", "--crds"])?.success()?)?;
    cluster.weft(&["check", "--crds"])?.success()?;
    cluster.apply(&cluster.weft(&["install"])?.success()?)?;
    let check = cluster.weft(&["check", "--wait", "3m"])?;
    if !check.status.success() {
        let pods = cluster.kubectl(&["describe", "pods", "-n", "weft"])?;
        anyhow::bail!("{check}\n{pods}");
    }
    ensure!(!check.stdout.contains('‼'), "{check}");
    let again = cluster.weft(&["install"])?;
    ensure!(
        again.status.code() == Some(1) && again.stderr.contains("is installed in namespace weft already"),
        "{again}"
    );
    let nothing = cluster.weft(&["upgrade", "--dry-run"])?.success()?;
    ensure!(nothing == "Nothing would change.\n", "{nothing}");
    Ok(())
}

/// One is injected since its namespace says so, the other by pipe.
fn applications(cluster: &Kubernetes) -> anyhow::Result<()> {
    let demo = std::fs::read_to_string(manifest("demo/emojivoto.yml"))?;
    cluster.apply(&demo)?;
    let piped = demo.replace("    linkerd.io/inject: enabled\n", "    team: piped\n").replace("emojivoto", "piped");
    ensure!(!piped.contains("linkerd.io"), "the copy asks for injection itself");
    cluster.apply(&cluster.weft_piped(&["inject", "-"], &piped)?)?;
    cluster.apply(&std::fs::read_to_string(manifest("e2e/manifests/load.yml"))?)?;
    for namespace in ["emojivoto", "piped"] {
        for deployment in ["emoji", "voting", "web", "vote-bot"] {
            cluster.rolled_out(namespace, deployment)?;
        }
        cluster.weft(&["check", "--proxy", "-n", namespace, "--wait", "2m"])?.success()?;
    }
    cluster.rolled_out("load", "echo")?;
    cluster.rolled_out("load", "load")?;
    cluster.weft(&["check", "--proxy", "--wait", "2m"])?.success()?;
    Ok(())
}

fn json(cluster: &Kubernetes, arguments: &[&str]) -> anyhow::Result<Value> {
    let text = cluster.weft(arguments)?.success()?;
    serde_json::from_str(&text).with_context(|| format!("weft {arguments:?} did not print JSON:\n{text}"))
}

/// Waits until the edges of an emojivoto are there, all of them secured.
fn secured(cluster: &Kubernetes, namespace: &str) -> anyhow::Result<()> {
    wait_for("all edges are secured", || {
        let edges = json(cluster, &["edges", "deploy", "-n", namespace, "-o", "json"])?;
        let edges = edges.as_array().context("no list")?;
        let has = |src: &str, dst: &str| edges.iter().any(|edge| edge["src"] == src && edge["dst"] == dst);
        ensure!(has("vote-bot", "web") && has("web", "emoji") && has("web", "voting"), "{edges:?}");
        let open = edges.iter().find(|edge| !edge["no_tls_reason"].as_str().unwrap_or_default().is_empty());
        ensure!(open.is_none(), "{open:?}");
        Ok(())
    })
}

/// Everything that looks into the mesh, through the API server.
fn commands(cluster: &Kubernetes) -> anyhow::Result<()> {
    for namespace in ["emojivoto", "piped"] {
        wait_for("all four have traffic or send it", || {
            let rows = json(cluster, &["stat", "deploy", "-n", namespace, "-o", "json"])?;
            let rows = rows.as_array().context("no list")?;
            ensure!(rows.len() == 4, "{rows:?}");
            for row in rows.iter().filter(|row| row["name"] != "vote-bot") {
                ensure!(row["meshed"] == "1/1" && row["rps"].as_f64() > Some(0.0), "{row}");
                ensure!(row["success"].as_f64() > Some(0.5), "{row}");
            }
            Ok(())
        })?;
        secured(cluster, namespace)?;
    }
    let authority = "web-svc.emojivoto.svc.cluster.local:80";
    let endpoints = json(cluster, &["endpoints", authority, "-o", "json"])?;
    ensure!(endpoints.as_array().is_some_and(|list| list.len() == 1), "{endpoints}");
    let pods = cluster.list("pods", "app=web-svc")?;
    let pod = pods.iter().find(|pod| pod["metadata"]["namespace"] == "emojivoto").context("no web")?;
    let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
    ensure!(endpoints[0]["pod"] == pod, "{endpoints}");
    let identity = cluster.weft(&["identity", "-n", "emojivoto", pod])?.success()?;
    let name = "web.emojivoto.serviceaccount.identity.weft.cluster.local";
    ensure!(identity.contains(name), "{identity}");
    let metrics = cluster.weft(&["metrics", "-n", "emojivoto", "deploy/web"])?.success()?;
    ensure!(metrics.contains("request_total{"), "{metrics}");
    let metrics = cluster.weft(&["diagnostics", "controller-metrics"])?.success()?;
    ensure!(!metrics.contains("# ERROR"), "{metrics}");
    let policy =
        cluster.weft(&["diagnostics", "policy", &format!("po/{pod}"), "8080", "-n", "emojivoto"])?.success()?;
    ensure!(policy.contains("protocol"), "{policy}");
    let version = cluster.weft(&["version"])?.success()?;
    ensure!(version.contains("Server version: ") && !version.contains("unavailable"), "{version}");
    let list = cluster.weft(&["viz", "list", "-n", "emojivoto"])?.success()?;
    ensure!(list.contains(&format!("emojivoto/{pod}")), "{list}");
    Ok(())
}

/// What is missing is named, and `weft upgrade` brings it back, while requests go on.
fn half(cluster: &Kubernetes) -> anyhow::Result<()> {
    let before = cluster.report_after("load", 100)?;
    let missing = |kind: &str, name: &str, said: &str| -> anyhow::Result<()> {
        cluster.kubectl(&["delete", kind, name, "-n", "weft"])?;
        let check = cluster.weft(&["check", "--wait", "0s"])?;
        ensure!(check.status.code() == Some(2) && check.stdout.contains(said), "{kind} {name}: {check}");
        let again = cluster.weft(&["install"])?;
        ensure!(again.status.code() == Some(1) && again.stdout.is_empty(), "{again}");
        Ok(())
    };
    for (kind, name, said) in [
        ("clusterrole", "weft-weft-destination", "weft-weft-destination is missing"),
        ("mutatingwebhookconfiguration", "weft-injector-webhook-config", "weft-injector-webhook-config is missing"),
        ("deployment", "weft-metrics", "there is no Deployment weft-metrics"),
    ] {
        missing(kind, name, said)?;
        cluster.apply(&cluster.weft(&["upgrade"])?.success()?)?;
    }
    cluster.weft(&["check", "--wait", "3m"])?.success()?;
    missing("deployment", "weft-identity", "there is no Deployment weft-identity")?;
    missing("configmap", "weft-identity-trust-roots", "there is no Deployment weft-identity")?;
    let refused = cluster.weft(&["upgrade"])?;
    ensure!(refused.status.code() == Some(1) && refused.stdout.is_empty(), "{refused}");
    ensure!(refused.stderr.contains("ConfigMap weft-identity-trust-roots in weft has no trust anchors"), "{refused}");
    // They are the first in every proxy's environment, too, and in whatever backup there is.
    let path = "jsonpath={.spec.template.spec.containers[?(@.name==\"linkerd-proxy\")].env[?(@.name==\"LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS\")].value}";
    let anchors = cluster.kubectl(&["get", "deployment", "-n", "weft", "weft-destination", "-o", path])?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("anchors.crt");
    std::fs::write(&file, anchors)?;
    let file = file.display().to_string();
    cluster.apply(&cluster.weft(&["upgrade", "--identity-trust-anchors-file", &file])?.success()?)?;
    cluster.weft(&["check", "--wait", "3m"])?.success()?;
    cluster.report_after("load", 100)?.since(&before).nothing_failed()
}

/// An issuer that has run out is named, is not upgraded with, and stops no proxy.
fn expired(cluster: &Kubernetes) -> anyhow::Result<()> {
    let before = cluster.report_after("load", 100)?;
    let text = cluster.kubectl(&["get", "secret", "-n", "weft", "weft-identity-issuer", "-o", "json"])?;
    let mut good: Value = serde_json::from_str(&text)?;
    // What the API server has added is its own.
    let metadata = good["metadata"].as_object_mut().context("no metadata")?;
    metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "labels"));
    // Two years ago it was fine.
    let old =
        weft_core::trust::generate_for("weft", "cluster.local", OffsetDateTime::now_utc() - 730 * time::Duration::DAY)?;
    let mut bad = good.clone();
    let encode = |text: &str| Value::from(base64::engine::general_purpose::STANDARD.encode(text));
    bad["data"]["crt.pem"] = encode(&old.issuer_pem);
    bad["data"]["key.pem"] = encode(&old.issuer_key_pem);
    cluster.apply(&bad.to_string())?;
    let check = cluster.weft(&["check", "--wait", "0s"])?;
    ensure!(check.status.code() == Some(2), "{check}");
    ensure!(check.stdout.contains("× issuer cert is within its validity period"), "{check}");
    ensure!(check.stdout.contains("docs/checks.md#issuer-cert-is-within-its-validity-period"), "{check}");
    let refused = cluster.weft(&["upgrade"])?;
    ensure!(refused.status.code() == Some(1) && refused.stdout.is_empty(), "{refused}");
    ensure!(refused.stderr.contains("issuer (identity.issuer.tls): "), "{refused}");
    // Identity goes on with the one that it has.
    wait_for("identity says so", || {
        let logs = cluster.kubectl(&["logs", "-n", "weft", "deploy/weft-identity", "-c", "identity"])?;
        ensure!(logs.contains("credentials cannot be used"), "{logs}");
        Ok(())
    })?;
    cluster.report_after("load", 100)?;
    cluster.apply(&good.to_string())?;
    cluster.weft(&["check", "--wait", "3m"])?.success()?;
    cluster.report_after("load", 100)?.since(&before).nothing_failed()
}

/// Settings change and every component is restarted, while requests go on.
fn upgrade(cluster: &Kubernetes) -> anyhow::Result<()> {
    let before = cluster.report_after("load", 100)?;
    let settings = ["--set", "controllerLogLevel=debug", "--set", "controllerReplicas=2"];
    let dry = cluster.weft(&[&["upgrade", "--dry-run"][..], &settings].concat())?.success()?;
    ensure!(dry.contains("~ deployment/weft-identity in weft\n  .spec.replicas: 1 → 2\n"), "{dry}");
    let issuer = |cluster: &Kubernetes| {
        cluster.kubectl(&["get", "secret", "-n", "weft", "weft-identity-issuer", "-o", "jsonpath={.data}"])
    };
    let kept = issuer(cluster)?;
    cluster.apply(&cluster.weft(&[&["upgrade"][..], &settings].concat())?.success()?)?;
    for deployment in ["weft-identity", "weft-destination", "weft-injector", "weft-metrics"] {
        cluster.rolled_out("weft", deployment)?;
    }
    cluster.weft(&["check", "--wait", "3m"])?.success()?;
    ensure!(issuer(cluster)? == kept, "the issuer was not kept");
    // Settings stay what they are.
    let nothing = cluster.weft(&["upgrade", "--dry-run"])?.success()?;
    ensure!(nothing == "Nothing would change.\n", "{nothing}");
    // Pods that are made now are served by the new control plane.
    cluster.kubectl(&["rollout", "restart", "-n", "load", "deployment/echo"])?;
    cluster.rolled_out("load", "echo")?;
    let after = cluster.report_after("load", 100)?;
    after.since(&before).nothing_failed()?;
    let left = cluster.weft(&["prune"])?.success()?;
    ensure!(left.trim().is_empty(), "{left}");
    Ok(())
}

fn uninstall(cluster: &Kubernetes) -> anyhow::Result<()> {
    let refused = cluster.weft(&["uninstall"])?;
    ensure!(refused.status.code() == Some(1) && refused.stderr.contains("emojivoto/"), "{refused}");
    cluster.kubectl(&["delete", "namespace", "emojivoto", "piped", "load", "--timeout=120s"])?;
    cluster.delete(&cluster.weft(&["uninstall"])?.success()?)?;
    let kinds = "clusterroles,clusterrolebindings,customresourcedefinitions,mutatingwebhookconfigurations,validatingwebhookconfigurations,namespaces,pods,secrets,configmaps,leases,services,roles,rolebindings";
    wait_for("nothing is left", || {
        let left = cluster.list(kinds, "linkerd.io/control-plane-ns")?;
        let names: Vec<String> = left.iter().map(|o| format!("{} {}", o["kind"], o["metadata"]["name"])).collect();
        ensure!(names.is_empty(), "{names:?}");
        let namespaces = cluster.kubectl(&["get", "namespaces", "-o", "name"])?;
        ensure!(!namespaces.contains("weft"), "{namespaces}");
        Ok(())
    })?;
    // As if nothing had been there.
    cluster.weft(&["check", "--pre"])?.success()?;
    Ok(())
}
