use super::super::{CHAINS, fill, rule, rules};
use super::*;
use crate::redirect::{Match, Mode, PortRange, Redirect, Rule, TCP, Verdict};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

/// `NF_ACCEPT`.
const ACCEPT: i32 = -2;

fn plain(family: Family, target: &[u8], jump: Jump) -> Entry {
    Entry::new(entry(family, |_| {}, &[], target), jump)
}

/// The table as a kernel begins it.
fn empty(family: Family) -> Table {
    // All but the hook between the two directions of what is passed on.
    let info = Info { valid_hooks: 0b11011, ..Info::default() };
    let chain = |hook| Chain {
        beginning: Beginning::Hook(hook),
        rules: Vec::new(),
        end: plain(family, &standard(ACCEPT), Jump::None),
    };
    Table { family, info, chains: [0, 1, 3, 4].map(chain).to_vec(), tail: plain(family, &error(ERROR), Jump::None) }
}

/// With rules of others: chains that jump to each other, a rule without target, one of a kind that nobody knows.
fn foreign(family: Family) -> Table {
    let mut table = empty(family);
    let to = |name: &[u8]| Jump::Chain(name.to_vec());
    let unknown = || plain(family, &extension("WHATEVER", 3, &[7; 21]), Jump::None);
    table.fill("ZEBRA", vec![plain(family, &standard(0), Jump::Next), unknown()]);
    table.fill(
        "AARDVARK",
        vec![plain(family, &standard(0), to(b"ZEBRA")), plain(family, &standard(ACCEPT), Jump::None)],
    );
    for chain in &mut table.chains {
        if matches!(chain.beginning, Beginning::Hook(_)) {
            chain.rules = vec![plain(family, &standard(0), to(b"AARDVARK")), plain(family, &standard(0), Jump::Next)];
        }
    }
    table
}

/// Through the kernel's form and back, without the numbers that entries had.
fn again(table: &Table) -> Table {
    let (info, octets, _) = table.write();
    let mut table = Table::read(table.family, &info, &octets).unwrap();
    table.info = Info { valid_hooks: info.valid_hooks, ..Info::default() };
    for chain in &mut table.chains {
        if let Beginning::Name(_, head) = &mut chain.beginning {
            head.was = None;
        }
        chain.rules.iter_mut().chain([&mut chain.end]).for_each(|entry| entry.was = None);
    }
    table.tail.was = None;
    table
}

