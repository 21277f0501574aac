//! Options: flags, each with an environment variable behind it, and defaults that are right for namespace `weft`.

use crate::kubernetes;
use crate::policy::server::DefaultPolicy;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use weft_core::names;

/// The control plane of the weft service mesh.
#[derive(Debug, Parser)]
#[command(name = "weft-controller", version)]
pub struct Cli {
    /// Which component to run.
    #[command(subcommand)]
    pub component: Component,
    /// How to log.
    #[command(flatten)]
    pub log: LogOptions,
}

/// The components, one process each.
#[derive(Debug, Subcommand)]
pub enum Component {
    /// Certificate authority: signs the certificates of proxies
    Identity(IdentityOptions),
    /// Service discovery and policy for proxies
    Destination(DestinationOptions),
    /// Scrapes proxies, answers `weft stat` and `weft edges`
    Metrics(MetricsOptions),
    /// Webhooks of a Kubernetes cluster: adds proxies to pods, checks mesh resources
    Injector(InjectorOptions),
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Plain,
    /// One JSON object a line
    Json,
}

/// Logging, to standard error.
#[derive(Debug, Args)]
pub struct LogOptions {
    /// Filter, as in `info` or `warn,weft_controller=debug`
    #[arg(long, env = "WEFT_LOG", default_value = "info", global = true)]
    pub log_level: String,
    /// Form of log lines
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "plain", global = true)]
    pub log_format: LogFormat,
}

/// Who this control plane is.
#[derive(Debug, Clone, Args)]
pub struct MeshOptions {
    /// Namespace of the control plane
    #[arg(long, env = "WEFT_CONTROLLER_NAMESPACE", default_value = names::CONTROL_NAMESPACE)]
    pub controller_namespace: String,
    /// Trust domain: the last part of every identity
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = names::TRUST_DOMAIN)]
    pub trust_domain: String,
}

/// What kind of cluster this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClusterKind {
    /// The one-machine cluster, which writes its objects into a directory
    Directory,
    /// A Kubernetes cluster
    Kubernetes,
}

/// The cluster that this runs in.
#[derive(Debug, Clone, Args)]
pub struct ClusterOptions {
    /// Where the cluster's objects are; kubernetes in a pod of such a cluster unless a directory is given, else directory
    #[arg(long, env = "WEFT_SOURCE")]
    pub source: Option<ClusterKind>,
    /// File that says how to reach the Kubernetes API server; by default what a pod is given, or $KUBECONFIG
    #[arg(long, env = "WEFT_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// How long an answer of the Kubernetes API server may take, as in `30s`
    #[arg(long, env = "WEFT_API_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub api_timeout: Duration,
}

impl ClusterOptions {
    /// The kind of cluster, when a directory is given or not.
    pub fn kind(&self, directory: bool) -> ClusterKind {
        let in_a_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        self.source.unwrap_or(match directory {
            false if in_a_pod || self.kubeconfig.is_some() => ClusterKind::Kubernetes,
            _ => ClusterKind::Directory,
        })
    }

    /// How to reach the API server.
    pub fn api(&self) -> kubernetes::Options {
        kubernetes::Options { kubeconfig: self.kubeconfig.clone(), timeout: self.api_timeout }
    }
}

/// Where objects come from.
#[derive(Debug, Clone, Args)]
pub struct SourceOptions {
    /// See [`ClusterOptions`].
    #[command(flatten)]
    pub cluster: ClusterOptions,
    /// Directory of objects, `<plural kind>/<namespace or _>/<name>.json` each [default: /var/run/weft/objects]
    #[arg(long, env = "WEFT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// How often a directory is read again, should a notification have been missed, and how often a Kubernetes API
    /// server is asked again for kinds that it lacked, in seconds
    #[arg(long, env = "WEFT_RESYNC_INTERVAL", default_value = "30", value_parser = seconds)]
    pub resync_interval: Duration,
}

impl SourceOptions {
    /// The directory of objects.
    pub fn directory(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| PathBuf::from("/var/run/weft/objects"))
    }
}

