//! The world of one run: a server (the double), the network to it, the machine of the agent, and the
//! people who do things there. All of it is one state behind one lock, driven on paused time by one task;
//! the same seed gives the same run.

use std::collections::{BTreeMap, VecDeque};
use std::fs::OpenOptions;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::scenario::{Kind, RequestOutcome, Scenario};
use crate::act::state::{OpenMethod, WindowRow};
use crate::demo::exchange::{CallId, Effect, Outcome, Request};
use crate::demo::load::LoadTrack;
use crate::demo::sglang::{Config, ExportCost, Version, World as Sglang};
use crate::http::exchange::Unanswered;
use crate::http::exchange::stand_in::{Carried, Network};
use crate::world::stand_in::{Machine, Until};
use skewtrap_core::capture::governor::{Attempt, QUIET};
use skewtrap_trace::time::Time;

/// A request travels for at most so long, unless a fault says otherwise.
const LATENCY_MS: u64 = 8;
/// Between two checks of what must hold while a window is open.
const CHECK: Duration = Duration::from_millis(500);
/// Between two polls of the agent.
const POLL: Duration = Duration::from_secs(1);
/// What the agent cannot have heard of yet when it sends a stop.
const UNHEARD: Duration = Duration::from_secs(3);

/// Whoever finds their profile not begun looks again so many times, and so long later.
const LOOKS: u32 = 5;
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Within this time after a start was accepted the agent asks which instance it was.
const IDENTIFIED: Duration = Duration::from_secs(2);
/// From a grant to its start at most.
const START_WITHIN: Duration = Duration::from_secs(11);

type Reply = oneshot::Sender<Result<(u16, Vec<u8>), Unanswered>>;

/// A request on its way.
struct InFlightRequest {
    request: Request,
    sent: Time,
    outcome: Option<RequestOutcome>,
    reply: Reply,
}

/// What is to happen at a time.
#[derive(Debug)]
enum Event {
    Begins(usize),
    Ends(usize),
    Load,
    /// Whoever runs the server starts it again.
    ComesBack,
    /// Somebody closes the profile that they started, or looks so many times more whether it has begun.
    TheyClose(u32),
}

struct State {
    scenario: Scenario,
    dir: PathBuf,
    dice: Rng,
    server: Sglang,
    begin: Time,
    /// What the true time was when the present runtime began, and its clock then.
    anchor: Option<(Time, Instant)>,
    /// The true time while no runtime runs.
    stopped_at: Time,
    events: BTreeMap<(Time, usize), Event>,
    flights: BTreeMap<(Time, usize), InFlightRequest>,
    calls: BTreeMap<CallId, (Option<RequestOutcome>, Reply)>,
    number: usize,
    active: Vec<usize>,
    wall_offset: f64,
    late_lines: VecDeque<String>,
    skewed: bool,
    /// The agent's steps with disk and network, and the one in which it dies.
    steps: u64,
    dies_at: Option<u64>,
    is_dead: bool,
    wants_end: bool,
    down_until: Option<Time>,
    checked_at: Time,
    /// When the last window was granted.
    granted_at: Time,
    /// When the last start was sent of whose answer the agent, or the one after it, knows.
    answered: Option<Time>,
    violations: Vec<String>,
    /// Stops of somebody else's profile that the agent could not know of.
    unseen_stops: u64,
    /// Since when the server is down; and whether it was back within less than one poll, and nobody has asked
    /// since what it is: the agent cannot know of that.
    down_at: Option<Time>,
    is_unseen: bool,
    /// Folders of windows that were started then, as on the instance before; and when the agent heard that the
    /// start was accepted.
    outdated: BTreeMap<String, Option<Time>>,
    /// Of everything that was said: two runs of a seed have the same.
    digest: DefaultHasher,
    said: bool,
}

/// The world; clones share it.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
    death: Arc<Notify>,
    mends: Arc<Notify>,
}

/// The load of the two ranks.
const EVEN: [(u32, u32); 4] = [(300, 0); 4];
const SKEWED: [(u32, u32); 4] = [(400, 0), (100, 0), (100, 0), (100, 0)];
const IDLE: [(u32, u32); 4] = [(400, 0), (0, 0), (100, 0), (100, 0)];

