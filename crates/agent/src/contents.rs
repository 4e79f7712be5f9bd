//! Contents of files on their way to the server, kept on disk until it has them.
//!
//! Bounded: at the limit a new content is not kept, and the change of its file is then shown
//! without its text until the file is read again. So it is with one that the server refuses for
//! good, until the agent is started anew. One that it refused is tried again for a while before,
//! alone, and keeps nothing waiting.

use crate::spool::private_directory;
use model::ContentId;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of contents in one request.
const MAX_REQUEST: u64 = 4 << 20;
/// Refused contents that are remembered; of more than these the oldest are tried again.
const MAX_REFUSED: usize = 4096;
/// Refusals of a content after which it is given up, and how long they go on at least: what is
/// between may be set up wrongly for a moment.
const GIVE_UP: (u32, Duration) = (5, Duration::from_secs(10 * 60));
/// When a refused content is tried again: at first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(150));

#[derive(Debug)]
pub(crate) struct Contents {
    dir: PathBuf,
    waiting: VecDeque<(ContentId, u64)>,
    total: u64,
    limit: u64,
    /// Whether each goes in a request of its own, to find the one that is refused.
    singly: bool,
    /// What waits and was refused lately.
    aside: HashMap<ContentId, Aside>,
    refused: VecDeque<ContentId>,
}

#[derive(Debug)]
struct Aside {
    refusals: u32,
    since: Instant,
    pause: Duration,
    again: Instant,
}

impl Contents {
    pub(crate) fn open(dir: &Path, limit: u64) -> io::Result<Self> {
        private_directory(dir)?;
        let mut contents = Self {
            dir: dir.to_owned(),
            waiting: VecDeque::new(),
            total: 0,
            limit,
            singly: false,
            aside: HashMap::new(),
            refused: VecDeque::new(),
        };
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            match entry.file_name().to_str().and_then(|name| name.parse::<ContentId>().ok()) {
                Some(id) => contents.note(id, on_disk(entry.metadata()?.len())),
                // Half written when the agent was killed.
                None => fs::remove_file(entry.path())?,
            }
        }
        Ok(contents)
    }

    /// Whether something is to be sent now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.unrefused() > 0 || self.again().is_some_and(|again| again <= now)
    }

    /// How many wait that nobody refused.
    pub(crate) fn unrefused(&self) -> usize {
        self.waiting.len().saturating_sub(self.aside.len())
    }

    /// When the next of those that were refused is tried again.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.aside.values().map(|aside| aside.again).min()
    }

    /// Keeps a content until it is delivered, unless the server does not take it.
    pub(crate) fn add(&mut self, content: &[u8]) -> io::Result<()> {
        let id = ContentId::of(content);
        let size = on_disk(u64::try_from(content.len()).unwrap_or(u64::MAX));
        if self.refused.contains(&id) || self.waiting.iter().any(|(waiting, _)| *waiting == id) {
            return Ok(());
        }
        if self.total.saturating_add(size) > self.limit {
            return Err(io::Error::other("the limit for undelivered contents is reached"));
        }
        let half = self.dir.join(format!("{id}.half"));
        fs::write(&half, content)?;
        fs::rename(half, self.path(&id))?;
        self.note(id, size);
        Ok(())
    }

    /// The next contents to send, the oldest first; where there are no others, one that was
    /// refused, if it is time.
    pub(crate) fn batch(&mut self, now: Instant) -> Vec<(ContentId, Vec<u8>)> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let (aside, next): (Vec<_>, Vec<_>) =
            self.waiting.iter().copied().partition(|(id, _)| self.aside.contains_key(id));
        let is_due = |id: &ContentId| self.aside.get(id).is_some_and(|aside| aside.again <= now);
        let next = if next.is_empty() {
            aside.into_iter().find(|(id, _)| is_due(id)).into_iter().collect()
        } else {
            next
        };
        for (id, size) in next {
            bytes += size;
            if !batch.is_empty() && (self.singly || bytes > MAX_REQUEST) {
                break;
            }
            match fs::read(self.path(&id)) {
                Ok(content) if ContentId::of(&content) == id => batch.push((id, content)),
                // Damaged or gone: it can't be delivered any more.
                _ => self.delivered(&[id]),
            }
        }
        batch
    }

    /// From now on each goes in a request of its own, until none waits but those refused.
    pub(crate) fn send_singly(&mut self) {
        self.singly = true;
    }

    /// The server did not take it, and would not take the same again. Whether it is given up:
    /// then it is not kept, now and later.
    pub(crate) fn refuse(&mut self, id: ContentId, now: Instant) -> bool {
        if !self.waiting.iter().any(|(waiting, _)| *waiting == id) {
            return false;
        }
        let new = || Aside { refusals: 0, since: now, pause: AGAIN.0, again: now };
        let aside = self.aside.entry(id).or_insert_with(new);
        aside.refusals = aside.refusals.saturating_add(1);
        let is_over = aside.refusals >= GIVE_UP.0 && now - aside.since >= GIVE_UP.1;
        aside.again = now + aside.pause;
        aside.pause = (aside.pause * 2).min(AGAIN.1);
        if is_over {
            self.remove(&[id]);
            if self.refused.len() >= MAX_REFUSED {
                self.refused.pop_front();
            }
            self.refused.push_back(id);
        }
        self.singly &= self.unrefused() > 0;
        is_over
    }

    /// What came of these last was no refusal.
    pub(crate) fn not_refused(&mut self, ids: &[ContentId]) {
        self.aside.retain(|id, _| !ids.contains(id));
    }

    pub(crate) fn delivered(&mut self, ids: &[ContentId]) {
        self.remove(ids);
        self.singly &= self.unrefused() > 0;
    }

    fn remove(&mut self, ids: &[ContentId]) {
        for id in ids {
            self.aside.remove(id);
            let Some(position) = self.waiting.iter().position(|(waiting, _)| waiting == id) else {
                continue;
            };
            if let Some((_, size)) = self.waiting.remove(position) {
                self.total -= size;
            }
            if let Err(error) = fs::remove_file(self.path(id)) {
                tracing::debug!(%error, %id, "could not remove a delivered content");
            }
        }
    }

    fn note(&mut self, id: ContentId, size: u64) {
        self.total += size;
        self.waiting.push_back((id, size));
    }

    fn path(&self, id: &ContentId) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

