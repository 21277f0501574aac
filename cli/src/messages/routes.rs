//! What routes of either direction have in common: matches and filters.

use super::{Fields, case, list, some};
use linkerd2_proxy_api::grpc_route::{GrpcFailureInjector, GrpcRouteMatch};
use linkerd2_proxy_api::http_route::{
    HeaderMatch, HostMatch, HttpFailureInjector, HttpRouteMatch, PathMatch, PathModifier, QueryParamMatch, Ratio,
    RequestHeaderModifier, RequestRedirect, ResponseHeaderModifier, header_match, host_match, path_match,
    path_modifier, query_param_match,
};
use linkerd2_proxy_api::http_types::{Headers, HttpMethod, Scheme, http_method, scheme};
use serde_json::{Value, json};

pub(crate) fn method(method: &HttpMethod) -> Value {
    match &method.r#type {
        None => Value::Null,
        Some(http_method::Type::Unregistered(name)) => name.as_str().into(),
        Some(http_method::Type::Registered(number)) => match http_method::Registered::try_from(*number) {
            Ok(method) => method.as_str_name().into(),
            Err(_) => format!("method {number}").into(),
        },
    }
}

pub(crate) fn host(host: &HostMatch) -> Value {
    match &host.r#match {
        None => Value::Null,
        Some(host_match::Match::Exact(name)) => json!({ "exact": name }),
        Some(host_match::Match::Suffix(suffix)) => json!({ "suffix": name(&suffix.reverse_labels) }),
    }
}

/// A name whose labels are told last first.
pub(crate) fn name(reverse_labels: &[String]) -> String {
    reverse_labels.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".")
}

pub(crate) fn http_match(condition: &HttpRouteMatch) -> Value {
    Fields::default()
        .put("path", some(&condition.path, path))
        .put("headers", list(&condition.headers, header))
        .put("query_params", list(&condition.query_params, query))
        .put("method", some(&condition.method, method))
        .done()
}

pub(crate) fn grpc_match(condition: &GrpcRouteMatch) -> Value {
    let rpc = some(&condition.rpc, |rpc| {
        Fields::default().put("service", rpc.service.as_str()).put("method", rpc.method.as_str()).done()
    });
    Fields::default().put("rpc", rpc).put("headers", list(&condition.headers, header)).done()
}

fn path(path: &PathMatch) -> Value {
    match &path.kind {
        None => Value::Null,
        Some(path_match::Kind::Exact(text)) => json!({ "exact": text }),
        Some(path_match::Kind::Prefix(text)) => json!({ "prefix": text }),
        Some(path_match::Kind::Regex(text)) => json!({ "regex": text }),
    }
}

fn header(header: &HeaderMatch) -> Value {
    let fields = Fields::default().put("name", header.name.as_str());
    match &header.value {
        None => fields,
        Some(header_match::Value::Exact(value)) => fields.put("exact", String::from_utf8_lossy(value).into_owned()),
        Some(header_match::Value::Regex(regex)) => fields.put("regex", regex.as_str()),
    }
    .done()
}

fn query(query: &QueryParamMatch) -> Value {
    let fields = Fields::default().put("name", query.name.as_str());
    match &query.value {
        None => fields,
        Some(query_param_match::Value::Exact(value)) => fields.put("exact", value.as_str()),
        Some(query_param_match::Value::Regex(regex)) => fields.put("regex", regex.as_str()),
    }
    .done()
}

fn headers(headers: &Headers) -> Value {
    list(&headers.headers, |header| json!({ "name": header.name, "value": String::from_utf8_lossy(&header.value) }))
}

pub(crate) fn request_headers(filter: &RequestHeaderModifier) -> Value {
    Fields::default()
        .put("add", some(&filter.add, headers))
        .put("set", some(&filter.set, headers))
        .put("remove", filter.remove.clone())
        .done()
}

pub(crate) fn response_headers(filter: &ResponseHeaderModifier) -> Value {
    Fields::default()
        .put("add", some(&filter.add, headers))
        .put("set", some(&filter.set, headers))
        .put("remove", filter.remove.clone())
        .done()
}

pub(crate) fn redirect(filter: &RequestRedirect) -> Value {
    let scheme_of = |scheme: &Scheme| match &scheme.r#type {
        None => Value::Null,
        Some(scheme::Type::Unregistered(name)) => name.as_str().into(),
        Some(scheme::Type::Registered(number)) => match scheme::Registered::try_from(*number) {
            Ok(scheme) => scheme.as_str_name().to_ascii_lowercase().into(),
            Err(_) => format!("scheme {number}").into(),
        },
    };
    let path_of = |path: &PathModifier| match &path.replace {
        None => Value::Null,
        Some(path_modifier::Replace::Full(text)) => case("full", text.as_str().into()),
        Some(path_modifier::Replace::Prefix(text)) => case("prefix", text.as_str().into()),
    };
    Fields::default()
        .put("scheme", some(&filter.scheme, scheme_of))
        .put("host", filter.host.as_str())
        .put("path", some(&filter.path, path_of))
        .number("port", filter.port)
        .number("status", filter.status)
        .done()
}

fn ratio(ratio: &Ratio) -> Value {
    format!("{}/{}", ratio.numerator, ratio.denominator).into()
}

pub(crate) fn http_failure(filter: &HttpFailureInjector) -> Value {
    Fields::default()
        .put("status", filter.status)
        .put("message", filter.message.as_str())
        .put("ratio", some(&filter.ratio, ratio))
        .done()
}

pub(crate) fn grpc_failure(filter: &GrpcFailureInjector) -> Value {
    Fields::default()
        .put("code", filter.code)
        .put("message", filter.message.as_str())
        .put("ratio", some(&filter.ratio, ratio))
        .done()
}
