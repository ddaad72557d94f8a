//! Random commands, the same for the same seed.
//!
//! The rule: a command has one reply, or none where Redis sends none, and the reply depends only on
//! earlier commands.

use std::fmt::Write;

use memchr::memmem;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::support::resp_client::{command, show};

/// A few rounds.
pub(crate) struct Script {
    pub(crate) rounds: Vec<Round>,
}

/// Commands that are sent at once.
pub(crate) struct Round {
    pub(crate) connection: usize,
    pub(crate) commands: Vec<Command>,
    /// The positions of the splits in the bytes of all commands.
    cuts: Vec<usize>,
    /// The last command makes Redis close the connection.
    pub(crate) ends_connection: bool,
}

/// A command in the form that is sent.
pub(crate) struct Command {
    bytes: Vec<u8>,
    answers: usize,
    ends_connection: bool,
}

impl Script {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self::tagged(seed, "")
    }

    /// Uses keys of one cluster slot, and no command without a single reply there.
    pub(crate) fn in_one_slot(seed: u64) -> Self {
        Self::tagged(seed, "{tag}")
    }

    fn tagged(seed: u64, tag: &'static str) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let rounds = random.random_range(4..16);
        let mut writer = Writer { random, is_in_multi: [false; 2], tag };
        let mut all = vec![writer.beginning(), writer.reset()];
        all.extend((0..rounds).map(|_| writer.round()));
        Self { rounds: all }
    }

    /// Returns the commands up to that round in readable form.
    pub(crate) fn text_as_far_as(&self, last: &Round) -> String {
        let mut text = String::new();
        for round in &self.rounds {
            writeln!(text, "connection {}:", round.connection).unwrap();
            for command in &round.commands {
                writeln!(text, "  {}", show(&command.bytes)).unwrap();
            }
            if std::ptr::eq(round, last) {
                break;
            }
        }
        text
    }
}

/// Returns random commands that leave no state on their connection, as lists of words.
pub(crate) fn stateless_commands(seed: u64, tag: &'static str) -> Vec<Vec<Vec<u8>>> {
    let random = StdRng::seed_from_u64(seed);
    let mut writer = Writer { random, is_in_multi: [false; 2], tag };
    let count = *[1, 1, 4, 12, 40].choose(&mut writer.random).unwrap();
    (0..count).map(|_| writer.stateless()).collect()
}

impl Round {
    fn new(connection: usize, mut commands: Vec<Command>, random: &mut StdRng) -> Self {
        // Redis reads nothing behind a command that ends the connection.
        if let Some(end) = commands.iter().position(|command| command.ends_connection) {
            commands.truncate(end + 1);
        }
        // Redis 8 sends no error for input behind a command for which it blocked, such as a flush.
        if commands.iter().any(|command| memmem::find(&command.bytes, b"FLUSH").is_some()) {
            commands.retain(|command| command.answers > 0 || !command.ends_connection);
        }
        let length: usize = commands.iter().map(|command| command.bytes.len()).sum();
        let most = if random.random_ratio(1, 3) { 12 } else { 2 };
        let mut cuts: Vec<_> =
            (0..random.random_range(0..=most)).map(|_| random.random_range(0..=length)).collect();
        cuts.sort_unstable();
        let ends_connection = commands.last().is_some_and(|command| command.ends_connection);
        Self { connection, commands, cuts, ends_connection }
    }

    /// Returns the bytes, piece by piece.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        let bytes: Vec<u8> =
            self.commands.iter().flat_map(|command| command.bytes.clone()).collect();
        let starts: Vec<_> = [0].into_iter().chain(self.cuts.iter().copied()).collect();
        let ends: Vec<_> = self.cuts.iter().copied().chain([bytes.len()]).collect();
        starts.into_iter().zip(ends).map(move |(start, end)| bytes[start..end].to_vec())
    }

    pub(crate) fn answers(&self) -> usize {
        self.commands.iter().map(|command| command.answers).sum()
    }

    /// Returns the command of the reply with that index.
    pub(crate) fn answered(&self, index: usize) -> String {
        let mut answered = self.commands.iter().flat_map(|command| vec![command; command.answers]);
        answered
            .nth(index)
            .map_or("nothing: it was to be closed".to_owned(), |command| show(&command.bytes))
    }
}

