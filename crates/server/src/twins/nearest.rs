//! Which snapshot is meant: the one of that name, else the newest at or before a moment of the
//! host, else the oldest. How far that is from the moment is told; what the host did between the
//! two is the way from one to the other (`follow/past.rs`).

use super::Twins;
use super::error::Error;
use super::snapshots::{REACHED, VERSION};
use crate::clock;
use api::twin::Nearest;
use model::{HostId, Moment, Time, Version, in_words};
use vm::image::{MachineName, NameError, SnapshotName};
use vm::machine::{self, Snapshot};

/// A moment as snapshots are compared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Time(Time),
    Version(Version),
}

/// A snapshot, and what led to it.
#[derive(Debug)]
pub(super) struct Meant {
    pub(super) snapshot: Snapshot,
    /// Of a moment, not of a name.
    pub(super) nearest: Option<Nearest>,
}

impl Twins {
    /// The snapshot that is meant by a text; nothing when that is the present.
    ///
    /// # Errors
    /// When there is none, or the text is neither a name nor a moment.
    pub(super) async fn meant(
        &self,
        name: &MachineName,
        text: &str,
    ) -> Result<Option<Meant>, Error> {
        let called: Result<SnapshotName, NameError> = text.parse();
        let moment: Result<Moment, _> = text.parse();
        let wanted = match (called, moment) {
            (Ok(called), moment) => match (self.found(name, &called).await, moment) {
                (Ok(found), _) => {
                    return Ok(Some(Meant { snapshot: found.snapshot?, nearest: None }));
                }
                (Err(Error::Machine(machine::Error::UnknownSnapshot { .. })), Ok(moment)) => moment,
                (Err(error), _) => return Err(error),
            },
            (Err(_), Ok(moment)) => moment,
            (Err(_), Err(error)) => {
                let what = format!("no snapshot has such a name, and {error}");
                return Err(Error::Value { key: "snapshot", what });
            }
        };
        let Some(wanted) = self.wanted(name, wanted)? else { return Ok(None) };
        let listed = self.listed(name).await?.into_iter();
        let mut sound: Vec<Snapshot> = listed.filter_map(|one| one.snapshot.ok()).collect();
        let host = self.host(name);
        let (wanted_at, wanted_version) =
            self.off_thread(move |this| this.place(host.as_ref(), wanted)).await?;
        let points: Vec<Point> = sound.iter().map(Point::of).collect();
        let index = newest_before(&points, wanted);
        let index = still_going_on(&points, index, wanted_version).or(index);
        let index = match (index, wanted_version) {
            // From the oldest a plan leads back.
            (None, Some(version)) if self.can_be_led_to(name, version).await => oldest(&points),
            _ => index,
        };
        let Some(index) = index else {
            let oldest = sound.first().map(|one| format!("{} ({})", one.name, one.at));
            let (name, moment) = (name.clone(), text.to_owned());
            return Err(Error::NoMoment { name, moment, oldest: oldest.unwrap_or("none".into()) });
        };
        let snapshot = sound.swap_remove(index);
        let (at, version) = (snapshot.at, version(&snapshot));
        let nearest = Nearest {
            snapshot: snapshot.name.to_string(),
            at,
            version: version.map(|version| version.0),
            wanted_at,
            wanted_version: wanted_version.map(|version| version.0),
        };
        Ok(Some(Meant { snapshot, nearest: Some(nearest) }))
    }

    /// Nothing for the present.
    fn wanted(&self, name: &MachineName, moment: Moment) -> Result<Option<Wanted>, Error> {
        let now = clock::now();
        let value = |what: String| Err(Error::Value { key: "snapshot", what });
        match moment {
            Moment::Now => Ok(None),
            Moment::Ago(age) => Ok(Some(Wanted::Time(now.minus(age)))),
            Moment::At(time) if time > now => value(format!("{time} is still to come")),
            Moment::At(time) => Ok(Some(Wanted::Time(time))),
            Moment::Version(version) => {
                let host = self.host(name);
                let Some(info) = host.and_then(|host| self.inner.history.host(&host)) else {
                    return value(format!("{name} is no host, and has no versions; name a time"));
                };
                if version.0 == 0 || version > info.head {
                    let name = name.clone();
                    return Err(Error::UnknownVersion { name, version, newest: info.head });
                }
                Ok(Some(Wanted::Version(version)))
            }
        }
    }

