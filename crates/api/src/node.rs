//! What a node does for its VMs because the server asks: `twin-node` asks for work, and tells what
//! came of it. The server never reaches a node by itself.
//!
//! # Invariants
//! - Either side may be older: what one does not know costs it nothing that it does know.

use model::vm::{CheckName, Layer, VmName};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Tasks whose outcome one request tells.
pub const MAX_DONE: usize = 1000;
/// Bytes of what is said of an outcome.
pub const MAX_SAID: usize = 300;

/// What a node asks, and what it did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeAsks {
    /// Wait for work, if there is none. Without it none is given out.
    #[serde(default)]
    pub wait: bool,
    /// The kinds of work it knows, as they are called in `work`. One that does not say so knows
    /// neither `tcp` nor `http`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub can: Vec<String>,
    /// Of tasks it was given.
    #[serde(default)]
    pub done: Vec<Done>,
}

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Done {
    pub id: u64,
    pub outcome: Outcome,
    /// Why it did not pass, or could not be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// What of the VM is in the way, where a check that did not pass found that out: `vmm`,
    /// `guest`, `service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub layer: Option<Layer>,
}

words!(
    /// What a task came to.
    Outcome, "an outcome":
    /// A check passed, or it was done.
    Passed = "passed",
    /// A check did not pass.
    Failed = "failed",
    /// The node could not do it, or is not set up to.
    Unable = "unable",
);

/// What a node is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeWork {
    pub tasks: Vec<Task>,
}

impl NodeWork {
    /// Takes tasks one by one; with the ids of those that can't be understood.
    ///
    /// # Errors
    /// When it is no list of tasks.
    pub fn read(text: &[u8]) -> Result<(Self, Vec<u64>), serde_json::Error> {
        #[derive(Deserialize)]
        struct Told {
            tasks: Vec<serde_json::Value>,
        }
        let told: Told = serde_json::from_slice(text)?;
        let (mut work, mut unknown) = (Self::default(), Vec::new());
        for task in told.tasks {
            let id = task.get("id").and_then(serde_json::Value::as_u64);
            match serde_json::from_value(task) {
                Ok(task) => work.tasks.push(task),
                // One without a number is nothing that could be answered.
                Err(_) => unknown.extend(id),
            }
        }
        Ok((work, unknown))
    }
}

/// One thing to do for one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Task {
    pub id: u64,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: VmName,
    /// The unit that runs it.
    pub unit: String,
    pub timeout_seconds: u32,
    pub work: Work,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Run a script that somebody put on the node.
    Script {
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        name: CheckName,
    },
    /// Look for a text in what the unit wrote to the journal since it was started.
    Console {
        text: String,
        /// It passes when it is not there.
        absent: bool,
    },
    /// Ask the guest's agent to say something again, and the VMM before it.
    Guest {
        /// Where it listens, if that is a port of the guest's vsock device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u32>,
    },
    /// Connect to a port.
    Tcp {
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        address: SocketAddr,
    },
    /// Ask for something by HTTP.
    Http {
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        address: SocketAddr,
        path: String,
        /// The status that is right.
        status: u16,
    },
    /// Send echo requests, until one is answered.
    Icmp {
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        address: IpAddr,
    },
    /// Ask for who has an address on the network that leads there, until somebody says so.
    Arp {
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        address: Ipv4Addr,
    },
    /// Start the unit anew.
    Restart,
}

impl Work {
    /// What all kinds are called.
    pub const KINDS: [&str; 8] =
        ["script", "console", "guest", "tcp", "http", "icmp", "arp", "restart"];

