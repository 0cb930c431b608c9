//! The graph of sealed segments by itself, as libraries are measured: rows in memory, one thread, no text read. What the
//! walk finds by codes is compared again with the rows, as a library that keeps rows does at every step.

use crate::data::{Data, NEAREST, dot};
use crate::processor_s;
use anyhow::{Result, ensure};
use millrace_storage::MeasuredGraph;
use serde_json::json;
use std::time::Instant;

/// Rows that a walk keeps.
const EFFORTS: [usize; 14] = [16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 192, 256];
/// Candidates that are compared again.
const COMPARED: usize = 2 * NEAREST;
const ROUNDS: usize = 10;

pub fn measure(folder: &std::path::Path, rows: Option<usize>) -> Result<()> {
    let mut data = Data::read(folder)?;
    if let Some(rows) = rows.filter(|rows| *rows < data.rows()) {
        data.base.truncate(rows * data.dim);
        data.truth = crate::data::nearest(&data.base, &data.questions, data.dim, |_| true);
    }
    let questions: Vec<&[f32]> = data.questions.chunks_exact(data.dim).collect();
    ensure!(!questions.is_empty(), "there are no questions");
    let started = Instant::now();
    let mut graph = MeasuredGraph::build(data.dim, &data.base);
    let build_s = started.elapsed().as_secs_f64();
    for effort in EFFORTS {
        let mut right = 0;
        let before_s = processor_s()?;
        for _ in 0..ROUNDS {
            right = 0;
            for (question, truth) in questions.iter().zip(data.truth.chunks_exact(NEAREST)) {
                let found = nearest(&mut graph, &data, question, effort);
                right += truth.iter().filter(|at| found.contains(at)).count();
            }
        }
        let took_s = (processor_s()? - before_s).max(0.01);
        let recall = right as f64 / (questions.len() * NEAREST) as f64;
        let qps = (questions.len() * ROUNDS) as f64 / took_s;
        let bytes = graph.bytes() as f64 / data.rows() as f64;
        println!(
            "{}",
            json!({ "peer": "millrace", "effort": effort, "recall": recall, "qps": qps, "build_s": build_s, "bytes": bytes })
        );
    }
    Ok(())
}

/// The best rows of a walk by their true products.
fn nearest(graph: &mut MeasuredGraph, data: &Data, question: &[f32], effort: usize) -> Vec<u32> {
    let found = graph.search(question, COMPARED, effort);
    let score = |row: u32| dot(&data.base[row as usize * data.dim..][..data.dim], question);
    let mut scored: Vec<(f32, u32)> = found.into_iter().map(|(row, _)| (score(row), row)).collect();
    scored.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(NEAREST).map(|(_, row)| row).collect()
}
