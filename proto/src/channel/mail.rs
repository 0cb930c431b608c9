//! What all mail gateways share: who wrote, in which thread, and the new part of the text.

use super::{Answer, Attachment, Decoded, EventKind, InboundEvent, Outgoing, Reject, Secret};

/// A mail as a gateway reports it.
#[derive(Debug, Default)]
pub(super) struct Mail {
    /// The envelope's sender: the header `From` is the writer's to choose.
    pub sender: String,
    pub message_id: Option<String>,
    pub in_reply_to: Option<String>,
    pub references: Option<String>,
    pub auto_submitted: Option<String>,
    pub precedence: Option<String>,
    pub subject: Option<String>,
    pub text: String,
    pub attachments: Vec<Attachment>,
    /// Whether SPF or DKIM vouches for the sender; `None` when the gateway does not say.
    pub vouched: Option<bool>,
}

impl Mail {
    /// Reads the header fields that matter from a header block or a whole message.
    pub fn read_headers(&mut self, block: &[u8]) {
        let parser = mail_parser::MessageParser::default();
        let Some(message) = parser.parse_headers(block) else { return };
        let raw = |name: &str| message.header_raw(name).map(|value| value.trim().to_owned()).filter(|v| !v.is_empty());
        let fill = |field: &mut Option<String>, name| *field = field.take().or_else(|| raw(name));
        fill(&mut self.message_id, "Message-ID");
        fill(&mut self.in_reply_to, "In-Reply-To");
        fill(&mut self.references, "References");
        fill(&mut self.auto_submitted, "Auto-Submitted");
        fill(&mut self.precedence, "Precedence");
        fill(&mut self.subject, "Subject");
    }

    /// Reads a whole message: header fields and the text.
    pub fn read_message(&mut self, raw: &[u8]) {
        self.read_headers(raw);
        if let Some(message) = mail_parser::MessageParser::default().parse(raw) {
            self.text = message.body_text(0).unwrap_or_default().into_owned();
            let names = message.attachments().map(|part| {
                use mail_parser::MimeHeaders as _;
                let kind = part.content_type().map_or("file", |kind| kind.c_type.as_ref()).to_owned();
                Attachment { kind, reference: part.attachment_name().unwrap_or("attachment").to_owned() }
            });
            self.attachments = names.collect();
        }
    }

    /// The event, unless answering would start a loop or help a forger.
    pub fn event(self, dedup_key: Option<String>) -> Result<Decoded, Reject> {
        let sender = self.sender.trim().trim_matches(['<', '>']).to_owned();
        if sender.is_empty() {
            return Decoded::ignore("a bounce: the return path is empty");
        }
        let automatic = self.auto_submitted.as_deref().is_some_and(|word| !word.trim().eq_ignore_ascii_case("no"));
        let bulk = self
            .precedence
            .as_deref()
            .is_some_and(|word| ["bulk", "list", "junk"].iter().any(|known| word.trim().eq_ignore_ascii_case(known)));
        if automatic || bulk {
            return Decoded::ignore("an automatic mail");
        }
        if self.vouched == Some(false) {
            return Decoded::ignore("neither SPF nor DKIM vouches for the sender");
        }
        let message_id = self.message_id.as_deref().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
        let key = dedup_key.or_else(|| message_id.clone()).ok_or(Reject::Malformed("a mail without Message-ID"))?;
        let mut event = InboundEvent::new(EventKind::Message, key, sender.clone(), sender);
        event.thread = first_id(self.references.as_deref()).or_else(|| first_id(self.in_reply_to.as_deref()));
        let subject = self.subject.as_deref().unwrap_or_default().trim();
        event.reply_handle = message_id.as_ref().map(|id| Secret::new(format!("{id} {subject}")));
        event.message_id = message_id;
        event.private = true;
        event.text = new_part(&self.text);
        event.attachments = self.attachments;
        Decoded::event(event, Answer::ok())
    }
}

fn first_id(list: Option<&str>) -> Option<String> {
    list?.split_whitespace().next().map(str::to_owned)
}

/// The text without quoted lines, the line that introduces them, and the signature.
fn new_part(text: &str) -> String {
    let introduces_quote = |line: &str| line.starts_with("On ") && line.trim_end().ends_with("wrote:");
    let lines = text.lines().take_while(|line| *line != "-- " && *line != "--" && !introduces_quote(line));
    let kept: Vec<&str> = lines.filter(|line| !line.starts_with('>')).collect();
    kept.join("\n").trim().to_owned()
}

/// What a reply needs from the mail that it answers.
pub(super) struct Thread<'a> {
    /// The `Message-ID` that is answered.
    pub in_reply_to: Option<&'a str>,
    /// `Re:` and the subject.
    pub subject: String,
    /// The header `References`.
    pub references: Option<String>,
}

/// Reads the handle that [`Mail::event`] made.
pub(super) fn thread<'a>(out: &Outgoing<'a>) -> Thread<'a> {
    let (id, subject) = match out.handle() {
        Some(handle) => handle.split_once(' ').map_or((Some(handle), ""), |(id, subject)| (Some(id), subject)),
        None => (None, ""),
    };
    // A header value has no line breaks, whatever the subject had.
    let subject: String = subject.chars().filter(|c| !c.is_control()).collect();
    let again = subject.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("re:"));
    let subject = match subject.trim() {
        "" => "Re: your message".to_owned(),
        subject if again => subject.to_owned(),
        subject => format!("Re: {subject}"),
    };
    let clean = |id: &&str| !id.chars().any(char::is_control);
    let in_reply_to = id.filter(clean);
    let references = match (out.address.thread.as_deref().filter(clean), in_reply_to) {
        (Some(root), Some(id)) if root != id => Some(format!("{root} {id}")),
        (_, id) => id.map(str::to_owned),
    };
    Thread { in_reply_to, subject, references }
}
