//! The chat page and its files, compiled in, with the headers that keep foreign code out.

use millrace_proto::api::ApiError;

use crate::net::Response;

/// Only our own files, no inline script, no framing, no form target elsewhere. `connect-src`
/// names the WebSocket of this host, which older browsers do not count as `'self'`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
img-src 'self' data:; connect-src 'self' ws: wss:; font-src 'self'; manifest-src 'self'; \
base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The answer for `/`, `/console/...` or `/favicon.ico`.
pub(super) fn asset(path: &str) -> Response {
    match crate::console::asset(path) {
        Some((content_type, bytes)) => guarded(Response::fixed(200, content_type, bytes)),
        None => Response::error(&ApiError::not_found(format!("There is nothing at {path}."))),
    }
}

fn guarded(response: Response) -> Response {
    response
        .header("content-security-policy", CONTENT_SECURITY_POLICY)
        .header("x-content-type-options", "nosniff")
        .header("x-frame-options", "DENY")
        .header("referrer-policy", "no-referrer")
        .header("permissions-policy", "camera=(), microphone=(), geolocation=()")
        .header("cross-origin-opener-policy", "same-origin")
        // The files change with the binary and have no version in their names.
        .header("cache-control", "no-cache")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_served_with_a_policy_that_forbids_inline_code() {
        let page = asset("/");
        assert_eq!(page.status, 200);
        assert!(page.content_type.starts_with("text/html"));
        let policy = page.headers.iter().find(|(name, _)| *name == "content-security-policy").expect("a policy");
        assert!(!policy.1.contains("unsafe-inline") && policy.1.contains("frame-ancestors 'none'"));
        assert_eq!(asset("/console/../secret").status, 404);
    }
}
