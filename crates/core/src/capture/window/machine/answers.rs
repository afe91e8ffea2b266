//! What an answer to the start or to a stop makes of a window.

use super::{END, STOP, Window};
use crate::capture::window::{Answer, EXPORT_LIMIT, Failure, Output, WindowPhase};
use skewtrap_trace::time::Time;

impl Window {
    pub(super) fn start_answered(&mut self, answer: &Answer, now: Time, out: &mut Vec<Output>) {
        if !std::mem::take(&mut self.start_pending) {
            return;
        }
        match answer {
            Answer::Ok => self.ownership.grant(),
            _ => self.ownership.disown(),
        }
        if self.phase != WindowPhase::Starting {
            return;
        }
        match answer {
            Answer::Ok => self.enter(WindowPhase::Open, now),
            Answer::Refused { status, body } => {
                self.fail(Failure::StartRefused { status: *status, body: body.clone() }, None, out);
            }
            Answer::NobodyListens => self.fail(not_reached("nobody listens there"), None, out),
            Answer::NotSent { why } => self.fail(not_reached(why), None, out),
            Answer::Failed { status, .. } => {
                self.failure = Some(Failure::StartFailed { status: *status });
                self.enter(WindowPhase::Doubtful, now);
            }
            Answer::TimedOut => self.unknown("the start was not answered in time", now),
            Answer::Lost { why } => self.unknown(&format!("the start lost its connection ({why})"), now),
        }
    }

    pub(super) fn unknown(&mut self, why: &str, now: Time) {
        self.failure = Some(Failure::UnknownStart { why: why.to_owned() });
        self.enter(WindowPhase::Unknown, now);
    }

    pub(super) fn stop_answered(&mut self, answer: &Answer, now: Time, out: &mut Vec<Output>) {
        // Late, the window has gone on without it.
        if !std::mem::take(&mut self.stop_pending) || self.phase != WindowPhase::Stopping {
            return;
        }
        let words = match answer {
            Answer::Ok => {
                self.stop_granted = true;
                return self.enter(WindowPhase::Exporting, now);
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
        // A key does not grow by asking again.
        self.may_retry = !matches!(answer, Answer::Refused { status: 401 | 403, .. });
        self.path = STOP;
        self.stop_answer = Some(words);
        self.enter(WindowPhase::Exporting, now);
    }
}

fn not_reached(why: &str) -> Failure {
    Failure::NotReached { why: why.to_owned() }
}
