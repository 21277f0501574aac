//! The CNI plugin, versions 0.3.0 to 1.1.0 of the specification: it is called behind the plugins that make a pod's network,
//! answers what the one before it has answered, and redirects the pod's traffic when the pod has a proxy.
//!
//! What to redirect is in the arguments of the pod's validator, which are those that `weft-init` would have been given. So
//! the pod says everything about itself, and one question to the API server is enough. When that does not answer the pod
//! gets no network: a pod that is meshed must not start without its proxy, and whether it is, nobody knows then. The
//! kubelet tries again.

use clap::Parser;
use serde_json::{Value, json};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use weft_controller::kubernetes::{Api, Error as ApiError, Options, Resource};
use weft_core::names;
use weft_proxy::redirect::Flags;
use weft_proxy::validate::Validate;

/// Versions of the specification that it speaks.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const PODS: Resource = Resource { api_version: "v1", plural: "pods" };

/// How long it may take to hear about a pod. The kubelet waits for two minutes.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(4);
/// How long a pod may be unknown: those of the node's own files are told to the API server by the kubelet, meanwhile.
const UNKNOWN: Duration = Duration::from_secs(2);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);

/// Codes of errors, as the specification has them.
mod code {
    pub const VERSION: u32 = 1;
    pub const ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const DECODE: u32 = 6;
    pub const CONFIGURATION: u32 = 7;
    pub const TRY_AGAIN: u32 = 11;
    pub const NOT_AVAILABLE: u32 = 50;
    /// From here on they are the plugin's own.
    pub const POD: u32 = 100;
    pub const RULES: u32 = 101;
}

/// What the runtime says in the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// `ADD`, `DEL`, `CHECK`, `VERSION`, `GC` or `STATUS`.
    pub command: String,
    /// Path of the pod's network namespace.
    pub netns: Option<PathBuf>,
    /// `KEY=VALUE;…`: which pod it is.
    pub args: String,
}

impl Call {
    /// The call of this process; `None` when no runtime has started it.
    pub fn from_env() -> Option<Call> {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Call {
            command: text("CNI_COMMAND")?,
            netns: text("CNI_NETNS").map(PathBuf::from),
            args: text("CNI_ARGS").unwrap_or_default(),
        })
    }

    fn arg(&self, name: &str) -> Option<&str> {
        let mut pairs = self.args.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value).filter(|value| !value.is_empty())
    }
}

/// What goes to standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// JSON, or nothing.
    pub text: String,
    /// Whether it is an error.
    pub failed: bool,
}

impl Answer {
    /// The configuration could not be read.
    pub fn unreadable(error: &std::io::Error) -> Answer {
        Answer::error("1.0.0", &Fault { code: code::IO, message: format!("cannot read the configuration: {error}") })
    }

    fn error(version: &str, fault: &Fault) -> Answer {
        let value = json!({ "cniVersion": version, "code": fault.code, "msg": format!("weft-cni: {}", fault.message) });
        Answer { text: format!("{value}\n"), failed: true }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Fault {
    code: u32,
    message: String,
}

fn fault<T>(code: u32, message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { code, message: message.into() })
}

/// Does what the runtime asks for.
pub fn answer(call: &Call, configuration: &[u8]) -> Answer {
    let configuration: Value = match serde_json::from_slice(configuration) {
        Ok(value @ Value::Object(_)) => value,
        _ => {
            let message = "the configuration is no JSON object".to_owned();
            return Answer::error("1.0.0", &Fault { code: code::DECODE, message });
        }
    };
    // Without one it is older than the field.
    let version = configuration.get("cniVersion").and_then(Value::as_str).unwrap_or("0.2.0");
    match perform(call, &configuration, version) {
        Ok(None) => Answer { text: String::new(), failed: false },
        Ok(Some(result)) => Answer { text: format!("{result}\n"), failed: false },
        Err(fault) => Answer::error(version, &fault),
    }
}

fn perform(call: &Call, configuration: &Value, version: &str) -> Result<Option<Value>, Fault> {
    if call.command == "VERSION" {
        return Ok(Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS })));
    }
    // The rules go with the namespace, and belong to nobody but this pod. Nothing may keep a pod from ending.
    if call.command == "DEL" {
        return Ok(None);
    }
    if !VERSIONS.contains(&version) {
        return fault(code::VERSION, format!("version {version} of CNI is not one of {}", VERSIONS.join(", ")));
    }
    match call.command.as_str() {
        "ADD" => add(call, configuration).map(Some),
        "CHECK" => Ok(None),
        "GC" if version == "1.1.0" => Ok(None),
        "STATUS" if version == "1.1.0" => status(configuration),
        other => fault(code::ENVIRONMENT, format!("CNI_COMMAND {other:?} is unknown in version {version}")),
    }
}

fn kubeconfig(configuration: &Value) -> Result<&Path, Fault> {
    let path = configuration.pointer("/kubernetes/kubeconfig").and_then(Value::as_str).map(Path::new);
    path.ok_or_else(|| Fault { code: code::CONFIGURATION, message: "kubernetes.kubeconfig is missing".into() })
}

