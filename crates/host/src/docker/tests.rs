//! Captured, hostile and missing answers; and an engine of canned answers on a real socket.

use super::*;
use model::entity::Entity;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

const INSPECT: &str = include_str!("../../tests/fixtures/docker/inspect.json");

fn redactor() -> Redactor {
    Redactor::new([7; 32], Vec::new())
}

fn show(container: &Container) -> String {
    let (subject, fields) = container.to_item();
    let lines = fields.into_iter().map(|(name, value)| format!("  {name}: {}\n", value.to_json()));
    std::iter::once(format!("{subject}\n")).chain(lines).collect()
}

#[test]
fn a_captured_container() {
    let inspected: Inspected = serde_json::from_str(INSPECT).unwrap();
    let image = r#"{"RepoDigests":["a@sha256:1"],"Config":{"Env":["PATH=/usr/bin:/bin"]}}"#;
    let image: Image = serde_json::from_str(image).unwrap();
    let container = container::container(inspected, Some(&image), &redactor());
    let shown = show(&container);
    expect_test::expect_file!["../../tests/fixtures/docker/inspect.expected"].assert_eq(&shown);
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn what_else_a_container_was_made_with() {
    let check = |made: &str, hostname: &str, options: &[&str], networks: &[&str]| {
        let json = format!(
            r#"{{"Id":"0a1b2c","Config":{{"Hostname":"{hostname}"}},"HostConfig":{made},
            "NetworkSettings":{{"Networks":{{}}}}}}"#
        );
        let inspected: Inspected = serde_json::from_str(&json).unwrap();
        let seen = container::container(inspected, None, &redactor());
        assert_eq!((seen.options, seen.networks), (strings(options), strings(networks)), "{made}");
    };
    let usual = r#"{"CapAdd":null,"CapDrop":[],"Devices":[],"Init":false,"IpcMode":"private",
        "Runtime":"runc","CpuShares":0,"PidMode":"","Sysctls":{}}"#;
    check(usual, "0a1b", &[], &[]);
    let many = r#"{"CapAdd":["NET_ADMIN"],"Sysctls":{"a":"b"},"Init":true,"IpcMode":"host",
        "CpuShares":7,"Runtime":"kata","NetworkMode":"container:ff00"}"#;
    let options = ["cap-add", "cpu-shares", "hostname", "init", "ipc", "runtime", "sysctl"];
    check(many, "web", &options, &["container:ff00"]);
    check(r#"{"NetworkMode":"host"}"#, "web", &[], &[]);
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn anything_may_be_missing_or_null() {
    for text in [
        "{}",
        r#"{"Id":null,"Name":null,"Config":null,"HostConfig":null,"State":null,"Mounts":null}"#,
        r#"{"Config":{"Cmd":"top","Env":null,"Labels":null,"Entrypoint":null}}"#,
        r#"{"HostConfig":{"PortBindings":{"80/tcp":null},"CpuQuota":9223372036854775807}}"#,
        r#"{"State":{"StartedAt":"0001-01-01T00:00:00Z","Health":{}},"Created":"yesterday"}"#,
    ] {
        let inspected: Inspected = serde_json::from_str(text).unwrap();
        container::container(inspected, None, &redactor());
    }
}

#[test]
fn names_that_lead_elsewhere_are_not_asked_about() {
    assert!(is_id("sha256:abc") && is_id("web_1.a-b"));
    for bad in ["", "../x", "a/b", "a?b", "a b", "a\r\nHost: x", "ä"] {
        assert!(!is_id(bad), "{bad}");
    }
}

/// Answers each connection with the first canned answer whose path the request begins with.
async fn engine(listener: UnixListener, answers: Vec<(&'static str, String)>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let mut request = vec![0; 4096];
        let count = stream.read(&mut request).await.unwrap_or(0);
        let request = String::from_utf8_lossy(&request[..count]).into_owned();
        let path = request.split(' ').nth(1).unwrap_or_default();
        let answer = answers.iter().find(|(start, _)| path.starts_with(start));
        let answer = match answer {
            Some((_, body)) if body.starts_with("HTTP/") => body.clone(),
            Some((_, body)) => {
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            }
            None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes()).await.ok();
    }
}

async fn with_engine<T>(
    answers: Vec<(&'static str, String)>,
    ask: impl AsyncFnOnce(Docker) -> T,
) -> T {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let docker = Docker::new(&socket, redactor());
    tokio::select! {
        () = engine(listener, answers) => panic!("the engine ended"),
        result = ask(docker) => result,
    }
}

#[tokio::test]
async fn containers_of_an_engine() {
    let answers = vec![
        ("/containers/json", r#"[{"Id":"c1"},{"Id":"gone"},{"Id":"../evil"}]"#.to_owned()),
        ("/containers/c1/json", INSPECT.to_owned()),
        ("/images/", r#"{"RepoDigests":["nginx@sha256:feed"]}"#.to_owned()),
    ];
    with_engine(answers, async |docker| {
        let containers = docker.containers().await.unwrap().containers;
        assert_eq!(containers.len(), 1, "what is gone meanwhile is left out");
        assert_eq!(containers[0].image_digest.as_deref(), Some("sha256:feed"));
    })
    .await;
}

#[tokio::test]
async fn a_container_that_can_not_be_read_hides_no_other() {
    const OOPS: &str = "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n";
    let list = r#"[{"Id":"c3"},{"Id":"c2","Names":["/web/db","/db"]},{"Id":"c1","Names":null}]"#;
    let answers = vec![
        ("/containers/json", list.to_owned()),
        ("/containers/c1/json", INSPECT.to_owned()),
        ("/containers/c2/json", OOPS.to_owned()),
        ("/containers/c3/json", "nonsense".to_owned()),
        ("/images/", r#"{"RepoDigests":["nginx@sha256:feed"]}"#.to_owned()),
    ];
    with_engine(answers, async |docker| {
        let Listing { containers, unread } = docker.containers().await.unwrap();
        assert_eq!(containers.len(), 1);
        let unread: Vec<_> = unread.iter().map(|one| (&*one.id, &*one.name, &one.error)).collect();
        assert!(
            matches!(
                unread[..],
                [
                    ("c3", "c3", Error::Answer { .. }),
                    ("c2", "db", Error::Status { status: 500, .. })
                ]
            ),
            "{unread:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn the_image_that_counts_is_the_one_a_container_was_made_from() {
    let id = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let made = format!(r#"{{"Image":"{}","Config":{{"Image":"lab/x:1"}}}}"#, id("a"));
    let answers = vec![
        ("/containers/web/json", made),
        ("/images/sha256:aaaa", format!(r#"{{"Id":"{}","Size":7}}"#, id("a"))),
        ("/images/lab/x:1/json", format!(r#"{{"Id":"{}","Size":8}}"#, id("b"))),
        ("/images/lab/odd/json", r#"{"Id":"nonsense"}"#.to_owned()),
        ("/images/sha256:bbbb", "archive".to_owned()),
    ];
    with_engine(answers, async |docker| {
        let check = async |image: &str, container: Option<&str>, expected: Option<(&str, u64)>| {
            let container = container.map(|name| name.parse().unwrap());
            let found = docker.image(&image.parse().unwrap(), container.as_ref()).await.unwrap();
            let expected = expected.map(|(digit, bytes)| (id(digit), bytes));
            assert_eq!(found.map(|found| (found.id.to_string(), found.bytes)), expected);
        };
        check("lab/x:1", Some("web"), Some(("a", 7))).await;
        check("lab/x:1", Some("gone"), Some(("b", 8))).await;
        check("lab/x:1", None, Some(("b", 8))).await;
        check("lab/other", Some("web"), None).await;
        check("lab/odd", None, None).await;
        let mut export = docker.export(&id("b").parse().unwrap()).await.unwrap();
        assert_eq!(export.next().await.unwrap().unwrap(), "archive");
        assert!(export.next().await.unwrap().is_none());
        assert!(docker.export(&id("c").parse().unwrap()).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn answers_that_are_wrong_are_faults() {
    let check = async |answer: &str, expected: fn(&Error) -> bool| {
        let answers = vec![("/containers/json", answer.to_owned())];
        with_engine(answers, async |docker| {
            let error = docker.containers().await.unwrap_err();
            assert!(expected(&error) && !error.is_absent(), "{error:?}");
        })
        .await;
    };
    check("not json", |e| matches!(e, Error::Answer { .. })).await;
    check("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", |e| {
        matches!(e, Error::Status { status: 500, .. })
    })
    .await;
    check("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", |e| matches!(e, Error::Request { .. }))
        .await;
    check("HTTP/nonsense\r\n\r\n", |e| matches!(e, Error::Request { .. })).await;
}

#[tokio::test]
async fn nobody_there_is_absent_and_a_socket_without_anybody_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let docker = Docker::new(&socket, redactor());
    assert!(docker.containers().await.unwrap_err().is_absent());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(docker.containers().await.unwrap_err().is_stopped());
    assert!(docker.watch().await.unwrap_err().is_stopped());
    assert!(docker.answers().await.unwrap_err().is_stopped());
}

#[tokio::test(start_paused = true)]
async fn silence_meets_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let docker = Docker::new(&socket, redactor());
    assert!(matches!(docker.containers().await, Err(Error::Deadline { .. })));
}

#[tokio::test]
async fn a_watch_ends_with_its_stream() {
    let event = r#"{"Type":"container","Action":"start","Actor":{"ID":"c1"}}"#;
    let stream = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{event}\n\r\n",
        event.len() + 1
    );
    with_engine(vec![("/events", stream)], async |docker| {
        let mut watch = docker.watch().await.unwrap();
        assert_eq!(watch.next().await.unwrap(), ContainerEvent::Changed("c1".into()));
        assert!(watch.next().await.is_err());
    })
    .await;
}

proptest! {
    #[test]
    fn any_text_in_any_field(value in ".{0,40}") {
        let text = serde_json::to_string(&value).unwrap();
        let json = format!(
            r#"{{"Id":{text},"Name":{text},"Created":{text},"State":{{"Status":{text}}},
            "Config":{{"Env":[{text}],"Cmd":[{text}],"Labels":{{{text}:{text}}}}},
            "HostConfig":{{"Links":[{text}],"PortBindings":{{{text}:[{{"HostPort":{text}}}]}}}},
            "Mounts":[{{"Type":{text},"Destination":{text}}}]}}"#
        );
        let inspected: Inspected = serde_json::from_str(&json).unwrap();
        let container = container::container(inspected, None, &redactor());
        prop_assert!(!container.name.chars().any(char::is_control));
    }
}
