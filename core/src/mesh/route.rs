//! HTTPRoutes and GRPCRoutes.

use super::{Checked, Error, Field, regex};

/// Whose routes these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parents {
    /// All of them something that is not of the mesh, such as a Gateway: others know what the route may say.
    Foreign,
    /// One of them a Server, among others perhaps.
    Server,
    /// Services, or none yet.
    Service,
}

pub(super) fn http(spec: &Field<'_>) -> Checked {
    let parents = parents(spec)?;
    if parents == Parents::Foreign {
        return Ok(());
    }
    for rule in spec.get("rules").items()? {
        for found in rule.get("matches").items()? {
            let path = found.get("path");
            let value = path.get("value");
            path.get("type").one_of(&["Exact", "PathPrefix", "RegularExpression"])?;
            match path.get("type").text()? {
                Some("RegularExpression") => regex(&value)?,
                _ if value.text()?.is_some_and(|text| !text.starts_with('/')) => {
                    return value.fail("does not begin with '/'");
                }
                _ => {}
            }
            named_matches(&found.get("headers"))?;
            named_matches(&found.get("queryParams"))?;
            let method = found.get("method");
            if method.text()?.is_some_and(|method| method.chars().any(|c| !c.is_ascii_uppercase())) {
                return method.fail("is no method in capitals");
            }
        }
        filters(&rule, parents, HTTP_FILTERS)?;
        backends(&rule)?;
        for key in ["request", "backendRequest"] {
            gateway_duration(&rule.get("timeouts").get(key))?;
        }
    }
    Ok(())
}

pub(super) fn grpc(spec: &Field<'_>) -> Checked {
    let parents = parents(spec)?;
    if parents == Parents::Foreign {
        return Ok(());
    }
    for rule in spec.get("rules").items()? {
        for found in rule.get("matches").items()? {
            let method = found.get("method");
            method.get("type").one_of(&["Exact"])?;
            if method.is_set() && !method.get("service").is_set() && !method.get("method").is_set() {
                return method.fail("needs service or method");
            }
            named_matches(&found.get("headers"))?;
        }
        filters(&rule, parents, GRPC_FILTERS)?;
        backends(&rule)?;
    }
    Ok(())
}

fn parents(spec: &Field<'_>) -> Result<Parents, Error> {
    let (mut foreign, mut server) = (0, false);
    let parents = spec.get("parentRefs").items()?;
    for parent in &parents {
        parent.get("name").name()?;
        let port = parent.get("port");
        if port.number()?.is_some_and(|n| !(1.0..=65_535.0).contains(&n)) {
            return port.fail("is no port: 1 to 65535");
        }
        match (parent.get("group").text()?.unwrap_or(GATEWAY_GROUP), parent.get("kind").text()?.unwrap_or("Gateway")) {
            ("policy.linkerd.io", kind) => server |= kind.eq_ignore_ascii_case("Server"),
            ("" | "core", kind) if kind.eq_ignore_ascii_case("Service") => {}
            _ => foreign += 1,
        }
    }
    Ok(match (foreign, server) {
        (1.., _) if foreign == parents.len() => Parents::Foreign,
        (_, true) => Parents::Server,
        (_, false) => Parents::Service,
    })
}

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const HTTP_FILTERS: &[&str] = &["RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect"];
const GRPC_FILTERS: &[&str] = &["RequestHeaderModifier"];

fn named_matches(list: &Field<'_>) -> Checked {
    for found in list.items()? {
        found.get("name").name()?;
        found.get("type").one_of(&["Exact", "RegularExpression"])?;
        if found.get("type").text()? == Some("RegularExpression") {
            regex(&found.get("value"))?;
        }
    }
    Ok(())
}

fn filters(rule: &Field<'_>, parents: Parents, known: &[&str]) -> Checked {
    for filter in rule.get("filters").items()? {
        let kind = filter.get("type").name()?;
        // What is not done must not look as if it were.
        if !known.contains(&kind) {
            return filter.get("type").fail(format!("{kind} does not exist in this mesh for this kind of route"));
        }
        if kind == "ResponseHeaderModifier" && parents == Parents::Server {
            return filter.get("type").fail("the route of a Server cannot change responses");
        }
        match kind {
            kind @ ("RequestHeaderModifier" | "ResponseHeaderModifier") => {
                let key = if kind.starts_with("Request") { "requestHeaderModifier" } else { "responseHeaderModifier" };
                let modifier = filter.get(key);
                modifier.required()?;
                for list in ["set", "add"] {
                    for header in modifier.get(list).items()? {
                        header.get("name").name()?;
                    }
                }
            }
            "RequestRedirect" => {
                let status = filter.get("requestRedirect").required()?.get("statusCode");
                if status.number()?.is_some_and(|code| !(300.0..400.0).contains(&code)) {
                    return status.fail("is no status of a redirection: 300 to 399");
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn backends(rule: &Field<'_>) -> Checked {
    for backend in rule.get("backendRefs").items()? {
        backend.get("name").name()?;
        let weight = backend.get("weight");
        if weight.number()?.is_some_and(|weight| weight < 0.0) {
            return weight.fail("must not be negative");
        }
        let service = matches!(backend.get("kind").text()?, None | Some("Service"));
        if service && !backend.get("port").is_set() {
            return backend.get("port").fail("is required for a Service");
        }
    }
    Ok(())
}

/// A duration of the Gateway API: up to four parts of up to five digits.
fn gateway_duration(field: &Field<'_>) -> Checked {
    let Some(text) = field.text()? else { return Ok(()) };
    let mut rest = text;
    let mut parts = 0;
    let valid = loop {
        let digits = rest.chars().take_while(char::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let unit = ["ms", "h", "m", "s"].into_iter().find(|unit| tail.starts_with(unit));
        let (Some(unit), 1..=5) = (unit, number.len()) else { break false };
        rest = tail.get(unit.len()..).unwrap_or_default();
        parts += 1;
        if rest.is_empty() {
            break parts <= 4;
        }
    };
    if valid { Ok(()) } else { field.fail(format!("{text:?} is not a duration such as 500ms, 10s or 1h30m")) }
}
