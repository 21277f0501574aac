//! HPACK, header compression for HTTP/2 (RFC 7541).

mod decoder;
mod encoder;
pub mod huffman;
mod table;

pub use decoder::{Decoder, Field};
pub use encoder::Encoder;

/// A header block that cannot be decoded: the compression state is lost, so the connection must end with
/// COMPRESSION_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("HPACK: {0}")]
pub struct DecodeError(pub &'static str);

#[cfg(test)]
mod tests;
