//! Sessions.

use crate::common::{Kept, clock, rename, until};
use crate::process::Process;
use model::Time;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use sinks::{
    Draft, Edit, Endpoints, Error, Lease, Policy, Receivers, RedisSettings, RedisSink,
    SessionChange, Target, deliver, stamp,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

async fn server(further: &[&str]) -> Process {
    Process::start("SAFETYTWIN_REDIS_SERVER", |port, directory| {
        let port = port.to_string();
        let fixed = ["--bind", "127.0.0.1", "--port", &port, "--dir", directory, "--save", ""];
        // What was answered outlives a kill.
        let kept = ["--appendonly", "yes", "--appendfsync", "always"];
        fixed.iter().chain(&kept).chain(further).map(|&argument| argument.to_owned()).collect()
    })
    .await
}

fn sink(server: &Process) -> RedisSink {
    RedisSink::new(settings(server)).unwrap()
}

fn settings(server: &Process) -> RedisSettings {
    RedisSettings {
        host: "127.0.0.1".to_owned(),
        port: server.port,
        username: None,
        password: None,
        timeout: Duration::from_secs(2),
    }
}

async fn connect(server: &Process) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}/", server.port)).unwrap();
    // Thousands of sessions are put there at once, each synced to a disk that others use, too.
    let patient = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
    client.get_multiplexed_async_connection_with_config(&patient).await.unwrap()
}

/// Starts it again, until it has read what it kept.
async fn up(server: &mut Process) -> MultiplexedConnection {
    server.up().await;
    let connection = connect(server).await;
    until("Redis has read what it kept", || {
        let mut connection = connection.clone();
        async move { redis::cmd("DBSIZE").query_async::<usize>(&mut connection).await.is_ok() }
    })
    .await;
    connection
}

async fn ask<T: redis::FromRedisValue>(
    connection: &mut MultiplexedConnection,
    words: &[&str],
) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(connection).await.unwrap()
}

async fn session(connection: &mut MultiplexedConnection, key: &str) -> Value {
    let text: String = ask(connection, &["GET", key]).await;
    serde_json::from_str(&text).unwrap()
}

fn key(number: usize) -> String {
    format!("{number:030}").replace('0', "a")
}

fn edit(number: usize, vm: &str, change: SessionChange) -> Edit {
    Edit { id: format!("{number:016x}-0000beef"), vm: vm.to_owned(), change }
}

fn renamed(number: usize, vm: &str, old: &str, new: &str) -> Edit {
    edit(number, vm, SessionChange::Rename { old: old.to_owned(), new: new.to_owned() })
}

fn since() -> Time {
    stamp::read("01-07-2024: 12:34:00").unwrap()
}

/// All there is, and until when each lives.
async fn everything(connection: &mut MultiplexedConnection) -> BTreeMap<String, (Vec<u8>, i64)> {
    let keys: Vec<String> = ask(connection, &["KEYS", "*"]).await;
    let mut all = BTreeMap::new();
    for key in keys {
        let dump: Vec<u8> = ask(connection, &["DUMP", &key]).await;
        let until: i64 = ask(connection, &["PEXPIRETIME", &key]).await;
        all.insert(key, (dump, until));
    }
    all
}

