//! One shape for everything that a person at the terminal must be told: what happened, why, what next.

use std::fmt;

/// A failure worded for the person who started the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What did not work, with the value concerned.
    pub what: String,
    /// The reason, as exactly as it is known; empty when `what` says it already.
    pub why: String,
    /// The command or change that helps.
    pub next: String,
}

impl Trouble {
    /// A failure from its three parts.
    pub fn new(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), next: next.into() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.why.is_empty() {
            write!(f, "\n  why:  {}", self.why)?;
        }
        write!(f, "\n  next: {}", self.next)
    }
}

impl std::error::Error for Trouble {}
