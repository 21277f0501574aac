//! The pod role: a small process that is the first of its pod's namespaces and holds them.
//!
//! It starts what the node orders on standard input (containers, commands in a container, programs such as `nft` in the
//! pod's network), reaps everything that ends in the pod, and reports on standard output, one JSON object a line. It
//! decides nothing. When the node goes, its standard input ends and so does it; the kernel then ends the whole pod.

use crate::ids::Ids;
use crate::system::{self, SELF, role};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The last group that may be allowed to ping.
const LAST_GROUP: u32 = 2_147_483_647;
/// Longest output of a program that is kept, in octets.
const OUTPUT_LIMIT: usize = 64 << 10;

/// What the node orders.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(crate) enum Order {
    /// Run a program in the pod's network with the host's files; answered by [`Event::Done`].
    Program { id: u64, argv: Vec<String>, input: Option<PathBuf> },
    /// Run what a [`crate::container::Spec`] file says; answered by [`Event::Started`] or [`Event::Failed`], and after
    /// the former by [`Event::Exited`].
    Run { id: u64, spec: PathBuf },
    /// Send a signal to what was started under this number.
    Signal { id: u64, signal: i32 },
}

/// What the pod reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A program ended.
    Done { id: u64, code: i32, output: String },
    /// The container's own program runs, under this number in the pod's PID namespace.
    Started { id: u64, pid: i32 },
    /// It could not be started.
    Failed { id: u64, reason: String, message: String },
    /// It ended; a signal counts as 128 + its number.
    Exited { id: u64, code: i32, signal: Option<i32> },
}

impl Event {
    /// The number of the order that it answers.
    pub(crate) fn id(&self) -> u64 {
        match self {
            Event::Done { id, .. }
            | Event::Started { id, .. }
            | Event::Failed { id, .. }
            | Event::Exited { id, .. } => *id,
        }
    }
}

/// How a container role says, before it becomes the container's program, where it lives and why it fails.
pub(crate) mod report {
    /// `namespace <mount namespace>`: everything in that namespace belongs to the container.
    pub const NAMESPACE: &str = "namespace ";
    /// `failed <reason> <message>`.
    pub const FAILED: &str = "failed ";
}

enum Role {
    Program,
    Container { starting: bool, namespace: Option<Namespace> },
}

/// The mount namespace of a container.
struct Namespace {
    /// As the kernel names it. When it is gone, the next one may get this name.
    name: String,
    /// Keeps it from going; `None` when it was gone too soon.
    held: Option<fs::File>,
}

struct Child {
    id: u64,
    role: Role,
    /// Output of a program, report of a container; `None` once it has ended.
    pipe: Option<PipeReader>,
    collected: Vec<u8>,
    exit: Option<(i32, Option<i32>)>,
}

