use super::*;
use crate::commands::list::tests::host;
use crate::entry::tests::{at, entry};
use crate::fake_server::{FakeServer, Reply};
use api::answer::{Hosts, Log};

const CHANGE: &str = r#"unit:a.service|{"main_pid":1}|{"main_pid":2}"#;

fn event(host: &str, version: u64) -> String {
    event_of(&said(host, version, 0), &version.to_string())
}

fn event_of(entry: &Entry, id: &str) -> String {
    let data = serde_json::to_string(entry).unwrap();
    format!(": hello\n\nid: {id}\nevent: version\ndata: {data}\n\n")
}

/// An entry so many seconds after the others.
fn said(host: &str, version: u64, seconds: i64) -> Entry {
    let (at, received_at) = (at(seconds), at(seconds + 1));
    let host = HostId::new(host).unwrap();
    Entry { host, at, received_at, ..entry(version, &[CHANGE]) }
}

fn at_version(name: &str, version: u64) -> Host {
    Host { version: Version(version), ..host(name) }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deadline = Duration::from_secs(30);
    runtime.block_on(async { tokio::time::timeout(deadline, work).await.expect("in time") })
}

async fn take(follow: &mut Follow, number: usize) -> Vec<String> {
    let mut taken = Vec::new();
    for _ in 0..number {
        let entry = follow.next().await.unwrap();
        taken.push(format!("{}{}", entry.host, entry.version));
    }
    taken
}

fn one_host() -> Scope {
    Scope::Host { host: HostId::new("web01").unwrap(), subjects: vec!["a.service".into()] }
}

/// The first connection ends in the middle of an event, the second says that it lost some,
/// the third is refused as overloaded; each brings some versions again.
#[test]
fn nothing_is_lost_or_doubled_over_reconnects() {
    let server = FakeServer::start(|request, nth| match request {
        "/api/v1/hosts/web01" => Reply::json(&at_version("web01", 10)),
        "/api/v1/hosts/web01/events?from=10&subject=a.service" => {
            let cut = event("web01", 13);
            Reply::events(event("web01", 11) + &event("web01", 12) + &cut[..cut.len() / 2])
        }
        "/api/v1/hosts/web01/events?from=12&subject=a.service" if nth == 0 => Reply::events(
            event("web01", 12) + &event("web01", 13) + "event: lost\ndata: {\"resume\":13}\n\n",
        ),
        "/api/v1/hosts/web01/events?from=13&subject=a.service" if nth == 0 => Reply::status(503),
        "/api/v1/hosts/web01/events?from=13&subject=a.service" => {
            Reply::events(event("web01", 13) + &event("web01", 14) + &event("web01", 16)).held()
        }
        other => panic!("{other}"),
    });
    let taken = wait(async {
        let remote = Remote::new(&server.url(), None).unwrap();
        let mut follow = Follow::new(remote, one_host(), None).await.unwrap();
        take(&mut follow, 5).await
    });
    assert_eq!(taken, ["web01@11", "web01@12", "web01@13", "web01@14", "web01@16"]);
}

