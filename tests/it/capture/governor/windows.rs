//! Wishes, windows and a server under one clock that jumps and agents that die: the real governor,
//! the real state and the real machine of a window, against a model of what runs on the servers, with and
//! without the log and the files in which the machine sees what became of a window.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::request;
use proptest::prelude::*;
use skewtrap::act::state::{OpenMethod, State, WindowRow};
use skewtrap_core::capture::Limits;
use skewtrap_core::capture::governor::{
    Attempt, AttemptEnd, Budget, CaptureRequest, Estimate, QUIET, decide,
};
use skewtrap_core::capture::line::ProfileLine;
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::capture::window::{Answer, Event, OrphanedWindow, Output, Visibility, Window};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

const DEADLINE: Duration = Duration::from_secs(5);
/// What a stop may be late by: one that failed is sent again after three seconds.
const GRACE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);
/// A server that is not reached is reached again after this.
const UNREACHED: Duration = Duration::from_secs(20);
/// Without any witness a start that is not answered is known to be one of unknown end after this.
const UNANSWERED: Duration = Duration::from_secs(65);
const LIMITS: Limits = Limits { cooldown: Duration::ZERO, captures: 1000, per: Duration::from_secs(60) };

/// What becomes of a start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    GrantedPlan,
    Fails,
    LostButBegun,
    Lost,
    NeverAnswered,
}

/// What becomes of the first stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stop {
    GrantedPlan,
    FailsOnce,
    LostButStopped,
    /// Its connection is refused, and so is every other until the server is reached again.
    Refused,
}

#[derive(Clone, Debug)]
pub enum Step {
    Pass(u64),
    Jump(i64),
    CaptureRequest {
        target: u8,
        start: Start,
        stop: Stop,
        finishes: bool,
    },
    /// The agent is killed, and comes back so many milliseconds later.
    Restart(u64),
}

/// What the machine of a window sees.
pub fn sees() -> impl Strategy<Value = Visibility> {
    (any::<bool>(), any::<bool>()).prop_map(|(log, files)| Visibility { log, files })
}

pub fn step() -> impl Strategy<Value = Step> {
    let start = prop::sample::select(vec![
        Start::GrantedPlan,
        Start::GrantedPlan,
        Start::Fails,
        Start::LostButBegun,
        Start::Lost,
        Start::NeverAnswered,
    ]);
    let stop =
        prop::sample::select(vec![Stop::GrantedPlan, Stop::FailsOnce, Stop::LostButStopped, Stop::Refused]);
    prop_oneof![
        6 => (100u64..9_000).prop_map(Step::Pass),
        1 => (-90_000i64..90_000).prop_map(Step::Jump),
        8 => (0u8..3, start, stop, any::<bool>())
            .prop_map(|(target, start, stop, finishes)| Step::CaptureRequest { target, start, stop, finishes }),
        2 => (0u64..4_000).prop_map(Step::Restart),
    ]
}

/// One window: the agent's machine, and what really runs.
struct Live {
    machine: Option<Window>,
    request: StartRequest,
    sent_at: Time,
    group: u8,
    start: Start,
    stop: Stop,
    /// Until when the server is not reached.
    unreached: Option<Time>,
    /// When its end was booked without a proof, by the wall clock.
    unproven: Option<Time>,
    /// Since when it runs on the server.
    open: Option<Time>,
    /// How long no agent was there while it ran, or the server was not reached.
    unattended: Duration,
    /// What the log and the folder tell, and when.
    told: Vec<(Time, Event)>,
    /// What only the agent that sent the request hears.
    answers: Vec<(Time, Event)>,
}

impl Live {
    fn begins(&mut self, at: Time, finishes: bool) {
        self.open = Some(at);
        let dir = self.request.marks.dir.clone().expect("it has a folder");
        let line = ProfileLine::Starts { dir, id: None };
        self.say(at + Duration::from_millis(50), &line);
        self.told.push((at + Duration::from_millis(50), Event::File { rank: None, whole: false }));
        if finishes {
            self.told.push((at + Duration::from_millis(800), Event::Tick));
        }
    }

