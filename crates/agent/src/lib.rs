//! The agent: sees every change on a host and brings it to the server.
//!
//! ```text
//!   collectors ──Report──► engine ──delta──► outbox ──► spool ──HTTP──► server
//!   (one task each,        (owns the        (owns the spool
//!    own deadline)          facts)           and the connection)
//! ```
//!
//! Each part has one owner task. A collector that hangs or fails says so in its own item and
//! holds up nothing else. The end of another part ends the agent with an error, so that systemd
//! starts it anew: what it would go on with is not whole.

mod backlog;
mod clock;
mod collect;
pub mod config;
mod contents;
mod engine;
pub mod guest;
mod identity;
mod images;
pub mod log;
pub mod memory;
mod metrics;
pub mod node;
pub mod options;
mod outbox;
mod parts;
pub mod program;
pub mod signals;
mod spool;
mod watching;

use collect::Context;
use config::Config;
use contents::Contents;
use engine::{Engine, Looked, Report, Seen};
use host::docker::Docker;
use host::files::Role;
use identity::Identity;
pub use identity::host_name;
use model::entity::{Container, File, Platform};
use model::{ContentId, Facts, HostId};
use outbox::{Outbox, Standing};
use parts::Parts;
use spool::{Opened, Spool};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// When a fault for which the engine had no room is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// How long collectors may take to end.
const GRACE: Duration = Duration::from_secs(1);
/// Bytes a server's answer may have: an acknowledgement, with a list of what is missing or with
/// what was told before.
const MAX_ANSWER: usize = api::MAX_BODY;
/// Reports and deltas that may wait for the next part.
const QUEUE: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not prepare {path}")]
    Prepare {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// With another key every secret would seem to have changed.
    #[error(
        "{path} is cut short. Restore it from a backup; or remove it, and all secrets will seem \
         to have changed once"
    )]
    Key { path: PathBuf },
    #[error("could not use the spool")]
    Spool(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
    #[error(
        "this host has no name that can be one: {0}; give it one with `host:` in the configuration"
    )]
    Name(#[from] model::HostIdError),
    #[error(
        "could not listen at {address} for metrics; free it, or change `metrics:` in the configuration"
    )]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("watching this machine broke off")]
    Watching,
    #[error("{part} broke off")]
    Part { part: &'static str },
    #[error(transparent)]
    Server(#[from] api::client::Error),
}

/// Watches this machine until told to stop.
///
/// # Errors
/// When the state directory can't be used or the host has no usable name; and when a part of the
/// agent broke off.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Error> {
    // Also cancelled when a part broke off, which is no reason to stop for others.
    let stop = stop.child_token();
    let identity = Identity::open(&config.state_dir)?;
    let host = host_name(&config)?;
    let to_server = client(&config)?;
    if let Some(path) = config.open_token.as_deref().map(std::path::Path::display) {
        tracing::warn!("the token in {path} can be read by others; run: chmod 600 {path}");
    }
    let spool_dir = config.state_dir.join("spool");
    let opened = Spool::open(&spool_dir, config.spool_limit, identity::new_stream);
    let Opened { spool, facts } = opened.map_err(|error| Error::Spool(Box::new(error)))?;
    let contents_dir = config.state_dir.join("contents");
    let contents = Contents::open(&contents_dir, config.spool_limit)
        .map_err(|source| Error::Prepare { path: contents_dir, source })?;
    tracing::info!(%host, server = config.server, waiting = spool.len(), oldest = ?spool.oldest(), "watching this host");

    let listener = metrics::bind(config.metrics).await?;
    let (outgoing, incoming) = mpsc::channel(QUEUE);
    let (standing, standings) = watch::channel(Standing::default());
    let (missing, wanted) = watch::channel(Vec::new());
    let (looked, has_looked) = watch::channel(Looked::default());
    let (reports, received) = mpsc::channel(QUEUE);
    let node = host.clone();
    let outbox = Outbox {
        host,
        spool,
        contents,
        incoming,
        standing,
        new_stream: identity::new_stream,
        refusals: 0,
        looked: has_looked,
        engine: reports.downgrade(),
        recall: true,
        patient: true,
        is_known: None,
        without_load: false,
        asks_whole: false,
    };
    let mut context = Context::new(config, identity.key, reports, wanted);
    context.shutdown = stop.clone();
    recall(&mut context, &facts);
    let unseen = collect::FIRST.into_iter().chain(collect::SEEN_LATER);
    let mut engine = Engine::new(facts, collect::FIRST, unseen, looked);
    let images = hand_out_images(&context, node.clone())?;
    let figures = listener.map(|one| figures(one, node, &context, &mut engine, standings.clone()));

    // The outbox outlives the engine, and the engine the collectors: each is told to stop by
    // the end of what feeds it, so that the last changes still go out.
    let mut parts = Parts::default();
    parts.start_essential("the outbox", outbox.run(to_server, CancellationToken::new()));
    parts.start_essential("the engine", engine.run(received, outgoing, CancellationToken::new()));
    if let Some(figures) = figures {
        parts.start("telling figures", figures);
    }
    parts.start("handing out images", images);
    parts.start("giving back memory", memory::give_back(stop.clone()));
    parts.start(
        "telling of deliveries",
        tell(standings, missing, context.reports.clone(), stop.clone()),
    );
    let collectors = collect::start(&context);
    drop(context);
    notify(sd_notify::NotifyState::Ready);
    let result = keep_watchdog(&stop, &mut parts).await;
    stop.cancel();
    notify(sd_notify::NotifyState::Stopping);
    wind_up(collectors, parts).await;
    result
}

