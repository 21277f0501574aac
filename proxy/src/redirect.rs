//! The redirection of a pod's TCP traffic through its proxy, as an nftables ruleset.
//!
//! What is redirected, in the order of Linkerd's own init container: inbound, every port but the ignored ones and every
//! source but the ignored networks; outbound, everything but what the proxy's own user sends, what stays on loopback,
//! and the ignored ports. UDP is never touched.
//!
//! The rules are written as text, for people and tests, and as messages to the kernel, so that no program is needed that
//! reads the text: an image has nothing but weft's own.

mod netlink;

use std::fmt::{self, Write as _};

use ipnet::IpNet;

/// The table that holds everything; replaced as a whole.
pub const TABLE: &str = "inet weft_init";

/// Before the virtual service addresses of the one-machine cluster (-90): an application's connection is seen with the
/// address that it dialled; what the proxy sends passes on to that table.
const PRIORITY: i32 = -100;

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

    /// The ruleset as `nft -f -` would take it: one transaction that replaces what an earlier run made.
    pub fn ruleset(&self) -> String {
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

    /// Puts the rules into force in the network namespace of this thread, in one transaction.
    ///
    /// # Errors
    /// What the kernel says: most often that this process may not change them.
    pub fn apply(&self) -> std::io::Result<()> {
        netlink::replace(&self.chains())
    }
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
