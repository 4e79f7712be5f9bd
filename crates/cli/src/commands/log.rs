//! `twin log`: what happened to a thing, or to a whole host, newest first.

use crate::arguments::LogArguments;
use crate::contents::Contents;
use crate::entry::{self, Lens, kinds};
use crate::failure::Failure;
use crate::naming::stands_for;
use crate::remote::{ALL_CHANGES, LogQuery, Remote};
use crate::session::{Session, note, write};
use crate::target::{Target, leading};
use crate::view::View;
use api::answer::Log;
use model::terminal;
use model::{HostId, Kind, Subject};

/// Entries asked for at once; fewer where each comes with all its changes.
const PAGE: usize = 200;
const WHOLE_PAGE: usize = 50;

/// Entries of `--all`.
const MAX_ENTRIES: usize = 1_000_000;

pub(crate) async fn run(arguments: &LogArguments, session: &mut Session) -> Result<(), Failure> {
    let (target, words) = leading(&mut session.remote, "twin log", &arguments.words).await?;
    let part = part(arguments, session.json, &target, words)?;
    let log = fetch(&mut session.remote, &target.host, part, arguments).await;
    let log = log.map_err(|failure| mention_host(failure, words))?;
    if session.json {
        return write(&terminal::json(&log));
    }
    let focus = focus(&log.subjects, words);
    let files = !focus.is_empty() && focus.iter().all(|subject| subject.kind() == Kind::FILE);
    let contents = if arguments.patch || files {
        let changes = log.entries.iter().flat_map(|entry| &entry.changes);
        Contents::fetch(&mut session.remote, &target.host, changes).await?
    } else {
        Contents::default()
    };
    if log.entries.is_empty() {
        note("nothing changed in that time");
    }
    write(&render(&log, &focus, &contents, &session.view))?;
    if log.next.is_some() {
        note("there are older entries; see them with --all, or more with --limit");
    }
    Ok(())
}

fn part(
    arguments: &LogArguments,
    json: bool,
    target: &Target,
    words: &[String],
) -> Result<LogQuery, Failure> {
    let until = match (&target.moment, &arguments.until) {
        (Some(_), Some(_)) => {
            return Err(Failure::Usage("HOST@MOMENT and --until both name the end".to_owned()));
        }
        (Some(moment), None) => Some(moment.clone()),
        (None, until) => until.as_ref().map(|until| until.0.clone()),
    };
    let named = !words.is_empty();
    Ok(LogQuery {
        subjects: words.to_vec(),
        since: arguments.since.as_ref().map(|since| since.0.clone()),
        until,
        before: None,
        limit: 0,
        changes: (json || arguments.all).then_some(ALL_CHANGES),
        major: arguments.major,
        around: (named && arguments.around > 0).then_some(arguments.around),
        related: named && !arguments.only,
    })
}

/// As many pages as it takes, as one.
async fn fetch(
    remote: &mut Remote,
    host: &HostId,
    mut part: LogQuery,
    arguments: &LogArguments,
) -> Result<Log, Failure> {
    let limit = if arguments.all { MAX_ENTRIES } else { arguments.limit as usize };
    let page = if part.changes.is_some() { WHOLE_PAGE } else { PAGE };
    part.limit = limit.min(page);
    let mut log = remote.log(host, &part).await?;
    while let Some(next) = log.next
        && log.entries.len() < limit
    {
        part.before = Some(next);
        part.limit = (limit - log.entries.len()).min(page);
        let older = remote.log(host, &part).await?;
        // A page that leads nowhere would make this loop endless.
        log.next = older.next.filter(|further| *further < next);
        let oldest = log.entries.last().map(|entry| entry.version);
        let older = older.entries.into_iter();
        log.entries
            .extend(older.filter(|entry| oldest.is_none_or(|oldest| entry.version < oldest)));
    }
    Ok(log)
}

/// A first word that the server does not know as a subject may have been meant as a host.
fn mention_host(failure: Failure, words: &[String]) -> Failure {
    match (failure, words.first()) {
        (Failure::NotThere(message), Some(first)) if HostId::new(first).is_ok() => {
            Failure::NotThere(format!("{message} (nor is there a host {first:?})"))
        }
        (failure, _) => failure,
    }
}

/// Which of the log's subjects were named, and not just belong to one that was.
fn focus(subjects: &[Subject], words: &[String]) -> Vec<Subject> {
    if words.is_empty() {
        return Vec::new();
    }
    let named = |subject: &&Subject| words.iter().any(|word| stands_for(word, subject));
    // A bare name is that of a unit or container, if there is one, rather than of what it has.
    let mut named: Vec<Subject> = subjects.iter().filter(named).cloned().collect();
    let runs = |subject: &Subject| [Kind::UNIT, Kind::CONTAINER].contains(&subject.kind());
    if words.len() == 1 && named.iter().any(runs) {
        named.retain(runs);
    }
    if named.is_empty() { subjects.first().cloned().into_iter().collect() } else { named }
}

