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

use super::entry::Place;

/// A read of what stood at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    /// When, in nanoseconds on the cache's clock.
    pub(super) at: u64,
    pub(super) place: Place,
    /// Part of the hash of what was read, since another key may stand there when the order is told.
    pub(super) mark: u32,
}

/// How many reads one thread keeps: so many that what is done for all of them together is little for each.
const ROOM: usize = 64;

/// The last reads of one thread.
pub(super) struct Reads {
    kept: [(AtomicU64, AtomicU64); ROOM],
    /// How many have ever been written, and taken.
    written: AtomicUsize,
    taken: AtomicUsize,
}

impl Reads {
    pub(super) fn new() -> Self {
        let kept = std::array::from_fn(|_| (AtomicU64::new(0), AtomicU64::new(0)));
        Self { kept, written: AtomicUsize::new(0), taken: AtomicUsize::new(0) }
    }

    /// Keeps a read; tells whether there was room.
    pub(super) fn keep(&self, read: Read) -> bool {
        let written = self.written.load(Relaxed);
        if written.wrapping_sub(self.taken.load(Acquire)) == ROOM {
            return false;
        }
        let (at, what) = &self.kept[written % ROOM];
        // Reads of one thread are one behind the other, though they may have been taken up in the same moment.
        let last = self.kept[written.wrapping_sub(1) % ROOM].0.load(Relaxed);
        at.store(read.at.max(last + 1), Relaxed);
        what.store(u64::from(read.place) << 32 | u64::from(read.mark), Relaxed);
        self.written.store(written.wrapping_add(1), Release);
        true
    }

    /// Whether the thread has read at least as many as it can keep.
    pub(super) fn are_many(&self) -> bool {
        self.written.load(Relaxed) >= ROOM
    }

    /// Takes the reads that are kept, the earliest first.
    pub(super) fn take(&self, mut to: impl FnMut(Read)) {
        let written = self.written.load(Acquire);
        let mut taken = self.taken.load(Relaxed);
        while taken != written {
            let (at, what) = &self.kept[taken % ROOM];
            let what = what.load(Relaxed);
            #[expect(clippy::cast_possible_truncation, reason = "it is two halves in one word")]
            to(Read { at: at.load(Relaxed), place: (what >> 32) as u32, mark: what as u32 });
            taken = taken.wrapping_add(1);
        }
        self.taken.store(taken, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(number: u64) -> Read {
        Read { at: number, place: u32::MAX - 1, mark: u32::try_from(number).unwrap() }
    }

    fn take_all(reads: &Reads) -> Vec<Read> {
        let mut taken = Vec::new();
        reads.take(|read| taken.push(read));
        taken
    }

    #[test]
    fn what_is_kept_is_taken_once_and_in_order() {
        let reads = Reads::new();
        assert!(!reads.are_many());
        for round in 0..5 {
            let kept: Vec<_> =
                (1..=ROOM as u64).map(|number| read(round * 1000 + number)).collect();
            assert!(kept.iter().all(|read| reads.keep(*read)));
            assert!(!reads.keep(read(0)), "there is no more room");
            assert!(reads.are_many());
            assert_eq!(take_all(&reads), kept);
            assert_eq!(take_all(&reads), []);
        }
    }

    #[test]
    fn reads_of_the_same_moment_stay_one_behind_the_other() {
        let reads = Reads::new();
        for mark in [7, 8, 9] {
            reads.keep(Read { at: 5, place: 1, mark });
        }
        let taken: Vec<_> = take_all(&reads).iter().map(|read| (read.at, read.mark)).collect();
        assert_eq!(taken, [(5, 7), (6, 8), (7, 9)]);
    }

    #[test]
    fn a_thread_keeps_while_another_takes() {
        let reads = Reads::new();
        let mut taken = Vec::new();
        std::thread::scope(|scope| {
            let keeper = scope.spawn(|| {
                (1..100_000).filter(|number| reads.keep(read(*number))).collect::<Vec<_>>()
            });
            while !keeper.is_finished() {
                reads.take(|read| taken.push(read.at));
            }
            reads.take(|read| taken.push(read.at));
            assert_eq!(taken, keeper.join().unwrap());
        });
    }
}
