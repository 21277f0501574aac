//! From a configuration to a running proxy, and to its end.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::LocalSet,
    time::{Instant, interval_at, sleep},
};

use crate::{
    Context,
    admin::{self, Admin},
    config::{Config, ControlAddr, EXIT_USAGE, StreamLimits},
    control::{Channel, Connector, Link, Tls},
    discover::Discovery,
    drain::{self, Causes, Phase},
    identity::{self, CredentialsRx, Key, Trust},
    logging,
    metrics::{Labels, Metrics, NoTls, Tls as TlsLabel, families},
    net, run,
};

/// Stack of a data thread. It is address space: only what is touched is memory. Unoptimised code needs more.
const STACK: usize = if cfg!(debug_assertions) { 4 * 1024 * 1024 } else { 512 * 1024 };
const SWEEP: Duration = Duration::from_secs(60);
/// How long a watch rests that the control plane refused.
const REFUSED_RETRY: Duration = Duration::from_secs(30);

/// Runs the proxy until it is told to end, and returns its exit status.
pub fn start(config: Config) -> u8 {
    let log = match logging::init(&config.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("weft-proxy: cannot start logging: {error}");
            return 1;
        }
    };
    let status = until_told(config, log.clone());
    log.flush();
    status
}

fn until_told(config: Config, log: logging::LogHandle) -> u8 {
    // The control thread is this one: no thread is made for it.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the control thread");
            return 1;
        }
    };
    let status = runtime.block_on(control(Arc::new(config), log));
    // Data threads that outlived the grace period end with the process.
    runtime.shutdown_background();
    status
}

async fn control(config: Arc<Config>, log: logging::LogHandle) -> u8 {
    let key = match &config.identity.dir {
        Some(dir) => Key::read(dir),
        None => Key::generate(&config.identity.name),
    };
    let (key, trust, anonymous) = match key.and_then(|key| {
        let trust = Trust::new(&config.identity.trust_anchors)?;
        let anonymous = trust.anonymous()?;
        Ok((key, trust, anonymous))
    }) {
        Ok(made) => made,
        Err(error) => {
            let variable = if config.identity.dir.is_some() { "IDENTITY_DIR" } else { "IDENTITY_LOCAL_NAME" };
            eprintln!("weft-proxy: LINKERD2_PROXY_{variable}: {error}");
            return EXIT_USAGE;
        }
    };
    let (mut causes, shutdown) = match Causes::new() {
        Ok(made) => made,
        Err(error) => {
            tracing::error!(%error, "cannot handle signals");
            return 1;
        }
    };
    let listener = match TcpListener::bind(config.admin.listen).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(addr = %config.admin.listen, %error, "the admin server cannot listen");
            return 1;
        }
    };
    let admin_addr = listener.local_addr().unwrap_or(config.admin.listen);

    let metrics = Metrics::new(config.metrics_retain_idle);
    describe(&metrics);
    let (publish, credentials) = watch::channel(None);
    let discovery = discovery(&config, &credentials, &metrics);
    let side = if config.identity.addr.identity.is_some() { &config.outbound } else { &config.inbound };
    let tls = Tls::Anonymous { first: anonymous, credentials: credentials.clone() };
    let connector = Connector::new(config.identity.addr.clone(), side, tls);
    let client = identity::Client::new(config.identity.clone(), key, trust, connector);
    tokio::spawn(identity::maintain(client, publish, metrics.clone()));

    // Held for ever, so that these policies are known before the first connection.
    let _pinned: Vec<_> = config.policy.ports.iter().map(|port| discovery.inbound(*port)).collect();
    let (all_bound, bound_rx) = watch::channel(false);
    let admin = Admin {
        metrics: metrics.clone(),
        credentials: credentials.clone(),
        bound: bound_rx,
        log,
        policy: discovery.inbound(admin_addr.port()),
        shutdown,
        shutdown_enabled: config.admin.shutdown_enabled,
        shutdown_identity: config.admin.shutdown_identity.clone(),
    };
    tokio::spawn(admin::serve(listener, Arc::new(admin)));
    tokio::spawn(sweep(metrics.clone()));

    let (drain, drain_rx) = watch::channel(Phase::Running);
    let (bound, mut bound_events) = mpsc::unbounded_channel();
    let context = Context { config: config.clone(), discovery, credentials, metrics, drain: drain_rx, bound };
    let mut ended = match data_threads(context) {
        Ok(ended) => ended,
        Err(error) => {
            tracing::error!(%error, "cannot start the data threads");
            return 1;
        }
    };
    tracing::info!(admin = %admin_addr, name = %config.identity.name, threads = config.cores, "weft-proxy runs");
    let cores = config.cores;
    tokio::spawn(async move {
        for _ in 0..cores {
            if bound_events.recv().await.is_none() {
                return;
            }
        }
        all_bound.send_replace(true);
    });

    let cause = tokio::select! {
        cause = causes.next() => cause,
        end = ended.recv() => {
            match end {
                Some(Err(error)) => tracing::error!(%error, "a data thread failed"),
                Some(Ok(())) | None => tracing::error!("a data thread ended by itself"),
            }
            return 1;
        }
    };
    tracing::info!(?cause, grace = ?config.shutdown_grace, "draining");
    drain.send_replace(Phase::Draining);
    let all_ended = async {
        // Through a proxy that nobody has used so far no application does its work.
        if cause.awaits_application() && net::was_used() {
            drain::application_ended().await;
            tracing::info!("the application has ended");
        }
        drain.send_replace(Phase::Ending);
        // The channel closes when the last thread has dropped its sender.
        while let Some(end) = ended.recv().await {
            if let Err(error) = end {
                tracing::warn!(%error, "a data thread failed while it drained");
            }
        }
    };
    tokio::select! {
        () = all_ended => tracing::info!("drained"),
        () = sleep(config.shutdown_grace) => tracing::warn!("connections are left after the grace period; ending them"),
        cause = causes.next() => tracing::warn!(?cause, "told to end again; not waiting for connections"),
    }
    0
}

