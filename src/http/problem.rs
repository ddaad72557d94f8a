//! Problem details (RFC 9457): the body of every error response.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;

use super::headers::insert_header;
use crate::access::AuthError;
use crate::backend::BackendError;
use crate::key::BadEscape;
use crate::settings::ByteSize;

/// A type of problem that is reported to the client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProblemType {
    /// The status of the response.
    pub(crate) status: StatusCode,
    /// The last segment of the problem's type URN.
    pub(crate) name: &'static str,
    /// The general description. The details of one occurrence belong in `detail`.
    pub(crate) title: &'static str,
}

impl ProblemType {
    pub(crate) const fn new(status: StatusCode, name: &'static str, title: &'static str) -> Self {
        Self { status, name, title }
    }

    /// Returns the JSON body of the problem.
    pub(crate) fn body(&self, detail: Option<&str>) -> String {
        let Self { status, name, title } = self;
        let problem_type = format!("urn:redis-proxy:problem:{name}");
        let mut body = json!({ "type": problem_type, "title": title, "status": status.as_u16() });
        if let Some(detail) = detail {
            body["detail"] = detail.into();
        }
        body.to_string()
    }

    /// Returns the complete response. `detail` describes this occurrence.
    pub(crate) fn response<B: From<String>>(&self, detail: Option<&str>) -> Response<B> {
        let body = self.body(detail);
        let length = body.len();
        let mut response = Response::new(B::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // By default, the supervisor retries a lost connection in less than one second.
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The reasons for which a request gets no value.
#[derive(Debug)]
pub(super) enum RequestError {
    NoRoute,
    MethodNotAllowed,
    Query,
    BadEscape(BadEscape),
    EmptyKey,
    KeyTooLong {
        length: usize,
        max: ByteSize,
    },
    NotAllowed,
    KeyNotFound,
    /// The value is another one than `If-Match` names.
    ConditionFailed,
    /// The value of this length has no byte of the range.
    Range {
        length: usize,
    },
    Backend(BackendError),
}

impl RequestError {
    fn problem_type(&self) -> ProblemType {
        match self {
            Self::NoRoute => ProblemType::new(
                StatusCode::NOT_FOUND,
                "no-such-route",
                "There is nothing at this path",
            ),
            Self::MethodNotAllowed => ProblemType::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Keys can only be read here",
            ),
            Self::Query => ProblemType::new(StatusCode::BAD_REQUEST, "query", "A key has no query"),
            Self::BadEscape(_) => ProblemType::new(
                StatusCode::BAD_REQUEST,
                "bad-escape",
                "The key is not percent-encoded correctly",
            ),
            Self::EmptyKey => {
                ProblemType::new(StatusCode::BAD_REQUEST, "empty-key", "The key is empty")
            }
            Self::KeyTooLong { .. } => {
                ProblemType::new(StatusCode::URI_TOO_LONG, "key-too-long", "The key is too long")
            }
            Self::NotAllowed => ProblemType::new(
                StatusCode::FORBIDDEN,
                "not-allowed",
                "This listener does not serve the key",
            ),
            Self::KeyNotFound => {
                ProblemType::new(StatusCode::NOT_FOUND, "no-such-key", "There is no such key")
            }
            Self::ConditionFailed => ProblemType::new(
                StatusCode::PRECONDITION_FAILED,
                "condition-failed",
                "The value is another one than If-Match names",
            ),
            Self::Range { .. } => ProblemType::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range",
                "The value has no byte of the range",
            ),
            Self::Backend(error) => backend_problem(error),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::NoRoute => Some("Values are at /keys/{key}.".into()),
            Self::MethodNotAllowed => Some("GET and HEAD are allowed.".into()),
            Self::Query => Some("A question mark that belongs to the key is written %3F.".into()),
            Self::BadEscape(error) => Some(error.to_string()),
            Self::EmptyKey => Some("The path goes on after /keys/ with the key.".into()),
            Self::KeyTooLong { length, max } => {
                Some(format!("It has {length} bytes; {max} are allowed."))
            }
            Self::Backend(BackendError::Unavailable(code) | BackendError::ErrorReply(code)) => {
                Some(format!("Redis replied: {code}"))
            }
            Self::Range { length } => Some(format!("It has {length} bytes.")),
            Self::NotAllowed | Self::KeyNotFound | Self::ConditionFailed | Self::Backend(_) => None,
        }
    }

    pub(super) fn into_response(self) -> Response<Bytes> {
        let mut response = self.problem_type().response(self.detail().as_deref());
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        if let Self::Range { length } = self {
            let range = format!("bytes */{length}");
            insert_header(response.headers_mut(), header::CONTENT_RANGE, range.as_bytes());
        }
        response
    }
}

fn backend_problem(error: &BackendError) -> ProblemType {
    let (status, name, title) = match error {
        BackendError::Unreachable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "unreachable", "Redis cannot be reached")
        }
        BackendError::AuthRejected(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "unreachable",
            "The proxy and Redis do not accept each other",
        ),
        BackendError::Disconnected => {
            (StatusCode::SERVICE_UNAVAILABLE, "disconnected", "The connection to Redis was lost")
        }
        BackendError::Overloaded => {
            (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many reads wait for Redis")
        }
        BackendError::Unavailable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Redis cannot reply now")
        }
        BackendError::Cancelled => {
            (StatusCode::SERVICE_UNAVAILABLE, "going-down", "The proxy is going down")
        }
        BackendError::TimedOut => {
            (StatusCode::GATEWAY_TIMEOUT, "timeout", "Redis did not reply in time")
        }
        BackendError::ErrorReply(_) | BackendError::Moved(_) => {
            (StatusCode::BAD_GATEWAY, "refused", "Redis replied with an error")
        }
        BackendError::TooLarge | BackendError::OutputLimit => {
            (StatusCode::BAD_GATEWAY, "value-too-large", "The value is too large to be served")
        }
        BackendError::WrongType => {
            (StatusCode::CONFLICT, "wrong-type", "The key does not hold a string")
        }
    };
    ProblemType::new(status, name, title)
}

const UNAUTHORIZED: ProblemType =
    ProblemType::new(StatusCode::UNAUTHORIZED, "unauthorized", "This asks for a bearer token");

const INVALID_TOKEN: ProblemType = ProblemType::new(
    StatusCode::UNAUTHORIZED,
    "invalid-token",
    "The bearer token is none of those here",
);

const INVALID_REQUEST: ProblemType = ProblemType::new(
    StatusCode::BAD_REQUEST,
    "invalid-request",
    "There is more than one Authorization header",
);

/// Returns the response to a request that `denied` rejects, with the challenge of RFC 6750. `HEAD`
/// gets no body.
pub(super) fn denied_response(denied: AuthError, method: &Method) -> Response<Body> {
    let (problem_type, challenge) = match denied {
        AuthError::MissingToken => (UNAUTHORIZED, "Bearer realm=\"redis-proxy\""),
        AuthError::InvalidToken => {
            (INVALID_TOKEN, "Bearer realm=\"redis-proxy\", error=\"invalid_token\"")
        }
        AuthError::MultipleHeaders => {
            (INVALID_REQUEST, "Bearer realm=\"redis-proxy\", error=\"invalid_request\"")
        }
    };
    let mut response =
        problem_type.response(Some("Send one header: Authorization: Bearer <token>."));
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    if *method == Method::HEAD { response.map(|_| Body::empty()) } else { response }
}
