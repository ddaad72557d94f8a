//! Promise: a reply kept in RESP3 is written in RESP2 as Redis itself writes it, and the keys of a
//! kept read are those that Redis sees.
//!
//! Model: one server holds a key of each type. Each form of each kept command is sent with each of
//! the keys over two connections, in RESP3 and in RESP2. The first reply, converted, has to equal
//! the second. So replies to absent keys and to keys of the wrong type are among them.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use bytes::BytesMut;
use redis_proxy::commands::{Class, CommandTable, KeptRead, cached_names};
use redis_proxy::protocol::{
    Arguments, ParseStatus, RequestLimits, RequestParser, Resp2Form, Shape, write_resp2,
};

use crate::support::RedisServer;
use crate::support::resp_client::{RespClient, bulk, command, show};

/// The number of members of a large collection. Hash tables of that size are not being rehashed,
/// which would change their order between two reads.
const MANY: usize = 250;

const SETUP: [&str; 19] = [
    "SET string hello-world",
    "SET number 42",
    "SETBIT bits 9 1",
    "RPUSH list a b c a",
    "RPUSH numbers 3 1.5 2",
    "SADD set a b c",
    "SADD integers 1 2 3",
    "HSET hash f v g 7 h 1.5",
    "ZADD zset 1 a 2.5 b inf c -inf d 1e300 e 3.14159265358979 f 0.1 g 123456789012345678 h",
    "ZADD zset 1e21 i 1.5e-7 j -0.0 k 5e-324 l 1.7976931348623157e308 m 4503599627370497.5 n",
    "ZADD zset 100000000000000000000 o -17 p 1e17 q 0.30000000000000004 r 9007199254740993 s",
    "ZADD other-zset 1 a inf d 3 c -1e300 e",
    "ZADD lexical 0 a 0 b 0 c",
    "GEOADD places 13.361389 38.115556 a 15.087269 37.502669 b -179.9999 0.000001 c",
    "XADD stream 1-1 f v g w",
    "XADD stream 2-1 f v",
    "XADD stream 3-1 f v",
    "XDEL stream 2-1",
    "PFADD hyperloglog a b c",
];

const KEYS: [&[u8]; 20] = [
    b"absent",
    b"string",
    b"number",
    b"bits",
    b"list",
    b"numbers",
    b"set",
    b"integers",
    b"hash",
    b"zset",
    b"other-zset",
    b"lexical",
    b"places",
    b"stream",
    b"hyperloglog",
    b"many-list",
    b"many-set",
    b"many-hash",
    b"many-zset",
    BINARY,
];
/// The key of a hash.
const BINARY: &[u8] = b"\0\r\n$-1\r\n\xff";

/// The second keys of commands with two.
const SECOND_KEYS: [&[u8]; 8] = [
    b"absent",
    b"number",
    b"set",
    b"integers",
    b"other-zset",
    b"hyperloglog",
    b"many-set",
    b"many-zset",
];

