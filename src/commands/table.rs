//! The class of each command: what it may do, as far as the cache is concerned.
//!
//! The lists are kept by hand, because Redis's own flags do not show which replies depend on keys
//! alone, or show the state of some key. A test compares them with the flags of a running server. A
//! command in no list may do anything. A command is answered from memory only if it is one of the
//! five reads, or in the table of `kept_read`. A mistake elsewhere costs one request to Redis.

use ahash::HashMap;

use super::command_list::CommandList;
use super::kept_read::KeptCommand;

/// The possible effects of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `GET`.
    Get,
    /// `MGET`.
    Mget,
    /// `EXISTS`.
    Exists,
    /// `STRLEN`.
    Strlen,
    /// `GETRANGE` and `SUBSTR`.
    Getrange,
    /// A read with a reply that may be kept.
    Kept(KeptCommand),
    /// It changes no key and its reply shows the state of none, so it may run before or after a
    /// cached read.
    Neutral,
    /// It changes no key.
    ReadOnly,
    /// It may wait for other clients to write.
    Blocking,
    /// `XREAD` and `XREADGROUP`, which block only with `BLOCK`.
    Xread,
    /// `MULTI`.
    Multi,
    /// `EXEC`.
    Exec,
    /// `DISCARD`.
    Discard,
    /// `WATCH`.
    Watch,
    /// `UNWATCH`.
    Unwatch,
    /// `SELECT`.
    Select,
    /// `AUTH`.
    Auth,
    /// `HELLO`.
    Hello,
    /// `RESET`.
    Reset,
    /// `CLIENT` with its subcommands.
    Client,
    /// `SCRIPT` with its subcommands.
    Script,
    /// `INFO`, which changes no key. The proxy has a section of its own.
    Info,
    /// `QUIT`.
    Quit,
    /// After it, replies cannot be told from pushes.
    Passthrough,
    /// `SWAPDB`: it changes every key and nothing is pushed.
    Swapdb,
    /// It deletes every key.
    FlushAll,
    /// It may do anything.
    MayWrite,
}

impl Class {
    /// Whether it reads strings, and is answered from the cache of strings.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::Mget | Self::Exists | Self::Strlen | Self::Getrange)
    }
}

const LISTS: [(Class, &str); 26] = [
    (Class::Get, "get"),
    (Class::Mget, "mget"),
    (Class::Exists, "exists"),
    (Class::Strlen, "strlen"),
    (Class::Getrange, "getrange substr"),
    (
        Class::Neutral,
        "command echo lastsave lolwut ping publish pubsub readonly readwrite spublish time",
    ),
    (Class::Blocking, "blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin wait waitaof"),
    (Class::Xread, "xread xreadgroup"),
    (Class::Multi, "multi"),
    (Class::Exec, "exec"),
    (Class::Discard, "discard"),
    (Class::Watch, "watch"),
    (Class::Unwatch, "unwatch"),
    (Class::Select, "select"),
    (Class::Auth, "auth"),
    (Class::Hello, "hello"),
    (Class::Reset, "reset"),
    (Class::Client, "client"),
    (Class::Script, "script"),
    (Class::Info, "info"),
    (Class::Quit, "quit"),
    (
        Class::Passthrough,
        "monitor psubscribe psync punsubscribe replconf ssubscribe subscribe sunsubscribe sync \
         unsubscribe",
    ),
    (Class::Swapdb, "swapdb"),
    (Class::FlushAll, "flushall flushdb"),
    (
        Class::ReadOnly,
        // LATENCY and SLOWLOG name no key, but show that others wrote.
        "dbsize digest dump expiretime hexpiretime hpexpiretime hpttl hrandfield hscan httl \
         keys latency memory object pexpiretime randomkey role scan slowlog srandmember \
         sscan xinfo xpending zrandmember zscan",
    ),
    (
        Class::MayWrite,
        "acl append asking bgrewriteaof bgsave bitfield bitop cluster config copy debug decr \
         decrby del delex eval eval_ro evalsha evalsha_ro expire expireat failover fcall \
         fcall_ro function geoadd georadius georadiusbymember geosearchstore getdel getex \
         getset hdel hexpire hexpireat hgetdel hgetex hincrby hincrbyfloat hmset hpersist \
         hpexpire hpexpireat hset hsetex hsetnx incr incrby incrbyfloat linsert lmove lmpop \
         lpop lpush lpushx lrem lset ltrim migrate module move mset msetex msetnx persist \
         pexpire pexpireat pfadd pfdebug pfmerge pfselftest psetex rename renamenx \
         replicaof restore rpop rpoplpush rpush rpushx sadd save sdiffstore set setbit setex \
         setnx setrange shutdown sinterstore slaveof smove sort spop srem sunionstore touch \
         unlink xack xackdel xadd xautoclaim xclaim xdel xdelex xgroup xsetid xtrim zadd \
         zdiffstore zincrby zinterstore zmpop zpopmax zpopmin zrangestore zrem zremrangebylex \
         zremrangebyrank zremrangebyscore zunionstore",
    ),
];

