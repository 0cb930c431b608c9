//! Passages: what is embedded, found and cited.
//!
//! A heading begins a new passage, and so does a slide, a sheet or a table; a page only when the passage
//! is half full, since sentences run over pages. What is too long is cut between sentences, then between
//! words. Sizes are tokens of the embedding model, counted by the caller: text beyond them would be
//! stored and never found.

use super::sink::Block;
use rkyv::{Archive, Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

/// A place in a document.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Place {
    /// A page, from 1.
    Page(u32),
    /// A slide, from 1.
    Slide(u32),
    /// A sheet by its name.
    Sheet(String),
}

/// A piece of a document that can be understood and cited alone.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Passage {
    /// The headings above it, the highest first.
    pub headings: Vec<String>,
    /// Where it begins, when the format knows.
    pub place: Option<Place>,
    /// The page on which it ends; 0 where there are no pages.
    pub page_last: u32,
    /// First and last row of a table with numbered rows.
    pub rows: Option<(u32, u32)>,
    /// What it says; a passage of a table begins with the table's head.
    pub text: String,
}

impl Passage {
    /// Where it stands, for people: `pages 3-4, Terms > Notice`.
    pub fn citation(&self) -> String {
        let mut parts = Vec::new();
        match &self.place {
            Some(Place::Page(first)) if self.page_last > *first => {
                parts.push(format!("pages {first}-{}", self.page_last))
            }
            Some(Place::Page(page)) => parts.push(format!("page {page}")),
            Some(Place::Slide(slide)) => parts.push(format!("slide {slide}")),
            Some(Place::Sheet(sheet)) => parts.push(format!("sheet {sheet}")),
            None => {}
        }
        match self.rows {
            Some((first, last)) if first == last => parts.push(format!("row {first}")),
            Some((first, last)) => parts.push(format!("rows {first}-{last}")),
            None => {}
        }
        if !self.headings.is_empty() {
            parts.push(self.headings.join(" > "));
        }
        parts.join(", ")
    }

    /// What is embedded and indexed: the nearest headings that leave three quarters of the room, then the text.
    pub fn searchable(&self, tokens_max: usize, count: &dyn Fn(&str) -> usize) -> String {
        let (title, _) = title(self.headings.iter().map(String::as_str), tokens_max, count);
        if title.is_empty() { self.text.clone() } else { format!("{title}\n{}", self.text) }
    }
}

/// Share of a passage that its headings may take.
const TITLE_SHARE: usize = 4;

/// The title of a passage with these headings.
#[cfg(test)]
pub(super) fn title_of(headings: &[String], tokens_max: usize, count: &dyn Fn(&str) -> usize) -> (String, usize) {
    title(headings.iter().map(String::as_str), tokens_max, count)
}

/// The lowest headings that fit, and their tokens.
fn title<'a>(
    headings: impl DoubleEndedIterator<Item = &'a str>,
    tokens_max: usize,
    count: &dyn Fn(&str) -> usize,
) -> (String, usize) {
    let mut title = String::new();
    let mut tokens = 0;
    for heading in headings.rev() {
        let longer = if title.is_empty() { heading.to_owned() } else { format!("{heading} > {title}") };
        let cost = count(&longer);
        if cost > tokens_max / TITLE_SHARE {
            break;
        }
        (title, tokens) = (longer, cost);
    }
    (title, tokens)
}

/// Cuts blocks into passages of at most `tokens_max` tokens with their headings, as `count` counts them.
///
/// # Panics
/// When `tokens_max` is below 16: no sentence fits.
pub fn passages(blocks: &[Block], tokens_max: usize, count: &dyn Fn(&str) -> usize) -> Vec<Passage> {
    assert!(tokens_max >= 16, "a passage holds at least 16 tokens");
    let mut cutter = Cutter {
        tokens_max,
        count,
        headings: Vec::new(),
        title_tokens: 0,
        place: None,
        head: None,
        open: None,
        done: Vec::new(),
    };
    for block in blocks {
        match block {
            Block::Place(place) => cutter.place(place),
            Block::Heading(level, text) => cutter.heading(*level, text),
            Block::Text(text) => cutter.text(text),
            Block::Head(text) => cutter.head(text),
            Block::Row(text, number) => cutter.row(text, *number),
        }
    }
    cutter.end_table();
    cutter.flush();
    cutter.done
}

struct Cutter<'a> {
    tokens_max: usize,
    count: &'a dyn Fn(&str) -> usize,
    headings: Vec<(usize, String)>,
    title_tokens: usize,
    place: Option<Place>,
    /// Head of the table whose rows come, its tokens, and whether a row has come.
    head: Option<(String, usize, bool)>,
    open: Option<Open>,
    done: Vec<Passage>,
}

/// The passage that grows.
struct Open {
    place: Option<Place>,
    page_last: u32,
    rows: Option<(u32, u32)>,
    text: String,
    tokens: usize,
}

