//! Parts of images on disk, each once, within a number of bytes: the image that was not asked for
//! longest goes, and with it what no other is made of.
//!
//! ```text
//! blobs/DIGITS     a part, whole       images/DIGITS    what an image consists of; its time is
//! half-…           one under way                        that of its last use
//! ```
//!
//! Everything here blocks.
//!
//! # Invariants
//! - What is in `blobs` is what its name says, and on the disk for good.
//! - What somebody holds stays.

use super::Error;
use crate::clock;
use model::container_image::{BlobDigest, CONFIG_MAX, Parts};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tempfile::NamedTempFile;

const BLOBS: &str = "blobs";
const IMAGES: &str = "images";
/// What a part that a killed server left begins with.
const HALF: &str = "half-";

#[derive(Debug, Clone)]
pub(super) struct Kept {
    directory: PathBuf,
    bytes_max: u64,
    holders: Arc<Mutex<Holders>>,
}

/// Who holds which parts.
#[derive(Debug, Default)]
struct Holders {
    last: u64,
    held: BTreeMap<u64, BTreeSet<BlobDigest>>,
}

/// Parts of an image, which stay as long as this is there.
#[derive(Debug)]
pub(crate) struct Held {
    id: BlobDigest,
    parts: Parts,
    blobs: PathBuf,
    number: u64,
    holders: Arc<Mutex<Holders>>,
}

impl Held {
    /// What the host's engine knows the image by.
    pub(crate) fn id(&self) -> &BlobDigest {
        &self.id
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(super) fn path(&self, digest: &BlobDigest) -> PathBuf {
        self.blobs.join(digest.digits())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.held.remove(&self.number);
    }
}

/// A part that comes in.
#[derive(Debug)]
pub(super) struct Half {
    digest: BlobDigest,
    bytes: u64,
    written: u64,
    sum: Sha256,
    file: NamedTempFile,
}

impl Half {
    pub(super) fn digest(&self) -> &BlobDigest {
        &self.digest
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn is_whole(&self) -> bool {
        self.written == self.bytes
    }

    pub(super) fn add(&mut self, piece: &[u8]) -> Result<(), Error> {
        let more = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        let written = self.written.saturating_add(more);
        if written > self.bytes {
            return Err(Error::Damaged { digest: self.digest.clone() });
        }
        self.sum.update(piece);
        self.file.write_all(piece).map_err(Error::file("write", self.file.path()))?;
        self.written = written;
        Ok(())
    }
}

/// What is looked at of the description of an image.
#[derive(Deserialize)]
struct Config {
    rootfs: Rootfs,
}

#[derive(Deserialize)]
struct Rootfs {
    diff_ids: Vec<String>,
}

impl Kept {
    pub(super) fn new(directory: PathBuf, bytes_max: u64) -> Self {
        Self { directory, bytes_max, holders: Arc::default() }
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    fn blob(&self, digest: &BlobDigest) -> PathBuf {
        self.directory.join(BLOBS).join(digest.digits())
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the directories, and removes what a server that was killed left.
    pub(super) fn prepare(&self) -> Result<(), Error> {
        for name in [BLOBS, IMAGES] {
            let path = self.directory.join(name);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(Error::file("make the directory", path))?;
        }
        for (name, path) in entries(&self.directory)? {
            if name.to_string_lossy().starts_with(HALF) {
                fs::remove_file(&path).map_err(Error::file("remove", path))?;
            }
        }
        self.make_room()
    }

    /// Keeps these parts from being removed, whether they are there or not.
    pub(super) fn hold(&self, id: BlobDigest, parts: Parts) -> Held {
        let mut holders = self.holders();
        holders.last += 1;
        let number = holders.last;
        holders.held.insert(number, parts.distinct().into_keys().collect());
        drop(holders);
        let blobs = self.directory.join(BLOBS);
        Held { id, parts, blobs, number, holders: Arc::clone(&self.holders) }
    }

    /// An image that is here, with all it consists of.
    pub(super) fn image(&self, id: &BlobDigest) -> Result<Option<Held>, Error> {
        let path = self.directory.join(IMAGES).join(id.digits());
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(Error::file("open", &path))?,
        };
        // It was of use just now.
        file.set_modified(clock::file_time()).map_err(Error::file("write", &path))?;
        let Some(parts) = parts_of(file, &path)? else { return Ok(None) };
        let held = self.hold(id.clone(), parts);
        Ok(self.lacking(&held)?.is_empty().then_some(held))
    }

    /// Parts that are not here, with their bytes.
    pub(super) fn lacking(&self, held: &Held) -> Result<BTreeMap<BlobDigest, u64>, Error> {
        let mut lacking = held.parts.distinct();
        let mut here = BTreeSet::new();
        for (digest, bytes) in &lacking {
            let path = self.blob(digest);
            match fs::metadata(&path) {
                Ok(about) if about.len() == *bytes => {
                    here.insert(digest.clone());
                }
                Ok(_) => fs::remove_file(&path).map_err(Error::file("remove", &path))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::file("look at", path)(error)),
            }
        }
        lacking.retain(|digest, _| !here.contains(digest));
        Ok(lacking)
    }

