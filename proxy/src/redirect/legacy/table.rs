//! A table of ip_tables as chains of rules, read from and written as the octets that the kernel has.
//!
//! A table is a row of entries (`struct ipt_entry`, `struct ip6t_entry`): a header that says what addresses and interfaces are
//! looked for, further matches, a target. The chain of a hook begins where the table's header says and ends with its policy.
//! A chain with a name begins with an entry whose target is `ERROR`, which holds the name, and ends with a return. Jumps
//! are offsets into the row, and the row ends with an `ERROR` of that name. Rules of others are kept as octets; of them,
//! only where they jump is changed when they move.

use std::collections::HashMap;

use weft_sys::{Counters, Family, HOOKS, Info};

/// What matches and targets have in front of their data: `struct xt_entry_match`, `struct xt_entry_target`.
pub(super) const EXTENSION: usize = 32;
/// Everything in a table is at a multiple of this (`XT_ALIGN`).
const ALIGN: usize = 8;
/// `XT_FUNCTION_MAXNAMELEN`: room for a chain's name and the 0 behind it.
const CHAIN_NAME: usize = 30;
/// Name of the target that begins a chain.
const ERROR: &[u8] = b"ERROR";
/// `XT_RETURN`.
pub(super) const RETURN: i32 = -5;

/// A table cannot be read: it is not as iptables makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the table in the kernel cannot be read: {0}")]
pub(super) struct Unreadable(&'static str);

/// Places in the header of an entry.
pub(super) struct Header {
    /// Length of an address; source, destination and their masks are the first four things.
    pub address: usize,
    /// `u16`; behind the addresses are the names of the interfaces, in and out, and their masks, 16 octets each.
    pub protocol: usize,
    /// `u8`, which says what is looked for. IPv4 needs no flag for what is wanted here.
    pub flags: usize,
    /// `u16`: where the target is; the length of the whole entry follows, then four octets that are the kernel's.
    pub target: usize,
    /// Two `u64`.
    pub counters: usize,
    /// Length of the header: where the matches begin.
    pub length: usize,
}

const HEADER_IPV4: Header = Header { address: 4, protocol: 80, flags: 82, target: 88, counters: 96, length: 112 };
const HEADER_IPV6: Header = Header { address: 16, protocol: 128, flags: 131, target: 140, counters: 152, length: 168 };

pub(super) fn header(family: Family) -> &'static Header {
    match family {
        Family::Ipv4 => &HEADER_IPV4,
        Family::Ipv6 => &HEADER_IPV6,
    }
}

/// Where an entry goes on, as far as it depends on places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Jump {
    /// Nowhere.
    None,
    /// To the entry behind it: a rule without target.
    Next,
    /// To the chain of this name.
    Chain(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Without what depends on places and time.
    pub octets: Vec<u8>,
    pub jump: Jump,
    /// Its number in the table that was read.
    was: Option<usize>,
}

impl Entry {
    /// A new one.
    pub(super) fn new(octets: Vec<u8>, jump: Jump) -> Self {
        Self { octets, jump, was: None }
    }

