//! The OpenMetrics text format, version 1.0, of the families of `prometheus`, with exemplars.
//!
//! Hand-written, because `prometheus` writes only its older format, and the encoder of
//! `prometheus-client` accepts exemplars of its own histograms only, which take a lock for each
//! observation ([record 0061](../../docs/src/decisions/0061-libraries.md)). The differences from
//! the older format: a family of counters is named without `_total`, quotes in help are escaped,
//! bounds of buckets have one spelling, and the text ends with `# EOF`.

use std::fmt::{self, Write as _};

use prometheus::proto::{Histogram, LabelPair, MetricFamily, MetricType};

use super::exemplars::{BucketExemplars, Exemplar, Exemplars};

/// The end of the name of a counter's samples.
const TOTAL: &str = "_total";

/// Writes the families with their exemplars.
pub(super) fn encode(families: &[MetricFamily], exemplars: &Exemplars) -> String {
    let mut out = String::new();
    for family in families {
        // Writing to a string does not fail.
        _ = write_family(&mut out, family, exemplars);
    }
    out.push_str("# EOF\n");
    out
}

fn write_family(out: &mut String, family: &MetricFamily, exemplars: &Exemplars) -> fmt::Result {
    let kind = family.get_field_type();
    let (name, kind_name) = match kind {
        MetricType::COUNTER => {
            (family.name().strip_suffix(TOTAL).unwrap_or(family.name()), "counter")
        }
        MetricType::GAUGE => (family.name(), "gauge"),
        MetricType::HISTOGRAM => (family.name(), "histogram"),
        // This crate has none of these.
        MetricType::SUMMARY | MetricType::UNTYPED => return Ok(()),
    };
    writeln!(out, "# HELP {name} {}", Escaped(family.help()))?;
    writeln!(out, "# TYPE {name} {kind_name}")?;
    for metric in family.get_metric() {
        let labels = Labels { labels: metric.get_label(), le: None };
        match kind {
            MetricType::COUNTER => {
                let value = Number(metric.get_counter().get_value());
                writeln!(out, "{name}{TOTAL}{labels} {value}")?;
            }
            MetricType::HISTOGRAM => {
                let of_buckets = exemplars.of(name, |label| labels.get(label)).unwrap_or_default();
                write_histogram(out, name, &labels, metric.get_histogram(), &of_buckets)?;
            }
            _ => writeln!(out, "{name}{labels} {}", Number(metric.get_gauge().get_value()))?,
        }
    }
    Ok(())
}

fn write_histogram(
    out: &mut String,
    name: &str,
    labels: &Labels<'_>,
    histogram: &Histogram,
    exemplars: &BucketExemplars,
) -> fmt::Result {
    let bounded = histogram.get_bucket().iter();
    let bounded = bounded
        .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
        .filter(|(bound, _)| bound.is_finite());
    let all = bounded.chain([(f64::INFINITY, histogram.get_sample_count())]);
    for (index, (bound, count)) in all.enumerate() {
        let labels = Labels { le: Some(bound), ..*labels };
        write!(out, "{name}_bucket{labels} {count}")?;
        if let Some(Some(exemplar)) = exemplars.get(index) {
            write_exemplar(out, exemplar)?;
        }
        out.push('\n');
    }
    writeln!(out, "{name}_sum{labels} {}", Number(histogram.get_sample_sum()))?;
    writeln!(out, "{name}_count{labels} {}", histogram.get_sample_count())
}

fn write_exemplar(out: &mut String, exemplar: &Exemplar) -> fmt::Result {
    let Exemplar { trace, took, at } = exemplar;
    let took = Number(took.as_secs_f64());
    write!(
        out,
        " # {{trace_id=\"{trace:032x}\"}} {took} {}.{:03}",
        at.as_secs(),
        at.subsec_millis()
    )
}

/// The labels of a sample, with the bound of its bucket.
#[derive(Clone, Copy)]
struct Labels<'a> {
    labels: &'a [LabelPair],
    le: Option<f64>,
}

impl<'a> Labels<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.labels.iter().find(|label| label.name() == name).map(LabelPair::value)
    }
}

impl fmt::Display for Labels<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = '{';
        for label in self.labels {
            write!(out, "{before}{}=\"{}\"", label.name(), Escaped(label.value()))?;
            before = ',';
        }
        if let Some(bound) = self.le {
            write!(out, "{before}le=\"{}\"", Bound(bound))?;
            before = ',';
        }
        if before == ',' { out.write_char('}') } else { Ok(()) }
    }
}

