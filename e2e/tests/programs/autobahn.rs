//! The Autobahn suite for WebSockets, to the server directly and through the mesh.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use weft_e2e::Cluster;

use crate::{NAMESPACE, Port, Test};

pub const TESTS: &[(&str, Test)] =
    &[("no_case_of_autobahn_fails_that_does_not_fail_without_the_mesh", no_case_fails_because_of_the_mesh)];

/// All but those that only say the same with more octets and more often: of limits (9) and compression (12, 13) the first
/// of each kind.
const CASES: [&str; 11] = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*.1", "10.*", "12.1.1", "13.1.1"];
/// A case has a time limit of its own, which a busy machine does not always keep: it may be tried so often.
const ATTEMPTS: usize = 3;

/// How the server behaved and how it closed, by case.
type Results = BTreeMap<String, (String, String)>;

fn cases(cluster: &Cluster, pod: &str, address: &str, cases: &[&str]) -> anyhow::Result<Results> {
    let mut command = vec!["/usr/bin/python3", "/programs/autobahn.py", address];
    command.extend(cases);
    let text = cluster.exec(NAMESPACE, pod, &command)?.success()?;
    serde_json::from_str(&text).with_context(|| format!("not results: {text}"))
}

fn failed(results: &Results) -> Vec<&str> {
    let good = |(behaviour, close): &(String, String)| {
        ["OK", "NON-STRICT", "INFORMATIONAL"].contains(&behaviour.as_str())
            && ["OK", "INFORMATIONAL"].contains(&close.as_str())
    };
    results.iter().filter(|(_, result)| !good(result)).map(|(case, _)| case.as_str()).collect()
}

fn no_case_fails_because_of_the_mesh(cluster: &Cluster) -> anyhow::Result<()> {
    // Nothing is between a server and its own pod.
    let direct = cases(cluster, "deploy/websocket", "127.0.0.1:8765", &CASES)?;
    let fail_anyway = failed(&direct);
    ensure!(direct.len() > 200 && fail_anyway.len() < 20, "{} cases, failed: {fail_anyway:?}", direct.len());
    let mut left: Vec<String> = CASES.map(str::to_owned).to_vec();
    let mut seen = 0;
    for _ in 0..ATTEMPTS {
        let wanted: Vec<&str> = left.iter().map(String::as_str).collect();
        let meshed = cases(cluster, "deploy/client", "websocket:8765", &wanted)?;
        seen = seen.max(meshed.len());
        left = failed(&meshed).into_iter().filter(|case| !fail_anyway.contains(case)).map(str::to_owned).collect();
        eprintln!("Autobahn: {} cases through the mesh, failed because of it: {left:?}", meshed.len());
        if left.is_empty() {
            break;
        }
    }
    ensure!(left.is_empty(), "fail because of the mesh: {left:?}");
    ensure!(seen == direct.len(), "{seen} cases through the mesh, {} without", direct.len());
    Port { server: "websocket", service: 8765, pod: 8765, detected: &["http/1"] }.was_secured(cluster)
}
