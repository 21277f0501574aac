//! The redirection of a pod's TCP traffic through its proxy, as an nftables ruleset or, for kernels without nf_tables, as
//! iptables' chains.
//!
//! What is redirected, in the order of Linkerd's own init container: inbound, every port but the ignored ones and every
//! source but the ignored networks; outbound, everything but what the proxy's own user sends, what stays on loopback,
//! and the ignored ports. UDP is never touched.
//!
//! The rules are written as text, for people and tests, and as messages to the kernel, so that no program is needed that
//! reads the text: an image has nothing but weft's own.
//!
//! Rules of the other kind that an earlier run has left are removed when the new ones are in force. Meanwhile there are both,
//! and a connection is redirected once all the same: the kernel's NAT decides about each only once.

mod flags;
mod legacy;
mod netlink;

use std::{
    fmt::{self, Write as _},
    io,
};

pub use flags::Flags;

use ipnet::IpNet;
use nix::errno::Errno;

/// The table that holds everything; replaced as a whole.
pub const TABLE: &str = "inet weft_init";

/// Before the virtual service addresses of the one-machine cluster (-90): an application's connection is seen with the
/// address that it dialled; what the proxy sends passes on to that table.
const PRIORITY: i32 = -100;

/// TCP's number.
const TCP: u8 = 6;

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// First.
    pub low: u16,
    /// Last, not less than the first.
    pub high: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high { write!(f, "{}", self.low) } else { write!(f, "{}-{}", self.low, self.high) }
    }
}

impl std::str::FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |s: &str| s.trim().parse::<u16>().ok().filter(|p| *p > 0);
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        match (port(low), port(high)) {
            (Some(low), Some(high)) if low <= high => Ok(Self { low, high }),
            _ => Err(format!("{text:?} is neither a port nor a range such as 8000-8010")),
        }
    }
}

/// By which of the kernel's packet filters traffic is redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// nf_tables, or ip_tables where the kernel has no nf_tables.
    #[default]
    Auto,
    /// nf_tables.
    Nftables,
    /// ip_tables.
    Legacy,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            // Linkerd's name for what the system has.
            "auto" | "plain" => Ok(Self::Auto),
            "nft" => Ok(Self::Nftables),
            "legacy" => Ok(Self::Legacy),
            _ => Err(format!("{text:?} is none of auto, nft, legacy, plain")),
        }
    }
}

/// What redirects the traffic now.
#[derive(Debug)]
pub enum Applied {
    /// nf_tables.
    Nftables,
    /// ip_tables.
    Legacy {
        /// How the kernel has said that it has no nf_tables, where they were tried.
        instead: Option<io::Error>,
    },
}

/// The rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses those of nf_tables.
    #[error("the kernel refuses the rules for nf_tables: {0}")]
    Nftables(io::Error),
    /// The kernel refuses those of ip_tables.
    #[error("the kernel refuses the rules for ip_tables: {0}")]
    Legacy(io::Error),
    /// The kernel has no nf_tables, and ip_tables do not work either.
    #[error("the kernel can redirect neither by nf_tables ({nftables}) nor by ip_tables ({legacy})")]
    Neither {
        /// What it says to nf_tables.
        nftables: io::Error,
        /// What it says to ip_tables.
        legacy: io::Error,
    },
}

/// What to redirect, and what not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Where inbound connections go.
    pub inbound_port: u16,
    /// Where outbound connections go.
    pub outbound_port: u16,
    /// User whose own connections are left alone.
    pub proxy_uid: Option<u32>,
    /// Group whose own connections are left alone.
    pub proxy_gid: Option<u32>,
    /// Only these inbound ports, when there are any.
    pub inbound_only: Vec<PortRange>,
    /// Not these inbound ports.
    pub inbound_ignore: Vec<PortRange>,
    /// Not these outbound ports.
    pub outbound_ignore: Vec<PortRange>,
    /// Inbound connections from these networks are left alone.
    pub ignore_subnets: Vec<IpNet>,
    /// IPv6 too. The proxy must listen on IPv6 then.
    pub ipv6: bool,
    /// By what.
    pub mode: Mode,
}

/// What a rule looks for; none is every packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Match {
    Ipv6,
    Tcp,
    Ports(Vec<PortRange>),
    Sources(Vec<IpNet>),
    User(u32),
    Group(u32),
    Loopback,
}

/// What becomes of what a rule has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Return,
    Redirect(u16),
}

type Rule = (Match, Verdict);

