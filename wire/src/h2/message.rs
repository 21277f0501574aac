//! What a header list means, and whether it is well formed (RFC 9113 §8.2 and §8.3).

use super::hpack::Field;
use crate::{Headers, Limits, Request, Response, Version};

/// What is wrong with a message. It concerns its stream only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not well formed.
    Malformed,
    /// Larger than this end accepts.
    TooLarge,
}

/// Which message a header list is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Request,
    Response,
    Trailers,
    /// Decoded for the compression state's sake only.
    Ignored,
}

/// Builds messages from fields. Its memory is reused; a finished head takes copies of exactly its size.
#[derive(Debug, Default)]
pub(super) struct Builder {
    kind: Kind,
    size: usize,
    size_limit: usize,
    count: usize,
    count_limit: usize,
    fault: Option<Fault>,
    seen: u8,
    regular: bool,
    method: Vec<u8>,
    scheme: Vec<u8>,
    authority: Vec<u8>,
    path: Vec<u8>,
    status: u16,
    host: Option<Vec<u8>>,
    cookie: Vec<u8>,
    has_cookie: bool,
    length: Option<u64>,
    headers: Headers,
}

const METHOD: u8 = 1;
const SCHEME: u8 = 2;
const AUTHORITY: u8 = 4;
const PATH: u8 = 8;
const STATUS: u8 = 16;

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|&b| {
            b.is_ascii_alphanumeric()
                || matches!(b, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
        })
}

fn is_scheme(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// Octets of host and port (RFC 3986 §3.2, without userinfo).
fn is_authority(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|&b| {
            b.is_ascii_alphanumeric()
                || matches!(
                    b,
                    b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&'..=b',' | b';' | b'=' | b':' | b'[' | b']'
                )
        })
}

/// Origin form, or `*` for OPTIONS. Octets above 127 are not in the grammar but are common, and not ambiguous.
fn is_path(path: &[u8], method: &[u8]) -> bool {
    match path {
        [b'/', ..] => path.iter().all(|&b| b > 0x20 && b != 0x7f && b != b'#'),
        b"*" => method == b"OPTIONS",
        _ => false,
    }
}

