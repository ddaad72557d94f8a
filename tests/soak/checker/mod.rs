//! The independent judge of a soak: a linearizability checker of another project.
//!
//! Model: the record of the soak is read from its file, and split into the histories of single
//! keys, and of single sessions where the promise is about one. Each model gives the checker its
//! part of each key. The checker, porcupine-rs, is the algorithm of Wing and Gong with the
//! extensions of Lowe. It looks for an order of the operations that the model accepts, and fails if
//! it has tried all.
//!
//! The rule: a history that is not decided in time counts as neither right nor wrong, and is
//! reported.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use porcupine_rs::{CheckResult, Operation, check_operations_timeout};

use self::history::{History, Key};
use super::models::Promise;
use super::models::bounded_staleness::BoundedStaleness;
use super::models::linearizable::Linearizable;
use super::models::monotonic_reads::MonotonicReads;
use super::models::read_your_writes::ReadYourWrites;
use super::record::How;

pub(super) mod by_hand;
pub(super) mod history;

/// The longest time for one history.
const LIMIT: Duration = Duration::from_secs(10);
/// The number of findings of each model in a report, so that all can be read.
const MOST_TOLD: usize = 50;
/// The number of changes in a finding.
const CHANGES_TOLD: usize = 6;
const HARNESS: &str = "the harness is wrong: ";

/// The judgement of a record; it has no models if nothing was recorded.
#[derive(Default)]
pub(super) struct Judgement {
    operations: usize,
    keys: usize,
    sessions: usize,
    took: Duration,
    models: Vec<ModelJudgement>,
    path: String,
}

/// The judgement by one model.
#[derive(Default)]
pub(super) struct ModelJudgement {
    pub(super) name: &'static str,
    histories: usize,
    reads: usize,
    pub(super) rejected: usize,
    pub(super) undecided: usize,
    findings: Vec<String>,
}

/// Judges the record in this file by every model.
pub(super) fn judge(path: &Path) -> Judgement {
    let began = Instant::now();
    let history = History::read(path);
    let models = vec![
        judge_by::<Linearizable>(&history),
        judge_by::<BoundedStaleness>(&history),
        judge_by::<MonotonicReads>(&history),
        judge_by::<ReadYourWrites>(&history),
    ];
    Judgement {
        operations: history.operations,
        keys: history.keys.len(),
        sessions: history.sessions.len(),
        took: began.elapsed(),
        models,
        path: path.display().to_string(),
    }
}

/// Judges each key, on all processors.
fn judge_by<P: Promise>(history: &History) -> ModelJudgement {
    let next = AtomicUsize::new(0);
    let sum = Mutex::new(ModelJudgement { name: P::NAME, ..ModelJudgement::default() });
    let work = || {
        while let Some(key) = history.keys.get(next.fetch_add(1, Relaxed)) {
            for part in P::histories(key, &history.terms) {
                let legal = is_legal::<P>(&part);
                let mut sum = sum.lock().unwrap();
                sum.histories += 1;
                sum.reads += part.iter().filter(|operation| operation.metadata.is_some()).count();
                sum.undecided += usize::from(legal.is_none());
                sum.rejected += usize::from(legal == Some(false));
                if legal == Some(false) && sum.findings.len() < MOST_TOLD {
                    sum.findings.push(tell::<P>(history, key, part));
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    sum.into_inner().unwrap()
}

/// Whether there is an order that the model accepts; nothing if that is not decided in time.
pub(super) fn is_legal<P: Promise>(part: &[Operation<P>]) -> Option<bool> {
    match check_operations_timeout(part, LIMIT) {
        CheckResult::Ok => Some(true),
        CheckResult::Illegal => Some(false),
        CheckResult::Unknown => None,
    }
}

/// Returns the first read, by the end of the reads, with which a history is rejected; nothing if
/// its changes alone are.
fn first_wrong<P: Promise>(mut part: Vec<Operation<P>>) -> Option<usize> {
    part.sort_by_key(|operation| operation.metadata.map(|_| operation.return_time));
    let changes = part.iter().filter(|operation| operation.metadata.is_none()).count();
    let is_wrong = |end: usize| is_legal::<P>(&part[..end]) == Some(false);
    if is_wrong(changes) {
        return None;
    }
    let (mut right, mut wrong) = (changes, part.len());
    while right + 1 < wrong {
        let middle = usize::midpoint(right, wrong);
        if is_wrong(middle) { wrong = middle } else { right = middle }
    }
    part[wrong - 1].metadata
}

/// Returns a finding with the changes around it.
fn tell<P: Promise>(history: &History, key: &Key, part: Vec<Operation<P>>) -> String {
    let Some(index) = first_wrong(part) else {
        return format!("{HARNESS}the changes of {} contradict each other", key.name);
    };
    let read = &key.reads[index];
    let value = |value: u32| key.values[value as usize].as_str();
    let (name, who) = (&key.name, &history.sessions[read.session as usize]);
    let fault = if read.how == How::Direct { HARNESS } else { "" };
    let shown = read.value.map_or("nothing", value);
    let mut text = format!(
        "{fault}{}, {name}: {who} got {shown} ({:?}) between {} and {} us, after no order of:\n",
        P::NAME,
        read.how,
        read.call,
        read.returned
    );
    let mut before: Vec<_> =
        key.changes.iter().filter(|timed| timed.window.0 <= read.returned).collect();
    before.sort_by_key(|timed| timed.window.0);
    for timed in &before[before.len().saturating_sub(CHANGES_TOLD)..] {
        let until = match timed.window.1 {
            i64::MAX => "unknown".to_owned(),
            until => until.to_string(),
        };
        let lost = if timed.switch.is_some() { ", unless a failover lost it" } else { "" };
        _ = writeln!(text, "  {:?} from {} to {until}{lost}", timed.change, timed.window.0);
    }
    if let Some(switched) = history.terms.last_switch(read.returned) {
        _ = writeln!(text, "  the last failover before it led to another primary at {switched}");
    }
    text
}

impl Judgement {
    /// Returns the number of histories that are not accepted.
    pub(super) fn not_accepted(&self) -> usize {
        self.models.iter().map(|model| model.rejected + model.undecided).sum()
    }

    /// Returns the number of histories that a model rejected.
    pub(super) fn rejected(&self, name: &str) -> usize {
        let of_name = self.models.iter().filter(|model| model.name == name);
        of_name.map(|model| model.rejected).sum()
    }

    pub(super) fn findings(&self) -> impl Iterator<Item = &String> {
        self.models.iter().flat_map(|model| &model.findings)
    }

    pub(super) fn is_of_harness(&self) -> bool {
        self.findings().any(|finding| finding.starts_with(HARNESS))
    }

    pub(super) fn text(&self) -> String {
        if self.models.is_empty() {
            return "  checker     nothing was recorded\n".to_owned();
        }
        let Self { operations, keys, sessions, took, path, .. } = self;
        let mut text = format!(
            "  checker     {operations} operations, {keys} keys, {sessions} sessions; {:.1} s; \
             {path}\n",
            took.as_secs_f64()
        );
        for ModelJudgement { name, histories, reads, rejected, undecided, .. } in &self.models {
            _ = writeln!(
                text,
                "    {name:<18} {reads:>7} reads in {histories:>5} histories: {rejected} rejected, \
                 {undecided} undecided"
            );
        }
        for finding in self.findings() {
            _ = write!(text, "\n{finding}");
        }
        text
    }
}
