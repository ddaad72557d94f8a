//! Tests of the shared connection against the other end of its stream.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, ReadBuf,
    duplex,
};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::submit_queue::BATCH_THRESHOLD;
use super::*;
use crate::cache::{Admission, COUNTED_MIN};

type DriverTask = tokio::task::JoinHandle<BackendError>;

/// Returns a driven connection, the other end of its stream, the number of pushes, and the driver's
/// task.
fn connect() -> (Multiplexed, DuplexStream, Arc<Mutex<usize>>, DriverTask) {
    connect_with_room(64)
}

/// The same as [`connect`], with at most `room` bytes in transit.
fn connect_with_room(room: usize) -> (Multiplexed, DuplexStream, Arc<Mutex<usize>>, DriverTask) {
    let (ours, theirs) = duplex(room);
    let pushes = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&pushes);
    let (connection, driver) =
        Multiplexed::new(ours, None, 0, Box::new(move |_| *counter.lock().unwrap() += 1));
    (connection, theirs, pushes, tokio::spawn(driver))
}

async fn echo(
    connection: Multiplexed,
    number: usize,
    deadline: Option<Instant>,
) -> Result<Vec<Value>, BackendError> {
    let words = format!("{number}\r\n");
    let write = |commands: &mut BytesMut| {
        commands.extend_from_slice(words.as_bytes());
        2
    };
    connection.send_batch(deadline, write).await
}

async fn line(stream: &mut DuplexStream) -> String {
    let read = async {
        let mut line = String::new();
        while !line.ends_with('\n') {
            line.push(char::from(stream.read_u8().await.unwrap()));
        }
        line.trim_end().to_owned()
    };
    timeout(Duration::from_secs(10), read).await.unwrap()
}

#[tokio::test]
async fn concurrent_requests_get_their_own_replies() {
    let (connection, theirs, _, _driven) = connect();
    tokio::spawn(async move {
        let (mut questions, mut answers) = tokio::io::split(tokio::io::BufStream::new(theirs));
        let mut byte = [0];
        let mut number = Vec::new();
        while questions.read(&mut byte).await.unwrap() > 0 {
            if byte[0] == b'\n' {
                let answer = format!(
                    ":{0}\r\n${1}\r\n{0}\r\n",
                    str::from_utf8(&number).unwrap(),
                    number.len()
                );
                answers.write_all(answer.as_bytes()).await.unwrap();
                answers.flush().await.unwrap();
                number.clear();
            } else if byte[0] != b'\r' {
                number.push(byte[0]);
            }
        }
    });
    let pending: Vec<_> =
        (0..500).map(|number| tokio::spawn(echo(connection.clone(), number, None))).collect();
    for (number, pending) in pending.into_iter().enumerate() {
        let text = Value::BulkString(number.to_string().into_bytes());
        let number = Value::Int(i64::try_from(number).unwrap());
        assert_eq!(pending.await.unwrap(), Ok(vec![number, text]));
    }
}

#[tokio::test]
async fn requests_of_other_threads_get_their_own_replies() {
    let (connection, mut theirs, _, _driven) = connect_with_room(64 << 10);
    let pending = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let echo = |number| tokio::spawn(echo(connection.clone(), number, None));
            let pending: Vec<_> = (0..100).map(echo).collect();
            for (number, pending) in pending.into_iter().enumerate() {
                let number = i64::try_from(number).unwrap();
                assert_eq!(pending.await.unwrap(), Ok(vec![Value::Int(number); 2]));
            }
        });
    });
    for number in 0..100 {
        assert_eq!(line(&mut theirs).await, number.to_string());
    }
    for number in 0..100 {
        theirs.write_all(format!(":{number}\r\n").repeat(2).as_bytes()).await.unwrap();
    }
    tokio::task::spawn_blocking(|| pending.join()).await.unwrap().unwrap();
}

#[tokio::test]
async fn requests_are_written_between_completions() {
    let (connection, mut theirs, _, _driven) = connect_with_room(64 << 10);
    let answered = Arc::new(Mutex::new(0));
    for number in 0..64 {
        let (connection, answered) = (connection.clone(), Arc::clone(&answered));
        tokio::spawn(async move {
            echo(connection.clone(), number, None).await.unwrap();
            *answered.lock().unwrap() += 1;
            echo(connection, number, None).await
        });
    }
    for number in 0..64 {
        assert_eq!(line(&mut theirs).await, number.to_string());
    }
    theirs.write_all(&b":1\r\n:1\r\n".repeat(64)).await.unwrap();
    assert_eq!(line(&mut theirs).await, "0");
    assert!(*answered.lock().unwrap() < 64);
}

