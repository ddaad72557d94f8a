//! One reply of Redis, and how long it may be served.
//!
//! An entry is fresh, stale or expired. Freshness depends on the current time, the entry's own
//! clock, the TTLs in force and the lease. It is computed at each read (invariant E1), so a TTL
//! changed at run time applies at once to cached entries. An entry's clock starts before its fetch
//! is sent, so an entry is never younger than the reply.
//!
//! An entry is one allocation, with the key and a small value at its end. With many keys, the cost
//! of a read is the wait for memory that is not in the processor's cache. One allocation means one
//! such wait. Everything beside key and value has 36 bytes, so an entry with a key of 16 and a
//! value of 100 bytes takes a block of 160 bytes. The allocator takes 7 bytes more than requested
//! to align an entry, so one of 153 bytes would take 192.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::Duration;

use bytes::Bytes;
use once_cell::race::OnceBox;
use triomphe::ThinArc;

use super::block_size::block_size;
use super::in_flight::{COUNTED_MIN, FetchedBytes, Room};
use super::lease::Validity;
use super::refresh::is_due;
use super::ttl::{Ttls, as_nanos};
use crate::key::Key;

const NANOS_PER_MICRO: u64 = 1_000;
const NANOS_PER_MILLI: u64 = 1_000_000;

/// The index of an entry's node in the LRU list.
pub(super) type LruIndex = u32;

/// The bits of an entry's word that hold its index. The others count its reads from memory, of keys
/// that are to be refreshed.
const INDEX_BITS: u32 = 30;
/// No index. The list can therefore have one node fewer than there are numbers.
pub(super) const NOT_LINKED: LruIndex = (1 << INDEX_BITS) - 1;
/// The word of an entry that is not in the store. No index in the store has all its bits.
const UNLINKED: u32 = u32::MAX;
/// One read in a word.
const READ: u32 = 1 << INDEX_BITS;
/// The reads from memory that make an entry hot.
const HOT: u32 = 2;
/// The count of reads that stands for a refresh that was requested.
const REQUESTED: u32 = 3 << INDEX_BITS;

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
        let compute = || {
            let mut digest = [0; 16];
            blake3::Hasher::new().update(self.bytes).finalize_xof().fill(&mut digest);
            digest
        };
        match self.entry.head().annex.get_or_init(|| Box::new(Annex::Digest(compute()))) {
            Annex::Digest(digest) => digest,
            Annex::Large(large) => large.digest.get_or_init(compute),
        }
    }

    /// Returns the value as owned bytes: a small value is copied, a large one is shared.
    pub fn to_bytes(&self) -> Bytes {
        match self.entry.large() {
            Some(large) => large.value.clone().unwrap_or_default(),
            None => Bytes::copy_from_slice(self.bytes),
        }
    }
}

/// The reply of Redis for one key, and the time of its request. A clone is another handle to the
/// same entry. Times are nanoseconds on the cache's clock.
#[derive(Debug, Clone)]
pub struct Entry(ThinArc<Head, u8>);

#[derive(Debug)]
struct Head {
    /// Data that most entries do not have.
    annex: OnceBox<Annex>,
    /// Index in the LRU list with the reads in its upper bits; [`UNLINKED`] while the entry is not
    /// in the store.
    word: AtomicU32,
    /// The time of the request in whole microseconds, without its upper part.
    fetched_at: u32,
}

/// The part of an entry in an allocation of its own.
#[derive(Debug)]
enum Annex {
    /// The digest of a value in the entry, computed on first use: most values never need one.
    Digest([u8; 16]),
    /// Key and value that together are larger than [`MAX_INLINE`].
    Large(Box<Large>),
}

#[derive(Debug)]
struct Large {
    key: Key,
    value: Option<Bytes>,
    digest: OnceLock<[u8; 16]>,
    /// The room of the value in flight.
    room: Option<Room>,
}

