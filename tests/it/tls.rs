//! TLS on the proxy's own listeners.
//!
//! Promise: real clients work, certificates change at SIGHUP, required client certificates are
//! enforced, and a handshake without end is cut off.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that panics has failed"
)]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::clients;
use crate::support::secret_file::reload;
use crate::support::serving::{await_metric, await_ready, config, metric};
use crate::support::{Authority, Proxy, RedisServer, Reload, eventually};

const BOUND: Duration = Duration::from_secs(20);
const SECTIONS: [&str; 2] = ["http", "resp"];

/// A proxy with TLS on both listeners, with a certificate of this authority for `localhost`, and
/// its Redis.
struct Encrypted {
    proxy: Proxy,
    redis: RedisServer,
    authority: Authority,
}

pub(crate) fn settings(section: &str, (certificate, key): &(PathBuf, PathBuf)) -> String {
    format!(
        "{section}.tls_cert_file = \"{}\"\n{section}.tls_key_file = \"{}\"\n",
        certificate.display(),
        key.display()
    )
}

fn encrypted(more: impl Fn(&Authority) -> String) -> Encrypted {
    let (redis, authority) = (RedisServer::start(), Authority::new());
    let files = authority.issue("localhost");
    let both = SECTIONS.map(|section| settings(section, &files)).concat();
    let more = more(&authority);
    let few = SECTIONS.map(|section| format!("{section}.max_connections = 500\n")).concat();
    let few = if more.contains("max_connections") { "" } else { &few };
    let more = format!("resp.listen = \"127.0.0.1:0\"\n{few}{both}{more}");
    let proxy = Proxy::start(&config(&redis.url(), &more));
    await_ready(&proxy);
    redis.command(&["SET", "greeting", "hello"]);
    Encrypted { proxy, redis, authority }
}

/// Returns settings that require client certificates of this authority on both listeners.
fn asking(authority: &Authority) -> String {
    SECTIONS
        .map(|section| {
            format!("{section}.tls_client_ca_file = \"{}\"\n", authority.file().display())
        })
        .concat()
}

/// Returns the configuration of a client: the trusted authority, and its own certificate.
fn client(authority: &Authority, shown: Option<&(PathBuf, PathBuf)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.file()).unwrap()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
                .unwrap()
        }
    })
}

type Line = StreamOwned<ClientConnection, TcpStream>;

fn connect(address: SocketAddr, client: &Arc<ClientConfig>) -> io::Result<Line> {
    let name = ServerName::try_from("localhost").unwrap();
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(BOUND))?;
    socket.set_write_timeout(Some(BOUND))?;
    let mut line =
        StreamOwned::new(ClientConnection::new(Arc::clone(client), name).unwrap(), socket);
    line.conn.complete_io(&mut line.sock)?;
    Ok(line)
}

