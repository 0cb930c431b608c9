//! What can be looked at: sessions, their messages, an assembled context, the outbox.

use std::rc::Rc;
use std::sync::Arc;

use millrace_agent::{ContextInput, ContextTooLong, ConversationKey, Fact, Fault, Prompter, assemble};
use millrace_proto::api::ApiError;
use millrace_proto::id::{EffectKey, TenantId, virtual_shard};
use millrace_proto::record::{DeliveryState, Message, OutboxJob, SessionHead};
use millrace_proto::statement::Statement;
use millrace_storage::{CorpusHit, CorpusQuery, RELEVANCE_MIN, ReadError, RecallQuery, Recalled, StatementQuery};
use serde::Serialize;

use super::errors::{storage_error, turn_error};
use super::generate::VIEW_TIMEOUT;
use super::inlet::Completion;
use super::message::ShardMessage;
use super::state::{Call, Waiter};
use super::stream::Once;
use super::{Bridge, conversation_key, recall};
use crate::gateway::Principal;

/// Rows of one answer.
const ROWS_MAX: usize = 1_000;

/// What the model would read for a message.
#[derive(Clone, Debug, Serialize)]
pub struct ContextView {
    /// The messages of the prompt.
    pub messages: Vec<MessageView>,
    /// The recalled facts that are in it.
    pub facts: Vec<FactView>,
    /// Older messages of the session that are not in it.
    pub omitted: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens kept for the reply.
    pub reply_tokens: u32,
    /// Tokens of the model's context.
    pub context_tokens: u32,
    /// Why the recall is not complete, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// One message of a prompt.
#[derive(Clone, Debug, Serialize)]
pub struct MessageView {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: String,
}

/// One recalled fact.
#[derive(Clone, Debug, Serialize)]
pub struct FactView {
    /// The conversation in which it was said.
    pub conversation: String,
    /// The message there.
    pub seq: u64,
    /// What was said.
    pub text: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// Comparable inside one answer only.
    pub score: f32,
    /// For a passage of a document: file, page and heading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub citation: Option<String>,
}

impl Bridge {
    /// Messages of a session, oldest first: the last `limit` before `before`.
    pub async fn history(
        &self,
        principal: &Principal,
        session: &str,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Message>, ApiError> {
        let key = conversation_key(principal, session);
        self.head(principal, session)?;
        self.messages(&key, before, limit.min(ROWS_MAX)).await
    }

    /// The last `limit` messages before `before`. Only what is archived is waited for.
    async fn messages(
        &self,
        key: &ConversationKey,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Message>, ApiError> {
        let (store, conversation) = (&self.shared.store, (key.tenant, key.conversation));
        let live = store.messages(key.tenant, key.conversation, before, limit).map_err(read_error)?;
        if !store.lacks_archived(conversation, &live, before, limit).map_err(read_error)? {
            return Ok(live);
        }
        let (told, outcome) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(told.send(result)));
        let reading = self.shared.backups.reading();
        reading
            .messages(conversation, before, limit, done)
            .map_err(|busy| ApiError::overloaded(format!("{busy}."), 1))?;
        match monoio::time::timeout(VIEW_TIMEOUT, outcome).await {
            Ok(Ok(Ok(messages))) => Ok(messages),
            Ok(Ok(Err(why))) => {
                tracing::error!(why, "archived messages cannot be read");
                let message =
                    "These messages are archived, and the archive cannot be read now; the log has the reason.";
                Err(ApiError::overloaded(message, 10))
            }
            Ok(Err(_)) => Err(ApiError::overloaded("The server is shutting down.", 1)),
            Err(_) => {
                let message = format!("The archived messages did not come within {} s.", VIEW_TIMEOUT.as_secs());
                Err(ApiError::overloaded(message, 10))
            }
        }
    }

    /// Sessions of the principal, the most recently used first.
    pub fn sessions(&self, principal: &Principal, limit: usize) -> Result<Vec<SessionHead>, ApiError> {
        self.shared.store.sessions(principal.tenant, principal.user, limit.min(ROWS_MAX)).map_err(read_error)
    }

    /// What the model would read if `text` were said in the session now. A session that does not exist yet
    /// is looked at as a new one.
    pub async fn context(
        self: &Rc<Self>,
        principal: &Principal,
        session: &str,
        text: &str,
    ) -> Result<ContextView, ApiError> {
        let key = conversation_key(principal, session);
        let (config, prompter) = {
            let state = self.state.borrow();
            (state.agent.config().clone(), Arc::clone(&state.prompter))
        };
        let history = self.messages(&key, None, config.window_messages_max).await?;
        let (facts, degraded) = match self.recalled(principal, text, config.recall_items_max * 2).await {
            Ok(facts) => (facts, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        let input = ContextInput {
            system: &config.system_prompt,
            older: history.first().map_or(0, |m| m.seq),
            history: &history,
            window_from_seq: 0,
            turn: u64::MAX,
            text,
            facts: &facts,
            facts_max: config.recall_items_max,
            facts_tokens_max: config.recall_tokens_max,
            reply_tokens: config.reply_tokens_max,
            context_tokens_max: config.context_tokens_max,
        };
        let assembled = assemble(&input, &*prompter as &dyn Prompter).map_err(|error| context_error(&error))?;
        let message = |m: millrace_agent::PromptMessage| MessageView { role: m.role.as_str(), content: m.content };
        let fact = |f: Fact| FactView {
            conversation: f.conversation.to_string(),
            seq: f.seq,
            text: f.text,
            at_ms: f.at_ms,
            score: f.score,
            citation: f.citation,
        };
        Ok(ContextView {
            prompt_tokens: assembled.prompt.len(),
            messages: assembled.messages.into_iter().map(message).collect(),
            facts: assembled.facts.into_iter().map(fact).collect(),
            omitted: assembled.omitted,
            reply_tokens: config.reply_tokens_max,
            context_tokens: config.context_tokens_max,
            degraded,
        })
    }

    /// Facts as a turn would get them.
    async fn recalled(&self, principal: &Principal, text: &str, limit: usize) -> Result<Vec<Fact>, String> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let texts = vec![text.to_owned()];
        let vectors = self.state.borrow_mut().embed_texts(texts, millrace_inference::EmbedPriority::Query);
        let embedding = match vectors {
            Ok((waiter, _)) => within(waiter).await?.ok().and_then(|vectors| vectors.into_iter().next()),
            Err(_) => None,
        };
        let waiter: Once<Result<Vec<Fact>, String>> = Once::default();
        {
            let live = self.shared.live.now();
            let passages =
                recall::passages_query(&live.corpora, &None, principal.tenant, text, embedding.as_ref(), limit);
            let now_ms = self.now_ms();
            let about = recall::about(&self.shared.config.memory, principal.tenant, principal.user, text, now_ms);
            let store = self.shared.store.clone();
            let mut state = self.state.borrow_mut();
            let (call, inlet) = (state.id(), Arc::clone(&state.inlet));
            let query = RecallQuery {
                tenant: principal.tenant,
                user: principal.user,
                text: text.to_owned(),
                embedding,
                limit,
                exclude: None,
                now_ms,
                from_ms: 0,
                relevance_min: RELEVANCE_MIN,
            };
            let done = move |result: Result<Vec<Recalled>, ReadError>| {
                let result = result.map(|found| recall::facts(&store, found, about.as_ref(), passages.as_ref()));
                inlet.complete(Completion::Facts { call, result: result.map_err(|error| error.to_string()) });
            };
            self.shared.store.recall(query, Box::new(done)).map_err(|busy| busy.to_string())?;
            state.calls.insert(call, Call::Facts(waiter.clone()));
        }
        within(waiter).await?
    }

    /// What was extracted from what the principal said.
    pub async fn statements(
        &self,
        principal: &Principal,
        subject: Option<String>,
        relation: Option<String>,
        as_of: Option<(u64, u64)>,
        limit: usize,
    ) -> Result<Vec<Statement>, ApiError> {
        let late = |why: String| ApiError::overloaded(format!("The statements could not be read: {why}."), 1);
        let (tenant, user) = (principal.tenant, principal.user);
        let query = StatementQuery { tenant, user, subject, relation, as_of, limit: limit.min(ROWS_MAX) };
        let (told, found) = tokio::sync::oneshot::channel();
        let done = move |result: Result<Vec<Statement>, ReadError>| drop(told.send(result));
        self.shared.store.statements(query, Box::new(done)).map_err(|busy| late(busy.to_string()))?;
        match monoio::time::timeout(VIEW_TIMEOUT, found).await {
            Ok(Ok(result)) => result.map_err(read_error),
            Ok(Err(_)) => Err(late("the store is shutting down".into())),
            Err(_) => Err(late(format!("no answer within {} s", VIEW_TIMEOUT.as_secs()))),
        }
    }

    /// Passages of one corpus that answer a question.
    pub async fn search_corpus(
        &self,
        principal: &Principal,
        corpus: String,
        text: String,
        tags: Vec<String>,
        limit: usize,
    ) -> Result<Vec<CorpusHit>, ApiError> {
        let late = |why: String| ApiError::overloaded(format!("The corpus could not be searched: {why}."), 1);
        let vectors = self.state.borrow_mut().embed_texts(vec![text.clone()], millrace_inference::EmbedPriority::Query);
        let embedding = match vectors {
            Ok((waiter, _)) => within(waiter).await.map_err(late)?.ok().and_then(|vectors| vectors.into_iter().next()),
            // Without an embedding model, words alone decide.
            Err(_) => None,
        };
        let (told, found) = tokio::sync::oneshot::channel();
        let query = CorpusQuery {
            tenant: principal.tenant,
            corpora: vec![corpus],
            text,
            embedding,
            tags,
            limit,
            relevance_min: 0.0,
        };
        let done = move |result: Result<Vec<CorpusHit>, ReadError>| drop(told.send(result));
        self.shared.store.search_corpora(query, Box::new(done)).map_err(|busy| late(busy.to_string()))?;
        let found = monoio::time::timeout(VIEW_TIMEOUT, found).await;
        match found {
            Ok(Ok(result)) => result.map_err(read_error),
            Ok(Err(_)) => Err(late("the store is shutting down".into())),
            Err(_) => Err(late(format!("no answer within {} s", VIEW_TIMEOUT.as_secs()))),
        }
    }

    /// Deliveries of the principal's tenant, the newest state of each.
    pub fn outbox(
        &self,
        principal: &Principal,
        state: Option<DeliveryState>,
        limit: usize,
    ) -> Result<Vec<OutboxJob>, ApiError> {
        self.shared.store.outbox_list(Some(principal.tenant), state, limit.min(ROWS_MAX)).map_err(read_error)
    }

    /// Gives a dead or unknown delivery another chance.
    pub async fn resubmit(&self, tenant: TenantId, key: EffectKey) -> Result<(), ApiError> {
        let waiter: Once<Result<(), ApiError>> = Once::default();
        {
            let mut state = self.state.borrow_mut();
            let ticket = state.open_ticket(Waiter::Resubmit(waiter.clone()))?;
            let owner = self.shared.shard_of(virtual_shard(tenant, key.conversation));
            if owner == state.index {
                state.resubmit(ticket, tenant, key);
            } else {
                state.send_request(owner, ticket, ShardMessage::Resubmit { ticket, tenant, key })?;
            }
        }
        waiter.await
    }

    fn head(&self, principal: &Principal, session: &str) -> Result<SessionHead, ApiError> {
        let key = conversation_key(principal, session);
        let head = self.shared.store.session(key.tenant, key.conversation).map_err(read_error)?;
        head.ok_or_else(|| {
            ApiError::new(
                404,
                "invalid_request_error",
                "session_not_found",
                format!("User {:?} has no session {session:?}.", principal.user_name),
            )
            .with_next_step("GET /v1/sessions lists the sessions; a session begins with its first message.")
        })
    }
}

async fn within<T>(waiter: Once<T>) -> Result<T, String> {
    monoio::time::timeout(VIEW_TIMEOUT, waiter)
        .await
        .map_err(|_| format!("no answer within {} s", VIEW_TIMEOUT.as_secs()))
}

fn read_error(error: ReadError) -> ApiError {
    tracing::error!(%error, "the store cannot be read");
    storage_error(&Fault::Io(error.to_string()))
}

fn context_error(error: &ContextTooLong) -> ApiError {
    turn_error(&match error.clone() {
        ContextTooLong::Tokens { prompt_tokens, reply_tokens, context_tokens_max } => {
            millrace_agent::TurnError::ContextTooLong { prompt_tokens, reply_tokens, context_tokens_max }
        }
        ContextTooLong::Template(why) => millrace_agent::TurnError::Template(why),
    })
}
