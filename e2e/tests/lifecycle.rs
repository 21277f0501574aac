//! Beginnings and ends of clusters: in the foreground, after a crash, twice, and as the demo.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weft_e2e::{Cluster, Foreground, binaries, manifest, run, wait_for};

/// One cluster at a time: the machine may be small.
static TURN: Mutex<()> = Mutex::new(());

fn unmeshed() -> [std::ffi::OsString; 2] {
    ["-f".into(), manifest("e2e/manifests/unmeshed.yml").into()]
}

fn interrupt(child: &Foreground) -> anyhow::Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(child.0.id())?), Signal::SIGINT)?)
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
    interrupt(&up)?;
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
    let directory = tempfile::tempdir()?;
    let said = directory.path().join("said");
    let output = File::create(&said)?;
    let mut demo = Command::new(manifest("scripts/demo.sh"));
    demo.arg(binaries()).env("WEFT_RUN_DIR", cluster.run_dir()).current_dir(manifest("")).process_group(0);
    demo.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
    let mut demo = Foreground(demo.spawn()?);
    let url = wait_for("the demo shows its address", || {
        let said = fs::read_to_string(&said)?;
        ensure!(demo.0.try_wait()?.is_none(), "the demo ended:\n{said}");
        let line = said.lines().find_map(|line| line.strip_prefix("The application:"));
        Ok(line.with_context(|| format!("it says:\n{said}"))?.trim().to_owned())
    })?;
    let said_so_far = fs::read_to_string(&said)?;
    for workload in ["emoji", "voting", "web", "vote-bot"] {
        let row = said_so_far.lines().rev().find(|line| line.split_whitespace().next() == Some(workload));
        let row = row.with_context(|| format!("no row of {workload}:\n{said_so_far}"))?;
        ensure!(row.split_whitespace().nth(1) == Some("1/1"), "{row}");
    }
    // From the machine itself, on the published port.
    let page = run(Command::new("curl").args(["-sS", "-f", "-m", "20", &url]))?.success()?;
    ensure!(page.contains("<title>Emojivoto on weft</title>"), "{page}");
    interrupt(&demo)?;
    let status = wait_for("the demo ends", || demo.0.try_wait()?.context("it still runs"))?;
    ensure!(status.success(), "the demo: {status}\n{}", fs::read_to_string(&said)?);
    cluster.nothing_is_left()
}
