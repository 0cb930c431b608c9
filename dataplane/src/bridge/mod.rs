//! The only place that knows both sides: it carries each effect of the agent to its subsystem (store,
//! engine, encoder, outbound calls, other shards) and the result back as an event.
//!
//! One [`Bridge`] belongs to one shard and lives on its thread. Nothing here blocks except reads of the
//! store that are answered from memory as a rule; nothing is shared with another shard. What runs
//! elsewhere comes back through the shard's inlet (see `inlet.rs`) or its mailbox ([`ShardMessage`]).
//!
//! A conversation belongs to exactly one shard. A connection may live on any: its turns travel to the
//! owner in one message, and the owner's replies travel back by ticket, whose upper bits name the shard.

mod allow;
mod answers;
mod errors;
mod generate;
mod inlet;
mod ladder;
mod message;
mod outbox;
mod pace;
mod people;
mod prompt;
mod recall;
mod state;
mod stream;
mod tools;
mod translate;
mod views;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use millrace_agent::{Arrival, ConversationKey, Inbound, Ticket};
use millrace_proto::api::{ApiError, ChatRequest, CompletionRequest};
use millrace_proto::channel::{Account, InboundEvent};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{ChatAddress, InboxRecord, SCOPE_ADMIN, SCOPE_IMPERSONATE};
use millrace_proto::toolcall::CallSyntax;

pub use answers::Answers;
pub use ladder::Patience;
pub use message::{Ingest, IngestResult, Ingested, ShardMessage};
pub use pace::Pace;
pub use people::Registry;
pub use prompt::ModelPrompter;
pub use state::Progress;
pub use stream::{Once, StreamEvent, TokenStream};
pub use views::{ContextView, FactView, MessageView};

use crate::gateway::Principal;
use crate::obs::Rung;
use crate::shard::Shared;
use state::{State, Waiter};
use stream::{Origin, StreamSender};

/// The bridge of one shard.
pub struct Bridge {
    state: RefCell<State>,
    shared: Arc<Shared>,
    clock: Clock,
    model_names: Vec<String>,
    embedding_name: Option<String>,
    /// Cancels that came while the state was in use; carried out with the next message or tick.
    late_cancels: RefCell<Vec<Origin>>,
}

