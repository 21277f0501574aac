//! Ordinary users, for tests that root starts.
//!
//! The machine's own files are left alone: the user exists in a mount namespace of the test only.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// An ordinary user that no machine has.
const USER: u32 = 7654;
/// Where the users of that user begin.
const FIRST: u32 = 3_000_000;

/// How the machine knows the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// By name, with a range of users and groups of its own in `/etc/subuid` and `/etc/subgid`.
    Ranged,
    /// As a number that is not even in `/etc/passwd`.
    Bare,
}

impl User {
    /// What tests as this user are called: `user::name`.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Ranged => "user",
            Self::Bare => "bare_user",
        }
    }
}

/// A directory with what the user needs, where every user may read it.
#[derive(Debug)]
pub struct Stage {
    directory: tempfile::TempDir,
}

impl Stage {
    /// Makes it, with copies of files at paths relative to it.
    ///
    /// # Errors
    ///
    /// When a file cannot be copied.
    pub fn new(files: &[(&Path, &str)]) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("weft-stage-").tempdir_in("/tmp")?;
        allow(directory.path(), 0o755)?;
        let stage = Self { directory };
        let passwd = fs::read_to_string("/etc/passwd")?;
        let range = format!("weft-test:{FIRST}:65536\n");
        for (name, content) in [
            ("passwd", format!("{}\nweft-test:x:{USER}:{USER}::/nonexistent:/bin/sh\n", passwd.trim_end())),
            ("subuid", range.clone()),
            ("subgid", range),
        ] {
            fs::write(stage.path(name), content)?;
            allow(&stage.path(name), 0o644)?;
        }
        for (from, to) in files {
            let to = stage.path(to);
            for parent in to.parent().into_iter().flat_map(Path::ancestors).take_while(|p| *p != stage.directory.path())
            {
                if !parent.exists() {
                    fs::create_dir_all(parent)?;
                }
                allow(parent, 0o755)?;
            }
            io::copy(&mut File::open(from)?, &mut File::create(&to)?)?;
            allow(&to, 0o755)?;
        }
        Ok(stage)
    }

    /// A path in it.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// A command that runs one of its programs as the user.
    pub fn command(&self, user: User, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc", SCRIPT, "sh"]);
        command.arg(self.directory.path()).arg(USER.to_string()).arg(user.prefix()).arg(self.path(program));
        for variable in ["WEFT_RUN_DIR", "XDG_RUNTIME_DIR", "TMPDIR"] {
            command.env_remove(variable);
        }
        command.env("HOME", "/nonexistent").current_dir("/");
        command
    }

    /// Runs one test of a test program that is there, as the user.
    ///
    /// # Errors
    ///
    /// What it printed, when it failed.
    pub fn test(&self, user: User, program: &str, test: &str) -> Result<(), String> {
        let ran = self.command(user, program).args(["--exact", test]).output();
        let ran = ran.map_err(|e| format!("cannot run unshare (package util-linux): {e}"))?;
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
        // No test at all would be a success, too.
        if ran.status.success() && printed.contains("1 passed") { Ok(()) } else { Err(printed) }
    }
}

fn allow(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Arguments: the stage, the user, how the machine knows it, and the program with its arguments.
const SCRIPT: &str = r#"
stage=$1 user=$2 known=$3
shift 3
if [ "$known" = user ]; then
  command -v newuidmap >/dev/null || { echo "newuidmap is missing (package uidmap); make setup installs it" >&2; exit 1; }
  for file in passwd subuid subgid; do mount --bind "$stage/$file" "/etc/$file"; done
fi
exec setpriv --reuid "$user" --regid "$user" --clear-groups --inh-caps=-all "$@"
"#;