#[tokio::test(start_paused = true)]
async fn timed_out_request_keeps_its_reply_slot() {
    let (connection, mut theirs, _, _driven) = connect();
    let deadline = Instant::now() + Duration::from_secs(1);
    let late = tokio::spawn(echo(connection.clone(), 1, Some(deadline + Duration::from_secs(1))));
    assert_eq!(line(&mut theirs).await, "1");
    assert_eq!(echo(connection.clone(), 2, Some(deadline)).await, Err(BackendError::TimedOut));
    assert!(!late.is_finished(), "the second is given up first");
    let gone = tokio::spawn(echo(connection.clone(), 3, None));
    assert_eq!((line(&mut theirs).await.as_str(), line(&mut theirs).await.as_str()), ("2", "3"));
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let next = tokio::spawn(echo(connection, 4, Some(deadline + Duration::from_secs(9))));
    assert_eq!(line(&mut theirs).await, "4");
    theirs.write_all(b":1\r\n:1\r\n:2\r\n:2\r\n:3\r\n:3\r\n:4\r\n:4\r\n").await.unwrap();
    assert_eq!(late.await.unwrap(), Ok(vec![Value::Int(1); 2]));
    assert_eq!(next.await.unwrap(), Ok(vec![Value::Int(4); 2]));
}

#[tokio::test]
async fn push_is_applied_before_the_reply_behind_it() {
    let (connection, mut theirs, pushes, _driven) = connect();
    let pending = tokio::spawn(echo(connection, 1, None));
    line(&mut theirs).await;
    theirs.write_all(b":1\r\n>1\r\n+a\r\n:1\r\n>1\r\n+b\r\n").await.unwrap();
    assert_eq!(pending.await.unwrap(), Ok(vec![Value::Int(1); 2]));
    assert!(*pushes.lock().unwrap() >= 1);
}

/// Sends `GET` and its equivalent of `PTTL`, with this room for the value.
fn fetch(
    connection: &Multiplexed,
    room: ValueRoom,
) -> tokio::task::JoinHandle<Result<Replies, BackendError>> {
    let connection = connection.clone();
    let key = Key::from(&b"k"[..]);
    tokio::spawn(async move { connection.fetch_value(None, room, &key).await })
}

#[tokio::test]
async fn value_without_room_is_discarded_and_reading_goes_on() {
    const MAX: usize = 3 * COUNTED_MIN;
    let (connection, mut theirs, pushes, _driven) = connect_with_room(1 << 20);
    let in_flight = InFlight::new(MAX);
    connection.limit_values(&in_flight, 1);
    let reply = |size: usize| format!("${size}\r\n{}\r\n:-1\r\n", "v".repeat(size));
    let length = |replies: &Replies| match &replies.values[0] {
        Value::BulkString(value) => value.len(),
        other => panic!("{other:?}"),
    };
    let mut sizes = Vec::new();
    let mut rooms = Vec::new();
    for size in [COUNTED_MIN - 1, 2 * COUNTED_MIN, 2 * COUNTED_MIN, 2 * COUNTED_MIN] {
        let pending = fetch(&connection, ValueRoom::None);
        expect(&mut theirs, &["GET k", "PTTL k"]).await;
        theirs.write_all(reply(size).as_bytes()).await.unwrap();
        theirs.write_all(b">1\r\n+a\r\n").await.unwrap();
        let replies = pending.await.unwrap().unwrap();
        assert_eq!(replies.values.len(), 2);
        sizes.push(length(&replies));
        rooms.push(replies.room);
    }
    assert_eq!(sizes, [COUNTED_MIN - 1, 2 * COUNTED_MIN, 0, 0]);
    assert_eq!(in_flight.bytes().0, 2 * COUNTED_MIN as u64);
    let [
        ValueRoom::None,
        held @ ValueRoom::Reserved(_),
        ValueRoom::Waits(turn),
        ValueRoom::Refused,
    ] = <[_; 4]>::try_from(rooms).unwrap()
    else {
        panic!("the second is held, the third waits, the fourth is refused")
    };
    let read = async {
        while *pushes.lock().unwrap() < 4 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), read).await.expect("the pushes behind them are read");

    // It has its turn, and has become smaller meanwhile.
    drop(held);
    let room = turn.wait().await.unwrap();
    let pending = fetch(&connection, ValueRoom::Reserved(room));
    expect(&mut theirs, &["GET k", "PTTL k"]).await;
    theirs.write_all(reply(COUNTED_MIN).as_bytes()).await.unwrap();
    let replies = pending.await.unwrap().unwrap();
    assert_eq!((length(&replies), in_flight.bytes().0), (COUNTED_MIN, COUNTED_MIN as u64));
    drop(replies);
    assert_eq!(in_flight.bytes().0, 0);
}

