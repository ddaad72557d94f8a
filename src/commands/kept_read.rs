//! The table of the reads with replies that may be kept, and the keys and fields that the reply to
//! one read depends on.
//!
//! A command is in the table only if its reply is a function of the keys that it names, and Redis
//! pushes every change of it to a client that tracks those keys. Redis pushes nothing for the state
//! of consumer groups, for keys that a pattern of `SORT_RO` leads to, and for what a script reads.
//! `GET` and its relatives are not here: they are answered from the cache of strings.
//!
//! Commands of modules are in the table too. They are kept only where the operator opts in, because
//! no module was there to test them with.

use std::ops::Range;

use bytes::BytesMut;

use super::derived::Derivation;
use super::time_to_live::TimeUnit;
use crate::metrics::Kind;
use crate::protocol::{
    Arguments, MemberOrder, Nil, Protocol, ReplyFrame, Shape, is_one_of, parse_integer,
    write_array_length, write_bulk,
};

/// The most keys of one read. Redis replies to more of them at once.
const MAX_KEYS: usize = 64;

/// A command of the table, by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptCommand(u8);

/// The fields of a hash that a reply depends on.
#[derive(Debug, Clone, Copy)]
pub enum Fields<'a> {
    /// The key is no hash.
    None,
    /// These fields.
    Named(FieldNames<'a>),
    /// All fields, and the reply has their names.
    All,
    /// All fields, and the reply does not have their names: `HVALS`, and `HLEN`, which also counts
    /// fields that have expired, until Redis removes them.
    Unnamed,
}

/// The fields that a command names.
#[derive(Debug, Clone, Copy)]
pub struct FieldNames<'a>(Arguments<'a>);

impl<'a> FieldNames<'a> {
    /// The names, as often as the command has them.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.0.skip(2)
    }
}

/// A row of the table.
struct Row {
    /// The name, in lower case.
    name: &'static str,
    /// The number of arguments as `COMMAND` replies it: exact, or if negative the least.
    arity: i8,
    keys: KeyPositions,
    kind: Kind,
    fields: FieldUse,
    nil: NilRule,
    flattens_pairs: bool,
    /// Words with which Redis reads other keys.
    forbidden: &'static [&'static str],
    may_write: bool,
    /// Whether only the operator's word makes it kept. The difference of its RESP2 reply is
    /// unknown.
    is_opt_in: bool,
    derivation: Option<Derivation>,
    /// The unit of a reply that is computed from the end of the key.
    time_unit: Option<TimeUnit>,
    /// The meaning of the order of the members of its reply. `None`: two replies may differ though
    /// nothing has changed.
    order: Option<MemberOrder>,
}

/// The positions of the keys.
enum KeyPositions {
    First,
    FirstTwo,
    /// All arguments.
    All,
    /// All arguments but the last.
    AllButLast,
    /// As many as the first argument says.
    Counted,
}

/// The dependence of a reply on the fields of a hash.
#[derive(Clone, Copy)]
enum FieldUse {
    None,
    Named,
    All,
    Unnamed,
}

/// The form of a nil in RESP2.
#[derive(Clone, Copy)]
enum NilRule {
    Bulk,
    Array,
    /// An array only with `WITHSCORE`.
    ArrayWithScore,
}

impl Row {
    const fn new(name: &'static str, arity: i8, keys: KeyPositions, kind: Kind) -> Self {
        Self {
            name,
            arity,
            keys,
            kind,
            fields: FieldUse::None,
            nil: NilRule::Bulk,
            flattens_pairs: false,
            forbidden: &[],
            may_write: false,
            is_opt_in: false,
            derivation: None,
            time_unit: None,
            order: Some(MemberOrder::Given),
        }
    }

    /// A command that names one key.
    const fn one(name: &'static str, arity: i8, kind: Kind) -> Self {
        Self::new(name, arity, KeyPositions::First, kind)
    }

    /// A command with the number of its keys as the first argument.
    const fn counted(name: &'static str) -> Self {
        Self::new(name, -3, KeyPositions::Counted, Kind::Multi)
    }

    const fn fields(self, fields: FieldUse) -> Self {
        Self { fields, ..self }
    }

