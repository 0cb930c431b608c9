//! Turns whose disk, encoder, memory or engine answers late, wrongly or not at all, one case at a time.

use std::sync::Arc;

use millrace_agent::{
    Agent, AgentConfig, Arrival, ConversationKey, Effect, Event, Fault, Finish, GenerationOptions, Inbound, Loaded,
    OpId, Output, Reply, RunId, Ticket, Timings, TurnError, Usage, Write,
};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{InboxRecord, Message, Role, SessionHead};

use crate::world::{CONTEXT, QUEUE_MAX, Words, config, record};

fn key() -> ConversationKey {
    ConversationKey { tenant: TenantId(1), conversation: ConversationId::of(TenantId(1), "c0") }
}

fn interactive(ticket: u64, text: &str) -> Event {
    Event::Arrived(Box::new(Arrival {
        key: key(),
        user: UserId::of(TenantId(1), "u"),
        name: "c0".into(),
        text: text.into(),
        ticket: Ticket(ticket),
        options: Arc::new(GenerationOptions::default()),
    }))
}

#[test]
fn a_recall_that_never_answers_delays_the_turn_only_to_its_deadline() {
    let mut agent = Agent::new(config(), Arc::new(Words)).unwrap();
    let mut effects = Vec::new();
    agent.step(interactive(1, "hello"), 1_000, &mut effects);
    agent.step(Event::Loaded { key: key(), result: Ok(Loaded::default()) }, 1_000, &mut effects);
    let Some(Effect::Persist { op, .. }) = effects.last() else { panic!("{effects:?}") };
    agent.step(Event::Persisted { op: *op, result: Ok(()) }, 1_001, &mut effects.clone());
    effects.clear();
    let at = agent.next_deadline_ms().expect("recall has a deadline");
    assert_eq!(at, 1_001 + config().recall_deadline_ms);
    agent.step(Event::Tick, at, &mut effects);
    assert!(matches!(effects.last(), Some(Effect::Generate { .. })), "{effects:?}");
    assert_eq!(agent.stats().recall_degraded, 1);
}

