//! A real collector of traces (rotel) and the spans that it received.
//!
//! Model: a process that accepts OTLP over gRPC and HTTP and writes each span to standard output.
//! scripts/test puts it on PATH; without it, the tests that need one are skipped with a message.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::skip::skipped_without;
use super::wait::{eventually, within};

const START_BOUND: Duration = Duration::from_secs(20);

/// A running collector.
pub(crate) struct Collector {
    child: Child,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
    _directory: TempDir,
}

/// A span as the collector received it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Span {
    /// The fields `Trace ID`, `Parent ID`, `ID`, `Name`, `Kind`, `TraceState` and `Status code`, as
    /// the collector writes them.
    pub(crate) fields: BTreeMap<String, String>,
    /// The attributes with their types, as in `Str(GET)`.
    pub(crate) attributes: BTreeMap<String, String>,
    /// The trace and the span of each link.
    pub(crate) links: Vec<(String, String)>,
}

impl Span {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    pub(crate) fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

impl Collector {
    /// Starts a collector; returns nothing where there is none.
    pub(crate) fn start() -> Option<Self> {
        loop {
            let mut collector = Self::try_start()?;
            let answers = |address: &SocketAddr| TcpStream::connect(address).is_ok();
            // Another program may have taken a port meanwhile; then the collector ends by itself.
            let up = within(START_BOUND, || {
                let ended = collector.child.try_wait().expect("a child").is_some();
                let up = answers(&collector.grpc) && answers(&collector.http);
                (ended || up).then_some(up && !ended)
            });
            if up.expect("a collector that starts or ends") {
                return Some(collector);
            }
        }
    }

    fn try_start() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [grpc, http] = [free_address(), free_address()];
        let spawned = Command::new("rotel-agent")
            .args([
                "start",
                "--exporter",
                "blackhole",
                "--debug-log",
                "traces",
                "--debug-log-verbosity",
                "detailed",
            ])
            .args([
                "--otlp-grpc-endpoint",
                &grpc.to_string(),
                "--otlp-http-endpoint",
                &http.to_string(),
            ])
            .arg("--pid-file")
            .arg(directory.path().join("pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skipped_without("rotel-agent", "scripts/collector fetches it");
                return None;
            }
            Err(error) => panic!("the collector does not start: {error}"),
        };
        let output = child.stdout.take().expect("standard output is piped");
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let grown = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                grown.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Some(Self { child, grpc, http, lines, _directory: directory })
    }

    /// Returns the spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        spans(&self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the spans once there are this many.
    #[track_caller]
    pub(crate) fn await_spans(&self, count: usize) -> Vec<Span> {
        let spans = eventually(&format!("{count} spans"), || {
            let spans = self.spans();
            // The last one may be incomplete.
            let whole = spans
                .iter()
                .all(|span| span.attributes.contains_key("db.namespace") || span.is_answered());
            (spans.len() >= count && whole).then_some(spans)
        });
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    /// Whether the collector wrote this line about its resource, beside the spans.
    pub(crate) fn has_line(&self, line: &str) -> bool {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|written| written.trim() == line)
    }
}

impl Span {
    fn is_answered(&self) -> bool {
        self.attributes.contains_key("http.response.status_code")
            || self.attributes.contains_key("redis_proxy.outcome")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // An error means that the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address")
}

fn spans(lines: &[String]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for line in lines {
        let line = line.trim();
        if line.starts_with("Span #") {
            spans.push(Span::default());
        } else if line.starts_with("ResourceSpans #") {
            // The following lines are about the resource and belong to no span.
            spans.push(Span::default());
        } else if let Some(span) = spans.last_mut() {
            span.read(line);
        }
    }
    spans.retain(|span| span.fields.contains_key("ID"));
    spans
}

impl Span {
    fn read(&mut self, line: &str) {
        let Some(entry) = line.strip_prefix("-> ") else {
            if line.starts_with("SpanLink #") {
                self.links.push(Default::default());
            } else if let Some((name, value)) = line.split_once(':') {
                self.fields.insert(name.trim().to_owned(), value.trim().to_owned());
            }
            return;
        };
        let (name, value) = entry.split_once(": ").unwrap_or((entry.trim_end_matches(':'), ""));
        match (self.links.last_mut(), name) {
            (Some((trace, _)), "Trace ID") => value.clone_into(trace),
            (Some((_, span)), "ID") => value.clone_into(span),
            (Some(_), _) => {}
            (None, _) => _ = self.attributes.insert(name.to_owned(), value.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_parse_with_attributes_and_links() {
        let text = "ResourceSpans #0\nResource attributes:\n     -> service.name: Str(x)\n\
            Span #0\n    Trace ID       : t1\n    \
                    ID             : a\nAttributes:\n     -> n: Int(1)\nLinks:\n\
                    SpanLink #0\n     -> Trace ID: t2\n     -> ID: b\n\
                    Span #1\n    ID             : c\n";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let spans = spans(&lines);
        assert_eq!(spans.len(), 2);
        assert_eq!((spans[0].field("Trace ID"), spans[0].field("ID")), ("t1", "a"));
        assert_eq!(spans[0].attribute("n"), "Int(1)");
        assert_eq!(spans[0].links, [("t2".to_owned(), "b".to_owned())]);
        assert!(spans[1].attributes.is_empty());
    }
}
