//! One reader of a run's log, at its place.
//!
//! ```text
//!   from the asked record ──file──► near the end ──tail in memory──► … ──► the end
//!                             ▲                           │
//!                             └───── fell behind ◄────────┘
//! ```
//!
//! Complete and in order, however slow: what is no longer in memory is read from the file.

use super::chunk::Records;
use super::log;
use super::one::{Head, One};
use super::{Error, Followers};
use api::run::RunRecord;
use std::sync::Arc;
use tokio::sync::watch;

/// Ends with the run's end, or with what the log has so far.
#[derive(Debug)]
pub struct Follow {
    one: Arc<One>,
    head: watch::Receiver<Head>,
    next: u64,
    /// Where the next record begins in the file, once that is known.
    position: Option<u64>,
    waits: bool,
    _place: Followers,
}

impl Follow {
    pub(super) fn new(one: Arc<One>, from: u64, waits: bool, place: Followers) -> Self {
        let head = one.head.subscribe();
        Self { one, head, next: from, position: None, waits, _place: place }
    }

    /// The number of the record that comes next.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// Whether the end was given out, or was before where this began.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let head = *self.head.borrow();
        head.over && self.next >= head.next
    }

    /// The next records, read.
    ///
    /// # Errors
    /// When the log can't be read.
    pub async fn read_next(&mut self) -> Result<Option<Vec<RunRecord>>, Error> {
        let Some(records) = self.next().await? else { return Ok(None) };
        let id = self.one.id;
        let read = records.json().map(|json| serde_json::from_slice(&json));
        let read = read.collect::<Result<_, _>>().map_err(|_form| Error::Damaged { id })?;
        Ok(Some(read))
    }

    /// The next records, as soon as there are some. May be dropped while it waits.
    ///
    /// # Errors
    /// When the log can't be read.
    pub async fn next(&mut self) -> Result<Option<Records>, Error> {
        loop {
            let head = *self.head.borrow_and_update();
            if self.next < head.next {
                let found = self.one.tail().from(self.next);
                let records = match found {
                    Some(records) => records,
                    None => self.read(head.next).await?,
                };
                self.next = records.next();
                self.position = Some(records.end_position());
                return Ok(Some(records));
            }
            if head.over || !self.waits || self.head.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    async fn read(&self, until: u64) -> Result<Records, Error> {
        let (one, first, position) = (Arc::clone(&self.one), self.next, self.position);
        let read = tokio::task::spawn_blocking(move || {
            let position = match position {
                Some(position) => position,
                None => log::locate(&one.path, first, &one.marks())?,
            };
            log::page(&one.path, first, position, until)
        });
        let id = self.one.id;
        match read.await {
            Ok(Ok(Some(chunk))) => Ok(Records::of(chunk)),
            Ok(Ok(None)) => Err(Error::Damaged { id }),
            Ok(Err(source)) => Err(Error::Read { path: self.one.path.clone(), source }),
            Err(_ended) => Err(Error::Closed),
        }
    }
}
