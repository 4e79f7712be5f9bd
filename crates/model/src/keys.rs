//! Tells in one line what is wrong with a configuration file.

/// A YAML parser's message, told with the line, the key and, where a key is not known, the
/// nearest one that is. `text` is what was parsed.
#[must_use]
pub fn fault(message: &str, text: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let place = first.strip_prefix("line ").and_then(|rest| {
        let (place, said) = rest.split_once(": ")?;
        Some((place.split(' ').next()?.parse::<usize>().ok()?, said))
    });
    let (line, said) = place.map_or((None, first), |(line, said)| (Some(line), said));
    // What its options are called is of no use to who wrote the file.
    let said = said.split(", set ").next().unwrap_or(said);
    let said = unknown_key(said).unwrap_or_else(|| said.to_owned());
    let Some(line) = line else { return said };
    match line.checked_sub(1).and_then(|before| text.lines().nth(before)) {
        Some(written) => {
            let written: String = written.trim().chars().take(80).collect();
            format!("line {line}, {written:?}: {said}")
        }
        None => format!("line {line}: {said}"),
    }
}

/// serde's message about an unknown field names those there are: "expected one of a, b",
/// "expected `a` or `b`".
fn unknown_key(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("unknown field `")?;
    let (key, rest) = rest.split_once('`')?;
    let (_, known) = rest.split_once("expected ")?;
    let known: Vec<&str> = known
        .trim_start_matches("one of ")
        .split([',', ' ', '`'])
        .filter(|name| !name.is_empty() && *name != "or")
        .collect();
    let nearest = known.iter().map(|name| (distance(key, name), name)).min();
    Some(match nearest {
        Some((distance, name)) if distance <= 3 => {
            format!("{key:?} is no key; did you mean {name:?}?")
        }
        _ => format!("{key:?} is no key; known are {}", known.join(", ")),
    })
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
    fn faults() {
        let text = "interval: 1\ninterwal: abc\n";
        let check = |message: &str, expected: &str| assert_eq!(fault(message, text), expected);
        check(
            "error: line 2 column 11: invalid floating point\n --> <input>:2:11\n",
            "line 2, \"interwal: abc\": invalid floating point",
        );
        check(
            "error: line 2 column 1: unknown field `interwal`, expected one of interval, host",
            "line 2, \"interwal: abc\": \"interwal\" is no key; did you mean \"interval\"?",
        );
        check("error: line 9 column 1: x, set Y in Options if acceptable", "line 9: x");
        check(
            "unknown field `abcdefgh`, expected `b` or `c`",
            "\"abcdefgh\" is no key; known are b, c",
        );
        check("", "");
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
