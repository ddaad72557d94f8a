//! The warm start: the names of the hottest keys survive a restart, and their values are fetched
//! again.
//!
//! The names are written to a file every minute and at the shutdown, and read at the start. Values
//! are never written. Each key is fetched by an ordinary flight, so every rule of the cache holds
//! for it.
//!
//! The rule that must not be broken: warming delays no reader. It runs in the background at a
//! bounded rate, uses at most half of the fetches, and stops when the cache is full. So it evicts
//! nothing. A file that cannot be used is a warning.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use percent_encoding::percent_decode;
use serde::{Deserialize, Serialize};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, interval, sleep};

use crate::proxy::{NotReady, Proxy};
use crate::settings::{self, RuleViolation, violations};
use crate::sync::lock;
use crate::telemetry::hot_keys::{self, HotKeys};

/// `[warm]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The file that keeps the names of the hottest keys across a restart. Empty disables it.
    pub file: PathBuf,
    /// The number of keys in the file.
    #[serde(with = "settings::count")]
    pub keys: usize,
    /// The most keys that are fetched in a second after a start.
    #[serde(with = "settings::count")]
    pub rate: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { file: PathBuf::new(), keys: 1000, rate: 500 }
    }
}

impl Settings {
    pub(crate) fn violations(&self) -> Vec<RuleViolation> {
        let keys = format!("found {}, expected 1 to {MAX_KEYS}", self.keys);
        let rate = format!("found {}, expected 1 to {MAX_RATE}", self.rate);
        violations([
            (!(1..=MAX_KEYS).contains(&self.keys), "warm.keys", &keys),
            (!(1..=MAX_RATE).contains(&self.rate), "warm.rate", &rate),
        ])
    }

    /// Returns the number of keys to save, which is zero without a file.
    pub fn keys_to_save(&self) -> usize {
        if self.file.as_os_str().is_empty() { 0 } else { self.keys }
    }
}

const MAX_KEYS: usize = 16_384;
const MAX_RATE: usize = 100_000;
/// The interval between saves.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// The time after a start during which the names from the file complete the counted ones. Until
/// then too few reads are counted.
const MERGE_PERIOD: Duration = Duration::from_secs(120);
/// The number of concurrent fetches. With only one, the latency of a distant Redis would limit the
/// rate.
const MAX_CONCURRENT: usize = 8;
/// The pause before the next check for capacity, or for Redis.
const RECHECK_INTERVAL: Duration = Duration::from_millis(50);
const HEADER: &str =
    "# Keys that redis-proxy was asked for most, the first most of all; each as behind /keys/.\n";

/// A predicate: whether at least one listener serves the key.
pub type KeyFilter = Box<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Saves and loads the names of hot keys. Clones share the state.
#[derive(Clone)]
pub struct Warmup(Arc<Shared>);

struct Shared {
    settings: Settings,
    /// The number of flights from which on warming pauses, to leave room for readers.
    max_in_flight: usize,
    filter: KeyFilter,
    hot_keys: HotKeys,
    proxy: Proxy,
    started: Instant,
    /// The names that were in the file at the start. `None` until the file is read.
    saved: Mutex<Option<Vec<Vec<u8>>>>,
}

impl Warmup {
    /// Creates the warm-up. It fetches the keys that pass `filter` through `proxy`, and only while
    /// fewer than half of `max_fetches` are in progress. It saves the keys that `hot_keys` counts.
    pub fn new(
        settings: Settings,
        max_fetches: usize,
        filter: KeyFilter,
        hot_keys: HotKeys,
        proxy: Proxy,
    ) -> Self {
        let (max_in_flight, started, saved) =
            ((max_fetches / 2).max(1), Instant::now(), Mutex::default());
        Self(Arc::new(Shared { settings, max_in_flight, filter, hot_keys, proxy, started, saved }))
    }

    /// Fetches the saved keys, and saves the hot keys every minute, until the daemon ends.
    pub async fn run(self) {
        let keys = self.0.load().await;
        let save_regularly = async {
            loop {
                sleep(SAVE_INTERVAL).await;
                self.save().await;
            }
        };
        tokio::join!(self.0.fetch(keys), save_regularly);
    }

