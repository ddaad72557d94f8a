//! The histories of the primaries, one after the other, and what a session has seen of them.
//!
//! Model: an epoch begins when a replica is promoted, with the data that it has. The previous
//! primary may go on for a while, for clients that do not know of the failover yet, so the epochs
//! overlap. A reply is right if it is right in one of the epochs in which the proxy may be then.
//!
//! A write that the previous primary acknowledged may be missing in the next epoch. A session that
//! has such a write never reads the older value in its place: its connection ends with the failover
//! (invariant T3). Before a cluster it does not end ([`Sessions`]).
//!
//! Nor does a session go back to a previous primary: not for a key, and for other keys not once it
//! has its reply or has written. The keys of one command, and commands that are sent together, may
//! be read from both: one from memory, while another waits for the next primary.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::model::Key;
use super::oracle::{History, Later, Read};
use super::world::lock;

/// An epoch, and a state of a key in it, by their numbers.
pub(super) type Place = (usize, usize);

/// The content of a key at the beginning of an epoch.
pub(super) struct KeyState {
    pub(super) key: Key,
    pub(super) content: Option<Vec<u8>>,
    pub(super) later: Later,
}

struct Epoch {
    history: Arc<Mutex<History>>,
    begun: Duration,
    /// The time by which the proxy knows that the next epoch has begun.
    left_by: Option<Duration>,
    /// The number of the state, in the previous epoch, with which each key begins.
    inherited: BTreeMap<Key, usize>,
}

pub(super) struct Epochs {
    all: Vec<Epoch>,
    sessions: Sessions,
}

/// The fate of the connections of clients in a failover.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sessions {
    /// They end, so no session goes on without a write of its own that is lost.
    End,
    /// They go on, as before a cluster. A lost write of the session is as any other.
    GoOn,
}

/// The states that a session has seen or written.
#[derive(Default)]
pub(super) struct Seen {
    /// The last epoch that it had seen when its present commands were sent, or has written in.
    epoch: usize,
    /// The last epoch that it has seen.
    newest: usize,
    read: BTreeMap<(usize, Key), usize>,
    written: BTreeMap<(usize, Key), usize>,
}

impl Seen {
    /// The session sends its next commands.
    pub(super) fn go_on(&mut self) {
        self.epoch = self.newest;
    }

    /// The session has read this state.
    pub(super) fn note_read(&mut self, key: &[u8], place: Option<Place>) {
        note(&mut self.read, &mut self.newest, key, place);
    }

    /// A write of the session was acknowledged, which led to this state.
    pub(super) fn note_written(&mut self, key: &[u8], place: Option<Place>) {
        note(&mut self.written, &mut self.newest, key, place);
        self.epoch = self.epoch.max(place.map_or(0, |(epoch, _)| epoch));
    }

    /// Whether the session may not read this key from this epoch any more.
    fn has_left(&self, epoch: usize, key: &[u8]) -> bool {
        let has_later = |all: &BTreeMap<(usize, Key), usize>| {
            all.range((epoch + 1, Key::new())..).any(|((_, one), _)| one == key)
        };
        epoch < self.epoch || has_later(&self.read) || has_later(&self.written)
    }
}

fn note(
    all: &mut BTreeMap<(usize, Key), usize>,
    newest: &mut usize,
    key: &[u8],
    place: Option<Place>,
) {
    let Some((epoch, number)) = place else { return };
    let highest = all.entry((epoch, key.to_vec())).or_default();
    *highest = number.max(*highest);
    *newest = epoch.max(*newest);
}

impl Epochs {
    pub(super) fn new(sessions: Sessions) -> Self {
        let first = Epoch {
            history: Arc::default(),
            begun: Duration::ZERO,
            left_by: None,
            inherited: BTreeMap::new(),
        };
        Self { all: vec![first], sessions }
    }

    /// Returns the history of the last epoch.
    pub(super) fn last(&self) -> Arc<Mutex<History>> {
        Arc::clone(&self.all[self.all.len() - 1].history)
    }

