//! Starts and stops: sockets, history, the timer for retention, what systemd wants to know.

use crate::app::{App, events};
use crate::clock;
use crate::config::Config;
use crate::http;
use crate::listening::{Answers, Places, listen, raise_file_limit};
use crate::metrics::Metrics;
use crate::pulse::Pulse;
use crate::rendered::Rendered;
use crate::replays::Replays;
use crate::retention;
use crate::runs::{self, Runs};
use crate::snapshots::Snapshots;
use crate::sync::{self, Sync};
use crate::tokens::{self, Tokens};
use crate::twins::follow::{self, Wakers};
use crate::twins::{self, Shared, Twins};
use crate::vms::{self, Vms};
use model::redact::Redactor;
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{History, Options};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once where the older sync service's clients ask.
const OLDER_CONNECTIONS: usize = 64;
/// How long what is under way may take to end.
const GRACE: Duration = Duration::from_secs(5);
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not prepare {path}")]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    History(#[from] store::Error),
    #[error(transparent)]
    Tokens(#[from] tokens::Error),
    #[error(transparent)]
    Runs(#[from] runs::Error),
    #[error(transparent)]
    Images(#[from] vm::image::Error),
    #[error(
        "listening beyond loopback needs tokens, and there are none; make one with: twin token create --role admin"
    )]
    NoTokens,
    #[error("could not listen on {address}; is another server running there?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("VMs can't be kept in step with vSpheres")]
    Sync(#[from] sync::OpenError),
    #[error(
        "could not listen on {address}, which api_server says; is the older sync service running?"
    )]
    ListenOlder {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
}

/// A server that holds its sockets and its history, ready to run.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    answers: Answers,
    /// What the inventory is told.
    messages: mpsc::Receiver<vms::Message>,
    commands: Option<OlderService>,
}

impl Server {
    #[cfg(test)]
    pub(crate) fn app(&self) -> Arc<App> {
        Arc::clone(&self.app)
    }

    /// Opens the history and the sockets. What goes wrong goes wrong here.
    ///
    /// # Errors
    /// When the data directory can't be used, another server uses it, an address is taken, or
    /// tokens are needed and there are none.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        raise_file_limit();
        prepare(&config.data_dir)?;
        let tokens = Tokens::open(&config.data_dir)?;
        if config.tokens_required && tokens.list()?.is_empty() {
            return Err(Error::NoTokens);
        }
        let mut listeners = Vec::new();
        for &address in &config.listen {
            let listener = TcpListener::bind(address).await;
            listeners.push(listener.map_err(|source| Error::Listen { address, source })?);
        }
        let addresses =
            listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let key = redaction_key(&config.data_dir)?;
        let events = events();
        let publish = events.clone();
        let wakers = Wakers::default();
        let wake = wakers.clone();
        let options = Options {
            retention: config.retention,
            on_commit: Some(Box::new(move |committed| {
                wake.wake(committed.host.as_str());
                // Who begins to listen after this finds the version in the history.
                if publish.receiver_count() > 0 {
                    let _listeners = publish.send(Arc::new(committed.into()));
                }
            })),
            ..Options::default()
        };
        let dir = config.data_dir.join("history");
        let opened = tokio::task::spawn_blocking(move || History::open(&dir, options)).await;
        let history = opened.unwrap_or(Err(store::Error::Closed))?;
        // After the history, whose lock says that no other server uses the directory.
        let (runs, images) = long_work(&config).await?;
        let (sync, commands) = follow_vspheres(config.sync, &history).await?;
        let (vms, messages) = Vms::open(&history, config.inventory, clock::now())?;
        let app = Arc::new(App {
            snapshots: Snapshots::open(&history, config.max_snapshots)?,
            twins: Twins::new(
                &config.data_dir,
                config.twins,
                Shared {
                    images: images.clone(),
                    history: history.clone(),
                    runs: runs.clone(),
                    wakers,
                },
            ),
            vms,
            sync,
            runs,
            images,
            history,
            pulse: Pulse::default(),
            places: Arc::new(Places::new(config.connections)),
            events,
            tokens,
            tokens_required: config.tokens_required,
            server_names: config.server_names,
            vm_name: config.vm_name,
            redactor: Redactor::new(key, Vec::new()),
            metrics: Metrics::default(),
            replays: Replays::default(),
            recordings: TaskTracker::new(),
            rendered: Rendered::default(),
            seen: Mutex::new(HashMap::new()),
            shutdown: CancellationToken::new(),
        });
        let answers = Answers { all: http::router(&app), probes: http::probes(&app) };
        Ok(Self { app, listeners, addresses, answers, messages, commands })
    }

    /// Where it listens, with the ports the system chose.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where the older sync service's clients ask.
    #[must_use]
    pub fn sync_address(&self) -> Option<SocketAddr> {
        self.commands.as_ref().and_then(|(_, listener)| listener.local_addr().ok())
    }

    /// What takes long, to begin and to follow from within.
    #[must_use]
    pub fn runs(&self) -> &Runs {
        &self.app.runs
    }

    /// The machines that mirror hosts, to begin and to follow from within.
    #[must_use]
    pub fn twins(&self) -> &Twins {
        &self.app.twins
    }

    /// Serves until told to stop; then ends what is under way, and closes the history.
    pub async fn run(self, stop: CancellationToken) {
        let Self { app, listeners, answers, messages, commands, .. } = self;
        let mut tasks = JoinSet::new();
        let older_places = app.places.of_another_address(OLDER_CONNECTIONS);
        let serve = |listener, answers, places: &Arc<Places>| {
            listen(listener, answers, Arc::clone(places), app.shutdown.clone())
        };
        for listener in listeners {
            tasks.spawn(serve(listener, answers.clone(), &app.places));
        }
        if let (Some((commands, listener)), Some(sync)) = (commands, app.sync.clone()) {
            // It may be reached from elsewhere without a token: it neither tells what only this
            // machine may ask, nor takes the places of others.
            let answers = Answers { all: http::older_sync(&app), probes: http::refusal() };
            tasks.spawn(serve(listener, answers, &Arc::new(older_places)));
            tasks.spawn(sync::run(Arc::clone(&app), sync, commands));
        }
        tasks.spawn(retention::run(Arc::clone(&app)));
        tasks.spawn(watchdog(Arc::clone(&app)));
        tasks.spawn(vms::controller::run(Arc::clone(&app), messages));
        let (twins, stopping) = (app.twins.clone(), app.shutdown.clone());
        tasks.spawn(twins::consoles::bound(twins.clone(), stopping.clone()));
        tasks.spawn(twins::starved::watch(twins.clone(), stopping.clone()));
        tasks.spawn(async move {
            // Cut off by the end of the server, it is done at the next start.
            let found = stopping.clone().run_until_cancelled_owned(twins.find_again()).await;
            if found.is_some() {
                follow::run(twins, stopping).await;
            }
        });
        notify(sd_notify::NotifyState::Ready);
        stop.cancelled().await;
        notify(sd_notify::NotifyState::Stopping);
        app.shutdown.cancel();
        // Whoever follows a run gets its end.
        app.runs.close().await;
        let ended =
            tokio::time::timeout(GRACE, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!(left = tasks.len(), "requests were still under way and are cut off");
            tasks.shutdown().await;
        }
        app.recordings.close();
        if tokio::time::timeout(GRACE, app.recordings.wait()).await.is_err() {
            tracing::warn!("a state was still being recorded");
        }
        // The last handle closes the history, which waits for its writer.
        if tokio::task::spawn_blocking(move || drop(app)).await.is_err() {
            tracing::error!("the history could not be closed in order");
        }
    }
}

