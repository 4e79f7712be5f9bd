//! Says which key was meant where a configuration has one that is not known.

/// A parser's message about an unknown field, told with the nearest known key; any other
/// message as it is.
#[must_use]
pub fn unknown_key(message: &str, known: &[&str]) -> String {
    let key = message.split("unknown field `").nth(1).and_then(|rest| rest.split('`').next());
    let Some(key) = key else { return message.to_owned() };
    let nearest = known.iter().map(|name| (distance(key, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= 3 => {
            format!("{key:?} is no key; did you mean {name:?}?")
        }
        _ => format!("{key:?} is no key; known are {}", known.join(", ")),
    }
}

/// How many letters must be put in, taken out or changed to make one word of the other.
#[must_use]
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(128).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, c) in a.chars().take(128).enumerate() {
        let mut last = i + 1;
        let mut next = vec![last];
        for (pair, d) in row.windows(2).zip(&b) {
            let [diagonal, above] = pair else { continue };
            last = (diagonal + usize::from(c != *d)).min(above + 1).min(last + 1);
            next.push(last);
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
