//! What others than its own task may do with a running pod: run commands in its containers, read its logs.

use super::holder::{Fifo, Holder};
use super::logs::Log;
use super::spec;
use crate::container::Spec;
use crate::pod::Event;
use nix::sys::signal::Signal;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// What others may know of a running pod.
pub(crate) struct Shared {
    /// The pod's own directory on the node's tmpfs.
    pub(crate) dir: PathBuf,
    pub(super) holder: RefCell<Option<Rc<Holder>>>,
    pub(super) running: RefCell<BTreeMap<String, (Spec, i32)>>,
    /// Logs of all containers.
    pub(crate) logs: RefCell<BTreeMap<String, Rc<Log>>>,
    next_exec: Cell<u64>,
}

/// A command that runs in a container.
pub(crate) struct Exec {
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    holder: Rc<Holder>,
    id: u64,
    _fifos: [Option<Fifo>; 3],
}

impl Drop for Exec {
    fn drop(&mut self) {
        // Whoever asked has gone, or the command has ended and there is nobody under this number.
        self.holder.signal(self.id, Signal::SIGKILL);
    }
}

impl Shared {
    pub(super) fn new(dir: PathBuf) -> Rc<Shared> {
        Rc::new(Shared {
            dir,
            holder: RefCell::default(),
            running: RefCell::default(),
            logs: RefCell::default(),
            next_exec: Cell::new(0),
        })
    }

    /// Starts a command in a running container.
    ///
    /// # Errors
    /// One sentence when the container does not run or the command cannot be started.
    pub(crate) async fn start_exec(&self, container: &str, command: &[String], stdin: bool) -> Result<Exec, String> {
        let entered = self.running.borrow().get(container).cloned();
        let (spec, pid) = entered.ok_or_else(|| format!("container {container} is not running"))?;
        let holder = self.holder.borrow().clone().ok_or("the pod is not running")?;
        let number = self.next_exec.get() + 1;
        self.next_exec.set(number);
        let prepare = || {
            let path = |name: &str| self.dir.join(format!("exec-{number}-{name}"));
            let input = if stdin { Some(Fifo::new(&path("stdin"))?) } else { None };
            let (output, error) = (Fifo::new(&path("stdout"))?, Fifo::new(&path("stderr"))?);
            let spec = Spec {
                enter: Some(pid),
                stdin: input.as_ref().map(|f| f.path.clone()),
                stdout: output.path.clone(),
                stderr: error.path.clone(),
                argv: command.to_vec(),
                ..spec
            };
            let file = path("spec");
            spec::write(&spec, &file)?;
            let ends = (input.as_ref().map(Fifo::sender).transpose()?, output.receiver()?, error.receiver()?);
            std::io::Result::Ok((file, [input, Some(output), Some(error)], ends))
        };
        let (file, mut fifos, (stdin, stdout, stderr)) =
            prepare().map_err(|e| format!("cannot prepare a command: {e}"))?;
        let (sender, mut events) = mpsc::unbounded_channel();
        let id = holder.run(file, sender);
        match events.recv().await {
            Some(Event::Started { .. }) => {}
            Some(Event::Failed { message, .. }) => return Err(message),
            _ => return Err("the pod has ended".into()),
        }
        fifos.iter_mut().flatten().for_each(Fifo::started);
        Ok(Exec { stdin, stdout, stderr, events, holder, id, _fifos: fifos })
    }

    /// Runs a command in a container and waits for it. Answers its exit code and the beginning of what it printed.
    ///
    /// # Errors
    /// As [`Shared::start_exec`].
    pub(crate) async fn run_command(&self, container: &str, command: &[String]) -> Result<(i32, String), String> {
        let mut exec = self.start_exec(container, command, false).await?;
        let mut output = Vec::new();
        let mut errors = Vec::new();
        let (stdout, stderr) = (&mut exec.stdout, &mut exec.stderr);
        let mut out = stdout.take(4096);
        let mut err = stderr.take(4096);
        // What cannot be read does not matter: the exit code decides.
        let _ = tokio::join!(out.read_to_end(&mut output), err.read_to_end(&mut errors));
        output.append(&mut errors);
        match exec.events.recv().await {
            Some(Event::Exited { code, .. }) => Ok((code, String::from_utf8_lossy(&output).into_owned())),
            _ => Err("the pod has ended".into()),
        }
    }
}
