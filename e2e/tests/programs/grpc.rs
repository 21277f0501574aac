//! grpcio on both sides.

use crate::{Port, Test, case};

pub const TESTS: &[(&str, Test)] = &[
    ("grpc_on_an_undeclared_port", |cluster| {
        let port = Port { server: "grpc", service: 50051, pod: 50051, detected: &["http/2"] };
        all(cluster, port)
    }),
    ("grpc_on_a_port_declared_as_http2", |cluster| {
        all(cluster, Port { server: "grpc", service: 50052, pod: 50051, detected: &[] })
    }),
];

fn all(cluster: &weft_e2e::Cluster, port: Port) -> anyhow::Result<()> {
    let target = format!("grpc:{}", port.service);
    for name in ["unary_calls", "streams", "errors_with_trailers", "deadlines_and_cancelling"] {
        case(cluster, "grpc_client.py", &[&target, name]).map_err(|error| error.context(name))?;
    }
    port.was_secured(cluster)
}
