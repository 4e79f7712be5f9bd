//! The layers of machines' disks: making one, finding those nobody needs, merging those that
//! only hold up another.
//!
//! ```text
//! image ◄─ 1 (sealed) ◄─ 2 (sealed) ◄─ 4 (active)
//!             ▲              ▲
//!             snapshot a     snapshot b        a is deleted: 1 is merged into 2, and is gone
//! ```
//!
//! # Invariants
//! - A layer that a snapshot, the machine or a clone stands on is never removed or changed; it
//!   may be replaced by one that holds the same disk.

use super::Qemu;
use super::home::{Below, Definition, Home, LAYERS, Layer, remove};
use super::layer;
use super::save::{SPARE_BYTES, or_full, room};
use crate::content::{self, FileRecord};
use crate::image::{self, MachineName};
use crate::job::{Job, Tool};
use crate::machine::Error;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const MERGED: &str = "merged";

fn tool() -> Tool {
    Tool::new("qemu-img", "qemu-utils")
}

/// Makes an empty layer over another disk. Layers name each other relative to themselves, so
/// that the whole directory can be moved.
pub(super) async fn create(
    path: &Path,
    below: &Path,
    bytes: Option<u64>,
    job: &Job,
) -> Result<(), Error> {
    let (path, below) = (path.to_owned(), below.to_owned());
    job.block(move || {
        // Of an attempt that had no room to be written down.
        remove(&path)?;
        layer::create(&path, &below, &relative(&path, &below), bytes)
    })
    .await
}

/// How `to` is called from the directory that `from` is in. Both are absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let base: Vec<_> = from.parent().unwrap_or(from).components().collect();
    let to: Vec<_> = to.components().collect();
    let common = base.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = base.iter().skip(common).map(|_| Path::new(".."));
    up.chain(to.iter().skip(common).map(|part| part.as_ref())).collect()
}

impl Qemu {
    /// The file that a layer of this machine stands on.
    pub(super) fn below(&self, home: &Home, definition: &Definition, layer: &Layer) -> PathBuf {
        match &layer.below {
            Below::Image => {
                let id = definition.hardware.image.as_str();
                self.images.directory().join(id).join(image::DISK)
            }
            Below::Layer(number) => home.layer(*number),
            Below::Of { machine, layer } => self.home(machine).layer(*layer),
        }
    }

    /// Compares the layers from this one down with what they were when they were sealed.
    pub(super) fn verify(
        &self,
        home: &Home,
        definition: &Definition,
        top: u64,
        job: &Job,
    ) -> Result<(), Error> {
        let mut at = top;
        loop {
            match self.verify_one(home, definition, at, job)? {
                Below::Layer(below) => at = *below,
                Below::Image => return Ok(()),
                Below::Of { machine, layer } => {
                    return self.verify_origin(&self.home(machine), *layer, job);
                }
            }
        }
    }

    /// The same of a machine whose turn another one may have, and which it merges meanwhile.
    pub(super) fn verify_origin(&self, home: &Home, top: u64, job: &Job) -> Result<(), Error> {
        let mut definition = home.load()?;
        loop {
            let found = self.verify(home, &definition, top, job);
            let Err(Error::Damaged { .. }) = found else { return found };
            let now = home.load()?;
            if now.layers == definition.layers {
                return found;
            }
            definition = now;
        }
    }

