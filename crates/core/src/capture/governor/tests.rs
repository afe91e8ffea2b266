//! What `governor` promises.

use super::*;
use crate::capture::size::{CostPriors, RecordingKind};

const LIMITS: Limits =
    Limits { cooldown: Duration::from_secs(600), captures: 2, per: Duration::from_secs(3600) };

fn at(s: u64) -> Time {
    Time::from_epoch_s(1e9) + Duration::from_secs(s)
}

fn attempt(s: u64, incident: &str) -> Attempt {
    let end = AttemptEnd {
        at: at(s + 1),
        stalled: Duration::from_secs(1),
        bytes: 1 << 20,
        unproven: None,
        cost: None,
        harm: None,
    };
    Attempt {
        id: format!("a{s}"),
        rule: "r".into(),
        target: "t".into(),
        group: "g".into(),
        incident: incident.into(),
        firing: "dp_rank=2 high".into(),
        at: at(s),
        times_bound: 1.0,
        over_at: None,
        end: Some(end),
    }
}

fn request(incident: &str, times_bound: f64) -> CaptureRequest<'_> {
    let (rule, limits, target, group) = ("r", &LIMITS, "t", "g");
    let (firing, may_predate_start) = ("dp_rank=2 high", false);
    CaptureRequest { rule, limits, target, group, incident, firing, may_predate_start, times_bound }
}

fn decided(attempts: Vec<Attempt>, now: Time) -> String {
    decide(&request("new", 1.2), &Ledger::from(attempts), &Budget::default(), Estimate::default(), now)
        .map_or_else(|r| r.word().to_owned(), |()| "ok".into())
}

#[test]
fn a_window_that_hurt_its_server_is_the_last_before_somebody_has_looked() {
    let second = Duration::from_secs(1);
    assert_eq!(Harm::of(false, Some(second), 3 * second), None);
    assert_eq!(Harm::of(false, Some(second / 20), second / 2), None, "no more than the server's own pauses");
    assert_eq!(Harm::of(false, None, 60 * second), None, "nothing was predicted");
    assert!(Harm::of(true, None, Duration::ZERO).is_some());
    let mut harmed = attempt(0, "a");
    harmed.end.as_mut().unwrap().harm = Harm::of(false, Some(second), 4 * second);
    let elsewhere = Attempt { target: "other".into(), ..harmed.clone() };
    assert_eq!(decided(vec![elsewhere.clone()], at(80_000)), "ok");
    let mut ledger = Ledger::from(vec![harmed, elsewhere]);
    let refusal = unharmed(&request("new", 1.2), &ledger).unwrap_err();
    let said = "a window silenced a rank for 4 s, of which 1 s were predicted; `skewtrap resume`";
    assert!(refusal.to_string().contains(said), "{refusal}");
    assert_eq!(ledger.resume(Some("t")), BTreeSet::from(["t".to_owned()]));
    assert_eq!(unharmed(&request("new", 1.2), &ledger), Ok(()));
    assert_eq!(ledger.resume(None), BTreeSet::from(["other".to_owned()]), "and the other one still");
}

#[test]
fn windows_teach_for_the_server_that_they_were_of_and_for_a_day_how_fast_it_writes() {
    let taught = |target, server, now| {
        let mut one = attempt(0, "a");
        one.end.as_mut().unwrap().cost = Some(PastWindow {
            recorded: RecordingKind::Gpu,
            steps: 10,
            largest: 100_000,
            stall: Duration::from_secs(1),
            slowness: Some(1.0),
            predicted: None,
            server: 7,
        });
        let costs = Ledger::from(vec![one]).costs(target, server, now);
        costs.predicted(RecordingKind::Gpu, 10, &CostPriors::default()).upper.as_secs_f64()
    };
    let own = |server, now| taught("t", server, now);
    let (soon, later, unknown) = (own(7, at(60)), own(7, at(90_000)), own(8, at(60)));
    let first = WindowCosts::default().predicted(RecordingKind::Gpu, 10, &CostPriors::default()).upper;
    assert_eq!(unknown, first.as_secs_f64());
    assert!(soon > 1.0 && later < 0.7 && later > 0.1, "{soon} {later}");
    assert_eq!(
        taught("another", 7, at(60)),
        later,
        "the same model on another host: its bytes, not its speed"
    );
}

