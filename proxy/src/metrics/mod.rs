//! Metrics: Linkerd's names and labels, in Prometheus' text format.
//!
//! A data thread asks [`Metrics`] for handles once per connection, endpoint or route (that formats labels and takes a
//! lock) and then only adds to atomics. Label sets that nobody holds and that have not changed for the retention time
//! are dropped.

mod cells;
pub mod families;
mod handles;
mod labels;
mod process;
mod registry;

pub use cells::{Counter, Gauge, Histogram};
pub use handles::{Classification, RequestMetrics, ResponseClass, TcpConnection, TcpMetrics};
pub use labels::{Direction, Labels, NoTls, Tls};
pub use registry::{Family, Kind, Metrics};
