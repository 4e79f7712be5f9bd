//! One round: what the host is, what the twin is, what leads from one to the other; that done,
//! and looked at.

use super::gone::is_no_fault;
use super::standing::{Compared, Failed, Mode, Reached, Standing};
use crate::clock;
use crate::runs::{self, Failure, Handle, Stream as Says};
use crate::snapshots::BASE;
use crate::twins::channel::CarriedOut;
use crate::twins::error::Error;
use crate::twins::guest::{fresh_id, within};
use crate::twins::snapshots::{Wish, free_name};
use crate::twins::{Saving, Twins};
use model::entity::{Collector, Platform};
use model::plan::{Fidelity, Outcome, Own, Plan, on_its_way, plan};
use model::spec::{Cause, Spec, leave_out_passing};
use model::{Facts, HostId, Kind, Significance, Time, Version};
use std::sync::Arc;
use std::time::Duration;
use store::Filter;
use vm::image::{MachineName, SnapshotName};
use vm::machine::{Kind as Holds, Network};

/// How often a plan is made and carried out in one run: what the first brought may call for more.
const PASSES: usize = 3;
/// How often a twin is looked at in which a unit is on its way, and how long after each other.
const LOOKS: usize = 12;
const LOOKS_APART: Duration = Duration::from_secs(5);
/// Between two snapshots that are taken before a change.
const SAVED_APART: Duration = Duration::from_secs(60);
/// Things that a plan removes where the host does not have them.
const REMOVED: [Kind; 5] = [Kind::PACKAGE, Kind::USER, Kind::GROUP, Kind::FILE, Kind::CONTAINER];

/// Before a kind, among the subjects that a twin keeps; no subject is like it.
const SEEN: &str = "seen ";

/// What a twin is to become.
#[derive(Debug, Clone)]
pub(super) struct Goal {
    /// The twin of the host; what becomes like it may be a clone of that.
    pub(super) twin: MachineName,
    pub(super) host: HostId,
    pub(super) version: Version,
    /// When the host came to it.
    pub(super) at: Time,
    pub(super) spec: Spec,
    /// Why a twin does not follow such a host unless somebody says so.
    pub(super) unsafe_because: Option<&'static str>,
    /// When a process that may be over in a moment will have been there long enough to count.
    pub(super) settles_at: Option<Time>,
}

/// A twin beside what it is to become.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) goal: Arc<Goal>,
    pub(super) plan: Plan,
    pub(super) facts: Facts,
    pub(super) looked_at: Time,
}

/// What did not come true.
#[derive(Debug)]
pub(super) struct Trouble {
    step: Option<String>,
    output: Vec<String>,
    /// The change was carried out as far as it could be.
    is_partial: bool,
}

impl Twins {
    /// The newest version of a twin's host, as the twin is to have it.
    pub(super) async fn goal(&self, name: &MachineName) -> Result<Arc<Goal>, Error> {
        self.goal_at(name, None).await
    }

    /// A version of a twin's host, or the newest, as the twin is to have it.
    pub(super) async fn goal_at(
        &self,
        name: &MachineName,
        version: Option<Version>,
    ) -> Result<Arc<Goal>, Error> {
        let name = name.clone();
        self.off_thread(move |this| {
            let host = this.known_host(&name)?;
            let unknown = || Error::UnknownHost { host: host.clone() };
            let history = &this.inner.history;
            let (version, mut facts, until) = match version {
                None => {
                    let head = history.head(&host)?.ok_or_else(unknown)?;
                    (head.version, head.facts, None)
                }
                Some(version) => {
                    let next = history.after(&host, version, 1)?;
                    let facts = history.state(&host, version)?.ok_or_else(unknown)?;
                    (version, facts, next.first().map(|entry| entry.at))
                }
            };
            let settles_at = leave_out_passing(&mut facts, until.unwrap_or_else(clock::now));
            let at = match history.entry(&host, version)? {
                Some(entry) => entry.at,
                None => history.host(&host).ok_or_else(unknown)?.head_at,
            };
            Ok(Arc::new(Goal {
                version,
                at,
                spec: Spec::of(&facts, &this.declared(&name)?, Some(at)),
                unsafe_because: unsafe_because(&facts),
                settles_at,
                host,
                twin: name,
            }))
        })
        .await
    }

