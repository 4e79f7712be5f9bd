//! What is asked of a twin's agent beside who it is: what it sees, and to carry out a plan.
//!
//! ```text
//! look:      Look ─► Facts
//! carry out: Contents … ─► Apply ─► Progress … ─► outcomes      (Cancel, when the run is to end)
//! ```
//!
//! A plan goes on in the guest when its server went away; [`Twins::finish`] waits for such a one.

use super::error::Error;
use super::guest::{PAUSE, fresh_id, talk};
use super::relay::images::Gathered;
use super::{Twins, Way};
use crate::runs::{self, Failure, Handle, Stream as Says};
use api::guest::{self, Answer, Apply, Ask, Happened, Look, Since, ask};
use model::plan::{Action, Event, Outcome, Plan};
use model::spec::Spec;
use model::{ContentId, Facts};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::io::BufStream;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;
use vm::image::MachineName;
use vm::machine::Stream;

/// For the agent to say that it is there.
const GREETING: Duration = Duration::from_secs(15);
/// For a look; the guest's agent gives each part of it a minute itself.
const LOOK: Duration = Duration::from_secs(300);
/// For one message with contents, and for the beginning of a plan.
const MESSAGE: Duration = Duration::from_secs(60);
/// For news of a plan; the agent answers within half a second.
const NEWS: Duration = Duration::from_secs(20);
/// A guest that carries out a plan and says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(120);
/// Bytes of contents in one message; as JSON they may be some times as many.
const MESSAGE_BYTES: usize = 4 << 20;
/// Lines that are kept of what a step says.
const SAID_MAX: usize = 20;

type Channel = BufStream<Box<dyn Stream>>;

/// What became of a plan, and what was said by the steps that failed.
#[derive(Debug, Default)]
pub(super) struct CarriedOut {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) said: BTreeMap<usize, Vec<String>>,
}

/// Who talks to which guest; one at a time.
#[derive(Debug, Default)]
pub(super) struct Turns(std::sync::Mutex<BTreeMap<MachineName, Arc<Mutex<()>>>>);

impl Turns {
    async fn take(&self, name: &MachineName) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(name.clone()).or_default())
        };
        turn.lock_owned().await
    }
}

impl Twins {
    /// All that a twin's agent sees, and the files of this spec, looked at now.
    pub(super) async fn look(&self, name: &MachineName, spec: &Spec) -> Result<Facts, Error> {
        let _turn = runs::aside(self.inner.turns.take(name)).await;
        let mut channel = self.reach(name).await?;
        let files = spec.paths().cloned().collect();
        let plain = spec.plain().map(|(path, id)| (path.clone(), id)).collect();
        let look = Look { files, plain };
        let look = ask(&mut channel, fresh_id(), Ask::Look(look), LOOK);
        match runs::aside(look).await? {
            Answer::Facts(facts) => Ok(facts),
            _ => Err(Error::Strange { name: name.clone() }),
        }
    }

    /// Carries out a plan, by a name that nobody else gave one.
    pub(super) async fn carry_out(
        &self,
        name: &MachineName,
        run: &str,
        (plan, images): (&Plan, Gathered),
        handle: &Handle,
    ) -> Result<CarriedOut, Failure> {
        let _turn = runs::aside(self.inner.turns.take(name)).await;
        let has_images = !images.is_empty();
        // Packages and images come by this way until the plan is over.
        let lent = self.lend_way(name, (plan, images), handle).await?;
        let relay = lent.as_ref().map(|lent| lent.port);
        if self.inner.settings.way == Way::Native {
            return self.carry_out_there(name, run, (plan, relay), handle).await;
        }
        let first = plan.images();
        if has_images || first.renews_images() {
            // Ansible finds them there; what did not come is told by its own step.
            let done = self.carry_out_there(name, &fresh_id(), (&first, relay), handle).await?;
            // But one of the same name would be taken for it.
            let steps = first.steps().iter().zip(&done.outcomes);
            let failed = steps.filter_map(|(step, outcome)| match (&step.action, outcome) {
                (Action::RenewImage(image), Outcome::Failed(why)) => Some((image, why)),
                _ => None,
            });
            if let Some((image, why)) = failed.into_iter().next() {
                let what = format!("the twin's image {image} is another than the host's");
                return Err(Failure::new(format!("{what}, and that did not come: {why}")));
            }
        }
        self.carry_out_by_ansible(name, (plan, relay), handle).await
    }

