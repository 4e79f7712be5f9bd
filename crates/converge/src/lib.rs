//! Changes a Linux machine: the only crate that does.
//!
//! Each change is check, act, check: what is right already is left alone, and what was done is
//! looked at again. Files lie below a root, which is an argument. Below another root than `/`
//! lies a machine that is not running: its files are changed, and no kernel and no service.
//!
//! # Invariants
//! - One change that fails is a fault, and keeps none of the others from being made.
//! - Nothing goes through a shell. Programs have a deadline and end with who waits for them.
//! - A file is replaced as a whole: whoever reads it finds the old or the new one.

pub mod apply;
mod file;
pub mod identity;
mod program;

use std::path::Path;

/// Whether the machine below this root is the one we run on.
fn is_live(root: &Path) -> bool {
    root == Path::new("/")
}
