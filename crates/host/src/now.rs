//! One moment, by both clocks. Passed in, never read: a test chooses its own.

use model::Time;
use std::time::Duration;

/// When something was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// The wall clock, for people. May jump.
    pub at: Time,
    /// A monotonic clock from any origin, for rates and ages.
    pub clock: Duration,
}
