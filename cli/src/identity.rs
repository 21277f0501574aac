//! `weft identity`: the certificates that proxies show, fetched over TLS from their own ports.

use crate::cluster::{Cluster, Mesh};
use crate::pods::{admin_port, name, proxy, text};
use crate::{Failure, certificate, print};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::selector::Selector;

/// How long one pod may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the command. Exit code 1 when a certificate could not be fetched.
///
/// # Errors
/// When a pod is not there, or no cluster runs.
pub async fn run(args: crate::args::Identity, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let client = mesh.connect().await?;
    let all = client.objects("pods", Some(&args.namespace)).await?;
    let pods = choose(&all, &args.pods, args.selector.as_deref())?;
    if pods.is_empty() {
        print("Could not fetch Certificate. Ensure that the pod(s) are meshed by running `weft inject`\n");
        return Ok(ExitCode::SUCCESS);
    }
    let mut code = ExitCode::SUCCESS;
    for (at, pod) in pods.iter().enumerate() {
        let fetched = match tokio::time::timeout(TIMEOUT, of_pod(&client, &args.namespace, pod)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        if fetched.is_err() {
            code = ExitCode::from(1);
        }
        print(&render(name(pod), at + 1, pods.len(), &fetched));
    }
    Ok(code)
}

/// The pods that are meant, in the order in which they are named.
///
/// # Errors
/// When one is not there, or the selector is not understood.
pub fn choose<'a>(all: &'a [Value], named: &[String], selector: Option<&str>) -> Result<Vec<&'a Value>, Failure> {
    if let Some(selector) = selector {
        let selector: Selector =
            selector.parse().map_err(|e: weft_core::selector::Error| Failure::new(e.to_string()))?;
        let labels = |pod: &Value| -> BTreeMap<String, String> {
            let labels = pod.pointer("/metadata/labels").cloned().unwrap_or_default();
            serde_json::from_value(labels).unwrap_or_default()
        };
        return Ok(all.iter().filter(|pod| selector.matches(Some(&labels(pod)))).collect());
    }
    let find = |wanted: &String| {
        let wanted = wanted.trim_start_matches("pod/").trim_start_matches("po/");
        all.iter().find(|pod| name(pod) == wanted).ok_or_else(|| Failure::new(format!("pods \"{wanted}\" not found")))
    };
    named.iter().map(find).collect()
}

/// The certificates that a pod's proxy shows, leaf first.
async fn of_pod(client: &Cluster, namespace: &str, pod: &Value) -> Result<Vec<CertificateDer<'static>>, String> {
    if text(pod, "/status/phase") != "Running" {
        return Err(format!("pod not running: {}", name(pod)));
    }
    let identity = identity(pod)?;
    let port = admin_port(pod);
    let stream = client.dial(namespace, &format!("pod/{}", name(pod)), port).await;
    let stream = stream.map_err(|e| format!("cannot connect to port {port}: {e}"))?;
    fetch(stream, &identity).await
}

/// The name that the pod's proxy answers to: what its environment says, with references to other variables resolved.
///
/// # Errors
/// When it has no proxy, or the proxy no identity.
pub fn identity(pod: &Value) -> Result<String, String> {
    let proxy = proxy(pod).ok_or_else(|| format!("{} has no proxy", name(pod)))?;
    let env = proxy.get("env").and_then(Value::as_array);
    let mut env = env.into_iter().flatten();
    let setting = env
        .find(|variable| text(variable, "/name") == "LINKERD2_PROXY_IDENTITY_LOCAL_NAME")
        .ok_or_else(|| format!("the proxy of {} has no identity", name(pod)))?;
    let account = match text(pod, "/spec/serviceAccountName") {
        "" => "default",
        account => account,
    };
    let value = text(setting, "/value").replace("$(_pod_sa)", account);
    Ok(value.replace("$(_pod_ns)", text(pod, "/metadata/namespace")))
}

/// The certificates that a server shows to a client that looks for this name.
///
/// # Errors
/// One sentence that says in which phase it failed.
pub async fn fetch<S>(stream: S, name: &str) -> Result<Vec<CertificateDer<'static>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let server = ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is not a server name"))?;
    // Nothing is sent over the connection, and a certificate must be visible also when it is wrong.
    let stream = weft_local::unverified::connect(stream, server).await?;
    let (_, connection) = stream.get_ref();
    let certificates = connection.peer_certificates().unwrap_or_default();
    Ok(certificates.iter().map(|certificate| certificate.clone().into_owned()).collect())
}

/// One pod's part of the output.
pub fn render(pod: &str, number: usize, count: usize, fetched: &Result<Vec<CertificateDer<'_>>, String>) -> String {
    let mut out = format!("\nPOD {pod} ({number} of {count})\n\n");
    match fetched {
        Err(reason) => out.push_str(&format!("\n{reason}\n")),
        Ok(certificates) => {
            for der in certificates {
                match certificate::leaf_text(der) {
                    Ok(Some(text)) => out.push_str(&text),
                    // Authorities are not the pod's identity.
                    Ok(None) => {}
                    Err(reason) => out.push_str(&format!("\n{reason}\n")),
                }
            }
        }
    }
    out
}
