//! The agent's file, and its spool.

use crate::machine::scratch;
use crate::made::{self, MadeFacts, MadePatch};
use ::agent::config::File;
use ::agent::fuzzing::{Piece, open_spool};
use ::api::wire::{Body, Delta, Gap};
use arbitrary::Arbitrary;
use model::{Facts, Time, diff};
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
