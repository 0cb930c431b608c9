//! Splits a long text into parts that a platform accepts.
//!
//! A part ends at a paragraph, else a line, else a sentence, else a word, else a grapheme boundary; never
//! inside a character that a person would see as one. A code fence that is cut is closed at the end of the
//! part and opened again in the next one.

use unicode_segmentation::UnicodeSegmentation;

/// What a platform counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// UTF-16 code units (Telegram).
    Utf16,
    /// UTF-8 bytes.
    Bytes,
    /// Unicode code points.
    Chars,
}

impl Unit {
    /// The length of a text in this unit.
    pub fn measure(self, text: &str) -> usize {
        match self {
            Unit::Utf16 => text.chars().map(char::len_utf16).sum(),
            Unit::Bytes => text.len(),
            Unit::Chars => text.chars().count(),
        }
    }
}

/// Smallest part: room for one fence line, its closing line, and some text.
const PART_MIN: usize = 64;
/// What closes a fence at the end of a part.
const CLOSE: &str = "\n```";
/// An opening line longer than this is not repeated whole.
const OPENER_BYTES_MAX: usize = 24;

/// Splits `text` into parts of at most `max` units. A `max` below 64 is read as 64. Parts are never empty;
/// an empty text gives no part.
pub fn split(text: &str, unit: Unit, max: usize) -> Vec<String> {
    let max = max.max(PART_MIN);
    let mut parts = Vec::new();
    let mut rest = text;
    let mut fence: Option<String> = None;
    while !rest.is_empty() {
        let mut part = fence.as_ref().map_or_else(String::new, |opener| format!("{opener}\n"));
        let room = max - unit.measure(&part);
        if longest_prefix(rest, unit, room) == rest.len() {
            part.push_str(rest);
            parts.push(part);
            break;
        }
        let limit = longest_prefix(rest, unit, room - CLOSE.len());
        let (end, next) = cut(rest, limit, fence.is_some());
        part.push_str(&rest[..end]);
        fence = fence_after(fence, &rest[..end]);
        rest = &rest[next..];
        if fence.is_some() {
            part.push_str(CLOSE);
            if let Some(after) = after_closing_line(rest) {
                // The text itself closes the fence here, and we just did.
                rest = after;
                fence = None;
            }
        }
        parts.push(part);
    }
    parts
}

/// Bytes of the longest prefix of at most `budget` units that ends between graphemes; at least one character.
fn longest_prefix(text: &str, unit: Unit, budget: usize) -> usize {
    let fitting = |pieces: &mut dyn Iterator<Item = &str>| {
        let (mut used, mut bytes) = (0, 0);
        for piece in pieces {
            used += unit.measure(piece);
            if used > budget {
                break;
            }
            bytes += piece.len();
        }
        bytes
    };
    match fitting(&mut text.graphemes(true)) {
        // One grapheme that is longer than a whole part (stacked marks): characters are the next best.
        0 => fitting(&mut text.split_inclusive(|_| true)).max(text.chars().next().map_or(0, char::len_utf8)),
        bytes => bytes,
    }
}

/// Where the part ends and where the next one starts; both at most a few line breaks apart.
fn cut(text: &str, limit: usize, in_fence: bool) -> (usize, usize) {
    // A break that starts exactly at the limit is as good as one before it.
    let window_end =
        limit + text[limit..].chars().take(2).take_while(|c| c.is_whitespace()).map(char::len_utf8).sum::<usize>();
    let window = &text[..window_end];
    let far_enough = |end: usize, part: usize| end > 0 && end <= limit && end >= limit / part;
    let end = if in_fence {
        window.rfind('\n').filter(|end| far_enough(*end, 4))
    } else {
        None.or_else(|| window.rfind("\n\n").filter(|end| far_enough(*end, 2)))
            .or_else(|| window.rfind('\n').filter(|end| far_enough(*end, 2)))
            .or_else(|| sentence_end(window).filter(|end| far_enough(*end, 2)))
            .or_else(|| window.rfind(' ').filter(|end| far_enough(*end, 4)))
    };
    let mut end = end.unwrap_or(limit);
    // Never through a line that opens or closes a fence.
    let line = text[..end].rfind('\n').map_or(0, |at| at + 1);
    if line > 1
        && end > line
        && text[line..].trim_start_matches(' ').starts_with("```")
        && !text[end..].starts_with('\n')
    {
        end = line - 1;
    }
    (end, end + break_bytes(&text[end..]))
}

/// The white space that a cut swallows: line breaks, or one space.
fn break_bytes(text: &str) -> usize {
    let line_breaks = text.bytes().take_while(|byte| *byte == b'\n').count();
    if line_breaks > 0 { line_breaks } else { usize::from(text.starts_with(' ')) }
}

