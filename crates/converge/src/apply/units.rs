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

/// What is looked at.
const SHOWN: &str = "--property=ActiveState,SubState,UnitFileState,LoadState,Result,InvocationID";

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
            follow(&["daemon-reload"], ANSWER, tell).await?;
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
    let before = Seen::look(unit).await?;
    if before.is_so(action, None) {
        return Ok(false);
    }
    let is_job = matches!(verb, "start" | "stop" | "restart" | "reload");
    let done = follow(&[verb, "--", unit.as_str()], if is_job { JOB } else { ANSWER }, tell).await;
    let after = Seen::look(unit).await?;
    if done.is_ok() && after.is_so(action, Some(&before)) {
        return Ok(true);
    }
    if is_job {
        journal(unit, tell).await;
    }
    done?;
    Err(Error::Unchanged(after.told()))
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
struct Seen(BTreeMap<String, String>);

impl Seen {
    async fn look(unit: &UnitName) -> Result<Self, Error> {
        let words = ["show", SHOWN, "--", unit.as_str()].map(OsStr::new);
        let shown = program::run("systemctl", &words, ANSWER).await?;
        let shown = String::from_utf8_lossy(&shown);
        let pairs = shown.lines().filter_map(|line| line.split_once('='));
        Ok(Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether it is as the action leaves it; `before` is what was seen before it was done.
    fn is_so(&self, action: &Action, before: Option<&Self>) -> bool {
        let state = self.get("ActiveState");
        let is_active = ["active", "reloading", "refreshing"].contains(&state);
        match action {
            Action::Enable(_) => self.get("UnitFileState") == "enabled",
            Action::Disable(_) => !self.get("UnitFileState").starts_with("enabled"),
            Action::Mask(_) => self.get("UnitFileState") == "masked",
            Action::Unmask(_) => !self.get("UnitFileState").starts_with("masked"),
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
        let file = self.get("UnitFileState");
        format!("{state} ({sub}, {result}), {}", if file.is_empty() { "no file" } else { file })
    }
}
