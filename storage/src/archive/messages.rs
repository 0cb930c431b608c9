//! Moving messages that nobody asks for out of the store, into sealed objects of the target.
//!
//! Two kinds move: all messages of conversations that were idle for long, and in conversations that go on the messages
//! that are older than that and outside the window that contexts are made of. A block of rows is durable in the target
//! before one batch puts its place into the index and removes the rows, and that batch holds only if the session is
//! what it was when the rows were read. So a crash leaves the rows, or the block and its index, or both an unnamed
//! object and the rows: nothing is lost and nothing is read twice.

use super::budget::Budget;
use super::index::{self, Block, PlaceId};
use super::line::Line;
use super::object::{self, Kind};
use super::target::Target;
use super::{ArchiveError, at, create, list_manifests, read_manifest};
use crate::backend::{Cf, KvOp, ScanRange};
use crate::batch::Batch;
use crate::error::ReadError;
use crate::layout;
use crate::reseal::Guarded;
use crate::store::{BackendKind, Inner, Store, decode};
use millrace_proto::backup::{LineId, OBJECT_BYTES_MAX, ObjectId};
use millrace_proto::digest::{hex, sha256};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{Message, SessionHead};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Named values that remember where archived messages are.
pub(crate) const ARCHIVE_PLACE: &str = "archive/place/";
/// Listing rows and messages looked at in one step.
const PAGE_ROWS: usize = 256;

/// What shall leave the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveRule {
    /// What was said before this may leave, in Unix milliseconds.
    pub before_ms: u64,
    /// Newest messages of a conversation that stay as long as it is not idle: what contexts are made of.
    pub window: u64,
}

/// What a run moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArchiveDone {
    /// Messages that left the store.
    pub messages: u64,
    /// Conversations that they are of.
    pub conversations: u64,
    /// Bytes that were sent.
    pub bytes_sent: u64,
    /// Objects that nothing named any more and that were removed.
    pub objects_removed: u64,
}

impl Store {
    /// Moves messages to a target by a rule. Blocks for as long as it takes: not for a reactor.
    pub fn archive(
        &self,
        target: &dyn Target,
        rule: ArchiveRule,
        budget: &Budget,
    ) -> Result<ArchiveDone, ArchiveError> {
        let inner = self.inner();
        if inner.options.backend == BackendKind::Memory {
            return Err(ArchiveError::NoFiles);
        }
        let _run = inner.archive.begin()?;
        let place = remember_place(inner, &target.place())?;
        let mut mover = Mover {
            inner,
            target,
            budget,
            line: Line::of(inner)?,
            place,
            rule,
            plain: Vec::new(),
            pending: Vec::new(),
            done: ArchiveDone::default(),
        };
        mover.run()?;
        mover.done.objects_removed = mover.remove_unnamed()?;
        Ok(mover.done)
    }
}

/// What index rows call a place.
pub(crate) fn place_id(url: &str) -> PlaceId {
    *sha256(url.as_bytes()).first_chunk().expect("32 bytes hold 16")
}

/// Notes a place, and says what index rows call it.
fn remember_place(inner: &Inner, url: &str) -> Result<PlaceId, ArchiveError> {
    let id = place_id(url);
    let name = format!("{ARCHIVE_PLACE}{}", hex(&id));
    if inner.shared.meta(&name)?.is_none() {
        let mut batch = Batch::new();
        batch.put_meta(&name, url.as_bytes());
        inner.commit.commit(&inner.shared, batch)?;
    }
    Ok(id)
}

pub(crate) fn folder(line: &LineId) -> String {
    format!("archive/{}", hex(line))
}

pub(crate) fn name(line: &LineId, id: &ObjectId) -> String {
    format!("{}/{}", folder(line), hex(id))
}

/// Objects of the blocks that are meant, of all that the index names.
pub(crate) fn named(inner: &Inner, meant: impl Fn(&Block) -> bool) -> Result<HashSet<ObjectId>, ReadError> {
    let mut named = HashSet::new();
    index::scan(&*inner.shared.kv, &[], |block| {
        if meant(&block) {
            named.insert(block.object);
        }
        ControlFlow::Continue(())
    })?;
    Ok(named)
}

