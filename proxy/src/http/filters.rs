//! Filters of routes and backends, applied to a request.

use weft_wire::Request;

use super::{Failure, Kind};
use crate::policy::{Filter, HeaderChange, PathChange, Redirect};

/// Applies filters in order. Changes to the response are collected in `response`.
///
/// # Errors
/// The answer, when a filter answers the request itself.
pub fn apply(
    filters: &[Filter],
    head: &mut Request,
    prefix: usize,
    response: &mut Vec<HeaderChange>,
) -> Result<(), Failure> {
    for filter in filters {
        match filter {
            Filter::FailHttp { status, message, ratio } if ratio.sample() => {
                return Err(Failure { status: *status, ..Failure::new(Kind::Injected, &**message) });
            }
            Filter::FailGrpc { code, message, ratio } if ratio.sample() => {
                return Err(Failure { grpc: *code, ..Failure::new(Kind::Injected, &**message) });
            }
            Filter::FailHttp { .. } | Filter::FailGrpc { .. } => {}
            Filter::RequestHeaders(change) => change.apply(&mut head.headers),
            Filter::ResponseHeaders(change) => response.push(change.clone()),
            Filter::Redirect(redirect) => return Err(redirected(redirect, head, prefix)),
        }
    }
    Ok(())
}

fn redirected(redirect: &Redirect, head: &Request, prefix: usize) -> Failure {
    let scheme = match &redirect.scheme {
        Some(scheme) => scheme.as_bytes(),
        None if head.scheme.is_empty() => b"http",
        None => &head.scheme,
    };
    // A change of scheme drops the port of the old one.
    let (host, port) = split_port(&head.authority);
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => Some(port.to_string().into_bytes()),
        (None, Some(_)) => None,
        (None, None) => port.map(<[u8]>::to_vec),
    };
    let host = redirect.host.as_ref().map_or(host, |h| h.as_bytes());
    let mut location = [scheme, b"://", host].concat();
    if let Some(port) = port {
        location.push(b':');
        location.extend_from_slice(&port);
    }
    let at = head.path.iter().position(|&b| b == b'?').unwrap_or(head.path.len());
    let (path, query) = head.path.split_at(at);
    match &redirect.path {
        None => location.extend_from_slice(path),
        Some(PathChange::Full(full)) => location.extend_from_slice(full.as_bytes()),
        Some(PathChange::Prefix(new)) => {
            let rest = path.get(prefix..).unwrap_or_default();
            location.extend_from_slice(new.trim_end_matches('/').as_bytes());
            if !rest.starts_with(b"/") {
                location.push(b'/');
            }
            location.extend_from_slice(rest);
        }
    }
    location.extend_from_slice(query);
    Failure { status: redirect.status, location: Some(location), ..Failure::new(Kind::Redirect, "redirected") }
}

/// Host and port of an authority; an IPv6 address keeps its brackets.
fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let from = authority.iter().rposition(|&b| b == b']').unwrap_or(0);
    match authority.iter().skip(from).position(|&b| b == b':') {
        Some(at) => {
            let (host, port) = authority.split_at(from + at);
            (host, port.get(1..))
        }
        None => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(redirect: Redirect, authority: &str, path: &str, prefix: usize) -> String {
        let mut head = Request { authority: authority.into(), path: path.into(), ..Request::default() };
        let failure = apply(&[Filter::Redirect(redirect)], &mut head, prefix, &mut Vec::new()).unwrap_err();
        String::from_utf8(failure.location.unwrap()).unwrap()
    }

    fn redirect() -> Redirect {
        Redirect { scheme: None, host: None, port: None, path: None, status: 302 }
    }

    #[test]
    fn redirects_replace_what_they_name() {
        assert_eq!(location(redirect(), "web:81", "/a?b", 0), "http://web:81/a?b");
        let https = Redirect { scheme: Some("https".into()), ..redirect() };
        assert_eq!(location(https, "web:81", "/a", 0), "https://web/a");
        let host = Redirect { host: Some("other".into()), port: Some(99), ..redirect() };
        assert_eq!(location(host, "[fd00::1]:81", "/", 0), "http://other:99/");
        assert_eq!(location(redirect(), "[fd00::1]", "/", 0), "http://[fd00::1]/");
        let full = Redirect { path: Some(PathChange::Full("/new".into())), ..redirect() };
        assert_eq!(location(full, "web", "/old?q=1", 0), "http://web/new?q=1");
        let prefix = Redirect { path: Some(PathChange::Prefix("/v2/".into())), ..redirect() };
        assert_eq!(location(prefix, "web", "/v1/x", 3), "http://web/v2/x");
    }
}
