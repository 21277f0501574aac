//! The fake control plane: the four services of `linkerd2-proxy-api` with a CA of their own, scripted by the test.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http_body_util::StreamBody;
use hyper::service::Service as _;
use linkerd2_proxy_api::{
    destination::{
        AddrSet, DestinationProfile, GetDestination, NoEndpoints, Update, WeightedAddr, WeightedAddrSet,
        destination_server::{Destination, DestinationServer},
        update,
    },
    identity::{
        CertifyRequest, CertifyResponse,
        identity_server::{Identity, IdentityServer},
    },
    inbound::{
        PortSpec, Server,
        inbound_server_policies_server::{InboundServerPolicies, InboundServerPoliciesServer},
    },
    outbound::{
        OutboundPolicy, TrafficSpec,
        outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer},
        traffic_spec,
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status};

use super::{netns::Netns, policies};

/// How certificate requests are answered.
#[derive(Clone)]
pub enum Certify {
    /// With a certificate of that lifetime, if token and signing request are right.
    Accept {
        /// From now.
        lifetime: Duration,
    },
    /// With this status.
    Refuse(Status),
    /// Never.
    Stall,
    /// With octets that are no certificate.
    Nonsense,
    /// With a certificate of another CA.
    OtherCa,
    /// With a certificate for another name.
    OtherName,
}

/// A certificate request as it came in.
#[derive(Debug, Clone)]
pub struct Certified {
    /// Who asked.
    pub identity: String,
    /// The token shown.
    pub token: String,
    /// The signing request.
    pub csr: Vec<u8>,
    /// Whether it was granted.
    pub granted: bool,
}

/// What a service has.
#[derive(Clone)]
pub enum Endpoints {
    /// These endpoints; changes are sent as additions and removals.
    Set(Vec<WeightedAddr>),
    /// The service does not exist.
    DoesNotExist,
    /// Exactly this message.
    Raw(Update),
}

/// What every watch is answered with instead of messages.
#[derive(Clone)]
pub enum Garbage {
    /// Nothing at all.
    Silence,
    /// A body of these octets.
    Body {
        /// Whatever they are.
        octets: Bytes,
        /// The body does not end after them.
        stalls: bool,
    },
}

type Answer<T> = Result<T, Status>;
type Topics<K, T> = Mutex<HashMap<K, watch::Sender<Answer<T>>>>;

struct Shared {
    root: CertifiedIssuer<'static, KeyPair>,
    issuer: CertifiedIssuer<'static, KeyPair>,
    stranger: CertifiedIssuer<'static, KeyPair>,
    certify: watch::Sender<Certify>,
    tokens: Mutex<HashMap<String, String>>,
    certified: Mutex<Vec<Certified>>,
    inbound: Topics<u16, Server>,
    outbound: Topics<SocketAddr, OutboundPolicy>,
    profiles: Topics<String, DestinationProfile>,
    endpoints: Topics<String, Endpoints>,
    garbage: Mutex<Option<Garbage>>,
    /// Calls by name, such as `Watch 10.96.0.1:80`.
    calls: Mutex<Vec<String>>,
}

struct Running {
    runtime: tokio::runtime::Runtime,
}

/// Where the control plane listens.
#[derive(Clone)]
struct Place {
    addr: SocketAddr,
    /// In which namespace; `None`: that of the tests.
    ns: Option<Netns>,
    /// With mutual TLS, under this name; `None`: in plaintext, as on loopback.
    tls: Option<Arc<rustls::ServerConfig>>,
}

