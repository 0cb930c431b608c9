//! Speculation changes how fast a reply comes and nothing else: not a token, not a log-probability, not what is cached.

use millrace_inference::model::Model;
use millrace_inference::{
    ChatTemplate, Constraint, Engine, EngineConfig, EngineError, FinishReason, Request, Sampling, Speculation,
    TemplateMessage, Tokenizer,
};
use std::sync::Arc;

use crate::scheduler::{Script, Voice, config, expected_of, prompt, start, start_with_draft, talkative, tokenizer};
use crate::support::{LANGUAGE_MODEL, Listener, Reply, eventually, model_path, request};

/// An engine with this setting on the backend that has habits.
fn habitual(speculation: Speculation, blocks: usize, sequences: usize, chunk: usize) -> Engine {
    let config = EngineConfig { speculation, ..config(sequences, chunk) };
    start(blocks, &config, Script { voice: Voice::Habit, ..Script::default() }).0
}

fn ask(engine: &Engine, prompt: &[u32], max_tokens: u32, change: impl Fn(&mut Request)) -> Listener {
    let (mut request, listener) = request(prompt.to_vec(), max_tokens);
    change(&mut request);
    engine.submit(request).expect("accepted");
    listener
}

/// What the caller sees, in one line.
fn seen(reply: &Reply) -> String {
    let (reason, usage, _) = reply.done.as_ref().expect("the request is over");
    format!("{:?} {reason:?} {} {:?}", reply.text, usage.completion, reply.tokens)
}

#[test]
fn many_requests_get_the_same_replies_with_fewer_steps() {
    for (blocks, sequences, chunk) in [(400, 8, 64), (26, 4, 7), (25, 13, 1), (60, 1, 300)] {
        let engine = habitual(Speculation::Always, blocks, sequences, chunk);
        let prompts: Vec<Vec<u32>> =
            (0..24).map(|i| [prompt(i % 3, 40), prompt(i, 1 + i as usize * 5 % 60)].concat()).collect();
        let listeners: Vec<Listener> = prompts.iter().map(|p| ask(&engine, p, 90, |_| {})).collect();
        for (prompt, listener) in prompts.iter().zip(listeners) {
            let reply = listener.finish();
            let (text, reason) = expected_of(prompt, 90, Voice::Habit);
            assert_eq!((reply.text.as_str(), reply.reason()), (text.as_str(), &reason), "{blocks} blocks");
            let end = u32::from(reason == FinishReason::Stop);
            assert_eq!(reply.usage().completion, text.len() as u32 + end);
        }
        let stats = engine.stats();
        eventually("the batch is empty", || stats.running.get() == 0 && stats.kv_blocks_used.get() == 0);
        let (drafted, accepted) = (stats.draft_tokens.get(), stats.accepted_tokens.get());
        assert!(accepted > 0 && accepted < drafted, "some of {drafted} guesses were right: {accepted}");
        assert!(stats.drafts.get() <= drafted);
    }
}

#[test]
fn what_guesses_left_behind_is_never_found() {
    // A conversation that goes on: all it finds in the cache is what was verified, or its replies would be wrong.
    let engine = habitual(Speculation::Always, 64, 4, 64);
    let mut text = talkative();
    for round in 0..6 {
        let reply = ask(&engine, &text, 21, |_| {}).finish();
        assert_eq!(reply.text, expected_of(&text, 21, Voice::Habit).0);
        text.extend(reply.text.bytes().map(|b| u32::from(b - b'a')));
        let known = text.len() - 1;
        text.extend(prompt(5 + round, 3));
        let next = ask(&engine, &text, 1, |_| {}).finish();
        // In a reply that ended by itself the last letter was fed back.
        let cached = next.started.expect("started") as usize;
        assert!(cached == known || cached == known + 1, "{cached} of {known}");
    }
    assert!(engine.stats().accepted_tokens.get() > 0);
}

