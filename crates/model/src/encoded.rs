//! The fields of an item in their canonical bytes, edited without being decoded.
//!
//! A change touches a field or two of twenty. Decoding all of them to encode them again costs
//! far more than the change; here the others are copied as they are.
//!
//! # Invariants
//! - The result is byte for byte what encoding the edited fields gives: a property test says so.
//! - Bytes that [`crate::Item::new`] did not write give `None`, never a panic.

use crate::value::{Fields, Value};

/// What became of an item by an edit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Edited {
    pub(crate) bytes: Vec<u8>,
    /// The fields as they were, of those that changed or went.
    pub(crate) was: Fields,
    /// The fields as they are now, of those that changed or came.
    pub(crate) now: Fields,
}

/// Takes away the fields that only `gone` names, and puts those of `put` in place.
pub(crate) fn edit(bytes: &[u8], gone: &Fields, put: Fields) -> Option<Edited> {
    let (count, mut rest) = map_head(bytes)?;
    let mut entries = Vec::with_capacity(bytes.len() + 64);
    let mut edited = Edited { bytes: Vec::new(), was: Fields::new(), now: Fields::new() };
    let mut left = 0;
    let mut put = put.into_iter().peekable();
    for _ in 0..count {
        let (name, value_at) = text(rest)?;
        let after = skip(value_at)?;
        let value = value_at.get(..value_at.len() - after.len())?;
        while let Some((name, value)) = put.next_if(|(new, _)| new.as_str() < name) {
            left += 1;
            put_entry(&mut entries, &name, &encoded(&value));
            edited.now.insert(name, value);
        }
        if let Some((name, new)) = put.next_if(|(new, _)| new == name) {
            let new_bytes = encoded(&new);
            left += 1;
            put_entry(&mut entries, &name, &new_bytes);
            if new_bytes != value {
                edited.was.insert(name.clone(), decoded(value)?);
                edited.now.insert(name, new);
            }
        } else if gone.contains_key(name) {
            edited.was.insert(name.to_owned(), decoded(value)?);
        } else {
            left += 1;
            entries.extend_from_slice(rest.get(..rest.len() - after.len())?);
        }
        rest = after;
    }
    for (name, value) in put {
        left += 1;
        put_entry(&mut entries, &name, &encoded(&value));
        edited.now.insert(name, value);
    }
    edited.bytes = Vec::with_capacity(entries.len() + 5);
    put_map_head(&mut edited.bytes, left);
    edited.bytes.append(&mut entries);
    rest.is_empty().then_some(edited)
}

fn encoded(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec(value).expect("a plain value always encodes")
}

fn decoded(bytes: &[u8]) -> Option<Value> {
    rmp_serde::from_slice(bytes).ok()
}

fn put_entry(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let name = rmp_serde::to_vec(name).expect("a text always encodes");
    out.extend_from_slice(&name);
    out.extend_from_slice(value);
}

fn put_map_head(out: &mut Vec<u8>, count: u32) {
    match (u8::try_from(count), u16::try_from(count)) {
        (Ok(count), _) if count < 16 => out.push(0x80 | count),
        (_, Ok(count)) => {
            out.push(0xde);
            out.extend_from_slice(&count.to_be_bytes());
        }
        _ => {
            out.push(0xdf);
            out.extend_from_slice(&count.to_be_bytes());
        }
    }
}

/// How many entries a map has, and what follows its head.
fn map_head(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (marker, rest) = bytes.split_first()?;
    match marker {
        0x80..=0x8f => Some((u32::from(marker & 0x0f), rest)),
        0xde => number(rest, 2),
        0xdf => number(rest, 4),
        _ => None,
    }
}

