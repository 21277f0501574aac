//! Small applications behind proxies.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use super::{DEADLINE, Pod, proxy::http_request};

/// Answers every HTTP/1.1 request with 200 and `name`, one request a connection, until the test's process ends.
pub fn http(listener: TcpListener, name: &str) {
    let name = name.to_owned();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let name = name.clone();
            std::thread::spawn(move || answer(stream, &name));
        }
    });
}

fn answer(mut stream: TcpStream, name: &str) {
    let _ = stream.set_read_timeout(Some(DEADLINE));
    let mut request = Vec::new();
    let mut octets = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut octets) {
            Ok(n) if n > 0 => request.extend_from_slice(&octets[..n]),
            _ => return,
        }
    }
    let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}", name.len());
}

/// One request from an application of a pod: status and body.
#[track_caller]
pub fn get(pod: &Pod, addr: std::net::SocketAddr, path: &str) -> (u16, String) {
    http_request(pod.connect(addr).unwrap(), "GET", path, "")
}
