//! Causes of made-up courses: four ranks on a metrics page, one of which changes after a minute.

use std::sync::Arc;

use super::{Cause, CauseKind, Certainty, Past, explain, words};
use crate::finding::{Finding, Measured, Side, Statistic, Symptom};
use crate::signal::catalog::{self, Catalog};
use crate::signal::fields::Fields;
use crate::signal::sample::{Sample, Source, TargetId};
use crate::signal::store::{Bounds, SignalStore};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

const ONSET: usize = 60;
/// When a trouble of rank 1 is over that was there from the beginning, where there is one.
const TROUBLE_OVER: usize = 30;

fn at(s: usize) -> Time {
    Time::from_epoch_s(1_795_492_000.0 + s as f64)
}

/// What a rank gets and does in a second.
#[derive(Clone, Copy)]
struct Second {
    requests: f64,
    prompt: f64,
    cached: f64,
    running: f64,
    decoded: f64,
    gpu: Option<f64>,
    /// Seconds in which its process waits for a CPU, and the clock of its GPU, where the machine is seen.
    machine: Option<(f64, f64)>,
    /// Requests that wait, and requests a second that are thrown out of the batch, to be computed again.
    waiting: f64,
    thrown: f64,
    /// What the router sent it, by the router's own counter.
    sent: Option<f64>,
    /// The KV cache is full so many seconds after the onset.
    full_after: Option<usize>,
    is_there: bool,
    /// A log tells of each batch beside the page, and of nothing where there is none.
    is_logged: bool,
    /// Whether it says itself how it is (`/v1/loads`), where ranks do.
    publishes: Option<bool>,
}

const USUAL: Second = Second {
    requests: 8.0,
    prompt: 1000.0,
    cached: 0.3,
    running: 20.0,
    decoded: 1600.0,
    gpu: None,
    machine: None,
    waiting: 0.0,
    thrown: 0.0,
    sent: None,
    full_after: None,
    is_there: true,
    is_logged: false,
    publishes: None,
};

/// The cause of what rank 2 does from the onset on, ten seconds later.
fn cause_of(usual: Second, changed: Second, others: Second) -> Cause {
    cause_of_finding(usual, changed, others, |_| ())
}

/// The same, of a finding that `alter` changes.
fn cause_of_finding(
    usual: Second,
    changed: Second,
    others: Second,
    alter: impl FnOnce(&mut Finding),
) -> Cause {
    cause_among(Rank::dp, [usual, changed, others], None, alter)
}

/// The same among four ranks of any axis, after a trouble of another rank.
fn cause_among(
    rank_at: fn(u16) -> Rank,
    [usual, changed, others]: [Second; 3],
    trouble: Option<Second>,
    alter: impl FnOnce(&mut Finding),
) -> Cause {
    let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
    store.add_target("server".into(), None);
    let mut totals = [[0.0; 8]; 4];
    for s in 0..=ONSET + 10 {
        for (rank, total) in totals.iter_mut().enumerate() {
            let now = match (s > ONSET, rank) {
                (false, 1) if s < TROUBLE_OVER => trouble.unwrap_or(usual),
                (false, _) => usual,
                (true, 2) => changed,
                (true, _) => others,
            };
            // Some unrest, the same in every run, so that costs can be told apart.
            let wave = 1.0 + 0.2 * ((s * 7 + rank * 3) as f64).sin();
            let requests = now.requests * wave;
            let growth = [
                requests,
                (requests * (1.0 - now.cached) + now.thrown * now.cached) * now.prompt,
                (requests - now.thrown) * now.cached * now.prompt,
                now.decoded * (2.0 - wave),
                now.gpu.unwrap_or(0.0),
                now.machine.map_or(0.0, |m| m.0),
                now.thrown,
                now.sent.unwrap_or(0.0) * wave,
            ];
            total.iter_mut().zip(growth).for_each(|(t, g)| *t += g);
            if !now.is_there {
                continue;
            }
            let mut fields = Fields::default();
            fields.set(catalog::RUNNING_REQS, now.running);
            fields.set(catalog::QUEUE_REQS, now.waiting);
            let is_full = now.full_after.is_some_and(|after| s > ONSET + after);
            fields.set(catalog::KV_USAGE, if is_full { 0.97 } else { 0.2 + now.running / 400.0 });
            fields.set(catalog::ADMISSIONS, total[0]);
            fields.set(catalog::PREFILL_COMPUTE_TOKENS, total[1]);
            fields.set(catalog::PREFILL_CACHE_TOKENS, total[2]);
            fields.set(catalog::DECODE_TOKENS, total[3]);
            fields.set(catalog::RETRACTIONS, total[6]);
            if now.gpu.is_some() {
                fields.set(catalog::GPU_BUSY, total[4]);
            }
            store.record(TargetId(0), rank_at(rank as u16), Source::Metrics, &fields, at(s), at(s));
            for line in (1..=3).filter(|_| now.is_logged && now.requests > 0.0) {
                let mut fields = Fields::default();
                fields.set(catalog::RUNNING_REQS, now.running);
                fields.set(catalog::QUEUE_REQS, now.waiting);
                let told = at(s) + std::time::Duration::from_millis(200 * line);
                store.record(TargetId(0), rank_at(rank as u16), Source::Log, &fields, told, told);
            }
            if now.publishes == Some(true) {
                let mut fields = Fields::default();
                fields.set(catalog::RUNNING_REQS, now.running);
                fields.set(catalog::QUEUE_REQS, now.waiting);
                store.record(TargetId(0), rank_at(rank as u16), Source::Loads, &fields, at(s), at(s));
            }
            if now.sent.is_some() {
                let (rank, signal) = (rank_at(rank as u16), catalog::SENT_REQS);
                let sample = Sample { rank, signal, value: total[7], at: at(s), extra: None };
                store.record_sample(TargetId(0), Source::Page, &sample, at(s));
            }
            // The machine is looked at less often.
            if let Some((_, clock)) = now.machine.filter(|_| s % 3 == 0) {
                for (signal, value, source) in [
                    (catalog::RUN_DELAY, total[5], Source::Host),
                    (catalog::GPU_SM_CLOCK, clock, Source::Page),
                ] {
                    let sample = Sample { rank: rank_at(rank as u16), signal, value, at: at(s), extra: None };
                    store.record_sample(TargetId(0), source, &sample, at(s));
                }
            }
        }
    }
    let mut finding = Finding::requested(at(ONSET), None);
    (finding.rank, finding.onset_error_s, finding.side) = (rank_at(2).labels(), 1.0, Side::High);
    let (statistic, signal) = (Statistic::Departure, "load".into());
    finding.measured = Some(Measured { statistic, signal, value: 6.0, bound: 5.0, members_signal: None });
    alter(&mut finding);
    let group = Labels::default().with_target(&"server".into());
    let healthy_since = trouble.map(|_| at(TROUBLE_OVER));
    let past = Past { captured_at: None, healthy_since };
    explain(&store, &group, &finding, past, at(ONSET + 10)).expect("a rank is blamed")
}

