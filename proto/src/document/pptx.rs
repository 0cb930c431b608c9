//! PowerPoint: one slide after the other in the order of the show, each with its title and notes.

use super::chunk::Place;
use super::office::{Package, Step, attribute, walk};
use super::sink::Sink;
use super::{DocumentError, Kind};

const KIND: Kind = Kind::Pptx;

pub(super) fn read(bytes: &[u8], sink: &mut Sink) -> Result<(), DocumentError> {
    let mut package = Package::open(KIND, bytes)?;
    let main = "ppt/presentation.xml";
    let show = package.needed(main)?;
    let relations = package.relations(main)?;
    let mut order = Vec::new();
    walk(KIND, &show, |step| {
        if let Step::Open("sldId", tag) = step {
            // Two attributes are called `id`; that of the relation has a prefix.
            let id =
                tag.attributes().flatten().find(|a| a.key.prefix().is_some() && a.key.local_name().as_ref() == b"id");
            order.extend(id.and_then(|id| id.unescape_value().ok()).map(std::borrow::Cow::into_owned));
        }
        Ok(())
    })?;
    for (number, id) in (1u32..).zip(order) {
        let slide = relations.iter().find(|relation| relation.id == id);
        let Some(slide) = slide.filter(|slide| package.has(&slide.target)) else {
            sink.note(format!("slide {number} is missing in the file"));
            continue;
        };
        sink.place(Place::Slide(number))?;
        let part = package.needed(&slide.target)?;
        let mut page = Slide::new(sink);
        walk(KIND, &part, |step| page.step(step))?;
        page.end()?;
        let notes = package.relations(&slide.target)?;
        if let Some(notes) = notes.iter().find(|relation| relation.kind.ends_with("/notesSlide"))
            && let Some(part) = package.part(&notes.target)?
        {
            let mut page = Slide::new(sink);
            walk(KIND, &part, |step| page.step(step))?;
            page.end()?;
        }
    }
    Ok(())
}

struct Slide<'a> {
    sink: &'a mut Sink,
    run: String,
    in_text: bool,
    /// The shape that is read is the title.
    title: bool,
    /// The shape that is read repeats on every slide: number, date, foot.
    repeated: bool,
    headline: String,
    /// A title may stand anywhere in the file: everything else waits for it.
    waiting: Vec<Piece>,
    in_table: bool,
    rows: Vec<Vec<String>>,
}

enum Piece {
    Text(String),
    Table(Vec<Vec<String>>),
}

impl<'a> Slide<'a> {
    fn new(sink: &'a mut Sink) -> Self {
        Self {
            sink,
            run: String::new(),
            in_text: false,
            title: false,
            repeated: false,
            headline: String::new(),
            waiting: Vec::new(),
            in_table: false,
            rows: Vec::new(),
        }
    }

    fn step(&mut self, step: Step<'_>) -> Result<(), DocumentError> {
        match step {
            Step::Open("t", _) => self.in_text = true,
            Step::Close("t") => self.in_text = false,
            Step::Text(text) if self.in_text => self.run.push_str(text),
            Step::Open("br", _) => self.run.push('\n'),
            Step::Open("sp", _) => (self.title, self.repeated) = (false, false),
            Step::Open("ph", tag) => {
                let kind = attribute(tag, "type").unwrap_or_default();
                self.title = matches!(kind.as_str(), "title" | "ctrTitle");
                self.repeated = matches!(kind.as_str(), "sldNum" | "dt" | "ftr" | "hdr");
            }
            Step::Open("tbl", _) => self.in_table = true,
            Step::Open("tr", _) => self.rows.push(Vec::new()),
            Step::Close("tc") => {
                let text = std::mem::take(&mut self.run);
                if let Some(row) = self.rows.last_mut() {
                    row.push(text);
                }
            }
            Step::Close("tbl") => {
                self.in_table = false;
                let rows = std::mem::take(&mut self.rows);
                self.waiting.push(Piece::Table(rows));
            }
            Step::Close("p") if self.in_table => self.run.push(' '),
            Step::Close("p") => {
                let text = std::mem::take(&mut self.run);
                if self.title {
                    self.headline.push_str(&text);
                    self.headline.push(' ');
                } else if !self.repeated {
                    self.waiting.push(Piece::Text(text));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end(self) -> Result<(), DocumentError> {
        self.sink.heading(1, &self.headline)?;
        for piece in self.waiting {
            match piece {
                Piece::Text(text) => self.sink.text(&text)?,
                Piece::Table(rows) => self.sink.table(&rows)?,
            }
        }
        Ok(())
    }
}
