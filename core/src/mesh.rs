//! Rules of mesh resources that their schemas do not check: what would be accepted and then mean nothing, or something
//! else. The same for the admission webhook of a cluster and for whoever applies manifests. Each error is a field path and
//! a sentence.

mod profile;
mod route;
pub mod types;

use crate::kinds::{Kind, Object};
use crate::manifest;
use crate::selector::Selector;
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

/// What is wrong with a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Error {
    /// Where: `spec.networks[0].cidr`.
    pub field: String,
    /// One sentence.
    pub message: String,
}

type Checked = Result<(), Error>;

/// Octets that a pattern may take once it is compiled.
const PATTERN_LIMIT: usize = 64 << 10;

/// A pattern as proxies compile it, which must match a whole value. What is admitted goes through this too: a pattern that
/// a proxy refused would keep it from everything else that the policy says.
///
/// # Errors
/// The pattern is not valid, or too big.
pub fn pattern(text: &str) -> Result<regex_lite::Regex, regex_lite::Error> {
    regex_lite::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(PATTERN_LIMIT).build()
}

/// Checks a mesh resource. Kinds that are none are passed over.
///
/// # Errors
/// The first thing that is wrong.
pub fn validate(object: &Value) -> Checked {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (group, _) = text("apiVersion").split_once('/').unwrap_or_default();
    let spec = Field { value: object.get("spec"), path: "spec".into() };
    match (group, text("kind")) {
        ("policy.linkerd.io", "Server") => server(&spec),
        ("policy.linkerd.io", "ServerAuthorization") => server_authorization(&spec),
        ("policy.linkerd.io", "AuthorizationPolicy") => authorization_policy(&spec),
        ("policy.linkerd.io", "MeshTLSAuthentication") => mesh_tls_authentication(&spec),
        ("policy.linkerd.io", "NetworkAuthentication") => {
            let networks = spec.get("networks").some_items()?;
            networks.iter().try_for_each(network)
        }
        ("policy.linkerd.io", "HTTPLocalRateLimitPolicy") => rate_limit(&spec),
        ("policy.linkerd.io", "EgressNetwork") => {
            let policy = spec.get("trafficPolicy");
            policy.required()?.one_of(&["Allow", "Deny"])?;
            // Whoever applies it would believe that it shuts something.
            if policy.text()? == Some("Deny") {
                return policy.fail("Deny is not enforced by this version of weft: traffic would leave all the same");
            }
            spec.get("networks").items()?.iter().try_for_each(network)
        }
        ("policy.linkerd.io" | "gateway.networking.k8s.io", "HTTPRoute") => route::http(&spec),
        ("gateway.networking.k8s.io", "GRPCRoute") => route::grpc(&spec),
        ("linkerd.io", "ServiceProfile") => profile::check(object, &spec),
        ("split.smi-spec.io", "TrafficSplit") => traffic_split(&spec),
        ("workload.linkerd.io", "ExternalWorkload") => external_workload(&spec),
        _ => Ok(()),
    }
}

/// Reads a mesh resource as whoever admits it must: by [`validate`], then as its type. `None` for what is no mesh
/// resource.
///
/// # Errors
/// The first thing that is wrong.
pub fn read(object: &Value) -> Result<Option<Object>, Error> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let Some(kind) = Kind::from_manifest(text("apiVersion"), text("kind")).filter(|kind| kind.is_mesh()) else {
        return Ok(None);
    };
    validate(object)?;
    let typed = Object::from_value(kind, object.clone()).map_err(|error| {
        let (field, message) = manifest::fault(error);
        Error { field, message }
    })?;
    Ok(Some(typed))
}

/// A value and where it is.
#[derive(Debug, Clone)]
struct Field<'a> {
    value: Option<&'a Value>,
    path: String,
}

