//! The API of the node, on `api.sock` in the run directory: one request a connection.

use super::Node;
use super::apply;
use super::services;
use super::shared::Exec;
use super::spec::Programs;
use super::store::{Store, controller_of};
use crate::Error;
use crate::pod::Event;
use crate::proto::{self, Answer, Request, frame};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use weft_core::kinds::{Key, Kind, Object};
use weft_core::names::PROXY_CONTAINER;

/// How long a connection inside the cluster may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pods get at most this long to end when the whole cluster does.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// The cluster ends in any case after this.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
/// Longest list of what is missing that is sent.
const LONGEST_LIST: usize = 200;

/// Serves until the cluster is told to end.
pub(super) async fn serve(node: Rc<Node>, listener: UnixListener) {
    let (ending, mut ended) = tokio::sync::mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ended.recv() => return,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptors left; some will be closed.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (node, ending) = (Rc::clone(&node), ending.clone());
        tokio::task::spawn_local(async move {
            if let Err(e) = converse(&node, stream, ending).await {
                tracing::debug!(error = %e, "a client left early");
            }
        });
    }
}

async fn converse(
    node: &Rc<Node>,
    mut stream: UnixStream,
    ending: tokio::sync::mpsc::Sender<()>,
) -> std::io::Result<()> {
    let Some(body) = proto::receive(&mut stream).await? else { return Ok(()) };
    let request: Request = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(e) => {
            let message = format!("the request is not understood ({e}); is the cluster of another version?");
            return fail(&mut stream, Error::new(message)).await;
        }
    };
    match request {
        Request::Apply { documents, namespace } => {
            let outcome =
                apply::apply(&mut node.store.borrow_mut(), documents, &namespace, &Programs::new(&node.config));
            reply(&mut stream, outcome).await
        }
        Request::Delete { documents, namespace, ignore_not_found } => {
            let deleted = apply::delete(&mut node.store.borrow_mut(), documents, &namespace, ignore_not_found);
            let outcome = match deleted {
                Ok((outcomes, keys)) => {
                    wait_until_gone(node, &keys).await;
                    Ok(outcomes)
                }
                Err(e) => Err(e),
            };
            reply(&mut stream, outcome).await
        }
        Request::Objects { kind, namespace } => reply(&mut stream, objects(node, &kind, namespace.as_deref())).await,
        Request::Readiness { since } => {
            let mut versions = node.store.borrow().subscribe();
            // The reconciler may not have seen the latest version yet; it runs before this task does again.
            tokio::task::yield_now().await;
            while *versions.borrow_and_update() <= since {
                tokio::select! {
                    changed = versions.changed() => if changed.is_err() { break },
                    // A client that goes meanwhile is noticed by its silence.
                    _ = stream.read_u8() => return Ok(()),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut readiness = node.readiness();
            readiness.missing.truncate(LONGEST_LIST);
            readiness.details.truncate(LONGEST_LIST);
            reply(&mut stream, Ok(readiness)).await
        }
        Request::Dial { namespace, target, port } => match dial(node, &namespace, &target, port).await {
            Ok(mut connection) => {
                reply(&mut stream, Ok(())).await?;
                tokio::io::copy_bidirectional(&mut stream, &mut connection).await.map(drop)
            }
            Err(e) => fail(&mut stream, e).await,
        },
        Request::Logs { namespace, pod, container, follow, tail } => {
            let log = find_container(node, &namespace, &pod, container.as_deref()).and_then(|(key, container)| {
                let pods = node.pods.borrow();
                let running = pods.get(&key).ok_or_else(|| Error::new(format!("{key} is not running")))?;
                let log = running.handle.shared.logs.borrow().get(&container).cloned();
                log.ok_or_else(|| Error::new(format!("container {container} of {key} has not started yet")))
            });
            match log {
                Ok(log) => {
                    reply(&mut stream, Ok(())).await?;
                    let (mut reader, mut writer) = stream.split();
                    tokio::select! {
                        sent = log.send(&mut writer, tail, follow) => sent,
                        _ = reader.read_u8() => Ok(()),
                    }
                }
                Err(e) => fail(&mut stream, e).await,
            }
        }
        Request::Exec { namespace, pod, container, command, stdin } => {
            let found = find_container(node, &namespace, &pod, container.as_deref());
            let shared = found.and_then(|(key, container)| {
                let pods = node.pods.borrow();
                let running = pods.get(&key).ok_or_else(|| Error::new(format!("{key} is not running")))?;
                Ok((Rc::clone(&running.handle.shared), container))
            });
            let started = match shared {
                Ok((shared, container)) => shared.start_exec(&container, &command, stdin).await.map_err(|message| {
                    // As shells have it: 126 and 127 for what cannot be run.
                    Error::new(message).with_code(126)
                }),
                Err(e) => Err(e),
            };
            match started {
                Ok(exec) => {
                    reply(&mut stream, Ok(())).await?;
                    run_exec(stream, exec).await
                }
                Err(e) => fail(&mut stream, e).await,
            }
        }
        Request::Resolver => {
            reply(&mut stream, Ok(())).await?;
            node.upstream.serve(stream).await;
            Ok(())
        }
        Request::Shutdown => {
            shut_down(node).await;
            let replied = reply(&mut stream, Ok(())).await;
            // The receiver is there as long as we are.
            let _ = ending.send(()).await;
            replied
        }
    }
}

async fn reply<T: Serialize>(stream: &mut UnixStream, result: Result<T, Error>) -> std::io::Result<()> {
    match result {
        Ok(value) => proto::send(stream, &Answer::Ok(serde_json::to_value(value)?)).await,
        Err(e) => fail(stream, e).await,
    }
}

async fn fail(stream: &mut UnixStream, error: Error) -> std::io::Result<()> {
    proto::send(stream, &Answer::Error { message: error.to_string(), code: error.code() }).await
}

fn objects(node: &Node, kind: &str, namespace: Option<&str>) -> Result<Vec<serde_json::Value>, Error> {
    let kind = Kind::from_any_name(kind).ok_or_else(|| Error::new(format!("{kind:?} is no kind of object")))?;
    let store = node.store.borrow();
    Ok(store.list(kind, namespace).map(|(_, object)| object.to_value()).collect())
}

async fn wait_until_gone(node: &Node, keys: &[Key]) {
    let mut versions = node.store.borrow().subscribe();
    loop {
        versions.borrow_and_update();
        let there = {
            let store = node.store.borrow();
            keys.iter().any(|key| store.get(key).is_some_and(apply::is_ending))
        };
        if !there || versions.changed().await.is_err() {
            return;
        }
    }
}

/// Ends all pods, in a short time.
async fn shut_down(node: &Node) {
    node.shutting_down.set(true);
    for running in node.pods.borrow().values() {
        // A pod that has ended by itself does not hear this.
        let _ = running.handle.stop.send(SHUTDOWN_GRACE);
    }
    let mut versions = node.store.borrow().subscribe();
    let all_ended = async {
        while !node.pods.borrow().is_empty() {
            if versions.changed().await.is_err() {
                return;
            }
        }
    };
    // Whatever is left then is ended by the kernel.
    let _ = tokio::time::timeout(SHUTDOWN_LIMIT, all_ended).await;
}

/// The pod that a target means: `NAME`, `pod/NAME`, or one of a workload's or service's: a ready one, then the
/// youngest.
fn find_pod(node: &Node, namespace: &str, target: &str) -> Result<Key, Error> {
    let store = node.store.borrow();
    let (kind, name) = match target.split_once('/') {
        None => (Kind::Pod, target),
        Some((kind, name)) => {
            let known = Kind::from_any_name(kind);
            (known.ok_or_else(|| Error::new(format!("{kind:?} is no kind of object")))?, name)
        }
    };
    let key = Key::new(kind, namespace, name);
    let Some(object) = store.get(&key) else { return Err(Error::new(format!("{key} not found"))) };
    let selector = match object {
        Object::Pod(_) => return Ok(key),
        Object::Service(service) => {
            let labels = service.spec.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
            Some(weft_core::selector::Selector::from_map(&labels)).filter(|s| !s.is_empty())
        }
        _ if object.pod_template().is_some() => None,
        _ => return Err(Error::new(format!("{key} has no pods"))),
    };
    let belongs = |pod: &Pod| match &selector {
        Some(selector) => selector.matches(pod.metadata.labels.as_ref()),
        None => is_below(&store, namespace, &pod.metadata, object),
    };
    let mut pods: Vec<_> = store
        .pods()
        .filter(|(k, pod)| k.namespace == namespace && belongs(pod))
        .map(|(k, pod)| {
            (
                !super::endpoints::is_ready(pod),
                Reverse(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)),
                k.clone(),
            )
        })
        .collect();
    pods.sort();
    pods.into_iter().next().map(|(_, _, key)| key).ok_or_else(|| Error::new(format!("{key} has no pods")))
}