fn status(configuration: &Value) -> Result<Option<Value>, Fault> {
    let path = kubeconfig(configuration)?;
    match std::fs::metadata(path) {
        Ok(_) => Ok(None),
        Err(error) => fault(code::NOT_AVAILABLE, format!("{}: {error}", path.display())),
    }
}

fn add(call: &Call, configuration: &Value) -> Result<Value, Fault> {
    let Some(previous) = configuration.get("prevResult").filter(|result| result.is_object()) else {
        return fault(code::CONFIGURATION, "prevResult is missing: it must come behind a plugin that makes a network");
    };
    let (Some(name), Some(namespace)) = (call.arg("K8S_POD_NAME"), call.arg("K8S_POD_NAMESPACE")) else {
        // Not one of Kubernetes.
        return Ok(previous.clone());
    };
    if ![name, namespace].iter().all(|name| is_name(name)) {
        return fault(code::ENVIRONMENT, format!("CNI_ARGS: {namespace}/{name} is no name of a pod"));
    }
    let pod = pod(kubeconfig(configuration)?, namespace, name)?;
    let about = |message: String| format!("pod {namespace}/{name}: {message}");
    if let Some(flags) = wanted(&pod).map_err(|message| Fault { code: code::POD, message: about(message) })? {
        let Some(netns) = &call.netns else {
            return fault(code::ENVIRONMENT, "CNI_NETNS is missing");
        };
        within(netns, &flags).map_err(|message| Fault { code: code::RULES, message: about(message) })?;
    }
    Ok(previous.clone())
}

/// Whether a path of the API may be made of it.
fn is_name(text: &str) -> bool {
    text.len() <= 253 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

/// The arguments of the pod's validator behind `validate`; `None` when this plugin does not redirect the pod.
pub(crate) fn arguments(pod: &Value) -> Option<Vec<&str>> {
    let container = |lists: &[&str], name: &str| {
        let all = lists.iter().filter_map(|list| pod.get("spec")?.get(*list)?.as_array()).flatten();
        all.into_iter().find(|container| container.get("name").and_then(Value::as_str) == Some(name))
    };
    let init = &["initContainers"][..];
    let proxy = container(&["containers", "initContainers"], names::PROXY_CONTAINER);
    if proxy.is_none() || container(init, names::INIT_CONTAINER).is_some() {
        return None;
    }
    let args = container(init, names::VALIDATOR_CONTAINER)?.get("args")?.as_array()?;
    let mut args = args.iter().filter_map(Value::as_str);
    // Another mesh has validators of this name, too, and a plugin of its own.
    (args.next() == Some("validate")).then(|| args.collect())
}

/// How a pod is to be redirected; `None` when it is not.
fn wanted(pod: &Value) -> Result<Option<Flags>, String> {
    let Some(args) = arguments(pod) else { return Ok(None) };
    let read = Arguments::try_parse_from(args);
    let said = |error: clap::Error| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    };
    match read {
        Ok(arguments) => Ok(Some(arguments.validate.flags)),
        Err(error) => Err(format!("arguments of {}: {}", names::VALIDATOR_CONTAINER, said(error))),
    }
}

/// What is behind `validate`. Only flags that change nothing but the pod's own network: who makes a pod writes them.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Arguments {
    #[command(flatten)]
    validate: Validate,
}

/// Puts the rules into the namespace, by a thread that ends in there.
fn within(netns: &Path, flags: &Flags) -> Result<(), String> {
    let enter = || {
        let fault = |error: &dyn Display| format!("cannot enter {}: {error}", netns.display());
        let file = std::fs::File::open(netns).map_err(|error| fault(&error))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|error| fault(&error))?;
        flags.apply().map(drop).map_err(|error| format!("{error:#}"))
    };
    std::thread::scope(|scope| scope.spawn(enter).join().unwrap_or_else(|_| Err("it failed".into())))
}

fn pod(kubeconfig: &Path, namespace: &str, name: &str) -> Result<Value, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Fault { code: code::IO, message: error.to_string() })?;
    runtime.block_on(async {
        let options = Options { kubeconfig: Some(kubeconfig.to_owned()), timeout: ANSWER };
        // The installer writes it anew as its token is renewed.
        let api = Api::new(&options).await;
        let api = api.map_err(|error| Fault { code: code::TRY_AGAIN, message: format!("{error:#}") })?;
        ask(&api, namespace, name).await
    })
}

