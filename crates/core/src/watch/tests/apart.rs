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

/// A redirect to DP2 for a while.
fn redirected((from, until): (u32, u32)) -> impl Fn(u32, u32) -> Second {
    move |s, rank| match rank == 2 && within(s, from, until) {
        true => Second { requests: 32, running: 60, ..USUAL },
        false => USUAL,
    }
}

#[test]
fn a_trouble_of_a_server_that_was_not_heard_for_a_quarter_of_an_hour_is_over_and_does_not_come_back() {
    let (mut watch, mut told) = (Watch::new(setup(vec![of_factors()]), Time::default()), Told::default());
    let of = redirected((200, 215));
    play(&mut watch, &mut told, (0, 215), &of);
    play(&mut watch, &mut told, (1115, 1300), &of);
    let id = &*told.messages[0].2.id;
    assert_eq!(words(&told), [(Update::Fired, id), (Update::Resolved, id)]);
}

#[test]
fn an_incident_of_ranks_that_can_no_longer_be_compared_is_over_and_says_so() {
    let of = |s: u32, rank: u32| match rank == 1 && s >= 100 {
        true => Second { running: 60, ..USUAL },
        false => USUAL,
    };
    let (mut watch, mut told) = (Watch::new(setup(vec![of_levels(false)]), Time::default()), Told::default());
    play(&mut watch, &mut told, (0, 130), &of);
    assert_eq!(told.of(Update::Fired).len(), 1);
    // Its next instance has one rank.
    let info = serde_json::json!({"version": "0.5.9", "tp_size": 1, "dp_size": 1});
    let fact = ServerFact::Info(crate::capture::facts::ServerFacts::of_server_info(&info));
    let mut effects = Vec::new();
    watch.handle(
        Event::Server { target: TargetId(0), fact },
        Time::from_epoch_s(START + 130.0),
        &mut effects,
    );
    told.take(130.0, effects);
    for (s, lines) in (0..1500_u32).zip(log(1500, &of)).skip(132) {
        let text = String::from_utf8(lines).expect("text");
        let lines: String = text.split_inclusive('\n').filter(|line| line.contains(" DP0] ")).collect();
        let (target, source, mut effects) = (TargetId(0), SourceId(0), Vec::new());
        let lines = Observation::Lines { target, source, lines: lines.into(), arrival: Arrival::Recorded };
        watch.observe(&lines, Time::from_epoch_s(START + f64::from(s + 1)), &mut effects);
        told.take(f64::from(s + 1), effects);
    }
    let ends = told.of(Update::Resolved);
    assert_eq!(ends.len(), 1, "{:?}", words(&told));
    assert!((700.0..1450.0).contains(&ends[0].0), "{}", ends[0].0);
    let message =
        crate::message::Message::of(&ends[0].2, Update::Resolved, Time::default(), &Default::default());
    assert!(message.facts.since.contains("could not be compared any more"), "{}", message.facts.since);
}

#[test]
fn a_trouble_that_becomes_usual_is_told_as_that() {
    let (mut watch, mut told) = (Watch::new(setup(vec![of_factors()]), Time::default()), Told::default());
    play(&mut watch, &mut told, (0, 320), &redirected((100, 9999)));
    let ends = told.of(Update::Resolved);
    let message =
        crate::message::Message::of(&ends[0].2, Update::Resolved, Time::default(), &Default::default());
    assert!(message.facts.since.contains("counts as usual from now on"), "{}", message.facts.since);
    assert!(message.title.ends_with("counts as usual from now on"), "{}", message.title);
    // One that ends is told as before.
    let told = told_of(vec![of_factors()], 320, &redirected((200, 250)));
    let end = &told.of(Update::Resolved)[0].2;
    let message = crate::message::Message::of(end, Update::Resolved, Time::default(), &Default::default());
    let said = [&message.facts.since, &message.title];
    assert!(said.iter().all(|text| !text.contains("counts as usual")), "{said:?}");
}

