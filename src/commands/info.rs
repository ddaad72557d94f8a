//! `INFO`: which of its replies have the proxy's own section.

use crate::protocol::{Arguments, is_one_of};

/// The name of the section.
const OWN: &str = "redis_proxy";
/// The sections of Redis that stand for several, to which the proxy's own belongs.
const OF_SEVERAL: [&str; 3] = ["default", "all", "everything"];

/// Whether an `INFO` of so many words, of which `section` is the second, is `INFO redis_proxy`. It
/// shows no data of Redis.
pub fn is_own_info(words: usize, section: &[u8]) -> bool {
    words == 2 && is_one_of(section, &[OWN])
}

/// Whether the reply to `INFO` has the proxy's own section. `is_in_all`: it belongs to the replies
/// with several sections, too.
pub(super) fn has_own_section(arguments: Arguments<'_>, is_in_all: bool) -> bool {
    let mut sections = arguments.skip(1).peekable();
    let is_default = sections.peek().is_none();
    let is_named = |section: &[u8]| {
        is_one_of(section, &[OWN]) || (is_in_all && is_one_of(section, &OF_SEVERAL))
    };
    (is_default && is_in_all) || sections.any(is_named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::tests::parsed;

    #[test]
    fn section_is_in_the_replies_that_name_it_or_all() {
        for (line, is_own, has_section, has_section_in_all) in [
            ("INFO", false, false, true),
            ("INFO redis_proxy", true, true, true),
            ("info Redis_Proxy", true, true, true),
            ("INFO server redis_proxy", false, true, true),
            ("INFO everything", false, false, true),
            ("INFO all", false, false, true),
            ("INFO default", false, false, true),
            ("INFO server", false, false, false),
        ] {
            let (input, parser) = parsed(line);
            let arguments = parser.arguments(&input);
            assert_eq!(is_own_info(arguments.len(), arguments.get(1)), is_own, "{line}");
            assert_eq!(has_own_section(arguments, false), has_section, "{line}");
            assert_eq!(has_own_section(arguments, true), has_section_in_all, "{line}");
        }
    }
}