    pub(super) fn begin(&self, digest: BlobDigest, bytes: u64) -> Result<Half, Error> {
        let file = tempfile::Builder::new().prefix(HALF).tempfile_in(&self.directory);
        let file = file.map_err(Error::file("write into", &self.directory))?;
        Ok(Half { digest, bytes, written: 0, sum: Sha256::new(), file })
    }

    /// Keeps a part that came in whole.
    pub(super) fn keep_part(&self, half: Half) -> Result<(), Error> {
        let Half { digest, sum, file, .. } = half;
        if BlobDigest::of_sum(&sum.finalize()).as_ref() != Some(&digest) {
            return Err(Error::Damaged { digest });
        }
        let path = self.blob(&digest);
        file.as_file().sync_data().map_err(Error::file("write", file.path()))?;
        file.persist(&path).map_err(|error| Error::file("write", &path)(error.error))?;
        Ok(())
    }

    /// Keeps an image all of whose parts are here, and makes room.
    pub(super) fn keep(&self, held: &Held) -> Result<(), Error> {
        if let Some((digest, _)) = self.lacking(held)?.pop_first() {
            return Err(Error::Lacking { digest });
        }
        let path = held.path(&held.parts.config().digest);
        let config = fs::read(&path).map_err(Error::file("read", &path))?;
        let layers = serde_json::from_slice(&config)
            .map(|Config { rootfs: Rootfs { diff_ids } }| diff_ids.len());
        if layers.ok() != Some(held.parts.layers().len()) {
            return Err(Error::Config);
        }
        let text = serde_json::to_vec(&held.parts).map_err(io::Error::from);
        let text = text.map_err(Error::file("write", &self.directory))?;
        let mut file = tempfile::Builder::new()
            .prefix(HALF)
            .tempfile_in(&self.directory)
            .map_err(Error::file("write into", &self.directory))?;
        let path = self.directory.join(IMAGES).join(held.id.digits());
        file.write_all(&text).map_err(Error::file("write", &path))?;
        file.as_file().set_modified(clock::file_time()).map_err(Error::file("write", &path))?;
        file.persist(&path).map_err(|error| Error::file("write", &path)(error.error))?;
        self.make_room()
    }

    /// Removes what is too much, and what nothing refers to.
    fn make_room(&self) -> Result<(), Error> {
        // Nobody begins to hold anything meanwhile.
        let holders = self.holders();
        let mut used: BTreeSet<BlobDigest> = holders.held.values().flatten().cloned().collect();
        let mut images = Vec::new();
        for (_, path) in entries(&self.directory.join(IMAGES))? {
            let file = File::open(&path).map_err(Error::file("open", &path))?;
            let used_at = file.metadata().and_then(|about| about.modified());
            let used_at = used_at.map_err(Error::file("look at", &path))?;
            // One that can't be read is none, and its parts are nobody's.
            let parts = parts_of(file, &path)?;
            images.push(Entry { path, used_at, parts });
        }
        for path in surplus(images, &mut used, self.bytes_max) {
            fs::remove_file(&path).map_err(Error::file("remove", path))?;
        }
        let used: BTreeSet<&str> = used.iter().map(BlobDigest::digits).collect();
        for (name, path) in entries(&self.directory.join(BLOBS))? {
            if !used.contains(name.to_string_lossy().as_ref()) {
                fs::remove_file(&path).map_err(Error::file("remove", path))?;
            }
        }
        drop(holders);
        Ok(())
    }
}

/// An image that is kept, as retention sees it.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    used_at: SystemTime,
    parts: Option<Parts>,
}

/// Those that go, so that the others have room. What the others use is added to what is used.
fn surplus(
    mut images: Vec<Entry>,
    used: &mut BTreeSet<BlobDigest>,
    bytes_max: u64,
) -> Vec<PathBuf> {
    images.sort_by(|a, b| b.used_at.cmp(&a.used_at).then_with(|| a.path.cmp(&b.path)));
    let mut bytes: u64 = 0;
    let mut counted = BTreeSet::new();
    let mut gone = Vec::new();
    for Entry { path, parts, .. } in images {
        let Some(parts) = parts else {
            gone.push(path);
            continue;
        };
        let parts = parts.distinct();
        let is_new = |digest: &&BlobDigest| !counted.contains(*digest);
        let more = parts.keys().filter(is_new).filter_map(|digest| parts.get(digest));
        let with = more.fold(bytes, |sum, bytes| sum.saturating_add(*bytes));
        if with > bytes_max && !parts.keys().all(|digest| used.contains(digest)) {
            gone.push(path);
            continue;
        }
        bytes = with;
        counted.extend(parts.keys().cloned());
        used.extend(parts.into_keys());
    }
    gone
}

/// Nothing for a file that does not say it.
fn parts_of(file: File, path: &Path) -> Result<Option<Parts>, Error> {
    let mut text = Vec::new();
    file.take(CONFIG_MAX).read_to_end(&mut text).map_err(Error::file("read", path))?;
    Ok(serde_json::from_slice(&text).ok())
}

fn entries(directory: &Path) -> Result<Vec<(OsString, PathBuf)>, Error> {
    let failed = || Error::file("read the directory", directory);
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        entries.push((entry.file_name(), entry.path()));
    }
    Ok(entries)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use model::container_image::Part;

