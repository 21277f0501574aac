//! Text to a tree.

use super::Error;
use serde_json::{Number, Value};
use std::collections::BTreeMap;

/// What a template is made of.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    /// Prints what the pipeline gives, unless it sets a variable.
    Action(usize, Pipeline),
    If(usize, Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    With(usize, Pipeline, Vec<Node>, Vec<Node>),
    Range {
        line: usize,
        key: Option<String>,
        value: Option<String>,
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Template(usize, String, Option<Pipeline>),
}

/// Commands, each of which gets the result of the one before as its last argument.
#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    /// Variable, and whether it is a new one.
    pub set: Option<(String, bool)>,
    pub commands: Vec<Vec<Term>>,
}

#[derive(Debug, Clone)]
pub(super) enum Term {
    Literal(Value),
    /// `.`, `.a.b`
    Field(Vec<String>),
    /// `$`, `$x`, `$x.a`
    Variable(String, Vec<String>),
    Function(String),
    /// `(…)`, `(…).a`
    Group(Pipeline, Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Field(String),
    Dot,
    Variable(String),
    Literal(Value),
    Open,
    Close,
    Pipe,
    Comma,
    Declare,
    Assign,
    /// What follows stands directly behind a `)` or variable: `.a`.
    Attached(String),
}

struct Parser<'a> {
    name: &'a str,
    pieces: Vec<Piece>,
    at: usize,
    defined: &'a mut BTreeMap<String, Vec<Node>>,
}

enum Piece {
    Text(String),
    Action(usize, Vec<Token>),
}

/// Reads a template. What it defines goes into `defined`, and so does itself under its own name.
pub(super) fn parse(name: &str, source: &str, defined: &mut BTreeMap<String, Vec<Node>>) -> Result<(), Error> {
    let pieces = split(name, source)?;
    let mut parser = Parser { name, pieces, at: 0, defined };
    let (nodes, end) = parser.block()?;
    if let Some((line, tokens)) = end {
        let word = match tokens.first() {
            Some(Token::Word(word)) => word.clone(),
            _ => String::new(),
        };
        return Err(parser.error(line, format!("{{{{ {word} }}}} without a beginning")));
    }
    parser.defined.insert(name.to_owned(), nodes);
    Ok(())
}

/// Cuts a source into texts and actions, and removes the space that `{{-` and `-}}` ask to remove.
fn split(name: &str, source: &str) -> Result<Vec<Piece>, Error> {
    let mut pieces = Vec::new();
    let (mut rest, mut line, mut trim_next) = (source, 1, false);
    loop {
        let begin = rest.find("{{");
        let (text, after) = match begin.and_then(|at| rest.split_at_checked(at)) {
            Some((text, after)) => (text, Some(after.get(2..).unwrap_or_default())),
            None => (rest, None),
        };
        let trim_this = after.is_some_and(|a| a.starts_with("- ") || a.starts_with("-\n"));
        let mut shown = if trim_next { text.trim_start() } else { text };
        if trim_this {
            shown = shown.trim_end();
        }
        if !shown.is_empty() {
            pieces.push(Piece::Text(shown.to_owned()));
        }
        line += text.matches('\n').count();
        let Some(after) = after else { return Ok(pieces) };
        let inner = if trim_this { after.get(1..).unwrap_or_default() } else { after };
        let error = |message: &str| Error { template: name.to_owned(), line, message: message.to_owned(), said: false };
        let comment = inner.trim_start().starts_with("/*");
        let end = if comment {
            let close = inner.find("*/").ok_or_else(|| error("a comment without its end"))?;
            let tail = inner.get(close..).unwrap_or_default();
            close + tail.find("}}").ok_or_else(|| error("{{ without }}"))?
        } else {
            close_of(inner).map_err(error)?
        };
        let (body, tail) = inner.split_at(end);
        trim_next = body.ends_with(" -") || body.ends_with("\n-");
        if !comment {
            let body = if trim_next { body.strip_suffix('-').unwrap_or(body) } else { body };
            let tokens = tokens(body).map_err(|message| error(&message))?;
            if tokens.is_empty() {
                return Err(error("nothing stands between {{ and }}"));
            }
            pieces.push(Piece::Action(line, tokens));
        }
        line += body.matches('\n').count();
        rest = tail.get(2..).unwrap_or_default();
    }
}

