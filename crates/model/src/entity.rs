//! The typed form of every kind of item. Collectors write these; readers that decide
//! (plan, export, fidelity) read them.
//!
//! A field that could not be seen is `None` or empty and then absent from the item: absent
//! is not zero. Every text here has been through the redactor where it could hold a secret.

use crate::kind::{Kind, Subject};
use crate::time::Time;
use crate::value::{Fields, Value};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A typed item. The id is kept beside the fields, in the [`Subject`].
pub trait Entity: Serialize + DeserializeOwned {
    const KIND: Kind;

    fn id(&self) -> String;
    fn set_id(&mut self, id: &str);

    /// The item, its id made printable.
    fn to_item(&self) -> (Subject, Fields) {
        let subject = Subject::escaped(Self::KIND, &self.id());
        let json = serde_json::to_value(self).expect("entities are plain data");
        let Some(Value::Map(fields)) = Value::from_json(json) else {
            return (subject, Fields::new());
        };
        (subject, fields)
    }

    /// The typed form, when the fields have it.
    fn from_fields(id: &str, fields: Fields) -> Option<Self> {
        let json = Value::Map(fields).to_json();
        let mut entity: Self = serde_json::from_value(json).ok()?;
        entity.set_id(id);
        Some(entity)
    }
}

/// Declares a struct whose fields are all optional in the item, and its [`Entity`].
macro_rules! entity {
    ($(#[$doc:meta])* $name:ident = $kind:ident by $id:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {
            /// The item's id; not one of its fields.
            #[serde(skip)]
            pub $id: String,
            $($(#[$field_doc])* #[serde(skip_serializing_if = "Absent::absent")] pub $field: $type,)*
        }

        impl Entity for $name {
            const KIND: Kind = Kind::$kind;

            fn id(&self) -> String {
                self.$id.clone()
            }

            fn set_id(&mut self, id: &str) {
                self.$id = id.to_owned();
            }
        }
    };
}

/// What "nothing was seen" looks like in each type a field can have.
trait Absent {
    fn absent(&self) -> bool;
}

impl<T> Absent for Option<T> {
    fn absent(&self) -> bool {
        self.is_none()
    }
}

impl<T> Absent for Vec<T> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}

impl<K, V> Absent for BTreeMap<K, V> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}

impl Absent for String {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}

impl Absent for bool {
    fn absent(&self) -> bool {
        !self
    }
}

entity! {
    /// A systemd unit. A system unit's id is its name; one of a user manager is `USER/NAME`.
    Unit = UNIT by id {
        description: String,
        load_state: String,
        active_state: String,
        sub_state: String,
        /// `UnitFileState`: enabled, disabled, static, masked, …
        enablement: Option<String>,
        result: Option<String>,
        /// With which the main process of a service ended, where that failed it.
        exit_code: Option<i64>,
        /// The same of one that was killed: `SEGV`.
        exit_signal: Option<String>,
        fragment_path: Option<String>,
        drop_ins: Vec<String>,
        /// `Type=` of a service.
        service_type: Option<String>,
        /// Each `ExecStart=` as its words.
        exec_start: Vec<Vec<String>>,
        exec_start_pre: Vec<Vec<String>>,
        exec_start_post: Vec<Vec<String>>,
        exec_reload: Vec<Vec<String>>,
        exec_stop: Vec<Vec<String>>,
        exec_stop_post: Vec<Vec<String>>,
        user: Option<String>,
        group: Option<String>,
        working_directory: Option<String>,
        /// Values are redacted.
        environment: BTreeMap<String, String>,
        environment_files: Vec<String>,
        restart: Option<String>,
        restart_delay_ms: Option<i64>,
        main_pid: Option<i64>,
        restarts: Option<i64>,
        /// When it entered its active state.
        since: Option<Time>,
        /// From the start of its main process until it was active. Only of what runs a microVM.
        boot_ms: Option<i64>,
        /// When its state changed last, a reload included.
        changed_at: Option<Time>,
        /// Its files changed since systemd read them.
        needs_reload: bool,
        /// `MemoryMax`, `TasksMax`, `CPUQuotaPerSecUSec`, `LimitNOFILE`, … only where finite.
        limits: BTreeMap<String, i64>,
        cgroup: Option<String>,
        slice: Option<String>,
        requires: Vec<String>,
        requisite: Vec<String>,
        wants: Vec<String>,
        binds_to: Vec<String>,
        part_of: Vec<String>,
        conflicts: Vec<String>,
        before: Vec<String>,
        after: Vec<String>,
        triggers: Vec<String>,
        triggered_by: Vec<String>,
        /// Of a socket: `Stream 0.0.0.0:80`.
        listen: Vec<String>,
        /// Of a timer: `OnCalendar=…` and the like.
        schedule: Vec<String>,
        /// Of a mount.
        mount_what: Option<String>,
        mount_where: Option<String>,
        mount_options: Option<String>,
    }
}

