//! The cluster that a command is about: the one of this machine, or one of Kubernetes.

use crate::Failure;
use crate::kubernetes::{Access, Kubernetes};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_local::client::Client;

/// Which mesh a command is about.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    /// Namespace of its control plane.
    pub control: String,
    /// How a Kubernetes cluster is reached.
    pub access: Access,
}

/// What commands say when there is no cluster.
const HINT: &str = "Validate the install with: weft check";

impl Mesh {
    /// The cluster: that of the flags `--kubeconfig`, `--context` and `--as`, else the one of this machine when it runs, else
    /// that of the environment's kubeconfig.
    ///
    /// # Errors
    /// When there is none; the message says what to do.
    pub async fn connect(&self) -> Result<Cluster, Failure> {
        self.cluster().await.map_err(|e| Failure::new(format!("Cannot connect to the cluster: {e}\n{HINT}")))
    }

    /// As [`Mesh::connect`], with one sentence as the error.
    ///
    /// # Errors
    /// When there is none.
    pub async fn cluster(&self) -> Result<Cluster, String> {
        if self.access.is_explicit() {
            return Kubernetes::new(&self.access).await.map(Cluster::Kubernetes);
        }
        let local = match Client::connect().await {
            Ok(client) => return Ok(Cluster::Machine(client)),
            Err(error) => error.to_string(),
        };
        match Kubernetes::new(&self.access).await {
            Ok(kubernetes) => Ok(Cluster::Kubernetes(kubernetes)),
            // Without any kubeconfig, what is missing is most likely the cluster of this machine.
            Err(_) if std::env::var_os("KUBECONFIG").is_none() => Err(local),
            Err(error) => Err(error),
        }
    }

    /// The Kubernetes cluster, for commands that make sense only there.
    ///
    /// # Errors
    /// When it is not known where it is.
    pub async fn kubernetes(&self) -> Result<Kubernetes, Failure> {
        let cluster = Kubernetes::new(&self.access).await;
        cluster.map_err(|e| Failure::new(format!("Cannot connect to Kubernetes: {e}")))
    }
}

/// A connection into a cluster.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A cluster. Every call opens a connection of its own.
#[derive(Debug, Clone)]
pub enum Cluster {
    /// The one of this machine.
    Machine(Client),
    /// One of Kubernetes.
    Kubernetes(Kubernetes),
}

impl Cluster {
    /// A TCP connection made inside the cluster. `target` is `NAME` or `pod/NAME` for a pod, `svc/NAME` for a ready pod
    /// behind a service, `deploy/NAME` for a pod of a Deployment.
    ///
    /// # Errors
    /// One sentence, when there is no such target, or nobody answers there.
    pub async fn dial(&self, namespace: &str, target: &str, port: u16) -> Result<Box<dyn Stream>, String> {
        match self {
            Cluster::Machine(client) => {
                let stream = client.dial(namespace, target, port).await.map_err(|e| e.to_string())?;
                Ok(Box::new(stream))
            }
            Cluster::Kubernetes(kubernetes) => Ok(Box::new(kubernetes.dial(namespace, target, port).await?)),
        }
    }

    /// Objects of a kind (singular, plural or short name) as Kubernetes JSON with status, of one namespace or all, by
    /// namespace and name.
    ///
    /// # Errors
    /// When there is no such kind, or the cluster does not answer.
    pub async fn objects(&self, kind: &str, namespace: Option<&str>) -> Result<Vec<Value>, Failure> {
        match self {
            Cluster::Machine(client) => Ok(client.objects(kind, namespace).await?),
            Cluster::Kubernetes(kubernetes) => Ok(kubernetes.objects(kind, namespace).await?),
        }
    }
}
