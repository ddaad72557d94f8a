//! The fetch of a reply that is to be kept.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::cached_read::{CachedReply, FetchOutcome};
use super::kept_read::{Fields, KeptRead};
use super::time_to_live::TimeUnit;
use crate::backend::{ReplyRequest, RequestedFields};
use crate::cache::{ReplyResult, RuleRead};
use crate::key::Key;
use crate::metrics::{FrontEnd, Kind};
use crate::protocol::Shape;
use crate::proxy::Proxy;
use crate::telemetry::spans;

/// A command with a reply that is fetched to be kept.
#[derive(Debug)]
pub struct ReplyFetch {
    request: ReplyRequest,
    shape: Shape,
    kind: Kind,
    may_write: bool,
    time_unit: Option<TimeUnit>,
    rule: RuleRead,
}

impl ReplyFetch {
    /// The fetch for a read of this rule. `name` are the bytes under which its reply is kept, and
    /// which are sent.
    pub(super) fn new(read: &KeptRead<'_>, name: Vec<u8>, rule: RuleRead) -> Self {
        let (request, shape) = Self::request_of(read, name);
        let may_write = read.command().may_write();
        let (kind, time_unit) = (read.kind(), read.time_unit());
        Self { request, shape, kind, may_write, time_unit, rule }
    }

    /// The request of Redis for a read, and the difference of its RESP2 form.
    pub(super) fn request_of(read: &KeptRead<'_>, name: Vec<u8>) -> (ReplyRequest, Shape) {
        let fields = match read.fields() {
            Fields::None => RequestedFields::None,
            Fields::Named(names) => {
                RequestedFields::Named(names.iter().map(Bytes::copy_from_slice).collect())
            }
            Fields::All => RequestedFields::All,
            Fields::Unnamed => RequestedFields::Unnamed,
        };
        let request = ReplyRequest {
            command: Bytes::from(name),
            name_index: read.command().index(),
            keys: read.keys().map(Key::from).collect(),
            fields,
        };
        (request, read.shape())
    }

    /// The keys of the command.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.request.keys.iter().map(Key::as_bytes)
    }

    /// Fetches the reply. `command` is the command as the client sent it.
    pub async fn run(self, front_end: FrontEnd, proxy: Proxy, command: Bytes) -> FetchOutcome {
        let span = spans::command_span(self.kind.name());
        let Self { request, shape, kind, may_write, time_unit, rule } = self;
        let result = proxy.get_reply(front_end, Arc::new(request), shape, (kind, rule), &span);
        let reply = |reply| CachedReply::kept(reply, kind, time_unit, Instant::now());
        match result.instrument(span.clone()).await {
            ReplyResult::Reply(kept) if may_write => FetchOutcome::MayHaveWritten(reply(kept)),
            ReplyResult::Reply(kept) => FetchOutcome::Reply(reply(kept)),
            ReplyResult::Failed(error) if !error.should_forward() => FetchOutcome::Failed(error),
            ReplyResult::Forward | ReplyResult::Failed(_) => FetchOutcome::Forward(command),
        }
    }
}
