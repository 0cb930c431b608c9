//! What docx, pptx and xlsx share: a packed folder of XML files, unpacked under bounds.

use super::{DocumentError, Kind};
use crate::limits::{DOCUMENT_NESTING_MAX, DOCUMENT_PARTS_MAX, DOCUMENT_UNPACKED_BYTES_MAX};
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};
use std::io::{Cursor, Read};
use zip::ZipArchive;
use zip::result::ZipError;

/// An opened Office file.
pub(super) struct Package<'a> {
    kind: Kind,
    zip: ZipArchive<Cursor<&'a [u8]>>,
    /// What may still be unpacked.
    left: u64,
}

impl<'a> Package<'a> {
    pub fn open(kind: Kind, bytes: &'a [u8]) -> Result<Self, DocumentError> {
        let zip = ZipArchive::new(Cursor::new(bytes)).map_err(|error| DocumentError::damaged(kind, error))?;
        if zip.len() > DOCUMENT_PARTS_MAX {
            return Err(DocumentError::too_large("parts", zip.len() as u64, DOCUMENT_PARTS_MAX as u64));
        }
        Ok(Self { kind, zip, left: DOCUMENT_UNPACKED_BYTES_MAX })
    }

    /// Unpacks every part once and drops it: for parsers that unpack by themselves, without a bound.
    pub fn check_sizes(&mut self) -> Result<(), DocumentError> {
        for index in 0..self.zip.len() {
            let Some(Ok(name)) = self.zip.name_for_index(index) else { continue };
            let name = name.into_owned();
            // Pictures are not unpacked by anybody.
            if name.ends_with(".xml") || name.ends_with(".rels") {
                self.part(&name)?;
            }
        }
        self.left = DOCUMENT_UNPACKED_BYTES_MAX;
        Ok(())
    }

    pub fn has(&self, name: &str) -> bool {
        self.zip.index_for_name(name).is_some()
    }

    /// The bytes of a part; `None` when there is no such part.
    pub fn part(&mut self, name: &str) -> Result<Option<Vec<u8>>, DocumentError> {
        let kind = self.kind;
        let part = match self.zip.by_name(name) {
            Ok(part) => part,
            Err(ZipError::FileNotFound) => return Ok(None),
            Err(ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED)) => return Err(DocumentError::Locked),
            Err(error) => return Err(DocumentError::damaged(kind, error)),
        };
        // The size that the file claims may be a lie; the bytes that come out are counted.
        let mut bytes = Vec::new();
        let read = part.take(self.left + 1).read_to_end(&mut bytes);
        read.map_err(|error| DocumentError::damaged(kind, format!("{name}: {error}")))?;
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            let max = DOCUMENT_UNPACKED_BYTES_MAX;
            DocumentError::too_large("bytes when unpacked", max + 1, max)
        })?;
        Ok(Some(bytes))
    }

    /// A part that must be there.
    pub fn needed(&mut self, name: &str) -> Result<Vec<u8>, DocumentError> {
        let kind = self.kind;
        self.part(name)?.ok_or_else(|| DocumentError::damaged(kind, format!("its part {name} is missing")))
    }

    /// Where the relations of a part lead: (id, kind, target).
    pub fn relations(&mut self, part: &str) -> Result<Vec<Relation>, DocumentError> {
        let (folder, file) = part.rsplit_once('/').unwrap_or(("", part));
        let name = format!("{folder}/_rels/{file}.rels");
        let Some(bytes) = self.part(name.trim_start_matches('/'))? else { return Ok(Vec::new()) };
        let mut relations = Vec::new();
        walk(self.kind, &bytes, |step| {
            if let Step::Open("Relationship", tag) = step {
                let [id, kind, target] = ["Id", "Type", "Target"].map(|name| attribute(tag, name).unwrap_or_default());
                relations.push(Relation { id, kind, target: resolve(folder, &target) });
            }
            Ok(())
        })?;
        Ok(relations)
    }
}

pub(super) struct Relation {
    pub id: String,
    /// A URL whose end says what it is.
    pub kind: String,
    /// The part it leads to.
    pub target: String,
}

/// `../notes/a.xml` seen from `ppt/slides` is `ppt/notes/a.xml`.
fn resolve(folder: &str, target: &str) -> String {
    if let Some(absolute) = target.strip_prefix('/') {
        return absolute.to_owned();
    }
    let mut path: Vec<&str> = folder.split('/').filter(|step| !step.is_empty()).collect();
    for step in target.split('/') {
        match step {
            ".." => {
                path.pop();
            }
            "." | "" => {}
            step => path.push(step),
        }
    }
    path.join("/")
}

/// What a walk through XML meets. Names are without their prefix.
pub(super) enum Step<'a> {
    Open(&'a str, &'a BytesStart<'a>),
    Close(&'a str),
    Text(&'a str),
}

/// Walks through an XML part. An element without content opens and closes.
pub(super) fn walk(
    kind: Kind,
    bytes: &[u8],
    mut each: impl FnMut(Step<'_>) -> Result<(), DocumentError>,
) -> Result<(), DocumentError> {
    let damaged = |error: &dyn std::fmt::Display| DocumentError::damaged(kind, error);
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(&error))?;
    let mut reader = Reader::from_str(text);
    let mut depth = 0usize;
    loop {
        match reader.read_event().map_err(|error| damaged(&error))? {
            Event::Start(tag) => {
                depth += 1;
                if depth > DOCUMENT_NESTING_MAX {
                    let (found, max) = (depth as u64, DOCUMENT_NESTING_MAX as u64);
                    return Err(DocumentError::too_large("elements inside each other", found, max));
                }
                let name = tag.local_name();
                each(Step::Open(std::str::from_utf8(name.as_ref()).unwrap_or_default(), &tag))?;
            }
            Event::Empty(tag) => {
                let name = tag.local_name();
                let name = std::str::from_utf8(name.as_ref()).unwrap_or_default();
                each(Step::Open(name, &tag))?;
                each(Step::Close(name))?;
            }
            Event::End(tag) => {
                depth = depth.saturating_sub(1);
                let name = tag.local_name();
                each(Step::Close(std::str::from_utf8(name.as_ref()).unwrap_or_default()))?;
            }
            Event::Text(text) => each(Step::Text(&text.xml10_content().map_err(|error| damaged(&error))?))?,
            Event::CData(text) => each(Step::Text(&text.xml10_content().map_err(|error| damaged(&error))?))?,
            Event::GeneralRef(name) => {
                let known = match name.resolve_char_ref() {
                    Ok(Some(c)) => Some(c.to_string()),
                    _ => std::str::from_utf8(&name).ok().and_then(resolve_predefined_entity).map(str::to_owned),
                };
                // Entities of a DTD are not expanded: what they could grow to has no bound.
                each(Step::Text(known.as_deref().unwrap_or(" ")))?;
            }
            Event::Eof if depth > 0 => return Err(damaged(&"an XML part ends too early")),
            Event::Eof => return Ok(()),
            Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Comment(_) => {}
        }
    }
}

/// The value of an attribute by its name without prefix.
pub(super) fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let found = tag.attributes().flatten().find(|found| found.key.local_name().as_ref() == name.as_bytes())?;
    found.unescape_value().ok().map(std::borrow::Cow::into_owned)
}

/// Whether a file in the old container is a new Office file behind a password.
pub(super) fn is_locked(bytes: &[u8]) -> bool {
    let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
    bytes.windows(name.len()).any(|window| window == name)
}
