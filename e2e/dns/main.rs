//! The DNS server of the test cluster, which no package manager has one for: services with an address of their own,
//! headless services, and the pods of those by host name. Everything else does not exist.

use anyhow::Context;
use futures_util::{StreamExt, future};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use std::net::Ipv4Addr;
use tokio::net::UdpSocket;

/// Domain of the cluster, as names end in it.
const DOMAIN: &str = "cluster.local.";
/// Seconds that an answer may be kept.
const TTL: u32 = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let client = Client::try_default().await.context("API server")?;
    let (services, service_writer) = reflector::store::<Service>();
    let (slices, slice_writer) = reflector::store::<EndpointSlice>();
    let watch_services = watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff();
    let watch_slices = watcher(Api::all(client), watcher::Config::default()).default_backoff();
    let watch = future::join(
        reflector(service_writer, watch_services).for_each(|event| {
            if let Err(error) = event {
                eprintln!("services: {error}");
            }
            future::ready(())
        }),
        reflector(slice_writer, watch_slices).for_each(|event| {
            if let Err(error) = event {
                eprintln!("endpoint slices: {error}");
            }
            future::ready(())
        }),
    );
    let serve = async {
        services.wait_until_ready().await?;
        slices.wait_until_ready().await?;
        let socket = UdpSocket::bind("0.0.0.0:5353").await.context("port 5353")?;
        let mut buffer = vec![0; 4096];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await?;
            if let Some(answer) = buffer.get(..length).and_then(|q| respond(q, &services.state(), &slices.state())) {
                // Who has gone needs no answer.
                let _ = socket.send_to(&answer, peer).await;
            }
        }
    };
    tokio::select! {
        result = serve => result,
        _ = watch => anyhow::bail!("the watches have ended"),
    }
}

type Objects<T> = [std::sync::Arc<T>];

fn respond(question: &[u8], services: &Objects<Service>, slices: &Objects<EndpointSlice>) -> Option<Vec<u8>> {
    let request = Message::from_vec(question).ok()?;
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.authoritative = true;
    response.add_queries(request.queries.iter().cloned());
    response.metadata.response_code = match (request.metadata.op_code, request.queries.as_slice()) {
        (OpCode::Query, [query]) => match addresses(&query.name.to_lowercase().to_utf8(), services, slices) {
            Some(ips) => {
                if query.query_type == RecordType::A {
                    for ip in ips {
                        response.add_answer(Record::from_rdata(query.name.clone(), TTL, RData::A(A(ip))));
                    }
                }
                ResponseCode::NoError
            }
            None => ResponseCode::NXDomain,
        },
        _ => ResponseCode::NotImp,
    };
    response.to_vec().ok()
}

/// The addresses of a name; nothing when there is no such name.
fn addresses(name: &str, services: &Objects<Service>, slices: &Objects<EndpointSlice>) -> Option<Vec<Ipv4Addr>> {
    let name = name.strip_suffix(DOMAIN)?.strip_suffix(".svc.")?;
    let mut labels = name.rsplit('.');
    let (namespace, service, host) = (labels.next()?, labels.next()?, labels.next());
    if labels.next().is_some() {
        return None;
    }
    let found = services
        .iter()
        .find(|s| s.metadata.name.as_deref() == Some(service) && s.metadata.namespace.as_deref() == Some(namespace))?;
    let address = found.spec.as_ref()?.cluster_ip.as_deref().filter(|ip| *ip != "None");
    if let (Some(address), None) = (address, host) {
        return Some(address.parse().into_iter().collect());
    }
    let mine = slices.iter().filter(|slice| {
        let labels = slice.metadata.labels.as_ref();
        slice.metadata.namespace.as_deref() == Some(namespace)
            && labels.and_then(|l| l.get("kubernetes.io/service-name")).map(String::as_str) == Some(service)
    });
    let endpoints = mine.flat_map(|slice| slice.endpoints.iter().flatten()).filter(|endpoint| {
        let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
        ready && host.is_none_or(|host| endpoint.hostname.as_deref() == Some(host))
    });
    let mut ips: Vec<Ipv4Addr> =
        endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|ip| ip.parse().ok()).collect();
    ips.sort_unstable();
    ips.dedup();
    if ips.is_empty() && host.is_some() { None } else { Some(ips) }
}
