//! The order in which entries were last read, and which of them goes when there is no room.
//!
//! A list of places that are linked in both directions, in one block of memory. Each thread keeps its last reads to itself
//! ([`Reads`]); the list is right once it has [caught up](Order::catch_up) with them. A place is linked (it counts), leaving (it
//! was taken away, but whoever did has not finished with it), or free. Nobody else may make a leaving place free: its
//! number still stands with a key in a table, and given to another entry it would stand for two.

use std::sync::Arc;

use super::entry::{NOWHERE, Place};
use super::frequency_sketch::Frequencies;
use super::read_buffer::{Read, Reads};
use super::settings::Policy;

/// So small that four are on one line of memory and none on two.
#[derive(Clone, Copy)]
struct Link {
    /// Or [`LEAVING`], or [`FREE`].
    newer: Place,
    older: Place,
    hash: u64,
}

/// In the place of the newer link: it is leaving.
const LEAVING: Place = NOWHERE - 1;
/// The same: it is free.
const FREE: Place = NOWHERE - 2;

impl Link {
    fn is_linked(self) -> bool {
        !matches!(self.newer, LEAVING | FREE)
    }
}

pub(super) struct Order {
    links: Vec<Link>,
    newest: Place,
    oldest: Place,
    /// The first that is free; the others follow by `older`.
    free: Place,
    len: usize,
    capacity: usize,
    /// How often keys were asked for, where that decides.
    frequencies: Option<Frequencies>,
    /// The reads that each thread has kept.
    of_threads: Vec<Arc<Reads>>,
    /// Those that are being noted; empty between.
    late: Vec<Read>,
}

/// The part of a hash by which a key is told from nearly every other.
#[expect(clippy::cast_possible_truncation, reason = "a part is what is wanted")]
pub(super) fn mark(hash: u64) -> u32 {
    hash as u32
}

impl Order {
    pub(super) fn new(capacity: usize, policy: Policy) -> Self {
        let mut order = Self {
            links: Vec::new(),
            newest: NOWHERE,
            oldest: NOWHERE,
            free: NOWHERE,
            len: 0,
            capacity,
            frequencies: None,
            of_threads: Vec::new(),
            late: Vec::new(),
        };
        order.limit(capacity, policy);
        order
    }

