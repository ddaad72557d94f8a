//! The routes that purge keys and explain them: `DELETE /cache`, `DELETE /cache?prefix=`,
//! `DELETE /cache/{key}` and `GET /cache/{key}`.
//!
//! The rule that must not be broken: on the listener for operators, peers of this machine need no
//! token; everywhere else only a token with the right `purge` admits a request. A peer of this
//! machine may be a browser that runs a script from elsewhere. So a request without a token has to
//! name the listener by an address or as `localhost`, never by another name.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Extension, Router};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde_json::json;

use super::json::{json_response, method_not_allowed};
use super::problem::ProblemType;
use crate::access::{KeyAllowlist, PurgeTokens};
use crate::cache::Purge;
use crate::key::{BadEscape, percent_decode};
use crate::metrics::{FrontEnd, RejectReason};
use crate::proxy::Proxy;
use crate::status;
use crate::telemetry::hot_keys::path_escape;

/// The path of all keys.
const PATH: &str = "/cache";
/// The path of one key, without the key.
const KEY_PATH: &str = "/cache/";

/// Whether a path is one of these routes.
pub(super) fn is_cache_path(path: &str) -> bool {
    path == PATH || path.starts_with(KEY_PATH)
}

/// Marks a request of a peer on this machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalPeer;

/// The peers that a listener trusts without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustedPeers {
    /// Those on this machine: over loopback or a unix socket.
    Local,
    /// None.
    None,
}

/// The reason why a request is answered without a purge.
#[derive(Debug)]
enum Rejection {
    /// There is no token with the right `purge`.
    Token,
    /// The token or the listener does not allow the keys.
    Keys,
    /// It is not clear which keys are meant.
    Query(&'static str),
    /// The key is not percent-encoded.
    Escape(BadEscape),
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        match self {
            Self::Token => {
                let detail =
                    "Send Authorization: Bearer TOKEN with a token that has the right purge.";
                let mut response: Response = NO_TOKEN.response(Some(detail));
                let challenge = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                response
            }
            Self::Keys => NOT_ALLOWED.response(None),
            Self::Query(detail) => BAD_QUERY.response(Some(detail)),
            Self::Escape(error) => BAD_ESCAPE.response(Some(&error.to_string())),
        }
    }
}

/// The access to the routes of a listener.
pub struct CacheAccess {
    /// The listener.
    pub front_end: FrontEnd,
    /// The peers that need no token.
    pub trusted: TrustedPeers,
    /// The tokens of the others.
    pub tokens: PurgeTokens,
    /// The keys that the listener serves.
    pub allow: KeyAllowlist,
}

/// Returns the routes.
pub(super) fn router(access: CacheAccess) -> Router<Proxy> {
    Router::new()
        .route(PATH, delete(purge))
        .route("/cache/{*key}", get(explain).delete(purge))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(Extension(Arc::new(access)))
}

impl CacheAccess {
    /// Returns the keys that a request may purge and explain.
    fn authorize(
        &self,
        is_local: bool,
        headers: &HeaderMap,
        proxy: &Proxy,
    ) -> Result<KeyAllowlist, Rejection> {
        let is_trusted = self.trusted == TrustedPeers::Local && is_local && has_own_name(headers);
        if is_trusted {
            return Ok(KeyAllowlist::default());
        }
        let shown = headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        self.tokens.keys(shown).ok_or_else(|| {
            proxy.record_rejected(self.front_end, RejectReason::Token);
            Rejection::Token
        })
    }

    /// Checks that a token for `keys` and the listener allow the purge.
    fn check(&self, keys: &KeyAllowlist, purge: &Purge) -> Result<(), Rejection> {
        let allows = |list: &KeyAllowlist| match purge {
            Purge::Key(key) => list.allows(key),
            Purge::Prefix(prefix) => list.allows_prefix(prefix),
            Purge::All => list.allows_all(),
        };
        if allows(keys) && allows(&self.allow) { Ok(()) } else { Err(Rejection::Keys) }
    }
}

