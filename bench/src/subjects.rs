//! What is compared: nothing in between, a pair of HAProxy, a pair of weft-proxy. One thread each, the same path.

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context;
use tokio::process::Child;

use crate::{
    load::{self, GRPC_PORT, HTTP_PORT},
    net::{CLIENT, Core, Link, PROXY_UID, Redirect, SERVER, SERVICE},
    pki::{Root, identity},
};

/// HAProxy's outbound and inbound ports for HTTP/1.1 and for HTTP/2.
const HAPROXY: [(u16, u16, u16); 2] = [(HTTP_PORT, 15001, 15006), (GRPC_PORT, 15011, 15016)];
/// weft-proxy's ports, which are Linkerd's.
const OUTBOUND: u16 = 4140;
const INBOUND: u16 = 4143;
/// The control plane of each namespace.
const CONTROL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8086);

/// One way from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Subject {
    /// No proxy.
    Direct,
    /// Two HAProxy, HTTP/2 over mutual TLS between them.
    Haproxy,
    /// Two weft-proxy.
    Weft,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "no proxy",
            Self::Haproxy => "haproxy pair",
            Self::Weft => "weft-proxy pair",
        })
    }
}

/// Everything that subjects need and share.
#[derive(Debug)]
pub struct Stage {
    /// The namespaces.
    pub link: Link,
    /// Files of this run.
    pub directory: tempfile::TempDir,
    /// weft-proxy, when it takes part.
    pub proxy: Option<PathBuf>,
    root_pem: String,
    _nginx: Child,
}

/// A running subject. Its processes end with it.
#[derive(Debug)]
pub struct Running {
    /// The outbound and the inbound proxy, if there are proxies.
    pub proxies: Option<[u32; 2]>,
    processes: Vec<Child>,
}

impl Running {
    /// Fails when a process has ended.
    fn alive(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.try_wait()? {
                anyhow::bail!("a process of it ended: {status}");
            }
        }
        Ok(())
    }
}

impl Stage {
    /// Makes namespaces and certificates, and starts the server.
    ///
    /// # Errors
    ///
    /// When the kernel or a program refuses.
    pub async fn new(proxy: Option<PathBuf>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
        // The proxies run as another user and read their token and certificates there.
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let root = Root::new()?;
        root.save(directory.path())?;
        fs::write(directory.path().join("token"), "bench")?;
        for side in ["client", "server"] {
            fs::write(directory.path().join(format!("{side}.pem")), root.leaf(&identity(side))?)?;
            fs::write(directory.path().join(format!("haproxy-{side}.cfg")), haproxy_config(side, directory.path()))?;
        }
        fs::write(directory.path().join("nginx.conf"), nginx_config(directory.path()))?;
        let link = Link::new().await?;
        let mut nginx = link.server.command(Core::Load, None, "nginx");
        nginx.arg("-c").arg(directory.path().join("nginx.conf")).args(["-e", "stderr"]);
        let nginx = nginx.spawn().context("cannot run nginx")?;
        Ok(Self { link, directory, proxy, root_pem: root.pem(), _nginx: nginx })
    }

    /// Starts a subject and waits until the server answers through it, on both ports.
    ///
    /// # Errors
    ///
    /// When a program refuses or the server is not reached.
    pub async fn start(&self, subject: Subject) -> anyhow::Result<Running> {
        let mut running = match subject {
            Subject::Direct => {
                self.link.redirect(&[]).await?;
                Running { proxies: None, processes: Vec::new() }
            }
            Subject::Haproxy => self.haproxy().await?,
            Subject::Weft => self.weft().await?,
        };
        for (port, arguments) in [(HTTP_PORT, &[][..]), (GRPC_PORT, &["--http2-prior-knowledge"])] {
            let answers = load::answers(&self.link, arguments, port, || running.alive()).await;
            answers.with_context(|| self.logs(subject))?;
        }
        Ok(running)
    }

    fn log(&self, side: &str) -> PathBuf {
        self.directory.path().join(format!("weft-{side}.log"))
    }

