//! Whose token it is: by the keys that the one-machine cluster signs with, or by a Kubernetes API server.

use super::Refusal;
use super::credentials::Current;
use crate::kubernetes::{Api, Error, Resource};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::Semaphore;
use tonic::Code;
use weft_core::names::IDENTITY_AUDIENCE;
use weft_core::token::{self, Subject};

const TOKEN_REVIEWS: Resource = Resource { api_version: "authentication.k8s.io/v1", plural: "tokenreviews" };
/// Reviews at the same time. When a whole cluster starts, proxies wait for each other instead of the API server for all.
const MAX_REVIEWS: usize = 32;
/// Most octets of a token; real ones have about 1,200.
const MAX_TOKEN: usize = 16 * 1024;

/// Says whose a token is.
#[derive(Debug, Clone)]
pub enum Reviewer {
    /// Checks the signature with the keys of the credentials.
    Keys,
    /// Asks the API server.
    Api(Api, Arc<Semaphore>),
}

impl Reviewer {
    /// A reviewer that asks this API server.
    pub fn api(api: Api) -> Reviewer {
        Reviewer::Api(api, Arc::new(Semaphore::new(MAX_REVIEWS)))
    }

    /// Whose token it is, if it is one for the identity component.
    ///
    /// # Errors
    /// What is wrong with it, or why that cannot be found out.
    pub async fn review(&self, token: &str, current: &Current, now: SystemTime) -> Result<Subject, Refusal> {
        match self {
            Reviewer::Keys => {
                let none = || Refusal::new(Code::Unavailable, "no_token_keys", "there are no token keys yet");
                let keys = current.keys.as_ref().ok_or_else(none)?;
                keys.verify(token, IDENTITY_AUDIENCE, now).map_err(|error| refused(&error))
            }
            Reviewer::Api(api, slots) => {
                if token.len() > MAX_TOKEN || token.chars().any(|c| c.is_control() || c.is_whitespace()) {
                    return Err(refused(&token::Error::Malformed));
                }
                // The semaphore is never closed.
                let _slot = slots.acquire().await.map_err(|_| unavailable("no more reviews are made"))?;
                let review = json!({
                    "apiVersion": TOKEN_REVIEWS.api_version,
                    "kind": "TokenReview",
                    "spec": { "token": token, "audiences": [IDENTITY_AUDIENCE] },
                });
                match api.create(&TOKEN_REVIEWS.all(), &review).await {
                    Ok(answer) => judge(&answer),
                    Err(error) => {
                        // An error of the server's may repeat what it was asked.
                        let said = match &error {
                            Error::Status { code, reason, .. } => format!("the API server answers {code} {reason}"),
                            other => other.to_string(),
                        };
                        Err(unavailable(&format!("the token cannot be reviewed: {said}")))
                    }
                }
            }
        }
    }
}

fn unavailable(message: &str) -> Refusal {
    Refusal::new(Code::Unavailable, "token_review", message)
}

/// What the answer to a review says. What it does not say clearly is refused.
fn judge(answer: &Value) -> Result<Subject, Refusal> {
    let status = answer.get("status").unwrap_or(&Value::Null);
    if answer.get("kind").and_then(Value::as_str) != Some("TokenReview") || !status.is_object() {
        return Err(unavailable("the token cannot be reviewed: the API server's answer is no review"));
    }
    let refuse = |code, reason, message: &str| Err(Refusal::new(code, reason, message));
    if status.get("authenticated").and_then(Value::as_bool) != Some(true) {
        return refuse(
            Code::FailedPrecondition,
            "token_refused",
            "the API server does not accept the token for the audience identity.l5d.io",
        );
    }
    // A server that knows no audiences accepts tokens for any, and then says none: such a token may have been made for
    // somebody else.
    let audiences = status.get("audiences").and_then(Value::as_array);
    if !audiences.into_iter().flatten().any(|audience| audience == IDENTITY_AUDIENCE) {
        return Err(refused(&token::Error::Audience));
    }
    let user = status.get("user").unwrap_or(&Value::Null);
    let name = user.get("username").and_then(Value::as_str).unwrap_or_default();
    let mut parts = name.split(':');
    let (Some("system"), Some("serviceaccount"), Some(namespace), Some(account), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(refused(&token::Error::Subject));
    };
    if namespace.is_empty() || account.is_empty() {
        return Err(refused(&token::Error::Subject));
    }
    let pod = user.get("extra").and_then(|extra| extra.get("authentication.kubernetes.io/pod-name"));
    Ok(Subject {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        pod: pod.and_then(|names| names.get(0)).and_then(Value::as_str).map(str::to_owned),
    })
}

/// The refusal that goes with an error of a token.
pub fn refused(error: &token::Error) -> Refusal {
    let (code, reason) = match error {
        token::Error::Malformed => (Code::InvalidArgument, "token_malformed"),
        token::Error::Subject => (Code::InvalidArgument, "token_subject"),
        token::Error::Signature => (Code::FailedPrecondition, "token_signature"),
        token::Error::Expired => (Code::FailedPrecondition, "token_expired"),
        token::Error::NotYetValid => (Code::FailedPrecondition, "token_not_yet_valid"),
        token::Error::Audience => (Code::FailedPrecondition, "token_audience"),
        token::Error::Issuer => (Code::FailedPrecondition, "token_issuer"),
        token::Error::Key(_) => (Code::Internal, "token_key"),
    };
    Refusal::new(code, reason, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(status: Value) -> Value {
        json!({ "kind": "TokenReview", "status": status })
    }

    #[test]
    fn only_a_clear_yes_is_one() {
        let good = json!({
            "authenticated": true,
            "audiences": ["identity.l5d.io"],
            "user": {
                "username": "system:serviceaccount:shop:web",
                "extra": { "authentication.kubernetes.io/pod-name": ["web-1"] },
            },
        });
        let subject = judge(&review(good.clone())).unwrap();
        assert_eq!(
            (subject.username().as_str(), subject.pod.as_deref()),
            ("system:serviceaccount:shop:web", Some("web-1"))
        );
        let with = |key: &str, value: Value| {
            let mut status = good.clone();
            status[key] = value;
            judge(&review(status)).unwrap_err().reason
        };
        assert_eq!(with("authenticated", json!(false)), "token_refused");
        assert_eq!(with("authenticated", json!("true")), "token_refused");
        assert_eq!(with("audiences", json!([])), "token_audience");
        assert_eq!(with("audiences", json!(["api"])), "token_audience");
        assert_eq!(with("audiences", Value::Null), "token_audience");
        for name in ["admin", "system:serviceaccount:shop", "system:serviceaccount::web", "system:node:a:b", ""] {
            assert_eq!(with("user", json!({ "username": name })), "token_subject", "{name}");
        }
        for nonsense in [Value::Null, json!({}), json!({ "kind": "Status", "status": "Failure" }), review(Value::Null)]
        {
            assert_eq!(judge(&nonsense).unwrap_err().code, Code::Unavailable, "{nonsense}");
        }
    }
}
