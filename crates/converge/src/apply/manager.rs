//! systemd's manager, asked over D-Bus: on an emulated machine a call takes milliseconds, and
//! systemctl a hundred times that.
//!
//! # Invariants
//! - A job is over when systemd says so of that very job, and not when its unit looks like it.

use super::Error;
use futures_util::StreamExt;
use model::spec::UnitName;
use std::time::Duration;
use zbus::wire::DynamicDeserialize;
use zbus::{
    Connection, DynamicType, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant,
};

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// For an answer.
const ANSWER: Duration = Duration::from_secs(30);

pub(super) struct Manager {
    connection: Connection,
}

/// How a unit does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) active: String,
    pub(super) sub: String,
    /// Anew with each start.
    pub(super) invocation: Vec<u8>,
    path: OwnedObjectPath,
}

impl Manager {
    /// Each step has a connection of its own: what a plan does may begin the bus anew.
    pub(super) async fn connect() -> Result<Self, Error> {
        let building = zbus::connection::Builder::system().method_timeout(ANSWER).build();
        let built = tokio::time::timeout(ANSWER, Box::pin(building)).await;
        let built = built.map_err(|_late| Error::Late(ANSWER))?;
        let connection =
            built.map_err(|source| Error::Systemd { doing: "on the system bus", source })?;
        Ok(Self { connection })
    }

    /// Of a unit, also of one that nobody has asked for yet.
    pub(super) async fn state(&self, unit: &UnitName) -> Result<State, Error> {
        let answer = self.call(PATH, MANAGER, "LoadUnit", &(unit.as_str(),)).await?;
        let path: OwnedObjectPath = read(&answer, "LoadUnit")?;
        let (active, sub, invocation) = tokio::try_join!(
            self.get(&path, UNIT, "ActiveState"),
            self.get(&path, UNIT, "SubState"),
            self.get(&path, UNIT, "InvocationID"),
        )?;
        Ok(State {
            active: text(active),
            sub: text(sub),
            invocation: Vec::try_from(invocation).unwrap_or_default(),
            path,
        })
    }

    /// Why a service is not what it was to be, in systemd's word for it.
    pub(super) async fn result(&self, state: &State) -> Option<String> {
        self.get(&state.path, SERVICE, "Result").await.ok().map(text)
    }

    /// Has systemd keep what it knows of a unit for as long as this is connected.
    pub(super) async fn hold(&self, unit: &UnitName) -> Result<(), Error> {
        self.call(PATH, MANAGER, "RefUnit", &(unit.as_str(),)).await.map(drop)
    }

    /// Whether a unit was not started since the machine is none that it asks for.
    pub(super) async fn is_unmet(&self, state: &State) -> bool {
        let at = |property| self.get(&state.path, UNIT, property);
        let Ok((checked, met)) = tokio::try_join!(at("ConditionTimestamp"), at("ConditionResult"))
        else {
            return false;
        };
        let checked = u64::try_from(checked).is_ok_and(|at| at > 0);
        checked && matches!(bool::try_from(met), Ok(false))
    }

    /// How a unit's file is enabled, as the disk has it now; `None` where there is no such file.
    pub(super) async fn file_state(&self, unit: &UnitName) -> Result<Option<String>, Error> {
        match self.call(PATH, MANAGER, "GetUnitFileState", &(unit.as_str(),)).await {
            Ok(answer) => read(&answer, "GetUnitFileState").map(Some),
            Err(Error::Systemd { source, .. }) if is_no_file(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has systemd do something with a unit, and waits for it. Returns systemd's word for how it
    /// ended; `done` is good.
    pub(super) async fn job(
        &self,
        method: &'static str,
        unit: &UnitName,
        within: Duration,
    ) -> Result<String, Error> {
        let failed = |source| Error::Systemd { doing: method, source };
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(NAME)
            .path(PATH)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()
            .map_err(failed)?;
        let following = MessageStream::for_match_rule(rule, &self.connection, None).await;
        let mut removed = following.map_err(failed)?;
        let answer = self.call(PATH, MANAGER, method, &(unit.as_str(), "replace")).await?;
        let job: OwnedObjectPath = read(&answer, method)?;
        let ended = async {
            while let Some(signal) = removed.next().await {
                let signal = signal.map_err(failed)?;
                let (_number, path, _unit, result): (u32, OwnedObjectPath, String, String) =
                    read(&signal, "JobRemoved")?;
                if path == job {
                    return Ok(result);
                }
            }
            Err(Error::Unclear("systemd went away meanwhile".to_owned()))
        };
        tokio::time::timeout(within, ended).await.unwrap_or(Err(Error::Late(within)))
    }

    async fn get(
        &self,
        path: &OwnedObjectPath,
        interface: &'static str,
        property: &'static str,
    ) -> Result<OwnedVariant, Error> {
        let answer = self.call(path.as_str(), PROPERTIES, "Get", &(interface, property)).await?;
        read(&answer, property)
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
        let called = self.connection.call_method(Some(NAME), path, Some(interface), method, body);
        called.await.map_err(|source| Error::Systemd { doing: method, source })
    }
}

fn read<T>(message: &Message, doing: &'static str) -> Result<T, Error>
where
    T: for<'b> DynamicDeserialize<'b>,
{
    message.body().deserialize().map_err(|source| Error::Systemd { doing, source })
}

fn text(value: OwnedVariant) -> String {
    String::try_from(value).unwrap_or_default()
}

/// systemd's ways to say that there is no such file.
fn is_no_file(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, _, _) => name.as_str().ends_with(".NoSuchUnit"),
        zbus::Error::FDO(error) => matches!(**error, zbus::fdo::Error::FileNotFound(_)),
        _ => false,
    }
}