    /// Whether both do the same, wherever they have been.
    fn does_as(&self, other: &Self) -> bool {
        self.octets == other.octets && self.jump == other.jump
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Beginning {
    /// Number of the hook.
    Hook(usize),
    /// A chain's name, and the entry that holds it.
    Name(Vec<u8>, Entry),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    beginning: Beginning,
    rules: Vec<Entry>,
    /// The policy, or the return.
    end: Entry,
}

impl Chain {
    fn name(&self) -> Option<&[u8]> {
        match &self.beginning {
            Beginning::Name(name, _) => Some(name),
            Beginning::Hook(_) => None,
        }
    }
}

/// A table that was read, and may be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    family: Family,
    info: Info,
    chains: Vec<Chain>,
    /// What ends the table.
    tail: Entry,
}

impl Table {
    /// Reads what the kernel has.
    pub(super) fn read(family: Family, info: &Info, octets: &[u8]) -> Result<Self, Unreadable> {
        let mut entries = split(family, octets)?;
        if u32::try_from(entries.len()) != Ok(info.entries) {
            return Err(Unreadable("it has another number of entries than it says"));
        }
        let hook_at = |offset: usize, places: &[u32; HOOKS]| {
            let is = |hook: &usize| {
                info.valid_hooks & (1 << hook) != 0
                    && places.get(*hook).and_then(|p| usize::try_from(*p).ok()) == Some(offset)
            };
            (0..HOOKS).find(is)
        };
        let (_, tail) = entries.pop().ok_or(Unreadable("it is empty"))?;
        if name_of(family, &tail.octets).as_deref() != Some(ERROR) {
            return Err(Unreadable("it has no end"));
        }
        // The entries of each chain with their places; the last is the chain's end.
        let mut chains: Vec<(Beginning, Vec<(usize, Entry)>)> = Vec::new();
        for (offset, entry) in entries {
            if let Some(hook) = hook_at(offset, &info.hook_entry) {
                chains.push((Beginning::Hook(hook), vec![(offset, entry)]));
            } else if let Some(name) = name_of(family, &entry.octets) {
                chains.push((Beginning::Name(name, entry), Vec::new()));
            } else {
                chains.last_mut().ok_or(Unreadable("it has rules outside of chains"))?.1.push((offset, entry));
            }
        }
        let mut starts = HashMap::new();
        for (beginning, entries) in &chains {
            let (first, last) = entries.first().zip(entries.last()).ok_or(Unreadable("a chain has no end"))?;
            match beginning {
                Beginning::Name(name, _) => {
                    starts.insert(first.0, name.clone());
                }
                Beginning::Hook(hook) if hook_at(last.0, &info.underflow) == Some(*hook) => {}
                Beginning::Hook(_) => return Err(Unreadable("a chain does not end with its policy")),
            }
        }
        if chains.iter().filter(|(beginning, _)| matches!(beginning, Beginning::Hook(_))).count()
            != info.valid_hooks.count_ones() as usize
        {
            return Err(Unreadable("a hook has no chain of its own"));
        }
        let chains = chains.into_iter().map(|(beginning, entries)| {
            let mut rules = Vec::new();
            for (offset, mut entry) in entries {
                entry.jump = match verdict(family, &entry.octets).and_then(|verdict| usize::try_from(verdict).ok()) {
                    None => Jump::None,
                    Some(place) if place == offset + entry.octets.len() => Jump::Next,
                    Some(place) => match starts.get(&place) {
                        Some(name) => Jump::Chain(name.clone()),
                        None => return Err(Unreadable("a rule jumps to where no chain begins")),
                    },
                };
                if entry.jump != Jump::None {
                    write_verdict(&mut entry.octets, family, 0);
                }
                rules.push(entry);
            }
            let end = rules.pop().filter(|end| end.jump == Jump::None).ok_or(Unreadable("a chain has no end"))?;
            Ok(Chain { beginning, rules, end })
        });
        Ok(Self { family, info: *info, chains: chains.collect::<Result<_, _>>()?, tail })
    }

