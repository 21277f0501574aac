//! Programs that run beside a test.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use super::Netns;

/// A process in a namespace, killed on drop.
pub struct Background(Child);

impl Background {
    /// Starts a command; its output is for [`Background::line`].
    pub fn start(ns: &Netns, command: &[&str]) -> Self {
        let (program, args) = command.split_first().unwrap();
        let child = ns.enter(|| {
            Command::new(program)
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|e| panic!("cannot run {program}: {e}"))
        });
        Self(child)
    }

    /// Waits for a line of its output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
