//! A container's view of the files: the host's under overlays whose changes live in memory, fresh /proc, /sys, /dev and
//! /run, the pod's volumes, and the cluster's resolv.conf, hosts and hostname.
//!
//! One overlay shows the whole root file system, where the kernel allows it. It does not in a user namespace, when there
//! are mounts below: nobody may uncover what they hide. Then the root is put together: an overlay for each directory that
//! has no mounts below, and the entries of those that have.

use crate::container::{BIN_DIR, Bind, Failure, Spec, Step, failed};
use crate::ids::{self, Ids};
use crate::system;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{AccessFlags, access, chdir, pivot_root};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

/// Where the host's files hang while a container's are being put together.
const OLD_ROOT: &str = "/run/.host";
/// Directories of which a container has its own.
const OWN: &[&str] = &["/proc", "/sys", "/dev", "/run"];
/// Largest file that is copied where an overlay cannot show it, in octets. A larger one is shown read-only.
const COPIED: u64 = 1 << 20;

/// Puts the container's files together and makes them its root.
pub(crate) fn make(spec: &Spec) -> Result<(), Failure> {
    system::make_mounts_private().step(|| "cannot make mounts private".into())?;
    let scratch = &spec.scratch;
    fs::create_dir_all(scratch).step(|| format!("cannot make {}", scratch.display()))?;
    system::mount_tmpfs(scratch, "mode=0700", MsFlags::empty()).step(|| "cannot mount a tmpfs for changes".into())?;
    let root = scratch.join("root");
    fs::create_dir(&root).step(|| format!("cannot make {}", root.display()))?;
    let mut shown = Shown { scratch, spec, user_namespace: !Ids::here().all(), number: 0, writable: Vec::new() };
    shown.root(&root)?;
    let writable = shown.writable;
    let hidden = root.join(spec.hidden.strip_prefix("/").unwrap_or(&spec.hidden));
    if !spec.hidden.as_os_str().is_empty() && hidden.is_dir() {
        system::mount_tmpfs(&hidden, "mode=0000,size=4k", MsFlags::MS_RDONLY)
            .step(|| format!("cannot hide {}", spec.hidden.display()))?;
    }
    make_proc_and_sys(spec, &root)?;
    make_dev(&root.join("dev"))?;
    let run = root.join("run");
    system::mount_tmpfs(&run, "mode=0755", MsFlags::MS_NOSUID | MsFlags::MS_NODEV).step(|| "/run".into())?;
    let old = root.join(OLD_ROOT.trim_start_matches('/'));
    fs::create_dir(&old).step(|| format!("cannot make {OLD_ROOT}"))?;
    fs::create_dir(run.join("lock")).step(|| "cannot make /run/lock".into())?;
    pivot_root(&root, &old).step(|| "cannot change the root".into())?;
    chdir("/").step(|| "cannot enter the new root".into())?;

    let programs = Bind { source: spec.programs.clone(), target: BIN_DIR.into(), read_only: true };
    bind(&programs)?;
    for (path, content) in
        [("/etc/resolv.conf", &spec.resolv_conf), ("/etc/hosts", &spec.hosts), ("/etc/hostname", &spec.hostname)]
    {
        // The host's may be a link to somewhere else.
        let _ = fs::remove_file(path);
        fs::write(path, content).step(|| format!("cannot write {path}"))?;
    }
    for volume in &spec.volumes {
        bind(volume)?;
    }
    umount2(OLD_ROOT, MntFlags::MNT_DETACH).step(|| "cannot leave the host's files".into())?;
    let _ = fs::remove_dir(OLD_ROOT);
    if spec.read_only_root {
        for path in writable {
            let path = Path::new("/").join(path.strip_prefix(&root).unwrap_or(&path));
            // What a volume covers cannot be reached.
            if !spec.volumes.iter().any(|volume| path.starts_with(&volume.target)) {
                system::remount_read_only(&path).step(|| format!("cannot make {} read-only", path.display()))?;
            }
        }
    }
    Ok(())
}

