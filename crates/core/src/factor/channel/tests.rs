use super::*;
use crate::factor::intake::{InterpretedReading, Lines};
use crate::factor::observation::Prefill;
use crate::test_rng::TestRng;

const BY_LINES: SourceQuality = SourceQuality {
    staleness: 0.0,
    noise: 0.1,
    is_inferred: false,
    is_timed_singly: true,
    is_guessed: false,
};

/// A channel of four ranks that heard `seconds` of a healthy server. Each rank reports again and again that the
/// same steps are done; how long they took is up to the others, for which it waits in every step.
fn heard_in_lockstep(seconds: i64) -> Channel {
    let mut channel = Channel::new(4, 0, BY_LINES);
    let mut rng = TestRng(7);
    let mut reported = [0.0; 4];
    for s in 0..seconds {
        let end = s as f64 + 1.0;
        for (rank, from) in reported.iter_mut().enumerate() {
            loop {
                let to = *from + 0.4 - 0.6 * rng.uniform().max(1e-6).ln();
                if to > end {
                    break;
                }
                let did = [40.0, 1_200.0, 1e6, 3.0, 2_000.0 * rng.uniform()];
                let stretch = Some(WorkSpan { from: *from, to, did });
                channel.take(
                    rank,
                    to,
                    &InterpretedReading { stretch, ..InterpretedReading::default() },
                    true,
                    true,
                );
                *from = to;
            }
        }
        channel.bins.advance(s);
        let seen = channel.examine(s, 0, &[Pending::default(); 4]);
        channel.learn(s, seen, false);
    }
    channel
}

#[test]
fn a_cost_model_that_explains_little_does_not_shrink_without_end() {
    let channel = heard_in_lockstep(5_000);
    for rank in 0..4 {
        let usual = channel.known.speed.usual[rank];
        assert!(usual.abs() < 0.7, "by the model DP{rank} needs {:.2} of each second", usual.exp());
    }
}

#[test]
fn what_was_seen_while_something_departed_is_learned_once_it_has_calmed_or_after_a_minute() {
    let mut channel = Channel::new(4, 0, BY_LINES);
    let mut learned_at = |second: i64, is_suspicious: bool| {
        channel.bins.advance(second);
        let seen = channel.examine(second, 0, &[Pending::default(); 4]);
        channel.learn(second, seen, is_suspicious);
        channel.known.share.seconds
    };
    (0..20).for_each(|s| {
        learned_at(s, false);
    });
    assert_eq!([learned_at(20, true), learned_at(50, true)], [12.0; 2], "nothing more is learned");
    assert_eq!(learned_at(75, true), 16.0, "but what is a minute old");
    assert_eq!(learned_at(76, false), 22.0, "what was waited for, but for the last eight seconds");
}

/// The strongest evidence of the test on all tokens of a request against DP1 of four ranks, over 30 seconds
/// in which its requests wait and are admitted eight at a time, and are so many times as long as before. For
/// twenty minutes eight came to each rank a second with lognormal tokens, mostly one by one.
fn work_of_a_rank_that_admits_eight_at_once(times: f64) -> f64 {
    let mut channel = Channel::new(4, 0, BY_LINES);
    let (mut lines, mut rng) = (vec![Lines::default(); 4], TestRng(13));
    let mut most = 0.0f64;
    for s in 0..1_230_i64 {
        for (rank, lines) in lines.iter_mut().enumerate() {
            let is_crowded = rank == 1 && s >= 1_200;
            let at_once = if is_crowded || rng.uniform() < 0.05 { 8 } else { 1 };
            let factor = if is_crowded { times } else { 1.0 };
            for line in 0..8 / at_once {
                let tokens = (0..at_once).map(|_| factor * (6.0 + 1.1 * rng.normal()).exp()).sum();
                let at = s as f64 + 0.1 * f64::from(line);
                let line = Prefill { new_seqs: f64::from(at_once), new_tokens: tokens, ..Prefill::default() };
                channel.take(rank, at, &lines.prefill(at, &line), true, true);
            }
        }
        channel.bins.advance(s);
        let seen = channel.examine(s, 0, &[Pending::default(); 4]);
        if s < 1_200 {
            channel.learn(s, seen, false);
        } else {
            most = most.max(seen.evidence()[WORK][1].deviance);
        }
    }
    most
}

#[test]
fn a_rank_whose_requests_are_admitted_eight_at_a_time_has_the_work_that_it_had() {
    let most = work_of_a_rank_that_admits_eight_at_once(1.0);
    assert!(most < LEAST_BOUND, "{most}");
}

#[test]
fn longer_prompts_are_seen_though_they_are_admitted_eight_at_a_time() {
    let most = work_of_a_rank_that_admits_eight_at_once(3.0);
    assert!(most > 40.0, "{most}");
}

#[test]
fn a_joint_departure_counts_for_little_while_shares_are_hardly_known() {
    let pressure = |requests: f64| {
        let mut channel = Channel::new(4, 0, BY_LINES);
        channel.known.share.requests = requests;
        channel.known.pace.seconds = vec![100.0; 4];
        for s in 0..10 {
            for rank in 0..4 {
                let (came, decoding) = if rank == 1 { (10.0, 0.8) } else { (8.0, 1.0) };
                channel.bins.at(rank, f64::from(s) + 0.5, |bin| {
                    (bin.arrivals, bin.decoding, bin.spent) = (came, decoding, 1.0);
                });
            }
        }
        channel.examine(9, 0, &[Pending::default(); 4]).pressure.evidence[1].deviance
    };
    let (young, known) = (pressure(40.0), pressure(1e6));
    assert!(known > 2.0 && young < 0.7 * known, "{young} {known}");
}
