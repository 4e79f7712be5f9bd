//! How VMs are kept in step with vSpheres.

use crate::app::App;
use crate::clock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

type Ages = Family<SourceLabel, Gauge<f64, AtomicU64>>;
type Counts = Family<SourceLabel, Gauge>;

/// Nothing where no vSphere is followed.
pub(super) fn register(app: &App, registry: &mut Registry) {
    let Some(sync) = &app.sync else { return };
    let (standing, now) = (sync.standing(), clock::now());
    let (heard, listed) = (Ages::default(), Ages::default());
    let (up, vms, held, requests) =
        (Counts::default(), Counts::default(), Counts::default(), Counts::default());
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    for source in &standing.sources {
        let label = SourceLabel { source: source.node.to_string() };
        up.get_or_create(&label).set(i64::from(source.fault.is_none()));
        vms.get_or_create(&label).set(number(source.vms as u64));
        held.get_or_create(&label).set(number(source.held.len() as u64));
        requests.get_or_create(&label).set(number(source.requests));
        for (ages, at) in [(&heard, source.heard_at), (&listed, source.listed_at)] {
            if let Some(at) = at {
                ages.get_or_create(&label).set(now.since(at).as_secs_f64());
            }
        }
    }
    let left = Counts::default();
    for (node, count) in &standing.unconfigured {
        let label = SourceLabel { source: node.to_string() };
        left.get_or_create(&label).set(number(*count as u64));
    }
    let what = "VMs of a source that the configuration does not name any more";
    registry.register("sync_source_unconfigured_vms", what, left);
    registry.register("sync_source_in_step", "1 for a source that is followed", up);
    registry.register("sync_source_vms", "VMs that a source lists", vms);
    registry.register("sync_source_held", "VMs that somebody has to confirm as gone", held);
    registry.register("sync_source_requests", "Requests to a source since the start", requests);
    registry.register("sync_source_heard_age_seconds", "Since a source answered last", heard);
    registry.register("sync_source_listed_age_seconds", "Since a source listed all VMs", listed);
    let decisions: Family<DecisionLabel, Gauge> = Family::default();
    for (kind, count) in &standing.decisions {
        let label = DecisionLabel { decision: kind.as_str() };
        decisions.get_or_create(&label).set(number(*count));
    }
    registry.register("sync_decisions", "Decisions about VMs since the start", decisions);
    let outbox: Family<StateLabel, Gauge> = Family::default();
    let (waiting, dead) = (standing.outbox_waiting as u64, standing.outbox_dead as u64);
    for (state, count) in [("waiting", waiting), ("dead", dead)] {
        outbox.get_or_create(&StateLabel { state }).set(number(count));
    }
    registry.register("sync_outbox", "Messages to sessions and endpoints not delivered", outbox);
    let documents: Gauge = Gauge::default();
    documents.set(number(standing.documents_waiting as u64));
    registry.register("sync_documents_waiting", "Documents MongoDB was not told of", documents);
    let stands_by: Gauge = Gauge::default();
    stands_by.set(i64::from(standing.stands_by.is_some()));
    registry.register("sync_stands_by", "1 while this instance does not sync", stands_by);
    let interval: Gauge<f64, AtomicU64> = Gauge::default();
    interval.set(sync.interval().as_secs_f64());
    registry.register("sync_interval_seconds", "From one full pass to the next", interval);
    if let Some(last) = &standing.last {
        let age: Gauge<f64, AtomicU64> = Gauge::default();
        age.set(now.since(last.at).as_secs_f64());
        registry.register("sync_last_pass_age_seconds", "Since the last full pass ended", age);
    }
}