    /// Compares one layer with what it was when it was sealed; what it stands on is told.
    fn verify_one<'a>(
        &self,
        home: &Home,
        definition: &'a Definition,
        number: u64,
        job: &Job,
    ) -> Result<&'a Below, Error> {
        let path = home.layer(number);
        let damaged = |what: &str| Error::Damaged { path: path.clone(), what: what.to_owned() };
        let Some(layer) = definition.layers.get(&number) else {
            return Err(damaged("the definition does not know this layer"));
        };
        let Some(sealed) = &layer.sealed else {
            return Err(damaged("this layer was never finished"));
        };
        // While it is being merged the file may be the new one before that is written down.
        let check = |record| self.verified.check(&path, record, || job.go_on());
        let found = match (check(sealed), &layer.merged) {
            (Err(_), Some(merged)) => check(merged),
            (found, _) => found,
        };
        job.check()?;
        found.map_err(|what| damaged(&what))?;
        Ok(&layer.below)
    }

    /// Digests a layer that is no longer written to.
    pub(super) fn seal(&self, home: &Home, number: u64, job: &Job) -> Result<FileRecord, Error> {
        let path = home.layer(number);
        let failed = || Error::file("read", &path);
        let synced = fs::File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(Error::file("write", &path))?;
        let record = FileRecord::of(&path, || job.go_on());
        job.check()?;
        let record = record.map_err(failed())?;
        self.verified.know(&path).map_err(failed())?;
        Ok(record)
    }

    /// Clones that began from layers of this machine, and which.
    pub(super) fn clones_of(
        &self,
        name: &MachineName,
    ) -> Result<BTreeMap<MachineName, BTreeSet<u64>>, Error> {
        let mut clones: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
        for other in self.names()? {
            if let Some(layers) = self.stands_on(&self.home(&other))?.remove(name) {
                clones.insert(other, layers);
            }
        }
        Ok(clones)
    }

    /// Layers of other machines that this one's lie over. Where the definition is damaged, the
    /// layers tell it themselves; one that does not can't be used, and so stands on nothing.
    ///
    /// # Errors
    /// When it is not known now.
    pub(super) fn stands_on(
        &self,
        home: &Home,
    ) -> Result<BTreeMap<MachineName, BTreeSet<u64>>, Error> {
        let mut found: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
        match home.load() {
            Ok(definition) => {
                for layer in definition.layers.into_values() {
                    if let Below::Of { machine, layer } = layer.below {
                        found.entry(machine).or_default().insert(layer);
                    }
                }
            }
            Err(Error::Definition { .. } | Error::Unknown { .. }) => {
                for path in home.layers() {
                    if let Some((machine, layer)) = layer::below(&path).as_deref().and_then(other) {
                        found.entry(machine).or_default().insert(layer);
                    }
                }
            }
            Err(error) => return Err(error),
        }
        Ok(found)
    }

    /// Layers that something stands on by itself: snapshots, clones, the machine.
    fn roots(&self, home: &Home, definition: &Definition) -> Result<BTreeSet<u64>, Error> {
        let mut roots = BTreeSet::from([definition.active]);
        for snapshot in home.snapshots()? {
            match home.manifest(&snapshot) {
                Ok(manifest) => drop(roots.insert(manifest.layer)),
                // It may stand on any of them.
                Err(_damaged) => roots.extend(definition.layers.keys()),
            }
        }
        match self.clones_of(&home.name) {
            Ok(clones) => roots.extend(clones.into_values().flatten()),
            // One of another machine may stand on any of them.
            Err(_unknown) => roots.extend(definition.layers.keys()),
        }
        Ok(roots)
    }

    /// Removes layers that nothing stands on.
    pub(super) fn collect(&self, home: &Home) -> Result<(), Error> {
        let mut definition = home.load()?;
        let mut kept = BTreeSet::new();
        for root in self.roots(home, &definition)? {
            let mut at = Some(root);
            while let Some(number) = at.take().filter(|number| kept.insert(*number)) {
                at = match definition.layers.get(&number).map(|layer| &layer.below) {
                    Some(Below::Layer(below)) => Some(*below),
                    _ => None,
                };
            }
        }
        let before = definition.layers.len();
        definition.layers.retain(|number, _| kept.contains(number));
        if definition.layers.len() != before {
            home.store(&definition)?;
        }
        home.sweep(&definition)
    }

    /// Merges layers that nothing needs but the one layer above them. What the machine writes
    /// to now stays as it is, until it is sealed. So do layers that are damaged, whose damage
    /// would be sealed with them; and where there is no room all wait for another time.
    pub(super) async fn merge(&self, home: &Home, job: &Job) -> Result<(), Error> {
        let mut left = BTreeSet::new();
        loop {
            let definition = home.load()?;
            let mut roots = self.roots(home, &definition)?;
            roots.extend(&left);
            let Some((upper, lower)) = mergeable(&definition, &roots) else { break };
            job.step("Merging layers of the disk");
            match self.merge_one(home, definition, (upper, lower), job).await {
                Ok(()) => {}
                Err(error @ Error::Damaged { .. }) => {
                    job.line(format!("two layers of the disk stay apart: {error}"));
                    left.insert(lower);
                }
                Err(error @ Error::Full { .. }) => {
                    job.line(format!(
                        "layers of the disk are merged when the next snapshot is deleted: {error}"
                    ));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.let_go_with_clones(home).await
    }

    async fn merge_one(
        &self,
        home: &Home,
        definition: Definition,
        (upper, lower): (u64, u64),
        job: &Job,
    ) -> Result<(), Error> {
        let Some(deep) = definition.layers.get(&lower).cloned() else { return Ok(()) };
        let (path, below) = (home.layer(upper), self.below(home, &definition, &deep));
        let merged = Merged(path.with_extension(MERGED));
        let to = merged.0.clone();
        let (this, at) = (self.clone(), home.clone());
        let (from, job_) = (path.clone(), job.clone());
        let copy = move || {
            for number in [upper, lower] {
                this.verify_one(&at, &definition, number, &job_)?;
            }
            let needed = [upper, lower].map(|number| length(&at.layer(number)));
            room(&at, needed.into_iter().sum::<u64>() + SPARE_BYTES)?;
            let copied = content::copy(&from, &merged.0, || job_.go_on());
            job_.check()?;
            match copied {
                Ok(()) => Ok(merged),
                Err(error) => Err(or_full(&at, Error::file("write", &merged.0)(error))),
            }
        };
        let merged = job.block(copy).await?;
        let tool = tool().args(["rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
        let rebased = job.run(tool.arg(relative(&to, &below)).arg(&to)).await;
        rebased.map_err(|error| or_full(home, error.into()))?;
        let (at, job_) = (home.clone(), job.clone());
        let digest = move || {
            let synced = fs::File::open(&to).and_then(|file| file.sync_all());
            synced.map_err(|error| or_full(&at, Error::file("write", &to)(error)))?;
            let record = FileRecord::of(&to, || job_.go_on());
            job_.check()?;
            record.map_err(Error::file("read", &to))
        };
        let record = job.block(digest).await?;
        // From here on a crash is put right by `finish_merges`.
        home.change(|definition| {
            if let Some(layer) = definition.layers.get_mut(&upper) {
                layer.merged = Some(record);
            }
        })?;
        fs::rename(&merged.0, &path).map_err(Error::file("name", &path))?;
        self.verified.know(&path).map_err(Error::file("look at", &path))?;
        self.finish_merges(home)
    }

    /// Settles layers that were about to be replaced: the file is the old one or the new one.
    pub(super) fn finish_merges(&self, home: &Home) -> Result<(), Error> {
        let mut definition = home.load()?;
        let belows: BTreeMap<u64, Below> = definition
            .layers
            .iter()
            .map(|(number, layer)| (*number, layer.below.clone()))
            .collect();
        let mut changed = false;
        for (number, layer) in &mut definition.layers {
            let Some(record) = layer.merged.take() else { continue };
            changed = true;
            let path = home.layer(*number);
            if let (Ok(()), Below::Layer(lower)) =
                (self.verified.check(&path, &record, || Ok(())), &layer.below)
                && let Some(below) = belows.get(lower)
            {
                layer.sealed = Some(record);
                layer.below = below.clone();
            }
            remove(&path.with_extension(MERGED))?;
        }
        if changed {
            content::sync_directory(&home.dir.join(LAYERS))
                .map_err(Error::file("write", &home.dir))?;
            home.store(&definition)?;
        }
        self.collect(home)
    }
}

/// What a layer is to be replaced with, until it has that one's name. However that ends, nothing
/// of it is left.
struct Merged(PathBuf);

impl Drop for Merged {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::warn!(error = %model::with_causes(&error), "what was left of a merge goes with the next change of its machine");
        }
    }
}

/// In bytes; of a file that can't be looked at nothing is known.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

/// The layer of another machine that is called so from a machine's layers, as by [`relative`].
fn other(called: &Path) -> Option<(MachineName, u64)> {
    let mut parts = called.strip_prefix("../..").ok()?.iter().map(|part| part.to_str());
    let (machine, layers, file) = (parts.next()??, parts.next()??, parts.next()??);
    let layer = file.strip_suffix(".qcow2")?.parse().ok()?;
    (layers == LAYERS && parts.next().is_none()).then_some((machine.parse().ok()?, layer))
}

/// A sealed layer, and the one below it that nothing else stands on.
fn mergeable(definition: &Definition, roots: &BTreeSet<u64>) -> Option<(u64, u64)> {
    let mut above: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (number, layer) in &definition.layers {
        if let Below::Layer(below) = layer.below {
            above.entry(below).or_default().push(*number);
        }
    }
    above.into_iter().find_map(|(lower, upper)| match upper.as_slice() {
        [upper] if !roots.contains(&lower) && *upper != definition.active => Some((*upper, lower)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Network;
    use crate::qemu::fake;
    use crate::qemu::home::Hardware;

    #[test]
    fn paths_are_named_from_where_they_are_used() {
        let check = |from: &str, to: &str, wanted: &str| {
            assert_eq!(relative(Path::new(from), Path::new(to)), Path::new(wanted));
        };
        check("/d/twins/a/layers/2.qcow2", "/d/twins/a/layers/1.qcow2", "1.qcow2");
        check("/d/twins/a/layers/1.qcow2", "/d/twins/b/layers/1.qcow2", "../../b/layers/1.qcow2");
        check("/d/twins/a/layers/1.qcow2", "/i/x/disk.qcow2", "../../../../i/x/disk.qcow2");
        let found =
            |called: &str| other(Path::new(called)).map(|(of, layer)| (of.to_string(), layer));
        assert_eq!(found("../../b/layers/12.qcow2"), Some(("b".to_owned(), 12)));
        for none in ["1.qcow2", "../../../i/x/disk.qcow2", "../../b/x/1.qcow2", "../../b/layers"] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    /// 1 ◄─ 2 ◄─ 3 ◄─ 4 (active), 2 ◄─ 5
    fn layered() -> Definition {
        let hardware = Hardware {
            image: "0".repeat(64).parse().unwrap(),
            memory_bytes: 1 << 30,
            processors: 1,
            mac: "52:54:00:00:00:01".parse().unwrap(),
        };
        let mut definition = Definition::new(hardware, Network::Isolated, Below::Image);
        for (number, below) in [(2, 1), (3, 2), (4, 3), (5, 2)] {
            let layer = Layer { below: Below::Layer(below), sealed: None, merged: None };
            definition.layers.insert(number, layer);
        }
        definition.active = 4;
        definition
    }

    #[tokio::test]
    async fn a_layer_that_is_being_merged_is_whole_before_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = fake::qemu(dir.path());
        let home = fake::machine(&qemu, "one", Below::Image);
        let (path, merged) = (home.layer(1), dir.path().join("merged"));
        fs::write(&merged, "another file of the same disk").unwrap();
        let [sealed, new] = [&path, &merged].map(|at| FileRecord::of(at, || Ok(())).unwrap());
        home.change(|definition| {
            let layer = definition.layers.get_mut(&1).unwrap();
            (layer.sealed, layer.merged) = (Some(sealed), Some(new));
        })
        .unwrap();
        let verify = || qemu.verify(&home, &home.load().unwrap(), 1, &fake::job());
        verify().unwrap();
        fs::rename(&merged, &path).unwrap();
        verify().unwrap();
        fs::write(&path, "neither of the two").unwrap();
        assert!(matches!(verify(), Err(Error::Damaged { .. })));
    }

    #[test]
    fn layers_that_were_never_finished_are_known() {
        let mut definition = layered();
        assert_eq!(definition.unsealed(5), [5, 2, 1]);
        let digest = "0".repeat(64).parse().unwrap();
        let record = FileRecord { length_bytes: 0, digest };
        definition.layers.get_mut(&2).unwrap().sealed = Some(record);
        assert_eq!(definition.unsealed(4), [4, 3, 1]);
    }

    #[test]
    fn only_what_one_layer_alone_stands_on_is_merged() {
        let definition = layered();
        let check = |roots: &[u64], wanted| {
            let roots = roots.iter().copied().collect();
            assert_eq!(mergeable(&definition, &roots), wanted, "{roots:?}");
        };
        check(&[1, 2, 3, 4, 5], None);
        check(&[2, 3, 4, 5], Some((2, 1)));
        // Two stand on 2, and what stands on 3 is still written to.
        check(&[1, 4, 5], None);
    }
}
