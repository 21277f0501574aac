//! Which of several replicas writes: leader election by a Lease, as other controllers of Kubernetes do it.
//!
//! Clocks are not compared: a lease has run out when it was not seen to change for as long as it is to last. A leader
//! that cannot renew gives up well before others may take over.

use super::{Api, Error, Resource};
use crate::drain::Drain;
use crate::source::kubernetes::spread;
use http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::watch;
use tokio::time::Instant;

const LEASES: Resource = Resource { api_version: "coordination.k8s.io/v1", plural: "leases" };

/// What is to be led, and by whom.
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
    /// Who we are, unlike all others: the pod's name.
    pub identity: String,
    /// How long a leader that is not heard of stays one.
    pub duration: Duration,
}

struct Election {
    api: Api,
    options: Options,
    leading: watch::Sender<bool>,
    /// Holder and time of renewal as last seen, and since when.
    seen: Option<(Value, Value, Instant)>,
    renewed: Option<Instant>,
}

/// What tells whether we lead, and what takes part in the election until the drain.
pub fn elect(
    api: Api,
    options: Options,
    drain: Drain,
) -> (watch::Receiver<bool>, impl Future<Output = ()> + Send + 'static) {
    let (leading, told) = watch::channel(false);
    let mut election = Election { api, options, leading, seen: None, renewed: None };
    let part = async move {
        let pause = election.options.duration / 5;
        loop {
            election.round().await;
            tokio::select! {
                () = tokio::time::sleep(spread(pause)) => {}
                () = drain.signaled() => break,
            }
        }
        election.release().await;
    };
    (told, part)
}

impl Election {
    async fn round(&mut self) {
        // No longer than a leader may be silent.
        let limit = self.options.duration / 3;
        let result = tokio::time::timeout(limit, self.try_lead()).await.unwrap_or(Err(Error::Timeout(limit)));
        let leads = match result {
            Ok(leads) => leads,
            Err(error) => {
                tracing::debug!(lease = self.options.name, %error, "cannot look after the lease");
                self.renewed.is_some_and(|renewed| renewed.elapsed() < self.options.duration * 2 / 3)
            }
        };
        if !leads {
            self.renewed = None;
        }
        self.tell(leads);
    }

    fn tell(&self, leads: bool) {
        self.leading.send_if_modified(|leading| {
            let changed = *leading != leads;
            if changed {
                tracing::info!(lease = self.options.name, identity = self.options.identity, leads, "leadership");
            }
            *leading = leads;
            changed
        });
    }

    fn path(&self) -> String {
        LEASES.within(&self.options.namespace)
    }

    async fn try_lead(&mut self) -> Result<bool, Error> {
        let started = Instant::now();
        let path = format!("{}/{}", self.path(), self.options.name);
        let lease = match self.api.get(&path).await {
            Ok(lease) => lease,
            Err(error) if error.is(StatusCode::NOT_FOUND) => {
                let mut lease = json!({
                    "apiVersion": LEASES.api_version,
                    "kind": "Lease",
                    "metadata": { "name": self.options.name, "namespace": self.options.namespace },
                });
                self.sign(&mut lease, true);
                return match self.api.create(&self.path(), &lease).await {
                    Ok(_) => Ok(self.led(started)),
                    Err(error) if error.is(StatusCode::CONFLICT) => Ok(false),
                    Err(error) => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        if lease.get("kind").and_then(Value::as_str) != Some("Lease") {
            return Err(Error::Malformed("it is no Lease".into()));
        }
        let field = |name: &str| lease.pointer(&format!("/spec/{name}")).cloned().unwrap_or_default();
        let (holder, renewal) = (field("holderIdentity"), field("renewTime"));
        let ours = holder.as_str() == Some(&self.options.identity);
        let same = self.seen.as_ref().is_some_and(|(h, r, _)| *h == holder && *r == renewal);
        if !same {
            self.seen = Some((holder.clone(), renewal, started));
        }
        let since = self.seen.as_ref().map_or(started, |(_, _, since)| *since);
        let lasts = field("leaseDurationSeconds").as_u64().map_or(self.options.duration, Duration::from_secs);
        let free = holder.as_str().is_none_or(str::is_empty);
        if !ours && !free && since.elapsed() < lasts {
            return Ok(false);
        }
        let mut lease = lease;
        self.sign(&mut lease, !ours);
        match self.api.replace(&path, &lease).await {
            Ok(_) => Ok(self.led(started)),
            // Somebody was faster.
            Err(error) if error.is(StatusCode::CONFLICT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Counted from before the request, as the others count from after it.
    fn led(&mut self, since: Instant) -> bool {
        self.renewed = Some(since);
        true
    }

    fn sign(&self, lease: &mut Value, taken: bool) {
        let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
        // Only a year beyond 9999 could not be written.
        let now = OffsetDateTime::now_utc().format(&format).unwrap_or_default();
        if !lease.get("spec").is_some_and(Value::is_object) {
            lease["spec"] = json!({});
        }
        let spec = &mut lease["spec"];
        spec["holderIdentity"] = self.options.identity.as_str().into();
        spec["leaseDurationSeconds"] = self.options.duration.as_secs().max(1).into();
        spec["renewTime"] = now.as_str().into();
        if taken {
            let before = spec.get("leaseTransitions").and_then(Value::as_u64);
            spec["leaseTransitions"] = before.map_or(0, |n| n.saturating_add(1)).into();
            spec["acquireTime"] = now.into();
        }
    }

    /// Lets another take over at once.
    async fn release(&mut self) {
        if self.renewed.is_none() {
            return;
        }
        self.tell(false);
        let path = format!("{}/{}", self.path(), self.options.name);
        let released = async {
            let mut lease = self.api.get(&path).await?;
            let holder = lease.pointer("/spec/holderIdentity").and_then(Value::as_str);
            if holder == Some(self.options.identity.as_str()) {
                lease["spec"]["holderIdentity"] = "".into();
                self.api.replace(&path, &lease).await?;
            }
            Ok::<_, Error>(())
        };
        let limit = self.options.duration / 3;
        match tokio::time::timeout(limit, released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the lease is not released; it runs out"),
            Err(_) => tracing::debug!("the lease is not released; it runs out"),
        }
    }
}