/// A control plane.
pub struct FakeControl {
    shared: Arc<Shared>,
    places: Mutex<Vec<Place>>,
    running: Mutex<Option<Running>>,
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl FakeControl {
    /// Starts one that grants certificates for a day, allows every inbound connection, and knows no outbound address.
    pub fn start() -> Self {
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(ca("root.test"), key()).unwrap();
        let issuer = CertifiedIssuer::signed_by(ca("identity.test"), key(), &root).unwrap();
        let stranger = CertifiedIssuer::self_signed(ca("identity.test"), key()).unwrap();
        let shared = Shared {
            root,
            issuer,
            stranger,
            certify: watch::channel(Certify::Accept { lifetime: Duration::from_secs(24 * 60 * 60) }).0,
            tokens: Mutex::default(),
            certified: Mutex::default(),
            inbound: Mutex::default(),
            outbound: Mutex::default(),
            profiles: Mutex::default(),
            endpoints: Mutex::default(),
            garbage: Mutex::default(),
            calls: Mutex::default(),
        };
        let control = Self { shared: Arc::new(shared), places: Mutex::default(), running: Mutex::new(None) };
        control.resume();
        control
    }

    /// Listens on loopback of the tests' own namespace.
    pub fn listen(&self) -> SocketAddr {
        self.listen_at(SocketAddr::from(([127, 0, 0, 1], 0)), None, None)
    }

    /// Listens on loopback of a namespace, on a port that nobody is given by the system: while the control plane is
    /// paused, no other socket gets it.
    pub fn listen_in(&self, ns: &Netns) -> SocketAddr {
        let taken = self.places.lock().unwrap().len();
        let port = 8086 + u16::try_from(taken).unwrap();
        self.listen_at(SocketAddr::from(([127, 0, 0, 1], port)), Some(ns.clone()), None)
    }

    /// Listens with TLS, under a name, in a namespace. Clients that show a certificate are recorded in
    /// [`FakeControl::calls`] as `TLS <identity>`, others as `TLS -`.
    pub fn listen_tls(&self, ns: &Netns, ip: IpAddr, name: &str) -> SocketAddr {
        let (chain, key) = self.issue(name);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        self.listen_at(SocketAddr::new(ip, 8086), Some(ns.clone()), Some(Arc::new(config)))
    }

    fn listen_at(&self, addr: SocketAddr, ns: Option<Netns>, tls: Option<Arc<rustls::ServerConfig>>) -> SocketAddr {
        let listener = bind(addr, ns.as_ref());
        let addr = listener.local_addr().unwrap();
        self.places.lock().unwrap().push(Place { addr, ns, tls: tls.clone() });
        self.serve(listener, tls);
        addr
    }

    fn serve(&self, listener: std::net::TcpListener, tls: Option<Arc<rustls::ServerConfig>>) {
        listener.set_nonblocking(true).unwrap();
        let services = Services(self.shared.clone());
        let routes = tonic::service::Routes::new(IdentityServer::new(services.clone()))
            .add_service(InboundServerPoliciesServer::new(services.clone()))
            .add_service(OutboundPoliciesServer::new(services.clone()))
            .add_service(DestinationServer::new(services.clone()))
            .prepare();
        let running = self.running.lock().unwrap();
        let running = running.as_ref().expect("the control plane is paused");
        running.runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, tls.clone(), routes.clone(), services.clone()));
            }
        });
    }

    /// Ends all connections and listens no more, until [`FakeControl::resume`]. Only where it listens in namespaces:
    /// elsewhere another test might be given its port meanwhile.
    pub fn pause(&self) {
        assert!(self.places.lock().unwrap().iter().all(|p| p.ns.is_some()), "pausing needs namespaces");
        self.stop();
    }

    fn stop(&self) {
        if let Some(running) = self.running.lock().unwrap().take() {
            // On a thread of its own, as a test's own runtime does not allow blocking.
            std::thread::spawn(move || running.runtime.shutdown_timeout(super::DEADLINE)).join().unwrap();
        }
    }

    /// Listens again where it did before.
    pub fn resume(&self) {
        {
            let mut running = self.running.lock().unwrap();
            if running.is_some() {
                return;
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            *running = Some(Running { runtime });
        }
        let places = self.places.lock().unwrap().clone();
        for Place { addr, ns, tls } in places {
            self.serve(bind(addr, ns.as_ref()), tls);
        }
    }

    /// The trust anchor, PEM.
    pub fn trust_anchors(&self) -> String {
        self.shared.root.pem()
    }

    /// The trust anchor, DER.
    pub fn root(&self) -> rustls::pki_types::CertificateDer<'static> {
        self.shared.root.der().clone()
    }

    /// The token that is accepted for an identity from now on.
    pub fn set_token(&self, identity: &str, token: &str) {
        self.shared.tokens.lock().unwrap().insert(identity.into(), token.into());
    }

    /// How certificate requests are answered from now on; stalled ones too.
    pub fn set_certify(&self, certify: Certify) {
        self.shared.certify.send_replace(certify);
    }

    /// All certificate requests so far.
    pub fn certified(&self) -> Vec<Certified> {
        self.shared.certified.lock().unwrap().clone()
    }

    /// All other calls so far, such as `WatchPort 8080`, `Watch 10.96.0.1:80`, `GetProfile 10.96.0.1:80`, `Get web:80`.
    pub fn calls(&self) -> Vec<String> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// The policy of an inbound port of every proxy.
    pub fn set_inbound(&self, port: u16, policy: Answer<Server>) {
        set(&self.shared.inbound, port, policy);
    }

    /// The policy of an outbound address.
    pub fn set_outbound(&self, addr: SocketAddr, policy: Answer<OutboundPolicy>) {
        set(&self.shared.outbound, addr, policy);
    }

    /// The profile of an address or name.
    pub fn set_profile(&self, path: impl ToString, profile: Answer<DestinationProfile>) {
        set(&self.shared.profiles, path.to_string(), profile);
    }

    /// The endpoints of a service.
    pub fn set_endpoints(&self, path: &str, endpoints: Endpoints) {
        set(&self.shared.endpoints, path.to_owned(), Ok(endpoints));
    }

    /// Answers all watches that are opened from now on with that, or again as it should. They are recorded in
    /// [`FakeControl::calls`] as `garbage <path>`.
    pub fn set_garbage(&self, garbage: Option<Garbage>) {
        *self.shared.garbage.lock().unwrap() = garbage;
    }

    /// A certificate and key of this CA, for tests that speak TLS themselves: leaf and issuer, and the key in PKCS#8.
    pub fn issue(
        &self,
        name: &str,
    ) -> (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.shared.issuer).unwrap();
        let chain = vec![leaf.der().clone(), self.shared.issuer.der().clone()];
        (chain, rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }
}