/// What a file of so many bytes takes: file systems give whole blocks, and a name costs, too.
fn on_disk(bytes: u64) -> u64 {
    const BLOCK: u64 = 4096;
    bytes.max(1).next_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_wait_across_restarts_within_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut contents = Contents::open(dir.path(), 10_000).unwrap();
        contents.add(b"hello").unwrap();
        contents.add(b"hello").unwrap();
        contents.add(b"world").unwrap();
        assert!(contents.add(b"!").is_err());
        fs::write(dir.path().join("x.half"), b"").unwrap();
        drop(contents);
        let mut contents = Contents::open(dir.path(), 10_000).unwrap();
        let batch = contents.batch(Instant::now());
        assert_eq!(batch.len(), 2);
        contents.delivered(&batch.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        assert!(!contents.is_due(Instant::now()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    fn ids(batch: Vec<(ContentId, Vec<u8>)>) -> Vec<ContentId> {
        batch.into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn what_is_refused_for_seconds_is_not_given_up_and_keeps_nothing_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let mut contents = Contents::open(dir.path(), 100_000).unwrap();
        let begin = Instant::now();
        let (bad, good) = (ContentId::of(b"bad"), ContentId::of(b"good"));
        contents.add(b"bad").unwrap();
        for _ in 0..50 {
            assert!(!contents.refuse(bad, begin + Duration::from_secs(3)));
        }
        // A new one goes before it, and without it.
        contents.add(b"good").unwrap();
        assert_eq!(ids(contents.batch(begin + GIVE_UP.1)), [good]);
        contents.delivered(&[good]);
        assert!(!contents.is_due(begin + Duration::from_secs(4)));
        assert_eq!(ids(contents.batch(contents.again().unwrap())), [bad]);
        // Another outcome begins the count anew.
        contents.not_refused(&[bad]);
        assert!(contents.is_due(begin) && contents.unrefused() == 1);
        assert!(!contents.refuse(bad, begin + GIVE_UP.1 * 2));
    }

    #[test]
    fn what_is_refused_for_ten_minutes_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut contents = Contents::open(dir.path(), 100_000).unwrap();
        let begin = Instant::now();
        contents.add(b"bad").unwrap();
        let bad = ContentId::of(b"bad");
        let (mut now, mut tries) = (begin, 1);
        while !contents.refuse(bad, now) {
            now = contents.again().unwrap();
            assert!(contents.is_due(now));
            tries += 1;
        }
        assert!(now - begin >= GIVE_UP.1 && now - begin < GIVE_UP.1 + AGAIN.1, "{tries}");
        assert!((GIVE_UP.0..12).contains(&tries), "{tries}");
        contents.add(b"bad").unwrap();
        assert!(!contents.is_due(now + GIVE_UP.1));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
