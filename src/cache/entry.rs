//! One reply of Redis, and how long it may be served.
//!
//! An entry is fresh, stale or expired. Freshness depends on the current time, the entry's own
//! clock, the TTLs in force and the lease. It is computed at each read (invariant E1), so a TTL
//! changed at run time applies at once to cached entries. An entry's clock starts before its fetch
//! is sent, so an entry is never younger than the reply.
//!
//! An entry is one allocation, with the key and a small value at its end. With many keys, the cost
//! of a read is the wait for memory that is not in the processor's cache. One allocation means one
//! such wait.

use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use super::lease::Validity;
use super::ttl::{Ttls, as_nanos};
use crate::key::Key;

/// The index of an entry's node in the LRU list.
pub(super) type LruIndex = u32;

/// No index. The list can therefore have one node fewer than there are numbers.
pub(super) const NOT_LINKED: LruIndex = LruIndex::MAX;

/// The permitted use of an entry at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// May be served, for `remaining` from now on.
    Fresh {
        /// Remaining time of freshness.
        remaining: Duration,
    },
    /// May be served only while Redis is unavailable; was fresh until `past` ago.
    Stale {
        /// Time since the entry stopped being fresh.
        past: Duration,
    },
    /// Must not be served.
    Expired,
}

/// The bytes of a value, with a digest that identifies them.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a> {
    /// The value as stored in Redis.
    pub bytes: &'a [u8],
    entry: &'a Entry,
}

impl<'a> Value<'a> {
    /// Returns the first 16 bytes of the BLAKE3 hash of the value. Equal digests mean equal values.
    /// The first call takes time in proportion to the length of the value; later calls return the
    /// stored digest.
    pub fn digest(&self) -> &'a [u8; 16] {
        self.entry.digest.get_or_init(|| {
            let mut digest = [0; 16];
            blake3::Hasher::new().update(self.bytes).finalize_xof().fill(&mut digest);
            digest
        })
    }

    /// Returns the value as owned bytes: a small value is copied, a large one is shared.
    pub fn to_bytes(&self) -> Bytes {
        match &self.entry.payload {
            Payload::Heap(heap) => heap.1.clone().unwrap_or_default(),
            Payload::Inline { .. } => Bytes::copy_from_slice(self.bytes),
        }
    }
}

/// The reply of Redis for one key, and the time of its request. Times are nanoseconds on the
/// cache's clock.
#[derive(Debug)]
pub struct Entry<B: ?Sized = [u8]> {
    fetched_at: u64,
    /// The key's own time to live in Redis, from `fetched_at` on. The maximum means that the key
    /// does not expire.
    expires_after: u64,
    /// Computed on first use, because most values never need a digest.
    digest: OnceLock<[u8; 16]>,
    /// Index in the LRU list; [`NOT_LINKED`] while the entry is not in the store.
    lru_index: AtomicU32,
    payload: Payload,
    bytes: B,
}

/// The location of key and value. A negative entry has no value.
#[derive(Debug)]
enum Payload {
    /// Key, then value, at the end of the entry; the numbers are their lengths in bytes.
    Inline { key: u32, value: Option<u32> },
    /// A separate allocation, because together they are larger than [`MAX_INLINE`].
    Heap(Box<(Key, Option<Bytes>)>),
}

impl Entry {
    /// Creates an entry for a fetch of `key` that began at `fetched_at`. A `value` of `None` means
    /// that the key does not exist. `expires_in` is the key's own time to live in Redis (`PTTL`).
    pub(super) fn new(
        key: &Key,
        value: Option<Bytes>,
        fetched_at: u64,
        expires_in: Option<Duration>,
    ) -> Arc<Self> {
        let expires_after = expires_in.map_or(u64::MAX, as_nanos);
        let length = |bytes: usize| u32::try_from(bytes).ok();
        let (key_length, value_length) =
            (length(key.len()), value.as_ref().map(|value| length(value.len())));
        let total = key.len().saturating_add(value.as_ref().map_or(0, Bytes::len));
        match (key_length, value_length) {
            (Some(key_length), None | Some(Some(_))) if total <= MAX_INLINE => {
                let payload = Payload::Inline { key: key_length, value: value_length.flatten() };
                allocate(
                    fetched_at,
                    expires_after,
                    payload,
                    [key.as_bytes(), value.as_deref().unwrap_or_default()],
                )
            }
            _ => allocate(
                fetched_at,
                expires_after,
                Payload::Heap(Box::new((key.clone(), value))),
                [&[], &[]],
            ),
        }
    }

