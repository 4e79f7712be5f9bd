//! One version of a host, as an entry of a log: when, which, what happened, what is to be
//! known of it, and what else happened about then.

mod around;
mod picture;

use crate::contents::Contents;
use crate::describe::{Description, Tone, describe};
use crate::values::{edit, show, some};
use crate::view::{Paint, View, count};
use api::answer::{Change, Entry};
use model::terminal::{plain, shorten};
use model::{Kind, Op, Significance, Subject, Version};
use std::collections::{BTreeMap, BTreeSet};

/// How entries are looked at.
pub(crate) struct Lens<'a> {
    pub(crate) view: &'a View,
    pub(crate) contents: &'a Contents,
    /// What was asked for by name; empty: everything.
    pub(crate) focus: &'a [Subject],
    /// Whether entries hold only the changes that were asked for, not all of a version.
    pub(crate) filtered: bool,
    /// Whether entries of several hosts are seen together.
    pub(crate) with_host: bool,
}

/// Changes told besides the first.
const MAX_OTHERS: usize = 10;

/// Fields listed of one item.
const MAX_FIELDS: usize = 14;

/// Characters of a subject in a list of changes.
const MAX_SUBJECT: usize = 60;

const INDENT: &str = "    ";

/// The lines of an entry, each with its end.
pub(crate) fn render(entry: &Entry, lens: &Lens<'_>) -> String {
    let view = lens.view;
    let mut changes: Vec<&Change> = entry.changes.iter().collect();
    changes.sort_by_key(|change| rank(change, lens.focus));
    let mut lines = Vec::new();
    let headline = if entry.version == Version(1) && lens.focus.is_empty() {
        let told = first_state(entry);
        changes.clear();
        told
    } else {
        match changes.split_first() {
            Some((first, others)) => {
                let others = others.to_vec();
                let (headline, details, left) = tell(first, &others, lens);
                lines.extend(details);
                changes = left;
                headline
            }
            None => view.dim("no change"),
        }
    };
    let total = if lens.filtered { entry.changes.len() } else { entry.total_changes };
    let untold = if entry.version == Version(1) && lens.focus.is_empty() {
        0
    } else {
        total.saturating_sub(entry.changes.len())
    };
    lines.extend(others(&changes, untold, lens));
    lines.extend(remarks(entry, view));
    lines.extend(around::lines(entry, lens));
    let mut out = format!("{}  {headline}\n", stamp(entry, lens));
    for line in lines {
        out.push_str(INDENT);
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// When, how long ago, which version, of which host.
fn stamp(entry: &Entry, lens: &Lens<'_>) -> String {
    let view = lens.view;
    let mut parts =
        vec![view.paint(Paint::Yellow, &view.time(entry.at)), view.dim(&view.age(entry.at))];
    let version = if lens.with_host {
        format!("{}{}", entry.host, entry.version)
    } else {
        entry.version.to_string()
    };
    parts.push(view.paint(Paint::Cyan, &version));
    if let Some(label) = &entry.label {
        parts.push(view.paint(Paint::Bold, &format!("[{label}]")));
    }
    parts.join("  ")
}

/// What was asked for first, then what matters most, then as people read kinds.
fn rank(change: &Change, focus: &[Subject]) -> (usize, bool, usize, Subject) {
    let wanted = focus.iter().position(|subject| *subject == change.subject);
    let kind = Kind::ALL.iter().position(|kind| *kind == change.subject.kind());
    (
        wanted.unwrap_or(usize::MAX),
        change.significance != Significance::Major,
        kind.unwrap_or(usize::MAX),
        change.subject.clone(),
    )
}

/// The headline of the first change, its details, and the changes still to be told.
fn tell<'c>(
    first: &'c Change,
    others: &[&'c Change],
    lens: &Lens<'_>,
) -> (String, Vec<String>, Vec<&'c Change>) {
    let view = lens.view;
    let alone = matches!(lens.focus, [only] if *only == first.subject);
    let mut description = describe(&first.subject, &first.op, view);
    if first.first_seen {
        description.verb = "first seen";
    }
    let sentence = paint(&description, view);
    let headline = if alone {
        sentence
    } else {
        format!("{}  {sentence}", view.paint(Paint::Bold, &first.subject.to_string()))
    };
    match &first.op {
        Op::Added(fields) if alone => {
            let picture = picture::picture(&first.subject, fields, others, view);
            let left =
                others.iter().copied().filter(|one| !picture.told.contains(&one.subject)).collect();
            (headline, picture.lines, left)
        }
        _ => (headline, details(first, &description, lens.contents, view), others.to_vec()),
    }
}

/// A description in the colour of its tone.
pub(crate) fn paint(description: &Description, view: &View) -> String {
    let paint = match description.tone {
        Tone::Good => Paint::Green,
        Tone::Neutral => Paint::None,
        Tone::Bad => Paint::Red,
    };
    view.paint(paint, &description.sentence())
}

/// What an edit's description left out, field by field, and how a file's text changed.
pub(crate) fn details(
    change: &Change,
    description: &Description,
    contents: &Contents,
    view: &View,
) -> Vec<String> {
    let Op::Edited { was, now } = &change.op else { return Vec::new() };
    let names: BTreeSet<&String> = was.keys().chain(now.keys()).collect();
    let names: Vec<&String> =
        names.into_iter().filter(|name| !description.told.contains(*name)).collect();
    let pairs = names
        .iter()
        .take(MAX_FIELDS)
        .map(|name| (name.as_str(), edit(name, was.get(*name), now.get(*name), view)));
    let mut lines = aligned(pairs.collect(), view);
    if names.len() > MAX_FIELDS {
        lines.push(view.dim(&format!("and {} more fields", names.len() - MAX_FIELDS)));
    }
    lines.extend(contents.patch(change, view).unwrap_or_default());
    lines
}

/// The fields of an item, one a line.
pub(crate) fn fields(item: &model::Fields, view: &View) -> Vec<String> {
    let pairs = item
        .iter()
        .take(MAX_FIELDS)
        .map(|(name, value)| (name.as_str(), shorten(&show(name, value, view), 300).into_owned()));
    let mut lines = aligned(pairs.collect(), view);
    if item.len() > MAX_FIELDS {
        lines.push(view.dim(&format!("and {} more fields", item.len() - MAX_FIELDS)));
    }
    lines
}

/// Labels in one column, what they are of in another.
pub(crate) fn aligned(pairs: Vec<(&str, String)>, view: &View) -> Vec<String> {
    let width = pairs.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    pairs
        .into_iter()
        .map(|(label, text)| {
            let padding = " ".repeat(width - label.chars().count());
            format!("{}{padding}  {}", view.dim(label), plain(&text))
        })
        .collect()
}

/// The changes besides the first, one a line, the rest counted by kind.
fn others(changes: &[&Change], untold: usize, lens: &Lens<'_>) -> Vec<String> {
    let view = lens.view;
    let shown = changes.iter().take(MAX_OTHERS);
    let mut lines = Vec::new();
    for change in shown {
        let mut description = describe(&change.subject, &change.op, view);
        if change.first_seen {
            // It did not come into being then, it was only seen.
            description.verb = "";
        }
        let subject = change.subject.to_string();
        let subject = view.paint(Paint::Bold, &shorten(&subject, MAX_SUBJECT));
        lines.push(format!("{subject}  {}", paint(&description, view)));
        let patch = contents_of(change, lens);
        lines.extend(patch.into_iter().map(|line| format!("{INDENT}{line}")));
    }
    let rest = changes.get(MAX_OTHERS..).unwrap_or_default();
    let mut kinds = kinds(rest.iter().map(|change| &change.subject));
    if untold > 0 {
        kinds.push(format!("{untold} not listed"));
    }
    if !kinds.is_empty() {
        let total = count(rest.len() + untold, "more change");
        lines.push(view.dim(&format!("and {total}: {}", kinds.join(", "))));
    }
    lines
}

fn contents_of(change: &Change, lens: &Lens<'_>) -> Vec<String> {
    lens.contents.patch(change, lens.view).unwrap_or_default()
}

/// `3 units`, `1 package`, in the order people read kinds.
pub(crate) fn kinds<'s>(subjects: impl Iterator<Item = &'s Subject>) -> Vec<String> {
    let mut counts: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for subject in subjects {
        let kind = subject.kind();
        let place = Kind::ALL.iter().position(|one| *one == kind).unwrap_or(usize::MAX);
        *counts.entry((place, kind.to_string())).or_default() += 1;
    }
    counts.into_iter().map(|((_, kind), number)| count(number, &kind)).collect()
}

/// The headline of the version with which a host became known.
fn first_state(entry: &Entry) -> String {
    let subjects = entry.changes.iter().map(|change| &change.subject);
    let told = if entry.changes.len() < entry.total_changes {
        count(entry.total_changes, "item")
    } else {
        some(&kinds(subjects), 20)
    };
    format!("first seen: {told}")
}

/// What is unusual about the entry itself.
fn remarks(entry: &Entry, view: &View) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(gap) = &entry.gap {
        let text = format!(
            "a gap: stands for {} changes since {} that could not be kept apart",
            gap.merged,
            view.time(gap.since)
        );
        lines.push(view.paint(Paint::Yellow, &text));
    }
    if let Some(time) = entry.host_time {
        let text = format!("the host's clock said {}, which was not believed", view.time(time));
        lines.push(view.paint(Paint::Yellow, &text));
    }
    lines
}

#[cfg(test)]
pub(crate) mod tests;
