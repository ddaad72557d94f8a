//! The reads over which Redis closes connections.
//!
//! Redis closes the connection of a client whose replies exceed `client-output-buffer-limit`, and
//! drops them. So such a read ends the shared connection, which empties the cache, and the size of
//! its reply stays unknown.
//!
//! Model: every read that was pending when Redis closed the shared connection is a suspect. It is
//! first sent alone: over a connection of its own, and the reply is discarded. A suspect that waits
//! too long for its turn, or gets no such connection, is sent as usual. A suspect that gets its
//! reply is cleared. If Redis closes that connection too, the read is refused for a while, and then
//! sent alone again.
//!
//! The rule that must not be broken: a refused read uses the shared connection only after it got a
//! reply alone. Otherwise it would empty the cache again after each pause. The table is bounded, so
//! the rule ends for the oldest read of too many.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::fetch_command::write_value;
use crate::key::Key;
use crate::sync::lock;

/// The time for which a read is refused after Redis closed the connection over it alone.
const REFUSAL: Duration = Duration::from_secs(60);
/// The time for which a read is a suspect if nothing has cleared it. A suspect that is not read
/// again does no harm, so it need not be remembered for long.
pub(super) const SUSPICION: Duration = Duration::from_secs(10);
/// The most reads that are remembered.
const MAX_READS: usize = 1024;
/// The most reads that are sent alone at the same time.
const MAX_ALONE: usize = 8;
/// The most reads that wait to be sent alone after their readers gave up. The turns of the others
/// are left to readers.
const MAX_LATER: usize = MAX_ALONE / 2;
/// The longest time that a read waits to be sent alone. A suspect that waits longer is sent as
/// usual. Otherwise most of hundreds of reads of a remote Redis would fail at their deadline, each
/// time a connection is lost.
pub(super) const ALONE_WAIT: Duration = Duration::from_millis(500);
/// The time between two warnings about refused reads.
const WARN_AFTER: Duration = Duration::from_secs(60);

/// A read as it is sent to Redis.
#[derive(Debug, Clone, Copy)]
pub(super) enum SentRead<'a> {
    /// `GET` of a key.
    Value(&'a Key),
    /// `GET` of a key behind `ASKING`.
    AskedValue(&'a Key),
    /// A whole command, as RESP bytes.
    Command(&'a [u8]),
}

/// A [`SentRead`] that outlives its request.
#[derive(Debug, Clone)]
pub(super) enum OwnedRead {
    Value(Key),
    AskedValue(Key),
    Command(Bytes),
}

impl OwnedRead {
    pub(super) fn as_sent(&self) -> SentRead<'_> {
        match self {
            Self::Value(key) => SentRead::Value(key),
            Self::AskedValue(key) => SentRead::AskedValue(key),
            Self::Command(command) => SentRead::Command(command),
        }
    }
}

impl<'a> SentRead<'a> {
    /// Returns a copy.
    pub(super) fn to_owned(self) -> OwnedRead {
        match self {
            Self::Value(key) => OwnedRead::Value(key.clone()),
            Self::AskedValue(key) => OwnedRead::AskedValue(key.clone()),
            Self::Command(command) => OwnedRead::Command(Bytes::copy_from_slice(command)),
        }
    }

    /// Appends the commands. Returns the number of their replies.
    pub(super) fn write(self, commands: &mut BytesMut) -> usize {
        match self {
            Self::Value(key) => {
                write_value(key.as_bytes(), commands);
                1
            }
            Self::AskedValue(key) => {
                commands.extend_from_slice(b"*1\r\n$6\r\nASKING\r\n");
                write_value(key.as_bytes(), commands);
                2
            }
            Self::Command(command) => {
                commands.extend_from_slice(command);
                1
            }
        }
    }

    /// Returns the name of the command.
    pub(super) fn name(self) -> Cow<'a, str> {
        match self {
            Self::Value(_) | Self::AskedValue(_) => Cow::Borrowed("GET"),
            Self::Command(command) => {
                // Behind the number of words and the length of the name.
                let name = command.split(|byte| *byte == b'\n').nth(2).unwrap_or_default();
                String::from_utf8_lossy(name.trim_ascii_end())
            }
        }
    }

    fn hash(self, hasher: &ahash::RandomState) -> u64 {
        match self {
            Self::Value(key) | Self::AskedValue(key) => hasher.hash_one((true, key.as_bytes())),
            Self::Command(command) => hasher.hash_one((false, command)),
        }
    }
}

/// The suspicion against a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// None: the read uses the shared connection.
    None,
    /// The read is sent alone first, if it gets its turn within [`ALONE_WAIT`].
    Suspected,
    /// The read was refused, and is sent alone before anything else.
    ToProve,
    /// The read is not sent.
    Refused,
}

