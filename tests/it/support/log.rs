//! The growing log of the proxy.
//!
//! Model: a thread reads lines from the process into one list, which only grows. Tests look at the
//! list and wait for it to grow. A line is one JSON object with flat fields, or else plain text,
//! with level and fields in the text format.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const LEVELS: [&str; 5] = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];

#[derive(Clone, Debug)]
pub(crate) struct LogLine {
    text: String,
    fields: Option<Value>,
}

impl LogLine {
    fn new(text: String) -> Self {
        let fields = serde_json::from_str(&text).ok().filter(Value::is_object);
        Self { text, fields }
    }

    /// Returns the line as it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the name of the level, empty on a line without one.
    pub(crate) fn level(&self) -> &str {
        if let Some(fields) = &self.fields {
            return fields["level"].as_str().unwrap_or_default();
        }
        // The text format begins with the time and the level; later words are the message.
        let mut start = self.text.split_whitespace().take(2);
        start.find(|word| LEVELS.contains(word)).unwrap_or_default()
    }

    /// Whether this is the line of that message.
    pub(crate) fn has_message(&self, message: &str) -> bool {
        match &self.fields {
            Some(fields) => fields["message"] == message,
            None => self.text.contains(message),
        }
    }

    /// Returns a field as text: the content of a JSON string, or any other JSON.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let Some(fields) = &self.fields else {
            return self.plain_field(name);
        };
        let value = fields.get(name)?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    /// Whether the line is a warning or an error.
    pub(crate) fn is_trouble(&self) -> bool {
        matches!(self.level(), "WARN" | "ERROR")
    }

    fn plain_field(&self, name: &str) -> Option<String> {
        let mut words = self.text.split_whitespace();
        let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches('"').to_owned())
    }
}

/// The lines of one process so far.
#[derive(Default)]
pub(crate) struct Log {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<LogLine>,
    ended: bool,
}

impl Log {
    /// Reads `source` to its end.
    pub(crate) fn follow(source: impl Read + Send + 'static) -> Arc<Self> {
        let log = Arc::new(Self::default());
        let writer = Arc::clone(&log);
        thread::spawn(move || writer.read(source));
        log
    }

    /// Returns the first result of `find` over all lines so far. Returns nothing when the time is
    /// over or the log has ended without one.
    pub(crate) fn wait<T>(
        &self,
        limit: Duration,
        mut find: impl FnMut(&[LogLine]) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        loop {
            let found = find(&state.lines);
            let left = deadline.saturating_duration_since(Instant::now());
            if found.is_some() || state.ended || left.is_zero() {
                return found;
            }
            let woken = self.grown.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the last line, which the process has written by its end.
    pub(crate) fn wait_for_end(&self, limit: Duration) {
        self.wait(limit, |_| None::<()>);
    }

    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.state().lines.clone()
    }

    pub(crate) fn length(&self) -> usize {
        self.state().lines.len()
    }

    /// Returns the whole log, for the message of a failure.
    pub(crate) fn text(&self) -> String {
        let state = self.state();
        let lines: Vec<&str> = state.lines.iter().map(LogLine::text).collect();
        lines.join("\n")
    }

    fn read(&self, source: impl Read) {
        for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
            let line = LogLine::new(String::from_utf8_lossy(&line).into_owned());
            self.state().lines.push(line);
            self.grown.notify_all();
        }
        self.state().ended = true;
        self.grown.notify_all();
    }

    /// Recovers the list after a panic in the predicate of a test, which harms no line.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_text_lines_parse_alike() {
        let json = r#"{"level":"WARN","message":"slow","front_end":"http","millis":12}"#;
        let text = r#"2026-01-02T03:04:05Z  WARN proxy: slow front_end="http" millis=12"#;
        for line in [json, text].map(|line| LogLine::new(line.to_owned())) {
            assert_eq!((line.level(), line.is_trouble()), ("WARN", true));
            assert!(line.has_message("slow") && !line.has_message("fast"));
            assert_eq!(line.field("front_end").as_deref(), Some("http"));
            assert_eq!(line.field("millis").as_deref(), Some("12"));
            assert_eq!(line.field("absent"), None);
        }
    }

    #[test]
    fn level_word_in_the_message_is_no_level() {
        let line = LogLine::new("error: unknown level WARN".to_owned());
        assert_eq!(line.level(), "");
    }
}
