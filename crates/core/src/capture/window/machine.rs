//! The state machine of one window: facts in, requests out, no clock and no socket.
//!
//! What it guarantees, whatever comes (see the property tests): one start; no stop unless the
//! window is ours, by a 2xx or by a mark in log or files, or its start came to an unknown end where no
//! log could show it and nothing speaks for somebody else's; no stop while somebody else's window is
//! open; a stop at the deadline at the latest, or as soon as the server is reached again; a bounded
//! number of stops; an end, always, that says whether the window is proven closed.

mod answers;
mod phases;

use std::time::Duration;

use super::ownership::Ownership;
use super::{
    Answer, CANCEL_LIMIT, CHANCE, DOUBT, EXPORT_LIMIT, Ending, Event, Failure, MAX_STOPS, OrphanedWindow,
    Output, RETRY, START_TIMEOUT, Stops, Visibility, WindowPhase,
};
use crate::capture::facts::ServerKind;
use crate::capture::plan::{StartMode, StartRequest};
use skewtrap_trace::time::Time;

/// No server has it; the published how-to calls the stop so.
const END: &str = "/end_profile";

/// A window from its start request to its end.
#[derive(Clone, Debug)]
pub struct Window {
    engine: ServerKind,
    form: StartMode,
    deadline: Time,
    grace: Duration,
    hold: Option<Time>,
    writes_files: bool,
    visibility: Visibility,
    ownership: Ownership,
    phase: WindowPhase,
    since: Time,
    sent_at: Time,
    start_pending: bool,
    stop_pending: bool,
    /// Whether the pending stop is on its way, so that it may have been carried out.
    stop_left: bool,
    stops: u8,
    /// So many stops, those before the first one that may have been carried out, did nothing.
    undone: u8,
    stopped_at: Option<Time>,
    path: &'static str,
    /// The answer of the last stop, when it was not a 2xx.
    stop_answer: Option<String>,
    stop_granted: bool,
    /// The last stop failed in a way that another may mend.
    may_retry: bool,
    busy_closed_at: Option<Time>,
    wants_close: bool,
    cancelled_at: Option<Time>,
    until_cleared: bool,
    /// The connection of the last stop broke: the export may go on all the same.
    stop_lost: bool,
    /// Nobody listened at the last try: a stop waits until somebody does.
    unreachable: bool,
    /// What its log said of its death.
    dying: Option<String>,
    /// Nothing proves the window ours and nothing can, so it is stopped on the chance that it is.
    on_chance: bool,
    /// The start was answered as it is while a window is open already, which may be anybody's.
    refused_double: bool,
    /// The start was answered with 3xx or 4xx: nothing was done, unless log or files show otherwise.
    refused: bool,
    /// The start was answered as by something in front of the server, which may have passed it on.
    passed_on: bool,
    /// How the last stop was answered, for the next agent.
    last_answer: Option<Answer>,
    answered_before: Option<Answer>,
    /// The instance that took the start has other ranks than the window was made for.
    other_ranks: bool,
    /// An agent before this one opened it.
    left_behind: bool,
    /// That agent had seen its end.
    ended_before: bool,
    /// When a file of it last grew or was read.
    last_file_at: Option<Time>,
    /// Since when the log says that every file is written.
    written_at: Option<Time>,
    /// When the stop before the last was sent.
    stopped_before: Option<Time>,
    failure: Option<Failure>,
    notes: Vec<String>,
}

const OTHER_RANKS: &str =
    "the server was started anew with other ranks just before the start, and nothing shows what those do";

impl Window {
    /// The window of `request`, whose start is to be sent now.
    pub fn start(request: &StartRequest, visibility: Visibility, now: Time) -> (Self, Output) {
        let window = Self {
            engine: request.engine,
            form: request.form,
            deadline: now + request.deadline,
            grace: request.deadline,
            hold: request.hold.map(|hold| now + hold),
            writes_files: request.writes_files,
            visibility,
            ownership: Ownership::new(request),
            phase: WindowPhase::Starting,
            since: now,
            sent_at: now,
            start_pending: true,
            stop_pending: false,
            stop_left: false,
            stops: 0,
            undone: 0,
            stopped_at: None,
            path: request.engine.stop_path(),
            stop_answer: None,
            stop_granted: false,
            may_retry: false,
            busy_closed_at: None,
            wants_close: false,
            cancelled_at: None,
            until_cleared: request.until_cleared,
            stop_lost: false,
            unreachable: false,
            dying: None,
            on_chance: false,
            refused_double: false,
            refused: false,
            passed_on: false,
            last_answer: None,
            answered_before: None,
            other_ranks: false,
            left_behind: false,
            ended_before: false,
            last_file_at: None,
            written_at: None,
            stopped_before: None,
            failure: None,
            notes: request.notes.clone(),
        };
        (window, Output::Start)
    }

