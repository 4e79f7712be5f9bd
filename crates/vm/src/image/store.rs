//! Keeps base images, each in a directory named by its digest, and vouches for them.
//!
//! ```text
//! images/
//!   DIGEST/        manifest.json, disk.qcow2, and vmlinuz, initrd.img where it is booted directly
//!   .partial-*/    half-made, locked by the process that makes it
//!   .lock          held while a half-made one is begun, ended or swept away
//!
//!   (nothing) ── draft ──► .partial-XXXX ── seal: digest, fsync, rename ──► DIGEST ── delete ──► .partial-XXXX ──► (nothing)
//!                              └── dropped, or its process died: swept at the next open ──► (nothing)
//! ```
//!
//! # Invariants
//! - What has a digest for a name is whole and never changes, but for what people call it.
//! - No image is handed out unless its files have the lengths and contents it was made with.
//!   Contents are read once a process, and again when a file was touched.

use super::manifest::{Boot, DISK, INITRD, KERNEL, Manifest};
use super::names::{ImageId, ImageName};
use super::privilege;
use super::probe::{Format, probe};
use super::{Error, Job};
use crate::content::{self, FileRecord, Verified, hold, used};
use crate::job;
use rustix::fs::FlockOperation;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MANIFEST: &str = "manifest.json";
const PARTIAL: &str = ".partial-";
const LOCK: &str = ".lock";
/// How often the removal of half-made files is tried, and how long apart.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(200);
const MANIFEST_BYTES: u64 = 16 << 20;

/// The images of one directory. Clones share what was verified. All calls block.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    verified: Verified,
}

/// An image that was verified, with absolute paths.
#[derive(Debug, Clone)]
pub struct Image {
    pub manifest: Manifest,
    /// A qcow2 file without a backing file, never to be written to.
    pub disk: PathBuf,
    /// Kernel, initial RAM disk and command line, where the hypervisor loads them.
    pub direct: Option<DirectBoot>,
}

#[derive(Debug, Clone)]
pub struct DirectBoot {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub command_line: String,
}

/// A line of the list: also an image that is damaged is there, and can be deleted.
#[derive(Debug)]
pub struct Listed {
    pub id: ImageId,
    pub manifest: Result<Manifest, Error>,
    /// Of all its files on disk.
    pub used_bytes: u64,
}

