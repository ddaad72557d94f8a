//! A Chromium without a window, for tests of the status page.
//!
//! Model: one tab. Commands of the `DevTools` protocol go through a pipe, as JSON with a zero byte
//! at its end. Responses and events come back through another pipe. Events are kept for the test.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::skip::skipped_without;
use super::within;

/// The programs to try: the names that distributions and runners have for it.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
/// The longest time until a response. A cold start of a browser takes seconds.
const BOUND: Duration = Duration::from_secs(60);
const EXIT_BOUND: Duration = Duration::from_secs(10);

/// The switches of a browser that shows one page, and connects to nothing else.
const SWITCHES: [&str; 11] = [
    "--headless",
    "--remote-debugging-pipe",
    // Chromium's own sandbox does not start as root, and the page is the project's own.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
];

/// Whether the page is dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Light,
    Dark,
}

/// A running browser. It ends with this value.
pub(crate) struct Browser {
    process: Child,
    /// The pipe of the commands. Without it the browser ends.
    commands: Option<ChildStdin>,
    messages: Receiver<Value>,
    events: Vec<Value>,
    last_id: u64,
    session: Option<String>,
    profile: TempDir,
}

impl Browser {
    /// Starts a browser with an empty tab; returns nothing where there is none.
    pub(crate) fn start() -> Option<Self> {
        let has = |program: &&&str| {
            let found = Command::new(program).arg("--version").output();
            found.is_ok_and(|output| output.status.success())
        };
        let Some(program) = PROGRAMS.iter().find(has) else {
            skipped_without("chromium", "it is Debian's package of this name");
            return None;
        };
        let mut browser = Self::spawn(program);
        let target = browser.command("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.command("Target.attachToTarget", &attach);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.command(&format!("{domain}.enable"), &json!({}));
        }
        Some(browser)
    }

    fn spawn(program: &str) -> Self {
        let profile = TempDir::new().expect("a directory");
        // Chromium's pipes are the descriptors 3 and 4.
        let script = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#;
        let mut command = Command::new("sh");
        command.args(["-c", script, program]).args(SWITCHES);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        // It writes settings and caches there, too.
        command.env("HOME", profile.path()).env("XDG_CONFIG_HOME", profile.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("a shell");
        let mut replies = BufReader::new(process.stdout.take().expect("a pipe"));
        let (send, messages) = channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while replies.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { return };
                if send.send(value).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let commands = process.stdin.take();
        let (events, last_id, session) = (Vec::new(), 0, None);
        Self { process, commands, messages, events, last_id, session, profile }
    }

    /// Sends a command and returns its result.
    #[track_caller]
    fn command(&mut self, method: &str, parameters: &Value) -> Value {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let commands = self.commands.as_mut().expect("a running browser");
        commands.write_all(format!("{command}\0").as_bytes()).expect("the browser reads");
        loop {
            let message = self.messages.recv_timeout(BOUND);
            let message = message.unwrap_or_else(|error| panic!("{method}: {error}"));
            if message["id"] == self.last_id {
                assert_eq!(message["error"], Value::Null, "{method}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// Sets the size of the page and its colours, before or after it is opened.
    pub(crate) fn resize(&mut self, (width, height): (u32, u32), scheme: Scheme) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.command("Emulation.setDeviceMetricsOverride", &size);
        let value = if scheme == Scheme::Dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.command("Emulation.setEmulatedMedia", &features);
    }

    /// Opens a page and waits until its scripts have run once.
    #[track_caller]
    pub(crate) fn open(&mut self, url: &str) {
        let opened = self.command("Page.navigate", &json!({ "url": url }));
        assert_eq!(opened["errorText"], Value::Null, "{url}");
        let is_loaded = within(BOUND, || {
            let state = self.evaluate("[document.readyState, location.href]");
            (state[0] == "complete" && state[1] == url).then_some(())
        });
        assert!(is_loaded.is_some(), "{url} is not loaded");
    }

    /// Evaluates an expression of JavaScript, and waits for its value if it is a promise.
    #[track_caller]
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
        });
        let result = self.command("Runtime.evaluate", &parameters);
        let exception = &result["exceptionDetails"];
        assert!(exception.is_null(), "{expression}: {exception}");
        result["result"]["value"].clone()
    }

    /// Returns the parameters of all events of this name.
    pub(crate) fn events(&self, method: &str) -> Vec<Value> {
        let of_method = self.events.iter().filter(|event| event["method"] == method);
        of_method.map(|event| event["params"].clone()).collect()
    }

    /// Writes a picture of the whole page, as PNG.
    pub(crate) fn save_picture(&mut self, file: &Path) {
        let whole = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.command("Page.captureScreenshot", &whole);
        let picture = BASE64_STANDARD.decode(picture["data"].as_str().expect("a picture"));
        std::fs::write(file, picture.expect("base64")).expect("a file");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.commands.take());
        let ended = within(EXIT_BOUND, || self.process.try_wait().ok().flatten());
        if ended.is_none() {
            _ = self.process.kill();
            _ = self.process.wait();
        }
        // Its helpers may write there for a moment after its end, and then the removal fails.
        let profile = self.profile.path();
        _ = within(EXIT_BOUND, || {
            _ = std::fs::remove_dir_all(profile);
            (!profile.exists()).then_some(())
        });
    }
}