    pub(super) fn limit(&mut self, capacity: usize, policy: Policy) {
        self.capacity = capacity.min(FREE as usize - 1);
        self.frequencies = match policy {
            Policy::Lru => None,
            Policy::Tinylfu => Some(Frequencies::of(self.capacity)),
        };
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A new place, the newest. What it is of has this hash.
    pub(super) fn add(&mut self, hash: u64) -> Place {
        let link = Link { newer: NOWHERE, older: NOWHERE, hash };
        let place = if self.free == NOWHERE {
            self.links.push(link);
            Place::try_from(self.links.len() - 1).unwrap_or(NOWHERE)
        } else {
            let place = self.free;
            self.free = std::mem::replace(&mut self.links[place as usize], link).older;
            place
        };
        self.note(hash);
        self.len += 1;
        self.put_in_front(place);
        place
    }

    /// Where one more thread is to keep its reads.
    pub(super) fn keep_reads(&mut self) -> Arc<Reads> {
        let reads = Arc::new(Reads::new());
        self.of_threads.push(Arc::clone(&reads));
        reads
    }

    /// Notes the reads that threads have kept, in the order in which they were.
    pub(super) fn catch_up(&mut self) {
        let mut late = std::mem::take(&mut self.late);
        self.of_threads.iter().for_each(|reads| reads.take(|read| late.push(read)));
        if !late.is_sorted_by_key(|read| read.at) {
            late.sort_by_key(|read| read.at);
        }
        for read in late.drain(..) {
            self.read(read.place, read.mark);
        }
        self.late = late;
    }

    /// What is at `place` was read, if that is still what has this mark.
    pub(super) fn read(&mut self, place: Place, mark_read: u32) {
        // What has left the store stands nowhere.
        let Some(&link) = self.links.get(place as usize) else { return };
        if !link.is_linked() || mark(link.hash) != mark_read {
            return;
        }
        self.note(link.hash);
        if self.newest != place {
            self.unlink(place);
            self.put_in_front(place);
        }
    }

    fn note(&mut self, hash: u64) {
        if let Some(frequencies) = &mut self.frequencies {
            frequencies.note(hash);
        }
    }

    /// Takes away `place`, whose key is gone.
    pub(super) fn remove(&mut self, place: Place) {
        if self.links[place as usize].is_linked() {
            self.take_away(place);
            self.free(place);
        }
    }

    /// If there are too many, takes away the oldest place, or the one that was just `added` if it is asked for less
    /// often. It is leaving until it is made free.
    pub(super) fn choose_between(&mut self, added: Place) -> Option<(Place, u64)> {
        let frequencies = self.frequencies.as_ref().filter(|_| self.len > self.capacity);
        let new = self.links[added as usize];
        let spares_oldest = frequencies.is_some_and(|frequencies| {
            let oldest = self.links[self.oldest as usize].hash;
            new.is_linked() && frequencies.of_hash(new.hash) <= frequencies.of_hash(oldest)
        });
        if spares_oldest {
            self.take_away(added);
            return Some((added, new.hash));
        }
        self.oldest_of_too_many()
    }

    /// Takes away the oldest place if there are too many. It is leaving until it is made free.
    pub(super) fn oldest_of_too_many(&mut self) -> Option<(Place, u64)> {
        if self.len <= self.capacity {
            return None;
        }
        let oldest = self.oldest;
        self.take_away(oldest);
        Some((oldest, self.links[oldest as usize].hash))
    }

    fn take_away(&mut self, place: Place) {
        self.unlink(place);
        self.links[place as usize].newer = LEAVING;
        self.len -= 1;
    }

    /// Lets `place`, which is leaving, be used again.
    pub(super) fn free(&mut self, place: Place) {
        let older = std::mem::replace(&mut self.free, place);
        self.links[place as usize] = Link { newer: FREE, older, hash: 0 };
    }

    fn unlink(&mut self, place: Place) {
        let Link { newer, older, .. } = self.links[place as usize];
        match self.links.get_mut(newer as usize) {
            Some(link) => link.older = older,
            None => self.newest = older,
        }
        match self.links.get_mut(older as usize) {
            Some(link) => link.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn put_in_front(&mut self, place: Place) {
        let older = std::mem::replace(&mut self.newest, place);
        match self.links.get_mut(older as usize) {
            Some(link) => link.newer = place,
            None => self.oldest = place,
        }
        let link = &mut self.links[place as usize];
        (link.newer, link.older) = (NOWHERE, older);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places from the oldest to the newest.
    fn places(order: &Order) -> Vec<Place> {
        let next = |place: &Place| {
            Some(order.links[*place as usize].newer).filter(|place| *place != NOWHERE)
        };
        std::iter::successors(Some(order.oldest).filter(|place| *place != NOWHERE), next).collect()
    }

    #[test]
    fn what_is_read_is_the_newest_and_the_oldest_goes_first() {
        let mut order = Order::new(3, Policy::Lru);
        let [a, b, c] = [1, 2, 3].map(|hash| order.add(hash));
        order.read(a, 1);
        assert_eq!(places(&order), [b, c, a]);
        assert_eq!(order.oldest_of_too_many(), None);
        let d = order.add(4);
        assert_eq!(order.choose_between(d), Some((b, 2)));
        assert_eq!((places(&order), order.len()), (vec![c, a, d], 3));
    }

    #[test]
    fn reads_that_threads_have_kept_are_noted_in_the_order_in_which_they_were() {
        let mut order = Order::new(9, Policy::Lru);
        let [a, b, c] = [1, 2, 3].map(|hash| order.add(hash));
        let threads = [order.keep_reads(), order.keep_reads()];
        let read = |at, place| Read { at, place, mark: place + 1 };
        for (thread, read) in
            [(0, read(10, c)), (0, read(40, a)), (1, read(20, b)), (1, read(30, c))]
        {
            assert!(threads[thread].keep(read));
        }
        order.catch_up();
        assert_eq!(places(&order), [b, c, a]);
        order.catch_up();
        assert_eq!(places(&order), [b, c, a], "once");
    }

    #[test]
    fn a_place_that_is_leaving_is_nobody_else_s() {
        let mut order = Order::new(1, Policy::Lru);
        let a = order.add(1);
        let b = order.add(2);
        assert_eq!(order.choose_between(b), Some((a, 1)));
        order.read(a, 1);
        order.remove(a);
        let c = order.add(3);
        assert!(c != a && c != b);
        order.free(a);
        assert_eq!(order.add(4), a);
        assert_eq!(places(&order), [b, c, a]);
    }

    #[test]
    fn a_read_of_what_a_place_was_of_before_changes_nothing() {
        let mut order = Order::new(9, Policy::Lru);
        let a = order.add(1);
        order.remove(a);
        let again = order.add(2);
        let b = order.add(3);
        order.read(again, 1);
        assert_eq!((again, places(&order)), (a, vec![a, b]));
    }

    #[test]
    fn a_key_asked_for_less_often_than_the_oldest_does_not_drive_it_out() {
        let mut order = Order::new(2, Policy::Tinylfu);
        let [a, b] = [1, 2].map(|hash| order.add(hash));
        order.read(a, 1);
        order.read(b, 2);
        let c = order.add(3);
        assert_eq!(order.choose_between(c), Some((c, 3)));
        order.free(c);
        (0..5).for_each(|_| order.note(4));
        let d = order.add(4);
        assert_eq!(order.choose_between(d), Some((a, 1)));
    }
}
