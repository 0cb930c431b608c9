//! Tokens are reserved when a request is admitted and settled when its answer has ended, so that two requests
//! cannot both spend what is left: a check that is followed by a charge could.

use std::sync::Arc;

use millrace_proto::api::ApiError;
use millrace_proto::gcra::Limit;

use super::meter::{self, Meter, Span};
use super::rates::Rates;
use super::{Common, Principal};

/// One meter that was charged.
struct Share {
    meter: Arc<Meter>,
    span: Span,
    limit: Limit,
}

/// Tokens that a request has reserved. Dropping it settles: what was not used comes back.
pub struct Reservation {
    common: Arc<Common>,
    shares: Vec<Share>,
    reserved: u32,
    used: u32,
}

impl Reservation {
    /// So many tokens were used in all.
    pub fn used(&mut self, tokens: u32) {
        self.used = tokens;
    }

    /// So many more tokens were used.
    pub fn add(&mut self, tokens: u32) {
        self.used = self.used.saturating_add(tokens);
    }

    fn settle(&self, used: u32) {
        let now_ns = self.common.now_ns();
        for Share { meter, span, limit } in &self.shares {
            meter.settle(*span, now_ns, self.reserved, used, limit);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.settle(self.used);
    }
}

/// Why a reservation was refused.
pub struct Short {
    /// What the caller is told.
    pub error: ApiError,
    /// Tokens that could be reserved at once.
    pub room: u32,
}

/// Reserves `tokens` for a request of `principal`. `None` when no limit on tokens is configured.
pub fn reserve(
    common: &Arc<Common>,
    rates: &Rates,
    principal: &Principal,
    tokens: u32,
) -> Result<Option<Reservation>, Box<Short>> {
    if !rates.count_tokens() {
        return Ok(None);
    }
    let now_ns = common.now_ns();
    let mut made = Reservation { common: Arc::clone(common), shares: Vec::new(), reserved: tokens, used: 0 };
    let tenant = meter::tenant(principal.tenant);
    let limits = [
        (&principal.subject, Span::Minute, &rates.key_tokens, "this key may use in a minute"),
        (&tenant, Span::Minute, &rates.tenant_tokens, "its tenant may use in a minute"),
        (&principal.subject, Span::Day, &rates.key_tokens_day, "this key may use in a day"),
        (&tenant, Span::Day, &rates.tenant_tokens_day, "its tenant may use in a day"),
    ];
    for (subject, span, limit, whose) in limits {
        let Some(limit) = limit else { continue };
        let meter = common.meters.of(subject);
        if let Err(wait_ns) = meter.reserve(span, now_ns, tokens, limit) {
            let (room, _) = meter.token_room(span, now_ns, limit);
            // Dropping `made` gives back what the meters before this one were charged.
            return Err(Box::new(Short { error: refusal(tokens, limit, whose, wait_ns), room }));
        }
        made.shares.push(Share { meter, span, limit: *limit });
    }
    Ok(Some(made))
}

fn refusal(tokens: u32, limit: &Limit, whose: &str, wait_ns: u64) -> ApiError {
    let all = limit.burst;
    let message = format!("The request may need {tokens} tokens; {all} is what {whose}.");
    if wait_ns == u64::MAX {
        let mut error = ApiError::new(429, "rate_limit_error", "request_exceeds_limit", message);
        error.next_step = "Send a shorter prompt or a smaller max_tokens: waiting does not help.".into();
        return error;
    }
    ApiError::rate_limited(message, meter::seconds(wait_ns))
}

/// A safe guess of how many tokens a text has: it may be too high, and what is too much comes back.
pub fn estimate(text_bytes: usize) -> u32 {
    u32::try_from(text_bytes / 3 + 8).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use millrace_proto::id::{TenantId, UserId};

    use super::*;

    fn principal(subject: u8) -> Principal {
        Principal {
            tenant: TenantId(3),
            user: UserId::of(TenantId(3), "ada"),
            user_name: "ada".into(),
            scopes: 1,
            key_label: "laptop".into(),
            subject: [subject; 32],
        }
    }

    fn rates(key: u32, tenant: u32) -> Rates {
        let whole = |n: u32| (n > 0).then(|| Limit::per_minute(n, n));
        Rates { key_tokens: whole(key), tenant_tokens: whole(tenant), ..Rates::unlimited() }
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let common = Arc::new(Common::default());
        assert!(reserve(&common, &Rates::unlimited(), &principal(1), u32::MAX).is_ok_and(|made| made.is_none()));
    }

    #[test]
    fn what_is_reserved_is_gone_until_it_is_settled() {
        let (common, rates) = (Arc::new(Common::default()), rates(100, 150));
        let one = reserve(&common, &rates, &principal(1), 80).ok().flatten().expect("room");
        let short = reserve(&common, &rates, &principal(1), 80).err().expect("the key has 20 left");
        assert!(short.error.status == 429 && short.error.retry_after_s.is_some() && (19..=22).contains(&short.room));
        // Another key of the tenant: its own limit has room, the tenant's has 70 left.
        assert!(reserve(&common, &rates, &principal(2), 80).is_err());
        let mut two = reserve(&common, &rates, &principal(2), 60).ok().flatten().expect("70 are left");
        two.used(10);
        drop(two);
        drop(one);
        // One used nothing, two used ten.
        let three = reserve(&common, &rates, &principal(2), 90).ok().flatten().expect("nearly all is back");
        drop(three);
        let never = reserve(&common, &rates, &principal(1), 101).err().expect("more than there ever is");
        assert_eq!((never.error.code, never.error.retry_after_s), ("request_exceeds_limit", None));
    }

    #[test]
    fn a_refusal_by_the_second_meter_gives_back_what_the_first_took() {
        let (common, rates) = (Arc::new(Common::default()), rates(1_000, 100));
        for _ in 0..50 {
            assert!(reserve(&common, &rates, &principal(1), 200).is_err(), "more than the tenant's");
        }
        assert!(reserve(&common, &rates, &principal(1), 100).is_ok(), "the key was not charged for refusals");
    }

    #[test]
    fn what_was_used_beyond_the_reservation_is_paid_later() {
        let (common, rates) = (Arc::new(Common::default()), rates(6_000, 0));
        let mut one = reserve(&common, &rates, &principal(1), 1_000).ok().flatten().expect("room");
        one.add(4_000);
        one.add(2_500);
        drop(one);
        let short = reserve(&common, &rates, &principal(1), 10).err().expect("in debt");
        assert!(short.error.retry_after_s.is_some_and(|wait| (4..=6).contains(&wait)), "500 tokens are five seconds");
    }
}
