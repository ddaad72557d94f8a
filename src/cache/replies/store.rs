//! The store of kept replies: a bound in bytes, and which reply makes room.
//!
//! It only chooses what is evicted. Whether a reply may be served is decided at each read by its
//! note, so an entry that is no longer current does no harm while it is still here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, Weighter};

use super::super::block_size::block_size;
use super::super::budget::Budget;
use super::super::refresh::Refreshes;
use super::super::rules::Rules;
use super::super::settings::Settings;
use super::super::sync::{Mutex, lock, preemption_point};
use super::super::types::{CacheClock, EvictionCause, EvictionCounters, MemoryStatistics};
use super::counters::Counters;
use super::reply::Reply;
use crate::key::Key;

/// The memory that a kept reply takes in the tables of the store, in bytes.
const PLACE: usize = 112;
/// The mean size of a reply that the store is made for, in bytes. It is only a hint.
const TYPICAL_SIZE: usize = 1 << 10;
/// The most commands that are remembered because their replies cannot be kept.
const MAX_PAUSED: usize = 1024;

/// The replies of all primaries, and what they share.
pub struct ReplyStore {
    replies: Cache<Key, Arc<Reply>, Weight, ahash::RandomState, CountEvictions>,
    clock: CacheClock,
    budget: Arc<Budget>,
    rules: Arc<Rules>,
    refreshes: Arc<Refreshes>,
    max_hash_fields: AtomicUsize,
    pub(super) counters: Counters,
    next_generation: AtomicU64,
    pub(super) evictions: Arc<EvictionCounters>,
    /// Commands with replies that cannot be kept, each with the time until which it is not fetched.
    paused: Mutex<HashMap<u64, u64>>,
    hasher: ahash::RandomState,
}

#[derive(Clone)]
struct Weight;

impl Weighter<Key, Arc<Reply>> for Weight {
    fn weight(&self, command: &Key, reply: &Arc<Reply>) -> u64 {
        (command.footprint(block_size) + reply.footprint() + PLACE) as u64
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<EvictionCounters>);

impl Lifecycle<Key, Arc<Reply>> for CountEvictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: Key, _: Arc<Reply>) {
        self.0.add(EvictionCause::Capacity, 1);
    }
}

impl ReplyStore {
    /// Creates an empty store.
    pub fn new(settings: &Settings) -> Arc<Self> {
        let budget = Budget::new(settings);
        let rules = Arc::new(Rules::default());
        rules.apply(settings);
        let max_memory = budget.max_replies();
        let counters = Counters::for_memory(max_memory);
        let evictions = Arc::new(EvictionCounters::default());
        let replies = Cache::with(
            max_memory / TYPICAL_SIZE,
            max_memory.saturating_sub(counters.size_in_use()) as u64,
            Weight,
            ahash::RandomState::new(),
            CountEvictions(Arc::clone(&evictions)),
        );
        Arc::new(Self {
            replies,
            clock: CacheClock::start(),
            budget,
            rules,
            refreshes: Arc::new(Refreshes::new(settings.refresh_rate)),
            max_hash_fields: AtomicUsize::new(settings.hash_fields),
            counters,
            next_generation: AtomicU64::new(0),
            evictions,
            paused: Mutex::default(),
            hasher: ahash::RandomState::new(),
        })
    }

    /// Whether replies are kept at all.
    #[inline]
    pub(in super::super) fn is_enabled(&self) -> bool {
        self.budget.max_replies() > 0
    }

    /// Returns the clock of all caches that share this store.
    pub fn clock(&self) -> CacheClock {
        self.clock
    }

    /// The most fields or members of a kept hash or set from which other replies are derived.
    #[inline]
    pub fn max_hash_fields(&self) -> usize {
        self.max_hash_fields.load(Relaxed)
    }

    /// Applies settings. Replies beyond a smaller bound are evicted at once.
    pub fn apply(&self, settings: &Settings) {
        self.max_hash_fields.store(settings.hash_fields, Relaxed);
        self.rules.apply(settings);
        self.refreshes.set_rate(settings.refresh_rate);
        let before = self.budget.max_replies();
        self.budget.apply(settings);
        let bytes = self.budget.max_replies();
        if bytes != before {
            if self.counters.resize(bytes) {
                // They would not be served any more.
                self.remove_where(EvictionCause::Resized, |_| true);
            }
            let counters = self.counters.size_in_use();
            self.replies.set_capacity(bytes.saturating_sub(counters) as u64);
            self.count();
        }
    }

