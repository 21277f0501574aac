//! Beginnings and ends of clusters: in the foreground, after a crash, twice, and as the demo.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::Stdio,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, ensure};
use weft_e2e::{Cluster, Foreground, demo, manifest, run, wait_for};

/// One cluster at a time: the machine may be small.
static TURN: Mutex<()> = Mutex::new(());

fn unmeshed() -> [std::ffi::OsString; 2] {
    ["-f".into(), manifest("e2e/manifests/unmeshed.yml").into()]
}

#[test]
fn ctrl_c_leaves_nothing() -> anyhow::Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::down()?;
    let mut up = cluster.command(&["up"]);
    up.args(unmeshed()).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    let mut up = Foreground(up.spawn()?);
    wait_for("the cluster is up", || {
        ensure!(up.0.try_wait()?.is_none(), "weft up ended");
        cluster.exec("plain", "client", &["true"])?.success()
    })?;
    up.interrupt()?;
    let status = wait_for("weft up ends", || up.0.try_wait()?.context("it still runs"))?;
    ensure!(status.success(), "weft up: {status}");
    cluster.nothing_is_left()
}

#[test]
fn down_cleans_up_after_a_crash() -> anyhow::Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::up(&unmeshed())?;
    // The worst order: whoever could clean up goes first.
    for process in cluster.processes() {
        let _ = process.kill();
    }
    cluster.weft(&["down"])?.success()?;
    cluster.nothing_is_left()
}

#[test]
fn a_second_cluster_in_the_same_place_is_refused() -> anyhow::Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::up(&unmeshed())?;
    let ran = cluster.weft(&["up", "--detach"])?;
    ensure!(!ran.status.success() && ran.stderr.contains("already"), "{ran}");
    cluster.exec("plain", "client", &["true"])?.success()?;
    cluster.weft(&["down"])?.success()?;
    cluster.nothing_is_left()
}

#[test]
fn a_wrong_manifest_starts_nothing() -> anyhow::Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::down()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("wrong.yml");
    fs::write(&file, "apiVersion: v1\nkind: Pod\nmetadata: {name: 7}\n")?;
    let ran = run(cluster.command(&["up", "--detach", "-f"]).arg(&file))?;
    ensure!(!ran.status.success() && ran.stderr.contains("wrong.yml") && ran.stderr.contains("metadata.name"), "{ran}");
    cluster.nothing_is_left()
}

/// What `make demo` does once everything is built.
#[test]
fn the_demo_shows_traffic_and_ctrl_c_leaves_nothing() -> anyhow::Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::down()?;
    demo(&cluster, &manifest(""), || Ok(()))?;
    cluster.nothing_is_left()
}
