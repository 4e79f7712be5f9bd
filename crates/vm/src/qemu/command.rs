//! The command line of a QEMU. Options with paths and names are given as JSON, where a comma
//! is no separator; what QEMU takes only as text is a name of ours.

use super::home::Hardware;
use crate::image::Image;
use crate::machine::{Acceleration, Line, Network};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The socket of the monitor that commands go to.
pub(super) const MONITOR: &str = "qmp";
/// Of the one that is only asked how the machine is, so that it never waits for an operation.
pub(super) const LOOK: &str = "look";
pub(super) const PID: &str = "pid";
/// The network's socket, where another program is the network.
pub(super) const NET: &str = "net";
/// Where that program says its number.
pub(super) const NET_PID: &str = "net.pid";

/// The socket of a line into the guest, in the run's directory.
pub(super) fn socket(line: Line) -> &'static str {
    match line {
        Line::GuestAgent => "guest-agent",
        Line::TwinAgent => "twin-agent",
        Line::Console => "console",
    }
}

/// QEMU's name for a layer of the disk.
pub(super) fn node(layer: u64) -> String {
    format!("layer-{layer}")
}

/// What a layer's node is, opened to be written to.
pub(super) fn layer(number: u64, path: &Path) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": node(number),
        "discard": "unmap",
        "file": { "driver": "file", "filename": path, "discard": "unmap" },
    })
}

/// What is below such a layer, opened under a name of its own.
pub(super) fn below(name: &str, path: &Path) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": name,
        "read-only": true,
        "file": { "driver": "file", "filename": path, "read-only": true },
    })
}

/// Where the machine's memory comes from.
#[derive(Debug)]
pub(super) enum Memory {
    Fresh,
    /// Mapped from a file, from an offset on; what is written stays in the process.
    Saved {
        path: PathBuf,
        offset: u64,
    },
}

/// All that one QEMU is told when it begins.
#[derive(Debug)]
pub(super) struct Command<'a> {
    pub(super) hardware: &'a Hardware,
    pub(super) image: &'a Image,
    pub(super) network: Network,
    pub(super) acceleration: Acceleration,
    /// With its version, where it has to be that of a saved moment.
    pub(super) machine_type: &'a str,
    pub(super) memory: Memory,
    pub(super) layer: (u64, PathBuf),
    pub(super) seed: PathBuf,
    pub(super) console_log: PathBuf,
}

impl Command<'_> {
    /// Sockets are named relative to the run's directory, which QEMU is started in: paths of
    /// sockets have to be short.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut list: Vec<OsString> = Vec::new();
        let mut put = |option: &str, value: String| {
            list.push(option.into());
            list.push(value.into());
        };
        let acceleration = match self.acceleration {
            Acceleration::Kvm => "kvm",
            Acceleration::Tcg => "tcg,thread=multi",
        };
        let processor = if self.acceleration == Acceleration::Kvm { "host" } else { "max" };
        put("-machine", format!("{},memory-backend=memory", self.machine_type));
        put("-accel", acceleration.to_owned());
        put("-cpu", processor.to_owned());
        put("-smp", self.hardware.processors.to_string());
        put("-m", format!("{}B", self.hardware.memory_bytes));
        put("-object", self.memory().to_string());
        put("-display", "none".to_owned());
        let deny = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        put("-sandbox", deny.to_owned());
        put("-rtc", "base=utc,clock=host,driftfix=slew".to_owned());
        put("-pidfile", PID.to_owned());
        for monitor in [MONITOR, LOOK] {
            put("-chardev", format!("socket,id={monitor},path={monitor},server=on,wait=off"));
            put("-mon", format!("chardev={monitor},mode=control"));
        }
        self.disks(&mut put);
        self.network(&mut put);
        self.lines(&mut put);
        put("-device", r#"{"driver":"vmgenid","guid":"auto","id":"generation"}"#.to_owned());
        put("-device", r#"{"driver":"virtio-rng-pci","id":"entropy"}"#.to_owned());
        if !matches!(self.memory, Memory::Fresh) {
            put("-incoming", "defer".to_owned());
            list.push("-S".into());
        }
        list.extend(["-nodefaults", "-no-user-config"].map(OsString::from));
        if let Some(direct) = &self.image.direct {
            list.extend(["-kernel".into(), direct.kernel.clone().into_os_string()]);
            list.extend(["-initrd".into(), direct.initrd.clone().into_os_string()]);
            list.extend(["-append".into(), direct.command_line.clone().into()]);
        }
        list
    }

    fn memory(&self) -> Value {
        let bytes = self.hardware.memory_bytes;
        match &self.memory {
            Memory::Fresh => {
                json!({ "qom-type": "memory-backend-ram", "id": "memory", "size": bytes })
            }
            Memory::Saved { path, offset } => json!({
                "qom-type": "memory-backend-file",
                "id": "memory",
                "size": bytes,
                "mem-path": path,
                "offset": offset,
                "share": false,
                "readonly": true,
                "rom": "off",
            }),
        }
    }

    fn disks(&self, put: &mut impl FnMut(&str, String)) {
        let (number, path) = &self.layer;
        put("-blockdev", layer(*number, path).to_string());
        // A full disk stops the machine, which goes on when there is room again.
        let disk = json!({
            "driver": "virtio-blk-pci",
            "id": "disk",
            "drive": node(*number),
            "werror": "stop",
            "rerror": "stop",
        });
        put("-device", disk.to_string());
        let seed = json!({
            "driver": "raw",
            "node-name": "seed",
            "read-only": true,
            "file": { "driver": "file", "filename": self.seed, "read-only": true },
        });
        put("-blockdev", seed.to_string());
        // cloud-init finds it only on an IDE CD-ROM.
        put("-device", r#"{"driver":"ide-cd","id":"seed-drive","drive":"seed"}"#.to_owned());
    }

    fn network(&self, put: &mut impl FnMut(&str, String)) {
        let network = match self.network {
            Network::Isolated => json!({ "type": "user", "id": "net", "restrict": true }),
            Network::Nat | Network::Open => json!({
                "type": "stream",
                "id": "net",
                "server": false,
                "addr": { "type": "unix", "path": NET },
            }),
        };
        put("-netdev", network.to_string());
        let card = json!({
            "driver": "virtio-net-pci",
            "id": "card",
            "netdev": "net",
            "mac": self.hardware.mac,
            "romfile": "",
        });
        put("-device", card.to_string());
    }

    fn lines(&self, put: &mut impl FnMut(&str, String)) {
        put("-device", r#"{"driver":"virtio-serial-pci","id":"lines"}"#.to_owned());
        let lines = [
            (Line::GuestAgent, "org.qemu.guest_agent.0"),
            (Line::TwinAgent, "org.safetytwin.agent.0"),
        ];
        for (line, name) in lines {
            let id = socket(line);
            put("-chardev", format!("socket,id={id},path={id},server=on,wait=off"));
            let port = json!({ "driver": "virtserialport", "chardev": id, "name": name });
            put("-device", port.to_string());
        }
        let id = socket(Line::Console);
        // A comma in the path is doubled: this option is text alone.
        let log = self.console_log.to_string_lossy().replace(',', ",,");
        let options = format!("socket,id={id},path={id},server=on,wait=off");
        put("-chardev", format!("{options},logfile={log},logappend=on"));
        put("-serial", format!("chardev:{id}"));
    }
}
