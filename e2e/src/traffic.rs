//! A cluster in which a client sends HTTP/1.1 and gRPC to a server with several replicas all the time.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::{Account, Cluster, Interop, Process, REPORT_PORT, Report, manifest, run, wait_for};

/// The namespace of both.
pub const NAMESPACE: &str = "load";
/// The client.
pub const CLIENT: &str = "deploy/load";

/// The cluster, and what the server is now.
#[derive(Debug)]
pub struct Traffic {
    /// Everything runs in it.
    pub cluster: Cluster,
    text: String,
    replicas: u32,
    generation: u32,
    files: tempfile::TempDir,
}

impl Traffic {
    /// Starts three replicas and a client that sends so many requests a second of each protocol.
    ///
    /// # Errors
    ///
    /// When they do not become ready, or no request is answered.
    pub fn start(rate: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(manifest("e2e/manifests/load.yml"))?;
        let text = set(&text, "--rate, \"500\"", &format!("--rate, \"{rate}\""))?;
        let files = tempfile::tempdir()?;
        let file = files.path().join("load.yml");
        fs::write(&file, &text)?;
        let cluster = Cluster::up_with(&[&file])?;
        let traffic = Self { cluster, text, replicas: 3, generation: 0, files };
        traffic.more(100)?;
        Ok(traffic)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Sets the number of replicas and waits until there are so many and no others.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn scale(&mut self, replicas: u32) -> anyhow::Result<()> {
        self.replicas = replicas;
        self.apply()
    }

    /// Replaces every replica by another one and waits until they are gone.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn replace(&mut self) -> anyhow::Result<()> {
        self.generation += 1;
        self.apply()
    }

    fn apply(&self) -> anyhow::Result<()> {
        let text = set(&self.text, "replicas: 3", &format!("replicas: {}", self.replicas))?;
        let text = set(&text, "value: \"0\"", &format!("value: \"{}\"", self.generation))?;
        let file = self.file("load.yml");
        fs::write(&file, text)?;
        self.cluster.apply(&[&file])?;
        self.settled()
    }

