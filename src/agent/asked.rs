//! What people ask of the running agent through its API, answered by the loop.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::Agent;
use super::receivers;
use super::window::WindowSignal;
use crate::serve::{Action, Answer, CaptureBody};
use skewtrap_core::capture::CaptureSpec;
use skewtrap_core::capture::Limits;
use skewtrap_core::rule::guard::nearest;
use skewtrap_core::rule::{Combine, Rule, Severity, Trigger};
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::status::Silence;
use skewtrap_core::watch::{Effect, Event, ManualRequest};

impl Agent {
    pub(super) fn answer(&mut self, action: Action, effects: &mut Vec<Effect>) -> Answer {
        match action {
            Action::Capture(request) => self.capture_asked(request, effects),
            Action::Stop { target } => self.stop_asked(target.as_deref()),
            Action::Reload => match self.reload_now(effects) {
                Ok((rules, waiting)) => {
                    let rules = format!("{rules} rules are in force");
                    done([vec![rules], waiting].concat().join("; "))
                }
                Err(error) => Answer::Wrong { why: format!("{error:#}; the old rules stay in force") },
            },
            Action::Silence { rule, target, duration, why } => {
                self.silence_asked(Silence { rule, target, until: self.clock.now() + duration, why }, effects)
            }
            Action::Pin { incident, pinned } => match self.desk.bundles.pin(&incident, pinned) {
                Ok(true) => done(if pinned { "pinned".into() } else { "no longer pinned".into() }),
                Ok(false) => Answer::Missing { why: format!("there is no bundle of incident {incident}") },
                Err(error) => Answer::Refused { why: error.to_string() },
            },
        }
    }

    /// Reads the configuration again; gives how many rules there are now, and what is not in force
    /// before a restart.
    ///
    /// # Errors
    /// It is wrong; then nothing changes.
    pub(super) fn reload_now(&mut self, effects: &mut Vec<Effect>) -> anyhow::Result<(usize, Vec<String>)> {
        let new = (self.reload)()?;
        let count = new.rules.len();
        let event = Event::Reloaded { rules: new.rules, catalog: new.catalog, patterns: new.patterns };
        self.watch.handle(event, self.clock.now(), effects);
        self.by_hand = Arc::new(by_hand(new.by_hand));
        let waiting = receivers::waiting(&self.configured, &new.receivers);
        for said in &waiting {
            warn!("{said}");
        }
        Ok((count, waiting))
    }

    /// A silence that ends now ends its like.
    fn silence_asked(&mut self, silence: Silence, effects: &mut Vec<Effect>) -> Answer {
        let (now, until) = (self.clock.now(), silence.until);
        let is_it = |s: &Silence| (&s.rule, &s.target) == (&silence.rule, &silence.target) && s.until > now;
        // One of a rule that is gone may be ended.
        if !self.watch.silences().iter().any(is_it) {
            if let Some(why) = self.unknown_in(&silence) {
                return Answer::Missing { why };
            }
            if until <= now {
                return done("there was no such silence".into());
            }
        }
        self.watch.handle(Event::Silenced(silence), now, effects);
        let said =
            if until <= now { "the silence is over".into() } else { format!("silenced until {until}") };
        match self.desk.state.save_silences(self.watch.silences()) {
            Ok(()) if until > now && !self.desk.state.outlives_restart() => done(format!(
                "{said}; a restart of the agent forgets that, for its state folder cannot be written, as its \
                 log said when it started"
            )),
            Ok(()) => done(said),
            Err(error) => done(format!("{said}; a restart of the agent forgets that: {error}")),
        }
    }

    /// What a silence names that does not exist, with what may have been meant.
    fn unknown_in(&self, silence: &Silence) -> Option<String> {
        let (rules, servers): (Vec<&str>, Vec<&str>) =
            (self.watch.rule_names().collect(), self.sites.iter().map(|s| &*s.name).collect());
        let rule = silence.rule.as_deref().and_then(|name| unknown("rule", name, &rules));
        rule.or_else(|| silence.target.as_deref().and_then(|name| unknown("target", name, &servers)))
    }

    fn target_named(&self, name: Option<&str>) -> Result<TargetId, Answer> {
        let index = match name {
            Some(name) => self.sites.iter().position(|s| &*s.name == name),
            None if self.sites.len() == 1 => Some(0),
            None => {
                return Err(Answer::Wrong {
                    why: "there are several targets: name one with `target`".into(),
                });
            }
        };
        let id = index.and_then(|i| u16::try_from(i).ok()).map(TargetId);
        id.ok_or_else(|| Answer::Missing { why: format!("no target is called {}", name.unwrap_or("that")) })
    }

