//! What a decision means for others: documents, sessions, endpoints. Pure.

use super::file::Settings;
use inventory::{Act, Condition, Limits, Outcome, Presence, Record, Vm};
use model::vm::{VmId, VmSource, VmState, VmTitle};
use model::{HostId, Time};
use sinks::{Draft, SessionChange, Target, VmDocument};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The reference of a VM that only a document tells of.
pub(super) const UNKNOWN: &str = "unknown";

/// Who is to be told.
pub(super) fn targets(settings: &Settings) -> Vec<Target> {
    let all = [
        (Target::Sessions, settings.redis.is_some()),
        (Target::Group, settings.group.is_some()),
        (Target::Auth, settings.auth.is_some()),
    ];
    all.into_iter().filter_map(|(target, is_there)| is_there.then_some(target)).collect()
}

/// What VMs are called that are no orphans.
pub(super) fn names_of_present(records: &BTreeMap<VmId, Vm>) -> BTreeSet<String> {
    let is_present = |vm: &&Vm| {
        vm.record.source == VmSource::Vsphere
            && !matches!(vm.record.presence, Presence::Orphan { .. })
    };
    records.values().filter(is_present).map(|vm| vm.record.name.to_string()).collect()
}

/// What the outbox is to have after decisions were made.
pub(super) fn drafts(
    settings: &Settings,
    outcome: &Outcome,
    before: &BTreeMap<VmId, Vm>,
    at: Time,
) -> Vec<Draft> {
    let targets = targets(settings);
    let mut drafts = Vec::new();
    for decision in &outcome.decisions {
        let Some(id) = &decision.id else { continue };
        let Some(known) = before.get(id) else { continue };
        let Some(change) = change(&decision.act, known, at) else { continue };
        let is_rename = matches!(change, SessionChange::Rename { .. });
        let wanted = targets.iter().filter(|target| is_rename || **target == Target::Sessions);
        drafts.extend(wanted.map(|target| Draft {
            vm: id.to_string(),
            target: *target,
            change: change.clone(),
        }));
    }
    drafts
}

/// Sessions know VMs by their names alone: what has the name of one that is gone is not gone.
pub(super) fn leave_namesakes(
    drafts: &mut Vec<Draft>,
    outcome: &Outcome,
    records: &BTreeMap<VmId, Vm>,
) {
    let gone: BTreeSet<VmId> = outcome.orphans().into_iter().collect();
    if gone.is_empty() {
        return;
    }
    let is_there = |vm: &&Vm| {
        vm.record.source == VmSource::Vsphere
            && !matches!(vm.record.presence, Presence::Orphan { .. })
            && !gone.contains(&vm.record.id)
    };
    let there: BTreeSet<&str> =
        records.values().filter(is_there).map(|vm| vm.record.name.as_str()).collect();
    drafts.retain(|draft| match &draft.change {
        SessionChange::Orphan { name, .. } if there.contains(name.as_str()) => {
            tracing::warn!(
                vm = draft.vm,
                name,
                "is gone, and stays in sessions: another VM has its name"
            );
            false
        }
        _ => true,
    });
}

fn change(act: &Act, known: &Vm, at: Time) -> Option<SessionChange> {
    let name = known.record.name.to_string();
    match act {
        Act::Rename(new) => Some(SessionChange::Rename { old: name, new: new.to_string() }),
        Act::Orphan(_) => Some(SessionChange::Orphan { name, since: at }),
        Act::Reactivate if matches!(known.record.presence, Presence::Orphan { .. }) => {
            Some(SessionChange::Reactivate { name })
        }
        _ => None,
    }
}

