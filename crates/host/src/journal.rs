//! Errors that units say in the journal: `journalctl` is followed, and counts are kept of the
//! last hour. What they say stays where it is; only how often and how bad is told.
//!
//! # Invariants
//! - Whatever a line holds, it is one entry or none; memory is bounded by units and minutes.
//! - Neither entries from the future nor a clock that goes back keep a count alive.

use model::Time;
use model::load::JournalErrors;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// Bytes of one line: all that is asked for takes less than a tenth.
const LINE_MAX: u64 = 16 * 1024;
const UNITS_MAX: usize = 10_000;
const UNIT_NAME_MAX: usize = 256;
const MINUTE_MICROS: i64 = 60_000_000;
const MINUTES: i64 = 60;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not start journalctl")]
    Start(#[source] io::Error),
    #[error("could not read what journalctl says")]
    Read(#[source] io::Error),
    #[error("journalctl ended")]
    Ended,
}

/// An entry of the journal, of a unit of the system's manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub unit: String,
    /// 0 for an emergency, 3 for an error.
    pub priority: u8,
    pub at: Time,
}

/// Reads errors of the last hour, and then those that come. Dropping it ends its program.
#[derive(Debug)]
pub struct Follower {
    lines: BufReader<ChildStdout>,
    line: Vec<u8>,
    _program: Child,
}

impl Follower {
    /// Of this machine.
    ///
    /// # Errors
    /// When there is no `journalctl`.
    pub fn start() -> Result<Self, Error> {
        let mut program = Command::new("journalctl")
            .args(["--follow", "--no-tail", "--quiet", "--since=-1h", "--priority=err"])
            .args(["--output=json", "--output-fields=PRIORITY,_SYSTEMD_UNIT"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::Start)?;
        let stdout = program.stdout.take().ok_or(Error::Ended)?;
        Ok(Self { lines: BufReader::new(stdout), line: Vec::new(), _program: program })
    }

    /// The next entry. Safe to be given up while it waits.
    ///
    /// # Errors
    /// When there will be none.
    pub async fn next(&mut self) -> Result<Entry, Error> {
        loop {
            let room = LINE_MAX.saturating_sub(u64::try_from(self.line.len()).unwrap_or(u64::MAX));
            let mut limited = (&mut self.lines).take(room);
            let read = limited.read_until(b'\n', &mut self.line).await.map_err(Error::Read)?;
            let whole = self.line.last() == Some(&b'\n');
            if whole || room == 0 {
                let line = std::mem::take(&mut self.line);
                if let Some(entry) = entry(&line) {
                    return Ok(entry);
                }
            } else if read == 0 {
                return Err(Error::Ended);
            }
        }
    }
}

/// The fields that are asked for. One that is there several times comes as a list, and says
/// nothing certain.
#[derive(Deserialize)]
struct Fields {
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    at: serde_json::Value,
    #[serde(rename = "PRIORITY")]
    priority: serde_json::Value,
    #[serde(rename = "_SYSTEMD_UNIT")]
    unit: serde_json::Value,
}

/// An entry as `journalctl --output=json` writes it.
#[must_use]
pub fn entry(line: &[u8]) -> Option<Entry> {
    let fields: Fields = serde_json::from_slice(line).ok()?;
    let unit = fields.unit.as_str().filter(|unit| unit.len() <= UNIT_NAME_MAX)?;
    let micros: i64 = fields.at.as_str()?.parse().ok()?;
    let priority: u8 = fields.priority.as_str()?.parse().ok()?;
    (priority <= 3 && micros >= 0).then(|| Entry {
        unit: unit.to_owned(),
        priority,
        at: Time(micros),
    })
}

/// How many entries there were, by unit and minute.
#[derive(Debug, Default)]
pub struct Errors {
    units: BTreeMap<String, Vec<Minute>>,
}

#[derive(Debug, Clone, Copy)]
struct Minute {
    /// Since the beginning of time.
    number: i64,
    counts: JournalErrors,
}

impl Errors {
    /// Counts an entry.
    pub fn count(&mut self, entry: &Entry, now: Time) {
        if entry.at > now.plus(std::time::Duration::from_secs(1)) {
            return;
        }
        if !self.units.contains_key(&entry.unit) {
            self.units.retain(|_, minutes| minutes.iter().any(|minute| minute.is_recent(now)));
            if self.units.len() >= UNITS_MAX {
                return;
            }
        }
        let minutes = self.units.entry(entry.unit.clone()).or_default();
        minutes.retain(|minute| minute.is_recent(now));
        let number = entry.at.0.div_euclid(MINUTE_MICROS);
        let at = minutes.iter().position(|minute| minute.number == number).unwrap_or_else(|| {
            minutes.push(Minute { number, counts: JournalErrors::default() });
            minutes.len() - 1
        });
        let Some(Minute { counts, .. }) = minutes.get_mut(at) else { return };
        let count = if entry.priority < 3 { &mut counts.critical } else { &mut counts.errors };
        *count = count.saturating_add(1);
        counts.last = counts.last.max(Some(entry.at));
    }

