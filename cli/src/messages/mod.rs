//! The messages of the proxy API as plain JSON values: the field names of the API, a `oneof` by the name of its case,
//! addresses, networks, durations and methods as people write them. What is not set is left out.

mod inbound;
mod outbound;
mod routes;

pub use inbound::server;
pub use outbound::policy;

use linkerd2_proxy_api::destination::protocol_hint::Protocol;
use linkerd2_proxy_api::destination::tls_identity::Strategy;
use linkerd2_proxy_api::destination::{
    DestinationProfile, Http2ClientParams, RequestMatch, ResponseClass, ResponseMatch, Route, WeightedAddr,
    request_match, response_match,
};
use linkerd2_proxy_api::meta::{Metadata, metadata};
use linkerd2_proxy_api::net::{IpAddress, IpNetwork, TcpAddress};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

/// An object that leaves out what is not set.
#[derive(Debug, Default)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Adds a field, unless it is null or empty.
    pub(crate) fn put(mut self, name: &str, value: impl Into<Value>) -> Fields {
        let value = value.into();
        let unset = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        if !unset {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    /// Adds a number, unless it is zero, which means that it is not set.
    pub(crate) fn number(self, name: &str, value: u32) -> Fields {
        if value == 0 { self } else { self.put(name, value) }
    }

    /// Adds a flag, unless it is not set.
    pub(crate) fn flag(self, name: &str, value: bool) -> Fields {
        if value { self.put(name, value) } else { self }
    }

    /// The object.
    pub(crate) fn done(self) -> Value {
        Value::Object(self.0)
    }
}

/// An optional message.
pub(crate) fn some<T>(message: &Option<T>, show: impl FnOnce(&T) -> Value) -> Value {
    message.as_ref().map_or(Value::Null, show)
}

/// A list of messages.
pub(crate) fn list<T>(messages: &[T], show: impl Fn(&T) -> Value) -> Value {
    messages.iter().map(show).collect()
}

/// The case of a `oneof`, by name.
pub(crate) fn case(name: &str, value: Value) -> Value {
    let mut map = Map::new();
    map.insert(name.to_owned(), value);
    map.into()
}

/// An address; empty when it is none.
pub fn ip(ip: IpAddress) -> String {
    IpAddr::try_from(ip).map(|ip| ip.to_string()).unwrap_or_default()
}

fn address(addr: &TcpAddress) -> Value {
    SocketAddr::try_from(*addr).map_or_else(|_| format!(":{}", addr.port), |addr| addr.to_string()).into()
}

pub(crate) fn network(net: &IpNetwork) -> Value {
    let ip = net.ip.map(ip).unwrap_or_default();
    format!("{ip}/{}", net.prefix_len).into()
}

/// `10s`, `300ms`, `1.5s`.
pub(crate) fn duration(duration: &prost_types::Duration) -> Value {
    let (seconds, nanos) = (duration.seconds, duration.nanos);
    let text = match nanos {
        0 => format!("{seconds}s"),
        _ if seconds == 0 && nanos % 1_000_000 == 0 => format!("{}ms", nanos / 1_000_000),
        _ => {
            let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
            let fraction = format!("{:09}", nanos.unsigned_abs());
            format!("{sign}{}.{}s", seconds.unsigned_abs(), fraction.trim_end_matches('0'))
        }
    };
    text.into()
}

/// Labels, by name.
pub fn labels(labels: &HashMap<String, String>) -> Value {
    let sorted: BTreeMap<&String, &String> = labels.iter().collect();
    let mut map = Map::new();
    for (name, value) in sorted {
        map.insert(name.clone(), value.clone().into());
    }
    map.into()
}

pub(crate) fn metadata(metadata: &Metadata) -> Value {
    match &metadata.kind {
        None => Value::Null,
        Some(metadata::Kind::Default(name)) => json!({ "default": name }),
        Some(metadata::Kind::Resource(resource)) => Fields::default()
            .put("group", resource.group.as_str())
            .put("kind", resource.kind.as_str())
            .put("name", resource.name.as_str())
            .put("namespace", resource.namespace.as_str())
            .put("section", resource.section.as_str())
            .number("port", resource.port)
            .done(),
    }
}

/// An endpoint.
pub(crate) fn endpoint(endpoint: &WeightedAddr) -> Value {
    let mut fields = Fields::default().put("addr", some(&endpoint.addr, address)).put("weight", endpoint.weight);
    for (name, value) in endpoint_details(endpoint) {
        fields = fields.put(name, value);
    }
    fields.put("metric_labels", labels(&endpoint.metric_labels)).done()
}

/// How an endpoint is to be spoken to: identity, protocol, settings of HTTP/2. Only what is set.
pub fn endpoint_details(endpoint: &WeightedAddr) -> Vec<(&'static str, Value)> {
    let tls = some(&endpoint.tls_identity, |tls| {
        let fields = match &tls.strategy {
            None => Fields::default(),
            Some(Strategy::DnsLikeIdentity(identity)) => {
                Fields::default().put("dns_like_identity", identity.name.as_str())
            }
            Some(Strategy::UriLikeIdentity(identity)) => {
                Fields::default().put("uri_like_identity", identity.uri.as_str())
            }
        };
        fields.put("server_name", some(&tls.server_name, |name| name.name.as_str().into())).done()
    });
    let hint = some(&endpoint.protocol_hint, |hint| {
        let protocol = match &hint.protocol {
            None => Value::Null,
            Some(Protocol::H2(_)) => "h2".into(),
            Some(Protocol::Opaque(_)) => "opaque".into(),
        };
        let transport = some(&hint.opaque_transport, |transport| json!({ "inbound_port": transport.inbound_port }));
        Fields::default().put("protocol", protocol).put("opaque_transport", transport).done()
    });
    let authority = some(&endpoint.authority_override, |authority| authority.authority_override.as_str().into());
    [
        ("tls_identity", tls),
        ("protocol_hint", hint),
        ("authority_override", authority),
        ("http2", some(&endpoint.http2, http2)),
        ("resource_ref", some(&endpoint.resource_ref, metadata)),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_null())
    .collect()
}

fn http2(params: &Http2ClientParams) -> Value {
    let flow_control = some(&params.flow_control, |flow| {
        Fields::default()
            .number("initial_connection_window_size", flow.initial_connection_window_size)
            .number("initial_stream_window_size", flow.initial_stream_window_size)
            .flag("adaptive_flow_control", flow.adaptive_flow_control)
            .done()
    });
    let keep_alive = some(&params.keep_alive, |keep_alive| {
        Fields::default()
            .put("interval", some(&keep_alive.interval, duration))
            .put("timeout", some(&keep_alive.timeout, duration))
            .flag("while_idle", keep_alive.while_idle)
            .done()
    });
    let internals = some(&params.internals, |internals| {
        Fields::default()
            .number("max_concurrent_reset_streams", internals.max_concurrent_reset_streams)
            .number("max_frame_size", internals.max_frame_size)
            .number("max_send_buf_size", internals.max_send_buf_size)
            .done()
    });
    Fields::default().put("flow_control", flow_control).put("keep_alive", keep_alive).put("internals", internals).done()
}

/// A profile.
pub fn profile(profile: &DestinationProfile) -> Value {
    let budget = some(&profile.retry_budget, |budget| {
        Fields::default()
            .put("retry_ratio", exact(budget.retry_ratio))
            .put("min_retries_per_second", budget.min_retries_per_second)
            .put("ttl", some(&budget.ttl, duration))
            .done()
    });
    Fields::default()
        .put("fully_qualified_name", profile.fully_qualified_name.as_str())
        .put("opaque_protocol", profile.opaque_protocol)
        .put("retry_budget", budget)
        .put("routes", list(&profile.routes, route))
        .put(
            "dst_overrides",
            list(&profile.dst_overrides, |dst| {
                Fields::default()
                    .put("authority", dst.authority.as_str())
                    .put("weight", dst.weight)
                    .put("backend_ref", some(&dst.backend_ref, metadata))
                    .done()
            }),
        )
        .put("endpoint", some(&profile.endpoint, endpoint))
        .put("parent_ref", some(&profile.parent_ref, metadata))
        .put("profile_ref", some(&profile.profile_ref, metadata))
        .done()
}

/// The shortest decimal that is this number: 0.2, not 0.200000003.
pub(crate) fn exact(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn route(route: &Route) -> Value {
    Fields::default()
        .put("condition", some(&route.condition, request_match))
        .put(
            "response_classes",
            list(&route.response_classes, |class: &ResponseClass| {
                Fields::default()
                    .put("condition", some(&class.condition, response_match))
                    .put("is_failure", class.is_failure)
                    .done()
            }),
        )
        .put("metrics_labels", labels(&route.metrics_labels))
        .flag("is_retryable", route.is_retryable)
        .put("timeout", some(&route.timeout, duration))
        .done()
}

fn request_match(condition: &RequestMatch) -> Value {
    use request_match::Match;
    match &condition.r#match {
        None => Value::Null,
        Some(Match::All(all)) => case("all", list(&all.matches, request_match)),
        Some(Match::Any(any)) => case("any", list(&any.matches, request_match)),
        Some(Match::Not(not)) => case("not", request_match(not)),
        Some(Match::Path(path)) => case("path_regex", path.regex.as_str().into()),
        Some(Match::Method(method)) => case("method", routes::method(method)),
    }
}

fn response_match(condition: &ResponseMatch) -> Value {
    use response_match::Match;
    match &condition.r#match {
        None => Value::Null,
        Some(Match::All(all)) => case("all", list(&all.matches, response_match)),
        Some(Match::Any(any)) => case("any", list(&any.matches, response_match)),
        Some(Match::Not(not)) => case("not", response_match(not)),
        Some(Match::Status(range)) => {
            case("status", Fields::default().number("min", range.min).number("max", range.max).done())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_numbers() {
        let show = |seconds, nanos| duration(&prost_types::Duration { seconds, nanos });
        for (seconds, nanos, text) in [
            (10, 0, "10s"),
            (0, 300_000_000, "300ms"),
            (1, 500_000_000, "1.5s"),
            (0, 1, "0.000000001s"),
            (0, 0, "0s"),
            (-1, -500_000_000, "-1.5s"),
        ] {
            assert_eq!(show(seconds, nanos), text);
        }
        assert_eq!(exact(0.2), json!(0.2));
        assert_eq!(ip(IpAddress::default()), "");
    }
}
