//! `weft check`: runs checks in order, prints each as it ends. What is wrong comes with what to do about it.

use crate::args::{Check, CheckOutput};
use crate::checks::{self, Options, Running};
use crate::cluster::{Cluster, Mesh};
use crate::kubernetes::Kubernetes;
use crate::{Failure, print};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// Runs the command. Exit code 2 when a check fails that is not only a warning.
///
/// # Errors
/// Never for a failed check.
pub async fn run(args: Check, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let mut runner = Runner::new(args.output, Duration::from_secs(args.wait));
    let options = Options {
        control: mesh.control.clone(),
        namespace: args.namespace,
        proxy_only: args.proxy,
        linkerd_cni: args.linkerd_cni_enabled,
        kubernetes: false,
    };
    let on_kubernetes = Options { kubernetes: true, ..options.clone() };
    if args.pre || args.crds {
        let found = Kubernetes::new(&mesh.access).await;
        if let Some(kubernetes) = checks::kubernetes::connect(&mut runner, found).await {
            if args.pre {
                checks::kubernetes::before_install(&mut runner, &kubernetes, &on_kubernetes).await;
            }
            if args.crds {
                checks::kubernetes::definitions(&mut runner, &kubernetes).await;
            }
        }
    } else {
        match mesh.cluster().await {
            Ok(Cluster::Kubernetes(kubernetes)) => {
                let running = Running { mesh: mesh.clone(), cluster: Some(Cluster::Kubernetes(kubernetes.clone())) };
                if let Some(kubernetes) = checks::kubernetes::connect(&mut runner, Ok(kubernetes)).await {
                    checks::kubernetes::run(&mut runner, &kubernetes, &running, &on_kubernetes).await;
                }
            }
            Err(error) if mesh.access.is_explicit() => {
                checks::kubernetes::connect(&mut runner, Err::<Kubernetes, _>(error)).await;
            }
            _ => checks::run(&mut runner, &Running { mesh: mesh.clone(), cluster: None }, &options).await,
        }
    }
    Ok(if runner.finish() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// The page that says of every check what it means when it fails, and what to do.
const PAGE: &str = "docs/checks.md";

/// The section of [`PAGE`] about a check.
pub fn anchor(description: &str) -> String {
    let kept = description.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

/// How bad it is when a check fails, and whether it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Severity {
    /// Ends the run.
    pub fatal: bool,
    /// Does not make the run fail.
    pub warning: bool,
    /// Is repeated until it holds or the time is over.
    pub retry: bool,
}

impl Severity {
    /// Makes the run fail, but it goes on.
    pub const ERROR: Severity = Severity { fatal: false, warning: false, retry: false };
    /// Ends the run.
    pub const FATAL: Severity = Severity { fatal: true, ..Severity::ERROR };
    /// Ends the run unless it holds in time.
    pub const FATAL_RETRY: Severity = Severity { retry: true, ..Severity::FATAL };
    /// Makes the run fail unless it holds in time.
    pub const RETRY: Severity = Severity { retry: true, ..Severity::ERROR };
    /// Is only said.
    pub const WARNING: Severity = Severity { warning: true, ..Severity::ERROR };
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    description: String,
    error: Option<String>,
    hint: String,
    warning: bool,
}

/// Pause between two tries of a check.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Runs checks and prints them.
#[derive(Debug)]
pub struct Runner {
    output: CheckOutput,
    wait: Duration,
    started: Instant,
    categories: Vec<(&'static str, Vec<Outcome>)>,
    category: &'static str,
    printed_category: &'static str,
    stopped: bool,
    quiet: bool,
    text: String,
}

impl Runner {
    /// A runner that prints to stdout.
    pub fn new(output: CheckOutput, wait: Duration) -> Runner {
        Runner {
            output,
            wait,
            started: Instant::now(),
            categories: Vec::new(),
            category: "",
            printed_category: "",
            stopped: false,
            quiet: false,
            text: String::new(),
        }
    }

    /// A runner that only collects what it would print.
    #[cfg(test)]
    pub(crate) fn collecting(output: CheckOutput) -> Runner {
        Runner { quiet: true, ..Runner::new(output, Duration::ZERO) }
    }

    /// The checks that follow belong to this category.
    pub fn category(&mut self, name: &'static str) {
        self.category = name;
    }

    /// Whether a fatal check failed.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Runs one check, unless a fatal one failed before. Answers what it found, when it holds.
    pub async fn check<T>(
        &mut self,
        description: &str,
        severity: Severity,
        hint: &str,
        attempt: impl AsyncFn() -> Result<T, String>,
    ) -> Option<T> {
        if self.stopped {
            return None;
        }
        let result = loop {
            let result = attempt().await;
            if result.is_ok() || !severity.retry || self.started.elapsed() + RETRY_PAUSE > self.wait {
                break result;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        };
        let (found, error) = match result {
            Ok(found) => (Some(found), None),
            Err(error) => (None, Some(error)),
        };
        self.stopped |= error.is_some() && severity.fatal;
        self.record(Outcome {
            description: description.to_owned(),
            error,
            hint: match hint {
                "" => format!("{PAGE}#{}", anchor(description)),
                hint => format!("{hint} and {PAGE}#{}", anchor(description)),
            },
            warning: severity.warning,
        });
        found
    }

    fn record(&mut self, outcome: Outcome) {
        let silent = self.output == CheckOutput::Json || (self.output == CheckOutput::Short && outcome.error.is_none());
        let mut text = String::new();
        if !silent {
            if self.printed_category != self.category {
                self.printed_category = self.category;
                if !self.text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&format!("{}\n{}\n", self.category, "-".repeat(self.category.len())));
            }
            let mark = match (&outcome.error, outcome.warning) {
                (None, _) => "√",
                (Some(_), true) => "‼",
                (Some(_), false) => "×",
            };
            text.push_str(&format!("{mark} {}\n", outcome.description));
            if let Some(error) = &outcome.error {
                text.push_str(&format!("    {error}\n    see {} for hints\n", outcome.hint));
            }
            self.emit(&text);
        }
        match self.categories.last_mut() {
            Some((category, outcomes)) if *category == self.category => outcomes.push(outcome),
            _ => self.categories.push((self.category, vec![outcome])),
        }
    }

    fn emit(&mut self, text: &str) {
        if !self.quiet {
            print(text);
        }
        self.text.push_str(text);
    }

    /// Prints the end. Answers whether no check failed, warnings aside.
    pub fn finish(&mut self) -> bool {
        let failed = |o: &Outcome| o.error.is_some() && !o.warning;
        let success = !self.categories.iter().flat_map(|(_, outcomes)| outcomes).any(failed);
        if self.output == CheckOutput::Json {
            let text = format!("{}\n", serde_json::to_string_pretty(&self.json(success)).unwrap_or_default());
            self.emit(&text);
        } else {
            let gap = if self.text.is_empty() { "" } else { "\n" };
            let text = format!("{gap}Status check results are {}\n", if success { "√" } else { "×" });
            self.emit(&text);
        }
        success
    }

    fn json(&self, success: bool) -> Value {
        let check = |outcome: &Outcome| {
            let mut check = json!({ "description": outcome.description });
            if let Some(error) = &outcome.error {
                check["hint"] = outcome.hint.clone().into();
                check["error"] = error.clone().into();
            }
            check["result"] = match (&outcome.error, outcome.warning) {
                (None, _) => "success".into(),
                (Some(_), true) => "warning".into(),
                (Some(_), false) => "error".into(),
            };
            check
        };
        let categories: Vec<Value> = self
            .categories
            .iter()
            .map(|(name, outcomes)| {
                json!({ "categoryName": name, "checks": outcomes.iter().map(check).collect::<Vec<_>>() })
            })
            .collect();
        json!({ "success": success, "categories": categories })
    }

    /// The descriptions of all checks that ran.
    #[cfg(test)]
    pub(crate) fn descriptions(&self) -> impl Iterator<Item = &str> {
        self.categories.iter().flat_map(|(_, outcomes)| outcomes).map(|outcome| outcome.description.as_str())
    }

    /// What was printed.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}
