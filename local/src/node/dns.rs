//! The cluster's DNS server, on 10.96.0.10 port 53 over UDP and TCP: services, headless services and their pods, SRV,
//! reverse names, ExternalName. Names outside the cluster go to the host's resolvers when `weft up` offers them.

use super::Node;
use super::services::{self, cluster_ip, external_name, is_headless};
use super::store::Store;
use crate::proto::{self, frame};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixStream};
use tokio::sync::{mpsc, oneshot};
use weft_core::kinds::{Key, Kind};
use weft_core::names::{CLUSTER_DOMAIN, LOCAL_DNS_IP};

/// Seconds that an answer may be kept.
const TTL: u32 = 5;
/// Largest answer over UDP when the client does not say what it can take.
const UDP_LIMIT: usize = 512;
/// How long the host's resolvers may take.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle TCP client is left after this.
const TCP_IDLE: Duration = Duration::from_secs(30);

/// A DNS message, and the number that pairs it with its answer.
type Question = (u32, Vec<u8>);

/// The way to the host's resolvers: questions to send, and who waits for which answer.
#[derive(Default)]
pub(crate) struct Upstream {
    questions: RefCell<Option<mpsc::Sender<Question>>>,
    waiting: RefCell<HashMap<u32, oneshot::Sender<Vec<u8>>>>,
    next: RefCell<u32>,
}

impl Upstream {
    /// Serves the connection of a host that offers to resolve, until it ends.
    pub(crate) async fn serve(&self, stream: UnixStream) {
        let (mut reader, mut writer) = stream.into_split();
        let (sender, mut questions) = mpsc::channel::<Question>(64);
        *self.questions.borrow_mut() = Some(sender);
        let write = async {
            while let Some((id, question)) = questions.recv().await {
                let mut body = id.to_be_bytes().to_vec();
                body.extend_from_slice(&question);
                if proto::write_frame(&mut writer, frame::DNS, &body).await.is_err() {
                    return;
                }
            }
        };
        let read = async {
            while let Ok(Some((frame::DNS, body))) = proto::read_frame(&mut reader).await {
                if let Some((id, answer)) = body.split_first_chunk::<4>()
                    && let Some(waiting) = self.waiting.borrow_mut().remove(&u32::from_be_bytes(*id))
                {
                    // Nobody waits any more when it came too late.
                    let _ = waiting.send(answer.to_vec());
                }
            }
        };
        tokio::select! { () = write => {}, () = read => {} }
        self.questions.borrow_mut().take();
        self.waiting.borrow_mut().clear();
    }

    async fn ask(&self, question: &[u8]) -> Option<Vec<u8>> {
        let sender = self.questions.borrow().clone()?;
        let id = {
            let mut next = self.next.borrow_mut();
            *next = next.wrapping_add(1);
            *next
        };
        let (answer, waiting) = oneshot::channel();
        self.waiting.borrow_mut().insert(id, answer);
        let asked = sender.send((id, question.to_vec())).await.is_ok();
        let answer =
            if asked { tokio::time::timeout(FORWARD_TIMEOUT, waiting).await.ok().and_then(Result::ok) } else { None };
        self.waiting.borrow_mut().remove(&id);
        answer
    }
}

/// Opens the sockets and serves for as long as the node lives.
pub(crate) async fn start(node: Rc<Node>) -> io::Result<()> {
    let udp = Rc::new(UdpSocket::bind((LOCAL_DNS_IP, 53)).await?);
    let tcp = TcpListener::bind((LOCAL_DNS_IP, 53)).await?;
    let for_udp = Rc::clone(&node);
    tokio::task::spawn_local(async move {
        let mut buffer = vec![0; 4096];
        loop {
            let Ok((n, peer)) = udp.recv_from(&mut buffer).await else { continue };
            let question = buffer.get(..n).unwrap_or_default().to_vec();
            let (node, udp) = (Rc::clone(&for_udp), Rc::clone(&udp));
            tokio::task::spawn_local(async move {
                if let Some(answer) = respond(&node, &question, true).await {
                    // A client that has gone is no concern of ours.
                    let _ = udp.send_to(&answer, peer).await;
                }
            });
        }
    });
    tokio::task::spawn_local(async move {
        loop {
            let Ok((stream, _)) = tcp.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let node = Rc::clone(&node);
            tokio::task::spawn_local(async move {
                // A client that breaks off is no concern of ours.
                let _ = serve_tcp(&node, stream).await;
            });
        }
    });
    Ok(())
}

