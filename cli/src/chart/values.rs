//! Values of a chart: defaults, files, and `--set`, each over the one before. A name that the chart does not know is an
//! error, since it is a slip of the pen whose effect would be missed only later.

use serde_json::{Map, Value};

/// A value that cannot be used: where, and one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Error {
    /// Path of the value, such as `proxy.image.name`.
    pub path: String,
    /// One sentence.
    pub message: String,
}

fn error(path: &str, message: impl Into<String>) -> Error {
    Error { path: path.to_owned(), message: message.into() }
}

/// What becomes of `null`, which takes a value away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nulls {
    /// It is done: the base has all values.
    Remove,
    /// It is remembered: the base will be put over others itself.
    Keep,
}

/// Puts values over others: maps are merged, everything else is replaced. `shape` is the chart's defaults, which say which
/// names there are.
///
/// # Errors
/// See [`Error`].
pub fn merge(base: &mut Value, over: &Value, shape: &Value, nulls: Nulls) -> Result<(), Error> {
    let Some(over) = over.as_object() else {
        return match over {
            Value::Null => Ok(()),
            _ => Err(error("values", "must be a map of settings")),
        };
    };
    let Some(base) = base.as_object_mut() else { return Ok(()) };
    merge_map(base, over, shape.as_object(), nulls, "")
}

