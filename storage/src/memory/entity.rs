//! Things that a text names, found by rules alone: no model on the way of a write.
//!
//! Names (capitalised words that do not merely start a sentence), dates, numbers, web and mail
//! addresses, mentions and tags, identifiers such as `INV-2024-001`, quoted titles. Each becomes a
//! normal form with its kind, such as `name:alice smith` or `date:2024-03-05`.

use super::words::is_stop_word;
use std::collections::BTreeSet;
use unicode_segmentation::UnicodeSegmentation;

/// Things of one text: bounds the edges that one write makes.
pub(crate) const ENTITIES_MAX: usize = 16;
/// Longest normal form in bytes.
const ENTITY_BYTES_MAX: usize = 128;
/// Words of one name.
const NAME_WORDS_MAX: usize = 4;
/// Shorter numbers are counts and days of which every talk is full.
const NUMBER_DIGITS_MIN: usize = 3;
/// Bytes of a text that are looked at: the rest of a pasted document names too much.
const TEXT_BYTES_MAX: usize = 32 << 10;

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

/// The things a text names, sorted, each once.
pub(crate) fn entities(text: &str) -> Vec<String> {
    let text = head(text, TEXT_BYTES_MAX);
    let mut found = Found::default();
    quoted(text, &mut found);
    let tokens: Vec<&str> = text.split_whitespace().collect();
    for token in &tokens {
        marked(token, &mut found);
    }
    dates(&tokens, &mut found);
    chinese_dates(text, &mut found);
    names(text, &mut found);
    found.set.into_iter().take(ENTITIES_MAX).collect()
}

/// The things a question may be about: those it names, and every word as a name, since questions
/// are often typed in small letters.
pub(crate) fn seeds(text: &str, max: usize) -> Vec<String> {
    let mut seeds = entities(text);
    let text = head(text, TEXT_BYTES_MAX).to_lowercase();
    for word in text.unicode_words() {
        let word = word.strip_suffix("'s").unwrap_or(word);
        let seed = format!("name:{word}");
        if seeds.len() >= max {
            break;
        }
        if word.chars().count() > 1 && !is_stop_word(word) && !seeds.contains(&seed) {
            seeds.push(seed);
        }
    }
    seeds.truncate(max);
    seeds
}

/// The first bytes of a text, cut at a character.
fn head(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max.min(text.len()))]
}

#[derive(Default)]
struct Found {
    set: BTreeSet<String>,
}

impl Found {
    fn add(&mut self, kind: &str, value: &str) {
        let value = value.trim().to_lowercase();
        if !value.is_empty() && value.len() <= ENTITY_BYTES_MAX {
            self.set.insert(format!("{kind}:{value}"));
        }
    }
}

const OPEN_CLOSE: [(char, char); 4] = [('《', '》'), ('「', '」'), ('“', '”'), ('『', '』')];

fn quoted(text: &str, found: &mut Found) {
    for (open, close) in OPEN_CLOSE {
        let mut rest = text;
        while let Some((_, after)) = rest.split_once(open) {
            let Some((title, tail)) = after.split_once(close) else { break };
            if title.chars().count() <= 32 {
                found.add("title", title);
            }
            rest = tail;
        }
    }
}

/// Marks that stand around a word without belonging to it.
fn bare(token: &str) -> &str {
    token.trim_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '@' | '#' | '/' | '_'))
}

/// Addresses, mentions, tags, identifiers and numbers: recognised by their own look.
fn marked(token: &str, found: &mut Found) {
    let token = bare(token);
    let lower = token.to_lowercase();
    if lower.starts_with("http://") || lower.starts_with("https://") || lower.starts_with("www.") {
        return found.add("url", token.trim_end_matches('/'));
    }
    if let Some(name) = token.strip_prefix('@') {
        return found.add("mention", name);
    }
    if let Some(tag) = token.strip_prefix('#') {
        return found.add("tag", tag);
    }
    if let Some((user, host)) = token.split_once('@') {
        if !user.is_empty() && host.contains('.') {
            found.add("mail", token);
        }
        return;
    }
    if iso_date(token).is_some() || day_number(&lower).is_some() || !token.is_ascii() {
        return;
    }
    let digits = token.bytes().filter(u8::is_ascii_digit).count();
    let letters = token.bytes().filter(u8::is_ascii_alphabetic).count();
    if digits > 0
        && letters > 0
        && token.len() >= 3
        && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_/.".contains(&b))
    {
        return found.add("id", token);
    }
    if digits >= NUMBER_DIGITS_MIN && letters == 0 && token.bytes().all(|b| b.is_ascii_digit() || b",.-+/".contains(&b))
    {
        found.add("number", &token.replace([',', '+'], ""));
    }
}

