//! The control plane's own objects in the one-machine cluster: what `weft up` applies first.

use serde_json::Value;

/// What they are made of.
#[derive(Clone)]
pub struct ControlPlaneConfig {
    /// Their namespace, [`crate::names::CONTROL_NAMESPACE`] by default.
    pub namespace: String,
    /// Trust domain of identities.
    pub trust_domain: String,
    /// Version, for labels and images.
    pub version: String,
    /// Trust anchors, PEM.
    pub trust_anchors_pem: String,
    /// Issuer certificate, PEM.
    pub issuer_pem: String,
    /// Issuer key, PKCS#8 PEM; secret.
    pub issuer_key_pem: String,
    /// Public keys that service-account tokens are checked with, PEM, one after the other.
    pub token_keys_pem: String,
    /// The host's directory with the objects of the cluster (`<state>/objects`).
    pub objects_dir: String,
    /// Log filter of the components, such as `info`.
    pub log_level: String,
}

/// Namespace, ServiceAccounts, ConfigMaps, Secret, Services and Deployments, in the order in which to apply them.
pub fn manifests(config: &ControlPlaneConfig) -> Vec<Value> {
    let _ = config;
    Vec::new()
}
