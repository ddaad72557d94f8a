//! The operator's routes: `/metrics`, `/livez`, `/readyz`, `/hotkeys`, `/report`, `/status`, and
//! those of [`cache_routes`]. They are served beside `/keys/`, or on a separate listener if
//! `[admin] listen` names one.

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Extension, Router};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde_json::json;

use super::cache_routes::{self, CacheAccess, TrustedPeers};
use super::headers::prefers_openmetrics;
use super::json::{json_response, method_not_allowed};
use super::problem::ProblemType;
use super::settings::MAX_HOT_KEYS;
use crate::access::{KeyAllowlist, PurgeTokens, Unauthenticated};
use crate::metrics::{Exposition, FrontEnd, Node};
use crate::proxy::Proxy;
use crate::status::{self, Status};
use crate::telemetry::hot_keys::{self, HotKey};

/// Returns the operator's routes for a listener with this access to keys. `/hotkeys` lists only
/// keys that the listener serves.
pub fn router(proxy: Proxy, status: Status, access: CacheAccess) -> Router {
    let allow = access.allow.clone();
    Router::new()
        .merge(cache_routes::router(access))
        .route("/status", get(|| async { page("text/html; charset=utf-8", status::PAGE) }))
        .route("/status.css", get(|| async { page("text/css; charset=utf-8", status::STYLE) }))
        .route(
            "/status.js",
            get(|| async { page("text/javascript; charset=utf-8", status::SCRIPT) }),
        )
        .route("/status.json", get(status_json))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/hotkeys", get(hot_keys))
        .route("/report", get(report))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(Extension(allow))
        .layer(Extension(status))
        .with_state(proxy)
}

/// Returns the operator's routes for a listener that serves nothing else.
pub fn standalone_router(proxy: Proxy, status: Status, tokens: PurgeTokens) -> Router {
    let (front_end, allow) = (FrontEnd::Admin, KeyAllowlist::default());
    let access = CacheAccess { front_end, trusted: TrustedPeers::Local, tokens, allow };
    router(proxy, status, access)
        .route("/", get(|| async { Redirect::temporary("/status") }))
        .fallback(not_found)
}

async fn not_found() -> Response {
    let kind =
        ProblemType::new(StatusCode::NOT_FOUND, "no-such-route", "There is nothing at this path");
    kind.response(Some(
        "Here are /metrics, /livez, /readyz, /hotkeys, /report, /cache and /status.",
    ))
}

async fn metrics(State(proxy): State<Proxy>, headers: HeaderMap) -> Response {
    let accept = headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes);
    let format =
        if prefers_openmetrics(accept) { Exposition::OpenMetrics } else { Exposition::Text };
    ([(header::CONTENT_TYPE, format.content_type())], proxy.metrics(format)).into_response()
}

/// Reports that the daemon runs and serves requests. It depends on nothing else, least of all on
/// Redis.
async fn livez() -> Response {
    json_response(StatusCode::OK, &json!({ "status": "live" }))
}

/// Reports whether reads can be answered, with the reason if not. An unauthenticated request gets
/// no reason.
async fn readyz(
    State(proxy): State<Proxy>,
    unauthenticated: Option<Extension<Unauthenticated>>,
) -> Response {
    let coherence = proxy.coherence().name();
    if unauthenticated.is_some() {
        // The reason describes the systems behind the proxy, so it is omitted.
        return match proxy.ready() {
            Ok(()) => json_response(StatusCode::OK, &json!({ "status": "ready" })),
            Err(_) => {
                json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "not ready" }))
            }
        };
    }
    let node = |node: Node| json!({ "node": node.name, "role": node.role, "up": node.up });
    let nodes: Vec<_> = proxy.nodes().into_iter().map(node).collect();
    match proxy.ready() {
        Ok(()) => json_response(
            StatusCode::OK,
            &json!({ "status": "ready", "coherence": coherence, "nodes": nodes }),
        ),
        Err(reason) => {
            let reason = reason.to_string();
            let body = json!({ "status": "not \
                ready", "reason": reason, "coherence": coherence, "nodes": nodes });
            json_response(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

/// The page loads nothing from elsewhere and runs no script but its own.
const PAGE_POLICY: &str = "default-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Returns a file of the status page.
fn page(content_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

/// Returns the state as JSON, with the hot keys that the listener serves; `null` if keys are not
/// counted.
async fn status_json(
    State(proxy): State<Proxy>,
    Extension(allow): Extension<KeyAllowlist>,
    Extension(status): Extension<Status>,
) -> Response {
    let mut body = status.to_json();
    body["hot_keys"] = match proxy.top_keys(if allow.allows_all() { 10 } else { MAX_HOT_KEYS }) {
        Some(top) => listed(&top.keys, &allow, 10).into(),
        None => serde_json::Value::Null,
    };
    json_response(StatusCode::OK, &body)
}

/// Returns the reads by rule as JSON.
async fn report(Extension(status): Extension<Status>) -> Response {
    json_response(StatusCode::OK, &status.report())
}

/// Returns at most `limit` of the keys that are allowed.
fn listed(keys: &[HotKey], allow: &KeyAllowlist, limit: usize) -> Vec<serde_json::Value> {
    let key = |hot: &HotKey| {
        let key = hot_keys::path_escape(&hot.key);
        json!({ "key": key, "reads": hot.reads, "error": hot.error })
    };
    keys.iter().filter(|hot| allow.allows(&hot.key)).take(limit).map(key).collect()
}

/// Returns the most read keys as JSON. Each key has the escaped form of `/keys/`, its reads, and
/// the maximum error of that count.
async fn hot_keys(
    State(proxy): State<Proxy>,
    Extension(allow): Extension<KeyAllowlist>,
    uri: Uri,
) -> Response {
    let Some(limit) = parse_top(uri.query()) else {
        return BAD_TOP.response(Some("Write ?top=20, or nothing."));
    };
    let counted = if allow.allows_all() { limit } else { MAX_HOT_KEYS };
    let Some(top_keys) = proxy.top_keys(counted) else {
        return NOT_COUNTED
            .response(Some("Set admin.hotkeys to how many are to be counted, such as 1000."));
    };
    let keys = listed(&top_keys.keys, &allow, limit);
    let period = top_keys.period.as_secs_f64();
    json_response(
        StatusCode::OK,
        &json!({ "seconds": period, "reads": top_keys.reads, "keys": keys }),
    )
}

const BAD_TOP: ProblemType = ProblemType::new(
    StatusCode::BAD_REQUEST,
    "bad-top",
    "It is not clear how many keys are wanted",
);
const NOT_COUNTED: ProblemType =
    ProblemType::new(StatusCode::NOT_FOUND, "keys-not-counted", "Keys are not counted");

/// Parses the number of keys to return: `top=`, 20 by default. `None` if the query is invalid.
fn parse_top(query: Option<&str>) -> Option<usize> {
    match query {
        None | Some("") => Some(20),
        Some(query) => query.strip_prefix("top=")?.parse().ok(),
    }
}