#[test]
fn a_message_that_cannot_fit_is_refused_with_the_numbers_and_leaves_no_trace() {
    let mut agent = Agent::new(config(), Arc::new(Words)).unwrap();
    let mut effects = Vec::new();
    agent.step(interactive(1, &"word ".repeat(200)), 1_000, &mut effects);
    let [Effect::Reply { reply: Reply::Failed(error), .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(error, &TurnError::ContextTooLong { prompt_tokens: 200, reply_tokens: 30, context_tokens_max: CONTEXT });
    assert_eq!((agent.open_turns(), agent.hot_conversations()), (0, 0));
}

#[test]
fn beyond_the_queue_of_a_conversation_a_turn_is_refused_at_once() {
    let mut agent = Agent::new(config(), Arc::new(Words)).unwrap();
    let mut effects = Vec::new();
    for ticket in 0..=QUEUE_MAX as u64 {
        agent.step(interactive(ticket, "hi"), 1_000, &mut effects);
    }
    effects.clear();
    agent.step(interactive(99, "hi"), 1_000, &mut effects);
    assert!(
        matches!(
            &effects[..],
            [Effect::Reply {
                ticket: Ticket(99),
                reply: Reply::Failed(TurnError::ConversationBusy { waiting_max: QUEUE_MAX })
            }]
        ),
        "{effects:?}"
    );
}

#[test]
fn a_message_that_kills_the_process_again_and_again_is_answered_with_an_error() {
    let poison = InboxRecord {
        number: 4,
        text: "poison".into(),
        received_ms: 1_000,
        deadline_ms: 1_000_000,
        attempt: config().inbox_attempts_max,
        ..record(key(), 0)
    };
    let mut agent = Agent::new(config(), Arc::new(Words)).unwrap();
    let mut effects = Vec::new();
    agent.step(Event::Waiting { key: key(), messages: 1, last: 4 }, 2_000, &mut effects);
    assert!(matches!(effects[..], [Effect::Load { .. }, Effect::TakeUp { .. }]), "{effects:?}");
    agent.step(Event::TakenUp { key: key(), first: Ok(Some(Box::new(poison))) }, 2_000, &mut effects);
    agent.step(Event::Loaded { key: key(), result: Ok(Loaded::default()) }, 2_000, &mut effects);
    let Some(Effect::Persist { op, .. }) = effects.last().cloned() else { panic!("{effects:?}") };
    agent.step(Event::Persisted { op, result: Ok(()) }, 2_000, &mut effects);
    let Some(Effect::Persist { writes, .. }) = effects.last() else { panic!("{effects:?}") };
    let text = writes.iter().find_map(|w| if let Write::Outbox(job) = w { Some(&job.text) } else { None });
    assert!(text.expect("an answer").contains("interrupted 10 times"), "{writes:?}");
    assert!(writes.iter().any(|w| matches!(w, Write::CloseInbox { number: 4 })));
}

#[test]
fn a_record_of_an_older_version_is_answered_as_the_turn_it_was_numbered_as() {
    let options = AgentConfig { recall_items_max: 0, embedding: false, ..config() };
    let mut agent = Agent::new(options, Arc::new(Words)).unwrap();
    let mut effects = Vec::new();
    let old = InboxRecord { number: 4, received_ms: 1_000, deadline_ms: 1_000_000, attempt: 1, ..record(key(), 0) };
    let question = Message { seq: 0, turn: 4, role: Role::User, text: "hello".into(), at_ms: 1_000, tokens: 1 };
    let head = SessionHead {
        tenant: TenantId(1),
        user: old.user,
        conversation: key().conversation,
        name: "c0".into(),
        title: "hello".into(),
        created_ms: 1,
        updated_ms: 1_000,
        next_seq: 1,
        next_turn: 5,
        address: None,
    };
    agent.step(Event::Waiting { key: key(), messages: 1, last: 4 }, 2_000, &mut effects);
    agent.step(Event::TakenUp { key: key(), first: Ok(Some(Box::new(old))) }, 2_000, &mut effects);
    let loaded = Loaded { head: Some(Box::new(head)), messages: vec![question] };
    agent.step(Event::Loaded { key: key(), result: Ok(loaded) }, 2_000, &mut effects);
    let Some(Effect::Persist { op, writes, .. }) = effects.last().cloned() else { panic!("{effects:?}") };
    assert!(matches!(&writes[..], [Write::Inbox(InboxRecord { number: 4, attempt: 2, .. })]), "{writes:?}");
    agent.step(Event::Persisted { op, result: Ok(()) }, 2_000, &mut effects);
    let Some(&Effect::Generate { run, .. }) = effects.last() else { panic!("{effects:?}") };
    let outputs = [
        Output::Delta { text: "good day".into(), logprobs: Vec::new() },
        Output::Done { reason: Finish::Stop, usage: Usage::default(), timings: Timings::default() },
    ];
    outputs.into_iter().for_each(|output| agent.step(Event::Output { run, output }, 2_000, &mut effects));
    let (op, messages) = written(&effects);
    assert_eq!(messages, [(Role::Assistant, "good day".into())], "the question stands there already");
    let Some(Effect::Persist { writes, .. }) = effects.last() else { panic!("{effects:?}") };
    let keys = writes.iter().filter_map(|w| if let Write::Outbox(job) = w { Some(job.key.turn) } else { None });
    assert_eq!(keys.collect::<Vec<_>>(), [4]);
    assert!(writes.iter().any(|w| matches!(w, Write::Remember(memory) if memory.seq == 0)));
    effects.clear();
    // What comes next is numbered anew, and asked for once more: only the inbox knows that it is empty.
    agent.step(Event::Persisted { op, result: Ok(()) }, 2_001, &mut effects);
    assert!(matches!(effects.last(), Some(Effect::TakeUp { .. })), "{effects:?}");
    agent.step(Event::TakenUp { key: key(), first: Ok(None) }, 2_001, &mut effects);
    assert_eq!((agent.open_turns(), agent.waiting_messages()), (0, 0));
}

#[test]
fn a_chat_that_is_too_fast_is_answered_later_and_holds_up_nobody() {
    let options = AgentConfig { channel_turns_per_minute_max: 1, recall_items_max: 0, embedding: false, ..config() };
    let mut agent = Agent::new(options, Arc::new(Words)).unwrap();
    let mut effects = Vec::new();
    for number in 0..2_u64 {
        let record = InboxRecord { event_key: number.to_string(), ..record(key(), 0) };
        let message = Inbound { record, dedup_scope: "s".into(), ticket: Ticket(number) };
        agent.step(Event::Received(Box::new(message)), 1_000, &mut effects);
    }
    assert!(effects.is_empty() && agent.wants_flush(), "one batch for both: {effects:?}");
    agent.step(Event::Flush, 1_000, &mut effects);
    let Some(Effect::Accept { op, messages, .. }) = effects.pop() else { panic!("{effects:?}") };
    agent.step(Event::Persisted { op, result: Ok(()) }, 1_000, &mut effects);
    let accepted = effects.iter().filter(|e| matches!(e, Effect::Reply { reply: Reply::Accepted, .. })).count();
    assert_eq!((accepted, agent.open_turns(), agent.waiting_messages()), (2, 1, 1));
    agent.step(Event::Loaded { key: key(), result: Ok(Loaded::default()) }, 1_000, &mut effects);
    let Some(&Effect::Generate { run, .. }) = effects.last() else { panic!("{effects:?}") };
    let done = Output::Done { reason: Finish::Stop, usage: Usage::default(), timings: Timings::default() };
    agent.step(Event::Output { run, output: done }, 1_500, &mut effects);
    let (op, _) = written(&effects);
    agent.step(Event::Persisted { op, result: Ok(()) }, 1_500, &mut effects);
    let takes_up = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::TakeUp { .. }));
    assert!(!takes_up(&effects), "it waits until its minute is over: {effects:?}");
    assert_eq!((agent.open_turns(), agent.waiting_messages()), (0, 1), "and takes no place meanwhile");
    assert_eq!(agent.next_deadline_ms(), Some(60_000));
    agent.step(Event::Tick, 60_000, &mut effects);
    assert!(takes_up(&effects), "{effects:?}");
    effects.clear();
    let second = Some(Box::new(messages[1].record.clone()));
    agent.step(Event::TakenUp { key: key(), first: Ok(second) }, 60_000, &mut effects);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Generate { .. })), "{effects:?}");
}