#[test]
fn a_router_that_sends_a_rank_more_is_named_with_its_share_and_what_it_is_not() {
    let more = Second { requests: 24.0, running: 40.0, decoded: 2400.0, ..USUAL };
    let cause = cause_of(USUAL, more, USUAL);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::MoreRequests, Certainty::Likely), "{cause:?}");
    assert_eq!(cause.statement, "the router sends DP2 more");
    assert!(cause.support[0].starts_with("its share of requests 25 % -> 50 %, from 03:47:"), "{cause:?}");
    assert!(cause.ruled_out.iter().any(|r| r.starts_with("tokens per prompt 1000 -> 1000")), "{cause:?}");
    assert!(cause.explains.is_some_and(|e| e >= 0.8));
}

#[test]
fn a_router_that_sends_a_rank_more_is_named_with_its_own_counter() {
    let usual = Second { sent: Some(8.0), ..USUAL };
    let more = Second { requests: 24.0, running: 40.0, decoded: 2400.0, sent: Some(24.0), ..USUAL };
    let cause = cause_of(usual, more, usual);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::MoreRequests, Certainty::Likely), "{cause:?}");
    assert_eq!(cause.statement, "the router sends DP2 more");
    let counter = "the router's own counter: its share 25 % -> 50 % of what was sent";
    assert!(cause.support.iter().any(|s| s == counter), "{cause:?}");
}

#[test]
fn the_trouble_before_this_one_is_not_taken_for_what_is_usual() {
    let more = Second { requests: 16.0, running: 30.0, decoded: 2400.0, ..USUAL };
    let before = Second { requests: 80.0, prompt: 6000.0, running: 60.0, decoded: 900.0, ..USUAL };
    let cause = cause_among(Rank::dp, [USUAL, more, USUAL], Some(before), |_| ());
    assert_eq!((cause.kind, cause.certainty), (CauseKind::MoreRequests, Certainty::Likely), "{cause:?}");
    assert!(cause.support[0].starts_with("its share of requests 25 % -> 40 %"), "{cause:?}");
}

#[test]
fn a_rank_that_a_busy_log_is_silent_of_and_a_page_shows_idle_has_not_left() {
    let usual = Second { is_logged: true, ..USUAL };
    let drained = Second { requests: 0.0, running: 0.0, decoded: 0.0, ..usual };
    let cause = cause_of_finding(usual, drained, usual, |finding| finding.side = Side::Low);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::FewerRequests, Certainty::Likely), "{cause:?}");
    assert_eq!(cause.statement, "the router sends DP2 fewer requests");
}

