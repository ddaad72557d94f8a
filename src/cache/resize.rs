//! One store, or while the capacity or the policy is being changed, two.
//!
//! moka cannot change its capacity, so another size is another store. While entries are carried over, readers look in
//! both, landings go to the new one, and invalidations to both. The rule that must not be broken: an entry is carried
//! only under its key's lock, only if the old store still has the key, and only as long as nobody has put other stores in
//! the place of these. So no invalidation and no entry is lost, and no entry comes back to life.

use std::sync::Arc;

use tokio::time::Instant;

use super::entry::{Entry, Freshness};
use super::settings::Settings;
use super::store::Store;
use super::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use super::{Cause, FetchError, Shared, lock};
use crate::key::Key;

/// The store, and while it is being replaced, its successor.
pub(super) struct Stores {
    pub(super) active: Arc<Store>,
    pub(super) next: Option<Arc<Successor>>,
}

pub(super) struct Successor {
    pub(super) store: Arc<Store>,
    /// Entries that landed in it, which leave so much less room for those that are carried.
    pub(super) landed: AtomicUsize,
}

impl Stores {
    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let in_next = self.next.as_ref().and_then(|next| next.store.get(key));
        in_next.or_else(|| self.active.get(key))
    }

    /// Puts `entry` where it is to stay. Returns whether another had to go for it.
    pub(super) fn insert(&self, key: &Key, entry: &Arc<Entry>) -> bool {
        let Some(next) = &self.next else { return self.active.insert(key, Arc::clone(entry)) };
        next.landed.fetch_add(1, Relaxed);
        next.store.insert(key, Arc::clone(entry)) | self.active.remove(key.as_bytes())
    }

    /// Removes `key` from each; tells whether one had it.
    pub(super) fn remove(&self, key: &[u8]) -> bool {
        let in_next = self.next.as_ref().is_some_and(|next| next.store.remove(key));
        self.active.remove(key) | in_next
    }

    /// Whether `key` stands for this very entry.
    pub(super) fn holds(&self, key: &[u8], entry: &Arc<Entry>) -> bool {
        self.get(key).is_some_and(|stored| Arc::ptr_eq(&stored, entry))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Arc<Key>, Arc<Entry>)> {
        self.active.iter().chain(self.next.iter().flat_map(|next| next.store.iter()))
    }

    /// Entries, and bytes of their keys and values.
    pub(super) fn size(&self) -> (u64, u64) {
        let (entries, bytes) = self.active.size();
        let (more_entries, more_bytes) = self.next.as_ref().map_or((0, 0), |next| next.store.size());
        (entries + more_entries, bytes + more_bytes)
    }
}

impl<E: FetchError> Shared<E> {
    /// Moves everything whose time is not over to a store for `settings`. Returns how many entries it had no room for.
    pub(super) fn move_to_new_store(&self, settings: &Settings, now: Instant) -> u64 {
        let store = Store::new(settings.capacity, settings.policy, &self.evictions);
        let next = Arc::new(Successor { store, landed: AtomicUsize::new(0) });
        let old = self.flights.hold_all(|| {
            let old = Arc::clone(&self.stores.load().active);
            // With the stores, so that a flush makes an empty one of the right size.
            *lock(&self.settings) = settings.clone();
            self.stores.store(Arc::new(Stores { active: Arc::clone(&old), next: Some(Arc::clone(&next)) }));
            old
        });
        let mut entries = self.alive(&old, &next, now);
        entries.sort_unstable_by_key(|(last_read, ..)| *last_read);
        let mut dropped = 0;
        let mut left = entries.len();
        for (_, key, entry) in entries {
            left -= 1;
            dropped += self.flights.hold(key.as_bytes(), || {
                let room = settings.capacity.saturating_sub(next.landed.load(Relaxed));
                if !self.take_out(&old, &next, &key) {
                    return 0;
                }
                if left >= room {
                    return 1;
                }
                next.store.carry(&key, entry);
                0
            });
        }
        next.store.read_again_since(self.clock(now));
        self.flights.hold_all(|| {
            if self.is_next(&next) {
                self.stores.store(Arc::new(Stores { active: Arc::clone(&next.store), next: None }));
            }
        });
        self.evictions.count(Cause::Resized, dropped);
        dropped
    }

    /// The entries of `old` whose time is not over, each with its last read as of now, since readers go on meanwhile.
    /// The others are removed.
    fn alive(&self, old: &Store, next: &Arc<Successor>, now: Instant) -> Vec<(u64, Arc<Key>, Arc<Entry>)> {
        let mut alive = Vec::new();
        for (key, entry) in old.iter() {
            if self.own_freshness(&entry, now) == Freshness::Dead {
                let removed = self.flights.hold(key.as_bytes(), || self.take_out(old, next, &key));
                self.evictions.count(Cause::Expired, removed.into());
            } else {
                alive.push((entry.last_read(), key, entry));
            }
        }
        alive
    }

    /// Takes `key` out of `old`, under the key's lock; tells whether it was there. What was invalidated or fetched anew
    /// meanwhile is not; after a flush nothing is to be taken.
    pub(super) fn take_out(&self, old: &Store, next: &Arc<Successor>, key: &Key) -> bool {
        self.is_next(next) && old.remove(key.as_bytes())
    }

    pub(super) fn is_next(&self, successor: &Arc<Successor>) -> bool {
        self.stores.load().next.as_ref().is_some_and(|next| Arc::ptr_eq(next, successor))
    }
}
