//! How much of the engine a request may have: its caller's tokens, and what the load leaves for it.
//!
//! A request that names no length gets a shorter answer before it is refused with the time at which to come back.
//! What was asked for by number is never cut: it is granted or refused.

use millrace_proto::api::ApiError;

use super::state::State;
use super::stream::StreamEvent;
use crate::gateway::Principal;
use crate::gateway::reserve::{Reservation, Short, reserve};

/// A shortened answer has at least this many tokens; below that it is refused.
const REPLY_TOKENS_MIN: u32 = 16;

/// What a request may have.
pub(super) struct Allowance {
    /// Longest reply.
    pub reply_tokens: u32,
    /// It is shorter than it would be on a quiet day.
    pub shortened: bool,
    /// What was reserved, if tokens are counted.
    pub reservation: Option<Reservation>,
}

impl Allowance {
    /// What the reader is told about a shortened answer.
    pub fn notice(&self) -> StreamEvent {
        let tokens = self.reply_tokens;
        StreamEvent::Notice { text: format!("The answer is kept to {tokens} tokens because of the load or a limit.") }
    }
}

impl State {
    /// Reserves the prompt and the reply: `asked` tokens, or `usual` ones of a request that names no number, fewer while
    /// the engine is behind.
    pub fn allow(
        &self,
        principal: &Principal,
        prompt_tokens: u32,
        asked: Option<u32>,
        usual: u32,
    ) -> Result<Allowance, ApiError> {
        self.allow_at(principal, prompt_tokens, asked, usual, self.is_behind())
    }

    /// The same, with `squeeze` for whether the load asks for short answers.
    pub fn allow_at(
        &self,
        principal: &Principal,
        prompt_tokens: u32,
        asked: Option<u32>,
        usual: u32,
        squeeze: bool,
    ) -> Result<Allowance, ApiError> {
        let live = self.shared.live.now();
        let short = live.rates.short_reply_tokens;
        let (mut reply_tokens, mut shortened) = match asked {
            Some(asked) => (asked, false),
            None if squeeze && short > 0 && short < usual => (short, true),
            None => (usual, false),
        };
        let ask =
            |reply: u32| reserve(&self.shared.gateway, &live.rates, principal, prompt_tokens.saturating_add(reply));
        let reservation = match ask(reply_tokens) {
            Ok(reservation) => reservation,
            Err(refused) => {
                let fits = refused.room.saturating_sub(prompt_tokens).min(reply_tokens);
                if asked.is_some() || short == 0 || fits < REPLY_TOKENS_MIN {
                    return Err(refused.error);
                }
                (reply_tokens, shortened) = (fits, true);
                ask(fits).map_err(|refused| refused.error)?
            }
        };
        Ok(Allowance { reply_tokens, shortened, reservation })
    }

    /// Reserves tokens of a request that cannot be shortened.
    pub fn reserve(&self, principal: &Principal, tokens: u32) -> Result<Option<Reservation>, ApiError> {
        let live = self.shared.live.now();
        reserve(&self.shared.gateway, &live.rates, principal, tokens).map_err(|refused: Box<Short>| refused.error)
    }
}