/// A name and what makes a request different.
type Way = (&'static str, Box<dyn Fn(&mut Request)>);

/// Ways to ask whose replies depend on everything that is done with a row.
fn ways() -> Vec<Way> {
    let sampled = |sampling: Sampling| -> Box<dyn Fn(&mut Request)> {
        Box::new(move |r| {
            r.sampling = sampling.clone();
            r.top_logprobs = Some(3);
        })
    };
    let seed = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
    vec![
        ("greedy", sampled(Sampling::greedy())),
        ("seed 1", sampled(seed(1))),
        ("seed 2, hot, top-p", sampled(Sampling { temperature: 1.5, top_p: 0.9, ..seed(2) })),
        ("top-k", sampled(Sampling { top_k: 3, ..seed(3) })),
        ("repetition", sampled(Sampling { repetition_penalty: 1.3, repetition_window: 20, ..Sampling::greedy() })),
        ("presence", sampled(Sampling { presence_penalty: 0.4, frequency_penalty: 0.05, ..seed(4) })),
        ("no end", Box::new(|r| r.ignore_eos = true)),
        ("stop", Box::new(|r| r.stop = vec!["ab".into(), "qz".into(), "e".into(), "mm".into()])),
    ]
}

#[test]
fn seeds_penalties_stop_strings_and_log_probabilities_are_untouched() {
    let plain = habitual(Speculation::Off, 200, 8, 64);
    let guessing = habitual(Speculation::Always, 200, 8, 64);
    for (name, way) in &ways() {
        for (seed, max_tokens) in [(1, 1), (2, 2), (3, 3), (4, 17), (5, 120), (6, 150), (7, 200), (8, 250)] {
            let prompt = prompt(seed, 30);
            let [a, b] = [&plain, &guessing].map(|engine| ask(engine, &prompt, max_tokens, way).finish());
            assert_eq!(seen(&a), seen(&b), "{name}, {max_tokens} tokens");
        }
    }
    assert_eq!(plain.stats().draft_tokens.get(), 0);
    let accepted = guessing.stats().accepted_tokens.get();
    assert!(accepted > 100, "only {accepted} guesses were right");
    assert!(guessing.stats().steps.get() < plain.stats().steps.get());
}

#[test]
fn a_draft_model_changes_nothing_either_whatever_it_says_and_however_little_it_holds() {
    let script = |voice, silent_at| Script { voice, silent_at, ..Script::default() };
    // It says the same; often the same; nothing in one step; it holds two texts at most; it is read in small pieces.
    for (voice, silent_at, blocks, sequences, chunk) in [
        (Voice::Fresh, None, 200, 6, 64),
        (Voice::Habit, None, 200, 6, 64),
        (Voice::Fresh, Some(7), 200, 6, 64),
        (Voice::Fresh, None, 25, 6, 64),
        (Voice::Fresh, None, 200, 3, 2),
    ] {
        let config = EngineConfig { speculation: Speculation::Always, ..config(sequences, chunk) };
        let scripts = [script(Voice::Fresh, None), script(voice, silent_at)];
        let (engine, widest) = start_with_draft([60, blocks], &config, scripts);
        let prompts: Vec<Vec<u32>> =
            (0..18).map(|i| [prompt(i % 3, 40), prompt(i, 1 + i as usize * 5 % 60)].concat()).collect();
        let listeners: Vec<Listener> = prompts.iter().map(|p| ask(&engine, p, 60, |_| {})).collect();
        for (prompt, listener) in prompts.iter().zip(listeners) {
            assert_eq!(listener.finish().text, expected_of(prompt, 60, Voice::Fresh).0);
        }
        let last = ask(&engine, &talkative(), 90, |r| r.top_logprobs = Some(1)).finish();
        assert_eq!((last.text.len(), last.tokens.len()), (90, 90));
        let stats = engine.stats();
        let (drafted, accepted) = (stats.draft_tokens.get(), stats.accepted_tokens.get());
        assert!(*widest.lock().expect("not poisoned") > 0, "it was asked");
        assert!(accepted > 0 && accepted < drafted, "{accepted} of {drafted}");
        if (voice, silent_at, blocks, chunk) == (Voice::Fresh, None, 200, 64) {
            assert!(accepted * 4 > drafted * 3, "it says the same, but only {accepted} of {drafted} were right");
        }
        println!("{voice:?} {silent_at:?} {blocks} blocks, {chunk} tokens a step: {accepted} of {drafted}");
        eventually("the batch is empty", || stats.running.get() == 0 && stats.kv_blocks_used.get() == 0);
    }
}

#[test]
fn a_draft_model_that_fails_is_done_without() {
    let config = EngineConfig { speculation: Speculation::Always, ..config(4, 64) };
    let scripts = [Script::default(), Script { refuses: true, ..Script::default() }];
    let (engine, _) = start_with_draft([60, 60], &config, scripts);
    assert_eq!(ask(&engine, &talkative(), 90, |_| {}).finish().text.len(), 90);
    assert!(engine.fault().is_none());
}

#[test]
fn a_constraint_is_kept_to_behind_guesses_as_well() {
    // The small pool preempts, so that parsers which looked ahead come back to a sequence without blocks.
    for (blocks, sequences) in [(300, 8), (26, 4)] {
        let [plain, guessing] = [Speculation::Off, Speculation::Always].map(|s| habitual(s, blocks, sequences, 64));
        // Some forbid what habit would go on with, some force it, one ends by itself.
        let patterns =
            ["([a-m][a-z]{0,6}[n-z]){2,40}", "[a-z]*", "(abc|bcd|[e-z]{5})+x?", "((ab){3}[a-z]{4}){3}", "[a-z]{0,20}q"];
        let requests: Vec<(Vec<u32>, &str, Sampling)> = (0..30)
            .map(|at| {
                let sampling = match at % 3 {
                    0 => Sampling::greedy(),
                    seed => Sampling { seed: seed as u64, ..Sampling::default() },
                };
                (prompt(at as u32 % 7, 10 + 3 * at), patterns[at % patterns.len()], sampling)
            })
            .collect();
        let replies = |engine: &Engine| -> Vec<String> {
            let way = |pattern: &str, sampling: &Sampling, r: &mut Request| {
                r.constraint = Some(Constraint::Regex(pattern.to_owned()));
                (r.sampling, r.top_logprobs) = (sampling.clone(), Some(2));
            };
            let asked = requests.iter().map(|(p, pattern, s)| ask(engine, p, 110, |r| way(pattern, s, r)));
            let listeners: Vec<Listener> = asked.collect();
            listeners.into_iter().map(|listener| seen(&listener.finish())).collect()
        };
        assert_eq!(replies(&plain), replies(&guessing), "{blocks} blocks");
        let accepted = guessing.stats().accepted_tokens.get();
        assert!(accepted > 100, "only {accepted} guesses were right");
        assert_eq!(plain.stats().draft_tokens.get(), 0);
    }
}

/// The real model, with a prompt that asks for a repetition and one that does not.
#[test]
fn the_real_model_writes_the_same_with_and_without() {
    let Some(path) = model_path(LANGUAGE_MODEL) else { return };
    let model = Model::load(&path).expect("the model loads");
    let template = ChatTemplate::from_gguf(model.gguf()).expect("a template");
    let tokenizer = Arc::new(Tokenizer::from_gguf(model.gguf()).expect("a tokenizer"));
    let [plain, guessing] = [Speculation::Off, Speculation::Always].map(|speculation| {
        let kv_bytes_max = 64 << 20;
        let config = EngineConfig { sequences_max: 4, kv_bytes_max, speculation, ..EngineConfig::default() };
        Engine::start(Arc::clone(&model), Arc::clone(&tokenizer), config).expect("the engine starts")
    });
    let quote = "Repeat this text word for word: The quick brown fox jumps over the lazy dog. The lazy dog sleeps on, \
                 and the quick brown fox goes home to tell its children of the lazy dog.";
    for message in [quote, "Write a short story about a lighthouse."] {
        let messages = [TemplateMessage::new("user", message)];
        let prompt = tokenizer.encode(&template.render(&messages, true).expect("renders"), true);
        let seed = |seed| Sampling { temperature: 0.8, top_p: 0.95, seed, ..Sampling::default() };
        let penalised = Sampling { repetition_penalty: 1.1, ..Sampling::greedy() };
        for sampling in [Sampling::greedy(), penalised, seed(1), seed(2)] {
            let way = |r: &mut Request| (r.sampling, r.top_logprobs) = (sampling.clone(), Some(2));
            let [a, b] = [&plain, &guessing].map(|engine| ask(engine, &prompt, 60, way).finish());
            assert_eq!(seen(&a), seen(&b), "{message:?} {sampling:?}");
        }
    }
    let stats = guessing.stats();
    assert!(stats.accepted_tokens.get() > 20, "{} of {}", stats.accepted_tokens.get(), stats.draft_tokens.get());
    assert!(stats.steps.get() < plain.stats().steps.get());
    // Documents of one form repeat it.
    let before = stats.accepted_tokens.get();
    let schema = serde_json::json!({"type": "array", "minItems": 5, "maxItems": 5, "items": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "people": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["city", "people"], "additionalProperties": false,
    }});
    let prompt = tokenizer.encode(
        &template.render(&[TemplateMessage::new("user", "List five cities as JSON.")], true).expect("renders"),
        true,
    );
    for sampling in [Sampling::greedy(), Sampling { temperature: 0.8, seed: 3, ..Sampling::default() }] {
        let way = |r: &mut Request| {
            (r.sampling, r.top_logprobs) = (sampling.clone(), Some(2));
            r.constraint = Some(Constraint::JsonSchema(schema.clone()));
        };
        let [a, b] = [&plain, &guessing].map(|engine| ask(engine, &prompt, 300, way).finish());
        assert_eq!(seen(&a), seen(&b), "{sampling:?}");
        assert_eq!(a.reason(), &FinishReason::Stop, "{}", a.text);
    }
    let accepted = stats.accepted_tokens.get() - before;
    assert!(accepted > 20, "{accepted} guesses were right under the schema");
}

