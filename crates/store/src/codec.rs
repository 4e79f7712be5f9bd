//! The compact byte form of values, fields, patches and items.
//!
//! Numbers are variable-length, field names and kinds of the model are numbers from
//! [`crate::names`], and an edit names each field once with what it was and what it is.
//! Decoding trusts nothing: whatever the bytes, it ends in a value or in [`Malformed`].

use crate::transcode::put_item;
use crate::{names, texts};
use model::{Facts, Fields, Item, Kind, Op, Patch, Subject, Value};
use std::collections::BTreeMap;

/// The bytes are not what the encoder writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

/// Values are nested at most so deep; the wire allows less.
const MAX_DEPTH: u32 = 1100;

pub(crate) const BOOL: u8 = 0;
pub(crate) const INT: u8 = 1;
const TEXT: u8 = 2;
pub(crate) const LIST: u8 = 3;
pub(crate) const MAP: u8 = 4;
/// A text that is a time in RFC 3339 with microseconds, as entities write it.
const TIME: u8 = 5;
/// A text of lower-case hexadecimal digits, two in a byte.
const HEX: u8 = 6;

const ADDED: u64 = 0;
const REMOVED: u64 = 1;
const EDITED: u64 = 2;

pub(crate) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(low_byte(number) | 0x80);
        number >>= 7;
    }
    out.push(low_byte(number));
}

fn low_byte(number: u64) -> u8 {
    number.to_le_bytes().first().copied().unwrap_or_default() & 0x7f
}

pub(crate) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_varint(out, zigzag(number));
}

pub(crate) fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// A tag in three bits, and a number in the other five or, when it is larger, after them.
pub(crate) fn put_head(out: &mut Vec<u8>, tag: u8, number: u64) {
    match u8::try_from(number) {
        Ok(small) if small < 31 => out.push(tag | small << 3),
        _ => {
            out.push(tag | 31 << 3);
            put_varint(out, number - 31);
        }
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Bool(truth) => put_head(out, BOOL, u64::from(*truth)),
        Value::Int(number) => put_head(out, INT, zigzag(*number)),
        Value::Text(text) => put_text_value(out, text),
        Value::List(list) => {
            put_head(out, LIST, list.len() as u64);
            list.iter().for_each(|value| put_value(out, value));
        }
        Value::Map(map) => {
            put_head(out, MAP, map.len() as u64);
            for (key, value) in map {
                put_text(out, key);
                put_value(out, value);
            }
        }
    }
}

pub(crate) fn put_text_value(out: &mut Vec<u8>, text: &str) {
    if let Some(micros) = texts::time_from_text(text) {
        put_head(out, TIME, zigzag(micros));
    } else if let Some(bytes) = texts::bytes_from_hex(text) {
        put_head(out, HEX, bytes.len() as u64);
        out.extend_from_slice(&bytes);
    } else {
        put_head(out, TEXT, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
    }
}

/// A field's name and two bits of the caller's.
pub(crate) fn put_name(out: &mut Vec<u8>, name: &str, bits: u64) {
    match names::field_number(name) {
        Some(number) => put_varint(out, (number + 1) << 2 | bits),
        None => {
            put_varint(out, bits);
            put_text(out, name);
        }
    }
}

pub(crate) fn put_fields(out: &mut Vec<u8>, fields: &Fields) {
    put_varint(out, fields.len() as u64);
    for (name, value) in fields {
        put_name(out, name, 0);
        put_value(out, value);
    }
}

fn put_edit(out: &mut Vec<u8>, was: &Fields, now: &Fields) {
    let appeared = now.keys().filter(|name| !was.contains_key(*name));
    let names: Vec<&String> = was.keys().chain(appeared).collect();
    put_varint(out, names.len() as u64);
    for name in names {
        let (was, now) = (was.get(name), now.get(name));
        put_name(out, name, u64::from(was.is_some()) | u64::from(now.is_some()) << 1);
        was.into_iter().chain(now).for_each(|value| put_value(out, value));
    }
}

/// A kind's number with two bits of the caller's, and the id.
fn put_subject(out: &mut Vec<u8>, subject: &Subject, bits: u64) {
    match names::kind_number(subject.kind()) {
        Some(number) => put_varint(out, (number + 1) << 2 | bits),
        None => {
            put_varint(out, bits);
            put_text(out, subject.kind().as_str());
        }
    }
    put_text(out, subject.id());
}

pub(crate) fn put_patch(out: &mut Vec<u8>, patch: &Patch) {
    put_varint(out, patch.len() as u64);
    for (subject, op) in patch.iter() {
        match op {
            Op::Added(fields) => {
                put_subject(out, subject, ADDED);
                put_fields(out, fields);
            }
            Op::Removed(fields) => {
                put_subject(out, subject, REMOVED);
                put_fields(out, fields);
            }
            Op::Edited { was, now } => {
                put_subject(out, subject, EDITED);
                put_edit(out, was, now);
            }
        }
    }
}

pub(crate) fn put_items<'a>(
    out: &mut Vec<u8>,
    items: impl ExactSizeIterator<Item = (&'a Subject, &'a Item)>,
) {
    put_varint(out, items.len() as u64);
    for (subject, item) in items {
        put_subject(out, subject, 0);
        put_item(out, item);
    }
}

pub(crate) fn put_subjects<'a>(
    out: &mut Vec<u8>,
    subjects: impl ExactSizeIterator<Item = &'a Subject>,
) {
    put_varint(out, subjects.len() as u64);
    subjects.for_each(|subject| put_subject(out, subject, 0));
}

