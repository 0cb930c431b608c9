//! Sentence vectors against those of another implementation.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};

use millrace_inference::model::Model;
use millrace_inference::{
    EmbedError, EmbedPriority, EmbedRequest, EmbedWorker, Encoder, EncoderError, Engine, EngineConfig, FinishReason,
    Precision, SubmitError, Tokenizer,
};

use crate::support::{LANGUAGE_MODEL, language_model, model_path, reference, request};

/// Least cosine between our vector and the reference. Weights are kept in f16, which costs about 1e-7.
const COSINE_MIN: f64 = 0.9999;

/// Least cosine between a vector of the weights as bytes and the reference; measured: 0.99926 at worst, 0.99974 on
/// average..
const COSINE_MIN_INT8: f64 = 0.999;

fn encoder() -> Option<&'static Arc<Encoder>> {
    static ENCODER: OnceLock<Option<Arc<Encoder>>> = OnceLock::new();
    ENCODER.get_or_init(|| load(Precision::Half)).as_ref()
}

fn load(precision: Precision) -> Option<Arc<Encoder>> {
    let path = model_path("all-MiniLM-L6-v2")?;
    Some(Arc::new(Encoder::load(&path, precision).expect("the model folder loads")))
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * y).sum();
    let norm = |v: f64| v.sqrt();
    dot / norm(a.iter().map(|x| f64::from(*x).powi(2)).sum()) / norm(b.iter().map(|y| y * y).sum())
}

/// Least and mean cosine between the vectors of all recorded sentences and the recorded ones.
fn compare(encoder: &Encoder) -> (f64, f64) {
    let recorded = reference("minilm_reference.json");
    let cases = recorded["cases"].as_array().expect("cases");
    assert!(cases.len() >= 12);
    let texts: Vec<&str> = cases.iter().map(|c| c["text"].as_str().expect("text")).collect();
    let mut cosines = Vec::new();
    for (case, vector) in cases.iter().zip(encoder.embed(&texts)) {
        let text = case["text"].as_str().expect("text");
        assert_eq!(encoder.count_tokens(text), case["ids"].as_array().expect("ids").len(), "{text:?}");
        let expected: Vec<f64> = case["vector"].as_array().expect("vector").iter().filter_map(|x| x.as_f64()).collect();
        cosines.push(cosine(&vector, &expected));
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5);
        // Neighbours in a call change nothing.
        assert_eq!(encoder.embed(&[text])[0], vector, "{text:?} alone");
    }
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    (cosines.into_iter().fold(1.0, f64::min), mean)
}

#[test]
fn every_recorded_sentence_has_the_recorded_vector() {
    let Some(encoder) = encoder() else { return };
    let (least, mean) = compare(encoder);
    println!("half floats: cosine {least:.6} at worst, {mean:.6} on average");
    assert!(least >= COSINE_MIN);
}

#[test]
fn weights_as_bytes_give_nearly_the_same_vectors_in_less_memory() {
    let (Some(int8), Some(half)) = (load(Precision::Int8), encoder()) else { return };
    let (least, mean) = compare(&int8);
    println!("bytes: cosine {least:.6} at worst, {mean:.6} on average");
    assert!(least >= COSINE_MIN_INT8);
    assert!(int8.weights_bytes() * 100 < half.weights_bytes() * 62);
}

type Answer = Result<Vec<Vec<f32>>, EmbedError>;

/// A call and where its answer comes.
fn call(texts: &[&str], priority: EmbedPriority) -> (EmbedRequest, Receiver<Answer>) {
    let (sender, receiver) = channel();
    let done = Box::new(move |result| sender.send(result).expect("listening"));
    (EmbedRequest { texts: texts.iter().map(|text| (*text).to_owned()).collect(), priority, done }, receiver)
}

#[test]
fn calls_that_wait_together_are_answered_as_if_alone() {
    let Some(encoder) = encoder() else { return };
    let worker = EmbedWorker::start(Arc::clone(encoder), 64, 2, 0).expect("starts");
    // More rows than one pass takes, so that texts of several calls meet in a pass.
    let long = "the river turns the mill and the mill grinds the corn ".repeat(30);
    let answers: Vec<_> = (0..12)
        .map(|i| {
            let texts = [format!("{i} {long}"), format!("short {i}")];
            let texts = [texts[0].as_str(), texts[1].as_str()];
            let priority = if i % 3 == 0 { EmbedPriority::Query } else { EmbedPriority::Bulk };
            let (request, answer) = call(&texts, priority);
            let tokens = texts.iter().map(|text| encoder.count_tokens(text)).sum();
            assert_eq!(worker.submit(request), Ok(tokens));
            (encoder.embed(&texts), answer)
        })
        .collect();
    for (expected, answer) in answers {
        assert_eq!(answer.recv().expect("answered"), Ok(expected));
    }
    assert_eq!(worker.waiting(), 0);
}

