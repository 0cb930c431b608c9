//! Constrained requests in a running engine: beside others, under preemption, hostile ones, and on the real model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_inference::model::Model;
use millrace_inference::{
    ChatTemplate, Constraint, ConstraintError, Engine, EngineConfig, FinishReason, Sampling, TemplateMessage, Tokenizer,
};
use serde_json::{Value, json};

use crate::scheduler::{Script, config, expected, prompt, start, submit, talkative};
use crate::support::{LANGUAGE_MODEL, Listener, Reply, eventually, model_path, request};

/// Well above the deadline of a compilation and what the machine may be late.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);

fn ask(engine: &Engine, prompt: Vec<u32>, max_tokens: u32, constraint: Constraint) -> Listener {
    let (mut request, listener) = request(prompt, max_tokens);
    request.constraint = Some(constraint);
    engine.submit(request).expect("accepted");
    listener
}

fn refusal(reply: &Reply) -> &ConstraintError {
    match reply.reason() {
        FinishReason::Constraint(error) => error,
        other => panic!("{other:?}"),
    }
}

/// Whether a text is groups of one letter of `abc` and two of `xyz`.
fn fits(text: &str) -> bool {
    text.len().is_multiple_of(3)
        && text.bytes().enumerate().all(|(at, letter)| match at % 3 {
            0 => (b'a'..=b'c').contains(&letter),
            _ => (b'x'..=b'z').contains(&letter),
        })
}

#[test]
fn constrained_and_free_requests_do_not_disturb_each_other() {
    // The small pool preempts: a guide must survive that its sequence is computed again.
    for blocks in [400, 26] {
        let (engine, _) = start(blocks, &config(8, 32), Script::default());
        let grammar = || Constraint::Regex("([a-c][x-z]{2}){8,30}".into());
        let listeners: Vec<(bool, Vec<u32>, Listener)> = (0..24)
            .map(|i| {
                let prompt = prompt(i, 10 + i as usize * 3);
                let constrained = i % 2 == 0;
                let listener = match constrained {
                    true => ask(&engine, prompt.clone(), 95, grammar()),
                    false => submit(&engine, prompt.clone(), 60),
                };
                (constrained, prompt, listener)
            })
            .collect();
        for (constrained, prompt, listener) in listeners {
            let reply = listener.finish();
            if constrained {
                assert_eq!(reply.reason(), &FinishReason::Stop, "{}", reply.text);
                assert!(fits(&reply.text) && reply.text.len() >= 24, "{}", reply.text);
            } else {
                let (text, reason) = expected(&prompt, 60);
                assert_eq!((reply.text.as_str(), reply.reason()), (text.as_str(), &reason));
            }
        }
        let stats = engine.stats();
        assert!(blocks > 30 || stats.preemptions.get() > 0, "the pool was too small for all");
        assert_eq!(stats.constraints.get(), 12);
        assert!(stats.masks.get() > 12 * 24, "{} masks", stats.masks.get());
    }
}

#[test]
fn a_greedy_reply_under_a_constraint_repeats() {
    let (engine, _) = start(64, &config(4, 32), Script::default());
    let text = |seed| {
        let constraint = Constraint::Regex("([a-m][n-z]{2}){4,9}".into());
        ask(&engine, prompt(seed, 9), 90, constraint).finish().text
    };
    let texts: Vec<String> = (0..12).map(text).collect();
    assert_eq!(texts, (0..12).map(text).collect::<Vec<_>>());
    assert!(texts.iter().any(|other| *other != texts[0]), "the model still decides within the constraint: {texts:?}");
}

#[test]
fn log_probabilities_stay_those_of_the_model() {
    let (engine, _) = start(64, &config(4, 32), Script::default());
    let (mut constrained, listener) = request(talkative(), 3);
    constrained.top_logprobs = Some(1);
    let first = expected(&talkative(), 1).0.into_bytes()[0];
    let other = char::from(if first == b'a' { b'b' } else { b'a' });
    constrained.constraint = Some(Constraint::Regex(format!("{other}{{3}}")));
    engine.submit(constrained).expect("accepted");
    let reply = listener.finish();
    let token = &reply.tokens[0];
    assert_eq!(token.text, [other as u8]);
    assert_eq!(token.top[0].0, u32::from(first - b'a'), "the model's own choice is still reported as the best");
    assert!((token.top[0].1 - token.logprob - 5.0).abs() < 1e-3, "{token:?}");
}

