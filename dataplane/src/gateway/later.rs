//! Replies that are made later: the last rung before a refusal, for clients that accept it (`Prefer: respond-async`,
//! RFC 7240). They get 202 with the address where the whole answer will be; it is kept in memory for a while.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use millrace_proto::api::ApiError;
use millrace_proto::http1::RequestHead;
use serde_json::json;

use super::generate::{Begun, Collected, Headers, ended_early};
use super::resume::{Bounds, Follower, Kept, Progress, spawn_for};
use super::shape::Style;
use super::{Common, Gateway, Principal, json as to_json};
use crate::bridge::Patience;
use crate::net::{Outgoing, Response};

/// When a client should look again.
const POLL_PAUSE_S: u32 = 1;

/// A whole answer: its status and body.
pub type Whole = (u16, Vec<u8>);

impl Gateway {
    /// What the client accepts instead of its answer in time.
    pub(super) fn patience(&self, head: &RequestHead) -> Patience {
        let patience = preferences(head);
        // What is promised while another image takes over would be lost with this one.
        let may_be_later = self.shared.config.limits.async_replies_max > 0 && !self.net.draining.get();
        Patience { later: patience.later && may_be_later, ..patience }
    }

    /// Lets answers be made and tells where they will be.
    pub(super) fn answer_later(&self, principal: &Principal, begun: Begun, extra: Headers, out: &mut Outgoing) {
        let common = &self.shared.gateway;
        let limits = &self.shared.config.limits;
        let bounds = Bounds { events_max: 1, replies_max: limits.async_replies_max, grace: limits.async_deadline };
        let name = begun.shape.id().to_owned();
        let place = match begun.shape.style() {
            Style::Chat => format!("/v1/chat/completions/{name}"),
            Style::Text => format!("/v1/completions/{name}"),
        };
        let kept = common.later.open(&begun.owner(principal), &name, &bounds, common.now_ms());
        let request_id = out.request_id().to_owned();
        let work = make(Arc::clone(&kept), begun, request_id, Arc::clone(common));
        spawn_for(&kept, work, || failure(&ended_early()));
        let mut response = pending(&name);
        response.headers.extend(extra);
        out.respond(response.header("location", place).header("preference-applied", "respond-async"));
    }

    /// `GET` of an answer that is made later; `None` = there is none of this name.
    pub(super) fn later_answer(&self, principal: &Principal, name: &str) -> Option<Response> {
        let common = &self.shared.gateway;
        let follower = common.later.follow(principal, name, 0, common)?.ok()?;
        let mut whole = None;
        let progress =
            follower.read(1, |_, (status, body): &Whole| whole = Some(Response::json(*status, body.clone())));
        match progress {
            Progress::Events => whole,
            // Replaced: two ask at once, and this one had better ask again.
            Progress::Wait | Progress::Replaced => Some(pending(name)),
            Progress::Over => None,
        }
    }
}

fn pending(name: &str) -> Response {
    let body = to_json(&json!({"id": name, "object": "completion.pending", "status": "in_progress"}));
    Response::json(202, body).header("retry-after", POLL_PAUSE_S.to_string())
}

fn failure(error: &ApiError) -> Whole {
    (error.status, error.to_json())
}

/// Collects an answer, for as long as it may be asked for.
async fn make(kept: Arc<Kept<Whole>>, begun: Begun, request_id: String, common: Arc<Common>) {
    let mut collected = Collected::new(begun);
    let answer =
        poll_fn(|context| kept.poll_while_wanted(context, |context| collected.poll_whole(context, &request_id)));
    match answer.await {
        Some(Ok(body)) => kept.push((200, body)),
        Some(Err(error)) => kept.push(failure(&error)),
        None => {}
    }
    // It is kept for as long as it may have taken: a reader that comes and goes starts that time anew.
    drop(Follower::new(&kept, 0, &common));
}

/// The preferences `respond-async` and `wait` (RFC 7240, sections 4.1 and 4.3); what is malformed is no preference.
fn preferences(head: &RequestHead) -> Patience {
    let mut patience = Patience::default();
    let values = head.headers().filter(|(name, _)| name.eq_ignore_ascii_case("prefer"));
    let texts = values.filter_map(|(_, value)| std::str::from_utf8(value).ok());
    for preference in texts.flat_map(|text| text.split(',')) {
        // Parameters behind a semicolon change nothing of these two.
        let preference = preference.split(';').next().unwrap_or_default();
        let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
        let (name, value) = (name.trim(), value.trim().trim_matches('"'));
        if name.eq_ignore_ascii_case("respond-async") {
            patience.later = true;
        } else if name.eq_ignore_ascii_case("wait") && patience.wait.is_none() {
            patience.wait = value.parse().ok().map(Duration::from_secs);
        }
    }
    patience
}

#[cfg(test)]
mod tests {
    use millrace_proto::http1::Parts;

    use super::*;

    #[test]
    fn preferences_are_read_as_the_rfc_writes_them() {
        let second = Duration::from_secs;
        for (values, later, wait) in [
            (&["respond-async, wait=10"][..], true, Some(second(10))),
            (&["Respond-Async"], true, None),
            (&["wait=5", "respond-async; x=y"], true, Some(second(5))),
            (&["wait = \"7\", wait=9"], false, Some(second(7))),
            (&["return=minimal", "wait=soon", "respond-asynchronously"], false, None),
            (&[], false, None),
        ] {
            let fields: Vec<(&str, &[u8])> = std::iter::once(("host", b"x".as_slice()))
                .chain(values.iter().map(|v| ("prefer", v.as_bytes())))
                .collect();
            let parts = Parts { method: "GET", target: "/", authority: "", ended: true };
            let head = RequestHead::assemble(&parts, &fields).expect("a head");
            assert_eq!(preferences(&head), Patience { wait, later }, "{values:?}");
        }
    }
}
