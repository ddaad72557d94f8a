//! Requests on the fast path of HTTP: commands in a body, as clients send most of them.
//!
//! Model: the head and the whole body are here. A request of which the head alone has its answer,
//! such as one without a valid token, is left to hyper, and so is each that needs a span or CORS.
//! From its commands on, both ways run the same code. Replies that memory has are written at once;
//! for all others the connection waits.
//!
//! The rule that must not be broken: nothing is counted and nothing has run before a request is
//! left to hyper. Otherwise it would count or run twice.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::execute::Begun;
use super::handler::{ENCODING, Form, Job, RESPONSE_FORMAT, Rejection, Rest, format};
use super::layers::Accepted;
use super::request::Commands;
use super::sync_token::{self, Progress};
use crate::http::{FastPathResult, ResponseWriter, SimpleMethod, SimpleRequest, writer_of};
use crate::telemetry::spans;

/// The head of most responses, but for the token. It equals that of
/// [`complete`](Rest::complete), and needs no header map.
const HEAD_TO_TOKEN: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
    cache-control: no-store\r\nupstash-sync-token: ";

impl Rest {
    /// Returns the part of a request that does not depend on its commands. `None`: the request is
    /// left to hyper.
    pub(super) fn simple_job(&self, request: &SimpleRequest<'_>, now: Instant) -> Option<Job> {
        let is_simple = request.method() == SimpleMethod::Post
            && request.body_length() <= self.settings().max_body.0
            && self.cors().is_none()
            && !spans::is_enabled();
        let form = self.form_of(request.path()).filter(|form| is_simple && *form != Form::Path)?;
        let rights = self.rights(request.values("authorization"), None)?;
        let first = |name| request.values(name).next();
        let format =
            format(first(ENCODING).unwrap_or_default(), first(RESPONSE_FORMAT).unwrap_or_default());
        let seen = self.seen(first(sync_token::NAME), now);
        Some(Job { form, rights, format: format.ok()?, seen })
    }

    /// Answers a request of the fast path, which arrived at `now`.
    pub(super) fn answer_simple(
        &self,
        request: &SimpleRequest<'_>,
        now: Instant,
        to: ResponseWriter<'_>,
    ) -> FastPathResult {
        let Some(job) = self.simple_job(request, now) else { return FastPathResult::Fallback };
        let Ok(specs) = self.known_specs(&job.rights) else { return FastPathResult::Fallback };
        let accepted = Accepted::new(request.values("accept-encoding"), self.settings());
        let decoded = self.decode(job.form, request.body()).map_err(Rejection::from);
        let begun = decoded.and_then(|commands| {
            let begun = self.begin(&job, specs, &commands, now)?;
            Ok((begun, commands))
        });
        match begun {
            Ok((begun, commands)) if begun.is_whole(&commands) => {
                self.write_whole(&job, begun, accepted, to)
            }
            Ok((begun, commands)) => self.wait_for(job, commands, begun, accepted),
            Err(rejection) => self.write(&job, Err(rejection), accepted, to),
        }
    }

    /// Answers with replies that are all here.
    fn write_whole(
        &self,
        job: &Job,
        begun: Begun,
        accepted: Accepted,
        mut to: ResponseWriter<'_>,
    ) -> FastPathResult {
        let whole = begun.into_whole();
        if !whole.is_plain() || accepted.compresses(whole.body.len()) {
            return self.write(job, Ok(whole.into_response()), accepted, to);
        }
        let token = self.0.sync_tokens.write(job.seen, None);
        to.write_head(HEAD_TO_TOKEN);
        to.write_head(token.as_bytes());
        to.write_head(b"\r\n");
        let body = Bytes::from(whole.body);
        to.write_body(&body, || body.clone());
        self.0.proxy.record_rest_request(StatusCode::OK.as_str());
        FastPathResult::Done(StatusCode::OK)
    }

    /// Answers with any response that is here.
    fn write(
        &self,
        job: &Job,
        answered: Result<Response<Bytes>, Rejection>,
        accepted: Accepted,
        to: ResponseWriter<'_>,
    ) -> FastPathResult {
        let response = self.complete(Ok(answered), &Progress::begun(job.seen));
        if accepted.compresses(response.body().len()) {
            return FastPathResult::Pending(Box::pin(async move {
                writer_of(accepted.compressed(response).await)
            }));
        }
        to.write_response(&response);
        FastPathResult::Done(response.status())
    }

    /// Answers once Redis has replied.
    fn wait_for(
        &self,
        job: Job,
        commands: Commands,
        begun: Begun,
        accepted: Accepted,
    ) -> FastPathResult {
        let rest = self.clone();
        FastPathResult::Pending(Box::pin(async move {
            let progress = Arc::new(Progress::begun(job.seen));
            let answered = rest.finish(&job, &commands, begun, &progress);
            let answered = timeout(rest.settings().timeout, answered).await;
            let response = rest.complete(answered, &progress);
            writer_of(if accepted.compresses(response.body().len()) {
                accepted.compressed(response).await
            } else {
                response
            })
        }))
    }
}
