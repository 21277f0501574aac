//! `weft-init validate`: whether the traffic of this pod is redirected. It is the init container of a pod whose traffic a CNI
//! plugin redirects, needs no right, and keeps the pod from starting when that has not happened.
//!
//! It listens where the outbound proxy will listen, connects to an address that nobody answers at, and must hear its own
//! random token there. The kernel looks for a route before it redirects: in a network without a default route an
//! address of a network that an interface is in takes the place of the far one. Where an interface has no network
//! either, nothing can be sent, so nothing can be shown.

use std::{
    fmt,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sys::socket::{SockaddrLike as _, SockaddrStorage},
};

use crate::{config, redirect::Flags};

/// Exit code of a pod that is not redirected; repair looks for it.
pub const NOT_REDIRECTED: u8 = 95;

const FAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)), 20001);
const FAR_IPV6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)), 20001);

/// Octets of the token.
const TOKEN: usize = 32;
/// The shortest time that is left for an attempt: zero would be no limit.
const LEAST: Duration = Duration::from_millis(1);

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Validate {
    /// How the traffic is redirected: what the plugin is told. Only the outbound port matters here.
    #[command(flatten)]
    pub flags: Flags,
    /// Address that only redirection can bring back [default: 1.1.1.1:20001; with --ipv6 [fd00::1]:20001]
    #[arg(long, value_name = "ADDRESS")]
    pub connect_addr: Option<SocketAddr>,
    /// How long it may take, such as 10s.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = config::duration)]
    pub timeout: Duration,
}

/// Why a pod must not start.
#[derive(Debug)]
pub enum Fault {
    /// It could not be found out: a sentence.
    Unknown(String),
    /// Traffic is not redirected: how that showed.
    NotRedirected(String),
}

impl Fault {
    /// Exit code of the program.
    pub fn code(&self) -> u8 {
        match self {
            Fault::Unknown(_) => 1,
            Fault::NotRedirected(_) => NOT_REDIRECTED,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unknown(why) => f.write_str(why),
            Fault::NotRedirected(how) => write!(f, "the CNI plugin has not redirected the traffic of this pod: {how}"),
        }
    }
}

impl Validate {
    /// Finds out whether connections of this process are redirected to the outbound port.
    ///
    /// # Errors
    /// When they are not, or it cannot be found out.
    pub fn run(&self) -> Result<(), Fault> {
        let begun = Instant::now();
        let far = self.connect_addr.unwrap_or(if self.flags.ipv6 { FAR_IPV6 } else { FAR });
        // Where redirection of what is sent from here leads to.
        let here = match far {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let here = SocketAddr::new(here, self.flags.outgoing_proxy_port);
        let unknown = |what: &str, error: &dyn fmt::Display| Fault::Unknown(format!("{what}: {error}"));
        let listener = TcpListener::bind(here).map_err(|error| unknown(&format!("cannot listen on {here}"), &error))?;
        let mut token = [0; TOKEN];
        aws_lc_rs::rand::fill(&mut token).map_err(|error| unknown("no random numbers", &error))?;
        // It ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever went away has heard enough.
                let _ = stream.and_then(|mut stream| stream.write_all(&token));
            }
        });
        let left = || self.timeout.saturating_sub(begun.elapsed()).max(LEAST);
        let mut tried = far;
        let mut answer = ask(far, left());
        if unreachable(&answer) {
            let Some(near) = neighbour(far) else {
                return Err(Fault::NotRedirected(format!(
                    "there is no route to {far}, nor any network to try instead"
                )));
            };
            tried = near;
            answer = ask(near, left());
        }
        let how = match answer {
            Ok(heard) if heard == token => return Ok(()),
            Ok(_) => format!("somebody else answers at {tried}"),
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
                format!("nobody answered at {tried} within {:?}", self.timeout)
            }
            Err(error) => format!("a connection to {tried} failed: {error}"),
        };
        Err(Fault::NotRedirected(how))
    }
}

fn ask(address: SocketAddr, timeout: Duration) -> io::Result<[u8; TOKEN]> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut heard = [0; TOKEN];
    stream.read_exact(&mut heard)?;
    Ok(heard)
}

fn unreachable<T>(answer: &io::Result<T>) -> bool {
    let kind = answer.as_ref().err().map(io::Error::kind);
    matches!(kind, Some(ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable))
}

/// An address beside one of ours, of the same family, with the same port.
fn neighbour(far: SocketAddr) -> Option<SocketAddr> {
    let mut interfaces = getifaddrs().ok()?.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP) && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    interfaces.find_map(|interface| {
        let own = ip(interface.address.as_ref()?)?;
        let network = IpNet::with_netmask(own, ip(interface.netmask.as_ref()?)?).ok()?;
        let link_local = matches!(own, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if own.is_ipv4() != far.is_ipv4() || link_local {
            return None;
        }
        beside(network).map(|near| SocketAddr::new(near, far.port()))
    })
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    match address.family()? {
        nix::sys::socket::AddressFamily::Inet => Some(IpAddr::V4(address.as_sockaddr_in()?.ip())),
        nix::sys::socket::AddressFamily::Inet6 => Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())),
        _ => None,
    }
}

/// Another host of the network that an address is in. The first address of an IPv6 network is every router's.
fn beside(own: IpNet) -> Option<IpAddr> {
    own.hosts().skip(usize::from(own.addr().is_ipv6())).take(2).find(|host| *host != own.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours() {
        let beside = |own: &str| beside(own.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(beside("10.1.2.3/24").as_deref(), Some("10.1.2.1"));
        assert_eq!(beside("10.1.2.1/24").as_deref(), Some("10.1.2.2"));
        assert_eq!(beside("10.1.2.1/30").as_deref(), Some("10.1.2.2"));
        assert_eq!(beside("10.1.2.1/32"), None);
        assert_eq!(beside("fd00:1::1/64").as_deref(), Some("fd00:1::2"));
        assert_eq!(beside("fd00:1::5/128"), None);
    }
}
