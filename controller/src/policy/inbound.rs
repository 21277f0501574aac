//! `InboundServerPolicies`: who may connect to a port of a pod, and what is spoken there.

use super::server::{Rules, server};
use crate::drain::Drain;
use crate::grpc::{Changed, Messages, Method, Next, watched};
use crate::index::Index;
use crate::index::pod::Id;
use crate::telemetry::Telemetry;
use linkerd2_proxy_api::inbound::inbound_server_policies_server::InboundServerPolicies;
use linkerd2_proxy_api::inbound::{PortSpec, Server as InboundServer};
use serde::Deserialize;
use std::sync::Arc;
use tonic::{Request, Response, Status};

const SERVICE: &str = "io.linkerd.proxy.inbound.InboundServerPolicies";

/// The service.
#[derive(Debug, Clone)]
pub struct Server {
    index: Index,
    rules: Arc<Rules>,
    drain: Drain,
    get: Method,
    watch: Method,
}

impl Server {
    /// A service that answers from this index.
    pub fn new(index: Index, rules: Arc<Rules>, drain: Drain, telemetry: &Telemetry) -> Server {
        Server {
            index,
            rules,
            drain,
            get: Method::new(telemetry, SERVICE, "GetPort"),
            watch: Method::new(telemetry, SERVICE, "WatchPort"),
        }
    }

    async fn start_watch(&self, spec: PortSpec) -> Result<Messages<InboundServer>, Status> {
        let (id, port) = parse(&spec)?;
        self.index.synced().await;
        let rx = self.index.watch_pod(&id);
        if rx.borrow().is_none() {
            return Err(Status::not_found(format!("there is no pod {id}")));
        }
        tracing::debug!(%id, port, "watch inbound policy");
        let mut changed = Changed::default();
        let rules = self.rules.clone();
        Ok(watched(rx, self.drain.clone(), &self.watch, move |pod| match pod {
            Some(pod) => Next::Send(changed.filter(server(&pod, port, &rules))),
            None => Next::End(Status::not_found(format!("pod {id} is gone"))),
        }))
    }

    async fn get_now(&self, spec: PortSpec) -> Result<InboundServer, Status> {
        let (id, port) = parse(&spec)?;
        self.index.synced().await;
        let pod = self.index.pod(&id).ok_or_else(|| Status::not_found(format!("there is no pod {id}")))?;
        Ok(server(&pod, port, &self.rules))
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for Server {
    async fn get_port(&self, request: Request<PortSpec>) -> Result<Response<InboundServer>, Status> {
        let result = self.get_now(request.into_inner()).await;
        self.get.ended(result)
    }

    type WatchPortStream = Messages<InboundServer>;

    async fn watch_port(&self, request: Request<PortSpec>) -> Result<Response<Self::WatchPortStream>, Status> {
        match self.start_watch(request.into_inner()).await {
            Ok(stream) => Ok(Response::new(stream)),
            Err(status) => self.watch.ended(Err(status)),
        }
    }
}

/// Who asks, as the proxy's configuration says it: JSON `{"ns","pod"}`, or `ns:pod`.
///
/// # Errors
/// `InvalidArgument`, saying what is wrong.
pub fn parse_workload(text: &str) -> Result<Id, Status> {
    #[derive(Deserialize)]
    struct Workload {
        ns: String,
        pod: String,
    }
    let refuse = |reason: &str| Status::invalid_argument(format!("workload {text:?}: {reason}"));
    let id = if text.starts_with('{') {
        let workload: Workload = serde_json::from_str(text).map_err(|e| refuse(&e.to_string()))?;
        Id { namespace: workload.ns, name: workload.pod }
    } else {
        let (namespace, pod) = text.split_once(':').ok_or_else(|| refuse("neither JSON nor <namespace>:<pod>"))?;
        Id::new(namespace, pod)
    };
    if id.namespace.is_empty() || id.name.is_empty() {
        return Err(refuse("namespace or pod is empty"));
    }
    Ok(id)
}

fn parse(spec: &PortSpec) -> Result<(Id, u16), Status> {
    let port = u16::try_from(spec.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Status::invalid_argument(format!("{} is no port", spec.port)))?;
    Ok((parse_workload(&spec.workload)?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads() {
        let id = Some(Id::new("a", "b"));
        for text in [r#"{"ns":"a","pod":"b"}"#, r#"{"pod":"b","ns":"a","more":1}"#, "a:b"] {
            assert_eq!(parse_workload(text).ok(), id, "{text}");
        }
        for bad in ["", "a", ":b", "a:", "{", r#"{"ns":"a"}"#, r#"{"ns":"","pod":"b"}"#] {
            assert_eq!(parse_workload(bad).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad}");
        }
    }
}
