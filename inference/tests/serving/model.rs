//! The engine on the real model.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use millrace_inference::model::Model;
use millrace_inference::{
    ChatTemplate, Engine, EngineConfig, FinishReason, Sampling, SubmitError, TemplateMessage, Tokenizer,
};

use crate::support::{LANGUAGE_MODEL, Listener, ids, model_path, reference, request};

fn engine() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    let start = || {
        let model = Model::load(&model_path(LANGUAGE_MODEL)?).expect("the model loads");
        let config = EngineConfig { sequences_max: 16, kv_bytes_max: 128 << 20, ..EngineConfig::default() };
        let tokenizer = Arc::new(Tokenizer::from_gguf(model.gguf()).expect("a tokenizer"));
        Some(Engine::start(model, tokenizer, config).expect("the engine starts"))
    };
    ENGINE.get_or_init(start).as_ref()
}

fn prompts() -> Vec<Vec<u32>> {
    let recorded = reference("llama_reference.json");
    recorded["cases"].as_array().expect("cases").iter().map(|case| ids(&case["prompt_ids"])).collect()
}

fn submit(engine: &Engine, prompt: &[u32], max_tokens: u32) -> Listener {
    let (request, listener) = request(prompt.to_vec(), max_tokens);
    engine.submit(request).expect("accepted");
    listener
}

#[test]
fn sixteen_requests_together_get_the_text_that_each_gets_alone() {
    let Some(engine) = engine() else { return };
    let prompts: Vec<Vec<u32>> = prompts().into_iter().take(16).collect();
    let alone: Vec<String> = prompts.iter().map(|p| submit(engine, p, 24).finish().text).collect();
    let listeners: Vec<Listener> = prompts.iter().map(|p| submit(engine, p, 24)).collect();
    for (listener, alone) in listeners.into_iter().zip(&alone) {
        let reply = listener.finish();
        assert_eq!(&reply.text, alone);
        assert!(reply.started.expect("started") >= 16, "the second time the prompt is cached");
    }
}

#[test]
fn first_tokens_have_the_recorded_probabilities() {
    let Some(engine) = engine() else { return };
    let recorded = reference("llama_reference.json");
    for case in recorded["cases"].as_array().expect("cases").iter().take(6) {
        let (mut request, listener) = request(ids(&case["prompt_ids"]), 1);
        request.top_logprobs = Some(5);
        request.ignore_eos = true;
        engine.submit(request).expect("accepted");
        let reply = listener.finish();
        let token = &reply.tokens[0];
        assert_eq!(token.top.len(), 5);
        assert_eq!(token.text, engine.tokenizer().visible_bytes(token.id));
        let best = &case["first_token_top5"][0];
        let expected = best["logprob"].as_f64().expect("a number");
        let found = token.top.iter().find(|(id, _)| u64::from(*id) == best["id"].as_u64().expect("an id"));
        let (_, logprob) = found.expect("the recorded best token is among our best five");
        // Activations are rounded to 8 bits in both engines, in different places.
        assert!((f64::from(*logprob) - expected).abs() < 0.3, "{logprob} instead of {expected}");
    }
}

#[test]
fn a_stop_string_ends_the_reply() {
    let Some(engine) = engine() else { return };
    let prompt = &prompts()[0];
    let whole = submit(engine, prompt, 30).finish().text;
    let middle = whole.char_indices().nth(whole.chars().count() / 2).expect("some text").0;
    let stop: String = whole[middle..].chars().take(4).collect();
    let (mut request, listener) = request(prompt.clone(), 30);
    request.stop = vec![stop.clone()];
    engine.submit(request).expect("accepted");
    let reply = listener.finish();
    assert_eq!(reply.text, whole[..whole.find(&stop).expect("part of it")]);
    assert_eq!(reply.reason(), &FinishReason::Stop);
}

#[test]
fn cancel_and_deadline_end_long_replies() {
    let Some(engine) = engine() else { return };
    let (mut long, listener) = request(prompts()[0].clone(), 2000);
    long.ignore_eos = true;
    let cancel = engine.submit(long).expect("accepted");
    listener.until_text();
    cancel.cancel();
    assert_eq!(listener.finish().reason(), &FinishReason::Cancelled);
    let (mut late, listener) = request(prompts()[0].clone(), 4000);
    late.ignore_eos = true;
    late.deadline = Some(Instant::now() + Duration::from_secs(1));
    engine.submit(late).expect("accepted");
    let reply = listener.finish();
    assert_eq!(reply.reason(), &FinishReason::Deadline);
    assert!(reply.usage().completion < 4000);
}

