//! Takes lines out of what a server sends: server-sent events in HTTP's chunks, or messages of
//! a WebSocket. A line begins with its number and the time it was said.

use anyhow::{Result, bail};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sse,
    Ws,
}

/// One line as it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) at: u64,
}

/// Bytes that came and are not yet understood.
pub(crate) struct Frames {
    kind: Kind,
    raw: Vec<u8>,
    /// Of server-sent events, without the chunks.
    text: Vec<u8>,
}

impl Frames {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, raw: Vec::new(), text: Vec::new() }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8], each: impl FnMut(Line)) -> Result<()> {
        self.raw.extend_from_slice(bytes);
        match self.kind {
            Kind::Sse => self.events(each),
            Kind::Ws => self.messages(each),
        }
    }

    fn events(&mut self, mut each: impl FnMut(Line)) -> Result<()> {
        let mut used = 0;
        while let Some(end) = find(&self.raw[used..], b"\r\n") {
            let size = std::str::from_utf8(&self.raw[used..used + end])?;
            let size = usize::from_str_radix(size, 16)?;
            let begin = used + end + 2;
            if self.raw.len() < begin + size + 2 {
                break;
            }
            self.text.extend_from_slice(&self.raw[begin..begin + size]);
            used = begin + size + 2;
        }
        self.raw.drain(..used);
        let mut used = 0;
        while let Some(end) = find(&self.text[used..], b"\n\n") {
            each_of(&self.text[used..used + end], &mut each);
            used += end + 2;
        }
        self.text.drain(..used);
        Ok(())
    }

    fn messages(&mut self, mut each: impl FnMut(Line)) -> Result<()> {
        let mut used = 0;
        loop {
            let rest = &self.raw[used..];
            let (head, length) = match rest {
                [_, 126, a, b, ..] => (4, usize::from(u16::from_be_bytes([*a, *b]))),
                [_, 126, ..] | [] | [_] => break,
                [_, 127..=255, ..] => bail!("a message is larger than any line"),
                [_, short, ..] => (2, usize::from(*short)),
            };
            let Some(body) = rest.get(head..head + length) else { break };
            if rest[0] & 0xf == 1 {
                each_of(body, &mut each);
            }
            used += head + length;
        }
        self.raw.drain(..used);
        Ok(())
    }
}

fn find(bytes: &[u8], what: &[u8; 2]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + bytes[from..].iter().position(|byte| *byte == what[0])?;
        if *bytes.get(at + 1)? == what[1] {
            return Some(at);
        }
        from = at + 1;
    }
}

/// The line in a record, or the message itself. Other records have none.
fn each_of(frame: &[u8], each: &mut impl FnMut(Line)) {
    const TEXT: &[u8] = b"\"text\":\"";
    let begin = match frame.first() {
        Some(b'0'..=b'9') => Some(0),
        _ => frame.windows(TEXT.len()).rposition(|window| window == TEXT).map(|at| at + TEXT.len()),
    };
    let line = begin.and_then(|begin| frame.get(begin..begin + 25));
    let number = |text: Option<&[u8]>| std::str::from_utf8(text?).ok()?.parse().ok();
    if let Some(line) = line
        && let (Some(number), Some(at)) = (number(line.get(..8)), number(line.get(9..)))
    {
        each(Line { number, at });
    }
}
