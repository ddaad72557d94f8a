//! The cached values that a client's command makes untrue, where Redis does not push the change.

use super::table::Class;
use crate::key::Key;
use crate::protocol::Arguments;

/// Keys to invalidate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Invalidations {
    /// No key.
    #[default]
    None,
    /// These keys.
    Keys(Vec<Key>),
    /// Every key.
    All,
}

/// The most keys that are remembered, and the most bytes of them. Beyond that everything is
/// invalidated.
const MAX_KEYS: usize = 4096;
const MAX_BYTES: usize = 1 << 20;

impl Invalidations {
    fn from_keys(keys: impl Iterator<Item = Key>) -> Self {
        let keys: Vec<_> = keys.take(MAX_KEYS + 1).collect();
        let mut invalidations = Self::Keys(Vec::new());
        invalidations.add(Self::Keys(keys));
        invalidations
    }

    /// Adds the keys of another command.
    pub fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (_, Self::None) | (Self::All, _) => {}
            (Self::Keys(keys), Self::Keys(more)) if keys.len() + more.len() <= MAX_KEYS => {
                keys.extend(more);
                if keys.iter().map(Key::len).sum::<usize>() > MAX_BYTES {
                    *self = Self::All;
                }
            }
            (Self::None, other) => *self = other,
            _ => *self = Self::All,
        }
    }
}

/// Returns the keys that a command invalidates: each of its arguments that may be a key.
///
/// `is_tracked`: Redis pushes changes, so only `SWAPDB` counts, because Redis pushes nothing for
/// it. `max_key`: the length in bytes of the longest key that is cached.
pub fn invalidations(
    class: Class,
    arguments: Arguments<'_>,
    is_tracked: bool,
    max_key: usize,
) -> Invalidations {
    let may_be_key = |word: &&[u8]| word.len() <= max_key;
    let may_write = match class {
        Class::MayWrite | Class::Blocking | Class::Xread => true,
        Class::Kept(command) => command.may_write(),
        _ => false,
    };
    match class {
        Class::Swapdb => Invalidations::All,
        Class::FlushAll if !is_tracked => Invalidations::All,
        _ if may_write && !is_tracked => {
            Invalidations::from_keys(arguments.skip(1).filter(may_be_key).map(Key::from))
        }
        _ => Invalidations::None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::CommandTable;
    use super::*;
    use crate::protocol::tests::parsed;

    fn keys(names: &[&str]) -> Invalidations {
        Invalidations::Keys(names.iter().map(|name| Key::from(name.as_bytes())).collect())
    }

    #[test]
    fn only_commands_that_may_write_invalidate_keys() {
        for (line, expected) in [
            ("SET a b", keys(&["a", "b"])),
            ("PFCOUNT a", keys(&["a"])),
            ("HGET a b", Invalidations::None),
            ("TTL a", Invalidations::None),
            ("FLUSHALL", Invalidations::All),
        ] {
            let (input, parser) = parsed(line);
            let arguments = parser.arguments(&input);
            let class = CommandTable::new().find(arguments.get(0)).class;
            assert_eq!(invalidations(class, arguments, false, 10), expected, "{line}");
            assert_eq!(invalidations(class, arguments, true, 10), Invalidations::None, "{line}");
        }
    }

    #[test]
    fn keys_add_up_until_everything_is_shorter() {
        let mut sum = Invalidations::None;
        sum.add(keys(&["a"]));
        sum.add(Invalidations::None);
        sum.add(keys(&["b", "c"]));
        assert_eq!(sum, keys(&["a", "b", "c"]));
        sum.add(Invalidations::All);
        sum.add(keys(&["d"]));
        assert_eq!(sum, Invalidations::All);
        let long = "x".repeat(MAX_BYTES / 2);
        let mut sum = keys(&[&long]);
        sum.add(keys(&[&long, "y"]));
        assert_eq!(sum, Invalidations::All);
        let many = (0..=MAX_KEYS).map(|number| Key::from(number.to_string().as_bytes()));
        assert_eq!(Invalidations::from_keys(many), Invalidations::All);
    }
}
