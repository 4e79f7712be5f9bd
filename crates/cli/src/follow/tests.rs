use super::*;
use crate::commands::list::tests::host;
use crate::entry::tests::entry;
use crate::fake_server::{FakeServer, Reply};
use api::answer::{Hosts, Log};

const CHANGE: &str = r#"unit:a.service|{"main_pid":1}|{"main_pid":2}"#;

fn event(host: &str, version: u64) -> String {
    let entry = Entry { host: HostId::new(host).unwrap(), ..entry(version, &[CHANGE]) };
    format!(
        ": hello\n\nid: {version}\nevent: version\ndata: {}\n\n",
        serde_json::to_string(&entry).unwrap()
    )
}

fn at_version(name: &str, version: u64) -> api::answer::Host {
    api::answer::Host { version: Version(version), ..host(name) }
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
                at: crate::entry::tests::at(9),
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