    const fn nil(self, nil: NilRule) -> Self {
        Self { nil, ..self }
    }

    const fn flattens_pairs(self) -> Self {
        Self { flattens_pairs: true, ..self }
    }

    const fn forbids(self, forbidden: &'static [&'static str]) -> Self {
        Self { forbidden, ..self }
    }

    /// A read that may write is not sent again to be compared.
    const fn may_write(self) -> Self {
        Self { may_write: true, order: None, ..self }
    }

    /// A command that lists fields in an arbitrary order.
    const fn unordered(self) -> Self {
        Self { order: Some(MemberOrder::Arbitrary), ..self }
    }

    /// A command with replies that may differ although nothing has changed.
    const fn varies(self) -> Self {
        Self { order: None, ..self }
    }

    /// A command of a module.
    const fn opt_in(name: &'static str, arity: i8) -> Self {
        Self { is_opt_in: true, ..Self::one(name, arity, Kind::Json) }
    }

    const fn follows(self, derivation: Derivation) -> Self {
        Self { derivation: Some(derivation), ..self }
    }

    const fn computed(self, unit: TimeUnit) -> Self {
        Self { time_unit: Some(unit), order: None, ..self }
    }

    fn has_arity(&self, count: usize) -> bool {
        let least = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { count >= least } else { count == least }
    }
}

impl KeyPositions {
    /// The range of the keys among the arguments. `None` if the command says that it has more keys
    /// than arguments, or none.
    fn range(&self, arguments: Arguments<'_>) -> Option<Range<usize>> {
        match self {
            Self::First => Some(1..2),
            Self::FirstTwo => Some(1..3),
            Self::All => Some(1..arguments.len()),
            Self::AllButLast => Some(1..arguments.len() - 1),
            Self::Counted => {
                let count = usize::try_from(parse_integer(arguments.get(1))?).ok()?;
                let end = count.checked_add(2).filter(|end| *end <= arguments.len())?;
                (count > 0).then_some(2..end)
            }
        }
    }
}

