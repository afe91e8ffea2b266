use super::*;
use crate::rule::condition::Detected;
use crate::rule::{Condition, Statistic};
use crate::signal::frame::Frame;
use crate::signal::sample::Signal;
use crate::test_rng::TestRng;

const START: f64 = 1e9;

/// Three ranks are sent eight requests a second each, from one second to another.
fn play(factors: &mut FactorDetectors, seconds: std::ops::Range<u32>) {
    for s in seconds {
        for rank in 0..3 {
            let mut fields = Fields::default();
            let mut set = |signal: Signal, value: f64| fields.set(signal, value);
            set(catalog::RUNNING_REQS, 20.0);
            set(catalog::QUEUE_REQS, 0.0);
            set(catalog::ADMISSIONS, 8.0 * f64::from(s));
            let at = Time::from_epoch_s(START + f64::from(s));
            factors.take(&"server".into(), Rank::dp(rank), Report::Page, &fields, at);
        }
    }
}

fn learned_s(factors: &FactorDetectors) -> f64 {
    factors.findings("server").and_then(|t| t.learned_s).unwrap_or(0.0)
}

#[test]
fn a_server_is_known_again_after_a_restart_unless_what_is_known_is_old_or_of_other_ranks() {
    let mut before = FactorDetectors::new(1.0);
    play(&mut before, 0..300);
    assert!(learned_s(&before) > 200.0, "{}", learned_s(&before));
    let saved = before.learned_servers(Time::from_epoch_s(START + 300.0));
    let after = |learned_servers: Vec<LearnedServer>, days: f64| {
        let mut factors = FactorDetectors::new(1.0);
        factors.remember(learned_servers, Time::from_epoch_s(START + 300.0 + days * 86_400.0));
        play(&mut factors, 310..313);
        learned_s(&factors)
    };
    assert!(after(saved.clone(), 1.0) > 200.0);
    assert!(after(saved.clone(), 8.0) < 10.0);
    let of_four = saved.into_iter().map(|b| LearnedServer { ranks: vec![0, 1, 2, 3], ..b }).collect();
    assert!(after(of_four, 1.0) < 10.0);
}

#[test]
fn a_server_whose_totals_begin_anew_is_another_and_a_rank_that_it_lacks_does_not_hang() {
    let server: Arc<str> = "server".into();
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let mut factors = FactorDetectors::new(1.0);
    play(&mut factors, 0..100);
    // It dies, says the same of itself as before, and comes back with two ranks of the three.
    for s in 110..170 {
        for rank in 0..2 {
            let mut fields = Fields::default();
            fields.set(catalog::RUNNING_REQS, 20.0);
            fields.set(catalog::ADMISSIONS, 8.0 * f64::from(s - 110));
            factors.take(&server, Rank::dp(rank), Report::Page, &fields, at(s));
        }
        factors.step(at(s));
    }
    let progress = factors.progress(&server, at(170));
    assert!(progress.iter().all(|(_, p)| !matches!(p, Progress::Stuck(_))), "{progress:?}");
    assert!(learned_s(&factors) > 60.0, "what is usual stays: {}", learned_s(&factors));
}

#[test]
fn a_rank_that_the_next_instance_of_the_server_lacks_is_not_taken_to_hang() {
    let server: Arc<str> = "server".into();
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let hanging = |factors: &FactorDetectors, s: u32| -> Vec<u16> {
        let progress = factors.progress(&server, at(s)).into_iter();
        progress.filter(|(_, p)| matches!(p, Progress::Stuck(_))).map(|(dp, _)| dp).collect()
    };
    let mut factors = FactorDetectors::new(1.0);
    play(&mut factors, 0..100);
    // It comes back with two ranks of the three.
    let goes_on = |factors: &mut FactorDetectors, from: u32| {
        for s in from..from + 60 {
            for rank in 0..2 {
                let mut fields = Fields::default();
                fields.set(catalog::RUNNING_REQS, 20.0);
                fields.set(catalog::ADMISSIONS, 8.0 * f64::from(s));
                factors.take(&server, Rank::dp(rank), Report::Page, &fields, at(s));
            }
            factors.step(at(s));
        }
    };
    goes_on(&mut factors, 100);
    assert_eq!(hanging(&factors, 160), [2], "nobody said yet that the rank is gone");
    factors.server_is(&server, Some(2), true, at(160));
    goes_on(&mut factors, 160);
    assert_eq!(hanging(&factors, 220), Vec::<u16>::new());
    assert_eq!(factors.progress(&server, at(220)).len(), 2);
    // A late line of a rank that is gone changes nothing.
    play(&mut factors, 219..220);
    assert_eq!(factors.progress(&server, at(220)).len(), 2);
}

