//! Short-lived access tokens: how to get them, and a cache that refreshes them in time.
//!
//! A token is fetched once at a time for each account, renewed at nine tenths of its life while the old one
//! is still in use, and thrown away when the platform refuses it. After a failure the next fetch waits.

use super::{Account, ChannelKind, EncodeError, OutboundCall, Secret, value};
use crate::id::TenantId;
use std::collections::{HashMap, HashSet};

/// Longest life that is believed.
const LIFE_S_MAX: u64 = 24 * 3_600;
/// First and longest pause after a failed fetch.
const PAUSE_S: (u64, u64) = (1, 60);

/// The call that gets an access token; `None` for platforms whose tokens do not expire. Random numbers blind the
/// signature of platforms that want a signed assertion.
pub fn request(
    account: &Account,
    now_s: u64,
    random: &dyn ring::rand::SecureRandom,
) -> Option<Result<OutboundCall, EncodeError>> {
    account.kind.platform().access(account, now_s, random)
}

/// Whether replies on this platform may need a short-lived access token.
pub fn needed(kind: ChannelKind) -> bool {
    use ChannelKind::{DingTalk, Feishu, GoogleChat, QqBot, Teams, WeChatMp, WeCom};
    matches!(kind, Teams | GoogleChat | WeCom | WeChatMp | DingTalk | Feishu | QqBot)
}

/// A token with its life.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The token.
    pub token: Secret,
    /// Seconds from now.
    pub life_s: u64,
}

/// Reads the answer to [`request`]. The error says what the platform said, never a token.
pub fn parse(status: u16, body: &[u8]) -> Result<Fetched, String> {
    let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let token =
        ["/access_token", "/tenant_access_token", "/accessToken"].iter().find_map(|name| value::filled(&answer, name));
    let life = ["/expires_in", "/expire", "/expireIn"].iter().find_map(|name| value::id(&answer, name));
    let Some(token) = token.filter(|_| status < 300) else {
        let said = ["/errmsg", "/msg", "/message", "/error_description", "/error"]
            .iter()
            .find_map(|name| value::filled(&answer, name))
            .unwrap_or("no token in the answer");
        return Err(format!("the platform gave no access token ({status}): {}", super::outbound::clip(said, 200)));
    };
    let life_s = life.and_then(|life| life.parse::<u64>().ok()).unwrap_or(3_600).clamp(1, LIFE_S_MAX);
    Ok(Fetched { token: Secret::new(token), life_s })
}

type Key = (ChannelKind, TenantId, String);

/// What tokens are made from. A token of other credentials is another application's.
type Credentials = (Option<String>, Option<Secret>);

#[derive(Default)]
struct Entry {
    of: Credentials,
    token: Option<Secret>,
    renew_s: u64,
    ends_s: u64,
    fetching: bool,
    failures: u32,
    retry_s: u64,
    error: String,
}

/// What a lookup gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// A token that is good now.
    pub token: Option<Secret>,
    /// The caller makes the call of [`request`] and reports to [`Tokens::fetched`].
    pub fetch: bool,
    /// Unix seconds of the next try, after a failure.
    pub retry_s: Option<u64>,
}

/// The tokens of the accounts of one node. As many entries as accounts.
#[derive(Default)]
pub struct Tokens(HashMap<Key, Entry>);

impl Tokens {
    /// The token of an account. At most one caller at a time is told to fetch.
    pub fn get(&mut self, account: &Account, now_s: u64) -> Lookup {
        let entry = self.0.entry(key(account)).or_default();
        if entry.of != credentials(account) {
            *entry = Entry { of: credentials(account), ..Entry::default() };
        }
        let token = entry.token.clone().filter(|_| now_s < entry.ends_s);
        let wanted = token.is_none() || now_s >= entry.renew_s;
        let fetch = wanted && !entry.fetching && now_s >= entry.retry_s;
        entry.fetching |= fetch;
        let retry_s = (token.is_none() && !entry.fetching).then_some(entry.retry_s);
        Lookup { token, fetch, retry_s }
    }

    /// How a fetch went. That of credentials that were replaced meanwhile is of no use any more.
    pub fn fetched(&mut self, account: &Account, result: Result<Fetched, String>, now_s: u64) {
        let Some(entry) = self.0.get_mut(&key(account)).filter(|entry| entry.of == credentials(account)) else {
            return;
        };
        entry.fetching = false;
        match result {
            Ok(Fetched { token, life_s }) => {
                entry.token = Some(token);
                // Rounded up, so that a token of a few seconds is used at all.
                entry.renew_s = now_s + (life_s * 9).div_ceil(10);
                entry.ends_s = now_s + life_s;
                (entry.failures, entry.retry_s) = (0, 0);
                entry.error.clear();
            }
            Err(error) => {
                let pause_s = (PAUSE_S.0 << entry.failures.min(16)).min(PAUSE_S.1);
                entry.failures = entry.failures.saturating_add(1);
                entry.retry_s = now_s + pause_s;
                entry.error = error;
            }
        }
    }

