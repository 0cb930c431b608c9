//! The gateway: what the public port answers.
//!
//! [`routes`] is the table of everything that exists; `callers` finds out who calls, by the keys and
//! tokens of [`auth`], and holds them to their rates; the other modules are the handlers. A handler
//! returns a whole [`Response`] or an [`ApiError`], or streams into the connection itself. What it
//! asks of the node goes through the shard's bridge.

mod admin;
mod archive;
pub mod auth;
mod backups;
pub mod budgets;
mod callers;
mod calls;
mod clients;
mod console;
mod corpora;
mod entropy;
mod generate;
mod hook;
mod later;
pub mod meter;
mod native;
mod oauth;
mod overload;
pub mod rates;
pub mod reserve;
mod resume;
pub mod routes;
mod sealing;
mod sessions;
mod shape;
mod socket;

use std::cell::{Cell, OnceCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use millrace_proto::api::{ApiError, ModelList, ModelObject};
use millrace_proto::http1::{BodyFraming, Method, RequestHead, percent_decode};
use millrace_proto::limits::LARGE_BODIES_MAX;
use serde::Serialize;

pub use auth::{Common, Principal};
use auth::{Keys, Known};
use callers::{Caller, challenged};
use entropy::Entropy;
use overload::Overload;
use routes::{Access, Endpoint, Found, Row, Segments};

use crate::bridge::Bridge;
use crate::clock::unix_ms;
use crate::identity;
use crate::net::line::Line;
use crate::net::wire::Reader;
use crate::net::{Admitted, Arrival, Net, Next, Outgoing, Refused, Request, Response, Service};
use crate::obs::{Rejection, Route};
use crate::shard::Shared;

/// The gateway of one shard.
pub struct Gateway {
    shared: Arc<Shared>,
    net: Rc<Net>,
    bridge: Rc<Bridge>,
    keys: Keys,
    overload: Overload,
    started_unix_s: u64,
    /// The list of models as JSON: it does not change while the node runs.
    models_json: OnceCell<Rc<[u8]>>,
    /// Places for bodies that are longer than those of messengers.
    large_bodies: Rc<Cell<usize>>,
    entropy: Entropy,
}

/// What `admit` decided.
pub struct Plan {
    row: &'static Row,
    caller: Caller,
    /// For events of channels.
    hook: Option<hook::Hook>,
}

/// What `admit` found out about the last head of a connection.
#[derive(Default)]
pub struct Memo {
    row: Option<&'static Row>,
    known: Option<Known>,
}

impl Gateway {
    /// The gateway of the shard that `net` and `bridge` belong to.
    pub fn new(shared: Arc<Shared>, net: Rc<Net>, bridge: Rc<Bridge>) -> Self {
        Self {
            keys: Keys::new(shared.gateway.clone()),
            overload: Overload::default(),
            started_unix_s: unix_ms() / 1_000,
            models_json: OnceCell::new(),
            large_bodies: Rc::new(Cell::new(LARGE_BODIES_MAX)),
            entropy: Entropy::default(),
            shared,
            net,
            bridge,
        }
    }

    /// Nanoseconds since the start of the node, the same on all shards.
    fn now_ns(&self) -> u64 {
        self.shared.gateway.now_ns()
    }

    /// Headers that say how much of its rate a subject has left.
    fn rate_headers(&self, subject: &meter::Subject) -> Vec<(&'static str, String)> {
        rates::headers(&self.shared.live.now().rates, &self.shared.gateway.meters.of(subject), self.now_ns())
    }

    fn rate_headers_of(&self, head: &RequestHead) -> Vec<(&'static str, String)> {
        let known = auth::bearer(head.header_bytes("authorization")).ok();
        let known = known.and_then(|text| self.keys.recall(text, identity::now_s()).ok());
        known.map_or_else(Vec::new, |known| self.rate_headers(&known.principal.subject))
    }

    /// Headers of a generated answer beyond its own: of the rate, and for another origin's page.
    fn extra_headers(&self, principal: &Principal, head: &RequestHead) -> Vec<(&'static str, String)> {
        let mut extra = self.rate_headers(&principal.subject);
        extra.extend(generate::cors_headers(self.allowed_origin(head)));
        extra
    }

    /// What the shard calls with every tick of its timer.
    pub fn tick(&self) {
        self.overload.tick();
        let (common, drain) = (&self.shared.gateway, self.net.draining.get());
        common.completions.sweep(common.now_ms(), drain);
        common.turns.sweep(common.now_ms(), drain);
        common.later.sweep(common.now_ms(), drain);
    }

    fn refuse(&self, error: &ApiError, metric: Route, head: &RequestHead) -> Refused {
        self.count_refusal(error);
        Refused { response: self.with_cors(Response::error(error), head), metric }
    }

    fn count_refusal(&self, error: &ApiError) {
        let reason = match error.status {
            401 | 403 => Some(Rejection::Unauthorized),
            429 => Some(Rejection::RateLimited),
            _ => None,
        };
        if let Some(reason) = reason {
            self.net.metrics().rejected(reason);
        }
    }

    /// Adds the CORS headers for an origin that the configuration names; none by default.
    fn with_cors(&self, response: Response, head: &RequestHead) -> Response {
        match self.allowed_origin(head) {
            None => response,
            Some(origin) => response
                .header("access-control-allow-origin", origin)
                .header("access-control-expose-headers", "x-request-id, retry-after, location, millrace-degraded")
                .header("vary", "Origin"),
        }
    }

    fn allowed_origin<'a>(&self, head: &'a RequestHead) -> Option<&'a str> {
        let origin = head.header("origin")?;
        self.shared.live.now().cors_origins.iter().any(|allowed| allowed == origin).then_some(origin)
    }

    fn preflight(&self, head: &RequestHead, allow: &str) -> Option<Response> {
        if head.method != Method::Options || head.header("access-control-request-method").is_none() {
            return None;
        }
        self.allowed_origin(head)?;
        let response = Response::empty(204)
            .header("access-control-allow-methods", allow)
            .header("access-control-allow-headers", "authorization, content-type, last-event-id, prefer, x-request-id")
            .header("access-control-max-age", "600");
        Some(self.with_cors(response, head))
    }

    fn healthz(&self) -> Response {
        let _ = self;
        Response::fixed(200, "application/json", b"{\"status\":\"ok\"}")
    }

    fn readyz(&self) -> Response {
        let health = &self.shared.health;
        if health.is_ready() {
            return Response::fixed(200, "application/json", b"{\"status\":\"ready\"}");
        }
        let body = json(&serde_json::json!({"status": "not_ready", "reason": health.reason()}));
        Response::json(503, body).header("retry-after", "1")
    }

    fn models(&self) -> Vec<ModelObject> {
        let context = u32::try_from(self.shared.engine.context_max()).ok();
        let mut models: Vec<ModelObject> = self
            .bridge
            .model_names()
            .into_iter()
            .take(1)
            .map(|name| ModelObject::new(name, self.started_unix_s, context))
            .collect();
        if let Some(name) = self.bridge.embedding_model() {
            models.push(ModelObject::new(name, self.started_unix_s, None));
        }
        models
    }

    /// The name of the chat model.
    fn model_name(&self) -> String {
        self.bridge.model_names().into_iter().next().unwrap_or_default()
    }

    fn model(&self, segments: Segments<'_>) -> Result<Response, ApiError> {
        let name = segment(segments, 0)?;
        let models = self.models();
        match models.iter().find(|model| model.id == name) {
            Some(model) => Ok(Response::json(200, json(model))),
            None => {
                let known: Vec<String> = models.iter().map(|model| model.id.clone()).collect();
                Err(ApiError::unknown_model(&name, &known))
            }
        }
    }

    /// Handlers that answer with one response.
    async fn answer(&self, plan: &Plan, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let segments = routes::segments(plan.row, request.head.path());
        match plan.row.endpoint {
            Endpoint::Model => self.model(segments),
            Endpoint::Echo => self.echo(request),
            Endpoint::Embeddings => self.embeddings(principal, request).await,
            Endpoint::Sessions => self.sessions(principal, request),
            Endpoint::SessionMessages => self.session_messages(principal, request, segments).await,
            Endpoint::SessionContext => self.session_context(principal, request, segments).await,
            Endpoint::Statements => self.statements(principal, request).await,
            Endpoint::AdminKeys => self.list_keys(principal),
            Endpoint::AdminCreateKey => self.create_key(principal, request).await,
            Endpoint::AdminRevokeKey => self.revoke_key(principal, request).await,
            Endpoint::AdminOutbox => self.list_outbox(principal, request),
            Endpoint::AdminOutboxAct => self.act_on_outbox(principal, request).await,
            Endpoint::AdminStatus => self.status(principal),
            Endpoint::AdminClients => Ok(self.list_clients(principal)),
            Endpoint::AdminCreateClient => self.create_client(principal, request).await,
            Endpoint::AdminRemoveClient => self.remove_client(principal, request).await,
            Endpoint::AdminRotateClient => self.rotate_client(principal, request).await,
            Endpoint::AdminReload => self.reload(principal).await,
            Endpoint::AdminSigningKeys => self.list_signing_keys(principal),
            Endpoint::AdminRotateSigningKey => self.rotate_signing_key(principal, request).await,
            Endpoint::AdminForget => self.forget_user(principal, request).await,
            Endpoint::AdminRotate => self.rotate(principal, request).await,
            Endpoint::AdminBackups => self.list_backups(principal),
            Endpoint::AdminMakeBackup => self.make_backup(principal, request),
            Endpoint::AdminArchive => self.list_archived(principal, request),
            Endpoint::AdminArchiveAct => self.act_on_archive(principal, request).await,
            Endpoint::Corpora => self.list_corpora(principal),
            Endpoint::RemoveCorpus => self.remove_corpus(principal, segments),
            Endpoint::Documents => self.list_documents(principal, request, segments),
            Endpoint::AddDocument => self.add_document(principal, request, segments),
            Endpoint::RemoveDocument => self.remove_document(principal, request, segments),
            Endpoint::SearchCorpus => self.search_corpus(principal, request, segments).await,
            Endpoint::CorpusJob => self.corpus_job(principal, segments),
            Endpoint::Healthz
            | Endpoint::Readyz
            | Endpoint::Models
            | Endpoint::ConsoleIndex
            | Endpoint::ConsoleAsset
            | Endpoint::Chat
            | Endpoint::Completions
            | Endpoint::KeptCompletion
            | Endpoint::ChatSocket
            | Endpoint::OauthToken
            | Endpoint::OauthIntrospect
            | Endpoint::OauthRevoke
            | Endpoint::OauthKeys
            | Endpoint::OauthMetadata
            | Endpoint::Hook => unreachable!("answered before: these rows carry no principal or stream"),
        }
    }
}

