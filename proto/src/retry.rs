//! When to try again: a retry policy as people write it, and the delays that follow from it.
//!
//! Two forms: a list of pauses (`5s,30s,2m,10m`), or exponential back-off (`exp:1s..60s*5`: first ceiling,
//! last ceiling, number of retries). Jitter comes in as an argument in `0..1`.

use crate::limits::{RETRY_DELAY_S_MAX, RETRY_STEPS_MAX};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How often and after which pauses a failed delivery is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy(Steps);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Steps {
    List(Vec<Duration>),
    Exponential { base: Duration, cap: Duration, retries: u32 },
}

impl Default for RetryPolicy {
    /// `exp:1s..60s*5`: what messenger platforms ask of their senders.
    fn default() -> Self {
        Self(Steps::Exponential { base: Duration::from_secs(1), cap: Duration::from_secs(60), retries: 5 })
    }
}

impl RetryPolicy {
    /// The pause before retry number `attempt` (0 = first retry), or `None` when the policy is used up.
    ///
    /// A listed pause is lengthened by up to a tenth, so that many failures do not come back together.
    /// Exponential pauses use full jitter between half the base and the ceiling of the step.
    pub fn delay(&self, attempt: u32, jitter01: f64) -> Option<Duration> {
        let jitter = if jitter01.is_finite() { jitter01.clamp(0.0, 1.0) } else { 0.5 };
        match &self.0 {
            Steps::List(pauses) => pauses.get(attempt as usize).map(|pause| pause.mul_f64(1.0 + jitter * 0.1)),
            Steps::Exponential { base, cap, retries } => (attempt < *retries).then(|| {
                let ceiling = base.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(*cap);
                let floor = *base / 2;
                floor + ceiling.saturating_sub(floor).mul_f64(jitter)
            }),
        }
    }

    /// How many retries the policy allows.
    pub fn retries(&self) -> u32 {
        match &self.0 {
            Steps::List(pauses) => pauses.len() as u32,
            Steps::Exponential { retries, .. } => *retries,
        }
    }
}

/// A retry policy text that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "retry policy {text:?}: {reason}; write pauses such as `5s,30s,2m,10m`, back-off such as `exp:1s..60s*5`, or `none`"
)]
pub struct RetryPolicyError {
    /// The text as given.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl FromStr for RetryPolicy {
    type Err = RetryPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text.trim()).map(RetryPolicy).map_err(|reason| RetryPolicyError { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Steps, String> {
    if text == "none" {
        return Ok(Steps::List(Vec::new()));
    }
    if let Some(rest) = text.strip_prefix("exp:") {
        let (range, count) = rest.split_once('*').ok_or("the number of retries (`*5`) is missing")?;
        let (base, cap) = range.split_once("..").ok_or("the range of pauses (`1s..60s`) is missing")?;
        let (base, cap) = (parse_duration(base)?, parse_duration(cap)?);
        if base.is_zero() || cap < base {
            return Err("the first pause must be above zero and not above the last".into());
        }
        let retries = whole(count.trim()).filter(|n| *n <= RETRY_STEPS_MAX as u64);
        let retries = retries.ok_or_else(|| format!("the number of retries must be 0 to {RETRY_STEPS_MAX}"))?;
        return Ok(Steps::Exponential { base, cap, retries: retries as u32 });
    }
    let pauses = text.split(',').map(parse_duration).collect::<Result<Vec<_>, _>>()?;
    if pauses.len() > RETRY_STEPS_MAX {
        return Err(format!("{} pauses, at most {RETRY_STEPS_MAX} are allowed", pauses.len()));
    }
    Ok(Steps::List(pauses))
}

/// Reads `250ms`, `5s`, `2m`, `1h`. Whole numbers only: `1.5m` is `90s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let bad = || format!("{text:?} is not a duration (a whole number and ms, s, m or h)");
    let number = whole(number).ok_or_else(bad)?;
    let millis = match unit.trim() {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(bad()),
    };
    let longest = RETRY_DELAY_S_MAX * 1_000;
    let millis = millis.filter(|ms| *ms <= longest);
    millis.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is longer than {} h", RETRY_DELAY_S_MAX / 3_600))
}

/// Digits only: Rust's own integer parser would also take a sign.
fn whole(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) { None } else { text.parse().ok() }
}

impl fmt::Display for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Steps::List(pauses) if pauses.is_empty() => f.write_str("none"),
            Steps::List(pauses) => {
                let texts: Vec<_> = pauses.iter().map(|pause| duration_text(*pause)).collect();
                f.write_str(&texts.join(","))
            }
            Steps::Exponential { base, cap, retries } => {
                write!(f, "exp:{}..{}*{retries}", duration_text(*base), duration_text(*cap))
            }
        }
    }
}

fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        _ if !millis.is_multiple_of(1_000) || millis == 0 => format!("{millis}ms"),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ => format!("{}s", millis / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_gives_its_pauses_and_then_ends() {
        let policy: RetryPolicy = "5s, 30s,2m,10m".parse().unwrap();
        assert_eq!(policy.delay(0, 0.0), Some(Duration::from_secs(5)));
        assert_eq!(policy.delay(2, 1.0), Some(Duration::from_secs(132)));
        assert_eq!(policy.delay(4, 0.0), None);
        assert_eq!(policy.to_string(), "5s,30s,2m,10m");
        assert_eq!("none".parse::<RetryPolicy>().unwrap().delay(0, 0.5), None);
    }

    #[test]
    fn back_off_doubles_up_to_its_cap() {
        let policy: RetryPolicy = "exp:1s..60s*8".parse().unwrap();
        let ceilings: Vec<_> = (0..8).map(|n| policy.delay(n, 1.0).unwrap().as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(policy.delay(0, 0.0), Some(Duration::from_millis(500)));
        assert_eq!(policy.delay(8, 0.5), None);
        assert_eq!(policy.to_string(), "exp:1s..1m*8");
        assert_eq!(policy.delay(3, f64::NAN), policy.delay(3, 0.5));
    }

    #[test]
    fn bad_texts_say_what_is_wrong() {
        for text in [
            "",
            "5",
            "5x",
            "-5s",
            "+5s",
            "5s,,6s",
            "exp:",
            "exp:1s..2s",
            "exp:2s..1s*3",
            "exp:0s..1s*3",
            "exp:1s..2s*99",
            "99999h",
            "18446744073709551615h",
        ] {
            let error = text.parse::<RetryPolicy>().expect_err(text);
            assert!(error.to_string().contains("write pauses such as"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_policy_or_an_error(text in ".{0,40}", attempt in any::<u32>(), jitter in any::<f64>()) {
            if let Ok(policy) = text.parse::<RetryPolicy>() {
                let _ = policy.delay(attempt, jitter);
            }
        }

        #[test]
        fn what_is_written_reads_back(pauses in proptest::collection::vec(0u64..100_000_000, 1..10)) {
            let policy = RetryPolicy(Steps::List(pauses.into_iter().map(Duration::from_millis).collect()));
            prop_assert_eq!(policy.to_string().parse::<RetryPolicy>(), Ok(policy));
        }
    }
}
