//! Documents: the bytes of a file become blocks of text that know where they stand, and blocks become
//! passages of a size that an embedding model reads.
//!
//! Readers ([`read`]) are one file a format and use well-kept parsers where there is one. Each works
//! under the bounds of [`crate::limits`]: what is too large, nested too deep, locked or damaged is a
//! [`DocumentError`] that says so. A parser of somebody else may still panic or eat memory over a
//! hostile file; whoever reads files of strangers does it in a process of its own.
//!
//! [`passages`] cuts blocks. A passage carries its headings and the page, slide or sheet it stands on,
//! and every passage of a table begins with the table's head, so that each can be cited and understood
//! alone.

mod chunk;
mod docx;
mod error;
mod html;
mod mail;
mod office;
mod pdf;
mod pptx;
mod sink;
mod text;
mod xlsx;

pub use chunk::{Passage, Place, passages};
pub use error::DocumentError;
pub use sink::Block;

use crate::limits::DOCUMENT_BYTES_MAX;
use rkyv::{Archive, Deserialize, Serialize};
use sink::Sink;

/// The formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Kind {
    /// Plain text in any common encoding.
    Text,
    /// CommonMark with tables.
    Markdown,
    /// A web page.
    Html,
    /// PDF with text in it.
    Pdf,
    /// Word (Office Open XML).
    Docx,
    /// Excel (Office Open XML).
    Xlsx,
    /// PowerPoint (Office Open XML).
    Pptx,
    /// Values separated by commas, semicolons or tabs; the first line names the columns.
    Csv,
    /// A mail with its attachments.
    Eml,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 9] =
        [Kind::Text, Kind::Markdown, Kind::Html, Kind::Pdf, Kind::Docx, Kind::Xlsx, Kind::Pptx, Kind::Csv, Kind::Eml];

    /// Its usual file name ending.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Text => "txt",
            Kind::Markdown => "md",
            Kind::Html => "html",
            Kind::Pdf => "pdf",
            Kind::Docx => "docx",
            Kind::Xlsx => "xlsx",
            Kind::Pptx => "pptx",
            Kind::Csv => "csv",
            Kind::Eml => "eml",
        }
    }

    /// The kind by the ending of a file name.
    pub fn of_name(name: &str) -> Option<Self> {
        let (stem, ending) = name.rsplit_once('.')?;
        if stem.is_empty() {
            return None;
        }
        Some(match ending.to_ascii_lowercase().as_str() {
            "txt" | "text" | "log" | "rst" | "adoc" => Kind::Text,
            "md" | "markdown" => Kind::Markdown,
            "html" | "htm" | "xhtml" => Kind::Html,
            "pdf" => Kind::Pdf,
            "docx" | "docm" => Kind::Docx,
            "xlsx" | "xlsm" => Kind::Xlsx,
            "pptx" | "pptm" => Kind::Pptx,
            "csv" | "tsv" => Kind::Csv,
            "eml" => Kind::Eml,
            _ => return None,
        })
    }
}

/// What was read from a file.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Document {
    /// Its format.
    pub kind: Kind,
    /// What it says, in order.
    pub blocks: Vec<Block>,
    /// Parts that could not be read although the rest could, for people: "page 7 is damaged".
    pub notes: Vec<String>,
}

/// Begins every PDF; some programs put a few bytes before it.
const PDF_MAGIC: &[u8] = b"%PDF-";
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
/// The container of old Office files, and of new ones that are locked with a password.
const OLE_MAGIC: &[u8] = &[0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1];

/// Reads a file. Its name gives the format; contents that contradict it are refused.
pub fn read(name: &str, bytes: &[u8]) -> Result<Document, DocumentError> {
    let kind = Kind::of_name(name).ok_or_else(|| DocumentError::UnknownKind { name: name.to_owned() })?;
    let mut sink = Sink::default();
    read_into(kind, bytes, &mut sink, 0)?;
    let (blocks, notes) = sink.finish();
    if !blocks.iter().any(Block::has_text) {
        return Err(DocumentError::NoText { kind: kind.as_str() });
    }
    Ok(Document { kind, blocks, notes })
}

fn read_into(kind: Kind, bytes: &[u8], sink: &mut Sink, depth: usize) -> Result<(), DocumentError> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(DocumentError::too_large("bytes", bytes.len() as u64, DOCUMENT_BYTES_MAX as u64));
    }
    if bytes.starts_with(OLE_MAGIC) {
        return Err(match kind {
            Kind::Docx | Kind::Xlsx | Kind::Pptx if office::is_locked(bytes) => DocumentError::Locked,
            _ => DocumentError::OldOffice,
        });
    }
    let is_zip = bytes.starts_with(ZIP_MAGIC);
    let is_pdf = bytes[..bytes.len().min(1_024)].windows(PDF_MAGIC.len()).any(|window| window == PDF_MAGIC);
    match kind {
        Kind::Pdf if !is_pdf => return Err(DocumentError::damaged(kind, "it does not begin like a PDF")),
        Kind::Docx | Kind::Xlsx | Kind::Pptx if !is_zip => {
            return Err(DocumentError::damaged(kind, "it does not begin like an Office file"));
        }
        Kind::Text | Kind::Markdown | Kind::Html | Kind::Csv | Kind::Eml if is_zip => {
            return Err(DocumentError::damaged(kind, "it is a packed file and no text"));
        }
        _ => {}
    }
    match kind {
        Kind::Text => text::read_plain(bytes, sink),
        Kind::Markdown => text::read_markdown(bytes, sink),
        Kind::Html => html::read(bytes, sink),
        Kind::Pdf => pdf::read(bytes, sink),
        Kind::Docx => docx::read(bytes, sink),
        Kind::Xlsx => xlsx::read(bytes, sink),
        Kind::Pptx => pptx::read(bytes, sink),
        Kind::Csv => text::read_csv(bytes, sink),
        Kind::Eml => mail::read(bytes, sink, depth),
    }
}

#[cfg(test)]
mod tests;
