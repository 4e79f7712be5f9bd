//! Tells which processes came and went, where the kernel's events
//! ([`exec_events`](crate::exec_events)) are not to be had.
//!
//! `/proc/loadavg` says which process number was given out last and how many threads there
//! are. Reading that costs some microseconds; only when it moved are the processes listed and
//! compared with those before.
//!
//! # Invariants
//! - Listing takes [`SHARE`] of one processor at most, however many processes come and go; and
//!   [`SHARE_OF_OTHERS`] where only the number of threads moves: it counts those of the whole
//!   machine, beyond what this `/proc` shows.
//! - A process that comes and goes between two looks is not told, nor one that runs another
//!   program under its old number: a full scan finds those that stay.

use super::ProcDirectory;
use crate::Root;
use crate::exec_events::Event;
use rustix::io::pread;
use rustix::thread::set_current_timer_slack;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often the counters are read on a machine at rest. To wake for it is most of its price.
pub const EVERY: Duration = Duration::from_millis(200);
/// How often while something is going on.
const EVERY_GOING_ON: Duration = Duration::from_millis(50);
/// What came or went is soon followed by more.
const GOING_ON: Duration = Duration::from_secs(2);
/// The kernel may be so much late, so as to wake us together with others: nanoseconds.
const SLACK: Option<NonZeroU64> = NonZeroU64::new(10_000_000);
/// One part in so many of a processor is for listing where a process number was given out.
const SHARE: u32 = 200;
/// The same where only the number of threads moved.
const SHARE_OF_OTHERS: u32 = 1000;
const LISTING_MAX: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub struct Census {
    files: ProcDirectory,
    watch: Arc<Watch>,
    last: Counters,
    /// Sorted.
    pids: Vec<u32>,
    listed: Vec<u32>,
    /// When and for how long the processes were listed last.
    last_listing: (Instant, Duration),
}

/// The counters, and word of their having moved. A thread of its own reads them, since that is
/// done all the time: by the runtime's timers the agent took more than twice as long.
#[derive(Debug)]
struct Watch {
    counters: File,
    moved: Notify,
}

/// How many threads there are, and the process number given out last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    threads: u32,
    newest: u32,
}

impl Census {
    /// Lists the processes there are: what comes and goes from now on is told.
    ///
    /// # Errors
    /// When `/proc` can't be listed, or has no counters of processes.
    pub fn open(root: &Root) -> io::Result<Self> {
        let counters = File::open(root.proc("loadavg"))?;
        let last = read(&counters)?;
        let mut files = ProcDirectory::open(&root.proc(""))?;
        let mut pids = Vec::new();
        files.list(&mut pids)?;
        pids.sort_unstable();
        let watch = Arc::new(Watch { counters, moved: Notify::new() });
        let watched = Arc::downgrade(&watch);
        thread::Builder::new()
            .name("census".to_owned())
            .spawn(move || keep_watch(&watched, last))?;
        let last_listing = (Instant::now(), Duration::ZERO);
        Ok(Self { files, watch, last, pids, listed: Vec::new(), last_listing })
    }

    /// Waits until processes came or went, and appends which. Nothing is lost when the wait is
    /// dropped.
    ///
    /// # Errors
    /// When `/proc` can't be read any more.
    pub async fn read(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        loop {
            let not_before = self.look(events)?;
            if events.len() > before {
                return Ok(());
            }
            let moved = self.watch.moved.notified();
            match not_before {
                // What moves meanwhile may be worth more.
                Some(time) => drop(tokio::time::timeout_at(time, moved).await),
                None => moved.await,
            }
        }
    }

