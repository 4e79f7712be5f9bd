//! Which things a word on the command line stands for, among those that are there. The server
//! resolves words in its own way for logs; this is for answers that are already here.

use model::{Kind, Subject, distance};

/// Names given as near to a wrong one.
const MAX_NEAR: usize = 5;

/// `nginx` stands for `unit:nginx.service`, `package:nginx` and the processes of that name;
/// `*` for any run of characters.
pub(crate) fn stands_for(word: &str, subject: &Subject) -> bool {
    let of_kind = |(kind, rest): (&str, &'_ str)| {
        Kind::parse(kind)
            .filter(|kind| Kind::ALL.contains(kind))
            .map(|kind| (kind, rest.to_owned()))
    };
    let (word, kind) = match word.split_once(':').and_then(of_kind) {
        Some((kind, rest)) => (rest, Some(kind)),
        None => (word.to_owned(), None),
    };
    if kind.is_some_and(|kind| kind != subject.kind()) {
        return false;
    }
    let id = subject.id();
    let named = match subject.kind() {
        // A unit of a user manager is `USER/NAME`.
        Kind::UNIT => {
            let name = id.rsplit('/').next().unwrap_or(id);
            name == word || name.strip_suffix(".service") == Some(&word)
        }
        Kind::PROCESS => id.rsplit_once('#').is_some_and(|(name, _)| name == word),
        _ => false,
    };
    named || id == word || (word.contains('*') && matches(&word, id))
}

fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let last = parts.next_back().unwrap_or_default();
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

/// What may have been meant by a word that stands for nothing.
pub(crate) fn near<'s>(word: &str, subjects: impl Iterator<Item = &'s Subject>) -> Vec<String> {
    let bare = |id: &str| {
        let name = id.rsplit('/').next().unwrap_or(id);
        name.split(['.', '#']).next().unwrap_or(name).to_owned()
    };
    let mut near: Vec<(usize, &Subject)> = subjects
        .map(|subject| {
            let inside = word.len() >= 3 && subject.id().contains(word);
            let apart = distance(word, &bare(subject.id())).min(distance(word, subject.id()));
            (if inside { 1 } else { apart }, subject)
        })
        .filter(|(apart, _)| *apart <= 2.max(word.len() / 4))
        .collect();
    near.sort();
    near.into_iter().take(MAX_NEAR).map(|(_, subject)| subject.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let check = |word: &str, expected: &[&str]| {
            let all: Vec<Subject> = [
                "unit:nginx.service",
                "unit:1000/notes.service",
                "unit:daily.timer",
                "package:nginx",
                "process:nginx#1",
                "file:/etc/nginx/nginx.conf",
                "container:web:1",
            ]
            .iter()
            .map(|subject| subject.parse().unwrap())
            .collect();
            let found: Vec<String> =
                all.iter().filter(|one| stands_for(word, one)).map(Subject::to_string).collect();
            assert_eq!(found, expected, "{word}");
        };
        check("nginx", &["unit:nginx.service", "package:nginx", "process:nginx#1"]);
        check("nginx.service", &["unit:nginx.service"]);
        check("unit:nginx", &["unit:nginx.service"]);
        check("package:nginx", &["package:nginx"]);
        check("notes", &["unit:1000/notes.service"]);
        check("/etc/nginx/nginx.conf", &["file:/etc/nginx/nginx.conf"]);
        check("/etc/*.conf", &["file:/etc/nginx/nginx.conf"]);
        check("file:*", &["file:/etc/nginx/nginx.conf"]);
        check("web:1", &["container:web:1"]);
        check("n*x*", &["unit:nginx.service", "package:nginx", "process:nginx#1"]);
        check("ngin", &[]);
        check("", &[]);
    }

    #[test]
    fn near_names() {
        let all: Vec<Subject> = ["unit:nginx.service", "package:nginx", "unit:ssh.service"]
            .iter()
            .map(|subject| subject.parse().unwrap())
            .collect();
        assert_eq!(near("ngnix", all.iter()), ["package:nginx", "unit:nginx.service"]);
        assert_eq!(near("postgres", all.iter()), [""; 0]);
    }
}