    /// Returns what everything that is kept takes, and the bound.
    pub fn memory(&self) -> MemoryStatistics {
        let (in_flight, max_in_flight) = self.budget.in_flight().bytes();
        MemoryStatistics {
            in_flight,
            max_in_flight,
            in_flight_discarded: self.budget.in_flight().discarded(),
            bytes: self.budget.memory(),
            max: self.budget.max() as u64,
            too_large: self.budget.too_large(),
        }
    }

    /// Whether room for values in flight is short, so that clients should not hold it for long.
    pub fn is_room_short(&self) -> bool {
        self.budget.in_flight().is_short()
    }

    /// Returns the bound on the memory of all caches that share this store.
    pub(in super::super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Returns the rules of all caches that share this store.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Returns the refreshes of all caches that share this store.
    pub fn refreshes(&self) -> &Arc<Refreshes> {
        &self.refreshes
    }

    /// Counts the replies and their counters against the bound on memory.
    fn count(&self) {
        self.budget.set_replies(self.size().1);
    }

    /// Returns a generation that no other has.
    pub(super) fn next_generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Relaxed)
    }

    #[inline]
    pub(super) fn get(&self, command: &[u8]) -> Option<Arc<Reply>> {
        preemption_point();
        self.replies.get(command)
    }

    /// Returns all replies of a generation, each with its command.
    pub(super) fn of_generation(
        &self,
        generation: u64,
    ) -> impl Iterator<Item = (Key, Arc<Reply>)> + '_ {
        self.replies.iter().filter(move |(_, reply)| reply.note.generation() == generation)
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    pub(super) fn insert(&self, command: Key, reply: Arc<Reply>) {
        preemption_point();
        self.replies.insert(command, reply);
        self.count();
    }

    /// Removes the reply to `command` if it is this one.
    pub(super) fn remove(&self, command: &[u8], reply: &Arc<Reply>, cause: EvictionCause) {
        preemption_point();
        let removed = self.replies.remove_if(command, |kept| Arc::ptr_eq(kept, reply));
        self.evictions.add(cause, removed.is_some().into());
        self.count();
    }

    /// Removes the replies of a generation that has ended. Takes time in proportion to the number
    /// of replies.
    pub(in super::super) fn remove_generation(&self, generation: u64) {
        let has_ended = |reply: &Reply| reply.note.generation() == generation;
        self.remove_where(EvictionCause::Flushed, has_ended);
    }

    /// Removes the replies for which `is_meant` returns true. Takes time in proportion to their
    /// number.
    pub(super) fn remove_where(&self, cause: EvictionCause, is_meant: impl Fn(&Reply) -> bool) {
        let removed = AtomicU64::new(0);
        self.replies.retain(|_, reply| {
            let is_meant = is_meant(reply);
            removed.fetch_add(is_meant.into(), Relaxed);
            !is_meant
        });
        self.evictions.add(cause, removed.into_inner());
        self.count();
    }

    /// Returns the number of replies, and the bytes that they and the counters take.
    pub(super) fn size(&self) -> (u64, u64) {
        let counters = self.counters.size() as u64;
        (self.replies.len() as u64, self.replies.weight() + counters)
    }

    /// Records that `command` is not to be fetched until the time `until`.
    pub(super) fn pause(&self, command: &[u8], now: u64, until: u64) {
        let mut paused = lock(&self.paused);
        if paused.len() >= MAX_PAUSED {
            paused.retain(|_, until| *until > now);
        }
        if paused.len() < MAX_PAUSED {
            paused.insert(self.hasher.hash_one(command), until);
        }
    }

    /// Whether the reply to `command` could not be kept a short time ago.
    pub(in super::super) fn is_paused(&self, command: &[u8], now: u64) -> bool {
        let command = self.hasher.hash_one(command);
        let mut paused = lock(&self.paused);
        let Some(until) = paused.get(&command) else { return false };
        let is_recent = *until > now;
        if !is_recent {
            paused.remove(&command);
        }
        is_recent
    }
}
