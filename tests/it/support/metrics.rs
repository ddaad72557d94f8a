//! One reading of the proxy's metrics.
//!
//! Model: a map from series to value. A series is its name and its labels, in any order.

use std::collections::HashMap;

pub(crate) struct Metrics {
    text: String,
    values: HashMap<String, f64>,
}

impl Metrics {
    pub(crate) fn parse(text: String) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let values = samples.filter_map(sample).collect();
        Self { text, values }
    }

    /// Returns the value of `name{label="value",...}`, or the sum of the series that have these
    /// labels among others. Nothing if the proxy exports no such series, such as a labelled one
    /// that was never counted.
    pub(crate) fn value(&self, series: &str) -> Option<f64> {
        let canonical = canonical(series);
        if let Some(value) = self.values.get(&canonical) {
            return Some(*value);
        }
        let (name, wanted) = canonical.split_once('{')?;
        let wanted = split_labels(wanted.strip_suffix('}')?);
        let has_them = |series: &str| {
            let Some((other, labels)) = series.split_once('{') else { return false };
            let labels = split_labels(labels.trim_end_matches('}'));
            other == name && wanted.iter().all(|label| labels.contains(label))
        };
        let values = self.values.iter().filter(|(series, _)| has_them(series));
        values.map(|(_, value)| *value).reduce(|sum, value| sum + value)
    }

    /// Returns the exposition as it was served.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

fn sample(line: &str) -> Option<(String, f64)> {
    let (series, rest) = line.split_at(series_end(line)?);
    let value = rest.split_whitespace().next()?;
    Some((canonical(series), value.parse().ok()?))
}

fn series_end(line: &str) -> Option<usize> {
    let labels_end = unquoted(line).find(|&(_, character)| character == '}');
    labels_end.map(|(index, _)| index + 1).or_else(|| line.find(char::is_whitespace))
}

/// Returns the series with its labels in alphabetical order.
fn canonical(series: &str) -> String {
    let Some((name, labels)) = series.trim().split_once('{') else {
        return series.trim().to_owned();
    };
    let labels = labels.strip_suffix('}').unwrap_or(labels);
    let mut labels = split_labels(labels);
    labels.sort_unstable();
    format!("{}{{{}}}", name.trim(), labels.join(","))
}

fn split_labels(labels: &str) -> Vec<&str> {
    let commas = unquoted(labels).filter(|&(_, character)| character == ',');
    let mut parts = Vec::new();
    let mut start = 0;
    for (index, _) in commas {
        parts.push(labels[start..index].trim());
        start = index + 1;
    }
    parts.push(labels[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// Returns the characters outside of label values, with their positions.
fn unquoted(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut quoted, mut escaped) = (false, false);
    text.char_indices().filter(move |&(_, character)| {
        let outside = !quoted;
        if escaped {
            escaped = false;
        } else if character == '\\' {
            escaped = true;
        } else if character == '"' {
            quoted = !quoted;
        }
        outside
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_is_found_in_any_label_order() {
        let text =
            "# HELP reads x\nup 1\nreads{a=\"1\",b=\"two, {2}\"} 3\nodd{q=\"\\\"}\"} +Inf 9\n";
        let metrics = Metrics::parse(text.to_owned());
        assert_eq!(metrics.value("up"), Some(1.0));
        assert_eq!(metrics.value(r#"reads{b="two, {2}", a="1"}"#), Some(3.0));
        assert_eq!(metrics.value(r#"odd{q="\"}"}"#), Some(f64::INFINITY));
        assert_eq!(metrics.value("reads"), None);
    }
}
