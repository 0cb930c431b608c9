//! A writer of small model files for tests, right or wrong on purpose.

use super::{Gguf, GgufError, TensorType, Value};

/// Writes small model files, right or wrong on purpose.
#[derive(Clone, Default)]
pub(crate) struct Writer {
    pub(crate) metadata: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) data: Vec<u8>,
    pub(crate) counts: Option<(u64, u64)>,
    pub(crate) version: Option<u32>,
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Writer {
    /// The content of a file without arrays.
    pub(crate) fn of(gguf: &Gguf) -> Self {
        let add = |writer: Self, key: &str| match gguf.get(key).expect("the key was listed") {
            Value::Unsigned(value) => writer.entry(key, 4, &(value as u32).to_le_bytes()),
            Value::Float(value) => writer.entry(key, 6, &(value as f32).to_le_bytes()),
            Value::Bool(value) => writer.entry(key, 7, &[value.into()]),
            Value::Str(value) => writer.entry(key, 8, &string(value)),
            other => panic!("{key} is {}", other.kind_name()),
        };
        let writer = gguf.keys().fold(Self::default(), add);
        gguf.tensors().fold(writer, |writer, tensor| {
            writer.tensor_with(tensor.name, &[tensor.columns as u64, tensor.rows as u64], tensor.kind, tensor.bytes)
        })
    }

    pub(crate) fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.metadata.push([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    pub(crate) fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        let mut bytes = string(name);
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|dimension| bytes.extend(dimension.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    /// A tensor with its bytes, at the next free place.
    pub(crate) fn tensor_with(mut self, name: &str, dimensions: &[u64], kind: TensorType, bytes: &[u8]) -> Self {
        let offset = self.data.len().next_multiple_of(32);
        self.data.resize(offset, 0);
        self.data.extend(bytes);
        self.tensor(name, dimensions, kind.number(), offset as u64)
    }

    pub(crate) fn data(mut self, bytes: usize) -> Self {
        self.data = (0..bytes).map(|i| i as u8).collect();
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let (tensors, metadata) = self.counts.unwrap_or((self.tensors.len() as u64, self.metadata.len() as u64));
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.unwrap_or(3).to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(metadata.to_le_bytes());
        self.metadata.iter().chain(&self.tensors).for_each(|part| bytes.extend(part));
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub(crate) fn read(&self) -> Result<Gguf, GgufError> {
        Gguf::from_bytes(self.build())
    }
}
