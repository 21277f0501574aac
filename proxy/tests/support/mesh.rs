//! Pods on a bridge, each a network namespace with a proxy and its redirection, as on the one-machine cluster.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
};

use super::{
    FakeControl, Proxy,
    control::Endpoints,
    netns::{Bridge, Netns},
    policies,
    proxy::{Builder, PROXY_GID},
};

/// A pod. Its applications are sockets that the test itself opens inside.
pub struct Pod {
    /// Its network namespace.
    pub ns: Netns,
    /// Its address.
    pub ip: IpAddr,
    /// Its identity, also when it has no proxy.
    pub identity: String,
    /// Its proxy, if it is meshed.
    pub proxy: Option<Proxy>,
}

impl Pod {
    /// An application's listener, on all addresses.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.ns.listen(([0, 0, 0, 0], port))
    }

    /// An application's connection, redirected through the proxy if there is one.
    pub fn connect(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        self.ns.connect(addr)
    }

    /// What comes back when this is sent, until the connection ends. A proxy that refuses may reset it at any time, also
    /// before `connect` has returned.
    #[track_caller]
    pub fn say(&self, addr: SocketAddr, octets: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        let result = self.connect(addr).and_then(|mut stream| {
            stream.set_read_timeout(Some(super::DEADLINE))?;
            let _ = stream.write_all(octets);
            stream.read_to_end(&mut answer)
        });
        if let Err(error) = result {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{addr}: {error}");
        }
        answer
    }

    /// The proxy, of a meshed pod.
    pub fn proxy(&mut self) -> &mut Proxy {
        self.proxy.as_mut().expect("the pod is not meshed")
    }

    /// The exposition of the pod's proxy.
    #[track_caller]
    pub fn metrics(&mut self) -> String {
        self.proxy().metrics()
    }

    /// An address of the pod.
    pub fn addr(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }
}

/// A control plane and pods.
pub struct Mesh {
    /// The control plane.
    pub control: FakeControl,
    /// The pod whose application connects.
    pub client: Pod,
    /// The pod whose application answers.
    pub server: Pod,
    /// Address of the service in front of the server's application.
    pub vip: SocketAddr,
    /// The path of that service for discovery.
    pub service: String,
    /// Port of the server's application.
    pub app_port: u16,
    bridge: Bridge,
}

/// Changes the environment of a proxy before it starts.
type Adjust<'a> = &'a dyn Fn(Builder) -> Builder;

impl Mesh {
    /// Two meshed pods with ready proxies. The service at `vip` balances over the server's port 8080 by mutual TLS, with
    /// transport headers.
    pub fn two_pods() -> Self {
        Self::with(Some(&|b| b), Some(&|b| b))
    }

    /// As [`Mesh::two_pods`], with changed environments; `None` leaves a pod unmeshed.
    pub fn with(client: Option<Adjust<'_>>, server: Option<Adjust<'_>>) -> Self {
        let control = FakeControl::start();
        let mut bridge = Bridge::new();
        let client = pod(&control, &mut bridge, "client", client);
        let server = pod(&control, &mut bridge, "server", server);
        let mesh = Self {
            control,
            client,
            server,
            vip: SocketAddr::from(([10, 96, 0, 100], 80)),
            service: "web.test.svc.cluster.local:80".into(),
            app_port: 8080,
            bridge,
        };
        let addr = mesh.server.addr(mesh.app_port);
        let endpoint = match &mesh.server.proxy {
            Some(_) => policies::meshed(addr, &mesh.server.identity, Some(4143)),
            None => policies::endpoint(addr),
        };
        mesh.control.set_endpoints(&mesh.service, Endpoints::Set(vec![endpoint]));
        mesh.control.set_outbound(mesh.vip, Ok(policies::detect(policies::balance(&mesh.service))));
        mesh
    }

    /// One more pod; `None` leaves it unmeshed.
    pub fn add_pod(&mut self, name: &str, adjust: Option<Adjust<'_>>) -> Pod {
        pod(&self.control, &mut self.bridge, name, adjust)
    }

    /// A namespace on the same bridge, with its address, without anything in it.
    pub fn add_namespace(&mut self) -> (Netns, IpAddr) {
        self.bridge.plug()
    }

    /// The namespace of the bridge between the pods, where a packet capture sees everything that they exchange.
    pub fn bridge(&self) -> &Netns {
        self.bridge.namespace()
    }
}

fn pod(control: &FakeControl, bridge: &mut Bridge, name: &str, adjust: Option<Adjust<'_>>) -> Pod {
    let (ns, ip) = bridge.plug();
    let identity = format!("{name}.test.serviceaccount.identity.weft.cluster.local");
    let proxy = adjust.map(|adjust| {
        let gid = PROXY_GID.to_string();
        ns.run(&[env!("CARGO_BIN_EXE_weft-init"), "-g", &gid, "--inbound-ports-to-ignore", "4190,4191"]);
        adjust(Proxy::builder_in(control, &identity, &ns)).spawn_ready()
    });
    Pod { ns, ip, identity, proxy }
}
