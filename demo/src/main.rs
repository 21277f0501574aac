//! weft-demo: the four workloads of Emojivoto in one binary. The library does the work; this reads the settings.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Context;
use clap::{Parser, Subcommand, value_parser};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use weft_demo::{
    bot::Bot,
    serve::Shutdown,
    services::{self, Sockets, Voting},
    web::Web,
};

/// Emojivoto, the application everybody tries a mesh with
#[derive(Debug, Parser)]
#[command(name = "weft-demo", version)]
struct Options {
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Debug, Subcommand)]
enum Workload {
    /// The gRPC service that knows the hundred emoji
    Emoji(Ports),
    /// The gRPC service that counts votes
    Voting {
        #[command(flatten)]
        ports: Ports,
        /// Share of the votes for the doughnut that fail, 0 to 1
        #[arg(long, env = "FAILURE_RATE", default_value = "1", value_parser = share)]
        failure_rate: f32,
        /// Added to every vote, such as 250ms or 1s
        #[arg(long, env = "ARTIFICIAL_DELAY", default_value = "0s", value_parser = duration)]
        artificial_delay: Duration,
    },
    /// The web front: a page and a JSON API over HTTP/1.1
    Web {
        /// Port to serve on; 0 lets the system choose
        #[arg(long, env = "WEB_PORT", default_value_t = 8080)]
        web_port: u16,
        /// Host and port of the emoji service
        #[arg(long, env = "EMOJISVC_HOST")]
        emojisvc_host: String,
        /// Host and port of the voting service
        #[arg(long, env = "VOTINGSVC_HOST")]
        votingsvc_host: String,
        /// Shown above the page
        #[arg(long, env = "MESSAGE_OF_THE_DAY", default_value = "")]
        message_of_the_day: String,
    },
    /// The bot that votes each second, 15 % of the time for the doughnut
    VoteBot {
        /// Host and port of the web front
        #[arg(long, env = "WEB_HOST")]
        web_host: String,
        /// Sent as the Host header instead of WEB_HOST
        #[arg(long, env = "HOST_OVERRIDE")]
        host_override: Option<String>,
        /// Votes per second
        #[arg(long, env = "REQUEST_RATE", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
        request_rate: u32,
        /// Seconds after which it ends; never when absent or 0
        #[arg(long, env = "TTL", default_value_t = 0)]
        ttl: u64,
    },
}

#[derive(Debug, clap::Args)]
struct Ports {
    /// Port for gRPC; 0 lets the system choose
    #[arg(long, env = "GRPC_PORT", default_value_t = 8080)]
    grpc_port: u16,
    /// Port for Prometheus; 0 lets the system choose
    #[arg(long, env = "PROM_PORT", default_value_t = 8801)]
    prom_port: u16,
}

impl Ports {
    async fn listen(&self) -> anyhow::Result<Sockets> {
        Ok(Sockets {
            grpc: listen("gRPC", self.grpc_port).await?,
            prometheus: listen("Prometheus", self.prom_port).await?,
        })
    }
}

async fn listen(what: &str, port: u16) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
    let listener = listener.with_context(|| format!("cannot listen on port {port} for {what}"))?;
    tracing::info!("{what} on port {}", listener.local_addr()?.port());
    Ok(listener)
}

fn share(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

/// A number and its unit, as Go writes durations that have one unit.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" if number == "0" => 1.0,
        _ => return Err("must be a number and ns, us, ms, s, m or h".into()),
    };
    let number: f64 = number.parse().map_err(|_| "must begin with a number".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false).init();
    let shutdown = Shutdown::on_signals()?;
    match options.workload {
        Workload::Emoji(ports) => services::run_emoji(ports.listen().await?, shutdown).await,
        Workload::Voting { ports, failure_rate, artificial_delay } => {
            let behaviour = Voting { failure_rate, delay: artificial_delay };
            services::run_voting(ports.listen().await?, behaviour, shutdown).await
        }
        Workload::Web { web_port, emojisvc_host, votingsvc_host, message_of_the_day } => {
            let web = Web::new(&emojisvc_host, &votingsvc_host, &message_of_the_day)?;
            web.run(listen("HTTP", web_port).await?, shutdown).await;
            Ok(())
        }
        Workload::VoteBot { web_host, host_override, request_rate, ttl } => {
            let ttl = (ttl > 0).then(|| Duration::from_secs(ttl));
            Bot { web: web_host, host_override, rate: request_rate, ttl }.run(shutdown).await;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "s", "-1s", "1d", "1.2.3s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_share_is_from_nought_to_one() {
        assert_eq!(share("0.25"), Ok(0.25));
        for wrong in ["-0.1", "1.1", "NaN", "half"] {
            assert!(share(wrong).is_err(), "{wrong:?}");
        }
    }
}
