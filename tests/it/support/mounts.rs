//! Private mounts: a small volume that can be full, and a file in another's place for one process.
//!
//! Model: a mount namespace, within a user namespace where the test is not root. A process in it
//! keeps it alive, and its mounts are reached by `/proc`. Where the system permits none, as in a
//! container without rights, a test that needs one is skipped with a message, but fails in CI.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::skip::skipped;

/// Ways into a new namespace: as root, and as a user who is root only there.
const WAYS: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];

/// Returns the words in front of a command that is to run in a mount namespace of its own, or
/// nothing where none is permitted.
pub(crate) fn apart() -> Option<Vec<&'static str>> {
    let works = |way: &&[&str]| {
        let mut attempt = Command::new("unshare");
        let attempt =
            attempt.args(*way).args(["mount", "-t", "tmpfs", "none", "/mnt"]).stdin(Stdio::null());
        attempt.output().is_ok_and(|output| output.status.success())
    };
    let way = WAYS.into_iter().find(works);
    if way.is_none() {
        skipped("no mount namespace can be made here (unshare --mount --map-root-user)");
    }
    way.map(|way| [&["unshare"], way].concat())
}

/// A file system in memory of a fixed size. It is gone when this is dropped.
pub(crate) struct Volume {
    keeper: Child,
    directory: TempDir,
}

impl Volume {
    /// Makes a volume of this many KiB; returns nothing where none is permitted.
    pub(crate) fn new(kibibytes: u32) -> Option<Self> {
        let way = apart()?;
        let directory = tempfile::tempdir().expect("a temporary directory");
        // It ends when its standard input is closed.
        let script =
            format!("mount -t tmpfs -o size={kibibytes}k none \"$0\" && echo mounted && exec cat");
        let mut keeper = Command::new(way[0]);
        let keeper = keeper.args(&way[1..]).args(["sh", "-c", &script]).arg(directory.path());
        let mut keeper =
            keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare starts");
        let mut line = String::new();
        let received = keeper.stdout.take().expect("standard output is piped");
        BufReader::new(received).read_line(&mut line).expect("a line");
        assert_eq!(line, "mounted\n");
        Some(Self { keeper, directory })
    }

    /// Returns the path of a file on it, outside of the namespace.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let inside = self.directory.path().strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.keeper.id())).join(inside).join(name)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // An error means that the process has ended already.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
