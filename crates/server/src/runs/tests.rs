use super::*;
use api::run::RunRecord;
use proptest::prelude::*;
use std::fs;
use tokio::sync::oneshot;

fn runs(directory: &Path) -> Runs {
    Runs::open(directory, Limits { grace: Duration::from_millis(50), ..Limits::default() }).unwrap()
}

fn new(name: &str) -> New {
    New {
        kind: Kind::ImageBuild,
        subject: format!("image:{name}").parse().unwrap(),
        cause: Cause::Local,
    }
}

/// All records from one on, to the end.
async fn records(runs: &Runs, id: RunId, from: u64) -> Vec<RunRecord> {
    let mut follow = runs.follow(id, from, true).unwrap();
    let mut records = Vec::new();
    let reading = async {
        while let Some(more) = follow.next().await.unwrap() {
            records.extend(more.json().map(|json| serde_json::from_slice(&json).unwrap()));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("in time");
    records
}

fn end(records: &[RunRecord]) -> (State, u8, String) {
    match &records.last().unwrap().event {
        Event::End { state, exit_code, message, .. } => {
            (*state, *exit_code, message.clone().unwrap_or_default())
        }
        other => panic!("{other:?} is no end"),
    }
}

fn texts(records: &[RunRecord]) -> Vec<&str> {
    let texts = records.iter().filter_map(|record| match &record.event {
        Event::Line { text, .. } | Event::Step { text } => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

#[tokio::test]
async fn a_run_is_read_from_its_first_line_to_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let runs = runs(directory.path());
    let (go, gone) = oneshot::channel::<()>();
    let id = runs.start(new("a"), |handle| async move {
        handle.step("first");
        handle.line(Stream::Stderr, "one");
        gone.await?;
        for done in 0..1000 {
            handle.progress(done, Some(1000));
        }
        Ok(())
    });
    let id = id.unwrap();
    let mut follow = runs.follow(id, 0, true).unwrap();
    let mut seen = 0;
    while seen < 2 {
        seen += follow.next().await.unwrap().unwrap().json().count();
    }
    assert_eq!(runs.show(id).unwrap().state, State::Running);
    assert!(runs.follow(id, 3, true).is_err(), "it has not come so far");
    assert!(runs.follow(id, 2, false).unwrap().next().await.unwrap().is_none(), "so far");
    go.send(()).unwrap();
    let all = records(&runs, id, 0).await;
    assert_eq!(texts(&all), ["first", "one"]);
    assert_eq!(end(&all), (State::Succeeded, 0, String::new()));
    assert_eq!(all.len(), 4, "progress is told once in a while: {all:?}");
    let run = runs.show(id).unwrap();
    assert_eq!((run.exit_code, run.records), (Some(0), 4));
    assert!(run.started_at.is_some() && run.ended_at >= run.started_at);
    assert!(runs.follow(id, 4, true).unwrap().is_over());
    runs.close().await;
}

#[tokio::test]
async fn every_run_ends() {
    let directory = tempfile::tempdir().unwrap();
    let runs = runs(directory.path());
    let check = async |id: RunId, expected: (State, u8, &str)| {
        let all = records(&runs, id, 0).await;
        assert_eq!(end(&all), (expected.0, expected.1, expected.2.to_owned()));
        assert_eq!(runs.show(id).unwrap().state, expected.0);
    };
    let failed = runs.start(new("a"), async |_| Err(Failure::new("no space"))).unwrap();
    check(failed, (State::Failed, 1, "no space")).await;
    let panicked =
        runs.start(new("a"), async |_| -> Result<(), Failure> { panic!("in a test") }).unwrap();
    check(panicked, (State::Failed, 1, "the server made a mistake; its log says more")).await;
    let polite = runs.start(new("a"), wait).unwrap();
    runs.cancel(polite).unwrap();
    let all = records(&runs, polite, 0).await;
    assert_eq!(end(&all).0, State::Cancelled);
    assert!(matches!(runs.cancel(polite), Err(Error::Over { state: State::Cancelled, .. })));
    let deaf = runs.start(new("a"), async |_| pending().await).unwrap();
    until_it_is_on(&runs, deaf).await;
    runs.cancel(deaf).unwrap();
    check(deaf, (State::Cancelled, 6, "it did not stop in time and was cut off")).await;
    assert!(runs.show(RunId::new(1)).is_err());
    runs.close().await;
    assert!(matches!(runs.start(new("a"), async |_| Ok(())), Err(Error::Closed)));
}

/// Works until it is told to stop.
async fn wait(handle: Handle) -> Result<(), Failure> {
    handle.cancelled().cancelled().await;
    Err(Failure::new("stopped"))
}

/// Works, and does not listen.
async fn pending() -> Result<(), Failure> {
    std::future::pending().await
}

async fn until_it_is_on(runs: &Runs, id: RunId) {
    let waiting = async {
        while runs.show(id).unwrap().state == State::Queued {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("in time");
}

#[tokio::test]
async fn one_run_for_one_subject_and_so_many_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { at_once: 1, waiting: 2, ..Limits::default() };
    let runs = Runs::open(directory.path(), limits).unwrap();
    let first = runs.start(new("a"), wait).unwrap();
    match runs.start(new("a"), wait) {
        Err(Error::Busy { id, .. }) => assert_eq!(id, first),
        other => panic!("{other:?}"),
    }
    until_it_is_on(&runs, first).await;
    let second = runs.start(new("b"), async |_| Ok(())).unwrap();
    assert!(matches!(runs.start(new("c"), wait), Err(Error::Full(2))));
    assert_eq!(runs.show(second).unwrap().state, State::Queued);
    runs.cancel(first).unwrap();
    assert_eq!(end(&records(&runs, second, 0).await).0, State::Succeeded);
    // What waits is cancelled without having begun.
    let first = runs.start(new("a"), wait).unwrap();
    until_it_is_on(&runs, first).await;
    let waits = runs.start(new("b"), async |_| Ok(())).unwrap();
    runs.cancel(waits).unwrap();
    assert_eq!(end(&records(&runs, waits, 0).await).2, "it had not begun");
    assert_eq!(runs.show(waits).unwrap().started_at, None);
    runs.close().await;
    assert_eq!(runs.show(first).unwrap().state, State::Interrupted, "the server stopped");
}

#[tokio::test]
async fn a_run_that_waits_keeps_no_other_from_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { at_once: 1, ..Limits::default() };
    let runs = Runs::open(directory.path(), limits).unwrap();
    let (go, gone) = oneshot::channel::<()>();
    let (tell, told) = oneshot::channel::<()>();
    let waits = runs.start(new("a"), |handle: Handle| async move {
        // Two parts of it wait, of which one is given up.
        tokio::select! {
            () = aside(std::future::pending()) => {}
            done = aside(gone) => done?,
        }
        aside(async {}).await;
        tell.send(()).ok();
        wait(handle).await
    });
    let waits = waits.unwrap();
    until_it_is_on(&runs, waits).await;
    for name in ["b", "c"] {
        let other = runs.start(new(name), async |_| Ok(())).unwrap();
        assert_eq!(end(&records(&runs, other, 0).await).0, State::Succeeded);
    }
    assert_eq!(runs.show(waits).unwrap().state, State::Running);
    let works = runs.start(new("b"), wait).unwrap();
    until_it_is_on(&runs, works).await;
    go.send(()).unwrap();
    // It takes a place again, as soon as there is one.
    tokio::pin!(told);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut told).await;
    assert!(early.is_err(), "the place is the other's");
    runs.cancel(works).unwrap();
    told.await.unwrap();
    let queued = runs.start(new("c"), async |_| Ok(())).unwrap();
    tokio::task::yield_now().await;
    assert_eq!(runs.show(queued).unwrap().state, State::Queued, "the place is taken");
    runs.cancel(waits).unwrap();
    assert_eq!(end(&records(&runs, queued, 0).await).0, State::Succeeded);
    runs.close().await;
}

#[tokio::test]
async fn a_run_that_is_to_stop_waits_for_no_place() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { at_once: 1, ..Limits::default() };
    let runs = Runs::open(directory.path(), limits).unwrap();
    let (go, gone) = oneshot::channel::<()>();
    let waits = runs.start(new("a"), |handle: Handle| async move {
        aside(gone).await?;
        handle.step("it is back");
        Ok(())
    });
    let waits = waits.unwrap();
    until_it_is_on(&runs, waits).await;
    let works = runs.start(new("b"), wait).unwrap();
    until_it_is_on(&runs, works).await;
    go.send(()).unwrap();
    runs.cancel(waits).unwrap();
    assert_eq!(texts(&records(&runs, waits, 0).await), ["it is back"]);
    runs.close().await;
}

#[tokio::test]
async fn lists_are_filtered_and_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let runs = runs(directory.path());
    let mut ids = Vec::new();
    for name in ["a", "b", "a"] {
        let id = runs.start(new(name), async |_| Ok(())).unwrap();
        records(&runs, id, 0).await;
        ids.push(id);
    }
    ids.reverse();
    let list = |filter: Filter, limit| -> Vec<RunId> {
        runs.list(&filter, limit).iter().map(|run| run.id).collect()
    };
    assert_eq!(list(Filter::default(), 10), ids);
    assert_eq!(list(Filter::default(), 2), ids[..2]);
    let before = Filter { before: Some(ids[0]), ..Filter::default() };
    assert_eq!(list(before, 10), ids[1..]);
    let subject = Filter { subject: Some(new("a").subject), ..Filter::default() };
    assert_eq!(list(subject, 10), [ids[0], ids[2]]);
    let none = Filter { state: Some(State::Failed), ..Filter::default() };
    assert_eq!(list(none, 10), []);
    runs.close().await;
}

#[tokio::test]
async fn logs_have_limits_and_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { log_bytes: 60_000, ..Limits::default() };
    let runs = Runs::open(directory.path(), limits).unwrap();
    let id = runs.start(new("a"), async |handle| {
        handle.line(Stream::Stdout, &"ü\u{1b}".repeat(100_000));
        for _ in 0..100_000 {
            handle.line(Stream::Stdout, "again and again");
        }
        Err(Failure::new("x".repeat(100_000)))
    });
    let id = id.unwrap();
    let all = records(&runs, id, 0).await;
    let texts = texts(&all);
    assert!(texts[0].ends_with(" bytes more"), "{}", texts[0]);
    let (said, left_out) = (texts[texts.len() - 2], texts[texts.len() - 1]);
    assert_eq!(said, "the log is as long as it may be; what comes is left out");
    let told = all.len() - 3;
    assert_eq!(left_out, format!("{} records were left out", 100_001 - told));
    assert!(end(&all).2.len() < 10_000);
    assert!(fs::metadata(directory.path().join(format!("{id}.log"))).unwrap().len() < 80_000);
    runs.close().await;
}