/// Fields that belong to a connection and do not exist in HTTP/2 (RFC 9113 §8.2.2).
pub(super) fn is_connection_specific(name: &[u8]) -> bool {
    matches!(name, b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade")
}

fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

impl Builder {
    /// Begins a header list.
    pub(super) fn begin(&mut self, kind: Kind, limits: &Limits) {
        *self = Self {
            kind,
            size_limit: if kind == Kind::Trailers { limits.trailer_size } else { limits.head_size },
            count_limit: limits.header_count,
            headers: std::mem::take(&mut self.headers),
            cookie: std::mem::take(&mut self.cookie),
            ..Self::default()
        };
        self.headers.clear();
        self.cookie.clear();
    }

    fn malformed(&mut self) {
        self.fault.get_or_insert(Fault::Malformed);
    }

    /// Takes a field. What is dropped or merged later counts as well, and nothing is copied once a limit is passed.
    pub(super) fn field(&mut self, field: Field<'_>) {
        self.size = self.size.saturating_add(field.name.len() + field.value.len() + 32);
        self.count += 1;
        if self.fault.is_some() || self.kind == Kind::Ignored {
            return;
        }
        if self.size > self.size_limit || self.count > self.count_limit {
            self.fault = Some(Fault::TooLarge);
        } else if !field.valid {
            self.malformed();
        } else if field.name.starts_with(b":") {
            self.pseudo(field.name, field.value);
        } else {
            self.regular = true;
            self.regular(field.name, field.value);
        }
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) {
        let (bit, place) = match (self.kind, name) {
            (Kind::Request, b":method") => (METHOD, &mut self.method),
            (Kind::Request, b":scheme") => (SCHEME, &mut self.scheme),
            (Kind::Request, b":authority") => (AUTHORITY, &mut self.authority),
            (Kind::Request, b":path") => (PATH, &mut self.path),
            (Kind::Response, b":status") => {
                match value {
                    [a @ b'1'..=b'9', b, c] if b.is_ascii_digit() && c.is_ascii_digit() => {
                        self.status = [a, b, c].iter().fold(0, |n, &d| n * 10 + u16::from(d - b'0'));
                    }
                    _ => self.malformed(),
                }
                if self.regular || self.seen & STATUS != 0 {
                    self.malformed();
                }
                self.seen |= STATUS;
                return;
            }
            _ => return self.malformed(),
        };
        place.extend_from_slice(value);
        if self.regular || self.seen & bit != 0 {
            self.malformed();
        }
        self.seen |= bit;
    }

    fn regular(&mut self, name: &[u8], value: &[u8]) {
        match name {
            _ if is_connection_specific(name) => return self.malformed(),
            b"te" if !value.eq_ignore_ascii_case(b"trailers") => return self.malformed(),
            b"content-length" | b"host" if self.kind == Kind::Trailers => return self.malformed(),
            b"content-length" => {
                let length = parse_length(value);
                if length.is_none() || self.length.is_some_and(|l| Some(l) != length) {
                    return self.malformed();
                }
                if self.length.is_some() {
                    return;
                }
                self.length = length;
            }
            b"host" if self.kind == Kind::Request => {
                if self.host.replace(value.to_vec()).is_some() {
                    self.malformed();
                }
                return;
            }
            b"cookie" if self.kind == Kind::Request => {
                if self.has_cookie {
                    self.cookie.extend_from_slice(b"; ");
                }
                self.cookie.extend_from_slice(value);
                self.has_cookie = true;
                return;
            }
            _ => {}
        }
        self.headers.push(name, value);
    }

    /// The list as a request, and its content-length.
    pub(super) fn request(&mut self) -> Result<(Request, Option<u64>), Fault> {
        self.fault.map_or(Ok(()), Err)?;
        let connect = self.method == b"CONNECT";
        let needed = if connect { METHOD | AUTHORITY } else { METHOD | SCHEME | PATH };
        let ok = match connect {
            true => self.seen == needed,
            false => self.seen & needed == needed && is_scheme(&self.scheme) && is_path(&self.path, &self.method),
        };
        let ok = ok && is_token(&self.method) && (self.seen & AUTHORITY == 0 || is_authority(&self.authority));
        if !ok {
            return Err(Fault::Malformed);
        }
        if let Some(host) = self.host.take() {
            if self.seen & AUTHORITY == 0 {
                if !is_authority(&host) {
                    return Err(Fault::Malformed);
                }
                self.authority = host;
            } else if !host.eq_ignore_ascii_case(&self.authority) {
                return Err(Fault::Malformed);
            }
        }
        if self.has_cookie {
            self.headers.push(b"cookie", &self.cookie);
        }
        let head = Request {
            version: Version::H2,
            method: std::mem::take(&mut self.method),
            scheme: std::mem::take(&mut self.scheme),
            authority: std::mem::take(&mut self.authority),
            path: std::mem::take(&mut self.path),
            absolute_form: false,
            headers: self.headers.clone(),
        };
        Ok((head, self.length))
    }

    /// The list as a response, and its content-length.
    pub(super) fn response(&mut self) -> Result<(Response, Option<u64>), Fault> {
        self.fault.map_or(Ok(()), Err)?;
        // 101 does not exist in HTTP/2 (RFC 9113 §8.6).
        if self.seen != STATUS || self.status == 101 {
            return Err(Fault::Malformed);
        }
        Ok((Response { version: Version::H2, status: self.status, headers: self.headers.clone() }, self.length))
    }

    /// The list as trailers.
    pub(super) fn trailers(&mut self) -> Result<Headers, Fault> {
        self.fault.map_or(Ok(()), Err)?;
        Ok(self.headers.clone())
    }
}
