//! Reads the archive of an image while it comes in: a tar of files, one of which says which others
//! are the image. Pure.
//!
//! Engines write it in two ways: a directory for each layer, and one of blobs by digest. Both have
//! a `manifest.json`, which is what counts here.
//!
//! # Invariants
//! - Names are keys and never paths; those that lead elsewhere are refused all the same.
//! - Memory is bounded by [`ENTRIES_MAX`] and [`MANIFEST_MAX`], whatever the archive says.

use model::container_image::{BlobDigest, Part, Parts, PartsError};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Files and links of an archive; an image of 512 layers has four for each.
pub const ENTRIES_MAX: usize = 10_000;
/// Bytes of the file that says what the image is.
pub const MANIFEST_MAX: u64 = 1 << 20;
/// Bytes of the records before an entry that say more of it.
const RECORDS_MAX: u64 = 64 << 10;
/// Bytes of a name.
const NAME_MAX: usize = 512;
/// What entries are padded to.
const BLOCK: usize = 512;
/// Links from one to the next.
const LINKS_MAX: usize = 8;
const MANIFEST: &str = "manifest.json";

/// Why it is no archive of an image, or none that is taken.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("it ends too early")]
    Cut,
    #[error("the head of an entry is damaged")]
    Head,
    #[error("it has an entry of kind {0:?}, which no image's archive has")]
    Kind(char),
    #[error("it has an entry with the name {0:?}, which leads elsewhere")]
    Name(String),
    #[error("it has more than {ENTRIES_MAX} entries")]
    Entries,
    #[error("it has the entry {0:?} twice")]
    Twice(String),
    #[error("it has more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("it does not say which files are the image, or of one image alone")]
    Manifest,
    #[error("it lacks the file {0:?}, which is of the image")]
    Missing(String),
    #[error(transparent)]
    Parts(#[from] PartsError),
}

/// What comes next of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'c> {
    /// A file begins, with so many bytes.
    File { name: String, bytes: u64 },
    /// Some of its bytes.
    Data(&'c [u8]),
    /// It is whole.
    Ended,
    /// A name for a file that has another, too.
    Link { name: String, target: String },
}

/// Reads a tar, chunk by chunk.
#[derive(Debug)]
pub struct Reader {
    state: State,
    head: Vec<u8>,
    /// Bytes that are still to come before it is too large.
    room: u64,
    limit: u64,
    entries: usize,
    /// What records say of the next entry.
    said: Said,
}

#[derive(Debug, Default)]
struct Said {
    name: Option<String>,
    target: Option<String>,
    bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between entries.
    Head,
    /// In a file with this much to come, and then the padding.
    File {
        left: u64,
        padding: u64,
    },
    /// In records, which are collected; or in ones for all entries, which are passed over.
    Records {
        left: u64,
        padding: u64,
        counts: bool,
    },
    Padding(u64),
    /// What comes behind its end does not count.
    Over,
}

