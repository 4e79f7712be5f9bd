//! The twin that `twin up` brings up beside server and agent, told live.

use crate::session::note;
use crate::view::bytes;
use api::run::{RunEvent, RunState, RunStream};
use api::twin::NewTwin;
use model::HostId;
use server::Server;
use server::runs::{Cause, RunId, Runs};
use server::twins::{Error, Twins};

pub(super) struct Boot {
    twins: Twins,
    runs: Runs,
    host: HostId,
}

impl Boot {
    pub(super) fn new(server: &Server, host: &HostId) -> Self {
        let (twins, runs) = (server.twins().clone(), server.runs().clone());
        Self { twins, runs, host: host.clone() }
    }

    /// Starts the twin and tells how it goes. Where there can be none, one line says why.
    pub(super) async fn run(&self, server_flag: &str) {
        let host = &self.host;
        match self.start().await {
            Ok(run) => {
                if let Err(error) = self.follow(run, server_flag).await {
                    note(&format!("the log of the twin's start can't be read: {error}"));
                }
            }
            Err(error) if error.lacks_hypervisor() => {
                let why = model::with_causes(&error);
                note(&format!("no twin of {host}: {why}; see what it needs with: twin doctor"));
            }
            Err(error) => note(&format!("no twin of {host}: {}", model::with_causes(&error))),
        }
    }

    async fn start(&self) -> Result<RunId, Error> {
        // What is missing first is told first.
        self.twins.about().await?;
        let name = self.twins.name(&self.host)?;
        self.twins.start(&name, NewTwin::default(), Cause::Local).await
    }

    async fn follow(&self, run: RunId, server_flag: &str) -> Result<(), server::runs::Error> {
        let host = &self.host;
        let mut log = self.runs.follow(run, 0, true)?;
        while let Some(records) = log.read_next().await? {
            for record in records {
                match record.event {
                    RunEvent::Step { text } => note(&text),
                    RunEvent::Line { stream: RunStream::Server, text } => {
                        note(&format!("  {text}"));
                    }
                    RunEvent::Line { .. } => {}
                    RunEvent::Progress { done, .. } => note(&format!("  {}", bytes(done))),
                    RunEvent::End { state: RunState::Succeeded, .. } => {
                        let reach = format!("twin ssh{server_flag} {host}");
                        note(&format!("the twin answers; reach it with: {reach}"));
                        note("it runs on when this command ends, and the next one finds it again");
                    }
                    RunEvent::End { state, message, .. } => {
                        let why = message.unwrap_or_else(|| state.to_string());
                        note(&format!("no twin of {host}: {why}"));
                    }
                }
            }
        }
        Ok(())
    }
}
