//! Facts for tests.

use model::{Facts, Fields, Item, Kind, Subject, Value};
use proptest::prelude::*;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-40i64..40).prop_map(Value::Int),
        ".{0,6}".prop_map(Value::Text),
        "[0-9a-f]{14,34}".prop_map(Value::Text),
        any::<i64>()
            .prop_map(|at| Value::Text(crate::texts::time_to_text(at / 100).unwrap_or_default())),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
            prop::collection::btree_map("[a-c]{1,2}", inner, 0..4).prop_map(Value::Map),
        ]
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    let unknown = Kind::parse("novelty").unwrap();
    prop::sample::select(vec![Kind::UNIT, Kind::FILE, Kind::PROCESS, unknown])
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-d]", Just("main_pid".to_owned()), Just("active_state".to_owned())]
}

/// Any facts, few enough names that two of them have much in common.
pub(crate) fn facts() -> impl Strategy<Value = Facts> {
    let fields = prop::collection::btree_map(name(), value(), 0..4);
    prop::collection::vec((kind(), "[a-e]{1,2}", fields), 0..12).prop_map(|items| {
        let item = |(kind, id, fields): (Kind, String, Fields)| {
            (Subject::escaped(kind, &id), Item::new(&fields))
        };
        items.into_iter().map(item).collect()
    })
}

/// One unit with a number.
pub(crate) fn small(number: i64) -> Facts {
    let fields = Fields::from([("main_pid".to_owned(), Value::Int(number))]);
    [(Subject::escaped(Kind::UNIT, "nginx.service"), Item::new(&fields))].into_iter().collect()
}
