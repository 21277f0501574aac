//! `OutboundPolicies`: where a proxy sends what goes to an address or a name, and how.

use super::default_meta;
use super::inbound::parse_workload;
use super::traffic::{Annotations, Parent};
use crate::destination::endpoint::{Mesh, weighted};
use crate::destination::name::{Authority, Host};
use crate::destination::profile::resource;
use crate::drain::Drain;
use crate::duration::millis;
use crate::grpc::{Changed, Messages, Method, Next, watched};
use crate::index::pod::{Id, Pod};
use crate::index::ports::Ports;
use crate::index::service::{Protocol, Service};
use crate::index::{Index, Target};
use crate::telemetry::Telemetry;
use linkerd2_proxy_api::destination::WeightedAddr;
use linkerd2_proxy_api::http_route::{HttpRouteMatch, PathMatch, path_match};
use linkerd2_proxy_api::meta::Metadata;
use linkerd2_proxy_api::opaque_route::Forbidden;
use linkerd2_proxy_api::outbound::backend::balance_p2c::{Load, PeakEwma};
use linkerd2_proxy_api::outbound::backend::endpoint_discovery::{DestinationGet, Kind as DiscoveryKind};
use linkerd2_proxy_api::outbound::backend::{BalanceP2c, EndpointDiscovery, Kind as BackendKind};
use linkerd2_proxy_api::outbound::outbound_policies_server::OutboundPolicies;
use linkerd2_proxy_api::outbound::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque};
use linkerd2_proxy_api::outbound::{
    Backend, FailureAccrual, GrpcRoute, HttpRoute, OpaqueRoute, OutboundPolicy, ProxyProtocol, Queue, TrafficSpec,
    http_route, opaque_route, traffic_spec,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tonic::{Request, Response, Status};

const SERVICE: &str = "io.linkerd.proxy.outbound.OutboundPolicies";
/// How long a proxy looks for a protocol.
const DETECT_TIMEOUT: prost_types::Duration = millis(10_000);
/// Latency that an endpoint is believed to have before it is known. See Finagle's peak EWMA.
const DEFAULT_RTT: prost_types::Duration = millis(30);
/// How fast a balancer forgets.
const RTT_DECAY: prost_types::Duration = millis(10_000);
/// Requests that wait for an endpoint. When the only pod of a service is replaced, what is sent until the news of it has
/// come waits: Linkerd's 100 are a tenth of a second of a busy client.
const QUEUE_CAPACITY: u32 = 1000;
/// How long requests wait for an endpoint before they fail.
const FAILFAST: prost_types::Duration = millis(3_000);

/// The service.
#[derive(Debug, Clone)]
pub struct Server {
    index: Index,
    mesh: Arc<Mesh>,
    drain: Drain,
    get: Method,
    watch: Method,
}

/// What a proxy asks about.
enum Subject {
    Addr(SocketAddr),
    Service(Id, u16),
}

impl Server {
    /// A service that answers from this index.
    pub fn new(index: Index, mesh: Arc<Mesh>, drain: Drain, telemetry: &Telemetry) -> Server {
        Server {
            index,
            mesh,
            drain,
            get: Method::new(telemetry, SERVICE, "Get"),
            watch: Method::new(telemetry, SERVICE, "Watch"),
        }
    }

    /// What is asked about, and the namespace of whoever asks.
    fn subject(&self, spec: &TrafficSpec) -> Result<(Subject, String), Status> {
        let client = parse_workload(&spec.source_workload)?.namespace;
        let subject = match &spec.target {
            None => Err(Status::invalid_argument("the target is missing")),
            Some(traffic_spec::Target::Addr(addr)) => {
                let port = u16::try_from(addr.port).ok().filter(|port| *port > 0);
                let port = port.ok_or_else(|| Status::invalid_argument(format!("{} is no port", addr.port)))?;
                let ip = addr.ip.ok_or_else(|| Status::invalid_argument("the target has no address"))?;
                let ip = IpAddr::try_from(ip).map_err(|e| Status::invalid_argument(e.to_string()))?;
                Ok(Subject::Addr(SocketAddr::new(ip, port)))
            }
            Some(traffic_spec::Target::Authority(text)) => {
                let authority = Authority::parse(text, &self.mesh.cluster_domain)?;
                match authority.host {
                    Host::Ip(ip) => Ok(Subject::Addr(SocketAddr::new(ip, authority.port))),
                    Host::Service(id) => Ok(Subject::Service(id, authority.port)),
                    Host::Instance { service, hostname } => Err(Status::not_found(format!(
                        "{hostname} of service {service} is a pod; there are policies for services and addresses"
                    ))),
                }
            }
        };
        Ok((subject?, client))
    }

    async fn start_watch(&self, spec: TrafficSpec) -> Result<Messages<OutboundPolicy>, Status> {
        let (subject, client) = self.subject(&spec)?;
        self.index.synced().await;
        let (mesh, drain, method) = (self.mesh.clone(), self.drain.clone(), &self.watch);
        let mut changed = Changed::default();
        match subject {
            Subject::Addr(addr) => {
                tracing::debug!(%addr, source = spec.source_workload, "watch outbound policy");
                Ok(watched(self.index.watch_ip(addr.ip()), drain, method, move |target| {
                    Next::Send(changed.filter(of_address(&mesh, addr, &target, &client)))
                }))
            }
            Subject::Service(id, port) => {
                tracing::debug!(%id, port, source = spec.source_workload, "watch outbound policy");
                let rx = self.index.watch_service(&id);
                if rx.borrow().is_none() {
                    return Err(Status::not_found(format!("there is no service {id}")));
                }
                Ok(watched(rx, drain, method, move |view| match view {
                    Some(view) => Next::Send(changed.filter(of_service(&mesh, &view.service, port, &client))),
                    None => Next::End(Status::not_found(format!("service {id} is gone"))),
                }))
            }
        }
    }

    async fn get_now(&self, spec: TrafficSpec) -> Result<OutboundPolicy, Status> {
        let (subject, client) = self.subject(&spec)?;
        self.index.synced().await;
        match subject {
            Subject::Addr(addr) => Ok(of_address(&self.mesh, addr, &self.index.watch_ip(addr.ip()).borrow(), &client)),
            Subject::Service(id, port) => match self.index.watch_service(&id).borrow().as_ref() {
                Some(view) => Ok(of_service(&self.mesh, &view.service, port, &client)),
                None => Err(Status::not_found(format!("there is no service {id}"))),
            },
        }
    }
}

#[tonic::async_trait]
impl OutboundPolicies for Server {
    async fn get(&self, request: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        let result = self.get_now(request.into_inner()).await;
        self.get.ended(result)
    }

    type WatchStream = Messages<OutboundPolicy>;

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        match self.start_watch(request.into_inner()).await {
            Ok(stream) => Ok(Response::new(stream)),
            Err(status) => self.watch.ended(Err(status)),
        }
    }
}

