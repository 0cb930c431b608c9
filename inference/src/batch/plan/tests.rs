use std::collections::VecDeque;

use super::*;
use proptest::prelude::*;

use crate::batch::fair::Fair;

/// Random schedules per property.
const SCHEDULES: u32 = 10_000;

const BOUNDS: Bounds = Bounds {
    free_blocks: 100,
    sequences_max: 8,
    prefill_tokens: 32,
    logits_rows: 64,
    speculation: Speculation::Auto,
    pace: None,
};
const RATES: Rates = Rates { step: 5e6, sampled: 1e6, plain: 7e5, attended: 200.0 };
const ONE: [Share; 1] = [Share { time: 0.0, weight: 1.0 }];

fn running(order: u64, known: usize, computed: usize) -> View {
    let blocks = blocks_for(computed);
    View { computed, blocks, returns: blocks, running: true, ..waiting(order, known) }
}

fn waiting(order: u64, known: usize) -> View {
    View {
        background: false,
        tenant: 0,
        order,
        known,
        computed: 0,
        blocks: 0,
        returns: 0,
        running: false,
        waits: false,
        chances: Chances::default(),
    }
}

fn plan(views: &[View], shares: &[Share], bounds: &Bounds) -> Plan {
    let mut plan = Plan::default();
    plan.fill(views, shares, bounds);
    plan
}

fn slice(index: usize, count: usize, samples: bool) -> Slice {
    Slice { index, count, samples, drafts: 0 }
}

#[test]
fn running_replies_come_first_and_prompts_share_the_budget_in_order() {
    let views = [waiting(5, 20), running(9, 31, 30), running(7, 40, 10), waiting(4, 10)];
    let plan = plan(&views, &ONE, &BOUNDS);
    assert_eq!(plan.slices, [slice(1, 1, true), slice(3, 10, true), slice(0, 20, true), slice(2, 2, false)]);
    assert_eq!((plan.admit.as_slice(), plan.preempt.as_slice()), (&[3, 0][..], &[][..]));
}

#[test]
fn interactive_goes_before_background_and_the_tenant_that_got_least_before_others() {
    let shares = [Share { time: 50.0, weight: 1.0 }, Share { time: 40.0, weight: 1.0 }];
    let background = View { background: true, tenant: 1, ..waiting(1, 5) };
    let views = [background, waiting(2, 5), View { tenant: 1, ..waiting(9, 15) }, View { tenant: 1, ..waiting(8, 15) }];
    let plan = plan(&views, &shares, &Bounds { prefill_tokens: 64, ..BOUNDS });
    assert_eq!(plan.admit, [3, 1, 2, 0]);
}

#[test]
fn a_weight_lets_a_tenant_take_more() {
    let shares = [Share { time: 0.0, weight: 3.0 }, Share { time: 1.0, weight: 1.0 }];
    let views: Vec<View> = (0..8).map(|i| View { tenant: i % 2, ..waiting(i as u64, 4) }).collect();
    let plan = plan(&views, &shares, &BOUNDS);
    assert_eq!(plan.admit[..5], [0, 1, 2, 4, 6]);
}

#[test]
fn nobody_overtakes_the_first_that_does_not_fit() {
    let bounds = Bounds { free_blocks: 5, ..BOUNDS };
    let views = [running(1, 17, 16), waiting(2, 70), waiting(3, 4)];
    let plan = plan(&views, &ONE, &bounds);
    assert_eq!(plan.slices, [slice(0, 1, true)]);
    assert!(plan.admit.is_empty());
}

#[test]
fn the_last_in_order_gives_its_blocks_to_the_first() {
    let bounds = Bounds { free_blocks: 0, ..BOUNDS };
    let views = [running(2, 33, 32), running(1, 17, 16), running(3, 17, 16)];
    let plan = plan(&views, &ONE, &bounds);
    assert_eq!(plan.preempt, [2, 0]);
    assert_eq!(plan.slices, [slice(1, 1, true)]);
}

#[test]
fn a_cached_prefix_costs_neither_budget_nor_the_blocks_in_use() {
    let bounds = Bounds { free_blocks: 2, ..BOUNDS };
    let shared = View { computed: 64, blocks: 4, ..waiting(1, 70) };
    let plan = plan(&[shared], &ONE, &bounds);
    assert_eq!(plan.slices, [slice(0, 6, true)]);
}

