//! Random lives of turns in a world whose disk, encoder, memory and engine answer late, wrongly or not at all, whose users
//! leave, and which crashes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use millrace_agent::{
    Agent, AgentConfig, Arrival, ConversationKey, DraftPart, Effect, Event, Fact, Fault, Finish, GenerationOptions,
    Inbound, Loaded, OpId, Output, PromptMessage, Prompter, Reply, RunId, Ticket, Timings, Usage, Write,
};
use millrace_proto::id::{ConversationId, EffectKey, TenantId, UserId};
use millrace_proto::record::{ChatAddress, InboxRecord, Message, OutboxJob, Role, SessionHead};

use crate::random::{Random, seeds};

pub const CONTEXT: u32 = 120;
const CONVERSATIONS: usize = 5;
const HOT_MAX: usize = 3;
/// Two windows of `window_bytes_max` with their records do not fit.
const HOT_BYTES_MAX: usize = 4_000;
pub const QUEUE_MAX: usize = 3;
const OPEN_MAX: usize = 9;
const CHANNEL_MAX: usize = 2;
const WAITING_MAX: usize = 12;

/// One token a word, three around a message.
pub struct Words;

impl Prompter for Words {
    fn count(&self, text: &str) -> u32 {
        text.split_whitespace().count() as u32
    }
    fn encode(&self, messages: &[PromptMessage]) -> Result<Vec<u32>, String> {
        Ok(vec![7; messages.iter().map(|m| self.count(&m.content) as usize + 3).sum()])
    }
}

enum Task {
    Load(ConversationKey, usize),
    Accept(OpId, Arc<Vec<Inbound>>),
    TakeUp(ConversationKey),
    Persist(OpId, ConversationKey, Vec<Write>),
    Embed(OpId),
    Recall(OpId),
}

struct Run {
    id: RunId,
    key: ConversationKey,
    prompt: u32,
    left: usize,
    started: bool,
    stopped: bool,
}

#[derive(Default)]
struct Disk {
    heads: BTreeMap<ConversationKey, SessionHead>,
    messages: BTreeMap<(ConversationKey, u64), Message>,
    inbox: BTreeMap<(ConversationKey, u64), InboxRecord>,
    outbox: BTreeMap<(TenantId, EffectKey), OutboxJob>,
    dedup: BTreeSet<String>,
    remembered: BTreeSet<(ConversationKey, u64)>,
    /// Channel messages that became durable, and those that were answered.
    accepted: usize,
    closed: usize,
}

impl Disk {
    /// The messages of a batch, of any conversations.
    fn accept(&mut self, messages: &[Inbound]) {
        assert!(!messages.is_empty());
        for Inbound { record, dedup_scope, .. } in messages {
            let key = ConversationKey { tenant: record.tenant, conversation: record.conversation };
            assert!(self.dedup.insert(format!("{dedup_scope} {}", record.event_key)));
            assert!(self.waiting(key).all(|number| number < record.number), "later messages have higher numbers");
            self.inbox.insert((key, record.number), record.clone());
            self.accepted += 1;
        }
    }

    /// Numbers of the open messages of a conversation, in order.
    fn waiting(&self, key: ConversationKey) -> impl Iterator<Item = u64> {
        self.inbox.range((key, 0)..=(key, u64::MAX)).map(|((_, number), _)| *number)
    }

