//! What is refused at submission, before anything is queued.

use std::time::Duration;

use crate::request::{ParameterError, Request, STOP_BYTES_MAX, STOP_STRINGS_MAX, SubmitError, TOP_LOGPROBS_MAX};

/// Shortest and longest advice to a refused caller; beyond it a guess is worth nothing.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Bounds that a single request has to fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestBounds {
    /// Most tokens of prompt and reply: the smaller of the configured context and what the KV pool can hold.
    pub context_max: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
}

/// Checks everything about a request that does not depend on the load.
pub(crate) fn check(request: &Request, bounds: &RequestBounds) -> Result<(), SubmitError> {
    let (prompt, max, limit) = (request.prompt.len(), request.max_tokens as usize, bounds.context_max);
    if prompt == 0 {
        return Err(SubmitError::EmptyPrompt);
    }
    if max == 0 {
        return Err(parameter("max_tokens", 0, "1 or more"));
    }
    if prompt.saturating_add(max) > limit {
        return Err(SubmitError::PromptTooLong { prompt, max, limit });
    }
    if let Some(position) = request.prompt.iter().position(|id| *id as usize >= bounds.vocabulary) {
        let id = request.prompt[position];
        return Err(SubmitError::UnknownToken { id, position, vocab: bounds.vocabulary });
    }
    if request.stop.len() > STOP_STRINGS_MAX {
        return Err(parameter("stop", request.stop.len(), format!("at most {STOP_STRINGS_MAX} strings")));
    }
    if let Some(bad) = request.stop.iter().find(|s| s.is_empty() || s.len() > STOP_BYTES_MAX) {
        return Err(parameter("stop", format!("{} bytes", bad.len()), format!("1 to {STOP_BYTES_MAX} bytes each")));
    }
    if let Some(n) = request.top_logprobs.filter(|n| *n > TOP_LOGPROBS_MAX) {
        return Err(parameter("top_logprobs", n, format!("0 to {TOP_LOGPROBS_MAX}")));
    }
    if request.constraint.is_some() && request.ignore_eos {
        // Such a reply could only end in the middle.
        return Err(parameter("ignore_eos", true, "false together with a constraint"));
    }
    Ok(request.sampling.check()?)
}

fn parameter(name: &'static str, value: impl ToString, allowed: impl Into<String>) -> SubmitError {
    SubmitError::Parameter(ParameterError { name, value: value.to_string(), allowed: allowed.into() })
}

/// Refuses a request whose first token is predicted later than its deadline or the configured limit allow.
pub(crate) fn check_wait(
    predicted: Option<Duration>,
    until_deadline: Option<Duration>,
    first_token_max: Option<Duration>,
) -> Result<(), SubmitError> {
    let limit = until_deadline.into_iter().chain(first_token_max).min();
    match (predicted, limit) {
        (Some(predicted), Some(limit)) if predicted > limit => {
            Err(SubmitError::TooSlow { predicted, limit, retry_after: predicted.clamp(RETRY_MIN, RETRY_MAX) })
        }
        _ => Ok(()),
    }
}

/// When a place in the queue is likely free: with `running` requests that take `service` each, one ends every
/// `service / running`. Nothing is known before the first one has ended.
pub(crate) fn retry_after(service: Option<Duration>, running: u64) -> Duration {
    let Some(service) = service else { return Duration::from_secs(1) };
    (service / u32::try_from(running.max(1)).unwrap_or(u32::MAX)).clamp(RETRY_MIN, RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Outlet, Output, Sampling};
    use std::sync::Arc;

    struct Nowhere;
    impl Outlet for Nowhere {
        fn push(&self, _: u64, _: Output) {}
        fn wake(&self) {}
    }

    fn request(prompt: usize, max_tokens: u32) -> Request {
        Request {
            ticket: 0,
            prompt: vec![1; prompt],
            sampling: Sampling::greedy(),
            max_tokens,
            stop: Vec::new(),
            ignore_eos: false,
            constraint: None,
            top_logprobs: None,
            deadline: None,
            cache_salt: 0,
            tenant: 0,
            weight: 1,
            background: false,
            outlet: Arc::new(Nowhere),
        }
    }

    const BOUNDS: RequestBounds = RequestBounds { context_max: 100, vocabulary: 50 };

    #[test]
    fn the_limit_counts_prompt_and_reply_and_the_error_has_the_numbers() {
        assert_eq!(check(&request(60, 40), &BOUNDS), Ok(()));
        let error = check(&request(61, 40), &BOUNDS).expect_err("does not fit");
        assert_eq!(error, SubmitError::PromptTooLong { prompt: 61, max: 40, limit: 100 });
        assert!(check(&request(1, u32::MAX), &BOUNDS).is_err());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let refused = |change: fn(&mut Request)| {
            let mut r = request(10, 10);
            change(&mut r);
            check(&r, &BOUNDS).expect_err("nonsense").to_string()
        };
        assert!(refused(|r| r.prompt.clear()).contains("no tokens"));
        assert!(refused(|r| r.prompt[3] = 50).contains("token id 50 at position 3"));
        assert!(refused(|r| r.max_tokens = 0).contains("max_tokens is 0"));
        assert!(refused(|r| r.sampling.temperature = f32::NAN).contains("temperature is NaN"));
        assert!(refused(|r| r.sampling.top_p = -0.5).contains("top_p is -0.5"));
        assert!(refused(|r| r.stop = vec![String::new()]).contains("stop is 0 bytes"));
        assert!(refused(|r| r.stop = vec!["x".into(); 17]).contains("stop is 17"));
        assert!(refused(|r| r.top_logprobs = Some(21)).contains("top_logprobs is 21"));
    }

    #[test]
    fn a_wait_beyond_the_nearer_limit_is_refused_with_the_prediction() {
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(check_wait(seconds(5), seconds(5), seconds(9)), Ok(()));
        assert_eq!(check_wait(seconds(5), None, None), Ok(()));
        assert_eq!(check_wait(None, seconds(1), seconds(1)), Ok(()));
        let five = Duration::from_secs(5);
        let refused = SubmitError::TooSlow { predicted: five, limit: Duration::from_secs(3), retry_after: five };
        assert_eq!(check_wait(seconds(5), seconds(4), seconds(3)), Err(refused));
    }

    #[test]
    fn the_advice_follows_the_time_that_requests_take() {
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(retry_after(seconds(20), 10), Duration::from_secs(2));
        assert_eq!(retry_after(seconds(1), 1000), RETRY_MIN);
        assert_eq!(retry_after(seconds(100_000), 0), RETRY_MAX);
        assert_eq!(retry_after(None, 5), Duration::from_secs(1));
    }
}
