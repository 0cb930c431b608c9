use super::*;
use crate::kv::BLOCK_TOKENS;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { free_blocks: 100, sequences_max: 8, prefill_tokens: 32 };

fn running(order: u64, known: usize, computed: usize) -> View {
    let blocks = blocks_for(computed);
    View { order, known, computed, blocks, returns: blocks, running: true }
}

fn waiting(order: u64, known: usize) -> View {
    View { order, known, computed: 0, blocks: 0, returns: 0, running: false }
}

fn plan(views: &[View], bounds: &Bounds) -> Plan {
    let mut plan = Plan::default();
    plan.fill(views, bounds);
    plan
}

fn slice(index: usize, count: usize, samples: bool) -> Slice {
    Slice { index, count, samples }
}

#[test]
fn running_replies_come_first_and_prompts_share_the_budget_in_order() {
    let views = [waiting(5, 20), running(9, 31, 30), running(7, 40, 10), waiting(4, 10)];
    let plan = plan(&views, &BOUNDS);
    assert_eq!(plan.slices, [slice(1, 1, true), slice(2, 30, true), slice(3, 2, false)]);
    assert_eq!((plan.admit.as_slice(), plan.preempt.as_slice()), (&[3][..], &[][..]));
}

#[test]
fn nobody_overtakes_the_first_that_does_not_fit() {
    let bounds = Bounds { free_blocks: 5, ..BOUNDS };
    let views = [running(1, 17, 16), waiting(2, 70), waiting(3, 4)];
    let plan = plan(&views, &bounds);
    assert_eq!(plan.slices, [slice(0, 1, true)]);
    assert!(plan.admit.is_empty());
}

#[test]
fn the_last_in_order_gives_its_blocks_to_the_first() {
    let bounds = Bounds { free_blocks: 0, ..BOUNDS };
    let views = [running(2, 33, 32), running(1, 17, 16), running(3, 17, 16)];
    let plan = plan(&views, &bounds);
    assert_eq!(plan.preempt, [2, 0]);
    assert_eq!(plan.slices, [slice(1, 1, true)]);
}

#[test]
fn a_cached_prefix_costs_neither_budget_nor_the_blocks_in_use() {
    let bounds = Bounds { free_blocks: 2, ..BOUNDS };
    let shared = View { computed: 64, blocks: 4, ..waiting(1, 70) };
    let plan = plan(&[shared], &bounds);
    assert_eq!(plan.slices, [slice(0, 6, true)]);
}

fn view() -> impl Strategy<Value = View> {
    (0_u64..50, 1_usize..200, 0.0_f64..1.0, any::<bool>(), 0_usize..4).prop_map(
        |(order, known, share, is_running, shared)| {
            let mut computed = ((known as f64 * share) as usize).min(known - 1);
            if !is_running {
                computed -= computed % BLOCK_TOKENS;
            }
            let blocks =
                if is_running { blocks_for(computed) } else { (computed / BLOCK_TOKENS).saturating_sub(shared) };
            View { order, known, computed, blocks, returns: blocks.saturating_sub(shared), running: is_running }
        },
    )
}

proptest! {
    #[test]
    fn every_plan_keeps_its_bounds(
        views in proptest::collection::vec(view(), 0..20),
        free_blocks in 0_usize..40,
        sequences_max in 1_usize..20,
        prefill_tokens in 1_usize..64,
    ) {
        let bounds = Bounds { free_blocks, sequences_max, prefill_tokens };
        let plan = plan(&views, &bounds);
        let decodes = |i: usize| views[i].running && views[i].known - views[i].computed == 1;
        // Blocks: what is taken was free or given up.
        let taken: usize = plan.slices.iter().map(|s| missing(&views[s.index], s.count)).sum();
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
        let prompt_rows: usize = plan.slices.iter().filter(|s| !decodes(s.index)).map(|s| s.count).sum();
        prop_assert!(prompt_rows <= prefill_tokens);
        let batch = views.iter().filter(|v| v.running).count();
        prop_assert!(plan.admit.is_empty() || batch + plan.admit.len() <= sequences_max);
        for s in &plan.slices {
            let v = &views[s.index];
            prop_assert!(s.count >= 1 && v.computed + s.count <= v.known);
            prop_assert_eq!(s.samples, v.computed + s.count == v.known);
            prop_assert!(v.running || plan.admit.contains(&s.index));
        }
        prop_assert!(plan.admit.iter().all(|i| plan.slices.iter().any(|s| s.index == *i)));
        // Admission follows the order: whoever waits on is not before anybody admitted.
        for i in &plan.admit {
            let before = |j: usize| (views[j].order, j) < (views[*i].order, *i);
            prop_assert!((0..views.len()).all(|j| views[j].running || plan.admit.contains(&j) || !before(j)));
        }
    }

    /// Runs a whole load to its end on planned steps: everybody finishes, in a bounded number of steps.
    #[test]
    fn nothing_starves(
        load in proptest::collection::vec((1_usize..120, 1_usize..30, 0_u64..40), 1..25),
        blocks in 10_usize..30,
        sequences_max in 1_usize..10,
        prefill_tokens in 1_usize..64,
    ) {
        // (prompt, reply, arrival); nobody needs more than the pool.
        let mut live: Vec<(View, usize)> = load.iter().enumerate().map(|(i, (prompt, reply, order))| {
            (waiting(order * 100 + i as u64, *prompt), prompt + reply)
        }).collect();
        let work: usize = load.iter().map(|(prompt, reply, _)| prompt + reply).sum();
        let mut free = blocks;
        let mut steps = 0;
        while !live.is_empty() {
            steps += 1;
            prop_assert!(steps < 200 + 60 * work, "{} sequences are left", live.len());
            let views: Vec<View> = live.iter().map(|(view, _)| *view).collect();
            let plan = plan(&views, &Bounds { free_blocks: free, sequences_max, prefill_tokens });
            prop_assert!(!plan.slices.is_empty() || !plan.preempt.is_empty(), "the plan gets on");
            for i in &plan.preempt {
                let view = &mut live[*i].0;
                free += view.blocks;
                *view = View { running: false, ..waiting(view.order, view.known) };
            }
            for s in &plan.slices {
                let view = &mut live[s.index].0;
                let need = missing(view, s.count);
                prop_assert!(need <= free);
                free -= need;
                view.running = true;
                view.computed += s.count;
                view.blocks += need;
                view.returns = view.blocks;
                view.known += usize::from(s.samples);
            }
            live.retain(|(view, end)| {
                let over = view.known >= *end;
                free += if over { view.blocks } else { 0 };
                !over
            });
        }
        prop_assert_eq!(free, blocks);
    }
}
