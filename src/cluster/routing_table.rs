//! Which primary serves which slot.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::shard::{NodeName, Unit};
use super::slot_map::{Address, SLOTS, SlotMap, slot};

/// Who serves what.
pub(super) struct Routes {
    pub(super) version: u64,
    pub(super) map: SlotMap,
    pub(super) units: HashMap<Address, Arc<Unit>>,
    pub(super) by_slot: Box<[Option<Arc<Unit>>]>,
    /// Those of `by_slot`, each once, in its order.
    pub(super) primaries: Vec<NodeName>,
    /// Nodes that may be asked about the cluster, beside the units.
    pub(super) others: Vec<Address>,
}

impl Routes {
    /// Those of a cluster of which nothing is known yet.
    pub(super) fn empty() -> Self {
        Self {
            version: 0,
            map: SlotMap::unknown(),
            units: HashMap::new(),
            by_slot: vec![None; SLOTS].into(),
            primaries: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Those that follow. A unit that gets a slot back has nothing of before of it in its cache.
    pub(super) fn replaced_by(
        &self,
        map: SlotMap,
        units: HashMap<Address, Arc<Unit>>,
        others: Vec<Address>,
    ) -> Self {
        let by_slot: Box<[_]> = (0..SLOTS)
            .map(|slot| map.owner(slot).and_then(|address| units.get(address).cloned()))
            .collect();
        let mut back: HashMap<u32, HashSet<u16>> = HashMap::new();
        for (slot, (old, new)) in (0_u16..).zip(self.by_slot.iter().zip(&by_slot)) {
            if old.as_ref().map(|unit| unit.name()) == new.as_ref().map(|unit| unit.name()) {
                continue;
            }
            if let Some(old) = old {
                old.lose(slot);
            }
            if let Some(new) = new.as_ref().filter(|new| new.regain(slot)) {
                back.entry(new.name().0).or_default().insert(slot);
            }
        }
        for unit in units.values() {
            if let Some(slots) = back.get(&unit.name().0) {
                unit.cache.invalidate_where(|key| slots.contains(&slot(key)));
            }
        }
        let mut primaries: Vec<NodeName> = Vec::new();
        for unit in by_slot.iter().flatten() {
            if primaries.last() != Some(&unit.name()) && !primaries.contains(&unit.name()) {
                primaries.push(unit.name());
            }
        }
        Self { version: self.version + 1, map, units, by_slot, primaries, others }
    }
}