#[test]
fn a_rank_that_hangs_while_it_has_nothing_to_do_is_not_taken_for_one_that_is_sent_less() {
    let usual = Second { publishes: Some(true), ..USUAL };
    let idle = Second { requests: 0.0, running: 0.0, decoded: 0.0, ..usual };
    let hung = Second { publishes: Some(false), ..idle };
    let [sent_less, hangs] =
        [idle, hung].map(|now| cause_of_finding(usual, now, usual, |finding| finding.side = Side::Low));
    assert_eq!((sent_less.kind, sent_less.certainty), (CauseKind::FewerRequests, Certainty::Likely));
    assert_eq!((hangs.kind, hangs.certainty), (CauseKind::Stuck, Certainty::Consistent), "{hangs:?}");
    assert_eq!(hangs.statement, "DP2 fell silent: it stands still, or has left");
    // What is known better stays as sure as it is.
    let at_work = Second { running: 20.0, ..hung };
    let gone = Second { is_there: false, ..hung };
    let [at_work, gone] =
        [at_work, gone].map(|now| cause_of_finding(usual, now, usual, |finding| finding.side = Side::Low));
    assert_eq!((at_work.kind, at_work.certainty), (CauseKind::Stuck, Certainty::Likely), "{at_work:?}");
    assert_eq!((gone.kind, gone.certainty), (CauseKind::PeerLeft, Certainty::Likely), "{gone:?}");
}

#[test]
fn a_rank_that_gets_what_one_that_hangs_would_have_got_is_not_sent_more_by_the_router() {
    let usual = Second { publishes: Some(true), ..USUAL };
    let more = Second { requests: usual.requests * 1.33, ..usual };
    let idle = Second { requests: 0.0, running: 0.0, decoded: 0.0, ..usual };
    let of = |changed| {
        cause_of_finding(usual, changed, more, |finding| {
            (finding.rank, finding.side) = (Rank::dp(1).labels(), Side::High);
        })
    };
    let hangs = of(Second { publishes: Some(false), ..idle });
    assert_eq!((hangs.kind, hangs.certainty), (CauseKind::PeerLeft, Certainty::Likely), "{hangs:?}");
    assert_eq!(
        hangs.statement,
        "DP2 fell silent: it stands still, or has left, and its requests go to the others"
    );
    let drained = of(idle);
    assert_ne!(drained.kind, CauseKind::PeerLeft, "it says that it is idle: {drained:?}");
}

/// Two servers of two DP ranks each, of which the second gets three times as many requests after a minute.
fn two_servers() -> SignalStore {
    let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
    store.add_target("chat-0".into(), None);
    store.add_target("chat-1".into(), None);
    let mut totals = [0.0; 4];
    for s in 0..=ONSET + 10 {
        for (i, total) in totals.iter_mut().enumerate() {
            let (server, rank) = ((i / 2) as u16, (i % 2) as u16);
            let more = if s > ONSET && server == 1 { 3.0 } else { 1.0 };
            *total += 4.0 * more * (1.0 + 0.2 * ((s * 7 + i * 3) as f64).sin());
            let mut fields = Fields::default();
            fields.set(catalog::RUNNING_REQS, 10.0 * more);
            fields.set(catalog::ADMISSIONS, *total);
            fields.set(catalog::PREFILL_COMPUTE_TOKENS, *total * 500.0);
            fields.set(catalog::DECODE_TOKENS, *total * 60.0);
            store.record(TargetId(server), Rank::dp(rank), Source::Metrics, &fields, at(s), at(s));
        }
    }
    store
}

/// Four ranks of one server, of which rank 2 is sent so many requests a second, has a backlog, and is sent nothing more
/// after a minute. It takes a batch every two seconds, which has left the queue when that is read and is
/// counted a second later.
fn drained_with_a_backlog(sent: f64, until: usize) -> SignalStore {
    let mut store = SignalStore::new(Arc::new(Catalog::default()), Bounds::default());
    store.add_target("server".into(), None);
    let (mut admitted, mut backlog, mut uncounted) = ([0.0; 4], 100.0, 0.0);
    for s in 0..=until {
        for (rank, admitted) in admitted.iter_mut().enumerate() {
            let (mut running, mut queue) = (20.0, 0.0);
            if rank == 2 {
                backlog += if s <= ONSET { sent } else { 0.0 };
                *admitted += std::mem::take(&mut uncounted);
                if s % 2 == 0 {
                    uncounted = f64::min(backlog, 16.0);
                    backlog -= uncounted;
                }
                (running, queue) = (if backlog > 0.0 { 20.0 } else { 2.0 }, backlog);
            } else {
                *admitted += 8.0 * (1.0 + 0.2 * ((s * 7 + rank * 3) as f64).sin());
            }
            let mut fields = Fields::default();
            fields.set(catalog::RUNNING_REQS, running);
            fields.set(catalog::QUEUE_REQS, queue);
            fields.set(catalog::ADMISSIONS, *admitted);
            store.record(TargetId(0), Rank::dp(rank as u16), Source::Metrics, &fields, at(s), at(s));
        }
    }
    store
}

