//! What a file says, as it is in force: read at the start and again at each SIGHUP, when it takes the place of what was
//! read before only once every other file of the same reload is right, too.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

/// A file that the configuration names and that cannot be used. It repeats nothing of what is in it.
#[derive(Debug, thiserror::Error)]
#[error("{key}: \"{}\" {problem}", path.display())]
pub struct FileError {
    /// The key that names it.
    pub key: String,
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl FileError {
    pub(crate) fn new(key: impl Into<String>, path: &Path, problem: impl fmt::Display) -> Self {
        Self {
            key: key.into(),
            path: path.to_owned(),
            problem: format!("cannot be used: {problem}"),
        }
    }
}

/// What was read from files. Clones share it.
pub struct Reloadable<T> {
    read: Arc<dyn Fn() -> Result<T, FileError> + Send + Sync>,
    current: Arc<ArcSwap<T>>,
}

impl<T> Clone for Reloadable<T> {
    fn clone(&self) -> Self {
        Self { read: Arc::clone(&self.read), current: Arc::clone(&self.current) }
    }
}

/// Reads files again; what comes of it is put in force by [`Commit`].
pub type Prepare = Box<dyn Fn() -> Result<Commit, FileError> + Send + Sync>;
/// Puts in force what was read.
pub type Commit = Box<dyn FnOnce() + Send>;

impl<T: Send + Sync + 'static> Reloadable<T> {
    /// What `read` reads now.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn load(
        read: impl Fn() -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        let current = Arc::new(ArcSwap::from_pointee(read()?));
        Ok(Self { read: Arc::new(read), current })
    }

    /// What is in force.
    pub fn get(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// For reloads.
    pub fn reloader(&self) -> Prepare {
        let this = self.clone();
        Box::new(move || {
            let (read, current) = ((this.read)()?, Arc::clone(&this.current));
            Ok(Box::new(move || current.store(Arc::new(read))))
        })
    }
}
