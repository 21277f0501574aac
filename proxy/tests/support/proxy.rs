//! Real proxies: the binary as a child process.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{DEADLINE, FakeControl, eventually, netns::Netns};

/// The group of proxies in namespaces: what it sends is not redirected. A group rather than a user, so that the binary
/// may lie in a directory that only root can read.
pub const PROXY_GID: u32 = 2102;

/// Sets up a proxy.
pub struct Builder {
    identity: String,
    ns: Option<Netns>,
    env: BTreeMap<String, String>,
    dir: tempfile::TempDir,
    wrapper: Vec<String>,
    log: Option<Stdio>,
}

impl Builder {
    /// Its log goes there and is not read here.
    pub fn log_to(mut self, to: impl Into<Stdio>) -> Self {
        self.log = Some(to.into());
        self
    }

    /// Starts it by a command that is given the program and executes it in its place, such as `prlimit`.
    pub fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Sets a variable, named without its `LINKERD2_PROXY_` prefix; one of our own with its whole name.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        let ours = name.starts_with("WEFT_PROXY_");
        self.env.insert(if ours { name.to_owned() } else { format!("LINKERD2_PROXY_{name}") }, value.into());
        self
    }

    /// Removes a variable.
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(&format!("LINKERD2_PROXY_{name}"));
        self
    }

    /// Where its files are: `token`, and what the test puts there.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Starts it.
    pub fn spawn(self) -> Proxy {
        let program = env!("CARGO_BIN_EXE_weft-proxy");
        let mut command = match &self.wrapper[..] {
            [] => Command::new(program),
            [wrapper, args @ ..] => {
                let mut command = Command::new(wrapper);
                command.args(args).arg(program);
                command
            }
        };
        command.env_clear().envs(&self.env).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(self.log.unwrap_or_else(Stdio::piped));
        let mut child = match &self.ns {
            Some(ns) => ns.enter(move || command.gid(PROXY_GID).spawn()),
            None => command.spawn(),
        }
        .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let reader = child.stderr.take().map(|stderr| {
            let log = log.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                }
            })
        });
        Proxy { child, ns: self.ns, identity: self.identity, log, reader, dir: self.dir, status: None }
    }

    /// Starts it and waits until it is ready.
    pub fn spawn_ready(self) -> Proxy {
        let mut proxy = self.spawn();
        proxy.wait_ready();
        proxy
    }
}

/// A running proxy; killed on drop.
pub struct Proxy {
    child: Child,
    ns: Option<Netns>,
    /// Its identity.
    pub identity: String,
    log: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
    dir: tempfile::TempDir,
    status: Option<ExitStatus>,
}

impl Proxy {
    /// A proxy on loopback, without redirection, on ports that the system chooses.
    pub fn builder(control: &FakeControl, identity: &str) -> Builder {
        Self::with_control(control, identity, None)
            .env("INBOUND_LISTEN_ADDR", "127.0.0.1:0")
            .env("OUTBOUND_LISTEN_ADDR", "127.0.0.1:0")
            .env("ADMIN_LISTEN_ADDR", "127.0.0.1:0")
    }

    /// A proxy in a namespace, on the usual ports.
    pub fn builder_in(control: &FakeControl, identity: &str, ns: &Netns) -> Builder {
        Self::with_control(control, identity, Some(ns.clone())).env("ADMIN_LISTEN_ADDR", "0.0.0.0:4191")
    }

    fn with_control(control: &FakeControl, identity: &str, ns: Option<Netns>) -> Builder {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "the token").unwrap();
        control.set_token(identity, "the token");
        let addr = match &ns {
            Some(ns) => control.listen_in(ns),
            None => control.listen(),
        };
        Builder { identity: identity.into(), ns, env: BTreeMap::new(), dir, wrapper: Vec::new(), log: None }
            .env("IDENTITY_TRUST_ANCHORS", control.trust_anchors())
            .env("IDENTITY_TOKEN_FILE", token.to_str().unwrap())
            .env("IDENTITY_LOCAL_NAME", identity)
            .env("IDENTITY_SVC_ADDR", addr.to_string())
            .env("DESTINATION_SVC_ADDR", addr.to_string())
            .env("DESTINATION_PROFILE_NETWORKS", "10.0.0.0/8")
            .env("POLICY_SVC_ADDR", addr.to_string())
            .env("POLICY_WORKLOAD", r#"{"ns":"test","pod":"test"}"#)
            .env("LOG", "info,weft_proxy=debug")
            // Time limits are not what most tests are about, and the machine may be busy.
            .env("INBOUND_CONNECT_TIMEOUT", "30s")
            .env("OUTBOUND_CONNECT_TIMEOUT", "30s")
            .env("INBOUND_HTTP_FAILFAST_TIMEOUT", "30s")
            .env("OUTBOUND_HTTP_FAILFAST_TIMEOUT", "30s")
            .env("DESTINATION_PROFILE_INITIAL_TIMEOUT", "30s")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has logged a text.
    #[track_caller]
    pub fn wait_log(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || self.log().contains(text).then_some(()));
    }