    /// What a unit said within the last hour. Nothing is known of one of a user's manager: what it
    /// says is an entry of that manager's own unit.
    #[must_use]
    pub fn of(&self, unit: &str, now: Time) -> Option<JournalErrors> {
        if unit.contains('/') {
            return None;
        }
        let minutes = self.units.get(unit).into_iter().flatten();
        let recent = minutes.filter(|minute| minute.is_recent(now));
        Some(recent.fold(JournalErrors::default(), |sum, Minute { counts, .. }| JournalErrors {
            critical: sum.critical.saturating_add(counts.critical),
            errors: sum.errors.saturating_add(counts.errors),
            last: sum.last.max(counts.last),
        }))
    }
}

impl Minute {
    fn is_recent(&self, now: Time) -> bool {
        let ago = now.0.div_euclid(MINUTE_MICROS).saturating_sub(self.number);
        (-1..MINUTES).contains(&ago)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(unit: &str, priority: &str, at: i64) -> String {
        format!(
            r#"{{"__CURSOR":"s=1","__REALTIME_TIMESTAMP":"{at}","_BOOT_ID":"b","PRIORITY":"{priority}","_SYSTEMD_UNIT":"{unit}"}}"#
        )
    }

    fn seconds(seconds: i64) -> Time {
        Time::from_seconds(seconds)
    }

    #[test]
    fn lines_of_the_journal() {
        let said = entry(line("microvm@web.service", "2", 5).as_bytes()).unwrap();
        let expected = Entry { unit: "microvm@web.service".into(), priority: 2, at: Time(5) };
        assert_eq!(said, expected);
        let long = "u".repeat(UNIT_NAME_MAX + 1);
        for bad in [
            line("a", "4", 5),
            line("a", "x", 5),
            line("a", "3", -5),
            line(&long, "3", 5),
            r#"{"__REALTIME_TIMESTAMP":"5","PRIORITY":["3","4"],"_SYSTEMD_UNIT":"a"}"#.into(),
            r#"{"__REALTIME_TIMESTAMP":"5","PRIORITY":"3"}"#.into(),
            "[".into(),
        ] {
            assert_eq!(entry(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_last_hour_counts() {
        let mut errors = Errors::default();
        let say = |errors: &mut Errors, priority, at, now| {
            errors.count(&Entry { unit: "a".into(), priority, at: seconds(at) }, seconds(now));
        };
        for (priority, at) in [(3, 1000), (3, 1001), (2, 1500), (0, 1500), (3, 1600)] {
            say(&mut errors, priority, at, 1700);
        }
        let told = |critical, errors, last| Some(JournalErrors { critical, errors, last });
        assert_eq!(errors.of("a", seconds(1700)), told(2, 3, Some(seconds(1600))));
        assert_eq!(errors.of("b", seconds(1700)), told(0, 0, None));
        assert_eq!(errors.of("alice/microvm-a.service", seconds(1700)), None);
        assert_eq!(errors.of("a", seconds(4640)), told(2, 1, Some(seconds(1600))));
        assert_eq!(errors.of("a", seconds(9000)), told(0, 0, None));
        // Of a clock that went back, and of one that is ahead.
        assert_eq!(errors.of("a", seconds(100)), told(0, 0, None));
        say(&mut errors, 3, 9000, 1700);
        assert_eq!(errors.of("a", seconds(9000)), told(0, 0, None));
    }

    #[test]
    fn memory_is_bounded() {
        let mut errors = Errors::default();
        for number in 0..=UNITS_MAX {
            let unit = number.to_string();
            errors.count(&Entry { unit, priority: 3, at: seconds(60) }, seconds(60));
        }
        assert_eq!(errors.units.len(), UNITS_MAX);
        let now = 100_000;
        errors.count(&Entry { unit: "a".into(), priority: 3, at: seconds(now) }, seconds(now));
        assert_eq!(errors.units.len(), 1);
        for at in now..now + 10_000 {
            errors.count(&Entry { unit: "a".into(), priority: 3, at: seconds(at) }, seconds(at));
        }
        assert!(errors.units["a"].len() <= 62);
    }

    proptest! {
        #[test]
        fn anything_is_an_entry_or_none(bytes: Vec<u8>, text in "[{}\\[\\]\",:_A-Z0-9a-z]{0,80}") {
            let _either = entry(&bytes);
            let _either = entry(text.as_bytes());
        }
    }
}