fn iso_date(token: &str) -> Option<String> {
    let mut parts = token.split(['-', '/', '.']);
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || year.len() != 4 {
        return None;
    }
    date(Some(year.parse().ok()?), month.parse().ok()?, day.parse().ok()?)
}

/// `2024-03-05`, or `--03-05` without a year, as in ISO 8601.
fn date(year: Option<u32>, month: u32, day: u32) -> Option<String> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    match year {
        Some(year) if (1000..=2999).contains(&year) => Some(format!("{year:04}-{month:02}-{day:02}")),
        Some(_) => None,
        None => Some(format!("--{month:02}-{day:02}")),
    }
}

fn add_date(found: &mut Found, year: Option<u32>, month: u32, day: u32) {
    if let Some(text) = date(year, month, day) {
        found.add("date", &text);
        if year.is_some() {
            // A birthday is asked for without its year.
            found.add("date", &text[text.len() - 6..].replacen('-', "--", 1));
        }
    }
}

/// `2024-03-05`, `March 5(th), 2024`, `5 March 2024`, `Mar 5`.
fn dates(tokens: &[&str], found: &mut Found) {
    let plain: Vec<String> = tokens.iter().map(|token| bare(token).to_lowercase()).collect();
    for (at, token) in plain.iter().enumerate() {
        if let Some(text) = iso_date(token) {
            let number = |range: std::ops::Range<usize>| text[range].parse().unwrap_or(0);
            add_date(found, Some(number(0..4)), number(5..7), number(8..10));
        }
        let Some(month) = month(token) else { continue };
        let day = |at: Option<usize>| at.and_then(|at| plain.get(at)).and_then(|token| day_number(token));
        let year = |at: usize| plain.get(at).filter(|token| token.len() == 4).and_then(|token| token.parse().ok());
        if let Some(day) = day(at.checked_add(1)) {
            add_date(found, year(at + 2), month, day);
        } else if let Some(day) = day(at.checked_sub(1)) {
            add_date(found, year(at + 1), month, day);
        }
    }
}

fn month(token: &str) -> Option<u32> {
    let at = MONTHS.iter().position(|month| *month == token || (token.len() == 3 && month.starts_with(token)))?;
    u32::try_from(at + 1).ok()
}

fn day_number(token: &str) -> Option<u32> {
    let digits = ["st", "nd", "rd", "th"].iter().find_map(|end| token.strip_suffix(end)).unwrap_or(token);
    if digits.is_empty() || digits.len() > 2 { None } else { digits.parse().ok() }
}

/// `2024年3月5日` and `3月5日`.
fn chinese_dates(text: &str, found: &mut Found) {
    for (at, _) in text.match_indices('月') {
        let before = trailing_number(&text[..at]);
        let after = leading_number(&text[at + '月'.len_utf8()..]);
        let (Some((month, start)), Some(day)) = (before, after) else { continue };
        let year = text[..start].strip_suffix('年').and_then(trailing_number).map(|(year, _)| year);
        add_date(found, year, month, day);
    }
}

