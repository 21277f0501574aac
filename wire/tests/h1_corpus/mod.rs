//! The smuggling corpus: every way we know of to make two implementations read one stream differently.
//!
//! Sources: RFC 9112 §11.2; "HTTP Desync Attacks" and "HTTP/2: The Sequel is Always Worse" (PortSwigger, 2019 and 2021);
//! T-Reqs (CCS 2021); CVE-2025-4366, CVE-2026-2833 and their siblings in Pingora; the chunk-extension cases of 2025.
#![allow(dead_code, reason = "each test program uses a part of it")]

use weft_wire::h1::ErrorKind::{self, *};

/// What becomes of a case.
pub enum Verdict {
    /// Refused, after that many complete messages.
    Refused(usize, ErrorKind),
    /// Read as these messages, each a request line and a body (for responses, a status and a body).
    Read(&'static [(&'static str, &'static str)]),
}
use Verdict::{Read, Refused};

/// Octets of a client, or of a server.
pub struct Case {
    pub name: &'static str,
    pub input: &'static str,
    pub verdict: Verdict,
}

const fn case(name: &'static str, input: &'static str, verdict: Verdict) -> Case {
    Case { name, input, verdict }
}

/// Follows many cases: if it shows up as a message where it should not, the case smuggled.
pub const REQUESTS: &[Case] = &[
    // Two lengths.
    case(
        "CL.TE",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
        Refused(0, LengthAndCoding),
    ),
    case(
        "TE.CL",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n12\r\nGET /x HTTP/1.1\r\n\r\n0\r\n\r\n",
        Refused(0, LengthAndCoding),
    ),
    case(
        "zero length and chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(0, LengthAndCoding),
    ),
    case(
        "two differing lengths",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        Refused(0, ContentLengthRepeated),
    ),
    case(
        "two equal lengths",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        Refused(0, ContentLengthRepeated),
    ),
    case(
        "list of lengths",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\nhello",
        Refused(0, ContentLength),
    ),
    case("signed length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello", Refused(0, ContentLength)),
    case("negative length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", Refused(0, ContentLength)),
    case(
        "hexadecimal length",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x5\r\n\r\nhello",
        Refused(0, ContentLength),
    ),
    case(
        "length with a space inside",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1 0\r\n\r\n0123456789",
        Refused(0, ContentLength),
    ),
    case("empty length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: \r\n\r\n", Refused(0, ContentLength)),
    case(
        "length over 63 bits",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551621\r\n\r\nhello",
        Refused(0, ContentLength),
    ),
    case(
        "length with zeros in front",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 005\r\n\r\nhelloGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("POST /", "hello"), ("GET /n", "")]),
    ),
    case(
        "length on GET",
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("GET /", "hello"), ("GET /n", "")]),
    ),
    case(
        "length in an underscored name is no length",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent_length: 29\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("POST /", ""), ("GET /n", "")]),
    ),
    // Transfer codings that are nearly chunked.
    case(
        "unknown coding",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        Refused(0, UnknownCoding),
    ),
    case(
        "coding before chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        Refused(0, UnknownCoding),
    ),
    case("identity", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n", Refused(0, UnknownCoding)),
    case(
        "chunked is not last",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncoding),
    ),
    case(
        "chunked twice",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncoding),
    ),
    case(
        "chunked in two fields",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncoding),
    ),
    case(
        "chunked then another field",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncoding),
    ),
    case(
        "quoted chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncoding),
    ),
    case(
        "chunked with a parameter",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncoding),
    ),
    case(
        "chunked and a comma",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked,\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncoding),
    ),
    case(
        "empty coding",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncoding),
    ),
    case(
        "vertical tab before chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \u{b}chunked\r\n\r\n0\r\n\r\n",
        Refused(0, HeaderValue),
    ),
    case(
        "no-break space before chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \u{a0}chunked\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncoding),
    ),
    case(
        "tab before chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\tchunked\r\n\r\n0\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("POST /", ""), ("GET /n", "")]),
    ),
    case(
        "chunked in capitals",
        "POST / HTTP/1.1\r\nhost: a\r\nTRANSFER-ENCODING: CHUNKED\r\n\r\n2\r\nhi\r\n0\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("POST /", "hi"), ("GET /n", "")]),
    ),
    case(
        "space before the colon",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        Refused(0, HeaderName),
    ),
    case(
        "folded coding",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        Refused(0, HeaderName),
    ),
    case(
        "coding after a bare line feed",
        "POST / HTTP/1.1\r\nhost: a\r\nx: y\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(0, BareLineFeed),
    ),
    case(
        "coding after a bare carriage return",
        "POST / HTTP/1.1\r\nhost: a\r\nx: y\rtransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(0, BareCarriageReturn),
    ),
    case(
        "coding in HTTP/1.0",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncodingVersion),
    ),
    case(
        "coding in HTTP/1.0, kept alive",
        "POST / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncodingVersion),
    ),
    case(
        "coding nominated away",
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("POST /", "hi"), ("GET /n", "")]),
    ),
    case(
        "length nominated away",
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: content-length\r\ncontent-length: 2\r\n\r\nhiGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("POST /", "hi"), ("GET /n", "")]),
    ),
    case(
        "coding of a GET",
        "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("GET /", "hi"), ("GET /n", "")]),
    ),
    // Chunks.
    case(
        "bare line feed after the size",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\nhi\r\n0\r\n\r\n",
        Refused(0, BareLineFeed),
    ),
    case(
        "bare line feed in an extension",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2;\nxx\r\n50\r\n",
        Refused(0, BareLineFeed),
    ),
    case(
        "bare carriage return in an extension",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2;a\rb\r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkExtension),
    ),
    case(
        "control octet in an extension",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2;a\u{0}\r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkExtension),
    ),
    case(
        "extension",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2;a=\"b\"\r\nhi\r\n0\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("POST /", "hi"), ("GET /n", "")]),
    ),
    case(
        "space after the size",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2 \r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkSize),
    ),
    case(
        "space before the size",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n 2\r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkSize),
    ),
    case(
        "0x before the size",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkSize),
    ),
    case(
        "signed size",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n+2\r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkSize),
    ),
    case(
        "size over 64 bits",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n10000000000000002\r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkSize),
    ),
    case(
        "size over 63 bits",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkSize),
    ),
    case(
        "empty size",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkSize),
    ),
    case(
        "data longer than its size",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhixx0\r\n\r\n",
        Refused(0, ChunkEnd),
    ),
    case(
        "two octets of anything after the data",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhiXX2\r\nhi\r\n0\r\n\r\n",
        Refused(0, ChunkEnd),
    ),
    case(
        "last chunk in zeros",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n000\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("POST /", ""), ("GET /n", "")]),
    ),
    case(
        "length among the trailers",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 40\r\n\r\n",
        Refused(0, TrailerField),
    ),
    case(
        "coding among the trailers",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\ntransfer-encoding: chunked\r\n\r\n",
        Refused(0, TrailerField),
    ),
    case(
        "host among the trailers",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nhost: b\r\n\r\n",
        Refused(0, TrailerField),
    ),
    case(
        "trailer without a name",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
        Refused(0, HeaderName),
    ),
    case(
        "bare line feed ends the trailers",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\nGET /n HTTP/1.1\r\n\r\n",
        Refused(0, BareLineFeed),
    ),
    // Lines and fields.
    case("bare line feeds throughout", "GET / HTTP/1.1\nhost: a\n\n", Refused(0, BareLineFeed)),
    case("carriage return twice", "GET / HTTP/1.1\r\r\nhost: a\r\n\r\n", Refused(0, BareCarriageReturn)),
    case("field before the first name", "GET / HTTP/1.1\r\n x: y\r\nhost: a\r\n\r\n", Refused(0, HeaderName)),
    case("folded field", "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n", Refused(0, HeaderName)),
    case("field without a colon", "GET / HTTP/1.1\r\nhost: a\r\nxyz\r\n\r\n", Refused(0, HeaderName)),
    case("field without a name", "GET / HTTP/1.1\r\nhost: a\r\n: y\r\n\r\n", Refused(0, HeaderName)),
    case("NUL in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: y\u{0}z\r\n\r\n", Refused(0, HeaderValue)),
    case("NUL in a name", "GET / HTTP/1.1\r\nhost: a\r\nx\u{0}: y\r\n\r\n", Refused(0, HeaderName)),
    case("two spaces in the request line", "GET  / HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, StartLine)),
    case("tab in the request line", "GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, StartLine)),
    case("space in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, Version)),
    case("fragment in the target", "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, Target)),
    case("HTTP/0.9", "GET /\r\n\r\n", Refused(0, StartLine)),
    case("HTTP/2.0 in a line", "GET / HTTP/2.0\r\nhost: a\r\n\r\n", Refused(0, Version)),
    case("HTTP/1.10", "GET / HTTP/1.10\r\nhost: a\r\n\r\n", Refused(0, StartLine)),
    case("asterisk of another method", "GET * HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, Target)),
    case("one empty line before", "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Read(&[("GET /", "")])),
    case("many empty lines before", "\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, EmptyLines)),
    case(
        "octets behind a body",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi!!GET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("POST /", "hi"), ("!!GET /n", "")]),
    ),
    // Hosts.
    case("no host", "GET / HTTP/1.1\r\n\r\n", Refused(0, HostMissing)),
    case("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", Refused(0, HostRepeated)),
    case("two equal hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", Refused(0, HostRepeated)),
    case("host with a path", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", Refused(0, HostInvalid)),
    case("host with user information", "GET / HTTP/1.1\r\nhost: a@b\r\n\r\n", Refused(0, HostInvalid)),
    case("host with a space", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n", Refused(0, HostInvalid)),
    case("host with a comma", "GET / HTTP/1.1\r\nhost: a,b\r\n\r\n", Refused(0, HostInvalid)),
    case("host with a bad port", "GET / HTTP/1.1\r\nhost: a:80x\r\n\r\n", Refused(0, HostInvalid)),
    case("host nominated away", "GET / HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n", Read(&[("GET /", "")])),
    case("absolute form with user information", "GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, HostInvalid)),
    case("absolute form of another scheme", "GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, Target)),
    case("absolute form counts over host", "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n", Read(&[("GET http://a/", "")])),
    // CONNECT and upgrades.
    case(
        "CONNECT with a length",
        "CONNECT a:1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
        Refused(0, ConnectBody),
    ),
    case("CONNECT with a path", "CONNECT /a HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, Target)),
    case("CONNECT without a port", "CONNECT a HTTP/1.1\r\nhost: a\r\n\r\n", Refused(0, Target)),
    // Ends.
    case("cut in the head", "GET / HTTP/1.1\r\nhost: a\r\n", Refused(0, Truncated)),
    case("cut in a length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhell", Refused(0, Truncated)),
    case(
        "cut before the last chunk",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
        Refused(0, Truncated),
    ),
    case(
        "close is obeyed",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("GET /", "")]),
    ),
    case(
        "HTTP/1.0 closes",
        "GET / HTTP/1.0\r\nhost: a\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("GET /", "")]),
    ),
    case(
        "HTTP/1.0 kept alive",
        "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
        Read(&[("GET /", ""), ("GET /n", "")]),
    ),
    case(
        "refused behind a good one",
        "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n",
        Refused(1, HeaderName),
    ),
];

/// Answers to GET.
pub const RESPONSES: &[Case] = &[
    case(
        "two lengths",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(0, LengthAndCoding),
    ),
    case(
        "differing lengths",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
        Refused(0, ContentLengthRepeated),
    ),
    case("list of lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2,2\r\n\r\nhi", Refused(0, ContentLength)),
    case(
        "coding other than chunked",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhi",
        Refused(0, UnknownCoding),
    ),
    case(
        "chunked in HTTP/1.0",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(0, TransferEncodingVersion),
    ),
    case("folded field", "HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\n", Refused(0, HeaderName)),
    case("space before the colon", "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nhi", Refused(0, HeaderName)),
    case("bare line feeds", "HTTP/1.1 200 OK\n\nhi", Refused(0, BareLineFeed)),
    case("carriage return in the reason", "HTTP/1.1 200 O\rK\r\n\r\n", Refused(0, BareCarriageReturn)),
    case("empty line before", "\r\nHTTP/1.1 200 OK\r\n\r\n", Refused(0, StartLine)),
    case("status of two digits", "HTTP/1.1 20 OK\r\n\r\n", Refused(0, StartLine)),
    case("status below 100", "HTTP/1.1 099 OK\r\n\r\n", Refused(0, StartLine)),
    case("until close", "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Read(&[("200", "HTTP/1.1 200 OK\r\n\r\n")])),
    case("204 with a length", "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", Read(&[("204", "")])),
    case("304 with a length", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", Read(&[("304", "")])),
    case(
        "informational first",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        Read(&[("200", "hi")]),
    ),
    case("101 without an upgrade", "HTTP/1.1 101 Switching Protocols\r\n\r\n", Refused(0, Upgrade)),
    case("cut in a length", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell", Refused(0, Truncated)),
    case("cut in a chunk", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhell", Refused(0, Truncated)),
    case("cut before the head ends", "HTTP/1.1 200 OK\r\n", Refused(0, Truncated)),
    case("cut after an informational one", "HTTP/1.1 100 Continue\r\n\r\n", Refused(0, Truncated)),
];