/// The label of commands in no list.
const UNKNOWN: &str = "other";

/// The facts about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandInfo {
    /// The possible effects.
    pub class: Class,
    /// Its index among the [`names`].
    pub label: usize,
    /// Whether it may be answered from memory, if its class allows that.
    pub is_cached: bool,
    /// Whether it is in one of the lists.
    pub is_known: bool,
}

/// The names of all commands with a label of their own in metrics, and one for all others.
pub fn names() -> Vec<&'static str> {
    classes().map(|(_, name)| name).chain([UNKNOWN]).collect()
}

/// All known commands, in the order of their labels.
fn classes() -> impl Iterator<Item = (Class, &'static str)> {
    let listed =
        LISTS.iter().flat_map(|(class, names)| names.split_whitespace().map(|name| (*class, name)));
    listed.chain(KeptCommand::all().map(|(command, name)| (Class::Kept(command), name)))
}

/// All known commands by name, whatever the case.
pub struct CommandTable {
    by_name: HashMap<&'static [u8], CommandInfo>,
    /// The most frequent command by far, found without hashing.
    get: CommandInfo,
}

/// No name is longer than this, in bytes.
const LONGEST: usize = 32;

impl CommandTable {
    /// The table of all known commands, of which those of modules are not kept.
    #[allow(clippy::new_without_default, reason = "it is large, and made once")]
    pub fn new() -> Self {
        Self::configured(&CommandList::default(), &CommandList::default())
    }

    /// The table of all known commands, of which `also` are kept in addition, and `except` are not
    /// answered from memory.
    pub fn configured(also: &CommandList, except: &CommandList) -> Self {
        let info = |(label, (class, name)): (usize, (Class, &'static str))| {
            let is_unasked = |kept: KeptCommand| kept.is_opt_in() && !also.contains(name);
            let class = match class {
                Class::Kept(kept) if is_unasked(kept) => Class::MayWrite,
                class => class,
            };
            (
                name.as_bytes(),
                CommandInfo { class, label, is_cached: !except.contains(name), is_known: true },
            )
        };
        let by_name: HashMap<_, _> = classes().enumerate().map(info).collect();
        let get = by_name[&b"get"[..]];
        Self { by_name, get }
    }

    /// The command `GET`.
    #[inline]
    pub fn get(&self) -> CommandInfo {
        self.get
    }

    /// The command of this name.
    #[inline]
    pub fn find(&self, name: &[u8]) -> CommandInfo {
        // The most frequent command needs no lookup.
        match name {
            [b'G' | b'g', b'E' | b'e', b'T' | b't'] => self.get,
            _ => self.find_any(name),
        }
    }

    fn find_any(&self, name: &[u8]) -> CommandInfo {
        let mut lower = [0; LONGEST];
        let known = lower.get_mut(..name.len()).and_then(|lower| {
            lower.copy_from_slice(name);
            lower.make_ascii_lowercase();
            self.by_name.get(&*lower)
        });
        let label = self.by_name.len();
        let unknown =
            CommandInfo { class: Class::MayWrite, label, is_cached: false, is_known: false };
        known.copied().unwrap_or(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_listed_once_in_capitals() {
        let (commands, names) = (CommandTable::new(), names());
        assert_eq!(commands.by_name.len() + 1, names.len(), "a command is listed twice");
        for (label, name) in names.iter().enumerate() {
            let known = commands.find(name.to_ascii_uppercase().as_bytes());
            assert_eq!((known.label, names[known.label]), (label, *name));
            assert!(name.len() <= LONGEST);
        }
    }

    #[test]
    fn lists_of_the_settings_change_what_is_kept() {
        let table = |also: &str, except: &str| {
            let list = |names: &str| serde_json::from_str(&format!("{names:?}")).unwrap();
            CommandTable::configured(&list(also), &list(except))
        };
        let (plain, changed) = (table("", ""), table("json.get", "GET,hget"));
        assert_eq!(plain.find(b"JSON.GET").class, Class::MayWrite);
        assert!(matches!(changed.find(b"JSON.GET").class, Class::Kept(_)));
        assert_eq!(changed.find(b"JSON.MGET").class, Class::MayWrite);
        for (name, is_cached) in [("GET", false), ("hget", false), ("MGET", true), ("hmget", true)]
        {
            assert!(plain.find(name.as_bytes()).is_cached, "{name}");
            let found = changed.find(name.as_bytes());
            assert_eq!(found.is_cached, is_cached, "{name}");
            assert_eq!(found.class, plain.find(name.as_bytes()).class, "{name}");
        }
    }

    #[test]
    fn unknown_command_may_do_anything() {
        let commands = CommandTable::new();
        for name in ["", "getx", "json.set", &"x".repeat(100)] {
            assert_eq!(commands.find(name.as_bytes()).class, Class::MayWrite, "{name}");
            assert_eq!(names()[commands.find(name.as_bytes()).label], "other");
        }
        assert_eq!(commands.find(b"GeT").class, Class::Get);
    }
}
