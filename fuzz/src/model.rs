//! Facts, patches, names, times and the redactor.

use crate::made::{self, MadeFacts, MadePatch};
use crate::redactor;
use ::model::entity::{
    Collector, Container, Cpu, Dependency, Disk, Entity, File, Filesystem, Gpu, Group, Interface,
    Memory, Package, Platform, Process, Route, Socket, Unit, User, Workload,
};
use ::model::load::Load;
use ::model::plan::{Fidelity, Own, Plan, plan};
use ::model::redact::MARK;
use ::model::spec::{Extras, Spec};
use ::model::{
    ContentId, Digest, Facts, Fields, HostId, Kind, Moment, Patch, Subject, Time, Value, Version,
    diff, significance, unit_name_is_valid,
};
use arbitrary::Arbitrary;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// Three states of a host, and two patches made for none of them.
#[derive(Debug, Arbitrary)]
pub struct Steps {
    states: [MadeFacts; 3],
    patches: [MadePatch; 2],
}

/// A diff leads there and back, two diffs are one, and what is misfit is refused.
pub fn model_patch(steps: Steps) {
    let [first, second, third] = steps.states.map(made::facts);
    let [one, two] = [diff(&first, &second), diff(&second, &third)];
    let mut state = first.clone();
    one.apply(&mut state).expect("a diff fits the state it was made for");
    assert_eq!(state, second);
    let again: Facts = state.iter().map(|(s, item)| (s.clone(), item.clone())).collect();
    assert_eq!(again.digest(), second.digest());
    one.clone().inverse().apply(&mut state).expect("its inverse fits, too");
    assert_eq!(state, first);
    assert!(diff(&first, &first).is_empty());
    let subjects: Vec<Subject> =
        first.iter().chain(second.iter()).map(|(subject, _)| subject.clone()).collect();
    assert_eq!(Patch::of(&first, &second, &subjects), one);

    let both = one.clone().then(two.clone());
    let mut state = first.clone();
    both.apply(&mut state).expect("two diffs in a row fit the state of the first");
    assert_eq!(state, third);
    both.clone().inverse().apply(&mut state).expect("their inverse fits, too");
    assert_eq!(state, first);

    survives(&both);
    survives(&third);
    for misfit in steps.patches.map(made::patch) {
        for (subject, op) in misfit.iter() {
            let _either = significance(subject, op);
        }
        let mut state = third.clone();
        let _refused = misfit.apply(&mut state);
        survives(&state);
        survives(&misfit.clone().then(two.clone()).inverse());
        survives(&one.clone().then(misfit));
    }
}

/// Whatever a host and its twin are said to be, a plan is made of it that the guest's agent takes.
pub fn model_plan(data: &[u8]) {
    let again = |plan: &Plan| {
        let json = serde_json::to_string(plan).expect("a plan can be written");
        assert_eq!(&serde_json::from_str::<Plan>(&json).expect("and read again"), plan);
    };
    if let Ok(plan) = serde_json::from_slice::<Plan>(data) {
        again(&plan);
    }
    let Ok((host, twin)) = serde_json::from_slice::<(Facts, Facts)>(data) else { return };
    let spec = Spec::of(&host, &Extras::default(), None);
    let made = plan(&spec, &twin, &Own::default());
    again(&made);
    assert_eq!(plan(&spec, &twin, &Own::default()), made);
    assert!(Fidelity::now(&spec, &made).per_mille() <= 1000);
    assert!(Fidelity::after(&spec, &made).per_mille() <= 1000);
}

/// Whatever is read as one of our types can be written and read again.
pub fn model_values(data: &[u8]) {
    fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) -> Option<T> {
        let packed = rmp_serde::from_slice::<T>(data).ok();
        let read = packed.or_else(|| serde_json::from_slice::<T>(data).ok())?;
        survives(&read);
        Some(read)
    }
    read::<Value>(data).inspect(|value| {
        let _shown = value.to_string();
        assert_eq!(Value::from_json(value.to_json()).as_ref(), Some(value));
    });
    read::<Facts>(data);
    read::<Patch>(data).inspect(|patch| {
        for (subject, op) in patch.iter() {
            let _either = significance(subject, op);
        }
        let _refused = patch.apply(&mut Facts::default());
    });
    read::<Version>(data);
    read::<Time>(data);
    read::<Digest>(data);
    read::<ContentId>(data);
    // Has fractions, which need not be equal to themselves.
    if let Ok(load) = serde_json::from_slice::<Load>(data) {
        let _written = rmp_serde::to_vec_named(&load).expect("load is plain data");
    }
    if let Some(fields) = read::<Fields>(data) {
        entities(&fields);
    }
}

/// Fields that are taken for an entity come back as the same entity.
fn entities(fields: &Fields) {
    fn of<T: Entity + PartialEq + Debug>(fields: &Fields) {
        let Some(entity) = T::from_fields("id", fields.clone()) else { return };
        let (subject, fields) = entity.to_item();
        assert_eq!(T::from_fields(subject.id(), fields), Some(entity));
    }
    of::<Unit>(fields);
    of::<Container>(fields);
    of::<Process>(fields);
    of::<Package>(fields);
    of::<File>(fields);
    of::<User>(fields);
    of::<Group>(fields);
    of::<Socket>(fields);
    of::<Dependency>(fields);
    of::<Workload>(fields);
    of::<Platform>(fields);
    of::<Cpu>(fields);
    of::<Memory>(fields);
    of::<Disk>(fields);
    of::<Filesystem>(fields);
    of::<Interface>(fields);
    of::<Route>(fields);
    of::<Gpu>(fields);
    of::<Collector>(fields);
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let packed = rmp_serde::to_vec_named(value).expect("our types can be written");
    assert_eq!(rmp_serde::from_slice::<T>(&packed).as_ref().ok(), Some(value));
    let json = serde_json::to_vec(value).expect("our types can be written");
    assert_eq!(serde_json::from_slice::<T>(&json).as_ref().ok(), Some(value));
}