fn merge_map(
    base: &mut Map<String, Value>,
    over: &Map<String, Value>,
    shape: Option<&Map<String, Value>>,
    nulls: Nulls,
    path: &str,
) -> Result<(), Error> {
    for (key, value) in over {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let shape = match shape {
            // A map that is empty by default takes any name.
            Some(names) if !names.is_empty() && !free(&path) => {
                let known = names.get(key).ok_or_else(|| error(&path, unknown(key, names)))?;
                check(&path, known, value)?;
                Some(known)
            }
            _ => None,
        };
        match (base.get_mut(key), value) {
            (Some(Value::Object(inner)), Value::Object(value)) => {
                merge_map(inner, value, shape.and_then(Value::as_object), nulls, &path)?;
            }
            (_, Value::Null) if nulls == Nulls::Remove => {
                base.shift_remove(key);
            }
            (_, Value::Object(value)) => {
                let mut inner = Map::new();
                merge_map(&mut inner, value, shape.and_then(Value::as_object), nulls, &path)?;
                base.insert(key.clone(), inner.into());
            }
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
    Ok(())
}

/// Maps that have defaults, but are of Kubernetes' making, so that other names are right too.
fn free(path: &str) -> bool {
    ["nodeSelector", "deploymentStrategy", "updateStrategy", "namespaceSelector", "objectSelector", "Resources"]
        .iter()
        .any(|name| path.split('.').any(|part| part.ends_with(name)))
}

/// The name that was probably meant begins alike, or has the same letters.
fn unknown(key: &str, names: &Map<String, Value>) -> String {
    let letters = |text: &str| {
        let mut letters: Vec<char> = text.to_ascii_lowercase().chars().collect();
        letters.sort_unstable();
        letters
    };
    let alike = |name: &&String| {
        let common = name.chars().zip(key.chars()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        (common >= 3 && common * 2 >= key.chars().count()) || letters(name) == letters(key)
    };
    match names.keys().find(alike) {
        Some(name) => format!("there is no such setting; is {name} meant?"),
        None => "there is no such setting".to_owned(),
    }
}

/// A list is no map, and a map no text.
fn check(path: &str, known: &Value, value: &Value) -> Result<(), Error> {
    let message = match (known, value) {
        (_, Value::Null) => return Ok(()),
        (Value::Object(_), Value::Object(_)) | (Value::Array(_), Value::Array(_)) => return Ok(()),
        (Value::Object(_), _) => "must be a map",
        (Value::Array(_), _) => "must be a list",
        (_, Value::Object(_) | Value::Array(_)) => "must be a single value",
        (Value::Bool(_), Value::Bool(_)) => return Ok(()),
        (Value::Bool(_), _) => "must be true or false",
        (Value::Number(_), Value::Number(_)) => return Ok(()),
        (Value::Number(_), Value::String(text)) if text.parse::<i64>().is_ok() => return Ok(()),
        (Value::Number(_), _) => "must be a number",
        _ => return Ok(()),
    };
    Err(error(path, message))
}

/// Puts one `--set` over values that will be put over others themselves: `a.b=c`, several of them separated by commas, lists as `{a,b}`; `\` before a comma or
/// dot takes its meaning away. Numbers, `true`, `false` and `null` are what they look like.
///
/// # Errors
/// See [`Error`].
pub fn set(base: &mut Value, text: &str, shape: &Value) -> Result<(), Error> {
    for assignment in split(text, ',') {
        let (path, value) = assignment.split_once('=').ok_or_else(|| error(&assignment, "has no ="))?;
        let value = match value.strip_prefix('{').and_then(|v| v.strip_suffix('}')) {
            Some(list) => split(list, ',').iter().map(|item| typed(&plain(item))).collect::<Vec<_>>().into(),
            None => typed(&plain(value)),
        };
        put(base, path, value, shape)?;
    }
    Ok(())
}

/// Puts one `--set-string` or `--set-file` over such values: the value is a text, whatever it looks like.
///
/// # Errors
/// See [`Error`].
pub fn set_text(base: &mut Value, path: &str, value: &str, shape: &Value) -> Result<(), Error> {
    put(base, path, value.into(), shape)
}

fn put(base: &mut Value, path: &str, value: Value, shape: &Value) -> Result<(), Error> {
    let keys = split(path, '.');
    if keys.iter().any(String::is_empty) {
        return Err(error(path, "is not the path of a setting, such as proxy.image.name"));
    }
    let nested = keys.iter().rev().fold(value, |value, key| Value::Object(Map::from_iter([(plain(key), value)])));
    merge(base, &nested, shape, Nulls::Keep)
}

/// Cuts at a separator that has no `\` before it and is not inside of `{}`.
fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut part, mut escaped, mut depth) = (Vec::new(), String::new(), false, 0usize);
    for c in text.chars() {
        match c {
            c if escaped => {
                part.push('\\');
                part.push(c);
                escaped = false;
                continue;
            }
            '\\' => {
                escaped = true;
                continue;
            }
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c == separator && depth == 0 {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    parts.push(part);
    parts
}

fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

fn typed(text: &str) -> Value {
    match text {
        "true" => true.into(),
        "false" => false.into(),
        "null" => Value::Null,
        // 007 is a text.
        number if number == "0" || !number.starts_with('0') => {
            number.parse::<i64>().map_or_else(|_| number.into(), Value::from)
        }
        text => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shape() -> Value {
        json!({
            "replicas": 1, "on": false, "list": [], "labels": {}, "name": "",
            "proxy": { "image": { "name": "a" }, "ports": { "admin": 4191 } },
            "nodeSelector": { "os": "linux" },
        })
    }

    #[test]
    fn values_go_over_values() {
        let mut over = json!({});
        let file = json!({ "proxy": { "image": { "name": "b" } }, "labels": { "x": "y" } });
        merge(&mut over, &file, &shape(), Nulls::Keep).unwrap();
        merge(&mut over, &Value::Null, &shape(), Nulls::Keep).unwrap();
        set(&mut over, "replicas=3,on=true,name=a\\,b,list={x,7}", &shape()).unwrap();
        set(&mut over, "labels.a\\.b/c=d,nodeSelector.zone=z,nodeSelector.os=null", &shape()).unwrap();
        set_text(&mut over, "name", "7", &shape()).unwrap();
        let mut values = shape();
        merge(&mut values, &over, &shape(), Nulls::Remove).unwrap();
        let expected = json!({
            "replicas": 3, "on": true, "list": ["x", 7], "labels": { "x": "y", "a.b/c": "d" }, "name": "7",
            "proxy": { "image": { "name": "b" }, "ports": { "admin": 4191 } },
            "nodeSelector": { "zone": "z" },
        });
        assert_eq!(values, expected);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let cases = [
            ("proxy.imgae.name=x", "proxy.imgae: there is no such setting; is image meant?"),
            ("proxi=1", "proxi: there is no such setting; is proxy meant?"),
            ("nothing=1", "nothing: there is no such setting"),
            ("replicas=many", "replicas: must be a number"),
            ("on=1", "on: must be true or false"),
            ("proxy=x", "proxy: must be a map"),
            ("list=x", "list: must be a list"),
            ("name={a}", "name: must be a single value"),
            ("replicas", "replicas: has no ="),
            ("a..b=1", "a..b: is not the path of a setting, such as proxy.image.name"),
        ];
        for (text, expected) in cases {
            let problem = set(&mut shape(), text, &shape()).unwrap_err();
            assert_eq!(problem.to_string(), expected, "{text}");
        }
        assert_eq!(
            merge(&mut shape(), &json!([1]), &shape(), Nulls::Remove).unwrap_err().to_string(),
            "values: must be a map of settings"
        );
    }
}
