//! From environment variables to [`Config`]. The first variable that is missing or wrong is the error.

mod values;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    AdminConfig, Backoff, Config, ControlAddr, DefaultPolicy, DestinationConfig, Error, Http1Config, Http2Config,
    IdentityConfig, LogConfig, PolicyConfig, ProxySide, StreamLimits,
};
pub(crate) use values::duration;
use values::{boolean, dns_name, host_port, ip, list, networks, number, ports, socket_addr, window};

const PREFIX: &str = "LINKERD2_PROXY_";

/// Where values come from: the environment, or a map in tests.
struct Source<'a>(&'a dyn Fn(&str) -> Result<Option<String>, String>);

impl Source<'_> {
    /// The variable's value, trimmed; `None` when unset or empty.
    fn get(&self, name: &str) -> Result<Option<String>, Error> {
        match (self.0)(&full(name)) {
            Ok(value) => Ok(value.map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())),
            Err(reason) => Err(error(name, reason)),
        }
    }

    fn parse<T>(&self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Error> {
        match self.get(name)? {
            Some(text) => parse(&text).map(Some).map_err(|reason| error(name, format!("{reason}, but is {text:?}"))),
            None => Ok(None),
        }
    }

    fn or<T>(&self, name: &str, default: T, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Error> {
        Ok(self.parse(name, parse)?.unwrap_or(default))
    }

    fn required(&self, name: &str) -> Result<String, Error> {
        self.get(name)?.ok_or_else(|| error(name, "must be set"))
    }

    fn duration(&self, name: &str, default: Duration) -> Result<Duration, Error> {
        self.or(name, default, duration)
    }
}

/// Variables of our own have their whole name.
fn full(name: &str) -> String {
    if name.starts_with("WEFT_PROXY_") { name.to_owned() } else { format!("{PREFIX}{name}") }
}

fn error(name: &str, reason: impl Into<String>) -> Error {
    Error { variable: full(name), reason: reason.into() }
}

impl Config {
    /// Reads the process' environment.
    ///
    /// # Errors
    /// Names the first variable that is missing or wrong.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_source(&|name| match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err("must be UTF-8".to_owned()),
        })
    }

    /// Reads variables (by full name) from anywhere.
    ///
    /// # Errors
    /// As [`Config::from_env`]; an `Err` of `get` is the reason.
    pub fn from_source(get: &dyn Fn(&str) -> Result<Option<String>, String>) -> Result<Self, Error> {
        let source = Source(get);
        let identity = identity(&source)?;
        let destination = DestinationConfig {
            addr: control_addr(&source, "DESTINATION_SVC")?,
            context: source.get("DESTINATION_CONTEXT")?.unwrap_or_default(),
            profile_networks: source.or("DESTINATION_PROFILE_NETWORKS", Vec::new(), networks)?,
            profile_initial_timeout: source
                .duration("DESTINATION_PROFILE_INITIAL_TIMEOUT", Duration::from_millis(500))?,
        };
        let policy = policy(&source)?;
        let inbound = side(&source, &INBOUND)?;
        let outbound = side(&source, &OUTBOUND)?;
        Ok(Self {
            identity,
            destination,
            policy,
            inbound,
            outbound,
            inbound_ips: source.or("INBOUND_IPS", BTreeSet::new(), |s| list(s, ip))?,
            emit_headers: !source.or("OUTBOUND_DISABLE_INFORMATIONAL_HEADERS", false, boolean)?,
            admin: AdminConfig {
                listen: source.or("ADMIN_LISTEN_ADDR", SocketAddr::from(([127, 0, 0, 1], 4191)), socket_addr)?,
                shutdown_enabled: source.or("SHUTDOWN_ENDPOINT_ENABLED", false, boolean)?,
                shutdown_identity: source.get("WEFT_PROXY_SHUTDOWN_IDENTITY")?,
            },
            metrics_retain_idle: source.duration("METRICS_RETAIN_IDLE", Duration::from_secs(600))?,
            cores: cores(&source)?,
            log: LogConfig {
                filter: source.or("LOG", "warn,weft_proxy=info".to_owned(), |s| {
                    crate::logging::normalize(s).map_err(|e| format!("must be log directives ({e})"))
                })?,
                json: source.or("LOG_FORMAT", false, |s| match s {
                    "json" => Ok(true),
                    "plain" => Ok(false),
                    _ => Err("must be \"plain\" or \"json\"".to_owned()),
                })?,
            },
            shutdown_grace: source.duration("SHUTDOWN_GRACE_PERIOD", Duration::from_secs(120))?,
            http2: Http2Config {
                stream_window: source.or("HTTP2_INITIAL_STREAM_WINDOW_SIZE", 65_535, window)?,
                connection_window: source.or("HTTP2_INITIAL_CONNECTION_WINDOW_SIZE", 1024 * 1024, window)?,
            },
            http1: Http1Config::default(),
            control_streams: control_streams(&source)?,
        })
    }
}

