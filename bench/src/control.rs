//! A control plane for one proxy, in clear text on loopback: identity, destination and policy of one service with one
//! endpoint, from the published API alone. Every stream sends its one message and stays open.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkerd2_proxy_api::{
    destination::{
        DestinationProfile, GetDestination, ProtocolHint, TlsIdentity, Update, WeightedAddr, WeightedAddrSet,
        destination_server::{Destination, DestinationServer},
        protocol_hint::{H2, OpaqueTransport, Protocol},
        tls_identity::{DnsLikeIdentity, Strategy},
        update,
    },
    http_route::{HttpRouteMatch, PathMatch, path_match},
    identity::{
        CertifyRequest, CertifyResponse,
        identity_server::{Identity, IdentityServer},
    },
    inbound::{
        self, Authn, Authz, Network, PortSpec, Server as Policy, authn,
        inbound_server_policies_server::{InboundServerPolicies, InboundServerPoliciesServer},
    },
    meta::{Metadata, Resource, metadata},
    outbound::{
        self, Backend, OutboundPolicy, Queue, TrafficSpec, backend,
        outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer},
        traffic_spec,
    },
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};

use crate::pki::{LIFETIME, Root};

const SERVICE_NAME: &str = "app.bench.svc.cluster.local";
const DETECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What to serve.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Where to listen
    #[arg(long)]
    pub listen: SocketAddr,
    /// Directory of the root that signs certificates
    #[arg(long)]
    pub root: PathBuf,
    /// Address of the service, any port
    #[arg(long)]
    pub service: IpAddr,
    /// Address of its one endpoint, any port
    #[arg(long)]
    pub endpoint: IpAddr,
    /// Identity of the endpoint
    #[arg(long)]
    pub identity: String,
    /// The inbound port of the endpoint's proxy
    #[arg(long)]
    pub inbound_port: u16,
}

/// Serves until killed.
///
/// # Errors
///
/// When the root cannot be read or the address is taken.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    serve(TcpListener::bind(settings.listen).await?, settings).await
}

async fn serve(listener: TcpListener, settings: Settings) -> anyhow::Result<()> {
    let plane = Plane { root: Arc::new(Root::load(&settings.root)?), settings: Arc::new(settings) };
    let router = Server::builder()
        .add_service(IdentityServer::new(plane.clone()))
        .add_service(DestinationServer::new(plane.clone()))
        .add_service(InboundServerPoliciesServer::new(plane.clone()))
        .add_service(OutboundPoliciesServer::new(plane));
    Ok(router.serve_with_incoming(TcpListenerStream::new(listener)).await?)
}

#[derive(Clone)]
struct Plane {
    settings: Arc<Settings>,
    root: Arc<Root>,
}

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn once<T: Send + 'static>(message: T) -> Response<Updates<T>> {
    Response::new(Box::pin(tokio_stream::once(Ok(message)).chain(tokio_stream::pending())))
}

fn duration(value: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(value).ok()
}

fn default_metadata(name: &str) -> Option<Metadata> {
    Some(Metadata { kind: Some(metadata::Kind::Default(name.into())) })
}

fn service_metadata(port: u16) -> Option<Metadata> {
    let resource = Resource {
        group: "core".into(),
        kind: "Service".into(),
        name: "app".into(),
        namespace: "bench".into(),
        port: port.into(),
        ..Resource::default()
    };
    Some(Metadata { kind: Some(metadata::Kind::Resource(resource)) })
}

#[tonic::async_trait]
impl Identity for Plane {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let request = request.into_inner();
        let leaf = self.root.sign(&request.certificate_signing_request);
        let leaf = leaf.map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        Ok(Response::new(CertifyResponse {
            leaf_certificate: leaf,
            intermediate_certificates: Vec::new(),
            valid_until: Some((SystemTime::now() + LIFETIME).into()),
        }))
    }
}

impl Plane {
    /// The port of the service that an address or a name with a port stands for.
    fn service_port(&self, path: &str) -> Option<u16> {
        if let Ok(address) = path.parse::<SocketAddr>() {
            return (address.ip() == self.settings.service).then(|| address.port());
        }
        let (name, port) = path.rsplit_once(':')?;
        (name.trim_end_matches('.') == SERVICE_NAME).then(|| port.parse().ok())?
    }

    fn endpoint(&self, port: u16) -> WeightedAddr {
        let labels = [("namespace", "bench"), ("pod", "server"), ("service", "app"), ("deployment", "server")];
        let name = || Some(DnsLikeIdentity { name: self.settings.identity.clone() });
        WeightedAddr {
            addr: Some(SocketAddr::new(self.settings.endpoint, port).into()),
            weight: 10_000,
            metric_labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            tls_identity: Some(TlsIdentity { strategy: name().map(Strategy::DnsLikeIdentity), server_name: name() }),
            protocol_hint: Some(ProtocolHint {
                protocol: Some(Protocol::H2(H2 {})),
                opaque_transport: Some(OpaqueTransport { inbound_port: self.settings.inbound_port.into() }),
            }),
            ..WeightedAddr::default()
        }
    }
}

