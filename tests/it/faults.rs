//! Faults around the proxy.
//!
//! Promise: whatever fails, the proxy reports it, serves what it still can, and recovers without
//! help.
//!
//! Model: one fault a test, in a real Redis, in the connection to it, or in the process of the
//! proxy. Each test states the replies on both front ends, the duration, and the recovery.
//! `docs/src/reliability/faults.md` has a row for each. Faults of one front end are among the tests
//! of that front end.

#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

use std::fs;
use std::path::{Path, PathBuf};

mod log_backpressure;
mod network;
mod process;
mod redis;

#[test]
fn reliability_page_names_every_fault_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/src/reliability/faults.md")).expect("the page");
    let sources: Vec<_> = files(&root.join("tests/it"));
    let named = page.split('`').filter(|word| word.contains("::") && !word.contains(' '));
    for name in named.clone() {
        let (module, test) = (
            name.split("::").next().unwrap_or_default(),
            name.rsplit("::").next().unwrap_or_default(),
        );
        let is_there = sources.iter().any(|(path, text)| {
            path.strip_prefix("tests/it/").is_some_and(|path| path.starts_with(module))
                && text.contains(&format!("fn {test}("))
        });
        assert!(is_there, "there is no test {name}");
    }
    let of_faults = sources
        .iter()
        .filter(|(path, _)| path.starts_with("tests/it/faults/") || path == "tests/it/limits.rs");
    for (path, text) in of_faults {
        for test in text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next()) {
            assert!(
                named.clone().any(|name| name.ends_with(&format!("::{test}"))),
                "{test} of {path} is not on the page"
            );
        }
    }
}

/// Returns every file below a folder, with its path in the project and its text.
fn files(folder: &Path) -> Vec<(String, String)> {
    let entries =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let read = |path: PathBuf| {
        if path.is_dir() {
            return files(&path);
        }
        let name = path
            .strip_prefix(env!("CARGO_MANIFEST_DIR"))
            .expect("a file of this project")
            .display()
            .to_string();
        vec![(name, fs::read_to_string(&path).expect("a text"))]
    };
    entries.flat_map(read).collect()
}
