//! The screen of `redis-proxy top`: a widget that depends on its fields alone.

use std::collections::VecDeque;

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Sparkline, Widget};

use super::format::{bytes, count, percent, rate, seconds, share, uptime};
use super::snapshot::{Rates, Snapshot};

/// The most events that are kept.
const MAX_EVENTS: usize = 100;
/// The height from which the reads of the last 15 minutes have a place.
const TALL: u16 = 34;
/// The least and the most height of that place.
const SPARKLINE: (u16, u16) = (8, 16);
/// The least lines of the events, with their title.
const EVENT_LINES: u16 = 4;
/// The longest bar, in columns.
const LONGEST_BAR: usize = 60;

/// Whether the screen has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Palette {
    Colours,
    Plain,
}

/// Everything on the screen.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    pub(super) address: String,
    pub(super) palette: Palette,
    /// The last state, if there has been any.
    pub(super) snapshot: Option<Snapshot>,
    pub(super) rates: Option<Rates>,
    /// The reason why there is no newer state.
    pub(super) problem: Option<String>,
    /// The events, newest first.
    pub(super) events: VecDeque<String>,
}

impl Screen {
    /// A screen without data.
    pub(super) fn new(address: String, palette: Palette) -> Self {
        Self {
            address,
            palette,
            snapshot: None,
            rates: None,
            problem: None,
            events: VecDeque::new(),
        }
    }

    /// Adds an event of this time.
    pub(super) fn add_event(&mut self, time: &str, event: &str) {
        self.events.truncate(MAX_EVENTS - 1);
        self.events.push_front(format!("{time} {event}"));
    }

    fn style(&self, color: Color) -> Style {
        match self.palette {
            Palette::Colours => Style::new().fg(color),
            Palette::Plain => Style::new(),
        }
    }

