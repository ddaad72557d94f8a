//! A soak of the real program under seeded faults.
//!
//! Promise: no read is older than Redis by more than a moment, whatever fails.
//!
//! Writers change versioned values straight in Redis. Readers over HTTP and Redis clients read
//! through the proxy. Meanwhile an adversary breaks the connection, Redis and the proxy's memory.
//! An oracle knows the values that each read may return. The soak is worth something only because
//! it can fail: with nothing but a TTL it has to, and a unit test breaks each rule of the oracle.
//!
//! The same runs over several proxies on one Redis, with network faults for one or all of them.
//! Each client stays with its proxy, because only `no-cache` reads are promised across proxies;
//! one reader changes proxies and sends `no-cache`.
//!
//! `make soak SECONDS=600 SEED=1` runs it longer, and `PROXIES=3` over three proxies. Each module
//! states its model and its rules.

#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

use std::time::Duration;

mod checker;
mod clients;
mod collections;
mod conditions;
mod failover;
mod faults;
mod history;
mod models;
mod oracle;
mod readers;
mod record;
mod report;
mod resharding;
mod resource_leaks;
mod run;
mod simulation;
#[path = "../it/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the integration tests use the rest of the harness")]
mod support;
mod writers;

use faults::Fault;
use report::Report;
use run::{KEPT, Plan};
use support::env::{number, seed};
use support::fault_stage::DOWN;

/// The seconds of a soak unless `SOAK_SECONDS` is set; enough for a failover.
const SECONDS: u64 = 6;
/// Seconds of a control run. Without faults, memory without invalidations is detected in this time.
const CONTROL_SECONDS: u64 = 5;

/// Nothing expires by age, so every value that is too old is a missed invalidation. Answers are
/// verified: one that is stale is an error in the log, which fails the soak.
const TRACKING: &str = r#"
    cache.ttl = "1h"
    cache.negative_ttl = "1h"
    cache.coherence = "tracking"
    cache.coherence_timeout = "500ms"
    verify.sample = 0.01
    verify.max_rate = 1000
"#;
/// Without verification, which would find a planted fault first and drop what is stale.
#[cfg(feature = "planted-faults")]
const UNVERIFIED: &str = r#"
    cache.ttl = "1h"
    cache.negative_ttl = "1h"
    cache.coherence = "tracking"
    cache.coherence_timeout = "500ms"
"#;
/// Seconds in which a planted fault is found.
#[cfg(feature = "planted-faults")]
const PLANTED_SECONDS: u64 = 10;
const TTL_ONLY: &str = r#"
    cache.ttl = "1h"
    cache.negative_ttl = "1h"
    cache.coherence = "ttl"
"#;
/// The largest fleet that was ever tried.
const FLEET: [&str; 16] = [TRACKING; 16];
/// Every read goes to Redis, which shows that the soak demands nothing impossible.
const NO_MEMORY: &str = r#"
    cache.ttl = "0s"
    cache.coherence = "ttl"
"#;
/// The log line of a sentinel that misses its poll on a busy machine.
const SILENT: &str = "a sentinel does not reply";
/// The log line of a proxy that connects while Redis's tracking table is small.
const SMALL_TABLE: &str = "cache.capacity is more than Redis's tracking-table-max-keys";

#[test]
fn reads_are_never_too_old_with_tracking() {
    let report = soak(&[TRACKING], &faults::ALL, seconds());
    assert_no_violations(&report);
    assert_kept(&report);
}

#[test]
fn reads_are_never_too_old_over_failovers() {
    let plan = failover::Plan {
        seed: seed(),
        duration: Duration::from_secs(seconds()),
        coherence: TRACKING,
        expected_log: &[DOWN, SILENT],
    };
    let report = plan.run();
    eprintln!("{}", report.text());
    assert_no_violations(&report);
}

#[test]
fn reads_are_never_too_old_while_slots_move() {
    let plan = resharding::Plan {
        seed: seed(),
        duration: Duration::from_secs(seconds()),
        coherence: TRACKING,
        expected_log: &[DOWN],
    };
    let report = plan.run();
    eprintln!("{}", report.text());
    assert_no_violations(&report);
}

