//! Whether `XREAD` or `XREADGROUP` may block, by their options as Redis parses them.

/// Whether a command with these arguments, without its name, may wait for other clients to write.
///
/// The group and the consumer are any words, `block` and `streams` among them. Behind `STREAMS` are
/// only keys and IDs. An option of a later version may have any number of arguments, so behind one
/// `BLOCK` counts wherever it is.
pub fn xread_may_block<'a>(mut arguments: impl Iterator<Item = &'a [u8]>) -> bool {
    let is = |word: &[u8], name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    while let Some(option) = arguments.next() {
        let values = match option {
            option if is(option, "block") => return true,
            option if is(option, "streams") => return false,
            option if is(option, "group") => 2,
            option if is(option, "count") => 1,
            option if is(option, "noack") => 0,
            _ => return arguments.any(|word| is(word, "block")),
        };
        arguments.by_ref().take(values).for_each(drop);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_option_blocks() {
        for (line, expected) in [
            ("STREAMS s 0", false),
            ("STREAMS block 0", false),
            ("COUNT block STREAMS s 0", false),
            ("BLOCK 0 STREAMS s 0", true),
            ("count 1 block 0 streams s 0", true),
            ("GROUP streams c BLOCK 0 STREAMS s >", true),
            ("GROUP g streams BLOCK 0 STREAMS s >", true),
            ("GROUP streams streams COUNT 1 NOACK BLOCK 0 STREAMS s >", true),
            ("GROUP block block STREAMS s >", false),
            ("GROUP block block NOACK STREAMS block >", false),
            ("LATER 1 2 STREAMS s 0", false),
            ("LATER streams BLOCK 0 STREAMS s 0", true),
            ("GROUP g", false),
            ("GROUP", false),
            ("", false),
        ] {
            let words = line.split_whitespace().map(str::as_bytes);
            assert_eq!(xread_may_block(words), expected, "{line}");
        }
    }
}
