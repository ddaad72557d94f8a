//! The execution of decisions about commands. The decisions are made in [`crate::commands`].

use bytes::{BufMut as _, Bytes};

use super::batch::{Batch, BatchTime};
use super::connection::Connection;
use super::lifetime::ConnState;
use super::reply_queue::ForwardedRun;
use crate::access::Reloadable;
use crate::cache::{Hit, KeyGroup, Outcome, TOGETHER};
use crate::commands::{
    Action, Admission, AdmissionTracker, Class, Command, CommandInfo, Identity, Invalidations,
    LocalAction, LongAction, PendingReplies, RejectReason, RuleReads, SessionEffect, SessionState,
    View, answers_gets, decide, decide_long, invalidations, write_value,
};
use crate::metrics;
use crate::net::{WriteBuf, ZERO_COPY_MIN};
use crate::protocol::{
    ParseStatus, ReplySummary, RequestLimits, UNAUTHENTICATED, plain_gets, write_error, write_text,
};
use crate::proxy::Proxy;
use crate::status::info_section;

/// Whether a command was taken, or waits.
#[derive(PartialEq, Eq)]
enum Taken {
    Yes,
    Waits,
}

impl Connection {
    /// Takes commands for as long as it can. Returns whether it took any.
    pub(super) fn take_commands(&mut self) -> bool {
        // A connection takes no more after its close was passed on. The next one does.
        if self.input.is_empty()
            || self.state != ConnState::Commands
            || !self.may_take_more()
            || self.redis.is_sending_closed()
        {
            return false;
        }
        let now = self.now();
        let begun = BatchTime { now, lookup_time: self.shared.proxy.time(now) };
        let mut batch = Batch::new(self.shared.front_end, begun);
        // Commands that were taken, and those that were looked at together.
        let (mut taken, mut seen) = (0, 0);
        while !self.input.is_empty()
            && self.state == ConnState::Commands
            && self.may_take_more()
            && !self.turn.is_over()
        {
            if taken >= seen {
                let (answered, gets) = self.answer_gets(&mut batch);
                (taken, seen) = (taken + answered, taken + gets.max(1));
                if answered > 0 {
                    continue;
                }
            }
            if self.take_next(&mut batch) == Taken::Waits {
                break;
            }
            taken += 1;
            self.turn.add_command();
        }
        batch.count(&self.shared.proxy);
        taken > 0
    }

    /// Answers several `GET`s at the front of the input from memory, together, until memory lacks a
    /// value. Returns their number, and the number of `GET`s that were looked at: the memory of all
    /// of them is prefetched.
    fn answer_gets(&mut self, batch: &mut Batch) -> (usize, usize) {
        // Most clients send one command at a time. It takes the usual way without a group.
        if plain_gets(&self.input).next().is_none_or(|first| first.length == self.input.len()) {
            return (0, 1);
        }
        // The keys are parts of the input while the other parts of the connection change.
        let input = std::mem::take(&mut self.input);
        let (answered, seen, length) = self.answer_gets_of(&input, batch);
        self.input = input;
        if answered > 0 {
            batch.add_commands(self.shared.commands.get().label, answered, &self.shared.proxy);
            self.turn.add_commands(answered);
            self.consume(length);
            self.keep_redis_alive(batch.begun.now);
        }
        (answered, seen)
    }

    /// Does the same, and returns the bytes of the answered commands too.
    ///
    /// A hit changes nothing that the decision about the next `GET` depends on. So all of
    /// them share one decision ([`answers_gets`]).
    fn answer_gets_of(&mut self, input: &[u8], batch: &mut Batch) -> (usize, usize, usize) {
        let longest = self.limits().max_bulk.min(self.shared.policy.max_key);
        let (mut end, mut ends) = (0, [0; TOGETHER]);
        let gets = plain_gets(input).take_while(|get| get.key.len() <= longest);
        let keys = KeyGroup::take_from(&mut gets.zip(&mut ends).map(|(get, place)| {
            end += get.length;
            *place = end;
            get.key
        }));
        let seen = keys.as_slice().len();
        if seen < 2 {
            // The usual way, so that a miss is looked up once.
            return (0, 1, 0);
        }
        let info = self.shared.commands.get();
        let is_decided = info.is_cached
            && self.parser.remaining() == 0
            && self.with_view(info, 0, batch.begun, |view, _| answers_gets(view));
        let proxy = &self.shared.proxy;
        if !is_decided {
            proxy.prefetch(keys.as_slice());
            return (0, seen, 0);
        }

        let BatchTime { now, lookup_time } = batch.begun;
        let protocol = self.session.protocol();
        let held = self.output.len() + self.replies.ready();
        let room = self.shared.settings.max_output_buffer.0.saturating_sub(held);
        let mut answered = 0;
        let mut write = |output: &mut WriteBuf| {
            let full = output.len() + room;
            proxy.lookup_each(keys.as_slice(), lookup_time, |key, hit| {
                let Some(Hit { entry, outcome, rule }) = hit else { return false };
                batch.add_hit(outcome, rule, proxy);
                proxy.count_hit(key, &entry, now);
                write_value(output, Some(&entry), protocol);
                answered += 1;
                output.len() < full
            });
        };
        if self.replies.is_empty() {
            write(&mut self.output);
        } else {
            self.replies.add_ready(write);
        }
        let length = if answered > 0 { ends[answered - 1] } else { 0 };
        (answered, seen, length)
    }