/// A block that waits for its object.
struct Pending {
    block: Block,
    /// The session as it was when the rows were read.
    session: Vec<u8>,
    rows: Vec<Vec<u8>>,
}

struct Mover<'a> {
    inner: &'a Inner,
    target: &'a dyn Target,
    budget: &'a Budget,
    line: Line,
    place: PlaceId,
    rule: ArchiveRule,
    /// The object that is being filled.
    plain: Vec<u8>,
    pending: Vec<Pending>,
    done: ArchiveDone,
}

impl Mover<'_> {
    fn run(&mut self) -> Result<(), ArchiveError> {
        let to = layout::prefix_end(&[u8::MAX]);
        let mut from = Vec::new();
        loop {
            let mut page = Vec::new();
            let kv = &self.inner.shared.kv;
            let scanned = kv.scan(Cf::UserSess, ScanRange::forward(&from, &to), &mut |key, value| {
                page.push((key.to_vec(), value.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))));
                if page.len() < PAGE_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            scanned.map_err(ReadError::from)?;
            let Some((last, _)) = page.last() else { return self.send() };
            from.clone_from(last);
            from.push(0);
            for (key, updated_ms) in page {
                if let Some((tenant, user, conversation)) = layout::user_sess_parts(&key) {
                    self.conversation(tenant, user, conversation, updated_ms)?;
                }
            }
        }
    }

    fn conversation(
        &mut self,
        tenant: TenantId,
        user: UserId,
        conversation: ConversationId,
        updated_ms: u64,
    ) -> Result<(), ArchiveError> {
        let shared = &self.inner.shared;
        let idle = updated_ms < self.rule.before_ms;
        let held = index::held_ms(&*shared.kv, tenant, conversation).map_err(ReadError::from)?;
        if held >= self.rule.before_ms && held > 0 {
            return Ok(());
        }
        let key = layout::sess(tenant, conversation);
        let Some(session) = shared.kv.get(Cf::Sess, &key).map_err(ReadError::from)? else { return Ok(()) };
        let head = match shared.open(tenant, Cf::Sess, &key, session.clone()) {
            Ok(plain) => decode::<SessionHead>(Cf::Sess, &plain)?,
            Err(ReadError::Forgotten { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if head.user != user {
            return Ok(());
        }
        let end_seq = if idle { u64::MAX } else { head.next_seq.saturating_sub(self.rule.window) };
        let mut from = layout::msg(tenant, conversation, 0);
        let to = layout::msg(tenant, conversation, end_seq);
        loop {
            let mut page = Vec::new();
            let mut bytes = 0;
            let scanned = shared.kv.scan(Cf::Msg, ScanRange::forward(&from, &to), &mut |key, value| {
                bytes += value.len();
                page.push((key.to_vec(), value.to_vec()));
                let full = page.len() == PAGE_ROWS || bytes >= OBJECT_BYTES_MAX;
                if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            scanned.map_err(ReadError::from)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from.clone_from(last);
            from.push(0);
            self.budget.spend(bytes as u64).map_err(|_| ArchiveError::Stopped)?;
            for (key, sealed) in page {
                let plain = match shared.open(tenant, Cf::Msg, &key, sealed.clone()) {
                    Ok(plain) => plain,
                    // What does not open stays where whoever reads it is told.
                    Err(error) => {
                        tracing::warn!(%error, "messages that do not open are not archived");
                        return Ok(());
                    }
                };
                let message = decode::<Message>(Cf::Msg, &plain)?;
                if !idle && message.at_ms >= self.rule.before_ms {
                    return Ok(());
                }
                self.add(tenant, conversation, &session, (key, sealed), &message)?;
            }
        }
    }

    /// Adds a row to the object that is being filled.
    fn add(
        &mut self,
        tenant: TenantId,
        conversation: ConversationId,
        session: &[u8],
        (key, sealed): (Vec<u8>, Vec<u8>),
        message: &Message,
    ) -> Result<(), ArchiveError> {
        let bytes = index::row_bytes(sealed.len());
        if bytes > OBJECT_BYTES_MAX {
            // One message that no object holds; it stays, and readers put it between its neighbours.
            return Ok(());
        }
        if self.plain.len() + bytes > OBJECT_BYTES_MAX {
            self.send()?;
        }
        let (offset, at_ms) = (self.plain.len() as u32, message.at_ms);
        index::push_row(&mut self.plain, message.seq, &sealed);
        let same =
            |pending: &&mut Pending| (pending.block.tenant, pending.block.conversation) == (tenant, conversation);
        if let Some(pending) = self.pending.last_mut().filter(same) {
            let block = &mut pending.block;
            block.last_seq = message.seq;
            block.rows += 1;
            block.length += bytes as u32;
            (block.first_ms, block.last_ms) = (block.first_ms.min(at_ms), block.last_ms.max(at_ms));
            pending.rows.push(key);
            return Ok(());
        }
        let block = Block {
            tenant,
            conversation,
            first_seq: message.seq,
            last_seq: message.seq,
            rows: 1,
            first_ms: at_ms,
            last_ms: at_ms,
            suite: self.inner.options.suite,
            place: self.place,
            line: self.line.id,
            object: [0; 16],
            object_bytes: 0,
            offset,
            length: bytes as u32,
        };
        self.pending.push(Pending { block, session: session.to_vec(), rows: vec![key] });
        Ok(())
    }

    /// Sends the object, and once it is durable moves its blocks.
    fn send(&mut self) -> Result<(), ArchiveError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let plain = std::mem::take(&mut self.plain);
        let id = self.line.key.object_id(Kind::Messages as u8, &plain);
        let object = object::seal(&self.line.key, self.inner.options.suite, Kind::Messages, &id, &plain);
        let name = name(&self.line.id, &id);
        self.done.bytes_sent += object.len() as u64;
        self.target.put(&name, object, self.budget).map_err(at(self.target, "write", &name))?;
        for pending in std::mem::take(&mut self.pending) {
            let block = Block { object: id, object_bytes: plain.len() as u32, ..pending.block };
            let key = layout::sess(block.tenant, block.conversation);
            let mut ops = vec![block.put()];
            ops.extend(pending.rows.into_iter().map(|row| KvOp::Delete(Cf::Msg, row)));
            let moved = Guarded { cf: Cf::Sess, key, old: pending.session, ops, reseals: false };
            self.inner.commit.guarded(&self.inner.shared, vec![moved])?;
            // A session that was used meanwhile keeps its messages; its part of the object is waste.
            let stored = self.inner.shared.kv.get(Cf::Archive, &block.key()).map_err(ReadError::from)?;
            if stored.is_some() {
                self.done.messages += u64::from(block.rows);
                self.done.conversations += 1;
            }
        }
        Ok(())
    }

    /// Removes objects of this line that neither the index nor any backup names.
    fn remove_unnamed(&self) -> Result<u64, ArchiveError> {
        let folder = folder(&self.line.id);
        let objects = self.target.list(&folder).map_err(at(self.target, "list", &folder))?;
        let mut named = named(self.inner, |block| block.line == self.line.id)?;
        let unnamed =
            |named: &HashSet<ObjectId>, name: &str| create::object_of(name).is_none_or(|id| !named.contains(&id));
        if !objects.iter().any(|object| unnamed(&named, &object.name)) {
            return Ok(0);
        }
        for (line, number) in list_manifests(self.target)? {
            if line == self.line.id {
                match read_manifest(self.target, &line, number, self.budget) {
                    Ok(manifest) => named.extend(manifest.keep),
                    Err(ArchiveError::Stopped) => return Err(ArchiveError::Stopped),
                    Err(error) => {
                        tracing::warn!(%error, "a backup cannot be read: no archived object is removed");
                        return Ok(0);
                    }
                }
            }
        }
        let mut removed = 0;
        for object in objects.iter().filter(|object| unnamed(&named, &object.name)) {
            self.target.remove(&object.name).map_err(at(self.target, "remove", &object.name))?;
            removed += 1;
        }
        Ok(removed)
    }
}
