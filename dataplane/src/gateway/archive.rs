//! `/v1/admin/archive`: messages that have left the store.

use millrace_proto::api::ApiError;
use millrace_proto::date::rfc3339;
use millrace_proto::digest::{hex, unhex};
use millrace_proto::id::{ConversationId, TenantId};
use millrace_storage::{ArchiveFilter, Archived};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::{governs, read, scope_of, unreadable};
use super::backups::of_the_node;
use super::sessions::whole;
use super::{Gateway, Principal, json as to_json};
use crate::backup::Refused;
use crate::net::{Request, Response};

/// Conversations of one page when the request names no number, and at most.
const PAGE: (u64, u64) = (100, 1_000);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Act {
    action: String,
    conversation: Option<String>,
    tenant: Option<u32>,
}

impl Gateway {
    /// Conversations with archived messages of a time, the newest first.
    pub(super) fn list_archived(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let limit = whole(request.head, "limit", PAGE.0, 1, PAGE.1)? as usize;
        let filter = ArchiveFilter {
            tenant: scope_of(principal),
            from_ms: whole(request.head, "from_ms", 0, 0, u64::MAX)?,
            to_ms: whole(request.head, "to_ms", u64::MAX, 0, u64::MAX)?,
        };
        let store = &self.shared.store;
        let mut found = store.archived(&filter, limit + 1).map_err(|error| unreadable(&error))?;
        let has_more = found.len() > limit;
        found.truncate(limit);
        let data: Vec<Value> = found.iter().map(|about| self.archived_object(about)).collect();
        Ok(Response::json(200, to_json(&json!({"object": "list", "data": data, "has_more": has_more}))))
    }

    /// Moves old messages now, or brings those of a conversation back.
    pub(super) async fn act_on_archive(
        &self,
        principal: &Principal,
        request: &Request<'_>,
    ) -> Result<Response, ApiError> {
        let act: Act = read(request.body)?;
        match (act.action.as_str(), act.conversation) {
            ("run", None) => self.archive_now(principal),
            ("restore", Some(conversation)) => {
                let tenant = act.tenant.map_or(principal.tenant, TenantId);
                governs(principal, tenant)?;
                self.bring_back(principal, tenant, &conversation).await
            }
            ("restore", None) => Err(ApiError::invalid_param("conversation", "conversation is missing: its id.")
                .with_next_step("GET /v1/admin/archive lists the ids.")),
            (other, _) => Err(ApiError::invalid_param(
                "action",
                format!("action is {other:?}; it must be \"run\", or \"restore\" with a conversation."),
            )),
        }
    }

    fn archive_now(&self, principal: &Principal) -> Result<Response, ApiError> {
        of_the_node(principal)?;
        let run = self.shared.backups.submit_archive().map_err(|refused| match refused {
            Refused::Full | Refused::Closed => ApiError::overloaded(format!("Nothing is archived: {refused}."), 5),
            Refused::NoRule | Refused::NoPlace => {
                ApiError::bad_request("not_configured", format!("Nothing is archived: {refused}."))
                    .with_next_step("Set backup.target and archive.idle_days, and restart the node.")
            }
        })?;
        tracing::info!(audit = "archive", by = %principal.key_label, run, "an archive run was asked for");
        Ok(Response::json(202, to_json(&json!({"run": run.to_string()}))))
    }

    async fn bring_back(
        &self,
        principal: &Principal,
        tenant: TenantId,
        conversation: &str,
    ) -> Result<Response, ApiError> {
        let id = unhex(conversation).and_then(|bytes| bytes.try_into().ok()).map(ConversationId).ok_or_else(|| {
            ApiError::invalid_param("conversation", format!("{conversation:?} is not the id of a conversation."))
                .with_next_step("GET /v1/admin/archive lists the ids.")
        })?;
        let (told, outcome) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(told.send(result)));
        let reading = self.shared.backups.reading();
        reading.bring_back(tenant, id, done).map_err(|busy| ApiError::overloaded(format!("{busy}."), 1))?;
        let messages = match outcome.await {
            Ok(Ok(messages)) => messages,
            Ok(Err(why)) => {
                tracing::error!(why, "archived messages were not brought back");
                return Err(ApiError::overloaded(format!("The messages were not brought back: {why}."), 10));
            }
            Err(_) => return Err(ApiError::overloaded("The server is shutting down.", 1)),
        };
        tracing::info!(audit = "archive", by = %principal.key_label, conversation, messages, "messages were brought back");
        Ok(Response::json(200, to_json(&json!({"conversation": conversation, "messages": messages}))))
    }

    fn archived_object(&self, about: &Archived) -> Value {
        // A head that cannot be read leaves the name out; the listing goes on.
        let head = self.shared.store.session(about.tenant, about.conversation).ok().flatten();
        json!({
            "conversation": hex(&about.conversation.0),
            "tenant": about.tenant.0,
            "session": head.map(|head| head.name),
            "messages": about.messages,
            "from_ms": about.first_ms,
            "to_ms": about.last_ms,
            "from": rfc3339(about.first_ms),
            "to": rfc3339(about.last_ms),
        })
    }
}
