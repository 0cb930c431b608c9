//! Who is who across channels, and how each chat wants to be answered.
//!
//! A person on two channels is two users until they say so themselves: a code that is shown in one private chat
//! and typed in another links the second user to the first, and only then do both speak to one memory. The code
//! is good once, for ten minutes, inside its tenant; it is kept as a digest, and guesses are rationed.
//!
//! [`People`] is what a node knows of this. It lives on no thread, reads no clock and draws no randomness. Rows
//! are kept in pages: [`People::missing`] names those that have to be read before a question can be answered, and
//! a [`Change`] holds a page that has to be written.

use std::collections::{BTreeMap, HashMap};

use millrace_proto::digest;
use millrace_proto::gcra::{self, Limit};
use millrace_proto::id::{TenantId, UserId};

/// How long a code is good.
pub const CODE_TTL_MS: u64 = 10 * 60_000;
/// Characters of a code: 40 bits, of which a guesser sees a handful an hour.
pub const CODE_CHARS: usize = 8;
/// Codes that are good at the same time on one node.
const CODES_MAX: usize = 10_000;
/// Users whose rate is watched at the same time; the watch of the longest idle ones ends first.
const WATCHED_MAX: usize = 50_000;
/// Rows of one page: with 256 pages for each tenant, about a million links.
const PAGE_ROWS_MAX: usize = 4_096;
/// Links that lead from one user to the person; more would mean a circle.
const HOPS_MAX: usize = 8;
/// Without letters and digits that look alike.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
/// Codes that one user may ask for.
const SHOWN: Limit = Limit { interval_ns: 600_000_000_000, burst: 3 };
/// Wrong codes of one user.
const WRONG: Limit = Limit { interval_ns: 600_000_000_000, burst: 5 };
/// Wrong codes of a whole tenant: what bounds many users that guess together.
const WRONG_TENANT: Limit = Limit { interval_ns: 6_000_000_000, burst: 100 };

const ROW_BYTES: usize = 32;
const PAGE_VERSION: u8 = 1;

/// What the rows of a page are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// User to the user whose memory it shares.
    Links,
    /// Chat to its settings.
    Chats,
}

/// One page of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageKey {
    /// Whose rows.
    pub tenant: TenantId,
    /// What they are.
    pub table: Table,
    /// First byte of the ids in it.
    pub slot: u8,
}

impl PageKey {
    /// The name under which the page is stored.
    pub fn name(&self) -> String {
        let table = match self.table {
            Table::Links => "links",
            Table::Chats => "chats",
        };
        format!("people/{table}/{}/{:02x}", self.tenant.0, self.slot)
    }
}

/// Which messages of a group are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// Those that address us.
    #[default]
    Mentions,
    /// All.
    All,
    /// None.
    Off,
}

impl Listen {
    /// The word for it in commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mentions => "mentions",
            Self::All => "all",
            Self::Off => "off",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Mentions, Self::All, Self::Off].into_iter().find(|one| word.eq_ignore_ascii_case(one.as_str()))
    }
}

/// Why nothing was changed. The words are for the person who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many codes or too many wrong ones.
    #[error("That was too often. Try again in {0} minutes.")]
    TooOften(u64),
    /// Unknown, used or too old: which of these is not said.
    #[error("This code is not valid. A code is good once and for ten minutes.")]
    WrongCode,
    /// The code is the asker's own.
    #[error("This code was made here. Type it in the other chat.")]
    OwnCode,
    /// Linked to somebody else already.
    #[error("This account is linked already. Send /unlink first.")]
    LinkedAlready,
    /// Not linked.
    #[error("This account is not linked.")]
    NotLinked,
    /// A bound of this node.
    #[error("There is no room for that now. Try again later.")]
    Full,
}

/// A page to write. When the write fails, [`People::forget`] makes the truth be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which page.
    pub page: PageKey,
    /// Its new content.
    pub bytes: Vec<u8>,
}

type Row = [u8; 16];

struct Code {
    tenant: TenantId,
    user: UserId,
    ends_ms: u64,
}

/// Rates of one user.
#[derive(Default)]
struct Watch {
    shown: gcra::State,
    wrong: gcra::State,
    last_ms: u64,
}

/// What a node knows of people and chats.
#[derive(Default)]
pub struct People {
    pages: HashMap<PageKey, BTreeMap<Row, Row>>,
    /// By digest: whoever can read memory or a dump learns no code.
    codes: HashMap<[u8; 32], Code>,
    watched: HashMap<(TenantId, UserId), Watch>,
    wrong: HashMap<TenantId, gcra::State>,
}

