//! A stub resolver for the few names of the control plane.
//!
//! The system's resolver is not used: it needs shared libraries that a static binary does not have, and it blocks. Names
//! are absolute, so there is no search list; there is no cache, as names are only asked for before a connection is made.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const ATTEMPTS: usize = 2;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// The addresses of a host, in random order, at least one.
///
/// # Errors
/// No name server answered, or the name has no address.
pub(super) async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
    }
    if let Some(ips) = hosts_file(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), host) {
        return Ok(ips);
    }
    let servers = name_servers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default());
    if servers.is_empty() {
        return Err(io::Error::other(format!("cannot resolve {host}: {RESOLV_CONF} names no server")));
    }
    let mut name = Name::from_ascii(host).map_err(io::Error::other)?;
    name.set_fqdn(true);
    let mut last = io::Error::other("no answer");
    for server in std::iter::repeat_n(&servers, ATTEMPTS).flatten() {
        let v4 = query(*server, &name, RecordType::A).await;
        let result = match v4 {
            Ok(ips) if ips.is_empty() => query(*server, &name, RecordType::AAAA).await,
            other => other,
        };
        match result {
            Ok(mut ips) if !ips.is_empty() => {
                fastrand::shuffle(&mut ips);
                return Ok(ips);
            }
            Ok(_) => return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"))),
            Err(error) => last = error,
        }
    }
    Err(io::Error::new(last.kind(), format!("cannot resolve {host}: {last}")))
}

/// One question to one server; over TCP when the answer does not fit a datagram.
async fn query(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Vec<IpAddr>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let request = message.to_vec().map_err(io::Error::other)?;
    let id = message.metadata.id;
    let too_late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("name server {server} does not answer"));

    let answer = timeout(ATTEMPT_TIMEOUT, over_udp(server, &request, id)).await.map_err(too_late)??;
    let answer = if answer.metadata.truncation {
        timeout(ATTEMPT_TIMEOUT, over_tcp(server, &request)).await.map_err(too_late)??
    } else {
        answer
    };
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Ok(Vec::new()),
        code => return Err(io::Error::other(format!("name server {server} says {code}"))),
    }
    let mut ips: Vec<IpAddr> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(a) => Some(IpAddr::V6(a.0)),
            _ => None,
        })
        .collect();
    ips.sort();
    ips.dedup();
    Ok(ips)
}

async fn over_udp(server: SocketAddr, request: &[u8], id: u16) -> io::Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(request).await?;
    let mut buffer = [0u8; 1500];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // Anything but the answer to this question is somebody else's, or forged.
        match Message::from_vec(buffer.get(..len).unwrap_or_default()) {
            Ok(answer) if answer.metadata.id == id => return Ok(answer),
            Ok(_) | Err(_) => {}
        }
    }
}

async fn over_tcp(server: SocketAddr, request: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), request].concat()).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    Message::from_vec(&answer).map_err(io::Error::other)
}

fn name_servers(conf: &str) -> Vec<SocketAddr> {
    conf.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next())?
        })
        // A scope such as %eth0 is not needed for the servers that pods have.
        .filter_map(|ip| ip.parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .take(3)
        .collect()
}

fn hosts_file(hosts: &str, host: &str) -> Option<Vec<IpAddr>> {
    let ips: Vec<IpAddr> = hosts
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|w| w.trim_end_matches('.').eq_ignore_ascii_case(host)).then_some(ip)
        })
        .collect();
    (!ips.is_empty()).then_some(ips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_system_does() {
        let conf = "# comment\nsearch a.b\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\nnameserver ::1\n";
        assert_eq!(name_servers(conf), ["10.96.0.10:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        let hosts = "127.0.0.1 localhost\n10.1.1.1 a.b. other # c.d\n10.1.1.2 A.B\n";
        assert_eq!(hosts_file(hosts, "a.b").unwrap().len(), 2);
        assert_eq!(hosts_file(hosts, "c.d"), None);
    }

    /// Answers one question over UDP with `truncated`, and then, if it was, one over TCP.
    async fn server(udp: UdpSocket, tcp: tokio::net::TcpListener, truncated: bool, answers: Vec<RData>) {
        let answer = |request: &[u8], truncated: bool| {
            let request = Message::from_vec(request).unwrap();
            let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
            answer.metadata.truncation = truncated;
            answer.add_query(request.queries[0].clone());
            if !truncated {
                let name = request.queries[0].name().clone();
                answer.add_answers(
                    answers.iter().map(|r| hickory_proto::rr::Record::from_rdata(name.clone(), 5, r.clone())),
                );
            }
            answer.to_vec().unwrap()
        };
        let mut buffer = [0; 512];
        let (len, from) = udp.recv_from(&mut buffer).await.unwrap();
        udp.send_to(b"noise that is no message", from).await.unwrap();
        udp.send_to(&answer(&buffer[..len], truncated), from).await.unwrap();
        if truncated {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let len = stream.read_u16().await.unwrap();
            let mut request = vec![0; len.into()];
            stream.read_exact(&mut request).await.unwrap();
            let answer = answer(&request, false);
            stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn answers_come_by_datagram_or_by_stream() {
        for truncated in [false, true] {
            let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = tcp.local_addr().unwrap();
            // The same port for UDP is free: TCP got it from the system just now, and tests use no fixed ports.
            let Ok(udp) = UdpSocket::bind(addr).await else { continue };
            let answers = vec![
                RData::A(Ipv4Addr::new(10, 96, 0, 7).into()),
                RData::A(Ipv4Addr::new(10, 96, 0, 6).into()),
                RData::A(Ipv4Addr::new(10, 96, 0, 7).into()),
            ];
            let name = Name::from_ascii("weft-policy.weft.svc.cluster.local.").unwrap();
            let (ips, ()) = tokio::join!(query(addr, &name, RecordType::A), server(udp, tcp, truncated, answers));
            assert_eq!(ips.unwrap(), ["10.96.0.6".parse::<IpAddr>().unwrap(), "10.96.0.7".parse().unwrap()]);
        }
    }

    #[tokio::test]
    async fn addresses_need_no_server() {
        assert_eq!(resolve("10.1.2.3").await.unwrap(), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(resolve("localhost").await.unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    }
}
