//! What can be wrong with a model file.

use std::path::PathBuf;

/// A model file was refused. Every variant says what was found and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file could not be opened or mapped.
    #[error("cannot read model file {}; check that the path exists and that this user may read it", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The first four bytes are not `GGUF`.
    #[error("this is not a GGUF model file: it starts with {found:02x?} instead of \"GGUF\"; choose a .gguf file")]
    BadMagic {
        /// The bytes found.
        found: [u8; 4],
    },
    /// A version that this reader does not know.
    #[error("GGUF version {version} is not supported (2 and 3 are{}); convert the model again", if *.big_endian { "; the file is big endian" } else { "" })]
    Version {
        /// The number found.
        version: u32,
        /// True when the bytes read as a known version in the other byte order.
        big_endian: bool,
    },
    /// The file ends inside something.
    #[error(
        "the model file is cut short: {what} needs {needed} bytes at offset {offset}, the file has {len}; download it again"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// Bytes it needs from there.
        needed: u64,
        /// Length of the file.
        len: u64,
    },
    /// A count or a length over the bound of this reader.
    #[error("the model file states {value} for {what}, more than the bound of {max}; it is damaged or hostile")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// The stated number.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// Bytes that break a rule of the format.
    #[error("the model file is damaged at offset {offset}: {what}; download it again")]
    Malformed {
        /// The broken rule.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// A metadata key or a tensor name occurs twice.
    #[error("the model file names {name:?} twice; it is damaged or hostile")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A tensor whose shape, type or place is impossible.
    #[error("tensor {name:?} of the model file is not usable: {what}")]
    Tensor {
        /// The tensor.
        name: String,
        /// The broken rule.
        what: String,
    },
    /// A metadata key that the model needs is absent.
    #[error("the model file has no metadata key {key:?}; convert the model again with a current converter")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value of another kind than the model needs.
    #[error("metadata key {key:?} of the model file must be {wanted}, it is {found}")]
    WrongKind {
        /// The key.
        key: String,
        /// What is needed.
        wanted: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A tensor that the model needs is absent.
    #[error("the model file has no tensor {name:?}; it does not hold a complete model of its architecture")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
}

impl GgufError {
    pub(crate) fn wrong_kind(key: &str, wanted: &'static str, found: &'static str) -> Self {
        GgufError::WrongKind { key: key.to_owned(), wanted, found }
    }
}
