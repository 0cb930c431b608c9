//! What the files of an encoder's folder say, checked: sizes, tokenizer, and how token vectors become one.
//!
//! A folder is in the layout of sentence-transformers. Everything that would change vectors and that this network does
//! not do (other position embeddings, other pooling, further modules) is refused by its name.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::safetensors::SafetensorsError;
use crate::kernel::BLOCK;
use crate::tokenizer::{WordPiece, WordPieceError};

/// Largest `vocab.txt` and `config.json`.
const TEXT_FILE_BYTES_MAX: u64 = 32 << 20;
/// Tokens of a text that count when no file says so.
const TOKENS_MAX_USUAL: usize = 512;

/// Why an encoder cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// A file of the model folder cannot be read.
    #[error(
        "cannot read {}; the model folder needs config.json, vocab.txt, model.safetensors and 1_Pooling/config.json",
        path.display()
    )]
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

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    /// That of the first token.
    First,
    /// Their mean.
    Mean,
    /// The greatest of each component.
    Greatest,
}

/// Sizes of the network, from `config.json`.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub vocab_size: usize,
    pub layer_norm_eps: f32,
    hidden_act: String,
    model_type: Option<String>,
    position_embedding_type: Option<String>,
}

/// What a folder says, but for the weights.
#[derive(Debug)]
pub(super) struct Description {
    pub config: Config,
    pub tokenizer: WordPiece,
    pub tokens_max: usize,
    pub pooling: Pooling,
}

#[derive(Debug, Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

/// Reads all but the weights.
pub(super) fn describe(folder: &Path) -> Result<Description, EncoderError> {
    let config_path = folder.join("config.json");
    let config: Config = read_json(&config_path)?;
    check(&config).map_err(|what| EncoderError::Config { path: config_path, what })?;
    let sentence: SentenceConfig = read_optional_json(&folder.join("sentence_bert_config.json"))?;
    let pooling = pooling(folder)?;
    let vocabulary_path = folder.join("vocab.txt");
    let tokenizer = WordPiece::new(&read_text(&vocabulary_path)?, lowercase(folder)?)?;
    if tokenizer.vocabulary() > config.vocab_size {
        let what = format!("{} tokens, config.json says {}", tokenizer.vocabulary(), config.vocab_size);
        return Err(EncoderError::Config { path: vocabulary_path, what });
    }
    let positions = config.max_position_embeddings.max(2);
    let tokens_max = sentence.max_seq_length.unwrap_or(TOKENS_MAX_USUAL).clamp(2, positions);
    Ok(Description { config, tokenizer, tokens_max, pooling })
}

fn lowercase(folder: &Path) -> Result<bool, EncoderError> {
    let path = folder.join("tokenizer_config.json");
    let config: TokenizerConfig = read_optional_json(&path)?;
    let lowercase = config.do_lower_case.unwrap_or(true);
    // The tokenizer takes accents off exactly when it lowers case, as the original does when nothing is said.
    let what = match config {
        TokenizerConfig { strip_accents: Some(strip), .. } if strip != lowercase => {
            format!("strip_accents is {strip} and do_lower_case {lowercase}; only equal settings are supported")
        }
        TokenizerConfig { tokenize_chinese_chars: Some(false), .. } => {
            "tokenize_chinese_chars is false; only true is supported".to_owned()
        }
        _ => return Ok(lowercase),
    };
    Err(EncoderError::Config { path, what })
}

/// Pooling from the folder that `modules.json` names, or from `1_Pooling`.
fn pooling(folder: &Path) -> Result<Pooling, EncoderError> {
    let modules_path = folder.join("modules.json");
    let modules: Vec<Module> = read_optional_json(&modules_path)?;
    let mut place = "1_Pooling";
    for Module { kind, path } in &modules {
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" if path.is_empty() => {}
            "Pooling" if !path.contains(['/', '\\']) && !path.starts_with('.') => place = path,
            // Vectors get length one whether or not the model says so: what compares them expects it.
            "Normalize" => {}
            _ => {
                let what = format!(
                    "the module {kind:?} in {path:?} is not supported (supported: a Transformer in the folder itself, \
                     Pooling in a folder inside, Normalize); choose another model"
                );
                return Err(EncoderError::Config { path: modules_path, what });
            }
        }
    }
    let path = folder.join(place).join("config.json");
    let config: Map<String, Value> = read_json(&path)?;
    pooling_of(&config).map_err(|what| EncoderError::Config { path, what })
}

