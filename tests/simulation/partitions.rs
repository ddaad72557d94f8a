//! The parts of the data that change their primary together: all of it, or each slot of a cluster.
//!
//! Each part has its own epochs. No promise is about two keys, so what a session has seen of one
//! slot says nothing about another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis_proxy::cluster::slot;

use super::epochs::{Epochs, KeyState, Place, Seen, Sessions};
use super::model::Key;
use super::oracle::{History, Read};

/// The number of a part: that of the slot in a cluster.
pub(super) type Part = u16;

/// The division of the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Division {
    Whole,
    Slots,
}

impl Division {
    pub(super) fn part_of(self, key: &[u8]) -> Part {
        match self {
            Self::Whole => 0,
            Self::Slots => slot(key),
        }
    }
}

/// The histories into which a primary writes the changes of its keys.
#[derive(Default)]
pub(super) struct Histories(BTreeMap<Part, Arc<Mutex<History>>>);

impl Histories {
    pub(super) fn get(&self, part: Part) -> Option<Arc<Mutex<History>>> {
        self.0.get(&part).cloned()
    }

    pub(super) fn add(&mut self, part: Part, history: Arc<Mutex<History>>) {
        self.0.insert(part, history);
    }

    pub(super) fn remove(&mut self, part: Part) {
        self.0.remove(&part);
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        self.0.keys().copied().collect()
    }
}

pub(super) struct Partitions {
    division: Division,
    all: BTreeMap<Part, Epochs>,
}

/// The states that a session has seen or written, of each part.
#[derive(Default)]
pub(super) struct Views(BTreeMap<Part, Seen>);

impl Views {
    /// The session sends its next commands.
    pub(super) fn go_on(&mut self) {
        self.0.values_mut().for_each(Seen::go_on);
    }
}

impl Partitions {
    /// The parts of these keys.
    pub(super) fn new<'a>(division: Division, keys: impl Iterator<Item = &'a Key>) -> Self {
        let sessions = match division {
            Division::Whole => Sessions::End,
            Division::Slots => Sessions::GoOn,
        };
        let all = keys.map(|key| (division.part_of(key), Epochs::new(sessions))).collect();
        Self { division, all }
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        self.all.keys().copied().collect()
    }

    fn of(&self, key: &[u8]) -> &Epochs {
        self.all.get(&self.division.part_of(key)).expect("a known part")
    }

    /// Returns the history of the last epoch of a part.
    pub(super) fn last(&self, part: Part) -> Arc<Mutex<History>> {
        self.all[&part].last()
    }

    /// Begins an epoch of these parts now. The proxy knows of it by `known_by`.
    pub(super) fn begin(
        &mut self,
        parts: &[Part],
        contents: Vec<KeyState>,
        now: Duration,
        known_by: Duration,
    ) -> Histories {
        let mut by_part: BTreeMap<Part, Vec<KeyState>> = BTreeMap::new();
        for state in contents {
            by_part.entry(self.division.part_of(&state.key)).or_default().push(state);
        }
        let mut histories = Histories::default();
        for part in parts {
            let epochs = self.all.get_mut(part).expect("a known part");
            let contents = by_part.remove(part).unwrap_or_default();
            histories.add(*part, epochs.begin(contents, now, known_by));
        }
        histories
    }

    /// The proxy may not know of the last failover before `until`.
    pub(super) fn delay_knowledge(&mut self, now: Duration, until: Duration) {
        self.all.values_mut().for_each(|epochs| epochs.delay_knowledge(now, until));
    }

    /// Judges a read, as [`Epochs::judge`] does, and notes what the session has seen.
    pub(super) fn judge(
        &mut self,
        read: &Read<'_>,
        views: &mut Views,
        may_go_back: bool,
        grace: Duration,
    ) -> Result<(), String> {
        let part = self.division.part_of(read.key);
        let seen = views.0.entry(part).or_default();
        let epochs = self.all.get_mut(&part).expect("a known part");
        let place = epochs.judge(read, (!may_go_back).then_some(&*seen), grace)?;
        seen.note_read(read.key, place);
        Ok(())
    }

    /// The session's write of this content was acknowledged. Returns whether Redis has run it.
    pub(super) fn note_written(&self, key: &[u8], content: &[u8], views: &mut Views) -> bool {
        let place = self.of(key).place_of(key, content);
        self.note(key, place, views);
        place.is_some()
    }

    /// The session deleted the key at `sent` or later.
    pub(super) fn note_deleted(
        &self,
        key: &[u8],
        sent: Duration,
        now: Duration,
        views: &mut Views,
    ) {
        self.note(key, self.of(key).since(key, sent, now), views);
    }

    fn note(&self, key: &[u8], place: Option<Place>, views: &mut Views) {
        let seen = views.0.entry(self.division.part_of(key)).or_default();
        seen.note_written(key, place);
    }

    /// Returns all keys that were ever read or written.
    pub(super) fn keys(&self) -> BTreeSet<Key> {
        self.all.values().flat_map(Epochs::keys).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::oracle::Later;
    use super::super::world::{lock, ms};
    use super::*;

    #[test]
    fn failover_of_one_slot_begins_no_epoch_of_another() {
        let (one, other): (Key, Key) = (b"{1}a".to_vec(), b"{2}a".to_vec());
        let mut all = Partitions::new(Division::Slots, [&one, &other].into_iter());
        let part = Division::Slots.part_of(&one);
        assert_ne!(part, Division::Slots.part_of(&other));
        for key in [&one, &other] {
            let last = all.last(Division::Slots.part_of(key));
            lock(&last).change(key, Some(b"x".to_vec()), Later::new(), ms(10));
        }
        all.begin(&[part], Vec::new(), ms(20), ms(30));
        for (key, is_right) in [(&one, false), (&other, true)] {
            let (content, sent, arrived) = (Some(&b"x"[..]), ms(40), ms(41));
            let read = Read { key, content, sent, arrived, seen: 0, bound: ms(1) };
            let judged = all.judge(&read, &mut Views::default(), false, Duration::ZERO);
            assert_eq!(judged.is_ok(), is_right, "{judged:?}");
        }
    }
}
