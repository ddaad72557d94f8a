//! The memory, descriptors and tasks of the proxies over a soak.
//!
//! Model: one sample of `/proc` a second. The warm-up is left out. The medians of the memory in the
//! first and the last part after it are compared, because a single resize in a part says nothing.
//! Descriptors and tasks are compared after every client is gone.

use std::fs;
use std::thread;
use std::time::Duration;

use super::history::Moment;
use super::simulation::Simulation;
use crate::support::memory::resident;
use crate::support::{Proxy, eventually};

const EVERY: Duration = Duration::from_secs(1);
/// The shortest soak that says anything about memory.
const SHORTEST: Duration = Duration::from_secs(300);
/// The number of equal parts of a soak. The first warms it up; the second and the last are
/// compared.
const PARTS: u32 = 6;
/// The allowed growth of memory in the last part, in percent.
const GROWTH: f64 = 5.0;

/// The number of looks at the descriptors of which the lowest counts, and the time between two.
const LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(10);

/// The samples of a soak.
#[derive(Default)]
pub(super) struct ResourceUse {
    /// Bytes in memory, by the time of the sample.
    resident: Vec<(Moment, u64)>,
    held: (Held, Held),
}

/// Resources that each client takes and gives back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) descriptors: usize,
    pub(super) tasks: usize,
}

impl Held {
    /// Returns the current resources, without those of the metrics request itself, which is a
    /// client of the admin listener.
    pub(super) fn by(proxies: &[Proxy]) -> Self {
        let tasks = proxies.iter().map(tasks).sum();
        // Otherwise the connection of the latest metrics request would be counted while it closes.
        let looks = (0..LOOKS).map(|_| {
            thread::sleep(LOOK);
            descriptors(proxies)
        });
        Self { descriptors: looks.min().unwrap_or_default(), tasks }
    }

    /// Whether no resource is above that of `before`.
    pub(super) fn is_within(self, before: Self) -> bool {
        self.descriptors <= before.descriptors && self.tasks <= before.tasks
    }
}

/// Takes samples until the soak ends.
pub(super) fn watch(simulation: &Simulation, proxies: &[Proxy]) -> ResourceUse {
    let mut resource_use = ResourceUse::default();
    let mut next = Duration::ZERO;
    while simulation.is_read() {
        if simulation.clock.now() >= next {
            next = simulation.clock.now() + EVERY;
            let bytes = proxies.iter().map(|proxy| resident(proxy.pid())).sum();
            resource_use.resident.push((simulation.clock.now(), bytes));
        }
        thread::sleep(Duration::from_millis(50));
    }
    resource_use
}

impl ResourceUse {
    /// Records the resources before the first client and after the last.
    pub(super) fn held(&mut self, before: Held, after: Held) {
        self.held = (before, after);
    }

    /// Returns the median of a part, in bytes.
    fn median_of(&self, number: u32) -> Option<u64> {
        let part = self.resident.last()?.0 / PARTS;
        let is_last = number + 1 == PARTS;
        let is_in = |at: Moment| at >= part * number && (is_last || at < part * (number + 1));
        median(self.resident.iter().filter(|(at, _)| is_in(*at)))
    }

    /// Returns the medians of the part after the warm-up and of the last part, in bytes.
    fn parts(&self) -> Option<(u64, u64)> {
        Some((self.median_of(1)?, self.median_of(PARTS - 1)?))
    }

    /// Returns the description of a leak, if there is one.
    pub(super) fn complaint(&self) -> Option<String> {
        let (before, after) = self.held;
        if !after.is_within(before) {
            return Some(format!(
                "when all clients are gone there are {after:?}, and before there were {before:?}"
            ));
        }
        let is_long = self.resident.last().is_some_and(|(at, _)| *at >= SHORTEST);
        let (first, last) = self.parts().filter(|_| is_long)?;
        (growth(first, last) > GROWTH).then(|| format!("memory grew from {first} to {last} bytes"))
    }

