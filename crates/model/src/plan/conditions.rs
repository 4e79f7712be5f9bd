//! What systemd asks of a machine before it starts a unit, and a start that came to nothing for it.

use super::Action;

/// How the reason of such a failure begins.
pub const UNMET: &str = "its conditions are not met";

/// Whether a step failed since the machine is not one that the unit starts on.
#[must_use]
pub fn is_unmet(action: &Action, why: &str) -> bool {
    matches!(action, Action::Start(_) | Action::Restart(_)) && why.starts_with(UNMET)
}
