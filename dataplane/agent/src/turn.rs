//! The work on one turn: retrieve, assemble, generate, finish.

use std::sync::Arc;

use millrace_proto::id::EffectKey;
use millrace_proto::record::{ChatAddress, DeliveryState, Message, OutboxJob, Role, SessionHead};

use super::inbound::{name_of, number_turn};
use super::{Agent, count_outcome, title};
use crate::context::{ContextInput, ContextTooLong, assemble};
use crate::conversation::{Answer, Batch, Outcome, Phase, Running, Turn, Writing};
use crate::effect::{DraftPart, Effect, Memory, Reply, TurnError, Write};
use crate::event::{ConversationKey, Fact, Fault, Finish, GenerationOptions, OpId, Output, RunId, Timings, Usage};

/// More facts are asked for than are shown: some stand in the window already.
const RECALL_SURPLUS: usize = 2;

impl Agent {
    pub(super) fn start_turn(&mut self, key: ConversationKey, now_ms: u64, effects: &mut Vec<Effect>) {
        let attempts_max = self.config.inbox_attempts_max;
        let turn_deadline_ms = now_ms + self.config.turn_deadline_ms;
        if let Err(retry_after_ms) = self.keeps_pace(key, now_ms) {
            return self.set_timer(key, Some(now_ms + retry_after_ms));
        }
        let conversation = self.conversation(key);
        let Some(mut turn) = conversation.queue.pop_front() else { return };
        number_turn(conversation, &mut turn);
        let refusal = match &turn.answer {
            _ if turn.cancelled => Some(Outcome::Failed(TurnError::Cancelled)),
            Answer::Outbox { deadline_ms, .. } if now_ms >= *deadline_ms => {
                Some(Outcome::DeadLetter(format!("it waited longer than {} s", self.config.inbox_ttl_ms / 1000)))
            }
            Answer::Outbox { attempt, .. } if *attempt > attempts_max => Some(Outcome::Failed(TurnError::Model(
                format!("the work on this message was interrupted {attempts_max} times"),
            ))),
            _ => None,
        };
        let text = turn.text.clone();
        self.conversation(key).running = Some(Box::new(Running {
            turn,
            phase: Phase::Retrieving { recall_op: None },
            embed_op: None,
            embedding: None,
            notices: Vec::new(),
            text: String::new(),
            prompt_tokens: 0,
            deadline_ms: turn_deadline_ms,
            retries: 0,
        }));
        if let Some(outcome) = refusal {
            return self.finish(key, outcome);
        }
        let running = self.running(key);
        if let Answer::Outbox { address, .. } = &running.turn.answer {
            let part = DraftPart::Begun { address: Box::new(address.clone()) };
            effects.push(draft(key, running.turn.id, part));
        }
        if self.config.embedding {
            let op = OpId(self.id());
            self.ops.insert(op, key);
            self.running(key).embed_op = Some(op);
            effects.push(Effect::Embed { op, text });
        } else if self.config.recall_items_max > 0 {
            self.recall(key, effects);
        }
        if self.config.recall_items_max == 0 {
            return self.generate(key, &[], now_ms, effects);
        }
        self.set_timer(key, Some(now_ms + self.config.recall_deadline_ms));
    }

    /// Whether the next message of a channel may be answered already. The error says after how many milliseconds it
    /// may. Those who hold a connection open were told when they asked.
    fn keeps_pace(&mut self, key: ConversationKey, now_ms: u64) -> Result<(), u64> {
        let (turns_max, tokens_max) = (self.config.channel_turns_per_minute_max, self.config.tokens_per_hour_max);
        let conversation = self.conversation(key);
        let deadline_ms = match conversation.queue.front().map(|turn| &turn.answer) {
            Some(Answer::Outbox { deadline_ms, .. }) => *deadline_ms,
            _ => return Ok(()),
        };
        match conversation.caps.take_turn(now_ms, turns_max, tokens_max) {
            // A message that will have become too old meanwhile says so when it has.
            Err(TurnError::TooFast { retry_after_ms, .. }) if now_ms < deadline_ms => {
                Err(retry_after_ms.min(deadline_ms - now_ms))
            }
            _ => Ok(()),
        }
    }