#[tokio::test]
async fn value_without_a_reader_gives_its_room_back() {
    let (connection, mut theirs, _, _driven) = connect_with_room(1 << 20);
    let in_flight = InFlight::new(2 * COUNTED_MIN);
    connection.limit_values(&in_flight, 9);
    let value = "v".repeat(2 * COUNTED_MIN);
    let reply = format!("${}\r\n{value}\r\n:-1\r\n", value.len());
    let mut others = None;
    // The first would have room, the second would wait for it.
    for bytes in [0, COUNTED_MIN] {
        if bytes > 0 {
            let Admission::Granted(room) = in_flight.reserve(bytes, 0) else { panic!("no room") };
            others = Some(room);
        }
        let gone = fetch(&connection, ValueRoom::None);
        expect(&mut theirs, &["GET k", "PTTL k"]).await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        let next = tokio::spawn(echo(connection.clone(), 1, None));
        assert_eq!(line(&mut theirs).await, "1");
        theirs.write_all(format!("{reply}:1\r\n:1\r\n").as_bytes()).await.unwrap();
        assert_eq!(next.await.unwrap(), Ok(vec![Value::Int(1); 2]));
        assert_eq!(in_flight.bytes().0, bytes as u64);
    }
    drop(others);
    assert_eq!(in_flight.bytes().0, 0, "nothing waits for the room");
}

#[tokio::test]
async fn value_that_has_grown_needs_new_room() {
    let (connection, mut theirs, _, _driven) = connect_with_room(1 << 20);
    let in_flight = InFlight::new(3 * COUNTED_MIN);
    connection.limit_values(&in_flight, 1);
    let Admission::Granted(others) = in_flight.reserve(COUNTED_MIN, 0) else { panic!("no room") };
    let Admission::Granted(room) = in_flight.reserve(COUNTED_MIN, 0) else { panic!("no room") };
    let pending = fetch(&connection, ValueRoom::Reserved(room));
    expect(&mut theirs, &["GET k", "PTTL k"]).await;
    let value = "v".repeat(3 * COUNTED_MIN);
    theirs.write_all(format!("${}\r\n{value}\r\n:-1\r\n", value.len()).as_bytes()).await.unwrap();
    let replies = pending.await.unwrap().unwrap();
    assert!(matches!(replies.room, ValueRoom::Waits(_)), "{:?}", replies.room);
    assert_eq!(in_flight.bytes().0, COUNTED_MIN as u64);
    drop(others);
}

#[tokio::test]
async fn value_in_a_transaction_needs_room() {
    let (connection, mut theirs, _, _driven) = connect_with_room(1 << 20);
    let in_flight = InFlight::new(COUNTED_MIN);
    connection.limit_values(&in_flight, 0);
    let Admission::Granted(_others) = in_flight.reserve(1, 0) else { panic!("no room") };
    let of = connection.clone();
    let pending = tokio::spawn(async move {
        let write = |commands: &mut BytesMut| {
            commands.extend_from_slice(b"x\r\n");
            1
        };
        of.send_fetch(None, ValueRoom::None, write).await
    });
    assert_eq!(line(&mut theirs).await, "x");
    let value = "v".repeat(COUNTED_MIN);
    let exec = format!("*2\r\n${}\r\n{value}\r\n:-1\r\n", value.len());
    theirs.write_all(exec.as_bytes()).await.unwrap();
    let replies = pending.await.unwrap().unwrap();
    assert!(matches!(replies.room, ValueRoom::Refused), "{:?}", replies.room);
    let empty = Value::Array(vec![Value::BulkString(Vec::new()), Value::Int(-1)]);
    assert_eq!(replies.values, [empty]);
}