    /// Compares a twin with its host, by what is known of it or else by a look.
    pub(super) async fn compare(
        &self,
        name: &MachineName,
        goal: Arc<Goal>,
        known: Option<Facts>,
    ) -> Result<Comparison, Error> {
        let facts = match known {
            Some(facts) => facts,
            None => self.look(name, &goal.spec).await?,
        };
        let looked_at = clock::now();
        let is_isolated = self.known(name).await?.network == Network::Isolated;
        let machine = name.clone();
        self.off_thread(move |this| {
            let own = this.own(&goal.twin, &goal.spec, &facts)?;
            let own = this.inner.gone.known_of(&machine, own);
            let own = match is_isolated {
                true => this.cut_off(own, &goal.host),
                false => own,
            };
            let plan = plan(&goal.spec, &facts, &own);
            Ok(Comparison { goal, plan, facts, looked_at })
        })
        .await
    }

    /// What a twin that reaches nothing is brought by this server, and what not.
    fn cut_off(&self, own: Own, host: &HostId) -> Own {
        let settings = &self.inner.settings;
        let own = if settings.relays { own } else { own.without_packages() };
        match settings.relays_images {
            true => own.with_images_of_host(self.inner.container_images.lacking(host)),
            false => own.without_images(),
        }
    }

    /// What the twin had before anything was brought to it, and the host had not. Blocks.
    fn own(&self, name: &MachineName, spec: &Spec, facts: &Facts) -> Result<Own, Error> {
        let before = self.inner.book.base(name)?;
        let base = base(before.as_deref(), spec, facts);
        if before.as_ref() != Some(&base) && !base.is_empty() {
            self.inner.book.put_base(name, &base)?;
        }
        Ok(base.iter().filter_map(|text| text.parse().ok()).collect())
    }

    /// Leads a twin to the newest version of its host, and writes down how that went. `known` are
    /// its facts, where they were looked at just now.
    pub(super) async fn bring(
        &self,
        name: &MachineName,
        known: Option<Facts>,
        handle: &Handle,
    ) -> Result<Comparison, Failure> {
        let led = runs::guarded(Box::pin(self.lead(name, known, handle))).await;
        let is_cancelled = handle.cancelled().is_cancelled();
        match led.and_then(|led| led) {
            Ok((seen, None)) => {
                self.note(name, &seen, None).await?;
                handle.step(&format!("{name} is as its host at version {}", seen.goal.version));
                Ok(seen)
            }
            Ok((seen, Some(trouble))) => {
                let failure = Failure::new(trouble.text());
                if !is_cancelled {
                    self.note(name, &seen, Some(trouble)).await?;
                }
                Err(failure)
            }
            Err(failure) => {
                if !is_cancelled {
                    let output = vec![failure.message().to_owned()];
                    let trouble = Trouble { step: None, output, is_partial: false };
                    let now = clock::now();
                    self.settle_standing(name, move |standing| trouble.note(standing, now)).await?;
                }
                Err(failure)
            }
        }
    }

