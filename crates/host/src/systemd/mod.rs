//! Units of systemd, the system's manager and those of users, over D-Bus.
//!
//! [`Systemd::units`] reads everything once; then [`Watch`] says which unit to read again.
//!
//! ```text
//! watch() ── units() ──┬── next(): Changed(id) ── unit(id) ─┐
//!                      ├────────────────────────────────────┘
//!                      ├── next(): Resync ── units()
//!                      └── an error: connect again, from the start
//! ```
//!
//! Leaves to others: when to read, what to do with what was read.
//!
//! # Invariants
//! - systemd is never polled, and never made to load a unit: only what is loaded is asked for.
//! - Every call has a deadline, [`DEADLINE`] unless another is given.
//! - Commands, environment and mount options leave this module redacted.

mod bus;
mod catalog;
mod private;
mod unit;
mod watch;

pub use bus::{Bus, user_managers};
pub use catalog::Catalog;
use catalog::DropIns;
pub use watch::{UnitEvent, Watch};

use crate::text::printable;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use model::entity::Unit;
use model::redact::Redactor;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use unit::Properties;
use zbus::message::Message;
use zbus::{Connection, DynamicType, OwnedObjectPath, Variant};

/// How long one call to systemd may take, unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Questions under way at once. systemd answers one after the other; this hides the way there.
const IN_FLIGHT: usize = 64;

const NAME: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such manager here: normal in a container, and for users who are not there.
    #[error("no systemd at {address}")]
    Absent { address: String },
    #[error("could not connect to systemd at {address}")]
    Connect {
        address: String,
        #[source]
        source: zbus::Error,
    },
    #[error("systemd did not answer {method}")]
    Call {
        method: &'static str,
        #[source]
        source: zbus::Error,
    },
    #[error("could not read what systemd answered to {method}")]
    Answer {
        method: &'static str,
        #[source]
        source: zbus::Error,
    },
    #[error("could not see which users have a manager in {path}")]
    Users {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The connection ended: systemd or the bus was restarted.
    #[error("the connection to systemd was closed")]
    Closed,
}

impl Error {
    /// Whether there is nothing to see, as opposed to something that can't be seen.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }

    /// Whether the deadline passed: who hangs, or is slow, can't be told from outside.
    #[must_use]
    pub fn is_late(&self) -> bool {
        let (Self::Connect { source, .. }
        | Self::Call { source, .. }
        | Self::Answer { source, .. }) = self
        else {
            return false;
        };
        matches!(source, zbus::Error::InputOutput(error) if error.kind() == io::ErrorKind::TimedOut)
    }
}

/// A connection to one manager.
#[derive(Debug, Clone)]
pub struct Systemd {
    bus: Bus,
    connection: Connection,
    /// Straight to systemd, without a bus in between.
    direct: bool,
    deadline: Duration,
    version: String,
    redactor: Redactor,
}

/// One line of `ListUnits`: name, description, three states, what it follows, object path,
/// and a job's number, type and path.
type Listed =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

impl Systemd {
    /// Connects, and makes sure that it is systemd who answers.
    ///
    /// # Errors
    /// [`Error::Absent`] where there is no such manager, another where it can't be reached.
    pub async fn connect(bus: &Bus, redactor: Redactor) -> Result<Self, Error> {
        Self::connect_within(bus, redactor, DEADLINE).await
    }

    /// The same for a machine so slow that its systemd takes longer to answer.
    ///
    /// # Errors
    /// As for [`Systemd::connect`].
    pub async fn connect_within(
        bus: &Bus,
        redactor: Redactor,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let (connection, direct) = bus::connect(bus, deadline).await?;
        let (bus_of, version) = (bus.clone(), String::new());
        let mut systemd = Self { bus: bus_of, connection, direct, deadline, version, redactor };
        let version = systemd
            .call(MANAGER_PATH, PROPERTIES, "Get", &(MANAGER, "Version"))
            .await
            .map_err(|error| bus::absent_if_nobody(bus, error))?;
        let body = version.body();
        let version: Variant<'_> = read(&body, "Get")?;
        if let Variant::Str(version) = version {
            systemd.version = printable(version.as_str().as_bytes());
        }
        Ok(systemd)
    }

    /// As `252.39-1~deb12u1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Every loaded unit, and those of [`Systemd::unit_files`].
    ///
    /// # Errors
    /// When systemd does not answer; nothing is known then, and what was known is old.
    pub async fn units(&self) -> Result<Vec<Unit>, Error> {
        let mut units = self.loaded().await?;
        let files = self.unit_files(&units).await?;
        units.extend(files);
        units.sort_by(|a, b| a.id.cmp(&b.id));
        units.dedup_by(|a, b| a.id == b.id);
        Ok(units)
    }