#[tokio::test]
async fn unexpected_or_invalid_reply_ends_connection() {
    for (sent, reason, is_closed_by_redis) in [
        (&b":1\r\n"[..], UNEXPECTED_REPLY, false),
        (b"x", "Redis sent an invalid reply", false),
        (b"", "Redis closed", true),
    ] {
        let (connection, mut theirs, _, drive_until) = connect();
        assert!(!connection.is_closed_by_redis());
        theirs.write_all(sent).await.unwrap();
        drop(theirs);
        assert!(drive_until.await.unwrap().to_string().starts_with(reason));
        assert_eq!(connection.is_closed_by_redis(), is_closed_by_redis, "{reason}");
        assert_eq!(connection.send(&redis::cmd("PING")).await, Err(BackendError::Disconnected));
    }
}

#[tokio::test]
async fn closed_connection_fails_all_requests() {
    let (connection, mut theirs, _, drive_until) = connect();
    let pending = [1, 2].map(|number| tokio::spawn(echo(connection.clone(), number, None)));
    line(&mut theirs).await;
    drive_until.abort();
    for pending in pending {
        assert_eq!(pending.await.unwrap(), Err(BackendError::Disconnected));
    }
    assert!(!connection.is_closed_by_redis());
}

/// Reads the next command and returns its words.
async fn command(stream: &mut DuplexStream) -> String {
    let count: usize = line(stream).await.strip_prefix('*').unwrap().parse().unwrap();
    let mut words = Vec::new();
    for _ in 0..count {
        line(stream).await;
        words.push(line(stream).await);
    }
    words.join(" ")
}

type PendingValues = Vec<tokio::task::JoinHandle<Result<Vec<Value>, BackendError>>>;

fn request_values(
    connection: &Multiplexed,
    count: usize,
    deadline: Option<Instant>,
) -> PendingValues {
    let request = |_| {
        let connection = connection.clone();
        tokio::spawn(async move {
            let key = Key::from(&b"k"[..]);
            Ok(connection.fetch_value(deadline, ValueRoom::None, &key).await?.values)
        })
    };
    (0..count).map(request).collect()
}

async fn expect(stream: &mut DuplexStream, commands: &[&str]) {
    for expected in commands {
        assert_eq!(&command(stream).await, expected);
    }
}

/// Expects many values without PTTLs, and one shared check behind them.
async fn expect_values_alone(stream: &mut DuplexStream) {
    expect(stream, &["GET k"; BATCH_THRESHOLD]).await;
    expect(stream, &["INFO keyspace"]).await;
}

async fn expect_all(pending: PendingValues, expiry: i64) {
    for pending in pending {
        assert_eq!(
            pending.await.unwrap(),
            Ok(vec![Value::BulkString(b"v".to_vec()), Value::Int(expiry)])
        );
    }
}

fn information(expires: usize) -> Vec<u8> {
    let text = format!(
        "# Server\r\nexecutable:/bin/redis-server\r\n\r\n# \
            Keyspace\r\ndb0:keys=4,expires={expires}\r\n"
    );
    format!("={}\r\ntxt:{text}\r\n", "txt:".len() + text.len()).into_bytes()
}

const VALUES: &[u8] = b"$1\r\nv\r\n$1\r\nv\r\n$1\r\nv\r\n$1\r\nv\r\n";

/// Requests many values at a time, until they are requested without their PTTLs.
async fn request_many(connection: &Multiplexed, theirs: &mut DuplexStream) {
    for introduces in [true, false] {
        let pending = request_values(connection, BATCH_THRESHOLD, None);
        expect(theirs, &["GET k", "PTTL k"].repeat(BATCH_THRESHOLD)).await;
        theirs.write_all(&b"$1\r\nv\r\n:-1\r\n".repeat(BATCH_THRESHOLD)).await.unwrap();
        if introduces {
            expect(theirs, &["INFO server keyspace"]).await;
            theirs.write_all(&information(0)).await.unwrap();
        }
        expect_all(pending, -1).await;
    }
}

