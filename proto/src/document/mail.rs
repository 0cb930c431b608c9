//! Mails: who, when and about what, the text, and the attachments that are documents themselves.

use super::sink::Sink;
use super::{DocumentError, Kind, html, read_into, text};
use crate::limits::{DOCUMENT_ATTACHMENTS_MAX, DOCUMENT_MAIL_DEPTH_MAX};
use mail_parser::{Address, MessageParser, MimeHeaders as _, PartType};

const KIND: Kind = Kind::Eml;

pub(super) fn read(bytes: &[u8], sink: &mut Sink, depth: usize) -> Result<(), DocumentError> {
    if depth >= DOCUMENT_MAIL_DEPTH_MAX {
        sink.note("a mail inside mails inside a mail was left out".to_owned());
        return Ok(());
    }
    let mail = MessageParser::default()
        .parse(bytes)
        .filter(|mail| !mail.headers().is_empty())
        .ok_or_else(|| DocumentError::damaged(KIND, "it has no mail headers"))?;
    sink.heading(1, mail.subject().unwrap_or("(no subject)"))?;
    let people = |list: Option<&Address<'_>>| {
        let of = |addr: &mail_parser::Addr<'_>| match (addr.name(), addr.address()) {
            (Some(name), Some(address)) => format!("{name} <{address}>"),
            (name, address) => name.or(address).unwrap_or_default().to_owned(),
        };
        list.map(|list| list.iter().map(of).collect::<Vec<_>>().join(", ")).unwrap_or_default()
    };
    let date = mail.date().map(mail_parser::DateTime::to_rfc3339).unwrap_or_default();
    for (name, value) in
        [("From", people(mail.from())), ("To", people(mail.to())), ("Cc", people(mail.cc())), ("Date", date)]
    {
        if !value.is_empty() {
            sink.text(&format!("{name}: {value}"))?;
        }
    }
    for id in &mail.text_body {
        match mail.parts.get(*id as usize).map(|part| &part.body) {
            Some(PartType::Text(body)) => text::plain_paragraphs(body, sink)?,
            Some(PartType::Html(body)) => html::read_text(body, sink)?,
            _ => {}
        }
    }
    let count = mail.attachments().count();
    if count > DOCUMENT_ATTACHMENTS_MAX {
        return Err(DocumentError::too_large("attachments", count as u64, DOCUMENT_ATTACHMENTS_MAX as u64));
    }
    for part in mail.attachments() {
        let name = part.attachment_name().unwrap_or("attachment").to_owned();
        let (kind, bytes) = match &part.body {
            PartType::Message(inner) => (Some(Kind::Eml), inner.raw_message()),
            _ => (Kind::of_name(&name), part.contents()),
        };
        let Some(kind) = kind else {
            sink.note(format!("the attachment {name:?} is no format that is read"));
            continue;
        };
        sink.heading(2, &format!("Attachment {name}"))?;
        sink.shift += 2;
        let read = read_into(kind, bytes, sink, depth + 1);
        sink.shift -= 2;
        match read {
            Ok(()) => {}
            // What bounds the whole document ends it; a broken attachment does not.
            Err(error @ DocumentError::TooLarge { .. }) => return Err(error),
            Err(error) => sink.note(format!("the attachment {name:?}: {error}")),
        }
    }
    Ok(())
}
