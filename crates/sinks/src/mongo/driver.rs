//! The MongoDB behind a [`super::MongoSink`].

use super::{Loaded, MongoSettings, Written};
use crate::document::{self, Change, Field, Fields, VmDocument};
use crate::error::Error;
use crate::lease::Lease;
use crate::outbox::{Known, Target};
use model::Time;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::RawBsonRef;
use mongodb::bson::{Bson, DateTime, Document, RawDocument, doc};
use mongodb::error::ErrorKind;
use mongodb::options::{ClientOptions, Credential, ServerAddress};
use mongodb::{Client, Collection, Database};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::time::timeout;

mod glance;

use glance::Glance;

/// Documents that are read and written at once.
const BATCH: usize = 500;
/// So many at once are not looked for each by itself.
const MANY: usize = 50;
/// How often a batch is read anew because documents came or went meanwhile.
const ROUNDS: usize = 5;
/// Characters of a server's reason.
const MAX_REASON: usize = 200;
const LEASES: &str = "safetytwin_leases";
const LEASE: &str = "sync";
const KNOWN: &str = "safetytwin_known";
const DUPLICATE_KEY: i32 = 11000;

#[derive(Debug, Clone)]
pub(super) struct Driver {
    /// `MongoDB at HOST:PORT`.
    server: String,
    db: Database,
    collection: String,
    timeout: Duration,
    glance: Arc<Mutex<Glance>>,
}

/// What a document that is there is, and under which id.
type Stored = HashMap<String, (Bson, Fields)>;

/// What became of documents, by their uuids.
#[derive(Default)]
struct Tally {
    added: BTreeSet<String>,
    updated: BTreeSet<String>,
    changed: BTreeSet<String>,
    failed: BTreeMap<String, String>,
}

impl Driver {
    pub(super) fn new(settings: MongoSettings) -> Result<Self, Error> {
        let MongoSettings { host, port, username, password, db, collection, timeout } = settings;
        let unusable = |why: String| Error::Settings { what: "MongoDB", why };
        for (what, name) in [("host", &host), ("database", &db), ("collection", &collection)] {
            if name.is_empty() || name.contains(['\0', '$']) {
                return Err(unusable(format!("{name:?} is the name of no {what}")));
            }
        }
        let server = format!("MongoDB at {host}:{port}");
        let credential = username
            .map(|username| Credential::builder().username(username).password(password).build());
        let options = ClientOptions::builder()
            .hosts(vec![ServerAddress::Tcp { host, port: Some(port) }])
            .app_name("safetytwin".to_owned())
            .credential(credential)
            .connect_timeout(timeout)
            // Earlier than the command's own: it knows why.
            .server_selection_timeout(timeout / 2)
            .build();
        let client = Client::with_options(options).map_err(|error| unusable(error.to_string()))?;
        let glance = Arc::default();
        Ok(Self { server, db: client.database(&db), collection, timeout, glance })
    }

    pub(super) async fn load(&self, hosts: &[String]) -> Result<Loaded, Error> {
        let mut loaded = Loaded::default();
        // Of several that say of the same VM the one that is written.
        let mut places: HashMap<String, usize> = HashMap::new();
        let filter = doc! { "esxi_host_addr": { "$in": hosts } };
        self.find(filter, |id, fields| {
            let shown = id.to_string().chars().take(60).collect::<String>();
            let document = match document::read(&fields) {
                Ok(document) => document,
                Err(field) => {
                    let why = format!("document {shown}: its `{field}` is no text");
                    return loaded.unreadable.push(why);
                }
            };
            let place = *places.entry(document.uuid.clone()).or_insert(loaded.documents.len());
            let is_ours = id == Bson::ObjectId(object_id(&document.uuid));
            match loaded.documents.get_mut(place) {
                None => loaded.documents.push(document),
                Some(known) => {
                    let why = format!("document {shown}: another says of {} already", known.uuid);
                    loaded.unreadable.push(why);
                    if is_ours {
                        *known = document;
                    }
                }
            }
        })
        .await?;
        Ok(loaded)
    }

