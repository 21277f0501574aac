//! Limits of memory and CPU, by control groups of either version. A file in the run directory says where the groups of the
//! cluster are, so that also what a crashed cluster left is found.

use crate::rundir::RunDir;
use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// Microseconds over which a share of CPU is measured.
const PERIOD: u64 = 100_000;

/// What a container may use at most.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Limits {
    /// Octets of memory, files that it writes outside of volumes included.
    pub(crate) memory: Option<u64>,
    /// Processors; 0.5 is half of one.
    pub(crate) cpu: Option<f64>,
}

/// The groups of a cluster.
pub(crate) struct Groups {
    run: RunDir,
    /// Directories that could not be removed yet, because what was in them was just ending.
    left: RefCell<Vec<PathBuf>>,
    complained: Cell<bool>,
}

/// The group of a container, which is in both directories where controllers are mounted one by one.
pub(crate) struct Group {
    memory: Option<PathBuf>,
    dirs: Vec<PathBuf>,
    /// How often the kernel has ended something in it for want of memory.
    ended_before: u64,
}

fn group_name(run: &Path) -> String {
    format!("weft-{:016x}", crate::node::fnv(run.as_os_str().as_encoded_bytes()))
}

/// Directories that a cluster's group may be in: of the one hierarchy of version 2, or of each controller of version 1.
fn parents() -> Vec<PathBuf> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return vec![mount.to_owned()];
    }
    // Below our own, so that what limits us limits the cluster.
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    ["memory", "cpu"]
        .into_iter()
        .filter_map(|controller| {
            let line = own.lines().find(|line| {
                line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == controller))
            });
            let path = line.and_then(|line| line.split(':').nth(2)).unwrap_or_default().trim_start_matches('/');
            let top = mount.join(controller);
            [top.join(path), top].into_iter().find(|dir| dir.is_dir())
        })
        .collect()
}

impl Groups {
    /// Of the cluster of a run directory.
    pub(crate) fn new(run: &RunDir) -> Self {
        Self { run: run.clone(), left: RefCell::default(), complained: Cell::new(false) }
    }

    /// A group for a container. `None`, said once, where the machine does not allow it.
    pub(crate) fn make(&self, name: &str, limits: Limits) -> Option<Group> {
        self.left.borrow_mut().retain(|dir| fs::remove_dir(dir).is_err_and(|e| e.kind() != io::ErrorKind::NotFound));
        match self.try_make(name, limits) {
            Ok(group) => Some(group),
            Err(error) => {
                if !self.complained.replace(true) {
                    tracing::warn!(error, "limits of memory and CPU are not enforced");
                }
                None
            }
        }
    }

    fn try_make(&self, name: &str, limits: Limits) -> Result<Group, String> {
        let mut group = Group { memory: None, dirs: Vec::new(), ended_before: 0 };
        let quota = limits.cpu.map(|cpu| ((cpu * PERIOD as f64) as u64).max(1000));
        let parents = parents();
        if parents.is_empty() {
            return Err(format!("no control groups at {MOUNT}"));
        }
        for parent in parents {
            let top = parent.join(group_name(self.run.path()));
            if !top.is_dir() {
                self.note(&top)?;
                make_dir(&top)?;
            }
            if parent.join("cgroup.controllers").exists() {
                delegate(&parent)?;
                delegate(&top)?;
            }
            let dir = top.join(name);
            make_dir(&dir)?;
            group.dirs.push(dir.clone());
            if dir.join("memory.max").exists() {
                if let Some(memory) = limits.memory {
                    write(&dir.join("memory.max"), &memory.to_string())?;
                    // Where there is no swap, there is nothing to limit.
                    let _ = fs::write(dir.join("memory.swap.max"), "0");
                    let _ = fs::write(dir.join("memory.oom.group"), "1");
                }
                if let Some(quota) = quota {
                    write(&dir.join("cpu.max"), &format!("{quota} {PERIOD}"))?;
                }
                group.memory = Some(dir);
            } else if dir.join("memory.limit_in_bytes").exists() {
                if let Some(memory) = limits.memory {
                    write(&dir.join("memory.limit_in_bytes"), &memory.to_string())?;
                    let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), memory.to_string());
                }
                group.memory = Some(dir);
            } else if let (Some(quota), true) = (quota, dir.join("cpu.cfs_quota_us").exists()) {
                write(&dir.join("cpu.cfs_period_us"), &PERIOD.to_string())?;
                write(&dir.join("cpu.cfs_quota_us"), &quota.to_string())?;
            }
        }
        Ok(group)
    }

    /// Writes down that there is a group, before it is made.
    fn note(&self, top: &Path) -> Result<(), String> {
        let file = self.run.control_groups();
        let mut noted = fs::read_to_string(&file).unwrap_or_default();
        noted.push_str(&format!("{}\n", top.display()));
        write(&file, &noted)
    }

    /// Removes a group whose processes have ended, or are about to.
    pub(crate) fn remove(&self, group: Group) {
        let kept = group.dirs.into_iter().filter(|dir| fs::remove_dir(dir).is_err());
        self.left.borrow_mut().extend(kept);
    }
}

impl Group {
    /// Files to write `0` into for a process to join.
    pub(crate) fn doors(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Whether the kernel has ended something for want of memory since this was last asked.
    pub(crate) fn ran_out_of_memory(&mut self) -> bool {
        let Some(dir) = &self.memory else { return false };
        let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
        let text = read("memory.events").or_else(|| read("memory.oom_control")).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|n| n.parse().ok());
        let count: u64 = count.unwrap_or(0);
        let more = count > self.ended_before;
        self.ended_before = count;
        more
    }
}

/// Removes all groups of a run directory's cluster. Answers whether none is left.
pub(crate) fn remove_all(run: &RunDir) -> bool {
    let noted = fs::read_to_string(run.control_groups()).unwrap_or_default();
    let tops = noted.lines().map(PathBuf::from).filter(|top| top.starts_with(MOUNT) && top.is_dir());
    tops.fold(true, |all, top| {
        for entry in fs::read_dir(&top).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                // One that cannot be removed keeps the outer one, which is what is told.
                let _ = fs::remove_dir(entry.path());
            }
        }
        fs::remove_dir(&top).is_ok() && all
    })
}

fn make_dir(dir: &Path) -> Result<(), String> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(format!("cannot make {}: {e}", dir.display())),
        _ => Ok(()),
    }
}

/// Lets the groups in a group have limits of memory and CPU.
fn delegate(group: &Path) -> Result<(), String> {
    let file = group.join("cgroup.subtree_control");
    let there = fs::read_to_string(&file).unwrap_or_default();
    if ["memory", "cpu"].iter().all(|wanted| there.split_whitespace().any(|name| name == *wanted)) {
        return Ok(());
    }
    write(&file, "+memory +cpu")
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|e| format!("cannot write {text:?} to {}: {e}", file.display()))
}
