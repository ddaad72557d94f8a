//! Memory of several reads, fetched into the processor's cache before their lookups.

use crate::proxy::Proxy;

/// The number of reads for which memory is prefetched together.
pub const PREFETCHED: usize = 16;

/// Prefetches the memory of the first of these keys, where there are several.
#[inline]
pub(super) fn prefetch<'a>(proxy: &Proxy, next: impl Iterator<Item = &'a [u8]>) {
    let (mut keys, mut count) = ([&[][..]; PREFETCHED], 0);
    for (key, place) in next.zip(&mut keys) {
        *place = key;
        count += 1;
    }
    if count > 1 {
        proxy.prefetch(&keys[..count]);
    }
}
