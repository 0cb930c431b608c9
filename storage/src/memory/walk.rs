//! A hot user's graph in memory, and the random walk that finds what is connected to a question.
//!
//! The rows of `edge_out` are the truth; this is loaded from them and kept up to date with them. An
//! edge stands at both its ends. The walk is personalised PageRank by forward push (Andersen, Chung
//! and Lang, FOCS 2006): probability starts at the things that the question names, a share of it
//! stays at each vertex, the rest moves on along the edges, and what is too little to matter is left.
//! The cost depends on that bound and not on the size of the graph. Everything happens in a fixed
//! order, so equal graphs give equal answers.

use super::fuse::{WALK_EDGES_MAX, WALK_REST, WALK_RETURN};
use super::graph::{Edge, EdgeId, MENTIONS};
use crate::layout::{IdMap, Vertex};
use std::collections::VecDeque;

/// Two moments: which facts held then, as far as was known then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AsOf {
    pub valid_ms: u64,
    pub known_ms: u64,
}

impl AsOf {
    /// Whether an edge that holds from `valid_from_ms` is seen.
    pub fn sees(self, valid_from_ms: u64, edge: &Edge) -> bool {
        // An end that was recorded later was not known yet: the edge still seemed to hold.
        let end_ms = if edge.ended_ms > self.known_ms { u64::MAX } else { edge.valid_to_ms };
        let holds = valid_from_ms <= self.valid_ms && (self.valid_ms < end_ms || end_ms == u64::MAX);
        edge.recorded_ms <= self.known_ms && holds
    }
}

#[derive(Debug, Clone, Copy)]
struct Link {
    far: u32,
    relation: u16,
    valid_from_ms: u64,
    edge: Edge,
}

impl Link {
    fn place(&self) -> (u64, u32, u16) {
        (self.valid_from_ms, self.far, self.relation)
    }
}

/// One user's graph.
#[derive(Default)]
pub(crate) struct UserGraph {
    number_of: IdMap<Vertex, u32>,
    vertices: Vec<Vertex>,
    /// Whether a vertex is a memory (the far end of a mention) and not a thing.
    is_memory: Vec<bool>,
    /// By vertex, in the order of [`Link::place`]: the newest stand at the end, where adding is cheap.
    links: Vec<Vec<Link>>,
    links_len: usize,
}

impl UserGraph {
    pub fn bytes(&self) -> usize {
        self.vertices.len() * (2 * size_of::<Vertex>() + 48) + self.links_len * size_of::<Link>()
    }

    fn number(&mut self, vertex: Vertex) -> u32 {
        let next = u32::try_from(self.vertices.len()).expect("a user's graph has fewer than 2^32 vertices");
        let number = *self.number_of.entry(vertex).or_insert(next);
        if number == next {
            self.vertices.push(vertex);
            self.is_memory.push(false);
            self.links.push(Vec::new());
        }
        number
    }

    /// Adds or replaces an edge.
    pub fn put(&mut self, id: &EdgeId, edge: Edge) {
        let (from, to) = (self.number(id.from), self.number(id.to));
        self.is_memory[to as usize] |= id.relation == MENTIONS;
        for (near, far) in [(from, to), (to, from)] {
            let link = Link { far, relation: id.relation, valid_from_ms: id.valid_from_ms, edge };
            let links = &mut self.links[near as usize];
            match links.binary_search_by_key(&link.place(), Link::place) {
                Ok(at) => links[at] = link,
                Err(at) => {
                    links.insert(at, link);
                    self.links_len += 1;
                }
            }
        }
    }

    /// Adds many edges in any order at once; one that is there stays as it is. Putting them one by one would move
    /// all later links of a vertex for each of its edges.
    pub fn load(&mut self, edges: impl Iterator<Item = (EdgeId, Edge)>) {
        for (id, edge) in edges {
            let (from, to) = (self.number(id.from), self.number(id.to));
            self.is_memory[to as usize] |= id.relation == MENTIONS;
            for (near, far) in [(from, to), (to, from)] {
                let link = Link { far, relation: id.relation, valid_from_ms: id.valid_from_ms, edge };
                self.links[near as usize].push(link);
            }
        }
        for links in &mut self.links {
            // Stable: what was there before stands first among equals and is kept.
            links.sort_by_key(Link::place);
            links.dedup_by_key(|link| link.place());
        }
        self.links_len = self.links.iter().map(Vec::len).sum();
    }

    /// Removes an edge. A vertex without edges keeps its number until the user is loaded again.
    pub fn remove(&mut self, id: &EdgeId) {
        let (Some(from), Some(to)) = (self.number_of.get(&id.from).copied(), self.number_of.get(&id.to).copied())
        else {
            return;
        };
        for (near, far) in [(from, to), (to, from)] {
            let links = &mut self.links[near as usize];
            if let Ok(at) = links.binary_search_by_key(&(id.valid_from_ms, far, id.relation), Link::place) {
                links.remove(at);
                self.links_len -= 1;
            }
        }
    }

