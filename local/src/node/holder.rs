//! The node's end of a pod role ([`crate::pod`]): starts it in new namespaces, orders, and hears what it reports.

use crate::pod::{Event, Order};
use crate::system::{self, SELF, role};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// A running pod role. When the last clone is dropped the pod ends.
pub(crate) struct Holder {
    orders: mpsc::UnboundedSender<Order>,
    routes: Rc<RefCell<HashMap<u64, mpsc::UnboundedSender<Event>>>>,
    next: Cell<u64>,
    pid: u32,
}

impl Holder {
    /// Starts a pod role in namespaces of its own, under a host name. The receiver yields once, when the pod has ended.
    pub(crate) async fn start(hostname: String) -> io::Result<(Rc<Holder>, mpsc::Receiver<()>)> {
        let runtime = tokio::runtime::Handle::current();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // A thread of its own: entering namespaces changes the calling thread, and this one ends at once.
        std::thread::Builder::new().name("namespaces".into()).spawn(move || {
            let _context = runtime.enter();
            let start = || {
                system::enter_new_namespaces(system::all_namespaces())?;
                let mut command = Command::new(SELF);
                command.arg(role::POD).arg(hostname).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
                command.spawn()
            };
            // The receiver is only gone when the node is.
            let _ = sender.send(start());
        })?;
        let mut child = receiver.await.map_err(io::Error::other)??;
        let pid = child.id().ok_or_else(|| io::Error::other("the pod's process ended at once"))?;
        let (orders, ordered) = mpsc::unbounded_channel();
        let routes = Rc::new(RefCell::new(HashMap::new()));
        let (ended, has_ended) = mpsc::channel(1);
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or_else(|| io::Error::other("the pod's process has no pipes"))?;
        tokio::task::spawn_local(serve(child, stdin, stdout, ordered, Rc::clone(&routes), ended));
        Ok((Rc::new(Holder { orders, routes, next: Cell::new(0), pid }), has_ended))
    }

    /// The process, as the node numbers it.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the pod has ended.
    pub(crate) async fn gone(&self) {
        self.orders.closed().await;
    }

    /// Starts what a specification says; its events go to `events`. Answers the number that it is known by.
    pub(crate) fn run(&self, spec: PathBuf, events: mpsc::UnboundedSender<Event>) -> u64 {
        let id = self.route(events);
        self.order(Order::Run { id, spec });
        id
    }

    /// Sends a signal to what runs under a number.
    pub(crate) fn signal(&self, id: u64, signal: nix::sys::signal::Signal) {
        self.order(Order::Signal { id, signal: signal as i32 });
    }

    /// Runs a program in the pod's network, with the host's files, and waits for it.
    ///
    /// # Errors
    /// What the program printed, when it failed.
    pub(crate) async fn program(&self, argv: &[&str], input: Option<PathBuf>) -> Result<String, String> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let id = self.route(sender);
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        let name = argv.first().cloned().unwrap_or_default();
        self.order(Order::Program { id, argv, input });
        match receiver.recv().await {
            Some(Event::Done { code: 0, output, .. }) => Ok(output),
            Some(Event::Done { code, output, .. }) => Err(format!("{name} ended with {code}: {}", output.trim())),
            _ => Err(format!("{name}: the pod has ended")),
        }
    }

    fn route(&self, events: mpsc::UnboundedSender<Event>) -> u64 {
        let id = self.next.get() + 1;
        self.next.set(id);
        self.routes.borrow_mut().insert(id, events);
        id
    }

    fn order(&self, order: Order) {
        // A pod that has ended takes no orders; its end is reported elsewhere.
        let _ = self.orders.send(order);
    }
}

async fn serve(
    mut child: Child,
    mut stdin: tokio::process::ChildStdin,
    stdout: tokio::process::ChildStdout,
    mut orders: mpsc::UnboundedReceiver<Order>,
    routes: Rc<RefCell<HashMap<u64, mpsc::UnboundedSender<Event>>>>,
    ended: mpsc::Sender<()>,
) {
    let write = async {
        while let Some(order) = orders.recv().await {
            let mut line = serde_json::to_vec(&order).unwrap_or_default();
            line.push(b'\n');
            if stdin.write_all(&line).await.is_err() {
                break;
            }
        }
    };
    let read = async {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            match serde_json::from_str::<Event>(&line) {
                Ok(event) => deliver(&routes, event),
                Err(e) => tracing::warn!(error = %e, "report of a pod not understood"),
            }
        }
    };
    tokio::select! { () = write => {}, () = read => {} }
    drop(stdin);
    // Whoever still waits for an answer learns that there will be none.
    routes.borrow_mut().clear();
    if let Err(e) = child.kill().await {
        tracing::warn!(error = %e, "pod not ended");
    }
    let _ = ended.send(()).await;
}

fn deliver(routes: &RefCell<HashMap<u64, mpsc::UnboundedSender<Event>>>, event: Event) {
    let id = event.id();
    let last = !matches!(event, Event::Started { .. });
    let route = if last { routes.borrow_mut().remove(&id) } else { routes.borrow().get(&id).cloned() };
    if let Some(route) = route {
        // The one who asked may have lost interest.
        let _ = route.send(event);
    }
}

/// A FIFO between the node and a process of a pod. The node keeps both ends open until [`Fifo::started`], so that neither
/// side sees an end before the other has come.
pub(crate) struct Fifo {
    pub(crate) path: PathBuf,
    keeper: Option<File>,
}

impl Fifo {
    /// Makes one; any user may open it, but only through a descriptor: the directory is the node's own.
    pub(crate) fn new(path: &Path) -> io::Result<Fifo> {
        use nix::sys::stat::Mode;
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::remove_file(path);
        nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        let keeper = fs::OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Fifo { path: path.to_owned(), keeper: Some(keeper) })
    }

    /// The node's end, to read what the process writes.
    pub(crate) fn receiver(&self) -> io::Result<pipe::Receiver> {
        pipe::OpenOptions::new().open_receiver(&self.path)
    }

    /// The node's end, to write what the process reads.
    pub(crate) fn sender(&self) -> io::Result<pipe::Sender> {
        pipe::OpenOptions::new().open_sender(&self.path)
    }

    /// The process has opened its end: from now on either side sees the other's end.
    pub(crate) fn started(&mut self) {
        self.keeper = None;
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        // The tmpfs goes with the node in any case.
        let _ = fs::remove_file(&self.path);
    }
}
