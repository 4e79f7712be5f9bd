//! Answers as trees of elements, read within limits.
//!
//! # Invariants
//! - No document type, no entity but the five of XML and single characters: what a document could
//!   grow by is refused.
//! - Depth, number of elements and bytes have limits; what exceeds one is an error.

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

/// Deeper is no answer of a vSphere.
const MAX_DEPTH: usize = 64;
/// Elements of one answer.
const MAX_ELEMENTS: usize = 500_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the answer is not UTF-8")]
    Encoding,
    #[error("the answer is not XML: {0}")]
    Syntax(String),
    #[error("the answer has a document type, or an entity of its own, which is refused")]
    Entity,
    #[error("the answer is nested more than {MAX_DEPTH} deep")]
    Deep,
    #[error("the answer has more than {MAX_ELEMENTS} elements")]
    Large,
    #[error("the answer ends before it is whole")]
    Cut,
}

/// One element: its name without prefix, what it says it is, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    pub name: String,
    /// The attribute `xsi:type`, without prefix: what the value is.
    pub form: Option<String>,
    /// The attribute `type`: what a reference leads to.
    pub refers_to: Option<String>,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    pub fn all<'e>(&'e self, name: &'e str) -> impl Iterator<Item = &'e Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of a child.
    #[must_use]
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }
}

/// Reads a document; its outermost element.
///
/// # Errors
/// When it is not well formed, or exceeds a limit.
pub fn parse(bytes: &[u8]) -> Result<Element, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_utf8| Error::Encoding)?;
    let mut reader = Reader::from_str(text);
    let syntax = |error: quick_xml::Error| Error::Syntax(short(&error.to_string()));
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut count = 0_usize;
    loop {
        match reader.read_event().map_err(syntax)? {
            Event::Start(start) => {
                count += 1;
                check_limits(count, open.len())?;
                if root.is_some() {
                    return Err(Error::Syntax("something follows its end".to_owned()));
                }
                open.push(element(&start)?);
            }
            Event::Empty(start) => {
                count += 1;
                check_limits(count, open.len())?;
                close(element(&start)?, &mut open, &mut root)?;
            }
            Event::End(_) => {
                let Some(done) = open.pop() else { return Err(Error::Cut) };
                close(done, &mut open, &mut root)?;
            }
            Event::Text(piece) => add(&mut open, &piece.xml10_content()),
            Event::CData(piece) => add(&mut open, &piece.xml10_content()),
            Event::GeneralRef(reference) => {
                let resolved = reference.resolve_char_ref().map_err(syntax)?;
                let resolved = resolved.or_else(|| predefined(&reference.xml10_content()));
                add(&mut open, resolved.ok_or(Error::Entity)?.encode_utf8(&mut [0; 4]));
            }
            Event::DocType(_) => return Err(Error::Entity),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => return root.filter(|_| open.is_empty()).ok_or(Error::Cut),
        }
    }
}

fn check_limits(count: usize, depth: usize) -> Result<(), Error> {
    if count > MAX_ELEMENTS {
        return Err(Error::Large);
    }
    if depth >= MAX_DEPTH { Err(Error::Deep) } else { Ok(()) }
}

fn close(done: Element, open: &mut [Element], root: &mut Option<Element>) -> Result<(), Error> {
    match open.last_mut() {
        Some(parent) => parent.children.push(done),
        None if root.is_none() => *root = Some(done),
        None => return Err(Error::Syntax("something follows its end".to_owned())),
    }
    Ok(())
}

/// Space between elements is nobody's text, but it does no harm.
fn add(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

fn element(start: &BytesStart<'_>) -> Result<Element, Error> {
    let mut element =
        Element { name: local(start.name().as_ref()).to_owned(), ..Element::default() };
    // Looking for doubles would take long where there are very many.
    for attribute in start.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| Error::Syntax(short(&error.to_string())))?;
        let key: &str = attribute.key.as_ref();
        if local(key) != "type" {
            continue;
        }
        let value = attribute
            .normalized_value(XmlVersion::Explicit1_0)
            .map_err(|error| Error::Syntax(short(&error.to_string())))?;
        if key.contains(':') {
            element.form = Some(local(&value).to_owned());
        } else {
            element.refers_to = Some(value.into_owned());
        }
    }
    Ok(element)
}

fn local(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}

fn predefined(name: &str) -> Option<char> {
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => return None,
    })
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// A text as the content of an element, or of an attribute in quotes.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Characters that no XML may have.
            c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => {}
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read() {
        let text = r#"<?xml version="1.0"?><s:a xmlns:x="u"><b x:type="xsd:string">1 &lt; 2 &#228;<!-- c --></b><b type="Folder">group-d1</b><c/><d><![CDATA[<raw>]]></d></s:a>"#;
        let root = parse(text.as_bytes()).unwrap();
        assert_eq!(root.name, "a");
        let all: Vec<&Element> = root.all("b").collect();
        assert_eq!((all[0].text.as_str(), all[0].form.as_deref()), ("1 < 2 ä", Some("string")));
        assert_eq!(all[1].refers_to.as_deref(), Some("Folder"));
        assert_eq!(root.text_of("c"), Some(""));
        assert_eq!(root.text_of("d"), Some("<raw>"));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let check = |text: &str, expected: &Error| {
            assert_eq!(parse(text.as_bytes()).as_ref().unwrap_err(), expected, "{text:.60}");
        };
        let bomb = r#"<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>"#;
        check(bomb, &Error::Entity);
        check("<a>&c;</a>", &Error::Entity);
        check(&"<a>".repeat(MAX_DEPTH + 1), &Error::Deep);
        check(&format!("<a>{}</a>", "<b/>".repeat(MAX_ELEMENTS)), &Error::Large);
        for cut in ["", "<a>", "<a><b></b>", "hello"] {
            check(cut, &Error::Cut);
        }
        for broken in ["<a></b>", "<a/><b/>", "<a", "<a x=1/>", "</a>"] {
            assert!(parse(broken.as_bytes()).is_err(), "{broken}");
        }
        assert_eq!(parse(b"<a>\xff</a>"), Err(Error::Encoding));
    }

    #[test]
    fn texts_are_escaped() {
        let odd = "a<b>&\"c\"\u{0}ä";
        let read = parse(format!("<a>{}</a>", escaped(odd)).as_bytes()).unwrap();
        assert_eq!(read.text, "a<b>&\"c\"ä");
    }
}