    fn block<'a>(&self, title: &'a str) -> Block<'a> {
        let title = Line::from(vec![
            Span::styled(title, Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(" "),
        ]);
        Block::new().borders(Borders::TOP).border_style(self.style(Color::DarkGray)).title(title)
    }

    fn header(&self) -> Line<'_> {
        let about = self.snapshot.as_ref().map_or_else(String::new, |snapshot| {
            format!(" {}  up {}", snapshot.version, uptime(snapshot.uptime_seconds))
        });
        Line::from(vec![
            Span::styled("redis-proxy", Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(format!("{about}  {}  q: quit", self.address)),
        ])
    }

    fn state(&self) -> Line<'_> {
        if let Some(problem) = &self.problem {
            return Line::styled(format!("no answer: {problem}"), self.style(Color::Red));
        }
        let Some(snapshot) = &self.snapshot else { return Line::raw("waiting for an answer") };
        let color = match &*snapshot.state.level {
            "fresh" => Color::Green,
            "down" => Color::Red,
            _ => Color::Yellow,
        };
        Line::styled(
            format!("[{}] {}", snapshot.state.level, snapshot.state.text),
            self.style(color),
        )
    }

    fn totals(&self, snapshot: &Snapshot, width: usize) -> Vec<Line<'_>> {
        let rates = self.rates.as_ref();
        let now = rates.and_then(|rates| rates.hit_ratio);
        let per_second = |of: fn(&Rates) -> f64| rates.map_or("-".to_owned(), |all| rate(of(all)));
        let ratio = now.or(snapshot.reads.hit_ratio).unwrap_or_default();
        let bound = snapshot.memory_total;
        let texts = [
            format!(
                "{} ({} since the start)  {} reads/s, {} of Redis",
                percent(now),
                percent(snapshot.reads.hit_ratio),
                per_second(|all| all.reads),
                per_second(|all| all.redis_reads),
            ),
            format!(
                "{} of {}, entries: {}",
                bytes(bound.bytes),
                bytes(bound.max_bytes),
                count(snapshot.entries())
            ),
        ];
        let room = width.saturating_sub(70).clamp(10, LONGEST_BAR);
        let line = |(name, part, text): (&str, f64, String)| {
            let (full, empty) = bar(part, room);
            Line::from(vec![
                Span::raw(format!("{name:<7}")),
                Span::styled(full, self.style(Color::Cyan)),
                Span::styled(empty, self.style(Color::DarkGray)),
                Span::raw(format!(" {text}")),
            ])
        };
        let [hits, memory] = texts;
        let mut lines: Vec<_> =
            [("hits", ratio, hits), ("memory", share(bound.bytes, bound.max_bytes), memory)]
                .map(line)
                .into();
        lines.extend(self.verified(snapshot));
        lines
    }

    /// The comparisons with Redis, if there are any.
    fn verified(&self, snapshot: &Snapshot) -> Option<Line<'_>> {
        let verified = snapshot.verified;
        let stale = format!("{} stale", count(verified.stale));
        let stale = if verified.stale > 0 {
            Span::styled(stale, self.style(Color::Red))
        } else {
            Span::raw(stale)
        };
        let (equal, changed) = (count(verified.equal), count(verified.changed));
        verified.is_shown().then(|| {
            Line::from(vec![
                Span::raw(format!("verified  {equal} equal, {changed} changed, ")),
                stale,
                Span::raw(format!(", {} unknown", count(verified.unknown))),
            ])
        })
    }

    /// The table of reads by outcome, with bars in proportion to the most frequent.
    fn outcomes(&self, snapshot: &Snapshot, width: usize) -> Vec<Line<'_>> {
        let rates = self.rates.as_ref().map_or(&[][..], |rates| &rates.outcomes);
        let most = rates.iter().copied().fold(1.0, f64::max);
        let room = width.saturating_sub(59).clamp(8, LONGEST_BAR);
        let heading = format!(
            "{:<13}{:>11}  {:>14}  {:>8}{:>8}",
            "outcome", "reads/s", "reads", "p50", "p99"
        );
        let mut lines = vec![Line::styled(heading, self.style(Color::DarkGray))];
        for (index, each) in snapshot.reads.outcomes.iter().enumerate() {
            let now = rates.get(index).copied();
            let (full, _) = bar(now.unwrap_or_default() / most, room);
            let text = format!(
                "{:<13}{:>11}  {:>14}  {:>8}{:>8}  ",
                each.name,
                now.map_or_else(|| "-".to_owned(), rate),
                count(each.reads),
                seconds(each.p50_seconds),
                seconds(each.p99_seconds),
            );
            let color = match &*each.name {
                "hit" | "negative_hit" => Color::Green,
                "stale" => Color::Yellow,
                _ => Color::Blue,
            };
            lines.push(Line::from(vec![Span::raw(text), Span::styled(full, self.style(color))]));
        }
        lines
    }

    /// The listeners and the nodes in at most `room` lines. Nodes that are down come first, so that
    /// a large cluster does not hide them.
    fn connections(&self, snapshot: &Snapshot, room: usize) -> Vec<Line<'_>> {
        let listeners = snapshot.connections.iter().filter(|each| each.limit > 0);
        let clients = listeners.map(|each| {
            Line::raw(format!("{:<9}{:>6} of {}", each.front_end, each.open, each.limit))
        });
        let mut nodes: Vec<_> = snapshot.nodes.iter().collect();
        nodes.sort_by_key(|node| node.up);
        let nodes = nodes.into_iter().map(|node| {
            let (state, color) = if node.up { ("up", Color::Green) } else { ("down", Color::Red) };
            Line::from(vec![
                Span::raw(format!("{:<9}{} is ", node.role, node.name)),
                Span::styled(state, self.style(color)),
            ])
        });
        let mut lines: Vec<_> = clients.chain(nodes).collect();
        if lines.len() > room {
            lines.truncate(room.saturating_sub(1));
            let up = snapshot.nodes.iter().filter(|node| node.up).count();
            lines.push(Line::raw(format!("{up} of {} nodes are up", snapshot.nodes.len())));
        }
        lines
    }

    /// The hot keys, and below them the evictions if there is room for all causes.
    fn keys_and_evictions(&self, snapshot: &Snapshot, area: Rect, buffer: &mut Buffer) {
        let keys = hot_keys(snapshot);
        let evictions = self.evictions(snapshot);
        let needed = keys.len() + evictions.len() + 2;
        let length = if needed <= usize::from(area.height) { keys.len() + 1 } else { needed };
        let length = Constraint::Length(u16::try_from(length).unwrap_or(u16::MAX));
        let [top, bottom] = Layout::vertical([length, Constraint::Fill(1)]).areas(area);
        Paragraph::new(keys).block(self.block("hot keys")).render(top, buffer);
        Paragraph::new(evictions).block(self.block("evictions by cause")).render(bottom, buffer);
    }

    /// The table of the evictions since the start, by cause.
    fn evictions(&self, snapshot: &Snapshot) -> Vec<Line<'_>> {
        let heading = format!("{:<12}{:>11} {:>11}", "cause", "values", "replies");
        let rows = snapshot.evictions.iter().map(|each| {
            let (values, replies) = (count(each.values), count(each.replies));
            Line::raw(format!("{:<12}{values:>11} {replies:>11}", each.cause))
        });
        [Line::styled(heading, self.style(Color::DarkGray))].into_iter().chain(rows).collect()
    }

    fn below(&self, snapshot: &Snapshot, area: Rect, buffer: &mut Buffer) {
        let [left, _, right] = Layout::horizontal([
            Constraint::Percentage(45),
            Constraint::Length(2),
            Constraint::Fill(1),
        ])
        .areas(area);
        self.keys_and_evictions(snapshot, left, buffer);
        // Events keep some lines, however many nodes there are.
        let room = area.height.saturating_sub(EVENT_LINES + 1);
        let connections = self.connections(snapshot, usize::from(room));
        let length = u16::try_from(connections.len() + 1).unwrap_or(u16::MAX);
        let length = length.min(area.height.saturating_sub(EVENT_LINES));
        let [top, bottom] =
            Layout::vertical([Constraint::Length(length), Constraint::Fill(1)]).areas(right);
        Paragraph::new(connections).block(self.block("connections and nodes")).render(top, buffer);
        let mut events: Vec<_> =
            self.events.iter().map(|event| Line::raw(event.as_str())).collect();
        if events.is_empty() {
            events.push(Line::raw("none yet"));
        }
        Paragraph::new(events).block(self.block("events")).render(bottom, buffer);
    }
}

