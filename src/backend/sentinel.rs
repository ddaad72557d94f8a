//! The sentinels: who is the primary.
//!
//! Model: each sentinel is listened to over a connection of its own, is asked every `ping_interval` and whenever somebody
//! needs to know, and tells by itself of a failover (`+switch-master`), upon which all are asked. What each said last is
//! kept, and of all that was said the latest failover counts, by the number that the sentinels give it (`config-epoch`).
//!
//! The rules that must not be broken: a failover that was heard of is never forgotten, so a sentinel that was cut off from
//! the others leads nobody back to a primary that was demoted; only if every one of them says something older is it
//! believed, since then they were set up anew. And no link is made because of what was known before: at least one sentinel
//! has to say then where the primary is.
//!
//! <https://redis.io/docs/latest/develop/reference/sentinel-clients/>

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, PushInfo, PushKind, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::address::{Address, Endpoint};
use super::credentials::sentinel_login;
use super::dial::{Opener, PrepareError};
use super::endpoint::Place;
use super::error::{BackendError, unreachable};
use super::hello::{Driver, driven, greet};
use super::multiplexed::{Connection, ask};
use super::settings::Settings;
use super::tracking::{Untracked, field, text};
use crate::metrics::Node;

/// On it a sentinel tells of failovers: the name, and where the primary was and is.
const CHANNEL: &str = "+switch-master";
/// For so long those who have been asked are waited for when another has answered: one of them may know of a failover.
const PATIENCE: Duration = Duration::from_millis(250);
/// A sentinel is not tried again sooner than this.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// Where the primary is, in the words of one sentinel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    /// Which failover made it the primary.
    term: u64,
    host: String,
    port: u16,
}

/// What a sentinel said last.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// It is being asked for the first time.
    Starting,
    /// This, when it was asked then.
    Primary(Word, Instant),
    /// That it knows no such primary, when it was asked then.
    Unknown(Instant),
    /// Nothing: it cannot be asked.
    Silent(BackendError),
}

impl Said {
    fn word(&self) -> Option<&Word> {
        match self {
            Self::Primary(word, _) => Some(word),
            _ => None,
        }
    }

    /// Whether it says where the primary is, having been asked after `since`.
    fn is_told(&self, since: Instant) -> bool {
        matches!(self, Self::Primary(_, asked) if *asked >= since)
    }

    /// Whether there is nothing to wait for.
    fn is_settled(&self, since: Instant) -> bool {
        match self {
            Self::Starting => false,
            Self::Primary(_, asked) | Self::Unknown(asked) => *asked >= since,
            Self::Silent(_) => true,
        }
    }
}

/// All sentinels there are.
pub(super) struct Sentinels {
    settings: Settings,
    opener: Arc<Opener>,
    /// In the order of the seeds.
    said: watch::Sender<Vec<Said>>,
    /// What it comes to.
    primary: watch::Sender<Option<Place>>,
    /// Somebody needs to know where the primary is now.
    wanted: Arc<watch::Sender<()>>,
}

impl Sentinels {
    pub(super) fn prepare(settings: &Settings, opener: Arc<Opener>) -> Result<Self, PrepareError> {
        sentinel_login(settings)?;
        let said = vec![Said::Starting; settings.seeds.0.len()];
        Ok(Self {
            settings: settings.clone(),
            opener,
            said: watch::Sender::new(said),
            primary: watch::Sender::new(None),
            wanted: Arc::new(watch::Sender::new(())),
        })
    }

    /// Listens to all of them for as long as the daemon lives.
    pub(super) async fn run(&self) {
        join_all(
            self.settings
                .seeds
                .0
                .iter()
                .enumerate()
                .map(|(number, seed)| self.attend(number, seed)),
        )
        .await;
    }

