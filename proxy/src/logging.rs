//! Logs: text or JSON on standard error, with a level that can be changed while the proxy runs.

use std::{sync::Arc, time::Duration};

use tracing_subscriber::{
    Layer as _, Registry, filter::Targets, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::config::LogConfig;

mod lines;

use lines::Lines;

/// How long the end of the process waits for the last lines to be written.
const FLUSH: Duration = Duration::from_secs(2);

/// Changes the log level.
#[derive(Clone)]
pub struct LogHandle {
    reload: Arc<dyn Fn(Targets) -> Result<(), String> + Send + Sync>,
    directives: Arc<std::sync::Mutex<String>>,
    lines: Lines,
}

/// Checks directives such as `warn,weft_proxy=debug`. Directives for `linkerd` are taken for this proxy's own.
///
/// # Errors
/// Tells what is wrong with the directives.
pub fn normalize(directives: &str) -> Result<String, String> {
    let own = |directive: &str| -> String {
        let directive = directive.trim();
        let (target, level) = directive.split_once('=').unwrap_or((directive, ""));
        match (target, level) {
            ("linkerd" | "linkerd2_proxy", "") => "weft_proxy".to_owned(),
            ("linkerd" | "linkerd2_proxy", level) => format!("weft_proxy={level}"),
            _ => directive.to_owned(),
        }
    };
    let text = directives.split(',').map(own).collect::<Vec<_>>().join(",");
    text.parse::<Targets>().map_err(|e| e.to_string())?;
    Ok(text)
}

/// Starts logging. The level of a second call in one process (as in tests) has no effect.
///
/// # Errors
/// The system gives no thread for it.
pub fn init(config: &LogConfig) -> std::io::Result<LogHandle> {
    let targets: Targets = config.filter.parse().unwrap_or_default();
    let (filter, handle) = reload::Layer::<Targets, Registry>::new(targets);
    let lines = Lines::start(std::io::stderr(), |lost| tracing::warn!(lost, "log lines were lost: nobody took them"))?;
    let layer = if config.json {
        fmt::layer().json().with_writer(lines.clone()).boxed()
    } else {
        fmt::layer().with_ansi(false).with_writer(lines.clone()).boxed()
    };
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
    Ok(LogHandle {
        reload: Arc::new(move |targets| handle.reload(targets).map_err(|e| e.to_string())),
        directives: Arc::new(std::sync::Mutex::new(config.filter.clone())),
        lines,
    })
}

impl LogHandle {
    /// The directives in force.
    pub fn get(&self) -> String {
        self.directives.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Puts other directives in force.
    ///
    /// # Errors
    /// Tells what is wrong with them; nothing changes then.
    pub fn set(&self, directives: &str) -> Result<(), String> {
        let text = normalize(directives)?;
        (self.reload)(text.parse().map_err(|e: tracing_subscriber::filter::ParseError| e.to_string())?)?;
        *self.directives.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = text;
        Ok(())
    }

    /// Has the last lines written before the process ends, if somebody takes them.
    pub fn flush(&self) {
        self.lines.flush(FLUSH);
    }
}