#[tokio::test]
async fn values_wait_for_the_expiry_check() {
    let (connection, mut theirs, pushes, _driven) = connect_with_room(64 << 10);
    request_many(&connection, &mut theirs).await;
    for expires in [0, 1] {
        let pending = request_values(&connection, BATCH_THRESHOLD, None);
        expect_values_alone(&mut theirs).await;
        theirs.write_all(&[VALUES, b">1\r\n+a\r\n"].concat()).await.unwrap();
        while *pushes.lock().unwrap() == expires {
            tokio::task::yield_now().await;
        }
        assert!(!pending.iter().any(tokio::task::JoinHandle::is_finished));
        theirs.write_all(&information(expires)).await.unwrap();
        if expires > 0 {
            expect(&mut theirs, &["PTTL k"; BATCH_THRESHOLD]).await;
            theirs.write_all(&b":5\r\n".repeat(BATCH_THRESHOLD)).await.unwrap();
        }
        expect_all(pending, if expires > 0 { 5 } else { -1 }).await;
    }
    // Requested before the check returned that some key expires; the next ones are requested with
    // PTTLs.
    let pending = request_values(&connection, 1, None);
    expect(&mut theirs, &["GET k", "INFO keyspace"]).await;
    theirs.write_all(&[b"$-1\r\n", &information(1)[..]].concat()).await.unwrap();
    for pending in pending {
        assert_eq!(pending.await.unwrap(), Ok(vec![Value::Nil, Value::Int(-1)]));
    }
    request_values(&connection, BATCH_THRESHOLD, None);
    expect(&mut theirs, &["GET k", "PTTL k"].repeat(BATCH_THRESHOLD)).await;
}

#[tokio::test]
async fn large_values_turn_expiry_batching_off() {
    let (connection, mut theirs, _, _driven) = connect_with_room(256 << 10);
    request_many(&connection, &mut theirs).await;
    let large =
        [format!("${LARGE_VALUE_MIN}\r\n").as_bytes(), &vec![b'v'; LARGE_VALUE_MIN], b"\r\n"]
            .concat();
    let pending = request_values(&connection, BATCH_THRESHOLD, None);
    theirs
        .write_all(&[&large.repeat(BATCH_THRESHOLD), &information(0)[..]].concat())
        .await
        .unwrap();
    for pending in pending {
        assert!(pending.await.unwrap().is_ok());
    }
    expect_values_alone(&mut theirs).await;
    // The decision from before the large value applies to one more batch.
    request_values(&connection, 1, None);
    expect(&mut theirs, &["GET k", "INFO keyspace"]).await;
    request_values(&connection, BATCH_THRESHOLD, None);
    expect(&mut theirs, &["GET k", "PTTL k"].repeat(BATCH_THRESHOLD)).await;
}

#[tokio::test]
async fn older_check_keeps_newer_expiry_finding() {
    let (connection, mut theirs, _, _driven) = connect_with_room(64 << 10);
    request_many(&connection, &mut theirs).await;
    let mut pending = request_values(&connection, BATCH_THRESHOLD, None);
    expect_values_alone(&mut theirs).await;
    pending.extend(request_values(&connection, BATCH_THRESHOLD, None));
    expect_values_alone(&mut theirs).await;
    theirs.write_all(&[VALUES, &information(1), VALUES, &information(0)].concat()).await.unwrap();
    expect(&mut theirs, &["PTTL k"; BATCH_THRESHOLD]).await;
    theirs.write_all(&b":-1\r\n".repeat(BATCH_THRESHOLD)).await.unwrap();
    expect_all(pending, -1).await;
    let pending = request_values(&connection, 1, None);
    expect(&mut theirs, &["GET k", "INFO keyspace"]).await;
    theirs.write_all(&[b"$1\r\nv\r\n", &information(0)[..]].concat()).await.unwrap();
    expect_all(pending, -1).await;
    request_values(&connection, BATCH_THRESHOLD, None);
    expect(&mut theirs, &["GET k", "PTTL k"].repeat(BATCH_THRESHOLD)).await;
}

#[tokio::test]
async fn small_batches_request_pttl_per_key() {
    let (connection, mut theirs, _, _driven) = connect_with_room(64 << 10);
    for _ in 0..2 {
        let pending = request_values(&connection, BATCH_THRESHOLD - 1, None);
        expect(&mut theirs, &["GET k", "PTTL k"].repeat(BATCH_THRESHOLD - 1)).await;
        theirs.write_all(&b"$1\r\nv\r\n:-1\r\n".repeat(BATCH_THRESHOLD - 1)).await.unwrap();
        expect_all(pending, -1).await;
    }
}

