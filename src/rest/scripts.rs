//! Scripts with a flag that only Upstash's server knows: `#!lua flags=allow-key-locking`.
//!
//! Redis refuses a script with an unknown flag. `@upstash/ratelimit` begins each of its scripts
//! with this one, which allows their server to lock keys and changes no result. So the flag is left
//! out before a script goes to Redis, where it then has another digest. The digests are remembered,
//! so that `EVALSHA` with the digest of the client finds the script.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Mutex;

use redis::Script;

use super::request::Words;
use crate::sync::lock;

/// The most digests that are remembered.
const MAX_DIGESTS: usize = 1024;
/// The flag.
const FLAG: &str = "allow-key-locking";

/// The digests of scripts at Redis, by those that clients know.
#[derive(Default)]
pub(super) struct Scripts(Mutex<HashMap<String, String>>);

impl Scripts {
    /// Returns the word of a command that is sent in the place of another, and its index.
    pub(super) fn replacement<'a>(&self, command: Words<'a>) -> Option<(usize, Cow<'a, [u8]>)> {
        let is = |name: &str| command.get(0).eq_ignore_ascii_case(name.as_bytes());
        if is("evalsha") || is("evalsha_ro") {
            let digest = std::str::from_utf8(command.get(1)).ok()?.to_ascii_lowercase();
            let known = lock(&self.0).get(&digest).cloned()?;
            return Some((1, Cow::Owned(known.into_bytes())));
        }
        let index = if is("eval") || is("eval_ro") {
            1
        } else if is("script") && command.get(1).eq_ignore_ascii_case(b"load") {
            2
        } else {
            return None;
        };
        let script = std::str::from_utf8(command.get(index)).ok()?;
        let changed = without_flag(script)?;
        self.remember(script, &changed);
        Some((index, Cow::Owned(changed.into_bytes())))
    }

    fn remember(&self, script: &str, changed: &str) {
        let digest = |script| Script::new(script).get_hash().to_owned();
        let (own, sent) = (digest(script), digest(changed));
        let mut digests = lock(&self.0);
        if digests.len() >= MAX_DIGESTS && !digests.contains_key(&own) {
            // A client whose digest is forgotten sends its script again.
            digests.clear();
        }
        digests.insert(own, sent);
    }
}

/// Returns the script without the flag, if its first line has it.
fn without_flag(script: &str) -> Option<String> {
    let (line, rest) = script.split_at(script.find('\n').unwrap_or(script.len()));
    if !line.starts_with("#!lua") || !line.contains(FLAG) {
        return None;
    }
    let words = line.split(' ').filter_map(|word| match word.trim_end().strip_prefix("flags=") {
        None => Some(Cow::Borrowed(word)),
        Some(flags) => {
            let left: Vec<_> = flags.split(',').filter(|flag| *flag != FLAG).collect();
            (!left.is_empty()).then(|| Cow::Owned(format!("flags={}", left.join(","))))
        }
    });
    Some(words.collect::<Vec<_>>().join(" ") + rest)
}

#[cfg(test)]
mod tests {
    use super::super::request::Commands;
    use super::*;

    #[test]
    fn only_the_flag_is_left_out() {
        for (script, expected) in [
            ("#!lua flags=allow-key-locking\n  return 1", Some("#!lua\n  return 1")),
            ("#!lua flags=no-writes,allow-key-locking\nx", Some("#!lua flags=no-writes\nx")),
            ("#!lua name=x flags=allow-key-locking\r\nx", Some("#!lua name=x\nx")),
            ("#!lua flags=allow-key-locking", Some("#!lua")),
            ("#!lua flags=no-writes\nx", None),
            ("return 1", None),
            ("\n#!lua flags=allow-key-locking\nx", None),
            ("#!lua\n-- flags=allow-key-locking", None),
        ] {
            assert_eq!(without_flag(script).as_deref(), expected, "{script:?}");
        }
    }

    #[test]
    fn digest_of_the_client_finds_the_script() {
        let scripts = Scripts::default();
        let script = "#!lua flags=allow-key-locking\nreturn 1";
        let digest = Script::new(script).get_hash().to_owned();
        let replaced = |words: &[&str]| {
            let commands = Commands::of(&[words]);
            let replaced = commands.iter().next().and_then(|one| scripts.replacement(one));
            replaced.map(|(index, word)| (index, String::from_utf8(word.into_owned()).unwrap()))
        };
        assert_eq!(replaced(&["EVALSHA", &digest, "0"]), None);
        assert_eq!(replaced(&["eval", script, "0"]), Some((1, "#!lua\nreturn 1".into())));
        let sent = Script::new("#!lua\nreturn 1").get_hash().to_owned();
        assert_eq!(replaced(&["EVALSHA", &digest.to_uppercase(), "0"]), Some((1, sent)));
        assert_eq!(replaced(&["SCRIPT", "LOAD", script]), Some((2, "#!lua\nreturn 1".into())));
        assert_eq!(replaced(&["SET", script, script]), None);
        for number in 0..MAX_DIGESTS {
            scripts.remember(&number.to_string(), "x");
        }
        assert!(lock(&scripts.0).len() <= MAX_DIGESTS);
    }
}
