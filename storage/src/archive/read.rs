//! Reading archived messages where they lie, and bringing them back.

use super::index::{self, Block};
use super::line::Line;
use super::messages::{self, ARCHIVE_PLACE};
use super::object::{self, Kind};
use super::target::{Target, TargetError};
use super::{ArchiveError, at, damaged};
use crate::backend::{Cf, KvOp};
use crate::error::ReadError;
use crate::layout;
use crate::reseal::Guarded;
use crate::store::{Store, decode};
use millrace_proto::digest::hex;
use millrace_proto::id::{ConversationId, TenantId};
use millrace_proto::record::Message;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Opens the target at a place, by the URL that [`Target::place`] said.
pub type OpenPlace<'a> = &'a dyn Fn(&str) -> Result<Box<dyn Target>, TargetError>;

/// Archived messages of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// Whose.
    pub tenant: TenantId,
    /// Which conversation.
    pub conversation: ConversationId,
    /// How many.
    pub messages: u64,
    /// The first of them, in Unix milliseconds.
    pub first_ms: u64,
    /// The last of them.
    pub last_ms: u64,
}

/// Which archived messages are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveFilter {
    /// `None` = every tenant's.
    pub tenant: Option<TenantId>,
    /// Said at this time or later, in Unix milliseconds.
    pub from_ms: u64,
    /// Said before this time.
    pub to_ms: u64,
}

