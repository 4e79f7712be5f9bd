//! What is said to a guest about itself: "are you there", what time it is and who it is.
//!
//! ```text
//! boot:         guest agent or SSH ─► SSH, guest agent, twin-guest
//! saved moment: guest agent or SSH ─► twin-guest: Renew ─► for a clone: Identity, until it is done
//! ```

use super::Twins;
use super::create::random;
use super::error::Error;
use crate::clock;
use crate::runs::{Failure, Handle, Stream as Says};
use api::guest::{
    Answer, Ask, Entropy, Progress, Renew, Request, Standing, ask, await_answer, send,
};
use futures_util::future::join;
use model::Identity;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, BufStream};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use vm::image::MachineName;
use vm::machine::{Hypervisor, Line, State, Stream};

/// For a word of something that is there.
const TRY: Duration = Duration::from_millis(700);
/// For a word of a guest's SSH, as long as it is not known whether the guest is there: passt tries
/// for ten seconds to reach it, and does so at full speed for somebody who has gone away meanwhile.
const FIRST: Duration = Duration::from_secs(12);
pub(super) const PAUSE: Duration = Duration::from_millis(50);
/// For what comes after the guest agent: SSH, and the agent that a seed brings.
const AFTERWARDS: Duration = Duration::from_secs(120);
/// For the guest agent, where `twin-guest` is there.
const BESIDE: Duration = Duration::from_secs(20);
/// For what is done at once; the guest's agent gives up after a minute itself.
const RENEWAL: Duration = Duration::from_secs(75);
/// For a clone to become itself.
const IDENTITY: Duration = Duration::from_secs(180);
const BANNER: &[u8] = b"SSH-2.0";

type Channel = BufStream<Box<dyn Stream>>;

impl Twins {
    /// Waits until a guest that boots answers in all the ways that a twin has.
    pub(super) async fn await_boot(
        &self,
        name: &MachineName,
        handle: &Handle,
    ) -> Result<(), Failure> {
        self.await_guest(name, handle).await?;
        handle.step("Waiting for SSH and the agents");
        let hypervisor = self.hypervisor().await?;
        let port = hypervisor.show(name).await?.ssh_port;
        let until = Instant::now() + AFTERWARDS;
        let all = async {
            let agent = until_answered(until, || talk(hypervisor, name));
            let (ssh, agent) = join(greeted(port, until, TRY), agent).await;
            // Whoever has the one has the other by then, or will not have it.
            let until = if agent.is_some() { until.min(Instant::now() + BESIDE) } else { until };
            let guest_agent = until_answered(until, || greets_back(hypervisor, name)).await;
            (ssh.is_some(), guest_agent.is_some(), agent.is_some())
        };
        let (ssh, guest_agent, agent) = within(handle, all).await?;
        if !guest_agent {
            let text = "qemu-guest-agent does not answer in the guest; is it installed there?";
            handle.line(Says::Server, text);
        }
        if !ssh {
            handle.line(Says::Server, "SSH does not answer; look why with: twin console");
        }
        if !agent {
            let text = "twin-guest does not answer in the guest: a clone of it can't become itself";
            handle.line(Says::Server, text);
        }
        Ok(())
    }

    /// Waits until a guest is up: its agent answers, or its SSH, as an image from elsewhere may
    /// have no agent.
    pub(super) async fn await_guest(
        &self,
        name: &MachineName,
        handle: &Handle,
    ) -> Result<(), Failure> {
        handle.step("Waiting for the guest");
        let hypervisor = self.hypervisor().await?;
        let limit = self.inner.settings.boot;
        let job = handle.job(limit + TRY + TRY);
        let up = async {
            let port = hypervisor.show(name).await?.ssh_port;
            if greeted(port, Instant::now() + limit, FIRST).await.is_none() {
                std::future::pending::<()>().await;
            }
            Ok::<_, Failure>(())
        };
        tokio::select! {
            answered = vm::await_guest(hypervisor, name, limit, &job) => answered?,
            greeted = up => greeted?,
        }
        Ok(())
    }

