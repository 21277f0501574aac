//! Time is given by the tests: what the store says of rates is exact.

use super::*;
use proptest::prelude::*;
use weft_core::k8s_openapi::api::core::v1::Pod as KubePod;

fn pod(name: &str) -> Arc<Pod> {
    let object: KubePod = serde_json::from_value(serde_json::json!({
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"containers": [{"name": "linkerd-proxy", "ports": [{"name": "linkerd-admin", "containerPort": 4191}]}]},
        "status": {"phase": "Running"},
    }))
    .unwrap();
    Arc::new(Pod::read(&object, None).unwrap())
}

fn inbound(success: u64, failure: u64) -> String {
    format!(
        "response_total{{direction=\"inbound\",tls=\"true\",classification=\"success\"}} {success}\n\
         response_total{{direction=\"inbound\",tls=\"true\",classification=\"failure\"}} {failure}\n"
    )
}

fn all(store: &Store, now: f64, seconds: f64) -> Traffic {
    store.traffic(now, seconds, store.pods.keys(), |side| *side == Side::Inbound, |_| true)
}

fn rate(traffic: &Traffic) -> f64 {
    (traffic.success + traffic.failure) / traffic.seconds().unwrap()
}

#[test]
fn rates_come_from_what_grew_since_the_first_scrape() {
    let (mut store, web) = (Store::default(), pod("web"));
    store.ingest(&web, 0.0, &inbound(1000, 0));
    assert_eq!(all(&store, 0.0, 60.0).seconds(), None, "one scrape says nothing of rates");
    store.ingest(&web, 5.0, &inbound(1009, 1));
    let traffic = all(&store, 6.0, 60.0);
    assert_eq!((traffic.success, traffic.failure), (9.0, 1.0));
    assert!((rate(&traffic) - 2.0).abs() < 1e-9);
    // A minute later only the minute counts.
    for scrape in 2..=20_u64 {
        store.ingest(&web, scrape as f64 * 5.0, &inbound(1009 + (scrape - 1) * 20, 1));
    }
    let traffic = all(&store, 100.0, 60.0);
    assert_eq!((traffic.success, traffic.failure), (240.0, 0.0));
    assert!((rate(&traffic) - 4.0).abs() < 1e-9);
}

#[test]
fn counters_that_begin_anew_are_not_negative() {
    let (mut store, web) = (Store::default(), pod("web"));
    store.ingest(&web, 0.0, &inbound(100, 10));
    store.ingest(&web, 5.0, &inbound(3, 10));
    assert_eq!(all(&store, 5.0, 60.0).success, 3.0);
    // A restart is seen even where counters are higher than before.
    let with_start = |start: u64, success: u64| format!("process_start_time_seconds {start}\n{}", inbound(success, 0));
    let (mut store, web) = (Store::default(), pod("web"));
    store.ingest(&web, 0.0, &with_start(1, 100));
    store.ingest(&web, 5.0, &with_start(2, 150));
    assert_eq!(all(&store, 5.0, 60.0).success, 150.0);
    // A label set that the proxy forgot and made again.
    store.ingest(&web, 10.0, "process_start_time_seconds 2\n");
    store.ingest(&web, 15.0, &with_start(2, 160));
    assert_eq!(all(&store, 15.0, 60.0).success, 310.0);
}

#[test]
fn a_pod_that_replaces_another_does_not_count_twice() {
    let (mut store, old, new) = (Store::default(), pod("web-1"), pod("web-2"));
    for scrape in 0..=6_u64 {
        store.ingest(&old, scrape as f64 * 5.0, &inbound(scrape * 10, 0));
    }
    for scrape in 6..=12_u64 {
        store.ingest(&new, scrape as f64 * 5.0, &inbound((scrape - 6) * 10, 0));
    }
    let traffic = all(&store, 60.0, 60.0);
    assert!((rate(&traffic) - 2.0).abs() < 1e-9, "{traffic:?}");
}

#[test]
fn connections_and_latencies() {
    let text = |open: u64, read: u64, fast: u64, slow: u64| {
        format!(
            "tcp_open_total{{direction=\"inbound\",peer=\"src\",tls=\"true\"}} 7\n\
             tcp_open_connections{{direction=\"inbound\",peer=\"src\",tls=\"true\"}} {open}\n\
             tcp_open_connections{{direction=\"inbound\",peer=\"dst\",tls=\"true\"}} 99\n\
             tcp_read_bytes_total{{direction=\"inbound\",peer=\"src\",tls=\"true\"}} {read}\n\
             tcp_write_bytes_total{{direction=\"inbound\",peer=\"dst\",tls=\"true\"}} {read}\n\
             response_latency_ms_bucket{{direction=\"inbound\",status_code=\"200\",le=\"1\"}} 0\n\
             response_latency_ms_bucket{{direction=\"inbound\",status_code=\"200\",le=\"10\"}} {fast}\n\
             response_latency_ms_bucket{{direction=\"inbound\",status_code=\"200\",le=\"100\"}} {all}\n\
             response_latency_ms_bucket{{direction=\"inbound\",status_code=\"200\",le=\"+Inf\"}} {all}\n",
            all = fast + slow
        )
    };
    let (mut store, web) = (Store::default(), pod("web"));
    store.ingest(&web, 0.0, &text(5, 1000, 50, 50));
    store.ingest(&web, 5.0, &text(4, 6000, 140, 60));
    let traffic = all(&store, 5.0, 60.0);
    assert_eq!((traffic.open, traffic.read, traffic.write, traffic.tcp), (4, 5000.0, 0.0, true));
    assert_eq!(traffic.latency.total(), 100.0);
    // Ninety between 1 and 10, ten between 10 and 100.
    assert_eq!(traffic.latency.quantile(0.5), Some(6.0));
    assert_eq!(traffic.latency.quantile(0.95), Some(55.0));
}

