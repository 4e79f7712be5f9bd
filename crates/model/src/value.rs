//! Field values, and their one canonical byte form.
//!
//! There is no null: an absent field is absent. There are no floats: a fact is something that
//! holds until it changes, and measurements belong to load.

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// Named fields of one item, in canonical order.
pub type Fields = BTreeMap<String, Value>;

/// What a field can hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Value {
    /// Converts JSON; `None` for null (which means absent) and for numbers that are not whole.
    #[must_use]
    pub fn from_json(json: serde_json::Value) -> Option<Self> {
        match json {
            serde_json::Value::Null => None,
            serde_json::Value::Bool(b) => Some(Self::Bool(b)),
            serde_json::Value::Number(n) => {
                n.as_i64().or_else(|| n.as_u64().map(|_| i64::MAX)).map(Self::Int)
            }
            serde_json::Value::String(s) => Some(Self::Text(s)),
            serde_json::Value::Array(a) => {
                Some(Self::List(a.into_iter().filter_map(Self::from_json).collect()))
            }
            serde_json::Value::Object(o) => Some(Self::Map(
                o.into_iter().filter_map(|(k, v)| Some((k, Self::from_json(v)?))).collect(),
            )),
        }
    }

    /// The same value as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Bool(b) => (*b).into(),
            Self::Int(i) => (*i).into(),
            Self::Text(s) => s.as_str().into(),
            Self::List(l) => l.iter().map(Self::to_json).collect(),
            Self::Map(m) => {
                serde_json::Value::Object(m.iter().map(|(k, v)| (k.clone(), v.to_json())).collect())
            }
        }
    }

    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(s) = self { Some(s) } else { None }
    }

    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        if let Self::Int(i) = self { Some(*i) } else { None }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(b) => serializer.serialize_bool(*b),
            Self::Int(i) => serializer.serialize_i64(*i),
            Self::Text(s) => serializer.serialize_str(s),
            Self::List(l) => l.serialize(serializer),
            Self::Map(m) => m.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        AnyValue { levels: MAX_LEVELS }.deserialize(deserializer)
    }
}

/// Lists and maps in each other. Facts have a few; readers of JSON have limits, too, and what
/// one of them could not read back must not come in.
const MAX_LEVELS: u8 = 32;

struct AnyValue {
    /// That may still come.
    levels: u8,
}

impl AnyValue {
    fn below<E: de::Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1);
        let levels = levels.ok_or_else(|| E::custom("lists and maps are nested too deep"))?;
        Ok(Self { levels })
    }
}

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a boolean, a whole number, a text, a list or a map")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        i64::try_from(v)
            .map(Value::Int)
            .map_err(|_overflow| E::custom("a number beyond 2^63-1 is not a fact"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Text(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::Text(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let Self { levels } = self.below()?;
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(Self { levels })? {
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let Self { levels } = self.below()?;
        let mut fields = BTreeMap::new();
        while let Some(key) = map.next_key()? {
            fields.insert(key, map.next_value_seed(Self { levels })?);
        }
        Ok(Value::Map(fields))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(i) => write!(f, "{i}"),
            Self::Text(s) => f.write_str(s),
            Self::List(l) => {
                for (i, value) in l.iter().enumerate() {
                    if i > 0 {
                        f.write_str(" ")?;
                    }
                    write!(f, "{value}")?;
                }
                Ok(())
            }
            Self::Map(m) => {
                for (i, (key, value)) in m.iter().enumerate() {
                    if i > 0 {
                        f.write_str(" ")?;
                    }
                    write!(f, "{key}={value}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nested_too_deep_does_not_come_in() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let read = |levels| serde_json::from_str::<Value>(&nested(levels));
        assert_eq!(serde_json::to_string(&read(32).unwrap()).unwrap(), nested(32));
        assert!(read(33).unwrap_err().to_string().contains("nested too deep"));
        let packed = [vec![0x91; 200], vec![0]].concat();
        assert!(rmp_serde::from_slice::<Value>(&packed).is_err());
    }
}
