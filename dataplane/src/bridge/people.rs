//! Commands in chats, and who is who: the shell around [`People`].
//!
//! What a command changes, its dedup key and its answer are one batch: a command that the platform repeats, or
//! that a crash interrupts, has one effect and one answer. Commands are rare; one lock for the node keeps two
//! shards from writing one page at the same time.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use millrace_agent::{
    CODE_CHARS, CODE_TTL_MS, Change, Command, ConversationKey, HELP, Inbound, Listen, PageKey, People, Refused, Ticket,
};
use millrace_proto::api::ApiError;
use millrace_proto::channel::{Account, EventKind, InboundEvent};
use millrace_proto::digest;
use millrace_proto::id::{EffectKey, TenantId, UserId, virtual_shard};
use millrace_proto::record::{ChatAddress, DeliveryState, OutboxJob};
use millrace_storage::{Batch, ReadError, Store};

use super::errors::storage_error;
use super::message::{Ingested, ShardMessage};
use super::{Bridge, inbound, outbox};

/// Commands that are being carried out at the same time on one node.
const RUNNING_MAX: usize = 1_024;
/// Answers to commands are told apart from those to turns, which count from zero.
const COMMAND_TURN: u64 = 1 << 63;

type Running = (TenantId, String, String);

/// What all shards know of people and chats.
#[derive(Default)]
pub struct Registry {
    people: Mutex<People>,
    /// Events whose command is on its way to the disk.
    running: Mutex<HashSet<Running>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Whose memory a user speaks to.
    pub fn person(&self, store: &Store, tenant: TenantId, user: UserId) -> Result<UserId, ReadError> {
        Ok(self.with_user(store, tenant, user)?.person(tenant, user))
    }

    fn with_user(&self, store: &Store, tenant: TenantId, user: UserId) -> Result<MutexGuard<'_, People>, ReadError> {
        let mut people = lock(&self.people);
        while let Some(page) = people.missing_for_user(tenant, user) {
            fill(&mut people, store, page)?;
        }
        Ok(people)
    }

    fn with_chat(&self, store: &Store, tenant: TenantId, chat: &str) -> Result<MutexGuard<'_, People>, ReadError> {
        let mut people = lock(&self.people);
        if let Some(page) = people.missing_for_chat(tenant, chat) {
            fill(&mut people, store, page)?;
        }
        Ok(people)
    }

    fn begin(&self, running: &Running) -> bool {
        let mut all = lock(&self.running);
        all.len() < RUNNING_MAX && all.insert(running.clone())
    }

    fn end(&self, running: &Running) {
        lock(&self.running).remove(running);
    }
}

fn fill(people: &mut People, store: &Store, page: PageKey) -> Result<(), ReadError> {
    let bytes = store.meta(&page.name())?;
    if let Err(why) = people.fill(page, bytes.as_deref()) {
        // Sealed rows open unchanged or not at all, so this is a row of a newer version. Nobody is linked by it.
        tracing::error!(page = page.name(), why, "a page of links cannot be read; its users count as not linked");
        people.fill(page, None).expect("an empty page is none");
    }
    Ok(())
}

