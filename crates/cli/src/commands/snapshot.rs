//! `twin snapshot`: the saved moments of a twin.

use super::twin::{followed, named, of};
use crate::arguments::SnapshotCommand;
use crate::failure::Failure;
use crate::session::{Session, note};
use crate::table::{Cell, Table};
use crate::view::{Paint, View, bytes};
use api::run::Begun;
use api::twin::{NewSnapshot, Snapshot, SnapshotKind, TwinSnapshots};
use hyper::Method;

pub(crate) async fn run(command: &SnapshotCommand, session: &mut Session) -> Result<(), Failure> {
    match command {
        SnapshotCommand::List { name } => {
            let name = named(&mut session.remote, "twin snapshot list", name.as_ref()).await?;
            let answer: TwinSnapshots = session.remote.get(&of(&name).and("snapshots")).await?;
            if answer.snapshots.is_empty() {
                note(&format!("no snapshots yet; take one with: twin snapshot create {name}"));
            }
            session.answer(&answer, table)
        }
        SnapshotCommand::Create { twin, name, disk, detach } => {
            let kind = disk.then_some(SnapshotKind::Disk);
            let asked = NewSnapshot { name: name.clone(), kind };
            let query = of(twin).and("snapshots");
            let begun: Begun = session.remote.post(&query, &asked).await?;
            followed(&begun, begun.run, *detach, session).await
        }
        SnapshotCommand::Revert { twin, snapshot, detach } => {
            let query = of(twin).and("snapshots").and(snapshot).and("revert");
            let begun: Begun = session.remote.post(&query, &()).await?;
            followed(&begun, begun.run, *detach, session).await
        }
        SnapshotCommand::Delete { twin, snapshot, detach } => {
            let query = of(twin).and("snapshots").and(snapshot);
            let begun: Begun = session.remote.ask(Method::DELETE, &query).await?;
            followed(&begun, begun.run, *detach, session).await
        }
        SnapshotCommand::Show { twin, snapshot } => {
            let query = of(twin).and("snapshots").and(snapshot);
            let answer: Snapshot = session.remote.get(&query).await?;
            session.answer(&answer, glance)
        }
    }
}

fn table(answer: &TwinSnapshots, view: &View) -> String {
    if answer.snapshots.is_empty() {
        return String::new();
    }
    let heading = ["", "SNAPSHOT", "TAKEN", "VERSION", "HOLDS", "WEIGHT", "USED", "STATE"];
    let mut table = Table::new(view, &heading);
    for one in &answer.snapshots {
        table.row([
            Cell::painted(if one.is_current { "*" } else { "" }, Paint::Green),
            Cell::painted(one.name.as_str(), Paint::Bold),
            Cell::from(one.at.map_or_else(|| "-".into(), |at| view.age(at.min(view.now)))),
            Cell::number(one.version.map_or_else(|| "-".into(), |version| format!("@{version}"))),
            Cell::from(one.kind.map_or("-", SnapshotKind::as_str)),
            Cell::from(one.weight.map_or("-", |weight| weight.as_str())),
            Cell::number(one.used_bytes.map_or_else(|| "-".into(), bytes)),
            match &one.damage {
                None => Cell::from("sound"),
                Some(damage) => Cell::painted(damage.as_str(), Paint::Red),
            },
        ]);
    }
    table.render("")
}

fn glance(one: &Snapshot, view: &View) -> String {
    let mut table = Table::new(view, &[]);
    let rows = [
        ("snapshot", Some(one.name.clone())),
        ("taken", one.at.map(|at| view.time(at))),
        ("version", one.version.map(|version| format!("@{version}"))),
        (
            "holds",
            one.kind.map(|kind| match kind {
                SnapshotKind::Live => "memory, devices and disk".to_owned(),
                SnapshotKind::Disk => "the disk alone".to_owned(),
            }),
        ),
        ("weight", one.weight.map(|weight| weight.to_string())),
        ("stood still", one.pause_us.map(|pause| format!("{} ms", pause / 1000))),
        ("used", one.used_bytes.map(bytes)),
        ("current", one.is_current.then(|| "yes".to_owned())),
        ("damage", one.damage.clone()),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            table.row([Cell::painted(name, Paint::Dim), Cell::from(value)]);
        }
    }
    table.render("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::tests::at;
    use api::twin::SnapshotWeight;
    use expect_test::expect;

    fn example() -> Snapshot {
        Snapshot {
            name: "before_upgrade".into(),
            kind: Some(SnapshotKind::Live),
            at: Some(at(0)),
            version: Some(412),
            weight: Some(SnapshotWeight::Named),
            pause_us: Some(9400),
            used_bytes: Some(220 << 20),
            is_current: true,
            damage: None,
        }
    }

    #[test]
    fn a_table_of_snapshots() {
        let damaged = Snapshot {
            name: "state_20261120_090000".into(),
            kind: None,
            at: None,
            version: None,
            weight: None,
            pause_us: None,
            used_bytes: None,
            is_current: false,
            damage: Some("its \x1b[2Jmanifest is damaged".into()),
        };
        let answer = TwinSnapshots {
            twin: "web01".into(),
            current: Some("before_upgrade".into()),
            snapshots: vec![damaged, example()],
        };
        expect![[r#"
               SNAPSHOT               TAKEN       VERSION  HOLDS  WEIGHT  USED     STATE
               state_20261120_090000  -                 -  -      -             -  its \x1b[2Jmanifest is damaged
            *  before_upgrade         15 min ago     @412  live   named   220 MiB  sound
        "#]].assert_eq(&table(&answer, &View::of_tests()));
        expect![[r#"
            snapshot     before_upgrade
            taken        2026-11-20T09:00:00Z
            version      @412
            holds        memory, devices and disk
            weight       named
            stood still  9 ms
            used         220 MiB
            current      yes
        "#]]
        .assert_eq(&glance(&example(), &View::of_tests()));
    }
}