    /// Returns the requested key.
    pub fn key(&self) -> &[u8] {
        match &self.payload {
            Payload::Inline { key, .. } => &self.bytes[..*key as usize],
            Payload::Heap(heap) => heap.0.as_bytes(),
        }
    }

    /// Returns the value, or `None` if the key does not exist in Redis.
    #[inline]
    pub fn value(&self) -> Option<Value<'_>> {
        let bytes = match &self.payload {
            Payload::Inline { key, value } => &self.bytes[*key as usize..][..(*value)? as usize],
            Payload::Heap(heap) => heap.1.as_ref()?,
        };
        Some(Value { bytes, entry: self })
    }

    /// Returns the time from the request to `now`.
    pub(super) fn age(&self, now: u64) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.fetched_at))
    }

    /// Returns the freshness at `now`. The entry expires when its key expires in Redis, stale or
    /// not. It becomes stale when its TTL or the lease ends, whichever is first.
    pub(super) fn freshness(&self, now: u64, ttls: Ttls, validity: Validity) -> Freshness {
        let lived = now.saturating_sub(self.fetched_at);
        if lived >= self.expires_after {
            return Freshness::Expired;
        }
        let (ttl, grace) = if self.is_negative() {
            (ttls.negative_ttl_for(validity), 0)
        } else {
            (ttls.ttl, ttls.stale_if_error)
        };
        let expired_for = lived.checked_sub(ttl);
        let past = match validity {
            Validity::Expired { since } => {
                Some(as_nanos(since).max(expired_for.unwrap_or_default()))
            }
            Validity::TtlOnly | Validity::Tracked => expired_for,
        };
        match past {
            None => Freshness::Fresh {
                remaining: Duration::from_nanos((ttl - lived).min(self.expires_after - lived)),
            },
            Some(past) if past < grace => Freshness::Stale { past: Duration::from_nanos(past) },
            Some(_) => Freshness::Expired,
        }
    }

    fn is_negative(&self) -> bool {
        match &self.payload {
            Payload::Inline { value, .. } => value.is_none(),
            Payload::Heap(heap) => heap.1.is_none(),
        }
    }

    /// Returns the bytes of key and value, without overhead.
    pub fn size(&self) -> usize {
        self.key().len() + self.value().map_or(0, |value| value.bytes.len())
    }

    /// Reads the head of the entry, and the first, middle and last byte of its inline data. This
    /// loads them into the processor's cache. A small entry has no other cache lines.
    pub(super) fn touch(&self) -> u32 {
        let byte = |at: usize| self.bytes.get(at).copied().map_or(0, u32::from);
        let length = self.bytes.len();
        let head =
            u32::from(matches!(self.payload, Payload::Heap(_))) ^ self.lru_index.load(Relaxed);
        head ^ byte(0) ^ byte(length / 2) ^ byte(length.saturating_sub(1))
    }

    /// Returns the index in the LRU list, or [`NOT_LINKED`] if the entry is not in the store.
    pub(super) fn lru_index(&self) -> LruIndex {
        self.lru_index.load(Acquire)
    }

    /// Sets the index. The caller holds the lock of the key's table.
    pub(super) fn set_index(&self, index: LruIndex) {
        self.lru_index.store(index, Release);
    }

    /// Marks the entry as removed from the store (invariant S3). The caller holds the lock of the
    /// key's table.
    pub(super) fn unlink(&self) {
        self.set_index(NOT_LINKED);
    }

    /// Whether the entry is in the store.
    pub(super) fn is_linked(&self) -> bool {
        self.lru_index() != NOT_LINKED
    }
}