    /// Somebody who cancels a run of these wants the twin left alone, also where it never began
    /// or had to be cut off.
    pub(super) async fn brought(&self, name: &MachineName, end: runs::State) {
        if end != runs::State::Cancelled {
            return;
        }
        let held = self.settle_standing(name, |standing| {
            if !matches!(standing.mode, Mode::Held(_)) {
                standing.mode = Mode::Held("the run that changed it was cancelled".to_owned());
            }
        });
        if let Err(error) = held.await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(twin = %name, error, "it follows, though its run was cancelled");
        }
    }

    /// Ends a run for which only the host gave reason, where the twin is held by now.
    async fn unless_held(&self, name: &MachineName, handle: &Handle) -> Result<(), Failure> {
        if !handle.is_unasked() {
            return Ok(());
        }
        let subject = name.clone();
        let standing = self.off_thread(move |this| this.inner.standings.get(&subject)).await?;
        let Mode::Held(why) = standing.mode else { return Ok(()) };
        handle.cancelled().cancel();
        Err(Failure::new(format!("{name} is held: {why}")))
    }

    async fn lead(
        &self,
        name: &MachineName,
        known: Option<Facts>,
        handle: &Handle,
    ) -> Result<(Comparison, Option<Trouble>), Failure> {
        self.unless_held(name, handle).await?;
        self.finish_what_is_under_way(name, handle).await?;
        let goal = self.goal(name).await?;
        handle.step(&format!("Leading {name} to version {} of its host", goal.version));
        self.pardon_what_lacks(name, &goal.host);
        if !handle.is_unasked() {
            // Whoever asks may have seen to it.
            self.inner.gone.forget(name);
        }
        let seen = within(handle, self.compare(name, goal, known)).await??;
        self.refuse_another_system(name, &seen).await?;
        if !seen.plan.is_empty() {
            self.save_before(name, &seen.goal, handle).await?;
        }
        self.come_true(name, seen, handle).await
    }

    /// Carries out what leads a machine to what it is to become, until nothing is left to do or
    /// something does not come true.
    pub(super) async fn come_true(
        &self,
        name: &MachineName,
        mut seen: Comparison,
        handle: &Handle,
    ) -> Result<(Comparison, Option<Trouble>), Failure> {
        let mut trouble = None;
        for _pass in 0..PASSES {
            if seen.plan.is_empty() || trouble.is_some() {
                break;
            }
            let images = self.gather_images(&seen.goal.host, &seen.plan, handle).await?;
            if images.is_lacking {
                // What can't be had is no step.
                let goal = Arc::clone(&seen.goal);
                seen = self.compare(name, goal, Some(seen.facts)).await?;
                if seen.plan.is_empty() {
                    break;
                }
            }
            let (steps, gaps) = (seen.plan.steps().len(), seen.plan.gaps().len());
            let text = format!("{steps} steps; {gaps} things can't be reproduced");
            handle.line(Says::Server, &text);
            self.unless_held(name, handle).await?;
            let run = fresh_id();
            if *name == seen.goal.twin {
                // Written down first: a server that comes after this one waits for it.
                let under_way = Some(run.clone());
                let begin = |standing: &mut Standing| {
                    standing.under_way = under_way;
                    standing.is_mixed = true;
                };
                self.change_standing(name, begin).await?;
            }
            let done = self.carry_out(name, &run, (&seen.plan, images), handle).await?;
            self.inner.gone.learn(name, &seen.plan, &done);
            trouble = first_trouble(&seen.plan, &done);
            if handle.cancelled().is_cancelled() {
                return Err(Failure::new("cancelled"));
            }
            handle.step("Looking whether it is so");
            let goal = Arc::clone(&seen.goal);
            seen = within(handle, self.compare(name, goal, None)).await??;
        }
        if trouble.is_none() {
            seen = self.let_arrive(name, seen, handle).await?;
            trouble = not_there(&seen);
        }
        Ok((seen, trouble))
    }

    /// Looks again while a unit of a twin that lacks nothing else is on its way.
    async fn let_arrive(
        &self,
        name: &MachineName,
        mut seen: Comparison,
        handle: &Handle,
    ) -> Result<Comparison, Failure> {
        let cancelled = handle.cancelled();
        for _look in 0..LOOKS {
            if !seen.plan.is_empty() || on_its_way(&seen.goal.spec, &seen.facts).is_none() {
                break;
            }
            let pause = runs::aside(tokio::time::sleep(LOOKS_APART));
            if cancelled.run_until_cancelled(pause).await.is_none() {
                return Err(Failure::new("cancelled"));
            }
            let goal = Arc::clone(&seen.goal);
            seen = self.compare(name, goal, None).await?;
        }
        Ok(seen)
    }

    async fn finish_what_is_under_way(
        &self,
        name: &MachineName,
        handle: &Handle,
    ) -> Result<(), Failure> {
        let subject = name.clone();
        let standing = self.off_thread(move |this| this.inner.standings.get(&subject)).await?;
        if let Some(run) = standing.under_way {
            self.finish(name, &run, handle).await?;
            self.change_standing(name, |standing| standing.under_way = None).await?;
        }
        Ok(())
    }

    /// A twin of another distribution follows only where somebody says so.
    async fn refuse_another_system(
        &self,
        name: &MachineName,
        seen: &Comparison,
    ) -> Result<(), Failure> {
        let of = |gap: &&model::spec::Gap| {
            gap.cause == Cause::System && gap.subject.kind() == Kind::PLATFORM
        };
        let Some(gap) = seen.plan.gaps().iter().find(of) else { return Ok(()) };
        let subject = name.clone();
        let standing = self.off_thread(move |this| this.inner.standings.get(&subject)).await?;
        if standing.mode != Mode::Unset {
            return Ok(());
        }
        let why = gap.what.clone();
        let text = format!("{why}; to make it follow all the same: twin follow {name}");
        self.change_standing(name, |standing| standing.mode = Mode::Held(why)).await?;
        Err(Failure::new(text))
    }

    /// Saves the twin before it is changed, as often as that is worth it.
    async fn save_before(
        &self,
        name: &MachineName,
        goal: &Goal,
        handle: &Handle,
    ) -> Result<(), Failure> {
        let holds = match self.inner.settings.saving {
            Saving::Never => return Ok(()),
            Saving::Live => Holds::Live,
            Saving::Disk => Holds::Disk,
        };
        let listed = self.listed(name).await?;
        let names: Vec<SnapshotName> = listed.iter().map(|one| one.name.clone()).collect();
        let newest = listed.iter().filter_map(|one| one.snapshot.as_ref().ok()).map(|one| one.at);
        let newest = newest.max();
        let now = clock::now();
        let called = if names.iter().any(|one| one.as_str() == BASE) {
            // What is in between two versions is no moment of its host that anybody asks for.
            if self.is_mixed(name) {
                return Ok(());
            }
            let (host, reached) = (goal.host.clone(), self.reached(name));
            let is_major = self.off_thread(move |this| this.is_major(&host, reached)).await?;
            if !is_worth_saving(newest, is_major, now) {
                return Ok(());
            }
            free_name(now, &names)
        } else {
            BASE.parse().map_err(|error: vm::image::NameError| Failure::new(error.to_string()))?
        };
        let wish = Wish { name: called, kind: holds, is_named: false };
        self.take(name, wish, handle).await?;
        self.prune_after(name, handle).await;
        Ok(())
    }

    /// Whether something significant happened since a version. Blocks.
    fn is_major(&self, host: &HostId, since: Option<Version>) -> Result<bool, Error> {
        let filter = Filter { significance: Some(Significance::Major), ..Filter::default() };
        let newest = self.inner.history.log(host, &filter, None, 1)?;
        Ok(newest.first().is_some_and(|entry| since.is_none_or(|since| entry.version > since)))
    }

    /// Writes down what a run came to, and what did not come true. Its plan is over.
    async fn note(
        &self,
        name: &MachineName,
        seen: &Comparison,
        trouble: Option<Trouble>,
    ) -> Result<(), Error> {
        let (noted, looked_at) = (seen.noted(), seen.looked_at);
        self.settle_standing(name, move |standing| {
            noted(standing);
            standing.under_way = None;
            if let Some(trouble) = trouble {
                trouble.note(standing, looked_at);
            }
        })
        .await
    }

    /// Writes down what was seen of a twin that follows, and that what came true in it did not
    /// last, if that was so, how often in a row.
    pub(super) async fn note_look(
        &self,
        name: &MachineName,
        seen: &Comparison,
        relapses: Option<u32>,
    ) -> Result<(), Error> {
        let (noted, at) = (seen.noted(), seen.looked_at);
        let step = left(&seen.plan).step;
        self.settle_standing(name, move |standing| {
            // It may be put back just now.
            if matches!(standing.mode, Mode::Held(_)) {
                return;
            }
            noted(standing);
            if let Some(tries) = relapses {
                let output = vec!["it came true, and did not last".to_owned()];
                standing.is_mixed = true;
                standing.failure = Some(Failed { at, step, output, tries });
            }
        })
        .await
    }

    pub(in crate::twins) async fn change_standing(
        &self,
        name: &MachineName,
        change: impl FnOnce(&mut Standing) + Send + 'static,
    ) -> Result<(), Error> {
        let name = name.clone();
        self.off_thread(move |this| this.inner.standings.change(&name, change)).await
    }

    /// As [`Twins::change_standing`], of what is so already, whatever the disk takes.
    pub(in crate::twins) async fn settle_standing(
        &self,
        name: &MachineName,
        change: impl FnOnce(&mut Standing) + Send + 'static,
    ) -> Result<(), Error> {
        let name = name.clone();
        self.off_thread(move |this| {
            this.inner.standings.settle(&name, change);
            Ok(())
        })
        .await
    }
}

