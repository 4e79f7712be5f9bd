//! Images of containers, from the engines of hosts for the engines of their twins: a host's agent
//! is asked for one, and sends those parts of it that are not here yet.
//!
//! ```text
//! fetch ─► desk ─► the agent asks ─► Found ─► had? ─► Listed ─► pieces ─► Sent ─► kept
//!   ▲                                                                              │
//!   └───────────────────────────── held, as long as it is needed ◄─────────────────┘
//! bundle: what is held, as an archive that an engine loads
//! ```
//!
//! Whoever waits for an image is its transfer's only owner: what the agent says comes to it as
//! messages, and when it goes away the agent is told that nobody wants the image any more.
//!
//! # Invariants
//! - One image at a time comes from a host. Nothing waits longer than [`TRANSFER`].
//! - Only parts of an image that is waited for are taken, and only from its host's agent.
//! - Why an image does not come is remembered until it is worth another try.

mod bundle;
mod desk;
mod kept;

pub(crate) use bundle::Bundle;
pub(crate) use kept::Held;

use crate::clock;
use crate::lacks::{Again, Lacks};
use crate::runs::{Handle, Stream as Says};
use api::container_image::{ImageAnswer, ImageNews, ImageTask, PIECE, SAID_MAX, WhyNot};
use axum::body::Bytes;
use desk::{Desk, Given};
use kept::{Half, Kept};
use model::HostId;
use model::container_image::{BlobDigest, Parts};
use model::plan::Lack;
use model::spec::{ContainerName, Image};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout};

/// For all of an image.
const TRANSFER: Duration = Duration::from_secs(3600);
const WAITS: Waits = Waits {
    silence: Duration::from_secs(60),
    coming: Duration::from_secs(20),
    again: Again { first: Duration::from_secs(60), longest: Duration::from_secs(3600) },
};

/// How long others are waited for.
#[derive(Debug, Clone, Copy)]
struct Waits {
    /// An agent at work says something at least so often.
    silence: Duration,
    /// For agents to come back after the server was started. Later, one that is there has asked.
    coming: Duration,
    /// Until an image that did not come is asked for again.
    again: Again,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not {doing} {}", .path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the part {digest} is not what its digest says")]
    Damaged { digest: BlobDigest },
    #[error("the part {digest} was not sent")]
    Lacking { digest: BlobDigest },
    #[error("the description of the image does not go with its layers")]
    Config,
    #[error("the image has {bytes} bytes, and at most {limit} are taken")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("this was not asked for, or is not the piece that comes next")]
    Order,
    #[error("nobody waits for this image any more")]
    Unwanted,
    #[error("the work broke off")]
    Broken,
}

impl Error {
    pub(super) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }
}

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What an agent says of a task.
#[derive(Debug)]
enum Message {
    News(ImageNews, Reply<ImageAnswer>),
    Piece { digest: BlobDigest, from: u64, bytes: Bytes, reply: Reply<()> },
}

/// Why an image is not here.
#[derive(Debug)]
pub(crate) enum Missing {
    /// It does not come, until something changes.
    Lacking(Lack),
    /// It may come the next time.
    Broken(String),
}

/// All images of a server. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct ContainerImages {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    begun: Instant,
    waits: Waits,
    kept: Kept,
    prepared: OnceCell<()>,
    desk: Desk,
    turns: Mutex<BTreeMap<HostId, Arc<tokio::sync::Mutex<()>>>>,
    lacks: Lacks<(HostId, Image), Lacking>,
}

/// An image that did not come.
#[derive(Debug, Clone)]
struct Lacking {
    lack: Lack,
    /// Nobody was there to ask.
    is_unattended: bool,
}

impl ContainerImages {
    /// Keeps parts in this directory, which is made when it is needed.
    pub(crate) fn new(directory: PathBuf, bytes_max: u64) -> Self {
        Self::with(directory, bytes_max, WAITS)
    }