fn hot_keys(snapshot: &Snapshot) -> Vec<Line<'_>> {
    match &snapshot.hot_keys {
        None => vec![Line::raw("not counted (admin.hotkeys)")],
        Some(keys) if keys.is_empty() => vec![Line::raw("none yet")],
        Some(keys) => keys
            .iter()
            .map(|key| Line::raw(format!("{:>12}  {}", count(key.reads), key.key)))
            .collect(),
    }
}

/// Returns the filled and the empty part of a bar of `room` columns.
fn bar(part: f64, room: usize) -> (String, String) {
    let room_for = u32::try_from(room).unwrap_or(u32::MAX);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the room")]
    let full = ((part.clamp(0.0, 1.0) * f64::from(room_for)).round() as usize).min(room);
    ("█".repeat(full), "░".repeat(room - full))
}

impl Widget for &Screen {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let outcomes =
            self.snapshot.as_ref().map_or(0, |snapshot| snapshot.reads.outcomes.len() + 2);
        let (least, most) = SPARKLINE;
        let history = if area.height >= TALL { (area.height / 4).clamp(least, most) } else { 0 };
        let is_verified = self.snapshot.as_ref().is_some_and(|one| one.verified.is_shown());
        let totals_height = if is_verified { 3 } else { 2 };
        let [head, totals, reads, sparkline, below] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(totals_height),
            Constraint::Length(u16::try_from(outcomes).unwrap_or(u16::MAX)),
            Constraint::Length(history),
            Constraint::Fill(1),
        ])
        .areas(area);
        Paragraph::new(vec![self.header(), self.state()]).render(head, buffer);
        let Some(snapshot) = &self.snapshot else { return };
        let width = usize::from(area.width);
        Paragraph::new(self.totals(snapshot, width)).render(totals, buffer);
        Paragraph::new(self.outcomes(snapshot, width))
            .block(self.block("reads; p50 and p99 are upper bounds"))
            .render(reads, buffer);
        if history > 0 {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates")]
            let rates: Vec<_> =
                snapshot.history.reads.iter().map(|rate| rate.round() as u64).collect();
            let from = rates.len().saturating_sub(usize::from(sparkline.width));
            Sparkline::default()
                .block(self.block("reads/s of the last 15 minutes"))
                .data(&rates[from..])
                .style(self.style(Color::Cyan))
                .render(sparkline, buffer);
        }
        self.below(snapshot, below, buffer);
    }
}

