//! Full passes: when there is one, who is asked, when it is over, and its run.

use super::Engine;
use crate::clock;
use crate::runs::{Cause, Kind, New, RunId, Subject};
use crate::sync::pass::{self, Pass, Saying, Told, Why};
use crate::sync::{Error, Reply};
use api::sync::{SourceResult, SyncPass};
use model::{HostId, Time, with_causes};
use std::collections::BTreeSet;
use std::time::Duration;

/// A source that has not answered within this is left out of a pass.
const PATIENCE: Duration = Duration::from_secs(600);

impl Engine {
    pub(super) async fn pass_time(&mut self) {
        let now = clock::now();
        if self.pass.is_none() && now >= self.next_pass {
            let pass = self.new_pass(Why::Schedule, now);
            self.begin_pass(pass);
        }
        let late = self.pass.as_ref().filter(|pass| now.since(pass.begun) > PATIENCE);
        for node in late.map(|pass| pass.waits_for.clone()).unwrap_or_default() {
            self.fail(&node, "it did not list its VMs in time".to_owned());
        }
        let due = self.later.iter().filter(|(_, later)| now >= later.at);
        for node in due.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
            let Some(sight) = self.sights.get(&node).filter(|sight| sight.doubt().is_none()) else {
                self.later.remove(&node);
                continue;
            };
            // Half of what it tells is not what it has.
            if !sight.midway {
                self.decide_whole(&node, true).await;
            }
        }
        if !self.unconfigured.is_empty() {
            // Some may have come to another source.
            self.find_unconfigured();
        }
        self.tell_silence(now).await;
    }

    /// A source can't be part of the pass that is on.
    pub(super) fn fail(&mut self, node: &HostId, why: String) {
        let host = self.address(node);
        if let Some(pass) = &mut self.pass {
            let result =
                SourceResult { ok: false, host, message: Some(why), ..SourceResult::default() };
            pass.finish(node, result);
        }
        self.end_pass();
    }

    fn nodes(&self) -> BTreeSet<HostId> {
        self.sights.keys().cloned().collect()
    }

    fn new_pass(&mut self, why: Why, begun: Time) -> Pass {
        self.asked += 1;
        Pass::new(why, begun, self.asked, self.nodes())
    }

    fn begin_pass(&mut self, pass: Pass) {
        for (node, ask) in &self.asks {
            // One that is away tries again; but not with a wrong password, lest the account be
            // locked, unless a person says so.
            let sight = self.sights.get(node).filter(|sight| sight.fault.is_some());
            if pass.why == Why::Asked || !sight.is_some_and(|sight| sight.needs_somebody) {
                ask.send_replace(pass.ask);
            }
        }
        self.pass = Some(pass);
        for node in self.nodes() {
            let fault = self.sights.get(&node).and_then(|sight| sight.fault.clone());
            if let Some((_, fault)) = fault {
                self.fail(&node, fault);
            }
        }
    }

    /// Ends the pass, if nobody is waited for any more.
    pub(super) fn end_pass(&mut self) {
        let Some(mut pass) = self.pass.take_if(|pass| pass.waits_for.is_empty()) else { return };
        let now = clock::now();
        self.next_pass = now.plus(self.sync.settings.interval);
        if pass.why == Why::Schedule && pass.is_of_note() && self.is_another(&pass) {
            match self.begin_run(Cause::Schedule) {
                Ok(told) => pass.tell(told),
                Err(error) => tracing::debug!(error = with_causes(&error), "a sync has no run"),
            }
        }
        pass.say(Saying::End(pass.outcome()));
        let took = now.since(pass.begun).as_millis();
        self.sync.kept.set_last(SyncPass {
            at: now,
            took_ms: u64::try_from(took).unwrap_or(u64::MAX),
            run: pass.run(),
            results: pass.results.into_values().collect(),
        });
    }

    /// Whether something came of a pass that did not of the last: what fails, or is held, again
    /// and again in the same way is told once.
    fn is_another(&self, pass: &Pass) -> bool {
        let doubts = |results: Vec<&SourceResult>| -> Vec<(String, Option<String>, usize)> {
            let doubtful = results.into_iter().filter(|result| !result.ok || result.held > 0);
            doubtful.map(|one| (one.host.clone(), one.message.clone(), one.held)).collect()
        };
        let changes: usize = pass.results.values().map(SourceResult::changes).sum();
        let before = self.sync.kept.last().map(|last| doubts(last.results.iter().collect()));
        changes > 0 || before != Some(doubts(pass.results.values().collect()))
    }

    fn begin_run(&self, cause: Cause) -> Result<Told, crate::runs::Error> {
        let (lines, receiver) = pass::lines();
        let new = New { kind: Kind::Sync, subject: Subject::sync(), cause };
        let id = self.app.runs.start(new, move |handle| pass::record(handle, receiver))?;
        Ok(Told { id, lines })
    }

    pub(super) fn now(&mut self, cause: Cause, reply: Reply<RunId>) {
        if self.pass.is_some() {
            drop(reply.send(Err(Error::Already)));
            return;
        }
        match self.begin_run(cause) {
            // The last one is over, and its log not quite.
            Err(crate::runs::Error::Busy { .. }) => drop(reply.send(Err(Error::Already))),
            Err(error) => drop(reply.send(Err(error.into()))),
            Ok(told) => {
                let id = told.id;
                let mut pass = self.new_pass(Why::Asked, clock::now());
                pass.tell(told);
                pass.say(Saying::Step("each source lists its VMs".to_owned()));
                self.begin_pass(pass);
                // Who hears that it began may ask at once how it stands.
                self.show();
                drop(reply.send(Ok(id)));
            }
        }
    }
}
