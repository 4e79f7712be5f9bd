//! Units: what they do, by systemd's manager; how they are enabled, by systemctl, which also knows
//! scripts of older kinds.

use super::Error;
use super::manager::{Manager, State};
use crate::program;
use model::plan::Action;
use model::spec::UnitName;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

/// For what is done at once.
const ANSWER: Duration = Duration::from_secs(30);
/// For a job: systemd gives up by itself after 90 s, unless told otherwise.
const JOB: Duration = Duration::from_secs(110);

/// For systemd to read its files again.
const RELOAD: Duration = Duration::from_secs(60);

pub(super) async fn change(
    root: &Path,
    action: &Action,
    tell: &(impl Fn(&str) + Sync),
) -> Result<bool, Error> {
    if !crate::is_live(root) {
        return Err(Error::Unclear("this machine is not running".to_owned()));
    }
    match action {
        Action::ReloadManager => reload(tell).await.map(|()| true),
        Action::Enable(unit) => enable("enable", unit, action, tell).await,
        Action::Disable(unit) => enable("disable", unit, action, tell).await,
        Action::Mask(unit) => enable("mask", unit, action, tell).await,
        Action::Unmask(unit) => enable("unmask", unit, action, tell).await,
        Action::Start(unit) => run("StartUnit", unit, action, tell).await,
        Action::Stop(unit) => run("StopUnit", unit, action, tell).await,
        Action::Restart(unit) => run("RestartUnit", unit, action, tell).await,
        Action::Reload(unit) => run("ReloadUnit", unit, action, tell).await,
        _ => Err(Error::Unclear("it is no change of a unit".to_owned())),
    }
}

/// Changes what a unit does.
async fn run(
    method: &'static str,
    unit: &UnitName,
    action: &Action,
    tell: &(impl Fn(&str) + Sync),
) -> Result<bool, Error> {
    let manager = Manager::connect().await?;
    let before = manager.state(unit).await?;
    if is_so(action, &before, None) {
        return Ok(false);
    }
    if matches!(action, Action::Start(_) | Action::Restart(_)) {
        // Why one did not start is known no more once it is forgotten. One that can't be held
        // starts all the same.
        manager.hold(unit).await.ok();
    }
    let ended = manager.job(method, unit, JOB).await;
    let after = manager.state(unit).await?;
    if ended.as_ref().is_ok_and(|ended| ended == "done") && is_so(action, &after, Some(&before)) {
        return Ok(true);
    }
    if ended.as_ref().is_ok_and(|ended| ended == "done") && manager.is_unmet(&after).await {
        let how = format!("systemd did not start it ({}, {})", after.active, after.sub);
        return Err(Error::Unmet { how });
    }
    journal(unit, tell).await;
    let mut how = vec![after.sub.clone()];
    how.extend(manager.result(&after).await);
    let ended = ended?;
    if ended != "done" {
        how.push(format!("its job: {ended}"));
    }
    Err(Error::Unchanged(format!("{} ({})", after.active, how.join(", "))))
}

/// Changes how a unit is enabled.
async fn enable(
    verb: &str,
    unit: &UnitName,
    action: &Action,
    tell: &(impl Fn(&str) + Sync),
) -> Result<bool, Error> {
    let manager = Manager::connect().await?;
    if is_enabled(action, manager.file_state(unit).await?.as_deref()) {
        return Ok(false);
    }
    let words = [verb, "--", unit.as_str()];
    if wants_reload(action) {
        follow(&[&["--no-reload"], &words[..]].concat(), ANSWER, tell).await?;
    } else {
        follow(&words, ANSWER, tell).await?;
    }
    let after = manager.file_state(unit).await?;
    if is_enabled(action, after.as_deref()) {
        return Ok(true);
    }
    Err(Error::Unchanged(after.unwrap_or_else(|| "there is no such file".to_owned())))
}

/// Whether systemd has to read its files again afterwards, though not at once: many such changes
/// need it only once, and it takes seconds where there are many units or the machine is emulated.
pub(super) fn wants_reload(action: &Action) -> bool {
    matches!(action, Action::Enable(_) | Action::Disable(_) | Action::Mask(_))
}

pub(super) async fn reload(tell: &(impl Fn(&str) + Sync)) -> Result<(), Error> {
    follow(&["daemon-reload"], RELOAD, tell).await
}

async fn follow(
    words: &[&str],
    within: Duration,
    tell: &(impl Fn(&str) + Sync),
) -> Result<(), Error> {
    let mut all = vec![OsStr::new("--no-ask-password"), OsStr::new("--quiet")];
    all.extend(words.iter().map(OsStr::new));
    Ok(program::follow("systemctl", &all, within, tell).await?)
}

/// The last lines of what it said, which say more than that it failed.
async fn journal(unit: &UnitName, tell: &(impl Fn(&str) + Sync)) {
    let unit = format!("--unit={unit}");
    let words = [unit.as_str(), "--lines=8", "--output=cat", "--no-pager", "--quiet", "--boot"];
    let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    if let Err(error) = program::follow("journalctl", &words, ANSWER, tell).await {
        tell(&error.to_string());
    }
}

/// Whether a unit does what the action is for; `before` is how it was before that was done.
fn is_so(action: &Action, state: &State, before: Option<&State>) -> bool {
    let is_active = ["active", "reloading", "refreshing"].contains(&state.active.as_str());
    match action {
        Action::Start(_) => is_active,
        Action::Stop(_) => ["inactive", "failed"].contains(&state.active.as_str()),
        Action::Restart(_) => {
            is_active && before.is_some_and(|before| before.invocation != state.invocation)
        }
        Action::Reload(_) => is_active && before.is_some(),
        _ => false,
    }
}

/// Whether a unit is enabled as the action is for.
fn is_enabled(action: &Action, state: Option<&str>) -> bool {
    let state = state.unwrap_or_default();
    match action {
        Action::Enable(_) => state == "enabled",
        Action::Disable(_) => !state.starts_with("enabled"),
        Action::Mask(_) => state == "masked",
        Action::Unmask(_) => !state.starts_with("masked"),
        _ => false,
    }
}