impl Drop for FakeControl {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
    routes: tonic::service::Routes,
    services: Services,
) {
    let routes = hyper_util::service::TowerToHyperService::new(routes);
    let garbled = services.clone();
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let garbage = garbled.garbage(request.uri().path());
        let answer = routes.call(request);
        async move {
            match garbage {
                None => answer.await,
                Some(Garbage::Silence) => std::future::pending().await,
                Some(Garbage::Body { octets, stalls }) => Ok(garbled_answer(octets, stalls)),
            }
        }
    });
    let http = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    // A connection that breaks is the client's to report.
    let _ = match tls {
        None => http.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await,
        Some(config) => {
            let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else { return };
            let client =
                stream.get_ref().1.peer_certificates().and_then(|c| weft_proxy::identity::peer_identity(&c[0]));
            services.called(format!("TLS {}", client.as_deref().unwrap_or("-")));
            http.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await
        }
    };
}

fn garbled_answer(octets: Bytes, stalls: bool) -> http::Response<tonic::body::Body> {
    let octets = futures_util::stream::iter([Ok::<_, Status>(hyper::body::Frame::data(octets))]);
    let body = match stalls {
        true => tonic::body::Body::new(StreamBody::new(octets.chain(futures_util::stream::pending()))),
        false => tonic::body::Body::new(StreamBody::new(octets)),
    };
    http::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

fn bind(addr: SocketAddr, ns: Option<&Netns>) -> std::net::TcpListener {
    // The standard library sets SO_REUSEADDR. But a process that another test starts at this moment has all files of this
    // one until it executes its program: also a listener that was closed here.
    super::eventually(&format!("{addr} to be free"), || match ns {
        Some(ns) => ns.enter(|| std::net::TcpListener::bind(addr)).ok(),
        None => std::net::TcpListener::bind(addr).ok(),
    })
}

fn set<K: std::hash::Hash + Eq, T>(topics: &Topics<K, T>, key: K, value: Answer<T>) {
    let mut topics = topics.lock().unwrap();
    match topics.get(&key) {
        Some(topic) => drop(topic.send_replace(value)),
        None => drop(topics.insert(key, watch::channel(value).0)),
    }
}

fn subscribe<K: std::hash::Hash + Eq, T>(
    topics: &Topics<K, T>,
    key: K,
    default: impl FnOnce() -> Answer<T>,
) -> watch::Receiver<Answer<T>> {
    topics.lock().unwrap().entry(key).or_insert_with(|| watch::channel(default()).0).subscribe()
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Answer<T>> + Send>>;

/// Sends what a topic has and every change of it; a status ends the stream.
fn stream<T: Clone + Send + Sync + 'static, M: Send + 'static>(
    mut topic: watch::Receiver<Answer<T>>,
    mut messages: impl FnMut(T) -> Vec<M> + Send + 'static,
) -> Answer<Response<Streamed<M>>> {
    if let Err(status) = &*topic.borrow() {
        return Err(status.clone());
    }
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let value = topic.borrow_and_update().clone();
            let out = match value {
                Ok(value) => messages(value).into_iter().map(Ok).collect(),
                Err(status) => vec![Err(status)],
            };
            for item in out {
                let ends = item.is_err();
                if tx.send(item).await.is_err() || ends {
                    return;
                }
            }
            tokio::select! {
                changed = topic.changed() => if changed.is_err() { return },
                () = tx.closed() => return,
            }
        }
    });
    Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(rx))))
}

