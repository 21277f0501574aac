//! A large cluster that changes: every change reaches the proxies that ask for it. What it takes is printed, not judged.
//!
//! `WEFT_SCALE=full cargo test --release --test scale -- --nocapture` has 1,000 services, 10,000 endpoints and 2,000 streams.

mod support;

use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::update::Update as Kind;
use linkerd2_proxy_api::destination::{GetDestination, Update};
use serde_json::Value;
use std::time::{Duration, Instant};
use support::api_server::ApiServer;
use support::{Controller, meshed_pod, namespace, next, service, slice, until};
use tonic::Streaming;

struct Size {
    services: usize,
    pods_of_each: usize,
    streams: usize,
    changes: usize,
}

#[tokio::test]
async fn every_change_of_a_large_cluster_arrives() {
    let full = std::env::var("WEFT_SCALE").is_ok_and(|scale| scale == "full");
    let size = if full {
        Size { services: 1000, pods_of_each: 10, streams: 2000, changes: 1000 }
    } else {
        Size { services: 50, pods_of_each: 10, streams: 100, changes: 50 }
    };
    let api = ApiServer::start();
    api.world().page = 500;
    api.put(&namespace("shop", serde_json::json!({})));
    let mut services = Vec::new();
    for at in 0..size.services {
        let name = format!("svc{at}");
        let service = service("shop", &name, &format!("10.96.{}.{}", at / 250, at % 250 + 1));
        let pods: Vec<Value> = (0..size.pods_of_each)
            .map(|pod| {
                let n = at * size.pods_of_each + pod;
                let ip = format!("10.{}.{}.{}", n / 62_500 + 1, n / 250 % 250, n % 250 + 1);
                meshed_pod("shop", &name, &format!("p{pod:04}"), &ip)
            })
            .collect();
        for pod in &pods {
            api.put(pod);
        }
        api.put(&service);
        let slice = slice(&service, &pods.iter().collect::<Vec<_>>());
        api.put(&slice);
        services.push((name, slice));
    }
    let started = Instant::now();
    let controller = Controller::destination_on(&api.kubeconfig());
    until("it is read", async || controller.admin("/ready").await.0 == 200).await;
    let read = started.elapsed();
    let client = DestinationClient::new(controller.channel("destination").await);
    let mut streams: Vec<Streaming<Update>> = Vec::new();
    for n in 0..size.streams {
        let path = format!("{}.shop.svc.cluster.local:80", services[n % services.len()].0);
        let ask = GetDestination { path, ..GetDestination::default() };
        let mut stream = client.clone().get(ask).await.unwrap().into_inner();
        next(&mut stream).await;
        streams.push(stream);
    }
    let memory = controller.metric("process_resident_memory_bytes").await;
    let mut times = Vec::new();
    for change in 0..size.changes {
        let at = change * 7 % services.len();
        // One goes, or comes back.
        let (_, slice) = &mut services[at];
        let ready = &mut slice["endpoints"][0]["conditions"]["ready"];
        let comes = *ready == false;
        *ready = comes.into();
        let begun = Instant::now();
        api.put(slice);
        match next(&mut streams[at]).await.update.unwrap() {
            Kind::Add(set) => assert!(comes && set.addrs.len() == 1),
            Kind::Remove(set) => assert!(!comes && set.addrs.len() == 1),
            other @ Kind::NoEndpoints(_) => panic!("{other:?}"),
        }
        times.push(begun.elapsed());
        if full {
            // 50 a second.
            tokio::time::sleep(Duration::from_millis(20).saturating_sub(begun.elapsed())).await;
        }
    }
    times.sort();
    println!(
        "{} services, {} endpoints, {} streams: read in {read:?}; {} MiB, after changes {} MiB; from write to proxy p50 {:?}, p99 {:?}",
        size.services,
        size.services * size.pods_of_each,
        size.streams,
        memory >> 20,
        controller.metric("process_resident_memory_bytes").await >> 20,
        times[times.len() / 2],
        times[times.len() * 99 / 100],
    );
}
