//! The flat XML of WeChat and WeCom: one root, one level of named texts.
//!
//! No DTD, no processing instruction, no entity but the five predefined ones and characters by number.
//! CDATA is literal. Line ends are LF, as XML has it.

use super::Reject;
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;

/// Fields of one document.
const FIELDS_MAX: usize = 256;
/// Nesting: articles and picture lists lie a few levels deep.
const DEPTH_MAX: usize = 8;

/// The texts of the elements directly below the root.
#[derive(Debug, Default)]
pub(super) struct Document(Vec<(String, String)>);

impl Document {
    /// Reads a document.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        read(bytes).ok_or(Reject::Malformed("body is not flat XML"))
    }

    /// The text of the first element with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }

    /// A text that is not empty.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|text| !text.is_empty())
    }
}

fn read(bytes: &[u8]) -> Option<Document> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut reader = Reader::from_str(text);
    let mut fields: Vec<(String, String)> = Vec::new();
    let mut depth = 0;
    let mut roots = 0;
    loop {
        let field = if depth == 2 { fields.last_mut() } else { None };
        match reader.read_event().ok()? {
            Event::Start(start) => {
                depth += 1;
                roots += usize::from(depth == 1);
                if depth > DEPTH_MAX || roots > 1 || fields.len() == FIELDS_MAX {
                    return None;
                }
                if depth == 2 {
                    fields.push((String::from_utf8(start.name().as_ref().to_vec()).ok()?, String::new()));
                }
            }
            Event::Empty(start) => {
                if depth == 1 && fields.len() < FIELDS_MAX {
                    fields.push((String::from_utf8(start.name().as_ref().to_vec()).ok()?, String::new()));
                }
            }
            Event::End(_) => depth -= 1,
            Event::Text(text) => match field {
                Some((_, value)) => value.push_str(&text.xml10_content().ok()?),
                None if depth == 0 && !text.iter().all(u8::is_ascii_whitespace) => return None,
                None => {}
            },
            Event::CData(text) => {
                if let Some((_, value)) = field {
                    value.push_str(&text.xml10_content().ok()?);
                }
            }
            Event::GeneralRef(reference) => {
                let name = reference.decode().ok()?;
                let character = match reference.resolve_char_ref().ok()? {
                    Some(character) => character.to_string(),
                    None => resolve_predefined_entity(&name)?.to_owned(),
                };
                if let Some((_, value)) = field {
                    value.push_str(&character);
                }
            }
            Event::Comment(_) | Event::Decl(_) => {}
            Event::DocType(_) | Event::PI(_) => return None,
            Event::Eof => return (depth == 0 && roots == 1).then_some(Document(fields)),
        }
    }
}

/// Decodes the named and numbered entities of HTML texts that messengers send.
pub(super) fn unescape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        // The longest name that is decoded has four letters, the longest number eight characters.
        let end = rest.char_indices().take(12).find(|(_, c)| *c == ';').map(|(at, _)| at);
        match end.and_then(|end| Some((end, entity(&rest[1..end])?))) {
            Some((end, character)) => {
                out.push(character);
                rest = &rest[end + 1..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn entity(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some('\u{a0}'),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}