impl People {
    /// The page that must be read before [`People::person`] can answer.
    pub fn missing_for_user(&self, tenant: TenantId, user: UserId) -> Option<PageKey> {
        let mut row = user.0;
        for _ in 0..HOPS_MAX {
            let page = page(tenant, Table::Links, &row);
            match self.pages.get(&page) {
                None => return Some(page),
                Some(rows) => match rows.get(&row) {
                    None => return None,
                    Some(next) => row = *next,
                },
            }
        }
        None
    }

    /// The page that must be read before [`People::listen`] can answer.
    pub fn missing_for_chat(&self, tenant: TenantId, chat: &str) -> Option<PageKey> {
        let page = page(tenant, Table::Chats, &chat_row(tenant, chat));
        (!self.pages.contains_key(&page)).then_some(page)
    }

    /// A page as it was read; `None` when there is none yet. Damaged content is an error, and nothing is taken.
    pub fn fill(&mut self, page: PageKey, bytes: Option<&[u8]>) -> Result<(), &'static str> {
        let rows = match bytes {
            None => BTreeMap::new(),
            Some(bytes) => parse(bytes).ok_or("a page of people is damaged")?,
        };
        self.pages.insert(page, rows);
        Ok(())
    }

    /// A page whose write failed is read again.
    pub fn forget(&mut self, page: &PageKey) {
        self.pages.remove(page);
    }

    /// Whose memory a user speaks to: their own, or that of the person they are linked to.
    pub fn person(&self, tenant: TenantId, user: UserId) -> UserId {
        let mut row = user.0;
        for _ in 0..HOPS_MAX {
            match self.pages.get(&page(tenant, Table::Links, &row)).and_then(|rows| rows.get(&row)) {
                Some(next) => row = *next,
                None => return UserId(row),
            }
        }
        UserId(row)
    }

    /// Makes a code for a user. `entropy` is fresh and secret.
    pub fn show_code(
        &mut self,
        tenant: TenantId,
        user: UserId,
        entropy: [u8; CODE_CHARS],
        now_ms: u64,
    ) -> Result<String, Refused> {
        self.codes.retain(|_, code| code.ends_ms > now_ms);
        if self.codes.len() >= CODES_MAX {
            return Err(Refused::Full);
        }
        gcra::check(&mut self.watch(tenant, user, now_ms).shown, ns(now_ms), 1, &SHOWN).map_err(too_often)?;
        // A user has one code at a time: the newest.
        self.codes.retain(|_, code| (code.tenant, code.user) != (tenant, user));
        let text: String = entropy.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
        self.codes.insert(code_digest(tenant, &text), Code { tenant, user, ends_ms: now_ms + CODE_TTL_MS });
        Ok(text)
    }

    /// Links `user` to the one who was shown this code. The pages of both must be there
    /// ([`People::owner_of`] says whose the other one is). The code is used up, whatever comes of it.
    pub fn redeem(&mut self, tenant: TenantId, user: UserId, code: &str, now_ms: u64) -> Result<Change, Refused> {
        let watch = self.watch(tenant, user, now_ms);
        let mut wrong = watch.wrong;
        let mut wrong_tenant = self.wrong.get(&tenant).copied().unwrap_or_default();
        // Who has guessed too often gets no further look, not even at a right code.
        gcra::check(&mut wrong, ns(now_ms), 1, &WRONG).map_err(too_often)?;
        gcra::check(&mut wrong_tenant, ns(now_ms), 1, &WRONG_TENANT).map_err(too_often)?;
        let digest = code_digest(tenant, &normal(code));
        let good = self.codes.get(&digest).is_some_and(|code| code.tenant == tenant && code.ends_ms > now_ms);
        if !good {
            self.watch(tenant, user, now_ms).wrong = wrong;
            self.wrong.insert(tenant, wrong_tenant);
            return Err(Refused::WrongCode);
        }
        if self.codes[&digest].user == user {
            return Err(Refused::OwnCode);
        }
        let owner = self.codes.remove(&digest).expect("looked at above").user;
        let (here, there) = (self.person(tenant, user), self.person(tenant, owner));
        if here == there || here != user {
            return Err(Refused::LinkedAlready);
        }
        self.put(page(tenant, Table::Links, &user.0), user.0, Some(there.0))
    }

    /// Who was shown a code, so that the shell can read that user's page first. Says nothing to the asker.
    pub fn owner_of(&self, tenant: TenantId, code: &str) -> Option<UserId> {
        self.codes.get(&code_digest(tenant, &normal(code))).map(|code| code.user)
    }

    /// Ends the link of a user.
    pub fn unlink(&mut self, tenant: TenantId, user: UserId) -> Result<Change, Refused> {
        if self.person(tenant, user) == user {
            return Err(Refused::NotLinked);
        }
        self.put(page(tenant, Table::Links, &user.0), user.0, None)
    }

    /// How a chat wants to be answered.
    pub fn listen(&self, tenant: TenantId, chat: &str) -> Listen {
        let row = chat_row(tenant, chat);
        match self.pages.get(&page(tenant, Table::Chats, &row)).and_then(|rows| rows.get(&row)).map(|row| row[0]) {
            Some(1) => Listen::All,
            Some(2) => Listen::Off,
            _ => Listen::Mentions,
        }
    }

    /// Sets how a chat wants to be answered.
    pub fn set_listen(&mut self, tenant: TenantId, chat: &str, listen: Listen) -> Result<Change, Refused> {
        let row = chat_row(tenant, chat);
        let value = match listen {
            Listen::Mentions => None,
            Listen::All => Some([1; 16]),
            Listen::Off => Some([2; 16]),
        };
        self.put(page(tenant, Table::Chats, &row), row, value)
    }

    fn put(&mut self, page: PageKey, row: Row, value: Option<Row>) -> Result<Change, Refused> {
        let rows = self.pages.entry(page).or_default();
        match value {
            Some(_) if rows.len() >= PAGE_ROWS_MAX && !rows.contains_key(&row) => return Err(Refused::Full),
            Some(value) => drop(rows.insert(row, value)),
            None => drop(rows.remove(&row)),
        }
        Ok(Change { page, bytes: encode(rows) })
    }

    fn watch(&mut self, tenant: TenantId, user: UserId, now_ms: u64) -> &mut Watch {
        if self.watched.len() >= WATCHED_MAX && !self.watched.contains_key(&(tenant, user)) {
            // Whoever has been silent for as long as the rates remember is free again anyway.
            let longest_ms = 5 * WRONG.interval_ns / 1_000_000;
            self.watched.retain(|_, watch| watch.last_ms + longest_ms > now_ms);
            if self.watched.len() >= WATCHED_MAX {
                let oldest = self.watched.iter().min_by_key(|(_, watch)| watch.last_ms).map(|(key, _)| *key);
                oldest.and_then(|key| self.watched.remove(&key));
            }
        }
        let watch = self.watched.entry((tenant, user)).or_default();
        watch.last_ms = now_ms;
        watch
    }
}

