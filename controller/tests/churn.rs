//! Much at once: many streams on one connection, and changes faster than anybody reads.

mod support;

use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::update::Update as Kind;
use linkerd2_proxy_api::destination::{GetDestination, Update};
use linkerd2_proxy_api::net::TcpAddress;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use support::{Controller, DEADLINE, State, meshed_pod, next, service, slice};
use tonic::Streaming;

fn ask(path: &str) -> GetDestination {
    GetDestination { path: path.to_owned(), ..Default::default() }
}

/// One meshed proxy carries the streams of many others on one connection.
#[tokio::test]
async fn a_connection_carries_as_many_streams_as_are_asked_for() {
    let state = State::new();
    state.put(&service("shop", "web", "10.96.0.1"));
    let controller = Controller::destination(state.path());
    let mut client = DestinationClient::new(controller.channel("destination").await);
    let mut streams = Vec::new();
    for n in 0..600 {
        let path = format!("192.0.2.{}:{}", n % 250 + 1, 10_000 + n);
        let asked = tokio::time::timeout(DEADLINE, client.get_profile(ask(&path))).await.expect("the stream waits");
        let mut stream = asked.unwrap().into_inner();
        next(&mut stream).await;
        streams.push(stream);
    }
    let (_, metrics) = controller.admin("/metrics").await;
    assert!(metrics.contains(r#"grpc_method="GetProfile"} 600"#), "{metrics}");
    assert!(metrics.contains(r#"weft_index_watched{subject="address"} 250"#), "{metrics}");
}

/// Takes in messages until the endpoints are these.
async fn follow(stream: &mut Streaming<Update>, seen: &mut BTreeSet<SocketAddr>, until: &BTreeSet<SocketAddr>) {
    let addr = |addr: TcpAddress| SocketAddr::try_from(addr).unwrap();
    while seen != until {
        match next(stream).await.update.unwrap() {
            Kind::Add(set) => seen.extend(set.addrs.into_iter().map(|e| addr(e.addr.unwrap()))),
            Kind::Remove(set) => {
                for gone in set.addrs {
                    assert!(seen.remove(&addr(gone)), "{gone:?} was not there");
                }
            }
            Kind::NoEndpoints(_) => seen.clear(),
        }
    }
}

#[tokio::test]
async fn whatever_happens_between_the_end_is_right() {
    let state = State::new();
    let web = service("shop", "web", "10.96.0.1");
    let pods: Vec<Value> =
        (1..=20).map(|n| meshed_pod("shop", "web", &format!("aa{n:03}"), &format!("10.244.0.{n}"))).collect();
    state.put(&web);
    state.put(&slice(&web, &[]));
    let controller = Controller::destination(state.path());
    let mut client = DestinationClient::new(controller.channel("destination").await);
    let mut stream = client.get(ask("web.shop.svc.cluster.local:80")).await.unwrap().into_inner();
    let mut seen = BTreeSet::new();
    // A small generator of our own: the same choices in every run.
    let mut random = 12_345_u64;
    let mut below = move |n: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % n
    };
    for _ in 0..20 {
        let mut chosen = Vec::new();
        for _ in 0..below(15) + 1 {
            chosen = pods.iter().filter(|_| below(2) == 0).collect();
            for pod in &pods {
                match below(3) {
                    0 if state.file(pod).exists() => state.delete(pod),
                    1 => state.put(pod),
                    _ => {}
                }
            }
            match below(8) {
                0 => state.delete(&web),
                1 => state.write(&state.file(&slice(&web, &[])), "{"),
                2 => std::fs::remove_dir_all(state.path().join("endpointslices")).unwrap(),
                _ => {}
            }
            state.put(&web);
            state.put(&slice(&web, &chosen));
        }
        // Endpoints whose pod is gone are none.
        let expected: BTreeSet<SocketAddr> = chosen
            .iter()
            .filter(|pod| state.file(pod).exists())
            .map(|pod| format!("{}:8080", pod["status"]["podIP"].as_str().unwrap()).parse().unwrap())
            .collect();
        follow(&mut stream, &mut seen, &expected).await;
    }
}
