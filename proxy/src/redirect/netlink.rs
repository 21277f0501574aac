//! The rules as messages to the kernel (nfnetlink, subsystem nf_tables). See `linux/netfilter/nf_tables.h` for the numbers.

use super::{Match, PRIORITY, PortRange, Rule, TCP, Verdict};
use ipnet::IpNet;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
/// An answer: an error, or the acknowledgement, which is error 0.
const ERROR: u16 = 2;

/// Family `inet`: both versions of IP.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const NAME: &str = "weft_init";
/// The kernel answers at once; this is for one that does not.
const TIMEOUT_SECONDS: i64 = 10;

/// Replaces the table.
pub(super) fn replace(chains: &[(&'static str, Vec<Rule>)]) -> io::Result<()> {
    send(&batch(chains))
}

/// Removes the table, if there is one.
pub(super) fn remove() -> io::Result<()> {
    let mut batch = Batch::begin();
    batch.delete_table();
    send(&batch.end())
}

fn send(batch: &Batch) -> io::Result<()> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))?;
    sendto(socket.as_raw_fd(), &batch.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    // One answer for each message between beginning and end; all or nothing has happened.
    let mut waiting: BTreeSet<u32> = batch.awaited.iter().copied().collect();
    let mut buffer = vec![0; 64 << 10];
    while !waiting.is_empty() {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (sequence, error) in answers(buffer.get(..length).unwrap_or_default()) {
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error.saturating_neg()));
            }
            waiting.remove(&sequence);
        }
    }
    Ok(())
}

/// Sequence number and error of each answer.
fn answers(mut octets: &[u8]) -> Vec<(u32, i32)> {
    let mut out = Vec::new();
    while let Some((head, rest)) = octets.split_first_chunk::<16>() {
        let [l0, l1, l2, l3, t0, t1, _, _, s0, s1, s2, s3, ..] = *head;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if u16::from_ne_bytes([t0, t1]) == ERROR
            && let Some(error) = rest.first_chunk::<4>()
        {
            out.push((u32::from_ne_bytes([s0, s1, s2, s3]), i32::from_ne_bytes(*error)));
        }
        match octets.get(length.max(16).next_multiple_of(4)..) {
            Some(next) => octets = next,
            None => break,
        }
    }
    out
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    awaited: Vec<u32>,
}

