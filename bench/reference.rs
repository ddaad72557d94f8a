//! Plain versions of eviction policies, for comparison: each returns the hits of a trace of keys,
//! numbered from 0.

use std::collections::{BinaryHeap, VecDeque};

/// No key.
const NONE: usize = usize::MAX;

fn keys(trace: &[u32]) -> impl Iterator<Item = usize> + '_ {
    trace.iter().map(|key| *key as usize)
}

fn count(trace: &[u32]) -> usize {
    keys(trace).max().map_or(0, |key| key + 1)
}

/// A list of keys, the newest first, linked by key.
struct List {
    newer: Vec<usize>,
    older: Vec<usize>,
    newest: usize,
    oldest: usize,
    len: usize,
}

impl List {
    fn new(keys: usize) -> Self {
        Self {
            newer: vec![NONE; keys],
            older: vec![NONE; keys],
            newest: NONE,
            oldest: NONE,
            len: 0,
        }
    }

    fn push(&mut self, key: usize) {
        let older = std::mem::replace(&mut self.newest, key);
        (self.newer[key], self.older[key]) = (NONE, older);
        match self.newer.get_mut(older) {
            Some(newer) => *newer = key,
            None => self.oldest = key,
        }
        self.len += 1;
    }

    fn remove(&mut self, key: usize) {
        let (newer, older) = (self.newer[key], self.older[key]);
        match self.older.get_mut(newer) {
            Some(link) => *link = older,
            None => self.newest = older,
        }
        match self.newer.get_mut(older) {
            Some(link) => *link = newer,
            None => self.oldest = newer,
        }
        self.len -= 1;
    }
}

/// Evicts the least recently read key.
pub(crate) fn lru(trace: &[u32], capacity: usize) -> u64 {
    let (mut list, mut stored, mut hits) = (List::new(count(trace)), vec![false; count(trace)], 0);
    for key in keys(trace) {
        if std::mem::replace(&mut stored[key], true) {
            hits += 1;
            list.remove(key);
        } else if list.len == capacity {
            stored[list.oldest] = false;
            list.remove(list.oldest);
        }
        list.push(key);
    }
    hits
}

/// Evicts the least recently read key until the values take at most so many bytes. A value larger
/// than that is not kept. Returns the hits, and the bytes of their values.
pub(crate) fn lru_of_bytes(trace: &[u32], sizes: &[u64], max: u64) -> (u64, u64) {
    let (mut list, mut hits) = (List::new(count(trace)), (0, 0));
    let (mut stored, mut total) = (vec![None; count(trace)], 0);
    for (key, size) in keys(trace).zip(sizes) {
        if stored[key].is_some() {
            hits = (hits.0 + 1, hits.1 + size);
            list.remove(key);
            list.push(key);
            continue;
        }
        if *size > max {
            continue;
        }
        (stored[key], total) = (Some(*size), total + size);
        list.push(key);
        while total > max {
            let oldest = list.oldest;
            list.remove(oldest);
            total -= stored[oldest].take().unwrap_or_default();
        }
    }
    hits
}

/// SIEVE (Zhang and others, NSDI 2024): a hand passes over keys that were read and evicts the next
/// other one.
pub(crate) fn sieve(trace: &[u32], capacity: usize) -> u64 {
    let (mut list, mut hand, mut hits) = (List::new(count(trace)), NONE, 0);
    let (mut stored, mut visited) = (vec![false; count(trace)], vec![false; count(trace)]);
    for key in keys(trace) {
        if stored[key] {
            hits += 1;
            visited[key] = true;
            continue;
        }
        if list.len == capacity {
            let mut victim = if hand == NONE { list.oldest } else { hand };
            while std::mem::replace(&mut visited[victim], false) {
                victim = list.newer[victim];
                if victim == NONE {
                    victim = list.oldest;
                }
            }
            hand = list.newer[victim];
            list.remove(victim);
            stored[victim] = false;
        }
        (stored[key], visited[key]) = (true, false);
        list.push(key);
    }
    hits
}

/// S3-FIFO (Yang and others, SOSP 2023): a small queue of a tenth, a main queue, and a queue of
/// evicted keys.
pub(crate) fn s3_fifo(trace: &[u32], capacity: usize) -> u64 {
    let small_max = (capacity / 10).max(1);
    let mut cache = S3Fifo {
        small: VecDeque::new(),
        main: VecDeque::new(),
        ghosts: List::new(count(trace)),
        is_ghost: vec![false; count(trace)],
        stored: vec![false; count(trace)],
        reads: vec![0; count(trace)],
        small_max,
        main_max: capacity - small_max,
    };
    let mut hits = 0;
    for key in keys(trace) {
        if cache.stored[key] {
            hits += 1;
            cache.reads[key] = (cache.reads[key] + 1).min(3);
            continue;
        }
        if cache.small.len() + cache.main.len() == capacity {
            cache.evict();
        }
        (cache.stored[key], cache.reads[key]) = (true, 0);
        if std::mem::replace(&mut cache.is_ghost[key], false) {
            cache.ghosts.remove(key);
            cache.main.push_back(key);
        } else {
            cache.small.push_back(key);
        }
    }
    hits
}

struct S3Fifo {
    small: VecDeque<usize>,
    main: VecDeque<usize>,
    ghosts: List,
    is_ghost: Vec<bool>,
    stored: Vec<bool>,
    reads: Vec<u8>,
    small_max: usize,
    main_max: usize,
}

impl S3Fifo {
    fn evict(&mut self) {
        if self.small.len() > self.small_max || self.main.is_empty() {
            while let Some(key) = self.small.pop_front() {
                if self.reads[key] < 2 {
                    return self.refuse(key);
                }
                self.reads[key] = 0;
                self.main.push_back(key);
                if self.main.len() > self.main_max {
                    break;
                }
            }
        }
        while let Some(key) = self.main.pop_front() {
            if self.reads[key] == 0 {
                self.stored[key] = false;
                return;
            }
            self.reads[key] -= 1;
            self.main.push_back(key);
        }
    }

    fn refuse(&mut self, key: usize) {
        self.stored[key] = false;
        self.ghosts.push(key);
        self.is_ghost[key] = true;
        if self.ghosts.len > self.main_max {
            self.is_ghost[self.ghosts.oldest] = false;
            self.ghosts.remove(self.ghosts.oldest);
        }
    }
}

/// Evicts the key whose next read is farthest away (Belady), which only a look into the future can.
pub(crate) fn optimal(trace: &[u32], capacity: usize) -> u64 {
    let mut next = vec![NONE; trace.len()];
    let mut seen = vec![NONE; count(trace)];
    for (at, key) in keys(trace).enumerate().collect::<Vec<_>>().into_iter().rev() {
        next[at] = std::mem::replace(&mut seen[key], at);
    }
    let (mut due, mut stored) = (vec![NONE; count(trace)], vec![false; count(trace)]);
    let (mut farthest, mut len, mut hits) = (BinaryHeap::new(), 0, 0);
    for (at, key) in keys(trace).enumerate() {
        if std::mem::replace(&mut stored[key], true) {
            hits += 1;
        } else {
            len += 1;
        }
        due[key] = next[at];
        farthest.push((next[at], key));
        while len > capacity {
            let Some((when, victim)) = farthest.pop() else { break };
            // Others in the heap were read again, and have a later entry there.
            if stored[victim] && due[victim] == when {
                stored[victim] = false;
                len -= 1;
            }
        }
    }
    hits
}
