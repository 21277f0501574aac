//! Which route a request takes: the most specific match, as the Gateway API orders them.

use std::sync::Arc;

use weft_wire::head::Request;

use super::{HttpRoute, HttpRoutes, HttpRule, InboundRoute, InboundRule};

/// A pattern that must match a whole value.
#[derive(Debug, Clone)]
pub struct Regex(regex_lite::Regex);

impl Regex {
    /// Compiles a pattern; anchored at both ends.
    ///
    /// # Errors
    /// The pattern is not valid.
    pub fn new(pattern: &str) -> Result<Self, regex_lite::Error> {
        weft_core::mesh::pattern(pattern).map(Self)
    }

    /// True when the whole value matches.
    pub fn is_match(&self, value: &[u8]) -> bool {
        std::str::from_utf8(value).is_ok_and(|v| self.0.is_match(v))
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// A host or server name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostMatch {
    /// This name, lower case.
    Exact(String),
    /// Names that end in `.` and this, lower case.
    Suffix(String),
}

impl HostMatch {
    /// How specific the match is (more is more), if `host` (without port) matches.
    pub fn matches(&self, host: &[u8]) -> Option<usize> {
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name.as_bytes()).then_some(usize::MAX),
            Self::Suffix(name) if name.is_empty() => Some(1),
            Self::Suffix(name) => {
                let dot = host.len().checked_sub(name.len() + 1)?;
                let (head, tail) = host.split_at(dot);
                let fits = !head.is_empty()
                    && tail.first() == Some(&b'.')
                    && tail.get(1..).is_some_and(|t| t.eq_ignore_ascii_case(name.as_bytes()));
                fits.then_some(name.len() + 1)
            }
        }
    }
}

/// A path.
#[derive(Debug, Clone, PartialEq)]
pub enum PathMatch {
    /// This path.
    Exact(String),
    /// This path and what is below it; `/` matches everything.
    Prefix(String),
    /// A pattern.
    Regex(Regex),
}

impl PathMatch {
    /// How specific the match is and how many octets of the path a prefix matched.
    fn matches(&self, path: &[u8]) -> Option<((u8, usize), usize)> {
        match self {
            Self::Exact(p) => (path == p.as_bytes()).then_some(((2, p.len()), p.len())),
            Self::Prefix(p) => {
                let p = p.trim_end_matches('/');
                let fits = path.starts_with(p.as_bytes()) && matches!(path.get(p.len()), None | Some(b'/'));
                fits.then_some(((1, p.len()), p.len()))
            }
            Self::Regex(re) => re.is_match(path).then_some(((0, 0), 0)),
        }
    }
}

/// A value of a header or query parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueMatch {
    /// This value.
    Exact(Vec<u8>),
    /// A pattern.
    Regex(Regex),
}

impl ValueMatch {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(v) => v == value,
            Self::Regex(re) => re.is_match(value),
        }
    }
}

/// A header.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: Vec<u8>,
    /// Its value.
    pub value: ValueMatch,
}

/// What a rule asks of a request; every part must match.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HttpMatch {
    /// The path, without query.
    pub path: Option<PathMatch>,
    /// All of these headers.
    pub headers: Vec<HeaderMatch>,
    /// All of these query parameters, by decoded name.
    pub query: Vec<(String, ValueMatch)>,
    /// The method.
    pub method: Option<Arc<str>>,
}

type Score = ((u8, usize), bool, usize, usize);

impl HttpMatch {
    fn matches(&self, request: &Request) -> Option<(Score, usize)> {
        let (path, query) = split_path(&request.path);
        let (path_score, prefix) = match &self.path {
            Some(m) => m.matches(path)?,
            None => ((0, 0), 0),
        };
        if self.method.as_ref().is_some_and(|m| m.as_bytes() != request.method) {
            return None;
        }
        if !self.headers.iter().all(|m| request.headers.get_all(&m.name).any(|v| m.value.matches(v))) {
            return None;
        }
        if !self.query.iter().all(|(name, value)| {
            query_parameters(query).find(|(n, _)| n == name.as_bytes()).is_some_and(|(_, v)| value.matches(&v))
        }) {
            return None;
        }
        Some(((path_score, self.method.is_some(), self.headers.len(), self.query.len()), prefix))
    }
}

fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().position(|&b| b == b'?') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (path, &[]),
    }
}

fn query_parameters(query: &[u8]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + '_ {
    query.split(|&b| b == b'&').filter(|p| !p.is_empty()).map(|p| match p.iter().position(|&b| b == b'=') {
        Some(at) => {
            (percent_decode(p.get(..at).unwrap_or_default()), percent_decode(p.get(at + 1..).unwrap_or_default()))
        }
        None => (percent_decode(p), Vec::new()),
    })
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        let hex = |b: Option<&u8>| b.and_then(|&b| char::from(b).to_digit(16)).map(|d| d as u8);
        match (b, hex(tail.first()), hex(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', ..) => out.push(b' '),
            _ => out.push(b),
        }
    }
    out
}

/// The host of an authority: without user and port.
fn host_of(authority: &[u8]) -> &[u8] {
    let host = match authority.iter().rposition(|&b| b == b'@') {
        Some(at) => authority.get(at + 1..).unwrap_or_default(),
        None => authority,
    };
    if host.first() == Some(&b'[') {
        let end = host.iter().position(|&b| b == b']').map_or(host.len(), |at| at + 1);
        return host.get(..end).unwrap_or_default();
    }
    match host.iter().position(|&b| b == b':') {
        Some(at) => host.get(..at).unwrap_or_default(),
        None => host,
    }
}

/// The route and rule of a request.
#[derive(Debug)]
pub struct Matched<'a, Route, Rule> {
    /// The route.
    pub route: &'a Route,
    /// The rule in it.
    pub rule: &'a Rule,
    /// Octets of the path that a prefix match took; what [`super::PathChange::Prefix`] replaces.
    pub prefix: usize,
}

fn find<'a, Route, Rule: 'a, Rules: Iterator<Item = (&'a Rule, &'a [HttpMatch])>>(
    routes: impl Iterator<Item = (&'a Route, &'a [HostMatch], Rules)>,
    request: &Request,
) -> Option<Matched<'a, Route, Rule>> {
    let host = host_of(&request.authority);
    let mut best: Option<((usize, Score), Matched<'a, Route, Rule>)> = None;
    for (route, hosts, rules) in routes {
        let host_score = if hosts.is_empty() {
            0
        } else {
            match hosts.iter().filter_map(|h| h.matches(host)).max() {
                Some(score) => score,
                None => continue,
            }
        };
        for (rule, matches) in rules {
            let found = if matches.is_empty() {
                Some((Score::default(), 0))
            } else {
                matches.iter().filter_map(|m| m.matches(request)).max_by_key(|(score, _)| *score)
            };
            let Some((score, prefix)) = found else { continue };
            let score = (host_score, score);
            // Of equals, the first wins.
            if best.as_ref().is_none_or(|(s, _)| *s < score) {
                best = Some((score, Matched { route, rule, prefix }));
            }
        }
    }
    best.map(|(_, m)| m)
}

impl HttpRoutes {
    /// The most specific rule for a request: by host, then path (exact, prefix by length, pattern), method, number of
    /// headers, number of query parameters; of equals the first.
    pub fn find(&self, request: &Request) -> Option<Matched<'_, HttpRoute, HttpRule>> {
        let routes = self
            .routes
            .iter()
            .map(|r| (r, r.hosts.as_slice(), r.rules.iter().map(|rule| (rule, rule.matches.as_slice()))));
        find(routes, request)
    }
}

