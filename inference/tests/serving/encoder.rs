//! Sentence vectors against those of another implementation.

use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};

use millrace_inference::{EmbedError, EmbedRequest, EmbedWorker, Encoder, EncoderError, SubmitError};

use crate::support::{model_path, reference};

/// Least cosine between our vector and the reference. Weights are kept in f16, which costs about 1e-7.
const COSINE_MIN: f64 = 0.9999;

fn encoder() -> Option<&'static Arc<Encoder>> {
    static ENCODER: OnceLock<Option<Arc<Encoder>>> = OnceLock::new();
    let load = || {
        let path = model_path("all-MiniLM-L6-v2")?;
        Some(Arc::new(Encoder::load(&path).expect("the model folder loads")))
    };
    ENCODER.get_or_init(load).as_ref()
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * y).sum();
    let norm = |v: f64| v.sqrt();
    dot / norm(a.iter().map(|x| f64::from(*x).powi(2)).sum()) / norm(b.iter().map(|y| y * y).sum())
}

#[test]
fn every_recorded_sentence_has_the_recorded_vector() {
    let Some(encoder) = encoder() else { return };
    let recorded = reference("minilm_reference.json");
    let cases = recorded["cases"].as_array().expect("cases");
    assert!(cases.len() >= 12);
    let texts: Vec<&str> = cases.iter().map(|c| c["text"].as_str().expect("text")).collect();
    let together = encoder.embed(&texts);
    for (case, vector) in cases.iter().zip(&together) {
        let text = case["text"].as_str().expect("text");
        assert_eq!(encoder.count_tokens(text), case["ids"].as_array().expect("ids").len(), "{text:?}");
        let expected: Vec<f64> = case["vector"].as_array().expect("vector").iter().filter_map(|x| x.as_f64()).collect();
        let cosine = cosine(vector, &expected);
        assert!(cosine >= COSINE_MIN, "{cosine} for {text:?}");
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5);
        // Neighbours in a call change nothing.
        assert_eq!(&encoder.embed(&[text])[0], vector, "{text:?} alone");
    }
}

#[test]
fn the_worker_answers_every_call_once() {
    let Some(encoder) = encoder() else { return };
    let worker = EmbedWorker::start(Arc::clone(encoder), 16, 0).expect("starts");
    let (sender, receiver) = channel();
    for text in ["river", "mill"] {
        let sender = sender.clone();
        let done = Box::new(move |result: Result<Vec<Vec<f32>>, EmbedError>| sender.send(result).expect("listening"));
        worker.submit(EmbedRequest { texts: vec![text.to_owned()], done }).expect("there is room");
    }
    for text in ["river", "mill"] {
        assert_eq!(receiver.recv().expect("answered"), Ok(encoder.embed(&[text])));
    }
    let none = EmbedRequest { texts: Vec::new(), done: Box::new(|_| panic!("refused calls are not answered")) };
    assert!(matches!(worker.submit(none), Err(SubmitError::TooManyTexts { texts: 0, .. })));
    worker.shutdown();
    let late = EmbedRequest { texts: vec!["late".to_owned()], done: Box::new(|_| panic!("refused")) };
    assert!(matches!(worker.submit(late), Err(SubmitError::Closed)));
}

#[test]
fn a_full_queue_refuses_with_its_numbers() {
    let Some(encoder) = encoder() else { return };
    let worker = EmbedWorker::start(Arc::clone(encoder), 1, 0).expect("starts");
    let (entered_sender, entered) = channel();
    let (release, released) = channel::<()>();
    let blocker = Box::new(move |_| {
        entered_sender.send(()).expect("listening");
        released.recv().expect("released");
    });
    worker.submit(EmbedRequest { texts: vec!["a".to_owned()], done: blocker }).expect("there is room");
    entered.recv().expect("the first call is being answered");
    let call = || EmbedRequest { texts: vec!["b".to_owned()], done: Box::new(|_| ()) };
    worker.submit(call()).expect("one may wait");
    assert!(matches!(worker.submit(call()), Err(SubmitError::QueueFull { waiting: 1, max: 1, .. })));
    release.send(()).expect("the worker waits");
}

#[test]
fn a_folder_without_a_model_says_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Encoder::load(folder.path()).expect_err("nothing there");
    assert!(matches!(&error, EncoderError::Io { path, .. } if path.ends_with("config.json")), "{error}");
    std::fs::write(folder.path().join("config.json"), "{}").expect("written");
    let error = Encoder::load(folder.path()).expect_err("incomplete");
    assert!(error.to_string().contains("missing field"), "{error}");
    assert!(Encoder::load(Path::new("/nonexistent")).is_err());
}