    fn limits(&self) -> RequestLimits {
        let is_admitted = match self.shared.credentials {
            _ if self.session.is_authenticated() => true,
            Some(_) => false,
            // Redis applies its limits to the rest of a streamed command itself.
            None => self.admission.now() == Admission::Granted || self.parser.is_streaming(),
        };
        if !is_admitted {
            return UNAUTHENTICATED;
        }
        let settings = &self.shared.settings;
        RequestLimits { max_bulk: settings.max_bulk.0, max_arguments: settings.max_arguments }
    }

    fn take_next(&mut self, batch: &mut Batch) -> Taken {
        let is_rest = self.parser.is_streaming();
        match self.parser.parse(&self.input, self.limits()) {
            Ok(ParseStatus::Streamed(0)) => Taken::Waits,
            Ok(ParseStatus::Complete(length) | ParseStatus::Streamed(length)) if is_rest => {
                self.send(length);
                Taken::Yes
            }
            Ok(ParseStatus::Complete(length)) => self.take(length, batch),
            Ok(_) if self.input.len() < self.shared.settings.max_query_buffer.0 => Taken::Waits,
            // The end of a line says what it is.
            Ok(_) if self.parser.remaining() == 0 => Taken::Waits,
            Ok(_) => self.take_long(batch),
            Err(error) if error.is_unauthenticated() && self.is_admission_open() => {
                self.settle_admission(batch)
            }
            Err(error) => {
                if is_rest {
                    // Redis has a part of the command and never replies to it. The error takes the
                    // place of the reply, behind those to the commands before it.
                    self.replies.remove_last_forwarded();
                }
                self.reply(|output| {
                    write_error(output.tail(), [b"ERR ", &*error.bytes()].concat());
                });
                self.state = ConnState::Draining;
                Taken::Yes
            }
        }
    }

    /// Whether nothing has shown yet whether Redis has admitted the client.
    fn is_admission_open(&self) -> bool {
        self.shared.credentials.is_none() && self.admission.now() == Admission::Unknown
    }

    /// Finds out whether Redis has admitted the client, whose next command is too large otherwise.
    /// A pending reply may show it; if none is pending, the proxy sends a `PING`.
    fn settle_admission(&mut self, batch: &mut Batch) -> Taken {
        let needs_no_login =
            self.shared.policy.identity.user.is_none() && self.shared.proxy.ready().is_ok();
        if needs_no_login || self.session.is_desynced() {
            self.admission = AdmissionTracker::granted();
            return self.take_next(batch);
        }
        if self.replies.is_empty() && !self.keepalive_pending {
            self.probe_admission();
        }
        Taken::Waits
    }

    /// Takes the command that is the first `length` bytes.
    fn take(&mut self, length: usize, batch: &mut Batch) -> Taken {
        let arguments = self.parser.arguments(&self.input);
        if arguments.is_empty() {
            self.consume(length);
            return Taken::Yes;
        }
        let info = self.shared.commands.find(arguments.get(0));
        let action = self.decide(info, length, batch);
        if !self.execute(action, info, length, batch) {
            return Taken::Waits;
        }
        batch.add_command(info.label, &self.shared.proxy);
        Taken::Yes
    }

    #[inline]
    fn pending(&self) -> PendingReplies {
        PendingReplies {
            is_keepalive: self.keepalive_pending,
            is_close_due: self.is_close_due(),
            ..self.replies.summary()
        }
    }

    /// Returns the decision about the command that the parser has read, which is the first `length`
    /// bytes of the input. `decide` gets everything that it depends on.
    #[inline]
    fn with_view<T>(
        &mut self,
        info: CommandInfo,
        length: usize,
        begun: BatchTime,
        decide: impl FnOnce(&View<'_, Proxy>, Command<'_>) -> T,
    ) -> T {
        let coverage = self.fences.coverage(&self.shared.proxy, begun.now);
        let credentials = self.shared.credentials.as_ref().map(Reloadable::get);
        let view = View {
            policy: &self.shared.policy,
            credentials: credentials.as_deref(),
            session: &self.session,
            pending: self.pending(),
            pending_keys: self.replies.pending_keys(),
            coverage,
            memory: &self.shared.proxy,
            now: begun.now,
            lookup_time: begun.lookup_time,
        };
        let arguments = self.parser.arguments(&self.input);
        let CommandInfo { class, is_cached, .. } = info;
        decide(&view, Command { class, is_cached, arguments, bytes: &self.input[..length] })
    }

