//! What the annotations of a pod and of its namespace say about its proxy. The pod's win.

use super::{CONFIG_PREFIX, InjectConfig, annotation, containers_of};
use crate::names;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that may differ from pod to pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    pub image: String,
    pub version: String,
    pub pull_policy: String,
    pub inbound_port: u16,
    pub outbound_port: u16,
    pub control_port: u16,
    pub admin_port: u16,
    pub uid: u32,
    pub gid: Option<u32>,
    pub skip_inbound_ports: String,
    pub skip_outbound_ports: String,
    pub skip_subnets: String,
    /// By which of the kernel's packet filters traffic is redirected; `auto` lets the node decide.
    pub iptables_mode: String,
    pub inbound_ports: String,
    pub opaque_ports: String,
    pub default_inbound_policy: String,
    pub log_level: String,
    pub log_format: String,
    pub inbound_connect_timeout: String,
    pub outbound_connect_timeout: String,
    pub inbound_discovery_idle: String,
    pub outbound_discovery_idle: String,
    pub no_inbound_detect_timeout: bool,
    pub no_outbound_detect_timeout: bool,
    pub shutdown_endpoint: bool,
    pub shutdown_grace: Option<String>,
    /// Containers behind the proxy start when it is ready.
    pub awaited: bool,
    pub cores: u32,
    /// `requests` and `limits`, or nothing.
    pub resources: Map<String, Value>,
    /// Further environment variables; they replace ours of the same name.
    pub additional_env: Vec<Value>,
    /// The component of the control plane that runs in this pod.
    pub component: Option<String>,
    /// Capabilities of the application's first container, which policies may demand of every container; else none.
    pub capabilities: Value,
    /// Whether the proxy is a sidecar of the cluster's own kind: an init container that goes on.
    pub native: bool,
    /// Whether somebody must end the proxy when the containers of the application have ended.
    pub ended: bool,
    /// Seconds that the kernel keeps half-closed connections, where that is to be changed.
    pub close_wait: Option<u64>,
    /// Seconds between the request to end and the end of the proxy's work; 0 is none.
    pub wait_before_exit: u32,
    /// Threads as a part of the node's processors, in place of a number.
    pub cores_ratio: Option<String>,
}

type Fault = (String, String);

struct Annotations<'a> {
    template: &'a Value,
    namespace: &'a BTreeMap<String, String>,
    /// Of the installation, without the prefix.
    defaults: &'a BTreeMap<String, String>,
}

