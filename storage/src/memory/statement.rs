//! Statements that an extraction took out of a user's messages, as edges of the user's graph.
//!
//! subject -> object, both things of the graph, so the walk of a recall follows them like any edge. The relation's
//! number is a keyed digest of its word with the top bit set. The row of `edge_out` carries the words, sealed by the
//! user's key and bound to the row's key; the row of `edge_in` is the bare edge. A statement gets an end and is
//! not deleted, unless the message that says it is.
//!
//! Which messages wait for an extraction is a row of `pending` each, written in the batch that remembers the
//! message and removed in the batch that brings what was found in it. So nothing is looked at twice with effect, and
//! a crash between the two costs the work and nothing else.

use super::graph::{self, Edge, EdgeChange, EdgeId, OPEN_END};
use super::recall::read_text_row;
use super::{Derived, entity, text};
use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::error::{CommitError, ReadError};
use crate::layout::{self, DOC_BYTES, DocId};
use crate::seal::TenantKeys;
use crate::store::Shared;
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::statement::{MessageId, SPEAKER, Statement, normal};
use std::ops::ControlFlow;

/// Longest subject, relation or object, in bytes.
pub const STATEMENT_PART_BYTES_MAX: usize = 256;
/// Edges that one question for statements looks at: reading so many takes some 50 ms.
const EDGES_LOOKED_AT_MAX: usize = 100_000;
/// Subjects besides the speaker that a question is taken to be about.
const SUBJECTS_MAX: usize = 8;
/// Statements of one subject that are weighed for a question.
const ABOUT_MAX: usize = 128;
/// Rows of `pending` that one question looks at for messages of one conversation.
const PENDING_LOOKED_AT_MAX: usize = 256;

/// What an extraction found in some messages of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// Owning tenant.
    pub tenant: TenantId,
    /// Whose messages they are.
    pub user: UserId,
    /// The messages that were looked at. All of them still wait, or the batch is refused.
    pub messages: Vec<MessageId>,
    /// Statements that are new or that got an end.
    pub statements: Vec<Statement>,
}

/// A question for statements of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementQuery {
    /// Owning tenant.
    pub tenant: TenantId,
    /// Whose statements.
    pub user: UserId,
    /// About this only.
    pub subject: Option<String>,
    /// With this relation only.
    pub relation: Option<String>,
    /// Those that held at the first time as far as was known at the second, in Unix milliseconds; `None` = all there ever were.
    pub as_of: Option<(u64, u64)>,
    /// At most so many.
    pub limit: usize,
}

/// A message that waits for an extraction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingMessage {
    /// Its place.
    pub id: MessageId,
    /// What was said; `None` when it is not remembered any more.
    pub text: Option<String>,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
}

/// The oldest messages of one conversation of one user that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingMessages {
    /// Owning tenant.
    pub tenant: TenantId,
    /// Whose.
    pub user: UserId,
    /// In the order in which they were said.
    pub messages: Vec<PendingMessage>,
}

impl PendingMessages {
    /// Where to go on for the next user, whatever becomes of these.
    #[must_use]
    pub fn next(&self) -> PendingFrom {
        PendingFrom(layout::prefix_end(&layout::user_prefix(self.tenant, self.user)))
    }
}

/// A place in the order of users with waiting messages. The default is the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PendingFrom(Vec<u8>);

fn thing(keys: &TenantKeys, user: UserId, name: &str) -> layout::Vertex {
    // The name that the rules find in a text is the same thing.
    graph::thing(keys, user, &format!("name:{}", normal(name)))
}

fn relation(keys: &TenantKeys, user: UserId, word: &str) -> u16 {
    u16::from_be_bytes(keys.blind("relation", &[&user.0, word.as_bytes()])) | graph::STATEMENT_BIT
}

fn check(statement: &Statement) -> Result<(), CommitError> {
    for (what, text) in
        [("subject", &statement.subject), ("relation", &statement.relation), ("object", &statement.object)]
    {
        if normal(text).is_empty() || text.len() > STATEMENT_PART_BYTES_MAX {
            let why = format!(
                "the {what} of a statement has 1 to {STATEMENT_PART_BYTES_MAX} bytes, this one has {}",
                text.len()
            );
            return Err(CommitError::Invalid { why });
        }
    }
    Ok(())
}

