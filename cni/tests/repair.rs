//! Repair against a made-up API server.

mod support;

use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::api_server::ApiServer;
use support::eventually;
use time::OffsetDateTime;
use time::macros::datetime;
use weft_cni::repair::{REASON, Repair, run};
use weft_controller::kubernetes::{Api, Options};

/// When the plugin was installed.
const INSTALLED: OffsetDateTime = datetime!(2026-02-01 12:00:00 UTC);

fn pod(name: &str, code: u64, owned: bool) -> Value {
    let owners = if owned { json!([{ "kind": "ReplicaSet", "name": "web", "controller": true }]) } else { json!([]) };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "ownerReferences": owners,
            "labels": { "linkerd.io/control-plane-ns": "weft" }, "creationTimestamp": "2026-02-01T11:59:00Z",
        },
        "spec": {
            "containers": [{ "name": "linkerd-proxy" }, { "name": "web" }],
            "initContainers": [{ "name": "linkerd-network-validator", "args": ["validate", "--proxy-uid", "2102"] }],
        },
        "status": { "initContainerStatuses": [{
            "name": "linkerd-network-validator", "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            "lastState": { "terminated": { "exitCode": code } },
        }] },
    })
}

/// Repairs until the process ends, once the plugin is installed.
fn start(server: &ApiServer, installed: &Arc<Mutex<Option<OffsetDateTime>>>) {
    let (kubeconfig, installed) = (server.kubeconfig(), installed.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = Options { kubeconfig: Some(kubeconfig), timeout: Duration::from_secs(5) };
            let api = Api::new(&options).await.unwrap();
            let configured = Box::new(move || *installed.lock().unwrap());
            run(Repair { api, node: "node1".into(), pause: Duration::from_millis(50), configured }).await;
        });
    });
}

/// Names of the pods that events are about.
fn told(server: &ApiServer) -> Vec<String> {
    let mut names: Vec<String> = server
        .objects("v1/events")
        .iter()
        .map(|event| event["involvedObject"]["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
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
    let installed = Arc::default();
    start(&server, &installed);
    // As long as the plugin is not installed the next pod would be no better.
    eventually("a watch", || (server.asked("GET /api/v1/pods?fieldSelector=spec.nodeName%3Dnode1") > 1).then_some(()));
    assert_eq!(server.asked("DELETE "), 0);
    *installed.lock().unwrap() = Some(INSTALLED);
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
    assert_eq!(told(&server), ["bare", "broken", "later"]);
    let events = server.objects("v1/events");
    assert!(events.iter().all(|event| event["reason"] == REASON && event["type"] == "Warning"));
    let requests = server.world().requests.clone();
    let known = ["GET /api/v1/pods?", "DELETE /api/v1/namespaces/shop/pods/", "POST /api/v1/namespaces/shop/events"];
    assert!(requests.iter().all(|request| known.iter().any(|known| request.starts_with(known))), "{requests:?}");
}

/// Deleted, they would come back the same, for ever.
#[test]
fn pods_that_would_be_no_better_are_told_about_once() {
    let server = ApiServer::start();
    server.world().page = 500;
    let with = |name: &str, path: &str, value: Value| {
        let mut pod = pod(name, 95, true);
        *pod.pointer_mut(path).unwrap() = value;
        pod
    };
    let args = "/spec/initContainers/0/args";
    let created = "/metadata/creationTimestamp";
    let hopeless = [
        // The validator of Linkerd, which has a plugin of its own.
        (with("theirs", args, json!(["--connect-addr", "1.1.1.1:20001"])), "only for pods that weft meshed"),
        (with("since", created, json!("2026-02-01T12:00:11Z")), "was installed when it was made"),
        (with("undated", created, Value::Null), "was installed when it was made"),
    ];
    for (pod, _) in &hopeless {
        server.put(pod);
    }
    // The runtime may not have looked at its configuration yet.
    server.put(&with("just", created, json!("2026-02-01T12:00:10Z")));
    let installed = Arc::new(Mutex::new(Some(INSTALLED)));
    start(&server, &installed);
    let there = |name: &str| server.object("v1/pods", "shop", name).is_some();
    eventually("the repair", || (!there("just")).then_some(()));
    eventually("events", || (told(&server) == ["just", "since", "theirs", "undated"]).then_some(()));
    // Nor are they when the plugin has been away since, or when they are seen again.
    *installed.lock().unwrap() = Some(INSTALLED + Duration::from_secs(3600));
    for (pod, _) in &hopeless {
        server.put(pod);
    }
    server.forget();
    server.put(&pod("last", 95, true));
    eventually("another repair", || (!there("last")).then_some(()));
    assert_eq!(told(&server), ["just", "last", "since", "theirs", "undated"]);
    let events = server.objects("v1/events");
    for (pod, why) in &hopeless {
        let name = &pod["metadata"]["name"];
        let event = events.iter().find(|event| event["involvedObject"]["name"] == *name).unwrap();
        assert!(event["message"].as_str().unwrap().contains(why), "{event}");
        assert!(there(name.as_str().unwrap()), "{name}");
    }
}
