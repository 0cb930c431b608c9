//! What a bridge keeps, and the loop that carries effects out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_agent::{
    Agent, Arrival, ConversationKey, Delivery, DeliveryConfig, DeliveryEffect, DeliveryEvent, Effect, Event, Fact,
    Fault, Finish, Inbound, Output, Reply, RunId, Ticket, Timings, TurnError, Usage, Write,
};
use millrace_inference as engine;
use millrace_proto::api::ApiError;
use millrace_proto::id::{ConversationId, EffectKey, TenantId, UserId, virtual_shard};
use millrace_proto::record::{InboxRecord, OutboxJob};
use millrace_storage::{Batch, CommitError, InboxFirst, RELEVANCE_MIN, RecallQuery, Recalled, crash};

use super::errors::{storage_error, turn_error};
use super::inlet::{Completion, Inlet};
use super::ladder::Voice;
use super::message::{IngestResult, Ingested, ShardMessage};
use super::prompt::ModelPrompter;
use super::stream::{Once, Origin, StreamEvent, StreamSender};
use super::translate::{TICKET_SHARD_SHIFT, accept_batch, agent_config, batch_of, fault, shard_of};
use super::{Clock, outbox, recall};
use crate::shard::Shared;

mod drafts;
mod generation;
mod loading;
mod polls;

pub(super) use drafts::DraftAnswer;
pub(super) use generation::Submission;
pub use polls::Progress;

/// Requests of this shard's connections that may wait for something at the same time.
const WAITERS_MAX: usize = 16_384;
/// Outbox jobs kept in memory by one shard; more wait in the store.
const DELIVERY_JOBS_MAX: usize = 4_096;
/// Outbound calls of one shard at the same time.
const DELIVERY_CALLS_MAX: usize = 32;
/// Pause before the state of a delivery is written again.
const DELIVERY_COMMIT_RETRY_MS: u64 = 1_000;
/// Pause between two log lines about turns without their recall.
const DEGRADED_LOG_PAUSE_MS: u64 = 10_000;
/// Difference between the shard's clock and the wall clock that is worth a line in the log.
const CLOCK_JUMP_MS: u64 = 5_000;

/// Who waits on this shard.
pub(super) enum Waiter {
    Stream(StreamSender),
    Ingest(Once<IngestResult>),
    Resubmit(Once<Result<(), ApiError>>),
    Progress(Once<Progress>),
}

/// A generation that the engine works on.
pub(super) struct Run {
    pub target: Target,
    pub cancel: engine::CancelHandle,
    pub submitted: Instant,
    pub last_text: Option<Instant>,
    pub prompt_tokens: u32,
    /// Knows the tokens of the model that generates.
    pub prompter: Arc<ModelPrompter>,
    /// The parameter that its constraint comes from.
    pub constrained_by: Option<&'static str>,
}

pub(super) enum Target {
    Agent(RunId),
    Stream(StreamSender),
}

/// Waits for vectors, facts or the keys of a platform.
pub(super) enum Call {
    Vectors(Once<Result<Vec<Vec<f32>>, String>>),
    Facts(Once<Result<Vec<Fact>, String>>),
    Keys(Once<()>),
}

/// Tenant, scope and event key of a channel event that is being stored.
type DedupKey = Rc<(TenantId, String, String)>;

pub(super) struct State {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub clock: Clock,
    pub prompter: Arc<ModelPrompter>,
    /// The small model of the ladder.
    pub small: Option<Voice>,
    pub inlet: Arc<Inlet>,
    pub agent: Agent,
    pub delivery: Delivery,
    events: VecDeque<Event>,
    /// Empty between two events: its memory is used again.
    effects: Vec<Effect>,
    waiters: HashMap<Ticket, Waiter>,
    pub runs: HashMap<u64, Run>,
    agent_runs: HashMap<RunId, u64>,
    pub calls: HashMap<u64, Call>,
    /// Conversations that read threads read.
    loads: HashMap<ConversationKey, loading::Load>,
    /// Channel events that are being stored, with the copies that came meanwhile.
    storing: HashMap<DedupKey, Vec<Ticket>>,
    storing_tickets: HashMap<Ticket, DedupKey>,
    resubmitting: usize,
    /// Replies that are shown while they are written.
    drafts: HashMap<EffectKey, drafts::Draft>,
    /// Replies that their platforms ask for.
    polls: HashMap<polls::StreamName, polls::Polled>,
    /// Messages for other shards whose mailbox was full. Every one answers something that the other shard
    /// waits for, and it bounds what it waits for.
    outgoing: Vec<VecDeque<ShardMessage>>,
    next_id: u64,
    clock_jump_told: bool,
    /// Turns without their whole recall that the log knows of, and when it was last told.
    degraded_told: (u64, u64),
}

