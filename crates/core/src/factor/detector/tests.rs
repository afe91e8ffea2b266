use super::*;
use crate::factor::observation::{Counters, Decode, Gauges, Prefill, RankReading, Reading};
use crate::test_rng::TestRng;

const SETTINGS: Settings = Settings { ranks: 4, false_alarms_per_day: 1.0 };

/// Plays `seconds` from `from` on: eight requests a second and rank, but `more` times as many on DP2.
fn play(detector: &mut Detector, from: i64, seconds: i64, more: usize) -> Vec<TroubleChange> {
    play_cached(detector, from, seconds, more, [0.8; 4])
}

/// The same, where so much of the prompts is in each rank's cache.
fn play_cached(
    detector: &mut Detector,
    from: i64,
    seconds: i64,
    more: usize,
    cached: [f64; 4],
) -> Vec<TroubleChange> {
    // Who computes more holds more.
    play_held(detector, (from, seconds, more), cached, |rank| 30.0 + 6.0 * (0.8 - cached[rank]).max(0.0))
}

/// The same, where each rank holds so many requests.
fn play_held(
    detector: &mut Detector,
    (from, seconds, more): (i64, i64, usize),
    cached: [f64; 4],
    running: impl Fn(usize) -> f64,
) -> Vec<TroubleChange> {
    let mut changes = Vec::new();
    for s in from..from + seconds {
        for (rank, cached) in cached.into_iter().enumerate() {
            let n = 8 * if rank == 2 { more } else { 1 };
            let running = running(rank);
            for i in 0..n {
                let at = s as f64 + (i as f64 + 0.5) / n as f64;
                let tokens = 300.0 + 50.0 * ((s as usize * 7 + i * 3 + rank) % 11) as f64;
                let line = Prefill {
                    new_seqs: 1.0,
                    new_tokens: tokens * (1.0 - cached),
                    cached_tokens: Some(tokens * cached),
                    running: Some(running),
                    queue: Some(0.0),
                };
                detector.observe(&RankReading { at, rank, what: Reading::Prefill(line) });
            }
            let line = Decode {
                running,
                tokens: Some(2e4),
                throughput: Some(1200.0),
                queue: Some(0.0),
                ..Decode::default()
            };
            detector.observe(&RankReading { at: s as f64 + 0.99, rank, what: Reading::Decode(line) });
        }
        changes.extend(detector.step(s as f64 + 1.05));
    }
    changes
}

#[test]
fn a_redirect_fires_once_names_its_rank_and_clears_when_it_ends() {
    let mut detector = Detector::new(SETTINGS);
    assert_eq!(play(&mut detector, 0, 200, 1), vec![]);
    let changes = play(&mut detector, 200, 30, 4);
    let fired: Vec<&Trouble> =
        changes.iter().filter(|c| matches!(c, TroubleChange::Fired(_))).map(TroubleChange::trouble).collect();
    assert_eq!(fired.len(), 1);
    assert_eq!(
        (fired[0].factor, fired[0].side, fired[0].ranks.clone()),
        (Factor::Share, Side::High, vec![2])
    );
    let onset = fired[0].onset.unwrap();
    assert!((onset.at - 200.0).abs() <= onset.error && fired[0].fired < 205.0, "{:?}", fired[0]);
    let after = play(&mut detector, 230, 40, 1);
    assert!(after.iter().any(|c| matches!(c, TroubleChange::Cleared(i) if i.id == 1)), "{after:?}");
}

/// Plays `seconds` from `from` on, in each of which `came` says how many requests come to a rank, and each
/// rank takes so many times as long as usual for the same steps.
fn play_paced(
    detector: &mut Detector,
    from: i64,
    seconds: i64,
    mut came: impl FnMut(usize) -> usize,
    takes: impl Fn(i64) -> [f64; 4],
) -> Vec<TroubleChange> {
    let mut changes = Vec::new();
    let mut next = takes(from).map(|times| from as f64 + 0.25 * times);
    for s in from..from + seconds {
        for (rank, next) in next.iter_mut().enumerate() {
            let n = came(rank);
            let prompts = (0..n).map(|i| {
                let tokens = 300.0 + 50.0 * ((s as usize * 7 + i * 3 + rank) % 11) as f64;
                let line = Prefill { new_seqs: 1.0, new_tokens: 0.2 * tokens, ..Prefill::default() };
                let line = Prefill { cached_tokens: Some(0.8 * tokens), queue: Some(0.0), ..line };
                let line = Prefill { running: Some(30.0), ..line };
                (s as f64 + (i as f64 + 0.5) / n as f64, Reading::Prefill(line))
            });
            let mut lines: Vec<(f64, Reading)> = prompts.collect();
            while *next < s as f64 + 1.0 {
                let line = Decode {
                    running: 30.0,
                    tokens: Some(2e4),
                    throughput: Some(1200.0),
                    queue: Some(0.0),
                    ..Decode::default()
                };
                lines.push((*next, Reading::Decode(line)));
                *next += 0.25 * takes(s)[rank] * (1.0 + 0.1 * (17.0 * *next).sin());
            }
            lines.sort_by(|a, b| a.0.total_cmp(&b.0));
            lines.into_iter().for_each(|(at, what)| detector.observe(&RankReading { at, rank, what }));
        }
        changes.extend(detector.step(s as f64 + 1.05));
    }
    changes
}

