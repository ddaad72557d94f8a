//! A node of a cluster: the slots as it knows them, redirections, and slots that move.
//!
//! A node has its own view, and learns of changes at its own time ([`Model::learn`]). The replies
//! to commands about keys follow from that view, and from the keys that it has of a slot that
//! moves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use redis_proxy::cluster::slot;

use super::commands::Spec;
use super::{Entry, Key, Model, Outcome, Protocol};

/// The number of slots.
pub(in super::super) const SLOTS: u16 = 16384;

const TRY_AGAIN: &str = "TRYAGAIN Multiple keys request during rehashing of slot";
const CROSS_SLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";
const UNSERVED: &str = "CLUSTERDOWN Hash slot not served";
const DISABLED: &str = "ERR This instance has cluster support disabled";

/// A node as the others know it.
#[derive(Clone)]
pub(in super::super) struct Member {
    pub(in super::super) id: String,
    /// The host and port.
    pub(in super::super) address: String,
    /// The config epoch.
    pub(in super::super) epoch: u64,
    /// The index of the primary that it replicates.
    pub(in super::super) primary: Option<usize>,
}

/// The direction in which a slot moves, with the index of the other node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Move {
    To(usize),
    From(usize),
}

/// The view of one node.
#[derive(Clone)]
pub(in super::super) struct View {
    /// The index of the node itself.
    me: usize,
    members: Vec<Member>,
    /// The owner of each slot.
    owners: Vec<Option<usize>>,
    moves: BTreeMap<u16, Move>,
}

/// The claim of a node to slots, in a config epoch.
#[derive(Clone, Debug)]
pub(in super::super) struct Claim {
    pub(in super::super) owner: usize,
    pub(in super::super) epoch: u64,
    pub(in super::super) slots: Vec<u16>,
    /// The node that replicates the owner from now on.
    pub(in super::super) replaces: Option<usize>,
}

impl View {
    /// The view of node `me`. Each member owns the slots of `owners` with its index.
    pub(in super::super) fn new(
        me: usize,
        members: Vec<Member>,
        owners: Vec<Option<usize>>,
    ) -> Self {
        Self { me, members, owners, moves: BTreeMap::new() }
    }

    fn index_of(&self, id: &str) -> Option<usize> {
        self.members.iter().position(|member| member.id == id)
    }

    fn last_epoch(&self) -> u64 {
        self.members.iter().map(|member| member.epoch).max().unwrap_or(0)
    }

    /// Returns the slots of a node.
    pub(in super::super) fn slots_of(&self, node: usize) -> Vec<u16> {
        let slots = (0..SLOTS).zip(&self.owners);
        slots.filter(|(_, owner)| **owner == Some(node)).map(|(slot, _)| slot).collect()
    }

    fn redirect(&self, kind: &str, slot: u16, node: usize) -> String {
        format!("{kind} {slot} {}", self.members[node].address)
    }

    /// Returns the reply to `CLUSTER NODES`.
    fn nodes(&self) -> String {
        let mut text = String::new();
        for (index, member) in self.members.iter().enumerate() {
            let me = if index == self.me { "myself," } else { "" };
            let (role, primary) = match member.primary {
                None => ("master", "-"),
                Some(primary) => ("slave", self.members[primary].id.as_str()),
            };
            let Member { id, address, epoch, .. } = member;
            _ = write!(text, "{id} {address}@1 {me}{role} {primary} 0 0 {epoch} connected");
            self.write_ranges(index, &mut text);
            if index == self.me {
                for (slot, one) in &self.moves {
                    _ = match one {
                        Move::To(node) => write!(text, " [{slot}->-{}]", self.members[*node].id),
                        Move::From(node) => write!(text, " [{slot}-<-{}]", self.members[*node].id),
                    };
                }
            }
            text.push('\n');
        }
        text
    }

    /// Writes the slots of a node as ranges.
    fn write_ranges(&self, node: usize, text: &mut String) {
        let mut first = None;
        for slot in 0..=usize::from(SLOTS) {
            let is_own = self.owners.get(slot).is_some_and(|owner| *owner == Some(node));
            match (first, is_own) {
                (None, true) => first = Some(slot),
                (Some(begin), false) => {
                    _ = write!(text, " {begin}");
                    if begin + 1 < slot {
                        _ = write!(text, "-{}", slot - 1);
                    }
                    first = None;
                }
                _ => {}
            }
        }
    }
}

impl Model {
    /// Makes the Redis a node of a cluster.
    pub(in super::super) fn join(&mut self, view: View) {
        self.cluster = Some(view);
    }

