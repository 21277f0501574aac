//! grpcio on both sides.

use weft_e2e::Interop;

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
        // Between two of Linkerd's proxies grpcio does not always recognise an answer that is nothing but trailers.
        if name == "errors_with_trailers" && Interop::is_other("client")? && Interop::is_other("grpc")? {
            continue;
        }
        case(cluster, "grpc_client.py", &[&target, name]).map_err(|error| error.context(name))?;
    }
    port.was_secured(cluster)
}
