//! States of a host made of arbitrary bytes, with so few names that two of them have much in
//! common.

use ::model::{Facts, Fields, Item, Kind, Op, Patch, Subject, Value};
use arbitrary::Arbitrary;

#[derive(Debug, Clone, Arbitrary)]
pub enum MadeValue {
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<MadeValue>),
    Map(Vec<(u8, MadeValue)>),
}

#[derive(Debug, Clone, Arbitrary)]
pub struct MadeItem {
    kind: u8,
    id: MadeId,
    fields: MadeFields,
}

#[derive(Debug, Clone, Arbitrary)]
pub enum MadeId {
    Few(u8),
    Any(String),
}

pub type MadeFields = Vec<(u8, MadeValue)>;
pub type MadeFacts = Vec<MadeItem>;

#[derive(Debug, Clone, Arbitrary)]
pub enum MadeOp {
    Added(MadeFields),
    Removed(MadeFields),
    Edited(MadeFields, MadeFields),
}

pub type MadePatch = Vec<(u8, MadeId, MadeOp)>;

const NAMES: [&str; 8] =
    ["active_state", "main_pid", "content", "pids", "since", "size", "a", "novel\u{e9}\n"];
const IDS: [&str; 5] = ["nginx.service", "host", "/etc/hosts", "tcp 0.0.0.0:80", "p#12345678"];

fn name(number: u8) -> String {
    NAMES[usize::from(number) % NAMES.len()].to_owned()
}

pub fn value(made: MadeValue) -> Value {
    match made {
        MadeValue::Bool(truth) => Value::Bool(truth),
        MadeValue::Int(number) => Value::Int(number),
        MadeValue::Text(text) => Value::Text(text),
        MadeValue::List(list) => Value::List(list.into_iter().map(value).collect()),
        MadeValue::Map(map) => Value::Map(fields(map)),
    }
}

pub fn fields(made: MadeFields) -> Fields {
    made.into_iter().map(|(number, made)| (name(number), value(made))).collect()
}

pub fn subject(kind: u8, id: &MadeId) -> Subject {
    let kind = match Kind::ALL.get(usize::from(kind) % (Kind::ALL.len() + 1)) {
        Some(kind) => *kind,
        None => Kind::parse("novelty").expect("lower-case letters are a kind"),
    };
    match id {
        MadeId::Few(number) => Subject::escaped(kind, IDS[usize::from(*number) % IDS.len()]),
        MadeId::Any(text) => Subject::escaped(kind, text),
    }
}

pub fn facts(made: MadeFacts) -> Facts {
    made.into_iter()
        .map(|item| (subject(item.kind, &item.id), Item::new(&fields(item.fields))))
        .collect()
}

/// Any patch, also one that no two states have between them.
pub fn patch(made: MadePatch) -> Patch {
    let op = |made| match made {
        MadeOp::Added(now) => Op::Added(fields(now)),
        MadeOp::Removed(was) => Op::Removed(fields(was)),
        MadeOp::Edited(was, now) => Op::Edited { was: fields(was), now: fields(now) },
    };
    Patch(made.into_iter().map(|(kind, id, made)| (subject(kind, &id), op(made))).collect())
}
