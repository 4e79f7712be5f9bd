//! How figures are written: as text for Prometheus, or as OpenMetrics where that is asked for.
//!
//! There are counters, gauges and histograms, which both know. Prometheus names a counter as its
//! samples are named, with `_total`, and has no end mark.

use axum::http::{HeaderMap, header};
use prometheus_client::encoding::text::{encode, encode_registry};
use prometheus_client::registry::Registry;
use std::collections::HashSet;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Prometheus,
    OpenMetrics,
}

impl Form {
    /// What a request accepts.
    pub(crate) fn asked(headers: &HeaderMap) -> Self {
        let mut accepted =
            headers.get_all(header::ACCEPT).iter().filter_map(|kinds| kinds.to_str().ok());
        let is_named = |kinds: &str| kinds.contains("application/openmetrics-text");
        if accepted.any(is_named) { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    pub(super) fn text(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut text = String::new();
        match self {
            Self::Prometheus => {
                encode_registry(&mut text, registry)?;
                text = with_totals(&text);
            }
            Self::OpenMetrics => encode(&mut text, registry)?,
        }
        Ok(text)
    }
}

/// The same text, with counters described by the name of their samples.
fn with_totals(text: &str) -> String {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let counters: HashSet<&str> = types.filter_map(|kind| kind.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        match described(line) {
            Some((mark, name, what)) if counters.contains(name) => {
                out.extend([mark, name, "_total ", what, "\n"]);
            }
            _ => out.extend([line, "\n"]),
        }
    }
    out
}

/// What describes a metric, its name, and what is said of it.
fn described(line: &str) -> Option<(&'static str, &str, &str)> {
    ["# HELP ", "# TYPE "].into_iter().find_map(|mark| {
        let (name, what) = line.strip_prefix(mark)?.split_once(' ')?;
        Some((mark, name, what))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use expect_test::expect;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;

    #[test]
    fn each_form_is_valid_as_what_it_says_it_is() {
        let mut registry = Registry::with_prefix("safetytwin");
        let deltas: Counter = Counter::default();
        deltas.inc();
        registry.register("deltas", "Deltas", deltas);
        let waiting: Gauge = Gauge::default();
        registry.register("deltas_waiting", "Deltas that wait", waiting);
        let seconds = Histogram::new([0.5]);
        seconds.observe(0.25);
        registry.register("seconds", "Time to answer", seconds);
        let expected = expect![[r#"
            # HELP safetytwin_deltas_total Deltas.
            # TYPE safetytwin_deltas_total counter
            safetytwin_deltas_total 1
            # HELP safetytwin_deltas_waiting Deltas that wait.
            # TYPE safetytwin_deltas_waiting gauge
            safetytwin_deltas_waiting 0
            # HELP safetytwin_seconds Time to answer.
            # TYPE safetytwin_seconds histogram
            safetytwin_seconds_sum 0.25
            safetytwin_seconds_count 1
            safetytwin_seconds_bucket{le="0.5"} 1
            safetytwin_seconds_bucket{le="+Inf"} 1
        "#]];
        expected.assert_eq(&Form::Prometheus.text(&registry).unwrap());
        let open = Form::OpenMetrics.text(&registry).unwrap();
        assert!(open.contains("# TYPE safetytwin_deltas counter\nsafetytwin_deltas_total 1\n"));
        assert!(open.ends_with("# EOF\n"), "{open}");
    }

    #[test]
    fn open_metrics_are_for_who_names_them() {
        let check = |accepted: &[&'static str], expected: Form| {
            let mut headers = HeaderMap::new();
            for kinds in accepted {
                headers.append(header::ACCEPT, HeaderValue::from_static(kinds));
            }
            assert_eq!(Form::asked(&headers), expected, "{accepted:?}");
        };
        check(&[], Form::Prometheus);
        check(&["*/*"], Form::Prometheus);
        check(&["text/plain;version=0.0.4"], Form::Prometheus);
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        check(&[prometheus], Form::OpenMetrics);
        check(&["text/plain", "application/openmetrics-text"], Form::OpenMetrics);
    }
}
