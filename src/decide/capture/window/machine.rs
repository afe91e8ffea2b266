//! The state machine of one window: facts in, requests out, no clock and no socket.
//!
//! What it guarantees, whatever comes (see the property tests): one start; no stop unless the
//! window is ours, by a 2xx or by a mark in log or files; no stop while somebody else's window is
//! open; a stop at the deadline at the latest; a bounded number of stops; an end, always.

use std::time::Duration;

use super::ownership::Ownership;
use super::{
    Answer, CANCEL_LIMIT, DOUBT, EXPORT_LIMIT, Ending, Event, Failure, IDLE_GRACE, MAX_STOPS, Output, PROOF,
    Phase, SETTLE, START_TIMEOUT, Sight,
};
use crate::decide::capture::facts::Engine;
use crate::decide::capture::plan::{Form, StartRequest};
use crate::decide::signal::rank::Rank;
use crate::decide::time::Time;

const STOP: &str = "/stop_profile";
/// No server has it; the published how-to calls the stop so.
const END: &str = "/end_profile";

/// A window from its start request to its end.
#[derive(Clone, Debug)]
pub struct Window {
    engine: Engine,
    form: Form,
    deadline: Time,
    grace: Duration,
    hold: Option<Time>,
    writes_files: bool,
    sight: Sight,
    books: Ownership,
    phase: Phase,
    since: Time,
    sent_at: Time,
    start_pending: bool,
    stop_pending: bool,
    stops: u8,
    stopped_at: Option<Time>,
    path: &'static str,
    /// The answer of the last stop, when it was not a 2xx.
    stop_answer: Option<String>,
    stop_granted: bool,
    busy_closed_at: Option<Time>,
    wants_close: bool,
    cancelled_at: Option<Time>,
    until_cleared: bool,
    /// The connection of the last stop broke: the export may go on all the same.
    stop_lost: bool,
    failure: Option<Failure>,
    notes: Vec<String>,
}

impl Window {
    /// The window of `request`, whose start is to be sent now.
    pub fn start(request: &StartRequest, sight: Sight, now: Time) -> (Self, Output) {
        let window = Self {
            engine: request.engine,
            form: request.form,
            deadline: now + request.deadline,
            grace: request.deadline,
            hold: request.hold.map(|hold| now + hold),
            writes_files: request.writes_files,
            sight,
            books: Ownership::new(request),
            phase: Phase::Starting,
            since: now,
            sent_at: now,
            start_pending: true,
            stop_pending: false,
            stops: 0,
            stopped_at: None,
            path: STOP,
            stop_answer: None,
            stop_granted: false,
            busy_closed_at: None,
            wants_close: false,
            cancelled_at: None,
            until_cleared: request.until_cleared,
            stop_lost: false,
            failure: None,
            notes: request.notes.clone(),
        };
        (window, Output::Start)
    }

    /// How far it has come.
    pub const fn phase(&self) -> Phase {
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

    /// When the last stop was sent.
    pub const fn stopped_at(&self) -> Option<Time> {
        self.stopped_at
    }

    /// Whether it is known to be ours: a stop may be sent.
    pub const fn is_ours(&self) -> bool {
        self.books.is_ours()
    }

    /// Takes what happened, says what is to be done. Time may not run back.
    pub fn on(&mut self, event: &Event, now: Time) -> Vec<Output> {
        let mut out = Vec::new();
        if self.phase == Phase::Ended {
            return out;
        }
        self.absorb(event, now, &mut out);
        // Each step changes the phase or does nothing; the chain of phases is short.
        for _ in 0..8 {
            let before = (self.phase, out.len());
            if self.phase != Phase::Ended {
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
            Event::Log { rank, line } => self.books.line(*rank, line, now),
            Event::File { rank, whole } => self.books.file(*rank, *whole),
            Event::Cleared if self.until_cleared => self.wants_close = true,
            Event::Cleared => self.note("the rule had cleared before the window ended"),
            Event::Close => self.wants_close = true,
            Event::Cancel => {
                self.wants_close = true;
                self.cancelled_at.get_or_insert(now);
            }
            // What is written already may still be read.
            Event::Gone(_) if self.phase == Phase::Verifying => {}
            Event::Gone(why) => self.fail(Failure::ServerGone { why: why.clone() }, None, out),
        }
    }

    fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|n| n == note) {
            self.notes.push(note.to_owned());
        }
    }

