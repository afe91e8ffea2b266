//! One trouble, one incident: a simulated server of four ranks, and what people are told of it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::*;
use crate::capture::captured::{Captured, CapturedFile, Quality};
use crate::capture::governor::ClockJump;
use crate::capture::{CaptureSpec, HttpWindow, Limits};
use crate::factor::Factor;
use crate::finding::{Finding, Side, Statistic};
use crate::incident::{CaptureOutcome, Death, EndReason, IncidentState, VerdictNote};
use crate::message::Update;
use crate::rule::{Combine, Condition, Direction, FactorSet, RuleState, Severity, Trigger as RuleTrigger};
use crate::signal::catalog;
use crate::signal::log_reader::Arrival;
use crate::signal::observation::SourceId;
use crate::signal::sample::{Signal, Source};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::verdict::{Confidence, Kind};

const START: f64 = 1_795_478_400.0;

fn condition(signal: Signal, name: &str, statistic: Statistic, bound: f64) -> Condition {
    Condition {
        signal,
        signal_name: name.into(),
        statistic,
        bound,
        direction: Direction::Above,
        side: Side::Both,
        chance: None,
        above_baseline: None,
        smooth: Duration::ZERO,
        hold: Duration::ZERO,
        factors: FactorSet::NONE,
    }
}

fn rule(name: &str, condition: Condition, (hold, clear): (u64, u64)) -> Rule {
    let part = |hold| RuleTrigger {
        combine: Combine::Any,
        conditions: vec![condition.clone()],
        hold: Duration::from_secs(hold),
    };
    Rule {
        name: name.into(),
        about: None,
        across: vec!["dp_rank".into()],
        within: vec!["target".into(), "role".into()],
        trigger: part(hold),
        clear: part(clear),
        keep_firing_for: Duration::ZERO,
        rearm_after: Duration::ZERO,
        only_if: None,
        min_mean: 0.0,
        min_members: 2,
        min_impact: 0.05,
        joins_trouble: false,
        capture: CaptureSpec::None,
        limits: Limits { cooldown: Duration::ZERO, captures: 10, per: Duration::from_secs(600) },
        severity: Severity::Warning,
        notify: Vec::new(),
        labels: Labels::default(),
    }
}

/// The rule on the factors of load, as it is shipped.
fn of_factors() -> Rule {
    let factors = FactorSet::NONE.with(Factor::Share).with(Factor::Speed).with(Factor::Work);
    let condition = condition(catalog::LOAD, "load", Statistic::Factors, 1.0);
    rule("dp-load-skew", Condition { factors, ..condition }, (0, 5))
}

/// A rule on how many requests run.
fn of_levels(joins_trouble: bool) -> Rule {
    let condition = condition(catalog::RUNNING_REQS, "running_reqs", Statistic::MaxOverMean, 1.5);
    Rule { joins_trouble, ..rule("running-skew", condition, (5, 15)) }
}

/// What a rank does in a second.
#[derive(Clone, Copy)]
struct Second {
    requests: u32,
    tokens: u32,
    running: u32,
    /// How long forty steps take.
    report_s: f64,
}

const USUAL: Second = Second { requests: 8, tokens: 300, running: 20, report_s: 1.0 };

/// The log of the first `to` seconds, each with its lines: `of` says what a rank does in each.
fn log(to: u32, of: &dyn Fn(u32, u32) -> Second) -> Vec<Vec<u8>> {
    log_from(START, to, of)
}

/// The same of a log whose clock says `start` at its first second.
fn log_from(start: f64, to: u32, of: &dyn Fn(u32, u32) -> Second) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for rank in 0..4_u32 {
        for s in 0..to {
            let Second { requests, tokens, running, .. } = of(s, rank);
            for i in 0..requests {
                let at = f64::from(s) + (f64::from(i) + 0.5) / f64::from(requests);
                let tokens = tokens + tokens / 12 * ((s * 7 + i * 3 + rank) % 11);
                lines.push((at, format!("DP{rank}] Prefill batch, #new-seq: 1, #new-token: {tokens}, #cached-token: 0, #running-req: {running}, #queue-req: 0")));
            }
        }
        // Ranks do not report in step.
        let mut due = 0.1 + 0.2 * f64::from(rank);
        while due < f64::from(to) {
            let Second { running, report_s, .. } = of(due as u32, rank);
            let speed = f64::from(running) * 40.0 / report_s;
            lines.push((due, format!("DP{rank}] Decode batch, #running-req: {running}, #token: 20000, gen throughput (token/s): {speed:.1}, #queue-req: 0")));
            due += report_s;
        }
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut seconds = vec![String::new(); to as usize];
    for (at, line) in lines {
        let (minute, second) = (at as u32 / 60, at as u32 % 60);
        let text = &mut seconds[at as usize];
        writeln!(text, "{:.4}\t[2026-11-24 00:{minute:02}:{second:02} {line}", start + at).expect("a string");
    }
    seconds.into_iter().map(String::into_bytes).collect()
}

fn setup(rules: Vec<Rule>) -> Setup {
    let server: Arc<str> = "server".into();
    Setup {
        rules,
        catalog: Arc::new(Catalog::default()),
        own: UserSignals::default(),
        pages: Vec::new(),
        sources: vec![WatchedSource {
            id: SourceId(0),
            target: TargetId(0),
            kind: Source::Log,
            name: "server.log".into(),
            zone: None,
        }],
        targets: vec![WatchedTarget { name: server.clone(), role: None, group: server, sees_log: true }],
        policy: Policy::default(),
        ledger: Ledger::default(),
        zone: TimeZone::UTC,
        mode: Mode::Replay,
    }
}