#[test]
fn a_rank_that_is_sent_nothing_is_so_since_the_onset_however_long_it_works_off_its_backlog() {
    let mut finding = Finding::requested(at(ONSET), None);
    (finding.rank, finding.onset_error_s, finding.side) = (Rank::dp(2).labels(), 0.75, Side::Low);
    let (statistic, signal) = (Statistic::Factors, "share".into());
    finding.measured = Some(Measured { statistic, signal, value: 1.5, bound: 1.0, members_signal: None });
    let until = ONSET + 16;
    let group = Labels::default().with_target(&"server".into());
    // As many as it gets done, and twice as many, so that it has more to do than it had on the mean of the minute.
    for sent in [8.0, 16.0] {
        let store = drained_with_a_backlog(sent, until);
        let cause = explain(&store, &group, &finding, Past::default(), at(until)).expect("a rank is blamed");
        assert_eq!((cause.kind, cause.certainty), (CauseKind::FewerRequests, Certainty::Likely), "{cause:?}");
        assert!(cause.support[0].ends_with("with the onset"), "{cause:?}");
    }
}

#[test]
fn a_router_that_sends_a_replica_more_is_named_with_the_share_of_all_its_ranks() {
    let mut finding = Finding::requested(at(ONSET), None);
    (finding.rank, finding.onset_error_s, finding.side) =
        (Labels::default().with_target(&"chat-1".into()), 1.0, Side::High);
    let (statistic, signal) = (Statistic::MaxOverMean, "load".into());
    finding.measured = Some(Measured { statistic, signal, value: 2.0, bound: 1.8, members_signal: None });
    let cause = explain(&two_servers(), &Labels::default(), &finding, Past::default(), at(ONSET + 10));
    let cause = cause.expect("a server is blamed");
    assert_eq!((cause.kind, cause.certainty), (CauseKind::MoreRequests, Certainty::Likely), "{cause:?}");
    assert_eq!(cause.statement, "the router sends chat-1 more");
    assert!(cause.support[0].starts_with("its share of requests 50 % -> 75 %"), "{cause:?}");
}

#[test]
fn requests_that_come_around_the_router_are_not_laid_at_its_door() {
    let usual = Second { sent: Some(8.0), ..USUAL };
    let more = Second { requests: 24.0, running: 40.0, decoded: 2400.0, sent: Some(8.0), ..USUAL };
    let cause = cause_of(usual, more, usual);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::MoreRequests, Certainty::Consistent), "{cause:?}");
    assert_eq!(cause.statement, "DP2 gets more requests, and not from the router");
    let fewer = Second { requests: 1.0, running: 3.0, decoded: 240.0, sent: Some(8.0), ..USUAL };
    let cause = cause_of_finding(usual, fewer, usual, |finding| finding.side = Side::Low);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::FewerRequests, Certainty::Consistent), "{cause:?}");
    assert_eq!(cause.statement, "DP2 gets fewer requests, though the router sends it as many as before");
}

#[test]
fn a_host_on_a_machine_that_was_crowded_before_is_slow_by_what_is_left_of_its_time() {
    let slow = Second { decoded: 500.0, running: 30.0, ..USUAL };
    let usual = Second { machine: Some((0.4, 1980.0)), ..USUAL };
    // It ran for 60 % of the time, now for 20 %: three times slower, as its speed is.
    let cause = cause_of(usual, Second { machine: Some((0.8, 1980.0)), ..slow }, usual);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::SlowHost, Certainty::Likely), "{cause:?}");
    assert!(cause.host_slowdown.is_some_and(|s| (2.7..3.3).contains(&s)), "{cause:?}");
}

#[test]
fn where_nothing_departed_the_cause_is_unknown_and_what_was_looked_at_is_listed() {
    let cause = cause_of(USUAL, USUAL, USUAL);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::Unknown, Certainty::Unknown), "{cause:?}");
    assert!(cause.ruled_out.len() >= 3, "{cause:?}");
    assert!(cause.unknown.iter().any(|u| u.contains("SGLANG_ENABLE_METRICS_DEVICE_TIMER")), "{cause:?}");
}

#[test]
fn what_happens_to_all_ranks_alike_is_no_cause() {
    let more = Second { requests: 24.0, prompt: 3000.0, ..USUAL };
    let cause = cause_of(USUAL, more, more);
    assert_eq!(cause.certainty, Certainty::Unknown, "{cause:?}");
}

#[test]
fn longer_prompts_and_a_lost_cache_are_told_apart() {
    let long = Second { prompt: 6000.0, ..USUAL };
    let cause = cause_of(USUAL, long, USUAL);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::LongerPrompts, Certainty::Likely), "{cause:?}");
    let usual = Second { cached: 0.8, ..USUAL };
    let cause = cause_of(usual, Second { cached: 0.0, ..usual }, usual);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::CacheMisses, Certainty::Likely), "{cause:?}");
    assert!(cause.support[0].contains("80 % -> 0 %"), "{cause:?}");
}

#[test]
fn what_a_longer_prompt_has_beyond_the_usual_is_no_cache_miss_though_a_smaller_share_is_found() {
    // 1000 tokens, 700 of them cached; then 700 of 3500. Peers as before.
    let usual = Second { cached: 0.7, ..USUAL };
    let cause = cause_of(usual, Second { prompt: 3500.0, cached: 0.2, ..usual }, usual);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::LongerPrompts, Certainty::Likely), "{cause:?}");
    assert!(cause.support[0].starts_with("tokens per prompt 1000 -> 3500"), "{cause:?}");
}

