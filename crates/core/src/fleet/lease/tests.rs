use super::*;

fn at(s: f64) -> Time {
    Time::from_epoch_s(s)
}

fn intent(agent: &str, nonce: &str) -> Intent {
    let (agent, nonce) = (agent.to_owned(), nonce.to_owned());
    Intent {
        host: format!("host-of-{agent}"),
        target: "server".into(),
        attempt: "i/1".into(),
        agent,
        nonce,
        ..Intent::default()
    }
    .lasting(Duration::from_secs(30))
}

fn take(agent: &str, nonce: &str) -> LeaseRequest {
    LeaseRequest::new(intent(agent, nonce), Budget::default(), Estimate::default(), None)
}

/// The store's clock is 100 s ahead, to a second.
const CLOCK: StoreClock = StoreClock { ahead_s: 100.0, error_s: 1.0 };

fn latest(number: u64, state: &LeaseState, stamped_at: f64) -> Answer {
    Answer::Latest(Some(Box::new(Latest { number, state: state.clone(), stamped_at: at(stamped_at) })))
}

fn created(step: &LeaseRequestStep) -> LeaseState {
    match step {
        LeaseRequestStep::Create { state, .. } => state.clone(),
        other => panic!("not created: {other:?}"),
    }
}

fn taken(step: LeaseRequestStep) -> GrantedLease {
    match step {
        LeaseRequestStep::Taken(turn) => *turn,
        other => panic!("not taken: {other:?}"),
    }
}

/// What the lease says while `a` has it.
fn held_by_a() -> LeaseState {
    let mut take = take("a", "a1");
    created(&take.on(Answer::Latest(None), at(0.0)))
}

#[test]
fn the_first_agent_takes_it_and_may_start_for_ten_seconds_from_having_asked() {
    let mut take = take("a", "a1");
    assert_eq!(take.begin(), LeaseRequestStep::Read);
    let state = created(&take.on(Answer::Latest(None), at(5.0)));
    assert_eq!(LeaseState::read(&state.object()), Some(state), "it is read as it is written");
    let turn = taken(take.on(Answer::Created, at(9.0)));
    assert_eq!(turn.fence, 1);
    assert!(turn.is_valid(at(14.9)) && !turn.is_valid(at(15.0)));
}

#[test]
fn another_waits_by_the_stores_clock_whatever_its_own_says() {
    let mut take = take("b", "b1");
    assert_eq!(take.on(latest(1, &held_by_a(), 1_000.0), at(901.0)), LeaseRequestStep::Measure);
    // The store says 1,001 at most, and the window lasts 10 + 60 + 30 + 10 s.
    let LeaseRequestStep::Refused(refusal) = take.on(Answer::Measured(CLOCK), at(901.0)) else {
        panic!("not refused")
    };
    assert_eq!(
        refusal.to_string(),
        "the pool allows one window at a time, and the agent on host-of-a has one on server, which is over in 112 s at the latest"
    );
    assert_eq!(refusal.again_in(), Some(Duration::from_secs(112)));
}

#[test]
fn what_its_agent_never_told_closed_is_left_alone_for_ten_minutes_more_unless_it_is_proven() {
    let asked = |now: f64, proven: bool| {
        let mut take = take("b", "b1");
        take.on(latest(1, &held_by_a(), 1_000.0), at(now));
        let step = take.on(Answer::Measured(CLOCK), at(now));
        assert!(matches!(step, LeaseRequestStep::Prove(_)), "{step:?}");
        take.on(Answer::Proven(if proven { Proof::ServerGone } else { Proof::None }), at(now))
    };
    let LeaseRequestStep::Refused(refusal) = asked(1_014.0, false) else { panic!("not refused") };
    assert_eq!(refusal.reason().word(), "pool_unproven");
    assert!(refusal.to_string().contains("for another 9 min 59 s, unless"), "{refusal}");
    let after_restart = created(&asked(1_014.0, true));
    assert_eq!(after_restart.windows[0].end, ReportedEnd::ServerGone);
    let after_quiet = created(&asked(1_614.0, false));
    assert_eq!((after_quiet.windows[0].fence, after_quiet.windows[0].end), (1, ReportedEnd::Unknown));
    assert_eq!(after_quiet.open.map(|open| open.fence), Some(2));
}

