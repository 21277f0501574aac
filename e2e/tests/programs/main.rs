//! Programs that everybody has, through the mesh and meshed on both sides, in one cluster that all of these share. What goes
//! through a port that is declared opaque also goes through one that nobody declared.

mod autobahn;
mod databases;
mod grpc;
mod messages;
mod nginx;
mod websocket;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Arc, LazyLock},
};

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Trial};
use serde_json::{Map, Value, json};
use weft_e2e::{Cluster, Interop, Samples, binaries, manifest, run};

type Test = fn(&Cluster) -> anyhow::Result<()>;

const NAMESPACE: &str = "programs";
const SERVERS: [&str; 10] =
    ["nginx", "mariadb", "postgres", "redis", "exim", "sshd", "mosquitto", "kafka", "grpc", "websocket"];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let shared: Arc<LazyLock<anyhow::Result<Cluster>>> = Arc::new(LazyLock::new(start));
    let tests =
        [nginx::TESTS, databases::TESTS, messages::TESTS, grpc::TESTS, websocket::TESTS, autobahn::TESTS, TESTS]
            .concat();
    let trials = tests.into_iter().map(|(name, test)| {
        let shared = shared.clone();
        Trial::test(name, move || {
            let cluster = shared.as_ref().as_ref().map_err(|error| format!("the cluster did not start: {error:#}"))?;
            test(cluster).map_err(|error| format!("{error:#}\n{}", state(cluster)).into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // The last owner: this ends the cluster.
    drop(shared);
    conclusion.exit_code()
}

const TESTS: &[(&str, Test)] = &[("nothing_failed_on_the_way", nothing_failed_on_the_way)];

fn start() -> anyhow::Result<Cluster> {
    let directory = manifest("e2e/manifests/programs");
    let made = tempfile::tempdir()?;
    let generated = made.path().join("generated.json");
    fs::write(&generated, generated_objects(&directory, made.path())?)?;
    Cluster::up_with(&[&directory, &generated])
}

/// The ConfigMap of all the files beside the manifest, and a Secret with a key for SSH.
fn generated_objects(directory: &Path, scratch: &Path) -> anyhow::Result<String> {
    let mut files = Map::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_none_or(|extension| extension != "yml") {
            let name = path.file_name().and_then(|name| name.to_str()).context("a file's name")?.to_owned();
            files.insert(name, fs::read_to_string(&path)?.into());
        }
    }
    let key = scratch.join("key");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?.success()?;
    let key = json!({"private": fs::read_to_string(&key)?, "public": fs::read_to_string(key.with_extension("pub"))?});
    let object = |kind: &str, name: &str, field: &str, value: Value| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, field: value});
    let python = object("ConfigMap", "python", "data", json!({"path": python()?}));
    let files = object("ConfigMap", NAMESPACE, "data", files.into());
    let items = [files, python, object("Secret", "key", "stringData", key)];
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())
}

/// Where `scripts/setup.sh` has put what Debian does not have.
fn python() -> anyhow::Result<PathBuf> {
    let directory = binaries().parent().context("no target directory")?.join("python");
    ensure!(directory.join("kosoku").exists(), "{} has no kosoku; `make setup` installs it", directory.display());
    Ok(directory)
}

/// What helps to understand a failure.
fn state(cluster: &Cluster) -> String {
    let mut text = cluster.weft(&["ps", "-A"]).map_or_else(|error| format!("{error:#}"), |ran| ran.to_string());
    for workload in ["client"].iter().chain(&SERVERS) {
        let deployment = format!("deploy/{workload}");
        for container in [None, Some("linkerd-proxy")] {
            let mut command = vec!["logs", "-n", NAMESPACE, &deployment, "--tail", "8"];
            command.extend(container.iter().flat_map(|name| ["-c", name]));
            text += &cluster.weft(&command).map_or_else(|error| format!("{error:#}"), |ran| ran.to_string());
        }
    }
    text
}

/// Runs a shell script in the client's pod. It must end well.
fn client(cluster: &Cluster, script: &str) -> anyhow::Result<String> {
    cluster.exec(NAMESPACE, "deploy/client", &["sh", "-ec", script])?.success()
}

/// Runs a shell script in a server's pod. It must end well.
fn server(cluster: &Cluster, deployment: &str, script: &str) -> anyhow::Result<String> {
    cluster.exec(NAMESPACE, &format!("deploy/{deployment}"), &["sh", "-ec", script])?.success()
}

