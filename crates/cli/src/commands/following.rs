//! `twin plan`, `verify`, `fidelity`, `apply`, `hold`, `follow`: a twin against its host.

use super::twin::{followed, named, of};
use crate::arguments::{FidelityArguments, FollowArguments, TwinArguments};
use crate::failure::Failure;
use crate::session::{Session, note, write};
use crate::table::{Cell, Table};
use crate::view::{Paint, View, count, duration};
use api::following::{FollowState, Following, TwinFidelity, TwinGap, TwinPlan, TwinVerified};
use api::run::Begun;
use hyper::Method;
use model::HostId;
use model::terminal;
use std::collections::BTreeMap;
use std::time::Duration;

/// Gaps of one cause that are told one by one, unless all are asked for.
const MAX_GAPS: usize = 12;
/// For a look at a guest: a little more than the server gives it.
const LOOK: Duration = Duration::from_secs(340);

async fn get<T: serde::de::DeserializeOwned>(
    command: &str,
    name: Option<&HostId>,
    session: &mut Session,
) -> Result<T, Failure> {
    let name = named(&mut session.remote, &format!("twin {command}"), name).await?;
    session.remote.patient(LOOK)?.get(&of(&name).and(command)).await
}

pub(crate) async fn plan(
    arguments: &FollowArguments,
    session: &mut Session,
) -> Result<(), Failure> {
    let plan: TwinPlan = get("plan", arguments.name.as_ref(), session).await?;
    session.answer(&plan, steps)
}

pub(crate) async fn verify(
    arguments: &FollowArguments,
    session: &mut Session,
) -> Result<(), Failure> {
    let verified: TwinVerified = get("verify", arguments.name.as_ref(), session).await?;
    session.answer(&verified, differences)?;
    if verified.is_current { Ok(()) } else { Err(Failure::Told) }
}

pub(crate) async fn fidelity(
    arguments: &FidelityArguments,
    session: &mut Session,
) -> Result<(), Failure> {
    let fidelity: TwinFidelity = get("fidelity", arguments.of.name.as_ref(), session).await?;
    let most = if arguments.all { usize::MAX } else { MAX_GAPS };
    session.answer(&fidelity, |fidelity, view| reproduced(fidelity, most, view))
}

pub(crate) async fn apply(arguments: &TwinArguments, session: &mut Session) -> Result<(), Failure> {
    let name = named(&mut session.remote, "twin apply", arguments.name.as_ref()).await?;
    let begun: Begun = session.remote.ask(Method::POST, &of(&name).and("apply")).await?;
    followed(&begun, begun.run, arguments.detach, session).await
}

/// `twin hold`, `twin follow`.
pub(crate) async fn decide(
    arguments: &FollowArguments,
    what: &str,
    session: &mut Session,
) -> Result<(), Failure> {
    let command = format!("twin {what}");
    let name = named(&mut session.remote, &command, arguments.name.as_ref()).await?;
    let following: Following = session.remote.ask(Method::POST, &of(&name).and(what)).await?;
    if session.json {
        return write(&terminal::json(&following));
    }
    match following.state {
        FollowState::Held => {
            note(&format!("{name} stays as it is, until: twin follow {name}"));
            if let Some(run) = following.run {
                note(&format!("what was begun before still goes on: twin run logs -f {run}"));
            }
        }
        _ => note(&format!("{name} follows its host; see how far it is: twin show {name}")),
    }
    Ok(())
}

/// `current`, `behind by 12 s`, `held: it was put back to a`.
pub(crate) fn state(following: &Following) -> (String, Paint) {
    let behind = following.lag_ms.filter(|lag| *lag > 0).map(|lag| lag_in_words(lag) + " behind");
    let and = |text: &str, more: Option<String>| match more {
        Some(more) => format!("{text}, {more}"),
        None => text.to_owned(),
    };
    match following.state {
        FollowState::Unknown => ("not looked at yet".into(), Paint::Dim),
        FollowState::Current => ("current".into(), Paint::Green),
        FollowState::Behind => (behind.unwrap_or_else(|| "behind".into()), Paint::Yellow),
        FollowState::Degraded => (and("degraded", behind), Paint::Red),
        FollowState::Held => (and("held", behind), Paint::Dim),
    }
}

