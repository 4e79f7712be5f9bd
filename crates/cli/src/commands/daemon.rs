//! `twin server`, `twin agent`, `twin up`: the daemons, and both of them for this machine.

use super::boot::Boot;
use crate::arguments::{ServeArguments, ServerArguments, UpArguments};
use crate::failure::Failure;
use crate::session::note;
use agent::options::Options;
use model::HostId;
use model::terminal::plain;
use server::Server;
use server::config::{Config, File, default_files};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long `twin up` waits for the first version before it says what it has.
const FIRST_VERSION: Duration = Duration::from_secs(10);

/// Serves until told to stop.
pub(crate) fn server(arguments: &ServerArguments) -> Result<(), Failure> {
    let (file, named) = server_file(arguments)?;
    start_log(
        arguments.log_level(&file, named.as_deref())?,
        arguments.log_file.as_deref().or(file.log_file.as_deref()),
    )?;
    let config = file.check().map_err(|error| wrong(&error))?;
    if let Some(path) = named {
        tracing::info!(file = %path.display(), "configuration");
    }
    serve(config)
}

/// Keeps VMs in step with vSpheres, in place of the older sync service.
pub(crate) fn sync(arguments: &ServeArguments) -> Result<(), Failure> {
    let log = ServerArguments { log_level: arguments.log_level.clone(), ..Default::default() };
    start_log(log.log_level(&File::default(), None)?, arguments.log_file.as_deref())?;
    let listen = Some(arguments.listen.clone()).filter(|listen| !listen.is_empty());
    let file = File {
        data_dir: arguments.data_dir.clone(),
        listen,
        sync: Some(arguments.config.clone()),
        ..File::default()
    };
    serve(file.check().map_err(|error| wrong(&error))?)
}

fn serve(config: Config) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let stop = CancellationToken::new();
        let server = bind(config).await?;
        let signals =
            agent::signals::cancel_on_signal(stop.clone()).map_err(|error| failed(&error))?;
        for address in server.addresses() {
            tracing::info!(%address, "listening");
        }
        if let Some(address) = server.sync_address() {
            tracing::info!(%address, "listening, for the older sync service's clients");
        }
        server.run(stop).await;
        signals.abort();
        Ok(())
    })
}

/// Watches this machine until told to stop.
pub(crate) fn agent(options: &Options) -> Result<(), Failure> {
    let config =
        options.file().and_then(agent::config::File::check).map_err(|error| wrong(&error))?;
    let level = if config.verbose { "debug" } else { "info" };
    start_log(level, config.log_file.as_deref())?;
    runtime()?.block_on(async {
        if options.looks_once() {
            let facts = agent::once(config).await.map_err(|error| failed(&error))?;
            return options.write(&facts).map_err(|error| failed(&error));
        }
        let stop = CancellationToken::new();
        let signals =
            agent::signals::cancel_on_signal(stop.clone()).map_err(|error| failed(&error))?;
        let result = agent::run(config, stop).await;
        signals.abort();
        result.map_err(|error| failed(&error))
    })
}

/// Server and agent for this machine, in the foreground.
pub(crate) fn up(arguments: &UpArguments) -> Result<(), Failure> {
    let (mut file, _) = server_file(&arguments.server)?;
    start_log(
        if arguments.server.verbose { "info" } else { "warn" },
        arguments.server.log_file.as_deref(),
    )?;
    file.data_dir = Some(file.data_dir.unwrap_or_else(api::places::data));
    let config = file.check().map_err(|error| wrong(&error))?;
    let data_dir = config.data_dir.clone();
    runtime()?.block_on(async {
        let stop = CancellationToken::new();
        let server = bind(config).await?;
        let signals =
            agent::signals::cancel_on_signal(stop.clone()).map_err(|error| failed(&error))?;
        let addresses = server.addresses().to_vec();
        let url = own_url(&addresses);
        let agent_config = up_agent(arguments, &data_dir, &url)?;
        let host = agent::host_name(&agent_config).map_err(|error| failed(&error))?;
        let boot = Boot::new(&server, &host);
        let mut tasks = tokio::task::JoinSet::new();
        // The agent ends first, so that its last changes find the server still there.
        let server_stop = CancellationToken::new();
        tasks.spawn(async_ok(server.run(server_stop.clone())));
        let agent_stop = stop.clone();
        let agent_task = async move {
            agent::run(agent_config, agent_stop).await.map_err(|error| failed(&error))
        };
        let mut agent_task = std::pin::pin!(agent_task);
        let greeting = async {
            greet(&url, &host, &data_dir).await;
            // Not before the first version is there: the twin holds nothing up.
            if !arguments.no_twin {
                boot.run(&server_flag(&url)).await;
            }
        };
        let mut greeting = std::pin::pin!(greeting);
        let mut greeted = false;
        let result = loop {
            tokio::select! {
                result = &mut agent_task => break result,
                () = &mut greeting, if !greeted => greeted = true,
            }
        };
        server_stop.cancel();
        while tasks.join_next().await.is_some() {}
        signals.abort();
        result
    })
}

async fn async_ok(work: impl Future<Output = ()>) -> Result<(), Failure> {
    work.await;
    Ok(())
}

/// The address under which a server on this machine reaches itself.
fn own_url(addresses: &[SocketAddr]) -> String {
    let own = addresses.iter().find(|address| address.ip().is_loopback()).or(addresses.first());
    match own {
        Some(address) if address.ip().is_unspecified() => {
            format!("http://127.0.0.1:{}", address.port())
        }
        Some(address) => format!("http://{address}"),
        None => format!("http://127.0.0.1:{}", api::DEFAULT_PORT),
    }
}