/// The real model beside itself: all that a draft model does, with guesses that are always right when it is greedy.
#[test]
fn a_real_draft_model_changes_nothing_and_one_with_other_tokens_is_refused() {
    let Some(path) = model_path(LANGUAGE_MODEL) else { return };
    let model = Model::load(&path).expect("the model loads");
    let real = Arc::new(Tokenizer::from_gguf(model.gguf()).expect("a tokenizer"));
    let start = |draft, tokenizer: &Arc<Tokenizer>, speculation| {
        let config = EngineConfig { sequences_max: 4, kv_bytes_max: 64 << 20, speculation, ..EngineConfig::default() };
        Engine::start_with_draft(Arc::clone(&model), draft, Arc::clone(tokenizer), config)
    };
    match start(Some(Arc::clone(&model)), &tokenizer(), Speculation::Auto) {
        Err(EngineError::DraftVocabulary { draft: 49_152, tokens: 28, differs: 0 }) => {}
        other => panic!("{other:?}"),
    }
    let plain = start(None, &real, Speculation::Off).expect("the engine starts");
    let guessing = start(Some(Arc::clone(&model)), &real, Speculation::Always).expect("the engine starts");
    let prompts = ["Name three rivers of Europe.", "How does a lighthouse work?", "Say hello."];
    let prompts =
        prompts.map(|text| real.encode(&format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"), true));
    for temperature in [0.0, 0.9] {
        let way = |r: &mut Request| r.sampling = Sampling { temperature, seed: 5, ..Sampling::default() };
        let [a, b] = [&plain, &guessing].map(|engine| {
            let listeners = prompts.each_ref().map(|prompt| ask(engine, prompt, 40, way));
            listeners.map(|listener| seen(&listener.finish()))
        });
        assert_eq!(a, b, "temperature {temperature}");
        let (drafted, accepted) = (guessing.stats().draft_tokens.get(), guessing.stats().accepted_tokens.get());
        assert!(temperature > 0.0 || accepted * 4 > drafted * 3, "{accepted} of {drafted}");
    }
}
