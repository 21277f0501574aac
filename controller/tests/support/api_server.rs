//! A Kubernetes API server made up for tests: lists in pages, watches, writes with versions, reviews of tokens; and it can
//! hang, talk nonsense, hang up, forget its history, go away and come back as another. It speaks what the real one
//! speaks as far as weft asks for it; what it does not know is answered 404.

use super::DEADLINE;
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use weft_core::kinds::Kind;

/// What to do with a request instead of what is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Never answer.
    Hang,
    /// Answer 200 with what is no JSON.
    Garbage,
    /// Answer 200 with JSON that is something else.
    Other,
    /// Answer 500.
    Error,
    /// Answer 404.
    NotFound,
    /// Close the connection in the middle of the answer.
    HangUp,
    /// Answer a watch 200 and end it at once.
    EndAtOnce,
}

/// What the server holds and how it behaves.
#[derive(Default)]
pub struct World {
    /// By `apiVersion/plural`, then by namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    served: BTreeSet<String>,
    history: Vec<(u64, String, &'static str, Value)>,
    version: u64,
    /// Watches from before this version are told that it is gone.
    forgotten: u64,
    faults: HashMap<String, Fault>,
    /// Username and audiences by token.
    pub tokens: HashMap<String, (String, Vec<String>)>,
    /// Whether reviews know audiences.
    pub no_audiences: bool,
    /// Most objects of a page: two, so that every test has several pages, unless a test has very many objects.
    pub page: usize,
    /// Minor version of the server.
    pub minor: u32,
    /// Method and path of every request.
    pub requests: Vec<String>,
}

/// The server; it ends with this.
pub struct ApiServer {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    up: watch::Sender<bool>,
    addr: SocketAddr,
    directory: tempfile::TempDir,
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// What every test needs served.
const SERVED: &[&str] = &[
    "v1/namespaces",
    "v1/pods",
    "v1/services",
    "v1/endpoints",
    "v1/nodes",
    "v1/secrets",
    "v1/events",
    "discovery.k8s.io/v1/endpointslices",
    "apps/v1/deployments",
    "apps/v1/statefulsets",
    "apps/v1/daemonsets",
    "apps/v1/replicasets",
    "batch/v1/jobs",
    "batch/v1/cronjobs",
    "coordination.k8s.io/v1/leases",
    "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
];

impl ApiServer {
    pub fn start() -> ApiServer {
        let world = World {
            served: SERVED.iter().map(|s| (*s).to_owned()).collect(),
            version: 1000,
            page: 2,
            minor: 29,
            ..World::default()
        };
        let world = Arc::new(Mutex::new(world));
        let (changed, _) = watch::channel(0);
        let (up, is_up) = watch::channel(true);
        let (tx, rx) = std::sync::mpsc::channel();
        let (shared, told) = (world.clone(), changed.clone());
        // A thread of its own: tests block theirs.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(shared, told, is_up, tx));
        });
        let addr = rx.recv_timeout(DEADLINE).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{addr}")}}],
            "users": [{"name": "test", "user": {"token": "token-of-the-controller"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(directory.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        ApiServer { world, changed, up, addr, directory }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// A directory for the files of a test.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Makes or changes an object.
    pub fn put(&self, object: &Value) {
        self.world().put(&collection(object), object.clone());
        self.wake();
    }

    pub fn delete(&self, object: &Value) {
        self.world().delete(&collection(object), &id(object));
        self.wake();
    }

    /// The object of this kind and name.
    pub fn object(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        self.world().objects.get(collection)?.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All objects of a kind.
    pub fn objects(&self, collection: &str) -> Vec<Value> {
        self.world().objects.get(collection).map(|all| all.values().cloned().collect()).unwrap_or_default()
    }

    /// Whether it has this kind.
    pub fn serve(&self, collection: &str, served: bool) {
        let mut world = self.world();
        if served {
            world.served.insert(collection.to_owned());
        } else {
            world.served.remove(collection);
            world.objects.remove(collection);
        }
        drop(world);
        self.cut();
    }

    /// Misbehave in requests whose `METHOD path`, followed by a space, contains this; `None` stops it.
    pub fn fault(&self, part: &str, fault: Option<Fault>) {
        let mut world = self.world();
        match fault {
            Some(fault) => world.faults.insert(part.to_owned(), fault),
            None => world.faults.remove(part),
        };
    }

    /// Forgets the history: who watches must list again.
    pub fn forget(&self) {
        let mut world = self.world();
        world.version += 1;
        world.forgotten = world.version;
        world.history.clear();
        drop(world);
        self.cut();
    }

    /// Is another server from now on: no objects, and versions that begin anew.
    pub fn reset(&self) {
        let mut world = self.world();
        world.objects.clear();
        world.history.clear();
        world.version = 1;
        world.forgotten = 0;
    }

    /// Goes away, with all connections.
    pub fn stop(&self) {
        self.up.send_replace(false);
    }

    /// Comes back at the same address.
    pub fn resume(&self) {
        self.up.send_replace(true);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.up.send_replace(true);
    }

    /// How many requests `METHOD path` began with this.
    pub fn asked(&self, start: &str) -> usize {
        self.world().requests.iter().filter(|request| request.starts_with(start)).count()
    }

    /// Checks that all requests so far are among what an installation allows this component.
    pub fn assert_allowed(&self, component: &str) {
        let rules: Value = serde_yaml_ng::from_str(include_str!("../../../charts/weft/rbac.yml")).unwrap();
        let rules = &rules[component];
        let requests = self.world().requests.clone();
        for request in requests.iter().filter(|request| !request.contains("/version")) {
            let (method, uri) = request.split_once(' ').unwrap();
            // Discovery is for everybody with an account.
            if method == "GET" && discovery(uri).is_some() {
                continue;
            }
            let asked = parse(uri.split('?').next().unwrap()).unwrap();
            let (api_version, resource) = asked.collection.rsplit_once('/').unwrap();
            let group = api_version.split_once('/').map_or("", |(group, _)| group);
            let verb = match (method, &asked.name) {
                ("GET", None) if uri.contains("watch=true") => "watch",
                ("GET", None) => "list",
                ("GET", Some(_)) => "get",
                ("POST", _) => "create",
                ("PUT", _) => "update",
                ("PATCH", _) => "patch",
                other => panic!("{other:?}"),
            };
            let has = |rule: &Value, key: &str, value: &str| rule[key].as_array().unwrap().iter().any(|v| v == value);
            let allows = |rule: &Value| {
                has(rule, "apiGroups", group)
                    && has(rule, "resources", resource)
                    && has(rule, "verbs", verb)
                    && (rule["resourceNames"].is_null()
                        || has(rule, "resourceNames", asked.name.as_deref().unwrap_or("")))
            };
            let lists: &[&str] = if asked.namespace == "weft" { &["cluster", "namespace"] } else { &["cluster"] };
            let allowed = lists.iter().any(|list| rules[list].as_array().unwrap().iter().any(allows));
            assert!(allowed, "{component} may not {verb} {group}/{resource}: {request}");
        }
    }

    fn wake(&self) {
        self.changed.send_modify(|n| *n += 1);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The collection of an object: `apps/v1/deployments`.
pub fn collection(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap();
    let plural = match Kind::ALL.iter().find(|known| known.as_str() == kind) {
        Some(kind) => kind.resource().to_owned(),
        None => format!("{}s", kind.to_ascii_lowercase()),
    };
    format!("{}/{plural}", object["apiVersion"].as_str().unwrap())
}

fn id(object: &Value) -> (String, String) {
    let metadata = &object["metadata"];
    (
        metadata["namespace"].as_str().unwrap_or_default().to_owned(),
        metadata["name"].as_str().unwrap_or_default().to_owned(),
    )
}

impl World {
    fn put(&mut self, collection: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        object["metadata"]["managedFields"] = json!([{"manager": "test", "operation": "Update"}]);
        let all = self.objects.entry(collection.to_owned()).or_default();
        let kind = if all.insert(id(&object), object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        self.history.push((self.version, collection.to_owned(), kind, object.clone()));
        object
    }

    fn delete(&mut self, collection: &str, id: &(String, String)) {
        let Some(mut object) = self.objects.get_mut(collection).and_then(|all| all.remove(id)) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.history.push((self.version, collection.to_owned(), "DELETED", object));
    }
}

async fn run(
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    mut up: watch::Receiver<bool>,
    tx: std::sync::mpsc::Sender<SocketAddr>,
) {
    let mut addr: SocketAddr = "127.0.0.1:0".parse().unwrap();
    loop {
        let listener = TcpListener::bind(addr).await.expect("the port is still ours");
        addr = listener.local_addr().unwrap();
        let _ = tx.send(addr);
        let mut connections = tokio::task::JoinSet::new();
        up.mark_unchanged();
        loop {
            if !*up.borrow() {
                break;
            }
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.unwrap();
                    let (world, changed) = (world.clone(), changed.clone());
                    connections.spawn(async move {
                        let service = service_fn(move |request| {
                            let (world, changed) = (world.clone(), changed.subscribe());
                            async move { answer(request, world, changed).await }
                        });
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
                changed = up.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    connections.abort_all();
                }
            }
        }
        drop((listener, connections));
        if up.wait_for(|up| *up).await.is_err() {
            return;
        }
    }
}

struct Asked {
    collection: String,
    namespace: String,
    name: Option<String>,
}

fn parse(path: &str) -> Option<Asked> {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let api_version = match *parts.first()? {
        "api" => parts.drain(..2).nth(1)?.to_owned(),
        "apis" if parts.len() > 3 => parts.drain(..3).skip(1).collect::<Vec<_>>().join("/"),
        _ => return None,
    };
    let (namespace, rest) = match parts.as_slice() {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let collection = format!("{api_version}/{}", rest.first()?);
    Some(Asked { collection, namespace: namespace.to_owned(), name: rest.get(1).map(|name| (*name).to_owned()) })
}

/// What of discovery a path asks for: a group's version, or empty for all groups.
fn discovery(path: &str) -> Option<&str> {
    let version = path.strip_prefix("/apis")?.trim_start_matches('/');
    (version.is_empty() || version.split('/').count() == 2).then_some(version)
}

/// Groups, or resources of a group's version: those that are served.
fn discover(world: &World, version: &str) -> Answer {
    let served = world.served.iter().filter_map(|collection| collection.rsplit_once('/'));
    if version.is_empty() {
        let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (version, _) in served {
            if let Some((group, _)) = version.split_once('/') {
                groups.entry(group).or_default().insert(version);
            }
        }
        let group = |(name, versions): (&&str, &BTreeSet<&str>)| {
            let versions: Vec<Value> = versions.iter().map(|version| json!({"groupVersion": version})).collect();
            json!({"name": name, "versions": versions})
        };
        let groups: Vec<Value> = groups.iter().map(group).collect();
        return full(StatusCode::OK, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}));
    }
    let names: Vec<Value> =
        served.filter(|(of, _)| *of == version).map(|(_, plural)| json!({"name": plural})).collect();
    if names.is_empty() {
        return status(StatusCode::NOT_FOUND, "NotFound");
    }
    full(StatusCode::OK, &json!({"kind": "APIResourceList", "groupVersion": version, "resources": names}))
}

fn full(status: StatusCode, value: &Value) -> Answer {
    let body = Full::from(value.to_string()).map_err(|never: Infallible| match never {}).boxed_unsync();
    Response::builder().status(status).header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
}

fn status(code: StatusCode, reason: &str) -> Answer {
    let value = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": reason,
        "message": format!("{reason}, says the test"),
    });
    full(code, &value)
}

async fn answer(
    request: Request<Incoming>,
    world: Arc<Mutex<World>>,
    changed: watch::Receiver<u64>,
) -> Result<Answer, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let line = format!("{} {}", parts.method, parts.uri);
    let fault = {
        let mut world = world.lock().unwrap();
        world.requests.push(line.clone());
        let line = format!("{line} ");
        world.faults.iter().find(|(part, _)| line.contains(part.as_str())).map(|(_, fault)| *fault)
    };
    match fault {
        Some(Fault::Hang) => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        Some(Fault::Garbage) => {
            let body = Full::from("<html>hello</html>\n").map_err(|never: Infallible| match never {}).boxed_unsync();
            return Ok(Response::new(body));
        }
        Some(Fault::Other) => return Ok(full(StatusCode::OK, &json!({"kind": "Pod", "metadata": {"name": "odd"}}))),
        Some(Fault::Error) => return Ok(status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
        Some(Fault::NotFound) => return Ok(status(StatusCode::NOT_FOUND, "NotFound")),
        Some(Fault::HangUp) => {
            let parts = [Ok(Frame::data(Bytes::from("{\"kind\":"))), Err(std::io::Error::other("hang up"))];
            return Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(stream::iter(parts)))));
        }
        Some(Fault::EndAtOnce) if line.contains("watch=true") => {
            return Ok(Response::new(Full::default().map_err(|never: Infallible| match never {}).boxed_unsync()));
        }
        _ => {}
    }
    let query: HashMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%3A", ":")))
        .collect();
    if parts.uri.path() == "/version" {
        let minor = world.lock().unwrap().minor;
        return Ok(full(StatusCode::OK, &json!({"major": "1", "minor": format!("{minor}+"), "gitVersion": "v1"})));
    }
    if let Some(path) = discovery(parts.uri.path()) {
        return Ok(discover(&world.lock().unwrap(), path));
    }
    let Some(asked) = parse(parts.uri.path()) else { return Ok(status(StatusCode::NOT_FOUND, "NotFound")) };
    if asked.collection == "authentication.k8s.io/v1/tokenreviews" {
        return Ok(review(&world.lock().unwrap(), &serde_json::from_slice(&body).unwrap_or_default()));
    }
    if !world.lock().unwrap().served.contains(&asked.collection) {
        return Ok(status(StatusCode::NOT_FOUND, "NotFound"));
    }
    let accept = parts.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let metadata = accept.contains("as=PartialObjectMetadata");
    if parts.method == Method::GET && asked.name.is_none() {
        return Ok(if query.get("watch").is_some_and(|watch| watch == "true") {
            follow(world, changed, asked.collection, &query, metadata)
        } else {
            list(&world.lock().unwrap(), &asked, &query, metadata)
        });
    }
    let answer = write(&mut world.lock().unwrap(), &parts.method, asked, &body);
    drop(changed);
    Ok(answer)
}

fn review(world: &World, asked: &Value) -> Answer {
    let token = asked["spec"]["token"].as_str().unwrap_or_default();
    let wanted = asked["spec"]["audiences"].as_array().cloned().unwrap_or_default();
    let status = match world.tokens.get(token) {
        Some((username, audiences)) => {
            let common: Vec<&String> = audiences.iter().filter(|a| wanted.iter().any(|w| w == a.as_str())).collect();
            let user = json!({"username": username, "extra": {"authentication.kubernetes.io/pod-name": ["web-1"]}});
            if world.no_audiences {
                json!({"authenticated": true, "user": user})
            } else if common.is_empty() {
                json!({"authenticated": false, "error": "token audiences are not for the target audiences"})
            } else {
                json!({"authenticated": true, "user": user, "audiences": common})
            }
        }
        None => json!({"authenticated": false, "error": "invalid bearer token"}),
    };
    let mut answer = asked.clone();
    answer["status"] = status;
    full(StatusCode::CREATED, &answer)
}

fn shown(object: &Value, metadata: bool) -> Value {
    if metadata {
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
    } else {
        object.clone()
    }
}

fn list(world: &World, asked: &Asked, query: &HashMap<String, String>, metadata: bool) -> Answer {
    let all: Vec<&Value> = world.objects.get(&asked.collection).into_iter().flat_map(BTreeMap::values).collect();
    let start: usize = query.get("continue").and_then(|token| token.parse().ok()).unwrap_or_default();
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX).min(world.page);
    let items: Vec<Value> = all
        .iter()
        .skip(start)
        .take(limit)
        .map(|object| {
            let mut object = shown(object, metadata);
            // As the real one: items do not say what they are.
            if !metadata {
                object.as_object_mut().unwrap().retain(|key, _| key != "kind" && key != "apiVersion");
            }
            object
        })
        .collect();
    let next = start + items.len();
    let mut list = json!({
        "apiVersion": "v1", "kind": if metadata { "PartialObjectMetadataList" } else { "TheList" },
        "metadata": {"resourceVersion": world.version.to_string()}, "items": items,
    });
    if next < all.len() {
        list["metadata"]["continue"] = next.to_string().into();
    }
    full(StatusCode::OK, &list)
}

fn follow(
    world: Arc<Mutex<World>>,
    changed: watch::Receiver<u64>,
    collection: String,
    query: &HashMap<String, String>,
    metadata: bool,
) -> Answer {
    let from: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or_default();
    let seconds: u64 = query.get("timeoutSeconds").and_then(|v| v.parse().ok()).unwrap_or(60);
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let event = |kind: &str, object: Value| {
        Ok::<_, std::io::Error>(Frame::data(Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))))
    };
    if from < world.lock().unwrap().forgotten {
        let gone =
            json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
        return Response::new(BodyExt::boxed_unsync(StreamBody::new(stream::iter([event("ERROR", gone)]))));
    }
    let state = (from, changed, false);
    let events = stream::unfold(state, move |(mut at, mut changed, mut bookmarked)| {
        let (world, collection) = (world.clone(), collection.clone());
        async move {
            loop {
                changed.mark_unchanged();
                let next = {
                    let world = world.lock().unwrap();
                    let from = world.history.partition_point(|(version, ..)| *version <= at);
                    world.history.get(from..).unwrap_or_default().iter().find(|(_, c, ..)| *c == collection).cloned()
                };
                if let Some((version, _, kind, object)) = next {
                    at = version;
                    return Some((event(kind, shown(&object, metadata)), (at, changed, false)));
                }
                if !bookmarked {
                    bookmarked = true;
                    at = at.max(world.lock().unwrap().version);
                    let bookmark =
                        json!({"kind": "X", "apiVersion": "v1", "metadata": {"resourceVersion": at.to_string()}});
                    return Some((event("BOOKMARK", bookmark), (at, changed, bookmarked)));
                }
                tokio::select! {
                    woken = changed.changed() => if woken.is_err() { return None },
                    () = tokio::time::sleep_until(end) => return None,
                }
            }
        }
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(events)))
}

