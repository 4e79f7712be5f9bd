//! Follows Docker's events and says which containers to read again.
//!
//! # Invariants
//! - What happens inside a container (`exec`, health checks that change nothing) is no event.
//! - An event that can't be read means that anything may have changed.
//! - What is not yet taken is kept once per container.

use super::{DEADLINE, Error, http};
use crate::unix_http::{Driver, drive};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::pin::pin;

/// Bytes one event may have.
const EVENT_MAX: usize = 256 * 1024;

/// Containers and the networks they are in.
const PATH: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContainerEvent {
    /// Read the container with this id again by [`super::Docker::container`].
    Changed(String),
    /// The container with this id is gone.
    Removed(String),
    /// Read all containers again by [`super::Docker::containers`].
    Resync,
}

/// A running watch. It ends with its connection: then [`Watch::next`] is an error.
pub struct Watch {
    body: Incoming,
    driver: Driver,
    /// The beginning of an event whose end is still to come.
    partial: Vec<u8>,
    pending: BTreeSet<ContainerEvent>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl Watch {
    pub(super) async fn start(socket: &Path) -> Result<Self, Error> {
        let (answer, driver) =
            tokio::time::timeout(DEADLINE, http::open(socket, PATH)).await.map_err(|_late| {
                Error::Deadline { request: "GET /events".to_owned(), deadline: DEADLINE }
            })??;
        let body = answer.into_body();
        Ok(Self { body, driver, partial: Vec::new(), pending: BTreeSet::new() })
    }

    /// Waits for the next event. Cancel-safe.
    ///
    /// # Errors
    /// When the stream has ended; the watch is of no use any more.
    pub async fn next(&mut self) -> Result<ContainerEvent, Error> {
        loop {
            if let Some(event) = self.pending.pop_first() {
                return Ok(event);
            }
            let frame = drive(&mut self.driver, pin!(self.body.frame())).await;
            let frame = frame.ok_or(Error::Closed)?.map_err(|source| {
                if source.is_incomplete_message() || source.is_closed() {
                    Error::Closed
                } else {
                    Error::Request { request: "GET /events".to_owned(), source }
                }
            })?;
            take(&frame.into_data().unwrap_or_default(), &mut self.partial, &mut self.pending);
        }
    }
}

/// Takes the events that are complete, one JSON object per line.
fn take(data: &[u8], partial: &mut Vec<u8>, pending: &mut BTreeSet<ContainerEvent>) {
    for piece in data.split_inclusive(|&b| b == b'\n') {
        partial.extend_from_slice(piece);
        if partial.len() > EVENT_MAX {
            // What is left of it will not be JSON either, and mean the same.
            partial.clear();
            note(ContainerEvent::Resync, pending);
        } else if piece.ends_with(b"\n") {
            if let Some(event) = event(partial.trim_ascii()) {
                note(event, pending);
            }
            partial.clear();
        }
    }
}

fn note(event: ContainerEvent, pending: &mut BTreeSet<ContainerEvent>) {
    match &event {
        ContainerEvent::Removed(id) => {
            pending.remove(&ContainerEvent::Changed(id.clone()));
        }
        ContainerEvent::Resync => pending.clear(),
        ContainerEvent::Changed(id) => {
            pending.remove(&ContainerEvent::Removed(id.clone()));
        }
    }
    pending.insert(event);
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Event {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: BTreeMap<String, String>,
}

fn event(line: &[u8]) -> Option<ContainerEvent> {
    if line.is_empty() {
        return None;
    }
    let Ok(event) = serde_json::from_slice::<Event>(line) else {
        return Some(ContainerEvent::Resync);
    };
    // `health_status: healthy` and `exec_create: sh -c …` have what they are about behind it.
    let action = event.action.split(':').next().unwrap_or_default();
    match (event.kind.as_str(), action) {
        ("container", "destroy" | "remove") => Some(ContainerEvent::Removed(event.actor.id)),
        (
            "container",
            "create" | "start" | "restart" | "stop" | "die" | "died" | "kill" | "oom" | "pause"
            | "unpause" | "rename" | "update" | "health_status" | "init" | "cleanup",
        ) => Some(ContainerEvent::Changed(event.actor.id)),
        ("network", "connect" | "disconnect") => {
            event.actor.attributes.get("container").cloned().map(ContainerEvent::Changed)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(stream: &[u8], expected: &[ContainerEvent]) {
        for size in [1, 7, 4096] {
            let (mut partial, mut pending) = (Vec::new(), BTreeSet::new());
            stream.chunks(size).for_each(|chunk| take(chunk, &mut partial, &mut pending));
            assert_eq!(pending.into_iter().collect::<Vec<_>>(), expected, "chunks of {size}");
        }
    }

    #[test]
    fn events() {
        let changed = |id: &str| ContainerEvent::Changed(id.to_owned());
        let line = |kind: &str, action: &str, id: &str| {
            let mut line = format!(
                r#"{{"Type":"{kind}","Action":"{action}","Actor":{{"ID":"{id}","Attributes":{{"container":"c9"}}}}}}"#
            );
            line.push('\n');
            line
        };
        check(line("container", "start", "c1").as_bytes(), &[changed("c1")]);
        check(line("container", "exec_create: sh -c true", "c1").as_bytes(), &[]);
        check(line("container", "top", "c1").as_bytes(), &[]);
        check(line("container", "health_status: healthy", "c1").as_bytes(), &[changed("c1")]);
        check(line("network", "connect", "n1").as_bytes(), &[changed("c9")]);
        let life: String =
            ["create", "start", "die", "destroy"].map(|a| line("container", a, "c1")).concat();
        check(life.as_bytes(), &[ContainerEvent::Removed("c1".into())]);
        check(b"not json\n", &[ContainerEvent::Resync]);
        check(b"\n  \r\n", &[]);
        check(b"{\"Type\":\"container\"", &[]);
        check(&vec![b'x'; EVENT_MAX + 10], &[ContainerEvent::Resync]);
    }

    proptest! {
        #[test]
        fn anything_goes_in(chunks: Vec<Vec<u8>>) {
            let (mut partial, mut pending) = (Vec::new(), BTreeSet::new());
            for chunk in chunks {
                take(&chunk, &mut partial, &mut pending);
            }
        }
    }
}