impl Service for Gateway {
    type Plan = Plan;
    type Upgrade = socket::Upgrade;
    type Memo = Memo;

    fn admit(&self, head: &RequestHead, arrival: Arrival, memo: &mut Memo) -> Result<Admitted<Plan>, Refused> {
        if !head.repeated {
            *memo = Memo::default();
        }
        let (method, path) = (head.method.as_str(), || head.path());
        let row = match memo.row.map_or_else(|| routes::find(method, path()), Found::Row) {
            Found::Row(row) => row,
            Found::OtherMethod(allow) => {
                if let Some(response) = self.preflight(head, &allow) {
                    return Err(Refused { response, metric: Route::Unknown });
                }
                let error = ApiError::method_not_allowed(method, path(), &allow);
                let mut refused = self.refuse(&error, Route::Unknown, head);
                refused.response.headers.push(("allow", allow));
                return Err(refused);
            }
            Found::Nothing => {
                let error = ApiError::not_found(format!("There is nothing at {}.", path()));
                return Err(self.refuse(&error, Route::Unknown, head));
            }
        };
        let health_check = row.metric == Route::Health;
        if self.net.refuses_work() && !health_check {
            self.net.metrics().rejected(Rejection::Draining);
            let error = ApiError::overloaded("This node is shutting down and takes no new work.", 1);
            let refused = self.refuse(&error, row.metric, head);
            return Err(Refused { response: refused.response.closing(), metric: row.metric });
        }
        memo.row = Some(row);
        let live = self.shared.live.now();
        let admitted = self.overload.admit(row, self).and_then(|()| self.address_metered(row, arrival, &live));
        if let Err(error) = admitted {
            let mut refused = self.refuse(&error, row.metric, head);
            refused.response.close |= self.overload.crowded(&self.net);
            return Err(refused);
        }
        let caller = match row.access {
            Access::Public | Access::Signed | Access::FirstFrame | Access::Client => Caller::Nobody,
            Access::Key(scopes) => match self.caller_of(head, scopes, &mut memo.known, &live, arrival.at) {
                Ok(caller) => caller,
                Err(error) => {
                    let mut refused = challenged(self.refuse(&error, row.metric, head), &error, scopes);
                    refused.response.close |= self.overload.crowded(&self.net);
                    if error.status == 429 {
                        refused.response.headers.extend(self.rate_headers_of(head));
                    }
                    return Err(refused);
                }
            },
        };
        if row.body_bytes_max == 0 && head.framing != BodyFraming::None {
            let error = ApiError::bad_request("unexpected_body", format!("{method} {} takes no body.", path()));
            return Err(self.refuse(&error, row.metric, head));
        }
        let (body_bytes_max, hook) = match row.endpoint {
            Endpoint::Hook => self.admit_hook(head, row).map(|(cap, hook)| (cap, Some(hook)))?,
            _ => (row.body_bytes_max, None),
        };
        let immediate = matches!(
            row.endpoint,
            Endpoint::Healthz
                | Endpoint::Readyz
                | Endpoint::ConsoleIndex
                | Endpoint::ConsoleAsset
                | Endpoint::Models
                | Endpoint::Model
                | Endpoint::Echo
                | Endpoint::OauthKeys
                | Endpoint::OauthMetadata
        ) && !matches!(caller, Caller::Waiting(_));
        Ok(Admitted {
            plan: Plan { row, caller, hook },
            metric: row.metric,
            body_bytes_max,
            cancel_on_leave: row.cancel_on_leave,
            immediate,
        })
    }

