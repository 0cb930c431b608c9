//! BERT-style sentence encoders such as all-MiniLM-L6-v2: token embeddings, transformer layers, mean over the tokens,
//! length one.
//!
//! Cost sketch for MiniLM (10.6 M multiplications per token): a sentence of 10 tokens streams 21 MB of weights and
//! takes a few milliseconds on one core; 256 tokens take about 100. Several texts of one call share every pass over
//! the weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::Deserialize;

use super::linear::Linear;
use super::safetensors::{Safetensors, SafetensorsError};
use crate::math::{exp_nonpositive, gelu, sum, sum_of_squares};
use crate::tokenizer::{WordPiece, WordPieceError};

/// Token rows of one pass; more texts are taken in several passes. Bounds the work buffers to about 16 MiB.
const ROWS_MAX: usize = 1024;
/// Largest `vocab.txt` and `config.json`.
const TEXT_FILE_BYTES_MAX: u64 = 32 << 20;

/// Why an encoder cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// A file of the model folder cannot be read.
    #[error("cannot read {}; the model folder needs config.json, vocab.txt and model.safetensors", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A configuration file is not what it should be.
    #[error("{} is not usable: {what}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The vocabulary cannot be used.
    #[error(transparent)]
    Vocabulary(#[from] WordPieceError),
    /// The weights cannot be used.
    #[error("{} is not usable", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SafetensorsError,
    },
    /// A weight is not a number or too large.
    #[error("tensor {0:?} holds numbers outside the range of f16; the file is damaged")]
    Range(String),
}

#[derive(Debug, Deserialize)]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    vocab_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
}

#[derive(Debug, Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    do_lower_case: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
struct PoolingConfig {
    pooling_mode_mean_tokens: Option<bool>,
}

#[derive(Debug)]
struct Norm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    epsilon: f32,
}

#[derive(Debug)]
struct Layer {
    query_key_value: Linear,
    output: Linear,
    output_norm: Norm,
    up: Linear,
    down: Linear,
    down_norm: Norm,
}

/// A loaded sentence encoder. Immutable but for its work buffers, shared between threads.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: WordPiece,
    width: usize,
    heads: usize,
    tokens_max: usize,
    words: Vec<f16>,
    /// Position and token-type embeddings added up: every text is of type 0.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    /// Buffers of finished calls, so that calls do not allocate them anew.
    work: Mutex<Vec<Work>>,
}

#[derive(Debug, Default)]
struct Work {
    x: Vec<f32>,
    heads: Vec<f32>,
    mixed: Vec<f32>,
    wide: Vec<f32>,
    panel: Vec<f32>,
    keys: Vec<f32>,
    scores: Vec<f32>,
}

impl Encoder {
    /// Bytes of the weights in memory.
    pub fn weights_bytes(&self) -> usize {
        let layer = |layer: &Layer| {
            layer.query_key_value.bytes() + layer.output.bytes() + layer.up.bytes() + layer.down.bytes()
        };
        let words = size_of_val(&self.words[..]) + size_of_val(&self.positions[..]);
        words + self.layers.iter().map(layer).sum::<usize>()
    }

    /// Loads a model folder.
    pub fn load(folder: &Path) -> Result<Encoder, EncoderError> {
        let config: Config = read_json(&folder.join("config.json"))?;
        check(&config).map_err(|what| EncoderError::Config { path: folder.join("config.json"), what })?;
        let sentence: SentenceConfig = read_optional_json(&folder.join("sentence_bert_config.json"))?;
        let tokenizer_config: TokenizerConfig = read_optional_json(&folder.join("tokenizer_config.json"))?;
        let pooling_path = folder.join("1_Pooling").join("config.json");
        let pooling: PoolingConfig = read_optional_json(&pooling_path)?;
        if pooling.pooling_mode_mean_tokens == Some(false) {
            let what = "only mean pooling is supported".to_owned();
            return Err(EncoderError::Config { path: pooling_path, what });
        }
        let vocabulary_path = folder.join("vocab.txt");
        let vocabulary = read_text(&vocabulary_path)?;
        let tokenizer = WordPiece::new(&vocabulary, tokenizer_config.do_lower_case.unwrap_or(true))?;
        if tokenizer.vocabulary() > config.vocab_size {
            let what = format!("{} tokens, config.json says {}", tokenizer.vocabulary(), config.vocab_size);
            return Err(EncoderError::Config { path: vocabulary_path, what });
        }
        let tokens_max = sentence.max_seq_length.unwrap_or(256).clamp(2, config.max_position_embeddings.max(2));
        Weights::open(folder)?.encoder(&config, tokenizer, tokens_max)
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        self.width
    }

