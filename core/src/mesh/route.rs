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
            headers(&found.get("headers"))?;
            named_matches(&found.get("queryParams"))?;
            let method = found.get("method");
            let is_method = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_uppercase());
            if method.text()?.is_some_and(|text| !is_method(text)) {
                return method.fail("is no method in capitals");
            }
        }
        filters(&rule, parents, HTTP_FILTERS)?;
        backends(&rule, parents, HTTP_FILTERS)?;
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
            call_name(&method.get("service"), ".")?;
            call_name(&method.get("method"), "")?;
            headers(&found.get("headers"))?;
        }
        filters(&rule, parents, GRPC_FILTERS)?;
        backends(&rule, parents, GRPC_FILTERS)?;
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
            ("policy.linkerd.io", kind) if kind.eq_ignore_ascii_case("Server") => {
                // It has one port. A route that names another would be about nothing.
                for part in ["port", "sectionName"] {
                    if parent.get(part).is_set() {
                        return parent.get(part).fail("must not be set: a route is about the whole Server");
                    }
                }
                server = true;
            }
            ("policy.linkerd.io", _) => {}
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

/// Headers that a request must have.
fn headers(list: &Field<'_>) -> Checked {
    for found in list.items()? {
        header_name(&found.get("name"))?;
        if found.get("type").text()? != Some("RegularExpression") {
            header_value(&found.get("value"))?;
        }
    }
    named_matches(list)
}

/// Longest name of a header, a service or a method.
const MAX_NAME: usize = 1024;

/// What HTTP allows as a name: a proxy takes no other.
fn header_name(field: &Field<'_>) -> Checked {
    let name = field.name()?;
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.len() <= MAX_NAME && name.chars().all(is_token) {
        Ok(())
    } else {
        field.fail(format!("{name:?} is no name of a header"))
    }
}

/// What HTTP allows as a value: a proxy takes no other.
fn header_value(field: &Field<'_>) -> Checked {
    match field.text()? {
        Some(value) if value.chars().any(|c| c != '\t' && c != ' ' && !c.is_ascii_graphic()) => {
            field.fail(format!("{value:?} is no value of a header"))
        }
        _ => Ok(()),
    }
}

/// The name of a gRPC service or method, with these characters beside letters, digits and the underscore.
fn call_name(field: &Field<'_>, others: &str) -> Checked {
    let Some(name) = field.text()? else { return Ok(()) };
    if name.len() <= MAX_NAME && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || others.contains(c)) {
        Ok(())
    } else {
        field.fail(format!("{name:?} is no name of a gRPC service or method"))
    }
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
                        header_name(&header.get("name"))?;
                        header_value(&header.get("value"))?;
                    }
                }
                modifier.get("remove").items()?.iter().try_for_each(header_name)?;
            }
            "RequestRedirect" => {
                let redirect = filter.get("requestRedirect");
                redirect.required()?.get("scheme").one_of(&["http", "https"])?;
                let status = redirect.get("statusCode");
                if status.number()?.is_some_and(|code| !(300.0..400.0).contains(&code)) {
                    return status.fail("is no status of a redirection: 300 to 399");
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn backends(rule: &Field<'_>, parents: Parents, known: &[&str]) -> Checked {
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
        filters(&backend, parents, known)?;
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