/// The pod; tried again when it is not known yet, and when the server fails or does not answer.
async fn ask(api: &Api, namespace: &str, name: &str) -> Result<Value, Fault> {
    let begun = Instant::now();
    let path = format!("{}/{name}", PODS.within(namespace));
    loop {
        let answer = timeout_at(begun + PATIENCE, api.get(&path)).await;
        let error = match answer.unwrap_or(Err(ApiError::Timeout(PATIENCE))) {
            Ok(pod) if pod.get("kind").and_then(Value::as_str) == Some("Pod") => return Ok(pod),
            Ok(_) => ApiError::Malformed("it is no pod".into()),
            Err(error) => error,
        };
        let patience = match &error {
            ApiError::Status { code: 404, .. } => UNKNOWN,
            // Who may not ask now may not ask soon.
            ApiError::Status { code: 400..=428, .. } => Duration::ZERO,
            _ => PATIENCE,
        };
        if begun.elapsed() + PAUSE >= patience {
            let message = format!("whether pod {namespace}/{name} is meshed cannot be found out: {error}");
            return fault(code::TRY_AGAIN, message);
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: &str, version: &str) -> Value {
        let call = Call { command: command.into(), ..Call::default() };
        let configuration = json!({ "cniVersion": version, "name": "pods", "type": "weft-cni" });
        serde_json::from_str(&answer(&call, configuration.to_string().as_bytes()).text).unwrap_or_default()
    }

    #[test]
    fn every_version_of_the_specification() {
        for version in VERSIONS {
            let answer = call("VERSION", version);
            assert_eq!(answer, json!({ "cniVersion": version, "supportedVersions": VERSIONS }));
            assert_eq!((call("DEL", version), call("CHECK", version)), (Value::Null, Value::Null));
            assert_eq!(call("ADD", version)["code"], 7, "there is no plugin before it");
            assert_eq!(call("PAUSE", version)["code"], 4);
        }
        assert_eq!(call("VERSION", "0.2.0")["supportedVersions"], json!(VERSIONS));
        assert_eq!(call("ADD", "0.2.0")["code"], 1);
        assert_eq!((call("DEL", "0.2.0"), call("DEL", "2.0.0")), (Value::Null, Value::Null), "pods must end");
        assert_eq!(call("ADD", "2.0.0")["cniVersion"], "2.0.0");
        assert_eq!((call("GC", "1.1.0"), &call("GC", "1.0.0")["code"]), (Value::Null, &json!(4)));
        assert_eq!(call("STATUS", "1.1.0")["code"], 7);
        let status = json!({ "cniVersion": "1.1.0", "kubernetes": { "kubeconfig": "/nowhere/kubeconfig" } });
        let call = Call { command: "STATUS".into(), ..Call::default() };
        let failed = answer(&call, status.to_string().as_bytes());
        assert!(failed.failed && failed.text.contains("\"code\":50"), "{}", failed.text);
        let broken = answer(&call, b"{");
        assert!(broken.failed && broken.text.contains("\"code\":6"), "{}", broken.text);
    }

    /// What is not one of Kubernetes' gets what it had.
    #[test]
    fn results_pass_through() {
        let previous = json!({ "cniVersion": "0.4.0", "ips": [{ "version": "4", "address": "10.1.0.5/16" }], "x": 1 });
        let configuration = json!({ "cniVersion": "0.4.0", "prevResult": previous });
        let call = Call { command: "ADD".into(), netns: None, args: "IgnoreUnknown=1".into() };
        let answered = answer(&call, configuration.to_string().as_bytes());
        assert_eq!((serde_json::from_str(&answered.text).ok(), answered.failed), (Some(previous), false));
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=../../secrets/b".to_owned();
        let odd = answer(&Call { args, ..call }, configuration.to_string().as_bytes());
        assert!(odd.failed && odd.text.contains("\"code\":4"), "{}", odd.text);
    }

    fn pod(containers: &[&str], init: Value) -> Value {
        let containers: Vec<Value> = containers.iter().map(|name| json!({ "name": name })).collect();
        json!({ "kind": "Pod", "spec": { "containers": containers, "initContainers": init } })
    }

    #[test]
    fn only_pods_that_are_meshed_and_say_how_are_redirected() {
        let validator = |args: Value| json!([{ "name": "linkerd-network-validator", "args": args }]);
        let ours = validator(json!(["validate", "--incoming-proxy-port", "5143", "--proxy-uid", "7"]));
        let flags = wanted(&pod(&["linkerd-proxy", "web"], ours.clone())).unwrap().unwrap();
        assert_eq!((flags.incoming_proxy_port, flags.outgoing_proxy_port, flags.proxy_uid), (5143, 4140, Some(7)));
        assert_eq!(wanted(&pod(&["web"], ours.clone())), Ok(None));
        assert_eq!(wanted(&pod(&["web"], Value::Null)), Ok(None));
        assert_eq!(wanted(&pod(&["linkerd-proxy"], json!([{ "name": "linkerd-init" }, ours[0]]))), Ok(None));
        let theirs = validator(json!(["--connect-addr", "1.1.1.1:20001"]));
        assert_eq!(wanted(&pod(&["linkerd-proxy"], theirs)), Ok(None));
        // A sidecar of the cluster's own kind.
        let mut native = ours;
        native.as_array_mut().unwrap().push(json!({ "name": "linkerd-proxy", "restartPolicy": "Always" }));
        assert!(wanted(&pod(&["web"], native)).unwrap().is_some());
        // What would reach out of the pod is no argument.
        for bad in [["--netns", "/proc/1/ns/net"], ["--proxy-uid", "root"], ["--help", ""]] {
            let error = wanted(&pod(&["linkerd-proxy"], validator(json!(["validate", bad[0], bad[1]])))).unwrap_err();
            assert!(error.starts_with("arguments of linkerd-network-validator: ") && error.contains(bad[0]), "{error}");
        }
    }
}
