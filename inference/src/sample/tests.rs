use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

/// The straightforward version: probabilities in f64, everything sorted, one step after the other.
fn reference(logits: &[f32], s: &Sampling, history: &[u32], prompt: usize) -> Vec<(u32, f64)> {
    let mut l: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    let window = if s.repetition_window == 0 { history.len() } else { s.repetition_window as usize };
    let seen: HashSet<u32> = history.iter().rev().take(window).copied().collect();
    let penalty = f64::from(s.repetition_penalty);
    for t in seen {
        let x = &mut l[t as usize];
        *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
    }
    for t in history[prompt..].iter().copied().collect::<HashSet<u32>>() {
        l[t as usize] -= f64::from(s.presence_penalty);
    }
    for t in &history[prompt..] {
        l[*t as usize] -= f64::from(s.frequency_penalty);
    }
    let max = l.iter().copied().fold(f64::MIN, f64::max);
    let mut p: Vec<(u32, f64)> =
        l.iter().zip(0_u32..).map(|(x, id)| (id, ((x - max) / f64::from(s.temperature)).exp())).collect();
    p.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    p.retain(|(_, w)| *w >= f64::from(s.min_p));
    if s.top_k > 0 {
        p.truncate(s.top_k as usize);
    }
    let total: f64 = p.iter().map(|(_, w)| w).sum();
    let mut mass = 0.0;
    let keep = p.iter().take_while(|(_, w)| {
        let before = mass;
        mass += w / total;
        s.top_p >= 1.0 || before < f64::from(s.top_p)
    });
    let keep = keep.count().max(1);
    p.truncate(keep);
    let total: f64 = p.iter().map(|(_, w)| w).sum();
    p.iter().map(|(id, w)| (*id, w / total)).collect()
}

/// Logits that look like a model's: few high ones, many low ones. Distinct, so that edges are unambiguous.
fn logits(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| (uniform(seed, i) * 12.0 - 6.0) as f32 + (uniform(seed ^ 7, i) as f32).powi(8) * 8.0)
        .collect()
}

proptest! {
    #[test]
    fn keeps_and_weighs_what_the_plain_version_does(
        seed in any::<u64>(),
        n in 1_usize..600,
        temperature in 0.2_f32..2.5,
        top_k in prop_oneof![Just(0_u32), 1_u32..50],
        top_p in prop_oneof![Just(1.0_f32), 0.0_f32..1.0],
        min_p in prop_oneof![Just(0.0_f32), 0.001_f32..0.5],
        repetition_penalty in prop_oneof![Just(1.0_f32), 0.8_f32..1.5],
        repetition_window in 0_u32..8,
        presence_penalty in prop_oneof![Just(0.0_f32), -1.0_f32..1.0],
        frequency_penalty in prop_oneof![Just(0.0_f32), -1.0_f32..1.0],
        history in proptest::collection::vec(any::<u32>(), 1..20),
    ) {
        let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed, repetition_window };
        let history: Vec<u32> = history.iter().map(|t| t % n as u32).collect();
        let prompt = history.len() / 2;
        let original = logits(n, seed);
        let expected = reference(&original, &sampling, &history, prompt);
        let mut sampler = Sampler::new(n);
        let mut row = original.clone();
        sampler.penalise(&mut row, &sampling, &history, prompt);
        let max = maximum(&row);
        sampler.keep_candidates(&row, max, 1.0 / temperature, &sampling);
        let total: f64 = sampler.kept.iter().map(|(w, _)| f64::from(*w)).sum();
        let kept: Vec<(u32, f64)> = sampler.kept.iter().map(|(w, id)| (*id, f64::from(*w) / total)).collect();
        let without = |a: &[(u32, f64)], b: &[(u32, f64)]| -> Vec<f64> {
            a.iter().filter(|(id, _)| !b.iter().any(|(other, _)| other == id)).map(|(_, p)| *p).collect()
        };
        // A token exactly on the edge may fall either way by rounding, and so may a crowd of negligible ones.
        let difference = [without(&kept, &expected), without(&expected, &kept)].concat();
        let mass: f64 = difference.iter().sum();
        prop_assert!(difference.len() <= 1 || mass < 1e-4, "{difference:?}");
        for (id, p) in &expected {
            if let Some((_, q)) = kept.iter().find(|(other, _)| other == id) {
                prop_assert!((q - p).abs() < 1e-4 + mass, "{id}: {q} instead of {p}");
            }
        }
        let picked = sampler.pick(&mut original.clone(), &sampling, &history, prompt).expect("finite");
        prop_assert!((picked as usize) < n);
        let again = sampler.pick(&mut original.clone(), &sampling, &history, prompt).expect("finite");
        prop_assert_eq!(picked, again);
    }

    #[test]
    fn log_probabilities_equal_the_plain_version(seed in any::<u64>(), n in 1_usize..700, top in 0_usize..20) {
        let row = logits(n, seed);
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        let chosen = (seed % n as u64) as u32;
        let norm = log_sum(&row);
        let got = f64::from(log_prob(row[chosen as usize], norm));
        prop_assert!((got - (f64::from(row[chosen as usize]) - sum.ln())).abs() < 1e-4);
        let mut sorted: Vec<(f32, u32)> = row.iter().copied().zip(0_u32..).collect();
        sorted.sort_by(better);
        let ids: Vec<u32> = sorted.iter().take(top).map(|(_, id)| *id).collect();
        prop_assert_eq!(best_log_probs(&row, norm, top).iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
    }
}

