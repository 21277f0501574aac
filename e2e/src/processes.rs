//! Processes as the machine sees them, read from /proc.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number in the machine's own PID namespace.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Memory that is in use, in KiB.
    pub resident: u64,
    /// What of it belongs to no file, in KiB.
    pub anonymous: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Process {
    /// Every process that one can see.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::read(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    fn read(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = command.split(|octet| *octet == 0).filter(|word| !word.is_empty());
        Some(Self { pid, parent, command: command.map(|word| String::from_utf8_lossy(word).into_owned()).collect() })
    }

    /// The processes of the cluster with this run directory: those that were started with it in their environment, and
    /// all that descend from them.
    pub fn of_cluster(run_dir: &Path) -> Vec<Self> {
        let all = Self::all();
        let mut setting = OsString::from("WEFT_RUN_DIR=").into_vec();
        setting.extend(run_dir.as_os_str().as_bytes());
        let mut members: BTreeSet<i32> = all.iter().filter(|process| process.has(&setting)).map(|p| p.pid).collect();
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for process in &all {
            children.entry(process.parent).or_default().push(process.pid);
        }
        let mut unvisited: Vec<i32> = members.iter().copied().collect();
        while let Some(parent) = unvisited.pop() {
            for &child in children.get(&parent).into_iter().flatten() {
                if members.insert(child) {
                    unvisited.push(child);
                }
            }
        }
        members.remove(&i32::try_from(std::process::id()).unwrap_or_default());
        all.into_iter().filter(|process| members.contains(&process.pid)).collect()
    }

    fn has(&self, setting: &[u8]) -> bool {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        environment.split(|octet| *octet == 0).any(|entry| entry == setting)
    }

    /// The name of the program, without its directory.
    pub fn program(&self) -> &str {
        let path = self.command.first().map(String::as_str).unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is this program with these first arguments.
    pub fn is(&self, program: &str, arguments: &[&str]) -> bool {
        self.program() == program && self.command.iter().skip(1).take(arguments.len()).eq(arguments.iter())
    }

    /// The network namespace it is in, as the kernel names it.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn network(&self) -> anyhow::Result<String> {
        let link = fs::read_link(format!("/proc/{}/ns/net", self.pid));
        Ok(link.with_context(|| format!("{} is gone", self.program()))?.display().to_string())
    }

    /// Its control groups, as the kernel writes them.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn control_groups(&self) -> anyhow::Result<String> {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", self.pid));
        groups.with_context(|| format!("{} is gone", self.program()))
    }

    /// What it uses now.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let number = |name: &str| -> anyhow::Result<u64> {
            let value =
                status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(value.trim().trim_end_matches(" kB").parse()?)
        };
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid))?.count() as u64;
        Ok(Usage {
            resident: number("VmRSS:")?,
            anonymous: number("RssAnon:")?,
            descriptors,
            threads: number("Threads:")?,
        })
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn kill(&self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).with_context(|| format!("cannot kill {:?}", self.command))
    }
}