#[test]
fn hostile_constraints_end_within_bounds_and_nobody_waits_for_them() {
    let (engine, _) = start(64, &config(4, 32), Script::default());
    let nested = (0..110).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    let two = json!({"anyOf": [{"type": "string"}, {"type": "number"}]});
    let wide: serde_json::Map<String, Value> = (0..3_000)
        .map(|n| (format!("p{n}"), json!({"type": "string", "pattern": format!("^(a|b){{1,{}}}c{n}$", n + 1)})))
        .collect();
    let refused = [
        Constraint::JsonSchema(nested),
        Constraint::JsonSchema(json!({"allOf": vec![two; 60]})),
        Constraint::JsonSchema(json!({"not": {}})),
        Constraint::Regex("x".repeat(300_000)),
        Constraint::Regex("(".repeat(90_000)),
        Constraint::Grammar(format!("start: {}", "(".repeat(90_000))),
        Constraint::Grammar((0..20_000).map(|n| format!("r{n}: r{} r{}\n", n + 1, n + 1)).collect::<String>()),
        Constraint::Choice(vec![String::new()]),
    ];
    // What the compiler makes of these is its own affair, as long as they end.
    let heavy = [
        Constraint::JsonSchema(json!({"type": "object", "properties": wide, "additionalProperties": false})),
        Constraint::Regex("(((a{1,999}){1,999}){1,999}){1,999}b".into()),
        Constraint::Regex("(?:a?){9000}a{9000}".repeat(12)),
        Constraint::Regex("(.*a){40}(.*b){40}(.*c){40}[^d]{500}".into()),
        Constraint::Regex("(a|aa|aaa|[a-z]*b){2000}".into()),
        Constraint::Grammar("start: x+\nx: x x | y | \"\"\ny: x y x | /[a-z]*/".into()),
    ];
    let begun = Instant::now();
    let submitted: Vec<(&Constraint, Listener)> = refused
        .iter()
        .chain(&heavy)
        .map(|constraint| (constraint, ask(&engine, prompt(1, 5), 20, constraint.clone())))
        .collect();
    // Requests without a constraint do not queue behind them.
    for seed in 0..8 {
        assert_eq!(submit(&engine, prompt(seed, 6), 20).finish().text, expected(&prompt(seed, 6), 20).0);
    }
    for (at, (constraint, listener)) in submitted.into_iter().enumerate() {
        let reply = listener.finish();
        let shown: String = format!("{constraint:?}").chars().take(80).collect();
        println!("{shown}: {:?}", reply.reason());
        match reply.reason() {
            FinishReason::Constraint(error) => assert!(error.to_string().len() < 1_000, "{shown}: {error}"),
            FinishReason::Length | FinishReason::Stop => assert!(at >= refused.len(), "{shown}: {}", reply.text),
            other => panic!("{shown}: {other:?}"),
        }
    }
    assert!(begun.elapsed() < REFUSED_WITHIN, "{:?}", begun.elapsed());
    eventually("no place of the queue is lost", || engine.stats().running.get() == 0);
    let fine = ask(&engine, prompt(1, 5), 20, Constraint::Choice(vec!["abc".into()]));
    let reply = eventually_free(&engine, fine);
    assert_eq!((reply.text.as_str(), reply.reason()), ("abc", &FinishReason::Stop));
}

/// Abandoned compilations may still hold their places: asks again until one is free.
fn eventually_free(engine: &Engine, mut listener: Listener) -> Reply {
    let begun = Instant::now();
    loop {
        let reply = listener.finish();
        let busy = matches!(reply.reason(), FinishReason::Constraint(error) if error.is_temporary());
        if !busy || begun.elapsed() > REFUSED_WITHIN * 4 {
            return reply;
        }
        listener = ask(engine, prompt(1, 5), 20, Constraint::Choice(vec!["abc".into()]));
    }
}

