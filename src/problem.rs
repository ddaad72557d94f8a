//! Problem details (RFC 9457): the body of every answer that is an error.

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

/// What went wrong, for the client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// The status of the answer.
    pub(crate) status: StatusCode,
    /// The last word of the problem's type.
    pub(crate) name: &'static str,
    /// What went wrong in general; what is particular goes into the detail.
    pub(crate) title: &'static str,
}

impl Kind {
    pub(crate) const fn new(status: StatusCode, name: &'static str, title: &'static str) -> Self {
        Self { status, name, title }
    }

    /// The JSON of the problem.
    pub(crate) fn body(&self, detail: Option<&str>) -> String {
        let Self { status, name, title } = self;
        let kind = format!("urn:redis-proxy:problem:{name}");
        let mut body = json!({ "type": kind, "title": title, "status": status.as_u16() });
        if let Some(detail) = detail {
            body["detail"] = detail.into();
        }
        body.to_string()
    }

    /// The whole answer.
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
            // A second is longer than a lost link is left alone.
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
