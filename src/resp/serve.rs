//! What becomes of a command: it is answered from memory, fetched, forwarded, or answered here.
//!
//! The two rules behind every line: nothing is forwarded while a read of the same client waits for a flight, so that no read
//! sees what was written behind it; and nothing is answered from memory while an answer is to come, or has come unproved,
//! after which memory may be behind what the client knows.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::command::{Class, Known};
use super::connection::{Connection, Stage};
use super::login::{NO_AUTH, Verdict, hello_logins};
use super::owed::{Awaited, Dropped};
use super::permit::NO_COMMAND;
use super::read::{Fetch, Found, Read};
use super::standing::{Effect, User};
use crate::backend::{BackendError, FenceResult};
use crate::cache::Outcome;
use crate::key::Key;
use crate::metrics::{FrontEnd, RejectReason};
use crate::net::ZERO_COPY_MIN;
use crate::protocol::ReplySummary;
use crate::protocol::is_one_of;
use crate::protocol::write_error;
use crate::protocol::{
    Arguments, ParseStatus, RequestLimits, UNAUTHENTICATED, parse_integer, peek_get_keys,
};
use crate::proxy::Proxy;

/// So many reads are foreseen at once.
const PREFETCH_BATCH: usize = 16;

/// What is to become of a command.
enum Decision {
    Answer(Found),
    Fetch(Fetch),
    /// Memory has to be proved to hold what the client knows.
    Fence,
    Forward(Effect),
    /// A read of so many keys goes past memory.
    Bypass(usize),
    Pipe,
    Quit,
    Own(Verdict),
}

/// Whether a command was taken up, or has to wait.
#[derive(PartialEq, Eq)]
enum Taken {
    Yes,
    Held,
}

/// Commands that were taken up together, to be counted together.
struct Batch {
    begun: Instant,
    /// Reads that were answered.
    outcomes: [u64; Outcome::ALL.len()],
    /// The label of the last command, and how many have come in a row that have it and are not counted yet.
    commands: (usize, u64),
}

impl Batch {
    fn new(begun: Instant) -> Self {
        Self { begun, outcomes: [0; Outcome::ALL.len()], commands: (0, 0) }
    }

    fn add_command(&mut self, label: usize, proxy: &Proxy) {
        if label != self.commands.0 {
            self.count_commands(proxy);
            self.commands = (label, 0);
        }
        self.commands.1 += 1;
    }

    fn count_commands(&self, proxy: &Proxy) {
        let (label, count) = self.commands;
        if count > 0 {
            proxy.record_commands(label, count);
        }
    }

    fn count(&self, proxy: &Proxy, ended: Instant) {
        self.count_commands(proxy);
        let elapsed = ended.saturating_duration_since(self.begun);
        for (outcome, count) in
            Outcome::ALL.into_iter().zip(self.outcomes).filter(|(_, count)| *count > 0)
        {
            proxy.record(FrontEnd::Resp, outcome, count, elapsed);
        }
    }
}

impl Connection {
    /// Takes up commands for as long as it can. Returns whether it took any.
    pub(super) fn take_commands(&mut self) -> bool {
        if self.input.is_empty() || self.stage != Stage::Commands || !self.may_take_more() {
            return false;
        }
        let mut batch = Batch::new(self.now());
        let mut taken = 0;
        while !self.input.is_empty() && self.stage == Stage::Commands && self.may_take_more() {
            if taken % PREFETCH_BATCH == 0 {
                self.prefetch();
            }
            if self.take_next(&mut batch) == Taken::Held {
                break;
            }
            taken += 1;
        }
        let ended = self.look_at_clock();
        batch.count(&self.shared.proxy, ended);
        taken > 0
    }

    /// Has what the next reads need fetched from memory together, where there are several.
    fn prefetch(&self) {
        let (mut keys, mut count) = ([&[][..]; PREFETCH_BATCH], 0);
        for (key, place) in peek_get_keys(&self.input).zip(&mut keys) {
            *place = key;
            count += 1;
        }
        if count > 1 {
            self.shared.proxy.prefetch(&keys[..count]);
        }
    }

    fn limits(&self) -> RequestLimits {
        if self.shared.login.is_some() && !self.standing.is_admitted() {
            return UNAUTHENTICATED;
        }
        let settings = &self.shared.settings;
        RequestLimits { max_bulk: settings.max_bulk.0, max_arguments: settings.max_arguments }
    }