/// Sends `sent` and returns the response, up to `most` bytes.
fn exchange(line: &mut Line, sent: &str, most: usize) -> io::Result<String> {
    line.write_all(sent.as_bytes())?;
    line.flush()?;
    let mut answer = vec![0; most];
    line.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn ping(line: &mut Line) -> io::Result<()> {
    let answer = exchange(line, "PING\r\n", 7)?;
    if answer == "+PONG\r\n" { Ok(()) } else { panic!("{answer:?}") }
}

/// Requests /livez.
fn livez(line: &mut Line) -> io::Result<()> {
    let answer = exchange(line, "GET /livez HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n", 12)?;
    if answer == "HTTP/1.1 200" || answer == "HTTP/1.1 404" { Ok(()) } else { panic!("{answer:?}") }
}

fn curl(arguments: &[&str]) -> Output {
    Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).output().expect("curl")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn curl_uses_http1_and_http2_over_tls() {
    let Encrypted { redis: _redis, proxy, authority } = encrypted(|_| String::new());
    let (url, ca) =
        (format!("https://localhost:{}/keys/greeting", proxy.http().port()), authority.file());
    let ca = ca.to_str().unwrap();
    for (version, expected) in [("--http1.1", "hello 200 1.1"), ("--http2", "hello 200 2")] {
        for oldest in ["--tlsv1.2", "--tlsv1.3"] {
            let output = curl(&[
                "--cacert",
                ca,
                version,
                oldest,
                "-w",
                " %{http_code} %{http_version}",
                &url,
            ]);
            assert_eq!(text(&output), expected, "{version} {oldest}: {output:?}");
        }
    }
    let old = curl(&["--cacert", ca, "--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0", &url]);
    assert!(!old.status.success(), "{old:?}");
}

#[test]
fn plaintext_on_tls_port_reveals_nothing() {
    let Encrypted { redis: _redis, proxy, authority: _authority } = encrypted(|_| String::new());
    for (address, sent) in [
        (proxy.http(), "GET /keys/greeting HTTP/1.1\r\nHost: p\r\n\r\n"),
        (proxy.resp_address(), "GET greeting\r\n"),
    ] {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(BOUND)).unwrap();
        socket.write_all(sent.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // The connection may be reset.
        _ = socket.read_to_end(&mut answer);
        assert!(answer.len() < 16 && !answer.windows(5).any(|part| part == b"hello"), "{answer:?}");
    }
}

#[test]
fn client_certificate_is_required_if_configured() {
    let Encrypted { redis: _redis, proxy, authority } = encrypted(asking);
    let outsider = Authority::new();
    let (known, unknown) = (authority.issue("client"), outsider.issue("client"));
    for (address, query) in
        [(proxy.http(), livez as fn(&mut Line) -> _), (proxy.resp_address(), ping)]
    {
        let try_with = |shown: Option<&_>| {
            connect(address, &client(&authority, shown)).and_then(|mut line| query(&mut line))
        };
        try_with(Some(&known)).expect("a client that is known");
        assert!(try_with(None).is_err(), "{address}: nothing shown");
        assert!(try_with(Some(&unknown)).is_err(), "{address}: another authority's");
    }
    let url = format!("https://localhost:{}/keys/greeting", proxy.http().port());
    let ca = authority.file();
    let trusting = ["--cacert", ca.to_str().unwrap(), &url];
    assert!(!curl(&trusting).status.success());
    let shown = ["--cert", known.0.to_str().unwrap(), "--key", known.1.to_str().unwrap()];
    assert_eq!(text(&curl(&[&trusting[..], &shown].concat())), "hello");
}

#[test]
fn redis_clients_connect_over_tls() {
    let Encrypted { redis, proxy, authority } = encrypted(asking);
    let (certificate, key) = authority.issue("client");
    let (port, ca) = (proxy.resp_address().port().to_string(), authority.file());
    let large = "x".repeat(3_000_000);
    redis.command(&["SET", "large", &large]);
    let cli = |words: &[&str]| {
        let mut cli = Command::new("redis-cli");
        cli.args(["-h", "localhost", "-p", &port, "--tls", "--cacert"]).arg(&ca);
        cli.arg("--cert").arg(&certificate).arg("--key").arg(&key).args(words);
        text(&cli.output().expect("redis-cli")).trim_end().to_owned()
    };
    assert_eq!(cli(&["SET", "key", "value"]), "OK");
    assert_eq!(cli(&["GET", "key"]), "value");
    for _ in 0..2 {
        assert!(cli(&["GET", "large"]) == large, "the large value");
    }
    let program = "import sys, redis\n\
                   host, port, ca, cert, key = sys.argv[1:]\n\
                   for protocol in (2, 3):\n\
                   \x20   r = redis.Redis(host, int(port), protocol=protocol, ssl=True, \
                   ssl_ca_certs=ca, ssl_certfile=cert, ssl_keyfile=key)\n\
                   \x20   assert r.set('from-python', b'y' * 5_000_000)\n\
                   \x20   assert [len(r.get('from-python')) for _ in range(3)] == [5_000_000] * 3\n\
                   \x20   pipe = r.pipeline()\n\
                   \x20   for n in range(2000): pipe.set(f'k{n}', n); pipe.get(f'k{n}')\n\
                   \x20   assert pipe.execute()[1::2] == [str(n).encode() for n in range(2000)]\n\
                   \x20   p = r.pubsub(); p.subscribe('news'); p.get_message(timeout=5)\n\
                   \x20   r.publish('news', 'z' * 100_000)\n\
                   \x20   assert len(p.get_message(timeout=5)['data']) == 100_000\n\
                   \x20   r.close()\n\
                   print('done')\n";
    let Some(mut python) = clients::python() else { return };
    let output =
        python.args(["-c", program, "localhost", &port]).args([&ca, &certificate, &key]).output();
    let output = output.expect("python");
    assert_eq!(text(&output).trim_end(), "done", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn request_before_close_notify_is_answered() {
    let Encrypted { redis, proxy, authority } = encrypted(|_| String::new());
    let large = "x".repeat(4 << 20);
    redis.command(&["SET", "large", &large]);
    let expected =
        6 * (large.len() + format!("${}\r\n\r\n", large.len()).len()) + "+PONG\r\n".len();
    for politely in [true, false] {
        let mut line = connect(proxy.resp_address(), &client(&authority, None)).unwrap();
        line.write_all("GET large\r\n".repeat(6).as_bytes()).unwrap();
        line.write_all(b"PING\r\n").unwrap();
        if politely {
            line.conn.send_close_notify();
        }
        line.flush().unwrap();
        while line.conn.wants_write() {
            line.conn.write_tls(&mut line.sock).unwrap();
        }
        line.sock.shutdown(Shutdown::Write).unwrap();
        // More than all buffers hold, so the proxy has to wait for this reader.
        thread::sleep(Duration::from_millis(300));
        let mut answers = Vec::new();
        line.read_to_end(&mut answers).expect("an end that is said");
        assert_eq!(answers.len(), expected, "politely: {politely}");
        assert!(answers.ends_with(b"+PONG\r\n"));
    }
}

#[test]
fn large_value_reaches_a_slow_https_reader() {
    let Encrypted { redis, proxy, authority } = encrypted(|_| String::new());
    let large = "y".repeat(8 << 20);
    redis.command(&["SET", "large", &large]);
    let mut line = connect(proxy.http(), &client(&authority, None)).unwrap();
    line.write_all(b"GET /keys/large HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n").unwrap();
    line.flush().unwrap();
    thread::sleep(Duration::from_millis(300));
    let mut answer = Vec::new();
    line.read_to_end(&mut answer).expect("an end that is said");
    let body = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
    assert!(answer[body..] == *large.as_bytes(), "{} bytes", answer.len() - body);
}

#[test]
fn reloaded_certificate_keeps_connections() {
    let Encrypted { redis: _redis, proxy, authority } = encrypted(|_| String::new());
    let trusting = client(&authority, None);
    let shown = |line: &Line| line.conn.peer_certificates().unwrap()[0].clone();
    let listeners = [(proxy.http(), livez as fn(&mut Line) -> _), (proxy.resp_address(), ping)];
    let mut before: Vec<_> =
        listeners.iter().map(|(address, _)| connect(*address, &trusting).unwrap()).collect();
    ping(&mut before[1]).unwrap();

    authority.issue("localhost");
    assert_eq!(
        shown(&connect(proxy.resp_address(), &trusting).unwrap()),
        shown(&before[1]),
        "before the reload"
    );
    assert_eq!(reload(&proxy), Reload::Reloaded);
    for ((address, query), old) in listeners.iter().zip(&mut before) {
        let mut new = connect(*address, &trusting).unwrap();
        assert_ne!(shown(&new), shown(old), "{address}");
        query(&mut new).unwrap();
        query(old).expect("an old connection");
    }

    proxy.expect_log("config refused");
    let (certificate, key) = authority.issue("localhost");
    let right = [fs::read(&certificate).unwrap(), fs::read(&key).unwrap()];
    let other = authority.issue("other");
    let kept = shown(&connect(proxy.http(), &trusting).unwrap());
    for (bad, with) in [
        (&certificate, &b""[..]),
        (&certificate, b"no PEM"),
        (&key, &fs::read(&other.1).unwrap()),
        (&key, b""),
    ] {
        fs::write(&certificate, &right[0]).unwrap();
        fs::write(&key, &right[1]).unwrap();
        fs::write(bad, with).unwrap();
        assert_eq!(reload(&proxy), Reload::Refused, "{}", bad.display());
        assert_eq!(shown(&connect(proxy.http(), &trusting).unwrap()), kept, "{}", bad.display());
    }
    for line in proxy.log_lines() {
        assert!(!line.text().contains("BEGIN"), "{}", line.text());
    }
}

#[test]
fn revoked_client_cannot_resume_a_session() {
    let Encrypted { redis: _redis, proxy, authority } = encrypted(asking);
    let known = client(&authority, Some(&authority.issue("client")));
    // It receives tickets for a resumption.
    for _ in 0..2 {
        ping(&mut connect(proxy.resp_address(), &known).unwrap()).unwrap();
    }
    let next = Authority::new();
    // The proxy's own certificate is still of the old authority.
    let known_next = client(&authority, Some(&next.issue("client")));
    fs::write(authority.file(), fs::read(next.file()).unwrap()).unwrap();
    assert_eq!(reload(&proxy), Reload::Reloaded);
    let again = connect(proxy.resp_address(), &known).and_then(|mut line| ping(&mut line));
    assert!(again.is_err(), "a client of the old authority");
    ping(&mut connect(proxy.resp_address(), &known_next).unwrap())
        .expect("a client of the new authority");
}

#[test]
fn endless_handshake_times_out_and_counts() {
    let timeout =
        SECTIONS.map(|section| format!("{section}.tls_handshake_timeout = \"700ms\"\n")).concat();
    let Encrypted { redis: _redis, proxy, authority } =
        encrypted(|_| format!("{timeout}resp.max_connections = 2\nhttp.max_connections = 2\n"));
    for address in [proxy.http(), proxy.resp_address()] {
        let begun = Instant::now();
        let mut silent: Vec<_> = (0..2).map(|_| TcpStream::connect(address).unwrap()).collect();
        // The beginning of a message, and then nothing.
        silent[1].write_all(&[22, 3, 1, 1]).unwrap();
        let trusting = client(&authority, None);
        let refused = connect(address, &trusting);
        assert!(
            refused.is_err() || begun.elapsed() > Duration::from_millis(600),
            "{address}: one more than two"
        );
        for mut socket in silent {
            socket.set_read_timeout(Some(BOUND)).unwrap();
            let mut answer = Vec::new();
            _ = socket.read_to_end(&mut answer);
            assert!(
                begun.elapsed() >= Duration::from_millis(600),
                "{address}: {:?}",
                begun.elapsed()
            );
        }
        assert!(begun.elapsed() < Duration::from_secs(8), "{address}: {:?}", begun.elapsed());
        eventually("room again", || connect(address, &trusting).is_ok().then_some(()));
    }
}

#[test]
fn failed_handshakes_counted_port_scans_not() {
    let timeout =
        SECTIONS.map(|section| format!("{section}.tls_handshake_timeout = \"700ms\"\n")).concat();
    let Encrypted { redis: _redis, proxy, authority } =
        encrypted(|authority| format!("{timeout}{}", asking(authority)));
    let outsider = Authority::new();
    let known = authority.issue("client");
    for (section, address, query) in
        [("http", proxy.http(), livez as fn(&mut Line) -> _), ("resp", proxy.resp_address(), ping)]
    {
        let series = format!("rejected_total{{front_end=\"{section}\",reason=\"tls\"}}");
        let try_with = |client: &Arc<ClientConfig>| {
            connect(address, client).and_then(|mut line| query(&mut line))
        };
        // Each connection ends before the next begins, so that none is counted late.
        let done = || {
            await_metric(&proxy, &format!("connections{{front_end=\"{section}\"}}"), 0.0);
            metric(&proxy, &series).to_string()
        };
        try_with(&client(&authority, Some(&known))).expect("a client that is known");
        drop(TcpStream::connect(address).unwrap());
        assert_eq!(done(), "0", "{section}: known, and a knock");
        assert!(try_with(&client(&authority, None)).is_err());
        assert_eq!(done(), "1", "{section}: without a certificate");
        assert!(try_with(&client(&outsider, Some(&known))).is_err());
        assert_eq!(done(), "2", "{section}: an untrusted proxy certificate");
        TcpStream::connect(address)
            .unwrap()
            .write_all(b"GET / HTTP/1.1\r\nHost: p\r\n\r\n")
            .unwrap();
        assert_eq!(done(), "3", "{section}: in clear");
        let mut silent = TcpStream::connect(address).unwrap();
        silent.set_read_timeout(Some(BOUND)).unwrap();
        _ = silent.read_to_end(&mut Vec::new());
        assert_eq!(done(), "4", "{section}: too late");
    }
}

#[test]
fn pending_handshake_does_not_delay_shutdown() {
    let Encrypted { redis: _redis, proxy, authority: _authority } =
        encrypted(|_| "daemon.drain_timeout = \"60s\"\n".to_owned());
    let _silent =
        [proxy.http(), proxy.resp_address()].map(|address| TcpStream::connect(address).unwrap());
    eventually("both to be counted", || {
        (proxy.metrics().value(r#"redis_proxy_connections{front_end="resp"}"#) == Some(1.0))
            .then_some(())
    });
    let begun = Instant::now();
    proxy.finish();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn health_uses_tls_when_configured() {
    let (redis, authority) = (RedisServer::start(), Authority::new());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tls = settings("http", &authority.issue("anything.example"));
    let proxy =
        Proxy::start(&format!("http.listen = \"{free}\"\nredis.url = \"{}\"\n{tls}", redis.url()));
    let file = proxy.config_path();
    let health = |question: &[&str]| {
        let arguments = [&["health", "--config", file.to_str().unwrap()], question].concat();
        Proxy::spawn_raw(&arguments, &[])
    };
    eventually("readiness", || health(&[]).status.success().then_some(()));
    let output = health(&["--live"]);
    assert!(output.status.success() && text(&output).contains("live"), "{output:?}");
}

#[test]
fn contradicting_tls_settings_are_rejected() {
    for (settings, part) in [
        (
            "http.tls_cert_file = \"/c\"",
            "http.tls_cert_file: found without what belongs to it, expected http.tls_key_file",
        ),
        (
            "resp.tls_key_file = \"/k\"",
            "resp.tls_key_file: found without what belongs to it, expected resp.tls_cert_file",
        ),
        (
            "http.tls_client_ca_file = \"/a\"",
            "http.tls_client_ca_file: found without what belongs to it, expected \
                http.tls_cert_file",
        ),
        ("resp.tls_handshake_timeout = 0", "resp.tls_handshake_timeout: found 0s"),
        (
            "resp.listen = \"unix:///s\"\nresp.tls_cert_file = \"/c\"\nresp.tls_key_file = \"/k\"",
            "resp.tls_cert_file: found with a unix socket",
        ),
        (
            "http.tls_cert_file = \"/nowhere\"\nhttp.tls_key_file = \"/nowhere\"",
            "http.tls_cert_file: \"/nowhere\" cannot be used",
        ),
    ] {
        let (code, received) =
            Proxy::builder(&format!("http.listen = \"127.0.0.1:0\"\n{settings}")).run_to_end();
        assert!(code == 78 && received.contains(part), "{settings}: {code} {received}");
    }
}
