//! What a node does for its VMs because the server asks: `twin-node` asks for work, and tells what
//! came of it. The server never reaches a node by itself.

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
#[serde(deny_unknown_fields)]
pub struct NodeAsks {
    /// Wait for work, if there is none. Without it none is given out.
    #[serde(default)]
    pub wait: bool,
    /// Of tasks it was given.
    #[serde(default)]
    pub done: Vec<Done>,
}

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
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
}