fn ns(now_ms: u64) -> u64 {
    now_ms.saturating_mul(1_000_000)
}

fn too_often(wait_ns: u64) -> Refused {
    Refused::TooOften((wait_ns / 60_000_000_000).saturating_add(1))
}

fn page(tenant: TenantId, table: Table, row: &Row) -> PageKey {
    PageKey { tenant, table, slot: row[0] }
}

fn chat_row(tenant: TenantId, chat: &str) -> Row {
    UserId::of(tenant, &format!("chat:{chat}")).0
}

/// A code as people type it: any case, with spaces or dashes.
fn normal(code: &str) -> String {
    code.chars().filter(char::is_ascii_alphanumeric).take(64).map(|c| c.to_ascii_uppercase()).collect()
}

fn code_digest(tenant: TenantId, code: &str) -> [u8; 32] {
    digest::sha256(format!("millrace link code:{}:{code}", tenant.0).as_bytes())
}

fn encode(rows: &BTreeMap<Row, Row>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + rows.len() * ROW_BYTES);
    bytes.push(PAGE_VERSION);
    for (key, value) in rows {
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
    }
    bytes
}

fn parse(bytes: &[u8]) -> Option<BTreeMap<Row, Row>> {
    let (version, rows) = bytes.split_first()?;
    if *version != PAGE_VERSION || !rows.len().is_multiple_of(ROW_BYTES) || rows.len() / ROW_BYTES > PAGE_ROWS_MAX {
        return None;
    }
    let row = |bytes: &[u8]| Some((bytes[..16].try_into().ok()?, bytes[16..].try_into().ok()?));
    rows.chunks_exact(ROW_BYTES).map(row).collect()
}

#[cfg(test)]
mod tests;
