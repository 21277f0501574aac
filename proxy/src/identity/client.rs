//! Asking for certificates, forever.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use linkerd2_proxy_api::identity::{CertifyRequest, identity_client::IdentityClient};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::watch,
    time::{interval_at, sleep, timeout},
};

use super::{Credentials, Error, Key, Trust, refresh_in};
use crate::{
    config::IdentityConfig,
    control::{Channel, Connector},
    metrics::{Labels, Metrics, families},
};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const WAITING_LOG: Duration = Duration::from_secs(15);

/// Asks the identity service.
pub(crate) struct Client {
    config: IdentityConfig,
    key: Key,
    trust: Trust,
    connector: Connector,
}

impl Client {
    pub(crate) fn new(config: IdentityConfig, key: Key, trust: Trust, connector: Connector) -> Self {
        Self { config, key, trust, connector }
    }

    /// One attempt. A connection of its own, closed afterwards: the next call may be a day away.
    async fn certify(&self) -> Result<Credentials, Error> {
        let path = &self.config.token_file;
        let token = std::fs::read(path)
            .and_then(|t| match t.trim_ascii() {
                [] => Err(std::io::Error::other("it is empty")),
                token => Ok(token.to_vec()),
            })
            .map_err(|error| Error::Token { path: path.display().to_string(), error })?;
        let addr = self.connector.addr();
        let (send, driver) =
            self.connector.connect().await.map_err(|error| Error::Connect { addr: addr.to_string(), error })?;
        let channel = Channel::fixed(send, addr);
        let mut client = IdentityClient::with_origin(channel.clone(), channel.origin());
        let request = CertifyRequest {
            identity: self.config.name.clone(),
            token,
            certificate_signing_request: self.key.csr.clone(),
        };
        let call = timeout(CALL_TIMEOUT, client.certify(request));
        let answer = tokio::select! {
            answer = call => answer,
            // The call fails by itself when the connection ends; the driver only has to be polled.
            _ = async { let _ = driver.await; std::future::pending::<()>().await } => return Err(Error::Answer("it never came".into())),
        };
        let answer = match answer {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                return Err(Error::Refused { code: status.code(), message: status.message().to_owned() });
            }
            Err(_) => {
                return Err(Error::Refused {
                    code: tonic::Code::DeadlineExceeded,
                    message: format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
                });
            }
        };
        let expires = answer.valid_until.ok_or_else(|| Error::Answer("it has no end of validity".into()))?;
        let expires = SystemTime::try_from(expires).map_err(|e| Error::Answer(e.to_string()))?;
        if expires <= SystemTime::now() {
            return Err(Error::Answer("its certificate has expired already".into()));
        }
        let chain = std::iter::once(answer.leaf_certificate)
            .chain(answer.intermediate_certificates)
            .map(CertificateDer::from)
            .collect();
        self.trust.credentials(&self.config.name, &self.key, chain, expires)
    }
}

/// Keeps the certificate fresh. Never returns.
pub(crate) async fn maintain(client: Client, publish: watch::Sender<Option<Arc<Credentials>>>, metrics: Arc<Metrics>) {
    let none = Labels::none();
    let expiration = [
        metrics.gauge(&families::IDENTITY_CERT_EXPIRATION, &none),
        metrics.gauge(&families::CONTROL_IDENTITY_CERT_EXPIRATION, &none),
    ];
    let refreshes = [
        metrics.counter(&families::IDENTITY_CERT_REFRESH_COUNT, &none),
        metrics.counter(&families::CONTROL_IDENTITY_CERT_REFRESHES, &none),
    ];
    let refreshed = metrics.gauge(&families::CONTROL_IDENTITY_CERT_REFRESH, &none);
    let config = client.config.clone();

    let waiting = {
        let mut published = publish.subscribe();
        let (name, addr) = (config.name.clone(), config.addr.clone());
        async move {
            let began = Instant::now();
            let mut tick = interval_at(tokio::time::Instant::now() + WAITING_LOG, WAITING_LOG);
            loop {
                tokio::select! {
                    _ = published.wait_for(Option::is_some) => return,
                    _ = tick.tick() => tracing::warn!(
                        %name, identity = %addr, seconds = began.elapsed().as_secs(),
                        "still waiting for the first certificate; nothing is proxied until it is here"
                    ),
                }
            }
        }
    };
    tokio::spawn(waiting);

    let mut failures = 0;
    loop {
        match client.certify().await {
            Ok(credentials) => {
                failures = 0;
                let now = SystemTime::now();
                let expires = credentials.expires;
                for gauge in &expiration {
                    gauge.set(epoch_seconds(expires));
                }
                refreshed.set(epoch_seconds(now));
                for counter in &refreshes {
                    counter.incr();
                }
                let wait = refresh_in(expires, now, config.min_refresh, config.max_refresh);
                tracing::info!(
                    name = %config.name, expires_in = ?expires.duration_since(now).unwrap_or_default(), refresh_in = ?wait,
                    "certified"
                );
                publish.send_replace(Some(Arc::new(credentials)));
                sleep(wait).await;
            }
            Err(error) => {
                failures += 1;
                let reason = Labels::new([("reason", error.label())]);
                metrics.counter(&families::CONTROL_IDENTITY_CERT_ERRORS, &reason).incr();
                let expires = publish.borrow().as_ref().map(|c| c.expires);
                let wait = match expires {
                    // Serving goes on with the old certificate; there is no hurry.
                    Some(_) => config.min_refresh.max(client.connector.backoff.min),
                    None => client.connector.backoff.delay(failures),
                };
                match expires {
                    Some(expires) if expires <= SystemTime::now() => {
                        tracing::error!(name = %config.name, %error, failures, "the certificate has expired and cannot be renewed");
                    }
                    _ => tracing::warn!(name = %config.name, %error, failures, retry_in = ?wait, "no certificate"),
                }
                sleep(wait).await;
            }
        }
    }
}

fn epoch_seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