    fn take_next(&mut self, batch: &mut Batch) -> Taken {
        let is_rest = self.parser.is_streaming();
        match self.parser.parse(&self.input, self.limits()) {
            Ok(ParseStatus::Streamed(0)) => Taken::Held,
            Ok(ParseStatus::Complete(length) | ParseStatus::Streamed(length)) if is_rest => {
                self.send_on(length);
                Taken::Yes
            }
            Ok(ParseStatus::Complete(length)) => self.take(length, batch),
            Ok(_) if self.input.len() < self.shared.settings.max_query_buffer.0 => Taken::Held,
            // Of a line its end tells what it is.
            Ok(_) if self.parser.remaining() == 0 => Taken::Held,
            Ok(_) => self.start_streaming(batch),
            // Redis will say what is wrong with it, and hang up.
            Err(_) if is_rest => {
                self.send_on(self.input.len());
                self.stage = Stage::Leaving;
                Taken::Yes
            }
            Err(error) => {
                self.reply(|output| {
                    write_error(output.tail(), [b"ERR ", &*error.bytes()].concat());
                });
                self.stage = Stage::Leaving;
                Taken::Yes
            }
        }
    }

    /// Takes up the command that is the first `length` bytes.
    fn take(&mut self, length: usize, batch: &mut Batch) -> Taken {
        let arguments = self.parser.arguments(&self.input);
        if arguments.is_empty() {
            self.leave_behind(length);
            return Taken::Yes;
        }
        if self.unproved.is_some_and(|since| self.shared.proxy.is_current(since)) {
            self.unproved = None;
        }
        if self.past_memory_until.is_some_and(|until| until <= batch.begun) {
            self.past_memory_until = None;
        }
        let known = self.shared.commands.recognise(arguments.get(0));
        let decision = self.decide(known.class, arguments, batch);
        self.act(decision, known, length, batch)
    }

    fn decide(&self, class: Class, arguments: Arguments<'_>, batch: &mut Batch) -> Decision {
        if let Some(verdict) = self.judge(class, arguments) {
            return Decision::Own(verdict);
        }
        if let Some((text, refusal)) = self.forbids(class, arguments) {
            return Decision::Own(Verdict::Refused(text, Some(refusal)));
        }
        match class {
            Class::Get | Class::Mget | Class::Exists | Class::Strlen | Class::Getrange => {
                self.decide_read(class, arguments, batch)
            }
            Class::Quit => Decision::Quit,
            _ if is_pipe(class, arguments) => Decision::Pipe,
            _ => Decision::Forward(effect(class, arguments)),
        }
    }

    fn decide_read(&self, class: Class, arguments: Arguments<'_>, batch: &mut Batch) -> Decision {
        let Some(read) = Read::of(class, arguments) else {
            return Decision::Forward(Effect::Reveal);
        };
        let may_be_given = self.standing.may_be_given(&self.shared.origin);
        let is_past_memory =
            self.past_memory_until.is_some() || read.has_longer_key(self.shared.max_key);
        if !may_be_given || is_past_memory || self.owed.has_revealing() {
            return Decision::Bypass(read.keys());
        }
        if self.unproved.is_some() {
            return Decision::Fence;
        }
        let found = read
            .look(&self.shared.proxy, batch.begun, |outcome| batch.outcomes[outcome as usize] += 1);
        if let Some(found) = found {
            return Decision::Answer(found);
        }
        let fetch = read.fetch().filter(|_| self.shared.proxy.may_fetch());
        fetch.map_or(Decision::Bypass(read.keys()), Decision::Fetch)
    }

    fn act(&mut self, decision: Decision, known: Known, length: usize, batch: &mut Batch) -> Taken {
        let may_go_with_reads =
            matches!(decision, Decision::Answer(_) | Decision::Fetch(_) | Decision::Fence)
                || matches!(
                    decision,
                    Decision::Own(Verdict::Refused(..) | Verdict::Admitted(None))
                );
        if !may_go_with_reads && self.owed.flights() > 0 {
            return Taken::Held;
        }
        let has_to_wait = match &decision {
            Decision::Pipe => self.waits_for_turn(),
            Decision::Own(Verdict::Reset) => !self.owed.is_empty(),
            Decision::Forward(effect) => self.has_to_go_alone(effect),
            _ => false,
        };
        if has_to_wait {
            return Taken::Held;
        }
        match decision {
            Decision::Fence => {
                self.begin_fence();
                return Taken::Held;
            }
            Decision::Answer(found) => {
                self.leave_behind(length);
                self.reply_found(&found);
                self.keep_link_awake(batch.begun);
            }
            Decision::Fetch(fetch) => {
                let command = self.input.split_to(length).freeze();
                self.owed.add_read(fetch.len());
                self.reads.push_back(Box::pin(fetch.run(self.shared.proxy.clone(), command)));
            }
            Decision::Bypass(keys) => {
                batch.outcomes[Outcome::Bypass as usize] += keys as u64;
                self.forward(Effect::Reveal, Dropped::Nothing, length);
            }
            Decision::Forward(effect) => {
                let dropped = self.dropped(known.class, self.parser.arguments(&self.input));
                self.forward(effect, dropped, length);
            }
            Decision::Pipe => {
                self.forward(Effect::Aside, Dropped::Nothing, length);
                self.stage = Stage::Pipe;
            }
            Decision::Quit if self.link.is_none() => {
                self.reply(|output| output.push(Bytes::from_static(b"+OK\r\n")));
                self.stage = Stage::Leaving;
            }
            Decision::Quit => {
                self.forward(Effect::Aside, Dropped::Nothing, length);
                self.stage = Stage::Leaving;
            }
            Decision::Own(verdict) => self.carry_out(verdict, length),
        }
        batch.add_command(known.label, &self.shared.proxy);
        Taken::Yes
    }

