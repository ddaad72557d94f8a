//! Judges whether a reply was allowed.
//!
//! Model: a read with its begin and end, its reply, and the history of its key. Each state that the
//! reply can stand for is a candidate. A value names its state; an absence may have many
//! candidates, of which one has to be valid. A candidate must have begun before the read ended. It
//! must not have been superseded more than a bound before the read began. It must not be older than
//! the versions that the same client saw before.
//!
//! After a switch of the primaries the proxy may read the previous one, until it knows of the next
//! one: for the bound of peace. A value expires there as it was set before the switch, though the
//! next primary has it without an end, or has another value. So an absence in that time may stand
//! for that value too. No straight read, no later one, and no value without an end is excepted.
//!
//! The rule: a breach is a breach, whatever order the network and the threads chose.

use std::fmt;
use std::time::Duration;

use super::conditions::BOUND_IN_PEACE;
use super::history::{Content, KeyHistory, MEMORY, Moment, millis};

pub(super) enum Answer {
    Value(Vec<u8>),
    Absent,
}

pub(super) struct Read {
    pub(super) began: Moment,
    pub(super) ended: Moment,
    pub(super) answer: Answer,
    /// The outcome in the terms of the proxy.
    pub(super) outcome: &'static str,
    pub(super) demand: Demand,
}

/// The freshness that the read demands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Demand {
    Usual,
    /// Nothing older than the request.
    Current,
    /// The same, from Redis itself.
    Straight,
}

/// A valid read.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    /// The oldest version that the reply may stand for, which any client has seen at least.
    pub(super) version: u64,
    /// The time between the certain end of the state and the read, and that end.
    pub(super) lag: Option<(Duration, Moment)>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Breach {
    /// A value that this key never had as a whole.
    NeverWritten,
    /// An absence where the key was never absent in the known history.
    NeverAbsent,
    /// The harness is wrong.
    FromTheFuture {
        version: u64,
    },
    TooOld {
        version: u64,
        lag: Duration,
        bound: Duration,
    },
    Backwards {
        version: u64,
        seen: u64,
    },
}

/// The outcome of an expired value that is served because Redis is unavailable: old by design.
pub(super) const STALE: &str = "stale";

/// Judges a read of a client that has `seen` this version before. `bound` returns the allowed age
/// of a value that was superseded at the first moment and is read at the second.
pub(super) fn judge(
    history: &KeyHistory,
    read: &Read,
    seen: u64,
    bound: impl Fn(Moment, Moment) -> Duration,
) -> Result<Verdict, Breach> {
    if let Some((value, expiry)) = expired_at_previous(history, read)
        && seen <= expiry
    {
        return Ok(Verdict { version: value.max(seen), lag: None });
    }
    let begun = candidates(history, read)?;
    let lag_of = |index: usize| {
        let since = history.superseded(index)?;
        let lag = read.began.checked_sub(since)?;
        Some((lag, since))
    };
    let too_old = |index: usize| {
        let (lag, since) = lag_of(index)?;
        let bound = bound(since, read.began);
        let version = history.states()[index].version;
        (lag > bound).then_some(Breach::TooOld { version, lag, bound })
    };
    let latest = begun[begun.len() - 1];
    if read.outcome == STALE {
        return Ok(Verdict { version: seen, lag: None });
    }
    let fresh: Vec<usize> = begun.into_iter().filter(|index| too_old(*index).is_none()).collect();
    let Some(newest) = fresh.last() else {
        return Err(too_old(latest).unwrap_or(Breach::NeverAbsent));
    };
    let mut versions = fresh.iter().map(|index| history.states()[*index].version);
    match versions.find(|version| *version >= seen) {
        Some(version) => Ok(Verdict { version, lag: lag_of(*newest) }),
        None => Err(Breach::Backwards { version: history.states()[*newest].version, seen }),
    }
}

fn expired_at_previous(history: &KeyHistory, read: &Read) -> Option<(u64, u64)> {
    let may_be = matches!(read.answer, Answer::Absent) && read.demand != Demand::Straight;
    let moments = (read.began, read.ended);
    history.expired_at_previous(moments, BOUND_IN_PEACE).filter(|_| may_be)
}