    /// Both the time and the version of a moment, as far as history has them. Blocks.
    fn place(
        &self,
        host: Option<&HostId>,
        wanted: Wanted,
    ) -> Result<(Option<Time>, Option<Version>), Error> {
        let history = &self.inner.history;
        Ok(match (wanted, host) {
            (Wanted::Time(time), None) => (Some(time), None),
            (Wanted::Time(time), Some(host)) => (Some(time), history.version_at(host, time)?),
            (Wanted::Version(version), None) => (None, Some(version)),
            (Wanted::Version(version), Some(host)) => {
                (history.entry(host, version)?.map(|entry| entry.at), Some(version))
            }
        })
    }
}

pub(super) fn version(snapshot: &Snapshot) -> Option<Version> {
    snapshot.labels.get(VERSION)?.parse().ok().map(Version)
}

/// A snapshot as this compares it.
#[derive(Debug, Clone, Copy)]
struct Point {
    at: Time,
    version: Option<Version>,
    /// The version was seen in the twin, which followed its host.
    is_reached: bool,
}

impl Point {
    fn of(snapshot: &Snapshot) -> Self {
        let is_reached = snapshot.labels.contains_key(REACHED);
        Self { at: snapshot.at, version: version(snapshot), is_reached }
    }
}

/// The place of the newest that is not after what is wanted.
fn newest_before(points: &[Point], wanted: Wanted) -> Option<usize> {
    let fits = |point: &Point| match wanted {
        Wanted::Time(time) => point.at <= time,
        Wanted::Version(wanted) => point.version.is_some_and(|version| version <= wanted),
    };
    let fitting = points.iter().enumerate().filter(|(_, point)| fits(point));
    fitting.max_by_key(|(_, point)| point.at).map(|(index, _)| index)
}

/// The place of the first that was taken later and has just the version that is wanted, where the
/// one before has an older one: a twin that follows is saved before it is changed, so that is how
/// it was at the moment.
fn still_going_on(
    points: &[Point],
    before: Option<usize>,
    wanted: Option<Version>,
) -> Option<usize> {
    let before = before.and_then(|before| points.get(before));
    if before.is_some_and(|before| before.version == wanted) {
        return None;
    }
    let fits = |point: &Point| {
        let is_later = before.is_none_or(|before| point.at > before.at);
        is_later && point.is_reached && wanted.is_some() && point.version == wanted
    };
    let fitting = points.iter().enumerate().filter(|(_, point)| fits(point));
    fitting.min_by_key(|(_, point)| point.at).map(|(index, _)| index)
}

fn oldest(points: &[Point]) -> Option<usize> {
    let all = points.iter().enumerate();
    all.min_by_key(|(_, point)| point.at).map(|(index, _)| index)
}

/// The version that is still to be led to from a snapshot.
pub(super) fn rest(nearest: &Nearest) -> Option<Version> {
    nearest.wanted_version.filter(|wanted| nearest.version != Some(*wanted)).map(Version)
}

