//! How alike texts are, and how long embedding takes: for trying an encoder by hand.
//!
//! `cargo run --release -p millrace-inference --example embed -- MODEL_FOLDER "first text" "second text" ...`

use std::path::PathBuf;
use std::time::Instant;

use millrace_inference::{Encoder, Precision};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: embed MODEL_FOLDER TEXT...")?;
    let texts: Vec<String> = args.collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let encoder = Encoder::load(&PathBuf::from(folder), Precision::default())?;
    eprintln!("loaded in {:?}, vectors of {}", begun.elapsed(), encoder.dimensions());
    let vectors = encoder.embed(&texts);
    for (text, vector) in texts.iter().zip(&vectors) {
        // The first call warmed caches; the best of a few is what the machine can do.
        let best = (0..10).map(|_| {
            let begun = Instant::now();
            encoder.embed(&[text]);
            begun.elapsed()
        });
        let best = best.min().unwrap_or_default();
        let dot: f32 = vectors[0].iter().zip(vector).map(|(a, b)| a * b).sum();
        println!("{dot:7.4}  {:4} tokens  {best:?}  {text}", encoder.count_tokens(text));
    }
    Ok(())
}