/// The largest sum of key and value, in bytes, that is stored at the end of the entry.
const MAX_INLINE: usize = 952;
/// The bytes in front of the prefix: the counter of handles, the head, and the number of bytes.
const HEAD: usize = 2 * WORD + size_of::<Head>();
const WORD: usize = size_of::<usize>();
/// The block in which the handles to a value count themselves.
const SHARED: usize = 32;
/// The same for a value that counted as in flight, with the block of its room.
const SHARED_WITH_ROOM: usize = 64 + 48;
/// The first bytes of an entry's data, in front of key and value: the length of the key, with the
/// flags below in its other bits; and above them the upper part of the time of the request, which
/// lasts for eight years.
#[derive(Clone, Copy)]
struct Prefix(u32);

const PREFIX: usize = size_of::<Prefix>();
/// There is no value.
const NEGATIVE: u32 = 1 << 15;
/// Key and value are in the annex.
const LARGE: u32 = 1 << 14;
/// At the end of the data is the key's own time to live in Redis, from the request on, in whole
/// milliseconds.
const EXPIRES: u32 = 1 << 13;
const KEY_LENGTH: u32 = EXPIRES - 1;
/// The bytes of that time to live. A time of more than 49 days counts as 49.
const EXPIRY: usize = size_of::<u32>();
/// The place of the time of the request in a prefix.
const TIME_SHIFT: u32 = 16;

impl Prefix {
    #[inline]
    fn has(self, flags: u32) -> bool {
        self.0 & flags != 0
    }

    /// Returns the length of the key of an entry that is not large.
    #[inline]
    fn key_length(self) -> usize {
        (self.0 & KEY_LENGTH) as usize
    }

    /// Returns the bytes behind the value.
    #[inline]
    fn expiry_length(self) -> usize {
        if self.has(EXPIRES) { EXPIRY } else { 0 }
    }
}

/// Allocates an entry with these parts of its data, one behind the other.
fn allocate(head: Head, parts: [&[u8]; 4]) -> ThinArc<Head, u8> {
    /// The bytes of most entries. To zero them costs less than to zero those of the largest.
    const SMALL: usize = 256;
    if parts.iter().map(|part| part.len()).sum::<usize>() <= SMALL {
        allocate_from::<SMALL>(head, parts)
    } else {
        allocate_from::<{ PREFIX + MAX_INLINE + EXPIRY }>(head, parts)
    }
}

/// Allocates an entry with a buffer of this capacity, in bytes.
fn allocate_from<const CAPACITY: usize>(head: Head, parts: [&[u8]; 4]) -> ThinArc<Head, u8> {
    let (mut bytes, mut length) = ([0; CAPACITY], 0);
    for part in parts {
        bytes[length..][..part.len()].copy_from_slice(part);
        length += part.len();
    }
    ThinArc::from_header_and_slice(head, &bytes[..length])
}

impl Entry {
    /// Creates an entry for a fetch of `key` that began at `fetched_at`. A `value` of `None` means
    /// that the key does not exist. `expires_in` is the key's own time to live in Redis (`PTTL`).
    pub(super) fn new(
        key: &Key,
        value: Option<Bytes>,
        fetched_at: u64,
        expires_in: Option<Duration>,
    ) -> Self {
        Self::with_room(key, value, None, fetched_at, expires_in)
    }

    /// Creates an entry for a fetched value, as [`new`](Self::new) does.
    pub(super) fn fetched(
        key: &Key,
        value: FetchedBytes,
        fetched_at: u64,
        expires_in: Option<Duration>,
    ) -> Self {
        Self::with_room(key, Some(value.bytes), value.room, fetched_at, expires_in)
    }

