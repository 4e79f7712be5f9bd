//! What the server counts, and how it is told to Prometheus.

mod form;
mod sync;
mod vms;

pub(crate) use form::Form;

use crate::app::App;
use crate::clock;
use api::following::FollowState;
use model::entity::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use store::Head;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) method: String,
    pub(crate) route: String,
    pub(crate) status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostLabel {
    host: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TwinLabel {
    twin: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TwinStateLabel {
    twin: String,
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    version: String,
}

/// Counted as it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) request_seconds: Histogram,
    pub(crate) deltas: Counter,
    pub(crate) ingested_bytes: Counter,
    pub(crate) streams: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            request_seconds: Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]),
            deltas: Counter::default(),
            ingested_bytes: Counter::default(),
            streams: Gauge::default(),
        }
    }
}

/// Everything, as text. Reads the history: not for async threads.
pub(crate) fn render(app: &App, form: Form) -> Result<String, store::Error> {
    let mut registry = Registry::with_prefix("safetytwin");
    let metrics = &app.metrics;
    registry.register("http_requests", "Requests by route and status", metrics.requests.clone());
    registry.register("http_request_seconds", "Time to answer", metrics.request_seconds.clone());
    registry.register("ingested_deltas", "Deltas made durable", metrics.deltas.clone());
    registry.register(
        "ingested_bytes",
        "Bytes of request bodies taken in",
        metrics.ingested_bytes.clone(),
    );
    registry.register("live_streams", "Open event streams", metrics.streams.clone());
    connections(app, &mut registry);
    let build: Family<BuildLabel, Gauge> = Family::default();
    build.get_or_create(&BuildLabel { version: env!("CARGO_PKG_VERSION").to_owned() }).set(1);
    registry.register("build_info", "The running version", build);
    history(app, &mut registry)?;
    hosts(app, &mut registry)?;
    twins(app, &mut registry);
    vms::register(app, &mut registry);
    sync::register(app, &mut registry);
    Ok(form.text(&registry).unwrap_or_else(|error| {
        tracing::error!(%error, "metrics could not be encoded");
        String::new()
    }))
}

