//! Pods come and go, the server is scaled and replaced, connections are made and broken, the control plane is killed, and
//! requests flow all the time. At the end, at rest, no process that was there before uses more than it did earlier.
//!
//! `SOAK_MINUTES` says how long; `make soak` takes half an hour. Some things are kept for a time on purpose: the series of a
//! pod that is gone for ten minutes by proxies, what it did for a quarter of an hour by the metrics component. That is
//! allowed for by the number of pods that have come in the time before each look.

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use weft_e2e::{CLIENT, NAMESPACE, Report, Traffic, Usage, wait_for};

/// Requests a second of each protocol: enough to lose something, few enough to leave time for the rest.
const RATE: u32 = 60;
const MINUTES: u64 = 5;

/// What is flat: growth by no more than this. Allocators keep some of what was freed, and buffers grow to the size that
/// was needed once.
const MEMORY_PERCENT: u64 = 125;
const MEMORY_MORE_KIB: u64 = 2048;
const DESCRIPTORS_MORE: u64 = 8;
/// Nothing is kept longer than this on purpose.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// KiB that are kept of each pod until then: by a proxy, and by the metrics component.
const KEPT_BY_PROXY_KIB: u64 = 64;
const KEPT_BY_METRICS_KIB: u64 = 256;

/// Programs of a cluster; the node and what holds its pods have started themselves again, as `exe`.
const PROGRAMS: [&str; 5] = ["weft", "exe", "weft-proxy", "weft-controller", "weft-load"];

type Usages = BTreeMap<(String, i32), Usage>;

/// Every process now.
fn usages(traffic: &Traffic) -> Usages {
    let mut usages = Usages::new();
    for process in traffic.cluster.processes() {
        if PROGRAMS.contains(&process.program())
            && let Ok(usage) = process.usage()
        {
            let arguments = process.command.get(1..3.min(process.command.len())).unwrap_or_default().join(" ");
            usages.insert((format!("{} {arguments}", process.program()), process.pid), usage);
        }
    }
    usages
}

/// Waits until everything that was there before uses about as much as then, but for what it keeps of so many more `pods` on
/// purpose.
fn flat(traffic: &Traffic, before: &Usages, pods: u64) -> anyhow::Result<()> {
    wait_for("everything uses as much as before", || {
        let now = usages(traffic);
        for (key, before) in before {
            let Some(now) = now.get(key) else { continue };
            let kept = match key.0.as_str() {
                name if name.starts_with("weft-proxy") => KEPT_BY_PROXY_KIB,
                name if name.starts_with("weft-controller metrics") => KEPT_BY_METRICS_KIB,
                _ => 0,
            };
            let most = before.anonymous * MEMORY_PERCENT / 100 + MEMORY_MORE_KIB + kept * pods;
            ensure!(now.anonymous <= most, "memory of {key:?}: {before:?}, now {now:?}, {pods} more pods are kept");
            let most = before.descriptors + DESCRIPTORS_MORE;
            ensure!(now.descriptors <= most, "descriptors of {key:?}: {before:?}, now {now:?}");
            ensure!(now.threads <= before.threads, "threads of {key:?}: {before:?}, now {now:?}");
        }
        Ok(())
    })
}

/// The replicas that have come, and when each was seen last.
type Pods = BTreeMap<String, Instant>;

/// How many of them may be remembered on purpose.
fn kept(pods: &Pods) -> u64 {
    pods.values().filter(|seen| seen.elapsed() < KEPT).count() as u64
}

fn note(traffic: &Traffic, pods: &mut Pods) -> anyhow::Result<()> {
    pods.extend(traffic.names()?.into_iter().map(|name| (name, Instant::now())));
    Ok(())
}