/// The agent's configuration beside the server's, under the same data directory.
fn up_agent(
    arguments: &UpArguments,
    data_dir: &Path,
    url: &str,
) -> Result<agent::config::Config, Failure> {
    let options = Options { config: arguments.agent_config.clone(), ..Options::default() };
    let file = options.file().map_err(|error| wrong(&error))?;
    let token_file = file
        .token_file
        .clone()
        .or_else(|| Some(data_dir.join("agent.token")).filter(|path| path.exists()));
    let file = file.overridden_by(agent::config::File {
        bridge_url: Some(url.to_owned()),
        state_dir: Some(data_dir.join("agent")),
        host: arguments.name.clone(),
        token_file,
        ..agent::config::File::default()
    });
    file.check().map_err(|error| wrong(&error))
}

/// Says what is there once the first version is, and how to go on.
async fn greet(url: &str, host: &HostId, data_dir: &Path) {
    let begin = std::time::Instant::now();
    let path = format!("/api/v1/hosts/{}", api::client::segment(host.as_str()));
    let Ok(mut client) = api::client::Client::new(url, None) else { return };
    let mut known = client.get::<api::answer::Host>(&path).await.ok();
    let earlier = known.is_some();
    while known.is_none() && begin.elapsed() < FIRST_VERSION {
        tokio::time::sleep(Duration::from_millis(10)).await;
        known = client.get::<api::answer::Host>(&path).await.ok();
    }
    let took = begin.elapsed().as_millis();
    note(&format!(
        "watching {} at {url}, data in {}",
        plain(host.as_str()),
        plain(&data_dir.to_string_lossy())
    ));
    match known {
        Some(known) => {
            let items: u64 = known.items.values().sum();
            if earlier {
                note(&format!("its history goes on after {}: {items} items", known.version));
            } else {
                note(&format!("first version after {took} ms: {items} items"));
            }
        }
        None => note("no version yet; see why with: twin doctor"),
    }
    let server = server_flag(url);
    for (command, what) in [
        (format!("twin watch{server}"), "what changes, as it changes"),
        (format!("twin log{server} UNIT"), "what happened to a unit"),
        (format!("twin diff{server} @-10m"), "what is different from ten minutes ago"),
        (format!("{url}/docs"), "the HTTP interface"),
    ] {
        note(&format!("  {command}  -  {what}"));
    }
    note("end with Ctrl-C");
}

/// What commands need to find this server.
fn server_flag(url: &str) -> String {
    if url == format!("http://127.0.0.1:{}", api::DEFAULT_PORT) {
        return String::new();
    }
    format!(" --server {url}")
}

async fn bind(config: Config) -> Result<Server, Failure> {
    Server::bind(config).await.map_err(|error| match error {
        server::Error::NoTokens => Failure::Configuration(error.to_string()),
        other => failed(&other),
    })
}

/// Where a server that is started like this keeps its data.
pub(super) fn data_dir(arguments: &ServerArguments) -> Result<PathBuf, Failure> {
    let (file, _) = server_file(arguments)?;
    Ok(file.data_dir.unwrap_or_else(api::places::data))
}

/// The server's file, with the flags laid over it, and where it came from.
fn server_file(arguments: &ServerArguments) -> Result<(File, Option<PathBuf>), Failure> {
    let found = match &arguments.config {
        Some(path) => Some(path.clone()),
        None => default_files().into_iter().find(|path| path.exists()),
    };
    let mut file = match &found {
        Some(path) => File::read(path, true).map_err(|error| wrong(&error))?,
        None => File::default(),
    };
    if let Some(dir) = &arguments.data_dir {
        file.data_dir = Some(dir.clone());
    }
    if let Some(name) = &arguments.vm_name {
        file.vm_name = Some(name.clone());
    }
    if !arguments.listen.is_empty() {
        file.listen = Some(arguments.listen.clone());
    }
    if arguments.host.is_some() || arguments.port.is_some() {
        let host = arguments.host.as_deref().unwrap_or("127.0.0.1");
        let port = arguments.port.unwrap_or(api::DEFAULT_PORT);
        let v6 = host.contains(':') && !host.starts_with('[');
        let host = if v6 { format!("[{host}]") } else { host.to_owned() };
        file.listen = Some(vec![format!("{host}:{port}")]);
    }
    Ok((file, found))
}

impl ServerArguments {
    fn log_level(&self, file: &File, named: Option<&Path>) -> Result<&'static str, Failure> {
        if self.debug || self.verbose {
            return Ok("debug");
        }
        let level = self.log_level.as_deref().or(file.log_level.as_deref()).unwrap_or("info");
        match level.to_ascii_lowercase().as_str() {
            "debug" => Ok("debug"),
            "info" => Ok("info"),
            "warning" | "warn" => Ok("warn"),
            "error" | "critical" => Ok("error"),
            _ => {
                let whence = match (&self.log_level, named) {
                    (None, Some(path)) => format!("{}: log_level", path.display()),
                    _ => "--log-level".to_owned(),
                };
                Err(Failure::Configuration(format!(
                    "{whence}: {:?} is none of debug, info, warning, error, critical",
                    plain(level)
                )))
            }
        }
    }
}

fn start_log(level: &str, file: Option<&Path>) -> Result<(), Failure> {
    let filter = format!(
        "warn,server={level},sinks={level},vsphere={level},store={level},agent={level},host={level},twin={level}"
    );
    agent::log::start(&filter, file).map_err(|source| Failure::Write {
        path: file.map(Path::to_owned).unwrap_or_default(),
        source,
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Failure::Failed(format!("no event loop: {error}")))
}

pub(super) fn wrong(error: &dyn std::error::Error) -> Failure {
    Failure::Configuration(model::with_causes(error))
}

pub(super) fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::Failed(model::with_causes(error))
}
