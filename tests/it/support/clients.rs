//! The clients of Redis and the other libraries that `scripts/clients` installs; without them a test
//! that needs one reports that it is skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::skip::skipped_without;

/// The folder of the clients: `REDIS_PROXY_TEST_CLIENTS`, or the one beside the build.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("REDIS_PROXY_TEST_CLIENTS").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients"),
        PathBuf::from,
    )
}

/// A Python that has redis-py.
pub(crate) fn python() -> Option<Command> {
    installed("python/bin/python", "redis-py")
}

/// A node that finds node-redis and ioredis in the folder's `node_modules`.
pub(crate) fn node() -> Option<Command> {
    installed("node", "a node with its clients")
}

/// The script of axe-core, which judges the accessibility of a page.
pub(crate) fn axe() -> Option<String> {
    let script = std::fs::read_to_string(folder().join("node_modules/axe-core/axe.min.js")).ok();
    if script.is_none() {
        skipped_without("axe-core", "scripts/clients installs it");
    }
    script
}

fn installed(program: &str, name: &str) -> Option<Command> {
    let path = folder().join(program);
    if path.exists() {
        return Some(Command::new(path));
    }
    skipped_without(name, "scripts/clients installs it");
    None
}
