//! The semantic state of a host at one moment.

use crate::digest::Digest;
use crate::encoded::{self, Edited};
use crate::entity::Entity;
use crate::kind::{Kind, Subject};
use crate::value::{Fields, Value};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

/// One item's fields in canonical form: equal fields have equal bytes.
///
/// Kept encoded because a server holds the items of thousands of hosts and reads few of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Item(Arc<[u8]>);

impl Item {
    #[must_use]
    pub fn new(fields: &Fields) -> Self {
        let bytes = rmp_serde::to_vec(fields).expect("a map of plain values always encodes");
        Self(bytes.into())
    }

    /// The fields. They were encoded by [`Item::new`], so this always succeeds.
    #[must_use]
    pub fn fields(&self) -> Fields {
        rmp_serde::from_slice(&self.0).expect("an item holds what Item::new encoded")
    }

    /// The fields as [`Item::new`] encoded them.
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        &self.0
    }

    /// Bytes of the encoded fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len() <= 1
    }

    fn hash(&self, subject: &Subject) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(subject.kind().as_str().as_bytes());
        hasher.update(b":");
        hasher.update(subject.id().as_bytes());
        hasher.update(b"\0");
        hasher.update(&self.0);
        hasher.finalize()
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.fields())
    }
}

/// All that is known to hold of a host, by subject. Cloning shares the items.
#[derive(Clone, Default)]
pub struct Facts {
    items: BTreeMap<Subject, Item>,
    digest: Digest,
}

impl Facts {
    /// Equal for equal facts; changes with every item.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    #[must_use]
    pub fn get(&self, subject: &Subject) -> Option<&Item> {
        self.items.get(subject)
    }

    /// Puts an item in place, and gives back the one that was there.
    pub fn put(&mut self, subject: Subject, item: Item) -> Option<Item> {
        self.digest.add(&item.hash(&subject));
        match self.items.entry(subject) {
            Entry::Occupied(mut place) => {
                let before = place.insert(item);
                self.digest.subtract(&before.hash(place.key()));
                Some(before)
            }
            Entry::Vacant(place) => {
                place.insert(item);
                None
            }
        }
    }

    /// Takes the fields away that only `gone` names, and puts those of `put` in place. Gives the
    /// fields that changed by it, as they were and as they are; `None` when there is no such item.
    pub fn edit(
        &mut self,
        subject: &Subject,
        gone: &Fields,
        put: Fields,
    ) -> Option<(Fields, Fields)> {
        let item = self.items.get_mut(subject)?;
        let Edited { bytes, was, now } =
            encoded::edit(&item.0, gone, put).expect("an item holds what Item::new encoded");
        if !was.is_empty() || !now.is_empty() {
            self.digest.subtract(&item.hash(subject));
            *item = Item(bytes.into());
            self.digest.add(&item.hash(subject));
        }
        Some((was, now))
    }

    pub fn remove(&mut self, subject: &Subject) -> Option<Item> {
        let before = self.items.remove(subject)?;
        self.digest.subtract(&before.hash(subject));
        Some(before)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Subject, &Item)> {
        self.items.iter()
    }

    /// The items of one kind, in order of id.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Subject, &Item)> {
        self.items
            .range(Subject::first_of(kind)..)
            .take_while(move |(subject, _)| subject.kind() == kind)
    }

    /// The typed form of one thing; `None` when it is not there or has lost its form.
    #[must_use]
    pub fn entity<T: Entity>(&self, id: &str) -> Option<T> {
        let subject = Subject::new(T::KIND, id).ok()?;
        T::from_fields(id, self.get(&subject)?.fields())
    }

    /// The typed form of everything of one kind. What does not have the form is left out.
    pub fn entities<T: Entity>(&self) -> impl Iterator<Item = T> {
        self.of_kind(T::KIND)
            .filter_map(|(subject, item)| T::from_fields(subject.id(), item.fields()))
    }

    /// Puts a typed thing in place.
    pub fn put_entity<T: Entity>(&mut self, entity: &T) -> Option<Item> {
        let (subject, fields) = entity.to_item();
        self.put(subject, Item::new(&fields))
    }

    /// The value of one field.
    #[must_use]
    pub fn field(&self, subject: &Subject, name: &str) -> Option<Value> {
        self.get(subject)?.fields().remove(name)
    }

    /// About how much memory this holds, in bytes, were nothing shared.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.items.iter().map(|(subject, item)| subject.id().len() + item.len() + 80).sum()
    }
}

impl PartialEq for Facts {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.items == other.items
    }
}

impl Eq for Facts {}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl FromIterator<(Subject, Item)> for Facts {
    fn from_iter<I: IntoIterator<Item = (Subject, Item)>>(items: I) -> Self {
        let mut facts = Self::default();
        for (subject, item) in items {
            facts.put(subject, item);
        }
        facts
    }
}

/// As a map from subject to fields.
impl Serialize for Facts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(subject, item)| (subject, InOtherForm(item))))
    }
}

/// An item's fields on their way from their encoded form to another, without being built.
struct InOtherForm<'i>(&'i Item);

impl Serialize for InOtherForm<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut encoded = rmp_serde::Deserializer::from_read_ref(self.0.encoded());
        serde_transcode::transcode(&mut encoded, serializer)
    }
}

impl<'de> Deserialize<'de> for Facts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;

        impl<'de> serde::de::Visitor<'de> for Items {
            type Value = Facts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from subject to fields")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Facts, A::Error> {
                let mut facts = Facts::default();
                while let Some((subject, fields)) = map.next_entry::<Subject, Fields>()? {
                    facts.put(subject, Item::new(&fields));
                }
                Ok(facts)
            }
        }

        deserializer.deserialize_map(Items)
    }
}
