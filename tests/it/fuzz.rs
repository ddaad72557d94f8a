//! The corpus of the fuzz targets.
//!
//! Promise: every input in `fuzz/corpus` passes the check of its target.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

#[path = "../../fuzz/src/lib.rs"]
#[expect(
    unreachable_pub,
    clippy::panic,
    reason = "written for the fuzz targets, which are programs of their own"
)]
pub(crate) mod checks;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// A check, which panics on a wrong result.
type Check = fn(&[u8]);

/// The targets with their checks.
const TARGETS: [(&str, Check); 8] = [
    ("answers", checks::answers::check),
    ("config", checks::config::check),
    ("http_connection", checks::http_connection::check),
    ("http_key", checks::http_key::check),
    ("push", checks::push::check),
    ("resp_reply", checks::resp_reply::check),
    ("resp_request", checks::resp_request::check),
    ("rest_request", checks::rest_request::check),
];

#[test]
fn corpus_inputs_pass_their_target() {
    for (target, check) in TARGETS {
        let inputs = files(&corpus().join(target));
        assert!(inputs.len() >= 12, "{target} has only {} inputs", inputs.len());
        for path in inputs {
            let input = fs::read(&path).expect("an input");
            catch_unwind(|| check(&input))
                .unwrap_or_else(|_| panic!("see above: {}", path.display()));
        }
    }
}

#[test]
fn every_fuzz_target_is_listed() {
    let names = |paths: Vec<PathBuf>| {
        let stems = paths.iter().filter_map(|path| path.file_stem()?.to_str().map(str::to_owned));
        let mut names: Vec<_> = stems.collect();
        names.sort();
        names
    };
    let here = TARGETS.map(|(target, _)| target);
    assert_eq!(names(files(&corpus())), here);
    assert_eq!(names(files(&corpus().join("../fuzz_targets"))), here);
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}
