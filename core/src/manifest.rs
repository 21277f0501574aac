//! Reads manifests: YAML or JSON text, several documents, Lists expanded; every object typed and validated. An error
//! names file, document and field.

use crate::kinds::Kind;
pub use crate::kinds::{Key, Object};
use crate::{mesh, validate};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fmt;

/// One object of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Position of the YAML document in its file, from 1. Items of a List share it.
    pub index: usize,
    /// The object, typed.
    pub object: Object,
    /// The same object as it was written.
    pub value: Value,
    /// The name of the source given to [`parse`].
    pub file: String,
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The name of the source given to [`parse`].
    pub file: String,
    /// Position of the document in its file, from 1; 0 when the text has no documents.
    pub document: usize,
    /// `Kind/name` of the object, as far as it is known.
    pub object: Option<String>,
    /// Path of the field: `spec.template.spec.containers[0].ports[0].containerPort`.
    pub field: Option<String>,
    /// One sentence; for bad YAML with line and column.
    pub message: String,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {}", self.file, self.document)?;
        if let Some(object) = &self.object {
            write!(f, " ({object})")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Lists within Lists deeper than this are refused.
const MAX_LIST_DEPTH: usize = 8;

/// Parses the text of a manifest. Empty documents are skipped.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(source_name: &str, text: &str) -> Result<Vec<Document>, Error> {
    let mut out = Vec::new();
    for (index, value) in values(source_name, text)? {
        expand(source_name, index, value, 0, &mut out)?;
    }
    Ok(out)
}

/// Parses one object that is JSON already, as in the state directory.
///
/// # Errors
/// As [`parse`].
pub fn parse_value(source_name: &str, value: Value) -> Result<Document, Error> {
    typed(source_name, 1, value)
}

/// The documents of a text as JSON, untyped, each with its position from 1. Empty ones are skipped.
///
/// # Errors
/// Bad YAML or JSON, with line and column.
pub fn values(source_name: &str, text: &str) -> Result<Vec<(usize, Value)>, Error> {
    let fail = |document: usize, message: String| Error {
        file: source_name.to_owned(),
        document,
        object: None,
        field: None,
        message,
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Vec::new();
    if text.trim_start().starts_with('{') {
        // JSON, which YAML does not quite contain (tabs): one object or several one after the other.
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let mut json = Vec::new();
        let complete = loop {
            match stream.next() {
                Some(Ok(value)) => json.push((json.len() + 1, value)),
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            }
        };
        match complete {
            Ok(()) => return Ok(json),
            // Flow-style YAML also begins with a brace; let the YAML parser have the last word, unless the text is JSON
            // nested too deeply, which YAML's would take very long to find out.
            Err(error)
                if error.to_string().contains("recursion limit")
                    || (!text.contains("\n---") && serde_yaml_ng::from_str::<serde_yaml_ng::Value>(text).is_err()) =>
            {
                return Err(fail(json.len() + 1, format!("not valid JSON: {error}")));
            }
            Err(_) => {}
        }
    }
    for (at, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let index = at + 1;
        let yaml = serde_yaml_ng::Value::deserialize(document).map_err(|error| {
            let message = match error.location() {
                // The parser's own message does not always name the place.
                Some(place) if !error.to_string().contains("line") => {
                    format!("not valid YAML: {error} at line {} column {}", place.line(), place.column())
                }
                _ => format!("not valid YAML: {error}"),
            };
            fail(index, message)
        })?;
        let mut yaml = yaml;
        yaml.apply_merge().map_err(|error| fail(index, format!("not valid YAML: {error}")))?;
        let value = json(yaml, &mut String::new()).map_err(|(field, message)| Error {
            field: Some(field).filter(|f| !f.is_empty()),
            ..fail(index, message)
        })?;
        if !value.is_null() {
            out.push((index, value));
        }
    }
    Ok(out)
}

/// YAML has more than JSON: keys that are no strings, tags, infinite numbers.
fn json(value: serde_yaml_ng::Value, path: &mut String) -> Result<Value, (String, String)> {
    use serde_yaml_ng::Value as Yaml;
    let refuse = |path: &str, message: &str| (path.to_owned(), message.to_owned());
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(b) => Value::Bool(b),
        Yaml::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(n), _, _) => n.into(),
            (_, Some(n), _) => n.into(),
            (_, _, Some(n)) => serde_json::Number::from_f64(n)
                .map(Value::Number)
                .ok_or_else(|| refuse(path, "a number must be finite"))?,
            _ => return Err(refuse(path, "not a number that can be represented")),
        },
        Yaml::String(s) => match file_mode(path, &s) {
            Some(mode) => mode.into(),
            None => Value::String(s),
        },
        Yaml::Sequence(items) => {
            let mut out = Vec::with_capacity(items.len());
            for (at, item) in items.into_iter().enumerate() {
                let length = path.len();
                path.push_str(&format!("[{at}]"));
                out.push(json(item, path)?);
                path.truncate(length);
            }
            Value::Array(out)
        }
        Yaml::Mapping(items) => {
            let mut out = Map::with_capacity(items.len());
            for (key, item) in items {
                let key = match key {
                    Yaml::String(key) => key,
                    // As Kubernetes' own YAML reader does, so that `80: x` in a ConfigMap means "80".
                    Yaml::Number(n) => n.to_string(),
                    Yaml::Bool(b) => b.to_string(),
                    _ => return Err(refuse(path, "a key must be a string")),
                };
                let length = path.len();
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(&key);
                let item = json(item, path)?;
                path.truncate(length);
                out.insert(key, item);
            }
            Value::Object(out)
        }
        Yaml::Tagged(tagged) => return Err(refuse(path, &format!("YAML tag {} is not supported", tagged.tag))),
    })
}