/// Everything that may happen to a cluster, once.
fn round(traffic: &mut Traffic, number: usize, pods: &mut Pods) -> anyhow::Result<()> {
    traffic.scale(if number.is_multiple_of(2) { 4 } else { 2 })?;
    note(traffic, pods)?;
    traffic.drain(traffic.names()?.first().context("no replica")?)?;
    note(traffic, pods)?;
    traffic.replace()?;
    note(traffic, pods)?;
    // Clients that come with many connections, say little, and go without a word.
    for url in ["http://echo/", "http://echo:81/"] {
        let protocol = if url.ends_with("81/") { "" } else { "--h1" };
        let command =
            format!("for i in 1 2 3; do timeout -s KILL 5 h2load {protocol} -c 50 -n 400 {url} || true; done");
        traffic.cluster.exec(NAMESPACE, CLIENT, &["sh", "-c", &command])?;
    }
    traffic.more(200).map(drop)
}

#[test]
fn nothing_grows_however_much_comes_and_goes() -> anyhow::Result<()> {
    let minutes = env::var("SOAK_MINUTES").map_or(Ok(MINUTES), |text| text.parse()).context("SOAK_MINUTES")?;
    let length = Duration::from_secs(minutes * 60);
    // Most of the time is for the part that is judged, but what is kept should be as much at both looks, if it can.
    let first = if length / 2 >= KEPT { length / 2 } else { length / 3 };
    let mut traffic = Traffic::start(RATE)?;
    // Not what the client asked before there was anybody to answer.
    let start = traffic.report()?;
    let begun = Instant::now();
    let (mut rounds, mut pods) = (0, Pods::new());
    while rounds < 2 || begun.elapsed() < first {
        round(&mut traffic, rounds, &mut pods)?;
        nothing_failed(&traffic, &start, rounds)?;
        rounds += 1;
        // What is killed is not there at the end; so this comes first.
        if begun.elapsed() < first / 2 {
            for component in ["destination", "identity", "metrics"] {
                let killed = traffic.cluster.process("weft-controller", &[component])?;
                killed.kill()?;
                wait_for(component, || {
                    let now = traffic.cluster.process("weft-controller", &[component])?;
                    ensure!(now.pid != killed.pid, "it is not dead yet");
                    Ok(())
                })?;
            }
        }
    }
    let before = at_rest(&mut traffic, rounds)?;
    let kept_before = kept(&pods);
    traffic.resume()?;
    let second = Instant::now();
    while second.elapsed() < length - first {
        round(&mut traffic, rounds, &mut pods)?;
        nothing_failed(&traffic, &start, rounds)?;
        rounds += 1;
    }
    let now = at_rest(&mut traffic, rounds)?;
    ensure!(before.keys().filter(|key| now.contains_key(key)).count() >= 8, "what was there is gone");
    let kept_now = kept(&pods);
    eprintln!("{kept_before} pods were kept then, {kept_now} now, of {}", pods.len());
    flat(&traffic, &before, kept_now.saturating_sub(kept_before))?;
    let report = traffic.report()?.since(&start);
    eprintln!("{} HTTP requests and {} gRPC calls were answered", report.http.answered, report.grpc.answered);
    report.nothing_failed()
}

/// Says so at once, while what has happened can still be read.
fn nothing_failed(traffic: &Traffic, start: &Report, round: usize) -> anyhow::Result<()> {
    traffic.report()?.since(start).nothing_failed().with_context(|| format!("after round {round}\n{}", traffic.state()))
}

/// Stops the requests and looks, always with as many replicas: what holds a pod has its descriptors for it.
fn at_rest(traffic: &mut Traffic, rounds: usize) -> anyhow::Result<Usages> {
    traffic.scale(2)?;
    traffic.settled()?;
    traffic.pause()?;
    let usages = usages(traffic);
    eprintln!("after {rounds} rounds:");
    for ((name, pid), Usage { anonymous, descriptors, threads, .. }) in &usages {
        eprintln!("  {name} ({pid}): {anonymous} KiB, {descriptors} descriptors, {threads} threads");
    }
    Ok(usages)
}
