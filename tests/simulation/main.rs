//! A simulation of the proxy against a model of Redis, in virtual time, decided by a seed.
//!
//! Promise: whatever the network and Redis do, and in whatever order, no read is older than
//! documented, and a session reads its own writes.
//!
//! All parts run on one thread: the proxy's own supervisor, cache and RESP front end, a model of
//! Redis, clients and an adversary. Time is tokio's paused clock: it jumps to the next timer when
//! nothing else can run. So hours pass in seconds, and a seed repeats every step, which a test
//! proves.
//!
//! `make simulate SEEDS=1000` runs many seeds, `make simulate SEED=7` one of them, with its events.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that panics has failed, which is what it should do, and shows what it prints"
)]

mod chance;
mod clients;
mod cluster_differential;
mod conditions;
mod differential;
mod epochs;
mod faults;
mod http;
mod model;
mod network;
mod oracle;
mod partitions;
mod program;
mod redis;
mod resp;
mod run;
mod sentinel;
mod servers;
#[path = "../it/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the integration tests use the rest of the harness")]
mod support;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use run::{Outcome, run};
use world::lock;

/// The seeds of a run without options.
const SEEDS: u64 = 6;
/// The number of seeds after which their sums are printed.
const PROGRESS: u64 = 500;
/// The variable with the seed of a process.
const SEED: &str = "SIMULATION_SEED";
/// The variable that makes a process run its seed.
const CHILD: &str = "SIMULATION_CHILD";
/// The test that runs the seed of its process, and the beginning of its line with the outcome.
const CHILD_TEST: &str = "process_runs_its_seed";
const OUTCOME: &str = "outcome: ";

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Runs a seed in a process of its own, because a library may count in this one. `fault` is planted
/// there.
fn simulate(seed: u64, fault: &str) -> Outcome {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", CHILD_TEST, "--nocapture", "--test-threads=1"])
        .env(SEED, seed.to_string())
        .env(CHILD, fault)
        .output()
        .expect("a process");
    let text = String::from_utf8_lossy(&child.stdout);
    let outcome = text.lines().find_map(|line| line.split_once(OUTCOME));
    match outcome {
        Some((_, json)) => serde_json::from_str(json).expect("an outcome"),
        None => panic!("seed {seed}: {text}{}", String::from_utf8_lossy(&child.stderr)),
    }
}

/// The outcomes of the seeds from 1 on.
struct Outcomes {
    begun: Instant,
    all: BTreeMap<u64, Outcome>,
    /// The last of the first seeds that are all done.
    done: u64,
}

impl Outcomes {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        if let Some(breach) = &outcome.breach {
            eprintln!("make simulate SEED={seed}: {breach}");
        }
        self.all.insert(seed, outcome);
        while self.all.contains_key(&(self.done + 1)) {
            self.done += 1;
            if self.done.is_multiple_of(PROGRESS) {
                eprintln!("{self}");
            }
        }
    }

    fn sum(&self, count: fn(&Outcome) -> u64) -> u64 {
        self.all.range(..=self.done).map(|(_, one)| count(one)).sum()
    }
}

impl fmt::Display for Outcomes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time: Duration = self.all.range(..=self.done).map(|(_, one)| one.time).sum();
        let (wall, hours) = (self.begun.elapsed().as_secs_f64(), time.as_secs_f64() / 3600.0);
        write!(
            formatter,
            "the first {} seeds: {} failed; {hours:.2} virtual hours in {wall:.1} s, {:.1} virtual \
             hours a minute; {} reads, {} of them over HTTP, {} from memory, {} errors, {} writes \
             at Redis, {} faults, {} failovers, {} slots moved, {} events",
            self.done,
            self.sum(|one| one.breach.is_some().into()),
            hours * 60.0 / wall,
            self.sum(|one| one.reads),
            self.sum(|one| one.over_http),
            self.sum(|one| one.from_memory),
            self.sum(|one| one.errors),
            self.sum(|one| one.writes),
            self.sum(|one| one.faults),
            self.sum(|one| one.failovers),
            self.sum(|one| one.moves),
            self.sum(|one| one.events),
        )
    }
}

