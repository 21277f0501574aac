//! Arguments of `weft install-cni`.

use super::{ManifestOutput, ValueSettings};
use clap::Args;

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
    /// Class of the plugin's pods
    #[arg(long, value_name = "CLASS")]
    pub priority_class_name: Option<String>,
}