/// Runs one case of a Python program of the ConfigMap in the client's pod.
fn case(cluster: &Cluster, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let program = format!("/programs/{program}");
    let mut command = vec!["/usr/bin/python3", &program];
    command.extend(arguments);
    cluster.exec(NAMESPACE, "deploy/client", &command)?.success().map(drop)
}

/// A port of a server's service and of its pods.
#[derive(Debug, Clone, Copy)]
struct Port {
    server: &'static str,
    service: u16,
    pod: u16,
    /// The possible outcomes of protocol detection on the way out; none where it is skipped.
    detected: &'static [&'static str],
}

impl Port {
    /// One that is opaque, because the list of defaults or an annotation says so.
    const fn opaque(server: &'static str, port: u16) -> Self {
        Self { server, service: port, pod: port, detected: &[] }
    }

    /// One that nobody has declared.
    const fn undeclared(server: &'static str, port: u16, detected: &'static [&'static str]) -> Self {
        Self { server, service: port, pod: port, detected }
    }

    /// Whatever the client sent here went to the server encrypted and with its identity, and nobody had to wait until
    /// detection gave up.
    fn was_secured(self, cluster: &Cluster) -> anyhow::Result<()> {
        let pod = self.pod.to_string();
        let sent = Samples::of(cluster, NAMESPACE, "deploy/client")?;
        let to = [("direction", "outbound"), ("peer", "dst"), ("dst_deployment", self.server), ("target_port", &pod)];
        let all = sent.sum("tcp_open_total", &to);
        let secured = sent.sum("tcp_open_total", &[&to[..], &[("tls", "true")]].concat());
        ensure!(all > 0.0 && secured == all, "{secured} of {all} connections to {self:?} were secured");

        // Linkerd's proxy waits until detection gives up where a server speaks first, and counts all ports as one.
        if !Interop::is_other("client")? {
            self.was_detected(&sent)?;
        }

        let received = Samples::of(cluster, NAMESPACE, &format!("deploy/{}", self.server))?;
        let identity = "client.programs.serviceaccount.identity.weft.cluster.local";
        let from = [("direction", "inbound"), ("peer", "src"), ("target_port", &pod)];
        let secured =
            received.sum("tcp_open_total", &[&from[..], &[("tls", "true"), ("client_id", identity)]].concat());
        ensure!(secured > 0.0, "no connection at {self:?} had the client's identity");
        Ok(())
    }

    fn was_detected(self, sent: &Samples) -> anyhow::Result<()> {
        let service = self.service.to_string();
        let parent = [("parent_name", self.server), ("parent_port", &service)];
        let outcomes =
            sent.0.iter().filter(|s| s.is("outbound_tcp_detect_http_results_total", &parent) && s.value > 0.0);
        let outcomes: Vec<&str> = outcomes.map(|sample| sample.label("result")).collect();
        let expected = outcomes.is_empty() == self.detected.is_empty();
        let expected = expected && outcomes.iter().all(|outcome| self.detected.contains(outcome));
        ensure!(expected, "detected {outcomes:?} at {self:?}");
        Ok(())
    }
}

/// Runs last: whatever the tests did, no proxy had to give anything up.
fn nothing_failed_on_the_way(cluster: &Cluster) -> anyhow::Result<()> {
    // What another proxy counts as errors is its own affair: Linkerd's counts clients that end with a reset.
    for workload in ["client"].iter().chain(&SERVERS) {
        if Interop::is_other(workload)? {
            continue;
        }
        let samples = Samples::of(cluster, NAMESPACE, &format!("deploy/{workload}"))?;
        for direction in ["inbound", "outbound"] {
            for kind in ["http", "tcp"] {
                let name = format!("{direction}_{kind}_errors_total");
                let failed: Vec<_> = samples.0.iter().filter(|s| s.is(&name, &[]) && s.value > 0.0).collect();
                ensure!(failed.is_empty(), "{workload}: {failed:?}");
            }
            let name = format!("{direction}_tcp_detect_http_results_total");
            let stalled = samples.sum(&name, &[("result", "read_timeout")]);
            ensure!(stalled == 0.0, "{workload}: {direction} detection gave up {stalled} times");
        }
    }
    Ok(())
}
