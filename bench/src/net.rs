//! Two network namespaces joined by a veth pair, and programs inside them.
//!
//! The namespaces have no names: each lives as long as a process that holds it, and that process ends when its standard
//! input does, which is when the bench ends, however it ends. Nothing is left behind.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    net::Ipv4Addr,
    path::Path,
    process::Stdio,
};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

/// The client's address on the link.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 251, 0, 1);
/// The server's address on the link.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 251, 0, 2);
/// The address that the client calls; a service address in a cluster.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 10);
/// The user that proxies run as, whose traffic is not redirected.
pub const PROXY_UID: u32 = 2102;

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Core {
    /// The core of the proxies that are measured.
    Proxy,
    /// The core of everything else.
    Load,
}

impl Core {
    fn number(self) -> usize {
        // With a single core everything shares it.
        let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
        match self {
            Self::Proxy => 0,
            Self::Load => last.min(1),
        }
    }
}

/// Makes a network namespace of its own, says so, and waits for the end of standard input.
///
/// # Errors
///
/// When the kernel refuses.
pub fn hold() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; is this root?")?;
    std::io::stdout().write_all(b".")?;
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// One network namespace.
#[derive(Debug)]
pub struct Namespace {
    /// Kept for its standard input and its life.
    _holder: Child,
    path: String,
    pid: u32,
}

impl Namespace {
    async fn new() -> anyhow::Result<Self> {
        let mut holder = Command::new(std::env::current_exe()?)
            .arg("hold")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdout = holder.stdout.take().context("no output of the holder")?;
        stdout.read_exact(&mut [0]).await.context("cannot make a network namespace; is this root?")?;
        let pid = holder.id().context("the holder ended")?;
        Ok(Self { _holder: holder, path: format!("/proc/{pid}/ns/net"), pid })
    }

    /// A program to run inside, on a core, killed when the bench ends. Its process is the program itself, not a wrapper.
    pub fn command(&self, core: Core, uid: Option<u32>, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path)).args(["setpriv", "--pdeathsig", "KILL"]);
        if let Some(uid) = uid {
            command.args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".into()]);
        }
        command.args(["taskset", "-c", &core.number().to_string()]).arg(program);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs a program to its end and gives what it printed.
    ///
    /// # Errors
    ///
    /// When it cannot be started or fails; then with what it printed to standard error.
    pub async fn run<I, S>(&self, program: &str, arguments: I) -> anyhow::Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        output(self.command(Core::Load, None, program).args(arguments)).await
    }

    /// Replaces every nftables rule.
    ///
    /// # Errors
    ///
    /// When nft refuses.
    pub async fn rules(&self, rules: &str) -> anyhow::Result<()> {
        let mut command = self.command(Core::Load, None, "nft");
        let mut nft = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("cannot run nft")?;
        let mut stdin = nft.stdin.take().context("no input of nft")?;
        stdin.write_all(format!("flush ruleset\n{rules}").as_bytes()).await?;
        drop(stdin);
        anyhow::ensure!(nft.wait().await?.success(), "nft refuses these rules:\n{rules}");
        Ok(())
    }
}

/// Runs a command to its end and gives what it printed.
///
/// # Errors
///
/// When it cannot be started or fails; then with what it printed to standard error.
pub async fn output(command: &mut Command) -> anyhow::Result<String> {
    let out = command.output().await.with_context(|| format!("cannot run {:?}", command.as_std()))?;
    if !out.status.success() {
        bail!("{:?}: {}: {}", command.as_std(), out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The client's and the server's namespaces, joined.
#[derive(Debug)]
pub struct Link {
    /// Where the load comes from.
    pub client: Namespace,
    /// Where the server is.
    pub server: Namespace,
}

impl Link {
    /// Makes both, gives them addresses, and routes the service address to the server.
    ///
    /// # Errors
    ///
    /// When the kernel or `ip` refuses.
    pub async fn new() -> anyhow::Result<Self> {
        let (client, server) = (Namespace::new().await?, Namespace::new().await?);
        let peer = server.pid.to_string();
        let ip =
            async |namespace: &Namespace, arguments: &str| namespace.run("ip", arguments.split(' ')).await.map(drop);
        ip(&client, &format!("link add eth0 type veth peer name eth0 netns {peer}")).await?;
        for (namespace, address) in [(&client, CLIENT), (&server, SERVER)] {
            ip(namespace, &format!("addr add {address}/24 dev eth0")).await?;
            ip(namespace, "link set eth0 up").await?;
            ip(namespace, "link set lo up").await?;
        }
        ip(&server, &format!("addr add {SERVICE}/32 dev lo")).await?;
        ip(&client, &format!("route add {SERVICE}/32 via {SERVER}")).await?;
        Ok(Self { client, server })
    }

    /// Redirects what the client sends to `port` of the service to `outbound`, and what the server receives on `port`
    /// to `inbound`. Proxies' own traffic is left alone.
    ///
    /// # Errors
    ///
    /// When nft refuses.
    pub async fn redirect(&self, ports: &[Redirect]) -> anyhow::Result<()> {
        let (mut client, mut server) = (String::new(), String::new());
        for Redirect { port, outbound, inbound } in ports {
            client += &format!("tcp dport {port} redirect to :{outbound}\n");
            if let Some(inbound) = inbound {
                server += &format!("tcp dport {port} redirect to :{inbound}\n");
            }
        }
        let chain = |hook: &str, rules: &str| {
            format!("table ip bench {{\nchain {hook} {{\ntype nat hook {hook} priority -100;\n{rules}}}\n}}\n")
        };
        let own = format!("meta skuid {PROXY_UID} return\noifname \"lo\" return\n");
        self.client.rules(&chain("output", &format!("{own}{client}"))).await?;
        self.server.rules(&chain("prerouting", &format!("iifname \"lo\" return\n{server}"))).await
    }
}

/// Where the traffic of one port goes instead.
#[derive(Debug, Clone, Copy)]
pub struct Redirect {
    /// Port of the service.
    pub port: u16,
    /// Port of the outbound proxy in the client's namespace.
    pub outbound: u16,
    /// Port of the inbound proxy in the server's namespace, when it is found by redirection.
    pub inbound: Option<u16>,
}

/// Whether a program is on the path, with the system's own directories added.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(extra).any(|directory| Path::new(&directory).join(program).is_file())
}
