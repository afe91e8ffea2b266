//! What the core remembers of one server beside its signals: the facts that pre-flight checks,
//! the window of ours that is open on it, and the time in which its samples are distrusted.

use std::sync::Arc;
use std::time::Duration;

use super::event::{OpenWindow, ServerFact, WindowEvent};
use crate::capture::facts::{Facts, HealthAnswer};
use crate::capture::line::ProfileLine;
use crate::capture::window::SettlingTime;
use crate::signal::sample::TargetId;
use crate::signal::store::SignalStore;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// How far back samples show which ranks have work.
const WORK_WINDOW: Duration = Duration::from_secs(30);

/// Several front ends of one server begin within so many seconds, and answer in turns.
const ONE_START_S: f64 = 5.0;

#[derive(Debug)]
pub struct Server {
    /// Its configured name.
    pub name: Arc<str>,
    /// Servers of one group have one window at a time.
    pub group: Arc<str>,
    /// What pre-flight checks.
    pub facts: Facts,
    /// Which instance it was when it last said so.
    instance: Option<String>,
    /// When its process was started, in seconds since the epoch by its own clock, where its metrics say so.
    started: Option<f64>,
    /// Ours.
    pub window: Option<OpenWindow>,
    /// While and after a window of ours.
    pub settling: Option<SettlingTime>,
    /// When its log last said that it dies; `None` once it lives again.
    pub died: Option<Time>,
    /// It stopped answering, and has not answered since.
    pub was_lost: bool,
}

impl Server {
    /// A server of which nothing is known yet.
    pub fn new(name: Arc<str>, group: Arc<str>, sees_log: bool) -> Self {
        let facts = Facts { sees_log, ..Facts::default() };
        Self {
            name,
            group,
            facts,
            instance: None,
            started: None,
            window: None,
            settling: None,
            died: None,
            was_lost: false,
        }
    }

    /// The clock was set by so many nanoseconds.
    pub fn shift(&mut self, by_ns: i64) {
        self.facts.shift(by_ns);
        self.settling.iter_mut().for_each(|settling| settling.shift(by_ns));
        let window = self.window.iter_mut().map(|window| &mut window.since);
        Time::shift_all(window.chain(&mut self.died), by_ns);
    }

    /// Something was learned of it. Returns by what it shows to be another instance than before.
    pub fn learn(&mut self, fact: ServerFact, now: Time) -> Option<String> {
        match fact {
            ServerFact::Info(info) => {
                let before = self.instance.replace(info.instance.clone());
                let is_another = before.is_some_and(|before| before != info.instance);
                (self.facts.server, self.facts.unanswered) = (Some(info), None);
                if is_another {
                    self.facts.server_restarted();
                    return Some("what it says of itself (its random seed, release or model) changed".into());
                }
            }
            ServerFact::Lost => self.facts.server_lost(now),
            ServerFact::Health(answer) => {
                // One that says that it is not well may answer all the same: that it does not is told as lost.
                if let HealthAnswer::Healthy(_) = answer {
                    self.facts.unanswered = None;
                }
                self.facts.health.answered(answer, now);
            }
            ServerFact::Folder(folder) => self.facts.folder_seen(folder),
        }
        None
    }

    /// Its metrics say when its process was started. Returns by what that shows it to be another instance than before.
    pub fn started(&mut self, started: f64) -> Option<String> {
        let before = self.started.unwrap_or(started);
        self.started = Some(before.max(started));
        if started <= before + ONE_START_S {
            return None;
        }
        self.facts.server_restarted();
        Some("its process was started later than the one before (`process_start_time_seconds`)".into())
    }

    /// A profiling line of its log. Returns the incident whose window it concerns.
    pub fn profile_line(&mut self, rank: Rank, line: &ProfileLine, at: Time) -> Option<Arc<str>> {
        self.facts.profile_line(rank, line, at);
        self.window.as_ref().map(|w| w.incident.clone())
    }

    /// A window of the agent is being started.
    pub fn window_opened(&mut self, window: OpenWindow) {
        if let Some(marks) = &window.marks {
            self.facts.own.opened(marks.clone(), window.since);
        }
        self.window = Some(window);
    }

