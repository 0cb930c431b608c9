//! OAuth clients: programs that get access tokens for themselves.

use serde::{Deserialize, Serialize};

use super::secrets::SecretHash;

/// What kind of access token a client gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// Random text that only this node can read: revocable at once, everywhere.
    #[default]
    Opaque,
    /// A signed JWT that other services can check with the key set (RFC 9068).
    Jwt,
}

impl TokenKind {
    /// Its name in requests and lists.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opaque => "opaque",
            Self::Jwt => "jwt",
        }
    }

    /// Reads a name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Opaque, Self::Jwt].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A client as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its public name.
    pub id: String,
    /// Its tenant.
    pub tenant: u32,
    /// The user that its tokens stand for.
    pub user: String,
    /// What it is for, in the words of its maker.
    pub label: String,
    /// What its tokens may do at most.
    pub scopes: u32,
    /// What kind of token it gets.
    pub kind: TokenKind,
    /// How long a token lives.
    pub lifetime_s: u64,
    /// Unix milliseconds of its making.
    pub created_ms: u64,
    /// Its secret.
    pub secret: SecretHash,
    /// The secret before a rotation, and the Unix second until which it still holds.
    pub previous: Option<(SecretHash, u64)>,
}

impl Client {
    /// The hashes of the secrets that hold at `now_s`.
    pub fn secrets(&self, now_s: u64) -> Vec<SecretHash> {
        let previous = self.previous.iter().filter(|(_, until_s)| now_s < *until_s).map(|(hash, _)| hash);
        std::iter::once(&self.secret).chain(previous).cloned().collect()
    }
}

/// An opaque access token as it is stored, under the SHA-256 of its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpaqueToken {
    /// The client that it was given to.
    pub client: String,
    /// What it may be used for.
    pub scopes: u32,
    /// Unix seconds of its making.
    pub iat: u64,
    /// Unix seconds of its end.
    pub exp: u64,
}