/// Returns the states that the reply may stand for and that had begun, the oldest first; at least
/// one.
fn candidates(history: &KeyHistory, read: &Read) -> Result<Vec<usize>, Breach> {
    let begun = |index: &usize| history.states()[*index].earliest <= read.ended;
    match &read.answer {
        Answer::Value(value) => {
            let version = history.version_of(value).ok_or(Breach::NeverWritten)?;
            match history.at(version) {
                Some(index) if begun(&index) => Ok(vec![index]),
                Some(_) => Err(Breach::FromTheFuture { version }),
                None => Err(Breach::TooOld { version, lag: MEMORY, bound: Duration::ZERO }),
            }
        }
        Answer::Absent => {
            let all = 0..history.states().len();
            let absent = all.filter(|index| history.states()[*index].content == Content::Absent);
            let begun: Vec<usize> = absent.filter(begun).collect();
            if begun.is_empty() { Err(Breach::NeverAbsent) } else { Ok(begun) }
        }
    }
}

impl Breach {
    /// Returns the version that the read is about, for the report.
    pub(super) fn version(&self) -> u64 {
        match self {
            Self::NeverWritten | Self::NeverAbsent => u64::MAX,
            Self::FromTheFuture { version }
            | Self::TooOld { version, .. }
            | Self::Backwards { version, .. } => *version,
        }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverWritten => formatter.write_str("a value that was never written to this key"),
            Self::NeverAbsent => {
                formatter.write_str("an absence, while the key was there all the time")
            }
            Self::FromTheFuture { version } => {
                write!(formatter, "version {version} before it was sent: the harness is wrong")
            }
            Self::TooOld { version, lag, bound } => {
                let (lag, bound) = (millis(*lag), millis(*bound));
                write!(
                    formatter,
                    "version {version}, superseded {lag} before the read began; allowed are {bound}"
                )
            }
            Self::Backwards { version, seen } => {
                write!(formatter, "version {version}, after this client had seen {seen}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::{Begun, Effect, Found};
    use super::*;

    const BOUND: Duration = ms(100);

    const fn ms(millis: u64) -> Moment {
        Duration::from_millis(millis)
    }

    /// Returns a key that got its first value between 10 and 20 ms.
    fn written() -> (KeyHistory, Begun) {
        let mut history = KeyHistory::new("key".to_owned());
        let first = write(&mut history, Effect::Value, 10, 20);
        (history, first)
    }

    fn write(history: &mut KeyHistory, effect: Effect, sent: u64, acknowledged: u64) -> Begun {
        let begun = history.begin("a test", effect, ms(sent));
        history.done(&begun, Found::Value, ms(acknowledged));
        begun
    }

    fn value(text: &str) -> Answer {
        Answer::Value(text.as_bytes().to_owned())
    }

    fn read(
        history: &KeyHistory,
        answer: Answer,
        began: u64,
        seen: u64,
    ) -> Result<Verdict, Breach> {
        read_as("hit", history, answer, began, seen)
    }

    fn read_as(
        outcome: &'static str,
        history: &KeyHistory,
        answer: Answer,
        began: u64,
        seen: u64,
    ) -> Result<Verdict, Breach> {
        let read =
            Read { began: ms(began), ended: ms(began + 1), answer, outcome, demand: Demand::Usual };
        judge(history, &read, seen, |_, _| BOUND)
    }

    #[test]
    fn latest_value_is_always_valid() {
        let (history, first) = written();
        for began in [12, 20, 100_000] {
            let verdict = read(&history, value(&first.text), began, 0);
            assert_eq!(verdict, Ok(Verdict { version: first.version, lag: None }));
        }
    }

    #[test]
    fn superseded_value_is_valid_within_the_bound() {
        let (mut history, first) = written();
        write(&mut history, Effect::Value, 1000, 1010);
        let lag = |began| read(&history, value(&first.text), began, 0).map(|verdict| verdict.lag);
        assert_eq!(lag(1005), Ok(None));
        assert_eq!(lag(1110), Ok(Some((BOUND, ms(1010)))));
        let version = first.version;
        assert_eq!(lag(1111), Err(Breach::TooOld { version, lag: ms(101), bound: BOUND }));
    }

    #[test]
    fn unacknowledged_write_may_be_seen_or_not() {
        let (mut history, first) = written();
        let doubtful = history.begin("a test", Effect::Value, ms(1000));
        history.lost();
        assert!(read(&history, value(&first.text), 9000, 0).is_ok());
        assert!(read(&history, value(&doubtful.text), 9000, 0).is_ok());
        write(&mut history, Effect::Value, 10_000, 10_010);
        assert!(matches!(
            read(&history, value(&doubtful.text), 11_000, 0),
            Err(Breach::TooOld { .. })
        ));
    }

    #[test]
    fn client_never_goes_back() {
        let (mut history, first) = written();
        let second = write(&mut history, Effect::Value, 1000, 1010);
        let backwards = Breach::Backwards { version: first.version, seen: second.version };
        assert_eq!(read(&history, value(&first.text), 1005, second.version), Err(backwards));
    }

    #[test]
    fn absence_counts_as_the_oldest_matching_state() {
        let (mut history, _) = written();
        let gone = write(&mut history, Effect::Absence, 1000, 1010);
        write(&mut history, Effect::Value, 1020, 1030);
        let gone_again = write(&mut history, Effect::Absence, 1040, 1050);
        let version = |began, seen| {
            read(&history, Answer::Absent, began, seen).map(|verdict| verdict.version)
        };
        assert_eq!(version(1060, 0), Ok(gone.version));
        assert_eq!(version(1060, gone.version + 1), Ok(gone_again.version));
        assert_eq!(version(2000, 0), Ok(gone_again.version));
    }

    #[test]
    fn outdated_absence_is_too_old() {
        let (history, _) = written();
        assert!(read(&history, Answer::Absent, 110, 0).is_ok());
        let too_old = Breach::TooOld { version: 0, lag: ms(180), bound: BOUND };
        assert_eq!(read(&history, Answer::Absent, 200, 0), Err(too_old));
    }

    #[test]
    fn absence_never_written_is_a_breach() {
        let (mut history, _) = written();
        for number in 1..500 {
            write(&mut history, Effect::Value, number * 1000, number * 1000 + 10);
        }
        assert_eq!(read(&history, Answer::Absent, 500_000, 0), Err(Breach::NeverAbsent));
    }

    #[test]
    fn expiring_value_is_absent_after_its_end() {
        let (mut history, _) = written();
        let expiring = write(&mut history, Effect::Expiring(ms(500)), 1000, 1010);
        assert!(read(&history, value(&expiring.text), 1600, 0).is_ok());
        assert!(matches!(
            read(&history, value(&expiring.text), 1700, 0),
            Err(Breach::TooOld { .. })
        ));
        assert!(matches!(read(&history, Answer::Absent, 1400, 0), Err(Breach::TooOld { .. })));
        assert!(read(&history, Answer::Absent, 1500, 0).is_ok());
    }

    #[test]
    fn changed_ttl_replaces_the_previous_one() {
        let (mut history, _) = written();
        let expiring = write(&mut history, Effect::Expiring(ms(500)), 1000, 1010);
        write(&mut history, Effect::Retime(None), 1300, 1310);
        assert!(read(&history, value(&expiring.text), 9000, 0).is_ok());
        assert!(matches!(read(&history, Answer::Absent, 1700, 0), Err(Breach::TooOld { .. })));
    }

    #[test]
    fn late_ttl_change_has_no_effect() {
        let (mut history, _) = written();
        let expiring = write(&mut history, Effect::Expiring(ms(500)), 1000, 1010);
        let late = history.begin("a test", Effect::Retime(Some(ms(5000))), ms(1505));
        history.done(&late, Found::Nothing, ms(1520));
        assert!(matches!(
            read(&history, value(&expiring.text), 1700, 0),
            Err(Breach::TooOld { .. })
        ));
        assert!(read(&history, Answer::Absent, 9000, 0).is_ok());
    }

    /// Returns a key with a value that ends between 1,500 and 1,515 ms, where the writers go on at
    /// the next primary at 1,400 ms.
    fn switched(effect: Effect) -> (KeyHistory, Begun) {
        let (mut history, _) = written();
        let last = write(&mut history, effect, 1000, 1010);
        history.switch(ms(1400));
        (history, last)
    }

    const EXPIRING: Effect = Effect::Expiring(ms(500));

    #[test]
    fn value_expires_at_old_primary_too() {
        for effect in [Effect::Value, Effect::Retime(None)] {
            let (mut history, expiring) = switched(EXPIRING);
            write(&mut history, effect, 1410, 1411);
            let absent = |began| read(&history, Answer::Absent, began, 0);
            let verdict = Verdict { version: expiring.version, lag: None };
            assert_eq!(absent(1520), Ok(verdict), "{effect:?}");
            assert!(absent(1400 + 250).is_ok());
            assert!(absent(1400 + 251).is_err(), "after the bound");
            assert!(absent(1490).is_err(), "before its end");
        }
    }

    #[test]
    fn absence_without_an_end_is_a_breach() {
        let absent = |history: &KeyHistory| read(history, Answer::Absent, 1520, 0);
        let (mut history, _) = switched(Effect::Value);
        write(&mut history, Effect::Value, 1410, 1411);
        assert!(absent(&history).is_err(), "it had no end");
        let (mut history, _) = written();
        write(&mut history, EXPIRING, 1000, 1010);
        write(&mut history, Effect::Retime(None), 1390, 1391);
        history.switch(ms(1400));
        assert!(absent(&history).is_err(), "it was persisted before");
        let (mut history, _) = written();
        write(&mut history, EXPIRING, 1000, 1010);
        write(&mut history, Effect::Value, 1410, 1411);
        assert!(absent(&history).is_err(), "no failover");
    }

    #[test]
    fn client_leaves_the_old_primary_once() {
        let (mut history, expiring) = switched(EXPIRING);
        let next = write(&mut history, Effect::Value, 1410, 1411);
        let absent = |seen| read(&history, Answer::Absent, 1520, seen);
        assert!(absent(expiring.version).is_ok());
        assert!(absent(next.version).is_err(), "it has seen the next primary");
    }

    #[test]
    fn straight_read_is_of_the_primary() {
        let (mut history, _) = switched(EXPIRING);
        write(&mut history, Effect::Value, 1410, 1411);
        let demand = Demand::Straight;
        let (began, ended, answer) = (ms(1520), ms(1521), Answer::Absent);
        let read = Read { began, ended, answer, outcome: "straight", demand };
        assert!(judge(&history, &read, 0, |_, _| Duration::ZERO).is_err());
    }

    #[test]
    fn persisted_value_may_follow_expiry() {
        let (mut history, expiring) = switched(EXPIRING);
        write(&mut history, Effect::Retime(None), 1410, 1411);
        let version = read(&history, Answer::Absent, 1520, 0).map(|verdict| verdict.version);
        assert_eq!(version, Ok(expiring.version));
        assert!(read(&history, value(&expiring.text), 1530, expiring.version).is_ok());
    }

    #[test]
    fn foreign_value_is_a_breach() {
        let (history, first) = written();
        let other = first.text.replace("key", "yek");
        let torn = &first.text[..first.text.len() - 1];
        for wrong in [other.as_str(), torn, "", "no version"] {
            assert_eq!(read(&history, value(wrong), 100, 0), Err(Breach::NeverWritten), "{wrong}");
        }
    }

    #[test]
    fn patched_version_is_an_ordinary_value() {
        let (mut history, first) = written();
        let patched = write(&mut history, Effect::Patch, 1000, 1010);
        assert_eq!(patched.text.len(), first.text.len());
        assert!(read(&history, value(&patched.text), 9000, 0).is_ok());
    }

    #[test]
    fn value_read_before_its_write_is_a_breach() {
        let (mut history, _) = written();
        let later = write(&mut history, Effect::Value, 1000, 1010);
        let version = later.version;
        assert_eq!(
            read(&history, value(&later.text), 500, 0),
            Err(Breach::FromTheFuture { version })
        );
    }

    #[test]
    fn stale_value_may_be_old_but_not_invented() {
        let (mut history, first) = written();
        write(&mut history, Effect::Value, 1000, 1010);
        assert!(read_as(STALE, &history, value(&first.text), 9000, 0).is_ok());
        assert_eq!(read_as(STALE, &history, value("made up"), 9000, 0), Err(Breach::NeverWritten));
    }

    #[test]
    fn forgotten_version_is_too_old() {
        let (mut history, first) = written();
        for number in 1..500 {
            write(&mut history, Effect::Value, number * 1000, number * 1000 + 10);
        }
        assert!(history.states().len() < 200, "{} states are kept", history.states().len());
        let (version, lag) = (first.version, MEMORY);
        let too_old = Breach::TooOld { version, lag, bound: Duration::ZERO };
        assert_eq!(read(&history, value(&first.text), 500_000, 0), Err(too_old));
    }
}
