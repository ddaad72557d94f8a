//! Which commands a listener with `resp.allow_keys` takes: reads of which every key is known and allowed, and what concerns the
//! connection alone.
//!
//! The rule that must not be broken: what is not known to touch no other key is refused, before anything is looked up and
//! whatever Redis would say. So nothing that queues, watches, subscribes, runs scripts or lists gets through, nor a command
//! that nobody here has heard of, nor one of which only a part is known.

use super::command::Class;
use super::connection::Connection;
use super::read::Read;
use crate::metrics::RejectReason;
use crate::protocol::is_one_of;
use crate::protocol::{Arguments, parse_integer};

/// What Redis says of keys that a user may not read.
pub(super) const NO_KEY: &str = "NOPERM No permissions to access a key";
/// What it says of commands, but for their names.
pub(super) const NO_COMMAND: &str = "NOPERM This user has no permissions to run this command";

impl Connection {
    /// Why a command may not be run here, in words and as it is counted; nothing, if it may.
    pub(super) fn forbids(
        &self,
        class: Class,
        arguments: Arguments<'_>,
    ) -> Option<(&'static str, RejectReason)> {
        let allow = &self.shared.settings.allow_keys;
        if allow.allows_all() {
            return None;
        }
        if class.is_read() {
            let read = Read::of(class, arguments);
            let may_be_read = read.is_some_and(|read| read.names().all(|key| allow.allows(key)));
            return (!may_be_read).then_some((NO_KEY, RejectReason::Key));
        }
        let is_own = match class {
            Class::Auth | Class::Hello | Class::Reset | Class::Quit => true,
            Class::Select => self.is_of_the_proxy(arguments),
            Class::Client => is_one_of(arguments.get(1), &OWN_SUBCOMMANDS),
            Class::Aside => is_one_of(arguments.get(0), &["ping", "echo", "command"]),
            _ => false,
        };
        (!is_own).then_some((NO_COMMAND, RejectReason::Command))
    }

    /// Whether it selects the database that everybody begins in, or the one the proxy reads.
    fn is_of_the_proxy(&self, arguments: Arguments<'_>) -> bool {
        let wanted = parse_integer(arguments.get(1));
        arguments.len() == 2
            && (wanted == Some(0) || wanted == Some(self.shared.origin.database.into()))
    }
}

/// What `CLIENT` says and does about the connection alone.
const OWN_SUBCOMMANDS: [&str; 5] = ["setname", "setinfo", "getname", "id", "info"];