/// What people are told, and the incidents as they were last stored.
#[derive(Default)]
struct Told {
    messages: Vec<(f64, Update, Incident)>,
    stored: Vec<Incident>,
}

impl Told {
    fn take(&mut self, now: f64, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Notify { incident, update, only_edits: false, .. } => {
                    self.messages.push((now, update, *incident));
                }
                Effect::Notify { incident, .. } | Effect::Store { incident } => self.stored.push(*incident),
                _ => {}
            }
        }
    }

    fn of(&self, update: Update) -> Vec<&(f64, Update, Incident)> {
        self.messages.iter().filter(|m| m.1 == update).collect()
    }

    /// Who was blamed, in which order, and when.
    fn blamed(&self) -> Vec<(String, Side)> {
        self.of(Update::Fired).iter().map(|m| (m.2.finding.rank.to_string(), m.2.finding.side)).collect()
    }
}

/// Plays seconds `from..to` second by second.
fn play(watch: &mut Watch, told: &mut Told, (from, to): (u32, u32), of: &dyn Fn(u32, u32) -> Second) {
    for (s, lines) in (0..to).zip(log(to, of)).skip(from as usize) {
        let mut effects = Vec::new();
        let (target, source) = (TargetId(0), SourceId(0));
        let now = Time::from_epoch_s(START + f64::from(s + 1));
        watch.observe(
            &Observation::Lines { target, source, lines, arrival: Arrival::Recorded },
            now,
            &mut effects,
        );
        told.take(f64::from(s + 1), effects);
    }
}

fn told_of(rules: Vec<Rule>, to: u32, of: &dyn Fn(u32, u32) -> Second) -> Told {
    let (mut watch, mut told) = (Watch::new(setup(rules), Time::default()), Told::default());
    play(&mut watch, &mut told, (0, to), of);
    told
}

fn within(s: u32, from: u32, to: u32) -> bool {
    (from..to).contains(&s)
}

#[test]
fn a_redirect_that_starves_the_others_is_one_incident_and_is_over_within_twenty_seconds() {
    let told = told_of(vec![of_factors()], 320, &|s, rank| match within(s, 200, 260) {
        true => Second {
            requests: if rank == 2 { 26 } else { 2 },
            running: if rank == 2 { 60 } else { 8 },
            ..USUAL
        },
        false => USUAL,
    });
    assert_eq!(told.blamed(), [("dp_rank=2".to_owned(), Side::High)]);
    let resolved = told.of(Update::Resolved);
    assert!(
        resolved.len() == 1 && resolved[0].0 <= 280.0,
        "{:?}",
        resolved.iter().map(|r| r.0).collect::<Vec<_>>()
    );
}

#[test]
fn a_trouble_of_another_rank_is_an_incident_of_its_own_while_the_first_goes_on() {
    let told = told_of(vec![of_factors()], 340, &|s, rank| match rank {
        2 if within(s, 200, 300) => Second { report_s: 4.0, running: 60, ..USUAL },
        0 if within(s, 240, 270) => Second { requests: 40, running: 70, ..USUAL },
        _ => USUAL,
    });
    assert_eq!(told.blamed(), [("dp_rank=2".to_owned(), Side::Low), ("dp_rank=0".to_owned(), Side::High)]);
    let fired = told.of(Update::Fired);
    assert!((241.0..250.0).contains(&fired[1].0), "{}", fired[1].0);
    assert!(
        (fired[1].2.finding.onset.epoch_s() - START - 240.0).abs() <= fired[1].2.finding.onset_error_s + 0.5
    );
    let ends: Vec<(f64, &str)> = told.of(Update::Resolved).iter().map(|m| (m.0, &*m.2.id)).collect();
    assert_eq!(ends.iter().map(|e| e.1).collect::<Vec<_>>(), [&*fired[1].2.id, &*fired[0].2.id]);
    assert!((270.0..292.0).contains(&ends[0].0) && (300.0..325.0).contains(&ends[1].0), "{ends:?}");
}

#[test]
fn a_trouble_that_a_new_rank_makes_incomparable_is_not_told_to_be_over() {
    let slow = |s, rank| match rank == 1 && s >= 200 {
        true => Second { report_s: 4.0, ..USUAL },
        false => USUAL,
    };
    let (mut watch, mut told) = (Watch::new(setup(vec![of_factors()]), Time::default()), Told::default());
    play(&mut watch, &mut told, (0, 230), &slow);
    for (s, mut lines) in (0..300_u32).zip(log(300, &slow)).skip(230) {
        let (at, minute, second) = (START + f64::from(s) + 0.999, s / 60, s % 60);
        let line = format!(
            "{at:.4}\t[2026-11-24 00:{minute:02}:{second:02} DP4] Decode batch, #running-req: 20, #token: 20000, gen throughput (token/s): 800.0, #queue-req: 0\n"
        );
        lines.extend(line.into_bytes());
        let mut effects = Vec::new();
        let (target, source) = (TargetId(0), SourceId(0));
        let now = Time::from_epoch_s(START + f64::from(s + 1));
        let lines = Observation::Lines { target, source, lines, arrival: Arrival::Recorded };
        watch.observe(&lines, now, &mut effects);
        told.take(f64::from(s + 1), effects);
    }
    assert_eq!(told.blamed(), [("dp_rank=1".to_owned(), Side::Low)]);
    let ends: Vec<_> = told.of(Update::Resolved).iter().map(|m| (m.0, m.2.end)).collect();
    assert!(matches!(ends[..], [(at, Some(EndReason::NotCompared))] if at >= 230.0), "{ends:?}");
}

