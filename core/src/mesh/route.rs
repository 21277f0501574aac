//! HTTPRoutes and GRPCRoutes.

use super::{Checked, Field, regex};

pub(super) fn http(spec: &Field<'_>) -> Checked {
    parents(spec)?;
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
        filters(&rule)?;
        backends(&rule)?;
        for key in ["request", "backendRequest"] {
            gateway_duration(&rule.get("timeouts").get(key))?;
        }
    }
    Ok(())
}

pub(super) fn grpc(spec: &Field<'_>) -> Checked {
    parents(spec)?;
    for rule in spec.get("rules").items()? {
        for found in rule.get("matches").items()? {
            let method = found.get("method");
            method.get("type").one_of(&["Exact", "RegularExpression"])?;
            if method.is_set() && !method.get("service").is_set() && !method.get("method").is_set() {
                return method.fail("needs service or method");
            }
            if method.get("type").text()? == Some("RegularExpression") {
                regex(&method.get("service"))?;
                regex(&method.get("method"))?;
            }
            named_matches(&found.get("headers"))?;
        }
        filters(&rule)?;
        backends(&rule)?;
    }
    Ok(())
}

fn parents(spec: &Field<'_>) -> Checked {
    for parent in spec.get("parentRefs").items()? {
        parent.get("name").name()?;
        let port = parent.get("port");
        if port.number()?.is_some_and(|n| !(1.0..=65_535.0).contains(&n)) {
            return port.fail("is no port: 1 to 65535");
        }
    }
    Ok(())
}

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

fn filters(rule: &Field<'_>) -> Checked {
    for filter in rule.get("filters").items()? {
        match filter.get("type").name()? {
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
            // What is not done must not look as if it were.
            other => return filter.get("type").fail(format!("{other} does not exist in this mesh")),
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