/// What an entry looks for and does, read by the kernel's layout; the other half of [`rule::encode`].
fn decode(entry: &Entry, family: Family) -> Rule {
    let octets = &entry.octets;
    let number = |at: usize| u32::from_ne_bytes(*octets[at..].first_chunk().unwrap());
    let (length, protocol, flags, interface) = match family {
        Family::Ipv4 => (112, 80, 82, 32),
        Family::Ipv6 => (168, 128, 131, 80),
    };
    let (name, data) = target(family, octets);
    let port = |at: usize| u16::from_be_bytes(*data[at..].first_chunk().unwrap());
    let verdict = match (name, family) {
        (b"", _) => {
            assert_eq!(verdict(family, octets), Some(RETURN));
            Verdict::Return
        }
        (b"REDIRECT", Family::Ipv4) => {
            assert_eq!((data.len(), &data[..8], port(16)), (24, &[1, 0, 0, 0, 2, 0, 0, 0][..], port(18)));
            Verdict::Redirect(port(16))
        }
        (b"REDIRECT", Family::Ipv6) => {
            assert_eq!((data.len(), &data[..4], port(36)), (40, &[2, 0, 0, 0][..], port(38)));
            Verdict::Redirect(port(36))
        }
        _ => panic!("{:?}", String::from_utf8_lossy(name)),
    };
    let tcp = octets[protocol] == TCP;
    assert_eq!(octets[flags] != 0, tcp && family == Family::Ipv6);
    let at = usize::from(read16(octets, if family == Family::Ipv4 { 88 } else { 140 }));
    let found = if at == length {
        let word = |at: usize| octets[at..][..4].try_into().map(u32::from_be_bytes).unwrap();
        let long = |at: usize| octets[at..][..16].try_into().map(u128::from_be_bytes).unwrap();
        if octets[interface] != 0 {
            assert_eq!(&octets[interface..interface + 3], b"lo\0");
            assert_eq!(octets[interface + 32..interface + 48].iter().filter(|octet| **octet == 0xff).count(), 3);
            Match::Loopback
        } else if tcp {
            Match::Tcp
        } else if family == Family::Ipv4 {
            let prefix = word(8).leading_ones();
            Match::Sources(vec![Ipv4Net::new(word(0).into(), prefix as u8).unwrap().into()])
        } else {
            let prefix = long(32).leading_ones();
            Match::Sources(vec![Ipv6Net::new(long(0).into(), prefix as u8).unwrap().into()])
        }
    } else {
        assert_eq!(at, length + usize::from(read16(octets, length)), "one match");
        let data = &octets[length + 32..at];
        match (text(&octets[length + 2..length + 31]), octets[length + 31]) {
            (b"multiport", 1) => {
                assert_eq!((data.len(), data[0], tcp), (48, 1, true));
                let port = |slot: usize| u16::from_ne_bytes(*data[2 + 2 * slot..].first_chunk().unwrap());
                let (mut ranges, mut slot) = (Vec::new(), 0);
                while slot < usize::from(data[1]) {
                    let low = port(slot);
                    slot += usize::from(data[32 + slot]);
                    ranges.push(PortRange { low, high: port(slot) });
                    slot += 1;
                }
                assert!(slot <= 15);
                Match::Ports(ranges)
            }
            (b"owner", 1) => {
                assert_eq!(data.len(), 24);
                let (uid, gid) = (number(length + 32), number(length + 40));
                assert_eq!((uid, gid), (number(length + 36), number(length + 44)));
                match data[16] {
                    1 => Match::User(uid),
                    2 => Match::Group(gid),
                    other => panic!("{other}"),
                }
            }
            other => panic!("{other:?}"),
        }
    };
    (found, verdict)
}

fn ranges(most: usize) -> impl Strategy<Value = Vec<PortRange>> {
    let range = (1u16.., prop_oneof![Just(0u16), 0u16..1000]);
    let range = range.prop_map(|(low, more)| PortRange { low, high: low.saturating_add(more) });
    proptest::collection::vec(range, 0..most)
}

fn redirects() -> impl Strategy<Value = Redirect> {
    let networks = prop_oneof![
        (any::<u32>(), 0u8..=32)
            .prop_map(|(address, prefix)| IpNet::from(Ipv4Net::new(address.into(), prefix).unwrap())),
        (any::<u128>(), 0u8..=128)
            .prop_map(|(address, prefix)| IpNet::from(Ipv6Net::new(address.into(), prefix).unwrap())),
    ];
    let ports = (1u16.., 1u16.., ranges(20), ranges(60), ranges(60));
    let who = (any::<Option<u32>>(), any::<Option<u32>>());
    (ports, who, proptest::collection::vec(networks, 0..6), any::<bool>()).prop_map(
        |((inbound_port, outbound_port, inbound_only, inbound_ignore, outbound_ignore), who, ignore_subnets, ipv6)| {
            Redirect {
                inbound_port,
                outbound_port,
                proxy_uid: who.0,
                proxy_gid: who.1,
                inbound_only,
                inbound_ignore,
                outbound_ignore,
                ignore_subnets,
                ipv6,
                mode: Mode::Legacy,
            }
        },
    )
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)]
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_the_same(redirect in redirects(), family in families()) {
        let before = foreign(family);
        prop_assert_eq!(&again(&before), &before);
        let mut table = before.clone();
        fill(&mut table, &redirect, family);
        let mut table = again(&table);
        for ((hook, _, name), rules) in CHAINS.iter().zip(rules(&redirect, family)) {
            let chain = table.chains.iter().find(|chain| chain.name() == Some(name.as_bytes())).unwrap();
            let found: Vec<Rule> = chain.rules.iter().map(|entry| decode(entry, family)).collect();
            prop_assert_eq!(found, rules);
            let from = table.chains.iter().find(|chain| chain.beginning == Beginning::Hook(*hook)).unwrap();
            prop_assert_eq!(&from.rules.last().unwrap().jump, &Jump::Chain(name.as_bytes().to_vec()));
        }
        let names: Vec<&[u8]> = table.chains.iter().filter_map(Chain::name).collect();
        prop_assert!(names.is_sorted());
        // Once more changes nothing, and the removal leaves what was there.
        let once = table.clone();
        fill(&mut table, &redirect, family);
        prop_assert_eq!(&again(&table), &once);
        CHAINS.iter().for_each(|(_, _, chain)| table.remove(chain));
        prop_assert_eq!(again(&table), before);
    }

    #[test]
    fn no_octets_are_trusted(family in families(), at in 0usize..3000, new: u8, cut in 0usize..3000, hook: u32) {
        let (mut info, mut octets, _) = foreign(family).write();
        write(&mut octets, at, &[new]);
        let _ = Table::read(family, &info, &octets);
        octets.truncate(cut);
        let _ = Table::read(family, &info, &octets);
        info.hook_entry[0] = hook;
        let _ = Table::read(family, &info, &octets);
    }
}

