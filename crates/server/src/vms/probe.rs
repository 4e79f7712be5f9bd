//! Looks whether a port of a VM takes connections, an HTTP server of it answers as it should, or a
//! process is there.
//!
//! Where it fails tells what of it: a guest that refuses a connection answers, and its service
//! does not. What this machine could not do says nothing of the VM.

use crate::app::App;
use api::client::{self, Client};
use axum::http::Method;
use bytes::Bytes;
use inventory::health::Verdict;
use model::entity::{Collector, Entity, Process};
use model::vm::Layer;
use model::{HostId, Kind, Value, with_causes};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// The verdict, and where it failed, of a check of an address.
pub(super) async fn look(
    address: SocketAddr,
    path: Option<(&str, u16)>,
    limit: Duration,
) -> (Layer, Verdict) {
    let work = async {
        match path {
            None => connect(address).await,
            Some((path, status)) => ask(address, path, status).await,
        }
    };
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(())) => (Layer::Service, Verdict::Pass),
        Ok(Err((layer, message))) => (layer, Verdict::Fail(message)),
        Err(_) => {
            // Who takes a connection is there, and slow.
            let there = tokio::time::timeout(limit, TcpStream::connect(address));
            let layer = if path.is_some() && matches!(there.await, Ok(Ok(_))) {
                Layer::Service
            } else {
                Layer::Guest
            };
            let seconds = limit.as_secs();
            (layer, Verdict::Fail(format!("no answer of {address} within {seconds} s")))
        }
    }
}

/// Whether a process runs in a unit of a node, as its facts have it. Nothing where they can't be
/// relied on.
pub(super) async fn process(
    app: &Arc<App>,
    node: HostId,
    unit: String,
    name: String,
) -> Option<(Layer, Verdict)> {
    let wanted = name.clone();
    let runs = app.read(move |app| {
        let Some(head) = app.history.head(&node)? else { return Ok(None) };
        let looked: Option<Collector> = head.facts.entity("processes");
        if looked.is_none_or(|looked| looked.fault.is_some()) {
            return Ok(None);
        }
        let runs = head.facts.of_kind(Kind::PROCESS).any(|(subject, item)| {
            let fields = item.fields();
            fields.get("unit").and_then(Value::as_text) == Some(unit.as_str())
                && Process::from_fields(subject.id(), fields)
                    .is_some_and(|process| is_called(&process, &wanted))
        });
        Ok(Some(runs))
    });
    let verdict = match runs.await {
        Ok(Some(true)) => Verdict::Pass,
        Ok(Some(false)) => Verdict::Fail(format!("no process {name} runs in its unit")),
        Ok(None) => return None,
        Err(error) => {
            tracing::warn!(error = with_causes(&error), "a VM's processes could not be looked at");
            return None;
        }
    };
    Some((Layer::Vmm, verdict))
}

fn is_called(process: &Process, name: &str) -> bool {
    let program = process.executable.as_deref().and_then(|path| path.rsplit('/').next());
    process.name == name || program == Some(name)
}

type Failed = (Layer, String);

async fn connect(address: SocketAddr) -> Result<(), Failed> {
    TcpStream::connect(address).await.map(drop).map_err(|error| unconnected(address, &error))
}

async fn ask(address: SocketAddr, path: &str, status: u16) -> Result<(), Failed> {
    let service = |text: String| (Layer::Service, text);
    let mut client = Client::new(&format!("http://{address}"), None)
        .map_err(|error| service(error.to_string()))?;
    match client.open(Method::GET, path, "", Bytes::new()).await {
        Ok(answer) if answer.status().as_u16() == status => Ok(()),
        Ok(answer) => {
            let said = answer.status().as_u16();
            Err(service(format!("{address}{path} answered {said} instead of {status}")))
        }
        Err(client::Error::Connect { source, .. }) => Err(unconnected(address, &source)),
        Err(error) => Err(service(with_causes(&error))),
    }
}

fn unconnected(address: SocketAddr, error: &std::io::Error) -> Failed {
    let layer = match error.kind() {
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted => Layer::Service,
        ErrorKind::TimedOut | ErrorKind::HostUnreachable => Layer::Guest,
        // No descriptor, address or route is left here, or a connection is not allowed.
        _ => Layer::Node,
    };
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    (layer, format!("{address}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn where_a_connection_fails() {
        let address: SocketAddr = "10.0.0.5:80".parse().unwrap();
        for (layer, numbers) in [
            // Refused, reset.
            (Layer::Service, [111, 104].as_slice()),
            // No route to the host, no answer.
            (Layer::Guest, &[113, 110]),
            // Files, network, address, permission.
            (Layer::Node, &[24, 101, 99, 13]),
        ] {
            for number in numbers {
                let error = io::Error::from_raw_os_error(*number);
                assert_eq!(unconnected(address, &error).0, layer, "{error}");
            }
        }
    }
}
