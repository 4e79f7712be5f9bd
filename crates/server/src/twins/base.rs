//! The image that a twin begins from: the one asked for, the configured one, the newest; and one
//! that is built where there is none at all.

use super::Twins;
use super::error::Error;
use crate::images::{Work, agent};
use crate::runs::{self, Cause, Event, Failure, Handle, RunId, State, Stream as Says};
use vm::image::{Builder, ImageId, ImageName, Manifest, Origin};

/// What an image is called that nobody asked for by name.
const UNASKED: &str = "debian";
/// A build has a tree, a disk and the image at once; history is on the same disk, most often.
const ROOM: u64 = 4 << 30;

/// An image to begin from.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) id: ImageId,
    /// Its name, or the first digits of its digest.
    pub(super) called: String,
    pub(super) brings_agent: bool,
    /// Not made for twins: what they need is put into it at its first boot.
    pub(super) is_foreign: bool,
}

impl Base {
    fn new(id: ImageId, manifest: &Manifest) -> Self {
        let digits = || id.as_str().chars().take(12).collect();
        let called = manifest.names.first().map_or_else(digits, ToString::to_string);
        let brings_agent = matches!(&manifest.origin, Origin::Built { agent: Some(_), .. });
        let is_foreign = matches!(&manifest.origin, Origin::Imported { .. });
        Self { id, called, brings_agent, is_foreign }
    }
}

impl Twins {
    /// The image asked for, else the one that is configured, else the newest that is sound.
    /// Nothing where there is none and one may be built. Blocks.
    pub(super) fn base(&self, wanted: Option<&str>) -> Result<Option<Base>, Error> {
        let images = &self.inner.images;
        let id = if let Some(name) = wanted {
            images.find(name)?
        } else if let Some(name) = &self.inner.settings.image {
            images.find(name).map_err(|_error| Error::NoSuchImage { name: name.clone() })?
        } else {
            let newest = self.newest()?;
            if newest.is_none() {
                self.may_build()?;
            }
            return Ok(newest);
        };
        Ok(Some(Base::new(id.clone(), &images.show(&id)?)))
    }

    fn newest(&self) -> Result<Option<Base>, Error> {
        let mut listed = self.inner.images.list()?.into_iter();
        Ok(listed.find_map(|one| Some(Base::new(one.id, &one.manifest.ok()?))))
    }

    fn may_build(&self) -> Result<(), Error> {
        if !self.inner.settings.builds_image {
            return Err(Error::NoImage);
        }
        let path = self.inner.images.directory();
        let space = rustix::fs::statvfs(path);
        let space =
            space.map_err(|error| Error::file("ask for the space of", path)(error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < ROOM {
            let (free_mb, needed_mb) = (free >> 20, ROOM >> 20);
            return Err(Error::NoRoom { path: path.to_owned(), free_mb, needed_mb });
        }
        Ok(())
    }

    /// Builds the image that there is none of, or waits for the one that is being built.
    pub(super) async fn build_base(&self, cause: Cause, handle: &Handle) -> Result<Base, Failure> {
        let (run, is_own) = self.off_thread(move |this| this.begin_build(cause)).await?;
        handle.step(&format!("Building the image {UNASKED}, since there is none; run {run}"));
        let over = handle.cancelled().run_until_cancelled_owned(self.relay(run, handle));
        match runs::aside(over).await {
            Some(over) => over?,
            None => {
                if is_own {
                    // It may be over by now.
                    self.inner.runs.cancel(run).ok();
                }
                return Err(Failure::new("cancelled"));
            }
        }
        let newest = self.off_thread(|this| this.newest()).await?;
        Ok(newest.ok_or(Error::NoImage)?)
    }

    /// Whether the run was begun here. Blocks.
    fn begin_build(&self, cause: Cause) -> Result<(RunId, bool), Error> {
        let name: ImageName = UNASKED.parse().expect("letters are a name");
        let work = Work::Build(Builder { agent: agent(), ..Builder::new(name) });
        match work.begin(&self.inner.runs, self.inner.images.clone(), cause) {
            Ok(run) => Ok((run, true)),
            Err(runs::Error::Busy { id, .. }) => Ok((id, false)),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells what another run does, until it is over.
    async fn relay(&self, run: RunId, handle: &Handle) -> Result<(), Failure> {
        let mut log = self.inner.runs.follow(run, 0, true)?;
        while let Some(records) = log.read_next().await? {
            for record in records {
                match record.event {
                    Event::Step { text } => handle.step(&text),
                    Event::Line { stream: Says::Server, text } => handle.line(Says::Server, &text),
                    // All it says is in its own log.
                    Event::Line { .. } => {}
                    Event::Progress { done, total } => handle.progress(done, total),
                    Event::End { state: State::Succeeded, .. } => {}
                    Event::End { state, message, .. } => {
                        let why = message.unwrap_or_else(|| state.to_string());
                        let text = format!("there is no image to start from: {why}");
                        return Err(Failure::new(text));
                    }
                }
            }
        }
        Ok(())
    }
}
