//! The sockets that a VMM was started with, by its arguments. Pure.

use model::vm::Vmm;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The port of QEMU's guest agent.
const AGENT: &str = "org.qemu.guest_agent.0";
/// Where firecracker listens unless told.
const FIRECRACKER: &str = "/run/firecracker.socket";

/// Where a VMM and its guest's agent are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sockets {
    /// The VMM itself.
    pub(super) api: Option<PathBuf>,
    pub(super) agent: Option<Channel>,
}

/// The guest agent's channel of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Channel {
    /// As QEMU calls it.
    pub(super) id: String,
    pub(super) path: PathBuf,
}

impl Sockets {
    /// Of arguments without the program.
    pub(super) fn of(vmm: Vmm, words: &[String]) -> Self {
        match vmm {
            Vmm::Qemu | Vmm::Stratovirt => qemu(words),
            Vmm::CloudHypervisor => {
                let api = value(words, "--api-socket").and_then(|text| {
                    let options = Options::of(text);
                    options.get("path").or_else(|| options.implied()).map(PathBuf::from)
                });
                Self { api, agent: None }
            }
            Vmm::Firecracker => {
                let has_none = words.iter().any(|word| word == "--no-api");
                let api = value(words, "--api-sock").unwrap_or(FIRECRACKER);
                Self { api: (!has_none).then(|| api.into()), agent: None }
            }
            Vmm::Crosvm | Vmm::Kvmtool => Self::default(),
        }
    }
}

fn qemu(words: &[String]) -> Sockets {
    let mut sockets = Sockets::default();
    let mut channels: BTreeMap<String, PathBuf> = BTreeMap::new();
    let (mut control, mut agent) = (None, None);
    for pair in words.windows(2) {
        let [name, text] = pair else { continue };
        let Some(name) = name.strip_prefix('-') else { continue };
        let options = Options::of(text);
        match name.strip_prefix('-').unwrap_or(name) {
            "qmp" | "qmp-pretty" => {
                let path = options.implied().and_then(|text| text.strip_prefix("unix:"));
                sockets.api = sockets.api.or(path.map(PathBuf::from));
            }
            "chardev" if options.implied() == Some("socket") => {
                let is_path = !matches!(options.get("abstract"), Some("on" | "yes" | "true"));
                if let (Some(id), Some(path), true) =
                    (options.get("id"), options.get("path"), is_path)
                {
                    channels.insert(id.to_owned(), path.into());
                }
            }
            "mon" if options.get("mode") == Some("control") => {
                let id = options.get("chardev").or_else(|| options.implied());
                control = control.or(id.map(str::to_owned));
            }
            "device"
                if options.implied() == Some("virtserialport")
                    && options.get("name") == Some(AGENT) =>
            {
                agent = options.get("chardev").map(str::to_owned);
            }
            _ => {}
        }
    }
    sockets.api = sockets.api.or_else(|| channels.get(&control?).cloned());
    sockets.agent = agent.and_then(|id| {
        let path = channels.get(&id)?.clone();
        Some(Channel { id, path })
    });
    sockets
}

/// What follows an argument, or stands in it behind `=`.
fn value<'w>(words: &'w [String], name: &str) -> Option<&'w str> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == name {
            return words.next().map(String::as_str);
        }
        let behind = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('='));
        if behind.is_some() {
            return behind;
        }
    }
    None
}

/// `first,key=value,…`, where `,,` is a comma.
struct Options(Vec<String>);

impl Options {
    fn of(text: &str) -> Self {
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(c) = characters.next() {
            if c == ',' && characters.next_if_eq(&',').is_none() {
                parts.push(String::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(c);
            }
        }
        Self(parts)
    }

    /// The first, where it has no name.
    fn implied(&self) -> Option<&str> {
        self.0.first().map(String::as_str).filter(|part| !part.is_empty() && !part.contains('='))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|part| {
            let (key, value) = part.split_once('=')?;
            (key == name).then_some(value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(vmm: Vmm, line: &str, api: Option<&str>, agent: Option<(&str, &str)>) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let channel = |(id, path): (&str, &str)| Channel { id: id.into(), path: path.into() };
        let expected = Sockets { api: api.map(PathBuf::from), agent: agent.map(channel) };
        assert_eq!(Sockets::of(vmm, &words), expected, "{line}");
    }

    #[test]
    fn qemus() {
        check(Vmm::Qemu, "-m 64", None, None);
        check(Vmm::Qemu, "-qmp unix:/run/a,,b,server=on,wait=off", Some("/run/a,b"), None);
        check(Vmm::Qemu, "--qmp unix:web.sock,server,nowait", Some("web.sock"), None);
        check(Vmm::Qemu, "-qmp tcp:127.0.0.1:4444,server", None, None);
        check(
            Vmm::Qemu,
            "-chardev socket,id=m,path=/run/m,server=on -mon chardev=m,mode=control",
            Some("/run/m"),
            None,
        );
        check(Vmm::Qemu, "-chardev socket,id=m,path=/run/m -mon m,mode=readline", None, None);
        check(Vmm::Qemu, "-chardev socket,id=m,path=m,abstract=on -mon m,mode=control", None, None);
        check(
            Vmm::Qemu,
            "-chardev socket,path=/run/a,server=on,wait=off,id=a -device virtio-serial -device virtserialport,chardev=a,name=org.qemu.guest_agent.0",
            None,
            Some(("a", "/run/a")),
        );
        check(
            Vmm::Qemu,
            "-chardev socket,path=/run/a,id=a -device virtserialport,chardev=a,name=com.other.0 -qmp",
            None,
            None,
        );
    }

    proptest! {
        #[test]
        fn anything_goes_in(words in prop::collection::vec("(-qmp|-mon|-chardev|-device|--api-sock(et)?|unix:|socket|,|=|id=a|path=|[a-z/,=]{0,8}){0,6}", 0..8)) {
            for vmm in Vmm::ALL {
                Sockets::of(*vmm, &words);
            }
        }
    }

    #[test]
    fn others() {
        let check = |vmm, line, api| check(vmm, line, api, None);
        check(Vmm::CloudHypervisor, "--api-socket /run/c --kernel k", Some("/run/c"));
        check(Vmm::CloudHypervisor, "--api-socket=path=/run/c", Some("/run/c"));
        check(Vmm::CloudHypervisor, "--api-socket fd=3", None);
        check(Vmm::CloudHypervisor, "--api-socket", None);
        check(Vmm::Firecracker, "--id a --api-sock /run/f", Some("/run/f"));
        check(Vmm::Firecracker, "--id a", Some("/run/firecracker.socket"));
        check(Vmm::Firecracker, "--no-api --config-file c", None);
        check(Vmm::Crosvm, "run --socket /run/x", None);
        check(Vmm::Stratovirt, "-machine microvm -qmp unix:/run/s,server,nowait", Some("/run/s"));
    }
}
