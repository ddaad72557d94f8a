//! A Redis Cluster, as one Redis. Commands come in over one stream and go to the nodes that serve
//! their keys. The replies go out in the order of the commands.
//!
//! Model: it takes the place of a dedicated connection to a single Redis, so its user needs to know
//! nothing of clusters. It has one connection to each node that it has needed so far ([`node`]). In
//! the ordinary case it reads from one at a time: the one that owes the first reply. So replies
//! that wait for the client stay at the nodes.
//!
//! A rejected command (`MOVED`, `ASK`, `TRYAGAIN`, `CLUSTERDOWN`, a connection that could not be
//! opened) ends the ordinary case. No further command is taken, and every reply that is still to
//! come is read and held. Then nothing is on its way, and [`in_flight`] decides which rejected
//! commands run again. They do so one by one, in the order of the client.
//!
//! The rules that must not be broken: K1 in [`node`], K2 to K4 in [`in_flight`], and K5 here. Once
//! the slot map has changed, nothing more is sent before all that was sent by the old one is
//! answered. Otherwise a command sent by the new map could overtake one that the client sent before
//! it.

mod aggregate;
mod in_flight;
mod key_specs;
mod logins;
mod node;
mod routing;
mod transaction;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Instant, sleep, timeout};

use self::aggregate::{Aggregate, write_aggregate};
use self::in_flight::{
    Command, CommandKind, Front, InFlight, Leaving, Part, PartId, Pause, Refusal, Rejection,
};
use self::key_specs::Access;
pub use self::key_specs::KeySpecs;
use self::logins::Logins;
use self::node::{Node, Received};
use self::routing::{Route, crossslot, error, of_one_node, route, unavailable};
use self::transaction::{Action, Input, Keys, Transaction, WatchReply};
use super::dedicated::Opened;
use super::step::Step;
use crate::backend::{BackendError, ConnectAs, EpochStream};
use crate::cluster::{Cluster, NodeId};
use crate::metrics::Redirect;
use crate::net::WriteBuf;
use crate::protocol::{Arguments, ParseStatus, RequestLimits, RequestParser};
use crate::protocol::{ReplyScanner, ReplySummary};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The settings of a [`Router`].
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) specs: Arc<KeySpecs>,
    pub(super) limits: RequestLimits,
    /// The most bytes of a command that are held, and of replies that have not left.
    pub(super) most_held: usize,
    /// The time for which a command that no node runs is tried again.
    pub(super) patience: Duration,
}

/// Opens a stream on which the cluster speaks as one Redis.
pub(super) fn open(cluster: Cluster, client: ConnectAs, terms: Terms) -> EpochStream {
    let (ours, theirs) = duplex(BUFFER);
    // It ends when the other end is dropped.
    tokio::spawn(Router::new(cluster, client, terms, ours).run());
    EpochStream::unbound(theirs)
}

/// Bytes that may be on their way between the two ends.
const BUFFER: usize = 64 << 10;
/// Bytes asked for at once.
const READ_CHUNK: usize = 16 << 10;
/// Bytes that may wait to be sent to one node.
const NODE_OUTPUT: usize = 1 << 20;
/// Commands that may be unanswered.
const MAX_IN_FLIGHT: usize = 1024;
/// The pause before a command is sent again while its slot moves.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// The longest time that the nodes may take to report the slot map.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(1);

