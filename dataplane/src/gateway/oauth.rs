//! `/oauth`: access tokens for programs (the client credentials grant of RFC 6749), introspection (RFC 7662),
//! revocation (RFC 7009), the public keys (RFC 7517) and the metadata (RFC 8414).
//!
//! Whoever may have a token is a client that an admin has made, and proves itself in exactly one way:
//! `Authorization: Basic`, or `client_id` and `client_secret` in the form. Every answer about a token says that
//! it must not be stored.

use std::sync::Arc;

use millrace_proto::oauth::{
    ClientAuth, ErrorCode, Form, Introspection, Metadata, OauthError, TokenAnswer, TokenRequest, TokenTypeHint,
    scope_text,
};
use millrace_proto::record::SCOPE_INTROSPECT;
use millrace_storage::Batch;
use tokio::sync::oneshot;

use super::routes::Endpoint;
use super::{Gateway, json};
use crate::identity::{Client, Proof, TokenFacts};
use crate::net::{Request, Response};
use crate::obs::Rejection;

/// How long others may keep the key set and the metadata.
const PUBLIC_CACHE: &str = "public, max-age=300";

/// A request that got no answer of its kind.
struct Denied {
    error: OauthError,
    /// Another status than that of the error: the node's own trouble.
    status: Option<u16>,
    retry_after_s: Option<u32>,
}

impl From<OauthError> for Denied {
    fn from(error: OauthError) -> Self {
        Self { error, status: None, retry_after_s: None }
    }
}

impl Denied {
    fn new(code: ErrorCode, description: &str) -> Self {
        OauthError::new(code, description).into()
    }

    /// The node cannot do it now.
    fn busy(description: &str) -> Self {
        let error = OauthError::new(ErrorCode::InvalidRequest, description);
        Self { error, status: Some(503), retry_after_s: Some(1) }
    }

    fn response(&self) -> Response {
        let status = self.status.unwrap_or_else(|| self.error.code.status());
        let mut response = Response::json(status, self.error.to_json());
        if status == 401 {
            // RFC 6749 section 5.2 for clients that used this scheme, RFC 9110 section 11.6.1 for all.
            response = response.header("www-authenticate", "Basic realm=\"millrace\", charset=\"UTF-8\"");
        }
        match self.retry_after_s {
            Some(seconds) => response.header("retry-after", seconds.to_string()),
            None => response,
        }
    }
}

impl Gateway {
    /// Answers one of the endpoints for clients.
    pub(super) async fn oauth(&self, endpoint: Endpoint, request: &Request<'_>) -> Response {
        let answer = match endpoint {
            Endpoint::OauthIntrospect => self.introspect(request).await,
            Endpoint::OauthRevoke => self.revoke_token(request).await,
            _ => self.token(request).await,
        };
        let response = answer.unwrap_or_else(|denied| {
            let reason = match denied.response().status {
                401 => Some(Rejection::Unauthorized),
                429 => Some(Rejection::RateLimited),
                503 => Some(Rejection::Overloaded),
                _ => None,
            };
            if let Some(reason) = reason {
                self.net.metrics().rejected(reason);
            }
            denied.response()
        });
        // RFC 6749 section 5.1, for successes and errors alike.
        response.header("cache-control", "no-store").header("pragma", "no-cache")
    }

    /// The public keys that verify this node's JWTs.
    pub(super) fn oauth_keys(&self) -> Response {
        Response::json(200, self.shared.authority.key_set_json()).header("cache-control", PUBLIC_CACHE)
    }

    /// Where everything is.
    pub(super) fn oauth_metadata(&self) -> Response {
        let metadata = Metadata::of(&self.shared.authority.options().issuer);
        Response::json(200, json(&metadata)).header("cache-control", PUBLIC_CACHE)
    }

    async fn token(&self, request: &Request<'_>) -> Result<Response, Denied> {
        let (client, form) = self.client_of(request).await?;
        let scopes = TokenRequest::of(&form)?.grant(client.scopes)?;
        let made = self.shared.authority.make_token(&client, scopes);
        let (access_token, batch) = made.ok_or_else(|| Denied::busy("no token can be made at the moment"))?;
        self.keep(batch).await?;
        tracing::debug!(client = %client.id, kind = client.kind.as_str(), "a token was made");
        let answer = TokenAnswer {
            access_token,
            token_type: "Bearer",
            expires_in: client.lifetime_s,
            scope: scope_text(scopes),
        };
        Ok(Response::json(200, json(&answer)))
    }