    fn with_room(
        key: &Key,
        value: Option<Bytes>,
        room: Option<Room>,
        fetched_at: u64,
        expires_in: Option<Duration>,
    ) -> Self {
        // Rounded down, so an entry is never younger than its reply.
        let micros = fetched_at / NANOS_PER_MICRO;
        let mut prefix = ((micros >> u32::BITS) as u32) << TIME_SHIFT;
        if value.is_none() {
            prefix |= NEGATIVE;
        }
        let milliseconds =
            expires_in.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        let expiry = milliseconds.map(u32::to_ne_bytes);
        if expiry.is_some() {
            prefix |= EXPIRES;
        }
        let expiry = expiry.as_ref().map_or(&[][..], |bytes| bytes);
        let head = |annex| Head {
            annex,
            word: AtomicU32::new(UNLINKED),
            #[expect(clippy::cast_possible_truncation, reason = "the upper part is in the prefix")]
            fetched_at: micros as u32,
        };
        let data = value.as_deref().unwrap_or_default();
        if key.len().saturating_add(data.len()) <= MAX_INLINE {
            prefix |= u32::try_from(key.len()).unwrap_or_default();
            let parts = [&prefix.to_ne_bytes(), key.as_bytes(), data, expiry];
            return Self(allocate(head(OnceBox::new()), parts));
        }
        prefix |= LARGE;
        let large = Large { key: key.clone(), value, digest: OnceLock::new(), room };
        let annex = OnceBox::with_value(Box::new(Annex::Large(Box::new(large))));
        Self(allocate(head(annex), [&prefix.to_ne_bytes(), &[], &[], expiry]))
    }

    #[inline]
    fn head(&self) -> &Head {
        &self.0.header.header
    }

    /// Returns the prefix and the data behind it. Both are read once for all that they tell.
    #[inline]
    fn parts(&self) -> (Prefix, &[u8]) {
        match self.0.slice.split_first_chunk() {
            Some((prefix, rest)) => (Prefix(u32::from_ne_bytes(*prefix)), rest),
            // `new` writes a prefix into every entry.
            None => (Prefix(NEGATIVE), &[]),
        }
    }

    #[inline]
    fn prefix(&self) -> Prefix {
        self.parts().0
    }

    /// Returns the time of the request.
    #[inline]
    fn fetched_at(&self) -> u64 {
        let upper = u64::from(self.prefix().0 >> TIME_SHIFT);
        (upper << u32::BITS | u64::from(self.head().fetched_at)) * NANOS_PER_MICRO
    }

    /// Returns the key's own time to live in Redis, from the request on. The maximum means that the
    /// key does not expire.
    #[inline]
    fn expires_after(&self) -> u64 {
        let (prefix, rest) = self.parts();
        match rest.last_chunk() {
            Some(time) if prefix.has(EXPIRES) => {
                u64::from(u32::from_ne_bytes(*time)) * NANOS_PER_MILLI
            }
            _ => u64::MAX,
        }
    }

    /// Returns key and value if they are in the annex.
    #[inline]
    fn large(&self) -> Option<&Large> {
        if self.prefix().has(LARGE) { self.annex() } else { None }
    }

    /// Returns key and value if they are in the annex. Most entries need not look there.
    #[cold]
    fn annex(&self) -> Option<&Large> {
        match self.head().annex.get() {
            Some(Annex::Large(large)) => Some(large),
            Some(Annex::Digest(_)) | None => None,
        }
    }

    /// Returns the requested key.
    #[inline]
    pub fn key(&self) -> &[u8] {
        let (prefix, rest) = self.parts();
        match self.large() {
            None => &rest[..prefix.key_length()],
            Some(large) => large.key.as_bytes(),
        }
    }

