//! What is done with the bytes the fuzzer makes up: one function per parser of outside input.
//!
//! `fuzz_targets/NAME.rs` hands its input to the function NAME of one of these modules. A
//! function panics when an invariant of the parser does not hold; most only ask that it does
//! not panic by itself. Private parsers are reached through the public function that reads
//! their file, below a made root; where there is none, through the source file itself, taken
//! in by its path, or a `fuzzing` module that exists under `--cfg fuzzing` alone.

pub mod agent;
pub mod api;
pub mod cli;
pub mod host;
pub mod machine;
pub mod made;
pub mod model;
pub mod server;
pub mod store;
pub mod vsphere;

/// Of the host crate, for its files that are taken in by their path.
#[allow(dead_code, reason = "each file uses a part of it")]
#[path = "../../crates/host/src/text.rs"]
mod text;

use ::model::redact::Redactor;

/// With a key that stays, so that the same input does the same.
fn redactor() -> Redactor {
    Redactor::new([7; 32], vec!["MODE".to_owned()])
}