#[test]
fn each_limit_refuses_at_its_bound_and_not_after() {
    assert_eq!(decided(vec![], at(0)), "ok");
    assert_eq!(decided(vec![attempt(0, "a")], at(599)), "cooldown");
    assert_eq!(decided(vec![attempt(0, "a")], at(600)), "ok");
    let two = || vec![attempt(0, "a"), attempt(1000, "b")];
    assert_eq!(decided(two(), at(3599)), "rule_limit");
    assert_eq!(decided(two(), at(3600)), "ok");
    let four = || (0..4).map(|i| attempt(i * 4000, "a")).collect();
    assert_eq!(decided(four(), at(86_399)), "daily_windows");
    assert_eq!(decided(four(), at(86_400)), "ok");
}

#[test]
fn an_open_window_and_one_of_unknown_end_keep_others_out() {
    let open = Attempt { end: None, target: "peer".into(), ..attempt(0, "a") };
    assert_eq!(decided(vec![open], at(80_000)), "window_open");
    let mut unknown = attempt(0, "a");
    unknown.rule = "other".into();
    unknown.end.as_mut().unwrap().unproven = Some("the start timed out".into());
    assert_eq!(decided(vec![unknown.clone()], at(600)), "quiet");
    assert_eq!(decided(vec![unknown], at(601)), "ok");
}

#[test]
fn a_window_that_is_being_closed_after_a_crash_is_named_as_such() {
    let open = Attempt { end: None, ..attempt(0, "a") };
    let left_behind = [open.id.clone()].into();
    let ledger = Ledger { attempts: vec![open], left_behind };
    let refused =
        decide(&request("n", 2.0), &ledger, &Budget::default(), Estimate::default(), at(700)).unwrap_err();
    assert_eq!((refused.word(), refused.awaits_facts()), ("left_open", true));
    assert_eq!(
        refused.to_string(),
        "an agent before this one left a window open on t, for incident a; it is being closed first"
    );
}

#[test]
fn an_incident_is_captured_again_only_when_it_got_worse_by_the_margin() {
    let ledger = Ledger::from(vec![attempt(0, "a")]);
    let decided = |times_bound| {
        decide(&request("a", times_bound), &ledger, &Budget::default(), Estimate::default(), at(700))
            .map_err(|r| r.word())
    };
    assert_eq!(decided(1.49), Err("not_worse"));
    assert_eq!(decided(1.5), Ok(()));
    assert_eq!(decided(f64::NAN), Err("not_worse"));
}

#[test]
fn what_carries_on_over_a_restart_is_held_against_the_mark_of_before() {
    let mut ledger = Ledger::from(vec![attempt(0, "a")]);
    let decided = |ledger: &Ledger, request: CaptureRequest<'_>| {
        decide(&request, ledger, &Budget::default(), Estimate::default(), at(700)).map_err(|r| r.to_string())
    };
    let after = CaptureRequest { may_predate_start: true, ..request("b", 1.4) };
    assert_eq!(
        decided(&ledger, after).unwrap_err(),
        "this was captured as incident a, at 1.00 times its bound, and its end was not observed; it is at 1.40 now and captured again from 1.50 on (budget.worse_by)"
    );
    assert_eq!(decided(&ledger, CaptureRequest { times_bound: 1.5, ..after }), Ok(()));
    assert_eq!(
        decided(&ledger, CaptureRequest { firing: "dp_rank=1 high", ..after }),
        Ok(()),
        "another rank"
    );
    assert_eq!(decided(&ledger, CaptureRequest { firing: "", ..after }), Ok(()), "asked for by hand");
    assert_eq!(decided(&ledger, request("b", 1.4)), Ok(()), "it began while somebody looked");
    assert!(ledger.over("r", "t", "dp_rank=2 high", at(500)));
    assert_eq!(decided(&ledger, after), Ok(()), "it was seen to end");
    assert!(!ledger.over("r", "t", "dp_rank=2 high", at(600)), "it was over before");
}

