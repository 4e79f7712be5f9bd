//! The agent's own figures for Prometheus, where the configuration asks for them: how the agent
//! does, how busy its node is, and the microVMs of the node.
//!
//! ```text
//!   engine ──Sample──┐
//!   units, standing ─┴─► page ◄── GET /metrics, by HTTP/1.1, one request a connection
//! ```
//!
//! # Invariants
//! - A scrape looks at nothing and waits for nobody: it tells what was known last, and its age.
//! - So many at a time, each with a deadline; others wait for their turn.

mod http;
mod page;
mod vms;

use crate::Error;
use crate::collect::UserVms;
use crate::outbox::Standing;
use http::{Asked, Form};
use model::HostId;
use model::entity::Unit;
use model::load::Load;
use page::Page;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vms::Vms;

/// Requests under way.
const AT_ONCE: usize = 8;

/// What the engine knew last.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) load: Load,
    /// Collectors that have a fault.
    pub(crate) faults: Vec<String>,
}

/// All that figures are made of.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    pub(crate) node: HostId,
    pub(crate) token: Option<String>,
    pub(crate) sample: watch::Receiver<Option<Arc<Sample>>>,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) units: watch::Receiver<Option<Arc<Vec<Unit>>>>,
    pub(crate) user_vms: watch::Receiver<UserVms>,
}

/// Takes the address, if there is one.
pub(crate) async fn bind(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Error> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| Error::Listen { address, source })
}

/// Answers until told to stop.
pub(crate) async fn serve(listener: TcpListener, sources: Sources, stop: CancellationToken) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let vms = Arc::new(Mutex::new(Vms::default()));
    let mut answering = JoinSet::new();
    loop {
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            () = stop.cancelled() => return,
        };
        while answering.try_join_next().is_some() {}
        let stream = match taken {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a scrape was not taken");
                continue;
            }
        };
        let (sources, vms) = (sources.clone(), Arc::clone(&vms));
        answering.spawn(async move {
            let page = |form| render(sources.clone(), Arc::clone(&vms), form);
            let asked = Asked { stream, token: sources.token.as_deref() };
            if let Err(error) = asked.answer(page).await {
                tracing::debug!(%error, "a scrape was not answered");
            }
            drop(turn);
        });
    }
}

async fn render(sources: Sources, vms: Arc<Mutex<Vms>>, form: Form) -> String {
    let drawn = tokio::task::spawn_blocking(move || {
        let mut vms = vms.lock().unwrap_or_else(PoisonError::into_inner);
        draw(&sources, &mut vms, form)
    });
    drawn.await.unwrap_or_default()
}

fn draw(sources: &Sources, vms: &mut Vms, form: Form) -> String {
    let mut page = Page::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.gauge("agent_build_info", "1 for the running version").put(&version, 1);
    {
        let standing = sources.standing.borrow();
        let delivers = standing.trouble.is_none() && standing.spool.is_none();
        page.gauge("agent_delivers", "1 while changes reach the server").put(&[], delivers);
        let help = "Deltas that wait to be delivered";
        page.gauge("agent_waiting_deltas", help).put(&[], standing.waiting);
        let help = "The version that the server gave last";
        page.gauge("agent_version", help).put_some(&[], standing.version);
    }
    let sample = sources.sample.borrow().clone();
    if let Some(sample) = sample.as_deref() {
        collectors(&mut page, sample);
        node(&mut page, sample);
    }
    let (units, user_vms) = (sources.units.borrow().clone(), sources.user_vms.borrow().clone());
    let units = units.iter().flat_map(|units| units.iter()).chain(user_vms.values().flatten());
    let load = sample.as_deref().map(|sample| (&sample.load, sample.at.elapsed()));
    vms.tell(&mut page, &sources.node, units, load);
    page.text(form)
}

fn collectors(page: &mut Page, sample: &Sample) {
    let since = sample.at.elapsed().as_secs_f64();
    let ages = page.gauge("agent_collector_age_seconds", "Since a collector was through");
    for (name, age) in &sample.load.collector_age_seconds {
        ages.put(&[("collector", name.as_str())], age + since);
    }
    let faults = page.gauge("agent_collector_fault", "1 for a collector that can't look");
    for name in sample.load.collector_age_seconds.keys() {
        faults.put(&[("collector", name.as_str())], sample.faults.contains(name));
    }
}

fn node(page: &mut Page, sample: &Sample) {
    let host = &sample.load.host;
    let age = sample.at.elapsed().as_secs_f64();
    page.gauge("node_load_age_seconds", "Since the node was measured").put(&[], age);
    let help = "Of all processors together, 0 to 100";
    page.gauge("node_cpu_percent", help).put_some(&[], host.cpu_percent);
    for (name, help, known) in [
        ("node_memory_bytes", "Memory of the node", host.memory_total_bytes),
        ("node_memory_available_bytes", "Memory that is to be had", host.memory_available_bytes),
        ("node_processes", "Processes of the node", host.processes),
    ] {
        page.gauge(name, help).put_some(&[], known);
    }
    let stalled = page.gauge("node_pressure_percent", "Of 10 s, in which something waited");
    for (of, pressure) in &host.pressure {
        stalled.put_some(&[("of", of.as_str())], pressure.some.map(|[of_10_s, _, _]| of_10_s));
    }
}

#[cfg(test)]
mod tests;
