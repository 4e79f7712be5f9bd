//! `twin list`: the hosts, and their twins.

use crate::failure::Failure;
use crate::session::{Session, note};
use crate::table::{Cell, Table};
use crate::view::{Paint, View, bytes};
use api::answer::Hosts;
use api::twin::{Twin, Twins, UnusableTwin};
use serde::Serialize;

/// Hosts that are listed at most.
const MAX_HOSTS: usize = 100_000;

pub(crate) async fn run(session: &mut Session) -> Result<(), Failure> {
    let hosts = session.remote.hosts(MAX_HOSTS).await?;
    if hosts.is_empty() {
        let url = session.remote.url();
        note(&format!("no hosts yet; start an agent on one with: twin agent --server {url}"));
    }
    // Where none can run, hosts are listed all the same.
    let Twins { twins, unusable, .. } = session.remote.twins().await.unwrap_or_default();
    let listed = Listed { hosts: Hosts { hosts, next: None }, twins, unusable };
    session.answer(&listed, |listed, view| {
        let parts = [
            render(&listed.hosts, view),
            machines(&listed.twins, view),
            unusable_ones(&listed.unusable, view),
        ];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
    })
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    hosts: Hosts,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    twins: Vec<Twin>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unusable: Vec<UnusableTwin>,
}

fn unusable_ones(twins: &[UnusableTwin], view: &View) -> String {
    if twins.is_empty() {
        return String::new();
    }
    let mut table = Table::new(view, &["TWIN", "BY", "CAN'T BE USED"]);
    for twin in twins {
        table.row([
            Cell::painted(twin.name.as_str(), Paint::Bold),
            Cell::from(twin.hypervisor.as_str()),
            Cell::painted(twin.reason.as_str(), Paint::Red),
        ]);
    }
    table.render("")
}

fn machines(twins: &[Twin], view: &View) -> String {
    if twins.is_empty() {
        return String::new();
    }
    let heading =
        ["TWIN", "STATE", "FOLLOWS", "FIDELITY", "CLONED FROM", "MEMORY", "DISK", "NETWORK", "RUN"];
    let mut table = Table::new(view, &heading);
    for twin in twins {
        let (said, paint) = super::twin::state(twin);
        let origin = twin.origin.as_ref();
        let origin = origin.map(|origin| format!("{}@{}", origin.twin, origin.snapshot));
        let following = twin.following.as_ref();
        let (follows, how) = following.map_or(("-".into(), Paint::None), super::following::state);
        let fidelity = following.and_then(|following| following.fidelity_per_mille);
        table.row([
            Cell::painted(twin.name.as_str(), Paint::Bold),
            Cell::painted(said, paint),
            Cell::painted(follows, how),
            Cell::number(fidelity.map_or_else(|| "-".into(), super::following::per_cent)),
            Cell::from(origin.unwrap_or_else(|| "-".into())),
            Cell::number(bytes(twin.memory_bytes)),
            Cell::number(bytes(twin.used_bytes)),
            Cell::from(twin.network.as_str()),
            Cell::from(twin.run.map_or_else(|| "-".into(), |run| run.to_string())),
        ]);
    }
    table.render("")
}

fn render(answer: &Hosts, view: &View) -> String {
    if answer.hosts.is_empty() {
        return String::new();
    }
    let heading = ["HOST", "VERSION", "CHANGED", "SEEN", "SYSTEM", "FAULTS", "LAST CHANGE"];
    let mut table = Table::new(view, &heading);
    for host in &answer.hosts {
        let faults: Vec<&str> = host.faults.keys().map(String::as_str).collect();
        table.row([
            Cell::painted(host.host.as_str(), Paint::Bold),
            Cell::number(host.version.to_string()),
            Cell::from(view.age(host.changed_at)),
            Cell::from(
                host.seen_at.map_or_else(|| "-".to_owned(), |time| view.age(time.min(view.now))),
            ),
            Cell::from(host.system.as_deref().unwrap_or("-")),
            match faults.as_slice() {
                [] => Cell::from("-"),
                faults => Cell::painted(faults.join(","), Paint::Red),
            },
            Cell::from(host.last_change.as_deref().unwrap_or("-")),
        ]);
    }
    table.render("")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::entry::tests::at;
    use api::answer::Host;
    use expect_test::expect;
    use model::{HostId, Version};

    pub(crate) fn host(name: &str) -> Host {
        Host {
            host: HostId::new(name).unwrap(),
            version: Version(412),
            first_at: at(-86_400 * 3),
            changed_at: at(0),
            seen_at: Some(at(896)),
            items: [("unit".to_owned(), 212)].into(),
            faults: [("docker".to_owned(), "connection refused".to_owned())].into(),
            limits: [].into(),
            last_change: Some("unit:nginx.service active → failed".to_owned()),
            system: Some("debian 12".to_owned()),
        }
    }

    #[test]
    fn a_table_of_hosts() {
        let hostile = Host {
            faults: [].into(),
            limits: [].into(),
            seen_at: None,
            system: None,
            last_change: Some("file:\x1b[2Jx\nweb03 @1 all well".to_owned()),
            version: Version(7),
            ..host("db.example")
        };
        let hosts = Hosts { hosts: vec![host("web01"), hostile], next: None };
        expect![[r#"
            HOST        VERSION  CHANGED     SEEN     SYSTEM     FAULTS  LAST CHANGE
            web01          @412  15 min ago  4 s ago  debian 12  docker  unit:nginx.service active → failed
            db.example       @7  15 min ago  -        -          -       file:\x1b[2Jx\nweb03 @1 all well
        "#]].assert_eq(&render(&hosts, &View::of_tests()));
        assert_eq!(render(&Hosts { hosts: vec![], next: None }, &View::of_tests()), "");
    }

    #[test]
    fn twins_that_can_not_be_used() {
        let twin = UnusableTwin {
            name: "web02".into(),
            hypervisor: "qemu".into(),
            reason: "web02 can't be read: \x1b[2J".into(),
        };
        expect![[r#"
            TWIN   BY    CAN'T BE USED
            web02  qemu  web02 can't be read: \x1b[2J
        "#]]
        .assert_eq(&unusable_ones(&[twin], &View::of_tests()));
        assert_eq!(unusable_ones(&[], &View::of_tests()), "");
    }

    #[test]
    fn a_table_of_twins() {
        let twin = crate::commands::twin::tests::example();
        let origin = api::twin::Origin { twin: "web01".into(), snapshot: "before".into() };
        let clone =
            Twin { name: "try".into(), origin: Some(origin), following: None, ..twin.clone() };
        expect![[r#"
            TWIN   STATE    FOLLOWS  FIDELITY  CLONED FROM   MEMORY   DISK     NETWORK   RUN
            try    running  -               -  web01@before  1.0 GiB  300 MiB  isolated  -
            web01  running  current    98.7 %  -             1.0 GiB  300 MiB  isolated  -
        "#]]
        .assert_eq(&machines(&[clone, twin], &View::of_tests()));
    }
}
