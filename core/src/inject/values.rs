//! The values of the chart that say what is injected, as the ConfigMap `weft-config` holds them (key `values`, YAML). Their
//! names are those of Linkerd's chart.

use super::settings::Settings;
use super::{CONFIG_PREFIX, InjectConfig};
use serde_json::Value;
use std::collections::BTreeMap;

/// Values, and the annotations whose defaults they are.
const DEFAULTS: &[(&str, &str)] = &[
    ("/proxy/ports/inbound", "inbound-port"),
    ("/proxy/ports/outbound", "outbound-port"),
    ("/proxy/ports/control", "control-port"),
    ("/proxy/ports/admin", "admin-port"),
    ("/proxy/uid", "proxy-uid"),
    ("/proxy/gid", "proxy-gid"),
    ("/proxy/logLevel", "proxy-log-level"),
    ("/proxy/logFormat", "proxy-log-format"),
    ("/proxy/defaultInboundPolicy", "default-inbound-policy"),
    ("/proxy/opaquePorts", "opaque-ports"),
    ("/proxy/podInboundPorts", "pod-inbound-ports"),
    ("/proxy/await", "proxy-await"),
    ("/proxy/nativeSidecar", "proxy-enable-native-sidecar"),
    ("/proxy/enableShutdownEndpoint", "proxy-admin-shutdown"),
    ("/proxy/shutdownGracePeriod", "shutdown-grace-period"),
    ("/proxy/waitBeforeExitSeconds", "proxy-wait-before-exit-seconds"),
    ("/proxy/inboundConnectTimeout", "proxy-inbound-connect-timeout"),
    ("/proxy/outboundConnectTimeout", "proxy-outbound-connect-timeout"),
    ("/proxy/inboundDiscoveryCacheUnusedTimeout", "proxy-inbound-discovery-cache-unused-timeout"),
    ("/proxy/outboundDiscoveryCacheUnusedTimeout", "proxy-outbound-discovery-cache-unused-timeout"),
    ("/proxy/disableInboundProtocolDetectTimeout", "proxy-disable-inbound-protocol-detect-timeout"),
    ("/proxy/disableOutboundProtocolDetectTimeout", "proxy-disable-outbound-protocol-detect-timeout"),
    ("/proxy/resources/cpu/request", "proxy-cpu-request"),
    ("/proxy/resources/cpu/limit", "proxy-cpu-limit"),
    ("/proxy/resources/memory/request", "proxy-memory-request"),
    ("/proxy/resources/memory/limit", "proxy-memory-limit"),
    ("/proxy/resources/ephemeral-storage/request", "proxy-ephemeral-storage-request"),
    ("/proxy/resources/ephemeral-storage/limit", "proxy-ephemeral-storage-limit"),
    ("/proxy/additionalEnv", "proxy-additional-env"),
    ("/proxyInit/ignoreInboundPorts", "skip-inbound-ports"),
    ("/proxyInit/ignoreOutboundPorts", "skip-outbound-ports"),
    ("/proxyInit/skipSubnets", "skip-subnets"),
    ("/proxyInit/iptablesMode", "iptables-mode"),
];

/// Values that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Error {
    /// The value's name, as `proxy.logLevel`; `values` for all of them.
    pub field: String,
    /// One sentence.
    pub message: String,
}

impl InjectConfig {
    /// The configuration of a Kubernetes cluster: the chart's values, and this version's own where they say nothing. Whether
    /// the cluster has sidecars of its own is for the caller to add.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn from_values(
        values: &str,
        control_namespace: &str,
        trust_anchors_pem: &str,
        version: &str,
    ) -> Result<InjectConfig, Error> {
        let values: Value = serde_yaml_ng::from_str(values)
            .map_err(|error| Error { field: "values".into(), message: error.to_string() })?;
        if !values.is_object() && !values.is_null() {
            return Err(Error { field: "values".into(), message: "are not a map".into() });
        }
        let text = |pointer: &str| -> Result<Option<String>, Error> {
            let found = values.pointer(pointer).map(|value| scalar(value).ok_or_else(|| wrong(pointer)));
            Ok(found.transpose()?.filter(|text| !text.is_empty()))
        };
        let cni = match values.pointer("/cniEnabled") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(cni)) => *cni,
            Some(_) => return Err(Error { field: "cniEnabled".into(), message: "is neither true nor false".into() }),
        };
        let base = InjectConfig::local(trust_anchors_pem, version);
        let pull_policy = text("/proxy/image/pullPolicy")?.or(text("/imagePullPolicy")?);
        let mut config = InjectConfig {
            control_namespace: control_namespace.to_owned(),
            trust_domain: text("/identityTrustDomain")?.unwrap_or(base.trust_domain),
            cluster_domain: text("/clusterDomain")?.unwrap_or(base.cluster_domain),
            cluster_networks: text("/clusterNetworks")?.unwrap_or(base.cluster_networks),
            proxy_image: text("/proxy/image/name")?.unwrap_or(base.proxy_image),
            proxy_version: text("/proxy/image/version")?.unwrap_or(base.proxy_version),
            image_pull_policy: pull_policy.unwrap_or(base.image_pull_policy),
            created_by: format!("weft/injector {version}"),
            defaults: BTreeMap::new(),
            ends_jobs: true,
            cni,
            ..base
        };
        for (pointer, annotation) in DEFAULTS {
            let Some(value) = values.pointer(pointer).filter(|value| !value.is_null()) else { continue };
            let text = match value {
                // Linkerd writes "no group" like this.
                Value::Number(number) if *annotation == "proxy-gid" && number.as_i64() == Some(-1) => continue,
                Value::Array(list) if *annotation == "proxy-additional-env" => Value::from(list.clone()).to_string(),
                value => scalar(value).ok_or_else(|| wrong(pointer))?,
            };
            // An empty list of these ports is one; anything else that is empty says nothing.
            let list = ["skip-inbound-ports", "skip-outbound-ports", "opaque-ports"].contains(annotation);
            if !text.is_empty() || list {
                config.defaults.insert((*annotation).to_owned(), text);
            }
        }
        // A pod that says nothing itself: what cannot be used for it cannot be used for any.
        match Settings::read(&Value::Null, &BTreeMap::new(), &config) {
            Ok(_) => Ok(config),
            Err((name, message)) => {
                let annotation = name.trim_start_matches(CONFIG_PREFIX);
                let known = DEFAULTS.iter().find(|(_, default)| *default == annotation);
                let field = known.map_or_else(|| annotation.to_owned(), |(pointer, _)| path(pointer));
                Err(Error { field, message })
            }
        }
    }
}