    pub(in crate::container_images) fn part(text: &str) -> Part {
        let digest = BlobDigest::of_sum(&Sha256::digest(text)).unwrap();
        Part { digest, bytes: text.len().try_into().unwrap() }
    }

    fn config(layers: usize) -> String {
        serde_json::json!({"rootfs": {"diff_ids": vec!["x"; layers]}}).to_string()
    }

    /// Keeps an image of these layers.
    fn put(kept: &Kept, name: &str, layers: &[&str]) -> BlobDigest {
        let config = config(layers.len());
        let id = part(name).digest;
        let parts = Parts::new(part(&config), layers.iter().map(|text| part(text)).collect());
        let held = kept.hold(id.clone(), parts.unwrap());
        for (digest, bytes) in kept.lacking(&held).unwrap() {
            let texts = layers.iter().copied().chain([config.as_str()]);
            let text = texts.into_iter().find(|text| part(text).digest == digest).unwrap();
            let mut half = kept.begin(digest, bytes).unwrap();
            text.as_bytes().chunks(3).for_each(|piece| half.add(piece).unwrap());
            kept.keep_part(half).unwrap();
        }
        kept.keep(&held).unwrap();
        id
    }

    fn kept(bytes_max: u64) -> (tempfile::TempDir, Kept) {
        let root = tempfile::tempdir().unwrap();
        let kept = Kept::new(root.path().join("kept"), bytes_max);
        kept.prepare().unwrap();
        (root, kept)
    }

    fn blobs(kept: &Kept) -> usize {
        entries(&kept.directory.join(BLOBS)).unwrap().len()
    }

    #[test]
    fn each_part_is_kept_once_and_goes_with_the_last_image_of_it() {
        let (_root, kept) = kept(60);
        let first = put(&kept, "first", &["base", "web"]);
        assert_eq!(blobs(&kept), 3);
        let second = put(&kept, "second", &["base", "app"]);
        assert_eq!(blobs(&kept), 4, "base and the description are the same");
        assert!(kept.image(&first).unwrap().is_some());
        // Too large for both beside it.
        let third = put(&kept, "third", &["something that is larger"]);
        assert!(kept.image(&second).unwrap().is_none());
        assert!(kept.image(&third).unwrap().is_some());
        assert!(kept.image(&part("unknown").digest).unwrap().is_none());
    }

    #[test]
    fn what_is_held_stays() {
        let (_root, kept) = kept(1);
        let config = config(1);
        let parts = Parts::new(part(&config), vec![part("layer")]).unwrap();
        let id = put(&kept, "image", &["layer"]);
        kept.prepare().unwrap();
        assert!(kept.image(&id).unwrap().is_none(), "too large to be kept");
        let held = kept.hold(id, parts);
        put(&kept, "image", &["layer"]);
        kept.prepare().unwrap();
        assert_eq!(blobs(&kept), 2);
        drop(held);
        kept.prepare().unwrap();
        assert_eq!(blobs(&kept), 0);
    }

    #[test]
    fn what_is_damaged_is_refused_or_had_anew() {
        let (_root, kept) = kept(1 << 20);
        let mut half = kept.begin(part("layer").digest, 5).unwrap();
        half.add(b"lay").unwrap();
        assert!(!half.is_whole() && half.written() == 3);
        assert!(matches!(half.add(b"erer"), Err(Error::Damaged { .. })), "more than was said");
        half.add(b"ar").unwrap();
        assert!(matches!(kept.keep_part(half), Err(Error::Damaged { .. })));
        let held = kept.hold(part("x").digest, Parts::new(part("{}"), vec![]).unwrap());
        assert!(matches!(kept.keep(&held), Err(Error::Lacking { .. })));
        let mut half = kept.begin(part("{}").digest, 2).unwrap();
        half.add(b"{}").unwrap();
        kept.keep_part(half).unwrap();
        assert!(matches!(kept.keep(&held), Err(Error::Config)));
        drop(held);
        let id = put(&kept, "image", &["layer"]);
        fs::write(kept.blob(&part("layer").digest), "cut").unwrap();
        assert!(kept.image(&id).unwrap().is_none());
        put(&kept, "image", &["layer"]);
        assert!(kept.image(&id).unwrap().is_some());
        // What a killed server left goes.
        std::mem::forget(kept.begin(part("half").digest, 4).unwrap());
        fs::write(kept.directory.join(IMAGES).join("odd"), "no parts").unwrap();
        kept.prepare().unwrap();
        let names: Vec<_> = entries(&kept.directory).unwrap();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(entries(&kept.directory.join(IMAGES)).unwrap().len(), 1);
    }
}
