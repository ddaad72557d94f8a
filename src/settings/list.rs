//! Lists written as one text, as in environment variables and `--set`: words separated by commas.

/// The error for a text that is no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("found {problem}, expected a list in the form a,b")]
pub struct InvalidList {
    /// The fault in the text.
    pub problem: &'static str,
}

/// Returns the words of a list, without the blanks around them. An empty text is an empty list.
///
/// # Errors
/// [`InvalidList`] if a word is empty or the list has brackets as in TOML. Otherwise a comma too
/// many would be a word of some lists, and the brackets would belong to the words.
pub fn list_words(text: &str) -> Result<Vec<&str>, InvalidList> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.starts_with('[') && text.ends_with(']') {
        return Err(InvalidList { problem: "brackets" });
    }
    let words: Vec<_> = text.split(',').map(str::trim).collect();
    if words.contains(&"") {
        return Err(InvalidList { problem: "a comma too many" });
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_has_words_between_commas() {
        assert_eq!(list_words(" "), Ok(vec![]));
        assert_eq!(list_words("a"), Ok(vec!["a"]));
        assert_eq!(list_words(" a , b "), Ok(vec!["a", "b"]));
        for text in [",", "a,", ",a", "a,,b", "a, ,b", "[]", "[\"a\",\"b\"]", " [a] "] {
            assert!(list_words(text).is_err(), "{text}");
        }
    }
}