#[tokio::test]
async fn what_had_no_end_is_interrupted_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let first = runs(directory.path());
    let done = first.start(new("done"), async |_| Ok(())).unwrap();
    let before = records(&first, done, 0).await;
    let id = first.start(new("cut"), async |handle| {
        handle.line(Stream::Stdout, "one");
        handle.line(Stream::Stdout, "two");
        pending().await
    });
    let id = id.unwrap();
    let mut follow = first.follow(id, 0, true).unwrap();
    let mut seen = 0;
    while seen < 2 {
        seen += follow.next().await.unwrap().unwrap().json().count();
    }
    // A copy is what a killed server leaves, here with half a line more.
    let copy = tempfile::tempdir().unwrap();
    for name in [done, id].map(|id| format!("{id}.log")) {
        fs::copy(directory.path().join(&name), copy.path().join(&name)).unwrap();
    }
    let torn = copy.path().join(format!("{id}.log"));
    let mut bytes = fs::read(&torn).unwrap();
    bytes.extend_from_slice(b"0badc0de {\"offset\":2,");
    fs::write(&torn, bytes).unwrap();
    fs::write(copy.path().join(format!("{}.log", RunId::new(5))), "0badc0de {").unwrap();
    fs::write(copy.path().join("notes.txt"), "not a log").unwrap();
    first.close().await;

    for round in 0..2 {
        let again = runs(copy.path());
        let subject = new("cut").subject;
        let marked = [Interrupted { id, kind: Kind::ImageBuild, subject }];
        let expected: &[Interrupted] = if round == 0 { &marked } else { &[] };
        assert_eq!(again.interrupted(), expected);
        assert_eq!(records(&again, done, 0).await, before);
        let all = records(&again, id, 0).await;
        assert_eq!(texts(&all), ["one", "two"]);
        assert_eq!((end(&all).0, end(&all).1), (State::Interrupted, 7));
        assert_eq!(all.iter().map(|record| record.offset).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(again.list(&Filter::default(), 9).len(), 2);
        again.close().await;
    }
}

