//! The bytes that an allocation really takes: the allocator's size classes as a pure function.
//!
//! mimalloc has blocks of certain sizes only: multiples of 16 up to 64 bytes, then four sizes for
//! each power of two up to 512 KiB. A larger block takes whole pages. A block that needs more than
//! natural alignment is allocated with room to move its start.
//!
//! A bound on memory that counted requested bytes would be too low by up to a quarter. A test
//! compares this function with the allocator, so a change of the allocator cannot go unnoticed.

/// The largest block that shares a page with others.
const LARGEST_SHARED: usize = 512 << 10;
/// The page of the operating system.
const PAGE: usize = 4 << 10;
/// The largest size up to which blocks with a power of two as their size are aligned by it.
const LARGEST_ALIGNED: usize = 4 << 10;
/// The alignment of each block.
const MIN_ALIGNMENT: usize = 16;

/// Returns the size of the block for an allocation, in bytes; 0 for no allocation.
#[inline]
pub(super) fn block_size(size: usize, alignment: usize) -> usize {
    if size == 0 {
        return 0;
    }
    let block = class(size);
    let is_aligned = alignment <= size && block.is_power_of_two() && block <= LARGEST_ALIGNED;
    if is_aligned { block } else { class(size.max(MIN_ALIGNMENT) + alignment - 1) }
}

/// Returns the size of the smallest block that has this many bytes.
#[inline]
fn class(size: usize) -> usize {
    match size {
        0..=8 => 8,
        9..=64 => size.next_multiple_of(MIN_ALIGNMENT),
        65..=LARGEST_SHARED => {
            // Four sizes from one power of two to the next.
            let step: usize = 1 << (usize::BITS - 1 - (size - 1).leading_zeros()) >> 2;
            // The next multiple of a power of two, without a division.
            (size + step - 1) & !(step - 1)
        }
        // One page more for the description of the block.
        _ => size.next_multiple_of(PAGE) + PAGE,
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    /// Returns the smallest distance between blocks for `T`: the size of a block. Where blocks of
    /// earlier tests have left gaps, most distances are larger.
    fn measured<T>(length: usize) -> usize {
        let blocks: Vec<_> = (0..64).map(|_| Vec::<T>::with_capacity(length)).collect();
        let mut addresses: Vec<_> = blocks.iter().map(|block| block.as_ptr().addr()).collect();
        addresses.sort_unstable();
        addresses.windows(2).map(|two| two[1] - two[0]).min().expect("two blocks")
    }

    #[test]
    fn classes_of_bytes_are_those_of_the_allocator() {
        let sizes =
            (1..2000).chain([4_000, 5_120, 5_121, 10_000, 33_000, 70_000, 100_000, 300_000]);
        for size in sizes {
            assert_eq!(block_size(size, 1), measured::<u8>(size), "{size} bytes");
        }
    }

    #[test]
    fn words_take_no_more_than_their_class() {
        for length in (1..300).chain([1_000, 10_000, 40_000]) {
            let (expected, measured) = (block_size(8 * length, 8), measured::<u64>(length));
            assert!(measured <= expected, "{length} words take {measured} bytes, not {expected}");
            assert!(
                expected * 4 <= 5 * measured.max(32) + 20,
                "{length} words take {measured} bytes, not {expected}"
            );
        }
    }

    #[test]
    fn largest_blocks_take_whole_pages() {
        for size in [LARGEST_SHARED + 1, 1 << 20, 5_000_000] {
            let block = block_size(size, 1);
            assert!((size + PAGE..size + 2 * PAGE + 1).contains(&block), "{size}: {block}");
            assert!(block <= measured::<u8>(size));
        }
    }
}