impl World {
    pub fn new(scenario: Scenario, dir: PathBuf) -> Self {
        let begin = Time::from_epoch_s(1_795_492_100.0);
        let config = Config {
            health_takes: Duration::from_millis(50),
            decode_log_interval: 8,
            export: ExportCost { per_step: Duration::from_millis(1), ..ExportCost::default() },
            ..Config::new(Version::V0_5_16, 2, LoadTrack::constant(begin, &EVEN[..2]))
        };
        let mut state = State {
            dice: Rng::with_seed(scenario.seed ^ 0x5eed),
            server: Sglang::new(config, begin),
            begin,
            anchor: None,
            stopped_at: begin,
            events: BTreeMap::new(),
            flights: BTreeMap::new(),
            calls: BTreeMap::new(),
            number: 0,
            active: Vec::new(),
            wall_offset: 0.0,
            late_lines: VecDeque::new(),
            skewed: false,
            steps: 0,
            dies_at: None,
            is_dead: false,
            wants_end: false,
            down_until: None,
            checked_at: begin,
            granted_at: begin,
            answered: None,
            violations: Vec::new(),
            digest: DefaultHasher::new(),
            unseen_stops: 0,
            down_at: None,
            is_unseen: false,
            outdated: BTreeMap::new(),
            said: std::env::var_os("SKEWTRAP_SEED").is_some(),
            dir,
            scenario,
        };
        for (i, fault) in state.scenario.faults.clone().into_iter().enumerate() {
            state.plan(begin + fault.at, Event::Begins(i));
            state.plan(begin + fault.at + fault.lasts, Event::Ends(i));
        }
        state.plan(begin + Duration::from_secs(8), Event::Load);
        let world = Self {
            state: Arc::new(Mutex::new(state)),
            news: Arc::default(),
            death: Arc::default(),
            mends: Arc::default(),
        };
        world.advance();
        world
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        crate::world::lock(&self.state)
    }

    /// A runtime begins: its paused clock is the world's from here on.
    pub fn enter(&self) {
        let mut state = self.lock();
        state.anchor = Some((state.stopped_at, Instant::now()));
        (state.is_dead, state.wants_end, state.dies_at) = (false, false, None);
    }