    /// Most tokens of a text that count; the rest is left out, as in the reference.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Tokens of a text, start and end included.
    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer.encode(text, self.tokens_max).len()
    }

    /// One vector of length one for each text.
    pub fn embed(&self, texts: &[&str]) -> Vec<Vec<f32>> {
        let mut work = self.work.lock().unwrap_or_else(|p| p.into_inner()).pop().unwrap_or_default();
        let mut vectors = Vec::with_capacity(texts.len());
        let mut batch: Vec<Vec<u32>> = Vec::new();
        let mut rows = 0;
        for text in texts {
            let ids = self.tokenizer.encode(text, self.tokens_max);
            if rows + ids.len() > ROWS_MAX {
                self.pass(&batch, &mut work, &mut vectors);
                batch.clear();
                rows = 0;
            }
            rows += ids.len();
            batch.push(ids);
        }
        self.pass(&batch, &mut work, &mut vectors);
        self.work.lock().unwrap_or_else(|p| p.into_inner()).push(work);
        vectors
    }

    fn pass(&self, batch: &[Vec<u32>], work: &mut Work, vectors: &mut Vec<Vec<f32>>) {
        if batch.is_empty() {
            return;
        }
        let width = self.width;
        work.x.clear();
        for ids in batch {
            for (id, position) in ids.iter().zip(self.positions.chunks_exact(width)) {
                let start = work.x.len();
                work.x.resize(start + width, 0.0);
                let row = &mut work.x[start..];
                self.words[*id as usize * width..][..width].convert_to_f32_slice(row);
                add(row, position);
            }
        }
        self.norm.apply(&mut work.x);
        for layer in &self.layers {
            layer.query_key_value.apply(&work.x, &mut work.heads, &mut work.panel, |v| v);
            self.attend(batch, work);
            layer.output.apply(&work.mixed, &mut work.wide, &mut work.panel, |v| v);
            add(&mut work.x, &work.wide);
            layer.output_norm.apply(&mut work.x);
            layer.up.apply(&work.x, &mut work.wide, &mut work.panel, gelu);
            layer.down.apply(&work.wide, &mut work.mixed, &mut work.panel, |v| v);
            add(&mut work.x, &work.mixed);
            layer.down_norm.apply(&mut work.x);
        }
        let mut row = 0;
        for ids in batch {
            vectors.push(pool(&work.x[row * width..][..ids.len() * width], width));
            row += ids.len();
        }
    }

    /// Attention of every text to itself, head by head: `heads` holds query, key and value of each row.
    fn attend(&self, batch: &[Vec<u32>], work: &mut Work) {
        let (width, size) = (self.width, self.width / self.heads);
        let stride = 3 * width;
        let scale = 1.0 / (size as f32).sqrt();
        work.mixed.clear();
        work.mixed.resize(work.x.len(), 0.0);
        let mut first = 0;
        for ids in batch {
            let n = ids.len();
            for head in 0..self.heads {
                let at = |row: usize, part: usize| (first + row) * stride + part * width + head * size;
                // Keys with the position innermost, so that scores of a row are sums of long vectors.
                work.keys.resize(size * n, 0.0);
                for row in 0..n {
                    let key = &work.heads[at(row, 1)..][..size];
                    for (d, value) in key.iter().enumerate() {
                        work.keys[d * n + row] = value * scale;
                    }
                }
                for row in 0..n {
                    work.scores.clear();
                    work.scores.resize(n, 0.0);
                    let query = &work.heads[at(row, 0)..][..size];
                    for (q, keys) in query.iter().zip(work.keys.chunks_exact(n)) {
                        for (score, key) in work.scores.iter_mut().zip(keys) {
                            *score = q.mul_add(*key, *score);
                        }
                    }
                    softmax(&mut work.scores);
                    let out = &mut work.mixed[(first + row) * width + head * size..][..size];
                    for (other, p) in work.scores.iter().enumerate() {
                        let value = &work.heads[at(other, 2)..][..size];
                        for (o, v) in out.iter_mut().zip(value) {
                            *o = p.mul_add(*v, *o);
                        }
                    }
                }
            }
            first += n;
        }
    }
}

impl Norm {
    fn apply(&self, x: &mut [f32]) {
        let n = self.scale.len() as f32;
        for row in x.chunks_exact_mut(self.scale.len()) {
            let mean = sum(row) / n;
            for v in row.iter_mut() {
                *v -= mean;
            }
            let inverse = 1.0 / (sum_of_squares(row) / n + self.epsilon).sqrt();
            for ((v, scale), shift) in row.iter_mut().zip(&self.scale).zip(&self.shift) {
                *v = (*v * inverse).mul_add(*scale, *shift);
            }
        }
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp_nonpositive(*score - max);
    }
    let scale = 1.0 / sum(scores);
    for score in scores {
        *score *= scale;
    }
}

/// Mean over the rows, scaled to length one.
fn pool(rows: &[f32], width: usize) -> Vec<f32> {
    let mut mean = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        add(&mut mean, row);
    }
    // The mean and the sum have the same direction.
    let length = mean.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    for v in &mut mean {
        *v /= length;
    }
    mean
}