/// All ranks that an incident names.
fn named(incident: &Incident) -> Vec<String> {
    let Finding { rank, also, .. } = &incident.finding;
    let mut ranks: Vec<String> = [rank].into_iter().chain(also).map(ToString::to_string).collect();
    ranks.sort_unstable();
    ranks
}

#[test]
fn two_ranks_that_become_slow_at_once_are_one_incident_and_one_message_and_both_are_named() {
    let told =
        told_of(vec![of_factors()], 320, &|s, rank| match matches!(rank, 0 | 3) && within(s, 200, 260) {
            true => Second { report_s: 3.0, running: 50, ..USUAL },
            false => USUAL,
        });
    assert_eq!(told.of(Update::Fired).len(), 1, "{:?}", told.blamed());
    assert_eq!(named(&told.of(Update::Resolved)[0].2), ["dp_rank=0", "dp_rank=3"]);
}

#[test]
fn two_ranks_that_are_sent_more_at_once_are_one_incident_and_one_message_and_both_are_named() {
    let told = told_of(vec![of_factors()], 320, &|s, rank| match (within(s, 200, 260), rank) {
        (true, 0) => Second { requests: 13, running: 32, ..USUAL },
        (true, 3) => Second { requests: 12, running: 30, ..USUAL },
        (true, rank) => Second { requests: 2 + 2 * (rank - 1), running: 10, ..USUAL },
        (false, _) => USUAL,
    });
    assert_eq!(told.of(Update::Fired).len(), 1, "{:?}", told.blamed());
    let end = &told.of(Update::Resolved)[0].2;
    assert_eq!((named(end), end.finding.side), (vec!["dp_rank=0".into(), "dp_rank=3".into()], Side::High));
}

#[test]
fn a_rank_that_is_taken_out_while_it_works_off_long_prompts_is_told() {
    let told = told_of(vec![of_factors()], 320, &|s, rank| match rank {
        1 if within(s, 200, 240) => Second { tokens: 6000, running: 50, ..USUAL },
        1 if within(s, 240, 252) => Second { running: 50, ..USUAL },
        1 if within(s, 252, 280) => Second { requests: 0, running: 40, ..USUAL },
        _ if within(s, 252, 280) => Second { requests: 11, ..USUAL },
        _ => USUAL,
    });
    assert_eq!(told.blamed(), [("dp_rank=1".to_owned(), Side::High), ("dp_rank=1".to_owned(), Side::Low)]);
}

#[test]
fn a_rank_that_gets_nothing_when_it_has_worked_off_its_long_prompts_is_told() {
    let told = told_of(vec![of_factors()], 320, &|s, rank| match rank {
        1 if within(s, 200, 240) => Second { tokens: 6000, running: 50, ..USUAL },
        // The router takes it out as soon as its prompts are as usual, and a while later it is idle.
        1 if within(s, 240, 250) => Second { requests: 0, running: 40, ..USUAL },
        1 if within(s, 250, 280) => Second { requests: 0, running: 1, ..USUAL },
        _ if within(s, 240, 280) => Second { requests: 11, ..USUAL },
        _ => USUAL,
    });
    assert_eq!(told.blamed(), [("dp_rank=1".to_owned(), Side::High), ("dp_rank=1".to_owned(), Side::Low)]);
}

#[test]
fn a_rule_on_levels_that_joins_finds_symptoms_of_the_trouble_and_any_other_an_incident_of_its_own() {
    let slow = |s: u32, rank: u32| match rank == 1 && within(s, 200, 250) {
        true => Second { report_s: 3.0, running: 20 + 3 * (s - 200), ..USUAL },
        false => USUAL,
    };
    let joined = told_of(vec![of_factors(), of_levels(true)], 320, &slow);
    assert_eq!(joined.of(Update::Fired).len(), 1, "{:?}", joined.blamed());
    let end = &joined.of(Update::Resolved)[0].2;
    let symptom = end.joined.first().expect("the level is a symptom");
    assert_eq!((&*symptom.rule, symptom.side), ("running-skew", Side::High));
    assert!(symptom.at > end.fired_at);
    let apart = told_of(vec![of_factors(), of_levels(false)], 320, &slow);
    let rules: Vec<&str> = apart.of(Update::Fired).iter().map(|m| &*m.2.rule).collect();
    assert_eq!(rules, ["dp-load-skew", "running-skew"]);
}

#[test]
fn the_status_of_a_rule_that_joined_an_incident_names_its_rank_and_the_incident() {
    let slow = |s: u32, rank: u32| match rank == 1 && within(s, 200, 250) {
        true => Second { report_s: 3.0, running: 20 + 3 * (s - 200), ..USUAL },
        false => USUAL,
    };
    let (mut watch, mut told) =
        (Watch::new(setup(vec![of_factors(), of_levels(true)]), Time::default()), Told::default());
    play(&mut watch, &mut told, (0, 248), &slow);
    let status = watch.status(Time::from_epoch_s(START + 248.0));
    let level = status.rules.iter().find(|r| &*r.name == "running-skew").expect("it is loaded");
    let firing = level.groups.iter().find(|g| g.state == RuleState::Firing).expect("it fires");
    let wanted = Some(&told.of(Update::Fired)[0].2);
    assert_eq!(firing.rank.as_ref().map(ToString::to_string).as_deref(), Some("dp_rank=1"));
    assert_eq!(firing.incident.as_ref(), wanted.map(|incident| &incident.id));
}