    /// An agent before this one left a window open.
    pub fn window_left(&mut self, window: OpenWindow) {
        if let Some(marks) = &window.marks {
            self.facts.own.left_behind(marks.clone(), window.since);
        }
        self.window = Some(window);
    }

    /// The agent's window made progress.
    pub fn window_event(&mut self, event: &WindowEvent, now: Time) {
        match event {
            WindowEvent::Entered(phase) => {
                let Some(window) = &mut self.window else { return };
                (window.phase, window.since) = (*phase, now);
                self.settling.get_or_insert(SettlingTime::opened(now)).entered(*phase, now);
            }
            WindowEvent::Ended(_) | WindowEvent::Refused(_) => {
                if self.window.take().is_some_and(|w| w.marks.is_some()) {
                    self.facts.own.ended(now);
                }
                if let Some(settling) = self.settling.as_mut().filter(|d| d.until.is_none()) {
                    settling.exported(now);
                }
            }
        }
    }

    /// Which ranks had work lately, by the samples that are kept: read only when a window is requested,
    /// so that recording a sample costs nothing more.
    pub fn note_work(&mut self, id: TargetId, store: &SignalStore, now: Time) {
        for (rank, seen, worked) in store.last_work(id, now - WORK_WINDOW) {
            if worked != Some(seen) {
                self.facts.rank_seen(rank, false, seen);
            }
            if let Some(worked) = worked {
                self.facts.rank_seen(rank, true, worked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::captured::CaptureKind;
    use crate::capture::governor::AttemptEnd;
    use crate::capture::line::Marks;
    use crate::capture::window::WindowPhase;
    use crate::incident::StoredCapture;

    const OURS: &str = "/p/skewtrap-i1";

    fn at(s: f64) -> Time {
        Time::from_epoch_s(1000.0 + s)
    }

    #[test]
    fn the_lines_of_a_window_that_an_agent_before_left_open_are_nobody_elses_once_a_rank() {
        let window = OpenWindow {
            incident: "i1".into(),
            marks: Some(Marks { dir: Some(OURS.into()), prefix: None, id: None }),
            means: CaptureKind::Http,
            phase: WindowPhase::Unknown,
            since: at(-3.0),
            deadline: Duration::from_secs(5),
        };
        let mut server = Server::new("s".into(), "s".into(), true);
        server.window_left(window);
        let done = |dir: &str| ProfileLine::Done { dir: dir.into() };
        // Its first lines were written while no agent read the log.
        server.profile_line(Rank::dp(0), &ProfileLine::Stops, at(1.0));
        server.profile_line(Rank::dp(0), &done(OURS), at(2.0));
        server.profile_line(Rank::dp(1), &ProfileLine::Stops, at(2.0));
        assert_eq!(server.facts.foreign.last(), None);
        server.profile_line(Rank::dp(0), &ProfileLine::Stops, at(3.0));
        assert_eq!(server.facts.foreign.last(), Some(at(3.0)), "ours had ended there");
        server.profile_line(Rank::dp(2), &starts("/theirs", "1"), at(4.0));
        server.profile_line(Rank::dp(2), &ProfileLine::Stops, at(5.0));
        server.profile_line(Rank::dp(2), &done("/theirs"), at(6.0));
        assert_eq!(server.facts.foreign.last(), Some(at(6.0)), "and on this one another began");
    }

    fn starts(dir: &str, id: &str) -> ProfileLine {
        ProfileLine::Starts { dir: dir.into(), id: Some(id.into()) }
    }

    fn done(dir: &str) -> ProfileLine {
        ProfileLine::Done { dir: dir.into() }
    }

    /// A server on which a window of ours opened at 10 s and, with `ended`, ended then.
    fn server(marks: Option<Marks>, ended: Option<f64>) -> Server {
        let mut server = Server::new("s".into(), "s".into(), true);
        let (incident, deadline) = ("i1".into(), Duration::from_secs(5));
        let (phase, since, means) = (WindowPhase::Starting, at(10.0), CaptureKind::Http);
        server.window_opened(OpenWindow { incident, marks, means, phase, since, deadline });
        if let Some(s) = ended {
            let end = AttemptEnd {
                at: at(s),
                stalled: Duration::ZERO,
                bytes: 0,
                unproven: None,
                cost: None,
                harm: None,
            };
            let stored = StoredCapture::failed(String::new(), end);
            server.window_event(&WindowEvent::Ended(Box::new(stored)), at(s));
        }
        server
    }

    fn by_folder() -> Option<Marks> {
        Some(Marks { dir: Some(OURS.into()), ..Marks::default() })
    }

    fn by_prefix() -> Option<Marks> {
        Some(Marks { prefix: Some("skewtrap-i1".into()), ..Marks::default() })
    }

    /// Another client's windows, after lines of the rank DP0: since when one is open, and when one was last
    /// seen, in seconds.
    fn foreign_after(mut server: Server, lines: &[(f64, ProfileLine)]) -> (Option<f64>, Option<f64>) {
        for (s, line) in lines {
            server.profile_line(Rank::dp(0), line, at(*s));
        }
        let s = |t: Time| t.signed_s_since(at(0.0));
        (server.facts.foreign.open().map(|o| s(o.0)), server.facts.foreign.last().map(s))
    }

    #[test]
    fn all_lines_of_our_window_are_ours_also_the_last_ones_after_its_end() {
        let lines = [(10.0, starts(OURS, "7")), (11.0, ProfileLine::Stops), (15.0, done(OURS))];
        assert_eq!(foreign_after(server(by_folder(), None), &lines), (None, None));
        assert_eq!(foreign_after(server(by_folder(), Some(12.0)), &lines), (None, None), "late lines");
        let armed = [(60.0, starts(OURS, "7")), (61.0, ProfileLine::Stops), (62.0, done(OURS))];
        assert_eq!(foreign_after(server(by_folder(), Some(12.0)), &armed), (None, None), "an armed rank");
        assert_eq!(foreign_after(server(by_folder(), Some(12.0)), &[(15.0, done(OURS))]), (None, None));
    }

    #[test]
    fn somebody_elses_lines_reach_the_books_while_ours_is_open() {
        let theirs =
            || [(11.0, starts("/p/theirs", "9")), (12.0, ProfileLine::Stops), (13.0, done("/p/theirs"))];
        assert_eq!(foreign_after(server(by_folder(), None), &theirs()[..1]), (Some(11.0), Some(11.0)));
        assert_eq!(foreign_after(server(by_folder(), None), &theirs()), (None, Some(13.0)));
        assert_eq!(
            foreign_after(server(None, None), &theirs()[..1]),
            (Some(11.0), Some(11.0)),
            "an nsys window"
        );
        // A file in another folder is not ours, though ours had begun on that rank.
        let lines = [(10.0, starts(OURS, "7")), (12.0, done("/p/theirs"))];
        assert_eq!(foreign_after(server(by_folder(), None), &lines), (None, Some(12.0)));
    }

    #[test]
    fn a_start_over_ours_is_over_with_the_one_file_that_comes() {
        let lines = [(10.0, starts(OURS, "7")), (11.0, starts("/p/theirs", "9"))];
        assert_eq!(foreign_after(server(by_folder(), None), &lines), (Some(11.0), Some(11.0)));
        let over = [&lines[..], &[(14.0, done(OURS))]].concat();
        assert_eq!(foreign_after(server(by_folder(), None), &over), (None, Some(11.0)));
    }

    #[test]
    fn without_a_mark_in_the_log_the_time_of_our_window_and_the_id_tell() {
        let ours = [(10.0, starts("/tmp", "7")), (11.0, ProfileLine::Stops), (12.0, done("/tmp"))];
        assert_eq!(foreign_after(server(by_prefix(), None), &ours), (None, None));
        assert_eq!(
            foreign_after(server(by_prefix(), None), &[(5.0, starts("/tmp", "6"))]).0,
            Some(5.0),
            "before"
        );
        assert_eq!(
            foreign_after(server(by_prefix(), Some(13.0)), &[(20.0, starts("/tmp", "8"))]).0,
            Some(20.0),
            "after"
        );
        let second = [&ours[..], &[(12.5, starts("/tmp", "8"))]].concat();
        assert_eq!(foreign_after(server(by_prefix(), None), &second).0, Some(12.5), "another id");
        let late = [ours[0].clone(), (20.0, done("/tmp"))];
        assert_eq!(foreign_after(server(by_prefix(), Some(13.0)), &late), (None, None));
    }
}
