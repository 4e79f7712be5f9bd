//! What can fail between here and a server that keeps something of ours.

use std::time::Duration;

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this program was built without {0}; build it with the feature `{0}`")]
    NotBuilt(&'static str),
    #[error("{what} can't be used: {why}")]
    Settings { what: &'static str, why: String },
    #[error("{server} could not be reached; it is tried again")]
    Unreachable {
        server: String,
        #[source]
        source: Cause,
    },
    #[error("{server} did not answer within {} s; it is tried again", .deadline.as_secs_f32())]
    Deadline { server: String, deadline: Duration },
    #[error("{server} can't do it now ({code}); it is tried again")]
    Unready { server: String, code: String },
    #[error("{server} lets this user not do it; look at username, password and rights")]
    Denied {
        server: String,
        #[source]
        source: Cause,
    },
    #[error("{server} refused it")]
    Refused {
        server: String,
        #[source]
        source: Cause,
    },
    #[error("{server} answered what this program does not understand: {what}")]
    Answer { server: String, what: &'static str },
    #[error("what is in {server} changed each time it was to be written; it is tried again")]
    Contended { server: String },
}

impl Error {
    /// Whether it may do better later without anybody's doing.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Deadline { .. }
            | Self::Unready { .. }
            | Self::Contended { .. } => true,
            Self::NotBuilt(_)
            | Self::Settings { .. }
            | Self::Denied { .. }
            | Self::Refused { .. }
            | Self::Answer { .. } => false,
        }
    }
}