    async fn introspect(&self, request: &Request<'_>) -> Result<Response, Denied> {
        let (client, form) = self.client_of(request).await?;
        let (token, _) = TokenTypeHint::of(&form)?;
        let facts = self.token_facts(token)?.filter(|facts| {
            facts.client.id == client.id
                || (client.scopes & SCOPE_INTROSPECT != 0 && facts.client.tenant == client.tenant)
        });
        // Of what the caller may not know about it learns what it learns of a token that never was.
        let answer = facts.map_or_else(Introspection::default, |facts| Introspection {
            active: true,
            scope: Some(scope_text(facts.scopes)),
            client_id: Some(facts.client.id.clone()),
            sub: Some(facts.client.id.clone()),
            token_type: Some("Bearer"),
            exp: Some(facts.exp),
            iat: Some(facts.iat),
            iss: Some(self.shared.authority.options().issuer.clone()),
        });
        Ok(Response::json(200, json(&answer)))
    }

    async fn revoke_token(&self, request: &Request<'_>) -> Result<Response, Denied> {
        let (client, form) = self.client_of(request).await?;
        let (token, _) = TokenTypeHint::of(&form)?;
        let Some(facts) = self.token_facts(token)? else {
            // RFC 7009 section 2.2: there is nothing left to do.
            return Ok(Response::empty(200));
        };
        if facts.client.id != client.id {
            return Err(Denied::new(ErrorCode::UnauthorizedClient, "the token was given to another client"));
        }
        let authority = &self.shared.authority;
        let batch = authority
            .revocation(token, &facts)
            .ok_or_else(|| Denied::busy("too many revoked tokens have not ended yet; remove the client instead"))?;
        self.keep(batch).await?;
        authority.revoked(token, &facts);
        // Durable first, then forgotten by every shard: from here on the token opens nothing.
        self.shared.gateway.keys_changed();
        Ok(Response::empty(200))
    }

    fn token_facts(&self, token: &str) -> Result<Option<TokenFacts>, Denied> {
        self.shared.authority.token(token).map_err(|error| {
            tracing::error!(%error, "a token could not be looked up");
            Denied::busy("the store does not answer")
        })
    }

    async fn keep(&self, batch: Batch) -> Result<(), Denied> {
        if batch.is_empty() {
            return Ok(());
        }
        self.commit(batch).await.map_err(|_| Denied::busy("the store does not answer"))
    }

    /// The client that a request proves to come from, and its form.
    async fn client_of(&self, request: &Request<'_>) -> Result<(Arc<Client>, Form), Denied> {
        let authority = &self.shared.authority;
        let (head, peer) = (request.head, request.peer);
        if !peer.secure && !peer.ip.is_loopback() && !authority.options().plain_http {
            let why = "secrets are not taken over plain HTTP from another machine: use the TLS port";
            return Err(Denied::new(ErrorCode::InvalidRequest, why));
        }
        if head.query_param("client_secret").is_some() || head.query_param("token").is_some() {
            let why = "secrets and tokens belong into the body, not into the address";
            return Err(Denied::new(ErrorCode::InvalidRequest, why));
        }
        let form = Form::parse(head.header("content-type"), request.body)?;
        let Some(named) = ClientAuth::of(head.header_bytes("authorization"), &form)? else {
            return Err(Denied::new(ErrorCode::InvalidClient, "the client does not say who it is"));
        };
        let client = self.proved(&named, request).await?;
        let meter = self.shared.gateway.meters.of(&crate::identity::subject(&client));
        if let Err(wait_s) = meter.admit(self.now_ns(), &self.shared.live.now().rates.key_requests) {
            let error = OauthError::new(ErrorCode::InvalidRequest, "the client asks too often");
            return Err(Denied { error, status: Some(429), retry_after_s: Some(wait_s) });
        }
        Ok((client, form))
    }

    async fn proved(&self, named: &ClientAuth, request: &Request<'_>) -> Result<Arc<Client>, Denied> {
        let authority = &self.shared.authority;
        let ip = request.peer.ip;
        let (client, against) = match authority.proof(&named.id, &named.secret, ip) {
            Proof::Proved(client) => return Ok(client),
            Proof::Blocked(wait_s) => {
                tracing::warn!(client = %named.id.escape_debug(), %ip, "too many wrong secrets");
                let error =
                    OauthError::new(ErrorCode::InvalidClient, "too many wrong secrets; wait before the next try");
                return Err(Denied { error, status: Some(429), retry_after_s: Some(wait_s) });
            }
            Proof::Unproved(client, against) => (client, against),
        };
        let sole = against.len() == 1;
        let (told, heard) = oneshot::channel();
        let done = move |right| {
            // The caller may have left.
            let _ = told.send(right);
        };
        authority
            .secrets()
            .check(named.secret.clone(), against, done)
            .map_err(|_| Denied::busy("too many clients are being checked at once"))?;
        let right = heard.await.map_err(|_| Denied::busy("the node is stopping"))?;
        match client.filter(|_| right) {
            Some(client) => {
                authority.proved(&client, &named.secret, sole);
                Ok(client)
            }
            None => {
                authority.refused(&named.id, ip);
                Err(Denied::new(ErrorCode::InvalidClient, "the client is unknown or its secret is wrong"))
            }
        }
    }
}