    fn say(&mut self, at: Time, line: &ProfileLine) {
        for dp in 0..2 {
            self.told.push((at, Event::Log { rank: Rank::dp(dp), line: line.clone() }));
        }
    }

    fn ends(&mut self, at: Time) {
        if self.open.take().is_none() {
            return;
        }
        self.say(at + Duration::from_millis(100), &ProfileLine::Stops);
        let dir = self.request.marks.dir.clone().expect("it has a folder");
        self.say(at + Duration::from_millis(300), &ProfileLine::Done { dir });
        for dp in 0..2 {
            let file = Event::File { rank: Some(Rank::dp(dp)), whole: true };
            self.told.push((at + Duration::from_millis(400), file));
        }
    }
}

/// What came of a sequence.
#[derive(Debug, Default)]
pub struct ArrivalSpan {
    pub granted: usize,
    pub most_open: usize,
    /// Ends without a proof.
    pub unproven: usize,
}

struct Play {
    sees: Visibility,
    dir: tempfile::TempDir,
    state: Option<State>,
    /// Nobody sets this clock.
    now: Time,
    /// By how much the wall clock differs from it, in seconds.
    set_by: i64,
    live: BTreeMap<String, Live>,
    came: ArrivalSpan,
}

pub fn run(steps: &[Step], sees: Visibility) -> Result<ArrivalSpan, TestCaseError> {
    let dir = tempfile::tempdir().expect("a folder");
    let state = Some(State::open(dir.path()).expect("a state"));
    let now = Time::from_epoch_s(1_700_000_000.0);
    let (live, came) = (BTreeMap::new(), ArrivalSpan::default());
    let mut play = Play { sees, dir, state, now, set_by: 0, live, came };
    for step in steps {
        match step {
            Step::Pass(ms) => play.pass(Duration::from_millis(*ms))?,
            Step::Jump(s) => play.set_by += s,
            Step::CaptureRequest { target, start, stop, finishes } => {
                play.request_window(*target, *start, *stop, *finishes)?
            }
            Step::Restart(ms) => play.restart(Duration::from_millis(*ms))?,
        }
    }
    // The longest way to an end: a start that is never answered, and then no proof.
    play.pass(Duration::from_secs(120))?;
    let is_over = |l: &Live| l.machine.is_none() && (l.open.is_none() || l.unproven.is_some());
    prop_assert!(play.live.values().all(is_over), "it does not end");
    // What is not proven closed keeps its row, with the reason; nothing else does.
    let kept = play.state().open_windows().expect("readable");
    prop_assert!(kept.iter().all(|window| window.unproven.is_some()), "{kept:?}");
    play.came.unproven = play.live.values().filter(|l| l.unproven.is_some()).count();
    Ok(play.came)
}

impl Play {
    fn state(&self) -> &State {
        self.state.as_ref().expect("an agent is there")
    }

    fn wall(&self) -> Time {
        let by = Duration::from_secs(self.set_by.unsigned_abs());
        if self.set_by < 0 { self.now - by } else { self.now + by }
    }