    /// Returns the value, or `None` if the key does not exist in Redis.
    #[inline]
    pub fn value(&self) -> Option<Value<'_>> {
        let (prefix, rest) = self.parts();
        let bytes = if prefix.has(NEGATIVE | LARGE) {
            self.annex()?.value.as_ref()?
        } else {
            &rest[prefix.key_length()..rest.len() - prefix.expiry_length()]
        };
        Some(Value { bytes, entry: self })
    }

    /// Returns the number of handles to this entry.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub(super) fn handles(&self) -> usize {
        ThinArc::strong_count(&self.0)
    }

    /// Whether both are handles to one entry.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.head(), other.head())
    }

    /// Returns the time from the request to `now`.
    #[inline]
    pub(super) fn age(&self, now: u64) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.fetched_at()))
    }

    /// Returns the remaining time to live in Redis; `None`: the key does not expire.
    pub(super) fn expires_in(&self, now: u64) -> Option<Duration> {
        let lived = now.saturating_sub(self.fetched_at());
        let after = self.expires_after();
        (after != u64::MAX).then(|| Duration::from_nanos(after.saturating_sub(lived)))
    }

    /// Returns the freshness at `now`. The entry expires when its key expires in Redis, stale or
    /// not. It becomes stale when its TTL or the lease ends, whichever is first.
    #[inline]
    pub(super) fn freshness(&self, now: u64, ttls: Ttls, validity: Validity) -> Freshness {
        let lived = now.saturating_sub(self.fetched_at());
        let expires_after = self.expires_after();
        if lived >= expires_after {
            return Freshness::Expired;
        }
        let (ttl, grace) = self.ttl_and_grace(ttls, validity);
        let expired_for = lived.checked_sub(ttl);
        let past = match validity {
            Validity::Expired { since } => {
                Some(as_nanos(since).max(expired_for.unwrap_or_default()))
            }
            Validity::TtlOnly | Validity::Tracked => expired_for,
        };
        match past {
            None => Freshness::Fresh {
                remaining: Duration::from_nanos((ttl - lived).min(expires_after - lived)),
            },
            Some(past) if past < grace => Freshness::Stale { past: Duration::from_nanos(past) },
            Some(_) => Freshness::Expired,
        }
    }

    /// Whether the key does not exist in Redis.
    #[inline]
    pub fn is_negative(&self) -> bool {
        self.prefix().has(NEGATIVE)
    }

    /// Returns the bytes that the entry takes with all its allocations, but a digest that is
    /// computed later.
    pub(super) fn footprint(&self) -> usize {
        let entry = HEAD + self.0.slice.len();
        let large = self.large().map_or(0, |large| {
            let value = large.value.as_ref().map_or(0, |value| {
                let shared = if value.len() < COUNTED_MIN { SHARED } else { SHARED_WITH_ROOM };
                block_size(value.len(), 1) + shared
            });
            block_size(size_of::<Annex>(), WORD)
                + block_size(size_of::<Large>(), WORD)
                + large.key.footprint(block_size)
                + value
        });
        block_size(entry.next_multiple_of(WORD), WORD) + large
    }

    /// Returns the bytes of key and value, without overhead.
    #[inline]
    pub fn size(&self) -> usize {
        let (prefix, rest) = self.parts();
        match self.large() {
            None => rest.len() - prefix.expiry_length(),
            Some(large) => large.key.len() + large.value.as_ref().map_or(0, Bytes::len),
        }
    }

    /// Reads the head of the entry, and the first, middle and last byte of its inline data. This
    /// loads them into the processor's cache. A small entry has no other cache lines.
    #[inline]
    pub(super) fn touch(&self) -> u32 {
        let bytes = &self.0.slice;
        let byte = |at: usize| bytes.get(at).copied().map_or(0, u32::from);
        self.head().word.load(Relaxed)
            ^ byte(0)
            ^ byte(bytes.len() / 2)
            ^ byte(bytes.len().saturating_sub(1))
    }

    /// Returns the index in the LRU list, or [`NOT_LINKED`] if the entry is not in the store.
    #[inline]
    pub(super) fn lru_index(&self) -> LruIndex {
        self.head().word.load(Acquire) & NOT_LINKED
    }

    /// Sets the index of an entry that enters the store. The caller holds the lock of the key's
    /// table.
    pub(super) fn set_index(&self, index: LruIndex) {
        self.head().word.store(index, Release);
        if let Some(room) = self.room() {
            room.enter_store();
        }
    }

    /// Marks the entry as removed from the store (invariant S3). The caller holds the lock of the
    /// key's table. Returns whether the entry was hot.
    pub(super) fn unlink(&self) -> bool {
        let word = self.head().word.swap(UNLINKED, Release);
        self.count_in_flight();
        word != UNLINKED && word >> INDEX_BITS >= HOT
    }

    /// Counts a read from memory. Writes at most twice, so readers of a hot key share no write.
    #[inline]
    pub(super) fn count_read(&self) {
        let word = self.head().word.load(Relaxed);
        if word >> INDEX_BITS < HOT {
            // Otherwise another reader has counted, or the entry was removed.
            _ = self.head().word.compare_exchange(word, word + READ, Relaxed, Relaxed);
        }
    }

    /// Records that a refresh is requested. Returns whether the entry is hot and none was before.
    pub(super) fn request_refresh(&self) -> bool {
        let word = self.head().word.load(Relaxed);
        word >> INDEX_BITS == HOT
            && self.head().word.compare_exchange(word, word | REQUESTED, Relaxed, Relaxed).is_ok()
    }

    /// Whether the end of its TTL is near and a fetch would put it off.
    #[inline]
    pub(super) fn is_due(&self, now: u64, ttls: Ttls, validity: Validity) -> bool {
        let lived = now.saturating_sub(self.fetched_at());
        is_due(lived, self.ttl_and_grace(ttls, validity).0, self.expires_after())
    }

    /// Returns its TTL among those in force, and the time after it for which the entry may be served
    /// as stale.
    #[inline]
    fn ttl_and_grace(&self, ttls: Ttls, validity: Validity) -> (u64, u64) {
        if self.is_negative() {
            (ttls.negative_ttl_for(validity), 0)
        } else {
            (ttls.ttl, ttls.stale_if_error)
        }
    }

    /// Counts a large value as in flight, because the store that had it no longer counts it.
    pub(super) fn count_in_flight(&self) {
        if let Some(room) = self.room() {
            room.leave_store();
        }
    }

    fn room(&self) -> Option<&Room> {
        self.large().and_then(|large| large.room.as_ref())
    }

    /// Whether the entry is in the store.
    #[inline]
    pub(super) fn is_linked(&self) -> bool {
        self.head().word.load(Acquire) != UNLINKED
    }
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

    fn value(expires_in: Option<Duration>) -> Entry {
        Entry::new(&Key::from(&b"k"[..]), Some(Bytes::from_static(b"v")), FETCHED, expires_in)
    }

    fn absent() -> Entry {
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
    fn entry_keeps_its_times_at_any_size() {
        for length in [0, 100, MAX_INLINE + 1] {
            for fetched_at in [0, 1_000, FETCHED, (1 << 47) * NANOS_PER_MICRO] {
                for expires_in in [None, Some(0), Some(1), Some(86_400_000)] {
                    let entry = Entry::new(
                        &Key::from(&b"key"[..]),
                        Some(Bytes::from(vec![b'v'; length])),
                        fetched_at,
                        expires_in.map(Duration::from_millis),
                    );
                    let expires_after = expires_in.map_or(u64::MAX, |time| time * NANOS_PER_MILLI);
                    assert_eq!(entry.fetched_at(), fetched_at);
                    assert_eq!(entry.expires_after(), expires_after);
                    assert_eq!((entry.key(), entry.size()), (&b"key"[..], 3 + length));
                }
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
    fn entry_is_hot_after_two_reads() {
        for (reads, is_hot) in [(0, false), (1, false), (2, true), (9, true)] {
            let entry = value(None);
            entry.set_index(NOT_LINKED - 4);
            (0..reads).for_each(|_| entry.count_read());
            assert!(entry.lru_index() == NOT_LINKED - 4 && entry.is_linked());
            assert_eq!((entry.unlink(), entry.unlink()), (is_hot, false), "{reads}");
            entry.count_read();
            assert!(!entry.is_linked() && entry.lru_index() == NOT_LINKED);
        }
    }

    #[test]
    fn refresh_of_an_entry_is_requested_once() {
        let entry = value(None);
        entry.set_index(7);
        assert!(!entry.request_refresh());
        (0..2).for_each(|_| entry.count_read());
        assert_eq!([entry.request_refresh(), entry.request_refresh()], [true, false]);
        entry.count_read();
        assert_eq!((entry.lru_index(), entry.unlink()), (7, true));
        assert!(!entry.request_refresh());
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
