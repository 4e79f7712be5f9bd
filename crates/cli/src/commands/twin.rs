//! `twin start`, `stop`, `restart`, `delete`, `clone`, `revert`: a twin as a machine. And how it reads.

use super::run::follow_to_end;
use crate::arguments::{
    CloneArguments, DeleteArguments, RevertArguments, StartArguments, StopArguments,
};
use crate::failure::Failure;
use crate::remote::{Query, Remote};
use crate::session::{Session, note, write};
use crate::table::{Cell, Table};
use crate::target::only_host;
use crate::view::{Paint, View, bytes};
use api::run::{Begun, RunId};
use api::twin::{BegunClones, BegunRevert, NewClones, Revert, Stop, Twin, TwinState};
use hyper::Method;
use model::HostId;
use model::terminal;
use serde::Serialize;

pub(crate) fn of(name: &HostId) -> Query {
    Query::of(&["twins", name.as_str()])
}

/// The twin that is named, or that of the server's only host.
pub(crate) async fn named(
    remote: &mut Remote,
    command: &str,
    name: Option<&HostId>,
) -> Result<HostId, Failure> {
    match name {
        Some(name) => Ok(name.clone()),
        None => only_host(remote, command).await,
    }
}

pub(crate) async fn start(
    arguments: &StartArguments,
    session: &mut Session,
) -> Result<(), Failure> {
    let name = named(&mut session.remote, "twin start", arguments.twin.name.as_ref()).await?;
    let query = of(&name).and("start");
    let begun: Begun = session.remote.post(&query, &arguments.wanted()).await?;
    followed(&begun, begun.run, arguments.twin.detach, session).await?;
    if !arguments.twin.detach {
        note(&format!("reach it with: twin ssh {name}"));
    }
    Ok(())
}

pub(crate) async fn stop(
    arguments: &StopArguments,
    what: &str,
    session: &mut Session,
) -> Result<(), Failure> {
    let name =
        named(&mut session.remote, &format!("twin {what}"), arguments.twin.name.as_ref()).await?;
    let asked = Stop { force: arguments.force };
    let begun: Begun = session.remote.post(&of(&name).and(what), &asked).await?;
    followed(&begun, begun.run, arguments.twin.detach, session).await
}

pub(crate) async fn delete(
    arguments: &DeleteArguments,
    session: &mut Session,
) -> Result<(), Failure> {
    let begun: Begun = session.remote.ask(Method::DELETE, &of(&arguments.name)).await?;
    followed(&begun, begun.run, arguments.detach, session).await
}

pub(crate) async fn clone(
    arguments: &CloneArguments,
    session: &mut Session,
) -> Result<(), Failure> {
    let asked = NewClones {
        snapshot: arguments.of.snapshot.clone(),
        count: arguments.count,
        name: arguments.name.clone(),
    };
    let query = of(&arguments.of.name).and("clone");
    let begun: BegunClones = session.remote.post(&query, &asked).await?;
    followed(&begun, begun.run, arguments.detach, session).await?;
    if !arguments.detach {
        for name in &begun.twins {
            note(&format!("reach it with: twin ssh {name}"));
        }
    }
    Ok(())
}

pub(crate) async fn revert(
    arguments: &RevertArguments,
    session: &mut Session,
) -> Result<(), Failure> {
    let asked = Revert { snapshot: arguments.to.snapshot.clone() };
    let query = of(&arguments.to.name).and("revert");
    let begun: BegunRevert = session.remote.post(&query, &asked).await?;
    followed(&begun, begun.run, arguments.detach, session).await
}

/// Shows a run's log to its end, or only says which run it is.
pub(crate) async fn followed(
    begun: &impl Serialize,
    run: RunId,
    detach: bool,
    session: &mut Session,
) -> Result<(), Failure> {
    if detach {
        let text = format!("{run}\n");
        return write(&if session.json { terminal::json(begun) } else { text });
    }
    note(&format!("run {run}; it goes on without this command: twin run logs -f {run}"));
    follow_to_end(run, 0, session).await
}

/// `running`, and whether that is so in the guest's eyes.
pub(crate) fn state(twin: &Twin) -> (String, Paint) {
    match (twin.state, twin.answers) {
        (TwinState::Running, Some(false)) => ("running, does not answer".into(), Paint::Yellow),
        (TwinState::Running, _) => ("running".into(), Paint::Green),
        (TwinState::Stopped, _) => ("stopped".into(), Paint::Dim),
        (TwinState::Stuck, _) => {
            let reason = twin.reason.as_deref().unwrap_or("for no reason it tells");
            (format!("stuck: {reason}"), Paint::Red)
        }
    }
}