impl State {
    pub fn new(index: usize, shared: Arc<Shared>, clock: Clock) -> Self {
        let prompter = Arc::new(ModelPrompter::new(Arc::clone(&shared.tokenizer), Arc::clone(&shared.template)));
        let small = shared.small.as_ref().map(|small| Voice {
            engine: Arc::clone(&small.engine),
            prompter: Arc::new(ModelPrompter::new(Arc::clone(&small.tokenizer), Arc::clone(&small.template))),
            name: Some(small.name.clone()),
        });
        let inlet = Arc::new(Inlet::new(shared.mailboxes[index].clone()));
        let config = agent_config(&shared);
        let agent =
            Agent::new(config, Arc::clone(&prompter) as _).unwrap_or_else(|error| panic!("agent options: {error}"));
        let delivery = Delivery::new(DeliveryConfig {
            policy: shared.config.retry_policy.clone(),
            jobs_max: DELIVERY_JOBS_MAX,
            calls_max: DELIVERY_CALLS_MAX,
            commit_retry_ms: DELIVERY_COMMIT_RETRY_MS,
        });
        let outgoing = shared.mailboxes.iter().map(|_| VecDeque::new()).collect();
        Self {
            index,
            shared,
            clock,
            prompter,
            small,
            inlet,
            agent,
            delivery,
            events: VecDeque::new(),
            effects: Vec::new(),
            waiters: HashMap::new(),
            runs: HashMap::new(),
            agent_runs: HashMap::new(),
            calls: HashMap::new(),
            loads: HashMap::new(),
            storing: HashMap::new(),
            storing_tickets: HashMap::new(),
            resubmitting: 0,
            drafts: HashMap::new(),
            polls: HashMap::new(),
            outgoing,
            next_id: 0,
            clock_jump_told: false,
            degraded_told: (0, 0),
        }
    }

    pub fn open_work(&self) -> usize {
        self.agent.open_turns()
            + self.runs.len()
            + self.waiters.len()
            + self.calls.len()
            + self.resubmitting
            + self.open_drafts()
            + self.delivery.busy_jobs()
            + self.outgoing.iter().map(VecDeque::len).sum::<usize>()
    }

    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Whether this shard owns a conversation.
    pub fn owns(&self, tenant: TenantId, conversation: ConversationId) -> bool {
        self.shared.shard_of(virtual_shard(tenant, conversation)) == self.index
    }

    pub fn open_ticket(&mut self, waiter: Waiter) -> Result<Ticket, ApiError> {
        if self.waiters.len() >= WAITERS_MAX {
            return Err(ApiError::overloaded(format!("{WAITERS_MAX} requests are waiting already."), 1));
        }
        let ticket = Ticket(((self.index as u64) << TICKET_SHARD_SHIFT) | self.id());
        self.waiters.insert(ticket, waiter);
        Ok(ticket)
    }

    /// Brings a turn to the owner of its conversation.
    pub fn send_turn(&mut self, arrival: Arrival) -> Result<(), ApiError> {
        let owner = self.shared.shard_of(virtual_shard(arrival.key.tenant, arrival.key.conversation));
        if owner == self.index {
            self.events.push_back(Event::Arrived(Box::new(arrival)));
            self.drive();
            return Ok(());
        }
        let ticket = arrival.ticket;
        self.send_request(owner, ticket, ShardMessage::Turn(Box::new(arrival)))
    }