    /// It ends, and with it whatever of the agent ran in it.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.stopped_at = state.now();
        state.anchor = None;
    }

    /// How long the world has run.
    pub fn elapsed(&self) -> Duration {
        let state = self.lock();
        state.now().since(state.begin)
    }

    pub fn now(&self) -> Time {
        self.lock().now()
    }

    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub fn granted(&self) {
        let mut state = self.lock();
        state.granted_at = state.now();
    }

    pub fn unseen_stops(&self) -> u64 {
        self.lock().unseen_stops
    }

    /// Windows that were started as on an instance before, which nothing had shown to be gone.
    pub fn outdated(&self) -> u64 {
        self.lock().outdated.len() as u64
    }

    pub fn violated(&self, what: String) {
        self.lock().violated(what);
    }

    pub fn say(&self, what: &str) {
        self.lock().say(what);
    }

    /// Windows of the agent that the server has open.
    pub fn open(&self) -> Vec<String> {
        self.lock().ours()
    }

    pub fn rows(&self) -> Vec<WindowRow> {
        self.lock().rows()
    }

    /// What happened, as one number.
    pub fn digest(&self) -> u64 {
        self.lock().digest.finish()
    }

    /// Whether the agent is to stay down for now.
    pub fn is_down(&self) -> bool {
        let state = self.lock();
        state.down_until.is_some_and(|until| state.now() < until)
    }

    /// Until the agent is killed.
    pub async fn dies(&self) {
        loop {
            let death = self.death.notified();
            if self.lock().is_dead {
                return;
            }
            death.await;
        }
    }

    /// Until somebody tells the agent to end.
    pub async fn told_to_end(&self) {
        loop {
            let news = self.death.notified();
            if self.lock().wants_end {
                return;
            }
            news.await;
        }
    }

    /// Drives the world as long as its runtime lives.
    pub async fn drive(self) {
        loop {
            let news = self.news.notified();
            let pause = {
                let state = self.lock();
                let now = state.now();
                state.next().map_or(Duration::from_secs(60), |at| at.since(now))
            };
            tokio::select! {
                biased;
                () = news => {}
                () = tokio::time::sleep(pause) => {}
            }
            self.advance();
        }
    }

    /// Everything that is due.
    fn advance(&self) {
        let mut state = self.lock();
        let now = state.now();
        while let Some(at) = state.next().filter(|at| *at <= now) {
            let effects = state.server.advance(at);
            state.take(effects);
            let due = |(at, _): &(Time, usize)| *at <= now;
            if let Some(key) = state.events.keys().next().copied().filter(due) {
                let event = state.events.remove(&key).expect("it is there");
                state.happens(event);
            }
            if let Some(key) = state.flights.keys().next().copied().filter(due) {
                let flight = state.flights.remove(&key).expect("it is there");
                state.arrives(flight);
            }
            state.check_now_and_then();
        }
        drop(state);
        self.death.notify_waiters();
        self.mends.notify_waiters();
    }

    /// The agent does something with disk or network; it may die in it.
    async fn step(&self) {
        {
            let mut state = self.lock();
            state.steps += 1;
            if state.dies_at.is_some_and(|at| state.steps >= at) {
                state.dies_at = None;
                state.dies("killed at a step");
            }
            if !state.is_dead {
                return;
            }
        }
        self.death.notify_waiters();
        std::future::pending::<()>().await;
    }

    async fn disk_is_ready(&self) {
        self.step().await;
        let takes = Duration::from_millis(self.lock().dice.u64(..4));
        tokio::time::sleep(takes).await;
        loop {
            let mended = self.mends.notified();
            if !self.lock().is(|kind| *kind == Kind::DiskStalls) {
                return;
            }
            mended.await;
        }
    }

    async fn sent(&self, request: Request) -> Result<reqwest::Response, Unanswered> {
        self.step().await;
        let is_start = request.path == "/start_profile";
        let start_at = is_start.then(|| self.now());
        let reply = {
            let mut state = self.lock();
            if is_start {
                state.start_leaves();
            }
            let outcome = state.outcome_of(&request.path);
            let there = state.dice.u64(1..LATENCY_MS);
            match outcome {
                Some(RequestOutcome::Refused) => {
                    return Err(Unanswered::Refused { why: "Connection refused".into() });
                }
                Some(RequestOutcome::Dropped) => None,
                _ => {
                    let more = if let Some(RequestOutcome::Late(ms)) = outcome { ms } else { 0 };
                    let (reply, answered) = oneshot::channel();
                    let sent = state.now();
                    let at = sent + Duration::from_millis(there + more);
                    let key = (at, state.next_number());
                    state.flights.insert(key, InFlightRequest { request, sent, outcome, reply });
                    Some(answered)
                }
            }
        };
        self.news.notify_one();
        let Some(reply) = reply else { return std::future::pending().await };
        // The world has given the request up only when the server never answers.
        let Ok(answer) = reply.await else { return std::future::pending().await };
        let back = self.lock().dice.u64(1..LATENCY_MS);
        tokio::time::sleep(Duration::from_millis(back)).await;
        self.step().await;
        let (status, body) = answer?;
        if let Some(at) = start_at {
            self.lock().answered = Some(at);
        }
        let answer = axum::http::Response::builder().status(status).body(body);
        Ok(answer.expect("a status and a body are an answer").into())
    }
}

impl State {
    fn now(&self) -> Time {
        self.anchor.map_or(self.stopped_at, |(at, since)| at + since.elapsed())
    }

    fn next_number(&mut self) -> usize {
        self.number += 1;
        self.number
    }

    fn plan(&mut self, at: Time, event: Event) {
        let key = (at, self.next_number());
        self.events.insert(key, event);
    }

    fn next(&self) -> Option<Time> {
        let events = self.events.keys().next().map(|(at, _)| *at);
        let flights = self.flights.keys().next().map(|(at, _)| *at);
        [events, flights, self.server.next_event()].into_iter().flatten().min()
    }