#[test]
fn that_a_hang_allows_no_window_is_told_while_it_lasts() {
    let of = |s: u32, rank: u32| match rank == 0 && within(s, 200, 260) {
        true => HANGS,
        false => USUAL,
    };
    let rule = with_windows(0);
    let all = Factor::ALL.into_iter().fold(FactorSet::NONE, FactorSet::with);
    let condition = Condition { factors: all, ..rule.trigger.conditions[0].clone() };
    let trigger = RuleTrigger { conditions: vec![condition], ..rule.trigger.clone() };
    let clear = RuleTrigger { hold: Duration::from_secs(5), ..trigger.clone() };
    let told = told_of(vec![Rule { trigger, clear, ..rule }], 300, &of);
    let refused = told.of(Update::Refused);
    assert_eq!(refused.len(), 1, "{:?}", words(&told));
    let (at, _, incident) = refused[0];
    let why = &incident.capture.refused().expect("it is refused").why;
    assert!(*at < 260.0 && why.contains("DP0"), "{at} {why}");
}

#[test]
fn incidents_that_begin_at_one_moment_have_ids_of_their_own() {
    let mut incidents = incidents::Incidents::default();
    let death = |n: u32| {
        let at = Time::from_epoch_s(START);
        (format!("server{n}").into(), Death { at, line: String::new(), window_open: false })
    };
    let ids: std::collections::BTreeSet<_> = (0..2000)
        .map(|n| {
            let (server, death): (Arc<str>, Death) = death(n);
            incidents.open_death(SERVER_DIED, server, &death, None)
        })
        .collect();
    assert_eq!((ids.len(), incidents.newest_first().count()), (2000, 2000));
}

#[test]
fn a_standing_imbalance_that_no_rule_asks_for_after_a_reload_is_over() {
    let (mut watch, mut told) = (Watch::new(setup(vec![of_factors()]), Time::default()), Told::default());
    play(&mut watch, &mut told, (0, 800), &sent_more(9999));
    assert_eq!(rules_told(&told), ["standing-imbalance"]);
    let event = Event::Reloaded {
        rules: vec![of_levels(false)],
        catalog: Arc::new(Catalog::default()),
        own: UserSignals::default(),
    };
    let mut effects = Vec::new();
    watch.handle(event, Time::from_epoch_s(START + 800.0), &mut effects);
    told.take(800.0, effects);
    assert_eq!(told.of(Update::Resolved).len(), 1, "{:?}", words(&told));
}

#[test]
fn a_trouble_behind_another_one_is_the_same_incident_for_the_next_agent() {
    let of = |s: u32, rank: u32| match rank {
        2 if within(s, 200, 330) => Second { report_s: 4.0, running: 60, ..USUAL },
        0 if within(s, 240, 300) => Second { requests: 40, running: 70, ..USUAL },
        _ => USUAL,
    };
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let (mut before, mut told) = (Watch::new(setup(vec![of_factors()]), Time::default()), Told::default());
    play(&mut before, &mut told, (0, 262), &of);
    let [slow, sent] = &told.of(Update::Fired)[..] else { panic!("{:?}", words(&told)) };
    let (mut after, mut then) = (Watch::new(setup(vec![of_factors()]), at(263)), Told::default());
    after.remember(before.learned_servers(at(262)), at(263));
    after.take_up(before.kept_incidents(), at(263));
    // Time passes before the first line comes.
    tick(&mut after, &mut then, 265);
    play(&mut after, &mut then, (266, 380), &of);
    let ends: Vec<(&str, bool, f64)> =
        then.messages.iter().map(|m| (&*m.2.id, m.2.ended_unseen, m.0)).collect();
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert_eq!((ends[0].0, ends[1].0), (&*sent.2.id, &*slow.2.id), "{ends:?}");
    assert!(!ends[1].1 && (330.0..355.0).contains(&ends[1].2), "{ends:?}");
}
