//! The routing table: the primary of each slot.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::shard::{NodeId, Shard};
use super::slot_map::{NodeAddr, SLOT_COUNT, SlotMap, slot};

/// The owners of the slots, and all known nodes.
pub(super) struct RoutingTable {
    pub(super) version: u64,
    pub(super) map: SlotMap,
    pub(super) shards: HashMap<NodeAddr, Arc<Shard>>,
    pub(super) by_slot: Box<[Option<Arc<Shard>>]>,
    /// The owners in `by_slot`, each once, in its order.
    pub(super) primaries: Vec<NodeId>,
    /// Nodes that may be polled for the slots, besides the shards.
    pub(super) other_nodes: Vec<NodeAddr>,
}

impl RoutingTable {
    /// Returns the table of a cluster without known slots.
    pub(super) fn empty() -> Self {
        Self {
            version: 0,
            map: SlotMap::unknown(),
            shards: HashMap::new(),
            by_slot: vec![None; SLOT_COUNT].into(),
            primaries: Vec::new(),
            other_nodes: Vec::new(),
        }
    }

    /// Returns the next table. A shard that regains a slot first loses all entries of that slot
    /// (invariant P2).
    pub(super) fn replaced_by(
        &self,
        map: SlotMap,
        shards: HashMap<NodeAddr, Arc<Shard>>,
        other_nodes: Vec<NodeAddr>,
    ) -> Self {
        let by_slot: Box<[_]> = (0..SLOT_COUNT)
            .map(|slot| map.owner(slot).and_then(|address| shards.get(address).cloned()))
            .collect();
        let mut back: HashMap<u32, HashSet<u16>> = HashMap::new();
        for (slot, (old, new)) in (0_u16..).zip(self.by_slot.iter().zip(&by_slot)) {
            if old.as_ref().map(|shard| shard.name()) == new.as_ref().map(|shard| shard.name()) {
                continue;
            }
            if let Some(old) = old {
                old.lose_slot(slot);
            }
            if let Some(new) = new.as_ref().filter(|new| new.regain_slot(slot)) {
                back.entry(new.name().0).or_default().insert(slot);
            }
        }
        for shard in shards.values() {
            if let Some(slots) = back.get(&shard.name().0) {
                shard.cache.invalidate_where(|key| slots.contains(&slot(key)));
            }
        }
        let mut primaries: Vec<NodeId> = Vec::new();
        for shard in by_slot.iter().flatten() {
            if primaries.last() != Some(&shard.name()) && !primaries.contains(&shard.name()) {
                primaries.push(shard.name());
            }
        }
        Self { version: self.version + 1, map, shards, by_slot, primaries, other_nodes }
    }
}