/// An agent whose only turn is being generated, and its run.
fn generating() -> (Agent, RunId) {
    let mut agent = Agent::new(AgentConfig { recall_items_max: 0, ..config() }, Arc::new(Words)).unwrap();
    let mut effects = Vec::new();
    agent.step(interactive(1, "hello"), 1_000, &mut effects);
    agent.step(Event::Loaded { key: key(), result: Ok(Loaded::default()) }, 1_000, &mut effects);
    let Some(Effect::Persist { op, .. }) = effects.last().cloned() else { panic!("{effects:?}") };
    agent.step(Event::Persisted { op, result: Ok(()) }, 1_000, &mut effects);
    let Some(Effect::Generate { run, .. }) = effects.last() else { panic!("{effects:?}") };
    let run = *run;
    agent.step(Event::Output { run, output: Output::Started { cached_tokens: 0 } }, 1_000, &mut effects);
    let half = Output::Delta { text: "half an".into(), logprobs: Vec::new() };
    agent.step(Event::Output { run, output: half }, 1_000, &mut effects);
    (agent, run)
}

fn written(effects: &[Effect]) -> (OpId, Vec<(Role, String)>) {
    let Some(Effect::Persist { op, writes, .. }) = effects.last() else { panic!("{effects:?}") };
    let message = |w: &Write| if let Write::Message(m) = w { Some((m.role, m.text.clone())) } else { None };
    (*op, writes.iter().filter_map(message).collect())
}

#[test]
fn a_stopped_answer_keeps_what_was_said_and_says_that_it_was_stopped() {
    let (mut agent, run) = generating();
    let mut effects = Vec::new();
    agent.step(Event::Cancelled { ticket: Ticket(1) }, 1_100, &mut effects);
    assert!(matches!(effects[..], [Effect::StopGeneration { run: stopped }] if stopped == run), "{effects:?}");
    let done = Output::Done { reason: Finish::Cancelled, usage: Usage::default(), timings: Timings::default() };
    agent.step(Event::Output { run, output: done }, 1_101, &mut effects);
    let (op, messages) = written(&effects);
    assert_eq!(messages, [(Role::Assistant, "half an".into()), (Role::Notice, "The answer was stopped.".into())]);
    agent.step(Event::Persisted { op, result: Ok(()) }, 1_102, &mut effects);
    assert!(
        matches!(effects.last(), Some(Effect::Reply { reply: Reply::Failed(TurnError::Cancelled), .. })),
        "{effects:?}"
    );
    assert_eq!((agent.open_turns(), agent.stats().turns_cancelled), (0, 1));
}

