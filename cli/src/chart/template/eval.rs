//! A tree to text.

use super::parse::{Node, Pipeline, Term, parse};
use super::{Error, functions};
use serde_json::Value;
use std::collections::BTreeMap;

/// Files of the chart that templates may read, by name.
pub type Files<'a> = BTreeMap<&'a str, &'a str>;

/// Templates include each other no deeper than this.
const MAX_DEPTH: usize = 64;

/// Templates, ready to be rendered.
#[derive(Debug)]
pub struct Renderer<'a> {
    templates: BTreeMap<String, Vec<Node>>,
    files: &'a Files<'a>,
    api_versions: &'a [&'a str],
}

struct State<'r> {
    renderer: &'r Renderer<'r>,
    template: String,
    depth: usize,
    /// Innermost last; `$` is the variable without name.
    variables: Vec<(String, Value)>,
}

impl<'a> Renderer<'a> {
    /// Reads templates, each with its name. `api_versions` is what the cluster is said to have.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(
        sources: &[(&str, &str)],
        files: &'a Files<'a>,
        api_versions: &'a [&'a str],
    ) -> Result<Renderer<'a>, Error> {
        let mut templates = BTreeMap::new();
        for (name, source) in sources {
            parse(name, source, &mut templates)?;
        }
        Ok(Renderer { templates, files, api_versions })
    }

    /// Renders one template with this as its dot.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn render(&self, name: &str, dot: &Value) -> Result<String, Error> {
        self.run(name, dot, 0).unwrap_or_else(|| {
            Err(Error { template: name.to_owned(), line: 1, message: "there is no such template".into(), said: false })
        })
    }

    fn run(&self, name: &str, dot: &Value, depth: usize) -> Option<Result<String, Error>> {
        let nodes = self.templates.get(name)?;
        let mut state =
            State { renderer: self, template: name.to_owned(), depth, variables: vec![(String::new(), dot.clone())] };
        let mut out = String::new();
        Some(state.nodes(nodes, dot, &mut out).map(|()| out))
    }
}

