//! What the proxy reads from and does to the fields of requests and responses.

use weft_wire::{Headers, Request, Response, Version};

const ORIG_PROTO: &[u8] = b"l5d-orig-proto";
const HOST: &[u8] = b"host";
/// Says to the peer's proxy what became of the request that it answers. Linkerd's proxy passes over it.
const FATE: &[u8] = b"l5d-proxy-request";
const PROXY_ERROR: &[u8] = b"l5d-proxy-error";
const PROXY_CONNECTION: &[u8] = b"l5d-proxy-connection";
/// The last gRPC status that is defined.
const GRPC_LAST: u32 = 16;
const GRPC_UNKNOWN: u32 = 2;

/// True for gRPC requests.
pub fn is_grpc(headers: &Headers) -> bool {
    headers.get(b"content-type").is_some_and(|v| v.starts_with(b"application/grpc"))
}

/// The gRPC status in a response's head or trailers. Servers choose it, and each makes new series: what is not defined
/// is Unknown, as clients see it too.
pub fn grpc_status(headers: &Headers) -> Option<u32> {
    let code = std::str::from_utf8(headers.get(b"grpc-status")?).ok()?.trim().parse().ok()?;
    Some(if code > GRPC_LAST { GRPC_UNKNOWN } else { code })
}

/// True when the request switches protocols: the connection becomes a tunnel if the server agrees.
pub fn is_upgrade(head: &Request) -> bool {
    head.version != Version::H2 && (head.method == b"CONNECT" || head.headers.contains(b"upgrade"))
}

/// An upgrade to cleartext HTTP/2 would carry requests past the routes and authorizations of the proxy, so it is not
/// offered to the server, who may ignore any upgrade (RFC 9110 §7.8).
pub fn refuse_h2c(headers: &mut Headers) {
    if headers.has_token(b"upgrade", b"h2c") {
        headers.remove(b"upgrade");
        headers.remove(b"http2-settings");
    }
}

/// Marks an HTTP/1 request that travels as HTTP/2. It has its Host field besides `:authority`: linkerd2-proxy gives the
/// application those fields that came, and servers refuse a request without Host.
pub fn upgrade_request(head: &mut Request) {
    let value: &[u8] = match (head.version, head.absolute_form) {
        (Version::H10, false) => b"HTTP/1.0",
        (Version::H10, true) => b"HTTP/1.0; absolute-form",
        (_, false) => b"HTTP/1.1",
        (_, true) => b"HTTP/1.1; absolute-form",
    };
    head.headers.set(ORIG_PROTO, value);
    if !head.authority.is_empty() {
        head.headers.set(HOST, &head.authority);
    }
    if head.scheme.is_empty() {
        head.scheme.extend_from_slice(b"http");
    }
}

/// Undoes [`upgrade_request`], for an endpoint that gets HTTP/1.
pub fn forget_upgrade(head: &mut Request) {
    head.headers.remove(ORIG_PROTO);
    head.headers.remove(HOST);
}

/// Takes away what says that a request was HTTP/1 originally. Only proxies say so, and this client is none.
pub fn refuse_downgrade(head: &mut Request) {
    head.headers.remove(ORIG_PROTO);
}

/// Restores an HTTP/1 request that travelled as HTTP/2; true when it was one. Requests that make a tunnel of their
/// connection never travel so: this connection carries the requests of others as well.
pub fn downgrade_request(head: &mut Request) -> bool {
    let Some(value) = head.headers.get(ORIG_PROTO) else { return false };
    if head.version != Version::H2 || head.method == b"CONNECT" {
        head.headers.remove(ORIG_PROTO);
        return false;
    }
    let version = if value.starts_with(b"HTTP/1.1") {
        Version::H11
    } else if value.starts_with(b"HTTP/1.0") {
        Version::H10
    } else {
        head.headers.remove(ORIG_PROTO);
        return false;
    };
    head.absolute_form = value.ends_with(b"; absolute-form");
    head.version = version;
    head.headers.remove(ORIG_PROTO);
    true
}

/// Marks the response to a request that was restored by [`downgrade_request`].
pub fn upgrade_response(head: &mut Response) {
    let value: &[u8] = match head.version {
        Version::H10 => b"HTTP/1.0",
        Version::H11 => b"HTTP/1.1",
        Version::H2 => return,
    };
    head.headers.set(ORIG_PROTO, value);
}