    /// Begins an epoch now with these contents. The proxy knows of it by `known_by`.
    pub(super) fn begin(
        &mut self,
        contents: Vec<KeyState>,
        now: Duration,
        known_by: Duration,
    ) -> Arc<Mutex<History>> {
        let (mut history, mut inherited) = (History::default(), BTreeMap::new());
        for KeyState { key, content, later } in contents {
            history.begin(&key, content, later);
        }
        let previous = self.all.last_mut().expect("an epoch");
        previous.left_by = Some(known_by);
        let mut before = lock(&previous.history);
        for key in before.keys() {
            let content = history.content(&key, now);
            let number = before.last_with(&key, content.as_deref(), now);
            inherited.insert(key, number.unwrap_or(usize::MAX));
        }
        drop(before);
        let history = Arc::new(Mutex::new(history));
        let epoch = Epoch { history: Arc::clone(&history), begun: now, left_by: None, inherited };
        self.all.push(epoch);
        history
    }

    /// The proxy may not know of the last failover before `until`.
    pub(super) fn delay_knowledge(&mut self, now: Duration, until: Duration) {
        for left_by in self.all.iter_mut().filter_map(|epoch| epoch.left_by.as_mut()) {
            if *left_by >= now {
                *left_by = until.max(*left_by);
            }
        }
    }

    /// Returns the number of the oldest state of this epoch that the session may read.
    fn oldest_state(&self, seen: &Seen, key: &[u8], epoch: usize) -> usize {
        let key = key.to_vec();
        let number = |all: &BTreeMap<(usize, Key), usize>, epoch| {
            all.get(&(epoch, key.clone())).copied().unwrap_or(0)
        };
        let mut carried = 0;
        let followed = if self.sessions == Sessions::End { 0..epoch } else { 0..0 };
        for earlier in followed {
            let written = carried.max(number(&seen.written, earlier));
            let kept = self.all[earlier + 1].inherited.get(&key).copied().unwrap_or(usize::MAX);
            carried = usize::from(written > kept);
        }
        carried.max(number(&seen.written, epoch)).max(number(&seen.read, epoch))
    }

    /// Judges a read. `seen`: what the session has seen; `None`: it may go back. A superseded state
    /// may also be one of an epoch that was left no longer than `grace` before.
    ///
    /// Returns the state that the reply stands for, if there is one only.
    ///
    /// # Errors
    /// The fault of the reply.
    pub(super) fn judge(
        &mut self,
        read: &Read<'_>,
        seen: Option<&Seen>,
        grace: Duration,
    ) -> Result<Option<Place>, String> {
        let (mut places, mut problem) = (Vec::new(), None);
        for (number, epoch) in self.all.iter().enumerate().rev() {
            let is_over = epoch.left_by.is_some_and(|by| by + grace < read.sent);
            let is_left = seen.is_some_and(|seen| seen.has_left(number, read.key));
            if epoch.begun > read.arrived || is_over || is_left {
                continue;
            }
            let oldest = seen.map_or(0, |seen| self.oldest_state(seen, read.key, number));
            let read = Read { seen: oldest, ..*read };
            match lock(&epoch.history).judge(&read) {
                Ok(state) => places.push((number, state)),
                Err(error) => problem = problem.or(Some(format!("{error} (epoch {number})"))),
            }
        }
        match (&places[..], problem) {
            ([], problem) => Err(problem.unwrap_or_else(|| "no epoch".to_owned())),
            ([place], _) => Ok(Some(*place)),
            _ => Ok(None),
        }
    }

    /// Returns the state to which the write of this content led.
    pub(super) fn place_of(&self, key: &[u8], content: &[u8]) -> Option<Place> {
        let mut each = self.all.iter().enumerate();
        each.find_map(|(epoch, one)| Some((epoch, lock(&one.history).number_of(key, content)?)))
    }

    /// Returns the first state of a key that began at `sent` or later, if there was one epoch only.
    pub(super) fn since(&self, key: &[u8], sent: Duration, now: Duration) -> Option<Place> {
        let (last, before) = self.all.split_last().expect("an epoch");
        let is_alone = before.iter().all(|epoch| epoch.left_by.is_none_or(|by| by < sent));
        let is_sure = is_alone && last.begun <= sent;
        is_sure.then(|| (before.len(), lock(&last.history).since(key, sent, now)))
    }

