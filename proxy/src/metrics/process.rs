//! The process' own figures, read from /proc at each scrape.

use std::fs;

use super::registry::{head, sample};

/// Appends `process_*`. A figure that the system does not tell is left out.
pub(super) fn render(out: &mut String) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name is in parentheses and may hold anything; the fixed fields follow the last one.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    // proc(5) numbers fields from 1; `fields` begins with the third.
    let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<u64>().ok());
    let ticks = u64::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100))
        .unwrap_or(100)
        .max(1);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;

    if let (Some(user), Some(system)) = (field(14), field(15)) {
        head(out, "process_cpu_seconds_total", "Processor time used, in seconds.", "counter");
        sample(out, "process_cpu_seconds_total", "", (user + system) as f64 / ticks as f64);
    }
    if let (Some(start), Some(boot)) = (field(22), boot_time()) {
        head(out, "process_start_time_seconds", "When the process began, in seconds since the epoch.", "gauge");
        sample(out, "process_start_time_seconds", "", boot as f64 + start as f64 / ticks as f64);
    }
    if let Some(bytes) = field(23) {
        head(out, "process_virtual_memory_bytes", "Virtual memory, in octets.", "gauge");
        sample(out, "process_virtual_memory_bytes", "", bytes);
    }
    if let Some(pages) = field(24) {
        head(out, "process_resident_memory_bytes", "Resident memory, in octets.", "gauge");
        sample(out, "process_resident_memory_bytes", "", pages * page);
    }
    if let Some(threads) = field(20) {
        head(out, "process_threads", "Threads of the process.", "gauge");
        sample(out, "process_threads", "", threads);
    }
    if let Ok(dir) = fs::read_dir("/proc/self/fd") {
        head(out, "process_open_fds", "Open file descriptors.", "gauge");
        // The directory itself is open while it is counted.
        sample(out, "process_open_fds", "", dir.count().saturating_sub(1));
    }
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        head(out, "process_max_fds", "File descriptors that may be open.", "gauge");
        sample(out, "process_max_fds", "", soft);
    }
}

fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
}
