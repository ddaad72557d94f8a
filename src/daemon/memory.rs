//! The return of freed memory to the operating system.
//!
//! The allocator keeps freed memory for 10 ms, so that it can be used again. It returns what is
//! left in the course of later allocations. An idle daemon makes too few, and would keep the memory
//! of a full cache for as long as it stays idle after a flush. So the daemon makes them.
//!
//! The allocator has a function for this purpose, but calling it is `unsafe`.

use std::ffi::{c_int, c_long};
use std::hint::black_box;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::sleep;

/// The interval between two returns. One of them returns at least a quarter of what is left.
const INTERVAL: Duration = Duration::from_secs(2);
/// The number of allocations after which mimalloc returns memory (its option `generic_collect`).
const ALLOCATIONS: usize = 10_000;
/// The number of allocations before other tasks of the thread have their turn.
const AT_ONCE: usize = 500;
/// The size of an allocation in bytes. mimalloc does not count those of at most 1 KiB.
const SIZE: usize = 2 << 10;

/// The number of mimalloc's option `purge_delay` (`mi_option_e` in its `mimalloc.h`).
const PURGE_DELAY: c_int = 15;
/// The time in milliseconds for which freed memory is kept.
const DELAY: c_long = 10;
/// The variable with which mimalloc's own users set the delay.
const VARIABLE: &str = "MIMALLOC_PURGE_DELAY";

#[expect(
    unsafe_code,
    reason = "the one exception: with mimalloc's delay of a second, replies that replace each \
              other took up to 92.3 MB where 90.6 are allowed, and with 10 ms 80; no crate wraps \
              the function, and a program cannot set the variable for itself"
)]
mod allocator {
    use std::ffi::{c_int, c_long};

    use mimalloc as _; // so that it is linked

    // SAFETY: the declaration is that of `mimalloc.h`. The function stores a number in a static.
    unsafe extern "C" {
        pub(super) safe fn mi_option_set(option: c_int, value: c_long);
    }
}

/// Lets the allocator keep freed memory for a shorter time, unless its variable is set.
///
/// To be called first in the program. The first memory that is freed begins a delay, and nothing is
/// returned until that delay ends: with the default, in the first second of the program.
pub fn return_memory_sooner() {
    if std::env::var_os(VARIABLE).is_none() {
        allocator::mi_option_set(PURGE_DELAY, DELAY);
    }
}

/// Returns freed memory in intervals. Each takes about half a millisecond.
pub(super) async fn return_freed_memory() {
    loop {
        sleep(INTERVAL).await;
        for _ in 0..ALLOCATIONS / AT_ONCE {
            for _ in 0..AT_ONCE {
                drop(black_box(Vec::<u8>::with_capacity(SIZE)));
            }
            yield_now().await;
        }
    }
}
