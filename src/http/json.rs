//! Responses that the operator's routes have in common.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use super::problem::ProblemType;

/// Returns a response with a body of JSON, which no cache keeps.
pub(super) fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body.to_string()).into_response()
}

/// Returns the response to a method that the route does not have.
pub(super) async fn method_not_allowed() -> Response {
    let kind = ProblemType::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "This can only be read",
    );
    kind.response(Some("GET and HEAD are allowed, and DELETE for /cache."))
}
