//! The promises of the documents as models for the checker, one in each file.
//!
//! Model: each model is a state machine of one key. Its operations are the changes of the key and
//! the reads that the promise is about. A read may take effect at any moment of its window, which
//! ends with the reply. The promise decides where the window begins and what a step accepts. The
//! checker looks for an order of all operations, each within its window, of which every step is
//! accepted. A long history is judged in parts, each with the changes that its reads can show.
//! Otherwise the time would grow with the square of its length.
//!
//! The rule: a model states what the documents promise, no more and no less.

use std::collections::BTreeSet;

use porcupine_rs::{Model, Operation};

use self::primaries::Op;
use super::checker::history::{Key, Read, Terms};

pub(super) mod bounded_staleness;
pub(super) mod linearizable;
pub(super) mod monotonic_reads;
pub(super) mod primaries;
pub(super) mod read_your_writes;
pub(super) mod register;

/// The number of reads in a part.
const PART: usize = 500;

/// A promise that the checker can judge. The metadata of a read is its index in its key.
pub(super) trait Promise: Model<Metadata = usize> {
    const NAME: &'static str;

    /// Returns the parts of a key's history that are judged one by one.
    fn histories(key: &Key, terms: &Terms) -> Vec<Vec<Operation<Self>>>;
}

/// Returns the histories of reads that no session orders. Each is given by its index and the
/// beginning of its window. Consecutive reads are dealt out to this number of histories.
fn histories<M: Promise<Op = Op>>(
    key: &Key,
    terms: &Terms,
    reads: impl Iterator<Item = (usize, i64)>,
    dealt: usize,
) -> Vec<Vec<Operation<M>>> {
    let mut reads: Vec<_> = reads
        .map(|(index, from)| {
            let Read { value, switch, .. } = key.reads[index];
            let window = window(key, &key.reads[index], from);
            operation::<M>(Op::Read { value, switch }, window, Some(index))
        })
        .collect();
    reads.sort_by_key(|read| read.call_time);
    let part = |reads: Vec<Operation<M>>| {
        let first = reads.first()?.call_time;
        let last = reads.iter().map(|read| read.return_time).max()?;
        let switches = reads.iter().filter_map(|read| key.reads[read.metadata?].switch);
        let mut operations = changes(key, terms, (first, last), switches.collect(), |op| op);
        operations.extend(reads);
        Some(operations)
    };
    let deal = |block: &[Operation<M>]| {
        let hand = |first| part(block.iter().skip(first).step_by(dealt).cloned().collect());
        (0..dealt).filter_map(hand).collect::<Vec<_>>()
    };
    reads.chunks(PART * dealt).flat_map(deal).collect()
}

/// Returns the changes that reads within these moments can show, and the switches of the reads and
/// of the changes.
fn changes<M: Promise>(
    key: &Key,
    terms: &Terms,
    (from, until): (i64, i64),
    mut switches: BTreeSet<u32>,
    op: impl Fn(Op) -> M::Op,
) -> Vec<Operation<M>> {
    let moment = |number: &u32| terms.switched(*number);
    // The previous primary goes on with what was there at the switch.
    let from = switches.iter().map(moment).fold(from, i64::min);
    let mut operations = Vec::new();
    for timed in key.changes_within((from, until)) {
        let (change, switch) = (timed.change, timed.switch);
        switches.extend(switch);
        operations.push(operation(op(Op::Change { change, switch }), timed.window, None));
    }
    let switch = |number| (op(Op::Switch(number)), terms.switched(number));
    let switches = switches.into_iter().map(switch);
    operations.extend(switches.map(|(op, moment)| operation(op, (moment, moment), None)));
    operations
}

/// Returns an operation of a model; only reads have an index.
fn operation<M: Promise>(
    op: M::Op,
    (call_time, return_time): (i64, i64),
    index: Option<usize>,
) -> Operation<M> {
    Operation { client_id: None, call_time, return_time, op, metadata: index }
}

/// Returns the window of a read that begins at `from`, or when its value was first sent. Before
/// that no order could contain it, so the result is the same and is found sooner.
fn window(key: &Key, read: &Read, from: i64) -> (i64, i64) {
    (from.max(key.first_sent(read.value)).min(read.returned), read.returned)
}
