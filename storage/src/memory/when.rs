//! The time that a question names: "last week", "in May 2023", "on 8 June", "yesterday", "上个月".
//!
//! Used to prefer memories, never to leave one out: people are often wrong about dates, and a thing
//! may be told weeks after it happened. Times are taken in UTC.

use std::ops::Range;

const DAY_MS: u64 = 86_400_000;
/// Bytes of a question that are looked at.
const TEXT_BYTES_MAX: usize = 4 << 10;

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// Days since 1970-01-01 of a date of the Gregorian calendar (after H. Hinnant, "chrono-compatible
/// low-level date algorithms"): years begin in March, so that the leap day is the last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day of a day since 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn month_range(year: i64, month: i64) -> Range<i64> {
    let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    days(year, month, 1)..days(next_year, next_month, 1)
}

/// The last month of that number that has begun by `today`.
fn latest_year(month: i64, today: i64) -> i64 {
    let (year, now, _) = date(today);
    if month <= now { year } else { year - 1 }
}

/// The time that `text` names, seen from `now_ms`, as Unix milliseconds.
pub(crate) fn when(text: &str, now_ms: u64) -> Option<Range<u64>> {
    let text = text[..text.floor_char_boundary(TEXT_BYTES_MAX.min(text.len()))].to_lowercase();
    // Beyond the calendar's use; `u64::MAX` stands for "no bound" elsewhere.
    let today = i64::try_from(now_ms / DAY_MS).ok().filter(|today| *today < 4_000_000)?;
    let found = relative(&text, today).or_else(|| absolute(&text, today))?;
    let ms = |day: i64| u64::try_from(day).unwrap_or(0) * DAY_MS;
    Some(ms(found.start)..ms(found.end))
}

/// Phrases that count from today; days of the week begin on Monday.
fn relative(text: &str, today: i64) -> Option<Range<i64>> {
    let has = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    let week = today - (today + 3).rem_euclid(7);
    let (year, month, _) = date(today);
    let last_month = if month == 1 { (year - 1, 12) } else { (year, month - 1) };
    if has(&["day before yesterday", "前天"]) {
        Some(today - 2..today - 1)
    } else if has(&["yesterday", "last night", "昨天", "昨晚"]) {
        Some(today - 1..today)
    } else if has(&["today", "this morning", "今天", "今早"]) {
        Some(today..today + 1)
    } else if has(&["last week", "previous week", "上周", "上星期", "上个星期"]) {
        Some(week - 7..week)
    } else if has(&["this week", "本周", "这周", "这个星期"]) {
        Some(week..week + 7)
    } else if has(&["last month", "previous month", "上个月", "上月"]) {
        Some(month_range(last_month.0, last_month.1))
    } else if has(&["this month", "本月", "这个月"]) {
        Some(month_range(year, month))
    } else if has(&["last year", "previous year", "去年"]) {
        Some(days(year - 1, 1, 1)..days(year, 1, 1))
    } else if has(&["this year", "今年"]) {
        Some(days(year, 1, 1)..days(year + 1, 1, 1))
    } else {
        None
    }
}

/// Dates, months and years: `2023-05-08`, `8 May 2023`, `May 8`, `in May 2023`, `in 2023`, `2023年5月8日`.
fn absolute(text: &str, today: i64) -> Option<Range<i64>> {
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '-').filter(|w| !w.is_empty()).collect();
    for (at, word) in words.iter().enumerate() {
        if let Some(day) = iso(word) {
            return Some(day..day + 1);
        }
        let Some(month) = month(word) else { continue };
        let near = |offset: isize| at.checked_add_signed(offset).and_then(|at| words.get(at)).copied();
        let year_after = |offset: isize| near(offset).and_then(year);
        if let Some(day) = near(-1).and_then(day_of_month) {
            let year = year_after(1).unwrap_or_else(|| latest_year(month, today));
            return Some(days(year, month, day)..days(year, month, day) + 1);
        }
        if let Some(day) = near(1).and_then(day_of_month) {
            let year = year_after(2).unwrap_or_else(|| latest_year(month, today));
            return Some(days(year, month, day)..days(year, month, day) + 1);
        }
        // "may" is a verb far more often than a month.
        let marked = near(-1).is_some_and(|word| matches!(word, "in" | "since" | "during" | "of"));
        if let Some(year) = year_after(1) {
            return Some(month_range(year, month));
        }
        if *word != "may" || marked {
            return Some(month_range(latest_year(month, today), month));
        }
    }
    chinese(text, today).or_else(|| {
        let pairs = words.windows(2);
        let mut years =
            pairs.filter(|pair| matches!(pair[0], "in" | "during" | "since")).filter_map(|pair| year(pair[1]));
        years.next().map(|year| days(year, 1, 1)..days(year + 1, 1, 1))
    })
}

