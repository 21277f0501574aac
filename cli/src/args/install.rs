//! Arguments of `weft install` and of the commands around it.

use super::ManifestOutput;
use clap::Args;
use std::path::PathBuf;

/// Settings of a chart by their names.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct ValueSettings {
    /// File of settings, as in the chart's values.yaml, or - for standard input; may be repeated
    #[arg(short = 'f', long, value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// One setting, such as controllerReplicas=2; may be repeated
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// One setting that is a text whatever it looks like
    #[arg(long, value_name = "PATH=TEXT")]
    pub set_string: Vec<String>,
    /// One setting that is the text of a file
    #[arg(long, value_name = "PATH=FILE")]
    pub set_file: Vec<String>,
}

/// Settings of the control plane.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct InstallSettings {
    /// High availability: three pods of identity, destination and injector on different nodes, and no pod past the injector
    #[arg(long)]
    pub ha: bool,
    /// Settings by name.
    #[command(flatten)]
    pub values: ValueSettings,
    /// A CNI plugin redirects the traffic of pods, so that they need no rights for it
    #[arg(long)]
    pub linkerd_cni_enabled: bool,
    /// Trust anchors (PEM); made by this program by default
    #[arg(long, value_name = "FILE")]
    pub identity_trust_anchors_file: Option<PathBuf>,
    /// Certificate of the issuer (PEM), signed by a trust anchor
    #[arg(long, value_name = "FILE", requires = "identity_issuer_key_file")]
    pub identity_issuer_certificate_file: Option<PathBuf>,
    /// Key of the issuer (PEM)
    #[arg(long, value_name = "FILE", requires = "identity_issuer_certificate_file")]
    pub identity_issuer_key_file: Option<PathBuf>,
    /// The issuer is the Secret weft-identity-issuer of type kubernetes.io/tls, which somebody else makes, such as
    /// cert-manager
    #[arg(long, conflicts_with = "identity_issuer_certificate_file")]
    pub identity_external_issuer: bool,
    /// Last part of every identity
    #[arg(long, value_name = "DOMAIN")]
    pub identity_trust_domain: Option<String>,
}

/// Arguments of `weft install`.
#[derive(Debug, Clone, Default, Args)]
pub struct Install {
    /// Only the definitions of the mesh's resources, which come first
    #[arg(long)]
    pub crds: bool,
    /// Ask no cluster whether it has a control plane already
    #[arg(long)]
    pub ignore_cluster: bool,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: ManifestOutput,
    /// Settings of the control plane.
    #[command(flatten)]
    pub settings: InstallSettings,
}

/// Arguments of `weft upgrade`.
#[derive(Debug, Clone, Default, Args)]
pub struct Upgrade {
    /// Only the definitions of the mesh's resources, which come first
    #[arg(long)]
    pub crds: bool,
    /// Show what would change instead
    #[arg(long)]
    pub dry_run: bool,
    /// Forget the settings of the installation
    #[arg(long)]
    pub reset_values: bool,
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: ManifestOutput,
    /// Settings of the control plane.
    #[command(flatten)]
    pub settings: InstallSettings,
}

/// Arguments of `weft uninstall`.
#[derive(Debug, Clone, Default, Args)]
pub struct Uninstall {
    /// Also when pods still have proxies
    #[arg(short = 'f', long)]
    pub force: bool,
}

/// Arguments of `weft install-cni`.
#[derive(Debug, Clone, Default, Args)]
pub struct InstallCni {
    /// Form of the output
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub output: ManifestOutput,
    /// Namespace of the plugin
    #[arg(long, value_name = "NAMESPACE", default_value = "weft-cni")]
    pub cni_namespace: String,
    /// Settings of the plugin, as in the values.yaml of its chart.
    #[command(flatten)]
    pub values: ValueSettings,
    /// Where the container runtime of the nodes looks for its configuration [default: /etc/cni/net.d]
    #[arg(long, value_name = "PATH")]
    pub dest_cni_net_dir: Option<String>,
    /// Where it looks for plugins [default: /opt/cni/bin]
    #[arg(long, value_name = "PATH")]
    pub dest_cni_bin_dir: Option<String>,
    /// Image of the plugin, without tag
    #[arg(long, value_name = "IMAGE")]
    pub cni_image: Option<String>,
    /// Tag of the image; that of this version by default
    #[arg(long, value_name = "TAG")]
    pub cni_image_version: Option<String>,
    /// Filter of the plugin's log lines, such as debug
    #[arg(long, value_name = "FILTER")]
    pub cni_log_level: Option<String>,
    /// Priority class of the plugin's pods
    #[arg(long, value_name = "CLASS")]
    pub priority_class_name: Option<String>,
}