    /// Where the primary is, said by at least one of them from now on.
    pub(super) async fn place(&self) -> Result<Place, BackendError> {
        let mut said = self.said.subscribe();
        let since = Instant::now();
        self.wanted.send_replace(());
        let all_settled = |all: &Vec<Said>| all.iter().all(|one| one.is_settled(since));
        _ = timeout(PATIENCE, said.wait_for(all_settled)).await;
        let is_enough =
            |all: &Vec<Said>| all_settled(all) || all.iter().any(|one| one.is_told(since));
        let said = said.wait_for(is_enough).await.map_err(|error| unreachable(&error))?;
        if said.iter().any(|one| one.is_told(since)) {
            let primary = self.primary();
            return primary
                .ok_or_else(|| unreachable(&"the sentinels have not agreed on a primary"));
        }
        Err(self.why_none(&said))
    }

    /// The primary that is heard of, from now on.
    pub(super) fn follow(&self) -> watch::Receiver<Option<Place>> {
        self.primary.subscribe()
    }

    /// The primary that was heard of last.
    pub(super) fn primary(&self) -> Option<Place> {
        self.primary.borrow().clone()
    }

    pub(super) fn trace(&self) {
        if let Some(place) = &*self.primary.borrow() {
            place.address.trace();
        }
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        let said = self.said.borrow();
        let answers = |said: &Said| matches!(said, Said::Primary(..) | Said::Unknown(_));
        let node = |(seed, said): (&Endpoint, &Said)| Node {
            name: seed.node(),
            role: "sentinel",
            up: answers(said),
        };
        self.settings.seeds.0.iter().zip(said.iter()).map(node).collect()
    }

    fn why_none(&self, said: &[Said]) -> BackendError {
        let silent = said.iter().find_map(|one| match one {
            Said::Silent(error) => Some(error),
            _ => None,
        });
        match silent {
            Some(error) if !said.iter().any(|one| matches!(one, Said::Unknown(_))) => {
                unreachable(&format_args!("no sentinel answers: {error}"))
            }
            _ => {
                let name = &self.settings.sentinel_master;
                unreachable(&format_args!(
                    "the sentinels know no primary called {name:?} (redis.sentinel_master)"
                ))
            }
        }
    }

    /// Listens to one of them, and begins again whenever that ends.
    async fn attend(&self, number: usize, seed: &Endpoint) {
        let mut delay = RECONNECT_DELAY_MIN;
        let mut wanted = self.wanted.subscribe();
        for attempt in 0_usize.. {
            let Err(error) = self.listen(number, seed, attempt).await;
            if matches!(self.said.borrow()[number], Said::Silent(_)) {
                delay = (delay * 2).min(self.settings.reconnect_delay_max).max(RECONNECT_DELAY_MIN);
            } else {
                delay = RECONNECT_DELAY_MIN;
                tracing::warn!(sentinel = %seed, reason = %error, "a sentinel does not answer; trying again until it does");
            }
            self.hear(number, Said::Silent(error));
            let soonest = Instant::now() + RECONNECT_DELAY_MIN;
            wanted.mark_unchanged();
            tokio::select! {
                () = sleep(delay) => {}
                _ = wanted.changed() => sleep_until(soonest).await,
            }
        }
    }

    /// Listens to one of them for as long as it answers.
    async fn listen(
        &self,
        number: usize,
        seed: &Endpoint,
        attempt: usize,
    ) -> Result<Infallible, BackendError> {
        let connecting = timeout(self.settings.connect_timeout, self.connect(seed, attempt));
        let (connection, driver) = connecting.await.unwrap_or(Err(BackendError::TimedOut))?;
        tokio::select! {
            biased;
            ended = self.converse(number, connection) => ended,
            ended = driver => Err(ended),
        }
    }

