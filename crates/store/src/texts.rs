//! Texts with a shorter form: times and hexadecimal hashes. Only what comes back letter for
//! letter is taken.

const DAY_MICROS: i64 = 86_400_000_000;

/// Years 0000 to 9999.
const TIMES: std::ops::RangeInclusive<i64> = -719_528 * DAY_MICROS..=2_932_897 * DAY_MICROS - 1;

/// The microseconds since 1970 of a text like `2026-11-20T09:00:00.123456Z`, when it is what
/// [`time_to_text`] writes.
pub(crate) fn time_from_text(text: &str) -> Option<i64> {
    let text: &[u8; 27] = text.as_bytes().try_into().ok()?;
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1, b'T', clock @ .., b'Z'] = text else {
        return None;
    };
    let [h0, h1, b':', n0, n1, b':', s0, s1, b'.', micros @ ..] = clock else { return None };
    let (year, month, day) =
        (number(&[*y0, *y1, *y2, *y3])?, number(&[*m0, *m1])?, number(&[*d0, *d1])?);
    let (hour, minute, second) = (number(&[*h0, *h1])?, number(&[*n0, *n1])?, number(&[*s0, *s1])?);
    let days = days_from_civil(year, month, day);
    if hour > 23 || minute > 59 || second > 59 || civil_from_days(days) != (year, month, day) {
        return None;
    }
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(seconds * 1_000_000 + number(micros)?)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0'))
    })
}

pub(crate) fn time_to_text(micros: i64) -> Option<String> {
    if !TIMES.contains(&micros) {
        return None;
    }
    let (days, rest) = (micros.div_euclid(DAY_MICROS), micros.rem_euclid(DAY_MICROS));
    let (year, month, day) = civil_from_days(days);
    let seconds = rest / 1_000_000;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = rest % 1_000_000;
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"))
}

/// Days since 1970-01-01 in the Gregorian calendar, after Howard Hinnant's algorithm.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

/// The bytes of an even number, at least sixteen, of lower-case hexadecimal digits.
pub(crate) fn bytes_from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() < 16 {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

pub(crate) fn bytes_to_hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_comes_back_is_taken() {
        assert_eq!(time_from_text("2026-11-20T09:00:00.123456Z"), Some(1_795_165_200_123_456));
        assert_eq!(time_from_text("1970-01-01T00:00:00.000000Z"), Some(0));
        for text in [
            "2026-11-20T09:00:00.123Z",
            "2026-02-30T09:00:00.123456Z",
            "2026-11-20T09:00:60.123456Z",
            "2026-11-20t09:00:00.123456Z",
            "2026-11-20T+9:00:00.123456Z",
            "-026-11-20T09:00:00.123456Z",
            "2026-11-20T09:00:00.12345éZ",
        ] {
            assert_eq!(time_from_text(text), None, "{text}");
        }
        assert_eq!(bytes_from_hex("00ff00ff00ff00ff").unwrap().len(), 8);
        assert_eq!(bytes_from_hex("00FF00ff00ff00ff"), None);
        assert_eq!(bytes_from_hex("00ff00ff00ff00ff0"), None);
    }

    proptest! {
        #[test]
        fn times_come_back(micros in TIMES) {
            let text = time_to_text(micros).unwrap();
            prop_assert_eq!(time_from_text(&text), Some(micros));
            let json = serde_json_text(micros);
            prop_assert!(json.is_none_or(|json| json == text));
        }

        #[test]
        fn hex_comes_back(text in "[0-9a-f]{16,70}") {
            if let Some(bytes) = bytes_from_hex(&text) {
                prop_assert_eq!(bytes_to_hex(&bytes), text);
            }
        }
    }

    /// As the model writes it into an item.
    fn serde_json_text(micros: i64) -> Option<String> {
        use model::entity::{Entity, Unit};
        let unit = Unit { id: "a".into(), since: Some(model::Time(micros)), ..Unit::default() };
        let (_, fields) = unit.to_item();
        fields.get("since").and_then(|value| value.as_text().map(str::to_owned))
    }
}
