//! Follows systemd's signals and says which units to read again.
//!
//! ```text
//! quiet ── UnitNew, UnitRemoved, JobRemoved, PropertiesChanged ──► Changed(unit)
//!   │  ▲
//!   │  └── Reloading(false), or too long ──► Resync
//!   └──── Reloading(true) ──► reloading: every signal is noise
//! UnitFilesChanged, a new systemd on the bus ──► Resync
//! ```
//!
//! # Invariants
//! - Signals are told apart from their look-alikes by who sent them.
//! - Properties that are not kept of a unit never cause it to be read.
//! - What is not yet taken is kept once per unit, however many signals there were.

use super::{Error, MANAGER, MANAGER_PATH, NAME, PROPERTIES, Systemd, bus, read, unit};
use futures_util::{FutureExt, StreamExt};
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;
use std::time::Duration;
use zbus::message::{Message, Type};
use zbus::{Connection, MessageStream, OwnedObjectPath, Variant};

/// How long a reload may hold back events.
const RELOAD_MAX: Duration = Duration::from_secs(60);

const UNITS: &str = "/org/freedesktop/systemd1/unit";
const DBUS: &str = "org.freedesktop.DBus";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnitEvent {
    /// Read this unit again by [`Systemd::unit`]; it is gone if there is none.
    Changed(String),
    /// Read all units again by [`Systemd::units`].
    Resync,
}

/// A running watch. It ends with its connection: then [`Watch::next`] is an error.
#[derive(Debug)]
pub struct Watch {
    systemd: Systemd,
    signals: MessageStream,
    /// Who systemd is on the bus; `None` when connected to it directly.
    sender: Option<String>,
    names: Names,
    reloading: bool,
    resync: bool,
    /// A new systemd may not know that we want its signals.
    subscribe: bool,
    changed: BTreeSet<String>,
    /// Paths of units that signalled something before their names were known.
    nameless: BTreeSet<String>,
}

/// What is known of units by their object paths.
#[derive(Debug, Default)]
struct Names {
    ids: HashMap<String, String>,
    /// Hashes of the properties last signalled, by interface.
    signalled: HashMap<String, Vec<(u64, u64)>>,
}

impl Watch {
    pub(super) async fn start(systemd: Systemd) -> Result<Self, Error> {
        // A connection of its own: when nobody takes the signals they wait in the bus, and
        // hold up no answers.
        let (connection, direct) = bus::connect(&systemd.bus, systemd.deadline).await?;
        let signals = MessageStream::from(&connection);
        let direct_or = if direct { None } else { Some(subscribe_on_bus(&connection).await?) };
        call(&connection, !direct, "Subscribe").await?;
        let mut watch = Self {
            systemd,
            signals,
            sender: direct_or,
            names: Names::default(),
            reloading: false,
            resync: false,
            subscribe: false,
            changed: BTreeSet::new(),
            nameless: BTreeSet::new(),
        };
        watch.learn_names().await?;
        Ok(watch)
    }

    /// Takes every signal of what had happened when this was called: what is asked on the same
    /// connection is answered after them.
    ///
    /// # Errors
    /// When the connection has ended, or systemd does not answer.
    pub async fn catch_up(&mut self) -> Result<(), Error> {
        let connection = Connection::from(&self.signals);
        let to = self.sender.is_some().then_some(NAME);
        let (method, peer) = ("Ping", "org.freedesktop.DBus.Peer");
        let answer = connection.call_method(to, MANAGER_PATH, Some(peer), method, &());
        let mut answer = pin!(answer);
        loop {
            // Signals that nobody takes would hold up the answer, which comes after them.
            tokio::select! {
                biased;
                answer = &mut answer => {
                    answer.map_err(|source| Error::Call { method, source })?;
                    break;
                }
                signal = self.signals.next() => self.take_or_end(signal)?,
            }
        }
        while let Some(signal) = self.signals.next().now_or_never() {
            self.take_or_end(signal)?;
        }
        Ok(())
    }

    /// The next event of those that came already.
    ///
    /// # Errors
    /// As for [`Watch::next`].
    pub async fn pending(&mut self) -> Result<Option<UnitEvent>, Error> {
        if !self.resync && self.nameless.is_empty() && self.changed.is_empty() {
            return Ok(None);
        }
        self.next().await.map(Some)
    }