const TABLE: [Row; 64] = [
    Row::one("getbit", 3, Kind::String),
    Row::one("bitcount", -2, Kind::String),
    Row::one("bitpos", -3, Kind::String),
    Row::one("bitfield_ro", -2, Kind::String),
    Row::one("type", 2, Kind::String),
    Row::one("ttl", 2, Kind::String).computed(TimeUnit::Seconds),
    Row::one("pttl", 2, Kind::String).computed(TimeUnit::Milliseconds),
    Row::one("hget", 3, Kind::Hash).fields(FieldUse::Named).follows(Derivation::Field),
    Row::one("hmget", -3, Kind::Hash).fields(FieldUse::Named).follows(Derivation::Fields),
    Row::one("hexists", 3, Kind::Hash).fields(FieldUse::Named).follows(Derivation::HasField),
    Row::one("hstrlen", 3, Kind::Hash).fields(FieldUse::Named).follows(Derivation::FieldLength),
    Row::one("hgetall", 2, Kind::Hash).fields(FieldUse::All),
    Row::one("hkeys", 2, Kind::Hash).fields(FieldUse::All).follows(Derivation::Names).unordered(),
    Row::one("hvals", 2, Kind::Hash)
        .fields(FieldUse::Unnamed)
        .follows(Derivation::Values)
        .unordered(),
    Row::one("hlen", 2, Kind::Hash).fields(FieldUse::Unnamed),
    Row::one("llen", 2, Kind::List),
    Row::one("lrange", 4, Kind::List),
    Row::one("lindex", 3, Kind::List),
    Row::one("lpos", -3, Kind::List),
    // Elements of equal weight have no order.
    Row::one("sort_ro", -2, Kind::List).forbids(&["by", "get", "store"]).varies(),
    Row::one("scard", 2, Kind::Set).follows(Derivation::MemberCount),
    Row::one("smembers", 2, Kind::Set),
    Row::one("sismember", 3, Kind::Set).follows(Derivation::HasMember),
    Row::one("smismember", -3, Kind::Set).follows(Derivation::HaveMembers),
    Row::one("zcard", 2, Kind::Zset),
    Row::one("zscore", 3, Kind::Zset),
    Row::one("zmscore", -3, Kind::Zset),
    Row::one("zcount", 4, Kind::Zset),
    Row::one("zlexcount", 4, Kind::Zset),
    // Redis 7.0 replies with an error where there are more than three.
    Row::one("zrank", -3, Kind::Zset).nil(NilRule::ArrayWithScore),
    Row::one("zrevrank", -3, Kind::Zset).nil(NilRule::ArrayWithScore),
    Row::one("zrange", -4, Kind::Zset).flattens_pairs(),
    Row::one("zrevrange", -4, Kind::Zset).flattens_pairs(),
    Row::one("zrangebyscore", -4, Kind::Zset).flattens_pairs(),
    Row::one("zrevrangebyscore", -4, Kind::Zset).flattens_pairs(),
    Row::one("zrangebylex", -4, Kind::Zset),
    Row::one("zrevrangebylex", -4, Kind::Zset),
    Row::one("xlen", 2, Kind::Stream),
    Row::one("xrange", -4, Kind::Stream).nil(NilRule::Array),
    Row::one("xrevrange", -4, Kind::Stream).nil(NilRule::Array),
    Row::one("geopos", -2, Kind::Geo).nil(NilRule::Array),
    Row::one("geodist", -4, Kind::Geo),
    Row::one("geohash", -2, Kind::Geo),
    Row::one("geosearch", -7, Kind::Geo),
    Row::one("georadius_ro", -6, Kind::Geo),
    Row::one("georadiusbymember_ro", -5, Kind::Geo),
    Row::new("lcs", -3, KeyPositions::FirstTwo, Kind::Multi),
    Row::new("sinter", -2, KeyPositions::All, Kind::Multi),
    Row::new("sunion", -2, KeyPositions::All, Kind::Multi),
    Row::new("sdiff", -2, KeyPositions::All, Kind::Multi),
    // It stores the count in the value, if that has changed since the last one.
    Row::new("pfcount", -2, KeyPositions::All, Kind::Multi).may_write(),
    Row::counted("sintercard"),
    Row::counted("zintercard"),
    Row::counted("zinter").flattens_pairs(),
    Row::counted("zunion").flattens_pairs(),
    Row::counted("zdiff").flattens_pairs(),
    Row::opt_in("json.get", -2),
    Row { keys: KeyPositions::AllButLast, ..Row::opt_in("json.mget", -3) },
    Row::opt_in("json.type", -2),
    Row::opt_in("json.strlen", -2),
    Row::opt_in("json.arrlen", -2),
    Row::opt_in("json.arrindex", -4),
    Row::opt_in("json.objkeys", -2).unordered(),
    Row::opt_in("json.objlen", -2),
];

/// The names of the commands that are kept only where the operator opts in, in lower case.
pub fn opt_in_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(|row| row.is_opt_in).map(|row| row.name)
}

/// The names of the commands that are kept unless the operator opts out, in lower case.
pub fn cached_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(|row| !row.is_opt_in).map(|row| row.name)
}

/// The names of the commands in capitals, by index.
pub fn kept_names() -> Vec<String> {
    TABLE.iter().map(|row| row.name.to_ascii_uppercase()).collect()
}

impl KeptCommand {
    /// All commands of the table with their names in lower case.
    pub(super) fn all() -> impl Iterator<Item = (Self, &'static str)> {
        (0..).zip(&TABLE).map(|(index, row)| (Self(index), row.name))
    }

    /// Its index among the [`kept_names`].
    pub fn index(self) -> usize {
        self.0.into()
    }

    /// Whether it is kept only where the operator opts in.
    pub(super) fn is_opt_in(self) -> bool {
        self.row().is_opt_in
    }

    /// Whether it may change the value of a key, as `PFCOUNT` does.
    pub fn may_write(self) -> bool {
        self.row().may_write
    }

    fn row(self) -> &'static Row {
        &TABLE[self.index()]
    }
}

/// A read with a reply that may be kept.
#[derive(Debug, Clone)]
pub struct KeptRead<'a> {
    command: KeptCommand,
    arguments: Arguments<'a>,
    keys: Range<usize>,
}