fn check(config: &Config) -> Result<(), String> {
    let sizes = [
        ("hidden_size", config.hidden_size, 8192),
        ("num_hidden_layers", config.num_hidden_layers, 256),
        ("num_attention_heads", config.num_attention_heads, 256),
        ("intermediate_size", config.intermediate_size, 65_536),
        ("max_position_embeddings", config.max_position_embeddings, 65_536),
        ("type_vocab_size", config.type_vocab_size, 1024),
        ("vocab_size", config.vocab_size, 1 << 20),
    ];
    if let Some((name, value, max)) = sizes.into_iter().find(|(_, value, max)| !(1..=*max).contains(value)) {
        return Err(format!("{name} is {value}, it must be from 1 to {max}"));
    }
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return Err(format!("{} heads do not divide {}", config.num_attention_heads, config.hidden_size));
    }
    if config.hidden_act != "gelu" {
        return Err(format!("the activation {:?} is not supported, only \"gelu\"", config.hidden_act));
    }
    if !(0.0..1.0).contains(&config.layer_norm_eps) {
        return Err(format!("layer_norm_eps is {}", config.layer_norm_eps));
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<String, EncoderError> {
    let io = |source| EncoderError::Io { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(io)?.len();
    if length > TEXT_FILE_BYTES_MAX {
        let what = format!("it has {length} bytes, allowed are {TEXT_FILE_BYTES_MAX}");
        return Err(EncoderError::Config { path: path.to_owned(), what });
    }
    fs::read_to_string(path).map_err(io)
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, EncoderError> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|e| EncoderError::Config { path: path.to_owned(), what: e.to_string() })
}

fn read_optional_json<T: Default + for<'de> Deserialize<'de>>(path: &Path) -> Result<T, EncoderError> {
    if path.exists() { read_json(path) } else { Ok(T::default()) }
}

/// The weights file while an encoder is made from it.
struct Weights {
    path: PathBuf,
    file: Safetensors<fs::File>,
    /// Some exports put this before every name.
    prefix: &'static str,
}

impl Weights {
    fn open(folder: &Path) -> Result<Weights, EncoderError> {
        let path = folder.join("model.safetensors");
        if let Err(source) = fs::metadata(&path) {
            return Err(EncoderError::Io { path, source });
        }
        match Safetensors::open(&path) {
            Ok(file) => {
                let prefix = if file.contains("bert.embeddings.LayerNorm.weight") { "bert." } else { "" };
                Ok(Weights { path, file, prefix })
            }
            Err(source) => Err(EncoderError::Weights { path, source }),
        }
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EncoderError> {
        let name = format!("{}{name}", self.prefix);
        self.file.read(&name, shape).map_err(|source| EncoderError::Weights { path: self.path.clone(), source })
    }

    fn read_half(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f16>, EncoderError> {
        let name = format!("{}{name}", self.prefix);
        self.file.read_half(&name, shape).map_err(|source| EncoderError::Weights { path: self.path.clone(), source })
    }

    fn linear(&mut self, names: &[String], inputs: usize, outputs: usize) -> Result<Linear, EncoderError> {
        let (mut weights, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            weights.extend(self.read_half(&format!("{name}.weight"), &[outputs, inputs])?);
            bias.extend(self.read(&format!("{name}.bias"), &[outputs])?);
        }
        Linear::new(&weights, &bias, inputs).map_err(|_| EncoderError::Range(names.join(", ")))
    }

    fn norm(&mut self, name: &str, width: usize, epsilon: f32) -> Result<Norm, EncoderError> {
        let scale = self.read(&format!("{name}.weight"), &[width])?;
        let shift = self.read(&format!("{name}.bias"), &[width])?;
        Ok(Norm { scale, shift, epsilon })
    }

    fn encoder(mut self, config: &Config, tokenizer: WordPiece, tokens_max: usize) -> Result<Encoder, EncoderError> {
        let (width, wide, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let words = self.read_half("embeddings.word_embeddings.weight", &[config.vocab_size, width])?;
        if words.iter().any(|w| !w.is_finite()) {
            return Err(EncoderError::Range("embeddings.word_embeddings.weight".to_owned()));
        }
        let shape = [config.max_position_embeddings, width];
        let mut positions = self.read("embeddings.position_embeddings.weight", &shape)?;
        let types = self.read("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, width])?;
        for row in positions.chunks_exact_mut(width) {
            add(row, &types);
        }
        let norm = self.norm("embeddings.LayerNorm", width, epsilon)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for at in 0..config.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{at}.{part}");
            let parts = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
            layers.push(Layer {
                query_key_value: self.linear(&parts, width, width)?,
                output: self.linear(&[name("attention.output.dense")], width, width)?,
                output_norm: self.norm(&name("attention.output.LayerNorm"), width, epsilon)?,
                up: self.linear(&[name("intermediate.dense")], width, wide)?,
                down: self.linear(&[name("output.dense")], wide, width)?,
                down_norm: self.norm(&name("output.LayerNorm"), width, epsilon)?,
            });
        }
        let heads = config.num_attention_heads;
        Ok(Encoder { tokenizer, width, heads, tokens_max, words, positions, norm, layers, work: Mutex::default() })
    }
}