    /// Carries out a plan by the guest's agent; whose turn it is was decided before.
    async fn carry_out_there(
        &self,
        name: &MachineName,
        run: &str,
        (plan, relay): (&Plan, Option<u16>),
        handle: &Handle,
    ) -> Result<CarriedOut, Failure> {
        let mut channel = self.reach(name).await?;
        let wanted: Vec<ContentId> = plan.contents().into_iter().collect();
        let texts = self.off_thread(move |this| this.texts(&wanted)).await?;
        for some in batches(texts) {
            ask(&mut channel, fresh_id(), Ask::Contents(some), MESSAGE).await?;
        }
        let apply = Apply { run: run.to_owned(), plan: plan.clone(), relay };
        ask(&mut channel, fresh_id(), Ask::Apply(apply), MESSAGE).await?;
        let told = |event: &Event| tell(plan, event, handle);
        runs::aside(self.until_over(name, channel, run, (&told, handle))).await
    }

    /// Waits for what a server before began in the guest, which the guest may know no more.
    pub(super) async fn finish(
        &self,
        name: &MachineName,
        run: &str,
        handle: &Handle,
    ) -> Result<(), Failure> {
        let _turn = runs::aside(self.inner.turns.take(name)).await;
        let mut channel = self.reach(name).await?;
        let since = Since { run: run.to_owned(), from: 0 };
        match ask(&mut channel, fresh_id(), Ask::Progress(since), NEWS).await {
            Err(guest::Error::Fault(_))
            | Ok(Answer::Progress(Happened { outcomes: Some(_), .. })) => {
                return Ok(());
            }
            _ => {}
        }
        handle.step("Waiting for the plan that was under way in the guest");
        let over = self.until_over(name, channel, run, (&|_event: &Event| {}, handle));
        runs::aside(over).await.map(drop)
    }

    async fn until_over(
        &self,
        name: &MachineName,
        mut channel: Channel,
        run: &str,
        (told, handle): (&(dyn Fn(&Event) + Sync), &Handle),
    ) -> Result<CarriedOut, Failure> {
        let cancelled = handle.cancelled();
        let (mut from, mut heard, mut is_told) = (0, Instant::now(), false);
        let mut said: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        loop {
            if cancelled.is_cancelled() && !is_told {
                is_told = true;
                ask(&mut channel, fresh_id(), Ask::Cancel(run.to_owned()), NEWS).await?;
            }
            let since = Since { run: run.to_owned(), from };
            let asked = ask(&mut channel, fresh_id(), Ask::Progress(since), NEWS);
            let asked = tokio::select! {
                asked = asked => asked,
                () = cancelled.cancelled(), if !is_told => {
                    // What this was to answer is passed over by whoever asks next.
                    continue;
                }
            };
            match asked {
                Ok(Answer::Progress(Happened { events, outcomes })) => {
                    heard = Instant::now();
                    from += events.len();
                    for event in &events {
                        told(event);
                        keep(&mut said, event);
                    }
                    if let Some(outcomes) = outcomes {
                        return Ok(CarriedOut { outcomes, said });
                    }
                }
                Ok(_) => return Err(Error::Strange { name: name.clone() }.into()),
                Err(guest::Error::Fault(fault)) => {
                    let text = format!(
                        "the guest does not know the plan any more; was it, or its agent, \
                         restarted? ({fault})"
                    );
                    return Err(Failure::new(text));
                }
                Err(error) if heard.elapsed() > SILENCE => {
                    let seconds = SILENCE.as_secs();
                    let cause = model::with_causes(&error);
                    let text = format!("the guest has said nothing for {seconds} s: {cause}");
                    return Err(Failure::new(text));
                }
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    if let Ok(again) = self.reach(name).await {
                        channel = again;
                    }
                }
            }
        }
    }

    async fn reach(&self, name: &MachineName) -> Result<Channel, Error> {
        let hypervisor = self.hypervisor().await?;
        let until = Instant::now() + GREETING;
        let found = super::guest::until_answered(until, || talk(hypervisor, name));
        let found = runs::aside(found).await;
        found.ok_or_else(|| Error::Silent { name: name.clone() })
    }

    /// Those that the history has; the steps that need the others will say so. Blocks.
    pub(super) fn texts(&self, wanted: &[ContentId]) -> Result<Vec<String>, Error> {
        let mut texts = Vec::new();
        for id in wanted {
            let content = self.inner.history.content(id)?;
            texts.extend(content.and_then(|bytes| String::from_utf8(bytes).ok()));
        }
        Ok(texts)
    }
}

