//! The order in which entries were last read, and which of them goes when there is no room.
//!
//! A list of places that are linked in both directions, in one block of memory. Each thread keeps its last reads to itself
//! ([`ReadBuffer`]); the list is right once it has [caught up](LruList::apply_reads) with them. A place is linked (it counts), leaving (it
//! was taken away, but whoever did has not finished with it), or free. Nobody else may make a leaving place free: its
//! number still stands with a key in a table, and given to another entry it would stand for two.

use std::sync::Arc;

use super::entry::{LruIndex, NOT_LINKED};
use super::frequency_sketch::FrequencySketch;
use super::read_buffer::{ReadBuffer, ReadRecord};
use super::settings::Policy;

/// So small that four are on one line of memory and none on two.
#[derive(Clone, Copy)]
struct ListNode {
    /// Or [`EVICTING`], or [`FREE`].
    newer: LruIndex,
    older: LruIndex,
    hash: u64,
}

/// In the place of the newer link: it is leaving.
const EVICTING: LruIndex = NOT_LINKED - 1;
/// The same: it is free.
const FREE: LruIndex = NOT_LINKED - 2;

impl ListNode {
    fn is_linked(self) -> bool {
        !matches!(self.newer, EVICTING | FREE)
    }
}

pub(super) struct LruList {
    nodes: Vec<ListNode>,
    newest: LruIndex,
    oldest: LruIndex,
    /// The first that is free; the others follow by `older`.
    free: LruIndex,
    len: usize,
    capacity: usize,
    /// How often keys were asked for, where that decides.
    sketch: Option<FrequencySketch>,
    /// The reads that each thread has kept.
    read_buffers: Vec<Arc<ReadBuffer>>,
    /// Those that are being noted; empty between.
    pending: Vec<ReadRecord>,
}

/// The part of a hash by which a key is told from nearly every other.
#[expect(clippy::cast_possible_truncation, reason = "a part is what is wanted")]
pub(super) fn hash_tag(hash: u64) -> u32 {
    hash as u32
}

impl LruList {
    pub(super) fn new(capacity: usize, policy: Policy) -> Self {
        let mut list = Self {
            nodes: Vec::new(),
            newest: NOT_LINKED,
            oldest: NOT_LINKED,
            free: NOT_LINKED,
            len: 0,
            capacity,
            sketch: None,
            read_buffers: Vec::new(),
            pending: Vec::new(),
        };
        list.set_limits(capacity, policy);
        list
    }