    /// A window that an agent before this one left behind. It is closed at once, given that it is proven to
    /// be ours and was not closed before.
    pub fn resume(request: &StartRequest, visibility: Visibility, left: &OrphanedWindow, now: Time) -> Self {
        let (mut window, _) = Self::start(request, visibility, left.sent_at);
        window.start_pending = false;
        window.left_behind = true;
        window.wants_close = true;
        if left.granted {
            window.ownership.grant();
            window.enter(WindowPhase::Open, now);
        } else {
            window.unknown("the agent died before the start was answered", now);
        }
        window.refused_double = left.refused_double;
        if left.ended {
            window.ended_before = true;
            window.enter(WindowPhase::Verifying, now);
        } else if let Some(Stops { count, last, answer }) = &left.stops {
            window.stops = *count;
            window.stopped_at = Some(*last);
            // It was stopped without a proof once, so it may be again.
            window.on_chance = !left.granted && !visibility.log;
            let unheard = || Answer::Lost { why: "the agent died before the stop was answered".into() };
            window.conclude(&answer.clone().unwrap_or_else(unheard), now);
            // The pause before another stop goes on from the last one, not anew from the restart.
            window.since = (*last).max(now - RETRY);
        }
        window.note("the agent died during this window and closed it when it was back");
        window
    }

    /// Takes a line or a file of the time before this agent, without deciding anything yet: what
    /// proves the window closed must be known before a stop is thought of.
    pub fn recall(&mut self, event: &Event, now: Time) {
        if matches!(event, Event::Log { .. } | Event::File { .. }) {
            self.absorb(event, now, &mut Vec::new());
        }
    }

    /// How far it has come.
    pub const fn phase(&self) -> WindowPhase {
        self.phase
    }

    /// Since when it is in this phase.
    pub const fn since(&self) -> Time {
        self.since
    }

    /// When a stop is due at the latest.
    pub const fn deadline(&self) -> Time {
        self.deadline
    }

    /// The stops that were sent, for the next agent; `None` where none was. One that was only decided is not
    /// among them.
    pub fn stops(&self) -> Option<Stops> {
        let (count, last) = match self.stop_pending && !self.stop_left {
            true => (self.stops.saturating_sub(1), self.stopped_before),
            false => (self.stops, self.stopped_at),
        };
        let last = last.filter(|_| count > 0)?;
        Some(Stops { count, last, answer: self.last_answer.clone() })
    }

    /// Whether it was closed: by its steps, or by a stop that was answered with success and that nothing
    /// contradicts.
    pub fn has_ended(&self) -> bool {
        self.phase == WindowPhase::Verifying
    }

    /// Whether a stop that is about to leave is still right, after what was learned since it was decided.
    pub fn confirms_stop(&self) -> bool {
        let is_over = self.form != StartMode::Held && self.ownership.all_closed();
        // The first stop is also that of a window whose end only the log tells.
        let is_over = is_over && (self.stops > 1 || !self.lacks_files());
        self.phase == WindowPhase::Stopping
            && self.stop_pending
            && !self.unreachable
            && self.ownership.foreign.open().is_none()
            && !is_over
    }

    /// Whether an agent before this one opened it.
    pub const fn is_left_behind(&self) -> bool {
        self.left_behind
    }

    /// When the last stop was sent.
    pub const fn stopped_at(&self) -> Option<Time> {
        self.stopped_at
    }

    /// Whether it is known to be ours: a stop may be sent.
    pub const fn is_ours(&self) -> bool {
        self.ownership.is_ours()
    }

    /// Takes what happened, says what is to be done. Time may not run back.
    pub fn on(&mut self, event: &Event, now: Time) -> Vec<Output> {
        let mut out = Vec::new();
        if self.phase == WindowPhase::Ended {
            self.settle_stop(event);
            return out;
        }
        self.absorb(event, now, &mut out);
        // Each step changes the phase or does nothing; the chain of phases is short.
        for _ in 0..8 {
            let before = (self.phase, out.len());
            if self.phase != WindowPhase::Ended {
                self.step(now, &mut out);
            }
            if (self.phase, out.len()) == before {
                break;
            }
        }
        out
    }

