//! Records that are handed to any number of readers, written out once.
//!
//! A chunk holds its records as the frames of a stream of server-sent events, one behind the
//! other. Readers share it: one that wants all takes the bytes as they are, one that wants a
//! part or the JSON alone takes slices of them.

use super::log;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// Where a record's frame begins, and its JSON within the frames.
#[derive(Debug, Clone, Copy)]
struct Span {
    frame: usize,
    json: usize,
    end: usize,
}

#[derive(Debug)]
pub(super) struct Chunk {
    first: u64,
    /// Bytes of the log at which its first record begins, and the one after its last.
    position: u64,
    end_position: u64,
    frames: Bytes,
    spans: Vec<Span>,
}

/// A chunk in the making.
pub(super) struct Chunks {
    first: u64,
    position: u64,
    frames: Vec<u8>,
    spans: Vec<Span>,
}

impl Chunks {
    pub(super) fn new(first: u64, position: u64) -> Self {
        Self { first, position, frames: Vec::new(), spans: Vec::new() }
    }

    /// The number of the record that would be pushed next.
    pub(super) fn next(&self) -> u64 {
        self.first + self.spans.len() as u64
    }

    pub(super) fn bytes(&self) -> usize {
        self.frames.len()
    }

    /// JSON in one line, so that it can't end the frame.
    pub(super) fn push(&mut self, json: &[u8]) {
        let frame = self.frames.len();
        let head = format!("id: {}\nevent: record\ndata: ", self.next());
        self.frames.extend_from_slice(head.as_bytes());
        let begin = self.frames.len();
        self.frames.extend_from_slice(json);
        let end = self.frames.len();
        self.frames.extend_from_slice(b"\n\n");
        self.spans.push(Span { frame, json: begin, end });
    }

    /// Nothing when nothing was pushed.
    pub(super) fn finish(self) -> Option<Chunk> {
        let Self { first, position, frames, spans } = self;
        let lines = spans.iter().map(|span| span.end - span.json + log::SEAL + 1);
        let end_position = position + lines.sum::<usize>() as u64;
        let whole = !spans.is_empty();
        whole.then(|| Chunk { first, position, end_position, frames: frames.into(), spans })
    }
}

impl Chunk {
    fn next(&self) -> u64 {
        self.first + self.spans.len() as u64
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }
}

/// The records of a chunk, without the first few.
#[derive(Debug, Clone)]
pub struct Records {
    chunk: Arc<Chunk>,
    skip: usize,
}

impl Records {
    pub(super) fn of(chunk: Chunk) -> Self {
        Self { chunk: Arc::new(chunk), skip: 0 }
    }

    /// As a stream of server-sent events carries them.
    #[must_use]
    pub fn frames(&self) -> Bytes {
        let begin = self.chunk.spans.get(self.skip).map_or(0, |span| span.frame);
        self.chunk.frames.slice(begin..)
    }

    /// Each as JSON.
    pub fn json(&self) -> impl Iterator<Item = Bytes> + '_ {
        let spans = self.chunk.spans.iter().skip(self.skip);
        spans.map(|span| self.chunk.frames.slice(span.json..span.end))
    }

    pub(super) fn next(&self) -> u64 {
        self.chunk.next()
    }

    pub(super) fn end_position(&self) -> u64 {
        self.chunk.end_position
    }
}

/// The newest chunks of a run that goes on.
#[derive(Debug, Default)]
pub(super) struct Tail {
    chunks: VecDeque<Arc<Chunk>>,
    bytes: usize,
}

/// Bytes of frames kept for one run.
const TAIL: usize = 1 << 20;

impl Tail {
    pub(super) fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.frames.len();
        self.chunks.push_back(Arc::new(chunk));
        while self.bytes > TAIL && self.chunks.len() > 1 {
            let gone = self.chunks.pop_front();
            self.bytes -= gone.map_or(0, |chunk| chunk.frames.len());
        }
    }

    /// The chunk that has this record; `None` when it is no longer, or not yet, here.
    pub(super) fn from(&self, offset: u64) -> Option<Records> {
        let behind = self.chunks.partition_point(|chunk| chunk.next() <= offset);
        let chunk = self.chunks.get(behind)?;
        let skip = usize::try_from(offset.checked_sub(chunk.first)?).ok()?;
        Some(Records { chunk: Arc::clone(chunk), skip })
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
