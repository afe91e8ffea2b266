//! Whatever answers, lines and files come.

use proptest::prelude::*;

use super::*;

fn any_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        3 => Just(Answer::Ok),
        1 => Just(Answer::TimedOut),
        1 => Just(Answer::ConnectionRefused),
        1 => Just(Answer::NotSent { why: "no route".into() }),
        1 => Just(Answer::Lost { why: "reset".into() }),
        1 => Just(Answer::ErrorInBody { body: r#"{"status":"error"}"#.into() }),
        3 => prop::sample::select(vec![302, 401, 404, 408, 409, 500, 503, 504]).prop_map(status),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Tick),
        2 => any_answer().prop_map(Event::StartAnswered),
        2 => any_answer().prop_map(Event::StopAnswered),
        2 => (0u16..3).prop_map(begins),
        1 => (0u16..3).prop_map(|dp| starts(dp, "/p/theirs")),
        2 => (0u16..3).prop_map(stops),
        2 => (0u16..3).prop_map(done),
        1 => (0u16..3, any::<bool>()).prop_map(|(dp, whole)| Event::File { rank: Some(Rank::dp(dp)), whole }),
        1 => Just(Event::Cleared),
        1 => Just(Event::Close),
        1 => Just(Event::Cancel),
        2 => Just(Event::Answers),
        1 => Just(Event::Unreachable),
        1 => Just(Event::Dying("SIGQUIT received.".into())),
        1 => Just(Event::StopLeaves),
        1 => Just(Event::StopWithheld),
        1 => Just(Event::Gone("its random seed changed".into())),
        1 => Just(Event::OtherRanks),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_it_stops_only_its_own_window_a_bounded_number_of_times_and_ends(
        script in prop::collection::vec((any_event(), 0u64..4000), 0..60),
        (form, engine) in prop::sample::select(vec![
            (StartMode::Exact, ServerKind::Sglang),
            (StartMode::Plain, ServerKind::Sglang),
            (StartMode::Held, ServerKind::Vllm),
            (StartMode::Plain, ServerKind::TensorrtLlm),
            (StartMode::Exact, ServerKind::DynamoSglang),
            (StartMode::Held, ServerKind::DynamoVllm),
        ]),
        log in any::<bool>(), files in any::<bool>(),
    ) {
        let log = log && engine.tells_in_its_log();
        let request = StartRequest { engine, ..request(form, &[0, 1], &[2]) };
        let (mut window, _) = Window::start(&request, Visibility { log, files }, at(0.0));
        let (mut now, mut stops_sent, mut finished) = (at(0.0), 0, 0);
        let (mut answered, mut granted, mut proof) = (false, false, false);
        // A double is refused with 500 by the exact form: then what is open there may be anybody's.
        let (mut refused, mut double, mut theirs_ever) = (false, false, false);
        let (mut in_flight, mut reachable, mut undone) = (false, true, 0);
        let (mut closed_by, mut dying, mut stop_granted, mut ever_stopped) = (None, false, false, false);
        let (mut recording, mut shown) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        let is_blind = !log && !files;
        let mut closed = std::collections::BTreeSet::new();
        let mut theirs = std::collections::BTreeSet::new();
        let ticks = std::iter::repeat_n((Event::Tick, 1000), 1400);
        // A server that is not reached is waited for until the next day.
        let ticks = ticks.chain([(Event::Tick, 90_000_000), (Event::Tick, 1_000_000)]);
        for (event, pause) in script.into_iter().chain(ticks) {
            now = now + Duration::from_millis(pause);
            // The world as this test sees it, kept apart from the machine's books.
            match &event {
                Event::StartAnswered(answer) if !answered => {
                    answered = true;
                    granted |= *answer == Answer::Ok;
                    double = form == StartMode::Exact && *answer == status(500);
                    double |= matches!(answer, Answer::ErrorInBody { .. }) && !engine.runs_vllm();
                    refused |= double;
                    refused |= matches!(answer, Answer::Refused { .. });
                }
                // Nothing was sent.
                Event::StopAnswered(Answer::ConnectionRefused | Answer::NotSent { .. }) if in_flight => {
                    (stops_sent, in_flight, reachable) = (stops_sent - 1, false, false);
                }
                Event::StopAnswered(answer) if in_flight => {
                    in_flight = false;
                    stop_granted |= *answer == Answer::Ok;
                    // Whoever answered so did nothing; a proxy may say 408 of what it has passed on.
                    undone += u8::from(matches!(answer, Answer::Refused { status, .. } if *status != 408));
                }
                Event::StopWithheld if in_flight => (stops_sent, in_flight) = (stops_sent - 1, false),
                Event::Answers => reachable = true,
                Event::Unreachable => reachable = false,
                Event::Gone(_) => closed_by = Some("another instance"),
                Event::Dying(_) => dying = true,
                Event::Log { rank, line: ProfileLine::Starts { dir, .. } } if dir == "/p/theirs" => {
                    theirs_ever = true;
                    theirs.insert(*rank);
                }
                Event::Log { rank, line: ProfileLine::Starts { .. } } => {
                    proof = true;
                    // A line that comes late is of the window whose file is there already.
                    if !shown.contains(rank) {
                        recording.insert(*rank);
                    }
                    // A rank has one profiler.
                    theirs.remove(rank);
                }
                Event::File { rank, .. } => {
                    proof = true;
                    shown.extend(*rank);
                }
                Event::Log { rank, line: ProfileLine::Stops } => { theirs.remove(rank); }
                _ => {}
            }
            match &event {
                Event::Log { rank, line: ProfileLine::Stops | ProfileLine::Done { .. } }
                | Event::File { rank: Some(rank), whole: true } => {
                    closed.insert(*rank);
                    recording.remove(rank);
                }
                _ if dying && !reachable => closed_by = Some("its log and nobody listening"),
                _ => {}
            }
            for output in window.on(&event, now) {
                match output {
                    Output::Start => prop_assert!(false, "a second start"),
                    Output::Stop { .. } => {
                        stops_sent += 1;
                        ever_stopped = true;
                        let ends_by_steps = form == StartMode::Exact || engine == ServerKind::TensorrtLlm;
                        prop_assert!(!is_blind || !ends_by_steps, "a stop where nothing shows who profiles");
                        in_flight = true;
                        prop_assert!(reachable, "a stop that cannot be sent");
                        // Where no log can show whose it is, a start of unknown end counts as ours, unless
                        // anything speaks for somebody else's.
                        let on_chance = !log && !refused && !theirs_ever;
                        prop_assert!(granted || proof || on_chance, "a stop of what may not be ours");
                        prop_assert!(granted || log || !double, "a stop where a rank may have refused the start");
                        prop_assert!(theirs.is_empty(), "a stop while somebody else profiles");
                        let most = if form == StartMode::Held { MAX_STOPS.min(1 + undone) } else { MAX_STOPS };
                        prop_assert!(stops_sent <= most);
                    }
                    Output::Finish(ending) => {
                        finished += 1;
                        // The first rank's reply decides what a stop is answered: the log knows better. And
                        // anybody can write into a log: where files are in sight they must be there too.
                        let by_stop = stop_granted && (!log || recording.is_empty());
                        let by_lines = closed.len() == 3 && (!files || ever_stopped || shown.len() == 3);
                        let is_closed = closed_by.is_some() || by_stop || by_lines;
                        prop_assert!(
                            !granted || is_closed || ending.unproven.is_some(),
                            "a window that may be open is given up as closed: {:?}", ending
                        );
                    }
                }
            }
            prop_assert!(finished == 0 || window.phase() == WindowPhase::Ended);
        }
        prop_assert_eq!(finished, 1, "it ends, once: {:?}", window);
    }
}
