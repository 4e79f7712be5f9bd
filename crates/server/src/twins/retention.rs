//! Which snapshots have to go. Decides; deletes nothing.

use super::settings::Keep;
use crate::snapshots::BASE;
use api::twin::SnapshotWeight;
use model::Time;
use vm::image::SnapshotName;

/// A snapshot as this sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) name: SnapshotName,
    pub(super) at: Time,
    pub(super) weight: SnapshotWeight,
}

/// Those that are too old, then, while there are too many, those that matter least, the oldest
/// first. `base_state` and the current one stay.
pub(super) fn superfluous(
    saved: &[Saved],
    current: Option<&SnapshotName>,
    keep: Keep,
    now: Time,
) -> Vec<SnapshotName> {
    let stays = |one: &&Saved| one.name.as_str() == BASE || Some(&one.name) == current;
    let too_old = |one: &&Saved| keep.age.is_some_and(|age| now.since(one.at) > age);
    let (mut going, mut left): (Vec<&Saved>, Vec<&Saved>) =
        saved.iter().filter(|one| !stays(one)).partition(|one| too_old(one));
    left.sort_by_key(|one| (one.weight, one.at));
    let over = (saved.len() - going.len()).saturating_sub(keep.most);
    going.sort_by_key(|one| one.at);
    going.extend(left.into_iter().take(over));
    going.into_iter().map(|one| one.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// `NAME:AGE:WEIGHT …`, the ages in days; what goes, of at most so many.
    fn check(saved: &str, current: &str, most: usize, expected: &str) {
        let now = Time::from_seconds(1_000_000_000);
        let day = Duration::from_secs(86_400);
        let saved: Vec<Saved> = saved
            .split_whitespace()
            .map(|one| {
                let mut parts = one.split(':');
                let name = parts.next().unwrap().parse().unwrap();
                let age: u32 = parts.next().unwrap().parse().unwrap();
                let weight = parts.next().unwrap().parse().unwrap();
                Saved { name, at: now.minus(day * age), weight }
            })
            .collect();
        let keep = Keep { most, age: Some(day * 30) };
        let current = current.parse().ok();
        let going = superfluous(&saved, current.as_ref(), keep, now);
        let going: Vec<String> = going.iter().map(ToString::to_string).collect();
        assert_eq!(going.join(" "), expected);
    }

    #[test]
    fn the_least_go_first() {
        check("", "", 2, "");
        check("a:3:minor b:2:minor c:1:minor", "", 3, "");
        check("a:3:minor b:2:minor c:1:minor", "", 2, "a");
        check("a:3:major b:2:minor c:1:major", "", 2, "b");
        check("a:4:named b:3:major c:2:major d:1:major", "", 2, "b c");
        check("a:4:named b:3:named", "", 1, "a");
    }

    #[test]
    fn base_and_current_stay_whatever_the_limit() {
        check("base_state:90:minor a:40:minor b:1:minor", "a", 2, "b");
        check("base_state:90:minor a:40:minor b:1:minor", "b", 2, "a");
        check("base_state:90:minor a:2:major", "a", 1, "");
        check("a:31:named b:40:major c:1:minor", "c", 10, "b a");
    }
}
