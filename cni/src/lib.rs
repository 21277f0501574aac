//! The redirection of pods from outside of them, for clusters that let no pod have NET_ADMIN.
//!
//! One program with two faces. Container runtimes call it as a CNI [`plugin`] whenever a pod gets its network: it asks the
//! API server about the pod and, when the pod has a proxy, puts the rules of `weft-init` into the pod's network
//! namespace. And it is the main process of a DaemonSet, which [`install`]s the plugin on its node, keeps it there
//! while others rewrite the node's CNI configuration, and [`repair`]s pods that were made without it.

pub mod conflist;
pub mod install;
pub mod plugin;
pub mod repair;

/// Name of the program, which is the plugin's type in CNI configurations.
pub const NAME: &str = "weft-cni";