fn trailing_number(text: &str) -> Option<(u32, usize)> {
    let start = text.bytes().rposition(|b| !b.is_ascii_digit()).map_or(0, |at| at + 1);
    Some((text[start..].parse().ok()?, start))
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// Runs of capitalised words. The first word of a sentence counts only when another capitalised
/// word follows or when it stands capitalised elsewhere inside a sentence.
fn names(text: &str, found: &mut Found) {
    let mut starts: Vec<String> = Vec::new();
    for sentence in text.split_inclusive(['.', '!', '?', '\n', '。', '！', '？', ':', ';']) {
        let mut run: Vec<&str> = Vec::new();
        let mut run_starts_sentence = false;
        for (at, word) in sentence.unicode_words().enumerate() {
            let word = word.strip_suffix("'s").or_else(|| word.strip_suffix("\u{2019}s")).unwrap_or(word);
            if is_name_word(word) && run.len() < NAME_WORDS_MAX {
                if run.is_empty() {
                    run_starts_sentence = at == 0;
                }
                run.push(word);
            } else {
                end_run(&mut run, run_starts_sentence, &mut starts, found);
            }
        }
        end_run(&mut run, run_starts_sentence, &mut starts, found);
    }
    // A lone first word is a weak sign; words such as "thanks" would become people. Keep it only when it is
    // no ordinary word by the one test that needs no dictionary: it is capitalised in mid-sentence too.
    for word in starts {
        let inside = text.match_indices(&word).any(|(at, _)| {
            text[..at].chars().next_back().is_some_and(|c| c == ' ' || c == '\u{a0}')
                && !text[..at].trim_end().ends_with(['.', '!', '?', ':', ';', '\n'])
                && !text[..at].trim().is_empty()
        });
        if inside {
            found.add("name", &word);
        }
    }
}

fn is_name_word(word: &str) -> bool {
    let mut chars = word.chars();
    chars.next().is_some_and(char::is_uppercase)
        && word.chars().count() > 1
        && !is_stop_word(&word.to_lowercase())
        && month(&word.to_lowercase()).is_none()
        && !word.bytes().any(|b| b.is_ascii_digit())
}

fn end_run(run: &mut Vec<&str>, starts_sentence: bool, starts: &mut Vec<String>, found: &mut Found) {
    match run.as_slice() {
        [] => {}
        [word] if starts_sentence => starts.push((*word).to_owned()),
        [word] => found.add("name", word),
        words => {
            found.add("name", &words.join(" "));
            // A person is asked for by one of the names.
            for word in words {
                found.add("name", word);
            }
        }
    }
    run.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(entities(text), expected, "{text:?}");
    }

    #[test]
    fn things_of_each_kind() {
        check("My sister is Alice Smith.", &["name:alice", "name:alice smith", "name:smith"]);
        check("we met in Paris on March 5th, 2024", &["date:--03-05", "date:2024-03-05", "name:paris", "number:2024"]);
        check("due 2024-03-05.", &["date:--03-05", "date:2024-03-05"]);
        check("born 12 June", &["date:--06-12"]);
        check("我的生日是1990年3月5日", &["date:--03-05", "date:1990-03-05"]);
        check(
            "see https://example.org/a/ and mail bob@example.org",
            &["mail:bob@example.org", "url:https://example.org/a"],
        );
        check(
            "ping @ops about #outage, order INV-2024-001",
            &["id:inv-2024-001", "mention:ops", "name:inv", "tag:outage"],
        );
        check("it costs 1,250.50 now", &["number:1250.50"]);
        check("我在读《三体》", &["title:三体"]);
    }

    #[test]
    fn the_start_of_a_sentence_is_no_name() {
        check("Thanks a lot. Where is it?", &[]);
        check("Bob called. I like Bob.", &["name:bob"]);
    }

    #[test]
    fn a_question_in_small_letters_still_seeds_names() {
        assert!(seeds("where does alice's dog live", 24).contains(&"name:alice".to_owned()));
        assert_eq!(seeds("the of and", 24), Vec::<String>::new());
        assert_eq!(seeds(&"word ".repeat(100), 3).len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_gives_bounded_things_and_no_panic(text in "[A-Za-z0-9年月日《》“”@#/:.,\\- \\n]{0,300}|\\PC{0,200}") {
            let found = entities(&text);
            prop_assert!(found.len() <= ENTITIES_MAX);
            for entity in found {
                prop_assert!(entity.len() <= ENTITY_BYTES_MAX + 8);
            }
            prop_assert!(seeds(&text, 7).len() <= 7);
        }
    }
}