struct Writer {
    random: StdRng,
    /// A guess that only makes an `EXEC` more likely.
    is_in_multi: [bool; 2],
    /// The prefix of every key.
    tag: &'static str,
}

const STRINGS: [&str; 8] = ["k0", "k1", "k2", "k3", "k4", "k5", "\0\r\n\u{ff}", ""];
const COLLECTIONS: [&str; 4] = ["hash", "list", "set", "zset"];
const VALUES: [&str; 9] = [
    "a",
    "1",
    "-7",
    "3.5",
    "",
    "value",
    "a longer one, of some length",
    "\r\n\0$3\r\n",
    "999999999999",
];
/// A time in the distant future.
const LATER: &str = "4102444800";

/// Reads of strings, with their weights.
const READS: [(u32, &str); 42] = [
    (30, "GET K"),
    (8, "MGET K K"),
    (3, "MGET K K K A K"),
    (5, "EXISTS K"),
    (2, "EXISTS K K A K"),
    (5, "STRLEN K"),
    (4, "GETRANGE K I I"),
    (1, "SUBSTR K I I"),
    (1, "GET A"),
    (2, "TYPE A"),
    (1, "GETBIT K 9"),
    (1, "BITCOUNT K"),
    (1, "BITPOS K 1"),
    (1, "BITFIELD_RO K GET u8 0"),
    (1, "LCS K K"),
    (3, "HGET hash V"),
    (2, "hget A V"),
    (3, "HGETALL hash"),
    (2, "HMGET hash V V"),
    (1, "HEXISTS hash V"),
    (1, "HSTRLEN hash V"),
    (1, "HKEYS hash"),
    (1, "HVALS hash"),
    (1, "HLEN hash"),
    (2, "LRANGE list 0 -1"),
    (1, "LLEN A"),
    (1, "LINDEX list I"),
    (1, "LPOS list V COUNT 0"),
    (1, "SORT_RO list ALPHA"),
    (2, "SMEMBERS set"),
    (1, "SISMEMBER A 2"),
    (1, "SMISMEMBER set 1 7"),
    (1, "SCARD set"),
    (1, "SINTER set set"),
    (2, "ZRANGE zset 0 -1 WITHSCORES"),
    (2, "ZSCORE zset V"),
    (1, "ZMSCORE zset V V"),
    (1, "ZRANK zset V"),
    (1, "ZCOUNT A -inf +inf"),
    (1, "ZUNION 2 zset zset WITHSCORES"),
    (1, "GEOPOS zset V V"),
    (1, "XRANGE stream - +"),
];
const WRITES: [(u32, &str); 48] = [
    (12, "SET K V"),
    (1, "SET K V NX"),
    (1, "SET K V XX GET"),
    (1, "SET K V EX 5000"),
    (1, "SET K V KEEPTTL"),
    (1, "SETNX K V"),
    (1, "SETEX K 5000 V"),
    (2, "GETSET K V"),
    (2, "GETDEL K"),
    (1, "GETEX K PERSIST"),
    (3, "APPEND K V"),
    (4, "INCR K"),
    (1, "DECRBY K 3"),
    (1, "INCRBYFLOAT K 1.5"),
    (2, "SETRANGE K 3 V"),
    (1, "SETBIT K 9 1"),
    (3, "MSET K V K V"),
    (1, "MSETNX K V K V"),
    (4, "DEL K"),
    (1, "DEL K A K"),
    (1, "UNLINK K K"),
    (3, "RENAME K K"),
    (1, "RENAMENX K K"),
    (2, "COPY K K REPLACE"),
    (1, "COPY K K DB 1"),
    (1, "MOVE K 1"),
    (1, "EXPIRE K -1"),
    (1, "PEXPIRE K 0"),
    (2, "EXPIREAT K T"),
    (1, "PERSIST K"),
    (1, "BITOP NOT K K"),
    (1, "SORT list ALPHA STORE K"),
    (1, "RPUSH K V"),
    (1, "PFADD K V"),
    (4, "HSET hash V V"),
    (2, "HDEL hash V"),
    (1, "HINCRBY hash 1 5"),
    (1, "EXPIRE hash 5000"),
    (2, "DEL A"),
    (3, "RPUSH list V"),
    (2, "LPOP list"),
    (1, "LTRIM list 0 2"),
    (3, "SADD set 1 2 3"),
    (2, "SREM set 2"),
    (3, "ZADD zset 1.5 V -0.125 V"),
    (2, "ZREM zset V"),
    (1, "ZADD zset inf V"),
    (1, "XTRIM stream MAXLEN 2"),
];
const OTHERS: [(u32, &str); 41] = [
    (2, "TYPE A"),
    (2, "EXPIRETIME K"),
    (1, "OBJECT ENCODING A"),
    (1, "DUMP K"),
    (1, "DBSIZE"),
    (1, "BITCOUNT K"),
    (1, "LCS K K"),
    (1, "TOUCH K K"),
    (2, "HSET hash V V"),
    (1, "HDEL hash V"),
    (1, "HINCRBY hash 1 5"),
    (1, "HGETALL A"),
    (1, "HMGET hash V V"),
    (2, "RPUSH list V V"),
    (1, "LPUSH A V"),
    (1, "LPOP list"),
    (1, "LRANGE A 0 -1"),
    (1, "LMOVE list list LEFT RIGHT"),
    (2, "SADD set 1 2 3"),
    (1, "SREM set 2"),
    (1, "SISMEMBER A V"),
    (1, "SINTERSTORE set set set"),
    (2, "ZADD zset 1.5 V 2 V"),
    (1, "ZRANGE A 0 -1 WITHSCORES"),
    (1, "ZSCORE zset V"),
    (1, "ZINCRBY zset 0.25 V"),
    (1, "GEOADD zset 13.4 52.5 V"),
    (1, "XADD stream 1-1 f V"),
    (1, "XRANGE stream - +"),
    (1, "DEL A"),
    (1, "PING"),
    (1, "PING V"),
    (2, "ECHO V"),
    (1, "TIME V"),
    (1, "COMMAND COUNT"),
    (1, "CLIENT SETNAME name"),
    (1, "CLIENT GETNAME"),
    (1, "CLIENT NO-EVICT off"),
    (1, "CONFIG GET maxmemory-policy"),
    (1, "WAIT 0 0"),
    (1, "PUBLISH channel V"),
];
const SCRIPTS: [&str; 5] = [
    "return redis.call('SET', KEYS[1], ARGV[1])",
    "return redis.call('GET', KEYS[1])",
    "redis.call('SET', KEYS[1], ARGV[1]) redis.call('DEL', KEYS[2]) return {1, ARGV[1], false}",
    "redis.call('RENAME', KEYS[1], KEYS[2]) return redis.status_reply('DONE')",
    "redis.setresp(3) return redis.call('INCR', KEYS[1])",
];
const DATABASES: [(u32, &str); 7] = [
    (12, "SELECT 0"),
    (4, "SELECT 1"),
    (1, "SELECT 99"),
    (1, "SELECT x"),
    (3, "SWAPDB 0 1"),
    (3, "FLUSHDB"),
    (1, "FLUSHALL"),
];
const TALK: [(u32, &str); 6] =
    [(6, "HELLO 3"), (4, "HELLO 2"), (2, "HELLO"), (1, "HELLO 4"), (8, "RESET"), (1, "QUIT")];
