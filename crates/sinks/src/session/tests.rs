use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn since(text: &str) -> Time {
    stamp::read(text).unwrap()
}

fn rename(vm: &str, old: &str, new: &str) -> Edit {
    edit(vm, SessionChange::Rename { old: old.to_owned(), new: new.to_owned() })
}

fn orphan(vm: &str, name: &str, text: &str) -> Edit {
    edit(vm, SessionChange::Orphan { name: name.to_owned(), since: since(text) })
}

fn back(vm: &str, name: &str) -> Edit {
    edit(vm, SessionChange::Reactivate { name: name.to_owned() })
}

fn edit(vm: &str, change: SessionChange) -> Edit {
    Edit { id: String::new(), vm: vm.to_owned(), change }
}

/// All at once, on this text; what comes is this text.
fn check(edits: &[Edit], before: &str, after: &str) {
    let outcome = effects(edits).apply(before);
    let wanted = if before == after { Outcome::Same } else { Outcome::Changed(after.to_owned()) };
    assert_eq!(outcome, wanted);
}

const ONE: &str = "01-07-2024: 12:34:00";
const TWO: &str = "02-07-2024: 12:34:00";

#[test]
fn a_vm_that_is_gone_becomes_an_orphan() {
    check(
        &[orphan("1", "a", ONE)],
        r#"{"user":"u","vms":["a","b"],"orphans":[]}"#,
        r#"{"user":"u","vms":["b"],"orphans":[{"name":"a","since":"01-07-2024: 12:34:00"}]}"#,
    );
    // It is one already: since then.
    let is_one = r#"{"vms":[],"orphans":[{"name":"a","since":"01-07-2024: 12:34:00"}]}"#;
    check(&[orphan("1", "a", TWO)], is_one, is_one);
    // In both lists, which was a fault of somebody's.
    check(
        &[orphan("1", "a", TWO)],
        r#"{"vms":["a"],"orphans":[{"name":"a","since":"01-07-2024: 12:34:00"}]}"#,
        is_one,
    );
    check(
        &[orphan("1", "a", ONE)],
        r#"{"vms":["a"]}"#,
        r#"{"vms":[],"orphans":[{"name":"a","since":"01-07-2024: 12:34:00"}]}"#,
    );
    check(
        &[orphan("1", "a", ONE)],
        r#"{"orphans":null,"vms":["a"]}"#,
        r#"{"orphans":[{"name":"a","since":"01-07-2024: 12:34:00"}],"vms":[]}"#,
    );
}

