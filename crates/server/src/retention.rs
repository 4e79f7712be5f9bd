//! Lets old history, old runs and old snapshots go, and only by a clock that can be believed.
//!
//! ```text
//! believed ──the clock is far ahead of the time that passed──► doubted
//!    ▲                                                            │
//!    └──────────a day without another leap, or set back───────────┘
//! ```
//!
//! # Invariants
//! - A clock that leaps ahead, while the server runs or while it did not, deletes nothing
//!   until it has stayed there for [`DOUBT`]: long enough for people to set it right.
//! - What was believed last is kept in the history's records, so that a restart forgets no doubt.

use crate::app::App;
use crate::clock;
use model::Time;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two passes.
const EVERY: Duration = Duration::from_secs(3600);

/// A clock may be ahead of the time that passed by so much: machines sleep, and are off.
const LEAP: Duration = Duration::from_secs(86_400);

/// How long a clock that leapt is not believed.
const DOUBT: Duration = Duration::from_secs(86_400);

const COLLECTION: &str = "retention";
const KEY: &str = "clock";

/// What is known of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Clock {
    /// Seen last.
    at: Time,
    /// For how long it is not believed yet.
    doubt: Duration,
}

impl Clock {
    /// The clock after some time that passed in truth, when it then says `now`.
    fn seen(self, now: Time, passed: Duration) -> Self {
        let expected = self.at.plus(passed);
        let doubt = if now.since(expected) > LEAP {
            DOUBT
        } else if expected.since(now) > LEAP {
            // Set back, to what was right before it leapt.
            Duration::ZERO
        } else {
            self.doubt.saturating_sub(passed)
        };
        Self { at: now, doubt }
    }
}

/// Thins and drops old history, at the start and every hour, until the server stops.
pub(crate) async fn run(app: Arc<App>) {
    let mut last = Instant::now();
    loop {
        let passed = last.elapsed();
        last = Instant::now();
        match app.read(move |app| pass(app, passed)).await {
            Ok(Some(report)) => {
                if report != store::Report::default() {
                    tracing::debug!(?report, "expired");
                }
                let expiring = app.twins.expire();
                if app.shutdown.run_until_cancelled(expiring).await.is_none() {
                    return;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "could not expire old history"
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = app.shutdown.cancelled() => return,
        }
    }
}

/// Nothing where the clock is not believed.
fn pass(app: &App, passed: Duration) -> Result<Option<store::Report>, store::Error> {
    let now = clock::now();
    let records = app.history.records();
    let known: Option<Clock> = records.get(COLLECTION, KEY)?;
    // Of a history without a mark, its newest entry tells when it was last alive.
    let newest = app.history.hosts().into_iter().map(|info| info.head_at).max();
    let before = known.unwrap_or(Clock { at: newest.unwrap_or(now), doubt: Duration::ZERO });
    let seen = before.seen(now, passed);
    records.put(COLLECTION, KEY, &seen)?;
    if seen.doubt > Duration::ZERO {
        tracing::warn!(
            clock = %now,
            last = %before.at,
            hours = seen.doubt.as_secs().div_ceil(3600),
            "the clock is far ahead of the time that passed; old history is kept until it has stayed there"
        );
        return Ok(None);
    }
    app.runs.expire(now);
    app.history.expire(now).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

    #[test]
    fn a_clock_is_believed_while_it_goes_on() {
        let mut clock = Clock { at: Time::from_seconds(1_000_000_000), doubt: Duration::ZERO };
        for _ in 0..100 {
            clock = clock.seen(clock.at.plus(HOUR), HOUR);
            assert_eq!(clock.doubt, Duration::ZERO);
        }
        // Off for a night.
        assert_eq!(clock.seen(clock.at.plus(HOUR * 10), Duration::ZERO).doubt, Duration::ZERO);
    }

    #[test]
    fn a_leap_is_doubted_for_a_day_and_forgiven_when_set_back() {
        let right = Clock { at: Time::from_seconds(1_000_000_000), doubt: Duration::ZERO };
        let leapt = right.seen(right.at.plus(YEARS), HOUR);
        assert_eq!(leapt.doubt, DOUBT);
        let back = leapt.seen(right.at.plus(HOUR * 2), HOUR);
        assert_eq!(back, Clock { at: right.at.plus(HOUR * 2), doubt: Duration::ZERO });
        let mut stays = leapt;
        for hours in (0..24).rev() {
            stays = stays.seen(stays.at.plus(HOUR), HOUR);
            assert_eq!(stays.doubt, HOUR * hours);
        }
        // Another leap begins the doubt anew.
        assert_eq!(stays.seen(stays.at.plus(YEARS), HOUR).doubt, DOUBT);
    }
}
