//! Who sends a request, and whether so many may come: keys, tokens, and the rates that they are held to.

use std::sync::Arc;
use std::time::Instant;

use millrace_proto::api::ApiError;
use millrace_proto::http1::RequestHead;
use millrace_proto::record::scope_names;
use tokio::sync::oneshot;

use super::auth::{self, Form, Known, Principal, Unknown};
use super::routes::{Access, Row};
use super::{Gateway, Plan, meter};
use crate::identity;
use crate::identity::issuers::Foreign;
use crate::net::{Arrival, Refused};
use crate::obs::Route;
use crate::shard::live::Settings;

/// Who calls, as far as `admit` could find out without waiting.
pub(super) enum Caller {
    /// The route asks for nobody.
    Nobody,
    /// This one.
    Known(Arc<Principal>),
    /// A token whose issuer's keys are on their way.
    Waiting(oneshot::Receiver<()>),
}

/// What a key or token turned out to be.
enum Recognised {
    Known(Known),
    /// It cannot be judged before the keys of its issuer have come.
    Waiting(oneshot::Receiver<()>),
}

impl Gateway {
    /// Who a key or token speaks for, after its rate limit.
    pub(super) fn identify(&self, text: &str) -> Result<Arc<Principal>, ApiError> {
        match self.recognise(text)? {
            Recognised::Known(known) => {
                self.metered(&known, &self.shared.live.now(), Instant::now())?;
                Ok(known.principal)
            }
            // The keys are being fetched now; a caller that cannot wait here comes back.
            Recognised::Waiting(_) => Err(keys_on_their_way()),
        }
    }

    /// Who a key or token speaks for, without counting it.
    fn recognise(&self, text: &str) -> Result<Recognised, ApiError> {
        let form = Form::of(text)?;
        let unknown = match self.keys.recall(text, identity::now_s()) {
            Ok(known) => return Ok(Recognised::Known(known)),
            Err(unknown) => unknown,
        };
        self.look_up(form, text, &unknown)
    }

    fn look_up(&self, form: Form, text: &str, unknown: &Unknown) -> Result<Recognised, ApiError> {
        let shared = &self.shared;
        let unreadable = |error: millrace_storage::ReadError| {
            tracing::error!(%error, "a key could not be looked up");
            ApiError::overloaded("The key could not be checked: the store does not answer.", 1)
        };
        let ended = || ApiError::unauthorized("The access token is not known here, has ended or was revoked.");
        let granted = match form {
            Form::Key => {
                let credential = shared.store.credential(unknown.hash()).map_err(unreadable)?;
                auth::granted(unknown.hash(), credential.as_ref())?
            }
            Form::Opaque => shared.authority.granted(text).map_err(unreadable)?.ok_or_else(ended)?,
            Form::Jwt if shared.authority.is_own(text) => {
                shared.authority.granted(text).map_err(unreadable)?.ok_or_else(ended)?
            }
            Form::Jwt => match shared.authority.issuers().judge(text, &shared.control) {
                Foreign::Granted(granted) => *granted,
                Foreign::Wait(wait) => return Ok(Recognised::Waiting(wait)),
                Foreign::NoKeys => return Err(keys_on_their_way()),
                Foreign::Refused(error) => {
                    return Err(ApiError::unauthorized(format!("The access token is not accepted: {error}.")));
                }
                Foreign::Stranger => {
                    return Err(ApiError::unauthorized("The access token is of an issuer that is not trusted here."));
                }
            },
        };
        Ok(Recognised::Known(self.keys.remember(unknown, granted)))
    }

    /// Counts a request that came at `at`.
    fn metered(&self, known: &Known, live: &Settings, at: Instant) -> Result<(), ApiError> {
        let (rates, at_ns) = (&live.rates, self.shared.gateway.ns_at(at));
        known.meter.admit(at_ns, &rates.key_requests).map_err(|wait_s| {
            let per_minute = rates.key_requests_per_minute;
            let message = format!("The key {:?} may send {per_minute} requests a minute.", known.principal.key_label);
            ApiError::rate_limited(message, wait_s)
        })?;
        if let Some(limit) = &rates.tenant_requests {
            let meter = self.shared.gateway.meters.of(&meter::tenant(known.principal.tenant));
            meter
                .admit(at_ns, limit)
                .map_err(|wait_s| ApiError::rate_limited("The tenant of this key sends too many requests.", wait_s))?;
        }
        Ok(())
    }