    #[inline]
    fn decide(&mut self, info: CommandInfo, length: usize, batch: &mut Batch) -> Action {
        self.with_view(info, length, batch.begun, |view, command| {
            decide(view, command, |outcome, rule| batch.add_hit(outcome, rule, view.memory))
        })
    }

    /// Executes an action on the command that is the first `length` bytes. Returns whether the
    /// command is done with.
    fn execute(
        &mut self,
        action: Action,
        info: CommandInfo,
        length: usize,
        batch: &mut Batch,
    ) -> bool {
        match action {
            Action::Wait => return false,
            Action::Fence => {
                self.fences.begin(self.shared.proxy.clone());
                return false;
            }
            Action::Reply(reply) => {
                self.consume(length);
                batch.add_kept_reply(&reply, &self.shared.proxy);
                let protocol = self.session.protocol();
                self.reply(|output| reply.write(output, protocol));
                self.keep_redis_alive(batch.begun.now);
            }
            Action::Fetch(fetch) => {
                self.consume(length);
                self.replies.add_read(fetch.len(), fetch.keys());
                let run = fetch.run(self.shared.front_end, self.shared.proxy.clone());
                self.flights.push(run);
            }
            Action::FetchReply(fetch) => {
                let command = self.input.split_to(length).freeze();
                self.replies.add_read(1, fetch.keys());
                let run = fetch.run(self.shared.front_end, self.shared.proxy.clone(), command);
                self.flights.push(Box::pin(run));
            }
            Action::BypassReply(kind, rules) => {
                self.count_rules(&rules);
                batch.add_bypassed(1);
                batch.add_kept_read(kind, Outcome::Bypass, &self.shared.proxy);
                let invalidations = self.invalidations(info.class);
                self.forward(SessionEffect::MayObserveWrite, invalidations, length);
            }
            Action::Bypass(keys, rules) => {
                self.count_rules(&rules);
                batch.add_bypassed(keys);
                self.forward(SessionEffect::MayObserveWrite, Invalidations::None, length);
            }
            Action::Forward(effect) => {
                let invalidations = self.invalidations(info.class);
                self.forward(effect, invalidations, length);
            }
            Action::Passthrough => {
                self.forward(SessionEffect::Passthrough, Invalidations::None, length);
                self.state = ConnState::Passthrough;
            }
            Action::Quit => self.quit(length),
            Action::Local(LocalAction::LogIn { instead }) => self.log_in(instead, length),
            Action::Local(LocalAction::Reset) => self.reset(length),
            Action::Local(LocalAction::Info) => {
                let protocol = self.session.protocol();
                let section = info_section(&self.shared.proxy);
                self.reply(|output| write_text(output.tail(), section.as_bytes(), protocol));
                self.consume(length);
            }
            Action::Local(LocalAction::Reject { text, reason }) => {
                self.reject(text, reason);
                self.consume(length);
            }
        }
        true
    }

    fn count_rules(&self, reads: &RuleReads) {
        for (rule, outcome, count) in reads.iter() {
            self.shared.proxy.record_rule(rule, outcome, count);
        }
    }

    fn quit(&mut self, length: usize) {
        if self.redis.is_closed() {
            self.reply(|output| output.push(Bytes::from_static(b"+OK\r\n")));
        } else {
            self.forward(SessionEffect::Neutral, Invalidations::None, length);
        }
        self.state = ConnState::Draining;
    }

    fn log_in(&mut self, instead: Option<Bytes>, length: usize) {
        self.session.authenticate();
        match instead {
            None => self.reply(|output| output.push(Bytes::from_static(b"+OK\r\n"))),
            Some(command) => {
                self.expect_reply(SessionEffect::Hello(None), Invalidations::None);
                self.redis.out.push(command);
            }
        }
        self.consume(length);
    }

    fn reset(&mut self, length: usize) {
        self.drop_redis();
        self.session = SessionState::new(Identity::Unauthenticated);
        self.transaction = Invalidations::None;
        self.reply(|output| output.tail().put_slice(b"+RESET\r\n"));
        self.consume(length);
    }

