//! From protobuf to [`crate::policy`]. What makes no sense is an error with a reason; nothing is guessed.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use linkerd2_proxy_api::{destination, http_types, meta, net};

use crate::{
    config::Backoff,
    policy::{Endpoint, HeaderChange, HostMatch, Http2Params, HttpMatch, Identity, Meta, PathMatch, Ratio, Redirect},
};

mod inbound;
mod outbound;

pub(crate) use inbound::{default_policy, server};
pub(crate) use outbound::{outbound_policy, overrides, profile};

/// Why a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Invalid(String);

impl Invalid {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

type Result<T> = std::result::Result<T, Invalid>;

fn required<T>(value: Option<T>, what: &str) -> Result<T> {
    value.ok_or_else(|| Invalid::new(format!("missing: {what}")))
}

fn duration(value: prost_types::Duration) -> Result<Duration> {
    value.try_into().map_err(|_| Invalid::new("a duration is negative or too long"))
}

fn optional_duration(value: Option<prost_types::Duration>) -> Result<Option<Duration>> {
    value.map(duration).transpose()
}

/// As [`optional_duration`], where zero means no limit.
fn limit(value: Option<prost_types::Duration>) -> Result<Option<Duration>> {
    Ok(optional_duration(value)?.filter(|d| !d.is_zero()))
}

fn port(value: u32) -> Result<u16> {
    u16::try_from(value).ok().filter(|p| *p > 0).ok_or_else(|| Invalid::new(format!("{value} is no port")))
}

pub(crate) fn socket_addr(addr: net::TcpAddress) -> Result<SocketAddr> {
    let ip = required(addr.ip, "an address")?.try_into().map_err(|_| Invalid::new("an address is empty"))?;
    Ok(SocketAddr::new(ip, port(addr.port)?))
}

fn metadata(value: Option<meta::Metadata>) -> Result<Arc<Meta>> {
    match required(value, "metadata")?.kind {
        Some(meta::metadata::Kind::Default(name)) => Ok(Meta::default_named(&name)),
        Some(meta::metadata::Kind::Resource(r)) => Ok(Arc::new(Meta {
            group: r.group,
            kind: r.kind,
            namespace: r.namespace,
            name: r.name,
            section: r.section,
            port: u16::try_from(r.port).ok().filter(|p| *p > 0),
        })),
        None => Err(Invalid::new("metadata is empty")),
    }
}

/// An endpoint, with the labels of its whole set beside its own.
pub(crate) fn endpoint(addr: destination::WeightedAddr, set_labels: &HashMap<String, String>) -> Result<Endpoint> {
    let mut labels: Vec<(String, String)> = set_labels
        .iter()
        .filter(|(k, _)| !addr.metric_labels.contains_key(*k))
        .chain(&addr.metric_labels)
        .filter(|(k, _)| k.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .map(|(k, v)| (format!("dst_{k}"), v.clone()))
        .collect();
    labels.sort();
    let hint = addr.protocol_hint.unwrap_or_default();
    let transport_port = hint.opaque_transport.map(|t| port(t.inbound_port)).transpose()?;
    Ok(Endpoint {
        addr: socket_addr(required(addr.addr, "an endpoint's address")?)?,
        weight: addr.weight,
        labels: labels.into(),
        identity: addr.tls_identity.map(identity).transpose()?,
        h2: matches!(hint.protocol, Some(destination::protocol_hint::Protocol::H2(_))),
        opaque: matches!(hint.protocol, Some(destination::protocol_hint::Protocol::Opaque(_))),
        transport_port,
        authority_override: addr
            .authority_override
            .map(|a| a.authority_override)
            .filter(|a| !a.is_empty())
            .map(|a| match a.parse::<http::uri::Authority>() {
                Ok(_) => Ok(Arc::from(a)),
                Err(_) => Err(Invalid::new("an authority override is no authority")),
            })
            .transpose()?,
        http2: addr.http2.map(http2).transpose()?,
    })
}

/// An endpoint's identity. What cannot be understood is an error, never "no identity": that would send plaintext.
fn identity(tls: destination::TlsIdentity) -> Result<Identity> {
    use destination::tls_identity::Strategy;
    let server_name = tls.server_name.map(|n| n.name).filter(|n| !n.is_empty());
    let name = match required(tls.strategy, "an identity's kind")? {
        Strategy::DnsLikeIdentity(id) => id.name,
        Strategy::UriLikeIdentity(id) => id.uri,
    };
    let server_name = server_name.unwrap_or_else(|| name.clone());
    match rustls::pki_types::DnsName::try_from(server_name.as_str()) {
        Ok(_) if !name.is_empty() => Ok(Identity { name: name.into(), server_name: server_name.into() }),
        _ => Err(Invalid::new("an identity's server name is no DNS name")),
    }
}

fn http2(params: destination::Http2ClientParams) -> Result<Http2Params> {
    let window = |w: u32| (65_535..=0x7fff_ffff).contains(&w).then_some(w);
    let flow = params.flow_control.unwrap_or_default();
    let keepalive = params.keep_alive.unwrap_or_default();
    Ok(Http2Params {
        stream_window: window(flow.initial_stream_window_size),
        connection_window: window(flow.initial_connection_window_size),
        keepalive_interval: limit(keepalive.interval)?,
        keepalive_timeout: limit(keepalive.timeout)?,
    })
}

fn backoff(value: linkerd2_proxy_api::outbound::ExponentialBackoff) -> Result<Backoff> {
    let min = duration(required(value.min_backoff, "a back-off's minimum")?)?;
    let max = duration(required(value.max_backoff, "a back-off's maximum")?)?;
    let jitter = f64::from(value.jitter_ratio);
    if min.is_zero() || max < min || !(0.0..=100.0).contains(&jitter) {
        return Err(Invalid::new("a back-off's bounds make no sense"));
    }
    Ok(Backoff { min, max, jitter })
}

fn host_match(value: linkerd2_proxy_api::http_route::HostMatch) -> Result<HostMatch> {
    use linkerd2_proxy_api::http_route::host_match::Match;
    match required(value.r#match, "a host match")? {
        Match::Exact(name) => Ok(HostMatch::Exact(name.to_ascii_lowercase())),
        Match::Suffix(suffix) => Ok(suffix_match(suffix.reverse_labels)),
    }
}

fn suffix_match(mut reverse_labels: Vec<String>) -> HostMatch {
    reverse_labels.reverse();
    HostMatch::Suffix(reverse_labels.join(".").trim_start_matches("*.").to_ascii_lowercase())
}

fn regex(pattern: &str) -> Result<crate::policy::Regex> {
    crate::policy::Regex::new(pattern).map_err(|e| Invalid::new(format!("a pattern is wrong: {e}")))
}

fn http_match(value: linkerd2_proxy_api::http_route::HttpRouteMatch) -> Result<HttpMatch> {
    use linkerd2_proxy_api::http_route::{path_match, query_param_match};
    let path = match value.path {
        None => None,
        Some(path) => Some(match required(path.kind, "a path match")? {
            path_match::Kind::Exact(p) => PathMatch::Exact(p),
            path_match::Kind::Prefix(p) => PathMatch::Prefix(p),
            path_match::Kind::Regex(p) => PathMatch::Regex(regex(&p)?),
        }),
    };
    let query = value
        .query_params
        .into_iter()
        .map(|q| {
            let value = match required(q.value, "a query match")? {
                query_param_match::Value::Exact(v) => crate::policy::ValueMatch::Exact(v.into_bytes()),
                query_param_match::Value::Regex(p) => crate::policy::ValueMatch::Regex(regex(&p)?),
            };
            Ok((q.name, value))
        })
        .collect::<Result<_>>()?;
    Ok(HttpMatch {
        path,
        headers: value.headers.into_iter().map(header_match).collect::<Result<_>>()?,
        query,
        method: value.method.map(method).transpose()?,
    })
}

fn grpc_match(value: linkerd2_proxy_api::grpc_route::GrpcRouteMatch) -> Result<HttpMatch> {
    let rpc = value.rpc.unwrap_or_default();
    let path = match (rpc.service.as_str(), rpc.method.as_str()) {
        ("", "") => None,
        (service, "") => Some(PathMatch::Prefix(format!("/{service}"))),
        ("", method) => Some(PathMatch::Regex(regex(&format!("/[^/]+/{}", escape(method)))?)),
        (service, method) => Some(PathMatch::Exact(format!("/{service}/{method}"))),
    };
    Ok(HttpMatch {
        path,
        headers: value.headers.into_iter().map(header_match).collect::<Result<_>>()?,
        query: Vec::new(),
        method: None,
    })
}

/// Escapes a literal for a pattern.
fn escape(literal: &str) -> String {
    let mut out = String::with_capacity(literal.len());
    for c in literal.chars() {
        if !c.is_alphanumeric() && c != '_' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn header_match(value: linkerd2_proxy_api::http_route::HeaderMatch) -> Result<crate::policy::HeaderMatch> {
    use linkerd2_proxy_api::http_route::header_match::Value;
    let name = header_name(&value.name)?;
    let value = match required(value.value, "a header match")? {
        Value::Exact(v) => crate::policy::ValueMatch::Exact(v),
        Value::Regex(p) => crate::policy::ValueMatch::Regex(regex(&p)?),
    };
    Ok(crate::policy::HeaderMatch { name, value })
}

fn method(value: http_types::HttpMethod) -> Result<Arc<str>> {
    let method: http::Method = value.try_into().map_err(|_| Invalid::new("a method is wrong"))?;
    Ok(method.as_str().into())
}

fn header_name(name: &str) -> Result<Vec<u8>> {
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Ok(name.as_str().as_bytes().to_vec()),
        Err(_) => Err(Invalid::new("a header name is wrong")),
    }
}

fn headers(value: Option<http_types::Headers>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    value
        .unwrap_or_default()
        .headers
        .into_iter()
        .map(|h| match http::HeaderValue::from_bytes(&h.value) {
            Ok(_) => Ok((header_name(&h.name)?, h.value)),
            Err(_) => Err(Invalid::new("a header value is wrong")),
        })
        .collect()
}

fn header_change(
    add: Option<http_types::Headers>,
    set: Option<http_types::Headers>,
    remove: &[String],
) -> Result<HeaderChange> {
    Ok(HeaderChange {
        add: headers(add)?,
        set: headers(set)?,
        remove: remove.iter().map(|n| header_name(n)).collect::<Result<_>>()?,
    })
}

fn ratio(value: Option<linkerd2_proxy_api::http_route::Ratio>) -> Result<Ratio> {
    match value {
        None => Ok(Ratio { numerator: 1, denominator: 1 }),
        Some(r) if r.denominator == 0 => Err(Invalid::new("a ratio's denominator is zero")),
        Some(r) => Ok(Ratio { numerator: r.numerator, denominator: r.denominator }),
    }
}

fn status(value: u32, range: std::ops::Range<u16>) -> Result<u16> {
    match u16::try_from(value) {
        Ok(s) if range.contains(&s) => Ok(s),
        _ => Err(Invalid::new(format!("{value} is no status that could be used here"))),
    }
}

fn redirect(value: linkerd2_proxy_api::http_route::RequestRedirect) -> Result<Redirect> {
    use linkerd2_proxy_api::http_route::path_modifier::Replace;
    let scheme: Option<http::uri::Scheme> =
        value.scheme.map(TryInto::try_into).transpose().map_err(|_| Invalid::new("a scheme is wrong"))?;
    let path = match value.path {
        None => None,
        Some(path) => Some(match required(path.replace, "a path replacement")? {
            Replace::Full(p) => crate::policy::PathChange::Full(p),
            Replace::Prefix(p) => crate::policy::PathChange::Prefix(p),
        }),
    };
    Ok(Redirect {
        scheme: scheme.map(|s| s.as_str().to_owned()),
        host: Some(value.host).filter(|h| !h.is_empty()),
        port: if value.port == 0 { None } else { Some(port(value.port)?) },
        path,
        status: if value.status == 0 { 302 } else { status(value.status, 300..400)? },
    })
}