impl<'a> KeptRead<'a> {
    /// `None` if the read has to be forwarded: it has the wrong number of arguments or of keys, too
    /// many keys, or a word with which Redis reads other keys. Other errors are for Redis to find.
    pub fn new(command: KeptCommand, arguments: Arguments<'a>) -> Option<Self> {
        let row = command.row();
        if !row.has_arity(arguments.len()) {
            return None;
        }
        let keys = row.keys.range(arguments).filter(|keys| keys.len() <= MAX_KEYS)?;
        let is_forbidden = |word: &[u8]| is_one_of(word, row.forbidden);
        if !row.forbidden.is_empty() && arguments.skip(keys.end).any(is_forbidden) {
            return None;
        }
        Some(Self { command, arguments, keys })
    }

    /// The command.
    pub fn command(&self) -> KeptCommand {
        self.command
    }

    /// The keys, in the order and as often as the command names them.
    pub fn keys(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.arguments.skip(self.keys.start).take(self.keys.len())
    }

    /// The first of the keys.
    pub(super) fn first_key(&self) -> &'a [u8] {
        self.arguments.get(self.keys.start)
    }

    /// The number of [`Self::keys`].
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// The type of the data that it reads.
    pub fn kind(&self) -> Kind {
        self.command.row().kind
    }

    /// Whether one of its keys is too long to be cached. `max_key` is in bytes.
    pub(super) fn has_longer_key(&self, max_key: usize) -> bool {
        self.keys().any(|key| key.len() > max_key)
    }

    /// Whether the form of its reply in this protocol is known.
    pub(super) fn has_form(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Resp3 || !self.command.is_opt_in()
    }

    /// The fields of a hash that its reply depends on.
    pub fn fields(&self) -> Fields<'a> {
        match self.command.row().fields {
            FieldUse::None => Fields::None,
            FieldUse::Named => Fields::Named(FieldNames(self.arguments)),
            FieldUse::All => Fields::All,
            FieldUse::Unnamed => Fields::Unnamed,
        }
    }

    /// The bytes under which the reply for the whole hash or set is kept; `None` if the reply to
    /// this read does not follow from that.
    pub(super) fn whole_name(&self) -> Option<BytesMut> {
        let whole = self.command.row().derivation?.whole();
        let mut name = BytesMut::new();
        write_array_length(&mut name, 2);
        write_bulk(&mut name, whole);
        write_bulk(&mut name, self.first_key());
        Some(name)
    }

    /// Derives the reply from `whole`, the reply for the whole hash or set in RESP3. `None` if it
    /// does not follow, or if there are more than `max` fields or members.
    pub(super) fn derive(&self, whole: &[u8], max: usize) -> Option<ReplyFrame> {
        self.command.row().derivation?.apply(self.arguments, whole, max)
    }

    /// The meaning of the order of the members of its reply; `None` if a reply is not verified.
    pub(super) fn verified_order(&self) -> Option<MemberOrder> {
        self.command.row().order
    }

    /// The unit of its reply, if that is computed from the end of the key.
    pub(super) fn time_unit(&self) -> Option<TimeUnit> {
        self.command.row().time_unit
    }

    /// The difference between its replies in RESP3 and in RESP2.
    pub fn shape(&self) -> Shape {
        let row = self.command.row();
        let nil = match row.nil {
            NilRule::Array => Nil::Array,
            NilRule::ArrayWithScore if self.arguments.len() > 3 => Nil::Array,
            NilRule::ArrayWithScore | NilRule::Bulk => Nil::Bulk,
        };
        Shape { nil, flattens_pairs: row.flattens_pairs }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{Class, CommandTable};
    use super::*;
    use crate::protocol::tests::parsed;

    const PLAIN: Shape = Shape { nil: Nil::Bulk, flattens_pairs: false };
    const NIL_ARRAY: Shape = Shape { nil: Nil::Array, flattens_pairs: false };
    const PAIRS: Shape = Shape { nil: Nil::Bulk, flattens_pairs: true };

    /// Calls `check` with the read of a line.
    fn with_read<T>(line: &str, check: impl FnOnce(Option<KeptRead<'_>>) -> T) -> T {
        let (input, parser) = parsed(line);
        let arguments = parser.arguments(&input);
        let class = CommandTable::new().find(arguments.get(0)).class;
        let Class::Kept(command) = class else { panic!("{line}: {class:?}") };
        check(KeptRead::new(command, arguments))
    }

    /// The fields of a read in words.
    fn fields(read: &KeptRead<'_>) -> String {
        match read.fields() {
            Fields::None => "none".to_owned(),
            Fields::All => "all".to_owned(),
            Fields::Unnamed => "unnamed".to_owned(),
            Fields::Named(names) => names.iter().map(text).collect::<Vec<_>>().join(" "),
        }
    }

    fn text(word: &[u8]) -> String {
        String::from_utf8_lossy(word).into_owned()
    }

    #[test]
    fn kept_read_names_its_keys_kind_fields_and_shape() {
        for (line, keys, kind, expected_fields, shape) in [
            ("GETBIT k 7", "k", Kind::String, "none", PLAIN),
            ("BITCOUNT k", "k", Kind::String, "none", PLAIN),
            ("BITCOUNT k 0 -1 BIT", "k", Kind::String, "none", PLAIN),
            ("BITPOS k 1 2", "k", Kind::String, "none", PLAIN),
            ("BITFIELD_RO k", "k", Kind::String, "none", PLAIN),
            ("BITFIELD_RO k GET u8 0 GET i4 #2", "k", Kind::String, "none", PLAIN),
            ("type k", "k", Kind::String, "none", PLAIN),
            ("LCS a b IDX MINMATCHLEN 2", "a b", Kind::Multi, "none", PLAIN),
            ("HGET h f", "h", Kind::Hash, "f", PLAIN),
            ("hGet h f", "h", Kind::Hash, "f", PLAIN),
            ("HMGET h f g f", "h", Kind::Hash, "f g f", PLAIN),
            ("HEXISTS h f", "h", Kind::Hash, "f", PLAIN),
            ("HSTRLEN h f", "h", Kind::Hash, "f", PLAIN),
            ("HGETALL h", "h", Kind::Hash, "all", PLAIN),
            ("HKEYS h", "h", Kind::Hash, "all", PLAIN),
            ("HVALS h", "h", Kind::Hash, "unnamed", PLAIN),
            ("HLEN h", "h", Kind::Hash, "unnamed", PLAIN),
            ("LRANGE l 0 -1", "l", Kind::List, "none", PLAIN),
            ("LPOS l x COUNT 0", "l", Kind::List, "none", PLAIN),
            ("SORT_RO l", "l", Kind::List, "none", PLAIN),
            ("SORT_RO l LIMIT 0 2 ALPHA DESC", "l", Kind::List, "none", PLAIN),
            ("SORT_RO by", "by", Kind::List, "none", PLAIN),
            ("SMISMEMBER s a b", "s", Kind::Set, "none", PLAIN),
            ("SINTER a", "a", Kind::Multi, "none", PLAIN),
            ("SINTER a b a", "a b a", Kind::Multi, "none", PLAIN),
            ("SINTERCARD 2 a b LIMIT 3", "a b", Kind::Multi, "none", PLAIN),
            ("ZRANK z m", "z", Kind::Zset, "none", PLAIN),
            ("ZRANK z m WITHSCORE", "z", Kind::Zset, "none", NIL_ARRAY),
            ("ZREVRANK z m withscore", "z", Kind::Zset, "none", NIL_ARRAY),
            ("ZSCORE z m", "z", Kind::Zset, "none", PLAIN),
            ("ZRANGE z 0 -1 WITHSCORES", "z", Kind::Zset, "none", PAIRS),
            ("ZRANGEBYLEX z - +", "z", Kind::Zset, "none", PLAIN),
            ("ZUNION 2 a b WEIGHTS 1 2", "a b", Kind::Multi, "none", PAIRS),
            ("ZINTER 1 WITHSCORES WITHSCORES", "WITHSCORES", Kind::Multi, "none", PAIRS),
            ("ZDIFF 1 a b", "a", Kind::Multi, "none", PAIRS),
            ("ZINTERCARD 1 a", "a", Kind::Multi, "none", PLAIN),
            ("XRANGE x - + COUNT 2", "x", Kind::Stream, "none", NIL_ARRAY),
            ("GEOPOS g", "g", Kind::Geo, "none", NIL_ARRAY),
            ("GEODIST g a b km", "g", Kind::Geo, "none", PLAIN),
            ("GEOSEARCH g FROMMEMBER m BYRADIUS 1 km", "g", Kind::Geo, "none", PLAIN),
            ("GEORADIUS_RO g 1 2 3 km", "g", Kind::Geo, "none", PLAIN),
            ("PFCOUNT a b", "a b", Kind::Multi, "none", PLAIN),
            (r#"HGET "\x00\r\n\xff" "f \n""#, "\0\r\n\u{fffd}", Kind::Hash, "f \n", PLAIN),
        ] {
            with_read(line, |read| {
                let read = read.unwrap_or_else(|| panic!("{line}: not kept"));
                let found = read.keys().map(text).collect::<Vec<_>>();
                assert_eq!((found.join(" "), read.key_count()), (keys.to_owned(), found.len()));
                assert_eq!(
                    (read.kind(), fields(&read).as_str()),
                    (kind, expected_fields),
                    "{line}"
                );
                assert_eq!(read.shape(), shape, "{line}");
            });
        }
    }

    #[test]
    fn reads_of_modules_name_their_keys() {
        let (input, parser) = parsed("JSON.MGET a b $.x");
        let arguments = parser.arguments(&input);
        for (name, expected) in [("json.mget", "a b"), ("json.get", "a")] {
            let (command, _) = KeptCommand::all().find(|(_, known)| *known == name).unwrap();
            let read = KeptRead::new(command, arguments).unwrap();
            assert_eq!(read.keys().map(text).collect::<Vec<_>>().join(" "), expected, "{name}");
            assert!(read.has_form(Protocol::Resp3) && !read.has_form(Protocol::Resp2));
        }
    }

    #[test]
    fn malformed_read_is_not_kept() {
        for line in [
            "HGET",
            "HGET h",
            "HGET h f g",
            "HMGET h",
            "HGETALL h f",
            "TYPE",
            "TYPE a b",
            "LCS a",
            "GETBIT k",
            "LRANGE l 0",
            "LRANGE l 0 1 2",
            "ZRANGE z 0",
            "ZRANK z",
            "SINTER",
            "PFCOUNT",
            "GEOSEARCH g FROMMEMBER m BYRADIUS 1",
            "SINTERCARD 1",
            "SINTERCARD 3 a b",
            "SINTERCARD 0 a",
            "SINTERCARD -1 a",
            "SINTERCARD x a",
            "SINTERCARD 01 a",
            "ZINTER 2 a",
            "ZUNION 9223372036854775807 a",
            "ZUNION 9223372036854775808 a",
            "ZDIFF 1.0 a",
            "SORT_RO l BY nosort",
            "SORT_RO l by w_*",
            "SORT_RO l LIMIT 0 1 GET #",
            "SORT_RO l STORE k",
        ] {
            with_read(line, |read| assert!(read.is_none(), "{line}: {read:?}"));
        }
    }

    #[test]
    fn read_of_more_than_64_keys_is_not_kept() {
        let keys = |count: usize| vec!["k"; count].join(" ");
        for (count, is_kept) in [(64, true), (65, false)] {
            for line in [
                format!("SUNION {}", keys(count)),
                format!("PFCOUNT {}", keys(count)),
                format!("ZINTERCARD {count} {}", keys(count)),
            ] {
                with_read(&line, |read| assert_eq!(read.is_some(), is_kept, "{count}"));
            }
        }
        let fields = format!("HMGET h {}", keys(1000));
        with_read(&fields, |read| assert_eq!(read.map(|read| read.key_count()), Some(1)));
    }

    #[test]
    fn command_of_the_table_is_found_by_its_name() {
        let (names, commands) = (kept_names(), CommandTable::new());
        for (index, name) in cached_names().enumerate() {
            let Class::Kept(found) = commands.find(name.as_bytes()).class else { panic!("{name}") };
            assert_eq!((found.index(), name.to_ascii_uppercase()), (index, names[index].clone()));
        }
        assert_eq!(opt_in_names().count() + cached_names().count(), names.len());
        assert_eq!(KeptCommand::all().filter(|(command, _)| command.may_write()).count(), 1);
    }
}