/// The host's files, as far as they are shown.
struct Shown<'a> {
    scratch: &'a Path,
    spec: &'a Spec,
    user_namespace: bool,
    /// Number of the next overlay.
    number: usize,
    /// Where overlays are mounted, and the tmpfs of a root that was put together.
    writable: Vec<PathBuf>,
}

impl Shown<'_> {
    fn root(&mut self, root: &Path) -> Result<(), Failure> {
        match self.overlay(Path::new("/"), root) {
            Ok(()) => {}
            Err(_) if self.user_namespace => {
                system::mount_tmpfs(root, "mode=0755", MsFlags::empty())
                    .step(|| "cannot mount a tmpfs for /".into())?;
                self.writable.push(root.to_owned());
                return self.entries(Path::new("/"), root).step(|| "cannot show the host's files".into());
            }
            Err(e) => {
                let message =
                    format!("this kernel refuses an overlay over the host's files ({e}), which containers need");
                return Err(failed("CreateContainerError", message));
            }
        }
        for host in &self.spec.host_mounts {
            let Ok(relative) = host.strip_prefix("/") else { continue };
            let target = root.join(relative);
            if !(host.is_dir() && self.overlay(host, &target).is_ok()) {
                show_read_only(host, &target);
            }
        }
        Ok(())
    }

    /// Shows a directory at an empty one.
    fn directory(&mut self, host: &Path, target: &Path) -> io::Result<()> {
        if OWN.iter().any(|own| host == Path::new(own)) || self.is_unseen_mount(host) {
            return Ok(());
        }
        // What this user may not look into is empty, and a place to write to.
        if access(host, AccessFlags::R_OK | AccessFlags::X_OK).is_err() {
            return Ok(());
        }
        if self.spec.mounts.iter().any(|mount| mount != host && mount.starts_with(host)) {
            return self.entries(host, target);
        }
        if self.overlay(host, target).is_err() {
            show_read_only(host, target);
        }
        Ok(())
    }

    /// Shows what is in a directory, one by one.
    fn entries(&mut self, host: &Path, target: &Path) -> io::Result<()> {
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            match self.entry(&entry, &target.join(entry.file_name())) {
                // It went while this looked.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                shown => shown?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &fs::DirEntry, target: &Path) -> io::Result<()> {
        let (path, metadata) = (entry.path(), entry.metadata()?);
        if metadata.is_symlink() {
            symlink(fs::read_link(&path)?, target)
        } else if metadata.is_dir() {
            fs::create_dir(target)?;
            self.own_like(target, &metadata)?;
            self.directory(&path, target)
        } else if metadata.is_file() && metadata.len() <= COPIED {
            // What this user may not read is not shown.
            let Ok(content) = fs::read(&path) else { return Ok(()) };
            fs::write(target, content)?;
            self.own_like(target, &metadata)
        } else {
            File::create(target)?;
            if show_read_only(&path, target) { Ok(()) } else { fs::remove_file(target) }
        }
    }

    /// A mount whose file system has no files of the machine.
    fn is_unseen_mount(&self, host: &Path) -> bool {
        let is = |list: &[PathBuf]| list.iter().any(|mount| mount == host);
        is(&self.spec.mounts) && !is(&self.spec.host_mounts)
    }

    fn overlay(&mut self, lower: &Path, target: &Path) -> io::Result<()> {
        let number = self.number;
        self.number += 1;
        let upper = self.scratch.join(format!("upper-{number}"));
        let work = self.scratch.join(format!("work-{number}"));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        // The root of the upper directory is what the merged root looks like.
        self.own_like(&upper, &fs::metadata(lower)?)?;
        let mut options = Vec::new();
        for (key, path) in [("lowerdir=", lower), (",upperdir=", &upper), (",workdir=", &work)] {
            options.extend_from_slice(key.as_bytes());
            for byte in path.as_os_str().as_bytes() {
                if matches!(byte, b',' | b':' | b'\\') {
                    options.push(b'\\');
                }
                options.push(*byte);
            }
        }
        if self.user_namespace {
            // Others belong to the machine's root.
            options.extend_from_slice(b",userxattr");
        }
        mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(OsStr::from_bytes(&options)))?;
        self.writable.push(target.to_owned());
        Ok(())
    }

    /// Gives a file of ours the owner and mode of one of the host's. What belongs to a user that does not exist here, as
    /// the machine's root in a user namespace, becomes root's.
    fn own_like(&self, path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
        let here = |id: u32| if self.user_namespace && id == ids::OVERFLOW { 0 } else { id };
        chown(path, Some(here(metadata.uid())), Some(here(metadata.gid())))?;
        fs::set_permissions(path, metadata.permissions())
    }
}