impl Store {
    /// Whether archived messages belong to what was read of a conversation: the last `limit` ones before `before_seq`.
    /// Reads index rows only: fit for a reactor.
    pub fn lacks_archived(
        &self,
        (tenant, conversation): (TenantId, ConversationId),
        read: &[Message],
        before_seq: Option<u64>,
        limit: usize,
    ) -> Result<bool, ReadError> {
        let oldest = read.first().map(|message| message.seq).filter(|_| read.len() >= limit);
        let mut lacks = false;
        index::scan(&*self.shared().kv, &layout::sess(tenant, conversation), |block| {
            lacks = before_seq.is_none_or(|before| block.first_seq < before)
                && oldest.is_none_or(|oldest| block.last_seq > oldest);
            if lacks { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(lacks)
    }

    /// Conversations with archived messages, by time: the newest first.
    pub fn archived(&self, filter: &ArchiveFilter, limit: usize) -> Result<Vec<Archived>, ReadError> {
        let mut found: BTreeMap<(TenantId, ConversationId), Archived> = BTreeMap::new();
        index::scan(&*self.shared().kv, &[], |block| {
            let wanted = filter.tenant.is_none_or(|tenant| tenant == block.tenant)
                && block.first_ms < filter.to_ms
                && block.last_ms >= filter.from_ms;
            if wanted {
                let (tenant, conversation) = (block.tenant, block.conversation);
                let about = found.entry((tenant, conversation)).or_insert(Archived {
                    tenant,
                    conversation,
                    messages: 0,
                    first_ms: u64::MAX,
                    last_ms: 0,
                });
                about.messages += u64::from(block.rows);
                about.first_ms = about.first_ms.min(block.first_ms);
                about.last_ms = about.last_ms.max(block.last_ms);
            }
            ControlFlow::Continue(())
        })?;
        let mut found: Vec<Archived> = found.into_values().collect();
        found.sort_by_key(|about| std::cmp::Reverse(about.last_ms));
        found.truncate(limit);
        Ok(found)
    }

    /// As [`Store::messages`], archived ones included. Waits for the target: not for a reactor.
    pub fn messages_with_archived(
        &self,
        open: OpenPlace<'_>,
        (tenant, conversation): (TenantId, ConversationId),
        before_seq: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Message>, ArchiveError> {
        // The index first: what moves between the two readings is found in the block, or in both.
        let mut blocks = self.blocks(tenant, conversation)?;
        let live = self.messages(tenant, conversation, before_seq, limit)?;
        let mut found: BTreeMap<u64, Message> = live.into_iter().map(|message| (message.seq, message)).collect();
        blocks.extend(self.blocks(tenant, conversation)?);
        blocks.sort_by_key(|block| std::cmp::Reverse(block.last_seq));
        blocks.dedup();
        let mut places = Places::new(self, open);
        for block in blocks.iter().filter(|block| before_seq.is_none_or(|before| block.first_seq < before)) {
            let oldest_wanted = found.keys().rev().nth(limit.saturating_sub(1)).copied();
            if oldest_wanted.is_some_and(|oldest| block.last_seq < oldest) {
                break;
            }
            let rows = places.rows(block)?.into_iter();
            for (seq, sealed) in rows.filter(|(seq, _)| before_seq.is_none_or(|before| *seq < before)) {
                let key = layout::msg(tenant, conversation, seq);
                match self.shared().open(tenant, Cf::Msg, &key, sealed) {
                    Ok(plain) => found.entry(seq).or_insert(decode::<Message>(Cf::Msg, &plain)?),
                    Err(ReadError::Forgotten { .. }) => return Ok(Vec::new()),
                    Err(error) => return Err(error.into()),
                };
            }
        }
        let surplus = found.len().saturating_sub(limit);
        Ok(found.into_values().skip(surplus).collect())
    }

    /// Brings the archived messages of a conversation back, and leaves them in the store until it has been idle for as
    /// long again. Answers how many.
    pub fn unarchive(
        &self,
        open: OpenPlace<'_>,
        tenant: TenantId,
        conversation: ConversationId,
    ) -> Result<u64, ArchiveError> {
        let inner = self.inner();
        let _run = inner.archive.begin()?;
        let mut places = Places::new(self, open);
        let mut brought = 0;
        for block in self.blocks(tenant, conversation)? {
            let KvOp::Put(cf, key, old) = block.put() else { unreachable!("a block is put") };
            let mut ops =
                vec![KvOp::Delete(cf, key.clone()), index::put_held(tenant, conversation, crate::queue::now_ms())];
            for (seq, sealed) in places.rows(&block)? {
                let row = layout::msg(tenant, conversation, seq);
                if inner.shared.kv.get(Cf::Msg, &row).map_err(ReadError::from)?.is_none() {
                    ops.push(KvOp::Put(Cf::Msg, row, sealed));
                    brought += 1;
                }
            }
            inner.commit.guarded(&inner.shared, vec![Guarded { cf, key, old, ops, reseals: false }])?;
        }
        Ok(brought)
    }

    fn blocks(&self, tenant: TenantId, conversation: ConversationId) -> Result<Vec<Block>, ReadError> {
        let mut blocks = Vec::new();
        index::scan(&*self.shared().kv, &layout::sess(tenant, conversation), |block| {
            blocks.push(block);
            ControlFlow::Continue(())
        })?;
        Ok(blocks)
    }
}

/// Targets that were opened for one reading.
struct Places<'a> {
    store: &'a Store,
    open: OpenPlace<'a>,
    opened: Vec<(index::PlaceId, Box<dyn Target>)>,
}

impl<'a> Places<'a> {
    fn new(store: &'a Store, open: OpenPlace<'a>) -> Self {
        Self { store, open, opened: Vec::new() }
    }

    /// The rows of a block, read from its object alone.
    fn rows(&mut self, block: &Block) -> Result<Vec<(u64, Vec<u8>)>, ArchiveError> {
        let key = Line::key(self.store.inner(), &block.line)?.ok_or(ReadError::Corrupt {
            cf: Cf::Ctl.name(),
            why: "the key of a line of backups that archived messages need is missing".into(),
        })?;
        let target = self.target(&block.place)?;
        let name = messages::name(&block.line, &block.object);
        let (range, whole) = (block.range(), block.object_bytes as usize);
        let part = target.get_range(&name, object::sealed_range(&range, whole)).map_err(at(target, "read", &name))?;
        let plain = object::open_range(&key, (block.suite, Kind::Messages, &block.object), &range, whole, part)
            .map_err(|object::Damaged(why)| damaged(target, &name)(why))?;
        let rows = index::rows(&plain).ok_or_else(|| damaged(target, &name)("its rows have the wrong layout"))?;
        if rows.len() != block.rows as usize {
            return Err(damaged(target, &name)("it has other rows than its index says"));
        }
        Ok(rows)
    }

    fn target(&mut self, place: &index::PlaceId) -> Result<&dyn Target, ArchiveError> {
        if let Some(known) = self.opened.iter().position(|(known, _)| known == place) {
            return Ok(&*self.opened[known].1);
        }
        let stored = self.store.shared().meta(&format!("{ARCHIVE_PLACE}{}", hex(place)))?;
        let url = stored.and_then(|url| String::from_utf8(url).ok()).ok_or(ReadError::Corrupt {
            cf: Cf::Ctl.name(),
            why: "the place of archived messages is missing".into(),
        })?;
        let target = (self.open)(&url).map_err(|source| ArchiveError::Target {
            act: "open",
            object: "archived messages".into(),
            place: url,
            source,
        })?;
        self.opened.push((*place, target));
        Ok(&*self.opened.last().expect("it was pushed").1)
    }
}
