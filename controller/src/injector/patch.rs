//! The difference between two objects as operations of a JSON patch (RFC 6902).

use serde_json::{Value, json};

/// What makes the first the second.
pub fn difference(before: &Value, after: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    compare("", before, after, &mut operations);
    operations
}

fn compare(path: &str, before: &Value, after: &Value, operations: &mut Vec<Value>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                operations.push(json!({ "op": "remove", "path": child(path, key) }));
            }
            for (key, value) in new {
                match old.get(key) {
                    Some(old) => compare(&child(path, key), old, value, operations),
                    None => operations.push(json!({ "op": "add", "path": child(path, key), "value": value })),
                }
            }
        }
        // A list is the same at both ends, or it is another one.
        (Value::Array(old), Value::Array(new)) => {
            let prefix = old.iter().zip(new).take_while(|(old, new)| old == new).count();
            let most = old.len().min(new.len()) - prefix;
            let ends = old.iter().rev().zip(new.iter().rev());
            let suffix = ends.take(most).take_while(|(old, new)| old == new).count();
            if prefix + suffix == old.len() {
                for (at, value) in new.iter().enumerate().take(new.len() - suffix).skip(prefix) {
                    operations.push(json!({ "op": "add", "path": format!("{path}/{at}"), "value": value }));
                }
            } else {
                operations.push(json!({ "op": "replace", "path": path, "value": after }));
            }
        }
        _ => operations.push(json!({ "op": "replace", "path": path, "value": after })),
    }
}

fn child(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3i64).prop_map(Value::from),
            "[a~/]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a~/.]{0,2}", inner, 0..4)
                    .prop_map(|map| Value::from(map.into_iter().collect::<serde_json::Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_patch_makes_one_the_other(before in json_value(), after in json_value()) {
            let operations = difference(&before, &after);
            let patch: json_patch::Patch = serde_json::from_value(operations.into()).unwrap();
            let mut patched = before;
            json_patch::patch(&mut patched, &patch).unwrap();
            prop_assert_eq!(patched, after);
        }
    }

    #[test]
    fn insertions_are_insertions() {
        let before = json!({ "a": [1, 2], "b/c": {} });
        let after = json!({ "a": [0, 1, 2, 3], "b/c": { "~": 1 } });
        let expected = json!([{ "op": "replace", "path": "/a", "value": [0, 1, 2, 3] }, { "op": "add", "path": "/b~1c/~0", "value": 1 }]);
        assert_eq!(Value::from(difference(&before, &after)), expected);
        let expected = json!([{ "op": "add", "path": "/0", "value": 0 }]);
        assert_eq!(Value::from(difference(&json!([1]), &json!([0, 1]))), expected);
    }
}
