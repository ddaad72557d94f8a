//! The nodes of the stored entries, linked in segments from the newest to the oldest.
//!
//! All nodes are in one block of memory. A node is linked (it counts), evicting, or free. An
//! evicting node left its segment, but its eviction has not finished. Only that eviction may free
//! the node (invariant S1). Its index still belongs to a key in a table. Reused earlier, it would
//! belong to two keys.
//!
//! This module only moves nodes. Which node moves is decided by `LruList` and `window_tiny_lfu`.

use super::super::entry::{LruIndex, NOT_LINKED};

/// One segment of the order. A node is in exactly one while it is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Segment {
    /// Keys that have just been inserted. It is the only segment of `lru`.
    Window,
    /// Keys that were not read since they left the window, and the first to be evicted.
    Probation,
    /// Keys that were read while they were in probation.
    Protected,
}

/// The segments by their numbers. No node has the last number; with it, two bits of a word are
/// always an index.
const SEGMENTS: [Segment; 4] =
    [Segment::Window, Segment::Probation, Segment::Protected, Segment::Protected];

/// A node of 16 bytes, so four fit in one cache line and none spans two.
#[derive(Clone, Copy)]
struct Node {
    /// The next newer node; or [`EVICTING`] or [`FREE`].
    newer: LruIndex,
    older: LruIndex,
    /// The hash of the key, and in [`STATE`] the segment and the reads in the window.
    word: u64,
}

/// Marks an evicting node, in place of the newer link.
const EVICTING: LruIndex = NOT_LINKED - 1;
/// Marks a free node, in place of the newer link.
const FREE: LruIndex = NOT_LINKED - 2;
/// The largest number of nodes.
pub(super) const NODES_MAX: usize = FREE as usize - 1;

/// The bits of a word that are no part of the hash. [`hash_bits`] clears them in every hash.
const STATE: u64 = 0xf << STATE_SHIFT;
const STATE_SHIFT: u32 = 45;
const SEGMENT: u64 = 3 << STATE_SHIFT;
const READ: u64 = 1 << (STATE_SHIFT + 2);
const READS_MAX: u64 = 3;

/// Returns the part of a hash that nodes have room for. The cleared bits are in the middle, where
/// neither the choice of a table or of a thread cache's set nor a table of this size looks.
#[inline]
pub(crate) fn hash_bits(hash: u64) -> u64 {
    hash & !STATE
}

impl Node {
    #[inline]
    fn is_linked(self) -> bool {
        !matches!(self.newer, EVICTING | FREE)
    }

    #[inline]
    fn hash(self) -> u64 {
        hash_bits(self.word)
    }

    #[inline]
    fn segment(self) -> Segment {
        SEGMENTS[((self.word & SEGMENT) >> STATE_SHIFT) as usize]
    }
}

/// The ends and the length of one segment.
#[derive(Clone, Copy)]
struct Ends {
    newest: LruIndex,
    oldest: LruIndex,
    len: usize,
}

const EMPTY: Ends = Ends { newest: NOT_LINKED, oldest: NOT_LINKED, len: 0 };

/// All nodes.
pub(crate) struct Segments {
    nodes: Vec<Node>,
    ends: [Ends; SEGMENTS.len()],
    /// The first free node. The others follow through `older`.
    free: LruIndex,
}

impl Segments {
    pub(crate) fn new() -> Self {
        Self { nodes: Vec::new(), ends: [EMPTY; SEGMENTS.len()], free: NOT_LINKED }
    }

    /// Returns the bytes of all nodes.
    pub(crate) fn memory(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
    }

    /// Returns the number of linked nodes.
    pub(crate) fn len(&self) -> usize {
        self.ends.iter().map(|ends| ends.len).sum()
    }

    pub(super) fn len_of(&self, segment: Segment) -> usize {
        self.ends[segment as usize].len
    }

    pub(crate) fn oldest(&self, segment: Segment) -> Option<LruIndex> {
        Some(self.ends[segment as usize].oldest).filter(|index| *index != NOT_LINKED)
    }

    /// Returns the hash of the linked node at `index`, or `None` if no linked node is there.
    #[inline]
    pub(crate) fn linked_hash(&self, index: LruIndex) -> Option<u64> {
        // The index of a removed entry is `NOT_LINKED`, which is out of range.
        self.nodes.get(index as usize).filter(|node| node.is_linked()).map(|node| node.hash())
    }

    pub(super) fn hash(&self, index: LruIndex) -> u64 {
        self.nodes[index as usize].hash()
    }

