//! The rules as tables of the kernel's ip_tables and ip6_tables, for kernels without nf_tables. The chains are those of
//! Linkerd's init container. A table is read, changed and replaced as a whole; what others have in it stays.

mod rule;
mod table;

use std::{
    fmt::Write as _,
    fs::{File, read_to_string},
    io,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use weft_sys::{Family, Tables};

use super::{Redirect, Rule};
use table::Table;

const TABLE: &str = "nat";
/// Numbers and names of the hooks (`NF_INET_…`) that jump to our chains, with these.
const CHAINS: [(usize, &str, &str); 2] = [(0, "PREROUTING", "PROXY_INIT_REDIRECT"), (3, "OUTPUT", "PROXY_INIT_OUTPUT")];
/// What iptables holds while it changes a table. Where the file is not, nobody else does.
const LOCK: &str = "/run/xtables.lock";
/// How long another's lock, and a table that others keep changing, are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The chains of one version of IP, in the order of [`CHAINS`].
fn rules(redirect: &Redirect, family: Family) -> Vec<Vec<Rule>> {
    let chains = redirect.chains();
    chains.iter().map(|(_, rules)| rules.iter().flat_map(|rule| rule::split(rule, family)).collect()).collect()
}

/// As `iptables-restore --noflush` and `ip6tables-restore --noflush` take it.
pub(super) fn ruleset(redirect: &Redirect) -> String {
    let mut out = String::new();
    for (family, program) in [(Family::Ipv4, "iptables"), (Family::Ipv6, "ip6tables")] {
        if family == Family::Ipv6 && !redirect.ipv6 {
            continue;
        }
        let _ = writeln!(out, "# {program}\n*{TABLE}");
        for (_, _, chain) in CHAINS {
            let _ = writeln!(out, ":{chain} - [0:0]");
        }
        for (_, hook, chain) in CHAINS {
            let _ = writeln!(out, "-A {hook} -j {chain}");
        }
        for ((_, _, chain), rules) in CHAINS.iter().zip(rules(redirect, family)) {
            rules.iter().for_each(|rule| {
                let _ = writeln!(out, "{}", rule::text(rule, chain));
            });
        }
        out.push_str("COMMIT\n");
    }
    out
}

/// Puts the rules into force in place of those of an earlier run.
pub(super) fn replace(redirect: &Redirect) -> io::Result<()> {
    let _lock = lock()?;
    edit(Family::Ipv4, |table| fill(table, redirect, Family::Ipv4)).map_err(|error| explained(Family::Ipv4, error))?;
    if !redirect.ipv6 {
        return clear(Family::Ipv6);
    }
    match edit(Family::Ipv6, |table| fill(table, redirect, Family::Ipv6)) {
        // A kernel without IPv6 has nothing to redirect.
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => Ok(()),
        done => done.map_err(|error| explained(Family::Ipv6, error)),
    }
}

fn fill(table: &mut Table, redirect: &Redirect, family: Family) {
    for ((hook, _, chain), rules) in CHAINS.iter().zip(rules(redirect, family)) {
        table.fill(chain, rules.iter().map(|rule| rule::encode(rule, family)).collect());
        table.jump(*hook, chain);
    }
}

/// Removes the rules of an earlier run.
pub(super) fn remove() -> io::Result<()> {
    let _lock = lock()?;
    clear(Family::Ipv4)?;
    clear(Family::Ipv6)
}

/// Removes the rules of an earlier run from one table, unless this network namespace does not have it: asking the kernel
/// for a table makes it.
fn clear(family: Family) -> io::Result<()> {
    let list = match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    // Without the file the kernel has no such tables. Whoever may not read it is not root, as which injection runs this.
    if !read_to_string(list).is_ok_and(|names| names.lines().any(|name| name == TABLE)) {
        return Ok(());
    }
    let clear = |table: &mut Table| CHAINS.iter().for_each(|(_, _, chain)| table.remove(chain));
    edit(family, clear).map_err(|error| explained(family, error))
}

/// Reads the table, changes it and puts it back, once more when somebody else has changed it meanwhile.
fn edit(family: Family, change: impl Fn(&mut Table)) -> io::Result<()> {
    let tables = Tables::open(family)?;
    let begun = Instant::now();
    loop {
        match edit_once(&tables, family, &change) {
            Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) && begun.elapsed() < PATIENCE => {}
            done => return done,
        }
    }
}

fn edit_once(tables: &Tables, family: Family, change: impl Fn(&mut Table)) -> io::Result<()> {
    let old = tables.info(TABLE)?;
    let before = Table::read(family, &old, &tables.entries(TABLE, old.size)?).map_err(io::Error::other)?;
    let mut after = before.clone();
    change(&mut after);
    if after == before {
        return Ok(());
    }
    let (info, octets, was) = after.write();
    let counted = table::counters(&was, &tables.replace(TABLE, &info, &octets, old.entries)?);
    // The rules are in force. That the kernel counts from 0 when somebody changes the table right now is no reason to fail.
    let _ = tables.add_counters(TABLE, &counted);
    Ok(())
}

/// Waits until nobody else changes tables.
#[allow(clippy::disallowed_methods, reason = "a program that does nothing else, or a thread that may wait")]
fn lock() -> io::Result<Option<Flock<File>>> {
    let Ok(mut file) = File::open(LOCK) else { return Ok(None) };
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((back, Errno::EAGAIN)) if begun.elapsed() < PATIENCE => file = back,
            Err((_, errno)) => return Err(named(&format!("another program holds {LOCK}"), errno.into())),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the kernel means by an error.
fn explained(family: Family, error: io::Error) -> io::Error {
    let (module, version) = match family {
        Family::Ipv4 => ("ip_tables", "IPv4"),
        Family::Ipv6 => ("ip6_tables", "IPv6"),
    };
    let what = match error.raw_os_error().map(Errno::from_raw) {
        // The kernel loads tables, matches and targets when they are asked for, but not this.
        Some(Errno::ENOPROTOOPT) => format!("the kernel has no {module}, or has not loaded them"),
        Some(Errno::ENOENT) => {
            format!("{module} has no table {TABLE}, or no match multiport or owner, or no target REDIRECT")
        }
        _ => format!("table {TABLE} of {version}"),
    };
    named(&what, error)
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