    /// The platform refused this token: it is not used again. A newer one stays.
    pub fn refused(&mut self, account: &Account, token: &Secret) {
        if let Some(entry) = self.0.get_mut(&key(account))
            && entry.token.as_ref() == Some(token)
        {
            entry.token = None;
        }
    }

    /// Forgets the tokens of accounts that are not served any more.
    pub fn keep<'a>(&mut self, accounts: impl IntoIterator<Item = &'a Account>) {
        let served: HashSet<Key> = accounts.into_iter().map(key).collect();
        self.0.retain(|known, _| served.contains(known));
    }

    /// What the last failed fetch said; empty after a success.
    pub fn error(&self, account: &Account) -> &str {
        self.0.get(&key(account)).map_or("", |entry| &entry.error)
    }
}

fn key(account: &Account) -> Key {
    (account.kind, account.tenant, account.name.clone())
}

fn credentials(account: &Account) -> Credentials {
    (account.app_id.clone(), account.app_secret.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(token: &str, life_s: u64) -> Result<Fetched, String> {
        Ok(Fetched { token: Secret::new(token), life_s })
    }

    #[test]
    fn a_token_is_fetched_once_and_renewed_at_nine_tenths_of_its_life() {
        let account = Account::new(ChannelKind::Feishu, "a", TenantId(1));
        let mut tokens = Tokens::default();
        let first = tokens.get(&account, 100);
        assert_eq!((first.token, first.fetch), (None, true));
        assert!(!tokens.get(&account, 100).fetch, "a second caller waits");
        tokens.fetched(&account, fetched("one", 1_000), 100);
        let used = tokens.get(&account, 999);
        assert_eq!((used.token, used.fetch), (Some(Secret::new("one")), false));
        let renewed = tokens.get(&account, 1_000);
        assert_eq!((renewed.token, renewed.fetch), (Some(Secret::new("one")), true), "old one in use meanwhile");
        tokens.fetched(&account, fetched("two", 1_000), 1_001);
        tokens.refused(&account, &Secret::new("one"));
        assert_eq!(tokens.get(&account, 1_002).token, Some(Secret::new("two")), "a late refusal of the old one");
        tokens.refused(&account, &Secret::new("two"));
        assert!(tokens.get(&account, 1_003).fetch);
    }

    #[test]
    fn the_list_of_platforms_with_tokens_is_complete() {
        for &kind in ChannelKind::ALL {
            let account = Account::new(kind, "a", TenantId(1));
            assert_eq!(request(&account, 0, &ring::rand::SystemRandom::new()).is_some(), needed(kind), "{kind}");
        }
    }

    #[test]
    fn failures_back_off() {
        let account = Account::new(ChannelKind::QqBot, "a", TenantId(1));
        let mut tokens = Tokens::default();
        let mut now = 0;
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(tokens.get(&account, now).fetch);
            tokens.fetched(&account, Err("down".into()), now);
            let lookup = tokens.get(&account, now + pause - 1);
            assert_eq!((lookup.fetch, lookup.retry_s), (false, Some(now + pause)));
            now += pause;
        }
        assert_eq!(tokens.error(&account), "down");
    }

    #[test]
    fn answers_of_all_platforms_are_read() {
        for (body, life_s) in [
            (r#"{"access_token":"t","expires_in":7200}"#, 7_200),
            (r#"{"access_token":"t","expires_in":"7000"}"#, 7_000),
            (r#"{"errcode":0,"errmsg":"ok","access_token":"t","expires_in":7200}"#, 7_200),
            (r#"{"code":0,"tenant_access_token":"t","expire":6000}"#, 6_000),
            (r#"{"accessToken":"t","expireIn":7200}"#, 7_200),
            (r#"{"access_token":"t","expires_in":0}"#, 1),
        ] {
            let fetched = parse(200, body.as_bytes()).expect(body);
            assert_eq!((fetched.token.text(), fetched.life_s), (Some("t"), life_s));
        }
        let error = parse(200, br#"{"errcode":40013,"errmsg":"invalid appid"}"#).unwrap_err();
        assert!(error.contains("invalid appid"), "{error}");
        assert!(parse(500, br#"{"access_token":"t"}"#).is_err());
        assert!(parse(200, b"<html>").is_err());
    }
}