/// A text within quotes, or a help text.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => out.write_str("\\\\")?,
                '\n' => out.write_str("\\n")?,
                '"' => out.write_str("\\\"")?,
                _ => out.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// A value.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_infinite() {
            return out.write_str(if self.0 > 0.0 { "+Inf" } else { "-Inf" });
        }
        write!(out, "{}", self.0)
    }
}

/// The bound of a bucket, in the spelling that the format demands: with a decimal point or an
/// exponent, and the exponent of two digits or more. Otherwise the same bucket could have two
/// names.
struct Bound(f64);

impl fmt::Display for Bound {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = self.0;
        if !bound.is_finite() {
            return Number(bound).fmt(out);
        }
        if bound == 0.0 || (1e-4..1e21).contains(&bound.abs()) {
            return write!(out, "{bound:?}");
        }
        let text = format!("{bound:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{digits}e{sign}{:02}", exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::{HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

    use super::super::labels::FrontEnd;
    use super::*;
    use crate::cache::Outcome;

    #[test]
    fn families_are_written_with_exemplars() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(
            Opts::new("redis_proxy_reads_total", "Reads, \"all\" \\ of\nthem."),
            &["name"],
        )
        .unwrap();
        counter.with_label_values(&["a \"b\" \\ \n c"]).inc_by(7);
        let gauge = IntGauge::new("redis_proxy_up", "Whether it is up.").unwrap();
        gauge.set(-2);
        let histogram = prometheus::HistogramVec::new(
            HistogramOpts::new("redis_proxy_request_duration_seconds", "Durations.")
                .buckets(vec![0.000_01, 0.000_025, 1.0]),
            &["front_end", "outcome"],
        )
        .unwrap();
        let series = histogram.with_label_values(&["http", "miss"]);
        for value in [0.000_02, 0.5, 3.0] {
            series.observe(value);
        }
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        registry.register(Box::new(histogram)).unwrap();

        let exemplars = Exemplars::default();
        exemplars.add_read(FrontEnd::Http, Outcome::Miss, 0xabc, Duration::from_micros(20));
        let text = encode(&registry.gather(), &exemplars);
        let text = text.replace("redis_proxy_request_duration_seconds", "DURATION");
        let (before, after) = text.split_once(" # {").unwrap();
        let (exemplar, after) = after.split_once('\n').unwrap();
        assert_eq!(
            before,
            "# HELP redis_proxy_reads Reads, \\\"all\\\" \\\\ of\\nthem.\n\
            # TYPE redis_proxy_reads counter\n\
            redis_proxy_reads_total{name=\"a \\\"b\\\" \\\\ \\n c\"} 7\n\
            # HELP DURATION Durations.\n\
            # TYPE DURATION histogram\n\
            DURATION_bucket{front_end=\"http\",outcome=\"miss\",le=\"1e-05\"} 0\n\
            DURATION_bucket{front_end=\"http\",outcome=\"miss\",le=\"2.5e-05\"} 1"
        );
        let (trace, time) = exemplar.split_once("} ").unwrap();
        assert_eq!(trace, "trace_id=\"00000000000000000000000000000abc\"");
        let (took, at) = time.split_once(' ').unwrap();
        assert_eq!(took, "0.00002");
        assert!(at.parse::<f64>().unwrap() > 1.7e9 && at.contains('.'), "{at}");
        assert_eq!(
            after,
            "DURATION_bucket{front_end=\"http\",outcome=\"miss\",le=\"1.0\"} 2\n\
            DURATION_bucket{front_end=\"http\",outcome=\"miss\",le=\"+Inf\"} 3\n\
            DURATION_sum{front_end=\"http\",outcome=\"miss\"} 3.50002\n\
            DURATION_count{front_end=\"http\",outcome=\"miss\"} 3\n\
            # HELP redis_proxy_up Whether it is up.\n\
            # TYPE redis_proxy_up gauge\n\
            redis_proxy_up -2\n\
            # EOF\n"
        );
    }

    #[test]
    fn bounds_have_the_spelling_of_the_format() {
        for (bound, text) in [
            (0.0, "0.0"),
            (0.000_01, "1e-05"),
            (0.000_025, "2.5e-05"),
            (0.000_1, "0.0001"),
            (0.25, "0.25"),
            (1.0, "1.0"),
            (10.0, "10.0"),
            (1e21, "1e+21"),
            (2.5e-100, "2.5e-100"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(Bound(bound).to_string(), text);
        }
    }

    #[test]
    fn values_may_be_no_finite_number() {
        let text = |value| Number(value).to_string();
        assert_eq!(
            [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e21].map(text),
            ["+Inf", "-Inf", "NaN", "1000000000000000000000"]
        );
    }
}
