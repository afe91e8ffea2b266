//! What is told of a level, a silence or a death beside a trouble: nothing of it may be lost in another's incident.

use super::*;

/// Who was told to have begun, by rule and rank.
fn began(told: &Told) -> Vec<(String, String)> {
    told.of(Update::Fired).iter().map(|m| (m.2.rule.to_string(), m.2.finding.rank.to_string())).collect()
}

fn rules_told(told: &Told) -> Vec<&str> {
    told.of(Update::Fired).iter().map(|m| &*m.2.rule).collect()
}

/// The rule on ranks that hang, as it is shipped.
fn of_stuck() -> Rule {
    let factors = FactorSet::NONE.with(Factor::Stuck);
    let condition = condition(catalog::LOAD, "load", Statistic::Factors, 1.0);
    let severity = Severity::Critical;
    Rule { severity, ..rule("stuck-rank", Condition { factors, ..condition }, (0, 5)) }
}

const HANGS: Second = Second { requests: 0, report_s: 1e4, ..USUAL };

fn silence_rule(watch: &mut Watch, rule: &str, (from, until): (u32, u32)) {
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let silence = Silence { rule: Some(rule.into()), target: None, until: at(until), why: None };
    watch.handle(Event::Silenced(silence), at(from), &mut Vec::new());
}

/// What is told where one rule is silenced from 100 s on.
fn told_without(silenced: &str, rules: Vec<Rule>, to: u32, of: &dyn Fn(u32, u32) -> Second) -> Told {
    let (mut watch, mut told) = (Watch::new(setup(rules), Time::default()), Told::default());
    play(&mut watch, &mut told, (0, 100), of);
    silence_rule(&mut watch, silenced, (100, 9999));
    play(&mut watch, &mut told, (100, to), of);
    told
}

#[test]
fn a_level_that_outlives_the_trouble_that_it_joined_is_an_incident_of_its_own_a_minute_later() {
    let of = |s: u32, rank: u32| match rank == 1 {
        true if within(s, 200, 250) => Second { report_s: 3.0, running: 20 + 2 * (s - 200), ..USUAL },
        true if within(s, 250, 420) => Second { running: 80, ..USUAL },
        _ => USUAL,
    };
    let told = told_of(vec![of_factors(), of_levels(true)], 480, &of);
    assert_eq!(rules_told(&told), ["dp-load-skew", "running-skew"], "{:?}", words(&told));
    let (at, _, level) = told.of(Update::Fired)[1];
    let over = told.of(Update::Resolved)[0];
    assert!((over.0 + 59.0..over.0 + 63.0).contains(at), "{} {at}", over.0);
    assert_eq!(level.finding.rank.to_string(), "dp_rank=1");
    let ends: Vec<(&str, f64)> = told.of(Update::Resolved).iter().map(|m| (&*m.2.rule, m.0)).collect();
    assert_eq!(ends[1].0, "running-skew");
    assert!((430.0..445.0).contains(&ends[1].1), "{ends:?}");
}

