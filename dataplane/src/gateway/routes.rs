//! The route table: everything that the public port answers, as data.
//!
//! Deny by default: an address that is not listed here is 404, a method that is not listed
//! is 405, and each row says who may call it. Nothing else in the gateway decides access,
//! so the table can be read (and is walked by a test) as the whole truth.

use millrace_proto::limits::{BODY_BYTES_MAX, DOCUMENT_BYTES_MAX, HOOK_BODY_BYTES_MAX, OAUTH_FORM_BYTES_MAX};
use millrace_proto::record::{SCOPE_ADMIN, SCOPE_CHAT, SCOPE_OPERATE};

use crate::obs::Route;

/// Methods that appear in the table. `HEAD` is answered wherever `GET` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `GET` (and `HEAD`).
    Get,
    /// `POST`.
    Post,
    /// `PUT`.
    Put,
    /// `DELETE`.
    Delete,
}

impl Verb {
    /// The method's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }

    fn accepts(self, method: &str) -> bool {
        method == self.as_str() || (self == Self::Get && method == "HEAD")
    }
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody: the answer holds nothing of a tenant.
    Public,
    /// A key or token with at least one of these scopes, in `Authorization: Bearer`.
    Key(u32),
    /// The OAuth client's own id and secret, checked by the handler.
    Client,
    /// The body's signature, checked by the channel.
    Signed,
    /// The key comes in the first frame of the socket; the page's origin is checked before.
    FirstFrame,
}

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name is the row of the table that uses it")]
pub enum Endpoint {
    Healthz,
    Readyz,
    ConsoleIndex,
    ConsoleAsset,
    Chat,
    Completions,
    KeptCompletion,
    Embeddings,
    Models,
    Model,
    Echo,
    Sessions,
    SessionMessages,
    SessionContext,
    Statements,
    ChatSocket,
    Hook,
    AdminKeys,
    AdminCreateKey,
    AdminRevokeKey,
    AdminOutbox,
    AdminOutboxAct,
    AdminStatus,
    AdminClients,
    AdminCreateClient,
    AdminRemoveClient,
    AdminRotateClient,
    AdminReload,
    AdminSigningKeys,
    AdminRotateSigningKey,
    OauthToken,
    OauthIntrospect,
    OauthRevoke,
    OauthKeys,
    OauthMetadata,
    AdminForget,
    AdminBackups,
    AdminMakeBackup,
    AdminArchive,
    AdminArchiveAct,
    AdminRotate,
    Corpora,
    RemoveCorpus,
    Documents,
    AddDocument,
    RemoveDocument,
    SearchCorpus,
    CorpusJob,
}

/// One row.
#[derive(Debug)]
pub struct Row {
    /// The method.
    pub verb: Verb,
    /// The path; `{}` stands for one segment, a final `{*}` for the rest.
    pub path: &'static str,
    /// Bytes of the path before its first variable segment: most requests are told apart by them.
    fixed_bytes: usize,
    /// Who may call it.
    pub access: Access,
    /// What answers.
    pub endpoint: Endpoint,
    /// The label of its metrics.
    pub metric: Route,
    /// Longest request body; 0 = a body is refused.
    pub body_bytes_max: usize,
    /// The work is for this client alone: a client that leaves cancels it.
    pub cancel_on_leave: bool,
}

/// Admin bodies are a few names.
const ADMIN_BODY_BYTES_MAX: usize = 64 * 1024;

/// An echo measures a small message.
const ECHO_BODY_BYTES_MAX: usize = 64 * 1024;

const fn row(verb: Verb, path: &'static str, access: Access, endpoint: Endpoint, metric: Route) -> Row {
    let fixed_bytes = bytes_before_hole(path.as_bytes());
    Row { verb, path, fixed_bytes, access, endpoint, metric, body_bytes_max: 0, cancel_on_leave: false }
}

const fn bytes_before_hole(path: &[u8]) -> usize {
    let mut at = 0;
    while at < path.len() && path[at] != b'{' {
        at += 1;
    }
    at
}

const fn with_body(mut row: Row, body_bytes_max: usize) -> Row {
    row.body_bytes_max = body_bytes_max;
    row
}

