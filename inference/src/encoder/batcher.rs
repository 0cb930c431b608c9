//! Joins calls that wait into passes, and runs the slices of these.
//!
//! There are two lanes, one for each priority, with a pass each, so that a query does not wait for the end of a bulk
//! pass. A pass takes one text of each call in turn until its rows are full: a short call does not wait for the end of a
//! long one. While replies run, slices run only between steps, for a bounded time: queries for a share of the longest
//! step, bulk calls for a share of the time that steps took.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::bert::{Encoder, ROWS_MAX};
use super::pass::Pass;
use super::worker::{Call, EmbedPriority, Shared};
use crate::backend::Crew;

/// One part in this many of the time while replies run belongs to bulk calls that wait.
const BULK_SHARE: u32 = 8;
/// Queries may take one part in this many of the longest step after each step. A short one needs a fraction of it.
const QUERY_SHARE: u32 = 8;
/// Of so many slices in a row one is of a bulk call, however many queries come.
const QUERIES_IN_A_ROW: u32 = 7;

/// Owned by the thread that computes.
pub(crate) struct Batcher {
    encoder: Arc<Encoder>,
    shared: Arc<Shared>,
    calls: HashMap<u64, Work>,
    calls_seen: u64,
    lanes: [Lane; 2],
    queries_in_a_row: u32,
    /// Time that bulk calls may take now, in nanoseconds; negative after a slice that took longer.
    credit_ns: f64,
}

/// A call with what is done of it.
struct Work {
    call: Call,
    /// First text that no pass has taken.
    next: usize,
    vectors: Vec<Vec<f32>>,
    /// Texts without a vector.
    left: usize,
}

/// The calls of one priority.
#[derive(Default)]
struct Lane {
    /// Calls that have texts which no pass has taken.
    turns: VecDeque<u64>,
    pass: Pass,
    /// Call and text of each vector of the pass that runs; empty when none does.
    members: Vec<(u64, usize)>,
    /// What the pass has taken so far.
    spent: Duration,
}

impl Lane {
    fn is_busy(&self) -> bool {
        !self.turns.is_empty() || !self.members.is_empty()
    }
}

const QUERY: usize = 0;
const BULK: usize = 1;

impl Batcher {
    pub(super) fn new(encoder: Arc<Encoder>, shared: Arc<Shared>) -> Batcher {
        let lanes = [Lane::default(), Lane::default()];
        let calls = HashMap::new();
        Batcher { encoder, shared, calls, calls_seen: 0, lanes, queries_in_a_row: 0, credit_ns: 0.0 }
    }

    /// Takes in what came; false when there is nothing to do, and then the next call will wake this thread.
    pub fn has_work(&mut self) -> bool {
        let mut queue = self.shared.queue();
        if queue.closed {
            drop(queue);
            self.close();
            return false;
        }
        let incoming = std::mem::take(&mut queue.incoming);
        if incoming.is_empty() && !self.is_busy() {
            queue.awake = false;
            return false;
        }
        drop(queue);
        for call in incoming {
            let lane = match call.priority {
                EmbedPriority::Query => QUERY,
                EmbedPriority::Bulk => BULK,
            };
            self.calls_seen += 1;
            self.lanes[lane].turns.push_back(self.calls_seen);
            let texts = call.texts.len();
            let work = Work { call, next: 0, vectors: vec![Vec::new(); texts], left: texts };
            self.calls.insert(self.calls_seen, work);
        }
        true
    }

    /// Whether something was left to do when this was last looked at.
    pub fn is_busy(&self) -> bool {
        self.lanes.iter().any(Lane::is_busy)
    }

    /// One slice, while there are no replies to compute.
    pub fn when_idle(&mut self, crew: &mut dyn Crew) {
        if !self.has_work() {
            return;
        }
        self.credit_ns = 0.0;
        let bulk_turn = self.queries_in_a_row >= QUERIES_IN_A_ROW && self.lanes[BULK].is_busy();
        let lane = if self.lanes[QUERY].is_busy() && !bulk_turn { QUERY } else { BULK };
        self.queries_in_a_row = if lane == QUERY { self.queries_in_a_row + 1 } else { 0 };
        self.slice(lane, crew);
    }

