//! The numbers of clients that the limit on open files allows.

use crate::config::Config;

/// The numbers of client connections that may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FdBudget {
    pub(super) http: usize,
    pub(super) resp: usize,
    pub(super) rest: usize,
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
    let rest = &config.rest;
    let of_rest = if rest.is_enabled() { rest.max_upstream + rest.max_streams } else { 0 };
    let own = DESCRIPTORS_BESIDE
        + DESCRIPTORS_PER_WORKER * config.daemon.threads()
        + operators.saturating_add(of_rest);
    let wanted = FdBudget {
        http: config.http.max_connections,
        resp: config.resp.max_connections,
        rest: if rest.listen.is_off() { 0 } else { rest.max_connections },
    };
    let is_resp_off = config.resp.listen.is_off();
    let admitted = share_all(open_files.saturating_sub(own), wanted, is_resp_off);
    if admitted != wanted {
        warn(open_files, own, wanted, admitted, is_resp_off);
    }
    admitted
}

/// Shares `left` descriptors between the front ends. Both that speak HTTP count as one, and share
/// its part in the ratio of what they want.
fn share_all(left: usize, wanted: FdBudget, is_resp_off: bool) -> FdBudget {
    let FdBudget { http, rest, .. } = wanted;
    if rest == 0 {
        return share(left, wanted, is_resp_off);
    }
    let both = http.saturating_add(rest);
    let shared = share(left, FdBudget { http: both, ..wanted }, is_resp_off);
    let for_rest = shared.http as u128 * rest as u128 / both.max(1) as u128;
    let for_rest = usize::try_from(for_rest).unwrap_or(rest).clamp(1, rest);
    FdBudget { http: shared.http.saturating_sub(for_rest).max(1), rest: for_rest, ..shared }
}

/// Shares `left` descriptors between the front ends in the ratio of what they want, with at least a
/// tenth for each. A front end that wants less than its share leaves the rest to the other.
fn share(left: usize, wanted: FdBudget, is_resp_off: bool) -> FdBudget {
    let http = wanted.http;
    if is_resp_off {
        return FdBudget { http: http.min(left).max(1), ..wanted };
    }
    let resp = wanted.resp.saturating_mul(DESCRIPTORS_PER_RESP_CLIENT);
    let all = http.saturating_add(resp);
    if all <= left {
        return wanted;
    }
    let in_ratio = left as u128 * http as u128 / all.max(1) as u128;
    let in_ratio = usize::try_from(in_ratio).unwrap_or(left);
    let for_http = in_ratio.clamp(left / 10, left - left / 10).min(http);
    let for_resp = (left - for_http).min(resp);
    FdBudget {
        http: (left - for_resp).min(http).max(1),
        resp: (for_resp / DESCRIPTORS_PER_RESP_CLIENT).max(1),
        ..wanted
    }
}

/// Logs that fewer clients are admitted than configured, and the action against it.
fn warn(open_files: usize, own: usize, wanted: FdBudget, admitted: FdBudget, is_resp_off: bool) {
    let resp = if is_resp_off { 0 } else { wanted.resp * DESCRIPTORS_PER_RESP_CLIENT };
    tracing::warn!(
        open_files,
        needed = own.saturating_add(wanted.http).saturating_add(wanted.rest).saturating_add(resp),
        http_max_connections = wanted.http,
        http_admitted = admitted.http,
        resp_max_connections = wanted.resp,
        resp_admitted = admitted.resp,
        rest_max_connections = wanted.rest,
        rest_admitted = admitted.rest,
        "too few open files for max_connections: raise the limit (LimitNOFILE of systemd, ulimit \
            -Hn) or lower http.max_connections, resp.max_connections and rest.max_connections"
    );
}

/// One for the client, and one for its dedicated connection.
const DESCRIPTORS_PER_RESP_CLIENT: usize = 2;

/// Descriptors for listeners, the connection to Redis, event queues and standard streams, and for
/// files that a reload or a rejection opens for a moment.
const DESCRIPTORS_BESIDE: usize = 64;

/// Descriptors for the event queue of a worker.
const DESCRIPTORS_PER_WORKER: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_in_the_ratio_of_the_settings() {
        for (left, http, resp, expected) in [
            (30_000, 10_000, 10_000, (10_000, 10_000)),
            (29_999, 10_000, 10_000, (9_999, 10_000)),
            (900, 10_000, 10_000, (300, 300)),
            // A tenth for the one that wants little.
            (1000, 100_000, 1_000, (900, 50)),
            (1000, 1_000, 100_000, (100, 450)),
            // A front end that wants less than a tenth gets all that it wants.
            (1000, 10, 10_000, (10, 495)),
            (1000, 10_000, 10, (980, 10)),
            (3, 10_000, 10_000, (1, 1)),
            (0, 10_000, 10_000, (1, 1)),
            (1000, 1 << 28, 1 << 28, (333, 333)),
        ] {
            let found = share_all(left, FdBudget { http, resp, rest: 0 }, false);
            assert_eq!((found.http, found.resp), expected, "{left}: {http}, {resp}");
        }
        let wanted = FdBudget { http: 10_000, resp: 10_000, rest: 0 };
        assert_eq!(share_all(900, wanted, true), FdBudget { http: 900, ..wanted });
        for (left, rest, expected) in [
            (100_000, 10_000, (10_000, 10_000, 10_000)),
            (1000, 10_000, (250, 250, 250)),
            (1000, 10, (332, 333, 1)),
            (0, 10_000, (1, 1, 1)),
        ] {
            let found = share_all(left, FdBudget { rest, ..wanted }, false);
            assert_eq!((found.http, found.resp, found.rest), expected, "{left} {rest}");
        }
    }
}