/// Generates the allocation of an entry with the smallest capacity that fits. With the entry's head
/// and the two counters of the `Arc`, the sizes match the allocator's size classes.
macro_rules! capacities {
    ($($capacity:literal)+; $largest:literal) => {
        /// The largest sum of key and value, in bytes, that is stored inline.
        const MAX_INLINE: usize = $largest;

        fn allocate(fetched_at: u64, expires_after: u64, payload: Payload, parts: [&[u8]; 2]) -> Arc<Entry> {
            let length = parts[0].len() + parts[1].len();
            $(if length <= $capacity {
                return with_capacity::<$capacity>(fetched_at, expires_after, payload, parts);
            })+
            with_capacity::<MAX_INLINE>(fetched_at, expires_after, payload, parts)
        }
    };
}
capacities!(8 24 40 56 88 120 152 184 248 312 376 440 568 696 824; 952);

fn with_capacity<const CAPACITY: usize>(
    fetched_at: u64,
    expires_after: u64,
    payload: Payload,
    [key, value]: [&[u8]; 2],
) -> Arc<Entry> {
    let mut bytes = [0; CAPACITY];
    bytes[..key.len()].copy_from_slice(key);
    bytes[key.len()..][..value.len()].copy_from_slice(value);
    Arc::new(Entry {
        fetched_at,
        expires_after,
        digest: OnceLock::new(),
        lru_index: AtomicU32::new(NOT_LINKED),
        payload,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::NegativeTtl;

    /// Request time of the entries in these tests.
    const FETCHED: u64 = 3_600_000_000_000;

    fn ttls(negative_ttl: NegativeTtl) -> Ttls {
        Ttls::new(Duration::from_secs(10), negative_ttl, Duration::from_secs(5))
    }

    fn fixed() -> Ttls {
        ttls(NegativeTtl::Fixed(Duration::from_secs(2)))
    }

    fn after(entry: &Entry, milliseconds: u64) -> Freshness {
        entry.freshness(FETCHED + milliseconds * 1_000_000, fixed(), Validity::TtlOnly)
    }

    fn value(expires_in: Option<Duration>) -> Arc<Entry> {
        Entry::new(&Key::from(&b"k"[..]), Some(Bytes::from_static(b"v")), FETCHED, expires_in)
    }

    fn absent() -> Arc<Entry> {
        Entry::new(&Key::from(&b"k"[..]), None, FETCHED, None)
    }

    #[test]
    fn entry_returns_its_value_at_any_size() {
        for key_length in [0, 1, 7, 8, 9, 400, MAX_INLINE, MAX_INLINE + 1, 100_000] {
            let key = Key::from(&vec![b'k'; key_length][..]);
            let absent = Entry::new(&key, None, FETCHED, None);
            assert_eq!(
                (absent.key(), absent.value().is_none(), absent.size()),
                (key.as_bytes(), true, key_length)
            );
            for value_length in
                (0..200).chain([900, MAX_INLINE - 1, MAX_INLINE, MAX_INLINE + 1, 5_000_000])
            {
                let value = Bytes::from(vec![b'v'; value_length]);
                let entry = Entry::new(&key, Some(value.clone()), FETCHED, None);
                assert_eq!(entry.key(), key.as_bytes());
                let payload = entry.value().unwrap();
                assert_eq!((payload.bytes, &*payload.to_bytes()), (&*value, &*value));
                assert_eq!(entry.size(), key_length + value_length);
            }
        }
    }

    #[test]
    fn large_value_is_never_copied() {
        let value = Bytes::from(vec![b'v'; MAX_INLINE + 1]);
        let entry = Entry::new(&Key::from(&b"k"[..]), Some(value.clone()), FETCHED, None);
        let payload = entry.value().unwrap();
        assert_eq!(
            (payload.bytes.as_ptr(), payload.to_bytes().as_ptr()),
            (value.as_ptr(), value.as_ptr())
        );
    }

    #[test]
    fn equal_values_have_equal_digests() {
        let digest = |key: usize, value: &[u8]| {
            let key = Key::from(&vec![b'k'; key][..]);
            *Entry::new(&key, Some(Bytes::copy_from_slice(value)), 0, None)
                .value()
                .unwrap()
                .digest()
        };
        assert_eq!(digest(1, b"value"), digest(MAX_INLINE, b"value"));
        assert_ne!(digest(1, b"value"), digest(1, b"values"));
    }

    #[test]
    fn value_is_fresh_then_stale_then_expired() {
        let entry = value(None);
        assert_eq!(after(&entry, 0), Freshness::Fresh { remaining: Duration::from_secs(10) });
        assert_eq!(after(&entry, 9_999), Freshness::Fresh { remaining: Duration::from_millis(1) });
        assert_eq!(after(&entry, 10_000), Freshness::Stale { past: Duration::ZERO });
        assert_eq!(after(&entry, 14_999), Freshness::Stale { past: Duration::from_millis(4_999) });
        assert_eq!(after(&entry, 15_000), Freshness::Expired);
    }

    #[test]
    fn key_expiry_ends_entry_and_grace() {
        let entry = value(Some(Duration::from_secs(3)));
        assert_eq!(after(&entry, 0), Freshness::Fresh { remaining: Duration::from_secs(3) });
        assert_eq!(after(&entry, 3_000), Freshness::Expired);
        let entry = value(Some(Duration::from_secs(12)));
        assert_eq!(after(&entry, 11_000), Freshness::Stale { past: Duration::from_secs(1) });
        assert_eq!(after(&entry, 12_000), Freshness::Expired);
        assert_eq!(after(&value(Some(Duration::ZERO)), 0), Freshness::Expired);
        assert!(matches!(after(&value(Some(Duration::MAX)), 0), Freshness::Fresh { .. }));
    }

    #[test]
    fn negative_entry_has_own_ttl_and_no_grace() {
        let entry = absent();
        assert_eq!(after(&entry, 1_999), Freshness::Fresh { remaining: Duration::from_millis(1) });
        assert_eq!(after(&entry, 2_000), Freshness::Expired);
    }

    #[test]
    fn backward_clock_step_caps_freshness() {
        let entry = value(None);
        let freshness = entry.freshness(FETCHED - 1_000_000_000, fixed(), Validity::TtlOnly);
        assert_eq!(freshness, Freshness::Fresh { remaining: Duration::from_secs(10) });
    }

    #[test]
    fn lost_lease_makes_value_stale_at_once() {
        let entry = value(None);
        let seconds = Duration::from_secs;
        let freshness = |age, since| {
            let validity = Validity::Expired { since: seconds(since) };
            entry.freshness(FETCHED + as_nanos(seconds(age)), fixed(), validity)
        };
        assert_eq!(freshness(1, 0), Freshness::Stale { past: Duration::ZERO });
        assert_eq!(freshness(6, 4), Freshness::Stale { past: seconds(4) });
        assert_eq!(freshness(6, 5), Freshness::Expired);
        assert_eq!(freshness(13, 1), Freshness::Stale { past: seconds(3) });
        assert_eq!(freshness(15, 1), Freshness::Expired);
        let tracked = entry.freshness(FETCHED + as_nanos(seconds(1)), fixed(), Validity::Tracked);
        assert_eq!(tracked, Freshness::Fresh { remaining: seconds(9) });
    }

    #[test]
    fn tracked_absence_lasts_as_long_as_a_value() {
        let entry = absent();
        let auto = ttls(NegativeTtl::Auto);
        let at = FETCHED + as_nanos(Duration::from_secs(3));
        let fresh = Freshness::Fresh { remaining: Duration::from_secs(7) };
        assert_eq!(entry.freshness(at, auto, Validity::Tracked), fresh);
        assert_eq!(entry.freshness(at, auto, Validity::TtlOnly), Freshness::Expired);
        assert_eq!(entry.freshness(at, fixed(), Validity::Tracked), Freshness::Expired);
        assert_eq!(
            entry.freshness(at, auto, Validity::Expired { since: Duration::ZERO }),
            Freshness::Expired
        );
    }
}
