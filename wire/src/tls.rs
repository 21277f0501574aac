//! TLS without I/O: rustls's unbuffered API behind one small type.
//!
//! The unbuffered API keeps no buffers of its own, which is what makes an idle connection cost nothing, but it asks for
//! care: the same front of the input must be presented again until rustls lets go of it, also when something is to be
//! sent. [`Session`] takes that care. It keeps an incomplete record (or handshake message in several records) itself, so a
//! caller's read buffer is always used up and may be shared by all connections of a thread.
//!
//! There is no record layer of ours here, and nothing is decided here: versions, groups, certificates and names are the
//! configuration's.

use std::fmt;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ClientConfig, CommonState, InvalidMessage, ProtocolVersion, ServerConfig};

/// What went wrong in a session. The alert to send is already in the output; flush it and close.
pub type Error = rustls::Error;

/// Octets of a record header.
const RECORD_HEADER: usize = 5;
/// What a record adds to its plaintext in TLS 1.3: header, content type and tag.
const RECORD_OVERHEAD: usize = RECORD_HEADER + 1 + 16;
/// Largest plaintext of a record.
const RECORD_PLAIN: usize = 16 * 1024;
/// Most that is kept of a handshake message in pieces. rustls accepts 64 KiB; a peer that cuts one so small that the
/// overhead doubles it is up to something.
const KEPT_LIMIT: usize = 128 * 1024;

/// One TLS connection, either side.
pub struct Session {
    side: Side,
    /// Octets that rustls has not let go of: complete records of an incomplete handshake message, then one incomplete record.
    kept: Vec<u8>,
    /// Where in `kept` the incomplete record begins.
    record: usize,
    received_close: bool,
    sent_close: bool,
    failed: Option<Error>,
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// The two connection types have the same method without a common trait.
trait Process {
    type Data;
    fn common(&self) -> &CommonState;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Process for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn common(&self) -> &CommonState {
        self
    }
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
}

impl Process for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn common(&self) -> &CommonState {
        self
    }
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }
}

impl Session {
    /// The client's side. Call [`Session::recv`] with empty input at once: it writes the ClientHello.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::new(Side::Client(Box::new(UnbufferedClientConnection::new(config, name)?))))
    }

    /// The server's side.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::new(Side::Server(Box::new(UnbufferedServerConnection::new(config)?))))
    }

    fn new(side: Side) -> Self {
        Self { side, kept: Vec::new(), record: 0, received_close: false, sent_close: false, failed: None }
    }

    /// Takes all of `input`, appends plaintext to `plain` and handshake or alert octets to `out`. `input` is empty after.
    ///
    /// When it fails, `plain` holds what came before the failure and `out` the alert to send. Every further call fails alike.
    pub fn recv(&mut self, input: &mut Vec<u8>, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Error> {
        let result = self.recv_slice(input, plain, out);
        input.clear();
        result
    }

    /// As [`Session::recv`], with input of any owner. It is decrypted in place: what it holds after is of no use.
    pub fn recv_slice(&mut self, input: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance(input, plain, out);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.kept = Vec::new();
        }
        result
    }

    fn advance(&mut self, mut input: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Error> {
        // Only as much is copied as completes the record that is kept; what follows it is decrypted where it lies.
        while !self.kept.is_empty() {
            let missing = missing(self.kept.get(self.record..).unwrap_or_default());
            let (front, rest) = input.split_at_mut(missing.min(input.len()));
            input = rest;
            self.kept.extend_from_slice(front);
            if front.len() < missing {
                return Ok(());
            }
            if self.kept.len() > KEPT_LIMIT {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            // With its header alone too: rustls refuses a bad one at once.
            let end = incomplete(&self.kept, self.record);
            let used = self.side.advance(&mut self.kept, plain, out, &mut self.received_close)?;
            self.kept.drain(..used.min(self.kept.len()));
            self.record = end.saturating_sub(used);
        }
        // Before rustls sees them: it puts handshake messages together in place, over the headers.
        let end = incomplete(input, 0);
        let used = self.side.advance(input, plain, out, &mut self.received_close)?;
        // Exactly sized: a whole read buffer's worth is not held by an idle connection.
        self.kept = input.get(used..).unwrap_or_default().to_vec();
        self.record = end.saturating_sub(used);
        Ok(())
    }

    /// Seals `plain` into records of up to 16 KiB and appends them to `out`. Refused during the handshake and after
    /// [`Session::close`].
    pub fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.is_handshaking() {
            return Err(Error::HandshakeNotComplete);
        }
        if self.sent_close {
            return Err(Error::General("data after close_notify".to_owned()));
        }
        if plain.is_empty() {
            return Ok(());
        }
        match &mut self.side {
            Side::Client(conn) => write(conn.as_mut(), &mut self.kept, Write::Data(plain), out),
            Side::Server(conn) => write(conn.as_mut(), &mut self.kept, Write::Data(plain), out),
        }
    }

    /// Appends close_notify, after which nothing can be sent. Does nothing during the handshake, after a failure, or twice.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if self.sent_close || self.failed.is_some() || self.is_handshaking() {
            return;
        }
        self.sent_close = true;
        let result = match &mut self.side {
            Side::Client(conn) => write(conn.as_mut(), &mut self.kept, Write::Close, out),
            Side::Server(conn) => write(conn.as_mut(), &mut self.kept, Write::Close, out),
        };
        if let Err(error) = result {
            self.failed = Some(error);
        }
    }

    fn common(&self) -> &CommonState {
        match &self.side {
            Side::Client(conn) => conn,
            Side::Server(conn) => conn,
        }
    }

    /// The handshake is not complete: nothing can be sent yet.
    pub fn is_handshaking(&self) -> bool {
        self.common().is_handshaking()
    }

    /// The negotiated application protocol.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.common().alpn_protocol()
    }

    /// The peer's certificate chain, leaf first.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.common().peer_certificates()
    }

    /// The peer has closed its side properly (close_notify). An end of file without it is a truncation.
    pub fn received_close(&self) -> bool {
        self.received_close
    }

    /// The protocol version, for metrics: `TLSv1.3`.
    pub fn protocol_version(&self) -> Option<&'static str> {
        self.common().protocol_version().map(|version| match version {
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            _ => "unknown",
        })
    }

    /// The key exchange group, for metrics, such as `X25519MLKEM768`.
    pub fn key_exchange(&self) -> Option<&'static str> {
        self.common().negotiated_key_exchange_group().and_then(|group| group.name().as_str())
    }

    /// The cipher suite, for metrics, such as `TLS13_AES_256_GCM_SHA384`.
    pub fn cipher_suite(&self) -> Option<&'static str> {
        self.common().negotiated_cipher_suite().and_then(|suite| suite.suite().as_str())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("server", &matches!(self.side, Side::Server(_)))
            .field("handshaking", &self.is_handshaking())
            .field("received_close", &self.received_close)
            .finish_non_exhaustive()
    }
}