fn identity(source: &Source<'_>) -> Result<IdentityConfig, Error> {
    if source.get("IDENTITY_DISABLED")?.is_some() {
        return Err(error("IDENTITY_DISABLED", "is no longer supported: a proxy always has an identity"));
    }
    let name = match source.parse("IDENTITY_LOCAL_NAME", dns_name)? {
        Some(name) => name,
        None => {
            let id = source.parse("IDENTITY_SERVER_ID", dns_name)?;
            let server = source.parse("IDENTITY_SERVER_NAME", dns_name)?;
            match (id, server) {
                (Some(id), Some(server)) if id == server => id,
                (Some(_), Some(_)) => return Err(error("IDENTITY_SERVER_NAME", "must equal IDENTITY_SERVER_ID")),
                (Some(_), None) => return Err(error("IDENTITY_SERVER_NAME", "must be set with IDENTITY_SERVER_ID")),
                (None, Some(_)) => return Err(error("IDENTITY_SERVER_ID", "must be set with IDENTITY_SERVER_NAME")),
                (None, None) => return Err(error("IDENTITY_LOCAL_NAME", "must be set")),
            }
        }
    };
    let anchors = source.required("IDENTITY_TRUST_ANCHORS")?;
    let trust_anchors = CertificateDer::pem_slice_iter(anchors.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| error("IDENTITY_TRUST_ANCHORS", format!("must be PEM certificates: {e}")))?;
    if trust_anchors.is_empty() {
        return Err(error("IDENTITY_TRUST_ANCHORS", "must hold at least one PEM certificate"));
    }
    let mut roots = rustls::RootCertStore::empty();
    for anchor in &trust_anchors {
        roots
            .add(anchor.clone())
            .map_err(|e| error("IDENTITY_TRUST_ANCHORS", format!("holds a certificate that is no anchor: {e}")))?;
    }
    let token_file = PathBuf::from(source.required("IDENTITY_TOKEN_FILE")?);
    match std::fs::metadata(&token_file) {
        Ok(file) if file.len() > 0 => {}
        Ok(_) => return Err(error("IDENTITY_TOKEN_FILE", format!("names an empty file, {}", token_file.display()))),
        Err(e) => {
            return Err(error(
                "IDENTITY_TOKEN_FILE",
                format!("names {}, which is unreadable: {e}", token_file.display()),
            ));
        }
    }
    let min_refresh = source.duration("IDENTITY_MIN_REFRESH", Duration::from_secs(10))?;
    let max_refresh = source.duration("IDENTITY_MAX_REFRESH", Duration::from_secs(24 * 60 * 60))?;
    if max_refresh < min_refresh {
        return Err(error("IDENTITY_MAX_REFRESH", "must not be less than IDENTITY_MIN_REFRESH"));
    }
    Ok(IdentityConfig {
        name,
        dir: source.get("IDENTITY_DIR")?.map(PathBuf::from),
        trust_anchors,
        token_file,
        min_refresh,
        max_refresh,
        addr: control_addr(source, "IDENTITY_SVC")?,
    })
}

