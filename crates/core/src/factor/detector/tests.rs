use super::*;
use crate::factor::observation::{Decode, Prefill};

const SETTINGS: Settings = Settings { ranks: 4, false_alarms_per_day: 1.0 };

/// Plays `seconds` from `from` on: eight requests a second and rank, but `more` times as many on DP2.
fn play(detector: &mut Detector, from: i64, seconds: i64, more: usize) -> Vec<Change> {
    let mut changes = Vec::new();
    for s in from..from + seconds {
        for rank in 0..4 {
            let n = 8 * if rank == 2 { more } else { 1 };
            for i in 0..n {
                let at = s as f64 + (i as f64 + 0.5) / n as f64;
                let tokens = 300.0 + 50.0 * ((s as usize * 7 + i * 3 + rank) % 11) as f64;
                let line = Prefill {
                    new_seqs: 1.0,
                    new_tokens: tokens,
                    cached_tokens: Some(0.0),
                    running: Some(30.0),
                    queue: Some(0.0),
                };
                detector.observe(&Observation { at, rank, what: Reading::Prefill(line) });
            }
            let line =
                Decode { running: 30.0, tokens: Some(2e4), throughput: Some(1200.0), queue: Some(0.0) };
            detector.observe(&Observation { at: s as f64 + 0.99, rank, what: Reading::Decode(line) });
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
    let fired: Vec<&Incident> =
        changes.iter().filter(|c| matches!(c, Change::Fired(_))).map(Change::incident).collect();
    assert_eq!(fired.len(), 1);
    assert_eq!(
        (fired[0].factor, fired[0].side, fired[0].ranks.clone()),
        (Factor::Share, Side::High, vec![2])
    );
    let onset = fired[0].onset.unwrap();
    assert!((onset.at - 200.0).abs() <= onset.error && fired[0].fired < 205.0, "{:?}", fired[0]);
    let after = play(&mut detector, 230, 40, 1);
    assert!(after.iter().any(|c| matches!(c, Change::Cleared(i) if i.id == 1)), "{after:?}");
}

#[test]
fn what_was_learned_survives_a_restart() {
    let mut before = Detector::new(SETTINGS);
    play(&mut before, 0, 400, 1);
    let mut after = Detector::restored(SETTINGS, before.saved(), 400.0);
    assert_eq!(after.bounds(), before.bounds());
    assert_eq!(play(&mut after, 400, 20, 1), vec![]);
    assert!(play(&mut after, 420, 10, 4).iter().any(|c| matches!(c, Change::Fired(_))));
}

#[test]
fn readings_of_ranks_that_do_not_exist_are_ignored() {
    let mut detector = Detector::new(SETTINGS);
    detector.observe(&Observation { at: 1.0, rank: 9, what: Reading::Gauges(Gauges::default()) });
    assert_eq!(detector.step(2.0), vec![]);
}