/// Runs the seeds from 1 to `last`, each processor one at a time.
fn simulate_all(last: u64) -> Outcomes {
    let outcomes = Outcomes { begun: Instant::now(), all: BTreeMap::new(), done: 0 };
    let (next, outcomes) = (AtomicU64::new(1), Mutex::new(outcomes));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed > last {
                return;
            }
            let outcome = simulate(seed, "");
            lock(&outcomes).add(seed, outcome);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    outcomes.into_inner().expect("all outcomes")
}

/// Runs the seed of this process, if it was started for that.
#[test]
fn process_runs_its_seed() {
    let Some(fault) = std::env::var_os(CHILD) else { return };
    let seed = number(SEED).expect("a seed");
    plant(fault.to_str().expect("a name"));
    let outcome = run(seed, false);
    println!("\n{OUTCOME}{}", serde_json::to_string(&outcome).expect("JSON"));
}

#[test]
fn seeds_hold() {
    if let Some(seed) = number(SEED) {
        let outcome = run(seed, true);
        eprintln!("{outcome:?}");
        assert_eq!(outcome.breach, None);
        return;
    }
    let outcomes = simulate_all(number("SIMULATION_SEEDS").unwrap_or(SEEDS));
    eprintln!("{outcomes}");
    let failed: Vec<_> =
        outcomes.all.iter().filter(|(_, one)| one.breach.is_some()).map(|(seed, _)| seed).collect();
    assert!(failed.is_empty(), "seeds {failed:?} failed");
    let (reads, hits) = (outcomes.sum(|one| one.reads), outcomes.sum(|one| one.from_memory));
    assert!(hits > reads / 10, "{hits} of {reads} reads from memory tell nothing");
}

#[test]
fn seed_repeats_its_trace() {
    // The first one is a cluster, the other one is not.
    let traces = [2, 3].map(|seed| {
        let first = simulate(seed, "");
        assert_eq!(first, simulate(seed, ""));
        eprintln!("seed {seed}: {} events, trace {}", first.events, first.trace);
        first.trace
    });
    assert_ne!(traces[0], traces[1]);
}

/// Plants the fault of this name.
#[cfg(not(feature = "planted-faults"))]
fn plant(name: &str) {
    assert_eq!(name, "", "it needs the feature planted-faults");
}

#[cfg(feature = "planted-faults")]
use planted::plant;

/// With the feature `planted-faults`: each fault is found.
#[cfg(feature = "planted-faults")]
mod planted {
    use std::thread;

    use redis_proxy::cache::planted_faults::{self, Fault};

    use super::{number, simulate};

    /// The most seeds within which each fault has to be found.
    const MOST: u64 = 40;
    const FAULTS: [Fault; 9] = [
        Fault::LateFlight,
        Fault::RemoveBeforeClose,
        Fault::LeaseBeforeFlush,
        Fault::IgnoredPushes(50),
        Fault::NoFence,
        Fault::OutlivedFailover,
        Fault::UnansweredLogin,
        Fault::KeptRedirect,
        Fault::KeptAbsence,
    ];

    pub(super) fn plant(name: &str) {
        planted_faults::plant(FAULTS.into_iter().find(|fault| format!("{fault:?}") == name));
    }

    /// Returns the first seed that finds this fault, and the breach.
    fn first_found(fault: Fault, most: u64) -> Option<(u64, String)> {
        let name = format!("{fault:?}");
        (1..=most).find_map(|seed| Some((seed, simulate(seed, &name).breach?)))
    }

    #[test]
    fn planted_faults_are_found_within_some_seeds() {
        let most = number("SIMULATION_SEEDS").unwrap_or(MOST);
        let found = thread::scope(|scope| {
            let hunts = FAULTS.map(|fault| scope.spawn(move || (fault, first_found(fault, most))));
            hunts.map(|hunt| hunt.join().expect("a hunt"))
        });
        for (fault, found) in found {
            let (first, breach) =
                found.unwrap_or_else(|| panic!("{fault:?} was not found in {most} seeds"));
            eprintln!("{fault:?}: first found in seed {first}: {breach}");
        }
    }
}