#[test]
fn an_agent_that_comes_back_takes_up_what_it_left_itself_as_soon_as_it_knows() {
    let mut take = take("a", "a2");
    take.on(latest(1, &held_by_a(), 1_000.0), at(901.0));
    assert!(matches!(take.on(Answer::Measured(CLOCK), at(901.0)), LeaseRequestStep::Prove(_)));
    let ended = |end: WindowEnd| created(&take.clone().on(Answer::Proven(Proof::Ended(end)), at(901.0)));
    assert_eq!(ended(WindowEnd::default()).windows, [], "of which nothing was sent");
    let windows = ended(end()).windows;
    let booked: Vec<_> = windows.iter().map(|w| (w.fence, w.at, w.stall_s, w.bytes, w.end)).collect();
    assert_eq!(booked, [(1, at(1_000.0), 0.5, 1_000, ReportedEnd::Closed)], "it counts in the pool's budget");
    let refused = take.on(Answer::Proven(Proof::None), at(901.0));
    assert!(matches!(refused, LeaseRequestStep::Refused(Refusal::PoolWindow { .. })), "{refused:?}");
}

#[test]
fn a_lost_answer_is_looked_up_and_counts_from_the_first_request() {
    let mut take = take("a", "a1");
    let state = created(&take.on(Answer::Latest(None), at(0.0)));
    assert_eq!(take.on(Answer::Lost("no answer".into()), at(4.0)), LeaseRequestStep::Read);
    let turn = taken(take.on(latest(1, &state, 100.0), at(5.0)));
    assert_eq!((turn.fence, turn.asked_at), (1, at(0.0)));
    let mut take = super::tests::take("a", "a1");
    let state = created(&take.on(Answer::Latest(None), at(0.0)));
    take.on(Answer::Lost("no answer".into()), at(4.0));
    take.on(Answer::Latest(None), at(5.0));
    assert_eq!(take.on(Answer::Exists, at(6.0)), LeaseRequestStep::Read);
    assert_eq!(taken(take.on(latest(1, &state, 100.0), at(7.0))).asked_at, at(0.0));
}

#[test]
fn a_store_that_says_nothing_opens_no_window() {
    let mut take = take("a", "a1");
    let LeaseRequestStep::Refused(refusal) = take.on(Answer::Lost("connection refused".into()), at(0.0))
    else {
        panic!("not refused")
    };
    assert_eq!(
        refusal.to_string(),
        "whether another agent of the pool has a window open cannot be told: connection refused; none is opened until it can (`on_lease_loss: local_budget` would open them all the same)"
    );
    assert!(!take.may_have_it());
}

fn end() -> WindowEnd {
    WindowEnd { was_sent: true, stall_s: 0.5, bytes: 1_000, unproven: None }
}

fn given_back(intent: Intent, end: WindowEnd, found: Answer) -> (LeaseReturn, GiveBackStep) {
    let mut back = LeaseReturn::new(intent, end);
    let step = back.on(found);
    (back, step)
}

#[test]
fn what_a_window_cost_is_booked_for_the_pool_and_its_budget_holds_for_all() {
    let (mut back, step) = given_back(intent("a", "a1"), end(), latest(1, &held_by_a(), 1_000.0));
    let GiveBackStep::Create { number: 2, state } = step else { panic!("{step:?}") };
    assert_eq!(back.on(Answer::Created), GiveBackStep::Done { overtaken: false });
    assert_eq!(state.open, None);
    let booked = &state.windows[0];
    assert_eq!(
        (booked.at, booked.stall_s, booked.bytes, booked.end),
        (at(1_000.0), 0.5, 1_000, ReportedEnd::Closed)
    );
    // The answer was lost: it is not booked twice.
    assert_eq!(back.on(Answer::Lost("no answer".into())), GiveBackStep::Again("no answer".into()));
    assert_eq!(back.on(latest(2, &state, 1_001.0)), GiveBackStep::Done { overtaken: false });
    let budgets = [
        Budget { windows: 1, ..Budget::default() },
        Budget { stalled: Duration::from_secs(1), ..Budget::default() },
        Budget { bytes: 1_500, ..Budget::default() },
    ];
    let said = [
        "in the whole pool 1 windows were tried in the last 24 h, which is the budget; the next is free in 24 h (budget.windows)",
        "in the whole pool captures stalled serving for 0.5 s in the last 24 h and the next is expected to take 0.6 s, over the budget of 1 s (budget.stalled)",
        "in the whole pool captures wrote 1000 B in the last 24 h and the next is expected to take 600 B, over the budget of 1.46 KiB (budget.bytes)",
    ];
    for (budget, said) in budgets.into_iter().zip(said) {
        let expected = Estimate { stalled: Duration::from_millis(600), bytes: 600 };
        let mut take = LeaseRequest::new(intent("b", "b1"), budget, expected, Some(CLOCK));
        let LeaseRequestStep::Refused(refusal) = take.on(latest(2, &state, 1_001.0), at(910.0)) else {
            panic!("not refused: {said}")
        };
        assert_eq!((refusal.to_string(), refusal.reason().word()), (said.to_owned(), "pool_budget"));
        // A day later it is free again.
        let mut take = LeaseRequest::new(
            intent("b", "b2"),
            Budget { windows: 1, ..Budget::default() },
            expected,
            Some(CLOCK),
        );
        created(&take.on(latest(2, &state, 1_001.0), at(900.0 + 86_402.0)));
    }
}

