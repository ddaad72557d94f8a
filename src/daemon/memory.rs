//! The return of freed memory to the operating system.
//!
//! The allocator keeps freed memory for a second, so that it can be used again. It returns what is
//! left in the course of later allocations. An idle daemon makes too few, and would keep the memory
//! of a full cache for as long as it stays idle after a flush. So the daemon makes them.
//!
//! The allocator has a function for this purpose, but calling it is `unsafe`.

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
