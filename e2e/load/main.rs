//! weft-load: a server that says which pod it is and can be made slow, and a client that sends requests at a constant rate
//! and keeps account of every one. It runs in the pods of the tests' clusters.

use std::{net::Ipv4Addr, time::Duration};

use accounts::Accounts;
use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use weft_demo::serve::Shutdown;

mod accounts;
mod echo;
mod pace;
mod send;

/// Load for the tests of weft
#[derive(Debug, Parser)]
#[command(name = "weft-load")]
struct Options {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Answers with the pod's name
    Serve {
        /// Port for HTTP/1.1
        #[arg(long, default_value_t = 8080)]
        http_port: u16,
        /// Port for gRPC
        #[arg(long, default_value_t = 8081)]
        grpc_port: u16,
    },
    /// Sends requests and tells on port 9000 what became of them
    Send {
        /// Host and port to send HTTP/1.1 to
        #[arg(long)]
        http: String,
        /// Host and port to send gRPC to
        #[arg(long)]
        grpc: String,
        /// Requests a second of each
        #[arg(long)]
        rate: u32,
    },
    /// Lists the emoji of an emojivoto and votes, in turn, and tells on port 9000 what became of it
    Visit {
        /// Host and port of its web
        #[arg(long)]
        web: String,
        /// Requests a second
        #[arg(long)]
        rate: u32,
    },
}

async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.with_context(|| format!("cannot listen on port {port}"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals()?;
    match Options::parse().part {
        Part::Serve { http_port, grpc_port } => {
            echo::run(listen(http_port).await?, listen(grpc_port).await?, shutdown).await
        }
        Part::Send { http, grpc, rate } => {
            let accounts = Accounts::new(rate, rate);
            let send = async {
                tokio::join!(
                    send::http(http, send::Server::Echo, rate, &accounts.http, accounts.paused()),
                    send::grpc(grpc, rate, &accounts.grpc, accounts.paused())
                );
            };
            until_the_end(send, &accounts, shutdown).await
        }
        Part::Visit { web, rate } => {
            let accounts = Accounts::new(rate, 0);
            let send = send::http(web, send::Server::Emojivoto, rate, &accounts.http, accounts.paused());
            until_the_end(send, &accounts, shutdown).await
        }
    }
}

/// Sends, and tells the accounts, until this program is to end.
async fn until_the_end(send: impl Future<Output = ()>, accounts: &Accounts, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut ended = shutdown.clone();
    tokio::select! {
        () = send => {}
        () = accounts.clone().tell(listen(weft_e2e::REPORT_PORT).await?, shutdown) => {}
        () = ended.ended() => {}
    }
    Ok(())
}

/// A request that has no answer after this long has failed. Only a mesh that has lost it gets there.
const NO_ANSWER: Duration = Duration::from_secs(60);
