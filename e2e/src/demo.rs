//! What `make demo` does once everything is built.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

use crate::{Cluster, Foreground, binaries, run, wait_for};

/// Runs the demo of the tree at `root` until its figures are there: every workload is meshed and the published page
/// answers. Then asks once more, and ends it with Ctrl-C.
///
/// # Errors
///
/// When something of that is not so, with what the demo said.
pub fn demo(cluster: &Cluster, root: &Path, while_it_runs: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let said = directory.path().join("said");
    let output = File::create(&said)?;
    let mut demo = Command::new(root.join("scripts/demo.sh"));
    demo.arg(binaries()).env("WEFT_RUN_DIR", cluster.run_dir()).current_dir(root).process_group(0);
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
    while_it_runs()?;
    demo.interrupt()?;
    let status = wait_for("the demo ends", || demo.0.try_wait()?.context("it still runs"))?;
    ensure!(status.success(), "the demo: {status}\n{}", fs::read_to_string(&said)?);
    Ok(())
}
