//! The control plane's side of the proxy: connections, names, watches, and translation of what comes in.

mod channel;
mod dns;
pub(crate) mod translate;
mod watch;

pub(crate) use channel::{Channel, Connector, Tls};
pub(crate) use watch::{Link, Next, follow};