impl Comparison {
    /// What it means for how the twin stands.
    pub(super) fn noted(&self) -> impl FnOnce(&mut Standing) + Send + 'static {
        let fidelity = Fidelity::now(&self.goal.spec, &self.plan);
        let compared = Compared {
            at: self.looked_at,
            fidelity_per_mille: fidelity.per_mille(),
            steps_left: self.plan.steps().len(),
            gaps: self.plan.gaps().len(),
        };
        let (version, at) = (self.goal.version, self.goal.at);
        move |standing| {
            if compared.steps_left == 0 {
                standing.failure = None;
                let before = standing.reached.as_ref();
                let is_news = before.is_none_or(|before| before.version < version);
                let took = match is_news {
                    true => Some(compared.at.since(at)),
                    false => before.and_then(|before| before.took),
                };
                standing.reached = Some(Reached { version, took });
                standing.is_mixed = false;
            }
            standing.compared = Some(compared);
        }
    }
}

impl Trouble {
    fn note(self, standing: &mut Standing, at: Time) {
        let tries = standing.failure.as_ref().map_or(0, |before| before.tries).saturating_add(1);
        standing.failure = Some(Failed { at, step: self.step, output: self.output, tries });
    }

    pub(super) fn text(&self) -> String {
        let what = self.step.as_deref().unwrap_or("the twin");
        let why = self.output.last().map(String::as_str).unwrap_or_default();
        match self.is_partial {
            true => format!("{what}: {why}; all that does not need it was done"),
            false => format!("{what}: {why}"),
        }
    }
}

