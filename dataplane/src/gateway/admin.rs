//! `/v1/admin`: keys, the outbox and the state of the node.

use std::ops::ControlFlow;

use millrace_proto::api::ApiError;
use millrace_proto::digest::hex;
use millrace_proto::id::{EffectKey, TenantId};
use millrace_proto::limits::NAME_BYTES_MAX;
use millrace_proto::record::{
    Credential, DeliveryState, OutboxJob, SCOPE_CHAT, grantable, role_names, role_scopes, scope_bit, scope_names,
};
use millrace_storage::{Batch, CommitError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::{KeyHash, make_key};
use super::sessions::whole;
use super::{Gateway, Principal, json as to_json, unix_ms};
use crate::net::{Request, Response};

/// Hex digits of a key's hash that name it. 64 bits: nobody holds enough keys to collide.
const KEY_ID_DIGITS: usize = 16;

/// Rows of one outbox page when the request names no number, and at most.
const OUTBOX_PAGE: (u64, u64) = (100, 1_000);

/// Bytes of a message that an outbox list shows.
const OUTBOX_TEXT_BYTES: usize = 200;

/// Outbox rows that the status counts.
const OUTBOX_COUNT_MAX: usize = 10_000;

/// Waiting messages that the status counts: beyond it their number only says "very many".
const INBOX_COUNT_MAX: usize = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKey {
    label: String,
    user: Option<String>,
    tenant: Option<u32>,
    scopes: Option<Vec<String>>,
    role: Option<String>,
}

#[derive(Deserialize)]
struct OutboxAct {
    id: String,
    action: String,
}

impl Gateway {
    pub(super) fn list_keys(&self, principal: &Principal) -> Result<Response, ApiError> {
        let data: Vec<Value> =
            self.keys_of(principal)?.iter().map(|(hash, credential)| key_object(hash, credential)).collect();
        Ok(Response::json(200, to_json(&json!({"object": "list", "data": data}))))
    }

    pub(super) async fn create_key(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let wanted: NewKey = read(request.body)?;
        let user_name = wanted.user.unwrap_or_else(|| principal.user_name.clone());
        check_name("label", &wanted.label)?;
        check_name("user", &user_name)?;
        let tenant = wanted.tenant.map_or(principal.tenant, TenantId);
        governs(principal, tenant)?;
        let scopes = wanted_scopes(principal, wanted.scopes.as_deref(), wanted.role.as_deref())?;
        let (key, hash) = make_key()?;
        let credential =
            Credential { tenant, user_name, label: wanted.label, scopes, created_ms: unix_ms(), revoked: false };
        let mut batch = Batch::new();
        batch.put_credential(hash, &credential);
        self.commit(batch).await?;
        self.shared.gateway.keys_changed();
        tracing::info!(by = %principal.key_label, id = %key_id(&hash), label = %credential.label, "a key was made");
        let mut object = key_object(&hash, &credential);
        object["key"] = Value::from(key);
        Ok(Response::json(201, to_json(&object)).header("cache-control", "no-store"))
    }

    pub(super) async fn revoke_key(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let Some(id) = request.head.query_param("id") else {
            return Err(ApiError::bad_request("missing_parameter", "The parameter id is missing: the id of the key.")
                .with_param("id")
                .with_next_step("GET /v1/admin/keys lists the ids."));
        };
        let found = self.keys_of(principal)?.into_iter().find(|(hash, _)| key_id(hash) == id);
        let Some((hash, mut credential)) = found else {
            return Err(ApiError::not_found(format!("There is no key with the id {id:?}."))
                .with_param("id")
                .with_next_step("GET /v1/admin/keys lists the ids."));
        };
        if !credential.revoked {
            credential.revoked = true;
            let mut batch = Batch::new();
            batch.put_credential(hash, &credential);
            self.commit(batch).await?;
        }
        // Durable first, then forgotten by every shard: from here on the key opens nothing.
        self.shared.gateway.keys_changed();
        tracing::info!(by = %principal.key_label, %id, label = %credential.label, "a key was revoked");
        Ok(Response::json(200, to_json(&key_object(&hash, &credential))))
    }

    pub(super) fn list_outbox(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let state = match request.head.query_param("state") {
            None => None,
            Some(name) => Some(DeliveryState::parse(&name).ok_or_else(|| {
                ApiError::invalid_param(
                    "state",
                    format!("state is {name:?}; it must be one of pending, sending, unknown, dead."),
                )
            })?),
        };
        let limit = whole(request.head, "limit", OUTBOX_PAGE.0, 1, OUTBOX_PAGE.1)?;
        let jobs = self
            .shared
            .store
            .outbox_list(scope_of(principal), state, limit as usize)
            .map_err(|error| unreadable(&error))?;
        let data: Vec<Value> = jobs.iter().map(job_object).collect();
        Ok(Response::json(200, to_json(&json!({"object": "list", "data": data}))))
    }

    pub(super) async fn act_on_outbox(
        &self,
        principal: &Principal,
        request: &Request<'_>,
    ) -> Result<Response, ApiError> {
        let act: OutboxAct = read(request.body)?;
        let Some(key) = EffectKey::parse(&act.id) else {
            return Err(ApiError::invalid_param("id", format!("{:?} is not an id of the outbox.", act.id))
                .with_next_step("GET /v1/admin/outbox lists the ids."));
        };
        // The id alone does not name the tenant: the list does, within what the caller governs.
        let job = self
            .shared
            .store
            .outbox_list(scope_of(principal), None, usize::MAX)
            .map_err(|error| unreadable(&error))?
            .into_iter()
            .find(|job| job.key == key);
        let Some(job) = job else {
            return Err(ApiError::not_found(
                "There is no such job in the outbox; it may have been delivered meanwhile.",
            ));
        };
        if matches!(job.state, DeliveryState::Pending | DeliveryState::Sending) {
            return Err(ApiError::new(
                409,
                "invalid_request_error",
                "job_in_progress",
                "The job is still being delivered; only a dead or unknown one can be acted on.",
            ));
        }
        match act.action.as_str() {
            "resubmit" => {
                self.bridge.resubmit(job.tenant, job.key).await?;
                tracing::info!(by = %principal.key_label, id = %act.id, "an outbox job was resubmitted");
                Ok(Response::json(200, to_json(&json!({"id": act.id, "state": "pending"}))))
            }
            "drop" => {
                let mut batch = Batch::new();
                batch.remove_outbox(job.tenant, &job.key);
                self.commit(batch).await?;
                tracing::info!(by = %principal.key_label, id = %act.id, "an outbox job was dropped");
                Ok(Response::json(200, to_json(&json!({"id": act.id, "state": "dropped"}))))
            }
            other => Err(ApiError::invalid_param(
                "action",
                format!("action is {other:?}; it must be \"resubmit\" or \"drop\"."),
            )),
        }
    }

    pub(super) fn status(&self, principal: &Principal) -> Result<Response, ApiError> {
        let jobs = self
            .shared
            .store
            .outbox_list(scope_of(principal), None, OUTBOX_COUNT_MAX)
            .map_err(|error| unreadable(&error))?;
        let (own, mut looked_at, mut inbox_open) = (scope_of(principal), 0_usize, 0_usize);
        let counted = self.shared.store.inbox_places(&mut |tenant, _, _| {
            looked_at += 1;
            inbox_open += usize::from(own.is_none_or(|own| own == tenant));
            if looked_at < INBOX_COUNT_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        counted.map_err(|error| unreadable(&error))?;
        let count = |state: DeliveryState| jobs.iter().filter(|job| job.state == state).count();
        let metrics = &self.shared.metrics;
        let engine = metrics.engine().unwrap_or_default();
        let storage = metrics.storage().unwrap_or_default();
        let sealing = self.shared.store.stats();
        let health = &self.shared.health;
        let body = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.model_name(),
            "embedding_model": self.bridge.embedding_model(),
            "ready": health.is_ready(),
            "draining": health.is_draining(),
            "reason": health.reason(),
            "uptime_s": metrics.uptime().as_secs(),
            "shards": self.shared.shard_count(),
            "connections_open": metrics.connections_open(),
            "engine": {
                "running": engine.running,
                "waiting": engine.waiting,
                "kv_usage": engine.kv_usage,
                "prompt_tokens": engine.prompt_tokens,
                "generation_tokens": engine.generation_tokens,
                "refused": engine.refused,
            },
            "storage": {
                "commits": storage.commits,
                "groups": storage.groups,
                "failures": storage.failures,
                "waiting": storage.waiting,
                "users_forgotten": sealing.users_forgotten,
                "rows_resealed": sealing.rows_resealed,
                "rotations_running": sealing.rotations_running,
            },
            "inbox": {"open": inbox_open},
            "outbox": {
                "delivered": metrics.delivered_total(),
                "pending": count(DeliveryState::Pending),
                "sending": count(DeliveryState::Sending),
                "unknown": count(DeliveryState::Unknown),
                "dead": count(DeliveryState::Dead),
            },
            "channels": self.shared.live.now().accounts()
                .filter(|account| scope_of(principal).is_none_or(|tenant| tenant == account.tenant))
                .map(|account| json!({"channel": account.kind.as_str(), "account": account.name}))
                .collect::<Vec<_>>(),
        });
        Ok(Response::json(200, to_json(&body)))
    }

    fn keys_of(&self, principal: &Principal) -> Result<Vec<(KeyHash, Credential)>, ApiError> {
        let mut keys = self.shared.store.credentials().map_err(|error| unreadable(&error))?;
        if let Some(tenant) = scope_of(principal) {
            keys.retain(|(_, credential)| credential.tenant == tenant);
        }
        keys.sort_by_key(|(_, credential)| credential.created_ms);
        Ok(keys)
    }

    /// Waits on the shard, without blocking it, until the batch is durable.
    pub(super) async fn commit(&self, batch: Batch) -> Result<(), ApiError> {
        let (told, outcome) = tokio::sync::oneshot::channel();
        self.shared
            .store
            .submit(
                batch,
                Box::new(move |result| {
                    // The caller may have left; the batch is durable all the same.
                    let _ = told.send(result);
                }),
            )
            .map_err(|busy| ApiError::overloaded(format!("The store is busy: {busy}."), 1))?;
        match outcome.await {
            Ok(Ok(_seq)) => Ok(()),
            Ok(Err(error)) => Err(uncommitted(&error)),
            Err(_) => Err(ApiError::overloaded("The store is shutting down.", 1)),
        }
    }
}

/// The default tenant administers the node; the admin of another tenant only its own.
pub(super) fn scope_of(principal: &Principal) -> Option<TenantId> {
    (principal.tenant != TenantId::DEFAULT).then_some(principal.tenant)
}

pub(super) fn governs(principal: &Principal, tenant: TenantId) -> Result<(), ApiError> {
    if scope_of(principal).is_none_or(|own| own == tenant) {
        return Ok(());
    }
    Err(ApiError::forbidden(format!("The key {:?} administers its own tenant only.", principal.key_label))
        .with_param("tenant")
        .with_next_step("Leave the parameter out, or use an admin key of the default tenant."))
}

/// A name that somebody gives to something.
pub(super) fn check_name(param: &str, text: &str) -> Result<(), ApiError> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
        let bytes = text.len();
        let message =
            format!("{param} has {bytes} bytes; it must have 1 to {NAME_BYTES_MAX} and no control characters.");
        return Err(ApiError::invalid_param(param, message));
    }
    Ok(())
}