#[derive(Clone)]
struct Services(Arc<Shared>);

impl Services {
    fn called(&self, call: String) {
        self.0.calls.lock().unwrap().push(call);
    }

    /// What a call of that path is answered with, if with nonsense.
    fn garbage(&self, path: &str) -> Option<Garbage> {
        let garbage = self.0.garbage.lock().unwrap().clone().filter(|_| !path.ends_with("/Certify"))?;
        self.called(format!("garbage {path}"));
        Some(garbage)
    }

    fn grant(&self, request: &CertifyRequest, how: &Certify) -> Answer<CertifyResponse> {
        let expected = self.0.tokens.lock().unwrap().get(&request.identity).cloned();
        let token = String::from_utf8_lossy(&request.token);
        if expected.as_deref() != Some(&*token) {
            return Err(Status::failed_precondition("wrong token"));
        }
        let csr = rcgen::CertificateSigningRequestParams::from_der(&request.certificate_signing_request.clone().into())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let [rcgen::SanType::DnsName(name)] = &csr.params.subject_alt_names[..] else {
            return Err(Status::failed_precondition("not exactly one DNS name"));
        };
        if name.as_str() != request.identity {
            return Err(Status::failed_precondition("another name"));
        }
        let lifetime = match how {
            Certify::Refuse(status) => return Err(status.clone()),
            Certify::Accept { lifetime } => *lifetime,
            _ => Duration::from_secs(60 * 60),
        };
        let now = SystemTime::now();
        let mut csr = csr;
        csr.params.not_before = (now - Duration::from_secs(20)).into();
        csr.params.not_after = (now + lifetime).into();
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if matches!(how, Certify::OtherName) {
            csr.params.subject_alt_names = vec![rcgen::SanType::DnsName("other.test".try_into().unwrap())];
        }
        let issuer = if matches!(how, Certify::OtherCa) { &self.0.stranger } else { &self.0.issuer };
        let leaf = match how {
            Certify::Nonsense => b"this is no certificate".to_vec(),
            _ => csr.signed_by(issuer).unwrap().der().to_vec(),
        };
        Ok(CertifyResponse {
            leaf_certificate: leaf,
            intermediate_certificates: vec![issuer.der().to_vec()],
            valid_until: Some((now + lifetime).into()),
        })
    }
}

