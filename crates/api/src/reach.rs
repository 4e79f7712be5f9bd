//! Whether a port of a VM takes connections, or an HTTP server of it answers as it should: what a
//! check asks, from the server or from the VM's node.
//!
//! Where it fails tells what of it: a guest that refuses a connection answers, and its service
//! does not. What this machine could not do says nothing of the VM.

use crate::client::{self, Client};
use bytes::Bytes;
use hyper::Method;
use model::vm::Layer;
use model::with_causes;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// A connection that is taken at all is taken within this.
const THERE: Duration = Duration::from_secs(1);

/// What of a VM is in the way, and what it did.
pub type Failed = (Layer, String);

/// Looks at an address, and with a path for an answer of that status.
///
/// # Errors
/// When it does not answer as it should within the limit.
pub async fn look(
    address: SocketAddr,
    path: Option<(&str, u16)>,
    limit: Duration,
) -> Result<(), Failed> {
    let work = async {
        match path {
            None => connect(address).await,
            Some((path, status)) => ask(address, path, status).await,
        }
    };
    if let Ok(found) = tokio::time::timeout(limit, work).await {
        return found;
    }
    // Who takes a connection is there, and slow.
    let there = tokio::time::timeout(limit.min(THERE), TcpStream::connect(address));
    let is_there = path.is_some() && matches!(there.await, Ok(Ok(_)));
    let layer = if is_there { Layer::Service } else { Layer::Guest };
    Err((layer, format!("no answer of {address} within {} s", limit.as_secs())))
}

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

    #[tokio::test]
    async fn who_takes_connections() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Duration::from_millis(200);
        assert_eq!(look(address, None, limit).await, Ok(()));
        let (layer, said) = look(address, Some(("/", 200)), limit).await.unwrap_err();
        assert_eq!(layer, Layer::Service, "{said}");
        drop(listener);
        let (layer, said) = look(address, None, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!((layer, said), (Layer::Service, format!("{address}: connection refused")));
    }
}