impl<'a> Annotations<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        let key = format!("{CONFIG_PREFIX}{name}");
        let namespace = || self.namespace.get(&key).or_else(|| self.defaults.get(name)).map(String::as_str);
        annotation(self.template, &key).or_else(namespace).map(str::trim)
    }

    /// As [`Annotations::parsed`], of an annotation that began with other prefixes and may still have them.
    fn graduated<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Fault> {
        let known = |key: &String| annotation(self.template, key).is_some() || self.namespace.contains_key(key);
        for stage in ["alpha", "beta"] {
            let key = format!("config.{stage}.linkerd.io/{name}");
            if known(&key) && !known(&format!("{CONFIG_PREFIX}{name}")) {
                let value = annotation(self.template, &key).or(self.namespace.get(&key).map(String::as_str));
                let value = value.unwrap_or_default().trim();
                return parse(value).map(Some).map_err(|message| (key, format!("{value:?} {message}")));
            }
        }
        self.parsed(name, parse)
    }

    /// The annotation, parsed; `None` when it is absent.
    fn parsed<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Fault> {
        self.get(name)
            .map(|v| parse(v).map_err(|m| (format!("{CONFIG_PREFIX}{name}"), format!("{v:?} {m}"))))
            .transpose()
    }

    fn text(&self, name: &str, default: &str) -> String {
        self.get(name).unwrap_or(default).to_owned()
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Fault> {
        self.parsed(name, |v| v.parse().map_err(|_| "is not a number in range".to_owned()))
    }

    fn port(&self, name: &str, default: u16) -> Result<u16, Fault> {
        let port = self.parsed(name, |v| match v.parse() {
            Ok(0) | Err(_) => Err("is not a port: 1 to 65535".to_owned()),
            Ok(port) => Ok(port),
        })?;
        Ok(port.unwrap_or(default))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, Fault> {
        let flag = self.parsed(name, boolean)?;
        Ok(flag.unwrap_or(default))
    }

    fn one_of(&self, name: &str, allowed: &[&str], default: &str) -> Result<String, Fault> {
        let value = self.parsed(name, |v| match allowed.contains(&v) {
            true => Ok(v.to_owned()),
            false => Err(format!("is none of {}", allowed.join(", "))),
        })?;
        Ok(value.unwrap_or_else(|| default.to_owned()))
    }

    fn duration(&self, name: &str, default: &str) -> Result<String, Fault> {
        Ok(self.parsed(name, go_duration)?.unwrap_or_else(|| default.to_owned()))
    }
}

impl Settings {
    /// Reads the annotations. An error is an annotation's name and a sentence.
    pub(super) fn read(
        template: &Value,
        namespace: &BTreeMap<String, String>,
        config: &InjectConfig,
    ) -> Result<Settings, Fault> {
        let a = Annotations { template, namespace, defaults: &config.defaults };
        let named = named_ports(template);
        let default_opaque = names::DEFAULT_OPAQUE_PORTS.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let (resources, cpu) = resources(&a)?;
        // The control plane reads it, and tells the proxy.
        a.parsed("proxy-require-identity-inbound-ports", port_ranges)?;
        let component = template.pointer("/metadata/labels").and_then(|l| l.get(names::LABEL_COMPONENT));
        let component = component.and_then(Value::as_str);
        let native = a.graduated("proxy-enable-native-sidecar", boolean)?.unwrap_or(true) && config.native_sidecars;
        let finite = template.pointer("/spec/restartPolicy").and_then(Value::as_str).is_some_and(|p| p != "Always");
        Ok(Settings {
            image: a.text("proxy-image", &config.proxy_image),
            version: a.text("proxy-version", &config.proxy_version),
            pull_policy: a.one_of(
                "image-pull-policy",
                &["Always", "IfNotPresent", "Never"],
                &config.image_pull_policy,
            )?,
            inbound_port: a.port("inbound-port", names::INBOUND_PORT)?,
            outbound_port: a.port("outbound-port", names::OUTBOUND_PORT)?,
            control_port: a.port("control-port", names::CONTROL_PORT)?,
            admin_port: a.port("admin-port", names::ADMIN_PORT)?,
            uid: a.number("proxy-uid")?.unwrap_or(names::PROXY_UID),
            gid: a.number("proxy-gid")?,
            // Galera, which replicates over connections that must not be touched.
            skip_inbound_ports: a.parsed("skip-inbound-ports", port_ranges)?.unwrap_or("4567,4568".into()),
            skip_outbound_ports: a.parsed("skip-outbound-ports", port_ranges)?.unwrap_or("4567,4568".into()),
            skip_subnets: a.parsed("skip-subnets", subnets)?.unwrap_or_default(),
            iptables_mode: a.one_of("iptables-mode", &["auto", "nft", "legacy", "plain"], "auto")?,
            inbound_ports: match a.parsed("pod-inbound-ports", port_ranges)? {
                Some(ports) => ports,
                None => inbound_ports(template),
            },
            opaque_ports: match a.get("opaque-ports") {
                Some(_) => a.parsed("opaque-ports", |v| port_ranges_or_names(v, &named))?.unwrap_or_default(),
                None => default_opaque,
            },
            default_inbound_policy: a.one_of(
                "default-inbound-policy",
                &[
                    "all-unauthenticated",
                    "all-authenticated",
                    "cluster-unauthenticated",
                    "cluster-authenticated",
                    "deny",
                    "audit",
                ],
                "all-unauthenticated",
            )?,
            log_level: a.text("proxy-log-level", "warn,weft_proxy=info"),
            log_format: a.one_of("proxy-log-format", &["plain", "json"], "plain")?,
            inbound_connect_timeout: a.duration("proxy-inbound-connect-timeout", "100ms")?,
            outbound_connect_timeout: a.duration("proxy-outbound-connect-timeout", "1000ms")?,
            inbound_discovery_idle: a.duration("proxy-inbound-discovery-cache-unused-timeout", "90s")?,
            outbound_discovery_idle: a.duration("proxy-outbound-discovery-cache-unused-timeout", "5s")?,
            no_inbound_detect_timeout: a.flag("proxy-disable-inbound-protocol-detect-timeout", false)?,
            no_outbound_detect_timeout: a.flag("proxy-disable-outbound-protocol-detect-timeout", false)?,
            shutdown_endpoint: a.flag("proxy-admin-shutdown", false)?,
            // A proxy that asks a component in its own pod would wait for what waits for it.
            awaited: a.flag("proxy-await", true)? && !matches!(component, Some("identity" | "destination")),
            shutdown_grace: a.parsed("shutdown-grace-period", go_duration)?,
            native,
            ended: finite && config.ends_jobs && !native,
            close_wait: a.parsed("close-wait-timeout", whole_seconds)?,
            wait_before_exit: a.graduated("proxy-wait-before-exit-seconds", seconds)?.unwrap_or(0),
            cores: cpu.map_or(1, |cpu| cpu.ceil().clamp(1.0, 1024.0) as u32),
            cores_ratio: a.parsed("proxy-cpu-ratio-limit", ratio)?,
            resources,
            additional_env: a.parsed("proxy-additional-env", environment)?.unwrap_or_default(),
            component: component.map(str::to_owned),
            capabilities: containers_of(template, "containers")
                .next()
                .and_then(|c| c.pointer("/securityContext/capabilities"))
                .cloned()
                .unwrap_or_else(|| json!({ "drop": ["ALL"] })),
        })
    }

    /// Ports that the init container leaves alone: the proxy's own, and those of the annotation.
    pub(super) fn ignored_inbound_ports(&self) -> String {
        let own = format!("{},{}", self.control_port, self.admin_port);
        if self.skip_inbound_ports.is_empty() { own } else { format!("{own},{}", self.skip_inbound_ports) }
    }
}

fn resources(a: &Annotations<'_>) -> Result<(Map<String, Value>, Option<f64>), Fault> {
    let (mut requests, mut limits) = (Map::new(), Map::new());
    let mut cpu = None;
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        let mut request = None;
        for (list, kind) in [(&mut requests, "request"), (&mut limits, "limit")] {
            let name = format!("proxy-{resource}-{kind}");
            let Some(number) = a.parsed(&name, quantity)? else { continue };
            if kind == "request" {
                request = Some(number);
            } else if request.is_some_and(|request| number < request) {
                return Err((format!("{CONFIG_PREFIX}{name}"), "the limit is below the request".into()));
            }
            if resource == "cpu" {
                cpu = Some(number);
            }
            list.insert(resource.to_owned(), a.text(&name, "").into());
        }
    }
    let mut out = Map::new();
    for (name, list) in [("requests", requests), ("limits", limits)] {
        if !list.is_empty() {
            out.insert(name.to_owned(), list.into());
        }
    }
    Ok((out, cpu))
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "enabled" => Ok(true),
        "false" | "disabled" => Ok(false),
        _ => Err("is neither enabled nor disabled".to_owned()),
    }
}