/// Options of `identity`.
#[derive(Debug, Clone, Args)]
pub struct IdentityOptions {
    /// Where `Identity.Certify` is served
    #[arg(long, env = "WEFT_GRPC_ADDR", default_value_t = any(names::IDENTITY_GRPC_PORT))]
    pub grpc_addr: SocketAddr,
    /// Where metrics, readiness and liveness are served
    #[arg(long, env = "WEFT_ADMIN_ADDR", default_value_t = any(names::IDENTITY_ADMIN_PORT))]
    pub admin_addr: SocketAddr,
    /// See [`MeshOptions`].
    #[command(flatten)]
    pub mesh: MeshOptions,
    /// File of trust anchors, PEM
    #[arg(long, env = "WEFT_TRUST_ANCHORS", default_value = "/var/run/weft/identity/trust-roots/ca-bundle.crt")]
    pub trust_anchors: PathBuf,
    /// Directory with the issuer: tls.crt and tls.key, or crt.pem and key.pem
    #[arg(long, env = "WEFT_ISSUER_DIR", default_value = "/var/run/weft/identity/issuer")]
    pub issuer_dir: PathBuf,
    /// See [`ClusterOptions`].
    #[command(flatten)]
    pub cluster: ClusterOptions,
    /// Files, or directories of files, with the public keys (PEM) that service account tokens are signed with; comma
    /// separated. On Kubernetes the API server judges them instead [default: /var/run/weft/identity/token-keys]
    #[arg(long, env = "WEFT_TOKEN_KEYS", value_delimiter = ',')]
    pub token_keys: Vec<PathBuf>,
    /// How long a proxy's certificate is valid, as in `24h`
    #[arg(long, env = "WEFT_ISSUANCE_LIFETIME", default_value = "24h", value_parser = duration)]
    pub issuance_lifetime: Duration,
    /// How far clocks may differ: certificates are valid this much earlier and later, as in `20s`
    #[arg(long, env = "WEFT_CLOCK_SKEW", default_value = "20s", value_parser = duration)]
    pub clock_skew: Duration,
}

impl IdentityOptions {
    /// Where the keys of tokens are; `None` when the API server judges tokens.
    pub fn key_files(&self) -> Option<Vec<PathBuf>> {
        match self.cluster.kind(!self.token_keys.is_empty()) {
            ClusterKind::Kubernetes => None,
            ClusterKind::Directory if self.token_keys.is_empty() => {
                Some(vec![PathBuf::from("/var/run/weft/identity/token-keys")])
            }
            ClusterKind::Directory => Some(self.token_keys.clone()),
        }
    }
}

/// Options of `destination`.
#[derive(Debug, Clone, Args)]
pub struct DestinationOptions {
    /// Where `Destination` is served
    #[arg(long, env = "WEFT_GRPC_ADDR", default_value_t = any(names::DESTINATION_GRPC_PORT))]
    pub grpc_addr: SocketAddr,
    /// Where `InboundServerPolicies` and `OutboundPolicies` are served
    #[arg(long, env = "WEFT_POLICY_ADDR", default_value_t = any(names::POLICY_GRPC_PORT))]
    pub policy_addr: SocketAddr,
    /// Where metrics, readiness and liveness are served
    #[arg(long, env = "WEFT_ADMIN_ADDR", default_value_t = any(names::DESTINATION_ADMIN_PORT))]
    pub admin_addr: SocketAddr,
    /// See [`MeshOptions`].
    #[command(flatten)]
    pub mesh: MeshOptions,
    /// See [`SourceOptions`].
    #[command(flatten)]
    pub source: SourceOptions,
    /// Domain of service names, as in `<name>.<namespace>.svc.<domain>`
    #[arg(long, env = "WEFT_CLUSTER_DOMAIN", default_value = names::CLUSTER_DOMAIN)]
    pub cluster_domain: String,
    /// Networks that count as the cluster for `cluster-…` inbound policies; comma separated
    #[arg(long, env = "WEFT_CLUSTER_NETWORKS", value_delimiter = ',', default_value = names::CLUSTER_NETWORKS)]
    pub cluster_networks: Vec<IpNet>,
    /// Who may connect to pods that say nothing about it, and whose namespaces say nothing [default: all-unauthenticated]
    #[arg(long, env = "WEFT_DEFAULT_INBOUND_POLICY", value_name = "POLICY", value_parser = inbound_policy)]
    pub default_inbound_policy: Option<String>,
    /// Opaque ports of pods and services that say nothing about it; comma separated [default: those of well-known servers]
    #[arg(long, env = "WEFT_OPAQUE_PORTS", value_name = "PORTS")]
    pub opaque_ports: Option<String>,
}

fn inbound_policy(text: &str) -> Result<String, String> {
    match DefaultPolicy::parse(text) {
        Some(policy) => Ok(policy.name().to_owned()),
        None => Err("there is no such policy".to_owned()),
    }
}