    pub(super) async fn write(&self, documents: &[VmDocument]) -> Result<Written, Error> {
        let documents: BTreeMap<&str, &VmDocument> =
            documents.iter().map(|document| (document.uuid.as_str(), document)).collect();
        let documents: Vec<&VmDocument> = documents.into_values().collect();
        let mut tally = Tally::default();
        for batch in documents.chunks(BATCH) {
            let mut is_done = false;
            for round in 0..ROUNDS {
                let stored = match round {
                    0 if batch.len() >= MANY => self.stored_of_many(batch).await?,
                    _ => self.stored(&uuids(batch)).await?,
                };
                self.glance.lock().await.forget(batch.iter().map(|one| one.uuid.as_str()));
                is_done = self.batch(batch, &stored, &mut tally).await?;
                if is_done {
                    break;
                }
            }
            if !is_done {
                return Err(Error::Contended { server: self.server.clone() });
            }
        }
        // One that was added and then written again in a further round was added.
        tally.updated.retain(|uuid| !tally.added.contains(uuid));
        tally.changed.retain(|uuid| tally.updated.contains(uuid));
        Ok(Written {
            added: tally.added.len(),
            updated: tally.updated.len(),
            changed: tally.changed.len(),
            failed: tally.failed.into_iter().collect(),
        })
    }

    /// False: documents came or went meanwhile.
    async fn batch(
        &self,
        batch: &[&VmDocument],
        stored: &Stored,
        tally: &mut Tally,
    ) -> Result<bool, Error> {
        let (known, new): (Vec<&VmDocument>, Vec<&VmDocument>) =
            batch.iter().partition(|document| stored.contains_key(&document.uuid));
        let came = self.insert_all(&new, tally).await?;
        let went = self.update_all(&known, stored, tally).await?;
        Ok(!came && !went)
    }

    /// True: some came meanwhile, and are to be updated.
    async fn insert_all(&self, new: &[&VmDocument], tally: &mut Tally) -> Result<bool, Error> {
        if new.is_empty() {
            return Ok(false);
        }
        let documents: Vec<Document> = new.iter().map(|document| inserted(document)).collect();
        let command = doc! { "insert": &self.collection, "documents": documents, "ordered": false };
        let answer = self.write_command(command).await?;
        let mut came = false;
        for (index, document) in new.iter().enumerate() {
            let uuid = &document.uuid;
            let Some((_, code, reason)) = answer.error(index) else {
                tally.failed.remove(uuid);
                tally.added.insert(uuid.clone());
                continue;
            };
            // A second time its id is that of a document with another uuid.
            came = came || (*code == DUPLICATE_KEY && !tally.failed.contains_key(uuid));
            tally.failed.insert(uuid.clone(), reason.clone());
        }
        Ok(came)
    }

    /// True: some went meanwhile, and are to be made anew.
    async fn update_all(
        &self,
        known: &[&VmDocument],
        stored: &Stored,
        tally: &mut Tally,
    ) -> Result<bool, Error> {
        let changes: Vec<(&VmDocument, &Bson, Change)> = known
            .iter()
            .filter_map(|document| {
                let (id, fields) = stored.get(&document.uuid)?;
                Some((*document, id, document::change(fields, document)))
            })
            .collect();
        if changes.is_empty() {
            return Ok(false);
        }
        let statements = changes.iter().map(|(document, id, change)| update(id, document, change));
        let answer = self.update(&self.collection, statements.collect()).await?;
        for (index, (document, _, change)) in changes.iter().enumerate() {
            let uuid = &document.uuid;
            if let Some((.., reason)) = answer.error(index) {
                tally.updated.remove(uuid);
                tally.failed.insert(uuid.clone(), reason.clone());
                continue;
            }
            tally.failed.remove(uuid);
            tally.updated.insert(uuid.clone());
            if change.differs {
                tally.changed.insert(uuid.clone());
            }
        }
        Ok(answer.matched + answer.errors.len() < changes.len())
    }

    /// [`Self::stored`], by a look at the whole collection that many batches share.
    async fn stored_of_many(&self, batch: &[&VmDocument]) -> Result<Stored, Error> {
        let uuids = uuids(batch);
        let mut glance = self.glance.lock().await;
        if !glance.is_fresh() {
            *glance = Glance::default();
            if self.count().await? > glance::AT_MOST {
                return self.stored(&uuids).await;
            }
            let begun = Instant::now();
            self.scan(doc! {}, |document| glance.add(document)).await?;
            glance.is_complete(begun);
        }
        let mut known = glance.tell(uuids.iter().copied());
        drop(glance);
        if !known.unclear.is_empty() {
            let unclear: Vec<&str> = known.unclear.iter().map(String::as_str).collect();
            known.stored.extend(self.stored(&unclear).await?);
        }
        Ok(known.stored)
    }

