//! Resources as people write them: `deploy`, `po/web-1`, `deploy web api`, `svc/web po/x`.

use std::fmt;

/// Kinds that `stat` and `edges` know: canonical, short and plural name.
const KINDS: &[(&str, &str, &str)] = &[
    ("all", "all", "all"),
    ("authority", "au", "authorities"),
    ("cronjob", "cj", "cronjobs"),
    ("daemonset", "ds", "daemonsets"),
    ("deployment", "deploy", "deployments"),
    ("job", "job", "jobs"),
    ("namespace", "ns", "namespaces"),
    ("pod", "po", "pods"),
    ("replicaset", "rs", "replicasets"),
    ("replicationcontroller", "rc", "replicationcontrollers"),
    ("service", "svc", "services"),
    ("statefulset", "sts", "statefulsets"),
];

/// A kind, or one object of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Lower-case singular kind.
    pub kind: &'static str,
    /// One name, or all.
    pub name: Option<String>,
}

/// Why a resource was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// The canonical kinds, in the order of tables.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(kind, _, _)| *kind)
}

/// The short name of a canonical kind, which prefixes names when a table has several kinds.
pub fn short_name(kind: &str) -> &str {
    KINDS.iter().find(|(k, _, _)| *k == kind).map_or(kind, |(_, short, _)| short)
}

fn kind(text: &str) -> Result<&'static str, Error> {
    let lower = text.to_ascii_lowercase();
    let found = KINDS.iter().find(|(kind, short, plural)| [*kind, *short, *plural].contains(&lower.as_str()));
    found.map(|(kind, _, _)| *kind).ok_or_else(|| Error(format!("cannot find a resource type named [{text}]")))
}

/// One resource: `TYPE` or `TYPE/NAME`.
///
/// # Errors
/// When the type is unknown.
pub fn parse_one(text: &str) -> Result<Resource, Error> {
    match text.split_once('/') {
        None => Ok(Resource { kind: kind(text)?, name: None }),
        Some((_, name)) if name.contains('/') => Err(Error(format!("[{text}] is not TYPE/NAME"))),
        Some((kind_text, name)) => {
            let name = Some(name.to_owned()).filter(|n| !n.is_empty());
            Ok(Resource { kind: kind(kind_text)?, name })
        }
    }
}

/// Arguments of a command: `TYPE`, `TYPE NAME…` or `TYPE/NAME…`.
///
/// # Errors
/// When a type is unknown, the forms are mixed, or `all` is given a name or company.
pub fn parse(arguments: &[String]) -> Result<Vec<Resource>, Error> {
    let resources = match arguments {
        [] => return Err(Error("no resource given".into())),
        [one] => vec![parse_one(one)?],
        many if many.iter().all(|a| a.contains('/')) => {
            many.iter().map(|a| parse_one(a)).collect::<Result<Vec<_>, _>>()?
        }
        [first, names @ ..] if !first.contains('/') && names.iter().all(|n| !n.contains('/')) => {
            let kind = kind(first)?;
            names.iter().map(|name| Resource { kind, name: Some(name.clone()) }).collect()
        }
        _ => return Err(Error("there is no need to mix TYPE NAME and TYPE/NAME; use one of them".into())),
    };
    let all = resources.iter().any(|r| r.kind == "all");
    if all && (resources.len() > 1 || resources.iter().any(|r| r.name.is_some())) {
        return Err(Error("all stands alone, without a name".into()));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, Error> {
        let arguments: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let show = |r: &Resource| format!("{}/{}", r.kind, r.name.as_deref().unwrap_or("*"));
        parse(&arguments).map(|list| list.iter().map(show).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn forms() {
        for (text, expected) in [
            ("deploy", "deployment/*"),
            ("Deployments", "deployment/*"),
            ("deploy/web", "deployment/web"),
            ("po web api", "pod/web pod/api"),
            ("deploy/ po/x", "deployment/* pod/x"),
            ("ns", "namespace/*"),
            ("all", "all/*"),
            ("au", "authority/*"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(expected));
        }
        for bad in ["", "widget", "deploy web po/x", "deploy/a/b", "all x", "all/x", "/x", "all/ po/"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        assert!(parse(&[]).is_err());
        assert_eq!(short_name("statefulset"), "sts");
    }
}