    /// Brings a channel event to the owner of its conversation.
    pub fn send_ingest(&mut self, message: Inbound) -> Result<(), ApiError> {
        let owner = self.shared.shard_of(virtual_shard(message.record.tenant, message.record.conversation));
        if owner == self.index {
            self.store_event(message);
            return Ok(());
        }
        let ticket = message.ticket;
        self.send_request(owner, ticket, ShardMessage::Ingest(Box::new(message)))
    }

    /// A request to another shard is refused when its mailbox is full: that is the back-pressure.
    pub fn send_request(&mut self, shard: usize, ticket: Ticket, message: ShardMessage) -> Result<(), ApiError> {
        self.shared.mailboxes[shard].send(message).map_err(|_| {
            self.waiters.remove(&ticket);
            self.shared.metrics.shard(self.index).mailbox_full();
            ApiError::overloaded("The owner of this conversation has too much work.", 1)
        })
    }

    /// An answer to another shard is never dropped: it waits here while the mailbox is full.
    pub fn send_answer(&mut self, shard: usize, message: ShardMessage) {
        self.outgoing[shard].push_back(message);
        self.flush_outgoing();
    }

    fn flush_outgoing(&mut self) {
        for (shard, queue) in self.outgoing.iter_mut().enumerate() {
            while let Some(message) = queue.pop_front() {
                if let Err(full) = self.shared.mailboxes[shard].send(message) {
                    queue.push_front(full.0);
                    self.shared.metrics.shard(self.index).mailbox_full();
                    break;
                }
            }
        }
    }

    pub fn on_message(&mut self, message: ShardMessage) {
        match message {
            ShardMessage::Doorbell => self.take_inlet(),
            ShardMessage::Turn(arrival) => self.events.push_back(Event::Arrived(arrival)),
            ShardMessage::Ingest(message) => self.store_event(*message),
            ShardMessage::Cancel { ticket } => self.events.push_back(Event::Cancelled { ticket }),
            ShardMessage::Forgotten { tenant, user } => {
                self.distrust_loads();
                self.events.push_back(Event::Forgotten { tenant, user });
            }
            ShardMessage::Reply { ticket, reply } => self.tell(ticket, *reply),
            ShardMessage::Ingested { ticket, result } => self.ingested(ticket, result),
            ShardMessage::Deliver(job) => self.deliver_new(*job),
            ShardMessage::Resubmit { ticket, tenant, key } => self.resubmit(ticket, tenant, key),
            ShardMessage::Resubmitted { ticket, result } => self.resubmitted(ticket, result),
            ShardMessage::Progress { ticket, stream } => self.asked(ticket, stream),
            ShardMessage::Progressed { ticket, progress } => self.progressed(ticket, progress),
        }
        self.drive();
    }

    pub fn tick(&mut self, wall_ms: u64) {
        let now_ms = self.clock.now_ms();
        if wall_ms.abs_diff(now_ms) > CLOCK_JUMP_MS && !self.clock_jump_told {
            self.clock_jump_told = true;
            tracing::warn!(
                shard = self.index,
                wall_ms,
                now_ms,
                "the system clock was set; deadlines go on unchanged, new messages carry the earlier time line until a restart"
            );
        }
        self.tell_degraded(now_ms);
        self.take_inlet();
        self.flush_outgoing();
        if self.agent.next_deadline_ms().is_some_and(|at| at <= now_ms) {
            self.events.push_back(Event::Tick);
        }
        self.tick_drafts(now_ms);
        self.tick_polls(now_ms);
        if self.delivery.next_deadline_ms().is_some_and(|at| at <= now_ms) {
            self.deliver(DeliveryEvent::Tick);
        }
        self.drive();
    }

    fn tell_degraded(&mut self, now_ms: u64) {
        let (known, told_ms) = self.degraded_told;
        let degraded = self.agent.stats().recall_degraded;
        if degraded > known && now_ms >= told_ms + DEGRADED_LOG_PAUSE_MS {
            self.degraded_told = (degraded, now_ms);
            let turns = degraded - known;
            tracing::warn!(
                shard = self.index,
                turns,
                "turns went on without their whole recall: it was late or failed"
            );
        }
    }

