//! One answer of Redis, and for how long it may be given.
//!
//! Whether an entry is fresh, stale or dead is a function of the time now, the entry's own clock, the lifetimes in
//! force now, and who vouches for it. Nothing is decided when the entry is stored, so a lifetime changed at run time
//! holds at once for what is already cached. An entry's clock starts before its fetch is sent, so an entry is
//! never younger than what Redis said.
//!
//! An entry is one piece of memory with the key and a small value at its end. What a read costs where there are many keys is
//! the wait for memory that the processor has not at hand, and so it waits once for all of these.

use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use super::lease::Voucher;
use super::ttl::{Lifetimes, nanoseconds};
use crate::key::Key;

/// Where an entry stands in the order of reads, as a number.
pub(super) type Place = u32;

/// No place. So one fewer than there are numbers can be had.
pub(super) const NOWHERE: Place = Place::MAX;

/// What an entry may be used for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// May be given, for `remaining` from now on.
    Fresh {
        /// How much longer.
        remaining: Duration,
    },
    /// May be given only when Redis cannot answer; fresh until `past` ago.
    Stale {
        /// How long ago it ceased to be fresh.
        past: Duration,
    },
    /// May not be given any more.
    Dead,
}

/// The bytes of a value, with the digest that names them.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a> {
    /// The value as Redis holds it.
    pub bytes: &'a [u8],
    entry: &'a Entry,
}

impl<'a> Value<'a> {
    /// The first 16 bytes of the BLAKE3 hash of the value: equal digests mean equal values. Takes time in proportion to
    /// the value when it is first asked for.
    pub fn digest(&self) -> &'a [u8; 16] {
        self.entry.digest.get_or_init(|| {
            let mut digest = [0; 16];
            blake3::Hasher::new().update(self.bytes).finalize_xof().fill(&mut digest);
            digest
        })
    }

    /// The value for as long as it is wanted: a small one copied, a large one shared.
    pub fn to_bytes(&self) -> Bytes {
        match &self.entry.kept {
            Kept::Apart(apart) => apart.1.clone().unwrap_or_default(),
            Kept::Within { .. } => Bytes::copy_from_slice(self.bytes),
        }
    }
}

/// What Redis answered for a key, and when it was asked. Times are nanoseconds on the cache's clock.
#[derive(Debug)]
pub struct Entry<B: ?Sized = [u8]> {
    fetched: u64,
    /// For how long from then on Redis itself lets the key live; as long as can be said: for good.
    lives_for: u64,
    /// Made when it is first asked for, since most values are never asked for theirs.
    digest: OnceLock<[u8; 16]>,
    /// Where it stands in the order of reads; nowhere, unless it is in the store.
    place: AtomicU32,
    kept: Kept,
    bytes: B,
}

/// Where key and value are; of a key that Redis does not have there is no value.
#[derive(Debug)]
enum Kept {
    /// One behind the other at the end of the entry, so many bytes of each.
    Within { key: u32, value: Option<u32> },
    /// Elsewhere, since together they are larger than [`LARGEST`].
    Apart(Box<(Key, Option<Bytes>)>),
}

impl Entry {
    /// An entry for what Redis answered (`None`: no such key) to a fetch of `key` begun at `fetched`; `expires_in` is the
    /// key's own time to live in Redis (`PTTL`).
    pub(super) fn new(
        key: &Key,
        value: Option<Bytes>,
        fetched: u64,
        expires_in: Option<Duration>,
    ) -> Arc<Self> {
        let lives_for = expires_in.map_or(u64::MAX, nanoseconds);
        let length = |bytes: usize| u32::try_from(bytes).ok();
        let (key_length, value_length) =
            (length(key.len()), value.as_ref().map(|value| length(value.len())));
        let whole = key.len().saturating_add(value.as_ref().map_or(0, Bytes::len));
        match (key_length, value_length) {
            (Some(key_length), None | Some(Some(_))) if whole <= LARGEST => {
                let kept = Kept::Within { key: key_length, value: value_length.flatten() };
                make(
                    fetched,
                    lives_for,
                    kept,
                    [key.as_bytes(), value.as_deref().unwrap_or_default()],
                )
            }
            _ => make(fetched, lives_for, Kept::Apart(Box::new((key.clone(), value))), [&[], &[]]),
        }
    }