#[test]
fn greedy_takes_the_first_of_the_best_and_ignores_nan() {
    let mut sampler = Sampler::new(5);
    let mut pick = |row: &mut [f32]| sampler.pick(row, &Sampling::greedy(), &[0], 1);
    assert_eq!(pick(&mut [0.0, 3.0, f32::NAN, 3.0, 1.0]), Ok(1));
    assert_eq!(pick(&mut [f32::NAN; 5]), Err(NoFiniteLogit));
    assert_eq!(pick(&mut [f32::NEG_INFINITY; 5]), Err(NoFiniteLogit));
}

#[test]
fn frequencies_of_many_draws_follow_the_probabilities() {
    let row: Vec<f32> = [0.5_f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
    let mut sampler = Sampler::new(4);
    for sampling in [Sampling::default(), Sampling { top_k: 4, top_p: 0.999_999, ..Sampling::default() }] {
        let mut counts = [0_u32; 4];
        for seed in 0..20_000 {
            let picked = sampler.pick(&mut row.clone(), &Sampling { seed, ..sampling.clone() }, &[0], 1);
            counts[picked.expect("finite") as usize] += 1;
        }
        for (count, p) in counts.iter().zip([0.5_f64, 0.3, 0.15, 0.05]) {
            // Five standard deviations of a binomial count.
            let slack = 5.0 * (20_000.0 * p * (1.0 - p)).sqrt();
            assert!((f64::from(*count) - 20_000.0 * p).abs() < slack, "{counts:?}");
        }
    }
}

#[test]
fn a_seed_gives_a_new_draw_for_every_token() {
    let draws: HashSet<u64> = (0..1000).map(|i| uniform(1, i).to_bits()).collect();
    assert_eq!(draws.len(), 1000);
    assert!(draws.iter().all(|d| (0.0..1.0).contains(&f64::from_bits(*d))));
}

#[test]
fn a_flat_row_is_truncated_without_losing_exactness() {
    let mut sampler = Sampler::new(1000);
    let sampling = Sampling { top_k: 10, ..Sampling::default() };
    sampler.keep_candidates(&[1.0; 1000], 1.0, 1.0, &sampling);
    assert_eq!(sampler.kept.iter().map(|(_, id)| *id).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
}
