//! A proxy without a reader of its log, so that a test controls its standard error.
//!
//! Model: the test makes the listeners and passes them on, so their addresses are known without the
//! log.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::metrics::Metrics;
use crate::support::serving::config;
use crate::support::{Proxy, http, within};

const END_BOUND: Duration = Duration::from_secs(15);

/// A proxy that is killed when this is dropped.
pub(crate) struct UnloggedProxy {
    /// The process with its directory.
    process: (Child, TempDir),
    listeners: [TcpListener; 3],
}

impl UnloggedProxy {
    /// Starts a proxy for a Redis at this address, with `more` settings.
    pub(crate) fn start(url: &str, more: &str, stderr: impl Into<Stdio>) -> Self {
        Self::start_with(url, more, stderr, &[])
    }

    /// Starts a proxy with these variables in its environment.
    pub(crate) fn start_with(
        url: &str,
        more: &str,
        stderr: impl Into<Stdio>,
        variables: &[(&str, &str)],
    ) -> Self {
        let listeners =
            [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
        let process = launch(url, more, stderr, &listeners, variables);
        Self { process, listeners }
    }

    /// Kills it and starts another with the same sockets, as a service manager does; `meanwhile`
    /// runs in between.
    pub(crate) fn restart_after_kill<T>(
        &mut self,
        url: &str,
        more: &str,
        meanwhile: impl Fn(&Self) -> T,
    ) -> T {
        self.signal(Signal::KILL);
        self.process.0.wait().expect("a child");
        let done = meanwhile(self);
        self.process = launch(url, more, Stdio::null(), &self.listeners, &[]);
        done
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.address(0)
    }

    pub(crate) fn resp(&self) -> SocketAddr {
        self.address(1)
    }

    pub(crate) fn metric(&self, series: &str) -> f64 {
        let response = http::get(self.address(2), "/metrics");
        let metrics = Metrics::parse(String::from_utf8(response.body).expect("metrics are text"));
        metrics.value(&format!("redis_proxy_{series}")).unwrap_or_else(|| panic!("no {series}"))
    }

    pub(crate) fn is_ready(&self) -> bool {
        http::get(self.address(2), "/readyz").status == 200
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process.0), signal).expect("the proxy takes the signal");
    }

    /// Sends SIGTERM; returns the exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        let status = within(END_BOUND, || self.process.0.try_wait().expect("a child"))?;
        status.code().or(status.signal().map(|signal| 128 + signal))
    }

    fn address(&self, listener: usize) -> SocketAddr {
        self.listeners[listener].local_addr().expect("a listener has an address")
    }
}

impl Drop for UnloggedProxy {
    fn drop(&mut self) {
        // An error means that the process has ended already.
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
    }
}

fn launch(
    url: &str,
    more: &str,
    stderr: impl Into<Stdio>,
    listeners: &[TcpListener; 3],
    variables: &[(&str, &str)],
) -> (Child, TempDir) {
    let [http, resp, admin] = listeners;
    let config = config(url, &format!("daemon.worker_threads = 1\n{more}"));
    let builder = Proxy::builder(&config);
    let builder =
        variables.iter().fold(builder, |builder, (name, value)| builder.environment(name, value));
    let builder = builder.inherit(&[("http", http), ("resp", resp), ("admin", admin)]);
    let (mut command, directory) = builder.into_command();
    let child = command.stdout(Stdio::null()).stderr(stderr).spawn().expect("the proxy starts");
    (child, directory)
}
