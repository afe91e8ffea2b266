//! What time makes of a window in each of its phases.

use super::Window;
use crate::capture::facts::ServerKind;
use crate::capture::plan::Form;
use crate::capture::verify::names_of;
use crate::capture::window::{
    Answer, DOUBT, EXPORT_LIMIT, Failure, IDLE_GRACE, MAX_STOPS, Output, PROOF, RETRY, SETTLE, START_TIMEOUT,
    WindowPhase,
};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

impl Window {
    pub(super) fn starting(&mut self, now: Time, out: &mut Vec<Output>) {
        // An answer that hangs changes nothing about a window that is seen to be over.
        if self.ownership.proven && self.form != Form::Held && self.ownership.all_closed() {
            return self.enter(WindowPhase::Open, now);
        }
        let due = now >= self.deadline || self.wants_close;
        if due && self.ownership.proven && self.may_stop() {
            self.send_stop(now, out);
        } else if now.since(self.sent_at) > START_TIMEOUT + DOUBT {
            self.start_answered(&Answer::TimedOut, now, out);
        }
    }

    /// A start of doubtful end: ours only by a mark, and then it is closed at once or at the
    /// deadline; without one it is given up, and no stop is sent.
    pub(super) fn waiting_for_proof(&mut self, until: Time, now: Time, out: &mut Vec<Output>) {
        if self.ownership.proven {
            self.wants_close |= self.phase == WindowPhase::Doubtful;
            self.failure = None;
            self.note("the start was not answered with success, but log or files show that it began");
            return self.enter(WindowPhase::Open, now);
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

    pub(super) fn open(&mut self, now: Time, out: &mut Vec<Output>) {
        // vLLM's window is closed by a stop, whatever its files say.
        if self.form != Form::Held && self.ownership.all_closed() {
            let next =
                if self.ownership.all_written() { WindowPhase::Verifying } else { WindowPhase::Exporting };
            return self.enter(next, now);
        }
        if self.ownership.busy_closed() {
            self.busy_closed_at.get_or_insert(now);
        }
        let idle_left =
            self.form != Form::Held && self.busy_closed_at.is_some_and(|at| now.since(at) >= IDLE_GRACE);
        let held = self.hold.is_some_and(|hold| now >= hold);
        let due = now >= self.deadline || held || idle_left || self.wants_close;
        if due && self.may_stop() {
            self.send_stop(now, out);
        } else if now.since(self.deadline) > EXPORT_LIMIT {
            let dir = self.ownership.foreign.open().map_or_else(String::new, |(_, dir)| dir.to_owned());
            let unproven = Some("somebody else's profile kept ours from being stopped".into());
            self.fail(Failure::Foreign { dir }, unproven, out);
        }
    }

    pub(super) fn exporting(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.ownership.all_written() {
            return self.enter(WindowPhase::Verifying, now);
        }
        // A rank that was armed when the stop came began after it: only another stop closes it.
        let outlived = self.stopped_at.is_some_and(|at| self.ownership.began_after(at));
        if outlived && self.stops < MAX_STOPS && self.may_stop() {
            return self.send_stop(now, out);
        }
        let tried = self.may_retry && now.since(self.since) >= RETRY;
        if tried && self.visibility.log && self.ownership.any_open() && self.may_stop() {
            return self.send_stop(now, out);
        }
        let armed = self.ownership.armed();
        let closed = self.ownership.all_closed();
        if self.stop_granted && (armed.is_empty() || !self.visibility.log) {
            // The answer came after the export; lines and files follow within moments.
            return self.enter(WindowPhase::Verifying, now);
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
        if self.is_blind() && self.engine == ServerKind::Sglang {
            self.notes.push(format!(
                "the stop was answered with {}, as it is when nothing runs any more; the agent sees neither log nor files of this server, so nothing of this window is proven",
                self.stop_answer.as_deref().unwrap_or("success"),
            ));
            return self.enter(WindowPhase::Verifying, now);
        }
        if self.stop_granted {
            self.notes
                .push(format!("{} never began and stays armed: a stop does not disarm", names_of(armed)));
            let unproven = format!("{} is armed and will record at its next traffic", names_of(armed));
            return self.end(None, Some(unproven), out);
        }
        let ranks = names_of(&self.ownership.not_closed());
        let answer = self.stop_answer.clone().unwrap_or_else(|| "nothing".into());
        let unproven = format!("nothing shows that {ranks} ended");
        self.fail(Failure::NotProvenClosed { answer, ranks }, Some(unproven), out);
    }

    pub(super) fn verifying(&mut self, now: Time, out: &mut Vec<Output>) {
        let waited = now.since(self.since);
        let looks = self.visibility.files && self.writes_files;
        let enough = self.ownership.all_files() || (self.ownership.busy_files() && waited >= IDLE_GRACE);
        let cancelled = self.cancelled_at.is_some() && waited >= IDLE_GRACE;
        if !looks || enough || cancelled || waited >= SETTLE {
            self.end(None, None, out);
        }
    }

    /// Neither log nor files of this server are in visibility: no proof will ever come.
    const fn is_blind(&self) -> bool {
        !self.visibility.log && !self.visibility.files
    }
}