    /// Where the walk from `seeds` spends its time, as (memory, share), in no order.
    pub fn walk(&self, seeds: &[Vertex], as_of: AsOf) -> Vec<(Vertex, f32)> {
        let mut seeds: Vec<u32> = seeds.iter().filter_map(|seed| self.number_of.get(seed).copied()).collect();
        seeds.sort_unstable();
        seeds.dedup();
        seeds.retain(|seed| self.seen(*seed, as_of).next().is_some());
        // A thing that is named everywhere leads nowhere in particular.
        let weights: Vec<f32> = seeds.iter().map(|seed| rarity(self.links[*seed as usize].len())).collect();
        let whole: f32 = weights.iter().sum();
        let mut walk = Walk { rest: IdMap::default(), share: IdMap::default(), queue: VecDeque::new() };
        for (seed, weight) in seeds.iter().zip(&weights) {
            walk.arrive(*seed, weight / whole, 0.0);
        }
        while let Some(vertex) = walk.queue.pop_front() {
            let Some(rest) = walk.rest.remove(&vertex) else { continue };
            *walk.share.entry(vertex).or_default() += WALK_RETURN * rest;
            let seen: Vec<&Link> = self.seen(vertex, as_of).take(WALK_EDGES_MAX).collect();
            let total: f32 = seen.iter().map(|link| link.edge.weight).sum();
            if total <= 0.0 {
                continue;
            }
            for link in seen {
                let moved = (1.0 - WALK_RETURN) * rest * link.edge.weight / total;
                let edges = self.links[link.far as usize].len().min(WALK_EDGES_MAX);
                walk.arrive(link.far, moved, WALK_REST * edges as f32);
            }
        }
        let memories = walk.share.into_iter().filter(|(vertex, _)| self.is_memory[*vertex as usize]);
        memories.map(|(vertex, share)| (self.vertices[vertex as usize], share)).collect()
    }

    fn seen(&self, vertex: u32, as_of: AsOf) -> impl Iterator<Item = &Link> {
        self.links[vertex as usize].iter().rev().filter(move |link| as_of.sees(link.valid_from_ms, &link.edge))
    }
}

struct Walk {
    /// Arrived and not moved on yet.
    rest: IdMap<u32, f32>,
    share: IdMap<u32, f32>,
    /// Vertices whose rest is worth moving on, in the order in which that became so.
    queue: VecDeque<u32>,
}

impl Walk {
    fn arrive(&mut self, vertex: u32, amount: f32, worth: f32) {
        let rest = self.rest.entry(vertex).or_default();
        let before = *rest;
        *rest += amount;
        if before <= worth && *rest > worth {
            self.queue.push_back(vertex);
        }
    }
}

