//! A reload: everything is read and checked before anything of it is put in force.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use crate::access::{Commit, Prepare};
use crate::config::{Config, Problem, Problems, Sources};
use crate::upstream::Upstream;

/// Reads all files again, for what they say to be put in force together.
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

/// A reload on its way.
pub(super) type Reload = JoinHandle<Result<ReloadOutcome, Problems>>;

/// A configuration whose part for the cache is in force.
pub(super) struct ReloadOutcome {
    pub(super) config: Config,
    pub(super) evicted: u64,
    pub(super) took: Duration,
}

/// The end of the reload on its way, which then is on its way no more; never, if there is none.
pub(super) async fn reload_finished(
    reload: &mut Option<Reload>,
) -> Result<Result<ReloadOutcome, Problems>, JoinError> {
    let Some(running) = reload else { return std::future::pending().await };
    let reloaded = running.await;
    *reload = None;
    reloaded
}

/// Loads the configuration as it is written now, and the files it names for the listeners, and puts these and the
/// cache's part of it in force, beside everything else: a file may be on a disk that hangs, and a large cache takes its
/// time.
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
