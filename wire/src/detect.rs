//! Which protocol a connection speaks, from its first octets.
//!
//! Nothing is consumed: the caller peeks, and gives the same octets to the codec that is chosen. The answer for some
//! octets is the answer for every continuation of them; until that is so it is [`Detected::NeedMore`].

use std::borrow::Cow;

/// What the first octets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.0 or HTTP/1.1: a request line. Also a malformed one, when a lenient server might serve it: the codec refuses it.
    H1,
    /// HTTP/2: the connection preface.
    H2,
    /// A TLS handshake that begins with a ClientHello.
    Tls,
    /// None of these.
    Unknown,
    /// Not decided yet.
    NeedMore,
}

/// What a ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientHello {
    /// Not a well-formed ClientHello, or one larger than [`CLIENT_HELLO_LIMIT`].
    NotTls,
    /// Incomplete.
    NeedMore,
    /// Complete.
    Hello {
        /// The server's name, in lower case.
        sni: Option<String>,
        /// The application protocols offered, in order.
        alpn: Vec<Vec<u8>>,
    },
}

/// Largest ClientHello that is looked at, in octets with its record headers.
pub const CLIENT_HELLO_LIMIT: usize = 8192;

/// Longest request line that detection waits for, in octets.
pub const REQUEST_LINE_LIMIT: usize = 8192;

/// The client's first octets of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// True when `bytes`, the first octets that a server says, are those of an HTTP/2 server: a SETTINGS frame, which it sends
/// without waiting for the client. The client speaks first all the same.
pub fn is_http2_server(bytes: &[u8]) -> bool {
    const SETTINGS: u8 = 4;
    // Three octets of length, type, flags, and the stream, which is none. A setting has six octets, and there are few.
    matches!(bytes, [0, 0, length, SETTINGS, 0, 0, 0, 0, 0, ..] if length % 6 == 0)
}

/// Says what `bytes`, the first octets of a connection, are.
pub fn detect(bytes: &[u8]) -> Detected {
    if bytes.starts_with(PREFACE) {
        return Detected::H2;
    }
    if PREFACE.starts_with(bytes) {
        return Detected::NeedMore;
    }
    match bytes.first() {
        Some(0x16) => tls(bytes),
        _ => http1(bytes),
    }
}