#[test]
fn what_a_person_says_of_an_incident_is_kept_with_it() {
    let slow = |s: u32, rank: u32| match rank == 1 && within(s, 200, 250) {
        true => Second { report_s: 3.0, running: 60, ..USUAL },
        false => USUAL,
    };
    let (mut watch, mut told) = (Watch::new(setup(vec![of_factors()]), Time::default()), Told::default());
    play(&mut watch, &mut told, (0, 240), &slow);
    let id = told.of(Update::Fired)[0].2.id.clone();
    let (now, mut effects) = (Time::from_epoch_s(START + 240.0), Vec::new());
    assert!(watch.mark(&id, Mark::Useful, now, &mut effects).is_some());
    assert!(watch.mark(&id, Mark::Noise, now, &mut effects).is_some());
    told.take(240.0, effects);
    let said = Some(Marked { mark: Mark::Noise, at: now });
    assert_eq!(told.stored.last().and_then(|incident| incident.marked), said, "the last word counts");
    assert_eq!(watch.incident(&id).and_then(|incident| incident.marked), said);
    assert!(watch.mark("another", Mark::Noise, now, &mut Vec::new()).is_none());
}

#[test]
fn a_level_that_fires_before_the_factor_is_taken_over_by_its_trouble() {
    let told = told_of(vec![of_factors(), of_levels(true)], 320, &|s, rank| match rank == 1 {
        true if within(s, 200, 214) => Second { running: 60, ..USUAL },
        true if within(s, 214, 250) => Second { running: 60, report_s: 4.0, ..USUAL },
        _ => USUAL,
    });
    let fired = told.of(Update::Fired);
    assert_eq!(fired.iter().map(|m| &*m.2.rule).collect::<Vec<_>>(), ["running-skew"]);
    let ends = told.of(Update::Resolved);
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0].2.id, fired[0].2.id);
    assert!(ends[0].2.trouble.is_some() && ends[0].2.finding.side == Side::Low);
    assert_eq!(&*ends[0].2.joined[0].rule, "running-skew");
}

#[test]
fn an_incident_that_a_graver_rule_takes_over_keeps_its_name_and_says_what_it_was_before() {
    let level = Rule { severity: Severity::Info, ..of_levels(true) };
    let told = told_of(vec![of_factors(), level], 320, &|s, rank| match rank == 1 {
        true if within(s, 200, 214) => Second { running: 60, ..USUAL },
        true if within(s, 214, 250) => Second { running: 60, report_s: 4.0, ..USUAL },
        _ => USUAL,
    });
    let (first, end) = (&told.of(Update::Fired)[0].2, &told.of(Update::Resolved)[0].2);
    assert_eq!((&*first.rule, first.severity, first.raised.len()), ("running-skew", Severity::Info, 0));
    assert_eq!((&*end.rule, end.severity, end.raised.len()), ("running-skew", Severity::Warning, 1));
    assert_eq!(end.raised[0].from, Severity::Info);
    assert!(first.fired_at < end.raised[0].at && Some(end.raised[0].at) < end.resolved_at);
}

/// An agent that is killed at `killed`, and the next one, which begins at `back`.
fn restarted(killed: u32, back: u32, to: u32, of: &dyn Fn(u32, u32) -> Second) -> (Told, Told) {
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let (mut before, mut told) = (Watch::new(setup(vec![of_factors()]), Time::default()), Told::default());
    play(&mut before, &mut told, (0, killed), of);
    let (learned_servers, kept) = (before.learned_servers(at(killed)), before.kept_incidents());
    // As they lie on the disk.
    let json = serde_json::to_string(&(&learned_servers, &kept)).expect("they are written");
    let (learned_servers, kept) = serde_json::from_str(&json).expect("they are read");
    let (mut after, mut then) = (Watch::new(setup(vec![of_factors()]), at(back)), Told::default());
    after.remember(learned_servers, at(back));
    after.take_up(kept, at(back));
    play(&mut after, &mut then, (back, to), of);
    (told, then)
}

#[test]
fn an_open_trouble_is_the_same_incident_for_the_next_agent_and_its_end_is_told_once() {
    let (before, after) = restarted(215, 220, 320, &|s, rank| match rank == 0 && within(s, 200, 260) {
        true => Second { requests: 32, running: 60, ..USUAL },
        false => USUAL,
    });
    let fired = before.of(Update::Fired);
    assert_eq!(fired.len(), 1);
    let told: Vec<(Update, &str)> = after.messages.iter().map(|m| (m.1, &*m.2.id)).collect();
    assert_eq!(told, [(Update::Resolved, &*fired[0].2.id)]);
    let (at, _, end) = &after.messages[0];
    assert_eq!((end.finding.onset, &end.finding.rank), (fired[0].2.finding.onset, &fired[0].2.finding.rank));
    assert!((260.0..285.0).contains(at) && !end.ended_unseen, "{at}");
}

#[test]
fn a_trouble_that_ended_while_no_agent_ran_is_resolved_and_says_so() {
    let (before, after) = restarted(215, 240, 340, &|s, rank| match rank == 0 && within(s, 200, 225) {
        true => Second { requests: 32, running: 60, ..USUAL },
        false => USUAL,
    });
    let fired = before.of(Update::Fired);
    let told: Vec<(Update, &str, bool)> =
        after.messages.iter().map(|m| (m.1, &*m.2.id, m.2.ended_unseen)).collect();
    assert_eq!(told, [(Update::Resolved, &*fired[0].2.id, true)]);
}