    /// Deletes a pod, as a drain of its node does, and waits until it is gone and another one has taken its place.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn drain(&self, pod: &str) -> anyhow::Result<()> {
        self.delete(NAMESPACE, pod)?;
        wait_for(&format!("{pod} is gone"), || {
            ensure!(!self.names()?.contains(pod), "it is still there");
            Ok(())
        })?;
        self.settled()
    }

    /// Deletes a pod of any namespace.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn delete(&self, namespace: &str, pod: &str) -> anyhow::Result<()> {
        let file = self.file("pod.yml");
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {namespace}}}\n\
             spec: {{containers: [{{name: echo, image: echo, command: [\"true\"]}}]}}\n"
        );
        fs::write(&file, text)?;
        self.cluster.weft(&["delete".as_ref(), "-f".as_ref(), file.as_os_str()])?.success().map(drop)
    }

    fn servers(&self) -> anyhow::Result<Vec<Value>> {
        let mut pods = self.cluster.pods(NAMESPACE)?;
        pods.retain(|pod| pod["metadata"]["labels"]["app"] == "echo");
        Ok(pods)
    }

    /// Names of all replicas, also of those that end.
    ///
    /// # Errors
    ///
    /// When they cannot be listed.
    pub fn names(&self) -> anyhow::Result<BTreeSet<String>> {
        Ok(self.servers()?.iter().filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect())
    }

    /// Waits until there are as many replicas as there should be, all ready, of the newest template, and none that ends.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    pub fn settled(&self) -> anyhow::Result<()> {
        let generation = self.generation.to_string();
        wait_for(&format!("{} replicas of generation {generation}", self.replicas), || {
            let pods = self.servers()?;
            ensure!(pods.len() == self.replicas as usize, "there are {}", pods.len());
            for pod in pods {
                let conditions = pod["status"]["conditions"].as_array().context("no conditions")?;
                let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
                let containers = pod["spec"]["containers"].as_array().context("no containers")?;
                let echo = containers.iter().find(|c| c["name"] == "echo").context("no echo")?;
                let variables = echo["env"].as_array().context("no env")?;
                let new = variables.iter().any(|v| v["name"] == "GENERATION" && v["value"] == *generation);
                ensure!(ready && new && pod["metadata"]["deletionTimestamp"].is_null(), "{pod}");
            }
            Ok(())
        })
    }

    /// What the client has seen so far.
    ///
    /// # Errors
    ///
    /// When it does not say.
    pub fn report(&self) -> anyhow::Result<Report> {
        Report::of(&self.cluster, NAMESPACE, CLIENT)
    }

    /// Stops to send and waits until no request is in flight.
    ///
    /// # Errors
    ///
    /// When some never end.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.tell("pause")?;
        wait_for("no request is in flight", || {
            let report = self.report()?;
            ensure!(report.http.in_flight() == 0 && report.grpc.in_flight() == 0, "{report:?}");
            Ok(())
        })
    }

    /// Sends again.
    ///
    /// # Errors
    ///
    /// When the client cannot be told.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.tell("resume")
    }

    fn tell(&self, what: &str) -> anyhow::Result<()> {
        let url = format!("http://127.0.0.1:{REPORT_PORT}/{what}");
        let command = ["curl", "-sS", "-f", "-m", "60", "-X", "PUT", &url];
        self.cluster.exec(NAMESPACE, CLIENT, &command)?.success().map(drop)
    }

    /// What it has seen after so many more answers.
    ///
    /// # Errors
    ///
    /// When they do not come.
    pub fn more(&self, answers: u64) -> anyhow::Result<Report> {
        Report::after(&self.cluster, NAMESPACE, CLIENT, answers)
    }

    /// Does something while requests flow, and answers what became of them: until then, and of some more after it.
    ///
    /// # Errors
    ///
    /// When it cannot be done or requests do not flow after it.
    pub fn during(&mut self, what: &str, act: impl FnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<Report> {
        let (before, begun) = (self.report()?, Instant::now());
        act(self).with_context(|| what.to_owned())?;
        let seen = self.more(200)?.since(&before);
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let reached = |account: &Account| account.sent * 1000 / milliseconds;
        for (protocol, account) in [("HTTP", &seen.http), ("gRPC", &seen.grpc)] {
            eprintln!(
                "{what}: {protocol}: {} sent, {} a second, {} failed, {} turns left out, slowest so far {} ms",
                account.sent,
                reached(account),
                account.failed,
                account.left_out,
                account.slowest_ms
            );
        }
        Ok(seen)
    }

    /// What helps to understand a failure.
    pub fn state(&self) -> String {
        let commands: [&[&str]; 3] = [
            &["ps", "-A"],
            &["endpoints", "echo.load.svc.cluster.local:80"],
            &["logs", "-n", NAMESPACE, CLIENT, "-c", "linkerd-proxy", "--tail", "40"],
        ];
        let said =
            commands.map(|command| self.cluster.weft(command).map_or_else(|e| format!("{e:#}"), |ran| ran.to_string()));
        said.join("\n")
    }

    /// Makes a replica answer that much later.
    ///
    /// # Errors
    ///
    /// When it cannot be told.
    pub fn delay(&self, pod: &str, milliseconds: u32) -> anyhow::Result<()> {
        let url = format!("http://127.0.0.1:8080/delay/{milliseconds}");
        let command = ["curl", "-sS", "-f", "-m", "60", "-X", "PUT", &url];
        self.cluster.exec(NAMESPACE, pod, &command)?.success().map(drop)
    }

    /// The process of the proxy in a replica's pod.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn proxy(&self, pod: &str) -> anyhow::Result<Process> {
        self.process(pod, &Interop::program_of("echo")?)
    }

    /// A process of a replica's pod: the one that runs this program.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn process(&self, pod: &str, program: &str) -> anyhow::Result<Process> {
        let network = self.cluster.exec(NAMESPACE, pod, &["readlink", "/proc/self/ns/net"])?.success()?;
        let here =
            |process: &Process| process.program() == program && process.network().is_ok_and(|n| n == network.trim());
        match self.cluster.processes().into_iter().find(here) {
            Some(process) => Ok(process),
            None => bail!("{pod} has no {program}"),
        }
    }
}

/// Rules of the packet filter in a pod's network, until the end.
#[derive(Debug)]
pub struct Rules {
    network: String,
    table: String,
}

impl Rules {
    /// Takes them away, and answers how many packets their counters have seen.
    ///
    /// # Errors
    ///
    /// When they are not there.
    pub fn end(self) -> anyhow::Result<u64> {
        let nft = |what: &str| {
            let order = format!("{what} table {}", self.table);
            run(Command::new("nsenter").args([&self.network, "nft", &order]))?.success()
        };
        let listed = nft("list")?;
        nft("delete")?;
        let counts = listed.split("packets ").skip(1);
        Ok(counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum())
    }
}

impl Traffic {
    fn network(&self, pod: &str, program: &str) -> anyhow::Result<String> {
        Ok(format!("--net=/proc/{}/ns/net", self.process(pod, program)?.pid))
    }

    /// Adds a table of rules to the network of the pod in which this program runs.
    ///
    /// # Errors
    ///
    /// When they are refused.
    pub fn rules(&self, pod: &str, program: &str, rules: &str) -> anyhow::Result<Rules> {
        let network = self.network(pod, program)?;
        run(Command::new("nsenter").args([&network, "nft", rules]))?.success()?;
        let table: Vec<&str> = rules.split_whitespace().skip(1).take(2).collect();
        Ok(Rules { network, table: table.join(" ") })
    }

    /// Runs `tc` in the network of the pod in which this program runs.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn tc(&self, pod: &str, program: &str, arguments: &str) -> anyhow::Result<String> {
        let network = self.network(pod, program)?;
        let mut command = Command::new("nsenter");
        command.args([&network, "tc"]).args(arguments.split(' '));
        run(&mut command)?.success()
    }
}

/// Replaces one setting of a manifest.
fn set(text: &str, old: &str, new: &str) -> anyhow::Result<String> {
    ensure!(text.matches(old).count() == 1, "`{old}` is not there exactly once");
    Ok(text.replace(old, new))
}