    /// Every loaded unit. Takes systemd about half a millisecond each.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn loaded(&self) -> Result<Vec<Unit>, Error> {
        let listed = self.list().await?;
        self.read_units(listed.iter().filter(|row| is_seen(row)).map(path_of).collect()).await
    }

    /// Installed units that are not loaded, and about which somebody decided something: their
    /// `load_state` is `not-loaded`. Finding out how each is enabled takes systemd longer than
    /// all the rest, so this is apart for who wants the rest first.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn unit_files(&self, loaded: &[Unit]) -> Result<Vec<Unit>, Error> {
        let loaded: HashSet<&str> = loaded.iter().map(|unit| unit.id.as_str()).collect();
        let files = self.call(MANAGER_PATH, MANAGER, "ListUnitFiles", &()).await?;
        let body = files.body();
        let files: Vec<(String, String)> = read(&body, "ListUnitFiles")?;
        let drop_ins = self.drop_ins().await?;
        Ok(files
            .iter()
            .filter_map(|(path, state)| self.unloaded((path, state), &drop_ins))
            .filter(|unit| !loaded.contains(unit.id.as_str()))
            .collect())
    }

    /// Parts of units that somebody put where this manager looks for them.
    async fn drop_ins(&self) -> Result<DropIns, Error> {
        let (dirs, root) = (self.unit_path().await?, self.bus.root());
        let read = tokio::task::spawn_blocking(move || DropIns::read(&root, &dirs));
        Ok(read.await.unwrap_or_default())
    }

    async fn unit_path(&self) -> Result<Vec<String>, Error> {
        let (method, word) = ("Get", "UnitPath");
        let answer = self.call(MANAGER_PATH, PROPERTIES, method, &(MANAGER, word)).await?;
        let body = answer.body();
        let dirs: Variant<'_> = read(&body, method)?;
        let dirs = json(&dirs);
        let dirs = dirs.as_array().into_iter().flatten().filter_map(Value::as_str);
        Ok(dirs.map(str::to_owned).collect())
    }

    /// What lies where this manager looks for its units.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn catalog(&self) -> Result<Catalog, Error> {
        let dirs = self.unit_path().await?;
        let dirs: Vec<PathBuf> = dirs.iter().map(|dir| self.bus.root().path(dir)).collect();
        let read = tokio::task::spawn_blocking(move || Catalog::read(&dirs));
        // Without one everything counts as changed.
        Ok(read.await.unwrap_or_default())
    }

    /// What became of units since they were seen: those that are new or other, and the ids of
    /// those that are gone. Asks only for units that are in another state than they were, or of
    /// which files changed since the catalogue, which is renewed.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn renew(
        &self,
        known: &BTreeMap<String, Unit>,
        catalog: &mut Catalog,
    ) -> Result<(Vec<Unit>, Vec<String>), Error> {
        let now = self.catalog().await?;
        let touched = catalog.touched(&now);
        let listed = self.list().await?;
        let owner = self.bus.owner();
        let rows: BTreeMap<String, &Listed> = listed
            .iter()
            .filter(|row| is_seen(row))
            .map(|row| (unit::identity(&row.0, owner), row))
            .collect();
        let is_other = |id: &String, row: &&Listed| {
            known.get(id).is_none_or(|unit| {
                unit.needs_reload
                    || (&unit.load_state, &unit.active_state, &unit.sub_state)
                        != (&row.2, &row.3, &row.4)
                    || touched.holds(&row.0)
            })
        };
        let others = rows.iter().filter(|(id, row)| is_other(id, row));
        let mut asked: BTreeSet<&String> = others.map(|(id, _)| id).collect();
        let mut put = self
            .read_units(
                asked.iter().filter_map(|id| rows.get(*id)).map(|row| path_of(row)).collect(),
            )
            .await?;
        let is_gone =
            |unit: &&Unit| unit.load_state != "not-loaded" && !rows.contains_key(unit.id.as_str());
        let lost: Vec<&Unit> = known.values().filter(is_gone).collect();
        // Whom they name now, or no longer, is named back by them.
        let named: BTreeSet<&String> = lost
            .iter()
            .flat_map(|unit| named_by(unit))
            .chain(put.iter().flat_map(|unit| newly_named(known.get(&unit.id), unit)))
            .collect();
        let neighbours: Vec<&String> = named
            .iter()
            .filter_map(|name| rows.get_key_value(&unit::identity(name, owner)))
            .map(|(id, _)| id)
            .filter(|id| asked.insert(id))
            .collect();
        put.extend(
            self.read_units(
                neighbours.iter().filter_map(|id| rows.get(*id)).map(|row| path_of(row)).collect(),
            )
            .await?,
        );
        let read: BTreeSet<String> = put.iter().map(|unit| unit.id.clone()).collect();
        // Not loaded, or not any more: what is known of their files.
        let mut unloaded: BTreeSet<String> = touched
            .names()
            .filter(|name| model::unit_name_is_valid(name))
            .map(|name| unit::identity(name, owner))
            .collect();
        unloaded.extend(lost.into_iter().map(|unit| unit.id.clone()));
        let mut gone = Vec::new();
        for id in unloaded.into_iter().filter(|id| !read.contains(id)) {
            // Asked for, and not there any more; or listed, and as it was.
            if rows.contains_key(&id) && !asked.contains(&id) {
                continue;
            }
            match self.unit(&id).await? {
                Some(unit) => put.push(unit),
                None if known.contains_key(&id) => gone.push(id),
                None => {}
            }
        }
        *catalog = now;
        Ok((put, gone))
    }

    async fn read_units(&self, paths: Vec<OwnedObjectPath>) -> Result<Vec<Unit>, Error> {
        // Boxed: the compiler can't see for itself that these may move between threads.
        let read = |path: OwnedObjectPath| async move { self.read_unit(&path).await }.boxed();
        let found: Vec<Option<Unit>> =
            stream::iter(paths).map(read).buffer_unordered(IN_FLIGHT).boxed().try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// One unit, by its id. `None` when it is neither loaded nor worth listing.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn unit(&self, id: &str) -> Result<Option<Unit>, Error> {
        let name = match self.bus.owner() {
            Some(owner) => id.strip_prefix(owner).and_then(|rest| rest.strip_prefix('/')),
            None => Some(id),
        };
        let Some(name) = name.filter(|name| model::unit_name_is_valid(name)) else {
            return Ok(None);
        };
        // GetUnit, unlike LoadUnit, leaves alone what is not loaded.
        match self.call(MANAGER_PATH, MANAGER, "GetUnit", &(name,)).await {
            Ok(answer) => {
                let body = answer.body();
                let path: OwnedObjectPath = read(&body, "GetUnit")?;
                self.read_unit(&path).await
            }
            Err(error) if is_gone(&error) => self.unit_file(name).await,
            Err(error) => Err(error),
        }
    }

    /// Starts to watch. What happens from here on is reported, so watch first, then read.
    ///
    /// # Errors
    /// When a second connection, which the watch has for itself, can't be made.
    pub async fn watch(&self) -> Result<Watch, Error> {
        Watch::start(self.clone()).await
    }

    async fn list(&self) -> Result<Vec<Listed>, Error> {
        let answer = self.call(MANAGER_PATH, MANAGER, "ListUnits", &()).await?;
        let body = answer.body();
        read(&body, "ListUnits")
    }

    async fn read_unit(&self, path: &OwnedObjectPath) -> Result<Option<Unit>, Error> {
        // An empty interface stands for all of them: the unit's and the one of its type.
        let answer = match self.call(path.as_str(), PROPERTIES, "GetAll", &("",)).await {
            Err(error) if is_gone(&error) => return Ok(None),
            answer => answer?,
        };
        let body = answer.body();
        let all: HashMap<&str, Variant<'_>> = read(&body, "GetAll")?;
        let properties: Properties = unit::READ
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), json(all.get(name)?))))
            .collect();
        Ok(unit::unit(&properties, &self.redactor, self.bus.owner()))
    }

    async fn unit_file(&self, name: &str) -> Result<Option<Unit>, Error> {
        // These are made at run time, and have no files; instances have their template's.
        if name.ends_with(".scope") || name.ends_with(".device") || name.contains('@') {
            return Ok(None);
        }
        // Patterns are those of a shell, to which a backslash means something.
        let pattern = name.replace('\\', "\\\\");
        let states: [&str; 0] = [];
        let body = (&states[..], &[pattern.as_str()][..]);
        let answer = self.call(MANAGER_PATH, MANAGER, "ListUnitFilesByPatterns", &body).await?;
        let body = answer.body();
        let files: Vec<(String, String)> = read(&body, "ListUnitFilesByPatterns")?;
        if files.is_empty() {
            return Ok(None);
        }
        let drop_ins = self.drop_ins().await?;
        Ok(files.iter().find_map(|(path, state)| self.unloaded((path, state), &drop_ins)))
    }

    /// An installed unit that is not loaded, if somebody decided something about it. A static
    /// one of a package is part of the package and has no state of its own.
    fn unloaded(&self, (path, state): (&str, &str), drop_ins: &DropIns) -> Option<Unit> {
        let name = crate::text::base_name(path);
        let decided = match state {
            "alias" | "generated" | "transient" | "bad" => false,
            "static" | "indirect" => ["/etc/", "/usr/local/", "/home/", "/root/"]
                .iter()
                .any(|start| path.starts_with(start)),
            _ => true,
        };
        if !decided || name.contains('@') || !model::unit_name_is_valid(name) {
            return None;
        }
        Some(Unit {
            id: unit::identity(name, self.bus.owner()),
            load_state: "not-loaded".to_owned(),
            enablement: Some(printable(state.as_bytes())),
            fragment_path: Some(printable(path.as_bytes())),
            drop_ins: drop_ins.of(name),
            ..Unit::default()
        })
    }

    /// Asks whether the manager answers at all.
    ///
    /// # Errors
    /// When it does not, within the deadline.
    pub async fn answers(&self) -> Result<(), Error> {
        self.call(MANAGER_PATH, "org.freedesktop.DBus.Peer", "Ping", &()).await.map(drop)
    }

    async fn call<B>(
        &self,
        path: &str,
        interface: &'static str,
        method: &'static str,
        body: &B,
    ) -> Result<Message, Error>
    where
        B: serde::Serialize + DynamicType,
    {
        let to = (!self.direct).then_some(NAME);
        // The connection has the deadline.
        let called = self.connection.call_method(to, path, Some(interface), method, body).await;
        called.map_err(|source| {
            if self.connection.is_closed() { Error::Closed } else { Error::Call { method, source } }
        })
    }
}

