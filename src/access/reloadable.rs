//! Values read from files, with reload: read at startup and again at each SIGHUP. A new value
//! replaces the previous one only after every file of the same reload is valid (invariant A5).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

/// A configured file that cannot be used. The error never repeats the content of the file.
#[derive(Debug, thiserror::Error)]
#[error("{key}: \"{}\" {problem}", path.display())]
pub struct FileError {
    /// The configuration key that names the file.
    pub key: String,
    /// The path of the file.
    pub path: PathBuf,
    /// The problem with the file.
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

/// A value read from files. Clones share it.
pub struct Reloadable<T> {
    read: Arc<dyn Fn() -> Result<T, FileError> + Send + Sync>,
    current: Arc<ArcSwap<T>>,
}

impl<T> Clone for Reloadable<T> {
    fn clone(&self) -> Self {
        Self { read: Arc::clone(&self.read), current: Arc::clone(&self.current) }
    }
}

/// Reads the files again, and returns the [`Commit`] that applies the new value.
pub type Prepare = Box<dyn Fn() -> Result<Commit, FileError> + Send + Sync>;
/// Applies a value that was read before.
pub type Commit = Box<dyn FnOnce() + Send>;

impl<T: Send + Sync + 'static> Reloadable<T> {
    /// Loads the value with `read`, and keeps `read` for reloads.
    ///
    /// # Errors
    /// The `FileError` that `read` returns.
    pub fn load(
        read: impl Fn() -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        let current = Arc::new(ArcSwap::from_pointee(read()?));
        Ok(Self { read: Arc::new(read), current })
    }

    /// Returns the current value.
    pub fn get(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Returns the function that reads the files again at a reload.
    pub fn reloader(&self) -> Prepare {
        let this = self.clone();
        Box::new(move || {
            let (read, current) = ((this.read)()?, Arc::clone(&this.current));
            Ok(Box::new(move || current.store(Arc::new(read))))
        })
    }
}