    fn start_answered(&mut self, answer: &Answer, now: Time, out: &mut Vec<Output>) {
        if !std::mem::take(&mut self.start_pending) {
            return;
        }
        match answer {
            Answer::Ok => self.books.grant(),
            _ => self.books.disown(),
        }
        if self.phase != Phase::Starting {
            return;
        }
        match answer {
            Answer::Ok => self.enter(Phase::Open, now),
            Answer::Refused { status, body } => {
                self.fail(Failure::StartRefused { status: *status, body: body.clone() }, None, out);
            }
            Answer::NobodyListens => self.fail(not_reached("nobody listens there"), None, out),
            Answer::NotSent { why } => self.fail(not_reached(why), None, out),
            Answer::Failed { status, .. } => {
                self.failure = Some(Failure::StartFailed { status: *status });
                self.enter(Phase::Doubtful, now);
            }
            Answer::TimedOut => self.unknown("the start was not answered in time", now),
            Answer::Lost { why } => self.unknown(&format!("the start lost its connection ({why})"), now),
        }
    }

    fn unknown(&mut self, why: &str, now: Time) {
        self.failure = Some(Failure::UnknownStart { why: why.to_owned() });
        self.enter(Phase::Unknown, now);
    }

    fn stop_answered(&mut self, answer: &Answer, now: Time, out: &mut Vec<Output>) {
        if !std::mem::take(&mut self.stop_pending) {
            return;
        }
        let words = match answer {
            Answer::Ok => {
                self.stop_granted = true;
                return self.enter(Phase::Exporting, now);
            }
            Answer::NobodyListens => {
                let why = "nobody listens there any more".to_owned();
                return self.fail(Failure::ServerGone { why }, None, out);
            }
            // The window is ours, so this is a second try of the same stop, not a second stop.
            Answer::Refused { status: 404, .. } if self.path == STOP && self.may_stop() => {
                self.path = END;
                return self.send_stop(now, out);
            }
            Answer::TimedOut => {
                let unproven = Some("its export had not ended".to_owned());
                return self.fail(Failure::ExportTimedOut(EXPORT_LIMIT), unproven, out);
            }
            Answer::Refused { status: 401 | 403, .. } => {
                "401 (the profile calls take admin_api_key where the server has one, else api_key)".to_owned()
            }
            Answer::Refused { status, .. } | Answer::Failed { status, .. } => status.to_string(),
            Answer::NotSent { why } => why.clone(),
            Answer::Lost { why } => {
                self.stop_lost = true;
                why.clone()
            }
        };
        self.stop_answer = Some(words);
        self.enter(Phase::Exporting, now);
    }

    fn step(&mut self, now: Time, out: &mut Vec<Output>) {
        if let Some(at) = self.cancelled_at
            && now.since(at) >= CANCEL_LIMIT
            && !matches!(self.phase, Phase::Verifying)
        {
            return self.fail(Failure::Cancelled, Some("the agent ended first".into()), out);
        }
        match self.phase {
            Phase::Starting => self.starting(now, out),
            Phase::Doubtful => self.waiting_for_proof(self.since + DOUBT, now, out),
            Phase::Unknown => {
                // The deadline may have passed while the start was pending; then it runs again.
                let until = if self.since < self.deadline { self.deadline } else { self.since + self.grace };
                self.waiting_for_proof(until, now, out);
            }
            Phase::Open => self.open(now, out),
            Phase::Stopping => {
                if self.stopped_at.is_some_and(|at| now.since(at) > EXPORT_LIMIT + START_TIMEOUT) {
                    self.stop_answered(&Answer::TimedOut, now, out);
                }
            }
            Phase::Exporting => self.exporting(now, out),
            Phase::Verifying => self.verifying(now, out),
            Phase::Ended => {}
        }
    }

    fn starting(&mut self, now: Time, out: &mut Vec<Output>) {
        let due = now >= self.deadline || self.wants_close;
        if due && self.books.proven && self.may_stop() {
            self.send_stop(now, out);
        } else if now.since(self.sent_at) > START_TIMEOUT + DOUBT {
            self.start_answered(&Answer::TimedOut, now, out);
        }
    }

    /// A start of doubtful end: ours only by a mark, and then it is closed at once or at the
    /// deadline; without one it is given up, and no stop is sent.
    fn waiting_for_proof(&mut self, until: Time, now: Time, out: &mut Vec<Output>) {
        if self.books.proven {
            self.wants_close |= self.phase == Phase::Doubtful;
            self.failure = None;
            self.note("the start was not answered with success, but log or files show that it began");
            return self.enter(Phase::Open, now);
        }
        if now < until {
            return;
        }
        let failure = self.failure.clone().unwrap_or(Failure::Cancelled);
        let unproven = match &failure {
            Failure::UnknownStart { why } => Some(why.clone()),
            _ => None,
        };
        self.fail(failure, unproven, out);
    }

