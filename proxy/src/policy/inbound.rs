//! What a port of this pod accepts, and from whom.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use weft_wire::head::Request;

use super::{Filter, HostMatch, HttpMatch, Matched, Meta, matching};

/// The policy of one port.
#[derive(Debug, Clone, PartialEq)]
pub struct InboundPolicy {
    /// The Server resource, or a default (`srv_*` labels).
    pub meta: Arc<Meta>,
    /// What the port speaks.
    pub protocol: InboundProtocol,
    /// Who may connect; the first that matches decides the labels.
    pub authorizations: Vec<Authorization>,
}

/// The protocol of a port.
#[derive(Debug, Clone, PartialEq)]
pub enum InboundProtocol {
    /// Look at the first octets.
    Detect {
        /// How long to wait for them.
        timeout: Duration,
        /// Routes, if it is HTTP.
        routes: Arc<[InboundRoute]>,
    },
    /// Bytes.
    Opaque,
    /// The application's own TLS, not terminated.
    Tls,
    /// HTTP/1 (declared).
    Http1(Arc<[InboundRoute]>),
    /// HTTP/2 (declared).
    Http2(Arc<[InboundRoute]>),
    /// gRPC (declared).
    Grpc(Arc<[InboundRoute]>),
    /// The control plane said something that makes no sense; answer 500 or close, with the reason.
    Invalid(Arc<str>),
}

/// A route of a port.
#[derive(Debug, Clone, PartialEq)]
pub struct InboundRoute {
    /// The resource (`route_*` labels).
    pub meta: Arc<Meta>,
    /// Hosts; empty: all.
    pub hosts: Vec<HostMatch>,
    /// Who may use it, beside those whom the port's policy authorizes.
    pub authorizations: Vec<Authorization>,
    /// Rules.
    pub rules: Vec<InboundRule>,
}

/// A rule of an [`InboundRoute`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InboundRule {
    /// Any of them; empty: everything.
    pub matches: Vec<HttpMatch>,
    /// In order.
    pub filters: Vec<Filter>,
}

/// Permits some clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    /// Where they are: in the network and in none of its exceptions.
    pub networks: Vec<(IpNet, Vec<IpNet>)>,
    /// How they show who they are.
    pub authentication: Authentication,
    /// Names this authorization.
    pub labels: Arc<AuthzLabels>,
}

/// Names an authorization in metrics (`authz_*`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AuthzLabels {
    /// The resource, or a default.
    pub meta: Arc<Meta>,
}

/// What a client must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing.
    None,
    /// Mesh TLS, with or without an identity.
    Tls,
    /// Mesh TLS with one of these identities.
    Identities {
        /// Exact names.
        names: Vec<String>,
        /// Names that end in `.` and one of these; an empty one matches all.
        suffixes: Vec<String>,
    },
}

/// No authorization permits the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("client {client_ip} with {} is not authorized by {server}", identity.as_deref().unwrap_or("no identity"))]
pub struct Denied {
    /// Where the client is.
    pub client_ip: IpAddr,
    /// Who it is.
    pub identity: Option<String>,
    /// The policy that says so.
    pub server: String,
}

impl Authorization {
    fn permits(&self, client_ip: IpAddr, identity: Option<&str>, tls: bool) -> bool {
        let near = self
            .networks
            .iter()
            .any(|(net, except)| net.contains(&client_ip) && !except.iter().any(|e| e.contains(&client_ip)));
        near && match &self.authentication {
            Authentication::None => true,
            Authentication::Tls => tls,
            Authentication::Identities { names, suffixes } => identity.is_some_and(|id| {
                names.iter().any(|n| n == id)
                    || suffixes.iter().any(|s| {
                        s.is_empty() || id.strip_suffix(s.as_str()).is_some_and(|h| h.len() > 1 && h.ends_with('.'))
                    })
            }),
        }
    }
}

