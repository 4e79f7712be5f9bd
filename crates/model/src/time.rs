//! Points in time, and the ways people name one.

use crate::Version;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::time::Duration;

/// Microseconds since 1970-01-01T00:00:00Z. RFC 3339 in text, a number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub i64);

impl Time {
    /// A time from whole seconds since the epoch, as the kernel and systemd often give it.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// How long after `earlier` this is; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Whether `duration` has gone by since `earlier`. What is yet to come is of a clock that was
    /// put back since, and counts as long ago.
    #[must_use]
    pub fn has_passed(self, duration: Duration, earlier: Self) -> bool {
        earlier > self || self.since(earlier) >= duration
    }

    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Days since the epoch; a bucket of history.
    #[must_use]
    pub fn day(self) -> i64 {
        self.0.div_euclid(86_400_000_000)
    }

    /// Hours since the epoch.
    #[must_use]
    pub fn hour(self) -> i64 {
        self.0.div_euclid(3_600_000_000)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_microsecond(self.0) {
            // Milliseconds are what people can use; the wire keeps the rest.
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl std::str::FromStr for Time {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        // People write `2026-11-20T09:00Z` and `2026-11-20`, too; all of it is UTC unless said.
        let padded;
        let text = match text.len() {
            10 => {
                padded = format!("{text}T00:00:00Z");
                &padded
            }
            _ => text,
        };
        text.parse::<Timestamp>()
            .map(|time| Self(time.as_microsecond()))
            .map_err(|_jiff| MomentError(text.chars().take(80).collect()))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match Timestamp::from_microsecond(self.0) {
            Ok(time) if serializer.is_human_readable() => {
                serializer.collect_str(&format_args!("{time:.6}"))
            }
            _ => serializer.serialize_i64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(TextOrNumber)
        } else {
            i64::deserialize(deserializer).map(Self)
        }
    }
}

/// Text is what people read and write; a time that no calendar holds stays a number.
struct TextOrNumber;

impl de::Visitor<'_> for TextOrNumber {
    type Value = Time;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time like 2026-11-20T09:00:00Z")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, microseconds: i64) -> Result<Time, E> {
        Ok(Time(microseconds))
    }

    fn visit_u64<E: de::Error>(self, microseconds: u64) -> Result<Time, E> {
        i64::try_from(microseconds).map(Time).map_err(E::custom)
    }
}

/// A moment of a host, as people name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The newest version.
    Now,
    /// So long ago: `-10m`.
    Ago(Duration),
    /// `2026-11-20T09:00Z`.
    At(Time),
    /// `@412` or `412`.
    Version(Version),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a moment: write a time (2026-11-20T09:00Z), an age (-10m, -2h30m, -1d), a version (@412) or now"
)]
pub struct MomentError(String);

impl std::str::FromStr for Moment {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        let unclear = || MomentError(text.chars().take(80).collect());
        if text == "now" {
            return Ok(Self::Now);
        }
        if let Some(age) = text.strip_prefix('-') {
            return parse_age(age).map(Self::Ago).ok_or_else(unclear);
        }
        let digits = text.strip_prefix('@').unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            return digits.parse().map(|v| Self::Version(Version(v))).map_err(|_large| unclear());
        }
        text.parse().map(Self::At).map_err(|_time| unclear())
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::Ago(age) => write!(f, "-{}s", age.as_secs()),
            Self::At(time) => write!(f, "{time}"),
            Self::Version(version) => write!(f, "{version}"),
        }
    }
}

/// `12 min`: in the one unit people would say it in.
#[must_use]
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `90s`, `10m`, `2h30m`, `1d`, `2w`.
fn parse_age(text: &str) -> Option<Duration> {
    let mut seconds: u64 = 0;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit: u64 = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    (number.is_empty() && !text.is_empty()).then_some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let check = |text: &str, expected: Option<Moment>| {
            assert_eq!(text.parse::<Moment>().ok(), expected, "{text}");
        };
        check("now", Some(Moment::Now));
        check("-10m", Some(Moment::Ago(Duration::from_secs(600))));
        check("-2h30m", Some(Moment::Ago(Duration::from_secs(9000))));
        check("@412", Some(Moment::Version(Version(412))));
        check("412", Some(Moment::Version(Version(412))));
        let nine = Moment::At(Time(1_795_165_200_000_000));
        check("2026-11-20T09:00Z", Some(nine));
        check("2026-11-20T09:00:00+00:00", Some(nine));
        check("2026-11-20T10:00:00+01:00", Some(nine));
        check("2026-11-20", Some(Moment::At(Time(1_795_132_800_000_000))));
        for bad in [
            "",
            "-",
            "-10",
            "-5x",
            "@",
            "yesterday",
            "-99999999999999999999s",
            "@99999999999999999999999",
            "2026-13-01",
            "\u{1b}[2J",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn times_print_and_parse() {
        let time = Time(1_795_165_200_123_456);
        assert_eq!(time.to_string(), "2026-11-20T09:00:00.123Z");
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(json, "\"2026-11-20T09:00:00.123456Z\"");
        assert_eq!(serde_json::from_str::<Time>(&json).unwrap(), time);
        assert_eq!(
            rmp_serde::from_slice::<Time>(&rmp_serde::to_vec(&time).unwrap()).unwrap(),
            time
        );
        assert_eq!(Time(i64::MAX).to_string(), format!("{}us", i64::MAX));
        let far = serde_json::to_string(&Time(i64::MIN)).unwrap();
        assert_eq!(serde_json::from_str::<Time>(&far).unwrap(), Time(i64::MIN));
    }
}