/// The scopes of a new key or client: those named, or those of a role, or those of a user; never more than its
/// maker has.
pub(super) fn wanted_scopes(
    principal: &Principal,
    scopes: Option<&[String]>,
    role: Option<&str>,
) -> Result<u32, ApiError> {
    let wanted = match (scopes, role) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid_param("role", "scopes and role exclude each other: name one of them."));
        }
        (Some(names), None) => scopes_of(names)?,
        (None, None) => SCOPE_CHAT,
        (None, Some(role)) => role_scopes(role).ok_or_else(|| {
            let known = role_names().collect::<Vec<_>>().join(", ");
            ApiError::invalid_param("role", format!("role is {role:?}; known are {known}."))
        })?,
    };
    let beyond = wanted & !grantable(principal.scopes);
    if beyond != 0 {
        let beyond = scope_names(beyond).join(", ");
        let message = format!("The key {:?} cannot give what it does not have: {beyond}.", principal.key_label);
        return Err(ApiError::forbidden(message).with_param("scopes"));
    }
    Ok(wanted)
}

fn scopes_of(names: &[String]) -> Result<u32, ApiError> {
    let mut scopes = 0;
    for name in names {
        let Some(bit) = scope_bit(name) else {
            return Err(ApiError::invalid_param(
                "scopes",
                format!("{name:?} is not a scope; known are {}.", scope_names(u32::MAX).join(", ")),
            ));
        };
        scopes |= bit;
    }
    if scopes == 0 {
        return Err(ApiError::invalid_param("scopes", "scopes is empty; such a key could do nothing."));
    }
    Ok(scopes)
}