#[test]
fn a_constraint_that_no_token_can_follow_says_so() {
    let (engine, _) = start(64, &config(4, 32), Script::default());
    // The vocabulary of this model has small letters only.
    let reply = ask(&engine, prompt(1, 5), 20, Constraint::Regex("ab[0-9]".into())).finish();
    let error = refusal(&reply).to_string();
    assert!(error.contains("after") || error.contains("compiled"), "{error}");
}

#[test]
fn shutdown_ends_what_is_being_compiled() {
    let (engine, _) = start(64, &config(4, 32), Script::default());
    let listeners: Vec<Listener> =
        (0..6).map(|n| ask(&engine, prompt(n, 5), 20, Constraint::Regex(format!("(.*a){{30}}[^d]{{5{n}}}")))).collect();
    engine.shutdown();
    for listener in listeners {
        let reply = listener.finish();
        assert!(reply.done.is_some());
    }
}

#[test]
fn the_real_model_writes_valid_documents_and_waits_little_for_masks() {
    let Some(path) = model_path(LANGUAGE_MODEL) else { return };
    let model = Model::load(&path).expect("the model loads");
    let template = ChatTemplate::from_gguf(model.gguf()).expect("a template");
    let config = EngineConfig { sequences_max: 8, kv_bytes_max: 128 << 20, ..EngineConfig::default() };
    let tokenizer = Arc::new(Tokenizer::from_gguf(model.gguf()).expect("a tokenizer"));
    let engine = Engine::start(model, tokenizer, config).expect("the engine starts");
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "kind": {"enum": ["city", "river", "person"]},
            "facts": {"type": "array", "items": {"type": "string", "maxLength": 60}, "minItems": 1, "maxItems": 3},
            "year": {"type": ["integer", "null"], "minimum": 0, "maximum": 2100},
        },
        "required": ["name", "kind", "facts", "year"],
        "additionalProperties": false,
    });
    let message = TemplateMessage::new("user", "Tell me about Paris as JSON with name, kind, facts and year.");
    let prompt = engine.tokenizer().encode(&template.render(&[message], true).expect("renders"), true);
    let begin = |temperature: f32, seed: u64| {
        let (mut request, listener) = request(prompt.clone(), 300);
        request.sampling = Sampling { temperature, seed, ..Sampling::default() };
        request.constraint = Some(Constraint::JsonSchema(schema.clone()));
        engine.submit(request).expect("accepted");
        listener
    };
    let listeners: Vec<Listener> = (0..8).map(|seed| begin(if seed == 0 { 0.0 } else { 1.3 }, seed)).collect();
    for listener in listeners {
        let reply = listener.finish();
        assert_eq!(reply.reason(), &FinishReason::Stop, "{}", reply.text);
        let document: Value = serde_json::from_str(&reply.text).unwrap_or_else(|e| panic!("{e}: {}", reply.text));
        let text_of = |value: &Value, most: usize| value.as_str().is_some_and(|text| text.chars().count() <= most);
        let fields: Vec<&String> = document.as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["name", "kind", "facts", "year"], "{document}");
        assert!(text_of(&document["name"], 30), "{document}");
        assert!(["city", "river", "person"].map(Value::from).contains(&document["kind"]), "{document}");
        let facts = document["facts"].as_array().expect("a list");
        assert!((1..=3).contains(&facts.len()) && facts.iter().all(|fact| text_of(fact, 60)), "{document}");
        let year = &document["year"];
        assert!(year.is_null() || year.as_u64().is_some_and(|year| year <= 2100), "{document}");
    }
    let stats = engine.stats();
    let per = |sum: u64| sum as f64 / stats.masks.get() as f64;
    println!(
        "{} masks, {:.0} us each on their threads, the engine waited {:.0} us for each; constraints ready after {:.1} ms",
        stats.masks.get(),
        per(stats.mask_us.get()),
        per(stats.mask_wait_us.get()),
        stats.constraint_us.get() as f64 / 1e3 / stats.constraints.get() as f64
    );
}
