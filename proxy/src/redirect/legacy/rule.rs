//! One rule as an entry of a table, and as the text that `iptables-save` prints.

use std::fmt::Write as _;

use ipnet::IpNet;
use weft_sys::Family;

use super::super::{Match, PortRange, Rule, TCP, Verdict};
use super::table::{Entry, Jump, RETURN, entry, extension, header, standard, write};

/// Numbers that a `multiport` match has room for (`XT_MULTI_PORTS`); a range takes two.
const SLOTS: usize = 15;
/// `XT_MULTIPORT_DESTINATION`.
const DESTINATION: u8 = 1;
/// `XT_OWNER_UID`, `XT_OWNER_GID`.
const OWNER_UID: u8 = 1;
const OWNER_GID: u8 = 2;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`.
const PORT_SPECIFIED: u32 = 2;
/// `IP6T_F_PROTO`: the header's protocol counts. With IPv4 it always does.
const PROTOCOL_COUNTS: u8 = 1;
/// `IFNAMSIZ`.
const INTERFACE: usize = 16;

/// The rules that say the same of one version of IP, none of which looks for more than a rule of iptables can.
pub(super) fn split((found, verdict): &Rule, family: Family) -> Vec<Rule> {
    let matches = match found {
        // Another table's.
        Match::Ipv6 => Vec::new(),
        Match::Ports(ports) => groups(ports).into_iter().map(Match::Ports).collect(),
        Match::Sources(networks) => {
            let ours = networks.iter().filter(|network| matches!(network, IpNet::V6(_)) == (family == Family::Ipv6));
            ours.map(|network| Match::Sources(vec![*network])).collect()
        }
        Match::Tcp | Match::User(_) | Match::Group(_) | Match::Loopback => vec![found.clone()],
    };
    matches.into_iter().map(|found| (found, *verdict)).collect()
}

fn groups(ports: &[PortRange]) -> Vec<Vec<PortRange>> {
    let mut out: Vec<Vec<PortRange>> = Vec::new();
    let mut left = 0;
    for range in ports {
        let slots = if range.low == range.high { 1 } else { 2 };
        match out.last_mut().filter(|_| slots <= left) {
            Some(group) => group.push(*range),
            None => {
                out.push(vec![*range]);
                left = SLOTS;
            }
        }
        left -= slots;
    }
    out
}

/// One of the rules of [`split`].
pub(super) fn encode((found, verdict): &Rule, family: Family) -> Entry {
    let header = header(family);
    let matches = match found {
        Match::Ports(ports) => vec![multiport(ports)],
        Match::User(uid) => vec![owner(OWNER_UID, *uid)],
        Match::Group(gid) => vec![owner(OWNER_GID, *gid)],
        Match::Ipv6 | Match::Tcp | Match::Sources(_) | Match::Loopback => Vec::new(),
    };
    let target = match verdict {
        Verdict::Return => standard(RETURN),
        Verdict::Redirect(port) => redirect(*port, family),
    };
    let fill = |octets: &mut [u8]| match found {
        Match::Tcp | Match::Ports(_) => {
            write(octets, header.protocol, &u16::from(TCP).to_ne_bytes());
            if family == Family::Ipv6 {
                write(octets, header.flags, &[PROTOCOL_COUNTS]);
            }
        }
        Match::Sources(networks) => {
            let (address, mask) = match networks.first() {
                Some(IpNet::V4(net)) => (net.network().octets().to_vec(), net.netmask().octets().to_vec()),
                Some(IpNet::V6(net)) => (net.network().octets().to_vec(), net.netmask().octets().to_vec()),
                None => return,
            };
            write(octets, 0, &address);
            write(octets, 2 * header.address, &mask);
        }
        Match::Loopback => {
            let interfaces = 4 * header.address;
            write(octets, interfaces + INTERFACE, b"lo");
            // With the 0 behind the name: the whole of it.
            write(octets, interfaces + 3 * INTERFACE, &[0xff; 3]);
        }
        Match::Ipv6 | Match::User(_) | Match::Group(_) => {}
    };
    Entry::new(entry(family, fill, &matches, &target), Jump::None)
}

/// `struct xt_multiport_v1`: what, how many, the ports, which of them begin a range, whether it is inverted.
fn multiport(ranges: &[PortRange]) -> Vec<u8> {
    let (mut ports, mut begins) = (Vec::new(), Vec::new());
    for PortRange { low, high } in ranges {
        ports.push(*low);
        begins.push(u8::from(low != high));
        if low != high {
            ports.push(*high);
            begins.push(0);
        }
    }
    let count = u8::try_from(ports.len()).unwrap_or(u8::MAX);
    ports.resize(SLOTS, 0);
    begins.resize(SLOTS, 0);
    let mut data = vec![DESTINATION, count];
    data.extend(ports.iter().flat_map(|port| port.to_ne_bytes()));
    data.extend(begins);
    data.push(0);
    extension("multiport", 1, &data)
}

/// `struct xt_owner_match_info`: a range of users, one of groups, which of them count, which are inverted.
fn owner(which: u8, id: u32) -> Vec<u8> {
    let of = |this| if which == this { id } else { 0 };
    let mut data = Vec::new();
    for number in [of(OWNER_UID), of(OWNER_UID), of(OWNER_GID), of(OWNER_GID)] {
        data.extend(number.to_ne_bytes());
    }
    // Two octets of padding are part of the structure.
    data.extend([which, 0, 0, 0]);
    extension("owner", 1, &data)
}

/// IPv4: `struct nf_nat_ipv4_multi_range_compat`, one range after their number. IPv6: `struct nf_nat_range`. Both say what
/// counts, then the first and last address, then the first and last port.
fn redirect(port: u16, family: Family) -> Vec<u8> {
    let mut data = Vec::new();
    if family == Family::Ipv4 {
        data.extend(1u32.to_ne_bytes());
    }
    data.extend(PORT_SPECIFIED.to_ne_bytes());
    data.extend(vec![0; 2 * header(family).address]);
    data.extend(port.to_be_bytes());
    data.extend(port.to_be_bytes());
    extension("REDIRECT", 0, &data)
}

/// As `iptables-save` prints it.
pub(super) fn text((found, verdict): &Rule, chain: &str) -> String {
    let mut out = format!("-A {chain}");
    let _ = match found {
        Match::Ipv6 => Ok(()),
        Match::Tcp => write!(out, " -p tcp"),
        Match::Ports(ports) => {
            let ports: Vec<String> = ports.iter().map(|range| range.to_string().replace('-', ":")).collect();
            write!(out, " -p tcp -m multiport --dports {}", ports.join(","))
        }
        // Every source is none in particular.
        Match::Sources(networks) => match networks.first().filter(|network| network.prefix_len() > 0) {
            Some(network) => write!(out, " -s {network}"),
            None => Ok(()),
        },
        Match::User(uid) => write!(out, " -m owner --uid-owner {uid}"),
        Match::Group(gid) => write!(out, " -m owner --gid-owner {gid}"),
        Match::Loopback => write!(out, " -o lo"),
    };
    let _ = match verdict {
        Verdict::Return => write!(out, " -j RETURN"),
        Verdict::Redirect(port) => write!(out, " -j REDIRECT --to-ports {port}"),
    };
    out
}
