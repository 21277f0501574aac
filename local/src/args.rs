//! The arguments of the cluster commands, ready to be put into the command line.

use std::path::PathBuf;
use std::str::FromStr;

/// Arguments of `weft up`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Up {
    /// Manifest file, or directory of manifests, to apply; a directory is followed: edit a file and it happens; may be
    /// repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    /// Return when everything is ready, and leave the cluster running until `weft down`
    #[arg(long)]
    pub detach: bool,
    /// Make a service reachable at 127.0.0.1:PORT of this machine; may be repeated
    #[arg(long = "publish", value_name = "PORT:SERVICE.NAMESPACE:PORT")]
    pub publish: Vec<Publish>,
    /// Seconds to wait until everything is ready
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
}

/// Arguments of `weft down`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Down {}

/// Arguments of `weft apply`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Apply {
    /// Manifest file or directory, or `-` for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,
}

/// Arguments of `weft delete`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Delete {
    /// Manifest file or directory, or `-` for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,
    /// Do not fail when an object does not exist
    #[arg(long)]
    pub ignore_not_found: bool,
}

/// Arguments of `weft ps`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Ps {
    /// Namespace to list
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,
    /// List every namespace
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Output format: `json` for the pods as Kubernetes objects
    #[arg(short = 'o', long, value_parser = ["json"])]
    pub output: Option<String>,
}

/// Arguments of `weft logs`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Logs {
    /// Pod, as `NAME` or `pod/NAME`, or `deploy/NAME` for one of its pods
    pub pod: String,
    /// Namespace of the pod
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,
    /// Container; the first that is not the proxy by default
    #[arg(short = 'c', long)]
    pub container: Option<String>,
    /// Go on printing what comes
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Only this many of the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
}

/// Arguments of `weft exec`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Exec {
    /// Pod, as `NAME` or `pod/NAME`, or `deploy/NAME` for one of its pods
    pub pod: String,
    /// Namespace of the pod
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,
    /// Container; the first that is not the proxy by default
    #[arg(short = 'c', long)]
    pub container: Option<String>,
    /// Pass standard input to the command
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// One `--publish PORT:SERVICE.NAMESPACE:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Publish {
    /// TCP port on 127.0.0.1 of the machine.
    pub host_port: u16,
    /// Service.
    pub service: String,
    /// Namespace of the service.
    pub namespace: String,
    /// Port of the service.
    pub port: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not PORT:SERVICE.NAMESPACE:PORT, for example 8080:web-svc.emojivoto:80");
        let mut parts = text.split(':');
        let (Some(host), Some(target), Some(port), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let (service, namespace) = target.split_once('.').ok_or_else(wrong)?;
        let host_port = host.parse().map_err(|_| wrong())?;
        let port = port.parse().map_err(|_| wrong())?;
        if service.is_empty() || namespace.is_empty() || host_port == 0 || port == 0 {
            return Err(wrong());
        }
        Ok(Self { host_port, service: service.to_owned(), namespace: namespace.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_publish() {
        let parsed: Publish = "8080:web-svc.emojivoto:80".parse().unwrap();
        assert_eq!((parsed.host_port, parsed.port), (8080, 80));
        assert_eq!((parsed.service.as_str(), parsed.namespace.as_str()), ("web-svc", "emojivoto"));
        for wrong in
            ["", "8080", "8080:web:80", "x:web.a:80", "8080:web.a:0", "0:web.a:80", "8080:.a:80", "1:web.a:80:1"]
        {
            assert!(wrong.parse::<Publish>().unwrap_err().contains("PORT:SERVICE.NAMESPACE:PORT"), "{wrong}");
        }
    }
}