/// Reads what the functions above wrote.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    pub(crate) fn byte(&mut self) -> Result<u8> {
        let (first, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*first)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn varint(&mut self) -> Result<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    pub(crate) fn signed(&mut self) -> Result<i64> {
        self.varint().map(unzigzag)
    }

    fn length(&mut self) -> Result<usize> {
        self.varint().and_then(to_length)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str> {
        let length = self.length()?;
        self.utf8(length)
    }

    fn utf8(&mut self, length: usize) -> Result<&'a str> {
        std::str::from_utf8(self.bytes(length)?).map_err(|_not_text| Malformed)
    }

    fn value(&mut self, depth: u32) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(Malformed);
        }
        let head = self.byte()?;
        let number = match head >> 3 {
            31 => self.varint()?.checked_add(31).ok_or(Malformed)?,
            small => u64::from(small),
        };
        Ok(match head & 7 {
            BOOL => Value::Bool(number != 0),
            INT => Value::Int(unzigzag(number)),
            TEXT => Value::Text(self.utf8(to_length(number)?)?.to_owned()),
            LIST => Value::List((0..number).map(|_| self.value(depth + 1)).collect::<Result<_>>()?),
            MAP => {
                let mut map = BTreeMap::new();
                for _ in 0..number {
                    let key = self.text()?.to_owned();
                    map.insert(key, self.value(depth + 1)?);
                }
                Value::Map(map)
            }
            TIME => Value::Text(texts::time_to_text(unzigzag(number)).ok_or(Malformed)?),
            HEX => Value::Text(texts::bytes_to_hex(self.bytes(to_length(number)?)?)),
            _ => return Err(Malformed),
        })
    }

    fn name(&mut self) -> Result<(String, u64)> {
        let head = self.varint()?;
        let name = match (head >> 2).checked_sub(1) {
            Some(number) => names::field_name(number).ok_or(Malformed)?,
            None => self.text()?,
        };
        Ok((name.to_owned(), head & 3))
    }

    fn fields(&mut self) -> Result<Fields> {
        let mut fields = Fields::new();
        for _ in 0..self.varint()? {
            let (name, _) = self.name()?;
            fields.insert(name, self.value(0)?);
        }
        Ok(fields)
    }

    fn edit(&mut self) -> Result<Op> {
        let (mut was, mut now) = (Fields::new(), Fields::new());
        for _ in 0..self.varint()? {
            let (name, bits) = self.name()?;
            if bits & 1 != 0 {
                was.insert(name.clone(), self.value(0)?);
            }
            if bits & 2 != 0 {
                now.insert(name, self.value(0)?);
            }
        }
        Ok(Op::Edited { was, now })
    }

    fn subject(&mut self) -> Result<(Subject, u64)> {
        let head = self.varint()?;
        let kind = match (head >> 2).checked_sub(1) {
            Some(number) => names::kind(number),
            None => Kind::parse(self.text()?),
        };
        let subject = Subject::new(kind.ok_or(Malformed)?, self.text()?);
        Ok((subject.map_err(|_not_a_subject| Malformed)?, head & 3))
    }

    pub(crate) fn patch(&mut self) -> Result<Patch> {
        let mut ops = BTreeMap::new();
        for _ in 0..self.varint()? {
            let (subject, tag) = self.subject()?;
            let op = match tag {
                ADDED => Op::Added(self.fields()?),
                REMOVED => Op::Removed(self.fields()?),
                EDITED => self.edit()?,
                _ => return Err(Malformed),
            };
            ops.insert(subject, op);
        }
        Ok(Patch(ops))
    }

    /// Puts the items into `facts`.
    pub(crate) fn items_into(&mut self, facts: &mut Facts) -> Result<()> {
        for _ in 0..self.varint()? {
            let (subject, _) = self.subject()?;
            facts.put(subject, Item::new(&self.fields()?));
        }
        Ok(())
    }

    pub(crate) fn subjects(&mut self) -> Result<Vec<Subject>> {
        let count = self.varint()?;
        (0..count).map(|_| self.subject().map(|(subject, _)| subject)).collect()
    }
}

fn to_length(number: u64) -> Result<usize> {
    usize::try_from(number).map_err(|_beyond_memory| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn patches_round_trip(before in testing::facts(), after in testing::facts()) {
            let patch = model::diff(&before, &after);
            let mut bytes = Vec::new();
            put_patch(&mut bytes, &patch);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.patch(), Ok(patch));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn items_round_trip(facts in testing::facts()) {
            let mut bytes = Vec::new();
            put_items(&mut bytes, facts.iter().collect::<Vec<_>>().into_iter());
            let mut read = Facts::default();
            prop_assert_eq!(Reader::new(&bytes).items_into(&mut read), Ok(()));
            prop_assert_eq!(read, facts);
        }

        #[test]
        fn numbers_round_trip(number in any::<i64>()) {
            let mut bytes = Vec::new();
            put_signed(&mut bytes, number);
            prop_assert_eq!(Reader::new(&bytes).signed(), Ok(number));
        }

        #[test]
        fn hostile_bytes_end_in_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _any = Reader::new(&bytes).patch();
            let _any = Reader::new(&bytes).items_into(&mut Facts::default());
            let _any = Reader::new(&bytes).subjects();
        }
    }

    #[test]
    fn an_edit_of_one_number_is_small() {
        let fields = |pid: i64| Fields::from([("main_pid".to_owned(), Value::Int(pid))]);
        let op = Op::Edited { was: fields(1234), now: fields(5678) };
        let patch = Patch([("unit:nginx.service".parse().unwrap(), op)].into());
        let mut bytes = Vec::new();
        put_patch(&mut bytes, &patch);
        assert!(bytes.len() <= 25, "{}", bytes.len());
    }
}