/// Whether the request names the listener by an address or as `localhost`. A page from elsewhere
/// that a browser loads by another name could otherwise send requests to it (DNS rebinding).
fn has_own_name(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = without_port.trim_start_matches('[').trim_end_matches(']');
    without_port.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Returns what a `DELETE` of this address purges.
fn purge_of(uri: &Uri) -> Result<Purge, Rejection> {
    if uri.path() == PATH { parse_query(uri.query()) } else { key_of(uri).map(Purge::Key) }
}

/// Returns the decoded key behind `/cache/`.
fn key_of(uri: &Uri) -> Result<Vec<u8>, Rejection> {
    let escaped = uri.path().strip_prefix(KEY_PATH).unwrap_or_default();
    if uri.query().is_some() {
        return Err(Rejection::Query("A question mark of the key is written %3F."));
    }
    decoded(escaped)
}

fn decoded(escaped: &str) -> Result<Vec<u8>, Rejection> {
    let key = percent_decode(escaped.as_bytes());
    key.map(Into::into).map_err(Rejection::Escape)
}

/// Returns the purge of `DELETE /cache` with this query. An unknown query purges nothing, otherwise
/// a misspelt one would purge everything.
fn parse_query(query: Option<&str>) -> Result<Purge, Rejection> {
    let Some(query) = query else { return Ok(Purge::All) };
    let detail = "Write ?prefix= and the beginning of the keys, or nothing for all keys.";
    let prefix = query.strip_prefix("prefix=").filter(|prefix| !prefix.is_empty());
    match prefix {
        Some(prefix) if !prefix.contains('&') => decoded(prefix).map(Purge::Prefix),
        _ => Err(Rejection::Query(detail)),
    }
}

type Local = Option<Extension<LocalPeer>>;

async fn purge(
    State(proxy): State<Proxy>,
    Extension(access): Extension<Arc<CacheAccess>>,
    local: Local,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Rejection> {
    let keys = access.authorize(local.is_some(), &headers, &proxy)?;
    let purge = purge_of(&uri)?;
    access.check(&keys, &purge)?;
    Ok(run(proxy, purge).await)
}

/// Purges, and returns the response. Runs on a thread that may block, because a purge of many keys
/// takes time in proportion to what is kept.
async fn run(proxy: Proxy, purge: Purge) -> Response {
    let scope = match purge {
        Purge::Key(_) => "key",
        Purge::Prefix(_) => "prefix",
        Purge::All => "all",
    };
    let purged = tokio::task::spawn_blocking(move || proxy.purge(&purge)).await;
    let Ok(purged) = purged else { return FAILED.response(None) };
    tracing::info!(scope, purged, "purged");
    json_response(StatusCode::OK, &json!({ "purged": purged }))
}

async fn explain(
    State(proxy): State<Proxy>,
    Extension(access): Extension<Arc<CacheAccess>>,
    local: Local,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Rejection> {
    let keys = access.authorize(local.is_some(), &headers, &proxy)?;
    let key = key_of(&uri)?;
    access.check(&keys, &Purge::Key(key.clone()))?;
    let name = path_escape(&key);
    let state = tokio::task::spawn_blocking(move || proxy.explain(&key)).await;
    Ok(match state {
        Ok(Some(state)) => json_response(StatusCode::OK, &status::explain(&name, &state)),
        Ok(None) => NO_OWNER.response(None),
        Err(_) => FAILED.response(None),
    })
}

const NO_TOKEN: ProblemType = ProblemType::new(
    StatusCode::UNAUTHORIZED,
    "purge-needs-token",
    "This needs a token with the right purge",
);
const NOT_ALLOWED: ProblemType = ProblemType::new(
    StatusCode::FORBIDDEN,
    "purge-not-allowed",
    "The token or the listener does not allow these keys",
);
const BAD_QUERY: ProblemType =
    ProblemType::new(StatusCode::BAD_REQUEST, "bad-purge", "It is not clear which keys are meant");
const BAD_ESCAPE: ProblemType =
    ProblemType::new(StatusCode::BAD_REQUEST, "bad-escape", "The key is not percent-encoded");
const NO_OWNER: ProblemType = ProblemType::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "no-owner",
    "No node of the cluster is known to serve the key",
);
const FAILED: ProblemType =
    ProblemType::new(StatusCode::INTERNAL_SERVER_ERROR, "purge-failed", "The purge did not end");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_query_purges() {
        let purge = |query: Option<&str>| parse_query(query).ok();
        assert_eq!(purge(None), Some(Purge::All));
        assert_eq!(purge(Some("prefix=a:")), Some(Purge::Prefix(b"a:".to_vec())));
        assert_eq!(purge(Some("prefix=%61%3d*")), Some(Purge::Prefix(b"a=*".to_vec())));
        for query in ["", "prefix", "prefix=", "Prefix=a", "prefx=a", "prefix=a&b", "prefix=%6"] {
            assert_eq!(purge(Some(query)), None, "{query}");
        }
    }

    #[test]
    fn own_name_is_an_address_or_localhost() {
        for (host, expected) in [
            ("127.0.0.1:8080", true),
            ("127.0.0.1", true),
            ("[::1]:8080", true),
            ("localhost:9090", true),
            ("LOCALHOST", true),
            ("evil.example:9090", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:80", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(has_own_name(&headers), expected, "{host}");
        }
        assert!(!has_own_name(&HeaderMap::new()));
    }
}
