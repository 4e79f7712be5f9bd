//! What our plugin in Ansible tells of a plan's steps, among what Ansible says by itself.
//!
//! ```text
//! began ─► ok, changed … ─► over, or the next step begins: already, changed
//!            └─► failed ──────────────────┴──────────────► failed, skipped
//! ```
//!
//! A line is the plugin's if it begins with a word that only this run and the plugin know.

use super::tasks::LEFT_OUT;
use model::plan::{Event, Outcome, Plan};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Why a step has no end, where Ansible ended before it.
const NOT_REACHED: &str = "Ansible ended before it was done";

#[derive(Debug, Deserialize)]
pub(super) struct Told {
    step: usize,
    is: Is,
    #[serde(default)]
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Is {
    Began,
    Ok,
    Changed,
    Failed,
    /// Nothing more of it follows.
    Over,
    Said,
}

/// What a line of the plugin tells; nothing where it is none.
pub(super) fn read(line: &str, word: &str) -> Option<Told> {
    serde_json::from_str(line.strip_prefix(word)?.trim_start()).ok()
}

/// How far a plan is.
#[derive(Debug, Default)]
pub(super) struct Course {
    outcomes: BTreeMap<usize, Outcome>,
    /// The step that is under way, and what came of it so far.
    under_way: Option<(usize, Outcome)>,
}

impl Course {
    /// What it means, as the guest's agent would tell it.
    pub(super) fn take(&mut self, plan: &Plan, told: Told) -> Vec<Event> {
        let Told { step, is, text } = told;
        let Some(planned) = plan.steps().get(step) else { return Vec::new() };
        let is_under_way = self.under_way.as_ref().is_some_and(|(at, _)| *at == step);
        match is {
            Is::Said => return vec![Event::Said { step, text: plain(&text) }],
            Is::Over if is_under_way => return self.end().into_iter().collect(),
            Is::Over => return Vec::new(),
            Is::Began | Is::Ok | Is::Changed | Is::Failed => {}
        }
        let mut events = Vec::new();
        if !is_under_way {
            events.extend(self.end());
            events.push(Event::Began { step });
            self.under_way = Some((step, Outcome::Already));
        }
        let Some((_, outcome)) = &mut self.under_way else { return events };
        if is == Is::Changed && *outcome == Outcome::Already {
            *outcome = Outcome::Changed;
        }
        if is == Is::Failed {
            let failed = |need: &&usize| {
                self.outcomes.get(*need).is_some_and(|outcome| !outcome.is_success())
            };
            *outcome = match planned.needs.iter().find(failed) {
                Some(needs) if text.starts_with(LEFT_OUT) => Outcome::Skipped { needs: *needs },
                _ => Outcome::Failed(plain(&text)),
            };
        }
        events
    }

    /// Whether a step failed so far.
    pub(super) fn has_failed(&self) -> bool {
        let under_way = self.under_way.iter().map(|(_, outcome)| outcome);
        self.outcomes.values().chain(under_way).any(|outcome| !outcome.is_success())
    }

    /// Ends the step that is under way.
    fn end(&mut self) -> Option<Event> {
        let (step, outcome) = self.under_way.take()?;
        self.outcomes.insert(step, outcome.clone());
        Some(Event::Ended { step, outcome })
    }

    /// The end of it all: what became of each step.
    pub(super) fn finish(mut self, plan: &Plan, how: End) -> (Vec<Event>, Vec<Outcome>) {
        let mut events = Vec::new();
        if how != End::Whole
            && let Some((_, outcome)) = &mut self.under_way
            && outcome.is_success()
        {
            *outcome = how.outcome();
        }
        events.extend(self.end());
        for step in 0..plan.steps().len() {
            self.outcomes.entry(step).or_insert_with(|| {
                let outcome = how.outcome();
                events.push(Event::Ended { step, outcome: outcome.clone() });
                outcome
            });
        }
        (events, self.outcomes.into_values().collect())
    }
}

/// How Ansible ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It went through all tasks.
    Whole,
    Broken,
    Cancelled,
}

impl End {
    /// What became of a step without an end of its own.
    fn outcome(self) -> Outcome {
        match self {
            Self::Cancelled => Outcome::Cancelled,
            Self::Whole | Self::Broken => Outcome::Failed(NOT_REACHED.to_owned()),
        }
    }
}

fn plain(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use model::plan::{Action, Step};
    use model::{Kind, Subject};

    fn check(lines: &[&str], how: End, expected: &Expect) {
        let step = |unit: &str, needs: Vec<usize>| Step {
            subject: Subject::escaped(Kind::UNIT, unit),
            action: Action::Start(unit.parse().unwrap()),
            why: String::new(),
            needs,
            after: vec![],
        };
        let steps =
            vec![step("a.service", vec![]), step("b.service", vec![0]), step("c.service", vec![1])];
        let plan = Plan::new(steps, vec![]).unwrap();
        let mut progress = Course::default();
        let mut told = String::new();
        for line in lines {
            let Some(event) = read(line, "word") else { continue };
            for event in progress.take(&plan, event) {
                told.push_str(&format!("{event:?}\n"));
            }
        }
        let (events, outcomes) = progress.finish(&plan, how);
        for event in events {
            told.push_str(&format!("{event:?}\n"));
        }
        assert_eq!(outcomes.len(), 3);
        expected.assert_eq(&told);
    }

    #[test]
    fn steps_end_where_the_next_begins() {
        let lines = [
            r#"word {"step": 0, "is": "began"}"#,
            r#"wort {"step": 0, "is": "failed", "text": "of somebody else"}"#,
            r#"word {"step": 0, "is": "changed"}"#,
            r#"word {"step": 0, "is": "ok"}"#,
            r#"word {"step": 1, "is": "began"}"#,
            r#"word {"step": 1, "is": "failed", "text": "no\u001b[2Jpe"}"#,
            r#"word {"step": 1, "is": "said", "text": "exit 3"}"#,
            r#"word {"step": 9, "is": "failed"}"#,
            r#"word {"step": 1, "is": "over"}"#,
            r#"word {"step": 1, "is": "over"}"#,
            r#"word {"step": 2, "is": "failed", "text": "left out, since it needs a step that failed"}"#,
        ];
        check(
            &lines,
            End::Whole,
            &expect![[r#"
                Began { step: 0 }
                Ended { step: 0, outcome: Changed }
                Began { step: 1 }
                Said { step: 1, text: "exit 3" }
                Ended { step: 1, outcome: Failed("no[2Jpe") }
                Began { step: 2 }
                Ended { step: 2, outcome: Skipped { needs: 1 } }
            "#]],
        );
    }

    #[test]
    fn what_was_not_reached_is_no_success() {
        let lines = [r#"word {"step": 0, "is": "changed"}"#, r#"word {"step": 1, "is": "ok"}"#];
        check(
            &lines,
            End::Broken,
            &expect![[r#"
                Began { step: 0 }
                Ended { step: 0, outcome: Changed }
                Began { step: 1 }
                Ended { step: 1, outcome: Failed("Ansible ended before it was done") }
                Ended { step: 2, outcome: Failed("Ansible ended before it was done") }
            "#]],
        );
        check(
            &lines[..1],
            End::Cancelled,
            &expect![[r#"
                Began { step: 0 }
                Ended { step: 0, outcome: Cancelled }
                Ended { step: 1, outcome: Cancelled }
                Ended { step: 2, outcome: Cancelled }
            "#]],
        );
    }
}
