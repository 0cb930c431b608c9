//! The parameters of a request, and how its client says who it is.

use super::{ErrorCode, OauthError, invalid};
use crate::digest::unbase64;
use crate::http1::form_decode;
use crate::limits::{OAUTH_FORM_BYTES_MAX, OAUTH_PARAMETERS_MAX};

/// The parameters of an `application/x-www-form-urlencoded` body. No name stands twice (RFC 6749
/// section 3.2); a parameter without a value counts as absent (section 3.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form(Vec<(String, String)>);

impl Form {
    /// Reads a body of the given content type.
    pub fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Self, OauthError> {
        let media = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
        if !media.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(invalid("the body must be application/x-www-form-urlencoded"));
        }
        if body.len() > OAUTH_FORM_BYTES_MAX {
            return Err(invalid(format!("the body is longer than {OAUTH_FORM_BYTES_MAX} bytes")));
        }
        let text = std::str::from_utf8(body).map_err(|_| invalid("the body is not text"))?;
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == OAUTH_PARAMETERS_MAX {
                return Err(invalid(format!("more than {OAUTH_PARAMETERS_MAX} parameters")));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = form_decode(name).zip(form_decode(value));
            let (name, value) = decoded.ok_or_else(|| invalid("the body is not percent-encoded UTF-8"))?;
            if pairs.iter().any(|(known, _)| *known == name) {
                return Err(invalid(format!("the parameter {name:.40} stands twice")));
            }
            pairs.push((name, value));
        }
        pairs.retain(|(_, value)| !value.is_empty());
        Ok(Self(pairs))
    }

    /// A parameter's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that must be there.
    pub fn required(&self, name: &str) -> Result<&str, OauthError> {
        self.get(name).ok_or_else(|| invalid(format!("the parameter {name} is missing")))
    }
}

/// How a client has named itself and what it proves it with.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientAuth {
    /// The client's id.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// It came in `Authorization: Basic`; a refusal must then carry `WWW-Authenticate`.
    pub basic: bool,
}

impl std::fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientAuth").field("id", &self.id).field("basic", &self.basic).finish_non_exhaustive()
    }
}

impl ClientAuth {
    /// Reads `Authorization: Basic` or the parameters `client_id` and `client_secret`: exactly one of them
    /// (RFC 6749 section 2.3). `Ok(None)` = the request names no client.
    pub fn of(authorization: Option<&[u8]>, form: &Form) -> Result<Option<Self>, OauthError> {
        let in_body = form.get("client_secret").is_some();
        if form.get("client_assertion").is_some() || form.get("client_assertion_type").is_some() {
            return Err(OauthError::new(ErrorCode::InvalidClient, "client assertions are not supported here"));
        }
        let Some(header) = authorization else {
            let Some(secret) = form.get("client_secret") else { return Ok(None) };
            let id = form.required("client_id")?;
            return Ok(Some(Self { id: id.to_owned(), secret: secret.to_owned(), basic: false }));
        };
        let text = std::str::from_utf8(header).map_err(|_| malformed())?;
        let (scheme, credentials) = text.split_once(' ').ok_or_else(malformed)?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return Ok(None);
        }
        if in_body {
            return Err(invalid("the client authenticates in two ways at once"));
        }
        let pair =
            unbase64(credentials.trim()).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(malformed)?;
        let (id, secret) = pair.split_once(':').ok_or_else(malformed)?;
        // Section 2.3.1: both are form-encoded before they are joined.
        let (id, secret) = form_decode(id).zip(form_decode(secret)).ok_or_else(malformed)?;
        if id.is_empty() {
            return Err(malformed());
        }
        if form.get("client_id").is_some_and(|named| named != id) {
            return Err(invalid("client_id differs from the client of the Authorization header"));
        }
        Ok(Some(Self { id, secret, basic: true }))
    }
}

fn malformed() -> OauthError {
    OauthError::new(ErrorCode::InvalidClient, "the Authorization header is malformed")
}