fn write(world: &mut World, method: &Method, asked: Asked, body: &[u8]) -> Answer {
    let mut object: Value = serde_json::from_slice(body).unwrap_or_default();
    let name = asked.name.clone().or_else(|| object["metadata"]["name"].as_str().map(str::to_owned));
    let Some(name) = name else { return status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid") };
    let id = (asked.namespace, name);
    let there = world.objects.get(&asked.collection).and_then(|all| all.get(&id)).cloned();
    match (method, there) {
        (&Method::GET, Some(there)) => full(StatusCode::OK, &there),
        (&Method::POST, Some(_)) => status(StatusCode::CONFLICT, "AlreadyExists"),
        (&Method::POST, None) => {
            object["metadata"]["namespace"] = id.0.into();
            full(StatusCode::CREATED, &world.put(&asked.collection, object))
        }
        (&Method::PUT, Some(there)) => {
            let wanted = &object["metadata"]["resourceVersion"];
            if !wanted.is_null() && *wanted != there["metadata"]["resourceVersion"] {
                return status(StatusCode::CONFLICT, "Conflict");
            }
            full(StatusCode::OK, &world.put(&asked.collection, object))
        }
        (&Method::PATCH, Some(mut there)) => {
            let Ok(patch) = serde_json::from_value::<json_patch::Patch>(object) else {
                return status(StatusCode::BAD_REQUEST, "BadRequest");
            };
            match json_patch::patch(&mut there, &patch) {
                Ok(()) => full(StatusCode::OK, &world.put(&asked.collection, there)),
                Err(_) => status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            }
        }
        (&Method::DELETE, Some(there)) => {
            let wanted = &object["preconditions"]["uid"];
            if !wanted.is_null() && *wanted != there["metadata"]["uid"] {
                return status(StatusCode::CONFLICT, "Conflict");
            }
            world.delete(&asked.collection, &id);
            full(StatusCode::OK, &there)
        }
        (_, None) => status(StatusCode::NOT_FOUND, "NotFound"),
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}