/// A text, and what follows it.
fn text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (marker, rest) = bytes.split_first()?;
    let (length, rest) = match marker {
        0xa0..=0xbf => (u32::from(marker & 0x1f), rest),
        0xd9 => number(rest, 1)?,
        0xda => number(rest, 2)?,
        0xdb => number(rest, 4)?,
        _ => return None,
    };
    let (text, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// What follows the value that the bytes begin with. Without recursion: values are nested.
fn skip(mut rest: &[u8]) -> Option<&[u8]> {
    let mut pending: u64 = 1;
    while pending > 0 {
        pending -= 1;
        let (marker, after) = rest.split_first()?;
        let (bytes, values, after) = match marker {
            0x00..=0x7f | 0xe0..=0xff | 0xc2 | 0xc3 => (0, 0, after),
            0x80..=0x8f => (0, u64::from(marker & 0x0f) * 2, after),
            0x90..=0x9f => (0, u64::from(marker & 0x0f), after),
            0xa0..=0xbf => (u32::from(marker & 0x1f), 0, after),
            0xcc | 0xd0 => (1, 0, after),
            0xcd | 0xd1 => (2, 0, after),
            0xce | 0xd2 => (4, 0, after),
            0xcf | 0xd3 => (8, 0, after),
            0xd9 => number(after, 1).map(|(length, after)| (length, 0, after))?,
            0xda => number(after, 2).map(|(length, after)| (length, 0, after))?,
            0xdb => number(after, 4).map(|(length, after)| (length, 0, after))?,
            0xdc => number(after, 2).map(|(count, after)| (0, u64::from(count), after))?,
            0xdd => number(after, 4).map(|(count, after)| (0, u64::from(count), after))?,
            0xde => number(after, 2).map(|(count, after)| (0, u64::from(count) * 2, after))?,
            0xdf => number(after, 4).map(|(count, after)| (0, u64::from(count) * 2, after))?,
            _ => return None,
        };
        pending += values;
        rest = after.get(usize::try_from(bytes).ok()?..)?;
    }
    Some(rest)
}

/// A big-endian number of so many bytes, at most four, and what follows it.
fn number(bytes: &[u8], width: usize) -> Option<(u32, &[u8])> {
    let (digits, rest) = bytes.split_at_checked(width)?;
    Some((digits.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-200..70_000_i64).prop_map(Value::Int),
            ".{0,40}".prop_map(Value::Text),
            prop::sample::select(vec![0, 31, 32, 255, 256, 65_536])
                .prop_map(|length| Value::Text("x".repeat(length))),
        ];
        leaf.prop_recursive(3, 24, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(Value::List),
                prop::collection::btree_map("[a-z]{0,40}", inner, 0..20).prop_map(Value::Map),
            ]
        })
    }

    fn fields() -> impl Strategy<Value = Fields> {
        prop::collection::btree_map("[a-d]{0,2}", value(), 0..20)
    }

    /// The same, with all fields decoded.
    fn expected(fields: &Fields, gone: &Fields, put: &Fields) -> Edited {
        let mut after = fields.clone();
        after.retain(|name, _| !gone.contains_key(name));
        after.extend(put.clone());
        let only = |one: &Fields, other: &Fields| -> Fields {
            let of_one = one.iter().filter(|(name, value)| other.get(*name) != Some(value));
            of_one.map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        let bytes = rmp_serde::to_vec(&after).unwrap();
        Edited { bytes, was: only(fields, &after), now: only(&after, fields) }
    }

    proptest! {
        #[test]
        fn an_edit_is_what_decoding_and_encoding_gives(
            fields in fields(), gone in fields(), put in fields(),
        ) {
            let bytes = rmp_serde::to_vec(&fields).unwrap();
            let expected = expected(&fields, &gone, &put);
            prop_assert_eq!(edit(&bytes, &gone, put), Some(expected));
        }

        #[test]
        fn other_bytes_are_refused_or_edited(
            bytes in prop::collection::vec(any::<u8>(), 0..100), gone in fields(), put in fields(),
        ) {
            let _either = edit(&bytes, &gone, put);
        }
    }
}