    async fn connect(
        &self,
        seed: &Endpoint,
        attempt: usize,
    ) -> Result<(Connection, Driver), BackendError> {
        let settings = self.settings.clone();
        // The file of the password may be on a disk that hangs.
        let login = tokio::task::spawn_blocking(move || sentinel_login(&settings)).await;
        let login =
            login.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))?;
        let stream = self.opener.open(seed, attempt).await?;
        let (wanted, name) =
            (Arc::clone(&self.wanted), format!("{} ", self.settings.sentinel_master));
        let heed = move |push| {
            if is_switch(&push, &name) {
                wanted.send_replace(());
            }
        };
        let (connection, driver) = Connection::over(stream, 0, Box::new(heed));
        let mut driver = Box::pin(driver) as Driver;
        driven(&mut driver, greet(&connection, login.as_ref())).await.map_err(
            |error| match error {
                Untracked::NoAnswer(error) => error,
                Untracked::Refused(reason) => {
                    unreachable(&format_args!("a sentinel of Redis 6 or newer is needed: {reason}"))
                }
            },
        )?;
        Ok((connection, driver))
    }

    /// Asks one of them again and again.
    async fn converse(
        &self,
        number: usize,
        connection: Connection,
    ) -> Result<Infallible, BackendError> {
        let mut wanted = self.wanted.subscribe();
        let patience = self.settings.connect_timeout;
        require(
            &timeout(patience, subscribe(&connection))
                .await
                .unwrap_or(Err(BackendError::TimedOut))?,
        )?;
        loop {
            // What is wanted from here on needs another question.
            wanted.mark_unchanged();
            let asked = Instant::now();
            let word = timeout(patience, self.question(&connection))
                .await
                .unwrap_or(Err(BackendError::TimedOut))?;
            self.hear(number, word.map_or(Said::Unknown(asked), |word| Said::Primary(word, asked)));
            tokio::select! {
                () = sleep(self.settings.ping_interval) => {}
                _ = wanted.changed() => {}
            }
        }
    }

    /// The failover is asked for before the address and after it, and again until it is the same, so that the two belong
    /// together.
    async fn question(&self, connection: &Connection) -> Result<Option<Word>, BackendError> {
        let mut before = self.term(connection).await?;
        loop {
            let address = ask(connection, &self.command("GET-MASTER-ADDR-BY-NAME")).await?;
            require(&address)?;
            let term = self.term(connection).await?;
            if term != before {
                before = term;
                continue;
            }
            let Value::Array(parts) = &address else { return Ok(None) };
            let parts: Vec<_> = parts.iter().filter_map(text).collect();
            let [host, port] = parts[..] else {
                return Err(unreachable(&"a sentinel gave an address that is none"));
            };
            let port = port.parse().map_err(|error| unreachable(&error))?;
            return Ok(Some(Word { term, host: host.to_owned(), port }));
        }
    }

    /// The number of the last failover; none yet: zero.
    async fn term(&self, connection: &Connection) -> Result<u64, BackendError> {
        let master = ask(connection, &self.command("MASTER")).await?;
        let term = field(&master, "config-epoch").and_then(text).and_then(|term| term.parse().ok());
        Ok(term.unwrap_or_default())
    }

    fn command(&self, subcommand: &str) -> Cmd {
        let mut command = redis::cmd("SENTINEL");
        command.arg(subcommand).arg(&self.settings.sentinel_master);
        command
    }

    /// Notes what one of them says, and what that changes.
    fn hear(&self, number: usize, now: Said) {
        self.said.send_modify(|said| said[number] = now);
        let said = self.said.borrow();
        self.primary.send_if_modified(|primary| {
            let Some(word) = latest(&said, primary.as_ref().map(|place| place.term)) else {
                return false;
            };
            let place = self.place_of(word);
            if primary.as_ref() == Some(&place)
                || is_contradicted(&said, primary.as_ref(), word.term)
            {
                return false;
            }
            let before = primary
                .as_ref()
                .map_or_else(|| "nobody".to_owned(), |place| place.address.endpoint.node());
            let after = place.address.endpoint.node();
            tracing::info!(before, after, failover = word.term, "the sentinels name a primary");
            *primary = Some(place);
            true
        });
    }

    fn place_of(&self, word: &Word) -> Place {
        let url = &self.settings.url;
        let endpoint =
            Endpoint::Tcp { host: word.host.clone(), port: word.port, tls: url.is_tls() };
        Place { address: Address { endpoint, ..url.clone() }, term: word.term }
    }
}

/// Has it told when there was a failover. It says that it will unasked, so the answer is that to a HELLO behind it, which
/// everybody may say, or why it will not.
async fn subscribe(connection: &Connection) -> Result<Value, BackendError> {
    connection.ask_for_one(&[redis::cmd("SUBSCRIBE").arg(CHANNEL), &redis::cmd("HELLO")]).await
}

