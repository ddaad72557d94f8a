//! A client's connection: what moves over it, in what order, and how it ends.
//!
//! One task does all of it, going round for as long as anything moves: it reads from the client, takes up commands, sends
//! on what is not answered from memory, passes on what Redis says, and writes. Nothing is waited for anywhere but in
//! [`Connection::poll`], so what stands still is the one thing, and all else goes on. Every buffer has a limit at which the
//! one who fills it is read no more; the limit of one never stands in the way of what would empty it.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use super::Shared;
use super::link::Link;
use super::owed::{Dropped, Queue};
use super::read::{Found, Landed};
use super::standing::{Standing, User};
use crate::backend::{BackendError, FenceResult};
use crate::net::ClientStream;
use crate::net::PollOnWake;
use crate::net::WriteBuf;
use crate::protocol::RequestParser;
use crate::protocol::write_error;
use crate::protocol::{ReplyScanner, ReplySummary};
use crate::server::Drain;

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Commands are taken up one by one.
    Commands,
    /// Whatever comes is sent on as it is, both ways.
    Pipe,
    /// No more is taken up; what is owed is given out, and then it ends.
    Leaving,
    /// What is on its way out is given out, and then it ends.
    Ending,
    /// It has ended.
    Over,
}

/// A client's connection.
pub(super) struct Connection {
    client: ClientStream,
    pub(super) shared: Arc<Shared>,
    pub(super) stage: Stage,
    pub(super) input: BytesMut,
    pub(super) parser: RequestParser,
    output: WriteBuf,
    /// Whether all that was written is on its way; TLS may hold some of it.
    is_flushed: bool,
    pub(super) owed: Queue,
    pub(super) reads: FuturesOrdered<Task<Landed>>,
    pub(super) link: Link,
    scanner: ReplyScanner,
    pub(super) standing: Standing,
    /// Since when this client may have been told what memory does not know.
    pub(super) unproved: Option<Instant>,
    pub(super) fencing: Option<Task<Result<FenceResult, BackendError>>>,
    /// No proof can be had, so reads go past memory until then.
    pub(super) past_memory_until: Option<Instant>,
    /// What Redis says next answers a question of ours, and is not for the client.
    pub(super) is_own_question_open: bool,
    /// What the commands kept for `EXEC` will take out of memory.
    pub(super) transaction: Dropped,
    draining: PollOnWake<Task<()>>,
    is_draining: bool,
    /// For as long as this lives, the daemon knows that the connection does.
    _alive: Drain,
    idle: Option<PollOnWake<Pin<Box<Sleep>>>>,
    /// When a byte last came from the client, or was taken by it.
    last_moved: Instant,
    /// The time, once somebody has asked for it in this round.
    now: Option<Instant>,
    /// When to look whether a connection that takes up no more commands is to be given up.
    farewell: Option<Pin<Box<Sleep>>>,
}

/// Bytes asked for at once.
const READ: usize = 16 << 10;
/// A buffer that has grown beyond this is given back once it is empty.
const KEPT: usize = 16 << 10;
/// Bytes that may wait to be sent to Redis.
pub(super) const LINK_OUTPUT: usize = 1 << 20;
/// Bytes from Redis that may wait to be sent to a client; the rest waits at Redis.
const PASSED_ON: usize = 1 << 20;
/// Flights of one client at the same time: so many values it may hold that are not its turn yet.
const MOST_FLIGHTS: usize = 64;
/// Things owed to one client; more of its commands are taken up when it has taken some.
const MOST_OWED: usize = 1 << 18;
/// For how long after the daemon was told to stop a command may still be on its way here.
const LAST_WORD: Duration = Duration::from_millis(50);
/// How long the end of TLS may take to be said.
const LAST_FLUSH: Duration = Duration::from_secs(1);
/// How long a connection that takes up no more commands may stand still before it is given up.
const FAREWELL: Duration = Duration::from_secs(30);
/// A link over which nothing was sent for so long, while its client reads from memory, is shown to be in use: Redis, or
/// something on the way, may hang up on who is silent.
const KEEP_AWAKE: Duration = Duration::from_secs(15);