    async fn count(&self) -> Result<u64, Error> {
        let collection: Collection<Document> = self.db.collection(&self.collection);
        self.within(async { collection.estimated_document_count().await }).await
    }

    /// Of each uuid the document that we made, else the first.
    async fn stored(&self, uuids: &[&str]) -> Result<Stored, Error> {
        let mut stored = Stored::new();
        let made: Vec<ObjectId> = uuids.iter().map(|uuid| object_id(uuid)).collect();
        // By ids they are found without looking at all there are; one alone by any server.
        let by_id = match made.as_slice() {
            [one] => doc! { "_id": one },
            _ => doc! { "_id": { "$in": made } },
        };
        self.find(by_id, |id, fields| {
            if let Some(uuid) = uuid(&fields)
                && id == Bson::ObjectId(object_id(uuid))
            {
                stored.insert(uuid.to_owned(), (id, fields));
            }
        })
        .await?;
        let rest = uuids.iter().filter(|uuid| !stored.contains_key(**uuid));
        let rest: Vec<&str> = rest.copied().collect();
        if rest.is_empty() {
            return Ok(stored);
        }
        self.find(doc! { "uuid": { "$in": rest } }, |id, fields| {
            if let Some(uuid) = uuid(&fields) {
                stored.entry(uuid.to_owned()).or_insert((id, fields));
            }
        })
        .await?;
        Ok(stored)
    }

    async fn find(
        &self,
        filter: Document,
        mut each: impl FnMut(Bson, Fields),
    ) -> Result<(), Error> {
        self.scan(filter, |document| match found(document) {
            Some((id, fields)) => {
                each(id, fields);
                true
            }
            None => false,
        })
        .await
    }

    /// What of each is ours, those with lesser ids first. False of `each`: it is no document.
    async fn scan(
        &self,
        filter: Document,
        mut each: impl FnMut(&RawDocument) -> bool,
    ) -> Result<(), Error> {
        let collection: Collection<Document> = self.db.collection(&self.collection);
        let projection: Document =
            document::FIELDS.iter().map(|field| ((*field).to_owned(), Bson::from(1))).collect();
        let found =
            async { collection.find(filter).projection(projection).sort(doc! { "_id": 1 }).await };
        let mut cursor = self.within(found).await?;
        while self.within(cursor.advance()).await? {
            if !each(cursor.current()) {
                return Err(self.unclear("a document that is none"));
            }
        }
        Ok(())
    }

    pub(super) async fn known(&self) -> Result<Vec<Known>, Error> {
        let collection: Collection<Document> = self.db.collection(KNOWN);
        let mut cursor = self.within(async { collection.find(doc! {}).await }).await?;
        let mut known = Vec::new();
        while self.within(cursor.advance()).await? {
            let document = cursor.deserialize_current();
            let document = document.map_err(|_bson| self.unclear("a document that is none"))?;
            // What is not ours is left alone.
            known.extend(read_known(&document));
        }
        Ok(known)
    }

    pub(super) async fn note(&self, known: &[Known], only_new: bool) -> Result<(), Error> {
        let how = if only_new { "$setOnInsert" } else { "$set" };
        for batch in known.chunks(BATCH) {
            let statements = batch.iter().map(|known| {
                let (id, fields) = written_known(known);
                doc! { "q": { "_id": id }, "u": { how: fields }, "upsert": true }
            });
            let answer = self.update(KNOWN, statements.collect()).await?;
            let is_fault =
                |(_, code, _): &&(usize, i32, String)| !(only_new && *code == DUPLICATE_KEY);
            if let Some((.., reason)) = answer.errors.iter().find(is_fault) {
                let (server, source) = (self.server.clone(), reason.clone().into());
                return Err(Error::Refused { server, source });
            }
        }
        Ok(())
    }

    /// By the server's clock: those of several instances may differ by more than a lease lasts.
    async fn now(&self) -> Result<Time, Error> {
        let answer = self.command(doc! { "hello": 1 }).await?;
        let now = answer.get_datetime("localTime").ok();
        let now = now.and_then(|now| now.timestamp_millis().checked_mul(1000)).map(Time);
        now.ok_or_else(|| self.unclear("its time is not told"))
    }

    pub(super) async fn renew(&self, holder: &str, ttl: Duration) -> Result<bool, Error> {
        let now = self.now().await?;
        self.renewed(holder, now, ttl).await
    }