impl Store {
    /// Opens the directory, makes it if need be, and removes what was left half-made by
    /// processes that are gone.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(Error::file("make the directory", directory))?;
        let directory =
            directory.canonicalize().map_err(Error::file("find the directory", directory))?;
        let store = Self { directory, verified: Verified::default() };
        store.sweep()?;
        Ok(store)
    }

    /// The images of a directory as it is: makes and sweeps nothing.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), verified: Verified::default() }
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All images, the newest first.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut listed = Vec::new();
        for name in self.entries()? {
            let Ok(id) = name.parse::<ImageId>() else { continue };
            let manifest = self.show(&id);
            listed.push(Listed { used_bytes: used(&self.path(&id)), id, manifest });
        }
        let created = |image: &Listed| image.manifest.as_ref().ok().map(|m| m.created);
        listed.sort_by(|a, b| created(b).cmp(&created(a)).then_with(|| a.id.cmp(&b.id)));
        Ok(listed)
    }

    /// The image of this name (the newest, when several have it), digest, or start of a digest
    /// (at least six digits).
    pub fn find(&self, text: &str) -> Result<ImageId, Error> {
        let listed = self.list()?;
        let named = text.parse::<ImageName>().ok().and_then(|name| {
            listed.iter().find(|image| {
                image.manifest.as_ref().is_ok_and(|manifest| manifest.names.contains(&name))
            })
        });
        if let Some(image) = named {
            return Ok(image.id.clone());
        }
        let begins = |image: &&Listed| text.len() >= 6 && image.id.as_str().starts_with(text);
        let mut found = listed.iter().filter(begins);
        match (found.next(), found.next()) {
            (Some(image), None) => Ok(image.id.clone()),
            (Some(_), Some(_)) => Err(Error::Ambiguous { prefix: text.to_owned() }),
            _ => Err(Error::Unknown { name: text.chars().take(80).collect() }),
        }
    }

    /// What an image is. Its files are not looked at.
    pub fn show(&self, id: &ImageId) -> Result<Manifest, Error> {
        let path = self.path(id).join(MANIFEST);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.path(id).exists() => {
                return Err(Error::Unknown { name: id.to_string() });
            }
            Err(error) => {
                let what = format!("its manifest can't be read: {error}");
                return Err(Error::Damaged { id: id.to_string(), what });
            }
        };
        let mut text = Vec::new();
        let read = file.take(MANIFEST_BYTES).read_to_end(&mut text);
        read.map_err(Error::file("read", &path))?;
        Manifest::parse(id, &text)
    }

    /// The image, verified, to start machines from.
    pub fn acquire(&self, id: &ImageId, job: &Job) -> Result<Image, Error> {
        let manifest = self.show(id)?;
        let directory = self.path(id);
        for (name, record) in &manifest.files {
            let checked = self.verified.check(&directory.join(name), record, || job.go_on());
            job.check()?;
            checked.map_err(|what| Error::Damaged { id: id.to_string(), what })?;
        }
        let damaged = |what: String| Error::Damaged { id: id.to_string(), what };
        let disk = directory.join(DISK);
        let mut file = File::open(&disk).map_err(Error::file("open", &disk))?;
        let length = file.metadata().map_err(Error::file("look at", &disk))?.len();
        let found = probe(&mut file, length).map_err(|error| damaged(error.to_string()))?;
        if found.format != Format::Qcow2 || found.virtual_size_bytes != manifest.virtual_size_bytes
        {
            return Err(damaged("its disk is not the one its manifest tells of".to_owned()));
        }
        let direct = match &manifest.boot {
            Boot::Kernel { command_line } => Some(DirectBoot {
                kernel: directory.join(KERNEL),
                initrd: directory.join(INITRD),
                command_line: command_line.clone(),
            }),
            Boot::Firmware => None,
        };
        Ok(Image { manifest, disk, direct })
    }

    /// The same off the async threads.
    pub(crate) async fn acquire_for<E: From<Error> + From<job::Error> + Send + 'static>(
        &self,
        id: &ImageId,
        job: &Job,
    ) -> Result<Image, E> {
        let (this, id, job_) = (self.clone(), id.clone(), job.clone());
        job.block(move || this.acquire(&id, &job_).map_err(E::from)).await
    }

    /// The newest that brings a kernel and is whole.
    pub fn with_kernel(&self, job: &Job) -> Result<Option<Image>, Error> {
        for image in self.list()? {
            let brings_one =
                image.manifest.is_ok_and(|manifest| matches!(manifest.boot, Boot::Kernel { .. }));
            if brings_one && let Ok(image) = self.acquire(&image.id, job) {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// Deletes an image. `in_use` names who runs from which image; those stay.
    pub fn delete(
        &self,
        id: &ImageId,
        in_use: &BTreeMap<ImageId, Vec<String>>,
    ) -> Result<(), Error> {
        if let Some(users) = in_use.get(id) {
            return Err(Error::InUse { id: id.to_string(), users: users.join(", ") });
        }
        let _lock = self.lock()?;
        let grave = self.directory.join(format!("{PARTIAL}{id}"));
        match fs::rename(self.path(id), &grave) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Unknown { name: id.to_string() });
            }
            Err(error) => return Err(Error::file("delete", self.path(id))(error)),
        }
        sync_directory(&self.directory)?;
        privilege::remove_tree(&grave).map_err(Error::file("delete", &grave))
    }

    /// An image made from these inputs, when there is a sound one.
    pub(super) fn by_inputs(&self, inputs: &ImageId, job: &Job) -> Result<Option<Image>, Error> {
        for image in self.list()? {
            if image.manifest.is_ok_and(|manifest| manifest.inputs == *inputs) {
                match self.acquire(&image.id, job) {
                    Ok(image) => return Ok(Some(image)),
                    Err(error) => {
                        job.check()?;
                        tracing::warn!(%error, "an image that would do is not used");
                    }
                }
            }
        }
        Ok(None)
    }

    /// Gives an image one more name. Others that have it keep it; the newest is found.
    pub(super) fn call(&self, image: Image, name: &ImageName) -> Result<Image, Error> {
        if image.manifest.names.contains(name) {
            return Ok(image);
        }
        let _lock = self.lock()?;
        let mut manifest = self.show(&image.manifest.digest)?;
        manifest.names.insert(name.clone());
        write_manifest(&self.path(&manifest.digest), &manifest)?;
        Ok(Image { manifest, ..image })
    }

    /// A place to make an image in.
    pub(super) fn draft(&self) -> Result<Draft, Error> {
        let _lock = self.lock()?;
        let made = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(&self.directory);
        let made = made.map_err(Error::file("make a directory in", &self.directory))?;
        // Programs of a user namespace have to get in, where it is not root's.
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(made.path(), mode).map_err(Error::file("open up", made.path()))?;
        let held = hold(made.path()).map_err(Error::file("lock", made.path()))?;
        let Some(held) = held else {
            return Err(Error::file("lock", made.path())(io::ErrorKind::WouldBlock.into()));
        };
        Ok(Draft { store: self.clone(), path: made.keep(), _held: held })
    }

    fn path(&self, id: &ImageId) -> PathBuf {
        self.directory.join(id.as_str())
    }

    fn entries(&self) -> Result<Vec<String>, Error> {
        let fail = || Error::file("list", &self.directory);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(fail())? {
            // A name that is no text is none of ours.
            names.extend(entry.map_err(fail())?.file_name().into_string());
        }
        Ok(names)
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.directory.join(LOCK);
        let file = OpenOptions::new().create(true).append(true).mode(0o644).open(&path);
        let file = file.map_err(Error::file("open", &path))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| Error::file("lock", &path)(errno.into()))?;
        Ok(file)
    }

    fn sweep(&self) -> Result<(), Error> {
        let _lock = self.lock()?;
        for name in self.entries()? {
            let path = self.directory.join(&name);
            if name.starts_with(PARTIAL)
                && hold(&path).map_err(Error::file("lock", &path))?.is_some()
            {
                sweep_away(&path);
            } else if name.parse::<ImageId>().is_ok()
                && let Err(error) = content::sweep_new(&path)
            {
                // One that is damaged holds up no other.
                tracing::warn!(image = name, %error, "what is half written stays in an image");
            }
        }
        Ok(())
    }
}

