//! The run directory of a cluster: what is in it, whose it is, and how a crashed cluster's is recognised and cleaned.
//!
//! Contents: `lock` (held by `weft up` or its background process as long as the cluster lives), `node.lock` (held by the
//! node), `api.sock`, `objects/` (current objects as JSON), `logs/`, `volumes/` (what PersistentVolumeClaims hold),
//! `control-groups` (where limits are kept), `private/` (a tmpfs that only the node and its pods see). A directory whose
//! locks nobody holds is a crashed cluster's; the kernel has ended its processes already.

use crate::error::Context;
use crate::{Error, launch};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Environment variable that names another run directory.
pub const ENV: &str = "WEFT_RUN_DIR";

/// Everything that a cluster may leave in its run directory. Nothing else is ever removed.
const CONTENTS: &[&str] = &["api.sock", "objects", "logs", "private", "volumes", "control-groups", "node.lock", "lock"];

/// A socket's path has room for 107 octets; `/api.sock` needs nine of them.
const PATH_LIMIT: usize = 98;

/// Path of a run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

/// Held as long as the cluster lives; see [`RunDir::lock`].
pub struct Lock {
    _file: Flock<File>,
}

impl RunDir {
    /// From `WEFT_RUN_DIR`; else `/run/weft` for root and `$XDG_RUNTIME_DIR/weft` for others, or `/tmp/weft-UID` when that
    /// is not set.
    ///
    /// # Errors
    /// When the path is too long for a socket in it, or somebody else could put things there.
    pub fn from_env() -> Result<Self, Error> {
        if let Some(path) = std::env::var_os(ENV).filter(|p| !p.is_empty()) {
            return Self::at(Path::new(&path));
        }
        let run = Self::at(&default_path(nix::unistd::geteuid(), std::env::var_os("XDG_RUNTIME_DIR")))?;
        // In /tmp everybody can make it, and a cluster in it that only looks like ours.
        run.belongs_to_us()?;
        Ok(run)
    }

    /// Refuses a directory in which others could put something, or look. One that does not exist is fine.
    fn belongs_to_us(&self) -> Result<(), Error> {
        let shown = self.path.display();
        match fs::symlink_metadata(&self.path) {
            Err(_) => Ok(()),
            Ok(found) if !found.is_dir() => Err(Error::new(format!("the run directory {shown} is no directory"))),
            Ok(found) if found.uid() != nix::unistd::geteuid().as_raw() => {
                Err(Error::new(format!("the run directory {shown} belongs to another user; set {ENV} to one of yours")))
            }
            Ok(found) if found.mode() & 0o077 != 0 => Err(Error::new(format!(
                "others may enter the run directory {shown}: `chmod 700 {shown}`, or set {ENV} to another one"
            ))),
            Ok(_) => Ok(()),
        }
    }

    /// The run directory at a path, made absolute.
    ///
    /// # Errors
    /// When the path is too long for a socket in it.
    pub fn at(path: &Path) -> Result<Self, Error> {
        let path = std::path::absolute(path).context(format!("run directory {}", path.display()))?;
        if path.as_os_str().len() > PATH_LIMIT {
            let path = path.display();
            return Err(Error::new(format!("run directory {path} is longer than {PATH_LIMIT} octets; set {ENV}")));
        }
        Ok(Self { path })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the cluster's API.
    pub fn socket(&self) -> PathBuf {
        self.path.join("api.sock")
    }

    /// Current objects, `<plural>/<namespace or _>/<name>.json`.
    pub fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// Logs: `node.log` and `<namespace>/<pod>/<container>.log`.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Where the node mounts its own tmpfs.
    pub fn private(&self) -> PathBuf {
        self.path.join("private")
    }

    /// Takes the directory for a new cluster: makes it, locks it, and cleans what a crashed cluster left.
    ///
    /// # Errors
    /// When a cluster already runs there, or the directory cannot be made.
    pub fn lock(&self) -> Result<Lock, Error> {
        let shown = self.path.display();
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.path).context(format!("cannot make the run directory {shown}"))?;
        self.belongs_to_us()?;
        let Some(lock) = self.try_lock()? else {
            return Err(Error::new(format!(
                "a cluster already runs with the run directory {shown}; stop it with `weft down`, or set {ENV}"
            )));
        };
        self.clean_contents(false)?;
        for dir in [self.objects(), self.logs(), self.private()] {
            fs::create_dir(&dir).context(format!("cannot make {}", dir.display()))?;
        }
        Ok(lock)
    }

    /// The file that says where the cluster's control groups are.
    pub(crate) fn control_groups(&self) -> PathBuf {
        self.path.join("control-groups")
    }

    /// Whether a cluster holds the directory.
    pub fn is_held(&self) -> bool {
        self.path.join("lock").exists() && matches!(self.try_lock(), Ok(None))
    }

    /// Whether there is something that a crashed cluster left. Only meaningful when nobody holds it.
    pub fn has_contents(&self) -> bool {
        CONTENTS.iter().any(|name| self.path.join(name).symlink_metadata().is_ok())
    }

