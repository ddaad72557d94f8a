//! The numbers of clients that the limit on open files allows.

use crate::config::Config;
use crate::{http, resp};

/// The numbers of client connections that may be open.
#[derive(Debug, Clone, Copy)]
pub(super) struct FdBudget {
    pub(super) http: usize,
    pub(super) resp: usize,
}

/// Raises the limit on open files as far as the system allows. The usual 1024 is meant for programs
/// that use `select`.
///
/// Returns the numbers of clients to admit. They leave the descriptors that the proxy needs for
/// itself, otherwise a full proxy could not connect to Redis again.
pub(super) fn fit_fd_limit(config: &Config) -> FdBudget {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let open_files = getrlimit(Resource::Nofile)
        .current
        .and_then(|limit| limit.try_into().ok())
        .unwrap_or(usize::MAX);
    let operators = if config.admin.listen.is_off() { 0 } else { config.admin.max_connections };
    let own = DESCRIPTORS_BESIDE + DESCRIPTORS_PER_WORKER * config.daemon.threads() + operators;
    let left = open_files.saturating_sub(own);
    let http = Wanted {
        key: "http.max_connections",
        connections: config.http.max_connections,
        default: http::Settings::default().max_connections,
    };
    let http = http.clamp(left, open_files);
    let left = left.saturating_sub(http) / DESCRIPTORS_PER_RESP_CLIENT;
    let resp = Wanted {
        key: "resp.max_connections",
        connections: config.resp.max_connections,
        default: resp::Settings::default().max_connections,
    };
    let resp =
        if config.resp.listen.is_off() { resp.connections } else { resp.clamp(left, open_files) };
    FdBudget { http, resp }
}

/// A configured number of client connections, with its key and its default.
struct Wanted {
    key: &'static str,
    connections: usize,
    default: usize,
}

impl Wanted {
    /// Returns the configured number, but at most the number of files that are `left`, and at least
    /// 1. Logs a line if that is less than configured.
    fn clamp(&self, left: usize, open_files: usize) -> usize {
        let Self { key, connections: wanted, default } = *self;
        let affordable = left.max(1);
        if wanted > affordable {
            // The default was not chosen by the operator, so no action is needed.
            if wanted == default {
                tracing::info!(
                    open_files,
                    affordable,
                    "{key} is lower than its default: the system has no more open files"
                );
            } else {
                tracing::warn!(
                    open_files,
                    affordable,
                    "{key} is more than the system has open files for"
                );
            }
        }
        wanted.min(affordable)
    }
}

/// One for the client, and one for its dedicated connection.
const DESCRIPTORS_PER_RESP_CLIENT: usize = 2;

/// Descriptors for listeners, the connection to Redis, event queues and standard streams, and for
/// files that a reload or a rejection opens for a moment.
const DESCRIPTORS_BESIDE: usize = 64;

/// Descriptors for the event queue of a worker.
const DESCRIPTORS_PER_WORKER: usize = 4;
