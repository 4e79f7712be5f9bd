//! An image in the form that an engine loads: a tar of its description, its layers, and a line that
//! says which is which and what the image is called. It is made while it is read.

use super::kept::Held;
use axum::body::Bytes;
use futures_util::stream::{self, Stream};
use model::container_image::BlobDigest;
use serde_json::json;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What entries are padded to.
const BLOCK: u64 = 512;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// What comes next.
#[derive(Debug)]
enum Section {
    Text(Bytes),
    /// A file, of which so many bytes are taken.
    Blob(PathBuf, u64),
}

/// An image that is about to be read.
#[derive(Debug)]
pub(crate) struct Bundle {
    sections: VecDeque<Section>,
    bytes: u64,
}

impl Bundle {
    /// With the name and tag it is to have, where it has any.
    pub(crate) fn new(held: &Held, tag: Option<&str>) -> Self {
        let mut bundle = Self { sections: VecDeque::new(), bytes: 0 };
        for (digest, bytes) in held.parts().distinct() {
            bundle.head(&name(&digest), bytes);
            bundle.push(Section::Blob(held.path(&digest), bytes));
            bundle.pad(bytes);
        }
        let layers: Vec<String> = held.parts().layers().iter().map(|l| name(&l.digest)).collect();
        let tags: Vec<&str> = tag.into_iter().collect();
        let config = name(&held.parts().config().digest);
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]).to_string();
        let bytes = u64::try_from(manifest.len()).unwrap_or(u64::MAX);
        bundle.head("manifest.json", bytes);
        bundle.push(Section::Text(manifest.into()));
        bundle.pad(bytes);
        bundle.push(Section::Text(vec![0; 1024].into()));
        bundle
    }

    /// Bytes of all of it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn push(&mut self, section: Section) {
        let bytes = match &section {
            Section::Text(text) => u64::try_from(text.len()).unwrap_or(u64::MAX),
            Section::Blob(_, bytes) => *bytes,
        };
        self.bytes = self.bytes.saturating_add(bytes);
        self.sections.push_back(section);
    }

    fn head(&mut self, name: &str, bytes: u64) {
        self.push(Section::Text(head(name, bytes).into()));
    }

    fn pad(&mut self, bytes: u64) {
        let padding = usize::try_from(bytes.next_multiple_of(BLOCK).saturating_sub(bytes));
        self.push(Section::Text(vec![0; padding.unwrap_or_default()].into()));
    }

    /// All of it. It ends with an error where a part is not as long as it should be.
    pub(crate) fn read(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let begin = (self.sections, None::<Reading>);
        stream::try_unfold(begin, async |(mut sections, mut open)| {
            loop {
                if let Some(reading) = &mut open {
                    let chunk = reading.next().await?;
                    if let Some(chunk) = chunk {
                        return Ok(Some((chunk, (sections, open))));
                    }
                    open = None;
                }
                match sections.pop_front() {
                    None => return Ok(None),
                    Some(Section::Text(text)) if text.is_empty() => {}
                    Some(Section::Text(text)) => return Ok(Some((text, (sections, open)))),
                    Some(Section::Blob(path, bytes)) => {
                        open = Some(Reading { file: File::open(path).await?, left: bytes });
                    }
                }
            }
        })
    }
}

struct Reading {
    file: File,
    left: u64,
}

impl Reading {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        chunk(&mut self.file, &mut self.left).await
    }
}

async fn chunk(file: &mut (impl AsyncRead + Unpin), left: &mut u64) -> io::Result<Option<Bytes>> {
    if *left == 0 {
        return Ok(None);
    }
    let room = usize::try_from(*left).unwrap_or(usize::MAX).min(CHUNK);
    let mut chunk = vec![0; room];
    let read = file.read(&mut chunk).await?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    chunk.truncate(read);
    *left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
    Ok(Some(chunk.into()))
}

/// What a part is called in there.
fn name(digest: &BlobDigest) -> String {
    format!("{}.part", digest.digits())
}

/// The head of a file in a tar, as POSIX has it.
fn head(name: &str, bytes: u64) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    let mut field = |text: &str, width: usize| {
        head.extend(text.bytes().chain(std::iter::repeat(0)).take(width));
    };
    field(name, 100);
    field("0000644", 8);
    field("0000000", 8);
    field("0000000", 8);
    field(&format!("{bytes:011o}"), 12);
    field("00000000000", 12);
    field("        ", 8);
    field("0", 1);
    field("", 100);
    field("ustar", 6);
    field("00", 2);
    field("", 247);
    let sum: u64 = head.iter().map(|byte| u64::from(*byte)).sum();
    for (place, byte) in head.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *place = byte;
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container_images::kept::{Kept, tests::part};
    use futures_util::TryStreamExt;
    use model::container_image::Parts;
    use std::process::Command;

    async fn read(bundle: Bundle) -> io::Result<Vec<u8>> {
        let chunks: Vec<Bytes> = bundle.read().try_collect().await?;
        Ok(chunks.concat())
    }

    #[tokio::test]
    async fn an_engine_finds_its_parts() {
        let root = tempfile::tempdir().unwrap();
        let kept = Kept::new(root.path().join("kept"), 1 << 20);
        kept.prepare().unwrap();
        let texts = ["{}".to_owned(), "x".repeat(512), "layer".repeat(30_000)];
        for text in &texts {
            let mut half = kept.begin(part(text).digest, part(text).bytes).unwrap();
            half.add(text.as_bytes()).unwrap();
            kept.keep_part(half).unwrap();
        }
        let [config, small, large] = texts.each_ref().map(|text| part(text));
        let layers = vec![small.clone(), large.clone(), small.clone()];
        let held = kept.hold(config.digest.clone(), Parts::new(config.clone(), layers).unwrap());
        let bundle = Bundle::new(&held, Some("lab/x:1"));
        let said = bundle.bytes();
        let archive = read(bundle).await.unwrap();
        assert_eq!(u64::try_from(archive.len()).unwrap(), said);
        let path = root.path().join("image.tar");
        std::fs::write(&path, &archive).unwrap();
        let tar = |arguments: &[&str]| {
            let done = Command::new("tar").arg("-f").arg(&path).args(arguments).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            String::from_utf8(done.stdout).unwrap()
        };
        assert_eq!(tar(&["-t"]).lines().count(), 4);
        assert_eq!(tar(&["-xO", &name(&large.digest)]), texts[2]);
        let manifest: serde_json::Value =
            serde_json::from_str(&tar(&["-xO", "manifest.json"])).unwrap();
        assert_eq!(manifest[0]["RepoTags"], json!(["lab/x:1"]));
        assert_eq!(manifest[0]["Config"], name(&config.digest));
        let layers = [&small, &large, &small].map(|layer| name(&layer.digest));
        assert_eq!(manifest[0]["Layers"], json!(layers));
        // One that was cut on the disk is no image.
        std::fs::write(held.path(&large.digest), "cut").unwrap();
        let error = read(Bundle::new(&held, None)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
