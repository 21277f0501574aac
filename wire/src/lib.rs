//! Bytes and protocols, without I/O.
//!
//! Everything in this crate is a state machine: bytes go in, events come out, bytes go out. There is no socket, no clock
//! and no runtime here, which is what makes the codecs testable over any chunking and fuzzable as they are.
//!
//! Both versions of HTTP share one vocabulary ([`head`]): a head, data, trailers, an end or a reset. The proxy's routing,
//! metrics and authorization work on that vocabulary and so exist once.
//!
//! The codecs are strict: what is ambiguous is refused with a reason, never guessed. Every limit is a field of [`Limits`].

pub mod detect;
pub mod fuzzing;
pub mod h1;
pub mod h2;
pub mod head;
pub mod limits;
pub mod tls;
pub mod transport_header;

pub use head::{Headers, Request, Response, Version};
pub use limits::Limits;
