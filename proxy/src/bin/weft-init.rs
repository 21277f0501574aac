//! weft-init: redirects a pod's TCP traffic through its proxy. Runs once, in the pod's network namespace, with NET_ADMIN; or,
//! without any right, finds out whether a CNI plugin has done that.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use weft_proxy::{
    redirect::{Applied, Flags},
    validate::Validate,
};

/// Redirects a pod's TCP traffic through its proxy.
#[derive(Debug, Parser)]
#[command(name = "weft-init", version, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
    /// Print the ruleset (for auto: that of nft) and change nothing.
    #[arg(long)]
    simulate: bool,
    /// Work in this network namespace (a path such as /proc/123/ns/net).
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// Wait for other users of the packet filter. This always does; accepted for Linkerd's manifests.
    #[arg(short = 'w', long)]
    use_wait_flag: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find out whether a CNI plugin has redirected the traffic of this pod; exit code 95 when it has not.
    Validate(Validate),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Command::Validate(validate)) = &args.command {
        return match validate.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(fault) => {
                eprintln!("weft-init: {fault}");
                ExitCode::from(fault.code())
            }
        };
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-init: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.simulate {
        print!("{}", args.flags.redirect().ruleset());
        return Ok(());
    }
    if let Some(path) = &args.netns {
        let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter {}", path.display()))?;
    }
    if let Applied::Legacy { instead: Some(error) } = args.flags.apply()? {
        eprintln!("weft-init: the kernel has no nf_tables ({error}); ip_tables redirect instead");
    }
    Ok(())
}
