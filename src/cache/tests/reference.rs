//! Property test of the cache against a reference: a list of keys from the least to the most
//! recently read.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// The reference model: the exact contents of a cache of this capacity and TTL.
struct Model {
    capacity: usize,
    ttl: Duration,
    now: Duration,
    /// Keys from the least to the most recently read, with the time of their fetch.
    entries: VecDeque<(u8, Duration)>,
}

impl Model {
    fn read(&mut self, key: u8) -> Outcome {
        let place = self.entries.iter().position(|(other, _)| *other == key);
        let found = place.and_then(|place| self.entries.remove(place));
        let fresh = found.filter(|(_, fetched)| self.now.saturating_sub(*fetched) < self.ttl);
        self.entries.push_back(fresh.unwrap_or((key, self.now)));
        if self.entries.len() > self.capacity {
            self.entries.pop_front();
        }
        if fresh.is_some() { Outcome::Hit } else { Outcome::Miss }
    }

    fn remove_expired(&mut self) {
        let (now, ttl) = (self.now, self.ttl);
        self.entries.retain(|(_, fetched)| now.saturating_sub(*fetched) < ttl);
    }

    fn resize(&mut self, capacity: usize) {
        self.remove_expired();
        self.capacity = capacity;
        let surplus = self.entries.len().saturating_sub(capacity);
        self.entries.drain(..surplus);
    }

    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.entries.iter().map(|(key, _)| key.to_string()).collect();
        keys.sort();
        keys
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Read(u8),
    Invalidate(u8),
    Flush,
    Wait(u8),
    Resize(usize),
    SetTtl(u8),
    Sweep,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        20 => (0..24_u8).prop_map(Operation::Read),
        3 => (0..24_u8).prop_map(Operation::Invalidate),
        1 => Just(Operation::Flush),
        3 => (0..20_u8).prop_map(Operation::Wait),
        1 => (1..16_usize).prop_map(Operation::Resize),
        1 => (1..40_u8).prop_map(Operation::SetTtl),
        1 => Just(Operation::Sweep),
    ]
}

async fn wait(model: &mut Model, time: Duration) {
    advance(time).await;
    model.now += time;
}

async fn perform(cache: &TestCache, model: &mut Model, operation: &Operation) {
    match operation {
        Operation::Read(key) => {
            // Two reads of one client never share a nanosecond. A resize orders reads by their
            // time.
            wait(model, Duration::from_nanos(1)).await;
            assert_eq!(outcome(cache, &key.to_string()).await, model.read(*key));
        }
        Operation::Invalidate(key) => {
            cache.invalidate(key.to_string().as_bytes());
            model.entries.retain(|(other, _)| other != key);
        }
        Operation::Flush => {
            cache.invalidate_all();
            model.entries.clear();
        }
        Operation::Wait(seconds) => wait(model, SECOND * u32::from(*seconds)).await,
        Operation::Resize(_) | Operation::SetTtl(_) => {
            match operation {
                Operation::SetTtl(seconds) => model.ttl = SECOND * u32::from(*seconds),
                Operation::Resize(capacity) => model.resize(*capacity),
                _ => {}
            }
            cache.apply(&Settings { ttl: model.ttl, ..settings(model.capacity) });
            model.remove_expired();
        }
        Operation::Sweep => {
            cache.sweep();
            model.remove_expired();
        }
    }
    let statistics = cache.statistics();
    assert_eq!(keys(cache), model.keys());
    assert_eq!(statistics.entries, model.entries.len() as u64);
    assert_eq!(statistics.bytes, model.keys().iter().map(|key| 2 * key.len() as u64).sum::<u64>());
}

proptest! {
    // Set PROPTEST_CASES=3000 for a longer run.
    #![proptest_config(ProptestConfig::with_cases(std::env::var("PROPTEST_CASES").map_or(64, |cases| cases.parse().unwrap())))]

    #[test]
    fn sequential_client_matches_the_model(
        operations in prop::collection::vec(operation(), 1..200),
    ) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (now, entries) = (Duration::ZERO, VecDeque::new());
            let mut model = Model { capacity: 8, ttl: 30 * SECOND, now, entries };
            let cache = cache(Settings { ttl: model.ttl, ..settings(model.capacity) });
            for operation in &operations {
                perform(&cache, &mut model, operation).await;
            }
        });
    }
}