    pub(in super::super) fn view(&self) -> &View {
        self.cluster.as_ref().expect("a node of a cluster")
    }

    fn view_mut(&mut self) -> &mut View {
        self.cluster.as_mut().expect("a node of a cluster")
    }

    /// Learns of a claim. It counts for each slot that was claimed in an earlier epoch.
    pub(in super::super) fn learn(&mut self, claim: &Claim) {
        let view = self.view_mut();
        view.members[claim.owner].epoch = claim.epoch.max(view.members[claim.owner].epoch);
        if let Some(replaced) = claim.replaces {
            view.members[claim.owner].primary = None;
            view.members[replaced].primary = Some(claim.owner);
        }
        for slot in &claim.slots {
            let owner = &mut view.owners[usize::from(*slot)];
            let is_newer = owner.is_none_or(|before| view.members[before].epoch < claim.epoch);
            if is_newer && view.moves.get(slot).is_none_or(|one| matches!(one, Move::To(_))) {
                *owner = Some(claim.owner);
                view.moves.remove(slot);
            }
        }
    }

    /// Returns the claim of this node to these slots, in its present epoch.
    pub(in super::super) fn claim(&self, slots: Vec<u16>, replaces: Option<usize>) -> Claim {
        let view = self.view();
        Claim { owner: view.me, epoch: view.members[view.me].epoch, slots, replaces }
    }

    /// Begins a config epoch that is later than all that are known. Returns whether the present
    /// one was not.
    pub(in super::super) fn bump_epoch(&mut self) -> bool {
        let view = self.view_mut();
        let last = view.last_epoch();
        let is_last = view.members[view.me].epoch == last && last > 0;
        if !is_last {
            view.members[view.me].epoch = last + 1;
        }
        !is_last
    }

    /// Takes a key for another node, as `MIGRATE` does. Its readers get their push.
    pub(in super::super) fn take_for_migration(
        &mut self,
        key: &[u8],
        now: u64,
    ) -> Option<Migrated> {
        (self.current, self.now) = (0, now);
        let entry = self.find(key)?.clone();
        self.remove(key);
        self.executed.clear();
        Some(Migrated(entry))
    }

    /// Stores a key of another node, as `RESTORE-ASKING` with `REPLACE` does.
    pub(in super::super) fn restore(&mut self, key: &[u8], Migrated(entry): Migrated, now: u64) {
        (self.current, self.now) = (0, now);
        // A time to live is at least a millisecond.
        let expires_at = entry.expires_at.map(|end| end.max(now + 1));
        self.store(key, entry.value, expires_at);
    }

    /// Returns the keys of a slot.
    pub(in super::super) fn keys_in(&self, of: u16) -> Vec<Key> {
        self.keys.keys().filter(|key| slot(key) == of).cloned().collect()
    }

    /// Takes over the data of `primary`.
    pub(in super::super) fn copy(&mut self, primary: &Self) {
        self.keys.clone_from(&primary.keys);
    }

    /// Checks that the node serves the keys of a command, or of the transaction that it ends.
    ///
    /// # Errors
    /// The redirection, or another error of the cluster.
    pub(super) fn check_slot(&mut self, spec: &Spec, command: &[Vec<u8>]) -> Outcome {
        if self.cluster.is_none() {
            return Ok(());
        }
        let commands = match (spec.name, &self.client().queued) {
            ("exec", Some(queued)) => queued.clone(),
            _ => vec![command.to_vec()],
        };
        let mut keys = Vec::new();
        for command in &commands {
            let spec = Spec::find(&command[0], self.version).expect("a known command");
            keys.extend(spec.keys(command).into_iter().cloned());
        }
        let Some(first) = keys.first() else { return Ok(()) };
        let (of, is_asking) = (slot(first), self.client().is_asking);
        let view = self.view();
        let Some(owner) = view.owners[usize::from(of)] else { return Err(UNSERVED.to_owned()) };
        let (me, moves) = (view.me, view.moves.get(&of).copied());
        if keys.iter().any(|key| slot(key) != of) {
            return Err(CROSS_SLOT.to_owned());
        }
        let moves = moves.filter(|one| matches!(one, Move::From(_)) != (owner == me));
        let missing = match moves {
            Some(_) => keys.iter().filter(|key| self.find(key).is_none()).count(),
            None => 0,
        };
        let are_several = keys.iter().collect::<BTreeSet<_>>().len() > 1;
        match moves {
            Some(Move::To(_)) if 0 < missing && missing < keys.len() => Err(TRY_AGAIN.to_owned()),
            Some(Move::To(node)) if missing > 0 => Err(self.view().redirect("ASK", of, node)),
            Some(Move::From(_)) if is_asking && are_several && missing > 0 => {
                Err(TRY_AGAIN.to_owned())
            }
            Some(Move::From(_)) if is_asking => Ok(()),
            _ if owner != me => Err(self.view().redirect("MOVED", of, owner)),
            _ => Ok(()),
        }
    }