entity! {
    /// A Docker container, by name.
    Container = CONTAINER by name {
        container_id: String,
        image: String,
        /// Digest of the image in the registry, or its local id where it has none.
        image_digest: Option<String>,
        /// What its engine calls the image that it was made from, whatever has its name now.
        image_id: Option<String>,
        state: String,
        health: Option<String>,
        exit_code: Option<i64>,
        pid: Option<i64>,
        started_at: Option<Time>,
        created_at: Option<Time>,
        command: Vec<String>,
        entrypoint: Vec<String>,
        user: Option<String>,
        working_directory: Option<String>,
        /// `0.0.0.0:8080->80/tcp`.
        ports: Vec<String>,
        /// `bind /src -> /dst ro`.
        mounts: Vec<String>,
        /// Values are redacted.
        environment: BTreeMap<String, String>,
        /// Variables that are as its image has them.
        inherited: Vec<String>,
        networks: Vec<String>,
        labels: BTreeMap<String, String>,
        links: Vec<String>,
        restart_policy: Option<String>,
        restarts: Option<i64>,
        memory_limit_bytes: Option<i64>,
        cpu_limit_millis: Option<i64>,
        privileged: bool,
        /// What else it was made with, by the names that `docker run` has: `cap-add`, `device`.
        options: Vec<String>,
    }
}

entity! {
    /// Processes that are the same thing: same executable, arguments, user and owner.
    /// The id is `NAME#HASH`, the hash being of what they have in common.
    Process = PROCESS by id {
        name: String,
        executable: Option<String>,
        /// Redacted.
        arguments: Vec<String>,
        user: Option<String>,
        uid: Option<i64>,
        working_directory: Option<String>,
        /// The unit that owns it, with the form of a unit's id.
        unit: Option<String>,
        container: Option<String>,
        /// Name of the parent process.
        parent: Option<String>,
        pids: Vec<i64>,
        /// Those of them that another of them started, as workers are by what they work for.
        forked: Vec<i64>,
        /// Of the oldest of them.
        started_at: Option<Time>,
        /// Open files that say what it works on: databases, models, logs of its own.
        open_files: Vec<String>,
    }
}

entity! {
    /// An installed package, by name (`name:arch` for a foreign architecture).
    Package = PACKAGE by name {
        version: String,
        architecture: Option<String>,
        /// dpkg, rpm or apk.
        manager: String,
        /// Only when it is not plainly installed: `half-configured`, `config-files`, …
        state: Option<String>,
    }
}

entity! {
    /// A tracked file, by absolute path.
    File = FILE by path {
        size: Option<i64>,
        /// Octal, as `0644`.
        mode: Option<String>,
        owner: Option<String>,
        group: Option<String>,
        /// Target of a symbolic link.
        link: Option<String>,
        /// Keyed hash of the bytes: says that the file changed without saying what it holds.
        fingerprint: Option<String>,
        /// Name of the (redacted) content on the server, where it may be stored.
        content: Option<String>,
        /// Why there is no content: `private`, `binary`, `too large`, `unreadable`.
        withheld: Option<String>,
        /// The content has marks where secrets were, so it is not what the file holds.
        redacted: bool,
        /// When its bytes, mode, owner or name changed last.
        modified_at: Option<Time>,
        /// Package it belongs to.
        package: Option<String>,
        /// unit, dropin, config, program or chosen.
        role: String,
    }
}

entity! {
    User = USER by name {
        uid: Option<i64>,
        gid: Option<i64>,
        home: Option<String>,
        shell: Option<String>,
        comment: Option<String>,
    }
}

entity! {
    Group = GROUP by name {
        gid: Option<i64>,
        members: Vec<String>,
    }
}

entity! {
    /// A listening socket, by `tcp 0.0.0.0:80`, `udp [::]:53`, `unix /run/x.sock`.
    Socket = SOCKET by id {
        protocol: String,
        address: String,
        port: Option<i64>,
        /// Name of the process that holds it.
        process: Option<String>,
        unit: Option<String>,
        container: Option<String>,
        uid: Option<i64>,
    }
}

entity! {
    /// One service needing another: `app.service -> redis.service`.
    Dependency = DEPENDENCY by id {
        from: String,
        to: String,
        /// `Requires`, `Wants`, … as declared.
        declared: Vec<String>,
        /// `tcp 127.0.0.1:6379`, as observed.
        observed: Vec<String>,
    }
}

entity! {
    /// Something that runs a language model, by the id of its process.
    Workload = WORKLOAD by id {
        name: String,
        /// What it was recognised as: ollama, llama.cpp, vllm, torch, …
        runtime: String,
        /// Why it was recognised; each on its own line.
        evidence: Vec<String>,
        model_files: Vec<String>,
        listens: Vec<String>,
        gpus: Vec<String>,
        unit: Option<String>,
        container: Option<String>,
    }
}

