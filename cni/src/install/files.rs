//! Files that others read at any time.

use anyhow::Context;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

/// Most octets of a configuration or credential.
const MAX_FILE: u64 = 1 << 20;

/// Who may do what with a file.
#[derive(Debug, Clone, Copy)]
pub enum Mode<'a> {
    /// These bits.
    Bits(u32),
    /// The same as with that file.
    As(&'a Path),
}

/// The text of a small file.
pub fn read(path: &Path) -> anyhow::Result<String> {
    let about = || path.display().to_string();
    let size = fs::metadata(path).with_context(about)?.len();
    anyhow::ensure!(size <= MAX_FILE, "{}: larger than {MAX_FILE} octets", path.display());
    fs::read_to_string(path).with_context(about)
}

/// Writes a file whole, or not at all: under a name that no runtime looks at, which is then changed.
pub fn write(path: &Path, content: &[u8], mode: Mode<'_>) -> anyhow::Result<()> {
    let bits = match mode {
        Mode::Bits(bits) => bits,
        Mode::As(other) => fs::metadata(other).with_context(|| other.display().to_string())?.permissions().mode(),
    } & 0o7777;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.weft-cni-part"));
    let written = (|| {
        // What an earlier attempt has left may have other rights.
        remove(&part)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(bits))?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        anyhow::Ok(())
    })();
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a file unless it has this content and these rights.
pub fn keep(path: &Path, content: &[u8], bits: u32) -> anyhow::Result<()> {
    let right = fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o7777 == bits && m.is_file());
    if right && fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    write(path, content, Mode::Bits(bits))
}

/// What shows that a file is the same as before, without reading it: its length, when it was written, and its rights.
pub type Stamp = (u64, SystemTime, u32);

/// The stamp of a file; `None` when it is not there.
pub fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?, metadata.permissions().mode()))
}

/// Removes a file that need not be there.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