/// As [`HttpRoutes::find`], for inbound routes.
pub(super) fn find_inbound<'a>(
    routes: &'a [InboundRoute],
    request: &Request,
) -> Option<Matched<'a, InboundRoute, InboundRule>> {
    let routes =
        routes.iter().map(|r| (r, r.hosts.as_slice(), r.rules.iter().map(|rule| (rule, rule.matches.as_slice()))));
    find(routes, request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Meta;

    fn request(method: &str, authority: &str, path: &str, headers: &[(&str, &str)]) -> Request {
        let mut request =
            Request { method: method.into(), authority: authority.into(), path: path.into(), ..Request::default() };
        for (name, value) in headers {
            request.headers.push(name.as_bytes(), value.as_bytes());
        }
        request
    }

    fn routes(rules: Vec<(&str, Vec<HostMatch>, Vec<HttpMatch>)>) -> HttpRoutes {
        let routes = rules
            .into_iter()
            .map(|(name, hosts, matches)| HttpRoute {
                meta: Meta::default_named(name),
                hosts,
                rules: vec![HttpRule { matches, ..HttpRule::default() }],
            })
            .collect();
        HttpRoutes { routes, ..HttpRoutes::default() }
    }

    fn found(routes: &HttpRoutes, request: &Request) -> Option<String> {
        routes.find(request).map(|m| m.route.meta.name.clone())
    }

    fn path(path: PathMatch) -> HttpMatch {
        HttpMatch { path: Some(path), ..HttpMatch::default() }
    }

    #[test]
    fn the_most_specific_path_wins() {
        let routes = routes(vec![
            ("regex", vec![], vec![path(PathMatch::Regex(Regex::new("/a/.*").unwrap()))]),
            ("root", vec![], vec![path(PathMatch::Prefix("/".into()))]),
            ("long", vec![], vec![path(PathMatch::Prefix("/a/b".into()))]),
            ("exact", vec![], vec![path(PathMatch::Exact("/a/b".into()))]),
        ]);
        let at = |p: &str| found(&routes, &request("GET", "x", p, &[]));
        assert_eq!(at("/a/b?q=1").as_deref(), Some("exact"));
        assert_eq!(at("/a/b/c").as_deref(), Some("long"));
        assert_eq!(at("/a/bc").as_deref(), Some("root"), "a prefix ends at a segment's end");
        assert_eq!(at("/").as_deref(), Some("root"));
        assert_eq!(routes.find(&request("GET", "x", "/a/b/c", &[])).map(|m| m.prefix), Some(4));
    }

    #[test]
    fn hosts_come_before_paths() {
        let routes = routes(vec![
            ("any", vec![], vec![path(PathMatch::Exact("/".into()))]),
            ("suffix", vec![HostMatch::Suffix("example.com".into())], vec![]),
            ("exact", vec![HostMatch::Exact("a.example.com".into())], vec![]),
        ]);
        let at = |h: &str| found(&routes, &request("GET", h, "/", &[]));
        assert_eq!(at("A.example.com:8080").as_deref(), Some("exact"));
        assert_eq!(at("b.example.com").as_deref(), Some("suffix"));
        assert_eq!(at("example.com").as_deref(), Some("any"));
        assert_eq!(at("badexample.com").as_deref(), Some("any"));
        assert_eq!(at("").as_deref(), Some("any"));
    }

    #[test]
    fn every_part_of_a_match_must_fit() {
        let all = HttpMatch {
            path: None,
            headers: vec![HeaderMatch { name: b"x-user".to_vec(), value: ValueMatch::Exact(b"me".to_vec()) }],
            query: vec![("q".into(), ValueMatch::Exact(b"a b".to_vec()))],
            method: Some("POST".into()),
        };
        let routes = routes(vec![("all", vec![], vec![all])]);
        let fits = |r: &Request| found(&routes, r).is_some();
        assert!(fits(&request("POST", "x", "/?z=1&q=a%20b", &[("x-user", "me")])));
        assert!(fits(&request("POST", "x", "/?q=a+b", &[("x-user", "you"), ("x-user", "me")])));
        assert!(!fits(&request("GET", "x", "/?q=a+b", &[("x-user", "me")])));
        assert!(!fits(&request("POST", "x", "/?q=ab", &[("x-user", "me")])));
        assert!(!fits(&request("POST", "x", "/", &[("x-user", "me")])));
        assert!(!fits(&request("POST", "x", "/?q=a+b", &[])));
    }

    #[test]
    fn patterns_match_whole_values() {
        let re = Regex::new("a|b").unwrap();
        assert!(re.is_match(b"a") && re.is_match(b"b") && !re.is_match(b"ab") && !re.is_match(b"\xff"));
        assert!(Regex::new("(").is_err());
    }

    #[test]
    fn odd_escapes_are_kept() {
        assert_eq!(percent_decode(b"%zz%4"), b"%zz%4");
        assert_eq!(percent_decode(b"%41+"), b"A ");
    }
}
