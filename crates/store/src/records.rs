//! Small things that other parts keep: by collection and key, as anything that serialises.

use crate::error::Error;
use crate::group::Place;
use crate::history::History;
use crate::keys;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Larger records are refused: they belong elsewhere.
const MAX_RECORD_BYTES: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 512;

/// The records of one history. Writes are durable on return.
#[derive(Debug, Clone)]
pub struct Records {
    history: History,
}

/// Changes of records that belong together.
#[derive(Debug, Default)]
pub struct Changes {
    entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Changes {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// # Errors
    /// When it is too large.
    pub fn put<T: Serialize>(
        &mut self,
        collection: &str,
        key: &str,
        value: &T,
    ) -> Result<(), Error> {
        let bytes = rmp_serde::to_vec_named(value).map_err(|source| Error::Encode {
            collection: collection.to_owned(),
            source: Arc::new(source),
        })?;
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(Error::TooLarge { what: "a record", limit: MAX_RECORD_BYTES });
        }
        self.entries.push((name(collection, key)?, Some(bytes)));
        Ok(())
    }

    /// One that is not there is no error.
    ///
    /// # Errors
    /// When the name can't be one.
    pub fn delete(&mut self, collection: &str, key: &str) -> Result<(), Error> {
        self.entries.push((name(collection, key)?, None));
        Ok(())
    }
}

impl History {
    #[must_use]
    pub fn records(&self) -> Records {
        Records { history: self.clone() }
    }
}

impl Records {
    /// # Errors
    /// When it can't be read, or does not have the form of `T`.
    pub fn get<T: DeserializeOwned>(
        &self,
        collection: &str,
        key: &str,
    ) -> Result<Option<T>, Error> {
        let db = self.history.shared().db()?;
        let bytes =
            db.records.get(name(collection, key)?).map_err(Error::storage("read a record"))?;
        bytes.map(|bytes| decode(collection, key, &bytes)).transpose()
    }

    /// # Errors
    /// When it is too large or can't be written.
    pub fn put<T: Serialize>(&self, collection: &str, key: &str, value: &T) -> Result<(), Error> {
        let mut changes = Changes::default();
        changes.put(collection, key, value)?;
        self.write(changes)
    }

    /// Makes changes durable together: all of them, or none.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn write(&self, changes: Changes) -> Result<(), Error> {
        if changes.entries.is_empty() {
            return Ok(());
        }
        self.history.put(Place::Records, changes.entries)
    }

    /// Deletes a record; one that is not there is no error.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn delete(&self, collection: &str, key: &str) -> Result<(), Error> {
        let mut changes = Changes::default();
        changes.delete(collection, key)?;
        self.write(changes)
    }

    /// All records of a collection, by key.
    ///
    /// # Errors
    /// When one can't be read, or does not have the form of `T`.
    pub fn list<T: DeserializeOwned>(&self, collection: &str) -> Result<Vec<(String, T)>, Error> {
        self.list_where(collection, |_| true)
    }

    /// Those records of a collection that have such a key, by key.
    ///
    /// # Errors
    /// When one can't be read, or does not have the form of `T`.
    pub fn list_where<T: DeserializeOwned>(
        &self,
        collection: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, T)>, Error> {
        let prefix = keys::record(checked(collection)?, "");
        let db = self.history.shared().db()?;
        let mut records = Vec::new();
        for entry in db.records.prefix(&prefix) {
            let (key, bytes) = entry.into_inner().map_err(Error::storage("list records"))?;
            let key = key.get(prefix.len()..).unwrap_or_default();
            let key = String::from_utf8_lossy(key).into_owned();
            if is_wanted(&key) {
                let value = decode(collection, &key, &bytes)?;
                records.push((key, value));
            }
        }
        Ok(records)
    }
}

fn decode<T: DeserializeOwned>(collection: &str, key: &str, bytes: &[u8]) -> Result<T, Error> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| Error::corrupt(format!("record {collection}/{key}: {error}")))
}

fn name(collection: &str, key: &str) -> Result<Vec<u8>, Error> {
    Ok(keys::record(checked(collection)?, checked(key)?))
}

fn checked(name: &str) -> Result<&str, Error> {
    let fine = (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains('\0');
    if fine { Ok(name) } else { Err(Error::Name(name.chars().take(80).collect())) }
}
