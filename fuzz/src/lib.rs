//! What is done with the bytes the fuzzer makes up: one function per parser of outside input.
//!
//! There is a program for each of these modules, since linking one takes longer than fuzzing a
//! parser, and with one for all of them the cheap parsers would wait for the counters of the
//! dear ones. `FUZZ_TARGET` says which of the module's functions gets the input. A function
//! panics when an invariant of the parser does not hold; most only ask that it does
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
use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::Corpus;

/// What a program hands its input to.
pub type Target = fn(&[u8]) -> Corpus;

/// The program of a module: the functions that `FUZZ_TARGET` may name.
#[macro_export]
macro_rules! targets {
    ($module:ident: $($name:ident),+ $(,)?) => {
        static CHOSEN: std::sync::LazyLock<$crate::Target> = std::sync::LazyLock::new(|| {
            $crate::chosen(&[$((
                stringify!($name),
                |bytes| $crate::given(bytes, $crate::$module::$name),
            )),+])
        });

        libfuzzer_sys::fuzz_target!(
            init: { std::sync::LazyLock::force(&CHOSEN); },
            |bytes: &[u8]| -> libfuzzer_sys::Corpus { CHOSEN(bytes) }
        );
    };
}

/// The one that was asked for.
#[must_use]
pub fn chosen(known: &[(&str, Target)]) -> Target {
    let asked = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match known.iter().find(|(name, _)| *name == asked) {
        Some((_, target)) => *target,
        None => {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            eprintln!("FUZZ_TARGET is {asked:?}; it has to be one of {}", names.join(", "));
            std::process::exit(64);
        }
    }
}

/// Has one function take what it can make of the bytes.
pub fn given<'a, I: Arbitrary<'a>>(bytes: &'a [u8], run: impl FnOnce(I)) -> Corpus {
    if bytes.len() < I::size_hint(0).0 {
        return Corpus::Reject;
    }
    match I::arbitrary_take_rest(Unstructured::new(bytes)) {
        Ok(input) => {
            run(input);
            Corpus::Keep
        }
        Err(_) => Corpus::Reject,
    }
}

/// With a key that stays, so that the same input does the same.
fn redactor() -> Redactor {
    Redactor::new([7; 32], vec!["MODE".to_owned()])
}
