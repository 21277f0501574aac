//! Heads: finding their end, and turning them into [`Request`] and [`Response`].
//!
//! The end is found first, line by line and remembering how far it looked, so that a head which trickles in costs one
//! pass however it is cut, and so that the answer never depends on the cutting. httparse then reads the whole head.

use std::mem::MaybeUninit;

use smallvec::SmallVec;

use super::{ErrorKind, Framing, chars};
use crate::head::{Headers, Request, Response, Version};

/// Looks for the empty line that ends a head or a trailer section.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Octets looked at.
    at: usize,
    /// Where the current line begins.
    line: usize,
}

impl Scan {
    /// Nothing was seen yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.at == 0
    }

    /// The length of the section with its empty line, when that is within `input`, the section's first octets. `too_large`
    /// answers by whether the first line alone was too long.
    pub(super) fn end(
        &mut self,
        input: &[u8],
        limit: usize,
        too_large: impl Fn(bool) -> ErrorKind,
    ) -> Result<Option<usize>, ErrorKind> {
        let window = input.get(..limit).unwrap_or(input);
        while let Some(found) = window.get(self.at..).and_then(|rest| memchr::memchr(b'\n', rest)) {
            let lf = self.at + found;
            if lf == self.line || window.get(lf - 1) != Some(&b'\r') {
                return Err(ErrorKind::BareLineFeed);
            }
            if lf - 1 == self.line {
                *self = Self::default();
                return Ok(Some(lf + 1));
            }
            self.at = lf + 1;
            self.line = lf + 1;
        }
        self.at = window.len();
        if input.len() >= limit { Err(too_large(self.line == 0)) } else { Ok(None) }
    }
}

/// What a head says about the message and the connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Meta {
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
    pub(super) upgrade: bool,
    pub(super) tunnel: bool,
}

const INLINE_FIELDS: usize = 128;

/// Gives `parse` room for that many fields, on the stack unless it is unusually much.
fn with_room<'b, R>(count: usize, parse: impl FnOnce(&mut [MaybeUninit<httparse::Header<'b>>]) -> R) -> R {
    let mut inline = [const { MaybeUninit::uninit() }; INLINE_FIELDS];
    match inline.get_mut(..count) {
        Some(room) => parse(room),
        None => parse(&mut vec![MaybeUninit::uninit(); count]),
    }
}

/// Names what httparse refused.
fn refused(error: httparse::Error, head: &[u8]) -> ErrorKind {
    use httparse::Error as E;
    let bare_cr = memchr::memchr_iter(b'\r', head).any(|at| head.get(at + 1) != Some(&b'\n'));
    match error {
        E::TooManyHeaders => ErrorKind::TooManyHeaders,
        _ if bare_cr => ErrorKind::BareCarriageReturn,
        E::HeaderName => ErrorKind::HeaderName,
        E::HeaderValue => ErrorKind::HeaderValue,
        E::Version => ErrorKind::Version,
        E::NewLine | E::Status | E::Token => ErrorKind::StartLine,
    }
}

