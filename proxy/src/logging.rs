//! Logs: text or JSON on standard error, with a level that can be changed while the proxy runs.

use std::sync::Arc;

use tracing_subscriber::{
    Layer as _, Registry, filter::Targets, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::config::LogConfig;

/// Changes the log level.
#[derive(Clone)]
pub struct LogHandle(Arc<dyn Fn(Targets) -> Result<(), String> + Send + Sync>, Arc<std::sync::Mutex<String>>);

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
pub fn init(config: &LogConfig) -> LogHandle {
    let targets: Targets = config.filter.parse().unwrap_or_default();
    let (filter, handle) = reload::Layer::<Targets, Registry>::new(targets);
    let layer = if config.json {
        fmt::layer().json().with_writer(std::io::stderr).boxed()
    } else {
        fmt::layer().with_ansi(false).with_writer(std::io::stderr).boxed()
    };
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
    LogHandle(
        Arc::new(move |targets| handle.reload(targets).map_err(|e| e.to_string())),
        Arc::new(std::sync::Mutex::new(config.filter.clone())),
    )
}

impl LogHandle {
    /// The directives in force.
    pub fn get(&self) -> String {
        self.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Puts other directives in force.
    ///
    /// # Errors
    /// Tells what is wrong with them; nothing changes then.
    pub fn set(&self, directives: &str) -> Result<(), String> {
        let text = normalize(directives)?;
        self.0(text.parse().map_err(|e: tracing_subscriber::filter::ParseError| e.to_string())?)?;
        *self.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = text;
        Ok(())
    }
}
