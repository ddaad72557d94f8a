//! A Redis Cluster, as one Redis: commands come in over one stream and go to the nodes that serve their keys, and the answers
//! go out in the order of the questions.
//!
//! It stands where a link to a single Redis would, so whoever talks to it needs to know nothing of clusters. It has a link to
//! each node it has needed so far, and reads from one at a time: the one that owes the first answer.
//!
//! The rules that must not be broken: no answer is given out before those in front of it. A command is never done twice: it is
//! sent again only if the node said that it did not do it, if it was never sent, or if it changes nothing. And once the slot map
//! has changed, nothing more is sent before all that was sent by the old one is answered, so that what is sent elsewhere a second
//! time is not overtaken by what its client said behind it.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Instant, sleep, timeout};

use super::connection::{Moved, write_failure};
use super::gather::{Gather, write_together};
use super::key_table::KeyTable;
use super::link::Link;
use super::route::{Route, asking, crossslot, error, of_one_node, route};
use crate::backend::{BackendError, ConnectAs, EpochStream};
use crate::cluster::{Cluster, NodeId};
use crate::net::WriteBuf;
use crate::protocol::ReplyScanner;
use crate::protocol::{Arguments, ParseStatus, RequestLimits, RequestParser};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a router needs to know beside the cluster.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) table: Arc<KeyTable>,
    pub(super) limits: RequestLimits,
    /// As much of a command is held, and of answers that nobody has taken.
    pub(super) most_held: usize,
    /// For how long a command that no node has done is tried again.
    pub(super) patience: Duration,
}

/// A stream on which the cluster speaks as one Redis.
pub(super) fn open(cluster: Cluster, client: ConnectAs, terms: Terms) -> EpochStream {
    let (ours, theirs) = duplex(BUFFER);
    // It ends when the other end is dropped.
    tokio::spawn(Router::new(cluster, client, terms, ours).run());
    EpochStream::unbound(theirs)
}

/// Bytes that may be on their way between the two ends.
const BUFFER: usize = 64 << 10;
/// Bytes asked for at once.
const READ: usize = 16 << 10;
/// Bytes that may wait to be sent to one node.
const LINK_OUTPUT: usize = 1 << 20;
/// Commands that may be unanswered.
const MOST_PENDING: usize = 1024;
/// An error is a line, and no longer than this.
const LONGEST_ERROR: usize = 64 << 10;
/// How long a command waits before it is sent again where its slot is on its way.
const AGAIN: Duration = Duration::from_millis(20);

/// A command that is sent to one node.
struct Part {
    node: Option<NodeId>,
    slot: Option<u16>,
    command: Bytes,
    is_read: bool,
    is_sent: bool,
    /// Answers to questions of ours that come before its own.
    skip: usize,
    /// Its answer has begun to come.
    has_begun: bool,
}

/// What is owed next.
enum Pending {
    Ready(Bytes),
    Asked(Asked),
}

/// What nodes are asked.
struct Asked {
    gather: Gather,
    /// Those that are not answered.
    parts: VecDeque<Part>,
    /// The answers to those that are.
    answers: Vec<BytesMut>,
    /// What has come of the next.
    answer: BytesMut,
    /// Since when it is tried.
    since: Instant,
    /// It is of a transaction, so no other node can do it.
    is_bound: bool,
    /// It logs in, if it is not refused.
    is_login: bool,
}

/// A link to one node.
struct NodeLink {
    node: NodeId,
    link: Link,
    scanner: ReplyScanner,
}

/// How far a transaction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    None,
    /// `MULTI` was said, and no node knows of it yet.
    Begun,
    /// This node keeps what is said.
    At(NodeId),
}

struct Router {
    cluster: Cluster,
    client: ConnectAs,
    terms: Terms,
    stream: DuplexStream,
    input: BytesMut,
    parser: RequestParser,
    output: WriteBuf,
    pending: VecDeque<Pending>,
    links: Vec<NodeLink>,
    /// Who is asked what names no key.
    home: Option<NodeId>,
    /// The slot map by which the unanswered commands were sent.
    version: u64,
    /// What was said to log in, to be said again on each link.
    logins: Vec<Bytes>,
    transaction: Transaction,
    /// What it keeps before a key says which node that is.
    held: Vec<Bytes>,
    /// A command of the transaction was refused here.
    is_spoilt: bool,
    watching: Option<NodeId>,
    /// Nothing more is taken up until all is answered.
    is_holding: bool,
    pipe: Option<NodeId>,
    /// What is waited for before the first command is sent again.
    retrying: Option<Task>,
    stage: Stage,
    /// The other end has said its last word.
    has_hung_up: bool,
}

