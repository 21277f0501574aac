//! Checks of settings that contradict each other: what was meant as an annotation and is a label, ports that one side
//! takes for opaque and the other does not, and addresses outside of what counts as the cluster.

use super::{Cluster, Options};
use crate::check::{Runner, Severity};
use crate::pods::{containers, ended, meshed, name, namespace, text};
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;
use weft_core::inject::CONFIG_PREFIX;
use weft_core::names;
use weft_core::ports::Ports;

const OPAQUE_PORTS: &str = "config.linkerd.io/opaque-ports";
/// The one setting that is a label: webhooks select namespaces by it.
const WEBHOOKS: &str = "config.linkerd.io/admission-webhooks";

/// Annotations that are labels: of pods, of services, of namespaces.
pub async fn labels(runner: &mut Runner, cluster: &impl Cluster, options: &Options) {
    for kind in ["pods", "services", "namespaces"] {
        let description = format!("data plane {} labels are configured correctly", kind.trim_end_matches('s'));
        let hint = "`kubectl annotate`: settings are annotations";
        runner
            .check(&description, Severity::WARNING, hint, async || {
                let scope = options.namespace.as_deref().filter(|_| kind != "namespaces");
                for object in cluster.objects(kind, scope).await? {
                    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
                    let wrong = labels.into_iter().flat_map(|labels| labels.keys()).find(|key| {
                        (key.starts_with(CONFIG_PREFIX) && *key != WEBHOOKS) || *key == names::ANNOTATION_INJECT
                    });
                    if let Some(key) = wrong {
                        return Err(format!("{} has the label {key}, which is an annotation", shown(&object)));
                    }
                }
                Ok(())
            })
            .await;
    }
}

fn shown(object: &Value) -> String {
    match namespace(object) {
        "" => name(object).to_owned(),
        namespace => format!("{namespace}/{}", name(object)),
    }
}

/// A port that clients do not look into, while the proxy of the server does, or the other way round.
pub async fn opaque_ports(runner: &mut Runner, cluster: &impl Cluster, options: &Options) {
    runner.category("weft-opaque-ports-definition");
    let hint = format!("`kubectl annotate` services and pods with {OPAQUE_PORTS}");
    runner
        .check("opaque ports are properly annotated", Severity::WARNING, &hint, async || {
            let scope = options.namespace.as_deref();
            let namespaces = cluster.objects("namespaces", None).await?;
            let pods = cluster.objects("pods", scope).await?;
            for service in cluster.objects("services", scope).await? {
                let home = namespaces.iter().find(|one| name(one) == namespace(&service));
                let behind = pods.iter().filter(|pod| meshed(pod) && !ended(pod) && selects(&service, pod));
                for pod in behind {
                    if let Some(problem) = contradiction(&service, pod, home) {
                        return Err(problem);
                    }
                }
            }
            Ok(())
        })
        .await;
}

fn selects(service: &Value, pod: &Value) -> bool {
    let selector = service.pointer("/spec/selector").and_then(Value::as_object).filter(|labels| !labels.is_empty());
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
    namespace(service) == namespace(pod)
        && selector.zip(labels).is_some_and(|(selector, labels)| selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

/// The opaque ports of a service or pod, by its annotation, else its namespace's, else the default.
fn opaque(object: &Value, home: Option<&Value>, named: impl Fn(&str) -> Option<u16>) -> Ports {
    let annotation = |object: &Value| {
        let annotation = object.pointer("/metadata/annotations")?.get(OPAQUE_PORTS)?.as_str()?;
        Some(annotation.to_owned())
    };
    let list = annotation(object).or_else(|| home.and_then(annotation));
    list.map_or_else(Ports::default_opaque, |text| Ports::parse(&text, named))
}

fn contradiction(service: &Value, pod: &Value, home: Option<&Value>) -> Option<String> {
    let ports = || service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let number = |port: &Value, key: &str| port.get(key).and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
    let of_container = |wanted: &str| {
        let lists = containers(pod).filter_map(|container| container.get("ports")?.as_array());
        lists.flatten().find(|port| text(port, "/name") == wanted).and_then(|port| number(port, "containerPort"))
    };
    let of_service = opaque(service, home, |wanted| {
        ports().find(|port| text(port, "/name") == wanted).and_then(|port| number(port, "port"))
    });
    let of_pod = opaque(pod, home, of_container);
    ports().find_map(|port| {
        // What is declared for the port itself counts for clients, whatever the lists say.
        if port.get("appProtocol").is_some() || !matches!(text(port, "/protocol"), "" | "TCP") {
            return None;
        }
        let outside = number(port, "port")?;
        let inside = match text(port, "/targetPort") {
            "" => number(port, "targetPort").unwrap_or(outside),
            wanted => of_container(wanted)?,
        };
        let (service, pod) = (shown(service), shown(pod));
        match (of_service.contains(outside), of_pod.contains(inside)) {
            (true, false) => {
                Some(format!("port {outside} of service {service} is opaque, but port {inside} of pod {pod} is not"))
            }
            (false, true) => {
                Some(format!("port {inside} of pod {pod} is opaque, but port {outside} of service {service} is not"))
            }
            _ => None,
        }
    })
}

/// Proxies ask the control plane only about addresses in these networks: the others are left unmeshed.
pub fn networks(values: &str) -> Result<Vec<IpNet>, String> {
    let values: Value = serde_yaml_ng::from_str(values).map_err(|e| format!("the settings are not YAML: {e}"))?;
    let list = text(&values, "/clusterNetworks").split(',').map(str::trim).filter(|network| !network.is_empty());
    list.map(|network| network.parse().map_err(|_| format!("clusterNetworks: {network} is not a network"))).collect()
}

/// The first address that is in none of the networks.
pub fn outside<'a>(networks: &[IpNet], mut addresses: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    addresses.find(|address| {
        // A family that no network has is not meshed on purpose, such as IPv6 of a cluster with both.
        let net = address.parse::<IpNet>().or_else(|_| address.parse::<IpAddr>().map(IpNet::from));
        net.is_ok_and(|net| {
            let mut family = networks.iter().filter(|one| one.addr().is_ipv4() == net.addr().is_ipv4()).peekable();
            family.peek().is_some() && !family.any(|one| one.contains(&net))
        })
    })
}

/// All addresses of a node's pods, of a pod, or of a service.
pub fn addresses<'a>(object: &'a Value, lists: &[&str], single: &str) -> Vec<&'a str> {
    let list = lists.iter().filter_map(|list| object.pointer(list)?.as_array()).flatten();
    let text_of = |item: &'a Value| item.as_str().or_else(|| item.get("ip")?.as_str());
    let mut found: Vec<&str> = list.filter_map(text_of).collect();
    found.extend(object.pointer(single).and_then(Value::as_str).filter(|single| !found.contains(single)));
    found.retain(|address| !address.is_empty() && *address != "None");
    found
}
