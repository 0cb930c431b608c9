//! `POST /v1/embeddings`.

use super::ApiError;
use super::chat::null_is_default;
use super::read::{self, Kind, check_name, whole_in_range};
use crate::digest;
use crate::limits::{EMBEDDING_INPUT_BYTES_MAX, EMBEDDING_INPUTS_MAX};
use serde::{Deserialize, Serialize};

/// Upper end of `dimensions`; the model's own width is the tighter bound.
const DIMENSIONS_MAX: i64 = 65_536;

/// An embedding request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddingRequest {
    /// Model name; empty means the server's embedding model.
    #[serde(deserialize_with = "null_is_default")]
    pub model: String,
    /// What to embed.
    pub input: Option<EmbeddingInput>,
    /// How vectors are written; the default is lists of numbers.
    pub encoding_format: Option<EncodingFormat>,
    /// Number of leading components to keep (renormalised).
    pub dimensions: Option<i64>,
    /// End user inside the tenant.
    pub user: Option<String>,
}

/// What to embed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EmbeddingInput {
    /// One text.
    One(String),
    /// One list of token ids.
    Tokens(Vec<u32>),
    /// Several texts.
    Many(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

impl EmbeddingInput {
    /// Number of vectors in the answer.
    pub fn len(&self) -> usize {
        match self {
            EmbeddingInput::One(_) | EmbeddingInput::Tokens(_) => 1,
            EmbeddingInput::Many(texts) => texts.len(),
            EmbeddingInput::TokenLists(lists) => lists.len(),
        }
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The texts, when the input is text.
    pub fn texts(&self) -> Option<&[String]> {
        match self {
            EmbeddingInput::One(text) => Some(std::slice::from_ref(text)),
            EmbeddingInput::Many(texts) => Some(texts),
            EmbeddingInput::Tokens(_) | EmbeddingInput::TokenLists(_) => None,
        }
    }
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// Lists of numbers.
    Float,
    /// Base64 of little-endian `f32`s.
    Base64,
}

const FIELDS: &[(&str, Kind)] = &[
    ("model", Kind::Text),
    ("input", Kind::TextOrList),
    ("encoding_format", Kind::Text),
    ("dimensions", Kind::Whole),
    ("user", Kind::Text),
];

impl EmbeddingRequest {
    /// Reads and validates a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let request: Self = read::parse(body, FIELDS).map_err(|error| {
            match error.param.is_none() && error.message.contains("unknown variant") {
                true => error.with_param("encoding_format"),
                false => error,
            }
        })?;
        request.validate()?;
        Ok(request)
    }

    /// Checks every range.
    pub fn validate(&self) -> Result<(), ApiError> {
        let Some(input) = &self.input else {
            return Err(
                ApiError::bad_request("missing_parameter", "The parameter input is missing.").with_param("input")
            );
        };
        if input.is_empty() || input.len() > EMBEDDING_INPUTS_MAX {
            let message = format!("input has {} entries; it must have 1 to {EMBEDDING_INPUTS_MAX}.", input.len());
            return Err(ApiError::invalid_param("input", message));
        }
        let longest = match input {
            EmbeddingInput::One(text) => (text.len(), text.len()),
            EmbeddingInput::Many(texts) => extremes(texts.iter().map(String::len)),
            EmbeddingInput::Tokens(tokens) => (tokens.len(), tokens.len()),
            EmbeddingInput::TokenLists(lists) => extremes(lists.iter().map(Vec::len)),
        };
        if longest.0 == 0 {
            return Err(ApiError::invalid_param("input", "input has an empty entry; there is nothing to embed."));
        }
        if longest.1 > EMBEDDING_INPUT_BYTES_MAX {
            let message =
                format!("An input has {} bytes; at most {EMBEDDING_INPUT_BYTES_MAX} are accepted.", longest.1);
            return Err(ApiError::invalid_param("input", message));
        }
        whole_in_range("dimensions", self.dimensions, 1, DIMENSIONS_MAX)?;
        check_name("user", self.user.as_deref())
    }
}

fn extremes(lengths: impl Iterator<Item = usize> + Clone) -> (usize, usize) {
    (lengths.clone().min().unwrap_or(0), lengths.max().unwrap_or(0))
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmbeddingResponse {
    /// `list`.
    pub object: &'static str,
    /// One entry per input, in order.
    pub data: Vec<EmbeddingData>,
    /// The model that answered.
    pub model: String,
    /// Token counts.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmbeddingData {
    /// `embedding`.
    pub object: &'static str,
    /// Position of its input.
    pub index: u32,
    /// The vector.
    pub embedding: Embedding,
}

/// A vector in one of its two forms.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Embedding {
    /// A list of numbers.
    Float(Vec<f32>),
    /// Base64 of little-endian `f32`s.
    Base64(String),
}

impl Embedding {
    /// Writes a vector in the asked form.
    pub fn new(vector: Vec<f32>, format: EncodingFormat) -> Self {
        match format {
            EncodingFormat::Float => Embedding::Float(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Embedding::Base64(digest::base64(&bytes))
            }
        }
    }
}

/// Token counts of an embedding answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EmbeddingUsage {
    /// Tokens read.
    pub prompt_tokens: u32,
    /// The same.
    pub total_tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_in_every_form() {
        let read = |input: &str| EmbeddingRequest::parse(format!(r#"{{"input":{input}}}"#).as_bytes());
        assert_eq!(read(r#""a""#).unwrap().input.unwrap().texts(), Some(&["a".to_owned()][..]));
        assert_eq!(read(r#"["a","b"]"#).unwrap().input.unwrap().len(), 2);
        assert_eq!(read("[5]").unwrap().input, Some(EmbeddingInput::Tokens(vec![5])));
        assert_eq!(read("[[5],[6]]").unwrap().input.unwrap().len(), 2);
        for bad in ["[]", r#""""#, r#"["a",""]"#, "[-1]", "7", "null", r#"[["a"]]"#] {
            assert_eq!(read(bad).expect_err(bad).status, 400);
        }
        let error = EmbeddingRequest::parse(br#"{"input":"a","encoding_format":"hex"}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("encoding_format"));
        assert!(EmbeddingRequest::parse(br#"{"input":"a","dimensions":0}"#).is_err());
    }

    #[test]
    fn base64_is_little_endian() {
        let Embedding::Base64(text) = Embedding::new(vec![1.0, -2.5], EncodingFormat::Base64) else { unreachable!() };
        assert_eq!(digest::unbase64(&text).unwrap(), [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
    }
}
