//! What `skewtrap top` draws: the ranks with their load and its last minutes, the rules that are not idle,
//! the incidents.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use skewtrap_core::incident::{CaptureOutcome, Incident};
use skewtrap_core::message::{counted, figure, rank_name, utc};
use skewtrap_core::rule::RuleState;
use skewtrap_core::signal::source::SourceState;
use skewtrap_core::status::{GroupStatus, History, RankStatus, Status, TargetStatus};
use skewtrap_trace::labels::Labels;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns before a rank's course: its name, its load, its queue.
const FIGURES: u16 = 30;
const ALARM: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const QUIET: Style = Style::new().fg(Color::DarkGray);

/// What is known, and what of it is seen.
#[derive(Debug)]
pub struct Screen {
    status: Status,
    history: Vec<History>,
    /// Why the last answer did not come.
    problem: Option<String>,
    scrolled: u16,
}

impl Screen {
    pub fn new((status, history): (Status, Vec<History>)) -> Self {
        Self { status, history, problem: None, scrolled: 0 }
    }

    /// Shows an answer; of one that did not come, the last one with the reason.
    pub fn take(&mut self, answer: anyhow::Result<(Status, Vec<History>)>) {
        match answer {
            Ok((status, history)) => {
                (self.status, self.history, self.problem) = (status, history, None);
            }
            Err(error) => self.problem = Some(format!("{error:#}")),
        }
    }

    pub fn scroll_by(&mut self, lines: i16) {
        self.scrolled = self.scrolled.saturating_add_signed(lines);
    }
}

/// Draws it; on a low terminal the ranks scroll, and the rules and incidents keep their lines.
pub fn draw(frame: &mut Frame<'_>, screen: &mut Screen) {
    let whole = frame.area();
    let width = whole.width;
    let rules = rule_lines(&screen.status);
    let incidents = incident_lines(&screen.status);
    let height_of = |lines: &[Line<'_>], most: u16| u16::try_from(lines.len()).unwrap_or(most).min(most) + 1;
    let third = whole.height / 3;
    let [head, ranks, rules_at, incidents_at, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(4),
        Constraint::Length(height_of(&rules, third)),
        Constraint::Length(height_of(&incidents, third)),
        Constraint::Length(1),
    ])
    .areas(whole);
    frame.render_widget(head_line(screen), head);
    let rank_lines = rank_lines(&screen.status, &screen.history, width);
    let beyond =
        u16::try_from(rank_lines.len()).unwrap_or(u16::MAX).saturating_sub(ranks.height.saturating_sub(1));
    screen.scrolled = screen.scrolled.min(beyond);
    let title = match beyond {
        0 => "ranks".to_owned(),
        _ => format!("ranks ({} more: ↑ ↓)", beyond - screen.scrolled),
    };
    section(frame, ranks, &title, rank_lines, screen.scrolled);
    section(frame, rules_at, "rules", rules, 0);
    section(frame, incidents_at, "incidents", incidents, 0);
    frame.render_widget(
        Paragraph::new("q ends · ↑ ↓ scroll the ranks · skewtrap why says why a rule does not fire")
            .style(QUIET),
        keys,
    );
}

fn section(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'_>>, scrolled: u16) {
    let block = Block::new().borders(Borders::TOP).title(format!(" {title} ")).border_style(QUIET);
    frame.render_widget(Paragraph::new(lines).block(block).scroll((scrolled, 0)), area);
}

fn head_line(screen: &Screen) -> Line<'static> {
    if let Some(problem) = &screen.problem {
        return Line::styled(format!("{problem} (what you see is of {})", utc(screen.status.at)), ALARM);
    }
    let status = &screen.status;
    let firing = firing_of(status).count();
    let state = match firing {
        0 => Span::styled("nothing fires", Style::new().fg(Color::Green)),
        _ => Span::styled(format!("{} firing", counted(firing, "rule")), ALARM),
    };
    let only = if status.watch_only { " · watch only" } else { "" };
    let windows = match status.windows.first() {
        Some(window) => format!(" · a window is open on {}", window.target),
        None => String::new(),
    };
    Line::from(vec![
        Span::styled("skewtrap ", Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("{} · {}{only}{windows} · ", status.version, utc(status.at))),
        state,
    ])
}

fn firing_of(status: &Status) -> impl Iterator<Item = &GroupStatus> {
    status.rules.iter().flat_map(|r| &r.groups).filter(|g| g.state == RuleState::Firing)
}

