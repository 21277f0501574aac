//! The Prometheus text format, as much of it as counters, gauges and histogram buckets need. Lines that make no sense
//! are skipped: one odd line must not hide a proxy.

use std::borrow::Cow;

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    /// Name of the metric.
    pub name: &'a str,
    /// What is between the braces, as written.
    pub labels: &'a str,
    /// Its value.
    pub value: f64,
}

/// The samples of an exposition.
pub fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (name, labels, rest) = match line.find(['{', ' ', '\t']) {
        Some(at) if line.as_bytes().get(at) == Some(&b'{') => {
            let (name, rest) = line.split_at(at);
            let inside = rest.get(1..)?;
            let end = end_of_labels(inside)?;
            (name, inside.get(..end)?, inside.get(end + 1..)?)
        }
        Some(at) => {
            let (name, rest) = line.split_at(at);
            (name, "", rest)
        }
        None => return None,
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name, labels, value })
}

/// Where the closing brace is; braces within values do not count.
fn end_of_labels(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// The labels of a sample.
pub fn labels(mut text: &str) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
    std::iter::from_fn(move || {
        text = text.trim_start_matches([',', ' ']);
        let (name, rest) = text.split_once("=\"")?;
        let mut escaped = false;
        let end = rest.bytes().position(|byte| match byte {
            _ if escaped => {
                escaped = false;
                false
            }
            b'\\' => {
                escaped = true;
                false
            }
            byte => byte == b'"',
        })?;
        let (value, after) = (rest.get(..end)?, rest.get(end + 1..)?);
        text = after;
        Some((name.trim(), unescape(value)))
    })
}

fn unescape(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some(other)) => out.push(other),
            (c, _) => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let text =
            "# HELP x y\nx 1\n x{a=\"b\",c=\"}\\\"\\\\\\n\"} 2.5 1700000000\n\nbroken{\nx{} NaN\nx{a=\"b\"}\ny +Inf\n";
        let found: Vec<Sample> = samples(text).collect();
        assert_eq!(found.len(), 4);
        assert_eq!(found[0], Sample { name: "x", labels: "", value: 1.0 });
        let pairs: Vec<_> = labels(found[1].labels).map(|(k, v)| (k, v.into_owned())).collect();
        assert_eq!(pairs, [("a", "b".to_owned()), ("c", "}\"\\\n".to_owned())]);
        assert!(found[2].value.is_nan());
        assert!(found[3].value.is_infinite());
    }

    proptest! {
        #[test]
        fn nothing_is_too_odd(text in "\\PC*", more in "[a-z{}=\",\\\\ 0-9\n]*") {
            for text in [text, more] {
                for sample in samples(&text) {
                    let _ = labels(sample.labels).count();
                }
            }
        }
    }
}
