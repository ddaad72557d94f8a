//! What a command may do, as far as it matters to whoever answers a part of them from memory.
//!
//! The lists are made by hand, and what is in none of them may do anything. A command is answered from memory only if it
//! is one of five; that it only reads is not enough. A mistake to the other side costs a question to Redis, no more.

use ahash::HashMap;

/// What a command may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A value.
    Get,
    /// Values.
    Mget,
    /// How many of these keys there are.
    Exists,
    /// How long a value is.
    Strlen,
    /// A part of a value.
    Getrange,
    /// It changes nothing and tells nothing about strings, so it may be answered before or after a cached read.
    Aside,
    /// It changes nothing.
    Look,
    /// It may wait for others to write.
    Blocking,
    /// The same, if it says so.
    Xread,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    Select,
    Auth,
    Hello,
    Reset,
    Client,
    Script,
    Quit,
    /// From here on answers cannot be told from what comes by itself.
    Pipe,
    /// It changes every key and tells nobody.
    Swapdb,
    /// It drops every key.
    Flush,
    /// Anything.
    Other,
}

impl Class {
    /// Whether it may be answered from memory.
    pub(super) fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::Mget | Self::Exists | Self::Strlen | Self::Getrange)
    }
}

const LISTS: [(Class, &str); 25] = [
    (Class::Get, "get"),
    (Class::Mget, "mget"),
    (Class::Exists, "exists"),
    (Class::Strlen, "strlen"),
    (Class::Getrange, "getrange substr"),
    (
        Class::Aside,
        "command echo geodist geohash geopos georadius_ro georadiusbymember_ro geosearch hexists hexpiretime hget hgetall \
         hkeys hlen hmget hpexpiretime hpttl hrandfield hscan hstrlen httl hvals info lastsave latency lindex llen lolwut \
         lpos lrange ping publish pubsub readonly readwrite scard sdiff sinter sintercard sismember slowlog smembers \
         smismember spublish srandmember sscan sunion time xinfo xlen xpending xrange xrevrange zcard zcount zdiff zinter \
         zintercard zlexcount zmscore zrandmember zrange zrangebylex zrangebyscore zrank zrevrange zrevrangebylex \
         zrevrangebyscore zrevrank zscan zscore zunion",
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
    (Class::Quit, "quit"),
    (
        Class::Pipe,
        "monitor psubscribe psync punsubscribe replconf ssubscribe subscribe sunsubscribe sync unsubscribe",
    ),
    (Class::Swapdb, "swapdb"),
    (Class::Flush, "flushall flushdb"),
    (
        Class::Look,
        "bitcount bitfield_ro bitpos dbsize digest dump expiretime getbit keys lcs memory object pexpiretime pttl \
         randomkey role scan sort_ro ttl type",
    ),
    (
        Class::Other,
        "acl append asking bgrewriteaof bgsave bitfield bitop cluster config copy debug decr decrby del delex eval \
         eval_ro evalsha evalsha_ro expire expireat failover fcall fcall_ro function geoadd georadius georadiusbymember \
         geosearchstore getdel getex getset hdel hexpire hexpireat hgetdel hgetex hincrby hincrbyfloat hmset hpersist \
         hpexpire hpexpireat hset hsetex hsetnx incr incrby incrbyfloat linsert lmove lmpop lpop lpush lpushx lrem lset \
         ltrim migrate module move mset msetex msetnx persist pexpire pexpireat pfadd pfcount pfdebug pfmerge pfselftest \
         psetex rename renamenx replicaof restore rpop rpoplpush rpush rpushx sadd save sdiffstore set setbit \
         setex setnx setrange shutdown sinterstore slaveof smove sort spop srem sunionstore touch unlink xack xackdel \
         xadd xautoclaim xclaim xdel xdelex xgroup xsetid xtrim zadd zdiffstore zincrby zinterstore zmpop zpopmax zpopmin \
         zrangestore zrem zremrangebylex zremrangebyrank zremrangebyscore zunionstore",
    ),
];

/// The label of commands that are in no list.
const UNKNOWN: &str = "other";

/// A command that was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) class: Class,
    /// Its place among the [`names`].
    pub(super) label: usize,
}

/// The names of all commands that are told apart in metrics, and one for all others.
pub fn names() -> Vec<&'static str> {
    let listed = LISTS.iter().flat_map(|(_, names)| names.split_whitespace());
    listed.chain([UNKNOWN]).collect()
}

/// Recognises commands by their names, which are the same in capitals.
pub(super) struct Commands {
    by_name: HashMap<&'static [u8], Known>,
    /// By far the most frequent one, known without a look into the table.
    get: Known,
}

/// As long as the longest name.
const LONGEST: usize = 32;

impl Commands {
    pub(super) fn new() -> Self {
        let classes = LISTS
            .iter()
            .flat_map(|(class, names)| names.split_whitespace().map(|name| (*class, name)));
        let known = classes
            .enumerate()
            .map(|(label, (class, name))| (name.as_bytes(), Known { class, label }));
        Self { by_name: known.collect(), get: Known { class: Class::Get, label: 0 } }
    }

    pub(super) fn recognise(&self, name: &[u8]) -> Known {
        if name.eq_ignore_ascii_case(b"get") {
            return self.get;
        }
        let mut lower = [0; LONGEST];
        let known = lower.get_mut(..name.len()).and_then(|lower| {
            lower.copy_from_slice(name);
            lower.make_ascii_lowercase();
            self.by_name.get(&*lower)
        });
        known.copied().unwrap_or(Known { class: Class::Other, label: self.by_name.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_in_one_list_and_known_in_capitals() {
        let (commands, names) = (Commands::new(), names());
        assert_eq!(commands.by_name.len() + 1, names.len(), "a command is listed twice");
        for (label, name) in names.iter().enumerate() {
            let known = commands.recognise(name.to_ascii_uppercase().as_bytes());
            assert_eq!((known.label, names[known.label]), (label, *name));
            assert!(name.len() <= LONGEST);
        }
    }

    #[test]
    fn what_nobody_knows_may_do_anything() {
        let commands = Commands::new();
        for name in ["", "getx", "json.get", &"x".repeat(100)] {
            assert_eq!(commands.recognise(name.as_bytes()).class, Class::Other, "{name}");
            assert_eq!(names()[commands.recognise(name.as_bytes()).label], "other");
        }
        assert_eq!(commands.recognise(b"GeT").class, Class::Get);
    }
}
