//! The orders in which the threads of a scenario run: every order, or every one with a limited
//! number of preemptions.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use shuttle::scheduler::{RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, Runner};
use tokio::runtime::{Builder, Handle};

use super::Settings;
use crate::settings::{ByteSize, MemorySize};

/// The number of preemptions that permits every possible order.
pub(super) const ANY: usize = usize::MAX;
const RANDOM_ORDERS: usize = 5_000;
const SEED: u64 = 1;
/// Unoptimized code needs more stack, in bytes, than shuttle's default.
const STACK_SIZE: usize = 1 << 18;
/// Fewer orders than this tell nothing.
const FEW_ORDERS: usize = 10;

/// Longer than any scenario.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Returns the settings of a scenario. The bound on memory is a number, because each order creates
/// a cache, and `auto` reads the memory of the machine from files.
pub(super) fn settings() -> Settings {
    Settings {
        ttl: HOUR,
        coherence_timeout: HOUR,
        max_memory: MemorySize::Bytes(ByteSize(64 << 20)),
        ..Settings::default()
    }
}

/// Runs the scenario in each of the orders. Returns the number of orders.
fn run_in(
    orders: impl Scheduler + 'static,
    failure_persistence: FailurePersistence,
    scenario: impl Fn(&Handle) + Send + Sync + 'static,
) -> usize {
    // Only its blocking threads are used, to drop stores.
    let runtime = Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let fetches = runtime.handle().clone();
    let mut config = Config::new();
    config.stack_size = STACK_SIZE;
    config.failure_persistence = failure_persistence;
    config.silence_warnings = true;
    Runner::new(orders, config).run(move || scenario(&fetches))
}

/// Asserts that every order with at most `preemptions` preemptions passes. `PREEMPTIONS=4` sets a
/// higher limit for a longer run.
pub(super) fn holds(preemptions: usize, scenario: impl Fn(&Handle) + Send + Sync + 'static) {
    let more = std::env::var("PREEMPTIONS").map_or(0, |number| number.parse().unwrap());
    let orders = Orders::new(preemptions.max(more));
    let orders = run_in(orders, FailurePersistence::Print, scenario);
    assert!(orders > FEW_ORDERS, "{orders} orders are too few to tell anything");
}

/// Asserts that some order with at most `preemptions` preemptions fails, with a message that
/// contains `words`.
pub(super) fn fails(
    preemptions: usize,
    scenario: impl Fn(&Handle) + Send + Sync + 'static,
    words: &str,
) {
    let orders = Orders::new(preemptions);
    let run = catch_unwind(AssertUnwindSafe(|| run_in(orders, FailurePersistence::None, scenario)));
    let failure = run.expect_err("the wrong order did no harm");
    let formatted = failure.downcast_ref::<String>().map(String::as_str);
    let failure = formatted.or(failure.downcast_ref::<&str>().copied()).unwrap_or_default();
    assert!(failure.contains(words), "{failure}");
}

/// Asserts that random orders pass, the same ones in each run.
pub(super) fn hold_at_random(scenario: impl Fn(&Handle) + Send + Sync + 'static) {
    let orders = RandomScheduler::new_from_seed(SEED, RANDOM_ORDERS);
    run_in(orders, FailurePersistence::Print, scenario);
}

/// Enumerates the orders of a scenario's steps depth first, one per execution. At every step the
/// running thread continues, or another preempts it, up to the limit. If the running thread cannot
/// continue, any other may run.
struct Orders {
    preemptions: usize,
    begun: bool,
    choices: Vec<Choice>,
    /// Choices made in this execution.
    made: usize,
    preempted: usize,
}

struct Choice {
    threads: Vec<TaskId>,
    taken: usize,
}

impl Orders {
    fn new(preemptions: usize) -> Self {
        Self { preemptions, begun: false, choices: Vec::new(), made: 0, preempted: 0 }
    }

    fn choose(&self, mut threads: Vec<TaskId>, running: Option<usize>) -> Choice {
        if let Some(running) = running {
            threads.swap(0, running);
            if self.preempted == self.preemptions {
                threads.truncate(1);
            }
        }
        Choice { threads, taken: 0 }
    }
}

impl Scheduler for Orders {
    fn new_execution(&mut self) -> Option<Schedule> {
        if std::mem::replace(&mut self.begun, true) {
            while self.choices.pop_if(|choice| choice.taken + 1 == choice.threads.len()).is_some() {
            }
            self.choices.last_mut()?.taken += 1;
        }
        (self.made, self.preempted) = (0, 0);
        Some(Schedule::new(0))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        _is_yielding: bool,
    ) -> Option<TaskId> {
        let threads: Vec<_> = runnable.iter().map(|thread| thread.id()).collect();
        // The first thread prepares, starts the others and checks the end. While it can run, no
        // other order matters.
        let first = TaskId::from(0);
        if threads.contains(&first) {
            return Some(first);
        }
        let running = threads.iter().position(|thread| Some(*thread) == current);
        if self.made == self.choices.len() {
            self.choices.push(self.choose(threads, running));
        }
        let Choice { threads, taken } = &self.choices[self.made];
        self.made += 1;
        self.preempted += usize::from(running.is_some() && *taken > 0);
        Some(threads[*taken])
    }

    fn next_u64(&mut self) -> u64 {
        0
    }
}
