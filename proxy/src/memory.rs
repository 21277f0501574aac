//! How near this process is to the limit of its memory.
//!
//! An allocation that fails ends the process, and so does the kernel when a container has used up its memory. So nothing new
//! is begun from four fifths of the limit on; the rest is for what has been begun.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

/// How old an answer may be. Asking the system costs microseconds.
const FRESH: Duration = Duration::from_millis(50);

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The limits of this process, octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    /// Of the address space.
    space: Option<u64>,
    /// Of memory in use.
    resident: Option<u64>,
}

/// Watches the memory of the process, for one thread.
pub struct Memory {
    limits: Limits,
    page: u64,
    asked: Cell<Option<Instant>>,
    tight: Cell<bool>,
}

impl Memory {
    /// Looks for limits.
    pub fn new() -> Self {
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(4096);
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limits = Limits { space: None, resident: group_limit(&groups, Path::new(CGROUPS)) };
        Self { limits, page, asked: Cell::new(None), tight: Cell::new(false) }
    }

    /// True when nothing new should be begun.
    pub fn is_tight(&self) -> bool {
        let now = Instant::now();
        if self.asked.get().is_some_and(|at| now.saturating_duration_since(at) < FRESH) {
            return self.tight.get();
        }
        self.asked.set(Some(now));
        // It may be changed from outside while the process runs.
        let space = getrlimit(Resource::RLIMIT_AS).ok().map(|(soft, _)| soft).filter(|n| is_limit(*n));
        let limits = Limits { space, ..self.limits };
        let tight = if limits == (Limits { space: None, resident: None }) {
            false
        } else {
            // Without an answer nothing is refused.
            fs::read_to_string("/proc/self/statm").is_ok_and(|statm| is_tight(limits, &statm, self.page))
        };
        self.tight.set(tight);
        tight
    }
}

/// Huge numbers mean that there is no limit.
fn is_limit(n: u64) -> bool {
    n < 1 << 60
}

fn is_tight(limits: Limits, statm: &str, page: u64) -> bool {
    let mut pages = statm.split_whitespace().map_while(|n| n.parse::<u64>().ok());
    let mut near = |limit: Option<u64>| {
        let used = pages.next().unwrap_or_default().saturating_mul(page);
        limit.is_some_and(|limit| used > limit / 5 * 4)
    };
    let (space, resident) = (near(limits.space), near(limits.resident));
    space || resident
}

/// The smallest limit of the control groups that this process is in, as `/proc/self/cgroup` names them.
fn group_limit(groups: &str, mounted: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        if number == "0" && controllers.is_empty() {
            least(mounted, path, "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            least(&mounted.join("memory"), path, "memory.limit_in_bytes")
        } else {
            None
        }
    });
    limits.min()
}

/// The smallest number in files of that name, from a directory up to the root.
fn least(root: &Path, path: &str, file: &str) -> Option<u64> {
    let mut dir: PathBuf = root.join(path);
    let mut least: Option<u64> = None;
    while dir.starts_with(root) {
        let limit = fs::read_to_string(dir.join(file)).ok().and_then(|text| text.trim().parse().ok());
        least = least.into_iter().chain(limit.filter(|n| is_limit(*n))).min();
        if !dir.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_fifths_of_any_limit_are_tight() {
        let statm = |space: u64, resident: u64| format!("{space} {resident} 30 4 0 5 0\n");
        let limits = Limits { space: Some(1000 * 4096), resident: Some(100 * 4096) };
        assert!(!is_tight(limits, &statm(800, 80), 4096));
        assert!(is_tight(limits, &statm(801, 10), 4096));
        assert!(is_tight(limits, &statm(10, 81), 4096));
        let none = Limits { space: None, resident: None };
        assert!(!is_tight(none, &statm(u64::MAX, u64::MAX), 4096));
        assert!(!is_tight(limits, "nonsense", 4096));
    }

    #[test]
    fn the_smallest_limit_of_all_groups_holds() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("pods/one/memory.max", "max\n");
        write("pods/memory.max", "500\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/box/memory.limit_in_bytes", "300\n");
        let limit = |groups: &str| group_limit(groups, dir.path());
        assert_eq!(limit("0::/pods/one\n"), Some(500), "of the group around it");
        assert_eq!(limit("0::/\n"), None);
        assert_eq!(limit("4:memory:/box/gone\n0::/pods/one\n1:cpu:/\n"), Some(300));
        assert_eq!(limit("4:memory:/\n"), None);
        assert_eq!(limit(""), None);
    }
}
