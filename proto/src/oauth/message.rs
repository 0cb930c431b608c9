//! Requests to the token endpoint and the answers of all endpoints.

use serde::Serialize;

use super::{ErrorCode, Form, OauthError, invalid};
use crate::limits::OAUTH_SCOPE_BYTES_MAX;
use crate::record::{scope_bit, scope_names};

/// The only grant that is offered: programs act for themselves.
pub const GRANT_CLIENT_CREDENTIALS: &str = "client_credentials";

/// A request for an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// The scopes asked for, as bits; `None` = whatever the client may have.
    pub scopes: Option<u32>,
}

impl TokenRequest {
    /// Reads the form of the token endpoint.
    pub fn of(form: &Form) -> Result<Self, OauthError> {
        match form.required("grant_type")? {
            GRANT_CLIENT_CREDENTIALS => {}
            other => {
                let why = format!("the grant {other:.40} is not offered, only {GRANT_CLIENT_CREDENTIALS}");
                return Err(OauthError::new(ErrorCode::UnsupportedGrantType, why));
            }
        }
        Ok(Self { scopes: form.get("scope").map(scopes_of).transpose()? })
    }

    /// The scopes to grant to a client that may have `allowed`. RFC 6749 section 3.3: asking for more than
    /// one may have is refused, not silently cut.
    pub fn grant(&self, allowed: u32) -> Result<u32, OauthError> {
        let wanted = self.scopes.unwrap_or(allowed);
        let beyond = wanted & !allowed;
        if beyond != 0 {
            let why = format!("the client may not have {}", scope_text(beyond));
            return Err(OauthError::new(ErrorCode::InvalidScope, why));
        }
        Ok(wanted)
    }
}

/// Reads a scope parameter: known names with single spaces between them.
pub fn scopes_of(text: &str) -> Result<u32, OauthError> {
    let refuse = |why: String| OauthError::new(ErrorCode::InvalidScope, why);
    if text.len() > OAUTH_SCOPE_BYTES_MAX {
        return Err(refuse(format!("scope is longer than {OAUTH_SCOPE_BYTES_MAX} bytes")));
    }
    text.split(' ').try_fold(0, |scopes, name| {
        let bit = scope_bit(name).ok_or_else(|| {
            refuse(format!("{name:.40} is not a scope here; known are {}", scope_names(u32::MAX).join(", ")))
        })?;
        Ok(scopes | bit)
    })
}

/// The text of a set of scopes.
pub fn scope_text(scopes: u32) -> String {
    scope_names(scopes).join(" ")
}

/// What a caller of revocation or introspection takes the token for. Only a hint: the search goes on in the
/// other kinds (RFC 7009 section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenTypeHint {
    /// `access_token`, or no hint.
    Access,
}

impl TokenTypeHint {
    /// Reads the hint and the token of a form.
    pub fn of(form: &Form) -> Result<(&str, Self), OauthError> {
        let token = form.required("token")?;
        if token.len() > crate::limits::BEARER_BYTES_MAX {
            return Err(invalid("the token is longer than any token of this server"));
        }
        // An unknown hint is ignored; there is one kind of token.
        Ok((token, Self::Access))
    }
}

/// The answer that carries a token.
#[derive(Clone, Debug, Serialize)]
pub struct TokenAnswer {
    /// The token.
    pub access_token: String,
    /// Always `Bearer`.
    pub token_type: &'static str,
    /// Seconds until it ends.
    pub expires_in: u64,
    /// What it may be used for.
    pub scope: String,
}

/// What introspection says about a token. Of an inactive one nothing but that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Introspection {
    /// Whether the token opens anything now.
    pub active: bool,
    /// Its scopes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The client that it was given to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Whom it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// Always `Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_type: Option<&'static str>,
    /// Unix seconds of its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// Unix seconds of its making.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
}

/// The server metadata of RFC 8414.
#[derive(Clone, Debug, Serialize)]
pub struct Metadata {
    issuer: String,
    token_endpoint: String,
    introspection_endpoint: String,
    revocation_endpoint: String,
    jwks_uri: String,
    grant_types_supported: [&'static str; 1],
    response_types_supported: [&'static str; 0],
    scopes_supported: Vec<&'static str>,
    token_endpoint_auth_methods_supported: [&'static str; 2],
    introspection_endpoint_auth_methods_supported: [&'static str; 2],
    revocation_endpoint_auth_methods_supported: [&'static str; 2],
}

impl Metadata {
    /// The metadata of the server whose issuer identifier is `issuer`, without a slash at its end.
    pub fn of(issuer: &str) -> Self {
        const METHODS: [&str; 2] = ["client_secret_basic", "client_secret_post"];
        Self {
            issuer: issuer.to_owned(),
            token_endpoint: format!("{issuer}/oauth/token"),
            introspection_endpoint: format!("{issuer}/oauth/introspect"),
            revocation_endpoint: format!("{issuer}/oauth/revoke"),
            jwks_uri: format!("{issuer}/oauth/jwks"),
            grant_types_supported: [GRANT_CLIENT_CREDENTIALS],
            response_types_supported: [],
            scopes_supported: scope_names(u32::MAX),
            token_endpoint_auth_methods_supported: METHODS,
            introspection_endpoint_auth_methods_supported: METHODS,
            revocation_endpoint_auth_methods_supported: METHODS,
        }
    }
}
