//! The arguments of every command.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use weft_core::names;

mod install;

pub use install::{Install, InstallCni, InstallSettings, Uninstall, Upgrade, ValueSettings};

/// A service mesh that is light, fast, and compatible with Linkerd
#[derive(Debug, Parser)]
#[command(name = "weft", version, disable_help_subcommand = true, infer_long_args = false)]
pub struct Cli {
    /// Namespace of the control plane
    #[arg(
        short = 'L',
        long,
        global = true,
        env = "LINKERD_NAMESPACE",
        default_value = names::CONTROL_NAMESPACE,
        value_name = "NAMESPACE"
    )]
    pub linkerd_namespace: String,
    /// Kubernetes cluster: file with clusters and credentials [default: KUBECONFIG, else ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// Kubernetes cluster: context in the file
    #[arg(long, global = true, value_name = "CONTEXT", help_heading = "Kubernetes")]
    pub context: Option<String>,
    /// Kubernetes cluster: user to act as
    #[arg(long = "as", global = true, value_name = "USER", help_heading = "Kubernetes")]
    pub as_user: Option<String>,
    /// Kubernetes cluster: group to act as; may be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP", help_heading = "Kubernetes")]
    pub as_groups: Vec<String>,
    /// Log what this program does
    #[arg(long, global = true)]
    pub verbose: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the one-machine cluster, meshed, and run manifests in it
    Up(weft_local::args::Up),
    /// Stop the one-machine cluster; leaves nothing behind, also after a crash
    Down(weft_local::args::Down),
    /// Create or change objects of the one-machine cluster
    Apply(weft_local::args::Apply),
    /// Delete objects of the one-machine cluster
    Delete(weft_local::args::Delete),
    /// List pods of the one-machine cluster
    Ps(weft_local::args::Ps),
    /// Print what a container of the one-machine cluster prints
    Logs(weft_local::args::Logs),
    /// Run a command in a pod of the one-machine cluster
    Exec(weft_local::args::Exec),
    /// Print what installs the control plane on Kubernetes
    Install(Box<Install>),
    /// Print what installs the CNI plugin, which redirects the traffic of pods where they may not have NET_ADMIN
    InstallCni(Box<InstallCni>),
    /// Print what brings the installed control plane to this version
    Upgrade(Box<Upgrade>),
    /// Print what to delete to remove the control plane from Kubernetes
    Uninstall(Uninstall),
    /// Print what earlier versions of the control plane have left
    Prune,
    /// Add the proxy to manifests
    Inject(Box<Inject>),
    /// Remove the proxy from manifests
    Uninject(Uninject),
    /// Show traffic: success rate, requests per second, latency
    Stat(Stat),
    /// Show who talks to whom, and whether it is secured
    Edges(Edges),
    /// Check that the mesh works
    Check(Check),
    /// Print the certificates that proxies show
    Identity(Identity),
    /// Print the metrics of proxies
    Metrics(Metrics),
    /// Show where the control plane sends what goes to an authority
    #[command(visible_alias = "ep")]
    Endpoints(Endpoints),
    /// Ask the parts of the mesh what they know
    #[command(subcommand, visible_alias = "dg")]
    Diagnostics(DiagnosticsCommand),
    /// Print the names of objects
    Get(Get),
    /// Print the versions of this program and of the control plane
    Version(Version),
    /// Print a shell's completion script
    Completion(Completion),
    /// The same commands under the names of Linkerd's extension
    #[command(subcommand)]
    Viz(VizCommand),
}

impl Command {
    /// Whether it is about the cluster of this machine, whatever others there are.
    pub fn is_of_this_machine(&self) -> bool {
        use Command::{Apply, Delete, Down, Exec, Logs, Ps, Up};
        matches!(self, Up(_) | Down(_) | Apply(_) | Delete(_) | Ps(_) | Logs(_) | Exec(_))
    }
}

/// See [`Command::Viz`].
#[derive(Debug, Subcommand)]
pub enum VizCommand {
    /// Show traffic: success rate, requests per second, latency
    Stat(Stat),
    /// Show who talks to whom, and whether it is secured
    Edges(Edges),
    /// Check that the mesh works
    Check(Check),
    /// List the pods that have a proxy
    List(List),
}

/// See [`Command::Diagnostics`].
#[derive(Debug, Subcommand)]
pub enum DiagnosticsCommand {
    /// Show where the control plane sends what goes to an authority
    #[command(visible_alias = "ep")]
    Endpoints(Endpoints),
    /// Show what the control plane tells proxies about an address
    Profile(Profile),
    /// Show the policy of a port of a pod or service
    Policy(Policy),
    /// Print the metrics of proxies
    ProxyMetrics(Metrics),
    /// Print the metrics of the control plane
    #[command(visible_alias = "cp-metrics")]
    ControllerMetrics(ControllerMetrics),
}

