//! The questions of an API server and the answers of a webhook: AdmissionReview.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

/// What is asked about.
#[derive(Debug)]
pub struct Request {
    api_version: String,
    uid: String,
    /// The object's kind.
    pub kind: String,
    /// Its namespace; empty when it has none.
    pub namespace: String,
    /// `CREATE`, `UPDATE`, …
    pub operation: String,
    /// Whether nothing is to come of it.
    pub dry_run: bool,
    /// The object itself.
    pub object: Value,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It is let in, changed by these operations; none leave it as it is. The warnings are for people.
    Admit {
        /// JSON patch.
        operations: Vec<Value>,
        /// One line each.
        warnings: Vec<String>,
    },
    /// It is refused.
    Refuse {
        /// Why.
        message: String,
    },
}

impl Verdict {
    /// Let in as it is.
    pub fn unchanged() -> Verdict {
        Verdict::Admit { operations: Vec::new(), warnings: Vec::new() }
    }
}

impl Request {
    /// Reads a review.
    ///
    /// # Errors
    /// Why it is none.
    pub fn read(body: &[u8]) -> Result<Request, String> {
        let mut review: Value = serde_json::from_slice(body).map_err(|e| format!("this is not JSON: {e}"))?;
        let api_version = review.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !matches!(api_version.as_str(), "admission.k8s.io/v1" | "admission.k8s.io/v1beta1") {
            return Err(format!("apiVersion {api_version:?} is not known; it should be admission.k8s.io/v1"));
        }
        let request = review.get_mut("request").filter(|request| request.is_object());
        let request = request.ok_or_else(|| "there is no request in it".to_owned())?;
        let object = request.get_mut("object").map(Value::take).unwrap_or_default();
        let text = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let uid = text("/uid");
        if uid.is_empty() {
            return Err("the request has no uid".to_owned());
        }
        Ok(Request {
            api_version,
            uid,
            kind: text("/kind/kind"),
            namespace: text("/namespace"),
            operation: text("/operation"),
            dry_run: request.get("dryRun").and_then(Value::as_bool).unwrap_or_default(),
            object,
        })
    }

    /// The answer.
    pub fn answer(&self, verdict: &Verdict) -> Value {
        let mut response = Map::new();
        response.insert("uid".into(), self.uid.as_str().into());
        response.insert("allowed".into(), matches!(verdict, Verdict::Admit { .. }).into());
        match verdict {
            Verdict::Admit { operations, warnings } => {
                if !operations.is_empty() {
                    response.insert("patchType".into(), "JSONPatch".into());
                    let patch = Value::from(operations.clone()).to_string();
                    response.insert("patch".into(), BASE64.encode(patch).into());
                }
                if !warnings.is_empty() {
                    response.insert("warnings".into(), warnings.clone().into());
                }
            }
            Verdict::Refuse { message } => {
                let status = json!({ "status": "Failure", "reason": "Invalid", "code": 422, "message": message });
                response.insert("status".into(), status);
            }
        }
        json!({ "apiVersion": self.api_version, "kind": "AdmissionReview", "response": response })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_review_is_refused() {
        let good = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": { "uid": "1", "kind": { "kind": "Pod" }, "namespace": "a", "operation": "CREATE", "object": {} },
        });
        let request = Request::read(good.to_string().as_bytes()).unwrap();
        assert_eq!((request.kind.as_str(), request.namespace.as_str(), request.dry_run), ("Pod", "a", false));
        assert_eq!(request.answer(&Verdict::unchanged())["response"], json!({ "uid": "1", "allowed": true }));
        let refused = request.answer(&Verdict::Refuse { message: "no".into() });
        assert_eq!(refused["response"]["status"]["message"], "no");
        for (pointer, value) in [("/apiVersion", json!("v1")), ("/request", json!(5)), ("/request/uid", json!(""))] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            assert!(Request::read(bad.to_string().as_bytes()).is_err(), "{pointer}");
        }
        assert!(Request::read(b"{").is_err());
    }
}
