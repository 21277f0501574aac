//! Puts a component together, runs it, and ends it.

use crate::cli::{
    Cli, ClusterKind, Component, DestinationOptions, IdentityOptions, InjectorOptions, LogFormat, LogOptions,
    MetricsOptions, SourceOptions,
};
use crate::destination::endpoint::Mesh;
use crate::drain::{self, Drain};
use crate::identity::review::Reviewer;
use crate::index::Index;
use crate::index::pod::Settings;
use crate::injector::{self, Native, Webhooks};
use crate::kubernetes::{Api, lease};
use crate::source::{self, Source, directory};
use crate::telemetry::Telemetry;
use crate::{admin, destination, grpc, identity, metrics, policy};
use anyhow::Context;
use linkerd2_proxy_api::destination::destination_server::DestinationServer;
use linkerd2_proxy_api::identity::identity_server::IdentityServer;
use linkerd2_proxy_api::inbound::inbound_server_policies_server::InboundServerPoliciesServer;
use linkerd2_proxy_api::outbound::outbound_policies_server::OutboundPoliciesServer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tracing_subscriber::EnvFilter;
use weft_core::kinds::Kind;
use weft_core::names;

/// What destination and policy read.
const DISCOVERY_KINDS: &[Kind] = &[
    Kind::Namespace,
    Kind::Service,
    Kind::Pod,
    Kind::EndpointSlice,
    Kind::Node,
    Kind::Server,
    Kind::ServerAuthorization,
    Kind::AuthorizationPolicy,
    Kind::MeshTlsAuthentication,
    Kind::NetworkAuthentication,
    Kind::HttpLocalRateLimitPolicy,
    Kind::HttpRoute,
    Kind::EgressNetwork,
    Kind::GatewayHttpRoute,
    Kind::GrpcRoute,
    Kind::ServiceProfile,
    Kind::TrafficSplit,
    Kind::ExternalWorkload,
];
/// What metrics reads.
const METRICS_KINDS: &[Kind] = &[
    Kind::Namespace,
    Kind::Service,
    Kind::Pod,
    Kind::Deployment,
    Kind::StatefulSet,
    Kind::DaemonSet,
    Kind::ReplicaSet,
    Kind::Job,
    Kind::CronJob,
];

/// How often an API server is asked again for kinds that it lacked, where no option says so.
const RESYNC: Duration = Duration::from_secs(30);

/// Starts logging to standard error.
pub fn init_logging(options: &LogOptions) {
    // What kube-rs says of each failed request is said here too, once for each outage and without bodies.
    let quiet = |filter: &str| if filter.contains("kube_client") { "" } else { ",kube_client=off" };
    let (filter, problem) = match EnvFilter::try_new(format!("{}{}", options.log_level, quiet(&options.log_level))) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info,kube_client=off"), Some(error)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match options.log_format {
        LogFormat::Plain => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    if let Some(error) = problem {
        tracing::warn!(filter = options.log_level, %error, "log level not understood; using info");
    }
}

/// Runs the component until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or when a server of it fails.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    let (trigger, drain) = drain::channel();
    let telemetry = Telemetry::new();
    let mut servers = match cli.component {
        Component::Identity(options) => identity_servers(options, &drain, &telemetry).await?,
        Component::Destination(options) => destination_servers(options, &drain, &telemetry).await?,
        Component::Metrics(options) => metrics_servers(options, &drain, &telemetry).await?,
        Component::Injector(options) => injector_servers(options, &drain, &telemetry).await?,
    };
    tokio::select! {
        signal = drain::terminated() => {
            let signal = signal.context("cannot receive signals")?;
            tracing::info!(signal, "ending");
        }
        Some(ended) = servers.join_next() => {
            ended.context("a server panicked")??;
            anyhow::bail!("a server ended");
        }
    }
    trigger.fire();
    while let Some(ended) = servers.join_next().await {
        ended.context("a server panicked")??;
    }
    tracing::info!("ended");
    Ok(())
}

type Servers = JoinSet<anyhow::Result<()>>;

