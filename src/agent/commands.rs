//! The commands of the API, answered by the agent's loop.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Agent;
use super::reload::{ReloadRequester, answer_when_read};
use super::window::WindowSignal;
use crate::act::state::StateError;
use crate::serve::{Action, AlertOrigin, Answer, CaptureBody};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::factor::{Mark, MarkEffect};
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::status::Silence;
use skewtrap_core::suggest::unknown;
use skewtrap_core::watch::{Effect, Event, ManualRequest};

/// How long an answer waits for the disk: less than whoever asked waits for the answer.
const DISK_LIMIT: Duration = Duration::from_secs(3);

/// An answer, at once or when the disk has taken what was asked for.
pub(super) enum Reply {
    Now(Answer),
    Later(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self::Now(answer)
    }
}

impl Agent {
    pub(super) fn answer(&mut self, ask: Action, effects: &mut Vec<Effect>) -> Reply {
        match ask {
            Action::Capture(request) => self.request_capture(request, effects).into(),
            Action::Stop { target } => self.stop_windows(target.as_deref()).into(),
            Action::Reload => {
                let (answer, answered) = oneshot::channel();
                self.request_reload(ReloadRequester::Api(answer));
                Reply::Later(Box::pin(answer_when_read(answered)))
            }
            Action::Silence { rule, target, duration, why } => {
                self.silence(Silence { rule, target, until: self.clock.now() + duration, why }, effects)
            }
            Action::Resume { target } => self.resume(target, effects),
            Action::Mark { incident, mark } => Reply::Now(self.mark(&incident, mark, effects)),
            Action::Pin { incident, pinned } => self.pin(incident, pinned),
        }
    }

    /// What an incident was worth, as a person says, teaches its server's bounds.
    fn mark(&mut self, id: &str, mark: Mark, effects: &mut Vec<Effect>) -> Answer {
        let Some(incident) = self.watch.incident(id).cloned() else {
            return Answer::Missing { why: format!("the agent remembers no incident {id}") };
        };
        let now = self.clock.now();
        let Some(MarkEffect { before, after }) = self.watch.mark(id, mark, now, effects) else {
            let own = match incident.trouble {
                None if incident.is_by_hand() => "; a window by hand has no bound".to_owned(),
                None => format!("; what {} fires at is in its `trigger`", incident.rule),
                Some(_) => String::new(),
            };
            return Answer::Refused {
                why: format!(
                    "{id} teaches nothing: only rules on the factors of load (share, speed, work) have a bound that is learned, \
                     and of each server the last 64 firings are remembered{own}"
                ),
            };
        };
        self.save_ongoing_of(&incident.target, true);
        let bound = match (format!("{before:.1}"), format!("{after:.1}")) {
            (before, after) if before == after => format!("stays at {after}"),
            (from, to) => {
                format!("{} from {from} to {to}", if after > before { "raised" } else { "lowered" })
            }
        };
        done(format!(
            "{id} is marked {}: bound of its test on {} {bound} standard deviations",
            mark.word(),
            incident.target
        ))
    }

    fn pin(&self, incident: Arc<str>, pinned: bool) -> Reply {
        let (bundles, id) = (self.store.bundles.clone(), incident.clone());
        let pinning = crate::world::blocking(move || bundles.pin(&id, pinned));
        Reply::Later(Box::pin(async move {
            match tokio::time::timeout(DISK_LIMIT, pinning).await {
                Ok(Ok(Ok(true))) => done(if pinned { "pinned".into() } else { "no longer pinned".into() }),
                Ok(Ok(Ok(false))) => {
                    Answer::Missing { why: format!("there is no bundle of incident {incident}") }
                }
                Ok(Ok(Err(error))) => Answer::Refused { why: error.to_string() },
                Ok(Err(panic)) => {
                    Answer::Refused { why: format!("the bundle could not be changed: {panic}") }
                }
                Err(_) => Answer::Refused { why: format!("the disk of the bundles {HANGS}") },
            }
        }))
    }

    /// Windows may open again where one hurt the server.
    fn resume(&mut self, target: Option<Arc<str>>, effects: &mut Vec<Effect>) -> Reply {
        if let Some(name) = &target
            && let Err(answer) = self.target_named(Some(name))
        {
            return answer.into();
        }
        let resumed = self.watch.ledger().clone().resume(target.as_deref());
        if resumed.is_empty() {
            return done("no server has windows suspended".into()).into();
        }
        let name = target.clone();
        let kept = self.store.state.write_and_report(move |state| state.resume(name.as_deref()));
        self.watch.handle(Event::Resumed(target), self.clock.now(), effects);
        let said =
            format!("windows may open again on {}", resumed.into_iter().collect::<Vec<_>>().join(", "));
        Reply::Later(Box::pin(when_kept(said, kept)))
    }