    /// All of a batch, with everything that must hold of it.
    fn apply(&mut self, key: ConversationKey, writes: Vec<Write>) {
        let next = |disk: &Self| {
            disk.messages.range((key, 0)..=(key, u64::MAX)).next_back().map_or(0, |((_, seq), _)| seq + 1)
        };
        let replies = writes.iter().any(|write| matches!(write, Write::Outbox(job) if job.key.step == 0));
        for write in writes {
            match write {
                Write::Session(head) => {
                    assert_eq!((head.tenant, head.conversation), (key.tenant, key.conversation));
                    self.heads.insert(key, head);
                }
                Write::Message(message) => {
                    assert_eq!(message.seq, next(self), "sequence numbers have no gaps and no doubles");
                    if message.role == Role::Assistant {
                        let asked = |m: &Message| m.turn == message.turn && m.role == Role::User;
                        let said = |m: &Message| m.turn == message.turn && m.role == Role::Assistant;
                        assert!(self.of(key).any(asked), "no answer without a durable question");
                        assert!(!self.of(key).any(said), "one answer per turn");
                    }
                    self.messages.insert((key, message.seq), message);
                }
                Write::Inbox(record) => {
                    let known = self.inbox.insert((key, record.number), record.clone());
                    assert_eq!(known.map(|known| known.attempt), Some(record.attempt - 1), "one more start is counted");
                }
                Write::CloseInbox { number } => {
                    assert_eq!(self.waiting(key).next(), Some(number), "messages are answered in their order");
                    let record = self.inbox.remove(&(key, number)).expect("only an open record is closed, and once");
                    assert!(replies, "an accepted message is never met with silence");
                    let asked = |m: &Message| m.role == Role::User && m.text == record.text;
                    assert!(self.of(key).any(asked), "the question stands in the conversation with its answer");
                    self.closed += 1;
                }
                Write::Outbox(job) => {
                    assert!(!job.text.trim().is_empty(), "nobody is answered with silence");
                    let double = self.outbox.insert((job.tenant, job.key), job);
                    assert!(double.is_none(), "an effect key is used once: {double:?}");
                }
                Write::Remember(memory) => {
                    self.remembered.insert((key, memory.seq));
                }
            }
        }
        let next_seq = next(self);
        let known = self.heads.get(&key).map_or(0, |head| head.next_seq);
        assert_eq!(known, next_seq, "the head knows the next sequence number");
    }

    fn of(&self, key: ConversationKey) -> impl Iterator<Item = &Message> {
        self.messages.range((key, 0)..=(key, u64::MAX)).map(|(_, m)| m)
    }
}

struct World {
    random: Random,
    now_ms: u64,
    agent: Agent,
    disk: Disk,
    tasks: Vec<Task>,
    runs: Vec<Run>,
    /// Replies to channels that are being written.
    writing: BTreeSet<EffectKey>,
    /// Tickets and whether their terminal reply came.
    tickets: BTreeMap<Ticket, TicketState>,
    next: u64,
    trace: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct TicketState {
    channel: bool,
    accepted: bool,
    ended: bool,
}

pub fn config() -> AgentConfig {
    AgentConfig {
        context_tokens_max: CONTEXT,
        reply_tokens_max: 30,
        recall_tokens_max: 30,
        recall_items_max: 3,
        window_messages_max: 12,
        window_bytes_max: 2_000,
        conversations_max: HOT_MAX,
        hot_bytes_max: HOT_BYTES_MAX,
        queue_turns_max: QUEUE_MAX,
        open_turns_max: OPEN_MAX,
        channel_turns_max: CHANNEL_MAX,
        inbox_waiting_max: WAITING_MAX,
        turn_deadline_ms: 20_000,
        inbox_ttl_ms: 300_000,
        turns_per_minute_max: 20,
        channel_turns_per_minute_max: 20,
        split: |_, text| text.split_inclusive("three ").map(str::to_owned).collect(),
        ..AgentConfig::default()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let agent = Agent::new(config(), Arc::new(Words)).expect("options");
        Self {
            random: Random(seed),
            now_ms: 1_000_000,
            agent,
            disk: Disk::default(),
            tasks: Vec::new(),
            runs: Vec::new(),
            writing: BTreeSet::new(),
            tickets: BTreeMap::new(),
            next: 0,
            trace: 0,
        }
    }

    fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.agent.step(event, self.now_ms, &mut effects);
        for effect in effects {
            let mut text = String::new();
            write!(text, "{effect:?}").expect("text");
            for byte in text.bytes() {
                self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
            self.carry_out(effect);
        }
        assert!(self.agent.open_turns() <= OPEN_MAX + CHANNEL_MAX, "turns are bounded");
        assert!(self.agent.hot_conversations() <= HOT_MAX, "conversations are bounded, after a restart as before");
        assert!(self.agent.waiting_messages() <= WAITING_MAX + CHANNEL_MAX, "what waits is bounded");
        let busy_bytes_max = self.agent.open_turns() * (2_000 + 13 * size_of::<Message>());
        assert!(self.agent.hot_bytes() <= HOT_BYTES_MAX + busy_bytes_max, "idle conversations make room for others");
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Load { key, messages_max } => self.tasks.push(Task::Load(key, messages_max)),
            Effect::Accept { op, messages, .. } => self.tasks.push(Task::Accept(op, messages)),
            Effect::TakeUp { key } => self.tasks.push(Task::TakeUp(key)),
            Effect::Persist { op, key, writes } => {
                let other = |task: &Task| matches!(task, Task::Persist(_, other, _) if *other == key);
                assert!(!self.tasks.iter().any(other), "one batch in flight per conversation");
                self.tasks.push(Task::Persist(op, key, writes));
            }
            Effect::Embed { op, .. } => self.tasks.push(Task::Embed(op)),
            Effect::Recall { op, .. } => self.tasks.push(Task::Recall(op)),
            Effect::Generate { run, key, prompt, max_tokens, deadline_ms, .. } => {
                assert!(!self.runs.iter().any(|r| r.key == key && !r.stopped), "one running turn per conversation");
                assert!(prompt.len() as u32 + max_tokens <= CONTEXT, "the prompt leaves room for the reply");
                assert!(deadline_ms > self.now_ms);
                let durable =
                    self.disk.of(key).any(|m| m.role == Role::User) || self.disk.waiting(key).next().is_some();
                assert!(durable, "the question is durable before the work");
                let left = self.random.below(6);
                let prompt = prompt.len() as u32;
                self.runs.push(Run { id: run, key, prompt, left, started: false, stopped: false });
            }
            Effect::StopGeneration { run } => {
                for run in self.runs.iter_mut().filter(|r| r.id == run) {
                    run.stopped = true;
                }
            }
            Effect::Reply { ticket, reply } => self.reply(ticket, reply),
            Effect::Draft { key, part, .. } => match part {
                DraftPart::Begun { .. } => {
                    self.writing.insert(key);
                }
                DraftPart::Text(_) => assert!(self.writing.contains(&key), "nothing is shown before it has begun"),
                DraftPart::Ended => {
                    self.writing.remove(&key);
                }
            },
            Effect::Deliver { job } => {
                let draft = EffectKey { step: EffectKey::DRAFT_STEP, ..job.key };
                assert!(!self.writing.contains(&draft), "the finished reply comes last");
                assert_eq!(self.disk.outbox.get(&(job.tenant, job.key)), Some(&*job), "only durable jobs go out");
            }
        }
    }

