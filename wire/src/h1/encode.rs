//! Encoders: from the vocabulary to octets, straight into the output.
//!
//! Whatever the caller passes, what is written has the framing that was asked for: octets that would end a line or a
//! token early are percent-encoded in the first line, and a field that holds one is left out. The decoders of both HTTP
//! versions refuse such octets, so this is the second lock on the door.

use super::{Framing, chars};
use crate::head::{Headers, Request, Response, Version};

/// Writes a request's head: always HTTP/1.1, Host from `authority`, framing fields from `framing` alone, and
/// `connection: upgrade` when `upgrade` is among the headers. The absolute form is written where the client used it.
pub fn encode_request(head: &Request, framing: Framing, out: &mut Vec<u8>) {
    let size = head.method.len() + head.path.len() + 2 * head.authority.len() + head.headers.list_size();
    out.reserve(size + 96);
    put_escaped(&head.method, chars::is_token, out);
    out.push(b' ');
    let target_at = out.len();
    if head.method == b"CONNECT" {
        put_escaped(&head.authority, chars::is_authority, out);
    } else if head.absolute_form && !head.authority.is_empty() {
        out.extend_from_slice(if head.scheme == b"https" { b"https://" } else { b"http://" });
        put_escaped(&head.authority, chars::is_authority, out);
        if head.path != b"*" {
            put_escaped(&head.path, chars::is_target, out);
        }
    } else {
        put_escaped(&head.path, chars::is_target, out);
    }
    if out.len() == target_at {
        out.push(b'/');
    }
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    put_escaped(&head.authority, chars::is_authority, out);
    out.extend_from_slice(b"\r\n");
    let seen = put_fields(&head.headers, out);
    match (seen.upgrade, seen.te) {
        (true, true) => out.extend_from_slice(b"connection: upgrade, te\r\n"),
        (true, false) => out.extend_from_slice(b"connection: upgrade\r\n"),
        (false, true) => out.extend_from_slice(b"connection: te\r\n"),
        (false, false) => {}
    }
    put_framing(framing, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes a response's head. `version` is the client's, `framing` has gone through [`Framing::towards`] it.
///
/// With [`Framing::None`] (HEAD, 304) a content-length among the headers is written: it is information there.
pub fn encode_response(head: &Response, framing: Framing, keep_alive: bool, version: Version, out: &mut Vec<u8>) {
    let reason = reason_phrase(head.status);
    out.reserve(reason.len() + head.headers.list_size() + 96);
    out.extend_from_slice(if version == Version::H10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    let status = head.status.clamp(100, 999);
    out.extend([status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8));
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    let seen = put_fields(&head.headers, out);
    if !head.is_informational() {
        let close = !keep_alive && head.status != 101 || framing == Framing::UntilClose;
        match (seen.upgrade, close) {
            (true, true) => out.extend_from_slice(b"connection: upgrade, close\r\n"),
            (true, false) => out.extend_from_slice(b"connection: upgrade\r\n"),
            (false, true) => out.extend_from_slice(b"connection: close\r\n"),
            (false, false) if version == Version::H10 => out.extend_from_slice(b"connection: keep-alive\r\n"),
            (false, false) => {}
        }
    }
    match framing {
        Framing::None if head.status >= 200 && head.status != 204 => {
            if let Some(n) = content_length(&head.headers) {
                put_framing(Framing::Length(n), out);
            }
        }
        framing => put_framing(framing, out),
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a piece of a body. Writes nothing for an empty piece: an empty chunk would end the body.
pub fn encode_data(framing: Framing, data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    if framing == Framing::Chunked {
        out.reserve(data.len() + 20);
        put_hex(data.len(), out);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    } else {
        out.extend_from_slice(data);
    }
}

/// Writes the end of a body; trailers only travel in chunked bodies, elsewhere they are dropped.
pub fn encode_end(framing: Framing, trailers: Option<&Headers>, out: &mut Vec<u8>) {
    if framing != Framing::Chunked {
        return;
    }
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        out.reserve(trailers.list_size());
        for (name, value) in trailers.iter() {
            if !matches!(name, b"te" | b"upgrade") {
                put_field(name, value, out);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The framing to write a request with, whichever version it came in; `end` says that no body follows.
pub fn request_framing(head: &Request, end: bool) -> Framing {
    if head.method == b"CONNECT" {
        return Framing::None;
    }
    match (content_length(&head.headers), end) {
        (Some(_), true) => Framing::Length(0),
        (None, true) => Framing::None,
        (Some(n), false) => Framing::Length(n),
        (None, false) => Framing::Chunked,
    }
}

/// The framing to write a response with, whichever version it came in, to a client of version `client` that asked with
/// `method`; `end` says that no body follows.
pub fn response_framing(method: &[u8], head: &Response, end: bool, client: Version) -> Framing {
    let status = head.status;
    let tunnel = method == b"CONNECT" && (200..300).contains(&status);
    if tunnel || method == b"HEAD" || status < 200 || status == 204 || status == 304 {
        return Framing::None;
    }
    if end {
        return Framing::Length(0);
    }
    content_length(&head.headers).map_or(Framing::Chunked, Framing::Length).towards(client)
}

fn content_length(headers: &Headers) -> Option<u64> {
    headers.get(b"content-length").and_then(chars::length)
}

#[derive(Default)]
struct Seen {
    upgrade: bool,
    te: bool,
}

fn put_fields(headers: &Headers, out: &mut Vec<u8>) -> Seen {
    let mut seen = Seen::default();
    for (name, value) in headers.iter() {
        if put_field(name, value, out) {
            seen.upgrade |= name == b"upgrade";
            seen.te |= name == b"te";
        }
    }
    seen
}

/// Writes a field unless it is the codec's own or could not be written as one line.
fn put_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) -> bool {
    let own = match name {
        b"host" | b"connection" | b"keep-alive" | b"content-length" | b"proxy-connection" | b"transfer-encoding" => {
            true
        }
        b"te" => value != b"trailers",
        _ => false,
    };
    if own || !chars::token(name) || memchr::memchr3(b'\r', b'\n', 0, value).is_some() {
        return false;
    }
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
    true
}

fn put_framing(framing: Framing, out: &mut Vec<u8>) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(n) => {
            out.extend_from_slice(b"content-length: ");
            put_decimal(n, out);
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn put_escaped(bytes: &[u8], allowed: impl Fn(u8) -> bool, out: &mut Vec<u8>) {
    if bytes.iter().all(|&b| allowed(b)) {
        out.extend_from_slice(bytes);
        return;
    }
    for &b in bytes {
        if allowed(b) {
            out.push(b);
        } else {
            out.extend([b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        }
    }
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn put_decimal(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn put_hex(mut n: usize, out: &mut Vec<u8>) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = HEX[n & 15];
        n >>= 4;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The registered reason phrase of a status (RFC 9110 §15 and the IANA registry), or an empty one.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}