    /// A silence that ends now ends the one for the same rule and server.
    fn silence(&mut self, silence: Silence, effects: &mut Vec<Effect>) -> Reply {
        let (now, until) = (self.clock.now(), silence.until);
        let is_same = |s: &Silence| (&s.rule, &s.target) == (&silence.rule, &silence.target) && s.until > now;
        // One of a rule that is gone may be ended.
        if !self.watch.silences().iter().any(is_same) {
            if let Some(why) = self.unknown_name_in(&silence) {
                return Answer::Missing { why }.into();
            }
            if until <= now {
                return done("there was no such silence".into()).into();
            }
        }
        self.watch.handle(Event::Silenced(silence), now, effects);
        let message =
            if until <= now { "the silence is over".into() } else { format!("silenced until {until}") };
        let silences = self.watch.silences().to_vec();
        let kept = self.store.state.write_and_report(move |state| state.save_silences(&silences));
        let message = match until > now && !self.store.state.outlives_restart() {
            true => format!(
                "{message}; a restart of the agent forgets that, for its state folder cannot be written, as its \
                 log said when it started"
            ),
            false => message,
        };
        Reply::Later(Box::pin(when_kept(message, kept)))
    }

    /// What a silence names that does not exist, with what may have been meant.
    fn unknown_name_in(&self, silence: &Silence) -> Option<String> {
        let (rules, servers): (Vec<&str>, Vec<&str>) =
            (self.watch.rule_names().collect(), self.targets.iter().map(|s| &*s.name).collect());
        let rule = silence.rule.as_deref().and_then(|name| unknown("rule", name, &rules));
        rule.or_else(|| silence.target.as_deref().and_then(|name| unknown("target", name, &servers)))
    }

    fn target_named(&self, name: Option<&str>) -> Result<TargetId, Answer> {
        let known: Vec<&str> = self.targets.iter().map(|s| &*s.name).collect();
        let index = match name {
            Some(name) => known.iter().position(|known| *known == name),
            None if known.len() == 1 => Some(0),
            None if known.is_empty() => {
                return Err(Answer::Missing { why: "no server is watched now".into() });
            }
            None => {
                let why = format!("there are several targets: name one with `target` ({})", known.join(", "));
                return Err(Answer::Wrong { why });
            }
        };
        let id = index.and_then(|i| u16::try_from(i).ok()).map(TargetId);
        id.ok_or_else(|| {
            let why = name.and_then(|name| unknown("target", name, &known)).unwrap_or_default();
            Answer::Missing { why }
        })
    }

    fn request_capture(&mut self, request: CaptureBody, effects: &mut Vec<Effect>) -> Answer {
        let target = match self.target_named(request.target.as_deref()) {
            Ok(target) => target,
            Err(answer) => return answer,
        };
        let capture = match window_of(&self.manual_capture, request.num_steps) {
            Ok(capture) => capture,
            Err(answer) => return answer,
        };
        let is_baseline = request.baseline;
        let usual =
            if is_baseline { "a baseline to compare later captures with" } else { "asked for by hand" };
        let why = request.reason.unwrap_or_else(|| usual.into());
        let is_alert = request.alert.is_some();
        let AlertOrigin { labels, since, .. } = request.alert.unwrap_or_default();
        let request = ManualRequest { target, is_alert, is_baseline, capture, why, labels, since };
        match self.watch.request_capture(request, self.clock.now(), effects) {
            Ok(incident) => {
                let message = being_opened(self.watch.windows_of_a_day(self.clock.now()));
                Answer::Done { message, incident: Some(incident) }
            }
            Err(refusal) => Answer::Refused { why: refusal.to_string() },
        }
    }

    fn stop_windows(&mut self, target: Option<&str>) -> Answer {
        let wanted = match target.map(|name| self.target_named(Some(name))).transpose() {
            Ok(wanted) => wanted,
            Err(answer) => return answer,
        };
        let open: Vec<Arc<str>> = self
            .running
            .iter()
            .filter(|(_, r)| wanted.is_none_or(|t| r.target == t))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &open {
            self.signal(id, WindowSignal::Close);
        }
        match open.first() {
            Some(id) => {
                Answer::Done { message: "the window is being closed".into(), incident: Some(id.clone()) }
            }
            None => Answer::Missing { why: "no window of the agent's is open".into() },
        }
    }
}

