//! A prompt in, text out, with the figures of the run: for trying models and settings by hand.
//!
//! `cargo run --release -p millrace-inference --example generate -- MODEL.gguf "Why is the sky blue?" [options]`
//!
//! Options: `--tokens N` (128), `--threads N`, `--copies N` (ask N times at once), `--temperature T` (0), `--seed S`,
//! `--raw` (no chat template), `--ignore-eos`, `--distinct` (copies share no prefix), `--speculation off|auto|always`
//! (auto), `--draft SMALLER.gguf`. A prompt that begins with `@` is read from the file of that name.

use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use millrace_inference::model::Model;
use millrace_inference::{
    ChatTemplate, Constraint, Engine, EngineConfig, Outlet, Output, Request, Sampling, Speculation, TemplateMessage,
    Timings, Tokenizer, Usage,
};

struct Options {
    model: PathBuf,
    prompt: String,
    tokens: u32,
    threads: Option<usize>,
    copies: u64,
    temperature: f32,
    seed: u64,
    raw: bool,
    ignore_eos: bool,
    schema: Option<serde_json::Value>,
    distinct: bool,
    speculation: Speculation,
    draft: Option<PathBuf>,
}

fn parse() -> Result<Options, String> {
    let mut plain = Vec::new();
    let mut o = Options {
        model: PathBuf::new(),
        prompt: String::new(),
        tokens: 128,
        threads: None,
        copies: 1,
        temperature: 0.0,
        seed: 0,
        raw: false,
        ignore_eos: false,
        schema: None,
        distinct: false,
        speculation: Speculation::Auto,
        draft: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().ok_or(format!("{arg} needs a value"));
        let bad = |e: &dyn std::fmt::Display| format!("{arg}: {e}");
        match arg.as_str() {
            "--tokens" => o.tokens = number()?.parse().map_err(|e| bad(&e))?,
            "--threads" => o.threads = Some(number()?.parse().map_err(|e| bad(&e))?),
            "--copies" => o.copies = number()?.parse().map_err(|e| bad(&e))?,
            "--temperature" => o.temperature = number()?.parse().map_err(|e| bad(&e))?,
            "--seed" => o.seed = number()?.parse().map_err(|e| bad(&e))?,
            "--raw" => o.raw = true,
            "--ignore-eos" => o.ignore_eos = true,
            "--schema" => o.schema = Some(serde_json::from_str(&number()?).map_err(|e| bad(&e))?),
            "--distinct" => o.distinct = true,
            "--draft" => o.draft = Some(number()?.into()),
            "--speculation" => {
                o.speculation = match number()?.as_str() {
                    "off" => Speculation::Off,
                    "auto" => Speculation::Auto,
                    "always" => Speculation::Always,
                    other => return Err(format!("{arg} is off, auto or always, not {other}")),
                }
            }
            _ if arg.starts_with("--") => return Err(format!("unknown option {arg}")),
            _ => plain.push(arg),
        }
    }
    match <[String; 2]>::try_from(plain) {
        Ok([model, prompt]) => Ok(Options { model: model.into(), prompt, ..o }),
        Err(_) => Err("usage: generate MODEL.gguf PROMPT [options]".to_owned()),
    }
}

/// Prints the first copy as it comes and reports the end of every one.
struct Terminal {
    done: Mutex<Sender<(Usage, Timings)>>,
}

impl Outlet for Terminal {
    fn push(&self, ticket: u64, output: Output) {
        match output {
            Output::Delta { text, .. } if ticket == 0 => {
                // Whoever closed the pipe does not want the text; the figures still come.
                let mut out = std::io::stdout();
                let _ = write!(out, "{text}").and_then(|()| out.flush());
            }
            Output::Done { usage, timings, .. } => {
                let _ = self.done.lock().expect("not poisoned").send((usage, timings));
            }
            _ => {}
        }
    }

    fn wake(&self) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = parse()?;
    let begun = Instant::now();
    let model = Model::load(&options.model)?;
    let template = ChatTemplate::from_gguf(model.gguf())?;
    let speculation = options.speculation;
    let mut config = EngineConfig { nice: 0, speculation, ..EngineConfig::default() };
    config.threads = options.threads.unwrap_or(config.threads);
    let tokenizer = Arc::new(Tokenizer::from_gguf(model.gguf())?);
    let draft = options.draft.as_deref().map(Model::load).transpose()?;
    let engine = Engine::start_with_draft(model, draft, tokenizer, config)?;
    let prompt = match options.prompt.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file)?,
        None => options.prompt.clone(),
    };
    let text = if options.raw { prompt } else { template.render(&[TemplateMessage::new("user", &prompt)], true)? };
    let prompt = engine.tokenizer().encode(&text, true);
    eprintln!("ready after {:?}, {} prompt tokens", begun.elapsed(), prompt.len());
    let (sender, done) = channel();
    let outlet: Arc<dyn Outlet> = Arc::new(Terminal { done: Mutex::new(sender) });
    let begun = Instant::now();
    for ticket in 0..options.copies {
        engine.submit(Request {
            ticket,
            prompt: prompt.clone(),
            sampling: Sampling { temperature: options.temperature, seed: options.seed + ticket, ..Sampling::default() },
            max_tokens: options.tokens,
            stop: Vec::new(),
            ignore_eos: options.ignore_eos,
            constraint: options.schema.clone().map(Constraint::JsonSchema),
            top_logprobs: None,
            deadline: None,
            cache_salt: if options.distinct { ticket } else { 0 },
            tenant: 0,
            weight: 1,
            background: false,
            outlet: Arc::clone(&outlet),
        })?;
    }
    let mut generated = 0;
    let mut last = Timings::default();
    for _ in 0..options.copies {
        let (usage, timings) = done.recv()?;
        generated += u64::from(usage.completion);
        last = timings;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let stats = engine.stats();
    eprintln!("\n{generated} tokens in {seconds:.2} s: {:.1} tok/s", generated as f64 / seconds);
    eprintln!("last reply: prefill {:?}, decode {:?}", last.prefill, last.decode);
    eprintln!(
        "{} steps, {:.2} rows each, model {:.2} ms and scheduler {:.3} ms a step, {} preemptions",
        stats.steps.get(),
        stats.rows.get() as f64 / stats.steps.get().max(1) as f64,
        stats.step_us.get() as f64 / 1e3 / stats.steps.get().max(1) as f64,
        stats.overhead_us.get() as f64 / 1e3 / stats.steps.get().max(1) as f64,
        stats.preemptions.get(),
    );
    eprintln!("{} tokens guessed, {} of them right", stats.draft_tokens.get(), stats.accepted_tokens.get());
    Ok(())
}
