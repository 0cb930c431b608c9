//! Word: paragraphs with their styles, tables, notes at the foot.

use super::chunk::Place;
use super::office::{Package, Step, attribute, walk};
use super::sink::Sink;
use super::{DocumentError, Kind};
use std::collections::HashMap;

const KIND: Kind = Kind::Docx;

pub(super) fn read(bytes: &[u8], sink: &mut Sink) -> Result<(), DocumentError> {
    let mut package = Package::open(KIND, bytes)?;
    let relations = package.relations("")?;
    let main = relations.iter().find(|relation| relation.kind.ends_with("/officeDocument"));
    let main = main.map_or("word/document.xml".to_owned(), |relation| relation.target.clone());
    let document = package.needed(&main)?;
    let folder = main.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
    let levels = match package.part(&format!("{folder}/styles.xml"))? {
        Some(styles) => heading_styles(&styles)?,
        None => HashMap::new(),
    };
    // Word notes where pages broke when it last drew them; other programs only know breaks set by hand.
    let drawn = contains(&document, b"lastRenderedPageBreak");
    let mut body = Body {
        sink,
        levels,
        drawn,
        page: 0,
        run: String::new(),
        level: None,
        in_text: false,
        tables: 0,
        rows: Vec::new(),
    };
    if drawn || contains(&document, b"w:type=\"page\"") {
        body.next_page()?;
    }
    walk(KIND, &document, |step| body.step(step))?;
    for notes in ["footnotes", "endnotes"] {
        if let Some(part) = package.part(&format!("{folder}/{notes}.xml"))? {
            walk(KIND, &part, |step| body.step(step))?;
        }
    }
    Ok(())
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// Which styles are headings. Ids are translated with the program's language, names are not.
fn heading_styles(bytes: &[u8]) -> Result<HashMap<String, usize>, DocumentError> {
    let mut levels = HashMap::new();
    let mut style = String::new();
    walk(KIND, bytes, |step| {
        match step {
            Step::Open("style", tag) => style = attribute(tag, "styleId").unwrap_or_default(),
            Step::Open("name", tag) => {
                let name = attribute(tag, "val").unwrap_or_default().to_lowercase();
                let level = match name.strip_prefix("heading ") {
                    Some(digits) => digits.trim().parse().ok(),
                    None => (name == "title").then_some(1),
                };
                if let Some(level) = level {
                    levels.insert(style.clone(), level);
                }
            }
            Step::Open("outlineLvl", tag) => {
                // Level 9 is body text.
                let level: Option<usize> = attribute(tag, "val").and_then(|level| level.parse().ok());
                if let Some(level) = level.filter(|level| *level < 9) {
                    levels.entry(style.clone()).or_insert(level + 1);
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(levels)
}

struct Body<'a> {
    sink: &'a mut Sink,
    levels: HashMap<String, usize>,
    drawn: bool,
    /// 0 = pages are not known.
    page: u32,
    run: String,
    /// The paragraph is a heading.
    level: Option<usize>,
    in_text: bool,
    /// Tables inside each other; cells of inner ones are text of the outer cell.
    tables: usize,
    rows: Vec<Vec<String>>,
}

impl Body<'_> {
    fn step(&mut self, step: Step<'_>) -> Result<(), DocumentError> {
        match step {
            Step::Open("t", _) => self.in_text = true,
            Step::Close("t") => self.in_text = false,
            Step::Text(text) if self.in_text => self.run.push_str(text),
            Step::Open("tab", _) => self.run.push(' '),
            // A break that Word has drawn is marked again as rendered.
            Step::Open("br", tag)
                if attribute(tag, "type").as_deref() == Some("page") && !self.drawn && self.tables == 0 =>
            {
                self.paragraph()?;
                self.next_page()?;
            }
            Step::Open("lastRenderedPageBreak", _) if self.tables == 0 => {
                self.paragraph()?;
                self.next_page()?;
            }
            Step::Open("br" | "cr", _) => self.run.push('\n'),
            Step::Open("pStyle", tag) => {
                self.level = attribute(tag, "val").and_then(|style| self.levels.get(&style).copied());
            }
            Step::Open("outlineLvl", tag) => {
                let level: Option<usize> = attribute(tag, "val").and_then(|level| level.parse().ok());
                self.level = level.filter(|level| *level < 9).map(|level| level + 1).or(self.level);
            }
            Step::Open("tbl", _) => self.tables += 1,
            Step::Open("tr", _) if self.tables == 1 => self.rows.push(Vec::new()),
            Step::Close("p") if self.tables > 0 => {
                self.level = None;
                self.run.push(' ');
            }
            Step::Close("p") => self.paragraph()?,
            Step::Close("tc") if self.tables == 1 => {
                let text = std::mem::take(&mut self.run);
                if let Some(row) = self.rows.last_mut() {
                    row.push(text);
                }
            }
            Step::Close("tbl") => {
                self.tables = self.tables.saturating_sub(1);
                if self.tables == 0 {
                    self.sink.table(&std::mem::take(&mut self.rows))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn paragraph(&mut self) -> Result<(), DocumentError> {
        let text = std::mem::take(&mut self.run);
        match self.level.take() {
            Some(level) => self.sink.heading(level, &text),
            None => self.sink.text(&text),
        }
    }

    fn next_page(&mut self) -> Result<(), DocumentError> {
        self.page += 1;
        self.sink.place(Place::Page(self.page))
    }
}
