//! What the values of settings look like. An error is the rest of a sentence that begins with the value.

use super::settings::{go_duration, port_ranges, quantity as read_quantity};
use crate::validate;

/// A Go duration: `100ms`, `10s`, `1m30s`.
///
/// # Errors
/// That it is none.
pub fn duration(text: &str) -> Result<(), String> {
    go_duration(text).map(drop)
}

/// A Kubernetes quantity: `100m`, `20Mi`, `1.5`.
///
/// # Errors
/// That it is none.
pub fn quantity(text: &str) -> Result<(), String> {
    read_quantity(text).map(drop)
}

/// Ports and ranges of ports, with commas: `80,8000-8100`.
///
/// # Errors
/// Which part is neither.
pub fn ports(text: &str) -> Result<(), String> {
    port_ranges(text).map(drop)
}

/// A DNS name of a cluster: `cluster.local`.
///
/// # Errors
/// That it is none.
pub fn dns_name(text: &str) -> Result<(), String> {
    if validate::is_dns_name(text) { Ok(()) } else { Err(format!("is not a valid name: {}", validate::DNS_NAME)) }
}
