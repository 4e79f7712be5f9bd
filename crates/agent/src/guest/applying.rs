//! A plan that is carried out while the port goes on answering.
//!
//! ```text
//! idle ── begin ─► under way ─┬─ all steps ended ─► done ── begin, with another ─► under way
//!                             └─ cancel ──────────► done
//! ```
//!
//! One at a time. What happened stays to be asked for until the next one begins. Contents are kept
//! until a plan begins, or whoever sent them leaves.

use api::guest::{Answer, Apply, Happened, Since};
use converge::apply::{Contents, Machine, apply};
use model::ContentId;
use model::plan::{Event, Outcome};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Bytes of contents kept for a plan.
const CONTENTS_MAX: usize = 256 << 20;
/// Events kept; beyond that what programs say is left out, and what becomes of steps is not.
const EVENTS_MAX: usize = 100_000;
/// Events in one answer.
const ANSWER_MAX: usize = 2000;
/// How long an answer waits for something to happen.
const WAIT: Duration = Duration::from_millis(500);

pub(super) struct Applying {
    machine: Machine,
    contents: HashMap<ContentId, Vec<u8>>,
    bytes: usize,
    run: Option<Run>,
    /// One at most.
    task: JoinSet<()>,
}

struct Run {
    name: String,
    happened: watch::Receiver<Happened>,
    stop: CancellationToken,
}

impl Applying {
    pub(super) fn new(root: &Path, docker: &Path) -> Self {
        let machine = Machine { root: root.to_owned(), docker: docker.to_owned(), relay: None };
        let (contents, task) = (HashMap::new(), JoinSet::new());
        Self { machine, contents, bytes: 0, run: None, task }
    }

    pub(super) fn keep(&mut self, texts: Vec<String>) -> Answer {
        for text in texts {
            let id = ContentId::of(text.as_bytes());
            if self.contents.contains_key(&id) {
                continue;
            }
            if self.bytes.saturating_add(text.len()) > CONTENTS_MAX {
                return Answer::Fault(format!("more than {CONTENTS_MAX} bytes of contents"));
            }
            self.bytes += text.len();
            self.contents.insert(id, text.into_bytes());
        }
        Answer::Kept(self.contents.len())
    }

    /// Whoever sent contents is gone without a plan for them.
    pub(super) fn let_go(&mut self) -> HashMap<ContentId, Vec<u8>> {
        self.bytes = 0;
        std::mem::take(&mut self.contents)
    }

    pub(super) fn begin(&mut self, wanted: Apply) -> Answer {
        let Apply { run, plan, relay } = wanted;
        let kept = self.let_go();
        if let Some(known) = &self.run {
            let is_over = known.happened.borrow().outcomes.is_some();
            if known.name == run {
                return Answer::Applying(run);
            }
            if !is_over && known.happened.has_changed().is_ok() {
                return Answer::Fault(format!("{} is still being carried out", known.name));
            }
        }
        while self.task.try_join_next().is_some() {}
        let (tell, happened) = watch::channel(Happened::default());
        let stop = CancellationToken::new();
        self.run = Some(Run { name: run.clone(), happened, stop: stop.clone() });
        let contents: Contents = Arc::new(move |id| kept.get(id).cloned());
        let machine = Machine { relay, ..self.machine.clone() };
        tracing::info!(run, steps = plan.steps().len(), "carrying out a plan");
        self.task.spawn(async move {
            let note = |event: Event| {
                tell.send_modify(|happened| {
                    let is_said = matches!(event, Event::Said { .. });
                    if !is_said || happened.events.len() < EVENTS_MAX {
                        happened.events.push(event);
                    }
                });
            };
            let outcomes = apply(&machine, &plan, &contents, &note, stop.cancelled()).await;
            let failed = outcomes.iter().filter(|outcome| !Outcome::is_success(outcome)).count();
            tracing::info!(steps = outcomes.len(), failed, "carried out");
            tell.send_modify(|happened| happened.outcomes = Some(outcomes));
        });
        Answer::Applying(run)
    }

    /// What happened since; waits a moment for there to be something.
    pub(super) async fn progress(&mut self, since: &Since) -> Answer {
        let Some(run) = self.run.as_mut().filter(|known| known.name == since.run) else {
            return Answer::Fault(format!("no plan {} is known here", since.run));
        };
        let news =
            |happened: &Happened| happened.events.len() > since.from || happened.outcomes.is_some();
        let waited = tokio::time::timeout(WAIT, run.happened.wait_for(news)).await;
        let is_broken = matches!(waited, Ok(Err(_)));
        drop(waited);
        let happened = run.happened.borrow();
        let events = happened.events.iter().skip(since.from);
        let events: Vec<Event> = events.take(ANSWER_MAX).cloned().collect();
        let is_all = since.from + events.len() >= happened.events.len();
        if is_broken && is_all && happened.outcomes.is_none() {
            return Answer::Fault("carrying out the plan broke off".to_owned());
        }
        let outcomes = happened.outcomes.clone().filter(|_| is_all);
        Answer::Progress(Happened { events, outcomes })
    }

    pub(super) fn cancel(&mut self, run: &str) -> Answer {
        match &self.run {
            Some(known) if known.name == run => {
                known.stop.cancel();
                Answer::Applying(run.to_owned())
            }
            _ => Answer::Fault(format!("no plan {run} is known here")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::plan::Plan;

    #[tokio::test]
    async fn contents_are_kept_once_and_for_one_plan() {
        let root = tempfile::tempdir().unwrap();
        let mut applying = Applying::new(root.path(), root.path());
        let large = || vec!["x".repeat(CONTENTS_MAX - 1)];
        let kept = |answer: Answer| match answer {
            Answer::Kept(number) => Some(number),
            _ => None,
        };
        for _again in 0..2 {
            assert_eq!(kept(applying.keep(large())), Some(1));
        }
        assert_eq!(kept(applying.keep(vec!["ab".to_owned()])), None);
        // Whoever sent them left.
        drop(applying.let_go());
        assert_eq!(kept(applying.keep(vec!["ab".to_owned()])), Some(1));
        // A plan that is known takes what was sent for it along, too.
        let apply = || Apply { run: "a".to_owned(), plan: Plan::default(), relay: None };
        for _again in 0..2 {
            assert_eq!(applying.begin(apply()), Answer::Applying("a".to_owned()));
            assert_eq!(kept(applying.keep(vec!["ab".to_owned()])), Some(1));
        }
    }
}