    /// The slices that are due after a step of replies that took so long; `longest` is what a step may take.
    pub fn after_step(&mut self, crew: &mut dyn Crew, step: Duration, longest: Duration) {
        if !self.has_work() {
            // What was not needed is not saved up.
            self.credit_ns = 0.0;
            return;
        }
        let limit = longest / QUERY_SHARE;
        let mut spent = Duration::ZERO;
        while self.lanes[QUERY].is_busy() && spent < limit {
            spent += self.slice(QUERY, crew);
        }
        let earned = step / (BULK_SHARE - 1);
        self.credit_ns = (self.credit_ns + earned.as_nanos() as f64).min(limit.as_nanos() as f64);
        while self.lanes[BULK].is_busy() && self.credit_ns > 0.0 {
            self.credit_ns -= self.slice(BULK, crew).as_nanos() as f64;
        }
    }

    /// How long a step of replies may take, so that it and what follows it stay within `longest`.
    pub fn leaves_of(&self, longest_ns: f64) -> f64 {
        if self.is_busy() { longest_ns * (1.0 - 1.0 / f64::from(BULK_SHARE)) } else { longest_ns }
    }

    /// One slice of a lane that is busy, and the time it took.
    fn slice(&mut self, lane: usize, crew: &mut dyn Crew) -> Duration {
        let begun = Instant::now();
        if self.lanes[lane].members.is_empty() {
            self.fill(lane);
        }
        let Lane { pass, spent, .. } = &mut self.lanes[lane];
        let over = pass.advance(&self.encoder, crew);
        *spent += begun.elapsed();
        if over {
            self.deliver(lane);
        }
        begun.elapsed()
    }

    /// Begins a pass with one text of each call in turn.
    fn fill(&mut self, lane: usize) {
        let (lane, calls) = (&mut self.lanes[lane], &mut self.calls);
        let (mut rows, mut begun) = (0, 0);
        while let Some(id) = lane.turns.front().copied() {
            let work = calls.get_mut(&id).expect("calls with texts left are kept");
            rows += work.call.texts[work.next].len();
            if rows > ROWS_MAX && !lane.members.is_empty() {
                break;
            }
            lane.members.push((id, work.next));
            begun += usize::from(work.next == 0);
            work.next += 1;
            lane.turns.pop_front();
            if work.next < work.call.texts.len() {
                lane.turns.push_back(id);
            }
        }
        lane.spent = Duration::ZERO;
        lane.pass.begin(&self.encoder, lane.members.iter().map(|(id, text)| calls[id].call.texts[*text].as_slice()));
        self.shared.queue().waiting -= begun;
    }

    /// Hands out the vectors of a pass; calls that have all of theirs are answered.
    fn deliver(&mut self, lane: usize) {
        let lane = &mut self.lanes[lane];
        let ns = lane.spent.as_nanos() as u64 / lane.pass.rows().max(1) as u64;
        self.shared.row_ns.store(ns, Ordering::Relaxed);
        let mut answers = Vec::new();
        for ((id, text), vector) in lane.members.drain(..).zip(lane.pass.vectors(&self.encoder)) {
            let work = self.calls.get_mut(&id).expect("calls without an answer are kept");
            work.vectors[text] = vector;
            work.left -= 1;
            if work.left == 0 {
                answers.extend(self.calls.remove(&id));
            }
        }
        for Work { call, vectors, .. } in answers {
            self.shared.queue().rows -= call.rows();
            call.answer(Ok(vectors));
        }
    }

    /// Tells all calls that nothing will come.
    fn close(&mut self) {
        let left = {
            let mut queue = self.shared.queue();
            queue.closed = true;
            (queue.waiting, queue.rows) = (0, 0);
            std::mem::take(&mut queue.incoming)
        };
        for lane in &mut self.lanes {
            lane.turns.clear();
            lane.members.clear();
        }
        drop(left);
        self.calls.clear();
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.close();
    }
}