/// Shows a mount that cannot be overlaid (network file systems, single files) read-only, or not at all when that cannot be.
fn show_read_only(host: &Path, target: &Path) -> bool {
    if mount(Some(host), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).is_err() {
        return false;
    }
    let read_only = system::remount_read_only(target).is_ok();
    if !read_only {
        let _ = umount2(target, MntFlags::MNT_DETACH);
    }
    read_only
}

fn make_proc_and_sys(spec: &Spec, root: &Path) -> Result<(), Failure> {
    let proc = root.join("proc");
    system::mount_proc(&proc).step(|| "cannot mount /proc".into())?;
    if spec.capabilities.is_some() {
        // The kernel's parameters belong to the whole machine.
        for name in ["sys", "sysrq-trigger", "irq", "bus"] {
            let path = proc.join(name);
            if mount(Some(path.as_path()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).is_ok() {
                system::remount_read_only(&path).step(|| format!("cannot make /proc/{name} read-only"))?;
            }
        }
    }
    let sys = root.join("sys");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("sysfs"), &sys, Some("sysfs"), flags, None::<&str>).step(|| "cannot mount /sys".into())
}

fn make_dev(dev: &Path) -> Result<(), Failure> {
    system::mount_tmpfs(dev, "mode=0755", MsFlags::MS_NOSUID).step(|| "cannot mount /dev".into())?;
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let (source, target) = (Path::new("/dev").join(name), dev.join(name));
        if !source.exists() {
            continue;
        }
        File::create(&target).step(|| format!("cannot make /dev/{name}"))?;
        mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .step(|| format!("cannot bind /dev/{name}"))?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, dev.join(link)).step(|| format!("cannot make /dev/{link}"))?;
    }
    let shm = dev.join("shm");
    fs::create_dir(&shm).step(|| "cannot make /dev/shm".into())?;
    system::mount_tmpfs(&shm, "mode=1777", MsFlags::MS_NOSUID | MsFlags::MS_NODEV).step(|| "/dev/shm".into())?;
    let pts = dev.join("pts");
    fs::create_dir(&pts).step(|| "cannot make /dev/pts".into())?;
    // 5 is the group tty, where there is such a group.
    let group = if Ids::here().groups > 5 { ",gid=5" } else { "" };
    let options = format!("newinstance,ptmxmode=0666,mode=0620{group}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), &pts, Some("devpts"), flags, Some(options.as_str()))
        .step(|| "cannot mount /dev/pts".into())?;
    symlink("pts/ptmx", dev.join("ptmx")).step(|| "cannot make /dev/ptmx".into())
}

/// Binds a volume at its place in the new root; the source is still under [`OLD_ROOT`].
fn bind(volume: &Bind) -> Result<(), Failure> {
    let shown = || format!("cannot mount {} at {}", volume.source.display(), volume.target.display());
    let relative = volume.source.strip_prefix("/").step(shown)?;
    let source = Path::new(OLD_ROOT).join(relative);
    let target = &volume.target;
    if fs::metadata(&source).step(shown)?.is_dir() {
        fs::create_dir_all(target).step(shown)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).step(shown)?;
        }
        if !target.exists() {
            File::create(target).step(shown)?;
        }
    }
    mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).step(shown)?;
    if volume.read_only {
        system::remount_read_only(target).step(shown)?;
    }
    Ok(())
}
