//! The endpoints of one service, followed.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use linkerd2_proxy_api::destination::{
    GetDestination, destination_client::DestinationClient, update::Update as Change,
};
use tokio::sync::watch;
use tonic::Code;

use super::{Inner, Standing, idle, is_refusal, publish};
use crate::{
    control::{Next, follow, translate},
    policy::{Endpoint, Endpoints},
};

/// Follows the endpoints of a service until nobody wants to know them any more.
pub(super) async fn keep(inner: Arc<Inner>, path: Arc<str>, tx: watch::Sender<Arc<Endpoints>>) {
    let what = format!("endpoints of {path}");
    let request = GetDestination {
        scheme: "k8s".into(),
        path: path.to_string(),
        context_token: inner.config.destination.context.clone(),
    };
    // Keyed by address: a later message about an address replaces an earlier one.
    let mut known: BTreeMap<SocketAddr, Arc<Endpoint>> = BTreeMap::new();
    // What a new stream says first replaces all that, as soon as it makes sense.
    let mut anew = true;
    let standing = Standing::default();
    let watch = follow(
        &inner.destination,
        &what,
        |channel| {
            let (origin, request) = (channel.origin(), request.clone());
            async move { DestinationClient::with_origin(channel, origin).get(request).await }
        },
        |event| {
            match event {
                Ok((first, message)) => {
                    standing.answered();
                    anew |= first;
                    if let Some(state) = apply(&path, &mut known, anew, message.update) {
                        anew = false;
                        publish(&tx, Arc::new(state));
                    }
                }
                Err(status) if status.code() == Code::NotFound || is_refusal(status) => {
                    standing.answered();
                    known.clear();
                    publish(&tx, Arc::new(Endpoints::DoesNotExist));
                    return Next::Rest;
                }
                Err(_) => standing.failed(),
            }
            Next::Continue
        },
    );
    let idle = idle(
        &inner.endpoints,
        &path,
        inner.config.outbound.discovery_idle,
        || Box::pin(tx.closed()),
        || tx.receiver_count() == 0,
        || standing.is_needed(),
    );
    tokio::select! {
        () = watch => {}
        () = idle => {}
    }
}

/// Applies an update, `anew` or to what is known; `None` when it makes no sense and nothing changes.
fn apply(
    path: &str,
    known: &mut BTreeMap<SocketAddr, Arc<Endpoint>>,
    anew: bool,
    change: Option<Change>,
) -> Option<Endpoints> {
    let Some(change) = change else {
        tracing::warn!(path, "refusing an empty update of endpoints");
        return None;
    };
    match change {
        Change::Add(set) => {
            let mut fresh = Vec::with_capacity(set.addrs.len());
            let total = set.addrs.len();
            for addr in set.addrs {
                match translate::endpoint(addr, &set.metric_labels) {
                    Ok(endpoint) => fresh.push(Arc::new(endpoint)),
                    Err(error) => tracing::warn!(path, %error, "refusing an endpoint"),
                }
            }
            // A set without any usable endpoint tells nothing that should replace what works.
            if fresh.is_empty() && total > 0 {
                return None;
            }
            if anew {
                known.clear();
            }
            known.extend(fresh.into_iter().map(|e| (e.addr, e)));
        }
        Change::Remove(_) if anew => {
            tracing::warn!(path, "refusing to remove endpoints from nothing");
            return None;
        }
        Change::Remove(set) => {
            for addr in set.addrs {
                match translate::socket_addr(addr) {
                    Ok(addr) => drop(known.remove(&addr)),
                    Err(error) => tracing::warn!(path, %error, "refusing to remove an endpoint"),
                }
            }
        }
        Change::NoEndpoints(none) => {
            known.clear();
            if !none.exists {
                return Some(Endpoints::DoesNotExist);
            }
        }
    }
    Some(Endpoints::Some(known.values().cloned().collect()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use linkerd2_proxy_api::destination::{AddrSet, NoEndpoints, WeightedAddr, WeightedAddrSet};

    use super::*;

    fn addr(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn add(lasts: &[u8]) -> Option<Change> {
        let addrs = lasts
            .iter()
            .map(|l| WeightedAddr { addr: Some(addr(*l).into()), weight: 1, ..WeightedAddr::default() })
            .collect();
        Some(Change::Add(WeightedAddrSet { addrs, metric_labels: HashMap::new() }))
    }

    fn addrs(state: Option<Endpoints>) -> Option<Vec<SocketAddr>> {
        match state? {
            Endpoints::Some(all) => Some(all.iter().map(|e| e.addr).collect()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn updates_change_the_set() {
        let mut known = BTreeMap::new();
        let mut change = |first, change| apply("test", &mut known, first, change);
        assert_eq!(addrs(change(true, add(&[2, 1, 1]))), Some(vec![addr(1), addr(2)]), "each address once, in order");
        assert_eq!(addrs(change(false, add(&[3]))), Some(vec![addr(1), addr(2), addr(3)]));
        let remove = Some(Change::Remove(AddrSet { addrs: vec![addr(1).into(), addr(9).into()] }));
        assert_eq!(addrs(change(false, remove)), Some(vec![addr(2), addr(3)]));
        assert_eq!(addrs(change(true, add(&[4]))), Some(vec![addr(4)]), "a new stream begins anew");
        let empty = Some(Change::NoEndpoints(NoEndpoints { exists: true }));
        assert_eq!(addrs(change(false, empty)), Some(vec![]));
        let gone = Some(Change::NoEndpoints(NoEndpoints { exists: false }));
        assert_eq!(change(false, gone), Some(Endpoints::DoesNotExist));
    }

    #[test]
    fn nonsense_changes_nothing() {
        let mut known = BTreeMap::new();
        apply("test", &mut known, true, add(&[1]));
        assert_eq!(apply("test", &mut known, false, None), None);
        let remove = Change::Remove(AddrSet { addrs: vec![addr(1).into()] });
        assert_eq!(apply("test", &mut known, true, Some(remove)), None, "nothing was said yet that could be removed");
        let wrong = || WeightedAddr { addr: None, ..WeightedAddr::default() };
        let set = Change::Add(WeightedAddrSet { addrs: vec![wrong()], metric_labels: HashMap::new() });
        assert_eq!(apply("test", &mut known, true, Some(set)), None);
        assert_eq!(known.len(), 1);
        // An identity that cannot be understood never becomes plaintext.
        let mut odd = WeightedAddr { addr: Some(addr(2).into()), ..WeightedAddr::default() };
        odd.tls_identity = Some(linkerd2_proxy_api::destination::TlsIdentity::default());
        let Some(Change::Add(mut set)) = add(&[3]) else { panic!() };
        set.addrs.push(odd);
        assert_eq!(addrs(apply("test", &mut known, false, Some(Change::Add(set)))), Some(vec![addr(1), addr(3)]));
    }
}