#[tokio::test]
async fn surplus_reply_fails_the_whole_batch() {
    let (connection, mut theirs, _, drive_until) = connect_with_room(64 << 10);
    request_many(&connection, &mut theirs).await;
    let pending = request_values(&connection, BATCH_THRESHOLD, None);
    expect(&mut theirs, &["GET k"; BATCH_THRESHOLD]).await;
    theirs.write_all(&[VALUES, b"$1\r\nv\r\n", &information(0)].concat()).await.unwrap();
    for pending in pending {
        assert_eq!(pending.await.unwrap(), Err(BackendError::Disconnected));
    }
    assert_eq!(drive_until.await.unwrap().to_string(), UNEXPECTED_REPLY);
}

#[tokio::test(start_paused = true)]
async fn expiry_check_respects_the_deadline() {
    let (connection, mut theirs, _, _driven) = connect_with_room(64 << 10);
    request_many(&connection, &mut theirs).await;
    let pending =
        request_values(&connection, BATCH_THRESHOLD, Some(Instant::now() + Duration::from_secs(1)));
    theirs.write_all(VALUES).await.unwrap();
    for pending in pending {
        assert_eq!(pending.await.unwrap(), Err(BackendError::TimedOut));
    }
    let next = request_values(&connection, 1, None);
    theirs
        .write_all(&[&information(0), &b"$1\r\nv\r\n"[..], &information(0)].concat())
        .await
        .unwrap();
    expect_all(next, -1).await;
}

/// Repeats a login before a `PING`, with another request behind both. The other end sends `replies`
/// and then those to the other request. Returns the replies to the `PING`, those to the other
/// request, and the reason of the end if the connection ends.
async fn after_login(
    replies: &str,
) -> (Result<Vec<Value>, BackendError>, Result<Vec<Value>, BackendError>, Option<BackendError>) {
    let (connection, mut theirs, _, driven) = connect_with_room(64 << 10);
    let mut commands = [redis::cmd("AUTH"), redis::cmd("PING")];
    commands[0].arg("word");
    commands[1].arg("1");
    let proof = connection.send_after_login(Some(&commands[0]), &commands[1..]);
    let other = tokio::spawn(echo(connection.clone(), 7, None));
    let answer = async {
        while line(&mut theirs).await != "7" {}
        theirs.write_all(replies.as_bytes()).await.unwrap();
        theirs.write_all(b":7\r\n:7\r\n").await.unwrap();
        theirs
    };
    let (proof, _theirs) = tokio::join!(proof, answer);
    let other = other.await.unwrap();
    let end = if proof.is_ok() { None } else { Some(driven.await.unwrap()) };
    (proof, other, end)
}

#[tokio::test]
async fn accepted_login_leaves_replies_with_their_requests() {
    for reply in ["+OK\r\n", "-ERR Client sent AUTH, but no password is set\r\n"] {
        let (proof, other, _) = after_login(&format!("{reply}$1\r\n1\r\n")).await;
        assert_eq!(proof, Ok(vec![Value::BulkString(b"1".to_vec())]), "{reply}");
        assert_eq!(other, Ok(vec![Value::Int(7), Value::Int(7)]), "{reply}");
    }
}

#[tokio::test]
async fn rejected_login_ends_the_connection_before_later_replies() {
    for replies in [
        "-WRONGPASS invalid username-password pair or user is disabled.\r\n$1\r\n1\r\n",
        "-ERR invalid password\r\n$1\r\n1\r\n",
        // No reply to the login: the first one is to the PING.
        "$1\r\n1\r\n",
        "-NOPERM User proxy has no permissions to run the 'ping' command\r\n",
    ] {
        let (proof, other, end) = after_login(replies).await;
        assert_eq!(proof, Err(BackendError::Disconnected), "{replies}");
        assert_eq!(other, Err(BackendError::Disconnected), "{replies}");
        assert!(matches!(end, Some(BackendError::AuthRejected(_))), "{replies}: {end:?}");
    }
}

/// Requests one reply and a frame of at most `limit` bytes behind it.
fn request_frame(
    connection: &Multiplexed,
    limit: usize,
) -> tokio::task::JoinHandle<Result<(Vec<Value>, Frame), BackendError>> {
    let connection = connection.clone();
    tokio::spawn(async move {
        let write = |commands: &mut BytesMut| {
            commands.extend_from_slice(b"frame\r\n");
            2
        };
        let (replies, frame) = connection.send_for_frame(None, limit, write).await?;
        Ok((replies.values, frame))
    })
}

fn frame(bytes: &'static [u8]) -> Frame {
    Frame::Reply(Bytes::from_static(bytes))
}