    fn request_window(
        &mut self,
        target: u8,
        start: Start,
        stop: Stop,
        finishes: bool,
    ) -> Result<(), TestCaseError> {
        let ledger = self.state().ledger().expect("readable");
        let (name, group) = (format!("server{target}"), u8::from(target == 2));
        let incident = format!("incident{}", ledger.attempts.len());
        let group_name = group.to_string();
        let request = CaptureRequest {
            rule: "r",
            limits: &LIMITS,
            target: &name,
            group: &group_name,
            incident: &incident,
            firing: "",
            may_predate_start: false,
            times_bound: 2.0,
        };
        let budget = Budget {
            windows: 1000,
            stalled: Duration::from_secs(1 << 30),
            bytes: u64::MAX,
            ..Budget::default()
        };
        if decide(&request, &ledger, &budget, Estimate::default(), self.wall()).is_err() {
            return Ok(());
        }
        // One that is given up without a proof may be open: it keeps others away for as long as is promised.
        let wall = self.wall();
        for live in self.live.values().filter(|l| l.group == group && l.open.is_some()) {
            let is_released = live.unproven.is_some_and(|at| wall >= at + QUIET);
            prop_assert!(is_released, "granted beside an open window: {:?}", live.request.marks);
        }
        self.came.granted += 1;
        let request = request::of_steps(&incident, vec![Rank::dp(0), Rank::dp(1)], DEADLINE);
        let attempt = Attempt {
            id: incident.clone(),
            rule: "r".into(),
            target: name.clone(),
            group: group_name.clone(),
            incident: incident.clone(),
            firing: String::new(),
            at: self.wall(),
            times_bound: 2.0,
            over_at: None,
            end: None,
        };
        let window = WindowRow {
            attempt: incident.clone(),
            incident: incident.clone(),
            target: name,
            method: OpenMethod::Http(request.clone()),
            sent_at: self.now,
            granted: false,
            instance: None,
            unproven: None,
            stops: None,
            ended: false,
            log_from: None,
            logs_from: Default::default(),
            refused_double: false,
        };
        self.state().begin(&attempt, &window, None).expect("writable");
        let (machine, _) = Window::start(&request, self.sees, self.now);
        let (told, answers) = (Vec::new(), Vec::new());
        let (machine, sent_at, unattended) = (Some(machine), self.now, Duration::ZERO);
        let (open, unreached, unproven) = (None, None, None);
        let mut live = Live {
            machine,
            request,
            sent_at,
            group,
            start,
            stop,
            unreached,
            unproven,
            open,
            unattended,
            told,
            answers,
        };
        if !matches!(start, Start::Fails | Start::Lost) {
            // Where nothing is in sight a window opens only on ranks that have work, and ends by its steps.
            let is_blind = !self.sees.log && !self.sees.files;
            live.begins(self.now, finishes || is_blind);
        }
        let (after, answer) = match start {
            Start::GrantedPlan => (100, Answer::Ok),
            Start::Fails => (100, Answer::Failed { status: 500, body: String::new() }),
            Start::Lost | Start::LostButBegun => (100, Answer::Lost { why: "reset".into() }),
            Start::NeverAnswered => (60_000, Answer::TimedOut),
        };
        live.answers.push((self.now + Duration::from_millis(after), Event::StartAnswered(answer)));
        self.live.insert(incident, live);
        Ok(())
    }

    fn pass(&mut self, lasting: Duration) -> Result<(), TestCaseError> {
        let until = self.now + lasting;
        while self.now < until {
            self.now = self.now + TICK;
            let ids: Vec<String> = self.live.keys().cloned().collect();
            for id in ids {
                self.tick(&id);
            }
            self.check()?;
        }
        Ok(())
    }

    fn tick(&mut self, id: &str) {
        let (now, attended, sees) = (self.now, self.state.is_some(), self.sees);
        let Some(live) = self.live.get_mut(id) else { return };
        let mut due: Vec<Event> = Vec::new();
        for (_, event) in live.told.iter().filter(|(at, _)| *at <= now && *at > now - TICK) {
            due.push(event.clone());
        }
        // Its own steps have run out.
        if due.contains(&Event::Tick) {
            live.ends(now);
        }
        due.retain(|event| is_seen(event, sees));
        if live.unreached.is_some_and(|until| until <= now) {
            live.unreached = None;
            due.push(Event::Answers);
        }
        if (!attended || live.unreached.is_some()) && live.open.is_some() {
            live.unattended += TICK;
        }
        if !attended {
            return;
        }
        let (answered, waits) = std::mem::take(&mut live.answers).into_iter().partition(|(at, _)| *at <= now);
        live.answers = waits;
        let answered: Vec<(Time, Event)> = answered;
        due.extend(answered.into_iter().map(|(_, event)| event));
        due.push(Event::Tick);
        let mut outputs = Vec::new();
        for event in due {
            let is_grant = event == Event::StartAnswered(Answer::Ok);
            let Some(machine) = &mut live.machine else { continue };
            let before = (machine.stops(), machine.has_ended());
            outputs.extend(machine.on(&event, now));
            let after = (machine.stops(), machine.has_ended());
            if (is_grant || before != after)
                && let Some(state) = &self.state
            {
                let windows = state.open_windows().expect("readable");
                if let Some(window) = windows.into_iter().find(|w| w.attempt == id) {
                    let granted = window.granted || is_grant;
                    let ended = window.ended || after.1;
                    let row = WindowRow { granted, stops: after.0, ended, ..window };
                    state.update(&row).expect("writable");
                }
            }
        }
        for output in outputs {
            self.carry_out(id, output);
        }
    }

