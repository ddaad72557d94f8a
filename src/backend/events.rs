//! The last events of a connection, for the log line of a stale answer.
//!
//! Model: a short list of the rare events, and counts of the pushes. A push costs two writes of a
//! word.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::time::Instant;

use crate::sync::lock;

/// The rare events that are kept.
const MOST: usize = 8;

/// The last events of the connections to one Redis.
#[derive(Debug)]
pub(super) struct Events {
    started: Instant,
    rare: Mutex<VecDeque<(Instant, &'static str)>>,
    /// The keys that were pushed.
    pushed: AtomicU64,
    /// The time of the last push, in milliseconds since the start.
    last_push: AtomicU64,
}

impl Events {
    pub(super) fn new() -> Self {
        let (rare, pushed, last_push) = Default::default();
        Self { started: Instant::now(), rare, pushed, last_push }
    }

    /// Records a rare event.
    pub(super) fn add(&self, event: &'static str) {
        let mut rare = lock(&self.rare);
        // An attempt to connect that fails again and again is one event.
        if rare.back().is_some_and(|(_, last)| *last == event) {
            rare.pop_back();
        }
        if rare.len() == MOST {
            rare.pop_front();
        }
        rare.push_back((Instant::now(), event));
    }

    /// Records a push of so many keys.
    pub(super) fn add_push(&self, keys: usize) {
        self.pushed.fetch_add(keys as u64, Relaxed);
        self.last_push.store(self.now(), Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the events in words, the oldest first.
    pub(super) fn text(&self) -> String {
        let (mut text, now) = (String::new(), Instant::now());
        for (at, event) in &*lock(&self.rare) {
            _ = write!(text, "{event} {:?} ago, ", now.saturating_duration_since(*at));
        }
        let pushed = self.pushed.load(Relaxed);
        _ = write!(text, "{pushed} keys pushed");
        if pushed > 0 {
            let since = self.now().saturating_sub(self.last_push.load(Relaxed));
            _ = write!(text, ", the last {since} ms ago");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_events_are_kept() {
        let events = Events::new();
        assert_eq!(events.text(), "0 keys pushed");
        events.add("connected");
        (0..100).for_each(|_| events.add("lost"));
        events.add_push(3);
        let text = events.text();
        assert!(text.starts_with("connected ") && text.contains(" ago, lost "), "{text}");
        assert!(text.contains("3 keys pushed, the last "), "{text}");
        (0..100).for_each(|number| events.add(if number % 2 == 0 { "connected" } else { "lost" }));
        assert_eq!(lock(&events.rare).len(), MOST);
    }
}
