//! A bridge from HTTP to Redis with a round trip a command, to compare the REST front end with.
//!
//! serverless-redis-http works so: a pipeline's commands go to Redis one by one, each after the
//! reply to the one before. This bridge does what that needs and nothing else. It has no token, no
//! check, no log and no pool, and a thread for each connection. So it costs less than any bridge
//! that people could use.
//!
//! Usage: `bridge PORT REDIS_PORT`.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let mut ports = std::env::args().skip(1).map(|word| word.parse::<u16>());
    let mut port = || ports.next().context("two ports")?.context("a port");
    let (own, redis) = (port()?, port()?);
    for stream in TcpListener::bind((Ipv4Addr::LOCALHOST, own))?.incoming() {
        let stream = stream?;
        // A connection that fails ends, and the load counts that.
        thread::spawn(move || serve(stream, redis));
    }
    Ok(())
}

fn serve(stream: TcpStream, redis: u16) -> anyhow::Result<()> {
    let redis = TcpStream::connect((Ipv4Addr::LOCALHOST, redis))?;
    for stream in [&stream, &redis] {
        stream.set_nodelay(true)?;
    }
    let mut redis = BufReader::new(redis);
    let mut client = BufReader::new(stream);
    while let Some(body) = read_request(&mut client)? {
        let commands: Vec<Vec<&str>> = serde_json::from_slice(&body)?;
        let replies = commands.iter().map(|command| run(&mut redis, command));
        let replies = replies.collect::<io::Result<Vec<_>>>()?;
        let replies: Vec<_> =
            replies.iter().map(|reply| serde_json::json!({ "result": reply })).collect();
        let body = serde_json::to_vec(&replies)?;
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        client.get_mut().write_all(&[head.as_bytes(), &body].concat())?;
    }
    Ok(())
}

/// Returns the body of the next request; `None` at the end of the connection.
fn read_request(client: &mut BufReader<TcpStream>) -> anyhow::Result<Option<Vec<u8>>> {
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        if client.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse()?;
            }
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    Ok(Some(body))
}

/// Returns the reply to a command, which is a bulk string.
fn run(redis: &mut BufReader<TcpStream>, command: &[&str]) -> io::Result<String> {
    let words = command.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    let line = format!("*{}\r\n{}", command.len(), words.collect::<String>());
    redis.get_mut().write_all(line.as_bytes())?;
    let mut head = String::new();
    redis.read_line(&mut head)?;
    let length: usize =
        head.trim_start_matches('$').trim_end().parse().map_err(io::Error::other)?;
    let mut value = vec![0; length + 2];
    redis.read_exact(&mut value)?;
    value.truncate(length);
    String::from_utf8(value).map_err(io::Error::other)
}