    fn absorb(&mut self, event: &Event, now: Time, out: &mut Vec<Output>) {
        match event {
            Event::Tick => {}
            Event::StartAnswered(answer) => self.start_answered(answer, now, out),
            Event::StopAnswered(answer) => self.stop_answered(answer, now, out),
            Event::Log { rank, line } => self.ownership.line(*rank, line, now),
            Event::File { rank, whole } => {
                self.last_file_at = Some(now);
                self.ownership.file(*rank, *whole);
            }
            Event::Cleared if self.until_cleared => self.wants_close = true,
            Event::Cleared => self.note("the rule had cleared before the window ended"),
            Event::Close => self.wants_close = true,
            Event::Cancel => {
                self.wants_close = true;
                self.cancelled_at.get_or_insert(now);
            }
            Event::Answers => self.unreachable = false,
            // The first one has the reason; those after it only say that the rest follows.
            Event::Dying(why) => drop(self.dying.get_or_insert_with(|| why.clone())),
            Event::OtherRanks => self.other_ranks = true,
            Event::Unreachable => self.unreachable(out),
            // What is written already may still be read.
            Event::Gone(_) if self.phase == WindowPhase::Verifying => {}
            Event::Gone(why) => self.fail(Failure::ServerGone { why: why.clone() }, None, out),
            Event::StopLeaves if self.stop_pending => {
                self.stop_left = true;
                self.answered_before = self.last_answer.take();
            }
            Event::StopLeaves => {}
            Event::StopWithheld => self.stop_withheld(now),
            Event::Unidentified => {
                if self.phase == WindowPhase::Stopping && self.stop_pending {
                    self.take_stop_back();
                    let unproven =
                        Some("nothing shows that the server is the one that was asked to start".into());
                    self.fail(Failure::Unidentified, unproven, out);
                }
            }
        }
    }

    /// Nobody listens. Only a server whose log said that it dies is then known to be gone.
    fn unreachable(&mut self, out: &mut Vec<Output>) {
        self.unreachable = true;
        if let Some(why) = self.dying.clone()
            && self.phase != WindowPhase::Verifying
        {
            self.fail(Failure::ServerGone { why }, None, out);
        }
    }

    fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|n| n == note) {
            self.notes.push(note.to_owned());
        }
    }

    fn step(&mut self, now: Time, out: &mut Vec<Output>) {
        if let Some(at) = self.cancelled_at
            && now.since(at) >= CANCEL_LIMIT
            && !matches!(self.phase, WindowPhase::Verifying)
        {
            return self.fail(Failure::Cancelled, Some("the agent ended first".into()), out);
        }
        match self.phase {
            WindowPhase::Starting => self.starting(now, out),
            WindowPhase::Doubtful => self.waiting_for_proof(self.doubtful_until(), now, out),
            WindowPhase::Unknown => {
                let until = match () {
                    // It is to be closed now, and without a log nothing more is told of it: an agent that is
                    // killed again and again must not wait anew each time.
                    () if self.wants_close && !self.visibility.log => self.sent_at + DOUBT,
                    () if self.since < self.deadline => self.deadline,
                    // The deadline passed while the start was pending; it runs again.
                    () => self.since + self.grace,
                };
                self.waiting_for_proof(until, now, out);
            }
            WindowPhase::Open => self.open(now, out),
            WindowPhase::Stopping => {
                // An answer that hangs changes nothing about a window that is seen to be written.
                let is_first = self.stops == 1 && self.lacks_files();
                if self.form != StartMode::Held && self.ownership.all_written() && !is_first {
                    self.enter(WindowPhase::Verifying, now);
                } else if self.stopped_at.is_some_and(|at| now.since(at) > EXPORT_LIMIT + START_TIMEOUT) {
                    self.stop_answered(&Answer::TimedOut, now, out);
                }
            }
            WindowPhase::Exporting => self.exporting(now, out),
            WindowPhase::Verifying => self.verifying(now, out),
            WindowPhase::Ended => {}
        }
    }

    /// Whether somebody else may have begun meanwhile, as far as nothing shows that ours is open: it was left
    /// behind, and long ago.
    fn is_stale(&self, now: Time) -> bool {
        let is_seen = self.visibility.log && !self.ownership.recording().is_empty();
        self.left_behind && !is_seen && now.since(self.sent_at) > self.grace + CHANCE
    }

    /// Whether it ends by its steps and nothing would show a window of somebody else's that began after
    /// that: then it is never stopped. All ranks of TensorRT-LLM step together.
    pub(super) fn ends_unseen(&self) -> bool {
        self.is_blind() && (self.form == StartMode::Exact || self.engine == ServerKind::TensorrtLlm)
    }

    /// Whether only the log says that ranks ended: where files are in sight that is no proof, for others can
    /// write into a log too.
    pub(super) fn is_unshown(&self) -> bool {
        self.lacks_files() && self.stops == 0
    }

    fn lacks_files(&self) -> bool {
        self.visibility.files && self.writes_files && !self.ownership.all_sighted()
    }

    fn may_stop(&self, now: Time) -> bool {
        let again = !self.engine.runs_vllm() || self.stops == self.undone;
        let is_ours = self.ownership.is_ours() || (self.on_chance && !self.foreign_possible());
        is_ours
            && !self.may_hold_another()
            && self.ownership.foreign.open().is_none()
            && !self.stop_pending
            && !self.unreachable
            && !self.is_stale(now)
            && !self.ends_unseen()
            && self.stops < MAX_STOPS
            // A second stop has crashed vLLM, where the first one was carried out.
            && again
    }

    /// Until when a proof is waited for that a start began though its answer says otherwise. Files come
    /// only with the end of a window.
    fn doubtful_until(&self) -> Time {
        let until = self.since + DOUBT;
        if self.passed_on && self.visibility.log {
            // What passed it on may have done so late, or the server may have been busy.
            return until.max(self.sent_at + START_TIMEOUT);
        }
        let only_files = self.refused && !self.visibility.log && self.visibility.files;
        if only_files { until.max(self.deadline) } else { until }
    }

    /// Whether somebody else may have a window open there, as far as nothing proves ours.
    fn foreign_possible(&self) -> bool {
        self.refused || self.refused_double || self.ownership.foreign.last().is_some()
    }

    /// Whether the start was answered as it is where a rank records for somebody else.
    pub const fn is_refused_double(&self) -> bool {
        self.refused_double
    }

    /// Whether a rank may have refused the start because somebody else's profile is open on it, which no
    /// log would show. A stop is of all ranks; ours end by their steps.
    const fn may_hold_another(&self) -> bool {
        self.refused_double && !self.visibility.log
    }

    fn send_stop(&mut self, now: Time, out: &mut Vec<Output>) {
        self.stops += 1;
        self.stop_pending = true;
        self.stop_left = false;
        self.stop_granted = false;
        self.may_retry = false;
        self.stop_lost = false;
        self.stopped_before = self.stopped_at;
        self.stopped_at = Some(now);
        self.enter(WindowPhase::Stopping, now);
        out.push(Output::Stop { path: self.path });
    }

    fn take_stop_back(&mut self) {
        self.stop_pending = false;
        self.stops = self.stops.saturating_sub(1);
        self.stopped_at = self.stopped_before.take();
        if std::mem::take(&mut self.stop_left) {
            self.last_answer = self.answered_before.take();
        }
        self.path = self.engine.stop_path();
    }

    /// What became of a stop that was under way when the window was given up, for the next agent.
    fn settle_stop(&mut self, event: &Event) {
        match event {
            Event::StopWithheld | Event::StopAnswered(Answer::ConnectionRefused | Answer::NotSent { .. })
                if self.stop_pending =>
            {
                self.take_stop_back();
            }
            Event::StopAnswered(answer) if std::mem::take(&mut self.stop_pending) => {
                self.last_answer = Some(answer.clone());
            }
            _ => {}
        }
    }

    fn stop_withheld(&mut self, now: Time) {
        if self.stop_pending {
            self.take_stop_back();
            if self.phase == WindowPhase::Stopping {
                self.enter(WindowPhase::Open, now);
            }
        }
    }

    fn enter(&mut self, phase: WindowPhase, now: Time) {
        self.phase = phase;
        self.since = now;
    }

    fn fail(&mut self, failure: Failure, unproven: Option<String>, out: &mut Vec<Output>) {
        self.end(Some(failure), unproven, out);
    }

    fn end(&mut self, failure: Option<Failure>, unproven: Option<String>, out: &mut Vec<Output>) {
        let is_gone = matches!(failure, Some(Failure::ServerGone { .. }));
        let unproven = unproven.or_else(|| (self.other_ranks && !is_gone).then(|| OTHER_RANKS.to_owned()));
        self.phase = WindowPhase::Ended;
        let mut notes = std::mem::take(&mut self.notes);
        if self.ownership.doubled {
            notes.push(
                "somebody started a second profile during the window, which destroys what the first recorded"
                    .into(),
            );
        }
        out.push(Output::Finish(Ending { failure, unproven, notes }));
    }
}