/// The end of the last whole sentence.
fn sentence_end(text: &str) -> Option<usize> {
    let mut found = None;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let ends = match c {
            '。' | '！' | '？' => true,
            '.' | '!' | '?' | '…' => chars.peek().is_some_and(|(_, next)| next.is_whitespace()),
            _ => false,
        };
        if ends {
            found = Some(at + c.len_utf8());
        }
    }
    found
}

/// Follows the fences of `text`: the opening line that is in force at its end.
fn fence_after(mut fence: Option<String>, text: &str) -> Option<String> {
    for line in text.split('\n') {
        let Some(info) = line.trim_start_matches(' ').strip_prefix("```") else { continue };
        fence = match fence {
            None if !info.contains('`') => {
                let opener = line.trim();
                Some(if opener.len() <= OPENER_BYTES_MAX { opener.to_owned() } else { "```".to_owned() })
            }
            Some(_) if info.trim_matches('`').trim().is_empty() => None,
            other => other,
        };
    }
    fence
}

/// What follows when `text` begins with the line that closes a fence.
fn after_closing_line(text: &str) -> Option<&str> {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    let marks = line.trim();
    (marks.len() >= 3 && marks.bytes().all(|byte| byte == b'`')).then(|| rest.trim_start_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_text_stays_whole() {
        assert_eq!(split("hello", Unit::Utf16, 4096), ["hello"]);
        assert_eq!(split("", Unit::Utf16, 4096), [] as [&str; 0]);
    }

    #[test]
    fn cuts_prefer_paragraphs_then_lines_then_sentences_then_words() {
        let text = format!("{}\n\n{}", "a".repeat(50), "b".repeat(50));
        assert_eq!(split(&text, Unit::Chars, 64), ["a".repeat(50), "b".repeat(50)]);
        let text = format!("{}\n{}", "a".repeat(50), "b ".repeat(25));
        assert_eq!(split(&text, Unit::Chars, 64)[0], "a".repeat(50));
        let text = format!("{} end. {}", "a".repeat(40), "b ".repeat(25));
        assert_eq!(split(&text, Unit::Chars, 64)[0], format!("{} end.", "a".repeat(40)));
        let text = "word ".repeat(30);
        for part in split(&text, Unit::Chars, 64) {
            assert!(part.split(' ').all(|word| word.is_empty() || word == "word"), "{part:?}");
        }
        let text = "你好。".repeat(40);
        assert!(split(&text, Unit::Bytes, 64).iter().all(|part| part.ends_with('。')));
    }

    #[test]
    fn graphemes_stay_whole_and_units_differ() {
        let family = "👨‍👩‍👧‍👦".repeat(30);
        for part in split(&family, Unit::Utf16, 64) {
            assert!(part.starts_with('👨') && part.ends_with('👦'), "{part}");
            assert!(Unit::Utf16.measure(&part) <= 64);
        }
        assert_eq!(Unit::Utf16.measure("a🙂é"), 4);
        assert_eq!(Unit::Bytes.measure("a🙂é"), 7);
        assert_eq!(Unit::Chars.measure("a🙂é"), 3);
    }

    #[test]
    fn a_cut_fence_is_closed_and_opened_again() {
        let code: String = (0..20).map(|i| format!("    let x{i} = {i};\n")).collect();
        let text = format!("Look:\n```rust\n{code}```\nDone.");
        let parts = split(&text, Unit::Chars, 100);
        assert!(parts.len() > 3);
        for (index, part) in parts.iter().enumerate() {
            assert!(part.matches("```").count() % 2 == 0, "balanced: {part:?}");
            assert_eq!(part.starts_with("```rust\n"), index > 0 && part.contains("let"), "{part:?}");
        }
        let lines: Vec<_> = parts.iter().flat_map(|part| part.lines()).filter(|line| line.contains("let")).collect();
        assert_eq!(lines, code.lines().collect::<Vec<_>>());
        assert!(parts.last().unwrap().ends_with("Done."));
    }

    proptest! {
        #[test]
        fn parts_fit_and_lose_nothing_but_white_space(text in "([a-z .\n`é🙂。]|```\n|\n\n|e\u{301}){0,400}", max in 64usize..200, which in 0usize..3) {
            let unit = [Unit::Utf16, Unit::Bytes, Unit::Chars][which];
            let parts = split(&text, unit, max);
            for part in &parts {
                prop_assert!(unit.measure(part) <= max, "{} > {max}: {part:?}", unit.measure(part));
                prop_assert!(!part.is_empty());
            }
            let kept = |text: &str| text.chars().filter(|c| !c.is_whitespace() && *c != '`').collect::<String>();
            prop_assert_eq!(kept(&parts.concat()), kept(&text));
        }

        #[test]
        fn any_text_and_any_limit_end(text in ".{0,300}", max in 0usize..100) {
            let parts = split(&text, Unit::Utf16, max);
            prop_assert!(parts.iter().all(|part| Unit::Utf16.measure(part) <= max.max(PART_MIN)));
        }
    }
}
