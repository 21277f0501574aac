//! Repair against a made-up API server.

mod support;

use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::api_server::ApiServer;
use support::eventually;
use weft_cni::repair::{REASON, Repair, run};
use weft_controller::kubernetes::{Api, Options};

fn pod(name: &str, code: u64, owned: bool) -> Value {
    let owners = if owned { json!([{ "kind": "ReplicaSet", "name": "web", "controller": true }]) } else { json!([]) };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "ownerReferences": owners,
            "labels": { "linkerd.io/control-plane-ns": "weft" },
        },
        "status": { "initContainerStatuses": [{
            "name": "linkerd-network-validator", "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            "lastState": { "terminated": { "exitCode": code } },
        }] },
    })
}

#[test]
fn pods_that_were_not_redirected_are_made_anew() {
    let server = ApiServer::start();
    // This list is not read in pages.
    server.world().page = 500;
    for pod in [pod("broken", 95, true), pod("bare", 95, false), pod("well", 0, true), pod("other", 1, true)] {
        server.put(&pod);
    }
    let mut ending = pod("ending", 95, true);
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    server.put(&ending);
    let configured = Arc::new(AtomicBool::new(false));
    let (kubeconfig, installed) = (server.kubeconfig(), configured.clone());
    // It ends with the process.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = Options { kubeconfig: Some(kubeconfig), timeout: Duration::from_secs(5) };
            let api = Api::new(&options).await.unwrap();
            let configured = Box::new(move || installed.load(Ordering::SeqCst));
            run(Repair { api, node: "node1".into(), pause: Duration::from_millis(50), configured }).await;
        });
    });
    // As long as the plugin is not installed the next pod would be no better.
    eventually("a watch", || (server.asked("GET /api/v1/pods?fieldSelector=spec.nodeName%3Dnode1") > 1).then_some(()));
    assert_eq!(server.asked("DELETE "), 0);
    configured.store(true, Ordering::SeqCst);
    // Read again, as after the end of a watch.
    server.forget();
    let there = |name: &str| server.object("v1/pods", "shop", name).is_some();
    eventually("the broken pod to be deleted", || (!there("broken")).then_some(()));
    // One that breaks later is seen by the watch.
    server.put(&pod("later", 0, true));
    server.put(&pod("later", 95, true));
    eventually("the other one, too", || (!there("later")).then_some(()));
    for kept in ["bare", "well", "other", "ending"] {
        assert!(there(kept), "{kept}");
    }
    let events = server.objects("v1/events");
    let told: Vec<&str> = events.iter().filter_map(|event| event["involvedObject"]["name"].as_str()).collect();
    for name in ["broken", "bare", "later"] {
        assert_eq!(told.iter().filter(|told| **told == name).count(), 1, "{told:?}");
    }
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(events.iter().all(|event| event["reason"] == REASON && event["type"] == "Warning"));
    let requests = server.world().requests.clone();
    let known = ["GET /api/v1/pods?", "DELETE /api/v1/namespaces/shop/pods/", "POST /api/v1/namespaces/shop/events"];
    assert!(requests.iter().all(|request| known.iter().any(|known| request.starts_with(known))), "{requests:?}");
}
