//! How answers look to one reader: colours, time zone, and what time it is.
//!
//! Renderers take a [`View`] and nothing else of the world, so the same answer seen the same
//! way gives the same text.

use jiff::tz::TimeZone;
use model::Time;
use model::terminal::plain;
use std::io::IsTerminal;
use std::time::Duration;

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    None,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

#[derive(Debug, Clone)]
pub(crate) struct View {
    color: bool,
    /// UTC when the text is for a program or was asked for so.
    zone: TimeZone,
    pub(crate) now: Time,
}

/// The one clock of this program.
pub(crate) fn clock() -> Time {
    Time(jiff::Timestamp::now().as_microsecond())
}

impl View {
    /// The view of whoever reads standard output.
    pub(crate) fn of_stdout(color: Color, utc: bool, no_color: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !no_color,
        };
        let zone = if utc || !terminal { TimeZone::UTC } else { TimeZone::system() };
        Self { color, zone, now: clock() }
    }

    #[cfg(test)]
    pub(crate) fn of_tests() -> Self {
        // 2026-11-20T09:15:00Z.
        let now = Time::from_seconds(1_795_166_100);
        Self { color: false, zone: TimeZone::UTC, now }
    }

    #[cfg(test)]
    pub(crate) fn colored(self) -> Self {
        Self { color: true, ..self }
    }

    #[cfg(test)]
    pub(crate) fn in_zone(self, zone: TimeZone) -> Self {
        Self { zone, ..self }
    }

    pub(crate) fn color(&self) -> bool {
        self.color
    }

    /// The same view, later.
    pub(crate) fn at(&self, now: Time) -> Self {
        Self { now, ..self.clone() }
    }

    /// Text from outside, made plain and then coloured.
    pub(crate) fn paint(&self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::None => return plain(text).into_owned(),
            Paint::Bold => 1,
            Paint::Dim => 2,
            Paint::Red => 31,
            Paint::Green => 32,
            Paint::Yellow => 33,
            Paint::Cyan => 36,
        };
        let text = plain(text);
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into_owned() }
    }

    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint(Paint::Dim, text)
    }

    /// A time to the second: RFC 3339 in UTC, shorter in the reader's own zone.
    pub(crate) fn time(&self, time: Time) -> String {
        let Ok(stamp) = jiff::Timestamp::from_microsecond(time.0) else { return time.to_string() };
        if self.zone == TimeZone::UTC {
            return stamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        }
        stamp.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// `12 min ago`.
    pub(crate) fn age(&self, time: Time) -> String {
        let ahead = time.since(self.now);
        if ahead >= Duration::from_secs(1) {
            return format!("in {}", duration(ahead));
        }
        format!("{} ago", duration(self.now.since(time)))
    }
}

pub(crate) use model::in_words as duration;

/// `1.2 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut divisor: u64 = 1;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"B");
    while bytes / divisor >= 1024 {
        let Some(next) = units.next() else { break };
        divisor <<= 10;
        unit = next;
    }
    let tenths = u128::from(bytes) * 10 / u128::from(divisor);
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if divisor == 1 || whole >= 100 {
        format!("{whole} {unit}")
    } else {
        format!("{whole}.{tenth} {unit}")
    }
}

/// A number of bytes as a fact holds it.
pub(crate) fn signed_bytes(number: i64) -> String {
    u64::try_from(number).map_or_else(|_negative| number.to_string(), bytes)
}

/// `1 unit`, `3 units`, `2 processes`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {}", plural(noun)) }
}

pub(crate) fn plural(noun: &str) -> String {
    if let Some(stem) = noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u']))
    {
        format!("{stem}ies")
    } else if noun.ends_with('s') {
        format!("{noun}es")
    } else {
        format!("{noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ages() {
        let view = View::of_tests();
        let then = Time::from_seconds(1_795_165_200);
        assert_eq!(view.time(then), "2026-11-20T09:00:00Z");
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(view.clone().in_zone(zone).time(then), "2026-11-20 11:00:00");
        assert_eq!(view.age(then), "15 min ago");
        assert_eq!(view.age(view.now), "0 s ago");
        assert_eq!(view.age(view.now.plus(Duration::from_secs(90))), "in 90 s");
        assert_eq!(view.age(Time(0)), "20777 days ago");
        assert_eq!(view.time(Time(i64::MAX)), format!("{}us", i64::MAX));
    }

    #[test]
    fn numbers() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(250 << 30), "250 GiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
        assert_eq!(signed_bytes(-1), "-1");
        assert_eq!(
            [count(1, "unit"), count(2, "process"), count(3, "dependency")].join(" "),
            "1 unit 2 processes 3 dependencies"
        );
        assert_eq!(plural("key"), "keys");
    }

    #[test]
    fn colour_goes_around_plain_text() {
        let view = View::of_tests().colored();
        assert_eq!(view.paint(Paint::Red, "a\x1b[0m"), "\x1b[31ma\\x1b[0m\x1b[0m");
        assert_eq!(view.paint(Paint::None, "a\n"), "a\\n");
    }
}