    /// Nobody reads the answer any more.
    pub fn abandoned(&mut self, origin: Origin) {
        match origin {
            Origin::Run(run) => {
                if let Some(run) = self.runs.get(&run) {
                    run.cancel.cancel();
                }
            }
            Origin::Turn(ticket) => {
                // The waiter stays until the terminal reply, so that a drain waits for the batch behind it.
                let Some(Waiter::Stream(_)) = self.waiters.get(&ticket) else { return };
                self.events.push_back(Event::Cancelled { ticket });
                self.broadcast_cancel(ticket);
                self.drive();
            }
        }
    }

    /// The owner of a ticket's conversation is not kept per ticket; a cancel is rare and an agent passes
    /// over tickets that it does not know.
    fn broadcast_cancel(&mut self, ticket: Ticket) {
        for shard in (0..self.shared.shard_count()).filter(|shard| *shard != self.index) {
            self.outgoing[shard].push_back(ShardMessage::Cancel { ticket });
        }
        self.flush_outgoing();
    }

    /// Tells every shard that a user was forgotten: a user's conversations belong to many.
    pub fn broadcast_forgotten(&mut self, tenant: TenantId, user: UserId) {
        for shard in (0..self.shared.shard_count()).filter(|shard| *shard != self.index) {
            self.outgoing[shard].push_back(ShardMessage::Forgotten { tenant, user });
        }
        self.flush_outgoing();
        self.distrust_loads();
        self.events.push_back(Event::Forgotten { tenant, user });
        self.drive();
    }

