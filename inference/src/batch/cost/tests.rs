use super::*;
use proptest::prelude::*;

const TRUE: Rates = Rates { step: 5e6, sampled: 9e5, plain: 6e5, attended: 200.0 };

fn work(decodes: usize, context: usize, prompt: usize) -> Work {
    let mut work = Work::default();
    (0..decodes).for_each(|_| work.add(context, 1, 1));
    work.add(0, prompt, usize::from(prompt > 0));
    work
}

fn time(ns: f64) -> Duration {
    Duration::from_nanos(ns as u64)
}

#[test]
fn rows_and_context_are_counted() {
    assert_eq!(work(2, 10, 3), Work { sampled: 3, plain: 2, attended: 22 + 6 });
    assert_eq!(attended(5, 3), 6 + 7 + 8);
}

#[test]
fn before_the_first_step_nothing_is_known_and_after_it_the_step_is_explained() {
    let mut meter = Meter::default();
    assert_eq!(meter.rates(), None);
    meter.note(&work(0, 0, 100), time(80e6));
    let known = meter.rates().expect("one step was seen");
    assert!((known.of(&work(0, 0, 100)) - 80e6).abs() < 1.0);
}

#[test]
fn the_largest_chunk_within_a_time_is_found() {
    for (start, ns) in [(0, 1e7), (500, 1e7), (4000, 3e6), (0, 0.0)] {
        let rows = TRUE.prompt_rows(start, 300, ns);
        assert!(TRUE.prompt(start, rows) <= ns);
        assert!(rows == 300 || TRUE.prompt(start, rows + 1) > ns);
    }
}

proptest! {
    /// Whatever mixture of steps it saw, disturbed by noise and by rare long interruptions, it predicts such steps.
    #[test]
    fn predictions_hold_for_the_kind_of_steps_that_were_seen(
        steps in proptest::collection::vec((0_usize..64, 1_usize..600, 0_usize..128, 0.9_f64..1.1, 0_u32..40), 200..400),
    ) {
        let mut meter = Meter::default();
        let mut wrong: Vec<f64> = Vec::new();
        for (at, (decodes, context, prompt, noise, trouble)) in steps.iter().enumerate() {
            let work = work(*decodes, *context, *prompt + usize::from(*decodes == 0));
            let truth = TRUE.of(&work);
            if at > 150 {
                wrong.push((meter.rates().expect("known").of(&work) / truth).ln().abs());
            }
            let disturbed = if *trouble == 0 { 8.0 } else { 1.0 };
            meter.note(&work, time(truth * noise * disturbed));
        }
        wrong.sort_by(f64::total_cmp);
        let p90 = wrong[wrong.len() * 9 / 10].exp();
        prop_assert!(p90 < 1.35, "nine of ten predictions are within a factor of {p90}");
    }

    /// A long stretch of nothing but decoding does not make it forget what prompts cost, and a machine that becomes
    /// slower is followed.
    #[test]
    fn what_is_not_exercised_is_remembered(batch in 1_usize..64, slower in 1.0_f64..2.5) {
        let mut meter = Meter::default();
        for prompt in [16, 100, 40, 128, 7].into_iter().cycle().take(100) {
            let work = work(prompt / 10, 200, prompt);
            meter.note(&work, time(TRUE.of(&work)));
        }
        let decode = work(batch, 300, 0);
        for _ in 0..500 {
            meter.note(&decode, time(TRUE.of(&decode) * slower));
        }
        let rates = meter.rates().expect("known");
        let apart = rates.of(&decode) / (TRUE.of(&decode) * slower);
        prop_assert!((0.9..1.1).contains(&apart), "decoding is known: {apart}");
        let prompt = rates.prompt(0, 100) / TRUE.prompt(0, 100);
        prop_assert!((0.6..=1.2 * slower).contains(&prompt), "prompts are remembered: {prompt}");
    }
}
