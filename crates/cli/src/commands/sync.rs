//! `twin sync`: VMs in step with vSpheres.

use super::daemon::{failed, wrong};
use super::run::follow_to_end;
use crate::arguments::{OutboxCommand, SyncCommand};
use crate::failure::Failure;
use crate::remote::Query;
use crate::session::{Session, note, write};
use crate::table::{Cell, Table};
use crate::view::{Paint, View, count, duration};
use api::sync::{Outbox, OutboxRetried, SyncBegun, SyncPlan, SyncStanding};
use model::terminal::{self, plain};
use model::vm::DecisionKind;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

pub(crate) async fn run(command: &SyncCommand, session: &mut Session) -> Result<(), Failure> {
    match command {
        // Is no client of a server.
        SyncCommand::Serve(_) => Ok(()),
        SyncCommand::Status => {
            let answer: SyncStanding = session.remote.get(&Query::of(&["sync"])).await?;
            session.answer(&answer, standing)
        }
        SyncCommand::Now { detach } => {
            let query = Query::of(&["sync", "now"]);
            let begun: SyncBegun = session.remote.post(&query, &()).await?;
            if *detach {
                note(&format!("follow it with: twin run logs -f {}", begun.run));
                return session.answer(&begun, |begun, _| format!("{}\n", begun.run));
            }
            follow_to_end(begun.run, 0, session).await
        }
        SyncCommand::Plan { config } => {
            let answer: SyncPlan = match config {
                Some(file) => preview(file).await?,
                None => session.remote.get(&Query::of(&["sync", "plan"])).await?,
            };
            for (node, fault) in &answer.faults {
                note(&format!("{node} can't be asked: {fault}"));
            }
            if answer.decisions.is_empty() {
                note("nothing is to be decided");
            }
            session.answer(&answer, plan)
        }
        SyncCommand::Outbox(command) => outbox(command, session).await,
    }
}

/// What a server that was just installed with this file would decide.
async fn preview(file: &Path) -> Result<SyncPlan, Failure> {
    let settings = server::sync::Settings::read(file).map_err(|error| wrong(&error))?;
    server::sync::preview(settings).await.map_err(|error| failed(&error))
}

async fn outbox(command: &OutboxCommand, session: &mut Session) -> Result<(), Failure> {
    let query = Query::of(&["sync", "outbox"]);
    match command {
        OutboxCommand::List { dead } => {
            let query = query.with_some("dead", dead.then_some(true));
            let answer: Outbox = session.remote.get(&query).await?;
            if answer.entries.is_empty() {
                note("nothing waits");
            }
            session.answer(&answer, entries)
        }
        OutboxCommand::Retry { ids } => {
            let mut retried = OutboxRetried { count: 0 };
            if ids.is_empty() {
                retried = session.remote.post(&query.and("retry"), &()).await?;
            }
            for id in ids {
                let query = Query::of(&["sync", "outbox"]).and(id).and("retry");
                let one: OutboxRetried = session.remote.post(&query, &()).await?;
                retried.count += one.count;
            }
            if session.json {
                return write(&terminal::json(&retried));
            }
            note(&format!("{} tried again", count(retried.count, "entry")));
            Ok(())
        }
        OutboxCommand::Discard { id } => session.remote.delete(&query.and(id)).await,
    }
}

fn standing(answer: &SyncStanding, view: &View) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{}  {}", view.dim(&format!("{name:<11}")), plain(value)).ok();
    };
    let state = match (&answer.stands_by, answer.in_process) {
        (Some(why), _) => format!("stands by: {why}"),
        (None, true) => "a full pass is on".to_owned(),
        (None, false) => "in step".to_owned(),
    };
    line("state", &state);
    if let Some(last) = &answer.last {
        let took = duration(Duration::from_millis(last.took_ms));
        let run = last.run.map(|run| format!(", run {run}")).unwrap_or_default();
        line("last pass", &format!("{} ago, took {took}{run}", view.age(last.at)));
    }
    let told = answer.decisions.iter().map(|(kind, count)| format!("{count} {kind}"));
    let told: Vec<String> = told.collect();
    line("decisions", &if told.is_empty() { "none".to_owned() } else { told.join(", ") });
    let fault = answer.documents_fault.as_ref().map(|fault| format!("; {fault}"));
    line("documents", &format!("{} wait{}", answer.documents_waiting, fault.unwrap_or_default()));
    let dead = match answer.outbox_dead {
        0 => String::new(),
        dead => format!(", {dead} given up: twin sync outbox list --dead"),
    };
    line("outbox", &format!("{} wait{dead}", answer.outbox_waiting));
    for (node, vms) in &answer.unconfigured {
        let vms = count(*vms, "VM");
        let said = format!("{vms} of {node}, which sync.yaml does not name any more");
        line("left", &format!("{said}; once they are gone: twin inventory confirm {node}"));
    }
    text.push('\n');
    let mut table = Table::new(view, &["SOURCE", "VMS", "LISTED", "HELD", "REQUESTS", "STATE"]);
    for source in &answer.sources {
        let listed = source.listed_at.map_or("never".to_owned(), |at| view.age(at));
        let (state, paint) = match &source.fault {
            Some(fault) => (fault.as_str(), Paint::Red),
            None => (source.about.as_deref().unwrap_or("in step"), Paint::Green),
        };
        table.row([
            Cell::painted(source.node.as_str(), Paint::Bold),
            Cell::number(source.vms.to_string()),
            Cell::from(listed),
            Cell::number(source.held.len().to_string()),
            Cell::number(source.requests.to_string()),
            Cell::painted(state, paint),
        ]);
    }
    text + &table.render("")
}

