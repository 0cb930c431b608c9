//! What an idle conversation holds in memory, counted by the allocator: `idle [CONVERSATIONS [TURNS]]` prints the
//! bytes of one.
//!
//! Each conversation has had TURNS turns of ordinary length over a channel and waits for the next message; its
//! window is still hot. A conversation that leaves memory (the least recently used ones do) holds nothing.

use std::sync::Arc;

use millrace_agent::{
    Agent, AgentConfig, Effect, Event, Finish, Inbound, Loaded, Output, PromptMessage, Prompter, Ticket, Timings, Usage,
};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{ChatAddress, InboxRecord};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// A tokenizer whose tokens are words.
struct Words;

impl Prompter for Words {
    fn count(&self, text: &str) -> u32 {
        u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX)
    }

    fn encode(&self, messages: &[PromptMessage]) -> Result<Vec<u32>, String> {
        Ok(vec![0; messages.iter().map(|message| message.content.split_whitespace().count()).sum()])
    }
}

fn main() {
    let argument = |at: usize, usual: u64| std::env::args().nth(at).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (conversations, turns) = (argument(1, 4_000), argument(2, 2));
    let _profiler = dhat::Profiler::builder().testing().build();
    let config = AgentConfig {
        embedding: false,
        recall_items_max: 0,
        conversations_max: usize::try_from(conversations).expect("a number of conversations"),
        ..AgentConfig::default()
    };
    let mut agent = Agent::new(config, Arc::new(Words)).expect("the usual options");
    let before = dhat::HeapStats::get().curr_bytes;
    for conversation in 0..conversations {
        for turn in 0..turns {
            run(&mut agent, conversation, turn);
        }
    }
    assert_eq!((agent.open_turns(), agent.hot_conversations() as u64), (0, conversations), "all are idle and hot");
    let held = dhat::HeapStats::get().curr_bytes - before;
    println!("{}", held as f64 / conversations as f64);
}

/// One turn from the message to the stored reply; every effect is carried out at once.
fn run(agent: &mut Agent, conversation: u64, turn: u64) {
    let now_ms = 1_767_225_600_000 + conversation * 1_000 + turn * 100;
    let name = format!("slack/team/D{conversation}");
    let tenant = TenantId(1);
    let record = InboxRecord {
        tenant,
        user: UserId::of(tenant, &name),
        conversation: ConversationId::of(tenant, &name),
        number: 0,
        address: ChatAddress {
            channel: "slack".into(),
            account: "team".into(),
            chat: format!("D{conversation}"),
            thread: None,
            reply_to: Some(format!("{now_ms}.000{turn}")),
        },
        text: format!("Case {conversation}-{turn}. My laptop asks for the password again and again. What should I do?"),
        event_key: format!("Ev{conversation}x{turn}"),
        received_ms: 0,
        deadline_ms: 0,
        attempt: 0,
    };
    let ticket = Ticket(conversation * 1_000 + turn);
    let message = Inbound { record, dedup_scope: "slack/team".into(), ticket };
    // The last event is taken first.
    let mut events = vec![Event::Flush, Event::Received(Box::new(message))];
    let mut effects = Vec::new();
    while let Some(event) = events.pop() {
        agent.step(event, now_ms, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Load { key, .. } => events.push(Event::Loaded { key, result: Ok(Loaded::default()) }),
                Effect::Accept { op, .. } | Effect::Persist { op, .. } => {
                    events.push(Event::Persisted { op, result: Ok(()) })
                }
                Effect::Generate { run, .. } => {
                    let text = "Restart it once. If it asks again, tell your administrator.".to_owned();
                    let done = Output::Done {
                        reason: Finish::Stop,
                        usage: Usage { prompt: 60, completion: 12, cached: 0 },
                        timings: Timings::default(),
                    };
                    events.push(Event::Output { run, output: done });
                    events.push(Event::Output { run, output: Output::Delta { text, logprobs: Vec::new() } });
                }
                Effect::Embed { op, .. } => events.push(Event::Embedded { op, result: Ok(Vec::new()) }),
                Effect::Recall { op, .. } => events.push(Event::Recalled { op, result: Ok(Vec::new()) }),
                Effect::TakeUp { key } => events.push(Event::TakenUp { key, first: Ok(None) }),
                Effect::StopGeneration { .. }
                | Effect::Reply { .. }
                | Effect::Deliver { .. }
                | Effect::Draft { .. } => {}
            }
        }
    }
}