#[test]
fn of_the_processes_of_a_rank_one_is_listened_to() {
    let mut factors = FactorDetectors::new(1.0);
    for s in 0..60 {
        for (dp, tp) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut fields = Fields::default();
            fields.set(catalog::RUNNING_REQS, 20.0);
            // The second process of each counts nothing.
            fields.set(catalog::ADMISSIONS, if tp == 0 { 8.0 * f64::from(s) } else { 0.0 });
            let rank = Rank::dp(dp).with(Axis::Tp, tp);
            let at = Time::from_epoch_s(START + f64::from(s));
            factors.take(&"server".into(), rank, Report::Page, &fields, at);
        }
    }
    let told = factors.findings("server").expect("two ranks");
    assert_eq!((told.trouble, told.ranks), (None, &[0, 1][..]));
}

#[test]
fn a_log_whose_stamps_are_whole_seconds_blames_nobody_for_them() {
    let mut factors = FactorDetectors::new(1.0);
    let at = |s: u32| Time::from_epoch_s(START + f64::from(s));
    let mut told = 0;
    for s in 0..600_u32 {
        for i in 0..8_u32 {
            for rank in 0..4_u16 {
                let mut fields = Fields::default();
                fields.set(catalog::RUNNING_REQS, 20.0);
                fields.set(catalog::QUEUE_REQS, 0.0);
                fields.set(catalog::NEW_SEQS, 1.0);
                let tokens = 300.0 + 50.0 * f64::from((s * 7 + i * 3 + u32::from(rank)) % 11);
                fields.set(catalog::NEW_TOKENS, tokens);
                factors.take(&"server".into(), Rank::dp(rank), Report::Prefill, &fields, at(s));
                // A rank decodes forty steps in a little more than a second: some seconds have no line of it.
                let is_due = |n: u32| (n + u32::from(rank) * 5).is_multiple_of(9);
                if is_due(s * 8 + i) {
                    fields.set(catalog::USED_TOKENS, 20_000.0);
                    fields.set(catalog::GEN_THROUGHPUT, 800.0);
                    factors.take(&"server".into(), Rank::dp(rank), Report::Decode, &fields, at(s));
                }
            }
        }
        factors.step(at(s + 1));
        told += u32::from(factors.findings("server").is_some_and(|t| t.trouble.is_some()));
    }
    assert_eq!(told, 0);
}

#[test]
fn a_line_that_comes_at_a_full_second_is_read_in_its_turn() {
    let (mut factors, mut rng) = (FactorDetectors::new(1.0), TestRng(11));
    let (mut idle, mut is_back) = ([0_u32; 4], [false; 4]);
    let mut told = 0;
    for s in 0..1_200_u32 {
        for rank in 0..4_u16 {
            let mut line = |report, at: f64, running: f64| {
                let mut fields = Fields::default();
                fields.set(catalog::RUNNING_REQS, running);
                fields.set(catalog::QUEUE_REQS, 0.0);
                fields.set(catalog::NEW_SEQS, 1.0);
                fields.set(catalog::NEW_TOKENS, 300.0);
                fields.set(catalog::USED_TOKENS, 900.0);
                fields.set(catalog::GEN_THROUGHPUT, 40.0);
                let at = Time::from_epoch_s(START + f64::from(s) + at);
                factors.take(&"server".into(), Rank::dp(rank), report, &fields, at);
            };
            let (left, was_idle) = (&mut idle[usize::from(rank)], &mut is_back[usize::from(rank)]);
            if *left > 0 {
                *left -= 1;
                continue;
            }
            // It was idle, or a request comes while another one runs; some come at a full second.
            let at = if *was_idle && rng.uniform() < 0.3 { 0.0 } else { 0.1 + 0.1 * rng.uniform() };
            line(Report::Prefill, at, if *was_idle { 0.0 } else { 1.0 });
            line(Report::Decode, 0.5, 1.0);
            *was_idle = rng.uniform() < 0.2;
            if *was_idle {
                *left = 3;
            }
        }
        factors.step(Time::from_epoch_s(START + f64::from(s) + 1.0));
        told += u32::from(factors.findings("server").is_some_and(|t| t.trouble.is_some()));
    }
    assert_eq!(told, 0);
}

/// A server's numbers of one second, which differ with the seed.
fn read_at(factors: &mut FactorDetectors, server: &str, seed: u32, s: u32) {
    for rank in 0..3 {
        let mut fields = Fields::default();
        fields.set(catalog::RUNNING_REQS, f64::from(20 + (s * seed + u32::from(rank)) % 5));
        fields.set(catalog::ADMISSIONS, f64::from(s * (7 + (seed + u32::from(rank)) % 3)));
        let at = Time::from_epoch_s(START + f64::from(s) + 0.1 * f64::from(seed));
        factors.take(&server.into(), Rank::dp(rank), Report::Page, &fields, at);
        // Lines that bear only their second are spread over it.
        let line = Time::from_epoch_s(START + f64::from(s));
        factors.take(&server.into(), Rank::dp(rank), Report::Decode, &fields, line);
    }
    factors.step(Time::from_epoch_s(START + f64::from(s) + 0.1 * f64::from(seed)));
}

