//! Against nghttp2's programs: nghttp and h2load as clients of our server, nghttpd as the server of our client. They are in
//! Debian's packages nghttp2-client and nghttp2-server.

mod h2_support;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use h2_support::driver::*;
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use weft_wire::Limits;

/// Serves on a free port, in the background, until the runtime ends.
async fn site() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = serve(io, &Limits::default()).await;
            });
        }
    });
    address
}

/// Runs a program and gives what it printed.
async fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let run = Command::new(program).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = deadline(program, run)
        .await
        .unwrap_or_else(|e| panic!("{program} cannot be run ({e}): install nghttp2-client and nghttp2-server"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A directory of its own for one test; removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-h2-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn file(&self, name: &str, octets: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, octets).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn nghttp_downloads() {
    let at = site().await;
    for (path, size) in [("/bytes/0", 0), ("/bytes/1", 1), ("/bytes/1000000", 1_000_000), ("/trailers/70000", 70_000)] {
        for options in [&["--no-dep"][..], &["-w14", "-W16"], &["-w20", "-W22", "-c", "0"]] {
            let url = format!("http://{at}{path}");
            let out = run("nghttp", &[options, &[&url[..]]].concat()).await;
            assert!(out == body(0, size), "{path} {options:?}: {} octets", out.len());
        }
    }
}

#[tokio::test]
async fn nghttp_uploads_with_padding_continuation_and_trailers() {
    let at = site().await;
    let scratch = Scratch::new("upload");
    let data = body(0, 300_000);
    let file = scratch.file("data", &data);
    let url = format!("http://{at}/echo");
    for options in [&[][..], &["-b", "255"], &["--continuation"], &["--trailer", "x-sum: 9"], &["--no-content-length"]]
    {
        let out = run("nghttp", &[options, &["-d", &file, &url]].concat()).await;
        assert!(out == data, "{options:?}: {} octets", out.len());
    }
    let verbose = run("nghttp", &["-nv", "--trailer", "x-sum: 9", "-d", &file, &url]).await;
    assert!(String::from_utf8_lossy(&verbose).contains("x-sum: 9"), "the trailer came back");
}

#[tokio::test]
async fn nghttp_sees_1xx_and_many_streams() {
    let at = site().await;
    let out = run("nghttp", &["-nv", &format!("http://{at}/early")]).await;
    let text = String::from_utf8_lossy(&out);
    assert!(text.contains(":status: 103") && text.contains(":status: 200"), "{text}");
    // Its priority tree makes PRIORITY frames and dependencies.
    let out = run("nghttp", &["-nsm", "50", &format!("http://{at}/bytes/20000")]).await;
    let text = String::from_utf8_lossy(&out);
    let fine = |l: &&str| l.ends_with("/bytes/20000") && l.split_whitespace().any(|w| w == "200");
    assert_eq!(text.lines().filter(fine).count(), 50, "{text}");
}

/// The numbers of h2load's line of requests: total, succeeded.
fn succeeded(out: &[u8]) -> String {
    let text = String::from_utf8_lossy(out);
    let requests = text.lines().find(|l| l.starts_with("requests:")).unwrap_or_default().to_owned();
    let statuses = text.lines().find(|l| l.starts_with("status codes:")).unwrap_or_default().to_owned();
    format!("{requests}\n{statuses}")
}

#[tokio::test]
async fn h2load_succeeds_always() {
    let at = site().await;
    let scratch = Scratch::new("load");
    let file = scratch.file("data", &body(0, 5000));
    for (n, options, path) in [
        ("2000", &["-c", "4", "-m", "100"][..], "/bytes/100"),
        ("200", &["-c", "2", "-m", "20", "-w", "14", "-W", "16"], "/bytes/50000"),
        ("500", &["-c", "2", "-m", "30", "-d", &file], "/sink"),
        ("500", &["-c", "2", "-m", "1", "--header-table-size", "0", "-d", &file], "/echo"),
        ("500", &["-c", "1", "-m", "200", "--encoder-header-table-size", "100"], "/trailers/1000"),
    ] {
        let url = format!("http://{at}{path}");
        let out = run("h2load", &[&["-n", n], options, &[&url[..]]].concat()).await;
        let summary = succeeded(&out);
        assert!(
            summary.contains(&format!("{n} succeeded, 0 failed, 0 errored, 0 timeout"))
                && summary.contains(&format!("{n} 2xx, 0 3xx, 0 4xx, 0 5xx")),
            "{options:?}: {summary}"
        );
    }
}

/// nghttpd on a port that was free a moment ago; another one when it is not any more.
async fn nghttpd(options: &[&str], docs: &Path) -> (Child, SocketAddr) {
    for _ in 0..50 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut child = Command::new("nghttpd")
            .args(["--no-tls", "-a", "127.0.0.1", "-d"])
            .arg(docs)
            .args(options)
            .arg(free.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("nghttpd cannot be run ({e}): install nghttp2-server"));
        let up = deadline("nghttpd", async {
            loop {
                if child.try_wait().unwrap().is_some() {
                    return false;
                }
                if TcpStream::connect(free).await.is_ok() {
                    return child.try_wait().unwrap().is_none();
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        if up.await {
            return (child, free);
        }
    }
    panic!("nghttpd finds no free port");
}

async fn against_nghttpd(options: &[&str], limits: &Limits) {
    let scratch = Scratch::new(&format!("docs-{}", options.join("").replace([' ', ':'], "")));
    scratch.file("empty", &[]);
    scratch.file("small", &body(0, 100));
    scratch.file("large", &body(0, 700_000));
    let (child, at) = nghttpd(options, &scratch.0).await;
    let mut todo = Vec::new();
    for i in 0..120 {
        todo.push(match i % 6 {
            0 => get("/small"),
            1 => get("/none"),
            2 if i < 30 => get("/large"),
            2 => get("/empty"),
            3 => post("/echo", 100 + 977 * i),
            4 => Exchange { send_trailers: true, ..post("/echo", 50_000) },
            _ => Exchange { method: "HEAD", ..get("/large") },
        });
    }
    let io = TcpStream::connect(at).await.unwrap();
    let done = deadline("the exchange", exchange(io, limits, todo)).await.unwrap();
    for (i, e) in done.iter().enumerate() {
        let (status, got) = match i % 6 {
            0 => (200, 100),
            1 => (404, e.got),
            2 if i < 30 => (200, 700_000),
            2 => (200, 0),
            3 | 4 => (200, e.send),
            _ => (200, 0),
        };
        assert_eq!((e.status, e.got, e.reset), (status, got, None), "{options:?} {i} {}", e.path);
        assert!(e.intact || status == 404);
        if options.contains(&"--trailer") && status == 200 && e.method != "HEAD" {
            assert_eq!(e.trailers.as_ref().unwrap().get(b"x-sum"), Some(&b"9"[..]));
        }
    }
    drop(child);
}

#[tokio::test]
async fn nghttpd_serves_our_client() {
    against_nghttpd(&["--echo-upload"], &Limits::default()).await;
}

#[tokio::test]
async fn nghttpd_with_padding_and_trailers() {
    against_nghttpd(&["--echo-upload", "-b", "200", "--trailer", "x-sum: 9"], &Limits::default()).await;
}

#[tokio::test]
async fn nghttpd_with_small_windows_and_tables() {
    let limits = Limits { stream_window: 5000, connection_window: 65_535, hpack_table: 0, ..Limits::default() };
    against_nghttpd(&["--echo-upload", "-w", "14", "-W", "16", "-c", "0", "-m", "7"], &limits).await;
}