async fn serve_tcp(node: &Node, mut stream: TcpStream) -> io::Result<()> {
    while let Ok(length) = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await {
        let mut question = vec![0; usize::from(length?)];
        tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut question)).await??;
        let Some(answer) = respond(node, &question, false).await else { break };
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
    Ok(())
}

async fn respond(node: &Node, question: &[u8], udp: bool) -> Option<Vec<u8>> {
    let Ok(request) = Message::from_vec(question) else {
        let id = u16::from_be_bytes(*question.first_chunk::<2>()?);
        return Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok();
    };
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_queries(request.queries.iter().cloned());
    let limit = match &request.edns {
        Some(edns) => {
            let mut own = hickory_proto::op::Edns::new();
            own.set_max_payload(4096);
            response.set_edns(own);
            usize::from(edns.max_payload()).clamp(UDP_LIMIT, 4096)
        }
        None => UDP_LIMIT,
    };
    let query = match (request.metadata.op_code, request.queries.as_slice()) {
        (OpCode::Query, [query]) => query,
        (OpCode::Query, _) => return finish(response, ResponseCode::FormErr),
        _ => return finish(response, ResponseCode::NotImp),
    };
    let name = query.name.to_lowercase();
    let found = lookup(&node.store.borrow(), &name, query.query_type);
    match found {
        Lookup::Outside => {
            return match node.upstream.ask(question).await {
                Some(answer) if udp && answer.len() > limit => {
                    response.metadata.truncation = true;
                    finish(response, ResponseCode::NoError)
                }
                Some(answer) => Some(answer),
                None => finish(response, ResponseCode::ServFail),
            };
        }
        Lookup::Alias(target) => {
            response.metadata.authoritative = true;
            response.add_answer(Record::from_rdata(query.name.clone(), TTL, RData::CNAME(CNAME(target.clone()))));
            if query.query_type != RecordType::CNAME {
                follow(node, &mut response, &target, query.query_type).await;
            }
        }
        Lookup::Found(records) => {
            response.metadata.authoritative = true;
            if records.is_empty() {
                response.add_authority(soa());
            }
            for record in records {
                // The name as it was asked, in its own case.
                let own = record.name == name;
                let name = if own { query.name.clone() } else { record.name };
                response.add_answer(Record::from_rdata(name, record.ttl, record.data));
            }
        }
        Lookup::NoSuchName => {
            response.metadata.authoritative = true;
            response.add_authority(soa());
            return finish(response, ResponseCode::NXDomain);
        }
    }
    let answer = finish(response.clone(), ResponseCode::NoError)?;
    if udp && answer.len() > limit {
        let mut short = response.truncate();
        short.metadata.truncation = true;
        return finish(short, ResponseCode::NoError);
    }
    Some(answer)
}

fn finish(mut response: Message, code: ResponseCode) -> Option<Vec<u8>> {
    response.metadata.response_code = code;
    response.to_vec().ok()
}

/// Adds what an alias leads to, when it can be found.
async fn follow(node: &Node, response: &mut Message, target: &Name, kind: RecordType) {
    let found = lookup(&node.store.borrow(), target, kind);
    match found {
        Lookup::Found(records) => {
            response.add_answers(records);
        }
        Lookup::Outside => {
            let mut question = Message::query();
            question.metadata.recursion_desired = true;
            question.add_query(hickory_proto::op::Query::query(target.clone(), kind));
            if let Ok(bytes) = question.to_vec()
                && let Some(answer) = node.upstream.ask(&bytes).await
                && let Ok(answer) = Message::from_vec(&answer)
            {
                response.add_answers(answer.answers);
            }
        }
        Lookup::Alias(_) | Lookup::NoSuchName => {}
    }
}

