//! Times as the documents and sessions have them: `DD-MM-YYYY: HH:MM:SS`, of UTC. Pure.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use model::Time;

const FORM: &str = "%d-%m-%Y: %H:%M:%S";

/// To the second; what is less is left out. A time that no calendar has is its nearest one.
#[must_use]
pub fn write(time: Time) -> String {
    let last = Timestamp::MAX.as_second();
    let seconds = time.0.div_euclid(1_000_000).clamp(0, last);
    let timestamp = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    TimeZone::UTC.to_datetime(timestamp).strftime(FORM).to_string()
}

/// Nothing for what is not such a time.
#[must_use]
pub fn read(text: &str) -> Option<Time> {
    let datetime = DateTime::strptime(FORM, text).ok()?;
    let timestamp = TimeZone::UTC.to_timestamp(datetime).ok()?;
    // What is read leniently would not be written so.
    let time = Time::from_seconds(timestamp.as_second());
    (write(time) == text).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_reads_like_the_application_has_it() {
        let time = read("01-07-2024: 12:34:00").unwrap();
        assert_eq!(time.to_string(), "2024-07-01T12:34:00.000Z");
        assert_eq!(write(time), "01-07-2024: 12:34:00");
        assert_eq!(
            write(time.plus(std::time::Duration::from_millis(1999))),
            "01-07-2024: 12:34:01"
        );
    }

    #[test]
    fn what_is_no_such_time_is_none() {
        for text in [
            "",
            "1-7-2024: 12:34:00",
            "2024-07-01: 12:34:00",
            "31-02-2024: 12:34:00",
            "01-07-2024 12:34:00",
            "01-07-2024: 12:34",
            "01-07-2024: 25:00:00",
            "01-07-2024: 12:34:00 ",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(write(Time(i64::MIN)), "01-01-1970: 00:00:00");
        assert!(write(Time(i64::MAX)).ends_with("9999: 22:00:00"), "{}", write(Time(i64::MAX)));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(seconds in 0i64..=250_000_000_000) {
            let time = Time::from_seconds(seconds);
            prop_assert_eq!(read(&write(time)), Some(time));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            if let Some(time) = read(&text) {
                prop_assert_eq!(write(time), text);
            }
        }
    }
}
