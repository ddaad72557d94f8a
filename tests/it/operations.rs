//! Dashboard, alerts, runbook and metric documentation.
//!
//! Promise: they name only existing metrics, and docs/metrics.md names all of them.
//!
//! A named metric is a name and, in braces, labels with or without a value; job and instance belong
//! to Prometheus.

#![expect(
    clippy::expect_used,
    reason = "a test that panics has failed, which is what it should do"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::prometheus::Prometheus;
use crate::support::resp_client::RespClient;
use crate::support::secret_file::SecretFile;
use crate::support::serving::{proxy, read, set, value};
use crate::support::skip::skipped_without;
use crate::support::{Proxy, RedisServer, Signal, within};

/// The labels of one series, or of a query; without a value where any value matches.
type Labels = BTreeMap<String, Option<String>>;

const OF_PROMETHEUS: [&str; 3] = ["job", "instance", "le"];
const DASHBOARD: &str = "dashboards/redis-proxy.json";
const ALERTS: &str = "dashboards/alerts.yml";
const PROJECT: &str = "https://github.com/redis-proxy/redis-proxy/blob/main/";
const RUNBOOK: &str = "docs/src/operations/runbook.md";

#[test]
fn every_named_metric_has_its_labels() {
    let received = exposed_series();
    for (file, least) in
        [(ALERTS, 10), ("README.md", 4), (RUNBOOK, 4), ("docs/src/operations/metrics.md", 30)]
    {
        let named = named(&abbreviations_in_full(&read_file(file)));
        assert!(named.len() >= least, "{file} names only {named:?}");
        for (name, labels) in &named {
            assert_told(&received, file, name, labels);
        }
    }
    for query in queries() {
        let named = named(&query.expression);
        let up = query.expression.contains("up{job=");
        assert!(!named.is_empty() || up, "{}: {}", query.panel, query.expression);
        for (name, labels) in &named {
            assert_told(&received, &query.panel, name, labels);
        }
        let known: BTreeSet<_> =
            named.iter().flat_map(|(name, _)| labels_of(&received, name)).collect();
        for label in grouped_by(&query.expression).chain(placeholders(&query.legend)) {
            let known = known.contains(&label) || OF_PROMETHEUS.contains(&label.as_str());
            assert!(known, "{}: {label} is no label of {}", query.panel, query.expression);
        }
    }
}

#[test]
fn metrics_and_their_documentation_agree() {
    let received = families(&exposition());
    let documented = documented_families();
    assert!(documented.len() > 30, "{}", documented.len());
    let is_told_here = |name: &&String| !OF_CLUSTERS.contains(&name.as_str());
    for name in received.keys().chain(documented.keys()).filter(is_told_here) {
        assert_eq!(received.get(name), documented.get(name), "{name}, exposed and documented");
    }
}

/// Metrics whose series appear when they first count, which takes a cluster.
const OF_CLUSTERS: [&str; 1] = ["redis_proxy_redirects_total"];

/// A metric: its type, and its labels with their values; "any" for a label with a single value
/// unknown to the test.
type Family = (String, BTreeMap<String, BTreeSet<String>>);

/// Returns the metrics of an exposition by name.
fn families(exposition: &str) -> BTreeMap<String, Family> {
    let types = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut families: BTreeMap<_, Family> =
        types.map(|(name, kind)| (name.to_owned(), (kind.to_owned(), BTreeMap::new()))).collect();
    for (name, labels) in exposition.lines().filter(|line| !line.starts_with('#')).flat_map(named) {
        let of_histogram =
            ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let name =
            of_histogram.filter(|name| families.contains_key(*name)).unwrap_or(&name).to_owned();
        let (_, known) = families.get_mut(&name).expect("a metric with a type");
        for (label, value) in
            labels.into_iter().filter(|(label, _)| !OF_PROMETHEUS.contains(&label.as_str()))
        {
            let value = if ["version", "revision", "command", "role", "node", "rule"]
                .contains(&label.as_str())
            {
                "any".to_owned()
            } else {
                value.expect("a value")
            };
            known.entry(label).or_default().insert(value);
        }
    }
    families
}