entity! {
    /// The machine and its system; one item with the id `host`.
    Platform = PLATFORM by id {
        hostname: String,
        machine_id: Option<String>,
        boot_id: Option<String>,
        booted_at: Option<Time>,
        /// As `debian`.
        distribution: Option<String>,
        distribution_version: Option<String>,
        distribution_name: Option<String>,
        kernel: Option<String>,
        kernel_command_line: Option<String>,
        architecture: Option<String>,
        /// kvm, docker, lxc, none, …
        virtualization: Option<String>,
        vendor: Option<String>,
        product: Option<String>,
        time_zone: Option<String>,
        systemd_version: Option<String>,
        name_servers: Vec<String>,
        search_domains: Vec<String>,
    }
}

entity! {
    /// The processors; one item with the id `cpu`.
    Cpu = CPU by id {
        model: Option<String>,
        logical: Option<i64>,
        physical: Option<i64>,
        sockets: Option<i64>,
        flags: Vec<String>,
    }
}

entity! {
    /// `ram` and each swap area.
    Memory = MEMORY by id {
        total_bytes: Option<i64>,
        kind: Option<String>,
        priority: Option<i64>,
    }
}

entity! {
    /// A block device, by kernel name.
    Disk = DISK by name {
        size_bytes: Option<i64>,
        model: Option<String>,
        serial: Option<String>,
        rotational: Option<bool>,
        removable: Option<bool>,
        read_only: Option<bool>,
        parent: Option<String>,
    }
}

entity! {
    /// A mounted filesystem, by mount point. How full it is belongs to load.
    Filesystem = FILESYSTEM by mount_point {
        device: String,
        filesystem_type: String,
        options: Vec<String>,
        size_bytes: Option<i64>,
    }
}

entity! {
    Interface = INTERFACE by name {
        mac: Option<String>,
        mtu: Option<i64>,
        /// up, down, lowerlayerdown, …
        state: Option<String>,
        flags: Vec<String>,
        /// With prefix length.
        addresses: Vec<String>,
        speed_mbit: Option<i64>,
        driver: Option<String>,
        master: Option<String>,
        link_kind: Option<String>,
    }
}

entity! {
    /// A route of the main table, by `DESTINATION dev NAME` (with `metric N` where needed).
    Route = ROUTE by id {
        destination: String,
        gateway: Option<String>,
        interface: Option<String>,
        metric: Option<i64>,
    }
}

entity! {
    /// A graphics processor, by bus address.
    Gpu = GPU by id {
        vendor: Option<String>,
        model: Option<String>,
        uuid: Option<String>,
        memory_bytes: Option<i64>,
        driver: Option<String>,
        driver_version: Option<String>,
    }
}

entity! {
    /// One part of the agent's sight, by name. With a fault, the items it owns are as old as
    /// `fault_since` and not known to hold since.
    Collector = COLLECTOR by name {
        fault: Option<String>,
        fault_since: Option<Time>,
        /// What it can't see by its rights, and what would let it.
        limits: Vec<String>,
        /// Of that of files: directories of which all that is below is tracked. An older agent
        /// does not tell.
        directories: Vec<String>,
        /// Of that of files: tracked paths where there is nothing.
        missing: Vec<String>,
    }
}

impl Collector {
    /// The name of the one that sees the units of users' managers.
    pub const USER_UNITS: &str = "user-units";

    /// The kinds of what the collector of a name sees.
    #[must_use]
    pub fn kinds(name: &str) -> &'static [Kind] {
        match name {
            "containers" => &[Kind::CONTAINER],
            "dependencies" => &[Kind::DEPENDENCY],
            "disks" => &[Kind::DISK, Kind::FILESYSTEM],
            "files" => &[Kind::FILE],
            "gpus" => &[Kind::GPU],
            "machine" => &[Kind::PLATFORM, Kind::CPU, Kind::MEMORY],
            "network" => &[Kind::INTERFACE, Kind::ROUTE],
            "packages" => &[Kind::PACKAGE],
            "processes" => &[Kind::PROCESS],
            "sockets" => &[Kind::SOCKET],
            "units" | Self::USER_UNITS => &[Kind::UNIT],
            "users" => &[Kind::USER, Kind::GROUP],
            "workloads" => &[Kind::WORKLOAD],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Facts;

    #[test]
    fn entities_survive_being_items() {
        let unit = Unit {
            id: "nginx.service".into(),
            active_state: "active".into(),
            exec_start: vec![vec!["/usr/sbin/nginx".into(), "-g".into(), "daemon on;".into()]],
            environment: [("TOKEN".to_owned(), "redacted:1".to_owned())].into(),
            since: Some(Time(1_795_165_200_123_456)),
            main_pid: Some(7),
            ..Unit::default()
        };
        let mut facts = Facts::default();
        facts.put_entity(&unit);
        assert_eq!(facts.entity::<Unit>("nginx.service"), Some(unit.clone()));
        assert_eq!(facts.entities::<Unit>().collect::<Vec<_>>(), [unit]);
        let fields = facts.iter().next().unwrap().1.fields();
        assert!(!fields.contains_key("user"), "what was not seen is absent");
    }
}
