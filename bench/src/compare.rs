//! The comparison: rounds of fresh subjects, one after the other, then a pass that only counts.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    load::{self, Seen},
    measure::{Counter, Memory, cpu},
    net::{Core, SERVICE, installed, output},
    report,
    steady::Latencies,
    subjects::{Running, Stage, Subject},
};

/// Connections at saturation.
pub const CONNECTIONS: u32 = 32;
/// Connections when memory for each is the question.
pub const MANY_CONNECTIONS: u32 = 1000;
/// Requests per second at a constant rate.
pub const RATE: u32 = 1500;

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds.
    pub rounds: u32,
    /// Time of each measurement.
    pub time: Duration,
    /// What to measure, in the order of the report.
    pub subjects: Vec<Subject>,
    /// weft-proxy, when it takes part.
    pub proxy: Option<PathBuf>,
}

/// CPU time per request of the outbound and the inbound proxy, in microseconds.
pub type Cpu = [f64; 2];

/// A load at saturation, and what it cost the proxies.
pub type Saturation = (Seen, Option<Cpu>);

/// One subject in one round.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// HTTP/1.1 at saturation.
    pub http: Saturation,
    /// gRPC-shaped HTTP/2 at saturation.
    pub grpc: Saturation,
    /// HTTP/1.1 at a constant rate.
    pub steady: (Latencies, Option<Cpu>),
    /// HTTP/1.1 with many connections.
    pub many: Saturation,
    /// Memory of both proxies at rest, under load, and with many connections.
    pub memory: Option<[[Memory; 2]; 3]>,
}

/// Counts per request of the outbound and the inbound proxy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// System calls.
    pub syscalls: Option<[f64; 2]>,
    /// Instructions, the kernel's included.
    pub instructions: Option<[f64; 2]>,
}

/// Everything measured.
#[derive(Debug, Default)]
pub struct Results {
    /// By subject, in the order of the report.
    pub rounds: Vec<(Subject, Vec<Round>)>,
    /// By place in `rounds`.
    pub counts: BTreeMap<usize, Counts>,
}

/// The proxy to measure: the one named, or the one beside this program.
///
/// # Errors
///
/// When it does not exist.
pub fn find_proxy(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let path = match named {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("weft-proxy"),
    };
    path.canonicalize().with_context(|| format!("no proxy at {}", path.display()))
}

/// Runs the plan and prints the report.
///
/// # Errors
///
/// When a program is missing or a subject does not work.
pub async fn run(plan: &Plan) -> anyhow::Result<()> {
    let needed = ["nsenter", "setpriv", "taskset", "ip", "nft", "nginx", "haproxy", "wrk", "h2load", "curl"];
    let missing: Vec<&str> = needed.into_iter().filter(|program| !installed(program)).collect();
    anyhow::ensure!(missing.is_empty(), "missing: {}; `make setup` installs what is needed", missing.join(", "));
    // A thousand connections need more descriptors than many systems allow by default.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(65_536)), hard)?;
    let _weight = Weight::raise();

    let stage = Stage::new(plan.proxy.clone()).await?;
    let subjects = &plan.subjects;
    let mut results =
        Results { rounds: subjects.iter().map(|&subject| (subject, Vec::new())).collect(), ..Results::default() };
    for number in 1..=plan.rounds {
        for (subject, rounds) in &mut results.rounds {
            println!("round {number} of {}: {subject}", plan.rounds);
            rounds.push(round(&stage, *subject, plan.time).await.with_context(|| format!("{subject}"))?);
        }
    }
    for (index, &subject) in subjects.iter().enumerate() {
        if subject == Subject::Direct {
            continue;
        }
        println!("counting: {subject}");
        results.counts.insert(index, count(&stage, subject, plan.time).await?);
    }
    print!("{}", report::render(plan, &results));
    Ok(())
}

async fn round(stage: &Stage, subject: Subject, time: Duration) -> anyhow::Result<Round> {
    let warm_up = (time / 2).max(Duration::from_secs(1));
    let running = stage.start(subject).await?;
    let link = &stage.link;
    let at_rest = memory(&running)?;
    load::http(link, CONNECTIONS, warm_up).await?;
    let http = with_cpu(&running, load::http(link, CONNECTIONS, time), |seen| seen.requests).await?;
    let under_load = memory(&running)?;
    load::grpc(link, stage.directory.path(), warm_up).await?;
    let grpc = with_cpu(&running, load::grpc(link, stage.directory.path(), time), |seen| seen.requests).await?;
    let steady = with_cpu(&running, steady(stage, time), |seen| seen.requests).await?;
    // Memory is read while the connections are open; the generator alone knows when that is, so the peak is taken.
    let many = load::http(link, MANY_CONNECTIONS, time.max(Duration::from_secs(2)));
    let (many, crowded) = with_peak(&running, with_cpu(&running, many, |seen| seen.requests)).await?;
    let memory = match (at_rest, under_load, crowded) {
        (Some(rest), Some(load), Some(many)) => Some([rest, load, many]),
        _ => None,
    };
    Ok(Round { http, grpc, steady, many, memory })
}

