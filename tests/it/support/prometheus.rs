//! A real Prometheus that scrapes one proxy, with the configuration and the alerts of this project.
//!
//! Model: a process with its data in a temporary directory, from Debian's package prometheus.
//! Without it, the tests that need one are skipped with a message.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::http::{self, Client};
use super::skip::skipped_without;
use super::wait::eventually;

/// A running Prometheus.
pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Prometheus {
    /// Scrapes `target` every half second. Returns nothing where there is no Prometheus.
    pub(crate) fn start(target: SocketAddr) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let dashboards = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
        let shipped =
            fs::read_to_string(dashboards.join("prometheus.yml")).expect("the configuration");
        let alerts = dashboards.join("alerts.yml").display().to_string();
        let config = shipped.replace("cache:8080", &target.to_string());
        let config =
            config.replace("alerts.yml", &alerts).replace("interval: 5s", "interval: 500ms");
        assert!(config.contains(&target.to_string()) && config.contains("500ms"), "{config}");
        let file = directory.path().join("prometheus.yml");
        fs::write(&file, config).expect("the configuration is written");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let spawned = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skipped_without("prometheus", "it is Debian's package of this name");
                return None;
            }
            Err(error) => panic!("prometheus does not start: {error}"),
        };
        let prometheus = Self { child, address, _directory: directory };
        eventually("prometheus is ready", || {
            std::net::TcpStream::connect(address).ok()?;
            (http::get(address, "/-/ready").status == 200).then_some(())
        });
        Some(prometheus)
    }

    /// Returns the current samples of a query, without those that are no number.
    #[track_caller]
    pub(crate) fn query(&self, expression: &str) -> Vec<f64> {
        let answer = self.get(&format!("/api/v1/query?query={}", escaped(expression)));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let samples = answer["data"]["result"].as_array().expect("samples").iter();
        let value =
            |sample: &Value| sample["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
        samples.filter_map(value).filter(|value| !value.is_nan()).collect()
    }

    /// Returns the labels of each series of a query that has exemplars, and the traces of these.
    pub(crate) fn exemplars(&self, expression: &str) -> Vec<(Value, Vec<String>)> {
        let all = "start=0&end=9999999999";
        let answer =
            self.get(&format!("/api/v1/query_exemplars?{all}&query={}", escaped(expression)));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let trace =
            |exemplar: &Value| exemplar["labels"]["trace_id"].as_str().expect("a trace").to_owned();
        let series = answer["data"].as_array().expect("series").iter();
        series
            .map(|one| {
                let exemplars = one["exemplars"].as_array().expect("exemplars");
                (one["seriesLabels"].clone(), exemplars.iter().map(trace).collect())
            })
            .collect()
    }

    /// Returns the name, health and state of each alert.
    pub(crate) fn alerts(&self) -> Vec<(String, String, String)> {
        let answer = self.get("/api/v1/rules");
        let groups = answer["data"]["groups"].as_array().expect("groups").clone();
        let rules =
            groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone());
        let text = |rule: &Value, name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        rules
            .map(|rule| (text(&rule, "name"), text(&rule, "health"), text(&rule, "state")))
            .collect()
    }

    fn get(&self, path: &str) -> Value {
        let response = Client::connect(self.address).get(path);
        serde_json::from_slice(&response.body).expect("JSON")
    }
}

/// Returns an expression as a part of a query string.
fn escaped(expression: &str) -> String {
    let mut text = String::new();
    for byte in expression.bytes() {
        write!(text, "%{byte:02X}").expect("a string takes all");
    }
    text
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // An error means that the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