    /// The key that was asked for.
    pub(super) fn key(&self) -> &[u8] {
        match &self.kept {
            Kept::Within { key, .. } => &self.bytes[..*key as usize],
            Kept::Apart(apart) => apart.0.as_bytes(),
        }
    }

    /// The value, or `None` where Redis had no such key.
    pub fn value(&self) -> Option<Value<'_>> {
        let bytes = match &self.kept {
            Kept::Within { key, value } => &self.bytes[*key as usize..][..(*value)? as usize],
            Kept::Apart(apart) => apart.1.as_ref()?,
        };
        Some(Value { bytes, entry: self })
    }

    /// How long ago Redis was asked.
    pub(super) fn age(&self, now: u64) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.fetched))
    }

    /// What the entry may be used for at `now`. The end of the key's own life in Redis is the end of the entry,
    /// stale or not. It is stale from when its time was over or nobody vouched for it any more, whichever was first.
    pub(super) fn freshness(&self, now: u64, lifetimes: Lifetimes, voucher: Voucher) -> Freshness {
        let lived = now.saturating_sub(self.fetched);
        if lived >= self.lives_for {
            return Freshness::Dead;
        }
        let (ttl, grace) = if self.is_absent() {
            (lifetimes.of_absence(voucher), 0)
        } else {
            (lifetimes.ttl, lifetimes.stale_grace)
        };
        let over = lived.checked_sub(ttl);
        let past = match voucher {
            Voucher::Nobody { since } => Some(nanoseconds(since).max(over.unwrap_or_default())),
            Voucher::Time | Voucher::Redis => over,
        };
        match past {
            None => Freshness::Fresh {
                remaining: Duration::from_nanos((ttl - lived).min(self.lives_for - lived)),
            },
            Some(past) if past < grace => Freshness::Stale { past: Duration::from_nanos(past) },
            Some(_) => Freshness::Dead,
        }
    }

    fn is_absent(&self) -> bool {
        match &self.kept {
            Kept::Within { value, .. } => value.is_none(),
            Kept::Apart(apart) => apart.1.is_none(),
        }
    }

    /// Bytes of payload, without the structures that hold it.
    pub(super) fn size(&self) -> usize {
        self.key().len() + self.value().map_or(0, |value| value.bytes.len())
    }

    /// Looks at its head and at the beginning, the middle and the end of key and value, for nothing but to have them at hand:
    /// of a small entry these are all the lines of memory that it takes.
    pub(super) fn touch(&self) -> u32 {
        let byte = |at: usize| self.bytes.get(at).copied().map_or(0, u32::from);
        let length = self.bytes.len();
        let head = u32::from(matches!(self.kept, Kept::Apart(_))) ^ self.place.load(Relaxed);
        head ^ byte(0) ^ byte(length / 2) ^ byte(length.saturating_sub(1))
    }

    /// Where it stands in the order of reads, if it is in the store.
    pub(super) fn place(&self) -> Place {
        self.place.load(Acquire)
    }

    /// Puts it there; done under the lock of its key's table.
    pub(super) fn stand_at(&self, place: Place) {
        self.place.store(place, Release);
    }

    /// Says that it is in the store no more; done under the same lock.
    pub(super) fn leave(&self) {
        self.stand_at(NOWHERE);
    }

    /// Whether it is in the store.
    pub(super) fn is_stored(&self) -> bool {
        self.place() != NOWHERE
    }
}

