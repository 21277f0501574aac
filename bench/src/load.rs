//! Load at saturation, by wrk for HTTP/1.1 and h2load for gRPC-shaped HTTP/2, from the client's namespace.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};

use crate::net::{Core, Link, SERVICE, output};

/// Port of the HTTP/1.1 server.
pub const HTTP_PORT: u16 = 8080;
/// Port of the HTTP/2 server.
pub const GRPC_PORT: u16 = 8081;

/// What a load generator saw.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// Requests answered.
    pub requests: u64,
    /// Requests answered per second.
    pub rate: f64,
    /// Requests that failed, and connections that broke.
    pub failures: u64,
}

/// Runs wrk for a while.
///
/// # Errors
///
/// When it cannot be run or nothing was answered.
pub async fn http(link: &Link, connections: u32, time: Duration) -> anyhow::Result<Seen> {
    let url = format!("http://{SERVICE}:{HTTP_PORT}/");
    let mut command = link.client.command(Core::Load, None, "wrk");
    command.args(["-t1", &format!("-c{connections}"), &format!("-d{}s", time.as_secs()), "--timeout=10s", &url]);
    let text = output(&mut command).await?;
    let seen = wrk(&text).with_context(|| format!("cannot read what wrk said:\n{text}"))?;
    ensure!(seen.requests > 0, "nothing was answered:\n{text}");
    Ok(seen)
}

/// Runs h2load for a while: unary calls of a few octets, 8 connections with 8 streams each.
///
/// # Errors
///
/// When it cannot be run or nothing was answered.
pub async fn grpc(link: &Link, directory: &Path, time: Duration) -> anyhow::Result<Seen> {
    let body = directory.join("message");
    // Not compressed, and five octets long.
    fs::write(&body, b"\0\0\0\0\x05weave")?;
    let mut command = link.client.command(Core::Load, None, "h2load");
    command
        .args(["-t1", "-c8", "-m8", &format!("-D{}", time.as_secs()), "-H", "te: trailers"])
        .args(["-H", "content-type: application/grpc", "-H", ":method: POST", "-d"])
        .arg(&body)
        .arg(format!("http://{SERVICE}:{GRPC_PORT}/bench.Echo/Unary"));
    let text = output(&mut command).await?;
    let seen = h2load(&text).with_context(|| format!("cannot read what h2load said:\n{text}"))?;
    ensure!(seen.requests > 0, "nothing was answered:\n{text}");
    Ok(seen)
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.trim().trim_end_matches(',').parse().ok()
}

/// Reads `12345 requests in 4.00s, 1.2MB read`, `Requests/sec: 3086.1` and the lines about failures.
fn wrk(text: &str) -> Option<Seen> {
    let requests = text.lines().find_map(|line| number(line.split_once(" requests in ")?.0))?;
    let rate = text.lines().find_map(|line| number(line.strip_prefix("Requests/sec:")?))?;
    let mut failures = 0;
    for line in text.lines().map(str::trim) {
        if let Some(count) = line.strip_prefix("Non-2xx or 3xx responses:") {
            failures += number::<u64>(count)?;
        } else if let Some(counts) = line.strip_prefix("Socket errors:") {
            for count in counts.split(',') {
                failures += number::<u64>(count.trim().split(' ').next_back()?)?;
            }
        }
    }
    Some(Seen { requests, rate, failures })
}

/// Reads `finished in 4.00s, 12345.67 req/s, 1.2MB/s`, and the line of requests.
fn h2load(text: &str) -> Option<Seen> {
    let finished = text.lines().find_map(|line| line.strip_prefix("finished in "))?;
    let rate = number(finished.split(',').nth(1)?.trim().strip_suffix(" req/s")?)?;
    let counts = text.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let count = |what: &str| counts.split(',').find_map(|part| number::<u64>(part.trim().strip_suffix(what)?));
    let codes = text.lines().find_map(|line| line.strip_prefix("status codes: "))?;
    let good = codes.split(',').find_map(|part| number::<u64>(part.trim().strip_suffix(" 2xx")?))?;
    let done = count(" done")?;
    let failed = count(" failed")? + count(" errored")? + count(" timeout")?;
    Some(Seen { requests: done, rate, failures: failed + done.saturating_sub(good + failed) })
}

/// Waits until the service answers through whatever is in between.
///
/// # Errors
///
/// When it does not within a generous time, or `alive` fails meanwhile.
pub async fn answers(
    link: &Link,
    arguments: &[&str],
    port: u16,
    mut alive: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let url = format!("http://{SERVICE}:{port}/");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut command = link.client.command(Core::Load, None, "curl");
        command.args(["-sS", "-f", "-o", "/dev/null", "-m", "5"]).args(arguments).arg(&url);
        let Err(error) = output(&mut command).await else { return Ok(()) };
        alive()?;
        if tokio::time::Instant::now() > deadline {
            bail!("no answer after {PATIENCE:?}: {error:#}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_understood() {
        let good = "Running 2s test @ http://10.250.0.10:8080/\n  1 threads and 32 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   500.00us  100.00us   5.00ms   90.00%\n  70123 requests in 2.00s, 13.00MB read\nRequests/sec:  35061.50\nTransfer/sec:      6.50MB\n";
        assert_eq!(wrk(good), Some(Seen { requests: 70123, rate: 35061.5, failures: 0 }));
        let bad = "  10 requests in 1.00s, 1.00KB read\n  Socket errors: connect 0, read 3, write 0, timeout 4\n  Non-2xx or 3xx responses: 5\nRequests/sec:     10.00\n";
        assert_eq!(wrk(bad), Some(Seen { requests: 10, rate: 10.0, failures: 12 }));
        assert_eq!(wrk("unable to connect"), None);
    }

    #[test]
    fn what_h2load_says_is_understood() {
        let text = "finished in 4.00s, 12345.50 req/s, 1.20MB/s\nrequests: 49382 total, 49446 started, 49382 done, 49380 succeeded, 2 failed, 0 errored, 0 timeout\nstatus codes: 49380 2xx, 0 3xx, 0 4xx, 2 5xx\n";
        assert_eq!(h2load(text), Some(Seen { requests: 49382, rate: 12345.5, failures: 2 }));
        assert_eq!(h2load("no"), None);
    }
}