fn policy(source: &Source<'_>) -> Result<PolicyConfig, Error> {
    let addr = control_addr(source, "POLICY_SVC")?;
    let workload = source.required("POLICY_WORKLOAD")?;
    let cluster_networks = source.or("POLICY_CLUSTER_NETWORKS", Vec::new(), networks)?;
    let default = source.or("INBOUND_DEFAULT_POLICY", DefaultPolicy::AllUnauthenticated, |s| match s {
        "all-unauthenticated" => Ok(DefaultPolicy::AllUnauthenticated),
        "all-authenticated" => Ok(DefaultPolicy::AllAuthenticated),
        "deny" => Ok(DefaultPolicy::Deny),
        "audit" => Ok(DefaultPolicy::Audit),
        "cluster-unauthenticated" | "cluster-authenticated" if cluster_networks.is_empty() => {
            Err(format!("needs {PREFIX}POLICY_CLUSTER_NETWORKS for a cluster policy"))
        }
        "cluster-unauthenticated" => Ok(DefaultPolicy::ClusterUnauthenticated),
        "cluster-authenticated" => Ok(DefaultPolicy::ClusterAuthenticated),
        _ => Err("must be all-unauthenticated, all-authenticated, cluster-unauthenticated, \
                  cluster-authenticated, audit or deny"
            .to_owned()),
    })?;
    Ok(PolicyConfig {
        addr,
        workload,
        ports: source.or("INBOUND_PORTS", BTreeSet::new(), ports)?,
        opaque_ports: source.or("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", BTreeSet::new(), ports)?,
        default,
        cluster_networks,
    })
}

struct SideDefaults {
    prefix: &'static str,
    listen: &'static str,
    connect_timeout: Duration,
    backoff_max: Duration,
    failfast: Duration,
    discovery_idle: Duration,
    max_idle: &'static str,
    /// Of accepted connections, and of those made: set where the other end is on another host.
    accept: Option<Vanishing>,
    connect: Option<Vanishing>,
}

/// How a host that is gone without a word is found out.
struct Vanishing {
    keepalive: Duration,
    user_timeout: Duration,
}

/// As Linkerd's charts set it.
const VANISHING: Vanishing = Vanishing { keepalive: Duration::from_secs(10), user_timeout: Duration::from_secs(30) };

const INBOUND: SideDefaults = SideDefaults {
    prefix: "INBOUND",
    listen: "0.0.0.0:4143",
    connect_timeout: Duration::from_millis(300),
    backoff_max: Duration::from_secs(10),
    failfast: Duration::from_secs(1),
    discovery_idle: Duration::from_secs(90),
    // Linkerd's name for the inbound limit has no direction in it.
    max_idle: "MAX_IDLE_CONNS_PER_ENDPOINT",
    accept: Some(VANISHING),
    connect: None,
};

const OUTBOUND: SideDefaults = SideDefaults {
    prefix: "OUTBOUND",
    listen: "127.0.0.1:4140",
    connect_timeout: Duration::from_secs(1),
    backoff_max: Duration::from_secs(60),
    failfast: Duration::from_secs(3),
    discovery_idle: Duration::from_secs(5),
    max_idle: "OUTBOUND_MAX_IDLE_CONNS_PER_ENDPOINT",
    accept: None,
    connect: Some(VANISHING),
};

