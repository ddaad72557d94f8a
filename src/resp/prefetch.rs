//! Memory of several reads, fetched into the processor's cache before their lookups.

use crate::cache::{KeyGroup, TOGETHER};
use crate::proxy::Proxy;

/// The number of reads for which memory is prefetched together.
pub const PREFETCHED: usize = TOGETHER;

/// Prefetches the memory of the first of these keys, where there are several.
#[inline]
pub(super) fn prefetch<'a>(proxy: &Proxy, mut next: impl Iterator<Item = &'a [u8]>) {
    let group = KeyGroup::take_from(&mut next);
    if group.as_slice().len() > 1 {
        proxy.prefetch(group.as_slice());
    }
}