    async fn renewed(&self, holder: &str, now: Time, ttl: Duration) -> Result<bool, Error> {
        let query = doc! { "_id": LEASE, "holder": holder };
        let statement = doc! { "q": query, "u": taken(holder, now, ttl) };
        Ok(self.update(LEASES, vec![statement]).await?.matched == 1)
    }

    pub(super) async fn lease(&self, holder: &str, ttl: Duration) -> Result<Lease, Error> {
        let now = self.now().await?;
        if self.renewed(holder, now, ttl).await? {
            return Ok(Lease::Ours);
        }
        let free = doc! { "_id": LEASE, "until": { "$lt": date(now) } };
        let takes = doc! { "q": free, "u": taken(holder, now, ttl), "upsert": true };
        let answer = self.update(LEASES, vec![takes]).await?;
        match answer.errors.first() {
            None if answer.matched == 1 => Ok(Lease::TakenOver),
            // It is there, and not free. Some servers do not say that as a fault.
            None | Some((_, DUPLICATE_KEY, _)) => self.holder().await.map(Lease::Others),
            Some((_, _, reason)) => {
                Err(Error::Refused { server: self.server.clone(), source: reason.clone().into() })
            }
        }
    }

    async fn holder(&self) -> Result<String, Error> {
        let leases: Collection<Document> = self.db.collection(LEASES);
        let found = self.within(async { leases.find_one(doc! { "_id": LEASE }).await }).await?;
        let holder = found.as_ref().and_then(|lease| lease.get_str("holder").ok());
        Ok(holder.unwrap_or_default().to_owned())
    }

    pub(super) async fn release(&self, holder: &str) -> Result<(), Error> {
        let query = doc! { "_id": LEASE, "holder": holder };
        let over = doc! { "$set": { "until": DateTime::from_millis(0) } };
        self.update(LEASES, vec![doc! { "q": query, "u": over }]).await.map(|_answer| ())
    }

    async fn update(&self, collection: &str, updates: Vec<Document>) -> Result<Answer, Error> {
        self.write_command(doc! { "update": collection, "updates": updates, "ordered": false })
            .await
    }

    async fn write_command(&self, command: Document) -> Result<Answer, Error> {
        let answer = self.command(command).await?;
        if let Ok(concern) = answer.get_document("writeConcernError") {
            let code = concern.get_i32("code").unwrap_or_default();
            return Err(Error::Unready { server: self.server.clone(), code: code.to_string() });
        }
        Answer::read(&answer).ok_or_else(|| self.unclear("a write without its outcome"))
    }

    async fn command(&self, command: Document) -> Result<Document, Error> {
        self.within(async { self.db.run_command(command).await }).await
    }

    async fn within<T>(
        &self,
        asked: impl Future<Output = mongodb::error::Result<T>>,
    ) -> Result<T, Error> {
        let server = || self.server.clone();
        match timeout(self.timeout, asked).await {
            Ok(answer) => answer.map_err(|error| told(server(), error)),
            Err(_elapsed) => Err(Error::Deadline { server: server(), deadline: self.timeout }),
        }
    }

    fn unclear(&self, what: &'static str) -> Error {
        Error::Answer { server: self.server.clone(), what }
    }
}

/// What a write came to.
struct Answer {
    /// Documents that were found, or made.
    matched: usize,
    /// Statement, code, reason.
    errors: Vec<(usize, i32, String)>,
}

impl Answer {
    fn read(answer: &Document) -> Option<Self> {
        let number = |document: &Document, name: &str| match document.get(name)? {
            Bson::Int32(number) => usize::try_from(*number).ok(),
            Bson::Int64(number) => usize::try_from(*number).ok(),
            _ => None,
        };
        let errors = answer.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
        let errors = errors.iter().filter_map(Bson::as_document).map(|error| {
            let code = error.get_i32("code").unwrap_or_default();
            let reason = error.get_str("errmsg").unwrap_or_default();
            let reason = reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
            Some((number(error, "index")?, code, reason))
        });
        let matched = match number(answer, "n") {
            // Some servers count nothing beside what went wrong.
            None if answer.contains_key("writeErrors") => 0,
            matched => matched?,
        };
        Some(Self { matched, errors: errors.collect::<Option<_>>()? })
    }

    /// What went wrong with a statement.
    fn error(&self, statement: usize) -> Option<&(usize, i32, String)> {
        self.errors.iter().find(|(index, ..)| *index == statement)
    }
}

