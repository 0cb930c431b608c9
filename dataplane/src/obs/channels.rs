//! What became of the requests of each channel: one counter for each kind and outcome.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use millrace_proto::channel::{ChannelKind, Reject};

/// What became of a request of a channel. The sender learns only the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ChannelOutcome {
    /// An event was stored durably.
    Accepted,
    /// Authentic, and nothing to act on.
    Ignored,
    /// It was here before.
    Duplicate,
    /// The platform tested the address.
    Handshake,
    /// The platform asked for the text of a reply that is being written.
    Asked,
    /// No signature or a wrong one.
    Signature,
    /// A wrong word where the platform expects 403.
    Forbidden,
    /// Outside the time window.
    Stale,
    /// It cannot be read.
    Malformed,
    /// An address that the platform's protocol does not have.
    NotFound,
    /// Longer than the channel takes.
    TooLarge,
    /// The account's configuration does not allow verification.
    Misconfigured,
    /// The platform's published keys are not at hand.
    Keys,
    /// There was no room; the platform is asked to repeat it.
    Overloaded,
}

impl ChannelOutcome {
    /// Every outcome, in label order.
    pub const ALL: [Self; 14] = [
        Self::Accepted,
        Self::Ignored,
        Self::Duplicate,
        Self::Handshake,
        Self::Asked,
        Self::Signature,
        Self::Forbidden,
        Self::Stale,
        Self::Malformed,
        Self::NotFound,
        Self::TooLarge,
        Self::Misconfigured,
        Self::Keys,
        Self::Overloaded,
    ];

    /// The value of the `outcome` or `reason` label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Ignored => "ignored",
            Self::Duplicate => "duplicate",
            Self::Handshake => "handshake",
            Self::Asked => "asked",
            Self::Signature => "signature",
            Self::Forbidden => "forbidden",
            Self::Stale => "stale",
            Self::Malformed => "malformed",
            Self::NotFound => "not_found",
            Self::TooLarge => "too_large",
            Self::Misconfigured => "misconfigured",
            Self::Keys => "keys",
            Self::Overloaded => "overloaded",
        }
    }

    /// Whether nothing of the request was taken.
    pub const fn is_reject(self) -> bool {
        !matches!(self, Self::Accepted | Self::Ignored | Self::Duplicate | Self::Handshake | Self::Asked)
    }
}

impl From<&Reject> for ChannelOutcome {
    fn from(reject: &Reject) -> Self {
        match reject {
            Reject::Unauthorized(_) => Self::Signature,
            Reject::Forbidden(_) => Self::Forbidden,
            Reject::Stale { .. } => Self::Stale,
            Reject::Malformed(_) => Self::Malformed,
            Reject::NotFound(_) => Self::NotFound,
            Reject::TooLarge(_) => Self::TooLarge,
            Reject::Misconfigured(_) => Self::Misconfigured,
            Reject::KeysNeeded { .. } => Self::Keys,
        }
    }
}

const KINDS: usize = ChannelKind::ALL.len();

/// The counters of one shard.
#[derive(Debug, Default)]
pub struct ChannelCounters([[AtomicU64; ChannelOutcome::ALL.len()]; KINDS]);

impl ChannelCounters {
    /// One request or event.
    pub fn count(&self, kind: ChannelKind, outcome: ChannelOutcome) {
        self.0[kind as usize][outcome as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn of(&self, kind: ChannelKind, outcome: ChannelOutcome) -> u64 {
        self.0[kind as usize][outcome as usize].load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reject_keeps_its_own_name() {
        let keys = Reject::KeysNeeded { url: String::new(), unknown_key: false };
        for reject in [
            Reject::Unauthorized(""),
            Reject::Forbidden(""),
            Reject::Stale { skew_s: 1 },
            Reject::Malformed(""),
            Reject::NotFound(""),
            Reject::TooLarge(""),
            Reject::Misconfigured(""),
            keys,
        ] {
            let outcome = ChannelOutcome::from(&reject);
            assert_eq!(outcome.as_str(), reject.reason());
            assert!(outcome.is_reject());
        }
    }

    #[test]
    fn kinds_and_outcomes_do_not_share_a_counter() {
        let counters = ChannelCounters::default();
        for &kind in ChannelKind::ALL {
            for outcome in ChannelOutcome::ALL {
                assert_eq!(counters.of(kind, outcome), 0);
                counters.count(kind, outcome);
            }
        }
    }
}
