//! What the parts of weft share: names, ports, identities, labels, resource types, injection, and the vocabulary of the
//! metrics API. No I/O here.

pub mod api;
pub mod control_plane;
pub mod inject;
pub mod kinds;
pub mod manifest;
pub mod mesh;
pub mod names;
pub mod owner;
pub mod ports;
pub mod selector;
pub mod token;
pub mod trust;
mod validate;

pub use k8s_openapi;
