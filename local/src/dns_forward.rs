//! Asks the host's resolvers, on behalf of the cluster's DNS server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one resolver may take before the next is asked.
const TIMEOUT: Duration = Duration::from_secs(2);
/// At most this many resolvers are asked, as the C library does.
const RESOLVERS: usize = 3;

/// The answer to a DNS message from the first resolver that gives one.
pub(crate) async fn ask(question: &[u8]) -> Option<Vec<u8>> {
    let configuration = tokio::fs::read_to_string("/etc/resolv.conf").await.ok()?;
    for resolver in resolvers(&configuration) {
        if let Ok(Some(answer)) = tokio::time::timeout(TIMEOUT, ask_one(resolver, question)).await {
            return Some(answer);
        }
    }
    None
}

fn resolvers(configuration: &str) -> Vec<SocketAddr> {
    let lines = configuration.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = lines.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
    addresses.take(RESOLVERS).map(|ip| SocketAddr::new(ip, 53)).collect()
}

async fn ask_one(resolver: SocketAddr, question: &[u8]) -> Option<Vec<u8>> {
    let own: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(own).await.ok()?;
    socket.connect(resolver).await.ok()?;
    socket.send(question).await.ok()?;
    let mut answer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut answer).await.ok()?;
        let bytes = answer.get(..n)?;
        // Only an answer with the question's identifier is one.
        if bytes.get(..2) != question.get(..2) {
            continue;
        }
        let truncated = bytes.get(2).is_some_and(|flags| flags & 0x02 != 0);
        if truncated {
            return ask_over_tcp(resolver, question).await.or_else(|| Some(bytes.to_vec()));
        }
        return Some(bytes.to_vec());
    }
}

async fn ask_over_tcp(resolver: SocketAddr, question: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await.ok()?;
    stream.write_u16(u16::try_from(question.len()).ok()?).await.ok()?;
    stream.write_all(question).await.ok()?;
    let length = stream.read_u16().await.ok()?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.ok()?;
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_of_the_host() {
        let text = "# comment\nsearch example.com\nnameserver 192.0.2.1\n nameserver ::1\nnameserver nonsense\n";
        let expected: Vec<SocketAddr> = vec!["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(resolvers(text), expected);
    }
}
