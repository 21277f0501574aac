//! WebSockets, with the Python library on both sides.

use crate::{Port, Test, case};

pub const TESTS: &[(&str, Test)] = &[
    ("websocket_on_an_undeclared_port", |cluster| {
        let port = Port { server: "websocket", service: 8765, pod: 8765, detected: &["http/1"] };
        all(cluster, port)
    }),
    ("websocket_on_a_port_declared_as_such", |cluster| {
        all(cluster, Port { server: "websocket", service: 8766, pod: 8765, detected: &[] })
    }),
];

fn all(cluster: &weft_e2e::Cluster, port: Port) -> anyhow::Result<()> {
    let address = format!("websocket:{}", port.service);
    for name in ["messages", "both_at_once", "pings", "closing"] {
        case(cluster, "websocket_client.py", &[&address, name]).map_err(|error| error.context(name))?;
    }
    port.was_secured(cluster)
}
