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
pub struct FromFile<T> {
    read: Arc<dyn Fn() -> Result<T, FileError> + Send + Sync>,
    in_force: Arc<ArcSwap<T>>,
}

impl<T> Clone for FromFile<T> {
    fn clone(&self) -> Self {
        Self { read: Arc::clone(&self.read), in_force: Arc::clone(&self.in_force) }
    }
}

/// Reads files again; what comes of it is put in force by [`Commit`].
pub type Reread = Box<dyn Fn() -> Result<Commit, FileError> + Send + Sync>;
/// Puts in force what was read.
pub type Commit = Box<dyn FnOnce() + Send>;

impl<T: Send + Sync + 'static> FromFile<T> {
    /// What `read` reads now.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn load(
        read: impl Fn() -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        let in_force = Arc::new(ArcSwap::from_pointee(read()?));
        Ok(Self { read: Arc::new(read), in_force })
    }

    /// What is in force.
    pub fn get(&self) -> Arc<T> {
        self.in_force.load_full()
    }

    /// For reloads.
    pub fn reread(&self) -> Reread {
        let this = self.clone();
        Box::new(move || {
            let (read, in_force) = ((this.read)()?, Arc::clone(&this.in_force));
            Ok(Box::new(move || in_force.store(Arc::new(read))))
        })
    }
}
