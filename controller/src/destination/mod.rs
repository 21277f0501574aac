//! `Destination`: endpoints of services (`Get`) and profiles of addresses and names (`GetProfile`).

pub mod endpoint;
pub mod get;
pub mod name;
pub mod profile;
mod wishes;

use crate::drain::Drain;
use crate::grpc::{Changed, Messages, Method, Next, watched};
use crate::index::Index;
use crate::index::pod::Id;
use crate::telemetry::Telemetry;
use endpoint::Mesh;
use linkerd2_proxy_api::destination::destination_server::Destination;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update};
use name::{Authority, Host};
use std::sync::Arc;
use tonic::{Request, Response, Status};

const SERVICE: &str = "io.linkerd.proxy.destination.Destination";

/// The service.
#[derive(Debug, Clone)]
pub struct Server {
    index: Index,
    mesh: Arc<Mesh>,
    drain: Drain,
    get: Method,
    get_profile: Method,
}

impl Server {
    /// A service that answers from this index.
    pub fn new(index: Index, mesh: Arc<Mesh>, drain: Drain, telemetry: &Telemetry) -> Server {
        Server {
            index,
            mesh,
            drain,
            get: Method::new(telemetry, SERVICE, "Get"),
            get_profile: Method::new(telemetry, SERVICE, "GetProfile"),
        }
    }

    async fn start_get(&self, request: GetDestination) -> Result<Messages<Update>, Status> {
        let Authority { host, port } = Authority::parse(&request.path, &self.mesh.cluster_domain)?;
        let (id, hostname) = match host {
            Host::Ip(ip) => {
                return Err(Status::invalid_argument(format!("{ip}: endpoints are looked up by name, not by address")));
            }
            Host::Service(id) => (id, None),
            Host::Instance { service, hostname } => (service, Some(hostname)),
        };
        self.index.synced().await;
        let rx = self.index.watch_service(&id);
        match rx.borrow().as_ref() {
            None => return Err(Status::not_found(format!("there is no service {id}"))),
            Some(view) if view.service.external_name => {
                return Err(Status::invalid_argument(format!("service {id} is only a name for something outside")));
            }
            Some(_) => {}
        }
        tracing::debug!(path = request.path, "get");
        let mut deltas = get::Deltas::new(self.mesh.clone(), port, hostname);
        Ok(watched(rx, self.drain.clone(), &self.get, move |view| Next::Send(deltas.next(view))))
    }

    async fn start_get_profile(&self, request: GetDestination) -> Result<Messages<DestinationProfile>, Status> {
        let Authority { host, port } = Authority::parse(&request.path, &self.mesh.cluster_domain)?;
        self.index.synced().await;
        tracing::debug!(path = request.path, "get profile");
        let client = name::client_namespace(&request.context_token);
        let (mesh, drain, method) = (self.mesh.clone(), self.drain.clone(), &self.get_profile);
        let mut changed = Changed::default();
        Ok(match host {
            Host::Ip(ip) => watched(self.index.watch_ip(ip), drain, method, move |target| {
                Next::Send(changed.filter(profile::of_address(&mesh, ip, port, &target, &client)))
            }),
            Host::Service(id) => {
                let rx = self.index.watch_service(&id);
                exists(&rx.borrow(), &id)?;
                watched(rx, drain, method, move |view| {
                    let profile = view.map(|view| profile::of_service(&mesh, &view.service, port, &client));
                    Next::Send(changed.filter(profile.unwrap_or_default()))
                })
            }
            Host::Instance { service: id, hostname } => {
                let rx = self.index.watch_service(&id);
                exists(&rx.borrow(), &id)?;
                watched(rx, drain, method, move |view| {
                    let profile = view.and_then(|view| profile::of_instance(&mesh, &view, &hostname, port));
                    Next::Send(changed.filter(profile.unwrap_or_default()))
                })
            }
        })
    }
}

fn exists<T>(view: &Option<T>, id: &Id) -> Result<(), Status> {
    view.as_ref().map(|_| ()).ok_or_else(|| Status::not_found(format!("there is no service {id}")))
}

#[tonic::async_trait]
impl Destination for Server {
    type GetStream = Messages<Update>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        match self.start_get(request.into_inner()).await {
            Ok(stream) => Ok(Response::new(stream)),
            Err(status) => self.get.ended(Err(status)),
        }
    }

    type GetProfileStream = Messages<DestinationProfile>;

    async fn get_profile(&self, request: Request<GetDestination>) -> Result<Response<Self::GetProfileStream>, Status> {
        match self.start_get_profile(request.into_inner()).await {
            Ok(stream) => Ok(Response::new(stream)),
            Err(status) => self.get_profile.ended(Err(status)),
        }
    }
}
