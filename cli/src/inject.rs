//! `weft inject` and `weft uninject`: manifests in, manifests out, and a report on stderr.

use crate::args::{Inject, ManifestOutput, Uninject};
use crate::cluster::{Cluster, Mesh};
use crate::install::CONFIG;
use crate::{Failure, VERSION, fetch, print};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weft_core::inject::{InjectConfig, Injected, Outcome, Reason, Report, annotate, unannotate};
use weft_core::{manifest, names};

/// Runs `weft inject`.
///
/// # Errors
/// When an input cannot be read or understood.
pub async fn inject(args: Inject, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let control = mesh.control.as_str();
    let documents = read(&args.inputs).await?;
    let annotations = args.proxy.annotations();
    let base = match (&args.identity_trust_anchors_file, args.manual) {
        (_, false) => None,
        (Some(file), true) => Some(InjectConfig::local(&read_anchors(file)?, VERSION)),
        (None, true) => Some(config_of_cluster(mesh).await?),
    };
    let manual = base.map(|base| InjectConfig {
        control_namespace: control.to_owned(),
        created_by: format!("weft/cli {VERSION}"),
        unless_disabled: true,
        namespaces: namespaces(&documents),
        ..base
    });
    let (documents, reports) = transform_inject(&documents, &annotations, manual.as_ref())?;
    print(&write(&documents, args.output));
    eprint!("{}", inject_report(&reports));
    Ok(ExitCode::SUCCESS)
}

/// Runs `weft uninject`.
///
/// # Errors
/// When an input cannot be read or understood.
pub async fn uninject(args: Uninject) -> Result<ExitCode, Failure> {
    let mut documents = Vec::new();
    let mut reports = Vec::new();
    for document in read(&args.inputs).await? {
        let (value, report) = transform_uninject(&document);
        documents.push(value);
        reports.extend(report);
    }
    print(&write(&documents, args.output));
    eprint!("{}", uninject_report(&reports));
    Ok(ExitCode::SUCCESS)
}

/// Asks for injection in every document, or adds the containers when there is a configuration. What an earlier
/// injection added is removed first.
///
/// # Errors
/// A setting or document that cannot be used.
pub fn transform_inject(
    documents: &[Value],
    annotations: &BTreeMap<String, String>,
    manual: Option<&InjectConfig>,
) -> Result<(Vec<Value>, Vec<Report>), Failure> {
    let mut out = Vec::new();
    let mut reports = Vec::new();
    for document in documents {
        let clean = weft_core::inject::uninject(document).value;
        let fail = |error: weft_core::inject::Error| Failure::new(error.to_string());
        let Injected { value, reports: report } = match manual {
            None => annotate(&clean, annotations).map_err(fail)?,
            Some(config) => {
                let settings = if annotations.is_empty() { clean } else { with_settings(&clean, annotations) };
                weft_core::inject::inject(&settings, config).map_err(fail)?
            }
        };
        out.push(value);
        reports.extend(report);
    }
    Ok((out, reports))
}

/// Adds the settings of the command line to pods that are going to be injected by hand, without asking a cluster to
/// inject them again.
fn with_settings(document: &Value, annotations: &BTreeMap<String, String>) -> Value {
    match annotate(document, annotations) {
        Ok(annotated) => {
            let asked = weft_core::inject::unannotate(document).value != *document;
            if asked { annotated.value } else { unannotate(&annotated.value).value }
        }
        // Injection itself will say what is wrong with it.
        Err(_) => document.clone(),
    }
}

/// Removes the proxy, and the request for it.
pub fn transform_uninject(document: &Value) -> (Value, Vec<Report>) {
    let removed = weft_core::inject::uninject(document);
    let unasked = unannotate(&removed.value);
    let reports = removed.reports.into_iter().zip(unasked.reports).map(|(removed, unasked)| {
        let changed = removed.outcome == Outcome::Changed || unasked.outcome == Outcome::Annotated;
        Report { outcome: if changed { Outcome::Changed } else { removed.outcome }, ..removed }
    });
    (unasked.value, reports.collect())
}

fn namespaces(documents: &[Value]) -> BTreeMap<String, BTreeMap<String, String>> {
    let is_namespace = |d: &&Value| d.get("kind").and_then(Value::as_str) == Some("Namespace");
    let named = documents.iter().filter(is_namespace).filter_map(|document| {
        let annotations = document.pointer("/metadata/annotations").and_then(Value::as_object);
        let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        let name = document.pointer("/metadata/name")?.as_str()?.to_owned();
        Some((name, annotations.into_iter().flatten().filter_map(text).collect()))
    });
    named.collect()
}

fn read_anchors(file: &Path) -> Result<String, Failure> {
    let fail = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", file.display()));
    let pem = std::fs::read_to_string(file).map_err(|e| fail(&e))?;
    weft_core::trust::inspect(&pem).map_err(|e| fail(&e))?;
    Ok(pem)
}

/// What the injector of a cluster would use: its trust anchors and the values of its chart, where there are any.
async fn config_of_cluster(mesh: &Mesh) -> Result<InjectConfig, Failure> {
    let control = mesh.control.as_str();
    let cluster = mesh.connect().await?;
    let maps = cluster.objects("configmaps", Some(control)).await?;
    let data = |name: &str, key: &str| {
        let map = maps.iter().find(|map| map.pointer("/metadata/name").and_then(Value::as_str) == Some(name));
        map.and_then(|map| map.get("data")?.get(key)?.as_str())
    };
    let anchors = data(names::TRUST_ROOTS_CONFIG_MAP, names::TRUST_ROOTS_KEY).ok_or_else(|| {
        Failure::new(format!("the control plane has no ConfigMap {} in {control}", names::TRUST_ROOTS_CONFIG_MAP))
    })?;
    let Some(values) = data(CONFIG, "values") else { return Ok(InjectConfig::local(anchors, VERSION)) };
    let config = InjectConfig::from_values(values, control, anchors, VERSION);
    let config = config.map_err(|error| Failure::new(format!("ConfigMap {CONFIG} in {control}: {error}")))?;
    let native_sidecars = match &cluster {
        // Since 1.29 every cluster has them, unless somebody has switched them off.
        Cluster::Kubernetes(kubernetes) => {
            matches!(kubernetes.version().await?, (major, minor, _) if (major, minor) >= (1, 29))
        }
        Cluster::Machine(_) => false,
    };
    Ok(InjectConfig { native_sidecars, ..config })
}

