//! Label sets, formatted and escaped once.

use std::{fmt::Write as _, net::SocketAddr, sync::Arc};

use crate::policy::Meta;

/// A formatted label set, such as `direction="inbound",peer="src"`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Labels(Arc<str>);

impl Labels {
    /// No labels.
    pub fn none() -> Self {
        Self::default()
    }

    /// These labels, in this order. Values are escaped; names are trusted.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::none().with(pairs)
    }

    /// With these labels added at the end.
    pub fn with<'a>(&self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut out = String::from(&*self.0);
        for (name, value) in pairs {
            push(&mut out, name, value);
        }
        Self(out.into())
    }

    /// As [`Labels::with`], for one set after another.
    pub fn and(&self, more: &Labels) -> Self {
        match (self.0.is_empty(), more.0.is_empty()) {
            (true, _) => more.clone(),
            (_, true) => self.clone(),
            _ => Self(format!("{},{}", self.0, more.0).into()),
        }
    }

    /// `<prefix>_group`, `_kind`, `_namespace`, `_name`, `_port`, `_section_name` of an outbound resource.
    pub fn outbound_ref(&self, prefix: &str, meta: &Meta) -> Self {
        let mut out = String::from(&*self.0);
        let port = meta.port.map(|p| p.to_string()).unwrap_or_default();
        for (name, value) in [
            ("group", meta.group.as_str()),
            ("kind", &meta.kind),
            ("namespace", &meta.namespace),
            ("name", &meta.name),
            ("port", &port),
            ("section_name", &meta.section),
        ] {
            push(&mut out, &format!("{prefix}_{name}"), value);
        }
        Self(out.into())
    }

    /// `<prefix>_group`, `_kind`, `_name` of an inbound resource.
    pub fn inbound_ref(&self, prefix: &str, meta: &Meta) -> Self {
        let mut out = String::from(&*self.0);
        for (name, value) in [("group", meta.group.as_str()), ("kind", &meta.kind), ("name", &meta.name)] {
            push(&mut out, &format!("{prefix}_{name}"), value);
        }
        Self(out.into())
    }

    /// `srv_group`, `srv_kind`, `srv_name`, `srv_port`.
    pub fn server(&self, meta: &Meta, port: u16) -> Self {
        self.inbound_ref("srv", meta).with([("srv_port", port.to_string().as_str())])
    }

    /// `target_addr`, `target_ip`, `target_port`.
    pub fn target(&self, addr: SocketAddr) -> Self {
        let (ip, port) = (addr.ip().to_string(), addr.port().to_string());
        self.with([("target_addr", addr.to_string().as_str()), ("target_ip", &ip), ("target_port", &port)])
    }

    /// The labels that tell how a connection is secured.
    pub fn tls(&self, tls: &Tls<'_>) -> Self {
        match tls {
            Tls::Client { server_id } => self.with([("tls", "true"), ("server_id", server_id)]),
            Tls::Server { client_id } => self.with([("tls", "true"), ("client_id", client_id.unwrap_or_default())]),
            Tls::Passthrough { sni } => self.with([("tls", "opaque"), ("sni", sni)]),
            Tls::None(NoTls::Disabled) => self.with([("tls", "disabled")]),
            Tls::None(why) => self.with([("tls", "no_identity"), ("no_tls_reason", why.as_str())]),
        }
    }

    /// The text, without braces.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn push(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    let _ = out.write_char('"');
}

/// Which side of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the application of this pod.
    Inbound,
    /// From the application of this pod.
    Outbound,
}

impl Direction {
    /// `inbound` or `outbound`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How a connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls<'a> {
    /// Mutual TLS towards a server of that identity.
    Client {
        /// Its identity.
        server_id: &'a str,
    },
    /// TLS from a client, of that identity when it showed one.
    Server {
        /// Its identity.
        client_id: Option<&'a str>,
    },
    /// Somebody else's TLS, relayed untouched.
    Passthrough {
        /// The name that the client asked for.
        sni: &'a str,
    },
    /// Not secured.
    None(NoTls),
}

/// Why a connection is not secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoTls {
    /// By configuration.
    Disabled,
    /// Within the pod.
    Loopback,
    /// The port is excluded from detection.
    PortSkipped,
    /// The client did not begin TLS.
    NoTlsFromRemote,
    /// Discovery knows no identity for the endpoint.
    NotProvidedByServiceDiscovery,
}

impl NoTls {
    /// The value of `no_tls_reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Loopback => "loopback",
            Self::PortSkipped => "port_skipped",
            Self::NoTlsFromRemote => "no_tls_from_remote",
            Self::NotProvidedByServiceDiscovery => "not_provided_by_service_discovery",
        }
    }
}