async fn bind(what: &'static str, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr} for {what}"))?;
    let addr = listener.local_addr().with_context(|| format!("no local address for {what}"))?;
    tracing::info!(server = what, %addr, "listening");
    Ok(listener)
}

async fn serve_admin(
    servers: &mut Servers,
    addr: SocketAddr,
    drain: &Drain,
    telemetry: &Telemetry,
    ready: admin::Readiness,
) -> anyhow::Result<()> {
    let listener = bind("admin", addr).await?;
    let (drain, telemetry) = (drain.clone(), telemetry.clone());
    servers.spawn(async move {
        admin::run(listener, drain, telemetry, ready).await;
        Ok(())
    });
    Ok(())
}

async fn start_index(
    options: &SourceOptions,
    kinds: &'static [Kind],
    defaults: Settings,
    telemetry: &Telemetry,
) -> anyhow::Result<(Index, admin::Readiness)> {
    let index = Index::new(telemetry, defaults);
    let resync = options.resync_interval;
    let (source, unready) = match options.cluster.kind(options.state_dir.is_some()) {
        ClusterKind::Directory => {
            let source = Source::Directory(directory::Options { path: options.directory(), resync });
            (source, "the state directory has not been read yet")
        }
        ClusterKind::Kubernetes => {
            let api = Api::new(&options.cluster.api()).await?;
            let source = Source::Kubernetes(source::kubernetes::Options { api, resync });
            (source, "the cluster's objects have not been read yet")
        }
    };
    tokio::spawn(index.clone().run(source.watch(kinds, telemetry)));
    let shown = index.clone();
    // Once ready always ready: what is known serves proxies, also while the source is away.
    let ready = move || (!shown.is_synced()).then(|| unready.to_owned());
    Ok((index, Arc::new(ready)))
}

async fn destination_servers(
    options: DestinationOptions,
    drain: &Drain,
    telemetry: &Telemetry,
) -> anyhow::Result<Servers> {
    let grpc = bind("destination", options.grpc_addr).await?;
    let policy = bind("policy", options.policy_addr).await?;
    let defaults = Settings {
        opaque_ports: options.opaque_ports,
        inbound_policy: options.default_inbound_policy,
        ..Settings::default()
    };
    let (index, ready) = start_index(&options.source, DISCOVERY_KINDS, defaults, telemetry).await?;
    let mesh = Arc::new(Mesh {
        controller_namespace: options.mesh.controller_namespace,
        trust_domain: options.mesh.trust_domain,
        cluster_domain: options.cluster_domain,
    });
    let mut servers = JoinSet::new();
    serve_admin(&mut servers, options.admin_addr, drain, telemetry, ready).await?;
    let discovery = destination::Server::new(index.clone(), mesh.clone(), drain.clone(), telemetry);
    servers.spawn(grpc::serve(grpc, Routes::new(DestinationServer::new(discovery)), drain.clone()));
    let scraper = names::identity(
        names::METRICS_SERVICE,
        &mesh.controller_namespace,
        &mesh.controller_namespace,
        &mesh.trust_domain,
    );
    let rules =
        Arc::new(policy::server::Rules { mesh: mesh.clone(), cluster_networks: options.cluster_networks, scraper });
    let inbound = policy::inbound::Server::new(index.clone(), rules, drain.clone(), telemetry);
    let outbound = policy::outbound::Server::new(index, mesh, drain.clone(), telemetry);
    let routes =
        Routes::new(InboundServerPoliciesServer::new(inbound)).add_service(OutboundPoliciesServer::new(outbound));
    servers.spawn(grpc::serve(policy, routes, drain.clone()));
    Ok(servers)
}