#[test]
fn a_vm_that_is_back_is_no_orphan() {
    check(
        &[back("1", "a")],
        r#"{"vms":["b"],"orphans":[{"name":"a","since":"x","by":1},{"name":"c","since":"y"}]}"#,
        r#"{"vms":["b","a"],"orphans":[{"name":"c","since":"y"}]}"#,
    );
    check(&[back("1", "a")], r#"{"vms":["b"],"orphans":[]}"#, r#"{"vms":["b"],"orphans":[]}"#);
    check(
        &[back("1", "a")],
        r#"{"vms":["a"],"orphans":[{"name":"a","since":"x"}]}"#,
        r#"{"vms":["a"],"orphans":[]}"#,
    );
    // Gone and back before anybody looked.
    check(&[orphan("1", "a", ONE), back("1", "a")], r#"{"vms":["a"]}"#, r#"{"vms":["a"]}"#);
    // Back and gone again: since the second time.
    check(
        &[back("1", "a"), orphan("1", "a", TWO)],
        r#"{"vms":[],"orphans":[{"name":"a","since":"01-07-2024: 12:34:00","by":1}]}"#,
        r#"{"vms":[],"orphans":[{"name":"a","since":"02-07-2024: 12:34:00","by":1}]}"#,
    );
}

#[test]
fn a_name_changes_in_both_lists() {
    check(
        &[rename("1", "a", "z")],
        r#"{"vms":["a","b"],"orphans":[{"since":"x","name":"a","by":[1, 2]}]}"#,
        r#"{"vms":["z","b"],"orphans":[{"since":"x","name":"z","by":[1, 2]}]}"#,
    );
    check(&[rename("1", "a", "b")], r#"{"vms":["a","b"]}"#, r#"{"vms":["b"]}"#);
    check(&[rename("1", "a", "b"), rename("1", "b", "a")], r#"{"vms":["a"]}"#, r#"{"vms":["a"]}"#);
    check(
        &[rename("1", "a", "b"), rename("1", "b", "c"), orphan("1", "c", ONE)],
        r#"{"vms":["a"]}"#,
        r#"{"vms":[],"orphans":[{"name":"c","since":"01-07-2024: 12:34:00"}]}"#,
    );
    check(&[rename("1", "a", "\"\n")], r#"{"vms":["a"]}"#, r#"{"vms":["\"\n"]}"#);
}

#[test]
fn names_that_are_passed_on_are_not_lost() {
    let swap = [rename("1", "a", "b"), rename("2", "b", "a")];
    check(&swap, r#"{"vms":["a","b"]}"#, r#"{"vms":["b","a"]}"#);
    check(&swap, r#"{"vms":["a"]}"#, r#"{"vms":["b"]}"#);
    let chain = [rename("1", "a", "b"), rename("2", "b", "c")];
    check(&chain, r#"{"vms":["a","b"]}"#, r#"{"vms":["b","c"]}"#);
    check(&chain, r#"{"vms":["a"]}"#, r#"{"vms":["b"]}"#);
    // One takes the name of one that is gone.
    check(
        &[orphan("1", "a", ONE), rename("2", "b", "a")],
        r#"{"vms":["a","b"]}"#,
        r#"{"vms":["a"],"orphans":[{"name":"a","since":"01-07-2024: 12:34:00"}]}"#,
    );
}

#[test]
fn what_others_keep_there_stays_as_it_is() {
    check(
        &[rename("1", "a", "z")],
        r#" { "big": 12345678901234567890123, "f": 1.0, "e":"é", "vms" : [1, "a", null,"b","b", {"x": "a"}], "orphans" : [ "a", {"name": 1}, 7 ], "big": 2 } "#,
        r#"{"big":12345678901234567890123,"f":1.0,"e":"é","vms":[1,"z",null,"b","b",{"x": "a"}],"orphans":[ "a", {"name": 1}, 7 ],"big":2}"#,
    );
}

#[test]
fn what_is_no_session_is_left_alone() {
    let effects = effects(&[rename("1", "a", "b")]);
    for text in [
        "",
        "a",
        "12",
        "null",
        r#"["a"]"#,
        r#""vms""#,
        "{}",
        r#"{"vms":{"a":1}}"#,
        r#"{"vms":"a"}"#,
        r#"{"vms":null}"#,
        r#"{"vms":["a"],"vms":["a"]}"#,
        r#"{"vms":["a"],"orphans":7}"#,
        r#"{"vms":["a"],"orphans":[],"orphans":[]}"#,
        r#"{"vms":["a"]"#,
        r#"{"vms":["a"]}x"#,
    ] {
        assert!(matches!(effects.apply(text), Outcome::NoSession(_)), "{text}");
    }
    let deep = format!("{{\"vms\":[\"a\"],\"x\":{}{}}}", "[".repeat(9000), "]".repeat(9000));
    assert!(!matches!(effects.apply(&deep), Outcome::Same));
}

#[test]
fn keys_are_thirty_letters_and_digits() {
    assert!(is_key(b"abcdefghijABCDEFGHIJ0123456789"));
    for key in ["", "abcdefghijABCDEFGHIJ012345678", "abcdefghijABCDEFGHIJ01234567890"] {
        assert!(!is_key(key.as_bytes()), "{key}");
    }
    assert!(!is_key(b"session:abcdefghijABCDEFGHIJ01"));
    assert!(!is_key("abcdefghijABCDEFGHIJ01234567é".as_bytes()));
}

/// A world in which VMs are renamed, go and come back, one look after the other.
#[derive(Debug, Clone)]
struct World {
    names: Vec<String>,
    gone: Vec<Option<Time>>,
}

#[derive(Debug, Clone)]
enum Happens {
    /// Names go round among those VMs.
    Round(Vec<usize>),
    New(usize, String),
    Goes(usize, i64),
    Returns(usize),
}

impl World {
    fn new(vms: usize) -> Self {
        Self { names: (0..vms).map(|vm| format!("n{vm}")).collect(), gone: vec![None; vms] }
    }

    /// One look, after which this is told.
    fn step(&mut self, happens: &Happens) -> Vec<Edit> {
        let before = self.clone();
        match happens {
            Happens::Round(vms) => {
                let names: Vec<String> = vms.iter().map(|vm| self.names[*vm].clone()).collect();
                for (at, vm) in vms.iter().enumerate() {
                    self.names[*vm].clone_from(&names[(at + 1) % names.len()]);
                }
            }
            Happens::New(vm, name) if !self.names.contains(name) => {
                self.names[*vm].clone_from(name);
            }
            Happens::Goes(vm, at) => {
                self.gone[*vm].get_or_insert(Time::from_seconds(*at));
            }
            Happens::Returns(vm) => self.gone[*vm] = None,
            Happens::New(..) => {}
        }
        let mut edits = Vec::new();
        for vm in 0..self.names.len() {
            let (id, old, new) = (vm.to_string(), &before.names[vm], &self.names[vm]);
            if old != new {
                edits.push(rename(&id, old, new));
            }
            match (before.gone[vm], self.gone[vm]) {
                (None, Some(since)) => {
                    edits.push(edit(&id, SessionChange::Orphan { name: new.clone(), since }));
                }
                (Some(_), None) => edits.push(back(&id, new)),
                _ => {}
            }
        }
        edits
    }

    /// A session of somebody who may use these VMs; the lists without their order.
    fn session(&self, vms: &[usize]) -> Value {
        let (gone, there): (Vec<usize>, Vec<usize>) =
            vms.iter().partition(|vm| self.gone[**vm].is_some());
        let orphan = |vm: usize| {
            let since = stamp::write(self.gone[vm].unwrap_or_default());
            json!({"name": self.names[vm], "since": since})
        };
        let names = there.into_iter().map(|vm| json!(self.names[vm])).collect();
        let orphans = gone.into_iter().map(orphan).collect();
        json!({"user": {"id": 7}, "vms": sorted(names), "orphans": sorted(orphans)})
    }
}

fn sorted(mut list: Vec<Value>) -> Value {
    list.sort_by_key(ToString::to_string);
    Value::Array(list)
}

fn applied(edits: &[Edit], text: &str) -> String {
    match effects(edits).apply(text) {
        Outcome::Changed(text) => text,
        Outcome::Same => text.to_owned(),
        Outcome::NoSession(reason) => panic!("{reason}"),
    }
}

fn without_order(text: &str) -> Value {
    let mut value: Value = serde_json::from_str(text).unwrap();
    for list in ["vms", "orphans"] {
        value[list] = sorted(value[list].as_array().unwrap().clone());
    }
    value
}

const VMS: usize = 5;

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        Just((0..VMS).collect::<Vec<_>>())
            .prop_shuffle()
            .prop_flat_map(|vms| (2..=VMS).prop_map(move |n| Happens::Round(vms[..n].to_vec()))),
        (0..VMS, "m[0-3]").prop_map(|(vm, name)| Happens::New(vm, name)),
        (0..VMS, 0i64..1_000_000).prop_map(|(vm, at)| Happens::Goes(vm, at)),
        (0..VMS).prop_map(Happens::Returns),
    ]
}

/// Objects that may be sessions, with anything in the lists.
fn sessions() -> impl Strategy<Value = Value> {
    let name = || "[a-e]".prop_map(|name| json!(name));
    let orphan = ("[a-e]", "[xy]").prop_map(|(name, since)| json!({"name": name, "since": since}));
    let other = prop_oneof![Just(json!(null)), Just(json!(7)), Just(json!({"x": [1]}))];
    let list = |item: BoxedStrategy<Value>| {
        let item = prop_oneof![4 => item, 1 => other.clone()];
        proptest::collection::vec(item, 0..6).prop_map(Value::Array)
    };
    let vms = list(name().boxed());
    let orphans = prop_oneof![4 => list(orphan.boxed()), 1 => Just(Value::Null)];
    (vms, proptest::option::of(orphans), name(), any::<i64>()).prop_map(
        |(vms, orphans, user, number)| {
            let mut session = json!({"user": user, "vms": vms, "number": number});
            if let Some(orphans) = orphans {
                session["orphans"] = orphans;
            }
            session
        },
    )
}

proptest! {
    /// However many looks are told at once, and wherever a pass broke off.
    #[test]
    fn a_session_goes_with_its_vms(
        story in proptest::collection::vec(happens(), 1..12),
        vms in proptest::sample::subsequence((0..VMS).collect::<Vec<_>>(), 0..=VMS),
        broke in 0usize..12,
    ) {
        let mut world = World::new(VMS);
        let begin = world.session(&vms).to_string();
        let looks: Vec<Vec<Edit>> = story.iter().map(|happens| world.step(happens)).collect();
        let wanted = world.session(&vms);
        let all = looks.concat();
        prop_assert_eq!(&without_order(&applied(&all, &begin)), &wanted);
        let (first, rest) = looks.split_at(broke.min(looks.len()));
        let in_two = applied(&rest.concat(), &applied(&first.concat(), &begin));
        prop_assert_eq!(&without_order(&in_two), &wanted);
    }

    #[test]
    fn whatever_it_is_only_names_change(session in sessions()) {
        let edits = [
            rename("1", "a", "b"),
            orphan("2", "c", ONE),
            back("3", "d"),
        ];
        let text = session.to_string();
        let Outcome::Changed(changed) = effects(&edits).apply(&text) else { return Ok(()) };
        let mut after: Value = serde_json::from_str(&changed).unwrap();
        let mut before = session;
        let texts = |list: &Value, of: fn(&Value) -> bool| -> Vec<Value> {
            list.as_array().into_iter().flatten().filter(|item| of(item)).cloned().collect()
        };
        for list in ["vms", "orphans"] {
            let is_other = |item: &Value| !item.is_string() && !item["name"].is_string();
            let (before, after) = (before[list].take(), after[list].take());
            prop_assert_eq!(texts(&before, is_other), texts(&after, is_other));
            let names: Vec<Value> = texts(&after, |item| item.is_string() || item["name"].is_string());
            let gone = if list == "vms" { ["a", "c"] } else { ["a", "d"] };
            // In `vms` only texts are names, in `orphans` only objects have them.
            let name = |item: &Value| if list == "vms" { item.clone() } else { item["name"].clone() };
            prop_assert!(!names.iter().any(|item| gone.iter().any(|gone| name(item) == *gone)));
        }
        for session in [&mut before, &mut after] {
            let fields = session.as_object_mut().unwrap();
            fields.remove("vms");
            fields.remove("orphans");
        }
        prop_assert_eq!(before, after);
        prop_assert_eq!(effects(&edits).apply(&changed), Outcome::Same);
    }

    #[test]
    fn no_text_panics(text in ".{0,60}") {
        let outcome = effects(&[rename("1", "a", "b")]).apply(&text);
        prop_assert!(matches!(outcome, Outcome::NoSession(_) | Outcome::Same));
    }
}