fn pooling_of(config: &Map<String, Value>) -> Result<Pooling, String> {
    let flags = config.iter().filter(|(_, value)| **value == Value::Bool(true));
    let flags = flags.filter_map(|(key, _)| key.strip_prefix("pooling_mode_"));
    let mut modes: Vec<&str> = flags.collect();
    modes.extend(config.get("pooling_mode").and_then(Value::as_str));
    match modes[..] {
        ["cls_token" | "cls"] => Ok(Pooling::First),
        // Divided by a root of the length instead of the length: the direction is that of the mean.
        ["mean_tokens" | "mean" | "mean_sqrt_len_tokens"] => Ok(Pooling::Mean),
        ["max_tokens" | "max"] => Ok(Pooling::Greatest),
        [] => Err("it names no pooling mode".to_owned()),
        [other] => Err(format!("the pooling mode {other:?} is not supported (supported: cls, mean, max)")),
        _ => Err(format!("it names several pooling modes ({}), supported is one", modes.join(", "))),
    }
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
    let widths = [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)];
    if let Some((name, value)) = widths.into_iter().find(|(_, value)| !value.is_multiple_of(BLOCK)) {
        return Err(format!("{name} is {value}, it must be a multiple of {BLOCK}"));
    }
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return Err(format!("{} heads do not divide {}", config.num_attention_heads, config.hidden_size));
    }
    // Relatives such as RoBERTa number positions or name tensors differently; vectors would be wrong without a word.
    let named = [
        ("the model type", config.model_type.as_deref(), "bert"),
        ("the kind of position embedding", config.position_embedding_type.as_deref(), "absolute"),
        ("the activation", Some(config.hidden_act.as_str()), "gelu"),
    ];
    for (what, value, supported) in named {
        if let Some(value) = value.filter(|value| *value != supported) {
            return Err(format!("{what} {value:?} is not supported, only {supported:?}"));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_is_what_the_file_names_and_nothing_else() {
        let of = |text: &str| pooling_of(&serde_json::from_str(text).expect("JSON"));
        let bge = r#"{"word_embedding_dimension":384,"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}"#;
        assert_eq!(of(bge), Ok(Pooling::First));
        assert_eq!(of(r#"{"pooling_mode_mean_tokens":true,"include_prompt":true}"#), Ok(Pooling::Mean));
        assert_eq!(of(r#"{"pooling_mode":"max"}"#), Ok(Pooling::Greatest));
        assert!(of(r#"{"pooling_mode_lasttoken":true}"#).unwrap_err().contains("lasttoken"));
        assert!(
            of(r#"{"pooling_mode_cls_token":true,"pooling_mode_max_tokens":true}"#).unwrap_err().contains("several")
        );
        assert!(of("{}").unwrap_err().contains("no pooling mode"));
    }

    #[test]
    fn relatives_of_the_network_are_refused_by_name() {
        let config = |more: &str| -> Config {
            let text = format!(
                r#"{{"hidden_size":64,"num_hidden_layers":1,"num_attention_heads":2,"intermediate_size":128,
                "max_position_embeddings":16,"type_vocab_size":2,"vocab_size":9,"layer_norm_eps":1e-12{more}}}"#
            );
            serde_json::from_str(&text).expect("JSON")
        };
        assert_eq!(check(&config(r#","hidden_act":"gelu""#)), Ok(()));
        let refused = |more: &str| check(&config(more)).expect_err(more);
        assert!(refused(r#","hidden_act":"relu""#).contains("relu"));
        assert!(refused(r#","hidden_act":"gelu","model_type":"xlm-roberta""#).contains("xlm-roberta"));
        let relative = refused(r#","hidden_act":"gelu","position_embedding_type":"relative_key""#);
        assert!(relative.contains("relative_key"));
    }

    #[test]
    fn a_further_module_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        fs::create_dir(folder.path().join("own_pooling")).expect("made");
        write("own_pooling/config.json", r#"{"pooling_mode_cls_token":true}"#);
        let modules = |last: &str| {
            format!(r#"[{{"type":"a.Transformer","path":""}},{{"type":"a.Pooling","path":"own_pooling"}}{last}]"#)
        };
        write("modules.json", &modules(""));
        assert_eq!(pooling(folder.path()).expect("known modules"), Pooling::First);
        for last in [r#",{"type":"a.Dense","path":"2_Dense"}"#, r#",{"type":"a.Pooling","path":"../other"}"#] {
            write("modules.json", &modules(last));
            assert!(pooling(folder.path()).expect_err(last).to_string().contains("is not supported"));
        }
        fs::remove_file(folder.path().join("modules.json")).expect("removed");
        let error = pooling(folder.path()).expect_err("nothing says how");
        assert!(matches!(&error, EncoderError::Io { path, .. } if path.ends_with("1_Pooling/config.json")), "{error}");
    }
}
