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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::{Endpoint, Meta, Queue};

    fn policy() -> Arc<OutboundPolicy> {
        let endpoint = Arc::new(Endpoint::plain("10.0.0.1:80".parse().unwrap()));
        Arc::new(OutboundPolicy::forward(
            Meta::default_named("forward"),
            endpoint,
            Queue::default(),
            Duration::from_secs(10),
        ))
    }

    #[test]
    fn a_plain_profile_changes_nothing() {
        let policy = policy();
        assert!(Arc::ptr_eq(&merge(policy.clone(), Some(&Profile::default()), None), &policy));
        assert!(Arc::ptr_eq(&merge(policy.clone(), None, None), &policy));
    }

    #[test]
    fn an_opaque_profile_makes_every_protocol_opaque() {
        let opaque = Profile { opaque: true, ..Profile::default() };
        let policy = policy();
        let OutboundProtocol::Detect { http1, .. } = policy.protocol.clone() else { panic!() };
        let declared =
            Arc::new(OutboundPolicy { protocol: OutboundProtocol::Http1(http1), ..OutboundPolicy::clone(&policy) });
        for policy in [policy, declared] {
            let merged = merge(policy, Some(&opaque), None);
            let OutboundProtocol::Opaque(routes) = &merged.protocol else { panic!("{merged:?}") };
            assert_eq!(routes.find(None).unwrap().backends.backends().count(), 1);
        }
    }

    #[test]
    fn overrides_replace_backends() {
        let merged = merge(policy(), None, Some(&Distribution::Empty));
        let OutboundProtocol::Detect { http1, http2, opaque, .. } = &merged.protocol else { panic!("{merged:?}") };
        for routes in [http1, http2] {
            assert_eq!(routes.routes[0].rules[0].backends, Distribution::Empty);
        }
        assert_eq!(opaque.routes[0].backends, Distribution::Empty);
    }
}