fn doc_of((conversation, seq): MessageId) -> DocId {
    DocId { conversation, seq }
}

fn message_of(doc: DocId) -> MessageId {
    (doc.conversation, doc.seq)
}

/// The sealed words: length 2 and bytes of subject, relation and object, then the message that told the end, if any.
fn to_words(statement: &Statement) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in [&statement.subject, &statement.relation, &statement.object] {
        bytes.extend((text.len() as u16).to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes.extend(statement.ended_by.iter().flat_map(|id| doc_of(*id).to_bytes()));
    bytes
}

fn from_words(id: &EdgeId, edge: &Edge, mut bytes: &[u8]) -> Option<Statement> {
    let mut text = || {
        let (length, rest) = bytes.split_first_chunk()?;
        let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        bytes = rest;
        Some(std::str::from_utf8(text).ok()?.to_owned())
    };
    let (subject, relation, object) = (text()?, text()?, text()?);
    let ended_by = match bytes.len() {
        0 => None,
        DOC_BYTES => Some(message_of(DocId::at_end_of(bytes)?)),
        _ => return None,
    };
    Some(Statement {
        subject,
        relation,
        object,
        valid_from_ms: id.valid_from_ms,
        valid_to_ms: Some(edge.valid_to_ms).filter(|end| *end != OPEN_END),
        recorded_ms: edge.recorded_ms,
        ended_ms: Some(edge.ended_ms).filter(|told| *told != 0),
        source: message_of(edge.memory),
        ended_by,
    })
}

/// Refuses what an extraction brings when one of its messages does not wait any more: the user was forgotten
/// meanwhile, or another extraction was first.
pub(crate) fn check_pending(kv: &dyn KvStore, write: &Extracted) -> Result<(), CommitError> {
    let key = |id: &MessageId| layout::pending(write.tenant, write.user, doc_of(*id));
    let keys: Vec<Vec<u8>> = write.messages.iter().map(key).collect();
    match kv.multi_get(Cf::Pending, &keys)?.iter().all(Option::is_some) {
        true => Ok(()),
        false => Err(CommitError::Forgotten),
    }
}

/// The rows of what an extraction brings.
pub(crate) fn extracted(
    keys: &TenantKeys,
    write: Extracted,
    ops: &mut Vec<KvOp>,
    derived: &mut Vec<Derived>,
) -> Result<(), CommitError> {
    let Extracted { tenant, user, messages, statements } = write;
    let mut edges = Vec::with_capacity(statements.len());
    for statement in &statements {
        check(statement)?;
        let id = EdgeId {
            from: thing(keys, user, &statement.subject),
            relation: relation(keys, user, &statement.relation),
            valid_from_ms: statement.valid_from_ms,
            to: thing(keys, user, &statement.object),
        };
        let edge = Edge {
            valid_to_ms: statement.valid_to_ms.unwrap_or(OPEN_END),
            recorded_ms: statement.recorded_ms,
            weight: 1.0,
            memory: doc_of(statement.source),
            ended_ms: statement.ended_ms.unwrap_or(0),
        };
        let (out, back) = graph::row_keys(graph::Owner { tenant, user, doc: edge.memory }, &id);
        let bare = edge.to_bytes();
        let sealed = keys.seal(Cf::EdgeOut, &out, &to_words(statement));
        ops.push(KvOp::Put(Cf::EdgeOut, out, [&bare[..], &sealed].concat()));
        ops.push(KvOp::Put(Cf::EdgeIn, back, bare));
        edges.push(EdgeChange::Put(id, edge));
    }
    ops.extend(messages.iter().map(|id| KvOp::Delete(Cf::Pending, layout::pending(tenant, user, doc_of(*id)))));
    derived.push(Derived::Stated { tenant, user, edges });
    Ok(())
}

/// Removes the statements that a message made, which goes. They are not listed by message, so all edges of the user are
/// looked at; that a remembered message goes or changes is rare.
pub(crate) fn delete_of(
    kv: &dyn KvStore,
    owner: graph::Owner,
    ops: &mut Vec<KvOp>,
) -> Result<Vec<EdgeChange>, CommitError> {
    let prefix = layout::user_prefix(owner.tenant, owner.user);
    let mut changes = Vec::new();
    kv.scan(Cf::EdgeOut, ScanRange::forward(&prefix, &layout::prefix_end(&prefix)), &mut |key, value| {
        let Some((id, edge)) = graph::read_row(key, value) else { return ControlFlow::Continue(()) };
        if id.relation & graph::STATEMENT_BIT != 0 && edge.memory == owner.doc {
            let (out, back) = graph::row_keys(owner, &id);
            ops.push(KvOp::Delete(Cf::EdgeOut, out));
            ops.push(KvOp::Delete(Cf::EdgeIn, back));
            changes.push(EdgeChange::Remove(id));
        }
        ControlFlow::Continue(())
    })?;
    ops.push(KvOp::Delete(Cf::Pending, layout::pending(owner.tenant, owner.user, owner.doc)));
    Ok(changes)
}

impl Shared {
    /// The statements that a question asks for, the newest of each relation first.
    pub fn statements(&self, query: &StatementQuery) -> Result<Vec<Statement>, ReadError> {
        let (tenant, user) = (query.tenant, query.user);
        let Some(keys) = self.keys.find_user(&*self.kv, tenant, user)? else { return Ok(Vec::new()) };
        let mut from = layout::user_prefix(tenant, user);
        let wanted = query.relation.as_ref().map(|word| relation(&keys, user, word));
        if let Some(subject) = &query.subject {
            from.extend(thing(&keys, user, subject));
            from.extend(wanted.into_iter().flat_map(u16::to_be_bytes));
        }
        let to = layout::prefix_end(&from);
        if query.subject.is_some() && wanted.is_none() {
            // Statements stand behind all other edges of a thing.
            from.extend(graph::STATEMENT_BIT.to_be_bytes());
        }
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut left = EDGES_LOOKED_AT_MAX;
        self.kv.scan(Cf::EdgeOut, ScanRange::forward(&from, &to), &mut |key, value| {
            left -= 1;
            if let Some((id, edge)) = graph::read_row(key, value)
                && id.relation & graph::STATEMENT_BIT != 0
                && wanted.is_none_or(|wanted| wanted == id.relation)
                && query.as_of.is_none_or(|(valid_ms, known_ms)| {
                    super::walk::AsOf { valid_ms, known_ms }.sees(id.valid_from_ms, &edge)
                })
            {
                rows.push((key.to_vec(), value.to_vec()));
            }
            if left > 0 && rows.len() < query.limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let mut found = Vec::with_capacity(rows.len());
        for (key, value) in rows.into_iter().take(query.limit) {
            let corrupt =
                || ReadError::Corrupt { cf: Cf::EdgeOut.name(), why: "a statement has the wrong layout".into() };
            let (id, edge) = graph::read_row(&key, &value).ok_or_else(corrupt)?;
            let words = keys.open(Cf::EdgeOut, &key, value[graph::EDGE_BYTES..].to_vec())?;
            let statement = from_words(&id, &edge, &words).ok_or_else(corrupt)?;
            // Digests of sixteen bits may meet; the words decide.
            if query.relation.as_ref().is_none_or(|word| *word == statement.relation) {
                found.push(statement);
            }
        }
        Ok(found)
    }

    /// Statements that hold at a time about the speaker and what a text names, the one that covers most of the text's
    /// words first, with the share of them that it covers.
    pub fn statements_about(
        &self,
        (tenant, user): (TenantId, UserId),
        text: &str,
        now_ms: u64,
        limit: usize,
    ) -> Result<Vec<(Statement, f32)>, ReadError> {
        let asked = text::counts(text);
        let names = entity::seeds(text, SUBJECTS_MAX);
        // A thing of the speaker's name is the speaker, who is asked about anyway.
        let names = names.iter().filter_map(|name| name.strip_prefix("name:")).filter(|name| *name != SPEAKER);
        let mut found: Vec<(Statement, f32)> = Vec::new();
        for subject in std::iter::once(SPEAKER).chain(names) {
            let (subject, as_of) = (Some(subject.to_owned()), Some((now_ms, now_ms)));
            let query = StatementQuery { tenant, user, subject, relation: None, as_of, limit: ABOUT_MAX };
            for statement in self.statements(&query)? {
                let said =
                    format!("{} {} {}", statement.subject, statement.relation, statement.object).replace('_', " ");
                let said = text::counts(&said);
                let covered = asked.keys().filter(|word| said.contains_key(*word)).count();
                if covered > 0 {
                    found.push((statement, covered as f32 / asked.len() as f32));
                }
            }
        }
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.valid_from_ms.cmp(&a.0.valid_from_ms)));
        found.dedup_by(|a, b| a.0 == b.0);
        found.truncate(limit);
        Ok(found)
    }

    /// The oldest waiting messages of the first user at or after a place, of one conversation and at most `most`.
    pub fn pending_messages(&self, from: &PendingFrom, most: usize) -> Result<Option<PendingMessages>, ReadError> {
        let mut owner = None;
        let mut docs: Vec<DocId> = Vec::new();
        let to = layout::prefix_end(&[u8::MAX]);
        self.kv.scan(Cf::Pending, ScanRange::forward(&from.0, &to), &mut |key, _| {
            let Some((tenant, user, doc)) = layout::memory_parts(key) else { return ControlFlow::Continue(()) };
            let other = docs.first().is_some_and(|first| first.conversation != doc.conversation)
                || owner.is_some_and(|known| known != (tenant, user));
            if other {
                return ControlFlow::Break(());
            }
            owner = Some((tenant, user));
            docs.push(doc);
            if docs.len() < most.min(PENDING_LOOKED_AT_MAX) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        let Some((tenant, user)) = owner else { return Ok(None) };
        let rows: Vec<Vec<u8>> = docs.iter().map(|doc| layout::memory(tenant, user, *doc)).collect();
        let mut messages = Vec::with_capacity(docs.len());
        for ((doc, row), sealed) in docs.iter().zip(&rows).zip(self.kv.multi_get(Cf::Mem, &rows)?) {
            let told = match sealed.map(|sealed| self.open(tenant, Cf::Mem, row, sealed)) {
                None | Some(Err(ReadError::Forgotten { .. })) => None,
                Some(plain) => Some(read_text_row(&plain?)?),
            };
            let (at_ms, text) = told.map_or((0, None), |(at_ms, text)| (at_ms, Some(text)));
            messages.push(PendingMessage { id: message_of(*doc), text, at_ms });
        }
        Ok(Some(PendingMessages { tenant, user, messages }))
    }
}

/// The row of `pending` for a message.
pub(crate) fn pending_row(tenant: TenantId, user: UserId, conversation: ConversationId, seq: u64) -> Vec<u8> {
    layout::pending(tenant, user, DocId { conversation, seq })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_read_back_and_noise_is_refused(
            texts in ["\\PC{1,40}", "[a-z_]{1,20}", "\\PC{1,40}"], ended in any::<bool>(), from in any::<u64>(),
            noise in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let id = EdgeId { from: [1; 24], relation: graph::STATEMENT_BIT, valid_from_ms: from, to: [2; 24] };
            let doc = DocId { conversation: ConversationId([7; 16]), seq: 3 };
            let (valid_to_ms, ended_ms) = if ended { (from, 5) } else { (OPEN_END, 0) };
            let edge = Edge { valid_to_ms, recorded_ms: 4, weight: 1.0, memory: doc, ended_ms };
            let [subject, relation, object] = texts;
            let statement = Statement {
                subject,
                relation,
                object,
                valid_from_ms: from,
                valid_to_ms: ended.then_some(from).filter(|end| *end != OPEN_END),
                recorded_ms: 4,
                ended_ms: ended.then_some(5),
                source: message_of(doc),
                ended_by: ended.then_some(message_of(doc)),
            };
            prop_assert_eq!(from_words(&id, &edge, &to_words(&statement)), Some(statement));
            let _ = from_words(&id, &edge, &noise);
        }
    }
}