fn key_id(hash: &KeyHash) -> String {
    let mut id = hex(hash);
    id.truncate(KEY_ID_DIGITS);
    id
}

fn key_object(hash: &KeyHash, credential: &Credential) -> Value {
    json!({
        "id": key_id(hash),
        "tenant": credential.tenant.0,
        "user": credential.user_name,
        "label": credential.label,
        "scopes": scope_names(credential.scopes),
        "created_ms": credential.created_ms,
        "revoked": credential.revoked,
    })
}

fn job_object(job: &OutboxJob) -> Value {
    let end = job.text.floor_char_boundary(OUTBOX_TEXT_BYTES);
    json!({
        "id": job.key.to_string(),
        "tenant": job.tenant.0,
        "channel": job.address.channel,
        "account": job.address.account,
        "chat": job.address.chat,
        "text": &job.text[..end],
        "created_ms": job.created_ms,
        "due_ms": job.due_ms,
        "expires_ms": job.expires_ms,
        "attempt": job.attempt,
        "state": job.state.as_str(),
        "detail": job.detail,
    })
}

pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request("invalid_json", format!("The body cannot be read: {error}.")))
}

pub(super) fn unreadable(error: &millrace_storage::ReadError) -> ApiError {
    tracing::error!(%error, "the store could not be read");
    ApiError::overloaded("The store does not answer.", 1)
}

