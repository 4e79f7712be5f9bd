//! One full pass over all sources: who is waited for, what came of each, and its run.

use super::source::Ask;
use crate::runs::{Failure, Handle, RunId, Stream};
use api::sync::SourceResult;
use model::{HostId, Time};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc;

/// Lines of a run that may wait to be written. What is more is left out.
const LINES: usize = 4096;

/// Why there is a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It is time to.
    Schedule,
    /// Somebody asked for it.
    Asked,
}

#[derive(Debug)]
pub(super) struct Pass {
    pub(super) why: Why,
    pub(super) begun: Time,
    /// By which its sources were asked.
    pub(super) ask: Ask,
    pub(super) waits_for: BTreeSet<HostId>,
    pub(super) results: BTreeMap<HostId, SourceResult>,
    /// What its run is to say.
    said: Vec<Saying>,
    run: Option<Told>,
}

/// The way to a run that is on.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) id: RunId,
    pub(super) lines: mpsc::Sender<Saying>,
}

#[derive(Debug)]
pub(super) enum Saying {
    Step(String),
    Line(String),
    Progress(u64, u64),
    End(Result<(), String>),
}

impl Pass {
    pub(super) fn new(why: Why, begun: Time, ask: Ask, sources: BTreeSet<HostId>) -> Self {
        Self {
            why,
            begun,
            ask,
            waits_for: sources,
            results: BTreeMap::new(),
            said: Vec::new(),
            run: None,
        }
    }

    /// From now on a run is told; first of all what was said before.
    pub(super) fn tell(&mut self, run: Told) {
        for saying in self.said.drain(..) {
            send(&run, saying);
        }
        self.run = Some(run);
    }

    pub(super) fn run(&self) -> Option<RunId> {
        self.run.as_ref().map(|run| run.id)
    }

    pub(super) fn say(&mut self, saying: Saying) {
        match &self.run {
            Some(run) => send(run, saying),
            None if self.said.len() < LINES => self.said.push(saying),
            None => {}
        }
    }

    /// One source is done.
    pub(super) fn finish(&mut self, node: &HostId, result: SourceResult) {
        if !self.waits_for.remove(node) {
            return;
        }
        self.say(Saying::Line(in_words(&result)));
        self.results.insert(node.clone(), result);
        let (done, all) = (self.results.len(), self.results.len() + self.waits_for.len());
        self.say(Saying::Progress(done as u64, all as u64));
    }

    /// Whether anything of it is worth a run of its own.
    pub(super) fn is_of_note(&self) -> bool {
        self.results.values().any(|result| !result.ok || result.held > 0 || result.changes() > 0)
    }

    pub(super) fn outcome(&self) -> Result<(), String> {
        let bad: Vec<String> = self
            .results
            .values()
            .filter(|result| !result.ok)
            .map(|result| {
                let why = result.message.as_deref().unwrap_or("it was not in step");
                format!("{}: {why}", result.host)
            })
            .collect();
        if bad.is_empty() { Ok(()) } else { Err(bad.join("; ")) }
    }
}

fn send(run: &Told, saying: Saying) {
    // A run that was cancelled, or is too slow, goes without.
    if let Err(error) = run.lines.try_send(saying) {
        tracing::debug!(run = %run.id, %error, "a run of a sync misses a line");
    }
}

fn in_words(result: &SourceResult) -> String {
    let mut text = format!(
        "{}: {} added, {} updated, {} renamed, {} moved, {} orphaned, {} reactivated",
        result.host,
        result.added,
        result.updated,
        result.renamed,
        result.moved,
        result.orphaned,
        result.reactivated
    );
    if result.held > 0 {
        text = format!("{text}, {} held until somebody confirms", result.held);
    }
    match &result.message {
        Some(message) => format!("{text}; {message}"),
        None => text,
    }
}

/// The channel to a run.
pub(super) fn lines() -> (mpsc::Sender<Saying>, mpsc::Receiver<Saying>) {
    mpsc::channel(LINES)
}

/// The work of a run: to write down what is said.
pub(super) async fn record(
    handle: Handle,
    mut lines: mpsc::Receiver<Saying>,
) -> Result<(), Failure> {
    let cancelled = handle.cancelled();
    loop {
        let saying = tokio::select! {
            saying = lines.recv() => saying,
            () = cancelled.cancelled() => {
                return Err(Failure::new("what was begun goes on; only its log ends here"));
            }
        };
        match saying {
            Some(Saying::Step(text)) => handle.step(&text),
            Some(Saying::Line(text)) => handle.line(Stream::Server, &text),
            Some(Saying::Progress(done, all)) => handle.progress(done, Some(all)),
            Some(Saying::End(Ok(()))) => return Ok(()),
            Some(Saying::End(Err(message))) => return Err(Failure::new(message)),
            None => return Err(Failure::new("the sync ended before it was done")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_ends_when_all_sources_did() {
        let node = |name: &str| HostId::new(name).unwrap();
        let mut pass = Pass::new(Why::Asked, Time(0), 1, [node("a"), node("b")].into());
        let good = SourceResult { ok: true, host: "a".into(), renamed: 1, ..Default::default() };
        pass.finish(&node("a"), good.clone());
        pass.finish(&node("a"), SourceResult::default());
        assert_eq!((pass.waits_for.len(), pass.results.len()), (1, 1));
        assert!(pass.is_of_note() && pass.outcome().is_ok());
        let message = Some("it is off".to_owned());
        pass.finish(&node("b"), SourceResult { host: "b".into(), message, ..Default::default() });
        assert_eq!(pass.outcome(), Err("b: it is off".to_owned()));
        let said: Vec<String> = pass
            .said
            .iter()
            .filter_map(|saying| match saying {
                Saying::Line(text) => Some(text.clone()),
                _ => None,
            })
            .collect();
        let rest = "0 moved, 0 orphaned, 0 reactivated";
        assert_eq!(
            said,
            [
                format!("a: 0 added, 0 updated, 1 renamed, {rest}"),
                format!("b: 0 added, 0 updated, 0 renamed, {rest}; it is off"),
            ]
        );
        let (lines, mut receiver) = lines();
        pass.tell(Told { id: RunId::new(1), lines });
        assert!(matches!(receiver.try_recv(), Ok(Saying::Line(_))));
        let quiet = Pass::new(Why::Schedule, Time(0), 1, [].into());
        assert!(!quiet.is_of_note());
    }
}
