//! From a container of a manifest to what the container role needs: arguments, environment, user, rights, files.

use super::Node;
use super::env::{self, Env};
use super::store::now;
use super::volumes::Volumes;
use crate::cgroup::Limits;
use crate::container::{BIN_DIR, Spec};
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodStatus};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use weft_core::names::{CLUSTER_DOMAIN, LOCAL_DNS_IP};

/// What a container may do unless its security context says otherwise: what container runtimes give by default.
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Directories that every PATH has in the end.
const PATH: &[&str] = &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The PATH of containers: the programs beside weft, then the PATH of `weft up`.
fn path(host_path: &str) -> String {
    let mut dirs: Vec<&str> = vec![BIN_DIR];
    for dir in host_path.split(':').chain(PATH.iter().copied()) {
        if dir.starts_with('/') && !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs.join(":")
}

/// Where the commands of containers are looked up, as the node sees it.
pub(crate) struct Programs {
    beside: PathBuf,
    path: String,
}

impl Programs {
    /// Of a cluster.
    pub(crate) fn new(config: &super::Config) -> Self {
        Self { beside: config.programs.clone(), path: path(&config.path) }
    }

    /// Why a container's command cannot exist, when that is certain before anything runs. A command that a variable or
    /// a volume decides about is only known when the container starts.
    pub(crate) fn missing(&self, container: &Container) -> Option<String> {
        let name = container.command.as_ref()?.first()?;
        let own_path = container.env_from.is_some() || container.env.iter().flatten().any(|e| e.name == "PATH");
        if name.is_empty() || name.contains("$(") || (own_path && !name.contains('/')) {
            return None;
        }
        if name.contains('/') {
            // These look different inside a container, and a relative path depends on its working directory.
            let own = ["/dev", "/proc", "/run", "/sys"].into_iter();
            let mut own = own.chain(container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.as_str()));
            let unknown = !name.starts_with('/') || own.any(|dir| Path::new(name).starts_with(dir));
            return (!unknown && !Path::new(name).exists()).then(|| format!("{name} does not exist"));
        }
        let dirs = self.path.split(':').filter(|dir| *dir != BIN_DIR).map(Path::new);
        let found = std::iter::once(self.beside.as_path()).chain(dirs).any(|dir| dir.join(name).exists());
        (!found).then(|| format!("{name} exists neither in {} nor on PATH", self.beside.display()))
    }
}

/// The host name of a pod.
pub(crate) fn hostname(pod: &Pod) -> String {
    let asked = pod.spec.as_ref().and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let mut name = asked.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.truncate(63);
    name
}

/// Everything but the FIFOs and the scratch directory.
///
/// # Errors
/// One sentence when the container cannot be configured.
pub(crate) fn build(
    node: &Node,
    pod: &Pod,
    container: &Container,
    ip: Ipv4Addr,
    volumes: &Volumes,
) -> Result<Spec, String> {
    let security = container.security_context.as_ref();
    let pod_spec = pod.spec.as_ref();
    let pod_security = pod_spec.and_then(|s| s.security_context.as_ref());
    let id = |own: Option<i64>, pods: Option<i64>| {
        let id = own.or(pods).unwrap_or(0);
        u32::try_from(id).map_err(|_| format!("{id} is no user or group"))
    };
    let uid = id(security.and_then(|s| s.run_as_user), pod_security.and_then(|s| s.run_as_user))?;
    let gid = id(security.and_then(|s| s.run_as_group), pod_security.and_then(|s| s.run_as_group))?;
    let non_root = security.and_then(|s| s.run_as_non_root).or(pod_security.and_then(|s| s.run_as_non_root));
    if non_root == Some(true) && uid == 0 {
        return Err("runAsNonRoot is set, but no runAsUser, so it would run as root".into());
    }
    let groups = pod_security.into_iter().flat_map(|s| s.fs_group.iter().chain(s.supplemental_groups.iter().flatten()));
    let groups: Vec<u32> = groups.filter_map(|g| u32::try_from(*g).ok()).collect();
    let privileged = security.and_then(|s| s.privileged) == Some(true);
    let capabilities = (!privileged).then(|| {
        let wanted = security.and_then(|s| s.capabilities.as_ref());
        let plain = |name: &String| name.trim_start_matches("CAP_").to_ascii_uppercase();
        let drop: Vec<String> = wanted.iter().flat_map(|c| c.drop.iter().flatten()).map(plain).collect();
        let all = drop.iter().any(|d| d == "ALL");
        let kept = CAPABILITIES.iter().map(|c| (*c).to_owned()).filter(|c| !all && !drop.contains(c));
        let added = wanted.iter().flat_map(|c| c.add.iter().flatten()).map(plain);
        kept.chain(added).collect()
    });

    let hostname = hostname(pod);
    let home = if uid == 0 { "/root" } else { "/" };
    let base: Env = vec![
        ("PATH".into(), path(&node.config.path)),
        ("HOSTNAME".into(), hostname.clone()),
        ("HOME".into(), home.into()),
    ];
    let env = env::container_env(&node.store.borrow(), pod, container, base)?;
    let known: BTreeMap<String, String> = env.iter().cloned().collect();
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let argv: Vec<String> = words.map(|word| env::expand(word, &known)).collect();
    let binds = volumes.binds(pod, container, &env)?;
    Ok(Spec {
        enter: None,
        stdin: None,
        argv,
        cwd: container.working_dir.clone().unwrap_or_default(),
        uid,
        gid,
        groups,
        no_new_privileges: security.and_then(|s| s.allow_privilege_escalation) == Some(false),
        capabilities,
        read_only_root: security.and_then(|s| s.read_only_root_filesystem) == Some(true),
        mounts: node.mounts.all.clone(),
        host_mounts: node.mounts.seen.clone(),
        hidden: node.run_dir.clone(),
        programs: node.config.programs.clone(),
        resolv_conf: resolv_conf(pod),
        hosts: hosts(pod, &hostname, ip),
        hostname: format!("{hostname}\n"),
        volumes: binds,
        env,
        ..Spec::default()
    })
}

