//! Bodies: where they end, and their octets without framing.

use super::head::{self, Scan};
use super::{ErrorKind, Event, Framing};
use crate::limits::Limits;

/// The limits that both decoders need, small enough to live in every connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) head: usize,
    pub(super) fields: usize,
    chunk_line: usize,
    chunk_extensions: usize,
    trailer: usize,
}

impl Bounds {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            head: limits.head_size,
            fields: limits.header_count,
            chunk_line: limits.chunk_line,
            chunk_extensions: limits.chunk_extensions,
            trailer: limits.trailer_size,
        }
    }
}

#[derive(Debug)]
enum State {
    /// Complete; `End` is still to be given.
    End,
    Length(u64),
    ChunkLine,
    ChunkData(u64),
    ChunkEnd,
    Trailers(Scan),
    UntilClose,
}

/// Reads one body.
#[derive(Debug)]
pub(super) struct Body {
    state: State,
    extensions: usize,
}

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::End,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::ChunkLine,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0 }
    }

    pub(super) fn is_until_close(&self) -> bool {
        matches!(self.state, State::UntilClose)
    }

    /// As the decoders' `decode`. After `End` the body is used up.
    pub(super) fn decode<'i, H>(
        &mut self,
        input: &'i [u8],
        bounds: &Bounds,
    ) -> Result<(usize, Option<Event<'i, H>>), ErrorKind> {
        let mut used = 0;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            match &mut self.state {
                State::End => return Ok((used, Some(Event::End))),
                State::Length(left) => {
                    let data = front(rest, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.state = State::End;
                    }
                    return Ok(piece(used, data));
                }
                State::UntilClose => return Ok(piece(used, rest)),
                State::ChunkLine => {
                    let Some(line) = chunk_line(rest, bounds.chunk_line)? else { return Ok((used, None)) };
                    self.extensions += line.extension;
                    if self.extensions > bounds.chunk_extensions {
                        return Err(ErrorKind::ChunkExtensionsTooLarge);
                    }
                    used += line.octets;
                    self.state =
                        if line.size == 0 { State::Trailers(Scan::default()) } else { State::ChunkData(line.size) };
                }
                State::ChunkData(left) => {
                    let data = front(rest, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.state = State::ChunkEnd;
                    }
                    return Ok(piece(used, data));
                }
                State::ChunkEnd => match rest {
                    [] | [b'\r'] => return Ok((used, None)),
                    [b'\r', b'\n', ..] => {
                        used += 2;
                        self.state = State::ChunkLine;
                    }
                    _ => return Err(ErrorKind::ChunkEnd),
                },
                State::Trailers(scan) => {
                    let Some(end) = scan.end(rest, bounds.trailer, |_| ErrorKind::TrailerTooLarge)? else {
                        return Ok((used, None));
                    };
                    self.state = State::End;
                    used += end;
                    if end > 2 {
                        let section = rest.get(..end).unwrap_or_default();
                        let trailers = head::trailers(section, bounds.fields)?;
                        if !trailers.is_empty() {
                            return Ok((used, Some(Event::Trailers(trailers))));
                        }
                    }
                }
            }
        }
    }
}

fn front(bytes: &[u8], limit: u64) -> &[u8] {
    usize::try_from(limit).ok().and_then(|limit| bytes.get(..limit)).unwrap_or(bytes)
}

fn piece<H>(used: usize, data: &[u8]) -> (usize, Option<Event<'_, H>>) {
    (used + data.len(), (!data.is_empty()).then_some(Event::Data(data)))
}

struct ChunkLine {
    octets: usize,
    size: u64,
    extension: usize,
}

/// Reads a chunk-size line. Extensions are checked and dropped: nobody downstream should have to read them.
fn chunk_line(input: &[u8], limit: usize) -> Result<Option<ChunkLine>, ErrorKind> {
    let window = input.get(..limit).unwrap_or(input);
    let Some(lf) = memchr::memchr(b'\n', window) else {
        return if input.len() >= limit { Err(ErrorKind::ChunkLineTooLong) } else { Ok(None) };
    };
    let line = window.get(..lf).unwrap_or_default();
    let Some((b'\r', line)) = line.split_last() else { return Err(ErrorKind::BareLineFeed) };
    let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extension) = line.split_at(digits);
    // A signed 64-bit number, as for content-length.
    if digits.is_empty() || digits.len() > 16 {
        return Err(ErrorKind::ChunkSize);
    }
    let size = digits.iter().fold(0u64, |n, &d| (n << 4) | (d as char).to_digit(16).map_or(0, u64::from));
    if size > i64::MAX as u64 {
        return Err(ErrorKind::ChunkSize);
    }
    if !extension.is_empty() {
        let text = extension.iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f));
        match extension.trim_ascii_start().first() {
            Some(b';') if text => {}
            Some(b';') => return Err(ErrorKind::ChunkExtension),
            _ => return Err(ErrorKind::ChunkSize),
        }
    }
    Ok(Some(ChunkLine { octets: lf + 1, size, extension: extension.len() }))
}
