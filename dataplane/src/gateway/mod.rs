//! The gateway: what the public port answers.
//!
//! [`routes`] is the table of everything that exists; [`auth`] says who calls; the other
//! modules are the handlers. A handler returns a whole [`Response`] or an [`ApiError`], or
//! streams into the connection itself. What it asks of the node goes through the shard's
//! bridge.

mod admin;
pub mod auth;
mod calls;
mod console;
mod generate;
mod hook;
mod native;
pub mod routes;
mod sessions;
mod shape;
mod socket;

use std::cell::{Cell, OnceCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use millrace_proto::api::{ApiError, ModelList, ModelObject};
use millrace_proto::gcra;
use millrace_proto::http1::{BodyFraming, Method, RequestHead, percent_decode};
use millrace_proto::limits::LARGE_BODIES_MAX;
use serde::Serialize;

use auth::Keys;
pub use auth::{Common, Principal};
use routes::{Access, Endpoint, Found, Row, Segments};

use crate::bridge::Bridge;
use crate::net::line::Line;
use crate::net::wire::Reader;
use crate::net::{Admitted, Net, Next, Outgoing, Peer, Refused, Request, Response, Service};
use crate::obs::{Rejection, Route};
use crate::shard::Shared;

/// The gateway of one shard.
pub struct Gateway {
    shared: Arc<Shared>,
    net: Rc<Net>,
    bridge: Rc<Bridge>,
    keys: Keys,
    rate: gcra::Limit,
    started: Instant,
    started_unix_s: u64,
    /// The list of models as JSON: it does not change while the node runs.
    models_json: OnceCell<Rc<[u8]>>,
    /// Places for bodies that are longer than those of messengers.
    large_bodies: Rc<Cell<usize>>,
}

/// What `admit` decided.
pub struct Plan {
    row: &'static Row,
    principal: Option<Arc<Principal>>,
    /// Held until the answer is made.
    _large_body: Option<hook::LargeBody>,
}

impl Gateway {
    /// The gateway of the shard that `net` and `bridge` belong to.
    pub fn new(shared: Arc<Shared>, net: Rc<Net>, bridge: Rc<Bridge>) -> Self {
        let per_minute = shared.config.limits.requests_per_minute;
        Self {
            keys: Keys::new(shared.gateway.clone()),
            // A key may use its minute at once: programs start their sessions together.
            rate: gcra::Limit::per_minute(per_minute, per_minute),
            started: Instant::now(),
            started_unix_s: unix_ms() / 1_000,
            models_json: OnceCell::new(),
            large_bodies: Rc::new(Cell::new(LARGE_BODIES_MAX)),
            shared,
            net,
            bridge,
        }
    }

    /// Who a key text speaks for, after its rate limit.
    fn identify(&self, key: &str) -> Result<Arc<Principal>, ApiError> {
        let (principal, meter) = self.keys.identify(key, |hash| {
            self.shared.store.credential(hash).map_err(|error| {
                tracing::error!(%error, "a key could not be looked up");
                ApiError::overloaded("The key could not be checked: the store does not answer.", 1)
            })
        })?;
        let now_ns = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        meter.admit(now_ns, &self.rate).map_err(|wait_s| {
            let per_minute = self.shared.config.limits.requests_per_minute;
            ApiError::rate_limited(
                format!("The key {:?} may send {per_minute} requests a minute.", principal.key_label),
                wait_s,
            )
        })?;
        Ok(principal)
    }

    fn refuse(&self, error: &ApiError, metric: Route, head: &RequestHead) -> Refused {
        let reason = match error.status {
            401 | 403 => Some(Rejection::Unauthorized),
            429 => Some(Rejection::RateLimited),
            _ => None,
        };
        if let Some(reason) = reason {
            self.net.metrics().rejected(reason);
        }
        Refused { response: self.with_cors(Response::error(error), head), metric }
    }

    /// Adds the CORS headers for an origin that the configuration names; none by default.
    fn with_cors(&self, response: Response, head: &RequestHead) -> Response {
        match self.allowed_origin(head) {
            None => response,
            Some(origin) => response
                .header("access-control-allow-origin", origin)
                .header("access-control-expose-headers", "x-request-id, retry-after")
                .header("vary", "Origin"),
        }
    }

    fn allowed_origin<'a>(&self, head: &'a RequestHead) -> Option<&'a str> {
        let origins = &self.shared.config.cors_origins;
        if origins.is_empty() {
            return None;
        }
        let origin = head.header("origin")?;
        origins.iter().any(|allowed| allowed == origin).then_some(origin)
    }

    fn preflight(&self, head: &RequestHead, allow: &str) -> Option<Response> {
        if head.method != Method::Options || head.header("access-control-request-method").is_none() {
            return None;
        }
        self.allowed_origin(head)?;
        let response = Response::empty(204)
            .header("access-control-allow-methods", allow)
            .header("access-control-allow-headers", "authorization, content-type, x-request-id")
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
            Endpoint::SessionMessages => self.session_messages(principal, request, segments),
            Endpoint::SessionContext => self.session_context(principal, request, segments).await,
            Endpoint::AdminKeys => self.list_keys(principal),
            Endpoint::AdminCreateKey => self.create_key(principal, request).await,
            Endpoint::AdminRevokeKey => self.revoke_key(principal, request).await,
            Endpoint::AdminOutbox => self.list_outbox(principal, request),
            Endpoint::AdminOutboxAct => self.act_on_outbox(principal, request).await,
            Endpoint::AdminStatus => self.status(principal),
            Endpoint::Healthz
            | Endpoint::Readyz
            | Endpoint::Models
            | Endpoint::ConsoleIndex
            | Endpoint::ConsoleAsset
            | Endpoint::Chat
            | Endpoint::Completions
            | Endpoint::ChatSocket
            | Endpoint::Hook => unreachable!("answered before: these rows carry no principal or stream"),
        }
    }
}