/// What the cluster knows of a name.
enum Lookup {
    /// The name exists; there may be no record of the type.
    Found(Vec<Record>),
    /// The name is another name of this one.
    Alias(Name),
    /// The name would be the cluster's, and does not exist.
    NoSuchName,
    /// The name is not the cluster's.
    Outside,
}

fn soa() -> Record {
    let zone = Name::from_str(&format!("{CLUSTER_DOMAIN}.")).unwrap_or_default();
    let server = Name::from_str(&format!("ns.dns.{CLUSTER_DOMAIN}.")).unwrap_or_default();
    let mailbox = Name::from_str(&format!("hostmaster.{CLUSTER_DOMAIN}.")).unwrap_or_default();
    Record::from_rdata(zone, TTL, RData::SOA(SOA::new(server, mailbox, 1, 7200, 1800, 86400, TTL)))
}

fn lookup(store: &Store, name: &Name, kind: RecordType) -> Lookup {
    let text = name.to_ascii();
    let text = text.trim_end_matches('.');
    if let Some(reverse) = text.strip_suffix(".in-addr.arpa") {
        return reverse_lookup(store, name, reverse, kind);
    }
    let inside = text.strip_suffix(CLUSTER_DOMAIN);
    let Some(inside) = inside.filter(|i| i.is_empty() || i.ends_with('.')) else { return Lookup::Outside };
    let labels: Vec<&str> = inside.split('.').filter(|l| !l.is_empty()).rev().collect();
    let address = |ips: Vec<Ipv4Addr>| {
        let records = ips.into_iter().map(|ip| Record::from_rdata(name.clone(), TTL, RData::A(A(ip))));
        Lookup::Found(if matches!(kind, RecordType::A | RecordType::ANY) { records.collect() } else { Vec::new() })
    };
    match labels.as_slice() {
        [] | ["svc" | "pod"] => Lookup::Found(Vec::new()),
        ["svc" | "pod", namespace] => match store.get(&Key::new(Kind::Namespace, "", namespace)) {
            Some(_) => Lookup::Found(Vec::new()),
            None => Lookup::NoSuchName,
        },
        ["pod", namespace, dashed] => {
            let known = store.get(&Key::new(Kind::Namespace, "", namespace)).is_some();
            match dashed.replace('-', ".").parse() {
                Ok(ip) if known => address(vec![ip]),
                _ => Lookup::NoSuchName,
            }
        }
        ["svc", namespace, service, rest @ ..] => {
            let Some(found) = store.service(namespace, service) else { return Lookup::NoSuchName };
            if let Some(target) = external_name(found) {
                return match (rest, Name::from_str(&format!("{}.", target.trim_end_matches('.')))) {
                    ([], Ok(target)) => Lookup::Alias(target),
                    _ => Lookup::NoSuchName,
                };
            }
            match rest {
                [] if is_headless(found) => {
                    address(endpoint_hosts(store, namespace, service).into_iter().map(|e| e.1).collect())
                }
                [] => address(cluster_ip(found).into_iter().collect()),
                [host] if !host.starts_with('_') => {
                    let hosts = endpoint_hosts(store, namespace, service);
                    let ips: Vec<Ipv4Addr> = hosts.into_iter().filter(|(h, _)| h == host).map(|e| e.1).collect();
                    if ips.is_empty() { Lookup::NoSuchName } else { address(ips) }
                }
                [protocol, port] => service_records(store, name, namespace, service, protocol, port, kind),
                ["_tcp" | "_udp"] => Lookup::Found(Vec::new()),
                _ => Lookup::NoSuchName,
            }
        }
        _ => Lookup::NoSuchName,
    }
}

