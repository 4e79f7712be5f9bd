//! From what people type to what the history knows: `nginx` is `unit:nginx.service`.

use model::entity::{File, Process, Socket, Unit};
use model::{Facts, Kind, Subject, distance};
use std::collections::BTreeSet;

/// What a word stands for; or, when nothing fits, what is nearest.
pub(crate) fn resolve(word: &str, known: &[Subject]) -> Result<Vec<Subject>, Vec<String>> {
    if let Some(subject) = word.parse::<Subject>().ok().filter(|subject| known.contains(subject)) {
        return Ok(vec![subject]);
    }
    // A kind given alone or with a pattern: `unit:*`, `file:/etc/nginx/*`.
    let (kind, pattern) = match word.split_once(':') {
        Some((kind, rest)) if Kind::parse(kind).is_some_and(|kind| Kind::ALL.contains(&kind)) => {
            (Kind::parse(kind), rest)
        }
        _ => (None, word),
    };
    let of_kind = |subject: &&Subject| kind.is_none_or(|kind| subject.kind() == kind);
    let service =
        |s: &Subject| s.kind() == Kind::UNIT && s.id().strip_suffix(".service") == Some(pattern);
    let tests: [&dyn Fn(&Subject) -> bool; 5] = [
        &|s| s.id() == pattern || service(s),
        &|s| s.kind() == Kind::UNIT && s.id().rsplit('/').next() == Some(pattern),
        &|s| {
            s.kind() == Kind::PROCESS
                && s.id().rsplit_once('#').is_some_and(|(name, _)| name == pattern)
        },
        &|s| {
            s.kind() == Kind::UNIT
                && s.id().rsplit_once('.').is_some_and(|(name, _)| name == pattern)
        },
        &|s| pattern.contains('*') && matches(pattern, s.id()),
    ];
    for test in tests {
        let found: Vec<Subject> =
            known.iter().filter(of_kind).filter(|s| test(s)).cloned().collect();
        if let Some(first) = preferred(&found) {
            // A word that is a unit and a package means the unit, which brings the package along.
            let all = pattern.contains('*') || found.iter().all(|s| s.kind() == Kind::PROCESS);
            return Ok(if all { found } else { vec![first] });
        }
    }
    Err(similar(pattern, known))
}

/// Whether a word may stand for a subject.
pub(crate) fn fits(word: &str, subject: &Subject) -> bool {
    resolve(word, std::slice::from_ref(subject)).is_ok()
}

fn preferred(found: &[Subject]) -> Option<Subject> {
    let rank =
        |s: &Subject| Kind::ALL.iter().position(|kind| *kind == s.kind()).unwrap_or(usize::MAX);
    found.iter().min_by_key(|s| rank(s)).cloned()
}

/// `*` stands for any run of characters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.is_empty()
}

fn similar(word: &str, known: &[Subject]) -> Vec<String> {
    let bare = |id: &str| {
        id.rsplit('/').next().unwrap_or(id).split(['.', '#']).next().unwrap_or(id).to_owned()
    };
    let mut near: Vec<(usize, &Subject)> = known
        .iter()
        .map(|subject| {
            let inside = subject.id().contains(word) && word.len() >= 3;
            let apart = if inside {
                1
            } else {
                distance(word, subject.id()).min(distance(word, &bare(subject.id())))
            };
            (apart, subject)
        })
        .filter(|(apart, _)| *apart <= 2.max(word.len() / 4))
        .collect();
    near.sort();
    near.into_iter().take(5).map(|(_, subject)| subject.to_string()).collect()
}

/// What belongs to a subject: of a unit its processes, sockets, files and package.
pub(crate) fn related(subjects: &[Subject], facts: &Facts) -> BTreeSet<Subject> {
    let mut found = BTreeSet::new();
    for subject in subjects.iter().filter(|subject| subject.kind() == Kind::UNIT) {
        let id = subject.id();
        let owned = |unit: Option<&str>| unit == Some(id);
        let of = |kind: Kind, id: &str| Subject::escaped(kind, id);
        found.extend(
            facts
                .entities::<Process>()
                .filter(|p| owned(p.unit.as_deref()))
                .map(|p| of(Kind::PROCESS, &p.id)),
        );
        found.extend(
            facts
                .entities::<Socket>()
                .filter(|s| owned(s.unit.as_deref()))
                .map(|s| of(Kind::SOCKET, &s.id)),
        );
        let Some(unit) = facts.entity::<Unit>(id) else { continue };
        let own_files: BTreeSet<&String> =
            unit.fragment_path.iter().chain(&unit.drop_ins).collect();
        let files: Vec<File> = facts.entities::<File>().collect();
        let packages: BTreeSet<&String> = files
            .iter()
            .filter(|file| own_files.contains(&file.path))
            .filter_map(|file| file.package.as_ref())
            // One package owns hundreds of unit files of systemd's own; it is nobody's neighbour.
            .filter(|package| package.as_str() != "systemd")
            .collect();
        let belongs = |file: &&File| {
            own_files.contains(&file.path)
                || file.package.as_ref().is_some_and(|p| packages.contains(p))
        };
        found.extend(files.iter().filter(belongs).map(|file| of(Kind::FILE, &file.path)));
        found.extend(packages.iter().map(|package| of(Kind::PACKAGE, package)));
    }
    for subject in subjects {
        found.remove(subject);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(word: &str, expected: &str) {
        let known: Vec<Subject> = [
            "unit:nginx.service",
            "package:nginx",
            "process:nginx#1",
            "process:nginx#2",
            "process:worker#3",
            "unit:worker@a.service",
            "unit:1000/notes.service",
            "unit:daily.timer",
            "file:/etc/nginx/nginx.conf",
            "file:/etc/hosts",
            "container:web",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        let shown = match resolve(word, &known) {
            Ok(found) => found.iter().map(Subject::to_string).collect::<Vec<_>>().join(" "),
            Err(similar) => format!("? {}", similar.join(" ")),
        };
        assert_eq!(shown, expected, "{word}");
    }

    #[test]
    fn words() {
        check("unit:nginx.service", "unit:nginx.service");
        check("nginx.service", "unit:nginx.service");
        check("nginx", "unit:nginx.service");
        check("package:nginx", "package:nginx");
        check("worker", "process:worker#3");
        check("process:nginx", "process:nginx#1 process:nginx#2");
        check("notes.service", "unit:1000/notes.service");
        check("daily", "unit:daily.timer");
        check("/etc/hosts", "file:/etc/hosts");
        check("/etc/nginx/*", "file:/etc/nginx/nginx.conf");
        check("unit:worker*", "unit:worker@a.service");
        check("web", "container:web");
        check("ngimx.service", "? unit:nginx.service");
        check("zzzzzz", "? ");
    }

    #[test]
    fn patterns() {
        assert!(matches("a*c*e", "abcde"));
        assert!(matches("*", ""));
        assert!(!matches("a*c", "abd"));
        assert!(!matches("a*a", "a"));
    }
}
