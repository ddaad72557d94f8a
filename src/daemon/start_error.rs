//! The reasons for a failed start.

use std::io;

use super::bad_files::BadFiles;
use super::systemd::ActivationError;
use crate::access::FileError;
use crate::backend::PrepareError;
use crate::server::BindError;

/// The reason why the daemon could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file that the configuration names for Redis cannot be used.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A file of a front end cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Files that the configuration names cannot be used.
    #[error(transparent)]
    Files(#[from] BadFiles),
    /// An address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket that systemd passed cannot be used.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// The system refuses threads, signal handlers or the like.
    #[error("the system refuses what the daemon needs: {0}")]
    System(#[from] io::Error),
    /// Two metrics have the same name.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}