/// Returns the screen as lines of text, without the blanks at their ends.
pub(super) fn to_text(screen: &Screen, width: u16, height: u16) -> String {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    screen.render(area, &mut buffer);
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width)
            .filter_map(|x| buffer.cell((x, y)))
            .map(ratatui::buffer::Cell::symbol)
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::snapshot::tests::snapshot;
    use super::*;

    fn screen() -> Screen {
        let (before, after) = (snapshot(100, 10, true), snapshot(160, 30, true));
        let mut screen = Screen::new("127.0.0.1:9090".to_owned(), Palette::Plain);
        screen.rates = after.rates_since(&before, Duration::from_secs(2));
        screen.snapshot = Some(after);
        screen.add_event("10:00:00", "redis 10.0.0.1:6379 is up");
        screen
    }

    #[test]
    fn screen_has_every_part_at_each_size() {
        let screen = screen();
        for (width, height) in [(80, 24), (200, 60), (60, 24)] {
            let text = to_text(&screen, width, height);
            for part in [
                "redis-proxy 1.2.3  up 2h 7m  127.0.0.1:9090",
                "[fresh] Fresh.",
                "75.0 %",
                "5.0 KiB of 10.0 KiB",
                "hit                   30",
                "25 µs",
                "2.5 ms",
                "user:1",
                "http",
                "10.0.0.1:6379",
                "10:00:00 redis",
            ] {
                assert!(text.contains(part), "{part} at {width}x{height}:\n{text}");
            }
            assert_eq!(text.contains("last 15 minutes"), height >= TALL);
            assert!(text.lines().count() <= usize::from(height));
        }
        // No size panics.
        for (width, height) in [(0, 0), (1, 1), (10, 3), (300, 5), (5, 100)] {
            to_text(&screen, width, height);
        }
    }

    #[test]
    fn node_that_is_down_is_shown_among_hundreds() {
        let mut screen = screen();
        let mut after = snapshot(160, 30, true);
        let node = after.nodes[0].clone();
        after.nodes = (0..500)
            .map(|number| super::super::snapshot::Node {
                name: format!("10.0.1.1:{number}"),
                up: number != 400,
                ..node.clone()
            })
            .collect();
        screen.snapshot = Some(after);
        for (width, height) in [(80, 24), (200, 60)] {
            let text = to_text(&screen, width, height);
            for part in ["10.0.1.1:400 is down", "499 of 500 nodes are up", "10:00:00 redis"] {
                assert!(text.contains(part), "{part} at {width}x{height}:\n{text}");
            }
        }
        to_text(&screen, 1, 1);
    }

    #[test]
    fn comparisons_are_shown() {
        let mut screen = screen();
        assert!(!to_text(&screen, 80, 24).contains("verified"));
        let mut after = snapshot(160, 30, true);
        (after.verified.equal, after.verified.stale) = (1234, 1);
        screen.snapshot = Some(after);
        for (width, height) in [(80, 24), (200, 60), (60, 24)] {
            let text = to_text(&screen, width, height);
            let line = "verified  1,234 equal, 0 changed, 1 stale, 0 unknown";
            assert!(text.contains(line) && text.contains("10:00:00 redis"), "{text}");
        }
    }

    #[test]
    fn evictions_are_shown_where_all_causes_have_room() {
        for (height, is_shown) in [(14, true), (13, false), (60, true)] {
            let text = to_text(&screen(), 80, height);
            for part in ["evictions by cause", "expired           3,456           7"] {
                assert_eq!(text.contains(part), is_shown, "{part} of {height} lines:\n{text}");
            }
            assert!(text.contains("user:1"), "{text}");
        }
    }

    #[test]
    fn absence_of_events_is_a_line() {
        let mut screen = screen();
        screen.events.clear();
        assert_eq!(to_text(&screen, 80, 24).matches("none yet").count(), 1);
    }

    #[test]
    fn problem_takes_the_place_of_the_state() {
        let mut screen = Screen::new("127.0.0.1:9090".to_owned(), Palette::Plain);
        assert!(to_text(&screen, 80, 24).contains("waiting"));
        screen.problem = Some("connection refused".to_owned());
        assert!(to_text(&screen, 80, 24).contains("no answer: connection refused"));
    }

    #[test]
    fn plain_screen_has_no_colour() {
        for (palette, is_coloured) in [(Palette::Plain, false), (Palette::Colours, true)] {
            let screen = Screen { palette, ..screen() };
            let area = Rect::new(0, 0, 80, 24);
            let mut buffer = Buffer::empty(area);
            screen.render(area, &mut buffer);
            let mut cells = buffer.content().iter();
            assert_eq!(cells.any(|cell| cell.fg != Color::Reset), is_coloured);
        }
    }

    #[test]
    fn events_are_newest_first_and_bounded() {
        let mut screen = screen();
        (0..200).for_each(|number| screen.add_event("10:00:01", &number.to_string()));
        assert_eq!((screen.events.len(), &*screen.events[0]), (MAX_EVENTS, "10:00:01 199"));
    }

    #[test]
    fn bar_is_in_proportion() {
        for (part, full) in [(0.0, 0), (0.5, 5), (1.0, 10), (7.0, 10), (f64::NAN, 0)] {
            let (filled, empty) = bar(part, 10);
            assert_eq!(
                (filled.chars().count(), empty.chars().count()),
                (full, 10 - full),
                "{part}"
            );
        }
    }
}