#[test]
fn who_waits_for_the_prefix_of_another_lets_others_pass() {
    let views = [waiting(1, 20), View { waits: true, ..waiting(2, 20) }, waiting(3, 5)];
    assert_eq!(plan(&views, &ONE, &BOUNDS).admit, [0, 2]);
}

#[test]
fn a_prompt_gets_the_time_that_running_replies_leave_and_a_block_at_least() {
    let views =
        |replies: u64| -> Vec<View> { (0..replies).map(|i| running(i, 101, 100)).chain([waiting(99, 500)]).collect() };
    let rows = |replies: u64, target_ms: f64| {
        let pace = Some(Pace { rates: RATES, target_ns: target_ms * 1e6 });
        let bounds = Bounds { prefill_tokens: 400, sequences_max: 100, pace, ..BOUNDS };
        plan(&views(replies), &ONE, &Bounds { free_blocks: 400, ..bounds }).slices.last().expect("a chunk").count
    };
    // (50 ms - 5 ms - 10 rows) / 0.7 ms = 49 rows, down to whole blocks.
    assert_eq!(rows(10, 50.0), 48);
    assert_eq!(rows(30, 50.0), 16);
    assert_eq!(rows(60, 50.0), 16);
    assert_eq!(rows(0, 50.0), 400);
}

/// Chances of a draft of so many tokens that are each this likely.
fn chances(count: usize, odds: f32) -> Chances {
    let values: Vec<f32> = (1..=count as i32).map(|at| odds.powi(at)).collect();
    Chances::new(&values)
}

fn guessing(order: u64, count: usize, odds: f32) -> View {
    View { chances: chances(count, odds), ..running(order, 101, 100) }
}

fn drafts(plan: &Plan) -> Vec<usize> {
    plan.slices.iter().map(|slice| slice.drafts).collect()
}

const PACE: Option<Pace> = Some(Pace { rates: RATES, target_ns: 1e8 });

#[test]
fn guesses_are_computed_as_far_as_they_pay() {
    let of = |views: &[View]| drafts(&plan(views, &ONE, &Bounds { sequences_max: 64, pace: PACE, ..BOUNDS }));
    // Alone, a row costs a sixth of what the step costs anyway.
    assert_eq!(of(&[guessing(1, 12, 0.9)]), [6]);
    assert_eq!(of(&[guessing(1, 4, 0.99)]), [4]);
    assert_eq!(of(&[guessing(1, 12, 0.5)]), [2]);
    assert_eq!(of(&[guessing(1, 12, 0.15)]), [0]);
    // Those that are likelier come first.
    assert_eq!(of(&[guessing(1, 12, 0.3), guessing(2, 12, 0.9)]), [0, 6]);
    // Beside many others a row costs nearly its share of the step.
    let crowd: Vec<View> = (0..40).map(|i| guessing(i, 12, 0.85)).collect();
    assert_eq!(of(&crowd), [0; 40]);
}

#[test]
fn a_prompt_in_the_step_leaves_nothing_for_guesses() {
    let views = [guessing(1, 12, 0.9), waiting(2, 500)];
    let bounds = Bounds { prefill_tokens: 400, free_blocks: 400, pace: PACE, ..BOUNDS };
    assert_eq!(drafts(&plan(&views, &ONE, &bounds)), [0, 0]);
}

#[test]
fn guesses_keep_to_rows_blocks_and_the_target() {
    let view = View { computed: 112, known: 113, blocks: 8, ..guessing(1, 12, 0.99) };
    let of = |bounds: Bounds| drafts(&plan(&[view], &ONE, &bounds))[0];
    let all = Bounds { pace: PACE, ..BOUNDS };
    assert_eq!(of(all), 12);
    assert_eq!(of(Bounds { logits_rows: 5, ..all }), 4);
    // Its last block has room for 15 more tokens than the known one, or for 3.
    assert_eq!(of(Bounds { free_blocks: 0, ..all }), 12);
    let full = View { computed: 124, known: 125, ..view };
    assert_eq!(drafts(&plan(&[full], &ONE, &Bounds { free_blocks: 0, ..all })), [3]);
    // (10 ms - 6 ms) / 1 ms, less what attention costs.
    let target = |ms: f64| Some(Pace { rates: RATES, target_ns: ms * 1e6 });
    assert_eq!(of(Bounds { pace: target(10.0), ..BOUNDS }), 3);
    // What is too slow anyway becomes half as long again at most.
    assert_eq!(of(Bounds { pace: target(1.0), ..BOUNDS }), 2);
    assert_eq!(of(Bounds { speculation: Speculation::Off, ..all }), 0);
    assert_eq!(of(Bounds { pace: None, ..BOUNDS }), 0);
    assert_eq!(of(Bounds { speculation: Speculation::Always, ..BOUNDS }), 12);
}