    /// Returns all keys that were ever read or written.
    pub(super) fn keys(&self) -> BTreeSet<Key> {
        self.all.iter().flat_map(|epoch| lock(&epoch.history).keys()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::ms;
    use super::*;

    const KEY: &[u8] = b"key";

    /// Returns epochs in which the first primary has `a` from 10 ms and `b` from 20 ms on. The
    /// second begins at 30 ms with `kept`, and is known by 50 ms.
    fn epochs(kept: &str) -> Epochs {
        epochs_with(Sessions::End, kept)
    }

    fn epochs_with(sessions: Sessions, kept: &str) -> Epochs {
        let mut epochs = Epochs::new(sessions);
        let first = epochs.last();
        for (text, at) in [("a", 10), ("b", 20)] {
            lock(&first).change(KEY, Some(text.into()), Later::new(), ms(at));
        }
        let content = Some(kept.as_bytes().to_vec());
        epochs.begin(
            vec![KeyState { key: KEY.to_vec(), content, later: Later::new() }],
            ms(30),
            ms(50),
        );
        epochs
    }

    fn judge(
        epochs: &mut Epochs,
        content: &str,
        sent: u64,
        seen: &Seen,
    ) -> Result<Option<Place>, String> {
        let (content, bound) = (Some(content.as_bytes()), ms(5));
        let (sent, arrived) = (ms(sent), ms(sent + 1));
        let read = Read { key: KEY, content, sent, arrived, seen: 0, bound };
        epochs.judge(&read, Some(seen), Duration::ZERO)
    }

    #[test]
    fn lost_write_is_not_read_back_by_its_session() {
        let mut epochs = epochs("a");
        let mut writer = Seen::default();
        assert_eq!(judge(&mut epochs, "a", 60, &writer), Ok(Some((1, 0))));
        writer.note_written(KEY, epochs.place_of(KEY, b"b"));
        assert!(judge(&mut epochs, "a", 60, &writer).unwrap_err().contains("has seen 1"));
        lock(&epochs.last()).change(KEY, Some(b"c".to_vec()), Later::new(), ms(61));
        assert_eq!(judge(&mut epochs, "c", 62, &writer), Ok(Some((1, 1))));
    }

    #[test]
    fn lost_write_may_be_missing_where_sessions_go_on() {
        let mut epochs = epochs_with(Sessions::GoOn, "a");
        let mut writer = Seen::default();
        writer.note_written(KEY, epochs.place_of(KEY, b"b"));
        writer.go_on();
        assert_eq!(judge(&mut epochs, "a", 60, &writer), Ok(Some((1, 0))));
        writer.note_read(KEY, Some((1, 0)));
        assert!(judge(&mut epochs, "b", 45, &writer).is_err(), "no way back");
    }

    #[test]
    fn kept_write_may_be_read_in_the_next_epoch() {
        let mut epochs = epochs("b");
        let mut writer = Seen::default();
        writer.note_written(KEY, epochs.place_of(KEY, b"b"));
        assert_eq!(judge(&mut epochs, "b", 60, &writer), Ok(Some((1, 0))));
        assert!(judge(&mut epochs, "a", 60, &writer).is_err());
    }

    #[test]
    fn previous_primary_is_read_until_the_failover_is_known() {
        let mut epochs = epochs("a");
        assert_eq!(judge(&mut epochs, "b", 50, &Seen::default()), Ok(Some((0, 2))));
        assert!(judge(&mut epochs, "b", 51, &Seen::default()).is_err());
        epochs.delay_knowledge(ms(40), ms(70));
        assert_eq!(judge(&mut epochs, "b", 51, &Seen::default()), Ok(Some((0, 2))));
    }

    #[test]
    fn session_never_returns_to_a_previous_primary() {
        let mut epochs = epochs("a");
        let mut seen = Seen::default();
        seen.note_read(KEY, Some((1, 0)));
        assert!(judge(&mut epochs, "b", 45, &seen).is_err());
    }

    #[test]
    fn other_key_is_left_with_the_next_command() {
        let mut epochs = epochs("a");
        let (mut reader, mut writer) = (Seen::default(), Seen::default());
        reader.note_read(b"other", Some((1, 0)));
        assert_eq!(judge(&mut epochs, "b", 45, &reader), Ok(Some((0, 2))));
        reader.go_on();
        assert!(judge(&mut epochs, "b", 45, &reader).is_err());
        writer.note_written(b"other", Some((1, 0)));
        assert!(judge(&mut epochs, "b", 45, &writer).is_err());
    }

    #[test]
    fn reply_of_two_epochs_stands_for_neither() {
        let mut epochs = epochs("b");
        assert_eq!(judge(&mut epochs, "b", 40, &Seen::default()), Ok(None));
        assert_eq!(epochs.since(KEY, ms(40), ms(41)), None);
        assert_eq!(epochs.since(KEY, ms(60), ms(61)), Some((1, 0)));
    }
}