/// One client's way to all nodes.
struct Router {
    cluster: Cluster,
    client: ConnectAs,
    terms: Terms,
    stream: DuplexStream,
    input: BytesMut,
    parser: RequestParser,
    output: WriteBuf,
    in_flight: InFlight,
    nodes: Vec<Node>,
    /// The node for commands that name no key.
    home: Option<NodeId>,
    /// The version of the slot map by which the unanswered commands were sent.
    version: u64,
    logins: Logins,
    transaction: Transaction,
    /// No command is taken until all are answered.
    is_holding: bool,
    /// The node that everything is passed to and from, unread.
    passthrough: Option<NodeId>,
    /// The wait before rejected commands are sent again.
    retrying: Option<Task>,
    stage: Stage,
    /// The other end sends nothing more.
    has_hung_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// It ends once every reply has left.
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
            in_flight: InFlight::default(),
            nodes: Vec::new(),
            home: None,
            logins: Logins::default(),
            transaction: Transaction::default(),
            is_holding: false,
            passthrough: None,
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
            let step = self.poll_open(cx)
                | self.poll_retry(cx)
                | self.poll_replies(cx)
                | self.poll_idle_nodes(cx)
                | self.poll_passthrough(cx)
                | self.poll_client(cx)
                | Step::progress_if(self.take_commands())
                | self.poll_send(cx)
                | self.poll_write(cx);
            let is_done =
                self.stage == Stage::Ending && self.in_flight.is_empty() && self.output.is_empty();
            if self.stage == Stage::Over || is_done {
                return Poll::Ready(());
            }
            if step == Step::Idle {
                return Poll::Pending;
            }
        }
    }
}

/// Connections to nodes.
impl Router {
    /// The connection to a node, which is opened if there is none.
    fn node(&mut self, name: NodeId) -> &mut Node {
        let known = self.nodes.iter().position(|node| node.name == name);
        let index = known.unwrap_or_else(|| {
            let mut node = Node::new(name);
            let opening =
                open_node(self.cluster.clone(), self.client.clone(), name, self.logins.commands());
            node.connection.open(Box::pin(opening));
            self.nodes.push(node);
            self.nodes.len() - 1
        });
        &mut self.nodes[index]
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Idle;
        for index in (0..self.nodes.len()).rev() {
            let Poll::Ready(opened) = self.nodes[index].connection.poll_open(cx) else { continue };
            step = Step::Progress;
            if opened.is_err() {
                // Nothing was sent over it, so nothing has run.
                let node = self.nodes.remove(index);
                self.unsend(&node);
            }
        }
        step
    }

    /// The commands that this node owes replies to are sent again.
    fn unsend(&mut self, node: &Node) {
        for id in node.expected() {
            self.is_holding = true;
            if self.in_flight.part(id).is_some_and(|(_, kind)| kind.is_bound()) {
                // Another node would run it outside of its transaction.
                self.stage = Stage::Over;
            }
            self.in_flight.reject(id, Rejection::NotRun);
        }
        self.home = self.home.filter(|home| *home != node.name);
        if self.passthrough == Some(node.name) {
            self.stage = Stage::Over;
        }
    }

    /// Handles the loss of a connection. Commands that it owes replies to may have run or not, so
    /// only reads can be sent again, and not for ever.
    fn lost(&mut self, name: NodeId) {
        let Some(index) = self.nodes.iter().position(|node| node.name == name) else { return };
        let node = self.nodes.remove(index);
        let is_bound = self.transaction.is_bound_to(name) || self.has_hung_up;
        if is_bound || !self.in_flight.survive_loss(&node.expected()) {
            self.stage = Stage::Over;
        }
        self.unsend(&node);
    }

    /// Connections that owe nothing are polled too, since a node may have closed them.
    fn poll_idle_nodes(&mut self, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Idle;
        if !self.in_flight.is_empty() || self.passthrough.is_some() {
            return step;
        }
        self.drop_half_closed();
        for index in (0..self.nodes.len()).rev() {
            if self.nodes[index].connection.poll_read(cx).is_ready() {
                // Its end, or a reply that nothing was sent for.
                let name = self.nodes[index].name;
                self.lost(name);
                step = Step::Progress;
            }
        }
        step
    }

    /// Removes the connections on which the close of the client was passed on, since they take no
    /// more commands. The command that could have blocked there has its reply, so the next command
    /// goes over a new connection.
    fn drop_half_closed(&mut self) {
        let is_bound = |node: &Node| self.transaction.is_bound_to(node.name);
        let half_closed = |node: &Node| node.connection.is_sending_closed();
        if self.nodes.iter().any(|node| half_closed(node) && is_bound(node)) {
            // The state there ends with the connection.
            self.stage = Stage::Over;
        }
        self.nodes.retain(|node| !half_closed(node));
    }

