//! gRPC to the control plane, as a proxy speaks it, through the cluster.

use crate::Failure;
use crate::cluster::Mesh;
use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update};
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::{PortSpec, Server};
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use linkerd2_proxy_api::outbound::{OutboundPolicy, TrafficSpec};
use std::error::Error;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use weft_core::names;

/// How long a question may take, connecting included.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Which component is asked, and which of its pods.
#[derive(Debug, Clone)]
pub struct Target {
    /// The mesh.
    pub mesh: Mesh,
    /// One pod of the destination deployment, or any.
    pub pod: Option<String>,
}

/// The destination API.
#[derive(Debug)]
pub struct Destination(Channel);

/// The policy API, inbound and outbound.
#[derive(Debug)]
pub struct Policy(Channel);

impl Destination {
    /// Connects.
    ///
    /// # Errors
    /// When no cluster runs, or nobody answers.
    pub async fn connect(target: &Target) -> Result<Destination, Failure> {
        channel(target, names::DESTINATION_SERVICE, names::DESTINATION_GRPC_PORT).await.map(Destination)
    }

    /// The first update of an authority.
    ///
    /// # Errors
    /// What the API says, or that it says nothing.
    pub async fn get(&self, authority: &str, token: &str) -> Result<Update, Failure> {
        let question = question(authority, token);
        let mut client = DestinationClient::new(self.0.clone());
        let asked = async { client.get(question).await?.into_inner().message().await };
        answer("Destination", asked).await
    }

    /// The profile of an address or authority as it is now.
    ///
    /// # Errors
    /// As [`Destination::get`].
    pub async fn profile(&self, address: &str, token: &str) -> Result<DestinationProfile, Failure> {
        let question = question(address, token);
        let mut client = DestinationClient::new(self.0.clone());
        let asked = async { client.get_profile(question).await?.into_inner().message().await };
        answer("Destination", asked).await
    }
}

impl Policy {
    /// Connects.
    ///
    /// # Errors
    /// As [`Destination::connect`].
    pub async fn connect(target: &Target) -> Result<Policy, Failure> {
        channel(target, names::POLICY_SERVICE, names::POLICY_GRPC_PORT).await.map(Policy)
    }

    /// The policy of a port of a pod.
    ///
    /// # Errors
    /// As [`Destination::get`].
    pub async fn inbound(&self, workload: String, port: u16) -> Result<Server, Failure> {
        let mut client = InboundServerPoliciesClient::new(self.0.clone());
        let question = PortSpec { workload, port: port.into() };
        let asked = async { client.get_port(question).await.map(|answer| Some(answer.into_inner())) };
        answer("Policy", asked).await
    }

    /// The policy of what goes somewhere.
    ///
    /// # Errors
    /// As [`Destination::get`].
    pub async fn outbound(&self, traffic: TrafficSpec) -> Result<OutboundPolicy, Failure> {
        let mut client = OutboundPoliciesClient::new(self.0.clone());
        let asked = async { client.get(traffic).await.map(|answer| Some(answer.into_inner())) };
        answer("Policy", asked).await
    }
}

fn question(path: &str, token: &str) -> GetDestination {
    GetDestination { scheme: "http".to_owned(), path: path.to_owned(), context_token: token.to_owned() }
}

async fn channel(target: &Target, service: &str, port: u16) -> Result<Channel, Failure> {
    let client = target.mesh.connect().await?;
    let namespace = target.mesh.control.clone();
    let name = target.pod.as_ref().map_or_else(|| format!("svc/{service}"), |pod| format!("pod/{pod}"));
    let hop = format!("{name} in {namespace}, port {port}");
    let refuse = |reason: &dyn std::fmt::Display| {
        Failure::new(format!(
            "Cannot connect to the control plane: {hop}: {reason}\nValidate the install with: weft check"
        ))
    };
    let uri = format!("http://{service}.{namespace}.svc.{}:{port}", names::CLUSTER_DOMAIN);
    let endpoint = Endpoint::from_shared(uri).map_err(|e| refuse(&e))?;
    let connector = tower::service_fn(move |_: Uri| {
        let (client, namespace, name) = (client.clone(), namespace.clone(), name.clone());
        async move { client.dial(&namespace, &name, port).await.map(TokioIo::new).map_err(std::io::Error::other) }
    });
    match tokio::time::timeout(TIMEOUT, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(refuse(&innermost(&error))),
        Err(_) => Err(refuse(&format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

/// The error that caused all others, which says what is wrong.
fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

async fn answer<T>(api: &str, asked: impl Future<Output = Result<Option<T>, Status>>) -> Result<T, Failure> {
    let refuse = |reason: &str| Failure::new(format!("{api} API error: {reason}"));
    match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(refuse("the answer ended before its first message")),
        Ok(Err(status)) => Err(refuse(&reason(&status))),
        Err(_) => Err(refuse(&format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

/// What a status says; its code alone when it has no message.
fn reason(status: &Status) -> String {
    match (status.message(), status.code()) {
        ("", code) => code.description().to_owned(),
        (message, Code::Unknown | Code::InvalidArgument | Code::NotFound) => message.to_owned(),
        (message, code) => format!("{message} ({})", code.description()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        assert_eq!(reason(&Status::not_found("there is no service a/b")), "there is no service a/b");
        assert_eq!(reason(&Status::new(Code::Unavailable, "")), "The service is currently unavailable");
        assert!(reason(&Status::internal("broken")).starts_with("broken ("));
        assert_eq!(innermost(&std::io::Error::other(Status::not_found("x"))), Status::not_found("x").to_string());
    }
}