    /// Its octets, what the kernel is to know of them, and for each entry the number that it had when it was read.
    pub(super) fn write(&self) -> (Info, Vec<u8>, Vec<Option<usize>>) {
        let mut info = Info { valid_hooks: self.info.valid_hooks, ..Info::default() };
        let mut starts = HashMap::new();
        let mut offset = 0;
        for chain in &self.chains {
            match &chain.beginning {
                Beginning::Name(name, head) => {
                    offset += head.octets.len();
                    starts.insert(name.as_slice(), offset);
                }
                Beginning::Hook(hook) => set(&mut info.hook_entry, *hook, offset),
            }
            offset += chain.rules.iter().map(|rule| rule.octets.len()).sum::<usize>();
            if let Beginning::Hook(hook) = chain.beginning {
                set(&mut info.underflow, hook, offset);
            }
            offset += chain.end.octets.len();
        }
        let mut octets = Vec::with_capacity(offset + self.tail.octets.len());
        let mut was = Vec::new();
        for entry in self.entries() {
            let begin = octets.len();
            octets.extend_from_slice(&entry.octets);
            let place = match &entry.jump {
                Jump::None => None,
                Jump::Next => Some(octets.len()),
                // A chain goes only together with the jumps to it.
                Jump::Chain(name) => starts.get(name.as_slice()).copied(),
            };
            if let (Some(place), Some(entry)) = (place, octets.get_mut(begin..)) {
                write_verdict(entry, self.family, i32::try_from(place).unwrap_or(i32::MAX));
            }
            was.push(entry.was);
        }
        info.entries = u32::try_from(was.len()).unwrap_or(u32::MAX);
        info.size = u32::try_from(octets.len()).unwrap_or(u32::MAX);
        (info, octets, was)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let chains = self.chains.iter().flat_map(|chain| {
            let head = match &chain.beginning {
                Beginning::Name(_, head) => Some(head),
                Beginning::Hook(_) => None,
            };
            head.into_iter().chain(&chain.rules).chain([&chain.end])
        });
        chains.chain([&self.tail])
    }

    /// Makes these the rules of the chain, which is made if there is none, in the order of names that iptables keeps.
    pub(super) fn fill(&mut self, name: &str, rules: Vec<Entry>) {
        let name = name.as_bytes();
        if let Some(chain) = self.chains.iter_mut().find(|chain| chain.name() == Some(name)) {
            chain.rules = rules;
            return;
        }
        let place = self.chains.iter().position(|chain| chain.name().is_some_and(|other| other > name));
        let head = Entry::new(entry(self.family, |_| {}, &[], &error(name)), Jump::None);
        let end = Entry::new(entry(self.family, |_| {}, &[], &standard(RETURN)), Jump::None);
        let chain = Chain { beginning: Beginning::Name(name.to_vec(), head), rules, end };
        self.chains.insert(place.unwrap_or(self.chains.len()), chain);
    }

    /// Lets all that comes to the hook jump to the chain: once, last unless it does so already.
    pub(super) fn jump(&mut self, hook: usize, name: &str) {
        let jump = Entry::new(entry(self.family, |_| {}, &[], &standard(0)), Jump::Chain(name.as_bytes().to_vec()));
        for chain in self.chains.iter_mut().filter(|chain| chain.beginning == Beginning::Hook(hook)) {
            let mut found = false;
            chain.rules.retain(|rule| {
                let ours = rule.does_as(&jump);
                let keep = rule.jump != jump.jump || (ours && !found);
                found |= ours;
                keep
            });
            if !found {
                chain.rules.push(jump.clone());
            }
        }
    }

