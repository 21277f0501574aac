//! nginx, with curl and by hand: every version of HTTP, large bodies both ways, ranges, chunks, expectations.

use anyhow::{Context, ensure};
use weft_e2e::{Cluster, Interop};

use crate::{Port, Test, case, client, server};

pub const TESTS: &[(&str, Test)] = &[
    ("nginx_with_every_version_of_http", every_version),
    ("nginx_with_connections_that_are_kept", kept_connections),
    ("nginx_with_ranges_and_conditions", ranges_and_conditions),
    ("nginx_with_large_downloads", large_downloads),
    ("nginx_with_large_uploads", large_uploads),
    ("nginx_with_uploads_that_are_refused_early", early_refusals),
    ("nginx_with_many_requests_at_once", many_at_once),
    ("nginx_with_http1_by_hand", http1_by_hand),
];

/// nginx speaks HTTP/1 here.
const HTTP1: Port = Port { server: "nginx", service: 80, pod: 8080, detected: &["http/1"] };
/// nginx speaks HTTP/2 here, without TLS.
const HTTP2: Port = Port { server: "nginx", service: 81, pod: 8081, detected: &["http/2"] };
/// curl for tests: silent but for errors, and it fails when the server says so.
const CURL: &str = "curl -sS -f -m 300";

fn every_version(cluster: &Cluster) -> anyhow::Result<()> {
    for (option, port, version, seen) in [
        ("--http1.1", 80, "1.1", "HTTP/1.1 nginx"),
        // Between client and server there are proxies, and a proxy speaks the version it knows (RFC 9110 §2.5).
        ("--http1.0", 80, "1.1", "HTTP/1.1 nginx"),
        // An upgrade that the server does not want.
        ("--http2", 80, "1.1", "HTTP/1.1 nginx"),
        ("--http2-prior-knowledge", 81, "2", "HTTP/2.0 nginx"),
    ] {
        let said = client(cluster, &format!("{CURL} {option} -w ' %{{http_version}}' nginx:{port}/protocol"))?;
        // curl shows 1.0 when the answer says so, which is as good.
        let expected = format!("{seen} {version}");
        ensure!(said == expected || option == "--http1.0" && said.contains(" nginx 1"), "{option}: {said}");
    }
    HTTP1.was_secured(cluster)?;
    HTTP2.was_secured(cluster)
}

fn kept_connections(cluster: &Cluster) -> anyhow::Result<()> {
    // How many connections each transfer made.
    let each = "nginx/alphabet -o /dev/null ".repeat(3);
    let said = client(cluster, &format!("{CURL} -w '%{{num_connects}} ' {each}"))?;
    ensure!(said == "1 0 0 ", "{said}");
    // Of curl's versions, not all can do this with HTTP/2.
    let said = client(cluster, "h2load -n 50 -c 1 -m 1 http://nginx:81/alphabet")?;
    ensure!(said.contains("50 succeeded, 0 failed"), "{said}");
    Ok(())
}

