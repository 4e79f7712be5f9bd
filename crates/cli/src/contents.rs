//! The text of files before and after an edit, fetched beforehand so that rendering needs
//! nothing but its arguments, and what differs between two of them.

use crate::failure::Failure;
use crate::remote::Remote;
use crate::values::text;
use crate::view::{Paint, View};
use api::answer::Change;
use model::{ContentId, HostId, Kind, Op};
use similar::TextDiff;
use std::collections::BTreeMap;

/// Contents fetched for one output.
const MAX_FETCHED: usize = 100;

/// Lines of one file's diff.
const MAX_LINES: usize = 200;

/// Time for finding the shortest diff; after it, any diff will do.
const SEARCH: std::time::Duration = std::time::Duration::from_secs(1);

/// Texts by their ids. One that the server does not have is `None`.
#[derive(Debug, Default)]
pub(crate) struct Contents(BTreeMap<ContentId, Option<String>>);

impl Contents {
    /// Fetches what edits of files name.
    pub(crate) async fn fetch<'c>(
        remote: &mut Remote,
        host: &HostId,
        changes: impl Iterator<Item = &'c Change>,
    ) -> Result<Self, Failure> {
        let mut contents = Self::default();
        for (was, now) in changes.filter_map(ids) {
            for id in [was, now] {
                if contents.0.len() < MAX_FETCHED && !contents.0.contains_key(&id) {
                    let text = remote.content(host, &id).await?;
                    contents.0.insert(id, text);
                }
            }
        }
        Ok(contents)
    }

    #[cfg(test)]
    pub(crate) fn of(texts: &[&str]) -> Self {
        let pair = |text: &&str| (ContentId::of(text.as_bytes()), Some((*text).to_owned()));
        Self(texts.iter().map(pair).collect())
    }

    /// The lines of a unified diff, without the names of the files; `None` when a text is
    /// missing.
    pub(crate) fn patch(&self, change: &Change, view: &View) -> Option<Vec<String>> {
        let (was, now) = ids(change)?;
        let (was, now) = (self.0.get(&was)?.as_ref()?, self.0.get(&now)?.as_ref()?);
        Some(unified(was, now, view))
    }
}

/// The contents on both sides of an edit.
fn ids(change: &Change) -> Option<(ContentId, ContentId)> {
    let Op::Edited { was, now } = &change.op else { return None };
    if change.subject.kind() != Kind::FILE {
        return None;
    }
    Some((text(was, "content")?.parse().ok()?, text(now, "content")?.parse().ok()?))
}

fn unified(was: &str, now: &str, view: &View) -> Vec<String> {
    let diff = TextDiff::configure().timeout(SEARCH).diff_lines(was, now);
    let text = diff.unified_diff().context_radius(3).missing_newline_hint(false).to_string();
    let mut lines: Vec<String> = Vec::new();
    let mut left_out: usize = 0;
    for line in text.lines() {
        if lines.len() >= MAX_LINES {
            left_out += 1;
            continue;
        }
        let paint = match line.as_bytes().first() {
            Some(b'+') => Paint::Green,
            Some(b'-') => Paint::Red,
            Some(b'@') => Paint::Cyan,
            _ => Paint::None,
        };
        lines.push(view.paint(paint, &line.replace('\t', "    ")).trim_end().to_owned());
    }
    if left_out > 0 {
        lines.push(view.dim(&format!("and {left_out} more lines")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_of_a_file_shows_its_lines() {
        let (was, now) = ("a\nb\nlisten 80;\nc\n", "a\nb\n\tlisten\x1b[2J 8080;\nc\n");
        let change = |kind: &str| Change {
            first_seen: false,
            subject: format!("{kind}:/etc/x").parse().unwrap(),
            significance: model::Significance::Major,
            op: Op::Edited {
                was: [("content".to_owned(), ContentId::of(was.as_bytes()).to_string().into())]
                    .into(),
                now: [("content".to_owned(), ContentId::of(now.as_bytes()).to_string().into())]
                    .into(),
            },
        };
        let view = View::of_tests();
        let contents = Contents::of(&[was, now]);
        let lines = contents.patch(&change("file"), &view).unwrap();
        assert_eq!(
            lines,
            ["@@ -1,4 +1,4 @@", " a", " b", "-listen 80;", "+    listen\\x1b[2J 8080;", " c"]
        );
        assert_eq!(contents.patch(&change("unit"), &view), None);
        assert_eq!(Contents::of(&[was]).patch(&change("file"), &view), None);
    }

    #[test]
    fn a_long_diff_is_cut() {
        let long = "x\n".repeat(5000);
        let lines = unified("", &long, &View::of_tests());
        assert_eq!(lines.len(), MAX_LINES + 1);
        assert_eq!(lines.last().unwrap(), "and 4801 more lines");
    }
}
