//! Names, ports and labels that are contracts: with Linkerd, with Kubernetes, and among weft's own parts.

/// The namespace of the control plane.
pub const CONTROL_NAMESPACE: &str = "weft";
/// The default trust domain.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// The default cluster domain.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Where the outbound proxy listens, on loopback.
pub const OUTBOUND_PORT: u16 = 4140;
/// Where the inbound proxy listens.
pub const INBOUND_PORT: u16 = 4143;
/// Where a proxy serves tap.
pub const CONTROL_PORT: u16 = 4190;
/// Where a proxy serves metrics, readiness and liveness.
pub const ADMIN_PORT: u16 = 4191;
/// The user that a proxy runs as; what it sends is not redirected.
pub const PROXY_UID: u32 = 2102;

/// The container that is the proxy.
pub const PROXY_CONTAINER: &str = "linkerd-proxy";
/// The init container that redirects traffic.
pub const INIT_CONTAINER: &str = "linkerd-init";
/// The init container that takes its place where a CNI plugin redirects traffic: it ends well when that has happened.
pub const VALIDATOR_CONTAINER: &str = "linkerd-network-validator";
/// The name of the proxy's admin port, which scrapers look for.
pub const ADMIN_PORT_NAME: &str = "linkerd-admin";

/// Service of the identity component: `weft-identity.weft.svc.cluster.local`.
pub const IDENTITY_SERVICE: &str = "weft-identity";
/// Port of `Identity.Certify`.
pub const IDENTITY_GRPC_PORT: u16 = 8080;
/// Service of the destination component.
pub const DESTINATION_SERVICE: &str = "weft-destination";
/// Port of `Destination.Get` and `GetProfile`.
pub const DESTINATION_GRPC_PORT: u16 = 8086;
/// Service of the policy component (pods of the destination deployment).
pub const POLICY_SERVICE: &str = "weft-policy";
/// Port of `InboundServerPolicies` and `OutboundPolicies`.
pub const POLICY_GRPC_PORT: u16 = 8090;
/// Service of the metrics component.
pub const METRICS_SERVICE: &str = "weft-metrics";
/// Port of the metrics API (HTTP, JSON).
pub const METRICS_HTTP_PORT: u16 = 8085;
/// Service of the injector: the webhooks.
pub const INJECTOR_SERVICE: &str = "weft-injector";
/// Port of the webhooks (HTTPS) in the injector's pods; the service's is 443.
pub const INJECTOR_HTTPS_PORT: u16 = 8443;
/// Admin ports (`/metrics`, `/ready`, `/live`) of the control plane's components.
pub const IDENTITY_ADMIN_PORT: u16 = 9990;
/// See [`IDENTITY_ADMIN_PORT`].
pub const DESTINATION_ADMIN_PORT: u16 = 9996;
/// See [`IDENTITY_ADMIN_PORT`].
pub const METRICS_ADMIN_PORT: u16 = 9995;
/// See [`IDENTITY_ADMIN_PORT`].
pub const INJECTOR_ADMIN_PORT: u16 = 9995;

/// ConfigMap with the trust anchors, in the control namespace.
pub const TRUST_ROOTS_CONFIG_MAP: &str = "weft-identity-trust-roots";
/// Key of the trust anchors (PEM) in [`TRUST_ROOTS_CONFIG_MAP`].
pub const TRUST_ROOTS_KEY: &str = "ca-bundle.crt";
/// Secret with the issuer (`tls.crt`, `tls.key`), in the control namespace.
pub const ISSUER_SECRET: &str = "weft-identity-issuer";
/// ConfigMap with the public keys of service-account tokens, in the control namespace.
pub const TOKEN_KEYS_CONFIG_MAP: &str = "weft-token-keys";

/// Secret with the certificate that the webhooks show, in the control namespace.
pub const INJECTOR_TLS_SECRET: &str = "weft-injector-k8s-tls";
/// Lease that says which replica of the injector writes.
pub const INJECTOR_LEASE: &str = "weft-injector";
/// MutatingWebhookConfiguration by which pods are injected.
pub const INJECTOR_WEBHOOK: &str = "weft-injector-webhook-config";
/// ValidatingWebhookConfiguration by which mesh resources are checked.
pub const VALIDATOR_WEBHOOK: &str = "weft-validator-webhook-config";
/// Label on the control plane's own namespace.
pub const LABEL_IS_CONTROL_PLANE: &str = "linkerd.io/is-control-plane";

/// Label on every injected pod: the namespace of its control plane.
pub const LABEL_CONTROL_PLANE_NS: &str = "linkerd.io/control-plane-ns";
/// Label on control-plane objects: the component.
pub const LABEL_COMPONENT: &str = "linkerd.io/control-plane-component";
/// Label on injected pods: the namespace of the workload.
pub const LABEL_WORKLOAD_NS: &str = "linkerd.io/workload-ns";
/// Annotation that asks for injection: `enabled`, `disabled` or `ingress`.
pub const ANNOTATION_INJECT: &str = "linkerd.io/inject";
/// Audience of the token that a proxy shows to the identity component.
pub const IDENTITY_AUDIENCE: &str = "identity.l5d.io";
/// ALPN of connections that begin with a transport header.
pub const TRANSPORT_ALPN: &[u8] = b"transport.l5d.io/v1";
/// Ports whose protocol is never detected (server speaks first, or no HTTP ever), Linkerd's default list.
pub const DEFAULT_OPAQUE_PORTS: &[u16] = &[25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// Networks of the one-machine cluster: pods.
pub const LOCAL_POD_NETWORK: &str = "10.244.0.0/16";
/// Networks of the one-machine cluster: services.
pub const LOCAL_SERVICE_NETWORK: &str = "10.96.0.0/16";
/// Cluster DNS of the one-machine cluster.
pub const LOCAL_DNS_IP: &str = "10.96.0.10";
/// The networks that count as the cluster by default, as Linkerd's chart has them.
pub const CLUSTER_NETWORKS: &str = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16";

/// The identity of a service account: `<sa>.<ns>.serviceaccount.identity.<control-ns>.<trust-domain>`.
pub fn identity(service_account: &str, namespace: &str, control_namespace: &str, trust_domain: &str) -> String {
    format!("{service_account}.{namespace}.serviceaccount.identity.{control_namespace}.{trust_domain}")
}

/// The label that names a pod's workload, such as `linkerd.io/proxy-deployment`.
pub fn workload_label(kind: &str) -> String {
    format!("linkerd.io/proxy-{}", kind.to_ascii_lowercase())
}
