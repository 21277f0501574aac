//! What a profile changes about a policy.
//!
//! The policy decides, except that a profile can make an address opaque, and can put other backends in the place of the
//! policy's (a traffic split).

use std::sync::Arc;

use crate::policy::{Distribution, HttpRoutes, OpaqueRoute, OpaqueRoutes, OutboundPolicy, OutboundProtocol, Profile};

/// The policy as the profile changes it.
pub(super) fn merge(
    policy: Arc<OutboundPolicy>,
    profile: Option<&Profile>,
    overrides: Option<&Distribution>,
) -> Arc<OutboundPolicy> {
    let opaque = profile.is_some_and(|p| p.opaque);
    if !opaque && overrides.is_none() {
        return policy;
    }
    let mut protocol = policy.protocol.clone();
    if let Some(backends) = overrides {
        protocol = with_backends(protocol, backends);
    }
    if opaque {
        protocol = make_opaque(protocol);
    }
    Arc::new(OutboundPolicy { meta: policy.meta.clone(), protocol })
}

fn with_backends(protocol: OutboundProtocol, backends: &Distribution) -> OutboundProtocol {
    let http = |routes: Arc<HttpRoutes>| {
        let mut routes = HttpRoutes::clone(&routes);
        for rule in routes.routes.iter_mut().flat_map(|r| &mut r.rules) {
            rule.backends = backends.clone();
        }
        Arc::new(routes)
    };
    let opaque = |routes: Arc<OpaqueRoutes>| {
        let routes = routes.routes.iter().map(|r| OpaqueRoute { backends: backends.clone(), ..r.clone() }).collect();
        Arc::new(OpaqueRoutes { routes })
    };
    match protocol {
        OutboundProtocol::Detect { timeout, opaque: o, http1, http2 } => {
            OutboundProtocol::Detect { timeout, opaque: opaque(o), http1: http(http1), http2: http(http2) }
        }
        OutboundProtocol::Opaque(o) => OutboundProtocol::Opaque(opaque(o)),
        OutboundProtocol::Http1(h) => OutboundProtocol::Http1(http(h)),
        OutboundProtocol::Http2(h) => OutboundProtocol::Http2(http(h)),
        OutboundProtocol::Grpc(h) => OutboundProtocol::Grpc(http(h)),
        // A split is of HTTP or opaque traffic; TLS routes keep their backends.
        other @ (OutboundProtocol::Tls(_) | OutboundProtocol::Invalid(_)) => other,
    }
}

fn make_opaque(protocol: OutboundProtocol) -> OutboundProtocol {
    let from_http = |routes: &HttpRoutes| {
        let routes = routes
            .routes
            .iter()
            .filter_map(|r| {
                let backends = r.rules.first()?.backends.clone();
                Some(OpaqueRoute { meta: r.meta.clone(), snis: Vec::new(), refuse: None, backends })
            })
            .take(1)
            .collect();
        OutboundProtocol::Opaque(Arc::new(OpaqueRoutes { routes }))
    };
    match protocol {
        OutboundProtocol::Detect { opaque, .. } => OutboundProtocol::Opaque(opaque),
        OutboundProtocol::Http1(h) | OutboundProtocol::Http2(h) | OutboundProtocol::Grpc(h) => from_http(&h),
        other @ (OutboundProtocol::Opaque(_) | OutboundProtocol::Tls(_) | OutboundProtocol::Invalid(_)) => other,
    }
}