/// What is to be done with an event.
pub(super) enum Verdict {
    /// Nothing.
    Ignore(&'static str),
    /// It is a command.
    Command(Command),
    /// It is for the model.
    Turn,
}

/// The name of a chat in its settings: threads share those of their chat.
fn chat_name(account: &Account, event: &InboundEvent) -> String {
    format!("{}/{}/{}", account.kind, account.name, event.chat)
}

/// Users and chats of an account are their own name space: what an outside system says about user names gives no
/// access to anybody else's memory.
pub(super) fn user_of(account: &Account, user: &str) -> UserId {
    let channel = account.kind.as_str();
    let length = account.name.len().to_string();
    UserId::of(account.tenant, &["channel:", channel, ":", &length, ":", &account.name, ":", user].concat())
}

impl Bridge {
    /// Whether an event is for us at all, and for whom of us.
    pub(super) fn judge(&self, account: &Account, event: &InboundEvent) -> Result<Verdict, ApiError> {
        match event.kind {
            EventKind::Message | EventKind::Action | EventKind::Command => {}
            EventKind::StreamPoll => {
                return Ok(Verdict::Ignore("questions for a reply are answered, not stored"));
            }
            EventKind::Edited => return Ok(Verdict::Ignore("it is an edit of an earlier message")),
            EventKind::DataChange => return Ok(Verdict::Ignore("no trigger listens to data changes")),
        }
        if !account.users.is_empty() && !account.users.contains(&event.user) {
            return Ok(Verdict::Ignore("its writer is not among the users of the account"));
        }
        let command = match event.kind {
            EventKind::Action => None,
            _ => Command::parse(event.command.as_deref(), &event.text),
        };
        if event.private {
            return Ok(match command {
                Some(command) => Verdict::Command(command),
                None if event.text.trim().is_empty() => Verdict::Ignore("it has no text"),
                None => Verdict::Turn,
            });
        }
        let chat = chat_name(account, event);
        let people = self.shared.people.with_chat(&self.shared.store, account.tenant, &chat).map_err(unreadable)?;
        let listen = people.listen(account.tenant, &chat);
        drop(people);
        Ok(match (listen, command) {
            // The way back from silence must stay open, for those who may take it.
            (Listen::Off, Some(command @ Command::Listen(_))) if account.operators.contains(&event.user) => {
                Verdict::Command(command)
            }
            (Listen::Off, _) => Verdict::Ignore("the chat has asked for silence"),
            (_, Some(command)) if event.mentioned => Verdict::Command(command),
            (Listen::Mentions, _) if !event.mentioned => Verdict::Ignore("it is not addressed to us"),
            _ if event.text.trim().is_empty() => Verdict::Ignore("it has no text"),
            _ => Verdict::Turn,
        })
    }

    /// Carries a command out. It is durable when this returns.
    pub(super) async fn command(
        &self,
        account: &Account,
        event: InboundEvent,
        command: Command,
    ) -> Result<Ingested, ApiError> {
        let user = user_of(account, &event.user);
        let Inbound { record, dedup_scope, .. } = inbound(account, event.clone(), user, Ticket(0));
        let key = ConversationKey { tenant: account.tenant, conversation: record.conversation };
        let running = (account.tenant, dedup_scope, record.event_key);
        if !self.shared.people.begin(&running) {
            return Err(ApiError::overloaded("This command is being carried out.", 1));
        }
        let result = self.carry_out_command(account, &event, command, key, record.address, &running).await;
        self.shared.people.end(&running);
        result
    }

    async fn carry_out_command(
        &self,
        account: &Account,
        event: &InboundEvent,
        command: Command,
        key: ConversationKey,
        address: ChatAddress,
        (tenant, scope, event_key): &Running,
    ) -> Result<Ingested, ApiError> {
        let (store, now_ms) = (&self.shared.store, self.clock.now_ms());
        if store.dedup_seen(*tenant, scope, event_key, now_ms).map_err(unreadable)? {
            return Ok(Ingested::Duplicate);
        }
        let hash = digest::sha256(format!("{scope} {event_key}").as_bytes());
        let (number, _) = hash.split_first_chunk::<8>().expect("32 bytes hold 8");
        let effect =
            EffectKey { conversation: key.conversation, turn: u64::from_be_bytes(*number) | COMMAND_TURN, step: 0 };
        let (told, outcome) = tokio::sync::oneshot::channel();
        let (job, page) = {
            // Pages reach the store in the order in which they changed: submitted under the lock.
            let (mut people, text, change) = self.execute(account, event, &command, now_ms)?;
            let page = change.as_ref().map(|change| change.page);
            let job = OutboxJob {
                key: effect,
                tenant: *tenant,
                address,
                text,
                created_ms: now_ms,
                due_ms: now_ms,
                expires_ms: now_ms + CODE_TTL_MS,
                attempt: 0,
                state: DeliveryState::Pending,
                detail: String::new(),
            };
            let mut batch = Batch::new();
            batch.put_dedup(*tenant, scope, event_key, now_ms + account.kind.dedup_ttl_ms());
            if let Some(change) = change {
                batch.put_meta(&change.page.name(), &change.bytes);
            }
            outbox::put(&mut batch, &job);
            let done = Box::new(move |result| {
                // Whoever waited may have left; the batch is durable all the same.
                let _ = told.send(result);
            });
            if let Err(busy) = store.submit(batch, done) {
                page.iter().for_each(|page| people.forget(page));
                return Err(ApiError::overloaded(format!("The store is busy: {busy}."), 1));
            }
            (job, page)
        };
        match outcome.await {
            Ok(Ok(_)) => {}
            failed => {
                page.iter().for_each(|page| lock(&self.shared.people.people).forget(page));
                tracing::warn!(?failed, "a command was not written; the platform is asked to repeat it");
                return Err(storage_error(&millrace_agent::Fault::Busy));
            }
        }
        tracing::info!(channel = %account.kind, account = %account.name, command = name_of(&command), "a command was carried out");
        let owner = self.shared.shard_of(virtual_shard(*tenant, key.conversation));
        let mut state = self.state.borrow_mut();
        if owner == state.index {
            state.deliver_new(job);
        } else {
            state.send_answer(owner, ShardMessage::Deliver(Box::new(job)));
        }
        Ok(Ingested::Accepted)
    }

