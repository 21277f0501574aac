//! CNI configurations as text: the plugin's entry goes in, and out again. Whatever else is there stays.

use crate::NAME;
use crate::plugin::VERSIONS;
use serde_json::{Value, json};

/// A configuration that cannot be used: one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(String);

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Problem {}

fn problem<T>(text: impl Into<String>) -> Result<T, Problem> {
    Err(Problem(text.into()))
}

/// The plugin's entry: what the runtime hands to it.
pub fn entry(kubeconfig: &str) -> Value {
    json!({ "type": NAME, "kubernetes": { "kubeconfig": kubeconfig } })
}

/// The list with the entry behind the plugins that make the network; `None` when it has it. What somebody else has put
/// behind it stays there: two installers that both want to be last would never come to an end.
///
/// # Errors
/// When the text is no list of plugins, or of a version in which the plugin would refuse every call.
pub fn add(text: &str, entry: &Value) -> Result<Option<String>, Problem> {
    let mut list = read(text)?;
    supported(&list)?;
    let plugins = plugins(&mut list)?;
    let at = plugins.iter().position(|plugin| plugin == entry);
    if at.is_some_and(|at| at > 0) && plugins.iter().filter(|plugin| ours(plugin)).count() == 1 {
        return Ok(None);
    }
    plugins.retain(|plugin| !ours(plugin));
    if plugins.is_empty() {
        return problem("it has no plugin that makes a network");
    }
    plugins.push(entry.clone());
    Ok(Some(write(&list)))
}

/// The list without the entry; `None` when it has none.
///
/// # Errors
/// When the text is no list of plugins.
pub fn remove(text: &str) -> Result<Option<String>, Problem> {
    let mut list = read(text)?;
    let plugins = plugins(&mut list)?;
    let before = plugins.len();
    plugins.retain(|plugin| !ours(plugin));
    Ok((plugins.len() != before).then(|| write(&list)))
}

/// The list that means the same as a configuration of one plugin.
///
/// # Errors
/// When the text is no such configuration.
pub fn convert(text: &str) -> Result<String, Problem> {
    let mut plugin = read(text)?;
    let Some(map) = plugin.as_object_mut().filter(|map| map.get("type").is_some_and(Value::is_string)) else {
        return problem("it has no type of plugin");
    };
    let mut list = serde_json::Map::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = map.shift_remove(key) {
            list.insert(key.to_owned(), value);
        }
    }
    list.insert("plugins".into(), json!([plugin]));
    Ok(write(&list.into()))
}

/// Whether the list, but for the entry, is what was made of the configuration of one plugin.
pub fn made_of(list: &str, single: &str) -> bool {
    matches!((remove(list), convert(single)), (Ok(Some(list)), Ok(made)) if same(&list, &made))
}

/// Whether two configurations say the same.
pub fn same(one: &str, other: &str) -> bool {
    matches!((read(one), read(other)), (Ok(one), Ok(other)) if one == other)
}

fn read(text: &str) -> Result<Value, Problem> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => problem("it is no JSON object"),
        Err(error) => problem(format!("it is not JSON: {error}")),
    }
}

