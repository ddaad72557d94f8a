//! A client's connection: its bytes, their order, and its end.
//!
//! Model: one task does all of it, in rounds, for as long as anything moves. A round reads from the
//! client, takes commands, forwards those that memory does not answer, passes Redis's replies on,
//! and writes. Nothing blocks anywhere but in [`Connection::poll`], so one source that stalls holds
//! up no other. Every buffer has a limit at which its source is not read any more. The limit of one
//! never stops the step that would empty it.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::task::yield_now;
use tokio::time::Instant;

use super::dedicated::DedicatedConnection;
use super::failure::write_failure;
use super::fence::Fences;
use super::flights::Flights;
use super::info::InfoReply;
use super::lifetime::{ConnState, End, Facts, Lifetime, end};
use super::reply_queue::ReplyQueue;
use super::shared::Shared;
use super::step::{Step, Task};
use super::turn::Turn;
use crate::backend::BackendError;
use crate::cache::COUNTED_MIN;
use crate::commands::{AdmissionTracker, FetchOutcome, Invalidations, SessionState};
use crate::net::{ClientStream, WriteBuf};
use crate::protocol::{ReplyScanner, ReplySummary, RequestParser};
use crate::server::Drain;
use crate::status::info_section;

/// A client's connection.
pub(super) struct Connection {
    pub(super) client: ClientStream,
    pub(super) shared: Arc<Shared>,
    pub(super) state: ConnState,
    pub(super) input: BytesMut,
    /// The room for a read of commands of the usual size.
    read_chunk: usize,
    pub(super) parser: RequestParser,
    pub(super) output: WriteBuf,
    /// Whether every written byte is on its way. TLS may hold some back.
    is_flushed: bool,
    pub(super) replies: ReplyQueue,
    pub(super) flights: Flights,
    pub(super) redis: DedicatedConnection,
    pub(super) scanner: ReplyScanner,
    info: InfoReply,
    pub(super) session: SessionState,
    pub(super) fences: Fences,
    /// Whether Redis's next reply is to a `PING` of the proxy's own.
    pub(super) keepalive_pending: bool,
    /// Whether Redis has admitted the client on the connection to it.
    pub(super) admission: AdmissionTracker,
    /// The keys that the commands queued for `EXEC` invalidate.
    pub(super) transaction: Invalidations,
    /// Whether the client has closed its sending side.
    pub(super) has_read_eof: bool,
    lifetime: Lifetime,
    /// The time, once it has been read in this round.
    now: Option<Instant>,
    pub(super) turn: Turn,
}

/// Bytes read at once while the commands of a client are small. Most connections stay at this size,
/// and keep no more memory while they are idle.
const SMALL_CHUNK: usize = 2 << 10;
/// Bytes read at once.
const READ_CHUNK: usize = 16 << 10;
/// Bytes read at once of a command that is forwarded as it arrives.
const STREAM_CHUNK: usize = 64 << 10;
/// The size from which a command that has arrived in part gets room for the longest one.
const LARGE_INPUT: usize = 64 << 10;
/// A larger buffer is freed once it is empty, in bytes.
const BUF_RETAIN: usize = 16 << 10;
/// The most bytes that may wait to be sent to Redis.
const REDIS_HIGH_WATER: usize = 1 << 20;
/// The most bytes from Redis that may wait to be sent to a client. The rest waits at Redis. All of
/// them are written at once when the client reads on, and other clients of the worker wait for it.
const CLIENT_HIGH_WATER: usize = 32 << 10;
/// The most flights of one client, each of which may hold a value that cannot leave yet.
const MAX_FLIGHTS: usize = 64;
/// The most pending replies of one client.
const MAX_REPLIES: usize = 1 << 18;
/// The longest time that a connection to Redis may be unused while its client reads from memory.
/// Otherwise Redis, or a firewall on the way, would close it as idle.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Returns the room for the next read, behind `held` bytes of at most `most`. It is `chunk` for
/// commands of the usual size.
///
/// A large command gets all of its room in one step. Otherwise the buffer would grow by doubling,
/// which copies as many bytes as the command has.
fn read_room(held: usize, most: usize, is_streaming: bool, chunk: usize) -> usize {
    if held >= LARGE_INPUT {
        most.saturating_sub(held).max(READ_CHUNK)
    } else if is_streaming {
        STREAM_CHUNK
    } else {
        chunk
    }
}