    fn is(&self, wanted: impl Fn(&Kind) -> bool) -> bool {
        self.active.iter().any(|i| wanted(&self.scenario.faults[*i].kind))
    }

    fn outcome_of(&mut self, path: &str) -> Option<RequestOutcome> {
        for i in self.active.clone() {
            if let Kind::Network { of, outcome, odds } = self.scenario.faults[i].kind
                && of.has(path)
                && self.dice.u8(..100) < odds
            {
                self.say(&format!("{path}: {outcome:?}"));
                return Some(outcome);
            }
        }
        None
    }

    fn say(&mut self, what: &str) {
        let at = self.now().since(self.begin);
        // The name of the folder is another one each time.
        let what = what.replace(&*self.dir.to_string_lossy(), "DIR");
        (at, &what).hash(&mut self.digest);
        if self.said {
            eprintln!("{:9.3} {what}", at.as_secs_f64());
        }
    }

    fn violated(&mut self, what: String) {
        if self.violations.iter().any(|told| told.ends_with(&what)) {
            return;
        }
        let what = format!("at {:.3} s: {what}", self.now().since(self.begin).as_secs_f64());
        self.say(&format!("VIOLATED {what}"));
        self.violations.push(what);
    }

    fn dies(&mut self, why: &str) {
        self.say(&format!("the agent is {why}"));
        self.is_dead = true;
        // What it has heard and not written dies with it.
        if !self.rows().iter().any(|row| row.granted || row.refused_double) {
            self.answered = None;
        }
        let pause = Duration::from_millis(self.dice.u64(300..4_000));
        let until = self.now() + pause;
        self.down_until = Some(self.down_until.map_or(until, |at| at.max(until)));
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Load => {
                self.skewed = !self.skewed;
                let load = match (self.skewed, self.scenario.idles && self.dice.bool()) {
                    (false, _) => EVEN,
                    (true, false) => SKEWED,
                    (true, true) => IDLE,
                };
                let ranks = usize::from(self.server.config().dp);
                self.server.set_load(&load[..ranks]);
                let lasts = self.dice.u64(8_000..20_000);
                let at = self.now() + Duration::from_millis(lasts);
                self.plan(at, Event::Load);
            }
            // One that is killed by a fault comes back with its end.
            Event::ComesBack if self.is(|kind| matches!(kind, Kind::ServerDies { .. })) => {}
            Event::ComesBack => self.comes_back(),
            Event::TheyClose(looks) => self.they_close(looks),
            Event::Begins(i) => {
                let fault = self.scenario.faults[i].clone();
                self.say(&format!("BEGINS {:?} for {:.1} s", fault.kind, fault.lasts.as_secs_f64()));
                self.active.push(i);
                self.begins(&fault.kind, fault.lasts);
            }
            Event::Ends(i) => {
                self.active.retain(|j| *j != i);
                let kind = self.scenario.faults[i].kind.clone();
                self.say(&format!("ENDS {kind:?}"));
                self.ends(&kind);
            }
        }
    }

    fn begins(&mut self, kind: &Kind, lasts: Duration) {
        let now = self.now();
        match kind {
            Kind::Clock(by) => self.wall_offset += by,
            Kind::ServerDies { .. } => {
                let effects = self.server.kill(now, "killed");
                self.down_at = Some(now);
                self.take(effects);
            }
            Kind::SlowExport => self.server.faults_mut().slow_export = Duration::from_secs(4),
            Kind::ServerDiskFull => self.server.faults_mut().disk_full = true,
            Kind::FileMissing => self.server.faults_mut().missing = vec![0],
            Kind::Operator => {
                self.operator(
                    "/start_profile",
                    r#"{"output_dir":"/theirs","activities":["GPU"],"with_stack":false}"#,
                );
            }
            Kind::Killed => {
                self.down_until = Some(now + lasts);
                self.dies("killed");
            }
            Kind::KilledAtStep(step) => self.dies_at = Some(self.steps + u64::from(*step)),
            Kind::Ended => self.wants_end = true,
            Kind::Network { .. } | Kind::DiskStalls | Kind::DiskFails | Kind::LogLate => {}
        }
    }

    fn ends(&mut self, kind: &Kind) {
        let now = self.now();
        match kind {
            // One that another death's end has started again already lives on: no server is back at once.
            Kind::ServerDies { ranks } if !self.server.is_up() => {
                self.is_unseen |= self.down_at.is_some_and(|at| now.since(at) < POLL);
                let effects = self.server.restart_with(now, *ranks);
                self.take(effects);
            }
            Kind::SlowExport => self.server.faults_mut().slow_export = Duration::ZERO,
            Kind::ServerDiskFull => self.server.faults_mut().disk_full = false,
            Kind::FileMissing => self.server.faults_mut().missing.clear(),
            Kind::Operator => self.they_close(LOOKS),
            Kind::LogLate if !self.is(|kind| *kind == Kind::LogLate) => {
                let late = std::mem::take(&mut self.late_lines);
                self.write_log(late.into_iter().collect::<String>().as_bytes());
            }
            _ => {}
        }
    }

    fn comes_back(&mut self) {
        if !self.server.is_up() {
            let now = self.now();
            let effects = self.server.restart(now);
            self.take(effects);
        }
    }

    /// They look before they close: what runs by then may be the agent's, and theirs begins only when a
    /// rank has written what it recorded before.
    fn they_close(&mut self, looks: u32) {
        let orders = self.server.open_orders();
        if orders.iter().any(|(_, _, order)| is_theirs(order.output_dir.as_deref())) {
            self.operator("/stop_profile", "");
        } else if looks > 0 {
            let at = self.now() + LOOK_AGAIN;
            self.plan(at, Event::TheyClose(looks - 1));
        }
    }

    /// Somebody on the server's own machine.
    fn operator(&mut self, path: &str, body: &str) {
        if self.server.is_up() {
            self.say(&format!("somebody posts {path}"));
            let now = self.now();
            let (_, effects) = self.server.request(now, &Request::post(path, body));
            self.take(effects);
        }
    }

    fn arrives(&mut self, flight: InFlightRequest) {
        let InFlightRequest { request, sent, outcome, reply } = flight;
        let lost = |why: &str| Err(Unanswered::Lost { why: why.into() });
        let answer = match outcome {
            Some(RequestOutcome::BrokenBefore) => Some(lost("connection reset by peer")),
            Some(RequestOutcome::Proxy(status)) => Some(Ok((status, b"an error of the proxy".to_vec()))),
            _ if !self.server.is_up() => Some(Err(Unanswered::Refused { why: "Connection refused".into() })),
            _ => None,
        };
        if let Some(answer) = answer {
            // An agent that is dead does not hear it.
            let _ = reply.send(answer);
            return;
        }
        match request.path.as_str() {
            "/start_profile" => self.start_arrives(&request, outcome.is_none()),
            "/stop_profile" => self.stop_arrives(sent),
            path if path.ends_with("server_info") => {
                self.is_unseen = false;
                // An agent that hears this just after it heard that the start was accepted knows on which
                // instance its window is.
                if outcome.is_none() {
                    let now = self.now();
                    self.outdated.retain(|_, heard| heard.is_none_or(|at| now.since(at) > IDENTIFIED));
                }
            }
            _ => {}
        }
        let now = self.now();
        let (call, effects) = self.server.request(now, &request);
        self.calls.insert(call, (outcome, reply));
        self.take(effects);
        if request.path == "/start_profile" {
            self.check();
        }
    }

    /// What a window was granted for may be over later.
    fn start_leaves(&mut self) {
        let waited = self.now().since(self.granted_at);
        if waited > START_WITHIN {
            self.violated(format!("a start is sent {waited:?} after its grant"));
        }
    }

    /// Nobody opens another while one is open or its row is kept.
    fn start_arrives(&mut self, request: &Request, is_heard: bool) {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let folder = body["output_dir"].as_str().unwrap_or_default().to_owned();
        self.say(&format!("a start arrives: {folder}"));
        if self.is_unseen {
            self.say("after the instance before was gone for less than one poll");
            let heard = is_heard.then(|| self.now());
            self.outdated.insert(folder.clone(), heard);
        }
        let is_other = |open: &String| *open != folder && !self.outdated.contains_key(open);
        let others: Vec<String> = self.ours().into_iter().filter(is_other).collect();
        if !others.is_empty() {
            self.violated(format!("a window is opened while {others:?} is open"));
        }
        let kept = self.rows().into_iter().filter(|row| self.binds(row));
        let kept: Vec<String> = kept.filter_map(|row| folder_of(&row)).filter(|f| *f != folder).collect();
        if !kept.is_empty() {
            self.violated(format!("a window is opened while the row of {kept:?} is kept"));
        }
    }

    /// Nobody else's profile is ever stopped, as far as the agent could know of it: without a log, only
    /// by an answer to a start that was sent since, which is that of the first rank.
    fn stop_arrives(&mut self, sent: Time) {
        self.say("a stop arrives");
        let orders = self.server.open_orders();
        let theirs = orders.iter().filter(|(_, _, order)| is_theirs(order.output_dir.as_deref()));
        let theirs =
            theirs.filter(|(_, since, _)| *since + UNHEARD < sent && !self.is(|k| *k == Kind::LogLate));
        let is_known = |rank: u16, since: Time| {
            self.scenario.sees_log || rank == 0 && self.answered.is_some_and(|start| start > since)
        };
        let (known, unseen): (Vec<_>, Vec<_>) = theirs.partition(|(rank, since, _)| is_known(*rank, *since));
        if let Some((rank, since, _)) = known.last() {
            let what = format!(
                "a stop ends somebody else's profile on rank {rank}, open for {:?}",
                sent.since(*since)
            );
            self.violated(what);
        } else if !unseen.is_empty() {
            self.unseen_stops += 1;
            self.say("a stop ends somebody else's profile, which no answer has shown");
        }
    }

    fn take(&mut self, effects: Vec<Effect>) {
        let mut failed = None;
        for effect in effects {
            match effect {
                Effect::Log { line, .. } => {
                    let told = line.contains("rofil") && !line.contains("HTTP/1.1");
                    if told {
                        self.say(&format!("server: {line}"));
                    }
                    let line = line + "\n";
                    if self.is(|kind| *kind == Kind::LogLate) {
                        self.late_lines.push_back(line);
                    } else {
                        self.write_log(line.as_bytes());
                    }
                }
                Effect::File { path, content, rank } => {
                    if path.starts_with("/theirs") {
                        continue;
                    }
                    let folder = std::path::Path::new(&path).parent().map(std::fs::create_dir_all);
                    let written = folder.unwrap_or(Ok(())).and_then(|()| std::fs::write(&path, &content));
                    if let Err(e) = written {
                        failed = failed.or(Some((rank, format!("{e}: '{path}'"))));
                    }
                }
                Effect::Done { call, outcome } => self.answered(call, outcome),
                Effect::Down => {
                    self.say("the server is down");
                    self.late_lines.clear();
                    let pause = Duration::from_millis(self.dice.u64(1_000..15_000));
                    let at = self.now() + pause;
                    self.plan(at, Event::ComesBack);
                }
                Effect::Up => self.say("the server is up"),
            }
        }
        if let Some((rank, error)) = failed {
            let now = self.now();
            let effects = self.server.disk_error(now, rank, &error);
            self.take(effects);
        }
    }

    fn answered(&mut self, call: CallId, outcome: Outcome) {
        let Some((fault, reply)) = self.calls.remove(&call) else { return };
        let lost = || Err(Unanswered::Lost { why: "connection closed before message completed".into() });
        let answer = match (fault, outcome) {
            // The sender is kept: nobody ever answers.
            (Some(RequestOutcome::HalfOpen), _) => return,
            (Some(RequestOutcome::BrokenAfter), _) | (_, Outcome::Reset) => lost(),
            (Some(RequestOutcome::ProxyAfter(status)), _) => Ok((status, b"an error of the proxy".to_vec())),
            (_, Outcome::Answer(answer)) => Ok((answer.status, answer.body)),
        };
        let _ = reply.send(answer);
    }

    fn write_log(&self, bytes: &[u8]) {
        let path = self.dir.join("server.log");
        let log = OpenOptions::new().create(true).append(true).open(path);
        log.and_then(|mut log| log.write_all(bytes)).expect("the folder of the run takes a log");
    }

    /// The folders of the agent's windows that are open.
    fn ours(&self) -> Vec<String> {
        // What a dead process had open is gone.
        let orders = if self.server.is_up() { self.server.open_orders() } else { Vec::new() };
        let mut ours: Vec<String> = orders
            .iter()
            .filter_map(|(_, _, order)| order.output_dir.clone().filter(|dir| !is_theirs(Some(dir))))
            .collect();
        ours.dedup();
        ours
    }

    fn rows(&self) -> Vec<WindowRow> {
        self.bodies("SELECT body FROM windows")
    }

    /// Whether a row keeps others from opening: one without a proof does so for ten minutes.
    fn binds(&self, row: &WindowRow) -> bool {
        let attempts: Vec<Attempt> = self.bodies("SELECT body FROM attempts");
        let ended = attempts.iter().find(|a| a.id == row.attempt).and_then(|a| a.end.as_ref());
        let wall = self.now().nanos() + (self.wall_offset * 1e9) as i64;
        // The agent sees a clock that was set within a second.
        ended.is_none_or(|end| (end.at + QUIET).nanos() > wall + 2_000_000_000)
    }

    /// The state as it is on disk; nothing where there is none yet.
    fn bodies<T: serde::de::DeserializeOwned>(&self, sql: &str) -> Vec<T> {
        let file = self.dir.join("state/state.sqlite");
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let Ok(connection) = rusqlite::Connection::open_with_flags(file, flags) else { return Vec::new() };
        let Ok(mut query) = connection.prepare(sql) else { return Vec::new() };
        let bodies = query.query_map([], |row| row.get::<_, String>(0)).expect("a query without values");
        let bodies: Vec<String> = bodies.map(|body| body.expect("a row")).collect();
        bodies.iter().map(|body| serde_json::from_str(body).expect("a row of this release")).collect()
    }

    fn check_now_and_then(&mut self) {
        let now = self.now();
        if now.since(self.checked_at) >= CHECK {
            self.checked_at = now;
            self.check();
        }
    }

    /// The row of every window of ours that is open is kept.
    fn check(&mut self) {
        let ours = self.ours();
        if ours.is_empty() {
            return;
        }
        let kept: Vec<String> = self.rows().iter().filter_map(folder_of).collect();
        // It has other ranks, or is taken for gone with the instance before (docs/explanation/windows.md).
        let is_lost = |open: &&String| !kept.contains(open) && !self.outdated.contains_key(*open);
        let lost: Vec<String> = ours.iter().filter(is_lost).cloned().collect();
        for open in lost {
            self.violated(format!("{open} is open and its row is gone"));
        }
    }
}