    fn capture_asked(&mut self, request: CaptureBody, effects: &mut Vec<Effect>) -> Answer {
        let target = match self.target_named(request.target.as_deref()) {
            Ok(target) => target,
            Err(answer) => return answer,
        };
        let capture = match window_of(&self.by_hand.capture, request.num_steps) {
            Ok(capture) => capture,
            Err(answer) => return answer,
        };
        let rule = Rule { capture, ..(*self.by_hand).clone() };
        let why = request.reason.unwrap_or_else(|| "asked for by hand".into());
        let asked =
            ManualRequest { target, rule: Arc::new(rule), why, labels: request.labels, since: request.since };
        let before = effects.len();
        self.watch.handle(Event::ManualRequest(asked), self.clock.now(), effects);
        let answered = effects[before..].iter().find_map(|e| match e {
            Effect::Answered { incident, refused } => Some((incident.clone(), refused.clone())),
            _ => None,
        });
        match answered {
            Some((_, Some(why))) => Answer::Refused { why },
            Some((incident, None)) => {
                Answer::Done { message: "a window is being opened".into(), incident: Some(incident) }
            }
            None => Answer::Refused { why: "the core did not answer".into() },
        }
    }

    fn stop_asked(&mut self, target: Option<&str>) -> Answer {
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
            self.hear(id, WindowSignal::Close);
        }
        match open.first() {
            Some(id) => {
                Answer::Done { message: "the window is being closed".into(), incident: Some(id.clone()) }
            }
            None => Answer::Missing { why: "no window of the agent's is open".into() },
        }
    }
}

/// That nothing is called so, and what is; `None` where it is known.
fn unknown(kind: &str, name: &str, known: &[&str]) -> Option<String> {
    if known.contains(&name) {
        return None;
    }
    Some(match nearest(name, known.iter().copied()) {
        Some(meant) => format!("no {kind} is called `{name}`; did you mean `{meant}`?"),
        None => format!("no {kind} is called `{name}`; there are {}", known.join(", ")),
    })
}

fn done(message: String) -> Answer {
    Answer::Done { message, incident: None }
}

/// The window that is asked for: the configuration's, of so many steps where it is told in steps.
fn window_of(configured: &CaptureSpec, num_steps: Option<u32>) -> Result<CaptureSpec, Answer> {
    let mut window = configured.clone();
    let bounded_by = match (&mut window, num_steps) {
        (CaptureSpec::None, _) => {
            let why = "the configuration says `capture: none`, so there is no window to open; say under \
                       `capture` what one is";
            return Err(Answer::Refused { why: why.into() });
        }
        (CaptureSpec::Http(http) | CaptureSpec::CudaProfilerApi(http), Some(steps)) => {
            http.num_steps = steps;
            return Ok(window);
        }
        (_, None) => return Ok(window),
        (CaptureSpec::Nsys(_), Some(_)) => "`nsys`, whose windows end by time (`duration`)",
        (CaptureSpec::Command(_), Some(_)) => "a `command`, whose windows end with the program",
    };
    let why = format!("`num_steps` does not apply: the configured `capture` is {bounded_by}; leave it out");
    Err(Answer::Wrong { why })
}

/// Stands in for a rule when somebody asks: its own name in the books, so its own limits.
pub(super) fn by_hand(capture: CaptureSpec) -> Rule {
    let never = || Trigger { combine: Combine::All, conditions: Vec::new(), hold: Duration::ZERO };
    Rule {
        name: "by hand".into(),
        about: Some("Somebody, or another system's alert, asked for a window.".into()),
        across: Vec::new(),
        within: Vec::new(),
        trigger: never(),
        clear: never(),
        keep_firing_for: Duration::ZERO,
        rearm_after: Duration::ZERO,
        only_if: None,
        min_mean: 0.0,
        min_members: 0,
        capture,
        limits: Limits { cooldown: Duration::ZERO, captures: u32::MAX, per: Duration::from_secs(86_400) },
        severity: Severity::Info,
        notify: Vec::new(),
        labels: skewtrap_trace::labels::Labels::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::plan::{Flags, Plan};
    use crate::config::file::load;

    /// The window by hand of a configuration with this `capture`.
    fn window(capture: &str, num_steps: Option<u32>) -> Result<CaptureSpec, Answer> {
        let text = format!("rules: [preset:slow-rank]\ncapture: {capture}\n");
        let config = load("skewtrap.yaml", &text, &|_| Ok(Vec::new())).config.expect("it may run");
        let plan = Plan::of(&config, &Flags::default()).expect("a plan");
        window_of(&by_hand(plan.by_hand).capture, num_steps)
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
            assert_eq!((http.output_dir.as_deref(), http.num_steps), (Some("/p"), steps));
        }
    }

    #[test]
    fn a_name_that_is_unknown_is_answered_with_the_one_that_may_be_meant() {
        let known = ["dp-load-skew", "slow-rank"];
        assert_eq!(unknown("rule", "slow-rank", &known), None);
        let near = unknown("rule", "dp-laod-skew", &known).expect("it is unknown");
        assert_eq!(near, "no rule is called `dp-laod-skew`; did you mean `dp-load-skew`?");
        let far = unknown("rule", "x", &known).expect("it is unknown");
        assert_eq!(far, "no rule is called `x`; there are dp-load-skew, slow-rank");
    }

    #[test]
    fn steps_of_a_window_that_has_none_and_a_window_of_no_kind_are_refused_in_words() {
        let steps = window("{ nsys: { duration: 3s } }", Some(5)).expect_err("no steps");
        assert!(matches!(&steps, Answer::Wrong { why } if why.contains("`num_steps` does not apply")));
        let none = window("none", None).expect_err("no window");
        assert!(matches!(&none, Answer::Refused { why } if why.contains("`capture: none`")));
    }
}
