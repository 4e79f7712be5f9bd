//! Contents of files on their way to the server, kept on disk until it has them.
//!
//! Bounded: at the limit a new content is not kept, and the change of its file is then shown
//! without its text until the file is read again. So it is with one that the server refuses for
//! good, until the agent is started anew.

use crate::spool::private_directory;
use model::ContentId;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of contents in one request.
const MAX_REQUEST: u64 = 4 << 20;
/// Refused contents that are remembered; of more than these the oldest are tried again.
const MAX_REFUSED: usize = 4096;

#[derive(Debug)]
pub(crate) struct Contents {
    dir: PathBuf,
    waiting: VecDeque<(ContentId, u64)>,
    total: u64,
    limit: u64,
    /// Whether each goes in a request of its own, to find the one that is refused.
    singly: bool,
    refused: VecDeque<ContentId>,
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

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
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

    /// The next contents to send, the oldest first.
    pub(crate) fn batch(&mut self) -> Vec<(ContentId, Vec<u8>)> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let next: Vec<(ContentId, u64)> = self.waiting.iter().copied().collect();
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

    /// From now on each goes in a request of its own, until none waits.
    pub(crate) fn send_singly(&mut self) {
        self.singly = true;
    }

    /// The server does not take it: it is not kept, now and later.
    pub(crate) fn give_up(&mut self, id: ContentId) {
        self.delivered(&[id]);
        if self.refused.len() >= MAX_REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(id);
    }

    pub(crate) fn delivered(&mut self, ids: &[ContentId]) {
        self.remove(ids);
        self.singly &= !self.waiting.is_empty();
    }

    fn remove(&mut self, ids: &[ContentId]) {
        for id in ids {
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
        let batch = contents.batch();
        assert_eq!(batch.len(), 2);
        contents.delivered(&batch.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        assert!(contents.is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
