//! The slot of a key, and the node that owns each slot.
//!
//! A node is identified by its address. The view of one node is a [`ClusterView`]. Among the views
//! of several nodes, the claim with the highest config epoch wins, as it does among the nodes
//! themselves.
//!
//! <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>

use std::collections::HashMap;
use std::ops::RangeInclusive;

use crc16::{State, XMODEM};

/// The number of slots.
const SLOT_MODULUS: u16 = 16384;
pub(super) const SLOT_COUNT: usize = SLOT_MODULUS as usize;

/// Returns the slot of a key. The hash covers the bytes between the first `{` and the next `}`, or
/// the whole key if there are none.
pub fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let rest = &key[open + 1..];
        memchr::memchr(b'}', rest).filter(|length| *length > 0).map(|length| &rest[..length])
    });
    State::<XMODEM>::calculate(tag.unwrap_or(key)) % SLOT_MODULUS
}

/// The host and port of a node.
pub(super) type NodeAddr = (String, u16);

/// A primary and its slots, as reported by one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotClaim {
    pub(super) address: NodeAddr,
    /// The config epoch.
    pub(super) epoch: u64,
    pub(super) slots: Vec<RangeInclusive<u16>>,
}

/// The cluster, as reported by one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClusterView {
    pub(super) primaries: Vec<SlotClaim>,
    /// Replicas, any of which may be promoted.
    pub(super) replicas: Vec<NodeAddr>,
}

impl ClusterView {
    /// Parses the reply to `CLUSTER NODES` of the node at `asked`. With `by_name`, nodes are
    /// addressed by their hostnames, if they have one. Returns `None` if the reply is malformed.
    pub(super) fn parse(text: &str, asked: &NodeAddr, by_name: bool) -> Option<Self> {
        let mut view = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            view.add_line(line, asked, by_name)?;
        }
        Some(view)
    }

    /// Adds the node of one line:
    /// `id ip:port@bus,name flags primary ping pong epoch state slot ...`.
    fn add_line(&mut self, line: &str, asked: &NodeAddr, by_name: bool) -> Option<()> {
        let words: Vec<_> = line.split(' ').collect();
        let [_, address, flags, _, _, _, epoch, _, slots @ ..] = &words[..] else { return None };
        let has = |flag| flags.split(',').any(|one| one == flag);
        if has("noaddr") || has("handshake") {
            return Some(());
        }
        let mut address = parse_address(address, by_name)?;
        if address.0.is_empty() && has("myself") {
            // A node does not know its own address until another node has met it.
            address.0.clone_from(&asked.0);
        }
        // A primary that has failed and was replaced owns nothing. Otherwise clients would wait for
        // its replies for as long as it stands still.
        if !has("master") || (has("fail") && slots.is_empty()) {
            self.replicas.push(address);
            return Some(());
        }
        // Entries in brackets are slots in migration. Their owner lists them outside the brackets
        // too, until the migration ends.
        let slots =
            slots.iter().filter(|slot| !slot.starts_with('[')).map(|slot| parse_range(slot));
        let claim =
            SlotClaim { address, epoch: epoch.parse().ok()?, slots: slots.collect::<Option<_>>()? };
        self.primaries.push(claim);
        Some(())
    }
}

fn parse_address(text: &str, by_name: bool) -> Option<NodeAddr> {
    let mut words = text.split(',');
    let (ip, ports) = words.next()?.rsplit_once(':')?;
    let name = words.next().filter(|name| by_name && !name.is_empty());
    let port = ports.split('@').next()?.parse().ok()?;
    Some((name.unwrap_or(ip).to_owned(), port))
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && usize::from(last) < SLOT_COUNT).then_some(first..=last)
}

/// The views that a slot map is merged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The view of one node, which may lag behind. Only what is newer than the known counts.
    OneNode,
    /// The views of some nodes in one round.
    SomeNodes,
    /// Every known node has replied in one round, so no newer claim can be missing. Older claims
    /// win too, because the cluster was created again. Slots without a claim have no owner.
    EveryNode,
}

