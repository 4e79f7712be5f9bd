//! The agent in a twin: answers what the server asks through the machine's virtio-serial port.
//!
//! It sees what the agent on a host sees, with the same code. What it changes is who the machine
//! is, and what a plan says, and only when asked to. The port is there before anybody listens at
//! its other end and stays when they leave; both are waited for.

mod applying;
mod options;
mod port;
mod renewal;

use crate::config::Config;
use crate::watching::Watching;
use crate::{Error, once};
use api::guest::{Answer, Ask, Health, Look, Reply, Request, receive, send};
use applying::Applying;
use host::Root;
use host::files::holds;
use model::entity::File;
use model::spec::FilePath;
use model::{ContentId, Facts};
pub use options::Options;
use port::Port;
use renewal::Renewal;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncWrite, BufStream};
use tokio_util::sync::CancellationToken;

/// For one part of a look that the server asks for. A twin may be emulated, which is ten times as
/// slow as a machine; and nobody else works in it who would be held up.
const LOOK_DEADLINE: Duration = Duration::from_secs(60);
/// Between two tries while nobody is at the other end.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers for the machine below this root until told to stop.
///
/// # Errors
/// When the port can't be opened, or broke.
pub async fn serve(
    config: Config,
    root: &Path,
    port: &Path,
    stop: CancellationToken,
) -> Result<(), Error> {
    let failed = |source| Error::Prepare { path: port.to_owned(), source };
    let mut channel = BufStream::new(Port::open(port).map_err(failed)?);
    tracing::info!(port = %port.display(), "answering for this machine");
    let applying = Applying::new(root, &config.docker_socket);
    let mut guest = Guest { config, renewal: Renewal::new(root), applying, watching: None };
    loop {
        let ended = stop.run_until_cancelled(guest.answer_all(&mut channel)).await;
        drop(guest.applying.let_go());
        match ended {
            None => return Ok(()),
            Some(Err(error)) => return Err(failed(error)),
            // Nobody is there, or they have just left.
            Some(Ok(())) => {
                if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                    return Ok(());
                }
            }
        }
    }
}

struct Guest {
    config: Config,
    renewal: Renewal,
    applying: Applying,
    /// From the first look on.
    watching: Option<Watching>,
}

impl Guest {
    async fn answer_all(
        &mut self,
        channel: &mut (impl AsyncBufRead + AsyncWrite + Unpin),
    ) -> io::Result<()> {
        while let Some(Request { id, ask }) = receive(channel).await? {
            let answer = self.answer(ask).await;
            send(channel, &Reply { id, answer }).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, ask: Ask) -> Answer {
        match ask {
            Ask::Hello => Answer::Hello(env!("CARGO_PKG_VERSION").to_owned()),
            Ask::Facts => self.look(Look::default()).await,
            Ask::Look(look) => self.look(look).await,
            Ask::Health => match once(self.config.clone()).await {
                Ok(facts) => Answer::Health(Health::of(&facts)),
                Err(error) => Answer::Fault(error.to_string()),
            },
            Ask::Renew(renew) => self.renewal.begin(renew).await,
            Ask::Identity => Answer::Identity(self.renewal.standing()),
            Ask::Contents(texts) => self.applying.keep(texts),
            Ask::Apply(apply) => self.applying.begin(apply),
            Ask::Progress(since) => self.applying.progress(&since).await,
            Ask::Cancel(run) => self.applying.cancel(&run),
        }
    }

    async fn look(&mut self, look: Look) -> Answer {
        let watching = match self.watching.take() {
            Some(watching) => watching,
            None => match Watching::begin(self.config_of_looks()) {
                Ok(watching) => watching,
                Err(error) => return Answer::Fault(error.to_string()),
            },
        };
        match watching.look(look.files.into_iter().map(String::from).collect()).await {
            Ok(facts) => {
                self.watching = Some(watching);
                // A disk may hang.
                let told = tokio::task::spawn_blocking(move || tell_known(facts, &look.plain));
                match told.await {
                    Ok(facts) => Answer::Facts(facts),
                    Err(_panic) => Answer::Fault("the look broke off".to_owned()),
                }
            }
            // The next look begins anew.
            Err(error) => Answer::Fault(error.to_string()),
        }
    }

    fn config_of_looks(&self) -> Config {
        let mut config = Config { look_deadline: LOOK_DEADLINE, ..self.config.clone() };
        // What tells that this is a twin is looked at, too.
        config.track.push(model::spec::ENVIRONMENT.to_owned());
        config
    }
}

/// What is hidden or withheld of a file is told where whoever asks knows it: the host has named
/// what it holds, and the twin can't know which names are legible there.
fn tell_known(mut facts: Facts, plain: &BTreeMap<FilePath, ContentId>) -> Facts {
    let root = Root::live();
    for (path, id) in plain {
        let seen = facts.entity::<File>(path.as_str());
        let is_hidden = |file: &File| file.redacted || file.withheld.is_some();
        let Some(file) = seen.filter(is_hidden) else { continue };
        if holds(&root, path.as_str(), *id) {
            let content = Some(id.to_string());
            facts.put_entity(&File { content, redacted: false, withheld: None, ..file });
        }
    }
    facts
}