/// The first step that failed, and what it said. What can't be there is a gap from now on.
fn first_trouble(plan: &Plan, done: &CarriedOut) -> Option<Trouble> {
    done.outcomes.iter().enumerate().find_map(|(at, outcome)| {
        let step = plan.steps().get(at).map(|step| &step.action);
        let why = match outcome {
            Outcome::Failed(why) if step.is_some_and(|step| is_no_fault(step, why)) => {
                return None;
            }
            Outcome::Failed(why) => why.clone(),
            Outcome::Cancelled => "cancelled".to_owned(),
            Outcome::Already | Outcome::Changed | Outcome::Skipped { .. } => return None,
        };
        let mut output = done.said.get(&at).cloned().unwrap_or_default();
        output.push(why);
        Some(Trouble { step: step.map(ToString::to_string), output, is_partial: true })
    })
}

/// For a plan that was carried out, and left something to do.
fn left(plan: &Plan) -> Trouble {
    let step = plan.steps().first().map(|step| step.action.to_string());
    let others = plan.steps().len().saturating_sub(1);
    let why = "it was done, and is not so when looked at again";
    let text = match others {
        0 => why.to_owned(),
        _ => format!("{why}; steps left beside it: {others}"),
    };
    Trouble { step, output: vec![text], is_partial: true }
}

/// What a twin keeps, with what a look adds to it: the kinds that no look could see before. A kind
/// that was seen is noted, since nothing of it may be the twin's own.
fn base(before: Option<&[String]>, spec: &Spec, facts: &Facts) -> Vec<String> {
    let mut base = before.unwrap_or_default().to_vec();
    if before.is_some() && !base.iter().any(|text| text.starts_with(SEEN)) {
        // An older server took it all at once.
        return base;
    }
    let unseen = model::spec::unseen(facts);
    for kind in REMOVED {
        let seen = format!("{SEEN}{kind}");
        if unseen.contains(&kind) || base.contains(&seen) {
            continue;
        }
        let own = facts.of_kind(kind).map(|(subject, _)| subject);
        base.extend(own.filter(|subject| !spec.has(subject)).map(ToString::to_string));
        base.push(seen);
    }
    base
}

/// What keeps a twin from being as its host, though all was done.
fn not_there(seen: &Comparison) -> Option<Trouble> {
    if !seen.plan.is_empty() {
        return Some(left(&seen.plan));
    }
    let unit = on_its_way(&seen.goal.spec, &seen.facts)?;
    let output = vec!["the host's runs, and it is still on its way there".to_owned()];
    Some(Trouble { step: Some(unit.to_string()), output, is_partial: true })
}

fn is_worth_saving(newest: Option<Time>, is_major: bool, now: Time) -> bool {
    is_major && newest.is_none_or(|newest| now.since(newest) >= SAVED_APART)
}

