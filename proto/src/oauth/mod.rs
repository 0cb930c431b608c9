//! OAuth 2.0 messages: what a token endpoint reads and answers, and what a resource server checks.
//!
//! The client credentials grant (RFC 6749 section 4.4), bearer tokens (RFC 6750), revocation (RFC 7009),
//! introspection (RFC 7662), metadata (RFC 8414), JWT access tokens (RFC 9068) and key sets (RFC 7517).
//! Whether a client is known, which scopes it may have and what time it is comes from the caller.
//!
//! Main types: [`Form`] and [`ClientAuth`] (what arrives), [`OauthError`] (what is refused),
//! [`jwt::Claims`] and [`jwk::KeySet`] (self-contained tokens).

mod form;
pub mod jwk;
pub mod jwt;
mod message;
#[cfg(test)]
mod tests;

pub use form::{ClientAuth, Form};
pub use message::{
    GRANT_CLIENT_CREDENTIALS, Introspection, Metadata, TokenAnswer, TokenRequest, TokenTypeHint, scope_text, scopes_of,
};

use serde_json::json;

/// The error codes of RFC 6749 section 5.2, RFC 6750 section 3.1 and RFC 7009 section 2.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// A parameter is missing, doubled or malformed.
    InvalidRequest,
    /// The client is unknown, or did not prove who it is.
    InvalidClient,
    /// The client may not use this grant.
    UnauthorizedClient,
    /// The grant is not offered.
    UnsupportedGrantType,
    /// A scope is unknown, malformed, or more than the client may have.
    InvalidScope,
    /// The token cannot be of the kind that the hint names.
    UnsupportedTokenType,
}

impl ErrorCode {
    /// The text of the code.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidScope => "invalid_scope",
            Self::UnsupportedTokenType => "unsupported_token_type",
        }
    }

    /// The status of the answer.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidClient => 401,
            _ => 400,
        }
    }
}

/// A refused request to one of the OAuth endpoints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {description}", code.as_str())]
pub struct OauthError {
    /// The code.
    pub code: ErrorCode,
    /// What is wrong, for the developer of the client. ASCII without quotes and backslashes, as RFC 6749
    /// section 5.2 demands.
    pub description: String,
}

impl OauthError {
    /// An error with its description; what the RFC's character set lacks becomes `'`.
    pub fn new(code: ErrorCode, description: impl Into<String>) -> Self {
        let allowed = |c: char| (' '..='~').contains(&c) && c != '"' && c != '\\';
        let description = description.into().chars().map(|c| if allowed(c) { c } else { '\'' }).collect();
        Self { code, description }
    }

    /// The JSON of the answer.
    pub fn to_json(&self) -> Vec<u8> {
        json!({"error": self.code.as_str(), "error_description": self.description}).to_string().into_bytes()
    }
}

fn invalid(description: impl Into<String>) -> OauthError {
    OauthError::new(ErrorCode::InvalidRequest, description)
}
