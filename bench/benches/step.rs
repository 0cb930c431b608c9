//! Whole engine steps of a 135M model (Q4_1): the throughput is in tokens.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millrace_bench::Steps;
use millrace_bench::synthetic::{Sizes, model};
use millrace_inference::gguf::TensorType;
use std::time::Duration;

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("step of a 135M model");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    let mut steps = Steps::new(model(Sizes::SMOL_135M, TensorType::Q4_1), 32);
    for sequences in [1, 8, 32] {
        steps.plan_decode(sequences);
        group.throughput(Throughput::Elements(sequences as u64));
        group.bench_function(BenchmarkId::new("decode", sequences), |b| b.iter(|| steps.run()));
    }
    let tokens = 128;
    steps.plan_prefill(tokens);
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function(BenchmarkId::new("prefill", tokens), |b| b.iter(|| steps.run()));
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
