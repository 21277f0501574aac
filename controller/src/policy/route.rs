//! Matches and filters of routes, which both directions share, in the API's words.

use linkerd2_proxy_api::grpc_route::{GrpcRouteMatch, GrpcRpcMatch};
use linkerd2_proxy_api::http_route::{
    HeaderMatch, HostMatch, HttpRouteMatch, PathMatch, PathModifier, QueryParamMatch, RequestHeaderModifier,
    RequestRedirect, ResponseHeaderModifier, header_match, host_match, path_match, path_modifier, query_param_match,
};
use linkerd2_proxy_api::http_types::{Headers, HttpMethod, Scheme, headers, http_method, scheme};
use linkerd2_proxy_api::{inbound, outbound};
use std::borrow::Cow;
use weft_core::mesh::types::{
    self, Filter, GrpcMatch, GrpcRouteSpec, GrpcRule, HeaderModifier, HttpMatch, HttpRouteSpec, HttpRule, ValueMatch,
};

/// Hosts of a route; none is all.
pub(super) fn hosts(names: Option<&[String]>) -> Vec<HostMatch> {
    let host = |name: &String| {
        let name = name.to_ascii_lowercase();
        let found = match name.strip_prefix("*.") {
            Some(suffix) => {
                let reverse_labels = suffix.split('.').rev().map(str::to_owned).collect();
                host_match::Match::Suffix(host_match::Suffix { reverse_labels })
            }
            None => host_match::Match::Exact(name),
        };
        HostMatch { r#match: Some(found) }
    };
    names.unwrap_or_default().iter().map(host).collect()
}

/// Rules with their matches. A route without rules has one that matches everything, and so does a rule without matches.
pub(super) fn http_rules(spec: &HttpRouteSpec) -> impl Iterator<Item = (Cow<'_, HttpRule>, Vec<HttpRouteMatch>)> {
    let rules: Vec<Cow<'_, HttpRule>> = match spec.rules.as_deref() {
        None | Some([]) => vec![Cow::Owned(HttpRule::default())],
        Some(rules) => rules.iter().map(Cow::Borrowed).collect(),
    };
    rules.into_iter().map(|rule| {
        let matches = match rule.matches.as_deref() {
            None | Some([]) => vec![http_match(&HttpMatch::default())],
            Some(matches) => matches.iter().map(http_match).collect(),
        };
        (rule, matches)
    })
}

/// As [`http_rules`].
pub(super) fn grpc_rules(spec: &GrpcRouteSpec) -> impl Iterator<Item = (Cow<'_, GrpcRule>, Vec<GrpcRouteMatch>)> {
    let rules: Vec<Cow<'_, GrpcRule>> = match spec.rules.as_deref() {
        None | Some([]) => vec![Cow::Owned(GrpcRule::default())],
        Some(rules) => rules.iter().map(Cow::Borrowed).collect(),
    };
    rules.into_iter().map(|rule| {
        let matches = match rule.matches.as_deref() {
            None | Some([]) => vec![GrpcRouteMatch::default()],
            Some(matches) => matches.iter().map(grpc_match).collect(),
        };
        (rule, matches)
    })
}

fn is_regex(type_: Option<&str>) -> bool {
    type_ == Some("RegularExpression")
}

fn http_match(found: &HttpMatch) -> HttpRouteMatch {
    let path = found.path.as_ref();
    let value = path.and_then(|path| path.value.clone()).unwrap_or_else(|| "/".to_owned());
    let kind = match path.and_then(|path| path.type_.as_deref()) {
        Some("Exact") => path_match::Kind::Exact(value),
        Some("RegularExpression") => path_match::Kind::Regex(value),
        _ => path_match::Kind::Prefix(value),
    };
    let query = |query: &ValueMatch| QueryParamMatch {
        name: query.name.clone(),
        value: Some(match is_regex(query.type_.as_deref()) {
            true => query_param_match::Value::Regex(query.value.clone()),
            false => query_param_match::Value::Exact(query.value.clone()),
        }),
    };
    HttpRouteMatch {
        path: Some(PathMatch { kind: Some(kind) }),
        headers: header_matches(found.headers.as_deref()),
        query_params: found.query_params.iter().flatten().map(query).collect(),
        method: found.method.as_deref().map(method),
    }
}

fn grpc_match(found: &GrpcMatch) -> GrpcRouteMatch {
    // The API has no patterns here; validation refuses them.
    let rpc = found.method.as_ref().map(|method| GrpcRpcMatch {
        service: method.service.clone().unwrap_or_default(),
        method: method.method.clone().unwrap_or_default(),
    });
    GrpcRouteMatch { rpc, headers: header_matches(found.headers.as_deref()) }
}

fn header_matches(list: Option<&[ValueMatch]>) -> Vec<HeaderMatch> {
    let header = |header: &ValueMatch| HeaderMatch {
        name: header.name.clone(),
        value: Some(match is_regex(header.type_.as_deref()) {
            true => header_match::Value::Regex(header.value.clone()),
            false => header_match::Value::Exact(header.value.clone().into_bytes()),
        }),
    };
    list.unwrap_or_default().iter().map(header).collect()
}