fn batch(chains: &[(&'static str, Vec<Rule>)]) -> Batch {
    let mut batch = Batch::begin();
    batch.delete_table();
    batch.nftables(NEW_TABLE, CREATE, &text(1, NAME));
    for (hook, rules) in chains {
        let number: u32 = if *hook == "prerouting" { 0 } else { 3 };
        let at = nested(4, &[number32(1, number), number32(2, PRIORITY.cast_unsigned())]);
        let accept = number32(5, 1);
        batch.nftables(NEW_CHAIN, CREATE, &[text(1, NAME), text(3, hook), at, accept, text(7, "nat")].concat());
        for (found, verdict) in rules {
            for mut expressions in matching(found) {
                expressions.extend(ending(*verdict));
                let list: Vec<Vec<u8>> = expressions.iter().map(|(name, data)| expression(name, data)).collect();
                let rule = [text(1, NAME), text(2, hook), nested(4, &list)].concat();
                batch.nftables(NEW_RULE, CREATE | APPEND, &rule);
            }
        }
    }
    batch.end()
}

impl Batch {
    fn begin() -> Self {
        let mut batch = Self::default();
        batch.message(BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, &[]);
        batch
    }

    fn end(mut self) -> Self {
        self.message(BATCH_END, REQUEST, 0, SUBSYSTEM, &[]);
        self
    }

    /// Making it first makes the deletion valid when there is none yet.
    fn delete_table(&mut self) {
        self.nftables(NEW_TABLE, CREATE, &text(1, NAME));
        self.nftables(DELETE_TABLE, 0, &text(1, NAME));
    }

    fn nftables(&mut self, kind: u16, flags: u16, attributes: &[u8]) {
        self.awaited.push(self.sequence);
        self.message(SUBSYSTEM << 8 | kind, REQUEST | ACK | flags, INET, 0, attributes);
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
        // Header and family are 20 octets; messages are far smaller than what the length can say.
        let length = u32::try_from(attributes.len()).unwrap_or(u32::MAX).saturating_add(20);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
        self.sequence = self.sequence.wrapping_add(1);
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX).saturating_add(4);
    let mut out = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &parts.concat())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn number32(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    nested(1, &[text(1, name), attribute(2 | NESTED, data)])
}

type Expression = (&'static str, Vec<u8>);

/// What a packet is about is loaded into register 1 and compared there.
const REGISTER: u32 = 1;
const EQUAL: u32 = 0;
const NOT_LESS: u32 = 5;
const NOT_MORE: u32 = 3;

fn meta(key: u32) -> Expression {
    ("meta", [number32(2, key), number32(1, REGISTER)].concat())
}

fn compare(operation: u32, value: &[u8]) -> Expression {
    let data = nested(3, &[attribute(1, value)]);
    ("cmp", [number32(1, REGISTER), number32(2, operation), data].concat())
}

fn payload(base: u32, offset: u32, length: u32) -> Expression {
    ("payload", [number32(1, REGISTER), number32(2, base), number32(3, offset), number32(4, length)].concat())
}

fn masked(mask: &[u8]) -> Expression {
    let length = u32::try_from(mask.len()).unwrap_or_default();
    let zeros = vec![0; mask.len()];
    let data = [
        number32(1, REGISTER),
        number32(2, REGISTER),
        number32(3, length),
        nested(4, &[attribute(1, mask)]),
        nested(5, &[attribute(1, &zeros)]),
    ];
    ("bitwise", data.concat())
}

/// The ways in which a packet can be what is looked for, each of which becomes a rule.
fn matching(found: &Match) -> Vec<Vec<Expression>> {
    const OUT_INTERFACE_NAME: u32 = 7;
    const USER: u32 = 10;
    const GROUP: u32 = 11;
    const FAMILY: u32 = 15;
    const PROTOCOL: u32 = 16;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let tcp = || vec![meta(PROTOCOL), compare(EQUAL, &[TCP])];
    match found {
        Match::Ipv6 => vec![vec![meta(FAMILY), compare(EQUAL, &[IPV6])]],
        Match::Tcp => vec![tcp()],
        Match::User(uid) => vec![vec![meta(USER), compare(EQUAL, &uid.to_ne_bytes())]],
        Match::Group(gid) => vec![vec![meta(GROUP), compare(EQUAL, &gid.to_ne_bytes())]],
        Match::Loopback => {
            let mut name = [0; 16];
            name.iter_mut().zip(b"lo").for_each(|(slot, octet)| *slot = *octet);
            vec![vec![meta(OUT_INTERFACE_NAME), compare(EQUAL, &name)]]
        }
        Match::Ports(ranges) => ranges
            .iter()
            .map(|PortRange { low, high }| {
                let mut all = tcp();
                all.push(payload(TRANSPORT, 2, 2));
                if low == high {
                    all.push(compare(EQUAL, &low.to_be_bytes()));
                } else {
                    all.push(compare(NOT_LESS, &low.to_be_bytes()));
                    all.push(compare(NOT_MORE, &high.to_be_bytes()));
                }
                all
            })
            .collect(),
        Match::Sources(networks) => networks
            .iter()
            .map(|network| {
                let (family, offset, address, mask) = match network {
                    IpNet::V4(net) => (IPV4, 12, net.network().octets().to_vec(), net.netmask().octets().to_vec()),
                    IpNet::V6(net) => (IPV6, 8, net.network().octets().to_vec(), net.netmask().octets().to_vec()),
                };
                let length = u32::try_from(address.len()).unwrap_or_default();
                let load = payload(NETWORK, offset, length);
                vec![meta(FAMILY), compare(EQUAL, &[family]), load, masked(&mask), compare(EQUAL, &address)]
            })
            .collect(),
    }
}

fn ending(verdict: Verdict) -> Vec<Expression> {
    /// The register of what becomes of a packet.
    const VERDICT: u32 = 0;
    const RETURN: i32 = -5;
    match verdict {
        Verdict::Return => {
            let code = nested(2, &[number32(1, RETURN.cast_unsigned())]);
            vec![("immediate", [number32(1, VERDICT), nested(2, &[code])].concat())]
        }
        Verdict::Redirect(port) => {
            let load = [number32(1, REGISTER), nested(2, &[attribute(1, &port.to_be_bytes())])].concat();
            vec![("immediate", load), ("redir", number32(1, REGISTER))]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whatever_they_are() {
        let mut octets = Vec::new();
        for (sequence, error) in [(7u32, 0i32), (8, -1)] {
            octets.extend(36u32.to_ne_bytes());
            octets.extend(ERROR.to_ne_bytes());
            octets.extend(0u16.to_ne_bytes());
            octets.extend(sequence.to_ne_bytes());
            octets.extend(0u32.to_ne_bytes());
            octets.extend(error.to_ne_bytes());
            octets.extend([0; 16]);
        }
        assert_eq!(answers(&octets), [(7, 0), (8, -1)]);
        for length in 0..octets.len() {
            let _ = answers(octets.get(..length).unwrap());
        }
        assert_eq!(answers(&[0; 64]), []);
    }

    #[test]
    fn attributes_are_padded() {
        assert_eq!(attribute(1, b"abc").len(), 8);
        assert_eq!(attribute(1, b"abc").first_chunk::<2>(), Some(&7u16.to_ne_bytes()));
    }
}
