//! The Redis behind a [`super::RedisSink`]: one connection, made anew when it broke.

use super::{Applied, RedisSettings};
use crate::error::Error;
use crate::lease::Lease;
use crate::session::{self, Edit, Effects, Outcome};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue,
    IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError, RedisResult, Value,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

const PASS: &str = "safetytwin:sync:pass";
const LEASE: &str = "safetytwin:sync:lease";
/// Keys that Redis looks at for one answer of a `SCAN`.
const SCANNED: usize = 512;
/// Sessions that are read and written at once.
const CHUNK: usize = 64;
/// A session that is larger is left alone.
const MAX_SESSION_BYTES: usize = 1 << 20;
/// How often a session may change while it is to be written.
const TRIES: usize = 10;
/// How long a pass that broke off is remembered.
const PASS_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// How long it is remembered who had the lease last.
const LEASE_NOTE: Duration = Duration::from_secs(30 * 86_400);
/// Reasons that are told of one pass.
const MAX_SKIPPED: usize = 20;

/// Notes of a pass of another outbox, or of changes that are older, say nothing of this one.
/// `KEYS`: the notes. `ARGV`: the outbox, the first and the last change, seconds to live.
const BEGIN: &str = r"
local owner = redis.call('HGET', KEYS[1], 'owner')
local last = redis.call('HGET', KEYS[1], 'last')
if owner ~= ARGV[1] or not last or last < ARGV[2] then
    redis.call('DEL', KEYS[1])
    last = ARGV[3]
end
if last < ARGV[3] then last = ARGV[3] end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'last', last)
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
";

/// `KEYS`: a session, the notes. `ARGV`: what it was, what it is to be, the last change in it.
const SWAP: &str = r"
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then return 0 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
redis.call('HSET', KEYS[2], KEYS[1], ARGV[3])
return 1
";

/// Who had it before, or has it. The note outlives the lease, so that who had it last can be
/// told. `KEYS`: the lease. `ARGV`: the holder, milliseconds for the lease and for the note, and
/// 1 where it is not to be taken from another.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ends, holder = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (.*)$')
if holder and holder ~= ARGV[1] and tonumber(ends) > now then return holder end
if holder ~= ARGV[1] and ARGV[4] == '1' then return false end
local note = string.format('%.0f', now + tonumber(ARGV[2])) .. ' ' .. ARGV[1]
redis.call('SET', KEYS[1], note, 'PX', ARGV[3])
if holder == ARGV[1] then return holder end
return false
";

/// `KEYS`: the lease. `ARGV`: the holder.
const RELEASE: &str = r"
local holder = string.match(redis.call('GET', KEYS[1]) or '', '^%d+ (.*)$')
if holder == ARGV[1] then redis.call('SET', KEYS[1], '0 ' .. holder, 'KEEPTTL') end
return 1
";

#[derive(Debug, Clone)]
pub(super) struct Driver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `Redis at HOST:PORT`.
    server: String,
    client: Client,
    timeout: Duration,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// What a pass is to do.
struct Pass<'e> {
    edits: &'e [Edit],
    last: &'e str,
    /// By the change up to which a session has them already.
    effects: HashMap<Option<String>, Effects>,
    applied: Applied,
}

impl Driver {
    pub(super) fn new(settings: RedisSettings) -> Result<Self, Error> {
        let RedisSettings { host, port, username, password, timeout } = settings;
        let unusable = |why: String| Error::Settings { what: "Redis", why };
        if host.is_empty() {
            return Err(unusable("it has no host".to_owned()));
        }
        let server = format!("Redis at {host}:{port}");
        let mut user = RedisConnectionInfo::default();
        if let Some(username) = username {
            user = user.set_username(username);
        }
        if let Some(password) = password {
            user = user.set_password(password);
        }
        let client = ConnectionAddr::Tcp(host, port)
            .into_connection_info()
            .and_then(|info| Client::open(info.set_redis_settings(user)))
            .map_err(|error| unusable(error.to_string()))?;
        let connection = Mutex::new(None);
        Ok(Self(Arc::new(Inner { server, client, timeout, connection })))
    }