#[test]
fn a_slow_rank_is_slow_by_its_gpu_or_its_host_only_where_the_device_timer_is_exposed() {
    let slow = Second { decoded: 500.0, requests: 8.0, running: 30.0, ..USUAL };
    let cause = cause_of(USUAL, slow, USUAL);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::Slower, Certainty::Likely), "{cause:?}");
    assert!(cause.unknown[0].contains("SGLANG_ENABLE_METRICS_DEVICE_TIMER=1"), "{cause:?}");
    let usual = Second { gpu: Some(0.9), ..USUAL };
    let of = |gpu| cause_of(usual, Second { gpu: Some(gpu), ..slow }, usual).kind;
    assert_eq!(of(0.95), CauseKind::SlowGpu);
    assert_eq!(of(0.35), CauseKind::SlowHost);
}

/// What a rule of factors finds whose test of speed departed first.
fn by_speed(finding: &mut Finding) {
    let (statistic, signal, members_signal) = (Statistic::Factors, "speed".into(), Some("load".into()));
    finding.measured = Some(Measured { statistic, signal, value: 1.3, bound: 1.0, members_signal });
    finding.side = Side::Low;
    let (at, rank) = (finding.onset, finding.rank.clone());
    finding.symptoms = vec![Symptom { at, rank, factor: "speed".into(), side: Side::Low }];
}

#[test]
fn less_speed_is_a_slower_rank_also_where_a_router_sends_it_less_because_it_is_slow() {
    let slow = Second { decoded: 500.0, running: 30.0, ..USUAL };
    let cause = cause_of_finding(USUAL, slow, USUAL, by_speed);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::Slower, Certainty::Likely), "{cause:?}");
    let less = Second { requests: 3.0, ..slow };
    let cause = cause_of_finding(USUAL, less, USUAL, by_speed);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::Slower, Certainty::Likely), "{cause:?}");
    // A rank that is sent more may seem slower before its share is seen to depart.
    let more = Second { requests: 24.0, running: 40.0, decoded: 2400.0, ..USUAL };
    let cause = cause_of_finding(USUAL, more, USUAL, by_speed);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::MoreRequests, Certainty::Likely), "{cause:?}");
}

#[test]
fn a_rank_that_a_rule_measured_to_be_slow_is_not_unknown_where_the_last_minute_does_not_show_it() {
    let cause = cause_of_finding(USUAL, USUAL, USUAL, |finding| {
        by_speed(finding);
        finding.evidence = Some("DP2 takes 3.0 times as long as usual for the same work".into());
    });
    assert_eq!((cause.kind, cause.certainty), (CauseKind::Slower, Certainty::Consistent), "{cause:?}");
    assert_eq!(cause.support, ["DP2 takes 3.0 times as long as usual for the same work"]);
}

#[test]
fn what_is_named_and_what_the_rule_measured_is_not_ruled_out_by_the_last_minute() {
    // Its speed departs by less than can be told from chance here; the rule told it by hours.
    let named = cause_of_finding(USUAL, USUAL, USUAL, |finding| {
        by_speed(finding);
        finding.evidence = Some("DP2 takes 3.0 times as long as usual for the same work".into());
    });
    let unknown = cause_of_finding(USUAL, USUAL, USUAL, by_speed);
    for cause in [&named, &unknown] {
        assert!(!cause.ruled_out.iter().any(|r| r.starts_with("speed at equal work")), "{cause:?}");
        assert!(cause.ruled_out.iter().any(|r| r.starts_with("tokens per prompt")), "{cause:?}");
    }
    assert_eq!((named.kind, unknown.kind), (CauseKind::Slower, CauseKind::Unknown));
    // A rule that found something else leaves it to the numbers.
    let by_load = cause_of(USUAL, USUAL, USUAL);
    assert!(by_load.ruled_out.iter().any(|r| r.starts_with("speed at equal work")), "{by_load:?}");
}

#[test]
fn of_a_slow_rank_that_is_seldom_busy_no_other_change_is_the_cause_for_certain_and_the_machine_goes_first() {
    let usual = Second { requests: 4.0, running: 0.5, decoded: 80.0, cached: 0.8, ..USUAL };
    let missed = Second { cached: 0.4, ..usual };
    let cause = cause_of(usual, missed, usual);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::CacheMisses, Certainty::Likely), "{cause:?}");
    let cause = cause_of_finding(usual, missed, usual, by_speed);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::CacheMisses, Certainty::Consistent), "{cause:?}");
    let seen = |wait: f64, of: Second| Second { machine: Some((wait, 1_980.0)), ..of };
    let cause = cause_of_finding(seen(0.02, usual), seen(0.7, missed), seen(0.02, usual), by_speed);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::SlowHost, Certainty::Consistent), "{cause:?}");
}