/// A Go duration as whole seconds, more than none.
fn whole_seconds(text: &str) -> Result<u64, String> {
    let millis = go_duration(text)?;
    let millis: u64 = millis.trim_end_matches("ms").parse().unwrap_or_default();
    if millis < 1000 { Err("is less than a second".into()) } else { Ok(millis / 1000) }
}

/// A number of seconds, at most a day: pods are given less to end.
fn seconds(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(seconds) if seconds <= 86_400 => Ok(seconds),
        _ => Err("is not a whole number of seconds, such as 20".into()),
    }
}

/// A part of the node's processors.
fn ratio(text: &str) -> Result<String, String> {
    match text.parse::<f64>() {
        Ok(part) if part > 0.0 && part <= 1.0 => Ok(text.to_owned()),
        _ => Err("is not a number above 0 and up to 1".into()),
    }
}

/// A Kubernetes quantity as a number: `100m`, `20Mi`, `1.5`.
pub(super) fn quantity(text: &str) -> Result<f64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        _ => return Err("is not a quantity such as 100m, 0.5 or 20Mi".into()),
    };
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number * factor),
        _ => Err("is not a quantity such as 100m, 0.5 or 20Mi".into()),
    }
}

/// A Go duration (`1m30s`, `100ms`) as whole milliseconds, the one form that a proxy understands.
pub(super) fn go_duration(text: &str) -> Result<String, String> {
    let wrong = || "is not a duration such as 100ms, 10s or 1m30s".to_owned();
    if text == "0" {
        return Ok("0ms".into());
    }
    let (mut rest, mut total) = (text, 0f64);
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        total += number
            * match unit {
                "ns" => 1e-6,
                "us" | "µs" => 1e-3,
                "ms" => 1.0,
                "s" => 1e3,
                "m" => 60e3,
                "h" => 3600e3,
                _ => return Err(wrong()),
            };
        rest = tail;
    }
    if total > 1e15 { Err(wrong()) } else { Ok(format!("{}ms", total.round() as u64)) }
}

/// `80,8000-8100`, checked and without spaces.
pub(super) fn port_ranges(text: &str) -> Result<String, String> {
    port_list(text, |_| None)
}

/// As [`port_ranges`], with names of the pod's ports too. A name that this pod does not have is left out: the
/// annotation may be the namespace's, whose pods differ.
fn port_ranges_or_names(text: &str, named: &BTreeMap<String, u16>) -> Result<String, String> {
    port_list(text, |name| is_port_name(name).then(|| named.get(name).copied()))
}