#[tokio::test]
async fn only_sessions_change_and_live_as_long_as_before() {
    let server = server(&[]).await;
    let mut redis = connect(&server).await;
    let (with_life, for_ever) = (key(1), key(2));
    let text = r#"{"user": "u", "vms": ["a", "b", "c"], "orphans": [{"name": "d", "since": "x"}]}"#;
    ask::<()>(&mut redis, &["SET", &with_life, text, "PX", "86399123"]).await;
    ask::<()>(&mut redis, &["SET", &for_ever, text]).await;
    // What only looks like it.
    let large = format!(r#"{{"vms":["a"],"x":"{}"}}"#, "x".repeat(1 << 20));
    for (number, value) in [
        (11, "no JSON"),
        (12, r#"{"orphans": []}"#),
        (13, r#"["a"]"#),
        (14, r#"{"vms": "a"}"#),
        (15, ""),
        (16, r#"{"vms": ["other"]}"#),
        (17, &large),
    ] {
        ask::<()>(&mut redis, &["SET", &key(number), value, "PX", "86399123"]).await;
    }
    ask::<()>(&mut redis, &["HSET", &key(18), "vms", "a"]).await;
    ask::<()>(&mut redis, &["RPUSH", &key(19), text]).await;
    ask::<()>(&mut redis, &["SET", &key(20)[1..], text]).await;
    ask::<()>(&mut redis, &["SET", &format!("{}:", &key(21)[1..]), text]).await;
    ask::<()>(&mut redis, &["SET", &format!("{}a", key(22)), text]).await;
    let before = everything(&mut redis).await;

    let sink = sink(&server);
    let edits = [
        renamed(1, "1", "a", "z"),
        edit(2, "2", SessionChange::Orphan { name: "b".to_owned(), since: since() }),
        edit(3, "4", SessionChange::Reactivate { name: "d".to_owned() }),
    ];
    let applied = sink.apply(&edits).await.unwrap();
    assert_eq!((applied.sessions, applied.changed), (9, 2), "{applied:?}");
    let reasons: BTreeSet<&str> = applied
        .skipped
        .iter()
        .filter_map(|skipped| skipped.split_once(": "))
        .map(|s| s.1)
        .collect();
    let wanted = [
        "it has no `vms`",
        "it is larger than 1 MiB",
        "it is no JSON object",
        "its `vms` are no list",
    ];
    assert_eq!(reasons, BTreeSet::from(wanted));
    // Said again, as after a crash, it changes nothing.
    assert_eq!(sink.apply(&edits).await.unwrap().changed, 0);
    sink.forget().await.unwrap();

    let wanted = json!({
        "user": "u", "vms": ["z", "c", "d"], "orphans": [{"name": "b", "since": "01-07-2024: 12:34:00"}],
    });
    assert_eq!(session(&mut redis, &with_life).await, wanted);
    assert_eq!(session(&mut redis, &for_ever).await, wanted);
    let after = everything(&mut redis).await;
    assert_eq!(after[&with_life].1, before[&with_life].1, "to the millisecond");
    assert_eq!(after[&for_ever].1, -1);
    let others = |all: &BTreeMap<String, (Vec<u8>, i64)>| {
        let mut others = all.clone();
        others.retain(|key, _| *key != with_life && *key != for_ever);
        others
    };
    assert_eq!(others(&after), others(&before), "nothing is left behind, nothing else changed");
}

#[tokio::test]
async fn a_session_that_changes_meanwhile_is_not_overwritten() {
    let server = server(&["--appendonly", "no"]).await;
    let mut redis = connect(&server).await;
    const SESSIONS: usize = 20;
    const ROUNDS: usize = 40;
    for number in 0..SESSIONS {
        ask::<()>(&mut redis, &["SET", &key(number), r#"{"n":0,"vms":["v0","w0"]}"#]).await;
    }
    let stop = CancellationToken::new();
    let mut users = JoinSet::new();
    for number in 0..SESSIONS {
        users.spawn(user(connect(&server).await, key(number), stop.clone()));
    }
    let sink = sink(&server);
    for round in 0..ROUNDS {
        let names = |letter: &str| (format!("{letter}{round}"), format!("{letter}{}", round + 1));
        let ((v, next_v), (w, next_w)) = (names("v"), names("w"));
        let edits =
            [renamed(2 * round + 1, "1", &v, &next_v), renamed(2 * round + 2, "2", &w, &next_w)];
        loop {
            match sink.apply(&edits).await {
                Ok(_applied) => break,
                Err(error) => assert!(matches!(error, Error::Contended { .. }), "{error}"),
            }
        }
        sink.forget().await.unwrap();
    }
    stop.cancel();
    let written: BTreeMap<String, u64> = users.join_all().await.into_iter().collect();
    let mut all = 0;
    for (key, count) in written {
        let session = session(&mut redis, &key).await;
        assert_eq!(session, json!({"n": count, "vms": ["v40", "w40"]}));
        all += count;
    }
    assert!(all > ROUNDS as u64, "the users wrote meanwhile: {all}");
}

/// Counts up in a session for as long as nobody says stop; never over what somebody else wrote.
async fn user(
    mut redis: MultiplexedConnection,
    key: String,
    stop: CancellationToken,
) -> (String, u64) {
    const SWAP: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
                        redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL') return 1";
    let mut count = 0;
    while !stop.is_cancelled() {
        let old: String = ask(&mut redis, &["GET", &key]).await;
        let mut session: Value = serde_json::from_str(&old).unwrap();
        session["n"] = json!(session["n"].as_u64().unwrap() + 1);
        let new = session.to_string();
        let swapped: bool = ask(&mut redis, &["EVAL", SWAP, "1", &key, &old, &new]).await;
        count += u64::from(swapped);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    (key, count)
}

#[tokio::test]
async fn a_session_that_ends_is_not_made_anew() {
    let server = server(&["--appendonly", "no"]).await;
    let mut redis = connect(&server).await;
    let sink = sink(&server);
    for round in 0..20 {
        for number in 0..200 {
            let life = (number % 10 + 1).to_string();
            ask::<()>(&mut redis, &["SET", &key(number), r#"{"vms":["a"]}"#, "PX", &life]).await;
        }
        sink.apply(&[renamed(round + 1, "1", "a", "b")]).await.unwrap();
    }
    sink.forget().await.unwrap();
    until("all have ended", || {
        let mut redis = redis.clone();
        async move {
            let keys: Vec<String> = ask(&mut redis, &["KEYS", "*"]).await;
            keys.is_empty()
        }
    })
    .await;
}

#[tokio::test]
async fn a_pass_that_breaks_off_is_done_once() {
    const SESSIONS: usize = 20_000;
    let mut server = server(&[]).await;
    let mut redis = connect(&server).await;
    let mut pipe = redis::pipe();
    for number in 0..SESSIONS {
        pipe.cmd("SET").arg(key(number)).arg(r#"{"vms":["a","b","c"],"orphans":[]}"#).ignore();
    }
    pipe.query_async::<()>(&mut redis).await.unwrap();
    let sink = sink(&server);
    // Names go round: done twice they would be wrong.
    let mut edits =
        vec![renamed(1, "1", "a", "b"), renamed(2, "2", "b", "c"), renamed(3, "3", "c", "a")];
    let mut broke_off = 0;
    for round in 0..4 {
        let pass = {
            let (sink, edits) = (sink.clone(), edits.clone());
            let mut task = JoinSet::new();
            task.spawn(async move { sink.apply(&edits).await });
            task
        };
        let noted = || {
            let mut redis = redis.clone();
            let last = edits.last().unwrap().id.clone();
            async move {
                let notes: BTreeMap<String, String> =
                    ask(&mut redis, &["HGETALL", "safetytwin:sync:pass"]).await;
                notes.values().filter(|value| **value == last).count() > 200
            }
        };
        until("it is in the middle", noted).await;
        server.kill();
        let error = pass.join_all().await.remove(0).unwrap_err();
        assert!(error.is_retriable(), "{error}");
        broke_off += 1;
        let error = sink.apply(&edits).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        redis = up(&mut server).await;
        // More was decided meanwhile.
        let (old, new) = (format!("b{round}"), format!("b{}", round + 1));
        let old = if round == 0 { "b".to_owned() } else { old };
        edits.push(renamed(4 + round, "1", &old, &new));
    }
    sink.apply(&edits).await.unwrap();
    assert_eq!(broke_off, 4);
    sink.forget().await.unwrap();
    for number in 0..SESSIONS {
        let session = session(&mut redis, &key(number)).await;
        assert_eq!(session, json!({"vms": ["b4", "c", "a"], "orphans": []}), "{number}");
    }
    assert_eq!(ask::<usize>(&mut redis, &["DBSIZE"]).await, SESSIONS);
}

#[tokio::test]
async fn what_waits_while_it_is_away_arrives() {
    let mut server = server(&[]).await;
    let mut redis = connect(&server).await;
    ask::<()>(&mut redis, &["SET", &key(1), r#"{"vms":["a","b"],"orphans":[]}"#]).await;
    let directory = tempfile::tempdir().unwrap();
    let policy = Policy {
        max_attempts: 2,
        backoff: Duration::from_millis(10),
        max_backoff: Duration::from_millis(50),
        max_backoff_of_sessions: Duration::from_millis(50),
    };
    let to = Endpoints::new(None, None, Duration::from_secs(1)).unwrap().with_policy(policy);
    let mut tasks = JoinSet::new();
    let mut start = |kept: &Kept, sink: RedisSink| {
        let stop = CancellationToken::new();
        tasks.spawn(deliver(
            kept.outbox.clone(),
            Receivers { endpoints: to.clone(), sessions: Some(sink), known: None },
            clock,
            || true,
            stop.clone(),
        ));
        stop
    };
    server.kill();
    let kept = Kept::open(directory.path()).await;
    let stop = start(&kept, sink(&server));
    kept.put(&[rename("1", Target::Sessions, "a", "b"), rename("2", Target::Sessions, "b", "a")]);
    until("it was tried often", || async { kept.outbox.list()[0].attempts > 5 }).await;
    assert_eq!(kept.outbox.depth(), (2, 0), "nothing of it is given up");
    let reason = kept.outbox.list()[0].last_error.clone().unwrap();
    assert!(reason.contains("could not be reached"), "{reason}");
    // The program goes, too.
    stop.cancel();
    drop(kept);
    let kept = Kept::open(directory.path()).await;
    let orphan = SessionChange::Orphan { name: "b".to_owned(), since: since() };
    kept.put(&[Draft { vm: "1".to_owned(), target: Target::Sessions, change: orphan }]);
    up(&mut server).await;
    let stop = start(&kept, sink(&server));
    kept.empty().await;
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let mut redis = connect(&server).await;
    assert_eq!(
        session(&mut redis, &key(1)).await,
        json!({"vms": ["a"], "orphans": [{"name": "b", "since": "01-07-2024: 12:34:00"}]})
    );
    assert_eq!(ask::<usize>(&mut redis, &["DBSIZE"]).await, 1);
}

#[tokio::test]
async fn one_that_does_not_answer_has_a_deadline() {
    let server = server(&[]).await;
    let sink =
        RedisSink::new(RedisSettings { timeout: Duration::from_millis(300), ..settings(&server) })
            .unwrap();
    let edits = [renamed(1, "1", "a", "b")];
    sink.apply(&edits).await.unwrap();
    server.freeze();
    for _ in 0..2 {
        let error = sink.apply(&edits).await.unwrap_err();
        assert!(error.is_retriable(), "{error:?}");
    }
    server.thaw();
    until("it goes on", || async { sink.apply(&edits).await.is_ok() }).await;
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let server = server(&["--requirepass", "right-word"]).await;
    let edits = [renamed(1, "1", "a", "b")];
    for password in [None, Some("wrong-word".to_owned())] {
        let sink = RedisSink::new(RedisSettings { password, ..settings(&server) }).unwrap();
        let error = sink.apply(&edits).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error:?}");
        assert!(!format!("{error:?}").contains("-word"), "{error:?}");
    }
    let password = Some("right-word".to_owned());
    let sink = RedisSink::new(RedisSettings { password, ..settings(&server) }).unwrap();
    sink.apply(&edits).await.unwrap();
}

#[tokio::test]
async fn one_has_the_lease() {
    let server = server(&[]).await;
    let (one, other) = (sink(&server), sink(&server));
    let long = Duration::from_secs(60);
    let of_one = Lease::Others("one".to_owned());
    assert_eq!(one.lease("one", long).await.unwrap(), Lease::TakenOver);
    assert_eq!(other.lease("other", long).await.unwrap(), of_one);
    assert_eq!(one.lease("one", long).await.unwrap(), Lease::Ours);
    other.release("other").await.unwrap();
    assert_eq!(other.lease("other", long).await.unwrap(), of_one);
    assert!(!other.renew("other", long).await.unwrap());
    assert!(one.renew("one", long).await.unwrap());
    one.release("one").await.unwrap();
    assert_eq!(one.lease("one", long).await.unwrap(), Lease::Ours, "nobody had it since");
    one.release("one").await.unwrap();
    assert!(!other.renew("other", long).await.unwrap(), "it is not its own");
    let short = Duration::from_millis(50);
    assert_eq!(other.lease("other", short).await.unwrap(), Lease::TakenOver);
    until("it ended", || async { one.lease("one", short).await.unwrap() == Lease::TakenOver })
        .await;
    // Over, and nobody else had it.
    tokio::time::sleep(2 * short).await;
    assert_eq!(one.lease("one", long).await.unwrap(), Lease::Ours);
}

#[tokio::test]
async fn redis_is_not_blocked() {
    const SESSIONS: usize = 20_000;
    let server = server(&["--appendonly", "no"]).await;
    let mut redis = connect(&server).await;
    let mut pipe = redis::pipe();
    for number in 0..SESSIONS {
        pipe.cmd("SET").arg(key(number)).arg(r#"{"vms":["a"]}"#).ignore();
        pipe.cmd("SET").arg(format!("cache:{number}")).arg("x").ignore();
    }
    pipe.query_async::<()>(&mut redis).await.unwrap();
    ask::<()>(&mut redis, &["CONFIG", "RESETSTAT"]).await;
    let begin = std::time::Instant::now();
    let applied = sink(&server).apply(&[renamed(1, "1", "a", "b")]).await.unwrap();
    let took = begin.elapsed();
    assert_eq!((applied.sessions, applied.changed), (SESSIONS, SESSIONS));
    let stats: String = ask(&mut redis, &["INFO", "commandstats"]).await;
    assert!(!stats.contains("cmdstat_keys:"), "{stats}");
    // Each command is short; what is measured here is Redis' own time.
    for line in stats.lines().filter(|line| line.starts_with("cmdstat_")) {
        let per_call = line.split("usec_per_call=").nth(1).and_then(|rest| rest.split(',').next());
        let per_call: f64 = per_call.unwrap().parse().unwrap();
        assert!(per_call < 20_000.0, "{line}");
    }
    println!("{SESSIONS} sessions in {} ms\n{stats}", took.as_millis());
}
