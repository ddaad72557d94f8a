//! The LRU list: the order in which entries were last read, and the choice of the entry to evict.
//!
//! Each thread buffers its last reads ([`ReadBuffer`]). The list is exact once it has
//! [applied](LruList::apply_reads) them (invariant S2). `lru` has one segment of nodes and evicts
//! its oldest; [`AdaptiveTinyLfu`] decides about three.

use std::sync::Arc;

use super::entry::LruIndex;
use super::policy::{AdaptiveTinyLfu, CAPACITY_MAX, Segment, Segments};
use super::read_buffer::{ReadBuffer, ReadRecord};
use super::settings::Policy;

/// The most nodes that are visited at once, so that the lock of the list is held for some
/// microseconds only.
const SCAN_MAX: usize = 4096;

pub(super) struct LruList {
    nodes: Segments,
    capacity: usize,
    /// The policy `tinylfu`, boxed because `lru` has none.
    tiny_lfu: Option<Box<AdaptiveTinyLfu>>,
    /// The read buffer of each thread.
    read_buffers: Vec<Arc<ReadBuffer>>,
    /// Scratch space for the reads being applied; empty otherwise.
    pending: Vec<ReadRecord>,
}

/// Returns the part of a hash that distinguishes a key from nearly every other.
#[expect(clippy::cast_possible_truncation, reason = "a part is what is wanted")]
pub(super) fn hash_tag(hash: u64) -> u32 {
    hash as u32
}

impl LruList {
    /// Creates an empty list for `capacity` entries, of which memory has room for `max_entries`.
    pub(super) fn new(capacity: usize, policy: Policy, max_entries: usize) -> Self {
        let mut list = Self {
            nodes: Segments::new(),
            capacity,
            tiny_lfu: None,
            read_buffers: Vec::new(),
            pending: Vec::new(),
        };
        list.set_limits(capacity, policy, max_entries);
        list
    }

    /// Sets the capacity and the policy. Takes no time in proportion to the nodes: each policy
    /// accepts the segments of the other.
    pub(super) fn set_limits(&mut self, capacity: usize, policy: Policy, max_entries: usize) {
        self.capacity = capacity.min(CAPACITY_MAX);
        self.tiny_lfu = match policy {
            Policy::Lru => None,
            Policy::Tinylfu => {
                let reached = self.capacity.min(max_entries);
                Some(Box::new(AdaptiveTinyLfu::with_capacity(reached)))
            }
        };
    }

