//! What applying an object would change.

use serde_json::Value;
use std::fmt::Write as _;

/// The changes, a line each; nothing when there are none. Only what the wanted object says is compared: the rest is what
/// the API server and other programs have added.
pub fn difference(live: Option<&Value>, wanted: &Value) -> String {
    let text = |path: &str| wanted.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let mut id = format!("{}/{}", text("/kind").to_ascii_lowercase(), text("/metadata/name"));
    if !text("/metadata/namespace").is_empty() {
        let _ = write!(id, " in {}", text("/metadata/namespace"));
    }
    let Some(live) = live else { return format!("+ {id}\n") };
    // What is in a Secret is nobody's business but its reader's.
    let secret = text("/kind") == "Secret";
    let mut lines = Vec::new();
    compare("", live, wanted, secret, &mut lines);
    match lines.is_empty() {
        true => String::new(),
        false => format!("~ {id}\n{}", lines.concat()),
    }
}

fn compare(path: &str, live: &Value, wanted: &Value, secret: bool, lines: &mut Vec<String>) {
    // The server answers with the version that it was asked for.
    if path == ".apiVersion" || path == ".kind" || same(live, wanted) {
        return;
    }
    let join = |key: &str| match key.contains(['.', '/']) {
        true => format!("{path}[{key}]"),
        false => format!("{path}.{key}"),
    };
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            for (key, value) in wanted {
                compare(&join(key), live.get(key).unwrap_or(&Value::Null), value, secret, lines);
            }
            // Data are whole: what is not wanted goes.
            if path == ".data" {
                for key in live.keys().filter(|key| !wanted.contains_key(*key)) {
                    lines.push(format!("  {}: is removed\n", join(key)));
                }
            }
        }
        (Value::Array(live), Value::Array(wanted)) => {
            let named = |item: &Value| item.get("name").and_then(Value::as_str).map(str::to_owned);
            for (at, item) in wanted.iter().enumerate() {
                let (label, other) = match named(item) {
                    Some(name) => {
                        let other = live.iter().find(|other| named(other).as_deref() == Some(&name));
                        (format!("{path}[{name}]"), other)
                    }
                    None => (format!("{path}[{at}]"), live.get(at)),
                };
                match other {
                    Some(other) => compare(&label, other, item, secret, lines),
                    None => lines.push(format!("  {label}: is added\n")),
                }
            }
            for (at, item) in live.iter().enumerate() {
                let (label, gone) = match named(item) {
                    Some(name) => {
                        let gone = !wanted.iter().any(|other| named(other).as_deref() == Some(&name));
                        (format!("{path}[{name}]"), gone)
                    }
                    None => (format!("{path}[{at}]"), at >= wanted.len()),
                };
                if gone {
                    lines.push(format!("  {label}: is removed\n"));
                }
            }
        }
        _ if secret && path.starts_with(".data") => lines.push(format!("  {path}: changes\n")),
        (live, wanted) => match within(live).zip(within(wanted)) {
            Some((live, wanted)) if live != wanted => compare(path, &live, &wanted, secret, lines),
            _ => lines.push(format!("  {path}: {} → {}\n", short(live), short(wanted))),
        },
    }
}

/// The settings in a text of several lines, such as the values in a ConfigMap.
fn within(value: &Value) -> Option<Value> {
    let text = value.as_str().filter(|text| text.contains('\n'))?;
    serde_yaml_ng::from_str(text).ok().filter(Value::is_object)
}

/// The API server leaves out what is empty, and writes quantities and numbers its own way.
fn same(live: &Value, wanted: &Value) -> bool {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(value) => !value,
        Value::Number(_) => false,
    };
    live == wanted || (empty(live) && empty(wanted))
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => return "nothing".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let line = text.lines().next().unwrap_or_default();
    let shown: String = line.chars().take(80).collect();
    if shown.len() < text.len() { format!("{shown}…") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes() {
        let live = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "d", "namespace": "n", "uid": "1", "labels": { "a.b/c": "1" } },
            "spec": {
                "replicas": 1, "paused": false,
                "containers": [{ "name": "a", "image": "x:1", "added": 1 }, { "name": "old" }],
            },
        });
        assert_eq!(difference(Some(&live), &live), "");
        let mut wanted = live.clone();
        wanted["metadata"].as_object_mut().unwrap().shift_remove("uid");
        wanted["metadata"]["labels"]["a.b/c"] = "2".into();
        wanted["spec"]["replicas"] = 3.into();
        wanted["spec"]["nothing"] = json!({});
        wanted["spec"]["containers"] = json!([{ "name": "a", "image": "x:2" }, { "name": "new" }]);
        let expected = "\
~ deployment/d in n
  .metadata.labels[a.b/c]: 1 → 2
  .spec.replicas: 1 → 3
  .spec.containers[a].image: x:1 → x:2
  .spec.containers[new]: is added
  .spec.containers[old]: is removed
";
        assert_eq!(difference(Some(&live), &wanted), expected);
        assert_eq!(difference(None, &wanted), "+ deployment/d in n\n");
    }

    #[test]
    fn settings_within_a_text_are_compared_one_by_one() {
        let map = |text: &str| json!({ "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "values": text } });
        let changed = difference(Some(&map("a: {b: 1}\nc: 2\n")), &map("a: {b: x}\nc: 2\n"));
        assert_eq!(changed, "~ configmap/c\n  .data.values.a.b: 1 → x\n");
        let changed = difference(Some(&map("some\ntext")), &map("other\ntext"));
        assert_eq!(changed, "~ configmap/c\n  .data.values: some… → other…\n");
        // Only the comments differ, but they do.
        let changed = difference(Some(&map("# a\nb: 1\n")), &map("# c\nb: 1\n"));
        assert_eq!(changed, "~ configmap/c\n  .data.values: # a… → # c…\n");
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = |value: &str| json!({ "kind": "Secret", "metadata": { "name": "s" }, "data": { "k": value } });
        assert_eq!(difference(Some(&secret("YQ==")), &secret("Yg==")), "~ secret/s\n  .data.k: changes\n");
    }
}