/// Where the action ends; texts inside it may contain braces.
fn close_of(inner: &str) -> Result<usize, &'static str> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if inner.get(at..).is_some_and(|rest| rest.starts_with("}}")) => return Ok(at),
            None => {}
        }
    }
    Err(if quote.is_some() { "a text without its end" } else { "{{ without }}" })
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn tokens(body: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    let mut rest = body;
    let mut spaced = true;
    while let Some(c) = rest.chars().next() {
        let tail = rest.get(c.len_utf8()..).unwrap_or_default();
        let word = |from: &str| from.find(|c| !is_word(c)).unwrap_or(from.len());
        let attached = !spaced;
        spaced = false;
        match c {
            c if c.is_whitespace() => {
                spaced = true;
                rest = tail;
            }
            '(' => {
                out.push(Token::Open);
                spaced = true;
                rest = tail;
            }
            ')' => {
                out.push(Token::Close);
                rest = tail;
            }
            '|' | ',' | '=' => {
                out.push(match c {
                    '|' => Token::Pipe,
                    ',' => Token::Comma,
                    _ => Token::Assign,
                });
                spaced = true;
                rest = tail;
            }
            ':' if tail.starts_with('=') => {
                out.push(Token::Declare);
                spaced = true;
                rest = tail.get(1..).unwrap_or_default();
            }
            '"' => {
                let end = closing_quote(tail).ok_or("a text without its end")?;
                // Go's texts and those of JSON are alike as far as the chart goes.
                let text: String = serde_json::from_str(&format!("\"{}\"", tail.get(..end).unwrap_or_default()))
                    .map_err(|e| format!("a text that is not understood: {e}"))?;
                out.push(Token::Literal(text.into()));
                rest = tail.get(end + 1..).unwrap_or_default();
            }
            '`' => {
                let end = tail.find('`').ok_or("a text without its end")?;
                out.push(Token::Literal(tail.get(..end).unwrap_or_default().into()));
                rest = tail.get(end + 1..).unwrap_or_default();
            }
            '.' => {
                let end = word(tail);
                let name = tail.get(..end).unwrap_or_default().to_owned();
                out.push(match (name.is_empty(), attached) {
                    (true, _) => Token::Dot,
                    (false, true) => Token::Attached(name),
                    (false, false) => Token::Field(name),
                });
                rest = tail.get(end..).unwrap_or_default();
            }
            '$' => {
                let end = word(tail);
                out.push(Token::Variable(tail.get(..end).unwrap_or_default().to_owned()));
                rest = tail.get(end..).unwrap_or_default();
            }
            c if c.is_ascii_digit() || (c == '-' && tail.starts_with(|d: char| d.is_ascii_digit())) => {
                let end = tail.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(tail.len()) + 1;
                let (text, after) = rest.split_at(end);
                let number: Number = text.parse().map_err(|_| format!("{text} is not a number"))?;
                out.push(Token::Literal(number.into()));
                rest = after;
            }
            c if is_word(c) => {
                let end = word(rest);
                let (text, after) = rest.split_at(end);
                out.push(match text {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                });
                rest = after;
            }
            other => return Err(format!("{other:?} is not understood")),
        }
    }
    Ok(out)
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let closing = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closing.then_some(at)
    })
}

/// What ended a block: `end`, or `else …`.
type End = Option<(usize, Vec<Token>)>;

