//! weft-init: redirects a pod's TCP traffic through its proxy. Runs once, in the pod's network namespace, with NET_ADMIN.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use ipnet::IpNet;
use weft_proxy::redirect::{Applied, Mode, PortRange, Redirect};

const CLOSE_WAIT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";

/// Redirects a pod's TCP traffic through its proxy.
#[derive(Debug, Parser)]
#[command(name = "weft-init", version)]
struct Args {
    /// Where inbound connections go.
    #[arg(short = 'p', long, value_name = "PORT", default_value_t = 4143)]
    incoming_proxy_port: u16,
    /// Where outbound connections go.
    #[arg(short = 'o', long, value_name = "PORT", default_value_t = 4140)]
    outgoing_proxy_port: u16,
    /// User of the proxy, whose own connections are left alone.
    #[arg(short = 'u', long, value_name = "UID")]
    proxy_uid: Option<u32>,
    /// Group of the proxy, whose own connections are left alone.
    #[arg(short = 'g', long, value_name = "GID")]
    proxy_gid: Option<u32>,
    /// Redirect only these inbound ports.
    #[arg(short = 'r', long, value_name = "PORTS", value_delimiter = ',', value_parser = port)]
    ports_to_redirect: Vec<PortRange>,
    /// Inbound ports and ranges that are left alone.
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = port)]
    inbound_ports_to_ignore: Vec<PortRange>,
    /// Outbound ports and ranges that are left alone.
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = port)]
    outbound_ports_to_ignore: Vec<PortRange>,
    /// Networks whose inbound connections are left alone.
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',')]
    subnets_to_ignore: Vec<IpNet>,
    /// Redirect IPv6 too; the proxy must listen on IPv6 then.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    ipv6: bool,
    /// By what: nft, legacy (ip_tables), or auto (also: plain), which is nft unless the kernel has no nf_tables.
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = mode)]
    iptables_mode: Mode,
    /// Print the ruleset (for auto: that of nft) and change nothing.
    #[arg(long)]
    simulate: bool,
    /// Work in this network namespace (a path such as /proc/123/ns/net).
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// Wait for other users of the packet filter. This always does; accepted for Linkerd's manifests.
    #[arg(short = 'w', long)]
    use_wait_flag: bool,
    /// Seconds that the kernel keeps half-closed connections; 0 leaves the system's setting.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout_close_wait_secs: u32,
}

fn port(text: &str) -> Result<PortRange, String> {
    text.parse()
}

fn mode(text: &str) -> Result<Mode, String> {
    text.parse()
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-init: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let redirect = Redirect {
        inbound_port: args.incoming_proxy_port,
        outbound_port: args.outgoing_proxy_port,
        proxy_uid: args.proxy_uid,
        proxy_gid: args.proxy_gid,
        inbound_only: args.ports_to_redirect,
        inbound_ignore: args.inbound_ports_to_ignore,
        outbound_ignore: args.outbound_ports_to_ignore,
        ignore_subnets: args.subnets_to_ignore,
        ipv6: args.ipv6,
        mode: args.iptables_mode,
    };
    if args.simulate {
        print!("{}", redirect.ruleset());
        return Ok(());
    }
    if let Some(path) = &args.netns {
        let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter {}", path.display()))?;
    }
    if let Applied::Legacy { instead: Some(error) } = redirect.apply()? {
        eprintln!("weft-init: the kernel has no nf_tables ({error}); ip_tables redirect instead");
    }
    if args.timeout_close_wait_secs > 0 {
        std::fs::write(CLOSE_WAIT, args.timeout_close_wait_secs.to_string())
            .with_context(|| format!("cannot set {CLOSE_WAIT}"))?;
    }
    Ok(())
}