impl Reader {
    /// For archives of at most so many bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let head = Vec::with_capacity(BLOCK);
        Self { state: State::Head, head, room: limit, limit, entries: 0, said: Said::default() }
    }

    /// Takes from the input what makes the next piece; nothing when there is not enough of it.
    ///
    /// # Errors
    /// When it is no archive that is taken. Nothing more may be read then.
    pub fn next<'c>(&mut self, input: &mut &'c [u8]) -> Result<Option<Piece<'c>>, Fault> {
        loop {
            match self.state {
                State::File { left: 0, padding } => {
                    self.state = State::Padding(padding);
                    return Ok(Some(Piece::Ended));
                }
                State::Padding(0) => self.state = State::Head,
                State::Records { left: 0, padding, counts } => {
                    let records = std::mem::take(&mut self.head);
                    if counts {
                        self.said.take(&records)?;
                    }
                    self.state = State::Padding(padding);
                }
                State::Over => {
                    *input = &[];
                    return Ok(None);
                }
                _ if input.is_empty() => return Ok(None),
                State::File { left, padding } => {
                    let data = self.some(input, left)?;
                    let left = left.saturating_sub(length(data));
                    self.state = State::File { left, padding };
                    return Ok(Some(Piece::Data(data)));
                }
                State::Records { left, padding, counts } => {
                    let data = self.some(input, left)?;
                    self.head.extend_from_slice(data);
                    let left = left.saturating_sub(length(data));
                    self.state = State::Records { left, padding, counts };
                }
                State::Padding(left) => {
                    let data = self.some(input, left)?;
                    self.state = State::Padding(left.saturating_sub(length(data)));
                }
                State::Head => {
                    let wanted = length(&[0; BLOCK]).saturating_sub(length(&self.head));
                    let data = self.some(input, wanted)?;
                    self.head.extend_from_slice(data);
                    if self.head.len() == BLOCK {
                        let head = std::mem::take(&mut self.head);
                        if let Some(piece) = self.begin(&head)? {
                            return Ok(Some(piece));
                        }
                    }
                }
            }
        }
    }

    /// # Errors
    /// When the archive has not come to its end.
    pub fn finish(&self) -> Result<(), Fault> {
        match self.state {
            State::Over => Ok(()),
            _ => Err(Fault::Cut),
        }
    }

    /// So many bytes of the input, or fewer.
    fn some<'c>(&mut self, input: &mut &'c [u8], wanted: u64) -> Result<&'c [u8], Fault> {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(input.len());
        let (data, rest) = input.split_at(wanted);
        *input = rest;
        let room = self.room.checked_sub(length(data));
        self.room = room.ok_or(Fault::TooLarge { limit: self.limit })?;
        Ok(data)
    }

    /// An entry, by its head.
    fn begin(&mut self, head: &[u8]) -> Result<Option<Piece<'static>>, Fault> {
        if head.iter().all(|byte| *byte == 0) {
            self.state = State::Over;
            return Ok(None);
        }
        let head = Head::read(head).ok_or(Fault::Head)?;
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(Fault::Entries);
        }
        let is_records = matches!(head.kind, b'x' | b'g');
        let bytes = match self.said.bytes.take() {
            Some(bytes) if !is_records => bytes,
            _ => head.bytes,
        };
        let whole = bytes.checked_next_multiple_of(length(&[0; BLOCK]));
        let whole = whole.filter(|_| bytes <= self.room);
        let whole = whole.ok_or(Fault::TooLarge { limit: self.limit })?;
        let padding = whole.saturating_sub(bytes);
        if is_records {
            if bytes > RECORDS_MAX {
                return Err(Fault::Head);
            }
            self.state = State::Records { left: bytes, padding, counts: head.kind == b'x' };
            return Ok(None);
        }
        let said = std::mem::take(&mut self.said);
        let name = said.name.unwrap_or(head.name);
        let name = plain(&name, &[]).ok_or(Fault::Name(name))?;
        match head.kind {
            b'0' | 0 => {
                self.state = State::File { left: bytes, padding };
                Ok(Some(Piece::File { name, bytes }))
            }
            b'5' if bytes == 0 => Ok(None),
            b'2' if bytes == 0 => {
                let target = said.target.unwrap_or(head.target);
                let directory: Vec<&str> = name.split('/').collect();
                let directory = directory.split_last().map_or(&[][..], |(_, before)| before);
                let target = plain(&target, directory).ok_or(Fault::Name(target))?;
                Ok(Some(Piece::Link { name, target }))
            }
            kind => Err(Fault::Kind(char::from(kind))),
        }
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// A name as seen from the top, of one that is seen from a directory; nothing for one that leads
/// out of it.
fn plain(name: &str, directory: &[&str]) -> Option<String> {
    if name.len() > NAME_MAX
        || name.starts_with('/')
        || name.chars().any(|c| c.is_control() || c == '\\')
    {
        return None;
    }
    let mut parts = directory.to_vec();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            // Only links go up, within the archive.
            ".." if directory.is_empty() => return None,
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty() || name == "." || name == "./").then(|| parts.join("/"))
}

/// What the head of an entry says.
struct Head {
    name: String,
    bytes: u64,
    kind: u8,
    target: String,
}

impl Head {
    fn read(head: &[u8]) -> Option<Self> {
        let sum = octal(head.get(148..156)?)?;
        let counted = |(at, byte): (usize, &u8)| match (148..156).contains(&at) {
            true => u64::from(b' '),
            false => u64::from(*byte),
        };
        if head.iter().enumerate().map(counted).sum::<u64>() != sum {
            return None;
        }
        let name = text(head.get(..100)?)?;
        let is_new = head.get(257..262)? == b"ustar";
        let before = if is_new { text(head.get(345..500)?)? } else { String::new() };
        Some(Self {
            name: if before.is_empty() { name } else { format!("{before}/{name}") },
            bytes: number(head.get(124..136)?)?,
            kind: *head.get(156)?,
            target: text(head.get(157..257)?)?,
        })
    }
}

/// Up to its zero byte.
fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    std::str::from_utf8(field.get(..end)?).ok().map(str::to_owned)
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = text(field)?;
    u64::from_str_radix(digits.trim_matches(' '), 8).ok()
}