/// What a container may use at most.
///
/// # Errors
/// When a limit is no quantity.
pub(crate) fn limits(container: &Container) -> Result<Limits, String> {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let value = |name: &str| limits.and_then(|l| l.get(name)).map(env::quantity_value).transpose();
    let memory = value("memory")?.filter(|octets| *octets >= 1.0).map(|octets| octets as u64);
    Ok(Limits { memory, cpu: value("cpu")?.filter(|cpu| *cpu > 0.0) })
}

/// Writes a specification where only root can read it.
pub(crate) fn write(spec: &Spec, path: &Path) -> io::Result<()> {
    let _ = std::fs::remove_file(path);
    let mut options = std::fs::OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(path)?;
    serde_json::to_writer(file, spec).map_err(io::Error::from)
}

fn resolv_conf(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let config = spec.and_then(|s| s.dns_config.as_ref());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let own = spec.and_then(|s| s.dns_policy.as_deref()) == Some("None");
    let mut searches = Vec::new();
    let mut servers = Vec::new();
    let mut options = Vec::new();
    if !own {
        servers.push(LOCAL_DNS_IP.to_owned());
        let domain = CLUSTER_DOMAIN;
        searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()]);
        options.push("ndots:5".to_owned());
    }
    if let Some(config) = config {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            options.retain(|o| o.split(':').next() != Some(name));
            options.push(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    if !searches.is_empty() {
        let _ = writeln!(text, "search {}", searches.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

fn hosts(pod: &Pod, hostname: &str, ip: Ipv4Addr) -> String {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut text =
        "# Written by weft for this pod.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let subdomain = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty());
    // Writing to a String cannot fail.
    let _ = match subdomain {
        Some(sub) => writeln!(text, "{ip}\t{hostname}.{sub}.{namespace}.svc.{CLUSTER_DOMAIN}\t{hostname}"),
        None => writeln!(text, "{ip}\t{hostname}"),
    };
    for alias in spec.iter().flat_map(|s| s.host_aliases.iter().flatten()) {
        let names: Vec<&str> = alias.hostnames.iter().flatten().map(String::as_str).collect();
        let _ = writeln!(text, "{}\t{}", alias.ip, names.join("\t"));
    }
    text
}

/// A condition, with the time of its last change.
pub(crate) fn condition(
    old: &PodStatus,
    type_: &str,
    holds: bool,
    reason: Option<&str>,
    message: Option<String>,
) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    let before = old.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == status);
    PodCondition {
        last_transition_time: before.map_or_else(|| Some(now()), |c| c.last_transition_time.clone()),
        message: message.filter(|_| !holds),
        reason: reason.map(str::to_owned),
        status: status.into(),
        type_: type_.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn names_and_resolvers() {
        let plain = pod(json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": []}}));
        let expected =
            "search a.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(&plain), expected);
        let own =
            pod(json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["192.0.2.1"], "options": [{"name": "ndots", "value": "2"}]}}}));
        assert_eq!(resolv_conf(&own), "nameserver 192.0.2.1\noptions ndots:2\n");
        let sub = pod(
            json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["x", "y"]}]}}),
        );
        let text = hosts(&sub, &hostname(&sub), Ipv4Addr::new(10, 244, 0, 2));
        assert!(text.contains("10.244.0.2\th.s.a.svc.cluster.local\th\n"));
        assert!(text.ends_with("192.0.2.7\tx\ty\n"));
    }

    #[test]
    fn the_path_begins_beside_weft_and_has_the_standard_directories() {
        assert_eq!(
            path("/opt/x:relative:/usr/bin"),
            format!("{BIN_DIR}:/opt/x:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin")
        );
    }
}
