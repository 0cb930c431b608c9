//! Weights, packed once at load into one arena in the order in which a step reads them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::time::SystemTime;

use memmap2::MmapMut;

use super::keys::variant;
use super::packed::{Found, Packed};
use super::rope::RopeFactors;
use super::{Experts, Hyper};
use crate::backend::LoadError;
use crate::gguf::{Gguf, GgufError, TensorView};
use crate::kernel::{Matrix, TILE_ROWS, TileKind, pack_rows, unpack_row};
use crate::quant;

/// One transformer layer. Vectors that most models lack are empty where they are missing.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) q: Matrix,
    pub(crate) k: Matrix,
    pub(crate) v: Matrix,
    pub(crate) o: Matrix,
    /// Biases of query, key, value and output projection.
    pub(crate) biases: [Vec<f32>; 4],
    /// Norms of each query and key head.
    pub(crate) q_norm: Vec<f32>,
    pub(crate) k_norm: Vec<f32>,
    /// Norm of the attention result.
    pub(crate) post_attention_norm: Vec<f32>,
    pub(crate) ff_norm: Vec<f32>,
    pub(crate) feed_forward: FeedForward,
    /// Norm of the feed-forward result.
    pub(crate) post_ff_norm: Vec<f32>,
}

/// A gated feed-forward part, or many of them to choose from.
#[derive(Debug)]
pub(crate) enum FeedForward {
    /// One for all tokens.
    Dense(Gated),
    /// A few for each token, as the router says.
    Experts {
        /// One row for each expert.
        router: Matrix,
        /// The experts.
        experts: Vec<Gated>,
    },
}

/// down(activation(gate) × up).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gated {
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
    /// Divisors of the rotation frequencies.
    pub(crate) rope_factors: RopeFactors,
    pub(crate) plain: PlainActivations,
}

/// Which products read plain activations beside quantised ones.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PlainActivations {
    /// Some product with the normalised residual stream.
    pub(crate) residual: bool,
    /// Some product with attention results.
    pub(crate) attended: bool,
    /// Some product with the inner values of a feed-forward part.
    pub(crate) inner: bool,
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
        let mut planner = Planner { gguf, wrap, sources: Vec::new(), bytes: 0, used: HashSet::new() };
        let embedding = planner.matrix("token_embd.weight", hyper.vocab, hyper.width)?;
        let layers =
            (0..hyper.layers).map(|index| planner.layer(index, hyper)).collect::<Result<Vec<_>, LoadError>>()?;
        let output_norm = planner.vector("output_norm.weight", hyper.width)?;
        let head = match gguf.tensor("output.weight") {
            Some(_) => planner.matrix("output.weight", hyper.vocab, hyper.width)?,
            None => embedding,
        };
        let rope_factors = planner.rope_factors(hyper.rope.dim / 2)?;
        planner.all_understood()?;
        let Planner { sources, bytes, .. } = planner;
        let plain = plain_activations(&layers, &head);
        let packed = cache.map(|(folder, modified)| Packed::new(folder, modified, &sources));
        let arena = arena(&sources, bytes, packed.as_ref())?;
        gguf.release_pages();
        Ok(Weights { arena, embedding, layers, output_norm, head, rope_factors, plain })
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

fn plain_activations(layers: &[Layer], head: &Matrix) -> PlainActivations {
    let plain = |matrices: &[&Matrix]| matrices.iter().any(|matrix| matrix.kind.needs_plain_activations());
    let mut needed = PlainActivations { residual: plain(&[head]), ..PlainActivations::default() };
    for layer in layers {
        needed.residual |= plain(&[&layer.q, &layer.k, &layer.v]);
        needed.attended |= plain(&[&layer.o]);
        let parts = match &layer.feed_forward {
            FeedForward::Dense(gated) => std::slice::from_ref(gated),
            FeedForward::Experts { router, experts } => {
                needed.residual |= plain(&[router]);
                experts
            }
        };
        for Gated { gate, up, down } in parts {
            needed.residual |= plain(&[gate, up]);
            needed.inner |= plain(&[down]);
        }
    }
    needed
}

