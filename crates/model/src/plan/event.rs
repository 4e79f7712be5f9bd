//! What is told of a plan while it is carried out.

use serde::{Deserialize, Serialize};

/// What happens, with the number of the step in its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Began {
        step: usize,
    },
    /// A line of what a program said.
    Said {
        step: usize,
        text: String,
    },
    Ended {
        step: usize,
        outcome: Outcome,
    },
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was so before.
    Already,
    /// It was done, and is so.
    Changed,
    Failed(String),
    /// It needs a step that did not succeed.
    Skipped {
        needs: usize,
    },
    Cancelled,
}

impl Outcome {
    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Already | Self::Changed)
    }
}