    fn recall(&mut self, key: ConversationKey, effects: &mut Vec<Effect>) {
        let op = OpId(self.id());
        let limit = self.config.recall_items_max * RECALL_SURPLUS;
        let running = self.running(key);
        running.phase = Phase::Retrieving { recall_op: Some(op) };
        let (user, text, embedding) = (running.turn.user, running.turn.text.clone(), running.embedding.clone());
        let channel = match &running.turn.answer {
            Answer::Outbox { address, .. } => Some((address.channel.clone(), address.account.clone())),
            _ => None,
        };
        self.ops.insert(op, key);
        effects.push(Effect::Recall { op, key, user, channel, text, embedding, limit });
    }

    pub(super) fn embedded(
        &mut self,
        op: OpId,
        result: Result<Vec<f32>, String>,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(key) = self.ops.remove(&op) else { return };
        let Some(running) = self.conversations.get_mut(&key).and_then(|c| c.running.as_mut()) else { return };
        if running.embed_op != Some(op) {
            return;
        }
        running.embed_op = None;
        let failed = result.is_err();
        running.embedding = result.ok();
        if matches!(running.phase, Phase::Retrieving { recall_op: None }) {
            self.stats.recall_degraded += u64::from(failed);
            self.recall(key, effects);
        }
        self.advance(key, now_ms, effects);
    }

    pub(super) fn recalled(
        &mut self,
        op: OpId,
        result: Result<Vec<Fact>, String>,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(key) = self.ops.remove(&op) else { return };
        let Some(running) = self.conversations.get_mut(&key).and_then(|c| c.running.as_mut()) else { return };
        if !matches!(running.phase, Phase::Retrieving { recall_op: Some(wanted) } if wanted == op) {
            return;
        }
        self.set_timer(key, None);
        self.stats.recall_degraded += u64::from(result.is_err());
        self.generate(key, &result.unwrap_or_default(), now_ms, effects);
        self.advance(key, now_ms, effects);
    }

    /// Assembles the context and asks the engine.
    fn generate(&mut self, key: ConversationKey, facts: &[Fact], now_ms: u64, effects: &mut Vec<Effect>) {
        let prompter = Arc::clone(&self.prompter);
        let config = self.config.clone();
        let conversation = self.conversation(key);
        let older = conversation.window.older();
        let window_from_seq = conversation.window_from_seq;
        let running = conversation.running.as_ref().expect("the turn being assembled is running");
        let options = options_of(&running.turn);
        let reply_tokens = options.max_tokens.unwrap_or(config.reply_tokens_max);
        let input = ContextInput {
            system: options.system.as_deref().unwrap_or(&config.system_prompt),
            older,
            window_from_seq,
            turn: running.turn.id,
            text: &running.turn.text.clone(),
            facts,
            facts_max: config.recall_items_max,
            facts_tokens_max: config.recall_tokens_max,
            reply_tokens,
            context_tokens_max: config.context_tokens_max,
            history: conversation.window.as_slice(),
        };
        let assembled = match assemble(&input, &*prompter) {
            Ok(assembled) => assembled,
            Err(ContextTooLong::Tokens { prompt_tokens, reply_tokens, context_tokens_max }) => {
                let error = TurnError::ContextTooLong { prompt_tokens, reply_tokens, context_tokens_max };
                return self.finish(key, Outcome::Failed(error));
            }
            Err(ContextTooLong::Template(why)) => return self.finish(key, Outcome::Failed(TurnError::Template(why))),
        };
        conversation.window_from_seq = assembled.window_from_seq;
        let running = self.running(key);
        running.prompt_tokens = u32::try_from(assembled.prompt.len()).unwrap_or(u32::MAX);
        if assembled.omitted > 0 {
            let text = cut_notice(assembled.omitted, config.context_tokens_max);
            running.notices.push(text.clone());
            let ticket = running.turn.answer.ticket();
            self.stats.contexts_cut += 1;
            if let Some(ticket) = ticket {
                effects.push(Effect::Reply { ticket, reply: Reply::Notice { text } });
            }
        }
        self.submit(key, assembled.prompt, reply_tokens, now_ms, effects);
    }

