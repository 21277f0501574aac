//! Settings whose type is right and whose value is not: a control plane that was installed with one would not start, or
//! would mean something else.

use crate::{Failure, VERSION};
use ipnet::IpNet;
use serde_json::Value;
use tracing_subscriber::EnvFilter;
use weft_core::inject::{InjectConfig, forms};

type Rule = fn(&str) -> Result<(), String>;

/// What texts and numbers must look like.
const RULES: &[(&str, Rule)] = &[
    ("/clusterDomain", forms::dns_name),
    ("/identityTrustDomain", forms::dns_name),
    ("/clusterNetworks", networks),
    ("/identity/issuer/clockSkewAllowance", forms::duration),
    ("/identity/issuer/issuanceLifetime", forms::duration),
    ("/imagePullPolicy", pull_policy),
    ("/proxy/image/pullPolicy", |text| if text.is_empty() { Ok(()) } else { pull_policy(text) }),
    ("/controllerLogLevel", |text| {
        EnvFilter::try_new(text).map(drop).map_err(|e| format!("is no filter of log lines: {e}"))
    }),
    ("/controllerLogFormat", |text| one_of(text, &["plain", "json"])),
    ("/controllerReplicas", |text| number(text, 1..=100)),
    ("/controllerUID", |text| number(text, 1..=u32::MAX)),
    ("/controllerGID", |text| number(text, 1..=u32::MAX)),
    ("/revisionHistoryLimit", |text| number(text, 0..=u32::MAX >> 1)),
    ("/webhookFailurePolicy", |text| one_of(text, &["Ignore", "Fail"])),
    ("/proxyInjector/timeoutSeconds", |text| number(text, 1..=30)),
    ("/policyValidator/timeoutSeconds", |text| number(text, 1..=30)),
    ("/proxyInit/kubeAPIServerPorts", forms::ports),
];

/// Settings with what a component asks for and may use.
const RESOURCES: [&str; 4] =
    ["/identityResources", "/destinationResources", "/metricsResources", "/proxyInjectorResources"];

/// Checks values that have every default.
///
/// # Errors
/// The first that cannot be used.
pub(super) fn check(values: &Value, control: &str) -> Result<(), Failure> {
    let fail = |pointer: &str, text: &str, message: String| {
        let path = pointer.trim_start_matches('/').replace('/', ".");
        Err(Failure::new(format!("{path}: {text:?} {message}")))
    };
    for (pointer, rule) in RULES {
        let Some(value) = values.pointer(pointer) else { continue };
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if let Err(message) = rule(&text) {
            return fail(pointer, &text, message);
        }
    }
    for (component, resource, kind) in RESOURCES.iter().flat_map(|component| {
        let kinds = |resource| ["request", "limit"].map(|kind| (*component, resource, kind));
        ["cpu", "memory"].into_iter().flat_map(kinds)
    }) {
        let pointer = format!("{component}/{resource}/{kind}");
        let text = values.pointer(&pointer).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
        let text = text.unwrap_or_default();
        if let Err(message) = forms::quantity(&text).or_else(|m| if text.is_empty() { Ok(()) } else { Err(m) }) {
            return fail(&pointer, &text, message);
        }
    }
    // What is injected is judged by those who inject.
    let text = serde_yaml_ng::to_string(values).map_err(|e| Failure::new(e.to_string()))?;
    InjectConfig::from_values(&text, control, "", VERSION).map(drop).map_err(|e| Failure::new(e.to_string()))
}

fn one_of(text: &str, allowed: &[&str]) -> Result<(), String> {
    if allowed.contains(&text) { Ok(()) } else { Err(format!("is none of {}", allowed.join(", "))) }
}

fn pull_policy(text: &str) -> Result<(), String> {
    one_of(text, &["Always", "IfNotPresent", "Never"])
}

fn number(text: &str, range: std::ops::RangeInclusive<u32>) -> Result<(), String> {
    // YAML has numbers with a point, too.
    let fits = text
        .parse::<f64>()
        .is_ok_and(|n| n.fract() == 0.0 && (f64::from(*range.start())..=f64::from(*range.end())).contains(&n));
    if fits { Ok(()) } else { Err(format!("is not a whole number from {} to {}", range.start(), range.end())) }
}

fn networks(text: &str) -> Result<(), String> {
    let mut networks = text.split(',').map(str::trim).filter(|network| !network.is_empty()).peekable();
    if networks.peek().is_none() {
        return Err("names no network".into());
    }
    match networks.find(|network| network.parse::<IpNet>().is_err()) {
        None => Ok(()),
        Some(network) => Err(format!("has {network}, which is not a network such as 10.0.0.0/8")),
    }
}
