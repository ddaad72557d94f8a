//! The LRU list: the order in which entries were last read, and the choice of the entry to evict.
//!
//! The list is doubly linked, with all nodes in one block of memory. Each thread buffers its last
//! reads ([`ReadBuffer`]). The list is exact once it has [applied](LruList::apply_reads) them
//! (invariant S2).
//!
//! A node is linked (it counts), evicting, or free. An evicting node left the list, but its
//! eviction has not finished. Only that eviction may free the node (invariant S1). Its index still
//! belongs to a key in a table. Reused earlier, it would belong to two keys.

use std::sync::Arc;

use super::entry::{LruIndex, NOT_LINKED};
use super::frequency_sketch::FrequencySketch;
use super::read_buffer::{ReadBuffer, ReadRecord};
use super::settings::Policy;

/// A node of 16 bytes, so four fit in one cache line and none spans two.
#[derive(Clone, Copy)]
struct ListNode {
    /// The next newer node; or [`EVICTING`] or [`FREE`].
    newer: LruIndex,
    older: LruIndex,
    hash: u64,
}

/// Marks an evicting node, in place of the newer link.
const EVICTING: LruIndex = NOT_LINKED - 1;
/// Marks a free node, in place of the newer link.
const FREE: LruIndex = NOT_LINKED - 2;

impl ListNode {
    fn is_linked(self) -> bool {
        !matches!(self.newer, EVICTING | FREE)
    }
}

/// The most nodes that are visited at once, so that the lock of the list is held for some
/// microseconds only.
const SCAN_MAX: usize = 4096;

pub(super) struct LruList {
    nodes: Vec<ListNode>,
    newest: LruIndex,
    oldest: LruIndex,
    /// The first free node. The others follow through `older`.
    free: LruIndex,
    len: usize,
    capacity: usize,
    /// Access frequencies, only for a policy that uses them.
    sketch: Option<FrequencySketch>,
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
        if *position as usize >= self.nodes.len() {
            *position = 0;
            return None;
        }
        let mut linked = Vec::new();
        let rest = self.nodes.iter().skip(*position as usize).take(SCAN_MAX);
        for node in rest {
            if linked.len() == max {
                break;
            }
            if node.is_linked() {
                linked.push((*position, node.hash));
            }
            *position += 1;
        }
        Some(linked)
    }

    /// Adds a node as the newest, for a key with this hash. Returns its index.
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

    /// Registers one more thread and returns its read buffer.
    pub(super) fn register_thread(&mut self) -> Arc<ReadBuffer> {
        let reads = Arc::new(ReadBuffer::new());
        self.read_buffers.push(Arc::clone(&reads));
        reads
    }

    /// Applies the buffered reads of all threads in the order of their times.
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

    /// Records a read of the entry at `index`, if the entry there still has this `tag`.
    pub(super) fn record_read(&mut self, index: LruIndex, tag: u32) {
        // The index of a removed entry is `NOT_LINKED`, which is out of range.
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

    /// Removes the node at `index` and frees it. Its key has left the store.
    pub(super) fn remove(&mut self, index: LruIndex) {
        if self.nodes[index as usize].is_linked() {
            self.begin_evict(index);
            self.release(index);
        }
    }

    /// Evicts one node if there are too many. The victim is the oldest node, or the `added` one if
    /// the policy estimates it as read no more often. Returns the index and hash of the victim,
    /// which stays evicting until it is [released](Self::release).
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

    /// Evicts the oldest node if there are too many. Returns its index and hash. The node stays
    /// evicting until it is [released](Self::release).
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

    /// Frees the evicting node at `index` for reuse.
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

    /// Returns the linked indices, oldest first.
    fn indices(list: &LruList) -> Vec<LruIndex> {
        let next = |index: &LruIndex| {
            Some(list.nodes[*index as usize].newer).filter(|index| *index != NOT_LINKED)
        };
        std::iter::successors(Some(list.oldest).filter(|index| *index != NOT_LINKED), next)
            .collect()
    }

    #[test]
    fn read_entry_is_newest_and_oldest_is_evicted() {
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
    fn buffered_reads_apply_in_read_order() {
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
    fn evicting_index_is_not_reused() {
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
    fn read_of_a_previous_entry_is_ignored() {
        let mut list = LruList::new(9, Policy::Lru);
        let a = list.push_newest(1);
        list.remove(a);
        let again = list.push_newest(2);
        let b = list.push_newest(3);
        list.record_read(again, 1);
        assert_eq!((again, indices(&list)), (a, vec![a, b]));
    }

    #[test]
    fn rarer_key_does_not_evict_the_oldest() {
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
