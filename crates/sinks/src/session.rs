//! What changes of VMs mean for a session. Pure.
//!
//! A session is a JSON object under a key of 30 letters and digits. Its `vms` are the names of
//! the VMs that a user may use, its `orphans` those that are gone, as `{"name":…,"since":…}`.
//!
//! Sessions know VMs by their names alone, and names are passed on: `a` becomes `b` while `b`
//! becomes `c`. So changes are not carried out one after the other. They are first put together
//! for each VM (from which name to which, and whether it is there), and then all at once.
//!
//! # Invariants
//! - Everything but the named elements of `vms` and `orphans` keeps its text.
//! - A name is in a list at most as often as it was, or once.
//! - VMs that swap names lose neither.

use crate::stamp;
use model::Time;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// Bytes of a session's key.
pub const KEY_LENGTH: usize = 30;

/// What became of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionChange {
    Orphan { name: String, since: Time },
    Reactivate { name: String },
    Rename { old: String, new: String },
}

/// A change of one VM, in the order of the ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub id: String,
    pub vm: String,
    pub change: SessionChange,
}

/// What several changes come to, by the name that a VM had before them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects(HashMap<String, Effect>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Effect {
    name: String,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    AsItWas,
    Active,
    Orphan {
        since: Time,
        /// It was back meanwhile: an older time does not hold any more.
        anew: bool,
    },
}

/// What became of a session's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Why it is none.
    NoSession(&'static str),
    Same,
    Changed(String),
}

/// Whether a key has the form of a session's.
#[must_use]
pub fn is_key(key: &[u8]) -> bool {
    key.len() == KEY_LENGTH && key.iter().all(u8::is_ascii_alphanumeric)
}

/// Puts changes together.
#[must_use]
pub fn effects<'e>(edits: impl IntoIterator<Item = &'e Edit>) -> Effects {
    let mut of_vm: BTreeMap<&str, usize> = BTreeMap::new();
    let mut all: Vec<(String, Effect)> = Vec::new();
    for edit in edits {
        let name = match &edit.change {
            SessionChange::Orphan { name, .. } | SessionChange::Reactivate { name } => name,
            SessionChange::Rename { old, .. } => old,
        };
        let at = *of_vm.entry(&edit.vm).or_insert_with(|| {
            let effect = Effect { name: name.clone(), standing: Standing::AsItWas };
            all.push((name.clone(), effect));
            all.len() - 1
        });
        if let Some((_, effect)) = all.get_mut(at) {
            effect.add(&edit.change);
        }
    }
    let mut effects = HashMap::new();
    for (name, effect) in all {
        // Of VMs that had the same name, the first that changed is as good as any.
        effects.entry(name).or_insert(effect);
    }
    effects.retain(|name, effect| *name != effect.name || effect.standing != Standing::AsItWas);
    Effects(effects)
}

impl Effect {
    fn add(&mut self, change: &SessionChange) {
        match change {
            SessionChange::Rename { new, .. } => self.name.clone_from(new),
            SessionChange::Reactivate { .. } => self.standing = Standing::Active,
            SessionChange::Orphan { since, .. } => match self.standing {
                Standing::AsItWas => {
                    self.standing = Standing::Orphan { since: *since, anew: false };
                }
                Standing::Active => self.standing = Standing::Orphan { since: *since, anew: true },
                Standing::Orphan { .. } => {}
            },
        }
    }
}

impl Effects {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Carries them out on the text of a session.
    #[must_use]
    pub fn apply(&self, text: &str) -> Outcome {
        match Session::read(text) {
            Ok(session) => self.applied(session),
            Err(reason) => Outcome::NoSession(reason),
        }
    }

    fn applied(&self, session: Session<'_>) -> Outcome {
        let before = (session.vms.len(), session.orphans.len());
        let (mut vms, mut orphans, mut came, mut went) = (vec![], vec![], vec![], vec![]);
        for item in session.vms {
            match item.name.as_ref().and_then(|name| self.0.get(name)) {
                None => vms.push(item),
                Some(Effect { name, standing: Standing::Orphan { since, .. } }) => {
                    went.push(Item::orphan(name, *since));
                }
                Some(Effect { name, .. }) if item.name.as_ref() == Some(name) => vms.push(item),
                Some(Effect { name, .. }) => vms.push(Item::active(name)),
            }
        }
        for item in session.orphans {
            match item.name.as_ref().and_then(|name| self.0.get(name)) {
                None => orphans.push(item),
                Some(Effect { name, standing: Standing::Active }) => came.push(Item::active(name)),
                Some(Effect { name, standing: Standing::Orphan { since, anew: true } }) => {
                    orphans.push(item.changed(name, Some(*since)));
                }
                Some(Effect { name, .. }) => orphans.push(item.changed(name, None)),
            }
        }
        vms.extend(came);
        orphans.extend(went);
        let mut lists = Vec::new();
        for (field, items, before) in [("vms", vms, before.0), ("orphans", orphans, before.1)] {
            if items.len() != before || items.iter().any(|item| item.is_new) {
                lists.push((field, list(&items)));
            }
        }
        if lists.is_empty() {
            return Outcome::Same;
        }
        Outcome::Changed(written(&session.fields, &lists))
    }
}