    /// Whether something has to be given out before all that Redis says is passed on. Where nobody can tell what is owed,
    /// that is only what is here.
    fn waits_for_turn(&self) -> bool {
        if self.standing.is_doubted_for_good() {
            self.owed.ready() > 0
        } else {
            !self.owed.is_empty()
        }
    }

    /// Whether its answer could be missing and that of another be taken for it, as long as that matters.
    fn has_to_go_alone(&self, effect: &Effect) -> bool {
        let is_answer_due = !self.owed.is_empty() || self.is_own_question_open;
        is_answer_due && effect.may_go_unanswered() && !self.standing.is_doubted_for_good()
    }

    /// Sends the command that is the first `length` bytes to Redis.
    pub(super) fn forward(&mut self, effect: Effect, dropped: Dropped, length: usize) {
        self.expect_answer(effect, dropped);
        self.send_on(length);
    }

    fn send_on(&mut self, length: usize) {
        if length < ZERO_COPY_MIN {
            self.link.out.tail().extend_from_slice(&self.input[..length]);
            self.leave_behind(length);
        } else {
            self.link.out.push(self.input.split_to(length).freeze());
        }
    }

    pub(super) fn expect_answer(&mut self, effect: Effect, mut dropped: Dropped) {
        self.open_link();
        if effect == Effect::Exec {
            dropped.add(std::mem::take(&mut self.transaction));
        } else if effect == Effect::Discard {
            self.transaction = Dropped::Nothing;
        } else if self.standing.is_in_multi() {
            // It may be queued; or it is not, since an EXEC before it is not answered yet.
            self.transaction.add(dropped.clone());
        }
        self.drop_from_memory(&dropped);
        self.standing.asked(&effect);
        self.owed.add_awaited(effect, dropped, self.shared.proxy.is_ttl_only());
    }

    /// Begins to send on a command that is too long to be held.
    fn start_streaming(&mut self, batch: &mut Batch) -> Taken {
        let arguments = self.parser.arguments(&self.input);
        let known = self.shared.commands.recognise(arguments.get(0));
        let is_pipe = is_pipe(known.class, arguments);
        let is_stranger = self.judge(known.class, arguments).is_some();
        // Which keys it names is still to come.
        let is_forbidden = !self.shared.settings.allow_keys.allows_all();
        if is_stranger || is_forbidden {
            let (text, refusal) = if is_stranger {
                (NO_AUTH, RejectReason::Login)
            } else {
                (NO_COMMAND, RejectReason::Command)
            };
            self.shared.proxy.record_rejected(FrontEnd::Resp, refusal);
            self.reply(|output| write_error(output.tail(), text));
            self.stage = Stage::Leaving;
            return Taken::Yes;
        }
        let effect = effect(known.class, arguments);
        if self.owed.flights() > 0
            || (is_pipe && self.waits_for_turn())
            || self.has_to_go_alone(&effect)
        {
            return Taken::Held;
        }
        let effect = match effect {
            // What it asks for is still to come.
            effect if effect.is_of_state() => Effect::Unknown,
            effect => effect,
        };
        // Of keys that are still to come nobody will know.
        let mut dropped = self.dropped(known.class, arguments);
        if dropped != Dropped::Nothing && (self.parser.remaining() > 1 || arguments.len() < 2) {
            dropped = Dropped::Everything;
        }
        if known.class.is_read() {
            batch.outcomes[Outcome::Bypass as usize] += 1;
        }
        self.expect_answer(if is_pipe { Effect::Aside } else { effect }, dropped);
        let length = self.parser.start_streaming(&self.input);
        self.send_on(length);
        if is_pipe {
            self.stage = Stage::Pipe;
        }
        batch.add_command(known.label, &self.shared.proxy);
        Taken::Yes
    }