/// Whether there is more to a unit than that another one mentions it, or another name of it.
fn is_seen(row: &Listed) -> bool {
    unit::is_there(&row.2, &row.3) && row.5.is_empty()
}

fn path_of(row: &Listed) -> OwnedObjectPath {
    row.6.clone()
}

/// Units that this one names, and that name it back.
fn named_by(unit: &Unit) -> BTreeSet<&String> {
    let lists = [
        &unit.requires,
        &unit.requisite,
        &unit.wants,
        &unit.binds_to,
        &unit.part_of,
        &unit.conflicts,
        &unit.before,
        &unit.after,
        &unit.triggers,
        &unit.triggered_by,
    ];
    lists.into_iter().flatten().collect()
}

/// Names that one of two readings of a unit has and the other has not.
fn newly_named<'u>(before: Option<&'u Unit>, now: &'u Unit) -> BTreeSet<&'u String> {
    let before = before.map(named_by).unwrap_or_default();
    before.symmetric_difference(&named_by(now)).copied().collect()
}

/// Whether systemd says that there is no such unit (any more).
fn is_gone(error: &Error) -> bool {
    let Error::Call { source, .. } = error else { return false };
    match source {
        zbus::Error::MethodError(name, _, _) => name.as_str().ends_with(".NoSuchUnit"),
        zbus::Error::FDO(error) => {
            matches!(**error, zbus::fdo::Error::UnknownObject(_))
        }
        _ => false,
    }
}

fn read<'b, T: zbus::wire::DynamicDeserialize<'b>>(
    body: &'b zbus::message::Body,
    method: &'static str,
) -> Result<T, Error> {
    body.deserialize().map_err(|source| Error::Answer { method, source })
}

/// The value without D-Bus's types.
fn json(value: &Variant<'_>) -> Value {
    match value {
        Variant::U8(number) => Value::from(*number),
        Variant::Bool(truth) => Value::from(*truth),
        Variant::I16(number) => Value::from(*number),
        Variant::U16(number) => Value::from(*number),
        Variant::I32(number) => Value::from(*number),
        Variant::U32(number) => Value::from(*number),
        Variant::I64(number) => Value::from(*number),
        Variant::U64(number) => Value::from(*number),
        Variant::F64(number) => Value::from(*number),
        Variant::Str(text) => Value::from(text.as_str()),
        Variant::ObjectPath(path) => Value::from(path.as_str()),
        Variant::Variant(inner) => json(inner),
        Variant::Array(array) => array.iter().map(json).collect(),
        Variant::Structure(fields) => fields.fields().iter().map(json).collect(),
        Variant::Dict(_) | Variant::Signature(_) | Variant::Fd(_) => Value::Null,
    }
}