    fn poll_passthrough(&mut self, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Idle;
        while let Some(name) = self.passthrough.filter(|_| self.output.len() < BUFFER) {
            let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) else { break };
            match node.connection.poll_read(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(1..)) => self.output.push(node.connection.input.split().freeze()),
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.nodes.retain(|node| node.name != name);
                    self.stage = Stage::Ending;
                }
            }
            step = Step::Progress;
        }
        step
    }

    /// Whether no node lags behind with what it is sent.
    fn may_send(&self) -> bool {
        self.nodes.iter().all(|node| node.connection.out.len() < NODE_OUTPUT)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Idle;
        for node in &mut self.nodes {
            let before = node.connection.out.len();
            if let Poll::Ready(Err(_)) = node.connection.poll_write(cx) {
                // Replies to earlier commands may still be read.
                node.connection.out = WriteBuf::default();
            }
            if node.connection.out.len() < before {
                step = Step::Progress;
            }
            let is_passthrough = self.passthrough == Some(node.name);
            let waits = is_passthrough || self.in_flight.has_blocking_at(node.name);
            if self.has_hung_up && waits && node.connection.out.is_empty() {
                // Otherwise the node would reply to the waiting command for a client that is gone.
                _ = node.connection.poll_close_sending(cx);
            }
        }
        step
    }
}

/// Replies.
impl Router {
    /// Reads what the first command waits for, and passes it on.
    fn poll_replies(&mut self, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Idle;
        while self.stage != Stage::Over
            && self.output.len() < self.terms.most_held
            && self.retrying.is_none()
        {
            let polled = match self.in_flight.front() {
                Front::Empty => return step,
                Front::Leaves => {
                    self.leave();
                    Poll::Ready(())
                }
                Front::Waits(node) => self.poll_node(node, cx),
                Front::Rejected => self.poll_settle(cx),
            };
            if polled.is_pending() {
                return step;
            }
            step = Step::Progress;
        }
        step
    }

    fn leave(&mut self) {
        match self.in_flight.leave() {
            Leaving::Piece(piece) => self.output.push(piece),
            Leaving::Whole(command) => self.answered(&command),
            Leaving::Nothing => {}
        }
    }

    /// All parts of a command have replies. That of a passed-on command has left already.
    fn answered(&mut self, command: &Command) {
        match &command.aggregate {
            Aggregate::Pass => {}
            // What follows relies on it.
            Aggregate::Silent if command.is_error() => self.stage = Stage::Over,
            aggregate => write_aggregate(aggregate, &command.replies(), &mut self.output),
        }
        if command.kind == CommandKind::Watch {
            let is_error = command.is_error();
            let reply = if is_error { WatchReply::Rejected } else { WatchReply::Confirmed };
            self.transaction.watch_replied(reply);
        }
        if command.kind == CommandKind::Login && !command.is_error() {
            command.parts().iter().for_each(|part| self.logged_in(part));
        }
    }

    /// Repeats the login on every other connection, now and whenever one is opened.
    fn logged_in(&mut self, part: &Part) {
        self.logins.add(&part.command, self.terms.limits);
        let others: Vec<_> = self.nodes.iter().map(|node| node.name).collect();
        for node in others.into_iter().filter(|node| Some(*node) != part.node) {
            self.send_bound(node, part.command.clone(), Aggregate::Silent);
        }
    }

