//! What the parts of weft share: names, ports, identities, labels, resource types, injection, and the vocabulary of the
//! metrics API. No I/O here.

pub mod api;
pub mod names;