fn render(log: &Log, focus: &[Subject], contents: &Contents, view: &View) -> String {
    let mut out = String::new();
    if !focus.is_empty() {
        out.push_str(&heading(log, focus, view));
    }
    let filtered = !focus.is_empty();
    let lens = Lens { view, contents, focus, filtered, with_host: false };
    let entries: Vec<String> = log.entries.iter().map(|one| entry::render(one, &lens)).collect();
    let spaced = entries.iter().any(|entry| entry.lines().count() > 1);
    for (index, entry) in entries.iter().enumerate() {
        if spaced && (index > 0 || !out.is_empty()) {
            out.push('\n');
        }
        out.push_str(entry);
    }
    out
}

/// What the log is of: what was named, and what belongs to it.
fn heading(log: &Log, focus: &[Subject], view: &View) -> String {
    let named: Vec<String> = focus.iter().map(Subject::to_string).collect();
    let mut text = format!("{} on {}", named.join(", "), log.host);
    let belongings = kinds(log.subjects.iter().filter(|subject| !focus.contains(subject)));
    if !belongings.is_empty() {
        text.push_str(&format!(", with its {}", belongings.join(", ")));
    }
    view.dim(&text) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use crate::entry::tests::entry;
    use crate::fake_server::{FakeServer, Reply};
    use clap::Parser;
    use expect_test::expect;
    use model::Version;

    fn log(subjects: &[&str]) -> Log {
        Log {
            host: HostId::new("web01").unwrap(),
            subjects: subjects.iter().map(|subject| subject.parse().unwrap()).collect(),
            entries: vec![
                entry(
                    412,
                    &[
                        r#"unit:nginx.service|{"active_state":"active","sub_state":"running","main_pid":812}|{"active_state":"failed","sub_state":"failed","result":"exit-code"}"#,
                    ],
                ),
                entry(400, &[r#"package:nginx|{"version":"1.22.1-9"}|{"version":"1.24.0-1"}"#]),
            ],
            next: None,
        }
    }

    #[test]
    fn a_log_of_one_unit() {
        let log =
            log(&["unit:nginx.service", "package:nginx", "process:nginx#1", "process:nginx#2"]);
        let focus = focus(&log.subjects, &["nginx".to_owned()]);
        expect![[r#"
            unit:nginx.service on web01, with its 2 processes, 1 package

            2026-11-20T09:00:00Z  15 min ago  @412  active (running) → failed, exit-code
                main_pid  812 → none

            2026-11-20T09:00:00Z  15 min ago  @400  package:nginx  1.22.1-9 → 1.24.0-1
        "#]]
        .assert_eq(&render(&log, &focus, &Contents::default(), &View::of_tests()));
    }

    #[test]
    fn a_log_of_everything() {
        expect![[r#"
            2026-11-20T09:00:00Z  15 min ago  @412  unit:nginx.service  active (running) → failed, exit-code
                main_pid  812 → none

            2026-11-20T09:00:00Z  15 min ago  @400  package:nginx  1.22.1-9 → 1.24.0-1
        "#]].assert_eq(&render(&log(&[]), &[], &Contents::default(), &View::of_tests()));
    }

    /// What is asked of a server whose log has two pages.
    fn asked(words: &[&str]) -> Vec<String> {
        let paths = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = std::sync::Arc::clone(&paths);
        let server = FakeServer::start(move |path, _| {
            told.lock().unwrap().push(path.replace("/api/v1/hosts/web01", ""));
            match path {
                path if path.contains("before=400") => {
                    Reply::json(&Log { entries: vec![entry(7, &[])], ..log(&[]) })
                }
                _ => Reply::json(&Log { next: Some(Version(400)), ..log(&[]) }),
            }
        });
        let words = ["twin", "log", "web01"].iter().chain(words);
        let Arguments { global, command } = Arguments::parse_from(words);
        let Command::Log(arguments) = command else { panic!("it is a log") };
        let target = Target { host: HostId::new("web01").unwrap(), moment: None };
        let part = part(&arguments, global.json, &target, &[]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut remote = Remote::new(&server.url(), None).unwrap();
            fetch(&mut remote, &target.host, part, &arguments).await.unwrap()
        });
        paths.lock().unwrap().clone()
    }

    #[test]
    fn all_is_all_changes_of_all_versions() {
        assert_eq!(
            asked(&["--json", "--limit=1"]),
            ["/log?limit=1&changes=1000000"],
            "JSON is complete"
        );
        let all = ["/log?limit=50&changes=1000000", "/log?before=400&limit=50&changes=1000000"];
        assert_eq!(asked(&["--json", "--all"]), all);
        assert_eq!(asked(&["--all"]), all);
        assert_eq!(asked(&["--limit=2"]), ["/log?limit=2"]);
    }

    #[test]
    fn what_was_named() {
        let check = |subjects: &[&str], words: &[&str], expected: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            let found: Vec<String> =
                focus(&log(subjects).subjects, &words).iter().map(Subject::to_string).collect();
            assert_eq!(found, expected);
        };
        let nginx = ["package:nginx", "unit:nginx.service", "process:nginx#1"];
        check(&nginx, &["nginx"], &["unit:nginx.service"]);
        check(&nginx, &["package:nginx"], &["package:nginx"]);
        check(&nginx, &["nginx.service"], &["unit:nginx.service"]);
        check(&nginx, &["ngx"], &["package:nginx"]);
        check(&nginx, &[], &[]);
        check(
            &["file:/etc/a", "file:/etc/b"],
            &["/etc/a", "/etc/b"],
            &["file:/etc/a", "file:/etc/b"],
        );
    }
}