/// Runs the role until the node goes.
pub(crate) fn main(hostname: Option<&OsStr>) -> ExitCode {
    system::set_process_name(c"weft-pod");
    match serve(hostname.unwrap_or_default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weft: pod: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(hostname: &OsStr) -> io::Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    system::make_mounts_private()?;
    system::mount_proc(Path::new("/proc"))?;
    nix::unistd::sethostname(hostname)?;
    // As container runtimes have it: any user may bind any port and ping. IPv6 stays on loopback: the cluster has none.
    system::sysctl("net/ipv4/ip_unprivileged_port_start", "0");
    let last_group = Ids::here().groups.saturating_sub(1).min(LAST_GROUP);
    system::sysctl("net/ipv4/ping_group_range", &format!("0 {last_group}"));
    system::sysctl("net/ipv6/conf/default/disable_ipv6", "1");

    let stdin = io::stdin();
    let mut pod = Pod { children: BTreeMap::new() };
    let mut buffer = Vec::new();
    loop {
        let mut readable = Vec::new();
        {
            let mut fds =
                vec![PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            let piped: Vec<(i32, BorrowedFd<'_>)> =
                pod.children.iter().filter_map(|(pid, c)| Some((*pid, c.pipe.as_ref()?.as_fd()))).collect();
            fds.extend(piped.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
            let from_node = ready.next().unwrap_or(false);
            let signalled = ready.next().unwrap_or(false);
            readable.extend(piped.iter().zip(ready).filter(|(_, ready)| *ready).map(|((pid, _), _)| *pid));
            drop(fds);
            if signalled {
                while let Ok(Some(_)) = signals.read_signal() {}
            }
            if from_node && !read_orders(&mut buffer)? {
                return Ok(());
            }
        }
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(order) => pod.obey(order),
                Err(e) => eprintln!("weft: pod: order not understood: {e}"),
            }
        }
        for pid in readable {
            pod.read_pipe(pid);
        }
        pod.reap();
    }
}

/// Reads what is there; false when the node has gone.
fn read_orders(buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 16 << 10];
    match nix::unistd::read(io::stdin().as_fd(), &mut chunk) {
        Ok(0) => Ok(false),
        Ok(n) => {
            buffer.extend_from_slice(chunk.get(..n).unwrap_or_default());
            Ok(true)
        }
        Err(Errno::EINTR | Errno::EAGAIN) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

fn tell(event: &Event) {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    // A node that does not listen any more has gone; standard input will say so.
    let _ = io::stdout().lock().write_all(&line);
}

struct Pod {
    children: BTreeMap<i32, Child>,
}

impl Pod {
    fn obey(&mut self, order: Order) {
        match order {
            Order::Program { id, argv, input } => {
                if let Err(e) = self.start_program(id, &argv, input.as_deref()) {
                    let name = argv.first().map(String::as_str).unwrap_or_default();
                    tell(&Event::Done { id, code: 127, output: format!("cannot run {name}: {e}") });
                }
            }
            Order::Run { id, spec } => {
                if let Err(e) = self.start_container(id, &spec) {
                    tell(&Event::Failed { id, reason: "CreateContainerError".into(), message: e.to_string() });
                }
            }
            Order::Signal { id, signal } => {
                let found = self.children.iter().find(|(_, c)| c.id == id && c.exit.is_none());
                if let (Some((pid, _)), Ok(signal)) = (found, Signal::try_from(signal)) {
                    // It may have ended this very moment.
                    let _ = kill(Pid::from_raw(*pid), signal);
                }
            }
        }
    }

    fn start_program(&mut self, id: u64, argv: &[String], input: Option<&Path>) -> io::Result<()> {
        let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("no command"))?;
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(program);
        command.args(arguments).stdout(writer.try_clone()?).stderr(writer);
        command.stdin(match input {
            Some(path) => Stdio::from(fs::File::open(path)?),
            None => Stdio::null(),
        });
        let pid = command.spawn()?.id().cast_signed();
        self.children
            .insert(pid, Child { id, role: Role::Program, pipe: Some(reader), collected: Vec::new(), exit: None });
        Ok(())
    }

    fn start_container(&mut self, id: u64, spec: &Path) -> io::Result<()> {
        let (reader, writer) = io::pipe()?;
        // The report travels on what is the child's standard input until it becomes the container's program.
        let mut command = Command::new(SELF);
        command.arg(role::CONTAINER).arg(spec).stdin(writer).stdout(Stdio::null()).stderr(Stdio::null());
        let pid = command.spawn()?.id().cast_signed();
        let role = Role::Container { starting: true, namespace: None };
        self.children.insert(pid, Child { id, role, pipe: Some(reader), collected: Vec::new(), exit: None });
        Ok(())
    }

    fn read_pipe(&mut self, pid: i32) {
        let Some(child) = self.children.get_mut(&pid) else { return };
        let Some(pipe) = child.pipe.as_mut() else { return };
        let mut chunk = [0; 4096];
        match pipe.read(&mut chunk) {
            Ok(0) => child.pipe = None,
            Ok(n) if child.collected.len() < OUTPUT_LIMIT => {
                child.collected.extend_from_slice(chunk.get(..n).unwrap_or_default());
                child.hold_namespace(pid);
                return;
            }
            Ok(_) => return,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return,
            Err(_) => child.pipe = None,
        }
        if let Role::Container { starting, .. } = &mut child.role
            && *starting
        {
            let text = String::from_utf8_lossy(&child.collected).into_owned();
            if !text.lines().any(|l| l.starts_with(report::FAILED)) {
                *starting = false;
                tell(&Event::Started { id: child.id, pid });
            }
        }
        self.finish(pid);
    }

    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid.as_raw(), code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended(pid.as_raw(), 128 + signal as i32, Some(signal as i32));
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn ended(&mut self, pid: i32, code: i32, signal: Option<i32>) {
        // Others are orphans of containers: nobody waits for them but us.
        let Some(child) = self.children.get_mut(&pid) else { return };
        child.exit = Some((code, signal));
        self.finish(pid);
    }

    /// Reports a child that has both ended and closed its pipe.
    fn finish(&mut self, pid: i32) {
        let Some(child) = self.children.get(&pid) else { return };
        let (None, Some((code, signal))) = (&child.pipe, child.exit) else { return };
        let Some(child) = self.children.remove(&pid) else { return };
        let text = String::from_utf8_lossy(&child.collected).into_owned();
        match child.role {
            Role::Program => tell(&Event::Done { id: child.id, code, output: text }),
            Role::Container { starting, namespace } => {
                if let Some(Namespace { name, held }) = namespace {
                    // A name that was not held may be that of another container by now, whose program is a child of ours.
                    let spared: Vec<i32> =
                        if held.is_some() { Vec::new() } else { self.children.keys().copied().collect() };
                    end_namespace(&name, &spared);
                }
                if starting {
                    let failed = text.lines().find_map(|l| l.strip_prefix(report::FAILED));
                    let (reason, message) = failed.and_then(|f| f.split_once(' ')).unwrap_or((
                        "CreateContainerError",
                        "the container's process ended before it became the container's program",
                    ));
                    tell(&Event::Failed { id: child.id, reason: reason.to_owned(), message: message.to_owned() });
                } else {
                    tell(&Event::Exited { id: child.id, code, signal });
                }
            }
        }
    }
}

impl Child {
    /// Takes hold of the container's mount namespace as soon as it has said that it has one.
    fn hold_namespace(&mut self, pid: i32) {
        let Role::Container { starting: true, namespace: namespace @ None } = &mut self.role else { return };
        let text = String::from_utf8_lossy(&self.collected);
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        if let Some(name) = lines.filter_map(|line| line.strip_prefix(report::NAMESPACE)).next() {
            let held = fs::File::open(format!("/proc/{pid}/ns/mnt")).ok();
            *namespace = Some(Namespace { name: name.to_owned(), held });
        }
    }
}

/// Ends what a container left running: every process that lives in its mount namespace, but for those that are spared.
fn end_namespace(namespace: &str, spared: &[i32]) {
    for _ in 0..100 {
        let mut found = false;
        let Ok(processes) = fs::read_dir("/proc") else { return };
        for entry in processes.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let Ok(link) = fs::read_link(entry.path().join("ns/mnt")) else { continue };
            if pid != 1 && !spared.contains(&pid) && link.to_str() == Some(namespace) {
                found |= kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
            }
        }
        if !found {
            return;
        }
        // Wait for one of them to end; it stays to be reaped in its turn.
        let _ = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    }
}