fn side(source: &Source<'_>, defaults: &SideDefaults) -> Result<ProxySide, Error> {
    let name = |suffix: &str| format!("{}_{suffix}", defaults.prefix);
    let optional = |suffix: &str| source.parse(&name(suffix), duration);
    let listen = match source.parse(&name("LISTEN_ADDRS"), |s| list::<_, Vec<_>>(s, socket_addr))? {
        Some(addrs) => addrs,
        None => vec![match source.parse(&name("LISTEN_ADDR"), socket_addr)? {
            Some(addr) => addr,
            None => socket_addr(defaults.listen).map_err(|e| error(&name("LISTEN_ADDR"), e))?,
        }],
    };
    let remote = |suffix: &str, default: Option<Duration>| Ok::<_, Error>(optional(suffix)?.or(default));
    let default_backoff = Backoff { min: Duration::from_millis(100), max: defaults.backoff_max, jitter: 0.1 };
    Ok(ProxySide {
        listen,
        backlog: source.parse(&name("TCP_LISTEN_BACKLOG"), number)?,
        connect_timeout: source.duration(&name("CONNECT_TIMEOUT"), defaults.connect_timeout)?,
        detect_timeout: source.duration(&name("DETECT_TIMEOUT"), Duration::from_secs(10))?,
        accept_keepalive: remote("ACCEPT_KEEPALIVE", defaults.accept.as_ref().map(|d| d.keepalive))?,
        connect_keepalive: remote("CONNECT_KEEPALIVE", defaults.connect.as_ref().map(|d| d.keepalive))?,
        accept_user_timeout: remote("ACCEPT_USER_TIMEOUT", defaults.accept.as_ref().map(|d| d.user_timeout))?,
        connect_user_timeout: remote("CONNECT_USER_TIMEOUT", defaults.connect.as_ref().map(|d| d.user_timeout))?,
        connect_backoff: backoff(source, &name("CONNECT_EXP_BACKOFF"), default_backoff)?,
        http_failfast: source.duration(&name("HTTP_FAILFAST_TIMEOUT"), defaults.failfast)?,
        http_queue: source.or(&name("HTTP_QUEUE_CAPACITY"), 10_000, number)?,
        discovery_idle: source.duration(&name("DISCOVERY_IDLE_TIMEOUT"), defaults.discovery_idle)?,
        max_in_flight: source.or(&name("MAX_IN_FLIGHT"), 100_000, number)?,
        max_connections: source.or(&name("MAX_CONNECTIONS"), 65_536, number)?,
        max_idle_per_endpoint: source.or(defaults.max_idle, 10_000, number)?,
        http1_idle: source.duration(&name("HTTP1_CONNECTION_POOL_IDLE_TIMEOUT"), Duration::from_secs(3))?,
        http2_keepalive_interval: optional("SERVER_HTTP2_KEEP_ALIVE_INTERVAL")?,
        http2_keepalive_timeout: optional("SERVER_HTTP2_KEEP_ALIVE_TIMEOUT")?,
        http2_max_concurrent_streams: source.parse(&name("SERVER_HTTP2_MAX_CONCURRENT_STREAMS"), number)?,
    })
}

fn backoff(source: &Source<'_>, name: &str, default: Backoff) -> Result<Backoff, Error> {
    let (min_name, max_name, jitter_name) = (format!("{name}_MIN"), format!("{name}_MAX"), format!("{name}_JITTER"));
    let min = source.parse(&min_name, duration)?;
    let max = source.parse(&max_name, duration)?;
    let jitter = source.parse(&jitter_name, |s| match s.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    })?;
    match (min, max) {
        (None, None) => Ok(Backoff { jitter: jitter.unwrap_or(default.jitter), ..default }),
        (Some(min), _) if min.is_zero() => Err(error(&min_name, "must be more than zero")),
        (Some(min), Some(max)) if max < min => {
            Err(error(&max_name, format!("must not be less than {}", full(&min_name))))
        }
        (Some(min), Some(max)) => Ok(Backoff { min, max, jitter: jitter.unwrap_or(0.0) }),
        (Some(_), None) => Err(error(&max_name, format!("must be set with {}", full(&min_name)))),
        (None, Some(_)) => Err(error(&min_name, format!("must be set with {}", full(&max_name)))),
    }
}

fn control_streams(source: &Source<'_>) -> Result<StreamLimits, Error> {
    let (initial, idle, lifetime) =
        ("CONTROL_STREAM_INITIAL_TIMEOUT", "CONTROL_STREAM_IDLE_TIMEOUT", "CONTROL_STREAM_LIFETIME");
    let given = |name| source.parse(name, duration);
    let set = [given(initial)?, given(idle)?, given(lifetime)?];
    // Zero is no limit.
    let [first, between, all] = set.map(|limit| limit.filter(|l| !l.is_zero()));
    let order = |a: Option<Duration>, b: Option<Duration>| !matches!((a, b), (Some(a), Some(b)) if a > b);
    if !order(first, between) {
        return Err(error(idle, "must not be less than the initial timeout"));
    }
    if !order(between, all) || !order(first, all) {
        return Err(error(lifetime, "must not be less than the other limits"));
    }
    // As Linkerd's charts set them; but a default never contradicts what is set.
    let default = |seconds, low: [Option<Duration>; 2], high: [Option<Duration>; 2]| {
        let limit = Some(Duration::from_secs(seconds));
        limit.filter(|_| low.iter().all(|l| order(*l, limit)) && high.iter().all(|h| order(limit, *h)))
    };
    Ok(StreamLimits {
        initial: set[0].map_or_else(|| default(3, [None, None], [between, all]), |_| first),
        idle: set[1].map_or_else(|| default(5 * 60, [first, None], [all, None]), |_| between),
        lifetime: set[2].map_or_else(|| default(60 * 60, [first, between], [None, None]), |_| all),
    })
}

