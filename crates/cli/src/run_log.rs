//! Follows the log of one run, over any number of connections.
//!
//! # Invariants
//! - Records come in order, each once, none left out: a connection is asked for what comes
//!   after the last one seen, and what it brings again is dropped.
//! - It is over when the end record came, and not when a connection ends.

use crate::failure::Failure;
use crate::follow::SILENCE;
use crate::patience::Patience;
use crate::remote::{Query, Remote};
use crate::sse::Parser;
use api::client::Body;
use api::run::{RunEvent, RunId, RunRecord};
use http_body_util::BodyExt;
use std::collections::VecDeque;

pub(crate) struct RunLog {
    remote: Remote,
    id: RunId,
    /// The record that comes next.
    next: u64,
    /// Wait for what is not there yet.
    follow: bool,
    connection: Option<(Body, Parser)>,
    queue: VecDeque<RunRecord>,
    over: bool,
    patience: Patience,
}

impl RunLog {
    /// From a record on. A server that refuses is told at once, and so is one that is not there.
    pub(crate) async fn new(
        remote: Remote,
        id: RunId,
        from: u64,
        follow: bool,
    ) -> Result<Self, Failure> {
        let queue = VecDeque::new();
        let mut log = Self {
            remote,
            id,
            next: from,
            follow,
            connection: None,
            queue,
            over: false,
            patience: Patience::new(),
        };
        log.connect().await?;
        Ok(log)
    }

    /// The next record; none after the end, or after what there is so far.
    pub(crate) async fn next(&mut self) -> Result<Option<RunRecord>, Failure> {
        loop {
            while let Some(record) = self.queue.pop_front() {
                if record.offset >= self.next {
                    self.next = record.offset + 1;
                    self.over = matches!(record.event, RunEvent::End { .. });
                    return Ok(Some(record));
                }
            }
            if self.over {
                return Ok(None);
            }
            if self.read().await? {
                continue;
            }
            self.connection = None;
            if !self.follow {
                return Ok(None);
            }
            self.reconnect().await?;
        }
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let query = Query::of(&["runs", &self.id.to_string(), "log"])
            .with("from", self.next)
            .with("follow", self.follow);
        match self.remote.events(&query).await? {
            Some(body) => self.connection = Some((body, Parser::default())),
            // The end came before the record that was asked for.
            None => self.over = true,
        }
        Ok(())
    }

    async fn reconnect(&mut self) -> Result<(), Failure> {
        loop {
            self.patience.pause().await;
            let tried = self.connect().await;
            if let Some(done) = self.patience.judge(self.remote.url(), tried) {
                return done;
            }
        }
    }

    /// Queues what comes in; `false` when the connection is of no more use.
    async fn read(&mut self) -> Result<bool, Failure> {
        let Some((body, parser)) = &mut self.connection else { return Ok(false) };
        let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await else {
            return Ok(false);
        };
        let Ok(bytes) = frame.into_data() else { return Ok(true) };
        let events = parser.feed(&bytes).map_err(|error| Failure::Failed(error.to_string()))?;
        for event in events {
            match event.name.as_str() {
                "record" => {
                    let record = serde_json::from_str(&event.data).map_err(|error| {
                        Failure::Failed(format!(
                            "a record is not understood ({error}); compare versions with: twin doctor"
                        ))
                    })?;
                    self.patience.restore();
                    self.queue.push_back(record);
                }
                "fault" => return Err(Failure::Failed(event.data)),
                _ => {}
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::{FakeServer, Reply};
    use api::run::{RunState, RunStream};
    use model::Time;
    use std::time::Duration;

    const ID: &str = "01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b";

    fn event(offset: u64, event: RunEvent) -> String {
        let record = RunRecord { offset, at: Time(0), event };
        let json = serde_json::to_string(&record).unwrap();
        format!("id: {offset}\nevent: record\ndata: {json}\n\n")
    }

    fn line(offset: u64) -> String {
        event(offset, RunEvent::Line { stream: RunStream::Stdout, text: format!("line {offset}") })
    }

    fn end(offset: u64) -> String {
        let (state, message, started_at) = (RunState::Succeeded, None, None);
        event(offset, RunEvent::End { state, exit_code: 0, message, started_at })
    }

    fn offsets(server: &FakeServer, from: u64, follow: bool) -> Result<Vec<u64>, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reading = async {
            let remote = Remote::new(&server.url(), None).unwrap();
            let mut log = RunLog::new(remote, ID.parse().unwrap(), from, follow).await?;
            let mut offsets = Vec::new();
            while let Some(record) = log.next().await? {
                offsets.push(record.offset);
            }
            Ok(offsets)
        };
        let deadline = Duration::from_secs(30);
        runtime.block_on(async { tokio::time::timeout(deadline, reading).await.expect("in time") })
    }

    /// The first connection is cut within a record, the second is refused as overloaded, the
    /// third brings some again.
    #[test]
    fn nothing_is_lost_or_doubled_over_reconnects() {
        let log = |from: u64| format!("/api/v1/runs/{ID}/log?from={from}&follow=true");
        let server = FakeServer::start(move |request, nth| match (request, nth) {
            (path, 0) if path == log(0) => {
                let cut = line(2);
                Reply::events(line(0) + &line(1) + &cut[..cut.len() / 2])
            }
            (path, 0) if path == log(2) => Reply::status(503),
            (path, 1) if path == log(2) => Reply::events(line(1) + &line(2) + ":\n\n" + &line(3)),
            (path, _) if path == log(4) => Reply::events(line(4) + &end(5)).held(),
            other => panic!("{other:?}"),
        });
        assert_eq!(offsets(&server, 0, true).unwrap(), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_there_is_so_far_is_read_once() {
        let server = FakeServer::start(|request, nth| match (request, nth) {
            (path, 0) if path.ends_with("/log?from=3&follow=false") => Reply::events(line(3)),
            other => panic!("{other:?}"),
        });
        assert_eq!(offsets(&server, 3, false).unwrap(), [3]);
    }

    #[test]
    fn what_can_not_be_read_is_told() {
        let server = FakeServer::start(|_, _| {
            Reply::events(line(0) + "event: fault\ndata: the log is damaged\n\n")
        });
        assert_eq!(offsets(&server, 0, true).unwrap_err().to_string(), "the log is damaged");
        let server = FakeServer::start(|_, _| Reply::refused(404, "unknown_run", "no run", ""));
        assert_eq!(offsets(&server, 0, true).unwrap_err().code(), 4);
        let server = FakeServer::start(|_, _| Reply::status(204));
        assert_eq!(offsets(&server, 9, true).unwrap(), [0; 0]);
    }
}