/// The forms of the kept commands. `K` and `J` are keys.
const FORMS: &str = "
    GETBIT K 9 | GETBIT K 100000 | GETBIT K x
    BITCOUNT K | BITCOUNT K 0 | BITCOUNT K 0 -1 | BITCOUNT K 5 30 BIT
    BITPOS K 1 | BITPOS K 0 2 -1 | BITPOS K 1 0 -1 BIT | BITPOS K 2
    BITFIELD_RO K | BITFIELD_RO K GET u8 0 GET i64 #1 | BITFIELD_RO K SET u8 0 1
    TYPE K | TTL K | PTTL K
    LCS K J | LCS K J LEN | LCS K J IDX | LCS K J IDX MINMATCHLEN 2 WITHMATCHLEN | LCS K J IDX LEN
    HGET K f | HGET K nothing | HMGET K f nothing g f | HGETALL K | HKEYS K | HVALS K
    HEXISTS K f | HEXISTS K nothing | HSTRLEN K f | HSTRLEN K nothing | HLEN K
    LLEN K | LRANGE K 0 -1 | LRANGE K 5 1 | LRANGE K x 1 | LINDEX K 0 | LINDEX K -1 | LINDEX K 9999
    LPOS K a | LPOS K nothing | LPOS K a COUNT 0 | LPOS K nothing COUNT 2 | LPOS K a RANK 0
    LPOS K a RANK -1 MAXLEN 2
    SORT_RO K | SORT_RO K ALPHA | SORT_RO K ALPHA DESC LIMIT 1 2 | SORT_RO K ALPHA LIMIT 0 0
    SORT_RO K x
    SCARD K | SMEMBERS K | SISMEMBER K a | SMISMEMBER K a nothing
    SINTER K | SINTER K J | SUNION K J | SDIFF K J | SDIFF K J K | SINTERCARD 1 K
    SINTERCARD 2 K J LIMIT 1 | SINTERCARD 2 K J LIMIT -1
    ZCARD K | ZSCORE K a | ZSCORE K c | ZSCORE K d | ZSCORE K h | ZSCORE K l | ZSCORE K nothing
    ZMSCORE K a nothing c d e f g h i j k l m n o p q r s
    ZCOUNT K -inf +inf | ZCOUNT K (1 5 | ZCOUNT K x 5 | ZLEXCOUNT K - + | ZLEXCOUNT K [a (c
    ZRANK K a | ZRANK K nothing | ZRANK K a WITHSCORE | ZRANK K c withscore
    ZRANK K nothing WITHSCORE | ZRANK K a x | ZREVRANK K a | ZREVRANK K nothing
    ZREVRANK K d WITHSCORE | ZREVRANK K nothing WITHSCORE
    ZRANGE K 0 -1 | ZRANGE K 0 -1 WITHSCORES | ZRANGE K 0 -1 withscores | ZRANGE K 3 1 WITHSCORES
    ZRANGE K -inf +inf BYSCORE WITHSCORES | ZRANGE K 9 1 BYSCORE REV LIMIT 1 2 WITHSCORES
    ZRANGE K - + BYLEX | ZRANGE K - + BYLEX WITHSCORES | ZRANGE K 0 1 x | ZRANGE K 0 -1 REV
    ZREVRANGE K 0 -1 | ZREVRANGE K 0 -1 WITHSCORES | ZREVRANGE K 0 0 WITHSCORES WITHSCORES
    ZRANGEBYSCORE K -inf inf | ZRANGEBYSCORE K (1 inf WITHSCORES LIMIT 1 3
    ZRANGEBYSCORE K -inf inf LIMIT -1 1 WITHSCORES | ZRANGEBYSCORE K x inf
    ZREVRANGEBYSCORE K inf -inf WITHSCORES | ZREVRANGEBYSCORE K 5 (1
    ZRANGEBYLEX K - + | ZRANGEBYLEX K [b + LIMIT 0 1 | ZREVRANGEBYLEX K + - | ZREVRANGEBYLEX K x -
    ZINTER 1 K | ZINTER 2 K J WITHSCORES | ZINTER 2 K J WEIGHTS 2 0 AGGREGATE MAX WITHSCORES
    ZUNION 1 K WITHSCORES | ZUNION 2 K J | ZUNION 2 K J WITHSCORES | ZUNION 2 K J WEIGHTS 0.1 -1
    ZUNION 2 K J WEIGHTS 0 -0.5 AGGREGATE SUM WITHSCORES | ZUNION 2 K J AGGREGATE x
    ZDIFF 1 K WITHSCORES | ZDIFF 2 K J | ZDIFF 2 K J WITHSCORES | ZINTERCARD 1 K
    ZINTERCARD 2 K J LIMIT 2
    XLEN K | XRANGE K - + | XRANGE K - + COUNT 1 | XRANGE K - + COUNT 0 | XRANGE K - + COUNT -1
    XRANGE K 9 + | XRANGE K x + | XREVRANGE K + - | XREVRANGE K + - COUNT 0 | XREVRANGE K - +
    GEOPOS K | GEOPOS K a | GEOPOS K nothing a | GEODIST K a b | GEODIST K a c km
    GEODIST K a nothing | GEODIST K a b x | GEOHASH K | GEOHASH K a nothing c
    GEOSEARCH K FROMMEMBER a BYRADIUS 500 km | GEOSEARCH K FROMMEMBER nothing BYRADIUS 500 km
    GEOSEARCH K FROMLONLAT 15 37 BYBOX 900 900 km ASC WITHCOORD WITHDIST WITHHASH
    GEOSEARCH K FROMLONLAT 15 37 BYRADIUS 300 km COUNT 1 WITHDIST
    GEOSEARCH K FROMLONLAT 15 37 BYRADIUS 300 km DESC WITHCOORD
    GEOSEARCH K FROMLONLAT 50 50 BYRADIUS 1 m WITHCOORD | GEOSEARCH K FROMLONLAT 15 37 BYRADIUS -1 m
    GEORADIUS_RO K 15 37 300 km | GEORADIUS_RO K 15 37 300 km WITHDIST WITHCOORD WITHHASH DESC
    GEORADIUS_RO K 15 37 300 km STORE K | GEORADIUSBYMEMBER_RO K a 300 km WITHCOORD ASC
    GEORADIUSBYMEMBER_RO K nothing 300 km | GEORADIUSBYMEMBER_RO K a 1 m WITHHASH
    PFCOUNT K | PFCOUNT K J";

fn filled() -> RedisServer {
    let redis = RedisServer::builder().tcp().start();
    for line in SETUP {
        redis.command(&line.split(' ').collect::<Vec<_>>());
    }
    redis.command(&[b"HSET", BINARY, b"f", b"\r\n\xfe", b"\0", b"", b"g", b"_"]);
    let members = || (0..MANY).map(|number| format!("member:{number}"));
    let pairs = || members().enumerate().flat_map(|(score, member)| [score.to_string(), member]);
    let fill = |command: &str, key: &str, words: Vec<String>| {
        let head = [command.to_owned(), key.to_owned()];
        redis.command(&head.into_iter().chain(words).collect::<Vec<_>>());
    };
    // Each access to a member moves a hash table on that is being rehashed.
    for _ in 0..4 {
        fill("SADD", "many-set", members().collect());
        fill("ZADD", "many-zset", pairs().collect());
        fill("HSET", "many-hash", members().flat_map(|field| [field.clone(), field]).collect());
    }
    fill("RPUSH", "many-list", members().collect());
    redis
}

fn forms() -> impl Iterator<Item = Vec<&'static str>> {
    let forms = FORMS.split(['|', '\n']).map(str::trim).filter(|form| !form.is_empty());
    forms.map(|form| form.split(' ').collect())
}

/// Returns the words of a form with these keys.
fn with_keys<'a>(form: &[&'a str], first: &'a [u8], second: &'a [u8]) -> Vec<&'a [u8]> {
    let word = |word: &&'a str| match *word {
        "K" => first,
        "J" => second,
        other => other.as_bytes(),
    };
    form.iter().map(word).collect()
}

/// Returns a command as it is sent, and the parser that has read it.
fn parsed(words: &[&[u8]]) -> (Vec<u8>, RequestParser) {
    let (input, mut parser) = (command(words), RequestParser::default());
    let limits = RequestLimits { max_bulk: 1 << 20, max_arguments: 1024 };
    assert_eq!(parser.parse(&input, limits), Ok(ParseStatus::Complete(input.len())));
    (input, parser)
}

fn kept_read(arguments: Arguments<'_>) -> KeptRead<'_> {
    static COMMANDS: LazyLock<CommandTable> = LazyLock::new(CommandTable::new);
    let name = arguments.get(0);
    let Class::Kept(command) = COMMANDS.find(name).class else { panic!("{}", show(name)) };
    KeptRead::new(command, arguments).unwrap_or_else(|| panic!("{arguments:?} is not kept"))
}

/// Returns the RESP2 reply that is written for a kept one, by its form.
fn by_form(frame: &[u8], shape: Shape, form: Resp2Form) -> Vec<u8> {
    match form {
        Resp2Form::Same => frame.to_vec(),
        Resp2Form::Head { elements, skip } => {
            [format!("*{elements}\r\n").as_bytes(), &frame[skip..]].concat()
        }
        Resp2Form::Converted => {
            let mut output = BytesMut::new();
            write_resp2(frame, shape, &mut output);
            output.to_vec()
        }
    }
}

#[test]
fn converted_reply_equals_the_reply_in_resp2() {
    let redis = filled();
    let mut resp3 = RespClient::connect_resp3(redis.tcp_address());
    let mut resp2 = RespClient::connect(redis.tcp_address());
    let (mut seen, mut replies, mut forms_seen) = (BTreeSet::new(), 0, [0; 3]);
    for form in forms() {
        let seconds = if form.contains(&"J") { &SECOND_KEYS[..] } else { &SECOND_KEYS[..1] };
        for (first, second) in
            KEYS.iter().flat_map(|first| seconds.iter().map(move |second| (*first, *second)))
        {
            let words = with_keys(&form, first, second);
            let (frame, expected) = (resp3.query(&words), resp2.query(&words));
            let (input, parser) = parsed(&words);
            let shape = kept_read(parser.arguments(&input)).shape();
            let resp2_form = Resp2Form::new(&frame, shape);
            let found = by_form(&frame, shape, resp2_form);
            let line = show(&words.join(&b' '));
            assert!(
                found == expected,
                "{line}: {} becomes {}, expected {}",
                show(&frame),
                show(&found),
                show(&expected)
            );
            assert!(by_form(&frame, shape, Resp2Form::Converted) == expected, "{line}");
            seen.insert(form[0].to_owned());
            replies += usize::from(!frame.starts_with(b"-"));
            forms_seen[match resp2_form {
                Resp2Form::Same => 0,
                Resp2Form::Head { .. } => 1,
                Resp2Form::Converted => 2,
            }] += 1;
        }
    }
    assert_eq!(
        seen,
        cached_names().map(str::to_ascii_uppercase).collect(),
        "each kept command is compared"
    );
    let is_enough = replies > 1000 && forms_seen.iter().all(|count| *count > 50);
    assert!(is_enough, "{replies} replies are no errors, by form: {forms_seen:?}");
}

#[test]
fn keys_of_a_kept_read_are_those_that_redis_finds() {
    let redis = RedisServer::builder().tcp().start();
    let mut client = RespClient::connect(redis.tcp_address());
    for form in forms() {
        let words = with_keys(&form, b"one", b"two");
        let (input, parser) = parsed(&words);
        let keys: Vec<_> = kept_read(parser.arguments(&input)).keys().map(bulk).collect();
        let expected = [format!("*{}\r\n", keys.len()).into_bytes(), keys.concat()].concat();
        let found = client.query(&[&[&b"COMMAND"[..], b"GETKEYS"], &words[..]].concat());
        // Before Redis 7.2 no score goes with a rank.
        let is_unknown = form[0].ends_with("RANK") && form.len() > 3 && found.starts_with(b"-");
        assert!(is_unknown || found == expected, "{form:?}: {}", show(&found));
    }
}