fn cores(source: &Source<'_>) -> Result<usize, Error> {
    let positive = |s: &str| match s.parse::<usize>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("must be a whole number above zero".to_owned()),
    };
    if let Some(cores) = source.parse("CORES", positive)? {
        return Ok(cores);
    }
    let min = source.parse("CORES_MIN", positive)?.unwrap_or(1);
    let max = source.parse("CORES_MAX", positive)?;
    let ratio = source.parse("CORES_MAX_RATIO", |s| match s.parse::<f64>() {
        Ok(r) if (0.0..=1.0).contains(&r) => Ok(r),
        _ => Err("must be a number from 0 to 1".to_owned()),
    })?;
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = match (max, ratio) {
        (_, Some(ratio)) => ((available as f64 * ratio).round() as usize).min(max.unwrap_or(usize::MAX)),
        (Some(max), None) => max.min(available),
        (None, None) => 1,
    };
    Ok(wanted.max(min))
}

/// Reads `<base>_ADDR` and `<base>_NAME`. A loopback address means plaintext and needs no name.
fn control_addr(source: &Source<'_>, base: &str) -> Result<ControlAddr, Error> {
    let (addr_name, name_name) = (format!("{base}_ADDR"), format!("{base}_NAME"));
    let (host, port) = source.parse(&addr_name, host_port)?.ok_or_else(|| error(&addr_name, "must be set"))?;
    let name = source.parse(&name_name, dns_name)?;
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match (loopback, name) {
        (true, _) => Ok(ControlAddr { host, port, identity: None }),
        (false, Some(identity)) => Ok(ControlAddr { host, port, identity: Some(identity) }),
        (false, None) => {
            Err(error(&name_name, format!("must be set, because {} is not a loopback address", full(&addr_name))))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn anchor() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().pem()
    }

    /// A complete environment with changes; `None` unsets.
    fn parse(changes: &[(&str, Option<&str>)]) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "token").unwrap();
        let mut vars: HashMap<String, String> = [
            ("IDENTITY_TRUST_ANCHORS", anchor().as_str()),
            ("IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
            ("IDENTITY_LOCAL_NAME", "web.emojivoto.serviceaccount.identity.weft.cluster.local"),
            ("IDENTITY_SVC_ADDR", "localhost.:8080"),
            ("DESTINATION_SVC_ADDR", "127.0.0.1:8086"),
            ("POLICY_SVC_ADDR", "weft-policy.weft.svc.cluster.local.:8090"),
            ("POLICY_SVC_NAME", "weft-destination.weft.serviceaccount.identity.weft.cluster.local"),
            ("POLICY_WORKLOAD", "{}"),
        ]
        .map(|(k, v)| (full(k), v.to_owned()))
        .into();
        for (name, value) in changes {
            match value {
                Some(v) => vars.insert(full(name), (*v).to_owned()),
                None => vars.remove(&full(name)),
            };
        }
        Config::from_source(&|name| Ok(vars.get(name).cloned()))
    }

    #[test]
    fn the_least_environment_is_enough() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.identity.addr, ControlAddr { host: "localhost".into(), port: 8080, identity: None });
        assert_eq!(config.policy.addr.host, "weft-policy.weft.svc.cluster.local");
        assert!(config.policy.addr.identity.is_some());
        assert_eq!(config.inbound.listen, ["0.0.0.0:4143".parse().unwrap()]);
        assert_eq!(config.outbound.discovery_idle, Duration::from_secs(5));
        assert_eq!(config.cores, 1);
    }

    #[test]
    fn hosts_that_are_gone_are_found_out_without_any_setting() {
        let config = parse(&[("OUTBOUND_CONNECT_KEEPALIVE", Some("0s"))]).unwrap();
        let (inbound, outbound) = (&config.inbound, &config.outbound);
        let (keepalive, user_timeout) = (Some(Duration::from_secs(10)), Some(Duration::from_secs(30)));
        assert_eq!((inbound.accept_keepalive, inbound.accept_user_timeout), (keepalive, user_timeout));
        assert_eq!((outbound.connect_keepalive, outbound.connect_user_timeout), (Some(Duration::ZERO), user_timeout));
        // The application is on the same host.
        assert_eq!((inbound.connect_keepalive, outbound.accept_user_timeout), (None, None));
    }

    #[test]
    fn watches_have_limits_that_do_not_contradict_what_is_set() {
        let limits = |changes: &[(&str, Option<&str>)]| {
            let limits = parse(changes).unwrap().control_streams;
            [limits.initial, limits.idle, limits.lifetime].map(|l| l.map_or(0, |l| l.as_secs()))
        };
        assert_eq!(limits(&[]), [3, 300, 3600]);
        assert_eq!(limits(&[("CONTROL_STREAM_INITIAL_TIMEOUT", Some("0s"))]), [0, 300, 3600]);
        assert_eq!(limits(&[("CONTROL_STREAM_IDLE_TIMEOUT", Some("1s"))]), [0, 1, 3600]);
        assert_eq!(limits(&[("CONTROL_STREAM_INITIAL_TIMEOUT", Some("10m"))]), [600, 0, 3600]);
        assert_eq!(limits(&[("CONTROL_STREAM_LIFETIME", Some("10s"))]), [3, 0, 10]);
    }

    #[test]
    fn a_missing_variable_is_named() {
        for name in [
            "IDENTITY_TRUST_ANCHORS",
            "IDENTITY_TOKEN_FILE",
            "IDENTITY_LOCAL_NAME",
            "IDENTITY_SVC_ADDR",
            "DESTINATION_SVC_ADDR",
            "POLICY_SVC_ADDR",
            "POLICY_SVC_NAME",
            "POLICY_WORKLOAD",
        ] {
            assert_eq!(parse(&[(name, None)]).unwrap_err().variable, full(name));
            assert_eq!(parse(&[(name, Some(""))]).unwrap_err().variable, full(name), "empty is missing");
        }
    }

    #[test]
    fn a_bad_variable_is_named() {
        for (name, value) in [
            ("IDENTITY_TRUST_ANCHORS", "not a certificate"),
            ("IDENTITY_TOKEN_FILE", "/nonexistent"),
            ("IDENTITY_LOCAL_NAME", "not a name"),
            ("IDENTITY_DISABLED", "1"),
            ("IDENTITY_SVC_ADDR", "localhost"),
            ("DESTINATION_SVC_ADDR", "127.0.0.1:0"),
            ("DESTINATION_SVC_ADDR", "127.0.0.1:66000"),
            ("DESTINATION_PROFILE_NETWORKS", "10.0.0.0/40"),
            ("INBOUND_CONNECT_TIMEOUT", "100"),
            ("INBOUND_CONNECT_TIMEOUT", "1.5s"),
            ("OUTBOUND_CONNECT_TIMEOUT", "5 parsecs"),
            ("OUTBOUND_CONNECT_EXP_BACKOFF_MAX", "1s"),
            ("INBOUND_PORTS", "80-70"),
            ("INBOUND_DEFAULT_POLICY", "anything"),
            ("INBOUND_DEFAULT_POLICY", "cluster-authenticated"),
            ("INBOUND_LISTEN_ADDR", "4143"),
            ("LOG", "weft_proxy=loud"),
            ("LOG_FORMAT", "xml"),
            ("CORES", "0"),
            ("SHUTDOWN_ENDPOINT_ENABLED", "yes"),
        ] {
            let error = parse(&[(name, Some(value))]).unwrap_err();
            // A back-off with half its bounds is reported at the missing one.
            let named = name.replace("_BACKOFF_MAX", "_BACKOFF_MIN");
            assert_eq!(error.variable, full(&named), "{name}={value}: {error}");
        }
    }
}