async fn identity_servers(options: IdentityOptions, drain: &Drain, telemetry: &Telemetry) -> anyhow::Result<Servers> {
    let grpc = bind("identity", options.grpc_addr).await?;
    let admin_addr = options.admin_addr;
    let credentials = identity::credentials::Credentials::watch(&options, telemetry);
    let ready = {
        let credentials = credentials.clone();
        move || credentials.problem()
    };
    let mut servers = JoinSet::new();
    serve_admin(&mut servers, admin_addr, drain, telemetry, Arc::new(ready)).await?;
    let reviewer = match options.key_files() {
        Some(_) => Reviewer::Keys,
        None => Reviewer::api(Api::new(&options.cluster.api()).await?),
    };
    let server = identity::Server::new(&options, credentials, reviewer, telemetry);
    servers.spawn(grpc::serve(grpc, Routes::new(IdentityServer::new(server)), drain.clone()));
    Ok(servers)
}

async fn metrics_servers(options: MetricsOptions, drain: &Drain, telemetry: &Telemetry) -> anyhow::Result<Servers> {
    let api = bind("metrics", options.api_addr).await?;
    let (index, ready) = start_index(&options.source, METRICS_KINDS, Settings::default(), telemetry).await?;
    let mut servers = JoinSet::new();
    serve_admin(&mut servers, options.admin_addr, drain, telemetry, ready).await?;
    let metrics = metrics::Metrics::new(index, &options, telemetry);
    let (scraper, scrape_drain) = (metrics.clone(), drain.clone());
    servers.spawn(async move {
        tokio::select! {
            () = scraper.scrape_forever() => {}
            () = scrape_drain.signaled() => {}
        }
        Ok(())
    });
    let drain = drain.clone();
    servers.spawn(async move {
        metrics::serve(api, drain, metrics).await;
        Ok(())
    });
    Ok(servers)
}

async fn injector_servers(options: InjectorOptions, drain: &Drain, telemetry: &Telemetry) -> anyhow::Result<Servers> {
    if options.cluster.source == Some(ClusterKind::Directory) {
        anyhow::bail!("the injector is for Kubernetes: the one-machine cluster injects pods by itself");
    }
    let https = bind("webhook", options.webhook_addr).await?;
    let api = Api::new(&options.cluster.api()).await?;
    let namespace = options.mesh.controller_namespace;
    let source = Source::Kubernetes(source::kubernetes::Options { api: api.clone(), resync: RESYNC });
    let webhooks = Webhooks {
        configuration: injector::config::Configuration::watch(
            &options.values,
            &options.trust_anchors,
            &namespace,
            telemetry,
        ),
        namespaces: injector::namespaces::Namespaces::follow(api.clone(), source.watch(&[Kind::Namespace], telemetry)),
        native: Native::watch(api.clone()),
        events: injector::events::Events::new(api.clone()),
        api: api.clone(),
        telemetry: telemetry.clone(),
    };
    let shown = injector::keeper::Shown::default();
    let election = lease::Options {
        namespace: namespace.clone(),
        name: names::INJECTOR_LEASE.to_owned(),
        identity: replica(),
        duration: options.lease_duration,
    };
    let (leading, election) = lease::elect(api.clone(), election, drain.clone());
    let keeper = injector::keeper::Keeper {
        api,
        namespace,
        lifetime: options.webhook_certificate_lifetime,
        shown: shown.clone(),
        leading,
        telemetry: telemetry.clone(),
    };
    let mut servers = JoinSet::new();
    let ready = {
        let (shown, webhooks) = (shown.clone(), webhooks.clone());
        move || {
            if !shown.is_there() {
                return Some("there is no certificate yet".to_owned());
            }
            if !webhooks.namespaces.is_synced() {
                return Some("the namespaces have not been read yet".to_owned());
            }
            webhooks.configuration.problem()
        }
    };
    serve_admin(&mut servers, options.admin_addr, drain, telemetry, Arc::new(ready)).await?;
    servers.spawn(webhooks.serve(https, shown, drain.clone()));
    let keeper_drain = drain.clone();
    servers.spawn(async move {
        keeper.run(keeper_drain).await;
        Ok(())
    });
    servers.spawn(async move {
        election.await;
        Ok(())
    });
    Ok(servers)
}

/// What tells this replica from all others: the host's name, which is the pod's, and a number for others on the host.
fn replica() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:08x}", host.trim(), fastrand::u32(..))
}
