//! The installer as a process, with directories in place of a node's.

mod support;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use support::eventually;
use weft_cni::install::Place;

const LIST: &str =
    r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","mtu":1500},{"type":"portmap"}]}"#;
const SINGLE: &str = "{\"cniVersion\": \"0.3.1\",\n \"name\": \"other\", \"type\": \"ptp\"}\n";

struct Node {
    directory: tempfile::TempDir,
    child: Option<Child>,
}

impl Node {
    fn new() -> Node {
        let node = Node { directory: tempfile::tempdir().unwrap(), child: None };
        for directory in ["net.d", "bin", "account"] {
            fs::create_dir(node.path(directory)).unwrap();
        }
        fs::write(node.path("account/ca.crt"), "authority").unwrap();
        fs::write(node.path("account/token"), "first\n").unwrap();
        node
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn net(&self, file: &str) -> PathBuf {
        self.path("net.d").join(file)
    }

    fn command(&self, command: &str) -> Command {
        let mut weft = Command::new(env!("CARGO_BIN_EXE_weft-cni"));
        weft.env_clear().arg(command).arg("--net-dir-on-node=/etc/cni/net.d");
        weft.arg("--net-dir").arg(self.path("net.d")).arg("--bin-dir").arg(self.path("bin"));
        weft
    }

    fn install(&mut self) {
        let mut install = self.command("install");
        install.arg("--service-account").arg(self.path("account")).args(["--api-host=10.96.0.1", "--api-port=443"]);
        self.child = Some(install.spawn().unwrap());
    }

    fn is_ready(&self) -> bool {
        self.command("ready").stderr(std::process::Stdio::null()).status().unwrap().success()
    }

    fn types(&self, file: &str) -> Option<Vec<String>> {
        let list: Value = serde_json::from_str(&fs::read_to_string(self.net(file)).ok()?).ok()?;
        let types = list["plugins"].as_array()?.iter().map(|p| p["type"].as_str().unwrap_or_default().to_owned());
        Some(types.collect())
    }

    fn becomes(&self, file: &str, expected: &[&str]) {
        let wanted: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        eventually(file, || (self.types(file).as_ref() == Some(&wanted)).then_some(()));
    }

    fn end(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        child.wait().unwrap()
    }

    fn files(&self, directory: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_plugin_is_installed_kept_and_removed() {
    let mut node = Node::new();
    node.install();
    // The program and its credentials are there before the network is.
    let kubeconfig = node.net("weft-cni-kubeconfig");
    eventually("the kubeconfig", || kubeconfig.exists().then_some(()));
    assert!(!node.is_ready(), "there is no network yet");
    assert_eq!(mode(&kubeconfig), 0o600);
    let config = json(&kubeconfig);
    assert_eq!(config["clusters"][0]["cluster"]["server"], "https://10.96.0.1:443");
    assert_eq!(config["users"][0]["user"]["token"], "first");
    assert_eq!(fs::read(node.path("bin/weft-cni")).unwrap(), fs::read(env!("CARGO_BIN_EXE_weft-cni")).unwrap());
    assert_eq!(mode(&node.path("bin/weft-cni")), 0o755);

    // The network's installer comes later, and rewrites its file.
    for _ in 0..2 {
        fs::write(node.net("10-bridge.conflist"), LIST).unwrap();
        node.becomes("10-bridge.conflist", &["bridge", "portmap", "weft-cni"]);
        eventually("readiness", || node.is_ready().then_some(()));
    }
    let entry = &json(&node.net("10-bridge.conflist"))["plugins"][2];
    assert_eq!(entry["kubernetes"]["kubeconfig"], "/etc/cni/net.d/weft-cni-kubeconfig");

    // Another network comes first by name, as one plugin.
    fs::write(node.net("05-other.conf"), SINGLE).unwrap();
    node.becomes("05-other.conflist", &["ptp", "weft-cni"]);
    eventually("the file to go", || (!node.net("05-other.conf").exists()).then_some(()));
    assert!(node.is_ready());

    // The token is renewed; somebody deletes what was installed.
    fs::write(node.path("account/token"), "second").unwrap();
    fs::remove_file(&kubeconfig).unwrap();
    fs::remove_file(node.path("bin/weft-cni")).unwrap();
    eventually("the new token", || {
        let text = fs::read_to_string(&kubeconfig).ok()?;
        (text.contains("second") && node.path("bin/weft-cni").exists()).then_some(())
    });

    assert!(node.end().success());
    assert_eq!(node.files("net.d"), ["05-other.conf", "10-bridge.conflist"]);
    assert!(node.files("bin").is_empty());
    assert_eq!(fs::read_to_string(node.net("05-other.conf")).unwrap(), SINGLE);
    assert_eq!(json(&node.net("10-bridge.conflist")), serde_json::from_str::<Value>(LIST).unwrap());
    assert!(!node.is_ready());
}

/// What somebody else has changed meanwhile stays.
#[test]
fn edits_of_others_outlive_the_plugin() {
    let mut node = Node::new();
    fs::write(node.net("05-other.conf"), SINGLE).unwrap();
    fs::set_permissions(node.net("05-other.conf"), fs::Permissions::from_mode(0o640)).unwrap();
    node.install();
    node.becomes("05-other.conflist", &["ptp", "weft-cni"]);
    assert_eq!(mode(&node.net("05-other.conflist")), 0o640);
    let mut list = json(&node.net("05-other.conflist"));
    list["plugins"].as_array_mut().unwrap().push(serde_json::json!({ "type": "tuning" }));
    fs::write(node.net("05-other.conflist"), list.to_string()).unwrap();
    eventually("the file to go", || (!node.net("05-other.conf").exists()).then_some(()));
    assert!(node.is_ready(), "it need not be the last one");
    assert!(node.end().success());
    assert_eq!(node.types("05-other.conflist").unwrap(), ["ptp", "tuning"]);
    assert_eq!(node.files("net.d"), ["05-other.conflist"]);
}

/// A list of somebody else's has the name that one plugin's would get: it must outlive the plugin.
#[test]
fn a_list_of_another_is_not_replaced() {
    let node = Node::new();
    let (single, list) = (node.net("10-pods.conf"), node.net("10-pods.conflist"));
    let text = |path: &Path| fs::read_to_string(path).unwrap();
    let place =
        Place { net_dir: node.path("net.d"), net_dir_on_node: "/etc/cni/net.d".into(), bin_dir: node.path("bin") };
    fs::write(node.path("bin/weft-cni"), "").unwrap();
    fs::write(node.net("weft-cni-kubeconfig"), "").unwrap();
    let refused = || {
        let problems = [place.apply().unwrap_err(), place.ready().unwrap_err()].map(|error| format!("{error:#}"));
        for problem in problems {
            let hides = format!("{} hides {}, and cannot", single.display(), list.display());
            assert!(problem.starts_with(&hides), "{problem}");
        }
    };
    fs::write(&single, SINGLE).unwrap();
    fs::write(&list, LIST).unwrap();
    refused();
    assert_eq!(node.files("net.d"), ["10-pods.conf", "10-pods.conflist", "weft-cni-kubeconfig"]);
    assert_eq!((text(&single).as_str(), text(&list).as_str()), (SINGLE, LIST));

    // Its own list it may replace: when it was ended before it had moved the file, and when the file is written anew.
    fs::remove_file(&list).unwrap();
    let other = SINGLE.replace("ptp", "bridge");
    for content in [SINGLE, SINGLE, &other] {
        fs::write(&single, content).unwrap();
        assert_eq!(place.apply().unwrap(), Some(list.clone()));
        assert!(!single.exists());
        place.ready().unwrap();
    }
    fs::rename(node.net("10-pods.conf.weft-cni-original"), &single).unwrap();
    assert_eq!(place.apply().unwrap(), Some(list.clone()));
    assert_eq!(node.types("10-pods.conflist").unwrap(), ["bridge", "weft-cni"]);

    // Somebody has edited it, and somebody else brings the file back.
    let mut edited = json(&list);
    edited["plugins"].as_array_mut().unwrap().push(serde_json::json!({ "type": "tuning" }));
    fs::write(&list, edited.to_string()).unwrap();
    fs::write(&single, SINGLE).unwrap();
    refused();
    assert_eq!((text(&single).as_str(), json(&list)), (SINGLE, edited));
}

/// What the plugin would refuse to be called with is not configured: no pod would get a network.
#[test]
fn a_version_that_the_plugin_does_not_know_is_said() {
    let mut node = Node::new();
    let list = LIST.replace("1.0.0", "0.2.0");
    fs::write(node.net("10-bridge.conflist"), &list).unwrap();
    node.install();
    eventually("the kubeconfig", || node.net("weft-cni-kubeconfig").exists().then_some(()));
    let output = node.command("ready").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("its cniVersion is \"0.2.0\""), "{said}");
    fs::write(node.net("05-other.conf"), SINGLE.replace("\"cniVersion\": \"0.3.1\",", "")).unwrap();
    let output = node.command("ready").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("it has no cniVersion"), "{said}");
    assert!(node.end().success());
    assert_eq!(node.files("net.d"), ["05-other.conf", "10-bridge.conflist"]);
    assert_eq!(fs::read_to_string(node.net("10-bridge.conflist")).unwrap(), list);
}

/// A file that is being written, or broken, is waited for: the runtime reads no other either.
#[test]
fn a_broken_configuration_is_waited_for() {
    let mut node = Node::new();
    fs::write(node.net("10-bridge.conflist"), &LIST[..20]).unwrap();
    fs::write(node.net("20-later.conflist"), LIST).unwrap();
    node.install();
    eventually("the kubeconfig", || node.net("weft-cni-kubeconfig").exists().then_some(()));
    assert!(!node.is_ready());
    fs::write(node.net("10-bridge.conflist"), LIST).unwrap();
    node.becomes("10-bridge.conflist", &["bridge", "portmap", "weft-cni"]);
    assert_eq!(node.types("20-later.conflist").unwrap(), ["bridge", "portmap"]);
}