#[tokio::test]
async fn old_runs_go_by_number_and_age() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { keep: 2, keep_for: Duration::from_secs(60), ..Limits::default() };
    let runs = Runs::open(directory.path(), limits).unwrap();
    let files = || fs::read_dir(directory.path()).unwrap().count();
    for _ in 0..4 {
        let id = runs.start(new("a"), async |_| Ok(())).unwrap();
        records(&runs, id, 0).await;
    }
    assert_eq!((runs.list(&Filter::default(), 9).len(), files()), (2, 2));
    runs.expire(clock::now());
    assert_eq!(files(), 2);
    runs.expire(clock::now().plus(Duration::from_secs(120)));
    assert_eq!(files(), 0);
    runs.close().await;
}

#[tokio::test]
async fn a_damaged_log_is_told_of_and_not_passed_on() {
    let directory = tempfile::tempdir().unwrap();
    let first = runs(directory.path());
    let id = first.start(new("a"), async |handle| {
        for n in 0..100 {
            handle.line(Stream::Stdout, &format!("line {n}"));
        }
        Ok(())
    });
    let id = id.unwrap();
    records(&first, id, 0).await;
    first.close().await;
    let path = directory.path().join(format!("{id}.log"));
    let text = fs::read_to_string(&path).unwrap().replace("line 50", "LINE 50");
    fs::write(&path, text).unwrap();
    let again = runs(directory.path());
    let mut follow = again.follow(id, 0, true).unwrap();
    assert_eq!(follow.next().await.unwrap().unwrap().json().count(), 50);
    assert!(matches!(follow.next().await, Err(Error::Damaged { .. })));
    again.close().await;
}

