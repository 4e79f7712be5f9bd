//! `twin diff`: what differs between two moments of a host, or between two hosts.

use crate::arguments::DiffArguments;
use crate::contents::Contents;
use crate::describe::describe;
use crate::entry::{details, kinds, paint};
use crate::failure::Failure;
use crate::session::{Session, note, write};
use crate::target::{Target, single};
use crate::view::{Paint, View, plural};
use api::answer::{Change, Diff, End};
use model::terminal;
use model::{HostId, Kind, Op, Significance};
use std::collections::BTreeMap;

/// Items of one kind that are shown unless all are asked for.
const MAX_OF_KIND: usize = 25;

pub(crate) async fn run(arguments: &DiffArguments, session: &mut Session) -> Result<(), Failure> {
    let (from, to) = ends(arguments, session).await?;
    let other = (from.host != to.host).then_some(&to.host);
    let moment = |target: &Target| target.moment.clone().unwrap_or_else(|| "now".to_owned());
    let mut diff = session.remote.diff(&from.host, &moment(&from), &moment(&to), other).await?;
    diff.changes.retain(|change| wanted(change, arguments));
    if session.json {
        return write(&terminal::json(&diff));
    }
    let contents = if arguments.patch {
        Contents::fetch(&mut session.remote, &from.host, diff.changes.iter()).await?
    } else {
        Contents::default()
    };
    if diff.changes.is_empty() {
        note("nothing differs");
    }
    let limit = if arguments.all { usize::MAX } else { MAX_OF_KIND };
    write(&render(&diff, &contents, limit, &session.view))
}

fn wanted(change: &Change, arguments: &DiffArguments) -> bool {
    arguments.kind.is_none_or(|kind| change.subject.kind() == kind)
        && (!arguments.major || change.significance == Significance::Major)
}

/// What is compared with what.
async fn ends(
    arguments: &DiffArguments,
    session: &mut Session,
) -> Result<(Target, Target), Failure> {
    const COMMAND: &str = "twin diff";
    let mut words = arguments.ends.iter();
    let from = single(&mut session.remote, COMMAND, words.next()).await?;
    let to = match words.next() {
        Some(word) => match second(word, &from.host) {
            Some(same_host) => same_host,
            None => single(&mut session.remote, COMMAND, Some(word)).await?,
        },
        None => Target { host: from.host.clone(), moment: None },
    };
    if from == to {
        return Err(Failure::Usage(format!(
            "both ends are the same; compare moments with: twin diff {}@-10m, or name another host",
            from.host
        )));
    }
    Ok((from, to))
}

/// A second word without a host is a moment of the first.
fn second(word: &str, host: &HostId) -> Option<Target> {
    let moment = match word {
        "now" => None,
        word => {
            let crate::target::MomentText(moment) = word.strip_prefix('@')?.parse().ok()?;
            Some(moment)
        }
    };
    Some(Target { host: host.clone(), moment })
}

fn render(diff: &Diff, contents: &Contents, limit: usize, view: &View) -> String {
    let mut out = format!("{} → {}\n", end(&diff.from, view), end(&diff.to, view));
    let mut of_kind: BTreeMap<(usize, Kind), Vec<&Change>> = BTreeMap::new();
    for change in &diff.changes {
        let kind = change.subject.kind();
        let place = Kind::ALL.iter().position(|one| *one == kind).unwrap_or(usize::MAX);
        of_kind.entry((place, kind)).or_default().push(change);
    }
    if !diff.changes.is_empty() {
        let counts = kinds(diff.changes.iter().map(|change| &change.subject));
        out.push_str(&view.dim(&counts.join(", ")));
        out.push('\n');
    }
    for ((_, kind), mut changes) in of_kind {
        changes.sort_by_key(|change| (change.significance != Significance::Major, &change.subject));
        out.push_str(&format!("\n{}\n", view.paint(Paint::Bold, &plural(kind.as_str()))));
        for change in changes.iter().take(limit) {
            out.push_str(&item(change, contents, view));
        }
        if changes.len() > limit {
            let rest = format!("  and {} more; see them with --all", changes.len() - limit);
            out.push_str(&view.dim(&rest));
            out.push('\n');
        }
    }
    out
}

fn end(end: &End, view: &View) -> String {
    format!(
        "{}{} {}",
        view.paint(Paint::Bold, end.host.as_str()),
        view.paint(Paint::Cyan, &end.version.to_string()),
        view.dim(&format!("({})", view.time(end.at)))
    )
}

fn item(change: &Change, contents: &Contents, view: &View) -> String {
    let mut description = describe(&change.subject, &change.op, view);
    // Between two hosts nothing was installed or deleted: it is there or not.
    description.verb = "";
    let (sign, color) = match &change.op {
        Op::Added(_) => ("+", Paint::Green),
        Op::Removed(_) => ("-", Paint::Red),
        Op::Edited { .. } => ("~", Paint::Yellow),
    };
    let id = view.paint(Paint::None, change.subject.id());
    let said = paint(&description, view);
    let mut out = format!("  {} {id}  {said}", view.paint(color, sign)).trim_end().to_owned();
    out.push('\n');
    for line in details(change, &description, contents, view) {
        out.push_str(&format!("      {line}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::tests::{at, change};
    use expect_test::expect;
    use model::Version;

    fn diff(lines: &[&str]) -> Diff {
        let host = HostId::new("web01").unwrap();
        Diff {
            from: End { host: host.clone(), version: Version(407), at: at(-300) },
            to: End { host, version: Version(412), at: at(0) },
            changes: lines.iter().map(|line| change(line)).collect(),
        }
    }

    #[test]
    fn two_moments() {
        let diff = diff(&[
            r#"process:x#1|{"pids":[1]}|{"pids":[2]}"#,
            r#"package:nginx|{"version":"1.22.1-9"}|{"version":"1.24.0-1"}"#,
            r#"package:gone|{"version":"1"}|"#,
            r#"package:come||{"version":"1"}"#,
            r#"unit:nginx.service|{"active_state":"active","sub_state":"running","restarts":0}|{"active_state":"failed","sub_state":"failed","restarts":3}"#,
            r#"unit:b.service|{"main_pid":1}|{"main_pid":2}"#,
            r#"file:/etc/\x1b[2J||{"size":3}"#,
        ]);
        expect![[r#"
            web01@407 (2026-11-20T08:55:00Z) → web01@412 (2026-11-20T09:00:00Z)
            2 units, 1 process, 3 packages, 1 file

            units
              ~ nginx.service  active (running) → failed
                  restarts  0 → 3
              ~ b.service  restarted, pid 1 → 2

            processes
              ~ x#1  restarted, pid 1 → 2

            packages
              + come  1
              - gone  1
              and 1 more; see them with --all

            files
              + /etc/\x1b[2J  3 B
        "#]]
        .assert_eq(&render(&diff, &Contents::default(), 2, &View::of_tests()));
    }

    #[test]
    fn the_second_end() {
        let host = HostId::new("web01").unwrap();
        let target = |moment: Option<&str>| {
            Some(Target { host: host.clone(), moment: moment.map(str::to_owned) })
        };
        assert_eq!(second("now", &host), target(None));
        assert_eq!(second("@412", &host), target(Some("412")));
        assert_eq!(second("@-5m", &host), target(Some("-5m")));
        assert_eq!(second("web02", &host), None);
    }
}
