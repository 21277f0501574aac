//! The flags that say what to redirect. They are `weft-init`'s, and a pod that a CNI plugin redirects has them in the
//! arguments of its validator.

use std::path::Path;

use anyhow::Context as _;
use ipnet::IpNet;

use super::{Applied, Mode, PortRange, Redirect};

const CLOSE_WAIT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";

/// What to redirect, as Linkerd's init container is told.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// Where inbound connections go.
    #[arg(short = 'p', long, value_name = "PORT", default_value_t = 4143)]
    pub incoming_proxy_port: u16,
    /// Where outbound connections go.
    #[arg(short = 'o', long, value_name = "PORT", default_value_t = 4140)]
    pub outgoing_proxy_port: u16,
    /// User of the proxy, whose own connections are left alone.
    #[arg(short = 'u', long, value_name = "UID")]
    pub proxy_uid: Option<u32>,
    /// Group of the proxy, whose own connections are left alone.
    #[arg(short = 'g', long, value_name = "GID")]
    pub proxy_gid: Option<u32>,
    /// Redirect only these inbound ports.
    #[arg(short = 'r', long, value_name = "PORTS", value_delimiter = ',', value_parser = port)]
    pub ports_to_redirect: Vec<PortRange>,
    /// Inbound ports and ranges that are left alone.
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = port)]
    pub inbound_ports_to_ignore: Vec<PortRange>,
    /// Outbound ports and ranges that are left alone.
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = port)]
    pub outbound_ports_to_ignore: Vec<PortRange>,
    /// Networks whose inbound connections are left alone.
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',')]
    pub subnets_to_ignore: Vec<IpNet>,
    /// Redirect IPv6 too; the proxy must listen on IPv6 then.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub ipv6: bool,
    /// By what: nft, legacy (ip_tables), or auto (also: plain), which is nft unless the kernel has no nf_tables.
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = mode)]
    pub iptables_mode: Mode,
    /// Seconds that the kernel keeps half-closed connections; 0 leaves the system's setting.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub timeout_close_wait_secs: u32,
}

fn port(text: &str) -> Result<PortRange, String> {
    text.parse()
}

fn mode(text: &str) -> Result<Mode, String> {
    text.parse()
}

impl Flags {
    /// The redirection that they ask for.
    pub fn redirect(&self) -> Redirect {
        Redirect {
            inbound_port: self.incoming_proxy_port,
            outbound_port: self.outgoing_proxy_port,
            proxy_uid: self.proxy_uid,
            proxy_gid: self.proxy_gid,
            inbound_only: self.ports_to_redirect.clone(),
            inbound_ignore: self.inbound_ports_to_ignore.clone(),
            outbound_ignore: self.outbound_ports_to_ignore.clone(),
            ignore_subnets: self.subnets_to_ignore.clone(),
            ipv6: self.ipv6,
            mode: self.iptables_mode,
        }
    }

    /// Does what they ask for in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply(&self) -> anyhow::Result<Applied> {
        let applied = self.redirect().apply()?;
        if self.timeout_close_wait_secs > 0 {
            std::fs::write(Path::new(CLOSE_WAIT), self.timeout_close_wait_secs.to_string())
                .with_context(|| format!("cannot set {CLOSE_WAIT}"))?;
        }
        Ok(applied)
    }
}