    /// What a command answers and changes. The lock comes along, so that the change is written in its turn.
    fn execute(
        &self,
        account: &Account,
        event: &InboundEvent,
        command: &Command,
        now_ms: u64,
    ) -> Result<(MutexGuard<'_, People>, String, Option<Change>), ApiError> {
        let (store, registry, tenant) = (&self.shared.store, &self.shared.people, account.tenant);
        let user = user_of(account, &event.user);
        if let Command::Redeem(code) = command {
            let owner = lock(&registry.people).owner_of(tenant, code);
            if let Some(owner) = owner {
                drop(registry.with_user(store, tenant, owner).map_err(unreadable)?);
            }
        }
        let chat = chat_name(account, event);
        drop(registry.with_chat(store, tenant, &chat).map_err(unreadable)?);
        let mut people = registry.with_user(store, tenant, user).map_err(unreadable)?;
        let said = |result: Result<Change, Refused>, well: &str| match result {
            Ok(change) => (well.to_owned(), Some(change)),
            Err(refused) => (refused.to_string(), None),
        };
        let (text, change) = match command {
            Command::Link if !event.private => {
                ("A code would be seen by everybody here. Ask for it in a private chat with me.".to_owned(), None)
            }
            Command::Link => match people.show_code(tenant, user, entropy()?, now_ms) {
                Ok(code) => {
                    let text = format!(
                        "Your code is {}-{}. Within ten minutes send `/link {}-{}` to me in your other chat; both then \
                         share one memory. Tell it to nobody.",
                        &code[..4],
                        &code[4..],
                        &code[..4],
                        &code[4..]
                    );
                    (text, None)
                }
                Err(refused) => (refused.to_string(), None),
            },
            Command::Redeem(code) => said(
                people.redeem(tenant, user, code, now_ms),
                "Linked: what you tell me here and there is one memory now. /unlink ends it.",
            ),
            Command::Unlink => {
                said(people.unlink(tenant, user), "The link is ended: this account is on its own again.")
            }
            Command::WhoAmI => {
                let linked = people.person(tenant, user) != user;
                let text = format!(
                    "You are user {} on {}; {}.",
                    event.user,
                    account.kind.spec().title,
                    if linked { "linked with another account of yours" } else { "not linked" }
                );
                (text, None)
            }
            Command::Listen(None) => (
                format!(
                    "I answer here: {}. /listen mentions|all|off changes it.",
                    people.listen(tenant, &chat).as_str()
                ),
                None,
            ),
            Command::Listen(Some(_)) if event.private => {
                ("That is for groups. Here I answer everything.".to_owned(), None)
            }
            Command::Listen(Some(_)) if !account.operators.contains(&event.user) => {
                ("Only an operator of this account may change that.".to_owned(), None)
            }
            Command::Listen(Some(listen)) => said(
                people.set_listen(tenant, &chat, *listen),
                &format!("From now on I answer here: {}.", listen.as_str()),
            ),
            Command::Help => (HELP.to_owned(), None),
        };
        Ok((people, text, change))
    }
}

/// The name of a command for the log, without what was typed behind it.
fn name_of(command: &Command) -> &'static str {
    match command {
        Command::Link => "link",
        Command::Redeem(_) => "redeem",
        Command::Unlink => "unlink",
        Command::WhoAmI => "whoami",
        Command::Listen(_) => "listen",
        Command::Help => "help",
    }
}

fn entropy() -> Result<[u8; CODE_CHARS], ApiError> {
    let mut bytes = [0; CODE_CHARS];
    getrandom::fill(&mut bytes).map_err(|_| ApiError::overloaded("The system gives no random bytes.", 1))?;
    Ok(bytes)
}

fn unreadable(error: ReadError) -> ApiError {
    tracing::error!(%error, "what is known of people and chats cannot be read");
    storage_error(&millrace_agent::Fault::Io(String::new()))
}
