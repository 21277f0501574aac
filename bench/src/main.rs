//! weft-bench: reads the command line; the library does the work.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, value_parser};
use weft_bench::{compare, control, net, steady, subjects::Subject};

/// Compares weft-proxy with HAProxy and with no proxy at all, side by side on this machine
#[derive(Debug, Parser)]
#[command(name = "weft-bench", version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(flatten)]
    compare: Compare,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, clap::Args)]
struct Compare {
    /// Rounds; each runs every subject once
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u64).range(1..))]
    seconds: u64,
    /// One round of one-second measurements: shows that everything works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// The proxy to measure; beside this program by default
    #[arg(long, value_name = "PATH")]
    proxy: Option<PathBuf>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "direct,haproxy,weft")]
    subjects: Vec<Subject>,
}

/// Parts that the comparison starts in its namespaces.
#[derive(Debug, Subcommand)]
enum Part {
    /// Holds a new network namespace until standard input ends
    #[command(hide = true)]
    Hold,
    /// Serves a control plane for one proxy on loopback
    #[command(hide = true)]
    Control(control::Settings),
    /// Sends requests at a constant average rate and prints latencies in nanoseconds
    #[command(hide = true)]
    Steady {
        /// Where to
        target: SocketAddr,
        /// Requests per second, all connections together
        #[arg(long, default_value_t = 1500)]
        rate: u32,
        /// Connections
        #[arg(long, default_value_t = 32)]
        connections: u32,
        /// How long
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn run(options: Options) -> anyhow::Result<()> {
    match options.part {
        Some(Part::Hold) => Ok(()),
        Some(Part::Control(settings)) => control::run(settings).await,
        Some(Part::Steady { target, rate, connections, seconds }) => {
            let load = steady::Load { target, rate, connections, time: Duration::from_secs(seconds) };
            println!("{}", serde_json::to_string(&load.run().await?)?);
            Ok(())
        }
        None => {
            let Compare { rounds, seconds, quick, proxy, mut subjects } = options.compare;
            let (rounds, seconds) = if quick { (1, 1) } else { (rounds, seconds) };
            subjects.sort();
            subjects.dedup();
            let proxy = if subjects.contains(&Subject::Weft) { Some(compare::find_proxy(proxy)?) } else { None };
            let plan = compare::Plan { rounds, time: Duration::from_secs(seconds), subjects, proxy };
            tokio::select! {
                result = compare::run(&plan) => result,
                result = tokio::signal::ctrl_c() => {
                    result?;
                    anyhow::bail!("stopped by Ctrl-C")
                }
            }
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = if matches!(options.part, Some(Part::Hold)) { net::hold() } else { run(options) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