impl State<'_> {
    fn error(&self, line: usize, message: impl Into<String>) -> Error {
        Error { template: self.template.clone(), line, message: message.into(), said: false }
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<(), Error> {
        let scope = self.variables.len();
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Action(line, pipeline) => {
                    let value = self.pipeline(*line, pipeline, dot)?;
                    if pipeline.set.is_none() {
                        out.push_str(&functions::show(&value));
                    }
                }
                Node::If(line, branches, otherwise) => self.branches(*line, branches, otherwise, dot, out)?,
                Node::With(line, pipeline, body, otherwise) => {
                    let inner = self.variables.len();
                    let value = self.pipeline(*line, pipeline, dot)?;
                    match functions::truth(&value) {
                        true => self.nodes(body, &value, out)?,
                        false => self.nodes(otherwise, dot, out)?,
                    }
                    self.variables.truncate(inner);
                }
                Node::Range { line, key, value, over, body, otherwise } => {
                    let over = self.pipeline(*line, over, dot)?;
                    let items = self.items(*line, over)?;
                    if items.is_empty() {
                        self.nodes(otherwise, dot, out)?;
                    }
                    for (at, item) in items {
                        let inner = self.variables.len();
                        self.variables.extend(key.clone().map(|name| (name, at)));
                        self.variables.extend(value.clone().map(|name| (name, item.clone())));
                        self.nodes(body, &item, out)?;
                        self.variables.truncate(inner);
                    }
                }
                Node::Template(line, name, argument) => {
                    let argument = match argument {
                        Some(pipeline) => self.pipeline(*line, pipeline, dot)?,
                        None => Value::Null,
                    };
                    out.push_str(&self.include(*line, name, &argument)?);
                }
            }
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn branches(
        &mut self,
        line: usize,
        branches: &[(Pipeline, Vec<Node>)],
        otherwise: &[Node],
        dot: &Value,
        out: &mut String,
    ) -> Result<(), Error> {
        let scope = self.variables.len();
        let mut chosen = otherwise;
        for (condition, body) in branches {
            if functions::truth(&self.pipeline(line, condition, dot)?) {
                chosen = body;
                break;
            }
        }
        self.nodes(chosen, dot, out)?;
        self.variables.truncate(scope);
        Ok(())
    }

    /// What a range goes over, in Go's order: maps by key.
    fn items(&self, line: usize, over: Value) -> Result<Vec<(Value, Value)>, Error> {
        Ok(match over {
            Value::Null => Vec::new(),
            Value::Array(list) => list.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect(),
            Value::Object(map) => {
                let sorted: BTreeMap<String, Value> = map.into_iter().collect();
                sorted.into_iter().map(|(key, item)| (key.into(), item)).collect()
            }
            _ => return Err(self.error(line, "range: neither a list nor a map")),
        })
    }

    fn pipeline(&mut self, line: usize, pipeline: &Pipeline, dot: &Value) -> Result<Value, Error> {
        let mut result = None;
        for command in &pipeline.commands {
            result = Some(self.command(line, command, result, dot)?);
        }
        let value = result.unwrap_or_default();
        match &pipeline.set {
            Some((name, true)) => self.variables.push((name.clone(), value.clone())),
            Some((name, false)) => {
                let known = self.variables.iter_mut().rev().find(|(n, _)| n == name);
                match known {
                    Some((_, slot)) => *slot = value.clone(),
                    None => return Err(self.error(line, format!("there is no variable ${name}"))),
                }
            }
            None => {}
        }
        Ok(value)
    }

    fn command(&mut self, line: usize, terms: &[Term], piped: Option<Value>, dot: &Value) -> Result<Value, Error> {
        let Some((first, rest)) = terms.split_first() else { return Ok(Value::Null) };
        match first {
            Term::Function(name) => self.call(line, name, rest, piped, dot),
            Term::Field(path) | Term::Variable(_, path) if is_method(path) => {
                let mut arguments = self.arguments(line, rest, dot)?;
                arguments.extend(piped);
                self.method(line, path, &arguments)
            }
            _ if rest.is_empty() && piped.is_none() => self.term(line, first, dot),
            Term::Field(path) | Term::Variable(_, path) | Term::Group(_, path) => {
                Err(self.error(line, format!(".{} is no function", path.join("."))))
            }
            Term::Literal(_) => Err(self.error(line, "a value is no function")),
        }
    }

    fn arguments(&mut self, line: usize, terms: &[Term], dot: &Value) -> Result<Vec<Value>, Error> {
        terms.iter().map(|term| self.term(line, term, dot)).collect()
    }

    fn call(
        &mut self,
        line: usize,
        name: &str,
        terms: &[Term],
        piped: Option<Value>,
        dot: &Value,
    ) -> Result<Value, Error> {
        // These two look only as far as they must: what comes behind may be there only under the condition.
        if name == "and" || name == "or" {
            let mut last = Value::Null;
            for term in terms {
                last = self.term(line, term, dot)?;
                if functions::truth(&last) == (name == "or") {
                    return Ok(last);
                }
            }
            return Ok(piped.unwrap_or(last));
        }
        let mut arguments = self.arguments(line, terms, dot)?;
        arguments.extend(piped);
        if name == "include" {
            let [Value::String(template), argument] = arguments.as_slice() else {
                return Err(self.error(line, "include: a name and a value are needed"));
            };
            return self.include(line, template, argument).map(Value::String);
        }
        let said = name == "required" || name == "fail";
        functions::call(name, &arguments).map_err(|message| Error { said, ..self.error(line, message) })
    }

    fn include(&self, line: usize, name: &str, argument: &Value) -> Result<String, Error> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(line, format!("templates include each other without end, at {name:?}")));
        }
        self.renderer
            .run(name, argument, self.depth + 1)
            .unwrap_or_else(|| Err(self.error(line, format!("there is no template {name:?}"))))
    }

    fn method(&self, line: usize, path: &[String], arguments: &[Value]) -> Result<Value, Error> {
        let [Value::String(argument)] = arguments else {
            return Err(self.error(line, format!(".{}: one text is needed", path.join("."))));
        };
        if path.last().is_some_and(|last| last == "Get") {
            let text = self.renderer.files.get(argument.as_str());
            return match text {
                Some(text) => Ok((*text).into()),
                None => Err(self.error(line, format!("there is no file {argument}"))),
            };
        }
        Ok(self.renderer.api_versions.contains(&argument.as_str()).into())
    }

    fn term(&mut self, line: usize, term: &Term, dot: &Value) -> Result<Value, Error> {
        match term {
            Term::Literal(value) => Ok(value.clone()),
            Term::Field(path) => self.field(line, dot, path, ""),
            Term::Variable(name, path) => {
                let value = self.variables.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value);
                let value = value.ok_or_else(|| self.error(line, format!("there is no variable ${name}")))?;
                self.field(line, value, path, &format!("${name}"))
            }
            Term::Group(pipeline, path) => {
                let value = self.pipeline(line, pipeline, dot)?;
                self.field(line, &value, path, "(…)")
            }
            Term::Function(name) => self.call(line, name, &[], None, dot),
        }
    }

    fn field(&self, line: usize, value: &Value, path: &[String], origin: &str) -> Result<Value, Error> {
        let mut value = value;
        for (at, key) in path.iter().enumerate() {
            let so_far = || {
                let shown: String = path.iter().take(at).map(|key| format!(".{key}")).collect();
                format!("{origin}{shown}")
            };
            value = match value {
                Value::Object(map) => map.get(key).unwrap_or(&Value::Null),
                Value::Null => return Err(self.error(line, format!("{} is empty, so it has no {key}", so_far()))),
                _ => return Err(self.error(line, format!("{} has no fields, so no {key}", so_far()))),
            };
        }
        Ok(value.clone())
    }
}

/// `.Files.Get` and `.Capabilities.APIVersions.Has`, the methods that charts call.
fn is_method(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(path.as_slice(), [.., "Files", "Get"] | [.., "Capabilities", "APIVersions", "Has"])
}