#[test]
fn another_trouble_after_a_restart_is_another_incident() {
    let (before, after) = restarted(215, 220, 320, &|s, rank| match rank {
        0 if within(s, 200, 218) => Second { requests: 32, running: 60, ..USUAL },
        3 if within(s, 245, 290) => Second { requests: 32, running: 60, ..USUAL },
        _ => USUAL,
    });
    assert_eq!(before.blamed(), [("dp_rank=0".to_owned(), Side::High)]);
    assert_eq!(after.blamed(), [("dp_rank=3".to_owned(), Side::High)]);
    assert_ne!(after.of(Update::Fired)[0].2.id, before.of(Update::Fired)[0].2.id);
    assert_eq!(after.of(Update::Resolved).len(), 2);
}

/// A rank that is sent a third of all requests, from 200 s on: until `pause.0` and from `pause.1` on.
fn with_a_pause(pause: (u32, u32)) -> impl Fn(u32, u32) -> Second {
    move |s, rank| match rank == 2 && within(s, 200, 300) && !within(s, pause.0, pause.1) {
        true => Second { requests: 32, running: 60, ..USUAL },
        false => USUAL,
    }
}

fn words(told: &Told) -> Vec<(Update, &str)> {
    told.messages.iter().map(|m| (m.1, &*m.2.id)).collect()
}

#[test]
fn a_trouble_that_comes_back_within_a_minute_is_the_same_incident_and_one_message_says_so() {
    let told = told_of(vec![of_factors()], 340, &with_a_pause((220, 250)));
    let id = &*told.messages[0].2.id;
    let expected = [Update::Fired, Update::Resolved, Update::Returned, Update::Resolved];
    assert_eq!(words(&told), expected.map(|update| (update, id)));
    let (at, _, back) = told.of(Update::Returned)[0];
    assert!((250.0..256.0).contains(at), "{at}");
    assert_eq!((back.resolved_at, back.returned.len()), (None, 1));
    let first = &told.of(Update::Fired)[0].2;
    assert_eq!((back.fired_at, back.finding.onset), (first.fired_at, first.finding.onset));
    let ids: Vec<String> = told.messages.iter().map(|m| crate::message::id_of(&m.2, m.1)).collect();
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "each is delivered: {ids:?}");
}

#[test]
fn a_trouble_that_comes_back_after_more_than_a_minute_is_another_incident() {
    let late = told_of(vec![of_factors()], 420, &|s, rank| match rank {
        2 if within(s, 200, 230) || within(s, 320, 350) => Second { requests: 32, running: 60, ..USUAL },
        _ => USUAL,
    });
    assert_eq!(late.of(Update::Returned).len(), 0);
    assert_ne!(late.of(Update::Fired)[0].2.id, late.of(Update::Fired)[1].2.id);
}

#[test]
fn what_another_rank_shows_soon_after_a_trouble_is_not_the_trouble_that_comes_back() {
    let other = told_of(vec![of_factors()], 340, &|s, rank| match rank {
        2 if within(s, 200, 230) => Second { requests: 32, running: 60, ..USUAL },
        0 if within(s, 262, 300) => Second { report_s: 3.0, running: 50, ..USUAL },
        _ => USUAL,
    });
    assert_eq!(other.of(Update::Returned).len(), 0);
    assert_eq!(other.blamed(), [("dp_rank=2".to_owned(), Side::High), ("dp_rank=0".to_owned(), Side::Low)]);
}

#[test]
fn a_trouble_that_another_trouble_of_its_rank_follows_is_over() {
    let told = told_of(vec![of_factors()], 340, &|s, rank| match rank {
        2 if within(s, 200, 230) => Second { requests: 32, running: 60, ..USUAL },
        2 if within(s, 262, 300) => Second { report_s: 3.0, running: 50, ..USUAL },
        _ => USUAL,
    });
    assert_eq!(told.of(Update::Returned).len(), 0);
    assert_eq!(told.blamed(), [("dp_rank=2".to_owned(), Side::High), ("dp_rank=2".to_owned(), Side::Low)]);
}

#[test]
fn a_trouble_that_comes_back_under_the_next_agent_is_the_same_incident() {
    let (before, after) = restarted(242, 246, 340, &with_a_pause((220, 262)));
    let id = &*before.messages[0].2.id;
    assert_eq!(words(&before), [(Update::Fired, id), (Update::Resolved, id)]);
    assert_eq!(words(&after), [(Update::Returned, id), (Update::Resolved, id)]);
}

/// The rule on the factors of load, with windows that open so long after it fired.
fn with_windows(warmup: u64) -> Rule {
    let warmup = Duration::from_secs(warmup);
    Rule { capture: CaptureSpec::Http(HttpWindow { warmup, ..HttpWindow::default() }), ..of_factors() }
}

/// Everything is silenced until then.
fn silence(watch: &mut Watch, from: u32, until: u32) {
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let silence = Silence { rule: None, target: None, until: at(until), why: None };
    watch.handle(Event::Silenced(silence), at(from), &mut Vec::new());
}

/// Time passes without a sample.
fn tick(watch: &mut Watch, told: &mut Told, s: u32) {
    let mut effects = Vec::new();
    watch.handle(Event::Tick, Time::from_epoch_s(START + f64::from(s)), &mut effects);
    told.take(f64::from(s), effects);
}