/// Reads a complete request head, `head` being exactly it.
pub(super) fn request(head: &[u8], max_fields: usize) -> Result<(Request, Meta), ErrorKind> {
    with_room(max_fields, |room| {
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(head, room) {
            Ok(httparse::Status::Complete(n)) if n == head.len() => {}
            Ok(_) => return Err(ErrorKind::StartLine),
            Err(error) => return Err(refused(error, head)),
        }
        let version = version(parsed.version)?;
        let method = parsed.method.ok_or(ErrorKind::StartLine)?.as_bytes();
        let target = parsed.path.ok_or(ErrorKind::StartLine)?.as_bytes();
        let mut request = Request { version, method: method.to_vec(), ..Request::default() };
        read_target(target, &mut request)?;

        let mut fields = Fields { is_request: true, ..Fields::default() };
        request.headers.reserve(head.len().saturating_sub(target.len()), parsed.headers.len());
        fields.read(parsed.headers, version, &mut request.headers)?;
        match fields.host {
            None if version == Version::H11 => return Err(ErrorKind::HostMissing),
            // RFC 9112 §3.2.2: the authority of an absolute form counts, the field does not.
            Some(host) if request.authority.is_empty() => request.authority.extend_from_slice(host),
            _ => {}
        }

        let is_connect = method == b"CONNECT";
        let framing = match fields.body() {
            Some(_) if is_connect => return Err(ErrorKind::ConnectBody),
            framing => framing.unwrap_or(Framing::None),
        };
        let upgrade = fields.settle_upgrade(version, &mut request.headers) && !is_connect;
        let meta = Meta {
            framing,
            keep_alive: fields.keep_alive(version),
            expects_continue: fields.expects_continue && version == Version::H11,
            upgrade,
            tunnel: false,
        };
        Ok((request, meta))
    })
}

/// Reads a complete response head, `head` being exactly it; `method` is that of the request.
pub(super) fn response(head: &[u8], max_fields: usize, method: Answered) -> Result<(Response, Meta), ErrorKind> {
    with_room(max_fields, |room| {
        let mut parsed = httparse::Response::new(&mut []);
        match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, room) {
            Ok(httparse::Status::Complete(n)) if n == head.len() => {}
            Ok(_) => return Err(ErrorKind::StartLine),
            Err(error) => return Err(refused(error, head)),
        }
        let version = version(parsed.version)?;
        let status = parsed.code.filter(|code| (100..=999).contains(code)).ok_or(ErrorKind::StartLine)?;
        let mut response = Response { version, status, headers: Headers::new() };

        let mut fields = Fields::default();
        response.headers.reserve(head.len(), parsed.headers.len());
        fields.read(parsed.headers, version, &mut response.headers)?;
        let upgrade = fields.settle_upgrade(version, &mut response.headers);
        if status == 101 && !upgrade {
            return Err(ErrorKind::Upgrade);
        }
        // RFC 9112 §6.3, in its order; two lengths are refused before any of it.
        let body = fields.body();
        let tunnel = status == 101 || (method == Answered::Connect && (200..300).contains(&status));
        let framing = if tunnel || method == Answered::Head || status < 200 || status == 204 || status == 304 {
            Framing::None
        } else {
            body.unwrap_or(Framing::UntilClose)
        };
        if tunnel {
            response.headers.remove(b"content-length");
        }
        let keep_alive = fields.keep_alive(version) && framing != Framing::UntilClose && !tunnel;
        Ok((response, Meta { framing, keep_alive, expects_continue: false, upgrade, tunnel }))
    })
}

/// What the request's method means for its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    Other,
    Head,
    Connect,
}

fn version(minor: Option<u8>) -> Result<Version, ErrorKind> {
    match minor {
        Some(0) => Ok(Version::H10),
        Some(1) => Ok(Version::H11),
        _ => Err(ErrorKind::Version),
    }
}

