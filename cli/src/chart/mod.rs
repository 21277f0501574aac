//! The charts `charts/weft`, `charts/weft-crds` and `charts/weft-cni`, which are part of this program: what `weft install` and
//! `weft install-cni` print is what Helm makes of the same files.

pub mod template;
mod values;

pub use values::{Error as ValuesError, Nulls, merge, set, set_text};

use crate::Failure;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use template::{Files, Renderer};
use weft_core::manifest;

/// A chart.
#[derive(Debug)]
pub struct Chart {
    name: &'static str,
    values: &'static str,
    high_availability: &'static str,
    /// Name and text.
    templates: &'static [(&'static str, &'static str)],
    files: &'static [(&'static str, &'static str)],
}

macro_rules! sources {
    ($folder:literal: $($file:literal),*) => {
        &[$(($file, include_str!(concat!("../../../charts/", $folder, "/", $file)))),*]
    };
}

/// The control plane.
pub const CONTROL_PLANE: Chart = Chart {
    name: "weft",
    values: include_str!("../../../charts/weft/values.yaml"),
    high_availability: include_str!("../../../charts/weft/values-ha.yaml"),
    templates: sources!("weft":
        "templates/_helpers.tpl", "templates/_proxy.tpl", "templates/config.yaml", "templates/destination.yaml",
        "templates/identity.yaml", "templates/injector.yaml", "templates/metrics.yaml", "templates/namespace.yaml",
        "templates/rbac.yaml"
    ),
    files: sources!("weft": "rbac.yml"),
};

/// The resources of the mesh.
pub const RESOURCES: Chart = Chart {
    name: "weft-crds",
    values: "{}",
    high_availability: "{}",
    templates: sources!("weft-crds":
        "templates/_helpers.tpl",
        "templates/authorizationpolicies.yaml", "templates/egressnetworks.yaml", "templates/externalworkloads.yaml",
        "templates/httplocalratelimitpolicies.yaml", "templates/httproutes.yaml",
        "templates/meshtlsauthentications.yaml", "templates/networkauthentications.yaml",
        "templates/serverauthorizations.yaml", "templates/servers.yaml", "templates/serviceprofiles.yaml"
    ),
    files: &[],
};

/// The CNI plugin.
pub const CNI: Chart = Chart {
    name: "weft-cni",
    values: include_str!("../../../charts/weft-cni/values.yaml"),
    high_availability: "{}",
    templates: sources!("weft-cni": "templates/_helpers.tpl", "templates/cni.yaml"),
    files: &[],
};

/// What a chart is rendered for.
#[derive(Debug, Clone)]
pub struct Release<'a> {
    /// Namespace of the control plane.
    pub namespace: &'a str,
    /// What the API server has, such as `policy/v1`.
    pub api_versions: &'a [&'a str],
}

impl Chart {
    /// The values, as they are when nothing is set.
    ///
    /// # Errors
    /// When the chart is broken, which a test excludes.
    pub fn defaults(&self) -> Result<Value, Failure> {
        self.read("values.yaml", self.values)
    }

    /// What differs from the defaults with `--ha`.
    ///
    /// # Errors
    /// As [`Chart::defaults`].
    pub fn high_availability(&self) -> Result<Value, Failure> {
        self.read("values-ha.yaml", self.high_availability)
    }

    fn read(&self, file: &str, text: &str) -> Result<Value, Failure> {
        serde_yaml_ng::from_str(text).map_err(|e| Failure::new(format!("{}/{file}: {e}", self.name)))
    }

    /// The objects of the chart in the order in which to create them.
    ///
    /// # Errors
    /// When a value that is needed is missing, or cannot be used.
    pub fn render(&self, values: &Value, release: &Release) -> Result<Vec<Value>, Failure> {
        let version = crate::VERSION;
        let dot = json!({
            "Values": values,
            "Release": { "Name": self.name, "Namespace": release.namespace, "Service": "weft" },
            "Chart": { "Name": self.name, "Version": version, "AppVersion": version },
            "Files": {},
            "Capabilities": { "APIVersions": {} },
        });
        let files: Files<'_> = self.files.iter().copied().collect();
        let fail = |e: template::Error| Failure::new(format!("chart {}: {e}", self.name));
        let renderer = Renderer::new(self.templates, &files, release.api_versions).map_err(fail)?;
        let mut objects = Vec::new();
        for (name, _) in self.templates.iter().filter(|(name, _)| name.ends_with(".yaml")) {
            let text = renderer.render(name, &dot).map_err(|e| {
                // What a template asks for is said in the words of the values, which is all that users know of it.
                if e.said { Failure::new(e.message) } else { fail(e) }
            })?;
            let documents = manifest::values(name, &text).map_err(|e| Failure::new(format!("chart: {e}")))?;
            objects.extend(documents.into_iter().map(|(_, value)| value));
        }
        objects.sort_by_key(|object| {
            let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
            ORDER.iter().position(|other| *other == kind).unwrap_or(ORDER.len())
        });
        Ok(objects)
    }

    /// Names of the templates and files that are part of this program.
    pub fn sources(&self) -> BTreeSet<&'static str> {
        self.templates.iter().chain(self.files).map(|(name, _)| *name).collect()
    }
}

/// Kinds in the order in which objects are created; as Helm does it.
const ORDER: &[&str] = &[
    "Namespace",
    "PodDisruptionBudget",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
    "Deployment",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
];