#[tokio::test]
async fn frames_and_values_share_a_connection() {
    let sent = b":1\r\n%1\r\n+a\r\n:1\r\n:2\r\n+b\r\n>1\r\n+push\r\n:3\r\n>1\r\n+push\r\n*6\r\n\
        :1\r\n:2\r\n:3\r\n:4\r\n:5\r\n:6\r\n:4\r\n-WRONGTYPE no\r\n:5\r\n:5\r\n";
    for size in [1, 2, 3, 10, 1000] {
        let (connection, mut theirs, pushes, _driven) = connect();
        let first = request_frame(&connection, 20);
        assert_eq!(line(&mut theirs).await, "frame");
        let value = tokio::spawn(echo(connection.clone(), 2, None));
        assert_eq!(line(&mut theirs).await, "2");
        let (large, error) = (request_frame(&connection, 20), request_frame(&connection, 20));
        assert_eq!(
            (line(&mut theirs).await, line(&mut theirs).await),
            ("frame".into(), "frame".into())
        );
        let last = tokio::spawn(echo(connection.clone(), 5, None));
        assert_eq!(line(&mut theirs).await, "5");
        for piece in sent.chunks(size) {
            theirs.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let one = |number| vec![Value::Int(number)];
        assert_eq!(first.await.unwrap(), Ok((one(1), frame(b"%1\r\n+a\r\n:1\r\n"))), "{size}");
        let text = Value::SimpleString("b".to_owned());
        assert_eq!(value.await.unwrap(), Ok(vec![Value::Int(2), text]), "{size}");
        assert_eq!(large.await.unwrap(), Ok((one(3), Frame::TooLarge)), "{size}");
        assert_eq!(*pushes.lock().unwrap(), 2, "{size}");
        let (replies, error) = error.await.unwrap().unwrap();
        assert_eq!(replies, one(4), "{size}");
        assert!(matches!(error, Frame::Error(Value::ServerError(_))), "{size}: {error:?}");
        assert_eq!(last.await.unwrap(), Ok(vec![Value::Int(5); 2]), "{size}");
    }
}

#[tokio::test]
async fn dropped_frame_request_keeps_its_reply_slot() {
    let (connection, mut theirs, _, _driven) = connect();
    let gone = request_frame(&connection, 20);
    assert_eq!(line(&mut theirs).await, "frame");
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let next = tokio::spawn(echo(connection, 1, None));
    assert_eq!(line(&mut theirs).await, "1");
    theirs.write_all(b":1\r\n*1\r\n:9\r\n:2\r\n:2\r\n").await.unwrap();
    assert_eq!(next.await.unwrap(), Ok(vec![Value::Int(2); 2]));
}

#[tokio::test]
async fn frame_reaches_a_request_of_another_thread() {
    let (connection, mut theirs, _, _driven) = connect();
    let pending = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { request_frame(&connection, 20).await.unwrap() })
    });
    assert_eq!(line(&mut theirs).await, "frame");
    theirs.write_all(b":1\r\n$1\r\na\r\n").await.unwrap();
    let pending = tokio::task::spawn_blocking(|| pending.join()).await.unwrap().unwrap();
    assert_eq!(pending, Ok((vec![Value::Int(1)], frame(b"$1\r\na\r\n"))));
}

/// Runs `act` to its end on a thread with a runtime of its own, as a reader's.
fn on_other_thread(act: impl Future<Output = ()> + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(act);
    })
}

/// Returns a driven connection with a second writer over a socket with small buffers, and its other
/// end.
fn connect_directly() -> (Multiplexed, UnixStream, DriverTask) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4 << 10).unwrap();
    let writer = DirectWriter::new(&ours).unwrap();
    let (connection, driver) = Multiplexed::new(ours, Some(writer), 0, Box::new(drop));
    (connection, theirs, tokio::spawn(driver))
}

/// Replies to each line with its number of bytes.
async fn reply_with_lengths(stream: UnixStream) {
    let (questions, mut answers) = stream.into_split();
    let mut lines = BufReader::new(questions).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        answers.write_all(format!(":{}\r\n", line.len()).as_bytes()).await.unwrap();
    }
}

/// Sends `line` and returns the replies.
async fn send_line(connection: &Multiplexed, line: &[u8]) -> Result<Vec<Value>, BackendError> {
    let write = |commands: &mut BytesMut| {
        commands.extend_from_slice(line);
        commands.extend_from_slice(b"\r\n");
        1
    };
    connection.send_batch(None, write).await
}