#[test]
fn a_rank_that_seemed_slow_before_its_share_was_seen_to_depart_is_sent_more() {
    let more = Second { requests: 24.0, running: 40.0, decoded: 2400.0, ..USUAL };
    let cause = cause_of_finding(USUAL, more, USUAL, |finding| {
        by_speed(finding);
        let (at, rank) = (finding.onset, finding.rank.clone());
        finding.symptoms.push(Symptom { at, rank, factor: "share".into(), side: Side::High });
        finding.side = Side::High;
        finding.measured.iter_mut().for_each(|m| m.signal = "share".into());
    });
    assert_eq!((cause.kind, cause.certainty), (CauseKind::MoreRequests, Certainty::Likely), "{cause:?}");
}

#[test]
fn what_departs_seconds_after_an_onset_that_is_hardly_known_may_be_an_effect_and_is_not_certain() {
    let fewer = Second { requests: 2.0, running: 5.0, decoded: 400.0, ..USUAL };
    let of = |earlier: usize, error: f64| {
        let cause = cause_of_finding(USUAL, fewer, USUAL, |finding| {
            (finding.onset, finding.onset_error_s, finding.side) = (at(ONSET - earlier), error, Side::Low);
        });
        (cause.kind, cause.certainty)
    };
    assert_eq!(of(0, 0.5), (CauseKind::FewerRequests, Certainty::Likely));
    assert_eq!(of(0, 8.0), (CauseKind::FewerRequests, Certainty::Likely));
    assert_eq!(of(6, 8.0), (CauseKind::FewerRequests, Certainty::Consistent));
}

#[test]
fn a_router_that_avoids_a_rank_on_which_requests_wait_is_no_cause() {
    let low = |finding: &mut Finding| finding.side = Side::Low;
    let of = |changed| {
        let cause = cause_of_finding(USUAL, changed, USUAL, low);
        (cause.kind, cause.certainty)
    };
    let fewer = Second { requests: 2.0, running: 5.0, decoded: 400.0, ..USUAL };
    assert_eq!(of(fewer), (CauseKind::FewerRequests, Certainty::Likely));
    assert_ne!(of(Second { waiting: 15.0, ..fewer }), (CauseKind::FewerRequests, Certainty::Likely));
    assert_ne!(of(Second { running: 20.0, ..fewer }), (CauseKind::FewerRequests, Certainty::Likely));
}

#[test]
fn what_was_thrown_out_and_is_computed_again_is_no_prompt_that_the_cache_missed() {
    let usual = Second { cached: 0.8, ..USUAL };
    // Of twelve admissions a second four are of requests that were thrown out.
    let thrown = Second { requests: 12.0, thrown: 4.0, running: 40.0, ..usual };
    let cause = cause_of(usual, thrown, usual);
    assert!(!matches!(cause.kind, CauseKind::CacheMisses | CauseKind::LongerPrompts), "{cause:?}");
    // A cache that misses is named though some requests were thrown out, too.
    let missed = Second { requests: 8.0, cached: 0.0, thrown: 0.5, running: 40.0, ..usual };
    let cause = cause_of(usual, missed, usual);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::CacheMisses, Certainty::Likely), "{cause:?}");
}

#[test]
fn what_departs_once_the_cache_is_full_may_be_what_the_full_cache_made_and_is_not_certain() {
    let more = Second { requests: 24.0, running: 40.0, decoded: 2400.0, ..USUAL };
    let usual = Second { cached: 0.8, ..USUAL };
    let missed = Second { cached: 0.0, ..usual };
    for (usual, changed, kind) in
        [(USUAL, more, CauseKind::MoreRequests), (usual, missed, CauseKind::CacheMisses)]
    {
        let of = |full_after| {
            let cause = cause_of(usual, Second { full_after, ..changed }, usual);
            (cause.kind, cause.certainty)
        };
        assert_eq!(of(None), (kind, Certainty::Likely));
        assert_eq!(of(Some(5)), (kind, Certainty::Likely), "it filled the cache");
        assert_eq!(of(Some(0)), (kind, Certainty::Consistent));
    }
    // A full cache answers no more than before: requests that it does answer were sent for it.
    let cause = cause_of(USUAL, Second { cached: 0.8, full_after: Some(0), ..more }, USUAL);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::MoreRequests, Certainty::Likely), "{cause:?}");
}