/// Form of the output of `stat` and `edges`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// For people, with more columns
    Wide,
}

/// Arguments of `weft stat`.
#[derive(Debug, Clone, Default, Args)]
pub struct Stat {
    /// What to show: TYPE, TYPE NAME…, or TYPE/NAME…; types are deploy, po, ns, ds, sts, job, cj, rs, rc, svc, au, all
    #[arg(required = true, value_name = "RESOURCES")]
    pub resources: Vec<String>,
    /// Namespace of the resources [default: default]
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Show all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// How far to look back, such as 15s, 1m, 10m or 1h; at least 10s
    #[arg(short = 't', long, default_value = "1m", value_parser = window, value_name = "WINDOW")]
    pub time_window: u64,
    /// Only traffic to this resource
    #[arg(long, value_name = "RESOURCE", conflicts_with = "from")]
    pub to: Option<String>,
    /// Namespace of the --to resource; that of the resources by default
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "from_namespace")]
    pub to_namespace: Option<String>,
    /// Only traffic from this resource
    #[arg(long, value_name = "RESOURCE")]
    pub from: Option<String>,
    /// Namespace of the --from resource; that of the resources by default
    #[arg(long, value_name = "NAMESPACE")]
    pub from_namespace: Option<String>,
    /// Only resources with these labels, such as app=web,tier!=test
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    pub selector: Option<String>,
    /// Also show resources without any proxy
    #[arg(long)]
    pub unmeshed: bool,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `weft edges`.
#[derive(Debug, Clone, Default, Args)]
pub struct Edges {
    /// Type of the resources: deploy, po, ds, sts, job, cj, rs, rc, ns
    #[arg(value_name = "TYPE")]
    pub resource: String,
    /// Namespace of either end [default: default]
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Show all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Form of the output; wide shows the identities of both ends
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: Output,
}

/// Form of the output of `check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CheckOutput {
    /// Every check
    #[default]
    #[value(alias = "basic")]
    Table,
    /// For programs
    Json,
    /// Only what is not right
    Short,
}

/// Arguments of `weft check`.
#[derive(Debug, Clone, Default, Args)]
pub struct Check {
    /// Check whether the control plane can be installed on a Kubernetes cluster
    #[arg(long, conflicts_with = "proxy")]
    pub pre: bool,
    /// Only check the definitions of the mesh's resources
    #[arg(long, conflicts_with = "proxy")]
    pub crds: bool,
    /// With --pre: a CNI plugin redirects the traffic of pods, so that they need no rights for it; it is checked too
    #[arg(long, requires = "pre")]
    pub linkerd_cni_enabled: bool,
    /// Only check the data plane and what it needs
    #[arg(long)]
    pub proxy: bool,
    /// Namespace whose proxies are checked; all by default
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// How long to wait for what may still be starting, such as 30s or 5m
    #[arg(long, default_value = "5m", value_parser = duration_seconds, value_name = "DURATION")]
    pub wait: u64,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: CheckOutput,
}

/// Arguments of `weft metrics`.
#[derive(Debug, Clone, Default, Args)]
pub struct Metrics {
    /// Whose proxies: TYPE/NAME, such as deploy/web or po/web-5d8f-x7k2p
    #[arg(value_name = "TYPE/NAME", required = true, num_args = 1..=2)]
    pub resource: Vec<String>,
    /// Namespace of the resource
    #[arg(short = 'n', long, default_value = "default", value_name = "NAMESPACE")]
    pub namespace: String,
    /// Replace names of services and identities by hashes, to show the metrics to others
    #[arg(long)]
    pub obfuscate: bool,
}

/// Arguments of `weft identity`.
#[derive(Debug, Clone, Default, Args)]
pub struct Identity {
    /// Pods, by name
    #[arg(value_name = "PODS", required_unless_present = "selector")]
    pub pods: Vec<String>,
    /// Namespace of the pods
    #[arg(short = 'n', long, default_value = "default", value_name = "NAMESPACE")]
    pub namespace: String,
    /// All pods with these labels, such as app=web,tier!=test
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector, conflicts_with = "pods")]
    pub selector: Option<String>,
}

/// Form of the output of `endpoints`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum EndpointsOutput {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Arguments of `weft endpoints`.
#[derive(Debug, Clone, Default, Args)]
pub struct Endpoints {
    /// Authorities, such as web-svc.emojivoto.svc.cluster.local:80
    #[arg(required = true, value_name = "AUTHORITIES")]
    pub authorities: Vec<String>,
    /// What a proxy would say of itself: may change what it is told
    #[arg(long, default_value = "", value_name = "TOKEN")]
    pub token: String,
    /// Ask this pod of the destination component
    #[arg(long, value_name = "POD")]
    pub destination_pod: Option<String>,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: EndpointsOutput,
}

