//! HTTP/2 (RFC 9113) without I/O: bytes in, events out, bytes out.
//!
//! A [`Connection`] is one end of a connection, client or server. The driver reads from its socket, hands the octets to
//! [`Connection::next`] until they are used up, acts on the events, and writes what is in [`Connection::output`] once a
//! turn, however many frames the turn produced. After writing it calls [`Connection::pump`], which continues with bodies
//! that had to wait for room in the output. About once a second it calls [`Connection::tick`].
//!
//! Layers, from the bottom: `frame` (octets of frames), [`hpack`] (header compression), `message` (what a header list
//! means and whether it is well formed), `stream` (states and queues), `flow` (windows), `guard` (floods), and
//! `connection`, `receive`, `control` and `send`, which tie them together.
//!
//! # Flow control
//!
//! Receiving: every [`Event::Data`] carries the octets it cost, and the driver gives them back by
//! [`Connection::release`] when it has passed the data on; what a reset stream held is given back by itself. The window of
//! the connection is given back before that, up to [`Limits::held`](crate::Limits::held), so that streams which stand still
//! stop nobody else: what one can hold is bounded by its own window. Sending:
//! [`Connection::send_data`] sends what the windows allow and queues the rest; the driver stops reading its source when
//! [`Connection::is_full`] says so and goes on at [`Event::Writable`].
//!
//! # What a peer cannot do
//!
//! Everything a peer can make this end keep or send is bounded by [`Limits`](crate::Limits). A malformed message is an
//! error of its stream, a broken frame one of the connection, a flood is answered by ENHANCE_YOUR_CALM.

mod connection;
mod control;
mod flow;
mod frame;
pub mod fuzzing;
mod guard;
pub mod hpack;
mod message;
mod receive;
mod send;
mod stream;

use std::fmt;

pub use connection::Connection;

use crate::{Headers, Request, Response};

/// Identifies a stream within its connection; odd ones are opened by the client.
pub type StreamId = u32;

/// Why a stream or a connection ended (RFC 9113 §7).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(pub u32);

impl Reason {
    /// Graceful, or no fault.
    pub const NO_ERROR: Self = Self(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// Something failed inside.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// More data than the window allowed, or a window over 2^31-1.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// SETTINGS were not acknowledged in time.
    pub const SETTINGS_TIMEOUT: Self = Self(4);
    /// A frame for a stream that had ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame of a wrong size.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// The request was not looked at and can be repeated safely.
    pub const REFUSED_STREAM: Self = Self(7);
    /// Nobody waits for this stream any more.
    pub const CANCEL: Self = Self(8);
    /// The header compression state is lost.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// A tunnel's connection was reset or ended abnormally.
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer causes more load than is tolerated.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
    /// The transport is not secure enough.
    pub const INADEQUATE_SECURITY: Self = Self(12);
    /// The request must be made over HTTP/1.1.
    pub const HTTP_1_1_REQUIRED: Self = Self(13);

    /// The name that the RFC gives it; `UNKNOWN` for codes it does not define.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(self.0 as usize).copied().unwrap_or("UNKNOWN")
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An error that ends the connection. GOAWAY with its reason is in the output: flush it, then close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("HTTP/2 connection error {reason}: {detail}")]
pub struct Error {
    /// The code sent in GOAWAY.
    pub reason: Reason,
    /// What the peer did, for logs.
    pub detail: &'static str,
}

/// Why a request could not be sent on this connection. Nothing was sent, so it can go to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// All stream identifiers of the connection are used up.
    #[error("the connection has no stream identifiers left")]
    Exhausted,
    /// The connection is being closed by this end, by the peer, or after an error.
    #[error("the connection is going away")]
    GoingAway,
    /// The peer allows no further concurrent stream at the moment.
    #[error("the peer allows no more concurrent streams")]
    Busy,
}

/// What the peer did.
#[derive(Debug, PartialEq)]
pub enum Event<'i> {
    /// A request arrived (server).
    Request {
        /// Its stream.
        id: StreamId,
        /// Method, target and fields.
        head: Request,
        /// True when there is neither body nor trailers.
        end: bool,
    },
    /// A 1xx response arrived (client); the final one follows.
    Informational {
        /// Its stream.
        id: StreamId,
        /// Status and fields.
        head: Response,
    },
    /// The final response arrived (client).
    Response {
        /// Its stream.
        id: StreamId,
        /// Status and fields.
        head: Response,
        /// True when there is neither body nor trailers.
        end: bool,
    },
    /// A piece of a body. Pieces need not be frames.
    Data {
        /// Its stream.
        id: StreamId,
        /// May be empty, when `end` comes alone.
        data: &'i [u8],
        /// Octets to give to [`Connection::release`] once the data was passed on: the data and its padding.
        flow: u32,
        /// True when the body and the message end here.
        end: bool,
    },
    /// Trailers arrived; they end the message.
    Trailers {
        /// Their stream.
        id: StreamId,
        /// The fields.
        headers: Headers,
    },
    /// The stream is over and gone: the peer reset it, refused it (GOAWAY), or broke the rules on it. Data that was queued
    /// for it is dropped, and what it held of the receive windows is given back.
    Reset {
        /// The stream.
        id: StreamId,
        /// The peer's code, or the one that this end sent because of the peer's fault.
        reason: Reason,
    },
    /// The stream's queue fell to [`LOW_MARK`] after [`Connection::is_full`] was true.
    Writable {
        /// The stream.
        id: StreamId,
    },
    /// The peer's SETTINGS were applied; [`Connection::can_open`] may have changed.
    Settings,
    /// The peer takes no new streams. Streams above `last` follow as [`Event::Reset`] with REFUSED_STREAM.
    GoAway {
        /// The highest stream that the peer has dealt with or will.
        last: StreamId,
        /// Why.
        reason: Reason,
    },
    /// The answer to [`Connection::ping`].
    Pong,
}

/// Octets in a stream's queue from which on it counts as full.
pub const HIGH_MARK: usize = 64 * 1024;

/// Octets in a stream's queue at which a full one becomes writable again.
pub const LOW_MARK: usize = 16 * 1024;

/// Octets of output beyond which bodies wait in their streams' queues until [`Connection::pump`].
pub const OUTPUT_MARK: usize = 256 * 1024;