/// What people and machines write for moments, hosts and things.
pub fn model_names(text: &str) {
    // What is shown of a time is rounded, and stays what it is after that.
    fn same<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
        let read = text.parse::<T>().ok()?;
        let shown = read.to_string();
        assert_eq!(shown.parse::<T>().ok().map(|again| again.to_string()), Some(shown), "{text:?}");
        Some(read)
    }
    same::<Moment>(text);
    same::<Time>(text);
    same::<Subject>(text);
    same::<HostId>(text).inspect(|host| {
        let name = host.as_str();
        assert!(!name.contains(['/', '\0', '\n']) && name != ".." && name != ".");
    });
    same::<ContentId>(text);
    let _valid = unit_name_is_valid(text);
    let _kind = Kind::parse(text);
    let _said = ::model::keys::fault(text, text);
    let escaped = Subject::escaped(Kind::UNIT, text);
    assert_eq!(Subject::new(Kind::UNIT, escaped.id()).as_ref(), Ok(&escaped));
}

/// A configuration or command line with one known secret somewhere in it.
#[derive(Debug, Arbitrary)]
pub struct Confession {
    before: String,
    after: String,
    words: Vec<String>,
    words_after: Vec<String>,
    prefix: [u8; 3],
    name: u8,
    form: u8,
    value: u8,
}

/// A secret under a name that speaks of one is never printed, and marks stay.
pub fn model_redact(confession: Confession) {
    const NAMES: [&str; 10] = [
        "password",
        "passwd",
        "PASSWORD",
        "secret",
        "token",
        "api_key",
        "apiKey",
        "passphrase",
        "access_key",
        "credentials",
    ];
    const SECRETS: [&str; 4] = ["hunter2Zq", "correct-horse-Zq", "p4$$Zq/+x", "0a1b2c3d4e5fZq"];
    let redactor = redactor();
    let Confession { before, after, words, words_after, prefix, name, form, value } = confession;
    let secret = SECRETS[usize::from(value) % SECRETS.len()];
    let prefix = prefix.map(|letter| char::from(b'a' + letter % 26)).iter().collect::<String>();
    let name = format!("{prefix}_{}", NAMES[usize::from(name) % NAMES.len()]);
    let line = match form % 8 {
        0 => format!("{name}={secret}"),
        1 => format!("{name}: {secret}"),
        2 => format!("  {name} = \"{secret}\""),
        3 => format!("export {name}='{secret}'"),
        4 => format!("Environment={name}={secret}"),
        5 => format!("ExecStart=/bin/app --{name} {secret} --port 1"),
        6 => format!("{{\"{name}\": \"{secret}\"}}"),
        _ => format!("postgres://{name}:{secret}@db/app"),
    };
    let text = format!("{before}\n{line}\n{after}");
    let read: [&dyn Fn(&str) -> String; 2] =
        [&|text| redactor.text(text), &|text| redactor.environment_file(text)];
    for read in read {
        let hidden = read(&text);
        if !before.contains(secret) && !after.contains(secret) {
            assert!(!hidden.contains(secret), "{line:?} gave {hidden:?}");
        }
        marks_stay(&hidden, &read(&hidden));
    }

    let (option, own) = match form % 3 {
        0 => (vec![format!("--{name}={secret}")], "option=value"),
        1 => (vec![format!("--{name}"), secret.to_owned()], "option value"),
        _ => (vec![format!("{name}={secret}")], "name=value"),
    };
    let told = words.iter().chain(&words_after).any(|word| word.contains(secret));
    let line: Vec<String> =
        ["app".to_owned()].into_iter().chain(words).chain(option).chain(words_after).collect();
    let hidden = redactor.arguments(&line);
    assert_eq!(hidden.len(), line.len());
    if !told {
        assert!(
            !hidden.iter().any(|word| word.contains(secret)),
            "{own}: {line:?} gave {hidden:?}"
        );
    }
    let value = redactor.environment(&name, secret);
    assert_eq!(value, redactor.mark(secret));
    assert_eq!(redactor.environment(&name, &value).starts_with(MARK), true);
    let _any = redactor.environment(&before, &after);
}

/// Every mark is still there after another pass.
fn marks_stay(once: &str, twice: &str) {
    let marks = |text: &str| -> Vec<String> {
        let mut marks: Vec<String> = text
            .match_indices(MARK)
            .filter_map(|(at, _)| text.get(at..at + MARK.len() + 16))
            .filter(|mark| mark[MARK.len()..].bytes().all(|b| b.is_ascii_hexdigit()))
            .map(str::to_owned)
            .collect();
        marks.sort();
        marks.dedup();
        marks
    };
    let (first, second) = (marks(once), marks(twice));
    let lost: Vec<&String> = first.iter().filter(|mark| !second.contains(mark)).collect();
    assert!(lost.is_empty(), "{once:?} became {twice:?}, which lost {lost:?}");
}
