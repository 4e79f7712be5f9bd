//! What a VM is as a document, and what has to be set in the one there is. Pure.
//!
//! ```text
//! esxi_host_addr  name  hostname  addr  uuid  power_state  vmware_tools
//! orphan          orphan_since  last_sync_time
//! ```
//!
//! # Invariants
//! - Only the fields above are set, and of these only those that differ, but `last_sync_time`.
//! - What is unknown is not written over what is known.
//! - An orphan keeps the time since when it is one.

use crate::stamp;
use model::Time;
use std::collections::BTreeMap;

/// The fields that are ours.
pub const FIELDS: [&str; 10] = [
    "esxi_host_addr",
    "name",
    "hostname",
    "addr",
    "uuid",
    "power_state",
    "vmware_tools",
    "orphan",
    "orphan_since",
    "last_sync_time",
];

/// What a VM's document is to say.
#[derive(Debug, Clone, PartialEq)]
pub struct VmDocument {
    pub uuid: String,
    /// Absent: not known now; what is stored stays.
    pub esxi_host_addr: Option<String>,
    pub name: String,
    /// Absent: not known now; what is stored stays.
    pub hostname: Option<String>,
    /// Absent: not known now; what is stored stays.
    pub addr: Option<String>,
    /// `on`, `off`, or vSphere's word.
    pub power_state: String,
    pub vmware_tools: String,
    /// Absent: it is no orphan.
    pub orphan_since: Option<Time>,
    pub last_sync_time: Time,
}

/// What a field of a document has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    Text(String),
    Flag(bool),
    Null,
    /// Of a type that none of ours has.
    Other,
}

/// Fields of one document by their names.
pub type Fields = BTreeMap<&'static str, Field>;

/// What has to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub set: Fields,
    /// More than `last_sync_time` differs.
    pub differs: bool,
}

/// What makes the stored document say what it is to say.
#[must_use]
pub fn change(stored: &Fields, document: &VmDocument) -> Change {
    let mut set = known(document);
    if document.orphan_since.is_some()
        && stored.get("orphan") == Some(&Field::Flag(true))
        && matches!(stored.get("orphan_since"), Some(Field::Text(since)) if stamp::read(since).is_some())
    {
        set.remove("orphan_since");
    }
    set.retain(|name, field| *name == "last_sync_time" || stored.get(name) != Some(field));
    Change { differs: set.len() > 1, set }
}

/// A document that is not there yet: with all fields.
#[must_use]
pub fn created(document: &VmDocument) -> Fields {
    let mut fields = known(document);
    fields.entry("esxi_host_addr").or_insert(Field::Null);
    fields.entry("hostname").or_insert(Field::Null);
    fields.entry("addr").or_insert(Field::Null);
    fields
}

/// # Errors
/// Names the field that is not as it has to be.
pub fn read(fields: &Fields) -> Result<VmDocument, &'static str> {
    let text = |name: &'static str| match fields.get(name) {
        Some(Field::Text(text)) => Ok(text.clone()),
        _ => Err(name),
    };
    let optional = |name| text(name).ok();
    let time = |name| optional(name).as_deref().and_then(stamp::read);
    let last_sync_time = time("last_sync_time").unwrap_or_default();
    let is_orphan = fields.get("orphan") == Some(&Field::Flag(true));
    Ok(VmDocument {
        uuid: text("uuid")?,
        esxi_host_addr: Some(text("esxi_host_addr")?),
        name: text("name")?,
        hostname: optional("hostname"),
        addr: optional("addr"),
        power_state: optional("power_state").unwrap_or_default(),
        vmware_tools: optional("vmware_tools").unwrap_or_default(),
        orphan_since: is_orphan.then(|| time("orphan_since").unwrap_or(last_sync_time)),
        last_sync_time,
    })
}

fn known(document: &VmDocument) -> Fields {
    let text = |text: &String| Field::Text(text.clone());
    let since = document.orphan_since.map(stamp::write);
    let mut fields = Fields::from([
        ("uuid", text(&document.uuid)),
        ("name", text(&document.name)),
        ("power_state", text(&document.power_state)),
        ("vmware_tools", text(&document.vmware_tools)),
        ("orphan", Field::Flag(since.is_some())),
        ("orphan_since", since.map_or(Field::Null, Field::Text)),
        ("last_sync_time", Field::Text(stamp::write(document.last_sync_time))),
    ]);
    let address = document.esxi_host_addr.as_ref();
    fields.extend(address.map(|address| ("esxi_host_addr", text(address))));
    fields.extend(document.hostname.as_ref().map(|hostname| ("hostname", text(hostname))));
    fields.extend(document.addr.as_ref().map(|addr| ("addr", text(addr))));
    fields
}

#[cfg(test)]
mod tests;
