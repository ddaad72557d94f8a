//! The history of each key: the truth for the oracle.
//!
//! Model: the life of a key is a sequence of states, each a value or an absence, with rising
//! versions. A state begins between two moments: not before `earliest`, when its write was sent,
//! and no later than `surely`, when Redis had acknowledged it. A write without acknowledgement has
//! no `surely`: it may have happened or not, so it supersedes nothing. An expiry is an absence that
//! begins in a window computed from its write. At a switch the writers go on at the next primary,
//! and the previous one keeps what it has. A value that was to expire then expires there, whatever
//! the next primary has meanwhile.
//!
//! The rule: a state is recorded before Redis can know of it, and every doubt favours the proxy.
//! One thread owns each history, so the order of states is the order in which Redis received them.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

/// The time since the soak began.
pub(super) type Moment = Duration;

/// The age at which superseded states are forgotten; no read and no grace is as long.
pub(super) const MEMORY: Duration = Duration::from_secs(30);
/// Redis counts in whole milliseconds and reads the time before it runs a command.
const EXPIRY_EARLY: Duration = Duration::from_millis(2);
const EXPIRY_LATE: Duration = Duration::from_millis(5);
/// The number of states that starts a cleanup.
const TIDY: usize = 64;
/// The number of digits of a version in a value, fixed so that it can be overwritten in place.
const DIGITS: usize = 10;
const STATES_TOLD: usize = 8;
/// In the place of a command: the value has expired.
const EXPIRY: &str = "expiry";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Content {
    Absent,
    /// A text with this version, and the letters that belong to the version `filler`.
    Text {
        filler: u64,
    },
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) version: u64,
    pub(super) content: Content,
    /// The command that made it.
    by: &'static str,
    pub(super) earliest: Moment,
    pub(super) surely: Option<Moment>,
}

impl State {
    fn tell(&self) -> String {
        let Self { version, by, .. } = self;
        let kind = if self.content == Content::Absent { "absent" } else { "value" };
        let earliest = millis(self.earliest);
        let times = match self.surely.map(millis) {
            Some(surely) => format!("begun between {earliest} and {surely}"),
            None => format!("begun after {earliest}, if at all"),
        };
        format!("{version:>6} {kind:<6} by {by:<13} {times}")
    }
}

/// The effect of a command on one key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    Value,
    Expiring(Duration),
    /// Another version in the existing text.
    Patch,
    Absence,
    /// Another TTL, or none, for the existing value.
    Retime(Option<Duration>),
}

/// A change that is in the history and not yet acknowledged.
#[derive(Default)]
pub(super) struct Begun {
    pub(super) key: String,
    /// The value that the key is to hold.
    pub(super) text: String,
    pub(super) life: Option<Duration>,
    pub(super) version: u64,
    /// The state that it made, if any.
    made: Option<u64>,
    /// The expiry that it set.
    expiry: Option<u64>,
    /// The expiry that it cancels, unless the expiry came first.
    replaced: Option<u64>,
}

/// The state that a command found, where its effect depends on it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Found {
    Value,
    Nothing,
}

/// A value that was to expire when the writers went on at the next primary.
struct Outlived {
    switched: Moment,
    /// The versions of the value, and of its expiry.
    value: u64,
    expiry: u64,
    /// The moment before which it has not expired at the previous primary.
    earliest: Moment,
}

/// The knowledge about a key before the next command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Known {
    Value,
    /// A value that expires, or has just expired.
    Expiring,
    Absent,
    /// The latest change may have happened or not.
    Nothing,
}

pub(super) struct KeyHistory {
    pub(super) key: String,
    states: VecDeque<State>,
    next: u64,
    /// Versions below this one are forgotten.
    pub(super) oldest: u64,
    uncertain: bool,
    /// The value at the previous primary since the last switch, if it expires there.
    outlived: Option<Outlived>,
    tidy_at: usize,
}

impl KeyHistory {
    /// Returns the history of a key that never existed.
    pub(super) fn new(key: String) -> Self {
        let mut history = Self {
            key,
            states: VecDeque::new(),
            next: 0,
            oldest: 0,
            uncertain: false,
            outlived: None,
            tidy_at: TIDY,
        };
        let begun = history.begin("nothing yet", Effect::Absence, Moment::ZERO);
        history.done(&begun, Found::Value, Moment::ZERO);
        history
    }

