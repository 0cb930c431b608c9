//! `/v1/admin/forget` and `/v1/admin/rotate`: users who are forgotten, and keys that are renewed.

use millrace_proto::api::ApiError;
use millrace_proto::id::{TenantId, UserId};
use millrace_proto::limits::NAME_BYTES_MAX;
use millrace_storage::{ArchiveError, Batch, CommitError, RotateError, RotationDone, Suite};
use serde::Deserialize;
use serde_json::json;

use super::admin::{governs, read, scope_of, uncommitted};
use super::{Gateway, Principal, json as to_json};
use crate::net::{Request, Response};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Forget {
    user: String,
    tenant: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    keys: String,
    tenant: Option<u32>,
    suite: Option<String>,
}

impl Gateway {
    /// Answers when nothing of the user can be read any more.
    pub(super) async fn forget_user(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let wanted: Forget = read(request.body)?;
        if wanted.user.is_empty() || wanted.user.len() > NAME_BYTES_MAX {
            let message = format!("user has {} bytes; a name has 1 to {NAME_BYTES_MAX}.", wanted.user.len());
            return Err(ApiError::invalid_param("user", message));
        }
        let tenant = wanted.tenant.map_or(principal.tenant, TenantId);
        governs(principal, tenant)?;
        let user = UserId::of(tenant, &wanted.user);
        // Before, so that no batch is made of what is in memory; and after, for what was loaded meanwhile.
        self.drop_from_memory(tenant, user);
        // The note that copies in backups are to be overwritten comes first, so that no crash forgets it.
        let mut batch = Batch::new();
        let (note, backups) = self.shared.backups.forgetting(&mut batch).map_err(|error| unnoted(&error))?;
        self.commit(batch).await?;
        let (told, outcome) = tokio::sync::oneshot::channel();
        // The caller may have left; the user is forgotten all the same.
        let done = Box::new(move |result| drop(told.send(result)));
        let result = match self.shared.store.forget_user(tenant, user, done) {
            Ok(()) => Ok(outcome.await.unwrap_or(Err(CommitError::Closed))),
            Err(busy) => Err(ApiError::overloaded(format!("The store is busy: {busy}."), 1)),
        };
        // Also after a failure, which may have come when the rows were gone already.
        self.drop_from_memory(tenant, user);
        self.shared.backups.forgotten(note);
        result?.map_err(|error| uncommitted(&error))?;
        // The audit line names the user by the id that rows carry: the log must not remember whom it should not.
        tracing::info!(
            audit = "forget",
            by = %principal.key_label,
            tenant = tenant.0,
            user = %millrace_proto::digest::hex(&user.0),
            "a user was forgotten: rows are removed and keys erased"
        );
        let body = json!({"user": wanted.user, "tenant": tenant.0, "forgotten": true, "backup_places": backups});
        Ok(Response::json(200, to_json(&body)))
    }

    fn drop_from_memory(&self, tenant: TenantId, user: UserId) {
        self.bridge.forgotten(tenant, user);
        let common = &self.shared.gateway;
        common.completions.forget(tenant, user);
        common.later.forget(tenant, user);
        common.turns.forget(tenant, user);
    }

    /// Answers when the new keys are in use; older rows are brought to them in the background.
    pub(super) async fn rotate(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let wanted: Rotate = read(request.body)?;
        let (told, outcome) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(told.send(result)));
        let store = &self.shared.store;
        let started = match wanted.keys.as_str() {
            "master" => {
                if wanted.tenant.is_some() || wanted.suite.is_some() {
                    let message = "The master key belongs to no tenant and has no suite: leave tenant and suite out.";
                    return Err(ApiError::invalid_param("keys", message));
                }
                if scope_of(principal).is_some() {
                    return Err(ApiError::forbidden("Only an admin of the default tenant rotates the master key."));
                }
                store.rotate_master_key(done)
            }
            "data" => {
                let tenant = wanted.tenant.map_or(principal.tenant, TenantId);
                governs(principal, tenant)?;
                store.rotate_keys(tenant, wanted.suite.as_deref().map(suite).transpose()?, done)
            }
            other => {
                let message = format!("keys is {other:?}; it must be \"master\" or \"data\".");
                return Err(ApiError::invalid_param("keys", message));
            }
        };
        let result = match started {
            Ok(()) => outcome.await.unwrap_or(Err(RotateError::Write(CommitError::Closed))),
            Err(error) => Err(error),
        };
        let RotationDone { keys } = result.map_err(refused)?;
        tracing::info!(audit = "rotate", by = %principal.key_label, what = %wanted.keys, keys, "keys were rotated");
        Ok(Response::json(200, to_json(&json!({"keys": wanted.keys, "renewed": keys}))))
    }
}

fn unnoted(error: &ArchiveError) -> ApiError {
    let cause = crate::backup::chain(error);
    tracing::error!(cause, "a user was not forgotten: the copies of keys in backups cannot be looked up");
    ApiError::overloaded(format!("The copies of keys in backups cannot be looked up: {cause}."), 1)
}

fn suite(name: &str) -> Result<Suite, ApiError> {
    Suite::parse(name)
        .ok_or_else(|| ApiError::invalid_param("suite", format!("suite is {name:?}; it must be \"intl\" or \"gm\".")))
}

fn refused(error: RotateError) -> ApiError {
    match error {
        RotateError::Running => ApiError::new(409, "invalid_request_error", "rotation_running", format!("{error}.")),
        RotateError::Source(why) => ApiError::bad_request("key_source", format!("{why}.")),
        RotateError::Write(error) => uncommitted(&error),
        other => {
            let cause = std::error::Error::source(&other).map_or(String::new(), |cause| format!(": {cause}"));
            tracing::error!(error = %other, %cause, "keys were not rotated");
            ApiError::overloaded(format!("{other}{cause}."), 1)
        }
    }
}