fn plan(answer: &SyncPlan, view: &View) -> String {
    if answer.decisions.is_empty() {
        return String::new();
    }
    let mut table = Table::new(view, &["DECISION", "VM", "SOURCE", "WHY"]);
    for one in &answer.decisions {
        let paint = match one.kind {
            DecisionKind::Orphan | DecisionKind::Hold => Paint::Red,
            DecisionKind::Register | DecisionKind::Reactivate => Paint::Green,
            DecisionKind::Stale | DecisionKind::Ignore => Paint::Yellow,
            DecisionKind::Refresh | DecisionKind::Rename | DecisionKind::Move => Paint::Cyan,
        };
        let id = one.id.as_ref().map(|id| id.to_string()).unwrap_or_default();
        table.row([
            Cell::painted(one.kind.as_str(), paint),
            Cell::painted(one.name.clone().unwrap_or(id), Paint::Bold),
            Cell::from(one.node.as_str()),
            Cell::from(one.reason.as_str()),
        ]);
    }
    table.render("")
}

fn entries(answer: &Outbox, view: &View) -> String {
    if answer.entries.is_empty() {
        return String::new();
    }
    let mut table = Table::new(view, &["ENTRY", "FOR", "WHAT", "AGE", "TRIED", "STATE"]);
    for entry in &answer.entries {
        let (state, paint) = match (entry.dead, &entry.last_error) {
            (true, Some(error)) => (format!("given up: {error}"), Paint::Red),
            (true, None) => ("given up".to_owned(), Paint::Red),
            (false, Some(error)) => (error.clone(), Paint::Yellow),
            (false, None) => ("waits".to_owned(), Paint::None),
        };
        table.row([
            Cell::from(entry.id.as_str()),
            Cell::from(entry.target.as_str()),
            Cell::painted(entry.what.as_str(), Paint::Bold),
            Cell::from(view.age(entry.created_at)),
            Cell::number(entry.attempts.to_string()),
            Cell::painted(state, paint),
        ]);
    }
    table.render("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::sync::{OutboxEntry, PlannedDecision, SourceResult, SyncPass, SyncSource};
    use expect_test::expect;
    use model::Time;

    #[test]
    fn how_it_stands() {
        let view = View::of_tests();
        let source = |node: &str, fault: Option<&str>| SyncSource {
            node: node.parse().unwrap(),
            address: node.to_owned(),
            about: Some("VMware ESXi 8.0.2".into()),
            fault: fault.map(str::to_owned),
            vms: 2,
            listed_at: None,
            heard_at: None,
            held: Vec::new(),
            requests: 7,
        };
        let answer = SyncStanding {
            in_process: false,
            stands_by: None,
            sources: vec![source("esx1", None), source("esx2", Some("it is off\x1b[2J"))],
            unconfigured: [("esx9".parse().unwrap(), 2)].into(),
            last: Some(SyncPass {
                at: Time(0),
                took_ms: 1200,
                run: None,
                results: vec![SourceResult::default()],
            }),
            decisions: [(DecisionKind::Register, 2), (DecisionKind::Orphan, 1)].into(),
            documents_waiting: 1,
            documents_fault: Some("no answer".into()),
            outbox_waiting: 3,
            outbox_dead: 1,
        };
        let mut shown = standing(&answer, &view);
        let age = view.age(Time(0));
        shown = shown.replace(&age, "AGE");
        expect![[r#"
            state        in step
            last pass    AGE ago, took 1 s
            decisions    2 register, 1 orphan
            documents    1 wait; no answer
            outbox       3 wait, 1 given up: twin sync outbox list --dead
            left         2 VMs of esx9, which sync.yaml does not name any more; once they are gone: twin inventory confirm esx9

            SOURCE  VMS  LISTED  HELD  REQUESTS  STATE
            esx1      2  never      0         7  VMware ESXi 8.0.2
            esx2      2  never      0         7  it is off\x1b[2J
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn plans_and_entries() {
        let view = View::of_tests();
        let answer = SyncPlan {
            decisions: vec![PlannedDecision {
                node: "esx1".parse().unwrap(),
                id: Some("u-1".parse().unwrap()),
                name: Some("web".into()),
                kind: DecisionKind::Orphan,
                reason: "a complete listing of esx1 lacks vm-1".into(),
            }],
            faults: std::collections::BTreeMap::new(),
        };
        expect![[r#"
            DECISION  VM   SOURCE  WHY
            orphan    web  esx1    a complete listing of esx1 lacks vm-1
        "#]]
        .assert_eq(&plan(&answer, &view));
        let entry = OutboxEntry {
            id: "e1".into(),
            vm: "u-1".into(),
            target: "group".into(),
            what: "rename web to \x1b]0;x".into(),
            created_at: Time(0),
            attempts: 2,
            next_at: Time(0),
            last_error: Some("it answered 500".into()),
            dead: false,
        };
        let shown = entries(&Outbox { entries: vec![entry] }, &view);
        assert!(shown.contains("group  rename web to \\x1b]0;x"), "{shown}");
        assert!(shown.contains("it answered 500"), "{shown}");
    }
}