    fn with(directory: PathBuf, bytes_max: u64, waits: Waits) -> Self {
        let begin = u64::try_from(clock::now().0).unwrap_or_default();
        let inner = Inner {
            begun: Instant::now(),
            waits,
            kept: Kept::new(directory, bytes_max),
            prepared: OnceCell::new(),
            desk: Desk::new(begin),
            turns: Mutex::default(),
            lacks: Lacks::new(waits.again),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Has an image come from a host, or what of it is not here. It stays as long as it is held.
    pub(crate) async fn fetch(
        &self,
        host: &HostId,
        image: &Image,
        container: Option<&ContainerName>,
        handle: &Handle,
    ) -> Result<Held, Missing> {
        let _turn = self.turn(host).await;
        handle.step(&format!("Asking {host} for the image {image}"));
        let fetched = timeout(TRANSFER, self.fetch_now(host, image, container, handle)).await;
        let late = || {
            let hours = TRANSFER.as_secs() / 3600;
            Err(Missing::Broken(format!("it did not come within {hours} h")))
        };
        let fetched = fetched.unwrap_or_else(|_late| late());
        let key = (host.clone(), image.clone());
        match &fetched {
            Ok(_) => self.inner.lacks.forget(&key),
            Err(Missing::Lacking(lack)) => self.note(key, lack.clone()),
            Err(Missing::Broken(_)) => {}
        }
        fetched
    }

    async fn fetch_now(
        &self,
        host: &HostId,
        image: &Image,
        container: Option<&ContainerName>,
        handle: &Handle,
    ) -> Result<Held, Missing> {
        let prepare = || self.off_thread(|kept| kept.prepare());
        let prepared = self.inner.prepared.get_or_try_init(prepare).await;
        prepared.map_err(|error| Missing::from(&error))?;
        let wanted = (image.clone(), container.cloned());
        let given = self.inner.desk.give(host, wanted, self.inner.kept.bytes_max());
        let coming = self.inner.waits.coming.saturating_sub(self.inner.begun.elapsed());
        if !given.is_attended(coming).await {
            return Err(Missing::Lacking(unattended(host)));
        }
        let stage = Stage::Asked;
        Transfer { images: self, given, stage, handle }.run().await
    }

    async fn turn(&self, host: &HostId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(host.clone()).or_default())
        };
        turn.lock_owned().await
    }

    /// A host's agent asks what is wanted. Whether images did not come because it was not there.
    pub(crate) fn came(&self, host: &HostId) -> bool {
        if !self.inner.desk.note(host) {
            return false;
        }
        self.inner.lacks.forget_those(|(of, _), lacking| of == host && lacking.is_unattended)
    }

    /// Waits for something to be wanted of a host.
    pub(crate) async fn attend(&self, host: &HostId) -> Vec<ImageTask> {
        self.inner.desk.attend(host).await
    }

    /// What a host's agent says of a task.
    pub(crate) async fn news(
        &self,
        host: &HostId,
        task: u64,
        news: ImageNews,
    ) -> Result<ImageAnswer, Error> {
        let (reply, answer) = oneshot::channel();
        self.inner.desk.say(host, task, Message::News(news, reply)).await?;
        answer.await.unwrap_or(Err(Error::Unwanted))
    }

    /// A piece of a part, from this byte on.
    pub(crate) async fn piece(
        &self,
        host: &HostId,
        task: u64,
        (digest, from, bytes): (BlobDigest, u64, Bytes),
    ) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Piece { digest, from, bytes, reply };
        self.inner.desk.say(host, task, message).await?;
        answer.await.unwrap_or(Err(Error::Unwanted))
    }

    /// Images that do not come from a host, and why.
    pub(crate) fn lacking(&self, host: &HostId) -> BTreeMap<Image, Lack> {
        let of_host = self.inner.lacks.known(|(of, _)| of == host).into_iter();
        of_host.map(|((_, image), one)| (image, one.lack)).collect()
    }

    /// From now on those are worth another try that did not come a while ago; whether there are
    /// any. Where nobody was there to ask, that has to come first.
    pub(crate) fn pardon(&self, host: &HostId) -> bool {
        let has_been_asked =
            |(of, _): &(HostId, Image), lacking: &Lacking| of == host && !lacking.is_unattended;
        self.inner.lacks.pardon(has_been_asked, Instant::now())
    }

    fn note(&self, key: (HostId, Image), lack: Lack) {
        let is_unattended = lack == unattended(&key.0);
        self.inner.lacks.note(key, Lacking { lack, is_unattended }, Instant::now());
    }

    /// Runs what blocks off the async threads.
    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Kept) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let kept = self.inner.kept.clone();
        tokio::task::spawn_blocking(move || work(&kept)).await.unwrap_or(Err(Error::Broken))
    }
}