/// A twin in rows of name and value.
pub(crate) fn glance(twin: &Twin, view: &View) -> String {
    let (said, paint) = state(twin);
    let origin = twin.origin.as_ref();
    let acceleration = twin.acceleration.as_deref().map(|with| format!(" with {with}"));
    let image: String = twin.image.chars().take(12).collect();
    let machine = format!(
        "{} processors, {} memory, {}{}, image {image}",
        twin.processors,
        bytes(twin.memory_bytes),
        twin.hypervisor,
        acceleration.unwrap_or_default(),
    );
    let way_in = twin.ssh.as_ref().map(|ssh| {
        format!("twin ssh {} ({}@{} port {})", twin.name, ssh.user, ssh.address, ssh.port)
    });
    let mut table = Table::new(view, &[]);
    table.row([Cell::painted("twin", Paint::Dim), Cell::painted(said, paint)]);
    let following = twin.following.as_ref();
    for (label, text) in
        following.map(|one| super::following::rows(&twin.name, one, view)).unwrap_or_default()
    {
        table.row([Cell::painted(label, Paint::Dim), Cell::from(text)]);
    }
    for (label, text) in [
        ("cloned from", origin.map(|origin| format!("{}@{}", origin.twin, origin.snapshot))),
        ("machine", Some(machine)),
        ("network", Some(format!("{}, {}", twin.network, twin.mac))),
        ("snapshot", twin.current_snapshot.clone()),
        ("disk", Some(format!("{} of its own", bytes(twin.used_bytes)))),
        ("reach it", way_in),
        ("run", twin.run.map(|run| format!("twin run logs -f {run}"))),
    ] {
        if let Some(text) = text {
            table.row([Cell::painted(label, Paint::Dim), Cell::from(text)]);
        }
    }
    table.render("")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use api::twin::{Origin, Ssh, TwinNetwork};
    use expect_test::expect;

    pub(crate) fn example() -> Twin {
        Twin {
            name: "web01".into(),
            state: TwinState::Running,
            reason: None,
            answers: Some(true),
            image: "0123456789abcdef".repeat(4),
            memory_bytes: 1 << 30,
            processors: 2,
            mac: "52:54:00:12:34:56".into(),
            network: TwinNetwork::Isolated,
            hypervisor: "qemu".into(),
            acceleration: Some("tcg".into()),
            origin: None,
            current_snapshot: Some("before_upgrade".into()),
            used_bytes: 300 << 20,
            ssh: Some(Ssh {
                address: "127.0.0.1".into(),
                port: 40022,
                user: "twin".into(),
                host_keys: vec![],
                key: "/d/access/login".into(),
                known_hosts: "/d/access/known_hosts/web01".into(),
            }),
            following: Some(crate::commands::following::tests::current()),
            run: None,
        }
    }

    #[test]
    fn one_twin() {
        expect![[r#"
            twin      running
            follows   current
            version   @412 of @412, there after 1.2 s
            fidelity  98.7 %, 9 things not reproduced; looked at 20 s ago
            machine   2 processors, 1.0 GiB memory, qemu with tcg, image 0123456789ab
            network   isolated, 52:54:00:12:34:56
            snapshot  before_upgrade
            disk      300 MiB of its own
            reach it  twin ssh web01 (twin@127.0.0.1 port 40022)
        "#]]
        .assert_eq(&glance(&example(), &View::of_tests()));
        let clone = Twin {
            name: "try".into(),
            state: TwinState::Stuck,
            reason: Some("its \x1b[2Jdisk is full".into()),
            origin: Some(Origin { twin: "web01".into(), snapshot: "before".into() }),
            ssh: None,
            following: None,
            current_snapshot: None,
            acceleration: None,
            ..example()
        };
        expect![[r#"
            twin         stuck: its \x1b[2Jdisk is full
            cloned from  web01@before
            machine      2 processors, 1.0 GiB memory, qemu, image 0123456789ab
            network      isolated, 52:54:00:12:34:56
            disk         300 MiB of its own
        "#]]
        .assert_eq(&glance(&clone, &View::of_tests()));
    }
}