/// Host names (those of pods that have one, else the dashed IP) and IPs of a service's ready endpoints.
fn endpoint_hosts(store: &Store, namespace: &str, service: &str) -> Vec<(String, Ipv4Addr)> {
    let mut hosts = Vec::new();
    for endpoint in services::slices(store, namespace, service).flat_map(|s| s.endpoints.iter().flatten()) {
        if endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
            continue;
        }
        for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<Ipv4Addr>().ok()) {
            let host = endpoint.hostname.clone().unwrap_or_else(|| ip.to_string().replace('.', "-"));
            hosts.push((host, ip));
        }
    }
    hosts
}

/// `_port._protocol.service.namespace.svc`.
fn service_records(
    store: &Store,
    name: &Name,
    namespace: &str,
    service: &str,
    protocol: &str,
    port: &str,
    kind: RecordType,
) -> Lookup {
    let (Some(protocol), Some(port)) = (protocol.strip_prefix('_'), port.strip_prefix('_')) else {
        return Lookup::NoSuchName;
    };
    let Some(found) = store.service(namespace, service) else { return Lookup::NoSuchName };
    let ports = found.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let wanted = ports.into_iter().find(|p| {
        p.name.as_deref() == Some(port) && p.protocol.as_deref().unwrap_or("TCP").eq_ignore_ascii_case(protocol)
    });
    let Some(wanted) = wanted else { return Lookup::NoSuchName };
    if !matches!(kind, RecordType::SRV | RecordType::ANY) {
        return Lookup::Found(Vec::new());
    }
    let zone = format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}.");
    let record = |target: &str, port: u16| {
        let target = Name::from_str(target).ok()?;
        Some(Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, 100, port, target))))
    };
    let records: Vec<Record> = if is_headless(found) {
        let hosts = endpoint_hosts(store, namespace, service);
        let endpoints = services::ready_endpoints(store, namespace, service, port);
        let named = endpoints.iter().filter_map(|(ip, number)| {
            let host = &hosts.iter().find(|(_, i)| i == ip)?.0;
            record(&format!("{host}.{zone}"), *number)
        });
        named.collect()
    } else {
        u16::try_from(wanted.port).ok().and_then(|number| record(&zone, number)).into_iter().collect()
    };
    Lookup::Found(records)
}