    pub(super) fn states(&self) -> &VecDeque<State> {
        &self.states
    }

    pub(super) fn known(&self, now: Moment) -> Known {
        let last = self.states.back().filter(|_| !self.uncertain);
        match last {
            None => Known::Nothing,
            Some(State { content: Content::Text { .. }, .. }) => Known::Value,
            Some(State { surely: Some(surely), .. }) if *surely <= now => Known::Absent,
            Some(_) => Known::Expiring,
        }
    }

    /// Records a change just before it is sent.
    pub(super) fn begin(&mut self, by: &'static str, effect: Effect, sent: Moment) -> Begun {
        self.tidy(sent);
        let replaced = self.doubt_expiry(sent);
        let mut begun = Begun { key: self.key.clone(), replaced, ..Begun::default() };
        let made = match effect {
            Effect::Value | Effect::Expiring(_) => Some(Content::Text { filler: self.next }),
            Effect::Patch => {
                Some(self.states.back().map_or(Content::Absent, |state| state.content))
            }
            Effect::Absence => Some(Content::Absent),
            Effect::Retime(_) => None,
        };
        if let Some(content) = made {
            let version = self.push(by, content, sent);
            begun.version = version;
            begun.made = Some(version);
            if let Content::Text { filler } = content {
                begun.text = text(&self.key, version, filler);
            }
        }
        if let Effect::Expiring(life) | Effect::Retime(Some(life)) = effect {
            begun.life = Some(life);
            begun.expiry = Some(self.push(
                EXPIRY,
                Content::Absent,
                (sent + life).saturating_sub(EXPIRY_EARLY),
            ));
        }
        begun
    }

    /// Records the acknowledgement of a change.
    pub(super) fn done(&mut self, begun: &Begun, found: Found, acknowledged: Moment) {
        self.uncertain = false;
        let end = begun.life.map(|life| acknowledged + life + EXPIRY_LATE);
        if begun.made.is_some() {
            self.settle(begun.made, acknowledged);
        } else if found == Found::Value {
            self.remove(begun.replaced);
        } else {
            self.settle(begun.replaced, acknowledged);
            self.remove(begun.expiry);
        }
        self.settle(begun.expiry, end.unwrap_or_default());
        self.assert_found(begun, found);
    }

    /// Asserts that the history allows the state that a command found; otherwise the history is
    /// worthless.
    fn assert_found(&self, begun: &Begun, found: Found) {
        let mut earlier =
            self.states.iter().rev().filter(|state| Some(state.version) != begun.expiry);
        let was = earlier.next().map_or(Content::Absent, |state| state.content);
        let agrees = begun.made.is_some() || (was == Content::Absent) == (found == Found::Nothing);
        assert!(
            agrees,
            "the harness takes {} for {was:?}, and Redis does not:\n{}",
            self.key,
            self.tell(self.next, Moment::MAX)
        );
    }

    /// Records that the writers go on at the next primary. No change is in flight then.
    pub(super) fn switch(&mut self, now: Moment) {
        let mut latest = self.states.iter().rev();
        self.outlived = latest.next().zip(latest.next()).and_then(|(end, value)| {
            let has_ended = end.surely.is_some_and(|surely| surely <= now);
            let is_outlived = end.by == EXPIRY && !has_ended && !self.uncertain;
            is_outlived.then_some(Outlived {
                switched: now,
                value: value.version,
                expiry: end.version,
                earliest: end.earliest,
            })
        });
    }

    /// Returns the versions of the value in the place of which a read between these moments may
    /// have found nothing, and of its expiry: at the previous primary, where the value expired,
    /// within this time after the switch.
    pub(super) fn expired_at_previous(
        &self,
        (began, ended): (Moment, Moment),
        bound: Duration,
    ) -> Option<(u64, u64)> {
        let Outlived { switched, value, expiry, earliest } = *self.outlived.as_ref()?;
        let is_of_previous = switched <= ended && began <= switched + bound;
        (is_of_previous && earliest <= ended).then_some((value, expiry))
    }

