//! Why a file gave no text.

use super::Kind;

/// What is wrong with a file. Each text says what, why and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// The ending of the name is not one of the readable formats.
    #[error(
        "{name:?} has no ending of a format that is read (txt, md, html, pdf, docx, xlsx, pptx, csv, eml); \
         export it to one of these"
    )]
    UnknownKind {
        /// The name of the file.
        name: String,
    },
    /// A bound was passed.
    #[error("the document has {found} {what}, more than the {max} that are read; split it")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is, or where counting ended.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// It is encrypted.
    #[error("the document is locked with a password; remove the password in the program that made it")]
    Locked,
    /// The format of Office before 2007.
    #[error("the document has the format of Office before 2007; save it as docx, xlsx or pptx")]
    OldOffice,
    /// The bytes do not hold together.
    #[error("the document cannot be read as {kind}: {why}; open it in the program that made it and save it again")]
    Damaged {
        /// The format that the name promises.
        kind: &'static str,
        /// What was found.
        why: String,
    },
    /// There is nothing to find in it.
    #[error(
        "the {kind} document holds no text; if its pages are pictures (a scan), run a text recognition over it first"
    )]
    NoText {
        /// Its format.
        kind: &'static str,
    },
}

impl DocumentError {
    pub(super) fn too_large(what: &'static str, found: u64, max: u64) -> Self {
        Self::TooLarge { what, found, max }
    }

    pub(super) fn damaged(kind: Kind, why: impl std::fmt::Display) -> Self {
        /// Messages of parsers may repeat the file's own bytes at length.
        const WHY_BYTES_MAX: usize = 200;
        let mut why = why.to_string();
        why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
        Self::Damaged { kind: kind.as_str(), why }
    }

    /// Every [`DocumentError::code`].
    pub const CODES: [&'static str; 5] =
        ["unknown_format", "document_too_large", "document_locked", "document_damaged", "document_without_text"];

    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownKind { .. } => "unknown_format",
            Self::TooLarge { .. } => "document_too_large",
            Self::Locked => "document_locked",
            Self::OldOffice => "unknown_format",
            Self::Damaged { .. } => "document_damaged",
            Self::NoText { .. } => "document_without_text",
        }
    }
}