    /// Its files.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its admin server listens; waits for it.
    #[track_caller]
    pub fn admin(&mut self) -> SocketAddr {
        if self.ns.is_some() && self.log().is_empty() {
            // What was configured. One whose log is lost can be asked as well.
            let addr = SocketAddr::from(([127, 0, 0, 1], 4191));
            let ns = self.ns.clone().unwrap();
            eventually("the admin server", || {
                assert!(!self.has_ended(), "the proxy has ended");
                ns.connect(addr).ok()
            });
            return addr;
        }
        eventually("the admin server", || {
            assert!(!self.has_ended(), "the proxy has ended: {}", self.log());
            let log = self.log();
            let text = log.split_once(" admin=")?.1.split_whitespace().next()?;
            let mut addr: SocketAddr = text.parse().ok()?;
            if addr.ip().is_unspecified() {
                addr.set_ip([127, 0, 0, 1].into());
            }
            Some(addr)
        })
    }

    /// Asks the admin server.
    #[track_caller]
    pub fn admin_request(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let addr = self.admin();
        let stream = match &self.ns {
            Some(ns) => ns.connect(addr),
            None => TcpStream::connect(addr),
        };
        http_request(stream.unwrap(), method, path, body)
    }

    /// GET from the admin server.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> (u16, String) {
        self.admin_request("GET", path, "")
    }

    /// The exposition.
    #[track_caller]
    pub fn metrics(&mut self) -> String {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Waits for `/ready`.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        eventually("the proxy to be ready", || (self.get("/ready").0 == 200).then_some(()));
    }

    /// Waits until the exposition has a line that starts with `name{`, holds all `labels`, and returns its value.
    #[track_caller]
    pub fn wait_metric(&mut self, name: &str, labels: &[&str], wanted: impl Fn(f64) -> bool) -> f64 {
        eventually(&format!("{name} with {labels:?}"), || metric(&self.metrics(), name, labels).filter(|v| wanted(*v)))
    }

    /// Waits until the exposition has a series of that name and returns the exposition.
    #[track_caller]
    pub fn wait_metric_text(&mut self, name: &str) -> String {
        eventually(name, || Some(self.metrics()).filter(|text| metric(text, name, &[]).is_some()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Stops it and waits until all its threads stand still, which takes its time on a busy machine. SIGCONT lets it go on.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        stands_still(self.pid());
    }

    fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status.is_some()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        eventually("the proxy to end", || self.has_ended().then_some(()));
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.status.unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the proxy {} ---\n{}---", self.identity, self.log());
        }
    }
}

/// Waits until all threads of a process that got SIGSTOP are stopped.
#[track_caller]
pub fn stands_still(pid: u32) {
    eventually("the process to stop", || {
        let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            Some(stat.rsplit_once(") ")?.1.starts_with('T'))
        };
        tasks.all(|task| stopped(task) == Some(true)).then_some(())
    });
}

/// The value of the first series of that name with all those labels.
pub fn metric(exposition: &str, name: &str, labels: &[&str]) -> Option<f64> {
    exposition
        .lines()
        .filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
                && labels.iter().all(|l| line.contains(l))
        })
        .find_map(|line| line.rsplit_once(' ')?.1.parse().ok())
}

/// One HTTP/1.1 request over a connection of its own: status and body.
#[track_caller]
pub fn http_request(mut stream: TcpStream, method: &str, path: &str, body: &str) -> (u16, String) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no HTTP: {answer:?}"));
    let body = answer.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default();
    (status, body)
}