#[test]
fn a_start_that_was_not_sent_costs_the_pool_nothing() {
    let end = WindowEnd::default();
    let (_, step) = given_back(intent("a", "a1"), end, latest(1, &held_by_a(), 1_000.0));
    let GiveBackStep::Create { state, .. } = step else { panic!("{step:?}") };
    assert_eq!(*state, LeaseState::default());
}

#[test]
fn an_unproven_end_keeps_the_pool_closed_until_it_is_told_closed() {
    let unproven = WindowEnd { unproven: Some("DP1 did not stop".into()), ..end() };
    let (mut back, step) = given_back(intent("a", "a1"), unproven, latest(1, &held_by_a(), 1_000.0));
    let GiveBackStep::Create { state, .. } = step else { panic!("{step:?}") };
    assert_eq!(back.on(latest(2, &state, 1_010.0)), GiveBackStep::Done { overtaken: false }, "told once");
    let mut take = take("b", "b1");
    take.on(latest(2, &state, 1_010.0), at(915.0));
    take.on(Answer::Measured(CLOCK), at(915.0));
    let step = take.on(Answer::Proven(Proof::None), at(915.0));
    assert!(matches!(step, LeaseRequestStep::Refused(Refusal::PoolUnproven { .. })), "{step:?}");
    let (_, step) = given_back(intent("a", "a1"), end(), latest(2, &state, 1_010.0));
    let GiveBackStep::Create { number: 3, state } = step else { panic!("{step:?}") };
    assert_eq!((state.open, state.windows.len()), (None, 1));
}

#[test]
fn a_window_that_ends_when_another_agent_has_taken_over_is_told() {
    let mut take = take("b", "b1");
    take.on(latest(1, &held_by_a(), 1_000.0), at(1_614.0));
    take.on(Answer::Measured(CLOCK), at(1_614.0));
    let state = created(&take.on(Answer::Proven(Proof::None), at(1_614.0)));
    let turn = taken(take.on(Answer::Created, at(1_614.1)));
    assert_eq!(turn.after_unproven.map(|open| open.host).as_deref(), Some("host-of-a"));
    let (mut back, step) = given_back(intent("a", "a1"), end(), latest(2, &state, 1_714.0));
    let GiveBackStep::Create { number: 3, state } = step else { panic!("{step:?}") };
    assert_eq!(state.open.as_ref().map(|open| open.fence), Some(2), "the other keeps the lease");
    assert_eq!(state.windows[0].end, ReportedEnd::Closed);
    assert_eq!(back.on(Answer::Created), GiveBackStep::Done { overtaken: true });
    let (mut back, step) = given_back(intent("a", "a1"), WindowEnd::default(), latest(2, &state, 1_714.0));
    let unsent = match step {
        GiveBackStep::Create { .. } => back.on(Answer::Created),
        other => other,
    };
    assert_eq!(unsent, GiveBackStep::Done { overtaken: false }, "nothing was sent");
}

#[test]
fn a_clock_that_is_far_from_the_stores_is_told() {
    let measured =
        |stamp: f64| StoreClock::measured(at(1_000.0), at(1_000.4), at(stamp), Duration::from_secs(1));
    let near = measured(1_001.0);
    assert!((near.ahead_s - 1.3).abs() < 1e-6 && (near.error_s - 0.7).abs() < 1e-6, "{near:?}");
    assert_eq!(near.complaint(), None);
    let told = measured(400.0).complaint().expect("ten minutes");
    assert!(told.starts_with("the clock of this host is 600 s ahead of that of the store"), "{told}");
    let told = measured(1_600.0).complaint().expect("ten minutes");
    assert!(told.starts_with("the clock of this host is 600 s behind that of the store"), "{told}");
}

#[test]
fn an_object_of_a_later_version_is_not_guessed_at() {
    assert_eq!(LeaseState::read(br#"{"lease":2,"open":null,"windows":[]}"#), None);
    assert_eq!(lease_number(&lease_object("prod", 7)), Some(7));
    assert_eq!(lease_number("prod/lease/x.json"), None);
}