/// The policy for an address, of a client of this namespace.
pub fn of_address(mesh: &Mesh, addr: SocketAddr, target: &Target, client: &str) -> OutboundPolicy {
    match target {
        Target::Service(service) => of_service(mesh, service, addr.port(), client),
        Target::Pod(pod) => of_pod(mesh, pod, addr),
        Target::Unknown => {
            let meta = default_meta("egress-fallback");
            let endpoint = WeightedAddr { addr: Some(addr.into()), weight: 1, ..Default::default() };
            let names = Names { http: meta.clone(), opaque: meta.clone() };
            let opaque = Ports::default_opaque().contains(addr.port());
            policy(
                if opaque { Protocol::Opaque } else { Protocol::Detect },
                meta.clone(),
                forward(meta, endpoint),
                names,
            )
        }
    }
}

/// The policy for a pod's own address: there is nothing to balance.
fn of_pod(mesh: &Mesh, pod: &Pod, addr: SocketAddr) -> OutboundPolicy {
    let meta = resource("Pod", &pod.id.name, &pod.id.namespace, addr.port());
    let mut endpoint = weighted(mesh, addr, Some(pod), None);
    endpoint.metric_labels.insert("namespace".to_owned(), pod.id.namespace.clone());
    let protocol = if pod.is_opaque(addr.port()) { Protocol::Opaque } else { Protocol::Detect };
    policy(protocol, meta.clone(), forward(meta, endpoint), Names::default())
}

/// The policy for a port of a service, of a client of this namespace.
fn of_service(mesh: &Mesh, service: &Service, port: u16, client: &str) -> OutboundPolicy {
    let id = &service.id;
    let meta = resource("Service", &id.name, &id.namespace, port);
    let protocol = match service.port(port) {
        Some(port) => port.protocol,
        None if service.headless => Protocol::Detect,
        None => return undefined_port(meta),
    };
    let backend = balanced(mesh, id, port);
    let mut policy = policy(protocol, meta, backend.clone(), Names::default());
    let annotations = Annotations::new(service, None);
    let parent = Parent { mesh, service, backend };
    let routes = service.traffic.routes(id, port, client);
    let grpc: Vec<GrpcRoute> = routes.iter().filter_map(|route| parent.grpc(route)).collect();
    let http: Vec<HttpRoute> = routes.iter().filter_map(|route| parent.http(route)).collect();
    let set = |routes: &mut Vec<HttpRoute>, accrual: &mut Option<FailureAccrual>| {
        if http.is_empty() {
            routes.iter_mut().flat_map(|route| &mut route.rules).for_each(|rule| annotations.on_default(rule));
        } else {
            routes.clone_from(&http);
        }
        *accrual = annotations.accrual();
    };
    match policy.protocol.as_mut().and_then(|protocol| protocol.kind.as_mut()) {
        Some(Kind::Opaque(_)) | None => {}
        // Whoever routes calls says that calls are spoken.
        Some(kind) if !grpc.is_empty() => {
            *kind = Kind::Grpc(Grpc { routes: grpc, failure_accrual: annotations.accrual() });
        }
        Some(Kind::Http1(h)) => set(&mut h.routes, &mut h.failure_accrual),
        Some(Kind::Http2(h)) => set(&mut h.routes, &mut h.failure_accrual),
        Some(Kind::Detect(detect)) => {
            detect.http1.iter_mut().for_each(|h| set(&mut h.routes, &mut h.failure_accrual));
            detect.http2.iter_mut().for_each(|h| set(&mut h.routes, &mut h.failure_accrual));
        }
        Some(Kind::Grpc(_) | Kind::Tls(_)) => {}
    }
    policy
}

