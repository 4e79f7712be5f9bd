//! From how an item holds its fields to how the history stores them, without decoding them into
//! values in between. A keyframe has hundreds of items.
//!
//! # Invariants
//! - The result is byte for byte what [`crate::codec`] writes of the decoded fields: a property
//!   test says so.

use crate::codec::put_varint;
use crate::codec::{BOOL, INT, LIST, MAP, put_head, put_name, put_text, put_text_value, zigzag};
use model::Item;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Puts the fields of an item behind what is there.
pub(crate) fn put_item(out: &mut Vec<u8>, item: &Item) {
    let mut source = rmp_serde::Deserializer::from_read_ref(item.encoded());
    let put = Fields(out).deserialize(&mut source);
    put.expect("an item holds what Item::new encoded");
}

struct Fields<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        put_varint(self.0, counted(map.size_hint())?);
        while let Some(name) = map.next_key::<&str>()? {
            put_name(self.0, name, 0);
            map.next_value_seed(Value(self.0))?;
        }
        Ok(())
    }
}

struct Value<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, truth: bool) -> Result<(), E> {
        put_head(self.0, BOOL, u64::from(truth));
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        put_head(self.0, INT, zigzag(number));
        Ok(())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.visit_i64(i64::try_from(number).map_err(E::custom)?)
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        put_text_value(self.0, text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        put_head(self.0, LIST, counted(list.size_hint())?);
        while list.next_element_seed(Value(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        put_head(self.0, MAP, counted(map.size_hint())?);
        while let Some(key) = map.next_key::<&str>()? {
            put_text(self.0, key);
            map.next_value_seed(Value(self.0))?;
        }
        Ok(())
    }
}

/// The encoding says how many follow.
fn counted<E: Error>(hint: Option<usize>) -> Result<u64, E> {
    let count = hint.and_then(|count| u64::try_from(count).ok());
    count.ok_or_else(|| E::custom("no count"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::put_fields;
    use crate::testing;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_same_as_by_way_of_fields(facts in testing::facts()) {
            for (_, item) in facts.iter() {
                let (mut direct, mut decoded) = (Vec::new(), Vec::new());
                put_item(&mut direct, item);
                put_fields(&mut decoded, &item.fields());
                prop_assert_eq!(direct, decoded);
            }
        }
    }
}
