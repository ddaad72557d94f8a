//! "Never older than Redis by more than a moment, whatever happens": a soak of the real program under seeded faults.
//!
//! Writers change versioned values straight in Redis, readers over HTTP and clients of Redis ask the proxy, and an adversary
//! breaks the link, Redis and the proxy's memory in between. An oracle knows what each read may return. It is worth something only because it
//! can fail: the same soak with nothing but a TTL must be refused, and each of its rules has a history that breaks it.
//!
//! The same over several proxies on one Redis, faults of the line now for one of them and now for all: each client stays with
//! its proxy, since only what is asked for as current is promised across them, and one reader wanders and asks for that.
//!
//! `make soak SECONDS=600 SEED=1` runs it for long, and with `PROXIES=3` over three. Model and rules are those of the files beside this one.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

use std::env;
use std::time::Duration;

mod clients;
mod failover;
mod faults;
mod footprint;
mod history;
mod oracle;
mod readers;
mod report;
mod resharding;
mod soak;
mod weather;
mod world;
mod writers;

use faults::Fault;
use report::Report;
use soak::Plan;

const SECONDS: u64 = 35;
/// Time for several failovers.
const FAILOVER_SECONDS: u64 = 20;
/// Without faults and for so long, memory that nobody invalidates is found out.
const CONTROL_SECONDS: u64 = 8;

/// Nothing ends by its age, so whatever is too old was not invalidated.
const TRACKING: &str = r#"
    cache.ttl = "1h"
    cache.negative_ttl = "1h"
    cache.coherence = "tracking"
    cache.coherence_timeout = "500ms"
"#;
const NOTHING_BUT_A_TTL: &str = r#"
    cache.ttl = "1h"
    cache.negative_ttl = "1h"
    cache.coherence = "ttl"
"#;
/// As many as anybody has tried at once.
const FLEET: [&str; 16] = [TRACKING; 16];
const FLEET_SECONDS: u64 = 12;
/// Every read asks Redis, which shows that the soak asks nothing impossible.
const NO_MEMORY: &str = r#"
    cache.ttl = "0s"
    cache.coherence = "ttl"
"#;
const DOWN: &str = "no link to Redis";
/// On a machine with no time for it.
const SILENT: &str = "a sentinel does not answer";

#[test]
fn with_tracking_no_read_is_too_old_whatever_happens() {
    let report = soak(&[TRACKING], &faults::ALL, seconds());
    assert_eq!(report.violations.len(), 0, "violations; the report is above");
}

#[test]
fn with_sentinels_no_read_is_too_old_over_failovers() {
    let duration = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(FAILOVER_SECONDS));
    let plan = failover::Plan {
        seed: seed(),
        duration,
        coherence: TRACKING,
        expected_log: &[DOWN, SILENT],
    };
    let report = plan.run();
    eprintln!("{}", report.text());
    assert_eq!(report.violations.len(), 0, "violations; the report is above");
}

#[test]
fn before_a_cluster_no_read_is_too_old_wherever_the_slots_go() {
    let duration = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(FAILOVER_SECONDS));
    let plan =
        resharding::Plan { seed: seed(), duration, coherence: TRACKING, expected_log: &[DOWN] };
    let report = plan.run();
    eprintln!("{}", report.text());
    assert_eq!(report.violations.len(), 0, "violations; the report is above");
}

#[test]
fn without_a_memory_the_same_soak_passes() {
    let report = soak(&[NO_MEMORY], &faults::ALL, CONTROL_SECONDS);
    assert_eq!(report.violations.len(), 0, "violations; the report is above");
}

#[test]
fn with_nothing_but_a_ttl_the_same_soak_fails() {
    assert_too_old(&soak(&[NOTHING_BUT_A_TTL], &[], CONTROL_SECONDS));
}

#[test]
fn of_many_proxies_on_one_redis_none_is_too_old_whatever_happens() {
    let proxies = number("SOAK_PROXIES").unwrap_or(3);
    let proxies =
        FLEET.get(..usize::try_from(proxies).unwrap()).expect("SOAK_PROXIES is at most 16");
    let report = soak(proxies, &faults::ALL, number("SOAK_SECONDS").unwrap_or(FLEET_SECONDS));
    assert_eq!(report.violations.len(), 0, "violations; the report is above");
}

#[test]
fn one_of_many_proxies_that_is_not_told_is_found_out() {
    assert_too_old(&soak(&[TRACKING, TRACKING, NOTHING_BUT_A_TTL], &[], CONTROL_SECONDS));
}

fn assert_too_old(report: &Report) {
    let too_old = report.violations.iter().any(|violation| violation.contains("superseded"));
    assert!(too_old, "values that are too old were not found out");
    let wrong = report.violations.iter().find(|violation| violation.contains("harness"));
    assert_eq!(wrong, None);
}

fn soak(proxies: &'static [&'static str], faults: &'static [Fault], seconds: u64) -> Report {
    let duration = Duration::from_secs(seconds);
    let report = Plan { seed: seed(), duration, proxies, faults, expected_log: &[DOWN] }.run();
    eprintln!("{}", report.text());
    report
}

/// How long and from which seed: from the environment, for `make soak`; otherwise each run is another one.
fn seconds() -> u64 {
    number("SOAK_SECONDS").unwrap_or(SECONDS)
}

fn seed() -> u64 {
    number("SOAK_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()))
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}
