//! Units, by systemctl.

use super::Error;
use crate::program;
use model::plan::Action;
use model::spec::UnitName;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

/// For an answer, and for what is done at once.
const ANSWER: Duration = Duration::from_secs(30);
/// For a job: systemd gives up by itself after 90 s, unless told otherwise.
const JOB: Duration = Duration::from_secs(110);

/// For systemd to read its files again.
const RELOAD: Duration = Duration::from_secs(60);

/// What is looked at. How a unit is enabled is not among it: until systemd read its files again it
/// shows what was.
const SHOWN: &str = "--property=ActiveState,SubState,Result,InvocationID";

pub(super) async fn change(
    root: &Path,
    action: &Action,
    tell: &(impl Fn(&str) + Sync),
) -> Result<bool, Error> {
    if !crate::is_live(root) {
        return Err(Error::Unclear("this machine is not running".to_owned()));
    }
    let (verb, unit) = match action {
        Action::ReloadManager => {
            reload(tell).await?;
            return Ok(true);
        }
        Action::Enable(unit) => ("enable", unit),
        Action::Disable(unit) => ("disable", unit),
        Action::Mask(unit) => ("mask", unit),
        Action::Unmask(unit) => ("unmask", unit),
        Action::Start(unit) => ("start", unit),
        Action::Stop(unit) => ("stop", unit),
        Action::Restart(unit) => ("restart", unit),
        Action::Reload(unit) => ("reload", unit),
        _ => return Err(Error::Unclear("it is no change of a unit".to_owned())),
    };
    let before = Seen::look(unit, action).await?;
    if before.is_so(action, None) {
        return Ok(false);
    }
    let is_job = matches!(verb, "start" | "stop" | "restart" | "reload");
    let done = if is_job {
        follow(&[verb, "--", unit.as_str()], JOB, tell).await
    } else if wants_reload(action) {
        follow(&["--no-reload", verb, "--", unit.as_str()], ANSWER, tell).await
    } else {
        follow(&[verb, "--", unit.as_str()], ANSWER, tell).await
    };
    let after = Seen::look(unit, action).await?;
    if done.is_ok() && after.is_so(action, Some(&before)) {
        return Ok(true);
    }
    if is_job {
        journal(unit, tell).await;
    }
    done?;
    Err(Error::Unchanged(after.told()))
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

/// A unit, as systemctl shows it.
struct Seen {
    shown: BTreeMap<String, String>,
    /// Where that is what is changed.
    enabled: Option<String>,
}

impl Seen {
    async fn look(unit: &UnitName, action: &Action) -> Result<Self, Error> {
        if matches!(
            action,
            Action::Enable(_) | Action::Disable(_) | Action::Mask(_) | Action::Unmask(_)
        ) {
            let words = ["is-enabled", "--", unit.as_str()].map(OsStr::new);
            // It fails where the unit is not enabled, and says what it is.
            let said = program::answer("systemctl", &words, ANSWER).await?;
            let enabled = String::from_utf8_lossy(&said).trim().to_owned();
            return Ok(Self { shown: BTreeMap::new(), enabled: Some(enabled) });
        }
        let words = ["show", SHOWN, "--", unit.as_str()].map(OsStr::new);
        let shown = program::run("systemctl", &words, ANSWER).await?;
        let shown = String::from_utf8_lossy(&shown);
        let pairs = shown.lines().filter_map(|line| line.split_once('='));
        let shown = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { shown, enabled: None })
    }

    fn get(&self, name: &str) -> &str {
        self.shown.get(name).map_or("", String::as_str)
    }

    /// Whether it is as the action leaves it; `before` is what was seen before it was done.
    fn is_so(&self, action: &Action, before: Option<&Self>) -> bool {
        let state = self.get("ActiveState");
        let is_active = ["active", "reloading", "refreshing"].contains(&state);
        let enabled = self.enabled.as_deref().unwrap_or_default();
        match action {
            Action::Enable(_) => enabled == "enabled",
            Action::Disable(_) => !enabled.starts_with("enabled"),
            Action::Mask(_) => enabled == "masked",
            Action::Unmask(_) => !enabled.starts_with("masked"),
            Action::Start(_) => is_active,
            Action::Stop(_) => ["inactive", "failed", ""].contains(&state),
            Action::Restart(_) => {
                is_active
                    && before.is_some_and(|b| b.get("InvocationID") != self.get("InvocationID"))
            }
            Action::Reload(_) => is_active && before.is_some(),
            _ => false,
        }
    }

    fn told(&self) -> String {
        let [state, sub, result] = ["ActiveState", "SubState", "Result"].map(|name| self.get(name));
        match self.enabled.as_deref() {
            Some("") => "there is no such file".to_owned(),
            Some(enabled) => enabled.to_owned(),
            None => format!("{state} ({sub}, {result})"),
        }
    }
}