#[test]
fn a_clock_that_was_set_back_refills_nothing() {
    assert_eq!(decided(vec![attempt(5000, "a")], at(0)), "cooldown");
    assert_eq!(decided(vec![attempt(90_000, "a")], at(0)), "future_state");
}

#[test]
fn the_budget_counts_what_was_spent_and_what_the_next_is_expected_to_take() {
    let request = CaptureRequest { rule: "x", target: "x", group: "x", ..request("x", 1.0) };
    let ledger = Ledger::from(vec![attempt(0, "a")]);
    let budget = Budget { stalled: Duration::from_secs(5), bytes: 10 << 20, ..Budget::default() };
    let decided = |stalled: u64, bytes: u64| {
        let expected = Estimate { stalled: Duration::from_secs(stalled), bytes: bytes << 20 };
        decide(&request, &ledger, &budget, expected, at(10)).map_err(|r| r.word())
    };
    assert_eq!(decided(4, 9), Ok(()));
    assert_eq!(decided(5, 9), Err("daily_stall"));
    assert_eq!(decided(4, 10), Err("daily_bytes"));
}

#[test]
fn the_estimate_is_the_most_that_the_last_windows_of_that_server_took() {
    let mut ledger = Ledger::from(vec![attempt(0, "a"), attempt(10, "b")]);
    ledger.attempts[0].end.as_mut().unwrap().bytes = 7 << 20;
    assert_eq!(ledger.estimate("t", 4), Estimate { stalled: Duration::from_secs(1), bytes: 7 << 20 });
    assert_eq!(ledger.estimate("unseen", 4), Estimate { stalled: Duration::ZERO, bytes: 4 << 26 });
}

#[test]
fn what_a_rule_has_used_of_its_limits_is_told_until_nothing_of_it_counts() {
    let spent = |attempts: Vec<Attempt>, now| Ledger::from(attempts).spent("r", "t", &LIMITS, now);
    let expected = |windows, until: Option<u64>| Some(LimitUsage { windows, cooldown_until: until.map(at) });
    assert_eq!(spent(vec![], at(0)), None);
    assert_eq!(spent(vec![attempt(0, "a")], at(599)), expected(1, Some(600)));
    assert_eq!(spent(vec![attempt(0, "a")], at(600)), expected(1, None));
    assert_eq!(spent(vec![attempt(1000, "b"), attempt(0, "a")], at(1100)), expected(2, Some(1600)));
    assert_eq!(spent(vec![attempt(0, "a")], at(999_999)), None);
    assert_eq!(Ledger::from(vec![attempt(0, "a")]).spent("other", "t", &LIMITS, at(1)), None);
}

#[test]
fn a_clock_that_is_set_neither_refills_nor_draws_out_a_limit() {
    const HOUR: i64 = 3_600_000_000_000;
    let told = |begun: u64, jump: ClockJump| {
        let mut ledger = Ledger::from(vec![attempt(begun, "a")]);
        ledger.clock_was_set(jump);
        let now = Time::from_nanos(jump.before.nanos() + jump.by_ns);
        decide(&request("new", 1.2), &ledger, &Budget::default(), Estimate::default(), now)
            .map_or_else(|r| r.word().to_owned(), |()| "ok".into())
    };
    let jump = |before: u64, hours: i64, started: u64| ClockJump {
        before: at(before),
        by_ns: hours * HOUR,
        started: at(started),
    };
    // Ten minutes of cooldown, of which one is over.
    for hours in [-25, -3, 25, 24 * 365] {
        assert_eq!(told(100_000, jump(100_060, hours, 99_000)), "cooldown", "{hours}");
    }
    // All of it is over.
    for hours in [-3, 25] {
        assert_eq!(told(100_000, jump(100_700, hours, 99_000)), "ok", "{hours}");
    }
    // A clock that began in the past and is set right does not move what was stamped right.
    assert_eq!(told(100_000, jump(1000, 28, 900)), "ok");
    // An earlier process may have had the right time when this one's clock is set back.
    assert_eq!(told(10_000, jump(100_060, -25, 99_000)), "cooldown");
}