#[test]
fn an_engine_that_hangs_past_its_deadline_is_not_waited_for_nor_listened_to() {
    let (mut agent, run) = generating();
    let mut effects = Vec::new();
    let at = agent.next_deadline_ms().expect("a generation is watched");
    assert_eq!(at, 1_000 + config().turn_deadline_ms + config().engine_grace_ms);
    agent.step(Event::Tick, at, &mut effects);
    let (op, messages) = written(&effects);
    assert!(messages[1].1.contains("no answer within 20 s"), "{messages:?}");
    agent.step(Event::Persisted { op, result: Ok(()) }, at, &mut effects);
    assert!(matches!(effects.last(), Some(Effect::Reply { reply: Reply::Failed(TurnError::Deadline { .. }), .. })));
    effects.clear();
    agent.step(
        Event::Output { run, output: Output::Delta { text: "late".into(), logprobs: Vec::new() } },
        at,
        &mut effects,
    );
    assert!(effects.is_empty(), "{effects:?}");
}

#[test]
fn an_answer_that_cannot_be_stored_is_not_called_done() {
    let (mut agent, run) = generating();
    let mut effects = Vec::new();
    let done = Output::Done { reason: Finish::Stop, usage: Usage::default(), timings: Timings::default() };
    agent.step(Event::Output { run, output: done }, 1_101, &mut effects);
    let (op, _) = written(&effects);
    agent.step(Event::Persisted { op, result: Err(Fault::NoSpace) }, 1_102, &mut effects);
    let last = effects.last();
    assert!(
        matches!(last, Some(Effect::Reply { reply: Reply::Failed(TurnError::Storage(Fault::NoSpace)), .. })),
        "{last:?}"
    );
}

#[test]
fn a_forgotten_user_leaves_the_memory_and_a_running_answer_leaves_no_trace() {
    let (mut agent, run) = generating();
    let mut effects = Vec::new();
    agent.step(interactive(2, "and another thing"), 1_050, &mut effects);
    let Some(Effect::Persist { op: accepting, .. }) = effects.last().cloned() else { panic!("{effects:?}") };
    let stranger = Event::Forgotten { tenant: TenantId(1), user: UserId::of(TenantId(1), "somebody else") };
    agent.step(stranger, 1_060, &mut Vec::new());
    assert_eq!((agent.hot_conversations(), agent.open_turns()), (1, 2));

    effects.clear();
    let forgotten = Event::Forgotten { tenant: TenantId(1), user: UserId::of(TenantId(1), "u") };
    agent.step(forgotten, 1_100, &mut effects);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::StopGeneration { run: stopped } if *stopped == run)));
    let done = Output::Done { reason: Finish::Cancelled, usage: Usage::default(), timings: Timings::default() };
    agent.step(Event::Output { run, output: done }, 1_101, &mut effects);
    // The second turn was on its way to the disk when its user was forgotten: the store refuses it.
    agent.step(Event::Persisted { op: accepting, result: Err(Fault::Closed) }, 1_102, &mut effects);
    assert_eq!((agent.hot_conversations(), agent.open_turns()), (0, 0));
    let stored = effects.iter().filter(|effect| matches!(effect, Effect::Persist { .. })).count();
    assert_eq!(stored, 0, "nothing is written after the forgetting: {effects:?}");
    assert!(
        effects.iter().any(|effect| matches!(
            effect,
            Effect::Reply { ticket: Ticket(1), reply: Reply::Failed(TurnError::Cancelled) }
        )),
        "{effects:?}"
    );
}

#[test]
fn an_idle_conversation_of_a_forgotten_user_is_gone_at_once() {
    let (mut agent, run) = generating();
    let mut effects = Vec::new();
    let done = Output::Done { reason: Finish::Stop, usage: Usage::default(), timings: Timings::default() };
    agent.step(Event::Output { run, output: done }, 1_001, &mut effects);
    let (op, _) = written(&effects);
    agent.step(Event::Persisted { op, result: Ok(()) }, 1_002, &mut effects);
    assert_eq!((agent.hot_conversations(), agent.open_turns()), (1, 0));
    effects.clear();
    agent.step(Event::Forgotten { tenant: TenantId(1), user: UserId::of(TenantId(1), "u") }, 1_003, &mut effects);
    assert_eq!((agent.hot_conversations(), agent.hot_bytes()), (0, 0));
    assert!(effects.is_empty(), "{effects:?}");
}
