//! Base images in the making: each is a run.

use crate::clock;
use crate::runs::{Cause, Error, Failure, Handle, Kind, New, RunId, Runs, Subject};
use std::path::PathBuf;
use std::time::Duration;
use vm::image::{Builder, Import, Source, Store};

/// For a build or an import, downloads included.
const DEADLINE: Duration = Duration::from_secs(2 * 3600);

/// What is to be done.
pub(crate) enum Work {
    Build(Builder),
    Import(Import),
}

impl Work {
    pub(crate) fn reads_files(&self) -> bool {
        match self {
            Self::Build(builder) => {
                builder.mirror.as_ref().is_some_and(|mirror| mirror.as_str().starts_with("file:"))
            }
            Self::Import(import) => matches!(import.source, Source::File(_)),
        }
    }

    /// Begins the run. Blocks.
    pub(crate) fn begin(self, runs: &Runs, store: Store, cause: Cause) -> Result<RunId, Error> {
        let (kind, name) = match &self {
            Self::Build(builder) => (Kind::ImageBuild, &builder.name),
            Self::Import(import) => (Kind::ImageImport, &import.name),
        };
        let new = New { kind, subject: Subject::image(name), cause };
        runs.start(new, move |handle| self.carry_out(store, handle))
    }

    async fn carry_out(self, store: Store, handle: Handle) -> Result<(), Failure> {
        let (job, now) = (handle.job(DEADLINE), clock::now());
        let image = match self {
            Self::Build(builder) => Box::pin(builder.build(&store, &job, now)).await?,
            Self::Import(import) => Box::pin(import.run(&store, &job, now)).await?,
        };
        handle.step(&format!("Image {}", image.manifest.digest));
        Ok(())
    }
}

/// The agent that was installed with this program; it becomes a service of the guest.
pub(crate) fn agent() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.parent()?.join("twin-guest");
    beside.is_file().then_some(beside)
}
