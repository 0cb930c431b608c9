//! The JSON shapes of the OpenAI-compatible API.
//!
//! Requests are read by their `parse`, which is `serde` plus [`ApiError`]s that name the parameter, the
//! value and what is allowed; unknown fields are ignored as the official API does.

mod chat;
mod completion;
mod embedding;
mod error;
mod model;
mod read;
mod structured;
mod tool;

pub use chat::{
    ChatChoice, ChatChunk, ChatMessage, ChatRequest, ChatResponse, ChatRole, ChunkChoice, Delta, FunctionDelta,
    Logprobs, ResponseMessage, StreamOptions, TokenLogprob, ToolCallDelta, TopLogprob,
};
pub use completion::{CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, Prompt};
pub use embedding::{
    Embedding, EmbeddingData, EmbeddingInput, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage, EncodingFormat,
};
pub use error::ApiError;
pub use model::{ModelList, ModelObject};
pub use read::{SamplingOptions, StopStrings};
pub use structured::{AskedFormat, OutputFormat};
pub use tool::{CalledFunction, Tool, ToolCall, ToolChoice, ToolFunction, ToolUse};

use serde::{Deserialize, Serialize};

/// Token counts of one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// How many of the tokens read came from the cache.
    pub prompt_tokens_details: PromptTokensDetails,
}

impl Usage {
    /// Counts for an answer.
    pub fn new(prompt: u32, completion: u32, cached: u32) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt.saturating_add(completion),
            prompt_tokens_details: PromptTokensDetails { cached_tokens: cached },
        }
    }
}

/// Details of the tokens read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Tokens whose keys and values were reused.
    pub cached_tokens: u32,
}