pub(super) fn uncommitted(error: &CommitError) -> ApiError {
    tracing::error!(%error, "a change was not stored");
    match error {
        CommitError::NoSpace { .. } => {
            ApiError::new(507, "server_error", "no_space", "The node's data volume is full; nothing was changed.")
                .with_next_step("Free space on the volume, then try again.")
        }
        CommitError::Invalid { why } => ApiError::bad_request("invalid_value", format!("It cannot be stored: {why}.")),
        CommitError::Forgotten => {
            ApiError::bad_request("user_forgotten", "The user was forgotten; nothing was changed.")
        }
        CommitError::Io { .. } | CommitError::Closed => ApiError::overloaded("The change could not be stored.", 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::id::UserId;

    fn admin(tenant: u32) -> Principal {
        let tenant = TenantId(tenant);
        Principal {
            tenant,
            user: UserId::of(tenant, "root"),
            user_name: "root".into(),
            scopes: u32::MAX,
            key_label: "root".into(),
            subject: [0; 32],
        }
    }

    #[test]
    fn nobody_gives_more_than_he_has() {
        use proptest::prelude::*;
        proptest!(|(own in 0u32..64, wanted in 0u32..64)| {
            let maker = Principal { scopes: own, ..admin(1) };
            let names: Vec<String> = scope_names(wanted).into_iter().map(str::to_owned).collect();
            match wanted_scopes(&maker, Some(&names), None) {
                Ok(given) => prop_assert!(given == wanted && given & !grantable(own) == 0),
                Err(error) => {
                    let expected = if wanted == 0 { 400 } else { 403 };
                    prop_assert_eq!(error.status, expected);
                }
            }
            // What was given gives no more than that in turn.
            prop_assert_eq!(grantable(grantable(own)), grantable(own));
        });
        for (role, ok) in [("user", true), ("operator", true), ("admin", true), ("root", false)] {
            assert_eq!(wanted_scopes(&admin(1), None, Some(role)).is_ok(), ok, "{role}");
        }
        assert_eq!(wanted_scopes(&admin(1), Some(&["chat".into()]), Some("user")).expect_err("both").status, 400);
    }

    #[test]
    fn an_admin_of_a_tenant_governs_that_tenant_only() {
        governs(&admin(1), TenantId(9)).expect("the default tenant administers the node");
        governs(&admin(9), TenantId(9)).expect("its own");
        assert_eq!(governs(&admin(9), TenantId(1)).expect_err("another").status, 403);
        assert_eq!(scope_of(&admin(9)), Some(TenantId(9)));
    }

    #[test]
    fn scopes_are_named_and_unknown_ones_list_the_known() {
        assert_eq!(scopes_of(&["chat".into()]).expect("known"), SCOPE_CHAT);
        let error = scopes_of(&["root".into()]).expect_err("unknown");
        assert!(error.message.contains("admin"), "{error}");
        assert_eq!(scopes_of(&[]).expect_err("nothing").status, 400);
    }
}