/// Waits for those that were told to stop, though not for long.
async fn wind_up(mut collectors: tokio::task::JoinSet<()>, mut parts: Parts) {
    let all_ended = async { while collectors.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all_ended).await.is_err() {
        tracing::debug!(left = collectors.len(), "collectors are cut off");
    }
    collectors.shutdown().await;
    if tokio::time::timeout(GRACE * 4, parts.end()).await.is_err() {
        tracing::warn!("could not deliver everything in time; it is in the spool");
    }
}

fn client(config: &Config) -> Result<api::client::Client, api::client::Error> {
    let client = api::client::Client::new(&config.server, config.token.clone())?;
    Ok(client.with_max_answer(MAX_ANSWER))
}

/// Hands out images where the configuration says so, until told to stop.
fn hand_out_images(
    context: &Context,
    host: HostId,
) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
    let config = &context.config;
    let client = config.hand_out_images.then(|| client(config)).transpose()?;
    let docker = Docker::new(config.docker_socket.clone(), context.redactor.clone());
    let stop = context.shutdown.clone();
    Ok(async move {
        if let Some(client) = client {
            let handing_out = images::hand_out(client, host, docker);
            let _ended = stop.run_until_cancelled_owned(handing_out).await;
        }
    })
}

/// What collectors have to know of the facts that the agent begins with.
fn recall(context: &mut Context, facts: &Facts) {
    context.known_platform = facts.entity::<Platform>("host").map(Arc::new);
    context.had_containers = facts.entities::<Container>().next().is_some();
    // That nobody can say now whose a file is does not mean that it is nobody's. What is told to
    // be nobody's may just not have been known; of programs it was.
    let owner = |file: File| match Role::parse(&file.role) {
        Some(Role::Program) => Some((file.path, file.package)),
        _ => Some((file.path, Some(file.package?))),
    };
    let mut packages = context.packages.lock().unwrap_or_else(PoisonError::into_inner);
    packages.remember(facts.entities::<File>().filter_map(owner));
    drop(packages);
    context.known_files = facts
        .entities::<File>()
        .filter_map(|file| Some((file.path, Role::parse(&file.role)?)))
        .collect();
}

/// Tells figures to whoever asks for them there.
fn figures(
    listener: TcpListener,
    node: HostId,
    context: &Context,
    engine: &mut Engine,
    standing: watch::Receiver<Standing>,
) -> impl Future<Output = ()> + Send + use<> {
    let (samples, sample) = watch::channel(None);
    engine.tell_samples(samples);
    let sources = metrics::Sources {
        node,
        token: context.config.metrics_token.clone(),
        sample,
        standing,
        units: context.units.subscribe(),
        user_vms: context.user_vms.subscribe(),
    };
    metrics::serve(listener, sources, context.shutdown.clone())
}