#[test]
fn the_worker_answers_every_call_once() {
    let Some(encoder) = encoder() else { return };
    let worker = EmbedWorker::start(Arc::clone(encoder), 16, 1, 0).expect("starts");
    let refused = |texts: Vec<String>| EmbedRequest {
        texts,
        priority: EmbedPriority::Bulk,
        done: Box::new(|_| panic!("refused calls are not answered")),
    };
    assert!(matches!(worker.submit(refused(Vec::new())), Err(SubmitError::TooManyTexts { texts: 0, .. })));
    // The first call is held while it is answered, so that the second is still waiting at the end.
    let (entered_sender, entered) = channel();
    let (release, released) = channel::<()>();
    let done = Box::new(move |_| {
        entered_sender.send(()).expect("listening");
        released.recv().expect("released");
    });
    let blocker = EmbedRequest { texts: vec!["a".to_owned()], priority: EmbedPriority::Bulk, done };
    worker.submit(blocker).expect("there is room");
    entered.recv().expect("the first call is being answered");
    let (request, answer) = call(&["b"], EmbedPriority::Bulk);
    worker.submit(request).expect("one may wait");
    std::thread::scope(|scope| {
        scope.spawn(|| worker.shutdown());
        assert_eq!(answer.recv().expect("answered"), Err(EmbedError::Closed));
        release.send(()).expect("the worker waits");
    });
    assert!(matches!(worker.submit(refused(vec!["late".to_owned()])), Err(SubmitError::Closed)));
}

#[test]
fn a_full_queue_refuses_with_its_numbers() {
    let Some(encoder) = encoder() else { return };
    let worker = EmbedWorker::start(Arc::clone(encoder), 1, 1, 0).expect("starts");
    let (entered_sender, entered) = channel();
    let (release, released) = channel::<()>();
    let done = Box::new(move |_| {
        entered_sender.send(()).expect("listening");
        released.recv().expect("released");
    });
    let blocker = EmbedRequest { texts: vec!["a".to_owned()], priority: EmbedPriority::Bulk, done };
    worker.submit(blocker).expect("there is room");
    entered.recv().expect("the first call is being answered");
    let (request, _answer) = call(&["b"], EmbedPriority::Bulk);
    worker.submit(request).expect("one may wait");
    let refused = EmbedRequest {
        texts: vec!["c".to_owned()],
        priority: EmbedPriority::Query,
        done: Box::new(|_| panic!("refused calls are not answered")),
    };
    assert!(matches!(worker.submit(refused), Err(SubmitError::QueueFull { waiting: 1, max: 1, .. })));
    drop(_answer);
    release.send(()).expect("the worker waits");
}

#[test]
fn an_engine_embeds_between_the_steps_of_its_replies() {
    let (Some(encoder), Some(gguf)) = (encoder(), language_model()) else { return };
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).expect("the tokenizer loads"));
    let model = Model::load(&model_path(LANGUAGE_MODEL).expect("it is there")).expect("the model loads");
    let config = EngineConfig { threads: 2, kv_bytes_max: 64 << 20, nice: 0, ..EngineConfig::default() };
    let engine = Engine::start(model, Arc::clone(&tokenizer), config).expect("the engine starts");
    let worker = EmbedWorker::beside(&engine, Arc::clone(encoder), 64).expect("the engine takes it");
    let ask = |priority| {
        let (request, answer) = call(&["a mill by the river", "corn"], priority);
        worker.submit(request).expect("there is room");
        answer
    };
    let expected = Ok(encoder.embed(&["a mill by the river", "corn"]));
    assert_eq!(ask(EmbedPriority::Bulk).recv().expect("answered by an idle engine"), expected);

    let prompt = || tokenizer.encode("The miller said", false);
    let (mut alone, listener) = request(prompt(), 48);
    alone.ignore_eos = true;
    engine.submit(alone).expect("there is room");
    let alone = listener.finish();

    // The reply cannot end before the calls are answered: it is long, and it is cancelled by the test.
    let (mut long, long_listener) = request(prompt(), 2000);
    long.ignore_eos = true;
    let cancel = engine.submit(long).expect("there is room");
    let begun = long_listener.until_text();
    let answers = [EmbedPriority::Bulk, EmbedPriority::Query, EmbedPriority::Bulk].map(ask);
    let (mut beside, listener) = request(prompt(), 48);
    beside.ignore_eos = true;
    engine.submit(beside).expect("there is room");
    for answer in answers {
        assert_eq!(answer.recv().expect("answered beside a reply"), expected);
    }
    assert_eq!(listener.finish().text, alone.text, "what is embedded changes no reply");
    cancel.cancel();
    assert!(begun.done.is_none() && *long_listener.finish().reason() == FinishReason::Cancelled);

    let waiting = ask(EmbedPriority::Bulk);
    engine.shutdown();
    let last = waiting.recv().expect("answered in any case");
    assert!(last == expected || last == Err(EmbedError::Closed));
    let (request, _answer) = call(&["late"], EmbedPriority::Query);
    assert!(matches!(worker.submit(request), Err(SubmitError::Closed)));
}

#[test]
fn a_folder_without_a_model_says_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Encoder::load(folder.path(), Precision::Half).expect_err("nothing there");
    assert!(matches!(&error, EncoderError::Io { path, .. } if path.ends_with("config.json")), "{error}");
    std::fs::write(folder.path().join("config.json"), "{}").expect("written");
    let error = Encoder::load(folder.path(), Precision::Half).expect_err("incomplete");
    assert!(error.to_string().contains("missing field"), "{error}");
    assert!(Encoder::load(Path::new("/nonexistent"), Precision::Half).is_err());
}