/// What all hosts did while nobody was connected is read from their logs.
#[test]
fn all_hosts_are_caught_up() {
    let server = FakeServer::start(|request, nth| match (request, nth) {
        ("/api/v1/hosts?limit=500", 0) => {
            Reply::json(&Hosts { hosts: vec![at_version("a", 5)], next: None })
        }
        ("/api/v1/hosts?limit=500", 1) => {
            Reply::json(&Hosts { hosts: vec![at_version("a", 5)], next: None })
        }
        ("/api/v1/hosts?limit=500", _) => Reply::json(&Hosts {
            hosts: vec![at_version("a", 8), at_version("new", 1)],
            next: None,
        }),
        ("/api/v1/events", 0) => Reply::events(event("a", 5) + &event("a", 6)),
        ("/api/v1/events", _) => Reply::events(event("a", 8) + &event("a", 9)).held(),
        (log, _) if log.starts_with("/api/v1/hosts/a/log?") => {
            let page = |versions: &[u64], next: Option<u64>| Log {
                host: HostId::new("a").unwrap(),
                subjects: vec![],
                entries: versions
                    .iter()
                    .map(|&v| Entry { host: HostId::new("a").unwrap(), ..entry(v, &[CHANGE]) })
                    .collect(),
                next: next.map(Version),
            };
            if log.contains("before=8") {
                Reply::json(&page(&[7, 6, 5], Some(5)))
            } else {
                Reply::json(&page(&[8], Some(8)))
            }
        }
        ("/api/v1/hosts/new/log?limit=200", _) => Reply::json(&Log {
            host: HostId::new("new").unwrap(),
            subjects: vec![],
            entries: vec![Entry {
                host: HostId::new("new").unwrap(),
                at: at(9),
                ..entry(1, &[CHANGE])
            }],
            next: None,
        }),
        other => panic!("{other:?}"),
    });
    let taken = wait(async {
        let remote = Remote::new(&server.url(), None).unwrap();
        let mut follow = Follow::new(remote, Scope::All, None).await.unwrap();
        take(&mut follow, 5).await
    });
    assert_eq!(taken, ["a@6", "a@7", "a@8", "new@1", "a@9"]);
}

/// What is given out when one connection brings these, and then stays open.
fn brought(scope: Scope, events: &[String], number: usize) -> Vec<String> {
    let events = events.concat();
    let server = FakeServer::start(move |request, _| match request {
        "/api/v1/hosts/web01" => Reply::json(&at_version("web01", 10)),
        "/api/v1/hosts?limit=500" => {
            Reply::json(&Hosts { hosts: vec![at_version("web01", 10)], next: None })
        }
        _ => Reply::events(events.clone()).held(),
    });
    wait(async {
        let remote = Remote::new(&server.url(), None).unwrap();
        let mut follow = Follow::new(remote, scope, None).await.unwrap();
        take(&mut follow, number).await
    })
}

/// A host that is deleted and comes back counts from 1 again.
#[test]
fn another_life_is_told_from_its_beginning() {
    let told = ["web01@11", "web01@1", "web01@2", "web01@3"];
    let at_once = || [event("web01", 11), event("web01", 1), event("web01", 2), event("web01", 3)];
    for scope in [one_host(), Scope::All] {
        assert_eq!(brought(scope.clone(), &at_once(), 4), told, "it steps back");
        let later = [2, 3].map(|version| event_of(&said("web01", version, 60), "2"));
        assert_eq!(brought(scope.clone(), &later, 2), told[2..], "they are of a later time");
        // At the same second and with versions as before, only the ids tell the lives apart.
        let named = [
            ("web01", 11, "web01:11-0a"),
            ("web01", 12, "12-0a"),
            ("web01", 12, "12-0a"),
            ("web01", 14, "14-7d"),
        ]
        .map(|(host, version, id)| event_of(&said(host, version, 0), id));
        assert_eq!(brought(scope, &named, 3), ["web01@11", "web01@12", "web01@14"]);
    }
}

