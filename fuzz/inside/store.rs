//! What the fuzzer needs of the store's private parts. Exists under `--cfg fuzzing` alone.

use crate::codec::{Reader, put_items, put_patch, put_subjects};
use crate::record::{Base, Difference, HostNumber, Keyframe, MetaState, Origin, Record};
use crate::{block, texts};
use model::{Facts, Version};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const HOST: HostNumber = 3;
const VERSION: Version = Version(5);
const DAY: i64 = 20_000;

/// The checksum that `record` puts before its bytes.
fn seal(version: u64, body: &[u8]) -> Vec<u8> {
    let seed = u64::from(HOST).rotate_left(40) ^ version;
    let checksum = xxh3_64_with_seed(body, seed).to_le_bytes();
    [&checksum[..4], body].concat()
}

/// Reads the bytes as a kind of record; what was understood must come back the same.
///
/// # Panics
/// When it does not.
pub fn record(kind: u8, bytes: &[u8]) {
    match kind % 8 {
        0 => {
            let sealed = seal(VERSION.0, bytes);
            let _time = Record::decode_at(HOST, DAY, VERSION.0, &sealed);
            let Ok(record) = Record::decode(HOST, DAY, VERSION, &sealed) else { return };
            let again = Record::decode(HOST, DAY, VERSION, &record.encode(HOST, DAY));
            assert_eq!(again.as_ref(), Ok(&record));
            block::contents_of(&record.entry.patch).for_each(drop);
        }
        1 => {
            let sealed = seal(VERSION.0, bytes);
            let Ok(keyframe) = Keyframe::decode(HOST, VERSION, &sealed) else { return };
            let empty = Facts::default();
            let (_, none) = Keyframe::encode_full(HOST, VERSION, &empty);
            let _facts = keyframe.over(&none);
            if let Ok(base) = keyframe.to_base(VERSION) {
                over(&base, &empty);
            }
        }
        2 => {
            let Ok(meta) = MetaState::decode(HOST, &seal(0, bytes)) else { return };
            assert_eq!(MetaState::decode(HOST, &meta.encode(HOST)).ok(), Some(meta));
        }
        3 => {
            let _record = Origin::decode_record(HOST, bytes);
            let Ok(origin) = Origin::decode(HOST, bytes) else { return };
            let again = Origin::decode(HOST, &origin.encode(HOST)).expect("just written");
            assert_eq!((again.record, again.facts), (origin.record, origin.facts));
        }
        4 => {
            let Ok(patch) = Reader::new(bytes).patch() else { return };
            let mut out = Vec::new();
            put_patch(&mut out, &patch);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.patch(), Ok(patch));
            assert_eq!(reader.end(), Ok(()));
        }
        5 => {
            let mut facts = Facts::default();
            if Reader::new(bytes).items_into(&mut facts).is_err() {
                return;
            }
            let mut out = Vec::new();
            put_items(&mut out, facts.iter().collect::<Vec<_>>().into_iter());
            let mut again = Facts::default();
            assert_eq!(Reader::new(&out).items_into(&mut again), Ok(()));
            assert_eq!(again, facts);
            let (_, base) = Keyframe::encode_full(HOST, VERSION, &facts);
            over(&base, &Facts::default());
        }
        6 => {
            let Ok(subjects) = Reader::new(bytes).subjects() else { return };
            let mut out = Vec::new();
            put_subjects(&mut out, subjects.iter());
            assert_eq!(Reader::new(&out).subjects(), Ok(subjects));
        }
        _ => {
            let _damaged = Record::decode(HOST, DAY, VERSION, bytes);
            let _damaged = Keyframe::decode(HOST, VERSION, bytes);
            let _damaged = MetaState::decode(HOST, bytes);
        }
    }
}

/// A state stored as its difference from a base comes back.
fn over(base: &Base, facts: &Facts) {
    let difference = (Difference::between(base, facts), &*base.plain);
    let bytes = Keyframe::encode_partial(HOST, Version(6), facts.digest(), difference);
    let keyframe = Keyframe::decode(HOST, Version(6), &bytes).expect("just written");
    assert_eq!(keyframe.over(base).as_ref(), Ok(facts));
}

/// Versions in a posting, of which the first eight bytes stand for the key.
pub fn postings(bytes: &[u8]) {
    let (key, value) = bytes.split_at_checked(8).unwrap_or((bytes, &[]));
    let _versions = block::postings(key, value);
}

/// A text is taken for its shorter form only when it comes back letter for letter.
///
/// # Panics
/// When it does not.
pub fn texts(text: &str) {
    if let Some(time) = texts::time_from_text(text) {
        assert_eq!(texts::time_to_text(time).as_deref(), Some(text));
    }
    if let Some(bytes) = texts::bytes_from_hex(text) {
        assert_eq!(texts::bytes_to_hex(&bytes), text);
    }
}
