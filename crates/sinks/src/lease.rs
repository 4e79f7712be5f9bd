//! Which of several instances works, where they share a MongoDB or a Redis.

/// What asking for the lease came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// The holder had it last, and nobody since; it goes on, or is its own again.
    Ours,
    /// It is the holder's now: until now it was nobody's, or had ended.
    TakenOver,
    /// This other holder has it.
    Others(String),
}
