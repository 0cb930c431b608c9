//! A batch: what shall become durable together, in typed form.

use crate::backend::Cf;
use crate::corpus::CorpusOp;
use crate::layout;
use crate::memory::{self, Extracted};
use crate::queue::Receipt;
use millrace_proto::id::{ConversationId, EffectKey, TenantId, UserId};
use millrace_proto::record::{Credential, DeliveryState, InboxRecord, Message, OutboxJob, Record, SessionHead, Timer};

/// One memory: a turn's text and its embedding, owned by a user.
///
/// Writing the same (conversation, seq) again replaces the older one, so a replayed turn does no harm.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryWrite {
    /// Owning tenant.
    pub tenant: TenantId,
    /// Owning user; nobody else recalls it.
    pub user: UserId,
    /// Where it was said.
    pub conversation: ConversationId,
    /// Its message in that conversation.
    pub seq: u64,
    /// What was said.
    pub text: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// Its embedding; empty when there is no embedding model.
    pub embedding: Vec<f32>,
}

/// One passage of a tenant's shared space (documents, a company's knowledge).
#[derive(Debug, Clone, PartialEq)]
pub struct SpaceWrite {
    /// Owning tenant.
    pub tenant: TenantId,
    /// Name of the space.
    pub space: String,
    /// The caller's number for the passage; writing it again replaces the older one.
    pub id: u64,
    /// The passage.
    pub text: String,
    /// Its embedding; every passage of a space has the same length.
    pub embedding: Vec<f32>,
    /// The user whose it is: nobody else finds it. `None` = everybody of the tenant does.
    pub owner: Option<UserId>,
    /// What searches may ask for: up to [`crate::SPACE_TAGS_MAX`] of up to [`crate::SPACE_TAG_BYTES_MAX`] bytes.
    pub tags: Vec<String>,
    /// Its time in Unix milliseconds, for searches that ask for one; 0 = unknown.
    pub at_ms: u64,
}

/// Writes that become durable together or not at all. See [`crate::Store::submit`].
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) ops: Vec<Op>,
    pub(crate) bytes: usize,
    /// Users of conversations that this batch knows: their keys seal what is written there.
    pub(crate) users: Vec<(TenantId, ConversationId, UserId)>,
}

#[derive(Debug)]
pub(crate) enum Op {
    /// A sealed value.
    Put {
        tenant: TenantId,
        cf: Cf,
        key: Vec<u8>,
        plain: Vec<u8>,
    },
    /// A value that holds no user data, as it is.
    PutClear {
        cf: Cf,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        cf: Cf,
        key: Vec<u8>,
    },
    Dedup {
        tenant: TenantId,
        scope: String,
        key: String,
        expires_ms: u64,
    },
    Finish {
        tenant: TenantId,
        key: Vec<u8>,
        receipt: Receipt,
    },
    Remember(MemoryWrite),
    Forget {
        tenant: TenantId,
        user: UserId,
        conversation: ConversationId,
        seq: u64,
    },
    Extracted(Extracted),
    SpacePut(SpaceWrite),
    SpaceRemove {
        tenant: TenantId,
        space: String,
        id: u64,
    },
    Corpus {
        tenant: TenantId,
        corpus: String,
        op: CorpusOp,
    },
    Invalid(String),
}