/// What a host has to tell, so that a twin may be changed by it without being asked.
fn unsafe_because(facts: &Facts) -> Option<&'static str> {
    let is_looked_at = |kind: &Kind| facts.of_kind(*kind).next().is_some();
    let is_watched = facts.entities::<Collector>().next().is_some();
    if !is_watched || facts.entity::<Platform>("host").is_none() {
        return Some("no agent watches its host, and what others tell is not all of it");
    }
    match [Kind::PACKAGE, Kind::UNIT, Kind::FILE, Kind::USER].iter().all(is_looked_at) {
        true => None,
        false => Some("its agent has not seen packages, units, files and users of its host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Subject;
    use model::entity::{File, Package, Unit, User};
    use model::plan::{Action, Step};

    fn step(action: Action) -> Step {
        let (subject, why) = (Subject::escaped(Kind::UNIT, "a"), String::new());
        Step { subject, action, why, needs: vec![], after: vec![] }
    }

    #[test]
    fn what_failed_first_is_told_with_its_output() {
        let units = ["a.service", "b.service"].map(|name| name.parse().unwrap());
        let plan = Plan::new(units.map(|unit| step(Action::Start(unit))).into(), vec![]).unwrap();
        let done = |outcomes: Vec<Outcome>| {
            let said = [(1, vec!["no such port".to_owned()])].into();
            first_trouble(&plan, &CarriedOut { outcomes, said })
        };
        assert!(done(vec![Outcome::Changed, Outcome::Already]).is_none());
        let found = done(vec![Outcome::Changed, Outcome::Failed("exit 1".into())]).unwrap();
        assert_eq!(found.step.as_deref(), Some("start b.service"));
        assert_eq!(found.output, ["no such port", "exit 1"]);
        assert_eq!(
            left(&plan).text(),
            "start a.service: it was done, and is not so when looked at again; steps left beside it: 1; all that does not need it was done"
        );
        let mut standing = Standing::default();
        for tries in 1..4 {
            left(&plan).note(&mut standing, Time(0));
            assert_eq!(standing.failure.as_ref().map(|failed| failed.tries), Some(tries));
        }
    }

    #[test]
    fn what_a_twin_keeps_is_taken_of_each_kind_when_it_is_first_seen() {
        let facts = |package: &str, fault: Option<&str>| {
            let mut facts = Facts::default();
            facts.put_entity(&Package { name: package.to_owned(), ..Package::default() });
            facts.put_entity(&User { name: "twin".into(), ..User::default() });
            let (name, fault) = ("packages".to_owned(), fault.map(str::to_owned));
            facts.put_entity(&Collector { name, fault, ..Collector::default() });
            facts
        };
        let has = |base: &[String], subject: &str| base.iter().any(|text| text == subject);
        let spec = Spec::default();
        let first = base(None, &spec, &facts("a", Some("locked")));
        assert!(has(&first, "user:twin") && !has(&first, "package:a"), "{first:?}");
        let second = base(Some(&first), &spec, &facts("a", None));
        assert!(has(&second, "user:twin") && has(&second, "package:a"), "{second:?}");
        // What came later is not its own; nor is anything added to what an older server wrote.
        assert_eq!(base(Some(&second), &spec, &facts("b", None)), second);
        let old = ["user:twin".to_owned()];
        assert_eq!(base(Some(&old), &spec, &facts("a", None)), old);
        assert_eq!(base(Some(&[]), &spec, &facts("a", None)), Vec::<String>::new());
        assert!(
            first.iter().all(|text| !text.starts_with(SEEN) || text.parse::<Subject>().is_err())
        );
    }

    #[test]
    fn significant_changes_are_saved_before_and_not_too_often() {
        let now = Time::from_seconds(1000);
        assert!(is_worth_saving(None, true, now));
        assert!(!is_worth_saving(None, false, now));
        assert!(!is_worth_saving(Some(Time::from_seconds(941)), true, now));
        assert!(is_worth_saving(Some(Time::from_seconds(940)), true, now));
    }

    #[test]
    fn only_a_host_that_is_seen_whole_is_followed_unasked() {
        let mut facts = Facts::default();
        facts.put_entity(&Unit { id: "a.service".into(), ..Unit::default() });
        facts.put_entity(&Platform { id: "host".into(), ..Platform::default() });
        assert!(unsafe_because(&facts).is_some_and(|why| why.contains("no agent")));
        facts.put_entity(&Collector { name: "units".into(), ..Collector::default() });
        assert!(unsafe_because(&facts).is_some_and(|why| why.contains("has not seen")));
        facts.put_entity(&Package { name: "a".into(), ..Package::default() });
        facts.put_entity(&File { path: "/etc/a".into(), ..File::default() });
        facts.put_entity(&User { name: "root".into(), ..User::default() });
        assert_eq!(unsafe_because(&facts), None);
    }
}
