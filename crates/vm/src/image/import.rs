//! Makes a base image of a disk image from elsewhere, such as a distribution's cloud image.
//!
//! The file is copied before anything looks at it, so what was checked is what is used; its
//! format is found by content, handed on by name, and rewritten as a qcow2 file of our own,
//! which has no backing file, no snapshots and no features that were not asked for. A guest's
//! seed installs what the image lacks.

use super::Error;
use super::fetch::{Checksum, Source, fetch};
use super::manifest::{Boot, DISK, FORMAT, Manifest, Origin, digest_of};
use super::names::{ImageId, ImageName};
use super::probe::{Format, Found, probe};
use super::store::{Image, Store};
use crate::job::{self, Job, Tool};
use model::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// What to take.
#[derive(Debug, Clone)]
pub struct Import {
    pub name: ImageName,
    pub source: Source,
    /// As its publisher tells it. Without it, what comes is trusted.
    pub checksum: Option<Checksum>,
}

impl Import {
    /// Fetches, checks, converts and stores the image, or finds the one with this content.
    pub async fn run(&self, store: &Store, job: &Job, now: Time) -> Result<Image, Error> {
        job.step(format!("Fetching {}", self.source));
        let draft = {
            let store = store.clone();
            job.block(move || store.draft()).await?
        };
        let copy = draft.path().join("source");
        let digest = fetch(job, &self.source, self.checksum.as_ref(), &copy).await?;
        let inputs = digest_of(&("import", &digest))?;
        if let Some(image) = self.known(store, job, inputs.clone()).await? {
            job.step(format!("Image {} is this one", image.manifest.digest));
            return Ok(image);
        }
        job.step("Checking the image");
        let found = self.look(job, &copy).await?;
        job.step("Converting the image");
        let disk = draft.path().join(DISK);
        let format = found.format.as_str();
        let convert =
            Tool::new("qemu-img", "qemu-utils").args(["convert", "-f", format, "-O", "qcow2"]);
        job.run(convert.arg(&copy).arg(&disk)).await.map_err(|error| self.refused(error))?;
        let manifest = Manifest {
            format: FORMAT,
            digest: digest.clone(),
            names: BTreeSet::from([self.name.clone()]),
            created: now,
            architecture: None,
            origin: Origin::Imported {
                source: self.source.to_string(),
                digest,
                source_format: format.to_owned(),
            },
            inputs,
            packages: BTreeMap::new(),
            virtual_size_bytes: found.virtual_size_bytes.next_multiple_of(512),
            boot: Boot::Firmware,
            files: BTreeMap::new(),
        };
        job.step("Storing the image");
        let job_ = job.clone();
        job.block(move || {
            fs::remove_file(&copy).map_err(Error::file("remove", &copy))?;
            draft.seal(manifest, &job_)
        })
        .await
    }

    async fn known(
        &self,
        store: &Store,
        job: &Job,
        inputs: ImageId,
    ) -> Result<Option<Image>, Error> {
        let (store, name, job_) = (store.clone(), self.name.clone(), job.clone());
        job.block(move || match store.by_inputs(&inputs, &job_)? {
            Some(image) => store.call(image, &name).map(Some),
            None => Ok(None),
        })
        .await
    }

    /// The header by our own eyes, then the tables by qemu-img, which is told the format.
    async fn look(&self, job: &Job, copy: &Path) -> Result<Found, Error> {
        let path = copy.to_owned();
        let found = job.block(move || {
            let mut file = fs::File::open(&path).map_err(Error::file("open", &path))?;
            let length = file.metadata().map_err(Error::file("look at", &path))?.len();
            Ok::<_, Error>(probe(&mut file, length))
        });
        let found = found.await?.map_err(|error| self.unusable(error.to_string()))?;
        if found.format == Format::Qcow2 {
            let check = Tool::new("qemu-img", "qemu-utils").args(["check", "-q", "-f", "qcow2"]);
            match job.run(check.arg(copy)).await {
                // Clusters that nobody uses harm nobody.
                Ok(()) | Err(job::Error::Failed { code: Some(3), .. }) => {}
                Err(error) => return Err(self.refused(error)),
            }
        }
        Ok(found)
    }

    fn unusable(&self, what: String) -> Error {
        Error::NotAnImage { path: self.source.to_string().into(), what }
    }

    /// What qemu-img does not take is the image's fault, in qemu-img's words.
    fn refused(&self, error: job::Error) -> Error {
        match error {
            job::Error::Failed { last, .. } => {
                self.unusable(format!("it is damaged or cut off: {last}"))
            }
            other => other.into(),
        }
    }
}
