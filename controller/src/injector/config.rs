//! What is injected: values and trust anchors, read from files, and again when they change.

use crate::telemetry::Telemetry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use weft_core::inject::{InjectConfig, Outcome, inject};

/// How often the files are looked at. A cluster takes a minute to write them; that is short beside it.
const REREAD: Duration = Duration::from_secs(5);
/// Most octets of a file.
const MAX_FILE: u64 = 1 << 20;

/// The configuration, kept up to date. Cloning is cheap and refers to the same.
#[derive(Debug, Clone)]
pub struct Configuration(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    values: PathBuf,
    anchors: PathBuf,
    control_namespace: String,
    failures: crate::telemetry::Value,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    files: Option<(String, String)>,
    current: Option<Arc<InjectConfig>>,
    problem: Option<String>,
}

impl Configuration {
    /// Reads the files and keeps what they say up to date.
    pub fn watch(values: &Path, anchors: &Path, control_namespace: &str, telemetry: &Telemetry) -> Configuration {
        let configuration = Configuration(Arc::new(Shared {
            values: values.to_owned(),
            anchors: anchors.to_owned(),
            control_namespace: control_namespace.to_owned(),
            failures: telemetry.counter(
                "weft_injector_bad_values_total",
                "Times that values or trust anchors could not be used",
                &[],
            ),
            state: RwLock::default(),
        }));
        configuration.read();
        let kept = configuration.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REREAD).await;
                kept.read();
            }
        });
        configuration
    }

    /// What is in use now.
    pub fn current(&self) -> Option<Arc<InjectConfig>> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    /// Why nothing can be injected; `None` when all is well.
    pub fn problem(&self) -> Option<String> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        match &state.current {
            Some(_) => None,
            None => Some(state.problem.clone().unwrap_or_else(|| "not read yet".to_owned())),
        }
    }

    fn read(&self) {
        let files = read_file(&self.0.values).and_then(|values| Ok((values, read_file(&self.0.anchors)?)));
        let result = match &files {
            Ok(files) if self.0.state.read().unwrap_or_else(PoisonError::into_inner).files.as_ref() == Some(files) => {
                return;
            }
            Ok((values, anchors)) => configure(values, anchors, &self.0.control_namespace),
            Err(error) => Err(error.clone()),
        };
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        state.files = files.ok();
        match result {
            Ok(config) => {
                tracing::info!(image = config.proxy_image, version = config.proxy_version, "values in use");
                state.current = Some(Arc::new(config));
                state.problem = None;
            }
            Err(problem) => {
                if state.problem.as_ref() != Some(&problem) {
                    self.0.failures.inc();
                    tracing::warn!(problem, "the values cannot be used; those before stay in use");
                }
                state.problem = Some(problem);
            }
        }
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let fault = |error: String| format!("{}: {error}", path.display());
    let size = std::fs::metadata(path).map_err(|e| fault(e.to_string()))?.len();
    if size > MAX_FILE {
        return Err(fault(format!("larger than {MAX_FILE} octets")));
    }
    std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))
}

fn configure(values: &str, anchors: &str, control_namespace: &str) -> Result<InjectConfig, String> {
    crate::identity::ca::certificates(anchors.as_bytes()).map_err(|error| format!("trust anchors: {error}"))?;
    let config = InjectConfig::from_values(values, control_namespace, anchors, env!("CARGO_PKG_VERSION"))
        .map_err(|error| format!("values: {error}"))?;
    // A value that no pod could be injected with must not come to light with the first pod.
    let pod = serde_json::json!({
        "kind": "Pod",
        "metadata": { "name": "trial" },
        "spec": { "containers": [{ "name": "trial" }] },
    });
    let trial = InjectConfig { unless_disabled: true, ..config.clone() };
    match inject(&pod, &trial) {
        Ok(injected) if injected.reports.iter().all(|report| report.outcome == Outcome::Changed) => Ok(config),
        Ok(_) => Err("values: nothing would be injected".to_owned()),
        Err(error) => Err(format!("values: the default of {}: {}", error.field, error.message)),
    }
}
