//! `twin run`: what takes long, and its logs.

use crate::arguments::RunCommand;
use crate::failure::Failure;
use crate::remote::Query;
use crate::run_log::RunLog;
use crate::session::{Session, note, write};
use crate::table::{Cell, Table};
use crate::view::{Paint, View, bytes, duration};
use api::run::{Run, RunCause, RunEvent, RunId, RunRecord, RunState, RunStream, Runs};
use model::terminal;

pub(crate) async fn run(command: &RunCommand, session: &mut Session) -> Result<(), Failure> {
    match command {
        RunCommand::List { subject, kind, state, limit } => {
            let query = Query::of(&["runs"])
                .with_some("subject", subject.as_deref())
                .with_some("kind", *kind)
                .with_some("state", *state)
                .with("limit", limit);
            let runs: Runs = session.remote.get(&query).await?;
            if runs.runs.is_empty() {
                note("no such runs; one begins with: twin image build NAME");
            }
            session.answer(&runs, table)
        }
        RunCommand::Show { id } => {
            let run: Run = session.remote.get(&of(*id)).await?;
            session.answer(&run, glance)
        }
        RunCommand::Logs { id, follow, from } => {
            if *follow {
                return follow_to_end(*id, *from, session).await;
            }
            let remote = session.remote.another()?;
            let mut log = RunLog::new(remote, *id, *from, false).await?;
            let mut is_over = false;
            while let Some(record) = log.next().await? {
                is_over = matches!(record.event, RunEvent::End { .. });
                write(&shown(&record, session))?;
            }
            if is_over {
                note(&outcome(&session.remote.get(&of(*id)).await?));
            }
            Ok(())
        }
        RunCommand::Cancel { id } => {
            let run: Run = session.remote.post(&of(*id).and("cancel"), &()).await?;
            note(&format!("run {id} is told to stop; see it end with: twin run logs -f {id}"));
            if session.json { write(&terminal::json(&run)) } else { Ok(()) }
        }
    }
}

fn of(id: RunId) -> Query {
    Query::of(&["runs", &id.to_string()])
}

/// Prints a run's log as it comes, and ends as the run does.
pub(crate) async fn follow_to_end(
    id: RunId,
    from: u64,
    session: &mut Session,
) -> Result<(), Failure> {
    let mut log = RunLog::new(session.remote.another()?, id, from, true).await?;
    while let Some(record) = log.next().await? {
        write(&shown(&record, session))?;
    }
    let run: Run = session.remote.get(&of(id)).await?;
    note(&outcome(&run));
    match run.exit_code {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Run(code)),
        None => Err(Failure::Failed(format!("run {id} has an end and is not over"))),
    }
}

/// `run ID succeeded after 12 s`.
fn outcome(run: &Run) -> String {
    let took = run.started_at.zip(run.ended_at);
    let took = took.map(|(begin, end)| format!(" after {}", duration(end.since(begin))));
    let why = run.message.as_deref().map(|message| format!(": {message}"));
    let (took, why) = (took.unwrap_or_default(), why.unwrap_or_default());
    let did = match run.state {
        RunState::Queued => "waits",
        RunState::Running => "is on",
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::Cancelled => "was cancelled",
        RunState::Interrupted => "was interrupted",
    };
    format!("run {} {did}{took}{why}", run.id)
}

fn shown(record: &RunRecord, session: &Session) -> String {
    if session.json { terminal::json_line(record) } else { render(record, &session.view) }
}

/// What a program said comes as it was said; what is said about the run is set off.
fn render(record: &RunRecord, view: &View) -> String {
    let line = match &record.event {
        RunEvent::Line { stream: RunStream::Stdout | RunStream::Stderr, text } => {
            terminal::plain(text).into_owned()
        }
        RunEvent::Line { stream: RunStream::Server, text } => {
            view.paint(Paint::Yellow, &format!("-- {text}"))
        }
        RunEvent::Step { text } => view.paint(Paint::Bold, &format!("== {text}")),
        RunEvent::Progress { done, total } => {
            let total = total.map(|total| format!(" of {}", bytes(total)));
            view.dim(&format!("   {}{}", bytes(*done), total.unwrap_or_default()))
        }
        // Told when the run is asked for, with how long it took.
        RunEvent::End { .. } => return String::new(),
    };
    line + "\n"
}

fn paint(state: RunState) -> Paint {
    match state {
        RunState::Queued => Paint::Dim,
        RunState::Running => Paint::Cyan,
        RunState::Succeeded => Paint::Green,
        RunState::Failed => Paint::Red,
        RunState::Cancelled | RunState::Interrupted => Paint::Yellow,
    }
}