/// Places matrices in the arena before it exists, and remembers which tensors have a place.
struct Planner<'a, W> {
    gguf: &'a Gguf,
    wrap: &'a W,
    sources: Vec<Source<'a>>,
    bytes: usize,
    used: HashSet<String>,
}

impl<'a, W: Fn(GgufError) -> LoadError> Planner<'a, W> {
    fn layer(&mut self, index: usize, hyper: &Hyper) -> Result<Layer, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let width = hyper.width;
        let [q, k, v] = self.projections(index, hyper)?;
        let [q_norm, k_norm] = match hyper.head_norms {
            true => {
                [self.vector(&name("attn_q_norm"), hyper.head_dim)?, self.vector(&name("attn_k_norm"), hyper.head_dim)?]
            }
            false => [Vec::new(), Vec::new()],
        };
        let [post_attention_norm, post_ff_norm] = match hyper.post_norms {
            true => [self.vector(&name("post_attention_norm"), width)?, self.vector(&name("post_ffw_norm"), width)?],
            false => [Vec::new(), Vec::new()],
        };
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm"), width)?,
            q,
            k,
            v,
            o: self.matrix(&name("attn_output"), width, hyper.q_width())?,
            biases: self.biases(index, hyper)?,
            q_norm,
            k_norm,
            post_attention_norm,
            ff_norm: self.vector(&name("ffn_norm"), width)?,
            feed_forward: self.feed_forward(index, hyper)?,
            post_ff_norm,
        })
    }

    /// Query, key and value projection, stored apart or one below the other.
    fn projections(&mut self, index: usize, hyper: &Hyper) -> Result<[Matrix; 3], LoadError> {
        let (q, kv, width) = (hyper.q_width(), hyper.kv_width(), hyper.width);
        let fused = format!("blk.{index}.attn_qkv.weight");
        if self.gguf.tensor(&fused).is_some() {
            return self.rows(&fused, [q, kv, kv], width);
        }
        let mut one = |part: &str, rows| self.matrix(&format!("blk.{index}.{part}.weight"), rows, width);
        Ok([one("attn_q", q)?, one("attn_k", kv)?, one("attn_v", kv)?])
    }

    fn biases(&mut self, index: usize, hyper: &Hyper) -> Result<[Vec<f32>; 4], LoadError> {
        let (q, kv, width) = (hyper.q_width(), hyper.kv_width(), hyper.width);
        let mut optional = |part: &str, len| {
            let name = format!("blk.{index}.{part}.bias");
            if self.gguf.tensor(&name).is_some() { self.vector(&name, len) } else { Ok(Vec::new()) }
        };
        let fused = optional("attn_qkv", q + 2 * kv)?;
        let o = optional("attn_output", width)?;
        if !fused.is_empty() {
            return Ok([fused[..q].to_vec(), fused[q..q + kv].to_vec(), fused[q + kv..].to_vec(), o]);
        }
        Ok([optional("attn_q", q)?, optional("attn_k", kv)?, optional("attn_v", kv)?, o])
    }

    fn feed_forward(&mut self, index: usize, hyper: &Hyper) -> Result<FeedForward, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let (width, ff) = (hyper.width, hyper.ff);
        if let Some(Experts { count, .. }) = hyper.experts {
            let router = self.matrix(&name("ffn_gate_inp"), count, width)?;
            let gate = self.stack(&name("ffn_gate_exps"), count, ff, width)?;
            let up = self.stack(&name("ffn_up_exps"), count, ff, width)?;
            let down = self.stack(&name("ffn_down_exps"), count, width, ff)?;
            let experts = (0..count).map(|i| Gated { gate: gate[i], up: up[i], down: down[i] }).collect();
            return Ok(FeedForward::Experts { router, experts });
        }
        let [gate, up] = match hyper.fused_gate {
            true => self.rows(&name("ffn_up"), [ff, ff], width)?,
            false => [self.matrix(&name("ffn_gate"), ff, width)?, self.matrix(&name("ffn_up"), ff, width)?],
        };
        Ok(FeedForward::Dense(Gated { gate, up, down: self.matrix(&name("ffn_down"), width, ff)? }))
    }

    fn rope_factors(&mut self, pairs: usize) -> Result<RopeFactors, LoadError> {
        let mut optional = |name: &str| -> Result<Vec<f32>, LoadError> {
            if self.gguf.tensor(name).is_none() {
                return Ok(Vec::new());
            }
            let factors = self.vector(name, pairs)?;
            match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
                None => Ok(factors),
                Some(factor) => Err(variant(name, factor, "positive numbers")),
            }
        };
        let always = optional("rope_freqs.weight")?;
        let (short, long) = (optional("rope_factors_short.weight")?, optional("rope_factors_long.weight")?);
        if short.len() != long.len() {
            let missing = if short.is_empty() { "rope_factors_short.weight" } else { "rope_factors_long.weight" };
            return Err((self.wrap)(GgufError::MissingTensor { name: missing.to_owned() }));
        }
        Ok(RopeFactors { always, short, long })
    }

    fn tensor(&mut self, name: &str, rows: usize, columns: usize) -> Result<TensorView<'a>, LoadError> {
        let tensor = self.gguf.require_tensor(name).map_err(self.wrap)?;
        if (tensor.rows, tensor.columns) != (rows, columns) {
            let (what, value) = (format!("shape of {name}"), tensor.rows as u64 * tensor.columns as u64);
            return Err(LoadError::Shape { what, value, expected: format!("{rows} rows of {columns} elements") });
        }
        self.used.insert(name.to_owned());
        Ok(tensor)
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        let tensor = self.tensor(name, rows, columns)?;
        self.place(tensor)
    }

    /// Matrices that lie one below the other in one tensor.
    fn rows<const N: usize>(&mut self, name: &str, rows: [usize; N], columns: usize) -> Result<[Matrix; N], LoadError> {
        let parts = self.split(name, &rows, columns)?;
        Ok(parts.try_into().expect("one matrix for each number of rows"))
    }

    /// `count` matrices of one shape in one tensor.
    fn stack(&mut self, name: &str, count: usize, rows: usize, columns: usize) -> Result<Vec<Matrix>, LoadError> {
        self.split(name, &vec![rows; count], columns)
    }

    fn split(&mut self, name: &str, rows: &[usize], columns: usize) -> Result<Vec<Matrix>, LoadError> {
        let tensor = self.tensor(name, rows.iter().sum(), columns)?;
        let row_bytes = tensor.bytes.len() / tensor.rows;
        let mut from = 0;
        let part = |&rows: &usize| {
            let bytes = &tensor.bytes[from * row_bytes..][..rows * row_bytes];
            from += rows;
            self.place(TensorView { rows, bytes, ..tensor })
        };
        rows.iter().map(part).collect()
    }

    fn place(&mut self, tensor: TensorView<'a>) -> Result<Matrix, LoadError> {
        let kind = TileKind::of(tensor.kind).ok_or_else(|| unsupported(&tensor))?;
        let matrix = Matrix { kind, rows: tensor.rows, columns: tensor.columns, offset: self.bytes };
        // Sizes are bounded by `Hyper`'s limits, so the sum cannot overflow 64 bits.
        self.bytes += matrix.bytes().next_multiple_of(ALIGNMENT);
        self.sources.push((matrix, tensor));
        Ok(matrix)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, 1, len)?;
        let mut values = vec![0.0; len];
        if !quant::dequantize(tensor.kind, tensor.bytes, &mut values) {
            return Err(unsupported(&tensor));
        }
        Ok(values)
    }

    /// Refuses a file with a tensor that has no place in the network.
    fn all_understood(&self) -> Result<(), LoadError> {
        match self.gguf.tensors().find(|tensor| !self.used.contains(tensor.name)) {
            None => Ok(()),
            Some(tensor) => Err(LoadError::Unknown { what: "tensor", name: tensor.name.to_owned() }),
        }
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