/// Form of the output of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the variants are the formats' names")]
pub enum MessageOutput {
    Json,
    Yaml,
}

/// Arguments of `weft diagnostics profile`.
#[derive(Debug, Clone, Args)]
pub struct Profile {
    /// An address or authority with a port, such as 10.244.0.8:8080
    #[arg(value_name = "ADDRESS")]
    pub address: String,
    /// What a proxy would say of itself: may change what it is told
    #[arg(long, default_value = "", value_name = "TOKEN")]
    pub token: String,
    /// Ask this pod of the destination component
    #[arg(long, value_name = "POD")]
    pub destination_pod: Option<String>,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t = MessageOutput::Json)]
    pub output: MessageOutput,
}

/// Arguments of `weft diagnostics policy`.
#[derive(Debug, Clone, Args)]
pub struct Policy {
    /// po/NAME: who may connect to it; svc/NAME: where proxies send what goes to it
    #[arg(value_name = "RESOURCE")]
    pub resource: String,
    /// Port of the resource
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Namespace of the resource
    #[arg(short = 'n', long, default_value = "default", value_name = "NAMESPACE")]
    pub namespace: String,
    /// Who asks, where the resource is a service: NAMESPACE:POD
    #[arg(long, default_value = "default:diagnostics", value_name = "TOKEN")]
    pub token: String,
    /// Ask this pod of the destination component
    #[arg(long, value_name = "POD")]
    pub destination_pod: Option<String>,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t = MessageOutput::Yaml)]
    pub output: MessageOutput,
}

/// Arguments of `weft diagnostics controller-metrics`.
#[derive(Debug, Clone, Default, Args)]
pub struct ControllerMetrics {
    /// How long it may take, such as 30s
    #[arg(short = 'w', long, default_value = "30s", value_parser = duration_seconds, value_name = "DURATION")]
    pub wait: u64,
}

/// Arguments of `weft get`.
#[derive(Debug, Clone, Default, Args)]
pub struct Get {
    /// pods
    #[arg(value_name = "TYPE")]
    pub resource: String,
    /// Where to look, and how much.
    #[command(flatten)]
    pub list: List,
}

