//! Which of several instances works, where they share a MongoDB or a Redis.

/// What asking for the lease came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// It was the holder's, and goes on.
    Ours,
    /// It is the holder's now: until now it was nobody's, or had ended.
    TakenOver,
    /// This other holder has it.
    Others(String),
}
