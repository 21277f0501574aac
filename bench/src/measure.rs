//! What the kernel knows about a process: CPU time, memory, system calls, instructions.

use std::{fs, process::Stdio, time::Duration};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

/// CPU time that every thread of a process has used, from the scheduler's own clock.
///
/// # Errors
///
/// When the process is gone.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")?;
    let mut nanoseconds = 0;
    for task in tasks {
        // A thread that ended between the two calls is not worth a failure.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Memory of a process, in octets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is resident.
    pub resident: u64,
    /// The part that the process allocated, and that no file backs.
    pub anonymous: u64,
}

impl Memory {
    /// Now.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
        Ok(Self::parse(&status))
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
            kilobytes.unwrap_or(0) * 1024
        };
        Self { resident: field("VmRSS"), anonymous: field("RssAnon") }
    }

    /// The larger of both, each figure by itself.
    pub fn max(self, other: Self) -> Self {
        Self { resident: self.resident.max(other.resident), anonymous: self.anonymous.max(other.anonymous) }
    }
}

/// A counter attached to a running process.
#[derive(Debug)]
pub struct Counter {
    child: Child,
    parse: fn(&str) -> Option<u64>,
}

impl Counter {
    /// Counts system calls with strace, which slows the process several times.
    ///
    /// # Errors
    ///
    /// When strace cannot be started.
    pub fn syscalls(pid: u32) -> anyhow::Result<Self> {
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-q", "-p", &pid.to_string()]);
        Self::start(command, strace_total)
    }

    /// Counts instructions, the kernel's included, with perf.
    ///
    /// # Errors
    ///
    /// When perf cannot be started.
    pub fn instructions(pid: u32) -> anyhow::Result<Self> {
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ",", "-e", "instructions", "-p", &pid.to_string()]);
        Self::start(command, perf_instructions)
    }

    fn start(mut command: Command, parse: fn(&str) -> Option<u64>) -> anyhow::Result<Self> {
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(Self { child: command.spawn()?, parse })
    }

    /// Stops counting. `None` when the machine cannot count that.
    ///
    /// # Errors
    ///
    /// When the counter cannot be stopped.
    pub async fn stop(self) -> anyhow::Result<Option<u64>> {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT)?;
        }
        let output = self.child.wait_with_output().await?;
        Ok((self.parse)(&String::from_utf8_lossy(&output.stderr)))
    }
}

/// The calls in the last line of strace's table: `100.00 0.123456 3 41152 120 total`, with or without the errors.
fn strace_total(text: &str) -> Option<u64> {
    let line = text.lines().rev().find(|line| line.trim_end().ends_with("total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// The first field of perf's line, which is `<not supported>` on many virtual machines.
fn perf_instructions(text: &str) -> Option<u64> {
    text.lines().find(|line| line.contains(",instructions"))?.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_status() {
        let status = "Name:\tx\nVmRSS:\t    5312 kB\nRssAnon:\t     528 kB\nRssFile:\t 4784 kB\n";
        assert_eq!(Memory::parse(status), Memory { resident: 5312 * 1024, anonymous: 528 * 1024 });
        assert_eq!(Memory::parse("no such lines"), Memory::default());
    }

    #[test]
    fn own_cpu_time_and_memory_are_known() {
        let pid = std::process::id();
        assert!(cpu(pid).unwrap() > Duration::ZERO);
        assert!(Memory::of(pid).unwrap().resident > 0);
    }

    #[test]
    fn totals_of_strace_and_perf_are_found() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n------ --- ---\n 60.00    0.1           1       500           read\n------ --- ---\n100.00    0.269010           2     41152       120 total\n";
        assert_eq!(strace_total(table), Some(41152));
        assert_eq!(strace_total("strace: attach: no"), None);
        assert_eq!(perf_instructions("123456,,instructions,1000,100.00,,\n"), Some(123_456));
        assert_eq!(perf_instructions("<not supported>,,instructions,0,100.00,,\n"), None);
    }
}