impl Evidence {
    /// Returns whether a claim with this epoch replaces the known owner.
    fn suffices(self, epoch: u64, known: Option<u64>) -> bool {
        match self {
            Self::OneNode => known.is_some_and(|known| epoch > known),
            Self::SomeNodes => known.is_none_or(|known| epoch >= known),
            Self::EveryNode => true,
        }
    }
}

fn by_reference((address, epoch): &(NodeAddr, u64)) -> (&NodeAddr, u64) {
    (address, *epoch)
}

/// The owner of each slot, and the config epoch of its claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotMap {
    owners: Box<[Option<(NodeAddr, u64)>]>,
}

impl SlotMap {
    pub(super) fn unknown() -> Self {
        Self { owners: vec![None; SLOT_COUNT].into() }
    }

    /// Returns the known owners, merged with the claims of `views`. Of several claims to a slot the
    /// one with the highest epoch counts, as far as `evidence` suffices.
    pub(super) fn merged(&self, views: &[ClusterView], evidence: Evidence) -> Self {
        let owners = self.owners_with(views, evidence);
        Self { owners: owners.map(|owner| owner.map(|(at, epoch)| (at.clone(), epoch))).collect() }
    }

    /// Whether the claims of a view change an owner or its epoch, as [`merged`](Self::merged) would
    /// apply them.
    pub(super) fn is_changed_by(&self, view: &ClusterView, evidence: Evidence) -> bool {
        let owners = self.owners_with(std::slice::from_ref(view), evidence);
        owners.zip(&self.owners).any(|(next, known)| next != known.as_ref().map(by_reference))
    }