    fn try_lock(&self) -> Result<Option<Lock>, Error> {
        let path = self.path.join("lock");
        loop {
            let mut options = OpenOptions::new();
            let file = options
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
                .context(format!("cannot open {}", path.display()))?;
            let inode = file.metadata().map(|m| m.ino()).ok();
            let locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => locked,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, e)) => return Err(Error::new(format!("cannot lock {}: {e}", path.display()))),
            };
            // Somebody may have removed the file between opening and locking it: then this lock says nothing.
            if inode.is_some() && fs::metadata(&path).map(|m| m.ino()).ok() == inode {
                return Ok(Some(Lock { _file: locked }));
            }
        }
    }

    /// The node's own lock, so that nobody cleans the directory under a node that is just ending.
    pub(crate) fn lock_node(&self) -> Result<Lock, Error> {
        let path = self.path.join("node.lock");
        let file = File::create(&path).context(format!("cannot make {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Lock { _file: locked }),
            Err((_, e)) => Err(Error::new(format!("cannot lock {}: {e}", path.display()))),
        }
    }

    /// Removes everything that a cluster keeps there, and the directory itself when it is empty then. The caller holds
    /// the lock.
    pub(crate) fn remove(&self, lock: Lock) -> Result<(), Error> {
        self.clean_contents(true)?;
        match fs::remove_dir(&self.path) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {}
            // A directory made for us by others, for example a mount point.
            Err(e) if e.kind() == ErrorKind::ResourceBusy || e.kind() == ErrorKind::PermissionDenied => {}
            Err(e) => return Err(Error::new(format!("cannot remove {}: {e}", self.path.display()))),
        }
        drop(lock);
        Ok(())
    }

    /// Removes what a crashed cluster left. Answers false when there was nothing, or when a cluster holds it.
    pub(crate) fn remove_stale(&self) -> Result<bool, Error> {
        if !self.has_contents() {
            return Ok(false);
        }
        let Some(lock) = self.try_lock()? else { return Ok(false) };
        self.remove(lock)?;
        Ok(true)
    }

    fn clean_contents(&self, with_lock: bool) -> Result<(), Error> {
        self.wait_for_node();
        self.remove_control_groups();
        for name in CONTENTS {
            if *name == "lock" && !with_lock {
                continue;
            }
            let path = self.path.join(name);
            let removed = match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => match fs::remove_dir_all(&path) {
                    // Files of a pod's users.
                    Err(e) if e.kind() == ErrorKind::PermissionDenied && launch::needs_user_namespace() => {
                        launch::remove_dir_all(&path).context(format!("cannot remove {}", path.display()))?;
                        continue;
                    }
                    removed => removed,
                },
                Ok(_) => fs::remove_file(&path),
                Err(_) => continue,
            };
            match removed {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(Error::new(format!("cannot remove {}: {e}", path.display()))),
            }
        }
        Ok(())
    }

    /// Removes the cluster's control groups; the last processes in them may just be ending.
    #[allow(clippy::disallowed_methods, reason = "runs where there is nothing else to do, before or after a runtime")]
    fn remove_control_groups(&self) {
        for _ in 0..100 {
            if crate::cgroup::remove_all(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A node whose `weft up` was killed is killed by the kernel a moment later: wait for that moment, but not forever.
    #[allow(clippy::disallowed_methods, reason = "runs where there is nothing else to do, before or after a runtime")]
    fn wait_for_node(&self) {
        for _ in 0..200 {
            let Ok(file) = File::open(self.path.join("node.lock")) else { return };
            if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn default_path(user: Uid, xdg_runtime_dir: Option<OsString>) -> PathBuf {
    match xdg_runtime_dir.filter(|path| !path.is_empty()) {
        _ if user.is_root() => PathBuf::from("/run/weft"),
        Some(base) => Path::new(&base).join("weft"),
        None => PathBuf::from(format!("/tmp/weft-{user}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_has_a_run_directory() {
        let path = |user, xdg: &str| default_path(Uid::from_raw(user), Some(xdg.into()));
        assert_eq!(path(0, "/run/user/0"), Path::new("/run/weft"));
        assert_eq!(path(1000, "/run/user/1000"), Path::new("/run/user/1000/weft"));
        assert_eq!(path(1000, ""), Path::new("/tmp/weft-1000"));
        assert_eq!(default_path(Uid::from_raw(1000), None), Path::new("/tmp/weft-1000"));
    }

    #[test]
    fn one_cluster_at_a_time_and_stale_ones_are_cleaned() {
        let temporary = tempfile::tempdir().unwrap();
        let run = RunDir::at(&temporary.path().join("run")).unwrap();
        assert!(!run.is_held());
        let lock = run.lock().unwrap();
        assert!(run.is_held());
        assert!(run.lock().is_err());
        fs::write(run.objects().join("x"), "x").unwrap();
        drop(lock);
        // As after kill -9: contents, but nobody holds them.
        assert!(!run.is_held());
        assert!(run.has_contents());
        let lock = run.lock().unwrap();
        assert!(!run.objects().join("x").exists());
        drop(lock);
        assert!(run.remove_stale().unwrap());
        assert!(!run.path().exists());
        assert!(!run.remove_stale().unwrap());
    }

    #[test]
    fn foreign_files_are_never_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let mine = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(temporary.path(), mine).unwrap();
        fs::write(temporary.path().join("mine"), "x").unwrap();
        let run = RunDir::at(temporary.path()).unwrap();
        let lock = run.lock().unwrap();
        run.remove(lock).unwrap();
        assert!(temporary.path().join("mine").exists());
        assert!(!temporary.path().join("objects").exists());
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("run");
        fs::create_dir(&path).unwrap();
        for mode in [0o777, 0o755, 0o710] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = RunDir::at(&path).unwrap().lock().err().unwrap();
            assert!(refused.to_string().contains("chmod 700"), "{refused}");
            assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let link = temporary.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(RunDir::at(&link).unwrap().lock().is_err(), "a link may lead anywhere");
        drop(RunDir::at(&path).unwrap().lock().unwrap());
        // As root there are users to take for others.
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(7), None).unwrap();
            let refused = RunDir::at(&path).unwrap().lock().err().unwrap();
            assert!(refused.to_string().contains("belongs to another user"), "{refused}");
        }
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        assert!(RunDir::at(Path::new(&format!("/{}", "a".repeat(120)))).is_err());
    }
}