type Ended = mpsc::UnboundedReceiver<Result<(), String>>;

fn data_threads(context: Context) -> std::io::Result<Ended> {
    let (tx, ended) = mpsc::unbounded_channel();
    for number in 0..context.config.cores {
        let (context, tx) = (context.clone(), tx.clone());
        std::thread::Builder::new().name(format!("data-{number}")).stack_size(STACK).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = tx.send(Err(error.to_string()));
                    return;
                }
            };
            let end = LocalSet::new().block_on(&runtime, run::run(context));
            let _ = tx.send(end.map_err(|error| format!("{error:#}")));
        })?;
    }
    Ok(ended)
}

fn discovery(config: &Arc<Config>, credentials: &CredentialsRx, metrics: &Arc<Metrics>) -> Discovery {
    let link = |addr: &ControlAddr| {
        let (side, limits, tls) = match &addr.identity {
            Some(identity) => (&config.outbound, config.control_streams, TlsLabel::Client { server_id: identity }),
            None => (&config.inbound, StreamLimits::default(), TlsLabel::None(NoTls::Loopback)),
        };
        let connector = Connector::new(addr.clone(), side, Tls::Mutual(credentials.clone()));
        Link {
            backoff: connector.backoff,
            channel: Channel::new(connector),
            limits,
            metrics: metrics.clone(),
            labels: Labels::new([("addr", addr.to_string().as_str())]).tls(&tls),
            refused_retry: REFUSED_RETRY,
        }
    };
    Discovery::new(config.clone(), link(&config.destination.addr), link(&config.policy.addr))
}

fn describe(metrics: &Metrics) {
    let build = Labels::new([
        ("version", env!("CARGO_PKG_VERSION")),
        ("profile", if cfg!(debug_assertions) { "debug" } else { "release" }),
        ("vendor", "weft"),
    ]);
    metrics.gauge(&families::PROXY_BUILD_INFO, &build).set(1);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let list = |items: Vec<String>| items.join(",");
    let suites = list(
        provider.cipher_suites.iter().filter(|s| s.tls13().is_some()).map(|s| format!("{:?}", s.suite())).collect(),
    );
    let groups = list(provider.kx_groups.iter().map(|g| format!("{:?}", g.name())).collect());
    let info = Labels::new([
        ("tls_suites", suites.as_str()),
        ("tls_kx_groups", groups.as_str()),
        ("tls_version", "1.3"),
        ("tls_provider", "aws-lc-rs"),
    ]);
    metrics.gauge(&families::RUSTLS_INFO, &info).set(1);
}

async fn sweep(metrics: Arc<Metrics>) {
    let mut tick = interval_at(Instant::now() + SWEEP, SWEEP);
    loop {
        tick.tick().await;
        metrics.sweep(std::time::Instant::now());
    }
}
