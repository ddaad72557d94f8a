//! Mounts that nobody else sees: a small volume that can be full, and a file in another's place for one process.
//!
//! Model: a mount namespace, within a user namespace where root is needed and not had. A process in it keeps it alive, and
//! what is mounted in it is reached by `/proc`. Where the system gives none, as in a container without rights, a test that
//! needs one reports that it is skipped.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::skip::skipped;

/// Ways into a namespace of its own: as root, and as somebody who is root there alone.
const WAYS: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];

/// The words in front of a command that is to run in a mount namespace of its own; nothing, where there is none to be had.
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

/// A file system of its own in memory, with so much room. It is gone when this is dropped.
pub(crate) struct Volume {
    keeper: Child,
    directory: TempDir,
}

impl Volume {
    /// One of so many KiB; nothing, where none can be had.
    pub(crate) fn new(kibibytes: u32) -> Option<Self> {
        let way = apart()?;
        let directory = tempfile::tempdir().expect("a temporary directory");
        // It ends when nobody holds its standard input any more.
        let script =
            format!("mount -t tmpfs -o size={kibibytes}k none \"$0\" && echo mounted && exec cat");
        let mut keeper = Command::new(way[0]);
        let keeper = keeper.args(&way[1..]).args(["sh", "-c", &script]).arg(directory.path());
        let mut keeper =
            keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare starts");
        let mut told = String::new();
        let said = keeper.stdout.take().expect("standard output is piped");
        BufReader::new(said).read_line(&mut told).expect("a line");
        assert_eq!(told, "mounted\n");
        Some(Self { keeper, directory })
    }

    /// A file on it, for anybody on this side.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let inside = self.directory.path().strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.keeper.id())).join(inside).join(name)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