/// The four forms of RFC 9112 §3.2.
fn read_target(target: &[u8], request: &mut Request) -> Result<(), ErrorKind> {
    if request.method == b"CONNECT" {
        if !chars::authority(target, true) {
            return Err(ErrorKind::Target);
        }
        request.authority.extend_from_slice(target);
        return Ok(());
    }
    if target == b"*" {
        if request.method != b"OPTIONS" {
            return Err(ErrorKind::Target);
        }
        request.path.push(b'*');
        return Ok(());
    }
    if target.first() == Some(&b'/') {
        if !chars::path_and_query(target) {
            return Err(ErrorKind::Target);
        }
        request.path.extend_from_slice(target);
        return Ok(());
    }
    let (scheme, rest): (&[u8], &[u8]) = if let Some(rest) = strip_prefix_no_case(target, b"http://") {
        (b"http", rest)
    } else if let Some(rest) = strip_prefix_no_case(target, b"https://") {
        (b"https", rest)
    } else {
        return Err(ErrorKind::Target);
    };
    let end = rest.iter().position(|&b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !chars::authority(authority, false) {
        return Err(ErrorKind::HostInvalid);
    }
    match path.first() {
        // RFC 9112 §3.2.4: an absolute form without a path is the asterisk form of OPTIONS.
        None => request.path.push(if request.method == b"OPTIONS" { b'*' } else { b'/' }),
        Some(b'?') => request.path.push(b'/'),
        Some(_) => {}
    }
    request.path.extend_from_slice(path);
    if request.path != b"*" && !chars::path_and_query(&request.path) {
        return Err(ErrorKind::Target);
    }
    request.scheme.extend_from_slice(scheme);
    request.authority.extend_from_slice(authority);
    request.absolute_form = true;
    Ok(())
}

fn strip_prefix_no_case<'a>(bytes: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (front, rest) = bytes.split_at_checked(prefix.len())?;
    front.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// What the fields say that the codec owns.
#[derive(Default)]
struct Fields<'a> {
    is_request: bool,
    host: Option<&'a [u8]>,
    length: Option<u64>,
    has_coding: bool,
    chunked: u32,
    /// The last coding was `chunked`.
    chunked_last: bool,
    other_coding: bool,
    bad_coding: bool,
    close: bool,
    keep: bool,
    connection_upgrade: bool,
    upgrade: bool,
    /// An upgrade to HTTP/2: passed through it would be a tunnel that nobody can look into, so it is not offered on.
    upgrade_h2: bool,
    trailers: bool,
    expects_continue: bool,
    nominates: bool,
}