    fn submit(
        &mut self,
        key: ConversationKey,
        prompt: Vec<u32>,
        max_tokens: u32,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let run = RunId(self.id());
        let grace_ms = self.config.engine_grace_ms;
        self.runs.insert(run, key);
        let running = self.running(key);
        let deadline_ms = running.deadline_ms.max(now_ms + 1);
        let options = options_of(&running.turn);
        // The prompt is kept until the engine has taken it: a full queue is asked again.
        running.phase = Phase::Generating { run, prompt: prompt.clone(), max_tokens };
        self.set_timer(key, Some(deadline_ms + grace_ms));
        effects.push(Effect::Generate { run, key, prompt, max_tokens, options, deadline_ms });
    }

    pub(super) fn output(&mut self, run: RunId, output: Output, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(&key) = self.runs.get(&run) else { return };
        if matches!(output, Output::Done { .. } | Output::Refused { .. }) {
            self.runs.remove(&run);
        }
        let Some(running) = self.conversations.get_mut(&key).and_then(|c| c.running.as_mut()) else { return };
        let Phase::Generating { run: current, prompt, max_tokens } = &mut running.phase else { return };
        if *current != run {
            return;
        }
        let ticket = running.turn.answer.ticket();
        let mut reply = |reply| {
            if let Some(ticket) = ticket {
                effects.push(Effect::Reply { ticket, reply });
            }
        };
        match output {
            Output::Started { cached_tokens } => {
                *prompt = Vec::new();
                reply(Reply::Started { prompt_tokens: running.prompt_tokens, cached_tokens });
            }
            Output::Delta { text, logprobs } => {
                running.text.push_str(&text);
                match ticket {
                    Some(_) => reply(Reply::Delta { text, logprobs }),
                    None => effects.push(draft(key, running.turn.id, DraftPart::Text(text))),
                }
            }
            Output::Refused { retry_after_ms, why } => {
                let (prompt, max_tokens) = (std::mem::take(prompt), *max_tokens);
                self.refused(key, prompt, max_tokens, retry_after_ms, why, now_ms);
                self.advance(key, now_ms, effects);
            }
            Output::Done { reason, usage, timings } => {
                self.set_timer(key, None);
                let outcome = self.outcome(key, reason, usage, timings, now_ms);
                self.finish(key, outcome);
                self.advance(key, now_ms, effects);
            }
        }
    }

    /// A channel message waits for room in the engine; a person at a connection is told at once.
    fn refused(
        &mut self,
        key: ConversationKey,
        prompt: Vec<u32>,
        max_tokens: u32,
        retry_after_ms: u64,
        why: String,
        now_ms: u64,
    ) {
        let retries = self.running(key).retries;
        let pause_ms = self.config.pause_ms(retries).max(retry_after_ms.min(self.config.retry_max_ms));
        let running = self.running(key);
        let waits = matches!(running.turn.answer, Answer::Outbox { .. }) && now_ms + pause_ms < running.deadline_ms;
        if waits && !running.turn.cancelled {
            running.retries += 1;
            running.phase = Phase::Pausing { prompt, max_tokens };
            self.stats.generations_retried += 1;
            self.set_timer(key, Some(now_ms + pause_ms));
        } else {
            self.set_timer(key, None);
            self.finish(key, Outcome::Failed(TurnError::ModelBusy { retry_after_ms, why }));
        }
    }