/// What a VM's document is to say. `address` is the configuration's of its node, if that is there
/// still; `listed_at` when that was listed as a whole.
pub(super) fn document(vm: &Vm, address: Option<&str>, listed_at: Option<Time>) -> VmDocument {
    let label = |name: &str| vm.record.labels.get(name).cloned();
    // What an orphan was last, it stays.
    let power = label("power").unwrap_or_else(|| vm.condition.detail.clone());
    let power = match power.as_str() {
        "poweredOn" => "on".to_owned(),
        "poweredOff" => "off".to_owned(),
        _ => power,
    };
    VmDocument {
        uuid: vm.record.id.to_string(),
        esxi_host_addr: address.map(str::to_owned),
        name: vm.record.name.to_string(),
        hostname: label("hostname"),
        addr: label("address"),
        power_state: power,
        vmware_tools: label("tools").unwrap_or_default(),
        orphan_since: match vm.record.presence {
            Presence::Orphan { since } => Some(since),
            Presence::Present | Presence::Stale { .. } => None,
        },
        last_sync_time: match vm.record.presence {
            // It was part of that; but that it was seen then is not kept of each VM.
            Presence::Present => listed_at.map_or(vm.last_seen, |at| at.max(vm.last_seen)),
            Presence::Stale { .. } | Presence::Orphan { .. } => vm.last_seen,
        },
    }
}