    /// Returns the bytes of the nodes and of the policy.
    pub(super) fn memory(&self) -> usize {
        self.nodes.memory() + self.tiny_lfu.as_ref().map_or(0, |tiny_lfu| tiny_lfu.memory())
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the linked nodes from `position` on, at most `max` of them, and moves the position
    /// behind them. Visits [`SCAN_MAX`] nodes at most, so the result may be empty. Returns `None`
    /// at the end, and moves the position to the start.
    ///
    /// A node keeps its index while its key is stored, so no position ever skips a stored key.
    pub(super) fn linked_from(
        &self,
        position: &mut LruIndex,
        max: usize,
    ) -> Option<Vec<(LruIndex, u64)>> {
        self.nodes.linked_from(position, max, SCAN_MAX)
    }

    /// Adds a node for a key with this hash. Returns its index.
    pub(super) fn push_newest(&mut self, hash: u64) -> LruIndex {
        match &mut self.tiny_lfu {
            None => self.nodes.add(Segment::Window, hash),
            Some(tiny_lfu) => tiny_lfu.add(&mut self.nodes, hash),
        }
    }

    /// Registers one more thread and returns its read buffer.
    pub(super) fn register_thread(&mut self) -> Arc<ReadBuffer> {
        let reads = Arc::new(ReadBuffer::new());
        self.read_buffers.push(Arc::clone(&reads));
        reads
    }

    /// Applies the buffered reads of all threads in the order of their times, and then `last`.
    pub(super) fn apply_reads(&mut self, last: Option<ReadRecord>) {
        let mut pending = std::mem::take(&mut self.pending);
        self.read_buffers.iter().for_each(|reads| reads.drain(|read| pending.push(read)));
        if !pending.is_sorted_by_key(|read| read.at) {
            pending.sort_by_key(|read| read.at);
        }
        pending.extend(last);
        for read in pending.drain(..) {
            self.record_read(read.index, read.tag);
        }
        self.pending = pending;
    }

    /// Records a read of the entry at `index`, if the entry there still has this `tag`.
    #[inline]
    fn record_read(&mut self, index: LruIndex, tag: u32) {
        let Some(hash) = self.nodes.linked_hash(index).filter(|hash| hash_tag(*hash) == tag) else {
            return;
        };
        match &mut self.tiny_lfu {
            None => self.nodes.move_to(Segment::Window, index),
            Some(tiny_lfu) => tiny_lfu.record_read(&mut self.nodes, index, hash),
        }
    }

    /// Removes the node at `index` and frees it. Its key has left the store.
    pub(super) fn remove(&mut self, index: LruIndex) {
        if self.nodes.linked_hash(index).is_some() {
            self.nodes.begin_evict(index);
            self.nodes.release(index);
        }
    }

    /// Evicts one node after an insertion if there are too many. The policy selects the victim,
    /// which may be the added node. Returns its index and hash. The node stays evicting until it is
    /// [released](Self::release).
    pub(super) fn evict_for_room(&mut self) -> Option<(LruIndex, u64)> {
        let Some(tiny_lfu) = &mut self.tiny_lfu else { return self.pop_surplus() };
        let victim = tiny_lfu.victim(&mut self.nodes, self.capacity)?;
        Some(self.evict(victim))
    }

    /// Evicts the node that the policy selects, because memory has no room for all. Returns its
    /// index and hash, or `None` if there is no node. The node stays evicting until it is
    /// [released](Self::release).
    pub(super) fn evict_for_memory(&mut self) -> Option<(LruIndex, u64)> {
        let fewer = self.len().checked_sub(1)?;
        let victim = match &mut self.tiny_lfu {
            None => self.oldest(),
            Some(tiny_lfu) => tiny_lfu.victim(&mut self.nodes, fewer),
        };
        victim.map(|victim| self.evict(victim))
    }

    /// Returns the node that `lru` evicts. There are nodes outside the window only if another
    /// policy moved them.
    fn oldest(&self) -> Option<LruIndex> {
        [Segment::Probation, Segment::Protected, Segment::Window]
            .into_iter()
            .find_map(|segment| self.nodes.oldest(segment))
    }

    /// Evicts the oldest node if there are too many. Returns its index and hash. The node stays
    /// evicting until it is [released](Self::release).
    pub(super) fn pop_surplus(&mut self) -> Option<(LruIndex, u64)> {
        let victim = match &self.tiny_lfu {
            None if self.len() <= self.capacity => None,
            None => self.oldest(),
            Some(tiny_lfu) => tiny_lfu.surplus(&self.nodes, self.capacity),
        };
        victim.map(|victim| self.evict(victim))
    }

    fn evict(&mut self, victim: LruIndex) -> (LruIndex, u64) {
        let hash = self.nodes.linked_hash(victim).unwrap_or_default();
        self.nodes.begin_evict(victim);
        (victim, hash)
    }

    /// Frees the evicting node at `index` for reuse.
    pub(super) fn release(&mut self, index: LruIndex) {
        self.nodes.release(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the linked indices, oldest first.
    fn indices(list: &LruList) -> Vec<LruIndex> {
        list.nodes.indices(Segment::Window)
    }

    #[test]
    fn read_entry_is_newest_and_oldest_is_evicted() {
        let mut list = LruList::new(3, Policy::Lru, usize::MAX);
        let [a, b, c] = [1, 2, 3].map(|hash| list.push_newest(hash));
        list.record_read(a, 1);
        assert_eq!(indices(&list), [b, c, a]);
        assert_eq!(list.pop_surplus(), None);
        let d = list.push_newest(4);
        assert_eq!(list.evict_for_room(), Some((b, 2)));
        assert_eq!((indices(&list), list.len()), (vec![c, a, d], 3));
    }

    #[test]
    fn buffered_reads_apply_in_read_order() {
        let mut list = LruList::new(9, Policy::Lru, usize::MAX);
        let [a, b, c] = [1, 2, 3].map(|hash| list.push_newest(hash));
        let threads = [list.register_thread(), list.register_thread()];
        let read = |at, index| ReadRecord { at, index, tag: index + 1 };
        for (thread, read) in
            [(0, read(10, c)), (0, read(40, a)), (1, read(20, b)), (1, read(30, c))]
        {
            assert!(threads[thread].push(read));
        }
        list.apply_reads(None);
        assert_eq!(indices(&list), [b, c, a]);
        list.apply_reads(None);
        assert_eq!(indices(&list), [b, c, a], "once");
    }

    #[test]
    fn evicting_index_is_not_reused() {
        let mut list = LruList::new(1, Policy::Lru, usize::MAX);
        let a = list.push_newest(1);
        let b = list.push_newest(2);
        assert_eq!(list.evict_for_room(), Some((a, 1)));
        list.record_read(a, 1);
        list.remove(a);
        let c = list.push_newest(3);
        assert!(c != a && c != b);
        list.release(a);
        assert_eq!(list.push_newest(4), a);
        assert_eq!(indices(&list), [b, c, a]);
    }

    #[test]
    fn read_of_a_previous_entry_is_ignored() {
        let mut list = LruList::new(9, Policy::Lru, usize::MAX);
        let a = list.push_newest(1);
        list.remove(a);
        let again = list.push_newest(2);
        let b = list.push_newest(3);
        list.record_read(again, 1);
        assert_eq!((again, indices(&list)), (a, vec![a, b]));
    }

    #[test]
    fn rarer_key_does_not_evict_the_oldest() {
        let mut list = LruList::new(20, Policy::Tinylfu, usize::MAX);
        let often: Vec<_> = (1..=20).map(|hash| list.push_newest(hash)).collect();
        for (index, tag) in often.iter().zip(1..) {
            (0..3).for_each(|_| list.record_read(*index, tag));
        }
        for hash in 100..200 {
            list.push_newest(hash);
            let (victim, victim_hash) = list.evict_for_room().unwrap();
            list.release(victim);
            assert!(victim_hash > 20 || hash < 110, "{victim_hash} made room for {hash}");
        }
        let kept = (0..20).filter(|at| list.nodes.linked_hash(often[*at]).is_some()).count();
        assert!(kept >= 15, "{kept} of 20");
    }

    #[test]
    fn policy_change_moves_nodes_step_by_step() {
        let mut list = LruList::new(100, Policy::Tinylfu, usize::MAX);
        for hash in 0..100 {
            let index = list.push_newest(hash);
            assert_eq!(list.evict_for_room(), None);
            list.record_read(index, hash_tag(hash));
        }
        assert!(list.nodes.oldest(Segment::Probation).is_some());
        list.set_limits(100, Policy::Lru, usize::MAX);
        let mut read = Vec::new();
        let mut position = 0;
        for (index, hash) in list.linked_from(&mut position, 200).unwrap() {
            list.record_read(index, hash_tag(hash));
            read.push(index);
        }
        assert_eq!(indices(&list), read, "all are in the one segment of lru");
        list.set_limits(10, Policy::Tinylfu, usize::MAX);
        let victims = std::iter::from_fn(|| list.pop_surplus());
        assert_eq!(victims.count(), 90);
        assert_eq!(list.len(), 10);
    }
}