/// What keeping VMs in step is told, and where the older service's clients ask.
type OlderService = (mpsc::Receiver<sync::Command>, TcpListener);

async fn follow_vspheres(
    settings: Option<sync::Settings>,
    history: &History,
) -> Result<(Option<Sync>, Option<OlderService>), Error> {
    let Some(settings) = settings else { return Ok((None, None)) };
    let (host, port) = settings.address();
    let listener = TcpListener::bind((host, port)).await;
    let failed = |source| Error::ListenOlder { address: format!("{host}:{port}"), source };
    let listener = listener.map_err(failed)?;
    let (sync, commands) = Sync::open(settings, history.records(), clock::now())?;
    Ok((Some(sync), Some((commands, listener))))
}

/// The runs, and the base images that some of them make. What the last server left half-made
/// is gone then.
async fn long_work(config: &Config) -> Result<(Runs, vm::image::Store), Error> {
    let (data, limits) = (config.data_dir.clone(), config.runs.clone());
    let opened = tokio::task::spawn_blocking(move || -> Result<(Runs, vm::image::Store), Error> {
        let runs = Runs::open(&data.join("runs"), limits)?;
        for run in runs.interrupted() {
            tracing::warn!(id = %run.id, kind = %run.kind, subject = %run.subject, "a run was interrupted");
        }
        let place = |source| Error::Prepare { path: data.join("twins"), source };
        twins::settle(&data).map_err(place)?;
        Ok((runs, vm::image::Store::open(&data.join("images"))?))
    });
    opened.await.unwrap_or(Err(runs::Error::Closed.into()))
}

/// Tells systemd that the server works: only while the history's writer answers.
async fn watchdog(app: Arc<App>) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    loop {
        tokio::select! {
            () = tokio::time::sleep(period / 3) => {}
            () = app.shutdown.cancelled() => return,
        }
        // One that is slow is waited for: what counts is when systemd was told last.
        let beats = app.pulse.beats(&app.history, period);
        if app.shutdown.run_until_cancelled(beats).await == Some(true) {
            notify(sd_notify::NotifyState::Watchdog);
        }
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd did not take a notification");
    }
}

fn prepare(dir: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| Error::Prepare { path: dir.to_owned(), source })
}

/// The key with which secrets from clients that don't redact are replaced; made once.
fn redaction_key(dir: &Path) -> Result<[u8; 32], Error> {
    let path = dir.join("redaction.key");
    let failed = |source| Error::Prepare { path: path.clone(), source };
    let mut key = [0; 32];
    match fs::File::open(&path) {
        Ok(mut file) => file.read_exact(&mut key).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            getrandom::fill(&mut key).map_err(Error::Random)?;
            let half = dir.join("redaction.key.new");
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&half)
                .map_err(failed)?;
            file.write_all(&key).and_then(|()| file.sync_all()).map_err(failed)?;
            fs::rename(&half, &path).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    Ok(key)
}