/// `350 ms`, `1.2 s`, `3 min`.
fn lag_in_words(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..10_000 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        _ => duration(Duration::from_millis(millis)),
    }
}

/// `98.7 %`.
pub(crate) fn per_cent(per_mille: u32) -> String {
    format!("{}.{} %", per_mille / 10, per_mille % 10)
}

/// What a twin's table tells of how it follows, by labels.
pub(crate) fn rows(name: &str, following: &Following, view: &View) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    let (mut text, _) = state(following);
    if let Some(reason) = &following.reason {
        text = format!("{text}: {reason}; let it follow with: twin follow {name}");
    }
    rows.push(("follows", text));
    if let Some(version) = following.version {
        let took = following.took_ms.map(|took| format!(", there after {}", lag_in_words(took)));
        let took = took.unwrap_or_default();
        rows.push(("version", format!("@{version} of @{}{took}", following.host_version)));
    }
    if let (Some(fidelity), Some(at)) = (following.fidelity_per_mille, following.looked_at) {
        let left = following.steps_left.filter(|left| *left > 0);
        let left = left.map(|left| format!(", {} to be done", count(left, "step")));
        let text = format!(
            "{}, {} not reproduced{}; looked at {}",
            per_cent(fidelity),
            count(following.gaps.unwrap_or_default(), "thing"),
            left.unwrap_or_default(),
            // Perhaps while this command waited for it.
            view.age(at.min(view.now))
        );
        rows.push(("fidelity", text));
    }
    if let Some(failure) = &following.failure {
        let step = failure.step.as_deref().unwrap_or("it could not be led there");
        let why = failure.output.last().map(String::as_str).unwrap_or_default();
        let tries = match failure.tries {
            0 | 1 => String::new(),
            tries => format!(", {tries} times in a row"),
        };
        let again = failure.retry_at.map(|at| format!("; again {}", soon(at, view)));
        let again = again.unwrap_or_default();
        rows.push(("failed", format!("{step}: {why}; {}{tries}{again}", view.age(failure.at))));
    }
    rows
}

fn soon(at: model::Time, view: &View) -> String {
    if at <= view.now { "at once".to_owned() } else { view.age(at) }
}

fn steps(plan: &TwinPlan, view: &View) -> String {
    let name = &plan.twin;
    let mut text = match plan.steps.len() {
        0 => format!("{name} is as its host at version @{}; nothing is to be done\n", plan.version),
        steps => format!("{} lead {name} to version @{}\n", count(steps, "step"), plan.version),
    };
    if !plan.steps.is_empty() {
        let mut table = Table::new(view, &["STEP", "WHAT", "WHY", "AFTER"]);
        for (at, step) in plan.steps.iter().enumerate() {
            let after: Vec<String> =
                step.needs.iter().chain(&step.after).map(|at| at.to_string()).collect();
            table.row([
                Cell::number(at.to_string()),
                Cell::from(step.action.as_str()),
                Cell::from(step.why.as_str()),
                Cell::from(after.join(",")),
            ]);
        }
        text += &table.render("");
    }
    if !plan.gaps.is_empty() {
        let gaps = count(plan.gaps.len(), "thing");
        let then = per_cent(plan.fidelity_per_mille);
        text += &format!("then {then}; {gaps} not reproduced: twin fidelity {name}\n");
    }
    text
}

