//! The random numbers of the system, which the seed decides too.
//!
//! tokio and the standard library draw theirs, for the branches of `select!` among others, from
//! `getrandom` of the C library. This one is linked in its place. Each thread has a sequence of its
//! own, so that threads of the test runner change nothing.

#![allow(unsafe_code, reason = "it stands in for a function of C")]

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use super::SEED;

thread_local! {
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// Returns the seed of this process: of the simulation, or any other in tests without one.
fn seed() -> u64 {
    static VALUE: OnceLock<u64> = OnceLock::new();
    *VALUE.get_or_init(|| {
        let given = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
        given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) << 32 | u64::from(std::process::id())
        })
    })
}

/// Returns a number of the sequence of a seed (`SplitMix64`).
pub(super) fn number(seed: u64, index: u64) -> u64 {
    let mixed = seed.wrapping_mul(0xd134_2543_de82_ef95);
    let mixed = mixed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Fills a buffer, as the function of the C library does.
///
/// # Safety
/// `length` bytes from `buffer` on can be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    for index in 0..length {
        let [byte, ..] = number(seed(), DRAWN.replace(DRAWN.get() + 1)).to_le_bytes();
        // SAFETY: the caller grants as many bytes.
        unsafe { buffer.add(index).write(byte) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
