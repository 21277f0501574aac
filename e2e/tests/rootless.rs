//! The mesh without root. Root, who starts this, runs each test as an ordinary user; an ordinary user runs them as itself.

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, LazyLock},
};

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use weft_e2e::{Cluster, PROGRAMS, Stage, User, binaries, demo, manifest, wait_for};

type Test = fn() -> anyhow::Result<()>;

const TESTS: &[(&str, User, Test)] = &[
    ("the_demo_is_meshed_and_secured", User::Ranged, the_demo_is_meshed_and_secured),
    (
        "a_mesh_without_users_is_refused_with_what_is_missing",
        User::Bare,
        a_mesh_without_users_is_refused_with_what_is_missing,
    ),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let root = nix::unistd::geteuid().is_root();
    let stage = Arc::new(LazyLock::new(stage));
    let trials = TESTS.iter().map(|&(name, user, test)| {
        let stage = Arc::clone(&stage);
        Trial::test(name, move || {
            if !root {
                return test().map_err(|error| format!("{error:#}").into());
            }
            let stage = stage.as_ref().as_ref().map_err(|error| format!("cannot prepare the user: {error}"))?;
            stage.test(user, "bin/deps/rootless", name).map_err(Failed::from)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // The last owner: this removes the directory.
    drop(stage);
    conclusion.exit_code()
}

/// Programs and demo where every user may read them, laid out as the tree and its target directory are.
fn stage() -> std::io::Result<Stage> {
    let binaries = binaries();
    let programs = PROGRAMS.map(|name| (binaries.join(name), format!("bin/{name}")));
    let tree = ["scripts/demo.sh", "demo/emojivoto.yml"].map(|path| (manifest(path), path.to_owned()));
    let this = (Path::new("/proc/self/exe").to_owned(), "bin/deps/rootless".to_owned());
    let files: Vec<_> = programs.into_iter().chain(tree).chain([this]).collect();
    Stage::new(&files.iter().map(|(from, to)| (from.as_path(), to.as_str())).collect::<Vec<_>>())
}

fn the_demo_is_meshed_and_secured() -> anyhow::Result<()> {
    let cluster = Cluster::down()?;
    let binaries = binaries();
    let tree = binaries.parent().context("no stage")?;
    demo(&cluster, tree, || {
        wait_for("all edges are secured", || {
            let edges = cluster.json(&["edges", "deploy", "-n", "emojivoto", "-o", "json"])?;
            let edges = edges.as_array().context("not a list")?;
            for (src, account, dst) in
                [("vote-bot", "default", "web"), ("web", "web", "emoji"), ("web", "web", "voting")]
            {
                let edge = edges.iter().find(|edge| edge["src"] == src && edge["dst"] == dst);
                let edge = edge.with_context(|| format!("no edge from {src} to {dst}: {edges:#?}"))?;
                ensure!(edge["no_tls_reason"].as_str().unwrap_or_default().is_empty(), "{edge}");
                for (side, name) in [("client_id", account), ("server_id", dst)] {
                    let identity = edge[side].as_str().unwrap_or_default();
                    ensure!(identity.starts_with(&format!("{name}.emojivoto")), "{edge}");
                }
            }
            Ok(())
        })?;
        cluster.weft(&["check"])?.success()?;
        let user =
            cluster.exec("emojivoto", "deploy/web", &["sh", "-c", "id -u; cat /proc/self/uid_map"])?.success()?;
        let words: Vec<&str> = user.split_whitespace().collect();
        ensure!(words.first() == Some(&"0") && words.get(2) != Some(&"0"), "this is the machine's root: {user}");
        Ok(())
    })?;
    cluster.nothing_is_left()
}

fn a_mesh_without_users_is_refused_with_what_is_missing() -> anyhow::Result<()> {
    let cluster = Cluster::down()?;
    let ran = cluster.weft(&["up", "--detach"])?;
    ensure!(ran.status.code() == Some(1), "{ran}");
    for word in ["package uidmap", "usermod --add-subuids"] {
        ensure!(ran.stderr.contains(word), "{ran}");
    }
    cluster.nothing_is_left()
}