fn differences(verified: &TwinVerified, view: &View) -> String {
    let TwinVerified { twin, version, steps, .. } = verified;
    let mut text = match steps.len() {
        0 => format!("{twin} is as its host at version @{version}\n"),
        left => {
            format!("{twin} is not as its host at version @{version}: {}\n", count(left, "step"))
        }
    };
    for step in steps {
        text += &format!("  {}  ({})\n", plainly(&step.action), plainly(&step.why));
    }
    let mut table = Table::new(view, &[]);
    for (label, row) in rows(twin, &verified.following, view) {
        table.row([Cell::painted(label, Paint::Dim), Cell::from(row)]);
    }
    text + &table.render("")
}

fn plainly(text: &str) -> String {
    terminal::plain(text).into_owned()
}

fn reproduced(fidelity: &TwinFidelity, most: usize, view: &View) -> String {
    let mut text = format!(
        "{} of version @{} of the host is in {}\n\n",
        per_cent(fidelity.per_mille),
        fidelity.version,
        fidelity.twin
    );
    let mut table = Table::new(view, &["KIND", "HOST", "TWIN", "MISSING"]);
    for (kind, seen) in &fidelity.kinds {
        let missing = seen.of.saturating_sub(seen.reproduced);
        table.row([
            Cell::from(kind.as_str()),
            Cell::number(seen.of.to_string()),
            Cell::number(seen.reproduced.to_string()),
            match missing {
                0 => Cell::number("-"),
                missing => Cell::number(missing.to_string()),
            },
        ]);
    }
    text += &table.render("");
    if fidelity.missing.is_empty() {
        return text;
    }
    let mut by_cause: BTreeMap<&str, Vec<&TwinGap>> = BTreeMap::new();
    for gap in &fidelity.missing {
        by_cause.entry(&gap.cause).or_default().push(gap);
    }
    text.push('\n');
    let mut table = Table::new(view, &["NOT REPRODUCED", "CAUSE", "WHY", "WHAT TO DO"]);
    let mut left_out = 0;
    for (cause, gaps) in by_cause {
        left_out += gaps.len().saturating_sub(most);
        for gap in gaps.iter().take(most) {
            table.row([
                Cell::from(gap.subject.as_str()),
                Cell::from(cause),
                Cell::from(gap.why.as_str()),
                Cell::from(gap.remedy.as_str()),
            ]);
        }
    }
    text += &table.render("");
    if left_out > 0 {
        text += &format!("and {left_out} more: twin fidelity {} --all\n", fidelity.twin);
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::entry::tests::at;
    use api::following::{FollowFailure, PlannedStep, Reproduced};
    use expect_test::expect;

    pub(crate) fn current() -> Following {
        Following {
            state: FollowState::Current,
            reason: None,
            version: Some(412),
            host_version: 412,
            lag_ms: Some(0),
            took_ms: Some(1240),
            looked_at: Some(at(880)),
            fidelity_per_mille: Some(987),
            steps_left: Some(0),
            gaps: Some(9),
            failure: None,
            run: None,
        }
    }

    fn check(following: &Following, expected: &expect_test::Expect) {
        let view = View::of_tests();
        let lines = rows("web01", following, &view);
        let text: String = lines.iter().map(|(label, row)| format!("{label}: {row}\n")).collect();
        expected.assert_eq(&text);
    }

    #[test]
    fn how_it_follows() {
        check(
            &current(),
            &expect![[r#"
                follows: current
                version: @412 of @412, there after 1.2 s
                fidelity: 98.7 %, 9 things not reproduced; looked at 20 s ago
            "#]],
        );
        let failure = FollowFailure {
            at: at(890),
            step: Some("start nginx.service".into()),
            output: vec!["no such port".into(), "exit 1".into()],
            tries: 3,
            retry_at: Some(at(910)),
        };
        let degraded = Following {
            state: FollowState::Degraded,
            version: Some(410),
            lag_ms: Some(65_000),
            steps_left: Some(1),
            failure: Some(failure),
            ..current()
        };
        check(
            &degraded,
            &expect![[r#"
                follows: degraded, 65 s behind
                version: @410 of @412, there after 1.2 s
                fidelity: 98.7 %, 9 things not reproduced, 1 step to be done; looked at 20 s ago
                failed: start nginx.service: exit 1; 10 s ago, 3 times in a row; again in 10 s
            "#]],
        );
        let held = Following {
            state: FollowState::Held,
            reason: Some("it was put back to a".into()),
            version: None,
            lag_ms: None,
            looked_at: None,
            ..current()
        };
        check(
            &held,
            &expect![[r#"
                follows: held: it was put back to a; let it follow with: twin follow web01
            "#]],
        );
    }

    fn plan_of(steps: Vec<PlannedStep>) -> TwinPlan {
        let gap = TwinGap {
            subject: "cpu:host".into(),
            cause: "hardware".into(),
            why: "a twin has its own".into(),
            remedy: "nothing".into(),
        };
        TwinPlan {
            twin: "web01".into(),
            version: 412,
            looked_at: at(0),
            steps,
            gaps: vec![gap],
            fidelity_per_mille: 995,
        }
    }

    #[test]
    fn plans() {
        let step = |action: &str, needs: Vec<usize>| PlannedStep {
            subject: "unit:nginx.service".into(),
            action: action.into(),
            why: "so is \x1b[2Jthe host's".into(),
            needs,
            after: vec![],
        };
        let plan =
            plan_of(vec![step("write /etc/a", vec![]), step("reload nginx.service", vec![0])]);
        expect![[r#"
            2 steps lead web01 to version @412
            STEP  WHAT                  WHY                      AFTER
               0  write /etc/a          so is \x1b[2Jthe host's
               1  reload nginx.service  so is \x1b[2Jthe host's  0
            then 99.5 %; 1 thing not reproduced: twin fidelity web01
        "#]]
        .assert_eq(&steps(&plan, &View::of_tests()));
        expect![[r#"
            web01 is as its host at version @412; nothing is to be done
            then 99.5 %; 1 thing not reproduced: twin fidelity web01
        "#]]
        .assert_eq(&steps(&plan_of(vec![]), &View::of_tests()));
        let verified = TwinVerified {
            twin: "web01".into(),
            version: 412,
            is_current: false,
            steps: vec![step("start nginx.service", vec![])],
            following: Following { steps_left: Some(1), ..current() },
        };
        expect![[r#"
            web01 is not as its host at version @412: 1 step
              start nginx.service  (so is \x1b[2Jthe host's)
            follows   current
            version   @412 of @412, there after 1.2 s
            fidelity  98.7 %, 9 things not reproduced, 1 step to be done; looked at 20 s ago
        "#]]
        .assert_eq(&differences(&verified, &View::of_tests()));
    }

    #[test]
    fn an_honest_table() {
        let gaps = (0..3).map(|n| TwinGap {
            subject: format!("package:p{n}"),
            cause: "isolated".into(),
            why: "it reaches nothing".into(),
            remedy: "another image".into(),
        });
        let kinds = [
            ("package".to_owned(), Reproduced { of: 200, reproduced: 197 }),
            ("unit".to_owned(), Reproduced { of: 80, reproduced: 80 }),
        ];
        let fidelity = TwinFidelity {
            twin: "web01".into(),
            version: 412,
            looked_at: at(0),
            per_mille: 989,
            kinds: kinds.into(),
            missing: gaps.collect(),
        };
        expect![[r#"
            98.9 % of version @412 of the host is in web01

            KIND     HOST  TWIN  MISSING
            package   200   197        3
            unit       80    80        -

            NOT REPRODUCED  CAUSE     WHY                 WHAT TO DO
            package:p0      isolated  it reaches nothing  another image
            package:p1      isolated  it reaches nothing  another image
            and 1 more: twin fidelity web01 --all
        "#]]
        .assert_eq(&reproduced(&fidelity, 2, &View::of_tests()));
    }
}