    fn owners_with<'a>(
        &'a self,
        views: &'a [ClusterView],
        evidence: Evidence,
    ) -> impl Iterator<Item = Option<(&'a NodeAddr, u64)>> {
        let mut claimed = vec![None::<(&NodeAddr, u64)>; SLOT_COUNT];
        for claim in views.iter().flat_map(|view| &view.primaries) {
            for slot in claim.slots.iter().cloned().flatten() {
                let before = &mut claimed[usize::from(slot)];
                if before.is_none_or(|(_, epoch)| epoch < claim.epoch) {
                    *before = Some((&claim.address, claim.epoch));
                }
            }
        }
        claimed.into_iter().zip(&self.owners).map(move |(claimed, known)| {
            let known = known.as_ref().map(by_reference);
            match claimed {
                None => known.filter(|_| evidence != Evidence::EveryNode),
                Some((_, epoch)) if evidence.suffices(epoch, known.map(|known| known.1)) => claimed,
                Some(_) => known,
            }
        })
    }

    /// Sets the owner of `slot` to `address`, as a `MOVED` reply reported it.
    pub(super) fn moved(&mut self, slot: u16, address: NodeAddr) {
        if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
            // The known epoch is kept, so a claim with that epoch still wins.
            let epoch = owner.as_ref().map_or(0, |(_, epoch)| *epoch);
            *owner = Some((address, epoch));
        }
    }

    pub(super) fn owner(&self, slot: usize) -> Option<&NodeAddr> {
        self.owners[slot].as_ref().map(|(address, _)| address)
    }

    /// Returns the number of slots of each owner.
    pub(super) fn counts(&self) -> HashMap<&NodeAddr, usize> {
        let mut counts = HashMap::new();
        for (address, _) in self.owners.iter().flatten() {
            *counts.entry(address).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> NodeAddr {
        ("10.0.0.1".to_owned(), port)
    }

    fn view(lines: &str) -> ClusterView {
        ClusterView::parse(lines, &("asked".to_owned(), 1), false).unwrap()
    }

    #[test]
    fn slot_matches_the_cluster_specification() {
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"foo{}{bar}"), State::<XMODEM>::calculate(b"foo{}{bar}") % 16384);
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
        assert_eq!(slot(b"{unclosed"), State::<XMODEM>::calculate(b"{unclosed") % 16384);
        assert_eq!(slot(b""), 0);
    }

    #[test]
    fn cluster_nodes_reply_is_parsed() {
        let text = "\
            a 10.0.0.1:7000@17000,one master - 0 0 3 connected 0-5460 5462 [93->-b]\n\
            b 10.0.0.1:7001@17001,,shard-id=x master,fail? - 0 0 2 connected 5461\n\
            c 10.0.0.1:7002@17002,three slave a 0 0 3 connected\n\
            d :0@0 master,noaddr - 0 0 0 disconnected\n\
            e :7004@17004 myself,master - 0 0 0 connected\n";
        let expected = ClusterView {
            primaries: vec![
                SlotClaim { address: address(7000), epoch: 3, slots: vec![0..=5460, 5462..=5462] },
                SlotClaim { address: address(7001), epoch: 2, slots: vec![5461..=5461] },
                SlotClaim { address: ("asked".to_owned(), 7004), epoch: 0, slots: vec![] },
            ],
            replicas: vec![address(7002)],
        };
        assert_eq!(view(text), expected);
        let by_name = ClusterView::parse(text, &address(1), true).unwrap();
        assert_eq!(by_name.primaries[0].address.0, "one");
        assert_eq!(by_name.primaries[1].address.0, "10.0.0.1");
    }

    #[test]
    fn malformed_cluster_nodes_is_rejected() {
        for text in [
            "OK",
            "a b c",
            "a 10.0.0.1 master - 0 0 1 connected",
            "a h:1@2 master - 0 0 1 connected 16384",
            "a h:1@2 master - 0 0 1 connected 9-1",
        ] {
            assert_eq!(ClusterView::parse(text, &address(1), false), None, "{text}");
        }
    }

    #[test]
    fn older_epoch_never_replaces_slot_owner() {
        let old = view("a 10.0.0.1:1@2 master - 0 0 1 connected 0-16383");
        let new = view(
            "a 10.0.0.1:1@2 master - 0 0 1 connected 1-16383\nb 10.0.0.1:2@3 master - 0 0 2 \
                connected 0",
        );
        let map = SlotMap::unknown().merged(&[new.clone(), old.clone()], Evidence::SomeNodes);
        assert_eq!((map.owner(0), map.owner(1)), (Some(&address(2)), Some(&address(1))));
        assert_eq!(map.merged(std::slice::from_ref(&old), Evidence::SomeNodes), map);
        assert_eq!(map.merged(&[], Evidence::SomeNodes), map);
        assert_eq!(map.merged(&[old], Evidence::EveryNode).owner(0), Some(&address(1)));
        assert_eq!(map.counts()[&address(1)], 16383);
        let mut moved = map.clone();
        moved.moved(7, address(9));
        assert_eq!(moved.owner(7), Some(&address(9)));
        assert_eq!(moved.merged(&[new], Evidence::SomeNodes), map, "the newest report counts");
    }

    #[test]
    fn single_view_counts_only_with_a_newer_epoch() {
        let [first, equal, later] = [(1, 1), (2, 1), (2, 2)].map(|(port, epoch)| {
            view(&format!("a 10.0.0.1:{port}@9 master - 0 0 {epoch} connected 0-16383"))
        });
        let unknown = SlotMap::unknown();
        assert_eq!(unknown.merged(std::slice::from_ref(&first), Evidence::OneNode), unknown);
        let map = unknown.merged(&[first], Evidence::SomeNodes);
        assert!(!map.is_changed_by(&equal, Evidence::OneNode));
        assert!(map.is_changed_by(&equal, Evidence::SomeNodes));
        assert!(map.is_changed_by(&later, Evidence::OneNode));
        assert_eq!(map.merged(&[equal], Evidence::OneNode), map);
        let map = map.merged(&[later], Evidence::OneNode);
        assert_eq!((map.owner(0), map.owner(16383)), (Some(&address(2)), Some(&address(2))));
    }

    #[test]
    fn replaced_primary_without_slots_is_no_primary() {
        let text = "\
            a 10.0.0.1:1@9 master,fail - 0 0 1 connected\n\
            b 10.0.0.1:2@9 master,fail - 0 0 2 connected 0\n\
            c 10.0.0.1:3@9 master - 0 0 3 connected\n";
        let primaries: Vec<_> =
            view(text).primaries.into_iter().map(|claim| claim.address.1).collect();
        assert_eq!((primaries, view(text).replicas), (vec![2, 3], vec![address(1)]));
    }
}
