//! Encoders.

use super::Framing;
use crate::head::{Headers, Request, Response, Version};

/// Writes a request's head: always HTTP/1.1, Host from `authority`, framing fields from `framing` alone, `connection: upgrade`
/// when `upgrade` is among the headers.
pub fn encode_request(_head: &Request, _framing: Framing, _out: &mut Vec<u8>) {
    unimplemented!()
}

/// Writes a response's head. `version` is the client's; `framing` has gone through [`Framing::towards`] it.
/// With [`Framing::None`] (HEAD, 304) a content-length among the headers is written as the information it is.
pub fn encode_response(_head: &Response, _framing: Framing, _keep_alive: bool, _version: Version, _out: &mut Vec<u8>) {
    unimplemented!()
}

/// Writes a piece of a body. Writes nothing for an empty piece.
pub fn encode_data(_framing: Framing, _data: &[u8], _out: &mut Vec<u8>) {
    unimplemented!()
}

/// Writes the end of a body; trailers only travel in chunked bodies.
pub fn encode_end(_framing: Framing, _trailers: Option<&Headers>, _out: &mut Vec<u8>) {
    unimplemented!()
}

/// The framing to write a request with that came in any version: `end` says that no body follows.
pub fn request_framing(_head: &Request, _end: bool) -> Framing {
    unimplemented!()
}

/// The framing to write a response with that came in any version, to a client of that version which asked with `method`:
/// `end` says that no body follows.
pub fn response_framing(_method: &[u8], _head: &Response, _end: bool, _client: Version) -> Framing {
    unimplemented!()
}

/// The registered reason phrase of a status, or an empty one.
pub fn reason_phrase(_status: u16) -> &'static str {
    unimplemented!()
}