const fn for_client(mut row: Row) -> Row {
    row.cancel_on_leave = true;
    row
}

/// Where all channels but Matrix deliver: kind and name of the account.
pub const HOOK_PATH: &str = "/hooks/{}/{}";

/// The longest of all channels; each request is held to the cap of its own (see `Gateway::hook_body_max`).
const fn hook(verb: Verb, path: &'static str) -> Row {
    with_body(row(verb, path, Access::Signed, Endpoint::Hook, Route::Hook), HOOK_BODY_BYTES_MAX)
}

const CHAT: Access = Access::Key(SCOPE_CHAT);
const ADMIN: Access = Access::Key(SCOPE_ADMIN);
/// What an operator does, and an admin may do as well.
const OPERATE: Access = Access::Key(SCOPE_OPERATE | SCOPE_ADMIN);

/// The table.
pub static ROUTES: &[Row] = &[
    row(Verb::Get, "/healthz", Access::Public, Endpoint::Healthz, Route::Health),
    row(Verb::Get, "/readyz", Access::Public, Endpoint::Readyz, Route::Health),
    for_client(with_body(row(Verb::Post, "/v1/chat/completions", CHAT, Endpoint::Chat, Route::Chat), BODY_BYTES_MAX)),
    for_client(with_body(
        row(Verb::Post, "/v1/completions", CHAT, Endpoint::Completions, Route::Completions),
        BODY_BYTES_MAX,
    )),
    for_client(row(Verb::Get, "/v1/chat/completions/{}", CHAT, Endpoint::KeptCompletion, Route::Chat)),
    for_client(row(Verb::Get, "/v1/completions/{}", CHAT, Endpoint::KeptCompletion, Route::Completions)),
    for_client(with_body(
        row(Verb::Post, "/v1/embeddings", CHAT, Endpoint::Embeddings, Route::Embeddings),
        BODY_BYTES_MAX,
    )),
    // Some platforms test the address with a GET.
    row(Verb::Get, HOOK_PATH, Access::Signed, Endpoint::Hook, Route::Hook),
    hook(Verb::Post, HOOK_PATH),
    // Matrix home servers put a path of their own behind the address of the registration.
    hook(Verb::Put, "/hooks/{}/{}/_matrix/app/v1/transactions/{}"),
    hook(Verb::Put, "/hooks/{}/{}/transactions/{}"),
    hook(Verb::Post, "/hooks/{}/{}/_matrix/app/v1/ping"),
    row(Verb::Get, "/hooks/{}/{}/_matrix/app/v1/users/{}", Access::Signed, Endpoint::Hook, Route::Hook),
    row(Verb::Get, "/hooks/{}/{}/_matrix/app/v1/rooms/{}", Access::Signed, Endpoint::Hook, Route::Hook),
    row(Verb::Get, "/v1/models", CHAT, Endpoint::Models, Route::Models),
    row(Verb::Get, "/v1/models/{*}", CHAT, Endpoint::Model, Route::Models),
    with_body(row(Verb::Post, "/v1/echo", CHAT, Endpoint::Echo, Route::Echo), ECHO_BODY_BYTES_MAX),
    row(Verb::Get, "/v1/sessions", CHAT, Endpoint::Sessions, Route::Sessions),
    row(Verb::Get, "/v1/sessions/{}/messages", CHAT, Endpoint::SessionMessages, Route::Sessions),
    for_client(row(Verb::Get, "/v1/sessions/{}/context", CHAT, Endpoint::SessionContext, Route::Sessions)),
    row(Verb::Get, "/v1/memory/statements", CHAT, Endpoint::Statements, Route::Sessions),
    row(Verb::Get, "/v1/chat/ws", Access::FirstFrame, Endpoint::ChatSocket, Route::Socket),
    row(Verb::Get, "/", Access::Public, Endpoint::ConsoleIndex, Route::Console),
    row(Verb::Get, "/console/{*}", Access::Public, Endpoint::ConsoleAsset, Route::Console),
    row(Verb::Get, "/favicon.ico", Access::Public, Endpoint::ConsoleAsset, Route::Console),
    row(Verb::Get, "/v1/admin/keys", ADMIN, Endpoint::AdminKeys, Route::Admin),
    with_body(row(Verb::Post, "/v1/admin/keys", ADMIN, Endpoint::AdminCreateKey, Route::Admin), ADMIN_BODY_BYTES_MAX),
    with_body(row(Verb::Delete, "/v1/admin/keys", ADMIN, Endpoint::AdminRevokeKey, Route::Admin), ADMIN_BODY_BYTES_MAX),
    row(Verb::Get, "/v1/admin/outbox", OPERATE, Endpoint::AdminOutbox, Route::Admin),
    with_body(
        row(Verb::Post, "/v1/admin/outbox", OPERATE, Endpoint::AdminOutboxAct, Route::Admin),
        ADMIN_BODY_BYTES_MAX,
    ),
    row(Verb::Get, "/v1/admin/status", OPERATE, Endpoint::AdminStatus, Route::Admin),
    row(Verb::Get, "/v1/admin/clients", ADMIN, Endpoint::AdminClients, Route::Admin),
    with_body(
        row(Verb::Post, "/v1/admin/clients", ADMIN, Endpoint::AdminCreateClient, Route::Admin),
        ADMIN_BODY_BYTES_MAX,
    ),
    with_body(
        row(Verb::Delete, "/v1/admin/clients", ADMIN, Endpoint::AdminRemoveClient, Route::Admin),
        ADMIN_BODY_BYTES_MAX,
    ),
    with_body(
        row(Verb::Post, "/v1/admin/clients/rotate", ADMIN, Endpoint::AdminRotateClient, Route::Admin),
        ADMIN_BODY_BYTES_MAX,
    ),
    with_body(row(Verb::Post, "/v1/admin/reload", ADMIN, Endpoint::AdminReload, Route::Admin), ADMIN_BODY_BYTES_MAX),
    row(Verb::Get, "/v1/admin/signing-keys", ADMIN, Endpoint::AdminSigningKeys, Route::Admin),
    with_body(
        row(Verb::Post, "/v1/admin/signing-keys", ADMIN, Endpoint::AdminRotateSigningKey, Route::Admin),
        ADMIN_BODY_BYTES_MAX,
    ),
    with_body(
        row(Verb::Post, "/oauth/token", Access::Client, Endpoint::OauthToken, Route::Oauth),
        OAUTH_FORM_BYTES_MAX,
    ),
    with_body(
        row(Verb::Post, "/oauth/introspect", Access::Client, Endpoint::OauthIntrospect, Route::Oauth),
        OAUTH_FORM_BYTES_MAX,
    ),
    with_body(
        row(Verb::Post, "/oauth/revoke", Access::Client, Endpoint::OauthRevoke, Route::Oauth),
        OAUTH_FORM_BYTES_MAX,
    ),
    row(Verb::Get, "/oauth/jwks", Access::Public, Endpoint::OauthKeys, Route::Oauth),
    row(Verb::Get, "/.well-known/oauth-authorization-server", Access::Public, Endpoint::OauthMetadata, Route::Oauth),
    with_body(row(Verb::Post, "/v1/admin/forget", ADMIN, Endpoint::AdminForget, Route::Admin), ADMIN_BODY_BYTES_MAX),
    with_body(row(Verb::Post, "/v1/admin/rotate", ADMIN, Endpoint::AdminRotate, Route::Admin), ADMIN_BODY_BYTES_MAX),
    row(Verb::Get, "/v1/admin/backups", ADMIN, Endpoint::AdminBackups, Route::Admin),
    with_body(
        row(Verb::Post, "/v1/admin/backups", ADMIN, Endpoint::AdminMakeBackup, Route::Admin),
        ADMIN_BODY_BYTES_MAX,
    ),
    row(Verb::Get, "/v1/admin/archive", ADMIN, Endpoint::AdminArchive, Route::Admin),
    with_body(
        row(Verb::Post, "/v1/admin/archive", ADMIN, Endpoint::AdminArchiveAct, Route::Admin),
        ADMIN_BODY_BYTES_MAX,
    ),
    row(Verb::Get, "/v1/admin/corpora", ADMIN, Endpoint::Corpora, Route::Admin),
    row(Verb::Delete, "/v1/admin/corpora/{}", ADMIN, Endpoint::RemoveCorpus, Route::Admin),
    row(Verb::Get, "/v1/admin/corpora/{}/documents", ADMIN, Endpoint::Documents, Route::Admin),
    with_body(
        row(Verb::Post, "/v1/admin/corpora/{}/documents", ADMIN, Endpoint::AddDocument, Route::Admin),
        DOCUMENT_BYTES_MAX,
    ),
    row(Verb::Delete, "/v1/admin/corpora/{}/documents", ADMIN, Endpoint::RemoveDocument, Route::Admin),
    for_client(row(Verb::Get, "/v1/admin/corpora/{}/search", ADMIN, Endpoint::SearchCorpus, Route::Admin)),
    row(Verb::Get, "/v1/admin/corpus-jobs/{}", ADMIN, Endpoint::CorpusJob, Route::Admin),
];

