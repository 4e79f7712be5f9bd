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
//! - Every call has a deadline of [`DEADLINE`].
//! - Commands, environment and mount options leave this module redacted.

mod bus;
mod private;
mod unit;
mod watch;

pub use bus::{Bus, user_managers};
pub use watch::{UnitEvent, Watch};

use crate::text::printable;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use model::entity::Unit;
use model::redact::Redactor;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use unit::Properties;
use zbus::message::Message;
use zbus::{Connection, DynamicType, OwnedObjectPath, Variant};

/// How long one call to systemd may take.
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
}

/// A connection to one manager.
#[derive(Debug, Clone)]
pub struct Systemd {
    bus: Bus,
    connection: Connection,
    /// Straight to systemd, without a bus in between.
    direct: bool,
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
        let (connection, direct) = bus::connect(bus).await?;
        let mut systemd =
            Self { bus: bus.clone(), connection, direct, version: String::new(), redactor };
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
        let seen = |unit: &&Listed| unit.2 != "not-found" && unit.5.is_empty();
        let paths: Vec<OwnedObjectPath> =
            listed.iter().filter(seen).map(|unit| unit.6.clone()).collect();
        // Boxed: the compiler can't see for itself that these may move between threads.
        let read = |path: OwnedObjectPath| async move { self.read_unit(&path).await }.boxed();
        let found: Vec<Option<Unit>> =
            stream::iter(paths).map(read).buffer_unordered(IN_FLIGHT).boxed().try_collect().await?;
        Ok(found.into_iter().flatten().collect())
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
        Ok(files
            .iter()
            .filter_map(|(path, state)| self.unloaded(path, state))
            .filter(|unit| !loaded.contains(unit.id.as_str()))
            .collect())
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
        Ok(files.iter().find_map(|(path, state)| self.unloaded(path, state)))
    }

    /// An installed unit that is not loaded, if somebody decided something about it. A static
    /// one of a package is part of the package and has no state of its own.
    fn unloaded(&self, path: &str, state: &str) -> Option<Unit> {
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
