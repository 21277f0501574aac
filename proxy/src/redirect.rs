//! The redirection of a pod's TCP traffic through its proxy, as an nftables ruleset.
//!
//! What is redirected, in the order of Linkerd's own init container: inbound, every port but the ignored ones and every
//! source but the ignored networks; outbound, everything but what the proxy's own user sends, what stays on loopback,
//! and the ignored ports. UDP is never touched.

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

impl Redirect {
    /// The ruleset for `nft -f -`: one transaction that replaces what an earlier run made.
    pub fn ruleset(&self) -> String {
        let mut inbound = vec![self.family()];
        if !self.inbound_ignore.is_empty() {
            inbound.push(format!("tcp dport {} return", set(&self.inbound_ignore)));
        }
        let v4: Vec<_> = self.ignore_subnets.iter().filter(|n| matches!(n, IpNet::V4(_))).map(IpNet::trunc).collect();
        let v6: Vec<_> = self.ignore_subnets.iter().filter(|n| matches!(n, IpNet::V6(_))).map(IpNet::trunc).collect();
        for (family, subnets) in [("ip", v4), ("ip6", v6)] {
            if !subnets.is_empty() {
                inbound.push(format!("{family} saddr {} return", set(&subnets)));
            }
        }
        inbound.push(match self.inbound_only.as_slice() {
            [] => format!("meta l4proto tcp redirect to :{}", self.inbound_port),
            only => format!("tcp dport {} redirect to :{}", set(only), self.inbound_port),
        });

        let mut outbound = vec![self.family()];
        if let Some(uid) = self.proxy_uid {
            outbound.push(format!("meta skuid {uid} return"));
        }
        if let Some(gid) = self.proxy_gid {
            outbound.push(format!("meta skgid {gid} return"));
        }
        outbound.push("oifname \"lo\" return".to_owned());
        if !self.outbound_ignore.is_empty() {
            outbound.push(format!("tcp dport {} return", set(&self.outbound_ignore)));
        }
        outbound.push(format!("meta l4proto tcp redirect to :{}", self.outbound_port));

        // Declaring the table first makes the deletion valid when there is none yet.
        let mut out = format!("table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
        for (hook, rules) in [("prerouting", inbound), ("output", outbound)] {
            let _ = writeln!(out, "\tchain {hook} {{");
            let _ = writeln!(out, "\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;");
            for rule in rules.iter().filter(|r| !r.is_empty()) {
                let _ = writeln!(out, "\t\t{rule}");
            }
            let _ = writeln!(out, "\t}}");
        }
        out.push_str("}\n");
        out
    }

    fn family(&self) -> String {
        if self.ipv6 { String::new() } else { "meta nfproto ipv6 return".to_owned() }
    }
}

fn set<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    format!("{{ {} }}", items.join(", "))
}