/// What an operation costs beyond its texts, for the byte bound of the queue.
const OP_BYTES: usize = 96;

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// True when nothing would be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Number of writes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    fn push(&mut self, bytes: usize, op: Op) {
        self.bytes += bytes + OP_BYTES;
        self.ops.push(op);
    }

    fn put(&mut self, tenant: TenantId, cf: Cf, key: Vec<u8>, plain: Vec<u8>) {
        self.push(plain.len(), Op::Put { tenant, cf, key, plain });
    }

    /// Writes a session's head and lists the session under its user.
    pub fn put_session(&mut self, head: &SessionHead) {
        self.users.push((head.tenant, head.conversation, head.user));
        self.put(head.tenant, Cf::Sess, layout::sess(head.tenant, head.conversation), head.to_bytes());
        self.push(
            8,
            Op::PutClear {
                cf: Cf::UserSess,
                key: layout::user_sess(head.tenant, head.user, head.conversation),
                value: head.updated_ms.to_be_bytes().to_vec(),
            },
        );
    }

    /// Writes a message at its `seq`.
    pub fn append_message(&mut self, tenant: TenantId, conversation: ConversationId, message: &Message) {
        self.put(tenant, Cf::Msg, layout::msg(tenant, conversation, message.seq), message.to_bytes());
    }

    /// Accepts an inbound message: it is open until [`Batch::close_inbox`].
    pub fn put_inbox(&mut self, record: &InboxRecord) {
        self.users.push((record.tenant, record.conversation, record.user));
        let key = layout::inbox(record.tenant, record.conversation, record.number);
        self.put(record.tenant, Cf::Inbox, key, record.to_bytes());
    }

    /// The message of this number is answered.
    pub fn close_inbox(&mut self, tenant: TenantId, conversation: ConversationId, number: u64) {
        self.push(0, Op::Delete { cf: Cf::Inbox, key: layout::inbox(tenant, conversation, number) });
    }

    /// Remembers that an event was seen, until `expires_ms` (Unix milliseconds).
    pub fn put_dedup(&mut self, tenant: TenantId, scope: &str, key: &str, expires_ms: u64) {
        let op = Op::Dedup { tenant, scope: scope.to_owned(), key: key.to_owned(), expires_ms };
        self.push(scope.len() + key.len(), op);
    }

    /// Writes an effect; an older row of the same key, finished or not, is replaced.
    pub fn put_outbox(&mut self, job: &OutboxJob) {
        let key = layout::effect(job.tenant, &job.key);
        self.push(0, Op::Delete { cf: Cf::Receipt, key: key.clone() });
        self.put(job.tenant, Cf::Outbox, key, job.to_bytes());
    }

    /// Ends an effect. `Delivered` removes the job and leaves a receipt for some days; `Dead` and
    /// `Unknown` keep the job listed until it is submitted again or removed.
    pub fn finish_outbox(&mut self, tenant: TenantId, key: &EffectKey, state: DeliveryState, detail: &str) {
        if matches!(state, DeliveryState::Pending | DeliveryState::Sending) {
            let why = format!("an effect cannot end in state `{}`", state.as_str());
            return self.push(0, Op::Invalid(why));
        }
        let receipt = Receipt::now(state, detail);
        self.push(detail.len(), Op::Finish { tenant, key: layout::effect(tenant, key), receipt });
    }

    /// Removes an effect with its receipt (an operator discards a dead letter).
    pub fn remove_outbox(&mut self, tenant: TenantId, key: &EffectKey) {
        let key = layout::effect(tenant, key);
        self.push(0, Op::Delete { cf: Cf::Receipt, key: key.clone() });
        self.push(0, Op::Delete { cf: Cf::Outbox, key });
    }

    /// Sets a timer. A timer is named by its due time too: remove the old one when moving it.
    pub fn put_timer(&mut self, timer: &Timer) {
        let key = layout::timer(timer.due_ms, timer.tenant, timer.conversation, timer.id);
        self.put(timer.tenant, Cf::Timer, key, timer.to_bytes());
    }

    /// Removes a timer, as it was set.
    pub fn remove_timer(&mut self, timer: &Timer) {
        let key = layout::timer(timer.due_ms, timer.tenant, timer.conversation, timer.id);
        self.push(0, Op::Delete { cf: Cf::Timer, key });
    }

    /// Remembers a text with its embedding for later recall by the same user.
    pub fn remember(&mut self, write: MemoryWrite) {
        self.push(write.text.len() * 4 + write.embedding.len() * 4, Op::Remember(write));
    }

    /// Forgets one memory.
    pub fn forget(&mut self, tenant: TenantId, user: UserId, conversation: ConversationId, seq: u64) {
        self.push(0, Op::Forget { tenant, user, conversation, seq });
    }

    /// Lets a message that is remembered wait for an extraction. Write both in one batch.
    pub fn let_extract(&mut self, tenant: TenantId, user: UserId, conversation: ConversationId, seq: u64) {
        let key = memory::pending_row(tenant, user, conversation, seq);
        self.push(0, Op::PutClear { cf: Cf::Pending, key, value: Vec::new() });
    }

    /// Brings what an extraction found; its messages wait no longer. Refused as a whole, with
    /// [`crate::CommitError::Forgotten`], when one of them does not wait any more.
    pub fn extracted(&mut self, write: Extracted) {
        let texts = |statement: &millrace_proto::statement::Statement| {
            statement.subject.len() + statement.relation.len() + statement.object.len() + 2 * OP_BYTES
        };
        let bytes = write.statements.iter().map(texts).sum::<usize>() + write.messages.len() * OP_BYTES;
        self.push(bytes, Op::Extracted(write));
    }

    /// Adds or replaces a passage of a shared space.
    pub fn put_space(&mut self, write: SpaceWrite) {
        let tags: usize = write.tags.iter().map(String::len).sum();
        self.push(write.text.len() + tags + write.embedding.len() * 4, Op::SpacePut(write));
    }

    /// Removes a passage of a shared space.
    pub fn remove_space(&mut self, tenant: TenantId, space: &str, id: u64) {
        self.push(space.len(), Op::SpaceRemove { tenant, space: space.to_owned(), id });
    }

    /// Changes a row of a corpus.
    pub(crate) fn corpus(&mut self, tenant: TenantId, corpus: &str, op: CorpusOp) {
        self.push(op.bytes(), Op::Corpus { tenant, corpus: corpus.to_owned(), op });
    }

    /// Writes a credential under the SHA-256 of its secret.
    pub fn put_credential(&mut self, hash: [u8; 32], credential: &Credential) {
        self.put(crate::seal::NODE, Cf::Cred, layout::cred(&hash), credential.to_bytes());
    }

    /// Writes a named value of the node (names up to [`crate::META_NAME_BYTES_MAX`] bytes).
    pub fn put_meta(&mut self, name: &str, value: &[u8]) {
        if name.is_empty() || name.len() > crate::META_NAME_BYTES_MAX {
            let why =
                format!("a value's name has 1 to {} bytes, this one has {}", crate::META_NAME_BYTES_MAX, name.len());
            return self.push(0, Op::Invalid(why));
        }
        self.put(crate::seal::NODE, Cf::Ctl, layout::meta(name), value.to_vec());
    }

    /// Removes a named value of the node.
    pub fn remove_meta(&mut self, name: &str) {
        self.push(0, Op::Delete { cf: Cf::Ctl, key: layout::meta(name) });
    }
}