impl Service for Gateway {
    type Plan = Plan;
    type Upgrade = socket::Upgrade;

    fn admit(&self, head: &RequestHead, _peer: Peer) -> Result<Admitted<Plan>, Refused> {
        let (method, path) = (head.method.as_str(), head.path());
        let row = match routes::find(method, path) {
            Found::Row(row, _) => row,
            Found::OtherMethod(allow) => {
                if let Some(response) = self.preflight(head, &allow) {
                    return Err(Refused { response, metric: Route::Unknown });
                }
                let error = ApiError::method_not_allowed(method, path, &allow);
                let mut refused = self.refuse(&error, Route::Unknown, head);
                refused.response.headers.push(("allow", allow));
                return Err(refused);
            }
            Found::Nothing => {
                let error = ApiError::not_found(format!("There is nothing at {path}."));
                return Err(self.refuse(&error, Route::Unknown, head));
            }
        };
        let health_check = row.metric == Route::Health;
        if self.net.draining.get() && !health_check {
            self.net.metrics().rejected(Rejection::Draining);
            let error = ApiError::overloaded("This node is shutting down and takes no new work.", 1);
            let refused = self.refuse(&error, row.metric, head);
            return Err(Refused { response: refused.response.closing(), metric: row.metric });
        }
        let principal = match row.access {
            Access::Public | Access::Signed | Access::FirstFrame => None,
            Access::Key(scopes) => {
                let checked = auth::bearer(head.header_bytes("authorization"))
                    .and_then(|key| self.identify(key))
                    .and_then(|principal| principal.require(scopes).map(|()| principal));
                match checked {
                    Ok(principal) => Some(principal),
                    Err(error) => return Err(self.refuse(&error, row.metric, head)),
                }
            }
        };
        if row.body_bytes_max == 0 && head.framing != BodyFraming::None {
            let error = ApiError::bad_request("unexpected_body", format!("{method} {path} takes no body."));
            return Err(self.refuse(&error, row.metric, head));
        }
        let (body_bytes_max, large_body) = match row.endpoint {
            Endpoint::Hook => self.admit_hook(head, row)?,
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
        );
        Ok(Admitted {
            plan: Plan { row, principal, _large_body: large_body },
            metric: row.metric,
            body_bytes_max,
            cancel_on_leave: row.cancel_on_leave,
            immediate,
        })
    }

    async fn serve(&self, plan: Plan, request: Request<'_>, out: &mut Outgoing) -> Next<socket::Upgrade> {
        match (plan.row.endpoint, &plan.principal) {
            (Endpoint::Healthz, _) => out.respond(self.healthz()),
            (Endpoint::Readyz, _) => out.respond(self.readyz()),
            (Endpoint::ConsoleIndex | Endpoint::ConsoleAsset, _) => out.respond(console::asset(request.head.path())),
            (Endpoint::Hook, _) => {
                // Boxed: the idle connection should not carry the largest handler's state.
                let response = Box::pin(self.hook(&request, plan.row)).await;
                out.respond(response);
            }
            (Endpoint::ChatSocket, _) => return self.open_socket(request.head, out),
            (Endpoint::Chat, Some(principal)) => {
                let cors = self.allowed_origin(request.head).map(str::to_owned);
                Box::pin(self.chat(principal, request.body, cors, out)).await;
            }
            (Endpoint::Completions, Some(principal)) => {
                let cors = self.allowed_origin(request.head).map(str::to_owned);
                Box::pin(self.complete(principal, request.body, cors, out)).await;
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

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
