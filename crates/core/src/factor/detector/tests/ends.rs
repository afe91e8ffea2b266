//! How troubles end: by a gap, by becoming usual, and after many returns.

use super::*;

#[test]
fn a_trouble_does_not_go_on_over_a_gap_of_a_quarter_of_an_hour() {
    let mut detector = Detector::new(SETTINGS);
    play(&mut detector, 0, 200, 1);
    let fired = play(&mut detector, 200, 15, 4);
    assert!(matches!(&fired[..], [TroubleChange::Fired(_)]), "{fired:?}");
    // Time passes, or nobody looks.
    for walked in [true, false] {
        let mut detector = detector.clone();
        let mut changes = Vec::new();
        (216..1100).filter(|_| walked).for_each(|s| changes.extend(detector.step(f64::from(s) + 0.05)));
        changes.extend(detector.step(1100.05));
        assert!(matches!(&changes[..], [TroubleChange::Cleared(i)] if i.id == 1), "{changes:?}");
        assert_eq!(play(&mut detector, 1101, 60, 1), vec![]);
        assert!(detector.open().is_none() && !detector.is_open(1));
    }
    // A shorter gap ends nothing.
    assert_eq!(detector.step(700.05), vec![]);
    assert!(detector.is_open(1));
}

#[test]
fn a_trouble_that_comes_back_tells_each_symptom_once() {
    let mut detector = Detector::new(SETTINGS);
    play(&mut detector, 0, 200, 1);
    let mut returns = 0;
    for i in 0..4 {
        let changes = play(&mut detector, 200 + 45 * i, 20, 4);
        returns += changes.iter().filter(|c| matches!(c, TroubleChange::Returned(_))).count();
        play(&mut detector, 220 + 45 * i, 25, 1);
    }
    assert!(returns >= 2, "{returns}");
    let saved = detector.saved();
    let symptoms = &saved.closed.last().expect("it has just ended").trouble.symptoms;
    let mut keys: Vec<_> = symptoms.iter().map(|s| (s.rank, s.factor as u8, s.side == Side::High)).collect();
    keys.sort_unstable();
    let all = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), all, "{symptoms:?}");
}

#[test]
fn shares_become_usual_only_where_no_other_trouble_keeps_them_from_being_learned() {
    let mut detector = Detector::new(SETTINGS);
    let even = |_| 8;
    let redirect = |rank| if rank == 2 { 28 } else { 8 };
    assert_eq!(play_paced(&mut detector, 0, 100, even, |_| [1.0; 4]), vec![]);
    let mut changes = play_paced(&mut detector, 100, 100, redirect, |_| [1.0; 4]);
    // Found before much was known, it is usual three minutes later: by then another rank is slow.
    changes.extend(play_paced(&mut detector, 200, 160, redirect, |_| [3.0, 1.0, 1.0, 1.0]));
    changes.extend(play_paced(&mut detector, 360, 100, redirect, |_| [1.0; 4]));
    let of_share = |c: &&TroubleChange| c.trouble().factor == Factor::Share;
    let fired: Vec<&TroubleChange> =
        changes.iter().filter(of_share).filter(|c| matches!(c, TroubleChange::Fired(_))).collect();
    assert_eq!(fired.len(), 1, "{changes:#?}");
    assert!(changes.iter().filter(of_share).any(|c| matches!(c, TroubleChange::Standing(_))), "{changes:#?}");
    assert!(changes.iter().any(|c| c.trouble().factor == Factor::Speed), "{changes:#?}");
}

#[test]
fn a_trouble_that_no_source_can_judge_any_more_is_neither_over_nor_usual_and_ends_unseen_after_a_while() {
    let mut detector = Detector::new(SETTINGS);
    play(&mut detector, 0, 200, 1);
    let fired = play(&mut detector, 200, 15, 4);
    assert!(matches!(&fired[..], [TroubleChange::Fired(_)]), "{fired:?}");
    // The log is read no more; of the page that is left nobody knows yet what is usual.
    let before = poll_busy(&mut detector, 215..800);
    assert!(before.is_empty() && detector.is_open(1), "{before:?}");
    let after = poll_busy(&mut detector, 800..1300);
    let cleared = |c: &TroubleChange| matches!(c, TroubleChange::Cleared(i) if i.id == 1);
    assert!(after.first().is_some_and(cleared), "{after:?}");
    assert!(detector.ended_unseen(1) && detector.became_usual().is_empty() && !detector.is_open(1));
}

/// Gauges of four ranks, read once a second, of which DP2 holds twice as many requests as its peers.
fn poll_busy(detector: &mut Detector, seconds: std::ops::Range<i32>) -> Vec<TroubleChange> {
    let mut changes = Vec::new();
    for at in seconds.map(f64::from) {
        for rank in 0..4 {
            let running =
                Some(if rank == 2 { 60.0 } else { 30.0 } + (at as i32 * 5 + rank as i32 * 3) as f64 % 7.0);
            let stamp = Some(at + 0.38);
            let gauges =
                Gauges { running, waiting: Some(0.0), throughput: Some(2000.0), stamp, ..Gauges::default() };
            detector.observe(&RankReading { at: at + 0.4, rank, what: Reading::Gauges(gauges) });
        }
        changes.extend(detector.step(at + 1.05));
    }
    changes
}