    async fn serve(&self, mut plan: Plan, request: Request<'_>, out: &mut Outgoing) -> Next<socket::Upgrade> {
        let principal = match self.resolved(&mut plan, request.head).await {
            Ok(principal) => principal,
            Err(error) => {
                let scopes = if let Access::Key(scopes) = plan.row.access { scopes } else { 0 };
                let refused = challenged(self.refuse(&error, plan.row.metric, request.head), &error, scopes);
                out.respond(refused.response);
                return Next::Continue;
            }
        };
        if self.overload.crowded(&self.net) {
            out.close_after();
        }
        if let Some(hook) = &plan.hook {
            // Boxed: the idle connection should not carry the handler's state.
            let response = Box::pin(self.hook(&hook.account, &request)).await;
            out.respond(response);
            return Next::Continue;
        }
        match (plan.row.endpoint, &principal) {
            (Endpoint::Healthz, _) => out.respond(self.healthz()),
            (Endpoint::Readyz, _) => out.respond(self.readyz()),
            (Endpoint::ConsoleIndex | Endpoint::ConsoleAsset, _) => out.respond(console::asset(request.head.path())),
            (Endpoint::OauthKeys, _) => out.respond(self.oauth_keys()),
            (Endpoint::OauthMetadata, _) => out.respond(self.oauth_metadata()),
            (endpoint @ (Endpoint::OauthToken | Endpoint::OauthIntrospect | Endpoint::OauthRevoke), _) => {
                let response = Box::pin(self.oauth(endpoint, &request)).await;
                out.respond(response);
            }
            (Endpoint::ChatSocket, _) => return self.open_socket(request.head, out),
            (Endpoint::Chat, Some(principal)) => {
                let extra = self.extra_headers(principal, request.head);
                Box::pin(self.chat(principal, &request, extra, out)).await;
            }
            (Endpoint::Completions, Some(principal)) => {
                let extra = self.extra_headers(principal, request.head);
                Box::pin(self.complete(principal, &request, extra, out)).await;
            }
            (Endpoint::KeptCompletion, Some(principal)) => {
                let extra = self.extra_headers(principal, request.head);
                match segment(routes::segments(plan.row, request.head.path()), 0) {
                    Ok(name) => Box::pin(self.kept_completion(principal, &request, &name, extra, out)).await,
                    Err(error) => self.fail(&error, extra, out),
                }
            }
            (Endpoint::Models, Some(_)) => {
                let list = self.models_json.get_or_init(|| json(&ModelList::new(self.models())).into());
                let response = Response::shared(200, "application/json", list.clone());
                out.respond(self.with_cors(response, request.head));
            }
            (_, Some(principal)) => {
                let response = match Box::pin(self.answer(&plan, principal, &request)).await {
                    Ok(response) => response,
                    Err(error) => self.report(&error, out.request_id()),
                };
                out.respond(self.with_cors(response, request.head));
            }
            (endpoint, None) => {
                // A row that needs a principal was admitted without one: the table is wrong.
                tracing::error!(?endpoint, "a guarded route was reached without a principal");
                out.fail(&ApiError::internal("This address is misconfigured."));
            }
        }
        Next::Continue
    }

    fn upgraded(
        &self,
        upgrade: socket::Upgrade,
        reader: Reader,
        ahead: Vec<u8>,
        out: Outgoing,
        line: Rc<Line>,
    ) -> impl Future<Output = ()> {
        self.converse(upgrade, reader, ahead, out, line)
    }
}

impl Gateway {
    /// Counts and logs an error on its way out.
    fn report(&self, error: &ApiError, request_id: &str) -> Response {
        if error.status == 503 || error.status == 429 {
            self.net.metrics().rejected(Rejection::Overloaded);
        }
        if error.status >= 500 && error.status != 503 {
            tracing::warn!(request_id, code = error.code, message = %error.message, "a request failed");
        }
        Response::error(error)
    }
}

/// A decoded segment of the path.
fn segment(segments: Segments<'_>, index: usize) -> Result<String, ApiError> {
    percent_decode(segments.get(index))
        .filter(|name| !name.is_empty())
        .ok_or_else(|| ApiError::bad_request("malformed_path", "A part of the address is not percent-encoded UTF-8."))
}

/// The JSON text of a value of ours.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        ApiError::internal("The answer could not be written as JSON.").to_json()
    })
}
