//! Queues on disk: inbox, outbox with receipts, deduplication keys, timers.

use crate::backend::{Cf, ScanRange};
use crate::error::ReadError;
use crate::layout;
use crate::store::{Shared, Store, decode};
use millrace_proto::id::{ConversationId, EffectKey, TenantId};
use millrace_proto::record::{DeliveryState, InboxRecord, OutboxJob, Timer};
use std::ops::ControlFlow;
use std::time::{SystemTime, UNIX_EPOCH};

/// How long the receipt of a delivered effect is kept: as long as the deduplication keys, since
/// after that no peer repeats the event that caused it.
pub const RECEIPT_TTL_MS: u64 = millrace_proto::limits::DEDUP_TTL_MS;

/// How an effect ended.
#[derive(Debug, Clone, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Receipt {
    /// `Delivered`, `Dead` or `Unknown`.
    pub state: DeliveryState,
    /// The peer's receipt, or why it ended.
    pub detail: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// When this row may be dropped, in Unix milliseconds; 0 = never.
    pub expires_ms: u64,
}

impl Receipt {
    pub(crate) fn now(state: DeliveryState, detail: &str) -> Self {
        let at_ms = now_ms();
        let expires_ms = if state == DeliveryState::Delivered { at_ms + RECEIPT_TTL_MS } else { 0 };
        Self { state, detail: detail.to_owned(), at_ms, expires_ms }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        rkyv::to_bytes::<rkyv::rancor::Error>(self).expect("a receipt fits into memory").into_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, ReadError> {
        rkyv::from_bytes::<Self, rkyv::rancor::Error>(bytes)
            .map_err(|error| ReadError::Corrupt { cf: Cf::Receipt.name(), why: error.to_string() })
    }
}

/// Wall clock of the node, for expiry only: order never depends on it.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Rows with a clear expiry start with it: `expires_ms 8`, 0 = never. The compaction filter reads it.
pub(crate) fn expired(value: &[u8], now_ms: u64) -> bool {
    value.first_chunk().is_some_and(|bytes| {
        let expires = u64::from_be_bytes(*bytes);
        expires != 0 && expires <= now_ms
    })
}

/// The answer to [`Store::inbox_first`].
#[derive(Debug, Default)]
pub struct InboxFirst {
    /// The message; none when the conversation has none that opens.
    pub record: Option<InboxRecord>,
    /// Numbers of messages before it whose keys are gone: their users were forgotten.
    pub forgotten: Vec<u64>,
}

impl Store {
    /// Whether an event was seen and has not expired.
    pub fn dedup_seen(&self, tenant: TenantId, scope: &str, key: &str, now_ms: u64) -> Result<bool, ReadError> {
        let shared = self.shared();
        let Some(keys) = shared.keys.find(&*shared.kv, tenant)? else { return Ok(false) };
        let blind = keys.blind("dedup", &[scope.as_bytes(), key.as_bytes()]);
        let row = shared.kv.get(Cf::Idem, &layout::idem(tenant, blind))?;
        Ok(row.is_some_and(|value| !expired(&value, now_ms)))
    }

