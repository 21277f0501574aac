//! TLS without I/O: rustls's unbuffered API behind one small type.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};

/// What went wrong in a session. The alert to send is already in the output; flush it and close.
pub type Error = rustls::Error;

/// One TLS connection, either side.
pub struct Session {}

impl Session {
    /// The client's side. Its ClientHello is written by the first [`Session::recv`], with empty input.
    pub fn client(_config: Arc<ClientConfig>, _name: ServerName<'static>) -> Result<Self, Error> {
        unimplemented!()
    }

    /// The server's side.
    pub fn server(_config: Arc<ServerConfig>) -> Result<Self, Error> {
        unimplemented!()
    }

    /// Takes ciphertext from the front of `input`, appends plaintext to `plain` and handshake or alert octets to `out`.
    /// What is left in `input` is an incomplete record: keep it and append to it.
    pub fn recv(&mut self, _input: &mut Vec<u8>, _plain: &mut Vec<u8>, _out: &mut Vec<u8>) -> Result<(), Error> {
        unimplemented!()
    }

    /// Seals `plain` into records of up to 16 KiB and appends them to `out`. Refused during the handshake and after [`Session::close`].
    pub fn send(&mut self, _plain: &[u8], _out: &mut Vec<u8>) -> Result<(), Error> {
        unimplemented!()
    }

    /// The handshake is not complete.
    pub fn is_handshaking(&self) -> bool {
        unimplemented!()
    }

    /// The negotiated application protocol.
    pub fn alpn(&self) -> Option<&[u8]> {
        unimplemented!()
    }

    /// The peer's certificate chain, leaf first.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        unimplemented!()
    }

    /// The name that the client asked for (SNI); server side only.
    pub fn server_name(&self) -> Option<&str> {
        unimplemented!()
    }

    /// The peer has closed its side properly (close_notify). An end of file without it is a truncation.
    pub fn received_close(&self) -> bool {
        unimplemented!()
    }

    /// Appends close_notify. Nothing can be sent after it.
    pub fn close(&mut self, _out: &mut Vec<u8>) {
        unimplemented!()
    }

    /// The protocol version, for metrics, such as `TLSv1.3`.
    pub fn protocol_version(&self) -> Option<&'static str> {
        unimplemented!()
    }

    /// The key exchange group, for metrics, such as `X25519MLKEM768`.
    pub fn key_exchange(&self) -> Option<&'static str> {
        unimplemented!()
    }

    /// The cipher suite, for metrics, such as `TLS13_AES_256_GCM_SHA384`.
    pub fn cipher_suite(&self) -> Option<&'static str> {
        unimplemented!()
    }
}
