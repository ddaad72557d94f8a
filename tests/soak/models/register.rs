//! The truth of one key: what Redis holds after each change.
//!
//! Model: a register with a value or none, and the change that set its end, if it has one. The end
//! is a change of its own. It removes the value only if no later change came first. Changes have
//! numbers, in the order in which they were sent.
//!
//! The rule: an end follows the change that set it.

/// A state of the register.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Register {
    pub(crate) value: Option<u32>,
    /// The number of the change that set the end of the value; zero: it has none.
    end: u32,
    /// The highest number so far.
    latest: u32,
}

/// A change of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Change {
    Put {
        number: u32,
        value: u32,
        ends: bool,
    },
    Remove {
        number: u32,
    },
    /// Another end, or none, for the value that is there. `found`: whether there was one.
    Retime {
        number: u32,
        ends: bool,
        found: Option<bool>,
    },
    /// The end that the change `of` has set.
    End {
        of: u32,
    },
}

impl Register {
    /// Returns the state after a change, or nothing if the change cannot come now.
    pub(crate) fn after(&self, change: Change) -> Option<Self> {
        let Self { value, end, latest } = *self;
        let next = |number: u32, value, end| Self { value, end, latest: latest.max(number) };
        let end_of = |number, ends| if ends { number } else { 0 };
        match change {
            Change::Put { number, value, ends } => {
                Some(next(number, Some(value), end_of(number, ends)))
            }
            Change::Retime { found: Some(found), .. } if found != value.is_some() => None,
            Change::Retime { number, ends, .. } if value.is_some() => {
                Some(next(number, value, end_of(number, ends)))
            }
            Change::Remove { number } | Change::Retime { number, .. } => {
                Some(next(number, None, 0))
            }
            Change::End { of } if latest < of => None,
            Change::End { of } if end == of => Some(Self { value: None, end: 0, latest }),
            Change::End { .. } => Some(self.clone()),
        }
    }

    /// Returns the state after the end that a change has set, if it is one and is set here.
    pub(crate) fn ended_by(&self, change: Change) -> Self {
        let end = self.after(change).filter(|_| matches!(change, Change::End { .. }));
        end.unwrap_or_else(|| self.clone())
    }

    /// Returns the state after a change that is sent and never comes here.
    pub(crate) fn without(&self, change: Change) -> Self {
        let number = match change {
            Change::Put { number, .. }
            | Change::Remove { number }
            | Change::Retime { number, .. } => number,
            Change::End { of } => of,
        };
        Self { latest: self.latest.max(number), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABSENT: Option<&str> = Some("absent");

    /// Returns the value after these changes, if they can come in this order.
    fn run(changes: &[Change]) -> Option<&'static str> {
        let after = |state: Register, change: &Change| state.after(*change);
        let state = changes.iter().try_fold(Register::default(), after)?;
        Some(match state.value {
            None => "absent",
            Some(11) => "first",
            Some(_) => "second",
        })
    }

    #[test]
    fn end_removes_only_its_own_value() {
        let put = |number, ends| Change::Put { number, value: number + 10, ends };
        let end = Change::End { of: 1 };
        assert_eq!(run(&[put(1, true), end]), ABSENT);
        assert_eq!(run(&[put(1, true), put(2, false), end]), Some("second"));
        assert_eq!(run(&[end, put(1, true)]), None, "an end before its change");
    }

    #[test]
    fn another_end_replaces_the_first() {
        let put = Change::Put { number: 1, value: 11, ends: true };
        let retime = |ends, found| Change::Retime { number: 2, ends, found: Some(found) };
        let end = |of| Change::End { of };
        assert_eq!(run(&[put, retime(false, true), end(1)]), Some("first"));
        assert_eq!(run(&[put, retime(true, true), end(1), end(2)]), ABSENT);
        assert_eq!(run(&[put, end(1), retime(true, false), end(2)]), ABSENT);
        assert_eq!(run(&[put, retime(true, false)]), None, "there was a value");
        assert_eq!(run(&[put, end(1), retime(true, true)]), None, "there was none");
    }
}