#[tonic::async_trait]
impl Destination for Plane {
    type GetStream = Updates<Update>;
    type GetProfileStream = Updates<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        let path = request.into_inner().path;
        let port = self.service_port(&path).ok_or_else(|| Status::not_found(path))?;
        let add = WeightedAddrSet { addrs: vec![self.endpoint(port)], ..WeightedAddrSet::default() };
        Ok(once(Update { update: Some(update::Update::Add(add)) }))
    }

    async fn get_profile(&self, request: Request<GetDestination>) -> Result<Response<Self::GetProfileStream>, Status> {
        let profile = match self.service_port(&request.into_inner().path) {
            Some(port) => DestinationProfile {
                fully_qualified_name: SERVICE_NAME.into(),
                parent_ref: service_metadata(port),
                ..DestinationProfile::default()
            },
            None => DestinationProfile::default(),
        };
        Ok(once(profile))
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for Plane {
    type WatchPortStream = Updates<Policy>;

    async fn get_port(&self, _: Request<PortSpec>) -> Result<Response<Policy>, Status> {
        Ok(Response::new(inbound_policy()))
    }

    async fn watch_port(&self, _: Request<PortSpec>) -> Result<Response<Self::WatchPortStream>, Status> {
        Ok(once(inbound_policy()))
    }
}

fn inbound_policy() -> Policy {
    let route = inbound::HttpRoute {
        metadata: default_metadata("default"),
        rules: vec![inbound::http_route::Rule { matches: vec![any_path()], filters: Vec::new() }],
        ..inbound::HttpRoute::default()
    };
    let detect = inbound::proxy_protocol::Detect {
        timeout: duration(DETECT_TIMEOUT),
        http_routes: vec![route],
        http_local_rate_limit: None,
    };
    let everywhere = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
    let everybody = Authz {
        networks: everywhere.map(|ip| Network { net: Some((ip, 0).into()), except: Vec::new() }).into(),
        authentication: Some(Authn { permit: Some(authn::Permit::Unauthenticated(authn::PermitUnauthenticated {})) }),
        metadata: default_metadata("all-unauthenticated"),
        ..Authz::default()
    };
    Policy {
        protocol: Some(inbound::ProxyProtocol { kind: Some(inbound::proxy_protocol::Kind::Detect(detect)) }),
        authorizations: vec![everybody],
        ..Policy::default()
    }
}

fn any_path() -> HttpRouteMatch {
    let path = PathMatch { kind: Some(path_match::Kind::Prefix("/".into())) };
    HttpRouteMatch { path: Some(path), ..HttpRouteMatch::default() }
}

#[tonic::async_trait]
impl OutboundPolicies for Plane {
    type WatchStream = Updates<OutboundPolicy>;

    async fn get(&self, request: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        self.outbound_policy(request.into_inner()).map(Response::new)
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        self.outbound_policy(request.into_inner()).map(once)
    }
}

impl Plane {
    fn outbound_policy(&self, spec: TrafficSpec) -> Result<OutboundPolicy, Status> {
        let target = match spec.target {
            Some(traffic_spec::Target::Addr(address)) => {
                SocketAddr::try_from(address).map_err(|error| Status::invalid_argument(error.to_string()))?.to_string()
            }
            Some(traffic_spec::Target::Authority(authority)) => authority,
            None => return Err(Status::invalid_argument("no target")),
        };
        let port = self.service_port(&target).ok_or_else(|| Status::not_found(target))?;
        let backend = balancer(port);
        let http = vec![http_route(backend.clone())];
        let detect = outbound::proxy_protocol::Detect {
            timeout: duration(DETECT_TIMEOUT),
            opaque: Some(outbound::proxy_protocol::Opaque { routes: vec![opaque_route(backend)] }),
            http1: Some(outbound::proxy_protocol::Http1 { routes: http.clone(), failure_accrual: None }),
            http2: Some(outbound::proxy_protocol::Http2 { routes: http, failure_accrual: None }),
        };
        Ok(OutboundPolicy {
            protocol: Some(outbound::ProxyProtocol { kind: Some(outbound::proxy_protocol::Kind::Detect(detect)) }),
            metadata: service_metadata(port),
        })
    }
}

fn balancer(port: u16) -> Backend {
    use backend::{BalanceP2c, EndpointDiscovery, Kind, balance_p2c, endpoint_discovery};
    let path = format!("{SERVICE_NAME}:{port}");
    let discovery = endpoint_discovery::Kind::Dst(endpoint_discovery::DestinationGet { path });
    let ewma = balance_p2c::PeakEwma {
        default_rtt: duration(Duration::from_millis(30)),
        decay: duration(Duration::from_secs(10)),
    };
    Backend {
        metadata: service_metadata(port),
        queue: Some(Queue { capacity: 100, failfast_timeout: duration(Duration::from_secs(3)) }),
        kind: Some(Kind::Balancer(BalanceP2c {
            discovery: Some(EndpointDiscovery { kind: Some(discovery) }),
            load: Some(balance_p2c::Load::PeakEwma(ewma)),
        })),
    }
}

fn http_route(backend: Backend) -> outbound::HttpRoute {
    use outbound::http_route::{Distribution, RouteBackend, Rule, distribution};
    let backend = RouteBackend { backend: Some(backend), ..RouteBackend::default() };
    let first = distribution::FirstAvailable { backends: vec![backend] };
    let rule = Rule {
        matches: vec![any_path()],
        backends: Some(Distribution { kind: Some(distribution::Kind::FirstAvailable(first)) }),
        ..Rule::default()
    };
    outbound::HttpRoute { metadata: default_metadata("http"), hosts: Vec::new(), rules: vec![rule] }
}

fn opaque_route(backend: Backend) -> outbound::OpaqueRoute {
    use outbound::opaque_route::{Distribution, RouteBackend, Rule, distribution};
    let backend = RouteBackend { backend: Some(backend), filters: Vec::new() };
    let first = distribution::FirstAvailable { backends: vec![backend] };
    let rule = Rule {
        backends: Some(Distribution { kind: Some(distribution::Kind::FirstAvailable(first)) }),
        filters: Vec::new(),
    };
    outbound::OpaqueRoute { metadata: default_metadata("opaque"), rules: vec![rule] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkerd2_proxy_api::{
        destination::destination_client::DestinationClient, identity::identity_client::IdentityClient,
        inbound::inbound_server_policies_client::InboundServerPoliciesClient,
        outbound::outbound_policies_client::OutboundPoliciesClient,
    };
    use tonic::Code;

    async fn first<T>(streaming: Result<Response<tonic::Streaming<T>>, Status>) -> Result<T, Status> {
        streaming?.into_inner().message().await.map(|message| message.expect("the stream ended"))
    }

    fn path(path: &str) -> GetDestination {
        GetDestination { path: path.into(), ..GetDestination::default() }
    }

    #[tokio::test]
    async fn every_service_answers_about_the_one_service_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new().unwrap();
        root.save(directory.path()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Settings {
            listen: listener.local_addr().unwrap(),
            root: directory.path().into(),
            service: "10.250.0.10".parse().unwrap(),
            endpoint: "10.251.0.2".parse().unwrap(),
            identity: "server.test".into(),
            inbound_port: 4143,
        };
        let url = format!("http://{}", settings.listen);
        let server = tokio::spawn(serve(listener, settings));

        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::new(vec!["client.test".into()]).unwrap();
        let request = request.serialize_request(&key).unwrap().der().to_vec();
        let mut identity = IdentityClient::connect(url.clone()).await.unwrap();
        let ask = CertifyRequest { certificate_signing_request: request, ..CertifyRequest::default() };
        let answer = identity.certify(ask).await.unwrap().into_inner();
        assert!(!answer.leaf_certificate.is_empty() && answer.valid_until.is_some());
        assert_eq!(identity.certify(CertifyRequest::default()).await.unwrap_err().code(), Code::InvalidArgument);

        let mut destination = DestinationClient::connect(url.clone()).await.unwrap();
        let profile = first(destination.get_profile(path("10.250.0.10:8080")).await).await.unwrap();
        assert_eq!(profile.fully_qualified_name, SERVICE_NAME);
        let profile = first(destination.get_profile(path("10.9.9.9:8080")).await).await.unwrap();
        assert_eq!(profile, DestinationProfile::default());
        let update = first(destination.get(path("app.bench.svc.cluster.local:8080")).await).await.unwrap();
        let Some(update::Update::Add(add)) = update.update else { panic!("{update:?}") };
        let address = SocketAddr::try_from(add.addrs[0].addr.unwrap()).unwrap();
        assert_eq!(address, "10.251.0.2:8080".parse().unwrap());
        let unknown = first(destination.get(path("other.bench.svc.cluster.local:8080")).await).await;
        assert_eq!(unknown.unwrap_err().code(), Code::NotFound);

        let mut inbound = InboundServerPoliciesClient::connect(url.clone()).await.unwrap();
        let policy = first(inbound.watch_port(PortSpec::default()).await).await.unwrap();
        assert_eq!(policy.authorizations.len(), 1);

        let mut outbound = OutboundPoliciesClient::connect(url).await.unwrap();
        let spec = |address: SocketAddr| TrafficSpec {
            target: Some(traffic_spec::Target::Addr(address.into())),
            ..TrafficSpec::default()
        };
        let policy = first(outbound.watch(spec(([10, 250, 0, 10], 8081).into())).await).await.unwrap();
        assert_eq!(policy.metadata, service_metadata(8081));
        let unknown = first(outbound.watch(spec(([10, 9, 9, 9], 8081).into())).await).await;
        assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
        server.abort();
    }
}
