//! Other people's HTTP: curl, nghttp, h2load, wrk, nghttpd, node and Python's h2 as clients of the proxies and as servers
//! behind them. Needs the Debian packages curl, nghttp2-client, nghttp2-server, wrk, nodejs and python3-h2.

mod support;

use support::{Background, Mesh, eventually};

/// node's http2 and http modules on one port, told apart by the first octets.
const NODE: &str = r"
const http = require('http'), http2 = require('http2'), net = require('net');
const answer = (req, res) => {
  const chunks = [];
  req.on('data', c => chunks.push(c));
  req.on('end', () => {
    const body = Buffer.concat(chunks);
    res.writeHead(200, { 'content-type': 'text/plain', 'x-proto': req.httpVersion });
    res.end(req.method + ' ' + req.url + ' ' + body.length + '\n');
  });
};
const h1 = http.createServer(answer), h2 = http2.createServer(answer);
net.createServer(socket => {
  socket.once('error', () => {});
  socket.once('readable', () => {
    const first = socket.read(3) || socket.read();
    if (!first) return socket.destroy();
    socket.unshift(first);
    (first.toString() === 'PRI' ? h2 : h1).emit('connection', socket);
  });
}).listen(8080, '0.0.0.0', () => console.log('ready'));
";

/// A client made of node's http2: many streams, with bodies, on one connection.
const NODE_CLIENT: &str = r"
const http2 = require('http2');
const client = http2.connect('http://10.96.0.100');
let left = 50;
client.on('error', e => { console.log('error ' + e); process.exit(1); });
for (let n = 0; n < 50; n++) {
  const req = client.request({ ':method': 'POST', ':path': '/' + n });
  let status, text = '';
  req.on('response', h => { status = h[':status']; });
  req.on('data', d => { text += d; });
  req.on('end', () => {
    if (status !== 200 || text !== 'POST /' + n + ' ' + n * 1000 + '\n') { console.log('wrong ' + status + text); process.exit(1); }
    if (--left === 0) { console.log('all'); client.close(); }
  });
  req.end(Buffer.alloc(n * 1000, 'x'));
}
";

fn node_mesh() -> (Mesh, Background) {
    let mesh = Mesh::two_pods();
    let mut node = Background::start(&mesh.server.ns, &["node", "-e", NODE]);
    assert_eq!(node.line(), "ready\n");
    (mesh, node)
}

#[test]
fn curl_speaks_every_version() {
    let (mesh, _node) = node_mesh();
    let curl = |args: &[&str]| {
        let mut command = vec!["curl", "-sS", "--max-time", "60", "--fail"];
        command.extend_from_slice(args);
        mesh.client.ns.run(&command)
    };
    let url = "http://10.96.0.100/x?y=1";
    assert_eq!(curl(&[url]), "GET /x?y=1 0\n");
    assert_eq!(curl(&["--http1.0", url]), "GET /x?y=1 0\n");
    assert_eq!(curl(&["--http2-prior-knowledge", url]), "GET /x?y=1 0\n");
    // An upgrade to HTTP/2 is not offered to the server; curl goes on with HTTP/1.1.
    assert_eq!(curl(&["--http2", url]), "GET /x?y=1 0\n");
    assert!(curl(&["-I", url]).starts_with("HTTP/1.1 200 OK"));
    // Large enough for curl to ask with 100-continue.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![b'x'; 3_000_000]).unwrap();
    let data = format!("@{}", file.path().display());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        assert_eq!(curl(&[version, "--data-binary", &data, url]), "POST /x?y=1 3000000\n");
        assert_eq!(curl(&[version, "-T", file.path().to_str().unwrap(), url]), "PUT /x?y=1 3000000\n");
    }
    let chunked = curl(&["-H", "Transfer-Encoding: chunked", "--data-binary", &data, url]);
    assert_eq!(chunked, "POST /x?y=1 3000000\n");
    // As from outside the mesh.
    let direct = format!("http://{}:8080/plain", mesh.server.ip);
    assert_eq!(mesh.bridge().run(&["true"]), "");
    assert_eq!(curl(&[&direct]), "GET /plain 0\n");
}

#[test]
fn nghttp_and_h2load_are_served() {
    let (mesh, _node) = node_mesh();
    let url = "http://10.96.0.100/";
    let out = mesh.client.ns.run(&["nghttp", "-v", "-n", "-m", "20", url]);
    assert_eq!(out.matches(":status: 200").count(), 20, "{out}");
    let out = mesh.client.ns.run(&["h2load", "-n", "2000", "-c", "4", "-m", "20", url]);
    assert!(out.contains("2000 succeeded, 0 failed, 0 errored"), "{out}");
    let out = mesh.client.ns.run(&["h2load", "--h1", "-n", "2000", "-c", "16", url]);
    assert!(out.contains("2000 succeeded, 0 failed, 0 errored"), "{out}");
}

#[test]
fn wrk_sees_no_error() {
    let (mesh, _node) = node_mesh();
    let out = mesh.client.ns.run(&["wrk", "-t1", "-c32", "-d1s", "--timeout", "60s", "http://10.96.0.100/"]);
    assert!(out.contains("Requests/sec:"), "{out}");
    assert!(!out.contains("Socket errors") && !out.contains("Non-2xx"), "{out}");
}

#[test]
fn node_is_client_and_server() {
    let (mesh, _node) = node_mesh();
    assert_eq!(mesh.client.ns.run(&["node", "-e", NODE_CLIENT]), "all\n");
}

#[test]
fn nghttpd_is_a_server() {
    let mesh = Mesh::two_pods();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), vec![b'x'; 1_000_000]).unwrap();
    let root = dir.path().to_str().unwrap();
    let _server = Background::start(&mesh.server.ns, &["nghttpd", "--no-tls", "-d", root, "8080"]);
    eventually("nghttpd", || mesh.server.ns.connect(([127, 0, 0, 1], 8080).into()).ok());
    let out = mesh.client.ns.run(&["h2load", "-n", "200", "-c", "2", "-m", "10", "http://10.96.0.100/file"]);
    assert!(out.contains("200 succeeded, 0 failed, 0 errored"), "{out}");
    assert!(out.contains("status codes: 200 2xx"), "{out}");
}

/// A call of Python's h2, which takes whatever breaks the protocol as the end of the connection, on both sides.
fn python_h2(case: &str) {
    let program = |name| format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"));
    let mesh = Mesh::two_pods();
    let python = ["/usr/bin/python3", "-B"];
    let mut server = Background::start(&mesh.server.ns, &[&python[..], &[&program("h2_server.py"), "8080"]].concat());
    assert_eq!(server.line(), "ready\n");
    let call = [&program("h2_client.py"), "10.96.0.100", "80", case];
    assert_eq!(mesh.client.ns.run(&[&python[..], &call].concat()), "as expected\n");
}

#[test]
fn python_h2_exchanges_bodies_larger_than_windows_with_trailers() {
    python_h2("bodies");
}

#[test]
fn python_h2_sees_resets_of_a_server_on_their_streams_only() {
    python_h2("reset");
}

#[test]
fn python_h2_servers_that_go_away_cost_no_request() {
    python_h2("goaway");
}
