//! The wall clock. A saved moment goes on with the time it was saved at.

use super::{Error, is_live};
use model::Time;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::path::Path;
use std::time::Duration;

/// Not worth a leap: a message may be on its way for that long.
const NEAR: Duration = Duration::from_millis(2);
/// Between setting the clock and looking at it.
const AFTER: Duration = Duration::from_secs(1);

pub(super) fn set(root: &Path, now: Time) -> Result<(), Error> {
    if !is_live(root) || apart(read(), now) <= NEAR {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: now.0.div_euclid(1_000_000),
        tv_nsec: now.0.rem_euclid(1_000_000) * 1000,
    };
    clock_settime(ClockId::Realtime, time).map_err(Error::kernel("set the clock"))?;
    let seen = read();
    if apart(seen, now) > AFTER {
        return Err(Error::Unchanged(seen.to_string()));
    }
    Ok(())
}

fn read() -> Time {
    let time = clock_gettime(ClockId::Realtime);
    Time(time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1000))
}

fn apart(one: Time, other: Time) -> Duration {
    one.since(other).max(other.since(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_right_is_left_alone_and_one_of_a_tree_too() {
        // Unprivileged or not: nothing is set.
        set(Path::new("/"), read()).unwrap();
        let before = read();
        set(Path::new("/nowhere"), Time(0)).unwrap();
        assert!(apart(before, read()) < Duration::from_secs(60));
        assert_eq!(apart(Time(5), Time(2)), Duration::from_micros(3));
        assert_eq!(apart(Time(2), Time(5)), Duration::from_micros(3));
    }
}
