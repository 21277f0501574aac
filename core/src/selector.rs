//! Label selectors: Kubernetes' structure (`matchLabels`, `matchExpressions`) and its string form
//! (`app=web,tier in (a,b),!legacy`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;
use std::str::FromStr;

/// Requirements that must all hold. Without any, everything matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<(String, Requirement)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// Why a selector was refused, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label selector {selector:?}: {reason}")]
pub struct Error {
    /// The selector, or the key of the expression at fault.
    pub selector: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Selector {
    /// Whether these labels satisfy every requirement.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.requirements.iter().all(|(key, requirement)| {
            let value = labels.and_then(|l| l.get(key));
            match requirement {
                Requirement::In(values) => value.is_some_and(|v| values.contains(v)),
                // As in Kubernetes, an absent label is in no set.
                Requirement::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Requirement::Exists => value.is_some(),
                Requirement::DoesNotExist => value.is_none(),
            }
        })
    }

    /// Whether it has no requirement and so matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// From a map where every label must have the given value, as in a Service's selector.
    pub fn from_map(labels: &BTreeMap<String, String>) -> Selector {
        let requirements = labels.iter().map(|(k, v)| (k.clone(), Requirement::In(vec![v.clone()]))).collect();
        Selector { requirements }
    }
}

impl TryFrom<&LabelSelector> for Selector {
    type Error = Error;

    fn try_from(selector: &LabelSelector) -> Result<Selector, Error> {
        let mut out = selector.match_labels.as_ref().map(Selector::from_map).unwrap_or_default();
        for expression in selector.match_expressions.iter().flatten() {
            let refuse = |reason: &str| Error { selector: expression.key.clone(), reason: reason.to_owned() };
            let values = expression.values.clone().unwrap_or_default();
            let requirement = match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Requirement::In(values),
                ("NotIn", false) => Requirement::NotIn(values),
                ("In" | "NotIn", true) => return Err(refuse("operators In and NotIn need values")),
                ("Exists", true) => Requirement::Exists,
                ("DoesNotExist", true) => Requirement::DoesNotExist,
                ("Exists" | "DoesNotExist", false) => {
                    return Err(refuse("operators Exists and DoesNotExist take no values"));
                }
                _ => return Err(refuse("the operator is none of In, NotIn, Exists, DoesNotExist")),
            };
            out.requirements.push((expression.key.clone(), requirement));
        }
        Ok(out)
    }
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Selector, Error> {
        let refuse = |reason: String| Error { selector: text.to_owned(), reason };
        let mut requirements = Vec::new();
        if text.trim().is_empty() {
            return Ok(Selector::default());
        }
        for part in split_outside_parentheses(text).map_err(|r| refuse(r.to_owned()))? {
            let part = part.trim();
            let (key, requirement) =
                parse_requirement(part).ok_or_else(|| refuse(format!("cannot understand {part:?}")))?;
            if !is_label_key(key) {
                return Err(refuse(format!("{key:?} is not a label name")));
            }
            requirements.push((key.to_owned(), requirement));
        }
        Ok(Selector { requirements })
    }
}

fn split_outside_parentheses(text: &str) -> Result<Vec<&str>, &'static str> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '(' if inside => return Err("parentheses do not nest"),
            '(' => inside = true,
            ')' if !inside => return Err("closing parenthesis without an opening one"),
            ')' => inside = false,
            ',' if !inside => {
                parts.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err("parenthesis is not closed");
    }
    parts.push(text.get(start..).unwrap_or_default());
    Ok(parts)
}

fn parse_requirement(part: &str) -> Option<(&str, Requirement)> {
    if let Some((head, rest)) = part.split_once('(') {
        let list = rest.strip_suffix(')')?;
        let (key, operator) = head.trim().split_once(char::is_whitespace)?;
        let values: Vec<String> = list.split(',').map(|v| v.trim().to_owned()).collect();
        return match operator.trim() {
            "in" => Some((key, Requirement::In(values))),
            "notin" => Some((key, Requirement::NotIn(values))),
            _ => None,
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return plain_value(value).map(|v| (key.trim(), Requirement::NotIn(vec![v])));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return plain_value(value).map(|v| (key.trim(), Requirement::In(vec![v])));
    }
    if let Some(key) = part.strip_prefix('!') {
        return Some((key.trim(), Requirement::DoesNotExist));
    }
    Some((part, Requirement::Exists))
}

fn plain_value(value: &str) -> Option<String> {
    let value = value.trim();
    value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)).then(|| value.to_owned())
}

fn is_label_key(key: &str) -> bool {
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    !name.is_empty() && key.len() <= 317 && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn string_form() {
        let web = labels(&[("app", "web"), ("tier", "a"), ("example.com/x", "")]);
        for (selector, expected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("! legacy", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier in (a, b)", true),
            ("tier notin (a,b)", false),
            ("none notin (a)", true),
            ("app!=web", false),
            ("none!=web", true),
            ("none=web", false),
            ("example.com/x=", true),
        ] {
            let parsed: Selector = selector.parse().unwrap();
            assert_eq!(parsed.matches(Some(&web)), expected, "{selector}");
        }
        assert!("app".parse::<Selector>().is_ok_and(|s| !s.matches(None)));
        for bad in ["=", "a in b", "a in (b", "a in ((b))", "a)", "a b", "a=b c", ",", "a like (b)", "ä=b"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn structured_form() {
        let expression = |operator: &str, values: &[&str]| LabelSelector {
            match_labels: Some(labels(&[("app", "web")])),
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "tier".into(),
                operator: operator.into(),
                values: (!values.is_empty()).then(|| values.iter().map(|v| (*v).into()).collect()),
            }]),
        };
        let web = labels(&[("app", "web"), ("tier", "a")]);
        let matches = |o, v: &[&str]| Selector::try_from(&expression(o, v)).map(|s| s.matches(Some(&web)));
        assert_eq!(matches("In", &["a"]), Ok(true));
        assert_eq!(matches("NotIn", &["a"]), Ok(false));
        assert_eq!(matches("Exists", &[]), Ok(true));
        assert_eq!(matches("DoesNotExist", &[]), Ok(false));
        assert!(matches("In", &[]).is_err());
        assert!(matches("Exists", &["a"]).is_err());
        assert!(matches("Near", &["a"]).is_err());
    }
}