    fn open(&mut self, now: Time, out: &mut Vec<Output>) {
        // vLLM's window is closed by a stop, whatever its files say.
        if self.form != Form::Held && self.books.all_closed() {
            let next = if self.books.all_written() { Phase::Verifying } else { Phase::Exporting };
            return self.enter(next, now);
        }
        if self.books.busy_closed() {
            self.busy_closed_at.get_or_insert(now);
        }
        let idle_left =
            self.form != Form::Held && self.busy_closed_at.is_some_and(|at| now.since(at) >= IDLE_GRACE);
        let held = self.hold.is_some_and(|hold| now >= hold);
        let due = now >= self.deadline || held || idle_left || self.wants_close;
        if due && self.may_stop() {
            self.send_stop(now, out);
        } else if now.since(self.deadline) > EXPORT_LIMIT {
            let dir = self.books.foreign.open().map_or_else(String::new, |(_, dir)| dir.to_owned());
            let unproven = Some("somebody else's profile kept ours from being stopped".into());
            self.fail(Failure::Foreign { dir }, unproven, out);
        }
    }

    fn exporting(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.books.all_written() {
            return self.enter(Phase::Verifying, now);
        }
        // A rank that was armed when the stop came began after it: only another stop closes it.
        let outlived = self.stopped_at.is_some_and(|at| self.books.began_after(at));
        if outlived && self.stops < MAX_STOPS && self.may_stop() {
            return self.send_stop(now, out);
        }
        let armed = self.books.armed();
        let closed = self.books.all_closed();
        if self.stop_granted && (armed.is_empty() || !self.sight.log) {
            // The answer came after the export; lines and files follow within moments.
            return self.enter(Phase::Verifying, now);
        }
        let limit = if (closed && !self.stop_granted) || self.stop_lost { EXPORT_LIMIT } else { PROOF };
        if now.since(self.since) < limit && !self.is_blind() {
            return;
        }
        self.give_up_export(closed, &armed, now, out);
    }

    fn give_up_export(&mut self, closed: bool, armed: &[Rank], now: Time, out: &mut Vec<Output>) {
        if closed {
            return self.fail(Failure::ExportTimedOut(EXPORT_LIMIT), None, out);
        }
        if self.is_blind() && self.engine == Engine::Sglang {
            self.notes.push(format!(
                "the stop was answered with {}, as it is when nothing runs any more; the agent sees neither log nor files of this server, so nothing of this window is proven",
                self.stop_answer.as_deref().unwrap_or("success"),
            ));
            return self.enter(Phase::Verifying, now);
        }
        if self.stop_granted {
            self.notes.push(format!("{} never began and stays armed: a stop does not disarm", list(armed)));
            let unproven = format!("{} is armed and will record at its next traffic", list(armed));
            return self.end(None, Some(unproven), out);
        }
        let ranks = list(&self.books.not_closed());
        let answer = self.stop_answer.clone().unwrap_or_else(|| "nothing".into());
        let unproven = format!("nothing shows that {ranks} ended");
        self.fail(Failure::NotProvenClosed { answer, ranks }, Some(unproven), out);
    }

    fn verifying(&mut self, now: Time, out: &mut Vec<Output>) {
        let waited = now.since(self.since);
        let looks = self.sight.files && self.writes_files;
        let enough = self.books.all_files() || (self.books.busy_files() && waited >= IDLE_GRACE);
        let cancelled = self.cancelled_at.is_some() && waited >= IDLE_GRACE;
        if !looks || enough || cancelled || waited >= SETTLE {
            self.end(None, None, out);
        }
    }

    /// Neither log nor files of this server are in sight: no proof will ever come.
    const fn is_blind(&self) -> bool {
        !self.sight.log && !self.sight.files
    }

    fn may_stop(&self) -> bool {
        let again = self.engine == Engine::Sglang || self.stops == 0;
        self.books.is_ours()
            && self.books.foreign.open().is_none()
            && !self.stop_pending
            && self.stops < MAX_STOPS
            // A second stop has crashed vLLM.
            && again
    }

    fn send_stop(&mut self, now: Time, out: &mut Vec<Output>) {
        self.stops += 1;
        self.stop_pending = true;
        self.stop_granted = false;
        self.stop_lost = false;
        self.stopped_at = Some(now);
        self.enter(Phase::Stopping, now);
        out.push(Output::Stop { path: self.path });
    }

    fn enter(&mut self, phase: Phase, now: Time) {
        self.phase = phase;
        self.since = now;
    }

    fn fail(&mut self, failure: Failure, unproven: Option<String>, out: &mut Vec<Output>) {
        self.end(Some(failure), unproven, out);
    }

    fn end(&mut self, failure: Option<Failure>, unproven: Option<String>, out: &mut Vec<Output>) {
        self.phase = Phase::Ended;
        let mut notes = std::mem::take(&mut self.notes);
        if self.books.doubled {
            notes.push(
                "somebody started a second profile during the window, which destroys what the first recorded"
                    .into(),
            );
        }
        out.push(Output::Finish(Ending { failure, unproven, notes }));
    }
}

fn not_reached(why: &str) -> Failure {
    Failure::NotReached { why: why.to_owned() }
}

fn list(ranks: &[Rank]) -> String {
    ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
