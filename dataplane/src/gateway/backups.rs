//! `/v1/admin/backups`: making a backup now, and how the backups are.

use millrace_proto::api::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::{read, scope_of};
use super::{Gateway, Principal, json as to_json};
use crate::backup::place::Place;
use crate::backup::{Ended, Made, Outcome, Refused};
use crate::net::{Request, Response};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    to: Option<String>,
    keep: Option<usize>,
}

impl Gateway {
    /// Begins a backup; `GET` says how it ended.
    pub(super) fn make_backup(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        of_the_node(principal)?;
        let wanted: Wanted = read(request.body)?;
        let place = wanted.to.as_deref().map(|text| Place::parse(text, false)).transpose();
        let place = place.map_err(|why| ApiError::invalid_param("to", format!("to cannot be used: {why}.")))?;
        let run = self.shared.backups.submit(place.clone(), wanted.keep).map_err(|refused| match refused {
            Refused::Full | Refused::Closed => ApiError::overloaded(format!("No backup is begun: {refused}."), 5),
            Refused::NoPlace | Refused::NoRule => {
                ApiError::bad_request("missing_parameter", format!("No backup is begun: {refused}."))
                    .with_param("to")
                    .with_next_step("Name a place, or set backup.target.")
            }
        })?;
        let place = place.map_or("as configured".to_owned(), |place| place.url());
        tracing::info!(audit = "backup", by = %principal.key_label, place, run, "a backup was asked for");
        Ok(Response::json(202, to_json(&json!({"run": run.to_string()}))))
    }

    pub(super) fn list_backups(&self, principal: &Principal) -> Result<Response, ApiError> {
        of_the_node(principal)?;
        let status = self.shared.backups.status();
        let running = status.running.map(
            |(place, since_ms, bytes)| json!({"place": place, "since_ms": since_ms, "bytes_read_and_written": bytes}),
        );
        let body = json!({
            "running": running,
            "last": status.last.as_ref().map(made_object),
            "next_ms": status.next_ms,
            "runs": status.outcomes.iter().map(outcome_object).collect::<Vec<Value>>(),
            "keys_waiting": status.keys_waiting,
            "keys_error": status.keys_error,
        });
        Ok(Response::json(200, to_json(&body)))
    }
}

/// A backup holds all tenants.
pub(super) fn of_the_node(principal: &Principal) -> Result<(), ApiError> {
    match scope_of(principal) {
        None => Ok(()),
        Some(_) => Err(ApiError::forbidden("Only an admin of the default tenant makes backups.")),
    }
}

fn made_object(made: &Made) -> Value {
    json!({
        "id": made.id,
        "place": made.place,
        "at_ms": made.at_ms,
        "took_ms": made.took_ms,
        "bytes": made.bytes,
        "bytes_sent": made.bytes_sent,
        "removed": made.removed,
    })
}

fn outcome_object(outcome: &Outcome) -> Value {
    let run = outcome.run.to_string();
    match &outcome.result {
        Ok(Ended::Backup(made)) => json!({"run": run, "made": made_object(made)}),
        Ok(Ended::Archive(done)) => json!({"run": run, "archived": {
            "messages": done.messages,
            "conversations": done.conversations,
            "bytes_sent": done.bytes_sent,
            "objects_removed": done.objects_removed,
        }}),
        Err(why) => json!({"run": run, "error": why}),
    }
}