    /// Waits for the next event. Cancel-safe.
    ///
    /// # Errors
    /// When the connection has ended; the watch is of no use any more.
    pub async fn next(&mut self) -> Result<UnitEvent, Error> {
        loop {
            if self.subscribe {
                let connection = Connection::from(&self.signals);
                if let Err(error) = call(&connection, self.sender.is_some(), "Subscribe").await {
                    tracing::debug!(%error, "systemd knows us already");
                }
                self.subscribe = false;
            }
            if self.resync {
                self.learn_names().await?;
                self.resync = false;
                return Ok(UnitEvent::Resync);
            }
            if !self.nameless.is_empty() {
                self.learn_names().await?;
                let ids = &self.names.ids;
                self.changed.extend(self.nameless.iter().filter_map(|path| ids.get(path).cloned()));
                self.nameless.clear();
            }
            if let Some(id) = self.changed.pop_first() {
                return Ok(UnitEvent::Changed(id));
            }
            self.wait().await?;
        }
    }

    /// Takes the next signal, and all others that are already there.
    async fn wait(&mut self) -> Result<(), Error> {
        let first = if self.reloading {
            match tokio::time::timeout(RELOAD_MAX, self.signals.next()).await {
                Ok(signal) => signal,
                Err(_late) => {
                    tracing::warn!("systemd has been reloading for too long");
                    self.restart();
                    return Ok(());
                }
            }
        } else {
            self.signals.next().await
        };
        let mut next = Some(first);
        while let Some(signal) = next {
            self.take_or_end(signal)?;
            next = self.signals.next().now_or_never();
        }
        Ok(())
    }

    fn take_or_end(&mut self, signal: Option<zbus::Result<Message>>) -> Result<(), Error> {
        let Some(Ok(signal)) = signal else { return Err(Error::Closed) };
        self.take(&signal);
        Ok(())
    }

    fn take(&mut self, signal: &Message) {
        if signal.message_type() != Type::Signal {
            return;
        }
        let header = signal.header();
        let (Some(interface), Some(member)) = (header.interface(), header.member()) else {
            return;
        };
        let sender = header.sender().map(|name| name.as_str());
        if interface.as_str() == DBUS && member.as_str() == "NameOwnerChanged" {
            if sender == Some(DBUS) {
                self.new_owner(signal);
            }
            return;
        }
        // Anybody on the bus may send us something that looks like a signal of systemd's.
        if self.sender.is_some() && self.sender.as_deref() != sender {
            return;
        }
        let path = header.path().map(|path| path.as_str()).unwrap_or_default();
        match (interface.as_str(), member.as_str()) {
            (MANAGER, "Reloading") => self.reload(signal),
            _ if self.reloading => {}
            (MANAGER, "UnitFilesChanged") => self.restart(),
            (MANAGER, "UnitNew" | "UnitRemoved") => self.come_or_go(signal),
            (MANAGER, "JobRemoved") => self.job_removed(signal),
            (PROPERTIES, "PropertiesChanged") if path.starts_with(UNITS) => {
                self.properties_changed(path, signal);
            }
            _ => {}
        }
    }

    /// What was known is no longer.
    fn restart(&mut self) {
        self.reloading = false;
        self.resync = true;
        self.changed.clear();
        self.nameless.clear();
    }

    fn reload(&mut self, signal: &Message) {
        let body = signal.body();
        if read::<bool>(&body, "Reloading").unwrap_or(false) {
            self.reloading = true;
            self.changed.clear();
            self.nameless.clear();
        } else {
            self.restart();
        }
    }

    /// Another systemd took over: it was executed anew, or the bus was restarted.
    fn new_owner(&mut self, signal: &Message) {
        let body = signal.body();
        let Ok((NAME, _old, new)) = read::<(&str, &str, &str)>(&body, "NameOwnerChanged") else {
            return;
        };
        self.sender = Some(new.to_owned());
        if new.is_empty() {
            // It is on its way; until it is there, there is nobody to ask.
            self.reloading = true;
        } else {
            self.subscribe = true;
            self.restart();
        }
    }

    fn come_or_go(&mut self, signal: &Message) {
        let body = signal.body();
        let Ok((name, path)) = read::<(&str, OwnedObjectPath)>(&body, "UnitNew") else { return };
        let id = unit::identity(name, self.systemd.bus.owner());
        let came = signal.header().member().is_some_and(|member| member.as_str() == "UnitNew");
        self.names.signalled.remove(path.as_str());
        if came {
            self.names.ids.insert(path.as_str().to_owned(), id.clone());
        } else {
            self.names.ids.remove(path.as_str());
        }
        self.changed.insert(id);
    }