    /// Every accepted message that is not answered, by conversation and number.
    pub fn inbox_open(&self) -> Result<Vec<InboxRecord>, ReadError> {
        let mut records = Vec::new();
        self.shared().scan_sealed(Cf::Inbox, &[], usize::MAX, |plain| {
            records.push(decode::<InboxRecord>(Cf::Inbox, plain)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(records)
    }

    /// Owner, conversation and number of every accepted message that is not answered, in that order within a virtual
    /// shard, until `each` breaks. Nothing is opened, so this is quick where there are many.
    pub fn inbox_places(
        &self,
        each: &mut dyn FnMut(TenantId, ConversationId, u64) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let to = layout::prefix_end(&[u8::MAX]);
        self.shared().kv.scan(
            Cf::Inbox,
            ScanRange::forward(&[], &to),
            &mut |key, _| match layout::inbox_parts(key) {
                Some((tenant, conversation, number)) => each(tenant, conversation, number),
                None => ControlFlow::Continue(()),
            },
        )?;
        Ok(())
    }

    /// The oldest accepted message of a conversation that is not answered. Rows before it that do not open are
    /// passed over: those of forgotten users are named, so that the caller removes them; damaged ones stay.
    pub fn inbox_first(&self, tenant: TenantId, conversation: ConversationId) -> Result<InboxFirst, ReadError> {
        let shared = self.shared();
        let prefix = layout::sess(tenant, conversation);
        let to = layout::prefix_end(&prefix);
        let (mut found, mut failed) = (InboxFirst::default(), None);
        shared.kv.scan(Cf::Inbox, ScanRange::forward(&prefix, &to), &mut |key, sealed| {
            let opened = shared.open(tenant, Cf::Inbox, key, sealed.to_vec());
            match opened.and_then(|plain| decode::<InboxRecord>(Cf::Inbox, &plain)) {
                Ok(record) => {
                    found.record = Some(record);
                    return ControlFlow::Break(());
                }
                Err(ReadError::Forgotten { .. } | ReadError::KeyGone { .. }) => {
                    found.forgotten.extend(layout::tail_u64(key));
                }
                Err(error @ ReadError::Corrupt { .. }) => {
                    tracing::error!(%error, "an accepted message cannot be read; it stays where it is");
                }
                // It may be read the next time: later ones must not be answered before it.
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok(found), Err)
    }

    /// Every effect that is `Pending` or `Sending`, by conversation, turn and step.
    pub fn outbox_open(&self) -> Result<Vec<OutboxJob>, ReadError> {
        let open = |job: &OutboxJob| matches!(job.state, DeliveryState::Pending | DeliveryState::Sending);
        self.outbox_where(usize::MAX, open)
    }

    /// Effects of one tenant or all, in one state or all, at most `limit`. Rows of replies that are shown while
    /// they are written are none.
    pub fn outbox_list(
        &self,
        tenant: Option<TenantId>,
        state: Option<DeliveryState>,
        limit: usize,
    ) -> Result<Vec<OutboxJob>, ReadError> {
        self.outbox_where(limit, |job| {
            job.key.step != EffectKey::DRAFT_STEP
                && tenant.is_none_or(|tenant| tenant == job.tenant)
                && state.is_none_or(|state| state == job.state)
        })
    }

    /// One effect, unless it was delivered or never made (see [`Store::receipt`]).
    pub fn outbox_job(&self, tenant: TenantId, key: &EffectKey) -> Result<Option<OutboxJob>, ReadError> {
        let shared = self.shared();
        let row = layout::effect(tenant, key);
        let Some(plain) = shared.get_sealed(tenant, Cf::Outbox, &row)? else { return Ok(None) };
        let job = decode::<OutboxJob>(Cf::Outbox, &plain)?;
        Ok(Some(shared.with_receipt(&row, job)?))
    }

    /// How an effect ended, if it did and the receipt has not expired.
    pub fn receipt(&self, tenant: TenantId, key: &EffectKey, now_ms: u64) -> Result<Option<Receipt>, ReadError> {
        let receipt = self.shared().receipt_at(tenant, &layout::effect(tenant, key))?;
        Ok(receipt.filter(|receipt| receipt.expires_ms == 0 || receipt.expires_ms > now_ms))
    }

    fn outbox_where(&self, limit: usize, wanted: impl Fn(&OutboxJob) -> bool) -> Result<Vec<OutboxJob>, ReadError> {
        let shared = self.shared();
        let mut jobs = Vec::new();
        shared.scan_sealed(Cf::Outbox, &[], usize::MAX, |plain| {
            if jobs.len() >= limit {
                return Ok(ControlFlow::Break(()));
            }
            let job = decode::<OutboxJob>(Cf::Outbox, plain)?;
            let row = layout::effect(job.tenant, &job.key);
            let job = shared.with_receipt(&row, job)?;
            if wanted(&job) {
                jobs.push(job);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(jobs)
    }

    /// Timers that are due, the earliest first, at most `limit`.
    pub fn timers_due(&self, now_ms: u64, limit: usize) -> Result<Vec<Timer>, ReadError> {
        let mut timers = Vec::new();
        let to = now_ms.saturating_add(1).to_be_bytes();
        self.shared().scan_sealed_range(Cf::Timer, ScanRange::forward(&[], &to), limit, |plain| {
            timers.push(decode::<Timer>(Cf::Timer, plain)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(timers)
    }
}

impl Shared {
    fn with_receipt(&self, row: &[u8], mut job: OutboxJob) -> Result<OutboxJob, ReadError> {
        if let Some(receipt) = self.receipt_at(job.tenant, row)? {
            job.state = receipt.state;
            job.detail = receipt.detail;
        }
        Ok(job)
    }

    fn receipt_at(&self, tenant: TenantId, row: &[u8]) -> Result<Option<Receipt>, ReadError> {
        let Some(mut value) = self.kv.get(Cf::Receipt, row)? else { return Ok(None) };
        if value.len() < 8 {
            return Err(ReadError::Corrupt { cf: Cf::Receipt.name(), why: "shorter than its expiry".into() });
        }
        let sealed = value.split_off(8);
        Receipt::from_bytes(&self.open(tenant, Cf::Receipt, row, sealed)?).map(Some)
    }
}
