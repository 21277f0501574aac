//! Nothing is left, however a cluster ends.

use super::basics::{CLIENT, web};
use super::support::{Cluster, holders, processes_of, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;

pub const TESTS: &[(&str, fn())] = &[
    ("nothing_is_left_after_down", nothing_is_left_after_down),
    ("nothing_is_left_when_weft_up_is_killed", nothing_is_left_when_weft_up_is_killed),
    ("nothing_is_left_when_the_node_is_killed", nothing_is_left_when_the_node_is_killed),
    ("ctrl_c_stops_the_cluster", ctrl_c_stops_the_cluster),
    ("down_waits_for_a_cluster_that_is_just_ending", down_waits_for_a_cluster_that_is_just_ending),
    ("files_of_every_user_go_with_the_cluster", files_of_every_user_go_with_the_cluster),
];

/// Mounts that this process sees below a directory.
fn mounts_below(dir: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|l| l.contains(&*dir.to_string_lossy())).count()
}

/// Interfaces of the machine.
fn interfaces() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn nothing_runs(cluster: &Cluster) {
    wait("no process is left", || processes_of(&cluster.run_dir()).is_empty());
    assert_eq!(mounts_below(&cluster.run_dir()), 0);
    assert!(!interfaces().iter().any(|n| n == "weft0" || n.starts_with("pod")), "{:?}", interfaces());
}

fn nothing_is_left_after_down() {
    let cluster = Cluster::up(&format!("{}\n---\n{CLIENT}", web(1)));
    assert!(holders(&cluster.run_dir()).len() == 2);
    assert_eq!(mounts_below(&cluster.run_dir()), 0, "mounts are the node's own");
    assert!(!interfaces().iter().any(|n| n == "weft0"));
    let outcome = cluster.weft(&["down"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, "stopped the cluster\n"));
    assert!(!cluster.run_dir().exists());
    nothing_runs(&cluster);
    let again = cluster.weft(&["down"]);
    assert!(again.code == 0 && again.stderr.contains("no cluster is running"), "{again:?}");
}

/// Starts `weft up` in the foreground and waits until its pods are there.
fn foreground(cluster: &Cluster) -> std::process::Child {
    let file = cluster.file("client.yaml", CLIENT);
    let child = cluster.spawn(&["up", "-f", &file]);
    wait("the pod runs", || cluster.weft(&["exec", "client", "--", "true"]).code == 0);
    child
}

fn nothing_is_left_when_weft_up_is_killed() {
    let cluster = Cluster::prepared();
    let mut up = foreground(&cluster);
    up.kill().unwrap();
    up.wait().unwrap();
    nothing_runs(&cluster);
    assert!(cluster.run_dir().exists());
    let stale = cluster.weft(&["ps"]);
    assert!(stale.code == 1 && stale.stderr.contains("a cluster crashed there"), "{stale:?}");
    // A new one starts over it.
    let mut up = foreground(&cluster);
    up.kill().unwrap();
    up.wait().unwrap();
    nothing_runs(&cluster);
    let down = cluster.weft(&["down"]);
    assert!(down.code == 0 && down.stderr.contains("removed what a crashed cluster left"), "{down:?}");
    assert!(!cluster.run_dir().exists());
}

fn nothing_is_left_when_the_node_is_killed() {
    let cluster = Cluster::prepared();
    // Its launcher is what holds the namespaces for it.
    for role in ["__node", "__launch"] {
        let mut up = foreground(&cluster);
        let found = super::support::roles(&cluster.run_dir(), role);
        assert_eq!(found.len(), 1, "{role}");
        kill(Pid::from_raw(found[0]), Signal::SIGKILL).unwrap();
        up.wait().unwrap();
        nothing_runs(&cluster);
        assert!(!cluster.run_dir().exists(), "weft up cleans up behind a node that ends ({role})");
    }
}

/// A cluster that ends, or begins, holds its directory for a moment in which nobody listens.
fn down_waits_for_a_cluster_that_is_just_ending() {
    let cluster = Cluster::prepared();
    let run = weft_local::rundir::RunDir::at(&cluster.run_dir()).unwrap();
    let lock = run.lock().unwrap();
    let mut down = cluster.spawn(&["down"]);
    // It has ended already if it does not wait.
    #[allow(clippy::disallowed_methods, reason = "nothing is to happen meanwhile")]
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(down.try_wait().unwrap().is_none(), "it does not wait");
    drop(lock);
    assert!(down.wait().unwrap().success());
    assert!(!cluster.run_dir().exists());
}

fn ctrl_c_stops_the_cluster() {
    let cluster = Cluster::prepared();
    let mut up = foreground(&cluster);
    kill(Pid::from_raw(up.id().cast_signed()), Signal::SIGINT).unwrap();
    assert!(up.wait().unwrap().success());
    assert!(!cluster.run_dir().exists());
    nothing_runs(&cluster);
    // Also while it is still starting.
    let file = cluster.file("never.yaml", &CLIENT.replace("[sleep, infinity]", "['false']"));
    let mut up = cluster.spawn(&["up", "-f", &file]);
    wait("the cluster serves", || cluster.run_dir().join("api.sock").exists());
    wait("the pod is known", || cluster.weft(&["ps"]).stdout.contains("client"));
    kill(Pid::from_raw(up.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(up.wait().unwrap().success());
    assert!(!cluster.run_dir().exists());
    nothing_runs(&cluster);
}

fn files_of_every_user_go_with_the_cluster() {
    let cluster = Cluster::prepared();
    let file = cluster.file(
        "claim.yaml",
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\n\
         spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: client}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         securityContext: {runAsUser: 1234, runAsGroup: 1234}\n  \
         volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]\n  containers:\n    \
         - {name: main, image: x, command: [sleep, infinity], volumeMounts: [{name: v, mountPath: /v}]}\n",
    );
    let write = || {
        cluster.weft(&["up", "--detach", "-f", &file]).ok();
        cluster.sh("client", "umask 077 && mkdir -p /v/own/deep && echo x > /v/own/deep/file").ok();
    };
    write();
    cluster.weft(&["down"]).ok();
    assert!(!cluster.run_dir().exists());
    // After a crash, by whoever comes first.
    for command in [["up", "--detach"].as_slice(), &["down"]] {
        write();
        for host in super::support::roles(&cluster.run_dir(), "__host") {
            kill(Pid::from_raw(host), Signal::SIGKILL).unwrap();
        }
        nothing_runs(&cluster);
        cluster.weft(command).ok();
        assert!(!cluster.run_dir().join("volumes/default/data").exists(), "{command:?}");
        cluster.weft(&["down"]).ok();
    }
}