/// Returns the metrics in the tables of docs/src/operations/metrics.md: name, type, and labels as
/// `` `label`: `value`, `value`; `label`: any ``.
fn documented_families() -> BTreeMap<String, Family> {
    let page = read_file("docs/src/operations/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let family = |row: &str| {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        assert_eq!(cells.len(), 7, "five columns, not: {row}");
        let [name, kind, labels, meaning] = [1, 2, 3, 4].map(|column| &cells[column]);
        assert!(!meaning.is_empty(), "{name} has no meaning");
        let labels = labels.split(';').filter_map(|label| label.split_once(':'));
        let values =
            |values: &str| values.split(',').map(|value| value.trim().to_owned()).collect();
        let labels = labels.map(|(label, of)| (label.trim().to_owned(), values(of))).collect();
        (name.clone(), (kind.clone(), labels))
    };
    rows.map(family).collect()
}

#[test]
fn every_panel_is_described_and_uses_variables() {
    let panels = panels();
    assert!(panels.len() > 20, "{}", panels.len());
    for panel in panels {
        let title = text(&panel, "/title");
        for place in ["/description", "/fieldConfig/defaults/unit"] {
            assert!(!text(&panel, place).is_empty(), "{title} has no {place}");
        }
        let thresholds =
            panel.pointer("/fieldConfig/defaults/thresholds/steps").and_then(Value::as_array);
        assert!(thresholds.is_some_and(|steps| !steps.is_empty()), "{title} has no thresholds");
    }
    for Query { panel, expression, .. } in queries() {
        let selectors = expression.matches('{').count();
        let following = expression.matches(r#"{job=~"$job",instance=~"$instance""#).count();
        assert!(selectors > 0 && selectors == following, "{panel}: {expression}");
    }
}

#[test]
fn dashboard_can_be_imported_anywhere() {
    let dashboard: Value = serde_json::from_str(&read_file(DASHBOARD)).expect("JSON");
    assert_eq!(text(&dashboard, "/__inputs/0/name"), "DS_PROMETHEUS");
    let variable = "/templating/list/0";
    assert_eq!(text(&dashboard, &format!("{variable}/type")), "datasource");
    assert_eq!(text(&dashboard, &format!("{variable}/current/value")), "${DS_PROMETHEUS}");
    let body = dashboard.to_string();
    assert_eq!(
        body.matches(r#""uid":"${datasource}""#).count(),
        body.matches(r#""datasource":{"#).count()
    );
    // Rows have their panels behind them, and fold.
    let all = dashboard["panels"].as_array().expect("panels");
    let rows: Vec<_> = all.iter().filter(|panel| text(panel, "/type") == "row").collect();
    assert!(rows.len() > 4 && text(&all[0], "/type") == "row", "{rows:?}");
    let mut places: Vec<_> = Vec::new();
    for panel in all {
        let side = |name| panel["gridPos"][name].as_u64().expect("a place");
        let (x, y, w, h) = (side("x"), side("y"), side("w"), side("h"));
        for (other_x, other_y, other_w, other_h) in &places {
            let is_apart = x >= other_x + other_w || *other_x >= x + w || y >= other_y + other_h;
            assert!(is_apart, "{} overlaps", text(panel, "/title"));
        }
        places.push((x, y, w, h));
    }
}

#[test]
fn every_alert_is_described_tested_and_in_runbook() {
    let (alerts, runbook, tests) =
        (read_file(ALERTS), read_file(RUNBOOK), read_file("dashboards/alerts.test.yml"));
    let sections: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let rules: Vec<_> = alerts.split("- alert: ").skip(1).collect();
    let names: Vec<_> = rules.iter().map(|rule| rule.lines().next().expect("a name")).collect();
    assert_eq!(names, sections, "the runbook has the alerts in their order");
    for (name, rule) in names.iter().zip(&rules) {
        for annotation in ["summary: \"", "description: \""] {
            assert!(rule.contains(annotation), "{name} has no {annotation}");
        }
        // The anchor of a heading in the rendered file.
        let anchor = format!("runbook_url: {PROJECT}{RUNBOOK}#{}\n", name.to_lowercase());
        assert!(format!("{rule}\n").contains(&anchor), "{name}: not {anchor}");
        let trials: Vec<_> =
            tests.split("alertname: ").skip(1).filter(|trial| trial.starts_with(name)).collect();
        for (fires, expected) in [(true, "exp_labels:"), (false, "exp_alerts: []")] {
            let next =
                |trial: &&str| trial.lines().skip(1).take(2).any(|line| line.contains(expected));
            assert!(trials.iter().any(next), "{name}: no trial where it fires = {fires}");
        }
    }
}

#[test]
fn promtool_accepts_config_and_alert_tests() {
    for arguments in [
        ["check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"].as_slice(),
        &["check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"],
        &["test", "rules", "alerts.test.yml"],
    ] {
        match Command::new("promtool").args(arguments).current_dir(path("dashboards")).output() {
            Ok(output) => assert!(output.status.success(), "{arguments:?}: {output:?}"),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return skipped_without("promtool", "it is part of Debian's package prometheus");
            }
            Err(error) => panic!("promtool does not start: {error}"),
        }
    }
}

/// Sends fetches and hits of known and unknown keys, a change, and a reload.
fn mixed_load(redis: &RedisServer, proxy: &Proxy, round: u32) {
    set(redis, "key", &round.to_string());
    // Such a read fails.
    redis.command(&["HSET", "hash", "field", "value"]);
    assert_eq!(read(proxy, "hash").status, 409);
    for _ in 0..3 {
        value(proxy, "key");
        assert_eq!(read(proxy, &format!("nothing-{round}")).status, 404);
    }
    RespClient::connect(proxy.resp_address()).reply_to_words(&["PING"]);
    proxy.signal(Signal::HUP);
}

/// Returns the metrics of the alerts, each with its labels, as queries.
fn watched() -> BTreeSet<String> {
    let alerts = read_file(ALERTS);
    let expressions =
        alerts.split("- alert: ").skip(1).filter_map(|rule| rule.split("labels: {").next());
    let selector = |(name, labels): (String, Labels)| {
        let matchers = labels
            .iter()
            .filter_map(|(label, value)| Some(format!("{label}=\"{}\"", value.as_ref()?)));
        format!("{name}{{{}}}", matchers.collect::<Vec<_>>().join(","))
    };
    expressions.flat_map(named).map(selector).collect()
}

#[test]
fn panels_and_alerts_have_data_in_prometheus() {
    let redis = RedisServer::start();
    let tokens = SecretFile::new("token\n");
    let proxy = with_all_measurements(&redis, &tokens);
    let Some(prometheus) = Prometheus::start(proxy.admin()) else { return };
    let filled_in = |query: Query| {
        let of_all = query.expression.replace("$job", ".*").replace("$instance", ".*");
        of_all.replace("$__rate_interval", "10s").replace("$__range", "15s")
    };
    let (panels, watched) = (queries(), watched());
    assert!(panels.len() > 40 && watched.len() > 10, "{} {watched:?}", panels.len());
    // An alert has no data while the system is healthy, but its metrics have.
    let mut silent: Vec<_> = panels.into_iter().map(filled_in).chain(watched).collect();
    let mut round = 0;
    within(Duration::from_mins(1), || {
        round += 1;
        mixed_load(&redis, &proxy, round);
        silent.retain(|expression| prometheus.query(expression).is_empty());
        silent.is_empty().then_some(())
    });
    assert!(silent.is_empty(), "without data: {silent:#?}");
    // On a busy machine a late scrape leaves the proxy absent for a moment.
    let mut alerts = Vec::new();
    within(Duration::from_mins(1), || {
        alerts = prometheus.alerts();
        alerts.iter().all(|(_, _, state)| state == "inactive").then_some(())
    });
    assert_eq!(alerts.len(), 14, "{alerts:?}");
    for (name, health, state) in alerts {
        assert_eq!((health.as_str(), state.as_str()), ("ok", "inactive"), "{name}");
    }
}

/// One query of the dashboard.
struct Query {
    panel: String,
    expression: String,
    legend: String,
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn read_file(file: &str) -> String {
    fs::read_to_string(path(file)).expect(file)
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Returns the panels of the dashboard without its headings.
fn panels() -> Vec<Value> {
    let dashboard: Value =
        serde_json::from_str(&read_file(DASHBOARD)).expect("a dashboard in JSON");
    let mut panels = dashboard.get("panels").and_then(Value::as_array).expect("panels").clone();
    panels.retain(|panel| text(panel, "/type") != "row");
    panels
}

fn queries() -> Vec<Query> {
    let of = |panel: &Value| {
        let targets =
            panel.get("targets").and_then(Value::as_array).expect("a panel with queries").clone();
        let panel = format!("panel {:?}", text(panel, "/title"));
        targets.into_iter().map(move |target| Query {
            panel: panel.clone(),
            expression: text(&target, "/expr"),
            legend: text(&target, "/legendFormat"),
        })
    };
    panels().iter().flat_map(of).collect()
}

/// Returns the series of a proxy that has served reads: each name with its labels.
fn exposed_series() -> Vec<(String, Labels)> {
    exposition().lines().filter(|line| !line.starts_with('#')).flat_map(named).collect()
}

/// Starts a proxy with every front end and every measurement.
fn with_all_measurements(redis: &RedisServer, tokens: &SecretFile) -> Proxy {
    let more = format!(
        "redis.probe_interval = \"50ms\"\nresp.listen = \"127.0.0.1:0\"\n\
            resp.max_connections = 100\nrest.listen = \"127.0.0.1:0\"\n\
            rest.max_connections = 100\n\
            cache.rules = [{{ keys = \"k*\" }}]\nrest.tokens_file = \"{}\"",
        tokens.name()
    );
    proxy(redis, &more)
}

fn exposition() -> String {
    let redis = RedisServer::start();
    let tokens = SecretFile::new("token\n");
    let proxy = with_all_measurements(&redis, &tokens);
    set(&redis, "key", "value");
    value(&proxy, "key");
    RespClient::connect(proxy.resp_address()).reply_to_words(&["PING"]);
    proxy.metrics().text().to_owned()
}

fn assert_told(received: &[(String, Labels)], place: &str, name: &str, labels: &Labels) {
    let fits = |(of, its): &(String, Labels)| {
        let is_it = of == name || of.strip_suffix("_count") == Some(name);
        let has = |(label, value): (&String, &Option<String>)| match value {
            Some(value) => its.get(label).is_some_and(|its| its.as_ref() == Some(value)),
            None => its.contains_key(label),
        };
        is_it && labels.iter().all(has)
    };
    assert!(
        received.iter().any(fits) || OF_CLUSTERS.contains(&name),
        "{place} names {name} with {labels:?}, which the proxy does not tell"
    );
}

fn labels_of(received: &[(String, Labels)], name: &str) -> BTreeSet<String> {
    received
        .iter()
        .filter(|(of, _)| of == name)
        .flat_map(|(_, labels)| labels.keys().cloned())
        .collect()
}

/// Completes names in a table that continues with "`_cache_bytes`".
fn abbreviations_in_full(text: &str) -> String {
    text.replace("`_", "`redis_proxy_")
}

/// Returns every own metric in `text`, once for each value of a label with several.
fn named(text: &str) -> Vec<(String, Labels)> {
    let mut found = Vec::new();
    let is_of_a_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    for (start, _) in text.match_indices("redis_proxy_").chain(text.match_indices("process_")) {
        let rest = &text[start..];
        let end = rest.find(|letter| !is_of_a_name(letter)).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        // A part of a longer word, or a placeholder for several names.
        if text[..start].ends_with(is_of_a_name) || rest.starts_with('*') {
            continue;
        }
        let braces =
            rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        found.extend(choices(braces).into_iter().map(|labels| (name.to_owned(), labels)));
    }
    found
}

/// Expands `a="1",b=~"2|3",c` to `a="1",b="2",c` and `a="1",b="3",c`, without the labels of
/// Prometheus.
fn choices(braces: &str) -> Vec<Labels> {
    let mut choices = vec![Labels::new()];
    for matcher in braces.split(',').filter(|matcher| !matcher.is_empty()) {
        let (label, value) =
            matcher.split_once('=').map_or((matcher, None), |(label, value)| (label, Some(value)));
        if ["job", "instance"].contains(&label) {
            continue;
        }
        let values = value.map(|value| {
            value.trim_start_matches('~').trim_matches('"').split('|').map(str::to_owned)
        });
        let values: Vec<_> = values.map_or(vec![None], |values| values.map(Some).collect());
        let with = |labels: &Labels| {
            let one = |value: &Option<String>| {
                [labels.clone(), [(label.to_owned(), value.clone())].into()]
            };
            values
                .iter()
                .map(|value| one(value).into_iter().flatten().collect())
                .collect::<Vec<_>>()
        };
        choices = choices.iter().flat_map(with).collect();
    }
    choices
}

/// Returns the labels in `by (a, b)`.
fn grouped_by(expression: &str) -> impl Iterator<Item = String> {
    let lists = expression.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
    lists.flat_map(|list| list.split(',').map(|label| label.trim().to_owned()))
}

/// Returns the labels in `{{a}} and {{b}}`.
fn placeholders(legend: &str) -> impl Iterator<Item = String> {
    legend
        .split("{{")
        .skip(1)
        .filter_map(|rest| rest.split("}}").next())
        .map(|label| label.trim().to_owned())
}