impl Parser<'_> {
    fn error(&self, line: usize, message: impl Into<String>) -> Error {
        Error { template: self.name.to_owned(), line, message: message.into(), said: false }
    }

    /// Nodes until `end`, `else` or the end of the source.
    fn block(&mut self) -> Result<(Vec<Node>, End), Error> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.get_mut(self.at) {
            self.at += 1;
            let (line, tokens) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(std::mem::take(text)));
                    continue;
                }
                Piece::Action(line, tokens) => (*line, std::mem::take(tokens)),
            };
            let word = match tokens.first() {
                Some(Token::Word(word)) => word.as_str(),
                _ => "",
            };
            let rest = tokens.get(1..).unwrap_or_default();
            match word {
                "end" | "else" => return Ok((nodes, Some((line, tokens)))),
                "if" => nodes.push(self.branches(line, rest)?),
                "with" => {
                    let pipeline = self.pipeline(line, rest)?;
                    let (body, otherwise) = self.body(line, "with")?;
                    nodes.push(Node::With(line, pipeline, body, otherwise));
                }
                "range" => nodes.push(self.range(line, rest)?),
                "define" => {
                    let [Token::Literal(Value::String(name))] = rest else {
                        return Err(self.error(line, "define is followed by a name"));
                    };
                    let (body, _) = self.body(line, "define")?;
                    self.defined.insert(name.clone(), body);
                }
                "template" => {
                    let Some((Token::Literal(Value::String(name)), argument)) = rest.split_first() else {
                        return Err(self.error(line, "template is followed by a name"));
                    };
                    let argument = (!argument.is_empty()).then(|| self.pipeline(line, argument)).transpose()?;
                    nodes.push(Node::Template(line, name.clone(), argument));
                }
                _ => nodes.push(Node::Action(line, self.pipeline(line, &tokens)?)),
            }
        }
        Ok((nodes, None))
    }

    /// What stands between a beginning and its `end`, and what between its `else` and the `end`.
    fn body(&mut self, line: usize, word: &str) -> Result<(Vec<Node>, Vec<Node>), Error> {
        let open = format!("{{{{ {word} }}}} without {{{{ end }}}}");
        let (body, end) = self.block()?;
        let Some((at, tokens)) = end else { return Err(self.error(line, open)) };
        if tokens.len() > 1 {
            return Err(self.error(at, format!("{word} has no else with a condition here")));
        }
        if tokens == [Token::Word("end".into())] {
            return Ok((body, Vec::new()));
        }
        match self.block()? {
            (otherwise, Some((_, tokens))) if tokens == [Token::Word("end".into())] => Ok((body, otherwise)),
            (_, Some((at, _))) => Err(self.error(at, "else after else")),
            (_, None) => Err(self.error(line, open)),
        }
    }

    fn branches(&mut self, line: usize, condition: &[Token]) -> Result<Node, Error> {
        let mut branches = Vec::new();
        let mut condition = self.pipeline(line, condition)?;
        loop {
            let (body, end) = self.block()?;
            let Some((at, tokens)) = end else { return Err(self.error(line, "{{ if }} without {{ end }}")) };
            branches.push((condition, body));
            match tokens.as_slice() {
                [Token::Word(end)] if end == "end" => return Ok(Node::If(line, branches, Vec::new())),
                [Token::Word(_)] => {
                    let (otherwise, end) = self.block()?;
                    return match end {
                        Some((_, tokens)) if tokens == [Token::Word("end".into())] => {
                            Ok(Node::If(line, branches, otherwise))
                        }
                        Some((at, _)) => Err(self.error(at, "else after else")),
                        None => Err(self.error(line, "{{ if }} without {{ end }}")),
                    };
                }
                [Token::Word(_), Token::Word(again), rest @ ..] if again == "if" => {
                    condition = self.pipeline(at, rest)?;
                }
                _ => return Err(self.error(at, "else is followed by nothing or by if")),
            }
        }
    }

    fn range(&mut self, line: usize, tokens: &[Token]) -> Result<Node, Error> {
        let (key, value, over) = match tokens {
            [Token::Variable(key), Token::Comma, Token::Variable(value), Token::Declare, over @ ..] => {
                (Some(key.clone()), Some(value.clone()), over)
            }
            [Token::Variable(value), Token::Declare, over @ ..] => (None, Some(value.clone()), over),
            over => (None, None, over),
        };
        let over = self.pipeline(line, over)?;
        let (body, otherwise) = self.body(line, "range")?;
        Ok(Node::Range { line, key, value, over, body, otherwise })
    }

    fn pipeline(&self, line: usize, tokens: &[Token]) -> Result<Pipeline, Error> {
        let mut rest = tokens;
        let pipeline = self.pipe(line, &mut rest, 0)?;
        if rest.is_empty() { Ok(pipeline) } else { Err(self.error(line, ") without (")) }
    }

    /// Reads commands until `)` or the end.
    fn pipe(&self, line: usize, rest: &mut &[Token], depth: usize) -> Result<Pipeline, Error> {
        if depth > 32 {
            return Err(self.error(line, "too many ( inside each other"));
        }
        let set = match rest {
            [Token::Variable(name), Token::Declare, tail @ ..] => {
                let name = name.clone();
                *rest = tail;
                Some((name, true))
            }
            [Token::Variable(name), Token::Assign, tail @ ..] => {
                let name = name.clone();
                *rest = tail;
                Some((name, false))
            }
            _ => None,
        };
        let mut commands = vec![Vec::new()];
        while let Some((token, tail)) = rest.split_first() {
            if *token == Token::Close {
                break;
            }
            *rest = tail;
            if *token == Token::Pipe {
                commands.push(Vec::new());
                continue;
            }
            let term = match token {
                Token::Word(name) => Term::Function(name.clone()),
                Token::Literal(value) => Term::Literal(value.clone()),
                Token::Dot => Term::Field(Vec::new()),
                Token::Field(name) => {
                    let mut path = vec![name.clone()];
                    path.extend(attached(rest));
                    Term::Field(path)
                }
                Token::Variable(name) => Term::Variable(name.clone(), attached(rest)),
                Token::Open => {
                    let inner = self.pipe(line, rest, depth + 1)?;
                    let Some((Token::Close, tail)) = rest.split_first() else {
                        return Err(self.error(line, "( without )"));
                    };
                    *rest = tail;
                    Term::Group(inner, attached(rest))
                }
                Token::Comma | Token::Declare | Token::Assign | Token::Attached(_) | Token::Close | Token::Pipe => {
                    return Err(self.error(line, "the order of what stands here is not understood"));
                }
            };
            if let Some(command) = commands.last_mut() {
                command.push(term);
            }
        }
        if commands.iter().any(Vec::is_empty) {
            let message = if depth > 0 && rest.is_empty() { "( without )" } else { "a command is missing" };
            return Err(self.error(line, message));
        }
        Ok(Pipeline { set, commands })
    }
}

/// The fields that stand directly behind: `.a.b`.
fn attached(rest: &mut &[Token]) -> Vec<String> {
    let mut path = Vec::new();
    while let Some((Token::Attached(name), tail)) = rest.split_first() {
        path.push(name.clone());
        *rest = tail;
    }
    path
}