    /// What a command takes out of memory, where nobody will tell of it: every word of it that may be a key.
    fn dropped(&self, class: Class, arguments: Arguments<'_>) -> Dropped {
        let is_told = !self.shared.proxy.is_ttl_only();
        let may_be_key = |word: &&[u8]| word.len() <= self.shared.max_key;
        match class {
            Class::Swapdb => Dropped::Everything,
            Class::Flush if !is_told => Dropped::Everything,
            Class::Other | Class::Blocking | Class::Xread if !is_told => {
                Dropped::keys(arguments.skip(1).filter(may_be_key).map(Key::from))
            }
            _ => Dropped::Nothing,
        }
    }

    fn drop_from_memory(&self, dropped: &Dropped) {
        match dropped {
            Dropped::Nothing => {}
            Dropped::Keys(keys) => {
                for key in keys {
                    self.shared.proxy.invalidate(key.as_bytes());
                }
            }
            Dropped::Everything => self.shared.proxy.invalidate_all(),
        }
    }

    /// Redis has answered a command.
    pub(super) fn settle(&mut self, awaited: Awaited, frame: ReplySummary) {
        let Awaited { effect, dropped, relied_on_ttl, .. } = awaited;
        if effect != Effect::Aside || frame.is_error() {
            self.unproved = Some(Instant::now());
            if self.shared.proxy.is_ttl_only() && !relied_on_ttl {
                // Redis has ceased to tell of changes since it was asked, perhaps of this one.
                self.shared.proxy.invalidate_all();
            }
        }
        if effect == Effect::Discard && frame.is_error() {
            // What it was to throw away may still be done.
            self.transaction = Dropped::Everything;
        }
        self.drop_from_memory(&dropped);
        self.standing.answered(effect, frame);
    }

    fn begin_fence(&mut self) {
        let (proxy, since) =
            (self.shared.proxy.clone(), self.unproved.unwrap_or_else(Instant::now));
        let fence = async move {
            timeout(PATIENCE, proxy.fence(since)).await.unwrap_or(Err(BackendError::TimedOut))
        };
        self.fencing = Some(Box::pin(fence));
    }

    /// Memory is proved to hold what the client knows, or cannot be now.
    pub(super) fn fenced(&mut self, fence: &Result<FenceResult, BackendError>) {
        match fence {
            Ok(FenceResult::NoTracking) => self.unproved = None,
            // An answer that came meanwhile needs another.
            Ok(FenceResult::Current) => {
                self.unproved = self.unproved.filter(|since| !self.shared.proxy.is_current(*since));
            }
            Err(_) => self.past_memory_until = Some(Instant::now() + PAST_MEMORY),
        }
    }
}

/// For how long a read waits for a fence before it is left to Redis: longer than an answer usually takes, and no delay that
/// matters where Redis answers this client but not the proxy.
const PATIENCE: Duration = Duration::from_millis(250);
/// For how long reads are then left to Redis without another try.
const PAST_MEMORY: Duration = Duration::from_millis(500);

/// Whether answers cannot be told from what comes by itself from then on.
fn is_pipe(class: Class, arguments: Arguments<'_>) -> bool {
    match class {
        Class::Pipe => true,
        Class::Client => is_one_of(arguments.get(1), &["reply", "tracking"]),
        // Scripts may be debugged from then on, and a debugger takes whatever it is told for its own commands.
        Class::Script => is_one_of(arguments.get(1), &["debug"]),
        _ => false,
    }
}

/// What a command that is forwarded changes in how its client stands.
fn effect(class: Class, arguments: Arguments<'_>) -> Effect {
    match class {
        Class::Aside | Class::Client => Effect::Aside,
        Class::Blocking => Effect::Block,
        Class::Xread if arguments.skip(1).any(|word| word.eq_ignore_ascii_case(b"block")) => {
            Effect::Block
        }
        Class::Multi => Effect::Multi,
        Class::Exec if arguments.len() == 1 => Effect::Exec,
        Class::Discard => Effect::Discard,
        Class::Watch => Effect::Watch,
        Class::Unwatch => Effect::Unwatch,
        Class::Reset => Effect::Reset,
        Class::Select => match parse_integer(arguments.get(1))
            .and_then(|database| u32::try_from(database).ok())
        {
            Some(database) => Effect::Select(database),
            None => Effect::Unknown,
        },
        Class::Auth => Effect::Auth(match arguments.len() {
            2 => User::default_user(),
            _ => User::Named(Bytes::copy_from_slice(arguments.get(1))),
        }),
        Class::Hello => match *hello_logins(arguments) {
            [] => Effect::Hello(None),
            [at] => Effect::Hello(Some(User::Named(Bytes::copy_from_slice(arguments.get(at + 1))))),
            // One version of Redis minds each of them, and another only the last.
            [_, _, ..] => Effect::Unknown,
        },
        _ => Effect::Reveal,
    }
}