/// Judges the history in the file `SOAK_JUDGE` again, such as one that was undecided because the
/// machine was busy.
#[test]
#[ignore = "it needs a file: SOAK_JUDGE"]
fn recorded_history_is_accepted() {
    let path = std::env::var_os("SOAK_JUDGE").expect("SOAK_JUDGE is the path of a history");
    let judgement = checker::judge(path.as_ref());
    eprintln!("{}", judgement.text());
    assert_eq!(judgement.not_accepted(), 0, "the checker objects; its judgement is above");
}

#[test]
fn zero_capacity_passes_the_same_soak() {
    assert_no_violations(&soak(&[NO_MEMORY], &faults::ALL, CONTROL_SECONDS));
}

#[test]
fn ttl_only_mode_fails_the_same_soak() {
    assert_too_old(&soak(&[TTL_ONLY], &[], CONTROL_SECONDS));
}

#[test]
fn reads_are_never_too_old_over_many_proxies() {
    let proxies = usize::try_from(number("SOAK_PROXIES").unwrap_or(3)).unwrap();
    let proxies = FLEET.get(..proxies).expect("SOAK_PROXIES is at most 16");
    assert_no_violations(&soak(proxies, &faults::ALL, seconds()));
}

#[test]
fn untracked_proxy_of_a_fleet_is_detected() {
    assert_too_old(&soak(&[TRACKING, TRACKING, TTL_ONLY], &[], CONTROL_SECONDS));
}

#[cfg(feature = "planted-faults")]
#[test]
fn planted_ignored_pushes_are_found() {
    assert_too_old(&planted(("PLANTED_FAULT_IGNORED_PUSHES", "1000")));
}

#[cfg(feature = "planted-faults")]
#[test]
fn planted_stores_after_pushes_are_found() {
    assert_too_old(&planted(("PLANTED_FAULT_CLOSED_FLIGHTS", "1")));
}

/// Runs the soak with a fault in the proxy, and none around it.
#[cfg(feature = "planted-faults")]
fn planted(fault: (&'static str, &'static str)) -> Report {
    let (seed, duration) = (seed(), Duration::from_secs(PLANTED_SECONDS));
    let (proxies, expected_log, environment) = (&[UNVERIFIED], &[], Some(fault));
    Plan { seed, duration, proxies, faults: &[], expected_log, environment }.run()
}

/// Asserts that neither judge has an objection.
fn assert_no_violations(report: &Report) {
    assert_eq!(report.violations.len(), 0, "violations; the report is above");
    assert_eq!(report.judgement.not_accepted(), 0, "the checker objects; the report is above");
}

/// Asserts that each kind of collection was read from memory. Otherwise the soak proves nothing of
/// it.
fn assert_kept(report: &Report) {
    for name in KEPT {
        let hits = report.figures.iter().find(|(figure, _)| *figure == name);
        assert!(hits.is_some_and(|(_, hits)| *hits > 0.0), "no {name}: {:?}", report.figures);
    }
}

/// Asserts that both judges object to values that are too old, and to nothing of the harness.
fn assert_too_old(report: &Report) {
    assert!(report.judgement.rejected("bounded staleness") > 0, "the checker objects to nothing");
    assert!(!report.judgement.is_of_harness(), "the harness is wrong; the report is above");
    let too_old = report.violations.iter().any(|violation| violation.contains("superseded"));
    assert!(too_old, "values that are too old were not detected");
    let wrong = report.violations.iter().find(|violation| violation.contains("harness"));
    assert_eq!(wrong, None);
}

fn soak(proxies: &'static [&'static str], faults: &'static [Fault], seconds: u64) -> Report {
    let duration = Duration::from_secs(seconds);
    let (seed, expected_log, environment) = (seed(), &[DOWN, SMALL_TABLE], None);
    Plan { seed, duration, proxies, faults, expected_log, environment }.run()
}

fn seconds() -> u64 {
    number("SOAK_SECONDS").unwrap_or(SECONDS)
}
