//! What the fuzzer needs of the agent's private parts. Exists under `--cfg fuzzing` alone.

use crate::spool::{Opened, Spool};
use api::wire::{Body, Delta};
use model::{Facts, Time};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// A part of a journal.
#[derive(Debug)]
pub enum Piece {
    Base {
        stream: String,
        sequence: u64,
        facts: Facts,
    },
    Delta(Delta),
    /// Bytes with a length and checksum that fit them.
    Record(Vec<u8>),
    Torn(Vec<u8>),
}

/// As the spool writes it.
#[derive(Serialize)]
enum Record<'a> {
    Base { stream: &'a str, sequence: u64, facts: &'a Facts },
    Delta(&'a Delta),
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("inputs are small");
    [&length.to_le_bytes(), &crc32fast::hash(payload).to_le_bytes(), payload].concat()
}

/// Opens a spool with this journal; what was found must be found again.
///
/// # Panics
/// When an invariant of the spool does not hold.
pub fn open_spool(dir: &Path, pieces: &[Piece], acked: &[u8], acknowledge: u64, resync: bool) {
    let packed =
        |record: &Record<'_>| framed(&rmp_serde::to_vec_named(record).expect("plain data"));
    let mut journal = b"twspool1".to_vec();
    for piece in pieces {
        journal.extend(match piece {
            Piece::Base { stream, sequence, facts } => {
                packed(&Record::Base { stream, sequence: *sequence, facts })
            }
            Piece::Delta(delta) => packed(&Record::Delta(delta)),
            Piece::Record(payload) => framed(payload),
            Piece::Torn(bytes) => bytes.clone(),
        });
    }
    let written = fs::write(dir.join("journal"), journal);
    written.and_then(|()| fs::write(dir.join("acked"), acked)).expect("scratch can be written");

    let open = || Spool::open(dir, 1 << 20, || "fresh".to_owned()).expect("a spool always opens");
    let first = open();
    let (facts, stream, waiting) = found(&first);
    drop(first);
    let Opened { mut spool, facts: again } = open();
    assert_eq!((again, spool.stream().to_owned(), spool.len()), (facts, stream, waiting));

    let batch = spool.batch().expect("what was counted can be read");
    assert_eq!(batch.is_empty(), spool.is_empty());
    assert!(batch.is_sorted_by(|a, b| a.sequence < b.sequence));
    spool.acknowledged(acknowledge).expect("what was counted can be read");
    let trouble = spool.push(Time(0), Body::Keyframe(Facts::default()), None);
    assert!(trouble.is_none(), "{trouble:?}");
    if resync {
        spool.resync("second".to_owned()).expect("what was counted can be read");
    }
    let (stream, waiting) = (spool.stream().to_owned(), spool.len());
    drop(spool);
    let opened = open();
    assert_eq!(found(&opened), (Facts::default(), stream, waiting));
}

fn found(opened: &Opened) -> (Facts, String, usize) {
    (opened.facts.clone(), opened.spool.stream().to_owned(), opened.spool.len())
}