    fn reply(&mut self, ticket: Ticket, reply: Reply) {
        let state = self.tickets.get_mut(&ticket).expect("a reply has somebody to go to");
        assert!(!state.ended, "nothing follows the terminal reply: {reply:?}");
        match &reply {
            Reply::Accepted => {
                assert!(!state.accepted);
                state.accepted = true;
                state.ended = state.channel;
            }
            Reply::Failed(_) => state.ended = true,
            _ => {
                assert!(state.accepted && !state.channel, "an answer begins after the question is durable");
                state.ended = reply.is_terminal();
            }
        }
    }

    fn arrive(&mut self) {
        self.next += 1;
        let number = self.random.below(CONVERSATIONS);
        let tenant = TenantId(1);
        let key = ConversationKey { tenant, conversation: ConversationId::of(tenant, &format!("c{number}")) };
        let ticket = Ticket(self.next);
        let channel = self.random.chance(50);
        let words = if self.random.chance(5) { 200 } else { 1 + self.random.below(20) };
        let (user, text) = (UserId::of(tenant, "u"), "word ".repeat(words));
        self.tickets.insert(ticket, TicketState { channel, accepted: false, ended: false });
        if channel {
            let record = InboxRecord { user, text, event_key: format!("e{}", self.next), ..record(key, number) };
            self.step(Event::Received(Box::new(Inbound { record, dedup_scope: "s".into(), ticket })));
        } else {
            let (name, options) = (format!("c{number}"), Arc::new(GenerationOptions::default()));
            self.step(Event::Arrived(Box::new(Arrival { key, user, name, text, ticket, options })));
        }
    }