/// Options of `metrics`.
#[derive(Debug, Clone, Args)]
pub struct MetricsOptions {
    /// Where the metrics API is served, HTTP with JSON
    #[arg(long, env = "WEFT_API_ADDR", default_value_t = any(names::METRICS_HTTP_PORT))]
    pub api_addr: SocketAddr,
    /// Where metrics, readiness and liveness are served
    #[arg(long, env = "WEFT_ADMIN_ADDR", default_value_t = any(names::METRICS_ADMIN_PORT))]
    pub admin_addr: SocketAddr,
    /// See [`MeshOptions`].
    #[command(flatten)]
    pub mesh: MeshOptions,
    /// See [`SourceOptions`].
    #[command(flatten)]
    pub source: SourceOptions,
    /// How often every proxy is scraped, as in `5s`
    #[arg(long, env = "WEFT_SCRAPE_INTERVAL", default_value = "5s", value_parser = duration)]
    pub scrape_interval: Duration,
    /// How long one scrape may take, as in `4s`
    #[arg(long, env = "WEFT_SCRAPE_TIMEOUT", default_value = "4s", value_parser = duration)]
    pub scrape_timeout: Duration,
    /// Scrapes at the same time
    #[arg(long, env = "WEFT_SCRAPE_CONCURRENCY", default_value = "32")]
    pub scrape_concurrency: usize,
}

/// Options of `injector`.
#[derive(Debug, Clone, Args)]
pub struct InjectorOptions {
    /// Where the webhooks are served, HTTPS
    #[arg(long, env = "WEFT_WEBHOOK_ADDR", default_value_t = any(names::INJECTOR_HTTPS_PORT))]
    pub webhook_addr: SocketAddr,
    /// Where metrics, readiness and liveness are served
    #[arg(long, env = "WEFT_ADMIN_ADDR", default_value_t = any(names::INJECTOR_ADMIN_PORT))]
    pub admin_addr: SocketAddr,
    /// See [`MeshOptions`].
    #[command(flatten)]
    pub mesh: MeshOptions,
    /// See [`ClusterOptions`].
    #[command(flatten)]
    pub cluster: ClusterOptions,
    /// File of the values that say what is injected, YAML
    #[arg(long, env = "WEFT_VALUES", default_value = "/var/run/weft/config/values")]
    pub values: PathBuf,
    /// File of trust anchors, PEM
    #[arg(long, env = "WEFT_TRUST_ANCHORS", default_value = "/var/run/weft/identity/trust-roots/ca-bundle.crt")]
    pub trust_anchors: PathBuf,
    /// How long a certificate of the webhooks is valid; it is replaced when a third of that is left
    #[arg(long, env = "WEFT_WEBHOOK_CERTIFICATE_LIFETIME", default_value = "90d", value_parser = duration)]
    pub webhook_certificate_lifetime: Duration,
    /// How long the replica that writes stays the one when it is not heard of
    #[arg(long, env = "WEFT_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    pub lease_duration: Duration,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => Err("not a whole number of seconds".into()),
    }
}

/// A duration with its unit: `500ms`, `20s`, `5m`, `24h`, `7d`.
///
/// # Errors
/// What is wrong with it, for people.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "a duration is a number with a unit, as in 20s or 24h".to_owned())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("the unit of a duration is ms, s, m, h or d".into()),
    };
    match number.checked_mul(millis) {
        Some(0) => Err("must be more than 0".into()),
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err("too long".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn options_are_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["weft-controller", "destination"]);
        let Component::Destination(options) = cli.component else { panic!("not destination") };
        assert_eq!(options.policy_addr.port(), names::POLICY_GRPC_PORT);
        assert_eq!(options.cluster_networks.len(), 4);
        assert_eq!(options.source.directory().to_str(), Some("/var/run/weft/objects"));
    }

    #[test]
    fn the_cluster_is_what_is_given() {
        let kind = |args: &[&str]| {
            let cli = Cli::parse_from([&["weft-controller", "destination"], args].concat());
            let Component::Destination(options) = cli.component else { panic!("not destination") };
            options.source.cluster.kind(options.source.state_dir.is_some())
        };
        assert_eq!(kind(&["--kubeconfig", "x"]), ClusterKind::Kubernetes);
        assert_eq!(kind(&["--kubeconfig", "x", "--state-dir", "y"]), ClusterKind::Directory);
        assert_eq!(kind(&["--source", "kubernetes", "--state-dir", "y"]), ClusterKind::Kubernetes);
        assert_eq!(kind(&["--source", "directory"]), ClusterKind::Directory);
        let identity = |args: &[&str]| {
            let cli = Cli::parse_from([&["weft-controller", "identity"], args].concat());
            let Component::Identity(options) = cli.component else { panic!("not identity") };
            options.key_files().map(|files| files.len())
        };
        assert_eq!(identity(&["--token-keys", "a,b"]), Some(2));
        assert_eq!(identity(&["--source", "directory"]), Some(1));
        assert_eq!(identity(&["--source", "kubernetes", "--token-keys", "a"]), None);
    }

    #[test]
    fn durations() {
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "5", "s", "0s", "1w", "-1s", "99999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
