//! Web pages, as a stream of tags: no tree is built, so no nesting is too deep.

use super::sink::Sink;
use super::text::decode;
use super::{DocumentError, Kind};
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, CharacterTokens, EndTag, StartTag, Tag, TagToken, Token, TokenSink, TokenSinkResult, Tokenizer,
    TokenizerOpts,
};
use std::cell::RefCell;

pub(super) fn read(bytes: &[u8], sink: &mut Sink) -> Result<(), DocumentError> {
    let text = decode(Kind::Html, bytes)?;
    read_text(&text, sink)
}

pub(super) fn read_text(text: &str, sink: &mut Sink) -> Result<(), DocumentError> {
    let page = Page(RefCell::new(State {
        out: sink,
        run: String::new(),
        heading: None,
        silent: None,
        tables: 0,
        rows: Vec::new(),
        in_cell: false,
        failed: None,
    }));
    let tokenizer = Tokenizer::new(page, TokenizerOpts::default());
    let queue = BufferQueue::default();
    queue.push_back(StrTendril::from(text));
    let _ = tokenizer.feed(&queue);
    tokenizer.end();
    tokenizer.sink.0.into_inner().end()
}

struct Page<'a>(RefCell<State<'a>>);

impl TokenSink for Page<'_> {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut state = self.0.borrow_mut();
        match token {
            CharacterTokens(text) => {
                if state.silent.is_none() {
                    state.run.push_str(&text);
                }
                TokenSinkResult::Continue
            }
            TagToken(tag) => state.tag(&tag),
            _ => TokenSinkResult::Continue,
        }
    }
}

struct State<'a> {
    out: &'a mut Sink,
    run: String,
    heading: Option<usize>,
    /// The element whose text nobody sees.
    silent: Option<&'static str>,
    /// Tables inside each other; cells of inner ones are text of the outer cell.
    tables: usize,
    rows: Vec<Vec<String>>,
    /// A cell is open: its text belongs to it, and it counts even when it is empty.
    in_cell: bool,
    failed: Option<DocumentError>,
}

/// Elements that begin and end a line of their own.
const BLOCKS: &[&str] = &[
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "caption",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "header",
    "hr",
    "html",
    "legend",
    "li",
    "main",
    "nav",
    "ol",
    "option",
    "p",
    "pre",
    "section",
    "select",
    "summary",
    "ul",
];
/// Elements whose text is for the browser.
const SILENT: &[(&str, RawKind)] = &[
    ("script", RawKind::ScriptData),
    ("style", RawKind::Rawtext),
    ("iframe", RawKind::Rawtext),
    ("noembed", RawKind::Rawtext),
    ("noframes", RawKind::Rawtext),
    ("xmp", RawKind::Rawtext),
];

impl State<'_> {
    fn tag(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        let name = &*tag.name;
        match tag.kind {
            StartTag => self.open(name),
            EndTag => {
                self.close(name);
                TokenSinkResult::Continue
            }
        }
    }

    fn open(&mut self, name: &str) -> TokenSinkResult<()> {
        if let Some((silent, raw)) = SILENT.iter().find(|(silent, _)| *silent == name) {
            self.silent = Some(*silent);
            return TokenSinkResult::RawData(*raw);
        }
        match name {
            "title" | "textarea" => {
                self.flush();
                self.heading = (name == "title").then_some(1);
                return TokenSinkResult::RawData(RawKind::Rcdata);
            }
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" if self.tables == 0 => {
                self.flush();
                self.heading = Some(usize::from(name.as_bytes()[1] - b'0'));
            }
            "table" => {
                if self.tables == 0 {
                    self.flush();
                }
                self.tables += 1;
            }
            "tr" if self.tables == 1 => {
                self.cell();
                self.rows.push(Vec::new());
            }
            "td" | "th" if self.tables == 1 => {
                self.cell();
                self.in_cell = true;
            }
            "br" => self.run.push('\n'),
            _ if self.tables > 0 && BLOCKS.contains(&name) => self.run.push(' '),
            _ if BLOCKS.contains(&name) => self.flush(),
            _ => {}
        }
        TokenSinkResult::Continue
    }

    fn close(&mut self, name: &str) {
        if self.silent == Some(name) {
            self.silent = None;
            return;
        }
        match name {
            "title" | "textarea" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" if self.tables == 0 => self.flush(),
            "td" | "th" | "tr" if self.tables == 1 => self.cell(),
            "table" if self.tables > 0 => {
                if self.tables == 1 {
                    self.cell();
                    let rows = std::mem::take(&mut self.rows);
                    let rows: Vec<Vec<String>> = rows.into_iter().filter(|row| !row.is_empty()).collect();
                    let done = self.out.table(&rows);
                    self.keep(done);
                }
                self.tables -= 1;
            }
            _ if self.tables > 0 && BLOCKS.contains(&name) => self.run.push(' '),
            _ if BLOCKS.contains(&name) => self.flush(),
            _ => {}
        }
    }

    /// Ends the open cell.
    fn cell(&mut self) {
        let text = std::mem::take(&mut self.run);
        if std::mem::take(&mut self.in_cell) || !text.trim().is_empty() {
            match self.rows.last_mut() {
                Some(row) => row.push(text),
                None => self.rows.push(vec![text]),
            }
        }
    }

    fn flush(&mut self) {
        let text = std::mem::take(&mut self.run);
        let done = match self.heading.take() {
            Some(level) => self.out.heading(level, &text),
            None => self.out.text(&text),
        };
        self.keep(done);
    }

    /// A tokenizer cannot be stopped with an error: the first one is kept, and what follows is dropped.
    fn keep(&mut self, done: Result<(), DocumentError>) {
        if let (Err(error), None) = (done, &self.failed) {
            self.failed = Some(error);
        }
    }

    fn end(mut self) -> Result<(), DocumentError> {
        // A table that is not closed ends with the page.
        if self.tables > 0 {
            self.tables = 1;
            self.close("table");
        }
        self.flush();
        self.failed.map_or(Ok(()), Err)
    }
}
