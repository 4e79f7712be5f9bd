//! What else changed about the time of an entry: the few things that may explain it, the
//! likeliest first, the many small ones counted.

use super::{INDENT, Lens, MAX_SUBJECT, paint};
use crate::describe::{Tone, describe};
use crate::values::some;
use crate::view::{Paint, View, count, duration};
use api::answer::{Around, Entry};
use model::terminal::shorten;
use model::{Kind, Significance, Subject, Time};
use std::time::Duration;

/// Lines about the time around one entry.
const MAX_LINES: usize = 6;

/// As many of a kind are still told one by one.
const MAX_SINGLE: usize = 3;

/// Names in a line that tells of several.
const MAX_NAMES: usize = 4;

/// A name shorter than this is part of too many others to mean a kinship.
const MIN_STEM: usize = 3;

pub(super) fn lines(entry: &Entry, lens: &Lens<'_>) -> Vec<String> {
    let mut around: Vec<One<'_>> = entry
        .around
        .iter()
        .filter(|one| is_elsewhere(one, entry, lens.focus))
        .map(|one| One::new(one, entry, lens))
        .collect();
    around.sort_by(|one, other| one.rank().cmp(&other.rank()));
    let groups = groups(&around);
    let shown = groups.get(..MAX_LINES.min(groups.len())).unwrap_or_default();
    let when = |group: &Group<'_, '_>| group.first().map(|one| when(one.around.at, entry.at));
    let whens: Vec<String> = shown.iter().filter_map(when).collect();
    let width = whens.iter().map(String::len).max().unwrap_or(0);
    let mut lines: Vec<String> = shown
        .iter()
        .zip(whens)
        .map(|(group, when)| {
            format!("{}  {}", lens.view.dim(&format!("{when:width$}")), tell(group, lens.view))
        })
        .collect();
    let untold: usize = groups.iter().skip(MAX_LINES).map(Vec::len).sum();
    if untold > 0 {
        lines.push(lens.view.dim(&format!("and {untold} more")));
    }
    let label = |(index, line): (usize, String)| {
        let label = if index == 0 { lens.view.dim("also") } else { INDENT.to_owned() };
        format!("{label}  {line}")
    };
    lines.into_iter().enumerate().map(label).collect()
}

/// One change, and what makes it a likely cause.
struct One<'a> {
    around: &'a Around,
    /// It carries the name of what the log is of.
    akin: bool,
    bad: bool,
    distance: Duration,
}

type Group<'o, 'a> = Vec<&'o One<'a>>;

impl<'a> One<'a> {
    fn new(around: &'a Around, entry: &Entry, lens: &Lens<'_>) -> Self {
        let subject = &around.change.subject;
        let akin = lens.focus.iter().any(|focus| {
            let stem = stem(focus.id());
            stem.len() >= MIN_STEM && subject.id().contains(stem)
        });
        let tone = describe(subject, &around.change.op, lens.view).tone;
        Self { around, akin, bad: tone == Tone::Bad, distance: distance(around.at, entry.at) }
    }

    /// The least is told first.
    fn rank(&self) -> (bool, bool, bool, Duration, &Subject) {
        let change = &self.around.change;
        let minor = change.significance == Significance::Minor;
        (!self.akin, minor, !self.bad, self.distance, &change.subject)
    }

    fn kind(&self) -> (Kind, Significance) {
        (self.around.change.subject.kind(), self.around.change.significance)
    }

    /// Worth a line however many others of its kind there are.
    fn stands_alone(&self) -> bool {
        self.bad || self.akin && self.kind().1 == Significance::Major
    }
}

/// `nginx` of `nginx.service` and of `/etc/nginx/nginx.conf`.
fn stem(id: &str) -> &str {
    let name = id.rsplit('/').next().unwrap_or(id);
    name.split(['.', '@', ':', '#']).next().unwrap_or(name)
}

/// Neither one of the changes that the entry itself tells of, nor of what has entries of its own.
fn is_elsewhere(one: &Around, entry: &Entry, focus: &[Subject]) -> bool {
    !focus.contains(&one.change.subject)
        && (one.version != entry.version
            || entry.changes.iter().all(|change| change.subject != one.change.subject))
}

fn distance(one: Time, other: Time) -> Duration {
    one.since(other).max(other.since(one))
}

/// Few of a kind one by one, many together; in the order in which each begins.
fn groups<'o, 'a>(around: &'o [One<'a>]) -> Vec<Group<'o, 'a>> {
    let mut groups: Vec<Group<'o, 'a>> = Vec::new();
    for one in around {
        let alike = around.iter().filter(|other| other.kind() == one.kind()).count();
        let many = alike > MAX_SINGLE || one.kind().1 == Significance::Minor;
        let same = |group: &&mut Group<'o, 'a>| {
            group.first().is_some_and(|first| !first.stands_alone() && first.kind() == one.kind())
        };
        let group = groups.iter_mut().find(same).filter(|_| many && !one.stands_alone());
        match group {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups
}

fn tell(group: &Group<'_, '_>, view: &View) -> String {
    let Some(first) = group.first() else { return String::new() };
    let change = &first.around.change;
    if group.len() == 1 {
        let description = describe(&change.subject, &change.op, view);
        let name = shorten(&change.subject.to_string(), MAX_SUBJECT).into_owned();
        return format!("{}  {}", view.paint(Paint::Bold, &name), paint(&description, view));
    }
    // One thing may have changed several times.
    let mut told: Vec<String> = Vec::new();
    for name in group.iter().map(|one| name(one.around, view)) {
        if !told.contains(&name) {
            told.push(name);
        }
    }
    let kind = change.subject.kind();
    let text = format!("{}: {}", count(told.len(), kind.as_str()), some(&told, MAX_NAMES));
    view.paint(Paint::None, &text)
}

/// A member of a group; of packages, versions are the point.
fn name(one: &Around, view: &View) -> String {
    let subject = &one.change.subject;
    let id = shorten(subject.id(), MAX_SUBJECT);
    if subject.kind() == Kind::PACKAGE {
        format!("{id} {}", describe(subject, &one.change.op, view).text)
    } else {
        id.into_owned()
    }
}

fn when(one: Time, entry: Time) -> String {
    let distance = distance(one, entry);
    if distance < Duration::from_secs(1) {
        "same second".to_owned()
    } else if one < entry {
        format!("{} before", duration(distance))
    } else {
        format!("{} after", duration(distance))
    }
}