fn unattended(host: &HostId) -> Lack {
    Lack {
        what: format!("its image does not come from the host: the agent of {host} hands out none"),
        remedy: "set hand_out_images: true in the host's agent.yaml and see that the agent runs; \
                 or load the image in the twin: docker save and docker load, with twin ssh"
            .to_owned(),
    }
}

fn lack(why: WhyNot, said: &str) -> Missing {
    let (what, remedy) = match why {
        WhyNot::Broken => return Missing::Broken(said.to_owned()),
        WhyNot::NoEngine => ("no engine runs there", "start Docker on the host"),
        WhyNot::Gone => (
            "its engine does not have it any more",
            "pull or build it on the host again, or load it in the twin: docker save and docker \
             load, with twin ssh",
        ),
        WhyNot::TooLarge => (
            "it is larger than this server takes",
            "set twins: {container_images_gb: …} in the server's configuration to more",
        ),
        WhyNot::Malformed => (
            "what its engine hands out is no image",
            "look at docker save of it on the host, or load it in the twin by hand",
        ),
    };
    let what = format!("its image does not come from the host: {what} ({said})");
    Missing::Lacking(Lack { what, remedy: remedy.to_owned() })
}

impl From<&Error> for Missing {
    fn from(error: &Error) -> Self {
        let text = model::with_causes(error);
        match error {
            Error::TooLarge { .. } => lack(WhyNot::TooLarge, &text),
            Error::Config => lack(WhyNot::Malformed, &text),
            _ => Self::Broken(text),
        }
    }
}

/// An image that is under way.
struct Transfer<'t> {
    images: &'t ContainerImages,
    given: Given,
    stage: Stage,
    handle: &'t Handle,
}

enum Stage {
    Asked,
    Found(BlobDigest),
    Sending(Box<Sending>),
}

struct Sending {
    held: Held,
    /// Parts that are still to come, whole.
    wanted: BTreeMap<BlobDigest, u64>,
    half: Option<Half>,
    /// Bytes that came, of all that are to come.
    done: u64,
    total: u64,
}

/// What a message came to.
enum Course {
    Goes,
    Ended(Held),
}