    /// The last lines that weft-proxy logged, which is what a failure needs.
    fn logs(&self, subject: Subject) -> String {
        let sides = if subject == Subject::Weft { &["client", "server"][..] } else { &[] };
        let mut text = subject.to_string();
        for side in sides {
            let log = fs::read_to_string(self.log(side)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text += &format!("\n{side}:\n{}\n", lines[lines.len().saturating_sub(10)..].join("\n"));
        }
        text
    }

    async fn haproxy(&self) -> anyhow::Result<Running> {
        let ports = HAPROXY.map(|(port, outbound, _)| Redirect { port, outbound, inbound: None });
        self.link.redirect(&ports).await?;
        let start = |side: &str| {
            let namespace = if side == "client" { &self.link.client } else { &self.link.server };
            let mut command = namespace.command(Core::Proxy, Some(PROXY_UID), "haproxy");
            command.arg("-db").arg("-f").arg(self.directory.path().join(format!("haproxy-{side}.cfg")));
            command.spawn().context("cannot run haproxy")
        };
        pair(vec![start("client")?, start("server")?])
    }

    async fn weft(&self) -> anyhow::Result<Running> {
        let proxy = self.proxy.as_deref().context("there is no weft-proxy")?;
        let ports = [HTTP_PORT, GRPC_PORT];
        let ports = ports.map(|port| Redirect { port, outbound: OUTBOUND, inbound: Some(INBOUND) });
        self.link.redirect(&ports).await?;
        let control = |side: &str| {
            let namespace = if side == "client" { &self.link.client } else { &self.link.server };
            let mut command = namespace.command(Core::Load, None, std::env::current_exe()?);
            command.args(["control", "--listen", &CONTROL.to_string(), "--root"]).arg(self.directory.path());
            command.args(["--service", &SERVICE.to_string(), "--endpoint", &SERVER.to_string()]);
            command.args(["--identity", &identity("server"), "--inbound-port", &INBOUND.to_string()]);
            command.spawn().context("cannot run the control plane")
        };
        let start = |side: &str| {
            let (namespace, address) =
                if side == "client" { (&self.link.client, CLIENT) } else { (&self.link.server, SERVER) };
            let mut command = namespace.command(Core::Proxy, Some(PROXY_UID), proxy);
            let log = fs::File::create(self.log(side))?;
            command.env_clear().envs(self.environment(side, address)).stdout(log.try_clone()?).stderr(log);
            command.spawn().context("cannot run weft-proxy")
        };
        let processes = vec![start("client")?, start("server")?, control("client")?, control("server")?];
        pair(processes)
    }

    fn environment(&self, side: &str, address: Ipv4Addr) -> Vec<(String, String)> {
        let networks = "10.0.0.0/8".to_owned();
        let ports = if side == "server" { format!("{HTTP_PORT},{GRPC_PORT}") } else { String::new() };
        [
            ("IDENTITY_SVC_ADDR", CONTROL.to_string()),
            ("DESTINATION_SVC_ADDR", CONTROL.to_string()),
            ("POLICY_SVC_ADDR", CONTROL.to_string()),
            ("POLICY_WORKLOAD", format!("{{\"ns\":\"bench\",\"pod\":\"{side}\"}}")),
            ("DESTINATION_CONTEXT", format!("{{\"ns\":\"bench\",\"pod\":\"{side}\"}}")),
            ("IDENTITY_TRUST_ANCHORS", self.root_pem.clone()),
            ("IDENTITY_TOKEN_FILE", self.directory.path().join("token").display().to_string()),
            ("IDENTITY_LOCAL_NAME", identity(side)),
            ("INBOUND_IPS", address.to_string()),
            ("INBOUND_PORTS", ports),
            ("INBOUND_LISTEN_ADDR", format!("0.0.0.0:{INBOUND}")),
            ("OUTBOUND_LISTEN_ADDR", format!("127.0.0.1:{OUTBOUND}")),
            ("DESTINATION_PROFILE_NETWORKS", networks.clone()),
            ("POLICY_CLUSTER_NETWORKS", networks),
            ("CORES", "1".to_owned()),
            ("LOG", "warn".to_owned()),
        ]
        .map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), value))
        .into()
    }
}

/// The first two of the processes are the pair.
fn pair(processes: Vec<Child>) -> anyhow::Result<Running> {
    let ids: Vec<u32> = processes.iter().filter_map(Child::id).collect();
    let [outbound, inbound, ..] = ids[..] else { anyhow::bail!("a proxy ended at once") };
    Ok(Running { proxies: Some([outbound, inbound]), processes })
}

fn nginx_config(directory: &Path) -> String {
    let directory = directory.display();
    // The body is 32 octets.
    format!(
        "daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-proxy;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  scgi_temp_path {directory}/nginx-scgi;
  server {{
    listen {HTTP_PORT} backlog=4096;
    location / {{ default_type text/plain; return 200 \"thirty-two octets, end of line.\\n\"; }}
  }}
  server {{
    listen {GRPC_PORT} http2 backlog=4096;
    location / {{ default_type application/grpc; return 200 \"thirty-two octets, end of line.\\n\"; }}
  }}
}}
"
    )
}

fn haproxy_config(side: &str, directory: &Path) -> String {
    let files = directory.display();
    let mut config = "global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  http-reuse always
"
    .to_owned();
    for (index, (port, outbound, inbound)) in HAPROXY.into_iter().enumerate() {
        let plain = if port == GRPC_PORT { " proto h2" } else { "" };
        config += &if side == "client" {
            format!(
                "listen outbound{index}
  bind 127.0.0.1:{outbound}{plain} backlog 4096
  server peer {SERVER}:{inbound} ssl alpn h2 ssl-min-ver TLSv1.3 crt {files}/client.pem ca-file {files}/root.pem verify required sni str({name}) verifyhost {name}
",
                name = identity("server")
            )
        } else {
            format!(
                "listen inbound{index}
  bind {SERVER}:{inbound} ssl alpn h2 ssl-min-ver TLSv1.3 crt {files}/server.pem ca-file {files}/root.pem verify required backlog 4096
  server app 127.0.0.1:{port}{plain}
"
            )
        };
    }
    config
}
