//! `/v1/admin/clients` and `/v1/admin/signing-keys`: who may have tokens, and what signs them.

use millrace_proto::api::ApiError;
use millrace_proto::id::TenantId;
use millrace_proto::oauth::jwt::Algorithm;
use millrace_proto::record::scope_names;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::admin::{check_name, governs, read, scope_of, wanted_scopes};
use super::{Gateway, Principal, json as to_json, unix_ms};
use crate::identity::{self, CLIENTS_MAX, Client, LIFETIME_S, LIFETIME_S_MAX, LIFETIME_S_MIN, SecretHash, TokenKind};
use crate::net::{Request, Response};

/// How long the secret before a rotation may hold: time to bring the new one to where it is used.
const KEEP_S_MAX: u64 = 7 * 86_400;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewClient {
    label: String,
    user: Option<String>,
    tenant: Option<u32>,
    scopes: Option<Vec<String>>,
    role: Option<String>,
    token: Option<String>,
    lifetime_s: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    id: String,
    keep_s: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSigningKey {
    algorithm: Option<String>,
}

impl Gateway {
    pub(super) fn list_clients(&self, principal: &Principal) -> Response {
        let own = scope_of(principal);
        let mut clients = self.shared.authority.clients();
        clients.retain(|client| own.is_none_or(|tenant| tenant.0 == client.tenant));
        clients.sort_by(|one, two| (one.created_ms, &one.id).cmp(&(two.created_ms, &two.id)));
        let data: Vec<Value> = clients.iter().map(|client| client_object(client)).collect();
        Response::json(200, to_json(&json!({"object": "list", "data": data})))
    }

    pub(super) async fn create_client(
        &self,
        principal: &Principal,
        request: &Request<'_>,
    ) -> Result<Response, ApiError> {
        let wanted: NewClient = read(request.body)?;
        check_name("label", &wanted.label)?;
        let tenant = wanted.tenant.map_or(principal.tenant, TenantId);
        governs(principal, tenant)?;
        let scopes = wanted_scopes(principal, wanted.scopes.as_deref(), wanted.role.as_deref())?;
        let kind = match wanted.token.as_deref() {
            None => TokenKind::default(),
            Some(name) => TokenKind::parse(name).ok_or_else(|| {
                ApiError::invalid_param("token", format!("token is {name:?}; it must be \"opaque\" or \"jwt\"."))
            })?,
        };
        let lifetime_s = wanted.lifetime_s.unwrap_or(LIFETIME_S);
        if !(LIFETIME_S_MIN..=LIFETIME_S_MAX).contains(&lifetime_s) {
            let message = format!("lifetime_s is {lifetime_s}; it must be {LIFETIME_S_MIN} to {LIFETIME_S_MAX}.");
            return Err(ApiError::invalid_param("lifetime_s", message));
        }
        if self.shared.authority.clients().len() >= CLIENTS_MAX {
            return Err(ApiError::bad_request("too_many_clients", format!("There are {CLIENTS_MAX} clients already."))
                .with_next_step("Remove clients that are not used any more."));
        }
        let (id, secret) = identity::make_credentials().ok_or_else(no_random)?;
        let user = wanted.user.unwrap_or_else(|| id.clone());
        check_name("user", &user)?;
        let client = Client {
            id,
            tenant: tenant.0,
            user,
            label: wanted.label,
            scopes,
            kind,
            lifetime_s,
            created_ms: unix_ms(),
            secret: self.hashed(secret.clone()).await?,
            previous: None,
        };
        self.commit(identity::client_batch(&client)).await?;
        tracing::info!(by = %principal.key_label, id = %client.id, label = %client.label, "a client was made");
        let mut object = client_object(&client);
        self.shared.authority.put_client(client);
        object["client_secret"] = Value::from(secret);
        Ok(Response::json(201, to_json(&object)).header("cache-control", "no-store"))
    }

    pub(super) async fn remove_client(
        &self,
        principal: &Principal,
        request: &Request<'_>,
    ) -> Result<Response, ApiError> {
        let Some(id) = request.head.query_param("id") else {
            return Err(ApiError::bad_request("missing_parameter", "The parameter id is missing: the client's id.")
                .with_param("id")
                .with_next_step("GET /v1/admin/clients lists the ids."));
        };
        let client = self.governed_client(principal, &id)?;
        self.commit(identity::client_removal(&id)).await?;
        self.shared.authority.remove_client(&id);
        // Its tokens name a client that is gone: they open nothing from here on.
        self.shared.gateway.keys_changed();
        tracing::info!(by = %principal.key_label, %id, label = %client.label, "a client was removed");
        Ok(Response::json(200, to_json(&client_object(&client))))
    }

    pub(super) async fn rotate_client(
        &self,
        principal: &Principal,
        request: &Request<'_>,
    ) -> Result<Response, ApiError> {
        let wanted: Rotate = read(request.body)?;
        let keep_s = wanted.keep_s.unwrap_or(0);
        if keep_s > KEEP_S_MAX {
            let message = format!("keep_s is {keep_s}; the earlier secret may hold for {KEEP_S_MAX} s at most.");
            return Err(ApiError::invalid_param("keep_s", message));
        }
        let (_, secret) = identity::make_credentials().ok_or_else(no_random)?;
        let hash = self.hashed(secret.clone()).await?;
        // Looked up after the wait: a rotation meanwhile must not come back.
        let mut client = self.governed_client(principal, &wanted.id)?;
        let earlier = std::mem::replace(&mut client.secret, hash);
        client.previous = (keep_s > 0).then(|| (earlier, identity::now_s() + keep_s));
        self.commit(identity::client_batch(&client)).await?;
        tracing::info!(by = %principal.key_label, id = %client.id, keep_s, "a client's secret was rotated");
        let mut object = client_object(&client);
        self.shared.authority.put_client(client);
        object["client_secret"] = Value::from(secret);
        Ok(Response::json(200, to_json(&object)).header("cache-control", "no-store"))
    }

    pub(super) fn list_signing_keys(&self, principal: &Principal) -> Result<Response, ApiError> {
        governs_node(principal)?;
        Ok(self.signing_keys())
    }

    pub(super) async fn rotate_signing_key(
        &self,
        principal: &Principal,
        request: &Request<'_>,
    ) -> Result<Response, ApiError> {
        governs_node(principal)?;
        let wanted: NewSigningKey =
            if request.body.is_empty() { NewSigningKey { algorithm: None } } else { read(request.body)? };
        let signing = self.shared.authority.signing();
        let algorithm = match wanted.algorithm.as_deref() {
            None => signing.current().algorithm(),
            Some(name) => {
                Algorithm::parse(name).filter(|algorithm| *algorithm != Algorithm::Rs256).ok_or_else(|| {
                    let message = format!("algorithm is {name:?}; it must be \"EdDSA\" or \"ES256\".");
                    ApiError::invalid_param("algorithm", message)
                })?
            }
        };
        let next = signing.rotate(algorithm, identity::now_s()).map_err(|_| no_random())?;
        self.commit(identity::signing_batch(&next)).await?;
        tracing::info!(by = %principal.key_label, kid = next.current().kid(), "tokens are signed with a new key");
        self.shared.authority.put_signing(next);
        Ok(self.signing_keys())
    }

    /// Reads the configuration again, on a thread of its own: files are read.
    pub(super) async fn reload(&self, principal: &Principal) -> Result<Response, ApiError> {
        governs_node(principal)?;
        let (told, heard) = oneshot::channel();
        let shared = self.shared.clone();
        let work = move || {
            let _ = told.send(shared.reloader.reload(&shared));
        };
        std::thread::Builder::new().name("reload".into()).spawn(work).map_err(|error| {
            tracing::error!(%error, "a thread cannot be started");
            ApiError::overloaded("The configuration cannot be read now.", 1)
        })?;
        match heard.await {
            Ok(Ok(report)) => {
                tracing::info!(by = %principal.key_label, ?report, "the configuration was read again");
                Ok(Response::json(200, to_json(&report)))
            }
            Ok(Err(trouble)) => Err(ApiError::bad_request("invalid_configuration", trouble.to_string())
                .with_next_step("Correct the configuration; everything stays as it was.")),
            Err(_) => Err(ApiError::internal("The configuration could not be read.")),
        }
    }

    fn signing_keys(&self) -> Response {
        let data = self.shared.authority.signing().facts();
        Response::json(200, to_json(&json!({"object": "list", "data": data})))
    }

    fn governed_client(&self, principal: &Principal, id: &str) -> Result<Client, ApiError> {
        let client = self.shared.authority.client(id);
        // A client of another tenant does not exist for this admin.
        let client = client.filter(|client| scope_of(principal).is_none_or(|tenant| tenant.0 == client.tenant));
        client.map(|client| (*client).clone()).ok_or_else(|| {
            ApiError::not_found(format!("There is no client with the id {id:?}."))
                .with_param("id")
                .with_next_step("GET /v1/admin/clients lists the ids.")
        })
    }

    /// The slow hash of a new secret, made off the reactor.
    async fn hashed(&self, secret: String) -> Result<SecretHash, ApiError> {
        let (told, heard) = oneshot::channel();
        let done = move |hash| {
            let _ = told.send(hash);
        };
        let busy = |_| ApiError::overloaded("Too many client secrets are being checked at once.", 1);
        self.shared.authority.secrets().make(secret, done).map_err(busy)?;
        match heard.await {
            Ok(Some(hash)) => Ok(hash),
            Ok(None) => Err(no_random()),
            Err(_) => Err(ApiError::overloaded("The node is stopping.", 1)),
        }
    }
}

fn governs_node(principal: &Principal) -> Result<(), ApiError> {
    if scope_of(principal).is_none() {
        return Ok(());
    }
    Err(ApiError::forbidden("The keys that sign tokens belong to the whole node.")
        .with_next_step("Use an admin key of the default tenant."))
}

fn no_random() -> ApiError {
    ApiError::internal("The system's random numbers are not available.")
}

fn client_object(client: &Client) -> Value {
    json!({
        "client_id": client.id,
        "tenant": client.tenant,
        "user": client.user,
        "label": client.label,
        "scopes": scope_names(client.scopes),
        "token": client.kind.as_str(),
        "lifetime_s": client.lifetime_s,
        "created_ms": client.created_ms,
        "earlier_secret_until_s": client.previous.as_ref().map(|(_, until_s)| until_s),
    })
}