impl Connection {
    pub(super) fn new(client: ClientStream, shared: Arc<Shared>, mut drain: Drain) -> Self {
        let timeout = shared.settings.idle_timeout;
        Self {
            client,
            stage: Stage::Commands,
            input: BytesMut::new(),
            parser: RequestParser::default(),
            output: WriteBuf::default(),
            is_flushed: true,
            owed: Queue::default(),
            reads: FuturesOrdered::new(),
            link: Link::none(),
            scanner: ReplyScanner::default(),
            standing: Standing::of(User::Nobody),
            unproved: None,
            fencing: None,
            past_memory_until: None,
            is_own_question_open: false,
            transaction: Dropped::Nothing,
            _alive: drain.clone(),
            draining: PollOnWake::new(Box::pin(async move {
                drain.signaled().await;
                sleep(LAST_WORD).await;
            })),
            is_draining: false,
            idle: (!timeout.is_zero()).then(|| PollOnWake::new(Box::pin(sleep(timeout)))),
            last_moved: Instant::now(),
            now: None,
            farewell: None,
            shared,
        }
    }

    pub(super) async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
        if self.client.needs_close_notify() {
            _ = timeout(LAST_FLUSH, self.client.shutdown()).await;
        }
    }

    /// Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.now = None;
            let steps = [
                self.poll_link(cx),
                self.poll_replies(cx),
                self.poll_reads(cx),
                self.poll_client(cx),
                Moved::if_so(self.take_commands()),
                // After what may begin one: a fence that nobody has looked at wakes nobody.
                self.poll_fence(cx),
                self.poll_send(cx),
                self.poll_write(cx),
            ];
            if self.stage == Stage::Over {
                return Poll::Ready(());
            }
            if !steps.contains(&Moved::Yes) {
                return if self.is_over(cx) { Poll::Ready(()) } else { Poll::Pending };
            }
        }
    }

    /// Opens the link.
    fn poll_link(&mut self, cx: &mut Context<'_>) -> Moved {
        let Poll::Ready(opened) = self.link.poll_open(cx) else { return Moved::No };
        if let Err(error) = opened {
            self.no_link(&error);
        }
        Moved::Yes
    }

    /// There is no link, so nothing of what was to go over it has been done.
    fn no_link(&mut self, error: &BackendError) {
        let was_of_state = self.owed.refuse_awaited(|output| write_failure(output, error));
        self.standing = self.standing.without_link();
        self.transaction = Dropped::Nothing;
        // What it says next it would say in a state that it is not in.
        if was_of_state || self.parser.is_streaming() || self.stage == Stage::Pipe {
            self.stage = Stage::Leaving;
        }
        self.give_out();
    }

    /// Passes on what Redis says.
    fn poll_replies(&mut self, cx: &mut Context<'_>) -> Moved {
        let mut moved = Moved::No;
        while self.stage != Stage::Over
            && self.output.len() < PASSED_ON
            && !self.owed.is_read_first()
        {
            if self.link.input.is_empty() {
                match self.link.poll_read(cx) {
                    Poll::Pending => return moved,
                    Poll::Ready(Ok(1..)) => {}
                    // After a failover another Redis may not know what this client was told, so it has to be told.
                    Poll::Ready(Err(error)) if error.kind() == ErrorKind::ConnectionAborted => {
                        return self.cut_link();
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return self.lost_link(),
                }
            }
            moved = Moved::Yes;
            self.pass_on();
        }
        moved
    }

    /// Redis has hung up, and so does the proxy, unless nothing is lost by it: another link will do as well.
    fn lost_link(&mut self) -> Moved {
        let owes_nothing =
            self.owed.is_empty() && !self.scanner.is_mid_reply() && self.link.out.is_empty();
        let goes_on = owes_nothing && self.standing.is_as_new() && self.stage == Stage::Commands;
        if !goes_on {
            return self.cut_link();
        }
        self.drop_link();
        Moved::Yes
    }

    /// The connection cannot do without this link.
    fn cut_link(&mut self) -> Moved {
        self.drop_link();
        self.stage = Stage::Ending;
        Moved::Yes
    }

    /// Gives up the link, with what was said over it in part.
    pub(super) fn drop_link(&mut self) {
        self.link.close();
        self.scanner = ReplyScanner::default();
        self.is_own_question_open = false;
    }

    /// Gives out what has come over the link, as far as it is its turn.
    fn pass_on(&mut self) {
        while !self.link.input.is_empty() && !self.owed.is_read_first() {
            if self.stage == Stage::Pipe && !self.is_own_question_open {
                return self.output.push(self.link.input.split().freeze());
            }
            let Ok((length, frame)) = self.scanner.scan(&self.link.input) else {
                tracing::warn!("Redis sent a client what is no answer; the connection is closed");
                self.stage = Stage::Over;
                return;
            };
            let passed = self.link.input.split_to(length).freeze();
            if self.is_own_question_open {
                self.is_own_question_open = frame.is_none();
                continue;
            }
            self.output.push(passed);
            match frame {
                // Something was turned on that was not seen, so answers cannot be told from what comes by itself.
                Some(frame) if frame.is_push() => self.standing.doubt(),
                Some(frame) => self.answered(frame),
                None => {}
            }
        }
    }

    fn end(&mut self) -> Moved {
        self.stage = Stage::Over;
        Moved::Yes
    }

    /// Redis has answered the first command that is awaited.
    fn answered(&mut self, frame: ReplySummary) {
        let Some(awaited) = self.owed.take_awaited() else {
            // It says why it hangs up.
            self.stage = Stage::Ending;
            return;
        };
        self.settle(awaited, frame);
        self.give_out();
    }

    /// Takes account of what flights brought.
    fn poll_reads(&mut self, cx: &mut Context<'_>) -> Moved {
        let mut moved = Moved::No;
        while self.owed.is_read_first() {
            let Poll::Ready(Some(landed)) = self.reads.poll_next_unpin(cx) else { return moved };
            moved = Moved::Yes;
            match landed {
                Landed::Found(found) => {
                    self.owed.take_read();
                    found.write(&mut self.output, self.standing.protocol());
                }
                Landed::Failed(error) => {
                    self.owed.take_read();
                    write_failure(&mut self.output, &error);
                }
                Landed::Ask(command) => self.ask_instead(command),
            }
            self.give_out();
        }
        moved
    }

    /// Moves what is ready to where it is written from.
    fn give_out(&mut self) {
        while let Some(ready) = self.owed.take_ready() {
            self.output.append(ready);
        }
    }

    fn poll_client(&mut self, cx: &mut Context<'_>) -> Moved {
        if !self.has_room() {
            return Moved::No;
        }
        if self.input.capacity() - self.input.len() < READ / 2 {
            self.input.reserve(READ);
        }
        let read = pin!(self.client.read_buf(&mut self.input)).poll(cx);
        match read {
            Poll::Pending => {
                if self.input.is_empty() && self.input.capacity() > KEPT {
                    self.input = BytesMut::new();
                }
                Moved::No
            }
            Poll::Ready(Ok(1..)) => {
                self.last_moved = self.now();
                Moved::Yes
            }
            Poll::Ready(Ok(0)) => self.hung_up(),
            Poll::Ready(Err(_)) => self.end(),
        }
    }

    /// Whether more may be read from the client.
    fn has_room(&self) -> bool {
        let settings = &self.shared.settings;
        let is_listening =
            matches!(self.stage, Stage::Commands | Stage::Pipe) && self.farewell.is_none();
        is_listening
            && self.link.out.len() < LINK_OUTPUT
            && self.input.len() < settings.max_query_buffer.0 + READ
    }

    /// Whether more commands may be taken up.
    pub(super) fn may_take_more(&self) -> bool {
        self.output.len() + self.owed.ready() < self.shared.settings.max_output_buffer.0
            && self.link.out.len() < LINK_OUTPUT
            && self.owed.flights() < MOST_FLIGHTS
            && self.owed.len() < MOST_OWED
            && self.fencing.is_none()
    }

    /// The client has said its last word. What it said is done, and it is given the answers, if it still takes them.
    fn hung_up(&mut self) -> Moved {
        self.farewell = Some(Box::pin(sleep(FAREWELL)));
        Moved::Yes
    }

    /// Tells Redis, too, that the client has said its last word, where it would otherwise wait for something to happen and
    /// take it for a client that may be gone.
    fn pass_on_farewell(&mut self, cx: &mut Context<'_>) {
        // A command of which a part was sent on has no end any more, and so no answer.
        let may_wait =
            self.stage == Stage::Pipe || self.owed.has_blocking() || self.parser.is_streaming();
        // What is left of it then is no whole command.
        let is_all_taken = self.owed.flights() == 0 && self.may_take_more();
        if may_wait && self.farewell.is_some() && is_all_taken && self.link.out.is_empty() {
            _ = self.link.poll_finish(cx);
        }
    }

    fn poll_fence(&mut self, cx: &mut Context<'_>) -> Moved {
        let Some(fencing) = &mut self.fencing else { return Moved::No };
        let Poll::Ready(fence) = fencing.as_mut().poll(cx) else { return Moved::No };
        self.fencing = None;
        self.fenced(&fence);
        Moved::Yes
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Moved {
        if self.stage == Stage::Pipe && !self.input.is_empty() {
            self.link.out.push(self.input.split().freeze());
        }
        let before = self.link.out.len();
        match self.link.poll_write(cx) {
            Poll::Ready(Err(_)) => {
                // What it has said before may still be read.
                self.link.out = WriteBuf::default();
                Moved::No
            }
            Poll::Ready(Ok(())) | Poll::Pending => {
                self.pass_on_farewell(cx);
                Moved::if_so(self.link.out.len() < before)
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Moved {
        if self.link.is_revoked() {
            // What is on its way out may be from where Redis is now, and older than what this client was told before.
            return self.end();
        }
        let before = self.output.len();
        let written = match self.output.poll_write(Pin::new(&mut self.client), cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.client).poll_flush(cx),
            other => other,
        };
        self.is_flushed = written.is_ready();
        match written {
            Poll::Ready(Err(_)) => self.end(),
            Poll::Ready(Ok(())) | Poll::Pending if self.output.len() < before => {
                self.last_moved = self.now();
                Moved::Yes
            }
            Poll::Ready(Ok(())) | Poll::Pending => Moved::No,
        }
    }

    /// Whether the client has been sent all that there was for it.
    fn is_written(&self) -> bool {
        self.output.is_empty() && self.is_flushed
    }

    /// Whether it is time to end, when nothing else can be done now.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let is_written = self.is_written();
        let is_quiet = self.owed.is_empty() && is_written;
        if !self.is_draining && self.draining.poll_unpin(cx).is_ready() {
            self.is_draining = true;
        }
        if matches!(self.stage, Stage::Ending | Stage::Leaving) && self.farewell.is_none() {
            self.farewell = Some(Box::pin(sleep(FAREWELL)));
        }
        let is_quiet = is_quiet && self.fencing.is_none();
        let is_over = match self.stage {
            Stage::Over => true,
            Stage::Ending => is_written,
            Stage::Leaving => is_quiet,
            Stage::Pipe => self.is_draining && is_written && self.link.out.is_empty(),
            Stage::Commands if is_quiet && (self.farewell.is_some() || self.is_draining) => true,
            // What seems to be owed may have come.
            Stage::Commands if self.standing.is_doubted_for_good() && self.is_draining => {
                self.output.is_empty() && self.link.out.is_empty()
            }
            // What it waits for may never happen.
            Stage::Commands if self.is_draining && self.owed.is_blocking_first() && is_written => {
                true
            }
            Stage::Commands => self.is_idle_too_long(cx),
        };
        is_over || self.is_given_up(cx)
    }

    /// Whether nothing has moved for too long since the client, or Redis, said its last word.
    fn is_given_up(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(farewell) = &mut self.farewell else { return false };
        while farewell.as_mut().poll(cx).is_ready() {
            let until = self.last_moved + FAREWELL;
            if until <= Instant::now() {
                return true;
            }
            farewell.set(sleep_until(until));
        }
        false
    }

    fn is_idle_too_long(&mut self, cx: &mut Context<'_>) -> bool {
        let is_written = self.is_written();
        let Some(idle) = &mut self.idle else { return false };
        while idle.poll_unpin(cx).is_ready() {
            let until = self.last_moved + self.shared.settings.idle_timeout;
            if until <= Instant::now() && self.owed.is_empty() && is_written {
                return true;
            }
            let until = until.max(Instant::now() + WHILE_OWED);
            idle.update(|idle| idle.set(sleep_until(until)));
        }
        false
    }

    /// The time, as it was when this round first asked for it, or a batch of commands was done.
    pub(super) fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    /// Commands were taken up until now; returns the time.
    pub(super) fn look_at_clock(&mut self) -> Instant {
        self.now = None;
        self.now()
    }

    /// The command that is the first `length` bytes has been made sense of.
    pub(super) fn leave_behind(&mut self, length: usize) {
        if length < self.input.len() {
            self.input.advance(length);
        } else {
            // So what comes next is read to where this was.
            self.input.clear();
        }
    }

    /// Where an answer goes that is here already.
    pub(super) fn reply(&mut self, write: impl FnOnce(&mut WriteBuf)) {
        if self.owed.is_empty() { write(&mut self.output) } else { self.owed.add_ready(write) }
    }

    pub(super) fn reply_found(&mut self, found: &Found) {
        let protocol = self.standing.protocol();
        self.reply(|output| found.write(output, protocol));
    }

    /// Asks Redis a read that its flight could not answer. Nothing was sent on behind it.
    fn ask_instead(&mut self, command: Bytes) {
        self.open_link();
        self.link.out.push(command);
        self.owed.await_instead_of_read(self.shared.proxy.is_ttl_only());
    }

    /// Shows Redis that the link is in use, as its client is.
    pub(super) fn keep_link_awake(&mut self, now: Instant) {
        let is_idle = self.link.is_open() && self.owed.is_empty() && !self.standing.is_in_multi();
        if is_idle && !self.is_own_question_open && now > self.link.last_sent + KEEP_AWAKE {
            self.is_own_question_open = true;
            self.link.out.tail().extend_from_slice(b"PING\r\n");
        }
    }

    /// Opens the link, if there is none.
    pub(super) fn open_link(&mut self) {
        if self.link.is_none() {
            let opening = Arc::clone(&self.shared).open(self.standing.client());
            self.link.open(Box::pin(opening));
        }
    }
}

/// A connection that is owed something is looked at again after this.
const WHILE_OWED: Duration = Duration::from_secs(1);

/// Whether anything moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    Yes,
    No,
}

impl Moved {
    fn if_so(moved: bool) -> Self {
        if moved { Self::Yes } else { Self::No }
    }
}

/// Says that Redis cannot be asked, in words that Redis itself does not use. Nothing has been done, so whoever wants to may
/// try again; `LOADING` is what makes most clients do so that can.
pub(super) fn write_failure(output: &mut WriteBuf, error: &BackendError) {
    let code = if error.is_transient() { "LOADING" } else { "ERR" };
    write_error(output.tail(), format!("{code} redis-proxy: upstream unavailable: {error}"));
}