/// The first record's header and the first octet of its handshake message.
fn tls(bytes: &[u8]) -> Detected {
    let plausible = |at: usize, ok: fn(u8) -> bool| bytes.get(at).is_none_or(|&b| ok(b));
    let length = match bytes {
        [_, _, _, high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    };
    if !plausible(1, |b| b == 3)
        || !plausible(2, |b| b <= 4)
        || !plausible(5, |b| b == CLIENT_HELLO)
        || length.is_some_and(|n| n == 0 || n > RECORD_LIMIT)
    {
        return Detected::Unknown;
    }
    if bytes.len() > RECORD_HEADER { Detected::Tls } else { Detected::NeedMore }
}

/// A line that begins with a method and ends with an HTTP/1 version. Other protocols of lines have the one or the other at most.
fn http1(bytes: &[u8]) -> Detected {
    let mut rest = bytes;
    // Empty lines before a request are overlooked by servers, so they must not hide one from us.
    while let Some((b'\r' | b'\n', more)) = rest.split_first() {
        rest = more;
    }
    if bytes.len() - rest.len() > EMPTY_OCTETS {
        return Detected::Unknown;
    }
    let method = rest.iter().position(|&b| !crate::h1::is_token(b)).unwrap_or(rest.len());
    match rest.get(method) {
        None if rest.len() < REQUEST_LINE_LIMIT => return Detected::NeedMore,
        Some(b' ' | b'\t') if method > 0 => {}
        _ => return Detected::Unknown,
    }
    let window = rest.get(..REQUEST_LINE_LIMIT).unwrap_or(rest);
    let Some(lf) = memchr::memchr(b'\n', window) else {
        let line = window;
        // A request line is text, and long ones are URIs.
        if line.iter().any(|&b| b < b' ' && !matches!(b, b'\r' | b'\t')) {
            return Detected::Unknown;
        }
        return match rest.len() >= REQUEST_LINE_LIMIT {
            true if KNOWN_METHODS.contains(&rest.get(..method).unwrap_or_default()) => Detected::H1,
            true => Detected::Unknown,
            false => Detected::NeedMore,
        };
    };
    let line = window.get(..lf).unwrap_or_default();
    if line.iter().any(|&b| b < b' ' && !matches!(b, b'\r' | b'\t')) {
        return Detected::Unknown;
    }
    match line.trim_ascii_end() {
        [.., b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if minor.is_ascii_digit() => Detected::H1,
        _ => Detected::Unknown,
    }
}

const EMPTY_OCTETS: usize = 16;
const KNOWN_METHODS: &[&[u8]] =
    &[b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"];

const RECORD_HEADER: usize = 5;
/// Largest plaintext record (RFC 8446 §5.1).
const RECORD_LIMIT: u16 = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const PROTOCOLS: u16 = 16;

/// Reads the ClientHello that `bytes`, the first octets of a connection, hold, in one record or in several.
pub fn client_hello(bytes: &[u8]) -> ClientHello {
    match handshake(bytes) {
        Ok(Some(message)) => match hello(&message) {
            Some((sni, alpn)) => ClientHello::Hello { sni, alpn },
            None => ClientHello::NotTls,
        },
        Ok(None) if bytes.len() < CLIENT_HELLO_LIMIT => ClientHello::NeedMore,
        Ok(None) | Err(NotTls) => ClientHello::NotTls,
    }
}

/// The octets cannot be the beginning of a ClientHello.
struct NotTls;

/// The body of the first handshake message, when it is complete, put together from its records.
fn handshake(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, NotTls> {
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes.get(..CLIENT_HELLO_LIMIT).unwrap_or(bytes);
    loop {
        let plausible = matches!(rest, [] | [0x16] | [0x16, 3] | [0x16, 3, 0..=4, ..]);
        if !plausible {
            return Err(NotTls);
        }
        let Some(([_, _, _, high, low], after)) = rest.split_first_chunk::<RECORD_HEADER>() else { return Ok(None) };
        let length = u16::from_be_bytes([*high, *low]);
        if length == 0 || length > RECORD_LIMIT {
            return Err(NotTls);
        }
        let (payload, after) = after.split_at(usize::from(length).min(after.len()));
        if message.is_empty() {
            message = Cow::Borrowed(payload);
        } else {
            message.to_mut().extend_from_slice(payload);
        }
        if let [kind, size @ ..] = &*message {
            if *kind != CLIENT_HELLO {
                return Err(NotTls);
            }
            if let Some(([a, b, c], body)) = size.split_first_chunk() {
                let size = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                // A ClientHello is alone in its flight: nothing follows it in its record.
                if size > CLIENT_HELLO_LIMIT || body.len() > size {
                    return Err(NotTls);
                }
                if body.len() == size {
                    return match payload.len() == usize::from(length) {
                        true => Ok(Some(message)),
                        false => Err(NotTls),
                    };
                }
            }
        }
        if payload.len() < usize::from(length) {
            return Ok(None);
        }
        rest = after;
    }
}

/// The fields of interest of a ClientHello, `message` being it with its handshake header (RFC 8446 §4.1.2).
fn hello(message: &[u8]) -> Option<(Option<String>, Vec<Vec<u8>>)> {
    let mut reader = Reader(message);
    reader.take(4)?;
    if reader.take(2)?.first() != Some(&3) {
        return None;
    }
    reader.take(32)?;
    if reader.vector8()?.len() > 32 {
        return None;
    }
    let suites = reader.vector16()?;
    if suites.is_empty() || suites.len() % 2 != 0 || reader.vector8()?.is_empty() {
        return None;
    }
    let (mut sni, mut alpn) = (None, None);
    if !reader.0.is_empty() {
        let mut extensions = Reader(reader.vector16()?);
        if !reader.0.is_empty() {
            return None;
        }
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = Reader(extensions.vector16()?);
            match kind {
                SERVER_NAME if sni.is_none() => sni = Some(server_name(data)?),
                PROTOCOLS if alpn.is_none() => alpn = Some(protocols(data)?),
                SERVER_NAME | PROTOCOLS => return None,
                _ => {}
            }
        }
    }
    Some((sni, alpn.unwrap_or_default()))
}

/// RFC 6066 §3: a list that in practice holds one host name.
fn server_name(mut data: Reader<'_>) -> Option<String> {
    let mut list = Reader(data.vector16()?);
    if !data.0.is_empty() || list.take(1)? != [0] {
        return None;
    }
    let name = list.vector16()?;
    // The name ends up in logs and metrics: octets that no name has are refused here.
    let valid = (1..=255).contains(&name.len())
        && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':'));
    if !valid || !list.0.is_empty() {
        return None;
    }
    std::str::from_utf8(name).ok().map(str::to_ascii_lowercase)
}

/// RFC 7301 §3.1.
fn protocols(mut data: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(data.vector16()?);
    if !data.0.is_empty() || list.0.is_empty() {
        return None;
    }
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let name = list.vector8()?;
        if name.is_empty() {
            return None;
        }
        protocols.push(name.to_vec());
    }
    Some(protocols)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(front)
    }

    fn u16(&mut self) -> Option<u16> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*front))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let n = *self.take(1)?.first()?;
        self.take(usize::from(n))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
}