#[tonic::async_trait]
impl Identity for Services {
    async fn certify(&self, request: Request<CertifyRequest>) -> Answer<Response<CertifyResponse>> {
        let request = request.into_inner();
        let how = self
            .0
            .certify
            .subscribe()
            .wait_for(|c| !matches!(c, Certify::Stall))
            .await
            .map_err(|_| Status::cancelled("over"))?
            .clone();
        let answer = self.grant(&request, &how);
        self.0.certified.lock().unwrap().push(Certified {
            identity: request.identity,
            token: String::from_utf8_lossy(&request.token).into_owned(),
            csr: request.certificate_signing_request,
            granted: answer.is_ok(),
        });
        answer.map(Response::new)
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for Services {
    type WatchPortStream = Streamed<Server>;

    async fn get_port(&self, _: Request<PortSpec>) -> Answer<Response<Server>> {
        Err(Status::unimplemented("proxies watch"))
    }

    async fn watch_port(&self, request: Request<PortSpec>) -> Answer<Response<Self::WatchPortStream>> {
        let port = u16::try_from(request.into_inner().port).map_err(|_| Status::invalid_argument("port"))?;
        self.called(format!("WatchPort {port}"));
        let allow = || Ok(policies::server(vec![policies::allow_all()]));
        stream(subscribe(&self.0.inbound, port, allow), |server| vec![server])
    }
}

#[tonic::async_trait]
impl OutboundPolicies for Services {
    type WatchStream = Streamed<OutboundPolicy>;

    async fn get(&self, _: Request<TrafficSpec>) -> Answer<Response<OutboundPolicy>> {
        Err(Status::unimplemented("proxies watch"))
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Answer<Response<Self::WatchStream>> {
        let Some(traffic_spec::Target::Addr(addr)) = request.into_inner().target else {
            return Err(Status::invalid_argument("no address"));
        };
        let addr = SocketAddr::try_from(addr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        self.called(format!("Watch {addr}"));
        let unknown = || Err(Status::not_found("no such address"));
        stream(subscribe(&self.0.outbound, addr, unknown), |policy| vec![policy])
    }
}

#[tonic::async_trait]
impl Destination for Services {
    type GetStream = Streamed<Update>;
    type GetProfileStream = Streamed<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Answer<Response<Self::GetStream>> {
        let path = request.into_inner().path;
        self.called(format!("Get {path}"));
        let unknown = || Err(Status::not_found("no such service"));
        let mut sent: BTreeMap<SocketAddr, WeightedAddr> = BTreeMap::new();
        let mut first = true;
        stream(subscribe(&self.0.endpoints, path, unknown), move |endpoints| {
            let begins = std::mem::replace(&mut first, false);
            changes(&mut sent, endpoints, begins)
        })
    }

    async fn get_profile(&self, request: Request<GetDestination>) -> Answer<Response<Self::GetProfileStream>> {
        let path = request.into_inner().path;
        self.called(format!("GetProfile {path}"));
        let unknown = || Err(Status::not_found("no such profile"));
        stream(subscribe(&self.0.profiles, path, unknown), |profile| vec![profile])
    }
}

/// The messages that turn what was sent into what is there now.
fn changes(sent: &mut BTreeMap<SocketAddr, WeightedAddr>, now: Endpoints, begins: bool) -> Vec<Update> {
    let update = |u| Update { update: Some(u) };
    let none = |exists| update(update::Update::NoEndpoints(NoEndpoints { exists }));
    let set = match now {
        Endpoints::Raw(raw) => return vec![raw],
        Endpoints::DoesNotExist => {
            sent.clear();
            return vec![none(false)];
        }
        Endpoints::Set(set) => set,
    };
    let now: BTreeMap<SocketAddr, WeightedAddr> =
        set.into_iter().map(|e| (e.addr.unwrap().try_into().unwrap(), e)).collect();
    let added: Vec<_> = now.iter().filter(|(a, e)| sent.get(a) != Some(e)).map(|(_, e)| e.clone()).collect();
    let removed: Vec<_> = sent.keys().filter(|a| !now.contains_key(a)).map(|a| (*a).into()).collect();
    *sent = now;
    let mut out = Vec::new();
    if begins && added.is_empty() {
        out.push(none(true));
    }
    if !added.is_empty() {
        out.push(update(update::Update::Add(WeightedAddrSet { addrs: added, metric_labels: HashMap::new() })));
    }
    if !removed.is_empty() {
        out.push(update(update::Update::Remove(AddrSet { addrs: removed })));
    }
    out
}