/// The facts of this machine, looked at once.
///
/// # Errors
/// When the system gives no random bytes for the redaction's key.
pub async fn once(config: Config) -> Result<Facts, Error> {
    // Without a state directory that can be written the marks of secrets last for this look.
    let identity = Identity::open(&config.state_dir).or_else(|_unwritable| Identity::passing())?;
    let (reports, received) = mpsc::channel(QUEUE);
    let (_missing, wanted) = watch::channel(Vec::new());
    let mut context = Context::new(config, identity.key, reports, wanted);
    context.once = true;
    let mut collectors = collect::start(&context);
    drop(context);
    let engine = Engine::new(Facts::default(), [], [], watch::Sender::default());
    let facts = engine.once(received);
    let ended = async { while collectors.join_next().await.is_some() {} };
    let (facts, ()) = tokio::join!(facts, ended);
    Ok(facts)
}

/// Says in the log, once each, when deliveries fail and when they go on; makes a spool that
/// can't be written, and a content that is not taken, a fault; and passes on what the server asks for again.
async fn tell(
    mut standings: watch::Receiver<Standing>,
    missing: watch::Sender<Vec<ContentId>>,
    reports: mpsc::Sender<Report>,
    stop: CancellationToken,
) {
    let mut before = Standing::default();
    // What the engine was told; not always what there was to tell.
    let mut told: [(Option<&str>, Option<String>); 2] = [(None, None), (Some("contents"), None)];
    let mut is_told = true;
    loop {
        tokio::select! {
            changed = standings.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(TELL_AGAIN), if !is_told => {}
            () = stop.cancelled() => return,
        }
        let now = standings.borrow_and_update().clone();
        match (&before.trouble, &now.trouble) {
            (None, Some(trouble)) => {
                tracing::warn!(trouble, "changes are kept until they can be delivered");
            }
            (Some(_), None) => tracing::info!(version = now.version, "changes are delivered again"),
            _ => {}
        }
        is_told = true;
        for ((part, told), now) in told.iter_mut().zip([&now.spool, &now.contents]) {
            if told == now {
                continue;
            }
            let seen = match now {
                Some(trouble) => Seen::Fault(trouble.clone()),
                None => Seen::Some { put: Vec::new(), gone: Vec::new() },
            };
            let part = part.map(str::to_owned);
            // No room means that the engine is busy enough.
            if reports.try_send(Report { collector: "spool", part, seen }).is_ok() {
                told.clone_from(now);
            } else {
                tracing::debug!(trouble = now, "the spool's fault found no room; telling it again");
                is_told = false;
            }
        }
        missing.send_if_modified(|known| {
            let news = !now.missing.is_empty() && *known != now.missing;
            known.clone_from(&now.missing);
            news
        });
        before = now;
    }
}

/// Waits for the stop, or for a part to break off; meanwhile tells systemd's watchdog that the
/// event loop turns.
async fn keep_watchdog(stop: &CancellationToken, parts: &mut Parts) -> Result<(), Error> {
    let ended = async {
        tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            part = parts.broken() => Err(Error::Part { part }),
        }
    };
    let mut ended = std::pin::pin!(ended);
    let Some(period) = sd_notify::watchdog_enabled() else { return ended.await };
    loop {
        notify(sd_notify::NotifyState::Watchdog);
        tokio::select! {
            biased;
            ended = &mut ended => return ended,
            () = tokio::time::sleep(period / 3) => {}
        }
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd did not take a notification");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fault_for_which_there_was_no_room_is_told_later() {
        let (standing, standings) = watch::channel(Standing::default());
        let (reports, mut told) = mpsc::channel(1);
        let seen = Seen::Lost;
        reports.try_send(Report { collector: "spool", part: None, seen }).unwrap();
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(tell(standings, watch::Sender::default(), reports, stop.clone()));
        standing.send_modify(|standing| standing.contents = Some("refused".to_owned()));
        tokio::time::sleep(TELL_AGAIN * 3).await;
        assert!(matches!(told.recv().await.unwrap().seen, Seen::Lost));
        let fault = told.recv().await.unwrap();
        assert_eq!(fault.part.as_deref(), Some("contents"));
        assert!(matches!(fault.seen, Seen::Fault(text) if text == "refused"));
        // Once.
        tokio::time::sleep(TELL_AGAIN * 3).await;
        assert!(told.try_recv().is_err());
        stop.cancel();
        tasks.join_next().await.unwrap().unwrap();
    }
}