fn connections(app: &App, registry: &mut Registry) {
    let gauges = [
        ("connections", "Open connections", app.places.taken()),
        ("connections_limit", "Connections there may be", app.places.most()),
    ];
    for (name, help, value) in gauges {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
    let help = "Connections that came when there were as many as there may be";
    registry.register("connections_beyond_limit", help, app.places.beyond.clone());
}

fn history(app: &App, registry: &mut Registry) -> Result<(), store::Error> {
    let stats = app.history.stats();
    let gauges: [(&str, &str, u64); 11] = [
        ("history_hosts", "Hosts with a history", stats.hosts),
        ("history_versions", "Versions ever recorded", stats.versions),
        ("history_bytes", "Bytes of the history on disk", stats.disk_bytes),
        ("history_buckets", "Days of history there are", stats.buckets),
        ("history_queue", "Appends that wait", stats.queue),
        ("history_commits", "Commits since the start", stats.commits),
        ("history_failures", "Failed commits since the start", stats.failures),
        ("history_reopened", "Times the store was opened anew after a failure", stats.reopened),
        ("heads_cached_bytes", "Bytes of newest states kept in memory", stats.heads_cached_bytes),
        (
            "keyframes_cached_bytes",
            "Bytes of older states kept in memory, 64 MiB at most",
            stats.keyframes_cached_bytes,
        ),
        (
            "rendered_cached_bytes",
            "Bytes of answers kept in memory, 32 MiB at most",
            app.rendered.bytes(),
        ),
    ];
    for (name, help, value) in gauges {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
    for (name, quantile) in [("p50", stats.commit_p50), ("p99", stats.commit_p99)] {
        let gauge: Gauge<f64, AtomicU64> = Gauge::default();
        gauge.set(quantile.as_secs_f64());
        registry.register(
            format!("history_commit_seconds_{name}"),
            "From queued to durable, recently",
            gauge,
        );
    }
    Ok(())
}

fn hosts(app: &App, registry: &mut Registry) -> Result<(), store::Error> {
    let version: Family<HostLabel, Gauge> = Family::default();
    let seen_age: Family<HostLabel, Gauge<f64, AtomicU64>> = Family::default();
    let faults: Family<HostLabel, Gauge> = Family::default();
    let now = clock::now();
    for info in app.history.hosts() {
        let label = HostLabel { host: info.host.to_string() };
        version.get_or_create(&label).set(i64::try_from(info.head.0).unwrap_or(i64::MAX));
        let seen = app.seen_at(&info.host).unwrap_or(info.seen_at);
        seen_age.get_or_create(&label).set(now.since(seen).as_secs_f64());
        if let Some(count) = faults_of(app.history.head(&info.host))? {
            faults.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
    registry.register("host_version", "The newest version of a host", version);
    registry.register("host_seen_age_seconds", "Since a host was last heard of", seen_age);
    registry.register("host_faults", "Parts of a host's picture that are stale", faults);
    Ok(())
}

/// Faults in the newest state of a host. A damaged one is a fault of that host, as in the list of
/// hosts, and no reason to be silent about the others.
fn faults_of(head: Result<Option<Head>, store::Error>) -> Result<Option<usize>, store::Error> {
    let is_fault = |collector: &Collector| collector.fault.is_some();
    match head {
        Ok(head) => Ok(head.map(|head| head.facts.entities().filter(is_fault).count())),
        Err(error) if error.is_damage() => Ok(Some(1)),
        Err(error) => Err(error),
    }
}

fn twins(app: &App, registry: &mut Registry) {
    let lag: Family<TwinLabel, Gauge<f64, AtomicU64>> = Family::default();
    let took: Family<TwinLabel, Gauge<f64, AtomicU64>> = Family::default();
    let fidelity: Family<TwinLabel, Gauge<f64, AtomicU64>> = Family::default();
    let state: Family<TwinStateLabel, Gauge> = Family::default();
    let seconds = |millis: u64| Duration::from_millis(millis).as_secs_f64();
    for (name, following) in app.twins.followings() {
        let label = TwinLabel { twin: name.to_string() };
        if let Some(millis) = following.lag_ms {
            lag.get_or_create(&label).set(seconds(millis));
        }
        if let Some(millis) = following.took_ms {
            took.get_or_create(&label).set(seconds(millis));
        }
        if let Some(per_mille) = following.fidelity_per_mille {
            fidelity.get_or_create(&label).set(f64::from(per_mille) / 1000.0);
        }
        for one in FollowState::ALL {
            let (twin, state_word) = (name.to_string(), one.to_string());
            let label = TwinStateLabel { twin, state: state_word };
            state.get_or_create(&label).set(i64::from(*one == following.state));
        }
    }
    let starved: Family<TwinLabel, Gauge> = Family::default();
    for name in app.twins.starved() {
        starved.get_or_create(&TwinLabel { twin: name.to_string() }).set(1);
    }
    let help = "1 for a twin that stands still since its disk could not be written";
    registry.register("twin_starved", help, starved);
    let help = "Since the host's first change that is not in its twin; 0 where all are";
    registry.register("twin_lag_seconds", help, lag);
    let help = "From a host's change until it was seen in its twin, of the last one brought there";
    registry.register("twin_took_seconds", help, took);
    let help = "The part of a host's things that its twin has, when it was looked at last";
    registry.register("twin_fidelity_ratio", help, fidelity);
    registry.register("twin_follow_state", "1 for how a twin stands towards its host", state);
}

/// Counts an open stream for as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenStream(Arc<App>);

impl OpenStream {
    pub(crate) fn new(app: &Arc<App>) -> Self {
        app.metrics.streams.inc();
        Self(Arc::clone(app))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.metrics.streams.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Facts, Version};
    use store::Error;

    #[test]
    fn damage_is_a_fault_of_its_host() {
        let whole = Head { version: Version(1), facts: Facts::default() };
        assert_eq!(faults_of(Ok(Some(whole))).unwrap(), Some(0));
        assert_eq!(faults_of(Ok(None)).unwrap(), None);
        let what = "a keyframe".to_owned();
        let damaged = Error::Corrupt { host: None, version: Some(Version(1)), what };
        assert_eq!(faults_of(Err(damaged)).unwrap(), Some(1));
        assert!(matches!(faults_of(Err(Error::Closed)), Err(Error::Closed)));
    }
}