impl Transfer<'_> {
    async fn run(mut self) -> Result<Held, Missing> {
        loop {
            let silence = self.images.inner.waits.silence;
            let message = timeout(silence, self.given.next()).await.ok().flatten();
            let Some(message) = message else {
                let seconds = silence.as_secs();
                let what = format!("the host's agent has said nothing of it for {seconds} s");
                return Err(Missing::Broken(what));
            };
            match message {
                Message::News(ImageNews::Unable { why, said }, reply) => {
                    let _gone = reply.send(Ok(ImageAnswer::GoOn));
                    let said: String =
                        said.chars().filter(|c| !c.is_control()).take(SAID_MAX).collect();
                    return Err(lack(why, &said));
                }
                Message::News(news, reply) => match self.heard(news).await {
                    Ok((answer, course)) => {
                        let _gone = reply.send(Ok(answer));
                        if let Course::Ended(held) = course {
                            return Ok(held);
                        }
                    }
                    Err(error) => return Err(refuse(error, reply)),
                },
                Message::Piece { digest, from, bytes, reply } => {
                    match self.take(digest, from, bytes).await {
                        Ok(()) => {
                            let _gone = reply.send(Ok(()));
                        }
                        Err(error) => return Err(refuse(error, reply)),
                    }
                }
            }
        }
    }

    async fn heard(&mut self, news: ImageNews) -> Result<(ImageAnswer, Course), Error> {
        let stage = std::mem::replace(&mut self.stage, Stage::Asked);
        let goes = |answer| Ok((answer, Course::Goes));
        match (news, stage) {
            (ImageNews::Working, stage) => {
                self.stage = stage;
                goes(ImageAnswer::GoOn)
            }
            (ImageNews::Found { id }, Stage::Asked) => {
                let asked = id.clone();
                if let Some(held) = self.images.off_thread(move |kept| kept.image(&asked)).await? {
                    self.handle.line(Says::Server, &format!("{id} is here already"));
                    return Ok((ImageAnswer::Had, Course::Ended(held)));
                }
                self.stage = Stage::Found(id);
                goes(ImageAnswer::List)
            }
            (ImageNews::Listed { parts }, Stage::Found(id)) => goes(self.list(id, parts).await?),
            (ImageNews::Sent, Stage::Sending(sending)) if sending.wanted.is_empty() => {
                let keep = move |kept: &Kept| kept.keep(&sending.held).map(|()| sending.held);
                let held = self.images.off_thread(keep).await?;
                Ok((ImageAnswer::GoOn, Course::Ended(held)))
            }
            _ => Err(Error::Order),
        }
    }

    async fn list(&mut self, id: BlobDigest, parts: Parts) -> Result<ImageAnswer, Error> {
        let (bytes, limit) = (parts.bytes(), self.images.inner.kept.bytes_max());
        if bytes > limit {
            return Err(Error::TooLarge { bytes, limit });
        }
        let looked = self.images.off_thread(move |kept| {
            let held = kept.hold(id, parts);
            Ok((kept.lacking(&held)?, held))
        });
        let (wanted, held) = looked.await?;
        let total = wanted.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        let (some, all) = (wanted.len(), held.parts().distinct().len());
        let text = format!("{some} of {all} parts come from the host, {total} bytes");
        self.handle.line(Says::Server, &text);
        let digests = wanted.keys().cloned().collect();
        let sending = Sending { held, wanted, half: None, done: 0, total };
        self.stage = Stage::Sending(Box::new(sending));
        Ok(ImageAnswer::Send { digests })
    }

    /// Takes a piece of a part that is wanted.
    async fn take(&mut self, digest: BlobDigest, from: u64, piece: Bytes) -> Result<(), Error> {
        let Stage::Sending(sending) = &mut self.stage else { return Err(Error::Order) };
        let bytes = *sending.wanted.get(&digest).ok_or(Error::Order)?;
        if piece.len() > PIECE {
            return Err(Error::Order);
        }
        let half = match sending.half.take() {
            Some(half) if *half.digest() == digest && half.written() == from => Some(half),
            None if from == 0 => None,
            _ => return Err(Error::Order),
        };
        let more = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        let added = self.images.off_thread(move |kept| {
            let mut half = match half {
                Some(half) => half,
                None => kept.begin(digest, bytes)?,
            };
            half.add(&piece)?;
            if half.is_whole() {
                let digest = half.digest().clone();
                kept.keep_part(half)?;
                return Ok((None, Some(digest)));
            }
            Ok((Some(half), None))
        });
        let (half, whole) = added.await?;
        sending.half = half;
        if let Some(digest) = whole {
            sending.wanted.remove(&digest);
        }
        sending.done = sending.done.saturating_add(more);
        self.handle.progress(sending.done, Some(sending.total));
        Ok(())
    }
}

/// Tells the agent what is wrong, and whoever waits, too.
fn refuse<T>(error: Error, reply: Reply<T>) -> Missing {
    let missing = (&error).into();
    let _gone = reply.send(Err(error));
    missing
}

#[cfg(test)]
mod tests;