    /// Ends one task, with luck or without.
    fn finish_task(&mut self, luck: bool) {
        if self.tasks.is_empty() {
            return;
        }
        let mut place = self.random.below(self.tasks.len());
        let accepts = |task: &Task| matches!(task, Task::Accept(..));
        if accepts(&self.tasks[place]) {
            // The disk writes them in the order in which they were given to it.
            place = self.tasks.iter().position(accepts).unwrap_or(place);
        }
        let fails = !luck && self.random.chance(20);
        let event = match self.tasks.remove(place) {
            Task::Load(key, _) if fails => Event::Loaded { key, result: Err(Fault::Io("bad sector".into())) },
            Task::Load(key, limit) => {
                let mut messages: Vec<Message> = self.disk.of(key).cloned().collect();
                messages.drain(..messages.len().saturating_sub(limit));
                Event::Loaded {
                    key,
                    result: Ok(Loaded { head: self.disk.heads.get(&key).cloned().map(Box::new), messages }),
                }
            }
            Task::Accept(op, _) if fails => Event::Persisted { op, result: Err(Fault::NoSpace) },
            Task::Accept(op, messages) => {
                self.disk.accept(&messages);
                Event::Persisted { op, result: Ok(()) }
            }
            Task::TakeUp(key) if fails => Event::TakenUp { key, first: Err(Fault::Io("luck".into())) },
            Task::TakeUp(key) => {
                let first = self.disk.inbox.range((key, 0)..=(key, u64::MAX)).next();
                Event::TakenUp { key, first: Ok(first.map(|(_, record)| Box::new(record.clone()))) }
            }
            Task::Persist(op, ..) if fails => Event::Persisted { op, result: Err(Fault::NoSpace) },
            Task::Persist(op, key, writes) => {
                self.disk.apply(key, writes);
                Event::Persisted { op, result: Ok(()) }
            }
            Task::Embed(op) if fails => Event::Embedded { op, result: Err("busy".into()) },
            Task::Embed(op) => Event::Embedded { op, result: Ok(vec![0.5; 4]) },
            Task::Recall(op) if fails => Event::Recalled { op, result: Err("busy".into()) },
            Task::Recall(op) => {
                let conversation = ConversationId::of(TenantId(1), "old");
                let fact =
                    Fact { conversation, seq: 3, text: "my dog is Rex".into(), at_ms: 1, score: 1.0, citation: None };
                Event::Recalled { op, result: Ok(vec![fact]) }
            }
        };
        self.step(event);
    }

    /// Lets one generation go on by one output.
    fn generate(&mut self, luck: bool) {
        if self.runs.is_empty() {
            return;
        }
        let place = self.random.below(self.runs.len());
        let trouble = if luck { 99 } else { self.random.below(100) };
        let run = &mut self.runs[place];
        let (id, prompt) = (run.id, run.prompt);
        let done = |reason| Output::Done {
            reason,
            usage: Usage { prompt, completion: 3, cached: 0 },
            timings: Timings::default(),
        };
        let output = if !run.started && trouble < 15 {
            Output::Refused { retry_after_ms: 300, why: "full".into() }
        } else if run.stopped {
            done(Finish::Cancelled)
        } else if trouble < 20 {
            done(Finish::Failed("not a number".into()))
        } else if trouble < 22 {
            done(Finish::Deadline)
        } else if !run.started {
            run.started = true;
            Output::Started { cached_tokens: 0 }
        } else if run.left > 0 {
            run.left -= 1;
            Output::Delta { text: "one two three four ".into(), logprobs: Vec::new() }
        } else {
            done(Finish::Stop)
        };
        if matches!(output, Output::Done { .. } | Output::Refused { .. }) {
            self.runs.swap_remove(place);
        }
        self.step(Event::Output { run: id, output });
    }

    fn cancel(&mut self) {
        let open: Vec<Ticket> = self.tickets.iter().filter(|(_, s)| !s.ended && !s.channel).map(|(t, _)| *t).collect();
        if !open.is_empty() {
            let ticket = open[self.random.below(open.len())];
            self.step(Event::Cancelled { ticket });
        }
    }