/// Closes the client's stream.
async fn close(mut client: ClientStream, lifetime: Lifetime) {
    let mut close = lifetime.lingering_close();
    _ = poll_fn(|cx| close.poll(Pin::new(&mut client), cx)).await;
}

impl Connection {
    pub(super) fn new(client: ClientStream, shared: Arc<Shared>, drain: Drain) -> Self {
        Self {
            client,
            state: ConnState::Commands,
            input: BytesMut::new(),
            read_chunk: SMALL_CHUNK,
            parser: RequestParser::default(),
            output: WriteBuf::default(),
            is_flushed: true,
            replies: ReplyQueue::default(),
            flights: Flights::default(),
            redis: DedicatedConnection::new(),
            scanner: ReplyScanner::default(),
            info: InfoReply::default(),
            session: SessionState::new(shared.identity.clone()),
            fences: Fences::default(),
            keepalive_pending: false,
            admission: AdmissionTracker::default(),
            transaction: Invalidations::None,
            has_read_eof: false,
            lifetime: Lifetime::new(shared.settings.idle_timeout, drain),
            now: None,
            turn: Turn::default(),
            shared,
        }
    }

    /// Serves the client until the connection has ended.
    pub(super) fn run(mut self) -> Task<()> {
        // No `async fn`, which would store the connection twice.
        Box::pin(async move {
            poll_fn(|cx| self.poll(cx)).await;
            let (client, lifetime) = self.into_client();
            Box::pin(close(client, lifetime)).await;
        })
    }

    /// Ends everything but the client's stream, the connection to Redis too.
    fn into_client(mut self) -> (ClientStream, Lifetime) {
        self.drop_redis();
        (self.client, self.lifetime)
    }

