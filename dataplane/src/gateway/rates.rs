//! The rate limits of the configuration in the form in which they are checked.

use std::fmt::Write as _;

use millrace_proto::gcra::Limit;

use super::meter::{Meter, Span};
use crate::config::Limits;

/// All limits. `None` = there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Requests of one key or client.
    pub key_requests: Limit,
    /// The same as it was configured, for messages.
    pub key_requests_per_minute: u32,
    /// Requests of a tenant, all its keys together.
    pub tenant_requests: Option<Limit>,
    /// Requests of an address, whatever key they show.
    pub address_requests: Option<Limit>,
    /// Events of one channel account.
    pub channel_events: Option<Limit>,
    /// Tokens of one key or client.
    pub key_tokens: Option<Limit>,
    /// Tokens of a tenant.
    pub tenant_tokens: Option<Limit>,
    /// Tokens of one key or client in a day.
    pub key_tokens_day: Option<Limit>,
    /// Tokens of a tenant in a day.
    pub tenant_tokens_day: Option<Limit>,
    /// Longest reply, in tokens, of a request that names no length while the engine is behind; 0 = any.
    pub short_reply_tokens: u32,
}

impl Rates {
    /// The limits of a configuration.
    pub fn of(limits: &Limits) -> Self {
        // A minute's worth may be used at once: programs start their sessions together.
        let whole = |per_minute: u32| Limit::per_minute(per_minute, per_minute);
        let optional = |per_minute: u32| (per_minute > 0).then(|| whole(per_minute));
        Self {
            key_requests: whole(limits.requests_per_minute),
            key_requests_per_minute: limits.requests_per_minute,
            tenant_requests: optional(limits.tenant_requests_per_minute),
            address_requests: optional(limits.address_requests_per_minute),
            channel_events: optional(limits.channel_events_per_minute),
            key_tokens: optional(limits.tokens_per_minute),
            tenant_tokens: optional(limits.tenant_tokens_per_minute),
            key_tokens_day: daily(limits.tokens_per_day),
            tenant_tokens_day: daily(limits.tenant_tokens_per_day),
            short_reply_tokens: limits.short_reply_tokens,
        }
    }

    /// Whether any limit on tokens is configured.
    pub fn count_tokens(&self) -> bool {
        [&self.key_tokens, &self.tenant_tokens, &self.key_tokens_day, &self.tenant_tokens_day]
            .iter()
            .any(|limit| limit.is_some())
    }
}

/// The headers of draft-ietf-httpapi-ratelimit-headers: the limits of a key, and what it has left of each.
/// `r` units are left and `t` seconds bring all of them back.
pub fn headers(rates: &Rates, meter: &Meter, now_ns: u64) -> Vec<(&'static str, String)> {
    let (left, reset_s) = meter.room(now_ns, &rates.key_requests);
    let mut policy = format!("\"requests\";q={};w=60", rates.key_requests.burst);
    let mut state = format!("\"requests\";r={left};t={reset_s}");
    for (name, span, limit, window_s) in
        [("tokens", Span::Minute, &rates.key_tokens, 60), ("tokens-day", Span::Day, &rates.key_tokens_day, 86_400)]
    {
        let Some(limit) = limit else { continue };
        let (left, reset_s) = meter.token_room(span, now_ns, limit);
        let _ = write!(policy, ", \"{name}\";q={};w={window_s}", limit.burst);
        let _ = write!(state, ", \"{name}\";r={left};t={reset_s}");
    }
    vec![("ratelimit-policy", policy), ("ratelimit", state)]
}

/// A budget comes back evenly over the day, and a whole one may be used at once.
fn daily(tokens: u32) -> Option<Limit> {
    let day_ns = 86_400_000_000_000u64;
    (tokens > 0).then(|| Limit { interval_ns: (day_ns / u64::from(tokens)).max(1), burst: tokens })
}

#[cfg(test)]
impl Rates {
    /// No limit on anything but a key's requests.
    pub fn unlimited() -> Self {
        Self {
            key_requests: Limit::per_minute(600, 600),
            key_requests_per_minute: 600,
            tenant_requests: None,
            address_requests: None,
            channel_events: None,
            key_tokens: None,
            tenant_tokens: None,
            key_tokens_day: None,
            tenant_tokens_day: None,
            short_reply_tokens: 0,
        }
    }
}
