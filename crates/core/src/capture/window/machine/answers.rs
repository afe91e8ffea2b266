//! What an answer to the start or to a stop makes of a window.

use super::{END, Window};
use crate::capture::facts::ServerKind;
use crate::capture::plan::StartMode;
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
        // The form that refuses a double says so with 500 (docs/engines.md). vLLM has no bound by steps: what began of
        // its window ends by a stop alone.
        self.refused_double = match answer {
            Answer::Failed { status: 500, .. } => self.form == StartMode::Exact,
            Answer::ErrorInBody { .. } => !self.engine.runs_vllm(),
            _ => false,
        };
        if self.phase != WindowPhase::Starting {
            return;
        }
        match answer {
            Answer::Ok => self.enter(WindowPhase::Open, now),
            // A proxy says no for a server that said yes, too: what shows that it began counts more.
            Answer::Refused { status, body } => {
                self.refused = true;
                let is_seen = self.visibility.log && is_not_found(*status, body);
                self.passed_on = !is_own_refusal(*status, body) && !is_seen;
                self.failure = Some(Failure::StartRefused { status: *status, body: body.clone() });
                self.enter(WindowPhase::Doubtful, now);
            }
            Answer::ErrorInBody { body } => {
                self.failure = Some(Failure::StartErred { body: body.clone() });
                self.enter(WindowPhase::Doubtful, now);
            }
            Answer::ConnectionRefused => self.fail(not_reached("the connection is refused"), None, out),
            Answer::NotSent { why } => self.fail(not_reached(why), None, out),
            Answer::Failed { status, .. } => {
                self.passed_on = *status != 500;
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
        match answer {
            // Nothing was sent: the window is as open as before, and the stop waits for the server.
            Answer::ConnectionRefused | Answer::NotSent { .. } => {
                self.take_stop_back();
                self.note("the server could not be reached when its window was to be stopped");
                self.enter(WindowPhase::Open, now);
                self.unreachable(out);
            }
            // The window is ours, so this is a second try of the same stop, not a second stop.
            Answer::Refused { status: 404, .. }
                if self.engine == ServerKind::Sglang && self.path != END && self.may_stop(now) =>
            {
                self.path = END;
                self.send_stop(now, out);
            }
            Answer::TimedOut => {
                let unproven = Some("its export had not ended".to_owned());
                self.fail(Failure::ExportTimedOut(EXPORT_LIMIT), unproven, out);
            }
            _ => self.conclude(answer, now),
        }
    }

    /// What the answer to the last stop makes of the window, where that was sent and nothing follows at once.
    pub(super) fn conclude(&mut self, answer: &Answer, now: Time) {
        self.last_answer = Some(answer.clone());
        let words = match answer {
            Answer::Ok => {
                self.stop_granted = true;
                return self.enter(WindowPhase::Exporting, now);
            }
            Answer::Refused { status: status @ (401 | 403), .. } => format!(
                "{status} (the profile calls take admin_api_key where the server has one, else api_key)"
            ),
            Answer::Refused { status, .. } | Answer::Failed { status, .. } => status.to_string(),
            Answer::ErrorInBody { body } => format!("success and an error in the answer ({})", body.trim()),
            Answer::Lost { why } | Answer::NotSent { why } => {
                self.stop_lost = true;
                why.clone()
            }
            Answer::TimedOut | Answer::ConnectionRefused => {
                self.stop_lost = true;
                "nothing".to_owned()
            }
        };
        self.may_retry = match answer {
            // A key does not grow by asking again.
            Answer::Refused { status: 401 | 403, .. } => false,
            // The answer both of a server on which nothing runs and of one that stopped all the same: only
            // a log tells them apart, and without one the next stop might be of somebody else's window.
            Answer::Failed { status: 500, .. } => self.visibility.log,
            _ => true,
        };
        if is_undone(answer) {
            self.undone = self.stops;
        }
        self.path = self.engine.stop_path();
        self.stop_answer = Some(words);
        self.enter(WindowPhase::Exporting, now);
    }
}

/// Whether the engine itself said no and did nothing. Anything else may be the word of a proxy that has
/// passed the start on.
fn is_own_refusal(status: u16, body: &str) -> bool {
    matches!(status, 401 | 403 | 409 | 422) || status == 400 && is_of_an_engine(body)
}

/// Whether a stop that was answered so was not carried out: a proxy had no route for it or too many requests,
/// say. The answers of a proxy that may have passed it on (408, 502, 503, 504) do not tell.
fn is_undone(answer: &Answer) -> bool {
    matches!(answer, Answer::Refused { status, .. } if *status != 408)
}

/// Whether an engine without a profile API said so; other servers have the same words for it.
fn is_not_found(status: u16, body: &str) -> bool {
    status == 404 && is_of_an_engine(body)
}

/// The JSON in which SGLang and vLLM say what is wrong with a request.
fn is_of_an_engine(body: &str) -> bool {
    let words = ["\"detail\"", "\"error\"", "\"message\""];
    body.trim_start().starts_with('{') && words.iter().any(|word| body.contains(word))
}

fn not_reached(why: &str) -> Failure {
    Failure::NotReached { why: why.to_owned() }
}