    /// Writes the names of the keys that are hottest now.
    pub async fn save(&self) {
        let (file, keys) = (self.0.settings.file.clone(), self.0.hottest_keys());
        // The existing file may still be of use.
        if keys.is_empty() {
            return;
        }
        if let Ok(Err(error)) = spawn_blocking(move || write(&file, &keys)).await {
            let file = self.0.settings.file.display();
            tracing::warn!(%file, %error, "the names of the hottest keys were not written");
        }
    }
}

impl Shared {
    async fn load(&self) -> Vec<Vec<u8>> {
        let (file, limit) = (self.settings.file.clone(), self.settings.keys);
        let shown = self.settings.file.display();
        let keys = match spawn_blocking(move || read(&file, limit)).await {
            Ok(Ok(SavedKeys { keys, damaged })) => {
                if damaged > 0 {
                    tracing::warn!(file = %shown, damaged, "some lines of hot keys are no keys, \
                        and were left out");
                }
                keys
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Ok(Err(error)) => {
                tracing::warn!(file = %shown, %error, "the names of the hottest keys cannot be \
                    read");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        *lock(&self.saved) = Some(keys.clone());
        keys
    }

    /// Returns the hottest keys. Shortly after a start, the names from the file follow them.
    fn hottest_keys(&self) -> Vec<Vec<u8>> {
        let saved = lock(&self.saved);
        let (now, Some(saved)) = (Instant::now(), &*saved) else { return Vec::new() };
        let mut keys = self.hot_keys.warmup_keys(self.settings.keys, now);
        if !keys.is_empty() && now.saturating_duration_since(self.started) < MERGE_PERIOD {
            let more: Vec<_> = saved.iter().filter(|key| !keys.contains(key)).cloned().collect();
            keys.extend(more);
            keys.truncate(self.settings.keys);
        }
        keys
    }

    async fn fetch(&self, keys: Vec<Vec<u8>>) {
        let (started, known) = (Instant::now(), keys.len());
        let mut ticker =
            interval(Duration::from_secs(1) / u32::try_from(self.settings.rate).unwrap_or(1));
        let (mut fetches, mut warmed) = (JoinSet::new(), 0_usize);
        for key in keys.into_iter().filter(|key| (self.filter)(key)) {
            ticker.tick().await;
            if !self.wait_for_capacity(&mut ticker).await {
                break;
            }
            if fetches.len() >= MAX_CONCURRENT {
                warmed += usize::from(matches!(fetches.join_next().await, Some(Ok(true))));
            }
            let proxy = self.proxy.clone();
            fetches.spawn(async move { proxy.warm(&key).await });
        }
        warmed += fetches.join_all().await.into_iter().filter(|fetched| *fetched).count();
        if known > 0 {
            tracing::info!(warmed, known, took = ?started.elapsed(), "warm-up finished");
        }
    }

    /// Waits until Redis can be queried and readers leave capacity. Returns `false` if nothing more
    /// would be cached: the proxy drains, the TTL is 0, or the cache is full.
    async fn wait_for_capacity(&self, ticker: &mut tokio::time::Interval) -> bool {
        loop {
            match self.proxy.ready() {
                Err(NotReady::Draining) => return false,
                Ok(()) => {
                    let cache = self.proxy.statistics();
                    if cache.settings.keeps_nothing()
                        || cache.entries >= cache.settings.capacity as u64
                    {
                        return false;
                    }
                    if cache.flights < self.max_in_flight {
                        return true;
                    }
                }
                Err(NotReady::NoUpstream(_)) => {}
            }
            sleep(RECHECK_INTERVAL).await;
            // Missed ticks are not made up for, otherwise a burst would follow.
            ticker.reset();
        }
    }
}

/// The contents of a file.
#[derive(Debug, PartialEq, Eq)]
struct SavedKeys {
    keys: Vec<Vec<u8>>,
    /// The number of lines that are not keys.
    damaged: usize,
}

/// Reads at most `limit` names. Reads no more bytes than so many names can take, otherwise a huge
/// file would fill memory.
fn read(path: &Path, limit: usize) -> io::Result<SavedKeys> {
    // Opening another kind of file, such as a pipe, might never return.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let max_bytes = (HEADER.len() + limit * MAX_LINE_LEN) as u64;
    let mut text = Vec::new();
    File::open(path)?.take(max_bytes).read_to_end(&mut text)?;
    let mut kept = SavedKeys { keys: Vec::new(), damaged: 0 };
    for line in
        text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"#"))
    {
        if kept.keys.len() == limit {
            break;
        }
        match parse(line) {
            Some(key) => kept.keys.push(key),
            None => kept.damaged += 1,
        }
    }
    Ok(kept)
}

/// The longest line in bytes: each byte of a key takes up to three, and a newline follows.
const MAX_LINE_LEN: usize = 3 * hot_keys::MAX_KEY_LEN + 1;

/// Parses a line. Returns `None` if it is not the escaped form of a key.
fn parse(line: &[u8]) -> Option<Vec<u8>> {
    if line.len() >= MAX_LINE_LEN {
        return None;
    }
    let key: Vec<u8> = percent_decode(line).collect();
    (hot_keys::path_escape(&key).as_bytes() == line).then_some(key)
}

/// Writes a new file, readable only by its owner, and replaces the existing one by a rename.
fn write(path: &Path, keys: &[Vec<u8>]) -> io::Result<()> {
    // A device or a directory must not be replaced.
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file() && !there.is_symlink()) {
        return Err(io::Error::other("it is not a file"));
    }
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".hot-keys-").tempfile_in(folder)?;
    let mut text = HEADER.to_owned();
    for key in keys {
        text.push_str(&hot_keys::path_escape(key));
        text.push('\n');
    }
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|failed| failed.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn key_file_round_trips_with_owner_only_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let keys: Vec<Vec<u8>> = [b"plain:1".as_slice(), b"with\nlines %\0\xff", b"#hash", b"e"]
            .map(<[u8]>::to_vec)
            .into();
        write(&path, &keys).unwrap();
        assert_eq!(read(&path, 10).unwrap(), SavedKeys { keys: keys.clone(), damaged: 0 });
        assert_eq!(read(&path, 2).unwrap().keys, keys[..2]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        write(&path, &keys[..1]).unwrap();
        assert_eq!(read(&path, 10).unwrap().keys, keys[..1]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn symlink_is_replaced_and_target_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("keys"), folder.path().join("other"));
        fs::write(&other, "precious\n").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        write(&path, &[b"key".to_vec()]).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious\n");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn damaged_lines_are_skipped_in_bounded_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, b"good\n%zz\n\xff\xfe\n\nlower%2a\nalso%0Agood\ncut off%").unwrap();
        let expected =
            SavedKeys { keys: vec![b"good".to_vec(), b"also\ngood".to_vec()], damaged: 4 };
        assert_eq!(read(&path, 10).unwrap(), expected);
        fs::write(&path, "x".repeat(MAX_LINE_LEN)).unwrap();
        assert_eq!(read(&path, 10).unwrap(), SavedKeys { keys: Vec::new(), damaged: 1 });
        // A sparse file takes no disk space, whatever its length.
        File::create(&path).unwrap().set_len(512 << 20).unwrap();
        assert_eq!(read(&path, 1000).unwrap(), SavedKeys { keys: Vec::new(), damaged: 1 });
        assert!(read(folder.path(), 10).is_err() && read(Path::new("/dev/zero"), 10).is_err());
        assert!(
            write(Path::new("/dev/null"), &[]).is_err()
                && !fs::metadata("/dev/null").unwrap().is_file()
        );
        fs::write(&path, "key:%00\n".repeat(1_000_000)).unwrap();
        assert_eq!(read(&path, 1000).unwrap().keys.len(), 1000);
    }

    proptest! {
        #[test]
        fn arbitrary_key_file_never_panics(
            text in proptest::collection::vec(any::<u8>(), 0..400),
            limit in 1_usize..5,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("keys");
            fs::write(&path, &text).unwrap();
            let kept = read(&path, limit).unwrap();
            prop_assert!(kept.keys.len() <= limit);
            write(&path, &kept.keys).unwrap();
            prop_assert_eq!(read(&path, limit).unwrap(), SavedKeys { keys: kept.keys, damaged: 0 });
        }
    }
}