    /// Steps the agent until nothing is left to do at once.
    pub fn drive(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        while let Some(event) = self.events.pop_front() {
            let now_ms = self.clock.now_ms();
            self.agent.step(event, now_ms, &mut effects);
            for effect in effects.drain(..) {
                self.carry_out(effect, now_ms);
            }
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, effect: Effect, now_ms: u64) {
        match effect {
            Effect::Load { key, messages_max } => self.load(key, messages_max),
            Effect::Accept { op, messages, dedup_expires_ms } => {
                crash::point("accept.before_commit");
                let batch = accept_batch(&messages, dedup_expires_ms);
                let inlet = Arc::clone(&self.inlet);
                let done = move |result: Result<u64, CommitError>| {
                    inlet.complete(Completion::Persisted { op, result: result.map(drop).map_err(fault) });
                };
                if self.shared.store.submit(batch, Box::new(done)).is_err() {
                    self.events.push_back(Event::Persisted { op, result: Err(Fault::Busy) });
                }
            }
            Effect::TakeUp { key } => {
                let first = self.take_up(key).map(|first| first.map(Box::new));
                self.events.push_back(Event::TakenUp { key, first });
            }
            Effect::Persist { op, key, writes } => {
                let finishes = writes.iter().any(|write| matches!(write, Write::Outbox(_)));
                if finishes {
                    crash::point("finish.before_commit");
                }
                let batch = batch_of(key, writes, self.shared.config.memory.extract);
                let inlet = Arc::clone(&self.inlet);
                let done = move |result: Result<u64, CommitError>| {
                    if finishes {
                        crash::point("finish.after_commit");
                    }
                    inlet.complete(Completion::Persisted { op, result: result.map(drop).map_err(fault) });
                };
                if self.shared.store.submit(batch, Box::new(done)).is_err() {
                    self.events.push_back(Event::Persisted { op, result: Err(Fault::Busy) });
                }
            }
            Effect::Embed { op, text } => self.embed_for_agent(op, text),
            Effect::Recall { op, key, user, channel, text, embedding, limit } => {
                self.shared.metrics.shard(self.index).recall();
                let live = self.shared.live.now();
                let passages =
                    recall::passages_query(&live.corpora, &channel, key.tenant, &text, embedding.as_ref(), limit);
                let about = recall::about(&self.shared.config.memory, key.tenant, user, &text, now_ms);
                let query = RecallQuery {
                    tenant: key.tenant,
                    user,
                    text,
                    embedding,
                    limit,
                    exclude: None,
                    now_ms,
                    from_ms: 0,
                    relevance_min: RELEVANCE_MIN,
                };
                let inlet = Arc::clone(&self.inlet);
                let store = self.shared.store.clone();
                let done = move |result: Result<Vec<Recalled>, millrace_storage::ReadError>| {
                    let result = result.map(|found| recall::facts(&store, found, about.as_ref(), passages.as_ref()));
                    inlet.complete(Completion::Recalled { op, result: result.map_err(|error| error.to_string()) });
                };
                if let Err(busy) = self.shared.store.recall(query, Box::new(done)) {
                    self.events.push_back(Event::Recalled { op, result: Err(busy.to_string()) });
                }
            }
            Effect::Generate { run, key, prompt, max_tokens, options, deadline_ms } => {
                let deadline = Duration::from_millis(deadline_ms.saturating_sub(now_ms));
                let voice = self.main_voice();
                let submission = Submission {
                    voice: &voice,
                    prompt,
                    max_tokens,
                    options: &options,
                    constrained: None,
                    deadline: Some(deadline),
                    tenant: key.tenant,
                    background: false,
                };
                match self.submit(submission, Target::Agent(run)) {
                    Ok(id) => {
                        self.agent_runs.insert(run, id);
                    }
                    Err(engine::SubmitError::QueueFull { retry_after, waiting, max }) => {
                        let why = format!("{waiting} of {max} places in its queue are taken");
                        let retry_after_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
                        self.events.push_back(Event::Output { run, output: Output::Refused { retry_after_ms, why } });
                    }
                    Err(error @ engine::SubmitError::TooSlow { retry_after, .. }) => {
                        let retry_after_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
                        let output = Output::Refused { retry_after_ms, why: error.to_string() };
                        self.events.push_back(Event::Output { run, output });
                    }
                    Err(error) => {
                        let output = Output::Done {
                            reason: Finish::Failed(error.to_string()),
                            usage: Usage::default(),
                            timings: Timings::default(),
                        };
                        self.events.push_back(Event::Output { run, output });
                    }
                }
            }
            Effect::StopGeneration { run } => {
                if let Some(run) = self.agent_runs.get(&run).and_then(|id| self.runs.get(id)) {
                    run.cancel.cancel();
                }
            }
            Effect::Reply { ticket, reply } => self.reply(ticket, reply),
            Effect::Draft { tenant, key, part } => self.draft(tenant, key, part),
            Effect::Deliver { job } => self.deliver_new(*job),
        }
    }

    /// Brings a reply of the agent to the shard of the one who waits.
    fn reply(&mut self, ticket: Ticket, reply: Reply) {
        if matches!(reply, Reply::Notice { .. }) {
            self.shared.metrics.shard(self.index).notice();
        }
        if let Some(dedup) = self.storing_tickets.remove(&ticket) {
            let result = match reply {
                Reply::Failed(error) => Err(turn_error(&error)),
                _ => Ok(Ingested::Accepted),
            };
            return self.event_stored(&dedup, ticket, result);
        }
        let shard = shard_of(ticket);
        if shard == self.index {
            self.tell(ticket, reply);
        } else {
            self.send_answer(shard, ShardMessage::Reply { ticket, reply: Box::new(reply) });
        }
    }

    /// Tells a connection of this shard.
    fn tell(&mut self, ticket: Ticket, reply: Reply) {
        let Some(Waiter::Stream(stream)) = self.waiters.get(&ticket) else { return };
        let stream = stream.clone();
        if reply.is_terminal() {
            self.waiters.remove(&ticket);
        }
        match reply {
            Reply::Accepted => {}
            Reply::Started { prompt_tokens, cached_tokens } => {
                stream.push(StreamEvent::Started { prompt_tokens, cached_tokens });
            }
            Reply::Delta { text, logprobs } => stream.push(StreamEvent::Delta { text, tokens: logprobs }),
            Reply::Notice { text } => stream.push(StreamEvent::Notice { text }),
            Reply::Done { reason, usage, timings, seq } => {
                stream.push(StreamEvent::Done { reason, usage, timings, message_seq: seq });
            }
            Reply::Failed(error) => {
                if !matches!(error, TurnError::Cancelled) {
                    tracing::info!(shard = self.index, %error, "a turn ended without an answer");
                }
                stream.push(StreamEvent::Error(turn_error(&error)));
            }
        }
    }

    /// Hands a channel event to the agent, unless it was here before.
    fn store_event(&mut self, message: Inbound) {
        let Inbound { record, dedup_scope, ticket } = &message;
        let (ticket, dedup) = (*ticket, Rc::new((record.tenant, dedup_scope.clone(), record.event_key.clone())));
        if let Some(copies) = self.storing.get_mut(&dedup) {
            // The first copy is on its way to the disk: this one shares its fate and is answered after it.
            if copies.len() >= self.agent.config().queue_turns_max {
                let error = ApiError::overloaded("Too many copies of one event at the same time.", 1);
                return self.answer_ingest(ticket, Err(error));
            }
            return copies.push(ticket);
        }
        let now_ms = self.clock.now_ms();
        match self.shared.store.dedup_seen(dedup.0, &dedup.1, &dedup.2, now_ms) {
            Ok(true) => self.answer_ingest(ticket, Ok(Ingested::Duplicate)),
            Err(error) => {
                tracing::error!(%error, "a dedup key cannot be read");
                self.answer_ingest(ticket, Err(storage_error(&Fault::Io(String::new()))));
            }
            Ok(false) => {
                self.storing.insert(Rc::clone(&dedup), Vec::new());
                self.storing_tickets.insert(ticket, dedup);
                self.events.push_back(Event::Received(Box::new(message)));
                self.drive();
                if self.agent.wants_flush() {
                    // The bell is heard when the connections that have something to read now have been served: what
                    // they bring becomes one batch.
                    self.inlet.ring();
                }
            }
        }
    }

    /// Reads the oldest waiting message of a conversation.
    fn take_up(&mut self, key: ConversationKey) -> Result<Option<InboxRecord>, Fault> {
        let first = self.shared.store.inbox_first(key.tenant, key.conversation);
        let InboxFirst { record, forgotten } = first.map_err(|error| {
            tracing::error!(%error, "the inbox cannot be read; its messages are read again after a pause");
            Fault::Io(error.to_string())
        })?;
        if !forgotten.is_empty() {
            let mut batch = Batch::new();
            forgotten.iter().for_each(|number| batch.close_inbox(key.tenant, key.conversation, *number));
            // What is not removed now is found again.
            if let Err(busy) = self.shared.store.submit(batch, Box::new(|_| {})) {
                tracing::debug!(%busy, "messages of forgotten users stay in the inbox for now");
            }
        }
        Ok(record)
    }

    /// What waits in the inbox is left to the next process.
    pub fn close_inbox(&mut self) {
        self.events.push_back(Event::Closing);
        self.drive();
    }

    fn event_stored(&mut self, dedup: &DedupKey, ticket: Ticket, result: Result<Ingested, ApiError>) {
        for copy in self.storing.remove(dedup).unwrap_or_default() {
            let result = result.clone().map(|_| Ingested::Duplicate);
            self.answer_ingest(copy, result);
        }
        self.answer_ingest(ticket, result);
    }

    fn answer_ingest(&mut self, ticket: Ticket, result: Result<Ingested, ApiError>) {
        let shard = shard_of(ticket);
        if shard == self.index {
            self.ingested(ticket, result);
        } else {
            self.send_answer(shard, ShardMessage::Ingested { ticket, result });
        }
    }

    fn ingested(&mut self, ticket: Ticket, result: Result<Ingested, ApiError>) {
        if let Some(Waiter::Ingest(waiter)) = self.waiters.remove(&ticket) {
            waiter.put(result);
        }
    }

    pub fn answer_resubmit(&mut self, ticket: Ticket, result: Result<(), ApiError>) {
        let shard = shard_of(ticket);
        if shard == self.index {
            self.resubmitted(ticket, result);
        } else {
            self.send_answer(shard, ShardMessage::Resubmitted { ticket, result });
        }
    }

    fn resubmitted(&mut self, ticket: Ticket, result: Result<(), ApiError>) {
        if let Some(Waiter::Resubmit(waiter)) = self.waiters.remove(&ticket) {
            waiter.put(result);
        }
    }

    pub fn count_resubmitting(&mut self, change: isize) {
        self.resubmitting = self.resubmitting.saturating_add_signed(change);
    }

    /// Steps the deliveries and carries out what they want.
    pub fn deliver(&mut self, event: DeliveryEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut effects = Vec::new();
            self.delivery.step(event, self.clock.now_ms(), &mut effects);
            for effect in effects {
                match effect {
                    DeliveryEffect::Commit { job } => events.extend(self.commit_job(*job)),
                    DeliveryEffect::Ask { job } => events.push_back(self.permit(&job)),
                    DeliveryEffect::Call { job } => events.extend(self.call_peer(&job)),
                    DeliveryEffect::Reload => {
                        events.extend(self.open_jobs().into_iter().map(outbox::job_event));
                        events.push_back(DeliveryEvent::Reloaded);
                    }
                }
            }
        }
    }

