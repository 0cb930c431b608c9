//! Plain text, Markdown and tables of separated values.

use super::sink::Sink;
use super::{DocumentError, Kind};
use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::Encoding;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::borrow::Cow;

/// Text out of bytes: by its byte order mark, else UTF-8, else the encoding that its letters suggest.
pub(super) fn decode(kind: Kind, bytes: &[u8]) -> Result<Cow<'_, str>, DocumentError> {
    let text = match Encoding::for_bom(bytes) {
        Some((encoding, length)) => encoding.decode_without_bom_handling(&bytes[length..]).0,
        None => match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => {
                let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
                detector.feed(bytes, true);
                let encoding = detector.guess(None, Utf8Detection::Deny);
                encoding.decode_without_bom_handling(bytes).0
            }
        },
    };
    // No text has zero bytes, and every picture and program does.
    if text.contains('\0') {
        return Err(DocumentError::damaged(kind, "it is no text: it has zero bytes"));
    }
    Ok(text)
}

/// Paragraphs are what stands between empty lines.
pub(super) fn read_plain(bytes: &[u8], sink: &mut Sink) -> Result<(), DocumentError> {
    let text = decode(Kind::Text, bytes)?;
    plain_paragraphs(&text, sink)
}

pub(super) fn plain_paragraphs(text: &str, sink: &mut Sink) -> Result<(), DocumentError> {
    let mut paragraph = String::new();
    for line in text.lines() {
        // A form feed is the page break of plain text; it ends a paragraph like an empty line.
        if line.trim().is_empty() {
            sink.text(&std::mem::take(&mut paragraph))?;
        } else {
            paragraph.push_str(line);
            paragraph.push('\n');
        }
    }
    sink.text(&paragraph)
}

pub(super) fn read_markdown(bytes: &[u8], sink: &mut Sink) -> Result<(), DocumentError> {
    let text = decode(Kind::Markdown, bytes)?;
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let (mut run, mut heading) = (String::new(), None);
    let (mut rows, mut row): (Vec<Vec<String>>, Vec<String>) = Default::default();
    let mut table = false;
    for event in Parser::new_ext(&text, options) {
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                sink.text(&std::mem::take(&mut run))?;
                heading = Some(level as usize);
            }
            Event::End(TagEnd::Heading(_)) => {
                sink.heading(heading.take().unwrap_or(1), &std::mem::take(&mut run))?;
            }
            Event::Start(Tag::Table(_)) => {
                sink.text(&std::mem::take(&mut run))?;
                table = true;
            }
            Event::End(TagEnd::Table) => {
                table = false;
                sink.table(&std::mem::take(&mut rows))?;
            }
            Event::End(TagEnd::TableCell) => row.push(std::mem::take(&mut run)),
            Event::End(TagEnd::TableRow | TagEnd::TableHead) => rows.push(std::mem::take(&mut row)),
            Event::End(TagEnd::Paragraph | TagEnd::CodeBlock | TagEnd::Item | TagEnd::HtmlBlock) if !table => {
                sink.text(&std::mem::take(&mut run))?;
            }
            Event::Start(Tag::Item) => sink.text(&std::mem::take(&mut run))?,
            Event::End(TagEnd::MetadataBlock(_)) => run.clear(),
            Event::Text(text) | Event::Code(text) => run.push_str(&text),
            Event::SoftBreak => run.push(' '),
            Event::HardBreak | Event::Rule => run.push('\n'),
            Event::Html(_) | Event::InlineHtml(_) => run.push(' '),
            _ => {}
        }
    }
    sink.text(&run)
}

/// Separators that are tried, the commonest first.
const SEPARATORS: [u8; 4] = [b',', b';', b'\t', b'|'];
/// Bytes at the beginning in which separators are counted.
const SNIFF_BYTES: usize = 64 * 1024;

pub(super) fn read_csv(bytes: &[u8], sink: &mut Sink) -> Result<(), DocumentError> {
    let text = decode(Kind::Csv, bytes)?;
    let text = text.trim_start_matches('\u{feff}');
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(separator(text.as_bytes()))
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    let mut first = true;
    loop {
        let line = u32::try_from(reader.position().line()).unwrap_or(u32::MAX);
        match reader.read_record(&mut record) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                let cells: Vec<String> = record.iter().map(str::to_owned).collect();
                if first && cells.iter().any(|cell| !cell.trim().is_empty()) {
                    sink.head(&cells)?;
                    first = false;
                } else {
                    sink.row(&cells, line)?;
                }
            }
            Err(error) => return Err(DocumentError::damaged(Kind::Csv, error)),
        }
    }
}

/// The separator that the first line has most of.
fn separator(bytes: &[u8]) -> u8 {
    let sniffed = &bytes[..bytes.len().min(SNIFF_BYTES)];
    let line = sniffed.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let count = |separator: u8| line.iter().filter(|byte| **byte == separator).count();
    // `max_by_key` takes the last of equals; the commonest shall win.
    SEPARATORS.iter().rev().copied().max_by_key(|separator| count(*separator)).unwrap_or(b',')
}
