//! How many clients the limit on open files allows.

use crate::config::Config;
use crate::{http, resp};

/// How many clients may be let in.
#[derive(Debug, Clone, Copy)]
pub(super) struct FdBudget {
    pub(super) http: usize,
    pub(super) resp: usize,
}

/// Raises the limit on open files as far as the system allows, since the usual 1024 is for programs that use `select`.
/// Returns how many clients may be let in: no more than there are descriptors for beside the proxy's own, since a link to
/// Redis must always be possible.
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

/// How many clients a listener is to let in.
struct Wanted {
    key: &'static str,
    connections: usize,
    default: usize,
}

impl Wanted {
    /// As many of them as there are open files `left` for.
    fn clamp(&self, left: usize, open_files: usize) -> usize {
        let Self { key, connections: wanted, default } = *self;
        let affordable = left.max(1);
        if wanted > affordable {
            // Nobody asked for the default, so nobody need do something about it.
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

/// Its own, and that of its link.
const DESCRIPTORS_PER_RESP_CLIENT: usize = 2;

/// Listeners, the link, event queues, standard streams, and what a reload or a refusal opens for a moment.
const DESCRIPTORS_BESIDE: usize = 64;

/// The event queue of a worker.
const DESCRIPTORS_PER_WORKER: usize = 4;