/// Every document of the inputs, in order; folders are read with their sub-folders, sorted by name.
async fn read(inputs: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    let mut out = Vec::new();
    for input in inputs {
        if input.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| Failure::new(format!("standard input: {e}")))?;
            add(&mut out, "standard input", &text)?;
            continue;
        }
        if let Some(url) = input.to_str().filter(|text| fetch::is_url(text)) {
            add(&mut out, url, &fetch::text(url).await.map_err(Failure::new)?)?;
            continue;
        }
        let mut files = Vec::new();
        collect(input, true, 0, &mut files)?;
        for file in files {
            let fail = |e: std::io::Error| Failure::new(format!("{}: {e}", file.display()));
            add(&mut out, &file.display().to_string(), &std::fs::read_to_string(&file).map_err(fail)?)?;
        }
    }
    Ok(out)
}

fn add(out: &mut Vec<Value>, name: &str, text: &str) -> Result<(), Failure> {
    let documents = manifest::values(name, text).map_err(|error| Failure::new(error.to_string()))?;
    out.extend(documents.into_iter().map(|(_, value)| value));
    Ok(())
}

/// Folders deeper than this are not looked into: they are a loop of links.
const MAX_DEPTH: usize = 32;

fn collect(path: &Path, named: bool, depth: usize, out: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::new(format!("{}: {e}", path.display()));
    if std::fs::metadata(path).map_err(fail)?.is_dir() {
        if depth > MAX_DEPTH {
            return Err(Failure::new(format!("{}: folders are nested too deeply", path.display())));
        }
        let mut entries = std::fs::read_dir(path).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            collect(&entry.path(), false, depth + 1, out)?;
        }
        return Ok(());
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if named || ["yaml", "yml", "json"].contains(&extension) {
        out.push(path.to_owned());
    }
    Ok(())
}

/// YAML documents separated by `---`, or JSON objects one after the other.
pub fn write(documents: &[Value], output: ManifestOutput) -> String {
    let one = |document: &Value| match output {
        // Values come from a manifest and so can be written as one.
        ManifestOutput::Yaml => serde_yaml_ng::to_string(document).unwrap_or_default(),
        ManifestOutput::Json => format!("{}\n", serde_json::to_string_pretty(document).unwrap_or_default()),
    };
    let separator = if output == ManifestOutput::Yaml { "---\n" } else { "" };
    documents.iter().map(one).collect::<Vec<_>>().join(separator)
}

/// The report of `inject`: warnings, then one line an object.
pub fn inject_report(reports: &[Report]) -> String {
    let named = |wanted: &dyn Fn(&Report) -> bool| {
        let list: Vec<String> =
            reports.iter().filter(|r| wanted(r)).map(|r| format!("{}/{}", r.kind, r.name)).collect();
        (!list.is_empty()).then(|| list.join(", "))
    };
    let skipped = |reason: Reason| named(&|r: &Report| r.outcome == Outcome::Skipped(reason));
    let mut warnings = String::new();
    if let Some(list) = skipped(Reason::HostNetwork) {
        warnings.push_str(&format!("‼ \"hostNetwork: true\" detected in {list}\n"));
    }
    if let Some(list) = skipped(Reason::Sidecar) {
        warnings.push_str(&format!("‼ known 3rd party sidecar detected in {list}\n"));
    }
    if let Some(list) = skipped(Reason::Disabled) {
        warnings.push_str(&format!("‼ \"{}: disabled\" annotation set on {list}\n", names::ANNOTATION_INJECT));
    }
    if reports.iter().all(|r| r.outcome == Outcome::Skipped(Reason::Unsupported)) {
        warnings.push_str("‼ no supported objects found\n");
    }
    let udp = reports.iter().filter(|r| r.udp).count();
    if let Some(list) = named(&|r: &Report| r.udp) {
        let verb = if udp > 1 { "use" } else { "uses" };
        warnings.push_str(&format!("‼ {list} {verb} \"protocol: UDP\"\n"));
    }
    if !warnings.is_empty() {
        warnings.push('\n');
    }
    let lines = reports.iter().map(|report| match report.outcome {
        Outcome::Changed => line(report, "injected"),
        Outcome::Annotated => line(report, "annotated"),
        Outcome::Skipped(_) => line(report, "skipped"),
    });
    format!("\n{warnings}{}\n", lines.collect::<String>())
}

/// The report of `uninject`: one line an object.
pub fn uninject_report(reports: &[Report]) -> String {
    let lines = reports.iter().map(|report| match report.outcome {
        Outcome::Changed | Outcome::Annotated => line(report, "uninjected"),
        Outcome::Skipped(_) => line(report, "skipped"),
    });
    format!("\n{}\n", lines.collect::<String>())
}

fn line(report: &Report, what: &str) -> String {
    if report.kind.is_empty() {
        return "document missing \"kind\" field, skipped\n".into();
    }
    format!("{} \"{}\" {what}\n", report.kind, report.name)
}