/// The reads over which Redis closes connections, and those that may be such reads.
pub(super) struct Suspects {
    table: Mutex<Table>,
    /// The number of reads in the table. While it is zero, a read takes no lock.
    count: AtomicUsize,
    hasher: ahash::RandomState,
    /// The permits to send a read alone.
    pub(super) permits: Semaphore,
    /// The permits to wait for that without a reader.
    pub(super) later: Arc<Semaphore>,
}

impl Suspects {
    pub(super) fn new() -> Self {
        Self {
            table: Mutex::default(),
            count: AtomicUsize::new(0),
            hasher: ahash::RandomState::new(),
            permits: Semaphore::new(MAX_ALONE),
            later: Arc::new(Semaphore::new(MAX_LATER)),
        }
    }

    /// Returns the suspicion against a read.
    #[inline]
    pub(super) fn suspicion(&self, read: SentRead<'_>) -> Suspicion {
        if self.count.load(Relaxed) == 0 {
            return Suspicion::None;
        }
        lock(&self.table).suspicion(read.hash(&self.hasher), Instant::now())
    }

    /// Records that Redis closed the shared connection while the read was pending.
    pub(super) fn suspect(&self, read: SentRead<'_>) {
        self.change(|table| table.suspect(read.hash(&self.hasher), Instant::now()));
    }

    /// Records that Redis closed the connection over the read alone. Returns whether a warning is
    /// due.
    pub(super) fn refuse(&self, read: SentRead<'_>) -> bool {
        self.change(|table| table.refuse(read.hash(&self.hasher), Instant::now()))
    }

    /// Records that the read got its reply alone.
    pub(super) fn clear(&self, read: SentRead<'_>) {
        self.change(|table| _ = table.reads.remove(&read.hash(&self.hasher)));
    }

    /// Whether Redis closed a connection over the read alone before.
    pub(super) fn was_refused(&self, read: SentRead<'_>) -> bool {
        matches!(self.suspicion(read), Suspicion::ToProve | Suspicion::Refused)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = lock(&self.table);
        let result = change(&mut table);
        self.count.store(table.reads.len(), Relaxed);
        result
    }
}

/// The state of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Record {
    /// A suspect until this time.
    Suspected(Instant),
    /// Refused until this time, and a suspect from then on.
    Refused(Instant),
}

/// The states of reads, each by the hash of the read.
#[derive(Default)]
struct Table {
    reads: HashMap<u64, Record>,
    last_warning: Option<Instant>,
}

impl Table {
    fn suspicion(&self, read: u64, now: Instant) -> Suspicion {
        match self.reads.get(&read) {
            Some(Record::Suspected(until)) if now < *until => Suspicion::Suspected,
            Some(Record::Refused(until)) if now < *until => Suspicion::Refused,
            Some(Record::Refused(_)) => Suspicion::ToProve,
            Some(Record::Suspected(_)) | None => Suspicion::None,
        }
    }

    fn suspect(&mut self, read: u64, now: Instant) {
        // A refusal is proven, so a suspicion does not replace it.
        if !matches!(self.reads.get(&read), Some(Record::Refused(_))) {
            self.insert(read, Record::Suspected(now + SUSPICION), now);
        }
    }

    /// Returns whether a warning is due: the read was not refused before, and there was no other
    /// warning for a while.
    fn refuse(&mut self, read: u64, now: Instant) -> bool {
        let is_known = matches!(self.reads.get(&read), Some(Record::Refused(_)));
        self.insert(read, Record::Refused(now + REFUSAL), now);
        let is_recent = self.last_warning.is_some_and(|last| now < last + WARN_AFTER);
        let is_due = !is_known && !is_recent;
        if is_due {
            self.last_warning = Some(now);
        }
        is_due
    }

