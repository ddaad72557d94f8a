//! Tests that cannot run on this machine.

use std::fmt::Display;
use std::io::{self, Write};
use std::thread;

/// Reports on standard error that the running test is skipped, as `SKIPPED name: reason`.
///
/// The line goes past the harness, which hides the output of a test that passes: otherwise a
/// skipped test would look like one that passed.
pub(crate) fn skipped(reason: impl Display) {
    // The harness names each test's thread after the test.
    let thread = thread::current();
    let name = thread.name().unwrap_or("an unnamed thread");
    let line = format!("SKIPPED {name}: {reason}\n");
    io::stderr().write_all(line.as_bytes()).expect("standard error takes a line");
}

/// Reports that the running test is skipped because a program is missing, and where it comes from.
pub(crate) fn skipped_without(program: &str, source: &str) {
    skipped(format_args!("{program} is missing; {source}"));
}

#[test]
fn skip_shows_despite_captured_output() {
    use std::env;
    use std::process::Command;

    const SUBJECT: &str = "SKIP_SUBJECT";
    const NAME: &str = "support::skip::skip_shows_despite_captured_output";
    if env::var_os(SUBJECT).is_some() {
        return skipped("the test of the line itself");
    }
    for threads in ["--test-threads=1", "--test-threads=2"] {
        let mut test = Command::new(env::current_exe().expect("a path"));
        let test = test.args(["--exact", NAME, threads]).env(SUBJECT, "1");
        let output = test.output().expect("the tests start");
        let shown = String::from_utf8_lossy(&output.stderr);
        assert_eq!(shown, format!("SKIPPED {NAME}: the test of the line itself\n"), "{threads}");
        assert!(output.status.success(), "{threads}");
    }
}