#[test]
fn a_rank_that_becomes_slow_in_the_wake_of_a_redirect_began_when_it_did() {
    let even = |_| 8;
    let mut detector = Detector::new(SETTINGS);
    assert_eq!(play_paced(&mut detector, 0, 200, even, |_| [1.0; 4]), vec![]);
    let redirect = play_paced(&mut detector, 200, 20, |rank| if rank == 2 { 56 } else { 8 }, |_| [1.0; 4]);
    assert!(redirect.iter().any(|c| matches!(c, TroubleChange::Fired(i) if i.ranks == [2])), "{redirect:?}");
    // What the ranks have in common is busy with what is left of it: DP0 is a little slower, which nobody is told.
    let wake = play_paced(&mut detector, 220, 24, even, |_| [1.15, 1.0, 1.0, 1.0]);
    assert!(matches!(&wake[..], [TroubleChange::Cleared(i)] if i.ranks == [2]), "{wake:?}");
    let changes = play_paced(&mut detector, 244, 10, even, |_| [3.0, 1.0, 1.0, 1.0]);
    let [TroubleChange::Fired(slow)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((slow.factor, &slow.ranks[..]), (Factor::Speed, &[0][..]));
    let onset = slow.onset.expect("a slow rank has one");
    assert!((onset.at - 244.0).abs() <= onset.error && onset.error < 2.5, "{onset:?}");
}

#[test]
fn what_a_trouble_has_left_on_its_rank_is_no_part_of_the_next_one() {
    let even = |_| 8;
    let mut detector = Detector::new(SETTINGS);
    play_paced(&mut detector, 0, 200, even, |_| [1.0; 4]);
    play_paced(&mut detector, 200, 20, |rank| if rank == 2 { 56 } else { 8 }, |_| [1.0; 4]);
    // DP2 still works off what it was sent when DP0 becomes slow.
    let takes = |s| [if s < 244 { 1.0 } else { 3.0 }, 1.0, 1.6, 1.0];
    let changes = play_paced(&mut detector, 220, 36, even, takes);
    let told: Vec<&[usize]> = changes.iter().map(|c| &c.trouble().ranks[..]).collect();
    assert_eq!(told, [&[2][..], &[0]], "one ends, one begins: {changes:?}");
}

#[test]
fn a_rank_that_is_slow_under_the_requests_that_it_is_sent_is_told_as_one_that_is_sent_more() {
    let mut rng = TestRng(3);
    // Each of sixteen comes to a rank with that chance: eight a second and rank, and thirteen to DP3.
    let mut came = |rank: usize, more: f64| {
        let chance = if rank == 3 { more } else { 0.5 };
        (0..16).filter(|_| rng.uniform() < chance).count()
    };
    let mut detector = Detector::new(SETTINGS);
    assert_eq!(play_paced(&mut detector, 0, 300, |rank| came(rank, 0.5), |_| [1.0; 4]), vec![]);
    let changes = play_paced(&mut detector, 300, 15, |rank| came(rank, 0.85), |_| [1.0, 1.0, 1.0, 1.9]);
    let told = changes.last().map(TroubleChange::trouble).expect("it is found");
    assert_eq!((told.factor, told.side, &told.ranks[..]), (Factor::Share, Side::High, &[3][..]), "{told:?}");
    let onset = told.onset.expect("a share has one");
    assert!((onset.at - 300.0).abs() <= onset.error && onset.error < 5.0, "{onset:?}");
    assert_eq!(told.id, 1, "it is one trouble: {changes:?}");
}

#[test]
fn a_redirect_that_was_there_before_the_agent_ends_without_a_word_and_the_next_one_is_told() {
    let mut detector = Detector::new(SETTINGS);
    let fired = |changes: Vec<TroubleChange>| -> Vec<(Side, Vec<usize>)> {
        let fired = changes.into_iter().filter(|c| matches!(c, TroubleChange::Fired(_)));
        fired.map(|c| (c.trouble().side, c.trouble().ranks.clone())).collect()
    };
    assert_eq!(fired(play(&mut detector, 0, 60, 6)), []);
    assert_eq!(fired(play(&mut detector, 60, 60, 1)), [], "it ends");
    assert_eq!(fired(play(&mut detector, 120, 20, 6)), [(Side::High, vec![2])], "it begins again");
}

#[test]
fn a_rank_that_computes_more_and_has_less_to_do_than_its_peers_is_in_no_trouble() {
    let told =
        |running: f64| {
            let mut detector = Detector::new(SETTINGS);
            play(&mut detector, 0, 200, 1);
            play_held(&mut detector, (200, 20, 1), [0.8, 0.2, 0.8, 0.8], |rank| {
                if rank == 1 { running } else { 30.0 }
            })
            .iter()
            .any(|c| matches!(c, TroubleChange::Fired(i) if i.ranks == [1]))
        };
    assert!(told(36.0));
    assert!(!told(24.0), "a router that minds the cache sends it sessions because it is free");
}

#[test]
fn what_other_ranks_compute_anew_after_a_redirect_is_its_wake() {
    let cold = [0.8, 0.2, 0.8, 0.8];
    let after = |trouble: i64| {
        let mut detector = Detector::new(SETTINGS);
        play(&mut detector, 0, 200, 1);
        play(&mut detector, 200, trouble, 4);
        play(&mut detector, 200 + trouble, 90, 1);
        let changes = play_cached(&mut detector, 290 + trouble, 20, 1, cold);
        changes.into_iter().any(|c| matches!(c, TroubleChange::Fired(i) if i.ranks == vec![1]))
    };
    assert!(after(0), "without a trouble before it is told");
    assert!(!after(30), "sessions come back to a rank whose cache has forgotten them");
}

#[test]
fn what_was_learned_survives_a_restart() {
    let mut before = Detector::new(SETTINGS);
    play(&mut before, 0, 400, 1);
    let mut after = Detector::restored(SETTINGS, before.saved(), 400.0);
    assert_eq!(after.bounds(), before.bounds());
    assert_eq!(play(&mut after, 400, 20, 1), vec![]);
    assert!(play(&mut after, 420, 10, 4).iter().any(|c| matches!(c, TroubleChange::Fired(_))));
}

#[test]
fn readings_of_ranks_that_do_not_exist_are_ignored() {
    let mut detector = Detector::new(SETTINGS);
    detector.observe(&RankReading { at: 1.0, rank: 9, what: Reading::Gauges(Gauges::default()) });
    assert_eq!(detector.step(2.0), vec![]);
}

/// Gauges of four ranks, polled every `interval` seconds from `from` on: each runs about 30 requests, DP2
/// gets `more` a second that stay.
fn poll(detector: &mut Detector, from: f64, polls: usize, interval: f64, more: f64) -> Vec<TroubleChange> {
    let mut changes = Vec::new();
    let mut second = from.ceil();
    for i in 0..polls {
        let at = from + interval * i as f64;
        while second + 0.05 <= at {
            changes.extend(detector.step(second + 0.05));
            second += 1.0;
        }
        for rank in 0..4usize {
            // A swing that is no two ranks' at the same time.
            let swing = (i * 5 + rank * 3) % 7;
            let running = 27.0 + swing as f64 + if rank == 2 { more * (at - from) } else { 0.0 };
            let gauges = Gauges {
                running: Some(running.floor()),
                waiting: Some(0.0),
                throughput: Some(2000.0 + 10.0 * swing as f64),
                stamp: Some(at - 0.02),
                ..Gauges::default()
            };
            detector.observe(&RankReading { at, rank, what: Reading::Gauges(gauges) });
        }
    }
    changes
}

#[test]
fn a_rank_that_fills_up_is_told_though_its_server_is_polled_every_five_seconds() {
    let mut detector = Detector::new(SETTINGS);
    assert_eq!(poll(&mut detector, 0.4, 120, 5.0, 0.0), vec![]);
    let changes = poll(&mut detector, 600.4, 6, 5.0, 12.0);
    assert!(
        changes.iter().any(|c| matches!(c, TroubleChange::Fired(i) if i.ranks == vec![2])),
        "{changes:?}"
    );
}

#[test]
fn a_trouble_is_told_wherever_in_a_second_a_server_is_polled() {
    for begins in [0.02, 0.06, 0.08, 0.3, 0.95] {
        let mut detector = Detector::new(SETTINGS);
        assert_eq!(poll(&mut detector, begins, 300, 1.0, 0.0), vec![]);
        let changes = poll(&mut detector, 300.0 + begins, 30, 1.0, 12.0);
        let told =
            changes.iter().any(|c| matches!(c, TroubleChange::Fired(i) if i.ranks == [2] && i.fired < 315.0));
        assert!(told, "polled {begins} s after each full second: {changes:?}");
    }
}

#[test]
fn by_gauges_alone_a_trouble_goes_on_as_long_as_its_load_departs() {
    let mut detector = Detector::new(SETTINGS);
    let mut changes = Vec::new();
    for s in 0..560_i64 {
        for rank in 0..4usize {
            let swing = ((s as usize * 5 + rank * 3) % 7) as f64;
            // It is sent more for ten seconds, and keeps what it has for another thirty: what comes and what
            // goes are even again.
            let more = match s - 400 {
                grows @ 0..10 => 9.0 * grows as f64,
                10..40 => 90.0,
                ebbs @ 40..50 => 9.0 * (50 - ebbs) as f64,
                _ => 0.0,
            };
            let gauges = Gauges {
                running: Some(27.0 + swing + if rank == 2 { more } else { 0.0 }),
                waiting: Some(0.0),
                throughput: Some(2000.0 + 10.0 * swing),
                stamp: Some(s as f64 + 0.38),
                ..Gauges::default()
            };
            detector.observe(&RankReading { at: s as f64 + 0.4, rank, what: Reading::Gauges(gauges) });
        }
        changes.extend(detector.step(s as f64 + 1.05).into_iter().map(|c| (s, c)));
    }
    let told: Vec<(i64, &TroubleChange)> = changes.iter().map(|(s, c)| (*s, c)).collect();
    let [(_, TroubleChange::Fired(found)), (over, TroubleChange::Cleared(_))] = told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(found.ranks, [2]);
    assert!((440..475).contains(&over), "{over}");
}

#[test]
fn what_is_learned_does_not_depend_on_where_in_a_second_a_server_is_polled() {
    let rate = |phase: f64| {
        let mut detector = Detector::new(SETTINGS);
        poll(&mut detector, phase, 200, 1.0, 0.0);
        detector.saved().channels[GAUGES].as_ref().map(|known| known.share.rate).unwrap_or(0.0)
    };
    let [at_its_beginning, soon_after, at_its_end] = [0.01, 0.1, 0.9].map(rate);
    assert!(at_its_beginning > 1.0);
    assert!((soon_after / at_its_beginning - 1.0).abs() < 0.2, "{soon_after} {at_its_beginning}");
    assert!((at_its_end / at_its_beginning - 1.0).abs() < 0.2, "{at_its_end} {at_its_beginning}");
}

#[test]
fn a_firing_that_was_noise_raises_the_bound_of_its_test_and_what_was_said_can_be_taken_back() {
    let mut detector = Detector::new(SETTINGS);
    play(&mut detector, 0, 200, 1);
    let fired = play(&mut detector, 200, 30, 4);
    let told =
        fired.iter().find(|c| matches!(c, TroubleChange::Fired(_))).map(|c| c.trouble().fired + 1.0).unwrap();
    let noise = detector.mark(told, Mark::Noise, told).unwrap();
    assert!(noise.after > 1.05 * noise.before, "{noise:?}");
    assert_eq!(detector.mark(told, Mark::Noise, told).unwrap().after, noise.after, "said twice, taught once");
    let mut detector = Detector::restored(SETTINGS, detector.saved(), 230.0);
    let useful = detector.mark(told, Mark::Useful, told).unwrap();
    assert!(useful.after <= noise.before, "{useful:?} {noise:?}");
    assert_eq!(detector.mark(told - 100.0, Mark::Noise, told), None);
    assert_eq!(detector.fired_in_a_day(300.0), 1);
}

#[test]
fn a_rank_that_hangs_is_told_once_and_as_one_that_hangs() {
    let mut detector = Detector::new(SETTINGS);
    play(&mut detector, 0, 200, 1);
    let mut changes = Vec::new();
    for s in 200..230_i64 {
        for rank in (0..4).filter(|r| *r != 2) {
            for part in [0.2, 0.5, 0.8] {
                let line = Decode {
                    running: 30.0,
                    tokens: Some(2e4),
                    throughput: Some(1200.0),
                    queue: Some(0.0),
                    ..Decode::default()
                };
                detector.observe(&RankReading { at: s as f64 + part, rank, what: Reading::Decode(line) });
            }
        }
        changes.extend(detector.step(s as f64 + 1.05));
    }
    let told: Vec<(Factor, Vec<usize>)> =
        changes.iter().map(|c| (c.trouble().factor, c.trouble().ranks.clone())).collect();
    assert_eq!(told, [(Factor::Stuck, vec![2])], "{changes:?}");
}

#[test]
fn a_rank_that_hangs_is_found_though_two_sources_tell_its_gauges_in_turns() {
    let mut detector = Detector::new(SETTINGS);
    let mut changes = Vec::new();
    for s in 0..80_i64 {
        for rank in 0..4usize {
            let hangs = rank == 1 && s >= 60;
            let running = if hangs { 30.0 } else { 30.0 + ((s as usize * 7 + rank * 3) % 5) as f64 };
            let stamp = if hangs { 59.9 } else { s as f64 + 0.4 };
            let dated = Gauges {
                running: Some(running),
                waiting: Some(0.0),
                stamp: Some(stamp),
                ..Gauges::default()
            };
            detector.observe(&RankReading { at: s as f64 + 0.5, rank, what: Reading::Gauges(dated) });
            // A metrics page tells more of the same, and not when it was true.
            let page = Gauges { stamp: None, kv_usage: Some(0.3), ..dated };
            detector.observe(&RankReading { at: s as f64 + 0.8, rank, what: Reading::Gauges(page) });
        }
        changes.extend(detector.step(s as f64 + 1.05));
    }
    let [TroubleChange::Fired(found)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((found.factor, &found.ranks[..]), (Factor::Stuck, &[1][..]));
    assert!(found.fired < 66.0, "{found:?}");
    let onset = found.onset.expect("a rank that hangs has one");
    assert!((onset.at - 60.0).abs() <= onset.error, "{onset:?}");
}

#[test]
fn an_idle_rank_is_not_missed_once_nothing_dates_its_numbers_any_more() {
    let mut detector = Detector::new(SETTINGS);
    let mut changes = Vec::new();
    for s in 0..220_i64 {
        for rank in 0..4usize {
            let is_busy = s >= 100 && rank != 2;
            let running = if is_busy { 20.0 + ((s as usize * 7 + rank * 3) % 5) as f64 } else { 0.0 };
            let gauges = Gauges {
                running: Some(running),
                waiting: Some(0.0),
                stamp: (s < 100).then_some(s as f64 + 0.4),
                ..Gauges::default()
            };
            detector.observe(&RankReading { at: s as f64 + 0.5, rank, what: Reading::Gauges(gauges) });
        }
        changes.extend(detector.step(s as f64 + 1.05));
    }
    let stuck = changes.iter().filter(|change| change.trouble().factor == Factor::Stuck);
    assert_eq!(stuck.count(), 0, "{changes:?}");
}

#[test]
fn a_source_beside_a_better_one_keeps_no_past_and_has_one_again_before_it_is_used() {
    let mut detector = Detector::new(SETTINGS);
    let past_of_gauges = |detector: &Detector| {
        detector.channels[GAUGES].as_ref().map(|channel| channel.bins.oldest()).expect("gauges were read")
    };
    for s in 0..60_u32 {
        assert_eq!(play(&mut detector, i64::from(s), 1, 1), vec![]);
        poll(&mut detector, f64::from(s) + 0.4, 1, 1.0, 0.0);
    }
    assert_eq!(past_of_gauges(&detector), 60, "the second after the last one that was read");
    let lost = 60.0 + SOURCE_PATIENCE;
    assert_eq!(poll(&mut detector, 60.4, 40, 1.0, 0.0), vec![]);
    let begins = past_of_gauges(&detector) as f64;
    assert!(begins >= 60.0 + RESERVE_PATIENCE && begins < lost - 5.0, "{begins}");
}

#[test]
fn on_an_unknown_server_a_rank_is_slow_sooner_by_several_reports_than_by_one_that_may_be_late() {
    let speed = TESTS.iter().position(|f| *f == Factor::Speed).expect("a test of the speed");
    let seen = |window, effect: f64| Evidence { deviance: 20.0, side: Side::Low, effect, window };
    let (young, polled) = (Channel::new(4, 0, QUALITY[LINES]), Channel::new(4, 0, QUALITY[COUNTERS]));
    let of = |channel: &Channel, window, effect| channel.bound_for(speed, 0.2, &seen(window, effect));
    let (late, little, lasts) = (of(&young, 3, -1.0), of(&young, 8, -0.2), of(&young, 6, -0.5));
    assert!(lasts < late && little == late, "{lasts} {little} {late}");
    assert_eq!(
        of(&polled, 3, -1.0),
        of(&polled, 6, -0.5),
        "a poll tells of all that was done since the one before"
    );
}

#[test]
fn in_a_burst_a_rank_whose_line_is_still_to_come_is_not_blamed() {
    let (mut detector, mut rng) = (Detector::new(SETTINGS), TestRng(9));
    let mut changes = Vec::new();
    let mut came = [0.0; 4];
    for ms in 0..606_000_u32 {
        let at = f64::from(ms) / 1000.0;
        // Eight requests a second and rank, and in the end a thousand for half a second.
        let chance = if (600_600..601_100).contains(&ms) { 0.95 } else { 0.008 };
        for (rank, came) in came.iter_mut().enumerate() {
            *came += f64::from(u8::from(rng.uniform() < chance));
            // Batches of prompts take a third of a second, and each is told when it begins.
            let begins = (ms + 87 * rank as u32).is_multiple_of(350);
            if begins && *came > 0.0 {
                let line = Prefill { new_seqs: *came, new_tokens: 500.0 * *came, ..Prefill::default() };
                let line =
                    Prefill { cached_tokens: Some(0.0), running: Some(30.0), queue: Some(0.0), ..line };
                detector.observe(&RankReading { at, rank, what: Reading::Prefill(line) });
                *came = 0.0;
            }
        }
        if ms % 1000 == 50 {
            changes.extend(detector.step(at));
        }
    }
    assert_eq!(changes, vec![]);
}

/// Plays `from..until` of two ranks with little to do, by their `Prefill batch` lines: `rate` requests a second come to
/// each, and a request stays `stay(rank, second)` seconds on the mean.
struct Light {
    detector: Detector,
    rng: TestRng,
    held: [Vec<f64>; 2],
    next: [f64; 2],
}

impl Light {
    fn new(seed: u64) -> Self {
        let detector = Detector::new(Settings { ranks: 2, false_alarms_per_day: 1.0 });
        Self { detector, rng: TestRng(seed), held: [const { Vec::new() }; 2], next: [0.0; 2] }
    }

    fn waited(&mut self, mean: f64) -> f64 {
        -mean * self.rng.uniform().max(1e-9).ln()
    }

    fn play(
        &mut self,
        from: i64,
        until: i64,
        rate: f64,
        stay: impl Fn(usize) -> f64,
        tokens: impl Fn(usize) -> f64,
    ) -> Vec<TroubleChange> {
        let mut changes = Vec::new();
        for s in from..until {
            for rank in 0..2 {
                while self.next[rank] < (s + 1) as f64 {
                    let at = self.next[rank].max(s as f64);
                    self.held[rank].retain(|end| *end > at);
                    let running = Some(self.held[rank].len() as f64);
                    let new_tokens = tokens(rank) * (0.5 + self.rng.uniform());
                    let line = Prefill { new_seqs: 1.0, new_tokens, ..Prefill::default() };
                    let line = Prefill { cached_tokens: Some(300.0), running, queue: Some(0.0), ..line };
                    self.detector.observe(&RankReading { at, rank, what: Reading::Prefill(line) });
                    let stays = self.waited(stay(rank));
                    self.held[rank].push(at + stays);
                    self.next[rank] = at + self.waited(1.0 / rate);
                }
            }
            changes.extend(self.detector.step(s as f64 + 1.05));
        }
        changes
    }
}

#[test]
fn a_rank_that_is_idle_most_of_the_time_and_becomes_slow_is_told_by_how_long_requests_stay() {
    for seed in 1..6 {
        let mut server = Light::new(seed);
        assert_eq!(server.play(0, 120, 5.0, |_| 0.2, |_| 100.0), vec![]);
        let slow = |rank| if rank == 1 { 2.0 } else { 0.2 };
        let changes = server.play(120, 145, 5.0, slow, |_| 100.0);
        let [TroubleChange::Fired(found)] = &changes[..] else { panic!("seed {seed}: {changes:?}") };
        assert_eq!((found.factor, found.side, &found.ranks[..]), (Factor::Speed, Side::Low, &[1][..]));
        assert!(found.effect.is_none(), "how much slower it is, is not known: {found:?}");
        assert!(found.fired < 140.0, "{found:?}");
        let onset = found.onset.expect("it is known since when");
        assert!((onset.at - 120.0).abs() <= onset.error && onset.error < 15.0, "seed {seed}: {onset:?}");
        let after = server.play(145, 165, 5.0, |_| 0.2, |_| 100.0);
        assert!(matches!(&after[..], [TroubleChange::Cleared(_)]), "seed {seed}: {after:?}");
    }
}

#[test]
fn two_hours_of_a_server_with_little_to_do_are_quiet() {
    for rate in [0.5, 5.0] {
        let mut server = Light::new(7);
        assert_eq!(server.play(0, 7_200, rate, |_| 0.8 / rate, |_| 100.0), vec![], "{rate} a second");
    }
}

#[test]
fn requests_that_stay_longer_because_they_are_heavier_are_told_as_heavier() {
    let mut server = Light::new(3);
    server.play(0, 120, 5.0, |_| 0.2, |_| 100.0);
    let heavy = |rank| if rank == 1 { 2.0 } else { 0.2 };
    let changes = server.play(120, 145, 5.0, heavy, |rank| if rank == 1 { 1_000.0 } else { 100.0 });
    let told: Vec<_> = changes.iter().map(|c| (c.trouble().factor, c.trouble().ranks.clone())).collect();
    assert_eq!(told, [(Factor::Work, vec![1])], "{changes:?}");
}

#[test]
fn of_two_ranks_the_one_that_gets_nothing_is_blamed_once_that_is_no_chance_and_else_the_one_that_gets_more() {
    let told = |low: usize| {
        let mut detector = Detector::new(Settings { ranks: 2, false_alarms_per_day: 1.0 });
        let mut changes = Vec::new();
        for s in 0..230_i64 {
            for rank in 0..2 {
                let n = match (s >= 200, rank) {
                    (true, 1) => low * usize::from(s % 2 == 0),
                    (true, _) => 8 - low / 2,
                    (false, _) => 4,
                };
                for i in 0..n {
                    let at = s as f64 + (i as f64 + 0.5) / n as f64;
                    let new_tokens = 300.0 + ((s * 7 + i as i64 * 3) % 11) as f64;
                    let line = Prefill { new_seqs: 1.0, new_tokens, ..Prefill::default() };
                    let line = Prefill { running: Some(30.0), queue: Some(0.0), ..line };
                    detector.observe(&RankReading { at, rank, what: Reading::Prefill(line) });
                }
            }
            changes.extend(detector.step(s as f64 + 1.05));
        }
        let last = changes.last().map(TroubleChange::trouble).expect("it is told");
        assert_eq!((last.id, last.factor), (1, Factor::Share), "{changes:?}");
        (last.side, last.ranks.clone())
    };
    assert_eq!(told(0), (Side::Low, vec![1]));
    assert_eq!(told(2), (Side::High, vec![0]), "an eighth of the requests is not nothing");
}

#[test]
fn more_computed_tokens_after_a_slow_rank_are_told_unless_a_router_took_its_requests_away() {
    let is_told = |while_slow: usize| {
        let mut detector = Detector::new(SETTINGS);
        play_paced(&mut detector, 0, 200, |_| 8, |_| [1.0; 4]);
        let came = |rank| if rank == 0 { while_slow } else { 8 };
        let slow = play_paced(&mut detector, 200, 20, came, |_| [4.0, 1.0, 1.0, 1.0]);
        assert!(matches!(&slow[..], [TroubleChange::Fired(i)] if i.factor == Factor::Speed), "{slow:?}");
        let after = play_paced(&mut detector, 220, 50, |_| 8, |_| [1.0; 4]);
        assert!(matches!(&after[..], [TroubleChange::Cleared(_)]), "{after:?}");
        let changes = play_cached(&mut detector, 270, 20, 1, [0.8, 0.2, 0.8, 0.8]);
        changes.iter().any(|c| matches!(c, TroubleChange::Fired(i) if i.ranks == [1]))
    };
    assert!(is_told(8));
    assert!(!is_told(6), "those that went elsewhere come back to a cache that has forgotten them");
}

#[test]
fn a_slow_rank_that_is_told_as_sent_more_shows_the_deviance_and_the_bound_of_its_share() {
    let (detector, channel) = (Detector::new(SETTINGS), Channel::new(4, 0, QUALITY[LINES]));
    let seen = |deviance, effect| Evidence { deviance, side: Side::High, effect, window: 4 };
    let slow = Evidence { side: Side::Low, ..seen(300.0, -0.7) };
    let candidate = Candidate {
        factor: Factor::Speed,
        test: Some(1),
        rank: 2,
        evidence: slow,
        bound: 20.0,
        strength: 15.0,
        still: None,
        is_of_stay: false,
        made_by: Some((seen(12.0, 0.4), 9.0)),
    };
    let moment = StepContext { newest: 10, now: 11.05, way: LINES, pending: &[Pending::default(); 4] };
    let told = detector.describe(&channel, &candidate, moment);
    assert_eq!((told.factor, told.deviance, told.bound), (Factor::Share, 12.0, 9.0));
}

#[test]
fn a_rank_that_becomes_slow_while_a_redirect_goes_on_began_when_it_did() {
    let mut detector = Detector::new(SETTINGS);
    let even = |_| 8;
    play_paced(&mut detector, 0, 200, even, |_| [1.0; 4]);
    let more = |rank| if rank == 2 { 56 } else { 8 };
    let redirect = play_paced(&mut detector, 200, 40, more, |_| [1.15, 1.0, 1.0, 1.0]);
    assert!(matches!(&redirect[..], [TroubleChange::Fired(i)] if i.ranks == [2]), "{redirect:?}");
    let changes = play_paced(&mut detector, 240, 16, more, |_| [3.0, 1.0, 1.0, 1.0]);
    let [TroubleChange::Fired(slow)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((slow.factor, &slow.ranks[..]), (Factor::Speed, &[0][..]));
    let onset = slow.onset.expect("a slow rank has one");
    assert!((onset.at - 240.0).abs() <= onset.error && onset.error < 2.5, "{onset:?}");
}

/// Polls four ranks once a second for `seconds` from `from` on. `throughput` says what a rank reports then, and whether
/// it has moved since the last poll.
fn poll_reports(
    detector: &mut Detector,
    (from, seconds): (i64, i64),
    throughput: impl Fn(i64, usize) -> Option<f64>,
) -> Vec<TroubleChange> {
    let mut changes = Vec::new();
    for s in from..from + seconds {
        for rank in 0..4usize {
            let (moved, throughput) =
                (from..=s).rev().find_map(|at| Some((at, throughput(at, rank)?))).expect("it moves first");
            let gauges = Gauges {
                running: Some(30.0),
                waiting: Some(0.0),
                throughput: Some(throughput),
                stamp: Some(moved as f64 + 0.38),
                ..Gauges::default()
            };
            detector.observe(&RankReading { at: s as f64 + 0.4, rank, what: Reading::Gauges(gauges) });
        }
        changes.extend(detector.step(s as f64 + 1.05));
    }
    changes
}

/// What a rank reports that needs so many times as long for the same.
fn report_of(s: i64, rank: usize, times: f64) -> f64 {
    (1_200.0 + 10.0 * ((s as usize * 5 + rank * 3) % 7) as f64) / times
}

#[test]
fn after_all_ranks_stood_still_the_one_whose_report_covers_that_is_not_slow() {
    let mut detector = Detector::new(SETTINGS);
    // All stand still for eight seconds. The first report of DP2 is of the time since the one before, and the others
    // have made another one since then, which is what the poll finds.
    let stops = 300..308;
    let changes = poll_reports(&mut detector, (0, 340), |s, rank| match (stops.contains(&s), s, rank) {
        (true, ..) => None,
        (_, 308, 2) => Some(61.0),
        _ => Some(report_of(s, rank, 1.0)),
    });
    assert_eq!(changes, vec![]);
}

#[test]
fn a_rank_that_goes_on_slowly_after_all_stood_still_is_told_as_before() {
    let mut detector = Detector::new(SETTINGS);
    let stops = 300..308;
    let changes = poll_reports(&mut detector, (0, 340), |s, rank| match (stops.contains(&s), rank) {
        (true, _) => None,
        (_, 2) if s >= 308 => Some(report_of(s, rank, 3.0)),
        _ => Some(report_of(s, rank, 1.0)),
    });
    let [TroubleChange::Fired(slow)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((slow.factor, slow.side, &slow.ranks[..]), (Factor::Speed, Side::Low, &[2][..]));
    assert!(slow.fired < 318.0, "{slow:?}");
}

/// A rank is 1.7 times slower from 200 s on, and from 207 s on so many of 32 requests a second come to each rank.
fn sent_beside_a_slow_rank(came: [usize; 4]) -> Vec<(Factor, Vec<usize>)> {
    let mut detector = Detector::new(SETTINGS);
    let slow = |_| [1.0, 1.0, 1.7, 1.0];
    play_paced(&mut detector, 0, 200, |_| 8, |_| [1.0; 4]);
    let mut changes = play_paced(&mut detector, 200, 7, |_| 8, slow);
    assert!(matches!(&changes[..], [TroubleChange::Fired(i)] if i.ranks == [2]), "{changes:?}");
    changes.extend(play_paced(&mut detector, 207, 20, |rank| came[rank], slow));
    let fired = changes.iter().filter(|c| matches!(c, TroubleChange::Fired(_))).map(TroubleChange::trouble);
    fired.map(|i| (i.factor, i.ranks.clone())).collect()
}

#[test]
fn a_router_that_is_stuck_on_a_rank_is_told_though_another_one_has_just_become_slow() {
    let slow = (Factor::Speed, vec![2]);
    let stuck_on_one = sent_beside_a_slow_rank([22, 3, 4, 3]);
    assert_eq!(stuck_on_one, [slow.clone(), (Factor::Share, vec![0])]);
    // A router that takes the slow rank's requests away gives them to the others, evenly or nearly so.
    for came in [[10, 10, 2, 10], [13, 9, 1, 9]] {
        assert_eq!(sent_beside_a_slow_rank(came), std::slice::from_ref(&slow), "{came:?}");
    }
}

#[test]
fn a_few_requests_that_hold_many_tokens_are_no_trouble_while_their_rank_holds_no_more_than_the_others() {
    // DP2 runs so many requests that hold a thousand tokens each, until each holds three thousand.
    let told = |running: f64| {
        let mut detector = Detector::new(SETTINGS);
        let mut changes = Vec::new();
        for s in 0..340_i64 {
            for rank in 0..4usize {
                let swing = ((s as usize * 5 + rank * 3) % 7) as f64;
                let running = if rank == 2 { running } else { 30.0 };
                let held = running * if rank == 2 && s >= 300 { 3_000.0 } else { 1_000.0 };
                let gauges = Gauges {
                    running: Some(running),
                    waiting: Some(0.0),
                    used_tokens: Some(held + 500.0 * swing),
                    throughput: Some(running * (40.0 + swing)),
                    stamp: Some(s as f64 + 0.38),
                    ..Gauges::default()
                };
                detector.observe(&RankReading { at: s as f64 + 0.4, rank, what: Reading::Gauges(gauges) });
            }
            changes.extend(detector.step(s as f64 + 1.05));
        }
        let is_it = |c: &TroubleChange| matches!(c, TroubleChange::Fired(i) if i.factor == Factor::Work && i.ranks == [2]);
        changes.iter().any(is_it)
    };
    assert!(told(30.0));
    assert!(!told(10.0), "one long prompt among few requests");
}

/// Polls `seconds` from `from` on a server of four ranks whose pages and whose reports of work count, each since a
/// beginning of its own. Rank 1 stands still from `hangs_from` on, and its scheduler publishes nothing more.
fn poll_pages_and_reports(
    detector: &mut Detector,
    seconds: std::ops::Range<i64>,
    hangs_from: i64,
) -> Vec<TroubleChange> {
    let mut changes = Vec::new();
    for s in seconds {
        for rank in 0..4usize {
            let moved = if rank == 1 { s.min(hangs_from) } else { s };
            let wiggle = ((moved as usize * 7 + rank * 3) % 5) as f64;
            let done = moved as f64;
            let gauges = Gauges { running: Some(30.0 + wiggle), waiting: Some(0.0), ..Gauges::default() };
            let dated = Gauges { stamp: Some(done + 0.4), ..gauges };
            let reported = Counters {
                computed_tokens: Some(1e6 + 4_000.0 * done),
                decode_tokens: Some(5e6 + 1_200.0 * done),
                steps: Some(7e5 + 40.0 * done),
                ..Counters::default()
            };
            detector.observe(&RankReading { at: s as f64 + 0.5, rank, what: Reading::Gauges(dated) });
            detector.observe(&RankReading { at: s as f64 + 0.5, rank, what: Reading::Counters(reported) });
            let page = Counters {
                admissions: Some(8.0 * done),
                computed_tokens: Some(4_000.0 * (done - 1.0)),
                decode_tokens: Some(1_200.0 * (done - 1.0)),
                prefill_steps: Some(3e5 + 8.0 * done),
                ..reported
            };
            detector.observe(&RankReading { at: s as f64 + 0.8, rank, what: Reading::Gauges(gauges) });
            detector.observe(&RankReading { at: s as f64 + 0.8, rank, what: Reading::Counters(page) });
        }
        changes.extend(detector.step(s as f64 + 1.05));
    }
    changes
}

#[test]
fn a_rank_that_hangs_is_found_though_two_sources_count_what_it_does_in_turns() {
    let mut detector = Detector::new(SETTINGS);
    assert_eq!(poll_pages_and_reports(&mut detector, 0..100, i64::MAX), []);
    let cost = detector.channels[COUNTERS].as_ref().and_then(|c| c.known.clock.cost);
    let second = [40.0, 1_200.0, 0.0, 8.0, 4_000.0];
    let needed: f64 = cost.expect("a hundred seconds teach it").iter().zip(second).map(|(c, n)| c * n).sum();
    assert!((0.8..1.25).contains(&needed), "a second's work takes a second: {needed}");
    let changes = poll_pages_and_reports(&mut detector, 100..120, 100);
    let [TroubleChange::Fired(found)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((found.factor, &found.ranks[..]), (Factor::Stuck, &[1][..]));
    assert!(found.fired < 107.0, "{found:?}");
}

#[test]
fn what_hurts_is_measured_by_the_source_that_is_followed() {
    let mut detector = Detector::new(SETTINGS);
    for (rank, running) in [20.0, 300.0, 20.0, 20.0].into_iter().enumerate() {
        let gauges = Gauges { running: Some(running), waiting: Some(0.0), ..Gauges::default() };
        let dated = Gauges { stamp: Some(0.9), ..gauges };
        detector.observe(&RankReading { at: 1.0, rank, what: Reading::Gauges(dated) });
        // A page of a server that renews it seldom.
        let page = Gauges { running: Some(20.0), ..gauges };
        detector.observe(&RankReading { at: 1.5, rank, what: Reading::Gauges(page) });
    }
    let loads: Vec<f64> = detector.loads.iter().map(|load| load.running).collect();
    assert_eq!(loads, [20.0, 300.0, 20.0, 20.0]);
}

#[test]
fn what_has_gone_on_for_a_quarter_of_an_hour_is_usual_and_not_told_again() {
    let (mut detector, mut rng) = (Detector::new(SETTINGS), TestRng(5));
    let mut play = |from: i64, seconds: i64, more: usize| {
        let came = |rank| (4 + (9.0 * rng.uniform()) as usize) * if rank == 2 { more } else { 1 };
        play_paced(&mut detector, from, seconds, came, |_| [1.0; 4])
    };
    play(0, 200, 1);
    let changes = play(200, 1500, 3);
    let [TroubleChange::Fired(fired), .., TroubleChange::Standing(stands)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!((fired.id, stands.id), (1, 1));
    assert_eq!(changes.iter().filter(|c| matches!(c, TroubleChange::Fired(_))).count(), 1, "{changes:?}");
    // The way back is the end of it, and no trouble either; the next one is.
    let back = play(1700, 300, 1);
    assert!(back.iter().all(|c| !matches!(c, TroubleChange::Fired(_))), "{back:?}");
    let again = play(2000, 30, 3);
    assert!(again.iter().any(|c| matches!(c, TroubleChange::Fired(i) if i.ranks == [2])), "{again:?}");
}

#[test]
fn a_trouble_that_grows_departs_further_and_one_that_merely_lasts_does_not() {
    let mut detector = Detector::new(SETTINGS);
    play(&mut detector, 0, 200, 1);
    let mut deviance = |from: i64, seconds: i64, more: usize| {
        play(&mut detector, from, seconds, more);
        detector.open().expect("it goes on").deviance
    };
    let (soon, later) = (deviance(200, 20, 3), deviance(220, 80, 3));
    assert!((0.7..1.5).contains(&(later / soon)), "{soon} {later}");
    let grown = deviance(300, 80, 12);
    assert!(grown > 1.5f64.powi(2) * later, "{later} {grown}");
}

/// vLLM's counters of four ranks since their start.
#[derive(Default)]
struct Vllm {
    prompts: [f64; 4],
    found: [f64; 4],
}

impl Vllm {
    /// Polls `seconds`, in each of which eight requests of a thousand tokens come to each rank, so much of
    /// which is in its cache. Who computes more holds more.
    fn play(
        &mut self,
        detector: &mut Detector,
        seconds: std::ops::Range<i64>,
        cached: [f64; 4],
    ) -> Vec<TroubleChange> {
        let mut changes = Vec::new();
        for s in seconds {
            for (rank, cached) in cached.into_iter().enumerate() {
                let tokens = 8_000.0 + 300.0 * ((s as usize * 7 + rank * 3) % 5) as f64;
                self.prompts[rank] += tokens;
                self.found[rank] += cached * tokens;
                let running = 30.0 + 6.0 * (0.8 - cached).max(0.0);
                let gauges = Gauges { running: Some(running), waiting: Some(0.0), ..Gauges::default() };
                let counters = Counters {
                    admissions: Some(8.0 * s as f64),
                    prompt_tokens: Some(self.prompts[rank]),
                    cached_tokens: Some(self.found[rank]),
                    decode_tokens: Some(1_200.0 * s as f64),
                    steps: Some(40.0 * s as f64),
                    ..Counters::default()
                };
                let at = s as f64 + 0.5;
                detector.observe(&RankReading { at, rank, what: Reading::Gauges(gauges) });
                detector.observe(&RankReading { at, rank, what: Reading::Counters(counters) });
            }
            changes.extend(detector.step(s as f64 + 1.05));
        }
        changes
    }
}

#[test]
fn where_all_prompt_tokens_are_counted_an_engine_whose_cache_is_lost_is_told_and_one_that_has_one_is_not() {
    let after = |before: f64, then: f64| {
        let (mut detector, mut vllm) = (Detector::new(SETTINGS), Vllm::default());
        assert_eq!(vllm.play(&mut detector, 0..300, [before; 4]), vec![]);
        let changes = vllm.play(&mut detector, 300..330, [before, then, before, before]);
        changes.iter().map(|c| (c.trouble().factor, c.trouble().ranks.clone())).collect::<Vec<_>>()
    };
    assert_eq!(after(0.8, 0.0), [(Factor::Work, vec![1])]);
    assert_eq!(after(0.0, 0.8), []);
}

#[test]
fn an_outage_or_a_restart_of_all_ranks_is_no_pause_that_a_rank_with_work_makes() {
    let mut detector = Detector::new(SETTINGS);
    for s in 0..200_i64 {
        for rank in (0..4usize).filter(|_| !(100..110).contains(&s)) {
            let running = 30.0 + ((s as usize * 7 + rank * 3) % 5) as f64;
            let gauges = Gauges { running: Some(running), waiting: Some(0.0), ..Gauges::default() };
            detector.observe(&RankReading { at: s as f64 + 0.5, rank, what: Reading::Gauges(gauges) });
        }
        detector.step(s as f64 + 1.05);
    }
    assert_eq!(detector.stuck.patience(), 3.5, "polls failed");
    let mut detector = Detector::new(SETTINGS);
    play(&mut detector, 0, 100, 1);
    (100..109).for_each(|s| assert_eq!(detector.step(f64::from(s) + 1.05), vec![]));
    play(&mut detector, 109, 20, 1);
    assert_eq!(detector.stuck.patience(), 3.5, "a window by hand");
}

/// What was told while so many requests come to each rank for `seconds`.
fn told_of(
    detector: &mut Detector,
    from: i64,
    seconds: i64,
    came: [usize; 4],
    rng: &mut TestRng,
) -> Vec<TroubleChange> {
    // Of each twenty about so many come in a second.
    let one = |rank: usize| (0..2 * came[rank]).filter(|_| rng.uniform() < 0.5).count();
    play_paced(detector, from, seconds, one, |_| [1.0; 4])
}

#[test]
fn a_rank_that_has_had_more_than_the_others_for_long_and_loses_it_is_told() {
    let (mut detector, mut rng) = (Detector::new(SETTINGS), TestRng(5));
    let uneven = told_of(&mut detector, 0, 2_400, [16, 8, 8, 8], &mut rng);
    assert_eq!(uneven, vec![]);
    let changes = told_of(&mut detector, 2_400, 30, [8, 8, 8, 8], &mut rng);
    let told: Vec<_> = changes.iter().map(|c| (c.trouble().factor, c.trouble().ranks.clone())).collect();
    assert_eq!(told, [(Factor::Share, vec![0])], "{changes:?}");
}

#[test]
fn a_mild_redirect_that_has_become_usual_ends_without_a_new_trouble() {
    let (mut detector, mut rng) = (Detector::new(SETTINGS), TestRng(5));
    assert_eq!(told_of(&mut detector, 0, 600, [10; 4], &mut rng), vec![]);
    let changes = told_of(&mut detector, 600, 1_300, [10, 10, 14, 10], &mut rng);
    let [TroubleChange::Fired(_), .., TroubleChange::Standing(_)] = &changes[..] else {
        panic!("{changes:?}")
    };
    let back = told_of(&mut detector, 1_900, 400, [10; 4], &mut rng);
    assert!(back.iter().all(|c| !matches!(c, TroubleChange::Fired(_))), "{back:?}");
    let again = told_of(&mut detector, 2_300, 60, [10, 10, 20, 10], &mut rng);
    assert!(again.iter().any(|c| matches!(c, TroubleChange::Fired(i) if i.ranks == [2])), "{again:?}");
}

/// Plays lines of four ranks that decode all the while with thirty requests, each second's four lines of a
/// rank. Those for which `hangs` are silent. DP1 gets twelve requests every ten seconds instead, whose
/// answers are short: forty steps, after which a line comes, are those of two waves and a half.
fn play_waves(
    detector: &mut Detector,
    seconds: std::ops::Range<i64>,
    hangs: impl Fn(usize) -> bool,
) -> Vec<TroubleChange> {
    let mut changes = Vec::new();
    let decode = |running| {
        let line = Decode { running, tokens: Some(2e4), queue: Some(0.0), ..Decode::default() };
        Reading::Decode(Decode { throughput: Some(1200.0), ..line })
    };
    for s in seconds {
        for rank in (0..4).filter(|rank| *rank != 1 && !hangs(*rank)) {
            for part in [0.1, 0.35, 0.6, 0.85] {
                detector.observe(&RankReading { at: s as f64 + part, rank, what: decode(30.0) });
            }
        }
        if s % 10 == 3 {
            let line = Prefill { new_seqs: 12.0, new_tokens: 3_000.0, ..Prefill::default() };
            let line = Prefill { running: Some(0.0), queue: Some(0.0), ..line };
            detector.observe(&RankReading { at: s as f64 + 0.2, rank: 1, what: Reading::Prefill(line) });
            if matches!(s / 10 % 5, 2 | 4) {
                detector.observe(&RankReading { at: s as f64 + 0.5, rank: 1, what: decode(12.0) });
            }
        }
        changes.extend(detector.step(s as f64 + 1.05));
    }
    changes
}

#[test]
fn by_log_a_rank_that_has_finished_short_answers_does_not_hang_and_one_with_long_ones_does() {
    let mut detector = Detector::new(SETTINGS);
    let is_stuck = |c: &TroubleChange| c.trouble().factor == Factor::Stuck;
    let changes = play_waves(&mut detector, 0..300, |_| false);
    assert!(!changes.iter().any(is_stuck), "{changes:?}");
    assert_eq!(detector.stuck.patience(), 3.5);
    let changes = play_waves(&mut detector, 300..320, |rank| rank == 2);
    let found = changes.iter().find(|c| is_stuck(c)).expect("it hangs").trouble();
    assert!(found.ranks == [2] && found.fired < 306.0, "{found:?}");
}

#[test]
fn chance_that_moves_one_rank_and_then_another_is_no_trouble() {
    let c = |rank| Candidate {
        factor: Factor::Share,
        test: Some(SHARE),
        rank,
        evidence: Evidence { deviance: 12.0, side: Side::High, effect: 0.4, window: 4 },
        bound: 10.0,
        strength: 1.2,
        still: None,
        is_of_stay: false,
        made_by: None,
    };
    let mut detector = Detector::new(SETTINGS);
    let moment = StepContext { newest: 100, now: 101.05, way: LINES, pending: &[] };
    let is_confirmed = |ranks: &[usize]| {
        detector.is_confirmed(&c(ranks[0]), ranks.iter().map(|r| c(*r).seen()).collect(), moment)
    };
    let told = [&[1][..], &[2], &[1], &[2, 1], &[1, 2]].map(is_confirmed);
    assert_eq!(told, [false, false, false, false, true], "the same rank twice in a row, whichever was ahead");
}

#[test]
fn a_rank_that_becomes_much_slower_while_a_mild_redirect_goes_on_elsewhere_is_told() {
    let (mut detector, mut rng) = (Detector::new(SETTINGS), TestRng(7));
    let mut play = |detector: &mut Detector, from: i64, seconds: i64, more: usize, slow: f64| {
        let came = |rank| (0..2 * if rank == 1 { more } else { 10 }).filter(|_| rng.uniform() < 0.5).count();
        play_paced(detector, from, seconds, came, |_| [1.0, 1.0, 1.0, slow])
    };
    assert_eq!(play(&mut detector, 0, 400, 10, 1.0), vec![]);
    let mut s = 400;
    while detector.open().is_none() {
        play(&mut detector, s, 1, 15, 1.0);
        s += 1;
        assert!(s < 460, "the redirect is found");
    }
    // DP3 becomes slow when the blame still may move, and is seen when it may not any more.
    play(&mut detector, s, 11, 15, 1.0);
    let changes = play(&mut detector, s + 11, 20, 15, 3.0);
    let found = changes.iter().find(|c| matches!(c, TroubleChange::Fired(_) | TroubleChange::Joined(_)));
    let found = found.expect("it is told").trouble();
    assert!(found.factor == Factor::Speed && found.ranks == [3], "{changes:?}");
}

mod ends;
/// Plays `seconds` of two ranks to which so many requests come a second.
fn play_two(detector: &mut Detector, seconds: std::ops::Range<i64>, came: [usize; 2]) -> Vec<TroubleChange> {
    let mut changes = Vec::new();
    for s in seconds {
        for (rank, n) in came.into_iter().enumerate() {
            for i in 0..n {
                let tokens = 80.0 + 5.0 * ((s as usize * 7 + i * 3 + rank) % 11) as f64;
                let line =
                    Prefill { new_seqs: 1.0, new_tokens: tokens, queue: Some(0.0), ..Prefill::default() };
                let what = Reading::Prefill(Prefill { running: Some(20.0), ..line });
                detector.observe(&RankReading { at: s as f64 + (i as f64 + 0.5) / n as f64, rank, what });
            }
        }
        changes.extend(detector.step(s as f64 + 1.05));
    }
    changes
}

#[test]
fn a_skew_that_is_over_before_a_young_server_could_be_judged_teaches_nobody_that_it_is_usual() {
    let (even, skewed) = ([6, 6], [1, 11]);
    for begins in [0, 4] {
        let mut detector = Detector::new(Settings { ranks: 2, false_alarms_per_day: 0.2 });
        play_two(&mut detector, begins..15, even);
        play_two(&mut detector, begins.max(15)..27, skewed);
        assert_eq!(play_two(&mut detector, 27..80, even), vec![], "{begins}");
        let again = play_two(&mut detector, 80..98, skewed);
        let is_told = again.iter().any(|c| matches!(c, TroubleChange::Fired(i) if i.factor == Factor::Share));
        assert!(is_told, "{begins}: {again:?}");
    }
}

/// Pages of four ranks as an engine shows them that dates nothing: how many run, and what was counted.
fn page_of(at: f64, rank: usize, running: f64, admitted: f64) -> [RankReading; 2] {
    let gauges = Gauges { running: Some(running), waiting: Some(0.0), ..Gauges::default() };
    let counters = Counters {
        admissions: Some(admitted),
        decode_tokens: Some(200.0 * admitted),
        prompt_tokens: Some(300.0 * admitted),
        ..Counters::default()
    };
    [Reading::Gauges(gauges), Reading::Counters(counters)].map(|what| RankReading { at, rank, what })
}

#[test]
fn a_trouble_is_over_when_its_server_has_nothing_to_do_any_more() {
    let mut detector = Detector::new(SETTINGS);
    let (mut admitted, mut changes) = ([100.0; 4], Vec::new());
    for s in 0..260_i64 {
        for (rank, admitted) in admitted.iter_mut().enumerate() {
            let is_sent_more = rank == 2 && (200..215).contains(&s);
            *admitted += if s >= 215 {
                0.0
            } else if is_sent_more {
                32.0
            } else {
                8.0
            };
            let running = if s >= 215 {
                0.0
            } else if is_sent_more {
                90.0
            } else {
                20.0 + (s % 3) as f64
            };
            page_of(s as f64 + 0.4, rank, running, *admitted).iter().for_each(|o| detector.observe(o));
        }
        changes.extend(detector.step(s as f64 + 1.05).into_iter().map(|c| (s, c)));
    }
    assert!(matches!(&changes[0], (200..215, TroubleChange::Fired(i)) if i.ranks == [2]), "{changes:?}");
    assert!(matches!(&changes[1], (215..245, TroubleChange::Cleared(_))), "{changes:?}");
}
