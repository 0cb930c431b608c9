//! `GET /v1/models`.

use serde::Serialize;

/// The list of models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelObject>,
}

impl ModelList {
    /// A list.
    pub fn new(data: Vec<ModelObject>) -> Self {
        Self { object: "list", data }
    }
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelObject {
    /// The name that requests use.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Unix seconds: when it was loaded.
    pub created: u64,
    /// `millrace`.
    pub owned_by: &'static str,
    /// Extension: the context window in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
}

impl ModelObject {
    /// A model of this server.
    pub fn new(id: impl Into<String>, created: u64, context_length: Option<u32>) -> Self {
        Self { id: id.into(), object: "model", created, owned_by: "millrace", context_length }
    }
}