/// Makes an entry with the least room that the pieces fit in. With what goes before them, and the counts of those who share
/// it, the sizes are those in which memory is given out anyway.
macro_rules! rooms {
    ($($room:literal)+; $largest:literal) => {
        /// Key and value that have more bytes together are not within their entry.
        const LARGEST: usize = $largest;

        fn make(fetched: u64, lives_for: u64, kept: Kept, pieces: [&[u8]; 2]) -> Arc<Entry> {
            let length = pieces[0].len() + pieces[1].len();
            $(if length <= $room {
                return with_room::<$room>(fetched, lives_for, kept, pieces);
            })+
            with_room::<LARGEST>(fetched, lives_for, kept, pieces)
        }
    };
}
rooms!(8 24 40 56 88 120 152 184 248 312 376 440 568 696 824; 952);

fn with_room<const ROOM: usize>(
    fetched: u64,
    lives_for: u64,
    kept: Kept,
    [key, value]: [&[u8]; 2],
) -> Arc<Entry> {
    let mut bytes = [0; ROOM];
    bytes[..key.len()].copy_from_slice(key);
    bytes[key.len()..][..value.len()].copy_from_slice(value);
    Arc::new(Entry {
        fetched,
        lives_for,
        digest: OnceLock::new(),
        place: AtomicU32::new(NOWHERE),
        kept,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::AbsentTtl;

    /// When the entries here were asked for.
    const FETCHED: u64 = 3_600_000_000_000;

    fn lifetimes(ttl_absent: AbsentTtl) -> Lifetimes {
        Lifetimes::new(Duration::from_secs(10), ttl_absent, Duration::from_secs(5))
    }

    fn fixed() -> Lifetimes {
        lifetimes(AbsentTtl::Fixed(Duration::from_secs(2)))
    }

    fn after(entry: &Entry, milliseconds: u64) -> Freshness {
        entry.freshness(FETCHED + milliseconds * 1_000_000, fixed(), Voucher::Time)
    }

    fn value(expires_in: Option<Duration>) -> Arc<Entry> {
        Entry::new(&Key::from(&b"k"[..]), Some(Bytes::from_static(b"v")), FETCHED, expires_in)
    }

    fn absent() -> Arc<Entry> {
        Entry::new(&Key::from(&b"k"[..]), None, FETCHED, None)
    }

    #[test]
    fn an_entry_gives_back_what_it_was_made_of_whatever_its_size() {
        for key_length in [0, 1, 7, 8, 9, 400, LARGEST, LARGEST + 1, 100_000] {
            let key = Key::from(&vec![b'k'; key_length][..]);
            let absent = Entry::new(&key, None, FETCHED, None);
            assert_eq!(
                (absent.key(), absent.value().is_none(), absent.size()),
                (key.as_bytes(), true, key_length)
            );
            for value_length in (0..200).chain([900, LARGEST - 1, LARGEST, LARGEST + 1, 5_000_000])
            {
                let value = Bytes::from(vec![b'v'; value_length]);
                let entry = Entry::new(&key, Some(value.clone()), FETCHED, None);
                assert_eq!(entry.key(), key.as_bytes());
                let kept = entry.value().unwrap();
                assert_eq!((kept.bytes, &*kept.to_bytes()), (&*value, &*value));
                assert_eq!(entry.size(), key_length + value_length);
            }
        }
    }

    #[test]
    fn a_large_value_is_never_copied() {
        let value = Bytes::from(vec![b'v'; LARGEST + 1]);
        let entry = Entry::new(&Key::from(&b"k"[..]), Some(value.clone()), FETCHED, None);
        let kept = entry.value().unwrap();
        assert_eq!(
            (kept.bytes.as_ptr(), kept.to_bytes().as_ptr()),
            (value.as_ptr(), value.as_ptr())
        );
    }

    #[test]
    fn equal_values_have_equal_digests_wherever_they_are_kept() {
        let digest = |key: usize, value: &[u8]| {
            let key = Key::from(&vec![b'k'; key][..]);
            *Entry::new(&key, Some(Bytes::copy_from_slice(value)), 0, None)
                .value()
                .unwrap()
                .digest()
        };
        assert_eq!(digest(1, b"value"), digest(LARGEST, b"value"));
        assert_ne!(digest(1, b"value"), digest(1, b"values"));
    }

    #[test]
    fn a_value_is_fresh_then_stale_then_dead() {
        let entry = value(None);
        assert_eq!(after(&entry, 0), Freshness::Fresh { remaining: Duration::from_secs(10) });
        assert_eq!(after(&entry, 9_999), Freshness::Fresh { remaining: Duration::from_millis(1) });
        assert_eq!(after(&entry, 10_000), Freshness::Stale { past: Duration::ZERO });
        assert_eq!(after(&entry, 14_999), Freshness::Stale { past: Duration::from_millis(4_999) });
        assert_eq!(after(&entry, 15_000), Freshness::Dead);
    }

    #[test]
    fn the_keys_own_expiry_ends_the_entry_and_its_grace() {
        let entry = value(Some(Duration::from_secs(3)));
        assert_eq!(after(&entry, 0), Freshness::Fresh { remaining: Duration::from_secs(3) });
        assert_eq!(after(&entry, 3_000), Freshness::Dead);
        let entry = value(Some(Duration::from_secs(12)));
        assert_eq!(after(&entry, 11_000), Freshness::Stale { past: Duration::from_secs(1) });
        assert_eq!(after(&entry, 12_000), Freshness::Dead);
        assert_eq!(after(&value(Some(Duration::ZERO)), 0), Freshness::Dead);
        assert!(matches!(after(&value(Some(Duration::MAX)), 0), Freshness::Fresh { .. }));
    }

    #[test]
    fn an_absent_key_has_its_own_ttl_and_no_grace() {
        let entry = absent();
        assert_eq!(after(&entry, 1_999), Freshness::Fresh { remaining: Duration::from_millis(1) });
        assert_eq!(after(&entry, 2_000), Freshness::Dead);
    }

    #[test]
    fn a_clock_that_steps_back_makes_nothing_younger_than_new() {
        let entry = value(None);
        let freshness = entry.freshness(FETCHED - 1_000_000_000, fixed(), Voucher::Time);
        assert_eq!(freshness, Freshness::Fresh { remaining: Duration::from_secs(10) });
    }

    #[test]
    fn a_value_nobody_vouches_for_is_stale_from_then_on_or_from_the_end_of_its_time() {
        let entry = value(None);
        let seconds = Duration::from_secs;
        let freshness = |age, since| {
            let voucher = Voucher::Nobody { since: seconds(since) };
            entry.freshness(FETCHED + nanoseconds(seconds(age)), fixed(), voucher)
        };
        assert_eq!(freshness(1, 0), Freshness::Stale { past: Duration::ZERO });
        assert_eq!(freshness(6, 4), Freshness::Stale { past: seconds(4) });
        assert_eq!(freshness(6, 5), Freshness::Dead);
        assert_eq!(freshness(13, 1), Freshness::Stale { past: seconds(3) });
        assert_eq!(freshness(15, 1), Freshness::Dead);
        let vouched = entry.freshness(FETCHED + nanoseconds(seconds(1)), fixed(), Voucher::Redis);
        assert_eq!(vouched, Freshness::Fresh { remaining: seconds(9) });
    }

    #[test]
    fn where_redis_tells_absence_is_known_as_long_as_a_value_unless_told_otherwise() {
        let entry = absent();
        let auto = lifetimes(AbsentTtl::Auto);
        let at = FETCHED + nanoseconds(Duration::from_secs(3));
        let fresh = Freshness::Fresh { remaining: Duration::from_secs(7) };
        assert_eq!(entry.freshness(at, auto, Voucher::Redis), fresh);
        assert_eq!(entry.freshness(at, auto, Voucher::Time), Freshness::Dead);
        assert_eq!(entry.freshness(at, fixed(), Voucher::Redis), Freshness::Dead);
        assert_eq!(
            entry.freshness(at, auto, Voucher::Nobody { since: Duration::ZERO }),
            Freshness::Dead
        );
    }
}