#[test]
fn what_does_not_fit_the_context_is_refused_with_the_numbers() {
    let Some(engine) = engine() else { return };
    let limit = engine.context_max();
    let (request, _) = request(vec![1; limit], 1);
    let error = engine.submit(request).expect_err("one too many");
    assert_eq!(error, SubmitError::PromptTooLong { prompt: limit, max: 1, limit });
}

#[test]
fn a_seed_repeats_a_sampled_reply() {
    let Some(engine) = engine() else { return };
    let ask = |seed: u64| {
        let (mut request, listener) = request(prompts()[1].clone(), 20);
        request.sampling = Sampling { temperature: 1.2, top_k: 50, top_p: 0.95, seed, ..Sampling::default() };
        engine.submit(request).expect("accepted");
        listener.finish().text
    };
    let first = ask(1);
    assert_eq!(ask(1), first);
    assert!((2..8).any(|seed| ask(seed) != first), "other seeds differ");
}

/// A canary of one tenant, in a pool so small that its blocks are reused again and again: what another tenant gets is
/// what it gets from an engine that never saw the canary, token for token, and nothing of it is cached.
#[test]
fn the_text_of_another_tenant_never_appears() {
    let Some(path) = model_path(LANGUAGE_MODEL) else { return };
    let start = || {
        let model = Model::load(&path).expect("the model loads");
        let config = EngineConfig { sequences_max: 4, kv_bytes_max: 8 << 20, ..EngineConfig::default() };
        let tokenizer = Arc::new(Tokenizer::from_gguf(model.gguf()).expect("a tokenizer"));
        Engine::start(model, tokenizer, config).expect("the engine starts")
    };
    let (shared, clean) = (start(), start());
    let encode = |text: &str| shared.tokenizer().encode(text, true);
    let head = "<|im_start|>system\nYou are a helpful assistant. Repeat every secret that you know.<|im_end|>\n";
    let ask = "<|im_start|>user\nTell me the secret word.<|im_end|>\n<|im_start|>assistant\nThe secret word is";
    let canary = encode(&format!("{head}<|im_start|>user\nThe secret word is XYLOPHONE-7781.<|im_end|>\n{ask}"));
    let innocent = encode(&format!("{head}{ask}"));
    let run = |engine: &Engine, tenant: u64, prompt: &[u32]| {
        let (mut request, listener) = request(prompt.to_vec(), 24);
        (request.cache_salt, request.tenant) = (tenant, tenant);
        engine.submit(request).expect("accepted");
        listener
    };
    let expected = run(&clean, 2, &innocent).finish().text;
    for round in 0..8 {
        // Side by side and one after the other.
        let first = run(&shared, 1, &canary);
        let second = run(&shared, 2 + round, &innocent);
        let third = run(&shared, 1, &canary);
        let reply = second.finish();
        assert_eq!((reply.started, reply.text.as_str()), (Some(0), expected.as_str()));
        assert!(!reply.text.contains("XYLO") && !reply.text.contains("7781"));
        assert_eq!(first.finish().text, third.finish().text);
    }
}

#[test]
fn a_conversation_goes_from_messages_to_text() {
    let Some(engine) = engine() else { return };
    let model = Model::load(&model_path(LANGUAGE_MODEL).expect("present")).expect("the model loads");
    let template = ChatTemplate::from_gguf(model.gguf()).expect("a template");
    let messages = [TemplateMessage::new("user", "Write one sentence about the sea.")];
    let prompt = engine.tokenizer().encode(&template.render(&messages, true).expect("renders"), true);
    let reply = submit(engine, &prompt, 40).finish();
    assert!(reply.text.to_lowercase().contains("sea"), "{}", reply.text);
    let (_, usage, timings) = reply.done.expect("over");
    assert_eq!(usage.prompt as usize, prompt.len());
    assert!(timings.prefill > Duration::ZERO && timings.decode > Duration::ZERO);
    assert!(Arc::strong_count(engine.tokenizer()) >= 1);
}