const LOGINS: [(u32, &str); 7] = [
    (1, "HELLO 3 AUTH default secret SETNAME name"),
    (1, "HELLO 2 AUTH other secret"),
    (1, "HELLO 3 AUTH other wrong"),
    (1, "AUTH other secret"),
    (1, "AUTH other wrong"),
    (1, "AUTH default any"),
    (1, "AUTH any"),
];
const FAULTS: [(u32, &str); 14] = [
    (2, "GET"),
    (2, "GET K K"),
    (1, "MGET"),
    (1, "EXISTS"),
    (1, "STRLEN K K"),
    (1, "GETRANGE K 0"),
    (1, "GETRANGE K x 1"),
    (1, "GETRANGE K 0 9223372036854775808"),
    (1, "SUBSTR K 0"),
    (2, "SET K"),
    (2, "NONESUCH K V"),
    (1, "EVAL syntax! 0"),
    (1, "INCR hash"),
    (1, "EXPIREAT K T T"),
];
/// Raw input, and whether it gets a reply. Input of blanks only is left out: Valkey 8.1 takes the
/// next bytes for an inline command.
const RAW: [(&str, usize); 14] = [
    ("GET k0\r\n", 1),
    ("get k1\n", 1),
    ("set k2 \"a \\x41\\n\\\"\"\r\n", 1),
    ("SET k3 'it\\'s'\r\n", 1),
    ("  mget   k0  k3 \r\n", 1),
    ("PING\r\n", 1),
    ("\r\n", 0),
    ("\n", 0),
    ("*0\r\n", 0),
    ("*-1\r\n", 0),
    ("*1\r\n$4\r\nping\r\n", 1),
    ("*2\r\n$3\r\nGeT\r\n$2\r\nk0\r\n", 1),
    ("strlen \"k1\"\r\n", 1),
    ("EXISTS k0 k1 \"\"\r\n", 1),
];
const LAST_WORDS: [&str; 9] = [
    "*x\r\n",
    "*2147483648\r\n",
    "*1\r\n+PING\r\n",
    "*1\r\n$x\r\n",
    "*2\r\n$3\r\nGET\r\n$-1\r\n",
    "*1\r\n$536870913\r\n",
    "GET \"k0\r\n",
    "GET \"k0\"x\r\n",
    "*2\r\n$3\r\nGET\r\n:1\r\n",
];