/// The answer to who asked for a window, when so many were opened within a day, this one among them, of those
/// that may be.
fn being_opened((used, most): (u32, u32)) -> String {
    let left = match most.saturating_sub(used) {
        0 => "none is left: rules open no window either before the first of them is a day old".to_owned(),
        n => format!("{n} left"),
    };
    format!(
        "a window is being opened; it is number {used} of the {most} that may open within 24 h, by rules and by hand \
         together (`budget.windows`): {left}"
    )
}

/// What a disk does that does not answer.
const HANGS: &str = "does not answer; see /healthz";

/// The answer once the disk has what it says, or that it has not.
async fn when_kept(said: String, kept: oneshot::Receiver<Result<(), StateError>>) -> Answer {
    let forgets = "a restart of the agent forgets that";
    match tokio::time::timeout(DISK_LIMIT, kept).await {
        Ok(Ok(Ok(()))) => done(said),
        Ok(Ok(Err(error))) => done(format!("{said}; {forgets}: {error}")),
        Ok(Err(_)) => done(format!("{said}; {forgets}: too many writes wait for the disk of the state")),
        Err(_) => done(format!("{said}; {forgets} if it comes soon: the disk of the state {HANGS}")),
    }
}

fn done(message: String) -> Answer {
    Answer::Done { message, incident: None }
}

/// The window that is asked for: the configuration's, of `num_steps` steps where that is given.
fn window_of(configured: &CaptureSpec, num_steps: Option<u32>) -> Result<CaptureSpec, Answer> {
    let mut window = configured.clone();
    let bounded_by = match (&mut window, num_steps) {
        (CaptureSpec::None, _) => {
            let why = "the configuration says `capture: none`, so there is no window to open; say under \
                       `capture` what one is";
            return Err(Answer::Refused { why: why.into() });
        }
        (CaptureSpec::Http(http) | CaptureSpec::CudaProfilerApi(http), Some(steps)) => {
            http.num_steps = Some(steps);
            return Ok(window);
        }
        (_, None) => return Ok(window),
        (CaptureSpec::Nsys(_), Some(_)) => "`nsys`, whose windows end by time (`duration`)",
        (CaptureSpec::Command(_), Some(_)) => "a `command`, whose windows end with the program",
    };
    let why = format!("`num_steps` does not apply: the configured `capture` is {bounded_by}; leave it out");
    Err(Answer::Wrong { why })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::agent::plan::{Flags, Plan};
    use crate::config::file::load;

    /// The window by hand of a configuration with this `capture`.
    fn window(capture: &str, num_steps: Option<u32>) -> Result<CaptureSpec, Answer> {
        let text = format!("rules: [preset:slow-rank]\ncapture: {capture}\n");
        let config = load("skewtrap.yaml", &text, &|_| Ok(Vec::new())).config.expect("it may run");
        let plan = Plan::of(&config, &Flags::default()).expect("a plan");
        window_of(&plan.manual_capture, num_steps)
    }

    #[test]
    fn a_window_by_hand_is_the_one_that_the_configuration_says() {
        let Ok(CaptureSpec::Nsys(nsys)) = window("{ nsys: { duration: 3s } }", None) else {
            panic!("not an nsys window")
        };
        assert_eq!(nsys.duration, Duration::from_secs(3));
        let http = "{ http: { output_dir: /p, num_steps: 20 } }";
        for (asked, steps) in [(None, 20), (Some(5), 5)] {
            let Ok(CaptureSpec::Http(http)) = window(http, asked) else { panic!("not a window over HTTP") };
            assert_eq!((http.output_dir.as_deref(), http.num_steps), (Some("/p"), Some(steps)));
        }
    }

    #[test]
    fn whoever_asks_for_a_window_is_told_what_it_takes_of_the_days_windows() {
        let told = being_opened((3, 4));
        assert!(
            told.contains("number 3 of the 4 that may open within 24 h") && told.ends_with("1 left"),
            "{told}"
        );
        let last = being_opened((4, 4));
        assert!(last.contains("none is left: rules open no window either"), "{last}");
    }

    #[test]
    fn steps_of_a_window_that_has_none_and_a_window_of_no_kind_are_refused_in_words() {
        let steps = window("{ nsys: { duration: 3s } }", Some(5)).expect_err("no steps");
        assert!(matches!(&steps, Answer::Wrong { why } if why.contains("`num_steps` does not apply")));
        let none = window("none", None).expect_err("no window");
        assert!(matches!(&none, Answer::Refused { why } if why.contains("`capture: none`")));
    }
}
