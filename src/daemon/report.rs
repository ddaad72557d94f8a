//! `redis-proxy report`: the reads by rule, as text.

use std::fmt::Write as _;

use serde_json::Value;

/// Renders the JSON of `/report` as a table. `None` if it is no such JSON.
pub fn render(report: &str) -> Option<String> {
    let report: Value = serde_json::from_str(report).ok()?;
    let rules = report["rules"].as_array()?;
    let row = |rule: &Value| {
        let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| rule[key].as_u64().unwrap_or(0);
        let (reads, spared) = (number("reads"), number("spared"));
        let share = match (spared * 1000).checked_div(reads) {
            Some(permille) => format!("{}.{} %", permille / 10, permille % 10),
            None => "-".to_owned(),
        };
        let would_hit = number("would_hit").to_string();
        [text("keys"), text("mode"), reads.to_string(), spared.to_string(), share, would_hit]
    };
    let head = ["KEYS", "MODE", "READS", "SPARED", "SHARE", "WOULD HIT"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(rules.iter().map(row));
    rows.push(row(&report["others"]));
    let widths: [usize; 6] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    let mut table = String::new();
    for [keys, mode, numbers @ ..] in &rows {
        let [first, second, others @ ..] = widths;
        _ = write!(table, "{keys:first$}  {mode:second$}");
        for (number, width) in numbers.iter().zip(others) {
            _ = write!(table, "  {number:>width$}");
        }
        table.push('\n');
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_a_table() {
        let report = r#"{
            "rules": [
                {
                    "keys": "session:*", "mode": "observe",
                    "reads": 1000, "spared": 812, "would_hit": 800
                },
                {"keys": "a*", "mode": "off", "reads": 0, "spared": 0, "would_hit": 0}
            ],
            "others": {"keys": "others", "mode": "cache", "reads": 3, "spared": 2, "would_hit": 0}
        }"#;
        let expected = [
            "KEYS       MODE     READS  SPARED   SHARE  WOULD HIT",
            "session:*  observe   1000     812  81.2 %        800",
            "a*         off          0       0       -          0",
            "others     cache        3       2  66.6 %          0",
            "",
        ];
        assert_eq!(render(report), Some(expected.join("\n")));
        assert_eq!(render("{}"), None);
        assert_eq!(render("not ready"), None);
    }
}
