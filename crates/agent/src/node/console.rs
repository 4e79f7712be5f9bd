//! Looks for a text in what a unit wrote to the journal: that is a VM's console, where its VMM
//! writes it to its output.
//!
//! # Invariants
//! - What counts is what was written since the unit was started last, by the name systemd gave that
//!   start, also before the unit said that it is ready.
//! - However much was written, no more than [`BYTES`] of it are read, and for no longer than the
//!   limit; what was read until then is judged.
//! - A text that is to be there is looked for from the start on, where guests say that they are
//!   up; one that must not be there from the end back, where it would be news.

use super::{Answer, unable, unit};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

/// Bytes of the journal that are read.
const BYTES: u64 = 16 << 20;
/// Bytes of one line; the text is looked for in each such part of a longer one.
const LINE: u64 = 64 << 10;

/// What came of a search.
#[derive(Debug, PartialEq, Eq)]
enum Search {
    Found,
    /// It is nowhere.
    Through,
    /// It is not where there was time and room to look.
    CutOff,
}

pub(super) async fn look(unit: &str, text: &str, absent: bool, limit: Duration) -> Answer {
    let begin = tokio::time::Instant::now();
    let start = match unit::property(unit, "InvocationID", limit).await {
        Ok(start) if is_invocation(&start) => start,
        Ok(_) => return unable("systemd does not know when its unit was started".to_owned()),
        Err(why) => return unable(why),
    };
    let rest = limit.saturating_sub(begin.elapsed());
    let search = match search(journalctl(unit, &start, absent), text, rest).await {
        Ok(search) => search,
        Err(why) => return unable(why),
    };
    if (search == Search::Found) != absent {
        return Answer::passed();
    }
    let said = match search {
        Search::Found => "is on the console",
        Search::Through => "is not on the console",
        Search::CutOff => "is not on the console, as far as that was read",
    };
    Answer::failed(format!("{text:?} {said}"))
}

fn is_invocation(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What writes the lines.
fn journalctl(unit: &str, start: &str, newest_first: bool) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=cat", "--all"]);
    if newest_first {
        command.arg("--reverse");
    }
    // Matches, and not --unit, which takes patterns.
    command.arg(format!("_SYSTEMD_UNIT={unit}"));
    command.arg(format!("_SYSTEMD_INVOCATION_ID={start}"));
    command
}

/// Looks for a text in what a program writes, which ends with the search.
async fn search(mut command: Command, text: &str, limit: Duration) -> Result<Search, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child =
        command.spawn().map_err(|error| format!("journalctl could not be started: {error}"))?;
    let Some(stdout) = child.stdout.take() else { return Err("journalctl is mute".to_owned()) };
    let mut lines = BufReader::new(stdout.take(BYTES));
    let work = async {
        let found = contains(&mut lines, text.as_bytes()).await;
        if found.map_err(|error| format!("journalctl could not be read: {error}"))? {
            return Ok(Search::Found);
        }
        // It has more to say, and nobody listens: how it ends means nothing.
        if lines.get_ref().limit() == 0 {
            return Ok(Search::CutOff);
        }
        match child.wait().await {
            Ok(status) if status.success() => Ok(Search::Through),
            Ok(status) => Err(format!("journalctl ended with {status}")),
            Err(error) => Err(format!("journalctl could not be waited for: {error}")),
        }
    };
    match tokio::time::timeout(limit, work).await {
        Ok(searched) => searched,
        Err(_late) if lines.get_ref().limit() < BYTES => Ok(Search::CutOff),
        Err(_late) => Err(format!("the journal was not read within {} s", limit.as_secs())),
    }
}

async fn contains(mut lines: impl AsyncBufRead + Unpin, text: &[u8]) -> std::io::Result<bool> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut lines).take(LINE).read_until(b'\n', &mut line).await? == 0 {
            return Ok(false);
        }
        if line.windows(text.len().max(1)).any(|part| part == text) {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_the_journal() {
        let check = |newest_first, expected: &str| {
            let command = journalctl("microvm@a\\x2db.service", "4711", newest_first);
            let words: Vec<_> =
                command.as_std().get_args().map(|word| word.to_str().unwrap()).collect();
            assert_eq!(words[4..].join(" "), expected);
        };
        let matches = "_SYSTEMD_UNIT=microvm@a\\x2db.service _SYSTEMD_INVOCATION_ID=4711";
        check(false, matches);
        check(true, &format!("--reverse {matches}"));
    }

    #[test]
    fn starts_that_systemd_names() {
        assert!(is_invocation("0123456789abcdef0123456789abcdef"));
        for none in ["", "0123", "0123456789abcdef0123456789abcde\n", "-"] {
            assert!(!is_invocation(none), "{none:?}");
        }
    }

    #[tokio::test]
    async fn what_was_read_is_judged() {
        let check = async |script: &str, limit: Duration, expected: Result<Search, &str>| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let searched = search(command, "login:", limit).await;
            assert_eq!(
                searched.as_ref().map_err(String::as_str),
                expected.as_ref().map_err(|e| *e),
                "{script}"
            );
        };
        let patient = Duration::from_secs(30);
        check("echo web login:", patient, Ok(Search::Found)).await;
        check("echo web", patient, Ok(Search::Through)).await;
        // Once it is cut off it ends by a signal.
        check("exec yes $(printf %0999d 0)", patient, Ok(Search::CutOff)).await;
        check("echo web; exec sleep 600", Duration::from_secs(1), Ok(Search::CutOff)).await;
        let late = "the journal was not read within 1 s";
        check("exec sleep 600", Duration::from_secs(1), Err(late)).await;
        check("exit 3", patient, Err("journalctl ended with exit status: 3")).await;
    }

    #[tokio::test]
    async fn texts_of_a_console() {
        let check = async |console: &str, text: &str| {
            contains(console.as_bytes(), text.as_bytes()).await.unwrap()
        };
        assert!(check("[  0.1] booting\nweb login: ", "login:").await);
        assert!(!check("a\nb", "a\nb").await, "a text is within a line");
        assert!(!check("", "x").await);
        let long = format!("{}x", "-".repeat(200_000));
        assert!(check(&long, "-x").await);
    }
}