fn update(id: &Bson, document: &VmDocument, change: &Change) -> Document {
    let mut query = doc! { "_id": id };
    // An id that we made says it by itself; and by nothing but an id each server finds at once.
    if *id != Bson::ObjectId(object_id(&document.uuid)) {
        query.insert("uuid", &document.uuid);
    }
    doc! { "q": query, "u": { "$set": bson(&change.set) } }
}

/// What the lease says once it is `holder`'s.
fn taken(holder: &str, now: Time, ttl: Duration) -> Document {
    doc! { "$set": { "holder": holder, "until": date(now.plus(ttl)) } }
}

fn written_known(known: &Known) -> (String, Document) {
    let Known { target, vm, name, is_orphan } = known;
    let target = target.to_string();
    let id = format!("{target} {vm}");
    (id, doc! { "target": target, "uuid": vm, "name": name, "orphan": *is_orphan })
}

fn read_known(document: &Document) -> Option<Known> {
    let target = document.get_str("target").ok()?;
    Some(Known {
        target: Target::ALL.into_iter().find(|one| one.to_string() == target)?,
        vm: document.get_str("uuid").ok()?.to_owned(),
        name: document.get_str("name").ok()?.to_owned(),
        is_orphan: document.get_bool("orphan").ok()?,
    })
}

fn date(time: Time) -> DateTime {
    DateTime::from_millis(time.0.div_euclid(1000))
}

fn inserted(document: &VmDocument) -> Document {
    let mut inserted = doc! { "_id": object_id(&document.uuid) };
    inserted.extend(bson(&document::created(document)));
    inserted
}

/// The id of a new document: the same for the same VM.
fn object_id(uuid: &str) -> ObjectId {
    let hash = blake3::hash(format!("safetytwin document of VM {uuid}").as_bytes());
    let mut bytes = [0; 12];
    for (byte, of_hash) in bytes.iter_mut().zip(hash.as_bytes()) {
        *byte = *of_hash;
    }
    ObjectId::from_bytes(bytes)
}

fn uuids<'a>(documents: &[&'a VmDocument]) -> Vec<&'a str> {
    documents.iter().map(|document| document.uuid.as_str()).collect()
}

fn uuid(fields: &Fields) -> Option<&str> {
    match fields.get("uuid")? {
        Field::Text(uuid) => Some(uuid),
        Field::Flag(_) | Field::Null | Field::Other => None,
    }
}

/// The id of a document, and what of it is ours; absent where these bytes are no document.
fn found(document: &RawDocument) -> Option<(Bson, Fields)> {
    let mut id = Bson::Null;
    let mut fields = Fields::new();
    for element in document {
        let (name, value) = element.ok()?;
        if name.as_str() == "_id" {
            id = Bson::try_from(value).ok()?;
        }
        let Some(field) = document::FIELDS.iter().find(|field| **field == name.as_str()) else {
            continue;
        };
        let value = match value {
            RawBsonRef::String(text) => Field::Text(text.to_owned()),
            RawBsonRef::Boolean(flag) => Field::Flag(flag),
            RawBsonRef::Null => Field::Null,
            _ => Field::Other,
        };
        fields.insert(field, value);
    }
    Some((id, fields))
}

fn bson(fields: &Fields) -> Document {
    let value = |field: &Field| match field {
        Field::Text(text) => Bson::String(text.clone()),
        Field::Flag(flag) => Bson::Boolean(*flag),
        Field::Null | Field::Other => Bson::Null,
    };
    fields.iter().map(|(name, field)| ((*name).to_owned(), value(field))).collect()
}

fn told(server: String, error: mongodb::error::Error) -> Error {
    /// Not the primary, shutting down, stepping down, and the like.
    const UNREADY: [i32; 12] = [6, 7, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436];
    match error.kind.as_ref() {
        ErrorKind::Authentication { .. } => Error::Denied { server, source: error.into() },
        ErrorKind::Command(command) if matches!(command.code, 13 | 18) => {
            Error::Denied { server, source: error.into() }
        }
        ErrorKind::Command(command) if UNREADY.contains(&command.code) => {
            Error::Unready { server, code: command.code.to_string() }
        }
        ErrorKind::Io(_)
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. } => Error::Unreachable { server, source: error.into() },
        _ => Error::Refused { server, source: error.into() },
    }
}
