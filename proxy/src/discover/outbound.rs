//! What both services say about one outbound address, followed and put together.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use linkerd2_proxy_api::{
    destination::{GetDestination, destination_client::DestinationClient},
    outbound::{TrafficSpec, outbound_policies_client::OutboundPoliciesClient, traffic_spec},
};
use tokio::time::sleep;
use tonic::Code;

use super::{Entry, Inner, Phase, Standing, describe, idle, is_refusal, lock, merge, publish};
use crate::{
    config::Config,
    control::{Next, follow, translate},
    policy::{Distribution, Endpoint, Meta, OutboundPolicy, Profile, Queue, contains},
};

/// What both services said about an outbound address.
#[derive(Default)]
struct Sides {
    policy: Option<Arc<OutboundPolicy>>,
    /// The control plane has no policy for the address.
    no_policy: bool,
    refused: Option<String>,
    trouble: Option<String>,
    profile: Option<Arc<Profile>>,
    overrides: Option<Distribution>,
    profile_done: bool,
}

/// Follows policy and profile of an address until nobody wants to know them any more.
pub(super) async fn keep(inner: Arc<Inner>, dst: SocketAddr, entry: Entry) {
    let asks_profile = contains(&inner.config.destination.profile_networks, dst.ip());
    let sides = Mutex::new(Sides { profile_done: !asks_profile, ..Sides::default() });
    let (policy_standing, profile_standing) = (Standing::default(), Standing::default());
    let update = |change: &mut dyn FnMut(&mut Sides)| {
        let mut sides = lock(&sides);
        change(&mut sides);
        settle(&inner.config, dst, &sides, &entry);
    };

    let policies = async {
        let spec = TrafficSpec {
            source_workload: inner.config.policy.workload.clone(),
            target: Some(traffic_spec::Target::Addr(dst.into())),
        };
        let what = format!("outbound policy of {dst}");
        follow(
            &inner.policy,
            &what,
            |channel| {
                let (origin, spec) = (channel.origin(), spec.clone());
                async move { OutboundPoliciesClient::with_origin(channel, origin).watch(spec).await }
            },
            |event| {
                match event {
                    Ok((_, message)) => {
                        policy_standing.answered();
                        match translate::outbound_policy(message) {
                            Ok(policy) => update(&mut |s| {
                                s.policy = Some(Arc::new(policy.clone()));
                                (s.no_policy, s.refused) = (false, None);
                            }),
                            Err(error) => {
                                tracing::warn!(%dst, %error, "refusing an outbound policy");
                                update(&mut |s| {
                                    let invalid = || Arc::new(OutboundPolicy::invalid(error.to_string()));
                                    s.policy.get_or_insert_with(invalid);
                                });
                            }
                        }
                    }
                    Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => {
                        policy_standing.answered();
                        update(&mut |s| (s.policy, s.no_policy, s.refused) = (None, true, None));
                        return Next::Rest;
                    }
                    Err(status) if is_refusal(status) => {
                        let text = describe(status);
                        update(&mut |s| s.refused = Some(text.clone()));
                        return Next::Rest;
                    }
                    Err(status) => {
                        policy_standing.failed();
                        let text = describe(status);
                        update(&mut |s| s.trouble = Some(text.clone()));
                    }
                }
                Next::Continue
            },
        )
        .await;
    };

    let profiles = async {
        if !asks_profile {
            return std::future::pending().await;
        }
        let request = GetDestination {
            scheme: String::new(),
            path: dst.to_string(),
            context_token: inner.config.destination.context.clone(),
        };
        let what = format!("profile of {dst}");
        follow(
            &inner.destination,
            &what,
            |channel| {
                let (origin, request) = (channel.origin(), request.clone());
                async move { DestinationClient::with_origin(channel, origin).get_profile(request).await }
            },
            |event| {
                match event {
                    Ok((_, message)) => {
                        profile_standing.answered();
                        let known = translate::profile(&message).and_then(|p| Ok((p, translate::overrides(&message)?)));
                        match known {
                            Ok((profile, overrides)) => update(&mut |s| {
                                s.profile = Some(Arc::new(profile.clone()));
                                s.overrides.clone_from(&overrides);
                                s.profile_done = true;
                            }),
                            Err(error) => {
                                tracing::warn!(%dst, %error, "refusing a profile; what was known stays");
                                update(&mut |s| s.profile_done = true);
                            }
                        }
                    }
                    Err(status) => {
                        tracing::debug!(%dst, code = ?status.code(), message = status.message(), "no profile");
                        // A failure is no answer: the address may be of a meshed pod, which must not get plaintext
                        // because of it. How long an answer is waited for is limited below.
                        if status.code() == Code::NotFound || is_refusal(status) {
                            profile_standing.answered();
                            update(&mut |s| s.profile_done = true);
                            return Next::Rest;
                        }
                        profile_standing.failed();
                    }
                }
                Next::Continue
            },
        )
        .await;
    };

    // A connection does not wait long for a profile: most addresses have nothing in it.
    let patience = async {
        sleep(inner.config.destination.profile_initial_timeout).await;
        update(&mut |s| s.profile_done = true);
        std::future::pending::<()>().await;
    };

    let closed = || -> BoxFuture<'_, ()> {
        Box::pin(async {
            entry.phase.closed().await;
            entry.policy.closed().await;
            entry.profile.closed().await;
        })
    };
    let idle = idle(
        &inner.outbound,
        &dst,
        inner.config.outbound.discovery_idle,
        closed,
        || entry.is_idle(),
        || policy_standing.is_needed() || profile_standing.is_needed(),
    );
    tokio::select! {
        () = policies => {}
        () = profiles => {}
        () = patience => {}
        () = idle => {}
    }
}

/// Publishes what both sides together mean.
fn settle(config: &Config, dst: SocketAddr, sides: &Sides, entry: &Entry) {
    let profile = sides.profile.clone();
    publish(&entry.profile, profile.clone());
    let raw = match &sides.policy {
        Some(policy) => Some(policy.clone()),
        None if sides.no_policy => {
            let endpoint = profile.as_ref().and_then(|p| p.endpoint.clone());
            let endpoint = endpoint.unwrap_or_else(|| Arc::new(Endpoint::plain(dst)));
            let queue = Queue { capacity: config.outbound.http_queue, failfast: config.outbound.http_failfast };
            let meta = Meta::default_named("forward");
            Some(Arc::new(OutboundPolicy::forward(meta, endpoint, queue, config.outbound.detect_timeout)))
        }
        None => None,
    };
    let phase = match raw {
        Some(raw) if sides.profile_done => {
            publish(&entry.policy, merge::merge(raw, profile.as_deref(), sides.overrides.as_ref()));
            Phase::Ready
        }
        Some(_) => Phase::Pending(Some("waiting for the profile".into())),
        // A policy that was good stays in force whatever happens later; there is none here.
        None => match &sides.refused {
            Some(status) => Phase::Refused(status.clone()),
            None => Phase::Pending(sides.trouble.clone()),
        },
    };
    publish(&entry.phase, phase);
}