    pub(super) fn set_limits(&mut self, capacity: usize, policy: Policy) {
        self.capacity = capacity.min(FREE as usize - 1);
        self.sketch = match policy {
            Policy::Lru => None,
            Policy::Tinylfu => Some(FrequencySketch::with_capacity(self.capacity)),
        };
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A new place, the newest. What it is of has this hash.
    pub(super) fn push_newest(&mut self, hash: u64) -> LruIndex {
        let node = ListNode { newer: NOT_LINKED, older: NOT_LINKED, hash };
        let index = if self.free == NOT_LINKED {
            self.nodes.push(node);
            LruIndex::try_from(self.nodes.len() - 1).unwrap_or(NOT_LINKED)
        } else {
            let index = self.free;
            self.free = std::mem::replace(&mut self.nodes[index as usize], node).older;
            index
        };
        self.record_access(hash);
        self.len += 1;
        self.link_front(index);
        index
    }

    /// Where one more thread is to keep its reads.
    pub(super) fn register_thread(&mut self) -> Arc<ReadBuffer> {
        let reads = Arc::new(ReadBuffer::new());
        self.read_buffers.push(Arc::clone(&reads));
        reads
    }

    /// Notes the reads that threads have kept, in the order in which they were.
    pub(super) fn apply_reads(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        self.read_buffers.iter().for_each(|reads| reads.drain(|read| pending.push(read)));
        if !pending.is_sorted_by_key(|read| read.at) {
            pending.sort_by_key(|read| read.at);
        }
        for read in pending.drain(..) {
            self.record_read(read.index, read.tag);
        }
        self.pending = pending;
    }

    /// What is at `index` was read, if that is still what has this mark.
    pub(super) fn record_read(&mut self, index: LruIndex, tag: u32) {
        // What has left the store stands nowhere.
        let Some(&node) = self.nodes.get(index as usize) else { return };
        if !node.is_linked() || hash_tag(node.hash) != tag {
            return;
        }
        self.record_access(node.hash);
        if self.newest != index {
            self.unlink(index);
            self.link_front(index);
        }
    }

    fn record_access(&mut self, hash: u64) {
        if let Some(sketch) = &mut self.sketch {
            sketch.increment(hash);
        }
    }

    /// Takes away `index`, whose key is gone.
    pub(super) fn remove(&mut self, index: LruIndex) {
        if self.nodes[index as usize].is_linked() {
            self.begin_evict(index);
            self.release(index);
        }
    }

    /// If there are too many, takes away the oldest place, or the one that was just `added` if it is asked for less
    /// often. It is leaving until it is made free.
    pub(super) fn evict_for(&mut self, added: LruIndex) -> Option<(LruIndex, u64)> {
        let sketch = self.sketch.as_ref().filter(|_| self.len > self.capacity);
        let new = self.nodes[added as usize];
        let spares_oldest = sketch.is_some_and(|sketch| {
            let oldest = self.nodes[self.oldest as usize].hash;
            new.is_linked() && sketch.estimate(new.hash) <= sketch.estimate(oldest)
        });
        if spares_oldest {
            self.begin_evict(added);
            return Some((added, new.hash));
        }
        self.pop_surplus()
    }

    /// Takes away the oldest place if there are too many. It is leaving until it is made free.
    pub(super) fn pop_surplus(&mut self) -> Option<(LruIndex, u64)> {
        if self.len <= self.capacity {
            return None;
        }
        let oldest = self.oldest;
        self.begin_evict(oldest);
        Some((oldest, self.nodes[oldest as usize].hash))
    }

    fn begin_evict(&mut self, index: LruIndex) {
        self.unlink(index);
        self.nodes[index as usize].newer = EVICTING;
        self.len -= 1;
    }

    /// Lets `index`, which is leaving, be used again.
    pub(super) fn release(&mut self, index: LruIndex) {
        let older = std::mem::replace(&mut self.free, index);
        self.nodes[index as usize] = ListNode { newer: FREE, older, hash: 0 };
    }

    fn unlink(&mut self, index: LruIndex) {
        let ListNode { newer, older, .. } = self.nodes[index as usize];
        match self.nodes.get_mut(newer as usize) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_front(&mut self, index: LruIndex) {
        let older = std::mem::replace(&mut self.newest, index);
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = index,
            None => self.oldest = index,
        }
        let node = &mut self.nodes[index as usize];
        (node.newer, node.older) = (NOT_LINKED, older);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places from the oldest to the newest.
    fn indices(list: &LruList) -> Vec<LruIndex> {
        let next = |index: &LruIndex| {
            Some(list.nodes[*index as usize].newer).filter(|index| *index != NOT_LINKED)
        };
        std::iter::successors(Some(list.oldest).filter(|index| *index != NOT_LINKED), next)
            .collect()
    }

    #[test]
    fn what_is_read_is_the_newest_and_the_oldest_goes_first() {
        let mut list = LruList::new(3, Policy::Lru);
        let [a, b, c] = [1, 2, 3].map(|hash| list.push_newest(hash));
        list.record_read(a, 1);
        assert_eq!(indices(&list), [b, c, a]);
        assert_eq!(list.pop_surplus(), None);
        let d = list.push_newest(4);
        assert_eq!(list.evict_for(d), Some((b, 2)));
        assert_eq!((indices(&list), list.len()), (vec![c, a, d], 3));
    }

    #[test]
    fn reads_that_threads_have_kept_are_noted_in_the_order_in_which_they_were() {
        let mut list = LruList::new(9, Policy::Lru);
        let [a, b, c] = [1, 2, 3].map(|hash| list.push_newest(hash));
        let threads = [list.register_thread(), list.register_thread()];
        let read = |at, index| ReadRecord { at, index, tag: index + 1 };
        for (thread, read) in
            [(0, read(10, c)), (0, read(40, a)), (1, read(20, b)), (1, read(30, c))]
        {
            assert!(threads[thread].push(read));
        }
        list.apply_reads();
        assert_eq!(indices(&list), [b, c, a]);
        list.apply_reads();
        assert_eq!(indices(&list), [b, c, a], "once");
    }

    #[test]
    fn a_place_that_is_leaving_is_nobody_else_s() {
        let mut list = LruList::new(1, Policy::Lru);
        let a = list.push_newest(1);
        let b = list.push_newest(2);
        assert_eq!(list.evict_for(b), Some((a, 1)));
        list.record_read(a, 1);
        list.remove(a);
        let c = list.push_newest(3);
        assert!(c != a && c != b);
        list.release(a);
        assert_eq!(list.push_newest(4), a);
        assert_eq!(indices(&list), [b, c, a]);
    }

    #[test]
    fn a_read_of_what_a_place_was_of_before_changes_nothing() {
        let mut list = LruList::new(9, Policy::Lru);
        let a = list.push_newest(1);
        list.remove(a);
        let again = list.push_newest(2);
        let b = list.push_newest(3);
        list.record_read(again, 1);
        assert_eq!((again, indices(&list)), (a, vec![a, b]));
    }

    #[test]
    fn a_key_asked_for_less_often_than_the_oldest_does_not_drive_it_out() {
        let mut list = LruList::new(2, Policy::Tinylfu);
        let [a, b] = [1, 2].map(|hash| list.push_newest(hash));
        list.record_read(a, 1);
        list.record_read(b, 2);
        let c = list.push_newest(3);
        assert_eq!(list.evict_for(c), Some((c, 3)));
        list.release(c);
        (0..5).for_each(|_| list.record_access(4));
        let d = list.push_newest(4);
        assert_eq!(list.evict_for(d), Some((a, 1)));
    }
}
