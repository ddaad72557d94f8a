//! The program of `make bench`.
//!
//! Promise: it fails without one of its contestants, repeats a case until two runs agree, and
//! prints each target beside its aim.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use crate::support::skip::skipped_without;

#[test]
fn bench_passes_its_own_tests() {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench");
    let mut python = Command::new("python3");
    // Otherwise it would write compiled files into the sources.
    python.args(["-B", "-m", "unittest", "--verbose", "test_bench"]).current_dir(bench);
    let output = match python.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return skipped_without("python3", "Debian: apt-get install python3");
        }
        Err(error) => panic!("python3 does not start: {error}"),
    };
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    assert!(report.contains("contestant_that_does_not_start_fails_the_run"), "{report}");
}
