//! Network namespaces that exist as long as somebody holds them: no names, no mounts, nothing to clean up.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace with loopback up.
#[derive(Clone)]
pub struct Netns(Arc<File>);

impl Netns {
    /// Makes one. Needs root.
    pub fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests of the whole proxy need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let ns = Self(Arc::new(file));
        ns.run(&["ip", "link", "set", "lo", "up"]);
        ns
    }

    /// Runs `f` on a thread inside. Sockets made there belong to the namespace and can be used anywhere; processes
    /// started there stay inside.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command inside and returns its output; fails the test if the command fails.
    #[track_caller]
    pub fn run(&self, command: &[&str]) -> String {
        let output = self.output(command);
        assert!(
            output.status.success(),
            "{command:?} failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command inside, whatever comes of it.
    #[track_caller]
    pub fn output(&self, command: &[&str]) -> Output {
        let (program, args) = command.split_first().unwrap();
        self.enter(|| Command::new(program).args(args).stdin(Stdio::null()).output())
            .unwrap_or_else(|e| panic!("cannot run {program}: {e}"))
    }

    /// Listens inside.
    pub fn listen(&self, addr: impl Into<SocketAddr>) -> TcpListener {
        let addr = addr.into();
        self.enter(|| TcpListener::bind(addr)).unwrap_or_else(|e| panic!("cannot listen on {addr}: {e}"))
    }

    /// Connects from inside.
    pub fn connect(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        self.enter(|| TcpStream::connect_timeout(&addr, super::DEADLINE))
    }

    /// A path that names the namespace to `ip` and `nsenter --net=`, valid while this process runs.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A bridge in a namespace of its own, to which pods are plugged.
pub struct Bridge {
    ns: Netns,
    ports: u8,
}

/// Network of the pods.
pub const PODS: [u8; 2] = [10, 244];

impl Bridge {
    /// An empty bridge.
    pub fn new() -> Self {
        let ns = Netns::new();
        ns.run(&["ip", "link", "add", "br0", "type", "bridge"]);
        ns.run(&["ip", "link", "set", "br0", "up"]);
        Self { ns, ports: 0 }
    }

    /// A new namespace on the bridge, with an address of its own and a default route.
    pub fn plug(&mut self) -> (Netns, IpAddr) {
        self.ports += 1;
        let ip = Ipv4Addr::new(PODS[0], PODS[1], 0, 10 + self.ports);
        let port = format!("port{}", self.ports);
        let pod = Netns::new();
        let path = pod.path();
        self.ns.run(&["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &path]);
        self.ns.run(&["ip", "link", "set", &port, "master", "br0", "up"]);
        pod.run(&["ip", "addr", "add", &format!("{ip}/16"), "dev", "eth0"]);
        pod.run(&["ip", "link", "set", "eth0", "up"]);
        // So that service addresses have a route; nothing answers there.
        pod.run(&["ip", "route", "add", "default", "dev", "eth0"]);
        // The kernel brings links up in its own time; what is sent before is lost and sent again a second later.
        super::eventually("the bridge to forward", || {
            let there = self.ns.run(&["ip", "-d", "link", "show", "dev", &port]).contains("state forwarding");
            let here = pod.run(&["ip", "link", "show", "dev", "eth0"]).contains("state UP");
            (there && here).then_some(())
        });
        (pod, ip.into())
    }

    /// The bridge's own namespace, for packet captures.
    pub fn namespace(&self) -> &Netns {
        &self.ns
    }
}