#[test]
fn the_proxys_own_servers_do_not_count() {
    let (mut store, web) = (Store::default(), pod("web"));
    let text = |n: u64| {
        ["target_addr=\"10.0.0.1:4191\"", "target_port=\"4191\"", "srv_port=\"4191\""]
            .map(|l| format!("response_total{{direction=\"inbound\",classification=\"success\",{l}}} {n}\n"))
            .concat()
    };
    store.ingest(&web, 0.0, &text(0));
    store.ingest(&web, 5.0, &text(100));
    assert_eq!(all(&store, 5.0, 60.0).success, 0.0);
}

#[test]
fn peers_are_told_apart_and_bounded() {
    let (mut store, web) = (Store::default(), pod("web"));
    let mut text = String::new();
    for n in 1..=3 * MAX_PEERS {
        text += &format!(
            "response_total{{direction=\"outbound\",tls=\"true\",server_id=\"s\",dst_pod=\"p{n}\",dst_namespace=\"n\",\
             dst_k8s_job=\"j\",dst_service=\"svc\",target_addr=\"10.0.0.1:80\",classification=\"success\"}} {n}\n"
        );
    }
    store.ingest(&web, 0.0, &text);
    assert_eq!(store.size(), (1, MAX_PEERS));
    let peer = store.all_peers().find(|peer| peer.pod == "p7").unwrap();
    assert_eq!((peer.namespace.as_str(), peer.service.as_str(), peer.server_id.as_str()), ("n", "svc", "s"));
    assert_eq!(peer.workload, Some(("job".to_owned(), "j".to_owned())));
    assert_eq!(peer.addr, None);
    assert!(store.peers(&web.id).any(|(peer, current)| **peer == Peer::default() && current.http), "the rest is one");
}

#[test]
fn old_growth_is_summed_up_and_forgotten() {
    let (mut store, web) = (Store::default(), pod("web"));
    for scrape in 0..=360_u64 {
        store.ingest(&web, scrape as f64 * 5.0, &inbound(scrape * 5, 0));
    }
    let sum = &store.pods[&web.id].sums[&Side::Inbound];
    assert!(sum.fine.len() <= 37 && sum.coarse.len() <= 26, "{} and {}", sum.fine.len(), sum.coarse.len());
    for seconds in [15.0, 60.0, 200.0, 600.0, 900.0, 3600.0] {
        let traffic = all(&store, 1800.0, seconds);
        assert!((rate(&traffic) - 1.0).abs() < 0.05, "{seconds}: {}", rate(&traffic));
    }
    // It says nothing any more.
    store.prune(1800.0 + WINDOW - 1.0);
    assert_eq!(store.size().0, 1);
    assert_eq!(all(&store, 1800.0 + WINDOW - 1.0, 60.0).seconds(), None);
    store.prune(1800.0 + WINDOW + 1.0);
    assert_eq!(store.size(), (0, 0));
}

proptest! {
    /// Whatever counters do, the sum of what they grew is found, whichever way it is kept.
    #[test]
    fn growth_is_never_lost(steps in prop::collection::vec((prop::bool::weighted(0.1), 0u64..1000), 1..200)) {
        let (mut store, web) = (Store::default(), pod("web"));
        let (mut counter, mut expected, mut start) = (500_u64, 0_u64, 1_u64);
        let text = |start: u64, counter: u64| format!("process_start_time_seconds {start}\n{}", inbound(counter, 0));
        store.ingest(&web, 0.0, &text(start, counter));
        let mut now = 0.0;
        for (restarted, grown) in steps {
            if restarted {
                (counter, start) = (0, start + 1);
            }
            counter += grown;
            expected += grown;
            now += 4.0;
            store.ingest(&web, now, &text(start, counter));
        }
        let traffic = all(&store, now, WINDOW);
        prop_assert!((traffic.success - expected as f64).abs() < 1e-6, "{} instead of {expected}", traffic.success);
    }

    /// Histograms come back by bucket, however they were cumulated and split by status.
    #[test]
    fn observations_are_found_in_their_buckets(a in prop::collection::vec(0u32..100, 4), b in prop::collection::vec(0u32..100, 4)) {
        let bounds = ["1", "10", "100", "+Inf"];
        let text = |share: u32| {
            let mut text = String::new();
            for (status, counts) in [("200", &a), ("500", &b)] {
                let mut cumulative = 0;
                for (le, count) in bounds.iter().zip(counts) {
                    cumulative += count * share;
                    text += &format!("response_latency_ms_bucket{{direction=\"inbound\",status_code=\"{status}\",le=\"{le}\"}} {cumulative}\n");
                }
            }
            text
        };
        let (mut store, web) = (Store::default(), pod("web"));
        store.ingest(&web, 0.0, &text(1));
        store.ingest(&web, 5.0, &text(3));
        let found = all(&store, 5.0, 60.0).latency;
        let mut expected = Histogram::default();
        for (le, count) in bounds.iter().zip(a.iter().zip(&b).map(|(a, b)| 2 * (a + b))) {
            expected.add(Bound::new(le.parse().unwrap()).unwrap(), f64::from(count));
        }
        prop_assert_eq!(found, expected);
    }
}
