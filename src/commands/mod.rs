//! The decision about a command of a Redis client. No I/O.
//!
//! Model: a front end keeps a [`SessionState`], and executes the [`Action`] that [`decide`] returns
//! for each command. This room knows no connection and no front end. So every rule about answers
//! from memory is here, and is tested as a table of cases.
//!
//! The rules that must not be broken:
//! - Anything that is not known for certain forbids an answer from memory (invariant R1).
//! - A command is forwarded only while no read of the same client waits for a flight (R2).
//! - After a reply that may reflect a write, the next cached read waits for a fence (R3).
//! - A read waits for the pending reads of the same keys (invariant R6).

mod admission;
mod auth;
mod authorize;
mod cached_read;
mod command_list;
mod derived;
mod dispatch;
mod info;
mod invalidations;
mod kept_read;
mod local_action;
mod memory;
mod pending_keys;
mod reply_fetch;
mod rule_reads;
mod session;
mod table;
mod time_to_live;
mod xread;

pub use self::admission::{Admission, AdmissionTracker};
pub use self::auth::Credentials;
pub use self::authorize::allows_read;
pub(crate) use self::cached_read::write_value;
pub use self::cached_read::{CachedReply, FetchKeys, FetchOutcome};
pub use self::command_list::CommandList;
pub use self::dispatch::{
    Action, Command, Coverage, LongAction, PendingReplies, Policy, View, answers_gets, decide,
    decide_long,
};
pub use self::info::is_own_info;
pub use self::invalidations::{Invalidations, invalidations};
pub use self::kept_read::{
    FieldNames, Fields, KeptCommand, KeptRead, cached_names, kept_names, opt_in_names,
};
pub use self::local_action::{LocalAction, RejectReason};
pub use self::memory::Memory;
pub use self::pending_keys::PendingKeys;
pub use self::reply_fetch::ReplyFetch;
pub use self::rule_reads::RuleReads;
pub use self::session::{Identity, SessionEffect, SessionState};
pub use self::table::{Class, CommandInfo, CommandTable, names};
pub use self::xread::xread_may_block;