/// A VM as a document knows it; nothing where it can't be one.
pub(super) fn adopted(document: &VmDocument, node: &HostId) -> Option<Vm> {
    let id = document.uuid.to_ascii_lowercase().parse::<VmId>().ok()?;
    let name = document.name.parse::<VmTitle>().ok()?;
    let (state, detail) = match document.power_state.as_str() {
        "on" => (VmState::Running, "poweredOn"),
        "off" => (VmState::Stopped, "poweredOff"),
        other => (VmState::Unknown, other),
    };
    let labels = [
        ("hostname", document.hostname.clone()),
        ("address", document.addr.clone()),
        ("power", Some(detail.to_owned())),
        ("tools", Some(document.vmware_tools.clone())),
    ];
    let known = labels.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let seen = document.last_sync_time;
    Some(Vm {
        record: Record {
            id,
            source: VmSource::Vsphere,
            node: node.clone(),
            name,
            reference: UNKNOWN.to_owned(),
            labels: known.collect(),
            limits: Limits::default(),
            first_seen: seen,
            presence: match document.orphan_since {
                Some(since) => Presence::Orphan { since },
                None => Presence::Present,
            },
            checks: BTreeMap::new(),
            recovery: None,
        },
        condition: Condition {
            state,
            detail: detail.to_owned(),
            since: None,
            fault: None,
            restarts: 0,
            looping: None,
        },
        last_seen: seen,
        health: inventory::health::Health::default(),
        usage: None,
        tried: inventory::recovery::Tried::default(),
        transitions: VecDeque::new(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use inventory::{Breaker, Completeness, Listing, Seen, apply, reconcile};
    use std::path::Path;

    const UUID: &str = "423c1d0e-0000-0000-0000-000000000001";
    const OTHER: &str = "423c1d0e-0000-0000-0000-000000000002";

    pub(in crate::sync) fn settings(more: &str) -> Settings {
        let text = format!("esxi_hosts: [{{host: esx1, username: u, password: p}}]\n{more}");
        Settings::parse(&text, Path::new("sync.yaml")).unwrap()
    }

    pub(in crate::sync) fn seen(uuid: &str, name: &str, node: &str) -> Seen {
        Seen {
            id: uuid.parse().unwrap(),
            node: HostId::new(node).unwrap(),
            name: name.parse().unwrap(),
            reference: "vm-1".into(),
            labels: [("tools".to_owned(), "toolsOk".to_owned())].into(),
            limits: Limits::default(),
            condition: Condition {
                state: VmState::Running,
                detail: "poweredOn".into(),
                since: None,
                fault: None,
                restarts: 0,
                looping: None,
            },
        }
    }

    fn listing(seen: Vec<Seen>) -> Listing {
        Listing {
            source: VmSource::Vsphere,
            nodes: [(HostId::new("esx1").unwrap(), Completeness::Complete)].into(),
            elsewhere: BTreeMap::new(),
            seen,
            refused: Vec::new(),
            unidentified: Vec::new(),
            gone: VmState::Unknown,
        }
    }

    /// Takes listings a second apart, and tells what is told after each one.
    fn check(settings: &Settings, listings: Vec<Listing>, expected: &[&str]) {
        let mut records = BTreeMap::new();
        let mut told = Vec::new();
        for (second, listing) in (0..).zip(listings) {
            let at = Time::from_seconds(second);
            let outcome = reconcile(&records, &listing, None::<Breaker>);
            let mut drafts = drafts(settings, &outcome, &records, at);
            leave_namesakes(&mut drafts, &outcome, &records);
            for draft in drafts {
                told.push(format!("{second} {} {:?}", draft.target, draft.change));
            }
            for decision in &outcome.decisions {
                apply(&mut records, decision, at);
            }
        }
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_told() {
        let both = settings(
            "redis: {host: r}\nendpoints: {vm-group-service-rename-vm: 'http://g/x', auth-service-rename-vm: 'http://a/x'}",
        );
        let days = || {
            vec![
                listing(vec![seen(UUID, "web", "esx1")]),
                listing(vec![seen(UUID, "web2", "esx1")]),
                listing(vec![]),
                listing(vec![]),
                listing(vec![seen(UUID, "web3", "esx1")]),
            ]
        };
        check(
            &both,
            days(),
            &[
                "1 sessions Rename { old: \"web\", new: \"web2\" }",
                "1 group Rename { old: \"web\", new: \"web2\" }",
                "1 auth Rename { old: \"web\", new: \"web2\" }",
                "2 sessions Orphan { name: \"web2\", since: Time(2000000) }",
                "4 sessions Reactivate { name: \"web2\" }",
                "4 sessions Rename { old: \"web2\", new: \"web3\" }",
                "4 group Rename { old: \"web2\", new: \"web3\" }",
                "4 auth Rename { old: \"web2\", new: \"web3\" }",
            ],
        );
        check(&settings(""), days(), &[]);
    }

    #[test]
    fn what_has_the_name_of_one_that_is_gone_stays_in_sessions() {
        let sessions = settings("redis: {host: r}");
        let (one, two) = (|name| seen(UUID, name, "esx1"), |name| seen(OTHER, name, "esx1"));
        check(
            &sessions,
            vec![
                listing(vec![one("web"), two("web")]),
                listing(vec![two("web")]),
                listing(vec![two("web")]),
                listing(vec![]),
            ],
            &["3 sessions Orphan { name: \"web\", since: Time(3000000) }"],
        );
        // The name was given on at the same moment: then sessions come out right.
        check(
            &sessions,
            vec![listing(vec![one("web"), two("new")]), listing(vec![two("web")])],
            &[
                "1 sessions Orphan { name: \"web\", since: Time(1000000) }",
                "1 sessions Rename { old: \"new\", new: \"web\" }",
            ],
        );
        // Both go at once.
        check(
            &sessions,
            vec![listing(vec![one("web"), two("web")]), listing(vec![])],
            &[
                "1 sessions Orphan { name: \"web\", since: Time(1000000) }",
                "1 sessions Orphan { name: \"web\", since: Time(1000000) }",
            ],
        );
    }

    #[test]
    fn documents_there_and_back() {
        let mut records = BTreeMap::new();
        let outcome = reconcile(&records, &listing(vec![seen(UUID, "web", "esx1")]), None);
        for decision in &outcome.decisions {
            apply(&mut records, decision, Time::from_seconds(5));
        }
        let vm = records.values().next().unwrap();
        let written = document(vm, Some("10.0.0.1"), None);
        assert_eq!(
            (written.power_state.as_str(), written.vmware_tools.as_str(), written.hostname.clone()),
            ("on", "toolsOk", None)
        );
        let again = adopted(&written, &vm.record.node).unwrap();
        assert_eq!(document(&again, Some("10.0.0.1"), None), written);
        let synced_at = |vm: &Vm, listed_at: i64| {
            document(vm, None, Some(Time::from_seconds(listed_at))).last_sync_time
        };
        assert_eq!(synced_at(vm, 9), Time::from_seconds(9), "it was listed then, too");
        assert_eq!(synced_at(vm, 4), Time::from_seconds(5));
        let mut gone = vm.clone();
        gone.record.presence = Presence::Orphan { since: Time::from_seconds(6) };
        assert_eq!(synced_at(&gone, 9), Time::from_seconds(5));
        let odd = VmDocument { uuid: "../x".into(), ..written };
        assert!(adopted(&odd, &vm.record.node).is_none());
    }
}
