//! Why a command did not succeed, in one line that says what to do, and its exit code.

use api::client;
use model::terminal::plain;
use std::path::PathBuf;
use std::process::ExitCode;

/// The exit codes, for `--help` and the manual.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed, `twin doctor` found an error, or `twin verify` a difference
  2    the command line is wrong
  3    the server can't be reached
  4    there is no such host, subject, moment, token, run, image, twin or snapshot
  5    not allowed: a token is missing, wrong, or of too small a role
  6    the run that was followed was cancelled
  7    the run that was followed was interrupted: the server ended first
  64   bad configuration: a token file, an address, a configuration file
  130  interrupted";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Already told in the output.
    #[error("")]
    Told,
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Usage(String),
    #[error("no server at {server} ({reason}); {}", start(.server))]
    NoServer { server: String, reason: String },
    #[error("{0}")]
    NotThere(String),
    #[error("{message}; {advice}")]
    NotAllowed { message: String, advice: &'static str },
    #[error("{0}")]
    Configuration(String),
    #[error("could not write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not write the output")]
    Output(#[source] std::io::Error),
    #[error("interrupted")]
    Interrupted,
    /// A run that was followed ended so; already told.
    #[error("")]
    Run(u8),
}

const LACKS_TOKEN: &str = "set SAFETYTWIN_TOKEN or --token-file; whoever runs the server makes a \
                           token with: twin token create --role viewer";
const LACKS_ROLE: &str =
    "the token's role does not allow it; see the roles with: twin token create --help";

impl Failure {
    /// From what the client met at `server`, an address as the user wrote it.
    pub(crate) fn from_client(server: &str, error: client::Error) -> Self {
        use client::Error;
        let server = server.to_owned();
        match error {
            Error::Connect { source, .. } => Self::NoServer { server, reason: reason(&source) },
            Error::Connection { source, .. } => Self::NoServer { server, reason: reason(&source) },
            Error::Deadline { deadline, .. } => {
                let reason = format!("no answer within {} s", deadline.as_secs());
                Self::NoServer { server, reason }
            }
            Error::Url(_) | Error::Tls(_) => Self::Configuration(error.to_string()),
            Error::Refused(body, status) => match status.as_u16() {
                401 => Self::NotAllowed { message: body.message, advice: LACKS_TOKEN },
                403 => Self::NotAllowed { message: body.message, advice: LACKS_ROLE },
                400 => Self::Usage(body.message),
                404 | 410 => {
                    // Unless the message names them itself.
                    let news = |similar: &&String| {
                        let first = similar.split(',').next().unwrap_or_default();
                        !first.is_empty() && !body.message.contains(first)
                    };
                    let similar = body.details.get("similar").filter(news);
                    let hint = similar
                        .map(|similar| format!("; did you mean {}?", similar.replace(',', ", ")));
                    Self::NotThere(format!("{}{}", body.message, hint.unwrap_or_default()))
                }
                _ => Self::Failed(body.message),
            },
            Error::Answer { status, .. } => match status.as_u16() {
                401 => {
                    Self::NotAllowed { message: "a token is needed".into(), advice: LACKS_TOKEN }
                }
                403 => {
                    Self::NotAllowed { message: "that is not allowed".into(), advice: LACKS_ROLE }
                }
                404 => Self::NotThere(format!(
                    "{server} has no such page; is it a SafetyTwin server of this version?"
                )),
                _ => Self::Failed(format!(
                    "{server} answered {status} and nothing this program understands; compare \
                     versions with: twin doctor"
                )),
            },
            Error::Request(_) => {
                Self::Configuration("the token has characters that no token has".into())
            }
        }
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Told | Self::Failed(_) | Self::Write { .. } | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::NoServer { .. } => 3,
            Self::NotThere(_) => 4,
            Self::NotAllowed { .. } => 5,
            Self::Configuration(_) => 64,
            Self::Interrupted => 130,
            Self::Run(code) => *code,
        }
    }

    /// `twin: …`, or nothing where there is nothing to say.
    pub(crate) fn line(&self) -> Option<String> {
        if matches!(self, Self::Told | Self::Interrupted | Self::Run(_)) || self.is_closed_pipe() {
            return None;
        }
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Some(format!("twin: {}", plain(&text)))
    }

    /// Tells it on standard error and gives the exit code. Whoever closed the pipe has seen
    /// enough: that is no failure.
    pub(crate) fn report(&self) -> ExitCode {
        if let Some(line) = self.line() {
            eprintln!("{line}");
        }
        if self.is_closed_pipe() { ExitCode::SUCCESS } else { self.code().into() }
    }

    fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

fn start(server: &str) -> &'static str {
    if is_here(server) { "start one with: twin up" } else { "start one there with: twin server" }
}

/// Whether an address is of this machine.
pub(crate) fn is_here(url: &str) -> bool {
    let host = url.split("://").nth(1).unwrap_or(url);
    ["127.", "localhost", "[::1]"].iter().any(|here| host.starts_with(here))
}

/// The innermost cause, without what only programmers read.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::ErrorBody;
    use expect_test::{Expect, expect};
    use hyper::StatusCode;

    fn check(error: client::Error, expected: &Expect) {
        let failure = Failure::from_client("http://127.0.0.1:8470", error);
        expected.assert_eq(&format!("{} {}", failure.code(), failure.line().unwrap()));
    }

    fn refused(status: StatusCode, message: &str, details: &[(&str, &str)]) -> client::Error {
        let body = ErrorBody {
            status: "error".into(),
            code: "x".into(),
            message: message.into(),
            details: details.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            request_id: String::new(),
        };
        client::Error::Refused(Box::new(body), status)
    }

    #[test]
    fn each_failure_says_what_to_do() {
        check(
            client::Error::Connect {
                server: "127.0.0.1:8470".into(),
                source: std::io::Error::from_raw_os_error(111),
            },
            &expect![
                "3 twin: no server at http://127.0.0.1:8470 (connection refused); start one with: twin up"
            ],
        );
        check(
            refused(StatusCode::UNAUTHORIZED, "a token is needed", &[]),
            &expect![
                "5 twin: a token is needed; set SAFETYTWIN_TOKEN or --token-file; whoever runs the server makes a token with: twin token create --role viewer"
            ],
        );
        check(
            refused(
                StatusCode::NOT_FOUND,
                "web01 has no \x1b[2Jngin",
                &[("similar", "unit:nginx.service,package:nginx")],
            ),
            &expect![[
                r#"4 twin: web01 has no \x1b[2Jngin; did you mean unit:nginx.service, package:nginx?"#
            ]],
        );
        check(
            client::Error::Answer { server: "x".into(), status: StatusCode::OK },
            &expect![
                "1 twin: http://127.0.0.1:8470 answered 200 OK and nothing this program understands; compare versions with: twin doctor"
            ],
        );
        check(
            client::Error::Tls("https://x".into()),
            &expect![[
                r#"64 twin: "https://x" asks for TLS, which this client does not speak; use http:// through a tunnel or proxy that does"#
            ]],
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::Output(std::io::ErrorKind::BrokenPipe.into());
        assert_eq!(failure.line(), None);
    }
}
