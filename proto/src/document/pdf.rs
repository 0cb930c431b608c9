//! PDF: page by page. The outline, where there is one, gives the headings.

use super::chunk::Place;
use super::sink::Sink;
use super::{DocumentError, Kind};
use crate::limits::{DOCUMENT_PAGES_MAX, HEADINGS_MAX};
use pdf_extract::{Document, PlainTextOutput, output_doc_page};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

const KIND: Kind = Kind::Pdf;

pub(super) fn read(bytes: &[u8], sink: &mut Sink) -> Result<(), DocumentError> {
    let mut document = guarded(|| Document::load_mem(bytes))
        .ok_or_else(|| DocumentError::damaged(KIND, "its structure is broken"))?
        .map_err(|error| match error {
            pdf_extract::Error::Decryption(_) | pdf_extract::Error::InvalidPassword => DocumentError::Locked,
            error => DocumentError::damaged(KIND, error),
        })?;
    // Many files are "encrypted" with an empty password, only to say what readers should not do.
    if document.is_encrypted() && document.decrypt("").is_err() {
        return Err(DocumentError::Locked);
    }
    let pages: Vec<u32> = document.get_pages().into_keys().collect();
    if pages.len() > DOCUMENT_PAGES_MAX {
        return Err(DocumentError::too_large("pages", pages.len() as u64, DOCUMENT_PAGES_MAX as u64));
    }
    if pages.is_empty() {
        return Err(DocumentError::damaged(KIND, "it has no pages"));
    }
    let outline = outline(&document);
    for page in pages {
        sink.place(Place::Page(page))?;
        let text = match page_text(&document, page) {
            Some(text) => text,
            None => {
                sink.note(format!("the text of page {page} could not be read"));
                continue;
            }
        };
        // A title of the outline begins where its words stand on the page, else at the top.
        let titles = outline.get(&page).map(Vec::as_slice).unwrap_or_default().iter();
        let (found, elsewhere): (Vec<_>, Vec<_>) =
            titles.partition(|(_, title)| text.lines().any(|line| same_words(line, title)));
        for (level, title) in elsewhere {
            sink.heading(*level, title)?;
        }
        let mut titles = found.into_iter().peekable();
        let mut paragraph = String::new();
        for line in text.lines() {
            if let Some((level, title)) = titles.peek()
                && same_words(line, title)
            {
                sink.text(&std::mem::take(&mut paragraph))?;
                sink.heading(*level, title)?;
                titles.next();
            } else if line.trim().is_empty() {
                sink.text(&std::mem::take(&mut paragraph))?;
            } else {
                paragraph.push_str(line);
                paragraph.push('\n');
            }
        }
        sink.text(&paragraph)?;
    }
    Ok(())
}

/// Titles by their pages, in their order.
fn outline(document: &Document) -> BTreeMap<u32, Vec<(usize, String)>> {
    let mut titles: BTreeMap<u32, Vec<(usize, String)>> = BTreeMap::new();
    let Some(Ok(outline)) = guarded(|| document.get_toc()) else { return titles };
    for entry in outline.toc {
        let page = u32::try_from(entry.page).unwrap_or_default();
        titles.entry(page).or_default().push((entry.level.clamp(1, HEADINGS_MAX), entry.title));
    }
    titles
}

fn page_text(document: &Document, page: u32) -> Option<String> {
    let laid_out = guarded(|| {
        let mut text = String::new();
        output_doc_page(document, &mut PlainTextOutput::new(&mut text), page).map(|()| text)
    });
    if let Some(Ok(text)) = laid_out {
        return Some(text);
    }
    // Fonts that the first way gives up on; the second knows less about where words stand.
    guarded(|| document.extract_text(&[page]))?.ok().filter(|text| !text.trim().is_empty())
}

/// The libraries index and unwrap where a file breaks their expectations.
fn guarded<T>(read: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(read)).ok()
}

fn same_words(line: &str, title: &str) -> bool {
    let words = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let title = words(title);
    !title.is_empty() && line.len() <= 4 * title.len() + 40 && words(line).ends_with(&title)
}
