//! What would be decided, with reasons. Changes nothing.

use super::file::{Settings, Source};
use super::sight::{self, Sight};
use super::tell;
use crate::clock;
use api::sync::{PlannedDecision, SyncPlan};
use inventory::{Breaker, Decision, Outcome, Presence, Vm, apply, reconcile};
use model::vm::{DecisionKind, VmId, VmSource};
use model::{HostId, Time, with_causes};
use sinks::MongoSink;
use std::collections::{BTreeMap, BTreeSet};
use tokio::task::JoinSet;

/// Asks sources and MongoDB themselves, and no server: what an instance that knows nothing yet
/// would decide.
///
/// # Errors
/// When MongoDB is named and its documents can't be read. Sources that can't be asked are told in
/// the plan.
pub async fn preview(settings: Settings) -> Result<SyncPlan, sinks::Error> {
    settings.warn();
    let records = match settings.mongo.clone() {
        Some(mongo) => known(&MongoSink::new(mongo)?, &settings.sources).await?,
        None => Vec::new(),
    };
    let records = records.into_iter().map(|vm| (vm.record.id.clone(), vm)).collect();
    let mut looks = JoinSet::new();
    for source in settings.sources {
        looks.spawn(async move { (source.node.clone(), look(&source).await) });
    }
    let sights = looks.join_all().await.into_iter().collect();
    Ok(planned(&sights, records, settings.breaker.unwrap_or_default(), clock::now()))
}

async fn look(source: &Source) -> Sight {
    let listed = async {
        let mut session = vsphere::Session::open(&source.vsphere, vsphere::PAGE).await?;
        let about = session.about().clone();
        let objects = session.list().await;
        if let Err(error) = session.close().await {
            tracing::debug!(%error, source = %source.node, "could not log out");
        }
        objects.map(|objects| (about, objects))
    };
    let mut sight = Sight::of(source);
    match listed.await {
        Ok((about, objects)) => {
            sight.about = Some(about);
            sight.take_whole(objects, clock::now());
        }
        Err(error) => sight.fault = Some((clock::now(), with_causes(&error))),
    }
    sight
}

/// VMs as MongoDB knows them.
pub(super) async fn known(mongo: &MongoSink, sources: &[Source]) -> Result<Vec<Vm>, sinks::Error> {
    let addresses: Vec<String> = sources.iter().map(|source| source.address.clone()).collect();
    let loaded = mongo.load(&addresses).await?;
    for what in &loaded.unreadable {
        tracing::warn!(what, "a document is left alone");
    }
    let of = |address: &str| sources.iter().find(|source| source.address == address);
    let of = |document: &sinks::VmDocument| of(document.esxi_host_addr.as_deref()?);
    let known =
        loaded.documents.iter().filter_map(|document| tell::adopted(document, &of(document)?.node));
    Ok(known.collect())
}

/// First what each source lists is taken, then what each does not list: what left one may have
/// come to another.
pub(super) fn planned(
    sights: &BTreeMap<HostId, Sight>,
    mut records: BTreeMap<VmId, Vm>,
    breaker: Breaker,
    now: Time,
) -> SyncPlan {
    let mut plan = SyncPlan { decisions: Vec::new(), faults: BTreeMap::new() };
    for (node, sight) in sights {
        if let Some(doubt) = sight.doubt() {
            plan.faults.insert(node.clone(), doubt);
        }
    }
    for is_whole in [false, true] {
        for (node, sight) in sights.iter().filter(|(_, sight)| sight.doubt().is_none()) {
            let read = if is_whole {
                vsphere::listing(node, sight.objects())
            } else {
                let all = sight.objects().machines.keys().map(String::as_str);
                vsphere::partly(node, sight.objects(), all)
            };
            let listing = sight::listing(node, read, sights, &records);
            let outcome = reconcile(&records, &listing, Some(breaker.of_pieces(now)));
            plan.decisions.extend(still_held(node, &outcome, &records));
            for decision in outcome.decisions {
                // What is left out was told the first time.
                if is_whole && decision.act.kind() == DecisionKind::Ignore {
                    continue;
                }
                apply(&mut records, &decision, now);
                plan.decisions.push(told(node, decision, &records));
            }
        }
    }
    plan.decisions.extend(unconfigured(sights, &records));
    plan
}

/// What was on sources that nobody asks any more waits for somebody.
fn unconfigured(
    sights: &BTreeMap<HostId, Sight>,
    records: &BTreeMap<VmId, Vm>,
) -> Vec<PlannedDecision> {
    let left = records.values().map(|vm| &vm.record).filter(|record| {
        record.source == VmSource::Vsphere
            && !sights.contains_key(&record.node)
            && !matches!(record.presence, Presence::Orphan { .. })
    });
    let held = left.map(|record| PlannedDecision {
        node: record.node.clone(),
        id: Some(record.id.clone()),
        name: Some(record.name.to_string()),
        kind: DecisionKind::Hold,
        reason: sight::unconfigured(&record.node),
    });
    held.collect()
}

