//! What breaks by itself, or is killed, while requests flow. As long as one replica lives, a request that nobody has seen
//! goes to it, and so does one that may be repeated. A call in the middle of which its server dies cannot be saved: nobody
//! knows what the server has done.

use anyhow::{Context, ensure};
use weft_e2e::{CLIENT, Interop, Report, Traffic, wait_for};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("a_killed_control_plane_fails_no_request", control_plane),
    ("no_names_for_the_proxy_fail_no_request", names),
    ("a_lossy_link_fails_no_request", lossy_link),
    ("a_narrow_link_fails_no_request", narrow_link),
    ("a_killed_proxy_fails_only_what_it_was_doing", killed_proxy),
    ("a_killed_application_fails_only_what_it_was_doing", killed_application),
];

/// Requests that a dead server may have begun, at most: as many as the client has in flight.
const BEGUN: u64 = 128;

fn control_plane(traffic: &mut Traffic) -> anyhow::Result<()> {
    let seen = traffic.during("the control plane killed", |traffic| {
        for component in ["destination", "identity", "metrics"] {
            let killed = traffic.cluster.process("weft-controller", &[component])?;
            killed.kill()?;
            wait_for(&format!("{component} is back"), || {
                let now = traffic.cluster.process("weft-controller", &[component])?;
                ensure!(now.pid != killed.pid, "it is not dead yet");
                Ok(())
            })?;
        }
        // What happens from now on is heard of.
        traffic.scale(4)?;
        every_replica_answers(traffic)?;
        traffic.scale(3)
    })?;
    seen.nothing_failed()
}

/// Waits until the client has answers from each of the replicas.
fn every_replica_answers(traffic: &Traffic) -> anyhow::Result<()> {
    let begin = traffic.report()?;
    wait_for("every replica answers", || {
        let seen = traffic.report()?.since(&begin);
        for name in traffic.names()? {
            ensure!(seen.http.by_pod.contains_key(&name), "{name} does not answer HTTP: {seen:?}");
            ensure!(seen.grpc.by_pod.contains_key(&name), "{name} does not answer gRPC: {seen:?}");
        }
        Ok(())
    })
}

/// The proxy of the client asks nobody for names while the control plane moves to another address.
fn names(traffic: &mut Traffic) -> anyhow::Result<()> {
    let seen = traffic.during("no DNS, and the control plane moves", |traffic| {
        let rules = "table inet silence { chain output { type filter hook output priority 0; \
                     meta skuid 2102 udp dport 53 counter drop; meta skuid 2102 tcp dport 53 counter drop; }; }";
        let silence = traffic.rules(CLIENT, "weft-load", rules)?;
        let old = traffic.cluster.pod_of("weft", "weft-destination")?;
        let name = old["metadata"]["name"].as_str().context("no name")?;
        traffic.delete("weft", name)?;
        wait_for("another control plane", || {
            let new = traffic.cluster.pod_of("weft", "weft-destination")?;
            ensure!(new["metadata"]["uid"] != old["metadata"]["uid"], "{new}");
            Ok(())
        })?;
        traffic.more(200)?;
        traffic.scale(4)?;
        traffic.more(200)?;
        ensure!(silence.end()? > 0, "nobody asked for a name");
        every_replica_answers(traffic)?;
        traffic.scale(3)
    })?;
    seen.nothing_failed()
}

fn first(traffic: &Traffic) -> anyhow::Result<String> {
    traffic.names()?.pop_first().context("no replica")
}

fn lossy_link(traffic: &mut Traffic) -> anyhow::Result<()> {
    let pod = first(traffic)?;
    let seen = traffic.during("one packet in ten is lost", |traffic| {
        let rules = "table inet lossy { chain input { type filter hook input priority 0; \
                     iifname != \"lo\" numgen random mod 10 0 counter drop; }; }";
        let loss = traffic.rules(&pod, "weft-load", rules)?;
        traffic.more(1000)?;
        ensure!(loss.end()? > 0, "nothing was lost");
        Ok(())
    })?;
    every_replica_answers(traffic)?;
    seen.nothing_failed()
}

fn narrow_link(traffic: &mut Traffic) -> anyhow::Result<()> {
    let pod = first(traffic)?;
    let seen = traffic.during("a link of 64 kbit/s", |traffic| {
        let tc = |arguments: &str| traffic.tc(&pod, "weft-load", arguments);
        tc("qdisc add dev eth0 root tbf rate 64kbit burst 4kb latency 2s")?;
        traffic.more(1000)?;
        // The balancer may avoid the replica for a while, as it was slow before.
        wait_for("something has to wait for the link", || {
            traffic.more(200)?;
            let said = tc("-s qdisc show dev eth0")?;
            ensure!(said.contains("tbf") && !said.contains("overlimits 0 "), "{said}");
            Ok(())
        })?;
        tc("qdisc del dev eth0 root").map(drop)
    })?;
    every_replica_answers(traffic)?;
    seen.nothing_failed()
}

/// HTTP requests are repeated, calls that were under way are lost, and after that nothing fails.
fn only_what_was_begun(traffic: &Traffic, seen: &Report) -> anyhow::Result<()> {
    // Only between two of our proxies is it known what became of a request.
    let known = !Interop::is_other("load")? && !Interop::is_other("echo")?;
    ensure!(seen.http.failed <= if known { 0 } else { BEGUN }, "{seen:?}");
    ensure!(seen.grpc.failed <= BEGUN, "{seen:?}");
    let before = traffic.report()?;
    traffic.more(200)?.since(&before).nothing_failed()
}

fn killed_proxy(traffic: &mut Traffic) -> anyhow::Result<()> {
    let pod = first(traffic)?;
    let seen = traffic.during("a proxy killed", |traffic| {
        traffic.proxy(&pod)?.kill()?;
        every_replica_answers(traffic)?;
        traffic.settled()
    })?;
    only_what_was_begun(traffic, &seen)
}

fn killed_application(traffic: &mut Traffic) -> anyhow::Result<()> {
    let pod = first(traffic)?;
    let seen = traffic.during("an application killed", |traffic| {
        traffic.process(&pod, "weft-load")?.kill()?;
        every_replica_answers(traffic)?;
        traffic.settled()
    })?;
    only_what_was_begun(traffic, &seen)
}
