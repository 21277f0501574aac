//! What an installation says for whoever says nothing: `--default-inbound-policy` and `--opaque-ports`.

mod support;

use linkerd2_proxy_api::destination::GetDestination;
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::inbound::PortSpec;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::proxy_protocol::Kind;
use serde_json::json;
use support::{Controller, State, meshed_pod, namespace, next, service};

#[tokio::test]
async fn an_installation_speaks_for_those_who_say_nothing() {
    let state = State::new();
    state.put(&namespace("shop", json!({})));
    state.put(&namespace(
        "open",
        json!({
            "config.linkerd.io/default-inbound-policy": "all-unauthenticated", "config.linkerd.io/opaque-ports": "7000",
        }),
    ));
    let mut own = meshed_pod("shop", "own", "aaaaa", "10.1.0.2");
    own["metadata"]["annotations"] = json!({"config.linkerd.io/default-inbound-policy": "all-authenticated"});
    for pod in [meshed_pod("shop", "web", "aaaaa", "10.1.0.1"), own, meshed_pod("open", "web", "aaaaa", "10.1.0.3")] {
        state.put(&pod);
    }
    let mut served = service("shop", "web", "10.96.0.1");
    served["spec"]["ports"][0]["port"] = 9000.into();
    state.put(&served);
    let settings = ["--default-inbound-policy=deny", "--opaque-ports=9000,8000-8010"];
    let controller = Controller::destination_with(state.path(), &settings);
    let client = InboundServerPoliciesClient::new(controller.channel("policy").await);
    let get = async |workload: &str, port: u32| {
        let spec = PortSpec { workload: workload.to_owned(), port };
        client.clone().get_port(spec).await.unwrap().into_inner()
    };
    let silent = get("shop:web-5d4f8-aaaaa", 80).await;
    assert_eq!((silent.labels["name"].as_str(), silent.authorizations.len()), ("deny", 0));
    assert_eq!(get("shop:own-5d4f8-aaaaa", 80).await.labels["name"], "all-authenticated");
    assert_eq!(get("open:web-5d4f8-aaaaa", 80).await.labels["name"], "all-unauthenticated");
    let opaque = async |workload: &str, port: u32| {
        let kind = get(workload, port).await.protocol.unwrap().kind.unwrap();
        matches!(kind, Kind::Opaque(_))
    };
    for (workload, port, expected) in [
        ("shop:web-5d4f8-aaaaa", 9000, true),
        ("shop:web-5d4f8-aaaaa", 8005, true),
        ("shop:web-5d4f8-aaaaa", 3306, false),
        ("open:web-5d4f8-aaaaa", 7000, true),
        ("open:web-5d4f8-aaaaa", 9000, false),
    ] {
        assert_eq!(opaque(workload, port).await, expected, "{workload} {port}");
    }
    let path = "web.shop.svc.cluster.local:9000".to_owned();
    let ask = GetDestination { path, ..GetDestination::default() };
    let mut destination = DestinationClient::new(controller.channel("destination").await);
    let mut profile = destination.get_profile(ask).await.unwrap().into_inner();
    assert!(next(&mut profile).await.opaque_protocol);

    // A namespace that begins to speak, and falls silent again.
    let mut stream = client
        .clone()
        .watch_port(PortSpec { workload: "shop:web-5d4f8-aaaaa".to_owned(), port: 80 })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stream).await.labels["name"], "deny");
    state.put(&namespace("shop", json!({"config.linkerd.io/default-inbound-policy": "audit"})));
    assert_eq!(next(&mut stream).await.labels["name"], "audit");
    state.put(&namespace("shop", json!({})));
    assert_eq!(next(&mut stream).await.labels["name"], "deny");
}