/// What was held before is decided no more, and waits all the same.
fn still_held<'o>(
    node: &'o HostId,
    outcome: &'o Outcome,
    records: &'o BTreeMap<VmId, Vm>,
) -> impl Iterator<Item = PlannedDecision> + 'o {
    let held = outcome.held.iter().flat_map(|held| &held.vms);
    let decided: BTreeSet<&VmId> =
        outcome.decisions.iter().filter_map(|one| one.id.as_ref()).collect();
    held.filter(move |id| !decided.contains(id)).map(move |id| PlannedDecision {
        node: node.clone(),
        id: Some(id.clone()),
        name: records.get(id).map(|vm| vm.record.name.to_string()),
        kind: DecisionKind::Hold,
        reason: format!("held until somebody says: twin inventory confirm {node}"),
    })
}

fn told(node: &HostId, decision: Decision, records: &BTreeMap<VmId, Vm>) -> PlannedDecision {
    let vm = decision.id.as_ref().and_then(|id| records.get(id));
    PlannedDecision {
        node: node.clone(),
        name: vm.map(|vm| vm.record.name.to_string()),
        kind: decision.act.kind(),
        id: decision.id,
        reason: decision.reason,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sight::tests::{ONE, TWO, away, node, sight};
    use super::super::tell::tests::seen;
    use super::*;
    use inventory::{Completeness, Listing};
    use model::vm::VmState;

    fn known(on: &[(&str, &str)]) -> BTreeMap<VmId, Vm> {
        let mut records = BTreeMap::new();
        for (uuid, at) in on {
            let listing = Listing {
                source: VmSource::Vsphere,
                nodes: [(node(at), Completeness::Partial)].into(),
                elsewhere: BTreeMap::new(),
                seen: vec![seen(uuid, "web", at)],
                refused: Vec::new(),
                unidentified: Vec::new(),
                gone: VmState::Unknown,
            };
            for decision in reconcile(&records, &listing, None).decisions {
                apply(&mut records, &decision, Time(1));
            }
        }
        records
    }

    fn check(sights: &[(&str, Sight)], on: &[(&str, &str)], expected: &[&str]) {
        let sights = sights
            .iter()
            .map(|(name, sight)| (node(name), sight.clone()))
            .collect::<BTreeMap<_, _>>();
        let plan =
            planned(&sights, known(on), Breaker { share: 50, count: 2, since: None }, Time(2));
        let mut told: Vec<String> = plan
            .decisions
            .iter()
            // What a source lists is called otherwise here.
            .filter(|one| !matches!(one.kind, DecisionKind::Refresh | DecisionKind::Rename))
            .map(|one| {
                let id = one.id.as_ref().map_or("-", |id| id.as_str());
                format!("{} {} {id}: {}", one.node, one.kind, one.reason)
            })
            .collect();
        told.extend(plan.faults.iter().map(|(node, fault)| format!("{node}! {fault}")));
        assert_eq!(told, expected);
    }

    #[test]
    fn what_left_one_and_came_to_another_is_no_orphan() {
        let moved = format!("b move {ONE}: it was on a and is on b");
        check(&[("a", sight(&[TWO])), ("b", sight(&[ONE]))], &[(ONE, "a"), (TWO, "a")], &[&moved]);
    }

    #[test]
    fn who_is_away_is_told_and_holds_up_orphans() {
        let stale = format!("a stale {ONE}: it may have moved to b: it is off");
        check(
            &[("a", sight(&[TWO])), ("b", away())],
            &[(ONE, "a"), (TWO, "a")],
            &[&stale, "b! it is off"],
        );
    }

    #[test]
    fn what_is_on_a_source_that_is_named_no_more_is_held() {
        let held = format!("old hold {TWO}: {}", sight::unconfigured(&node("old")));
        check(&[("a", sight(&[ONE]))], &[(ONE, "a"), (TWO, "old")], &[&held]);
        // Unless it is on another.
        let moved = format!("a move {TWO}: it was on old and is on a");
        check(&[("a", sight(&[ONE, TWO]))], &[(ONE, "a"), (TWO, "old")], &[&moved]);
    }

    #[test]
    fn many_at_once_are_held() {
        let three = "423c1d0e-0000-0000-0000-000000000003";
        let on = [(ONE, "a"), (TWO, "a"), (three, "a")];
        let plan = planned(
            &[(node("a"), sight(&[three]))].into(),
            known(&on),
            Breaker { share: 50, count: 2, since: None },
            Time(2),
        );
        let count =
            |plan: &SyncPlan, kind| plan.decisions.iter().filter(|one| one.kind == kind).count();
        assert_eq!((count(&plan, DecisionKind::Hold), count(&plan, DecisionKind::Orphan)), (2, 0));
        // Also once they are held.
        let mut records = known(&on);
        for id in [ONE, TWO] {
            let decision = Decision {
                id: Some(id.parse().unwrap()),
                act: inventory::Act::Hold,
                reason: "held".to_owned(),
            };
            apply(&mut records, &decision, Time(1));
        }
        let breaker = Breaker { share: 50, count: 2, since: None };
        let again = planned(&[(node("a"), sight(&[three]))].into(), records, breaker, Time(2));
        assert_eq!(
            (count(&again, DecisionKind::Hold), count(&again, DecisionKind::Orphan)),
            (2, 0)
        );
    }
}