fn rarity(edges: usize) -> f32 {
    1.0 / (1.0 + edges as f32).ln().max(0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DocId;
    use millrace_proto::id::ConversationId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn vertex(n: u8) -> Vertex {
        [n; 24]
    }

    fn id(from: u8, to: u8, valid_from_ms: u64) -> EdgeId {
        EdgeId { from: vertex(from), relation: MENTIONS, valid_from_ms, to: vertex(to) }
    }

    fn edge(valid_to_ms: u64, recorded_ms: u64, ended_ms: u64) -> Edge {
        let memory = DocId { conversation: ConversationId([0; 16]), seq: 0 };
        Edge { valid_to_ms, recorded_ms, weight: 1.0, memory, ended_ms }
    }

    const OPEN: Edge = Edge {
        valid_to_ms: u64::MAX,
        recorded_ms: 0,
        weight: 1.0,
        memory: DocId { conversation: ConversationId([0; 16]), seq: 0 },
        ended_ms: 0,
    };
    const NOW: AsOf = AsOf { valid_ms: 1_000, known_ms: 1_000 };

    /// A thing that is named a million times costs a question no more than one that is named 512 times, and a
    /// write no more than finding its place.
    #[test]
    fn a_vertex_with_a_million_edges_is_walked_and_written_in_bounded_time() {
        const EDGES: u32 = 1_000_000;
        let far = |n: u32| {
            let mut vertex = [9; 24];
            vertex[..4].copy_from_slice(&n.to_be_bytes());
            vertex
        };
        let thing = vertex(1);
        let named = |n: u32, at: u64| EdgeId { from: thing, relation: MENTIONS, valid_from_ms: at, to: far(n) };
        let mut graph = UserGraph::default();
        graph.load((0..EDGES).rev().map(|n| (named(n, u64::from(n)), OPEN)));
        let as_of = AsOf { valid_ms: u64::MAX, known_ms: u64::MAX };
        let started = std::time::Instant::now();
        let mut found = graph.walk(&[thing], as_of);
        let walked = started.elapsed();
        assert_eq!(found.len(), WALK_EDGES_MAX);
        assert!(found.iter().all(|(vertex, _)| *vertex >= far(EDGES - WALK_EDGES_MAX as u32)), "the newest ones");
        for n in EDGES..EDGES + 1_000 {
            graph.put(&named(n, u64::from(n)), OPEN);
        }
        graph.remove(&named(EDGES / 2, u64::from(EDGES / 2)));
        let mut again = graph.walk(&[thing], as_of);
        let sort = |found: &mut Vec<(Vertex, f32)>| found.sort_by_key(|(vertex, _)| *vertex);
        sort(&mut found);
        sort(&mut again);
        assert_ne!(found, again, "new edges are walked");
        let mut repeated = graph.walk(&[thing], as_of);
        sort(&mut repeated);
        assert_eq!(again, repeated);
        // Walking all edges would take some 50 ms on the fastest machine we know.
        assert!(walked < std::time::Duration::from_millis(40), "{walked:?}");
    }

    fn shares(graph: &UserGraph, seeds: &[u8], as_of: AsOf) -> BTreeMap<u8, f32> {
        let seeds: Vec<Vertex> = seeds.iter().map(|seed| vertex(*seed)).collect();
        graph.walk(&seeds, as_of).into_iter().map(|(vertex, share)| (vertex[0], share)).collect()
    }

    #[test]
    fn nearer_memories_get_more_and_strangers_nothing() {
        let mut graph = UserGraph::default();
        // 1 and 2 are things, 10 names 1, 11 names both, 12 names 2, 13 names 3.
        for (from, to) in [(1, 10), (1, 11), (2, 11), (2, 12), (3, 13)] {
            graph.put(&id(from, to, 5), OPEN);
        }
        let found = shares(&graph, &[1], NOW);
        assert!(found[&10] > found[&12] && found[&11] > found[&12] && found[&12] > 0.0, "{found:?}");
        assert!(!found.contains_key(&13));
        assert_eq!(shares(&graph, &[9], NOW), BTreeMap::new());
    }

    #[test]
    fn only_what_held_then_and_was_known_then_is_walked() {
        let mut graph = UserGraph::default();
        // Held from 100 to 200; its end was told at 300.
        graph.put(&id(1, 10, 100), edge(200, 100, 300));
        let seen = |valid_ms, known_ms| shares(&graph, &[1], AsOf { valid_ms, known_ms }).contains_key(&10);
        assert!(!seen(50, 1_000), "before it began");
        assert!(seen(150, 1_000), "while it held");
        assert!(!seen(250, 1_000), "after its end, as known now");
        assert!(seen(250, 299), "after its end, as known before the end was told");
        assert!(!seen(150, 99), "before it was told at all");
    }

    #[test]
    fn a_thing_with_a_million_edges_costs_no_more_than_the_bound() {
        let mut graph = UserGraph::default();
        let mut newest = vertex(0);
        for n in 0..20_000u64 {
            newest = [0; 24];
            newest[..8].copy_from_slice(&(n + 1).to_be_bytes());
            graph.put(&EdgeId { from: vertex(1), relation: MENTIONS, valid_from_ms: n, to: newest }, OPEN);
        }
        let found = graph.walk(&[vertex(1)], AsOf { valid_ms: u64::MAX - 1, known_ms: u64::MAX - 1 });
        assert!(found.len() <= WALK_EDGES_MAX);
        assert!(found.iter().any(|(vertex, _)| *vertex == newest), "the newest are followed");
    }

    proptest! {
        /// Whatever was put and removed before, a graph of the same edges gives the same shares; they sum to
        /// no more than one.
        #[test]
        fn equal_graphs_give_equal_answers(
            ops in proptest::collection::vec((0u8..8, 10u8..20, 0u64..4, any::<bool>()), 0..80),
            seeds in proptest::collection::vec(0u8..8, 0..4),
        ) {
            let mut graph = UserGraph::default();
            let mut model = BTreeMap::new();
            for (from, to, at, put) in ops {
                if put {
                    graph.put(&id(from, to, at), OPEN);
                    model.insert((from, to, at), ());
                } else {
                    graph.remove(&id(from, to, at));
                    model.remove(&(from, to, at));
                }
            }
            prop_assert_eq!(graph.links_len, 2 * model.len());
            let mut loaded = UserGraph::default();
            loaded.load(model.keys().map(|(from, to, at)| (id(*from, *to, *at), OPEN)));
            loaded.load(model.keys().rev().map(|(from, to, at)| (id(*from, *to, *at), OPEN)));
            prop_assert_eq!(loaded.links_len, graph.links_len);
            let places = |shares: BTreeMap<u8, f32>| shares.into_keys().collect::<Vec<_>>();
            prop_assert_eq!(places(shares(&loaded, &seeds, NOW)), places(shares(&graph, &seeds, NOW)));
            let found = shares(&graph, &seeds, NOW);
            prop_assert!(found.values().sum::<f32>() <= 1.0 + 1e-4);
            prop_assert_eq!(&shares(&graph, &seeds, NOW), &found);
            for memory in found.keys() {
                prop_assert!(model.keys().any(|(_, to, _)| to == memory));
            }
        }
    }
}