    /// Removes the chain, and every rule that jumps to it.
    pub(super) fn remove(&mut self, name: &str) {
        let to = Jump::Chain(name.as_bytes().to_vec());
        self.chains.retain(|chain| chain.name() != Some(name.as_bytes()));
        for chain in &mut self.chains {
            chain.rules.retain(|rule| rule.jump != to);
        }
    }
}

/// What the entries of a new table are to begin with.
pub(super) fn counters(was: &[Option<usize>], old: &[Counters]) -> Vec<Counters> {
    was.iter().map(|was| was.and_then(|number| old.get(number)).copied().unwrap_or_default()).collect()
}

/// Entries with their places. They are whole, and their targets are.
fn split(family: Family, octets: &[u8]) -> Result<Vec<(usize, Entry)>, Unreadable> {
    let header = header(family);
    let mut out = Vec::new();
    let mut offset = 0;
    while offset < octets.len() {
        let rest = octets.get(offset..).unwrap_or_default();
        let (target, length) = (usize::from(read16(rest, header.target)), usize::from(read16(rest, header.target + 2)));
        let whole = target >= header.length && target + EXTENSION <= length && length.is_multiple_of(ALIGN);
        let entry = rest.get(..length).filter(|_| whole).ok_or(Unreadable("an entry is cut off"))?;
        let mut entry = Entry { octets: entry.to_vec(), jump: Jump::None, was: Some(out.len()) };
        // The kernel's notes of where packets come from, and what has been counted, are no part of what a rule does.
        write(&mut entry.octets, header.target + 4, &[0; 4]);
        write(&mut entry.octets, header.counters, &[0; 16]);
        out.push((offset, entry));
        offset += length;
    }
    Ok(out)
}

/// An entry: its header, as `fill` makes it, its matches and its target.
pub(super) fn entry(family: Family, fill: impl FnOnce(&mut [u8]), matches: &[Vec<u8>], target: &[u8]) -> Vec<u8> {
    let header = header(family);
    let mut octets = vec![0; header.length];
    fill(&mut octets);
    octets.extend(matches.concat());
    let at = octets.len();
    octets.extend(target);
    for (place, number) in [(header.target, at), (header.target + 2, octets.len())] {
        // Ours have a few hundred octets.
        write(&mut octets, place, &u16::try_from(number).unwrap_or(u16::MAX).to_ne_bytes());
    }
    octets
}

/// A match or a target: `struct xt_entry_match`, `struct xt_entry_target`.
pub(super) fn extension(name: &str, revision: u8, data: &[u8]) -> Vec<u8> {
    let length = (EXTENSION + data.len()).next_multiple_of(ALIGN);
    let mut octets = vec![0; length];
    write(&mut octets, 0, &u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    write(&mut octets, 2, name.as_bytes());
    write(&mut octets, EXTENSION - 1, &[revision]);
    write(&mut octets, EXTENSION, data);
    octets
}

/// `struct xt_standard_target`, which has no name.
pub(super) fn standard(verdict: i32) -> Vec<u8> {
    extension("", 0, &verdict.to_ne_bytes())
}

/// `struct xt_error_target`.
fn error(name: &[u8]) -> Vec<u8> {
    let mut data = [0; CHAIN_NAME];
    write(&mut data, 0, name);
    extension("ERROR", 0, &data)
}

/// The target of an entry: its name, and what it holds.
pub(super) fn target(family: Family, octets: &[u8]) -> (&[u8], &[u8]) {
    let at = usize::from(read16(octets, header(family).target));
    let target = octets.get(at..).unwrap_or_default();
    (text(target.get(2..EXTENSION - 1).unwrap_or_default()), target.get(EXTENSION..).unwrap_or_default())
}

/// Of a standard target.
fn verdict(family: Family, octets: &[u8]) -> Option<i32> {
    match target(family, octets) {
        ([], data) => data.first_chunk().map(|verdict| i32::from_ne_bytes(*verdict)),
        _ => None,
    }
}

fn write_verdict(octets: &mut [u8], family: Family, verdict: i32) {
    let at = usize::from(read16(octets, header(family).target)) + EXTENSION;
    write(octets, at, &verdict.to_ne_bytes());
}

/// The name that an `ERROR` holds.
fn name_of(family: Family, octets: &[u8]) -> Option<Vec<u8>> {
    let (name, data) = target(family, octets);
    (name == ERROR).then(|| text(data).to_vec())
}

/// What is in front of the first 0.
pub(super) fn text(octets: &[u8]) -> &[u8] {
    octets.split(|octet| *octet == 0).next().unwrap_or_default()
}

fn read16(octets: &[u8], at: usize) -> u16 {
    octets.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |number| u16::from_ne_bytes(*number))
}

fn set(places: &mut [u32; HOOKS], hook: usize, offset: usize) {
    if let Some(place) = places.get_mut(hook) {
        *place = u32::try_from(offset).unwrap_or(u32::MAX);
    }
}

/// Writes octets over others; what does not fit is left out.
pub(super) fn write(octets: &mut [u8], at: usize, new: &[u8]) {
    octets.iter_mut().skip(at).zip(new).for_each(|(slot, octet)| *slot = *octet);
}

#[cfg(test)]
mod tests;
