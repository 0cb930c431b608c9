//! The kernels at work: one layer of a network in each weight format, for one token and for several.
//!
//! The throughput is in multiply-adds of the layer's matrices; attention and norms are in the time but not in
//! the count, as in every other engine's figures.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millrace_bench::Steps;
use millrace_bench::synthetic::{Sizes, model};
use millrace_inference::gguf::TensorType;

fn layer(c: &mut Criterion) {
    let mut group = c.benchmark_group("one layer");
    group.sample_size(20);
    for kind in [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q8_0, TensorType::F16] {
        let mut steps = Steps::new(model(Sizes::ONE_LAYER, kind), 64);
        for tokens in [1, 8, 64] {
            steps.plan_decode(tokens);
            group.throughput(Throughput::Elements((tokens * Sizes::ONE_LAYER.layer_weights()) as u64));
            group.bench_function(BenchmarkId::new(format!("{kind:?}"), tokens), |b| b.iter(|| steps.run()));
        }
    }
    group.finish();
}

criterion_group!(benches, layer);
criterion_main!(benches);