    fn outcome(
        &mut self,
        key: ConversationKey,
        reason: Finish,
        usage: Usage,
        timings: Timings,
        now_ms: u64,
    ) -> Outcome {
        let limit_ms = self.config.turn_deadline_ms;
        let conversation = self.conversation(key);
        conversation.caps.add_tokens(now_ms, u64::from(usage.prompt) + u64::from(usage.completion));
        let running = conversation.running.as_ref().expect("a generation belongs to a running turn");
        let silent = matches!(running.turn.answer, Answer::Outbox { .. }) && running.text.trim().is_empty();
        match reason {
            _ if running.turn.cancelled => Outcome::Failed(TurnError::Cancelled),
            Finish::Stop | Finish::Length if silent => Outcome::Failed(TurnError::Model("its answer was empty".into())),
            Finish::Stop | Finish::Length => Outcome::Answered { reason, usage, timings },
            Finish::Deadline => Outcome::Failed(TurnError::Deadline { limit_ms }),
            Finish::Cancelled => Outcome::Failed(TurnError::Model("it was stopped from outside".into())),
            Finish::Failed(why) => Outcome::Failed(TurnError::Model(why)),
        }
    }

    pub(super) fn cancel_running(&mut self, key: ConversationKey, effects: &mut Vec<Effect>) {
        let Some(running) = self.conversation(key).running.as_mut() else { return };
        if running.turn.cancelled {
            return;
        }
        match &running.phase {
            Phase::Finishing { .. } => {}
            Phase::Generating { run, .. } => {
                effects.push(Effect::StopGeneration { run: *run });
                running.turn.cancelled = true;
            }
            Phase::Retrieving { .. } | Phase::Pausing { .. } => {
                running.turn.cancelled = true;
                self.set_timer(key, None);
                self.finish(key, Outcome::Failed(TurnError::Cancelled));
            }
        }
    }

    pub(super) fn timer_fired(&mut self, key: ConversationKey, now_ms: u64, effects: &mut Vec<Effect>) {
        let limit_ms = self.config.turn_deadline_ms;
        let Some(running) = self.conversation(key).running.as_mut() else { return };
        match &mut running.phase {
            Phase::Retrieving { .. } => {
                self.stats.recall_degraded += 1;
                self.generate(key, &[], now_ms, effects);
            }
            Phase::Generating { run, .. } => {
                // The engine has not kept its own deadline: whatever it still says is not listened to.
                let run = *run;
                let cancelled = running.turn.cancelled;
                self.runs.remove(&run);
                effects.push(Effect::StopGeneration { run });
                let error = if cancelled { TurnError::Cancelled } else { TurnError::Deadline { limit_ms } };
                self.finish(key, Outcome::Failed(error));
            }
            Phase::Pausing { prompt, max_tokens } => {
                let (prompt, max_tokens) = (std::mem::take(prompt), *max_tokens);
                self.submit(key, prompt, max_tokens, now_ms, effects);
            }
            // The batch is written again by `advance`.
            Phase::Finishing { .. } => {}
        }
    }

    /// The outcome is known; `advance` writes it.
    fn finish(&mut self, key: ConversationKey, outcome: Outcome) {
        self.set_timer(key, None);
        let running = self.running(key);
        running.retries = 0;
        running.phase = Phase::Finishing { outcome };
    }