/// A trouble that is over for a while, and a silence: what is told, and the incident at the end.
fn silenced(rule: Rule, pause: (u32, u32), (from, until): (u32, u32)) -> (Told, Incident) {
    let (mut watch, mut told) = (Watch::new(setup(vec![rule]), Time::default()), Told::default());
    let of = with_a_pause(pause);
    play(&mut watch, &mut told, (0, from), &of);
    tick(&mut watch, &mut told, from);
    silence(&mut watch, from, until);
    play(&mut watch, &mut told, (from, until), &of);
    tick(&mut watch, &mut told, until);
    play(&mut watch, &mut told, (until, 340), &of);
    let [incident] = &watch.status(watch.now()).incidents[..] else { panic!("it is one incident") };
    (told, incident.clone())
}

#[test]
fn no_window_opens_for_a_trouble_that_comes_back_in_a_silence() {
    // Its warm-up is longer than the trouble lasted at first.
    let (_, incident) = silenced(with_windows(60), (220, 250), (240, 290));
    assert_eq!(incident.returned.len(), 1);
    let refused = incident.capture.refused().expect("no window in a silence");
    assert_eq!(refused.reason.word(), "silenced");
    assert!(refused.why.starts_with("it was silenced until "), "{}", refused.why);
    assert!(refused.why.ends_with(" when it came back"), "{}", refused.why);
}

#[test]
fn a_trouble_that_fired_in_a_silence_and_comes_back_after_it_gets_its_window() {
    let (told, incident) = silenced(with_windows(0), (220, 250), (190, 240));
    assert_eq!(incident.returned.len(), 1);
    assert_eq!(incident.capture, CaptureOutcome::WouldStart);
    // Nobody had been told that it began.
    let id = &*incident.id;
    assert_eq!(words(&told), [(Update::Fired, id), (Update::Resolved, id)]);
    let refused = told.messages[0].2.capture.refused().expect("as it was in the silence");
    assert!(refused.why.starts_with("it was silenced until "), "{}", refused.why);
}

#[test]
fn no_window_opens_where_a_silence_begins_in_the_warm_up() {
    let (_, incident) = silenced(with_windows(10), (300, 300), (205, 260));
    assert_eq!(incident.capture.refused().map(|refused| refused.reason.word()), Some("silenced"));
}

#[test]
fn a_trouble_that_came_back_in_a_silence_is_told_to_be_back_when_that_ends() {
    let (told, incident) = silenced(of_factors(), (220, 250), (240, 270));
    let id = &*incident.id;
    let expected = [Update::Fired, Update::Resolved, Update::Returned, Update::Resolved];
    assert_eq!(words(&told), expected.map(|update| (update, id)));
    assert_eq!(told.of(Update::Returned)[0].0, 270.0);
    let ids: Vec<String> = told.messages.iter().map(|m| crate::message::id_of(&m.2, m.1)).collect();
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "each is delivered: {ids:?}");
}

