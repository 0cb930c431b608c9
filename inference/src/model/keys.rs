//! Reading the keys of an architecture so that none is passed over in silence.

use std::cell::RefCell;
use std::collections::HashSet;

use crate::backend::LoadError;
use crate::gguf::{Gguf, GgufError, Value};

/// Keys that describe a model without changing what it computes.
const INFORMATION: [&str; 3] = ["vocab_size", "tensor_data_layout", "rope.scaling.finetuned"];

/// The keys below `ARCHITECTURE.`, and which of them were asked for.
pub(super) struct Keys<'a, W> {
    gguf: &'a Gguf,
    arch: &'a str,
    wrap: &'a W,
    known: RefCell<HashSet<String>>,
}

impl<'a, W: Fn(GgufError) -> LoadError> Keys<'a, W> {
    pub(super) fn new(gguf: &'a Gguf, arch: &'a str, wrap: &'a W) -> Keys<'a, W> {
        Keys { gguf, arch, wrap, known: RefCell::new(INFORMATION.map(str::to_owned).into()) }
    }

    /// The value of a key, or nothing when the file lacks it.
    pub(super) fn get(&self, name: &str) -> Option<Value<'a>> {
        self.known.borrow_mut().insert(name.to_owned());
        self.gguf.get(&self.full(name))
    }

    /// A whole number from 1 to `max` that `multiple` divides.
    pub(super) fn size(&self, name: &str, max: u64, multiple: u64) -> Result<usize, LoadError> {
        self.get(name);
        let value = self.gguf.u64(&self.full(name)).map_err(self.wrap)?;
        checked(name, value, max, multiple)
    }

    /// Like [`Keys::size`], or `default` when the file lacks the key.
    pub(super) fn size_or(&self, name: &str, default: usize, max: u64, multiple: u64) -> Result<usize, LoadError> {
        if self.get(name).is_some() { self.size(name, max, multiple) } else { Ok(default) }
    }

    /// A whole number up to `max` where 0 means none.
    pub(super) fn count(&self, name: &str, max: u64) -> Result<Option<usize>, LoadError> {
        match self.get(name) {
            Some(value) if value.as_u64() != Some(0) => self.size(name, max, 1).map(Some),
            _ => Ok(None),
        }
    }

    /// A finite number; nothing when the file lacks the key.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, LoadError> {
        if self.get(name).is_none() {
            return Ok(None);
        }
        let value = self.gguf.f64(&self.full(name)).map_err(self.wrap)?;
        if value.is_finite() { Ok(Some(value)) } else { Err(variant(name, value, "a finite number")) }
    }

    /// A number above 0; nothing when the file lacks the key.
    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>, LoadError> {
        match self.number(name)? {
            Some(value) if value <= 0.0 => Err(variant(name, value, "a positive number")),
            value => Ok(value),
        }
    }

    /// A number above 0 where 0 means none.
    pub(super) fn cap(&self, name: &str) -> Result<Option<f64>, LoadError> {
        Ok(if self.number(name)? == Some(0.0) { None } else { self.positive(name)? })
    }

    /// Text; nothing when the file lacks the key.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, LoadError> {
        match self.get(name) {
            None => Ok(None),
            Some(_) => self.gguf.str(&self.full(name)).map(Some).map_err(self.wrap),
        }
    }

    /// A flag; `default` when the file lacks the key.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, LoadError> {
        match self.get(name) {
            None => Ok(default),
            Some(_) => self.gguf.bool(&self.full(name)).map_err(self.wrap),
        }
    }

    /// Refuses the file when it has a key of this architecture that nobody asked for.
    pub(super) fn all_understood(&self) -> Result<(), LoadError> {
        let known = self.known.borrow();
        let prefix = format!("{}.", self.arch);
        let mut foreign: Vec<&str> = self
            .gguf
            .keys()
            .filter(|key| key.strip_prefix(&prefix).is_some_and(|name| !known.contains(name)))
            .collect();
        foreign.sort_unstable();
        match foreign.first() {
            None => Ok(()),
            Some(name) => Err(LoadError::Unknown { what: "metadata key", name: (*name).to_owned() }),
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }
}

pub(super) fn checked(what: &str, value: u64, max: u64, multiple: u64) -> Result<usize, LoadError> {
    if value == 0 || value > max || !value.is_multiple_of(multiple) {
        let expected = match multiple {
            1 => format!("from 1 to {max}"),
            _ => format!("a multiple of {multiple} up to {max}"),
        };
        return Err(LoadError::Shape { what: what.to_owned(), value, expected });
    }
    Ok(value as usize)
}

/// A size that contradicts another.
pub(super) fn shape(what: &str, value: usize, expected: String) -> LoadError {
    LoadError::Shape { what: what.to_owned(), value: value as u64, expected }
}

/// A setting whose value is not one that is supported.
pub(super) fn variant(what: &str, value: impl ToString, expected: impl Into<String>) -> LoadError {
    LoadError::Variant { what: what.to_owned(), value: value.to_string(), expected: expected.into() }
}