/// An image in the making. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Draft {
    store: Store,
    path: PathBuf,
    /// Locked: whoever sweeps sees that somebody works here.
    _held: File,
}

impl Draft {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it an image: files are digested and on the disk before the name is.
    /// `manifest` comes without digest and files.
    pub(super) fn seal(self, mut manifest: Manifest, job: &Job) -> Result<Image, Error> {
        let mut wanted = vec![DISK];
        if matches!(manifest.boot, Boot::Kernel { .. }) {
            wanted.extend([KERNEL, INITRD]);
        }
        for name in wanted {
            let path = self.path.join(name);
            let file = File::open(&path).map_err(Error::file("open", &path))?;
            file.sync_all().map_err(Error::file("write", &path))?;
            let mode = fs::Permissions::from_mode(0o444);
            file.set_permissions(mode).map_err(Error::file("protect", &path))?;
            let record = FileRecord::of(&path, || job.go_on());
            job.check()?;
            manifest.files.insert(name.to_owned(), record.map_err(Error::file("read", &path))?);
        }
        manifest.digest = manifest.identify()?;
        write_manifest(&self.path, &manifest)?;
        let _lock = self.store.lock()?;
        let path = self.store.path(&manifest.digest);
        if !path.exists() {
            fs::rename(&self.path, &path).map_err(Error::file("name", &path))?;
            sync_directory(&self.store.directory)?;
        }
        drop(_lock);
        let image = self.store.acquire(&manifest.digest, job)?;
        manifest.names.iter().try_fold(image, |image, name| self.store.call(image, name))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        match privilege::remove_tree(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "could not remove a half-made image; the next start tries again");
            }
            _ => {}
        }
    }
}

/// Removes what is half-made by a process that is gone. Programs it had started may still write
/// there until they notice; what can't be removed now is tried again at the next start.
fn sweep_away(path: &Path) {
    for tries_left in (0..TRIES).rev() {
        match privilege::remove_tree(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries_left > 0 => {
                std::thread::sleep(PAUSE);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "half-made files stay for now");
                return;
            }
            _ => return,
        }
    }
}

fn write_manifest(directory: &Path, manifest: &Manifest) -> Result<(), Error> {
    let path = directory.join(MANIFEST);
    content::write_json(&path, manifest, 0o644).map_err(Error::file("write", &path))
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    content::sync_directory(path).map_err(Error::file("write", path))
}