fn write(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The runtime calls every plugin of a list in the list's version.
fn supported(list: &Value) -> Result<(), Problem> {
    let version = list.get("cniVersion");
    if version.and_then(Value::as_str).is_some_and(|version| VERSIONS.contains(&version)) {
        return Ok(());
    }
    let has = version.map_or("it has no cniVersion".to_owned(), |version| format!("its cniVersion is {version}"));
    problem(format!("{has}, and {NAME} needs one of {}", VERSIONS.join(", ")))
}

fn plugins(list: &mut Value) -> Result<&mut Vec<Value>, Problem> {
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    plugins.ok_or_else(|| Problem("it has no list of plugins".into()))
}

fn ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "z": 1.50, "plugins": [{"type": "bridge", "mtu": 1500}, {"type": "portmap"}], "a": []}"#;

    fn types(text: &str) -> Vec<String> {
        let list: Value = serde_json::from_str(text).unwrap();
        list["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_entry_is_behind_the_others_and_there_once() {
        let entry = entry("/etc/cni/net.d/weft-cni-kubeconfig");
        let once = add(LIST, &entry).unwrap().unwrap();
        assert_eq!(types(&once), ["bridge", "portmap", NAME]);
        assert_eq!(add(&once, &entry).unwrap(), None);
        // Somebody else has added a plugin behind it.
        let mut edited: Value = serde_json::from_str(&once).unwrap();
        edited["plugins"].as_array_mut().unwrap().push(json!({ "type": "tuning" }));
        assert_eq!(add(&edited.to_string(), &entry).unwrap(), None);
        // It is first, there twice, or an older one.
        let mut first: Value = serde_json::from_str(&once).unwrap();
        first["plugins"].as_array_mut().unwrap().rotate_right(1);
        assert_eq!(types(&add(&first.to_string(), &entry).unwrap().unwrap()), ["bridge", "portmap", NAME]);
        edited["plugins"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": NAME, "kubernetes": { "kubeconfig": "elsewhere" } }));
        let again = add(&edited.to_string(), &entry).unwrap().unwrap();
        assert_eq!(types(&again), ["bridge", "portmap", "tuning", NAME]);
        assert_eq!(serde_json::from_str::<Value>(&again).unwrap()["plugins"][3], entry);
    }

    #[test]
    fn removal_leaves_what_was_there() {
        let with = add(LIST, &entry("k")).unwrap().unwrap();
        let without = remove(&with).unwrap().unwrap();
        assert!(same(&without, LIST), "{without}");
        assert_eq!(remove(LIST).unwrap(), None);
        let keys: Vec<String> =
            serde_json::from_str::<Value>(&without).unwrap().as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["cniVersion", "name", "z", "plugins", "a"], "in their order");
    }

    #[test]
    fn one_plugin_becomes_a_list() {
        let single = r#"{"cniVersion": "0.3.1", "name": "pods", "type": "bridge", "ipam": {"type": "host-local"}}"#;
        let list: Value = serde_json::from_str(&convert(single).unwrap()).unwrap();
        let expected = json!({
            "cniVersion": "0.3.1", "name": "pods", "plugins": [{ "type": "bridge", "ipam": { "type": "host-local" } }],
        });
        assert_eq!(list, expected);
        let with = add(&list.to_string(), &entry("k")).unwrap().unwrap();
        assert_eq!(types(&with), ["bridge", NAME]);
        assert!(made_of(&with, single));
        assert!(!made_of(&list.to_string(), single), "somebody else may have written that");
        assert!(!made_of(&with.replace("host-local", "dhcp"), single));
    }

    /// With the entry no pod would get a network.
    #[test]
    fn a_version_that_the_plugin_refuses_is_refused() {
        let mut list: Value = serde_json::from_str(LIST).unwrap();
        for version in VERSIONS {
            list["cniVersion"] = version.into();
            assert!(add(&list.to_string(), &entry("k")).unwrap().is_some(), "{version}");
        }
        let all = "and weft-cni needs one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
        let versions = [(json!("0.2.0"), "\"0.2.0\""), (json!("2.0.0"), "\"2.0.0\""), (json!(1.0), "1.0")];
        for (version, said) in versions {
            list["cniVersion"] = version;
            let problem = add(&list.to_string(), &entry("k")).unwrap_err().to_string();
            assert_eq!(problem, format!("its cniVersion is {said}, {all}"));
        }
        list.as_object_mut().unwrap().remove("cniVersion");
        // Not even when it is there already.
        list["plugins"].as_array_mut().unwrap().push(entry("k"));
        let problem = add(&list.to_string(), &entry("k")).unwrap_err().to_string();
        assert_eq!(problem, format!("it has no cniVersion, {all}"));
        assert!(remove(&list.to_string()).unwrap().is_some());
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in ["", "{", "[]", "5"] {
            assert!(add(text, &entry("k")).is_err(), "{text}");
        }
        let lists = [
            (r#"{"cniVersion": "1.0.0"}"#, "no list of plugins"),
            (r#"{"cniVersion": "1.0.0", "plugins": {}}"#, "no list of plugins"),
            (r#"{"cniVersion": "1.0.0", "plugins": []}"#, "no plugin that makes a network"),
        ];
        for (text, why) in lists {
            let problem = add(text, &entry("k")).unwrap_err().to_string();
            assert!(problem.contains(why), "{problem}");
        }
        for text in ["", "[]", "{}", r#"{"type": 5}"#] {
            assert!(convert(text).is_err(), "{text}");
        }
        assert!(remove(r#"{"plugins": 1}"#).is_err());
    }
}