#[test]
fn guessing_that_costs_time_is_bounded_by_it() {
    let alone = Work { sampled: 1, plain: 0, attended: 100 };
    let of = |odds, price| worth_guessing(&RATES, &alone, 1, odds, price);
    assert_eq!([of(0.9, 0.0), of(0.9, 1e6), of(0.9, 3e6), of(0.5, 2e6), of(0.1, 0.0)], [7, 4, 1, 0, 0]);
    let crowd = Work { sampled: 40, plain: 0, attended: 4000 };
    assert_eq!(worth_guessing(&RATES, &crowd, 40, 0.9, 1e6), 0);
}

fn view() -> impl Strategy<Value = View> {
    let place = (any::<bool>(), any::<bool>(), 0_usize..3, 0_u64..50);
    let guess = (0_usize..=DRAFT_MAX, 0.0_f32..1.0);
    (place, 1_usize..200, 0.0_f64..1.5, 0_usize..4, guess).prop_map(
        |((running, background, tenant, order), known, share, shared, (count, odds))| {
            let mut computed = ((known as f64 * share) as usize).min(known - 1);
            if !running {
                computed -= computed % BLOCK_TOKENS;
            }
            let blocks = if running { blocks_for(computed) } else { (computed / BLOCK_TOKENS).saturating_sub(shared) };
            let returns = blocks.saturating_sub(shared);
            let chances = chances(count, odds);
            View { background, tenant, order, known, computed, blocks, returns, running, waits: false, chances }
        },
    )
}

fn shares() -> impl Strategy<Value = Vec<Share>> {
    let share = (0.0_f64..300.0, 1_u32..5).prop_map(|(time, weight)| Share { time, weight: f64::from(weight) });
    proptest::collection::vec(share, 3)
}

