//! `twin doctor`: what is missing or misconfigured, and the command that mends it.
//!
//! Looks at this machine and at the server, changes nothing. Each finding stands alone: one
//! that can't be made is itself a finding.

mod machine;
mod server;
mod virtualisation;

use crate::arguments::DataDirectory;
use crate::failure::{Failure, is_here};
use crate::session::{Session, write};
use crate::view::{Paint, View};
use machine::Machine;
use model::terminal;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warning,
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    /// What was looked at.
    name: &'static str,
    level: Level,
    says: String,
    /// The command that mends it, or what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Debug, Serialize)]
struct Checks {
    checks: Vec<Check>,
}

impl Check {
    fn ok(name: &'static str, says: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, says: says.into(), mend: None }
    }

    fn warning(name: &'static str, says: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, level: Level::Warning, says: says.into(), mend: Some(mend.into()) }
    }

    fn error(name: &'static str, says: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Error, ..Self::warning(name, says, mend) }
    }
}

pub(crate) async fn run(data: DataDirectory, session: &mut Session) -> Result<(), Failure> {
    let mut checks = server::checks(&mut session.remote, &session.view).await;
    let machine = Machine {
        root: "/".into(),
        // What is wrong with the file is a finding of its own.
        data_dir: data.path().unwrap_or_else(|_wrong| api::places::data()),
        configuration: api::places::configuration(),
        now: session.view.now,
    };
    checks.extend(machine.checks());
    if is_here(session.remote.url()) {
        checks.extend(virtualisation::checks(&machine.data_dir).await);
    }
    let bad = checks.iter().any(|check| check.level == Level::Error);
    let checks = Checks { checks };
    write(&if session.json { terminal::json(&checks) } else { render(&checks, &session.view) })?;
    if bad { Err(Failure::Told) } else { Ok(()) }
}

fn render(checks: &Checks, view: &View) -> String {
    let mut out = String::new();
    for check in &checks.checks {
        let (tag, paint) = match check.level {
            Level::Ok => ("[OK]", Paint::Green),
            Level::Warning => ("[WARNING]", Paint::Yellow),
            Level::Error => ("[ERROR]", Paint::Red),
        };
        let padding = " ".repeat(9 - tag.len());
        let says = view.paint(Paint::None, &check.says);
        out.push_str(&format!("{}{padding} {}: {says}\n", view.paint(paint, tag), check.name));
        if let Some(mend) = &check.mend {
            out.push_str(&format!("          {}\n", view.paint(Paint::Bold, mend)));
        }
    }
    let number = |level| checks.checks.iter().filter(|check| check.level == level).count();
    let summary = match (number(Level::Error), number(Level::Warning)) {
        (0, 0) => "all is well".to_owned(),
        (errors, warnings) => format!(
            "{}, {}",
            crate::view::count(errors, "error"),
            crate::view::count(warnings, "warning")
        ),
    };
    out + &summary + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn findings() {
        let checks = Checks {
            checks: vec![
                Check::ok("systemd", "runs"),
                Check::warning("docker", "no right to\x1b[2J use it", "sudo usermod -aG docker me"),
                Check::error("server", "not there", "twin up"),
            ],
        };
        expect![[r#"
            [OK]      systemd: runs
            [WARNING] docker: no right to\x1b[2J use it
                      sudo usermod -aG docker me
            [ERROR]   server: not there
                      twin up
            1 error, 1 warning
        "#]]
        .assert_eq(&render(&checks, &View::of_tests()));
        let none = Checks { checks: vec![] };
        assert_eq!(render(&none, &View::of_tests()), "all is well\n");
    }
}
