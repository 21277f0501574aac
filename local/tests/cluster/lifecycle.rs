//! Starting, publishing, applying and deleting whole clusters and namespaces.

use super::basics::{CLIENT, web};
use super::support::{Cluster, Outcome, wait};
use std::io::{Read, Write};

pub const TESTS: &[(&str, fn())] = &[
    ("a_directory_is_followed", a_directory_is_followed),
    ("up_says_what_is_not_ready", up_says_what_is_not_ready),
    ("clusters_do_not_know_of_each_other", clusters_do_not_know_of_each_other),
    ("published_ports_lead_inside", published_ports_lead_inside),
    ("namespaces_and_owners_take_what_is_theirs_with_them", namespaces_and_owners_take_what_is_theirs_with_them),
];

fn up_says_what_is_not_ready() {
    let cluster = Cluster::prepared();
    let none = cluster.weft(&["ps"]);
    assert!(none.code == 1 && none.stderr.contains("no cluster is running"), "{none:?}");
    let file = cluster.file(
        "bad.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: x}]}\n",
    );
    let wrong = cluster.weft(&["up", "--detach", "-f", &file]);
    assert!(wrong.code == 1 && wrong.stderr.contains("spec.containers[0].command"), "{wrong:?}");
    assert!(!cluster.run_dir().exists());
    let file = cluster.file(
        "late.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: x, command: [sh, -c, 'echo the reason; exit 5']}]}\n",
    );
    let late = cluster.weft(&["up", "--detach", "-f", &file, "--timeout", "6"]);
    assert_eq!(late.code, 1);
    for part in ["pod/p in default is not ready", "container c", "exit code 5", "the reason"] {
        assert!(late.stderr.contains(part), "{}", late.stderr);
    }
    assert!(!cluster.run_dir().exists(), "what cannot be brought up is stopped");
}

fn clusters_do_not_know_of_each_other() {
    let one = Cluster::up(CLIENT);
    let two = Cluster::up(CLIENT);
    let again = one.weft(&["up", "--detach"]);
    assert!(again.code == 1 && again.stderr.contains("already runs"), "{again:?}");
    one.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine}\n");
    assert!(one.object("configmaps", "mine").is_some());
    assert!(two.object("configmaps", "mine").is_none());
    one.weft(&["down"]).ok();
    assert!(two.pod("client")["status"]["phase"] == "Running");
    assert_eq!(two.sh("client", "true").code, 0);
}

/// Brings a cluster up that publishes a target. A port that was free a moment ago is taken; should somebody else take it
/// meanwhile, another one is tried.
fn publish(cluster: &Cluster, target: &str, arguments: &[&str]) -> (u16, Outcome) {
    for _ in 0..20 {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let published = format!("{port}:{target}");
        let all = [&["up", "--detach", "--publish", &published], arguments].concat();
        let outcome = cluster.weft(&all);
        if !outcome.stderr.contains("cannot publish") {
            return (port, outcome);
        }
    }
    panic!("no free port");
}

fn published_ports_lead_inside() {
    let cluster = Cluster::prepared();
    let file = cluster.file("web.yaml", &web(1));
    let (port, outcome) = publish(&cluster, "web.default:80", &["-f", &file]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains(&format!("http://127.0.0.1:{port} leads to web.default port 80")), "{outcome:?}");
    let ask = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = ask();
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("web-"), "{answer}");
    let second = Cluster::prepared();
    let taken = second.weft(&["up", "--detach", "--publish", &format!("{port}:web.default:80")]);
    assert!(taken.code == 1 && taken.stderr.contains(&format!("cannot publish at 127.0.0.1:{port}")), "{taken:?}");
    assert!(!second.run_dir().exists());
    let (_, nothing) = publish(&second, "nothing.default:80", &[]);
    assert!(nothing.code == 1 && nothing.stderr.contains("service nothing in default does not exist"), "{nothing:?}");
    assert!(!second.run_dir().exists());
}

fn namespaces_and_owners_take_what_is_theirs_with_them() {
    let cluster = Cluster::up(CLIENT);
    let web = cluster.file("web.yaml", &web(2));
    assert_eq!(
        cluster.weft(&["apply", "-f", &web]).ok(),
        "deployment.apps/web created\nservice/web created\nservice/web-headless created\n"
    );
    wait("both pods are there", || cluster.pods().len() == 3);
    assert_eq!(
        cluster.weft(&["delete", "-f", &web]).ok(),
        "deployment.apps/web deleted\nservice/web deleted\nservice/web-headless deleted\n"
    );
    wait("the pods go with the deployment", || cluster.pods().len() == 1);
    let again = cluster.weft(&["delete", "-f", &web]);
    assert!(again.code == 1 && again.stderr.contains("not found"), "{again:?}");
    assert_eq!(cluster.weft(&["delete", "--ignore-not-found", "-f", &web]).ok(), "");

    let manifest = "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n";
    let namespace = cluster.file("namespace.yaml", manifest);
    let within = format!("{manifest}---\n{}", CLIENT.replace("{name: client,", "{name: client, namespace: other,"));
    cluster.apply(&within);
    wait("the pod of the namespace runs", || cluster.weft(&["exec", "-n", "other", "client", "--", "true"]).code == 0);
    // Across namespaces, and the other way it does not exist in short.
    assert_eq!(cluster.weft(&["delete", "-f", &namespace]).ok(), "namespace/other deleted\n");
    let left = cluster.weft(&["ps", "-A"]).ok();
    assert_eq!(left.lines().count(), 2, "{left}");
    assert!(!cluster.run_dir().join("objects/namespaces/_/other.json").exists());
    // And it can be made again.
    cluster.apply(&within);
    wait("the pod of the new namespace runs", || {
        cluster.weft(&["exec", "-n", "other", "client", "--", "true"]).code == 0
    });
}

fn a_directory_is_followed() {
    let cluster = Cluster::prepared();
    let dir = cluster.run_dir().with_file_name("manifests");
    std::fs::create_dir(&dir).unwrap();
    let map = |name: &str, value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: {value}}}\n")
    };
    std::fs::write(dir.join("client.yaml"), CLIENT).unwrap();
    std::fs::write(dir.join("map.yaml"), map("first", "one")).unwrap();
    cluster.weft(&["up", "--detach", "-f", &dir.to_string_lossy()]).ok();
    let value = |name: &str| cluster.object("configmaps", name).map(|o| o["data"]["key"].clone());
    assert_eq!(value("first").unwrap(), "one");
    std::fs::write(dir.join("map.yaml"), map("first", "two")).unwrap();
    wait("an edit happens", || value("first").is_some_and(|v| v == "two"));
    // What is wrong changes nothing and is said; what follows counts again.
    std::fs::write(dir.join("wrong.yaml"), "kind: Nonsense\n").unwrap();
    std::fs::write(dir.join("map.yaml"), map("first", "three")).unwrap();
    let log = cluster.run_dir().join("logs/up.log");
    wait("the mistake is named", || std::fs::read_to_string(&log).unwrap_or_default().contains("wrong.yaml"));
    assert_eq!(value("first").unwrap(), "two");
    std::fs::remove_file(dir.join("wrong.yaml")).unwrap();
    wait("without the mistake the edit happens", || value("first").is_some_and(|v| v == "three"));
    std::fs::write(dir.join("map.yaml"), map("second", "one")).unwrap();
    wait("what no file names goes", || value("second").is_some() && value("first").is_none());
    assert_eq!(cluster.sh("client", "true").code, 0);
}