    /// Counts a request of an address, where that is configured. Health checks are always answered.
    pub(super) fn address_metered(&self, row: &Row, arrival: Arrival, live: &Settings) -> Result<(), ApiError> {
        let Some(limit) = live.rates.address_requests.as_ref().filter(|_| row.metric != Route::Health) else {
            return Ok(());
        };
        let common = &self.shared.gateway;
        let meter = common.meters.of(&meter::address(arrival.peer.ip));
        meter
            .admit(common.ns_at(arrival.at), limit)
            .map_err(|wait_s| ApiError::rate_limited("Too many requests come from this address.", wait_s))
    }

    /// Who sends a request, as far as can be said without waiting. `memo` = who sent an equal one.
    pub(super) fn caller_of(
        &self,
        head: &RequestHead,
        scopes: u32,
        memo: &mut Option<Known>,
        live: &Settings,
        at: Instant,
    ) -> Result<Caller, ApiError> {
        let known = match memo.take().filter(|known| self.keys.holds(known, identity::now_s)) {
            Some(known) => known,
            None => match self.shown(head)? {
                Recognised::Known(known) => known,
                Recognised::Waiting(wait) => return Ok(Caller::Waiting(wait)),
            },
        };
        let admitted = self.metered(&known, live, at).and_then(|()| known.principal.require_any(scopes));
        let caller = admitted.map(|()| Caller::Known(known.principal.clone()));
        *memo = Some(known);
        caller
    }

    /// Whom the key or token in a head speaks for.
    fn shown(&self, head: &RequestHead) -> Result<Recognised, ApiError> {
        if head.query_param("access_token").is_some() {
            // RFC 6750 section 2.3 advises against it: addresses end up in logs.
            let message = "A token in the address is not accepted.";
            return Err(ApiError::bad_request("invalid_request", message)
                .with_next_step("Send it in the header `Authorization: Bearer ...`."));
        }
        self.recognise(auth::bearer(head.header_bytes("authorization"))?)
    }

    /// The caller of a plan, after a wait for the keys of another issuer if it must be.
    pub(super) async fn resolved(
        &self,
        plan: &mut Plan,
        head: &RequestHead,
    ) -> Result<Option<Arc<Principal>>, ApiError> {
        match std::mem::replace(&mut plan.caller, Caller::Nobody) {
            Caller::Nobody => Ok(None),
            Caller::Known(principal) => Ok(Some(principal)),
            Caller::Waiting(wait) => {
                // Whether the fetch went well shows when the token is judged again.
                let _ = wait.await;
                let principal = self.identify(auth::bearer(head.header_bytes("authorization"))?)?;
                if let Access::Key(scopes) = plan.row.access {
                    principal.require_any(scopes)?;
                }
                Ok(Some(principal))
            }
        }
    }
}

fn keys_on_their_way() -> ApiError {
    ApiError::overloaded("The keys of the token's issuer are not at hand yet.", 1)
}

/// Adds what RFC 6750 section 3 wants a client to be told.
pub(super) fn challenged(mut refused: Refused, error: &ApiError, scopes: u32) -> Refused {
    const REALM: &str = "Bearer realm=\"millrace\"";
    let challenge = match (error.status, error.code) {
        // Nothing was shown, so nothing was wrong with it.
        (401, "missing_api_key") => REALM.to_owned(),
        (401, _) => format!("{REALM}, error=\"invalid_token\""),
        (403, "insufficient_scope") => {
            format!("{REALM}, error=\"insufficient_scope\", scope=\"{}\"", scope_names(scopes).join(" "))
        }
        (400, "invalid_request") => format!("{REALM}, error=\"invalid_request\""),
        _ => return refused,
    };
    refused.response.headers.retain(|(name, _)| *name != "www-authenticate");
    refused.response.headers.push(("www-authenticate", challenge));
    refused
}