impl<'a> Field<'a> {
    fn get(&self, key: &str) -> Field<'a> {
        let value = self.value.and_then(|value| value.get(key)).filter(|value| !value.is_null());
        Field { value, path: format!("{}.{key}", self.path) }
    }

    fn is_set(&self) -> bool {
        self.value.is_some()
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error { field: self.path.clone(), message: message.into() })
    }

    fn required(&self) -> Result<&Self, Error> {
        if self.is_set() { Ok(self) } else { self.fail("is required") }
    }

    /// Its text, `None` when it is not set.
    fn text(&self) -> Result<Option<&'a str>, Error> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.fail("is not a text"),
        }
    }

    /// Text that must be there and not be empty.
    fn name(&self) -> Result<&'a str, Error> {
        self.text()?.filter(|text| !text.is_empty()).map_or_else(|| self.fail("is required"), Ok)
    }

    fn number(&self) -> Result<Option<f64>, Error> {
        match self.value {
            None => Ok(None),
            Some(value) => value.as_f64().map_or_else(|| self.fail("is not a number"), |number| Ok(Some(number))),
        }
    }

    /// The parts of a list, none when it is not set.
    fn items(&self) -> Result<Vec<Field<'a>>, Error> {
        let list = match self.value {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(_) => return self.fail("is not a list"),
        };
        let item = |(at, value)| Field { value: Some(value), path: format!("{}[{at}]", self.path) };
        Ok(list.iter().enumerate().map(item).collect())
    }

    fn some_items(&self) -> Result<Vec<Field<'a>>, Error> {
        let items = self.items()?;
        if items.is_empty() { self.fail("must not be empty") } else { Ok(items) }
    }

    fn one_of(&self, allowed: &[&str]) -> Checked {
        match self.text()? {
            Some(text) if !allowed.contains(&text) => self.fail(format!("{text:?} is none of {}", allowed.join(", "))),
            _ => Ok(()),
        }
    }

    /// Fails unless exactly one of these is set.
    fn exactly_one(&self, keys: &[&str]) -> Checked {
        match keys.iter().filter(|key| self.get(key).is_set()).count() {
            1 => Ok(()),
            0 => self.fail(format!("needs one of {}", keys.join(", "))),
            _ => self.fail(format!("may have only one of {}", keys.join(", "))),
        }
    }

    /// A reference must be to one of these: group and kind. Gives the kind.
    fn refers_to(&self, kinds: &[(&str, &'static str)]) -> Result<&'static str, Error> {
        self.get("name").name()?;
        let group = self.get("group").text()?.unwrap_or_default();
        let group = if group == "core" { "" } else { group };
        let kind = self.get("kind").name()?;
        let found = kinds.iter().find(|(g, k)| *g == group && k.eq_ignore_ascii_case(kind));
        match found {
            Some((_, kind)) => Ok(kind),
            None => {
                let names: Vec<_> = kinds.iter().map(|(_, kind)| *kind).collect();
                self.fail(format!("{kind:?} of group {group:?} is none of {}", names.join(", ")))
            }
        }
    }
}

const POLICIES: &[&str] =
    &["all-unauthenticated", "all-authenticated", "cluster-unauthenticated", "cluster-authenticated", "deny", "audit"];

fn server(spec: &Field<'_>) -> Checked {
    spec.exactly_one(&["podSelector", "externalWorkloadSelector"])?;
    let port = spec.get("port");
    match port.required()?.value {
        Some(Value::Number(number)) if number.as_u64().is_some_and(|n| (1..=65_535).contains(&n)) => {}
        Some(Value::String(name)) if is_port_name(name) => {}
        _ => return port.fail("is neither a port from 1 to 65535 nor the name of one"),
    }
    selector(&spec.get("podSelector"))?;
    selector(&spec.get("externalWorkloadSelector"))?;
    spec.get("proxyProtocol").one_of(&["unknown", "HTTP/1", "HTTP/2", "gRPC", "opaque", "TLS"])?;
    spec.get("accessPolicy").one_of(POLICIES)
}

/// A selector of labels. One that selects nothing by mistake would leave open what it is to shut.
fn selector(field: &Field<'_>) -> Checked {
    let Some(value) = field.value else { return Ok(()) };
    let labels: LabelSelector = match serde_path_to_error::deserialize(value) {
        Ok(labels) => labels,
        Err(error) => {
            let (path, message) = manifest::fault(error);
            let field = if path == "." { field.path.clone() } else { format!("{}.{path}", field.path) };
            return Err(Error { field, message });
        }
    };
    match Selector::try_from(&labels) {
        Ok(_) => Ok(()),
        Err(error) => field.get("matchExpressions").fail(error.to_string()),
    }
}

fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && name.contains(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn server_authorization(spec: &Field<'_>) -> Checked {
    spec.get("server").required()?.exactly_one(&["name", "selector"])?;
    selector(&spec.get("server").get("selector"))?;
    let client = spec.get("client");
    client.required()?;
    client.get("networks").items()?.iter().try_for_each(network)?;
    let unauthenticated = client.get("unauthenticated").value == Some(&Value::Bool(true));
    let tls = client.get("meshTLS");
    if unauthenticated == tls.is_set() {
        return client.fail("needs either unauthenticated: true or meshTLS");
    }
    if tls.is_set() {
        tls.exactly_one(&["unauthenticatedTLS", "identities", "serviceAccounts"])?;
        for identity in tls.get("identities").items()? {
            self::identity(&identity)?;
        }
        for account in tls.get("serviceAccounts").items()? {
            account.get("name").name()?;
        }
    }
    Ok(())
}

fn authorization_policy(spec: &Field<'_>) -> Checked {
    let target = spec.get("targetRef");
    target.required()?.refers_to(&[
        ("policy.linkerd.io", "Server"),
        ("policy.linkerd.io", "HTTPRoute"),
        ("gateway.networking.k8s.io", "HTTPRoute"),
        ("gateway.networking.k8s.io", "GRPCRoute"),
        ("", "Namespace"),
    ])?;
    let (mut identities, mut networks) = (0, 0);
    for reference in spec.get("requiredAuthenticationRefs").items()? {
        let kind = reference.refers_to(&[
            ("policy.linkerd.io", "MeshTLSAuthentication"),
            ("policy.linkerd.io", "NetworkAuthentication"),
            ("", "ServiceAccount"),
        ])?;
        let count = if kind == "NetworkAuthentication" { &mut networks } else { &mut identities };
        *count += 1;
        // All of them must hold: two of one sort are never what was meant.
        if *count > 1 {
            return reference.fail("a policy has one network and one identity requirement at most");
        }
    }
    Ok(())
}

fn mesh_tls_authentication(spec: &Field<'_>) -> Checked {
    let (identities, references) = (spec.get("identities").items()?, spec.get("identityRefs").items()?);
    if identities.is_empty() && references.is_empty() {
        return spec.fail("needs identities or identityRefs");
    }
    identities.iter().try_for_each(identity)?;
    references.iter().try_for_each(|r| r.refers_to(&[("", "ServiceAccount"), ("", "Namespace")]).map(|_| ()))
}

/// `*`, `*.suffix`, a DNS name, or a SPIFFE id.
fn identity(field: &Field<'_>) -> Checked {
    let identity = field.name()?;
    if identity == "*" || identity.starts_with("spiffe://") {
        return Ok(());
    }
    let name = identity.strip_prefix("*.").unwrap_or(identity);
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if name.len() <= 253 && name.split('.').all(part) {
        Ok(())
    } else {
        field.fail(format!("{identity:?} is no identity: a DNS name, *.suffix or *"))
    }
}

fn network(field: &Field<'_>) -> Checked {
    let parse = |field: &Field<'_>| -> Result<IpNet, Error> {
        let text = field.name()?;
        let address = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
        let net = text.parse().ok().or_else(address);
        net.map_or_else(|| field.fail(format!("{text:?} is no network such as 10.0.0.0/8")), Ok)
    };
    let cidr = field.get("cidr");
    let net = parse(&cidr)?;
    for except in field.get("except").items()? {
        if !net.contains(&parse(&except)?) {
            return except.fail(format!("is not within {net}"));
        }
    }
    Ok(())
}

fn rate_limit(spec: &Field<'_>) -> Checked {
    spec.get("targetRef").required()?.refers_to(&[("policy.linkerd.io", "Server")])?;
    let positive = |field: &Field<'_>| {
        let rate = field.get("requestsPerSecond");
        match rate.required()?.number()? {
            Some(number) if number > 0.0 => Ok(()),
            _ => rate.fail("must be more than 0"),
        }
    };
    for limit in ["total", "identity"] {
        let limit = spec.get(limit);
        if limit.is_set() {
            positive(&limit)?;
        }
    }
    for limit in spec.get("overrides").items()? {
        positive(&limit)?;
        for client in limit.get("clientRefs").some_items()? {
            client.refers_to(&[("", "ServiceAccount")])?;
        }
    }
    if ["total", "identity", "overrides"].iter().any(|key| spec.get(key).is_set()) {
        Ok(())
    } else {
        spec.fail("limits nothing: it needs total, identity or overrides")
    }
}

fn traffic_split(spec: &Field<'_>) -> Checked {
    spec.get("service").name()?;
    let mut total = 0.0;
    for backend in spec.get("backends").some_items()? {
        backend.get("service").name()?;
        let weight = backend.get("weight");
        let number = match weight.required()?.value {
            // The first version had quantities: 500m.
            Some(Value::String(text)) => match text.strip_suffix('m') {
                Some(milli) => milli.parse::<f64>().ok().map(|n| n / 1000.0),
                None => text.parse().ok(),
            },
            _ => weight.number()?,
        };
        match number {
            Some(number) if number.is_finite() && number >= 0.0 => total += number,
            _ => return weight.fail("is not a weight: a number from 0 on"),
        }
    }
    if total > 0.0 { Ok(()) } else { spec.get("backends").fail("all weights are 0: no traffic would go anywhere") }
}

fn external_workload(spec: &Field<'_>) -> Checked {
    let tls = spec.get("meshTLS");
    tls.required()?;
    tls.get("identity").name()?;
    tls.get("serverName").name()?;
    for ip in spec.get("workloadIPs").items()? {
        let ip = ip.get("ip");
        let text = ip.name()?;
        if text.parse::<std::net::IpAddr>().is_err() {
            return ip.fail(format!("{text:?} is no address"));
        }
    }
    for port in spec.get("ports").items()? {
        let port = port.get("port");
        match port.required()?.number()? {
            Some(number) if (1.0..=65_535.0).contains(&number) => {}
            _ => return port.fail("is no port: 1 to 65535"),
        }
    }
    Ok(())
}

/// A Go duration: `1m30s`.
fn duration(field: &Field<'_>) -> Checked {
    let Some(text) = field.text()? else { return Ok(()) };
    match crate::inject::is_duration(text) {
        true => Ok(()),
        false => field.fail(format!("{text:?} is not a duration such as 100ms, 10s or 1m30s")),
    }
}

fn regex(field: &Field<'_>) -> Checked {
    let Some(text) = field.text()? else { return Ok(()) };
    match pattern(text) {
        Ok(_) => Ok(()),
        Err(error) => field.fail(format!("{text:?} is no regular expression: {error}")),
    }
}

#[cfg(test)]
mod tests;