    pub(super) async fn apply(&self, edits: &[Edit]) -> Result<Applied, Error> {
        let (Some(first), Some(last)) = (edits.first(), edits.last()) else {
            return Ok(Applied::default());
        };
        self.begin(&first.id, &last.id).await?;
        let mut pass = Pass::new(edits, &last.id);
        let mut cursor: u64 = 0;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg("?".repeat(session::KEY_LENGTH));
            scan.arg("COUNT").arg(SCANNED).arg("TYPE").arg("string");
            let (next, found): (u64, Vec<Vec<u8>>) = self.0.ask(&scan).await?;
            let keys: Vec<String> = found
                .into_iter()
                .filter(|key| session::is_key(key))
                .filter_map(|key| String::from_utf8(key).ok())
                .collect();
            for keys in keys.chunks(CHUNK) {
                self.sessions(&mut pass, keys).await?;
            }
            if next == 0 {
                return Ok(pass.applied);
            }
            cursor = next;
        }
    }

    pub(super) async fn forget(&self) -> Result<(), Error> {
        let mut delete = redis::cmd("DEL");
        delete.arg(PASS);
        self.0.ask(&delete).await
    }

    pub(super) async fn renew(&self, holder: &str, ttl: Duration) -> Result<bool, Error> {
        Ok(self.take(holder, ttl, true).await?.as_deref() == Some(holder))
    }

    /// Who had it before, or has it.
    async fn take(
        &self,
        holder: &str,
        ttl: Duration,
        only_ours: bool,
    ) -> Result<Option<String>, Error> {
        let mut take = redis::cmd("EVAL");
        let milliseconds = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        take.arg(TAKE).arg(1).arg(LEASE).arg(holder);
        take.arg(milliseconds(ttl.min(LEASE_NOTE))).arg(milliseconds(LEASE_NOTE));
        take.arg(u8::from(only_ours));
        self.0.ask(&take).await
    }

    pub(super) async fn lease(&self, holder: &str, ttl: Duration) -> Result<Lease, Error> {
        Ok(match self.take(holder, ttl, false).await? {
            None => Lease::TakenOver,
            Some(before) if before == holder => Lease::Ours,
            Some(other) => Lease::Others(other),
        })
    }

    pub(super) async fn release(&self, holder: &str) -> Result<(), Error> {
        let mut release = redis::cmd("EVAL");
        release.arg(RELEASE).arg(1).arg(LEASE).arg(holder);
        self.0.ask(&release).await
    }

    async fn begin(&self, first: &str, last: &str) -> Result<(), Error> {
        let owner = first.rsplit_once('-').map_or("", |(_, owner)| owner);
        let mut begin = redis::cmd("EVAL");
        begin.arg(BEGIN).arg(1).arg(PASS).arg(owner).arg(first).arg(last).arg(PASS_LIFE.as_secs());
        self.0.ask(&begin).await
    }

    /// Brings some sessions up to the last change.
    async fn sessions(&self, pass: &mut Pass<'_>, keys: &[String]) -> Result<(), Error> {
        pass.applied.sessions += keys.len();
        let mut keys = keys.to_vec();
        for _ in 0..TRIES {
            let mut swaps = Vec::new();
            for (key, text, noted) in self.read(pass, &keys).await? {
                match pass.effects(noted).apply(&text) {
                    Outcome::Same => {}
                    Outcome::NoSession(reason) => pass.skip(&key, reason),
                    Outcome::Changed(new) => swaps.push((key, text, new)),
                }
            }
            keys = self.swap(pass, swaps).await?;
            if keys.is_empty() {
                return Ok(());
            }
        }
        Err(Error::Contended { server: self.0.server.clone() })
    }

    /// What is there under these keys, and up to which change it was brought in this pass.
    async fn read(
        &self,
        pass: &mut Pass<'_>,
        keys: &[String],
    ) -> Result<Vec<(String, String, Option<String>)>, Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("HMGET").arg(PASS).arg(keys);
        for key in keys {
            pipe.cmd("GETRANGE").arg(key).arg(0).arg(MAX_SESSION_BYTES);
        }
        let mut answers = self.0.ask_all(&mut pipe).await?.into_iter();
        let noted: Vec<Option<String>> = match answers.next() {
            Some(answer) => self.0.understood(answer.map_err(|error| self.0.error(error))?)?,
            None => return Err(self.0.unclear()),
        };
        let mut read = Vec::new();
        for ((key, noted), answer) in keys.iter().zip(noted).zip(answers) {
            let bytes: Vec<u8> = match answer {
                Ok(value) => self.0.understood(value)?,
                // Something else is there now.
                Err(error) if error.code() == Some("WRONGTYPE") => continue,
                Err(error) => return Err(self.0.error(error)),
            };
            if bytes.len() > MAX_SESSION_BYTES {
                pass.skip(key, "it is larger than 1 MiB");
                continue;
            }
            match String::from_utf8(bytes) {
                // Gone meanwhile.
                Ok(text) if text.is_empty() => {}
                Ok(text) => read.push((key.clone(), text, noted)),
                Err(_bytes) => pass.skip(key, "it is no text"),
            }
        }
        Ok(read)
    }

    /// Writes what is still as it was read; the keys of what is not.
    async fn swap(
        &self,
        pass: &mut Pass<'_>,
        swaps: Vec<(String, String, String)>,
    ) -> Result<Vec<String>, Error> {
        if swaps.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for (key, old, new) in &swaps {
            pipe.cmd("EVAL").arg(SWAP).arg(2).arg(key).arg(PASS).arg(old).arg(new).arg(pass.last);
        }
        let answers = self.0.ask_all(&mut pipe).await?;
        let mut again = Vec::new();
        for ((key, ..), answer) in swaps.into_iter().zip(answers) {
            let swapped: bool = self.0.understood(answer.map_err(|error| self.0.error(error))?)?;
            if swapped {
                pass.applied.changed += 1;
            } else {
                again.push(key);
            }
        }
        Ok(again)
    }
}