fn table(answer: &Runs, view: &View) -> String {
    if answer.runs.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(view, &["RUN", "KIND", "SUBJECT", "STATE", "BEGAN", "TOOK", "MESSAGE"]);
    for run in &answer.runs {
        let took = run.started_at.map(|begin| {
            let end = run.ended_at.unwrap_or(view.now);
            duration(end.since(begin))
        });
        table.row([
            Cell::painted(run.id.to_string(), Paint::Bold),
            Cell::from(run.kind.as_str()),
            Cell::from(run.subject.as_str()),
            Cell::painted(run.state.as_str(), paint(run.state)),
            Cell::from(view.age(run.created_at.min(view.now))),
            Cell::from(took.unwrap_or_else(|| "-".to_owned())),
            Cell::from(run.message.as_deref().unwrap_or("-")),
        ]);
    }
    let more = if answer.next.is_some() { "… and older ones: --limit N\n" } else { "" };
    table.render("") + more
}

fn glance(run: &Run, view: &View) -> String {
    let time = |time: Option<model::Time>| time.map(|time| view.time(time));
    let cause = match &run.cause {
        RunCause::Local => "somebody on the server's machine".to_owned(),
        RunCause::Token { id, name } if name.is_empty() => format!("token {id}"),
        RunCause::Token { id, name } => format!("token {id} ({name})"),
        RunCause::Schedule => "the server, by its rules of what is kept".to_owned(),
        RunCause::Host { version } => format!("its host, which came to version @{version}"),
    };
    let mut table = Table::new(view, &[]);
    let rows = [
        ("run", Some(run.id.to_string())),
        ("kind", Some(run.kind.to_string())),
        ("subject", Some(run.subject.clone())),
        ("state", Some(run.state.to_string())),
        ("exit code", run.exit_code.map(|code| code.to_string())),
        ("message", run.message.clone()),
        ("asked by", Some(cause)),
        ("created", time(Some(run.created_at))),
        ("started", time(run.started_at)),
        ("ended", time(run.ended_at)),
        ("log", Some(format!("{} records", run.records))),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            table.row([Cell::painted(name, Paint::Dim), Cell::from(value)]);
        }
    }
    table.render("")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::entry::tests::at;
    use expect_test::expect;

    fn example(state: RunState, message: Option<&str>) -> Run {
        Run {
            id: "01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b".parse().unwrap(),
            kind: api::run::RunKind::ImageBuild,
            subject: "image:debian".into(),
            state,
            exit_code: state.exit_code(),
            message: message.map(str::to_owned),
            cause: RunCause::Token { id: "1f2e3d4c".into(), name: "laptop".into() },
            created_at: at(0),
            started_at: Some(at(1)),
            ended_at: state.is_over().then(|| at(61)),
            records: 42,
        }
    }

    #[test]
    fn a_table_of_runs() {
        let failed = example(RunState::Failed, Some("no \x1b[2Jspace"));
        let runs = Runs { runs: vec![example(RunState::Running, None), failed], next: None };
        expect![[r#"
            RUN                                   KIND         SUBJECT       STATE    BEGAN       TOOK    MESSAGE
            01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b  image_build  image:debian  running  15 min ago  14 min  -
            01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b  image_build  image:debian  failed   15 min ago  60 s    no \x1b[2Jspace
        "#]]
        .assert_eq(&table(&runs, &View::of_tests()));
    }

    #[test]
    fn one_run() {
        expect![[r#"
            run        01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b
            kind       image_build
            subject    image:debian
            state      cancelled
            exit code  6
            asked by   token 1f2e3d4c (laptop)
            created    2026-11-20T09:00:00Z
            started    2026-11-20T09:00:01Z
            ended      2026-11-20T09:01:01Z
            log        42 records
        "#]]
        .assert_eq(&glance(&example(RunState::Cancelled, None), &View::of_tests()));
    }

    #[test]
    fn a_log_commands_no_terminal() {
        let check = |event: RunEvent, expected: &str| {
            let record = RunRecord { offset: 0, at: at(0), event };
            assert_eq!(render(&record, &View::of_tests()), expected);
        };
        let line = |stream, text: &str| RunEvent::Line { stream, text: text.into() };
        check(line(RunStream::Stdout, "\x1b]0;x\x07a\r\nb"), "\\x1b]0;x\\x07a\\r\\nb\n");
        check(line(RunStream::Server, "cut"), "-- cut\n");
        check(RunEvent::Step { text: "Fetching \u{202e}x".into() }, "== Fetching \\u{202e}x\n");
        check(RunEvent::Progress { done: 1536, total: Some(2048) }, "   1.5 KiB of 2.0 KiB\n");
    }

    #[test]
    fn outcomes() {
        expect!["run 01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b failed after 60 s: no space"]
            .assert_eq(&outcome(&example(RunState::Failed, Some("no space"))));
    }
}