impl Redirect {
    /// The rules of both chains, by the hooks that they are at.
    fn chains(&self) -> [(&'static str, Vec<Rule>); 2] {
        let family = (!self.ipv6).then_some((Match::Ipv6, Verdict::Return));
        let mut inbound: Vec<Rule> = family.iter().cloned().collect();
        if !self.inbound_ignore.is_empty() {
            inbound.push((Match::Ports(self.inbound_ignore.clone()), Verdict::Return));
        }
        let of =
            |v4: bool| self.ignore_subnets.iter().filter(move |n| matches!(n, IpNet::V4(_)) == v4).map(IpNet::trunc);
        for subnets in [of(true).collect::<Vec<_>>(), of(false).collect()] {
            if !subnets.is_empty() {
                inbound.push((Match::Sources(subnets), Verdict::Return));
            }
        }
        let found = match self.inbound_only.as_slice() {
            [] => Match::Tcp,
            only => Match::Ports(only.to_vec()),
        };
        inbound.push((found, Verdict::Redirect(self.inbound_port)));

        let mut outbound: Vec<Rule> = family.into_iter().collect();
        outbound.extend(self.proxy_uid.map(|uid| (Match::User(uid), Verdict::Return)));
        outbound.extend(self.proxy_gid.map(|gid| (Match::Group(gid), Verdict::Return)));
        outbound.push((Match::Loopback, Verdict::Return));
        if !self.outbound_ignore.is_empty() {
            outbound.push((Match::Ports(self.outbound_ignore.clone()), Verdict::Return));
        }
        outbound.push((Match::Tcp, Verdict::Redirect(self.outbound_port)));
        [("prerouting", inbound), ("output", outbound)]
    }

    /// The ruleset as text. For nftables, as `nft -f -` would take it: one transaction that replaces what an earlier run made.
    /// For iptables, as `iptables-restore --noflush` and `ip6tables-restore --noflush` would. Where the kernel decides, that
    /// of nftables.
    pub fn ruleset(&self) -> String {
        if self.mode == Mode::Legacy {
            return legacy::ruleset(self);
        }
        // Declaring the table first makes the deletion valid when there is none yet.
        let mut out = format!("table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
        for (hook, rules) in self.chains() {
            let _ = writeln!(out, "\tchain {hook} {{");
            let _ = writeln!(out, "\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;");
            for (found, verdict) in &rules {
                let _ = writeln!(out, "\t\t{found} {verdict}");
            }
            let _ = writeln!(out, "\t}}");
        }
        out.push_str("}\n");
        out
    }

    /// Puts the rules into force in the network namespace of this thread, and removes those of the other kind that an
    /// earlier run has left. Those of nf_tables are one transaction; ip_tables have one for each version of IP.
    ///
    /// # Errors
    /// What the kernel says: most often that this process may not change the rules.
    pub fn apply(&self) -> Result<Applied, Error> {
        if self.mode == Mode::Legacy {
            return self.apply_legacy(None);
        }
        match netlink::replace(&self.chains()) {
            Ok(()) => {
                legacy::remove().map_err(Error::Legacy)?;
                Ok(Applied::Nftables)
            }
            Err(error) if self.mode == Mode::Auto && is_missing(&error) => self.apply_legacy(Some(error)),
            Err(error) => Err(Error::Nftables(error)),
        }
    }

    fn apply_legacy(&self, instead: Option<io::Error>) -> Result<Applied, Error> {
        match legacy::replace(self) {
            Ok(()) => {
                netlink::remove()
                    .or_else(|error| if is_missing(&error) { Ok(()) } else { Err(Error::Nftables(error)) })?;
                Ok(Applied::Legacy { instead })
            }
            Err(legacy) => Err(match instead {
                Some(nftables) => Error::Neither { nftables, legacy },
                None => Error::Legacy(legacy),
            }),
        }
    }
}

/// Whether the kernel has no nf_tables, or none that can do this: no netlink for packet filters, no nf_tables behind it, no
/// family `inet` in them, no chain for NAT in this family (before Linux 5.2) or no redirection. Never, that somebody may not.
fn is_missing(error: &io::Error) -> bool {
    let missing = [Errno::EPROTONOSUPPORT, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::ENOENT];
    error.raw_os_error().is_some_and(|number| missing.contains(&Errno::from_raw(number)))
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::Ipv6 => f.write_str("meta nfproto ipv6"),
            Match::Tcp => f.write_str("meta l4proto tcp"),
            Match::Ports(ports) => write!(f, "tcp dport {}", set(ports)),
            Match::Sources(networks) => {
                let family = if matches!(networks.first(), Some(IpNet::V6(_))) { "ip6" } else { "ip" };
                write!(f, "{family} saddr {}", set(networks))
            }
            Match::User(uid) => write!(f, "meta skuid {uid}"),
            Match::Group(gid) => write!(f, "meta skgid {gid}"),
            Match::Loopback => f.write_str("oifname \"lo\""),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Return => f.write_str("return"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

fn set<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    format!("{{ {} }}", items.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_kernel_lacks_is_missing() {
        let missing = |errno: Errno| is_missing(&errno.into());
        assert!(
            [Errno::EPROTONOSUPPORT, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::ENOENT].into_iter().all(missing)
        );
        assert!(![Errno::EPERM, Errno::EACCES, Errno::EINVAL, Errno::ENOMEM, Errno::EAGAIN].into_iter().any(missing));
        assert!(!is_missing(&io::ErrorKind::TimedOut.into()));
    }
}