    /// Ready when the connection has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.turn = Turn::default();
        loop {
            self.now = None;
            let step = self.poll_open(cx)
                | self.poll_replies(cx)
                | self.poll_reads(cx)
                | self.poll_client(cx)
                | Step::progress_if(self.take_commands())
                // After the commands, which may begin a fence: one that is not polled wakes
                // nothing.
                | self.fences.poll(&self.shared.proxy, cx)
                | self.poll_send(cx)
                | self.poll_write(cx);
            if self.state == ConnState::Closed {
                return Poll::Ready(());
            }
            if self.turn.is_over() {
                // The rest has its turn after the other clients of this worker. A plain wake would
                // come before the events that the worker has not looked for yet.
                _ = pin!(yield_now()).poll(cx);
                return Poll::Pending;
            }
            if step == Step::Idle {
                self.pass_close_on(cx);
                if self.is_over(cx) {
                    return Poll::Ready(());
                }
                if self.lifetime.is_silent() {
                    self.release_buffers();
                }
                return Poll::Pending;
            }
        }
    }

    /// Frees the buffers of a client that has been silent. Its next command allocates them again.
    #[cold]
    fn release_buffers(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
            self.read_chunk = SMALL_CHUNK;
        }
        for output in [&mut self.output, &mut self.redis.out] {
            if output.is_empty() {
                *output = WriteBuf::default();
            }
        }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Step {
        let Poll::Ready(opened) = self.redis.poll_open(cx) else { return Step::Idle };
        if let Err(error) = opened {
            self.open_failed(&error);
        }
        Step::Progress
    }

    /// No command that was to be sent has run.
    fn open_failed(&mut self, error: &BackendError) {
        let was_of_state = self.replies.fail_forwarded(|output| write_failure(output, error));
        self.session = self.session.without_connection();
        self.transaction = Invalidations::None;
        if self.is_probing() {
            self.give_up_probe();
        }
        let is_passthrough = self.state == ConnState::Passthrough;
        // Later commands rely on a state that the session is not in.
        if was_of_state || self.parser.is_streaming() || is_passthrough {
            self.state = ConnState::Draining;
        }
        self.move_ready();
    }

    /// Passes Redis's replies on.
    fn poll_replies(&mut self, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Idle;
        if self.replies.awaits_flush() && self.output.len() >= self.max_output() {
            return self.close();
        }
        while self.state != ConnState::Closed
            && self.output.len() < self.max_output()
            && !self.turn.is_over()
            && !self.replies.is_read_first()
        {
            if self.redis.input.is_empty() {
                match self.redis.poll_read(cx) {
                    Poll::Pending => return step,
                    Poll::Ready(Ok(length @ 1..)) => self.turn.add_read(length),
                    // After a failover the new primary may lack writes that this client has seen.
                    // The end of the connection shows that to the client.
                    Poll::Ready(Err(error)) if error.kind() == ErrorKind::ConnectionAborted => {
                        return self.flush_and_close();
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return self.redis_closed(),
                }
            }
            step = Step::Progress;
            self.pass_on();
        }
        step
    }

    /// Handles the end of the connection to Redis. The client's ends too, unless a new one would
    /// serve it as well.
    fn redis_closed(&mut self) -> Step {
        let is_unused =
            self.replies.is_empty() && !self.scanner.is_mid_reply() && self.redis.out.is_empty();
        let is_replaceable = self.session.is_pristine() && self.state == ConnState::Commands;
        if !(is_unused && is_replaceable) {
            return self.flush_and_close();
        }
        let was_probing = self.is_probing();
        self.drop_redis();
        if was_probing {
            self.give_up_probe();
        }
        Step::Progress
    }

    fn flush_and_close(&mut self) -> Step {
        self.drop_redis();
        self.state = ConnState::Flushing;
        Step::Progress
    }

    /// The most bytes from Redis that may wait for the client. There are more before the reply to a
    /// command that drops everything: until that is read, what is fetched may be of before.
    fn max_output(&self) -> usize {
        if self.replies.awaits_flush() {
            self.shared.settings.max_output_buffer.0
        } else {
            CLIENT_HIGH_WATER
        }
    }

    /// Drops everything from memory once Redis has run what it was sent, if the reply that would do
    /// so does not come any more.
    fn flush_at_end(&mut self) {
        if !self.replies.awaits_flush() {
            return;
        }
        let Some(end) = self.redis.run_to_end() else { return };
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            end.await;
            shared.proxy.invalidate_all();
        });
    }

    /// Closes the connection to Redis, with everything that has arrived in part.
    pub(super) fn drop_redis(&mut self) {
        self.flush_at_end();
        self.redis.close();
        self.scanner = ReplyScanner::default();
        self.info = InfoReply::default();
        self.keepalive_pending = false;
        self.admission = AdmissionTracker::default();
    }

    /// Passes on what has been read from Redis, as far as it is its turn.
    fn pass_on(&mut self) {
        while !self.redis.input.is_empty() && !self.replies.is_read_first() {
            if self.is_passthrough() {
                return self.output.push(self.redis.input.split().freeze());
            }
            let Ok((length, frame)) = self.scanner.scan(&self.redis.input) else {
                tracing::warn!("invalid reply from Redis; client connection closed");
                self.state = ConnState::Closed;
                return;
            };
            let passed = self.redis.input.split_to(length).freeze();
            if self.keepalive_pending {
                if let Some(frame) = frame {
                    self.keepalive_pending = false;
                    self.admission.probed(frame);
                }
                continue;
            }
            if self.replies.is_info_first() {
                let section = || info_section(&self.shared.proxy);
                self.output.push(self.info.add(&passed, frame.is_some(), section));
            } else {
                self.output.push(passed);
            }
            match frame {
                // Pushes were turned on unseen, so they cannot be told from replies.
                Some(frame) if frame.is_push() => self.session.desync(),
                Some(frame) => self.reply_passed_on(frame),
                None => {}
            }
        }
    }

    /// Whether bytes of Redis are passed on as they come. The replies to earlier commands come
    /// before that. If they cannot be told apart, nothing is waited for.
    fn is_passthrough(&self) -> bool {
        let is_uncertain = self.session.is_desynced() && self.replies.ready() == 0;
        let is_first = self.replies.is_passthrough_first() || is_uncertain;
        self.state == ConnState::Passthrough && is_first && !self.keepalive_pending
    }

    fn close(&mut self) -> Step {
        self.state = ConnState::Closed;
        Step::Progress
    }

    fn reply_passed_on(&mut self, frame: ReplySummary) {
        let Some(run) = self.replies.take_forwarded() else {
            // The reason why Redis closes the connection.
            self.state = ConnState::Flushing;
            return;
        };
        self.replied(run, frame);
        self.move_ready();
    }

    /// Takes the results of flights. Polls them even if none can be taken.
    fn poll_reads(&mut self, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Idle;
        while self.replies.is_read_first() {
            let Poll::Ready(outcome) = self.flights.poll_first(cx) else { return step };
            step = Step::Progress;
            match outcome {
                FetchOutcome::Reply(reply) => {
                    self.replies.take_read();
                    reply.write(&mut self.output, self.session.protocol());
                }
                FetchOutcome::MayHaveWritten(reply) => {
                    self.replies.take_read();
                    // Without tracking, such a command is not fetched.
                    self.write_observed(false);
                    reply.write(&mut self.output, self.session.protocol());
                }
                FetchOutcome::Failed(error) => {
                    self.replies.take_read();
                    write_failure(&mut self.output, &error);
                }
                FetchOutcome::Forward(command) => self.forward_read(command),
            }
            self.move_ready();
        }
        self.flights.poll_begun(cx);
        step
    }

    /// Moves the replies that are ready in front to the output.
    fn move_ready(&mut self) {
        while let Some(ready) = self.replies.take_ready() {
            self.output.append(ready);
        }
    }

    fn poll_client(&mut self, cx: &mut Context<'_>) -> Step {
        if self.turn.awaits_client {
            self.release_large_input();
            return Step::Idle;
        }
        if !self.may_read() {
            return Step::Idle;
        }
        let held = self.input.len();
        if self.input.capacity() - held < self.read_chunk / 2 {
            let most = self.shared.settings.max_query_buffer.0 + READ_CHUNK;
            let is_streaming = self.parser.is_streaming();
            self.input.reserve(read_room(held, most, is_streaming, self.read_chunk));
        }
        let read = pin!(self.client.read_buf(&mut self.input)).poll(cx);
        match read {
            Poll::Pending => {
                self.turn.awaits_client = true;
                self.release_large_input();
                return Step::Idle;
            }
            Poll::Ready(Ok(1..)) if self.state == ConnState::Draining => self.input.clear(),
            Poll::Ready(Ok(1..)) => {
                if self.input.len() == self.input.capacity() {
                    // The client sends more than fits.
                    self.read_chunk = READ_CHUNK;
                }
                let now = self.now();
                self.lifetime.progressed(now);
            }
            Poll::Ready(Ok(0)) => self.has_read_eof = true,
            // Commands may still be on their way to Redis. They are not lost with the client.
            Poll::Ready(Err(_)) if self.state == ConnState::Draining => self.has_read_eof = true,
            Poll::Ready(Err(_)) => return self.close(),
        }
        Step::Progress
    }

    fn release_large_input(&mut self) {
        if self.input.is_empty() && self.input.capacity() > BUF_RETAIN {
            self.input = BytesMut::new();
        }
    }

    /// Whether more may be read from the client.
    fn may_read(&self) -> bool {
        let has_room = match self.state {
            ConnState::Commands | ConnState::Passthrough => {
                self.redis.out.len() < REDIS_HIGH_WATER
                    && self.input.len() < self.shared.settings.max_query_buffer.0 + READ_CHUNK
            }
            // The bytes are discarded. Only their end counts: otherwise a blocking command would
            // take an element for a client that is gone.
            ConnState::Draining => !self.replies.is_empty(),
            ConnState::Flushing | ConnState::Closed => false,
        };
        has_room && !self.has_read_eof && !matches!(self.client, ClientStream::Local(_))
    }

    /// Whether more commands may be taken.
    pub(super) fn may_take_more(&self) -> bool {
        self.output.len() + self.replies.ready() < self.shared.settings.max_output_buffer.0
            && self.redis.out.len() < REDIS_HIGH_WATER
            && self.replies.flights() < MAX_FLIGHTS
            && self.replies.len() < MAX_REPLIES
            && !self.fences.is_running()
    }

    /// Whether the close of the client is passed on to Redis before its reply, because a command
    /// blocks for a client that may be gone. Commands behind it then wait for no reply. Otherwise
    /// the close would overtake them.
    pub(super) fn is_close_due(&self) -> bool {
        self.has_read_eof && self.replies.has_blocking()
    }

    /// Closes the sending side towards Redis, too, if Redis could otherwise wait without end. Redis
    /// drops a blocked client at once then, and replies to all others first.
    ///
    /// It is called when nothing moves, so every command that can be sent has been sent.
    fn pass_close_on(&mut self, cx: &mut Context<'_>) {
        if !self.has_read_eof {
            return;
        }
        // A command of which a part was sent never ends, so it gets no reply.
        let may_wait = self.state == ConnState::Passthrough
            || self.replies.has_blocking()
            || self.parser.is_streaming();
        let is_all_taken =
            self.state != ConnState::Commands || self.input.is_empty() || self.may_take_more();
        let is_all_sent = self.replies.flights() == 0 && self.redis.out.is_empty();
        if may_wait && is_all_taken && is_all_sent {
            _ = self.redis.poll_close_sending(cx);
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Step {
        if self.state == ConnState::Passthrough && !self.input.is_empty() {
            self.redis.out.push(self.input.split().freeze());
        }
        let before = self.redis.out.len();
        match self.redis.poll_write(cx) {
            Poll::Ready(Err(_)) => {
                // Replies to earlier commands may still be read.
                self.redis.out = WriteBuf::default();
                Step::Idle
            }
            Poll::Ready(Ok(())) | Poll::Pending => Step::progress_if(self.redis.out.len() < before),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Step {
        if self.redis.is_revoked() {
            // Bytes on their way may come from the current primary, and be older than earlier
            // replies to this client.
            return self.close();
        }
        let before = self.output.len();
        let written = match self.output.poll_write(Pin::new(&mut self.client), cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.client).poll_flush(cx),
            other => other,
        };
        self.is_flushed = written.is_ready();
        match written {
            Poll::Ready(Err(_)) => self.close(),
            Poll::Ready(Ok(())) | Poll::Pending if self.output.len() < before => {
                let now = self.now();
                self.lifetime.progressed(now);
                Step::Progress
            }
            Poll::Ready(Ok(())) | Poll::Pending => Step::Idle,
        }
    }

    /// Whether the connection ends, when nothing else can be done now.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let is_written = self.output.is_empty() && self.is_flushed;
        let is_draining = self.lifetime.poll_draining(cx);
        let may_end = is_draining || self.has_read_eof || self.state != ConnState::Commands;
        let end = if may_end {
            end(self.state, is_draining, self.facts(is_written))
        } else {
            // The same answer as `end` has for any facts, without collecting them at each read.
            End::WhenIdle
        };
        let is_answered = self.replies.is_empty() && is_written;
        match end {
            End::Now => true,
            End::WhenIdle if self.lifetime.poll_idle(is_answered, cx) => true,
            End::WhenIdle | End::Later => self.is_stalled(is_written, cx),
        }
    }

    fn facts(&self, is_written: bool) -> Facts {
        let is_answered = self.replies.is_empty() && is_written;
        Facts {
            is_written,
            is_quiet: is_answered && !self.fences.is_running() && !self.is_probing(),
            is_blocked: self.replies.is_blocking_first() && is_written,
            has_read_eof: self.has_read_eof,
            is_passthrough: self.is_passthrough(),
            is_desynced: self.session.is_desynced(),
            is_forwarded: self.redis.out.is_empty(),
        }
    }

    /// Whether a connection has stood still for too long: one that takes no more commands, or one
    /// with a large value that its client does not read, while room for values is short.
    fn is_stalled(&mut self, is_written: bool, cx: &mut Context<'_>) -> bool {
        let is_draining = self.state == ConnState::Draining;
        let is_closing = self.has_read_eof || is_draining || self.state == ConnState::Flushing;
        // A command before QUIT may block for hours. The end of a client that is there is read, so
        // no time limit is needed.
        let waits_for_redis =
            is_draining && !self.has_read_eof && !self.replies.is_empty() && is_written;
        if is_closing && !waits_for_redis {
            return self.lifetime.poll_stalled(cx);
        }
        if self.output.len() < COUNTED_MIN || self.state != ConnState::Commands {
            self.lifetime.may_stall();
            return false;
        }
        while self.lifetime.poll_stalled(cx) {
            if self.shared.proxy.is_room_short() {
                return true;
            }
            self.lifetime.stall_on();
        }
        false
    }

    /// The time, as it was when this round first read it.
    pub(super) fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    /// Removes the command that is the first `length` bytes of the input.
    pub(super) fn consume(&mut self, length: usize) {
        if length < self.input.len() {
            self.input.advance(length);
        } else {
            // So the next bytes are read to the same place.
            self.input.clear();
        }
    }

    /// Adds a reply that is here already.
    pub(super) fn reply(&mut self, write: impl FnOnce(&mut WriteBuf)) {
        if self.replies.is_empty() {
            write(&mut self.output);
        } else {
            self.replies.add_ready(write);
        }
    }

    /// Forwards a read that its flight could not answer. No later command has been forwarded.
    fn forward_read(&mut self, command: Bytes) {
        self.open_redis();
        self.redis.out.push(command);
        self.replies.forward_read(self.shared.proxy.is_ttl_only());
    }

    /// Sends a `PING` whose reply shows whether Redis has admitted the client. No reply is pending.
    pub(super) fn probe_admission(&mut self) {
        self.open_redis();
        self.keepalive_pending = true;
        self.redis.out.tail().extend_from_slice(b"PING\r\n");
    }

    /// Whether a command waits for the reply to a `PING`.
    fn is_probing(&self) -> bool {
        self.keepalive_pending && !self.input.is_empty()
    }

    /// Lets a command go on that waited for a `PING` without a reply. It then gets the error of a
    /// Redis that is not available.
    fn give_up_probe(&mut self) {
        self.keepalive_pending = false;
        self.admission = AdmissionTracker::granted();
    }

    /// Sends a `PING` if the connection to Redis has long been unused.
    pub(super) fn keep_redis_alive(&mut self, now: Instant) {
        let is_idle =
            self.redis.is_open() && self.replies.is_empty() && !self.session.is_in_multi();
        if is_idle && !self.keepalive_pending && now > self.redis.last_sent + KEEPALIVE {
            self.keepalive_pending = true;
            self.redis.out.tail().extend_from_slice(b"PING\r\n");
        }
    }

    /// Opens the connection to Redis, if there is none.
    pub(super) fn open_redis(&mut self) {
        if self.redis.is_closed() {
            let opening = Arc::clone(&self.shared).open(self.session.connect_as());
            self.redis.open(Box::pin(opening));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_command_gets_its_room_at_once() {
        const MOST: usize = 1 << 20;
        for (held, is_streaming, room) in [
            (0, false, SMALL_CHUNK),
            (0, true, STREAM_CHUNK),
            (LARGE_INPUT - 1, false, SMALL_CHUNK),
            (LARGE_INPUT, false, MOST - LARGE_INPUT),
            (MOST, false, READ_CHUNK),
            (MOST + 1, true, READ_CHUNK),
        ] {
            let found = read_room(held, MOST, is_streaming, SMALL_CHUNK);
            assert_eq!(found, room, "{held} {is_streaming}");
        }
    }
}
