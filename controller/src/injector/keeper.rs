//! Keeps the webhooks' certificate: every replica shows what the Secret holds, and the one that leads renews it and tells
//! the API server who vouches for it.

use super::certificate::Bundle;
use crate::drain::Drain;
use crate::kubernetes::{Api, Error, Resource};
use crate::source::kubernetes::spread;
use crate::telemetry::Telemetry;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::StatusCode;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;
use weft_core::names;

const SECRETS: Resource = Resource { api_version: "v1", plural: "secrets" };
const CONFIGURATIONS: [(&str, &str); 2] = [
    ("mutatingwebhookconfigurations", names::INJECTOR_WEBHOOK),
    ("validatingwebhookconfigurations", names::VALIDATOR_WEBHOOK),
];
/// How often the Secret is looked at. What is new is not shown by all replicas before this time has passed.
const PAUSE: Duration = Duration::from_secs(10);

/// What TLS connections show. Cloning is cheap and refers to the same.
#[derive(Debug, Clone, Default)]
pub struct Shown(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl Shown {
    /// Whether there is something to show.
    pub fn is_there(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Shows this from now on; says whether it is new.
    fn show(&self, bundle: &Bundle) -> bool {
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let new = shown.as_ref().is_none_or(|shown| shown.cert != bundle.certified.cert);
        if new {
            *shown = Some(bundle.certified.clone());
        }
        new
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Keeper {
    /// The API server.
    pub api: Api,
    /// Namespace of the control plane.
    pub namespace: String,
    /// How long a certificate is to be valid.
    pub lifetime: Duration,
    /// What connections show.
    pub shown: Shown,
    /// Whether this replica leads.
    pub leading: watch::Receiver<bool>,
    /// Where figures go.
    pub telemetry: Telemetry,
}

impl Keeper {
    /// Keeps until the drain.
    pub async fn run(mut self, drain: Drain) {
        let pause = PAUSE.min(self.lifetime / 20).max(Duration::from_millis(100));
        let mut complained = false;
        loop {
            let leads = *self.leading.borrow_and_update();
            match self.round(leads).await {
                Ok(()) => complained = false,
                Err(problem) => {
                    if !complained {
                        tracing::warn!(problem, "cannot look after the certificate of the webhooks");
                    }
                    complained = true;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(spread(pause)) => {}
                // An election that has ended leaves this replica as it is.
                Ok(()) = self.leading.changed() => {}
                () = drain.signaled() => return,
            }
        }
    }

    fn secret_path(&self) -> String {
        format!("{}/{}", SECRETS.within(&self.namespace), names::INJECTOR_TLS_SECRET)
    }

    async fn round(&self, leads: bool) -> Result<(), String> {
        let secret = match self.api.get(&self.secret_path()).await {
            Ok(secret) if secret.get("kind").and_then(Value::as_str) == Some("Secret") => Some(secret),
            Ok(_) => return Err("the API server's answer is no Secret".to_owned()),
            Err(error) if error.is(StatusCode::NOT_FOUND) => None,
            Err(error) => return Err(error.to_string()),
        };
        let found = secret.as_ref().map(Bundle::from_secret).transpose();
        if let Ok(Some(bundle)) = &found {
            self.show(bundle);
        }
        if !leads {
            return found.map(|_| ()).map_err(|problem| format!("Secret {}: {problem}", names::INJECTOR_TLS_SECRET));
        }
        let now = OffsetDateTime::now_utc();
        // Beyond what the type holds means without end, in effect.
        let lifetime = time::Duration::try_from(self.lifetime).unwrap_or(time::Duration::days(36_500));
        let found = found.ok().flatten();
        if let Some(bundle) = found.as_ref().filter(|bundle| bundle.serves(&self.namespace, lifetime, now)) {
            return self.vouch(&bundle.authorities_pem).await.map_err(|error| error.to_string());
        }
        let older = found.map(|bundle| bundle.newest_authority(now)).unwrap_or_default();
        let bundle = Bundle::generate(&self.namespace, lifetime, &older, now)?;
        // First the API server must know who vouches for it.
        self.vouch(&bundle.authorities_pem).await.map_err(|error| error.to_string())?;
        let object = bundle.to_secret(&self.namespace, secret.as_ref());
        let written = match secret {
            Some(_) => self.api.replace(&self.secret_path(), &object).await,
            None => self.api.create(&SECRETS.within(&self.namespace), &object).await,
        };
        match written {
            Ok(_) => {
                tracing::info!(until = %bundle.not_after, "a new certificate of the webhooks");
                self.telemetry
                    .counter("weft_injector_certificates_total", "Certificates of the webhooks that were made", &[])
                    .inc();
                self.show(&bundle);
                Ok(())
            }
            // Somebody else wrote: what that was is seen in the next round.
            Err(error) if error.is(StatusCode::CONFLICT) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn show(&self, bundle: &Bundle) {
        if self.shown.show(bundle) {
            tracing::info!(until = %bundle.not_after, "certificate of the webhooks in use");
            self.telemetry
                .gauge(
                    "weft_injector_certificate_expiration_timestamp_seconds",
                    "When the certificate of the webhooks ends, since the UNIX epoch, in seconds",
                    &[],
                )
                .set(bundle.not_after.unix_timestamp());
        }
    }

    /// Writes the authorities into the webhooks' configurations, where they are not there yet. A configuration that is
    /// missing is not for us to make.
    async fn vouch(&self, authorities_pem: &str) -> Result<(), Error> {
        let wanted = BASE64.encode(authorities_pem);
        for (plural, name) in CONFIGURATIONS {
            let path = format!("{}/{name}", Resource { api_version: "admissionregistration.k8s.io/v1", plural }.all());
            let configuration = match self.api.get(&path).await {
                Ok(configuration) => configuration,
                Err(error) if error.is(StatusCode::NOT_FOUND) => {
                    tracing::debug!(name, "there is no such webhook configuration");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let webhooks = configuration.get("webhooks").and_then(Value::as_array);
            let mut operations = Vec::new();
            for (at, webhook) in webhooks.into_iter().flatten().enumerate() {
                let client = webhook.get("clientConfig").filter(|client| client.get("service").is_some());
                if client.is_some_and(|client| client.get("caBundle").and_then(Value::as_str) != Some(&wanted)) {
                    let path = format!("/webhooks/{at}/clientConfig/caBundle");
                    // Not into another webhook, should the list have changed meanwhile.
                    operations.push(
                        json!({ "op": "test", "path": format!("/webhooks/{at}/name"), "value": webhook.get("name") }),
                    );
                    operations.push(json!({ "op": "add", "path": path, "value": wanted }));
                }
            }
            if !operations.is_empty() {
                self.api.patch(&path, &operations.into()).await?;
                tracing::info!(name, "the API server knows who vouches for the webhooks");
            }
        }
        Ok(())
    }
}
