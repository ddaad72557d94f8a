//! The operator's routes: `/metrics`, `/livez`, `/readyz`. They are served beside `/keys/`, or on a listener of
//! their own when `[admin] listen` names one.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::problem::Kind;
use crate::proxy::Proxy;
use crate::server::Listen;
use crate::units::{self, Contradiction, absurd_limits};

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the operator's routes are served; empty: beside `/keys/`.
    pub listen: Listen,
    /// Connections at most, when there is such a listener.
    #[serde(with = "units::count")]
    pub max_connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: Listen::default(), max_connections: 64 }
    }
}

impl Settings {
    pub(crate) fn contradictions(&self) -> Vec<Contradiction> {
        absurd_limits([(self.max_connections, "admin.max_connections")])
    }
}

/// The operator's routes.
pub fn router(proxy: Proxy) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(proxy)
}

/// The operator's routes for a listener that serves nothing else.
pub fn router_alone(proxy: Proxy) -> Router {
    router(proxy).fallback(not_found)
}

async fn method_not_allowed() -> Response {
    let kind = Kind::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "This can only be read");
    kind.response(Some("GET and HEAD are allowed."))
}

async fn not_found() -> Response {
    let kind = Kind::new(StatusCode::NOT_FOUND, "no-such-route", "There is nothing at this path");
    kind.response(Some("Here are /metrics, /livez and /readyz."))
}

async fn metrics(State(proxy): State<Proxy>) -> Response {
    // The Prometheus text exposition format, version 0.0.4.
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], proxy.metrics()).into_response()
}

/// The daemon runs and serves: nothing else is asked, least of all Redis.
async fn livez() -> Response {
    json_response(StatusCode::OK, &json!({ "status": "live" }))
}

/// Whether reads can be answered, and if not, why.
async fn readyz(State(proxy): State<Proxy>) -> Response {
    let coherence = proxy.coherence().name();
    match proxy.ready() {
        Ok(()) => json_response(StatusCode::OK, &json!({ "status": "ready", "coherence": coherence })),
        Err(reason) => {
            let body = json!({ "status": "not ready", "reason": reason.to_string(), "coherence": coherence });
            json_response(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body.to_string()).into_response()
}