/// `name` answers nothing for what is no name, and a port when there is one of that name.
fn port_list(text: &str, name: impl Fn(&str) -> Option<Option<u16>>) -> Result<String, String> {
    let mut out = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        match (from.trim().parse::<u16>(), to.trim().parse::<u16>()) {
            (Ok(from), Ok(to)) if from > 0 && from < to => out.push(format!("{from}-{to}")),
            (Ok(from), Ok(to)) if from > 0 && from == to => out.push(from.to_string()),
            _ => match name(part) {
                Some(port) => out.extend(port.map(|port| port.to_string())),
                None => return Err("is not a list of ports such as 80,8000-8100".into()),
            },
        }
    }
    Ok(out.join(","))
}

fn is_port_name(text: &str) -> bool {
    text.len() <= 15
        && text.contains(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn subnets(text: &str) -> Result<String, String> {
    let mut out = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let net: ipnet::IpNet = part.parse().map_err(|_| "is not a list of networks such as 10.0.0.0/8".to_owned())?;
        out.push(net.to_string());
    }
    Ok(out.join(","))
}

fn environment(text: &str) -> Result<Vec<Value>, String> {
    let wrong = || "is not a JSON list of environment variables".to_owned();
    let list: Vec<Value> = serde_json::from_str(text).map_err(|_| wrong())?;
    let named = list.iter().all(|v| v.get("name").and_then(Value::as_str).is_some_and(|n| !n.is_empty()));
    if named { Ok(list) } else { Err(wrong()) }
}

/// Containers that run beside the application: all but init containers that end.
fn running(template: &Value) -> impl Iterator<Item = &Value> {
    let sidecar = |c: &&Value| c.get("restartPolicy").and_then(Value::as_str) == Some("Always");
    containers_of(template, "containers").chain(containers_of(template, "initContainers").filter(sidecar))
}

fn ports(container: &Value) -> impl Iterator<Item = (u16, Option<&str>)> {
    container.get("ports").and_then(Value::as_array).into_iter().flatten().filter_map(|port| {
        let number = port.get("containerPort").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok())?;
        let tcp = port.get("protocol").and_then(Value::as_str).is_none_or(|p| p == "TCP");
        tcp.then(|| (number, port.get("name").and_then(Value::as_str)))
    })
}

fn named_ports(template: &Value) -> BTreeMap<String, u16> {
    let all = running(template).flat_map(ports);
    all.filter_map(|(port, name)| name.map(|name| (name.to_owned(), port))).collect()
}

/// The ports that the application declares, and those of its probes: the proxy asks for their policies at start.
fn inbound_ports(template: &Value) -> String {
    let mut out = BTreeSet::new();
    for container in running(template) {
        out.extend(ports(container).map(|(port, _)| port));
        let named: BTreeMap<&str, u16> = ports(container).filter_map(|(p, n)| n.map(|n| (n, p))).collect();
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            for action in ["httpGet", "tcpSocket", "grpc"] {
                let port = container.get(probe).and_then(|p| p.get(action)).and_then(|a| a.get("port"));
                let number = port.and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
                out.extend(number.or(port.and_then(Value::as_str).and_then(|n| named.get(n).copied())));
            }
        }
    }
    out.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_quantities_and_ports() {
        assert_eq!(go_duration("1m30s"), Ok("90000ms".into()));
        assert_eq!(go_duration("1.5s"), Ok("1500ms".into()));
        assert_eq!(go_duration("0"), Ok("0ms".into()));
        for bad in ["", "5", "s", "1x", "-1s", "1h!"] {
            assert!(go_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(quantity("100m"), Ok(0.1));
        assert_eq!(quantity("2Ki"), Ok(2048.0));
        for bad in ["", "m", "1.1.1", "1 Mi", "1X"] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
        assert_eq!(port_ranges(" 80, 90-95 ,"), Ok("80,90-95".into()));
        for bad in ["0", "70000", "9-8", "80;90", "-"] {
            assert!(port_ranges(bad).is_err(), "{bad}");
        }
        let named = BTreeMap::from([("db".to_owned(), 5432)]);
        assert_eq!(port_ranges_or_names("db,other,80", &named), Ok("5432,80".into()));
        assert!(subnets("10.0.0.0/8,x").is_err());
        assert_eq!(whole_seconds("1h"), Ok(3600));
        assert!(whole_seconds("10ms").is_err());
        assert!(ratio("0.5").is_ok() && ratio("0").is_err() && ratio("1.5").is_err() && ratio("NaN").is_err());
    }
}
