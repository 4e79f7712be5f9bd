//! What goes into the history and what comes out.

use crate::error::Error;
use model::{
    ContentId, Digest, Facts, HostId, Kind, Patch, Significance, Subject, Time, Version,
    significance_of,
};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Items a host may have. A large machine has some thousands.
pub const MAX_ITEMS: usize = 50_000;

/// Deltas of one host, in the order in which they happened.
#[derive(Debug, Clone)]
pub struct Append {
    pub host: HostId,
    /// Names the sender's spool. Sequence numbers count within it, so that what is sent again
    /// is not stored again. Without it, nothing is known to be a repetition.
    pub stream: Option<String>,
    /// When the server received it.
    pub received: Time,
    pub deltas: Vec<Delta>,
}

#[derive(Debug, Clone)]
pub struct Delta {
    /// Counts up within the stream; numbers may be skipped.
    pub sequence: Option<u64>,
    /// When it happened, by the host's clock.
    pub at: Time,
    pub body: Body,
    /// The sender merged several changes because it could not keep them all.
    pub gap: Option<Gap>,
    /// Why it was recorded, if someone asked for it. Labelled versions survive thinning.
    pub label: Option<String>,
}

#[derive(Debug, Clone)]
pub enum Body {
    /// What leads from the facts with digest `base` to those with digest `next`. An empty
    /// patch stores the sequence number and makes no version.
    Patch { base: Digest, next: Digest, patch: Patch },
    /// The full state. It may follow anything: a sender that lost its place sends it. Equal
    /// to the head, it makes no version.
    State(Facts),
}

/// Changes since `since` that are merged into this one, `merged` in number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub since: Time,
    pub merged: u64,
}

/// What is durable now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    pub head: Version,
    pub digest: Digest,
    /// The versions this append made.
    pub recorded: Vec<Version>,
    /// Everything of the stream up to this number is stored.
    pub acknowledged: Option<u64>,
}

/// A version that has just become durable.
#[derive(Debug, Clone)]
pub struct Committed {
    pub host: HostId,
    pub digest: Digest,
    pub entry: Entry,
}

/// One version, as the log shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub version: Version,
    /// Never before that of the version before it, and at most a minute after `received`.
    pub at: Time,
    /// The host's own time, where it differs from `at`.
    pub host_time: Option<Time>,
    pub received: Time,
    /// Of the patch as it is here.
    pub significance: Significance,
    /// From the kept version before this one.
    pub patch: Patch,
    /// The patch holds only what was asked for.
    pub narrowed: bool,
    /// Of the whole patch, where it is narrowed: see [`Patch::first_looks`].
    pub first_looks: BTreeSet<Kind>,
    pub gap: Option<Gap>,
    pub label: Option<String>,
    /// How many versions before this one were thinned out and are part of its patch.
    pub merged: u64,
}

impl Entry {
    /// Leaves only the changes of some subjects; false when that is nothing.
    pub fn narrow(&mut self, is_wanted: impl Fn(&Subject) -> bool) -> bool {
        let all = self.patch.len();
        let first_looks = self.patch.first_looks();
        self.patch.0.retain(|subject, _| is_wanted(subject));
        if self.patch.len() < all {
            self.narrowed = true;
            self.first_looks.extend(first_looks);
            self.significance = significance_of(&self.patch);
        }
        !self.patch.is_empty()
    }
}

/// What the log is to show: entries with a change that fits all of these.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Any of these; empty for all.
    pub subjects: Vec<Subject>,
    /// Any of these; empty for all.
    pub kinds: Vec<Kind>,
    pub since: Option<Time>,
    pub until: Option<Time>,
    /// At least this.
    pub significance: Option<Significance>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    pub host: HostId,
    /// Time of the first version ever recorded.
    pub first_at: Time,
    pub head: Version,
    pub head_at: Time,
    /// When the host was last heard of, be it without news.
    pub seen_at: Time,
    pub digest: Digest,
    /// Number of items in the head.
    pub items: u64,
    /// The last eight streams, the most recently used last.
    pub streams: Vec<StreamInfo>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    pub id: String,
    /// Everything up to this number is stored.
    pub sequence: u64,
}

/// The newest state of a host.
#[derive(Debug, Clone)]
pub struct Head {
    pub version: Version,
    pub facts: Facts,
}

/// How long what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Days with every version.
    pub full_days: u32,
    /// Days with the versions that matter.
    pub keep_days: u32,
    /// Hours with every load sample.
    pub load_hours: u32,
    /// Days with one load sample per five minutes.
    pub load_days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { full_days: 30, keep_days: 400, load_hours: 24, load_days: 30 }
    }
}

/// Called on the writer's thread, in commit order, once the version is durable. It must be
/// quick and must not wait for a write to the same history.
pub type OnCommit = Box<dyn Fn(&Committed) + Send>;

/// Called on the writer's thread with what became of an append.
pub(crate) type Reply = Box<dyn FnOnce(Result<Appended, Error>) + Send>;

pub struct Options {
    pub retention: Retention,
    pub on_commit: Option<OnCommit>,
    /// Blocks of the store's files.
    pub block_cache_bytes: u64,
    /// Heads kept in memory. Those beyond it are read again when their host changes.
    pub head_cache_bytes: usize,
    /// Keyframes kept in memory for reading past states.
    pub keyframe_cache_bytes: usize,
    /// Appends that may wait, in number; beyond it [`Error::Busy`].
    pub queue: usize,
    /// Appends that may wait, in bytes, roughly.
    pub queue_bytes: usize,
    /// Appends are refused as [`Error::Full`] while the disk has less than this, so that what
    /// is in memory can still be written.
    pub reserve_bytes: u64,
    /// Load samples become durable at least this often.
    pub persist_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            on_commit: None,
            block_cache_bytes: 64 << 20,
            head_cache_bytes: 1 << 30,
            keyframe_cache_bytes: 64 << 20,
            queue: 8192,
            queue_bytes: 64 << 20,
            reserve_bytes: 128 << 20,
            persist_interval: Duration::from_secs(2),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("retention", &self.retention)
            .field("head_cache_bytes", &self.head_cache_bytes)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// What an expiry did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Days of history dropped.
    pub dropped: u64,
    /// Days of history thinned.
    pub thinned: u64,
    /// Versions merged into the ones that were kept.
    pub merged: u64,
    /// Contents that no kept version names any more. They go with a later expiry, at least an
    /// hour after the one that noticed.
    pub contents_unused: u64,
    pub contents_removed: u64,
    /// Subjects that no kept version mentions any more.
    pub subjects_removed: u64,
    /// Buckets of load samples dropped.
    pub load_dropped: u64,
    /// What was left as it is because something in it is damaged.
    pub left: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// For metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    pub hosts: u64,
    /// Ever recorded, of the hosts there are.
    pub versions: u64,
    /// Days of history there are.
    pub buckets: u64,
    pub disk_bytes: u64,
    pub queue: u64,
    pub queue_limit: u64,
    pub appends: u64,
    pub commits: u64,
    pub failures: u64,
    /// The last commit failed, as when the disk is full.
    pub failing: bool,
    /// Times the engine was opened anew after a failure.
    pub reopened: u64,
    /// Of recent commits, from the first append in the queue to durable.
    pub commit_p50: Duration,
    pub commit_p99: Duration,
    pub heads_cached: u64,
    pub heads_cached_bytes: u64,
    pub keyframes_cached_bytes: u64,
    pub path: PathBuf,
}

/// The name of some content, and the content.
pub type Content<'a> = (ContentId, &'a [u8]);