/// Commands to which several nodes behind one address reply otherwise than one, or not at all.
const OF_ALL_NODES: [&str; 10] = [
    "CLIENT",
    "CONFIG",
    "COPY K K DB",
    "DBSIZE",
    "FLUSHALL",
    "FLUSHDB",
    "MOVE",
    "SELECT",
    "SWAPDB",
    "WAIT",
];

impl Writer {
    /// Returns a round that sets a few values.
    fn beginning(&mut self) -> Round {
        let mut commands = vec![self.command("RESET"), self.command("FLUSHALL")];
        for key in STRINGS {
            if self.random.random_ratio(2, 3) {
                let (key, value) =
                    (format!("{}{key}", self.tag), *VALUES.choose(&mut self.random).unwrap());
                commands.push(Command::words(&["SET", &*key, value]));
            }
        }
        Round::new(0, commands, &mut self.random)
    }

    fn reset(&mut self) -> Round {
        Round::new(1, vec![self.command("RESET")], &mut self.random)
    }

    fn round(&mut self) -> Round {
        let connection = self.random.random_range(0..2);
        let commands = match self.random.random_range(0..20) {
            // Behind pending replies, and among the replies to EXEC, a rejected login has no reply,
            // from Redis 7.2 on.
            0 if !self.is_in_multi[connection] => {
                let mut commands = vec![self.pick(&LOGINS)];
                commands.extend(
                    (0..self.random.random_range(0..6)).flat_map(|_| self.some(connection)),
                );
                commands
            }
            // Reads behind any other command go to Redis, so memory serves only these.
            0..12 => (0..self.random.random_range(1..=24)).map(|_| self.pick(&READS)).collect(),
            12..16 => self.some(connection),
            16..18 => {
                (0..self.random.random_range(1..=6)).flat_map(|_| self.some(connection)).collect()
            }
            _ => {
                (0..self.random.random_range(1..=40)).flat_map(|_| self.some(connection)).collect()
            }
        };
        Round::new(connection, commands, &mut self.random)
    }

    /// Returns the words of a command that any connection may run, at any time.
    fn stateless(&mut self) -> Vec<Vec<u8>> {
        let table: &[(u32, &str)] = match self.random.random_range(0..100) {
            0..60 => &READS,
            60..85 => &WRITES,
            85..96 => &OTHERS,
            _ => &FAULTS,
        };
        let pattern = table.choose_weighted(&mut self.random, |choice| choice.0).unwrap().1;
        // The last of these depends on the second in which a time to live was set.
        let left_out = ["CLIENT", "CONFIG", "WAIT", "EXPIRETIME"];
        let is_of = |words: &[&str]| words.iter().any(|word| pattern.starts_with(word));
        let is_left_out = is_of(&left_out) || (!self.tag.is_empty() && is_of(&OF_ALL_NODES));
        let pattern = if is_left_out { "PING" } else { pattern };
        pattern.split(' ').map(|word| self.word(word)).collect()
    }