fn memory(running: &Running) -> anyhow::Result<Option<[Memory; 2]>> {
    running.proxies.map(|[outbound, inbound]| Ok([Memory::of(outbound)?, Memory::of(inbound)?])).transpose()
}

/// Runs a load and divides the CPU time that the proxies used meanwhile by its requests.
async fn with_cpu<T>(
    running: &Running,
    load: impl Future<Output = anyhow::Result<T>>,
    requests: impl Fn(&T) -> u64,
) -> anyhow::Result<(T, Option<Cpu>)> {
    let used = || running.proxies.map(|pids| anyhow::Ok([cpu(pids[0])?, cpu(pids[1])?])).transpose();
    let before = used()?;
    let seen = load.await?;
    let after = used()?;
    let count = requests(&seen).max(1) as f64;
    let cpu = before
        .zip(after)
        .map(|(before, after)| [0, 1].map(|side| (after[side] - before[side]).as_secs_f64() * 1e6 / count));
    Ok((seen, cpu))
}

/// Runs a load and takes the highest memory of the proxies meanwhile.
async fn with_peak<T>(
    running: &Running,
    load: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, Option<[Memory; 2]>)> {
    let mut load = std::pin::pin!(load);
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let mut peak = memory(running)?;
    loop {
        tokio::select! {
            seen = &mut load => return Ok((seen?, peak)),
            _ = ticks.tick() => {
                peak = peak.zip(memory(running)?).map(|(peak, now)| [peak[0].max(now[0]), peak[1].max(now[1])]);
            }
        }
    }
}

async fn steady(stage: &Stage, time: Duration) -> anyhow::Result<Latencies> {
    let mut command = stage.link.client.command(Core::Load, None, std::env::current_exe()?);
    command.arg("steady").arg(format!("{SERVICE}:{}", load::HTTP_PORT));
    command.args(["--rate", &RATE.to_string(), "--connections", &CONNECTIONS.to_string()]);
    command.args(["--seconds", &time.as_secs().to_string()]);
    Ok(serde_json::from_str(&output(&mut command).await?)?)
}

/// System calls and instructions per request, each in a short run of its own, because counting slows what it counts.
async fn count(stage: &Stage, subject: Subject, time: Duration) -> anyhow::Result<Counts> {
    let running = stage.start(subject).await?;
    let Some(proxies) = running.proxies else { return Ok(Counts::default()) };
    load::http(&stage.link, CONNECTIONS, Duration::from_secs(1)).await?;
    let mut counts = Counts::default();
    if installed("strace") {
        counts.syscalls = counted(stage, proxies, time, Counter::syscalls).await?;
    }
    if installed("perf") {
        counts.instructions = counted(stage, proxies, time, Counter::instructions).await?;
    }
    Ok(counts)
}

async fn counted(
    stage: &Stage,
    proxies: [u32; 2],
    time: Duration,
    attach: fn(u32) -> anyhow::Result<Counter>,
) -> anyhow::Result<Option<[f64; 2]>> {
    let counters = [attach(proxies[0])?, attach(proxies[1])?];
    // Attaching takes a moment; requests before it would be missing from the counts.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let seen = load::http(&stage.link, CONNECTIONS, time).await?;
    let [outbound, inbound] = counters;
    let totals = outbound.stop().await?.zip(inbound.stop().await?);
    Ok(totals.map(|(outbound, inbound)| [outbound, inbound].map(|total| total as f64 / seen.requests as f64)))
}

/// The scheduler weighs sessions against each other before it weighs processes, so a busy neighbour session would take
/// half of the machine whatever the nice values. Raised for the run, put back after it.
struct Weight(Option<String>);

impl Weight {
    const FILE: &str = "/proc/self/autogroup";

    fn raise() -> Self {
        let before = std::fs::read_to_string(Self::FILE).ok();
        let before = before.and_then(|text| Some(text.trim().rsplit_once("nice ")?.1.to_owned()));
        let raised = before.is_some() && std::fs::write(Self::FILE, "-20").is_ok();
        Self(before.filter(|_| raised))
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(Self::FILE, before);
        }
    }
}
