//! `twin token`: the tokens of the server on this machine, in the file they are kept in. A
//! running server notices the change by itself.

use super::daemon;
use crate::arguments::{DataDirectory, ServerArguments, TokenCommand};
use crate::failure::Failure;
use crate::session::{note, write};
use crate::table::{Cell, Table};
use crate::view::{Paint, View};
use model::HostId;
use model::terminal;
use serde::Serialize;
use server::tokens::{Created, Role, Token, Tokens};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

impl DataDirectory {
    /// Where the server keeps its data: as told here, else as the server's own file says.
    pub(crate) fn path(self) -> Result<PathBuf, Failure> {
        self.of(&ServerArguments::default())
    }

    fn of(self, server: &ServerArguments) -> Result<PathBuf, Failure> {
        self.data_dir.map_or_else(|| daemon::data_dir(server), Ok)
    }
}

pub(crate) fn run(command: TokenCommand, json: bool, view: &View) -> Result<(), Failure> {
    match command {
        TokenCommand::Create { role, name, host, data } => {
            let role = Role::from(role);
            if host.is_some() && role != Role::Agent {
                return Err(Failure::Usage("--host goes with --role agent".to_owned()));
            }
            show(open(data)?.create(role, &name, host, view.now).map_err(failure)?, json)
        }
        TokenCommand::List { data } => {
            let tokens = existing(data)?.list().map_err(failure)?;
            if tokens.is_empty() {
                note("no tokens yet; make one with: twin token create --role viewer");
            }
            write(&if json { terminal::json(&tokens) } else { render(&tokens, view) })
        }
        TokenCommand::Revoke { id, data } => {
            let token = existing(data)?.revoke(&id).map_err(failure)?;
            note(&format!("revoked {} of {}", token.id, whose(&token)));
            if json { write(&terminal::json(&token)) } else { Ok(()) }
        }
    }
}

fn open(data: DataDirectory) -> Result<Tokens, Failure> {
    let dir = data.path()?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|source| Failure::Write { path: dir.clone(), source })?;
    Tokens::open(&dir).map_err(failure)
}

/// Looks where a server was: a wrong directory is no server without tokens.
fn existing(data: DataDirectory) -> Result<Tokens, Failure> {
    let dir = data.path()?;
    if !dir.is_dir() {
        let shown = dir.display();
        let message = format!("there is no {shown}; name the server's own with --data-dir");
        return Err(Failure::NotThere(message));
    }
    Tokens::open(&dir).map_err(failure)
}

/// A created token with its text, for a program that asked for JSON.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    token: &'a Token,
    text: &'a str,
}

/// Standard output gets nothing but the token, so that `$(…)` holds it.
fn show(created: Created, json: bool) -> Result<(), Failure> {
    let Created { token, text } = created;
    let once = "it is shown only this once";
    note(&match (&token.host, token.role) {
        (Some(host), _) => format!("token {} for the agent of {host}; {once}", token.id),
        (None, Role::Agent) => format!("token {} for agents of any host; {once}", token.id),
        (None, role) => format!(
            "token {}, {}; {once}; use it with: export SAFETYTWIN_TOKEN=…",
            token.id,
            role.as_str()
        ),
    });
    write(&if json { terminal::json(&Shown { token: &token, text: &text }) } else { text + "\n" })
}

fn failure(error: server::tokens::Error) -> Failure {
    use server::tokens::Error;
    let denied = |source: &std::io::Error| source.kind() == std::io::ErrorKind::PermissionDenied;
    match error {
        Error::Read { path, source } | Error::Write { path, source } if denied(&source) => {
            Failure::NotAllowed {
                message: format!("{}: permission denied", path.display()),
                advice: "run it as the server's user, such as: sudo twin token …",
            }
        }
        Error::Write { path, source } => Failure::Write { path, source },
        Error::Read { path, source } => {
            Failure::Failed(format!("could not read {}: {source}", path.display()))
        }
        Error::Form { path, source } => Failure::Configuration(format!(
            "{} is not a list of tokens ({source}); restore it, or move it away and make new tokens",
            path.display()
        )),
        Error::Unknown(_) => Failure::NotThere(error.to_string()),
        Error::Name => Failure::Usage(error.to_string()),
        Error::TooLarge { .. } => Failure::Configuration(error.to_string()),
        Error::Random(_) => Failure::Failed(error.to_string()),
    }
}

fn whose(token: &Token) -> String {
    let role = token.role.as_str();
    match &token.host {
        Some(host) => format!("{role} of {host}"),
        None if token.name.is_empty() => role.to_owned(),
        None => format!("{role} {:?}", token.name),
    }
}

fn render(tokens: &[Token], view: &View) -> String {
    if tokens.is_empty() {
        return String::new();
    }
    let mut table = Table::new(view, &["ID", "ROLE", "NAME", "HOST", "CREATED", "LAST USED"]);
    for token in tokens {
        let host = token.host.as_ref().map_or("-", HostId::as_str);
        let used = token.last_used_at.map_or_else(|| "-".to_owned(), |time| view.age(time));
        table.row([
            Cell::from(token.id.as_str()),
            match token.role {
                Role::Admin => Cell::painted("admin", Paint::Yellow),
                role => Cell::from(role.as_str()),
            },
            Cell::from(if token.name.is_empty() { "-" } else { &token.name }),
            Cell::from(host),
            Cell::from(view.time(token.created_at)),
            Cell::from(used),
        ]);
    }
    table.render("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::tests::at;
    use expect_test::expect;

    #[test]
    fn tokens_are_where_the_server_looks_for_them() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("twin.yaml");
        let of = |text: &str, told: Option<&str>| {
            std::fs::write(&config, text).unwrap();
            let server = ServerArguments { config: Some(config.clone()), ..Default::default() };
            DataDirectory { data_dir: told.map(PathBuf::from) }.of(&server)
        };
        assert_eq!(of("data_dir: /srv/twin\n", None).unwrap(), PathBuf::from("/srv/twin"));
        assert_eq!(of("data_dir: /srv/twin\n", Some("/d")).unwrap(), PathBuf::from("/d"));
        assert_eq!(of("require_tokens: true\n", None).unwrap(), api::places::data());
        assert!(matches!(of("data_dri: /srv/twin\n", None), Err(Failure::Configuration(_))));
    }

    #[test]
    fn a_table_of_tokens() {
        let token = |id: &str, role, name: &str, host: Option<&str>| Token {
            id: id.to_owned(),
            name: name.to_owned(),
            role,
            host: host.map(|host| HostId::new(host).unwrap()),
            created_at: at(0),
            last_used_at: host.map(|_| at(60)),
        };
        let tokens = [
            token("1f2e3d4c", Role::Admin, "me\u{202e}", None),
            token("0a0b0c0d", Role::Agent, "", Some("web01")),
        ];
        expect![[r#"
            ID        ROLE   NAME        HOST   CREATED               LAST USED
            1f2e3d4c  admin  me\u{202e}  -      2026-11-20T09:00:00Z  -
            0a0b0c0d  agent  -           web01  2026-11-20T09:00:00Z  14 min ago
        "#]]
        .assert_eq(&render(&tokens, &View::of_tests()));
    }
}