    fn job_removed(&mut self, signal: &Message) {
        let body = signal.body();
        let job: Result<(u32, OwnedObjectPath, &str, &str), Error> = read(&body, "JobRemoved");
        if let Ok((_id, _job, unit, _result)) = job {
            self.changed.insert(unit::identity(unit, self.systemd.bus.owner()));
        }
    }

    fn properties_changed(&mut self, path: &str, signal: &Message) {
        let body = signal.body();
        let Ok((interface, changed, _invalidated)) =
            read::<(&str, HashMap<&str, Variant<'_>>, Vec<&str>)>(&body, "PropertiesChanged")
        else {
            return;
        };
        if !self.names.differs(path, interface, &changed) {
            return;
        }
        match self.names.ids.get(path) {
            Some(id) => {
                self.changed.insert(id.clone());
            }
            None => {
                self.nameless.insert(path.to_owned());
            }
        }
    }

    async fn learn_names(&mut self) -> Result<(), Error> {
        let owner = self.systemd.bus.owner();
        let listed = self.systemd.list().await?;
        let id = |name: &str| unit::identity(name, owner);
        self.names.ids =
            listed.iter().map(|unit| (unit.6.as_str().to_owned(), id(&unit.0))).collect();
        let ids = &self.names.ids;
        self.names.signalled.retain(|path, _| ids.contains_key(path));
        Ok(())
    }
}

impl Names {
    /// Whether a signal says something new. systemd signals all properties of an interface
    /// whenever one of them changes, be it a line of status text.
    fn differs(
        &mut self,
        path: &str,
        interface: &str,
        changed: &HashMap<&str, Variant<'_>>,
    ) -> bool {
        let mut of_interest: Vec<(&&str, &Variant<'_>)> =
            changed.iter().filter(|(name, _)| unit::READ.contains(name)).collect();
        if of_interest.is_empty() {
            return false;
        }
        of_interest.sort_by_key(|(name, _)| **name);
        let hash = |value: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            value(&mut hasher);
            hasher.finish()
        };
        let interface = hash(&|hasher| interface.hash(hasher));
        let values = hash(&|hasher| of_interest.hash(hasher));
        let known = self.signalled.entry(path.to_owned()).or_default();
        match known.iter_mut().find(|(of, _)| *of == interface) {
            Some((_, before)) => std::mem::replace(before, values) != values,
            None => {
                known.push((interface, values));
                true
            }
        }
    }
}

/// Asks the bus for systemd's signals, and returns who systemd is there.
async fn subscribe_on_bus(connection: &Connection) -> Result<String, Error> {
    let rules = [
        format!("type='signal',sender='{NAME}',path='{MANAGER_PATH}',interface='{MANAGER}'"),
        format!(
            "type='signal',sender='{NAME}',path_namespace='{UNITS}',\
             interface='{PROPERTIES}',member='PropertiesChanged'"
        ),
        format!("type='signal',sender='{DBUS}',member='NameOwnerChanged',arg0='{NAME}'"),
    ];
    let bus = "/org/freedesktop/DBus";
    for rule in rules {
        connection
            .call_method(Some(DBUS), bus, Some(DBUS), "AddMatch", &(rule.as_str(),))
            .await
            .map_err(|source| Error::Call { method: "AddMatch", source })?;
    }
    let owner = connection
        .call_method(Some(DBUS), bus, Some(DBUS), "GetNameOwner", &(NAME,))
        .await
        .map_err(|source| Error::Call { method: "GetNameOwner", source })?;
    let body = owner.body();
    read::<String>(&body, "GetNameOwner")
}

async fn call(
    connection: &Connection,
    over_bus: bool,
    method: &'static str,
) -> Result<Message, Error> {
    let to = over_bus.then_some(NAME);
    connection
        .call_method(to, MANAGER_PATH, Some(MANAGER), method, &())
        .await
        .map_err(|source| Error::Call { method, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_kept_and_new_counts() {
        let mut names = Names::default();
        let mut check = |interface: &str, properties: &[(&'static str, u64)], expected: bool| {
            let changed = properties.iter().map(|(name, n)| (*name, Variant::U64(*n))).collect();
            assert_eq!(names.differs("/u", interface, &changed), expected, "{properties:?}");
        };
        check("Service", &[("CPUUsageNSec", 1), ("MemoryCurrent", 1)], false);
        check("Service", &[("MainPID", 7), ("StatusText", 1)], true);
        check("Service", &[("StatusText", 2), ("MainPID", 7)], false);
        check("Unit", &[("ActiveState", 1)], true);
        check("Service", &[("MainPID", 8)], true);
        check("Service", &[("MainPID", 7)], true);
    }
}