    /// Inserts a record. A full table loses lapsed suspects, then the oldest suspect, then the
    /// oldest refused read.
    fn insert(&mut self, read: u64, record: Record, now: Instant) {
        if self.reads.len() >= MAX_READS && !self.reads.contains_key(&read) {
            self.reads.retain(|_, record| !matches!(record, Record::Suspected(end) if *end <= now));
            let oldest = self.reads.iter().min_by_key(|(_, record)| **record);
            if let Some(oldest) = oldest.map(|(read, _)| *read)
                && self.reads.len() >= MAX_READS
            {
                self.reads.remove(&oldest);
            }
        }
        self.reads.insert(read, record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn suspect_is_forgotten_and_refused_read_is_not() {
        let (begin, mut table) = (Instant::now(), Table::default());
        assert_eq!(table.suspicion(1, begin), Suspicion::None);
        table.suspect(1, begin);
        table.refuse(2, begin);
        for (after, suspected, refused) in [
            (Duration::ZERO, Suspicion::Suspected, Suspicion::Refused),
            (SUSPICION / 10 * 9, Suspicion::Suspected, Suspicion::Refused),
            (SUSPICION, Suspicion::None, Suspicion::Refused),
            (REFUSAL / 10 * 9, Suspicion::None, Suspicion::Refused),
            (REFUSAL, Suspicion::None, Suspicion::ToProve),
            (1000 * REFUSAL, Suspicion::None, Suspicion::ToProve),
        ] {
            let now = begin + after;
            assert_eq!(table.suspicion(1, now), suspected, "{after:?}");
            assert_eq!(table.suspicion(2, now), refused, "{after:?}");
        }
    }

    #[test]
    fn suspicion_does_not_replace_a_refusal() {
        let (begin, mut table) = (Instant::now(), Table::default());
        table.suspect(1, begin);
        table.refuse(1, begin);
        table.suspect(1, begin);
        assert_eq!(table.suspicion(1, begin + SUSPICION), Suspicion::Refused);
        // Refused again at the end of the pause.
        table.refuse(1, begin + REFUSAL);
        assert_eq!(table.suspicion(1, begin + REFUSAL), Suspicion::Refused);
    }

    #[test]
    fn first_refusal_is_a_warning_at_most_once_a_minute() {
        let (begin, mut table) = (Instant::now(), Table::default());
        let mut refuse = |read, after| table.refuse(read, begin + after);
        assert_eq!([refuse(1, Duration::ZERO), refuse(2, SECOND)], [true, false]);
        assert_eq!([refuse(1, WARN_AFTER), refuse(3, WARN_AFTER)], [false, true]);
    }

    #[test]
    fn full_table_keeps_refused_reads_longest() {
        let (begin, mut table) = (Instant::now(), Table::default());
        let most = MAX_READS as u64;
        table.refuse(0, begin);
        for read in 1..2 * most {
            table.suspect(read, begin + Duration::from_millis(read));
        }
        assert_eq!(table.reads.len(), MAX_READS);
        let now = begin + Duration::from_millis(2 * most);
        assert_eq!(table.suspicion(0, now), Suspicion::Refused);
        assert_eq!(table.suspicion(1, now), Suspicion::None);
        assert_eq!(table.suspicion(2 * most - 1, now), Suspicion::Suspected);
        // Lapsed suspects leave together.
        table.suspect(0, now + 1000 * REFUSAL);
        table.suspect(3 * most, now + 1000 * REFUSAL);
        assert_eq!(table.reads.len(), 2);
        // Beyond that many refused reads, the oldest leaves.
        for read in 4 * most..5 * most {
            table.refuse(read, now + Duration::from_millis(read));
        }
        assert_eq!(table.reads.len(), MAX_READS);
        assert_eq!(table.suspicion(0, now), Suspicion::None);
    }

    #[test]
    fn read_is_cleared_by_its_own_bytes_only() {
        let (suspects, key, other) = (Suspects::new(), Key::from(&b"k"[..]), Key::from(&b"l"[..]));
        suspects.suspect(SentRead::Value(&key));
        assert_eq!(suspects.suspicion(SentRead::AskedValue(&key)), Suspicion::Suspected);
        for read in [SentRead::Value(&other), SentRead::Command(b"k")] {
            assert_eq!(suspects.suspicion(read), Suspicion::None);
            suspects.clear(read);
        }
        assert_eq!(suspects.suspicion(SentRead::Value(&key)), Suspicion::Suspected);
        assert!(suspects.refuse(SentRead::Value(&key)));
        assert_eq!(suspects.suspicion(SentRead::Value(&key)), Suspicion::Refused);
        suspects.clear(SentRead::AskedValue(&key));
        assert_eq!(suspects.suspicion(SentRead::Value(&key)), Suspicion::None);
        assert_eq!(suspects.count.load(Relaxed), 0);
    }

    #[test]
    fn suspect_was_refused_only_after_a_trial() {
        let suspects = Suspects::new();
        let (suspect, refused) = (SentRead::Command(b"a"), SentRead::Command(b"b"));
        suspects.suspect(suspect);
        suspects.refuse(refused);
        assert!(!suspects.was_refused(suspect) && suspects.was_refused(refused));
    }

    #[test]
    fn read_is_written_as_it_was_sent() {
        let key = Key::from(&b"k"[..]);
        let get = "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
        let command = "*2\r\n$7\r\nHGETALL\r\n$1\r\nk\r\n";
        for (read, name, bytes, replies) in [
            (SentRead::Value(&key), "GET", get.to_owned(), 1),
            (SentRead::AskedValue(&key), "GET", format!("*1\r\n$6\r\nASKING\r\n{get}"), 2),
            (SentRead::Command(command.as_bytes()), "HGETALL", command.to_owned(), 1),
        ] {
            let mut written = BytesMut::new();
            assert_eq!(read.write(&mut written), replies);
            assert_eq!(&written[..], bytes.as_bytes());
            assert_eq!(read.name(), name);
        }
    }
}
