//! Makes a twin: a machine over a base image, with a seed that tells it who it is and lets the
//! server's machine in.

use super::Twins;
use super::base::Base;
use super::error::Error;
use super::names::Reserved;
use super::record::Record;
use super::settings::MadeOf;
use crate::images::agent;
use crate::runs::{self, Cause, Failure, Handle, Kind, RunId, Stream as Says, Subject};
use api::twin::NewTwin;
use model::HostId;
use std::time::Duration;
use vm::image::seed::{GuestFile, User};
use vm::image::{HostName, MacAddress, MachineName, Seed};
use vm::machine::{Machine, Network};

/// For making a machine: its image is read once to see that it is whole.
const DEADLINE: Duration = Duration::from_secs(600);

/// Whoever has the console is let in: it is the way in when the network is not, and only the
/// server reaches it.
const CONSOLE: &str = "\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin @USER@ --keep-baud 115200,57600,38400,9600 - $TERM
";
const FOREIGN_AND_ISOLATED: &str = "\
the image is from elsewhere: qemu-guest-agent, python3 and sudo are installed at the first boot \
unless it has them, and this twin is isolated and reaches no mirror; with them it answers in all \
ways, without them by SSH alone. To let it install them, make it with: --network nat";
const CONSOLE_COMMANDS: [&str; 2] =
    ["systemctl daemon-reload", "systemctl --no-block restart serial-getty@ttyS0.service"];

/// What a twin will be made of. Checked before a run begins, so that its caller is told.
#[derive(Debug)]
pub(super) struct Plan {
    reserved: Reserved,
    /// Built if there is none.
    base: Option<Base>,
    made_of: MadeOf,
    cause: Cause,
}

impl Twins {
    /// Makes a twin, stopped.
    ///
    /// # Errors
    /// When there is one, no such host, no image, or what is asked for can't be.
    pub async fn create(
        &self,
        name: &MachineName,
        wanted: NewTwin,
        cause: Cause,
    ) -> Result<RunId, Error> {
        let plan = self.plan(name, wanted, cause.clone()).await?;
        let subject = name.clone();
        let work = async move |this: Self, handle: Handle| this.make(&subject, plan, &handle).await;
        self.begin((Kind::VmCreate, name), cause, work).await
    }

    /// # Errors
    /// As for making the twin.
    pub(super) async fn plan(
        &self,
        name: &MachineName,
        wanted: NewTwin,
        cause: Cause,
    ) -> Result<Plan, Error> {
        let reserved = self.inner.names.reserve(name);
        let reserved = reserved.ok_or_else(|| self.being_made(name))?;
        if self.seen(name).await?.is_some() {
            return Err(Error::Made { name: name.clone() });
        }
        self.not_elsewhere(name)?;
        if self.is_lost(name).await? {
            return Err(self.lost(name));
        }
        if self.host(name).is_none() {
            let host = HostId::new(name.as_str());
            let host = host.map_err(|_name| Error::Unknown { name: name.clone() })?;
            return Err(Error::UnknownHost { host });
        }
        let made_of = self.inner.settings.made_of.asked(&wanted)?;
        let base = self.off_thread(move |this| this.base(wanted.image.as_deref())).await?;
        // Whether there is anything to run it with, which has no other machine of this name.
        self.hypervisor().await?.refuse_foreign(name).await?;
        Ok(Plan { reserved, base, made_of, cause })
    }

    /// The run that makes it may be its own, or that of what it is cloned from.
    fn being_made(&self, name: &MachineName) -> Error {
        let subject = Subject::twin(name);
        let run = self.inner.runs.on(&subject).and_then(|id| self.inner.runs.show(id).ok());
        match run {
            Some(run) => runs::Error::Busy { id: run.id, kind: run.kind, subject }.into(),
            None => Error::BeingMade { name: name.clone() },
        }
    }

    pub(super) async fn make(
        &self,
        name: &MachineName,
        plan: Plan,
        handle: &Handle,
    ) -> Result<(), Failure> {
        let Plan { reserved: _held, base, made_of, cause } = plan;
        let base = match base {
            Some(base) => base,
            None => self.build_base(cause, handle).await?,
        };
        handle.step(&format!("Making the twin {name} from image {}", base.called));
        let MadeOf { memory_bytes, processors, disk_bytes, network } = made_of;
        if base.is_foreign && network == Network::Isolated {
            handle.line(Says::Server, FOREIGN_AND_ISOLATED);
        }
        let (subject, from) = (name.clone(), base.clone());
        let seed = self.off_thread(move |this| this.introduce(&subject, &from)).await?;
        let machine = Machine {
            name: name.clone(),
            image: base.id,
            memory_bytes,
            processors,
            disk_bytes,
            mac: mac()?,
            network,
            seed,
        };
        let defined = self.hypervisor().await?.define(machine, &handle.job(DEADLINE)).await;
        if let Err(error) = defined {
            // Whosever one is that is there already, it is no half-made one.
            self.forget_record(name).await?;
            return Err(error.into());
        }
        let subject = name.clone();
        self.off_thread(move |this| {
            let Some(record) = this.record(&subject)? else { return Ok(()) };
            this.inner.book.put(&subject, &Record { half_made: false, ..record })
        })
        .await?;
        Ok(())
    }

