//! Users and groups of a cluster that an ordinary user starts.
//!
//! Its user namespace has the user as root, and after that as many other users and groups as `/etc/subuid` and
//! `/etc/subgid` give: then pods have users of their own, as with root. `newuidmap` and `newgidmap` write them down; a user
//! without them, or without such a range, has one ID only, and everything runs as that.

use crate::Error;
use crate::error::Context;
use crate::system;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the kernel shows for an ID that a user namespace does not have, and runs `nobody` under elsewhere.
pub(crate) const OVERFLOW: u32 = 65_534;

/// How many users and groups there are in a user namespace, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    /// Users.
    pub(crate) users: u32,
    /// Groups.
    pub(crate) groups: u32,
}

impl Ids {
    /// Those of the calling process.
    pub(crate) fn here() -> Ids {
        let count = |file: &str| fs::read_to_string(file).map_or(u32::MAX, |map| count(&map));
        Ids { users: count("/proc/self/uid_map"), groups: count("/proc/self/gid_map") }
    }

    /// Whether there is root and nobody else.
    pub(crate) fn single(self) -> bool {
        self.users < 2 || self.groups < 2
    }

    /// Whether this is the machine itself, and not a user namespace.
    pub(crate) fn all(self) -> bool {
        self.users == u32::MAX && self.groups == u32::MAX
    }
}

/// How many IDs from 0 on a map of the kernel (`inside outside count` a line) has without a gap.
fn count(map: &str) -> u32 {
    let mut ranges: Vec<(u32, u32)> = map
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::parse);
            let (inside, _, count) = (words.next()?.ok()?, words.next()?, words.next()?.ok()?);
            Some((inside, count))
        })
        .collect();
    ranges.sort_unstable();
    ranges.into_iter().fold(0, |next, (first, count)| if first == next { next.saturating_add(count) } else { next })
}

/// Gives a process that has made a user namespace its users and groups. Called from outside of it, by who owns it.
///
/// # Errors
/// What `newuidmap`, `newgidmap` or the kernel said.
pub(crate) fn give(pid: u32) -> Result<(), Error> {
    let (user, group) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let names = names(user, &fs::read_to_string("/etc/passwd").unwrap_or_default());
    let users = ranges(&fs::read_to_string("/etc/subuid").unwrap_or_default(), &names);
    let groups = ranges(&fs::read_to_string("/etc/subgid").unwrap_or_default(), &names);
    if let (Some(newuidmap), Some(newgidmap), false, false) =
        (system::find_program("newuidmap"), system::find_program("newgidmap"), users.is_empty(), groups.is_empty())
    {
        run(&newuidmap, pid, &map(user, &users), "/etc/subuid")?;
        return run(&newgidmap, pid, &map(group, &groups), "/etc/subgid");
    }
    let proc = PathBuf::from(format!("/proc/{pid}"));
    // The kernel demands it of those who have no right to give groups up.
    for (file, content) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {user} 1\n")), ("gid_map", format!("0 {group} 1\n"))]
    {
        fs::write(proc.join(file), content).context(format!("cannot set {file} of the user namespace"))?;
    }
    Ok(())
}

/// The user's ID as 0, and what it was given after that.
fn map(own: u32, given: &[(u32, u32)]) -> Vec<String> {
    let mut words = vec![0, own, 1];
    let mut next = 1;
    for (first, count) in given {
        words.extend([next, *first, *count]);
        next += count;
    }
    words.into_iter().map(|word: u32| word.to_string()).collect()
}

fn run(program: &Path, pid: u32, map: &[String], file: &str) -> Result<(), Error> {
    let shown = program.display();
    let ran = Command::new(program).arg(pid.to_string()).args(map).output().context(format!("cannot run {shown}"))?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr).trim().replace('\n', "; ");
    Err(Error::new(format!("{shown} refuses what {file} gives this user: {said}")))
}

/// What a user may be called in `/etc/subuid`: by name or by number.
fn names(user: u32, passwd: &str) -> Vec<String> {
    let number = user.to_string();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    });
    name.into_iter().chain([number]).collect()
}

/// Ranges of `/etc/subuid` or `/etc/subgid` (`name:first:count`) that a user has, as first and count.
fn ranges(file: &str, names: &[String]) -> Vec<(u32, u32)> {
    let mut total = 1u32;
    file.lines()
        .filter_map(|line| {
            let (name, range) = line.trim().split_once(':')?;
            let (first, count) = range.split_once(':')?;
            let (first, count): (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
            let fits = count > 0 && first.checked_add(count).is_some();
            (names.iter().any(|n| n == name) && fits).then_some((first, count))
        })
        .take_while(|(_, count)| {
            // More than there are numbers cannot be given.
            total.checked_add(*count).inspect(|sum| total = *sum).is_some()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_the_kernel_are_counted() {
        assert_eq!(count("         0          0 4294967295\n"), u32::MAX);
        assert_eq!(count("0 1000 1\n"), 1);
        assert_eq!(count("1 100000 65536\n0 1000 1\n"), 65_537);
        assert_eq!(count("0 1000 1\n5 100000 10\n"), 1, "there is a gap");
        assert_eq!(count(""), 0);
    }

    #[test]
    fn ranges_are_those_of_the_user_by_name_or_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        let names = names(1000, passwd);
        assert_eq!(names, ["ann", "1000"]);
        let file = "bob:100000:65536\nann:165536:65536\n1000:300000:10\nanna:1:1\nann:x:1\nann:5:0\nann:4294967295:9\n";
        assert_eq!(ranges(file, &names), [(165_536, 65_536), (300_000, 10)]);
        assert_eq!(
            map(1000, &ranges(file, &names)).join(" "),
            "0 1000 1 1 165536 65536 65537 300000 10",
            "one after the other"
        );
        assert_eq!(ranges("ann:1:4294967290\nann:2:4294967290\n", &names).len(), 1);
        assert_eq!(self::names(7, passwd), ["7"]);
    }
}