    /// Tells a guest that goes on from a saved moment what time it is, and gives it randomness
    /// that nobody else has.
    pub(super) async fn refresh(&self, name: &MachineName, handle: &Handle) -> Result<(), Failure> {
        match within(handle, self.renew(name, None)).await? {
            Ok(faults) => {
                for fault in faults {
                    handle.line(Says::Server, &fault);
                }
            }
            Err(error) => {
                let text = format!("its clock is that of the snapshot: {}", error.into_text());
                handle.line(Says::Server, &text);
            }
        }
        Ok(())
    }

    /// Makes a clone itself. Its SSH keys come back.
    pub(super) async fn become_itself(
        &self,
        name: &MachineName,
        identity: Identity,
        handle: &Handle,
    ) -> Result<Standing, Failure> {
        let said = |fault: String| handle.line(Says::Server, &format!("{name}: {fault}"));
        let faults = within(handle, self.renew(name, Some(identity))).await?;
        faults.map_err(Failed::into_failure)?.into_iter().for_each(said);
        let hypervisor = self.hypervisor().await?;
        let until = Instant::now() + IDENTITY;
        let settled = until_answered(until, || settled(hypervisor, name));
        let limit = IDENTITY.as_secs();
        let standing = within(handle, settled).await?.ok_or_else(|| {
            Failure::new(format!("{name} did not become itself within {limit} s"))
        })?;
        for fault in &standing.faults {
            said(format!("{}: {}", fault.part, fault.what));
        }
        hypervisor.lead_ssh(name, &addresses(&standing)).await?;
        Ok(standing)
    }

    /// What it could not do, in words.
    async fn renew(
        &self,
        name: &MachineName,
        identity: Option<Identity>,
    ) -> Result<Vec<String>, Failed> {
        let hypervisor = self.hypervisor().await.map_err(Failed::of)?;
        let entropy = Entropy::new(random::<64>().map_err(Failed::of)?.to_vec());
        let entropy = entropy.map_err(Failed::of)?;
        let renew = || {
            let (entropy, identity) = (entropy.clone(), identity.clone());
            Ask::Renew(Renew { now: clock::now(), entropy, identity })
        };
        // One that goes on is there at once, most likely: it is asked in one breath.
        let answer = match renewed_at_once(hypervisor, name, renew()).await {
            Some(answer) => answer,
            None => {
                let until = Instant::now() + AFTERWARDS;
                let channel = until_answered(until, || talk(hypervisor, name)).await;
                let silent =
                    || format!("twin-guest does not answer in {name}; is it in its image?");
                let mut channel = channel.ok_or_else(|| Failed(silent()))?;
                ask(&mut channel, fresh_id(), renew(), RENEWAL).await
            }
        };
        match answer {
            Ok(Answer::Renewed(renewed)) => {
                let words = |fault: api::guest::Fault| format!("{}: {}", fault.part, fault.what);
                Ok(renewed.faults.into_iter().map(words).collect())
            }
            Ok(_) => Err(Failed("twin-guest answers something else; is it of another age?".into())),
            Err(error) => Err(Failed::of(error)),
        }
    }

    /// Whether a machine answers: its SSH, else its guest agent.
    pub(crate) async fn answers(&self, name: &MachineName) -> bool {
        let Ok(hypervisor) = self.hypervisor().await else { return false };
        let Ok(seen) = hypervisor.show(name).await else { return false };
        if seen.state != State::Running {
            return false;
        }
        if let Some(port) = seen.ssh_port
            && greets(port, TRY).await
        {
            return true;
        }
        greets_back(hypervisor, name).await.is_some()
    }

    /// The first address of the guest's own that is not its loopback.
    pub(crate) async fn address(&self, name: &MachineName) -> Option<String> {
        let stream = self.hypervisor().await.ok()?.connect(name, Line::GuestAgent).await.ok()?;
        let mut agent = vm::GuestAgent::open(stream, TRY).await.ok()?;
        let none = serde_json::json!({});
        let answer = agent.call("guest-network-get-interfaces", none).await.ok()?;
        let interfaces = answer.as_array()?.iter();
        let others = interfaces.filter(|one| one.get("name").is_some_and(|name| name != "lo"));
        let addresses = others.filter_map(|one| one.get("ip-addresses")?.as_array()).flatten();
        let mut texts = addresses.filter_map(|one| one.get("ip-address")?.as_str());
        texts.find(|text| text.parse::<Ipv4Addr>().is_ok()).map(str::to_owned)
    }
}