    /// The process ends. What was on its way to the disk is there whole or not at all.
    fn crash(&mut self) {
        for task in std::mem::take(&mut self.tasks) {
            match task {
                Task::Persist(_, key, writes) if self.random.chance(50) => self.disk.apply(key, writes),
                Task::Accept(_, messages) if self.random.chance(50) => self.disk.accept(&messages),
                _ => {}
            }
        }
        self.runs.clear();
        self.writing.clear();
        self.tickets.clear();
        self.agent = Agent::new(config(), Arc::new(Words)).expect("options");
        let mut waiting: BTreeMap<ConversationKey, Vec<u64>> = BTreeMap::new();
        for (key, number) in self.disk.inbox.keys() {
            waiting.entry(*key).or_default().push(*number);
        }
        for (key, numbers) in waiting {
            let (messages, last) = (numbers.len() as u32, numbers[numbers.len() - 1]);
            self.step(Event::Waiting { key, messages, last });
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.step(Event::Tick);
    }

    fn one_thing(&mut self) {
        match self.random.below(100) {
            0..=14 => self.arrive(),
            15..=19 => self.step(Event::Flush),
            20..=59 => self.finish_task(false),
            60..=84 => self.generate(false),
            85..=88 => self.cancel(),
            89..=97 => {
                let ms = 1 + self.random.next() % 3_000;
                self.pass(ms);
            }
            98 => self.pass(30_000),
            _ => self.crash(),
        }
    }

    /// From now on everything works; all open work must come to its end.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.agent.wants_flush() {
                self.step(Event::Flush);
            }
            // A look into the inbox that failed is repeated, also where no message is known to wait.
            let waits = self.agent.waiting_messages() > 0 || self.agent.next_deadline_ms().is_some();
            if self.agent.open_turns() == 0 && self.tasks.is_empty() && self.runs.is_empty() && !waits {
                break;
            }
            if !self.tasks.is_empty() {
                self.finish_task(true);
            } else if !self.runs.is_empty() {
                self.generate(true);
            } else {
                self.pass(500);
            }
        }
        assert_eq!(self.agent.open_turns(), 0, "all work comes to an end");
        assert_eq!(self.agent.next_deadline_ms(), None, "no timer is left");
        assert!(self.agent.hot_bytes() <= HOT_BYTES_MAX, "memory is bounded in bytes: {}", self.agent.hot_bytes());
        for (ticket, state) in &self.tickets {
            assert!(state.ended, "everybody who waits is answered: {ticket:?} {state:?}");
        }
        assert!(self.disk.inbox.is_empty(), "no accepted message is left open");
        assert_eq!(self.disk.closed, self.disk.accepted, "every accepted message is answered, once");
        let mut parts: HashMap<(ConversationId, u64), Vec<u32>> = HashMap::new();
        for (_, key) in self.disk.outbox.keys() {
            parts.entry((key.conversation, key.turn)).or_default().push(key.step);
        }
        for steps in parts.values() {
            assert!(steps.iter().copied().eq(0..steps.len() as u32), "steps count from 0: {steps:?}");
        }
    }
}

pub fn record(key: ConversationKey, number: usize) -> InboxRecord {
    InboxRecord {
        tenant: key.tenant,
        user: UserId::of(key.tenant, "u"),
        conversation: key.conversation,
        number: 0,
        address: address(number),
        text: "hello".into(),
        event_key: "e".into(),
        received_ms: 0,
        deadline_ms: 0,
        attempt: 0,
    }
}

fn address(number: usize) -> ChatAddress {
    ChatAddress {
        channel: "telegram".into(),
        account: "a".into(),
        chat: format!("c{number}"),
        thread: None,
        reply_to: None,
    }
}

fn run(seed: u64, steps: usize) -> World {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.one_thing();
    }
    world.settle();
    world
}

#[test]
fn every_random_life_keeps_the_promises() {
    let (mut answered, mut jobs) = (0, 0);
    for seed in seeds(600) {
        let outcome = std::panic::catch_unwind(|| run(seed, 500));
        let Ok(world) = outcome else { panic!("seed {seed} breaks a promise; repeat it with MILLRACE_SEED={seed}") };
        answered += world.disk.messages.values().filter(|m| m.role == Role::Assistant).count();
        jobs += world.disk.outbox.len();
    }
    assert!(answered > 100 && jobs > 100, "the runs do reach answers ({answered}) and deliveries ({jobs})");
}

#[test]
fn the_same_seed_is_the_same_life() {
    for seed in seeds(20) {
        assert_eq!(run(seed, 300).trace, run(seed, 300).trace, "seed {seed}");
    }
}
