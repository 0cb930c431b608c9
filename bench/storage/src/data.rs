//! The rows and questions of the search figures: real vectors, made more where there are too few.
//!
//! GloVe has 400,000 words. Every 400th is kept back as a question. Rows beyond the words are mixtures of
//! two of them (60 to 90 % of the one), all of length one, so that a million rows keep the crowded
//! neighbourhoods of the real ones. Files: `base.f32`, `questions.f32` (little-endian, row by row),
//! `truth.u32` (the ten nearest of each question, by inner product, found by comparing all).

use crate::{Random, unit};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread;

const QUESTION_EVERY: usize = 400;
/// The nearest of each question that are looked for.
pub const NEAREST: usize = 10;

pub struct Data {
    pub dim: usize,
    pub base: Vec<f32>,
    pub questions: Vec<f32>,
    pub truth: Vec<u32>,
}

impl Data {
    pub fn read(folder: &Path) -> Result<Self> {
        let about: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("about.json")).context("run `ann-data` first")?)?;
        let dim = about["dim"].as_u64().context("about.json names the length of the rows")? as usize;
        let truth = fs::read(folder.join("truth.u32"))?;
        let truth = truth.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four"))).collect();
        Ok(Self {
            dim,
            base: floats(&folder.join("base.f32"))?,
            questions: floats(&folder.join("questions.f32"))?,
            truth,
        })
    }

    pub fn rows(&self) -> usize {
        self.base.len() / self.dim
    }
}

fn floats(path: &Path) -> Result<Vec<f32>> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four"))).collect())
}

pub fn write(folder: &Path, vectors: &Path, rows: usize) -> Result<()> {
    let (dim, real) = read_npy(vectors)?;
    let mut base: Vec<f32> = Vec::with_capacity(rows * dim);
    let mut questions = Vec::new();
    for (n, row) in real.chunks_exact(dim).enumerate() {
        let row = unit(row.to_vec());
        if n % QUESTION_EVERY == 0 {
            questions.extend(row);
        } else if base.len() < rows * dim {
            base.extend(row);
        }
    }
    let words = base.len() / dim;
    let mut random = Random(11);
    while base.len() < rows * dim {
        let (one, other) = (random.below(words), random.below(words));
        let share = 0.6 + 0.3 * random.share();
        let mixed = (0..dim).map(|at| share * base[one * dim + at] + (1.0 - share) * base[other * dim + at]).collect();
        base.extend(unit(mixed));
    }
    let truth = nearest(&base, &questions, dim, |_| true);
    put(&folder.join("base.f32"), base.iter().flat_map(|x| x.to_le_bytes()))?;
    put(&folder.join("questions.f32"), questions.iter().flat_map(|x| x.to_le_bytes()))?;
    put(&folder.join("truth.u32"), truth.iter().flat_map(|x| x.to_le_bytes()))?;
    let about = json!({ "dim": dim, "rows": rows, "real_rows": words, "questions": questions.len() / dim });
    fs::write(folder.join("about.json"), about.to_string())?;
    println!("{about}");
    Ok(())
}

fn put(path: &Path, bytes: impl Iterator<Item = u8>) -> Result<()> {
    let mut file = std::io::BufWriter::new(fs::File::create(path)?);
    let bytes: Vec<u8> = bytes.collect();
    file.write_all(&bytes)?;
    Ok(file.flush()?)
}

/// The numbers of the ten nearest wanted rows of each question.
pub fn nearest(base: &[f32], questions: &[f32], dim: usize, wanted: impl Fn(usize) -> bool + Sync) -> Vec<u32> {
    let count = questions.len() / dim;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let some = count.div_ceil(threads).max(1) * dim;
    let wanted = &wanted;
    thread::scope(|scope| {
        let parts: Vec<_> = questions
            .chunks(some)
            .map(|questions| scope.spawn(move || nearest_on_one_thread(base, questions, dim, wanted)))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("comparing does not panic")).collect()
    })
}

fn nearest_on_one_thread(base: &[f32], questions: &[f32], dim: usize, wanted: &impl Fn(usize) -> bool) -> Vec<u32> {
    let count = questions.len() / dim;
    let mut best: Vec<Vec<(f32, u32)>> = vec![Vec::with_capacity(NEAREST + 1); count];
    for (at, row) in base.chunks_exact(dim).enumerate() {
        if !wanted(at) {
            continue;
        }
        for (question, best) in questions.chunks_exact(dim).zip(&mut best) {
            let score = dot(row, question);
            if best.len() < NEAREST || best.last().is_some_and(|(worst, _)| score > *worst) {
                let place = best.partition_point(|(known, _)| *known >= score);
                best.insert(place, (score, at as u32));
                best.truncate(NEAREST);
            }
        }
    }
    best.into_iter().flatten().map(|(_, at)| at).collect()
}

/// Inner product in several sums, which the compiler keeps in vector registers.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a_whole, a_rest), (b_whole, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0f32; 16];
    for (a, b) in a_whole.iter().zip(b_whole) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// A NumPy file of version 1 or 2 with single-precision numbers in rows.
fn read_npy(path: &Path) -> Result<(usize, Vec<f32>)> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    ensure!(bytes.starts_with(b"\x93NUMPY"), "{} is not a NumPy file", path.display());
    let (length, start) = match bytes.get(6) {
        Some(1) => (usize::from(u16::from_le_bytes(bytes[8..10].try_into()?)), 10),
        Some(_) => (u32::from_le_bytes(bytes[8..12].try_into()?) as usize, 12),
        None => bail!("{} is cut off", path.display()),
    };
    let head = std::str::from_utf8(bytes.get(start..start + length).context("the file is cut off")?)?;
    ensure!(head.contains("'<f4'"), "unexpected numbers: {head}");
    let by_column = head.contains("'fortran_order': True");
    let shape = head.split("'shape': (").nth(1).and_then(|rest| rest.split(')').next()).context("no shape")?;
    let sizes: Vec<usize> = shape.split(',').filter_map(|size| size.trim().parse().ok()).collect();
    let [rows, dim] = sizes[..] else { bail!("the file does not hold rows: {shape}") };
    let numbers: Vec<f32> = bytes[start + length..]
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four")))
        .collect();
    ensure!(numbers.len() == rows * dim, "the file is cut off");
    if by_column {
        let row = |at: usize| (0..dim).map(move |column| column * rows + at);
        return Ok((dim, (0..rows).flat_map(row).map(|at| numbers[at]).collect()));
    }
    Ok((dim, numbers))
}