fn pace() -> impl Strategy<Value = Option<Pace>> {
    proptest::option::of((1e6_f64..2e8).prop_map(|target_ns| Pace { rates: RATES, target_ns }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(SCHEDULES))]

    #[test]
    fn every_plan_keeps_its_bounds(
        views in proptest::collection::vec(view(), 0..20),
        shares in shares(),
        free_blocks in 0_usize..40,
        sequences_max in 1_usize..20,
        prefill_tokens in 1_usize..200,
        more_logits in 0_usize..20,
        always in any::<bool>(),
        pace in pace(),
    ) {
        let speculation = if always { Speculation::Always } else { Speculation::Auto };
        let logits_rows = sequences_max.max(views.iter().filter(|v| v.running).count()) + more_logits;
        let bounds = Bounds { free_blocks, sequences_max, prefill_tokens, logits_rows, speculation, pace };
        let plan = plan(&views, &shares, &bounds);
        let decodes = |i: usize| views[i].running && views[i].known - views[i].computed == 1;
        // Blocks: what is taken was free or given up.
        let taken: usize = plan.slices.iter().map(|s| missing(&views[s.index], s.rows())).sum();
        let returned: usize = plan.preempt.iter().map(|i| views[*i].returns).sum();
        prop_assert!(taken <= free_blocks + returned);
        // Every sequence at most once, and never both planned and preempted.
        let mut named: Vec<usize> = plan.slices.iter().map(|s| s.index).chain(plan.preempt.iter().copied()).collect();
        let count = named.len();
        named.sort_unstable();
        named.dedup();
        prop_assert_eq!(named.len(), count);
        // Every running reply goes on or gives up its place.
        for i in (0..views.len()).filter(|i| decodes(*i)) {
            prop_assert!(named.binary_search(&i).is_ok(), "sequence {} is forgotten", i);
        }
        // Rows are bounded.
        let prompts: Vec<&Slice> = plan.slices.iter().filter(|s| !decodes(s.index)).collect();
        let prompt_rows: usize = prompts.iter().map(|s| s.count).sum();
        prop_assert!(prompt_rows <= prefill_tokens);
        // Time is bounded when replies run: beyond the target there is one chunk of at most a block.
        let mut work = Work::default();
        plan.slices.iter().for_each(|s| work.add(views[s.index].computed, s.count, usize::from(s.samples)));
        if let Some(pace) = pace.filter(|_| plan.slices.iter().any(|s| decodes(s.index))) {
            let over = RATES.of(&work) > pace.target_ns + RATES.sampled * prompts.len() as f64;
            prop_assert!(!over || prompt_rows <= BLOCK_TOKENS, "{} rows", prompt_rows);
        }
        // Guesses stand behind replies only, within the rows of logits, and in the end the step brings more for its
        // time than without them.
        prop_assert!(plan.slices.iter().map(Slice::sampled).sum::<usize>() <= logits_rows);
        let guessed: Vec<&Slice> = plan.slices.iter().filter(|s| s.drafts > 0).collect();
        prop_assert!(guessed.iter().all(|s| decodes(s.index) && s.drafts <= views[s.index].chances.count()));
        if let (false, Some(pace)) = (always || guessed.is_empty(), pace) {
            let (mut whole, mut tokens) = (Work::default(), (work.sampled + work.plain) as f64);
            let before = tokens / RATES.of(&work);
            for s in &plan.slices {
                whole.add(views[s.index].computed, s.rows(), s.sampled());
                tokens += (0..s.drafts).filter_map(|at| views[s.index].chances.get(at)).sum::<f64>();
            }
            prop_assert!(tokens / RATES.of(&whole) > before);
            prop_assert!(RATES.of(&whole) <= pace.target_ns.max(DRAFT_STRETCH_MAX * RATES.of(&work)) + 1.0);
        }
        prop_assert!(always || pace.is_some() || guessed.is_empty());
        let batch = views.iter().filter(|v| v.running).count();
        prop_assert!(plan.admit.is_empty() || batch + plan.admit.len() <= sequences_max);
        for s in &plan.slices {
            let v = &views[s.index];
            prop_assert!(s.count >= 1 && v.computed + s.count <= v.known);
            prop_assert_eq!(s.samples, v.computed + s.count == v.known);
            prop_assert!(v.running || plan.admit.contains(&s.index));
        }
        prop_assert!(plan.admit.iter().all(|i| plan.slices.iter().any(|s| s.index == *i)));
        prop_assert!(plan.admit.is_empty() || plan.preempt.is_empty());
        // Whoever waits on is not before anybody of its tenant and class that was admitted, and no interactive one
        // waits while a background one enters.
        let left = |j: usize| !views[j].running && !plan.admit.contains(&j);
        for (i, j) in plan.admit.iter().flat_map(|i| (0..views.len()).filter(|j| left(*j)).map(move |j| (*i, j))) {
            let (entered, waits) = (&views[i], &views[j]);
            prop_assert!(!entered.background || waits.background);
            let peers = (entered.background, entered.tenant) == (waits.background, waits.tenant);
            prop_assert!(!peers || (entered.order, i) < (waits.order, j));
        }
    }

    /// Runs a whole load to its end on planned steps: everybody finishes, in a bounded number of steps.
    #[test]
    fn everything_ends(
        load in proptest::collection::vec((1_usize..80, 1_usize..12, 0_usize..3, any::<bool>()), 1..12),
        blocks in 7_usize..20,
        sequences_max in 1_usize..10,
        prefill_tokens in 1_usize..64,
    ) {
        let requests = (0_u64..).zip(&load).map(|(at, (prompt, reply, tenant, background))| {
            (0, View { tenant: *tenant, background: *background, ..waiting(at, *prompt) }, prompt + reply)
        });
        let work: usize = load.iter().map(|(prompt, reply, ..)| prompt + reply).sum();
        let mut engine = Paper::new(blocks, requests.collect());
        let bounds = Bounds { sequences_max, prefill_tokens, ..BOUNDS };
        while engine.step(&bounds, |_, _| {}) {
            prop_assert!(engine.steps < 50 + 40 * work, "{} sequences are left", engine.live.len());
        }
        prop_assert_eq!(engine.free, blocks);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A background request of the tenant that was served most, against a stream of interactive requests that never
    /// ends, each from a new tenant and more than the machine can serve: it starts soon after its age made it
    /// interactive.
    #[test]
    fn age_ends_starvation(
        stream in (8_usize..40, 1_usize..6),
        ahead in 0_usize..200,
        age in 0_u64..300,
        prefill_tokens in 16_usize..64,
    ) {
        let (prompt, reply) = stream;
        let victim = View { background: true, tenant: 0, ..waiting(0, 20) };
        let mut engine = Paper::new(40, vec![(0, victim, 24)]);
        // A second tenant is there all the time, so that the first can be ahead of the clock.
        engine.fair.join(1_000_000, 1);
        engine.fair.charge(0, ahead);
        let bounds = Bounds { sequences_max: 4, prefill_tokens, ..BOUNDS };
        let mut started = None;
        for now in 0..20_000 {
            // Two new ones in every step, each of a tenant never seen before.
            for tenant in [2 * engine.steps + 1, 2 * engine.steps + 2] {
                if engine.live.len() < 64 {
                    engine.arrive(View { tenant, ..waiting(now * 2, prompt) }, prompt + reply);
                }
            }
            engine.step(&bounds, |views, _| {
                views.iter_mut().filter(|v| v.tenant == 0).for_each(|v| v.background = now < age);
            });
            if engine.live.iter().all(|l| l.view.tenant != 0 || l.view.running) {
                started = Some(now);
                break;
            }
        }
        // Until the clock has passed `ahead`, others are rightly first; at least one row is served per step.
        let bound = age + 60 + 40 * ahead as u64;
        prop_assert!(started.is_some_and(|at| at <= bound), "{started:?} of {bound}");
    }
}

struct Live {
    view: View,
    end: usize,
}

/// Applies plans to numbers, as the scheduler does to sequences.
struct Paper {
    live: Vec<Live>,
    coming: VecDeque<(usize, View, usize)>,
    fair: Fair,
    free: usize,
    steps: usize,
}

impl Paper {
    /// `load`: step of arrival, the sequence, and its length at the end.
    fn new(blocks: usize, load: Vec<(usize, View, usize)>) -> Self {
        let mut paper = Self { live: Vec::new(), coming: load.into(), fair: Fair::default(), free: blocks, steps: 0 };
        paper.let_in();
        paper
    }

    fn let_in(&mut self) {
        while let Some((_, view, end)) = self.coming.pop_front_if(|(at, ..)| *at <= self.steps) {
            self.arrive(view, end);
        }
    }

    fn arrive(&mut self, view: View, end: usize) {
        self.fair.join(view.tenant as u64, 1);
        self.live.push(Live { view, end });
    }

    /// One step; false when everything is over.
    fn step(&mut self, bounds: &Bounds, change: impl Fn(&mut [View], usize)) -> bool {
        self.let_in();
        self.steps += 1;
        let mut views: Vec<View> = self.live.iter().map(|l| l.view).collect();
        change(&mut views, self.steps);
        let mut tenants: Vec<usize> = views.iter().map(|v| v.tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        let share = |tenant: &usize| self.fair.share(*tenant as u64);
        let shares: Vec<Share> = tenants.iter().map(share).map(|(time, weight)| Share { time, weight }).collect();
        for view in &mut views {
            view.tenant = tenants.binary_search(&view.tenant).expect("listed");
        }
        let plan = plan(&views, &shares, &Bounds { free_blocks: self.free, ..*bounds });
        assert!(views.is_empty() || !plan.slices.is_empty() || !plan.preempt.is_empty(), "a plan gets on");
        for i in &plan.preempt {
            let view = &mut self.live[*i].view;
            self.free += view.blocks;
            *view = View { computed: 0, blocks: 0, returns: 0, running: false, ..*view };
        }
        for s in &plan.slices {
            let view = &mut self.live[s.index].view;
            let need = missing(view, s.count);
            assert!(need <= self.free);
            self.free -= need;
            self.fair.charge(view.tenant as u64, s.count);
            view.running = true;
            view.computed += s.count;
            view.blocks += need;
            view.returns = view.blocks;
            view.known += usize::from(s.samples);
        }
        let (free, fair) = (&mut self.free, &mut self.fair);
        self.live.retain(|l| {
            let over = l.view.known >= l.end;
            if over {
                *free += l.view.blocks;
                fair.leave(l.view.tenant as u64);
            }
            !over
        });
        !self.live.is_empty() || !self.coming.is_empty()
    }
}
