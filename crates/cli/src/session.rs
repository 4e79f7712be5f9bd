//! What every command that asks a server works with, and how its answer leaves.

use crate::failure::Failure;
use crate::remote::Remote;
use crate::view::View;
use model::terminal;
use serde::Serialize;
use std::io::Write;

pub(crate) struct Session {
    pub(crate) remote: Remote,
    pub(crate) view: View,
    pub(crate) json: bool,
}

impl Session {
    /// The answer itself as JSON, or what `render` makes of it.
    pub(crate) fn answer<T: Serialize>(
        &self,
        answer: &T,
        render: impl FnOnce(&T, &View) -> String,
    ) -> Result<(), Failure> {
        write(&if self.json { terminal::json(answer) } else { render(answer, &self.view) })
    }
}

/// Writes data to standard output.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// A remark for the user, on standard error.
pub(crate) fn note(text: &str) {
    eprintln!("twin: {}", terminal::plain(text));
}