impl Side {
    fn advance(
        &mut self,
        input: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
        closed: &mut bool,
    ) -> Result<usize, Error> {
        match self {
            Self::Client(conn) => read(conn.as_mut(), input, plain, out, closed),
            Self::Server(conn) => read(conn.as_mut(), input, plain, out, closed),
        }
    }
}

/// Octets that complete the record at the front of `bytes`: its header first, then its payload.
fn missing(bytes: &[u8]) -> usize {
    (RECORD_HEADER + record_len(bytes).unwrap_or(0)).saturating_sub(bytes.len())
}

fn record_len(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [_, _, _, high, low, ..] => Some(usize::from(u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

/// Where the incomplete record at the end of `bytes` begins, `at` being where one begins.
fn incomplete(bytes: &[u8], mut at: usize) -> usize {
    while let Some(len) = bytes.get(at..).and_then(record_len) {
        let end = at + RECORD_HEADER + len;
        if end > bytes.len() {
            break;
        }
        at = end;
    }
    at
}

/// Runs rustls over `input`, and says how much of its front it let go of.
fn read<P: Process>(
    conn: &mut P,
    input: &mut [u8],
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
    closed: &mut bool,
) -> Result<usize, Error> {
    let mut used = 0;
    let mut failure = None;
    loop {
        // After a failure only the alert is fetched: rustls must not see the refused record twice.
        if failure.is_some() && !conn.common().wants_write() {
            return failure.map_or(Ok(used), Err);
        }
        let front = used.min(input.len());
        let UnbufferedStatus { mut discard, state } = conn.process(&mut input[front..]);
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out)?,
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => *closed = true,
            Err(error) if failure.is_none() => failure = Some(error),
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) | ConnectionState::Closed)
            | Err(_) => {
                used += discard;
                return failure.map_or(Ok(used), Err);
            }
            // Early data is never offered or accepted by the configurations in use.
            Ok(_) => return Err(failure.unwrap_or_else(|| Error::General("unexpected TLS state".to_owned()))),
        }
        used += discard;
    }
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Result<(), Error> {
    append(out, 0, |room| {
        data.encode(room).map_err(|error| match error {
            EncodeError::InsufficientSize(e) => Short::Size(e),
            EncodeError::AlreadyEncoded => Short::Error(Error::General(error.to_string())),
        })
    })
}

enum Write<'a> {
    Data(&'a [u8]),
    Close,
}

fn write<P: Process>(conn: &mut P, kept: &mut Vec<u8>, what: Write<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
    loop {
        // rustls remembers places in what it has not let go of, so that is what it must see here too.
        let UnbufferedStatus { discard, state } = conn.process(kept);
        let mut done = false;
        match state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                done = true;
                let room = match what {
                    Write::Data(plain) => plain.len() + plain.len().div_ceil(RECORD_PLAIN) * RECORD_OVERHEAD,
                    Write::Close => RECORD_OVERHEAD + 2,
                };
                append(out, room, |room| {
                    let result = match what {
                        Write::Data(plain) => traffic.encrypt(plain, room),
                        Write::Close => traffic.queue_close_notify(room),
                    };
                    result.map_err(|error| match error {
                        EncryptError::InsufficientSize(e) => Short::Size(e),
                        EncryptError::EncryptExhausted => Short::Error(Error::EncryptError),
                    })
                })?;
            }
            ConnectionState::EncodeTlsData(mut data) => encode(&mut data, out)?,
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => {}
            _ => return Err(Error::HandshakeNotComplete),
        }
        kept.drain(..discard.min(kept.len()));
        if done {
            return Ok(());
        }
    }
}

enum Short {
    Size(InsufficientSizeError),
    Error(Error),
}

/// Lets `fill` write behind the end of `out`, growing it when that is too little.
fn append(
    out: &mut Vec<u8>,
    guess: usize,
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, Short>,
) -> Result<(), Error> {
    let at = out.len();
    let mut room = guess;
    loop {
        out.resize(at + room, 0);
        match fill(out.get_mut(at..).unwrap_or_default()) {
            Ok(n) => {
                out.truncate(at + n);
                return Ok(());
            }
            // Always more than there was, so this ends.
            Err(Short::Size(e)) if e.required_size > room => room = e.required_size,
            Err(short) => {
                out.truncate(at);
                return Err(match short {
                    Short::Error(error) => error,
                    Short::Size(_) => Error::EncryptError,
                });
            }
        }
    }
}
