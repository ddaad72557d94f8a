//! Reads that the order does not know of yet.
//!
//! To note a read in the order takes a lock, and lines of memory that only the order uses. So each thread keeps its last
//! reads to itself, and the order is told of those of all threads together: when one has as many as it can keep, and before
//! anything that depends on the order is decided. Then it is exact, and a read by itself costs two words that are at hand.
//!
//! The rule that must not be broken: reads are kept by the one thread that they are of, and taken only by whoever holds the
//! order's lock.

use std::sync::atomic::{
    AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

use super::entry::LruIndex;

/// A read of what stood at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadRecord {
    /// When, in nanoseconds on the cache's clock.
    pub(super) at: u64,
    pub(super) index: LruIndex,
    /// Part of the hash of what was read, since another key may stand there when the order is told.
    pub(super) tag: u32,
}

/// How many reads one thread keeps: so many that what is done for all of them together is little for each.
const CAPACITY: usize = 64;

/// The last reads of one thread.
pub(super) struct ReadBuffer {
    slots: [(AtomicU64, AtomicU64); CAPACITY],
    /// How many have ever been written, and taken.
    written: AtomicUsize,
    taken: AtomicUsize,
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        let slots = std::array::from_fn(|_| (AtomicU64::new(0), AtomicU64::new(0)));
        Self { slots, written: AtomicUsize::new(0), taken: AtomicUsize::new(0) }
    }

    /// Keeps a read; tells whether there was room.
    pub(super) fn push(&self, read: ReadRecord) -> bool {
        let written = self.written.load(Relaxed);
        if written.wrapping_sub(self.taken.load(Acquire)) == CAPACITY {
            return false;
        }
        let (at, what) = &self.slots[written % CAPACITY];
        // Reads of one thread are one behind the other, though they may have been taken up in the same moment.
        let last = self.slots[written.wrapping_sub(1) % CAPACITY].0.load(Relaxed);
        at.store(read.at.max(last + 1), Relaxed);
        what.store(u64::from(read.index) << 32 | u64::from(read.tag), Relaxed);
        self.written.store(written.wrapping_add(1), Release);
        true
    }

    /// Whether the thread has read at least as many as it can keep.
    pub(super) fn has_been_full(&self) -> bool {
        self.written.load(Relaxed) >= CAPACITY
    }

    /// Takes the reads that are kept, the earliest first.
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
