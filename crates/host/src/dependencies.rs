//! Which services need which others: as their units declare, and as seen talking. Pure.
//!
//! Only between services: targets, sockets and mounts order a boot, they need nothing.

use crate::sockets::Connection;
use model::entity::{Dependency, Unit};
use std::collections::{BTreeMap, BTreeSet};

/// Observations kept for one pair of services.
const OBSERVED_MAX: usize = 16;

/// All dependencies among `units`, by id.
#[must_use]
pub fn dependencies(units: &[Unit], connections: &[Connection]) -> Vec<Dependency> {
    let known: BTreeSet<&str> = units
        .iter()
        .filter(|unit| is_service(&unit.id) && unit.load_state != "not-found")
        .map(|unit| unit.id.as_str())
        .collect();
    let mut pairs: BTreeMap<(String, String), Dependency> = BTreeMap::new();
    for unit in units.iter().filter(|unit| known.contains(unit.id.as_str())) {
        for (kind, names) in declared(unit) {
            for name in names {
                let to = same_manager(&unit.id, name);
                if to != unit.id && known.contains(to.as_str()) {
                    pair(&mut pairs, &unit.id, &to).declared.push(kind.to_owned());
                }
            }
        }
    }
    for Connection { from, to, by } in connections {
        if from != to && is_service(from) && is_service(to) {
            let observed = &mut pair(&mut pairs, from, to).observed;
            if observed.len() < OBSERVED_MAX {
                observed.push(by.clone());
            }
        }
    }
    let mut dependencies: Vec<Dependency> = pairs.into_values().collect();
    for dependency in &mut dependencies {
        dependency.declared.sort();
        dependency.declared.dedup();
        dependency.observed.sort();
        dependency.observed.dedup();
    }
    dependencies
}

/// From the strongest on.
fn declared(unit: &Unit) -> [(&'static str, &[String]); 4] {
    [
        ("BindsTo", &unit.binds_to),
        ("Requires", &unit.requires),
        ("Requisite", &unit.requisite),
        ("Wants", &unit.wants),
    ]
}

/// A user's unit names others of the same manager without saying whose.
fn same_manager(unit: &str, name: &str) -> String {
    match unit.rsplit_once('/') {
        Some((user, _)) if !name.contains('/') => format!("{user}/{name}"),
        _ => name.to_owned(),
    }
}

fn is_service(id: &str) -> bool {
    id.ends_with(".service")
}

fn pair<'p>(
    pairs: &'p mut BTreeMap<(String, String), Dependency>,
    from: &str,
    to: &str,
) -> &'p mut Dependency {
    pairs.entry((from.to_owned(), to.to_owned())).or_insert_with(|| Dependency {
        id: format!("{from} -> {to}"),
        from: from.to_owned(),
        to: to.to_owned(),
        ..Dependency::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(id: &str, requires: &[&str], wants: &[&str]) -> Unit {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Unit { id: id.into(), requires: owned(requires), wants: owned(wants), ..Unit::default() }
    }

    fn seen(from: &str, to: &str, by: &str) -> Connection {
        Connection { from: from.into(), to: to.into(), by: by.into() }
    }

    #[test]
    fn declared_and_observed() {
        let mut missing = unit("missing.service", &[], &[]);
        missing.load_state = "not-found".into();
        let units = [
            unit(
                "app.service",
                &["db.service", "network.target", "app.service"],
                &["db.service", "missing.service", "absent.service"],
            ),
            unit("db.service", &[], &[]),
            unit("network.target", &["db.service"], &[]),
            unit("alice/notes.service", &["db.service"], &[]),
            unit("alice/db.service", &[], &[]),
            missing,
        ];
        let connections = [
            seen("app.service", "db.service", "tcp 127.0.0.1:5432"),
            seen("app.service", "db.service", "tcp 127.0.0.1:5432"),
            seen("app.service", "cache.service", "tcp [::1]:6379"),
            seen("app.service", "app.service", "tcp 127.0.0.1:1"),
            seen("session-1.scope", "db.service", "tcp 127.0.0.1:5432"),
        ];
        let lines: Vec<String> = dependencies(&units, &connections)
            .iter()
            .map(|d| format!("{}: {} | {}", d.id, d.declared.join(","), d.observed.join(",")))
            .collect();
        let expected = [
            "alice/notes.service -> alice/db.service: Requires | ",
            "app.service -> cache.service:  | tcp [::1]:6379",
            "app.service -> db.service: Requires,Wants | tcp 127.0.0.1:5432",
        ];
        assert_eq!(lines, expected);
    }
}