impl Bridge {
    /// The bridge of shard `index`. Call it on the shard's own thread.
    ///
    /// # Panics
    /// When the agent's options contradict each other, which the configuration has checked before.
    pub fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let clock = Clock::start();
        let state = State::new(index, Arc::clone(&shared), clock);
        Rc::new(Self {
            state: RefCell::new(state),
            clock,
            model_names: generate::model_names(&shared),
            embedding_name: generate::embedding_name(&shared),
            shared,
            late_cancels: RefCell::default(),
        })
    }

    /// Takes up what an earlier process has accepted and not finished. Call it once before serving.
    pub fn resume(&self) {
        self.state.borrow_mut().resume();
    }

    /// Takes a message of the shard's mailbox.
    pub fn on_message(&self, message: ShardMessage) {
        let mut state = self.state.borrow_mut();
        state.on_message(message);
        self.run_late_cancels(&mut state);
    }

    /// Looks at deadlines and at what found no room. Call it about every 50 ms with the wall clock.
    pub fn tick(&self, wall_ms: u64) {
        let mut state = self.state.borrow_mut();
        self.run_late_cancels(&mut state);
        state.tick(wall_ms);
    }

    /// Leaves to the next process what waits in the inbox; the turns that have begun go on.
    pub fn close_inbox(&self) {
        self.state.borrow_mut().close_inbox();
    }

    /// Drops what every shard holds of a user who was forgotten.
    pub fn forgotten(&self, tenant: TenantId, user: UserId) {
        self.state.borrow_mut().broadcast_forgotten(tenant, user);
    }

    /// Whether nothing is under way: what a drain waits for. Turns of channels that wait for the engine
    /// count as work; what a drain cannot wait for, and what waits in the inbox, is taken up at the next start.
    pub fn idle(&self) -> bool {
        self.state.borrow().open_work() == 0
    }

    /// Turns, generations, deliveries and requests under way.
    pub fn open_work(&self) -> usize {
        self.state.borrow().open_work()
    }

    /// Starts the answers to a chat: in a session when the request names one, else from its messages alone.
    ///
    /// An error that is known at once is returned; one that shows later is the first event of the stream.
    pub fn chat(
        self: &Rc<Self>,
        principal: &Principal,
        request: ChatRequest,
        patience: Patience,
    ) -> Result<Answers, ApiError> {
        self.check_model(&request.model)?;
        match request.session.clone() {
            Some(session) => self.session_chat(principal, &session, &request),
            None => self.state.borrow_mut().stateless_chat(principal, &request, patience, &Rc::downgrade(self)),
        }
    }

    /// Continues a prompt.
    pub fn complete(
        self: &Rc<Self>,
        principal: &Principal,
        request: CompletionRequest,
        patience: Patience,
    ) -> Result<Answers, ApiError> {
        self.check_model(&request.model)?;
        self.state.borrow_mut().complete(principal, &request, patience, &Rc::downgrade(self))
    }

    fn session_chat(
        self: &Rc<Self>,
        principal: &Principal,
        session: &str,
        request: &ChatRequest,
    ) -> Result<Answers, ApiError> {
        let principal = self.acting_for(principal, request.user.as_deref())?;
        let (text, system) = generate::session_messages(request)?;
        let mut options = generate::session_options(request, system);
        let key = conversation_key(&principal, session);
        let mut state = self.state.borrow_mut();
        let sender = StreamSender::default();
        // How much of its history a session's context will hold is not known here; the end settles it.
        let said = text.len() + options.system.as_ref().map_or(0, String::len);
        let usual = self.shared.config.agent.reply_tokens_max;
        let wanted = usual.try_into().unwrap_or(u32::MAX);
        let allowance = state.allow(&principal, crate::gateway::reserve::estimate(said), options.max_tokens, wanted)?;
        let shortened = allowance.shortened;
        if shortened {
            options.max_tokens = Some(allowance.reply_tokens);
            sender.push(allowance.notice());
        }
        let options = Arc::new(options);
        let ticket = state.open_ticket(Waiter::Stream(sender.clone()))?;
        let arrival = Arrival { key, user: principal.user, name: session.to_owned(), text, ticket, options };
        let stream =
            TokenStream::new(&sender, Origin::Turn(ticket), Rc::downgrade(self), None).charge(allowance.reservation);
        state.send_turn(arrival)?;
        let rung = if shortened { Rung::Shorter } else { Rung::AsAsked };
        state.count_rung(rung);
        Ok(Answers::from(stream).reduced(rung, None))
    }

    /// Begins to store a channel event. Two copies of an event have one effect.
    pub fn ingest<'a>(&'a self, account: &'a Account, event: InboundEvent) -> Ingest<'a> {
        match self.judge(account, &event) {
            Ok(people::Verdict::Turn) => {}
            Ok(people::Verdict::Ignore(why)) => return Ingest::Known(Ok(Ingested::Ignored { why })),
            Ok(people::Verdict::Command(command)) => {
                return Ingest::Command(Box::pin(self.command(account, event, command)));
            }
            Err(error) => return Ingest::Known(Err(error)),
        }
        let waiter = Once::default();
        match self.send_event(account, event, &waiter) {
            Ok(()) => Ingest::Storing(waiter),
            Err(error) => Ingest::Known(Err(error)),
        }
    }

    fn send_event(&self, account: &Account, event: InboundEvent, waiter: &Once<IngestResult>) -> Result<(), ApiError> {
        let user = people::user_of(account, &event.user);
        let person = self.shared.people.person(&self.shared.store, account.tenant, user).map_err(|error| {
            tracing::error!(%error, "the links of a user cannot be read");
            errors::storage_error(&millrace_agent::Fault::Io(String::new()))
        })?;
        let mut state = self.state.borrow_mut();
        let ticket = state.open_ticket(Waiter::Ingest(waiter.clone()))?;
        state.send_ingest(inbound(account, event, person, ticket))
    }

    /// Waits until the fetch of a platform's keys has ended; false when none runs. The end of a fetch is
    /// bounded by its own deadline.
    pub async fn keys_came(&self, account: &Account, url: &str, unknown_key: bool) -> bool {
        let waiter: Once<()> = Once::default();
        {
            let mut state = self.state.borrow_mut();
            let (call, inlet) = (state.id(), Arc::clone(&state.inlet));
            let wake = Box::new(move || inlet.complete(inlet::Completion::KeysCame { call }));
            if !self.shared.platforms.when_keys_came(account, url, unknown_key, wake) {
                return false;
            }
            state.calls.insert(call, state::Call::Keys(waiter.clone()));
        }
        waiter.await;
        true
    }

    /// The principal with the user for whom a request speaks. Speaking for another user needs a scope.
    pub fn acting_for(&self, principal: &Principal, user: Option<&str>) -> Result<Principal, ApiError> {
        match user {
            None => Ok(principal.clone()),
            Some(name) if name == principal.user_name => Ok(principal.clone()),
            Some(name) if principal.scopes & (SCOPE_IMPERSONATE | SCOPE_ADMIN) != 0 => Ok(Principal {
                user: UserId::of(principal.tenant, name),
                user_name: name.to_owned(),
                ..principal.clone()
            }),
            Some(name) => Err(ApiError::forbidden(format!(
                "This key speaks for user {:?}; the request names user {name:?}.",
                principal.user_name
            ))
            .with_param("user")
            .with_next_step("Leave out `user`, or use a key with the scope impersonate.")),
        }
    }

    /// How the model writes tool calls.
    pub fn call_syntax(&self) -> CallSyntax {
        self.state.borrow().prompter.call_syntax()
    }

    /// Names of the chat model, the one to show first.
    pub fn model_names(&self) -> Vec<String> {
        self.model_names.clone()
    }

    fn check_model(&self, name: &str) -> Result<(), ApiError> {
        generate::check_model(name, &self.model_names)
    }

    fn abandoned(&self, origin: Origin) {
        match self.state.try_borrow_mut() {
            Ok(mut state) => state.abandoned(origin),
            Err(_) => self.late_cancels.borrow_mut().push(origin),
        }
    }

    fn run_late_cancels(&self, state: &mut State) {
        for origin in self.late_cancels.take() {
            state.abandoned(origin);
        }
    }

    /// Milliseconds since 1970 by the shard's clock.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }
}

