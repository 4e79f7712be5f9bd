//! The agent's file, and its spool. Taken in by their path: the rest of the agent takes long
//! to build, and reads nothing of its own.

#[allow(dead_code, reason = "where files are is left out here")]
#[path = "../../crates/agent/src/config.rs"]
mod config;
#[allow(dead_code, reason = "what the outbox asks is left out here")]
#[path = "../../crates/agent/src/spool/mod.rs"]
mod spool;

use crate::machine::scratch;
use crate::made::{self, MadeFacts, MadePatch};
use ::api::wire::{Body, Delta, Gap};
use arbitrary::Arbitrary;
use config::File;
use model::{Facts, Time, diff};
use serde::Serialize;
use spool::{Opened, Spool};
use std::fs;
use std::path::Path;

/// YAML of the agent's file.
pub fn agent_config(text: &str) {
    match File::parse(text, Path::new("agent.yaml")) {
        Ok(file) => {
            // A file that is named is read, and may be any file of this machine.
            let file = File { token_file: None, ..file };
            let merged = File::default().overridden_by(file.clone());
            assert_eq!(merged, File::default().overridden_by(merged.clone()));
            if let Err(error) = file.check() {
                assert!(!error.to_string().is_empty());
            }
        }
        Err(error) => assert!(error.to_string().contains("agent.yaml")),
    }
}

/// What may lie in a journal, in any order.
#[derive(Debug, Arbitrary)]
pub enum MadePiece {
    Base {
        stream: String,
        sequence: u64,
        facts: MadeFacts,
    },
    Keyframe {
        sequence: u64,
        at: i64,
        facts: MadeFacts,
        merged: Option<u64>,
    },
    /// One that fits what came before.
    Step {
        skip: u8,
        at: i64,
        facts: MadeFacts,
    },
    Misfit {
        sequence: u64,
        at: i64,
        patch: MadePatch,
    },
    /// With a checksum that is right.
    Record(Vec<u8>),
    Torn(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
pub struct Journal {
    pieces: Vec<MadePiece>,
    acked: Vec<u8>,
    acknowledge: u64,
    resync: bool,
}

/// Whatever lies in the spool's directory, the agent starts, and starts again the same.
pub fn agent_spool(journal: Journal) {
    let mut state = Facts::default();
    let mut last = 0_u64;
    let pieces = journal.pieces.into_iter().map(|piece| match piece {
        MadePiece::Base { stream, sequence, facts } => {
            state = made::facts(facts);
            last = sequence;
            Piece::Base { stream, sequence, facts: state.clone() }
        }
        MadePiece::Keyframe { sequence, at, facts, merged } => {
            state = made::facts(facts);
            last = sequence;
            let gap = merged.map(|merged| Gap { since: Time(at), merged });
            Piece::Delta(Delta { sequence, at: Time(at), body: Body::Keyframe(state.clone()), gap })
        }
        MadePiece::Step { skip, at, facts } => {
            let next = made::facts(facts);
            let patch = diff(&state, &next);
            last = last.wrapping_add(1).wrapping_add(skip.into());
            let body = Body::Patch { base: state.digest(), next: next.digest(), patch };
            state = next;
            Piece::Delta(Delta { sequence: last, at: Time(at), body, gap: None })
        }
        MadePiece::Misfit { sequence, at, patch } => {
            let (base, patch) = (state.digest(), made::patch(patch));
            let body = Body::Patch { base, next: base, patch };
            Piece::Delta(Delta { sequence, at: Time(at), body, gap: None })
        }
        MadePiece::Record(payload) => Piece::Record(payload),
        MadePiece::Torn(bytes) => Piece::Torn(bytes),
    });
    let pieces: Vec<Piece> = pieces.collect();
    open_spool(&scratch(), &pieces, &journal.acked, journal.acknowledge, journal.resync);
}

/// A part of a journal.
#[derive(Debug)]
enum Piece {
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
fn open_spool(dir: &Path, pieces: &[Piece], acked: &[u8], acknowledge: u64, resync: bool) {
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
        spool.resync("second".to_owned(), Time(1)).expect("what was counted can be read");
    }
    let (stream, waiting) = (spool.stream().to_owned(), spool.len());
    drop(spool);
    let opened = open();
    assert_eq!(found(&opened), (Facts::default(), stream, waiting));
}

fn found(opened: &Opened) -> (Facts, String, usize) {
    (opened.facts.clone(), opened.spool.stream().to_owned(), opened.spool.len())
}