    /// ONE batch: notices, answer, memory, outbox jobs, closed inbox record.
    pub(super) fn write_finish(&mut self, key: ConversationKey, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.conversation(key).forgotten {
            return self.finish_settled(key, Vec::new(), None, Ok(()), now_ms, effects);
        }
        let op = OpId(self.id());
        let (split, outbox_ttl_ms) = (self.config.split, self.config.outbox_ttl_ms);
        let prompter = Arc::clone(&self.prompter);
        let conversation = self.conversation(key);
        let running = conversation.running.as_ref().expect("a finishing turn is running");
        let Phase::Finishing { outcome } = &running.phase else { return };
        let turn = &running.turn;
        let mut head = conversation.head.clone().unwrap_or_else(|| first_head(key, turn));
        if matches!(turn.answer, Answer::Outbox { .. }) {
            effects.push(draft(key, turn.id, DraftPart::Ended));
        }

        let mut messages = Vec::new();
        let mut record = |role, text: &str, at_ms| {
            let tokens = if matches!(role, Role::User | Role::Assistant) { prompter.count(text) } else { 0 };
            messages.push(Message { seq: head.next_seq, turn: turn.id, role, text: text.to_owned(), at_ms, tokens });
            head.next_seq += 1;
            head.next_seq - 1
        };
        let question_seq = match turn.recorded {
            true => turn.question_seq,
            false => Some(record(Role::User, &turn.text, turn.at_ms)),
        };
        for notice in &running.notices {
            record(Role::Notice, notice, now_ms);
        }
        let answer_seq = (!running.text.is_empty()).then(|| record(Role::Assistant, &running.text, now_ms));
        let failure = match outcome {
            Outcome::Answered { .. } => None,
            Outcome::Failed(TurnError::Cancelled) => Some("The answer was stopped.".to_owned()),
            Outcome::Failed(error) => Some(format!("I could not answer this message: {error}. Please send it again.")),
            Outcome::DeadLetter(why) => Some(format!("I could not answer this message: {why}. Please send it again.")),
        };
        if let Some(text) = &failure {
            record(Role::Notice, text, now_ms);
        }
        head.updated_ms = now_ms;
        head.next_turn = head.next_turn.max(turn.id + 1);
        if let Answer::Outbox { address, .. } = &turn.answer {
            head.address = Some(ChatAddress { reply_to: None, ..address.clone() });
        }

        let mut jobs = Vec::new();
        if let Answer::Outbox { address, .. } = &turn.answer {
            let dead = matches!(outcome, Outcome::DeadLetter(_));
            let parts = match &failure {
                Some(text) => vec![text.clone()],
                None => split(address, &running.text),
            };
            for (step, text) in (0u32..).zip(parts) {
                jobs.push(OutboxJob {
                    key: EffectKey { conversation: key.conversation, turn: turn.id, step },
                    tenant: key.tenant,
                    address: address.clone(),
                    text,
                    created_ms: now_ms,
                    due_ms: now_ms,
                    expires_ms: now_ms + outbox_ttl_ms,
                    attempt: 0,
                    state: if dead { DeliveryState::Dead } else { DeliveryState::Pending },
                    detail: if dead { failure.clone().unwrap_or_default() } else { String::new() },
                });
            }
        }
        let remembered = match (outcome, question_seq) {
            (Outcome::Failed(TurnError::Cancelled) | Outcome::DeadLetter(_), _) | (_, None) => None,
            (_, Some(seq)) => Some(Memory {
                user: turn.user,
                seq,
                text: turn.text.clone(),
                at_ms: turn.at_ms,
                embedding: running.embedding.clone().unwrap_or_default(),
            }),
        };

        let mut writes = vec![Write::Session(head.clone())];
        writes.extend(messages.iter().cloned().map(Write::Message));
        writes.extend(remembered.map(Write::Remember));
        writes.extend(jobs.iter().cloned().map(Write::Outbox));
        if let Answer::Outbox { number, .. } = &turn.answer {
            writes.push(Write::CloseInbox { number: *number });
        }
        conversation.writing =
            Some(Writing { op, head: Some(head), messages, what: Batch::Finish { jobs, answer_seq } });
        self.ops.insert(op, key);
        effects.push(Effect::Persist { op, key, writes });
    }

