//! The oracle: the history of each key, and the judgement of reads.
//!
//! Model: the life of a key at one primary is a sequence of states, each a text or an absence. A
//! state begins when the model of Redis runs a command, or at the end of a time to live, to the
//! nanosecond of virtual time. So no doubt favours the proxy, as it must with a real Redis. A reply
//! may stand for each state with its content. It is right if one of them
//!
//! - began before the reply arrived,
//! - was not superseded longer than the bound before the read was sent,
//! - and is no older than what the same session has seen or written before.

use std::collections::BTreeMap;
use std::time::Duration;

use super::model::Key;

/// The age at which superseded states are forgotten. Any bound is shorter.
const MEMORY: Duration = Duration::from_secs(60);

/// The contents that follow with time, each behind the end of the one before.
pub(super) type Later = Vec<(Duration, Option<Vec<u8>>)>;

struct State {
    content: Option<Vec<u8>>,
    begin: Duration,
    end: Option<Duration>,
    later: Later,
}

struct KeyHistory {
    states: Vec<State>,
    /// The number of states that are forgotten.
    forgotten: usize,
}

impl Default for KeyHistory {
    fn default() -> Self {
        Self::new(None, Later::new())
    }
}

impl KeyHistory {
    fn new(content: Option<Vec<u8>>, later: Later) -> Self {
        let first = State { content, begin: Duration::ZERO, end: None, later };
        Self { states: vec![first], forgotten: 0 }
    }

    /// Begins the states behind the ends that are over.
    fn settle(&mut self, now: Duration) {
        loop {
            let last = self.states.last_mut().expect("a state");
            if last.later.first().is_none_or(|(end, _)| *end > now) {
                return;
            }
            let (end, content) = last.later.remove(0);
            let later = std::mem::take(&mut last.later);
            last.end = Some(end);
            self.states.push(State { content, begin: end, end: None, later });
        }
    }

    fn forget(&mut self, now: Duration) {
        if self.states.len() > 512 {
            let is_old = |state: &State| state.end.is_some_and(|end| end + MEMORY < now);
            let old = self.states.iter().take_while(|state| is_old(state)).count();
            self.states.drain(..old);
            self.forgotten += old;
        }
    }
}

/// A read that has its reply.
pub(super) struct Read<'a> {
    pub(super) key: &'a [u8],
    pub(super) content: Option<&'a [u8]>,
    pub(super) sent: Duration,
    pub(super) arrived: Duration,
    /// The number of the oldest state that the session may see.
    pub(super) seen: usize,
    /// The time for which a superseded state may still be seen.
    pub(super) bound: Duration,
}

#[derive(Default)]
pub(super) struct History(BTreeMap<Key, KeyHistory>);

impl History {
    /// Begins with this content of a key.
    pub(super) fn begin(&mut self, key: &[u8], content: Option<Vec<u8>>, later: Later) {
        self.0.insert(key.to_vec(), KeyHistory::new(content, later));
    }

    /// Records that a key has this content from now on.
    pub(super) fn change(
        &mut self,
        key: &[u8],
        content: Option<Vec<u8>>,
        later: Later,
        now: Duration,
    ) {
        let history = history_of(&mut self.0, key);
        history.settle(now);
        let last = history.states.last_mut().expect("a state");
        if last.content == content {
            last.later = later;
            return;
        }
        last.end = Some(now);
        last.later.clear();
        history.states.push(State { content, begin: now, end: None, later });
        history.forget(now);
    }

    /// Returns the number of the first state that began at `moment` or later; otherwise that of the
    /// last one.
    pub(super) fn since(&mut self, key: &[u8], moment: Duration, now: Duration) -> usize {
        let history = history_of(&mut self.0, key);
        history.settle(now);
        let index = history.states.iter().position(|state| state.begin >= moment);
        history.forgotten + index.unwrap_or(history.states.len() - 1)
    }

    /// Returns the number of the last state with this content.
    pub(super) fn number_of(&self, key: &[u8], content: &[u8]) -> Option<usize> {
        let history = self.0.get(key)?;
        let is_it = |state: &State| state.content.as_deref() == Some(content);
        Some(history.forgotten + history.states.iter().rposition(is_it)?)
    }

    /// Returns the content of a key at `now`.
    pub(super) fn content(&mut self, key: &[u8], now: Duration) -> Option<Vec<u8>> {
        let history = self.0.get_mut(key)?;
        history.settle(now);
        history.states.last().and_then(|state| state.content.clone())
    }

    /// Returns the number of the last state with this content that has begun at `now`.
    pub(super) fn last_with(
        &mut self,
        key: &[u8],
        content: Option<&[u8]>,
        now: Duration,
    ) -> Option<usize> {
        let history = self.0.get_mut(key)?;
        history.settle(now);
        let is_it = |state: &State| state.content.as_deref() == content && state.begin <= now;
        Some(history.forgotten + history.states.iter().rposition(is_it)?)
    }

    /// Judges a read. Returns the number of the oldest state that its reply may stand for.
    ///
    /// # Errors
    /// The fault of the reply.
    pub(super) fn judge(&mut self, read: &Read<'_>) -> Result<usize, String> {
        let history = history_of(&mut self.0, read.key);
        history.settle(read.arrived);
        // States end in their order, so those that are too old come first. There are hundreds.
        let old = history.states.partition_point(|state| !state.is_within(read));
        let first = old.max(read.seen.saturating_sub(history.forgotten)).min(history.states.len());
        let is_it =
            |state: &State| state.begin <= read.arrived && state.content.as_deref() == read.content;
        match history.states[first..].iter().position(is_it) {
            Some(index) => Ok(history.forgotten + first + index),
            None => Err(history.fault(read)),
        }
    }

