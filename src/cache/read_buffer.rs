//! Buffers of reads that the LRU list has not applied yet.
//!
//! A read recorded in the LRU list costs a lock and cache lines that only the list uses. Each
//! thread therefore buffers its last reads. The list applies the buffers of all threads together:
//! when one is full, and before any decision that depends on the order (invariant S2). The list is
//! exact at that point. A single read costs two words that are in the processor's cache.
//!
//! Each buffer is written by its own thread only, and drained only by the holder of the list's
//! lock.

use std::sync::atomic::{
    AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

use super::entry::LruIndex;

/// One read of the entry at an index of the LRU list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadRecord {
    /// Time of the read, in nanoseconds on the cache's clock.
    pub(super) at: u64,
    pub(super) index: LruIndex,
    /// Part of the hash of the key. Another key may have the index when the read is applied.
    pub(super) tag: u32,
}

/// Reads that one buffer holds: enough to make the cost of applying them together small for each
/// read.
const CAPACITY: usize = 64;

/// The last reads of one thread.
pub(super) struct ReadBuffer {
    slots: [(AtomicU64, AtomicU64); CAPACITY],
    /// Total numbers of reads written and drained.
    written: AtomicUsize,
    taken: AtomicUsize,
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        let slots = std::array::from_fn(|_| (AtomicU64::new(0), AtomicU64::new(0)));
        Self { slots, written: AtomicUsize::new(0), taken: AtomicUsize::new(0) }
    }

    /// Adds a read. Returns whether there was room.
    pub(super) fn push(&self, read: ReadRecord) -> bool {
        let written = self.written.load(Relaxed);
        if written.wrapping_sub(self.taken.load(Acquire)) == CAPACITY {
            return false;
        }
        let (at, what) = &self.slots[written % CAPACITY];
        // Times of one thread increase strictly, even for reads at the same instant. Otherwise
        // their order would be lost.
        let last = self.slots[written.wrapping_sub(1) % CAPACITY].0.load(Relaxed);
        at.store(read.at.max(last + 1), Relaxed);
        what.store(u64::from(read.index) << 32 | u64::from(read.tag), Relaxed);
        self.written.store(written.wrapping_add(1), Release);
        true
    }

    /// Whether the thread has read at least as many entries as the buffer holds.
    pub(super) fn has_been_full(&self) -> bool {
        self.written.load(Relaxed) >= CAPACITY
    }

    /// Removes all buffered reads and passes them to `to`, oldest first.
    pub(super) fn drain(&self, mut to: impl FnMut(ReadRecord)) {
        let written = self.written.load(Acquire);
        let mut taken = self.taken.load(Relaxed);
        while taken != written {
            let (at, what) = &self.slots[taken % CAPACITY];
            let what = what.load(Relaxed);
            #[expect(clippy::cast_possible_truncation, reason = "it is two halves in one word")]
            to(ReadRecord { at: at.load(Relaxed), index: (what >> 32) as u32, tag: what as u32 });
            taken = taken.wrapping_add(1);
        }
        self.taken.store(taken, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(number: u64) -> ReadRecord {
        ReadRecord { at: number, index: u32::MAX - 1, tag: u32::try_from(number).unwrap() }
    }

    fn take_all(buffer: &ReadBuffer) -> Vec<ReadRecord> {
        let mut taken = Vec::new();
        buffer.drain(|read| taken.push(read));
        taken
    }

    #[test]
    fn buffered_reads_drain_once_in_order() {
        let buffer = ReadBuffer::new();
        assert!(!buffer.has_been_full());
        for round in 0..5 {
            let slots: Vec<_> =
                (1..=CAPACITY as u64).map(|number| read(round * 1000 + number)).collect();
            assert!(slots.iter().all(|read| buffer.push(*read)));
            assert!(!buffer.push(read(0)), "there is no more room");
            assert!(buffer.has_been_full());
            assert_eq!(take_all(&buffer), slots);
            assert_eq!(take_all(&buffer), []);
        }
    }

    #[test]
    fn simultaneous_reads_keep_their_order() {
        let buffer = ReadBuffer::new();
        for tag in [7, 8, 9] {
            buffer.push(ReadRecord { at: 5, index: 1, tag });
        }
        let taken: Vec<_> = take_all(&buffer).iter().map(|read| (read.at, read.tag)).collect();
        assert_eq!(taken, [(5, 7), (6, 8), (7, 9)]);
    }

    #[test]
    fn buffer_fills_while_another_thread_drains() {
        let buffer = ReadBuffer::new();
        let mut taken = Vec::new();
        std::thread::scope(|scope| {
            let keeper = scope.spawn(|| {
                (1..100_000).filter(|number| buffer.push(read(*number))).collect::<Vec<_>>()
            });
            while !keeper.is_finished() {
                buffer.drain(|read| taken.push(read.at));
            }
            buffer.drain(|read| taken.push(read.at));
            assert_eq!(taken, keeper.join().unwrap());
        });
    }
}
