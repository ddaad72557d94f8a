//! `redis-proxy top`: the state of a running proxy on a terminal, or once as text or JSON.
//!
//! Model: a thread fetches; the main one shows what comes, and reads keys. So a proxy that does not
//! answer holds up no key. The terminal is restored however the program ends: by `q`, by a signal,
//! by an error, by a panic.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, SystemTime};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::screen::{Palette, Screen, to_text};
use super::source::{Source, Update};

/// The longest time until a signal or a new state is noticed.
const TICK: Duration = Duration::from_millis(100);
/// The time between a signal and the end of the process, whatever it does.
const GRACE: Duration = Duration::from_secs(1);
/// The size of the text if there is no terminal.
const TEXT_SIZE: (u16, u16) = (80, 24);

/// The message of the fetching thread: a state, or the reason why there is none.
type Fetched = Result<Box<Update>, String>;

/// Prints the screen once, as text.
///
/// # Errors
/// [`io::Error`] if the proxy does not answer, or `out` takes nothing.
pub fn once(source: &mut Source, out: &mut dyn Write) -> io::Result<()> {
    let update = source.fetch_rates()?;
    let mut screen = Screen::new(source.shown(), Palette::Plain);
    apply(&mut screen, Ok(Box::new(update)), "");
    let (width, height) = terminal::size().unwrap_or(TEXT_SIZE);
    out.write_all(to_text(&screen, width, height).as_bytes())
}

/// Prints each state with its rates as a line of JSON; `is_once`: one. While the proxy does not
/// answer, the reason goes to standard error.
///
/// # Errors
/// [`io::Error`] if the proxy does not answer at first, or `out` takes nothing.
pub fn print_json(source: &mut Source, is_once: bool, out: &mut dyn Write) -> io::Result<()> {
    let mut fetched = Ok(source.fetch_rates()?);
    loop {
        match fetched {
            Ok(update) => writeln!(out, "{}", to_json(update)?)?,
            Err(error) => writeln!(io::stderr(), "no answer from {}: {error}", source.shown())?,
        }
        out.flush()?;
        if is_once {
            return Ok(());
        }
        source.wait();
        fetched = source.fetch();
    }
}

/// Returns `/status.json` with the rates and events beside it.
fn to_json(update: Update) -> io::Result<Value> {
    let mut document = update.document;
    document["rates"] = serde_json::to_value(&update.rates)?;
    document["events"] = update.events.into();
    Ok(document)
}

/// Shows the state on the terminal until a key or a signal ends it. `has_colours` is false if
/// `NO_COLOR` is set.
///
/// # Errors
/// [`io::Error`] of the terminal.
pub fn top(source: Source, has_colours: bool) -> io::Result<()> {
    let is_ended = Arc::new(AtomicBool::new(false));
    end_at_signal(Arc::clone(&is_ended))?;
    let palette = if has_colours { Palette::Colours } else { Palette::Plain };
    let mut screen = Screen::new(source.shown(), palette);
    let (send, receive) = sync_channel(1);
    // It ends with the program, or when the receiver is gone.
    std::thread::spawn(move || fetch_all(source, &send));
    let mut terminal = ratatui::try_init()?;
    let ended = run(&mut terminal, &mut screen, &receive, &is_ended);
    ratatui::restore();
    ended
}

/// Sets the flag at a signal, and ends the process a second later if it still runs. The library
/// that reads the terminal never returns once the terminal is gone, and takes a processor for it.
fn end_at_signal(is_ended: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            is_ended.store(true, Relaxed);
            std::thread::sleep(GRACE);
            ratatui::restore();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn fetch_all(mut source: Source, send: &SyncSender<Fetched>) {
    loop {
        let fetched = source.fetch().map(Box::new).map_err(|error| error.to_string());
        if send.send(fetched).is_err() {
            return;
        }
        source.wait();
    }
}

fn run(
    terminal: &mut DefaultTerminal,
    screen: &mut Screen,
    receive: &Receiver<Fetched>,
    is_ended: &AtomicBool,
) -> io::Result<()> {
    let mut is_changed = true;
    while !is_ended.load(Relaxed) {
        if is_changed {
            terminal.draw(|frame| frame.render_widget(&*screen, frame.area()))?;
        }
        is_changed = match event::poll(TICK) {
            Ok(true) => match event::read()? {
                Event::Key(key) if ends(key) => return Ok(()),
                Event::Resize(..) => true,
                _ => false,
            },
            Ok(false) => false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(error) => return Err(error),
        };
        match receive.try_recv() {
            Ok(fetched) => {
                apply(screen, fetched, &clock());
                is_changed = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(io::Error::other("the thread that fetches has ended"));
            }
        }
    }
    Ok(())
}

fn ends(key: KeyEvent) -> bool {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release
        && match key.code {
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => true,
            KeyCode::Char('c') => is_control,
            _ => false,
        }
}

/// Puts what was fetched on the screen. The last state stays while the proxy does not answer.
fn apply(screen: &mut Screen, fetched: Fetched, time: &str) {
    match fetched {
        Ok(update) => {
            let Update { snapshot, rates, events, .. } = *update;
            if screen.problem.take().is_some() {
                screen.add_event(time, "it answers again");
            }
            for event in &events {
                screen.add_event(time, event);
            }
            (screen.snapshot, screen.rates) = (Some(snapshot), rates);
        }
        Err(problem) => {
            if screen.problem.is_none() {
                screen.add_event(time, &format!("no answer: {problem}"));
            }
            (screen.problem, screen.rates) = (Some(problem), None);
        }
    }
}

/// The time of day in UTC, as `HH:MM:SS`.
fn clock() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.get(11..19).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::snapshot;
    use super::*;

    fn update(up: bool, events: &[&str]) -> Box<Update> {
        Box::new(Update {
            document: serde_json::json!({ "version": "1.2.3" }),
            snapshot: snapshot(1, 1, up),
            rates: None,
            events: events.iter().map(|&event| event.to_owned()).collect(),
        })
    }

    #[test]
    fn problem_is_an_event_once_and_keeps_the_last_state() {
        let mut screen = Screen::new(String::new(), Palette::Plain);
        apply(&mut screen, Ok(update(true, &[])), "10:00:00");
        for _ in 0..2 {
            apply(&mut screen, Err("refused".to_owned()), "10:00:01");
        }
        assert!(screen.problem.is_some() && screen.snapshot.is_some());
        apply(&mut screen, Ok(update(false, &["redis is down"])), "10:00:02");
        assert_eq!(
            screen.events,
            ["10:00:02 redis is down", "10:00:02 it answers again", "10:00:01 no answer: refused"]
        );
    }

    #[test]
    fn json_has_the_rates_beside_the_document() {
        let update = update(true, &["started"]);
        let text = to_json(*update).unwrap().to_string();
        assert_eq!(text, r#"{"events":["started"],"rates":null,"version":"1.2.3"}"#);
    }

    #[test]
    fn q_escape_and_control_c_end_it() {
        let key = |code, modifiers| ends(KeyEvent::new(code, modifiers));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE));
        assert!(!key(KeyCode::Enter, KeyModifiers::NONE));
    }
}