/// In messages of a bearable size.
fn batches(texts: Vec<String>) -> Vec<Vec<String>> {
    let mut batches: Vec<Vec<String>> = Vec::new();
    let mut room = 0;
    for text in texts {
        match batches.last_mut() {
            Some(last) if text.len() <= room => {
                room -= text.len();
                last.push(text);
            }
            _ => {
                room = MESSAGE_BYTES.saturating_sub(text.len());
                batches.push(vec![text]);
            }
        }
    }
    batches
}

pub(super) fn keep(said: &mut BTreeMap<usize, Vec<String>>, event: &Event) {
    if let Event::Said { step, text } = event {
        let lines = said.entry(*step).or_default();
        if lines.len() >= SAID_MAX {
            lines.remove(0);
        }
        lines.push(text.clone());
    }
}

pub(super) fn tell(plan: &Plan, event: &Event, handle: &Handle) {
    match event {
        Event::Began { step } => handle.step(&action_of(plan, *step)),
        Event::Said { text, .. } => handle.line(Says::Stdout, text),
        Event::Ended { outcome: Outcome::Changed, .. } => {}
        Event::Ended { step, outcome } => {
            let action = action_of(plan, *step);
            let (stream, text) = match outcome {
                Outcome::Already | Outcome::Changed => {
                    (Says::Stdout, format!("{action}: it is so"))
                }
                Outcome::Failed(why) => (Says::Stderr, format!("{action} failed: {why}")),
                Outcome::Skipped { needs } => {
                    let before = action_of(plan, *needs);
                    (Says::Stderr, format!("{action}: left out, since it needs: {before}"))
                }
                Outcome::Cancelled => (Says::Stderr, format!("{action}: cancelled")),
            };
            handle.line(stream, &text);
        }
    }
}

fn action_of(plan: &Plan, step: usize) -> String {
    plan.steps().get(step).map(|step| step.action.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_go_in_bearable_messages() {
        let text = |size: usize| "x".repeat(size);
        let sizes = |texts: Vec<String>| -> Vec<Vec<usize>> {
            batches(texts).iter().map(|some| some.iter().map(String::len).collect()).collect()
        };
        assert!(sizes(vec![]).is_empty());
        assert_eq!(sizes(vec![text(1), text(2)]), [[1, 2]]);
        let large = MESSAGE_BYTES + 1;
        assert_eq!(sizes(vec![text(large), text(3)]), [[large], [3]]);
        let half = MESSAGE_BYTES / 2;
        let three = sizes(vec![text(half), text(half), text(half)]);
        assert_eq!(three, [vec![half, half], vec![half]]);
    }

    #[test]
    fn of_what_a_step_says_the_end_is_kept() {
        let mut said = BTreeMap::new();
        for n in 0..30 {
            keep(&mut said, &Event::Said { step: 1, text: n.to_string() });
            keep(&mut said, &Event::Began { step: 2 });
        }
        assert_eq!(said.len(), 1);
        assert_eq!((said[&1].len(), said[&1][0].as_str()), (SAID_MAX, "10"));
    }
}