    /// Writes down who a new machine is, and gives the CD-ROM that tells it so. Blocks.
    fn introduce(&self, name: &MachineName, base: &Base) -> Result<Vec<u8>, Error> {
        let host_key = self.inner.access.host_key(name)?;
        let record = Record {
            user: self.inner.settings.user.clone(),
            instance: instance()?,
            host_keys: vec![host_key.public.clone()],
            half_made: true,
            leaving: false,
        };
        let mut seed = self.seed(name, &record)?;
        seed.host_key = Some(host_key);
        // What the image does not have, the seed brings.
        if !base.brings_agent
            && let Some(path) = agent()
        {
            seed.agent = Some(std::fs::read(&path).map_err(Error::file("read", &path))?);
        }
        if base.is_foreign {
            seed = seed.completing();
        }
        self.inner.access.pin(name, &record.host_keys)?;
        self.inner.book.put(name, &record)?;
        Ok(seed.iso()?)
    }

    /// What a machine with this record is told at its first boot. Blocks.
    pub(super) fn seed(&self, name: &MachineName, record: &Record) -> Result<Seed, Error> {
        let mut seed = Seed::new(record.instance.clone(), host_name(name));
        seed.users = vec![User {
            name: record.user.clone(),
            keys: vec![self.inner.access.login()?],
            password: None,
            administrator: true,
        }];
        let path = "/etc/systemd/system/serial-getty@ttyS0.service.d/safetytwin.conf";
        let path = path.parse().expect("a path of ours is a guest's path");
        let content = CONSOLE.replace("@USER@", record.user.as_str()).into_bytes();
        seed.files.push(GuestFile { path, content, mode: 0o644 });
        for command in CONSOLE_COMMANDS {
            seed.commands.push(command.split(' ').map(str::to_owned).collect());
        }
        Ok(seed)
    }

    /// Lets go of what is known of a machine that is gone.
    pub(super) async fn forget_record(&self, name: &MachineName) -> Result<(), Error> {
        let name = name.clone();
        self.off_thread(move |this| {
            this.inner.book.delete(&name)?;
            this.inner.standings.forget(&name)?;
            this.inner.gone.forget(&name);
            this.inner.access.unpin(&name)
        })
        .await
    }
}

/// A host's name as a host name: what no host name has becomes a hyphen.
pub(super) fn host_name(name: &MachineName) -> HostName {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let text: String = name.as_str().chars().map(plain).collect();
    let labels = text.split('.').map(|label| {
        let short: String = label.chars().take(63).collect();
        short.trim_matches('-').to_owned()
    });
    let mut whole = String::new();
    for label in labels.filter(|label| !label.is_empty()) {
        if !whole.is_empty() && whole.len() + 1 + label.len() > 64 {
            break;
        }
        if !whole.is_empty() {
            whole.push('.');
        }
        whole.push_str(&label);
    }
    whole.parse().expect("labels of letters, digits and inner hyphens are a host name")
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(bytes)
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn instance() -> Result<HostName, Error> {
    let text = format!("i-{}", hexadecimal(&random::<8>()?));
    Ok(text.parse().expect("hexadecimal digits are a label"))
}

/// One of those that QEMU's machines have.
pub(super) fn mac() -> Result<MacAddress, Error> {
    let [a, b, c] = random()?;
    let text = format!("52:54:00:{a:02x}:{b:02x}:{c:02x}");
    Ok(text.parse().expect("six bytes, the first of a station"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_have_host_names() {
        let check = |name: &str, expected: &str| {
            assert_eq!(host_name(&name.parse().unwrap()).as_str(), expected);
        };
        check("web01", "web01");
        check("web_01.example", "web-01.example");
        check("a-.-b", "a.b");
        check(&format!("{}.b", "a".repeat(80)), &"a".repeat(63));
    }

    proptest! {
        #[test]
        fn every_name_has_one(name in "[a-z0-9][a-z0-9._-]{0,252}") {
            if let Ok(name) = name.parse::<MachineName>() {
                prop_assert!(!host_name(&name).as_str().is_empty());
            }
        }
    }
}