#[test]
fn a_rule_has_at_most_fifteen_ports_and_a_range_takes_two() {
    let single = |port| PortRange { low: port, high: port };
    let ports: Vec<PortRange> = (1..=14).map(single).chain([PortRange { low: 20, high: 30 }, single(40)]).collect();
    let rules = rule::split(&(Match::Ports(ports), Verdict::Return), Family::Ipv4);
    let numbers: Vec<String> = rules.iter().map(|rule| rule::text(rule, "X")).collect();
    assert_eq!(
        numbers,
        [
            "-A X -p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14 -j RETURN",
            "-A X -p tcp -m multiport --dports 20:30,40 -j RETURN",
        ]
    );
}

#[test]
fn jumps_to_our_chains_are_ours() {
    let family = Family::Ipv4;
    let mut table = foreign(family);
    table.jump(0, "ZEBRA");
    let rules = |table: &Table| table.chains.first().unwrap().rules.clone();
    let once = rules(&table);
    assert_eq!(once.len(), 3);
    // One that Linkerd has made, with a comment, in front of ours, and ours twice.
    let comment = extension("comment", 0, &[b'x'; 256]);
    let theirs = Entry::new(entry(family, |_| {}, &[comment], &standard(0)), Jump::Chain(b"ZEBRA".to_vec()));
    let first = table.chains.first_mut().unwrap();
    first.rules.insert(0, theirs);
    first.rules.push(first.rules.last().unwrap().clone());
    table.jump(0, "ZEBRA");
    assert_eq!(rules(&table), once);
}

#[test]
fn what_rules_have_counted_stays_theirs() {
    let (info, octets, _) = foreign(Family::Ipv4).write();
    let mut table = Table::read(Family::Ipv4, &info, &octets).unwrap();
    let old: Vec<Counters> = (0..u64::from(info.entries)).map(|number| [number, 100 + number]).collect();
    table.fill("MIDDLE", vec![plain(Family::Ipv4, &standard(RETURN), Jump::None)]);
    let (_, _, was) = table.write();
    let new = counters(&was, &old);
    // The new chain is between the others: a beginning, a rule, an end.
    assert_eq!(new.iter().filter(|count| **count == [0, 0]).count(), 3);
    let kept: Vec<Counters> = new.iter().copied().filter(|count| *count != [0, 0]).collect();
    assert_eq!(kept, old);
}

#[test]
fn tables_of_another_shape_are_refused() {
    let family = Family::Ipv4;
    let (info, octets, _) = foreign(family).write();
    let error = |info: &Info, octets: &[u8]| Table::read(family, info, octets).unwrap_err().to_string();
    assert!(error(&info, &octets[..octets.len() - 8]).contains("cut off"));
    assert!(error(&Info { entries: 1, ..info }, &octets).contains("another number"));
    assert!(error(&Info { entries: 0, ..info }, &[]).contains("empty"));
    assert!(error(&Info { underflow: [0; HOOKS], ..info }, &octets).contains("policy"));
    let mut into_the_middle = octets.clone();
    write_verdict(&mut into_the_middle, family, 8);
    assert!(error(&info, &into_the_middle).contains("no chain begins"));
}
