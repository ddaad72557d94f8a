//! The proofs that the user may run a command: Redis has replied to it.
//!
//! The reply to `HGET` may follow from a kept one to `HGETALL`, though the user has no right to
//! `HGET`. So a reply is derived only after Redis has replied to a command of the same name.

use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

/// The most names. Commands behind them are never proven.
pub(super) const MAX_NAMES: usize = 128;

/// No proof, in the place of a generation.
const NEVER: u64 = u64::MAX;

/// The generation in which each command was last proven, by the index of its name.
pub(super) struct Proofs([AtomicU64; MAX_NAMES]);

impl Proofs {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(NEVER)))
    }

    /// Adds the proof of a reply to a request that was sent in this generation.
    pub(super) fn add(&self, name_index: usize, generation: u64) {
        if let Some(proof) = self.0.get(name_index) {
            proof.store(generation, Release);
        }
    }

    #[inline]
    pub(super) fn has(&self, name_index: usize, generation: u64) -> bool {
        self.0.get(name_index).is_some_and(|proof| proof.load(Acquire) == generation)
    }

    /// Ends the proofs of this generation for which `ends` returns true.
    pub(super) fn end_where(&self, ends: impl Fn(usize) -> bool, generation: u64) {
        for (name_index, proof) in self.0.iter().enumerate() {
            if ends(name_index) {
                // One that is added meanwhile may be lost, which costs one more request.
                _ = proof.compare_exchange(generation, NEVER, Release, Acquire);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_holds_for_its_name_and_generation() {
        let proofs = Proofs::new();
        assert!(!proofs.has(3, 7));
        proofs.add(3, 7);
        proofs.add(4, 7);
        assert_eq!([proofs.has(3, 7), proofs.has(3, 8), proofs.has(5, 7)], [true, false, false]);
        proofs.end_where(|name_index| name_index == 3, 7);
        assert_eq!([proofs.has(3, 7), proofs.has(4, 7)], [false, true]);
        proofs.end_where(|_| true, 6);
        assert!(proofs.has(4, 7), "the proof of another generation");
        proofs.add(MAX_NAMES, 7);
        assert!(!proofs.has(MAX_NAMES, 7));
    }
}
