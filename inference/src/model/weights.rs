//! Weights, packed once at load into one arena in the order in which a step reads them.

use std::path::Path;
use std::sync::Mutex;
use std::time::SystemTime;

use memmap2::MmapMut;

use super::Hyper;
use super::packed::{Found, Packed};
use crate::backend::LoadError;
use crate::gguf::{Gguf, GgufError, TensorView};
use crate::kernel::{Matrix, TILE_ROWS, TileKind, pack_rows, unpack_row};
use crate::quant;

/// One transformer layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) q: Matrix,
    pub(crate) k: Matrix,
    pub(crate) v: Matrix,
    pub(crate) o: Matrix,
    pub(crate) ff_norm: Vec<f32>,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

/// All weights of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    arena: MmapMut,
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>,
    /// The output head; the embedding again when the model ties them.
    pub(crate) head: Matrix,
    /// Divisors of the rotation frequencies, one per pair; empty when there are none.
    pub(crate) rope_factors: Vec<f32>,
    /// True when some product reads plain activations.
    pub(crate) plain_activations: bool,
}

/// Matrices start at cache lines.
const ALIGNMENT: usize = 64;
/// Tile rows that one packing job handles.
const JOB_ROW_TILES: usize = 64;
pub(super) const LOAD_THREADS_MAX: usize = 8;

/// A matrix with its place in the arena, and the tensor it is packed from.
pub(super) type Source<'a> = (Matrix, TensorView<'a>);

impl Weights {
    pub(super) fn load(
        gguf: &Gguf,
        hyper: &Hyper,
        wrap: &impl Fn(GgufError) -> LoadError,
        cache: Option<(&Path, SystemTime)>,
    ) -> Result<Weights, LoadError> {
        let mut planner = Planner { gguf, wrap, sources: Vec::new(), bytes: 0 };
        let embedding = planner.matrix("token_embd.weight", hyper.vocab, hyper.width)?;
        let layers =
            (0..hyper.layers).map(|index| planner.layer(index, hyper)).collect::<Result<Vec<_>, LoadError>>()?;
        let output_norm = planner.vector("output_norm.weight", hyper.width)?;
        let head = match gguf.tensor("output.weight") {
            Some(_) => planner.matrix("output.weight", hyper.vocab, hyper.width)?,
            None => embedding,
        };
        let rope_factors = match gguf.tensor("rope_freqs.weight") {
            Some(_) => planner.vector("rope_freqs.weight", hyper.rope_dim / 2)?,
            None => Vec::new(),
        };
        let Planner { sources, bytes, .. } = planner;
        let plain_activations = sources.iter().any(|(matrix, _)| matrix.kind.needs_plain_activations());
        let packed = cache.map(|(folder, modified)| Packed::new(folder, modified, &sources));
        let arena = arena(&sources, bytes, packed.as_ref())?;
        gguf.release_pages();
        Ok(Weights { arena, embedding, layers, output_norm, head, rope_factors, plain_activations })
    }

    /// Bytes of all packed matrices.
    pub(crate) fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// Row `tile` of tiles of a matrix.
    pub(crate) fn row_tile(&self, matrix: &Matrix, tile: usize) -> &[u8] {
        assert!(tile < matrix.row_tiles(), "the tile belongs to the matrix");
        &self.arena[matrix.offset + tile * matrix.row_tile_bytes()..][..matrix.row_tile_bytes()]
    }

    /// Decodes the embedding of `token`.
    pub(crate) fn embed(&self, token: u32, out: &mut [f32]) {
        let row = token as usize;
        unpack_row(self.embedding.kind, self.row_tile(&self.embedding, row / TILE_ROWS), row % TILE_ROWS, out);
    }
}

/// Places matrices in the arena before it exists.
struct Planner<'a, W> {
    gguf: &'a Gguf,
    wrap: &'a W,
    sources: Vec<Source<'a>>,
    bytes: usize,
}

