//! The decision about one check. It is a pure function, so its rules are tested as a table.

use crate::metrics::Verified;
use crate::upstream::{Comparison, Observations};

/// Returns the result of a check.
///
/// An answer is stale only if nothing else explains the difference: the same connection was up and
/// current throughout, no push has removed the answer, and its key was not about to end.
pub(super) fn verdict(observations: Observations) -> Verified {
    let Observations { reply, is_covered, is_unchanged, has_ended } = observations;
    if !is_covered {
        return Verified::Unknown;
    }
    match reply {
        _ if !is_unchanged => Verified::Changed,
        Comparison::None => Verified::Unknown,
        Comparison::Equal => Verified::Equal,
        Comparison::Differs if has_ended => Verified::Changed,
        Comparison::Differs => Verified::Stale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A difference that nothing explains.
    const STALE: Observations = Observations {
        reply: Comparison::Differs,
        is_covered: true,
        is_unchanged: true,
        has_ended: false,
    };

    #[test]
    fn stale_is_what_nothing_explains() {
        let equal = Observations { reply: Comparison::Equal, ..STALE };
        let none = Observations { reply: Comparison::None, ..STALE };
        for (observations, expected) in [
            (STALE, Verified::Stale),
            (Observations { is_covered: false, ..STALE }, Verified::Unknown),
            (Observations { is_unchanged: false, ..STALE }, Verified::Changed),
            (Observations { has_ended: true, ..STALE }, Verified::Changed),
            (equal, Verified::Equal),
            (Observations { has_ended: true, ..equal }, Verified::Equal),
            (Observations { is_unchanged: false, ..equal }, Verified::Changed),
            (Observations { is_covered: false, ..equal }, Verified::Unknown),
            (none, Verified::Unknown),
            (Observations { is_unchanged: false, ..none }, Verified::Changed),
        ] {
            assert_eq!(verdict(observations), expected, "{observations:?}");
        }
    }
}