fn reverse_lookup(store: &Store, name: &Name, reverse: &str, kind: RecordType) -> Lookup {
    let parts: Vec<&str> = reverse.split('.').rev().collect();
    let Ok(ip) = parts.join(".").parse::<Ipv4Addr>() else { return Lookup::Outside };
    let [a, b, ..] = ip.octets();
    if a != 10 || (b != 96 && b != 244) {
        return Lookup::Outside;
    }
    let target = if b == 96 {
        let found = store.services().find(|(_, s)| cluster_ip(s) == Some(ip));
        found.map(|(key, _)| format!("{}.{}.svc.{CLUSTER_DOMAIN}.", key.name, key.namespace))
    } else {
        store.services().filter(|(_, s)| is_headless(s)).find_map(|(key, _)| {
            let hosts = endpoint_hosts(store, &key.namespace, &key.name);
            let (host, _) = hosts.into_iter().find(|(_, i)| *i == ip)?;
            Some(format!("{host}.{}.{}.svc.{CLUSTER_DOMAIN}.", key.name, key.namespace))
        })
    };
    match target.and_then(|t| Name::from_str(&t).ok()) {
        Some(target) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
            Lookup::Found(vec![Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))])
        }
        Some(_) => Lookup::Found(Vec::new()),
        None => Lookup::NoSuchName,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_core::kinds::Object;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let mut put = |kind, value| store.put(Object::from_value(kind, value).unwrap());
        put(Kind::Namespace, json!({"metadata": {"name": "a"}}));
        put(
            Kind::Service,
            json!({"metadata": {"name": "web", "namespace": "a"},
                   "spec": {"clusterIP": "10.96.1.1", "ports": [{"name": "http", "port": 80}]}}),
        );
        put(
            Kind::Service,
            json!({"metadata": {"name": "db", "namespace": "a"},
                   "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}}),
        );
        put(
            Kind::Service,
            json!({"metadata": {"name": "alias", "namespace": "a"},
                   "spec": {"type": "ExternalName", "externalName": "example.com"}}),
        );
        put(
            Kind::EndpointSlice,
            json!({"metadata": {"name": "db-1", "namespace": "a", "labels": {"kubernetes.io/service-name": "db"}},
                   "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}],
                   "endpoints": [{"addresses": ["10.244.0.5"], "hostname": "db-0"},
                                 {"addresses": ["10.244.0.6"], "conditions": {"ready": false}},
                                 {"addresses": ["10.244.0.7"]}]}),
        );
        (dir, store)
    }

    fn answers(store: &Store, name: &str, kind: RecordType) -> Option<Vec<String>> {
        match lookup(store, &Name::from_str(name).unwrap(), kind) {
            Lookup::Found(records) => Some(records.into_iter().map(|r| r.data.to_string()).collect()),
            Lookup::Alias(target) => Some(vec![format!("alias {target}")]),
            Lookup::NoSuchName => None,
            Lookup::Outside => Some(vec!["outside".into()]),
        }
    }

    #[test]
    fn names_of_the_cluster() {
        let (_dir, store) = store();
        let a = |name: &str| answers(&store, name, RecordType::A);
        assert_eq!(a("web.a.svc.cluster.local."), Some(vec!["10.96.1.1".into()]));
        assert_eq!(answers(&store, "web.a.svc.cluster.local.", RecordType::AAAA), Some(vec![]));
        assert_eq!(a("nope.a.svc.cluster.local."), None);
        assert_eq!(a("web.b.svc.cluster.local."), None);
        assert_eq!(a("a.svc.cluster.local."), Some(vec![]));
        assert_eq!(a("db.a.svc.cluster.local."), Some(vec!["10.244.0.5".into(), "10.244.0.7".into()]));
        assert_eq!(a("db-0.db.a.svc.cluster.local."), Some(vec!["10.244.0.5".into()]));
        assert_eq!(a("10-244-0-7.db.a.svc.cluster.local."), Some(vec!["10.244.0.7".into()]));
        assert_eq!(a("db-1.db.a.svc.cluster.local."), None);
        assert_eq!(a("10-244-0-9.a.pod.cluster.local."), Some(vec!["10.244.0.9".into()]));
        assert_eq!(a("alias.a.svc.cluster.local."), Some(vec!["alias example.com.".into()]));
        assert_eq!(a("example.com."), Some(vec!["outside".into()]));
        assert_eq!(a("notcluster.local."), Some(vec!["outside".into()]));
    }

    #[test]
    fn service_and_reverse_records() {
        let (_dir, store) = store();
        let web = answers(&store, "_http._tcp.web.a.svc.cluster.local.", RecordType::SRV);
        assert_eq!(web, Some(vec!["0 100 80 web.a.svc.cluster.local.".into()]));
        let db = answers(&store, "_sql._tcp.db.a.svc.cluster.local.", RecordType::SRV);
        let expected = ["0 100 5432 db-0.db.a.svc.cluster.local.", "0 100 5432 10-244-0-7.db.a.svc.cluster.local."];
        assert_eq!(db, Some(expected.map(str::to_owned).to_vec()));
        assert_eq!(answers(&store, "_no._tcp.web.a.svc.cluster.local.", RecordType::SRV), None);
        let reverse = answers(&store, "1.1.96.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(reverse, Some(vec!["web.a.svc.cluster.local.".into()]));
        let reverse = answers(&store, "5.0.244.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(reverse, Some(vec!["db-0.db.a.svc.cluster.local.".into()]));
        assert_eq!(answers(&store, "9.9.9.9.in-addr.arpa.", RecordType::PTR), Some(vec!["outside".into()]));
    }
}