fn rank_lines(status: &Status, history: &[History], width: u16) -> Vec<Line<'static>> {
    let blamed: Vec<(&str, &Labels)> =
        firing_of(status).filter_map(|g| Some((&*g.target, g.rank.as_ref()?))).collect();
    let load = history.iter().find(|h| &*h.signal == "load");
    let mut lines = Vec::new();
    for target in &status.targets {
        lines.push(target_line(target));
        let courses = load.into_iter().flat_map(|h| &h.lines).filter(|l| l.target == target.name);
        let courses: Vec<_> = courses.collect();
        let measured = courses.iter().flat_map(|l| l.values.iter().flatten());
        let top = measured.fold(1.0_f64, |top, value| top.max(*value));
        for rank in &target.ranks {
            let is_blamed =
                blamed.iter().any(|(of, labels)| **of == *target.name && within(labels, &rank.rank));
            let course = courses.iter().find(|l| within(&l.rank, &rank.rank));
            let drawn =
                course.map(|l| course_of(&l.values, top, width.saturating_sub(FIGURES))).unwrap_or_default();
            lines.push(rank_line(rank, drawn, is_blamed));
        }
        if let Some(text) = &target.not_watched {
            let first = text.split([';', '.']).next().unwrap_or_default();
            lines.push(Line::styled(
                format!("  NOT watched: {first} (`skewtrap why` says what can be done)"),
                Style::new().fg(Color::Yellow),
            ));
        }
        for source in target.sources.iter().filter(|s| s.state == SourceState::Failing) {
            let problem = source.problem.as_deref().unwrap_or("it gives nothing");
            let fails = if source.is_behind { "is behind" } else { "fails" };
            lines.push(Line::styled(
                format!("  {} {fails}: {problem}", source.kind),
                Style::new().fg(Color::Yellow),
            ));
        }
    }
    lines
}

fn target_line(target: &TargetStatus) -> Line<'static> {
    let version = target.engine_version.as_deref().unwrap_or("of unknown version");
    let ranks = counted(target.rank_count(), "rank");
    // What it said of itself counts no longer where it does not answer.
    let what = match target.unanswered_since {
        Some(_) => format!("  {ranks}"),
        None => format!("  {} {version}, {ranks}", target.engine),
    };
    let mut spans = vec![
        Span::styled(target.name.to_string(), Style::new().add_modifier(Modifier::BOLD)),
        Span::styled(what, QUIET),
    ];
    spans.extend(target.why_old().map(|why| Span::styled(format!("; {why}"), ALARM)));
    Line::from(spans)
}

fn rank_line(rank: &RankStatus, course: String, is_blamed: bool) -> Line<'static> {
    let value = |name: &str| rank.signals.get(name).map_or("-".to_owned(), |s| figure(s.value));
    let is_silent = rank.signals.get("load").is_some_and(|s| s.stale);
    let style = match (is_blamed, is_silent) {
        (true, _) => ALARM,
        (_, true) => QUIET,
        _ => Style::new(),
    };
    let name: String = rank_name(&rank.rank).chars().take(12).collect();
    let silent = if is_silent { "silent" } else { "" };
    let text = format!("  {name:<12} {:>6} {silent:<6} ", value("load"));
    Line::from(vec![Span::styled(text, style), Span::styled(course, if is_blamed { ALARM } else { style })])
}

/// The newest values at the right, one a column, each the highest of its stretch: no peak is lost.
fn course_of(values: &[Option<f64>], top: f64, columns: u16) -> String {
    let columns = usize::from(columns).min(values.len());
    if columns == 0 {
        return String::new();
    }
    let stretch = values.len().div_ceil(columns);
    values
        .rchunks(stretch)
        .rev()
        .map(|chunk| match chunk.iter().flatten().copied().reduce(f64::max) {
            Some(value) => BARS[((value / top * 7.0).round() as usize).min(7)],
            None => ' ',
        })
        .collect()
}

fn within(some: &Labels, all: &Labels) -> bool {
    some.0.iter().all(|(name, value)| all.0.get(name) == Some(value))
}

/// The rules, those that fire first; of idle ones, how many there are.
fn rule_lines(status: &Status) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let groups = || status.rules.iter().flat_map(|rule| rule.groups.iter().map(move |group| (rule, group)));
    let states = [RuleState::Firing, RuleState::Pending, RuleState::Unknown, RuleState::Warming];
    for state in states {
        for (rule, group) in groups().filter(|(_, group)| group.state == state) {
            let style = if state == RuleState::Firing { ALARM } else { Style::new() };
            let who = group.rank.as_ref().map(|rank| format!("{} ", rank_name(rank))).unwrap_or_default();
            let word = format!("{:<8}", state.word());
            lines.push(Line::from(vec![
                Span::styled(format!("  {word} {who}"), style),
                Span::raw(format!("{} on {}: {}", rule.name, group.target, group.why)),
            ]));
            if let Some(why) = &group.refused {
                lines.push(Line::styled(format!("           no window: {why}"), QUIET));
            }
            if let Some(until) = rule.silenced_until {
                lines.push(Line::styled(format!("           silenced until {}", utc(until)), QUIET));
            }
        }
    }
    let idle =
        groups().filter(|(_, group)| matches!(group.state, RuleState::Idle | RuleState::Inert)).count();
    if idle > 0 || lines.is_empty() {
        lines.push(Line::styled(format!("  {} idle", counted(idle, "group")), QUIET));
    }
    lines
}

