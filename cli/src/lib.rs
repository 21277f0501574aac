//! The command line `weft`. Commands about the one-machine cluster belong to `weft_local`; those about the mesh are
//! here, with the verbs, columns, JSON keys and exit codes of Linkerd's.
//!
//! Each command is a module with a pure part that renders (tested against golden files) and a short part that asks the
//! control plane through [`api`].

pub mod api;
pub mod args;
pub mod certificate;
pub mod chart;
pub mod check;
mod checks;
pub mod cluster;
pub mod diagnostics;
pub mod edges;
pub mod endpoints;
pub mod fetch;
pub mod grpc;
pub mod identity;
pub mod inject;
pub mod install;
pub mod kubernetes;
pub mod messages;
pub mod metrics;
pub mod pods;
pub mod resource;
pub mod stat;
pub mod table;
pub mod version;

use args::{Cli, Command, DiagnosticsCommand as Diagnostics, VizCommand};
use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::process::ExitCode;

/// Why a command failed, with its exit code.
#[derive(Debug)]
pub struct Failure {
    /// What to print to stderr; may have several lines.
    pub message: String,
    /// Exit code.
    pub code: u8,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 1 }
    }
}

impl From<weft_local::Error> for Failure {
    fn from(error: weft_local::Error) -> Failure {
        Failure { code: error.code(), message: error.to_string() }
    }
}

impl From<resource::Error> for Failure {
    fn from(error: resource::Error) -> Failure {
        Failure::new(error.to_string())
    }
}

/// Parses the arguments and runs the command. Usage errors are exit code 1, as in Linkerd's command line.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = Cli::command().try_get_matches_from(arguments).and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to fail differently.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let level = if cli.verbose { tracing::Level::DEBUG } else { tracing::Level::WARN };
    let _ = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).try_init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: cannot start: {error}");
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("Error: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let access = kubernetes::Access {
        kubeconfig: cli.kubeconfig,
        context: cli.context,
        as_user: cli.as_user,
        as_groups: cli.as_groups,
    };
    if access.is_explicit() && cli.command.is_of_this_machine() {
        let message = "this command is about the cluster of this machine; on Kubernetes kubectl does it";
        return Err(Failure::new(message));
    }
    let mesh = &cluster::Mesh { control: cli.linkerd_namespace, access };
    match cli.command {
        Command::Install(args) => install::install(*args, mesh).await,
        Command::InstallCni(args) => install::install_cni(&args),
        Command::Upgrade(args) => install::upgrade(*args, mesh).await,
        Command::Uninstall(args) => install::uninstall(args, mesh).await,
        Command::Prune => install::prune(mesh).await,
        Command::Up(args) => Ok(weft_local::up(args).await?),
        Command::Down(args) => Ok(weft_local::down(args).await?),
        Command::Apply(args) => Ok(weft_local::apply(args).await?),
        Command::Delete(args) => Ok(weft_local::delete(args).await?),
        Command::Ps(args) => Ok(weft_local::ps(args).await?),
        Command::Logs(args) => Ok(weft_local::logs(args).await?),
        Command::Exec(args) => Ok(weft_local::exec(args).await?),
        Command::Inject(args) => inject::inject(*args, mesh).await,
        Command::Uninject(args) => inject::uninject(args).await,
        Command::Stat(args) | Command::Viz(VizCommand::Stat(args)) => stat::run(args, mesh).await,
        Command::Edges(args) | Command::Viz(VizCommand::Edges(args)) => edges::run(args, mesh).await,
        Command::Check(args) | Command::Viz(VizCommand::Check(args)) => check::run(args, mesh).await,
        Command::Identity(args) => identity::run(args, mesh).await,
        Command::Metrics(args) | Command::Diagnostics(Diagnostics::ProxyMetrics(args)) => {
            metrics::run(args, mesh).await
        }
        Command::Endpoints(args) | Command::Diagnostics(Diagnostics::Endpoints(args)) => {
            endpoints::run(args, mesh).await
        }
        Command::Diagnostics(Diagnostics::Profile(args)) => diagnostics::profile(args, mesh).await,
        Command::Diagnostics(Diagnostics::Policy(args)) => diagnostics::policy(args, mesh).await,
        Command::Diagnostics(Diagnostics::ControllerMetrics(args)) => metrics::of_controller(args, mesh).await,
        Command::Get(args) => pods::get(args, mesh).await,
        Command::Viz(VizCommand::List(args)) => pods::list(args, mesh).await,
        Command::Version(args) => version::run(args, mesh).await,
        Command::Completion(args) => {
            let shell = match args.shell {
                args::Shell::Bash => clap_complete::Shell::Bash,
                args::Shell::Zsh => clap_complete::Shell::Zsh,
                args::Shell::Fish => clap_complete::Shell::Fish,
            };
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
            print(&String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints to stdout. A closed pipe (`weft stat | head`) is not an error.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
