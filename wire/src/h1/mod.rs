//! HTTP/1.0 and HTTP/1.1: strict decoders of both directions, and encoders.
//!
//! A decoder takes the octets that arrived and gives events: a head, data, trailers, an end. It keeps no octets: what it
//! did not consume the caller keeps and presents again with more appended. Data is borrowed from the input, so bodies
//! pass without a copy.
//!
//! ```
//! use weft_wire::{Limits, h1::{Event, RequestDecoder}};
//! let mut decoder = RequestDecoder::new(&Limits::default());
//! let mut input: &[u8] = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
//! loop {
//!     let (used, event) = decoder.decode(input)?;
//!     input = &input[used..];
//!     match event {
//!         Some(Event::Head(head)) => assert_eq!(head.authority, b"web"),
//!         Some(Event::End) => break,
//!         Some(_) => unreachable!("no body"),
//!         None => unreachable!("the input is complete; a driver reads more here"),
//!     }
//! }
//! # Ok::<(), weft_wire::h1::Error>(())
//! ```
//!
//! **Ambiguity is refused, not repaired.** Where two implementations may read a message differently, a request can be
//! smuggled from one into the other (RFC 9112 §11.2). So what is refused here is more than the RFC demands: every
//! [`ErrorKind`] says what. And nothing is forwarded raw: encoders write framing fields from the parsed state alone, and
//! escape whatever would end a line early.

mod body;
mod chars;
mod decode;
mod encode;
mod error;
mod head;

pub use decode::{RequestDecoder, ResponseDecoder};
pub use encode::{
    encode_data, encode_end, encode_request, encode_response, reason_phrase, request_framing, response_framing,
};
pub use error::{Error, ErrorKind};

pub(crate) use chars::is_token;

use crate::head::{Headers, Version};

/// What a decoder saw next.
#[derive(Debug, PartialEq)]
pub enum Event<'i, H> {
    /// The head of a message.
    Head(H),
    /// The head of an informational response (1xx but 101). Its final response comes later. Responses only.
    Informational(H),
    /// A piece of the body, never empty, without its framing.
    Data(&'i [u8]),
    /// Trailer fields of a chunked body, when there are any. [`Event::End`] follows.
    Trailers(Headers),
    /// The message is complete.
    End,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// There is no body.
    #[default]
    None,
    /// Exactly that many octets.
    Length(u64),
    /// The chunked coding.
    Chunked,
    /// Everything until the connection closes. Responses only.
    UntilClose,
}

impl Framing {
    /// The framing to use towards a client of that version: HTTP/1.0 knows no chunks, so there the end of the
    /// connection ends the body.
    pub fn towards(self, version: Version) -> Self {
        if self == Self::Chunked && version == Version::H10 { Self::UntilClose } else { self }
    }
}
