//! Requests that wait for a place in the batch, in lanes by class and tenant, each lane by urgency.

use std::collections::BTreeMap;

use super::fair::Fair;

/// Where an item stands. `order` is smaller for what is more urgent; items of equal order keep their arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub background: bool,
    pub tenant: u64,
    pub order: u64,
    arrival: u64,
}

/// What the queue has to know of an item.
pub(crate) trait Queued {
    fn tenant(&self) -> u64;
    /// Smaller goes first within a tenant.
    fn order(&self) -> u64;
    /// When it stops being background, in the unit of the clock given to [`Queue::promote`]; 0 if it never was.
    fn background_until(&self) -> u64;
    /// Tokens that serving its prompt will charge to its tenant.
    fn tokens(&self) -> usize;
}

/// The queue. It is as long as what callers put in; they bound it.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    lanes: BTreeMap<(bool, u64), BTreeMap<(u64, u64), T>>,
    len: usize,
    arrivals: u64,
}

impl<T: Queued> Queue<T> {
    pub fn new() -> Self {
        Self { lanes: BTreeMap::new(), len: 0, arrivals: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn insert(&mut self, item: T, now: u64) {
        self.arrivals += 1;
        self.len += 1;
        let lane = (item.background_until() > now, item.tenant());
        self.lanes.entry(lane).or_default().insert((item.order(), self.arrivals), item);
    }

    pub fn get(&self, key: &Key) -> Option<&T> {
        self.lanes.get(&(key.background, key.tenant))?.get(&(key.order, key.arrival))
    }

    pub fn remove(&mut self, key: &Key) -> Option<T> {
        let lane = self.lanes.get_mut(&(key.background, key.tenant))?;
        let item = lane.remove(&(key.order, key.arrival))?;
        if lane.is_empty() {
            self.lanes.remove(&(key.background, key.tenant));
        }
        self.len -= 1;
        Some(item)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.lanes.iter().flat_map(|(&(background, tenant), lane)| {
            lane.iter().map(move |(&(order, arrival), item)| (Key { background, tenant, order, arrival }, item))
        })
    }

    pub fn into_items(self) -> impl Iterator<Item = T> {
        self.lanes.into_values().flat_map(BTreeMap::into_values)
    }

    /// Background items that have waited long enough become interactive.
    pub fn promote(&mut self, now: u64, due: &mut Vec<Key>) {
        due.clear();
        due.extend(
            self.iter().filter(|(key, item)| key.background && item.background_until() <= now).map(|(key, _)| key),
        );
        for key in due.drain(..) {
            let Some(item) = self.remove(&key) else { continue };
            self.len += 1;
            self.lanes.entry((false, key.tenant)).or_default().insert((key.order, key.arrival), item);
        }
    }

    /// The `most` items that are next when each tenant gets its share: interactive before background, then the tenant
    /// that was served least, then urgency.
    pub fn next(&self, fair: &Fair, most: usize, keys: &mut Vec<Key>) {
        keys.clear();
        let mut lanes: Vec<_> = self
            .lanes
            .iter()
            .map(|(&(background, tenant), lane)| (background, fair.share(tenant), tenant, lane.iter().peekable()))
            .collect();
        // Both classes of a tenant draw on one account, but background lanes are reached only after all others.
        while keys.len() < most {
            let waiting = lanes.iter_mut().filter_map(|lane| lane.3.peek().is_some().then_some(lane));
            let first = waiting.min_by(|a, b| a.0.cmp(&b.0).then(a.1.0.total_cmp(&b.1.0)).then(a.2.cmp(&b.2)));
            let Some((background, (time, weight), tenant, items)) = first else { return };
            let Some((&(order, arrival), item)) = items.next() else { return };
            *time += item.tokens() as f64 / *weight;
            keys.push(Key { background: *background, tenant: *tenant, order, arrival });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item(u64, u64, u64, usize);

    impl Queued for Item {
        fn tenant(&self) -> u64 {
            self.0
        }
        fn order(&self) -> u64 {
            self.1
        }
        fn background_until(&self) -> u64 {
            self.2
        }
        fn tokens(&self) -> usize {
            self.3
        }
    }

    fn order(queue: &Queue<Item>, fair: &Fair) -> Vec<u64> {
        let mut keys = Vec::new();
        queue.next(fair, 10, &mut keys);
        keys.iter().map(|key| key.order).collect()
    }

    #[test]
    fn tenants_alternate_and_each_sends_its_most_urgent_first() {
        let (mut queue, mut fair) = (Queue::new(), Fair::default());
        for (tenant, order) in [(1, 30), (1, 10), (1, 20), (2, 50), (2, 40)] {
            fair.join(tenant, 1);
            queue.insert(Item(tenant, order, 0, 10), 0);
        }
        assert_eq!(order(&queue, &fair), [10, 40, 20, 50, 30]);
        fair.charge(1, 15);
        assert_eq!(order(&queue, &fair), [40, 50, 10, 20, 30]);
    }

    #[test]
    fn background_waits_behind_everything_until_it_is_promoted() {
        let (mut queue, mut fair) = (Queue::new(), Fair::default());
        for (tenant, order, until) in [(1, 1, 100), (1, 7, 0), (2, 8, 0)] {
            fair.join(tenant, 1);
            queue.insert(Item(tenant, order, until, 10), 0);
        }
        assert_eq!(order(&queue, &fair), [7, 8, 1]);
        queue.promote(99, &mut Vec::new());
        assert_eq!(order(&queue, &fair), [7, 8, 1]);
        queue.promote(100, &mut Vec::new());
        assert_eq!((order(&queue, &fair), queue.len()), (vec![1, 8, 7], 3));
    }

    #[test]
    fn what_is_removed_is_gone() {
        let mut queue = Queue::new();
        queue.insert(Item(1, 5, 0, 1), 0);
        queue.insert(Item(1, 5, 0, 2), 0);
        let keys: Vec<Key> = queue.iter().map(|(key, _)| key).collect();
        assert_eq!(queue.remove(&keys[1]).map(|item| item.3), Some(2));
        assert!(queue.remove(&keys[1]).is_none() && queue.get(&keys[0]).is_some());
        assert_eq!(queue.into_items().count(), 1);
    }
}
