//! The transport header: the first octets inside a TLS connection between proxies that negotiated [`ALPN`].
//!
//! It says for which port (and, in gateway mode, name) the connection is meant, and what is spoken on it. On the wire:
//! `transport.l5d.io/v1` CR LF CR LF, a 32-bit big-endian length, and a protobuf message
//! `Header { int32 port = 1; string name = 2; SessionProtocol { oneof { Http1 http1 = 1; Http2 http2 = 2 } } session_protocol = 3 }`.
//! Contract: linkerd2-proxy, `linkerd/transport-header`. The message is three fields, so it is read here by hand, which
//! keeps a protobuf library off the request path.

/// The application protocol that announces a transport header.
pub const ALPN: &[u8] = b"transport.l5d.io/v1";

/// Largest message accepted, in octets. A name has at most 253.
pub const LIMIT: usize = 1024;

const PREFACE: &[u8] = b"transport.l5d.io/v1\r\n\r\n";
const LENGTH: usize = 4;
const NAME_LIMIT: usize = 253;

/// Where a connection is meant to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportHeader {
    /// The target port, on the receiving proxy's side.
    pub port: u16,
    /// The target's name, in gateway mode.
    pub name: Option<String>,
    /// The protocol inside; opaque without one.
    pub session_protocol: Option<SessionProtocol>,
}

/// A protocol that needs no detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionProtocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Why a transport header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first octets are not those of a transport header.
    #[error("no transport header where one was announced")]
    Preface,
    /// Larger than [`LIMIT`].
    #[error("transport header is larger than the limit")]
    TooLarge,
    /// Not a well-formed message.
    #[error("malformed transport header")]
    Malformed,
    /// The port is missing, zero or above 65535.
    #[error("transport header without a valid port")]
    Port,
    /// The name is not a DNS name.
    #[error("transport header with an invalid name")]
    Name,
}

impl TransportHeader {
    /// Appends the header to `out`. An empty name is left out, which is how the message says that there is none.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        let length_at = out.len();
        out.extend_from_slice(&[0; LENGTH]);
        let at = out.len();
        put_tag(1, VARINT, out);
        put_varint(u64::from(self.port), out);
        if let Some(name) = self.name.as_deref().filter(|name| !name.is_empty()) {
            put_tag(2, BYTES, out);
            put_varint(name.len() as u64, out);
            out.extend_from_slice(name.as_bytes());
        }
        if let Some(protocol) = self.session_protocol {
            put_tag(3, BYTES, out);
            put_varint(2, out);
            put_tag(if protocol == SessionProtocol::Http1 { 1 } else { 2 }, BYTES, out);
            put_varint(0, out);
        }
        let length = (out.len() - at) as u32;
        if let Some(place) = out.get_mut(length_at..at) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Reads the header at the front of `bytes`: octets consumed and the header, or none when more are needed.
    pub fn decode(bytes: &[u8]) -> Result<Option<(usize, Self)>, Error> {
        let (preface, rest) = bytes.split_at(PREFACE.len().min(bytes.len()));
        if !PREFACE.starts_with(preface) {
            return Err(Error::Preface);
        }
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > LIMIT {
            return Err(Error::TooLarge);
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        Ok(Some((PREFACE.len() + LENGTH + length, Self::message(message)?)))
    }

    /// As protobuf demands, the last of a repeated field counts and fields of other numbers are skipped.
    fn message(bytes: &[u8]) -> Result<Self, Error> {
        let mut port = 0;
        let mut name: &[u8] = b"";
        let mut session_protocol = None;
        let mut reader = Reader(bytes);
        while let Some((field, value)) = reader.field()? {
            match (field, value) {
                (1, Value::Varint(n)) => port = n,
                (2, Value::Bytes(n)) => name = n,
                (3, Value::Bytes(inner)) => session_protocol = session(inner)?.or(session_protocol),
                (1..=3, _) => return Err(Error::Malformed),
                _ => {}
            }
        }
        let port = u16::try_from(port).ok().filter(|&port| port != 0).ok_or(Error::Port)?;
        let name = match name {
            b"" => None,
            name => Some(dns_name(name).ok_or(Error::Name)?),
        };
        Ok(Self { port, name, session_protocol })
    }
}

fn session(bytes: &[u8]) -> Result<Option<SessionProtocol>, Error> {
    let mut protocol = None;
    let mut reader = Reader(bytes);
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1 | 2, Value::Bytes(inner)) => {
                let mut empty = Reader(inner);
                while empty.field()?.is_some() {}
                protocol = Some(if field == 1 { SessionProtocol::Http1 } else { SessionProtocol::Http2 });
            }
            (1 | 2, _) => return Err(Error::Malformed),
            _ => {}
        }
    }
    Ok(protocol)
}