impl<'e> Pass<'e> {
    fn new(edits: &'e [Edit], last: &'e str) -> Self {
        Self { edits, last, effects: HashMap::new(), applied: Applied::default() }
    }

    fn effects(&mut self, noted: Option<String>) -> &Effects {
        let edits = self.edits;
        self.effects.entry(noted).or_insert_with_key(|noted| {
            let is_new = |edit: &&Edit| noted.as_ref().is_none_or(|noted| edit.id > *noted);
            session::effects(edits.iter().filter(is_new))
        })
    }

    fn skip(&mut self, key: &str, reason: &str) {
        if self.applied.skipped.len() < MAX_SKIPPED {
            // The whole key would let somebody in.
            let short: String = key.chars().take(4).collect();
            self.applied.skipped.push(format!("{short}…: {reason}"));
        }
    }
}

impl Inner {
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut connection = self.connection().await?;
        let answer: RedisResult<Value> = command.query_async(&mut connection).await;
        self.understood(self.checked(answer).await?)
    }

    /// What each command was answered. Fails when there was no answer.
    async fn ask_all(&self, pipe: &mut Pipeline) -> Result<Vec<RedisResult<Value>>, Error> {
        let mut connection = self.connection().await?;
        pipe.ignore_errors();
        let wanted = pipe.len();
        let answers: RedisResult<Vec<RedisResult<Value>>> = pipe.query_async(&mut connection).await;
        let answers = self.checked(answers).await?;
        if answers.len() == wanted { Ok(answers) } else { Err(self.unclear()) }
    }

    async fn connection(&self) -> Result<MultiplexedConnection, Error> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref() {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| self.error(error))?;
        *kept = Some(connection.clone());
        Ok(connection)
    }

    /// A connection that failed is not asked again.
    async fn checked<T>(&self, answer: RedisResult<T>) -> Result<T, Error> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let error = self.error(error);
                if error.is_retriable() {
                    self.connection.lock().await.take();
                }
                Err(error)
            }
        }
    }

    fn understood<T: FromRedisValue>(&self, value: Value) -> Result<T, Error> {
        redis::from_redis_value(value).map_err(|_parsing| self.unclear())
    }

    fn unclear(&self) -> Error {
        Error::Answer { server: self.server.clone(), what: "an answer of another form" }
    }

    fn error(&self, error: RedisError) -> Error {
        let server = self.server.clone();
        match error.code() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => {
                return Error::Denied { server, source: error.into() };
            }
            Some(
                code @ ("LOADING" | "READONLY" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" | "BUSY"
                | "MISCONF" | "NOREPLICAS" | "OOM"),
            ) => return Error::Unready { server, code: code.to_owned() },
            _ => {}
        }
        if error.kind() == ErrorKind::AuthenticationFailed {
            Error::Denied { server, source: error.into() }
        } else if error.is_timeout() {
            Error::Deadline { server, deadline: self.timeout }
        } else if error.is_io_error() || error.is_connection_dropped() {
            Error::Unreachable { server, source: error.into() }
        } else {
            Error::Refused { server, source: error.into() }
        }
    }
}