/// The word that counts: of the latest failover, and no older than `known` unless all say so.
fn latest(said: &[Said], known: Option<u64>) -> Option<&Word> {
    let latest = said.iter().filter_map(Said::word).max_by_key(|word| word.term)?;
    let is_older = known.is_some_and(|known| latest.term < known);
    let all_say_so = || said.iter().all(|one| one.word() == Some(latest));
    (!is_older || all_say_so()).then_some(latest)
}

/// Whether somebody still says what is known, of the same failover: then one of them was asked while it changed its mind.
fn is_contradicted(said: &[Said], known: Option<&Place>, term: u64) -> bool {
    let says_known = |word: &Word, place: &Place| {
        word.term == term
            && matches!(&place.address.endpoint, Endpoint::Tcp { host, port, .. } if (host, port) == (&word.host, &word.port))
    };
    known.is_some_and(|place| {
        place.term == term && said.iter().filter_map(Said::word).any(|word| says_known(word, place))
    })
}

/// Whether this tells of a failover of the primary whose name, and a space, `name` is.
fn is_switch(push: &PushInfo, name: &str) -> bool {
    let told = push.data.get(1).and_then(text);
    push.kind == PushKind::Message && told.is_some_and(|told| told.starts_with(name))
}

fn require(answer: &Value) -> Result<(), BackendError> {
    match answer {
        Value::ServerError(error) => {
            let (code, details) = (error.code(), error.details().unwrap_or_default());
            Err(unreachable(&format_args!("a sentinel answered: {code} {details}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(term: u64, port: u16) -> Said {
        Said::Primary(Word { term, host: "host".to_owned(), port }, Instant::now())
    }

    fn silent() -> Said {
        Said::Silent(BackendError::TimedOut)
    }

    fn place(term: u64, port: u16) -> Place {
        let address = format!("redis://host:{port}").parse().unwrap();
        Place { address, term }
    }

    fn elected(said: &[Said], known: Option<u64>) -> Option<(u64, u16)> {
        latest(said, known).map(|word| (word.term, word.port))
    }

    #[test]
    fn the_latest_failover_counts_whoever_says_it() {
        assert_eq!(elected(&[says(1, 10), says(2, 20), says(1, 10)], None), Some((2, 20)));
        assert_eq!(elected(&[says(1, 10), silent(), says(2, 20)], Some(1)), Some((2, 20)));
        assert_eq!(elected(&[Said::Starting, silent(), Said::Unknown(Instant::now())], None), None);
    }

    #[test]
    fn nobody_is_led_back_but_by_all() {
        assert_eq!(elected(&[says(1, 10), silent(), silent()], Some(2)), None);
        assert_eq!(elected(&[says(1, 10), says(1, 10), silent()], Some(2)), None);
        assert_eq!(elected(&[says(1, 10), says(1, 11)], Some(2)), None);
        assert_eq!(
            elected(&[says(1, 10), says(1, 10)], Some(2)),
            Some((1, 10)),
            "they were set up anew"
        );
    }

    #[test]
    fn who_is_just_changing_its_mind_changes_nothing() {
        let known = place(1, 10);
        assert!(is_contradicted(&[says(1, 20), says(1, 10)], Some(&known), 1));
        assert!(!is_contradicted(&[says(2, 20), says(1, 10)], Some(&known), 2));
        assert!(!is_contradicted(&[says(1, 20), says(1, 20)], Some(&known), 1));
        assert!(!is_contradicted(&[says(1, 20)], None, 1));
    }

    #[test]
    fn a_push_about_another_primary_is_none_about_this() {
        let push = |text: &str| {
            let data = ["+switch-master", text].map(|part| Value::BulkString(part.into())).to_vec();
            PushInfo { kind: PushKind::Message, data }
        };
        assert!(is_switch(&push("main 127.0.0.1 1 127.0.0.1 2"), "main "));
        assert!(!is_switch(&push("main2 127.0.0.1 1 127.0.0.1 2"), "main "));
        assert!(!is_switch(&PushInfo { kind: PushKind::Subscribe, ..push("main 1") }, "main "));
    }
}
