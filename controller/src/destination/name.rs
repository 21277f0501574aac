//! What a proxy asks for: `name.namespace.svc.<domain>:port`, `host.name.namespace.svc.<domain>:port` or `ip:port`.

use crate::index::pod::Id;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use tonic::Status;

/// A host with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port; 80 when none is given.
    pub port: u16,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A service.
    Service(Id),
    /// One pod of a headless service.
    Instance {
        /// The service.
        service: Id,
        /// The pod's host name.
        hostname: String,
    },
}

impl Authority {
    /// Reads one.
    ///
    /// # Errors
    /// `InvalidArgument`, saying what is wrong.
    pub fn parse(text: &str, cluster_domain: &str) -> Result<Authority, Status> {
        let refuse = |reason: &str| Status::invalid_argument(format!("{text:?} {reason}"));
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return match addr.port() {
                0 => Err(refuse("has no valid port")),
                port => Ok(Authority { host: Host::Ip(addr.ip()), port }),
            };
        }
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Authority { host: Host::Ip(ip), port: 80 });
        }
        let (name, port) = match text.rsplit_once(':') {
            None => (text, 80),
            Some((name, port)) => match port.parse::<u16>() {
                Ok(port) if port > 0 => (name, port),
                _ => return Err(refuse("has no valid port")),
            },
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let domain = cluster_domain.trim_matches('.').to_ascii_lowercase();
        let labels = name
            .strip_suffix(&domain)
            .and_then(|rest| rest.strip_suffix(".svc."))
            .ok_or_else(|| refuse(&format!("is not a name of the form <name>.<namespace>.svc.{domain}")))?;
        let labels: Vec<&str> = labels.split('.').collect();
        if !labels.iter().all(|label| is_label(label)) {
            return Err(refuse("is not a valid name"));
        }
        let host = match labels.as_slice() {
            [name, namespace] => Host::Service(Id::new(namespace, name)),
            [hostname, name, namespace] => {
                Host::Instance { service: Id::new(namespace, name), hostname: (*hostname).to_owned() }
            }
            _ => return Err(refuse("has the wrong number of parts")),
        };
        Ok(Authority { host, port })
    }
}

/// The namespace of whoever asks, as the proxy's configuration says it: JSON with `ns`, or `ns:<namespace>`. Empty when
/// nothing says it.
pub fn client_namespace(token: &str) -> String {
    #[derive(Deserialize)]
    struct Token {
        ns: String,
    }
    match token.strip_prefix("ns:") {
        Some(namespace) => namespace.to_owned(),
        None => serde_json::from_str(token).map(|token: Token| token.ns).unwrap_or_default(),
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks() {
        for token in [r#"{"ns":"shop","nodeName":"n","pod":"p"}"#, "ns:shop"] {
            assert_eq!(client_namespace(token), "shop", "{token}");
        }
        assert_eq!(client_namespace("?"), "");
    }

    #[test]
    fn names_and_addresses() {
        let parse = |text: &str| Authority::parse(text, "cluster.local").map_err(|s| s.code());
        let web = Host::Service(Id::new("emojivoto", "web-svc"));
        for text in ["web-svc.emojivoto.svc.cluster.local:80", "WEB-svc.emojivoto.svc.cluster.local."] {
            assert_eq!(parse(text), Ok(Authority { host: web.clone(), port: 80 }), "{text}");
        }
        let pod = Host::Instance { service: Id::new("a", "db"), hostname: "db-0".into() };
        assert_eq!(parse("db-0.db.a.svc.cluster.local:5432"), Ok(Authority { host: pod, port: 5432 }));
        assert_eq!(parse("10.0.0.1:8080").map(|a| a.port), Ok(8080));
        assert_eq!(parse("[::1]:8080").map(|a| a.host), Ok(Host::Ip("::1".parse().unwrap())));
        for bad in [
            "",
            ":80",
            "web",
            "web.ns.svc.example.org:80",
            "svc.cluster.local:80",
            "web.svc.cluster.local:80",
            "a.b.c.d.svc.cluster.local:80",
            "web.ns.svc.cluster.local:0",
            "web.ns.svc.cluster.local:x",
            "10.0.0.1:0",
            "we b.ns.svc.cluster.local:80",
            "-.ns.svc.cluster.local:1",
            "xcluster.local:80",
            "..svc.cluster.local:1",
        ] {
            assert_eq!(parse(bad), Err(tonic::Code::InvalidArgument), "{bad}");
        }
    }
}
