//! Server-sent events, parsed as they come in, cut wherever the network cuts them.
//!
//! # Invariants
//! - The events are the same however the bytes were divided.
//! - No input panics; a line or an event beyond [`MAX_EVENT`] bytes is an error.

/// Bytes an event may have.
const MAX_EVENT: usize = 64 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    /// `message` unless the server names it.
    pub(crate) name: String,
    pub(crate) data: String,
    /// The newest id so far, from this event or an earlier one.
    pub(crate) id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {} MiB", MAX_EVENT >> 20)]
pub(crate) struct TooLarge;

#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed belongs to it.
    after_return: bool,
    begun: bool,
    name: String,
    data: String,
    id: String,
}

impl Parser {
    /// Takes the next bytes and gives the events that they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_return = std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    events.extend(self.end_line());
                }
                byte => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > MAX_EVENT {
                return Err(TooLarge);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line: &str = if self.begun { &line } else { line.trim_start_matches('\u{feff}') };
        self.begun = true;
        if line.is_empty() {
            return self.end_event();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            // Comments keep the connection alive; other fields are not ours.
            _ => {}
        }
        None
    }

    /// An event without data is none.
    fn end_event(&mut self) -> Option<Event> {
        let name = std::mem::take(&mut self.name);
        let mut data = std::mem::take(&mut self.data);
        data.pop()?;
        let name = if name.is_empty() { "message".to_owned() } else { name };
        Some(Event { name, data, id: self.id.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(text: &str) -> Vec<(String, String, String)> {
        let events = Parser::default().feed(text.as_bytes()).unwrap();
        events.into_iter().map(|event| (event.name, event.data, event.id)).collect()
    }

    fn check(text: &str, expected: &[(&str, &str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, data, id)| ((*name).to_owned(), (*data).to_owned(), (*id).to_owned()))
            .collect();
        assert_eq!(events(text), expected, "{text:?}");
    }

    #[test]
    fn events_as_the_standard_has_them() {
        check("id: 7\nevent: version\ndata: {}\n\n", &[("version", "{}", "7")]);
        check(": keep-alive\n\n", &[]);
        check("data: a\ndata:b\ndata\n\n", &[("message", "a\nb\n", "")]);
        check("data:  two\r\n\r\ndata: x\r\r", &[("message", " two", ""), ("message", "x", "")]);
        check(
            "id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n",
            &[("message", "a", "1"), ("message", "b", "1"), ("message", "c", "")],
        );
        check("event: version\n\ndata: a\n\n", &[("message", "a", "")]);
        check("\u{feff}data: a\n\n", &[("message", "a", "")]);
        check("id: a\0b\ndata: x\n\nretry: 5\nnonsense\n", &[("message", "x", "")]);
        check("data: cut off", &[]);
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(
            lines in prop::collection::vec("(data|id|event|:|x)?:? ?[a-cü\u{feff}]{0,3}(\r\n|\n|\r|\n\n)", 0..12),
            cuts in prop::collection::vec(0..200_usize, 0..12),
        ) {
            let text = lines.concat();
            let whole = Parser::default().feed(text.as_bytes()).unwrap();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut parser = Parser::default();
            let mut parts = Vec::new();
            for pair in cuts.windows(2) {
                parts.extend(parser.feed(&text.as_bytes()[pair[0]..pair[1]]).unwrap());
            }
            prop_assert_eq!(parts, whole);
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _either = Parser::default().feed(&bytes);
        }
    }
}