#[test]
fn the_machine_tells_a_slow_host_from_a_slow_gpu_where_the_device_timer_does_not() {
    let usual = Second { machine: Some((0.01, 1980.0)), ..USUAL };
    let slow = Second { decoded: 500.0, running: 30.0, ..usual };
    let starved = cause_of(usual, Second { machine: Some((0.75, 1980.0)), ..slow }, usual);
    assert_eq!((starved.kind, starved.certainty), (CauseKind::SlowHost, Certainty::Likely), "{starved:?}");
    assert!(starved.support[1].starts_with("its process waited for a CPU 0.01 -> 0.75 s"), "{starved:?}");
    // It says how much slower, for what a window would cost there: the host 1 / (1 - 0.74) times.
    assert!(starved.host_slowdown.is_some_and(|times| (3.0..4.5).contains(&times)), "{starved:?}");
    assert!(starved.step_slowdown.is_some_and(|times| (1.3..2.0).contains(&times)), "{starved:?}");
    let healthy = cause_of(usual, usual, usual);
    assert_eq!((healthy.host_slowdown, healthy.step_slowdown), (Some(1.0), Some(1.0)), "{healthy:?}");
    let unseen = cause_of(USUAL, USUAL, USUAL);
    assert_eq!((unseen.host_slowdown, unseen.step_slowdown), (None, Some(1.0)), "{unseen:?}");
    assert!(
        starved.ruled_out.iter().any(|r| r.starts_with("the clock of its GPU was 1980 -> 1980")),
        "{starved:?}"
    );
    let throttled = cause_of(usual, Second { machine: Some((0.01, 600.0)), ..slow }, usual);
    assert_eq!(
        (throttled.kind, throttled.certainty),
        (CauseKind::SlowGpu, Certainty::Likely),
        "{throttled:?}"
    );
    // What a look at the machine before the onset told is held for seconds beyond it, and thins out nothing.
    assert!(throttled.support[1].starts_with("the clock of its GPU was 1980 -> 600 MHz"), "{throttled:?}");
    // What happens to the whole machine is no cause of one rank's.
    let busy = Second { machine: Some((0.75, 1980.0)), ..usual };
    let all = cause_of(usual, Second { machine: Some((0.75, 1980.0)), ..slow }, busy);
    assert_eq!(all.kind, CauseKind::Slower, "{all:?}");
    // A little waiting does not explain a rank that is three times slower.
    let little = cause_of(usual, Second { machine: Some((0.2, 1980.0)), ..slow }, usual);
    assert_eq!(little.kind, CauseKind::Slower, "{little:?}");
    assert!(little.support.iter().any(|s| s.contains("waited for a CPU")), "{little:?}");
}

#[test]
fn where_all_ranks_got_slower_alike_the_host_that_waits_for_a_cpu_is_named_though_another_rank_is_blamed() {
    let usual = Second { machine: Some((0.0, 1980.0)), ..USUAL };
    let slow = Second { requests: 2.0, decoded: 400.0, ..usual };
    let starved = Second { machine: Some((0.78, 1980.0)), ..slow };
    let blamed = |f: &mut Finding| (f.rank, f.side) = (Rank::dp(0).labels(), Side::Low);
    let cause = cause_of_finding(usual, starved, slow, blamed);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::SlowHost, Certainty::Consistent), "{cause:?}");
    assert_eq!(cause.statement, "the host of DP2 is slow, and all ranks got slower with it");
    assert!(cause.support[0].starts_with("DP2's process waited for a CPU 0.00 -> 0.78 s"), "{cause:?}");
    // What a window would cost is decided by the slowest host, whoever is blamed.
    assert!(cause.host_slowdown.is_some_and(|times| (3.5..5.5).contains(&times)), "{cause:?}");
    // Ranks that are as fast as before do not wait for it.
    let alone = cause_of_finding(usual, Second { machine: Some((0.78, 1980.0)), ..usual }, usual, blamed);
    assert_ne!(alone.kind, CauseKind::SlowHost, "{alone:?}");
}

#[test]
fn ranks_that_share_their_batches_share_their_requests_so_these_are_no_cause_among_them() {
    // Each TP rank repeats the same counters, and a page that is cut between them shows differences that are none.
    let usual = Second { machine: Some((0.0, 1980.0)), ..USUAL };
    let crowded = Second { machine: Some((0.78, 1980.0)), prompt: 3000.0, requests: 24.0, ..usual };
    let cause = cause_among(Rank::tp, [usual, crowded, Second { prompt: 1500.0, ..usual }], None, |_| ());
    assert_eq!(cause.kind, CauseKind::SlowHost, "{cause:?}");
    let said = cause.support.iter().chain(&cause.ruled_out);
    assert!(said.clone().count() > 1, "{cause:?}");
    assert!(said.clone().all(|s| !s.contains("requests") && !s.contains("prompt")), "{cause:?}");
}

#[test]
fn ranks_that_got_slower_alike_say_how_slow_their_hosts_are_though_no_process_waits_for_a_cpu() {
    // As where a scheduler that all others wait for is stopped half of the time.
    let usual = Second { machine: Some((0.0, 1980.0)), ..USUAL };
    let slow = Second { requests: 2.0, decoded: 400.0, ..usual };
    let cause = cause_of(usual, slow, slow);
    assert_eq!(cause.host_slowdown, Some(1.0), "{cause:?}");
    assert!(cause.step_slowdown.is_some_and(|times| times > 1.5), "{cause:?}");
}

#[test]
fn a_rank_that_is_gone_from_the_page_has_left_and_one_that_generates_nothing_stands_still() {
    let gone = cause_of(USUAL, Second { is_there: false, ..USUAL }, USUAL);
    assert_eq!((gone.kind, gone.certainty), (CauseKind::PeerLeft, Certainty::Likely), "{gone:?}");
    assert_eq!(gone.statement, "DP2 has left");
    let stuck = cause_of(USUAL, Second { requests: 0.0, decoded: 0.0, ..USUAL }, USUAL);
    assert_eq!((stuck.kind, stuck.certainty), (CauseKind::Stuck, Certainty::Likely), "{stuck:?}");
}