/// Sends lines of different lengths, many at a time, and expects their lengths.
async fn send_lines(connection: Multiplexed, mut state: u64) {
    for _ in 0..400 {
        let requests = (0..8).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Most are small, some are larger than the buffers of the socket.
            let length =
                usize::try_from(state >> 33).unwrap() % if state >> 62 == 0 { 50_000 } else { 200 };
            let connection = connection.clone();
            async move {
                let reply = send_line(&connection, &vec![b'x'; length]).await;
                assert_eq!(reply, Ok(vec![Value::Int(i64::try_from(length).unwrap())]));
            }
        });
        futures_util::future::join_all(requests).await;
    }
}

#[tokio::test]
async fn direct_writes_keep_the_order() {
    let (connection, theirs, _driven) = connect_directly();
    tokio::spawn(reply_with_lengths(theirs));
    let readers: Vec<_> =
        (0..4).map(|seed| on_other_thread(send_lines(connection.clone(), seed))).collect();
    send_lines(connection, 4).await;
    for reader in readers {
        tokio::task::spawn_blocking(|| reader.join()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn silent_redis_fails_direct_requests() {
    let (connection, _theirs, _driven) = connect_directly();
    let reader = on_other_thread(async move {
        for number in 0..3 {
            let deadline = Instant::now() + Duration::from_millis(20);
            let reply =
                timeout(Duration::from_secs(10), echo(connection.clone(), number, Some(deadline)));
            assert_eq!(reply.await.unwrap(), Err(BackendError::TimedOut));
        }
    });
    tokio::task::spawn_blocking(|| reader.join()).await.unwrap().unwrap();
}

#[tokio::test]
async fn driver_takes_the_turn_of_a_reader() {
    let (connection, theirs, _driven) = connect_directly();
    tokio::spawn(reply_with_lengths(theirs));
    // The first request makes the driver's thread known.
    assert_eq!(send_line(&connection, b"1").await, Ok(vec![Value::Int(1)]));
    let (sent, submitted) = oneshot::channel();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let reader = on_other_thread({
        let connection = connection.clone();
        async move {
            let mut request = pin!(send_line(&connection, b"123"));
            assert_eq!(request.as_mut().now_or_never(), None);
            // The request is submitted, and this turn lasts until the other thread has its reply.
            sent.send(()).unwrap();
            held.recv().unwrap();
            assert_eq!(request.await, Ok(vec![Value::Int(3)]));
        }
    });
    submitted.await.unwrap();
    let reply = timeout(Duration::from_secs(10), send_line(&connection, b"4567")).await;
    assert_eq!(reply.unwrap(), Ok(vec![Value::Int(4)]));
    release.send(()).unwrap();
    tokio::task::spawn_blocking(|| reader.join()).await.unwrap().unwrap();
}

/// A stream of which the first read acts before it returns a reply.
struct ReplyAfter(Option<Box<dyn FnOnce() + Send>>);

impl AsyncRead for ReplyAfter {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let Some(act) = self.0.take() else { return Poll::Pending };
        act();
        buffer.put_slice(b":1\r\n:1\r\n");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReplyAfter {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn reply_right_after_a_write_is_matched() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let writer = DirectWriter::new(&ours).unwrap();
    let connected = Arc::new(OnceLock::<Multiplexed>::new());
    let (written, is_written) = std::sync::mpsc::channel();
    let (replied, reply) = oneshot::channel();
    let submit = {
        let connected = Arc::clone(&connected);
        move || {
            let connection = connected.get().unwrap().clone();
            // Written while the driver reads, after it has accepted the requests before.
            on_other_thread(async move {
                let request = tokio::spawn(echo(connection, 1, None));
                tokio::task::yield_now().await;
                written.send(()).unwrap();
                replied.send(request.await.unwrap()).unwrap();
            });
            is_written.recv().unwrap();
        }
    };
    let stream = ReplyAfter(Some(Box::new(submit)));
    let (connection, driver) = Multiplexed::new(stream, Some(writer), 0, Box::new(drop));
    connected.set(connection).ok().unwrap();
    tokio::spawn(driver);
    let reply = timeout(Duration::from_secs(10), reply).await.unwrap();
    assert_eq!(reply.unwrap(), Ok(vec![Value::Int(1); 2]));
}