fn ranges_and_conditions(cluster: &Cluster) -> anyhow::Result<()> {
    for (option, port) in [("", 80), ("--http1.0", 80), ("--http2-prior-knowledge", 81)] {
        let ask = |more: &str| client(cluster, &format!("{CURL} {option} {more} nginx:{port}/alphabet"));
        ensure!(ask("-r 3-5")? == "def", "one range");
        ensure!(ask("-r -2")? == "yz", "the end");
        let two = ask("-i -r 0-1,24-25")?;
        ensure!(
            two.contains("multipart/byteranges") && two.contains("\r\n\r\nab\r\n") && two.contains("\r\n\r\nyz\r\n"),
            "{two}"
        );
        let head = ask("-I")?.to_ascii_lowercase();
        ensure!(head.contains("content-length: 26\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).context("no etag")?;
        let unchanged = ask(&format!("-i -H 'If-None-Match: {tag}'"))?;
        ensure!(unchanged.contains(" 304") && unchanged.ends_with("\r\n\r\n"), "{unchanged}");
        let beyond = client(
            cluster,
            &format!("curl -sS -m 300 {option} -o /dev/null -w '%{{http_code}}' -r 100- nginx:{port}/alphabet"),
        )?;
        ensure!(beyond == "416", "{beyond}");
    }
    Ok(())
}

/// What `sha256sum` says about nginx's large file.
fn sum_of_big(cluster: &Cluster) -> anyhow::Result<String> {
    server(cluster, "nginx", "sha256sum </data/big")
}

fn large_downloads(cluster: &Cluster) -> anyhow::Result<()> {
    let sum = sum_of_big(cluster)?;
    for (option, url) in [
        ("", "nginx/big"),
        ("", "nginx/chunked/big"),
        ("--http1.0", "nginx/chunked/big"),
        ("--http2-prior-knowledge", "nginx:81/big"),
    ] {
        let said = client(cluster, &format!("{CURL} {option} {url} | sha256sum"))?;
        ensure!(said == sum, "{option} {url} came as {said}, not {sum}");
    }
    Ok(())
}

fn large_uploads(cluster: &Cluster) -> anyhow::Result<()> {
    let sum = sum_of_big(cluster)?;
    client(cluster, &format!("{CURL} -o /tmp/big nginx/big"))?;
    for (what, port, continues) in [
        // curl asks before it sends that much.
        ("-T /tmp/big", 80, true),
        ("-H Expect: -T /tmp/big", 80, false),
        // From a pipe curl does not know the length, and sends chunks.
        ("-T - </tmp/big", 80, true),
        ("--http2-prior-knowledge -T /tmp/big", 81, false),
    ] {
        let url = format!("nginx:{port}/uploads/file");
        let log = client(cluster, &format!("{CURL} -v {url} {what} 2>&1"))?;
        // Linkerd's proxy says so by itself as a client's, and keeps it to itself as a server's.
        let ours = !Interop::is_other("client")? && !Interop::is_other("nginx")?;
        ensure!(!ours || log.contains("< HTTP/1.1 100 Continue") == continues, "{what}: {log}");
        ensure!(log.contains("< HTTP/1.1 201") || log.contains("< HTTP/2 201"), "{what}: {log}");
        let stored = server(cluster, "nginx", "sha256sum </data/uploads/file && rm /data/uploads/file")?;
        ensure!(stored == sum, "{what} was stored as {stored}, not {sum}");
    }
    client(cluster, "rm /tmp/big")?;
    Ok(())
}

fn early_refusals(cluster: &Cluster) -> anyhow::Result<()> {
    client(cluster, "head -c 50000000 /dev/zero >/tmp/zeros")?;
    for what in ["-T /tmp/zeros", "-H Expect: -T /tmp/zeros"] {
        let log = client(cluster, &format!("curl -sS -m 300 -v nginx/small/file {what} 2>&1"))?;
        ensure!(log.contains("< HTTP/1.1 413"), "{what}: {log}");
        ensure!(Interop::is_other("client")? || !log.contains("100 Continue"), "{what}: {log}");
    }
    // Of curl's versions, not all understand this with HTTP/2.
    let log = client(cluster, "nghttp -n -v -d /tmp/zeros -H ':method: PUT' http://nginx:81/small/file 2>&1")?;
    ensure!(log.contains(":status: 413"), "{log}");
    client(cluster, "rm /tmp/zeros")?;
    Ok(())
}

fn many_at_once(cluster: &Cluster) -> anyhow::Result<()> {
    // nginx ends a connection after its 1000th request, which costs Linkerd's proxy those that it was about to send.
    let number = if Interop::is_other("nginx")? { 800 } else { 4000 };
    for (option, port) in [("--h1", 80), ("", 81)] {
        let said = client(cluster, &format!("h2load {option} -n {number} -c 20 -m 10 http://nginx:{port}/alphabet"))?;
        ensure!(said.contains(&format!("{number} succeeded, 0 failed, 0 errored, 0 timeout")), "{said}");
        ensure!(said.contains(&format!("status codes: {number} 2xx")), "{said}");
    }
    Ok(())
}

fn http1_by_hand(cluster: &Cluster) -> anyhow::Result<()> {
    for name in ["pipelined", "http_1_0", "trailers", "octet_by_octet", "odd_targets"] {
        // Linkerd's proxy sends HTTP/1 clients no trailers that the response has not announced.
        if name == "trailers" && Interop::is_other("client")? {
            continue;
        }
        case(cluster, "http_client.py", &["nginx", "80", name]).with_context(|| name)?;
    }
    HTTP1.was_secured(cluster)
}