    fn reject(&mut self, text: &str, reason: Option<RejectReason>) {
        if let Some(reason) = reason {
            let counted = match reason {
                RejectReason::Login => metrics::RejectReason::Login,
                RejectReason::Key => metrics::RejectReason::Key,
                RejectReason::Command => metrics::RejectReason::Command,
            };
            self.shared.proxy.record_rejected(self.shared.front_end, counted);
            if reason == RejectReason::Login {
                self.shared.refusals.log(self.shared.front_end, "login", self.client.peer());
            }
        }
        self.reply(|output| write_error(output.tail(), text));
    }

    /// Takes a command that is too long to be held, and forwards it as it arrives.
    fn take_long(&mut self, batch: &mut Batch) -> Taken {
        let info = self.shared.commands.find(self.parser.arguments(&self.input).get(0));
        let effect = match self.with_view(info, 0, batch.begun, decide_long) {
            LongAction::Wait => return Taken::Waits,
            LongAction::Reject(text, reason) => {
                self.reject(text, Some(reason));
                self.state = ConnState::Draining;
                return Taken::Yes;
            }
            LongAction::Stream(effect) => effect,
        };
        let mut invalidations = self.invalidations(info.class);
        let has_all_keys =
            self.parser.remaining() <= 1 && self.parser.arguments(&self.input).len() >= 2;
        if invalidations != Invalidations::None && !has_all_keys {
            invalidations = Invalidations::All;
        }
        if info.class.is_read() {
            batch.add_bypassed(1);
        }
        let is_passthrough = effect == SessionEffect::Passthrough;
        self.expect_reply(effect, invalidations);
        let length = self.parser.start_streaming(&self.input);
        self.send(length);
        if is_passthrough {
            self.state = ConnState::Passthrough;
        }
        batch.add_command(info.label, &self.shared.proxy);
        Taken::Yes
    }

    /// Forwards the command that is the first `length` bytes.
    fn forward(&mut self, effect: SessionEffect, invalidations: Invalidations, length: usize) {
        self.expect_reply(effect, invalidations);
        self.send(length);
    }

    fn send(&mut self, length: usize) {
        if length < ZERO_COPY_MIN {
            self.redis.out.tail().extend_from_slice(&self.input[..length]);
            self.consume(length);
        } else {
            self.redis.out.push(self.input.split_to(length).freeze());
        }
    }

    fn expect_reply(&mut self, effect: SessionEffect, mut invalidations: Invalidations) {
        self.open_redis();
        if effect == SessionEffect::Exec {
            invalidations.add(std::mem::take(&mut self.transaction));
        } else if effect == SessionEffect::Discard {
            self.transaction = Invalidations::None;
        } else if self.session.is_in_multi() {
            // It may be queued. Or it is not, since an EXEC before it is not answered yet.
            self.transaction.add(invalidations.clone());
        }
        self.invalidate(&invalidations);
        if effect.may_go_unanswered() && !self.replies.is_empty() {
            // The reply to another command could be taken for its own.
            self.session.desync();
        }
        self.admission.sent(&effect);
        self.session.sent(&effect);
        let relies_on_ttl = self.shared.proxy.is_ttl_only();
        self.replies.add_forwarded(effect, invalidations, relies_on_ttl);
    }

    /// The keys that the command in front invalidates, where Redis pushes nothing.
    fn invalidations(&self, class: Class) -> Invalidations {
        let arguments = self.parser.arguments(&self.input);
        let is_tracked = !self.shared.proxy.is_ttl_only();
        invalidations(class, arguments, is_tracked, self.shared.policy.max_key)
    }

    fn invalidate(&self, invalidations: &Invalidations) {
        match invalidations {
            Invalidations::None => {}
            Invalidations::Keys(keys) => {
                for key in keys {
                    self.shared.proxy.invalidate(key.as_bytes());
                }
            }
            Invalidations::All => self.shared.proxy.invalidate_all(),
        }
    }

    /// A reply may reflect a write that memory does not know. `relied_on_ttl`: memory relied on
    /// TTLs alone when the command was sent.
    pub(super) fn write_observed(&mut self, relied_on_ttl: bool) {
        self.fences.write_observed();
        if self.shared.proxy.is_ttl_only() && !relied_on_ttl {
            // Redis has ceased to push since the command was sent, perhaps before this change.
            self.shared.proxy.invalidate_all();
        }
    }

    /// Redis has replied to a command.
    pub(super) fn replied(&mut self, run: ForwardedRun, frame: ReplySummary) {
        let ForwardedRun { effect, invalidations, relied_on_ttl, .. } = run;
        if effect != SessionEffect::Neutral || frame.is_error() {
            self.write_observed(relied_on_ttl);
        }
        if effect == SessionEffect::Discard && frame.is_error() {
            // The commands that it was to discard may still run.
            self.transaction = Invalidations::All;
        }
        self.invalidate(&invalidations);
        self.admission.replied(&effect, frame);
        self.session.replied(effect, frame);
    }
}
