//! `twin extras`: what is declared of a twin, on top of what is observed on its host.

use super::twin::{named, of};
use crate::arguments::ExtrasCommand;
use crate::failure::Failure;
use crate::session::{Session, note, write};
use crate::table::{Cell, Table};
use crate::view::{Paint, View};
use api::extras::{NewExtra, TwinExtra, TwinExtras};
use model::terminal;
use model::{Fields, Value};

pub(crate) async fn run(command: &ExtrasCommand, session: &mut Session) -> Result<(), Failure> {
    match command {
        ExtrasCommand::List { name } => {
            let name = named(&mut session.remote, "twin extras list", name.as_ref()).await?;
            let extras: TwinExtras = session.remote.get(&of(&name).and("extras")).await?;
            if extras.extras.is_empty() {
                note(&format!("nothing is declared of {name}; how to: twin extras set --help"));
            }
            session.answer(&extras, table)
        }
        ExtrasCommand::Set { host, kind, name, gone, fields } => {
            let fields: Fields =
                fields.iter().cloned().map(|Field(name, value)| (name, value)).collect();
            let query = of(host).and("extras").and(kind).and(name);
            let extra: TwinExtra =
                session.remote.put(&query, &NewExtra { gone: *gone, fields }).await?;
            if session.json {
                return write(&terminal::json(&extra));
            }
            let (kind, name) = (&extra.kind, terminal::plain(&extra.name));
            note(&format!("declared {kind} {name}; what comes of it: twin plan {host}"));
            Ok(())
        }
        ExtrasCommand::Remove { host, kind, name } => {
            session.remote.delete(&of(host).and("extras").and(kind).and(name)).await?;
            note(&format!("{host} has it as its host again"));
            Ok(())
        }
    }
}

fn table(answer: &TwinExtras, view: &View) -> String {
    if answer.extras.is_empty() {
        return String::new();
    }
    let mut table = Table::new(view, &["KIND", "NAME", "DECLARED"]);
    for extra in &answer.extras {
        let said = match (extra.gone, extra.fields.is_empty()) {
            (true, _) => "gone".to_owned(),
            (false, true) => "there".to_owned(),
            (false, false) => words(&extra.fields),
        };
        table.row([
            Cell::from(extra.kind.as_str()),
            Cell::painted(extra.name.as_str(), Paint::Bold),
            Cell::from(said),
        ]);
    }
    table.render("")
}

/// `image=web:2 state=running`.
fn words(fields: &Fields) -> String {
    let word = |(name, value): (&String, &Value)| match value {
        Value::Text(text) => format!("{name}={text}"),
        value => format!("{name}={}", value.to_json()),
    };
    fields.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// One field as it is typed: `NAME=VALUE`.
#[derive(Debug, Clone)]
pub(crate) struct Field(String, Value);

impl std::str::FromStr for Field {
    type Err = String;

    /// Lists, maps, numbers and truths are JSON; all else is text.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("a field is NAME=VALUE")?;
        let is_json = value.starts_with(['[', '{'])
            || ["true", "false"].contains(&value)
            || value.parse::<i64>().is_ok();
        let value = match is_json {
            true => serde_json::from_str(value).map_err(|error| format!("{name}: {error}"))?,
            false => serde_json::Value::String(value.to_owned()),
        };
        let value = Value::from_json(value).ok_or_else(|| format!("{name}: it says nothing"))?;
        Ok(Self(name.to_owned(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let shown = match text.parse::<Field>() {
            Ok(Field(name, value)) => format!("{name} {}", value.to_json()),
            Err(error) => format!("error: {error}"),
        };
        assert!(shown.starts_with(expected), "{text}: {shown}");
    }

    #[test]
    fn fields_as_they_are_typed() {
        check("image=web:1", "image \"web:1\"");
        check("memory_limit_bytes=1024", "memory_limit_bytes 1024");
        check("exec_start=[[\"/bin/x\",\"a b\"]]", "exec_start [[\"/bin/x\",\"a b\"]]");
        check("privileged=true", "privileged true");
        check("user=", "user \"\"");
        check("user", "error: a field is NAME=VALUE");
        check("ports=[80", "error: ports: ");
    }
}