/// One element of a list.
struct Item {
    json: String,
    /// Absent for what is no VM.
    name: Option<String>,
    /// It was not there as it is.
    is_new: bool,
}

impl Item {
    fn active(name: &str) -> Self {
        Self { json: quoted(name), name: Some(name.to_owned()), is_new: true }
    }

    fn orphan(name: &str, since: Time) -> Self {
        let since = quoted(&stamp::write(since));
        let json = format!("{{\"name\":{},\"since\":{since}}}", quoted(name));
        Self { json, name: Some(name.to_owned()), is_new: true }
    }

    /// An orphan under this name, and perhaps since then; its other fields stay.
    fn changed(self, name: &str, since: Option<Time>) -> Self {
        let since = since.map(|since| quoted(&stamp::write(since)));
        if self.name.as_deref() == Some(name) && since.is_none() {
            return self;
        }
        let Ok(Object(fields)) = serde_json::from_str(&self.json) else { return self };
        let mut changes = vec![("name", quoted(name))];
        changes.extend(since.map(|since| ("since", since)));
        let json = written(&fields, &changes);
        let is_new = json != self.json;
        Self { json, name: Some(name.to_owned()), is_new }
    }
}

struct Session<'t> {
    fields: Vec<(String, &'t RawValue)>,
    vms: Vec<Item>,
    orphans: Vec<Item>,
}

impl<'t> Session<'t> {
    fn read(text: &'t str) -> Result<Self, &'static str> {
        let Object(fields) = serde_json::from_str(text).map_err(|_json| "it is no JSON object")?;
        let field = |wanted: &str| {
            let mut found = fields.iter().filter(|(name, _)| name == wanted).map(|(_, raw)| *raw);
            (found.next(), found.next().is_some())
        };
        let vms = match field("vms") {
            (Some(raw), false) => elements(raw).ok_or("its `vms` are no list")?,
            (None, _) => return Err("it has no `vms`"),
            (_, true) => return Err("it has `vms` twice"),
        };
        let orphans = match field("orphans") {
            (Some(raw), false) if raw.get() == "null" => Vec::new(),
            (Some(raw), false) => elements(raw).ok_or("its `orphans` are no list")?,
            (None, _) => Vec::new(),
            (_, true) => return Err("it has `orphans` twice"),
        };
        Ok(Self {
            vms: vms.into_iter().map(|raw| item(raw, text_of(raw))).collect(),
            orphans: orphans.into_iter().map(|raw| item(raw, name_of(raw))).collect(),
            fields,
        })
    }
}

/// A JSON object as it stands there: in its order, with what each field has as text.
struct Object<'t>(Vec<(String, &'t RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

fn elements(raw: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(raw.get()).ok()
}

fn item(raw: &RawValue, name: Option<String>) -> Item {
    Item { json: raw.get().to_owned(), name, is_new: false }
}

fn text_of(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// The name of an orphan.
fn name_of(raw: &RawValue) -> Option<String> {
    let Object(fields) = serde_json::from_str(raw.get()).ok()?;
    let mut names = fields.iter().filter(|(name, _)| name == "name");
    let (_, name) = names.next()?;
    if names.next().is_some() { None } else { text_of(name) }
}

/// Without those new ones that are there already.
fn list(items: &[Item]) -> String {
    let old = items.iter().filter(|item| !item.is_new);
    let mut there: HashSet<&str> = old.filter_map(|item| item.name.as_deref()).collect();
    let mut kept = Vec::new();
    for item in items {
        let is_new = item.name.as_deref().is_none_or(|name| there.insert(name));
        if is_new || !item.is_new {
            kept.push(item.json.as_str());
        }
    }
    format!("[{}]", kept.join(","))
}

/// An object with some fields as given; those that it lacks come last.
fn written(fields: &[(String, &RawValue)], changes: &[(&str, String)]) -> String {
    let changed = |name: &str| changes.iter().find(|(changed, _)| *changed == name);
    let mut texts: Vec<String> = Vec::new();
    for (name, raw) in fields {
        let json = changed(name).map_or(raw.get(), |(_, json)| json.as_str());
        texts.push(format!("{}:{json}", quoted(name)));
    }
    for (name, json) in changes {
        if !fields.iter().any(|(field, _)| field == name) {
            texts.push(format!("{}:{json}", quoted(name)));
        }
    }
    format!("{{{}}}", texts.join(","))
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text can be written as JSON")
}

#[cfg(test)]
mod tests;