    /// Lists the processes if the counters moved; or says when that may be done.
    fn look(&mut self, events: &mut Vec<Event>) -> io::Result<Option<Instant>> {
        let counters = read(&self.watch.counters)?;
        if counters == self.last {
            return Ok(None);
        }
        let share = if counters.newest == self.last.newest { SHARE_OF_OTHERS } else { SHARE };
        let (before, took) = self.last_listing;
        let (begin, not_before) = (Instant::now(), before + took * share);
        if begin < not_before {
            return Ok(Some(not_before));
        }
        self.files.list(&mut self.listed)?;
        self.last = counters;
        self.listed.sort_unstable();
        compare(&self.pids, &self.listed, events);
        std::mem::swap(&mut self.pids, &mut self.listed);
        // Longer than that it was not listing, but waiting for a processor.
        self.last_listing = (begin, begin.elapsed().min(LISTING_MAX));
        Ok(None)
    }
}

/// Tells when the counters move, until nobody waits for it any more.
fn keep_watch(watched: &Weak<Watch>, mut last: Counters) {
    let mut moved: Option<std::time::Instant> = None;
    // A kernel that refuses is only the dearer for it.
    let _refused = set_current_timer_slack(SLACK);
    loop {
        let goes_on = moved.is_some_and(|moved| moved.elapsed() < GOING_ON);
        thread::sleep(if goes_on { EVERY_GOING_ON } else { EVERY });
        let Some(watch) = watched.upgrade() else { return };
        match read(&watch.counters) {
            Ok(counters) if counters == last => {}
            Ok(counters) => {
                last = counters;
                moved = Some(std::time::Instant::now());
                watch.moved.notify_one();
            }
            Err(_) => {
                // Who waits reads them as well, and tells.
                watch.moved.notify_one();
                return;
            }
        }
    }
}

/// Appends what is in one sorted list and not in the other.
fn compare(before: &[u32], after: &[u32], events: &mut Vec<Event>) {
    let missing_in = |list: &[u32], pid: &u32| list.binary_search(pid).is_err();
    let gone = before.iter().filter(|pid| missing_in(after, pid));
    events.extend(gone.map(|pid| Event::Exit(*pid)));
    let came = after.iter().filter(|pid| missing_in(before, pid));
    events.extend(came.map(|pid| Event::Exec(*pid)));
}

fn read(counters: &File) -> io::Result<Counters> {
    let mut buffer = [0; 128];
    let length = pread(counters, &mut buffer, 0)?;
    let text = std::str::from_utf8(buffer.get(..length).unwrap_or_default()).unwrap_or_default();
    parse(text).ok_or_else(|| io::Error::other("/proc/loadavg has no counters of processes"))
}

/// `0.20 0.18 0.12 1/80 11206`: the last two words.
fn parse(text: &str) -> Option<Counters> {
    let mut words = text.split_ascii_whitespace().skip(3);
    let (_running, threads) = words.next()?.split_once('/')?;
    Some(Counters { threads: threads.parse().ok()?, newest: words.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    #[test]
    fn counters() {
        assert_eq!(
            parse("0.20 0.18 0.12 1/80 11206\n"),
            Some(Counters { threads: 80, newest: 11206 })
        );
        for text in
            ["", "0.20 0.18 0.12", "0.20 0.18 0.12 1/80", "0.20 0.18 0.12 80 11206", "a b c d/e f"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn this_machine() {
        let mut census = Census::open(&Root::live()).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut seen = Vec::new();
        let came = async {
            while !seen.contains(&Event::Exec(child.id())) {
                census.read(&mut seen).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), came).await.unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let went = async {
            while !seen.contains(&Event::Exit(child.id())) {
                census.read(&mut seen).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), went).await.unwrap();
    }

    proptest! {
        #[test]
        fn what_is_told_leads_from_one_list_to_the_other(
            before: std::collections::BTreeSet<u32>,
            after: std::collections::BTreeSet<u32>,
        ) {
            let list = |set: &std::collections::BTreeSet<u32>| set.iter().copied().collect::<Vec<_>>();
            let mut events = Vec::new();
            compare(&list(&before), &list(&after), &mut events);
            let mut now = before;
            for event in events {
                match event {
                    Event::Exec(pid) => prop_assert!(now.insert(pid)),
                    Event::Exit(pid) => prop_assert!(now.remove(&pid)),
                    Event::Lost => prop_assert!(false),
                }
            }
            prop_assert_eq!(now, after);
        }
    }
}