    fn carry_out(&mut self, id: &str, output: Output) {
        let (now, wall) = (self.now, self.wall());
        let Some(live) = self.live.get_mut(id) else { return };
        match output {
            Output::Start => {}
            Output::Stop { .. } if live.stop == Stop::Refused => {
                live.stop = Stop::GrantedPlan;
                live.unreached = Some(now + UNREACHED);
                live.answers.push((now + TICK, Event::StopAnswered(Answer::ConnectionRefused)));
                live.answers.push((now + TICK * 2, Event::Unreachable));
            }
            Output::Stop { .. } => {
                let answer = match live.stop {
                    Stop::FailsOnce => Answer::Failed { status: 503, body: String::new() },
                    Stop::LostButStopped => Answer::Lost { why: "reset".into() },
                    // A stop of what has ended by itself is a 500.
                    Stop::GrantedPlan if live.open.is_none() => {
                        Answer::Failed { status: 500, body: String::new() }
                    }
                    Stop::GrantedPlan | Stop::Refused => Answer::Ok,
                };
                if live.stop != Stop::FailsOnce {
                    live.ends(now);
                }
                live.stop = Stop::GrantedPlan;
                live.answers.push((now + Duration::from_millis(500), Event::StopAnswered(answer)));
            }
            Output::Finish(ending) => {
                live.machine = None;
                live.unproven = ending.unproven.is_some().then_some(wall);
                let end = AttemptEnd {
                    at: wall,
                    stalled: Duration::ZERO,
                    bytes: 1,
                    unproven: ending.unproven,
                    cost: None,
                    harm: None,
                };
                self.state.as_ref().expect("an agent is there").end(id, &end).expect("writable");
            }
        }
    }

    fn restart(&mut self, down: Duration) -> Result<(), TestCaseError> {
        self.state = None;
        for live in self.live.values_mut() {
            live.machine = None;
            live.answers.clear();
        }
        self.pass(down)?;
        let state = State::open(self.dir.path()).expect("the lock was given back");
        let left = state.open_windows().expect("readable").into_iter().filter(|w| w.unproven.is_none());
        for window in left {
            let live = self.live.get_mut(&window.attempt).expect("it was granted here");
            let before = OrphanedWindow {
                sent_at: live.sent_at,
                granted: window.granted,
                refused_double: window.refused_double,
                stops: window.stops.clone(),
                ended: window.ended,
            };
            let mut machine = Window::resume(&live.request, self.sees, &before, self.now);
            let seen = live.told.iter().filter(|(_, event)| is_seen(event, self.sees));
            for (at, event) in seen.filter(|(at, _)| *at <= self.now) {
                machine.recall(event, *at);
            }
            live.machine = Some(machine);
        }
        self.state = Some(state);
        Ok(())
    }

    /// What may never be, whatever came before.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for group in 0..2 {
            let open = self.live.values().filter(|l| l.group == group && l.open.is_some());
            let open = open.filter(|l| l.unproven.is_none()).count();
            self.came.most_open = self.came.most_open.max(open);
            prop_assert!(open <= 1, "two windows at once");
        }
        for live in self.live.values() {
            let lasting = live.open.map_or(Duration::ZERO, |since| self.now.since(since));
            let attended = lasting.saturating_sub(live.unattended);
            let is_unknown = live.start == Start::NeverAnswered && !self.sees.log && !self.sees.files;
            let most = DEADLINE + GRACE + if is_unknown { UNANSWERED } else { Duration::ZERO };
            let is_in_time = attended <= most || live.unproven.is_some();
            prop_assert!(
                is_in_time,
                "open for {attended:?}, past its deadline plus grace, after a start that is {:?}: {:?}",
                live.start,
                live.machine
            );
        }
        Ok(())
    }
}

/// Whether what is told reaches the machine.
const fn is_seen(event: &Event, sees: Visibility) -> bool {
    match event {
        Event::Log { .. } => sees.log,
        Event::File { .. } => sees.files,
        _ => true,
    }
}