    pub(super) fn finish_settled(
        &mut self,
        key: ConversationKey,
        jobs: Vec<OutboxJob>,
        answer_seq: Option<u64>,
        result: Result<(), Fault>,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let conversation = self.conversation(key);
        if result.is_err() && conversation.running.as_ref().is_some_and(|r| r.turn.answer.ticket().is_none()) {
            // Nobody at a connection waits and the record is open: the batch is tried until the disk takes it.
            let running = self.running(key);
            let retries = running.retries;
            running.retries += 1;
            let pause_ms = self.config.pause_ms(retries);
            return self.set_timer(key, Some(now_ms + pause_ms));
        }
        let forgotten = conversation.forgotten;
        let Some(running) = conversation.running.take().map(|running| *running) else { return };
        // A vector that is still on its way has nobody to go to.
        if let Some(op) = running.embed_op {
            self.ops.remove(&op);
        }
        let Phase::Finishing { outcome } = running.phase else { return };
        count_outcome(&mut self.stats, &outcome);
        match &running.turn.answer {
            Answer::Stream { .. } => self.open_turns -= 1,
            Answer::Outbox { .. } if forgotten => self.channel_dropped(key),
            Answer::Outbox { .. } => self.channel_ended(key),
        }
        if let Answer::Stream { ticket, .. } = running.turn.answer {
            self.tickets.remove(&ticket);
            let reply = match (result, outcome) {
                (Err(fault), Outcome::Answered { .. }) => Reply::Failed(TurnError::Storage(fault)),
                (_, Outcome::Answered { reason, usage, timings }) => {
                    Reply::Done { reason, usage, timings, seq: answer_seq }
                }
                (_, Outcome::Failed(error)) => Reply::Failed(error),
                (_, Outcome::DeadLetter(why)) => Reply::Failed(TurnError::Model(why)),
            };
            effects.push(Effect::Reply { ticket, reply });
        }
        for job in jobs {
            if job.state == DeliveryState::Pending {
                effects.push(Effect::Deliver { job: Box::new(job) });
            }
        }
    }

    fn running(&mut self, key: ConversationKey) -> &mut Running {
        self.conversation(key).running.as_mut().expect("the turn being worked on is running")
    }
}

/// The head of a channel's conversation whose first message is answered.
fn first_head(key: ConversationKey, turn: &Turn) -> SessionHead {
    let name = match &turn.answer {
        Answer::Outbox { address, .. } => name_of(address),
        // The head of such a turn was written together with its question: this is a damaged store.
        Answer::Stream { .. } => key.conversation.to_string(),
    };
    SessionHead {
        tenant: key.tenant,
        user: turn.user,
        conversation: key.conversation,
        name,
        title: title(&turn.text),
        created_ms: turn.at_ms,
        updated_ms: turn.at_ms,
        next_seq: 0,
        next_turn: 0,
        address: None,
    }
}

/// Something about a reply that is being written to a channel.
fn draft(key: ConversationKey, turn: u64, part: DraftPart) -> Effect {
    let name = EffectKey { conversation: key.conversation, turn, step: EffectKey::DRAFT_STEP };
    Effect::Draft { tenant: key.tenant, key: name, part }
}

/// A channel says nothing about sampling. The turn's number is the seed: a turn that is repeated after a
/// crash is answered in the same words.
fn options_of(turn: &Turn) -> Arc<GenerationOptions> {
    match &turn.answer {
        Answer::Stream { options, .. } => Arc::clone(options),
        Answer::Outbox { .. } => Arc::new(GenerationOptions { seed: turn.id, ..GenerationOptions::default() }),
    }
}

/// What a person reads when the conversation no longer fits.
fn cut_notice(omitted: u64, context_tokens_max: u32) -> String {
    format!(
        "{omitted} older message{} left out of what the model reads: the conversation no longer fits its context of \
         {context_tokens_max} tokens. They stay in the history and can still be recalled.",
        if omitted == 1 { " was" } else { "s were" }
    )
}