impl InboundPolicy {
    /// A policy that refuses everything with a reason: an HTTP response 500, or a closed connection.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self {
            meta: Meta::default_named("invalid"),
            protocol: InboundProtocol::Invalid(reason.into().into()),
            authorizations: Vec::new(),
        }
    }

    /// Authorizes a connection; `identity` is the client's, if its TLS certificate was verified, `tls` says that the
    /// mesh's TLS was terminated here.
    ///
    /// # Errors
    /// No authorization permits the client.
    pub fn authorize(&self, client_ip: IpAddr, identity: Option<&str>, tls: bool) -> Result<&Arc<AuthzLabels>, Denied> {
        self.permit([].iter(), client_ip, identity, tls)
    }

    /// Authorizes a request on a route: the port's authorizations and the route's.
    ///
    /// # Errors
    /// No authorization permits the client.
    pub fn authorize_route<'a>(
        &'a self,
        route: &'a InboundRoute,
        client_ip: IpAddr,
        identity: Option<&str>,
        tls: bool,
    ) -> Result<&'a Arc<AuthzLabels>, Denied> {
        self.permit(route.authorizations.iter(), client_ip, identity, tls)
    }

    fn permit<'a>(
        &'a self,
        more: std::slice::Iter<'a, Authorization>,
        client_ip: IpAddr,
        identity: Option<&str>,
        tls: bool,
    ) -> Result<&'a Arc<AuthzLabels>, Denied> {
        // A client that reaches a dual-stack listener by IPv4 is an IPv4 client.
        let client_ip = client_ip.to_canonical();
        self.authorizations
            .iter()
            .chain(more)
            .find(|a| a.permits(client_ip, identity, tls))
            .map(|a| &a.labels)
            .ok_or_else(|| Denied {
                client_ip,
                identity: identity.map(str::to_owned),
                server: format!("{} {}", self.meta.kind, self.meta.name),
            })
    }

    /// The HTTP routes, if the port may speak HTTP.
    pub fn routes(&self) -> &[InboundRoute] {
        match &self.protocol {
            InboundProtocol::Detect { routes, .. }
            | InboundProtocol::Http1(routes)
            | InboundProtocol::Http2(routes)
            | InboundProtocol::Grpc(routes) => routes,
            InboundProtocol::Opaque | InboundProtocol::Tls | InboundProtocol::Invalid(_) => &[],
        }
    }

    /// The most specific route of a request; `None` is answered 404.
    pub fn route(&self, request: &Request) -> Option<Matched<'_, InboundRoute, InboundRule>> {
        matching::find_inbound(self.routes(), request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(authentication: Authentication) -> InboundPolicy {
        let net = |n: &str| n.parse::<IpNet>().unwrap();
        InboundPolicy {
            meta: Meta::default_named("test"),
            protocol: InboundProtocol::Opaque,
            authorizations: vec![Authorization {
                networks: vec![(net("10.0.0.0/8"), vec![net("10.9.0.0/16")])],
                authentication,
                labels: Arc::new(AuthzLabels { meta: Meta::default_named("authz") }),
            }],
        }
    }

    const NEAR: &str = "10.1.2.3";

    fn allows(policy: &InboundPolicy, ip: &str, identity: Option<&str>, tls: bool) -> bool {
        policy.authorize(ip.parse().unwrap(), identity, tls).is_ok()
    }

    #[test]
    fn networks_and_their_exceptions() {
        let policy = policy(Authentication::None);
        assert!(allows(&policy, NEAR, None, false));
        assert!(allows(&policy, "::ffff:10.1.2.3", None, false));
        assert!(!allows(&policy, "10.9.1.1", None, false));
        assert!(!allows(&policy, "192.168.0.1", None, false));
    }

    #[test]
    fn tls_and_identities() {
        assert!(!allows(&policy(Authentication::Tls), NEAR, None, false));
        assert!(allows(&policy(Authentication::Tls), NEAR, None, true));
        let some = policy(Authentication::Identities { names: vec!["a.b".into()], suffixes: vec!["c.d".into()] });
        assert!(allows(&some, NEAR, Some("a.b"), true) && allows(&some, NEAR, Some("x.c.d"), true));
        for other in ["x.a.b", "c.d", "xc.d", ".c.d"] {
            assert!(!allows(&some, NEAR, Some(other), true), "{other}");
        }
        assert!(!allows(&some, NEAR, None, true));
        let all = policy(Authentication::Identities { names: vec![], suffixes: vec![String::new()] });
        assert!(allows(&all, NEAR, Some("anybody"), true) && !allows(&all, NEAR, None, true));
    }

    #[test]
    fn nobody_is_authorized_by_an_invalid_policy() {
        let denied = InboundPolicy::invalid("why").authorize(NEAR.parse().unwrap(), Some("a"), true).unwrap_err();
        assert_eq!(denied.to_string(), "client 10.1.2.3 with a is not authorized by default invalid");
    }
}