/// What became of a request that the application did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// No application has seen it, and none can be connected to at present.
    Gone,
    /// No application has seen it: this one was too slow to accept it.
    Unseen,
    /// It was lost with the application, and does no harm when it is done twice.
    Lost,
}

/// Says to the peer's proxy what became of the request.
pub fn set_fate(head: &mut Response, fate: Fate) {
    let value: &[u8] = match fate {
        Fate::Gone => b"gone",
        Fate::Unseen => b"unseen",
        Fate::Lost => b"lost",
    };
    head.headers.set(FATE, value);
}

/// What the peer's proxy says about the request.
pub fn fate(head: &Response) -> Option<Fate> {
    match head.headers.get(FATE)? {
        b"gone" => Some(Fate::Gone),
        b"unseen" => Some(Fate::Unseen),
        b"lost" => Some(Fate::Lost),
        _ => None,
    }
}

/// What the peer's proxy says went wrong.
pub fn error(head: &Response) -> Option<String> {
    Some(String::from_utf8_lossy(head.headers.get(PROXY_ERROR)?).into_owned())
}

/// Removes from an application's own response what only proxies say to each other.
pub fn strip_response(head: &mut Response) {
    for name in [PROXY_ERROR, PROXY_CONNECTION, FATE] {
        head.headers.remove(name);
    }
}

/// Removes from a response what is between proxies. True when the peer asks that the client's connection end.
pub fn downgrade_response(head: &mut Response, meshed: bool) -> bool {
    head.headers.remove(ORIG_PROTO);
    if let Some(error) = head.headers.get(PROXY_ERROR) {
        tracing::info!(error = %String::from_utf8_lossy(error), status = head.status, "the peer's proxy failed");
    }
    let close = head.headers.get(PROXY_CONNECTION) == Some(b"close");
    strip_response(head);
    close && meshed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_travels_as_http2_and_is_restored() {
        let original = Request {
            version: Version::H10,
            method: b"GET".to_vec(),
            authority: b"web".to_vec(),
            path: b"/".to_vec(),
            absolute_form: true,
            ..Request::default()
        };
        let mut head = original.clone();
        upgrade_request(&mut head);
        assert_eq!(head.headers.get(ORIG_PROTO), Some(&b"HTTP/1.0; absolute-form"[..]));
        // For proxies that take Host from the fields only.
        assert_eq!(head.headers.get(HOST), Some(&b"web"[..]));
        let mut elsewhere = head.clone();
        forget_upgrade(&mut elsewhere);
        elsewhere.scheme.clear();
        assert_eq!(elsewhere, original);
        // The codec keeps it in the authority alone.
        head.headers.remove(HOST);
        head.version = Version::H2;
        assert!(downgrade_request(&mut head));
        head.scheme.clear();
        assert_eq!(head, original);
    }

    #[test]
    fn an_http1_client_cannot_claim_to_be_upgraded() {
        let mut head = Request { version: Version::H11, ..Request::default() };
        head.headers.push(ORIG_PROTO, b"HTTP/1.0");
        assert!(!downgrade_request(&mut head));
        assert!(head.headers.is_empty());
    }

    #[test]
    fn grpc_statuses_are_those_that_exist() {
        let status = |text: &[u8]| {
            let mut headers = Headers::new();
            headers.push(b"grpc-status", text);
            grpc_status(&headers)
        };
        assert_eq!(status(b"0"), Some(0));
        assert_eq!(status(b"16"), Some(16));
        assert_eq!(status(b"4000000000"), Some(2));
        assert_eq!(status(b"no"), None);
    }

    #[test]
    fn a_tunnel_cannot_be_asked_for_on_a_shared_connection() {
        let mut head = Request { version: Version::H2, method: b"CONNECT".to_vec(), ..Request::default() };
        head.headers.push(ORIG_PROTO, b"HTTP/1.1");
        assert!(!downgrade_request(&mut head));
        assert!(head.headers.is_empty() && !is_upgrade(&head));
    }

    #[test]
    fn cleartext_http2_is_not_offered() {
        let mut headers = Headers::new();
        headers.push(b"upgrade", b"h2c");
        headers.push(b"http2-settings", b"AAMAAABk");
        refuse_h2c(&mut headers);
        assert!(headers.is_empty());
        headers.push(b"upgrade", b"websocket");
        refuse_h2c(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