/// In octal, or, where that is too short, the bytes of a number with its first bit set.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first() {
        Some((0x80, rest)) => {
            let (high, low) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
            let low = u64::from_be_bytes(low.try_into().ok()?);
            high.iter().all(|byte| *byte == 0).then_some(low)
        }
        _ => octal(field),
    }
}

impl Said {
    /// Records of the form `LENGTH KEY=VALUE\n`, where the length is that of all of it.
    fn take(&mut self, records: &[u8]) -> Result<(), Fault> {
        let mut rest = records;
        while !rest.is_empty() {
            let record = record(&mut rest).ok_or(Fault::Head)?;
            match record {
                ("path", value) => self.name = Some(value.to_owned()),
                ("linkpath", value) => self.target = Some(value.to_owned()),
                ("size", value) => self.bytes = Some(value.parse().map_err(|_size| Fault::Head)?),
                _ => {}
            }
        }
        Ok(())
    }
}

fn record<'r>(rest: &mut &'r [u8]) -> Option<(&'r str, &'r str)> {
    let space = rest.iter().position(|byte| *byte == b' ')?;
    let whole: usize = std::str::from_utf8(rest.get(..space)?).ok()?.parse().ok()?;
    let (record, after) = rest.split_at_checked(whole)?;
    *rest = after;
    std::str::from_utf8(record.get(space + 1..)?).ok()?.strip_suffix('\n')?.split_once('=')
}

/// What an archive holds: each file by its digest, and which of them are the image.
#[derive(Debug, Default)]
pub struct Listing {
    files: BTreeMap<String, Part>,
    links: BTreeMap<String, String>,
    manifest: Vec<u8>,
    /// The file that is being read.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    name: String,
    bytes: u64,
    sum: Sha256,
}

/// An image as its archive has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    pub parts: Parts,
    /// Files that are parts of it, by name.
    pub files: BTreeMap<String, Part>,
}

/// A line of the file that says what the image is.
#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

impl Listing {
    /// # Errors
    /// When the archive is none of an image.
    pub fn take(&mut self, piece: Piece<'_>) -> Result<(), Fault> {
        match piece {
            Piece::File { name, bytes } => {
                if name == MANIFEST && bytes > MANIFEST_MAX {
                    return Err(Fault::Manifest);
                }
                self.is_new(&name)?;
                self.open = Some(Open { name, bytes, sum: Sha256::new() });
            }
            Piece::Data(data) => {
                if let Some(open) = &mut self.open {
                    open.sum.update(data);
                    if open.name == MANIFEST {
                        self.manifest.extend_from_slice(data);
                    }
                }
            }
            Piece::Ended => {
                if let Some(Open { name, bytes, sum }) = self.open.take() {
                    let digest = BlobDigest::of_sum(&sum.finalize()).ok_or(Fault::Head)?;
                    self.files.insert(name, Part { digest, bytes });
                }
            }
            Piece::Link { name, target } => {
                self.is_new(&name)?;
                self.links.insert(name, target);
            }
        }
        Ok(())
    }

    fn is_new(&self, name: &str) -> Result<(), Fault> {
        match self.files.contains_key(name) || self.links.contains_key(name) {
            true => Err(Fault::Twice(name.to_owned())),
            false => Ok(()),
        }
    }

    /// The image, of an archive that was read to its end.
    ///
    /// # Errors
    /// When it is none, or lacks something.
    pub fn finish(self) -> Result<Contents, Fault> {
        let manifests: Vec<Manifest> =
            serde_json::from_slice(&self.manifest).map_err(|_form| Fault::Manifest)?;
        let [Manifest { config, layers }] = manifests.as_slice() else {
            return Err(Fault::Manifest);
        };
        let mut files = BTreeMap::new();
        let mut part = |name: &String| -> Result<Part, Fault> {
            let (name, part) = self.find(name)?;
            files.insert(name.to_owned(), part.clone());
            Ok(part.clone())
        };
        let config = part(config)?;
        let layers = layers.iter().flatten().map(&mut part).collect::<Result<_, _>>()?;
        Ok(Contents { parts: Parts::new(config, layers)?, files })
    }

    fn find(&self, wanted: &str) -> Result<(&str, &Part), Fault> {
        let missing = || Fault::Missing(wanted.chars().take(NAME_MAX).collect());
        let mut name = wanted;
        for _hop in 0..LINKS_MAX {
            if let Some((name, part)) = self.files.get_key_value(name) {
                return Ok((name, part));
            }
            name = self.links.get(name).ok_or_else(missing)?;
        }
        Err(missing())
    }
}

#[cfg(test)]
mod tests;