impl<W: Fn(GgufError) -> LoadError> Planner<'_, W> {
    fn layer(&mut self, index: usize, hyper: &Hyper) -> Result<Layer, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        for bias in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            let bias = format!("blk.{index}.{bias}.bias");
            if self.gguf.tensor(&bias).is_some() {
                return Err(LoadError::Shape { what: bias, value: 1, expected: "no bias in attention".into() });
            }
        }
        let (q, kv, width, ff) = (hyper.q_width(), hyper.kv_width(), hyper.width, hyper.ff);
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm"), width)?,
            q: self.matrix(&name("attn_q"), q, width)?,
            k: self.matrix(&name("attn_k"), kv, width)?,
            v: self.matrix(&name("attn_v"), kv, width)?,
            o: self.matrix(&name("attn_output"), width, q)?,
            ff_norm: self.vector(&name("ffn_norm"), width)?,
            gate: self.matrix(&name("ffn_gate"), ff, width)?,
            up: self.matrix(&name("ffn_up"), ff, width)?,
            down: self.matrix(&name("ffn_down"), width, ff)?,
        })
    }

    fn tensor(&self, name: &str, rows: usize, columns: usize) -> Result<TensorView<'_>, LoadError> {
        let tensor = self.gguf.require_tensor(name).map_err(self.wrap)?;
        if (tensor.rows, tensor.columns) != (rows, columns) {
            let (what, value) = (format!("shape of {name}"), tensor.rows as u64 * tensor.columns as u64);
            return Err(LoadError::Shape { what, value, expected: format!("{rows} rows of {columns} elements") });
        }
        Ok(tensor)
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        self.tensor(name, rows, columns)?;
        let tensor = self.gguf.require_tensor(name).map_err(self.wrap)?;
        let kind = TileKind::of(tensor.kind).ok_or_else(|| unsupported(&tensor))?;
        let matrix = Matrix { kind, rows, columns, offset: self.bytes };
        // Sizes are bounded by `Hyper`'s limits, so the sum cannot overflow 64 bits.
        self.bytes += matrix.bytes().next_multiple_of(ALIGNMENT);
        self.sources.push((matrix, tensor));
        Ok(matrix)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, 1, len)?;
        let mut values = vec![0.0; len];
        if !quant::dequantize(tensor.kind, tensor.bytes, &mut values) {
            return Err(unsupported(&tensor));
        }
        Ok(values)
    }
}

fn unsupported(tensor: &TensorView<'_>) -> LoadError {
    let (name, kind) = (tensor.name.to_owned(), format!("{:?}", tensor.kind));
    LoadError::TensorType { name, kind, supported: quant::SUPPORTED }
}

/// All matrices, packed: read from where an earlier start left them, or packed now and left there.
fn arena(sources: &[Source<'_>], bytes: usize, packed: Option<&Packed>) -> Result<MmapMut, LoadError> {
    let mut arena = MmapMut::map_anon(bytes.max(1)).map_err(|_| LoadError::Memory { bytes })?;
    // Large pages let the prefetchers run on; without them it is only slower. A mapped file has none, so it is copied.
    let _ = arena.advise(memmap2::Advice::HugePage);
    match packed.map(|packed| packed.read(&mut arena)) {
        Some(Found::Whole) => return Ok(arena),
        Some(Found::Damaged(why)) => {
            tracing::warn!(why, "the packed weights of an earlier start are of no use and are made anew");
            // Tiles have unused places that must be zero.
            arena.fill(0);
        }
        Some(Found::Nothing) | None => {}
    }
    fill(sources, &mut arena);
    if let Some(Err(error)) = packed.map(|packed| packed.write(&arena)) {
        tracing::warn!(%error, "the packed weights cannot be kept, so that the next start takes longer");
    }
    Ok(arena)
}

/// Packs on several threads.
fn fill(sources: &[Source<'_>], arena: &mut [u8]) {
    let mut jobs = Vec::new();
    let mut rest = arena;
    for (matrix, tensor) in sources {
        let (mut region, tail) = rest.split_at_mut(matrix.bytes().next_multiple_of(ALIGNMENT));
        rest = tail;
        let row_bytes = tensor.bytes.len() / matrix.rows;
        for first in (0..matrix.row_tiles()).step_by(JOB_ROW_TILES) {
            let tiles = JOB_ROW_TILES.min(matrix.row_tiles() - first);
            let (out, tail) = region.split_at_mut(tiles * matrix.row_tile_bytes());
            region = tail;
            let rows = first * TILE_ROWS..((first + tiles) * TILE_ROWS).min(matrix.rows);
            jobs.push((tensor, matrix, &tensor.bytes[rows.start * row_bytes..rows.end * row_bytes], out));
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(LOAD_THREADS_MAX);
    let jobs = Mutex::new(jobs);
    let work = || {
        loop {
            let job = jobs.lock().expect("packing does not panic").pop();
            let Some((tensor, matrix, source, out)) = job else { return };
            let row_bytes = tensor.bytes.len() / matrix.rows;
            let tiles = out.chunks_exact_mut(matrix.row_tile_bytes());
            for (out, source) in tiles.zip(source.chunks(TILE_ROWS * row_bytes)) {
                pack_rows(tensor.kind, source, source.len() / row_bytes, matrix.columns, out);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
}
