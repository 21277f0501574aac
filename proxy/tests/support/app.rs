//! Small applications behind proxies.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::sync::watch;

use super::{DEADLINE, Pod, proxy::http_request, read};

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
        match read(&mut stream, &mut octets) {
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

/// As [`get`], with `POST` and nothing in it.
pub fn post(pod: &Pod, addr: std::net::SocketAddr, path: &str) -> (u16, String) {
    http_request(pod.connect(addr).unwrap(), "POST", path, "")
}

/// Answers every request of HTTP/1 and HTTP/2 with 200 and `name`, but those for `/wait` only after [`Web::release`]. Ends
/// when the returned handle is dropped: the listener and all connections are closed.
pub fn web(listener: TcpListener, name: &str) -> Web {
    listener.set_nonblocking(true).unwrap();
    let name = bytes::Bytes::from(name.to_owned());
    let (stop, mut stopped) = watch::channel(());
    let (release, released) = watch::channel(false);
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let accept = async {
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(serve(stream, name.clone(), released.clone()));
                }
            };
            tokio::select! {
                () = accept => {}
                _ = stopped.changed() => {}
            }
        });
    });
    Web { stop: Some(stop), release, thread: Some(thread) }
}

/// A running application.
pub struct Web {
    stop: Option<watch::Sender<()>>,
    release: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Web {
    /// Answers requests for `/wait` from now on.
    pub fn release(&self) {
        self.release.send_replace(true);
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(stream: tokio::net::TcpStream, name: bytes::Bytes, released: watch::Receiver<bool>) {
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (name, mut released) = (name.clone(), released.clone());
        async move {
            if request.uri().path() == "/wait" {
                // The application may end before that.
                let _ = released.wait_for(|go| *go).await;
            }
            Ok::<_, std::convert::Infallible>(hyper::Response::new(http_body_util::Full::new(name)))
        }
    });
    // What ends a connection is the test's own doing.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}
