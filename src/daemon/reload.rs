//! A reload. Everything is read and checked before any of it is applied (invariant A5).

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use crate::access::{Commit, Prepare};
use crate::config::{Config, Problem, Problems, Sources};
use crate::upstream::Upstream;

/// Reads all files again. The returned commits are applied together, or not at all.
fn prepare_files(files: &[Prepare]) -> Result<Vec<Commit>, Problems> {
    let (mut commits, mut problems) = (Vec::new(), Vec::new());
    for prepare in files {
        match prepare() {
            Ok(commit) => commits.push(commit),
            Err(error) => problems.push(Problem::from_file_error(&error)),
        }
    }
    if problems.is_empty() { Ok(commits) } else { Err(Problems(problems)) }
}

/// A reload in progress.
pub(super) type Reload = JoinHandle<Result<ReloadOutcome, Problems>>;

/// A loaded configuration. Its part for the cache is already applied.
pub(super) struct ReloadOutcome {
    pub(super) config: Config,
    pub(super) evicted: u64,
    pub(super) took: Duration,
}

/// Waits for the reload in progress and removes it. Never returns if there is none.
pub(super) async fn reload_finished(
    reload: &mut Option<Reload>,
) -> Result<Result<ReloadOutcome, Problems>, JoinError> {
    let Some(running) = reload else { return std::future::pending().await };
    let reloaded = running.await;
    *reload = None;
    reloaded
}

/// Loads the configuration and the files that it names for the listeners. Applies the files and the
/// part for the cache. All of it runs on a blocking thread: a file may be on a disk that hangs, and
/// a large cache takes time.
pub(super) fn start(
    sources: Sources,
    current: Config,
    files: Arc<Vec<Prepare>>,
    upstream: Upstream,
) -> Reload {
    tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        let (config, files) = (sources.reload(&current), prepare_files(&files));
        let (config, files) = match (config, files) {
            (Ok(config), Ok(files)) => (config, files),
            (config, files) => return Err(Problems::merge([config.err(), files.err()])),
        };
        for commit in files {
            commit();
        }
        let evicted = upstream.apply(&config.cache);
        Ok(ReloadOutcome { config, evicted, took: begun.elapsed() })
    })
}