/// A method by name.
pub(crate) fn method(name: &str) -> HttpMethod {
    use http_method::Registered::{Connect, Delete, Get, Head, Options, Patch, Post, Put, Trace};
    let registered = [
        ("GET", Get),
        ("POST", Post),
        ("PUT", Put),
        ("DELETE", Delete),
        ("PATCH", Patch),
        ("OPTIONS", Options),
        ("CONNECT", Connect),
        ("HEAD", Head),
        ("TRACE", Trace),
    ];
    let known = registered.into_iter().find(|(known, _)| *known == name);
    let type_ = match known {
        Some((_, method)) => http_method::Type::Registered(method.into()),
        None => http_method::Type::Unregistered(name.to_owned()),
    };
    HttpMethod { r#type: Some(type_) }
}

fn headers(list: Option<&[types::Header]>) -> Option<Headers> {
    let header = |header: &types::Header| headers::Header {
        name: header.name.clone(),
        value: header.value.clone().into_bytes(),
    };
    list.map(|list| Headers { headers: list.iter().map(header).collect() })
}

fn request_headers(change: &HeaderModifier) -> RequestHeaderModifier {
    RequestHeaderModifier {
        add: headers(change.add.as_deref()),
        set: headers(change.set.as_deref()),
        remove: change.remove.clone().unwrap_or_default(),
    }
}

fn response_headers(change: &HeaderModifier) -> ResponseHeaderModifier {
    ResponseHeaderModifier {
        add: headers(change.add.as_deref()),
        set: headers(change.set.as_deref()),
        remove: change.remove.clone().unwrap_or_default(),
    }
}

fn redirect(redirect: &types::RequestRedirect) -> RequestRedirect {
    let scheme = |name: &String| {
        let type_ = match name.as_str() {
            "http" => scheme::Type::Registered(scheme::Registered::Http.into()),
            "https" => scheme::Type::Registered(scheme::Registered::Https.into()),
            other => scheme::Type::Unregistered(other.to_owned()),
        };
        Scheme { r#type: Some(type_) }
    };
    let path = |path: &types::PathModifier| PathModifier {
        replace: Some(match path.type_.as_str() {
            "ReplacePrefixMatch" => {
                path_modifier::Replace::Prefix(path.replace_prefix_match.clone().unwrap_or_default())
            }
            _ => path_modifier::Replace::Full(path.replace_full_path.clone().unwrap_or_default()),
        }),
    };
    RequestRedirect {
        scheme: redirect.scheme.as_ref().map(scheme),
        host: redirect.hostname.clone().unwrap_or_default(),
        path: redirect.path.as_ref().map(path),
        port: redirect.port.unwrap_or_default().into(),
        status: redirect.status_code.unwrap_or(302).into(),
    }
}

/// A filter of requests that come in; `None` for what validation refuses there.
pub(super) fn inbound_http_filter(filter: &Filter) -> Option<inbound::http_route::Filter> {
    use inbound::http_route::filter::Kind;
    let kind = match filter.type_.as_str() {
        "RequestHeaderModifier" => {
            Kind::RequestHeaderModifier(request_headers(filter.request_header_modifier.as_ref()?))
        }
        "RequestRedirect" => Kind::Redirect(redirect(filter.request_redirect.as_ref()?)),
        _ => return None,
    };
    Some(inbound::http_route::Filter { kind: Some(kind) })
}

/// As [`inbound_http_filter`], of gRPC calls.
pub(super) fn inbound_grpc_filter(filter: &Filter) -> Option<inbound::grpc_route::Filter> {
    use inbound::grpc_route::filter::Kind;
    let kind = match filter.type_.as_str() {
        "RequestHeaderModifier" => {
            Kind::RequestHeaderModifier(request_headers(filter.request_header_modifier.as_ref()?))
        }
        _ => return None,
    };
    Some(inbound::grpc_route::Filter { kind: Some(kind) })
}

/// A filter of requests that go out.
pub(super) fn outbound_http_filter(filter: &Filter) -> Option<outbound::http_route::Filter> {
    use outbound::http_route::filter::Kind;
    let kind = match filter.type_.as_str() {
        "RequestHeaderModifier" => {
            Kind::RequestHeaderModifier(request_headers(filter.request_header_modifier.as_ref()?))
        }
        "ResponseHeaderModifier" => {
            Kind::ResponseHeaderModifier(response_headers(filter.response_header_modifier.as_ref()?))
        }
        "RequestRedirect" => Kind::Redirect(redirect(filter.request_redirect.as_ref()?)),
        _ => return None,
    };
    Some(outbound::http_route::Filter { kind: Some(kind) })
}

/// As [`outbound_http_filter`], of gRPC calls.
pub(super) fn outbound_grpc_filter(filter: &Filter) -> Option<outbound::grpc_route::Filter> {
    use outbound::grpc_route::filter::Kind;
    let kind = match filter.type_.as_str() {
        "RequestHeaderModifier" => {
            Kind::RequestHeaderModifier(request_headers(filter.request_header_modifier.as_ref()?))
        }
        _ => return None,
    };
    Some(outbound::grpc_route::Filter { kind: Some(kind) })
}
