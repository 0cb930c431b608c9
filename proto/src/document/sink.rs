//! Where readers put what they find: cleans text and keeps count.

use super::DocumentError;
use super::chunk::Place;
use crate::limits::{
    DOCUMENT_BLOCKS_MAX, DOCUMENT_CELLS_MAX, DOCUMENT_PAGES_MAX, DOCUMENT_TEXT_BYTES_MAX, HEADING_BYTES_MAX,
    HEADINGS_MAX,
};
use rkyv::{Archive, Deserialize, Serialize};

/// A piece of a document.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub enum Block {
    /// What follows stands here.
    Place(Place),
    /// A heading; level 1 is the highest.
    Heading(usize, String),
    /// A paragraph, list item or piece of code.
    Text(String),
    /// The head of a table, whose rows follow until the next block that is no row.
    Head(String),
    /// A row of a table, and its number in its sheet from 1, 0 where rows have no number.
    Row(String, u32),
}

impl Block {
    /// Whether there is something to find.
    pub(super) fn has_text(&self) -> bool {
        match self {
            Block::Place(_) => false,
            Block::Heading(_, text) | Block::Text(text) | Block::Head(text) | Block::Row(text, _) => !text.is_empty(),
        }
    }
}

/// Between the cells of a row.
const CELL: &str = " | ";
/// Empty cells in a row that are shown one by one.
const GAP_MAX: usize = 3;
/// Notes kept for people.
const NOTES_MAX: usize = 20;

#[derive(Default)]
pub(super) struct Sink {
    blocks: Vec<Block>,
    notes: Vec<String>,
    bytes: usize,
    places: usize,
    /// Added to the level of every heading: an attachment's headings stand below its name.
    pub shift: usize,
}

impl Sink {
    pub fn finish(self) -> (Vec<Block>, Vec<String>) {
        (self.blocks, self.notes)
    }

    pub fn note(&mut self, note: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(note);
        }
    }

    pub fn place(&mut self, place: Place) -> Result<(), DocumentError> {
        self.places += 1;
        if self.places > DOCUMENT_PAGES_MAX {
            return Err(DocumentError::too_large("pages", self.places as u64, DOCUMENT_PAGES_MAX as u64));
        }
        self.push(Block::Place(place), 0)
    }

    pub fn heading(&mut self, level: usize, text: &str) -> Result<(), DocumentError> {
        let text = one_line(text);
        if text.len() > HEADING_BYTES_MAX {
            return self.text(&text);
        }
        let bytes = text.len();
        if bytes == 0 {
            return Ok(());
        }
        self.push(Block::Heading((level.max(1) + self.shift).min(HEADINGS_MAX), text), bytes)
    }

    pub fn text(&mut self, text: &str) -> Result<(), DocumentError> {
        let text = lines(text);
        if text.is_empty() {
            return Ok(());
        }
        let bytes = text.len();
        self.push(Block::Text(text), bytes)
    }

    pub fn head(&mut self, cells: &[String]) -> Result<(), DocumentError> {
        let text = cells_text(cells)?;
        let bytes = text.len();
        self.push(Block::Head(text), bytes)
    }

    pub fn row(&mut self, cells: &[String], number: u32) -> Result<(), DocumentError> {
        let text = cells_text(cells)?;
        if text.is_empty() {
            return Ok(());
        }
        let bytes = text.len();
        self.push(Block::Row(text, number), bytes)
    }

    /// A whole table: the first row is its head, unless it is the only one.
    pub fn table(&mut self, rows: &[Vec<String>]) -> Result<(), DocumentError> {
        match rows {
            [] => Ok(()),
            [only] => {
                let text = cells_text(only)?;
                self.text(&text)
            }
            [head, rows @ ..] => {
                self.head(head)?;
                rows.iter().try_for_each(|row| self.row(row, 0))
            }
        }
    }

    fn push(&mut self, block: Block, bytes: usize) -> Result<(), DocumentError> {
        self.bytes += bytes;
        if self.bytes > DOCUMENT_TEXT_BYTES_MAX {
            return Err(DocumentError::too_large("bytes of text", self.bytes as u64, DOCUMENT_TEXT_BYTES_MAX as u64));
        }
        if self.blocks.len() >= DOCUMENT_BLOCKS_MAX {
            let found = self.blocks.len() as u64 + 1;
            return Err(DocumentError::too_large("paragraphs and rows", found, DOCUMENT_BLOCKS_MAX as u64));
        }
        self.blocks.push(block);
        Ok(())
    }
}

fn cells_text(cells: &[String]) -> Result<String, DocumentError> {
    if cells.len() > DOCUMENT_CELLS_MAX {
        return Err(DocumentError::too_large("cells in a row", cells.len() as u64, DOCUMENT_CELLS_MAX as u64));
    }
    let cells: Vec<String> = cells.iter().map(|cell| one_line(cell)).collect();
    let filled = cells.iter().rposition(|cell| !cell.is_empty()).map_or(0, |last| last + 1);
    let (mut text, mut gap) = (String::new(), 0);
    for (column, cell) in cells[..filled].iter().enumerate() {
        gap = if cell.is_empty() { gap + 1 } else { 0 };
        // The nothing before a far cell would bury it.
        if gap > GAP_MAX {
            if gap == GAP_MAX + 1 {
                text.push_str(CELL);
                text.push('…');
            }
            continue;
        }
        if column > 0 {
            text.push_str(CELL);
        }
        text.push_str(cell);
    }
    Ok(text)
}

/// Whether a character carries nothing that a reader sees: controls, soft hyphens, marks of byte order.
fn invisible(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{ad}' | '\u{feff}' | '\u{200b}' | '\u{2060}')
}

/// All white space becomes single spaces.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split(|c: char| c.is_whitespace()) {
        let from = line.len();
        if from > 0 {
            line.push(' ');
        }
        let start = line.len();
        line.extend(word.chars().filter(|c| !invisible(*c)));
        if line.len() == start {
            line.truncate(from);
        }
    }
    line
}

/// Lines are kept, empty ones go.
fn lines(text: &str) -> String {
    let mut whole = String::with_capacity(text.len());
    for line in text.lines() {
        let line = one_line(line);
        if !line.is_empty() {
            if !whole.is_empty() {
                whole.push('\n');
            }
            whole.push_str(&line);
        }
    }
    whole
}