    pub(super) fn text(&self) -> String {
        let (before, after) = self.held;
        let (first, last) = self.parts().unwrap_or_default();
        let most = self.resident.iter().map(|(_, bytes)| *bytes).max().unwrap_or_default();
        let growth = growth(first, last);
        let mib = |bytes: u64| to_number(bytes) / to_number(1 << 20);
        let medians = (0..PARTS)
            .filter_map(|number| self.median_of(number))
            .map(|bytes| format!("{:.1}", mib(bytes)));
        let medians = medians.collect::<Vec<_>>().join(" ");
        format!(
            "memory {:.1} MiB after warming up, {:.1} MiB at the end ({growth:+.1} %), {:.1} MiB \
                at most, by sixths {medians}; \
             descriptors {} before, {} after; tasks {} before, {} after",
            mib(first),
            mib(last),
            mib(most),
            before.descriptors,
            after.descriptors,
            before.tasks,
            after.tasks,
        )
    }
}

fn growth(first: u64, last: u64) -> f64 {
    if first == 0 { 0.0 } else { (to_number(last) / to_number(first) - 1.0) * 100.0 }
}

fn to_number(bytes: u64) -> f64 {
    u32::try_from(bytes >> 10).map_or(f64::MAX, f64::from) * 1024.0
}

fn median<'a>(looks: impl Iterator<Item = &'a (Moment, u64)>) -> Option<u64> {
    let mut bytes: Vec<_> = looks.map(|(_, bytes)| *bytes).collect();
    bytes.sort_unstable();
    bytes.get(bytes.len() / 2).copied()
}

/// Returns the number of tasks without the one that serves this request. Waits until no other admin
/// client is connected, because its task may end before its connection.
fn tasks(proxy: &Proxy) -> usize {
    eventually("no other admin client", || {
        let received = proxy.metrics();
        let value = |series: &str| {
            received.value(&format!("redis_proxy_{series}")).map(|value| format!("{value:.0}"))
        };
        let is_alone = value("connections{front_end=\"admin\"}")? == "1";
        is_alone.then(|| value("tasks")?.parse::<usize>().ok()?.checked_sub(1)).flatten()
    })
}

/// Returns the number of open descriptors of the proxies.
pub(super) fn descriptors(proxies: &[Proxy]) -> usize {
    let of_one = |proxy: &Proxy| {
        fs::read_dir(format!("/proc/{}/fd", proxy.pid())).expect("the proxy runs").count()
    };
    proxies.iter().map(of_one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Held = Held { descriptors: 20, tasks: 10 };

    fn resource_use(seconds: u64, bytes: impl Fn(u64) -> u64) -> ResourceUse {
        let look = |second| (Duration::from_secs(second), bytes(second) << 20);
        ResourceUse { resident: (0..=seconds).map(look).collect(), held: (HELD, HELD) }
    }

    #[test]
    fn memory_may_grow_only_while_warming_up() {
        assert_eq!(resource_use(600, |second| second.min(90)).complaint(), None);
        assert!(
            resource_use(600, |second| 100 + second / 10)
                .complaint()
                .unwrap()
                .contains("memory grew")
        );
        assert_eq!(resource_use(60, |second| 100 + second).complaint(), None, "too short to tell");
        assert_eq!(
            resource_use(600, |second| if second % 100 == 0 { 200 } else { 100 }).complaint(),
            None
        );
    }

    #[test]
    fn extra_descriptor_or_task_is_a_leak() {
        for after in [Held { descriptors: 21, ..HELD }, Held { tasks: 11, ..HELD }] {
            let mut resource_use = resource_use(10, |_| 1);
            resource_use.held(HELD, after);
            assert!(resource_use.complaint().unwrap().contains(&format!("{after:?}")));
            resource_use.held(after, HELD);
            assert_eq!(resource_use.complaint(), None);
        }
    }
}
