//! An HTTP/2 client with prior knowledge, which can reset single streams.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::http::key_path;

/// A connection that uses HTTP/2 with prior knowledge.
pub(crate) struct Http2 {
    runtime: Runtime,
    requests: SendRequest<Empty<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
}

/// A request in flight; aborting it resets its stream.
pub(crate) type Stream = JoinHandle<hyper::Result<(u16, Bytes)>>;

impl Http2 {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime for the client");
        let (requests, connection) = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.expect("an HTTP connection");
            let shaken = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            shaken.expect("the proxy speaks HTTP/2")
        });
        Self { connection: runtime.spawn(connection), runtime, requests }
    }

    pub(crate) fn send(&self, key: &str) -> Stream {
        let uri = format!("http://proxy{}", key_path(key.as_bytes()));
        let request = hyper::Request::get(uri).body(Empty::new()).expect("a request");
        let mut requests = self.requests.clone();
        self.runtime.spawn(async move {
            let response = requests.send_request(request).await?;
            let status = response.status().as_u16();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        })
    }

    /// Sends requests, four at a time, until the server announces the end of the connection.
    /// Counts the answered ones.
    ///
    /// # Errors
    /// The error of a request that was sent and got no response.
    pub(crate) fn read_until_goaway(
        &self,
        key: &str,
        answered: &AtomicUsize,
    ) -> Result<(), String> {
        loop {
            for stream in [(); 4].map(|()| self.send(key)) {
                match self.runtime.block_on(stream).expect("a request that goes on") {
                    Ok(response) => {
                        assert_eq!(response.0, 200, "{response:?}");
                        answered.fetch_add(1, SeqCst);
                    }
                    // The client knew of the end, and sent nothing.
                    Err(error) if error.is_canceled() || error.is_closed() => return Ok(()),
                    // Its stream is above the last one that GOAWAY names, and may be repeated.
                    Err(error) if format!("{error:?}").contains("GoAway(b\"\", NO_ERROR") => {
                        return Ok(());
                    }
                    Err(error) => return Err(format!("{error:?}")),
                }
            }
        }
    }

    /// Returns the status and the body.
    pub(crate) fn answer(&self, stream: Stream) -> (u16, Bytes) {
        let answer = self.runtime.block_on(stream).expect("a request that goes on");
        answer.expect("an answer")
    }

    /// Returns the end of the connection once it has come.
    pub(crate) fn end(self) -> hyper::Result<()> {
        self.runtime.block_on(self.connection).expect("a connection that goes on")
    }
}