fn iso(word: &str) -> Option<i64> {
    let mut parts = word.split('-');
    let (year, month, day) = (year(parts.next()?)?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let valid = parts.next().is_none() && (1..=12).contains(&month) && (1..=31).contains(&day);
    valid.then(|| days(year, month, day))
}

fn month(word: &str) -> Option<i64> {
    let at = MONTHS.iter().position(|month| *month == word || (word.len() == 3 && month.starts_with(word)))?;
    i64::try_from(at + 1).ok()
}

fn year(word: &str) -> Option<i64> {
    let year: i64 = word.parse().ok()?;
    (word.len() == 4 && (1970..=2999).contains(&year)).then_some(year)
}

fn day_of_month(word: &str) -> Option<i64> {
    let digits = ["st", "nd", "rd", "th"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
    let day: i64 = digits.parse().ok()?;
    (digits.len() <= 2 && (1..=31).contains(&day)).then_some(day)
}

/// `2023年`, `5月`, `2023年5月`, `5月8日`, `2023年5月8日`.
fn chinese(text: &str, today: i64) -> Option<Range<i64>> {
    let before = |mark: char| {
        let at = text.find(mark)?;
        let digits: String = text[..at].chars().rev().take_while(char::is_ascii_digit).collect();
        digits.chars().rev().collect::<String>().parse::<i64>().ok()
    };
    let year = before('年').filter(|year| (1970..=2999).contains(year));
    let Some(month) = before('月').filter(|month| (1..=12).contains(month)) else {
        return year.map(|year| days(year, 1, 1)..days(year + 1, 1, 1));
    };
    let year = year.unwrap_or_else(|| latest_year(month, today));
    match before('日').or_else(|| before('号')).filter(|day| (1..=31).contains(day)) {
        Some(day) => Some(days(year, month, day)..days(year, month, day) + 1),
        None => Some(month_range(year, month)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Thursday, 15 June 2023, noon.
    const NOW_MS: u64 = 1_686_830_400_000;

    fn check(text: &str, from: (i64, i64, i64), to: (i64, i64, i64)) {
        let ms = |(y, m, d)| days(y, m, d) as u64 * DAY_MS;
        assert_eq!(when(text, NOW_MS), Some(ms(from)..ms(to)), "{text:?}");
    }

    #[test]
    fn phrases_that_count_from_today() {
        check("what did I eat yesterday?", (2023, 6, 14), (2023, 6, 15));
        check("前天我说了什么", (2023, 6, 13), (2023, 6, 14));
        check("who called last week", (2023, 6, 5), (2023, 6, 12));
        check("上个月的账单", (2023, 5, 1), (2023, 6, 1));
        check("our plans of last year", (2022, 1, 1), (2023, 1, 1));
    }

    #[test]
    fn dates_months_and_years() {
        check("the meeting on 2023-05-08", (2023, 5, 8), (2023, 5, 9));
        check("On 8 May, 2023 we met", (2023, 5, 8), (2023, 5, 9));
        check("what was on May 8th?", (2023, 5, 8), (2023, 5, 9));
        check("the trip in August", (2022, 8, 1), (2022, 9, 1));
        check("in december 2021", (2021, 12, 1), (2022, 1, 1));
        check("what happened in 2020?", (2020, 1, 1), (2021, 1, 1));
        check("2023年5月8日的会议", (2023, 5, 8), (2023, 5, 9));
        check("5月的会议", (2023, 5, 1), (2023, 6, 1));
    }

    #[test]
    fn a_question_without_a_time_names_none() {
        for text in ["", "who may come in?", "where is my key", "call 555-1234", "it costs 2023 dollars"] {
            assert_eq!(when(text, NOW_MS), None, "{text:?}");
        }
        assert_eq!(when("yesterday", u64::MAX), None);
    }

    proptest! {
        #[test]
        fn days_and_dates_are_inverse(day in -1_000_000i64..4_000_000) {
            let (year, month, of_month) = date(day);
            prop_assert_eq!(days(year, month, of_month), day);
            prop_assert!((1..=12).contains(&month) && (1..=31).contains(&of_month));
        }

        #[test]
        fn any_text_gives_an_ordered_range_or_none(
            text in "(in |on )?(may|[0-9]{1,4}|june|年|月|日|-|yesterday| ){0,12}|\\PC{0,60}", now in any::<u64>(),
        ) {
            if let Some(range) = when(&text, now) {
                prop_assert!(range.start <= range.end);
            }
        }
    }
}
