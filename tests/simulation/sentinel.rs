//! A model of a sentinel: it reports the primary and its config epoch, and publishes failovers.
//!
//! It knows what the proxy sends: `HELLO`, `SUBSCRIBE` and two commands about the primary, in
//! RESP3. The failover itself is that of the [servers](super::servers), which tell each sentinel of
//! it.

use std::fmt::Write as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::select;
use tokio::sync::{mpsc, watch};

use super::network::End;
use super::resp::{bulk, take_command};
use super::world::World;

/// The name of the primary at the sentinels.
pub(super) const MASTER: &str = "primary";

/// The primary that a sentinel reports.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    pub(super) config_epoch: u64,
    pub(super) host: String,
}

pub(super) struct Sentinel(watch::Sender<Report>);

impl Sentinel {
    pub(super) fn start(
        world: &World,
        number: usize,
        report: Report,
        mut ends: mpsc::UnboundedReceiver<End>,
    ) -> Self {
        let (sender, receiver) = watch::channel(report);
        let world = world.clone();
        tokio::spawn(async move {
            while let Some(end) = ends.recv().await {
                tokio::spawn(serve(world.clone(), number, end, receiver.clone()));
            }
        });
        Self(sender)
    }

    /// Reports this from now on.
    pub(super) fn report(&self, report: Report) {
        self.0.send_replace(report);
    }
}

async fn serve(world: World, number: usize, mut end: End, mut reports: watch::Receiver<Report>) {
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let (mut is_subscribed, mut before) = (false, reports.borrow_and_update().clone());
    loop {
        select! {
            biased;
            read = end.read_buf(&mut input) => {
                if !matches!(read, Ok(1..)) {
                    return;
                }
            }
            changed = reports.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = reports.borrow_and_update().clone();
                if is_subscribed {
                    push(&mut output, &before, &now);
                }
                before = now;
            }
        }
        while let Some(command) = take_command(&mut input) {
            let text = command.join(&b' ').escape_ascii().to_string();
            world.record(|| format!("sentinel {number}: {text}"));
            is_subscribed |= command[0].eq_ignore_ascii_case(b"subscribe");
            reply(&mut output, &command, &reports.borrow());
        }
        if end.write_all(&output).await.is_err() {
            return;
        }
        output.clear();
    }
}

/// Writes the reply to a command.
fn reply(output: &mut Vec<u8>, command: &[Vec<u8>], report: &Report) {
    let words: Vec<_> =
        command.iter().map(|word| String::from_utf8_lossy(word).to_lowercase()).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["hello", ..] => map(
            output,
            &[
                ("server", "redis"),
                ("version", "7.0.15"),
                ("mode", "sentinel"),
                ("role", "sentinel"),
            ],
        ),
        ["subscribe", channel] => {
            output.extend_from_slice(b">3\r\n");
            for text in ["subscribe", channel] {
                bulk(output, text.as_bytes());
            }
            output.extend_from_slice(b":1\r\n");
        }
        ["sentinel", _, name] if name != MASTER => {
            output.extend_from_slice(b"-ERR No such master with that name\r\n");
        }
        ["sentinel", "get-master-addr-by-name", _] => {
            output.extend_from_slice(b"*2\r\n");
            for text in [report.host.as_str(), "6379"] {
                bulk(output, text.as_bytes());
            }
        }
        ["sentinel", "master", _] => {
            let config_epoch = report.config_epoch.to_string();
            map(
                output,
                &[
                    ("name", MASTER),
                    ("ip", report.host.as_str()),
                    ("config-epoch", config_epoch.as_str()),
                ],
            );
        }
        _ => output.extend_from_slice(b"-ERR the model does not know this command\r\n"),
    }
}

fn map(output: &mut Vec<u8>, fields: &[(&str, &str)]) {
    output.extend_from_slice(format!("%{}\r\n", fields.len()).as_bytes());
    for (name, value) in fields {
        bulk(output, name.as_bytes());
        bulk(output, value.as_bytes());
    }
}

/// Writes the push about a failover.
fn push(output: &mut Vec<u8>, before: &Report, now: &Report) {
    let mut text = MASTER.to_owned();
    for host in [&before.host, &now.host] {
        _ = write!(text, " {host} 6379");
    }
    output.extend_from_slice(b">3\r\n");
    for part in ["message", "+switch-master", &text] {
        bulk(output, part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentinel_reports_the_primary_and_its_epoch() {
        let report = Report { config_epoch: 7, host: "127.0.0.2".to_owned() };
        let sent = |words: &str| {
            let words: Vec<_> = words.split(' ').map(|word| word.as_bytes().to_vec()).collect();
            let mut output = Vec::new();
            reply(&mut output, &words, &report);
            String::from_utf8(output).unwrap()
        };
        let address = sent("SENTINEL GET-MASTER-ADDR-BY-NAME primary");
        assert_eq!(address, "*2\r\n$9\r\n127.0.0.2\r\n$4\r\n6379\r\n");
        assert!(sent("SENTINEL MASTER primary").ends_with("$12\r\nconfig-epoch\r\n$1\r\n7\r\n"));
        assert!(sent("SENTINEL MASTER other").starts_with("-ERR"));
    }

    #[test]
    fn push_names_the_previous_and_the_next_primary() {
        let report = |host: &str| Report { config_epoch: 1, host: host.to_owned() };
        let mut output = Vec::new();
        push(&mut output, &report("a"), &report("b"));
        assert!(String::from_utf8(output).unwrap().ends_with("primary a 6379 b 6379\r\n"));
    }
}
