//! Containers of a Docker engine (or Podman, which speaks the same), over its socket.
//!
//! [`Docker::containers`] reads all of them once; then [`Watch`] says which one to read again.
//! A client of our own over hyper, because the agent must stay small: it asks six questions.
//!
//! # Invariants
//! - Asks only: every request is a GET.
//! - Every request has a deadline, [`DEADLINE`] unless another is given, every answer a limit of bytes.
//! - A container that can't be read is told as that, and hides no other.
//! - Commands, environment and labels leave this module redacted.

pub mod archive;
mod container;
mod export;
mod http;
mod watch;

pub use export::{Export, Found};
pub use watch::{ContainerEvent, Watch};

use container::{Image, Inspected, Summary};
use futures_util::{StreamExt, stream};
use model::entity::Container;
use model::redact::Redactor;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where Docker listens.
pub const SOCKET: &str = "/var/run/docker.sock";

/// How long one request may take, unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Requests under way at once.
const IN_FLIGHT: usize = 8;

/// Containers that may keep silent before the engine counts as silent.
const SILENT_MAX: usize = IN_FLIGHT;

/// Images whose digests are remembered.
const IMAGES_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no Docker here. Normal, not a fault.
    #[error("no Docker at {path}")]
    Absent { path: PathBuf },
    /// Its socket is there, and nobody listens: it was stopped, or it died. Whether its
    /// containers run can't be told.
    #[error("Docker does not run: nobody listens at {path}")]
    Stopped { path: PathBuf },
    #[error("could not connect to Docker at {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("Docker did not answer {request}")]
    Request {
        request: String,
        #[source]
        source: hyper::Error,
    },
    #[error("Docker did not answer {request} within {} s", .deadline.as_secs())]
    Deadline { request: String, deadline: Duration },
    #[error("Docker answered {request} with status {status}")]
    Status { request: String, status: u16 },
    #[error("Docker's answer to {request} has more than {limit} bytes")]
    TooLarge { request: String, limit: usize },
    #[error("could not read what Docker answered to {request}")]
    Answer {
        request: String,
        #[source]
        source: serde_json::Error,
    },
    /// The stream of events ended: Docker was stopped or restarted.
    #[error("Docker closed the stream of events")]
    Closed,
}

impl Error {
    /// Whether there is nothing to see, as opposed to something that can't be seen.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }

    /// Whether its socket is there without it.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }

    /// Whether it speaks of what was asked about alone: the engine may well answer other questions.
    #[must_use]
    pub fn is_of_one(&self) -> bool {
        match self {
            Self::Status { .. }
            | Self::Answer { .. }
            | Self::TooLarge { .. }
            | Self::Deadline { .. }
            | Self::Request { .. } => true,
            Self::Absent { .. } | Self::Stopped { .. } | Self::Connect { .. } | Self::Closed => {
                false
            }
        }
    }

    fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }
}

/// The containers there are.
#[derive(Debug, Default)]
pub struct Listing {
    /// In order of name.
    pub containers: Vec<Container>,
    /// Those that can't be read, in order of name.
    pub unread: Vec<Unread>,
}

/// A container that can't be read.
#[derive(Debug)]
pub struct Unread {
    pub id: String,
    /// Its id where it has no name.
    pub name: String,
    pub error: Error,
}

/// A Docker engine. Holds no connection: each request makes its own.
#[derive(Debug)]
pub struct Docker {
    socket: PathBuf,
    redactor: Redactor,
    deadline: Duration,
    /// By the id of the image, which says exactly what the image is.
    images: Mutex<BTreeMap<String, Arc<Image>>>,
}