/// Modes of files are written in octal, as `0400`. Kubernetes reads YAML 1.1, in which that is a number; in YAML 1.2 it is a
/// string.
fn file_mode(path: &str, text: &str) -> Option<u32> {
    let (parent, field) = path.rsplit_once('.')?;
    let is_mode = matches!(field, "defaultMode" | "mode") && parent.contains("spec.volumes[");
    let digits = text.strip_prefix('0').filter(|_| is_mode)?;
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777)
}

fn expand(file: &str, index: usize, value: Value, depth: usize, out: &mut Vec<Document>) -> Result<(), Error> {
    let is_list = value.get("kind").and_then(Value::as_str).is_some_and(|k| k == "List")
        && value.get("apiVersion").and_then(Value::as_str) == Some("v1");
    if !is_list {
        out.push(typed(file, index, value)?);
        return Ok(());
    }
    let refuse = |message: &str| Error {
        file: file.to_owned(),
        document: index,
        object: Some("List".into()),
        field: Some("items".into()),
        message: message.into(),
    };
    if depth >= MAX_LIST_DEPTH {
        return Err(refuse("Lists are nested too deeply"));
    }
    let Value::Object(mut list) = value else { return Ok(()) };
    let Some(Value::Array(items)) = list.remove("items") else {
        return Err(refuse("a List needs an array of items"));
    };
    for item in items {
        expand(file, index, item, depth + 1, out)?;
    }
    Ok(())
}

fn typed(file: &str, index: usize, value: Value) -> Result<Document, Error> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|s| !s.is_empty());
    let name = value.pointer("/metadata/name").and_then(Value::as_str);
    let object = text("kind").map(|kind| match name {
        Some(name) => format!("{kind}/{name}"),
        None => kind.to_owned(),
    });
    let fail = |field: Option<String>, message: String| Error {
        file: file.to_owned(),
        document: index,
        object: object.clone(),
        field: field.filter(|f| !f.is_empty() && f != "."),
        message,
    };
    if !value.is_object() {
        return Err(fail(None, "a manifest must be a mapping with apiVersion, kind and metadata".into()));
    }
    let api_version = text("apiVersion").ok_or_else(|| fail(Some("apiVersion".into()), "is required".into()))?;
    let kind_name = text("kind").ok_or_else(|| fail(Some("kind".into()), "is required".into()))?;
    let kind = Kind::from_manifest(api_version, kind_name).ok_or_else(|| {
        match Kind::ALL.iter().find(|k| k.as_str() == kind_name) {
            Some(_) => fail(
                Some("apiVersion".into()),
                format!("{kind_name} is of {}, not of {api_version}", versions(kind_name)),
            ),
            None => fail(Some("kind".into()), format!("unknown kind {kind_name} of {api_version}")),
        }
    })?;
    let read = match mesh::read(&value).map_err(|error| fail(Some(error.field), error.message))? {
        Some(typed) => Ok(typed),
        None => Object::from_value(kind, value.clone()),
    };
    let typed = read.map_err(|error| {
        let (field, message) = fault(error);
        fail(Some(field), message)
    })?;
    if let Some(field) = unknown_field(&value, &typed.to_value(), &mut String::new()) {
        return Err(fail(Some(field), "unknown field".into()));
    }
    validate::object(&typed).map_err(|(field, message)| fail(Some(field), message))?;
    Ok(Document { index, object: typed, value, file: file.to_owned() })
}

/// Every `apiVersion` of the kinds of this name.
fn versions(kind: &str) -> String {
    let kinds = Kind::ALL.iter().filter(|k| k.as_str() == kind);
    kinds.flat_map(|k| k.api_versions()).copied().collect::<Vec<_>>().join(", ")
}

/// Path and sentence of what could not be typed.
pub(crate) fn fault(error: serde_path_to_error::Error<serde_json::Error>) -> (String, String) {
    let field = error.path().to_string();
    (field, plain(&error.into_inner().to_string()))
}

/// serde_json adds a place in a text that was never there.
fn plain(message: &str) -> String {
    match message.split_once(" at line 0 column 0") {
        Some((message, _)) => message.to_owned(),
        None => message.to_owned(),
    }
}

/// The first field that was written and that the typed form does not have. Nulls mean absence.
fn unknown_field(written: &Value, known: &Value, path: &mut String) -> Option<String> {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => written.iter().find_map(|(key, value)| {
            let length = path.len();
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(key);
            let found = match known.get(key) {
                Some(known) => unknown_field(value, known, path),
                None if value.is_null() || vanishes(value) => None,
                None => Some(path.clone()),
            };
            path.truncate(length);
            found
        }),
        (Value::Array(written), Value::Array(known)) => {
            written.iter().zip(known).enumerate().find_map(|(at, (written, known))| {
                let length = path.len();
                path.push_str(&format!("[{at}]"));
                let found = unknown_field(written, known, path);
                path.truncate(length);
                found
            })
        }
        _ => None,
    }
}

/// The typed form leaves out required lists and maps that are empty, so an empty one proves nothing.
fn vanishes(value: &Value) -> bool {
    matches!(value, Value::Array(items) if items.is_empty()) || matches!(value, Value::Object(map) if map.is_empty())
}