/// Most variable segments of one path.
const SEGMENTS_MAX: usize = 3;

/// The variable segments of a matched path, still percent-encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments<'a>([&'a str; SEGMENTS_MAX]);

impl<'a> Segments<'a> {
    /// The segment at `index`; empty when the row has fewer.
    pub fn get(&self, index: usize) -> &'a str {
        self.0.get(index).copied().unwrap_or_default()
    }
}

/// What the table says about a request.
#[derive(Debug)]
pub enum Found {
    /// This row answers.
    Row(&'static Row),
    /// The address exists for other methods; the value of `Allow`.
    OtherMethod(String),
    /// There is no such address.
    Nothing,
}

/// Looks a request up.
pub fn find(method: &str, path: &str) -> Found {
    let mut others: Vec<&'static str> = Vec::new();
    for row in ROUTES {
        if segments_of(row, path).is_none() {
            continue;
        }
        if row.verb.accepts(method) {
            return Found::Row(row);
        }
        others.push(row.verb.as_str());
        if row.verb == Verb::Get {
            others.push("HEAD");
        }
    }
    if others.is_empty() { Found::Nothing } else { Found::OtherMethod(others.join(", ")) }
}

/// The variable segments of a path that `row` has matched.
pub fn segments<'a>(row: &Row, path: &'a str) -> Segments<'a> {
    segments_of(row, path).unwrap_or_default()
}