fn incident_lines(status: &Status) -> Vec<Line<'static>> {
    let line = |incident: &Incident| {
        let over = if incident.resolved_at.is_some() { "over" } else { "fires" };
        let style = if incident.resolved_at.is_some() { Style::new() } else { ALARM };
        let capture = match &incident.capture {
            CaptureOutcome::None | CaptureOutcome::WouldStart => "",
            CaptureOutcome::Refused(_) => "no window; ",
            CaptureOutcome::Open { .. } => "window open; ",
            CaptureOutcome::Done(_) => "captured; ",
            CaptureOutcome::Failed { .. } => "window failed; ",
        };
        let sentence = incident
            .verdict
            .as_ref()
            .map(|v| v.sentence.clone())
            .or_else(|| incident.cause.as_ref().map(|c| c.statement.clone()))
            .unwrap_or_default();
        Line::from(vec![
            Span::styled(format!("  {over:<5} "), style),
            Span::raw(format!(
                "{} {} on {}: {capture}{sentence}",
                utc(incident.fired_at),
                rank_name(&incident.finding.rank),
                incident.target
            )),
        ])
    };
    let mut lines: Vec<Line<'static>> = status.incidents.iter().take(8).map(line).collect();
    if lines.is_empty() {
        lines.push(Line::styled("  none", QUIET));
    }
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use skewtrap_core::message::sample;
    use skewtrap_core::rule::Severity;
    use skewtrap_core::status::{HistoryLine, RuleStatus, SignalStatus};
    use skewtrap_trace::rank::Rank;
    use skewtrap_trace::time::Time;

    fn status(ranks: u16) -> (Status, Vec<History>) {
        let at = Time::from_epoch_s(1_795_492_126.1);
        let rank = |i: u16| {
            let signal =
                SignalStatus { value: f64::from(i) * 10.0, at, stale: i == 1, source: "loads".into() };
            RankStatus { rank: Rank::dp(i).labels(), signals: [("load".into(), signal)].into() }
        };
        let target = TargetStatus {
            name: "server".into(),
            engine: "sglang".into(),
            ranks: (0..ranks).map(rank).collect(),
            ..TargetStatus::default()
        };
        let group = GroupStatus {
            target: "server".into(),
            group: Labels::default(),
            state: RuleState::Firing,
            why: "max_over_mean of load is 3.77, above 2".into(),
            since: Some(at),
            statistic: "max_over_mean of load".into(),
            value: Some(3.77),
            bound: Some(2.0),
            rank: Some(Rank::dp(2).labels()),
            incident: None,
            refused: Some("the rule rests until 09:10".into()),
            again: None,
        };
        let rule = RuleStatus {
            name: "dp-load-skew".into(),
            about: None,
            severity: Severity::Warning,
            capture: "none".into(),
            groups: vec![group],
            last_evaluated: None,
            silenced_until: None,
        };
        let line = |i: u16| HistoryLine {
            target: "server".into(),
            rank: Rank::dp(i).labels(),
            values: vec![None, Some(f64::from(i) * 10.0)],
        };
        let history =
            History { signal: "load".into(), end: at, step_s: 2.0, lines: (0..ranks).map(line).collect() };
        (
            Status {
                version: "0.2.0".into(),
                at,
                targets: vec![target],
                rules: vec![rule],
                incidents: vec![sample(at)],
                ..Status::default()
            },
            vec![history],
        )
    }

    fn seen(screen: &mut Screen, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, height)).expect("a terminal in memory");
        terminal.draw(|frame| draw(frame, screen)).expect("it draws");
        terminal.backend().to_string()
    }

    #[test]
    fn it_shows_the_ranks_who_is_blamed_why_no_window_came_and_the_incidents() {
        let text = seen(&mut Screen::new(status(4)), 24);
        for part in [
            "1 rule firing",
            "DP3              30",
            " ▆",
            "DP1              10 silent",
            "firing   DP2 dp-load-skew on server: max_over_mean of load is 3.77",
            "no window: the rule rests until 09:10",
            "fires 2026-11-24",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn on_a_low_terminal_the_ranks_scroll_to_the_last_one_and_no_further() {
        let mut screen = Screen::new(status(64));
        assert!(seen(&mut screen, 24).contains("DP0 "));
        screen.scroll_by(1_000);
        let text = seen(&mut screen, 24);
        assert!(text.contains("DP63") && text.contains("ranks (0 more"), "{text}");
    }

    #[test]
    fn an_agent_that_is_gone_is_said_and_what_was_known_stays() {
        let mut screen = Screen::new(status(4));
        screen.take(Err(anyhow::anyhow!("no agent answers")));
        let text = seen(&mut screen, 24);
        assert!(text.contains("no agent answers (what you see is of") && text.contains("DP3"), "{text}");
    }
}