#[test]
fn a_cause_survives_its_json_and_a_kind_of_a_later_version_is_read_as_unknown() {
    let cause = cause_of(USUAL, Second { requests: 24.0, running: 40.0, ..USUAL }, USUAL);
    let mut json = serde_json::to_value(&cause).expect("plain data");
    assert_eq!(serde_json::from_value::<Cause>(json.clone()).expect("its own JSON"), cause);
    json["kind"] = "solar_flare".into();
    assert_eq!(serde_json::from_value::<Cause>(json).expect("it is read").kind, CauseKind::Unknown);
}

#[test]
fn a_later_look_that_sees_the_same_cause_diluted_leaves_it_as_sure_as_it_was() {
    let of = |statement: &str, certainty, explains| Cause {
        kind: CauseKind::MoreRequests,
        statement: statement.into(),
        certainty,
        support: vec![format!("explains {explains}")],
        explains: Some(explains),
        ruled_out: Vec::new(),
        unknown: Vec::new(),
        step_slowdown: None,
        host_slowdown: None,
        at: at(ONSET),
    };
    let first = of("the router sends DP2 more", Certainty::Likely, 0.97);
    let diluted = Cause { host_slowdown: Some(2.0), ..of(&first.statement, Certainty::Consistent, 0.5) };
    let now = diluted.clone().after(Some(first.clone()));
    assert_eq!((now.certainty, now.explains), (Certainty::Likely, Some(0.97)));
    assert_eq!(now.host_slowdown, Some(2.0), "what the machine says is of now");
    let other = of("the prompts of DP2 are longer", Certainty::Likely, 0.9);
    assert_eq!(other.clone().after(Some(first.clone())), other, "another cause is its own");
    assert_eq!(first.clone().after(Some(diluted.clone())), first, "it may become surer");
    let nothing = Cause { kind: CauseKind::Unknown, ..of("unknown", Certainty::Unknown, 0.0) };
    let kept = nothing.clone().after(Some(first.clone()));
    assert_eq!((kept.statement, kept.certainty), (first.statement.clone(), Certainty::Likely));
    let given_up = nothing.clone().after(Some(diluted));
    assert_eq!(given_up, nothing, "what was merely consistent may turn out to be nothing");
    assert_eq!(first.clone().after(None), first);
}

#[test]
fn a_full_cache_is_no_cause_of_less_load_and_is_likely_only_where_it_explains_the_gap() {
    // It works off long prompts of before, which fill its cache, and is sent nothing any more.
    let low = |finding: &mut Finding| finding.side = Side::Low;
    let drained = Second { requests: 0.0, decoded: 1600.0, waiting: 30.0, thrown: 1.0, ..USUAL };
    let drained = Second { full_after: Some(0), ..drained };
    let cause = cause_of_finding(USUAL, drained, USUAL, low);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::FewerRequests, Certainty::Consistent), "{cause:?}");
    // Of a rank that holds more, a cache that throws requests out explains nothing where none of them wait.
    let thrown = Second { thrown: 1.0, running: 26.0, requests: 9.0, full_after: Some(0), ..USUAL };
    let cause = cause_of(USUAL, thrown, USUAL);
    assert_ne!((cause.kind, cause.certainty), (CauseKind::Memory, Certainty::Likely), "{cause:?}");
    assert!(cause.explains.is_none_or(|part| part > 0.0), "{cause:?}");
    let cause = cause_of(USUAL, Second { waiting: 30.0, ..thrown }, USUAL);
    assert_eq!((cause.kind, cause.certainty), (CauseKind::Memory, Certainty::Likely), "{cause:?}");
    assert!(cause.explains.is_some_and(|part| part >= 0.8), "{cause:?}");
}

#[test]
fn a_weaker_cause_found_later_replaces_a_likely_one_only_where_the_rank_got_slow_or_stopped() {
    let of =
        |kind, certainty| Cause { kind, statement: kind.word().into(), certainty, ..words::empty(at(ONSET)) };
    let first = of(CauseKind::FewerRequests, Certainty::Likely);
    for weaker in [CauseKind::Memory, CauseKind::LongerPrompts, CauseKind::Transfer] {
        let now = of(weaker, Certainty::Consistent).after(Some(first.clone()));
        assert_eq!((now.kind, now.certainty), (first.kind, Certainty::Likely));
    }
    let better = of(CauseKind::LongerPrompts, Certainty::Likely);
    assert_eq!(better.clone().after(Some(first.clone())), better);
    for refuted in [CauseKind::Slower, CauseKind::SlowHost, CauseKind::Stuck, CauseKind::PeerLeft] {
        let now = of(refuted, Certainty::Consistent);
        assert_eq!(now.clone().after(Some(first.clone())), now);
    }
}
