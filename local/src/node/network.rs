//! The network of the cluster, all of it inside the node's network namespace: a bridge, a pair of virtual interfaces for
//! each pod, and no way out. Nothing of the host's network is touched.

use super::holder::Holder;
use crate::system::sysctl;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use tokio::io::AsyncWriteExt;
use weft_core::names::LOCAL_DNS_IP;

/// The node's own address on the bridge, the pods' gateway.
pub(crate) const GATEWAY: &str = "10.244.0.1";
/// The bridge.
const BRIDGE: &str = "weft0";
/// Its hardware address. A bridge without one of its own takes the lowest of its ports', which changes as pods come and
/// go, and every pod that knows the old one loses its gateway, and DNS, for seconds.
const BRIDGE_ADDRESS: &str = "02:00:0a:f4:00:01";
/// First and last address that a pod may get.
const FIRST: u32 = u32::from_be_bytes([10, 244, 0, 2]);
const LAST: u32 = u32::from_be_bytes([10, 244, 255, 254]);

/// Addresses of pods. A free one is given as late as possible again, so that nobody takes a new pod for an old one.
#[derive(Default)]
pub(crate) struct Addresses {
    taken: BTreeSet<u32>,
    last: Option<u32>,
}

impl Addresses {
    /// An address that no pod has.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let range = LAST - FIRST + 1;
        let start = self.last.map_or(0, |last| last - FIRST + 1);
        let found = (0..range).map(|i| FIRST + (start + i) % range).find(|a| !self.taken.contains(a))?;
        self.taken.insert(found);
        self.last = Some(found);
        Some(Ipv4Addr::from(found))
    }

    /// Gives an address back.
    pub(crate) fn give_back(&mut self, ip: Ipv4Addr) {
        self.taken.remove(&u32::from(ip));
    }
}

/// Makes the node's end of the network.
///
/// # Errors
/// What `ip` said.
pub(crate) async fn make_bridge() -> Result<(), String> {
    // No netfilter for frames between pods, no IPv6, no redirects to what is on the same bridge anyway.
    sysctl("net/bridge/bridge-nf-call-iptables", "0");
    sysctl("net/bridge/bridge-nf-call-ip6tables", "0");
    sysctl("net/bridge/bridge-nf-call-arptables", "0");
    sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    sysctl("net/ipv4/conf/all/send_redirects", "0");
    sysctl("net/ipv4/conf/default/send_redirects", "0");
    ip(&format!(
        "link set lo up\n\
         link add {BRIDGE} address {BRIDGE_ADDRESS} type bridge mcast_snooping 0\n\
         addr add {GATEWAY}/16 dev {BRIDGE}\n\
         addr add {LOCAL_DNS_IP}/32 dev {BRIDGE}\n\
         link set {BRIDGE} up\n"
    ))
    .await
}

/// Gives a pod its interface, address and route.
///
/// # Errors
/// What `ip` said.
pub(crate) async fn attach(holder: &Holder, address: Ipv4Addr, dir: &Path) -> Result<(), String> {
    let [_, _, c, d] = address.octets();
    let (pid, name) = (holder.pid(), format!("pod{c}x{d}"));
    // One of a pod that was killed a moment ago may still be there.
    let _ = ip(&format!("link del {name}\n")).await;
    ip(&format!(
        "link add {name} type veth peer name eth0 netns {pid}\n\
         link set {name} master {BRIDGE}\n\
         link set {name} up\n"
    ))
    .await?;
    let batch = dir.join("network.ip");
    let commands = format!(
        "link set lo up\n\
         addr add {address}/16 dev eth0\n\
         link set eth0 up\n\
         route add default via {GATEWAY}\n"
    );
    std::fs::write(&batch, commands).map_err(|e| format!("cannot write {}: {e}", batch.display()))?;
    holder.program(&["ip", "-batch", "-"], Some(batch)).await.map(drop).map_err(|e| format!("network: {e}"))
}

/// Runs commands of `ip` in the node's network.
async fn ip(commands: &str) -> Result<(), String> {
    let mut command = tokio::process::Command::new("ip");
    command.args(["-batch", "-"]).stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("cannot run `ip` (package iproute2): {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It ends early when a command is wrong, and says so.
        let _ = stdin.write_all(commands.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|e| format!("ip: {e}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("network: ip: {}", errors.trim().replace('\n', "; "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_late() {
        let mut addresses = Addresses::default();
        let first = addresses.take().unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 244, 0, 2));
        addresses.give_back(first);
        assert_eq!(addresses.take(), Some(Ipv4Addr::new(10, 244, 0, 3)));
    }
}