/// A DNS name in lower case; a final dot is kept, since it says that the name is absolute.
fn dns_name(bytes: &[u8]) -> Option<String> {
    let labels = bytes.strip_suffix(b".").unwrap_or(bytes);
    let valid = labels.len() <= NAME_LIMIT
        && labels.split(|&b| b == b'.').all(|label| {
            (1..=63).contains(&label.len())
                && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with(b"-")
                && !label.ends_with(b"-")
        });
    if !valid {
        return None;
    }
    std::str::from_utf8(bytes).ok().map(str::to_ascii_lowercase)
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn field(&mut self) -> Result<Option<(u32, Value<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = u32::try_from(self.varint()?).map_err(|_| Error::Malformed)?;
        let value = match (key & 7) as u8 {
            VARINT => Value::Varint(self.varint()?),
            BYTES => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Malformed)?;
                Value::Bytes(self.take(length)?)
            }
            FIXED64 => self.take(8).map(|_| Value::Fixed)?,
            FIXED32 => self.take(4).map(|_| Value::Fixed)?,
            // Groups are not of this version of protobuf.
            _ => return Err(Error::Malformed),
        };
        match key >> 3 {
            0 => Err(Error::Malformed),
            field => Ok(Some((field, value))),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (front, rest) = self.0.split_at_checked(length).ok_or(Error::Malformed)?;
        self.0 = rest;
        Ok(front)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut n = 0u64;
        for shift in 0..10 {
            let (&b, rest) = self.0.split_first().ok_or(Error::Malformed)?;
            self.0 = rest;
            if shift == 9 && b > 1 {
                break;
            }
            n |= u64::from(b & 0x7f) << (7 * shift);
            if b < 0x80 {
                return Ok(n);
            }
        }
        Err(Error::Malformed)
    }
}

fn put_tag(field: u8, wire_type: u8, out: &mut Vec<u8>) {
    out.push(field << 3 | wire_type);
}

fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> Vec<u8> {
        [PREFACE, &(bytes.len() as u32).to_be_bytes(), bytes].concat()
    }

    #[test]
    fn headers_come_out_as_they_went_in() {
        let names = [None, Some("foo.bar.example.com".to_owned())];
        for port in [1, 80, 127, 128, 4143, 65535] {
            for name in &names {
                for session_protocol in [None, Some(SessionProtocol::Http1), Some(SessionProtocol::Http2)] {
                    let header = TransportHeader { port, name: name.clone(), session_protocol };
                    let mut wire = Vec::new();
                    header.encode(&mut wire);
                    let length = wire.len();
                    wire.extend_from_slice(b"application data");
                    for cut in 0..length {
                        assert_eq!(TransportHeader::decode(&wire[..cut]), Ok(None), "{cut}");
                    }
                    assert_eq!(TransportHeader::decode(&wire), Ok(Some((length, header))));
                }
            }
        }
    }

    /// The octets that linkerd2-proxy's protobuf library writes for these fields.
    #[test]
    fn the_encoding_is_the_published_one() {
        let mut wire = Vec::new();
        TransportHeader { port: 8080, name: Some("a.b".into()), session_protocol: Some(SessionProtocol::Http2) }
            .encode(&mut wire);
        let expected = message(&[0x08, 0x90, 0x3f, 0x12, 3, b'a', b'.', b'b', 0x1a, 2, 0x12, 0]);
        assert_eq!(wire, expected);
    }

    #[test]
    fn other_fields_are_skipped_and_the_last_counts() {
        let bytes = [
            &[0x08, 1][..],                                 // port 1
            &[0x20, 0xff, 1],                               // field 4, varint
            &[0x2a, 3, 1, 2, 3],                            // field 5, bytes
            &[0x31, 0, 0, 0, 0, 0, 0, 0, 0],                // field 6, 64 bits
            &[0x3d, 0, 0, 0, 0],                            // field 7, 32 bits
            &[0x1a, 2, 0x0a, 0, 0x1a, 4, 0x12, 2, 0x08, 1], // http1, then http2 with an unknown field
            &[0x08, 80],                                    // port 80
        ]
        .concat();
        let header = TransportHeader { port: 80, name: None, session_protocol: Some(SessionProtocol::Http2) };
        let wire = message(&bytes);
        assert_eq!(TransportHeader::decode(&wire), Ok(Some((wire.len(), header))));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let decode = |bytes: &[u8]| TransportHeader::decode(&message(bytes)).map(|_| ());
        assert_eq!(decode(&[]), Err(Error::Port));
        assert_eq!(decode(&[0x08, 0]), Err(Error::Port));
        assert_eq!(decode(&[0x08, 0x80, 0x80, 4]), Err(Error::Port), "65536");
        assert_eq!(decode(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Err(Error::Port), "-1");
        assert_eq!(decode(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), Err(Error::Malformed));
        assert_eq!(decode(&[0x08]), Err(Error::Malformed));
        assert_eq!(decode(&[0x08, 80, 0x12, 5, b'a']), Err(Error::Malformed));
        assert_eq!(decode(&[0x0a, 1, 80]), Err(Error::Malformed), "port as bytes");
        assert_eq!(decode(&[0x08, 80, 0x13]), Err(Error::Malformed), "a group");
        assert_eq!(decode(&[0x00, 80]), Err(Error::Malformed), "field 0");
        for name in ["a b", ".a", "a..b", "-a", "a\n", &"a".repeat(64), &"a.".repeat(130)] {
            let field = [
                &[0x08, 80, 0x12][..],
                &[name.len() as u8 & 0x7f | if name.len() > 127 { 0x80 } else { 0 }],
                if name.len() > 127 { &[2] } else { &[] },
                name.as_bytes(),
            ]
            .concat();
            assert_eq!(decode(&field), Err(Error::Name), "{name:?}");
        }
        assert_eq!(TransportHeader::decode(b"GET / HTTP/1.1"), Err(Error::Preface));
        assert_eq!(TransportHeader::decode(b"transport.l5d.io/v2"), Err(Error::Preface));
        assert_eq!(TransportHeader::decode(&[PREFACE, &[0, 0, 4, 1]].concat()), Err(Error::TooLarge));
    }
}
