//! Runs: what takes long, such as building an image or starting a machine, and its log.
//!
//! The log is a row of records, numbered from 0 without gaps. A finished run's last record is
//! its [`RunEvent::End`], which carries the exit code. Whoever has seen a record resumes from
//! the number after it.

use model::Time;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The identity of a run: a UUID of version 7, so that sorting by it sorts by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(u128);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a run; ids look like 01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b")]
pub struct RunIdError(String);

impl RunId {
    #[must_use]
    pub fn new(uuid: u128) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |shift: u32, digits: u32| (self.0 >> shift) & ((1 << (4 * digits)) - 1);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            part(96, 8),
            part(80, 4),
            part(64, 4),
            part(48, 4),
            part(0, 12)
        )
    }
}

/// Exactly what is displayed, so that one run has one name, also as a file.
impl FromStr for RunId {
    type Err = RunIdError;

    fn from_str(text: &str) -> Result<Self, RunIdError> {
        let wrong = || RunIdError(text.chars().take(80).collect());
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let id = u128::from_str_radix(&digits, 16).map(Self).map_err(|_digits| wrong())?;
        if id.to_string() == text { Ok(id) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for RunId {
    type Error = RunIdError;

    fn try_from(text: String) -> Result<Self, RunIdError> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.to_string()
    }
}

words!(
    /// What a run does.
    RunKind, "a kind":
    ImageBuild = "image_build",
    ImageImport = "image_import",
    VmCreate = "vm_create",
    VmStart = "vm_start",
    VmStop = "vm_stop",
    VmRestart = "vm_restart",
    VmDelete = "vm_delete",
    SnapshotCreate = "snapshot_create",
    SnapshotRevert = "snapshot_revert",
    SnapshotDelete = "snapshot_delete",
    Clone = "clone",
    Apply = "apply",
    Sync = "sync",
);

words!(
    /// Where a run is.
    RunState, "a state":
    /// Waits for a place among those that run at once.
    Queued = "queued",
    Running = "running",
    Succeeded = "succeeded",
    Failed = "failed",
    /// Somebody asked for its end.
    Cancelled = "cancelled",
    /// The server ended first.
    Interrupted = "interrupted",
);

impl RunState {
    /// `None` while it is not over.
    #[must_use]
    pub fn exit_code(self) -> Option<u8> {
        match self {
            Self::Queued | Self::Running => None,
            Self::Succeeded => Some(0),
            Self::Failed => Some(1),
            Self::Cancelled => Some(6),
            Self::Interrupted => Some(7),
        }
    }

    #[must_use]
    pub fn is_over(self) -> bool {
        self.exit_code().is_some()
    }
}

words!(
    /// Who says a line.
    RunStream, "a stream":
    Stdout = "stdout",
    Stderr = "stderr",
    /// The server itself, about the run.
    Server = "server",
);

/// Why there is a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum RunCause {
    /// Somebody on the server's machine, of whom no token is asked.
    Local,
    /// Whoever has this token.
    Token { id: String, name: String },
    /// The server itself, by its rules of what is kept.
    Schedule,
    /// The twin follows its host, which came to this version.
    Host { version: u64 },
}

/// One run, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Run {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: RunId,
    pub kind: RunKind,
    /// What it is done to: `image:debian`, `twin:web01`.
    pub subject: String,
    pub state: RunState,
    /// 0 succeeded, 1 failed, 6 cancelled, 7 interrupted; absent while it is not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    pub cause: RunCause,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub created_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub started_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub ended_at: Option<Time>,
    /// How many records its log has so far.
    pub records: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Runs {
    /// Newest first.
    pub runs: Vec<Run>,
    /// Give it as `before` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub next: Option<RunId>,
}

/// A run was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Begun {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub run: RunId,
}

/// One record of a run's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunRecord {
    pub offset: u64,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    #[serde(flatten)]
    pub event: RunEvent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum RunEvent {
    Line {
        stream: RunStream,
        text: String,
    },
    /// The run goes on to its next step.
    Step {
        text: String,
    },
    /// How many bytes of the step are done; of how many, when it is known.
    Progress {
        done: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    /// The last record.
    End {
        state: RunState,
        exit_code: u8,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        started_at: Option<Time>,
    },
}

/// A part of a run's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunLog {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub run: RunId,
    /// In order.
    pub records: Vec<RunRecord>,
    /// Give it as `from` for what comes next; absent once the end is among the records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    #[test]
    fn ids_have_one_form() {
        let text = "01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b";
        assert_eq!(text.parse::<RunId>().unwrap().to_string(), text);
        for bad in [
            "",
            "01a1fb8bad5071d5aa7b8f9fd442c36b",
            "01A1FB8B-AD50-71D5-AA7B-8F9FD442C36B",
            "../../etc/passwd",
            "01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b ",
            "+1a1fb8b-ad50-71d5-aa7b-8f9fd442c36b",
        ] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn records_as_they_are_written() {
        let check = |event: RunEvent, expected: &Expect| {
            let record = RunRecord { offset: 7, at: Time::from_seconds(0), event };
            let json = serde_json::to_string(&record).unwrap();
            expected.assert_eq(&json);
            assert_eq!(serde_json::from_str::<RunRecord>(&json).unwrap(), record);
        };
        check(
            RunEvent::Line { stream: RunStream::Stderr, text: "a\n\x1b".into() },
            &expect![[
                r#"{"offset":7,"at":"1970-01-01T00:00:00.000000Z","record":"line","stream":"stderr","text":"a\n\u001b"}"#
            ]],
        );
        check(
            RunEvent::Progress { done: 3, total: None },
            &expect![[
                r#"{"offset":7,"at":"1970-01-01T00:00:00.000000Z","record":"progress","done":3}"#
            ]],
        );
        check(
            RunEvent::End {
                state: RunState::Failed,
                exit_code: 1,
                message: Some("no".into()),
                started_at: None,
            },
            &expect![[
                r#"{"offset":7,"at":"1970-01-01T00:00:00.000000Z","record":"end","state":"failed","exit_code":1,"message":"no"}"#
            ]],
        );
    }

    #[test]
    fn words_are_the_same_everywhere() {
        for kind in RunKind::ALL {
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("{:?}", kind.as_str()));
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        assert!("run".parse::<RunState>().unwrap_err().contains("queued, running"));
    }
}
