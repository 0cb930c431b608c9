//! Calendar texts of Unix times. Pure arithmetic: the time itself comes from the caller.

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The form of the HTTP `Date` header: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn http_date(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[(month - 1) as usize],
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// RFC 3339 with milliseconds: `1994-11-06T08:49:37.000Z`.
pub fn rfc3339(unix_ms: u64) -> String {
    let (second, milli) = (unix_ms / 1_000, unix_ms % 1_000);
    let (year, month, day) = civil(second / 86_400);
    let second = second % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{milli:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// The day of a Unix time: `1994-11-06`.
pub fn day(unix_ms: u64) -> String {
    let (year, month, day) = civil(unix_ms / 86_400_000);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The Unix time in milliseconds at which a year, month or day begins: `1994`, `1994-11` or `1994-11-06`. `None` for
/// anything else, and before 1970.
pub fn since(text: &str) -> Option<u64> {
    let rest = match text.len() {
        4 => "-01-01T00:00:00Z",
        7 => "-01T00:00:00Z",
        10 => "T00:00:00Z",
        _ => return None,
    };
    parse_timestamp(&format!("{text}{rest}"))?.checked_mul(1_000)
}

/// The Unix time in seconds of a date that starts `2026-01-01T00:00:00` (or with a space for the `T`), with an
/// optional fraction and then `Z`, `+08:00` or ` +0800`. `None` for anything else.
pub fn parse_timestamp(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0i64, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
    };
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| bytes.get(*at) != Some(mark)) || !matches!(bytes.get(10), Some(b'T' | b' ')) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = text.get(19..)?;
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    let offset_s = if rest == "Z" {
        0
    } else {
        let zone = rest.strip_prefix(' ').unwrap_or(rest).as_bytes();
        let (sign, digits) = match zone.split_first()? {
            (b'+', digits) => (1, digits),
            (b'-', digits) => (-1, digits),
            _ => return None,
        };
        let digits: Vec<i64> = digits
            .iter()
            .take_while(|byte| byte.is_ascii_digit() || **byte == b':')
            .filter(|byte| **byte != b':')
            .map(|digit| i64::from(digit - b'0'))
            .collect();
        let [h1, h2, m1, m2] = digits[..] else { return None };
        sign * ((h1 * 10 + h2) * 3_600 + (m1 * 10 + m2) * 60)
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset_s;
    u64::try_from(seconds).ok()
}

/// The inverse of [`civil`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Days since 1970-01-01 to (year, month, day): years are counted from March, so that the leap day is last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_year_a_month_and_a_day_begin_at_midnight() {
        assert_eq!(since("1970"), Some(0));
        assert_eq!(since("1994-11").map(day).as_deref(), Some("1994-11-01"));
        assert_eq!(since("2024-02-29"), Some(1_709_164_800_000));
        assert_eq!(day(1_709_164_800_000 + 86_399_999), "2024-02-29");
        for wrong in ["", "19", "1994-13", "1994-11-", "1969-12-31", "199x", "1994-1é"] {
            assert_eq!(since(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn timestamps_read_back() {
        for seconds in [0, 784_111_777, 951_782_400, 1_767_225_600, 4_107_542_400] {
            assert_eq!(parse_timestamp(&rfc3339(seconds * 1_000)), Some(seconds));
        }
        assert_eq!(parse_timestamp("2026-01-01T08:00:00+08:00"), Some(1_767_225_600));
        assert_eq!(parse_timestamp("2026-01-01 08:00:00.052290112 +0800 CST m=+3612.1"), Some(1_767_225_600));
        for bad in [
            "",
            "2026-01-01",
            "2026-13-01T00:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00+1",
            "é026-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_timestamp(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates_of_known_days() {
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(http_date(4_107_542_400), "Mon, 01 Mar 2100 00:00:00 GMT");
        assert_eq!(rfc3339(784_111_777_005), "1994-11-06T08:49:37.005Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        let _ = (http_date(u64::MAX / 1_000), rfc3339(u64::MAX));
    }
}