/// Whether an object is controlled by another, or by something that is.
fn is_below(store: &Store, namespace: &str, metadata: &ObjectMeta, above: &Object) -> bool {
    let Some(owner) = controller_of(metadata) else { return false };
    if Some(&owner.uid) == above.metadata().uid.as_ref() {
        return true;
    }
    let kind = Kind::from_manifest(&owner.api_version, &owner.kind);
    let owner = kind.and_then(|kind| store.get(&Key::new(kind, namespace, &owner.name)));
    owner.is_some_and(|owner| is_below(store, namespace, owner.metadata(), above))
}

/// A container of a pod; by default the first that is not the proxy.
fn find_container(node: &Node, namespace: &str, pod: &str, container: Option<&str>) -> Result<(Key, String), Error> {
    let key = find_pod(node, namespace, pod)?;
    let store = node.store.borrow();
    let spec = store.pod(&key).and_then(|p| p.spec.as_ref());
    let spec = spec.ok_or_else(|| Error::new(format!("{key} not found")))?;
    let names = || spec.containers.iter().map(|c| c.name.as_str());
    let init = || spec.init_containers.iter().flatten().map(|c| c.name.as_str());
    match container {
        Some(name) if names().chain(init()).any(|n| n == name) => Ok((key, name.to_owned())),
        Some(name) => {
            let known = names().chain(init()).collect::<Vec<_>>().join(", ");
            Err(Error::new(format!("{key} has no container {name}; it has {known}")))
        }
        None => {
            let first = names().find(|n| *n != PROXY_CONTAINER).or_else(|| names().next());
            first.map(|n| (key.clone(), n.to_owned())).ok_or_else(|| Error::new(format!("{key} has no container")))
        }
    }
}