/// Which snapshot a moment became, for a run's log.
pub(super) fn told(nearest: &Nearest) -> String {
    let Nearest { snapshot, at, version, wanted_at, wanted_version } = nearest;
    let of = |version: Option<u64>| version.map(|version| format!(", version @{version}"));
    let mut text = format!("The nearest snapshot is {snapshot}");
    match (wanted_at, version, wanted_version) {
        (Some(wanted), ..) if wanted > at => {
            text += &format!(", {} earlier", in_words(wanted.since(*at)));
        }
        // One that was taken later, while its version was still going on, is of that moment.
        (Some(wanted), have, of) if wanted < at && (have.is_none() || have != of) => {
            text += &format!(", {} later", in_words(at.since(*wanted)));
        }
        _ => {}
    }
    text += &of(*version).unwrap_or_default();
    match (version, wanted_version) {
        (Some(have), Some(wanted)) if wanted == have => {
            text += ", which is the one asked for";
        }
        (Some(have), Some(wanted)) => {
            let (first, last) = (have.min(wanted) + 1, have.max(wanted));
            let between = if first == *last { String::new() } else { format!("s @{first} to") };
            text += &format!("; between them: version{between} @{last}");
        }
        _ => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(points: &[(i64, Option<u64>)], wanted: Wanted, expected: Option<usize>) {
        let point = |(at, version): &(i64, Option<u64>)| Point {
            at: Time(*at),
            version: version.map(Version),
            is_reached: false,
        };
        let points: Vec<Point> = points.iter().map(point).collect();
        assert_eq!(newest_before(&points, wanted), expected, "{wanted:?}");
    }

    #[test]
    fn what_was_saved_before_a_change_is_how_it_was_until_then() {
        let point = |at, version, is_reached| Point {
            at: Time(at),
            version: Some(Version(version)),
            is_reached,
        };
        let saved = [point(10, 3, true), point(30, 5, true), point(40, 5, true)];
        // At 20, version 5 was going on, and at 10 it had not begun.
        assert_eq!(still_going_on(&saved, Some(0), Some(Version(5))), Some(1));
        assert_eq!(still_going_on(&saved, None, Some(Version(3))), Some(0));
        assert_eq!(still_going_on(&saved, Some(0), Some(Version(3))), None);
        assert_eq!(still_going_on(&saved, Some(0), Some(Version(4))), None);
        assert_eq!(still_going_on(&saved, Some(0), None), None);
        // Of one that does not follow, only the time is known.
        let unseen = [point(10, 3, false), point(30, 5, false)];
        assert_eq!(still_going_on(&unseen, Some(0), Some(Version(5))), None);
    }

    #[test]
    fn the_newest_that_is_not_after() {
        let saved = [(10, Some(3)), (30, Some(5)), (20, Some(5)), (40, None)];
        check(&saved, Wanted::Time(Time(9)), None);
        check(&saved, Wanted::Time(Time(10)), Some(0));
        check(&saved, Wanted::Time(Time(29)), Some(2));
        check(&saved, Wanted::Time(Time(99)), Some(3));
        check(&saved, Wanted::Version(Version(2)), None);
        check(&saved, Wanted::Version(Version(4)), Some(0));
        check(&saved, Wanted::Version(Version(9)), Some(1));
        check(&[], Wanted::Time(Time(1)), None);
    }

    #[test]
    fn only_another_version_is_still_to_be_led_to() {
        let check = |version, wanted_version, expected: Option<u64>| {
            let nearest = Nearest {
                snapshot: "a".into(),
                at: Time(0),
                version,
                wanted_at: None,
                wanted_version,
            };
            assert_eq!(rest(&nearest), expected.map(Version));
        };
        check(Some(3), Some(5), Some(5));
        check(Some(5), Some(3), Some(3));
        check(None, Some(3), Some(3));
        check(Some(3), Some(3), None);
        check(Some(3), None, None);
    }

    #[test]
    fn how_far_it_is_from_what_was_asked_for() {
        let check = |wanted_s: i64, version, wanted_version, expected: &str| {
            let nearest = Nearest {
                snapshot: "a".into(),
                at: Time::from_seconds(100),
                version,
                wanted_at: Some(Time::from_seconds(wanted_s)),
                wanted_version,
            };
            assert_eq!(told(&nearest), format!("The nearest snapshot is a{expected}"));
        };
        check(160, Some(3), Some(3), ", 60 s earlier, version @3, which is the one asked for");
        check(
            4000,
            Some(3),
            Some(5),
            ", 65 min earlier, version @3; between them: versions @4 to @5",
        );
        check(101, Some(3), Some(4), ", 1 s earlier, version @3; between them: version @4");
        check(40, Some(5), Some(3), ", 60 s later, version @5; between them: versions @4 to @5");
        check(100, None, None, "");
        // Its version was still going on.
        check(50, Some(3), Some(3), ", version @3, which is the one asked for");
    }
}