    /// Records that the fate of a change stays unknown.
    pub(super) fn lost(&mut self) {
        self.uncertain = true;
    }

    /// Returns the moment from which the state at `index` had surely been superseded.
    pub(super) fn superseded(&self, index: usize) -> Option<Moment> {
        self.states.range(index + 1..).filter_map(|state| state.surely).min()
    }

    pub(super) fn at(&self, version: u64) -> Option<usize> {
        self.states.binary_search_by_key(&version, |state| state.version).ok()
    }

    /// Returns the version that a value names, if it equals the value that was written here.
    pub(super) fn version_of(&self, value: &[u8]) -> Option<u64> {
        let claimed = std::str::from_utf8(value).ok()?.split('#').nth(1)?.parse().ok()?;
        if claimed < self.oldest {
            return Some(claimed);
        }
        match self.states[self.at(claimed)?].content {
            Content::Text { filler } => {
                (text(&self.key, claimed, filler).as_bytes() == value).then_some(claimed)
            }
            Content::Absent => None,
        }
    }

    /// Lists the states from just before a version until a moment, one a line, without the middle
    /// of many.
    pub(super) fn tell(&self, around: u64, until: Moment) -> String {
        let first = self.states.partition_point(|state| state.version < around).saturating_sub(1);
        let begun = self.states.range(first..).filter(|state| state.earliest <= until);
        let lines: Vec<String> = begun.map(State::tell).collect();
        let hidden = lines.len().saturating_sub(STATES_TOLD);
        let mut received = String::new();
        for (number, line) in lines.iter().enumerate() {
            if hidden == 0 || number < STATES_TOLD / 2 || number >= STATES_TOLD / 2 + hidden {
                _ = writeln!(received, "  {line}");
            } else if number == STATES_TOLD / 2 {
                _ = writeln!(received, "  and {hidden} more states");
            }
        }
        received
    }

    fn push(&mut self, by: &'static str, content: Content, earliest: Moment) -> u64 {
        let version = self.next;
        self.next += 1;
        self.states.push_back(State { version, content, by, earliest, surely: None });
        version
    }

    /// Turns a pending expiry into one that may never come, because a change is about to be sent.
    fn doubt_expiry(&mut self, sent: Moment) -> Option<u64> {
        let last = self.states.back_mut().filter(|state| state.by == EXPIRY)?;
        if last.surely.is_some_and(|surely| surely <= sent) {
            return None;
        }
        last.surely = None;
        Some(last.version)
    }

    fn settle(&mut self, version: Option<u64>, surely: Moment) {
        if let Some(index) = version.and_then(|version| self.at(version)) {
            self.states[index].surely = Some(surely);
        }
    }

    fn remove(&mut self, version: Option<u64>) {
        if let Some(index) = version.and_then(|version| self.at(version)) {
            self.states.remove(index);
        }
    }

    /// Forgets states that no read can return.
    fn tidy(&mut self, now: Moment) {
        if self.states.len() < self.tidy_at {
            return;
        }
        while self.states.len() > 1 && self.superseded(0).is_some_and(|since| since + MEMORY < now)
        {
            self.states.pop_front();
        }
        self.oldest = self.states[0].version;
        self.tidy_at = (self.states.len() * 2).max(TIDY);
    }
}

/// Returns a value: its key, its version, and letters, which reveal a torn or mixed value.
fn text(key: &str, version: u64, filler: u64) -> String {
    let length = if filler.is_multiple_of(97) { 20_000 } else { filler % 200 };
    let letter = char::from(b'a' + u8::try_from(filler % 26).unwrap_or_default());
    let mut text = format!("{key}#{}#", digits(version));
    text.extend((0..length).map(|_| letter));
    text.push('.');
    text
}

/// Returns the digits of a version in a value, behind the key and one more character.
pub(super) fn digits(version: u64) -> String {
    format!("{version:0DIGITS$}")
}

pub(super) fn millis(moment: Moment) -> String {
    format!("{:.1} ms", moment.as_secs_f64() * 1000.0)
}