#[test]
fn a_level_that_a_trouble_took_over_is_an_incident_again_where_it_outlives_that() {
    let of = |s: u32, rank: u32| match rank == 1 {
        true if within(s, 200, 214) => Second { running: 60, ..USUAL },
        true if within(s, 214, 250) => Second { running: 60, report_s: 4.0, ..USUAL },
        true if within(s, 250, 420) => Second { running: 60, ..USUAL },
        _ => USUAL,
    };
    let told = told_of(vec![of_factors(), of_levels(true)], 480, &of);
    assert_eq!(rules_told(&told), ["running-skew", "running-skew"], "{:?}", words(&told));
    let ids: Vec<&str> = told.of(Update::Fired).iter().map(|m| &*m.2.id).collect();
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn a_trouble_is_told_though_a_level_of_its_rank_fires_in_a_silence() {
    let of = |s: u32, rank: u32| match rank == 2 {
        true if within(s, 190, 200) => Second { running: 60, ..USUAL },
        true if within(s, 200, 260) => Second { requests: 32, running: 60, ..USUAL },
        _ => USUAL,
    };
    let told = told_without("running-skew", vec![of_factors(), of_levels(true)], 320, &of);
    assert_eq!(began(&told), [("dp-load-skew".to_owned(), "dp_rank=2".to_owned())]);
}

#[test]
fn a_rank_that_hangs_is_told_though_its_trouble_began_in_a_silence_of_another_rule() {
    let of = |s: u32, rank: u32| match rank == 0 {
        true if within(s, 200, 220) => Second { requests: 32, running: 60, ..USUAL },
        true if within(s, 220, 260) => Second { running: 60, ..HANGS },
        _ => USUAL,
    };
    let told = told_without("dp-load-skew", vec![of_factors(), of_stuck()], 380, &of);
    assert_eq!(began(&told), [("stuck-rank".to_owned(), "dp_rank=0".to_owned())]);
    assert_eq!(told.of(Update::Fired)[0].2.severity, Severity::Critical);
    assert_eq!(words(&told).len(), 2, "its end is told, once: {:?}", words(&told));
}

#[test]
fn a_level_is_told_though_a_trouble_goes_on_in_a_silence_of_another_rule() {
    let slow = |s: u32, rank: u32| match rank == 1 && within(s, 200, 250) {
        true => Second { report_s: 3.0, running: 20 + 3 * (s - 200), ..USUAL },
        false => USUAL,
    };
    let told = told_without("dp-load-skew", vec![of_factors(), of_levels(true)], 320, &slow);
    assert_eq!(rules_told(&told), ["running-skew"]);
    let both = told_without("running-skew", vec![of_factors(), of_levels(true)], 320, &slow);
    assert_eq!(rules_told(&both), ["dp-load-skew"], "what is silenced itself still joins");
}

#[test]
fn another_trouble_in_front_ends_no_incident_whose_own_goes_on() {
    let of = |s: u32, rank: u32| match rank {
        2 if within(s, 200, 340) => Second { report_s: 4.0, running: 60, ..USUAL },
        0 if within(s, 240, 300) => HANGS,
        _ => USUAL,
    };
    let told = told_of(vec![of_factors(), of_stuck()], 420, &of);
    let ends: Vec<(&str, f64)> = told.of(Update::Resolved).iter().map(|m| (&*m.2.rule, m.0)).collect();
    let slow: Vec<f64> = ends.iter().filter(|e| e.0 == "dp-load-skew").map(|e| e.1).collect();
    assert!(slow.len() == 1 && (340.0..375.0).contains(&slow[0]), "{ends:?}");
    assert!(ends.iter().any(|e| e.0 == "stuck-rank" && (300.0..330.0).contains(&e.1)), "{ends:?}");
    assert_eq!(began(&told).len(), 2, "{:?}", words(&told));
    assert_eq!(told.of(Update::Returned).len(), 0);
}

#[test]
fn a_level_of_another_rank_that_has_fired_for_long_is_not_taken_over() {
    let of = |s: u32, rank: u32| match rank {
        3 if s >= 120 => Second { running: 60, ..USUAL },
        0 if within(s, 300, 360) => Second { requests: 32, ..USUAL },
        _ => USUAL,
    };
    let told = told_of(vec![of_factors(), of_levels(true)], 400, &of);
    assert_eq!(
        began(&told),
        [("running-skew", "dp_rank=3"), ("dp-load-skew", "dp_rank=0")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
}

/// A server that dies at `at`.
fn told_of_a_death(silenced: Option<&str>, rule: Rule, at: u32, of: &dyn Fn(u32, u32) -> Second) -> Told {
    let begins = Time::from_epoch_s(START);
    let mut watch = Watch::new(Setup { mode: Mode::Live, ..setup(vec![rule]) }, begins);
    let mut told = Told::default();
    silenced.into_iter().for_each(|rule| silence_rule(&mut watch, rule, (0, 9999)));
    play(&mut watch, &mut told, (0, at), of);
    for tick in 0..60 {
        let mut effects = Vec::new();
        watch.handle(
            Event::Tick,
            Time::from_epoch_s(START + f64::from(at) + 0.25 * f64::from(tick)),
            &mut effects,
        );
        told.take(f64::from(at), effects);
    }
    let lines = b"[2026-11-24 00:05:00 DP0] Received sigquit from a child process. It usually means the child failed.\n".to_vec();
    let now = Time::from_epoch_s(START + f64::from(at) + 15.0);
    let (target, source, mut effects) = (TargetId(0), SourceId(0), Vec::new());
    let lines = Observation::Lines { target, source, lines, arrival: Arrival::Live(now) };
    watch.handle(Event::Observed(lines), now, &mut effects);
    told.take(f64::from(at) + 15.0, effects);
    told
}

#[test]
fn a_death_is_told_as_critical_and_never_in_an_incident_that_is_silenced() {
    let slow = |s: u32, rank: u32| match rank == 1 && s >= 200 {
        true => Second { report_s: 3.0, running: 60, ..USUAL },
        false => USUAL,
    };
    let died = |told: &Told| -> Vec<(String, Severity)> {
        told.of(Update::Died).iter().map(|m| (m.2.rule.to_string(), m.2.severity)).collect()
    };
    let told = told_of_a_death(None, of_factors(), 230, &slow);
    assert_eq!(died(&told), [("dp-load-skew".to_owned(), Severity::Critical)]);
    let silenced = told_of_a_death(Some("dp-load-skew"), of_factors(), 230, &slow);
    assert_eq!(died(&silenced), [(SERVER_DIED.to_owned(), Severity::Critical)]);
    let standing = told_of_a_death(None, of_factors(), 800, &sent_more(9999));
    assert_eq!(rules_told(&standing), ["standing-imbalance"]);
    assert_eq!(died(&standing), [(SERVER_DIED.to_owned(), Severity::Critical)]);
}
