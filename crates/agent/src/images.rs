//! Hands out images of containers, for twins that reach nothing to have them from: only where the
//! host's configuration says so (`hand_out_images`), and only what the server asks for.
//!
//! ```text
//! ask ─► found? ─► list: the archive once, for the digests ─► send: once more, what is lacking
//!  ▲       had ─┐                                                │
//!  └────────────┴────────────────────────────────────────────────┘
//! ```
//!
//! The archive is read twice, since older engines tell the digests of layers in its end alone, and
//! nothing of it is written to the host's disk.
//!
//! # Invariants
//! - Nothing of the engine is changed: it is asked by GET.
//! - In memory is one piece of one part.

use api::client::{self, Client, segment};
use api::container_image::{
    ImageAnswer, ImageNews, ImageTask, ImageTasks, PIECE, SAID_MAX, WhyNot,
};
use bytes::Bytes;
use host::docker::archive::{Contents, Fault, Listing, Piece, Reader};
use host::docker::{self, Docker, Export};
use hyper::{Method, StatusCode};
use model::container_image::BlobDigest;
use model::{HostId, with_causes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// An answer without tasks that came sooner was no waiting.
const SOON: Duration = Duration::from_secs(1);
/// Between two signs of life while the engine takes its time.
const SIGN: Duration = Duration::from_secs(10);
/// Bytes of an archive beside those of the image.
const BESIDE: u64 = 64 << 20;

/// Why a task ended early.
#[derive(Debug)]
enum Trouble {
    /// To be told.
    Unable(WhyNot, String),
    /// Nobody wants it any more, or nobody can be told.
    Left(client::Error),
}

impl From<docker::Error> for Trouble {
    fn from(error: docker::Error) -> Self {
        let why = match error.is_absent() || error.is_stopped() {
            true => WhyNot::NoEngine,
            false => WhyNot::Broken,
        };
        Self::Unable(why, with_causes(&error))
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        let why = match fault {
            Fault::TooLarge { .. } => WhyNot::TooLarge,
            Fault::Cut => WhyNot::Broken,
            _ => WhyNot::Malformed,
        };
        Self::Unable(why, format!("the image's archive: {}", with_causes(&fault)))
    }
}

impl From<client::Error> for Trouble {
    fn from(error: client::Error) -> Self {
        Self::Left(error)
    }
}

/// Asks what is wanted, and hands it out, until it is dropped.
pub(crate) async fn hand_out(client: Client, host: HostId, docker: Docker) {
    let path = format!("/api/v1/hosts/{}/image-work", segment(host.as_str()));
    let line = Line { client, path, told: Instant::now() };
    let mut desk = Desk { line, docker };
    let mut backoff = BACKOFF.0;
    loop {
        let begin = Instant::now();
        match desk.line.ask::<ImageTasks>("", &()).await {
            Ok(ImageTasks { tasks }) => {
                backoff = BACKOFF.0;
                if tasks.is_empty() && begin.elapsed() < SOON {
                    tokio::time::sleep(SOON).await;
                }
                for task in tasks {
                    desk.settle(&task).await;
                }
            }
            Err(error) => {
                // That the server is away is told by who sends the changes.
                tracing::debug!(error = with_causes(&error), "nobody says which images are wanted");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
}

struct Desk {
    line: Line,
    docker: Docker,
}

impl Desk {
    async fn settle(&mut self, task: &ImageTask) {
        let image = &task.image;
        tracing::info!(%image, "is wanted for the twin");
        let error = match self.carry_out(task).await {
            Ok(()) => return tracing::info!(%image, "was handed out"),
            Err(Trouble::Left(error)) => error,
            Err(Trouble::Unable(why, said)) => {
                tracing::warn!(%image, why = why.as_str(), said, "can't be handed out");
                let said = said.chars().take(SAID_MAX).collect();
                match self.line.tell(task, &ImageNews::Unable { why, said }).await {
                    Ok(_) => return,
                    Err(error) => error,
                }
            }
        };
        match error.status() {
            Some(StatusCode::GONE) => tracing::info!(%image, "is wanted no more"),
            _ => tracing::warn!(%image, error = with_causes(&error), "handing out broke off"),
        }
    }

    async fn carry_out(&mut self, task: &ImageTask) -> Result<(), Trouble> {
        let found = self.docker.image(&task.image, task.container.as_ref()).await?;
        let Some(found) = found else {
            let said = "the engine does not have it".to_owned();
            return Err(Trouble::Unable(WhyNot::Gone, said));
        };
        if found.bytes > task.bytes_max {
            let said = format!("it has {} bytes", found.bytes);
            return Err(Trouble::Unable(WhyNot::TooLarge, said));
        }
        let here = ImageNews::Found { id: found.id.clone() };
        if self.line.tell(task, &here).await? == ImageAnswer::Had {
            return Ok(());
        }
        let contents = self.list(task, &found.id).await?;
        let listed = ImageNews::Listed { parts: contents.parts.clone() };
        if let ImageAnswer::Send { digests } = self.line.tell(task, &listed).await? {
            self.send(task, &found.id, &contents, digests.into_iter().collect()).await?;
        }
        self.line.tell(task, &ImageNews::Sent).await?;
        Ok(())
    }

    /// What the image consists of.
    async fn list(&mut self, task: &ImageTask, id: &BlobDigest) -> Result<Contents, Trouble> {
        let mut reader = Reader::new(task.bytes_max.saturating_add(BESIDE));
        let mut listing = Listing::default();
        let mut export = self.open(task, id).await?;
        while let Some(chunk) = self.more(task, &mut export).await? {
            let mut input = chunk.as_ref();
            while let Some(piece) = reader.next(&mut input)? {
                listing.take(piece)?;
            }
        }
        reader.finish()?;
        Ok(listing.finish()?)
    }

    /// Sends those parts that are wanted.
    async fn send(
        &mut self,
        task: &ImageTask,
        id: &BlobDigest,
        contents: &Contents,
        mut wanted: BTreeSet<BlobDigest>,
    ) -> Result<(), Trouble> {
        let mut reader = Reader::new(task.bytes_max.saturating_add(BESIDE));
        let mut export = self.open(task, id).await?;
        let mut part: Option<Sending> = None;
        while !wanted.is_empty() || part.is_some() {
            let Some(chunk) = self.more(task, &mut export).await? else { break };
            let mut input = chunk.as_ref();
            while let Some(piece) = reader.next(&mut input)? {
                match piece {
                    Piece::File { name, .. } => {
                        let known = contents.files.get(&name);
                        let known = known.filter(|part| wanted.remove(&part.digest));
                        part = known.map(|part| Sending::new(part.digest.clone()));
                    }
                    Piece::Data(data) => {
                        if let Some(part) = &mut part {
                            self.line.add(task, part, data).await?;
                        }
                    }
                    Piece::Ended => {
                        if let Some(part) = &mut part.take()
                            && (part.from == 0 || !part.waiting.is_empty())
                        {
                            self.line.flush(task, part).await?;
                        }
                    }
                    Piece::Link { .. } => {}
                }
            }
        }
        match wanted.is_empty() && part.is_none() {
            true => Ok(()),
            false => Err(Fault::Cut.into()),
        }
    }

    async fn open(&mut self, task: &ImageTask, id: &BlobDigest) -> Result<Export, Trouble> {
        self.line.patiently(task, self.docker.export(id)).await
    }

    async fn more(
        &mut self,
        task: &ImageTask,
        export: &mut Export,
    ) -> Result<Option<Bytes>, Trouble> {
        self.line.patiently(task, export.next()).await
    }
}

/// The way to the server.
struct Line {
    client: Client,
    path: String,
    /// When something was last said there.
    told: Instant,
}

impl Line {
    /// Waits for the engine, and tells the server meanwhile that it is worth waiting.
    async fn patiently<T>(
        &mut self,
        task: &ImageTask,
        engine: impl Future<Output = Result<T, docker::Error>>,
    ) -> Result<T, Trouble> {
        let mut engine = std::pin::pin!(engine);
        loop {
            let due = self.told + SIGN;
            tokio::select! {
                biased;
                // Also where the engine never takes long, and there is much of it.
                () = tokio::time::sleep_until(due) => {
                    self.tell(task, &ImageNews::Working).await?;
                }
                done = &mut engine => return Ok(done?),
            }
        }
    }

    async fn tell(
        &mut self,
        task: &ImageTask,
        news: &ImageNews,
    ) -> Result<ImageAnswer, client::Error> {
        self.ask(&format!("/{}", task.id), news).await
    }

    async fn ask<T: DeserializeOwned>(
        &mut self,
        below: &str,
        body: &impl Serialize,
    ) -> Result<T, client::Error> {
        let path = format!("{}{below}", self.path);
        let body = serde_json::to_vec(body).expect("plain data always encodes");
        let media = "application/json";
        let answer = self.client.send(Method::POST, &path, media, Bytes::from(body)).await?;
        self.told = Instant::now();
        serde_json::from_slice(&answer).map_err(|_form| client::Error::Answer {
            server: self.client.authority().to_owned(),
            status: StatusCode::OK,
        })
    }

    async fn add(
        &mut self,
        task: &ImageTask,
        part: &mut Sending,
        mut data: &[u8],
    ) -> Result<(), Trouble> {
        while !data.is_empty() {
            let room = PIECE.saturating_sub(part.waiting.len()).min(data.len());
            let (now, later) = data.split_at(room);
            part.waiting.extend_from_slice(now);
            data = later;
            if part.waiting.len() >= PIECE {
                self.flush(task, part).await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self, task: &ImageTask, part: &mut Sending) -> Result<(), Trouble> {
        let (id, digest, from) = (task.id, part.digest.as_str(), part.from);
        let path = format!("{}/{id}/{digest}?from={from}", self.path);
        let piece = Bytes::from(std::mem::take(&mut part.waiting));
        part.from = part.from.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        self.client.send(Method::POST, &path, "application/octet-stream", piece).await?;
        self.told = Instant::now();
        Ok(())
    }
}

/// A part that is under way.
struct Sending {
    digest: BlobDigest,
    /// Bytes that were sent.
    from: u64,
    waiting: Vec<u8>,
}

impl Sending {
    fn new(digest: BlobDigest) -> Self {
        Self { digest, from: 0, waiting: Vec::new() }
    }
}
