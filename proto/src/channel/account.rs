//! One configured account of a channel, and its secrets.

use super::ChannelKind;
use crate::id::TenantId;
use crate::limits::WEBHOOK_SKEW_S;
use std::fmt;
use zeroize::Zeroizing;

/// A secret: wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, if it is text.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// One configured account of a channel. Which fields a platform uses, and what for, is in its
/// [`Spec::needs`](super::Spec::needs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The platform.
    pub kind: ChannelKind,
    /// The name in addresses and configuration.
    pub name: String,
    /// Tenant that owns it.
    pub tenant: TenantId,
    /// Secrets for verification, current first, then earlier ones during a rotation.
    pub secrets: Vec<Secret>,
    /// Keys of encrypted callbacks, current first.
    pub encryption_keys: Vec<Secret>,
    /// A second shared word of the platform (Meta and Feishu verification tokens).
    pub verify_token: Option<Secret>,
    /// Token for calls to the platform.
    pub bot_token: Option<Secret>,
    /// Secret from which access tokens are made, where the platform has short-lived ones.
    pub app_secret: Option<Secret>,
    /// Our id at the platform: application, corporation, project or account.
    pub app_id: Option<String>,
    /// Our user on the platform, to recognise mentions and our own messages.
    pub bot_id: Option<String>,
    /// Our own name on the platform, to recognise mentions.
    pub bot_username: Option<String>,
    /// From whom replies come: number, mail address, agent id or sender name.
    pub sender: Option<String>,
    /// Variant of the platform's protocol.
    pub mode: Option<String>,
    /// Topics that may deliver (Amazon SNS).
    pub topics: Vec<String>,
    /// The address under which the platform reaches this server, without the path of the hook.
    pub public_url: Option<String>,
    /// Base address of the platform's API, when it is not the public one.
    pub api_base: Option<String>,
    /// Base address of the platform's published keys, when they are not fetched from the public one.
    pub keys_base: Option<String>,
    /// Where replies go, for platforms that only report. May be a bearer address.
    pub reply_url: Option<Secret>,
    /// Whether replies are shown while they are written, where the platform can change messages.
    pub stream: bool,
    /// The only users who are served; everybody when it is empty.
    pub users: Vec<String>,
    /// Users who may change the settings of groups.
    pub operators: Vec<String>,
    /// Clock difference that is allowed, when it is not the usual one.
    pub skew_s: Option<u64>,
}

impl Account {
    /// An account without any setting.
    pub fn new(kind: ChannelKind, name: impl Into<String>, tenant: TenantId) -> Self {
        Self {
            kind,
            name: name.into(),
            tenant,
            secrets: Vec::new(),
            encryption_keys: Vec::new(),
            verify_token: None,
            bot_token: None,
            app_secret: None,
            app_id: None,
            bot_id: None,
            bot_username: None,
            sender: None,
            mode: None,
            topics: Vec::new(),
            public_url: None,
            api_base: None,
            keys_base: None,
            reply_url: None,
            stream: true,
            users: Vec::new(),
            operators: Vec::new(),
            skew_s: None,
        }
    }

    /// Seconds that a timestamp may differ from our clock.
    pub(super) fn skew_s(&self) -> u64 {
        self.skew_s.unwrap_or(WEBHOOK_SKEW_S)
    }

    /// The platform's API without a final slash.
    pub(super) fn api<'a>(&'a self, public: &'a str) -> &'a str {
        self.api_base.as_deref().unwrap_or(public).trim_end_matches('/')
    }

    /// Where a public document (a key set, a certificate, a confirmation) is fetched for this account: at the
    /// public address, or at the same path of [`Account::keys_base`].
    pub fn document_address(&self, public: &str) -> String {
        let Some(base) = &self.keys_base else { return public.to_owned() };
        if on_base(public, base) {
            return public.to_owned();
        }
        let host = public.find("://").map_or(0, |at| at + 3);
        let path = public[host..].find('/').map_or("", |at| &public[host + at..]);
        format!("{}{path}", base.trim_end_matches('/'))
    }

    /// Whether an address that an event named lies on the configured API.
    pub(super) fn owns(&self, url: &str) -> bool {
        self.api_base.as_deref().is_some_and(|base| on_base(url, base))
    }

    /// Id and secret from which access tokens are made.
    pub(super) fn client_credentials(&self) -> Result<(&str, &str), super::EncodeError> {
        let missing = |missing| super::EncodeError { channel: self.kind, account: self.name.clone(), missing };
        let secret = self.app_secret.as_ref().and_then(Secret::text).filter(|text| !text.is_empty());
        Ok((
            self.app_id.as_deref().ok_or_else(|| missing("no app_id is configured"))?,
            secret.ok_or_else(|| missing("no app_secret is configured"))?,
        ))
    }

    /// The secrets that are not empty: an empty one protects nothing and never verifies.
    pub(super) fn usable(secrets: &[Secret]) -> impl Iterator<Item = &[u8]> {
        secrets.iter().map(Secret::bytes).filter(|secret| !secret.is_empty())
    }

    /// The settings that are missing although the platform needs them, with what they are.
    pub fn missing(&self) -> impl Iterator<Item = &'static super::Need> {
        self.kind.spec().needs.iter().filter(|need| need.required && !self.has(need.key))
    }

    fn has(&self, key: &str) -> bool {
        let secret = |secret: &Option<Secret>| secret.as_ref().is_some_and(|secret| !secret.bytes().is_empty());
        let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        match key {
            "secrets" => Self::usable(&self.secrets).next().is_some(),
            "encryption_keys" => Self::usable(&self.encryption_keys).next().is_some(),
            "verify_token" => secret(&self.verify_token),
            "bot_token" => secret(&self.bot_token),
            "app_secret" => secret(&self.app_secret),
            "app_id" => text(&self.app_id),
            "bot_id" => text(&self.bot_id),
            "bot_username" => text(&self.bot_username),
            "sender" => text(&self.sender),
            "mode" => text(&self.mode),
            "topics" => !self.topics.is_empty(),
            "public_url" => text(&self.public_url),
            "api_base" => text(&self.api_base),
            "keys_base" => text(&self.keys_base),
            "reply_url" => secret(&self.reply_url),
            _ => false,
        }
    }
}

/// Whether an address lies under a base: `https://api.example` is not a base of `https://api.example.evil`.
pub(super) fn on_base(url: &str, base: &str) -> bool {
    let base = base.trim_end_matches('/');
    !base.is_empty() && url.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_ends_at_a_boundary() {
        let mut account = Account::new(ChannelKind::DingTalk, "a", TenantId(1));
        assert!(!account.owns("https://api.example/x"));
        account.api_base = Some("https://api.example".into());
        assert!(account.owns("https://api.example/x") && account.owns("https://api.example?x"));
        assert!(!account.owns("https://api.example.evil/x") && !account.owns("https://api.example@evil/x"));
        assert!(!account.owns("http://api.example/x"));
        account.api_base = Some(String::new());
        assert!(!account.owns("https://anything"));
    }

    #[test]
    fn documents_keep_their_path_on_another_base() {
        let mut account = Account::new(ChannelKind::Teams, "a", TenantId(1));
        let public = "https://login.example/v1/keys?x=1";
        assert_eq!(account.document_address(public), public);
        account.keys_base = Some("http://127.0.0.1:9/base/".into());
        assert_eq!(account.document_address(public), "http://127.0.0.1:9/base/v1/keys?x=1");
        assert_eq!(account.document_address("http://127.0.0.1:9/base/v1/k"), "http://127.0.0.1:9/base/v1/k");
    }
}