#[test]
fn a_server_is_judged_the_same_whether_it_is_watched_alone_or_beside_others() {
    let learned = |servers: &[(&str, u32)]| {
        let mut factors = FactorDetectors::new(1.0);
        for s in 0..90 {
            servers.iter().for_each(|(server, seed)| read_at(&mut factors, server, *seed, s));
        }
        let mut learned_servers = factors.learned_servers(Time::from_epoch_s(START + 90.0));
        learned_servers.retain(|b| *b.target == *"b");
        (learned_servers, format!("{:?}", factors.findings("b")))
    };
    let alone = learned(&[("b", 2)]);
    assert_eq!(alone.0.len(), 1);
    assert_eq!(learned(&[("a", 1), ("b", 2), ("c", 4)]), alone);
}

#[test]
fn what_is_nearest_is_told_only_to_a_rule_that_watches_it() {
    let (factor, side) = (Factor::Share, factor::Side::High);
    let nearest = Nearest { factor, rank: 0, side, deviations: 3.0, bound: 6.0, shows: true };
    let cost = Cost { fired: 2, accepted: 1.0 };
    let status = DetectorStatus {
        trouble: None,
        nearest: Some((nearest, 2)),
        learned_s: Some(7_200.0),
        became_usual: None,
        cost,
    };
    let of = |factor| status.words(FactorSet::NONE.with(factor));
    let told = of(Factor::Share);
    assert!(
        told.starts_with(
            "nothing departs from what is usual: nearest is DP2's share of the requests: 3.0 of the 6.0 standard \
             deviations needed to fire; "
        ),
        "{told}"
    );
    // What is beyond its bound is no more the nearest to it.
    for (shows, why) in [(false, "its load does not show it"), (true, "for less than two seconds")] {
        let nearest = Nearest { deviations: 10.8, shows, ..nearest };
        let told = DetectorStatus { nearest: Some((nearest, 2)), ..status }
            .words(FactorSet::NONE.with(Factor::Share));
        assert!(
            !told.contains("nearest")
                && told.contains("DP2's share of the requests is 10.8, beyond the 6.0 "),
            "{told}"
        );
        assert!(told.contains(why), "{told}");
    }
    let usual = Some((Factor::Share, 1, Time::from_epoch_s(START)));
    let usual = |factor| DetectorStatus { became_usual: usual, ..status }.words(FactorSet::NONE.with(factor));
    let told = usual(Factor::Share);
    assert!(
        told.contains("; DP1's share of the requests counts as usual since 2001-09-09 01:46:40"),
        "{told}"
    );
    assert!(!usual(Factor::Speed).contains("counts as usual"));
    let stuck = of(Factor::Stuck);
    assert!(stuck.starts_with("nothing departs of what it watches (stuck)"), "{stuck}");
    assert!(
        !stuck.contains("share")
            && stuck
                .contains("; 2 firings of all rules on factors in 24 h here (budget: 1 false alarm a day)"),
        "{stuck}"
    );
}

#[test]
fn a_number_that_is_another_ranks_is_not_told_as_the_blamed_ones() {
    let impact = factor::Impact { requests: 0.0, share: 0.0, reason: factor::Reason::Little };
    let trouble = |side, effect: f64| factor::Trouble {
        id: 1,
        factor: Factor::Share,
        side,
        ranks: vec![0],
        onset: None,
        fired: 0.0,
        deviance: 20.0,
        bound: 10.0,
        effect: Some(effect),
        window: 8,
        impact,
        symptoms: Vec::new(),
        reblamed: 0,
    };
    let words = |side, effect| words_of(&trouble(side, effect));
    assert_eq!(words(factor::Side::High, 0.7), "is sent 2.0 times its usual share of the requests");
    assert_eq!(words(factor::Side::High, -2.3), "is sent more requests than its usual share");
    assert_eq!(words(factor::Side::Low, 0.6), "is sent fewer requests than its usual share");
}

#[test]
fn an_idle_rule_shows_no_number_of_a_factor_that_it_does_not_watch() {
    let (factor, side) = (Factor::Share, factor::Side::High);
    let nearest = Nearest { factor, rank: 0, side, deviations: 3.0, bound: 6.0, shows: true };
    let told = DetectorFindings {
        ahead_s: 0.0,
        ranks: &[0, 1],
        trouble: None,
        nearest: Some(nearest),
        is_calming: false,
        learned_s: None,
        became_usual: None,
        cost: Cost::default(),
    };
    let shown = |factor: Factor| {
        let condition = Condition {
            signal: Signal(0),
            signal_name: "load".into(),
            statistic: Statistic::Factors,
            bound: 1.0,
            direction: Statistic::Factors.direction(),
            side: Statistic::Factors.side(),
            chance: None,
            above_baseline: None,
            smooth: Duration::ZERO,
            hold: Duration::ZERO,
            factors: FactorSet::NONE.with(factor),
        };
        let detected = Detected { factors: Some(&told), ..Detected::default() };
        condition.read(&Frame::of(Vec::new()), detected, &mut Vec::new()).value
    };
    assert_eq!((shown(Factor::Share), shown(Factor::Stuck)), (0.5, 0.0));
}
