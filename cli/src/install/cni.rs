//! `weft install-cni`: what installs the CNI plugin, as YAML on stdout. No cluster is asked.

use super::NEWEST;
use crate::args::InstallCni;
use crate::chart::{self, CNI, Release};
use crate::inject::write;
use crate::{Failure, print};
use serde_json::{Map, Value};
use std::process::ExitCode;

/// Runs `weft install-cni`.
///
/// # Errors
/// When a setting cannot be used.
pub fn install_cni(args: &InstallCni) -> Result<ExitCode, Failure> {
    print(&write(&objects(args)?, args.output));
    Ok(ExitCode::SUCCESS)
}

fn objects(args: &InstallCni) -> Result<Vec<Value>, Failure> {
    let shape = CNI.defaults()?;
    let mut overrides = Value::Object(Map::new());
    args.values.put_over(&mut overrides, &shape)?;
    for (path, value) in [
        ("destCNINetDir", &args.dest_cni_net_dir),
        ("destCNIBinDir", &args.dest_cni_bin_dir),
        ("image.name", &args.cni_image),
        ("image.version", &args.cni_image_version),
        ("logLevel", &args.cni_log_level),
        ("priorityClassName", &args.priority_class_name),
    ] {
        if let Some(value) = value {
            chart::set_text(&mut overrides, path, value, &shape).map_err(|e| Failure::new(format!("flag: {e}")))?;
        }
    }
    cni_rendered(&overrides, &args.cni_namespace)
}

/// The plugin with these settings.
///
/// # Errors
/// When a setting cannot be used.
pub fn cni_rendered(overrides: &Value, namespace: &str) -> Result<Vec<Value>, Failure> {
    let mut values = CNI.defaults()?;
    let shape = values.clone();
    chart::merge(&mut values, overrides, &shape, chart::Nulls::Remove).map_err(|e| Failure::new(e.to_string()))?;
    for name in ["destCNINetDir", "destCNIBinDir"] {
        let path = values.get(name).and_then(Value::as_str).unwrap_or_default();
        if !path.starts_with('/') {
            return Err(Failure::new(format!("{name}: {path:?} is no path of a node: it must begin with /")));
        }
    }
    if let Some(map) = values.as_object_mut() {
        // Helm has a flag for it; whoever pipes into kubectl has not.
        map.insert("installNamespace".into(), true.into());
    }
    CNI.render(&values, &Release { namespace, api_versions: NEWEST })
}
