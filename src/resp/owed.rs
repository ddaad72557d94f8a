//! What a client is still to be answered, in the order in which it asked.
//!
//! The rule that must not be broken: nothing is given out before what is in front of it. Forwarded commands and reads that
//! wait for a flight are never here at the same time in the order forwarded, read, forwarded: a command is forwarded only
//! when no read waits, so that a read cannot be overtaken by what its own client writes behind it.

use std::collections::VecDeque;

use super::standing::Effect;
use crate::key::Key;
use crate::output::Output;

/// What a write in a time of `coherence = ttl`, or one that Redis tells nobody of, takes out of memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Dropped {
    #[default]
    Nothing,
    Keys(Vec<Key>),
    Everything,
}

/// So many names at most are remembered, and so many bytes of them.
const MOST_KEYS: usize = 4096;
const MOST_BYTES: usize = 1 << 20;

impl Dropped {
    pub(super) fn keys(keys: impl Iterator<Item = Key>) -> Self {
        let keys: Vec<_> = keys.take(MOST_KEYS + 1).collect();
        let mut dropped = Self::Keys(Vec::new());
        dropped.add(Self::Keys(keys));
        dropped
    }

    pub(super) fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (_, Self::Nothing) | (Self::Everything, _) => {}
            (Self::Keys(keys), Self::Keys(more)) if keys.len() + more.len() <= MOST_KEYS => {
                keys.extend(more);
                if keys.iter().map(Key::len).sum::<usize>() > MOST_BYTES {
                    *self = Self::Everything;
                }
            }
            (Self::Nothing, other) => *self = other,
            _ => *self = Self::Everything,
        }
    }
}

/// Forwarded commands whose answers have not come.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) count: usize,
    pub(super) effect: Effect,
    pub(super) dropped: Dropped,
    /// Whether memory relied on time alone when they were sent on.
    pub(super) relied_on_ttl: bool,
}

#[derive(Debug)]
pub(super) enum Owed {
    /// It is here, and waits for its turn.
    Ready(Output),
    /// Redis will say it.
    Awaited(Awaited),
    /// Flights will bring it, so many.
    Read(usize),
}

/// All that is owed, but for what is on its way out already.
#[derive(Debug, Default)]
pub(super) struct Queue {
    owed: VecDeque<Owed>,
    /// Bytes in those that are ready.
    ready: usize,
    /// Answers of Redis after which memory may be behind.
    revealing: usize,
    blocking: usize,
    flights: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Bytes that wait for their turn.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// Whether an answer is to come after which memory may be behind.
    pub(super) fn has_revealing(&self) -> bool {
        self.revealing > 0
    }

    /// Whether Redis may wait with an answer for something to happen.
    pub(super) fn has_blocking(&self) -> bool {
        self.blocking > 0
    }

    /// Whether nothing goes on until that happens.
    pub(super) fn is_blocking_first(&self) -> bool {
        matches!(self.owed.front(), Some(Owed::Awaited(Awaited { effect: Effect::Block, .. })))
    }

    /// Whether the replies to all commands before a passthrough have come.
    pub(super) fn is_passthrough_first(&self) -> bool {
        matches!(
            self.owed.front(),
            Some(Owed::Awaited(Awaited { effect: Effect::Passthrough, .. }))
        )
    }

    /// Flights that reads wait for.
    pub(super) fn flights(&self) -> usize {
        self.flights
    }

    /// How many things are owed, of which a run of the same is one.
    pub(super) fn len(&self) -> usize {
        self.owed.len()
    }

    /// Whether what is owed first is a read.
    pub(super) fn is_read_first(&self) -> bool {
        matches!(self.owed.front(), Some(Owed::Read(_)))
    }

    /// Adds an answer that is here, behind all that is owed.
    pub(super) fn add_ready(&mut self, write: impl FnOnce(&mut Output)) {
        if !matches!(self.owed.back(), Some(Owed::Ready(_))) {
            self.owed.push_back(Owed::Ready(Output::default()));
        }
        if let Some(Owed::Ready(output)) = self.owed.back_mut() {
            let before = output.len();
            write(output);
            self.ready += output.len() - before;
        }
    }

