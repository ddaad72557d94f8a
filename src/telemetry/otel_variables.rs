//! The standard variables of OpenTelemetry (`OTEL_*`): which enable traces, which are invalid.
//!
//! A standard variable wins over the key of the configuration with the same meaning, as the
//! environment does everywhere.
//!
//! Source: OpenTelemetry specification, "Environment Variable Specification".

use super::settings::{Traces, variable};

/// Returns whether traces are enabled, by the variables or else by the configuration.
pub(super) fn is_enabled(configured: Traces) -> bool {
    if variable("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.eq_ignore_ascii_case("true")) {
        return false;
    }
    match variable("OTEL_TRACES_EXPORTER").as_deref() {
        Some("otlp") => true,
        Some("none") => false,
        _ => configured == Traces::Otlp,
    }
}

/// Returns a text for each standard variable with an invalid value. The text names the value that
/// is used instead. Without an exporter only the first one matters, which could have enabled it.
pub(super) fn invalid_variables(is_enabled: bool) -> Vec<String> {
    const CHOICES: [(&str, &[&str], &str); 4] = [
        ("OTEL_TRACES_EXPORTER", &["otlp", "none"], "telemetry.traces decides"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", &PROTOCOLS, "telemetry.traces_protocol decides"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", &PROTOCOLS, "telemetry.traces_protocol decides"),
        ("OTEL_TRACES_SAMPLER", &SAMPLERS, "every trace is taken that its caller has not left out"),
    ];
    let read = if is_enabled { &CHOICES[..] } else { &CHOICES[..1] };
    let wrong = read.iter().filter_map(|(name, choices, instead)| {
        let found = variable(name).filter(|value| !choices.contains(&value.as_str()))?;
        Some(format!("{name}: found {found:?}, expected one of {}; {instead}", choices.join(", ")))
    });
    let ratio = variable("OTEL_TRACES_SAMPLER")
        .filter(|sampler| is_enabled && sampler.ends_with("ratio"))
        .and_then(|_| {
            let given = variable("OTEL_TRACES_SAMPLER_ARG").unwrap_or_default();
            let right = given.parse().is_ok_and(|ratio: f64| (0.0..=1.0).contains(&ratio));
            (!right).then(|| {
                format!(
                    "OTEL_TRACES_SAMPLER_ARG: found {given:?}, expected a number \
            from 0 to 1; 1 is taken"
                )
            })
        });
    wrong.chain(ratio).collect()
}

const PROTOCOLS: [&str; 2] = ["grpc", "http/protobuf"];
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];