#[test]
fn the_next_agent_knows_at_the_end_of_a_silence_whether_the_beginning_was_told() {
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let of = with_a_pause((220, 250));
    for (from, expected) in [(240, Update::Returned), (190, Update::Fired)] {
        let mut before = Watch::new(setup(vec![of_factors()]), Time::default());
        let mut told = Told::default();
        play(&mut before, &mut told, (0, from), &of);
        silence(&mut before, from, 280);
        play(&mut before, &mut told, (from, 260), &of);
        let json = serde_json::to_string(&(before.learned_servers(at(260)), before.kept_incidents()));
        let (learned_servers, kept) = serde_json::from_str(&json.expect("written")).expect("read");
        let (mut after, mut then) = (Watch::new(setup(vec![of_factors()]), at(262)), Told::default());
        after.remember(learned_servers, at(262));
        after.take_up(kept, at(262));
        silence(&mut after, 262, 280);
        play(&mut after, &mut then, (262, 280), &of);
        tick(&mut after, &mut then, 280);
        assert_eq!(then.messages.iter().map(|m| m.1).collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn what_comes_back_and_ends_in_a_silence_is_stored_as_over() {
    let (told, incident) = silenced(of_factors(), (220, 250), (240, 335));
    assert_eq!(words(&told).len(), 2, "both messages are from before the silence");
    assert!(incident.resolved_at.is_some());
    assert_eq!(told.stored.last().map(|stored| stored.resolved_at), Some(incident.resolved_at));
}

/// A server one of whose ranks is sent three times as many requests as its peers, until `even`.
fn sent_more(even: u32) -> impl Fn(u32, u32) -> Second {
    move |s, rank| match rank == 1 && s < even {
        true => Second { requests: 24, running: 60, ..USUAL },
        false => USUAL,
    }
}

#[test]
fn an_imbalance_that_was_there_before_the_agent_is_one_incident_for_information_without_a_window() {
    let told = told_of(vec![of_factors()], 1500, &sent_more(2000));
    assert_eq!(told.messages.len(), 1, "{:?}", words(&told));
    let (at, update, incident) = &told.messages[0];
    assert_eq!(
        (*update, &*incident.rule, incident.severity),
        (Update::Fired, "standing-imbalance", Severity::Info)
    );
    assert_eq!((incident.finding.rank.to_string(), incident.finding.side), ("dp_rank=1".into(), Side::High));
    assert!((600.0..720.0).contains(at), "{at}");
    let message = crate::message::Message::of(incident, *update, Time::default(), &Default::default());
    assert!(message.title.contains("DP1 has"), "{}", message.title);
    assert!(message.facts.since.starts_with("before 2026-11-24 00:00:"), "{}", message.facts.since);
    assert!(message.facts.evidence.contains("DP1 is sent 3.0"), "{}", message.facts.evidence);
}

#[test]
fn a_server_whose_ranks_are_even_has_no_standing_imbalance_and_one_that_ends_is_told_as_over() {
    assert!(told_of(vec![of_factors()], 900, &|_, _| USUAL).messages.is_empty());
    let of_levels_only = told_of(vec![of_levels(false)], 900, &sent_more(0));
    assert!(of_levels_only.messages.is_empty());
    let told = told_of(vec![of_factors()], 2600, &sent_more(900));
    let standing: Vec<Update> =
        told.messages.iter().filter(|m| &*m.2.rule == "standing-imbalance").map(|m| m.1).collect();
    assert_eq!(standing, [Update::Fired, Update::Resolved]);
}

#[test]
fn a_standing_imbalance_is_the_same_incident_for_the_next_agent() {
    let (before, after) = restarted(800, 805, 1700, &sent_more(9999));
    assert_eq!(before.of(Update::Fired).len(), 1);
    assert!(after.messages.is_empty(), "{:?}", words(&after));
}

#[test]
fn a_verdict_is_put_on_the_recovered_capture_of_an_incident_that_was_resolved_and_may_come_back() {
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let of = with_a_pause((220, 260));
    let (mut before, mut told) = (Watch::new(setup(vec![of_factors()]), Time::default()), Told::default());
    play(&mut before, &mut told, (0, 240), &of);
    let (learned_servers, mut kept) = (before.learned_servers(at(240)), before.kept_incidents());
    // As it was saved before its capture ended.
    kept[0].incident.capture = CaptureOutcome::Open { since: at(205), expects: None };
    let (mut after, mut then) = (Watch::new(setup(vec![of_factors()]), at(242)), Told::default());
    after.remember(learned_servers, at(242));
    after.take_up(kept.clone(), at(242));
    let files = vec![CapturedFile::default()];
    let captured = Captured { files, quality: Quality::Usable, ..Captured::default() };
    let mut known = kept[0].incident.clone();
    known.capture = CaptureOutcome::Done(captured.clone());
    let mut effects = Vec::new();
    after.adopt_capture_result(&known, &mut effects);
    assert!(effects.is_empty(), "it is told with the end: {effects:?}");
    let note = VerdictNote {
        kind: Kind::NoFinding,
        rank: None,
        by: None,
        sentence: "nothing".into(),
        lost_ms_per_step: None,
        confidence: Confidence::Low,
        confirms: None,
        suspect: None,
    };
    let event = Event::Compared { incident: known.id.clone(), window: 1, note: note.clone() };
    after.handle(event, at(243), &mut effects);
    then.take(243.0, effects);
    play(&mut after, &mut then, (243, 340), &of);
    let updates: Vec<Update> = then.messages.iter().map(|m| m.1).collect();
    assert_eq!(updates, [Update::Verdict, Update::Returned, Update::Resolved]);
    for (_, _, incident) in &then.messages {
        assert_eq!(incident.capture, CaptureOutcome::Done(captured.clone()));
        assert_eq!(incident.verdict.as_ref(), Some(&note));
    }
    assert_eq!(then.messages[0].2.state, IncidentState::Resolved);
}

#[test]
fn what_was_put_off_until_a_trouble_was_looked_at_is_forgotten_with_its_end() {
    let (mut watch, mut told) = (Watch::new(setup(vec![with_windows(60)]), Time::default()), Told::default());
    let of = with_a_pause((220, 320));
    play(&mut watch, &mut told, (0, 215), &of);
    assert_eq!(watch.core.unreported.len(), 1);
    play(&mut watch, &mut told, (215, 320), &of);
    assert_eq!(told.of(Update::Resolved).len(), 1);
    assert!(watch.core.unreported.is_empty() && watch.core.deferred.is_empty());
}

#[test]
fn the_incident_of_a_rule_that_a_reload_removes_is_over_wherever_it_is_kept() {
    let (mut watch, mut told) = (Watch::new(setup(vec![of_factors()]), Time::default()), Told::default());
    let of = with_a_pause((320, 320));
    play(&mut watch, &mut told, (0, 190), &of);
    silence(&mut watch, 190, 300);
    play(&mut watch, &mut told, (190, 240), &of);
    let mut effects = Vec::new();
    let event = Event::Reloaded {
        rules: Vec::new(),
        catalog: Arc::new(Catalog::default()),
        own: UserSignals::default(),
    };
    watch.handle(event, Time::from_epoch_s(START + 240.0), &mut effects);
    assert!(effects.iter().any(|e| matches!(e, Effect::Cleared { .. })));
    told.take(240.0, effects);
    assert_eq!(words(&told), [], "nothing is told in the silence");
    assert!(told.stored.last().is_some_and(|stored| stored.resolved_at.is_some()));
}

#[test]
fn a_server_that_stays_dead_is_not_forgotten_for_newer_incidents() {
    let mut incidents = incidents::Incidents::default();
    let mut die = |n: u32| {
        let death =
            Death { at: Time::from_epoch_s(START + f64::from(n)), line: String::new(), window_open: false };
        incidents.open_death("server-died", format!("server{n}").into(), &death, None);
        incidents.resolve_deaths(&format!("server{}", n.max(1)), death.at);
    };
    (0..300).for_each(&mut die);
    let known = incidents.newest_first().count();
    assert!((100..110).contains(&known), "{known}");
    assert_eq!(incidents.resolve_deaths("server0", Time::from_epoch_s(START + 400.0)).len(), 1);
}

/// Plays `to` seconds live. The clock is set by `by_s` seconds after as many as `set` says.
fn told_live(rules: Vec<Rule>, to: u32, set: Option<(u32, f64)>, of: &dyn Fn(u32, u32) -> Second) -> Told {
    let begins = Time::from_epoch_s(START);
    let mut watch = Watch::new(Setup { mode: Mode::Live, ..setup(rules) }, begins);
    let mut told = Told::default();
    let by_s = |s: u32| set.filter(|set| s >= set.0).map_or(0.0, |set| set.1);
    let [before, after] = [0.0, set.map_or(0.0, |set| set.1)].map(|by_s| log_from(START + by_s, to, of));
    for s in 0..to {
        let mut effects = Vec::new();
        let now = |tick: f64| Time::from_epoch_s(START + f64::from(s) + by_s(s) + tick);
        if let Some((_, by_s)) = set.filter(|set| s == set.0) {
            let before = Time::from_epoch_s(START + f64::from(s));
            let jump = ClockJump { before, by_ns: (by_s * 1e9) as i64, started: begins };
            watch.handle(Event::ClockSet(jump), now(0.0), &mut effects);
        }
        let (target, source) = (TargetId(0), SourceId(0));
        if s == 300 {
            // Read before the clock was set, and taken in after it.
            let arrival = Arrival::Live(Time::from_epoch_s(START + f64::from(s)));
            let lines = b"[2026-11-24 00:04:59 DP0] Decode batch, #running-req: 20, #queue-req: 0\n".to_vec();
            watch.handle(
                Event::Observed(Observation::Lines { target, source, lines, arrival }),
                now(0.0),
                &mut effects,
            );
        }
        for tick in [0.25, 0.5, 0.75] {
            watch.handle(Event::Tick, now(tick), &mut effects);
        }
        let lines = if by_s(s) == 0.0 { &before } else { &after }[s as usize].clone();
        let lines = Observation::Lines { target, source, lines, arrival: Arrival::Recorded };
        watch.handle(Event::Observed(lines), now(1.0), &mut effects);
        watch.handle(Event::Tick, now(1.0), &mut effects);
        told.take(f64::from(s + 1), effects);
    }
    told
}

#[test]
fn a_clock_that_is_set_changes_nothing_of_what_is_found_and_when() {
    let hangs = Second { requests: 0, report_s: 1e4, ..USUAL };
    let of = |s: u32, rank: u32| match rank {
        2 if within(s, 320, 360) => Second { requests: 26, running: 60, ..USUAL },
        _ if within(s, 320, 360) => Second { requests: 2, running: 8, ..USUAL },
        1 if s >= 400 => hangs,
        _ => USUAL,
    };
    let of_all = |rule: Rule| {
        let factors = Factor::ALL.into_iter().fold(FactorSet::NONE, FactorSet::with);
        let condition = Condition { factors, ..rule.trigger.conditions[0].clone() };
        let trigger = RuleTrigger { conditions: vec![condition], ..rule.trigger.clone() };
        Rule { clear: RuleTrigger { hold: Duration::from_secs(5), ..trigger.clone() }, trigger, ..rule }
    };
    let rules = || vec![of_all(of_factors()), of_levels(false)];
    let told = |set: Option<(u32, f64)>| {
        let told = told_live(rules(), 440, set, &of);
        let ahead = |s: f64| set.filter(|set| s >= f64::from(set.0)).map_or(0.0, |set| set.1);
        let line = |(s, update, incident): &(f64, Update, Incident)| {
            let Finding { rank, onset, .. } = &incident.finding;
            let onset = match update {
                Update::Fired => (onset.epoch_s() - START - ahead(*s)).round(),
                _ => 0.0,
            };
            format!("{s} {update:?} {} {rank} {onset}", incident.rule)
        };
        told.messages.iter().map(line).collect::<Vec<_>>()
    };
    let undisturbed = told(None);
    for needed in ["Fired dp-load-skew dp_rank=2", "Fired running-skew", "Fired dp-load-skew dp_rank=1"] {
        assert!(undisturbed.iter().any(|line| line.contains(needed)), "{needed}: {undisturbed:#?}");
    }
    // Before all troubles, and in the first.
    for at in [300, 330] {
        for by_s in [-3600.0, 3600.0, -40.25] {
            assert_eq!(told(Some((at, by_s))), undisturbed, "set by {by_s} s after {at} s");
        }
    }
}

#[test]
fn a_server_whose_process_began_later_than_the_one_before_is_another() {
    let page = |started: f64| {
        format!("process_start_time_seconds {started}\nvllm:num_requests_running{{engine=\"0\"}} 3\n")
            .into_bytes()
    };
    let mut watch = Watch::new(Setup { mode: Mode::Live, ..setup(vec![of_factors()]) }, Time::default());
    let mut restarts = Vec::new();
    // Two front ends of one server, which answer in turns, began at about the same time.
    for (s, started) in [1000.0, 1000.0, 1000.4, 1000.0, 1090.5, 1090.5, 1090.5].into_iter().enumerate() {
        let (target, source, at) = (TargetId(0), SourceId(0), Time::from_epoch_s(START + s as f64));
        let mut effects = Vec::new();
        watch.handle(
            Event::Observed(Observation::Page { target, source, body: page(started), at }),
            at,
            &mut effects,
        );
        restarts.extend(effects.iter().filter(|e| matches!(e, Effect::Restarted { .. })).map(|_| s));
    }
    assert_eq!(restarts, [4]);
}

mod apart;