    pub(super) fn add_read(&mut self, flights: usize) {
        self.flights += flights;
        self.owed.push_back(Owed::Read(flights));
    }

    /// A command was sent on.
    pub(super) fn add_awaited(&mut self, effect: Effect, dropped: Dropped, relied_on_ttl: bool) {
        self.count_awaited(&effect, |count| *count += 1);
        if let Some(Owed::Awaited(last)) = self.owed.back_mut()
            && matches!(effect, Effect::Aside | Effect::Reveal)
            && (&last.effect, &last.dropped, last.relied_on_ttl)
                == (&effect, &Dropped::Nothing, relied_on_ttl)
            && dropped == Dropped::Nothing
        {
            last.count += 1;
            return;
        }
        self.owed.push_back(Owed::Awaited(Awaited { count: 1, effect, dropped, relied_on_ttl }));
    }

    /// The same for a read at the front, which its flight could not answer.
    pub(super) fn await_instead_of_read(&mut self, relied_on_ttl: bool) {
        self.take_read();
        self.count_awaited(&Effect::Reveal, |count| *count += 1);
        let dropped = Dropped::Nothing;
        self.owed.push_front(Owed::Awaited(Awaited {
            count: 1,
            effect: Effect::Reveal,
            dropped,
            relied_on_ttl,
        }));
    }

    fn count_awaited(&mut self, effect: &Effect, change: impl Fn(&mut usize)) {
        if *effect != Effect::Aside {
            change(&mut self.revealing);
        }
        if *effect == Effect::Block {
            change(&mut self.blocking);
        }
    }

    /// Redis has answered the first command that is awaited, if that is what is owed first.
    pub(super) fn take_awaited(&mut self) -> Option<Awaited> {
        let Some(Owed::Awaited(first)) = self.owed.front_mut() else { return None };
        first.count -= 1;
        let (effect, dropped) = (first.effect.clone(), std::mem::take(&mut first.dropped));
        let taken = Awaited { count: 1, effect, dropped, relied_on_ttl: first.relied_on_ttl };
        if first.count == 0 {
            self.owed.pop_front();
        }
        self.count_awaited(&taken.effect, |count| *count -= 1);
        Some(taken)
    }

    /// Removes the last command, if Redis is to reply to it: no reply will come.
    pub(super) fn take_last_awaited(&mut self) {
        let Some(Owed::Awaited(last)) = self.owed.back_mut() else { return };
        last.count -= 1;
        let effect = last.effect.clone();
        if last.count == 0 {
            self.owed.pop_back();
        }
        self.count_awaited(&effect, |count| *count -= 1);
    }

    /// No answer will come to what was sent on: `write` says so in the place of each. Tells whether what follows may depend
    /// on one of them.
    pub(super) fn refuse_awaited(&mut self, write: impl Fn(&mut Output)) -> bool {
        let mut was_of_state = false;
        for owed in &mut self.owed {
            let Owed::Awaited(awaited) = owed else { continue };
            was_of_state |= awaited.effect.is_of_state();
            let mut refusals = Output::default();
            (0..awaited.count).for_each(|_| write(&mut refusals));
            self.ready += refusals.len();
            *owed = Owed::Ready(refusals);
        }
        (self.revealing, self.blocking) = (0, 0);
        was_of_state
    }

    /// The read at the front was answered.
    pub(super) fn take_read(&mut self) {
        if let Some(Owed::Read(flights)) = self.owed.front() {
            self.flights -= flights;
            self.owed.pop_front();
        }
    }

    /// What is ready at the front.
    pub(super) fn take_ready(&mut self) -> Option<Output> {
        let Some(Owed::Ready(_)) = self.owed.front() else { return None };
        let Some(Owed::Ready(output)) = self.owed.pop_front() else { return None };
        self.ready -= output.len();
        Some(output)
    }
}