/// Why a guest was not told.
struct Failed(String);

impl Failed {
    fn of(error: impl std::error::Error) -> Self {
        Self(model::with_causes(&error))
    }

    fn into_text(self) -> String {
        self.0
    }

    fn into_failure(self) -> Failure {
        Failure::new(self.0)
    }
}

/// Those of a machine, by what it says.
fn addresses(standing: &Standing) -> Vec<Ipv4Addr> {
    let texts = standing.addresses.iter().flat_map(|by_interface| by_interface.values()).flatten();
    let plain = |text: &String| text.split('/').next()?.parse().ok();
    texts.filter_map(plain).collect()
}

/// Asks again and again, until there is an answer or the time is over.
pub(super) async fn until_answered<T, A: Future<Output = Option<T>>>(
    until: Instant,
    mut asked: impl FnMut() -> A,
) -> Option<T> {
    loop {
        if let Some(answer) = asked().await {
            return Some(answer);
        }
        if Instant::now() >= until {
            return None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// As long as the run goes on.
pub(super) async fn within<T>(
    handle: &Handle,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    let ended = handle.cancelled().run_until_cancelled_owned(work).await;
    ended.ok_or_else(|| Failure::new("cancelled"))
}

async fn open(hypervisor: &dyn Hypervisor, name: &MachineName) -> Option<Channel> {
    hypervisor.connect(name, Line::TwinAgent).await.ok().map(BufStream::new)
}

/// A channel to the twin's agent, which is there.
pub(super) async fn talk(hypervisor: &dyn Hypervisor, name: &MachineName) -> Option<Channel> {
    let mut channel = open(hypervisor, name).await?;
    let hello = ask(&mut channel, fresh_id(), Ask::Hello, TRY).await;
    matches!(hello, Ok(Answer::Hello(_))).then_some(channel)
}

/// What the twin's agent answers to what it is asked along with whether it is there; none where it
/// is not there at once.
async fn renewed_at_once(
    hypervisor: &dyn Hypervisor,
    name: &MachineName,
    renew: Ask,
) -> Option<Result<Answer, api::guest::Error>> {
    let mut channel = open(hypervisor, name).await?;
    let (hello, renewal) = (fresh_id(), fresh_id());
    let greeted = async {
        for (id, ask) in [(&hello, Ask::Hello), (&renewal, renew)] {
            send(&mut channel, &Request { id: id.clone(), ask }).await.ok()?;
        }
        let greeted = await_answer(&mut channel, &hello, TRY).await;
        matches!(greeted, Ok(Answer::Hello(_))).then_some(())
    };
    timeout(TRY, greeted).await.ok()??;
    Some(await_answer(&mut channel, &renewal, RENEWAL).await)
}

/// Who a machine says it is, once nothing of that is pending.
async fn settled(hypervisor: &dyn Hypervisor, name: &MachineName) -> Option<Standing> {
    let mut channel = open(hypervisor, name).await?;
    match ask(&mut channel, fresh_id(), Ask::Identity, RENEWAL).await {
        Ok(Answer::Identity(standing)) if standing.progress != Progress::Pending => Some(standing),
        _ => None,
    }
}

pub(super) fn fresh_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Whether the guest agent is there.
async fn greets_back(hypervisor: &dyn Hypervisor, name: &MachineName) -> Option<()> {
    let stream = hypervisor.connect(name, Line::GuestAgent).await.ok()?;
    vm::GuestAgent::open(stream, TRY).await.ok().map(drop)
}

/// Waits for SSH at a port, if it has one.
async fn greeted(port: Option<u16>, until: Instant, limit: Duration) -> Option<()> {
    let port = port?;
    until_answered(until, || async move { greets(port, limit).await.then_some(()) }).await
}

/// Whether an SSH server says who it is. The port itself is open before the guest is up.
async fn greets(port: u16, limit: Duration) -> bool {
    let greeting = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let mut banner = [0; BANNER.len()];
        stream.read_exact(&mut banner).await?;
        Ok::<_, std::io::Error>(banner == *BANNER)
    };
    matches!(timeout(limit, greeting).await, Ok(Ok(true)))
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::of(error)
    }
}