    /// Takes up the work of an earlier process.
    pub fn resume(&mut self) {
        let waiting = self.find_waiting();
        let (rows, jobs): (Vec<_>, Vec<_>) =
            self.open_rows().into_iter().partition(|job| job.key.step == EffectKey::DRAFT_STEP);
        let replies: HashSet<(ConversationId, u64)> = jobs.iter().map(|j| (j.key.conversation, j.key.turn)).collect();
        let (rows, settled) = rows.into_iter().partition(|row: &OutboxJob| {
            replies.contains(&(row.key.conversation, row.key.turn)) || self.begins_again(row, &waiting)
        });
        self.resume_drafts(rows, settled);
        for job in jobs {
            self.deliver(outbox::job_event(job));
        }
        self.drive();
    }

    /// Tells the agent which messages wait, the conversation of the oldest first.
    fn find_waiting(&mut self) -> HashMap<ConversationKey, Vec<u64>> {
        let mut waiting: HashMap<ConversationKey, Vec<u64>> = HashMap::new();
        let found = self.shared.store.inbox_places(&mut |tenant, conversation, number| {
            if self.owns(tenant, conversation) {
                waiting.entry(ConversationKey { tenant, conversation }).or_default().push(number);
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = found {
            tracing::error!(shard = self.index, %error, "the inbox cannot be read; its messages wait for the next start");
        }
        let mut order: Vec<(u64, u64, usize, ConversationKey)> = Vec::with_capacity(waiting.len());
        for (key, numbers) in &waiting {
            if let (Some(first), Some(last)) = (numbers.iter().min(), numbers.iter().max()) {
                order.push((*first, *last, numbers.len(), *key));
            }
        }
        order.sort_unstable();
        let messages: usize = order.iter().map(|(_, _, messages, _)| messages).sum();
        if messages > 0 {
            tracing::info!(shard = self.index, messages, "accepted messages are taken up again");
        }
        for (_, last, messages, key) in order {
            let messages = u32::try_from(messages).unwrap_or(u32::MAX);
            self.events.push_back(Event::Waiting { key, messages, last });
        }
        waiting
    }

    /// Whether the turn of a reply that was being shown is going to begin again: its message is the first one that waits
    /// in its conversation.
    fn begins_again(&self, row: &OutboxJob, waiting: &HashMap<ConversationKey, Vec<u64>>) -> bool {
        let key = ConversationKey { tenant: row.tenant, conversation: row.key.conversation };
        let Some(numbers) = waiting.get(&key) else { return false };
        // Older versions numbered messages as turns.
        numbers.contains(&row.key.turn)
            || match self.shared.store.session(key.tenant, key.conversation) {
                Ok(head) => row.key.turn == head.map_or(0, |head| head.next_turn),
                Err(_) => false,
            }
    }
}