/// Arguments of `weft viz list`.
#[derive(Debug, Clone, Default, Args)]
pub struct List {
    /// Namespace of the pods
    #[arg(short = 'n', long, default_value = "default", value_name = "NAMESPACE")]
    pub namespace: String,
    /// Pods of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

/// Arguments of `weft version`.
#[derive(Debug, Clone, Default, Args)]
pub struct Version {
    /// Only the numbers
    #[arg(long)]
    pub short: bool,
    /// Only this program's version
    #[arg(long)]
    pub client: bool,
    /// Also the versions of proxies
    #[arg(long)]
    pub proxy: bool,
    /// Namespace of the proxies; all by default
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// Arguments of `weft completion`.
#[derive(Debug, Clone, Args)]
pub struct Completion {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// A shell that can be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the variants are the shells' names")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Form of the output of `inject` and `uninject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ManifestOutput {
    /// YAML documents
    #[default]
    Yaml,
    /// JSON objects
    Json,
}

/// Arguments of `weft inject`.
#[derive(Debug, Clone, Default, Args)]
pub struct Inject {
    /// Files, folders, URLs, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|URL|-")]
    pub inputs: Vec<PathBuf>,
    /// Add the containers now, instead of asking the cluster to
    #[arg(long)]
    pub manual: bool,
    /// File of trust anchors (PEM) for --manual; those of the running cluster by default
    #[arg(long, value_name = "FILE", requires = "manual")]
    pub identity_trust_anchors_file: Option<PathBuf>,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: ManifestOutput,
    /// Settings of the proxy.
    #[command(flatten)]
    pub proxy: ProxySettings,
}

macro_rules! proxy_settings {
    ($($(#[$meta:meta])* $field:ident, $annotation:literal;)*) => {
        /// Each flag sets the annotation `config.linkerd.io/…` of the same meaning.
        #[derive(Debug, Clone, Default, Args)]
        #[command(next_help_heading = "Proxy settings")]
        pub struct ProxySettings {
            $($(#[$meta])* pub $field: Option<String>,)*
        }

        impl ProxySettings {
            /// The annotations of the flags that were given.
            pub fn annotations(&self) -> std::collections::BTreeMap<String, String> {
                let all = [$(($annotation, &self.$field)),*];
                let prefix = weft_core::inject::CONFIG_PREFIX;
                all.into_iter().filter_map(|(name, v)| v.clone().map(|v| (format!("{prefix}{name}"), v))).collect()
            }
        }
    };
}

proxy_settings! {
    /// Ports whose protocol is not detected, such as 3306,6000-6010
    #[arg(long, value_name = "PORTS")] opaque_ports, "opaque-ports";
    /// Inbound ports that bypass the proxy
    #[arg(long, value_name = "PORTS")] skip_inbound_ports, "skip-inbound-ports";
    /// Outbound ports that bypass the proxy
    #[arg(long, value_name = "PORTS")] skip_outbound_ports, "skip-outbound-ports";
    /// Networks whose inbound traffic bypasses the proxy
    #[arg(long, value_name = "NETWORKS")] skip_subnets, "skip-subnets";
    /// Who may connect where no policy says otherwise
    #[arg(long, value_name = "POLICY")] default_inbound_policy, "default-inbound-policy";
    /// Port of the inbound proxy
    #[arg(long, value_name = "PORT")] inbound_port, "inbound-port";
    /// Port of the outbound proxy
    #[arg(long, value_name = "PORT")] outbound_port, "outbound-port";
    /// Port that is left out of the redirection; there is no tap yet
    #[arg(long, value_name = "PORT")] control_port, "control-port";
    /// Port of metrics and health
    #[arg(long, value_name = "PORT")] admin_port, "admin-port";
    /// Image of the proxy, without tag
    #[arg(long, value_name = "IMAGE")] proxy_image, "proxy-image";
    /// Tag of the image
    #[arg(short = 'v', long, value_name = "TAG")] proxy_version, "proxy-version";
    /// Always, IfNotPresent or Never
    #[arg(long, value_name = "POLICY")] image_pull_policy, "image-pull-policy";
    /// User that the proxy runs as
    #[arg(long, value_name = "UID")] proxy_uid, "proxy-uid";
    /// Group that the proxy runs as
    #[arg(long, value_name = "GID")] proxy_gid, "proxy-gid";
    /// Log filter of the proxy, such as warn,weft_proxy=debug
    #[arg(long, value_name = "FILTER")] proxy_log_level, "proxy-log-level";
    /// plain or json
    #[arg(long, value_name = "FORMAT")] proxy_log_format, "proxy-log-format";
    /// CPU that the proxy asks for
    #[arg(long, value_name = "QUANTITY")] proxy_cpu_request, "proxy-cpu-request";
    /// CPU that the proxy may use
    #[arg(long, value_name = "QUANTITY")] proxy_cpu_limit, "proxy-cpu-limit";
    /// Memory that the proxy asks for
    #[arg(long, value_name = "QUANTITY")] proxy_memory_request, "proxy-memory-request";
    /// Memory that the proxy may use
    #[arg(long, value_name = "QUANTITY")] proxy_memory_limit, "proxy-memory-limit";
    /// How long a stopping proxy waits for its connections
    #[arg(long, value_name = "DURATION")] shutdown_grace_period, "shutdown-grace-period";
    /// Seconds that the proxy works on before it is told to stop
    #[arg(long, value_name = "SECONDS")] wait_before_exit_seconds, "proxy-wait-before-exit-seconds";
}

/// Arguments of `weft uninject`.
#[derive(Debug, Clone, Default, Args)]
pub struct Uninject {
    /// Files, folders, URLs, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|URL|-")]
    pub inputs: Vec<PathBuf>,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: ManifestOutput,
}

/// Whole seconds of `15s`, `1m`, `1m30s`, `1h`.
fn duration_seconds(text: &str) -> Result<u64, String> {
    let wrong = || "not a duration such as 15s, 1m30s or 1h".to_owned();
    let (mut rest, mut total) = (text, 0u64);
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor = match tail.chars().next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            _ => return Err(wrong()),
        };
        total = number.checked_mul(factor).and_then(|n| total.checked_add(n)).ok_or_else(wrong)?;
        rest = tail.get(1..).unwrap_or_default();
    }
    Ok(total)
}

/// Two scrapes at least: rates need a difference.
fn window(text: &str) -> Result<u64, String> {
    match duration_seconds(text)? {
        seconds if seconds < 10 => Err("the window must be at least 10s".into()),
        seconds => Ok(seconds),
    }
}

fn selector(text: &str) -> Result<String, String> {
    let parsed: Result<weft_core::selector::Selector, _> = text.parse();
    parsed.map(|_| text.to_owned()).map_err(|error| error.reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration_seconds("1m30s"), Ok(90));
        assert_eq!(duration_seconds("5m0s"), Ok(300));
        for bad in ["", "5", "m", "1x", "-1s", "1mé", "99999999999999999999s"] {
            assert!(duration_seconds(bad).is_err(), "{bad}");
        }
        assert!(window("9s").is_err());
    }
}