fn segments_of<'a>(row: &Row, path: &'a str) -> Option<Segments<'a>> {
    if row.fixed_bytes == row.path.len() {
        return (row.path == path).then(Segments::default);
    }
    path.starts_with(&row.path[..row.fixed_bytes]).then(|| matches(row.path, path))?
}

fn matches<'a>(pattern: &str, path: &'a str) -> Option<Segments<'a>> {
    let mut segments = Segments::default();
    let mut count = 0;
    let mut pattern = pattern;
    let mut path = path;
    loop {
        let Some(hole) = pattern.find('{') else {
            return (pattern == path).then_some(segments);
        };
        path = path.strip_prefix(&pattern[..hole])?;
        pattern = &pattern[hole..];
        if pattern == "{*}" {
            // The rest may hold slashes (model names do) but must not be empty.
            segments.0[count] = path;
            return (!path.is_empty()).then_some(segments);
        }
        let end = path.find('/').unwrap_or(path.len());
        if end == 0 {
            return None;
        }
        segments.0[count] = &path[..end];
        count += 1;
        path = &path[end..];
        pattern = &pattern["{}".len()..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reviewed list of what needs no key. A new public address must be added here by hand.
    const PUBLIC: [&str; 7] = [
        "/",
        "/.well-known/oauth-authorization-server",
        "/console/{*}",
        "/favicon.ico",
        "/healthz",
        "/oauth/jwks",
        "/readyz",
    ];
    /// The reviewed list of what an operator may do without being an admin.
    const OPERATED: [&str; 2] = ["/v1/admin/outbox", "/v1/admin/status"];

    #[test]
    fn every_row_is_guarded_unless_it_is_on_the_reviewed_list() {
        for row in ROUTES {
            match row.access {
                Access::Public => assert!(PUBLIC.contains(&row.path), "{} is public by accident", row.path),
                Access::Key(scopes) => {
                    let expected = match row.path {
                        path if OPERATED.contains(&path) => SCOPE_OPERATE | SCOPE_ADMIN,
                        path if path.starts_with("/v1/admin/") => SCOPE_ADMIN,
                        _ => SCOPE_CHAT,
                    };
                    assert_eq!(scopes, expected, "{}", row.path);
                }
                Access::Client => assert!(row.path.starts_with("/oauth/") && row.verb == Verb::Post),
                Access::Signed => assert!(row.path.starts_with("/hooks/")),
                Access::FirstFrame => assert_eq!(row.endpoint, Endpoint::ChatSocket),
            }
            assert!(row.verb == Verb::Get || row.access != Access::Public, "{} changes state unasked", row.path);
        }
        for path in PUBLIC {
            assert!(ROUTES.iter().any(|row| row.path == path), "{path} left the table");
        }
    }

    #[test]
    fn every_row_is_reachable_and_bounded() {
        for row in ROUTES {
            let path = row.path.replace("{*}", "rest").replace("{}", "name");
            let Found::Row(found) = find(row.verb.as_str(), &path) else { panic!("{path} is shadowed") };
            assert!(std::ptr::eq(found, row), "{path} answers from another row");
            let most = match row.endpoint {
                Endpoint::AddDocument => DOCUMENT_BYTES_MAX,
                Endpoint::Hook => HOOK_BODY_BYTES_MAX,
                _ => BODY_BYTES_MAX,
            };
            assert!(row.body_bytes_max <= most);
            assert!(row.verb != Verb::Get || row.body_bytes_max == 0);
        }
    }

    #[test]
    fn what_is_not_listed_is_denied() {
        for path in [
            "",
            "*",
            "/v1",
            "/v1/",
            "/v1/models/",
            "/v1/chat/completions/",
            "/v1//models",
            "/V1/models",
            "/metrics",
            "/hooks/telegram",
            "/hooks/telegram/",
            "/hooks//a",
            "/hooks/a/b/c",
            "/hooks/a/b/transactions/",
            "/hooks/a/b/transactions/1/2",
            "/hooks/a/b/_matrix/app/v1/transactions",
            "/v1/sessions//messages",
            "/v1/sessions/a/b/messages",
            "/console/",
            "/healthz/",
            "/healthz?",
            "//healthz",
            "/../healthz",
        ] {
            assert!(matches!(find("GET", path), Found::Nothing), "{path:?} was found");
            assert!(matches!(find("PUT", path), Found::Nothing), "{path:?} was found");
            assert!(matches!(find("POST", path), Found::Nothing), "{path:?} was found");
        }
        for method in ["PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "FOO", ""] {
            let Found::OtherMethod(allow) = find(method, "/v1/models") else { panic!("{method}") };
            assert_eq!(allow, "GET, HEAD");
        }
        let Found::OtherMethod(allow) = find("PUT", "/v1/admin/keys") else { panic!() };
        assert_eq!(allow, "GET, HEAD, POST, DELETE");
    }

    #[test]
    fn segments_are_cut_out() {
        let cut = |method: &str, path: &'static str| match find(method, path) {
            Found::Row(row) => (row, segments(row, path)),
            _ => panic!("{path}"),
        };
        let (row, segments) = cut("POST", "/hooks/telegram/main");
        assert_eq!((row.endpoint, segments.get(0), segments.get(1)), (Endpoint::Hook, "telegram", "main"));
        let (row, segments) = cut("PUT", "/hooks/matrix/team/_matrix/app/v1/transactions/t%2F1");
        assert_eq!((row.endpoint, segments.get(1), segments.get(2)), (Endpoint::Hook, "team", "t%2F1"));
        let (row, segments) = cut("HEAD", "/v1/models/org/name");
        assert_eq!((row.endpoint, segments.get(0), segments.get(1)), (Endpoint::Model, "org/name", ""));
    }
}