impl Cutter<'_> {
    /// Tokens that text may take beside the headings.
    fn room(&self) -> usize {
        self.tokens_max - self.title_tokens
    }

    fn place(&mut self, place: &Place) {
        self.end_table();
        let pages = matches!((place, &self.place), (Place::Page(_), Some(Place::Page(_))));
        let half = self.open.as_ref().is_some_and(|open| open.tokens >= self.room() / 2);
        if !pages || half {
            self.flush();
        }
        if !pages {
            // A slide or sheet stands under no heading of the one before.
            self.set_headings(Vec::new());
        }
        self.place = Some(place.clone());
    }

    fn heading(&mut self, level: usize, text: &str) {
        self.end_table();
        self.flush();
        let mut headings = std::mem::take(&mut self.headings);
        headings.retain(|(above, _)| *above < level);
        headings.push((level, text.to_owned()));
        self.set_headings(headings);
    }

    fn set_headings(&mut self, headings: Vec<(usize, String)>) {
        self.title_tokens = title(headings.iter().map(|(_, text)| text.as_str()), self.tokens_max, self.count).1;
        self.headings = headings;
    }

    fn text(&mut self, text: &str) {
        self.end_table();
        for piece in pieces(text, self.room(), self.count) {
            self.add(piece, None);
        }
    }

    fn head(&mut self, text: &str) {
        self.end_table();
        self.flush();
        let tokens = (self.count)(text);
        if tokens > self.room() / 2 {
            // Repeating it would leave no room for rows.
            self.text(text);
        } else {
            self.head = Some((text.to_owned(), tokens, false));
        }
    }

    fn row(&mut self, text: &str, number: u32) {
        let head_tokens = match &mut self.head {
            Some((_, tokens, seen)) => {
                *seen = true;
                *tokens
            }
            None => 0,
        };
        for piece in pieces(text, self.room() - head_tokens, self.count) {
            self.add(piece, Some(number).filter(|number| *number > 0));
        }
    }

    /// A head without rows is text like any other.
    fn end_table(&mut self) {
        match self.head.take() {
            Some((text, _, false)) => {
                for piece in pieces(&text, self.room(), self.count) {
                    self.add(piece, None);
                }
            }
            Some(_) => self.flush(),
            None => {}
        }
    }

    fn add(&mut self, piece: &str, row: Option<u32>) {
        let piece = piece.trim();
        if piece.is_empty() {
            return;
        }
        let tokens = (self.count)(piece);
        if self.open.as_ref().is_some_and(|open| open.tokens + tokens > self.room()) {
            self.flush();
        }
        let place = &self.place;
        let head = self.head.as_ref().filter(|(_, _, seen)| *seen);
        let open = self.open.get_or_insert_with(|| Open {
            place: place.clone(),
            page_last: 0,
            rows: None,
            text: head.map_or(String::new(), |(text, _, _)| text.clone()),
            tokens: head.map_or(0, |(_, tokens, _)| *tokens),
        });
        if !open.text.is_empty() {
            open.text.push('\n');
        }
        open.text.push_str(piece);
        open.tokens += tokens;
        if let Some(Place::Page(page)) = place {
            open.page_last = *page;
        }
        if let Some(row) = row {
            let first = open.rows.map_or(row, |(first, _)| first);
            open.rows = Some((first, row));
        }
    }

    fn flush(&mut self) {
        let Some(Open { place, page_last, rows, text, .. }) = self.open.take() else { return };
        let headings = self.headings.iter().map(|(_, text)| text.clone()).collect();
        self.done.push(Passage { headings, place, page_last, rows, text });
    }
}

/// Cuts a text into pieces of at most `room` tokens, between sentences where that is possible.
fn pieces<'a>(text: &'a str, room: usize, count: &dyn Fn(&str) -> usize) -> Vec<&'a str> {
    if count(text) <= room {
        return vec![text];
    }
    let mut cut = Vec::new();
    group(text, text.split_sentence_bounds(), room, count, &mut cut, |sentence, cut| {
        group(sentence, sentence.split_word_bounds(), room, count, cut, |word, cut| {
            // One word beyond the size of a passage is no word: bytes of something, cut anywhere.
            let mut rest = word;
            while !rest.is_empty() {
                // An encoder may take four tokens for one character.
                let end = rest.char_indices().nth((room / 4).max(1)).map_or(rest.len(), |(at, _)| at);
                let (piece, more) = rest.split_at(end);
                cut.push(piece);
                rest = more;
            }
        });
    });
    cut
}

/// Joins neighbouring parts of `whole` while they fit together; a part that does not fit alone goes to `smaller`.
fn group<'a>(
    whole: &'a str,
    parts: impl Iterator<Item = &'a str>,
    room: usize,
    count: &dyn Fn(&str) -> usize,
    cut: &mut Vec<&'a str>,
    mut smaller: impl FnMut(&'a str, &mut Vec<&'a str>),
) {
    // `from..at` is the piece that grows.
    let (mut from, mut at, mut tokens) = (0, 0, 0);
    for part in parts {
        let cost = if part.trim().is_empty() { 0 } else { count(part) };
        if tokens + cost > room {
            if from < at {
                cut.push(&whole[from..at]);
            }
            (from, tokens) = (at, 0);
        }
        at += part.len();
        if cost > room {
            smaller(part, cut);
            from = at;
        } else {
            tokens += cost;
        }
    }
    if from < at {
        cut.push(&whole[from..at]);
    }
}