    /// What it is called where it is written.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Script { .. } => "script",
            Self::Console { .. } => "console",
            Self::Guest { .. } => "guest",
            Self::Tcp { .. } => "tcp",
            Self::Http { .. } => "http",
            Self::Icmp { .. } => "icmp",
            Self::Arp { .. } => "arp",
            Self::Restart => "restart",
        }
    }

    /// Whether a node that says this of itself knows such work. Those that say nothing were made
    /// before there were the two.
    #[must_use]
    pub fn is_known_to(&self, can: &[String]) -> bool {
        match self {
            Self::Tcp { .. } | Self::Http { .. } => can.iter().any(|kind| kind == self.kind()),
            _ => can.is_empty() || can.iter().any(|kind| kind == self.kind()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_as_it_is_written() {
        let task = |work| Task {
            id: 7,
            name: "web".parse().unwrap(),
            unit: "microvm@web.service".into(),
            timeout_seconds: 5,
            work,
        };
        let text = |work| serde_json::to_string(&task(work)).unwrap();
        let begin =
            r#"{"id":7,"name":"web","unit":"microvm@web.service","timeout_seconds":5,"work":"#;
        let name = "disk".parse().unwrap();
        assert_eq!(
            text(Work::Script { name }),
            format!(r#"{begin}{{"script":{{"name":"disk"}}}}}}"#)
        );
        assert_eq!(text(Work::Restart), format!(r#"{begin}"restart"}}"#));
        assert_eq!(text(Work::Guest { port: None }), format!(r#"{begin}{{"guest":{{}}}}}}"#));
        let address = "10.0.0.5".parse().unwrap();
        let asked = format!(r#"{begin}{{"icmp":{{"address":"10.0.0.5"}}}}}}"#);
        assert_eq!(text(Work::Icmp { address }), asked);
        let asked = format!(r#"{begin}{{"tcp":{{"address":"10.0.0.5:22"}}}}}}"#);
        assert_eq!(text(Work::Tcp { address: "10.0.0.5:22".parse().unwrap() }), asked);
        let asks: NodeAsks = serde_json::from_str(
            r#"{"wait":true,"done":[{"id":7,"outcome":"unable","said":"x"}]}"#,
        )
        .unwrap();
        assert_eq!(asks.done[0].outcome, Outcome::Unable);
        assert!(serde_json::from_str::<Work>(r#"{"script":{"name":"../x"}}"#).is_err());
    }

    #[test]
    fn what_is_not_known_takes_nothing_else_along() {
        let text = r#"{"more":1,"tasks":[
            {"id":1,"name":"web","unit":"u","timeout_seconds":5,"work":{"quantum":{"x":1}}},
            {"id":2,"name":"web","unit":"u","timeout_seconds":5,"work":"restart","more":1},
            {"id":3},{"name":"web"},7]}"#;
        let (work, unknown) = NodeWork::read(text.as_bytes()).unwrap();
        assert_eq!(work.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), [2]);
        assert_eq!(unknown, [1, 3]);
        assert!(NodeWork::read(b"[]").is_err());
        let asks: NodeAsks = serde_json::from_str(r#"{"wait":true,"more":1}"#).unwrap();
        assert_eq!(asks, NodeAsks { wait: true, ..NodeAsks::default() });
    }

    #[test]
    fn what_nodes_know() {
        let address = "10.0.0.5:80".parse().unwrap();
        let tcp = Work::Tcp { address };
        let http = Work::Http { address, path: "/".into(), status: 200 };
        let all = Work::KINDS.map(str::to_owned);
        for work in [&tcp, &http, &Work::Restart, &Work::Guest { port: None }] {
            assert!(work.is_known_to(&all), "{work:?}");
            let written = serde_json::to_value(work).unwrap();
            let kind = written.as_object().and_then(|object| object.keys().next());
            let kind = kind.map(String::as_str).or_else(|| written.as_str());
            assert_eq!(kind, Some(work.kind()));
            assert!(!work.is_known_to(&["arp".to_owned()]), "{work:?}");
        }
        assert!(!tcp.is_known_to(&[]) && !http.is_known_to(&[]));
        assert!(Work::Restart.is_known_to(&[]));
    }
}