#[tokio::test]
async fn readers_have_a_limit() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { followers: 2, ..Limits::default() };
    let runs = Runs::open(directory.path(), limits).unwrap();
    let id = runs.start(new("a"), async |_| Ok(())).unwrap();
    let one = runs.follow(id, 0, true).unwrap();
    let _other = runs.follow(id, 0, true).unwrap();
    assert!(matches!(runs.follow(id, 0, true), Err(Error::Followers(2))));
    drop(one);
    assert!(runs.follow(id, 0, true).is_ok());
    runs.close().await;
}

/// Long enough to fall out of memory while the slowest have not begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_see_the_same_however_slow() {
    const LINES: u64 = 30_000;
    let directory = tempfile::tempdir().unwrap();
    let runs = runs(directory.path());
    let id = runs.start(new("a"), async |handle| {
        for n in 0..LINES {
            handle.line(Stream::Stdout, &n.to_string());
            if n % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    });
    let id = id.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..50_u64 {
        let mut follow = runs.follow(id, 0, true).unwrap();
        readers.spawn(async move {
            let (mut next, mut pieces) = (0, 0_u64);
            while let Some(records) = follow.next().await.unwrap() {
                pieces += 1;
                if pieces % 8 == reader % 8 {
                    tokio::time::sleep(Duration::from_millis(reader)).await;
                }
                for json in records.json() {
                    let record: RunRecord = serde_json::from_slice(&json).unwrap();
                    assert_eq!(record.offset, next);
                    next += 1;
                }
            }
            assert_eq!(next, LINES + 1);
        });
    }
    while let Some(done) = readers.join_next().await {
        done.unwrap();
    }
    runs.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// However often a reader goes and comes back, before or after the end or a restart, it
    /// has every record once.
    #[test]
    fn nothing_is_lost_or_doubled_over_reconnects(
        lines in prop::collection::vec(0..300_usize, 1..400),
        leaves in prop::collection::vec(0..60_usize, 0..40),
        restart in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(come_and_go(&lines, &leaves, restart));
    }
}

async fn come_and_go(lines: &[usize], leaves: &[usize], restart: bool) {
    let directory = tempfile::tempdir().unwrap();
    let mut runs = runs(directory.path());
    let said = lines.to_vec();
    let id = runs.start(new("a"), move |handle: Handle| async move {
        for (n, length) in said.iter().enumerate() {
            handle.line(Stream::Stdout, &format!("{n} {}", "x".repeat(*length)));
            tokio::task::yield_now().await;
        }
        Ok(())
    });
    let id = id.unwrap();
    let mut seen: Vec<RunRecord> = Vec::new();
    for (nth, stay) in leaves.iter().enumerate() {
        if restart && nth == leaves.len() / 2 {
            records(&runs, id, 0).await;
            runs.close().await;
            runs = self::runs(directory.path());
        }
        let mut follow = runs.follow(id, seen.len() as u64, true).unwrap();
        let until = seen.len() + stay;
        while seen.len() < until {
            let Some(more) = follow.next().await.unwrap() else { break };
            // What a broken connection still carried does not count.
            let some = more.json().take(until - seen.len());
            seen.extend(some.map(|json| serde_json::from_slice::<RunRecord>(&json).unwrap()));
        }
    }
    seen.extend(records(&runs, id, seen.len() as u64).await);
    runs.close().await;
    let offsets: Vec<u64> = seen.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (0..=lines.len() as u64).collect::<Vec<_>>());
    for (n, text) in texts(&seen).into_iter().enumerate() {
        assert_eq!(text, format!("{n} {}", "x".repeat(lines[n])));
    }
}