    /// Runs `ASKING`.
    pub(super) fn ask(&mut self) -> Outcome {
        if self.cluster.is_none() {
            return Err(DISABLED.to_owned());
        }
        self.client().is_asking = true;
        self.ok()
    }

    /// Runs `CLUSTER`. The words are in lower case.
    pub(super) fn cluster(&mut self, words: &[&str]) -> Outcome {
        let Some(view) = &self.cluster else { return Err(DISABLED.to_owned()) };
        match words {
            ["nodes"] => {
                let text = view.nodes();
                self.verbatim(&text);
            }
            ["info"] => self.verbatim("cluster_enabled:1\r\ncluster_state:ok\r\n"),
            ["myid"] => {
                let id = view.members[view.me].id.clone();
                self.bulk(id.as_bytes());
            }
            ["countkeysinslot", number] => {
                let keys = self.keys_in(number.parse().unwrap_or(SLOTS)).len();
                return self.integer(i64::try_from(keys).unwrap_or(0));
            }
            ["setslot", number, rest @ ..] => {
                let number = number.parse().ok().filter(|number| *number < SLOTS);
                let number = number.ok_or("ERR Invalid or out of range slot")?;
                return self.set_slot(number, rest);
            }
            _ => return Err("ERR the model does not know this form of 'cluster'".to_owned()),
        }
        Ok(())
    }

    fn set_slot(&mut self, number: u16, words: &[&str]) -> Outcome {
        let view = self.view();
        let (me, owner) = (view.me, view.owners[usize::from(number)]);
        if view.members[me].primary.is_some() {
            return Err("ERR You can use SETSLOT only with masters.".to_owned());
        }
        let node = words.get(1).and_then(|id| view.index_of(id));
        let is_replica = node.is_some_and(|node| view.members[node].primary.is_some());
        let unknown = |text: &str| format!("ERR {text} {}", words.get(1).unwrap_or(&""));
        match words {
            ["stable"] => drop(self.view_mut().moves.remove(&number)),
            ["migrating", _] if owner != Some(me) => {
                return Err(format!("ERR I'm not the owner of hash slot {number}"));
            }
            ["importing", _] if owner == Some(me) => {
                return Err(format!("ERR I'm already the owner of hash slot {number}"));
            }
            ["migrating" | "importing", _] if node.is_none() => {
                return Err(unknown("I don't know about node"));
            }
            ["node", _] if node.is_none() => return Err(unknown("Unknown node")),
            _ if is_replica => return Err("ERR Target node is not a master".to_owned()),
            ["migrating", _] => {
                let to = Move::To(node.unwrap_or(me));
                self.view_mut().moves.insert(number, to);
            }
            ["importing", _] => {
                let from = Move::From(node.unwrap_or(me));
                self.view_mut().moves.insert(number, from);
            }
            ["node", _] => return self.give_slot(number, node.unwrap_or(me)),
            _ => return Err("ERR the model does not know this form of 'cluster'".to_owned()),
        }
        self.ok()
    }

    /// Runs `CLUSTER SETSLOT number NODE node`.
    fn give_slot(&mut self, number: u16, node: usize) -> Outcome {
        let (has_keys, view) = (!self.keys_in(number).is_empty(), self.view());
        let was_mine = view.owners[usize::from(number)] == Some(view.me);
        if was_mine && node != view.me && has_keys {
            return Err(format!(
                "ERR Can't assign hashslot {number} to a different node while I still hold keys \
                 for this hash slot."
            ));
        }
        let view = self.view_mut();
        view.owners[usize::from(number)] = Some(node);
        match view.moves.get(&number) {
            Some(Move::To(_)) if !has_keys => drop(view.moves.remove(&number)),
            Some(Move::From(_)) if node == view.me => {
                view.moves.remove(&number);
                self.bump_epoch();
            }
            _ => {}
        }
        self.ok()
    }

    fn verbatim(&mut self, text: &str) {
        if self.client().protocol == Protocol::Resp3 {
            self.write(format!("={}\r\ntxt:{text}\r\n", text.len() + 4).as_bytes());
        } else {
            self.bulk(text.as_bytes());
        }
    }
}

/// A key on its way to another node.
pub(in super::super) struct Migrated(Entry);