/// A life that began while nobody was connected and went further than the last one was seen.
#[test]
fn another_life_is_found_after_a_reconnect() {
    let born =
        |version: u64, first: i64| Host { first_at: at(first), ..at_version("web01", version) };
    let server = FakeServer::start(move |request, nth| match request {
        "/api/v1/hosts/web01" if nth == 0 => Reply::json(&born(10, -500)),
        "/api/v1/hosts/web01" => Reply::json(&born(12, 60)),
        "/api/v1/hosts/web01/events?from=10&subject=a.service" => Reply::events(event("web01", 11)),
        "/api/v1/hosts/web01/events?from=0&subject=a.service" => {
            let events = [1, 12].map(|version| event_of(&said("web01", version, 60), "x"));
            Reply::events(events.concat()).held()
        }
        other => panic!("{other}"),
    });
    let taken = wait(async {
        let remote = Remote::new(&server.url(), None).unwrap();
        let mut follow = Follow::new(remote, one_host(), None).await.unwrap();
        take(&mut follow, 3).await
    });
    assert_eq!(taken, ["web01@11", "web01@1", "web01@12"]);

    let server = FakeServer::start(move |request, nth| match request {
        "/api/v1/hosts?limit=500" if nth < 2 => {
            Reply::json(&Hosts { hosts: vec![born(10, -500)], next: None })
        }
        "/api/v1/hosts?limit=500" => Reply::json(&Hosts { hosts: vec![born(11, 60)], next: None }),
        "/api/v1/events" if nth == 0 => Reply::events(String::new()),
        "/api/v1/events" => Reply::events(event_of(&said("web01", 11, 60), "web01:11")).held(),
        "/api/v1/hosts/web01/log?limit=200" => Reply::json(&Log {
            host: HostId::new("web01").unwrap(),
            subjects: vec![],
            entries: [11, 1].map(|version| said("web01", version, 60)).into(),
            next: None,
        }),
        other => panic!("{other}"),
    });
    let taken = wait(async {
        let remote = Remote::new(&server.url(), None).unwrap();
        let mut follow = Follow::new(remote, Scope::All, None).await.unwrap();
        take(&mut follow, 2).await
    });
    assert_eq!(taken, ["web01@1", "web01@11"]);
}

#[test]
fn ids() {
    for (id, expected) in [
        ("412", None),
        ("412-7d", Some("7d")),
        ("my-host:412", None),
        ("my-host:412-7d", Some("7d")),
        ("412-", None),
        ("", None),
    ] {
        assert_eq!(life(id), expected, "{id}");
    }
}

/// Streams bring only the first changes of a version; JSON has them all.
#[test]
fn an_entry_is_completed() {
    let short = Entry { total_changes: 2, ..said("web01", 11, 0) };
    let event = event_of(&short, "11");
    let server = FakeServer::start(move |request, _| match request {
        "/api/v1/hosts/web01" => Reply::json(&at_version("web01", 10)),
        "/api/v1/hosts/web01/log?subject=a.service&before=12&limit=1&changes=1000000&related=true" =>
        {
            let whole = entry(11, &[CHANGE, r#"package:a|{"version":"1"}|"#]);
            let host = HostId::new("web01").unwrap();
            Reply::json(&Log { host, subjects: vec![], entries: vec![whole], next: None })
        }
        _ => Reply::events(event.clone()).held(),
    });
    let changes = wait(async {
        let remote = Remote::new(&server.url(), None).unwrap();
        let mut follow = Follow::new(remote, one_host(), None).await.unwrap();
        let entry = follow.next().await.unwrap();
        follow.whole(entry).await.changes.len()
    });
    assert_eq!(changes, 2);
}

#[test]
fn a_refusal_ends_it() {
    let refused = |reply: fn() -> Reply| {
        let server = FakeServer::start(move |request, _| match request {
            "/api/v1/hosts/web01" => Reply::json(&at_version("web01", 10)),
            _ => reply(),
        });
        wait(async {
            let remote = Remote::new(&server.url(), Some("twt_x".into())).unwrap();
            Follow::new(remote, one_host(), None).await.err().unwrap().code()
        })
    };
    assert_eq!(refused(|| Reply::status(401)), 5);
    assert_eq!(refused(|| Reply::status(404)), 4);
    assert_eq!(refused(|| Reply::status(503)), 3);
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let failure = wait(async {
        let remote = Remote::new("http://127.0.0.1:1", None).unwrap();
        Follow::new(remote, Scope::All, None).await.err().unwrap()
    });
    assert_eq!(failure.code(), 3);
    assert!(
        failure
            .line()
            .unwrap()
            .starts_with("twin: no server at http://127.0.0.1:1 (connection refused)")
    );
}