    /// Returns all keys that were ever read or written.
    pub(super) fn keys(&self) -> Vec<Key> {
        self.0.keys().cloned().collect()
    }
}

impl KeyHistory {
    /// Returns the fault of a reply that stands for no state that it may stand for.
    fn fault(&self, read: &Read<'_>) -> String {
        let matching: Vec<_> = (self.forgotten..)
            .zip(&self.states)
            .filter(|(_, state)| state.content.as_deref() == read.content)
            .collect();
        let begun: Vec<_> =
            matching.iter().filter(|(_, state)| state.begin <= read.arrived).collect();
        let within = begun.iter().rfind(|(_, state)| state.is_within(read));
        let problem = match (matching.last(), begun.last(), within) {
            (None, ..) => "was never there, or long ago".to_owned(),
            (_, None, _) => "was not there yet".to_owned(),
            (_, Some((number, state)), None) => {
                let late = read.sent.saturating_sub(state.end.unwrap_or(read.sent));
                format!(
                    "is state {number}, superseded {late:?} before; allowed are {:?}",
                    read.bound
                )
            }
            (_, _, Some((number, _))) => {
                format!("is state {number}, and the session has seen {}", read.seen)
            }
        };
        let content =
            read.content.map_or("nothing".to_owned(), |text| text.escape_ascii().to_string());
        format!("{} is {content}, which {problem}", read.key.escape_ascii())
    }
}

impl State {
    /// Whether it was not superseded longer than the bound before the read was sent.
    fn is_within(&self, read: &Read<'_>) -> bool {
        self.end.is_none_or(|end| end + read.bound >= read.sent)
    }
}

/// Returns the history of a key. Nearly always there is one.
fn history_of<'a>(all: &'a mut BTreeMap<Key, KeyHistory>, key: &[u8]) -> &'a mut KeyHistory {
    if !all.contains_key(key) {
        all.insert(key.to_vec(), KeyHistory::default());
    }
    all.get_mut(key).expect("a history")
}

#[cfg(test)]
mod tests {
    use super::super::world::ms;
    use super::*;

    const KEY: &[u8] = b"key";

    /// Returns a key that is `a` from 10 ms on and `b` from 20 ms on, until it ends at 30 ms.
    fn history() -> History {
        let mut history = History::default();
        history.change(KEY, Some(b"a".to_vec()), Later::new(), ms(10));
        history.change(KEY, Some(b"b".to_vec()), vec![(ms(30), None)], ms(20));
        history
    }

    fn judge(content: Option<&[u8]>, sent: u64, seen: usize, bound: u64) -> Result<usize, String> {
        let (sent, arrived, bound) = (ms(sent), ms(sent + 1), ms(bound));
        history().judge(&Read { key: KEY, content, sent, arrived, seen, bound })
    }

    #[test]
    fn superseded_value_is_valid_within_the_bound() {
        assert_eq!(judge(Some(b"a"), 25, 0, 5), Ok(1));
        assert!(judge(Some(b"a"), 26, 0, 5).unwrap_err().contains("superseded 6ms before"));
    }

    #[test]
    fn session_never_goes_back() {
        assert_eq!(judge(Some(b"a"), 21, 1, 5), Ok(1));
        assert!(judge(Some(b"a"), 21, 2, 5).unwrap_err().contains("the session has seen 2"));
    }

    #[test]
    fn value_is_absent_after_its_end() {
        assert_eq!(judge(None, 30, 2, 0), Ok(3));
        assert!(judge(None, 28, 2, 0).is_err());
        assert!(judge(Some(b"b"), 31, 0, 0).is_err());
        assert_eq!(judge(Some(b"b"), 31, 0, 1), Ok(2));
    }

    #[test]
    fn value_that_was_never_there_is_wrong() {
        assert!(judge(Some(b"c"), 25, 0, 99).unwrap_err().contains("never there"));
        assert!(judge(Some(b"b"), 18, 0, 99).unwrap_err().contains("not there yet"));
    }

    #[test]
    fn changed_end_replaces_the_previous_one() {
        let mut history = history();
        history.change(KEY, Some(b"b".to_vec()), Later::new(), ms(25));
        let (sent, arrived, bound) = (ms(90), ms(91), ms(0));
        let read = Read { key: KEY, content: Some(b"b"), sent, arrived, seen: 2, bound };
        assert_eq!(history.judge(&read), Ok(2));
    }

    #[test]
    fn fields_end_one_after_the_other() {
        let mut history = History::default();
        let later = vec![(ms(20), Some(b"g=2".to_vec())), (ms(30), None)];
        history.change(KEY, Some(b"f=1 g=2".to_vec()), later, ms(10));
        assert_eq!(history.content(KEY, ms(19)), Some(b"f=1 g=2".to_vec()));
        assert_eq!(history.content(KEY, ms(20)), Some(b"g=2".to_vec()));
        assert_eq!(history.content(KEY, ms(31)), None);
        assert_eq!(history.last_with(KEY, Some(b"g=2"), ms(31)), Some(2));
    }
}
