//! Functions of Go's templates and of Helm, as far as the chart uses them.

use aws_lc_rs::digest;
use base64::Engine;
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Calls a function. The error is a sentence.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let wrong = |what: &str| format!("{name}: {what}");
    match (name, arguments) {
        ("not", [value]) => Ok((!truth(value)).into()),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => Ok(rest.iter().any(|other| equal(first, other)).into()),
        ("ne", [a, b]) => Ok((!equal(a, b)).into()),
        ("lt" | "le" | "gt" | "ge", [a, b]) => {
            let (Some(a), Some(b)) = (a.as_f64(), b.as_f64()) else { return Err(wrong("numbers are needed")) };
            let order = a.total_cmp(&b);
            let holds = match name {
                "lt" => order == Ordering::Less,
                "le" => order != Ordering::Greater,
                "gt" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            };
            Ok(holds.into())
        }
        ("len", [Value::Array(list)]) => Ok(list.len().into()),
        ("len", [Value::Object(map)]) => Ok(map.len().into()),
        ("len", [Value::String(text)]) => Ok(text.len().into()),
        ("index", [collection, key]) => index(collection, key).map_err(|what| wrong(&what)),
        ("default", [fallback, value]) => Ok(if truth(value) { value.clone() } else { fallback.clone() }),
        ("default", [fallback]) => Ok(fallback.clone()),
        ("empty", [value]) => Ok((!truth(value)).into()),
        ("ternary", [yes, no, condition]) => Ok(if truth(condition) { yes.clone() } else { no.clone() }),
        ("required", [Value::String(message), value]) => match value {
            Value::Null => Err(message.clone()),
            Value::String(text) if text.is_empty() => Err(message.clone()),
            value => Ok(value.clone()),
        },
        ("fail", [Value::String(message)]) => Err(message.clone()),
        ("dict", pairs) if pairs.len().is_multiple_of(2) => {
            let mut map = Map::new();
            for pair in pairs.chunks(2) {
                if let [key, value] = pair {
                    map.insert(show(key), value.clone());
                }
            }
            Ok(map.into())
        }
        ("list", items) => Ok(items.to_vec().into()),
        ("hasKey", [Value::Object(map), Value::String(key)]) => Ok(map.contains_key(key).into()),
        ("omit", [Value::Object(map), keys @ ..]) => {
            let mut map = map.clone();
            map.retain(|key, _| !keys.iter().any(|other| other.as_str() == Some(key)));
            Ok(map.into())
        }
        ("concat", lists) if lists.iter().all(Value::is_array) => {
            Ok(lists.iter().filter_map(Value::as_array).flatten().cloned().collect::<Vec<_>>().into())
        }
        ("toYaml", [value]) => Ok(yaml(value).trim_end().into()),
        ("toJson", [value]) => Ok(sorted(value).to_string().into()),
        ("fromYaml", [Value::String(text)]) => serde_yaml_ng::from_str(text).map_err(|e| wrong(&e.to_string())),
        ("int", [value]) => {
            let number = match value {
                Value::String(text) => text.trim().parse().unwrap_or_default(),
                value => value.as_i64().or(value.as_f64().map(|f| f as i64)).unwrap_or_default(),
            };
            Ok(number.into())
        }
        ("printf", [Value::String(format), rest @ ..]) => printf(format, rest).map(Value::String),
        _ => text_function(name, arguments),
    }
}

fn text_function(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let text = |value: &Value| show(value);
    let amount = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    let result = match (name, arguments) {
        ("quote", values) => {
            let shown: Vec<String> = values.iter().filter(|v| !v.is_null()).map(|v| quoted(&text(v))).collect();
            shown.join(" ")
        }
        ("squote", [value]) => format!("'{}'", text(value)),
        ("upper", [value]) => text(value).to_uppercase(),
        ("lower", [value]) => text(value).to_lowercase(),
        ("trim", [value]) => text(value).trim().to_owned(),
        ("trimSuffix", [suffix, value]) => {
            let value = text(value);
            value.strip_suffix(&text(suffix)).unwrap_or(&value).to_owned()
        }
        ("trunc", [length, value]) => {
            let length = amount(length).ok_or("trunc: a length is needed")?;
            text(value).chars().take(length).collect()
        }
        ("replace", [old, new, value]) => text(value).replace(&text(old), &text(new)),
        ("contains", [part, value]) => return Ok(text(value).contains(&text(part)).into()),
        ("join", [separator, Value::Array(list)]) => list.iter().map(text).collect::<Vec<_>>().join(&text(separator)),
        ("indent" | "nindent", [width, value]) => {
            let pad = " ".repeat(amount(width).filter(|n| *n < 1000).ok_or("indent: a width is needed")?);
            let indented = format!("{pad}{}", text(value).replace('\n', &format!("\n{pad}")));
            if name == "nindent" { format!("\n{indented}") } else { indented }
        }
        ("b64enc", [value]) => base64::engine::general_purpose::STANDARD.encode(text(value)),
        ("sha256sum", [value]) => {
            let digest = digest::digest(&digest::SHA256, text(value).as_bytes());
            digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
        }
        ("toString", [value]) => text(value),
        _ if KNOWN.contains(&name) => return Err(format!("{name}: the arguments are not those that it takes")),
        _ => return Err(format!("there is no function {name:?}")),
    };
    Ok(result.into())
}

const KNOWN: &[&str] = &[
    "not",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "len",
    "index",
    "default",
    "empty",
    "ternary",
    "required",
    "fail",
    "dict",
    "hasKey",
    "omit",
    "concat",
    "toYaml",
    "toJson",
    "fromYaml",
    "int",
    "printf",
    "squote",
    "upper",
    "lower",
    "trim",
    "trimSuffix",
    "trunc",
    "replace",
    "contains",
    "join",
    "indent",
    "nindent",
    "b64enc",
    "sha256sum",
    "toString",
];

/// What counts as true: everything but nothing, false, zero, and what is empty.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value as it is printed.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn index(collection: &Value, key: &Value) -> Result<Value, String> {
    match (collection, key) {
        (Value::Array(list), key) => {
            let at = key.as_u64().and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| list.get(at)).cloned().ok_or_else(|| format!("there is no item {key}"))
        }
        (Value::Object(map), Value::String(key)) => Ok(map.get(key).cloned().unwrap_or_default()),
        _ => Err("neither a list nor a map".into()),
    }
}

/// As Go quotes a text; what JSON escapes in another way does not occur in values.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The value with maps in the order of their keys, as Go writes them.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(sorted).collect::<Vec<_>>().into(),
        Value::Object(map) => {
            let by_key: BTreeMap<&String, Value> = map.iter().map(|(key, value)| (key, sorted(value))).collect();
            by_key.into_iter().map(|(key, value)| (key.clone(), value)).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

fn yaml(value: &Value) -> String {
    // Values come from YAML or JSON and so can be written as YAML.
    serde_yaml_ng::to_string(&sorted(value)).unwrap_or_default()
}

fn printf(format: &str, arguments: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(verb @ ('s' | 'd' | 'v' | 'q')) => {
                let argument = arguments.next().ok_or("printf: more verbs than values")?;
                out.push_str(&if verb == 'q' { quoted(&show(argument)) } else { show(argument) });
            }
            _ => return Err("printf: only %s, %d, %v, %q and %% are known".into()),
        }
    }
    match arguments.next() {
        None => Ok(out),
        Some(_) => Err("printf: more values than verbs".into()),
    }
}
