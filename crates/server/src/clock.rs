//! The one place that asks what time it is.

use model::Time;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) fn now() -> Time {
    #[expect(clippy::disallowed_methods, reason = "this is the crate's clock")]
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Time(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}

/// The same as files have it.
pub(crate) fn file_time() -> SystemTime {
    let since_epoch = u64::try_from(now().0).unwrap_or_default();
    UNIX_EPOCH + Duration::from_micros(since_epoch)
}
