//! The files of a start that fails: all that cannot be used, so that they are mended at once.

use crate::backend::Backend;
use crate::config::Config;

/// The errors of all files that the configuration names, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct BadFiles(Vec<String>);

impl BadFiles {
    /// Reads every file that `config` names. Returns `None` if all can be used.
    ///
    /// It is for a start that has failed. Files that can be used are not read twice, otherwise a
    /// secret could not come from a pipe.
    pub(super) fn find(config: &Config, serves_resp: bool) -> Option<Self> {
        let mut errors: Vec<String> =
            Backend::file_errors(&config.redis).iter().map(ToString::to_string).collect();
        errors.extend(config.rest.file_errors().iter().map(ToString::to_string));
        errors.extend(config.http.file_errors().iter().map(ToString::to_string));
        if serves_resp {
            errors.extend(config.resp.file_errors().iter().map(ToString::to_string));
        }
        (!errors.is_empty()).then_some(Self(errors))
    }
}