/// The endpoints of a service, balanced.
pub(super) fn balanced(mesh: &Mesh, id: &Id, port: u16) -> Backend {
    let path = format!("{}:{port}", mesh.service_name(&id.name, &id.namespace));
    let balancer = BalanceP2c {
        discovery: Some(EndpointDiscovery { kind: Some(DiscoveryKind::Dst(DestinationGet { path })) }),
        load: Some(Load::PeakEwma(PeakEwma { default_rtt: Some(DEFAULT_RTT), decay: Some(RTT_DECAY) })),
    };
    backend(resource("Service", &id.name, &id.namespace, port), BackendKind::Balancer(balancer))
}

/// A service is known by this address but has no such port: connecting would go nowhere, so it is refused with a reason.
fn undefined_port(meta: Metadata) -> OutboundPolicy {
    let rule = opaque_route::Rule {
        backends: Some(opaque_route::Distribution {
            kind: Some(opaque_route::distribution::Kind::Empty(opaque_route::distribution::Empty {})),
        }),
        filters: vec![opaque_route::Filter { kind: Some(opaque_route::filter::Kind::Forbidden(Forbidden {})) }],
    };
    let route = OpaqueRoute { metadata: Some(default_meta("undefined-port")), rules: vec![rule] };
    OutboundPolicy {
        protocol: Some(ProxyProtocol { kind: Some(Kind::Opaque(Opaque { routes: vec![route] })) }),
        metadata: Some(meta),
    }
}

/// How the default routes are called.
struct Names {
    http: Metadata,
    opaque: Metadata,
}

impl Default for Names {
    fn default() -> Names {
        Names { http: default_meta("http"), opaque: default_meta("opaq") }
    }
}

/// Everything to one backend, by whatever protocol.
fn policy(protocol: Protocol, meta: Metadata, backend: Backend, names: Names) -> OutboundPolicy {
    let opaque = || Opaque { routes: vec![opaque_route(names.opaque.clone(), backend.clone())] };
    let http = || vec![http_route(names.http.clone(), backend.clone())];
    let kind = match protocol {
        Protocol::Opaque => Kind::Opaque(opaque()),
        Protocol::Http1 => Kind::Http1(Http1 { routes: http(), failure_accrual: None }),
        Protocol::Http2 => Kind::Http2(Http2 { routes: http(), failure_accrual: None }),
        Protocol::Detect => Kind::Detect(Detect {
            timeout: Some(DETECT_TIMEOUT),
            opaque: Some(opaque()),
            http1: Some(Http1 { routes: http(), failure_accrual: None }),
            http2: Some(Http2 { routes: http(), failure_accrual: None }),
        }),
    };
    OutboundPolicy { protocol: Some(ProxyProtocol { kind: Some(kind) }), metadata: Some(meta) }
}

fn backend(meta: Metadata, kind: BackendKind) -> Backend {
    let queue = Queue { capacity: QUEUE_CAPACITY, failfast_timeout: Some(FAILFAST) };
    Backend { metadata: Some(meta), queue: Some(queue), kind: Some(kind) }
}

fn forward(meta: Metadata, endpoint: WeightedAddr) -> Backend {
    backend(meta, BackendKind::Forward(endpoint))
}

fn opaque_route(meta: Metadata, backend: Backend) -> OpaqueRoute {
    let backends = vec![opaque_route::RouteBackend { backend: Some(backend), filters: Vec::new() }];
    let rule = opaque_route::Rule {
        backends: Some(opaque_route::Distribution {
            kind: Some(opaque_route::distribution::Kind::FirstAvailable(opaque_route::distribution::FirstAvailable {
                backends,
            })),
        }),
        filters: Vec::new(),
    };
    OpaqueRoute { metadata: Some(meta), rules: vec![rule] }
}

fn http_route(meta: Metadata, backend: Backend) -> HttpRoute {
    let backends = vec![http_route::RouteBackend { backend: Some(backend), ..Default::default() }];
    let path = PathMatch { kind: Some(path_match::Kind::Prefix("/".to_owned())) };
    let rule = http_route::Rule {
        matches: vec![HttpRouteMatch { path: Some(path), ..Default::default() }],
        backends: Some(http_route::Distribution {
            kind: Some(http_route::distribution::Kind::FirstAvailable(http_route::distribution::FirstAvailable {
                backends,
            })),
        }),
        ..Default::default()
    };
    HttpRoute { metadata: Some(meta), hosts: Vec::new(), rules: vec![rule] }
}