impl Docker {
    /// An engine that listens on a socket; whether it does shows with the first question.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, redactor: Redactor) -> Self {
        let (socket, deadline) = (socket.into(), DEADLINE);
        Self { socket, redactor, deadline, images: Mutex::default() }
    }

    /// The same with another deadline for each request.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All containers, running or not.
    ///
    /// # Errors
    /// [`Error::Absent`] where nobody listens. Any other means that what was known is old.
    pub async fn containers(&self) -> Result<Listing, Error> {
        let listed: Vec<Summary> = self.get("/containers/json?all=1").await?;
        let ask = |summary: Summary| async move {
            let answer = self.container(&summary.id).await;
            (summary, answer)
        };
        let mut answers = pin!(stream::iter(listed).map(ask).buffer_unordered(IN_FLIGHT));
        let (mut listing, mut silent) = (Listing::default(), 0);
        while let Some((summary, answer)) = answers.next().await {
            match answer {
                Ok(container) => listing.containers.extend(container),
                Err(error) if error.is_of_one() => {
                    silent += usize::from(matches!(error, Error::Deadline { .. }));
                    if silent > SILENT_MAX {
                        return Err(error);
                    }
                    listing.unread.push(Unread { name: summary.name(), id: summary.id, error });
                }
                Err(error) => return Err(error),
            }
        }
        listing.containers.sort_by(|a, b| a.name.cmp(&b.name));
        listing.unread.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    /// Asks whether it answers at all.
    ///
    /// # Errors
    /// When it does not, within the deadline.
    pub async fn answers(&self) -> Result<(), Error> {
        const PATH: &str = "/_ping";
        let answer = tokio::time::timeout(self.deadline, http::get(&self.socket, PATH)).await;
        let late = || self.late(format!("GET {PATH}"));
        answer.map_err(|_late| late())?.map(drop)
    }

    /// One container, by its id. `None` when there is none.
    ///
    /// # Errors
    /// When Docker does not answer.
    pub async fn container(&self, id: &str) -> Result<Option<Container>, Error> {
        if !is_id(id) {
            return Ok(None);
        }
        let inspected: Inspected = match self.get(&format!("/containers/{id}/json")).await {
            Err(error) if error.is_not_found() => return Ok(None),
            inspected => inspected?,
        };
        let image = self.inspected(&inspected.image).await?;
        Ok(Some(container::container(inspected, image.as_deref(), &self.redactor)))
    }

    /// Starts to watch. What happens from here on is reported, so watch first, then read.
    ///
    /// # Errors
    /// As for [`Docker::containers`].
    pub async fn watch(&self) -> Result<Watch, Error> {
        Watch::start(&self.socket).await
    }

    /// An image by its id.
    async fn inspected(&self, id: &str) -> Result<Option<Arc<Image>>, Error> {
        if id.is_empty() || !is_id(id) {
            return Ok(None);
        }
        if let Some(known) = self.known(|images| images.get(id).cloned()) {
            return Ok(Some(known));
        }
        let image = match self.get::<Image>(&format!("/images/{id}/json")).await {
            Ok(inspected) => Arc::new(inspected),
            // Deleted by force under a container that still has it.
            Err(error) if error.is_not_found() => Arc::new(Image::of_id(id)),
            Err(error) => return Err(error),
        };
        self.known(|images| {
            if images.len() >= IMAGES_MAX {
                images.clear();
            }
            images.insert(id.to_owned(), Arc::clone(&image));
        });
        Ok(Some(image))
    }

    fn known<T>(&self, with: impl FnOnce(&mut BTreeMap<String, Arc<Image>>) -> T) -> T {
        // A map is never left half-changed by a panic.
        with(&mut self.images.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn late(&self, request: String) -> Error {
        Error::Deadline { request, deadline: self.deadline }
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let request = || format!("GET {path}");
        let body = tokio::time::timeout(self.deadline, http::get(&self.socket, path))
            .await
            .map_err(|_late| self.late(request()))??;
        serde_json::from_slice(&body).map_err(|source| Error::Answer { request: request(), source })
    }
}

/// Whether this is what ids and names look like: it becomes part of a path.
fn is_id(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_.-:".contains(&b);
    (1..=256).contains(&text.len()) && text.bytes().all(legal) && !text.starts_with('.')
}

#[cfg(test)]
mod tests;
