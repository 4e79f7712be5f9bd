//! The VM inventory: what is known of each VM, and what a listing by its source means for that.
//! Reads nothing, writes nothing.
//!
//! ```text
//!   source ──► Listing ─┐
//!                       ├─ reconcile ─► decisions, with reasons ─ apply ─► records
//!   records ────────────┘
//!   verdicts of checks ─► Tally (thresholds) ─ assess ─► health, score, cause
//! ```
//!
//! A source turns what it sees into a [`Listing`]: [`microvm`] does so with the facts of a node.
//! What is decided is the same for all sources ([`reconcile()`]).
//!
//! # Invariants
//! - Same inputs, same output: no I/O, no clock, no randomness in this crate.
//! - A listing that is not complete makes no record an orphan, and neither does silence. A VM that
//!   nobody can identify keeps those from it that it may be.
//! - What was decided and applied is not decided again.
//! - The order of what was listed does not matter.

mod given;
pub mod health;
pub mod microvm;
mod reconcile;
mod record;
pub mod recovery;

pub use reconcile::{Breaker, Held, Outcome, apply, reconcile};
pub use record::{
    Act, Completeness, Condition, Decision, Earlier, Limits, Listing, Loop, Presence, Record,
    Refused, Seen, Traffic, Transition, Unidentified, Usage, Vm,
};
