//! Contents of files, by their hash: stored once, removed when no kept version names them.

use crate::codec::{Reader, put_varint};
use crate::error::Error;
use crate::group::Place;
use crate::history::History;
use crate::keys;
use model::ContentId;

/// Larger contents are refused.
const MAX_CONTENT_BYTES: usize = 64 << 20;
const LEVEL: i32 = 6;

impl History {
    /// Stores some content. Durable on return; storing it again is no error.
    ///
    /// # Errors
    /// When it is too large or can't be written.
    pub fn put_content(&self, content: &[u8]) -> Result<ContentId, Error> {
        let ids = self.put_contents(&[content])?;
        ids.into_iter().next().ok_or(Error::Closed)
    }

    /// Stores several contents with one commit.
    ///
    /// # Errors
    /// When one is too large or they can't be written; then none is stored.
    pub fn put_contents(&self, contents: &[&[u8]]) -> Result<Vec<ContentId>, Error> {
        if contents.iter().any(|content| content.len() > MAX_CONTENT_BYTES) {
            return Err(Error::TooLarge { what: "a content", limit: MAX_CONTENT_BYTES });
        }
        let ids: Vec<ContentId> = contents.iter().map(|content| ContentId::of(content)).collect();
        let missing = self.missing(&ids)?;
        let mut entries = Vec::new();
        for (id, content) in ids.iter().zip(contents).filter(|(id, _)| missing.contains(id)) {
            let mut value = Vec::new();
            put_varint(&mut value, content.len() as u64);
            let packed =
                zstd::bulk::compress(content, LEVEL).expect("the buffer has zstd's own bound");
            value.extend_from_slice(&packed);
            entries.push((keys::content(id), Some(value)));
            entries.push((keys::unused(id), None));
        }
        if !entries.is_empty() {
            self.put(Place::Contents, entries)?;
        }
        Ok(ids)
    }

    /// The content of that name.
    ///
    /// # Errors
    /// When it can't be read or is damaged.
    pub fn content(&self, id: &ContentId) -> Result<Option<Vec<u8>>, Error> {
        let db = self.shared().db()?;
        let bytes = db.contents.get(keys::content(id)).map_err(Error::storage("read a content"))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let damaged = || Error::corrupt(format!("content {id}"));
        let mut reader = Reader::new(&bytes);
        let length = reader.varint().ok().and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length <= MAX_CONTENT_BYTES).ok_or_else(damaged)?;
        let content = zstd::bulk::decompress(reader.rest(), length).map_err(|_zstd| damaged())?;
        if ContentId::of(&content) == *id { Ok(Some(content)) } else { Err(damaged()) }
    }

    /// Those of these contents that are to be sent. One that is stored, but that nothing has
    /// named for a while, is among them, since it is about to go.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn missing(&self, ids: &[ContentId]) -> Result<Vec<ContentId>, Error> {
        let db = self.shared().db()?;
        let has = |key: Vec<u8>| {
            db.contents.contains_key(key).map_err(Error::storage("look up a content"))
        };
        let mut missing = Vec::new();
        for id in ids {
            if !has(keys::content(id))? || has(keys::unused(id))? {
                missing.push(*id);
            }
        }
        Ok(missing)
    }
}