/// How far the conversation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// It ends when all is given out.
    Ending,
    Over,
}

impl Router {
    fn new(cluster: Cluster, client: ConnectAs, terms: Terms, stream: DuplexStream) -> Self {
        Self {
            version: cluster.version(),
            cluster,
            client,
            terms,
            stream,
            input: BytesMut::new(),
            parser: RequestParser::default(),
            output: WriteBuf::default(),
            pending: VecDeque::new(),
            links: Vec::new(),
            home: None,
            logins: Vec::new(),
            transaction: Transaction::None,
            held: Vec::new(),
            is_spoilt: false,
            watching: None,
            is_holding: false,
            pipe: None,
            retrying: None,
            stage: Stage::Open,
            has_hung_up: false,
        }
    }

    async fn run(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let steps = [
                self.poll_links(cx),
                self.poll_retry(cx),
                self.poll_answers(cx),
                self.poll_idle_links(cx),
                self.poll_pipe(cx),
                self.poll_client(cx),
                if self.take_commands() { Moved::Yes } else { Moved::No },
                self.poll_send(cx),
                self.poll_write(cx),
            ];
            let is_done =
                self.stage == Stage::Ending && self.pending.is_empty() && self.output.is_empty();
            if self.stage == Stage::Over || is_done {
                return Poll::Ready(());
            }
            if !steps.contains(&Moved::Yes) {
                return Poll::Pending;
            }
        }
    }

    fn poll_links(&mut self, cx: &mut Context<'_>) -> Moved {
        let mut moved = Moved::No;
        for at in (0..self.links.len()).rev() {
            let Poll::Ready(opened) = self.links[at].link.poll_open(cx) else { continue };
            moved = Moved::Yes;
            if opened.is_err() {
                // Nothing was said over it, so nothing was done.
                let node = self.links.remove(at).node;
                self.unsend(node);
            }
        }
        moved
    }

    /// What was to go to this node has to be sent again.
    fn unsend(&mut self, node: NodeId) {
        for asked in self.pending.iter_mut().filter_map(Pending::asked) {
            for part in asked.parts.iter_mut().filter(|part| part.node == Some(node)) {
                part.is_sent = false;
                if asked.is_bound {
                    // Elsewhere it would be done outside of its transaction.
                    self.stage = Stage::Over;
                }
            }
        }
        self.home = self.home.filter(|home| *home != node);
        if self.pipe == Some(node) {
            self.stage = Stage::Over;
        }
    }

    /// A link was lost: what it owes may have been done or not.
    fn lost(&mut self, node: NodeId) {
        self.links.retain(|one| one.node != node);
        let is_bound = self.transaction == Transaction::At(node) || self.watching == Some(node);
        let is_owed = |pending: &Pending| match pending {
            Pending::Ready(_) => false,
            Pending::Asked(asked) => {
                let mut owed =
                    asked.parts.iter().filter(|part| part.node == Some(node) && part.is_sent);
                owed.any(|part| asked.is_bound || !part.is_read || part.has_begun)
            }
        };
        if is_bound || self.pending.iter().any(is_owed) {
            self.stage = Stage::Over;
        }
        self.unsend(node);
    }

    /// Links that owe nothing are looked at now and then, since their end may have been said.
    fn poll_idle_links(&mut self, cx: &mut Context<'_>) -> Moved {
        let mut moved = Moved::No;
        if !self.pending.is_empty() || self.pipe.is_some() {
            return moved;
        }
        for at in (0..self.links.len()).rev() {
            if self.links[at].link.poll_read(cx).is_ready() {
                // Its end, or something that nobody asked for.
                let node = self.links[at].node;
                self.lost(node);
                moved = Moved::Yes;
            }
        }
        moved
    }

    fn poll_retry(&mut self, cx: &mut Context<'_>) -> Moved {
        let Some(retrying) = &mut self.retrying else { return Moved::No };
        if retrying.as_mut().poll(cx).is_pending() {
            return Moved::No;
        }
        self.retrying = None;
        self.send_again();
        Moved::Yes
    }

    /// Sends the first part to where it belongs now, or gives it up.
    fn send_again(&mut self) {
        let Some(Pending::Asked(asked)) = self.pending.front_mut() else { return };
        let Some(part) = asked.parts.front_mut() else { return };
        let primaries = self.cluster.primaries();
        let node = match part.slot {
            Some(slot) => self.cluster.owner(slot),
            None => part
                .node
                .filter(|node| primaries.contains(node))
                .or_else(|| primaries.first().copied()),
        };
        if let Some(node) = node.filter(|_| asked.since.elapsed() < self.terms.patience) {
            (part.node, part.is_sent, part.skip) = (Some(node), true, 0);
            let command = part.command.clone();
            return self.say(node, command);
        }
        let mut answer = WriteBuf::default();
        write_failure(&mut answer, &BackendError::Unavailable("CLUSTERDOWN".into()));
        let answer = answer.tail().split();
        self.answered(answer);
    }

    /// This is the whole answer to the first part.
    fn answered(&mut self, answer: BytesMut) {
        if let Some(Pending::Asked(asked)) = self.pending.front_mut() {
            if asked.gather == Gather::Pass {
                self.output.push(answer.freeze());
            } else {
                asked.answer = answer;
            }
            asked.is_login = false;
        }
        self.end_part();
    }

    /// The first part is answered.
    fn end_part(&mut self) {
        let Some(Pending::Asked(asked)) = self.pending.front_mut() else { return };
        let part = asked.parts.pop_front();
        asked.answers.push(std::mem::take(&mut asked.answer));
        if !asked.parts.is_empty() {
            return;
        }
        let Some(Pending::Asked(asked)) = self.pending.pop_front() else { return };
        if let Some(part) = part.filter(|_| asked.is_login) {
            self.logged_in(&part);
        }
        match asked.gather {
            Gather::Pass => {}
            // What follows relies on it.
            Gather::Silent if asked.answers.iter().any(|answer| answer.first() == Some(&b'-')) => {
                self.stage = Stage::Over;
            }
            gather => write_together(&gather, &asked.answers, &mut self.output),
        }
    }

    /// From now on it is said on every new link, and now on every other that there is: what is watched there goes on.
    fn logged_in(&mut self, part: &Part) {
        self.logins.retain(|said| is_hello(said) != is_hello(&part.command));
        self.logins.push(part.command.clone());
        let others: Vec<_> =
            self.links.iter().map(|one| one.node).filter(|node| Some(*node) != part.node).collect();
        for node in others {
            self.ask_bound(node, part.command.clone(), Gather::Silent);
        }
    }

    /// Reads what the first in the queue is owed.
    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Moved {
        let mut moved = Moved::No;
        while self.stage != Stage::Over
            && self.output.len() < self.terms.most_held
            && self.retrying.is_none()
        {
            match self.pending.front_mut() {
                None => {
                    self.is_holding = false;
                    return moved;
                }
                Some(Pending::Ready(answer)) => {
                    self.output.push(std::mem::take(answer));
                    self.pending.pop_front();
                }
                Some(Pending::Asked(_)) => {
                    if self.poll_part(cx).is_pending() {
                        return moved;
                    }
                }
            }
            moved = Moved::Yes;
        }
        moved
    }

    /// Ready when something was made of the first part.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Pending::Asked(asked)) = self.pending.front_mut() else { return Poll::Ready(()) };
        let Some(part) = asked.parts.front_mut() else { return Poll::Ready(()) };
        let node = part.node.filter(|_| part.is_sent);
        let Some(one) = self.links.iter_mut().find(|one| Some(one.node) == node) else {
            self.find_anew();
            return Poll::Ready(());
        };
        let is_error = !part.has_begun && part.skip == 0 && one.link.input.first() == Some(&b'-');
        let end = if is_error { memchr::memchr(b'\n', &one.link.input) } else { None };
        let is_short = one.link.input.is_empty() || (is_error && end.is_none());
        if is_short && one.link.input.len() < LONGEST_ERROR {
            if !matches!(ready!(one.link.poll_read(cx)), Ok(1..)) {
                let node = one.node;
                self.lost(node);
            }
            return Poll::Ready(());
        }
        if let Some(end) = end {
            let (line, node) = (one.link.input.split_to(end + 1), one.node);
            self.refused(line, node);
            return Poll::Ready(());
        }
        let Ok((length, frame)) = one.scanner.scan(&one.link.input) else {
            self.stage = Stage::Over;
            return Poll::Ready(());
        };
        let passed = one.link.input.split_to(length);
        if part.skip > 0 {
            part.skip -= usize::from(frame.is_some());
            return Poll::Ready(());
        }
        part.has_begun = true;
        match asked.gather {
            Gather::Pass => self.output.push(passed.freeze()),
            _ => asked.answer.unsplit(passed),
        }
        if frame.is_some_and(|frame| !frame.is_push()) {
            self.end_part();
        }
        Poll::Ready(())
    }

    /// The first part was answered with an error: it may be sent elsewhere, or again.
    fn refused(&mut self, line: BytesMut, node: NodeId) {
        let text = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<_> = text.trim_start_matches('-').split_ascii_whitespace().collect();
        let Some(Pending::Asked(asked)) = self.pending.front_mut() else { return };
        let is_in_time = asked.since.elapsed() < self.terms.patience;
        match words[..] {
            ["MOVED" | "ASK", slot, address] if asked.is_bound => {
                if let ("MOVED", Ok(slot)) = (words[0], slot.parse()) {
                    // Whoever begins again is to begin there.
                    _ = self.cluster.apply_moved(slot, address, node);
                }
                self.answered(BytesMut::from(LEFT));
            }
            ["MOVED", slot, address] if is_in_time => {
                let next = slot
                    .parse()
                    .ok()
                    .and_then(|slot| self.cluster.apply_moved(slot, address, node).ok());
                self.send_to(next, false);
            }
            ["ASK", _, address] if is_in_time => {
                let next = self.cluster.node_at(address, node).ok();
                self.send_to(next, true);
            }
            ["TRYAGAIN", ..] if is_in_time && !asked.is_bound => {
                self.retrying = Some(Box::pin(sleep(AGAIN)));
            }
            ["CLUSTERDOWN" | "MASTERDOWN", ..] if is_in_time && !asked.is_bound => self.find_anew(),
            _ => self.answered(line),
        }
    }

    /// Sends the first part on to where a node said.
    fn send_to(&mut self, next: Option<NodeId>, is_once: bool) {
        let Some(Pending::Asked(asked)) = self.pending.front_mut() else { return };
        let Some(part) = asked.parts.front_mut() else { return };
        let Some(next) = next else { return self.find_anew() };
        (part.node, part.is_sent, part.skip) = (Some(next), true, usize::from(is_once));
        let command = if is_once { asking(&part.command) } else { part.command.clone() };
        self.say(next, command);
    }

    /// Before the first part is sent again the nodes are asked who serves what.
    fn find_anew(&mut self) {
        let cluster = self.cluster.clone();
        let asking = async move {
            // Who cannot be asked does not keep anybody waiting for long.
            _ = timeout(REFRESH, cluster.refresh()).await;
            sleep(AGAIN).await;
        };
        self.retrying = Some(Box::pin(asking));
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>) -> Moved {
        let mut moved = Moved::No;
        while let Some(node) = self.pipe.filter(|_| self.output.len() < BUFFER) {
            let Some(one) = self.links.iter_mut().find(|one| one.node == node) else { break };
            match one.link.poll_read(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(1..)) => self.output.push(one.link.input.split().freeze()),
                Poll::Ready(Ok(0) | Err(_)) => self.stage = Stage::Over,
            }
            moved = Moved::Yes;
            if self.stage == Stage::Over {
                break;
            }
        }
        moved
    }

    fn poll_client(&mut self, cx: &mut Context<'_>) -> Moved {
        if self.stage != Stage::Open
            || self.input.len() > self.terms.most_held + READ
            || !self.may_send()
        {
            return Moved::No;
        }
        self.input.reserve(READ);
        match pin!(self.stream.read_buf(&mut self.input)).poll(cx) {
            Poll::Pending => Moved::No,
            Poll::Ready(Ok(1..)) => Moved::Yes,
            Poll::Ready(Ok(0)) => {
                // Nothing more is said; what was said is answered, if it is not to be waited for.
                self.has_hung_up = true;
                self.stage = if self.pipe.is_some() { Stage::Over } else { Stage::Ending };
                Moved::Yes
            }
            Poll::Ready(Err(_)) => {
                self.stage = Stage::Over;
                Moved::Yes
            }
        }
    }

    /// Whether no node lags behind with what it is sent.
    fn may_send(&self) -> bool {
        self.links.iter().all(|one| one.link.out.len() < LINK_OUTPUT)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Moved {
        let mut moved = Moved::No;
        for one in &mut self.links {
            let before = one.link.out.len();
            if let Poll::Ready(Err(_)) = one.link.poll_write(cx) {
                // What it has said before may still be read.
                one.link.out = WriteBuf::default();
            }
            if one.link.out.len() < before {
                moved = Moved::Yes;
            }
            if self.has_hung_up && one.link.out.is_empty() {
                // A node would give what it waits for to a client that is gone.
                _ = one.link.poll_finish(cx);
            }
        }
        moved
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Moved {
        let before = self.output.len();
        if let Poll::Ready(Err(_)) = self.output.poll_write(Pin::new(&mut self.stream), cx) {
            self.stage = Stage::Over;
        }
        if self.output.len() < before { Moved::Yes } else { Moved::No }
    }

    fn take_commands(&mut self) -> bool {
        if let Some(node) = self.pipe {
            let is_any = !self.input.is_empty();
            if is_any {
                let input = self.input.split().freeze();
                self.say(node, input);
            }
            return is_any;
        }
        let mut took = false;
        while self.may_take() && self.take_next() {
            took = true;
        }
        took
    }

    fn may_take(&mut self) -> bool {
        if self.pending.is_empty() {
            self.is_holding = false;
            self.version = self.cluster.version();
        }
        let has_room = self.pending.len() < MOST_PENDING
            && self.output.len() < self.terms.most_held
            && self.may_send();
        let is_ended = self.stage == Stage::Over || self.pipe.is_some();
        has_room
            && !is_ended
            && !self.input.is_empty()
            && !self.is_holding
            && self.version == self.cluster.version()
    }

    /// Takes up a command; tells whether anything came of it.
    fn take_next(&mut self) -> bool {
        let length = match self.parser.parse(&self.input, self.terms.limits) {
            Ok(ParseStatus::Complete(length)) => length,
            Ok(_) if self.input.len() <= self.terms.most_held => return false,
            Ok(_) => {
                self.end_with(
                    "ERR redis-proxy: the command is longer than resp.max_output_buffer, which is as much as is held",
                );
                return true;
            }
            Err(problem) => {
                self.end_with([b"ERR ", &*problem.bytes()].concat());
                return true;
            }
        };
        let arguments = self.parser.arguments(&self.input);
        if arguments.is_empty() {
            _ = self.input.split_to(length);
            return true;
        }
        let (route, is_read) = route(&self.terms.table, arguments);
        let is_alone = self.transaction == Transaction::None;
        let route = if is_alone { route } else { within_transaction(route, arguments) };
        let known = self.terms.table.find(arguments);
        let may_block = is_alone && known.is_some_and(|command| command.may_block);
        let is_taken = self.go(route, is_read, length);
        // What is said behind it is done behind it, at other nodes too.
        self.is_holding |= is_taken && may_block;
        is_taken
    }

    fn end_with(&mut self, text: impl AsRef<[u8]>) {
        self.pending.push_back(Pending::Ready(error(text)));
        self.give_up_input();
    }

    fn give_up_input(&mut self) {
        self.stage = Stage::Ending;
        self.input.clear();
    }

    /// Sends the command that is the first `length` bytes on its way, if it is its turn.
    fn go(&mut self, route: Route, is_read: bool, length: usize) -> bool {
        let is_in_transaction = self.transaction != Transaction::None;
        match route {
            Route::Refused(answer) => {
                self.is_spoilt |= is_in_transaction;
                self.answer(answer, length);
            }
            Route::Slot(_) | Route::Any | Route::Wrong if is_in_transaction => {
                return self.go_in_transaction(&route, length);
            }
            Route::Slot(slot) => {
                self.ask_one(self.cluster.owner(slot), Some(slot), is_read, length);
            }
            Route::Any | Route::Wrong => {
                let home = self.home();
                self.ask_one(home, None, is_read, length);
            }
            Route::Split(commands, gather) => {
                _ = self.input.split_to(length);
                let parts = commands
                    .into_iter()
                    .map(|(slot, command)| (self.cluster.owner(slot), Some(slot), command));
                self.ask(parts.collect(), gather, is_read);
            }
            Route::All(gather) => {
                let command = self.input.split_to(length).freeze();
                let parts = self
                    .cluster
                    .primaries()
                    .into_iter()
                    .map(|node| (Some(node), None, command.clone()));
                self.ask(parts.collect(), gather, is_read);
            }
            Route::Multi | Route::Exec | Route::Discard | Route::Watch(_) | Route::Unwatch => {
                return self.go_about_transaction(&route, length);
            }
            Route::Quit => {
                self.answer(Bytes::from_static(b"+OK\r\n"), length);
                self.give_up_input();
            }
            Route::Login | Route::Reset | Route::Pipe(_) if !self.pending.is_empty() => {
                return false;
            }
            Route::Login => {
                let home = self.home();
                self.ask_one(home, None, false, length);
                self.is_holding = true;
                if let Some(Pending::Asked(asked)) = self.pending.back_mut() {
                    asked.is_login = true;
                }
            }
            Route::Reset => {
                self.logins.clear();
                self.links.clear();
                self.leave_transaction();
                self.answer(Bytes::from_static(b"+RESET\r\n"), length);
            }
            Route::Pipe(slot) => {
                let home = self.home();
                let Some(node) = slot.map_or(home, |slot| self.cluster.owner(slot)) else {
                    self.answer(error("CLUSTERDOWN redis-proxy: nobody serves it"), length);
                    return true;
                };
                let command = self.input.split_to(length).freeze();
                self.pipe = Some(node);
                self.say(node, command);
            }
        }
        true
    }

    /// What begins, ends, or guards a transaction.
    #[expect(clippy::too_many_lines, reason = "it becomes a state machine of its own")]
    fn go_about_transaction(&mut self, route: &Route, length: usize) -> bool {
        let ok = Bytes::from_static(b"+OK\r\n");
        match (route, self.transaction) {
            (Route::Multi, Transaction::None) => {
                self.transaction = Transaction::Begun;
                self.is_spoilt = false;
                self.answer(ok, length);
            }
            (Route::Multi, Transaction::Begun) => {
                self.answer(error("ERR MULTI calls can not be nested"), length);
            }
            (Route::Watch(_), Transaction::Begun) => {
                self.answer(error("ERR WATCH inside MULTI is not allowed"), length);
            }
            (Route::Watch(slot), Transaction::None) => {
                let owner = self.cluster.owner(*slot);
                if self.watching.is_some() && self.watching != owner {
                    self.answer(crossslot(), length);
                } else {
                    self.watching = owner;
                    self.ask_one(owner, Some(*slot), false, length);
                    if let Some(Pending::Asked(asked)) = self.pending.back_mut() {
                        // What is watched elsewhere guards nothing here.
                        asked.is_bound = true;
                    }
                }
            }
            (Route::Unwatch, Transaction::None) | (Route::Discard, Transaction::Begun) => {
                // The answer is the same.
                let watching = self.watching;
                self.leave_transaction();
                match watching {
                    Some(node) => {
                        _ = self.input.split_to(length);
                        self.ask_bound(node, Bytes::from_static(b"UNWATCH\r\n"), Gather::Pass);
                    }
                    None => self.answer(ok, length),
                }
            }
            (Route::Exec, Transaction::Begun)
                if (self.watching.is_some() || !self.held.is_empty()) && !self.is_spoilt =>
            {
                let home = self.home();
                return self.bind(self.watching.or(home));
            }
            (Route::Exec, Transaction::Begun) => {
                let answer = if self.is_spoilt {
                    Bytes::from_static(SPOILT)
                } else {
                    Bytes::from_static(b"*0\r\n")
                };
                if let Some(node) = self.watching {
                    self.ask_bound(node, Bytes::from_static(b"UNWATCH\r\n"), Gather::Silent);
                }
                self.leave_transaction();
                self.answer(answer, length);
            }
            (Route::Exec, Transaction::At(node)) if self.is_spoilt => {
                self.ask_bound(node, Bytes::from_static(b"DISCARD\r\n"), Gather::Silent);
                self.leave_transaction();
                self.answer(Bytes::from_static(SPOILT), length);
            }
            (Route::Exec | Route::Discard, Transaction::At(node)) => {
                let command = self.input.split_to(length).freeze();
                self.ask_bound(node, command, Gather::Pass);
                self.leave_transaction();
            }
            (_, Transaction::At(node)) => {
                let command = self.input.split_to(length).freeze();
                self.ask_bound(node, command, Gather::Pass);
            }
            (_, Transaction::Begun) => return self.go_in_transaction(&Route::Any, length),
            (_, Transaction::None) => {
                let home = self.home();
                self.ask_one(home, None, false, length);
            }
        }
        true
    }

    fn leave_transaction(&mut self) {
        self.held.clear();
        (self.transaction, self.is_spoilt, self.watching) = (Transaction::None, false, None);
    }

    /// A command that is kept for `EXEC`.
    fn go_in_transaction(&mut self, route: &Route, length: usize) -> bool {
        let home = self.home();
        let owner = match route {
            Route::Slot(slot) => self.cluster.owner(*slot),
            _ => self.watching.or(home),
        };
        match self.transaction {
            Transaction::At(node) if !matches!(route, Route::Slot(_)) || owner == Some(node) => {
                let command = self.input.split_to(length).freeze();
                self.ask_bound(node, command, Gather::Pass);
                true
            }
            Transaction::Begun if *route == Route::Wrong => {
                self.is_spoilt = true;
                self.ask_one(home, None, false, length);
                true
            }
            Transaction::Begun if *route == Route::Any => {
                self.held.push(self.input.split_to(length).freeze());
                self.pending.push_back(Pending::Ready(Bytes::from_static(b"+QUEUED\r\n")));
                true
            }
            Transaction::Begun if self.watching.is_none() || self.watching == owner => {
                self.bind(owner)
            }
            _ => {
                self.is_spoilt = true;
                self.answer(crossslot(), length);
                true
            }
        }
    }

    /// Has this node keep what is said from here on. Nothing more is said to it before it has agreed.
    fn bind(&mut self, node: Option<NodeId>) -> bool {
        if !self.pending.is_empty() {
            return false;
        }
        let Some(node) = node else {
            self.end_with("CLUSTERDOWN redis-proxy: nobody serves it");
            return true;
        };
        self.ask_bound(node, Bytes::from_static(b"MULTI\r\n"), Gather::Silent);
        for command in std::mem::take(&mut self.held) {
            self.ask_bound(node, command, Gather::Ignored);
        }
        self.transaction = Transaction::At(node);
        self.is_holding = true;
        true
    }

    /// Who is asked what names no key.
    fn home(&mut self) -> Option<NodeId> {
        let primaries = self.cluster.primaries();
        let home = self.home.filter(|home| primaries.contains(home));
        self.home =
            home.or_else(|| primaries.get(rand::random_range(0..primaries.len().max(1))).copied());
        self.home
    }

    /// Answers the command that is the first `length` bytes.
    fn answer(&mut self, answer: Bytes, length: usize) {
        _ = self.input.split_to(length);
        self.pending.push_back(Pending::Ready(answer));
    }

    fn ask_one(&mut self, node: Option<NodeId>, slot: Option<u16>, is_read: bool, length: usize) {
        let command = self.input.split_to(length).freeze();
        self.ask(vec![(node, slot, command)], Gather::Pass, is_read);
    }

    fn ask_bound(&mut self, node: NodeId, command: Bytes, gather: Gather) {
        self.ask(vec![(Some(node), None, command)], gather, false);
        if let Some(Pending::Asked(asked)) = self.pending.back_mut() {
            asked.is_bound = true;
        }
    }

    fn ask(
        &mut self,
        parts: Vec<(Option<NodeId>, Option<u16>, Bytes)>,
        gather: Gather,
        is_read: bool,
    ) {
        let mut asked = Asked {
            gather,
            parts: VecDeque::with_capacity(parts.len()),
            answers: Vec::new(),
            answer: BytesMut::new(),
            since: Instant::now(),
            is_bound: false,
            is_login: false,
        };
        for (node, slot, command) in parts {
            if let Some(node) = node {
                self.say(node, command.clone());
            }
            let is_sent = node.is_some();
            asked.parts.push_back(Part {
                node,
                slot,
                command,
                is_read,
                is_sent,
                skip: 0,
                has_begun: false,
            });
        }
        if asked.parts.is_empty() {
            self.pending.push_back(Pending::Ready(error(
                "CLUSTERDOWN redis-proxy: no primary of the cluster is known",
            )));
        } else {
            self.pending.push_back(Pending::Asked(asked));
        }
    }

    /// Says something to a node, over a link that is made if there is none.
    fn say(&mut self, node: NodeId, command: Bytes) {
        let known = self.links.iter_mut().find(|one| one.node == node);
        if let Some(one) = known {
            return one.link.out.push(command);
        }
        let mut link = Link::none();
        let opening = opening(self.cluster.clone(), self.client, node, self.logins.clone());
        link.open(Box::pin(opening));
        link.out.push(command);
        self.links.push(NodeLink { node, link, scanner: ReplyScanner::default() });
    }
}

impl Pending {
    fn asked(&mut self) -> Option<&mut Asked> {
        match self {
            Self::Ready(_) => None,
            Self::Asked(asked) => Some(asked),
        }
    }
}

/// The same, but what no one node can keep for `EXEC` is refused.
fn within_transaction(route: Route, arguments: Arguments<'_>) -> Route {
    match route {
        Route::Split(..) => Route::Refused(crossslot()),
        Route::All(_) | Route::Login | Route::Pipe(_) => Route::Refused(of_one_node(arguments)),
        route => route,
    }
}

/// What is said instead of where a key of a transaction is now.
const LEFT: &[u8] = b"-TRYAGAIN redis-proxy: the slot of the transaction has gone to another node; begin it again\r\n";
/// Redis's own words.
const SPOILT: &[u8] = b"-EXECABORT Transaction discarded because of previous errors.\r\n";
/// For how long the nodes are waited for to say who serves what.
const REFRESH: Duration = Duration::from_secs(1);

fn is_hello(command: &Bytes) -> bool {
    command.windows(5).take(16).any(|word| word.eq_ignore_ascii_case(b"hello"))
}

/// A stream to a node, on which the client has logged in as it did before.
async fn opening(
    cluster: Cluster,
    client: ConnectAs,
    node: NodeId,
    logins: Vec<Bytes>,
) -> Result<EpochStream, BackendError> {
    let mut stream = cluster.open(client, node).await?;
    for login in logins {
        log_in(&mut stream, &login).await?;
    }
    Ok(stream)
}

async fn log_in(stream: &mut EpochStream, login: &Bytes) -> Result<(), BackendError> {
    let lost = |_| BackendError::Disconnected;
    stream.write_all(login).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut scanner = ReplyScanner::default();
    loop {
        let mut input = BytesMut::with_capacity(1024);
        if stream.read_buf(&mut input).await.map_err(lost)? == 0 {
            return Err(BackendError::Disconnected);
        }
        match scanner.scan(&input) {
            Ok((_, Some(frame))) if frame.is_error() => {
                return Err(BackendError::AuthRejected(
                    "a node of the cluster refused the login that another took".into(),
                ));
            }
            Ok((_, Some(_))) => return Ok(()),
            Ok((_, None)) => {}
            Err(_) => return Err(BackendError::Disconnected),
        }
    }
}