    /// Returns a command, or several that belong together.
    fn some(&mut self, connection: usize) -> Vec<Command> {
        if self.is_in_multi[connection] && self.random.random_ratio(1, 4) {
            self.is_in_multi[connection] = false;
            let end = *["EXEC", "EXEC", "EXEC", "DISCARD"].choose(&mut self.random).unwrap();
            return vec![self.command(end)];
        }
        match self.random.random_range(0..1000) {
            0..520 => vec![self.pick(&READS)],
            520..770 => vec![self.pick(&WRITES)],
            770..860 => vec![self.pick(&OTHERS)],
            860..880 => vec![self.pick(&FAULTS)],
            880..900 => vec![self.raw()],
            900..920 => vec![self.script()],
            920..935 => {
                self.is_in_multi[connection] = true;
                vec![self.command("MULTI")]
            }
            935..945 => vec![self.command("WATCH K K")],
            945..949 => vec![self.command("UNWATCH")],
            // There is an element to pop, because a blocked command takes a tenth of a second.
            949..951 => vec![self.command("RPUSH list V"), self.command("BLPOP list 0")],
            951..956 => vec![self.command("EXEC")],
            956..958 => vec![self.command("DISCARD")],
            958..975 => vec![self.pick(&DATABASES)],
            975..985 => vec![
                self.command("SELECT 1"),
                self.pick(&READS),
                self.pick(&WRITES),
                self.command("SELECT 0"),
            ],
            985..997 => vec![self.pick(&TALK)],
            _ => vec![Command::last_word(LAST_WORDS.choose(&mut self.random).unwrap())],
        }
    }

    fn pick(&mut self, choices: &[(u32, &str)]) -> Command {
        let pattern = choices.choose_weighted(&mut self.random, |choice| choice.0).unwrap().1;
        let is_of = |words: &[&str]| words.iter().any(|word| pattern.starts_with(word));
        let is_left_out = is_of(&OF_ALL_NODES)
            || (is_of(&["AUTH", "HELLO", "RESET"]) && self.is_in_multi != [false; 2]);
        self.command(if !self.tag.is_empty() && is_left_out { "PING" } else { pattern })
    }

    /// Fills in a pattern: `K` is the key of a string, `A` any key, `V` a value, `I` a position,
    /// `T` a time in the future.
    fn command(&mut self, pattern: &str) -> Command {
        let words: Vec<_> = pattern.split(' ').map(|word| self.word(word)).collect();
        let mut command = Command::words(&words);
        command.ends_connection = pattern == "QUIT";
        command
    }

    fn word(&mut self, word: &str) -> Vec<u8> {
        let chosen = self.choose(word);
        let is_key = matches!(word, "K" | "A" | "hash" | "list" | "set" | "zset" | "stream");
        let tag = if is_key { self.tag.as_bytes() } else { b"" };
        [tag, chosen].concat()
    }

    fn choose<'a>(&mut self, word: &'a str) -> &'a [u8] {
        let choices: &[&str] = match word {
            "K" if self.random.random_ratio(1, 40) => &COLLECTIONS,
            // The first few are chosen most often.
            "K" if self.random.random_ratio(2, 3) => &STRINGS[..3],
            "K" => &STRINGS,
            "A" => &COLLECTIONS,
            "V" => &VALUES,
            "I" => &[
                "0",
                "1",
                "2",
                "-1",
                "-3",
                "100",
                "-100",
                "9223372036854775807",
                "-9223372036854775808",
            ],
            "T" => &[LATER, "1", LATER, "0"],
            word => return word.as_bytes(),
        };
        choices.choose(&mut self.random).unwrap().as_bytes()
    }

    fn raw(&mut self) -> Command {
        let (mut text, mut answers) = *RAW.choose(&mut self.random).unwrap();
        if !self.tag.is_empty() && text.contains(['k', 'K']) {
            (text, answers) = ("PING\r\n", 1);
        }
        Command { bytes: text.as_bytes().to_vec(), answers, ends_connection: false }
    }

    fn script(&mut self) -> Command {
        let script = SCRIPTS.choose(&mut self.random).unwrap();
        let [one, other, value] = ["K", "K", "V"].map(|word| self.word(word));
        Command::words(&[b"EVAL", script.as_bytes(), b"2", &*one, &*other, &*value])
    }
}

impl Command {
    fn words<Word: AsRef<[u8]>>(words: &[Word]) -> Self {
        Self { bytes: command(words), answers: 1, ends_connection: false }
    }

    fn last_word(text: &str) -> Self {
        Self { bytes: text.as_bytes().to_vec(), answers: 0, ends_connection: true }
    }
}
