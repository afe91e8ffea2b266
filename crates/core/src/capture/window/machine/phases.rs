//! What time makes of a window in each of its phases.

use super::Window;
use crate::capture::plan::StartMode;
use crate::capture::verify::names_of;
use crate::capture::window::{
    Answer, CHANCE, DOUBT, EXPORT_LIMIT, Failure, IDLE_GRACE, MAX_STOPS, Output, PROOF, QUIET, RETRY, SETTLE,
    START_TIMEOUT, UNREACHED_LIMIT, WindowPhase,
};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

impl Window {
    pub(super) fn starting(&mut self, now: Time, out: &mut Vec<Output>) {
        // An answer that hangs changes nothing about a window that is seen to be over.
        if self.ownership.proven && self.form != StartMode::Held && self.ownership.all_closed() {
            return self.enter(WindowPhase::Open, now);
        }
        let due = now >= self.deadline || self.wants_close;
        if due && self.ownership.proven && self.may_stop(now) {
            self.send_stop(now, out);
        } else if now.since(self.sent_at) > START_TIMEOUT + DOUBT {
            self.start_answered(&Answer::TimedOut, now, out);
        }
    }

    /// A start of doubtful end: ours only by a mark, and then it is closed at once or at the
    /// deadline. Without one it is given up where a log would have shown it; where no log is read it is
    /// stopped on the chance that it began, unless somebody else's may be in its place.
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
        let is_recent = now.since(self.sent_at) <= self.grace + CHANCE;
        if !self.visibility.log && is_recent && !self.foreign_possible() && !self.ends_unseen() {
            self.on_chance = true;
            self.note("the start was not answered with success, and without the server's log nothing shows whether it began: it was stopped all the same");
            return self.enter(WindowPhase::Open, now);
        }
        let failure = self.failure.clone().unwrap_or(Failure::Cancelled);
        let unproven = match &failure {
            Failure::UnknownStart { why } => Some(why.clone()),
            Failure::StartFailed { status: 500 } if !self.visibility.log => Some(
                "the start was answered with 500, as it is also when part of the ranks began, and the server's log is not read".to_owned(),
            ),
            Failure::StartErred { .. } => {
                Some("the start was answered with an error, as it is also when part of the ranks began".to_owned())
            }
            Failure::StartFailed { status } | Failure::StartRefused { status, .. } if self.passed_on => {
                let seen = if self.visibility.log { "so it may begin yet" } else { "and the server's log is not read" };
                Some(format!(
                    "the start was answered with {status}, as it is also by a proxy that has passed it on, {seen}"
                ))
            }
            _ => None,
        };
        self.fail(failure, unproven, out);
    }

    pub(super) fn open(&mut self, now: Time, out: &mut Vec<Output>) {
        // vLLM's window is closed by a stop, whatever its files say.
        if self.form != StartMode::Held && self.ownership.all_closed() {
            let next = if self.ownership.all_written() && !self.is_unshown() {
                WindowPhase::Verifying
            } else {
                WindowPhase::Exporting
            };
            return self.enter(next, now);
        }
        if self.ownership.busy_closed() {
            self.busy_closed_at.get_or_insert(now);
        }
        let idle_left =
            self.form != StartMode::Held && self.busy_closed_at.is_some_and(|at| now.since(at) >= IDLE_GRACE);
        let held = self.hold.is_some_and(|hold| now >= hold);
        let due = now >= self.deadline || held || idle_left || self.wants_close;
        if due && self.may_stop(now) {
            self.send_stop(now, out);
        } else if due && self.ends_unseen() {
            self.give_up_unseen(out);
        } else if self.is_stale(now) {
            // Its log may be read late.
            if now.since(self.since) >= PROOF {
                self.give_up_stale(now, out);
            }
        } else if self.may_hold_another() {
            if now.since(self.deadline) >= PROOF {
                self.give_up_double(out);
            }
        } else if self.unreachable {
            // It may be reached again at any time, and the stop is sent then.
            if now.since(self.deadline) > UNREACHED_LIMIT {
                self.give_up_unreached(out);
            }
        } else if now.since(self.deadline) > EXPORT_LIMIT {
            let dir = self.ownership.foreign.open().map_or_else(String::new, |(_, dir)| dir.to_owned());
            let unproven = Some("another client's profile kept ours from being stopped".into());
            self.fail(Failure::Foreign { dir }, unproven, out);
        }
    }

    pub(super) fn exporting(&mut self, now: Time, out: &mut Vec<Output>) {
        // Whatever its log or files say, vLLM's window ends by a stop that is carried out.
        if self.form == StartMode::Held && self.may_retry && self.stops == self.undone && self.may_stop(now) {
            if now.since(self.since) >= RETRY {
                self.send_stop(now, out);
            }
            return;
        }
        if self.is_unshown() && self.ownership.all_written() {
            // A file is seen a moment after the line that it is written.
            let written_at = *self.written_at.get_or_insert(now);
            if now < self.deadline.max(written_at + DOUBT) {
                return;
            }
            if self.may_stop(now) {
                self.note("the log says that every rank ended, and not every file was there by the deadline: a stop was sent all the same");
                return self.send_stop(now, out);
            }
        }
        if self.ownership.all_written() {
            return self.enter(WindowPhase::Verifying, now);
        }
        // A rank that was armed when the stop came began after it: only another stop closes it.
        let outlived = self.stopped_at.is_some_and(|at| self.ownership.began_after(at));
        if outlived && self.stops < MAX_STOPS && self.may_stop(now) {
            return self.send_stop(now, out);
        }
        let tried = self.may_retry && now.since(self.since) >= RETRY;
        let open = if self.visibility.log { self.ownership.any_open() } else { !self.ownership.all_closed() };
        if tried && open && self.may_stop(now) {
            return self.send_stop(now, out);
        }
        // Only the first rank's reply decides the answer of a stop; a gateway may give one too.
        if self.stop_granted && self.visibility.log && !self.ownership.recording().is_empty() {
            if now.since(self.since) < PROOF {
                return;
            }
            if self.may_stop(now) {
                return self.send_stop(now, out);
            }
            return self.give_up_recording(out);
        }
        let armed = self.ownership.armed();
        let closed = self.ownership.all_closed();
        if self.stop_granted && (armed.is_empty() || !self.visibility.log) {
            // The answer came after the export; lines and files follow within moments.
            return self.enter(WindowPhase::Verifying, now);
        }
        // A further stop may yet be sent: after a pause, or when the server is reached again.
        let waits = !closed && self.may_retry && self.stops < MAX_STOPS && !self.visibility.log;
        let waits = waits && (self.unreachable || self.may_stop(now));
        let limit = match (self.unreachable && waits, (closed && !self.stop_granted) || self.stop_lost) {
            (true, _) => UNREACHED_LIMIT,
            (false, true) => EXPORT_LIMIT,
            (false, false) => PROOF,
        };
        if now.since(self.since) < limit && (!self.is_blind() || waits) {
            return;
        }
        if self.unreachable && waits {
            return self.give_up_unreached(out);
        }
        self.give_up_export(closed, &armed, out);
    }

    fn give_up_recording(&mut self, out: &mut Vec<Output>) {
        let ranks = names_of(&self.ownership.recording());
        let unproven = format!("nothing shows that {ranks} ended, though the stop was answered with success");
        self.fail(Failure::NotProvenClosed { answer: "success".into(), ranks }, Some(unproven), out);
    }

    fn give_up_unseen(&mut self, out: &mut Vec<Output>) {
        self.note("the agent sees neither log nor files of this server: the window ends by its steps, and no stop was sent, for nothing would have shown whether somebody else's profile had begun after it");
        let unproven =
            "neither log nor files are in sight, so nothing shows that the window ended by its steps";
        self.end(None, Some(unproven.into()), out);
    }

    fn give_up_stale(&mut self, now: Time, out: &mut Vec<Output>) {
        let ranks = names_of(&self.ownership.not_closed());
        let unproven =
            format!("nothing shows that {ranks} ended, nor that they record for this window still");
        self.fail(Failure::LeftTooLong(now.since(self.sent_at)), Some(unproven), out);
    }

    fn give_up_double(&mut self, out: &mut Vec<Output>) {
        let ranks = names_of(&self.ownership.not_closed());
        let unproven = format!(
            "the start was answered with 500, as it is when a rank records for somebody else already, and nothing shows that {ranks} did not: no stop was sent"
        );
        self.fail(Failure::StartFailed { status: 500 }, Some(unproven), out);
    }

    fn give_up_unreached(&mut self, out: &mut Vec<Output>) {
        let unproven = Some("the server was not reached, so its stop is still to be sent".into());
        self.fail(Failure::Unreached(UNREACHED_LIMIT), unproven, out);
    }

    fn give_up_export(&mut self, closed: bool, armed: &[Rank], out: &mut Vec<Output>) {
        if closed {
            let unproven = self.is_unshown().then(|| {
                let ranks = names_of(&self.ownership.unsighted());
                format!("its export had not ended, and nothing shows that {ranks} ended but the log")
            });
            return self.fail(Failure::ExportTimedOut(EXPORT_LIMIT), unproven, out);
        }
        if self.is_blind() && !self.engine.runs_vllm() && self.ownership.granted {
            let answer = self.stop_answer.as_deref().unwrap_or("success").to_owned();
            self.notes.push(format!(
                "the stop was answered with {answer}, as it is when nothing runs any more; the agent sees neither log nor files of this server, so nothing of this window is proven",
            ));
            let unproven =
                format!("the stop was answered with {answer}, and neither log nor files are in sight");
            return self.end(None, Some(unproven), out);
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
        // A start of ours that takes effect after everything was closed.
        if self.visibility.log && !self.ownership.recording().is_empty() && self.may_stop(now) {
            return self.send_stop(now, out);
        }
        // Not all that the log says to have ended has a file, and no stop could be sent.
        let waited = now.since(self.since);
        let looks = self.visibility.files && self.writes_files;
        let enough = self.ownership.all_files() || (self.ownership.busy_files() && waited >= IDLE_GRACE);
        // Of an engine that does not tell its ranks all that are known may not be all that there are.
        let is_quiet = self.engine.accounts_for_every_rank()
            || self.last_file_at.is_none_or(|at| now.since(at) >= QUIET);
        let enough = enough && is_quiet;
        let cancelled = self.cancelled_at.is_some() && waited >= IDLE_GRACE;
        let is_over = waited >= SETTLE && (is_quiet || waited >= EXPORT_LIMIT);
        if !looks || enough || cancelled || is_over {
            let (recording, unsighted) = (self.ownership.recording(), self.ownership.unsighted());
            let unproven = if self.visibility.log && !recording.is_empty() {
                Some(format!("nothing shows that {} ended, begun after the stop", names_of(&recording)))
            } else {
                let is_unshown = self.is_unshown() && self.form != StartMode::Held && !self.ended_before;
                is_unshown.then(|| {
                    let ranks = names_of(&unsighted);
                    format!("nothing shows that {ranks} ended but the log, and no file of theirs came")
                })
            };
            self.end(None, unproven, out);
        }
    }

    /// Neither log nor files of this server are in sight: no proof will ever come.
    pub(super) const fn is_blind(&self) -> bool {
        !self.visibility.log && !self.visibility.files
    }
}
