//! Packets on a network interface of another namespace, by tcpdump.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Process, wait_for};

/// One TCP packet over IPv4.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Sender.
    pub source: Ipv4Addr,
    /// Receiver.
    pub destination: Ipv4Addr,
    /// Ports of both.
    pub ports: (u16, u16),
    /// What it carries above TCP.
    pub payload: Vec<u8>,
}

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Capture {
    /// Starts to capture everything on the bridge in the namespace of this process.
    ///
    /// # Errors
    ///
    /// When there is no bridge, or tcpdump does not start.
    pub fn on_bridge(node: &Process) -> anyhow::Result<Self> {
        let enter = format!("--net=/proc/{}/ns/net", node.pid);
        let list = Command::new("nsenter").args([&enter, "ip", "-o", "link", "show", "type", "bridge"]).output()?;
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        // `2: weft0: <BROADCAST,…`
        let bridge = list.split(": ").nth(1).context("the node has no bridge")?.to_owned();
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("packets");
        let log = directory.path().join("log");
        let tcpdump = Command::new("nsenter")
            .args([&enter, "tcpdump", "-i", &bridge, "-n", "-s", "0", "-U", "-Z", "root", "-w"])
            .arg(&file)
            .args(["tcp"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot run tcpdump")?;
        let capture = Self { tcpdump, file, _directory: directory };
        wait_for("tcpdump listens", || {
            let said = fs::read_to_string(&log)?;
            ensure!(said.contains("listening on"), "tcpdump says: {said}");
            Ok(())
        })?;
        Ok(capture)
    }

    /// What was captured so far.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn so_far(&self) -> anyhow::Result<Vec<Packet>> {
        parse(&fs::read(&self.file)?)
    }

    /// Stops, and gives what was captured.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn stop(mut self) -> anyhow::Result<Vec<Packet>> {
        kill(Pid::from_raw(i32::try_from(self.tcpdump.id())?), Signal::SIGINT)?;
        self.tcpdump.wait()?;
        self.so_far()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// Reads tcpdump's file: a head of 24 octets, then for each packet a head of 16 and an Ethernet frame.
fn parse(file: &[u8]) -> anyhow::Result<Vec<Packet>> {
    let head = file.get(..24).context("the file is too short")?;
    ensure!(head[..4] == 0xa1b2_c3d4_u32.to_ne_bytes(), "not a capture in this machine's order");
    let mut rest = file.get(24..).unwrap_or_default();
    let mut packets = Vec::new();
    // The last packet may not be written to its end yet.
    while let Some((head, body)) = rest.split_at_checked(16) {
        let length = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some((frame, next)) = body.split_at_checked(length) else { break };
        packets.extend(frame_to_packet(frame));
        rest = next;
    }
    Ok(packets)
}

fn frame_to_packet(frame: &[u8]) -> Option<Packet> {
    const IPV4: [u8; 2] = [8, 0];
    const TCP: u8 = 6;
    let ip = (frame.get(12..14)? == IPV4).then(|| frame.get(14..))??;
    let length = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    // Frames are padded to 60 octets; offloaded segments say 0 when they are longer than the field can hold.
    let ip = if length == 0 { ip } else { ip.get(..length)? };
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    let (source, destination) = (address(12)?, address(16)?);
    let tcp = (*ip.get(9)? == TCP).then(|| ip.get(usize::from(ip[0] & 15) * 4..))??;
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?.to_vec();
    Some(Packet { source, destination, ports: (port(0)?, port(2)?), payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_taken_apart() {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend([0x45, 0, 0, 43, 0, 0, 0, 0, 64, 6, 0, 0, 10, 244, 0, 2, 10, 244, 0, 3]);
        frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(b"GET");
        frame.extend([0; 3]);
        let mut file = 0xa1b2_c3d4_u32.to_ne_bytes().to_vec();
        file.extend([0; 20]);
        file.extend([0; 8]);
        file.extend(u32::try_from(frame.len()).unwrap().to_ne_bytes());
        file.extend([0; 4]);
        file.extend(&frame);
        // Half of another packet's head.
        file.extend([0; 9]);
        let packets = parse(&file).unwrap();
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].source, Ipv4Addr::new(10, 244, 0, 2));
        assert_eq!(packets[0].destination, Ipv4Addr::new(10, 244, 0, 3));
        assert_eq!(packets[0].ports, (0x1234, 80));
        assert_eq!(packets[0].payload, b"GET");
    }
}
