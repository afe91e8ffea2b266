//! The second window of an incident whose first one blames a host.

use std::sync::Arc;

use crate::support::watch::{Play, at, core_of};
use skewtrap_core::capture::admit::{CaptureMethod, Policy};
use skewtrap_core::capture::governor::{Budget, Ledger};
use skewtrap_core::incident::{Incident, VerdictNote};
use skewtrap_core::message::{Message, Origin, Update};
use skewtrap_core::watch::{Event, Mode};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::verdict::{Confidence, Kind, Place};

/// Its cooldown is far longer than an incident lasts.
const RULE: &str = "rules:
  - name: skew
    signal: load
    trigger: { max_over_mean: 1.1, for: 0s }
    clear: { max_over_mean: 1.05, for: 1s }
    capture: { http: { escalate: [gpu, cpu], max_stall: 2s } }
    limits: { cooldown: 1h, captures: CAPTURES, per: 24h }
";

fn play(captures: u32) -> Play {
    play_of(&RULE.replace("CAPTURES", &captures.to_string()), Budget::default())
}

fn play_of(rule: &str, budget: Budget) -> Play {
    let policy = Policy { budget, ..Policy::default() };
    let mut play = Play::of(core_of(Some(rule), Mode::Live, policy, Ledger::default(), at(0.0)));
    for s in 0..8 {
        play.facts(f64::from(s));
        play.second(f64::from(s), [60, 40]);
    }
    assert_eq!(play.starts, 1, "{:?}", play.reasons);
    play.window_over(9.0, true);
    play
}

fn verdict(kind: Kind, by: Option<Place>, sentence: &str) -> VerdictNote {
    VerdictNote {
        kind,
        rank: by.map(|_| Labels::default()),
        by,
        sentence: sentence.into(),
        lost_ms_per_step: None,
        confidence: Confidence::Medium,
        confirms: None,
        suspect: None,
    }
}

fn slow_host() -> VerdictNote {
    verdict(Kind::SlowRank, Some(Place::Host), "DP0 is slowed by its host.")
}

impl Play {
    fn compares(&mut self, window: usize, note: VerdictNote, now: f64) {
        let incident: Arc<str> = self.grants[0].attempt.incident.as_str().into();
        self.tell(Event::Compared { incident, window, note }, now);
        self.facts(now + 0.5);
        self.second(now + 0.5, [60, 40]);
    }

    fn of_it(&self) -> Incident {
        self.watch.status(self.watch.now()).incidents[0].clone()
    }

    fn activities(&self, window: usize) -> String {
        let CaptureMethod::Http(request) = &self.grants[window - 1].method else { panic!("no window") };
        request.body.as_ref().expect("it has a body").to_string()
    }
}

#[test]
fn a_host_that_is_blamed_gets_a_second_window_with_cpu_activity_and_without_stacks() {
    let mut play = play(4);
    assert!(play.activities(1).contains(r#""activities":["GPU"]"#), "{}", play.activities(1));
    play.compares(1, slow_host(), 10.0);
    assert_eq!(play.starts, 2, "{:?}", play.reasons);
    let second = play.activities(2);
    assert!(second.contains(r#""activities":["CPU","GPU"]"#), "{second}");
    assert!(second.contains(r#""with_stack":false"#), "{second}");
    let sizes: Vec<_> = play
        .grants
        .iter()
        .map(|grant| match &grant.method {
            CaptureMethod::Http(request) => request.sizing.as_deref().cloned().expect("it is sized"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(sizes[1].steps < sizes[0].steps && sizes[1].max_stall == sizes[0].max_stall, "{sizes:?}");
    let message = Message::of(&play.of_it(), Update::Captured, at(11.0), &Origin::default());
    let said = format!("{message:?}");
    assert!(said.contains("its first window blames a host"), "{said}");

    // Its verdict agrees, and is the incident's; there is never a third window.
    play.window_over(12.0, true);
    play.compares(2, verdict(Kind::SlowRank, Some(Place::Host), "DP0 waits in recv_requests."), 13.0);
    let incident = play.of_it();
    assert_eq!(incident.verdict.map(|v| v.sentence).as_deref(), Some("DP0 waits in recv_requests."));
    assert_eq!(play.starts, 2);
}

#[test]
fn a_second_window_that_sees_less_leaves_the_first_verdict_what_it_is() {
    let mut play = play(4);
    play.compares(1, slow_host(), 10.0);
    play.window_over(12.0, true);
    play.compares(2, verdict(Kind::InsufficientEvidence, None, "The traces do not tell."), 13.0);
    let told = play.of_it().verdict.expect("there is one");
    assert_eq!((told.kind, told.by), (Kind::SlowRank, Some(Place::Host)));
    assert_eq!(told.sentence, "DP0 is slowed by its host. With CPU activity: The traces do not tell.");
}

#[test]
fn a_verdict_that_blames_no_host_asks_for_nothing_more() {
    for note in [
        verdict(Kind::UnevenWork, Some(Place::Gpu), "DP0 has more to do."),
        verdict(Kind::NoFinding, None, "No rank stands out."),
    ] {
        let mut play = play(4);
        play.compares(1, note, 10.0);
        assert_eq!((play.starts, play.of_it().follow_up), (1, None));
    }
    let silent = RULE.replace("escalate: [gpu, cpu], ", "").replace("CAPTURES", "4");
    let mut play = play_of(&silent, Budget::default());
    play.compares(1, slow_host(), 10.0);
    assert_eq!((play.starts, play.of_it().follow_up), (1, None), "nobody asked for it");
}

#[test]
fn a_second_window_counts_in_every_limit_and_its_refusal_stands_in_the_story() {
    let mut of_rule = play(1);
    of_rule.compares(1, slow_host(), 10.0);
    let mut of_day = play_of(&RULE.replace("CAPTURES", "4"), Budget { windows: 1, ..Budget::default() });
    of_day.compares(1, slow_host(), 10.0);
    for (play, reason) in [(of_rule, "rule_limit"), (of_day, "daily_windows")] {
        assert_eq!((play.starts, play.reasons.last().copied()), (1, Some(reason)));
        let incident = play.of_it();
        let refused = incident.follow_up.as_ref().and_then(|f| f.refused.as_ref()).expect("it was refused");
        let message = Message::of(&incident, Update::Resolved, at(20.0), &Origin::default());
        let said = format!("{message:?}");
        assert!(said.contains("a second window was asked for") && said.contains(&refused.why), "{said}");
        assert_eq!(incident.verdict.map(|v| v.sentence).as_deref(), Some("DP0 is slowed by its host."));
    }
}

#[test]
fn what_is_over_gets_no_second_window() {
    let mut play = play(4);
    for s in 9..20 {
        play.facts(f64::from(s));
        play.second(f64::from(s), [50, 50]);
    }
    play.compares(1, slow_host(), 20.0);
    assert_eq!(play.starts, 1);
}