fn path(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

fn wrong(pointer: &str) -> Error {
    Error {
        field: path(pointer),
        message: "is neither a text, nor a number, nor true or false, nor a list of those".into(),
    }
}

/// A value as an annotation would have it.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Array(list) => {
            let parts: Option<Vec<String>> = list.iter().filter(|value| !value.is_array()).map(scalar).collect();
            parts.filter(|parts| parts.len() == list.len()).map(|parts| parts.join(","))
        }
        Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_defaults() {
        let values = r#"
            clusterDomain: example.org
            proxy:
              image: {name: registry/proxy, version: v2, pullPolicy: ""}
              logLevel: debug
              gid: -1
              ports: {inbound: 5143}
              nativeSidecar: false
              resources: {cpu: {request: 100m, limit: ""}}
              additionalEnv: [{name: A, value: b}]
            proxyInit: {ignoreInboundPorts: "", ignoreOutboundPorts: [1, "2-3"], iptablesMode: legacy}
            imagePullPolicy: Always
            cniEnabled: true
        "#;
        let config = InjectConfig::from_values(values, "mesh", "anchors", "1").unwrap();
        assert_eq!((config.control_namespace.as_str(), config.cluster_domain.as_str()), ("mesh", "example.org"));
        assert_eq!((config.proxy_image.as_str(), config.proxy_version.as_str()), ("registry/proxy", "v2"));
        assert_eq!(config.image_pull_policy, "Always");
        assert!(config.cni && !InjectConfig::from_values("{}", "mesh", "anchors", "1").unwrap().cni);
        let expected = [
            ("inbound-port", "5143"),
            ("iptables-mode", "legacy"),
            ("proxy-additional-env", r#"[{"name":"A","value":"b"}]"#),
            ("proxy-cpu-request", "100m"),
            ("proxy-enable-native-sidecar", "false"),
            ("proxy-log-level", "debug"),
            ("skip-inbound-ports", ""),
            ("skip-outbound-ports", "1,2-3"),
        ];
        let defaults: Vec<(&str, &str)> = config.defaults.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(defaults, expected);
        assert!(InjectConfig::from_values("", "weft", "anchors", "1").unwrap().defaults.is_empty());
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        let field = |values: &str| InjectConfig::from_values(values, "weft", "", "1").unwrap_err().field;
        assert_eq!(field("proxy: {logLevel: {a: b}}"), "proxy.logLevel");
        assert_eq!(field("proxy: {uid: [[1]]}"), "proxy.uid");
        assert_eq!(field("clusterDomain: {}"), "clusterDomain");
        assert_eq!(field("cniEnabled: perhaps"), "cniEnabled");
        assert_eq!(field("- 1"), "values");
        assert_eq!(field("a: b: c"), "values");
        assert_eq!(field("proxy: {uid: -5}"), "proxy.uid");
        assert_eq!(field("proxy: {resources: {cpu: {request: 2, limit: 1}}}"), "proxy.resources.cpu.limit");
        assert_eq!(field("proxyInit: {ignoreInboundPorts: 0}"), "proxyInit.ignoreInboundPorts");
        let error = InjectConfig::from_values("proxy: {logFormat: xml}", "weft", "", "1").unwrap_err();
        assert_eq!(error.to_string(), "proxy.logFormat: \"xml\" is none of plain, json");
    }
}
