//! `twin state`: the facts of a host at a moment: a table of them, or single ones field by
//! field.

use crate::arguments::StateArguments;
use crate::describe::standing;
use crate::failure::Failure;
use crate::naming::{near, stands_for};
use crate::session::Session;
use crate::table::{Cell, Table};
use crate::target::leading;
use crate::values::{command_line, entry, show};
use crate::view::{Paint, View};
use api::answer::State;
use model::terminal::plain;
use model::{Facts, Fields, Kind, Subject, Value};

/// Entries of a list that stay on one line.
const MAX_INLINE: usize = 3;

pub(crate) async fn run(arguments: &StateArguments, session: &mut Session) -> Result<(), Failure> {
    let (target, words) = leading(&mut session.remote, "twin state", &arguments.words).await?;
    let kind = arguments.kind.map(|kind| kind.to_string());
    let moment = target.moment.as_deref();
    let mut state = session.remote.state(&target.host, moment, kind.as_deref()).await?;
    if words.is_empty() {
        return session.answer(&state, table);
    }
    state.facts = named(&state, words)?;
    session.answer(&state, trees)
}

/// What the words stand for, each of at least something.
fn named(state: &State, words: &[String]) -> Result<Facts, Failure> {
    let mut found = Facts::default();
    for word in words {
        let before = found.len();
        for (subject, item) in state.facts.iter().filter(|(subject, _)| stands_for(word, subject)) {
            found.put(subject.clone(), item.clone());
        }
        let again = || found.iter().any(|(subject, _)| stands_for(word, subject));
        if found.len() == before && !again() {
            let near = near(word, state.facts.iter().map(|(subject, _)| subject));
            let hint = match near.as_slice() {
                [] => "see what there is without naming anything".to_owned(),
                near => format!("did you mean {}?", near.join(", ")),
            };
            let (host, version) = (&state.host, state.version);
            return Err(Failure::NotThere(format!("{host}{version} has no {word:?}; {hint}")));
        }
    }
    Ok(found)
}

fn heading(state: &State, view: &View) -> String {
    let text =
        format!("{}{}  {}, {}", state.host, state.version, view.time(state.at), view.age(state.at));
    view.dim(&text) + "\n"
}

/// Every item in a line.
fn table(state: &State, view: &View) -> String {
    let mut table = Table::new(view, &["KIND", "NAME", "STATE"]);
    let mut kinds: Vec<Kind> = Kind::ALL.to_vec();
    for (subject, _) in state.facts.iter() {
        if !kinds.contains(&subject.kind()) {
            kinds.push(subject.kind());
        }
    }
    for kind in kinds {
        for (subject, item) in state.facts.of_kind(kind) {
            table.row([
                Cell::painted(kind.as_str(), Paint::Dim),
                Cell::from(subject.id()),
                Cell::from(standing(kind, &item.fields(), view).join(", ")),
            ]);
        }
    }
    heading(state, view) + &table.render("")
}

/// Every field of each item.
fn trees(state: &State, view: &View) -> String {
    let mut out = heading(state, view);
    for (subject, item) in state.facts.iter() {
        out.push_str(&tree(subject, &item.fields(), view));
    }
    out
}

fn tree(subject: &Subject, fields: &Fields, view: &View) -> String {
    let mut out = view.paint(Paint::Bold, &subject.to_string()) + "\n";
    let width = fields.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, value) in fields {
        let mut label = format!("{}{}", view.dim(name), " ".repeat(width - name.chars().count()));
        for line in lines(name, value, view) {
            out.push_str(&format!("  {label}  {}\n", plain(&line)));
            label = " ".repeat(width);
        }
    }
    out
}

/// A value over as many lines as it is readable in.
fn lines(name: &str, value: &Value, view: &View) -> Vec<String> {
    let nested = |list: &[Value]| list.iter().any(|entry| matches!(entry, Value::List(_)));
    match value {
        Value::List(list) if name == "arguments" => vec![command_line(list)],
        Value::List(list) if list.len() > MAX_INLINE || nested(list) => {
            list.iter().map(entry).collect()
        }
        Value::Map(map) if !map.is_empty() => {
            map.iter().map(|(key, value)| format!("{key} = {value}")).collect()
        }
        value => vec![show(name, value, view)],
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::entry::tests::at;
    use expect_test::expect;
    use model::{HostId, Version};

    pub(crate) fn state(json: &str) -> State {
        let facts: Facts = serde_json::from_str(json).unwrap();
        State { host: HostId::new("web01").unwrap(), version: Version(412), at: at(0), facts }
    }

    const FACTS: &str = r#"{
        "unit:nginx.service": {"active_state":"active","sub_state":"running","main_pid":812,
            "exec_start":[["/usr/sbin/nginx","-g","daemon on;"]],"after":["a","b","c","d"],
            "wants":["x"],"environment":{"LANG":"C","TOKEN":"redacted:1"},"since":"2026-11-18T07:12:40Z"},
        "package:nginx": {"version":"1.22.1-9","manager":"dpkg"},
        "novelty:a": {"x":1},
        "file:/etc/\u202ex": {"size":12,"mode":"0644","owner":"root","group":"root\u001b[2J"}
    }"#;

    #[test]
    fn facts_as_a_table() {
        expect![[r#"
            web01@412  2026-11-20T09:00:00Z, 15 min ago
            KIND     NAME            STATE
            unit     nginx.service   active (running) since 2026-11-18T07:12:40Z, pid 812
            package  nginx           1.22.1-9
            file     /etc/\u{202e}x  12 B, mode 0644, root:root\x1b[2J
            novelty  a               x 1
        "#]]
        .assert_eq(&table(&state(FACTS), &View::of_tests()));
    }

    #[test]
    fn facts_field_by_field() {
        expect![[r#"
            web01@412  2026-11-20T09:00:00Z, 15 min ago
            file:/etc/\u{202e}x
              group  root\x1b[2J
              mode   0644
              owner  root
              size   12 B
            novelty:a
              x  1
            package:nginx
              manager  dpkg
              version  1.22.1-9
            unit:nginx.service
              active_state  active
              after         a
                            b
                            c
                            d
              environment   LANG = C
                            TOKEN = redacted:1
              exec_start    /usr/sbin/nginx -g 'daemon on;'
              main_pid      812
              since         2026-11-18T07:12:40Z
              sub_state     running
              wants         x
        "#]]
        .assert_eq(&trees(&state(FACTS), &View::of_tests()));
    }

    #[test]
    fn what_was_named() {
        let check = |words: &[&str], expected: &str| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            let found = match named(&state(FACTS), &words) {
                Ok(facts) => facts.iter().map(|(subject, _)| format!("{subject} ")).collect(),
                Err(failure) => failure.to_string(),
            };
            assert_eq!(found.trim_end(), expected);
        };
        check(&["nginx"], "package:nginx unit:nginx.service");
        check(&["nginx.service", "unit:nginx"], "unit:nginx.service");
        check(
            &["nginx", "ngnix"],
            "web01@412 has no \"ngnix\"; did you mean package:nginx, unit:nginx.service?",
        );
        check(
            &["postgres"],
            "web01@412 has no \"postgres\"; see what there is without naming anything",
        );
    }
}