    pub(super) fn segment(&self, index: LruIndex) -> Segment {
        self.nodes[index as usize].segment()
    }

    /// Returns the number of reads that [`count_read`](Self::count_read) counted since the node
    /// moved to its segment, 3 at most.
    pub(super) fn reads(&self, index: LruIndex) -> u64 {
        (self.nodes[index as usize].word / READ) & READS_MAX
    }

    pub(super) fn count_read(&mut self, index: LruIndex) {
        if self.reads(index) < READS_MAX {
            self.nodes[index as usize].word += READ;
        }
    }

    /// Adds a node for a key with this hash as the newest of `segment`. Returns its index.
    pub(crate) fn add(&mut self, segment: Segment, hash: u64) -> LruIndex {
        let node = Node { newer: NOT_LINKED, older: NOT_LINKED, word: hash_bits(hash) };
        let index = if self.free == NOT_LINKED {
            if self.nodes.len() == self.nodes.capacity() {
                // An eighth more, because doubled nodes would take more memory than their tables.
                self.nodes.reserve_exact(self.nodes.len() / 8 + 16);
            }
            self.nodes.push(node);
            LruIndex::try_from(self.nodes.len() - 1).unwrap_or(NOT_LINKED)
        } else {
            let index = self.free;
            self.free = std::mem::replace(&mut self.nodes[index as usize], node).older;
            index
        };
        self.link_newest(segment, index);
        index
    }

    /// Makes the linked node at `index` the newest of `segment`. Its count of reads starts again if
    /// the segment is another one.
    #[inline]
    pub(crate) fn move_to(&mut self, segment: Segment, index: LruIndex) {
        if self.ends[segment as usize].newest == index {
            return;
        }
        self.unlink(index);
        self.link_newest(segment, index);
    }

    /// Takes the node at `index` out of its segment. It stays evicting until it is
    /// [released](Self::release).
    pub(crate) fn begin_evict(&mut self, index: LruIndex) {
        self.unlink(index);
        self.nodes[index as usize].newer = EVICTING;
    }

    /// Frees the evicting node at `index` for reuse.
    pub(crate) fn release(&mut self, index: LruIndex) {
        let older = std::mem::replace(&mut self.free, index);
        self.nodes[index as usize] = Node { newer: FREE, older, word: 0 };
    }

    /// Returns the linked nodes from `position` on, at most `max` of them, and moves the position
    /// behind them. Visits `visits` nodes at most, so the result may be empty. Returns `None`
    /// at the end, and moves the position to the start.
    ///
    /// A node keeps its index while its key is stored, so no position ever skips a stored key.
    pub(crate) fn linked_from(
        &self,
        position: &mut LruIndex,
        max: usize,
        visits: usize,
    ) -> Option<Vec<(LruIndex, u64)>> {
        if *position as usize >= self.nodes.len() {
            *position = 0;
            return None;
        }
        let mut linked = Vec::new();
        for node in self.nodes.iter().skip(*position as usize).take(visits) {
            if linked.len() == max {
                break;
            }
            if node.is_linked() {
                linked.push((*position, node.hash()));
            }
            *position += 1;
        }
        Some(linked)
    }

    #[inline]
    fn unlink(&mut self, index: LruIndex) {
        let node = self.nodes[index as usize];
        let ends = &mut self.ends[node.segment() as usize];
        ends.len -= 1;
        match self.nodes.get_mut(node.newer as usize) {
            Some(newer) => newer.older = node.older,
            None => ends.newest = node.older,
        }
        match self.nodes.get_mut(node.older as usize) {
            Some(older) => older.newer = node.newer,
            None => ends.oldest = node.newer,
        }
    }

    #[inline]
    fn link_newest(&mut self, segment: Segment, index: LruIndex) {
        let ends = &mut self.ends[segment as usize];
        ends.len += 1;
        let older = std::mem::replace(&mut ends.newest, index);
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = index,
            None => ends.oldest = index,
        }
        let node = &mut self.nodes[index as usize];
        (node.newer, node.older) = (NOT_LINKED, older);
        let moved = u64::from(segment as u8) << STATE_SHIFT;
        if node.word & SEGMENT != moved {
            node.word = node.hash() | moved;
        }
    }

    /// Returns the linked indices of `segment`, oldest first.
    #[cfg(test)]
    pub(crate) fn indices(&self, segment: Segment) -> Vec<LruIndex> {
        let next = |index: &LruIndex| {
            Some(self.nodes[*index as usize].newer).filter(|index| *index != NOT_LINKED)
        };
        std::iter::successors(self.oldest(segment), next).collect()
    }
}
