//! The program itself: exit codes, and what goes to stdout and stderr.

use std::io::Write;
use std::process::{Command, Output, Stdio};

struct Weft {
    run_dir: tempfile::TempDir,
}

impl Weft {
    /// A program that finds no cluster.
    fn new() -> Weft {
        Weft { run_dir: tempfile::tempdir().unwrap() }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.args(line.split(' ').filter(|a| !a.is_empty()));
        command
            .env("WEFT_RUN_DIR", self.run_dir.path())
            .env("HOME", self.run_dir.path())
            .env_remove("KUBECONFIG")
            .env_remove("LINKERD_NAMESPACE")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> (i32, String, String) {
        result(self.command(line).output().unwrap())
    }

    fn with_input(&self, line: &str, input: &str) -> (i32, String, String) {
        let mut child =
            self.command(line).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        result(child.wait_with_output().unwrap())
    }
}

fn result(output: Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn usage_errors_are_exit_code_1() {
    let weft = Weft::new();
    for line in [
        "",
        "dance",
        "stat",
        "stat deploy -o xml",
        "stat widget",
        "edges",
        "edges svc",
        "check -o xml",
        "inject",
        "metrics po",
        "identity",
        "identity web-1 -l app=web",
        "identity -l =",
        "endpoints",
        "endpoints web:80 -o yaml",
        "diagnostics",
        "diagnostics dance",
        "diagnostics profile",
        "diagnostics profile a:80 b:80",
        "diagnostics policy po/web",
        "diagnostics policy po/web 0",
        "diagnostics policy po/web 65536",
        "diagnostics policy po 80",
        "diagnostics policy deploy/web 80",
        "diagnostics policy web 80",
        "diagnostics proxy-metrics",
        "diagnostics controller-metrics -w x",
        "diagnostics controller-metrics extra",
        "get",
        "get services",
        "get po/web",
        "viz",
        "viz list extra",
    ] {
        let (code, stdout, stderr) = weft.run(line);
        assert_eq!((code, stdout.as_str()), (1, ""), "{line}: {stderr}");
        assert!(!stderr.is_empty(), "{line}");
    }
    for line in ["--help", "stat --help", "viz edges --help", "dg ep --help", "diagnostics policy --help", "--version"]
    {
        let (code, stdout, stderr) = weft.run(line);
        assert_eq!((code, stderr.as_str()), (0, ""), "{line}");
        assert!(!stdout.is_empty(), "{line}");
    }
}

/// What is meant for a cluster of Kubernetes changes nothing on this machine.
#[test]
fn commands_of_this_machine_say_so() {
    let weft = Weft::new();
    for line in
        ["ps --context prod", "down --kubeconfig none", "apply -f none.yml --as admin", "exec web --as-group g -- id"]
    {
        let (code, out, err) = weft.run(line);
        assert_eq!((code, out.as_str()), (1, ""), "{line}");
        assert_eq!(
            err, "Error: this command is about the cluster of this machine; on Kubernetes kubectl does it\n",
            "{line}"
        );
    }
}

#[test]
fn without_a_cluster_the_message_says_what_to_do() {
    let weft = Weft::new();
    for line in [
        "stat deploy",
        "viz stat deploy -o json",
        "edges po",
        "metrics deploy/web",
        "inject --manual tests/golden",
        "identity web-1",
        "endpoints web:80",
        "ep web:80",
        "diagnostics endpoints web:80",
        "dg profile 10.0.0.1:80",
        "diagnostics policy po/web 80",
        "diagnostics policy svc/web 80 -o json",
        "diagnostics proxy-metrics po/web",
        "diagnostics cp-metrics",
        "get pods -A",
        "viz list",
    ] {
        let (code, stdout, stderr) = weft.run(line);
        assert_eq!((code, stdout.as_str()), (1, ""), "{line}: {stderr}");
        assert!(stderr.contains("Cannot connect to the cluster"), "{line}: {stderr}");
        assert!(stderr.contains("Validate the install with: weft check"), "{line}: {stderr}");
    }
    for line in ["check", "viz check", "check --proxy -o short"] {
        let (code, stdout, _) = weft.run(line);
        assert_eq!(code, 2, "{line}");
        assert!(stdout.contains("× a cluster is running"), "{line}: {stdout}");
        assert!(stdout.ends_with("\nStatus check results are ×\n"), "{line}: {stdout}");
    }
    let (code, stdout, _) = weft.run("check -o json");
    assert_eq!(code, 2);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value["success"], false);
}

#[test]
fn versions() {
    let weft = Weft::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(weft.run("version --client"), (0, format!("Client version: {version}\n"), String::new()));
    assert_eq!(weft.run("version --client --short"), (0, format!("{version}\n"), String::new()));
    let expected = format!("Client version: {version}\nServer version: unavailable\n");
    assert_eq!(weft.run("version"), (0, expected, String::new()));
    assert_eq!(weft.run("version --short").1, format!("{version}\nunavailable\n"));
    let expected = format!("{version}\nunavailable\nProxy versions: unavailable\n");
    assert_eq!(weft.run("version --short --proxy"), (0, expected, String::new()));
}

#[test]
fn completion_scripts() {
    let weft = Weft::new();
    for shell in ["bash", "zsh", "fish"] {
        let (code, stdout, _) = weft.run(&format!("completion {shell}"));
        assert_eq!(code, 0);
        assert!(stdout.contains("weft"), "{shell}");
    }
    assert_eq!(weft.run("completion csh").0, 1);
}

#[test]
fn manifests_through_pipes_and_folders() {
    let weft = Weft::new();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: a\n";
    let (code, injected, stderr) = weft.with_input("inject -", pod);
    assert_eq!((code, stderr.as_str()), (0, "\npod \"a\" injected\n\n"));
    assert!(injected.contains("linkerd.io/inject: enabled"));
    let (code, back, stderr) = weft.with_input("uninject -", &injected);
    assert_eq!((code, back.as_str(), stderr.as_str()), (0, pod, "\npod \"a\" uninjected\n\n"));
    let (code, json, _) = weft.with_input("uninject -o json -", pod);
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["kind"], "Pod");

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    std::fs::write(folder.path().join("sub/b.yml"), pod.replace("name: a", "name: b")).unwrap();
    std::fs::write(folder.path().join("a.yaml"), pod).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not a manifest").unwrap();
    let (code, _, stderr) = weft.run(&format!("inject {}", folder.path().display()));
    assert_eq!((code, stderr.as_str()), (0, "\npod \"a\" injected\npod \"b\" injected\n\n"));

    let (code, stdout, stderr) = weft.with_input("inject -", "a: [");
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("Error: standard input: document 1: not valid YAML:"), "{stderr}");
    let (code, _, stderr) = weft.run("inject /nonexistent/app.yaml");
    assert_eq!(code, 1);
    assert!(stderr.contains("/nonexistent/app.yaml"), "{stderr}");
    let anchors = folder.path().join("anchors.pem");
    std::fs::write(&anchors, "no certificate").unwrap();
    let line = format!("inject --manual --identity-trust-anchors-file {} -", anchors.display());
    assert_eq!(weft.with_input(&line, pod).0, 1);
    let trust = weft_core::trust::generate(time::OffsetDateTime::now_utc()).unwrap();
    std::fs::write(&anchors, trust.anchor_pem).unwrap();
    let (code, injected, _) = weft.with_input(&line, pod);
    assert_eq!(code, 0);
    assert!(injected.contains("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS"));
    assert!(!injected.contains("linkerd.io/inject"));
}