async fn dial(node: &Node, namespace: &str, target: &str, port: u16) -> Result<TcpStream, Error> {
    let addresses: Vec<(Ipv4Addr, u16)> = match target.split_once('/') {
        Some((kind, name)) if Kind::from_any_name(kind) == Some(Kind::Service) => {
            let store = node.store.borrow();
            let missing = || Error::new(format!("service/{name} in {namespace} not found"));
            let service = store.service(namespace, name).ok_or_else(missing)?;
            let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
            let found = ports.into_iter().find(|p| p.port == i32::from(port));
            let no_port = || Error::new(format!("service/{name} in {namespace} has no port {port}"));
            let port_name = found.ok_or_else(no_port)?.name.clone().unwrap_or_default();
            let mut ready = services::ready_endpoints(&store, namespace, name, &port_name);
            fastrand::shuffle(&mut ready);
            if ready.is_empty() {
                return Err(Error::new(format!("service/{name} in {namespace} has no ready endpoint for port {port}")));
            }
            ready
        }
        _ => {
            let key = find_pod(node, namespace, target)?;
            let store = node.store.borrow();
            let ip = store.pod(&key).and_then(|p| p.status.as_ref()?.pod_ip.as_ref()?.parse().ok());
            vec![(ip.ok_or_else(|| Error::new(format!("{key} has no address yet")))?, port)]
        }
    };
    let mut last = None;
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Whoever dials may talk in small pieces.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(e)) => last = Some(format!("{}:{}: {e}", address.0, address.1)),
            Err(_) => last = Some(format!("{}:{}: no answer", address.0, address.1)),
        }
    }
    Err(Error::new(format!("cannot connect to {target} in {namespace}: {}", last.unwrap_or_default())))
}

/// Carries a command's input, output and exit code.
async fn run_exec(stream: UnixStream, mut exec: Exec) -> std::io::Result<()> {
    let (mut reader, writer) = stream.into_split();
    let writer = Rc::new(RefCell::new(Some(writer)));
    let (frames, mut outgoing) = tokio::sync::mpsc::channel::<(u8, Vec<u8>)>(16);
    let mut stdin = exec.stdin.take();
    let input = async {
        loop {
            match proto::read_frame(&mut reader).await {
                Ok(Some((frame::STDIN, bytes))) if bytes.is_empty() => stdin = None,
                Ok(Some((frame::STDIN, bytes))) => {
                    // A command that reads no more does not end for that.
                    if let Some(pipe) = stdin.as_mut()
                        && pipe.write_all(&bytes).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Ok(Some(_)) => {}
                // The client has gone.
                Ok(None) | Err(_) => return,
            }
        }
    };
    let output = async {
        let copy = |kind: u8, frames: tokio::sync::mpsc::Sender<(u8, Vec<u8>)>| {
            async move |pipe: &mut tokio::net::unix::pipe::Receiver| {
                let mut buffer = vec![0; 32 << 10];
                while let Ok(n) = pipe.read(&mut buffer).await {
                    if n == 0 || frames.send((kind, buffer.get(..n).unwrap_or_default().to_vec())).await.is_err() {
                        return;
                    }
                }
            }
        };
        let (stdout, stderr) = (copy(frame::STDOUT, frames.clone()), copy(frame::STDERR, frames.clone()));
        let ended = exec.events.recv();
        let (event, ()) = tokio::join!(ended, async {
            tokio::join!(stdout(&mut exec.stdout), stderr(&mut exec.stderr));
        });
        let last = match event {
            Some(Event::Exited { code, .. }) => (frame::EXIT, vec![u8::try_from(code.clamp(0, 255)).unwrap_or(255)]),
            _ => (frame::FAILED, b"the container has ended".to_vec()),
        };
        // The client may have gone.
        let _ = frames.send(last).await;
        drop(frames);
        std::future::pending::<()>().await;
    };
    let write = async {
        let Some(mut writer) = writer.borrow_mut().take() else { return Ok(()) };
        while let Some((kind, bytes)) = outgoing.recv().await {
            proto::write_frame(&mut writer, kind, &bytes).await?;
            if matches!(kind, frame::EXIT | frame::FAILED) {
                return writer.shutdown().await;
            }
        }
        Ok(())
    };
    tokio::select! {
        () = input => Ok(()),
        () = output => Ok(()),
        written = write => written,
    }
}