    /// Reads a piece of the next reply of a node.
    fn poll_node(&mut self, name: NodeId, cx: &mut Context<'_>) -> Poll<()> {
        let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) else {
            // No reply can come any more.
            self.stage = Stage::Over;
            return Poll::Ready(());
        };
        match ready!(node.poll_receive(cx)) {
            Received::Piece { id, bytes, frame } => {
                self.in_flight.receive(id, bytes);
                if let Some(frame) = frame {
                    self.completed(id, frame);
                }
            }
            Received::Nothing => {}
            Received::Lost => self.lost(name),
            Received::Desync => {
                tracing::warn!("a node sent what is no reply to any command; connection closed");
                self.stage = Stage::Over;
            }
        }
        Poll::Ready(())
    }

    /// The reply to a part is complete: it counts, or it says that the part has not run.
    fn completed(&mut self, id: PartId, frame: ReplySummary) {
        let Some((refusal, kind, Some(node))) = self.in_flight.refusal(id) else {
            return self.in_flight.complete(id, frame);
        };
        let Some(rejection) = self.rejection(&refusal, node) else {
            return self.in_flight.complete(id, frame);
        };
        // While other replies are awaited, the slot may go elsewhere.
        let is_last = self.in_flight.is_in_front(id) && !self.nodes.iter().any(Node::is_busy);
        let rejection = match rejection {
            Rejection::Ask(_) if !is_last => Rejection::AskedBefore,
            other => other,
        };
        match (kind, rejection) {
            (CommandKind::Free | CommandKind::Blocking, _) => {
                self.in_flight.reject(id, rejection);
                self.is_holding = true;
            }
            (_, Rejection::TryAgain | Rejection::ClusterDown) => {
                self.in_flight.complete(id, frame);
            }
            _ => self.in_flight.fail_bound(id),
        }
    }

    /// The rejection by `node`. `None`: a script replied so, since no node redirects to itself.
    fn rejection(&self, refusal: &Refusal, node: NodeId) -> Option<Rejection> {
        let (target, rejection) = match refusal {
            Refusal::TryAgain => return Some(Rejection::TryAgain),
            Refusal::ClusterDown => return Some(Rejection::ClusterDown),
            Refusal::Moved { slot, address } => {
                (self.cluster.apply_moved(*slot, address, node), Rejection::Moved)
            }
            Refusal::Ask { address, .. } => {
                let target = self.cluster.node_at(address, node);
                (target, target.map_or(Rejection::UnknownNode, Rejection::Ask))
            }
        };
        match target {
            None => Some(Rejection::UnknownNode),
            Some(target) => (target != node).then_some(rejection),
        }
    }

    /// Whether the redirect of a part leads to a node that others have reported meanwhile. If not,
    /// a script has made it up, and it is the reply.
    fn is_redirect_confirmed(&mut self, id: PartId) -> bool {
        let Some((refusal, _, Some(node))) = self.in_flight.refusal(id) else { return false };
        let rejection = self.rejection(&refusal, node);
        rejection.is_some_and(|rejection| rejection != Rejection::UnknownNode)
    }

    /// Reads every reply that is still to come, whichever command it is for, and then decides about
    /// the rejected ones.
    fn poll_settle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let busy: Vec<_> =
            self.nodes.iter().filter(|node| node.is_busy()).map(|node| node.name).collect();
        if busy.is_empty() {
            self.recover();
            return Poll::Ready(());
        }
        if self.in_flight.held() > self.terms.most_held {
            // More than may be held for a client waits behind it, so the command cannot wait for
            // its turn.
            let returned = self.in_flight.give_up_front();
            self.cluster.count_redirects(Redirect::Returned, returned);
            return Poll::Ready(());
        }
        let mut settled = Poll::Pending;
        for name in busy {
            if self.stage != Stage::Over && self.poll_node(name, cx).is_ready() {
                settled = Poll::Ready(());
            }
        }
        settled
    }

    fn recover(&mut self) {
        let recovery = self.in_flight.recover(Instant::now(), self.terms.patience);
        self.cluster.count_redirects(Redirect::Returned, recovery.returned);
        match recovery.resend {
            None => {}
            Some(Pause::None) => self.resend(),
            Some(Pause::Moment) => self.retrying = Some(Box::pin(sleep(RETRY_DELAY))),
            Some(Pause::Discovery) => {
                let cluster = self.cluster.clone();
                let rejected = self.in_flight.targets_of_rejected_in_front();
                self.retrying = Some(Box::pin(async move {
                    let is_replaced = |cluster: &Cluster| {
                        rejected.iter().all(|(slot, node)| is_elsewhere(cluster, *slot, *node))
                    };
                    _ = timeout(DISCOVERY_TIMEOUT, cluster.refresh_until(is_replaced)).await;
                    sleep(RETRY_DELAY).await;
                }));
            }
        }
    }

    fn poll_retry(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(retrying) = &mut self.retrying else { return Step::Idle };
        if retrying.as_mut().poll(cx).is_pending() {
            return Step::Idle;
        }
        self.retrying = None;
        self.resend();
        Step::Progress
    }

    /// Sends the rejected parts of the first command to where they belong now. No other reply is
    /// awaited.
    fn resend(&mut self) {
        for id in self.in_flight.rejected_in_front() {
            let rejection = self.in_flight.part(id).and_then(|(part, _)| part.rejection());
            if rejection == Some(Rejection::UnknownNode) && !self.is_redirect_confirmed(id) {
                self.in_flight.accept_error(id);
                continue;
            }
            let taken = self.in_flight.nodes_in_front();
            let Some((part, _)) = self.in_flight.part(id) else { continue };
            let Some(rejection) = part.rejection() else { continue };
            let (slot, last, command) = (part.slot, part.node, part.command.clone());
            let target = match rejection {
                Rejection::Ask(node) => Some(node),
                _ => match slot {
                    Some(slot) => self.cluster.owner(slot),
                    None => keyless_target(&self.cluster.primaries(), last, &taken),
                },
            };
            let Some(target) = target else {
                self.in_flight.reject(id, Rejection::NotRun);
                continue;
            };
            self.in_flight.resent(id, target);
            self.cluster.count_redirects(Redirect::Followed, 1);
            let node = self.node(target);
            if matches!(rejection, Rejection::Ask(_)) {
                node.send_own(ASKING);
            }
            node.send(id, command);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Step {
        let before = self.output.len();
        if let Poll::Ready(Err(_)) = self.output.poll_write(Pin::new(&mut self.stream), cx) {
            self.stage = Stage::Over;
        }
        Step::progress_if(self.output.len() < before)
    }
}

/// Commands.
impl Router {
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Step {
        let has_room = self.input.len() <= self.terms.most_held + READ_CHUNK;
        if self.stage != Stage::Open || self.has_hung_up || !has_room || !self.may_send() {
            return Step::Idle;
        }
        self.input.reserve(READ_CHUNK);
        match pin!(self.stream.read_buf(&mut self.input)).poll(cx) {
            Poll::Pending => return Step::Idle,
            Poll::Ready(Ok(1..)) => {}
            Poll::Ready(Ok(0)) => {
                // What was sent is answered, unless it waits for something to happen.
                self.has_hung_up = true;
                if self.passthrough.is_none() {
                    self.stage = Stage::Ending;
                }
            }
            Poll::Ready(Err(_)) => self.stage = Stage::Over,
        }
        Step::Progress
    }

    /// Takes commands for as long as it can. Returns whether it took any.
    fn take_commands(&mut self) -> bool {
        if let Some(node) = self.passthrough {
            let is_any = !self.input.is_empty();
            if is_any {
                let input = self.input.split().freeze();
                self.node(node).connection.out.push(input);
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
        if self.in_flight.is_empty() {
            self.is_holding = false;
            self.version = self.cluster.version();
        }
        let has_room = self.in_flight.len() < MAX_IN_FLIGHT
            && self.output.len() < self.terms.most_held
            && self.in_flight.queued() < self.terms.most_held
            && self.may_send();
        let is_ended = self.stage == Stage::Over || self.passthrough.is_some();
        has_room
            && !is_ended
            && !self.input.is_empty()
            && !self.is_holding
            && self.version == self.cluster.version()
    }

    /// Takes the next command. Returns whether it did.
    fn take_next(&mut self) -> bool {
        let length = match self.parser.parse(&self.input, self.terms.limits) {
            Ok(ParseStatus::Complete(length)) => length,
            Ok(_) if self.input.len() <= self.terms.most_held => return false,
            Ok(_) => {
                self.end_with(TOO_LONG);
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
        let (route, access) = route(&self.terms.specs, arguments);
        let is_alone = !self.transaction.is_open();
        let known = self.terms.specs.find(arguments);
        let route = match known {
            _ if is_alone => route,
            Some(command) if command.is_refused_in_multi => refused_in_multi(route),
            _ => within_transaction(route, arguments),
        };
        if !(is_alone && known.is_some_and(|command| command.may_block)) {
            return self.go(route, access, length);
        }
        // A blocking command is alone. Otherwise an earlier command that is rejected would have to
        // wait for its reply, and a later one would run at another node before it.
        if !self.in_flight.is_empty() {
            return false;
        }
        let is_taken = self.go(route, access, length);
        self.in_flight.mark_last(CommandKind::Blocking);
        self.is_holding = true;
        is_taken
    }

    fn end_with(&mut self, text: impl AsRef<[u8]>) {
        self.in_flight.push_ready(error(text));
        self.give_up_input();
    }

    fn give_up_input(&mut self) {
        self.stage = Stage::Ending;
        self.input.clear();
    }

    /// Sends the command that is the first `length` bytes on its way, if it is its turn. Returns
    /// whether it was.
    fn go(&mut self, route: Route, access: Access, length: usize) -> bool {
        let is_in_transaction = self.transaction.is_open();
        match route {
            Route::Refused(reply) => {
                self.transaction.abort();
                self.reply(reply, length);
            }
            Route::Slot(slot) if is_in_transaction => {
                return self.go_in_transaction(Input::Keyed(self.keys_of(slot)), length);
            }
            Route::Any if is_in_transaction => {
                return self.go_in_transaction(Input::Keyless, length);
            }
            Route::Invalid if is_in_transaction => {
                return self.go_in_transaction(Input::Invalid, length);
            }
            Route::RefusedInMulti => {
                return self.go_in_transaction(Input::RefusedInMulti, length);
            }
            Route::Slot(slot) => {
                self.send_one(self.cluster.owner(slot), Some(slot), access, length);
            }
            Route::Any | Route::Invalid => {
                let home = self.home();
                self.send_one(home, None, access, length);
            }
            Route::Split(commands, aggregate) => {
                _ = self.input.split_to(length);
                let parts = commands.into_iter().map(|(slot, command)| {
                    Part::new(self.cluster.owner(slot), Some(slot), command, access)
                });
                let parts = parts.collect();
                self.send(Command::new(aggregate, CommandKind::Free, parts));
            }
            Route::All(aggregate) => {
                let command = self.input.split_to(length).freeze();
                let parts = self.cluster.primaries().into_iter();
                let parts = parts.map(|node| Part::new(Some(node), None, command.clone(), access));
                self.send(Command::new(aggregate, CommandKind::Free, parts.collect()));
            }
            Route::Multi => return self.go_in_transaction(Input::Multi, length),
            Route::Exec => return self.go_in_transaction(Input::Exec, length),
            Route::Discard => return self.go_in_transaction(Input::Discard, length),
            Route::Unwatch => return self.go_in_transaction(Input::Unwatch, length),
            Route::Watch(slot) => {
                return self.go_in_transaction(Input::Watch(self.keys_of(slot)), length);
            }
            Route::Quit => {
                self.reply(Bytes::from_static(b"+OK\r\n"), length);
                self.give_up_input();
            }
            Route::Login | Route::Reset | Route::Passthrough(_) => {
                return self.go_alone(&route, length);
            }
        }
        true
    }

    fn keys_of(&self, slot: u16) -> Keys {
        Keys { slot, owner: self.cluster.owner(slot) }
    }

    /// A command that changes what the connection is, which it does when no reply is awaited.
    fn go_alone(&mut self, route: &Route, length: usize) -> bool {
        if !self.in_flight.is_empty() {
            return false;
        }
        let home = self.home();
        match route {
            Route::Reset => {
                self.logins = Logins::default();
                self.nodes.clear();
                self.transaction.clear();
                self.reply(Bytes::from_static(b"+RESET\r\n"), length);
            }
            Route::Passthrough(slot) => {
                let node = slot.map_or(home, |slot| self.cluster.owner(slot));
                let Some(node) = node else {
                    self.reply(unavailable(), length);
                    return true;
                };
                let command = self.input.split_to(length).freeze();
                self.passthrough = Some(node);
                self.node(node).connection.out.push(command);
            }
            _ => {
                self.send_one(home, None, Access::None, length);
                self.in_flight.mark_last(CommandKind::Login);
                self.is_holding = true;
            }
        }
        true
    }

    /// A command that begins, ends or guards a transaction, or belongs to one.
    fn go_in_transaction(&mut self, input: Input, length: usize) -> bool {
        let home = self.home();
        match self.transaction.decide(input, home) {
            Action::Reply(reply) => self.reply(reply, length),
            Action::Keep if self.transaction.kept_bytes() > self.terms.most_held => {
                self.transaction.abort();
                self.reply(error(TOO_LONG), length);
            }
            Action::Keep => {
                let command = self.input.split_to(length).freeze();
                self.transaction.keep(command);
                self.in_flight.push_ready(Bytes::from_static(b"+QUEUED\r\n"));
            }
            Action::Send(node) => {
                let command = self.input.split_to(length).freeze();
                self.send_bound(node, command, Aggregate::Pass);
            }
            Action::Watch(node) => {
                let command = self.input.split_to(length).freeze();
                self.send_bound(node, command, Aggregate::Pass);
                self.in_flight.mark_last(CommandKind::Watch);
            }
            Action::SendAnywhere => self.send_one(home, None, Access::None, length),
            Action::SendInstead(node, command) => {
                _ = self.input.split_to(length);
                self.send_bound(node, Bytes::from_static(command), Aggregate::Pass);
            }
            Action::ReplyBehind(node, command, reply) => {
                self.send_bound(node, Bytes::from_static(command), Aggregate::Silent);
                self.reply(reply, length);
            }
            Action::Begin(node) => return self.begin_transaction(node),
        }
        true
    }

    /// Has this node keep the transaction. Nothing more is sent to it before it has agreed.
    fn begin_transaction(&mut self, node: Option<NodeId>) -> bool {
        if !self.in_flight.is_empty() {
            return false;
        }
        let Some(node) = node else {
            self.in_flight.push_ready(unavailable());
            self.give_up_input();
            return true;
        };
        self.send_bound(node, Bytes::from_static(b"MULTI\r\n"), Aggregate::Silent);
        for command in self.transaction.begin_at(node) {
            self.send_bound(node, command, Aggregate::Ignored);
        }
        self.is_holding = true;
        true
    }

    /// The node for commands that name no key.
    fn home(&mut self) -> Option<NodeId> {
        let primaries = self.cluster.primaries();
        let home = self.home.filter(|home| primaries.contains(home));
        let any = || primaries.get(rand::random_range(0..primaries.len().max(1))).copied();
        self.home = home.or_else(any);
        self.home
    }

    /// Replies to the command that is the first `length` bytes.
    fn reply(&mut self, reply: Bytes, length: usize) {
        _ = self.input.split_to(length);
        self.in_flight.push_ready(reply);
    }

    fn send_one(&mut self, node: Option<NodeId>, slot: Option<u16>, access: Access, length: usize) {
        let command = self.input.split_to(length).freeze();
        let part = Part::new(node, slot, command, access);
        self.send(Command::new(Aggregate::Pass, CommandKind::Free, vec![part]));
    }

    fn send_bound(&mut self, node: NodeId, command: Bytes, aggregate: Aggregate) {
        // Outside a transaction these are WATCH, UNWATCH and logins, which change no key.
        let access = if self.transaction.is_open() { Access::Write } else { Access::None };
        let part = Part::new(Some(node), None, command, access);
        self.send(Command::new(aggregate, CommandKind::Bound, vec![part]));
    }

    fn send(&mut self, mut command: Command) {
        if !self.in_flight.is_empty() && self.version != self.cluster.version() {
            // The map has changed since the route was found (invariant K5).
            command.defer();
        }
        if command.parts().is_empty() {
            return self.in_flight.push_ready(unavailable());
        }
        let parts: Vec<_> =
            command.parts().iter().map(|part| (part.node, part.command.clone())).collect();
        let ids = self.in_flight.push(command);
        for (id, (node, command)) in ids.zip(parts) {
            match node {
                Some(node) => self.node(node).send(id, command),
                // It was rejected from the start.
                None => self.is_holding = true,
            }
        }
    }
}

const ASKING: Bytes = Bytes::from_static(b"ASKING\r\n");
const TOO_LONG: &str = "ERR redis-proxy: the command is longer than resp.max_output_buffer, \
    which is as much as is held";

/// Returns the node for a part that named no key and could not run at `last`. It is the same node
/// if that is still a primary. Otherwise it is a primary that got none of the command's parts, or
/// else one node would run a command for all nodes twice.
fn keyless_target(primaries: &[NodeId], last: Option<NodeId>, taken: &[NodeId]) -> Option<NodeId> {
    let same = last.filter(|node| primaries.contains(node));
    same.or_else(|| primaries.iter().find(|node| !taken.contains(node)).copied())
}

/// Whether a part that `node` did not run goes to another node now.
fn is_elsewhere(cluster: &Cluster, slot: Option<u16>, node: Option<NodeId>) -> bool {
    match slot {
        Some(slot) => cluster.owner(slot).is_some_and(|owner| Some(owner) != node),
        None => node.is_some_and(|node| !cluster.primaries().contains(&node)),
    }
}

/// The same route, but a command that no one node can keep for `EXEC` is refused.
fn within_transaction(route: Route, arguments: Arguments<'_>) -> Route {
    match route {
        Route::Split(..) => Route::Refused(crossslot()),
        Route::All(_) | Route::Login | Route::Passthrough(_) => {
            Route::Refused(of_one_node(arguments))
        }
        route => route,
    }
}

/// The same route for a command that aborts a transaction, unless it is refused anyway.
fn refused_in_multi(route: Route) -> Route {
    match route {
        Route::Refused(_) | Route::Invalid => route,
        _ => Route::RefusedInMulti,
    }
}

/// Opens a stream to a node, on which the client has logged in as it did before.
async fn open_node(
    cluster: Cluster,
    client: ConnectAs,
    node: NodeId,
    logins: Vec<Bytes>,
) -> Result<Opened, BackendError> {
    let mut stream = cluster.open(client, node).await?;
    for login in logins {
        log_in(&mut stream, &login).await?;
    }
    Ok(Opened { stream, permit: None })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_for_all_nodes_is_not_sent_to_one_of_them_twice() {
        let [a, b, c] = [1, 2, 3].map(NodeId::for_test);
        for (primaries, last, taken, expected) in [
            (&[a, b][..], Some(a), &[a, b][..], Some(a)),
            (&[b, c], Some(a), &[a, b], Some(c)),
            (&[b], Some(a), &[a, b], None),
            (&[b], None, &[], Some(b)),
            (&[], Some(a), &[a], None),
        ] {
            assert_eq!(keyless_target(primaries, last, taken), expected, "{primaries:?} {last:?}");
        }
    }
}