impl<'a> Fields<'a> {
    /// Goes through the fields once, in order; those that stay go to `headers`.
    fn read(&mut self, raw: &[httparse::Header<'a>], version: Version, headers: &mut Headers) -> Result<(), ErrorKind> {
        for field in raw {
            let (name, value) = (field.name.as_bytes(), field.value);
            if !self.take(name, value)? {
                headers.push(name, value);
            }
        }
        if self.has_coding {
            self.check_coding(version)?;
        }
        if self.nominates {
            let mut nominated: SmallVec<[&[u8]; 8]> = SmallVec::new();
            for field in raw.iter().filter(|f| f.name.eq_ignore_ascii_case("connection")) {
                nominated.extend(list(field.value).filter(|token| !is_connection_option(token)));
            }
            headers.retain(|name, _| !nominated.iter().any(|token| token.eq_ignore_ascii_case(name)));
        }
        if self.trailers && self.is_request {
            headers.push(b"te", b"trailers");
        }
        Ok(())
    }

    /// True when the field is the codec's own and goes no further. Names are told apart by their length first.
    fn take(&mut self, name: &[u8], value: &'a [u8]) -> Result<bool, ErrorKind> {
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is(b"te") => {
                self.trailers |= list(value).any(|token| token.eq_ignore_ascii_case(b"trailers"));
                Ok(true)
            }
            4 if self.is_request && is(b"host") => {
                if self.host.is_some() {
                    return Err(ErrorKind::HostRepeated);
                }
                // RFC 9112 §3.2: an empty field says that the target has no authority.
                if !value.is_empty() && !chars::authority(value, false) {
                    return Err(ErrorKind::HostInvalid);
                }
                self.host = Some(value);
                Ok(true)
            }
            6 if is(b"expect") => {
                self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
                Ok(false)
            }
            7 if is(b"upgrade") => {
                self.upgrade = true;
                self.upgrade_h2 |= list(value).any(|t| t.eq_ignore_ascii_case(b"h2c") || t.eq_ignore_ascii_case(b"h2"));
                Ok(false)
            }
            10 if is(b"connection") => {
                for token in list(value) {
                    match () {
                        () if token.eq_ignore_ascii_case(b"close") => self.close = true,
                        () if token.eq_ignore_ascii_case(b"keep-alive") => self.keep = true,
                        () if token.eq_ignore_ascii_case(b"upgrade") => self.connection_upgrade = true,
                        () => self.nominates |= !is_connection_option(token),
                    }
                }
                Ok(true)
            }
            10 if is(b"keep-alive") => Ok(true),
            14 if is(b"content-length") => {
                if self.length.is_some() {
                    return Err(ErrorKind::ContentLengthRepeated);
                }
                self.length = Some(chars::length(value).ok_or(ErrorKind::ContentLength)?);
                Ok(false)
            }
            16 if is(b"proxy-connection") => Ok(true),
            17 if is(b"transfer-encoding") => {
                self.has_coding = true;
                for coding in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                    self.chunked_last = coding.eq_ignore_ascii_case(b"chunked");
                    self.chunked += u32::from(self.chunked_last);
                    self.bad_coding |= !chars::token(coding);
                    self.other_coding |= !self.chunked_last;
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn check_coding(&self, version: Version) -> Result<(), ErrorKind> {
        if version == Version::H10 {
            return Err(ErrorKind::TransferEncodingVersion);
        }
        if self.length.is_some() {
            return Err(ErrorKind::LengthAndCoding);
        }
        let at_most_final = self.chunked == 0 || (self.chunked == 1 && self.chunked_last);
        match (at_most_final && !self.bad_coding, self.other_coding) {
            (true, false) => Ok(()),
            (true, true) => Err(ErrorKind::UnknownCoding),
            (false, _) => Err(ErrorKind::TransferEncoding),
        }
    }

    /// The framing that the fields ask for.
    fn body(&self) -> Option<Framing> {
        if self.has_coding { Some(Framing::Chunked) } else { self.length.map(Framing::Length) }
    }

    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::H11 || self.keep)
    }

    /// Keeps `upgrade` where it is one, and says so.
    fn settle_upgrade(&self, version: Version, headers: &mut Headers) -> bool {
        let wanted = self.upgrade && self.connection_upgrade && version == Version::H11 && !self.upgrade_h2;
        if self.upgrade && !wanted {
            headers.remove(b"upgrade");
        }
        wanted
    }
}

/// Options that mean the connection itself; `te` and `upgrade` are looked after by name.
fn is_connection_option(token: &[u8]) -> bool {
    [&b"close"[..], b"keep-alive", b"upgrade", b"te"].iter().any(|option| token.eq_ignore_ascii_case(option))
}

/// The elements of a comma-separated list, empty ones left out.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Reads a complete, non-empty trailer section, `section` being exactly it with its empty line.
pub(super) fn trailers(section: &[u8], max_fields: usize) -> Result<Headers, ErrorKind> {
    let mut room: SmallVec<[httparse::Header<'_>; 16]> = SmallVec::new();
    room.resize(max_fields, httparse::EMPTY_HEADER);
    let fields = match httparse::parse_headers(section, &mut room) {
        Ok(httparse::Status::Complete((n, fields))) if n == section.len() => fields,
        Ok(_) => return Err(ErrorKind::HeaderName),
        Err(error) => return Err(refused(error, section)),
    };
    let mut headers = Headers::new();
    headers.reserve(section.len(), fields.len());
    for field in fields {
        let name = field.name.as_bytes();
        let is = |other: &&[u8]| name.eq_ignore_ascii_case(other);
        // RFC 9110 §6.5.1. The first three would change framing or routing after the fact; the others mean this connection.
        if [&b"transfer-encoding"[..], b"content-length", b"host"].iter().any(is) {
            return Err(ErrorKind::TrailerField);
        }
        if ![&b"connection"[..], b"keep-alive", b"proxy-connection", b"te", b"upgrade"].iter().any(is) {
            headers.push(name, field.value);
        }
    }
    Ok(headers)
}