/// Wall time that never jumps: read once at the start, then advanced by the monotonic clock, so that a
/// deadline is a span of time whatever the system's clock is set to.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start_ms: u64,
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX), start: Instant::now() }
    }

    fn now_ms(self) -> u64 {
        self.start_ms + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Sessions of different users never meet: the user is part of the name that is hashed, with its length in
/// front so that no choice of names can imitate another user.
fn conversation_key(principal: &Principal, session: &str) -> ConversationKey {
    let name = format!("{}:{}/{session}", principal.user_name.len(), principal.user_name);
    ConversationKey { tenant: principal.tenant, conversation: ConversationId::of(principal.tenant, &name) }
}

/// The conversation that an event belongs to: a chat, or a thread in it.
fn channel_key(account: &Account, event: &InboundEvent) -> ConversationKey {
    // Lengths again: a chat id may contain the separator.
    let unique = [
        "channel",
        account.kind.as_str(),
        &account.name.len().to_string(),
        &account.name,
        &event.chat.len().to_string(),
        &event.chat,
        event.thread.as_deref().unwrap_or_default(),
    ];
    ConversationKey { tenant: account.tenant, conversation: ConversationId::of(account.tenant, &unique.join(":")) }
}

/// A channel event as a message of the person who sent it.
fn inbound(account: &Account, event: InboundEvent, person: UserId, ticket: Ticket) -> Inbound {
    let channel = account.kind.as_str();
    let ConversationKey { tenant, conversation } = channel_key(account, &event);
    let record = InboxRecord {
        tenant,
        user: person,
        conversation,
        // The agent of the owner gives it its number and its times.
        number: 0,
        address: ChatAddress {
            channel: channel.to_owned(),
            account: account.name.clone(),
            chat: event.chat,
            thread: event.thread,
            reply_to: event.reply_handle.and_then(|handle| handle.text().map(str::to_owned)).or(event.message_id),
        },
        text: event.text,
        event_key: event.event_key,
        received_ms: 0,
        deadline_ms: 0,
        attempt: 0,
    };
    Inbound { record, dedup_scope: [channel, "/", &account.name].concat(), ticket }
}