fn is_theirs(folder: Option<&str>) -> bool {
    folder.is_some_and(|folder| folder.starts_with("/theirs"))
}

/// The folder of a window's files.
fn folder_of(window: &WindowRow) -> Option<String> {
    match &window.method {
        OpenMethod::Http(request) => request.folder.clone(),
        OpenMethod::Nsys { .. } | OpenMethod::Command { .. } => None,
    }
}

impl Network for World {
    fn carry(&self, request: reqwest::Request) -> Carried {
        let bearer = None;
        let request = Request {
            method: request.method().to_string(),
            path: request.url().path().to_owned(),
            query: request.url().query().unwrap_or_default().to_owned(),
            bearer,
            body: request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default().to_vec(),
        };
        let world = self.clone();
        Box::pin(async move { world.sent(request).await })
    }
}

impl Machine for World {
    fn wall_time(&self) -> Time {
        let state = self.lock();
        Time::from_nanos(state.now().nanos() + (state.wall_offset * 1e9) as i64)
    }

    fn disk(&self) -> Until {
        let world = self.clone();
        Box::pin(async move { world.disk_is_ready().await })
    }

    fn worked(&self) -> Until {
        let world = self.clone();
        Box::pin(async move { world.step().await }) as Pin<Box<_>>
    }

    fn disk_fails(&self) -> bool {
        self.lock().is(|kind| *kind == Kind::DiskFails)
    }
}
